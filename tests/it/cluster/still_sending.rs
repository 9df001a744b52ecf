//! Steps that continue to send while their run ends: the last requests that their tokens pass, and the first that are
//! refused.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::{sync::watch, task::JoinHandle};

use super::{
    tasks::{DOOR, OVER, TARGET, Task, Tasks},
    token_ends::{on_redis, replica},
};
use crate::{
    fixture::Change,
    harness::{Doorward, EXCHANGE, Raw, RedisServer, exchange_form, request, within},
};

/// How long after its end the tokens of a run may still be valid.
const GRACE: Duration = Duration::from_secs(2);

/// A request, and its result.
#[derive(Clone, Debug)]
struct Sent {
    at: Instant,
    answered: Instant,
    status: u16,
    text: String,
}

/// Sends the same request repeatedly on new connections, each as soon as the one before is answered.
struct Sender {
    sent: watch::Receiver<Vec<Sent>>,
    task: JoinHandle<()>,
}

impl Sender {
    fn start(at: &Doorward, lines: &[&str], body: &[u8]) -> Self {
        let (address, request) = (at.address("public"), request(lines, body));
        let (log, sent) = watch::channel(Vec::new());
        let task = tokio::spawn(async move {
            let mut raw = Raw::connect(address).await;
            loop {
                let at = Instant::now();
                raw.send(&request).await;
                let answer = raw.answer().await;
                let (answered, status, text) = (Instant::now(), answer.status, answer.text());
                log.send_modify(|log| log.push(Sent { at, answered, status, text }));
                if answer.closed || answer.header("connection") == Some("close") {
                    raw = Raw::connect(address).await;
                }
            }
        });
        Self { sent, task }
    }

    fn using(tasks: &Tasks, at: &Doorward, token: &str) -> Self {
        let line = format!("GET {} HTTP/1.1", tasks.path("taskruns"));
        Self::start(at, &[&line, "Host: localhost", &format!("Authorization: Bearer {token}")], b"")
    }

    /// Asks for more tokens for the same pod.
    fn exchanging(at: &Doorward, pod_token: &str) -> Self {
        let form = exchange_form(&[("subject_token", pod_token), ("audience", TARGET), ("scope", "push")]);
        Self::start(at, &EXCHANGE, form.as_bytes())
    }

    /// Waits until it has sent a request after `moment`.
    async fn sends_at(&mut self, moment: Instant) {
        within(self.sent.wait_for(|sent| sent.last().is_some_and(|sent| sent.at >= moment))).await.unwrap();
    }

    fn stop(self) -> Vec<Sent> {
        self.task.abort();
        self.sent.borrow().clone()
    }
}

/// When a run was told to end, and when it had ended.
struct End {
    told: Instant,
    ended: Instant,
}

/// Asserts that requests succeed until the run is told to end, and fail from [`GRACE`] after its end on, with a single
/// transition in between.
fn judge(what: &str, sent: &[Sent], end: &End, refused: u16, why: &[&str]) {
    let earlier = sent.first().unwrap().at;
    assert!(end.told - earlier >= Duration::from_secs(1), "{what}: it sent a second before the end");
    let first = sent.iter().find(|sent| sent.status == refused).unwrap_or_else(|| panic!("{what}: none was refused"));
    println!(
        "{what}: {} requests, refused {:?} after the end",
        sent.len(),
        first.at.saturating_duration_since(end.ended)
    );
    for one in sent {
        match one.status {
            200 => {
                assert!(one.at < end.ended + GRACE, "{what}: good {:?} after the end", one.at - end.ended);
                assert!(one.at < first.answered, "{what}: good again after a refusal: {one:?}");
            }
            status if status == refused => {
                assert!(one.answered > end.told, "{what}: refused before the end: {one:?}");
                assert!(why.iter().any(|why| one.text.contains(why)), "{what}: {}", one.text);
            }
            _ => panic!("{what}: {one:?}"),
        }
    }
    let last = sent.last().unwrap();
    assert!(last.at >= end.ended + GRACE && last.status == refused, "{what}: {last:?}");
}

/// One run from its start to two seconds and more after its end, while its step sends.
async fn sends_on(tasks: &Tasks, name: &str, end: impl AsyncFnOnce(&Task) -> End) {
    sends_on_in(tasks, name, &Tasks::release(name), end).await;
}

async fn sends_on_in(tasks: &Tasks, name: &str, run: &Value, end: impl AsyncFnOnce(&Task) -> End) {
    let task = tasks.bobs(run).await;
    let pod_token = tasks.pod_token(&task.pod, DOOR).await;
    let own = tasks.exchange(&pod_token, &[("audience", TARGET), ("scope", "push")]).await.token();
    let here = &tasks.world.doorward;
    let (mut uses, mut exchanges) = (Sender::using(tasks, here, &own), Sender::exchanging(here, &pod_token));
    let later = Instant::now() + Duration::from_millis(1100);
    uses.sends_at(later).await;
    exchanges.sends_at(later).await;
    let end = end(&task).await;
    let later = end.ended + GRACE + Duration::from_secs(1);
    uses.sends_at(later).await;
    exchanges.sends_at(later).await;

    judge(&format!("use, {name}"), &uses.stop(), &end, 401, &["token_revoked"]);
    let exchanges = exchanges.stop();
    judge(&format!("exchange, {name}"), &exchanges, &end, 400, &OVER);
    // Not even the last token that it got is still valid.
    let last = exchanges.iter().rfind(|sent| sent.status == 200).unwrap();
    let last: Value = serde_json::from_str(&last.text).unwrap();
    let answer = tasks.used(last["access_token"].as_str().unwrap()).await;
    let row = format!("kubernetes:6.4 token after the end, {name}");
    assert_eq!((answer.status, answer.reason()), (401, "token_revoked".to_owned()), "{row}: {}", answer.text());
}

#[tokio::test]
async fn a_step_that_is_still_sending_gets_through_until_the_end_of_its_run_and_not_after_it() {
    let tasks = Tasks::start().await;
    let cancelled = sends_on(&tasks, "cancelled", async |task| {
        let told = Instant::now();
        tasks.cancel(task).await;
        End { told, ended: Instant::now() }
    });
    let completed = sends_on(&tasks, "completed", async |task| {
        let path = format!("{}/{}", tasks.path("pods"), task.pod["metadata"]["name"].as_str().unwrap());
        let told = Instant::now();
        let done = json!({"metadata": {"annotations": {"hold": null}}});
        assert_eq!(tasks.world.api.ask("PATCH", &path, Some(&done)).await.status, 200);
        tasks.until_ended(task).await;
        End { told, ended: Instant::now() }
    });
    tokio::join!(cancelled, completed);
}

#[tokio::test]
async fn the_tokens_of_a_deleted_or_timed_out_run_end_while_its_step_still_sends() {
    // Without this tolerance its tokens would merely expire, as they last no longer than the run may.
    let tasks = Tasks::with(|yaml| yaml.change("preset: doorward,", "preset: doorward, clock_skew: 60s,"), &[]).await;
    let deleted = async |path: String| {
        let told = Instant::now();
        let answer = tasks.world.api.ask("DELETE", &path, None).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        End { told, ended: Instant::now() }
    };
    let deletes_task = sends_on(&tasks, "deleted", async |task| deleted(tasks.task_run(task)).await);
    let deletes_pod = sends_on(&tasks, "evicted", async |task| {
        let name = task.pod["metadata"]["name"].as_str().unwrap();
        deleted(format!("{}/{name}?gracePeriodSeconds=0", tasks.path("pods"))).await
    });
    let mut late = Tasks::release("late");
    late["spec"]["timeouts"] = json!({"pipeline": "10s", "tasks": "10s"});
    let times_out = sends_on_in(&tasks, "timed out", &late, async |task| {
        let told = Instant::now();
        tasks.until_ended(task).await;
        End { told, ended: Instant::now() }
    });
    tokio::join!(deletes_task, deletes_pod, times_out);
}

#[tokio::test]
async fn a_step_that_is_still_sending_to_two_replicas_is_refused_by_both() {
    let redis = RedisServer::start(&["--appendonly", "yes", "--appendfsync", "always"]);
    let tasks = on_redis(&redis).await;
    let there = replica(&tasks).await;
    let task = tasks.bobs(&Tasks::release("shared")).await;
    let pod_token = tasks.pod_token(&task.pod, DOOR).await;
    let own = tasks.exchange(&pod_token, &[("audience", TARGET), ("scope", "push")]).await.token();
    let mut senders = [&tasks.world.doorward, &there].map(|at| Sender::using(&tasks, at, &own));
    let later = Instant::now() + Duration::from_millis(1100);
    for sender in &mut senders {
        sender.sends_at(later).await;
    }
    let told = Instant::now();
    tasks.cancel(&task).await;
    let end = End { told, ended: Instant::now() };
    let later = end.ended + GRACE + Duration::from_secs(1);
    for (mut sender, what) in senders.into_iter().zip(["use, where it was issued", "use, at the other replica"]) {
        sender.sends_at(later).await;
        judge(what, &sender.stop(), &end, 401, &["token_revoked"]);
    }
}
