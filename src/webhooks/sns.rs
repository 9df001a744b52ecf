//! Amazon SNS, which signs with a certificate whose URL is in the message:
//! <https://docs.aws.amazon.com/sns/latest/dg/sns-verify-signature-of-message.html>.
//!
//! The signature only proves that some topic of some account sent the message, so topics are listed. The certificate is
//! fetched over TLS from listed hosts only, by default those of the topics' regions, and cached: that host is the root
//! of trust. Nothing else in a message is ever fetched, except the confirmation of a subscription to a listed topic,
//! from the same hosts.

mod certificate;
mod source;

use std::{
    collections::BTreeSet,
    net::IpAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use aws_lc_rs::signature::{
    RSA_PKCS1_2048_8192_SHA1_FOR_LEGACY_USE_ONLY, RSA_PKCS1_2048_8192_SHA256, RsaParameters, UnparsedPublicKey,
};
use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use serde::{Deserialize, de::IgnoredAny};
use tokio::{runtime::Handle, time::Instant};
use url::Url;

use self::{
    certificate::Certificate,
    source::{RENEWAL, Source, authority},
};
use super::{
    Delivery, Expected, Refused, ReplayKeys, Webhook,
    document::Wanted,
    facts::{Facts, NoFacts, Reader, is_delivery_id, is_text_id},
    senders::Media,
    signature::{malformed, unproven},
};
use crate::{
    clock::Timestamp,
    config::{raw, report::At, resolver::Resolver},
    egress::Egress,
    error::{Reason, Rejection},
    lock::lock,
    sha256::sha256,
};

/// The maximum age of a message: SNS retries for an hour.
const MAX_AGE: Duration = Duration::from_secs(3600);

/// How far the clock of SNS may be ahead.
const MAX_AHEAD: Duration = Duration::from_secs(300);

/// How long a message is accepted in total, before and after its time.
pub(super) const GOOD_FOR: Duration = Duration::from_secs(3600 + 300);

/// The header with the topic of a message.
pub(super) const TOPIC: &str = "x-amz-sns-topic-arn";

/// The header by which SNS marks a message that it sends raw.
pub(super) const RAW_DELIVERY: &str = "x-amz-sns-rawdelivery";

/// How long no further message of signature version 1 is logged.
const LOG_PAUSE: Duration = Duration::from_secs(60);

/// The topics of a sender, and what is needed to verify that a message comes from one of them.
#[derive(Debug)]
pub struct Sns {
    topics: Vec<Arc<str>>,
    allows_sha1: bool,
    source: Arc<Source>,
    /// When a message of signature version 1 was last logged.
    logged: Mutex<Option<Instant>>,
}

/// A message that SNS signed.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Message {
    #[serde(rename = "Type")]
    pub(super) kind: Kind,
    pub(super) message_id: Arc<str>,
    pub(super) topic_arn: Arc<str>,
    pub(super) message: String,
    timestamp: String,
    signature_version: String,
    signature: String,
    #[serde(rename = "SigningCertURL")]
    signing_cert_url: String,
    subject: Option<String>,
    #[serde(rename = "SubscribeURL")]
    subscribe_url: Option<String>,
    token: Option<String>,
}

/// The type of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub(super) enum Kind {
    Notification,
    SubscriptionConfirmation,
    UnsubscribeConfirmation,
}

impl Kind {
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Notification => "Notification",
            Self::SubscriptionConfirmation => "SubscriptionConfirmation",
            Self::UnsubscribeConfirmation => "UnsubscribeConfirmation",
        }
    }
}

impl Sns {
    pub(super) fn topics(&self) -> &[Arc<str>] {
        &self.topics
    }

    /// Reports every problem at its place; `None` if there is one.
    pub(super) fn resolve(raw: &raw::Sns, at: &At, egress: &Egress, resolver: &mut Resolver) -> Option<Self> {
        let mark = resolver.report.mark();
        let topics_at = at.key("topics");
        if raw.topics.is_empty() {
            resolver
                .error(&topics_at, "there is no topic")
                .help("anybody can make a topic and have SNS sign what it says; list yours");
        }
        for (index, topic) in raw.topics.iter().enumerate() {
            let at = topics_at.index(index);
            match read_topic(topic) {
                None => {
                    resolver
                        .error(&at, format!("`{topic}` is not the ARN of a topic"))
                        .help("write it as `arn:aws:sns:us-east-1:123456789012:NAME`");
                }
                Some([.., name]) if name.ends_with(FIFO) => {
                    resolver
                        .error(&at, format!("`{topic}` is a FIFO topic, whose messages SNS sends to no HTTPS address"))
                        .help("use a standard topic");
                }
                Some([partition, ..]) if raw.hosts.is_empty() && host_of(topic).is_none() => {
                    resolver
                        .error(&at, format!("the hosts of SNS in the partition `{partition}` are not known"))
                        .help("list them in `hosts`");
                }
                Some(_) => {}
            }
        }
        for (index, host) in raw.hosts.iter().enumerate() {
            let is_host =
                Url::parse(&format!("https://{host}/")).is_ok_and(|url| authority(&url).as_ref() == Some(host));
            if !is_host || host.contains('*') {
                resolver
                    .error(&at.key("hosts").index(index), format!("`{host}` is neither a host nor `host:port`"))
                    .help("write each host in full, without `https://` and without `*`");
            }
        }
        let authorities = match raw.ca.as_deref() {
            Some(ca) => Some(sha256(&[resolver.read(&at.key("ca"), ca)?.as_slice()])),
            None => None,
        };
        let egress = egress.resolve(raw.ca.as_deref(), &at.key("ca"), resolver)?;
        (!resolver.report.has_errors_since(mark)).then(|| {
            let topics = raw.topics.iter().map(|topic| topic.as_str().into()).collect();
            let hosts = if raw.hosts.is_empty() { hosts(&raw.topics) } else { raw.hosts.clone() };
            let source = Source::new(hosts, egress, authorities);
            Self { topics, allows_sha1: raw.allow_sha1, source: Arc::new(source), logged: Mutex::default() }
        })
    }

    /// Takes over the certificates of the same entry in the previous configuration.
    pub(super) fn keep_certificates_of(&self, before: &Self) {
        self.source.keep_those_of(&before.source);
    }

    /// Reads a message and verifies that SNS signed it for a listed topic. `kind` is the type in the header, which is
    /// not signed.
    async fn verify(
        &self,
        body: &[u8],
        kind: Option<&str>,
        client: Option<IpAddr>,
        control: &Handle,
        now: Timestamp,
    ) -> Result<Message, Rejection> {
        let unreadable =
            |error: String| Rejection::new(Reason::BadRequest, format!("the body is not an SNS message: {error}"));
        // A body that two parsers could read differently proves nothing.
        Wanted::default().read(body).map_err(|error| unreadable(error.to_string()))?;
        let message: Message = serde_json::from_slice(body).map_err(|error| unreadable(error.to_string()))?;
        if kind != Some(message.kind.as_str()) {
            let detail = "x-amz-sns-message-type is not the `Type` of the message";
            return Err(Rejection::new(Reason::BadRequest, detail));
        }
        if !self.topics.contains(&message.topic_arn) {
            return Err(unproven(Reason::SignatureInvalid, "the topic is not listed"));
        }
        let algorithm: &RsaParameters = match message.signature_version.as_str() {
            "2" => &RSA_PKCS1_2048_8192_SHA256,
            "1" if self.allows_sha1 => &RSA_PKCS1_2048_8192_SHA1_FOR_LEGACY_USE_ONLY,
            version => {
                if version == "1" {
                    self.log_version_1(&message.topic_arn);
                }
                return Err(unproven(Reason::SignatureInvalid, "the signature version is not accepted"));
            }
        };
        let signature = STANDARD.decode(&message.signature).map_err(|_| malformed("the signature is not base64"))?;
        let signed = message.signed().ok_or_else(|| malformed("a signed member is missing or has an invalid value"))?;
        let proves = |certificate: &Certificate| {
            UnparsedPublicKey::new(algorithm, certificate.key()).verify(signed.as_bytes(), &signature).is_ok()
        };
        let address = self.source.address(&message.signing_cert_url)?;
        let mut certificate = self.source.certificate(&address, Duration::MAX, client, control, now).await?;
        let mut is_proven = proves(&certificate);
        if !is_proven && certificate.is_valid(now) {
            // The file at this address may contain a renewed certificate.
            certificate = self.source.certificate(&address, RENEWAL, client, control, now).await?;
            is_proven = proves(&certificate);
        }
        if !certificate.is_valid(now) {
            return Err(unproven(Reason::SignatureInvalid, "the certificate of the signature is not valid now"));
        }
        if !is_proven {
            return Err(unproven(Reason::SignatureInvalid, "the certificate's key did not make the signature"));
        }
        let time = Timestamp::from_rfc3339(&message.timestamp).ok_or_else(|| malformed("`Timestamp` is not a time"))?;
        if now.since(time) > MAX_AGE {
            return Err(unproven(Reason::SignatureInvalid, "the message is older than any that SNS would still send"));
        }
        if time.since(now) > MAX_AHEAD {
            return Err(unproven(Reason::SignatureInvalid, "the time of the message is in the future"));
        }
        // Not for old messages, of which anybody may have a copy.
        self.source.note_proof(&address);
        Ok(message)
    }

    /// Logs the remedy, as version 1 is the default of SNS, which shows nobody why a subscription stays unconfirmed.
    /// Limited, as anybody can send such a message.
    fn log_version_1(&self, topic: &str) {
        let now = Instant::now();
        let mut logged = lock(&self.logged);
        if logged.is_some_and(|at| now.duration_since(at) < LOG_PAUSE) {
            return;
        }
        *logged = Some(now);
        tracing::warn!(
            topic,
            "a message of a listed topic is refused, as it has signature version 1 (SHA-1); if SNS sent it, set the attribute \
             `SignatureVersion` of the topic to 2, or `allow_sha1` in `sns`"
        );
    }

    /// Confirms the subscription that a verified message offers. SNS retries after an error.
    pub(super) async fn confirm(&self, message: &Message) -> Result<(), Rejection> {
        let url = message.subscribe_url.as_deref().and_then(|url| Url::parse(url).ok());
        let is_ours = |url: &Url| {
            let says = |name: &str, value: &str| {
                let mut values = url.query_pairs().filter(|(key, _)| key == name);
                values.next().is_some_and(|(_, is)| is == value) && values.next().is_none()
            };
            self.source.is_listed(url) && says("Action", "ConfirmSubscription") && says("TopicArn", &message.topic_arn)
        };
        let Some(url) = url.filter(is_ours) else {
            return Err(unproven(Reason::SignatureInvalid, "the subscription is not confirmed at a listed host"));
        };
        let unavailable = |why: String| {
            Rejection::new(Reason::UpstreamFailed, "the subscription cannot be confirmed at the moment")
                .with_status(http::StatusCode::SERVICE_UNAVAILABLE)
                .because(why)
        };
        self.source.fetch(&url).await.map_err(unavailable)?;
        tracing::info!(topic = &*message.topic_arn, "a subscription to a topic of SNS is confirmed");
        Ok(())
    }
}

impl Webhook {
    /// Verifies a message of SNS, which may require fetching its certificate, and confirms the subscription that it may
    /// offer. Refuses as [`Webhook::verify`] does, and with 503; the length of the body was limited while it was read.
    pub(super) async fn verify_message(
        &self,
        sns: &Sns,
        expected: Expected,
        body: &Bytes,
        client: Option<IpAddr>,
        control: &Handle,
        now: Timestamp,
    ) -> Result<Delivery, Refused> {
        let message = sns.verify(body, expected.event.as_deref(), client, control, now).await?;
        message.check_headers(&expected)?;
        match message.kind {
            Kind::Notification => {}
            Kind::SubscriptionConfirmation => sns.confirm(&message).await?,
            Kind::UnsubscribeConfirmation => {
                let topic = &*message.topic_arn;
                tracing::warn!(webhook = &*self.name, topic, "a subscription to a topic of SNS ended");
            }
        }
        let unreadable =
            |error: NoFacts| self.unreadable(&error, Some(Arc::clone(&message.message_id)), sha256(&[body]));
        let facts = Facts {
            webhook: Arc::clone(&self.name),
            sender_kind: Arc::clone(&self.identity),
            ..message.facts(&self.facts).map_err(unreadable)?
        };
        // The topic takes the place of the secret of other senders.
        let scope = sha256(&[b"sns\0", message.topic_arn.as_bytes()]);
        Ok(Delivery {
            ping: message.kind != Kind::Notification,
            challenge: None,
            is_form: false,
            facts: Arc::new(facts),
            secret_index: 0,
            replay: ReplayKeys::new(&[scope], &message.message_id, None, self.remembered_for())
                .redeliveries(self.redeliveries, self.sender.redelivers_anew),
            body_sha256: sha256(&[body]),
            expires: Timestamp::MAX,
        })
    }
}

/// The hosts of SNS in the regions of these topics.
pub(super) fn hosts(topics: &[String]) -> Vec<String> {
    let hosts: BTreeSet<String> = topics.iter().filter_map(|topic| host_of(topic)).collect();
    hosts.into_iter().collect()
}

/// The end of the name of a topic that keeps the order of messages.
const FIFO: &str = ".fifo";

/// The partition, the region and the name of a topic: `arn:PARTITION:sns:REGION:ACCOUNT:NAME`.
fn read_topic(arn: &str) -> Option<[&str; 3]> {
    match *arn.split(':').collect::<Vec<_>>().as_slice() {
        ["arn", partition, "sns", region, account, name]
            if partition.starts_with("aws") && is_region(region) && is_account(account) && is_topic_name(name) =>
        {
            Some([partition, region, name])
        }
        _ => None,
    }
}

fn is_topic_name(text: &str) -> bool {
    let bare = text.strip_suffix(FIFO).unwrap_or(text);
    (1..=256).contains(&bare.len()) && bare.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte))
}

/// The host of SNS in the region of a topic, if it is known for the partition.
fn host_of(topic: &str) -> Option<String> {
    let [partition, region, _] = read_topic(topic)?;
    let end = match partition {
        "aws" | "aws-us-gov" => "amazonaws.com",
        "aws-cn" => "amazonaws.com.cn",
        _ => return None,
    };
    Some(format!("sns.{region}.{end}"))
}

fn is_region(text: &str) -> bool {
    text.len() >= 3 && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
}

fn is_account(text: &str) -> bool {
    text.len() == 12 && text.bytes().all(|byte| byte.is_ascii_digit())
}

impl Message {
    /// Refuses headers that contradict the message: they are not signed, and the upstream may read them.
    fn check_headers(&self, expected: &Expected) -> Result<(), Rejection> {
        let is_other_id = expected.id.as_ref().is_some_and(|id| *id != self.message_id);
        let is_other_topic = expected.topic.as_ref().is_some_and(|topic| *topic != *self.topic_arn);
        let detail = match (is_other_id, is_other_topic) {
            (false, false) => return Ok(()),
            (true, _) => "x-amz-sns-message-id is not the `MessageId` of the message".to_owned(),
            (_, true) => format!("{TOPIC} is not the `TopicArn` of the message"),
        };
        Err(Rejection::new(Reason::BadRequest, detail))
    }

    /// The string to sign: names and values, sorted by name, one per line. `None` if another message could have the
    /// same string: a newline in a value would make a member of its rest. Only `Message` may contain one, as every
    /// member that follows it directly is always present.
    fn signed(&self) -> Option<String> {
        let is_line = |text: &str| !text.chars().any(char::is_control);
        let others = [self.subject.as_deref(), self.subscribe_url.as_deref(), self.token.as_deref()];
        let lines = others.into_iter().flatten().chain([&*self.timestamp, &*self.topic_arn]);
        if !is_delivery_id(&self.message_id) || !lines.into_iter().all(is_line) {
            return None;
        }
        let mut members: Vec<(&str, &str)> = vec![("Message", &self.message), ("MessageId", &self.message_id)];
        match self.kind {
            Kind::Notification => members.extend(self.subject.as_deref().map(|subject| ("Subject", subject))),
            Kind::SubscriptionConfirmation | Kind::UnsubscribeConfirmation => {
                members.push(("SubscribeURL", self.subscribe_url.as_deref()?));
            }
        }
        members.push(("Timestamp", &self.timestamp));
        if self.kind != Kind::Notification {
            members.push(("Token", self.token.as_deref()?));
        }
        members.extend([("TopicArn", &*self.topic_arn), ("Type", self.kind.as_str())]);
        Some(members.iter().fold(String::new(), |text, (name, value)| text + name + "\n" + value + "\n"))
    }

    /// The facts of its text, if that is a document.
    fn facts(&self, reader: &Reader) -> Result<Facts, NoFacts> {
        // People's text may begin like JSON without being JSON. JSON must be unambiguous.
        let is_document = self.kind == Kind::Notification
            && self.message.trim_start().starts_with('{')
            && serde_json::from_str::<IgnoredAny>(&self.message).is_ok();
        let told = match is_document {
            true => {
                let values = reader.values(Media::Json, self.message.as_bytes())?;
                reader.read(Media::Json, &values, None)?.facts
            }
            false => Facts::default(),
        };
        // Each of several records has its own event, which a deny may name.
        let of_kind = (!told.several).then(|| self.kind.as_str().into());
        Ok(Facts {
            delivery: Arc::clone(&self.message_id),
            event: told.event.clone().or(of_kind),
            ..with_repository(told)
        })
    }
}

/// Reads a CodeCommit repository from its ARN, whose parts identify it.
pub(super) fn with_repository(facts: Facts) -> Facts {
    let arn = facts.repository.clone().unwrap_or_default();
    let Some([region, account, name]) = code_commit(&arn) else { return facts };
    Facts {
        repository: Some(format!("{account}/{name}").into()),
        repository_id: Some(repository_id([region, account, name]).into()),
        owner: Some(account.into()),
        ..facts
    }
}

/// Reads `arn:aws:codecommit:REGION:ACCOUNT:NAME`.
fn code_commit(arn: &str) -> Option<[&str; 3]> {
    match *arn.split(':').collect::<Vec<_>>().as_slice() {
        ["arn", _, "codecommit", region, account, name] => Some([region, account, name]),
        _ => None,
    }
}

fn repository_id(parts: [&str; 3]) -> String {
    parts.join("/")
}

/// The id that a CodeCommit repository has in facts, from this id or from the ARN of the repository.
pub(super) fn written_repository_id(text: &str) -> Option<String> {
    let parts = code_commit(text).or_else(|| text.split('/').collect::<Vec<_>>().try_into().ok())?;
    let [region, account, name] = parts;
    (is_region(region) && is_account(account) && is_text_id(name)).then(|| repository_id(parts))
}

#[cfg(test)]
mod tests;
