use std::task::Poll;

use http::{HeaderMap, HeaderName, HeaderValue, Method};
use rcgen::{CertificateParams, KeyPair, PKCS_RSA_SHA256, RsaKeySize, SigningKey as _};

use super::{
    source::{MAX_CERTIFICATES, MAX_FETCHES, MAX_OF_NOBODY, MAX_OF_ONE, PAUSE, is_certificate},
    *,
};
use crate::{logging::logged, webhooks::senders};

const NOW: Timestamp = Timestamp::from_secs(1_800_000_000);

const TOPIC: &str = "arn:aws:sns:us-east-1:123456789012:commits";

fn with_hosts(hosts: &[&str]) -> Arc<Source> {
    trusting(hosts, None)
}

fn trusting(hosts: &[&str], authorities: Option<[u8; 32]>) -> Arc<Source> {
    let hosts = hosts.iter().map(|host| (*host).to_owned()).collect();
    Arc::new(Source::new(hosts, Egress::without_authorities().unwrap(), authorities))
}

fn certificate() -> Certificate {
    of_key(&KeyPair::generate().unwrap(), 4096)
}

/// A certificate of this key that expires at the end of this year.
fn of_key(key: &KeyPair, last_year: i32) -> Certificate {
    let mut params = CertificateParams::new(vec!["sns.amazonaws.com".to_owned()]).unwrap();
    params.not_after = rcgen::date_time_ymd(last_year, 12, 31);
    Certificate::read(params.self_signed(key).unwrap().pem().as_bytes(), &[]).unwrap()
}

fn rsa() -> KeyPair {
    KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048).unwrap()
}

/// The address of a certificate at `localhost`.
fn at(name: impl std::fmt::Display) -> Url {
    Url::parse(&format!("https://localhost/{name}.pem")).unwrap()
}

fn is_known(source: &Source, address: &Url) -> bool {
    source.known(address, Duration::MAX, NOW).is_some()
}

fn sns(source: &Arc<Source>) -> Sns {
    Sns { topics: vec![TOPIC.into()], allows_sha1: false, source: Arc::clone(source), logged: Mutex::default() }
}

/// A message with this time that names the certificate of this key.
fn signed(key: &KeyPair, address: &Url, time: Timestamp) -> Vec<u8> {
    let mut message = serde_json::json!({
        "Type": "Notification", "MessageId": "m", "TopicArn": TOPIC, "Message": "text", "Timestamp": time.to_string(),
        "SignatureVersion": "2", "Signature": "", "SigningCertURL": address.as_str(),
    });
    let text = serde_json::from_value::<Message>(message.clone()).unwrap().signed().unwrap();
    message["Signature"] = STANDARD.encode(key.sign(text.as_bytes()).unwrap()).into();
    message.to_string().into_bytes()
}

/// Why a message is refused now, if it is.
async fn refusal(sns: &Sns, message: &[u8]) -> Option<Reason> {
    let verified = sns.verify(message, Some("Notification"), client(1), &Handle::current(), NOW).await;
    verified.err().map(|rejection| rejection.reason())
}

fn client(last: u8) -> Option<IpAddr> {
    Some([192, 0, 2, last].into())
}

#[test]
fn only_topics_have_hosts() {
    for (topic, host) in [
        ("arn:aws:sns:us-east-1:123456789012:commits", Some("sns.us-east-1.amazonaws.com")),
        ("arn:aws-us-gov:sns:us-gov-west-1:123456789012:a", Some("sns.us-gov-west-1.amazonaws.com")),
        ("arn:aws-cn:sns:cn-north-1:123456789012:a", Some("sns.cn-north-1.amazonaws.com.cn")),
        ("arn:aws-eusc:sns:eusc-de-east-1:123456789012:a", None),
        ("arn:aws:sns:us-east-1:123456789012:", None),
        ("arn:aws:sns:us-east-1:123456789012:*", None),
        ("arn:aws:sns:us-east-1:12345678901:a", None),
        ("arn:aws:sns:evil.com/:123456789012:a", None),
        ("arn:aws:sqs:us-east-1:123456789012:a", None),
        ("arn:aws:sns:us-east-1:123456789012:a:b", None),
        ("", None),
    ] {
        assert_eq!(host_of(topic).as_deref(), host, "{topic}");
    }
}

#[test]
fn webhooks_29_certificates_are_fetched_from_listed_hosts_alone() {
    let source = with_hosts(&["sns.us-east-1.amazonaws.com", "localhost:4566"]);
    for (url, good) in [
        ("https://sns.us-east-1.amazonaws.com/SimpleNotificationService-0123456789abcdef.pem", true),
        ("https://localhost:4566/a.pem", true),
        ("https://sns.us-east-1.amazonaws.com:443/a.pem", true),
        ("http://sns.us-east-1.amazonaws.com/a.pem", false),
        ("https://sns.us-west-1.amazonaws.com/a.pem", false),
        ("https://sns.evil.com/a.pem", false),
        ("https://evil.com/?sns.us-east-1.amazonaws.com/a.pem", false),
        ("https://evil.s3.amazonaws.com/a.pem", false),
        ("https://sns.us-east-1.amazonaws.com.evil.com/a.pem", false),
        ("https://sns.us-east-1.amazonaws.com@evil.com/a.pem", false),
        ("https://user@sns.us-east-1.amazonaws.com/a.pem", false),
        ("https://sns.us-east-1.amazonaws.com:8443/a.pem", false),
        ("https://sns.us-east-1.amazonaws.com/a.pem?x=.pem", false),
        ("https://sns.us-east-1.amazonaws.com/a.pem#.pem", false),
        ("https://sns.us-east-1.amazonaws.com/a/b.pem", false),
        ("https://sns.us-east-1.amazonaws.com/a%2f.pem", false),
        ("https://sns.us-east-1.amazonaws.com/.pem", false),
        ("https://sns.us-east-1.amazonaws.com/a.crt", false),
        ("file:///etc/passwd.pem", false),
        ("", false),
    ] {
        let is_good = Url::parse(url).is_ok_and(|url| source.is_listed(&url) && is_certificate(&url));
        assert_eq!(is_good, good, "{url}");
    }
}

/// Regression: AWS got a request for every address that somebody named without waiting, and genuine messages waited
/// behind all of them.
#[tokio::test]
async fn the_number_of_simultaneous_certificate_fetches_is_bounded() {
    // It never answers.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let host = silent.local_addr().unwrap().to_string();
    let (source, control) = (with_hosts(&[&host]), Handle::current());
    for number in 0..u8::try_from(MAX_FETCHES).unwrap() {
        let address = source.address(&format!("https://{host}/{number}.pem")).unwrap();
        let asked = Box::pin(source.certificate(&address, Duration::MAX, client(number), &control, NOW));
        assert!(futures_util::poll!(asked).is_pending(), "{address}");
    }
    let another = source.address(&format!("https://{host}/another.pem")).unwrap();
    match futures_util::poll!(Box::pin(source.certificate(&another, Duration::MAX, client(10), &control, NOW))) {
        Poll::Ready(Err(rejection)) => assert_eq!(rejection.reason(), Reason::IssuerUnavailable),
        other => panic!("{other:?}"),
    }
    let first = source.address(&format!("https://{host}/0.pem")).unwrap();
    assert!(
        futures_util::poll!(Box::pin(source.certificate(&first, Duration::MAX, client(10), &control, NOW)))
            .is_pending(),
        "it is under way"
    );
}

#[tokio::test(start_paused = true)]
async fn a_fetch_that_failed_is_made_again_after_a_moment() {
    let source = with_hosts(&["localhost"]);
    drop(source.begin(&at("a"), client(1)).unwrap());
    assert!(source.begin(&at("a"), client(2)).is_err());
    tokio::time::advance(PAUSE).await;
    assert!(source.begin(&at("a"), client(2)).is_ok());
}

/// Regression: ten wrong certificates a second from somebody behind the same load balancer kept all others from theirs.
#[tokio::test(start_paused = true)]
async fn clients_behind_one_address_get_certificates_despite_a_stranger_among_them() {
    let source = with_hosts(&["localhost"]);
    for number in 0..2 * MAX_OF_NOBODY {
        let begun = source.begin(&at(number), None).map(drop);
        assert_eq!(begun.is_ok(), number < MAX_OF_NOBODY, "{number}");
    }
    assert!(source.begin(&at("genuine"), client(1)).is_ok(), "the twin");
    tokio::time::advance(PAUSE).await;
    let under_way: Vec<_> = (0..MAX_FETCHES).map(|number| source.begin(&at(number), None)).collect();
    assert!(under_way.iter().all(Result::is_ok));
    assert!(source.begin(&at("another"), None).is_err(), "no more at once than of others");
}

/// Regression: ten nonexistent addresses a second kept the genuine one from being fetched, for as long as they were
/// named.
#[tokio::test(start_paused = true)]
async fn addresses_that_cannot_be_fetched_do_not_block_other_certificates() {
    let source = with_hosts(&["localhost"]);
    for number in 0..2 * MAX_FETCHES {
        let begun = source.begin(&at(number), client(1)).map(drop);
        assert_eq!(begun.is_ok(), number < MAX_OF_ONE, "{number}");
    }
    let genuine = source.begin(&at("genuine"), client(2));
    assert!(genuine.is_ok());
    tokio::time::advance(PAUSE).await;
    assert!(source.begin(&at("again"), client(1)).is_ok());
}

/// Regression: all certificates were evicted at once, and had to be fetched while strangers named others.
#[tokio::test(start_paused = true)]
async fn a_certificate_that_proves_messages_is_kept_whatever_others_are_fetched() {
    let (source, certificate) = (with_hosts(&["localhost"]), certificate());
    source.keep(at("genuine"), certificate.clone());
    source.note_proof(&at("genuine"));
    // A wrong signature causes the certificate to be fetched again.
    source.keep(at("genuine"), certificate.clone());
    for number in 0..2 * MAX_CERTIFICATES {
        source.keep(at(number), certificate.clone());
    }
    let known = |name: &str| is_known(&source, &at(name));
    assert!(known("genuine"));
    assert_eq!((0..2 * MAX_CERTIFICATES).filter(|number| known(&number.to_string())).count(), MAX_CERTIFICATES - 1);
    // The least recently used is evicted first.
    for number in 0..MAX_CERTIFICATES {
        tokio::time::advance(PAUSE).await;
        let later = at(format!("later-{number}"));
        source.keep(later.clone(), certificate.clone());
        source.note_proof(&later);
    }
    assert!(!known("genuine"));
}

/// Regression: a reload evicted all certificates, so somebody who could prevent fetches only had to wait for one.
#[test]
fn certificates_survive_a_reload_with_the_same_hosts_and_ca() {
    let before = trusting(&["localhost"], Some([1; 32]));
    before.keep(at("genuine"), certificate());
    for (hosts, authorities, is_kept) in [
        (&["localhost"][..], Some([1; 32]), true),
        (&["localhost"], Some([2; 32]), false),
        (&["localhost"], None, false),
        (&["localhost:8443"], Some([1; 32]), false),
        (&["another.test", "localhost"], Some([1; 32]), true),
    ] {
        let after = trusting(hosts, authorities);
        after.keep_those_of(&before);
        assert_eq!(is_known(&after, &at("genuine")), is_kept, "{hosts:?} {authorities:?}");
    }
}

/// Regression: each spelling was fetched, and took the place of another certificate.
#[test]
fn a_certificate_is_known_by_one_spelling_of_its_address() {
    let source = with_hosts(&["localhost"]);
    for written in [
        "https://localhost/a.pem",
        "https://localhost:443/a.pem",
        "https://LOCALHOST/a.pem",
        "HTTPS://localhost/a.pem",
        "https://localhost/b/../a.pem",
        "https:////localhost/a.pem",
        " https://localhost/a.pem",
    ] {
        assert_eq!(source.address(written).unwrap(), at("a"), "{written}");
    }
}

/// Regression: somebody with one old message of a topic could keep its certificate in the cache instead of the genuine
/// one.
#[tokio::test(start_paused = true)]
async fn a_message_that_is_too_old_keeps_no_certificate() {
    let (key, others) = (rsa(), certificate());
    for (time, is_kept) in [(NOW, true), (NOW - MAX_AGE * 2, false)] {
        let source = with_hosts(&["localhost"]);
        for number in 1..MAX_CERTIFICATES {
            source.keep(at(number), others.clone());
            source.note_proof(&at(number));
        }
        tokio::time::advance(PAUSE).await;
        source.keep(at("named"), of_key(&key, 4096));
        assert_eq!(refusal(&sns(&source), &signed(&key, &at("named"), time)).await.is_none(), is_kept, "{time}");
        source.keep(at("another"), others.clone());
        assert_eq!(is_known(&source, &at("named")), is_kept, "{time}");
    }
}

/// Regression: every message was refused from then on, and neither a reload nor a change of the entry helped.
#[tokio::test(start_paused = true)]
async fn an_expired_certificate_is_fetched_again() {
    let (key, source) = (rsa(), with_hosts(&["localhost"]));
    source.keep(at("a"), of_key(&key, 2020));
    // So that nothing is fetched here.
    drop(source.begin(&at("a"), client(2)));
    assert_eq!(refusal(&sns(&source), &signed(&key, &at("a"), NOW)).await, Some(Reason::IssuerUnavailable));
    source.keep(at("a"), of_key(&key, 4096));
    assert_eq!(refusal(&sns(&source), &signed(&key, &at("a"), NOW)).await, None);
}

/// The same if its host had another certificate in the same file by then.
#[tokio::test(start_paused = true)]
async fn a_certificate_that_does_not_verify_is_fetched_again_once_a_minute() {
    let (before, after, source) = (rsa(), rsa(), with_hosts(&["localhost"]));
    let (sns, renewed) = (sns(&source), signed(&after, &at("a"), NOW));
    source.keep(at("a"), of_key(&before, 4096));
    assert_eq!(refusal(&sns, &renewed).await, Some(Reason::SignatureInvalid), "it was fetched a moment ago");
    tokio::time::advance(RENEWAL + PAUSE).await;
    // So that nothing is fetched here.
    drop(source.begin(&at("a"), client(2)));
    assert_eq!(refusal(&sns, &renewed).await, Some(Reason::IssuerUnavailable));
    assert_eq!(refusal(&sns, &signed(&before, &at("a"), NOW)).await, None, "what it proves waits for no fetch");
    source.keep(at("a"), of_key(&after, 4096));
    assert_eq!(refusal(&sns, &renewed).await, None);
    assert_eq!(refusal(&sns, &signed(&before, &at("a"), NOW)).await, Some(Reason::SignatureInvalid));
}

/// Regression: a client that repeatedly named the genuine certificate and left kept it from being fetched at all.
#[tokio::test]
async fn a_fetch_continues_for_others_after_the_first_caller_left() {
    // The fetch's connection would be closed if it ended with the client that started it.
    let server = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let host = server.local_addr().unwrap().to_string();
    let (source, control) = (with_hosts(&[&host]), Handle::current());
    let address = source.address(&format!("https://{host}/genuine.pem")).unwrap();
    let certificate = |client| source.certificate(&address, Duration::MAX, client, &control, NOW);
    assert!(futures_util::poll!(Box::pin(certificate(client(1)))).is_pending());
    let mut second = Box::pin(certificate(client(2)));
    assert!(futures_util::poll!(&mut second).is_pending(), "it waits for the fetch of the first");
    let (connection, _) = server.accept().await.unwrap();
    // It is not a TLS server, so the fetch fails, which all waiting clients learn.
    drop((connection, server));
    assert_eq!(second.await.unwrap_err().reason(), Reason::IssuerUnavailable);
    assert!(source.begin(&address, client(2)).is_err(), "what truly failed counts");
}

/// Neither the header, which tells an EventListener the type of a message, nor members outside the string to sign are
/// signed.
#[tokio::test(start_paused = true)]
async fn a_genuine_message_has_the_type_of_its_header_and_no_member_twice() {
    let (key, source) = (rsa(), with_hosts(&["localhost"]));
    source.keep(at("a"), of_key(&key, 4096));
    let (sns, message) = (sns(&source), signed(&key, &at("a"), NOW));
    let with = |members: &str| String::from_utf8(message.clone()).unwrap().replacen('{', members, 1);
    let once = with(r#"{"x":1,"#);
    let (of_another, twice) = ("x-amz-sns-message-type is not the `Type`", "an object has a name twice");
    for (header, text, refused) in [
        (Some("Notification"), &once, None),
        (Some("SubscriptionConfirmation"), &once, Some(of_another)),
        (None, &once, Some(of_another)),
        (Some("Notification"), &with(r#"{"x":1,"x":2,"#), Some(twice)),
    ] {
        let verified = sns.verify(text.as_bytes(), header, client(1), &Handle::current(), NOW).await;
        let Some(why) = refused else {
            assert!(verified.is_ok(), "{verified:?}");
            continue;
        };
        let refusal = verified.unwrap_err();
        assert_eq!(refusal.reason(), Reason::BadRequest, "{header:?} {text}");
        assert!(refusal.detail().contains(why), "{refusal:?}");
    }
}

fn webhook(source: &Arc<Source>) -> Webhook {
    let raw: raw::Webhook =
        serde_json::from_value(serde_json::json!({"name": "commits", "sender": "aws_sns"})).unwrap();
    let built = Webhook::build(&raw, "aws-sns".into(), Vec::new(), Vec::new());
    Webhook { sns: Some(sns(source)), ..built }
}

/// The headers of a notification, and another.
fn head(name: &'static str, value: &'static str) -> HeaderMap {
    let headers = [("content-type", "text/plain"), ("x-amz-sns-message-type", "Notification"), (name, value)];
    let headers = headers.map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)));
    HeaderMap::from_iter(headers)
}

/// Its body, which is whatever somebody published, was called no SNS message.
#[test]
fn a_message_that_is_sent_raw_is_refused_with_the_setting_to_change() {
    let webhook = webhook(&with_hosts(&["localhost"]));
    let read = |value| webhook.precheck(&Method::POST, &head(RAW_DELIVERY, value), None, None);
    assert!(read("false").is_ok());
    let refusal = read("true").unwrap_err();
    assert_eq!(refusal.reason(), Reason::BadRequest);
    assert!(refusal.detail().contains("raw message delivery"), "{refusal:?}");
    assert!(refusal.fix_text().is_some_and(|fix| fix.contains("turn raw message delivery")), "{refusal:?}");
}

#[test]
fn a_message_is_remembered_for_longer_than_it_is_accepted() {
    let webhook = Webhook { replay_window: GOOD_FOR, ..webhook(&with_hosts(&["localhost"])) };
    assert!(webhook.remembered_for() > GOOD_FOR);
}

/// It is the default of SNS, and the log did not say why the subscription was never confirmed.
#[test]
fn the_remedy_for_signature_version_1_is_logged_once_a_minute() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    let sns = sns(&with_hosts(&["localhost"]));
    let key = rsa();
    let message = |version: &str, topic: &str| {
        let text = signed(&key, &at("a"), NOW);
        let mut message: serde_json::Value = serde_json::from_slice(&text).unwrap();
        message["SignatureVersion"] = version.into();
        message["TopicArn"] = topic.into();
        message.to_string().into_bytes()
    };
    let (first, other) = (message("1", TOPIC), "arn:aws:sns:us-east-1:123456789012:other");
    for (waited, message, is_logged) in [
        (Duration::ZERO, &message("3", TOPIC), false),
        (Duration::ZERO, &message("1", other), false),
        (Duration::ZERO, &first, true),
        (Duration::from_secs(59), &first, false),
        (Duration::from_secs(1), &first, true),
    ] {
        let sent = async {
            tokio::time::advance(waited).await;
            refusal(&sns, message).await
        };
        let (refused, log) = logged(|| runtime.block_on(sent));
        assert_eq!(refused, Some(Reason::SignatureInvalid));
        assert_eq!(log.contains("`SignatureVersion` of the topic to 2"), is_logged, "{log:?}");
    }
}

/// Regression: they are not signed either, and an EventListener that filtered by the topic got another.
#[tokio::test(start_paused = true)]
async fn a_genuine_message_has_the_id_and_the_topic_of_its_headers() {
    let (key, source) = (rsa(), with_hosts(&["localhost"]));
    source.keep(at("a"), of_key(&key, 4096));
    let webhook = webhook(&source);
    let message = Bytes::from(signed(&key, &at("a"), NOW));
    for (name, value, refused) in [
        ("x-amz-sns-subscription-arn", "a", None),
        ("x-amz-sns-message-id", "m", None),
        ("x-amz-sns-message-id", "zzz", Some("`MessageId`")),
        (super::TOPIC, TOPIC, None),
        (super::TOPIC, "arn:aws:sns:us-east-1:999999999999:other", Some("`TopicArn`")),
    ] {
        let expected = webhook.precheck(&Method::POST, &head(name, value), None, None).unwrap();
        let proven = webhook.prove(expected, &message, client(1), &Handle::current(), NOW).await;
        let refusal = proven.err().map(|refused| refused.rejection);
        assert_eq!(refusal.is_some(), refused.is_some(), "{name} {value}: {refusal:?}");
        if let (Some(refusal), Some(why)) = (refusal, refused) {
            assert_eq!(refusal.reason(), Reason::BadRequest, "{name} {value}");
            assert!(refusal.detail().contains(why), "{refusal:?}");
        }
    }
}

#[test]
fn the_string_to_sign_has_its_members_in_order() {
    let message = |more: &str| -> Message {
        let text = format!(
            r#"{{"Type":"{more}","MessageId":"m","TopicArn":"t","Message":"a\nb","Timestamp":"now","SignatureVersion":"2",
                "Signature":"","SigningCertURL":"","Subject":"s","SubscribeURL":"u","Token":"k"}}"#
        );
        serde_json::from_str(&text).unwrap()
    };
    assert_eq!(
        message("Notification").signed().unwrap(),
        "Message\na\nb\nMessageId\nm\nSubject\ns\nTimestamp\nnow\nTopicArn\nt\nType\nNotification\n"
    );
    assert_eq!(
        message("SubscriptionConfirmation").signed().unwrap(),
        "Message\na\nb\nMessageId\nm\nSubscribeURL\nu\nTimestamp\nnow\nToken\nk\nTopicArn\nt\nType\nSubscriptionConfirmation\n"
    );
    let mut incomplete = message("UnsubscribeConfirmation");
    incomplete.token = None;
    assert_eq!(incomplete.signed(), None);
}

#[test]
fn a_repository_is_identified_by_its_arn() {
    let of = |arn: &str| with_repository(Facts { repository: Some(arn.into()), ..Facts::default() });
    let facts = of("arn:aws:codecommit:us-east-1:123456789012:app");
    assert_eq!(facts.repository_id.as_deref(), Some("us-east-1/123456789012/app"));
    assert_eq!((facts.repository.as_deref(), facts.owner.as_deref()), (Some("123456789012/app"), Some("123456789012")));
    assert_eq!(of("acme/app").repository_id, None);
}

fn facts_of(text: &str) -> Result<Facts, NoFacts> {
    let sender = senders::sender(raw::Sender::AwsSns);
    let reader = Reader::new(sender.facts.iter().map(|(field, at)| (*field, at.to_vec())), sender);
    let message = serde_json::json!({
        "Type": "Notification", "MessageId": "m", "TopicArn": "t", "Message": text, "Timestamp": "", "SignatureVersion": "2",
        "Signature": "", "SigningCertURL": "",
    });
    serde_json::from_value::<Message>(message).unwrap().facts(&reader)
}

/// Regression: the message had the event of its type, so a deny of the event of either record did not match.
#[test]
fn a_message_of_several_records_is_of_no_one_ref_and_no_one_event() {
    let record =
        r#"{"eventName":"ReferenceChanges","codecommit":{"references":[{"ref":"refs/heads/main","commit":"2222"}]}}"#;
    for (records, branch, event) in
        [(record.to_owned(), Some("main"), Some("ReferenceChanges")), (format!("{record},{record}"), None, None)]
    {
        let facts = facts_of(&format!(r#"{{"Records":[{records}]}}"#)).unwrap();
        assert_eq!((facts.branch.as_deref(), facts.event.as_deref()), (branch, event));
        assert_eq!(facts.several, branch.is_none());
    }
}

#[test]
fn a_push_that_names_no_ref_may_have_changed_any() {
    for record in
        [r#"{"eventName":"ReferenceChanges","codecommit":{"references":[]}}"#, r#"{"eventName":"ReferenceChanges"}"#]
    {
        let facts = facts_of(&format!(r#"{{"Records":[{record}]}}"#)).unwrap();
        assert_eq!((facts.event.as_deref(), facts.several), (Some("ReferenceChanges"), true), "{record}");
    }
}

/// Regression: it got 400, after which SNS gives up on a message.
#[test]
fn text_that_begins_as_a_document_is_taken_for_what_it_is() {
    let of_text = Facts { delivery: "m".into(), event: Some("Notification".into()), ..Facts::default() };
    for text in ["disk full", "{disk} full on app-1", " {", "{}}", "{'a': 1}", r#"{"a": NaN}"#, r#"{"a": 1,}"#] {
        assert_eq!(facts_of(text).unwrap(), of_text, "{text}");
    }
    let deep = format!(r#"{{"a":{}{}}}"#, "[".repeat(1000), "]".repeat(1000));
    for document in [r#"{"a": 1, "a": 2}"#, r#"{"a": "\ud800"}"#, r#"{"a": 1e999}"#, &deep] {
        assert!(facts_of(document).is_err(), "{document}");
    }
}
