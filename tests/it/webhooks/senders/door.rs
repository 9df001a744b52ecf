//! Doorward with all senders.

use super::{SENDERS, Sender, sns};
use crate::{
    fixture::Change,
    harness::{Authority, Doorward, Pair, Raw, Recorded, Reply, Upstream, until},
};

/// Doorward with a route for each sender, in front of an EventListener.
pub struct Door {
    pub doorward: Doorward,
    pub upstream: Upstream,
    authority: Authority,
    /// The certificate for senders that need one.
    certificate: Pair,
}

/// The largest body that the routes accept.
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

    /// With these further `limits`, each preceded by a comma.
    pub async fn with_limits(limits: &str) -> Self {
        Self::with(false, |yaml| {
            yaml.change("connections_per_address: 5000", &format!("connections_per_address: 5000{limits}"))
        })
        .await
    }

    /// With a changed configuration. With `hold`, deliveries are stored first.
    pub async fn with(hold: bool, change: impl FnOnce(String) -> String) -> Self {
        let taken = |_: &Recorded| Reply::json(202, r#"{"eventListener":"el","eventID":"e-1"}"#);
        Self::before(Upstream::scripted(taken).await, hold, change).await
    }

    /// The same in front of this EventListener.
    pub async fn before(upstream: Upstream, hold: bool, change: impl FnOnce(String) -> String) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::new();
        authority.issue(&["hooks.test"]).write(dir.path(), "server");
        std::fs::write(dir.path().join("ca.pem"), authority.pem()).unwrap();
        std::fs::write(dir.path().join("sns.pem"), sns::authority()).unwrap();
        let (mut webhooks, mut routes) = (String::new(), String::new());
        for sender in SENDERS {
            let Sender { name, secret, .. } = sender;
            let (kind, settings) = (sender.kind_name(), sender.settings.replace("{sns}", sns::host()));
            let hold = hold && sender.can_be_held();
            let secrets = match secret.is_empty() {
                true => String::new(),
                false => format!(", secrets: [{{secret: {{file: {name}}}}}]"),
            };
            std::fs::write(dir.path().join(name), secret).unwrap();
            webhooks.push_str(&format!(
                "  - {{name: {name}, sender: {kind}{settings}, hold: {hold}{secrets}, max_body: {MAX_BODY}}}\n"
            ));
            routes.push_str(&format!(
                "  - {{name: {name}, kind: webhook, hosts: [hooks.test], paths: [/{name}], schemes: [webhook], \
                 webhook: {name}, upstream: el}}\n"
            ));
        }
        let names = SENDERS.iter().map(|sender| sender.name).collect::<Vec<_>>().join(", ");
        let yaml = format!(
            "
listeners:
  - {{name: public, address: 127.0.0.1:0}}
  - {{name: tls, address: 127.0.0.1:0, tls: {{certificates: [{{chain: server.pem, key: server.key}}], client_ca: ca.pem}}}}
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
        let certificate = authority.issue(&["git.example.com"]);
        Self { doorward, upstream, authority, certificate }
    }

    /// A connection for a sender.
    pub async fn raw(&self, sender: &Sender) -> Raw {
        match sender.certificate {
            false => self.doorward.raw().await,
            true => {
                let address = self.doorward.address("tls");
                Raw::tls(address, &self.authority, Some(&self.certificate), "hooks.test").await
            }
        }
    }

    /// Waits until `count` deliveries have arrived, and returns them.
    pub async fn arrived(&self, count: usize) -> Vec<Recorded> {
        until(async || self.upstream.requests().len() >= count).await;
        self.upstream.take()
    }
}
