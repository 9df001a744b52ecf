//! One etcd and one kube-apiserver for all tests. Each test has a namespace of its own.

use std::{fs, io, net::SocketAddr, path::Path};

use aws_lc_rs::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair},
};
use base64::{
    Engine as _,
    prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD},
};
use rcgen::KeyPair;
use rustls_pki_types::{PrivatePkcs8KeyDer, pem::PemObject as _};
use serde_json::{Value, json};
use tokio::sync::OnceCell;

use super::programs::{self, Program};
use crate::harness::{Answer, Authority, Raw, connect_tls, free_port, request, unique, until, within};

/// Logs everybody but the administrator of the tests and the cluster's programs, who share a credential.
const AUDIT_POLICY: &str = "
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
  - {level: None, users: [admin]}
  - {level: None, userGroups: ['system:masters']}
  - {level: Metadata}
";

/// The API server and its store.
pub struct ApiServer {
    pub address: SocketAddr,
    /// Signed the server's certificate.
    pub authority: Authority,
    /// Signs the client certificates of users.
    pub clients: Authority,
    /// Signs certificates that may set `X-Remote-User`, like those of an aggregator.
    pub front_proxy: Authority,
    /// The token of a member of `system:masters`.
    pub admin_token: String,
    server: Program,
    etcd: Program,
    /// The clear-text address of its store.
    pub store: SocketAddr,
}

impl ApiServer {
    /// The API server of this test binary.
    pub async fn get() -> &'static Self {
        static SERVER: OnceCell<ApiServer> = OnceCell::const_new();
        SERVER.get_or_init(Self::start).await
    }

    /// Starts another cluster, with the same issuer as all others.
    pub async fn start() -> Self {
        // Another test may take a port between its choice and its use.
        for _ in 0..5 {
            let server = Self::launch();
            if server.is_ready().await {
                return server;
            }
            println!("kube-apiserver ended: {}", server.server.log());
        }
        panic!("no API server could be started");
    }

    fn launch() -> Self {
        let etcd_folder = programs::folder();
        let store = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let (client, peer) = (format!("http://{store}"), format!("http://127.0.0.1:{}", free_port()));
        let etcd = Program::start(
            etcd_folder,
            "etcd",
            &[
                "--data-dir=data".to_owned(),
                format!("--listen-client-urls={client}"),
                format!("--advertise-client-urls={client}"),
                format!("--listen-peer-urls={peer}"),
                format!("--initial-advertise-peer-urls={peer}"),
                format!("--initial-cluster=default={peer}"),
                "--unsafe-no-fsync".to_owned(),
            ],
            &[],
        );

        let folder = programs::folder();
        let (authority, clients, front_proxy) = (Authority::new(), Authority::new(), Authority::new());
        authority.issue(&["127.0.0.1", "localhost", "kubernetes.default.svc"]).write(&folder, "server");
        let (admin_token, accounts) = (unique(), KeyPair::generate().unwrap());
        for (name, text) in [
            ("tokens.csv", format!("{admin_token},admin,admin,system:masters\n")),
            ("audit-policy.yaml", AUDIT_POLICY.to_owned()),
            ("accounts.key", accounts.serialize_pem()),
            ("accounts.pem", accounts.public_key_pem()),
            ("clients.pem", clients.pem()),
            ("front-proxy.pem", front_proxy.pem()),
        ] {
            fs::write(folder.join(name), text).unwrap();
        }
        let port = free_port();
        let arguments = [
            format!("--etcd-servers={client}"),
            format!("--secure-port={port}"),
            "--bind-address=127.0.0.1".to_owned(),
            "--advertise-address=127.0.0.1".to_owned(),
            "--endpoint-reconciler-type=none".to_owned(),
            "--service-cluster-ip-range=10.0.0.0/24".to_owned(),
            "--cert-dir=certificates".to_owned(),
            "--tls-cert-file=server.pem".to_owned(),
            "--tls-private-key-file=server.key".to_owned(),
            "--token-auth-file=tokens.csv".to_owned(),
            "--authorization-mode=RBAC".to_owned(),
            "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
            "--service-account-key-file=accounts.pem".to_owned(),
            "--service-account-signing-key-file=accounts.key".to_owned(),
            "--client-ca-file=clients.pem".to_owned(),
            "--requestheader-client-ca-file=front-proxy.pem".to_owned(),
            "--requestheader-username-headers=X-Remote-User".to_owned(),
            "--requestheader-uid-headers=X-Remote-Uid".to_owned(),
            "--requestheader-group-headers=X-Remote-Group".to_owned(),
            "--requestheader-extra-headers-prefix=X-Remote-Extra-".to_owned(),
            // The default would end each watch after half an hour or more, and a soak may last longer.
            "--min-request-timeout=86400".to_owned(),
            "--kubelet-preferred-address-types=InternalIP".to_owned(),
            "--audit-policy-file=audit-policy.yaml".to_owned(),
            "--audit-log-path=audit.log".to_owned(),
        ];
        let server = Program::start(folder, "kube-apiserver", &arguments, &[]);
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        Self { address, authority, clients, front_proxy, admin_token, server, etcd, store }
    }

    /// Waits until it serves. `false` if it never will.
    async fn is_ready(&self) -> bool {
        within(async {
            loop {
                if self.server.has_ended() || self.etcd.has_ended() {
                    return false;
                }
                // It listens before it serves, and resets connections until then.
                if self.try_ask("GET", "/readyz", None).await.is_ok_and(|answer| answer.status == 200) {
                    return true;
                }
                // There is no notification, and each poll costs CPU time that the start needs.
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            }
        })
        .await
    }

    pub fn folder(&self) -> &Path {
        self.server.folder()
    }

    /// The kubeconfig for its programs, with the administrator's credential.
    pub fn kubeconfig(&self) -> String {
        let cluster = json!({
            "server": format!("https://{}", self.address),
            "certificate-authority-data": BASE64_STANDARD.encode(self.authority.pem()),
        });
        json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "c", "cluster": cluster}],
            "users": [{"name": "u", "user": {"token": self.admin_token}}],
            "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
            "current-context": "x",
        })
        .to_string()
    }

    /// Sends a request as its administrator, bypassing Doorward.
    pub async fn ask(&self, method: &str, path: &str, body: Option<&Value>) -> Answer {
        self.try_ask(method, path, body).await.unwrap()
    }

    /// A connection to it, for HTTP/1.1.
    pub async fn connect(&self) -> io::Result<Raw> {
        Ok(Raw::over(connect_tls(self.address, &self.authority.client(&[], None), "127.0.0.1").await?))
    }

    async fn try_ask(&self, method: &str, path: &str, body: Option<&Value>) -> io::Result<Answer> {
        let mut raw = self.connect().await?;
        let line = format!("{method} {path} HTTP/1.1");
        let token = format!("Authorization: Bearer {}", self.admin_token);
        let kind = match method {
            "PATCH" => "Content-Type: application/merge-patch+json",
            _ => "Content-Type: application/json",
        };
        let lines = [line.as_str(), "Host: 127.0.0.1", "Connection: close", kind, &token];
        raw.send(request(&lines, body.map(Value::to_string).unwrap_or_default().as_bytes())).await;
        Ok(raw.answer().await)
    }

    /// The object at a path.
    pub async fn read(&self, path: &str) -> Value {
        let answer = self.ask("GET", path, None).await;
        assert_eq!(answer.status, 200, "{path}: {}", answer.text());
        answer.json()
    }

    /// Creates an object and returns it as stored.
    pub async fn create(&self, path: &str, object: &Value) -> Value {
        let answer = self.ask("POST", path, Some(object)).await;
        assert_eq!(answer.status, 201, "{path} {object}: {}", answer.text());
        answer.json()
    }

    /// Creates a namespace that no other test has, with the account that pods run as.
    pub async fn namespace(&self) -> String {
        let name = format!("test-{}", unique());
        self.create("/api/v1/namespaces", &json!({"metadata": {"name": name}})).await;
        self.account(&name, "default").await;
        name
    }

    /// Creates a ServiceAccount.
    pub async fn account(&self, namespace: &str, name: &str) {
        let path = format!("/api/v1/namespaces/{namespace}/serviceaccounts");
        self.create(&path, &json!({"metadata": {"name": name}})).await;
    }

    /// A token of a ServiceAccount, valid for a day.
    pub async fn token(&self, namespace: &str, account: &str) -> String {
        let path = format!("/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token");
        let made = self.create(&path, &json!({"spec": {"expirationSeconds": 86_400}})).await;
        made["status"]["token"].as_str().unwrap().to_owned()
    }

    /// A token of a ServiceAccount with changed claims, signed with the server's own key. A clone of the cluster, with
    /// the same keys and names, could issue such a token.
    pub fn resign(&self, token: &str, change: impl FnOnce(&mut Value)) -> String {
        let mut parts = token.split('.');
        let (header, claims) = (parts.next().unwrap(), BASE64_URL_SAFE_NO_PAD.decode(parts.next().unwrap()).unwrap());
        let mut claims: Value = serde_json::from_slice(&claims).unwrap();
        change(&mut claims);
        let signed = format!("{header}.{}", BASE64_URL_SAFE_NO_PAD.encode(claims.to_string()));
        let key = fs::read(self.folder().join("accounts.key")).unwrap();
        let key = PrivatePkcs8KeyDer::from_pem_slice(&key).unwrap();
        let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, key.secret_pkcs8_der()).unwrap();
        let signature = key.sign(&SystemRandom::new(), signed.as_bytes()).unwrap();
        format!("{signed}.{}", BASE64_URL_SAFE_NO_PAD.encode(signature))
    }

    /// Grants these rules to a subject in a namespace.
    pub async fn allow(&self, namespace: &str, name: &str, subject: &Value, rules: &Value) {
        let path = format!("/apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}");
        let metadata = json!({"name": name});
        self.create(&format!("{path}/roles"), &json!({"metadata": metadata, "rules": rules})).await;
        let role = json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name});
        let binding = json!({"metadata": metadata, "roleRef": role, "subjects": [subject]});
        self.create(&format!("{path}/rolebindings"), &binding).await;
        self.is_allowed(namespace, subject, &rules[0]).await;
    }

    /// The same in the whole cluster. The name must be unique to the test.
    pub async fn allow_everywhere(&self, name: &str, subject: &Value, rules: &Value) {
        let path = "/apis/rbac.authorization.k8s.io/v1";
        let metadata = json!({"name": name});
        self.create(&format!("{path}/clusterroles"), &json!({"metadata": metadata, "rules": rules})).await;
        let role = json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name});
        let binding = json!({"metadata": metadata, "roleRef": role, "subjects": [subject]});
        self.create(&format!("{path}/clusterrolebindings"), &binding).await;
        self.is_allowed("", subject, &rules[0]).await;
    }

    /// Waits until a rule applies: the authorizer watches roles and bindings, and learns of them with a delay.
    async fn is_allowed(&self, namespace: &str, subject: &Value, rule: &Value) {
        let (resource, subresource) = {
            let all = rule["resources"][0].as_str().unwrap();
            all.split_once('/').unwrap_or((all, ""))
        };
        let name = subject["name"].as_str().unwrap();
        let (user, group) = match subject["kind"].as_str().unwrap() {
            "Group" => ("somebody".to_owned(), name),
            _ => (format!("system:serviceaccount:{}:{name}", subject["namespace"].as_str().unwrap()), "nobody"),
        };
        let names = rule["resourceNames"].as_array().map_or_else(|| vec![Value::Null], Clone::clone);
        for name in names {
            let attributes = json!({
                "namespace": namespace,
                "verb": rule["verbs"][0],
                "group": rule["apiGroups"][0],
                "resource": resource,
                "subresource": subresource,
                "name": name,
            });
            let review = json!({"spec": {"user": user, "groups": [group], "resourceAttributes": attributes}});
            let path = "/apis/authorization.k8s.io/v1/subjectaccessreviews";
            until(async || self.create(path, &review).await["status"]["allowed"] == true).await;
        }
    }

    /// The events of its audit log that contain this text, in the order in which requests ended.
    pub fn audit(&self, text: &str) -> Vec<Value> {
        let log = fs::read_to_string(self.folder().join("audit.log")).unwrap_or_default();
        let lines = log.lines().filter(|line| line.contains(text));
        lines.filter_map(|line| serde_json::from_str(line).ok()).collect()
    }
}
