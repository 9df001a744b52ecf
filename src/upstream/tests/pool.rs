//! Which connection a request gets, and when one ends.

use http::StatusCode;
use tokio::sync::mpsc;

use super::*;
use crate::{
    error::Rejection,
    upstream::{
        UpstreamErrorKind,
        pool::{Lease, Node, Pick},
    },
};

#[tokio::test]
async fn requests_share_a_connection_one_after_the_other() {
    let (address, accepted) = scripted(answer_all).await;
    let metrics = Metrics::default();
    let (pools, upstream) = (Pools::new(metrics.clone(), Pings::NORMAL), upstream(address));
    for _ in 0..5 {
        assert_eq!(fetch(&pools, &upstream, get()).await.unwrap(), "ok");
    }
    assert_eq!(accepted.load(Ordering::SeqCst), 1);
    let counted = metrics.of(upstream.name());
    until(|| counted.reused.get() == 4 && counted.idle.get() == 1).await;
}

#[tokio::test]
async fn a_connection_that_was_closed_while_idle_is_not_used() {
    let (address, accepted) = scripted(|_, mut stream| async move {
        read_head(&mut stream).await;
        stream.write_all(OK).await.unwrap();
    })
    .await;
    let metrics = Metrics::default();
    let (pools, upstream) = (Pools::new(metrics.clone(), Pings::NORMAL), upstream(address));
    for expected in 1..4 {
        assert_eq!(fetch(&pools, &upstream, request("POST", RequestBody::Empty)).await.unwrap(), "ok");
        assert_eq!(accepted.load(Ordering::SeqCst), expected);
        until(|| metrics.of(upstream.name()).open.get() == 0).await;
    }
}

/// As nginx announces it after `keepalive_requests`: no request meets the moment of the close, whatever its method.
#[tokio::test]
async fn a_connection_whose_end_was_announced_takes_no_further_request() {
    let (closed, mut was_closed) = mpsc::unbounded_channel();
    let (address, accepted) = scripted(move |_, mut stream| {
        let closed = closed.clone();
        async move {
            read_head(&mut stream).await;
            stream.write_all(OK).await.unwrap();
            read_head(&mut stream).await;
            let last = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok";
            stream.write_all(last).await.unwrap();
            closed.send(is_closed_silently(&mut stream).await).unwrap();
        }
    })
    .await;
    let (pools, upstream) = (pools(), upstream(address));
    for number in 0..8 {
        let method = if number < 4 { "POST" } else { "GET" };
        assert_eq!(fetch(&pools, &upstream, request(method, RequestBody::Empty)).await.unwrap(), "ok");
        assert_eq!(accepted.load(Ordering::SeqCst), number / 2 + 1);
    }
    for _ in 0..4 {
        assert!(was_closed.recv().await.unwrap());
    }
}

#[tokio::test]
async fn a_response_that_nobody_reads_to_its_end_closes_its_connection() {
    let (closed, mut was_closed) = mpsc::unbounded_channel();
    let (address, accepted) = scripted(move |_, mut stream| {
        let closed = closed.clone();
        async move {
            read_head(&mut stream).await;
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf").await.unwrap();
            closed.send(is_closed_silently(&mut stream).await).unwrap();
        }
    })
    .await;
    let (pools, upstream) = (pools(), upstream(address));
    for expected in 1..3 {
        drop(pools.send(&upstream, &mut get(), Lane::Short).await.unwrap());
        assert!(was_closed.recv().await.unwrap());
        assert_eq!(accepted.load(Ordering::SeqCst), expected);
    }
}

/// Answers every request on every connection, in the protocol that the client speaks, and tells when one has ended.
async fn ending(status: StatusCode) -> (SocketAddr, Arc<AtomicUsize>, mpsc::UnboundedReceiver<()>) {
    let (closed, was_closed) = mpsc::unbounded_channel();
    let service = hyper::service::service_fn(move |_: Request<Incoming>| async move {
        let body = if status == StatusCode::NO_CONTENT { Full::default() } else { Full::from("ok") };
        let mut response = Response::<Full<Bytes>>::new(body);
        *response.status_mut() = status;
        Ok::<_, Infallible>(response)
    });
    let (address, accepted) = scripted(move |_, stream| {
        let closed = closed.clone();
        async move {
            let _ = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new())
                .serve_connection(TokioIo::new(stream), service)
                .await;
            closed.send(()).unwrap();
        }
    })
    .await;
    (address, accepted, was_closed)
}

/// Those of HTTP/2 were kept for all of their age, and balancers close them long before. After an answer without a body nobody looked
/// at them any more.
#[tokio::test]
async fn a_connection_is_kept_for_its_idle_time_and_no_older_than_its_age() {
    type Change = fn(&mut raw::Upstream);
    let changes: [Change; 2] =
        [|entry| entry.idle_timeout = Span::from_millis(200), |entry| entry.max_age = Span::from_millis(200)];
    let protocols = [raw::UpstreamProtocol::Http1, raw::UpstreamProtocol::Http2];
    let answers = [StatusCode::OK, StatusCode::NO_CONTENT];
    let both = protocols.into_iter().flat_map(|protocol| answers.map(|status| (protocol, status)));
    for (protocol, status, change) in
        both.flat_map(|(protocol, status)| changes.map(|change| (protocol, status, change)))
    {
        let (address, accepted, mut was_closed) = ending(status).await;
        let upstream = upstream_with(address, |entry| {
            entry.protocol = Some(protocol);
            change(entry);
        });
        let pools = pools();
        fetch(&pools, &upstream, get()).await.unwrap();
        tokio::time::timeout(Duration::from_secs(10), was_closed.recv())
            .await
            .unwrap_or_else(|_| panic!("it is kept: {protocol:?} {status}"))
            .unwrap();
        fetch(&pools, &upstream, get()).await.unwrap();
        assert_eq!(accepted.load(Ordering::SeqCst), 2);
    }
}

/// The clock stands where there is no connection, and the first one after that was as old as the quiet had lasted.
#[tokio::test]
async fn a_connection_is_young_however_long_there_was_none_before() {
    for protocol in [raw::UpstreamProtocol::Http1, raw::UpstreamProtocol::Http2] {
        let (address, accepted, mut was_closed) = ending(StatusCode::OK).await;
        let with_age = |age| {
            upstream_with(address, |entry| {
                entry.protocol = Some(protocol);
                entry.max_age = Span::from_millis(age);
            })
        };
        let pools = pools();
        fetch(&pools, &with_age(1), get()).await.unwrap();
        was_closed.recv().await.unwrap();
        tokio::time::sleep(Duration::from_millis(2500)).await;
        for _ in 0..3 {
            fetch(&pools, &with_age(2000), get()).await.unwrap();
        }
        assert_eq!(accepted.load(Ordering::SeqCst), 2, "{protocol:?}");
    }
}

/// Shared connections that nobody used held all places, for as long as they may grow old.
#[tokio::test]
async fn a_stream_of_its_own_takes_the_place_of_a_shared_connection_that_nobody_uses() {
    let (address, accepted, _ended) = ending(StatusCode::OK).await;
    let upstream = upstream_with(address, |entry| {
        entry.protocol = Some(raw::UpstreamProtocol::Http2);
        entry.max_connections = 1;
        entry.connect_timeout = Span::from_millis(1000);
    });
    let pools = pools();
    let held = pools.send(&upstream, &mut get(), Lane::Short).await.unwrap();
    let error = pools.send(&upstream, &mut get(), Lane::Long).await.unwrap_err();
    assert_eq!(error.kind(), UpstreamErrorKind::Exhausted, "it is used");
    assert_eq!(text(held).await, "ok");
    assert_eq!(text(pools.send(&upstream, &mut get(), Lane::Long).await.unwrap()).await, "ok");
    assert_eq!(accepted.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn no_more_connections_are_opened_than_allowed() {
    let (address, accepted) = scripted(|_, mut stream| async move {
        while let Some(head) = read_head(&mut stream).await {
            if head.contains("slow") {
                tokio::time::sleep(Duration::from_millis(300)).await;
            }
            stream.write_all(OK).await.unwrap();
        }
    })
    .await;
    let upstream = upstream_with(address, |entry| {
        entry.max_connections = 1;
        entry.connect_timeout = Span::from_millis(100);
    });
    let pools = pools();
    let held = pools.send(&upstream, &mut get(), Lane::Short).await.unwrap();
    let error = fetch(&pools, &upstream, get()).await.unwrap_err();
    assert_eq!(error.kind(), UpstreamErrorKind::Exhausted);
    assert_eq!(Rejection::from(error).status(), StatusCode::SERVICE_UNAVAILABLE);
    text(held).await;
    assert_eq!(fetch(&pools, &upstream, get()).await.unwrap(), "ok");

    // One that waits gets the connection of one that ends.
    let upstream = upstream_with(address, |entry| entry.max_connections = 1);
    let slow = || Request::get("/slow").body(RequestBody::Empty).unwrap();
    let (a, b) = tokio::join!(fetch(&pools, &upstream, slow()), fetch(&pools, &upstream, slow()));
    assert_eq!((a.unwrap(), b.unwrap()), ("ok".to_owned(), "ok".to_owned()));
    assert_eq!(accepted.load(Ordering::SeqCst), 1);
    // A stream of its own takes the place of an idle connection.
    assert_eq!(text(pools.send(&upstream, &mut get(), Lane::Long).await.unwrap()).await, "ok");
    assert_eq!(accepted.load(Ordering::SeqCst), 2);
}

async fn is_pending(future: &mut (impl Future + Unpin)) -> bool {
    std::future::poll_fn(|cx| Poll::Ready(Pin::new(&mut *future).poll(cx).is_pending())).await
}

/// Under load what became free went to whoever came next, and those that waited for it got 503 in the end.
#[tokio::test]
async fn who_waits_for_a_connection_is_not_overtaken() {
    const LAST: &[u8] = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok";
    // What becomes free is a connection, or room for a new one.
    for answer in [OK, LAST] {
        let (address, accepted) = scripted(move |_, mut stream| async move {
            while read_head(&mut stream).await.is_some() {
                stream.write_all(answer).await.unwrap();
            }
        })
        .await;
        let upstream = upstream_with(address, |entry| entry.max_connections = 1);
        let pools = pools();
        let node = pools.node(&upstream);
        let held = pools.send(&upstream, &mut get(), Lane::Short).await.unwrap();
        let mut first = Box::pin(node.checkout(&upstream, Pick::Pooled));
        assert!(is_pending(&mut first).await);
        assert_eq!(text(held).await, "ok");
        for _ in 0..20 {
            tokio::task::yield_now().await;
        }
        let mut second = Box::pin(node.checkout(&upstream, Pick::Pooled));
        assert!(is_pending(&mut second).await, "it came later");
        let lease = first.await.unwrap();
        assert!(is_pending(&mut second).await);
        lease.finish();
        assert!(second.await.is_ok());
        assert_eq!(accepted.load(Ordering::SeqCst), if answer == OK { 1 } else { 2 });
    }
}

/// A new watch took the place that became free for one that waited, or for a short request, and a second attempt that of all.
#[tokio::test]
async fn nobody_is_overtaken_whatever_they_wait_for() {
    async fn take(node: &Arc<Node>, upstream: &Upstream, lane: Lane, pick: Pick) -> Result<Lease, UpstreamError> {
        match lane {
            Lane::Short => node.checkout(upstream, pick).await,
            Lane::Long => node.own(upstream).await,
        }
    }
    let kinds = [(Lane::Short, Pick::Pooled), (Lane::Short, Pick::Fresh), (Lane::Long, Pick::Fresh)];
    for (first, second) in kinds.into_iter().flat_map(|first| kinds.map(|second| (first, second))) {
        let (address, _) = scripted(answer_all).await;
        let upstream = upstream_with(address, |entry| entry.max_connections = 1);
        let metrics = Metrics::default();
        let pools = Pools::new(metrics.clone(), Pings::NORMAL);
        let node = pools.node(&upstream);
        let held = node.own(&upstream).await.unwrap();
        let mut gives_up = Box::pin(take(&node, &upstream, first.0, first.1));
        assert!(is_pending(&mut gives_up).await);
        let mut earlier = Box::pin(take(&node, &upstream, first.0, first.1));
        assert!(is_pending(&mut earlier).await);
        drop(held);
        until(|| metrics.of(upstream.name()).open.get() == 0).await;
        // It was woken for what is free, which others are to hear of now.
        drop(gives_up);
        let mut later = Box::pin(take(&node, &upstream, second.0, second.1));
        assert!(is_pending(&mut later).await, "{second:?} came after {first:?}");
        let lease = earlier.await.unwrap();
        assert!(is_pending(&mut later).await, "{second:?}: all is taken");
        lease.finish();
        assert!(later.await.is_ok(), "{second:?} after {first:?}");
    }
}

/// A peer of HTTP/2 that takes one stream a connection, and says nothing on the second.
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

/// Those behind the first of them heard of no stream that became free, and whoever came next took it.
#[tokio::test]
async fn who_waits_for_a_stream_is_not_overtaken() {
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

/// All waited for a new connection that did not come about, beside streams that nobody used.
#[tokio::test]
async fn who_waits_for_a_connection_that_another_opens_gets_a_stream_that_became_free() {
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
    // Where whoever opens one gives up, the next does.
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

/// As after an answer that came before the last of its upload was written.
#[tokio::test]
async fn who_waits_gets_a_connection_that_was_given_back_before_it_was_ready() {
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

/// One of them each tenth of a second got one, and the others waited beside connections that nobody used.
#[tokio::test]
async fn all_who_wait_get_connections_that_became_ready_together() {
    const COUNT: usize = 30;
    let (address, accepted) = scripted(|_, mut stream| async move {
        read_head(&mut stream).await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        stream.write_all(OK).await.unwrap();
        // None of them is given back before the last one has waited in vain.
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

/// One caller's watches took every connection, and everybody else got 503.
#[tokio::test]
async fn exchanges_that_last_leave_a_quarter_of_the_connections_to_others() {
    let (address, accepted) = scripted(answer_all).await;
    let upstream = upstream_with(address, |entry| entry.max_connections = 4);
    let hasty = upstream_with(address, |entry| {
        entry.max_connections = 4;
        entry.connect_timeout = Span::from_millis(100);
    });
    let pools = pools();
    // Idle ones first, so that those that last have to take their place.
    let short = async || pools.send(&upstream, &mut get(), Lane::Short).await.unwrap();
    for response in [short().await, short().await, short().await, short().await] {
        text(response).await;
    }
    assert_eq!(accepted.load(Ordering::SeqCst), 4);
    let watch = async || pools.send(&upstream, &mut get(), Lane::Long).await;
    let watches = [watch().await.unwrap(), watch().await.unwrap(), watch().await.unwrap()];
    let error = pools.send(&hasty, &mut get(), Lane::Long).await.unwrap_err();
    assert_eq!(error.kind(), UpstreamErrorKind::Exhausted);
    assert_eq!(Rejection::from(error).status(), StatusCode::SERVICE_UNAVAILABLE);
    for _ in 0..3 {
        assert_eq!(fetch(&pools, &upstream, get()).await.unwrap(), "ok", "of somebody else");
    }
    assert_eq!(accepted.load(Ordering::SeqCst), 7, "the last one is idle between requests, and left alone");
    // One that ends makes room for one that waits, though what is free was for others before.
    let mut request = get();
    let (waiting, ()) = tokio::join!(pools.send(&upstream, &mut request, Lane::Long), async {
        fetch(&pools, &upstream, get()).await.unwrap();
        drop(watches);
    });
    assert_eq!(text(waiting.unwrap()).await, "ok");
}

#[tokio::test]
async fn connections_survive_a_reload_that_leaves_their_settings_alone() {
    let (closed, mut was_closed) = mpsc::unbounded_channel();
    let (address, accepted) = scripted(move |number, stream| {
        let closed = closed.clone();
        async move {
            answer_all(number, stream).await;
            closed.send(()).unwrap();
        }
    })
    .await;
    let pools = pools();
    fetch(&pools, &upstream(address), get()).await.unwrap();
    let same = upstream_with(address, |entry| entry.name = "renamed".to_owned());
    pools.retain(std::slice::from_ref(&same));
    fetch(&pools, &same, get()).await.unwrap();
    assert_eq!(accepted.load(Ordering::SeqCst), 1);

    // An exchange under way ends as it would, and its connection with it.
    let under_way = pools.send(&same, &mut get(), Lane::Short).await.unwrap();
    pools.retain(&[upstream_with(address, |entry| entry.protocol = Some(raw::UpstreamProtocol::Http1))]);
    assert_eq!(text(under_way).await, "ok");
    was_closed.recv().await.unwrap();
}

#[tokio::test]
async fn long_requests_have_connections_of_their_own() {
    let (address, accepted) = scripted(answer_all).await;
    let (pools, upstream) = (pools(), upstream(address));
    for expected in 1..4 {
        assert_eq!(text(pools.send(&upstream, &mut get(), Lane::Long).await.unwrap()).await, "ok");
        assert_eq!(accepted.load(Ordering::SeqCst), expected);
    }
}

#[tokio::test]
async fn a_stream_holds_on_to_no_settings() {
    let (address, _) = scripted(|_, mut stream| async move {
        read_head(&mut stream).await;
        stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n").await.unwrap();
        is_closed_silently(&mut stream).await;
    })
    .await;
    let (pools, upstream) = (pools(), upstream(address));
    let weak = Arc::downgrade(&upstream);
    let mut response = pools.send(&upstream, &mut get(), Lane::Long).await.unwrap();
    drop(upstream);
    assert!(weak.upgrade().is_none());
    assert_eq!(response.body_mut().frame().await.unwrap().unwrap().into_data().unwrap(), "{}");
}
