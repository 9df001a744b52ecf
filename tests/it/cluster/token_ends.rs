//! Tokens end with the run that they were issued for, however it ends and whichever replica watches.

use std::time::{Duration, Instant};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde_json::{Value, json};
use url::form_urlencoded;

use super::{
    api_server::ApiServer,
    tasks::{DOOR, TARGET, Task, Tasks, exchange, exchange_at},
};
use crate::{
    fixture::Change,
    harness::{Doorward, Raw, RedisServer, Reply, Upstream, Wire, exchange_form, now, part, settled, until, within},
};

/// A task of Bob and its token.
pub async fn with_token(tasks: &Tasks, name: &str) -> (Task, String) {
    let task = tasks.bobs(&Tasks::release(name)).await;
    let pod_token = tasks.pod_token(&task.pod, DOOR).await;
    let own = tasks.exchange(&pod_token, &[("audience", TARGET), ("scope", "push")]).await.token();
    assert_eq!(tasks.used(&own).await.status, 200);
    (task, own)
}

async fn delete(tasks: &Tasks, path: &str) {
    let answer = tasks.world.api.ask("DELETE", path, None).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
}

fn name(object: &Value) -> &str {
    object["metadata"]["name"].as_str().unwrap()
}

#[tokio::test]
async fn tokens_end_with_their_run_however_that_ends() {
    let tasks = Tasks::start().await;
    let (other, others) = with_token(&tasks, "other").await;

    // Its steps end.
    let (task, own) = with_token(&tasks, "done").await;
    let path = format!("{}/{}", tasks.path("pods"), name(&task.pod));
    let done = json!({"metadata": {"annotations": {"hold": null}}});
    assert_eq!(tasks.world.api.ask("PATCH", &path, Some(&done)).await.status, 200);
    tasks.is_dead(&own).await;

    // It is complete, although something in its pod continues.
    let (task, own) = with_token(&tasks, "complete").await;
    let now = "2026-01-01T00:00:00Z";
    let succeeded =
        json!({"type": "Succeeded", "status": "True", "reason": "Succeeded", "message": "", "lastTransitionTime": now});
    let complete = json!({"status": {"conditions": [succeeded], "completionTime": now}});
    let path = format!("{}/status", tasks.task_run(&task));
    assert_eq!(tasks.world.api.ask("PATCH", &path, Some(&complete)).await.status, 200);
    tasks.is_dead(&own).await;
    let pod = tasks.world.api.read(&format!("{}/{}", tasks.path("pods"), name(&task.pod))).await;
    assert_eq!(pod["status"]["phase"], "Running", "its sidecar may still send");

    // Only the task is cancelled.
    let (task, own) = with_token(&tasks, "cancelled").await;
    let cancel = json!({"spec": {"status": "TaskRunCancelled"}});
    assert_eq!(tasks.world.api.ask("PATCH", &tasks.task_run(&task), Some(&cancel)).await.status, 200);
    tasks.is_dead(&own).await;

    let (task, own) = with_token(&tasks, "deleted").await;
    delete(&tasks, &tasks.task_run(&task)).await;
    tasks.is_dead(&own).await;

    // Its pod is deleted by hand.
    let (task, own) = with_token(&tasks, "evicted").await;
    delete(&tasks, &format!("{}/{}?gracePeriodSeconds=0", tasks.path("pods"), name(&task.pod))).await;
    tasks.is_dead(&own).await;

    // It will time out.
    let mut run = Tasks::release("late");
    run["spec"]["timeouts"] = json!({"pipeline": "60s", "tasks": "60s"});
    let task = tasks.bobs(&run).await;
    let pod_token = tasks.pod_token(&task.pod, DOOR).await;
    let answer = exchange(&tasks.world, &pod_token, &[("audience", TARGET), ("scope", "push")]).await;
    let lasts = answer.json()["expires_in"].as_i64().unwrap();
    assert!(lasts <= 60, "no longer than the run may take: {}", answer.text());
    assert_eq!(tasks.used(&others).await.status, 200, "that of another run goes on");
    tasks.cancel(&other).await;
    tasks.is_dead(&others).await;

    let records = tasks.world.doorward.audit();
    let mut ended: Vec<&str> =
        records.iter().filter_map(|record| record["unmapped"]["tokens_ended"]["uid"].as_str()).collect();
    let all = ended.len();
    ended.sort_unstable();
    ended.dedup();
    assert_eq!(ended.len(), all, "each end is written once, however often the cluster tells of it");
}

/// Tekton's controller deletes nothing, and the garbage collector leaves orphans alone.
#[tokio::test]
async fn the_end_of_a_pipeline_run_alone_ends_the_tokens_of_its_tasks() {
    let tasks = Tasks::start().await;
    let (task, own) = with_token(&tasks, "orphaned").await;
    let pod_token = tasks.pod_token(&task.pod, DOOR).await;
    delete(&tasks, &format!("{}/orphaned?propagationPolicy=Orphan", tasks.path("pipelineruns"))).await;
    tasks.is_dead(&own).await;
    let answer = tasks.once_over(&pod_token, &[("audience", TARGET), ("scope", "push")]).await;
    assert_eq!(answer.status, 400, "{}", answer.text());
    let pod = tasks.world.api.read(&format!("{}/{}", tasks.path("pods"), name(&task.pod))).await;
    assert_eq!(pod["status"]["phase"], "Running", "the task itself goes on");
}

#[tokio::test]
async fn the_end_of_tokens_is_in_the_trail_though_that_could_not_be_written_at_first() {
    let mut tasks = Tasks::with_faults(|yaml| yaml).await;
    let (task, own) = with_token(&tasks, "unwritten").await;
    let uid = task.pod["metadata"]["uid"].clone();
    let is_told = |tasks: &Tasks| {
        tasks.world.doorward.audit().iter().any(|record| record["unmapped"]["tokens_ended"]["uid"] == uid)
    };
    tasks.world.doorward.break_trail(true);
    tasks.cancel(&task).await;
    tasks.world.doorward.wait_for_log_containing("tokens have ended").await;
    tasks.world.doorward.wait_for_log_containing("cannot be written into the audit trail").await;
    assert!(!is_told(&tasks));
    tasks.world.doorward.break_trail(false);
    tasks.world.doorward = tasks.world.doorward.kill_and_restart().await;
    tasks.world.doorward.wait_for_keys_at("localhost", &tasks.world.issuer).await;
    until(async || is_told(&tasks)).await;
    tasks.is_dead(&own).await;
}

const NESTED: &str = "rules:
  - id: nested
    on: {token: {audiences: ['https://target.test'], scopes: [nested], service_accounts: ['{ns}/builder']}}
    who: {issuers: [own], on_behalf_of: {}}
    do: allow
";

#[tokio::test]
async fn a_revoked_person_has_no_tokens_in_runs_that_their_tasks_started() {
    let tasks = Tasks::with(|yaml| yaml.change("rules:\n", NESTED), &[]).await;
    let (outer, own) = with_token(&tasks, "outer").await;
    let line = format!("POST {} HTTP/1.1", tasks.path("pipelineruns"));
    let bearer = format!("Authorization: Bearer {own}");
    let lines = [&*line, "Host: localhost", &bearer, "Content-Type: application/json"];
    let made = tasks.world.doorward.send(&lines, Tasks::release("inner").to_string().as_bytes()).await;
    assert_eq!(made.status, 201, "{}", made.text());
    let inner = tasks.task_of(made.json()).await;
    let pod_token = tasks.pod_token(&inner.pod, DOOR).await;
    let asked = [("audience", TARGET), ("scope", "nested")];
    let nested = tasks.exchange(&pod_token, &asked).await.token();
    let claims = part(&nested, 1);
    assert_eq!(claims["origin"], json!({"issuer": "a", "sub": "bob"}), "{claims:#}");
    assert_eq!(claims["kind"], "human", "what Bob is, and not who acts for him: {claims:#}");
    assert_eq!(
        claims["act"]["act"]["sub"], claims["act"]["sub"],
        "the task that started the run acted before: {claims:#}"
    );
    assert_eq!(tasks.used(&nested).await.status, 403, "it is good, and has not the scope");
    // The task has ended, and its token with it; the run that it started continues.
    tasks.cancel(&outer).await;
    tasks.is_dead(&own).await;
    tasks.exchange(&pod_token, &asked).await.token();
    let (code, said) =
        tasks.world.doorward.operator(&["revoke", "--issuer", "a", "--subject", "bob", "--why", "left"]).await;
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(tasks.used(&nested).await.status, 401);
    let answer = tasks.exchange(&pod_token, &asked).await;
    assert_eq!(answer.status, 400, "{}", answer.text());
    // By this text `doorward token` knows that there will be no other.
    let over = "the run has ended, or its tokens were ended: who caused it, or acted for them, has been revoked";
    assert!(answer.text().contains(over), "{}", answer.text());
}

#[tokio::test]
async fn the_tokens_and_streams_of_tasks_end_when_their_service_account_is_revoked() {
    let tasks = Tasks::start().await;
    let (task, own) = with_token(&tasks, "compromised").await;
    let pod_token = tasks.pod_token(&task.pod, DOOR).await;
    let mut watch = tasks.watch(&tasks.world.doorward, &own).await;
    let account = format!("system:serviceaccount:{}:builder", tasks.world.namespace);
    let arguments = ["revoke", "--issuer", "cluster", "--subject", &account, "--why", "stolen"];
    let (code, said) = tasks.world.doorward.operator(&arguments).await;
    assert_eq!(code, Some(0), "{said}");
    let revoked = Instant::now();
    watch.rest().await;
    assert!(revoked.elapsed() < Duration::from_secs(2), "after {:?}", revoked.elapsed());
    tasks.is_dead(&own).await;
    let answer = tasks.exchange(&pod_token, &[("audience", TARGET), ("scope", "push")]).await;
    assert_eq!(answer.status, 400, "{}", answer.text());
}

#[tokio::test]
async fn a_run_that_ended_while_unwatched_has_no_tokens_after_the_restart() {
    let mut tasks = Tasks::start().await;
    let (ended, of_ended) = with_token(&tasks, "ended").await;
    let (deleted, of_deleted) = with_token(&tasks, "deleted").await;
    let (_lives, of_lives) = with_token(&tasks, "lives").await;
    // It is down while both end: of one the objects still exist, of the other nothing is left.
    tasks.world.doorward.signal("STOP");
    tasks.cancel(&ended).await;
    delete(&tasks, &format!("{}/{}", tasks.path("pipelineruns"), name(&deleted.run))).await;
    delete(&tasks, &tasks.task_run(&deleted)).await;
    tasks.world.doorward = tasks.world.doorward.kill_and_restart().await;
    tasks.world.doorward.wait_for_keys_at("localhost", &tasks.world.issuer).await;
    let back = Instant::now();
    tasks.is_dead(&of_ended).await;
    tasks.is_dead(&of_deleted).await;
    assert!(back.elapsed() < Duration::from_secs(4), "{:?} after the restart", back.elapsed());
    assert_eq!(tasks.used(&of_lives).await.status, 200, "the keys are the same, and so is the token");
}

#[tokio::test]
async fn a_watch_ends_with_the_run_whose_token_opened_it() {
    let tasks = Tasks::start().await;
    let (task, own) = with_token(&tasks, "watching").await;
    let (other, others) = with_token(&tasks, "going-on").await;
    let mut watch = tasks.watch(&tasks.world.doorward, &own).await;
    let mut twin = tasks.watch(&tasks.world.doorward, &others).await;
    let note = async |text: &str| {
        let noted = json!({"metadata": {"annotations": {"note": text}}});
        assert_eq!(tasks.world.api.ask("PATCH", &tasks.task_run(&other), Some(&noted)).await.status, 200);
    };
    note("while-both-run").await;
    for watch in [&mut watch, &mut twin] {
        tells(watch, "while-both-run").await;
    }
    tasks.cancel(&task).await;
    tasks.until_ended(&task).await;
    let ended = Instant::now();
    watch.rest().await;
    let after = ended.elapsed();
    assert!(after < Duration::from_secs(2), "kubernetes:6.4 open watch closed: after {after:?}");
    tasks.is_dead(&own).await;
    note("after-one-has-ended").await;
    tells(&mut twin, "after-one-has-ended").await;
}

/// Waits until an open watch has reported something.
async fn tells(watch: &mut Raw, what: &str) {
    let mut told = Vec::new();
    while !String::from_utf8_lossy(&told).contains(what) {
        let more = watch.some().await;
        assert!(!more.is_empty(), "the watch has ended without {what}");
        told.extend(more);
    }
}

#[tokio::test]
async fn a_holder_can_revoke_its_own_token() {
    let tasks = Tasks::start().await;
    let (_task, own) = with_token(&tasks, "tidy").await;
    let revoke =
        async |token: &str| tasks.world.doorward.submit("/oauth2/revoke", &[], &format!("token={token}")).await.status;
    // One token in 256 ends like this by itself, and would rightly be ended.
    let other = if own.ends_with("AA") { "Ag" } else { "AA" };
    let mut forged = own.clone();
    forged.replace_range(forged.len() - 2.., other);
    for none in ["", "x", "a.b.c", &forged] {
        assert_eq!(revoke(none).await, if none.is_empty() { 400 } else { 200 }, "{none}");
    }
    assert_eq!(tasks.used(&own).await.status, 200);
    assert_eq!(revoke(&own).await, 200);
    tasks.is_dead(&own).await;
    assert_eq!(revoke(&own).await, 200, "once more is no error (RFC 7009 section 2.2)");
}

#[tokio::test]
async fn a_thousand_exchanges_of_a_pod_ask_the_cluster_about_its_token_once() {
    let tasks = Tasks::start().await;
    let task = tasks.bobs(&Tasks::release("busy")).await;
    let pod_token = tasks.pod_token(&task.pod, DOOR).await;
    let before = tasks.world.audit().len();
    let began = Instant::now();
    let asked = [("audience", TARGET), ("scope", "push")];
    let clients = (0..50).map(|_| async {
        for _ in 0..20 {
            tasks.exchange(&pod_token, &asked).await.token();
        }
    });
    futures_util::future::join_all(clients).await;
    let reviews = tasks.world.audit().split_off(before);
    let reviews = reviews.iter().filter(|event| event["objectRef"]["resource"] == "tokenreviews").count();
    // A result is cached for ten seconds.
    let most = 1 + began.elapsed().as_secs() / 10;
    assert!(reviews >= 1 && reviews as u64 <= most, "{reviews} reviews in {:?}", began.elapsed());
}

/// Like the steps of ten pods that all begin at once, each on one connection without waiting for earlier responses.
#[tokio::test]
async fn a_thousand_exchanges_of_ten_pods_at_once_ask_the_cluster_about_each_token_once() {
    const PODS: usize = 10;
    let tasks = Tasks::start().await;
    let pods = (0..PODS).map(async |number| {
        let task = tasks.bobs(&Tasks::release(&format!("busy-{number}"))).await;
        // Its run has been recorded, as another token of the pod shows.
        let another = tasks.pod_token(&task.pod, DOOR).await;
        tasks.exchange(&another, &[("audience", TARGET), ("scope", "push")]).await.token();
        tasks.pod_token(&task.pod, DOOR).await
    });
    let pod_tokens = futures_util::future::join_all(pods).await;
    let (address, before, began) = (tasks.world.doorward.address("public"), tasks.world.audit().len(), Instant::now());
    let clients = pod_tokens.iter().map(async |pod_token| {
        let form = exchange_form(&[("subject_token", pod_token), ("audience", TARGET), ("scope", "push")]);
        let stream = tokio::net::TcpStream::connect(address).await.unwrap();
        let (client, connection) = h2::client::handshake(stream).await.unwrap();
        tokio::spawn(connection);
        let exchanges = (0..1000 / PODS).map(|_| {
            let (client, form) = (client.clone(), bytes::Bytes::from(form.clone()));
            async move {
                let request = http::Request::post("http://doorward.test/oauth2/token")
                    .header("content-type", "application/x-www-form-urlencoded")
                    .body(())
                    .unwrap();
                let (answer, mut body) = client.ready().await.unwrap().send_request(request, false).unwrap();
                body.send_data(form, true).unwrap();
                answer.await.unwrap().status().as_u16()
            }
        });
        futures_util::future::join_all(exchanges).await
    });
    let statuses = within(futures_util::future::join_all(clients)).await.concat();
    assert_eq!(statuses.len(), 1000);
    let given = statuses.iter().filter(|status| **status == 200).count();
    assert_eq!(given, 1000, "{statuses:?}");
    let reviews = tasks.world.audit().split_off(before);
    let reviews = reviews.iter().filter(|event| event["objectRef"]["resource"] == "tokenreviews").count();
    // A result is cached for ten seconds.
    let most = PODS as u64 * (1 + began.elapsed().as_secs() / 10);
    assert!(reviews >= PODS && reviews as u64 <= most, "{reviews} reviews in {:?}", began.elapsed());
}

/// P-256, for tests only.
fn signing_key() -> String {
    let pair =
        aws_lc_rs::signature::EcdsaKeyPair::generate(&aws_lc_rs::signature::ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
    let der = pair.to_pkcs8v1().unwrap();
    format!("-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n", BASE64_STANDARD.encode(der.as_ref()))
}

/// With sessions and tokens in Redis, and with keys shared by replicas.
pub async fn on_redis(redis: &RedisServer) -> Tasks {
    on_redis_with(redis, |yaml| yaml).await
}

/// The same. `more` edits the configuration.
pub async fn on_redis_with(redis: &RedisServer, more: impl FnOnce(String) -> String) -> Tasks {
    let (key, seal) = (signing_key(), BASE64_STANDARD.encode([7; 32]));
    let change = |yaml: String| {
        more(yaml)
            .change("tokens: {", "sessions: {keys: [{file: seal}]}\ntokens: {keys: [{file: tokens.pem}], ")
            .change(
                "store: {path: doorward.redb}",
                &format!("store: {{path: doorward.redb, redis: {{server: '{}'}}}}", redis.address()),
            )
    };
    Tasks::with(change, &[("tokens.pem", &key), ("seal", &seal)]).await
}

/// Another Doorward with the same configuration.
pub async fn replica(tasks: &Tasks) -> Doorward {
    replica_with(tasks, |yaml| yaml).await
}

/// Another Doorward with the same files. `change` edits the configuration.
pub async fn replica_with(tasks: &Tasks, change: impl FnOnce(String) -> String) -> Doorward {
    let dir = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(tasks.world.doorward.dir()).unwrap() {
        let path = entry.unwrap().path();
        let is_written =
            path.extension().is_some_and(|extension| ["yaml", "pem", "key"].iter().any(|own| extension == *own));
        let is_ours = path.file_name().is_some_and(|name| !name.to_string_lossy().starts_with("doorward."));
        let is_configuration = path.file_name().is_some_and(|name| name == "doorward.yaml");
        if path.is_file() && !is_configuration && (is_written && is_ours || path.extension().is_none()) {
            std::fs::copy(&path, dir.path().join(path.file_name().unwrap())).unwrap();
        }
    }
    let yaml = std::fs::read_to_string(tasks.world.doorward.dir().join("doorward.yaml")).unwrap();
    let there = Doorward::start_in(dir, &change(yaml)).await;
    there.wait_for_keys_at("localhost", &tasks.world.issuer).await;
    there
}

#[tokio::test]
async fn replicas_take_each_others_tokens_and_end_them_together() {
    let redis = RedisServer::start(&["--appendonly", "yes", "--appendfsync", "always"]);
    let tasks = on_redis(&redis).await;
    let there = replica(&tasks).await;
    let used_there = async |token: &str| tasks.used_at(&there, token).await.status;
    let dead_there = async |token: &str| {
        until(async || used_there(token).await == 401).await;
    };

    let (_task, own) = with_token(&tasks, "revoked").await;
    assert_eq!(used_there(&own).await, 200);
    assert_eq!(tasks.world.doorward.submit("/oauth2/revoke", &[], &format!("token={own}")).await.status, 200);
    dead_there(&own).await;

    // The run was created here, its token exchanged there, where a watch is opened with it.
    let task = tasks.bobs(&Tasks::release("across")).await;
    let pod_token = tasks.pod_token(&task.pod, DOOR).await;
    let asked = [("audience", TARGET), ("scope", "push")];
    let own = settled(async || exchange_at(&there, &pod_token, &asked).await).await.token();
    assert_eq!(tasks.used(&own).await.status, 200);
    let mut watch = tasks.watch(&there, &own).await;
    tasks.cancel(&task).await;
    tasks.until_ended(&task).await;
    let ended = Instant::now();
    watch.rest().await;
    assert!(ended.elapsed() < Duration::from_secs(2), "after {:?}", ended.elapsed());
    dead_there(&own).await;
    tasks.is_dead(&own).await;

    // The replica that issued it is gone when the run ends.
    let (task, own) = with_token(&tasks, "left").await;
    assert_eq!(used_there(&own).await, 200);
    tasks.world.doorward.signal("KILL");
    tasks.cancel(&task).await;
    dead_there(&own).await;
}

/// Configures tokens for tasks from a provider at this address, for the audience `vault`.
pub fn onward_to(url: &str) -> impl FnOnce(String) -> String + use<> {
    let onward = format!(
        "tokens: {{onward: [{{audience: vault, provider: {{jwt_bearer: {{token_url: '{url}/token'}}}}, assertion: {{audience: x}}, \
         revocation_url: '{url}/revoke'}}], exchange:"
    );
    move |yaml| {
        yaml.change("tokens: {exchange:", &onward).change(
            "audiences: ['https://target.test'], scopes: [push",
            "audiences: ['https://target.test', vault], scopes: [push",
        )
    }
}

#[tokio::test]
async fn a_token_of_another_provider_is_ended_there_with_the_run() {
    let given = json!({"access_token": "given", "token_type": "Bearer", "expires_in": 3600}).to_string();
    let mut provider = Upstream::scripted(move |_| Reply::json(200, &given)).await;
    let tasks = Tasks::with(onward_to(&provider.url()), &[]).await;
    let mut run = Tasks::release("onward");
    run["spec"]["timeouts"] = json!({"pipeline": "2m", "tasks": "2m"});
    let task = tasks.bobs(&run).await;
    let pod_token = tasks.pod_token(&task.pod, DOOR).await;
    let asked = [("audience", "vault"), ("scope", "push")];
    let answer = tasks.exchange(&pod_token, &asked).await;
    assert_eq!(answer.token(), "given");
    let form = |body: &[u8]| -> Vec<(String, String)> { form_urlencoded::parse(body).into_owned().collect() };
    let call = provider.only();
    let (_, assertion) = form(&call.body).into_iter().find(|(name, _)| name == "assertion").unwrap();
    let claims = part(&assertion, 1);
    assert_eq!(claims["doorward.dev/run"]["pod"]["name"], name(&task.pod), "{claims:#}");
    assert_eq!(claims["act"]["iss"], "https://kubernetes.default.svc", "{claims:#}");
    // The assertion expires at the run's timeout; the lifetime of the provider's token is up to the provider.
    assert!(claims["exp"].as_u64().unwrap() <= now() + 120, "{claims:#}");
    assert!(answer.json()["expires_in"].as_u64().unwrap() > 3000, "{}", answer.text());
    // Which of the pod's tokens was used makes no difference there.
    assert_eq!(claims["doorward.dev/run"]["pod_token"], Value::Null, "{claims:#}");
    let next = tasks.pod_token(&task.pod, DOOR).await;
    assert_ne!(part(&next, 1)["jti"], part(&pod_token, 1)["jti"]);
    assert_eq!(tasks.exchange(&next, &asked).await.token(), "given");
    assert_eq!(provider.requests().len(), 1, "it is held");

    tasks.cancel(&task).await;
    provider.wait_for(2).await;
    let calls = provider.requests();
    let ended = calls.last().unwrap();
    assert_eq!(ended.line(), "POST /revoke HTTP/1.1", "{calls:#?}");
    assert!(form(&ended.body).contains(&("token".to_owned(), "given".to_owned())), "{calls:#?}");
    assert_eq!(tasks.exchange(&pod_token, &asked).await.status, 400);
    assert_eq!(provider.requests().len(), 2, "what is held is not given any more");
}

/// Long after the assertion for it has expired, and while nothing watches.
#[tokio::test]
async fn a_token_of_another_provider_that_lasts_long_is_ended_there_after_a_gap_as_well() {
    let given = json!({"access_token": "given", "token_type": "Bearer", "expires_in": 3600}).to_string();
    let mut provider = Upstream::scripted(move |_| Reply::json(200, &given)).await;
    let server = ApiServer::get().await.address;
    let wire = Wire::to(server).await;
    let (url, wired) = (provider.url(), wire.address().to_string());
    let onward = onward_to(&url);
    let tasks = Tasks::with_faults(|yaml| onward(yaml).change(&server.to_string(), &wired)).await;
    let task = tasks.bobs(&Tasks::release("long")).await;
    let pod_token = tasks.pod_token(&task.pod, DOOR).await;
    assert_eq!(tasks.exchange(&pod_token, &[("audience", "vault"), ("scope", "push")]).await.token(), "given");
    wire.cut();
    for path in [format!("{}/long", tasks.path("pipelineruns")), tasks.task_run(&task)] {
        assert_eq!(tasks.world.api.ask("DELETE", &path, None).await.status, 200);
    }
    tasks.world.doorward.set_clock_ahead(3000);
    wire.mend();
    provider.wait_for(2).await;
    let calls = provider.requests();
    assert_eq!(calls.last().unwrap().line(), "POST /revoke HTTP/1.1", "{calls:#?}");
    let uid = &task.pod["metadata"]["ownerReferences"][0]["uid"];
    tasks.world.doorward.record(|line| line["unmapped"]["tokens_ended"]["uid"] == *uid).await;
}
