//! Amazon SNS, which signs with a certificate that it names in the message itself:
//! <https://docs.aws.amazon.com/sns/latest/dg/sns-verify-signature-of-message.html>.
//!
//! The signature says only that some topic of somebody's sent the message, so topics are listed. The certificate is
//! fetched over TLS from a listed host alone, which by default is that of the topics' regions, and kept: that host is what
//! is trusted. Nothing else that a message says is ever fetched, but the confirmation of a subscription to a listed topic, from the same hosts.

mod certificate;

use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use aws_lc_rs::signature::{
    RSA_PKCS1_2048_8192_SHA1_FOR_LEGACY_USE_ONLY, RSA_PKCS1_2048_8192_SHA256, RsaParameters, UnparsedPublicKey,
};
use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http::Request;
use serde::{Deserialize, de::IgnoredAny};
use tokio::{runtime::Handle, time::Instant};
use url::Url;

use self::certificate::Certificate;
use super::{
    Delivery, Expected, Refused, ReplayKeys, Webhook,
    document::Wanted,
    facts::{Facts, NoFacts, Reader, is_delivery_id},
    senders::Media,
    signature::{malformed, unproven},
};
use crate::{
    clock::Timestamp,
    config::{raw, report::At, resolver::Resolver},
    egress::{Bounds, Egress},
    error::{Reason, Rejection},
    issuers::SingleFlight,
    lock::lock,
    sha256::sha256,
};

/// How old a message may be: SNS tries for an hour.
const MAX_AGE: Duration = Duration::from_secs(3600);

/// How far its clock may be ahead.
const MAX_AHEAD: Duration = Duration::from_secs(300);

/// From its time on and before it.
pub(super) const GOOD_FOR: Duration = Duration::from_secs(3600 + 300);

/// What a fetch may cost. SNS waits 15 s for an answer.
const BOUNDS: Bounds = Bounds { timeout: Duration::from_secs(5), max_body: 64 << 10 };

/// Certificates that are kept. A region has one or two.
const MAX_CERTIFICATES: usize = 32;

/// After a fetch that failed, the next of the same address waits.
const PAUSE: Duration = Duration::from_secs(1);

/// Fetches at once.
const MAX_FETCHES: usize = 10;

/// Fetches of one client at once, with those that failed within a pause. An address is nobody's proof, and who names some that lead
/// nowhere must not keep others from a genuine one, nor have AWS asked without end. Clients that nobody tells apart have
/// the bound of all.
const MAX_OF_ONE: usize = 5;

/// The topics of a sender, and what is needed to tell that a message comes from one of them.
#[derive(Debug)]
pub struct Sns {
    topics: Vec<Arc<str>>,
    allows_sha1: bool,
    source: Arc<Source>,
    /// One for each address, which goes on when whoever asked first leaves: an address is nobody's proof, and those who name that of
    /// the genuine certificate and leave would keep all others from it.
    fetches: SingleFlight<Result<Certificate, String>>,
}

/// Where certificates are fetched and subscriptions confirmed.
#[derive(Debug)]
struct Source {
    /// `host` or `host:port`.
    hosts: Vec<String>,
    egress: Egress,
    /// Certificates by their address.
    known: Mutex<HashMap<String, Certificate>>,
    /// Addresses that are asked, or gave none.
    asked: Mutex<HashMap<String, Asked>>,
}

#[derive(Debug)]
struct Asked {
    /// The client that named it first, where that is known.
    by: Option<IpAddr>,
    /// When it gave none.
    failed: Option<Instant>,
}

/// A fetch that is under way, and has failed when it is dropped, unless a certificate is known then.
#[derive(Debug)]
struct Fetch {
    source: Arc<Source>,
    address: String,
}

impl Drop for Fetch {
    fn drop(&mut self) {
        if let Some(asked) = lock(&self.source.asked).get_mut(&self.address) {
            asked.failed = Some(Instant::now());
        }
    }
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

/// What a message is.
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
        for (index, topic) in raw.topics.iter().enumerate().filter(|(_, topic)| host_of(topic).is_none()) {
            resolver
                .error(&topics_at.index(index), format!("`{topic}` is not the ARN of a topic"))
                .help("write it as `arn:aws:sns:us-east-1:123456789012:NAME`");
        }
        for (index, host) in raw.hosts.iter().enumerate() {
            let is_host =
                Url::parse(&format!("https://{host}/")).is_ok_and(|url| authority(&url).as_ref() == Some(host));
            if !is_host {
                resolver.error(&at.key("hosts").index(index), format!("`{host}` is no host, nor `host:port`"));
            }
        }
        let egress = egress.resolve(raw.ca.as_deref(), &at.key("ca"), resolver)?;
        (!resolver.report.has_errors_since(mark)).then(|| {
            let topics = raw.topics.iter().map(|topic| topic.as_str().into()).collect();
            let hosts = if raw.hosts.is_empty() { hosts(&raw.topics) } else { raw.hosts.clone() };
            Self::new(topics, hosts, raw.allow_sha1, egress)
        })
    }

    fn new(topics: Vec<Arc<str>>, hosts: Vec<String>, allows_sha1: bool, egress: Egress) -> Self {
        let source = Source { hosts, egress, known: Mutex::default(), asked: Mutex::default() };
        Self { topics, allows_sha1, source: Arc::new(source), fetches: SingleFlight::default() }
    }

    /// Reads a message and makes sure that SNS signed it for a listed topic. `kind` is the header of that name, which no
    /// one has signed.
    async fn verify(
        &self,
        body: &[u8],
        kind: Option<&str>,
        client: Option<IpAddr>,
        control: &Handle,
        now: Timestamp,
    ) -> Result<Message, Rejection> {
        let unreadable =
            |error: String| Rejection::new(Reason::BadRequest, format!("the body is no message of SNS: {error}"));
        // What two parsers could read in two ways proves nothing.
        Wanted::default().read(body).map_err(|error| unreadable(error.to_string()))?;
        let message: Message = serde_json::from_slice(body).map_err(|error| unreadable(error.to_string()))?;
        if kind != Some(message.kind.as_str()) {
            return Err(unreadable("the type of the header is another".to_owned()));
        }
        if !self.topics.contains(&message.topic_arn) {
            return Err(unproven(Reason::SignatureInvalid, "the topic is not listed"));
        }
        let algorithm: &RsaParameters = match message.signature_version.as_str() {
            "2" => &RSA_PKCS1_2048_8192_SHA256,
            "1" if self.allows_sha1 => &RSA_PKCS1_2048_8192_SHA1_FOR_LEGACY_USE_ONLY,
            _ => return Err(unproven(Reason::SignatureInvalid, "the signature version is not accepted")),
        };
        let signature = STANDARD.decode(&message.signature).map_err(|_| malformed("the signature is not base64"))?;
        let signed = message.signed().ok_or_else(|| malformed("a signed member is missing, or cannot be one"))?;
        let certificate = self.certificate(&message.signing_cert_url, client, control).await?;
        if !certificate.is_valid(now) {
            return Err(unproven(Reason::SignatureInvalid, "the certificate of the signature is not valid now"));
        }
        UnparsedPublicKey::new(algorithm, certificate.key())
            .verify(signed.as_bytes(), &signature)
            .map_err(|_| unproven(Reason::SignatureInvalid, "the certificate's key did not make the signature"))?;
        let time = Timestamp::from_rfc3339(&message.timestamp).ok_or_else(|| malformed("the time is none"))?;
        if now.since(time) > MAX_AGE {
            return Err(unproven(Reason::SignatureInvalid, "the message is older than SNS would send it"));
        }
        if time.since(now) > MAX_AHEAD {
            return Err(unproven(Reason::SignatureInvalid, "the message is of a time that has not come"));
        }
        Ok(message)
    }

    /// Confirms the subscription that a verified message offers. SNS tries again after an error.
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

    /// The certificate at an address that this client names, fetched if it is not known. One that is known waits for no fetch,
    /// whatever addresses others name.
    async fn certificate(
        &self,
        address: &str,
        client: Option<IpAddr>,
        control: &Handle,
    ) -> Result<Certificate, Rejection> {
        let url = Url::parse(address).ok().filter(|url| self.source.is_listed(url) && is_certificate(url));
        let Some(url) = url else {
            return Err(unproven(Reason::SignatureInvalid, "the certificate is not at a listed host"));
        };
        if let Some(known) = self.source.known(address) {
            return Ok(known);
        }
        let begin = || -> Result<_, Result<Certificate, String>> {
            // Another fetch may have ended since it was looked.
            if let Some(known) = self.source.known(address) {
                return Err(Ok(known));
            }
            let fetch = self.source.begin(address, client).map_err(Err)?;
            Ok(async move { fetch.obtain(&url).await })
        };
        let fetched = match self.fetches.join(sha256(&[address.as_bytes()]), control, begin).await {
            Err(at_once) => at_once,
            Ok(fetched) => fetched.unwrap_or_else(|| Err("the fetch was given up".to_owned())),
        };
        fetched.map_err(|why| {
            Rejection::new(Reason::IssuerUnavailable, "the certificate of the signature cannot be had at the moment")
                .because(why)
        })
    }
}

impl Source {
    fn known(&self, address: &str) -> Option<Certificate> {
        lock(&self.known).get(address).cloned()
    }

    /// Begins a fetch for a client, unless it is to wait for a moment.
    fn begin(self: &Arc<Self>, address: &str, by: Option<IpAddr>) -> Result<Fetch, String> {
        let mut asked = lock(&self.asked);
        asked.retain(|_, asked| asked.failed.is_none_or(|at| at.elapsed() < PAUSE));
        if asked.contains_key(address) {
            return Err("the last fetch failed a moment ago".to_owned());
        }
        if by.is_some() && asked.values().filter(|asked| asked.by == by).count() >= MAX_OF_ONE {
            return Err("this client names too many certificates that cannot be had".to_owned());
        }
        let counts = |asked: &&Asked| asked.failed.is_none() || (by.is_none() && asked.by.is_none());
        if asked.values().filter(counts).count() >= MAX_FETCHES {
            return Err("too many certificates are fetched at once".to_owned());
        }
        asked.insert(address.to_owned(), Asked { by, failed: None });
        Ok(Fetch { source: Arc::clone(self), address: address.to_owned() })
    }

    async fn fetch(&self, url: &Url) -> Result<Bytes, String> {
        let request = Request::get(url.as_str()).body(Bytes::new()).map_err(|error| error.to_string())?;
        let answer = self.egress.send(request, BOUNDS).await.map_err(|error| error.to_string())?;
        match answer.status().is_success() {
            true => Ok(answer.into_body()),
            false => Err(format!("{} answered {}", url.host_str().unwrap_or_default(), answer.status())),
        }
    }

    fn is_listed(&self, url: &Url) -> bool {
        authority(url).is_some_and(|authority| self.hosts.contains(&authority))
    }
}

impl Fetch {
    /// Fetches the certificate, and keeps it.
    async fn obtain(self, url: &Url) -> Result<Certificate, String> {
        let Source { hosts, known, asked, .. } = &*self.source;
        let pem = self.source.fetch(url).await?;
        let certificate = Certificate::read(&pem, hosts)?;
        let mut known = lock(known);
        if known.len() >= MAX_CERTIFICATES {
            known.clear();
        }
        known.insert(self.address.clone(), certificate.clone());
        lock(asked).remove(&self.address);
        Ok(certificate)
    }
}

impl Webhook {
    /// Verifies a message of SNS, whose certificate may have to be fetched, and confirms the subscription that it may
    /// offer. Refuses as [`Webhook::verify`] does, and with 503.
    pub(super) async fn verify_message(
        &self,
        sns: &Sns,
        expected: Expected,
        body: &Bytes,
        client: Option<IpAddr>,
        control: &Handle,
        now: Timestamp,
    ) -> Result<Delivery, Refused> {
        if body.len() > self.max_body {
            return Err(self.too_large().into());
        }
        let message = sns.verify(body, expected.event.as_deref(), client, control, now).await?;
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
        // Its topic is to a message what the secret is to other deliveries.
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

/// `host`, or `host:port` where that is not 443, of an address over TLS without a user.
fn authority(url: &Url) -> Option<String> {
    let plain = url.scheme() == "https" && url.username().is_empty() && url.password().is_none();
    let host = url.host_str().filter(|_| plain)?;
    Some(url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}")))
}

/// Whether an address can be that of a certificate: a file of that kind, and nothing that could make it another.
fn is_certificate(url: &Url) -> bool {
    let name = url.path().strip_prefix('/').and_then(|path| path.strip_suffix(".pem")).unwrap_or_default();
    let plain = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte));
    (1..=128).contains(&name.len()) && plain && url.query().is_none() && url.fragment().is_none()
}

/// The hosts of SNS in the regions of these topics.
pub(super) fn hosts(topics: &[String]) -> Vec<String> {
    let hosts: BTreeSet<String> = topics.iter().filter_map(|topic| host_of(topic)).collect();
    hosts.into_iter().collect()
}

/// The host of SNS in the region of a topic: `arn:aws:sns:REGION:ACCOUNT:NAME`.
fn host_of(topic: &str) -> Option<String> {
    let parts: Vec<&str> = topic.split(':').collect();
    let ["arn", partition, "sns", region, account, name] = parts.as_slice() else { return None };
    let end = match *partition {
        "aws" | "aws-us-gov" => "amazonaws.com",
        "aws-cn" => "amazonaws.com.cn",
        _ => return None,
    };
    let is_region = region.len() >= 3
        && region.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
    let is_account = account.len() == 12 && account.bytes().all(|byte| byte.is_ascii_digit());
    (is_region && is_account && !name.is_empty()).then(|| format!("sns.{region}.{end}"))
}

impl Message {
    /// The string to sign: names and values in the order of their bytes, a line each. `None` where it could be that of another
    /// message as well: a line end in a value makes a member of its rest, and `Message` alone is none that something follows which
    /// is not there always.
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

    /// What its text tells, where that is a document.
    fn facts(&self, reader: &Reader) -> Result<Facts, NoFacts> {
        // Text of people may begin as one, and nobody takes it for one. What is JSON must have one meaning alone.
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
        // Each of several records has an event of its own, of which a deny may be.
        let of_kind = (!told.several).then(|| self.kind.as_str().into());
        Ok(Facts {
            delivery: Arc::clone(&self.message_id),
            event: told.event.clone().or(of_kind),
            ..with_repository(told)
        })
    }
}

/// A repository of CodeCommit by its ARN, `arn:aws:codecommit:REGION:ACCOUNT:NAME`, whose parts identify it.
pub(super) fn with_repository(facts: Facts) -> Facts {
    let arn = facts.repository.clone().unwrap_or_default();
    let parts: Vec<&str> = arn.split(':').collect();
    let ["arn", _, "codecommit", region, account, name] = parts.as_slice() else { return facts };
    Facts {
        repository: Some(format!("{account}/{name}").into()),
        repository_id: Some(format!("{region}/{account}/{name}").into()),
        owner: Some((*account).into()),
        ..facts
    }
}

#[cfg(test)]
mod tests;
