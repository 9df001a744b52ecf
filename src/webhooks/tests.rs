//! Runs the vectors of each sender, row by row.

mod configuration;
mod repeated;
mod unsigned_headers;

use std::fs;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, header};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::*;
use crate::{
    authn::Kind,
    config::{raw, report::At, resolver::Resolver},
    egress::{Egress, Proxy},
};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Vectors {
    #[serde(rename = "note")]
    _note: String,
    now: i64,
    webhook: Value,
    secrets: Vec<SecretText>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SecretText {
    value: String,
    not_before: Option<String>,
    not_after: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    /// The row of the table of attacks.
    row: String,
    name: String,
    method: Option<String>,
    query: Option<String>,
    headers: Vec<(String, String)>,
    body: Option<String>,
    body_hex: Option<String>,
    content_length: Option<u64>,
    now: Option<i64>,
    #[serde(default)]
    require_signature: bool,
    /// `accepted`, `ping`, or the reason of the refusal.
    expect: String,
    secret_index: Option<usize>,
    /// The id of the delivery.
    delivery: Option<String>,
    /// The value in the answer to a ping.
    challenge: Option<String>,
    /// All facts in the body, without those from the configuration and the head.
    facts: Option<Value>,
}

fn egress() -> Egress {
    Egress::new(Proxy::default()).unwrap()
}

/// Resolves a `webhooks` entry whose secrets are in files of a folder of its own.
fn resolve(mut webhook: Value, secrets: &[SecretText]) -> (Option<Webhook>, Resolver) {
    let folder = tempfile::tempdir().unwrap();
    let entries = secrets.iter().enumerate().map(|(index, secret)| {
        let file = index.to_string();
        fs::write(folder.path().join(&file), &secret.value).unwrap();
        json!({"secret": {"file": file}, "not_before": secret.not_before, "not_after": secret.not_after})
    });
    webhook["secrets"] = entries.collect();
    let raw: raw::Webhook = serde_json::from_value(webhook).unwrap();
    let mut resolver = Resolver::new(folder.path());
    let webhook = Webhook::resolve(&raw, &At::root().key("webhooks").index(0), &egress(), NOW, &mut resolver);
    (webhook, resolver)
}

fn secrets(values: &[&str]) -> Vec<SecretText> {
    let secret = |value: &&str| SecretText { value: (*value).to_owned(), not_before: None, not_after: None };
    values.iter().map(secret).collect()
}

fn head(headers: &[(impl AsRef<str>, impl AsRef<str>)]) -> HeaderMap {
    headers
        .iter()
        .map(|(name, value)| {
            (name.as_ref().parse::<HeaderName>().unwrap(), HeaderValue::from_str(value.as_ref()).unwrap())
        })
        .collect()
}

fn facts_as_json(facts: &Facts) -> Value {
    let text = |value: &Option<Arc<str>>| value.as_deref().map(Value::from);
    let all = [
        ("event", text(&facts.event)),
        ("action", text(&facts.action)),
        ("repository", text(&facts.repository)),
        ("repository_id", text(&facts.repository_id)),
        ("owner", text(&facts.owner)),
        ("branch", text(&facts.branch)),
        ("tag", text(&facts.tag)),
        ("commit", text(&facts.commit)),
        ("actor", text(&facts.actor)),
        ("actor_id", text(&facts.actor_id)),
        ("fork", facts.fork.map(Value::from)),
        ("pull_request", text(&facts.pull_request)),
        ("draft", facts.draft.map(Value::from)),
        ("several", facts.several.then_some(Value::from(true))),
        ("build", facts.build.then_some(Value::from(true))),
    ];
    all.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect::<Map<_, _>>().into()
}

impl Case {
    fn body(&self) -> Bytes {
        match (&self.body, &self.body_hex) {
            (Some(text), None) => Bytes::copy_from_slice(text.as_bytes()),
            (None, Some(hex)) => hex
                .as_bytes()
                .chunks(2)
                .map(|pair| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap())
                .collect(),
            _ => panic!("{}: one of `body` and `body_hex`", self.name),
        }
    }

    fn run(&self, webhook: &Webhook, now: i64) -> Result<Delivery, Rejection> {
        let method: Method = self.method.as_deref().unwrap_or("POST").parse().unwrap();
        let body = self.body();
        let length = self.content_length.unwrap_or(body.len() as u64);
        let expected = webhook.precheck(&method, &head(&self.headers), self.query.as_deref(), Some(length))?;
        let now = Timestamp::from_secs(self.now.unwrap_or(now));
        webhook.verify(expected, &body, now).map_err(|refused| refused.rejection)
    }
}

fn check(vectors: &str) {
    let vectors: Vectors = serde_json::from_str(vectors).unwrap();
    let mut strict = vectors.webhook.clone();
    strict["require_signature"] = true.into();
    let plain = resolve(vectors.webhook, &vectors.secrets).0.unwrap();
    let strict = resolve(strict, &vectors.secrets).0;
    for case in &vectors.cases {
        let title = format!("{}: {}", case.row, case.name);
        let webhook = if case.require_signature { strict.as_ref().unwrap() } else { &plain };
        let result = case.run(webhook, vectors.now);
        let outcome = match &result {
            Ok(delivery) if delivery.ping => "ping",
            Ok(_) => "accepted",
            Err(rejection) => rejection.reason().as_str(),
        };
        assert_eq!(outcome, case.expect, "{title}: {result:?}");
        match result {
            Ok(delivery) => {
                assert_eq!(delivery.body_sha256, sha256(&[&case.body()]), "{title}");
                if let Some(index) = case.secret_index {
                    assert_eq!(delivery.secret_index, index, "{title}");
                }
                if let Some(id) = &case.delivery {
                    assert_eq!(&*delivery.facts.delivery, id, "{title}");
                }
                assert_eq!(delivery.challenge.as_deref(), case.challenge.as_deref(), "{title}");
                if let Some(facts) = &case.facts {
                    assert_eq!(&facts_as_json(&delivery.facts), facts, "{title}");
                }
            }
            // Nothing that helps to guess: every 401 has the same text, and no reason reveals that a secret is valid.
            Err(rejection) if rejection.status() == StatusCode::UNAUTHORIZED => {
                assert_eq!(rejection.detail(), "the delivery is not signed as this address requires", "{title}");
                assert_eq!(rejection.fix_text(), None, "{title}");
            }
            Err(_) => {}
        }
    }
}

#[test]
fn the_vectors_of_each_sender() {
    let kinds: Vec<&str> = raw::Sender::ALL
        .into_iter()
        .filter_map(|kind| {
            Some(match kind {
                // Its certificate is fetched, which integration tests cover.
                raw::Sender::AwsSns => return None,
                raw::Sender::Github => include_str!("vectors/github.json"),
                raw::Sender::Gitlab => include_str!("vectors/gitlab.json"),
                raw::Sender::Gitea => include_str!("vectors/gitea.json"),
                raw::Sender::Forgejo => include_str!("vectors/forgejo.json"),
                raw::Sender::Gogs => include_str!("vectors/gogs.json"),
                raw::Sender::BitbucketCloud => include_str!("vectors/bitbucket_cloud.json"),
                raw::Sender::BitbucketDataCenter => include_str!("vectors/bitbucket_data_center.json"),
                raw::Sender::AzureDevops => include_str!("vectors/azure_devops.json"),
                raw::Sender::Slack => include_str!("vectors/slack.json"),
                raw::Sender::Harbor => include_str!("vectors/harbor.json"),
                raw::Sender::DockerHub => include_str!("vectors/docker_hub.json"),
                raw::Sender::StandardWebhooks => include_str!("vectors/standard_webhooks.json"),
                raw::Sender::Generic => include_str!("vectors/generic.json"),
            })
        })
        .collect();
    kinds.into_iter().chain([include_str!("vectors/plain.json")]).for_each(check);
}

const NOW: Timestamp = Timestamp::from_secs(1_700_000_000);
const SECRET: &str = "a secret of a webhook";
const PUSH: &str = r#"{"ref":"refs/heads/main","before":"1","after":"2","commits":[],"repository":{"id":1234}}"#;

fn github(secrets_: &[&str]) -> Webhook {
    resolve(json!({"name": "hub", "sender": "github"}), &secrets(secrets_)).0.unwrap()
}

fn deliver(webhook: &Webhook, event: &str, id: &str, body: &str) -> Result<Delivery, Rejection> {
    let signature = github_signature(SECRET.as_bytes(), body.as_bytes());
    let headers = head(&[
        ("content-type", "application/json"),
        ("x-github-event", event),
        ("x-github-delivery", id),
        ("x-hub-signature-256", &signature),
    ]);
    let expected = webhook.precheck(&Method::POST, &headers, None, None)?;
    let delivery = webhook.verify(expected, &Bytes::copy_from_slice(body.as_bytes()), NOW);
    delivery.map_err(|refused| refused.rejection)
}

/// Not all senders let the content type of a hook be configured.
#[test]
fn a_refusal_of_a_content_type_names_the_setting_of_the_sender() {
    let sns = json!({"topics": ["arn:aws:sns:eu-west-1:123456789012:pushes"]});
    for (sender, expected) in [
        ("harbor", "payload format"),
        ("github", "content type of the hook"),
        ("slack", "find out who sends"),
        ("docker_hub", "find out who sends"),
        ("aws_sns", "`headerContentType`"),
    ] {
        let is_sns = sender == "aws_sns";
        let given = secrets(if is_sns { &[] } else { &[SECRET] });
        let entry = json!({"name": "a", "sender": sender, "sns": is_sns.then_some(&sns)});
        let webhook = resolve(entry, &given).0.unwrap();
        let headers = head(&[("content-type", "application/cloudevents+json")]);
        let refused = webhook.precheck(&Method::POST, &headers, None, None).unwrap_err();
        assert_eq!(refused.reason(), Reason::UnsupportedMediaType);
        assert!(refused.fix_text().unwrap().contains(expected), "{sender}: {:?}", refused.fix_text());
    }
}

#[test]
fn webhooks_16_the_cap_holds_for_the_bytes_that_came() {
    let (webhook, _) = resolve(json!({"name": "hub", "sender": "github", "max_body": PUSH.len()}), &secrets(&[SECRET]));
    let webhook = webhook.unwrap();
    assert!(deliver(&webhook, "push", "1", PUSH).is_ok());
    let larger = deliver(&webhook, "push", "1", &format!("{PUSH} ")).unwrap_err();
    assert_eq!(larger.reason(), Reason::BodyTooLarge);
}

#[test]
fn webhooks_18_and_z16_replay_keys_belong_to_the_secret_and_the_signed_bytes() {
    let (staging, production) = (github(&[SECRET]), github(&["another secret than that", SECRET]));
    let first = deliver(&staging, "push", "1", PUSH).unwrap().replay;
    let there = deliver(&production, "push", "1", PUSH).unwrap().replay;
    assert!(first.records().iter().all(|key| there.records().contains(key)), "one of its two secrets is the same");
    assert!(staging.shares_secret_with(&production));
    assert!(!staging.shares_secret_with(&github(&["another secret than that"])));
    assert_ne!(first, deliver(&staging, "push", "2", PUSH).unwrap().replay);
    assert_ne!(first, deliver(&staging, "push", "1", &format!("{PUSH} ")).unwrap().replay);
}

/// Regression: a delivery with a date ahead was accepted again once it was forgotten.
#[tokio::test]
async fn a_delivery_with_a_date_ahead_is_not_good_any_more_when_it_is_forgotten() {
    let entry = json!({"name": "dc", "sender": "bitbucket_data_center", "hold": false, "replay_window": "1h"});
    let webhook = resolve(entry, &secrets(&[SECRET])).0.unwrap();
    let body =
        r#"{"eventKey":"repo:refs_changed","date":"2023-11-14T22:18:19+0000","repository":{"id":84},"changes":[]}"#;
    let signature = github_signature(SECRET.as_bytes(), body.as_bytes());
    let headers = head(&[
        ("content-type", "application/json"),
        ("x-event-key", "repo:refs_changed"),
        ("x-request-id", "d-1"),
        ("x-hub-signature", &signature),
    ]);
    let verify = |now| {
        let expected = webhook.precheck(&Method::POST, &headers, None, None).unwrap();
        webhook.verify(expected, &Bytes::from_static(body.as_bytes()), now)
    };
    let replay = Replay::new(testing::MemoryStore::shared());
    let keys = verify(NOW).unwrap().replay;
    replay.take(&keys, NOW, |_| Ok(Vec::new())).await.unwrap();
    let hour = Duration::from_secs(3600);
    assert!(verify(NOW + hour).is_err());
    // With a clock that is behind, too.
    assert!(verify(NOW + hour - Duration::from_secs(10)).is_err());
    assert!(replay.take(&keys, NOW + hour, |_| Ok(Vec::new())).await.is_ok(), "it is forgotten then");
    assert!(verify(NOW + hour / 2).is_ok());
}

/// Regression: with the shortest window, one that was signed ahead was new again before its signature was too old.
#[test]
fn a_delivery_is_remembered_for_longer_than_its_signature_is_valid() {
    let signature = json!({"header": "x-sig", "timestamp_header": "x-time", "id_header": "x-id"});
    let entry = json!({"name": "ci", "sender": "generic", "replay_window": "10m", "signature": signature});
    let webhook = resolve(entry, &secrets(&[SECRET])).0.unwrap();
    let signed = Some(NOW + Duration::from_secs(300));
    for (age, valid) in [(0, true), (600_000, true), (600_999, true), (601_000, false)] {
        let at = NOW + Duration::from_millis(age);
        assert_eq!(webhook.check_time(signed, at).is_ok(), valid, "{age}");
    }
    // By a clock that is behind, too.
    assert!(webhook.remembered_for() >= Duration::from_secs(601 + 10));
}

/// Regression: it was stored a second time, and both were sent.
#[tokio::test]
async fn a_held_delivery_is_remembered_for_as_long_as_it_is_tried() {
    const DAY: Duration = Duration::from_secs(86_400);
    for (held, days) in [(json!({"try_for": "7d"}), 7), (json!({"try_for": "1d"}), 3)] {
        let entry = json!({"name": "hub", "sender": "github", "held": held});
        let webhook = resolve(entry, &secrets(&[SECRET])).0.unwrap();
        let keys = deliver(&webhook, "push", "1", PUSH).unwrap().replay;
        let replay = Replay::new(testing::MemoryStore::shared());
        let takes = async |at| replay.take(&keys, at, |_| Ok(Vec::new())).await.map_err(|refused| refused.reason());
        assert!(takes(NOW).await.is_ok());
        let end = NOW + DAY * days;
        assert_eq!(takes(end - Duration::from_secs(1)).await.map(|_| ()), Err(Reason::ReplayedDelivery), "{days}");
        assert!(takes(end).await.is_ok(), "{days}");
    }
}

/// For the interceptor and for held deliveries, an attempt that is signed with the next secret is the same delivery.
#[test]
fn a_delivery_has_one_name_whichever_of_the_secrets_proved_it() {
    let secrets = [SECRET, "the secret that comes next"];
    let webhook = github(&secrets);
    let proven_by = |secret: &str| {
        let signature = github_signature(secret.as_bytes(), PUSH.as_bytes());
        let headers = head(&[
            ("content-type", "application/json"),
            ("x-github-event", "push"),
            ("x-github-delivery", "1"),
            ("x-hub-signature-256", &signature),
        ]);
        let expected = webhook.precheck(&Method::POST, &headers, None, None).unwrap();
        webhook.verify(expected, &Bytes::from_static(PUSH.as_bytes()), Timestamp::from_secs(1_700_000_000)).unwrap()
    };
    let [first, second] = secrets.map(proven_by);
    assert_eq!((first.secret_index, second.secret_index), (0, 1));
    assert_eq!(first.replay, second.replay);
}

#[test]
fn z17_what_no_signature_covers_stays_here() {
    let (gitlab, _) = resolve(json!({"name": "lab", "sender": "gitlab"}), &secrets(&[SECRET]));
    for webhook in [github(&[SECRET]), gitlab.unwrap()] {
        let allowed = webhook.allowed_headers();
        for name in ["ce-specversion", "ce-type", "authorization", "cookie", "x-gitlab-token", "x-gitlab-instance"] {
            assert!(!allowed.contains(&HeaderName::from_static(name)), "{name}");
        }
        assert!(!allowed.contains(&HeaderName::from_static("x-github-enterprise-host")));
        assert!(allowed.contains(&header::CONTENT_TYPE));
    }
    assert!(github(&[SECRET]).allowed_headers().contains(&HeaderName::from_static("x-github-event")));
    // Tekton's interceptor for GitHub also reads these headers of Gitea.
    for (sender, passes) in [("gitea", true), ("forgejo", true), ("gogs", true), ("github", false)] {
        let webhook = resolve(json!({"name": "x", "sender": sender}), &secrets(&[SECRET])).0.unwrap();
        let has = |name| webhook.allowed_headers().contains(&HeaderName::from_static(name));
        assert!(has("x-github-event"), "{sender}");
        assert_eq!(has("x-hub-signature-256"), sender != "gogs", "{sender}");
        assert!(!has("x-gitea-event-type") && !has("x-hub-signature"), "{sender}: nothing proves it");
        assert_eq!(webhook.event_twins.contains(&HeaderName::from_static("x-github-event")), passes, "{sender}");
    }
}

/// Four consecutive 4xx answers disable a hook of GitLab, and with it the deliveries that are wanted.
#[test]
fn a_sender_that_counts_failures_gets_no_4xx_for_a_decision() {
    for (sender, counts) in [
        ("gitlab", true),
        ("bitbucket_data_center", true),
        ("azure_devops", true),
        ("github", false),
        ("gitea", false),
        ("bitbucket_cloud", false),
    ] {
        let webhook = resolve(json!({"name": "x", "sender": sender}), &secrets(&["user:a secret of it"])).0.unwrap();
        let heard = |reason| webhook.heard(Rejection::new(reason, "")).status().as_u16();
        // 401 is for deliveries that are not proven.
        for reason in [Reason::PolicyDenied, Reason::NoRuleMatched, Reason::TokenRevoked] {
            assert_eq!(heard(reason), if counts { 200 } else { 403 }, "{sender} {reason}");
        }
        for (reason, status) in [(Reason::SignatureInvalid, 401), (Reason::BadRequest, 400), (Reason::Overloaded, 503)]
        {
            assert_eq!(heard(reason), status, "{sender} {reason}");
        }
    }
}

/// Otherwise anybody who may push could disable the hook for everybody, with a branch name that cannot be read.
#[test]
fn a_genuine_delivery_that_cannot_be_read_counts_against_no_hook_and_is_known_by_its_id() {
    let body = json!({"object_kind": "push", "ref": format!("refs/heads/{}", "x".repeat(1200))}).to_string();
    for (sender, headers, status) in [
        ("gitlab", [("x-gitlab-event", "Push Hook"), ("x-gitlab-token", SECRET), ("idempotency-key", "id-1")], 200),
        ("gitlab", [("x-gitlab-event", "Tag Push Hook"), ("x-gitlab-token", SECRET), ("idempotency-key", "id-1")], 200),
        ("gitlab", [("x-gitlab-event", "Push Hook"), ("x-gitlab-token", "another"), ("idempotency-key", "id-1")], 401),
        (
            "gitea",
            [
                ("x-gitea-event", "push"),
                ("x-gitea-signature", &github_signature(SECRET.as_bytes(), body.as_bytes())[7..]),
                ("x-gitea-delivery", "id-1"),
            ],
            400,
        ),
    ] {
        let webhook = resolve(json!({"name": "x", "sender": sender}), &secrets(&[SECRET])).0.unwrap();
        let mut headers = head(&headers);
        headers.insert("content-type", HeaderValue::from_static("application/json"));
        let expected = webhook.precheck(&Method::POST, &headers, None, None).unwrap();
        let Refused { rejection, genuine } = webhook.verify(expected, &Bytes::from(body.clone()), NOW).unwrap_err();
        assert_eq!(rejection.status().as_u16(), status, "{sender} {headers:?}");
        let Some(genuine) = genuine else {
            assert_eq!(status, 401, "{sender}");
            continue;
        };
        assert_eq!(rejection.reason(), Reason::BadRequest);
        assert_eq!((&*genuine.facts.webhook, &*genuine.facts.delivery), ("x", "id-1"));
        assert_eq!(genuine.body_sha256, sha256(&[body.as_bytes()]));
    }
}

#[test]
fn principals_are_agents_named_by_numbers() {
    let webhook = github(&[SECRET]);
    let principal = webhook.principal(&deliver(&webhook, "push", "guid-1", PUSH).unwrap()).unwrap();
    assert_eq!((&*principal.issuer, &*principal.username), ("webhook:hub", "webhook:github:repo:1234"));
    assert_eq!((principal.kind, principal.scheme), (Kind::Agent, Scheme::Webhook));
    assert_eq!(principal.credential, CredentialId::Delivery("guid-1".into()));
    assert_eq!(principal.expires, Timestamp::MAX);
    let organization = deliver(&webhook, "organization", "guid-2", r#"{"action": "renamed"}"#).unwrap();
    assert_eq!(&*webhook.principal(&organization).unwrap().username, "webhook:github:hook:hub");
}

#[test]
fn webhooks_27_an_unsigned_test_is_answered_if_configured() {
    let entry = |allowed: bool| json!({"name": "dc", "sender": "bitbucket_data_center", "unsigned_pings": allowed});
    let allowed = resolve(entry(true), &secrets(&[SECRET])).0.unwrap();
    let ping = head(&[("x-event-key", "diagnostics:ping")]);
    assert!(allowed.is_unsigned_ping(&Method::POST, &ping));
    for (row, method, headers) in [
        ("another method", Method::GET, ping.clone()),
        ("another event", Method::POST, head(&[("x-event-key", "repo:refs_changed")])),
        ("two events", Method::POST, head(&[("x-event-key", "diagnostics:ping"), ("x-event-key", "pr:opened")])),
        ("a signature", Method::POST, head(&[("x-event-key", "diagnostics:ping"), ("x-hub-signature", "sha256=00")])),
    ] {
        assert!(!allowed.is_unsigned_ping(&method, &headers), "{row}");
    }
    assert!(!resolve(entry(false), &secrets(&[SECRET])).0.unwrap().is_unsigned_ping(&Method::POST, &ping));
    let of_another = json!({"name": "hub", "sender": "github", "unsigned_pings": true});
    assert!(resolve(of_another, &secrets(&[SECRET])).0.is_none());
}

/// Regression: the error said that it is not a name.
#[test]
fn a_name_that_is_too_long_is_called_so() {
    let push = |branch: &str| {
        format!(r#"{{"ref":"refs/heads/{branch}","before":"1","after":"2","commits":[],"repository":{{"id":1}}}}"#)
    };
    let webhook = github(&[SECRET]);
    let branch = |length| deliver(&webhook, "push", "guid-1", &push(&"x".repeat(length)));
    assert_eq!(branch(1024 - 11).unwrap().facts.branch.as_ref().unwrap().len(), 1013);
    let refused = branch(1024 - 10).unwrap_err();
    assert_eq!(refused.reason(), Reason::BadRequest);
    assert!(refused.detail().contains("the text at `/ref` is longer than 1024 bytes"), "{}", refused.detail());
}

/// The error spoke of a name.
#[test]
fn a_date_that_is_no_time_is_called_so() {
    let webhook = resolve(json!({"name": "dc", "sender": "bitbucket_data_center"}), &secrets(&[SECRET])).0.unwrap();
    for date in [json!(1_700_000_000), json!("yesterday"), json!("")] {
        let body = json!({"eventKey": "repo:refs_changed", "date": date}).to_string();
        let signature = github_signature(SECRET.as_bytes(), body.as_bytes());
        let headers = head(&[
            ("content-type", "application/json"),
            ("x-event-key", "repo:refs_changed"),
            ("x-request-id", "d-1"),
            ("x-hub-signature", &signature),
        ]);
        let expected = webhook.precheck(&Method::POST, &headers, None, None).unwrap();
        let refused = webhook.verify(expected, &Bytes::from(body), NOW).unwrap_err().rejection;
        assert_eq!(refused.reason(), Reason::BadRequest, "{date}");
        assert!(refused.detail().contains("the value at `/date` is not a time"), "{}", refused.detail());
    }
}

#[test]
fn dates_of_bodies_are_read_with_and_without_a_colon() {
    let time = Timestamp::from_secs(1_700_000_000);
    for text in
        ["2023-11-14T22:13:20Z", "2023-11-14T22:13:20+0000", "2023-11-15T08:13:20+1000", "2023-11-14T20:13:20-02:00"]
    {
        assert_eq!(facts::date(text), Some(time), "{text}");
    }
    for text in ["", "Z", "2023", "2023-11-14T22:13:20", "é"] {
        assert_eq!(facts::date(text), None, "{text}");
    }
}
