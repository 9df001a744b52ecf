//! Two accounts at one API server: the one for impersonation can do nothing else. Its token is requested with the
//! credential of the pod's own account, which can impersonate nobody.

use std::fs;

use serde_json::{Value, json};

use super::world::{Setup, World, impersonation};
use crate::{doctor::doctor, fixture::Change, harness::until};

/// The rights of the pod's own account.
fn requests() -> Value {
    json!([{"apiGroups": [""], "resources": ["serviceaccounts/token"], "verbs": ["create"], "resourceNames": ["proxy"]}])
}

/// With a separate upstream for Doorward's own requests.
fn apart(yaml: &str) -> String {
    let (before, rest) = yaml.split_once("upstreams:\n").unwrap();
    let (upstream, after) = rest.split_once("routes:").unwrap();
    let own = upstream.change("name: cluster", "name: own");
    let requested = "{service_account: {namespace: '{ns}', name: proxy, upstream: own}}";
    let cluster = upstream.change("{bearer: {file: token}}", requested);
    let cluster = cluster.change(", certificate: {chain: front-proxy.pem, key: front-proxy.key}", "");
    format!("{before}upstreams:\n{own}{cluster}routes:{after}")
}

async fn proxy(world: &World) {
    world.api.account(&world.namespace, "proxy").await;
    let account = json!({"kind": "ServiceAccount", "namespace": world.namespace, "name": "proxy"});
    world.api.allow_everywhere(&format!("{}-proxy", world.namespace), &account, &impersonation()).await;
}

async fn looks(world: &World) -> u16 {
    world.alice(&format!("GET /api/v1/namespaces/{}/pods", world.namespace), &[], b"").await.status
}

/// The events of one of the accounts in the API server's audit log.
fn seen(world: &World, account: &str) -> Vec<Value> {
    world.api.audit(&format!("\"system:serviceaccount:{}:{account}\"", world.namespace))
}

fn as_somebody(events: &[Value]) -> Vec<&Value> {
    events.iter().map(|event| &event["impersonatedUser"]["username"]).filter(|user| !user.is_null()).collect()
}

#[tokio::test]
async fn people_are_impersonated_by_an_account_that_can_do_nothing_else() {
    let mut world = World::set_up(Setup { rights: requests(), ..Setup::default() }, |yaml| apart(&yaml)).await;
    world.doorward.until_readyz_says("of the service account").await;
    assert_eq!(world.doorward.admin("/readyz").await.status, 200, "it stops nobody else");
    let line = format!("GET /api/v1/namespaces/{}/pods", world.namespace);
    let refused = world.alice(&line, &[], b"").await;
    assert_eq!(refused.status, 502);
    let said = doctor(world.doorward.dir(), &["--only", "rights", "--only", "upstreams"]).await;
    let of_cluster: Vec<&Value> =
        said.findings.iter().filter(|finding| finding["subject"] == "API server `cluster`").collect();
    assert_eq!((of_cluster.len(), &of_cluster[0]["state"]), (1, &json!("fault")), "{:?}", said.findings);
    assert!(of_cluster[0]["message"].as_str().unwrap().contains("there is no token of the service account"));
    assert!(refused.text().contains("was not called, as Doorward has no token for it"), "{}", refused.text());

    proxy(&world).await;
    until(async || looks(&world).await == 200).await;
    let (by_proxy, by_itself) = (seen(&world, "proxy"), seen(&world, "doorward"));
    assert_eq!(as_somebody(&by_proxy), [&json!("alice")]);
    assert!(as_somebody(&by_itself).is_empty(), "the pod's own account impersonates nobody");
    let said = doctor(world.doorward.dir(), &["--only", "rights", "--only", "upstreams"]).await;
    // The right to request the token applies to all namespaces here, which is more than needed.
    let not_good: Vec<&Value> = said.findings.iter().filter(|finding| finding["state"] != "good").collect();
    assert_eq!((said.findings.len(), not_good.len()), (4, 1), "{:?}", said.findings);
    assert!(not_good[0]["message"].as_str().unwrap().contains("create serviceaccounts/token"), "{not_good:?}");

    // A generation continues with the token of the previous one.
    let requested = |world: &World| {
        seen(world, "doorward").iter().filter(|event| event["objectRef"]["subresource"] == "token").count()
    };
    let before = requested(&world);
    let path = world.doorward.dir().join("doorward.yaml");
    let yaml = fs::read_to_string(&path).unwrap();
    fs::write(&path, yaml.change("{id: dev, on:", "{id: developers, on:")).unwrap();
    world.doorward.wait_for_generation(2).await;
    assert_eq!(looks(&world).await, 200);
    assert_eq!(requested(&world), before);

    // Recreated, the account has another uid, and its old tokens are invalid.
    let account = format!("/api/v1/namespaces/{}/serviceaccounts/proxy", world.namespace);
    assert_eq!(world.api.ask("DELETE", &account, None).await.status, 200);
    world.api.account(&world.namespace, "proxy").await;
    until(async || looks(&world).await == 502).await;
    until(async || looks(&world).await == 200).await;
}

#[tokio::test]
async fn a_reload_to_two_accounts_refuses_no_request() {
    let rights = [requests().as_array().unwrap().clone(), impersonation().as_array().unwrap().clone()].concat();
    let mut world = World::set_up(Setup { rights: json!(rights), ..Setup::default() }, |yaml| yaml).await;
    proxy(&world).await;
    assert_eq!(looks(&world).await, 200);
    let path = world.doorward.dir().join("doorward.yaml");
    let yaml = apart(&fs::read_to_string(&path).unwrap()).replace("{ns}", &world.namespace);
    // For another account Doorward gets no token, and continues as before.
    fs::write(&path, yaml.change("name: proxy,", "name: another,")).unwrap();
    let refused = world.doorward.wait_for_log_containing("the configuration was refused").await.to_string();
    assert!(refused.contains("there is no token of the service account"), "{refused}");
    assert_eq!(looks(&world).await, 200);
    fs::write(&path, yaml).unwrap();
    world.doorward.wait_for_generation(2).await;
    assert_eq!(looks(&world).await, 200);
    until(async || as_somebody(&seen(&world, "proxy")) == [&json!("alice")]).await;
}
