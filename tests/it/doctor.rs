//! `doorward doctor`: each check, failing and passing, against real parts.

use std::{path::Path, time::Duration};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use rcgen::{CertificateParams, KeyPair};
use serde_json::{Value, json};
use tempfile::TempDir;
use time::OffsetDateTime;
use tokio::process::Command;

use crate::{
    export::{server_of, write_clients},
    harness::{
        Authority, Collector, CollectorAnswer, Doorward, Nginx, OidcProvider, RedisServer, Reply, SyslogServer,
        Upstream, faults, folder_with, free_port, within,
    },
};

/// The output of a doctor, and its exit status.
pub struct Said {
    pub code: Option<i32>,
    pub findings: Vec<Value>,
}

impl Said {
    /// The state of a check, and its text.
    fn of(&self, check: &str) -> (&str, String) {
        let mut found = self.findings.iter().filter(|finding| finding["check"] == check);
        let finding = found.next().unwrap_or_else(|| panic!("nothing was said of {check}: {:#?}", self.findings));
        assert!(found.next().is_none(), "it was said more than once: {:#?}", self.findings);
        let text = |name: &str| finding[name].as_str().unwrap_or_default();
        (text("state"), format!("{}: {}. {}", text("subject"), text("message"), text("fix")))
    }

    #[track_caller]
    pub fn is(&self, check: &str, state: &str, words: &[&str]) {
        let (found, text) = self.of(check);
        assert_eq!(found, state, "{text}");
        for words in words {
            assert!(text.contains(words), "`{words}` in {text}");
        }
    }
}

/// Runs the doctor with these arguments on the configuration in `dir`.
pub async fn doctor(dir: &Path, arguments: &[&str]) -> Said {
    doctor_with(dir, arguments, &[]).await
}

/// Runs the doctor from outside, on these addresses.
pub async fn outside(addresses: &[&str]) -> Said {
    let mut command = Command::new(env!("CARGO_BIN_EXE_doorward"));
    command.args(["doctor", "--format", "json", "--outside"]).args(addresses);
    said(command).await
}

async fn doctor_with(dir: &Path, arguments: &[&str], environment: &[(&str, std::path::PathBuf)]) -> Said {
    let mut command = Command::new(env!("CARGO_BIN_EXE_doorward"));
    command.arg("doctor").arg(dir.join("doorward.yaml")).args(["--format", "json"]).args(arguments);
    command.envs(environment.iter().map(|(name, value)| (name, value))).current_dir(dir);
    said(command).await
}

async fn said(mut command: Command) -> Said {
    let output = within(command.kill_on_drop(true).output()).await.unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    let findings = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {stderr}{}", String::from_utf8_lossy(&output.stdout)));
    Said { code: output.status.code(), findings }
}

/// A folder with this configuration and its files.
fn folder(yaml: &str) -> TempDir {
    folder_with(&[("client", "doorward-secret-of-the-tests"), ("token", "upstream-token"), ("doorward.yaml", yaml)])
}

/// A configuration whose users sign in at `origin` with a provider.
fn configuration(origin: &str, issuer: &str, upstream: &str) -> String {
    let (_, port) = origin.rsplit_once(':').unwrap();
    format!(
        "
listeners: [{{name: public, address: '127.0.0.1:{port}'}}]
issuers:
  - name: corp
    issuer: {issuer}
    audiences: ['https://doorward.test']
    username: '{{sub}}'
    algorithms: [RS256]
    login: {{kind: human, client: {{id: doorward, secret: {{file: client}}}}}}
upstreams: [{{name: web, url: '{upstream}'}}]
routes: [{{name: web, kind: http, hosts: [localhost], schemes: [session], upstream: web}}]
rules: [{{id: people, on: {{routes: [web]}}, who: {{kind: human}}, do: allow}}]
store: {{path: doorward.redb}}
audit: {{sink: {{file: {{path: audit.jsonl}}}}}}
limits: {{drain_accept: 0}}
"
    )
}

fn somewhere() -> String {
    format!("http://localhost:{}", free_port())
}

const PROVIDER: [&str; 10] =
    ["--only", "discovery", "--only", "issuer", "--only", "algorithms", "--only", "clock", "--only", "redirect"];

/// The real provider, which knows the origin, and a folder with a configuration for it.
async fn with_provider(change: impl FnOnce(&OidcProvider, String) -> String) -> (OidcProvider, String, TempDir) {
    let origin = somewhere();
    let provider = OidcProvider::start(&origin).await;
    let yaml = configuration(&origin, &provider.issuer, "http://localhost:1");
    let dir = folder(&change(&provider, yaml));
    (provider, origin, dir)
}

#[tokio::test]
async fn a_correct_provider_passes_every_check() {
    let (_provider, origin, dir) = with_provider(|_, yaml| yaml).await;
    let said = doctor(dir.path(), &[&PROVIDER[..], &["--public", &origin]].concat()).await;
    for check in ["discovery", "issuer", "algorithms", "clock", "redirect"] {
        said.is(check, "good", &["issuer `corp`"]);
    }
    assert_eq!((said.code, said.findings.len()), (Some(0), 5));
    assert!(!dir.path().join("doorward.redb").exists(), "it makes nothing");
    // On this machine, the origin is known without a setting.
    doctor(dir.path(), &["--only", "redirect"]).await.is("redirect", "good", &[&format!("it knows {origin}/")]);
}

#[tokio::test]
async fn an_unreachable_provider_is_reported() {
    let dir = folder(&configuration(&somewhere(), &somewhere(), "http://localhost:1"));
    let said = doctor(dir.path(), &PROVIDER).await;
    said.is("discovery", "fault", &["the connection failed", "check `issuer`, `ca`", "the NetworkPolicy `doorward`"]);
    said.is("algorithms", "skipped", &[]);
    said.is("redirect", "skipped", &[]);
    assert_eq!(said.code, Some(1));
}

#[tokio::test]
async fn a_misspelt_issuer_is_reported_with_the_right_spelling() {
    let spelt =
        |provider: &OidcProvider, yaml: String| yaml.replace(&provider.issuer, &format!("{}/", provider.issuer));
    let (provider, _, dir) = with_provider(spelt).await;
    let said = doctor(dir.path(), &PROVIDER).await;
    said.is("discovery", "good", &[]);
    said.is("issuer", "fault", &[&provider.issuer, "write `issuer` exactly as it does"]);
}

#[tokio::test]
async fn a_wrong_cluster_issuer_is_reported_with_the_clusters_own_name() {
    let own = "https://kubernetes.default.svc.cluster.local";
    let api = Upstream::scripted(move |request| {
        if request.head.starts_with("GET /.well-known/openid-configuration ") {
            assert_eq!(request.one("authorization"), "Bearer upstream-token");
            return Reply::json(200, &json!({"issuer": own}).to_string());
        }
        Reply::json(if request.head.starts_with("GET /elsewhere") { 404 } else { 200 }, r#"{"keys":[]}"#)
    })
    .await;
    for (issuer, keys, state, words) in [
        ("https://kubernetes.default.svc", "", "fault", vec![own, "write `issuer` exactly as it does"]),
        (own, "", "good", vec!["issuer `cluster`"]),
        (own, "/elsewhere", "skipped", vec!["cannot be read", "404"]),
    ] {
        let url = api.url();
        let cluster = format!(
            "issuers:
  - name: cluster
    preset: kubernetes
    issuer: '{issuer}'
    audiences: ['https://doorward.test']
    keys: {{url: '{url}{keys}/openid/v1/jwks', bearer: {{file: token}}}}
"
        );
        let yaml = configuration(&somewhere(), "http://localhost:1", "http://localhost:1");
        let dir = folder(&yaml.replace("issuers:\n", &cluster));
        doctor(dir.path(), &["--only", "issuer"]).await.is("issuer", state, &words);
    }
}

#[tokio::test]
async fn keys_for_other_algorithms_are_reported() {
    let other = |_: &OidcProvider, yaml: String| yaml.replace("algorithms: [RS256]", "algorithms: [ES384]");
    let (_provider, _, dir) = with_provider(other).await;
    let said = doctor(dir.path(), &PROVIDER).await;
    said.is("algorithms", "fault", &["no usable key", "accepted is ES384", "to `algorithms`"]);
    said.is("discovery", "good", &[]);
}

#[tokio::test]
async fn a_clock_that_differs_from_the_providers_is_warned_about() {
    let (_provider, _, dir) = with_provider(|_, yaml| yaml).await;
    let environment = faults::environment(dir.path());
    faults::set_clock_ahead(dir.path(), 20);
    let said = doctor_with(dir.path(), &PROVIDER, &environment).await;
    said.is("clock", "warning", &["ahead of its own", "still tolerated", "NTP"]);
    faults::set_clock_ahead(dir.path(), 600);
    let said = doctor_with(dir.path(), &PROVIDER, &environment).await;
    said.is("clock", "fault", &["ahead of its own", "NTP"]);
    said.is("discovery", "good", &[]);
    assert_eq!(said.code, Some(1));
}

#[tokio::test]
async fn a_redirect_address_unknown_to_the_provider_is_reported() {
    let (_provider, _, dir) = with_provider(|_, yaml| yaml).await;
    let elsewhere = somewhere();
    let said = doctor(dir.path(), &[&PROVIDER[..], &["--public", &elsewhere]].concat()).await;
    said.is(
        "redirect",
        "fault",
        &[&format!("{elsewhere}/oauth2/callback"), "register exactly that address", "client `doorward`"],
    );
    said.is("issuer", "good", &[]);
}

/// A fake provider, for responses that the real one does not give.
async fn provider_that_answers(authorize: &'static str) -> Upstream {
    Upstream::scripted(move |request| {
        let url = format!("http://{}", request.one("host"));
        if request.head.starts_with("GET /.well-known/openid-configuration ") {
            let endpoints = format!(r#""authorization_endpoint":"{url}/authorize","jwks_uri":"{url}/jwks""#);
            return Reply::json(200, &format!(r#"{{"issuer":"{url}",{endpoints}}}"#));
        }
        if request.head.starts_with("GET /authorize?") {
            assert!(request.head.contains("&prompt=none&"), "nobody is asked: {}", request.head);
            return Reply::Bytes(format!("HTTP/1.1 {authorize}\r\nContent-Length: 0\r\n\r\n").into_bytes());
        }
        Reply::json(200, r#"{"keys":[]}"#)
    })
    .await
}

#[tokio::test]
async fn the_answer_of_a_provider_shows_whether_it_knows_the_redirect_address() {
    for (answer, state, words) in [
        (
            "303 See Other\r\nLocation: http://localhost:7/oauth2/callback?error=login_required&state=x",
            "good",
            "it knows",
        ),
        (
            "303 See Other\r\nLocation: http://localhost:7/oauth2/callback?error=unauthorized_client",
            "warning",
            "unauthorized_client",
        ),
        (
            "302 Found\r\nLocation: http://localhost:7/oauth2/callback.evil?error=login_required",
            "warning",
            "sign in once",
        ),
        ("302 Found\r\nLocation: https://login.example/signin", "warning", "login.example"),
        ("200 OK", "warning", "a page"),
        ("400 Bad Request", "fault", "register exactly that address"),
    ] {
        let provider = provider_that_answers(answer).await;
        let dir = folder(&configuration("http://localhost:7", &provider.url(), "http://localhost:1"));
        let said = doctor(dir.path(), &["--only", "redirect", "--public", "http://localhost:7"]).await;
        said.is("redirect", state, &[words]);
    }
}

#[tokio::test]
async fn introspection_is_tested_with_a_made_up_token() {
    let jwt = "application/token-introspection+jwt";
    for (status, media_type, body, state, words) in [
        (200, "application/json", r#"{"active": false}"#, "good", "it says which tokens are active"),
        (200, "application/json", r#"{"active": true}"#, "fault", "a made-up token as active"),
        (200, "application/json", r#"{"active": "no"}"#, "fault", "no `active`"),
        (200, "text/html", "<p>Sign in</p>", "fault", "not application/json"),
        (401, "application/json", r#"{"error": "invalid_client"}"#, "fault", "refuses our own client"),
        (404, "text/plain", "", "fault", "404"),
        (200, jwt, "e30.e30.e30", "good", "a signed response"),
    ] {
        let head = format!("HTTP/1.1 {status} X\r\nContent-Type: {media_type}\r\nContent-Length: {}", body.len());
        let provider = Upstream::scripted(move |_| Reply::Bytes(format!("{head}\r\n\r\n{body}").into_bytes())).await;
        let signed = if media_type == jwt { ", signed: true" } else { "" };
        let introspection = format!(
            "introspection: {{mode: opaque, endpoint: '{}/ask', client: {{id: doorward, secret: {{file: client}}}}{signed}}}",
            provider.url()
        );
        let yaml = configuration("http://localhost:7", "http://localhost:1", "http://localhost:1");
        let dir = folder(&yaml.replace("    login:", &format!("    {introspection}\n    login:")));
        let said = doctor(dir.path(), &["--only", "introspection"]).await;
        said.is("introspection", state, &["issuer `corp`", words]);
        assert!(!format!("{:?}", said.findings).contains("doorward-secret-of-the-tests"));
        assert!(provider.only().head.starts_with("POST /ask "), "{body}");
    }
    let dir = folder(&configuration("http://localhost:7", "http://localhost:1", "http://localhost:1"));
    let said = doctor(dir.path(), &["--only", "introspection"]).await;
    assert_eq!(said.findings.len(), 0, "where none is asked there is nothing to look at");
}

#[tokio::test]
async fn the_health_of_upstreams_is_checked() {
    for (kind, path, answer, state, words) in [
        ("webhook, webhook: github, schemes: [webhook], paths: [/hooks]", "/live", 200, "good", "EventListener `it`"),
        ("webhook, webhook: github, schemes: [webhook], paths: [/hooks]", "/live", 404, "warning", "another receiver"),
        (
            "webhook, webhook: github, schemes: [webhook], paths: [/hooks]",
            "/live",
            503,
            "fault",
            "pod of the EventListener",
        ),
        ("dashboard, schemes: [bearer]", "/health", 200, "good", "Dashboard `it`"),
        ("dashboard, schemes: [bearer]", "/health", 404, "fault", "check its `url`"),
        ("http, schemes: [bearer]", "/", 404, "good", "upstream `it`"),
        ("http, schemes: [bearer]", "/", 502, "fault", "check that server"),
        ("kubernetes, schemes: [bearer]", "/version", 401, "fault", "rejects Doorward's own credential"),
        ("kubernetes, schemes: [bearer]", "/version", 200, "fault", "not an API server"),
    ] {
        let upstream = Upstream::scripted(move |request| {
            let asked = request.head.starts_with(&format!("GET {path} "));
            Reply::json(if asked { answer } else { 418 }, "{}")
        })
        .await;
        let dir = folder(&format!(
            "
listeners: [{{name: public, address: '127.0.0.1:0'}}]
issuers: [{{name: corp, issuer: 'http://localhost:1', audiences: [a], username: '{{sub}}', algorithms: [RS256]}}]
upstreams: [{{name: it, url: '{url}', credential: {{bearer: {{file: token}}}}}}]
webhooks: [{{name: github, sender: github, secrets: [{{secret: {{file: token}}}}]}}]
routes: [{{name: it, kind: {kind}, hosts: [localhost], upstream: it}}]
store: {{path: doorward.redb}}
audit: {{sink: {{file: {{path: audit.jsonl}}}}}}
",
            url = upstream.url(),
        ));
        let said = doctor(dir.path(), &["--only", "upstreams"]).await;
        said.is("upstreams", state, &[words]);
    }
    // The API server of a Dashboard route counts as one too.
    let dashboard = Upstream::start().await;
    let yaml = configuration("http://localhost:7", "http://localhost:1", &dashboard.url());
    let more = ", credential: {bearer: {file: token}}}, {name: pages, url: 'http://localhost:1'}]";
    let yaml = yaml.replace(
        "'}]\nroutes: [{name: web, kind: http,",
        &format!("'{more}\nroutes: [{{name: web, kind: dashboard, kubernetes: web,"),
    );
    let dir = folder(&yaml.replace("schemes: [session], upstream: web", "schemes: [session], upstream: pages"));
    let said = doctor(dir.path(), &["--only", "upstreams"]).await;
    let subjects: Vec<&str> = said.findings.iter().map(|finding| finding["subject"].as_str().unwrap()).collect();
    assert_eq!(subjects, ["Dashboard `pages`", "API server `web`"]);
    let dir = folder(&configuration("http://localhost:7", "http://localhost:1", &somewhere()));
    let said = doctor(dir.path(), &["--only", "upstreams"]).await;
    said.is("upstreams", "fault", &["upstream `web`", "check its `url` and `tls`"]);
}

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

#[tokio::test]
async fn an_unusable_store_is_reported() {
    let dir = folder(&configuration("http://localhost:7", "http://localhost:1", "http://localhost:1"));
    let said = doctor(dir.path(), &["--only", "store"]).await;
    said.is("store", "good", &["does not exist yet"]);
    let file = dir.path().join("doorward.redb");
    std::fs::write(&file, "").unwrap();
    doctor(dir.path(), &["--only", "store"]).await.is("store", "good", &["does not exist yet"]);
    std::fs::write(&file, "no store").unwrap();
    let said = doctor(dir.path(), &["--only", "store"]).await;
    said.is("store", "fault", &["move it away"]);
    // After a start, and after an end with and without a proper shutdown.
    std::fs::remove_file(&file).unwrap();
    let (yaml, port) = (std::fs::read_to_string(dir.path().join("doorward.yaml")).unwrap(), free_port());
    std::fs::write(dir.path().join("doorward.yaml"), yaml.replace(":7'", &format!(":{port}'"))).unwrap();
    for signal in ["KILL", "TERM"] {
        let mut doorward = Doorward::start_at(dir.path()).await;
        doorward.signal(signal);
        doorward.ended().await;
        let before = std::fs::read(&file).unwrap();
        doctor(dir.path(), &["--only", "store"]).await.is("store", "good", &["it can be opened"]);
        assert!(std::fs::read(&file).unwrap() == before, "it writes nothing into it after {signal}");
    }
}

#[tokio::test]
async fn an_unreachable_redis_and_one_that_could_lose_data_are_reported() {
    let mut redis = RedisServer::start(&["--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru"]);
    let yaml = configuration("http://localhost:7", "http://localhost:1", "http://localhost:1");
    let store = format!("store: {{path: doorward.redb, redis: {{server: '{}'}}}}", redis.address());
    let dir = folder(&yaml.replace("store: {path: doorward.redb}", &store));
    std::fs::write(dir.path().join("key"), "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=").unwrap();
    let yaml = std::fs::read_to_string(dir.path().join("doorward.yaml")).unwrap();
    std::fs::write(dir.path().join("doorward.yaml"), yaml + "sessions: {keys: [{file: key}]}\n").unwrap();
    let said = doctor(dir.path(), &["--only", "store"]).await;
    let words: Vec<String> = said.findings.iter().map(Value::to_string).collect();
    assert!(words[0].contains("it answers"), "{words:?}");
    assert!(
        words[1..].iter().any(|words| words.contains("warning") && words.contains("maxmemory-policy")),
        "{words:?}"
    );
    let _: String = redis.ask(&["CONFIG", "SET", "maxmemory-policy", "noeviction"]).await;
    let _: String = redis.ask(&["CONFIG", "SET", "maxmemory", "1"]).await;
    doctor(dir.path(), &["--only", "store"]).await.is("store", "fault", &["accepts no writes", "maxmemory"]);
    redis.kill();
    let said = doctor(dir.path(), &["--only", "store"]).await;
    said.is("store", "fault", &["store.redis"]);
    assert_eq!(said.code, Some(1));
}

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
    for (status, state, words) in [
        (200, "good", "it accepts what it is sent"),
        (422, "good", "it accepts what it is sent"),
        (401, "fault", "`headers`"),
        (503, "warning", "lines wait"),
    ] {
        collector.always(CollectorAnswer { status, retry_after: None, body: "you said Bearer hunter2", takes: false });
        ask("otel", otlp(&address)).await.is("receivers", state, &[words]);
    }
    ask("otel", otlp(&closed)).await.is("receivers", "fault", &["NetworkPolicy"]);
    let (headers, body) = collector.calls().remove(0);
    assert_eq!((&headers["authorization"], body), (&"Bearer hunter2".parse().unwrap(), json!({"resourceLogs": []})));
}

#[tokio::test]
async fn static_credentials_of_the_cluster_are_listed_with_what_takes_their_place() {
    let dir = folder(&configuration("http://localhost:7", "http://localhost:1", "http://localhost:1"));
    let list = |items: &str| std::fs::write(dir.path().join("list"), format!(r#"{{"items":[{items}]}}"#)).unwrap();
    let asked = ["--only", "credentials", "--cluster", "list"];
    doctor(dir.path(), &["--only", "credentials"]).await.is("credentials", "skipped", &["--cluster"]);
    list("");
    doctor(dir.path(), &asked).await.is("credentials", "good", &[]);
    list(
        r#"{"apiVersion":"v1","kind":"ServiceAccount","metadata":{"namespace":"ci","name":"builder"},"secrets":[{"name":"git"}]}"#,
    );
    let said = doctor(dir.path(), &asked).await;
    said.is("credentials", "warning", &["ci/builder", "git", "doorward token"]);
    assert_eq!(said.code, Some(0), "it works");
    std::fs::write(dir.path().join("list"), "no list").unwrap();
    doctor(dir.path(), &asked).await.is("credentials", "fault", &["not a list of Kubernetes objects"]);
}

#[tokio::test]
async fn the_authorities_of_a_cluster_interceptor_must_be_those_of_the_listener() {
    let (ours, theirs) = (Authority::new(), Authority::new());
    let tls = "tls: {certificates: [{chain: tls/server.pem, key: tls/server.key}]}";
    let yaml = configuration("http://localhost:7", "http://localhost:1", "http://localhost:1")
        .replace("listeners: [", &format!("listeners: [{{name: questions, address: '127.0.0.1:0', {tls}}}, "))
        + "interceptor: {host: door.front.svc}\n";
    let dir = folder(&yaml);
    std::fs::create_dir_all(dir.path().join("tls")).unwrap();
    let serve = |names: &[&str]| ours.issue(names).write(&dir.path().join("tls"), "server");
    serve(&["door.front.svc"]);
    let asked = ["--only", "interceptor", "--cluster", "list"];
    doctor(dir.path(), &["--only", "interceptor"]).await.is("interceptor", "skipped", &["--cluster"]);
    let list = |namespace: &str, bundle: &str| {
        let service = json!({"name": "door", "namespace": namespace, "port": 8443});
        let spec = json!({"clientConfig": {"caBundle": BASE64_STANDARD.encode(bundle), "service": service}});
        let items = json!([{"kind": "ClusterInterceptor", "metadata": {"name": "doorward"}, "spec": spec}]);
        std::fs::write(dir.path().join("list"), json!({"items": items}).to_string()).unwrap();
    };
    let itself = std::fs::read_to_string(dir.path().join("tls/server.pem")).unwrap();
    for (namespace, bundle, state, words) in [
        ("front", ours.pem(), "good", "EventListeners trust"),
        ("front", itself, "good", "EventListeners trust"),
        ("front", theirs.pem(), "fault", "does not contain the authority"),
        ("front", "nothing".to_owned(), "fault", "contains no certificate"),
        ("elsewhere", ours.pem(), "warning", "no ClusterInterceptor points to it"),
    ] {
        list(namespace, &bundle);
        doctor(dir.path(), &asked).await.is(
            "interceptor",
            state,
            &[words, "doorward interceptor"][..1 + usize::from(state != "good")],
        );
    }
    list("front", &ours.pem());
    serve(&["another.front.svc"]);
    doctor(dir.path(), &asked).await.is("interceptor", "fault", &["no listener has a certificate for this name"]);
    std::fs::write(dir.path().join("list"), r#"{"items":[]}"#).unwrap();
    doctor(dir.path(), &asked).await.is("interceptor", "skipped", &["clusterinterceptors"]);
}

#[tokio::test]
async fn attacks_z52_subjects_that_may_start_runs_past_doorward_are_listed() {
    let dir = folder(&configuration("http://localhost:7", "http://localhost:1", "http://localhost:1"));
    let asked = ["--only", "bypass", "--cluster", "list", "--service-account", "front/doorward"];
    doctor(dir.path(), &["--only", "bypass"]).await.is("bypass", "skipped", &["--cluster"]);
    let object = |kind: &str, metadata: Value, more: Value| {
        let mut object = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": kind, "metadata": metadata});
        object.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        object
    };
    let bound = |name: &str, rule: Value, subject: Value| {
        let role = json!({"kind": "ClusterRole", "name": name});
        [
            object("ClusterRole", json!({"name": name}), json!({"rules": [rule]})),
            object("ClusterRoleBinding", json!({"name": name}), json!({"roleRef": role, "subjects": [subject]})),
        ]
    };
    let create = json!({"apiGroups": ["tekton.dev"], "resources": ["pipelineruns"], "verbs": ["create"]});
    let people = json!({"apiGroups": [""], "resources": ["users", "groups"], "verbs": ["impersonate"]});
    let account = |namespace: &str, name: &str| json!({"kind": "ServiceAccount", "namespace": namespace, "name": name});
    let role = json!({"kind": "Role", "name": "none"});
    let mut items = vec![
        json!({"apiVersion": "tekton.dev/v1", "kind": "Pipeline", "metadata": {"namespace": "ci", "name": "release"}}),
        object("Role", json!({"namespace": "ci", "name": "none"}), json!({"rules": []})),
        object("RoleBinding", json!({"namespace": "ci", "name": "none"}), json!({"roleRef": role, "subjects": []})),
    ];
    items.extend(bound("be-people", people, account("front", "doorward")));
    items.extend(bound(
        "tekton-controller",
        create.clone(),
        account("tekton-pipelines", "tekton-pipelines-controller"),
    ));
    let list = |items: &[Value]| std::fs::write(dir.path().join("list"), json!({"items": items}).to_string()).unwrap();
    list(&items);
    doctor(dir.path(), &asked).await.is("bypass", "good", &["nobody unexpected"]);
    items.extend(bound("cron", create, account("ci", "cron")));
    list(&items);
    let said = doctor(dir.path(), &asked).await;
    said.is(
        "bypass",
        "warning",
        &[
            "ServiceAccount ci/cron may create pipelineruns by ClusterRoleBinding cron and ClusterRole cron, and so start runs in ci",
            "who-can",
        ],
    );
    assert_eq!(said.code, Some(0), "it works");
    list(&items[1..]);
    doctor(dir.path(), &asked).await.is("bypass", "skipped", &["names a namespace of Tekton's"]);
    list(&items[..1]);
    doctor(dir.path(), &asked).await.is("bypass", "skipped", &["ClusterRole"]);
    std::fs::write(dir.path().join("list"), "no list").unwrap();
    doctor(dir.path(), &asked).await.is("bypass", "fault", &["not a list of Kubernetes objects"]);
}

#[tokio::test]
async fn people_read_a_line_for_each_thing() {
    let dir = folder(&configuration("http://localhost:7", "http://localhost:1", "http://localhost:1"));
    let run = async |file: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_doorward"));
        command.arg("doctor").arg(dir.path().join(file)).args(["--only", "store", "--only", "upstreams"]);
        let output = within(command.kill_on_drop(true).output()).await.unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    };
    let (code, said) = run("doorward.yaml").await;
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!((code, lines.len()), (Some(1), 3), "{said}");
    assert!(lines[0].starts_with("FAULT    upstreams    upstream `web`: "), "{said}");
    assert!(lines[1].starts_with("ok       store        store "), "{said}");
    assert_eq!(lines[2], "2 checked: 1 fault, 0 warnings");
    std::fs::write(dir.path().join("bad.yaml"), "listeners: []").unwrap();
    let (code, said) = run("bad.yaml").await;
    assert!(code == Some(64) && said.contains("there is no listener"), "{said}");
}

/// A pod elsewhere does not have the configuration.
#[tokio::test]
async fn upstreams_reachable_past_doorward_are_reported_from_outside() {
    let (there, nothing) = (Upstream::start().await, somewhere());
    let unknown = "http://nobody.invalid:8080".to_owned();
    let url = there.url();
    let without_scheme = url.trim_start_matches("http://");
    let said = outside(&[&url, without_scheme, &nothing, &unknown]).await;
    let states: Vec<&str> = said.findings.iter().map(|finding| finding["state"].as_str().unwrap()).collect();
    assert_eq!(states, ["fault", "fault", "good", "skipped"], "{:?}", said.findings);
    assert_eq!((said.code, there.requests().len()), (Some(1), 0), "and nothing is sent");

    let dir = folder(&configuration(&somewhere(), &somewhere(), &there.url()));
    let said = doctor(dir.path(), &["--only", "isolation"]).await;
    said.is("isolation", "skipped", &[&format!("`doorward doctor --outside {}`", there.url())]);
}
