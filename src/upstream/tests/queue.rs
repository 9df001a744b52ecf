//! The order in which waiters get a connection, and the error when they get none.

use tokio::sync::Notify;

use super::*;
use crate::upstream::{
    UpstreamErrorKind,
    pool::{Lease, Node, Pick},
};

async fn is_pending(future: &mut (impl Future + Unpin)) -> bool {
    std::future::poll_fn(|cx| Poll::Ready(Pin::new(&mut *future).poll(cx).is_pending())).await
}

/// The kinds of waiters.
const KINDS: [(Lane, Pick); 3] = [(Lane::Short, Pick::Pooled), (Lane::Short, Pick::Fresh), (Lane::Long, Pick::Fresh)];

async fn take(node: &Arc<Node>, upstream: &Upstream, (lane, pick): (Lane, Pick)) -> Result<Lease, UpstreamError> {
    match lane {
        Lane::Short => node.checkout(upstream, pick).await,
        Lane::Long => node.own(upstream).await,
    }
}

/// Under load, free connections went to new requests, and the waiting ones finally got a 503.
#[tokio::test]
async fn a_request_that_waits_for_a_connection_is_not_overtaken() {
    const LAST: &[u8] = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok";
    // Either a connection becomes free, or room for a new one.
    for answer in [OK, LAST] {
        let body_follows = Arc::new(Notify::new());
        let follows = Arc::clone(&body_follows);
        let (address, accepted) = scripted(move |_, mut stream| {
            let follows = Arc::clone(&follows);
            async move {
                while read_head(&mut stream).await.is_some() {
                    // The connection is returned only at the end of the response.
                    let (head, body) = answer.split_at(answer.len() - 2);
                    stream.write_all(head).await.unwrap();
                    follows.notified().await;
                    stream.write_all(body).await.unwrap();
                }
            }
        })
        .await;
        let upstream = upstream_with(address, |entry| entry.max_connections = 1);
        let metrics = Metrics::default();
        let pools = Pools::new(metrics.clone(), Pings::NORMAL);
        let node = pools.node(&upstream);
        let held = pools.send(&upstream, &mut get(), Lane::Short).await.unwrap();
        let mut first = Box::pin(node.checkout(&upstream, Pick::Pooled));
        assert!(is_pending(&mut first).await);
        body_follows.notify_one();
        assert_eq!(text(held).await, "ok");
        let counted = metrics.of(upstream.name());
        until(|| node.has_ready() || counted.open.get() == 0).await;
        let mut second = Box::pin(node.checkout(&upstream, Pick::Pooled));
        assert!(is_pending(&mut second).await, "it came later");
        let lease = first.await.unwrap();
        assert!(is_pending(&mut second).await);
        lease.finish();
        assert!(second.await.is_ok());
        assert_eq!(accepted.load(Ordering::SeqCst), if answer == OK { 1 } else { 2 });
    }
}

/// A new watch took the slot of a waiter or of a short request, and a retry took that of anybody.
#[tokio::test]
async fn no_waiting_request_is_overtaken_by_one_that_waits_for_something_else() {
    for (first, second) in KINDS.into_iter().flat_map(|first| KINDS.map(|second| (first, second))) {
        let (address, _) = scripted(answer_all).await;
        let upstream = upstream_with(address, |entry| entry.max_connections = 1);
        let metrics = Metrics::default();
        let pools = Pools::new(metrics.clone(), Pings::NORMAL);
        let node = pools.node(&upstream);
        let held = node.own(&upstream).await.unwrap();
        let mut gives_up = Box::pin(take(&node, &upstream, first));
        assert!(is_pending(&mut gives_up).await);
        let mut earlier = Box::pin(take(&node, &upstream, first));
        assert!(is_pending(&mut earlier).await);
        drop(held);
        until(|| metrics.of(upstream.name()).open.get() == 0).await;
        // It was woken, so that dropping it must wake the next.
        drop(gives_up);
        let mut later = Box::pin(take(&node, &upstream, second));
        assert!(is_pending(&mut later).await, "{second:?} came after {first:?}");
        let lease = earlier.await.unwrap();
        assert!(is_pending(&mut later).await, "{second:?}: all is taken");
        lease.finish();
        assert!(later.await.is_ok(), "{second:?} after {first:?}");
    }
}

/// An HTTP/2 peer that allows one stream per connection, and does not answer on the second connection.
async fn of_one_stream() -> (SocketAddr, Arc<AtomicUsize>) {
    let service = hyper::service::service_fn(|_: Request<Incoming>| async {
        Ok::<_, Infallible>(Response::<Full<Bytes>>::new(Full::from("ok")))
    });
    scripted(move |number, mut stream| async move {
        if number == 1 {
            is_closed_silently(&mut stream).await;
            return;
        }
        let _ = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
            .max_concurrent_streams(1)
            .serve_connection(TokioIo::new(stream), service)
            .await;
    })
    .await
}

/// Waiters behind the first did not learn of free streams, and new requests took them.
#[tokio::test]
async fn a_request_that_waits_for_a_stream_is_not_overtaken() {
    let (address, accepted) = of_one_stream().await;
    let upstream = upstream_with(address, |entry| {
        entry.protocol = Some(raw::UpstreamProtocol::Http2);
        entry.max_connections = 1;
    });
    let pools = pools();
    let node = pools.node(&upstream);
    let held = node.checkout(&upstream, Pick::Pooled).await.unwrap();
    let mut first = Box::pin(node.checkout(&upstream, Pick::Pooled));
    let mut second = Box::pin(node.checkout(&upstream, Pick::Pooled));
    assert!(is_pending(&mut first).await && is_pending(&mut second).await);
    held.finish();
    let mut third = Box::pin(node.checkout(&upstream, Pick::Pooled));
    assert!(is_pending(&mut third).await, "it came last");
    let lease = first.await.unwrap();
    assert!(is_pending(&mut second).await && is_pending(&mut third).await);
    lease.finish();
    assert!(is_pending(&mut third).await, "it came last");
    second.await.unwrap().finish();
    third.await.unwrap().finish();
    assert_eq!(accepted.load(Ordering::SeqCst), 1);
}

/// All waited for a new connection that never opened, although streams were free.
#[tokio::test]
async fn a_request_that_waits_for_a_connecting_peer_gets_a_stream_that_became_free() {
    let (address, accepted) = of_one_stream().await;
    let upstream = upstream_with(address, |entry| entry.protocol = Some(raw::UpstreamProtocol::Http2));
    let pools = pools();
    let node = pools.node(&upstream);
    let held = node.checkout(&upstream, Pick::Pooled).await.unwrap();
    let mut opens = Box::pin(node.checkout(&upstream, Pick::Pooled));
    let mut waits = Box::pin(node.checkout(&upstream, Pick::Pooled));
    assert!(is_pending(&mut opens).await && is_pending(&mut waits).await);
    held.finish();
    let _held = waits.await.unwrap();
    // If the one that opens a connection gives up, the next does it.
    tokio::select! {
        _ = &mut opens => panic!("it hears nothing of its peer"),
        () = until(|| accepted.load(Ordering::SeqCst) == 2) => {}
    }
    let mut next = Box::pin(node.checkout(&upstream, Pick::Pooled));
    assert!(is_pending(&mut next).await);
    drop(opens);
    assert!(next.await.is_ok());
    assert_eq!(accepted.load(Ordering::SeqCst), 3);
}

/// As after a response that arrived before the end of its upload was written.
#[tokio::test]
async fn a_waiting_request_gets_a_connection_that_was_returned_before_it_was_ready() {
    let (address, accepted) = scripted(|_, mut stream| async move {
        while read_head(&mut stream).await.is_some() {
            tokio::time::sleep(Duration::from_millis(300)).await;
            stream.write_all(OK).await.unwrap();
        }
    })
    .await;
    let upstream = upstream_with(address, |entry| {
        entry.max_connections = 1;
        entry.connect_timeout = Span::from_secs(5);
    });
    let pools = pools();
    let mut lease = pools.node(&upstream).checkout(&upstream, Pick::Pooled).await.unwrap();
    let Lease::Http1(http1) = &mut lease else { panic!("it speaks HTTP/1.1") };
    let exchange = http1.sender().unwrap().try_send_request(get());
    tokio::spawn(async move { exchange.await.ok().unwrap().into_body().collect().await.unwrap() });
    lease.finish();
    assert_eq!(fetch(&pools, &upstream, get()).await.unwrap(), "ok");
    assert_eq!(accepted.load(Ordering::SeqCst), 1);
}

/// Only one of them got a connection every tenth of a second; the others waited although connections were free.
#[tokio::test]
async fn all_waiting_requests_get_connections_that_became_ready_together() {
    const COUNT: usize = 30;
    let (address, accepted) = scripted(|_, mut stream| async move {
        read_head(&mut stream).await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        stream.write_all(OK).await.unwrap();
        // None is returned before the last waiter has found nothing.
        read_head(&mut stream).await;
        tokio::time::sleep(Duration::from_secs(2)).await;
        stream.write_all(OK).await.unwrap();
    })
    .await;
    let upstream = upstream_with(address, |entry| {
        entry.max_connections = u32::try_from(COUNT).unwrap();
        entry.connect_timeout = Span::from_secs(2);
    });
    let pools = pools();
    let mut leases = Vec::new();
    for _ in 0..COUNT {
        leases.push(pools.node(&upstream).checkout(&upstream, Pick::Pooled).await.unwrap());
    }
    for mut lease in leases {
        let Lease::Http1(http1) = &mut lease else { panic!("it speaks HTTP/1.1") };
        let exchange = http1.sender().unwrap().try_send_request(get());
        tokio::spawn(async move { exchange.await.ok().unwrap().into_body().collect().await.unwrap() });
        lease.finish();
    }
    let asked = futures_util::future::join_all((0..COUNT).map(|_| fetch(&pools, &upstream, get())));
    for answer in asked.await {
        assert_eq!(answer.unwrap(), "ok");
    }
    assert_eq!(accepted.load(Ordering::SeqCst), COUNT);
}

/// A request blocked by its own configuration's limit held back all those behind, which were within theirs, until it
/// gave up.
#[tokio::test]
async fn a_waiting_request_follows_the_limit_of_the_latest_configuration() {
    for kind in KINDS {
        let (address, _) = scripted(answer_all).await;
        let of = |limit| upstream_with(address, |entry| entry.max_connections = limit);
        let (narrow, wide) = (of(1), of(4));
        let pools = pools();
        let node = pools.node(&narrow);
        assert!(Arc::ptr_eq(&node, &pools.node(&wide)));
        let _held = node.own(&narrow).await.unwrap();
        let mut waits = Box::pin(take(&node, &narrow, kind));
        assert!(is_pending(&mut waits).await);
        let (earlier, later) = tokio::join!(waits, node.checkout(&wide, Pick::Pooled));
        assert!(earlier.is_ok() && later.is_ok(), "{kind:?}");
    }
}

/// Waiters were not notified, and did not check, as long as no stream ended.
#[tokio::test]
async fn a_waiting_request_gets_a_stream_once_the_peer_allows_more() {
    /// SETTINGS with SETTINGS_MAX_CONCURRENT_STREAMS.
    fn settings(streams: u8) -> [u8; 15] {
        [0, 0, 6, 4, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, streams]
    }
    let more = Arc::new(Notify::new());
    let told = Arc::clone(&more);
    let (address, accepted) = scripted(move |_, mut stream| {
        let told = Arc::clone(&told);
        async move {
            stream.write_all(&settings(1)).await.unwrap();
            told.notified().await;
            stream.write_all(&settings(100)).await.unwrap();
            is_closed_silently(&mut stream).await;
        }
    })
    .await;
    let upstream = upstream_with(address, |entry| {
        entry.protocol = Some(raw::UpstreamProtocol::Http2);
        entry.max_connections = 1;
    });
    let pools = pools();
    let node = pools.node(&upstream);
    let _held = node.checkout(&upstream, Pick::Pooled).await.unwrap();
    let mut first = Box::pin(node.checkout(&upstream, Pick::Pooled));
    let mut second = Box::pin(node.checkout(&upstream, Pick::Fresh));
    assert!(is_pending(&mut first).await && is_pending(&mut second).await);
    more.notify_one();
    let (first, second) = tokio::join!(first, second);
    assert!(first.is_ok() && second.is_ok());
    assert_eq!(accepted.load(Ordering::SeqCst), 1);
}

/// If a connection becomes ready after it was returned, that is not notified at once, and waiters that timed out before
/// got the error that all are in use.
#[tokio::test]
async fn a_waiting_request_checks_once_more_at_its_deadline() {
    let answer = Arc::new(Notify::new());
    let told = Arc::clone(&answer);
    let (address, accepted) = scripted(move |_, mut stream| {
        let told = Arc::clone(&told);
        async move {
            read_head(&mut stream).await;
            told.notified().await;
            stream.write_all(OK).await.unwrap();
            is_closed_silently(&mut stream).await;
        }
    })
    .await;
    let within = |connect_timeout| {
        upstream_with(address, |entry| {
            entry.max_connections = 1;
            entry.connect_timeout = connect_timeout;
        })
    };
    // Less than a tick of the sweep, which notifies.
    let (patient, hasty) = (within(Span::from_secs(3600)), within(Span::from_millis(50)));
    let pools = pools();
    let node = pools.node(&patient);
    let mut lease = node.checkout(&patient, Pick::Pooled).await.unwrap();
    tokio::time::pause();
    let Lease::Http1(http1) = &mut lease else { panic!("it speaks HTTP/1.1") };
    let exchange = http1.sender().unwrap().try_send_request(get());
    tokio::spawn(async move { exchange.await.ok().unwrap().into_body().collect().await.unwrap() });
    lease.finish();
    let mut waits = Box::pin(node.checkout(&hasty, Pick::Pooled));
    assert!(is_pending(&mut waits).await);
    answer.notify_one();
    // Paused time does not advance here.
    while !node.has_ready() {
        tokio::task::yield_now().await;
    }
    assert!(is_pending(&mut waits).await, "nobody has told it");
    assert!(waits.await.is_ok());
    assert_eq!(accepted.load(Ordering::SeqCst), 1);
}

/// Those that had waited longest had almost no time left to connect, and lost their slot.
#[tokio::test(start_paused = true)]
async fn a_request_that_waited_for_a_slot_has_the_full_time_to_connect() {
    const SETTINGS: &[u8] = &[0, 0, 0, 4, 0, 0, 0, 0, 0];
    let (address, _) = scripted(|_, mut stream| async move {
        tokio::time::sleep(Duration::from_millis(1500)).await;
        stream.write_all(SETTINGS).await.unwrap();
        is_closed_silently(&mut stream).await;
    })
    .await;
    let upstream = upstream_with(address, |entry| {
        entry.protocol = Some(raw::UpstreamProtocol::Http2);
        entry.max_connections = 1;
        entry.connect_timeout = Span::from_secs(2);
    });
    let pools = pools();
    let node = pools.node(&upstream);
    for kind in KINDS {
        let held = node.own(&upstream).await.unwrap();
        let mut waits = Box::pin(take(&node, &upstream, kind));
        assert!(is_pending(&mut waits).await);
        tokio::time::advance(Duration::from_secs(1)).await;
        drop(held);
        assert!(waits.await.is_ok(), "{kind:?}");
    }
}

/// Regression: the waiting request closed a connection that was already closed, which made no room, and was not woken
/// to check again.
#[tokio::test(start_paused = true)]
async fn a_request_that_needs_a_slot_closes_an_idle_connection() {
    let close = Arc::new(Notify::new());
    let told = Arc::clone(&close);
    let service = hyper::service::service_fn(|_: Request<Incoming>| async {
        Ok::<_, Infallible>(Response::<Full<Bytes>>::new(Full::default()))
    });
    let (address, accepted) = scripted(move |number, stream| {
        let told = Arc::clone(&told);
        async move {
            let serves = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                .max_concurrent_streams(1)
                .serve_connection(TokioIo::new(stream), service);
            tokio::select! {
                _ = serves => {}
                () = told.notified(), if number == 1 => {}
            }
        }
    })
    .await;
    let upstream = upstream_with(address, |entry| {
        entry.protocol = Some(raw::UpstreamProtocol::Http2);
        entry.max_connections = 2;
    });
    let metrics = Metrics::default();
    let pools = Pools::new(metrics.clone(), Pings::NORMAL);
    let node = pools.node(&upstream);
    let unused = node.checkout(&upstream, Pick::Pooled).await.unwrap();
    let closed = node.checkout(&upstream, Pick::Pooled).await.unwrap();
    close.notify_one();
    // Paused time does not advance here; the sweep removes it at its next tick.
    while metrics.of(upstream.name()).open.get() == 2 {
        tokio::task::yield_now().await;
    }
    closed.finish();
    let _used = node.checkout(&upstream, Pick::Pooled).await.unwrap();
    unused.finish();
    assert!(node.own(&upstream).await.is_ok());
    assert_eq!(accepted.load(Ordering::SeqCst), 4);
}

#[tokio::test]
async fn a_timed_out_wait_for_a_stream_tells_a_full_upstream_from_a_silent_one() {
    let of = |address, connect_timeout| {
        upstream_with(address, |entry| {
            entry.protocol = Some(raw::UpstreamProtocol::Http2);
            entry.max_connections = 1;
            entry.connect_timeout = connect_timeout;
        })
    };
    let (patience, haste) = (Span::from_secs(60), Span::from_millis(100));
    let kind = |result: Result<Lease, UpstreamError>| result.unwrap_err().kind();

    let (full, _) = of_one_stream().await;
    let (pools, upstream) = (pools(), of(full, haste));
    let node = pools.node(&upstream);
    let _held = node.checkout(&of(full, patience), Pick::Pooled).await.unwrap();
    let wait = || node.checkout(&upstream, Pick::Pooled);
    let (first, second) = tokio::join!(wait(), wait());
    assert_eq!([kind(first), kind(second)], [UpstreamErrorKind::Exhausted; 2]);

    let (silent, _) = scripted(|_, mut stream| async move {
        is_closed_silently(&mut stream).await;
    })
    .await;
    let (patient, hasty) = (of(silent, patience), of(silent, haste));
    let node = pools.node(&patient);
    let mut opens = Box::pin(node.checkout(&patient, Pick::Pooled));
    assert!(is_pending(&mut opens).await);
    assert_eq!(kind(node.checkout(&hasty, Pick::Pooled).await), UpstreamErrorKind::ConnectTimeout);
}

/// If a slot became free at the last moment but went to another, the error was a 504.
#[tokio::test]
async fn a_timed_out_wait_for_a_slot_is_refused_as_upstream_full() {
    let (address, _) = scripted(answer_all).await;
    let within = |connect_timeout| {
        upstream_with(address, |entry| {
            entry.max_connections = 1;
            entry.connect_timeout = connect_timeout;
        })
    };
    let (patient, hasty) = (within(Span::from_secs(60)), within(Span::from_millis(100)));
    let metrics = Metrics::default();
    let pools = Pools::new(metrics.clone(), Pings::NORMAL);
    let node = pools.node(&patient);
    let held = node.own(&patient).await.unwrap();
    let mut earlier = Box::pin(node.checkout(&patient, Pick::Pooled));
    let mut later = Box::pin(node.checkout(&hasty, Pick::Pooled));
    assert!(is_pending(&mut earlier).await && is_pending(&mut later).await);
    drop(held);
    until(|| metrics.of(patient.name()).open.get() == 0).await;
    assert_eq!(later.await.unwrap_err().kind(), UpstreamErrorKind::Exhausted);
    assert!(earlier.await.is_ok());
}
