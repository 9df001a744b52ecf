//! Gaps in the watches that end tokens: the API server, the store or a connection is down while a run ends.

use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use super::{
    api_server::ApiServer,
    tasks::{DOOR, EACH, TARGET, Tasks, claims, exchange, rights},
    token_ends::{on_redis, with_token},
};
use crate::{
    fixture::Change,
    harness::{Raw, RedisServer, Wire, found, request, until},
};

/// How soon after a gap the tokens of runs that ended in it are invalid: twice the promised time, for busy machines.
const SOON: Duration = Duration::from_secs(4);

/// The number of connection attempts that three watches make within some seconds. If their pauses kept doubling, so
/// many would take longer than [`SOON`].
const TRIES: usize = 18;

/// Waits until a token is refused, whatever the responses until then: the trouble may last a moment longer.
async fn dead_soon(tasks: &Tasks, token: &str) {
    let since = Instant::now();
    until(async || tasks.used(token).await.status == 401).await;
    assert!(since.elapsed() < SOON, "{:?} after the gap", since.elapsed());
    tasks.is_dead(token).await;
}

#[tokio::test]
async fn while_the_api_server_is_away_no_task_gets_a_token_and_what_ended_meanwhile_is_found() {
    let server = ApiServer::get().await.address;
    let wire = Wire::to(server).await;
    let tasks = Tasks::with(|yaml| yaml.change(&server.to_string(), &wire.address().to_string()), &[]).await;
    let (task, own) = with_token(&tasks, "gap").await;
    let pod_token = tasks.pod_token(&task.pod, DOOR).await;
    wire.cut();
    let answer = exchange(&tasks.world, &pod_token, &[("audience", TARGET), ("scope", "push")]).await;
    assert_eq!((answer.status, &answer.json()["error"]), (503, &json!("temporarily_unavailable")), "{}", answer.text());
    assert!(answer.header("retry-after").is_some(), "{}", answer.head);
    assert_ne!(tasks.used(&own).await.status, 401, "the token is good, and the trouble is ours");
    tasks.cancel(&task).await;
    tasks.until_ended(&task).await;
    // It must still retry often.
    let before = wire.taken();
    until(async || wire.taken() >= before + TRIES).await;
    wire.mend();
    dead_soon(&tasks, &own).await;
    let answer = tasks.once_over(&pod_token, &[("audience", TARGET), ("scope", "push")]).await;
    assert_eq!(answer.status, 400, "kubernetes:6.4 watch cut and begun anew: {}", answer.text());
}

/// As with a role that allows only lookups of single objects: the caller is found, but no end would be seen.
#[tokio::test]
async fn where_the_ends_of_a_kind_cannot_be_seen_no_task_that_ends_with_it_gets_a_token() {
    let tasks = Tasks::with_rights(&rights(&["get"], &["get"])).await;
    let of_alone = tasks.pod_token(&tasks.bobs(&Tasks::alone()).await.pod, DOOR).await;
    let of_release = tasks.pod_token(&tasks.bobs(&Tasks::release("unseen")).await.pod, DOOR).await;
    // The response once it is not a temporary error.
    let ask = async |pod_token: &str| {
        found(async || {
            let answer = exchange(&tasks.world, pod_token, &[("audience", TARGET), ("scope", "alone")]).await;
            let is_meant = answer.status != 503 || answer.text().contains("the ends of runs in namespace");
            is_meant.then_some(answer)
        })
        .await
    };
    let refused = async |pod_token: &str, what: &str| {
        let answer = ask(pod_token).await;
        assert_eq!((answer.status, &answer.json()["error"]), (503, &json!("temporarily_unavailable")), "{what}");
    };
    refused(&of_alone, "the end of its pod").await;
    tasks.have_rights(&rights(&EACH, &["get"])).await;
    until(async || ask(&of_alone).await.status == 200).await;
    refused(&of_release, "the end of its PipelineRun").await;
    tasks.have_rights(&rights(&EACH, &EACH)).await;
    until(async || ask(&of_release).await.status == 200).await;
}

/// How many requests of these kinds about pods and runs the API server got from Doorward.
fn asked(tasks: &Tasks, verb: &str) -> usize {
    let name = format!("system:serviceaccount:{}:doorward", tasks.world.namespace);
    let is_ours = |event: &&Value| {
        let resource = event["objectRef"]["resource"].as_str();
        event["verb"] == verb
            && event["user"]["username"] == *name
            && event["impersonatedUser"].is_null()
            && event["stage"] == "ResponseComplete"
            && matches!(resource, Some("pods" | "taskruns" | "pipelineruns"))
    };
    tasks.world.audit().iter().filter(is_ours).count()
}

#[tokio::test]
async fn where_nothing_happens_for_long_an_exchange_asks_the_api_server_for_no_object() {
    let tasks = Tasks::start().await;
    let (task, _) = with_token(&tasks, "quiet").await;
    let pod_token = tasks.pod_token(&task.pod, DOOR).await;
    // Three watches, each of four seconds: longer than a single answer is trusted.
    let watched = asked(&tasks, "watch");
    until(async || asked(&tasks, "watch") >= watched + 12).await;
    let before = asked(&tasks, "get");
    for _ in 0..20 {
        tasks.exchange(&pod_token, &[("audience", TARGET), ("scope", "push")]).await.token();
    }
    let last = tasks.exchange(&pod_token, &[("audience", TARGET), ("scope", "push")]).await.token();
    // Earlier requests have been logged by now.
    assert_eq!(tasks.used(&last).await.status, 200);
    tasks.world.event(|event| event["impersonatedUser"]["username"] == "bob" && event["verb"] == "list").await;
    assert_eq!(asked(&tasks, "get"), before);
}

#[tokio::test]
async fn a_client_that_creates_a_run_and_leaves_before_the_answer_is_its_cause() {
    let server = ApiServer::get().await.address;
    let wire = Wire::to(server).await;
    let tasks = Tasks::with(|yaml| yaml.change(&server.to_string(), &wire.address().to_string()), &[]).await;
    // One that is answered, so that everything works until then.
    let (_task, _) = with_token(&tasks, "before").await;
    let run = Tasks::release("left");
    let token_of_bob = tasks.world.developer("bob");
    let mut client = Raw::connect(tasks.world.doorward.address("public")).await;
    // This gives its worker a connection to the API server: a new one would hang in its handshake.
    let line = format!("GET {}?limit=1 HTTP/1.1", tasks.path("pipelineruns"));
    client.send(request(&[line.as_str(), "Host: localhost", &token_of_bob], b"")).await;
    assert_eq!(client.answer().await.status, 200);
    wire.hold();
    let line = format!("POST {} HTTP/1.1", tasks.path("pipelineruns"));
    let lines = [line.as_str(), "Host: localhost", &token_of_bob, "Content-Type: application/json"];
    client.send(request(&lines, run.to_string().as_bytes())).await;
    let path = format!("{}/left", tasks.path("pipelineruns"));
    let made = found(async || {
        let answer = tasks.world.api.ask("GET", &path, None).await;
        (answer.status == 200).then(|| answer.json())
    })
    .await;
    drop(client);
    let request = &made["metadata"]["annotations"]["doorward.dev/request-id"];
    let has_left = |record: &Value| {
        record["metadata"]["correlation_uid"] == *request && record.to_string().contains("client_gone")
    };
    tasks.world.doorward.record(has_left).await;
    wire.release();
    let task = tasks.task_of(made).await;
    let pod_token = tasks.pod_token(&task.pod, DOOR).await;
    let own = tasks.exchange(&pod_token, &[("audience", TARGET), ("scope", "push")]).await.token();
    assert_eq!(claims(&own)["sub"], "bob");
}

#[tokio::test]
async fn a_silently_cut_watch_is_noticed_and_runs_that_ended_meanwhile_are_found() {
    let server = ApiServer::get().await.address;
    let wire = Wire::to(server).await;
    let mut tasks = Tasks::with(|yaml| yaml.change(&server.to_string(), &wire.address().to_string()), &[]).await;
    let (task, own) = with_token(&tasks, "silence").await;
    wire.silence();
    let silent = Instant::now();
    tasks.cancel(&task).await;
    // Not by using it, which would wait for a response on a connection that is cut too.
    tasks.world.doorward.wait_for_log_containing("tokens have ended").await;
    assert!(silent.elapsed() < SOON, "dead after {:?}", silent.elapsed());
    tasks.is_dead(&own).await;
}

#[tokio::test]
async fn a_run_created_during_a_brief_store_outage_has_its_cause() {
    let mut redis = RedisServer::start(&["--appendonly", "yes", "--appendfsync", "always"]);
    let mut tasks = on_redis(&redis).await;
    let (_task, _) = with_token(&tasks, "before").await;
    redis.kill();
    let made = tasks.made_by("bob", &Tasks::release("meanwhile"), &[]).await;
    assert_eq!(made.status, 201, "{}", made.text());
    tasks.world.doorward.wait_for_log_containing("cannot store the cause of a run yet").await;
    redis.restart();
    tasks.world.doorward.wait_for_log_containing("the cause of a run is stored now").await;
    let task = tasks.task_of(made.json()).await;
    let pod_token = tasks.pod_token(&task.pod, DOOR).await;
    let own = tasks.exchange(&pod_token, &[("audience", TARGET), ("scope", "push")]).await.token();
    assert_eq!(claims(&own)["sub"], "bob");
}

/// No client was connected, so that the process ended at once, and nobody else knew who caused the run.
#[tokio::test]
async fn a_run_created_during_a_store_outage_has_its_cause_even_if_doorward_stops() {
    let mut redis = RedisServer::start(&["--appendonly", "yes", "--appendfsync", "always"]);
    let mut tasks = on_redis(&redis).await;
    let (_task, _) = with_token(&tasks, "before").await;
    redis.kill();
    let made = tasks.made_by("bob", &Tasks::release("at-the-end"), &[]).await;
    assert_eq!(made.status, 201, "{}", made.text());
    let doorward = &mut tasks.world.doorward;
    doorward.wait_for_log_containing("cannot store the cause of a run yet").await;
    doorward.signal("TERM");
    doorward.wait_for_log("draining").await;
    // No connections are accepted, and none is left.
    doorward.until_closed().await;
    redis.restart();
    doorward.wait_for_log_containing("the cause of a run is stored now").await;
    assert!(doorward.ended().await.success());
}

#[tokio::test]
async fn a_run_that_ends_while_the_store_is_away_has_no_tokens_soon_after_it_is_back() {
    let mut redis = RedisServer::start(&["--appendonly", "yes", "--appendfsync", "always"]);
    let tasks = on_redis(&redis).await;
    let (task, own) = with_token(&tasks, "stored").await;
    redis.kill();
    tasks.cancel(&task).await;
    // The replica that sees the end refuses its tokens even without the store.
    dead_soon(&tasks, &own).await;
    tasks.until_ended(&task).await;
    let tried =
        "tokens of ended runs are refused here, but the ends cannot be recorded, so tasks get no tokens; will retry";
    until(async || tasks.world.doorward.log().iter().filter(|line| line["message"] == tried).count() >= 4).await;
    redis.restart();
    dead_soon(&tasks, &own).await;
}

/// A refused connection is noticed at once, but a hanging store keeps callers waiting.
#[tokio::test]
async fn every_end_that_is_seen_while_the_store_hangs_counts_here_at_once() {
    let redis = RedisServer::start(&["--appendonly", "yes", "--appendfsync", "always"]);
    let mut tasks = on_redis(&redis).await;
    let mut all = Vec::new();
    for name in ["first", "second", "third"] {
        all.push(with_token(&tasks, name).await);
    }
    // It accepts connections and answers nothing, until it is continued.
    let said: String = redis.ask(&["INFO", "server"]).await;
    let pid = said.lines().find_map(|line| line.strip_prefix("process_id:")).unwrap().trim().parse().unwrap();
    let signal = |signal| kill_process(Pid::from_raw(pid).unwrap(), signal).unwrap();
    signal(Signal::STOP);
    let [(first, of_first), (second, of_second), (third, of_third)] = all.as_slice() else { panic!() };
    tasks.cancel(first).await;
    dead_soon(&tasks, of_first).await;
    // The store was waited for, and has failed.
    tasks.cancel(second).await;
    dead_soon(&tasks, of_second).await;
    tasks.world.doorward.wait_for_log_containing("tokens of ended runs are refused here").await;
    // Nothing of it is left to be listed.
    for path in [format!("{}/third", tasks.path("pipelineruns")), tasks.task_run(third)] {
        assert_eq!(tasks.world.api.ask("DELETE", &path, None).await.status, 200);
    }
    dead_soon(&tasks, of_third).await;
    signal(Signal::CONT);
    // All three are recorded once the store is back, and none twice.
    let task_runs = all.iter().map(|(task, _)| &task.pod["metadata"]["ownerReferences"][0]["uid"]);
    let records = async |uid: &Value| {
        tasks.world.doorward.records(1, |line| line["unmapped"]["tokens_ended"]["uid"] == *uid).await
    };
    for uid in task_runs.clone() {
        records(uid).await;
    }
    for uid in task_runs {
        let ended = records(uid).await;
        assert_eq!(ended.len(), 1, "{ended:#?}");
    }
}
