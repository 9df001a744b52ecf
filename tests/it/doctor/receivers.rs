//! Receivers of the audit trail.

use serde_json::json;

use super::{configuration, doctor, folder};
use crate::{
    export::{server_of, write_clients},
    harness::{Authority, Collector, CollectorAnswer, SyslogServer, free_port},
};

#[tokio::test]
async fn receivers_of_the_trail_are_asked_whether_they_take_what_is_sent() {
    let authority = Authority::new();
    let yaml = configuration("http://localhost:7", "http://localhost:1", "http://localhost:1");
    let siem = SyslogServer::start(Some(server_of(&authority.issue(&["127.0.0.1"]), &authority))).await;
    let collector = Collector::start().await;
    let certificate = ", certificate: {chain: client.pem, key: client.key}";
    let ask = async |of: &str, receiver: String| {
        let dir = folder(&yaml.replace("audit: {", &format!("audit: {{export: [{{name: {of}, {receiver}}}], ")));
        write_clients(dir.path(), &authority);
        std::fs::write(dir.path().join("authorization"), "Bearer hunter2").unwrap();
        let said = doctor(dir.path(), &["--only", "receivers"]).await;
        assert!(!format!("{:?}", said.findings).contains("hunter2"));
        said
    };
    let syslog = |address: &str, certificate: &str| {
        format!("syslog: {{address: '{address}', tls: {{ca: ca.pem{certificate}}}}}")
    };
    let address = siem.address.to_string();
    ask("siem", syslog(&address, certificate)).await.is("receivers", "good", &["receiver `siem`"]);
    // The handshake succeeds, and the server refuses afterwards.
    let said = ask("siem", syslog(&address, "")).await;
    said.is("receivers", "fault", &["CertificateRequired", "`tls.certificate`"]);
    assert_eq!(said.code, Some(1));
    let closed = format!("127.0.0.1:{}", free_port());
    ask("siem", syslog(&closed, certificate)).await.is("receivers", "fault", &["refused", "NetworkPolicy"]);
    assert_eq!(siem.arrived.all(), Vec::<String>::new(), "it is sent nothing");

    let otlp = |address: &str| {
        format!("otlp: {{endpoint: 'http://{address}', headers: {{authorization: {{file: authorization}}}}}}")
    };
    let address = collector.address.to_string();
    let echo = "you said Bearer hunter2";
    for (status, body, state, words) in [
        (200, "{}", "good", "it accepts what it is sent"),
        (200, echo, "fault", "but not as OTLP does"),
        (422, echo, "good", "it accepts what it is sent"),
        (401, echo, "fault", "`headers`"),
        (503, echo, "warning", "lines wait"),
    ] {
        collector.always(CollectorAnswer { status, retry_after: None, body, takes: false });
        ask("otel", otlp(&address)).await.is("receivers", state, &[words]);
    }
    ask("otel", otlp(&closed)).await.is("receivers", "fault", &["NetworkPolicy"]);
    let (headers, body) = collector.calls().remove(0);
    assert_eq!((&headers["authorization"], body), (&"Bearer hunter2".parse().unwrap(), json!({"resourceLogs": []})));
}
