//! The public address: what a proxy in front of Doorward drops, and how long certificates are valid.

use std::{path::Path, time::Duration};

use rcgen::{CertificateParams, KeyPair};
use time::OffsetDateTime;

use super::{configuration, doctor, doctor_with, folder, somewhere};
use crate::harness::{Authority, Doorward, Nginx, Upstream, faults, free_port};

/// nginx in front of a Doorward in clear text; `location` says what it does with a request.
async fn in_front_of(doorward: u16, dir: &Path, server: &str, location: &str) -> Nginx {
    let file = |name: &str| dir.join(name).display().to_string();
    Nginx::start(|address| {
        format!(
            "events {{}}
http {{
    map $http_upgrade $connection_upgrade {{ default upgrade; '' ''; }}
    server {{
        listen {address} ssl;
        ssl_certificate {chain};
        ssl_certificate_key {key};
        {server}
        location / {{
            proxy_pass http://127.0.0.1:{doorward};
            proxy_http_version 1.1;
            {location}
        }}
    }}
}}",
            chain = file("server.pem"),
            key = file("server.key"),
        )
    })
    .await
}

const HOST: &str = "proxy_set_header Host $http_host;";
const HTTPS: &str = "proxy_set_header X-Forwarded-Proto $scheme;";
const UPGRADE: &str = "proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection $connection_upgrade;";

#[tokio::test]
async fn what_the_proxy_in_front_drops_is_reported() {
    let upstream = Upstream::start().await;
    let port = free_port();
    let yaml = configuration(&format!("http://localhost:{port}"), "http://localhost:1", &upstream.url());
    let yaml = yaml.replace("}]\nissuers", ", trusted_proxies: [127.0.0.1/32]}]\nissuers");
    let dir = folder(&yaml);
    let authority = Authority::new();
    authority.issue(&["localhost"]).write(dir.path(), "server");
    std::fs::write(dir.path().join("ca.pem"), authority.pem()).unwrap();
    let doorward = Doorward::start_at(dir.path()).await;
    let all = [HOST, HTTPS, UPGRADE].concat();
    for (server, location, wrong) in [
        ("", all.clone(), None),
        ("", [HOST, UPGRADE].concat(), Some(("origin", "X-Forwarded-Proto"))),
        ("", ["proxy_set_header Host localhost:1;", HTTPS, UPGRADE].concat(), Some(("origin", "https://localhost:1"))),
        ("", [HOST, HTTPS].concat(), Some(("upgrade", "lost on the way"))),
        ("large_client_header_buffers 4 2k;", all.clone(), Some(("cookies", "large_client_header_buffers"))),
    ] {
        let nginx = in_front_of(port, dir.path(), server, &location).await;
        let address = format!("https://localhost:{}", nginx.address.port());
        let public =
            ["--only", "origin", "--only", "upgrade", "--only", "cookies", "--public", &address, "--ca", "ca.pem"];
        let said = doctor(dir.path(), &public).await;
        for check in ["origin", "upgrade", "cookies"] {
            match wrong {
                Some((is, words)) if is == check => said.is(check, "fault", &[&address, words]),
                _ => said.is(check, "good", &[&address]),
            }
        }
    }
    let nowhere = somewhere();
    let said = doctor(dir.path(), &["--only", "origin", "--only", "upgrade", "--public", &nowhere]).await;
    said.is("origin", "fault", &["check whether Doorward runs", "the NetworkPolicy `doorward`"]);
    said.is("upgrade", "skipped", &[]);
    let said =
        doctor(dir.path(), &["--only", "origin", "--public", &upstream.url().replace("127.0.0.1", "localhost")]).await;
    said.is("origin", "fault", &["not Doorward's", "`/.doorward/` and `/oauth2/`"]);
    let said = doctor(dir.path(), &["--only", "store"]).await;
    said.is("store", "good", &["a running Doorward has it open"]);
    drop(doorward);
}

#[tokio::test]
async fn the_remaining_days_of_certificates_in_files_and_at_the_public_address_are_reported() {
    const DAY: u64 = 86_400;
    let dir = folder("");
    let (authority, key) = (Authority::new(), KeyPair::generate().unwrap());
    let mut params = CertificateParams::new(["localhost".to_owned()]).unwrap();
    let now = OffsetDateTime::now_utc();
    (params.not_before, params.not_after) = (now - Duration::from_secs(60 * DAY), now + Duration::from_secs(30 * DAY));
    std::fs::write(dir.path().join("server.pem"), authority.sign(&params, &key)).unwrap();
    std::fs::write(dir.path().join("server.key"), key.serialize_pem()).unwrap();
    std::fs::write(dir.path().join("ca.pem"), authority.pem()).unwrap();
    let port = free_port();
    let yaml = configuration(&format!("https://localhost:{port}"), "http://localhost:1", "http://localhost:1");
    let tls = ", tls: {certificates: [{chain: server.pem, key: server.key}]}}]\nissuers";
    std::fs::write(dir.path().join("doorward.yaml"), yaml.replace("}]\nissuers", tls)).unwrap();
    let _doorward = Doorward::start_at(dir.path()).await;
    let public = format!("https://localhost:{port}");
    let asked = ["--only", "certificates", "--public", &public, "--ca", "ca.pem"];
    let file = format!("listeners[0].tls.certificates[0].chain ({})", dir.path().join("server.pem").display());
    for (days, state) in [(0, "good"), (20, "warning"), (31, "fault")] {
        faults::set_clock_ahead(dir.path(), days * DAY);
        let said = doctor_with(dir.path(), &asked, &faults::environment(dir.path())).await;
        let states: Vec<_> =
            said.findings.iter().map(|finding| (finding["subject"].as_str(), finding["state"].as_str())).collect();
        // An expired certificate is not even connected to.
        let at_public = if state == "fault" { "skipped" } else { state };
        assert_eq!(states, [(Some(&*public), Some(at_public)), (Some(&*file), Some(state))], "{:#?}", said.findings);
    }
}
