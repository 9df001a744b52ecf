//! Two clusters with the same issuer, as all clusters with the default have, and in which everything else has the same
//! name too.

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use serde_json::{Value, json};

use super::{
    api_server::ApiServer,
    tasks::{DOOR, TARGET, Task, Tasks, claims, exchange_at},
    token_command::named,
    token_ends::{on_redis, on_redis_with, onward_to, replica, replica_with, with_token},
    token_reach::{SECRET, is_active},
    trace::linked,
};
use crate::{
    fixture::Change,
    harness::{EXCHANGE, RedisServer, Reply, Upstream, exchange_form, found, part, settled, until},
};

/// The reason why tokens have ended, in the log line for each object.
const NOT_CONFIGURED: &str = "is no longer configured to have tokens";

const ASKED: [(&str, &str); 2] = [("audience", TARGET), ("scope", "push")];

/// Creates the objects of a task in another cluster under the same names, and returns the token of that pod.
async fn twin(other: &ApiServer, tasks: &Tasks, task: &Task) -> String {
    let namespace = &tasks.world.namespace;
    other.create("/api/v1/namespaces", &json!({"metadata": {"name": namespace}})).await;
    other.account(namespace, "builder").await;
    let metadata = &task.pod["metadata"];
    let pod = json!({
        "metadata": {"name": metadata["name"], "labels": metadata["labels"], "annotations": metadata["annotations"],
            "ownerReferences": metadata["ownerReferences"]},
        "spec": {"serviceAccountName": "builder", "containers": [{"name": "main", "image": "images.test/main"}]},
    });
    let made = other.create(&tasks.path("pods"), &pod).await;
    let uid = &made["metadata"]["uid"];
    assert_ne!(*uid, metadata["uid"]);
    let bound = json!({"kind": "Pod", "apiVersion": "v1", "name": metadata["name"], "uid": uid});
    let path = format!("/api/v1/namespaces/{namespace}/serviceaccounts/builder/token");
    let spec = json!({"spec": {"audiences": [DOOR], "expirationSeconds": 3600, "boundObjectRef": bound}});
    other.create(&path, &spec).await["status"]["token"].as_str().unwrap().to_owned()
}

/// It is refused for this reason, and nothing was issued.
async fn is_refused(tasks: &Tasks, what: &str, subject_token: &str, why: &str) {
    let answer = tasks.exchange(subject_token, &ASKED).await;
    let said = answer.json();
    assert_eq!((answer.status, &said["error"]), (400, &json!("invalid_request")), "{what}: {said}");
    assert!(said["error_description"].as_str().unwrap().contains(why), "{what}: {said}");
    let asked =
        found(async || tasks.world.doorward.audit().into_iter().rfind(|record| record.to_string().contains(why))).await;
    assert_eq!(asked["unmapped"]["issued"], Value::Null, "{what}: {asked:#}");
}

#[tokio::test]
async fn a_token_of_another_cluster_with_the_same_issuer_name_is_worth_nothing_here() {
    let other = ApiServer::start().await;
    let tasks = Tasks::start().await;
    let task = tasks.bobs(&Tasks::release("same")).await;
    let here = tasks.pod_token(&task.pod, DOOR).await;
    let there = twin(&other, &tasks, &task).await;
    let kid = |token: &str| part(token, 0)["kid"].as_str().unwrap().to_owned();
    for name in ["iss", "sub", "aud"] {
        assert_eq!(claims(&here)[name], claims(&there)[name], "both say the same");
    }
    // With a key of its own.
    is_refused(&tasks, "another key", &there, &format!("issuer `cluster` publishes no key `{}`", kid(&there))).await;
    // The same, but with the key id of this cluster.
    let mut parts: Vec<&str> = there.split('.').collect();
    parts[0] = here.split('.').next().unwrap();
    is_refused(&tasks, "a stolen kid", &parts.join("."), "the signature is not by the key of issuer `cluster`").await;

    // With the same key, as when a cluster was created from the disk of another.
    let api = tasks.world.api;
    let own = &claims(&there)["kubernetes.io"];
    for (what, claim) in [("another pod", "pod"), ("another account", "serviceaccount")] {
        let clone = api.resign(&here, |claims| claims["kubernetes.io"][claim]["uid"] = own[claim]["uid"].clone());
        is_refused(&tasks, what, &clone, "issuer `cluster` says that the token is not active").await;
    }
    let clone = api.resign(&here, |claims| claims["kubernetes.io"] = own.clone());
    is_refused(&tasks, "a clone", &clone, "issuer `cluster` says that the token is not active").await;
    // The counterparts of all of these.
    tasks.exchange(&api.resign(&here, |_| ()), &ASKED).await.token();
    tasks.exchange(&here, &ASKED).await.token();
}

#[tokio::test]
async fn keys_of_another_cluster_alone_open_nothing_of_this_one() {
    // The other cluster's keys are configured by mistake: its tokens have valid signatures, and their pods are looked
    // up here.
    let other = ApiServer::start().await;
    other.create("/api/v1/namespaces", &json!({"metadata": {"name": "keys"}})).await;
    other.account("keys", "doorward").await;
    let bearer = other.token("keys", "doorward").await;
    let both = format!("{}{}", other.authority.pem(), ApiServer::get().await.authority.pem());
    let keys = format!("keys: {{url: 'https://{}/openid/v1/jwks', bearer: {{file: other-token}}}}", other.address);
    let change = |yaml: String| {
        let (before, rest) = yaml.split_once("keys: {url:").unwrap();
        format!("{before}{keys}{}", rest.split_once("}}").unwrap().1)
            .change("ca: cluster-ca.pem\n    token_review", "ca: both.pem\n    token_review")
    };
    let tasks = Tasks::with(change, &[("other-token", &bearer), ("both.pem", &both)]).await;
    let task = tasks.bobs(&Tasks::release("same")).await;
    let there = twin(&other, &tasks, &task).await;
    is_refused(&tasks, "reviewed here", &there, "issuer `cluster` says that the token is not active").await;
    let here = tasks.pod_token(&task.pod, DOOR).await;
    is_refused(&tasks, "the right one", &here, "issuer `cluster` publishes no key").await;
}

const TWIN: &str = "issuers:
  - name: twin
    issuer: https://twin.test
    preset: kubernetes
    audiences: ['https://doorward.test']
    keys: {url: '{api}/openid/v1/jwks', bearer: {file: token}}
    ca: cluster-ca.pem
    token_review: {upstream: twin, bearer: {file: token}}
";

/// Another upstream at the cluster's API server, and the server's address.
fn another_upstream(yaml: &str, name: &str) -> (String, String) {
    let api = yaml.split("  - name: cluster\n    url: '").nth(1).and_then(|rest| rest.split('\'').next()).unwrap();
    let upstream = format!(
        "upstreams:\n  - {{name: {name}, url: '{api}', tls: {{ca: cluster-ca.pem}}, credential: {{bearer: {{file: token}}}}}}\n"
    );
    (upstream, api.to_owned())
}

#[tokio::test]
async fn a_rule_for_a_service_account_of_one_cluster_gives_nothing_to_that_of_another() {
    let change = |yaml: String| {
        let (upstream, api) = another_upstream(&yaml, "twin");
        yaml.change("issuers:\n", &TWIN.replace("{api}", &api))
            .change("upstreams:\n", &upstream)
            .change("exchange: [", "exchange: [{issuer: twin, kubernetes: twin, namespaces: ['{ns}']}, ")
            .change("pipelines: [release]", "clusters: [cluster], pipelines: [release]")
            .change("scopes: [alone],", "scopes: [alone], clusters: [twin],")
    };
    let tasks = Tasks::with(change, &[]).await;
    let (task, own) = with_token(&tasks, "one-of-two").await;
    let records = linked(&tasks.world.doorward, &task.run["metadata"]["uid"]).await;
    assert_eq!(records[0]["unmapped"]["linked"]["cluster"], Value::Null, "either of two: {}", records[0]);
    let said = claims(&own);
    let acting = format!("serviceaccount:cluster:{}:builder", tasks.world.namespace);
    assert_eq!(
        (&said["client_id"], &said["doorward.dev/run"]["cluster"]),
        (&json!(acting), &json!("cluster")),
        "{said:#}"
    );
    let event = |event: &Value| event["impersonatedUser"]["extra"]["doorward.dev/actor"] == json!([acting]);
    tasks.world.event(event).await;
    let answer =
        tasks.exchange(&tasks.pod_token(&task.pod, DOOR).await, &[("audience", TARGET), ("scope", "alone")]).await;
    assert_eq!((answer.status, &answer.json()["error"]), (400, &json!("invalid_scope")), "{}", answer.text());
    assert!(answer.text().contains("/builder of cluster cluster in pipeline release"), "{}", answer.text());
    tasks.cancel(&task).await;
    tasks.is_dead(&own).await;
}

/// Otherwise the watches would resume at the new upstream with the resource versions of the old one, and miss objects
/// that were never listed there.
#[tokio::test]
async fn a_reload_to_another_upstream_of_a_cluster_lists_everything_again() {
    let change = |yaml: String| {
        let (upstream, _) = another_upstream(&yaml, "again");
        yaml.change("upstreams:\n", &upstream).change(
            "{issuer: cluster, kubernetes: cluster,",
            "{issuer: cluster, kubernetes: cluster, upstreams: [again],",
        )
    };
    let tasks = Tasks::with(change, &[]).await;
    let (_task, own) = with_token(&tasks, "moved").await;
    let lists = || {
        let is_list = |event: &&Value| event["verb"] == "list" && event["objectRef"]["resource"] == "pods";
        tasks.world.audit().iter().filter(is_list).count()
    };
    until(async || lists() > 0).await;
    let before = lists();
    tasks.world.doorward.change("kubernetes: cluster, upstreams: [again],", "kubernetes: again, upstreams: [cluster],");
    tasks.world.doorward.signal("HUP");
    until(async || lists() > before).await;
    assert_eq!(tasks.used(&own).await.status, 200);
}

/// Otherwise each reload that removes a namespace would end the tokens of all other Doorwards on the same store.
#[tokio::test]
async fn tokens_issued_by_another_doorward_on_the_same_store_stay_valid() {
    const THERE: &str = "elsewhere.test";
    let redis = RedisServer::start(&["--appendonly", "yes", "--appendfsync", "always"]);
    let tasks = on_redis(&redis).await;
    let there = replica_with(&tasks, named(THERE)).await;
    let (_task, own) = with_token(&tasks, "ours").await;
    let task = tasks.bobs(&Tasks::release("theirs")).await;
    let pod_token = tasks.pod_token(&task.pod, &format!("https://{THERE}")).await;
    let form = exchange_form(&[&[("subject_token", pod_token.as_str())], &ASKED[..]].concat());
    let ([line, _, media], host) = (EXCHANGE, format!("Host: {THERE}"));
    settled(async || there.send(&[line, &host, media], form.as_bytes()).await).await.token();

    there.change(&format!("namespaces: ['{}']}}]}}", tasks.world.namespace), "namespaces: [elsewhere]}]}");
    there.signal("HUP");
    // Ends are reported in the order in which tokens were issued: an end of the first Doorward's token would come
    // first.
    let has_ended = |name: &str| {
        let lines: Vec<String> = there.log().iter().map(Value::to_string).collect();
        lines.iter().any(|line| line.contains(NOT_CONFIGURED) && line.contains(&format!("\"{name}")))
    };
    until(async || has_ended("theirs")).await;
    assert!(!has_ended("ours"), "{:#?}", there.log());
    assert_eq!(tasks.used(&own).await.status, 200);
}

#[tokio::test]
async fn the_tokens_of_a_cluster_that_a_reload_removes_end() {
    let mut tasks = Tasks::start().await;
    let (_task, own) = with_token(&tasks, "left-behind").await;
    let path = tasks.world.doorward.dir().join("doorward.yaml");
    let yaml = std::fs::read_to_string(&path).unwrap();
    let entry = format!("{{issuer: cluster, kubernetes: cluster, namespaces: ['{}']}}", tasks.world.namespace);
    let without = yaml.change(&entry, "{issuer: a}");
    std::fs::write(&path, without).unwrap();
    tasks.world.doorward.signal("HUP");
    tasks.world.doorward.wait_for_generation(2).await;
    tasks.is_dead(&own).await;
    tasks.world.doorward.wait_for_log_containing(NOT_CONFIGURED).await;
    let ends = || {
        let log = tasks.world.doorward.log();
        log.iter().filter(|line| line.to_string().contains(NOT_CONFIGURED)).count()
    };
    until(async || ends() >= 3).await;
    // There is nothing left to watch, and nothing is retried.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let log = tasks.world.doorward.log();
    let since = log.iter().map(Value::to_string).skip_while(|line| !line.contains(NOT_CONFIGURED));
    let told: Vec<String> = since.collect();
    let count = |text: &str| told.iter().filter(|line| line.contains(text)).count();
    // The TaskRun, its pod and the PipelineRun.
    assert_eq!((count(NOT_CONFIGURED), count("the ends of runs are not seen")), (3, 0), "{told:#?}");
    // Until another reload restores it.
    std::fs::write(&path, yaml).unwrap();
    tasks.world.doorward.signal("HUP");
    tasks.world.doorward.wait_for_generation(3).await;
    let task = tasks.bobs(&Tasks::release("back-again")).await;
    let pod_token = tasks.pod_token(&task.pod, DOOR).await;
    tasks.exchange(&pod_token, &ASKED).await.token();
}

/// The watches were those of the start: tasks there got no tokens until a restart, and ends of tokens from other
/// replicas were not seen here.
#[tokio::test]
async fn a_reload_watches_added_namespaces_and_ends_the_tokens_in_removed_ones() {
    let (elsewhere, listed) = ("namespaces: [elsewhere]}]}", "namespaces: ['{ns}']}]}");
    let mut tasks = Tasks::with(|yaml| yaml.change(listed, elsewhere), &[]).await;
    let listed = listed.replace("{ns}", &tasks.world.namespace);
    let task = tasks.bobs(&Tasks::release("brought")).await;
    let pod_token = tasks.pod_token(&task.pod, DOOR).await;
    is_refused(&tasks, "not listed", &pod_token, "no task in namespace").await;

    tasks.world.doorward.change(elsewhere, &listed);
    tasks.world.doorward.signal("HUP");
    let given = found(async || {
        let answer = tasks.exchange(&pod_token, &ASKED).await;
        (answer.status == 200).then_some(answer)
    });
    let own = given.await.token();
    let log = tasks.world.doorward.log();
    assert!(log.iter().all(|line| !line.to_string().contains(NOT_CONFIGURED)), "no task had a token elsewhere");

    tasks.world.doorward.change(&listed, elsewhere);
    tasks.world.doorward.signal("HUP");
    tasks.world.doorward.wait_for_log_containing(NOT_CONFIGURED).await;
    tasks.is_dead(&own).await;

    tasks.world.doorward.change(elsewhere, &listed);
    tasks.world.doorward.signal("HUP");
    let over = "the run has ended, or its tokens were ended";
    until(async || tasks.exchange(&pod_token, &ASKED).await.text().contains(over)).await;
    tasks.is_dead(&own).await;
}

/// Each replica caches what it got, and one that saw the end already in the trail kept its cache until the token
/// expired.
#[tokio::test]
async fn a_reload_ends_cached_provider_tokens_even_if_another_replica_reported_it() {
    let given = json!({"access_token": "given", "token_type": "Bearer", "expires_in": 3600}).to_string();
    let mut provider = Upstream::scripted(move |_| Reply::json(200, &given)).await;
    let redis = RedisServer::start(&["--appendonly", "yes", "--appendfsync", "always"]);
    let tasks = on_redis_with(&redis, onward_to(&provider.url())).await;
    let there = replica(&tasks).await;
    let task = tasks.bobs(&Tasks::release("twice")).await;
    let pod_token = tasks.pod_token(&task.pod, DOOR).await;
    let asked = [("audience", "vault"), ("scope", "push")];
    let answer = settled(async || exchange_at(&there, &pod_token, &asked).await).await;
    assert_eq!(answer.token(), "given");

    let (listed, elsewhere) = (format!("namespaces: ['{}']}}]}}", tasks.world.namespace), "namespaces: [elsewhere]}]}");
    tasks.world.doorward.change(&listed, elsewhere);
    tasks.world.doorward.signal("HUP");
    let uid = &task.pod["metadata"]["uid"];
    tasks.world.doorward.record(|line| line["unmapped"]["tokens_ended"]["uid"] == *uid).await;
    assert_eq!(provider.requests().len(), 1, "it has none itself");

    there.change(&listed, elsewhere);
    there.signal("HUP");
    provider.wait_for(2).await;
    let calls = provider.requests();
    assert_eq!(calls.last().unwrap().line(), "POST /revoke HTTP/1.1", "{calls:#?}");
}

/// Regression: these tokens stayed valid until they expired, as after a restart no watch was left to end them.
#[tokio::test]
async fn the_tokens_of_a_cluster_or_namespace_that_a_restart_removes_are_refused() {
    let servers = "resource_servers: [{id: target, secret: {file: target}, audiences: ['https://target.test']}]";
    for without in ["{issuer: a}", "{issuer: cluster, kubernetes: cluster, namespaces: [elsewhere]}"] {
        let change = |yaml: String| yaml.change("tokens: {", &format!("tokens: {{{servers}, "));
        let mut tasks = Tasks::with(change, &[("target", SECRET)]).await;
        let (_task, own) = with_token(&tasks, "left-behind").await;
        assert_eq!(is_active(&tasks, &own).await, true);
        let entry = format!("{{issuer: cluster, kubernetes: cluster, namespaces: ['{}']}}", tasks.world.namespace);
        // Before anything reads it again.
        tasks.world.doorward.signal("STOP");
        tasks.world.doorward.change(&entry, without);
        tasks.world.doorward = tasks.world.doorward.kill_and_restart().await;
        tasks.world.doorward.wait_for_keys_at("localhost", &tasks.world.issuer).await;
        tasks.is_dead(&own).await;
        let refused = tasks.used(&own).await;
        assert!(
            refused.text().contains("`tokens.exchange` does not name the cluster"),
            "{without}: {}",
            refused.text()
        );
        assert_eq!(is_active(&tasks, &own).await, false, "{without}");
    }
}

/// Through a route of its own, and without tokens for its tasks.
#[tokio::test]
async fn an_api_server_that_answers_with_a_uid_of_another_cluster_gives_no_run_a_cause() {
    let uid = Arc::new(OnceLock::<Value>::new());
    let answer = Arc::clone(&uid);
    let hostile =
        Upstream::scripted(move |request| match answer.get().filter(|_| request.line().starts_with("POST ")) {
            Some(uid) => Reply::json(201, &json!({"kind": "PipelineRun", "metadata": {"uid": uid}}).to_string()),
            None => Reply::json(200, "{}"),
        })
        .await;
    let upstream = format!(
        "upstreams:\n  - {{name: hostile, url: '{}', credential: {{bearer: {{file: token}}}}}}\n",
        hostile.url()
    );
    let route = "routes:\n  - {name: b, kind: kubernetes, hosts: [b.test], schemes: [bearer], issuers: [a], upstream: hostile}\n";
    let change = |yaml: String| {
        yaml.change("upstreams:\n", &upstream)
            .change("routes:\n", route)
            .change("{id: dev, on: {routes: [api]}", "{id: dev, on: {routes: [api, b]}")
    };
    let mut tasks = Tasks::with(change, &[]).await;
    let run = tasks.world.api.create(&tasks.path("pipelineruns"), &Tasks::release("past")).await;
    uid.set(run["metadata"]["uid"].clone()).unwrap();
    let line = format!("POST {} HTTP/1.1", tasks.path("pipelineruns"));
    let token = tasks.world.developer("bob");
    let lines = [line.as_str(), "Host: b.test", &token, "Content-Type: application/json"];
    let made = tasks.world.doorward.send(&lines, Tasks::release("there").to_string().as_bytes()).await;
    assert_eq!((made.status, &made.json()["metadata"]["uid"]), (201, &run["metadata"]["uid"]), "{}", made.text());
    tasks.world.doorward.wait_for_log_containing("no cluster of `tokens.exchange` names the upstream").await;
    let task = tasks.task_of(run).await;
    let here = tasks.pod_token(&task.pod, DOOR).await;
    is_refused(&tasks, "a run past Doorward", &here, "the cause of run past is not known").await;
}
