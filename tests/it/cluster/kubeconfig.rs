//! The API server as described by a kubeconfig, with a token and with a client certificate, both changed while Doorward
//! runs.

use std::fs;

use base64::{Engine as _, prelude::BASE64_STANDARD};
use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, KeyPair};
use serde_json::{Value, json};

use super::{api_server::ApiServer, tasks::claims, world::World};
use crate::{doctor::doctor, harness::replace_file};

/// As kubectl writes it, with another context beside the one used.
fn kubeconfig(api: &ApiServer, user: &Value) -> String {
    let cluster = json!({
        "server": format!("https://localhost:{}", api.address.port()),
        "certificate-authority-data": BASE64_STANDARD.encode(api.authority.pem()),
        "tls-server-name": "127.0.0.1",
    });
    json!({
        "apiVersion": "v1",
        "kind": "Config",
        "preferences": {},
        "clusters": [{"name": "tests", "cluster": cluster}],
        "users": [{"name": "doorward", "user": user}, {"name": "me", "user": {"exec": {"command": "nothing"}}}],
        "contexts": [
            {"name": "me@tests", "context": {"cluster": "tests", "user": "me", "namespace": "default"}},
            {"name": "doorward@tests", "context": {"cluster": "tests", "user": "doorward"}},
        ],
        "current-context": "me@tests",
    })
    .to_string()
}

fn replace(world: &World, name: &str, text: &str) {
    replace_file(&world.doorward.dir().join(name), text);
}

/// Alice reads with kubectl, and the API server sees this credential of Doorward.
async fn reads_by(world: &World, credential: &str) {
    world.kubectl("alice").run(&["get", "configmaps"]).await;
    let event = world
        .event(|event| {
            event["user"]["extra"]["authentication.kubernetes.io/credential-id"] == json!([credential])
                && event["objectRef"]["resource"] == "configmaps"
        })
        .await;
    assert_eq!(event["user"]["username"], format!("system:serviceaccount:{}:doorward", world.namespace));
    assert_eq!(event["impersonatedUser"]["username"], "alice");
}

#[tokio::test]
async fn a_kubeconfig_names_the_api_server_and_its_credentials_change_without_a_restart() {
    let api = ApiServer::get().await;
    let by_file = kubeconfig(api, &json!({"tokenFile": "token", "token": "outdated"}));
    let with_kubeconfig = |yaml: String| {
        let (head, rest) = yaml.split_once("    url:").unwrap();
        let (_, tail) = rest.split_once("routes:").unwrap();
        format!("{head}    kubeconfig: {{file: kube.yaml, context: doorward@tests}}\nroutes:{tail}")
    };
    let mut world = World::with_files(with_kubeconfig, &[("kube.yaml", &by_file)]).await;
    let id = |token: &str| format!("JTI={}", claims(token)["jti"].as_str().unwrap());
    reads_by(&world, &id(&fs::read_to_string(world.doorward.dir().join("token")).unwrap())).await;
    doctor(world.doorward.dir(), &["--only", "rights", "--only", "upstreams"]).await.is("upstreams", "good", &[]);

    let rotated = api.token(&world.namespace, "doorward").await;
    replace(&world, "token", &rotated);
    world.doorward.wait_for_generation(2).await;
    reads_by(&world, &id(&rotated)).await;

    let inline = api.token(&world.namespace, "doorward").await;
    replace(&world, "kube.yaml", &kubeconfig(api, &json!({"token": inline})));
    world.doorward.wait_for_generation(3).await;
    reads_by(&world, &id(&inline)).await;

    for generation in [4, 5] {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new([]).unwrap();
        let name = format!("system:serviceaccount:{}:doorward", world.namespace);
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages.push(ExtendedKeyUsagePurpose::ClientAuth);
        let chain = api.clients.sign(&params, &key);
        let user = json!({
            "client-certificate-data": BASE64_STANDARD.encode(&chain),
            "client-key-data": BASE64_STANDARD.encode(key.serialize_pem()),
        });
        replace(&world, "kube.yaml", &kubeconfig(api, &user));
        world.doorward.wait_for_generation(generation).await;
        let pair = crate::harness::Pair { chain, key: key.serialize_pem() };
        reads_by(&world, &format!("X509SHA256={}", pair.sha256())).await;
    }

    // An unsupported way to authenticate is refused; the previous configuration stays in force, and no log contains the
    // content of the file.
    let secret = "a-token-that-nobody-may-read";
    replace(&world, "kube.yaml", &kubeconfig(api, &json!({"token": secret, "exec": {"command": "aws"}})));
    let refusal = world.doorward.wait_for_log_containing("the configuration was refused").await.to_string();
    assert!(refusal.contains("has `exec` in the user `doorward`"), "{refusal}");
    assert!(!world.doorward.log().iter().any(|line| line.to_string().contains(secret)));
    world.kubectl("alice").run(&["get", "configmaps"]).await;
}
