//! The senders as they are in the world: how each signs, written here once more and apart from the program.

use aws_lc_rs::{hmac, signature::Ed25519KeyPair};
use base64::{Engine as _, engine::general_purpose::STANDARD};

use crate::{
    fixture::Change,
    harness::{Answer, Doorward, Raw, Recorded, Reply, Upstream, now, unique, until},
};

/// A sender of webhooks.
#[derive(Clone, Copy)]
pub struct Sender {
    /// The name of its entry, and the path of its route.
    pub name: &'static str,
    /// Its entry besides name and secrets, in YAML flow style.
    pub entry: &'static str,
    pub secret: &'static str,
    /// The header lines that all its deliveries have, besides the content type.
    pub head: &'static [&'static str],
    /// The header with the id of the delivery; none where the body tells it, or stands for it.
    pub id_header: Option<&'static str>,
    pub proof: Proof,
    /// `{nonce}` stands for something that no other delivery has.
    pub body: &'static str,
    /// The identity that a delivery gets.
    pub user: &'static str,
}

/// How it proves that it knows the secret.
#[derive(Clone, Copy)]
pub enum Proof {
    Signed {
        by: Signature,
        header: &'static str,
        prefix: &'static str,
        base64: bool,
        /// What is signed before the body.
        before: fn(id: &str, time: u64) -> String,
        time_header: Option<&'static str>,
        signs_id: bool,
    },
    /// The secret itself in a header, as this makes it.
    Token { header: &'static str, value: fn(secret: &str) -> String },
    /// The secret itself in the address.
    Query { name: &'static str },
}

#[derive(Clone, Copy)]
pub enum Signature {
    Hmac(&'static hmac::Algorithm),
    Ed25519,
}

/// The seeds of two key pairs (RFC 8032 section 7.1, tests 1 and 2), and the public key of the first as senders configure it.
const SEEDS: [[u8; 32]; 2] = [
    *b"\x9d\x61\xb1\x9d\xef\xfd\x5a\x60\xba\x84\x4a\xf4\x92\xec\x2c\xc4\x44\x49\xc5\x69\x7b\x32\x69\x19\x70\x3b\xac\x03\x1c\xae\x7f\x60",
    *b"\x4c\xcd\x08\x9b\x28\xff\x96\xda\x9d\xb6\xc3\x46\xec\x11\x4e\x0f\x5b\x8a\x31\x9f\x35\xab\xa6\x24\xda\x8c\xf6\xed\x4f\xb8\xa6\xfb",
];
const PUBLIC: &str = "whpk_11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=";

impl Signature {
    /// The tag over `signed` by who configured `secret`; of an unknown public key, by somebody else.
    fn tag(self, secret: &str, signed: &[u8]) -> Vec<u8> {
        match self {
            Self::Ed25519 => {
                let pair = Ed25519KeyPair::from_seed_unchecked(&SEEDS[usize::from(secret != PUBLIC)]).unwrap();
                pair.sign(signed).as_ref().to_vec()
            }
            Self::Hmac(algorithm) => {
                let key = match secret.strip_prefix("whsec_") {
                    Some(encoded) => STANDARD.decode(encoded).unwrap(),
                    None => secret.as_bytes().to_vec(),
                };
                hmac::sign(&hmac::Key::new(*algorithm, &key), signed).as_ref().to_vec()
            }
        }
    }
}

/// A delivery that can be spoiled before it is sent.
#[derive(Clone)]
pub struct Delivery {
    pub lines: Vec<String>,
    /// The name and the value, in a header or in the address; without a name there is none.
    pub proof: (String, String),
    /// Another value that stands before that of the proof.
    pub before: Option<String>,
    pub body: Vec<u8>,
}

impl Sender {
    pub fn signs_body(&self) -> bool {
        matches!(self.proof, Proof::Signed { .. })
    }

    /// What a genuine delivery hears that cannot be read: 200 where the sender would switch its hook off.
    pub fn unreadable(&self) -> u16 {
        let counts = ["sender: gitlab", "sender: bitbucket_data_center", "sender: azure_devops"];
        if counts.iter().any(|sender| self.entry.starts_with(sender)) { 200 } else { 400 }
    }

    pub fn signs_id(&self) -> bool {
        matches!(self.proof, Proof::Signed { signs_id: true, .. })
    }

    pub fn has_time(&self) -> bool {
        matches!(self.proof, Proof::Signed { time_header: Some(_), .. })
    }

    pub fn new_body(&self) -> String {
        self.body.replace("{nonce}", &unique())
    }

    /// The same sender with another secret.
    pub fn with_secret(&self, secret: &'static str) -> Self {
        Self { secret, ..*self }
    }

    /// A genuine delivery of a body of its own.
    pub fn delivery(&self) -> Delivery {
        self.delivery_of(self.new_body().as_bytes(), &unique(), now())
    }

    pub fn delivery_of(&self, body: &[u8], id: &str, time: u64) -> Delivery {
        let mut lines: Vec<String> = self.head.iter().map(|line| (*line).to_owned()).collect();
        lines.extend(self.id_header.map(|header| format!("{header}: {id}")));
        let proof = match &self.proof {
            Proof::Token { header, value } => ((*header).to_owned(), value(self.secret)),
            Proof::Query { name } => ((*name).to_owned(), self.secret.to_owned()),
            Proof::Signed { by, header, prefix, base64, before, time_header, .. } => {
                lines.extend(time_header.map(|header| format!("{header}: {time}")));
                let tag = by.tag(self.secret, &[before(id, time).as_bytes(), body].concat());
                let text = if *base64 { STANDARD.encode(tag) } else { crate::harness::hex(tag) };
                ((*header).to_owned(), format!("{prefix}{text}"))
            }
        };
        Delivery { lines, proof, before: None, body: body.to_vec() }
    }
}

impl Delivery {
    /// The head with this content type and these framing lines.
    pub fn head(&self, sender: &Sender, content_type: &str, framing: &[&str]) -> String {
        let (name, value) = &self.proof;
        let values = self.before.iter().chain([value]).filter(|_| !name.is_empty());
        let (query, proof): (Vec<String>, Vec<String>) = match sender.proof {
            Proof::Query { .. } => (values.map(|value| format!("{name}={value}")).collect(), Vec::new()),
            _ => (Vec::new(), values.map(|value| format!("{name}: {value}")).collect()),
        };
        let path = format!("/{}?{}", sender.name, query.join("&"));
        let mut lines = vec![
            format!("POST {} HTTP/1.1", path.trim_end_matches('?')),
            "Host: hooks.test".to_owned(),
            content_type.to_owned(),
        ];
        lines.extend(self.lines.iter().cloned().chain(proof));
        lines.extend(framing.iter().map(|line| (*line).to_owned()));
        lines.join("\r\n") + "\r\n\r\n"
    }

    pub async fn open(&self, door: &Door, sender: &Sender, framing: &[&str]) -> Raw {
        let mut raw = door.doorward.raw().await;
        raw.send(self.head(sender, JSON, framing)).await;
        raw
    }

    pub async fn send(&self, door: &Door, sender: &Sender) -> Answer {
        self.send_as(door, sender, JSON, &[]).await
    }

    pub async fn send_as(&self, door: &Door, sender: &Sender, content_type: &str, more: &[&str]) -> Answer {
        let length = format!("Content-Length: {}", self.body.len());
        let mut framing = vec![length.as_str()];
        framing.extend(more);
        let mut raw = door.doorward.raw().await;
        raw.send([self.head(sender, content_type, &framing).as_bytes(), &self.body].concat()).await;
        raw.answer().await
    }
}

pub const JSON: &str = "Content-Type: application/json";

/// Doorward with a route for each sender, in front of an EventListener.
pub struct Door {
    pub doorward: Doorward,
    pub upstream: Upstream,
}

/// The largest body that the routes take.
pub const MAX_BODY: usize = 64 << 10;

impl Door {
    /// Every delivery is forwarded while its sender waits.
    pub async fn open() -> Self {
        Self::with(false, |yaml| yaml).await
    }

    /// Every delivery is stored first.
    pub async fn holding() -> Self {
        Self::with(true, |yaml| yaml).await
    }

    /// With these entries of `limits` besides, each begun by a comma.
    pub async fn with_limits(limits: &str) -> Self {
        Self::with(false, |yaml| {
            yaml.change("connections_per_address: 5000", &format!("connections_per_address: 5000{limits}"))
        })
        .await
    }

    /// Whose configuration is changed so, and where deliveries are stored first or not.
    pub async fn with(hold: bool, change: impl FnOnce(String) -> String) -> Self {
        let upstream = Upstream::scripted(|_| Reply::json(202, r#"{"eventListener":"el","eventID":"e-1"}"#)).await;
        let dir = tempfile::tempdir().unwrap();
        let (mut webhooks, mut routes) = (String::new(), String::new());
        for sender in SENDERS {
            let Sender { name, entry, secret, .. } = sender;
            let hold = hold && *name != "slack";
            std::fs::write(dir.path().join(name), secret).unwrap();
            webhooks.push_str(&format!(
                "  - {{name: {name}, {entry}, hold: {hold}, secrets: [{{secret: {{file: {name}}}}}], max_body: {MAX_BODY}}}\n"
            ));
            routes.push_str(&format!(
                "  - {{name: {name}, kind: webhook, hosts: [hooks.test], paths: [/{name}], schemes: [webhook], \
                 webhook: {name}, upstream: el}}\n"
            ));
        }
        let names = SENDERS.iter().map(|sender| sender.name).collect::<Vec<_>>().join(", ");
        let yaml = format!(
            "
listeners: [{{name: public, address: 127.0.0.1:0}}]
upstreams: [{{name: el, url: '{}'}}]
webhooks:
{webhooks}
routes:
{routes}
rules: [{{id: all, on: {{routes: [{names}]}}, who: {{webhooks: [{names}]}}, do: allow}}]
store: {{path: doorward.redb}}
audit: {{sink: {{file: {{path: audit.jsonl}}}}}}
admin: {{address: 127.0.0.1:0}}
limits: {{drain_accept: 0, connections_per_address: 5000}}
",
            upstream.url()
        );
        let doorward = Doorward::start_in(dir, &change(yaml)).await;
        Self { doorward, upstream }
    }

    /// Waits until so many deliveries have arrived, and gives them.
    pub async fn arrived(&self, count: usize) -> Vec<Recorded> {
        until(async || self.upstream.requests().len() >= count).await;
        self.upstream.take()
    }
}

/// The sender of this name.
pub fn sender(name: &str) -> &'static Sender {
    SENDERS.iter().find(|sender| sender.name == name).unwrap()
}

const GITHUB_BODY: &str = r#"{"ref":"refs/heads/main","before":"0","after":"{nonce}","commits":[],"repository":{"id":1234,"full_name":"acme/app","owner":{"login":"acme"}},"sender":{"id":7,"login":"octocat"}}"#;
const GITLAB_BODY: &str = r#"{"object_kind":"push","event_name":"push","ref":"refs/heads/main","checkout_sha":"{nonce}","user_id":4,"user_username":"tanuki","project_id":15,"project":{"id":15,"path_with_namespace":"group/app"}}"#;

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

pub const SENDERS: &[Sender] = &[
    Sender {
        name: "github",
        entry: "sender: github",
        secret: "a secret of github in the tests",
        head: &["X-GitHub-Event: push"],
        id_header: Some("X-GitHub-Delivery"),
        proof: hex("X-Hub-Signature-256", "sha256="),
        body: GITHUB_BODY,
        user: "webhook:github:repo:1234",
    },
    Sender {
        name: "gitlab-signed",
        entry: "sender: gitlab, require_signature: true",
        secret: "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=",
        head: &["X-Gitlab-Event: Push Hook"],
        id_header: Some("webhook-id"),
        proof: Proof::Signed {
            by: Signature::Hmac(&hmac::HMAC_SHA256),
            header: "webhook-signature",
            prefix: "v1,",
            base64: true,
            before: |id, time| format!("{id}.{time}."),
            time_header: Some("webhook-timestamp"),
            signs_id: true,
        },
        body: GITLAB_BODY,
        user: "webhook:gitlab:repo:15",
    },
    Sender {
        name: "gitlab-token",
        entry: "sender: gitlab, identity: lab2",
        secret: "a plain token of gitlab in the tests",
        head: &["X-Gitlab-Event: Push Hook"],
        id_header: Some("Idempotency-Key"),
        proof: Proof::Token { header: "X-Gitlab-Token", value: str::to_owned },
        body: GITLAB_BODY,
        user: "webhook:lab2:repo:15",
    },
    Sender {
        name: "gitea",
        entry: "sender: gitea",
        secret: "a secret of gitea in the tests",
        head: &["X-Gitea-Event: push"],
        id_header: Some("X-Gitea-Delivery"),
        proof: hex("X-Gitea-Signature", ""),
        body: GITHUB_BODY,
        user: "webhook:gitea:repo:1234",
    },
    Sender {
        name: "forgejo",
        entry: "sender: forgejo",
        secret: "a secret of forgejo in the tests",
        head: &["X-Forgejo-Event: push"],
        id_header: Some("X-Forgejo-Delivery"),
        proof: hex("X-Forgejo-Signature", ""),
        body: GITHUB_BODY,
        user: "webhook:forgejo:repo:1234",
    },
    Sender {
        name: "gogs",
        entry: "sender: gogs",
        secret: "a secret of gogs in the tests",
        head: &["X-Gogs-Event: push"],
        id_header: Some("X-Gogs-Delivery"),
        proof: hex("X-Gogs-Signature", ""),
        body: GITHUB_BODY,
        user: "webhook:gogs:repo:1234",
    },
    Sender {
        name: "bitbucket-cloud",
        entry: "sender: bitbucket_cloud",
        secret: "a secret of bitbucket in the tests",
        head: &["X-Event-Key: repo:push"],
        id_header: Some("X-Request-UUID"),
        proof: hex("X-Hub-Signature", "sha256="),
        body: r#"{"push":{"changes":[{"new":{"type":"branch","name":"main","target":{"hash":"{nonce}"}}}]},"repository":{"uuid":"{7}","full_name":"acme/app"}}"#,
        user: "webhook:bitbucket:repo:{7}",
    },
    Sender {
        name: "bitbucket-dc",
        entry: "sender: bitbucket_data_center",
        secret: "a secret of bitbucket DC in the tests",
        head: &["X-Event-Key: repo:refs_changed"],
        id_header: Some("X-Request-Id"),
        proof: hex("X-Hub-Signature", "sha256="),
        body: r#"{"eventKey":"repo:refs_changed","repository":{"id":84,"slug":"app","project":{"key":"ACME"}},"changes":[{"ref":{"id":"refs/heads/main"},"toHash":"{nonce}"}]}"#,
        user: "webhook:bitbucket-dc:repo:84",
    },
    Sender {
        name: "standard-webhooks",
        entry: "sender: standard_webhooks, facts: {repository_id: /repo}",
        secret: "whsec_ICEiIyQlJicoKSorLC0uLzAxMjM0NTY3ODk6Ozw9Pj8=",
        head: &[],
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
    },
    Sender {
        name: "standard-ed25519",
        entry: "sender: standard_webhooks, facts: {repository_id: /repo}",
        secret: PUBLIC,
        head: &[],
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
    },
    Sender {
        name: "plain",
        entry: "sender: generic, signature: {header: X-Secret, plain: true, id_header: X-Id}, facts: {repository_id: /repo}",
        secret: "a plain secret of something in the tests",
        head: &[],
        id_header: Some("X-Id"),
        proof: Proof::Token { header: "X-Secret", value: str::to_owned },
        body: r#"{"kind":"deploy","repo":"app-1","nonce":"{nonce}"}"#,
        user: "webhook:plain:repo:app-1",
    },
    Sender {
        name: "generic",
        entry: "sender: generic, signature: {header: X-Sign, prefix: 'v0:', algorithm: sha512, encoding: base64, \
                id_header: X-Id, timestamp_header: X-Time}, facts: {event: /kind, repository_id: /repo}",
        secret: "a secret of something in the tests",
        head: &[],
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
    },
    Sender {
        name: "azure-devops",
        entry: "sender: azure_devops",
        secret: "doorward:a password of azure in the tests",
        head: &[],
        id_header: None,
        proof: Proof::Token { header: "Authorization", value: |secret| format!("Basic {}", STANDARD.encode(secret)) },
        body: r#"{"id":"{nonce}","eventType":"git.push","resource":{"refUpdates":[{"name":"refs/heads/main"}],"repository":{"id":"278d5cd2","name":"app"}}}"#,
        user: "webhook:azure-devops:repo:278d5cd2",
    },
    Sender {
        name: "slack",
        entry: "sender: slack",
        secret: "a secret of slack in the tests",
        head: &[],
        id_header: None,
        proof: Proof::Signed {
            by: Signature::Hmac(&hmac::HMAC_SHA256),
            header: "X-Slack-Signature",
            prefix: "v0=",
            base64: false,
            before: |_, time| format!("v0:{time}:"),
            time_header: Some("X-Slack-Request-Timestamp"),
            signs_id: false,
        },
        body: r#"{"type":"event_callback","event_id":"{nonce}","team_id":"T1","event":{"type":"app_mention","user":"U1"}}"#,
        user: "webhook:slack:hook:slack",
    },
    Sender {
        name: "harbor",
        entry: "sender: harbor",
        secret: "a secret of harbor in the tests",
        head: &[],
        id_header: None,
        proof: Proof::Token { header: "Authorization", value: str::to_owned },
        body: r#"{"type":"PUSH_ARTIFACT","nonce":"{nonce}","event_data":{"repository":{"repo_full_name":"acme/app","namespace":"acme"}}}"#,
        user: "webhook:harbor:hook:harbor",
    },
    Sender {
        name: "docker-hub",
        entry: "sender: docker_hub",
        secret: "a-secret-of-docker-hub-in-the-tests",
        head: &[],
        id_header: None,
        proof: Proof::Query { name: "secret" },
        body: r#"{"callback_url":"{nonce}","push_data":{"tag":"main"},"repository":{"repo_name":"acme/app","namespace":"acme"}}"#,
        user: "webhook:docker-hub:hook:docker-hub",
    },
];
