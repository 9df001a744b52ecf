use http::HeaderValue;

use super::*;
use crate::authn::{Kind, Scheme};

pub(crate) fn principal(subject: &str, expires: Timestamp) -> Arc<Principal> {
    Arc::new(Principal {
        kind: Kind::Human,
        credential: CredentialId::Token(subject.into()),
        expires,
        ..Principal::new(Scheme::Bearer, "corp", subject, subject)
    })
}

pub(crate) fn watch(subject: &str, expires: Timestamp, now: Moment) -> Stream {
    let attributes = Attributes { verb: "watch".to_owned(), resource: "pods".to_owned(), ..Default::default() };
    let request = StreamRequest {
        route: "cluster".into(),
        upstream: Place::new("cluster", HeaderValue::from_static("https://cluster.test")),
        kind: RouteKind::Kubernetes,
        host: "k8s.example.com".into(),
        target: PathAndQuery::from_static("/api/v1/pods?watch=1"),
        method: Method::GET,
        upgrade: false,
        address: IpAddr::from([10, 0, 0, 1]),
        event_listener: None,
        kubernetes: Some(Arc::new(attributes)),
    };
    Stream::new(StreamKind::Watch, principal(subject, expires), Arc::default(), request, seconds(8 * 3600), now)
}

pub(crate) fn registry() -> (Registry, Clock) {
    let clock = Clock::manual(Timestamp::from_secs(1_000_000));
    (Registry::new(clock.clone(), Metrics::default()), clock)
}

fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

#[test]
fn the_deadline_is_the_earlier_of_credential_and_route() {
    let began = Clock::manual(Timestamp::from_secs(1_000_000)).moment();
    let now = began.wall();
    for (expires, max, expected) in [
        (now + seconds(60), seconds(30), now + seconds(30)),
        (now + seconds(60), seconds(90), now + seconds(60)),
        (Timestamp::MAX, seconds(24 * 3600), now + seconds(24 * 3600)),
    ] {
        let request = watch("alice", expires, began).request;
        let stream = Stream::new(StreamKind::Watch, principal("alice", expires), Arc::default(), request, max, began);
        assert_eq!(stream.deadline.wall(), expected);
    }
}

/// As long as requests are accepted, their responses may continue.
#[test]
fn a_stream_lasts_as_long_as_its_credential_is_taken() {
    let (registry, clock) = registry();
    let began = clock.moment();
    let now = began.wall();
    let of = |principal: Principal| {
        let request = watch("alice", now, began).request;
        Stream::new(StreamKind::Unsized, Arc::new(principal), Arc::default(), request, seconds(3600), began)
    };
    let ended = Principal { skew: seconds(30), ..(*principal("alice", now - seconds(5))).clone() };
    let handle = registry.register(of(ended.clone()));
    assert_eq!((handle.stream().deadline.wall(), handle.reason()), (ended.ends(), None));
    clock.advance(seconds(25));
    assert_eq!((registry.cut_expired(), handle.reason()), (1, Some(CutReason::Expired)));
    // Sessions and break-glass are not accepted beyond their end.
    let exact = registry.register(of((*principal("bob", now)).clone()));
    assert_eq!((exact.stream().deadline.wall(), exact.reason()), (now, Some(CutReason::Expired)));
}

#[tokio::test]
async fn kubernetes_t1_a_stream_ends_with_its_credential_and_not_before() {
    let (registry, clock) = registry();
    let handle = registry.register(watch("alice", clock.now() + seconds(5), clock.moment()));
    let other = registry.register(watch("bob", clock.now() + seconds(6), clock.moment()));
    clock.advance(Duration::from_millis(4_999));
    assert_eq!((registry.cut_expired(), handle.reason()), (0, None));
    clock.advance(Duration::from_millis(1));
    assert_eq!(registry.cut_expired(), 1);
    assert_eq!((handle.cut().await, other.reason()), (CutReason::Expired, None));
}

/// Clients were told that a valid token was invalid, and requested another.
#[test]
fn a_stream_ended_by_its_route_is_distinguished_from_one_with_an_expired_credential() {
    let (registry, clock) = registry();
    let began = clock.moment();
    let now = began.wall();
    let of = |expires| {
        let request = watch("alice", expires, began).request;
        Stream::new(StreamKind::Upload, principal("alice", expires), Arc::default(), request, seconds(60), began)
    };
    let [good, over, both] =
        [now + seconds(61), now + seconds(59), now + seconds(60)].map(|at| registry.register(of(at)));
    clock.advance(seconds(60));
    registry.cut_expired();
    assert_eq!(good.reason(), Some(CutReason::Overlong));
    assert_eq!((over.reason(), both.reason()), (Some(CutReason::Expired), Some(CutReason::Expired)));
    let late = registry.register(of(now + seconds(61)));
    assert_eq!(late.reason(), Some(CutReason::Overlong), "it is over when it begins");
    assert_eq!(good.reason().map(CutReason::as_str), Some("max_stream"));
}

/// Regression: after the clock was set back, a stream lasted until the clock had caught up.
#[test]
fn a_stream_lasts_no_longer_than_its_route_allows_even_if_the_clock_is_set_back() {
    let (registry, clock) = registry();
    let handle = registry.register(watch("alice", Timestamp::MAX, clock.moment()));
    clock.set(clock.now() - seconds(3600));
    clock.advance(seconds(8 * 3600) - Duration::from_millis(1));
    assert_eq!((registry.cut_expired(), handle.reason()), (0, None));
    clock.advance(Duration::from_millis(1));
    assert_eq!((registry.cut_expired(), handle.reason()), (1, Some(CutReason::Overlong)));
    let ended = registry.register(watch("bob", Timestamp::MAX, clock.moment()));
    drop((handle, ended));
    assert!(registry.shared.open().deadlines.is_empty());
}

/// Of the two, a client may leave the response unread, so its stream is checked, whichever was cut first.
#[test]
fn an_upload_and_its_response_end_for_the_same_reason_before_and_after_joining() {
    let (registry, clock) = registry();
    let register = || registry.register(watch("alice", Timestamp::MAX, clock.moment()));
    let joins_and_ends: [fn(&StreamHandle, StreamHandle) -> StreamHandle; 4] = [
        |upload, answer| {
            let answer = answer.joined(upload);
            upload.end(CutReason::Revoked);
            answer
        },
        |upload, answer| {
            let answer = answer.joined(upload);
            answer.end(CutReason::Revoked);
            answer
        },
        |upload, answer| {
            upload.end(CutReason::Revoked);
            answer.joined(upload)
        },
        |upload, answer| {
            answer.end(CutReason::Revoked);
            answer.joined(upload)
        },
    ];
    for (number, join_and_end) in joins_and_ends.into_iter().enumerate() {
        let upload = register();
        let answer = join_and_end(&upload, register());
        let revoked = Some(CutReason::Revoked);
        assert_eq!((upload.reason(), answer.reason()), (revoked, revoked), "{number}");
        let id = answer.entry.id;
        assert!(registry.shared.open().ending.iter().any(|(_, ending, _)| *ending == id), "{number}");
        drop((upload, answer));
        assert!(registry.is_empty(), "{number}");
    }
}

/// A reload may shorten a route's time, but never gives a stream more than it began with.
#[test]
fn a_stream_ends_by_an_earlier_time_that_is_set_later() {
    let (registry, clock) = registry();
    let began = clock.moment();
    let expires = began.wall() + seconds(600);
    let [first, second] = ["alice", "bob"].map(|name| registry.register(watch(name, expires, began)));
    let by = |seconds_later: u64| move |stream: &Stream| Some(stream.began + seconds(seconds_later));
    registry.end_by(by(7200));
    registry.end_by(by(60));
    second.end_by(began + seconds(30));
    clock.advance(seconds(30));
    assert_eq!((registry.cut_expired(), first.reason(), second.reason()), (1, None, Some(CutReason::Overlong)));
    clock.advance(seconds(30));
    assert_eq!((registry.cut_expired(), first.reason()), (1, Some(CutReason::Overlong)));
    // The leftover deadlines of an ended stream belong to no stream.
    drop((first, second));
    clock.advance(seconds(7200));
    assert_eq!(registry.cut_expired(), 0);
    assert!(registry.shared.open().deadlines.is_empty());
}

/// A shorter `max_stream` after a reload used the wall clock only, even if the credential ended before it.
#[test]
fn a_stream_ends_at_an_earlier_time_set_later_even_if_the_clock_is_set_back() {
    for lasts in [600, 7200] {
        let (registry, clock) = registry();
        let handle = registry.register(watch("alice", clock.now() + seconds(lasts), clock.moment()));
        registry.end_by(|stream| Some(stream.began + seconds(1800)));
        clock.set(clock.now() - seconds(3600));
        clock.advance(seconds(1799));
        assert_eq!((registry.cut_expired(), handle.reason()), (0, None), "{lasts}");
        clock.advance(seconds(1));
        assert_eq!((registry.cut_expired(), handle.reason()), (1, Some(CutReason::Overlong)), "{lasts}");
    }
}

#[tokio::test]
async fn the_deadline_task_wakes_a_waiting_stream() {
    let (registry, clock) = registry();
    let handle = registry.register(watch("alice", clock.now() + seconds(5), clock.moment()));
    let task = tokio::spawn(registry.clone().enforce_deadlines());
    clock.advance(seconds(5));
    assert_eq!(handle.cut().await, CutReason::Expired);
    task.abort();
}

#[test]
fn a_stream_that_has_expired_when_it_begins_is_cut_at_once() {
    let (registry, clock) = registry();
    let handle = registry.register(watch("alice", clock.now(), clock.moment()));
    assert_eq!(handle.reason(), Some(CutReason::Expired));
}

#[tokio::test]
async fn kubernetes_t2_a_revocation_ends_the_streams_of_that_credential_alone() {
    let (registry, clock) = registry();
    let alice = registry.register(watch("alice", Timestamp::MAX, clock.moment()));
    let bob = registry.register(watch("bob", Timestamp::MAX, clock.moment()));
    let waiting = tokio::spawn(async move { alice.cut().await });
    let revoked = CredentialId::Token("alice".into());
    assert_eq!(registry.close_matching(|stream| stream.principal.credential == revoked, CutReason::Revoked), 1);
    assert_eq!(waiting.await.unwrap(), CutReason::Revoked);
    assert_eq!(bob.reason(), None);
    assert_eq!(registry.len(), 1);
}

#[test]
fn a_recheck_sees_the_request_as_it_was_and_cuts_what_is_no_longer_allowed() {
    let (registry, clock) = registry();
    let handle = registry.register(watch("alice", Timestamp::MAX, clock.moment()));
    let now = clock.now();
    let why = CutReason::PermissionLost;
    let verb = |stream: &Stream| stream.view(now).kubernetes.unwrap().verb.clone();
    assert_eq!(registry.recheck(|stream| (verb(stream) != "watch").then_some(why)), 0);
    assert_eq!(registry.recheck(|stream| (stream.view(now).path == "/api/v1/pods").then_some(why)), 1);
    assert_eq!(handle.reason(), Some(CutReason::PermissionLost));
    // The first reason stays.
    assert_eq!(registry.close_matching(|_| true, CutReason::Draining), 0);
    assert_eq!(handle.reason(), Some(CutReason::PermissionLost));
}

/// Rechecked in one go, thousands of streams kept a revoked one open until all were done.
#[tokio::test]
async fn what_is_revoked_ends_while_streams_are_decided_again() {
    let (registry, clock) = registry();
    let streams: Vec<_> =
        (0..AT_ONCE * 3).map(|_| registry.register(watch("alice", Timestamp::MAX, clock.moment()))).collect();
    let revoked = registry.register(watch("bob", Timestamp::MAX, clock.moment()));
    let decided = AtomicU64::new(0);
    let recheck = registry.recheck_in_parts(|_| {
        decided.fetch_add(1, Ordering::Relaxed);
        Some(CutReason::PermissionLost)
    });
    let revoke = async {
        let is_bobs = |stream: &Stream| &*stream.principal.subject == "bob";
        registry.close_matching(is_bobs, CutReason::Revoked);
        decided.load(Ordering::Relaxed)
    };
    let (ended, before) = tokio::join!(recheck, revoke);
    assert_eq!(before, AT_ONCE as u64, "one part came first");
    assert!(streams.iter().all(|stream| stream.reason() == Some(CutReason::PermissionLost)));
    // Which of them are in the first part is unspecified.
    let of_revoked = usize::from(revoked.reason() == Some(CutReason::PermissionLost));
    assert_eq!(ended, streams.len() + of_revoked);
}

#[test]
fn streams_of_a_session_are_found_together_and_without_those_of_others() {
    let (registry, clock) = registry();
    let of_session = |name: &str| {
        let stream = watch("alice", Timestamp::MAX, clock.moment());
        let credential = CredentialId::Session(name.into());
        let principal = Principal { credential, ..(*stream.principal).clone() };
        registry.register(Stream { principal: Arc::new(principal), ..stream })
    };
    let token = registry.register(watch("alice", Timestamp::MAX, clock.moment()));
    let (first, second, other, ended) = (of_session("a"), of_session("a"), of_session("b"), of_session("c"));
    ended.end(CutReason::Idle);
    let sessions = registry.by_session();
    let mut found: Vec<_> = sessions.iter().map(|(name, streams)| (&**name, streams.len())).collect();
    found.sort_unstable();
    assert_eq!(found, [("a", 2), ("b", 1)]);
    sessions["a"].iter().for_each(|asked| asked.cut(CutReason::PermissionLost));
    let reasons = [&first, &second, &other, &token].map(StreamHandle::reason);
    assert_eq!(reasons, [Some(CutReason::PermissionLost), Some(CutReason::PermissionLost), None, None]);
}

#[test]
fn a_plain_answer_without_a_length_may_finish_when_doorward_stops() {
    let (registry, clock) = registry();
    let long = registry.register(watch("alice", Timestamp::MAX, clock.moment()));
    let answer = Stream { kind: StreamKind::Unsized, ..watch("alice", Timestamp::MAX, clock.moment()) };
    let answer = registry.register(answer);
    let shell = || Stream { kind: StreamKind::WebSocket, ..watch("alice", Timestamp::MAX, clock.moment()) };
    let (shell, shell_late) = (registry.register(shell()), shell());
    assert_eq!(registry.drain(), 1);
    assert_eq!((long.reason(), answer.reason()), (Some(CutReason::Draining), None));
    // A shell cannot be resumed elsewhere, so it stays open; a new one is cut at once and begins elsewhere.
    assert_eq!(shell.reason(), None);
    assert_eq!(registry.register(shell_late).reason(), Some(CutReason::Draining));
    assert_eq!(registry.end_lasting(), 1);
    assert_eq!((shell.reason(), answer.reason()), (Some(CutReason::Draining), None));
    // A stream that registers from now on ends at once.
    let late = registry.register(watch("bob", Timestamp::MAX, clock.moment()));
    let answer_late = Stream { kind: StreamKind::Unsized, ..watch("bob", Timestamp::MAX, clock.moment()) };
    let answer_late = registry.register(answer_late);
    assert_eq!((late.reason(), answer_late.reason()), (Some(CutReason::Draining), None));
    // What has not finished at the end is told so.
    assert_eq!(registry.end_rest(), 2);
    assert_eq!((answer.reason(), answer_late.reason()), (Some(CutReason::Draining), Some(CutReason::Draining)));
}

#[test]
fn a_look_between_decision_and_registration_is_noticed() {
    let (registry, clock) = registry();
    let before = registry.epoch();
    assert!(!registry.register(watch("alice", Timestamp::MAX, clock.moment())).missed(before));
    registry.recheck(|_| None);
    assert!(registry.register(watch("alice", Timestamp::MAX, clock.moment())).missed(before));
}

#[test]
fn metrics_count_open_and_cut_streams() {
    let metrics = Metrics::default();
    let mut prometheus = prometheus_client::registry::Registry::default();
    metrics.register(&mut prometheus);
    let clock = Clock::manual(Timestamp::from_secs(1));
    let registry = Registry::new(clock.clone(), metrics);
    let handle = registry.register(watch("alice", Timestamp::MAX, clock.moment()));
    registry.close_matching(|_| true, CutReason::SignedOut);
    let text = |prometheus: &_| {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, prometheus).unwrap();
        text
    };
    let before = text(&prometheus);
    assert!(before.contains("streams_open{kind=\"watch\"} 1"), "{before}");
    assert!(before.contains("streams_cut_total{kind=\"watch\",reason=\"signed_out\"} 1"), "{before}");
    drop(handle);
    assert!(text(&prometheus).contains("streams_open{kind=\"watch\"} 0"));
}
