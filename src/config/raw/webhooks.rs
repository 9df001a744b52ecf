//! `webhooks`: senders, how their deliveries are verified, and which of them are held.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::config::values::{SecretSource, Size, Span};

/// A sender of webhooks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Webhook {
    /// The name that routes use for it.
    pub name: String,
    /// The kind of sender.
    pub sender: Sender,
    /// Secrets; a delivery may be signed with any of them. Every sender needs at least one, except `aws_sns`, which has
    /// none.
    #[serde(default)]
    pub secrets: Vec<WebhookSecret>,
    /// `gitlab` only: refuse deliveries that have only the plain token. Default: off.
    #[serde(default)]
    pub require_signature: bool,
    /// `bitbucket_data_center` only: answer its connection test with 200 even if it is not signed, as older versions do
    /// not sign it. Nothing is forwarded. Default: off.
    #[serde(default)]
    pub unsigned_pings: bool,
    /// The client certificate that deliveries must present in addition to their signature or secret, on a listener with
    /// `client_ca`. It does not work through a proxy that terminates TLS.
    #[serde(default)]
    pub client_certificate: Option<SenderCertificate>,
    /// `aws_sns` only: the topics whose messages are accepted.
    #[serde(default)]
    pub sns: Option<Sns>,
    /// `generic` only: how deliveries are signed.
    #[serde(default)]
    pub signature: Option<GenericSignature>,
    /// `generic`, `standard_webhooks` and `aws_sns` only: for each fact, a JSON pointer to its place in the body (for
    /// `aws_sns`: in its `Message`). `*` in a pointer is the element of a list that has only one.
    #[serde(default)]
    pub facts: FactPointers,
    /// How long a delivery id is remembered. Default: 3 d.
    #[serde(default)]
    pub replay_window: Option<Span>,
    /// How often an accepted delivery is forwarded again when it arrives again at least a minute later, as when
    /// somebody redelivers it at the sender. Anyone who has seen the delivery can send it again, too. Default: 0;
    /// repetitions are answered with 200.
    #[serde(default)]
    pub redeliveries: u8,
    /// Whether a delivery with the same body as an accepted one counts as its repetition, whatever its id. `false` lets
    /// a sender send the same body several times, each time with an id of its own: for `generic` any delivery, for
    /// `github` those of events that have no time, such as `workflow_dispatch`, for `gitea`, `forgejo`, `gogs` and
    /// `bitbucket_data_center` any, for `bitbucket_cloud` those of `repo:push`, for others none. The id is not signed,
    /// so anyone who has seen such a delivery can send it again. Default: `true`.
    #[serde(default)]
    pub unique_bodies: Option<bool>,
    /// The largest body.
    /// Default: 26 MiB for GitHub and GitLab, 512 KiB for Bitbucket Cloud, Slack and Amazon SNS, 10 MiB for others.
    #[serde(default)]
    pub max_body: Option<Size>,
    /// How long a response may take, from the arrival of the delivery. After that the sender gets 503, while it is
    /// still waiting.
    /// Default: 8 s, for Gitea, Forgejo and Gogs 4 s, for Slack 2.5 s.
    #[serde(default)]
    pub answer_within: Option<Span>,
    /// Store each delivery before the sender gets 202, and try to deliver it until its EventListener accepts it. Not
    /// for `slack`, which shows the response to people. Default: on for senders that never retry (GitHub, GitLab,
    /// Gitea, Forgejo, Gogs, Bitbucket Data Center), off for the others.
    #[serde(default)]
    pub hold: Option<bool>,
    /// Limits on what is held, if deliveries are held.
    #[serde(default)]
    pub held: Option<HeldLimits>,
    /// The name in the identity `webhook:NAME:repo:NUMBER`. Default: the kind of sender; for `generic` and
    /// `standard_webhooks` the name of the entry.
    #[serde(default)]
    pub identity: Option<String>,
}

/// Limits on the held deliveries of a sender.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct HeldLimits {
    /// How long delivery is attempted before it is parked for an operator.
    pub try_for: Span,
    /// How many deliveries may be held, including parked ones. Beyond, the sender gets 503.
    pub max: u32,
    /// How many bytes of deliveries may be held.
    pub max_size: Size,
}

impl Default for HeldLimits {
    /// A day: an EventListener that fails overnight is repaired in the morning.
    fn default() -> Self {
        Self { try_for: Span::from_secs(86_400), max: 10_000, max_size: Size::mib(1024) }
    }
}

/// A kind of webhook sender.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Sender {
    /// GitHub and GitHub Enterprise (`X-Hub-Signature-256`).
    Github,
    /// GitLab: plain token (`X-Gitlab-Token`) or signing token (`webhook-signature`).
    Gitlab,
    /// Gitea (`X-Gitea-Signature`).
    Gitea,
    /// Forgejo (`X-Forgejo-Signature`).
    Forgejo,
    /// Gogs (`X-Gogs-Signature`).
    Gogs,
    /// Bitbucket Cloud (`X-Hub-Signature`).
    BitbucketCloud,
    /// Bitbucket Data Center (`X-Hub-Signature`).
    BitbucketDataCenter,
    /// Azure DevOps, which does not sign: the secret is the `USER:PASSWORD` of its Basic authentication.
    AzureDevops,
    /// Slash commands and events of Slack (`X-Slack-Signature`).
    Slack,
    /// Amazon SNS, such as events of CodeCommit. It has no secret; `sns` lists the topics.
    AwsSns,
    /// Harbor, which does not sign: the secret is the `Authorization` header that it is configured to send.
    Harbor,
    /// Docker Hub, which does not sign: the secret is the end of its address, `?secret=...`.
    DockerHub,
    /// Any sender that signs as Standard Webhooks or Svix do; the body may be a CloudEvent.
    StandardWebhooks,
    /// Any sender that puts an HMAC of the body, or the secret itself, into a header.
    Generic,
}

impl Sender {
    pub const ALL: [Self; 14] = [
        Self::Github,
        Self::Gitlab,
        Self::Gitea,
        Self::Forgejo,
        Self::Gogs,
        Self::BitbucketCloud,
        Self::BitbucketDataCenter,
        Self::AzureDevops,
        Self::Slack,
        Self::AwsSns,
        Self::Harbor,
        Self::DockerHub,
        Self::StandardWebhooks,
        Self::Generic,
    ];
}

/// Topics of Amazon SNS. Signatures are verified only with certificates from `hosts`, and subscriptions are confirmed
/// only there.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Sns {
    /// ARNs, such as `arn:aws:sns:us-east-1:123456789012:commits`.
    pub topics: Vec<String>,
    /// Accept signature version 1, which is SHA-1. Set the topic's attribute `SignatureVersion` to 2 instead. Default: off.
    #[serde(default)]
    pub allow_sha1: bool,
    /// `host` or `host:port`, over TLS. Default: `sns.REGION.amazonaws.com` for the regions of the topics.
    #[serde(default)]
    pub hosts: Vec<String>,
    /// Certificate authorities (CAs) that these hosts are verified against, instead of the system's.
    #[serde(default)]
    pub ca: Option<PathBuf>,
}

/// The client certificates of a sender: any that has one of the names or one of the fingerprints.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SenderCertificate {
    /// DNS names of the certificate (subject alternative names), such as `bitbucket.example.com`.
    #[serde(default)]
    pub names: Vec<String>,
    /// SHA-256 of the certificate, in hex, as `openssl x509 -noout -fingerprint -sha256` prints it.
    #[serde(default)]
    pub sha256: Vec<String>,
}

/// A secret of a sender, with the period in which it is accepted.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct WebhookSecret {
    /// The secret itself.
    pub secret: SecretSource,
    /// Accepted only from this time on (RFC 3339).
    #[serde(default)]
    pub not_before: Option<String>,
    /// Accepted only until this time (RFC 3339).
    #[serde(default)]
    pub not_after: Option<String>,
}

/// The signature of a `generic` sender.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct GenericSignature {
    /// The header that carries the signature.
    pub header: String,
    /// The text before the signature, such as `sha256=`.
    #[serde(default)]
    pub prefix: String,
    /// The header carries the secret itself, which proves nothing about the body. Default: off.
    #[serde(default)]
    pub plain: bool,
    /// The hash of the HMAC. Default: `sha256`.
    #[serde(default)]
    pub algorithm: Option<HmacAlgorithm>,
    /// How the HMAC is written. Default: `hex`.
    #[serde(default)]
    pub encoding: Option<SignatureEncoding>,
    /// The header that carries the id of the delivery. Without it deliveries are identified by their bodies.
    #[serde(default)]
    pub id_header: Option<String>,
    /// The header with the time of signing in Unix seconds. The signed bytes are then `TIME.BODY`.
    #[serde(default)]
    pub timestamp_header: Option<String>,
    /// How far that time may be off. Default: 5 m.
    #[serde(default)]
    pub tolerance: Option<Span>,
}

/// The places in a body of the facts that rules use: JSON pointers, such as `/repository/id`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct FactPointers {
    /// The event, such as `push`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub event: Option<String>,
    /// What happened to the subject of the event, such as `opened`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub action: Option<String>,
    /// The name of the repository: `owner/name`, or the name alone beside `owner`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub repository: Option<String>,
    /// The number of the repository, or another permanent identifier: `repositories` in rules.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub repository_id: Option<String>,
    /// The owner of the repository.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    /// The bare name of a branch, taken literally: `refs/heads/main` is not `main` to a rule. Use `ref` for such a full
    /// ref.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub branch: Option<String>,
    /// The bare name of a tag, taken literally.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tag: Option<String>,
    /// A full ref, which is a branch or a tag: for `refs/heads/main` the branch is `main`, for `refs/tags/v1` the tag
    /// is `v1`; any other text is neither. It is used only if there is nothing at `branch` and `tag`.
    #[serde(rename = "ref", skip_serializing_if = "Option::is_none")]
    pub reference: Option<String>,
    /// The commit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub commit: Option<String>,
    /// The login of the person who caused it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub actor: Option<String>,
    /// The number of the person who caused it: `senders` in rules.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub actor_id: Option<String>,
}

/// The hash of an HMAC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum HmacAlgorithm {
    #[default]
    Sha256,
    Sha384,
    Sha512,
}

/// How bytes are written as text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum SignatureEncoding {
    #[default]
    Hex,
    Base64,
}
