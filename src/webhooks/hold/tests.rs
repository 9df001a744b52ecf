mod absence;
mod again;
mod broken;
mod fair;
mod lease;
mod order;
mod parked;
mod pauses;
mod sealed;
mod stalls;
mod stop;

use std::{collections::BTreeMap, sync::Mutex};

use tokio_util::sync::CancellationToken;

use super::*;
use crate::{
    clock::Clock,
    downstream::Drain,
    error::Reason,
    sessions::KeyRing,
    upstream::buffered::{ByteBudget, Share},
    webhooks::{Named, Replay, ReplayKeys, TriedEvent, WebhookMetrics, testing::MemoryStore},
};

const NOW: Timestamp = Timestamp::from_secs(1_700_000_000);
const SETTINGS: Settings = Settings { span: Duration::from_secs(3600), max: 1000, max_bytes: 1 << 20 };

type Script = Box<dyn Fn(&Held) -> Attempt + Send + Sync>;

/// A deliverer with scripted outcomes, which records what it was given.
struct Scripted {
    script: Script,
    budget: ByteBudget,
    /// Delivery and body, in the order in which they were sent.
    seen: Mutex<Vec<String>>,
}

impl Deliverer for Scripted {
    fn room(&self, held: &Held) -> Option<Room> {
        self.budget.room(Share::Held(Arc::clone(&held.webhook)), usize::try_from(held.size).unwrap())
    }

    async fn deliver(&self, _: HeldId, held: &Held, request: HeldRequest) -> Attempt {
        assert_eq!(request.body, format!("body of {}", held.delivery));
        assert_eq!(request.head.header_map()["x-kept"], "yes");
        self.seen.lock().unwrap().push(held.delivery.to_string());
        // Lets other tasks run meanwhile.
        for _ in 0..3 {
            tokio::task::yield_now().await;
        }
        (self.script)(held)
    }
}

struct Fixture {
    queue: Queue,
    replay: Replay,
    deliverer: Arc<Scripted>,
    clock: Clock,
    stop: CancellationToken,
}

impl Drop for Fixture {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Fixture {
    fn new(store: &Arc<MemoryStore>, script: impl Fn(&Held) -> Attempt + Send + Sync + 'static) -> Self {
        Self::with_keys(store, &KeyRing::of(&[[1; 32]]), script)
    }

    fn with_keys(
        store: &Arc<MemoryStore>,
        keys: &KeyRing,
        script: impl Fn(&Held) -> Attempt + Send + Sync + 'static,
    ) -> Self {
        Self {
            queue: Queue::new(store.clone(), keys, WebhookMetrics::default()),
            replay: Replay::new(store.clone()),
            deliverer: Arc::new(Scripted {
                script: Box::new(script),
                budget: ByteBudget::new(1 << 20),
                seen: Mutex::default(),
            }),
            clock: Clock::manual(NOW),
            stop: CancellationToken::new(),
        }
    }

    fn start(&self) {
        self.start_after(Duration::ZERO);
    }

    fn start_after(&self, settle: Duration) {
        self.queue.set_doubt(None);
        let (queue, deliverer, clock) = (self.queue.clone(), Arc::clone(&self.deliverer), self.clock.clone());
        tokio::spawn(run(queue, deliverer, clock, Drain::default(), settle, self.stop.clone()));
    }

    async fn keep(&self, webhook: &str, repository: &str, delivery: &str) -> Result<HeldId, crate::error::Rejection> {
        self.keep_within(webhook, repository, delivery, SETTINGS).await
    }

    async fn keep_within(
        &self,
        webhook: &str,
        repository: &str,
        delivery: &str,
        settings: Settings,
    ) -> Result<HeldId, crate::error::Rejection> {
        self.keep_as((Uuid::new_v4(), false), webhook, repository, delivery, settings).await
    }

    /// Stores a delivery as if this request had brought it, as its first attempt or a later one.
    async fn keep_as(
        &self,
        (request, is_again): (Uuid, bool),
        webhook: &str,
        repository: &str,
        delivery: &str,
        settings: Settings,
    ) -> Result<HeldId, crate::error::Rejection> {
        let now = self.clock.now();
        let keys = ReplayKeys::new(&[[7; 32]], delivery, None, Duration::from_secs(86_400));
        let held = Held {
            webhook: webhook.into(),
            route: "hooks".into(),
            delivery: delivery.into(),
            request,
            event: None,
            repository: None,
            repository_id: Some(repository.into()),
            size: 0,
            received: now,
            span: settings.span,
            until: now + settings.span,
            place: None,
            tries: 0,
            refusals: 0,
            next: now,
            parked: None,
            policy: "policy".into(),
            last_error: None,
        };
        let head = HeldHead {
            host: "hooks.test".into(),
            host_line: None,
            target: "/github".to_owned(),
            secure: true,
            client: [192, 0, 2, 1].into(),
            headers: vec![("x-kept".to_owned(), "yes".to_owned())],
            facts: Facts::default(),
        };
        let request = HeldRequest { head, body: format!("body of {delivery}").into() };
        let id = match is_again {
            true => self.queue.keep_again(&self.replay, &keys, held, &request, &settings, now).await?,
            false => self.queue.keep(&self.replay, &keys, held, &request, &settings, now).await?,
        };
        self.queue.replicated(&keys).await?;
        Ok(id)
    }

    fn metrics(&self) -> String {
        let (mut registry, mut text) = (prometheus_client::registry::Registry::default(), String::new());
        self.queue.metrics.register(&mut registry);
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        text
    }

    fn seen(&self) -> Vec<String> {
        self.deliverer.seen.lock().unwrap().clone()
    }

    /// Lets seconds pass until a condition holds.
    async fn until(&self, what: &str, mut is_so: impl AsyncFnMut() -> bool) {
        for _ in 0..20_000 {
            if is_so().await {
                return;
            }
            self.queue.wake.notify_one();
            for _ in 0..20 {
                tokio::task::yield_now().await;
            }
            self.clock.advance(Duration::from_millis(250));
        }
        panic!("never {what}: {:?}", self.seen());
    }

    async fn held(&self) -> Vec<(String, bool)> {
        let all = self.queue.list(None, self.clock.now()).await.unwrap();
        all.into_iter().map(|(_, held)| (held.delivery.to_string(), held.parked.is_some())).collect()
    }
}

fn failed(kind: FailureKind) -> Attempt {
    Attempt::Failed(Failure { kind, why: "scripted".to_owned() })
}

#[tokio::test]
async fn deliveries_of_a_repository_arrive_in_order_and_others_do_not_wait_for_them() {
    let fixture = Fixture::new(&MemoryStore::shared(), |held| match (&*held.delivery, held.tries) {
        ("a1", 0..4) => failed(FailureKind::Passing),
        _ => Attempt::Accepted(None),
    });
    for delivery in ["a1", "a2", "a3"] {
        fixture.keep("hub", "1", delivery).await.unwrap();
    }
    fixture.keep("hub", "2", "b1").await.unwrap();
    fixture.start();
    fixture.until("empty", async || fixture.held().await.is_empty()).await;
    let seen = fixture.seen();
    assert_eq!(
        seen.iter().filter(|delivery| delivery.starts_with('a')).collect::<Vec<_>>(),
        ["a1", "a1", "a1", "a1", "a1", "a2", "a3"]
    );
    assert!(seen.iter().position(|delivery| delivery == "b1") < Some(2), "{seen:?}");
}

/// A write that is given up on, because it takes too long or its sender has left, may be done all the same.
#[tokio::test]
async fn a_delivery_stored_after_its_request_gave_up_is_delivered() {
    let store = MemoryStore::shared();
    let fixture = Fixture::new(&store, |_| Attempt::Accepted(None));
    fixture.keep("hub", "1", "a").await.unwrap();
    fixture.start();
    fixture.until("taken", async || fixture.seen() == ["a"]).await;
    Fixture::new(&store, |_| Attempt::Accepted(None)).keep("hub", "1", "late").await.unwrap();
    fixture.until("taken", async || fixture.seen() == ["a", "late"]).await;
}

/// Regression: all lanes read their requests at the same time, and reserved memory only afterwards.
#[tokio::test]
async fn without_room_in_memory_a_lane_rests_and_nothing_is_tried() {
    let fixture = Fixture::new(&MemoryStore::shared(), |held| match held.tries {
        0 => Attempt::Accepted(None),
        _ => panic!("a rest is no try"),
    });
    let id = fixture.keep("hub", "1", "a").await.unwrap();
    let (held, request) = fixture.queue.show(&id, NOW).await.unwrap().unwrap();
    let budget = &fixture.deliverer.budget;
    // Three eighths are reserved for deliveries that are not held.
    let size = usize::try_from(held.size).unwrap();
    budget.set_limit(size * 2);
    let other = budget.room(Share::Held("lab".into()), size).unwrap();
    fixture.start();
    let rests = NOW + Duration::from_secs(10);
    fixture.until("rests", async || fixture.clock.now() > rests).await;
    assert_eq!(fixture.seen(), [""; 0]);
    drop((other, request));
    fixture.until("taken", async || fixture.held().await.is_empty()).await;
    assert_eq!((fixture.seen().as_slice(), budget.used()), (&["a".to_owned()][..], 0));
}

/// Regression: later deliveries of its repository waited forever.
#[tokio::test]
async fn a_delivery_that_never_finds_room_is_parked_when_its_time_is_over() {
    let fixture = Fixture::new(&MemoryStore::shared(), |_| panic!("there is no room"));
    let id = fixture.keep("hub", "1", "large").await.unwrap();
    let span = fixture.queue.show(&id, NOW).await.unwrap().unwrap().0.span;
    fixture.deliverer.budget.set_limit(1);
    fixture.start();
    let rests = NOW + Duration::from_secs(10);
    fixture.until("rests", async || fixture.clock.now() > rests).await;
    assert_eq!(fixture.held().await, [("large".to_owned(), false)]);
    fixture.clock.advance(span);
    fixture.until("parked", async || fixture.held().await == [("large".to_owned(), true)]).await;
    // It counted as an attempt.
    let held = fixture.queue.show(&id, fixture.clock.now()).await.unwrap().unwrap().0;
    assert_eq!(held.tries, 0);
    assert!(held.last_error.unwrap().starts_with("there was no room for it in memory"));
}

/// Regression: if its turn came after its time, it was parked as if it had been tried.
#[tokio::test]
async fn memory_that_is_short_for_a_moment_parks_nothing_whose_time_is_over() {
    let fixture = Fixture::new(&MemoryStore::shared(), |_| Attempt::Accepted(None));
    fixture.keep("hub", "1", "a").await.unwrap();
    fixture.deliverer.budget.set_limit(1);
    fixture.start();
    for (ahead, rests) in [(Duration::ZERO, Duration::from_secs(10)), (SETTINGS.span, LATE / 2)] {
        fixture.clock.advance(ahead);
        let until = fixture.clock.now() + rests;
        fixture.until("rests", async || fixture.clock.now() > until).await;
    }
    let held = fixture.queue.list(None, fixture.clock.now()).await.unwrap();
    assert_eq!(held.iter().map(|(_, held)| (held.tries, held.parked)).collect::<Vec<_>>(), [(0, None)]);
    fixture.deliverer.budget.set_limit(1 << 20);
    fixture.until("taken", async || fixture.held().await.is_empty()).await;
    assert_eq!(fixture.seen(), ["a"]);
}

/// It is remembered for a day here, and waits longer.
#[tokio::test]
async fn one_that_is_new_again_is_held_beside_the_first() {
    let fixture = Fixture::new(&MemoryStore::shared(), |_| Attempt::Accepted(None));
    fixture.keep("hub", "1", "nightly").await.unwrap();
    assert_eq!(fixture.keep("hub", "1", "nightly").await.unwrap_err().reason(), Reason::ReplayedDelivery);
    fixture.clock.advance(Duration::from_secs(86_400));
    fixture.keep("hub", "1", "nightly").await.unwrap();
    fixture.start();
    fixture.until("empty", async || fixture.held().await.is_empty()).await;
    assert_eq!(fixture.seen(), ["nightly", "nightly"]);
}

#[tokio::test]
async fn deliveries_stored_by_a_process_that_died_are_sent_by_the_next() {
    let store = MemoryStore::shared();
    {
        let dead = Fixture::new(&store, |_| panic!("it died before"));
        for delivery in ["a", "b", "c"] {
            dead.keep("hub", "1", delivery).await.unwrap();
        }
    }
    let fixture = Fixture::new(&store, |_| Attempt::Accepted(None));
    fixture.start();
    fixture.until("empty", async || fixture.seen().len() == 3 && fixture.held().await.is_empty()).await;
    assert_eq!(fixture.seen(), ["a", "b", "c"]);
    let twin = fixture.keep("hub", "1", "a").await.unwrap_err();
    assert_eq!(twin.reason(), Reason::ReplayedDelivery, "webhooks:17");
}

#[tokio::test]
async fn only_a_sender_with_a_full_queue_is_asked_to_retry() {
    let fixture = Fixture::new(&MemoryStore::shared(), |_| Attempt::Accepted(None));
    let small = Settings { max: 2, ..SETTINGS };
    for delivery in ["a", "b"] {
        fixture.keep_within("hub", "1", delivery, small).await.unwrap();
    }
    let full = fixture.keep_within("hub", "1", "c", small).await.unwrap_err();
    assert_eq!((full.status().as_u16(), full.retry_after().is_some()), (503, true));
    fixture.keep_within("lab", "1", "d", small).await.unwrap();
    let bytes = Settings { max_bytes: 10, ..SETTINGS };
    assert_eq!(fixture.keep_within("tea", "1", "e", bytes).await.unwrap_err().reason(), Reason::Overloaded);
    fixture.start();
    fixture.until("empty", async || fixture.held().await.is_empty()).await;
    fixture.keep_within("hub", "1", "c", small).await.expect("it is not remembered as taken");
}

#[tokio::test]
async fn deliveries_left_by_an_earlier_process_count_towards_the_bound_from_the_start() {
    let store = MemoryStore::shared();
    let small = Settings { max: 2, ..SETTINGS };
    {
        let dead = Fixture::new(&store, |_| panic!("it died before"));
        for delivery in ["a", "b"] {
            dead.keep_within("hub", "1", delivery, small).await.unwrap();
        }
    }
    let fixture = Fixture::new(&store, |_| Attempt::Accepted(None));
    store.set_down(true);
    let unknown = fixture.keep_within("hub", "1", "c", small).await.unwrap_err();
    assert_eq!(unknown.reason(), Reason::StoreUnavailable, "nobody knows what is held");
    store.set_down(false);
    assert_eq!(fixture.keep_within("hub", "1", "c", small).await.unwrap_err().reason(), Reason::Overloaded);
    fixture.keep_within("lab", "1", "d", small).await.expect("another sender has room");
}

/// Otherwise metrics would say after each start that nothing is held.
#[tokio::test(start_paused = true)]
async fn held_deliveries_are_counted_before_they_may_be_sent() {
    let store = MemoryStore::shared();
    Fixture::new(&store, |_| panic!("it died before")).keep("hub", "1", "a").await.unwrap();
    let fixture = Fixture::new(&store, |_| Attempt::Accepted(None));
    let settle = Duration::from_secs(600);
    fixture.start_after(settle);
    let waiting = || fixture.queue.index().usage().map(|(_, usage)| usage.waiting).sum::<usize>();
    fixture.until("known", async || waiting() == 1).await;
    fixture.keep("hub", "1", "b").await.unwrap();
    tokio::time::advance(settle - Duration::from_secs(1)).await;
    // Another replica's, which only the store shows.
    Fixture::new(&store, |_| panic!("it died before")).keep("hub", "1", "c").await.unwrap();
    tokio::time::advance(Duration::from_millis(900)).await;
    fixture.until("looked at", async || waiting() == 3).await;
    assert_eq!(fixture.seen(), [""; 0]);
    tokio::time::advance(Duration::from_secs(1)).await;
    fixture.until("delivered", async || fixture.seen() == ["a", "b", "c"]).await;
}

#[tokio::test(start_paused = true)]
async fn the_age_of_the_oldest_delivery_is_measured_even_if_nothing_is_sent() {
    let fixture = Fixture::new(&MemoryStore::shared(), |_| panic!("it has not settled"));
    fixture.keep("hub", "1", "a").await.unwrap();
    fixture.clock.advance(Duration::from_secs(90));
    fixture.start_after(Duration::from_secs(600));
    let measured = async || {
        tokio::time::advance(Duration::from_secs(1)).await;
        // It takes some seconds.
        fixture.metrics().contains("webhook_held_oldest_seconds{webhook=\"hub\"} 9")
    };
    fixture.until("measured", measured).await;
}

#[tokio::test]
async fn without_the_store_nothing_is_kept_and_what_is_kept_waits() {
    let store = MemoryStore::shared();
    let fixture = Fixture::new(&store, |_| Attempt::Accepted(None));
    fixture.keep("hub", "1", "a").await.unwrap();
    store.set_down(true);
    assert_eq!(fixture.keep("hub", "1", "b").await.unwrap_err().reason(), Reason::StoreUnavailable);
    fixture.start();
    store.set_down(false);
    fixture.until("empty", async || fixture.held().await.is_empty()).await;
    assert_eq!(fixture.seen(), ["a"]);
    fixture.keep("hub", "1", "b").await.expect("nothing of it was written");
}

#[tokio::test]
async fn replicas_send_each_delivery_once_and_in_order() {
    let store = MemoryStore::shared();
    store.set_shared();
    let order: Arc<Mutex<BTreeMap<String, Vec<String>>>> = Arc::default();
    let replica = || {
        let order = Arc::clone(&order);
        Fixture::new(&store, move |held| {
            let lane = held.repository_id.as_ref().unwrap().to_string();
            order.lock().unwrap().entry(lane).or_default().push(held.delivery.to_string());
            Attempt::Accepted(None)
        })
    };
    let (here, there) = (replica(), replica());
    here.start();
    there.start();
    here.queue.set_doubt(Some("it does not sync"));
    let doubtful = here.keep("hub", "1", "doubtful").await.unwrap_err();
    assert_eq!(doubtful.reason(), Reason::StoreUnavailable);
    assert!(doubtful.to_string().contains("`held-deliveries`"), "it is no outage: {doubtful}");
    here.queue.set_doubt(None);
    let mut expected = BTreeMap::<String, Vec<String>>::new();
    for number in 0..60 {
        let (at, lane) = (if number % 3 == 0 { &here } else { &there }, (number % 4).to_string());
        let delivery = format!("d{number}");
        at.keep("hub", &lane, &delivery).await.unwrap();
        expected.entry(lane).or_default().push(delivery);
    }
    here.until("empty", async || {
        there.clock.advance(Duration::from_millis(250));
        there.queue.wake.notify_one();
        here.held().await.is_empty() && there.held().await.is_empty()
    })
    .await;
    assert_eq!(*order.lock().unwrap(), expected);
}

#[test]
fn a_request_is_kept_byte_for_byte() {
    let head = HeldHead {
        host: "h".into(),
        host_line: Some("h:1".to_owned()),
        target: "/a?b".to_owned(),
        secure: false,
        client: [192, 0, 2, 1].into(),
        headers: vec![("x-a".to_owned(), "1".to_owned()), ("x-a".to_owned(), "2\n".to_owned())],
        facts: Facts { branch: Some("line\nend".into()), fork: Some(true), ..Facts::default() },
    };
    for body in [&b""[..], b"\n", b"{\"a\":1}\n\n\0\xff"] {
        let request = HeldRequest { head: head.clone(), body: Bytes::copy_from_slice(body) };
        let stored = [&*request.encode_head().unwrap(), &request.body].concat();
        assert_eq!(HeldRequest::decode(&stored.into()).unwrap(), request);
    }
    for broken in [&b""[..], b"\n", b"{}\nbody"] {
        assert!(matches!(HeldRequest::decode(&Bytes::from(broken.to_vec())), Err(StoreError::Corrupt(_))));
    }
}

/// The sender's next attempt must not get 200 for a delivery that a failover could still lose.
#[tokio::test]
async fn a_delivery_on_one_server_only_gets_503_at_the_next_attempt_too() {
    let store = MemoryStore::shared();
    let fixture = Fixture::new(&store, |_| Attempt::Accepted(None));
    fixture.queue.set_doubt(None);
    store.set_alone(true);
    for _ in 0..2 {
        assert_eq!(fixture.keep("hub", "1", "a1").await.unwrap_err().reason(), Reason::StoreUnavailable);
    }
    store.set_alone(false);
    assert_eq!(fixture.keep("hub", "1", "a1").await.unwrap_err().reason(), Reason::ReplayedDelivery);
}
