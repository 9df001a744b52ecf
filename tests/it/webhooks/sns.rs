//! Amazon SNS: messages signed by a test authority, whose certificates Doorward fetches.

use std::{
    io::Write,
    path::Path,
    process::{Command, Stdio},
    sync::{Arc, LazyLock, Mutex, mpsc},
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use rcgen::{CertificateParams, KeyPair, PKCS_RSA_SHA256, RsaKeySize, SigningKey as _};
use rustls_pki_types::{PrivateKeyDer, pem::PemObject as _};
use serde_json::{Map, Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    sync::Notify,
};
use tokio_rustls::TlsAcceptor;

use super::renamed::rename;
use crate::harness::{
    Answer, Authority, Doorward, Raw, Reply, Upstream, folder_with, now, request, rfc3339, unique, until,
};

const TOPIC: &str = "arn:aws:sns:us-east-1:123456789012:commits";

/// SNS from outside: a host with certificates, at which subscriptions are confirmed.
struct Amazon {
    host: String,
    key: KeyPair,
    /// The key of another certificate, which has expired.
    expired: KeyPair,
    /// The requested paths.
    asked: Arc<Mutex<Vec<String>>>,
    /// Notified to serve `/late.pem`.
    late: Arc<Notify>,
}

impl Amazon {
    async fn start(authority: &Authority) -> Self {
        let pair = authority.issue(&["localhost"]);
        let config = rustls::ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(vec![pair.der()], PrivateKeyDer::from_pem_slice(pair.key.as_bytes()).unwrap())
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let host = format!("localhost:{}", listener.local_addr().unwrap().port());
        let rsa = || KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048).unwrap();
        let (key, expired) = (rsa(), rsa());
        let params = CertificateParams::new(vec!["sns.amazonaws.com".to_owned()]).unwrap();
        let mut over = params.clone();
        over.not_after = rcgen::date_time_ymd(2020, 1, 1);
        let good = authority.sign(&params, &key) + &authority.pem();
        let over = authority.sign(&over, &expired);
        let stranger = authority.sign(&params, &key) + &Authority::new().pem();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (log, late) = (asked.clone(), Arc::new(Notify::new()));
        let served = late.clone();
        tokio::spawn(async move {
            loop {
                let Ok((stream, _)) = listener.accept().await else { return };
                let Ok(mut stream) = acceptor.accept(stream).await else { continue };
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") && stream.read_buf(&mut head).await.is_ok_and(|read| read > 0) {}
                let path = String::from_utf8_lossy(&head).split(' ').nth(1).unwrap_or_default().to_owned();
                let (status, body) = match path.as_str() {
                    "/good.pem" | "/fresh.pem" | "/late.pem" => (200, good.as_str()),
                    "/expired.pem" => (200, over.as_str()),
                    "/stranger.pem" => (200, stranger.as_str()),
                    path if path.starts_with("/?Action=ConfirmSubscription") => (200, "<Confirmed/>"),
                    _ => (404, ""),
                };
                let is_late = path == "/late.pem";
                log.lock().unwrap().push(path);
                if is_late {
                    served.notified().await;
                }
                let answer =
                    format!("HTTP/1.1 {status} X\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}", body.len());
                let _ = stream.write_all(answer.as_bytes()).await;
                let _ = stream.shutdown().await;
            }
        });
        Self { host, key, expired, asked, late }
    }

    fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.asked.lock().unwrap())
    }

    /// The members of a message, without its signature.
    fn message(&self, kind: &str) -> Map<String, Value> {
        let commit = json!({"Records": [{
            "eventName": "ReferenceChanges",
            "eventSourceARN": "arn:aws:codecommit:us-east-1:123456789012:app",
            "userIdentityARN": "arn:aws:iam::123456789012:user/ada",
            "codecommit": {"references": [{"ref": "refs/heads/main", "commit": "2222"}]},
        }]});
        let mut message = json!({
            "Type": kind,
            "MessageId": unique(),
            "TopicArn": TOPIC,
            "Message": commit.to_string(),
            "Timestamp": rfc3339(now()),
            "SignatureVersion": "2",
            "SigningCertURL": format!("https://{}/good.pem", self.host),
        });
        if kind != "Notification" {
            message["Token"] = "t0ken".into();
            message["SubscribeURL"] =
                format!("https://{}/?Action=ConfirmSubscription&TopicArn={TOPIC}&Token=t0ken", self.host).into();
        }
        message.as_object().unwrap().clone()
    }

    fn sign(&self, message: Map<String, Value>) -> Value {
        let signature = self.key.sign(string_to_sign(&message).as_bytes()).unwrap();
        with_signature(message, &signature)
    }
}

fn with_signature(mut message: Map<String, Value>, signature: &[u8]) -> Value {
    message.insert("Signature".to_owned(), BASE64_STANDARD.encode(signature).into());
    message.into()
}

fn string_to_sign(message: &Map<String, Value>) -> String {
    let names = match message.get("Type").and_then(Value::as_str) {
        None | Some("Notification") => &["Message", "MessageId", "Subject", "Timestamp", "TopicArn", "Type"][..],
        _ => &["Message", "MessageId", "SubscribeURL", "Timestamp", "Token", "TopicArn", "Type"],
    };
    let present = names.iter().filter_map(|name| Some((name, message.get(*name)?.as_str()?)));
    present.map(|(name, value)| format!("{name}\n{value}\n")).collect()
}

/// RSA with SHA-1, which the library can verify but not create.
fn sign_with_sha1(folder: &Path, key: &KeyPair, text: &str) -> Vec<u8> {
    let file = folder.join("sns.key");
    std::fs::write(&file, key.serialize_pem()).unwrap();
    let mut child = Command::new("openssl")
        .args(["dgst", "-sha1", "-sign"])
        .arg(&file)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    output.stdout
}

/// The SNS of all [`Door`](super::senders::Door)s, on a thread of its own, since tasks spawned by a test end with it.
static SHARED: LazyLock<(Authority, Amazon)> = LazyLock::new(|| {
    let (told, shared) = mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let authority = Authority::new();
            let amazon = Amazon::start(&authority).await;
            told.send((authority, amazon)).unwrap();
            std::future::pending::<()>().await;
        });
    });
    shared.recv().unwrap()
});

/// The host of its certificates.
pub(super) fn host() -> &'static str {
    &SHARED.1.host
}

/// The authority to trust for that host.
pub(super) fn authority() -> String {
    SHARED.0.pem()
}

/// Its signature of a message, or a forged one that names its certificate.
pub(super) fn tag(body: &[u8], is_genuine: bool) -> Vec<u8> {
    let amazon = &SHARED.1;
    let key = if is_genuine { &amazon.key } else { &amazon.expired };
    key.sign(string_to_sign(&serde_json::from_slice(body).unwrap_or_default()).as_bytes()).unwrap()
}

async fn send(doorward: &Doorward, message: &Value) -> Answer {
    let mut raw = begin(doorward, message).await;
    raw.answer().await
}

/// Sends a message without waiting for the response.
async fn begin(doorward: &Doorward, message: &Value) -> Raw {
    let kind = format!("X-Amz-Sns-Message-Type: {}", message["Type"].as_str().unwrap());
    let lines = ["POST /sns HTTP/1.1", "Host: hooks.test", "Content-Type: text/plain; charset=UTF-8", &kind];
    let mut raw = doorward.raw().await;
    raw.send(request(&lines, message.to_string().as_bytes())).await;
    raw
}

async fn start(authority: &Authority, amazon: &Amazon, upstream: &Upstream, more: &str) -> Doorward {
    let dir = folder_with(&[("ca.pem", &authority.pem())]);
    let yaml = format!(
        "
listeners: [{{name: public, address: 127.0.0.1:0}}]
upstreams: [{{name: el, url: '{upstream}'}}]
webhooks:
  - {{name: commits, sender: aws_sns, sns: {{topics: ['{TOPIC}'], hosts: ['{host}'], ca: ca.pem{more}}}}}
routes:
  - {{name: sns, kind: webhook, hosts: [hooks.test], paths: [/sns], schemes: [webhook], webhook: commits, upstream: el}}
rules:
  - {{id: sns, on: {{routes: [sns], branch: [main]}}, who: {{repositories: ['aws-sns:us-east-1/123456789012/app']}}, do: allow}}
store: {{path: doorward.redb}}
audit: {{sink: {{file: {{path: audit.jsonl}}}}}}
admin: {{address: 127.0.0.1:0}}
limits: {{drain_accept: 0}}
",
        upstream = upstream.url(),
        host = amazon.host,
    );
    Doorward::start_with_faults(dir, &yaml).await
}

#[tokio::test]
async fn webhooks_29_messages_of_listed_topics_arrive_and_no_others() {
    let authority = Authority::new();
    let (amazon, upstream) = (Amazon::start(&authority).await, Upstream::scripted(|_| Reply::json(202, "{}")).await);
    let doorward = start(&authority, &amazon, &upstream, "").await;

    let message = amazon.sign(amazon.message("Notification"));
    let answer = send(&doorward, &message).await;
    assert_eq!(answer.status, 202, "webhooks:29 {}", answer.text());
    let seen = upstream.only();
    assert_eq!(seen.body, message.to_string().as_bytes());
    assert_eq!(seen.one("x-forwarded-user"), "webhook:aws-sns:repo:us-east-1/123456789012/app");
    assert_eq!(send(&doorward, &message).await.status, 200, "webhooks:17");
    let mut with_subject = amazon.message("Notification");
    with_subject.insert("Subject".to_owned(), "a subject".into());
    assert_eq!(send(&doorward, &amazon.sign(with_subject.clone())).await.status, 202, "webhooks:29 Subject present");
    assert_eq!(amazon.take(), ["/good.pem"], "it is fetched once");

    let change = |name: &'static str, value: Value| {
        let mut message = amazon.message("Notification");
        message.insert(name.to_owned(), value);
        message
    };
    let altered = |name: &str, value: Value| {
        let mut message = amazon.sign(amazon.message("Notification"));
        message[name] = value;
        message
    };
    // The version is not signed.
    let by_sha1 = |version: &str| {
        let message = change("SignatureVersion", version.into());
        let signature = sign_with_sha1(doorward.dir(), &amazon.key, &string_to_sign(&message));
        with_signature(message, &signature)
    };
    let old = by_sha1("1");
    let url = |path: &str| Value::from(format!("https://{}{path}", amazon.host));
    let mut without_subject = amazon.sign(with_subject);
    without_subject.as_object_mut().unwrap().remove("Subject");
    // The same string is signed, but the id differs.
    let mut folded = without_subject.clone();
    folded["MessageId"] = format!("{}\nSubject\na subject", folded["MessageId"].as_str().unwrap()).into();
    let mut by_expired = amazon.message("Notification");
    by_expired.insert("SigningCertURL".to_owned(), url("/expired.pem"));
    let by_expired = {
        let signature = amazon.expired.sign(string_to_sign(&by_expired).as_bytes()).unwrap();
        with_signature(by_expired, &signature)
    };
    let late = i64::try_from(now()).unwrap();
    let at = |offset: i64| Value::from(rfc3339(u64::try_from(late + offset).unwrap()));
    for (row, status, message) in [
        ("another message", 401, altered("Message", "{}".into())),
        ("Subject added", 401, altered("Subject", "x".into())),
        ("Subject taken away", 401, without_subject),
        ("Subject moved into the id", 401, folded),
        ("no base64", 401, altered("Signature", "!".into())),
        ("another host", 401, amazon.sign(change("SigningCertURL", "https://sns.evil.com/good.pem".into()))),
        (
            "a user in the address",
            401,
            amazon.sign(change("SigningCertURL", format!("https://{}@evil.com/good.pem", amazon.host).into())),
        ),
        ("clear text", 401, amazon.sign(change("SigningCertURL", format!("http://{}/good.pem", amazon.host).into()))),
        ("a query", 401, amazon.sign(change("SigningCertURL", url("/good.pem?a=b")))),
        ("another file", 401, amazon.sign(change("SigningCertURL", url("/good.txt")))),
        ("another topic", 401, amazon.sign(change("TopicArn", "arn:aws:sns:us-east-1:123456789012:other".into()))),
        ("SHA-1", 401, old.clone()),
        ("SHA-1 by the name of SHA-256", 401, by_sha1("2")),
        ("SHA-256 by the name of SHA-1", 401, amazon.sign(change("SignatureVersion", "1".into()))),
        ("no version", 401, amazon.sign(change("SignatureVersion", "".into()))),
        ("an unknown version", 401, amazon.sign(change("SignatureVersion", "3".into()))),
        ("an hour ago", 401, amazon.sign(change("Timestamp", at(-3660)))),
        ("in the future", 401, amazon.sign(change("Timestamp", at(360)))),
        ("an expired certificate", 401, by_expired),
        ("no message", 400, json!({"Type": "Notification"})),
    ] {
        let answer = send(&doorward, &message).await;
        assert_eq!(answer.status, status, "webhooks:29 {row}: {}", answer.text());
        if ["an hour ago", "in the future"].contains(&row) {
            assert_eq!(answer.reason(), "signature_invalid", "{row}");
        }
    }
    assert_eq!(amazon.take(), ["/expired.pem"], "nothing else is fetched");
    // Unreachable addresses, which anybody may name, do not block a certificate that is not fetched yet.
    let nowhere = send(&doorward, &altered("SigningCertURL", url("/nowhere.pem"))).await;
    assert_eq!((nowhere.status, nowhere.reason().as_str()), (503, "issuer_unavailable"));
    assert_eq!(send(&doorward, &amazon.sign(change("SigningCertURL", url("/fresh.pem")))).await.status, 202);
    assert_eq!(amazon.take(), ["/nowhere.pem", "/fresh.pem"]);
    let chain = send(&doorward, &amazon.sign(change("SigningCertURL", url("/stranger.pem")))).await;
    assert_eq!((chain.status, chain.reason().as_str()), (503, "issuer_unavailable"), "webhooks:29 a broken chain");
    let kind = "X-Amz-Sns-Message-Type: Notification";
    let lines = ["POST /sns HTTP/1.1", "Host: hooks.test", "Content-Type: text/plain; charset=UTF-8", kind];
    for (members, status, said) in [
        (r#"{"x":1,"#, 200, "replayed_delivery"),
        (r#"{"x":1,"x":2,"#, 400, "not an SNS message"),
        (r#"{"Type":"Notification","#, 400, "not an SNS message"),
    ] {
        let answer = doorward.send(&lines, message.to_string().replacen('{', members, 1).as_bytes()).await;
        assert_eq!(answer.status, status, "webhooks:25 {members}");
        assert!(answer.text().contains(said), "webhooks:25 {members}: {}", answer.text());
    }
    assert_eq!(upstream.requests().len(), 3);
    let lenient = start(&authority, &amazon, &upstream, ", allow_sha1: true").await;
    assert_eq!(send(&lenient, &old).await.status, 202, "webhooks:29 SHA-1 twin");
}

#[tokio::test]
async fn webhooks_29_subscriptions_to_listed_topics_are_confirmed_and_sha_1_is_taken_on_demand() {
    let authority = Authority::new();
    let (amazon, upstream) = (Amazon::start(&authority).await, Upstream::scripted(|_| Reply::json(202, "{}")).await);
    let doorward = start(&authority, &amazon, &upstream, ", allow_sha1: true").await;
    let stranger = Amazon::start(&authority).await;
    let (listed, unlisted) = (format!("https://{}/", amazon.host), format!("https://{}/", stranger.host));
    let other = TOPIC.replace(":commits", ":other");
    for (row, url) in [
        ("another host", format!("{unlisted}?Action=ConfirmSubscription&TopicArn={TOPIC}&Token=t0ken")),
        ("another topic", format!("{listed}?Action=ConfirmSubscription&TopicArn={other}&Token=t0ken")),
        ("two topics", format!("{listed}?Action=ConfirmSubscription&TopicArn={TOPIC}&TopicArn={other}&Token=t0ken")),
        ("another action", format!("{listed}?Action=Unsubscribe&TopicArn={TOPIC}&Token=t0ken")),
        ("two actions", format!("{listed}?Action=ConfirmSubscription&Action=Unsubscribe&TopicArn={TOPIC}&Token=t0ken")),
    ] {
        let mut message = amazon.message("SubscriptionConfirmation");
        message.insert("SubscribeURL".to_owned(), url.into());
        let answer = send(&doorward, &amazon.sign(message)).await;
        assert_eq!((answer.status, &*answer.reason()), (401, "signature_invalid"), "webhooks:29 {row}");
    }
    assert!(stranger.take().is_empty(), "nothing is fetched there");
    assert_eq!(amazon.take(), ["/good.pem"], "nothing is confirmed");
    let offered = amazon.sign(amazon.message("SubscriptionConfirmation"));
    assert_eq!(send(&doorward, &offered).await.status, 200, "webhooks:29");
    assert_eq!(amazon.take(), [format!("/?Action=ConfirmSubscription&TopicArn={TOPIC}&Token=t0ken")]);
    assert_eq!(send(&doorward, &amazon.sign(amazon.message("UnsubscribeConfirmation"))).await.status, 200);
    assert!(amazon.take().is_empty() && upstream.requests().is_empty());

    for (version, status) in [("2", 401), ("1", 202)] {
        let mut old = amazon.message("Notification");
        old.insert("SignatureVersion".to_owned(), version.into());
        let signature = sign_with_sha1(doorward.dir(), &amazon.key, &string_to_sign(&old));
        let answer = send(&doorward, &with_signature(old, &signature)).await;
        assert_eq!(answer.status, status, "webhooks:29 SHA-1 as version {version}: {}", answer.text());
    }
}

/// Regression: a delivery counted as in flight before it was authenticated, so that its duplicate was forwarded too.
#[tokio::test]
async fn a_delivery_is_in_progress_from_its_verification() {
    let authority = Authority::new();
    let (told, Reply::Bytes(taken)) = (Arc::new(Notify::new()), Reply::json(202, "{}")) else { panic!() };
    let when = told.clone();
    let mut upstream = Upstream::scripted(move |_| Reply::Later(when.clone(), taken.clone())).await;
    let amazon = Amazon::start(&authority).await;
    let doorward = start(&authority, &amazon, &upstream, "").await;
    let mut message = amazon.message("Notification");
    message.insert("SigningCertURL".to_owned(), format!("https://{}/late.pem", amazon.host).into());
    let message = amazon.sign(message);
    let twin = async {
        until(async || amazon.take() == ["/late.pem"]).await;
        doorward.set_clock_ahead(40);
        amazon.late.notify_one();
        upstream.wait_for(1).await;
        let twin = send(&doorward, &message).await;
        told.notify_one();
        twin
    };
    let (taken, twin) = tokio::join!(send(&doorward, &message), twin);
    assert_eq!((taken.status, twin.status, twin.reason().as_str()), (202, 503, "delivery_in_flight"));
}

/// A caller that named it and disconnected, again and again, prevented it from being fetched at all.
#[tokio::test]
async fn a_certificate_is_fetched_for_others_after_the_first_caller_left() {
    let authority = Authority::new();
    let (amazon, upstream) = (Amazon::start(&authority).await, Upstream::scripted(|_| Reply::json(202, "{}")).await);
    let doorward = start(&authority, &amazon, &upstream, "").await;
    let mut message = amazon.message("Notification");
    message.insert("SigningCertURL".to_owned(), format!("https://{}/late.pem", amazon.host).into());
    let unsigned = with_signature(message.clone(), b"");
    let leaves = begin(&doorward, &unsigned).await;
    until(async || amazon.take() == ["/late.pem"]).await;
    drop(leaves);
    doorward.until_metrics_say("doorward_downstream_connections 0").await;
    let mut genuine = begin(&doorward, &amazon.sign(message)).await;
    amazon.late.notify_one();
    let answer = genuine.answer().await;
    assert_eq!(answer.status, 202, "{}", answer.text());
    assert!(amazon.take().is_empty(), "it is fetched once");
}

/// Each reload fetched it again, along with whatever strangers named meanwhile.
#[tokio::test]
async fn a_certificate_outlives_a_reload_unless_other_authorities_are_trusted() {
    let authority = Authority::new();
    let (amazon, upstream) = (Amazon::start(&authority).await, Upstream::scripted(|_| Reply::json(202, "{}")).await);
    let mut doorward = start(&authority, &amazon, &upstream, "").await;
    let message = || amazon.sign(amazon.message("Notification"));
    assert_eq!(send(&doorward, &message()).await.status, 202);
    assert_eq!(amazon.take(), ["/good.pem"]);
    rename(&doorward, "id: sns,", "id: messages,");
    doorward.wait_for_generation(2).await;
    assert_eq!(send(&doorward, &message()).await.status, 202);
    assert!(amazon.take().is_empty(), "it is known");
    std::fs::write(doorward.dir().join("ca.pem"), authority.pem() + &Authority::new().pem()).unwrap();
    doorward.wait_for_generation(3).await;
    assert_eq!(send(&doorward, &message()).await.status, 202);
    assert_eq!(amazon.take(), ["/good.pem"]);
}
