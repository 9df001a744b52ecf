//! The senders, and attacks that some of them answer in another way than as forged.

use aws_lc_rs::hmac;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use doorward::config::raw;

use super::{Attack, FORM, JSON, PUBLIC, Proof, Sender, Signature, Unlike};

const GITHUB_BODY: &str = r#"{"ref":"refs/heads/main","before":"0","after":"{nonce}","commits":[],"repository":{"id":1234,"full_name":"acme/app","owner":{"login":"acme"}},"sender":{"id":7,"login":"octocat"}}"#;
const GITLAB_BODY: &str = r#"{"object_kind":"push","event_name":"push","ref":"refs/heads/main","checkout_sha":"{nonce}","user_id":4,"user_username":"tanuki","project_id":15,"project":{"id":15,"path_with_namespace":"group/app"}}"#;
const BITBUCKET_DC_BODY: &str = r#"{"eventKey":"repo:refs_changed","repository":{"id":84,"slug":"app","project":{"key":"ACME"}},"changes":[{"ref":{"id":"refs/heads/main"},"toHash":"{nonce}"}]}"#;

/// HMAC-SHA256 of the body in hex.
const fn hex(header: &'static str, prefix: &'static str) -> Proof {
    Proof::Signed {
        by: Signature::Hmac(&hmac::HMAC_SHA256),
        header,
        prefix,
        base64: false,
        before: |_, _| String::new(),
        time_header: None,
        signs_id: false,
    }
}

/// As in Standard Webhooks and GitLab.
const STANDARD_WEBHOOKS: Proof = Proof::Signed {
    by: Signature::Hmac(&hmac::HMAC_SHA256),
    header: "webhook-signature",
    prefix: "v1,",
    base64: true,
    before: |id, time| format!("{id}.{time}."),
    time_header: Some("webhook-timestamp"),
    signs_id: true,
};

const SLACK: Proof = Proof::Signed {
    by: Signature::Hmac(&hmac::HMAC_SHA256),
    header: "X-Slack-Signature",
    prefix: "v0=",
    base64: false,
    before: |_, time| format!("v0:{time}:"),
    time_header: Some("X-Slack-Request-Timestamp"),
    signs_id: false,
};

/// Common to most.
const SOME: Sender = Sender {
    name: "",
    kind: raw::Sender::Generic,
    settings: "",
    secret: "",
    certificate: false,
    content_type: JSON,
    head: &[],
    id_header: None,
    proof: hex("", ""),
    body: "",
    user: "",
    taken: 202,
    unlike: &[],
};

const fn unlike(attack: Attack, status: u16, why: &'static str) -> Unlike {
    Unlike { attack, status, why }
}

/// For senders that only prove that they know the secret.
const SIGNS_NOTHING: &[Unlike] = &[
    unlike(Attack::Truncated, 400, "it is proven, and a part of it is no JSON"),
    unlike(Attack::ReEncoded, 202, "nothing signs the body, which says the same"),
    unlike(Attack::Reordered, 202, "nothing signs the body, which says the same"),
];

/// For those that disable a hook after 4xx responses.
const SIGNS_NOTHING_AND_COUNTS: &[Unlike] = &[
    unlike(Attack::Truncated, 200, "it is proven, and nobody may end the hook by what cannot be read"),
    unlike(Attack::ReEncoded, 202, "nothing signs the body, which says the same"),
    unlike(Attack::Reordered, 202, "nothing signs the body, which says the same"),
];

/// For SNS.
const SIGNS_VALUES: &[Unlike] = &[
    unlike(Attack::Truncated, 400, "the message has to be read before its signature, which is a member of it"),
    unlike(Attack::ReEncoded, 202, "the values of the members are signed, and not how they are written"),
    unlike(Attack::Reordered, 202, "they are signed in an order of their own"),
];

pub const SENDERS: &[Sender] = &[
    Sender {
        name: "github",
        kind: raw::Sender::Github,
        secret: "a secret of github in the tests",
        head: &["X-GitHub-Event: push"],
        id_header: Some("X-GitHub-Delivery"),
        proof: hex("X-Hub-Signature-256", "sha256="),
        body: GITHUB_BODY,
        user: "webhook:github:repo:1234",
        ..SOME
    },
    Sender {
        name: "gitlab-signed",
        kind: raw::Sender::Gitlab,
        settings: ", require_signature: true",
        secret: "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=",
        head: &["X-Gitlab-Event: Push Hook"],
        id_header: Some("webhook-id"),
        proof: STANDARD_WEBHOOKS,
        body: GITLAB_BODY,
        user: "webhook:gitlab:repo:15",
        ..SOME
    },
    Sender {
        name: "gitlab-token",
        kind: raw::Sender::Gitlab,
        settings: ", identity: lab2",
        secret: "a plain token of gitlab in the tests",
        head: &["X-Gitlab-Event: Push Hook"],
        id_header: Some("Idempotency-Key"),
        proof: Proof::Token { header: "X-Gitlab-Token", value: str::to_owned },
        body: GITLAB_BODY,
        user: "webhook:lab2:repo:15",
        unlike: SIGNS_NOTHING_AND_COUNTS,
        ..SOME
    },
    Sender {
        name: "gitea",
        kind: raw::Sender::Gitea,
        secret: "a secret of gitea in the tests",
        head: &["X-Gitea-Event: push"],
        id_header: Some("X-Gitea-Delivery"),
        proof: hex("X-Gitea-Signature", ""),
        body: GITHUB_BODY,
        user: "webhook:gitea:repo:1234",
        ..SOME
    },
    Sender {
        name: "forgejo",
        kind: raw::Sender::Forgejo,
        secret: "a secret of forgejo in the tests",
        head: &["X-Forgejo-Event: push"],
        id_header: Some("X-Forgejo-Delivery"),
        proof: hex("X-Forgejo-Signature", ""),
        body: GITHUB_BODY,
        user: "webhook:forgejo:repo:1234",
        ..SOME
    },
    Sender {
        name: "gogs",
        kind: raw::Sender::Gogs,
        secret: "a secret of gogs in the tests",
        head: &["X-Gogs-Event: push"],
        id_header: Some("X-Gogs-Delivery"),
        proof: hex("X-Gogs-Signature", ""),
        body: GITHUB_BODY,
        user: "webhook:gogs:repo:1234",
        ..SOME
    },
    Sender {
        name: "bitbucket-cloud",
        kind: raw::Sender::BitbucketCloud,
        secret: "a secret of bitbucket in the tests",
        head: &["X-Event-Key: repo:push"],
        id_header: Some("X-Request-UUID"),
        proof: hex("X-Hub-Signature", "sha256="),
        body: r#"{"push":{"changes":[{"new":{"type":"branch","name":"main","target":{"hash":"{nonce}"}}}]},"repository":{"uuid":"{7}","full_name":"acme/app"}}"#,
        user: "webhook:bitbucket:repo:{7}",
        ..SOME
    },
    Sender {
        name: "bitbucket-dc",
        kind: raw::Sender::BitbucketDataCenter,
        secret: "a secret of bitbucket DC in the tests",
        head: &["X-Event-Key: repo:refs_changed"],
        id_header: Some("X-Request-Id"),
        proof: hex("X-Hub-Signature", "sha256="),
        body: BITBUCKET_DC_BODY,
        user: "webhook:bitbucket-dc:repo:84",
        ..SOME
    },
    Sender {
        name: "bitbucket-dc-certificate",
        kind: raw::Sender::BitbucketDataCenter,
        settings: ", identity: dc2, client_certificate: {names: [git.example.com]}",
        secret: "a secret of bitbucket DC beside its certificate",
        certificate: true,
        head: &["X-Event-Key: repo:refs_changed"],
        id_header: Some("X-Request-Id"),
        proof: hex("X-Hub-Signature", "sha256="),
        body: BITBUCKET_DC_BODY,
        user: "webhook:dc2:repo:84",
        ..SOME
    },
    Sender {
        name: "standard-webhooks",
        kind: raw::Sender::StandardWebhooks,
        settings: ", facts: {repository_id: /repo}",
        secret: "whsec_ICEiIyQlJicoKSorLC0uLzAxMjM0NTY3ODk6Ozw9Pj8=",
        id_header: Some("svix-id"),
        proof: Proof::Signed {
            by: Signature::Hmac(&hmac::HMAC_SHA256),
            header: "svix-signature",
            prefix: "v1,",
            base64: true,
            before: |id, time| format!("{id}.{time}."),
            time_header: Some("svix-timestamp"),
            signs_id: true,
        },
        body: r#"{"type":"deploy","repo":"app-1","nonce":"{nonce}"}"#,
        user: "webhook:standard-webhooks:repo:app-1",
        ..SOME
    },
    Sender {
        name: "standard-ed25519",
        kind: raw::Sender::StandardWebhooks,
        settings: ", facts: {repository_id: /repo}",
        secret: PUBLIC,
        id_header: Some("webhook-id"),
        proof: Proof::Signed {
            by: Signature::Ed25519,
            header: "webhook-signature",
            prefix: "v1a,",
            base64: true,
            before: |id, time| format!("{id}.{time}."),
            time_header: Some("webhook-timestamp"),
            signs_id: true,
        },
        body: r#"{"type":"deploy","repo":"app-1","nonce":"{nonce}"}"#,
        user: "webhook:standard-ed25519:repo:app-1",
        ..SOME
    },
    Sender {
        name: "standard-cloudevents",
        kind: raw::Sender::StandardWebhooks,
        settings: ", facts: {repository_id: /data/repo}",
        secret: "whsec_QEFCQ0RFRkdISUpLTE1OT1BRUlNUVVZXWFlaW1xdXl8=",
        content_type: "Content-Type: application/cloudevents+json",
        id_header: Some("webhook-id"),
        proof: STANDARD_WEBHOOKS,
        body: r#"{"specversion":"1.0","id":"{nonce}","source":"/deploys","type":"deploy","data":{"repo":"app-1"}}"#,
        user: "webhook:standard-cloudevents:repo:app-1",
        ..SOME
    },
    Sender {
        name: "standard-cdevents",
        kind: raw::Sender::StandardWebhooks,
        settings: ", facts: {repository_id: /data/subject/content/repository/id}",
        secret: "whsec_YGFiY2RlZmdoaWprbG1ub3BxcnN0dXZ3eHl6e3x9fn8=",
        content_type: "Content-Type: application/cloudevents+json; charset=utf-8",
        id_header: Some("webhook-id"),
        proof: STANDARD_WEBHOOKS,
        body: r#"{"specversion":"1.0","id":"{nonce}","source":"/forge","type":"dev.cdevents.change.merged.0.2.0","datacontenttype":"application/json","data":{"context":{"version":"0.4.1","id":"{nonce}","source":"/forge","type":"dev.cdevents.change.merged.0.2.0"},"subject":{"id":"change-7","content":{"repository":{"id":"app-1"}}}}}"#,
        user: "webhook:standard-cdevents:repo:app-1",
        ..SOME
    },
    Sender {
        name: "plain",
        kind: raw::Sender::Generic,
        settings: ", signature: {header: X-Secret, plain: true, id_header: X-Id}, facts: {repository_id: /repo}",
        secret: "a plain secret of something in the tests",
        id_header: Some("X-Id"),
        proof: Proof::Token { header: "X-Secret", value: str::to_owned },
        body: r#"{"kind":"deploy","repo":"app-1","nonce":"{nonce}"}"#,
        user: "webhook:plain:repo:app-1",
        unlike: SIGNS_NOTHING,
        ..SOME
    },
    Sender {
        name: "registry",
        kind: raw::Sender::Generic,
        settings: ", signature: {header: X-Registry-Secret, plain: true}, \
                   facts: {repository_id: '/events/*/target/repository'}",
        secret: "a secret of the registry in the tests",
        content_type: "Content-Type: application/vnd.docker.distribution.events.v1+json",
        proof: Proof::Token { header: "X-Registry-Secret", value: str::to_owned },
        body: r#"{"events":[{"id":"{nonce}","action":"push","target":{"repository":"app-1","tag":"v1"},"actor":{"name":"ada"}}]}"#,
        user: "webhook:registry:repo:app-1",
        unlike: SIGNS_NOTHING,
        ..SOME
    },
    Sender {
        name: "generic",
        kind: raw::Sender::Generic,
        settings: ", signature: {header: X-Sign, prefix: 'v0:', algorithm: sha512, encoding: base64, \
                   id_header: X-Id, timestamp_header: X-Time}, facts: {event: /kind, repository_id: /repo}",
        secret: "a secret of something in the tests",
        id_header: Some("X-Id"),
        proof: Proof::Signed {
            by: Signature::Hmac(&hmac::HMAC_SHA512),
            header: "X-Sign",
            prefix: "v0:",
            base64: true,
            before: |_, time| format!("{time}."),
            time_header: Some("X-Time"),
            signs_id: false,
        },
        body: r#"{"kind":"deploy","repo":"app-1","nonce":"{nonce}"}"#,
        user: "webhook:generic:repo:app-1",
        ..SOME
    },
    Sender {
        name: "azure-devops",
        kind: raw::Sender::AzureDevops,
        secret: "doorward:a password of azure in the tests",
        proof: Proof::Token { header: "Authorization", value: |secret| format!("Basic {}", STANDARD.encode(secret)) },
        body: r#"{"id":"{nonce}","eventType":"git.push","resource":{"refUpdates":[{"name":"refs/heads/main"}],"repository":{"id":"278d5cd2","name":"app"}}}"#,
        user: "webhook:azure-devops:repo:278d5cd2",
        unlike: SIGNS_NOTHING_AND_COUNTS,
        ..SOME
    },
    Sender {
        name: "slack",
        kind: raw::Sender::Slack,
        secret: "a secret of slack in the tests",
        proof: SLACK,
        body: r#"{"type":"event_callback","event_id":"{nonce}","team_id":"T1","event":{"type":"app_mention","user":"U1"}}"#,
        user: "webhook:slack:hook:slack",
        ..SOME
    },
    Sender {
        name: "slack-command",
        kind: raw::Sender::Slack,
        settings: ", identity: slack2",
        secret: "a secret of commands of slack in the tests",
        content_type: FORM,
        proof: SLACK,
        body: "trigger_id={nonce}&command=%2Fdeploy&team_id=T1&user_id=U1&text=to+production",
        user: "webhook:slack2:hook:slack-command",
        taken: 200,
        ..SOME
    },
    Sender {
        name: "sns",
        kind: raw::Sender::AwsSns,
        settings: ", sns: {topics: ['arn:aws:sns:us-east-1:123456789012:commits'], hosts: ['{sns}'], ca: sns.pem}",
        content_type: "Content-Type: text/plain; charset=UTF-8",
        head: &["X-Amz-Sns-Message-Type: Notification"],
        proof: Proof::Member { name: "Signature" },
        body: r#"{"Type":"Notification","MessageId":"{nonce}","TopicArn":"arn:aws:sns:us-east-1:123456789012:commits","Message":"deployed","Timestamp":"{time}","SignatureVersion":"2","SigningCertURL":"https://{sns}/good.pem"}"#,
        user: "webhook:aws-sns:hook:sns",
        unlike: SIGNS_VALUES,
        ..SOME
    },
    Sender {
        name: "harbor",
        kind: raw::Sender::Harbor,
        secret: "a secret of harbor in the tests",
        proof: Proof::Token { header: "Authorization", value: str::to_owned },
        body: r#"{"type":"PUSH_ARTIFACT","nonce":"{nonce}","event_data":{"repository":{"repo_full_name":"acme/app","namespace":"acme"}}}"#,
        user: "webhook:harbor:hook:harbor",
        unlike: SIGNS_NOTHING,
        ..SOME
    },
    Sender {
        name: "docker-hub",
        kind: raw::Sender::DockerHub,
        secret: "a-secret-of-docker-hub-in-the-tests",
        proof: Proof::Query { name: "secret" },
        body: r#"{"callback_url":"{nonce}","push_data":{"tag":"main"},"repository":{"repo_name":"acme/app","namespace":"acme"}}"#,
        user: "webhook:docker-hub:hook:docker-hub",
        unlike: SIGNS_NOTHING,
        ..SOME
    },
];
