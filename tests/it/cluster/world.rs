//! Doorward in front of the API server, and people who use it with kubectl.

use std::{
    collections::BTreeSet,
    fs,
    net::SocketAddr,
    path::PathBuf,
    process::{Output, Stdio},
};

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::process::{Child, Command};

use super::{api_server::ApiServer, impersonation::printed_of, programs};
use crate::{
    fixture::bearer,
    harness::{Answer, Authority, Doorward, Issuer, Nginx, Raw, folder_with, found, free_port, request, until, within},
};

/// The group that a grant gives the issuer's developers.
pub const GROUP: &str = "tekton:dev";

/// The TLS address that people use, a port at `localhost`.
#[derive(Clone, Copy)]
pub enum Front {
    /// Doorward's own; 0 for any.
    Own(u16),
    /// An nginx in front of it, set up as in `deploy/examples/nginx.conf`.
    Nginx(u16),
}

impl Front {
    /// An nginx at some free port.
    pub fn nginx() -> Self {
        Self::Nginx(free_port())
    }

    /// The origin in a browser.
    pub fn origin(self) -> String {
        let (Self::Own(port) | Self::Nginx(port)) = self;
        format!("https://localhost:{port}")
    }
}

/// Deviations of a world from [`World::start`].
pub struct Setup<'a> {
    pub front: Front,
    /// The host of its Kubernetes route.
    pub host: &'a str,
    /// The rights of Doorward's own account.
    pub rights: Value,
    /// Files beside the configuration.
    pub files: &'a [(&'a str, &'a str)],
    /// Whether its clock can be set ([`Doorward::set_clock_ahead`]).
    pub faults: bool,
}

impl Default for Setup<'_> {
    fn default() -> Self {
        Self { front: Front::Own(0), host: "localhost", rights: impersonation(), files: &[], faults: false }
    }
}

/// Doorward with an issuer, and a namespace in which the group of its developers has some rights.
pub struct World {
    pub api: &'static ApiServer,
    /// Unique to this test.
    pub namespace: String,
    pub doorward: Doorward,
    pub issuer: Issuer,
    pub authority: Authority,
    nginx: Option<Nginx>,
}

impl World {
    pub async fn start() -> Self {
        Self::with(|yaml| yaml).await
    }

    /// The same behind an nginx.
    pub async fn behind_nginx() -> Self {
        Self::set_up(Setup { front: Front::nginx(), ..Setup::default() }, |yaml| yaml).await
    }

    /// `change` edits the configuration. `{ns}` in it is the namespace.
    pub async fn with(change: impl FnOnce(String) -> String) -> Self {
        Self::set_up(Setup::default(), change).await
    }

    /// With these files beside the configuration.
    pub async fn with_files(change: impl FnOnce(String) -> String, files: &[(&str, &str)]) -> Self {
        Self::set_up(Setup { files, ..Setup::default() }, change).await
    }

    /// With this setup.
    pub async fn set_up(setup: Setup<'_>, change: impl FnOnce(String) -> String) -> Self {
        let api = ApiServer::get().await;
        let namespace = api.namespace().await;
        api.account(&namespace, "doorward").await;
        let account = json!({"kind": "ServiceAccount", "namespace": namespace, "name": "doorward"});
        api.allow_everywhere(&format!("{namespace}-doorward"), &account, &setup.rights).await;
        let group = json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": GROUP});
        api.allow(&namespace, "dev", &group, &rights()).await;
        Self::launch(api, namespace, setup, change).await
    }

    /// A world at this API server, where neither Doorward nor the developers have any rights yet.
    pub async fn without_rights(api: &'static ApiServer, change: impl FnOnce(String) -> String) -> Self {
        let namespace = api.namespace().await;
        api.account(&namespace, "doorward").await;
        Self::launch(api, namespace, Setup::default(), change).await
    }

    /// Starts it. The rights of its account are granted before.
    async fn launch(
        api: &'static ApiServer,
        namespace: String,
        Setup { front, host, files, faults, .. }: Setup<'_>,
        change: impl FnOnce(String) -> String,
    ) -> Self {
        let (issuer, authority) = (Issuer::start().await, Authority::new());
        let dir = tempfile::tempdir().unwrap();
        authority.issue(&["localhost"]).write(dir.path(), "server");
        // The certificate of a client that may set `X-Remote-User`: any such header that came through would take
        // effect.
        api.front_proxy.issue(&["front-proxy"]).write(dir.path(), "front-proxy");
        for (name, text) in [
            ("token", api.token(&namespace, "doorward").await),
            ("ca.pem", authority.pem()),
            ("cluster-ca.pem", api.authority.pem()),
        ] {
            fs::write(dir.path().join(name), text).unwrap();
        }
        for (name, text) in files {
            fs::write(dir.path().join(name), text).unwrap();
        }
        let secure = match front {
            Front::Own(port) => format!("address: 127.0.0.1:{port},"),
            Front::Nginx(_) => "address: 127.0.0.1:0, trusted_proxies: [127.0.0.1/32],".to_owned(),
        };
        let yaml = CONFIGURATION
            .replace("{secure}", &secure)
            .replace("{issuer}", issuer.url())
            .replace("{api}", &format!("https://{}", api.address))
            .replace("{group}", GROUP);
        let yaml = change(yaml).replace("{ns}", &namespace);
        let doorward = match faults {
            true => Doorward::start_with_faults(dir, &yaml).await,
            false => Doorward::start_in(dir, &yaml).await,
        };
        doorward.wait_for_keys_at(host, &issuer).await;
        let nginx = match front {
            Front::Own(_) => None,
            Front::Nginx(port) => Some(Nginx::in_front_of(doorward.address("secure"), doorward.dir(), port).await),
        };
        Self { api, namespace, doorward, issuer, authority, nginx }
    }

    /// The TLS address that people use.
    fn front(&self) -> SocketAddr {
        self.nginx.as_ref().map_or_else(|| self.doorward.address("secure"), |nginx| nginx.address)
    }

    pub fn origin(&self) -> String {
        Front::Own(self.front().port()).origin()
    }

    /// Waits until browsers are redirected to the provider.
    pub async fn until_people_can_sign_in(&self) {
        let host = format!("Host: localhost:{}", self.front().port());
        until(async || {
            let mut raw = self.connect().await;
            raw.send(request(&["GET /oauth2/start HTTP/1.1", &host, "Connection: close"], b"")).await;
            raw.answer().await.status == 303
        })
        .await;
    }

    /// A connection to the address that people use, for HTTP/1.1.
    pub async fn connect(&self) -> Raw {
        Raw::tls(self.front(), &self.authority, None, "localhost").await
    }

    /// The request lines that went through nginx.
    pub fn passed_nginx(&self) -> Vec<String> {
        self.nginx.as_ref().expect("there is one").requests()
    }

    /// An `Authorization` line of a developer.
    pub fn developer(&self, subject: &str) -> String {
        bearer(&self.issuer.token(subject, &["dev"]))
    }

    /// Sends a request in clear text as the developer Alice.
    pub async fn alice(&self, request: &str, more: &[&str], body: &[u8]) -> Answer {
        let (line, token) = (format!("{request} HTTP/1.1"), self.developer("alice"));
        let lines = [&[line.as_str(), "Host: localhost", &token], more].concat();
        self.doorward.send(&lines, body).await
    }

    /// kubectl as a developer, with Doorward as its server.
    pub fn kubectl(&self, subject: &str) -> Kubectl {
        let token = self.issuer.token(subject, &["dev"]);
        Kubectl::new(&self.origin(), &self.authority.pem(), &token, &self.namespace)
    }

    /// The API server's audit events for requests from Doorward, except those by which it checks its own rights.
    pub fn audit(&self) -> Vec<Value> {
        let mut events = self.api.audit(&format!("system:serviceaccount:{}:doorward", self.namespace));
        let is_own = |event: &Value| {
            let asks = ["selfsubjectaccessreviews", "selfsubjectrulesreviews"];
            asks.iter().any(|asked| event["objectRef"]["resource"] == *asked) && event["impersonatedUser"].is_null()
        };
        events.retain(|event| !is_own(event));
        events
    }

    /// Waits for a matching event in the API server's audit log, and returns it.
    pub async fn event(&self, fits: impl Fn(&Value) -> bool) -> Value {
        found(async || self.audit().into_iter().find(&fits)).await
    }

    /// Asserts that Doorward sent every request as one of these people, with the group of the grant, and with the id of
    /// one of Doorward's own records.
    pub async fn assert_sent_as(&self, people: &[&str]) {
        let uids = |records: &[Value]| -> BTreeSet<String> {
            let uids = records.iter().filter_map(|record| record["http_request"]["uid"].as_str());
            uids.map(str::to_owned).collect()
        };
        let events = self.audit();
        for event in &events {
            let user = &event["impersonatedUser"];
            assert!(people.iter().any(|person| user["username"] == *person), "{event:#}");
            assert_eq!(user["groups"], json!([GROUP, "system:authenticated"]), "{event:#}");
        }
        // Records are written before the response ends, but to a file, by a separate thread.
        let ids: BTreeSet<String> =
            events.iter().filter_map(|event| event["auditID"].as_str()).map(str::to_owned).collect();
        until(async || ids.is_subset(&uids(&self.doorward.audit()))).await;
    }
}

/// The rights that `doorward rbac` prints for the changed configuration, in one form of impersonation.
pub fn printed_rights(form: &str, change: impl FnOnce(String) -> String) -> Vec<Value> {
    let dir = tempfile::tempdir().unwrap();
    // Of what is filled in, the rights depend only on the group.
    let yaml = CONFIGURATION
        .replace("{secure}", "address: 127.0.0.1:0,")
        .replace("{issuer}", "https://issuer.test")
        .replace("{api}", "https://cluster.test")
        .replace("{group}", GROUP);
    fs::write(dir.path().join("doorward.yaml"), change(yaml)).unwrap();
    printed_of(dir.path(), form)
}

/// The rights of Doorward's own account: to impersonate, and nothing else.
pub fn impersonation() -> Value {
    json!([
        {"apiGroups": [""], "resources": ["users"], "verbs": ["impersonate"]},
        {"apiGroups": [""], "resources": ["groups"], "verbs": ["impersonate"], "resourceNames": [GROUP]},
        {
            "apiGroups": ["authentication.k8s.io"],
            "resources": [
                "userextras/doorward.dev/client",
                "userextras/doorward.dev/actor",
                "userextras/doorward.dev/request-id",
            ],
            "verbs": ["impersonate"],
        },
    ])
}

/// The developers' rights in the namespace. Secrets are not included.
fn rights() -> Value {
    json!([
        {"apiGroups": [""], "resources": ["configmaps", "pods"], "verbs": ["*"]},
        {"apiGroups": [""], "resources": ["pods/exec", "pods/attach", "pods/portforward"], "verbs": ["get", "create"]},
        {"apiGroups": [""], "resources": ["pods/log"], "verbs": ["get"]},
        {"apiGroups": ["tekton.dev"], "resources": ["pipelineruns", "taskruns"], "verbs": ["*"]},
    ])
}

const CONFIGURATION: &str = "
listeners:
  - {name: public, address: 127.0.0.1:0}
  - {name: secure, {secure} tls: {certificates: [{chain: server.pem, key: server.key}]}}
external_host: doorward.test
issuers:
  - {name: a, issuer: '{issuer}', audiences: ['https://doorward.test'], username: '{sub}', kind: human}
upstreams:
  - name: cluster
    url: '{api}'
    tls: {ca: cluster-ca.pem, certificate: {chain: front-proxy.pem, key: front-proxy.key}}
    credential: {bearer: {file: token}}
routes:
  - {name: api, kind: kubernetes, hosts: [localhost], schemes: [bearer], upstream: cluster}
grants:
  - {id: dev, who: {groups: [dev]}, kubernetes_groups: ['{group}']}
rules:
  - {id: dev, on: {routes: [api]}, who: {groups: [dev]}, do: allow}
store: {path: doorward.redb}
audit: {sink: {file: {path: audit.jsonl}}}
admin: {address: 127.0.0.1:0, socket: operator.sock}
limits: {drain_accept: 0}
";

/// kubectl with a configuration of its own.
pub struct Kubectl {
    home: TempDir,
    http1: bool,
}

impl Kubectl {
    pub fn new(server: &str, authority: &str, token: &str, namespace: &str) -> Self {
        let home = folder_with(&[("ca.pem", authority)]);
        // JSON is YAML.
        let config = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "c", "cluster": {"server": server, "certificate-authority": "ca.pem"}}],
            "users": [{"name": "u", "user": {"token": token}}],
            "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u", "namespace": namespace}}],
            "current-context": "x",
        });
        fs::write(home.path().join("config"), config.to_string()).unwrap();
        Self { home, http1: false }
    }

    /// Uses HTTP/1.1 even if HTTP/2 is offered.
    pub fn over_http1(mut self) -> Self {
        self.http1 = true;
        self
    }

    /// Writes a file beside its configuration, where its commands run.
    pub fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.home.path().join(name);
        fs::write(&path, text).unwrap();
        path
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(programs::path("kubectl"));
        command
            .args(arguments)
            .current_dir(self.home.path())
            .env("HOME", self.home.path())
            .env("KUBECONFIG", self.home.path().join("config"))
            .env_remove("KUBERNETES_SERVICE_HOST")
            .stdin(Stdio::null())
            .kill_on_drop(true);
        if self.http1 {
            // Read by client-go.
            command.env("DISABLE_HTTP2", "true");
        }
        command
    }

    /// Runs a command to its end.
    pub async fn output(&self, arguments: &[&str]) -> Output {
        within(self.command(arguments).output()).await.unwrap()
    }

    /// The output of a command that must succeed.
    pub async fn run(&self, arguments: &[&str]) -> String {
        let output = self.output(arguments).await;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{arguments:?}: {text}{}", String::from_utf8_lossy(&output.stderr));
        text
    }

    /// The error output of a command that must fail.
    pub async fn fails(&self, arguments: &[&str]) -> String {
        let output = self.output(arguments).await;
        assert!(!output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stdout));
        String::from_utf8_lossy(&output.stderr).into_owned()
    }

    /// Starts a command whose output is read while it runs.
    pub fn start(&self, arguments: &[&str]) -> Child {
        self.command(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }
}
