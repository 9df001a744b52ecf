//! Which event of its EventListener a delivery becomes.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use tokio::sync::Notify;

use super::*;
use crate::{
    fixture::WEBHOOK_SECRET,
    harness::{Doorward, Upstream, folder_with, found, until},
    webhooks::hold::{ASSERTION_KEY, configuration, deliver_to},
};

/// How a request gets to an EventListener.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Way {
    /// A delivery that is forwarded while its sender waits.
    Forwarded,
    /// A delivery that was stored.
    Held,
    /// A request with a token.
    ByToken,
}

const WAYS: [Way; 3] = [Way::Forwarded, Way::Held, Way::ByToken];

impl Way {
    async fn fixture(self, script: impl Fn(&Recorded) -> Reply + Send + Sync + 'static) -> Fixture {
        let change = |yaml: String| match self {
            Self::Held => {
                yaml.change("hold: false, ", "").change("{host: door.door.svc,", "{host: door.door.svc, settle: 0s,")
            }
            _ => yaml,
        };
        fixture_with(change, script).await
    }

    /// With an EventListener that answers when notified.
    async fn answering_later(self, status: u16, body: &str) -> (Fixture, Arc<Notify>) {
        let told = Arc::new(Notify::new());
        let Reply::Bytes(bytes) = Reply::json(status, body) else { panic!() };
        let when = told.clone();
        (self.fixture(move |_| Reply::Later(when.clone(), bytes.clone())).await, told)
    }

    async fn send(self, fixture: &Fixture, id: &str, body: &str) -> Answer {
        if self != Self::ByToken {
            return deliver(fixture, id, body, &[]).await;
        }
        let token = bearer(&fixture.a.token("alice", &["dev"]));
        let lines = ["POST /github HTTP/1.1", "Host: hooks.test", "Content-Type: application/json", &token];
        fixture.doorward.send(&lines, body.as_bytes()).await
    }

    /// The status for the sender if the EventListener answers 500.
    fn failed(self) -> u16 {
        if self == Self::Held { 202 } else { 503 }
    }
}

/// The assertion of a delivery that the EventListener has received and not answered.
async fn under_way(fixture: &Fixture) -> String {
    found(async || {
        let seen = fixture.upstream.requests();
        Some(seen.first()?.one("doorward-assertion").to_owned())
    })
    .await
}

/// Somebody in between who has seen the assertion asks first, with an event of their own: no run may get lost by that.
#[tokio::test]
async fn attacks_z46_the_event_listeners_own_answer_decides_which_event_is_the_deliverys() {
    for way in WAYS {
        decides(way).await;
    }
}

async fn decides(way: Way) {
    let (mut fixture, told) = way.answering_later(202, ANSWER).await;
    let (id, body) = (unique(), Push::body());
    let between = async {
        let assertion = under_way(&fixture).await;
        let about = |event: &str| question(&assertion, &body, event);
        assert!(goes_on(&fixture, &about("false-event")).await.0, "nobody knows better yet");
        let of_listener = about("event-1");
        let (genuine, ()) = tokio::join!(goes_on(&fixture, &of_listener), async { told.notify_one() });
        assert!(genuine.0, "{way:?}: {}", genuine.1);
        assert!(!goes_on(&fixture, &about("false-event")).await.0);
        assertion
    };
    let (delivered, assertion) = tokio::join!(way.send(&fixture, &id, &body), between);
    assert_eq!(delivered.status, 202, "{way:?}");
    let other = of_trigger(&question(&assertion, &body, "false-event"), "namespaces/ci/triggers/other");
    assert!(!goes_on(&fixture, &other).await.0, "{way:?}: nor for another Trigger");
    fixture.doorward.wait_for_log("a delivery was bound to an event that its EventListener does not know").await;
    assert!(fixture.doorward.metrics().await.contains("interceptor_rebound_total 1"));
}

/// The interceptor never learns the EventListener's response to the other replica, and silently stopped the genuine
/// event.
#[tokio::test]
async fn attacks_z46_a_false_event_raises_an_alarm_if_the_interceptor_has_a_separate_store() {
    let upstream = Upstream::scripted(|_| Reply::json(202, ANSWER)).await;
    let start = async || {
        let dir = folder_with(&[("secret", WEBHOOK_SECRET), ("assertions", ASSERTION_KEY.as_str())]);
        let more = "store: {path: doorward.redb}\ninterceptor: {host: door.door.svc}\n\
                    assertions: {keys: [{file: assertions}]}";
        let yaml = configuration(upstream.address, more)
            .change("sender: github,", "sender: github, hold: false,")
            .change("upstream: el}", "upstream: el, event_listener: {namespace: ci, name: build}}");
        Doorward::start_in(dir, &yaml).await
    };
    let (door, asked) = (start().await, start().await);
    let body = Push::body();
    assert_eq!(deliver_to(&door, &unique(), &body).await.status, 202);
    let assertion = upstream.only().one("doorward-assertion").to_owned();
    for (doorward, event, go, disputed) in
        [(&asked, "false-event", true, 0), (&asked, "event-1", false, 1), (&door, "event-1", true, 0)]
    {
        let answer = doorward.send(&ASKED, question(&assertion, &body, event).to_string().as_bytes()).await;
        assert_eq!(answer.json()["continue"], go, "{event}: {}", answer.text());
        let line = format!("doorward_interceptor_disputed_total {disputed}\n");
        assert!(doorward.metrics().await.contains(&line), "{event}");
    }
}

/// Requests for nonexistent Triggers must not go unnoticed.
#[tokio::test]
async fn attacks_z46_triggers_that_find_no_room_raise_an_alarm() {
    let fixture = fixture().await;
    let (assertion, body) = asserted(&fixture).await;
    let good = question(&assertion, &body, "event-1");
    // Bound Triggers are stored by the first byte of the digest of their name, modulo 16, up to 64 for each.
    let same = |id: &String| {
        let digest = digest::digest(&digest::SHA256, id.as_bytes());
        digest.as_ref()[0] % 16 == 0
    };
    let ids: Vec<String> =
        (0..).map(|number| format!("namespaces/ci/triggers/t{number}")).filter(same).take(65).collect();
    for (id, unnoted) in ids.iter().zip([0; 64].into_iter().chain([1])) {
        assert!(goes_on(&fixture, &of_trigger(&good, id)).await.0, "{id}: a run is made rather than lost");
        if id == &ids[63] || id == &ids[64] {
            let line = format!("doorward_interceptor_unnoted_total {unnoted}\n");
            assert!(fixture.doorward.metrics().await.contains(&line), "{id}");
        }
    }
}

/// Then nobody knows which event was the delivery's own, so that the retry makes the run.
#[tokio::test]
async fn attacks_z46_a_false_event_and_a_lost_answer_lose_no_run() {
    for way in [Way::Forwarded, Way::Held] {
        costs_no_run(way).await;
    }
}

async fn costs_no_run(way: Way) {
    let told = Arc::new(Notify::new());
    let Reply::Bytes(lost) = Reply::json(500, "{}") else { panic!() };
    let (when, tries) = (told.clone(), AtomicUsize::new(0));
    let script = move |_: &Recorded| match tries.fetch_add(1, Ordering::SeqCst) {
        0 => Reply::Later(when.clone(), lost.clone()),
        _ => Reply::json(202, &ANSWER.replace("event-1", "event-2")),
    };
    let fixture = way.fixture(script).await;
    let (id, body) = (unique(), Push::body());
    let between = async {
        let assertion = under_way(&fixture).await;
        assert!(goes_on(&fixture, &question(&assertion, &body, "false-event")).await.0);
        assert!(!goes_on(&fixture, &question(&assertion, &body, "event-1")).await.0, "disputed");
        told.notify_one();
    };
    let (delivered, ()) = tokio::join!(way.send(&fixture, &id, &body), between);
    assert_eq!(delivered.status, way.failed(), "{way:?}");
    fixture.doorward.until_metrics_say("interceptor_rebound_total 1").await;
    if way == Way::Forwarded {
        assert_eq!(deliver(&fixture, &id, &body, &[]).await.status, 202);
    }
    until(async || fixture.upstream.requests().len() == 2).await;
    let assertion = fixture.upstream.requests().last().unwrap().one("doorward-assertion").to_owned();
    let (goes_on, answer) = goes_on(&fixture, &question(&assertion, &body, "event-2")).await;
    assert!(goes_on, "{way:?}: {answer}");
}

/// The run for it exists; the one for the other does not.
#[tokio::test]
async fn after_a_lost_response_a_trigger_that_already_asked_makes_no_second_run_but_others_do() {
    let tries = AtomicUsize::new(0);
    let script = move |_: &Recorded| match tries.fetch_add(1, Ordering::SeqCst) {
        0 => Reply::json(500, "{}"),
        _ => Reply::json(202, &ANSWER.replace("event-1", "event-2")),
    };
    let fixture = Way::Forwarded.fixture(script).await;
    let body = Push::body();
    let id = unique();
    assert_eq!(deliver(&fixture, &id, &body, &[]).await.status, 503);
    let first = fixture.upstream.take()[0].one("doorward-assertion").to_owned();
    assert!(goes_on(&fixture, &question(&first, &body, "event-1")).await.0);
    assert_eq!(deliver(&fixture, &id, &body, &[]).await.status, 202);
    let second = fixture.upstream.take()[0].one("doorward-assertion").to_owned();
    let again = question(&second, &body, "event-2");
    let (go, answer) = goes_on(&fixture, &again).await;
    assert!(!go && answer.to_string().contains("already event event-1"), "{answer}");
    assert!(goes_on(&fixture, &of_trigger(&again, "namespaces/ci/triggers/other")).await.0);
    assert!(fixture.doorward.metrics().await.contains("interceptor_rebound_total 0"), "that is no alarm");
}

/// The run exists, whatever happened to the response.
#[tokio::test]
async fn the_event_of_a_delivery_whose_answer_was_lost_is_in_the_audit_record() {
    for way in WAYS {
        let (fixture, told) = way.answering_later(500, "{}").await;
        let (id, body) = (unique(), Push::body());
        let between = async {
            let assertion = under_way(&fixture).await;
            assert!(goes_on(&fixture, &question(&assertion, &body, "event-1")).await.0);
            told.notify_one();
        };
        let (delivered, ()) = tokio::join!(way.send(&fixture, &id, &body), between);
        assert_eq!(delivered.status, way.failed(), "{way:?}");
        fixture.doorward.record(|record| record["unmapped"]["event_id"] == "event-1").await;
    }
}

/// A sender without ids sends the same every night, and it is remembered for less than a day.
#[tokio::test]
async fn a_delivery_that_is_new_again_makes_its_run() {
    let window = |yaml: String| {
        with_interceptor(&yaml)
            .change("sender: github, hold: false,", "sender: github, hold: false, replay_window: 1h,")
    };
    let nights = AtomicUsize::new(0);
    let fixture = Fixture::with_faults(window, move |_| {
        let night = nights.fetch_add(1, Ordering::SeqCst) + 1;
        Reply::json(202, &ANSWER.replace("event-1", &format!("event-{night}")))
    })
    .await;
    let (id, body) = (unique(), Push::body());
    for (event, ahead) in [("event-1", 0), ("event-2", 3601)] {
        fixture.doorward.set_clock_ahead(ahead);
        assert_eq!(deliver(&fixture, &id, &body, &[]).await.status, 202);
        let assertion = fixture.upstream.requests().last().unwrap().one("doorward-assertion").to_owned();
        let answer = ask(&fixture, &question(&assertion, &body, event)).await;
        assert!(answer.text().contains("\"continue\":true"), "{event}: {}", answer.text());
        let twin = deliver(&fixture, &id, &body, &[]).await;
        assert_eq!((twin.status, twin.reason().as_str()), (200, "replayed_delivery"));
    }
}
