//! Which connection a request uses, and when connections are closed.

use http::StatusCode;
use tokio::sync::{Notify, mpsc};

use super::*;
use crate::{error::Rejection, upstream::UpstreamErrorKind};

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

/// As announced by nginx after `keepalive_requests`: no request of any method runs into the close.
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
async fn a_response_that_is_not_read_to_its_end_closes_its_connection() {
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

/// Answers every request on every connection, in the client's protocol, and signals when a connection has ended.
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

/// HTTP/2 connections were kept for their maximum age, although balancers close them long before. After a response
/// without a body they were not checked any more.
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

/// The clock stands still without connections, and the first one after that seemed as old as the pause.
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

/// Unused shared connections occupied all slots, up to their maximum age.
#[tokio::test]
async fn a_dedicated_connection_replaces_an_unused_shared_one() {
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

    // A waiter gets the connection of an exchange that ends.
    let upstream = upstream_with(address, |entry| entry.max_connections = 1);
    let slow = || Request::get("/slow").body(RequestBody::Empty).unwrap();
    let (a, b) = tokio::join!(fetch(&pools, &upstream, slow()), fetch(&pools, &upstream, slow()));
    assert_eq!((a.unwrap(), b.unwrap()), ("ok".to_owned(), "ok".to_owned()));
    assert_eq!(accepted.load(Ordering::SeqCst), 1);
    // A long-lived exchange takes the slot of an idle connection.
    assert_eq!(text(pools.send(&upstream, &mut get(), Lane::Long).await.unwrap()).await, "ok");
    assert_eq!(accepted.load(Ordering::SeqCst), 2);
}

/// Both used the limit of the last request's entry.
#[tokio::test]
async fn entries_with_one_address_have_a_limit_of_connections_each() {
    let (address, accepted) = scripted(answer_all).await;
    let named = |name: &str, max_connections| {
        upstream_with(address, |entry| {
            entry.name = name.to_owned();
            entry.max_connections = max_connections;
            entry.connect_timeout = Span::from_millis(100);
        })
    };
    let (narrow, wide) = (named("narrow", 1), named("wide", 2));
    let pools = pools();
    let sent = async |upstream: &Arc<Upstream>| pools.send(upstream, &mut get(), Lane::Short).await;
    let _narrow = sent(&narrow).await.unwrap();
    let _wide = (sent(&wide).await.unwrap(), sent(&wide).await.unwrap());
    assert_eq!(accepted.load(Ordering::SeqCst), 3);
    for full in [&narrow, &wide] {
        assert_eq!(sent(full).await.unwrap_err().kind(), UpstreamErrorKind::Exhausted, "{}", full.name());
    }
}

/// One caller's watches took every connection, and everybody else got a 503.
#[tokio::test]
async fn exchanges_that_last_leave_a_quarter_of_the_connections_to_others() {
    let (address, accepted) = scripted(answer_all).await;
    let upstream = upstream_with(address, |entry| entry.max_connections = 4);
    let hasty = upstream_with(address, |entry| {
        entry.max_connections = 4;
        entry.connect_timeout = Span::from_millis(100);
    });
    let pools = pools();
    // Idle connections first, so that the long-lived ones must replace them.
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
    // A watch that ends makes room for a waiting one, although the rest is reserved for other exchanges.
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
    let same = upstream_with(address, |entry| entry.response_timeout = Span::from_secs(20));
    pools.retain(std::slice::from_ref(&same));
    fetch(&pools, &same, get()).await.unwrap();
    assert_eq!(accepted.load(Ordering::SeqCst), 1);

    // An exchange in progress ends normally, and its connection with it.
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

/// A peer that begins a response on each of its first `slow` connections and sends the rest of it when it is told to.
/// Answers on the others, and signals when a slow connection has ended before that.
async fn beginning(slow: usize) -> (SocketAddr, Arc<Notify>, mpsc::UnboundedReceiver<()>) {
    let (closed, was_closed) = mpsc::unbounded_channel();
    let rest_follows = Arc::new(Notify::new());
    let follows = Arc::clone(&rest_follows);
    let (address, _) = scripted(move |number, mut stream| {
        let (closed, follows) = (closed.clone(), Arc::clone(&follows));
        async move {
            if number >= slow {
                return answer_all(number, stream).await;
            }
            read_head(&mut stream).await;
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf").await.unwrap();
            let ended = tokio::select! {
                () = follows.notified() => false,
                silently = is_closed_silently(&mut stream) => silently,
            };
            if ended {
                let _ = closed.send(());
            } else {
                let _ = stream.write_all(b"ending").await;
            }
        }
    })
    .await;
    (address, rest_follows, was_closed)
}

/// The bodies of `count` responses for a client in this network.
async fn for_client(pools: &Pools, upstream: &Arc<Upstream>, count: usize, network: [u8; 4]) -> Vec<UpstreamBody> {
    let mut bodies = Vec::new();
    for _ in 0..count {
        let response = pools.send(upstream, &mut get(), Lane::Short).await.unwrap();
        bodies.push(response.into_body().read_by(Some(network.into())));
    }
    bodies
}

/// One client that did not read took all connections, and everybody else got 503.
#[tokio::test]
async fn a_client_that_does_not_read_leaves_connections_to_others() {
    let (address, rest_follows, mut was_closed) = beginning(8).await;
    let upstream = upstream_with(address, |entry| {
        entry.max_connections = 8;
        entry.connect_timeout = Span::from_secs(10);
    });
    let pools = pools();
    let slow = for_client(&pools, &upstream, 1, [192, 0, 2, 1]).await.remove(0);
    let unread = for_client(&pools, &upstream, 7, [192, 0, 2, 2]).await;
    assert_eq!(fetch(&pools, &upstream, get()).await.unwrap(), "ok");
    was_closed.recv().await.unwrap();
    assert_eq!(was_closed.try_recv(), Err(mpsc::error::TryRecvError::Empty), "one request waited");

    rest_follows.notify_waiters();
    assert_eq!(slow.collect().await.unwrap().to_bytes(), "halfending", "the only one of its client");
    let mut whole = 0;
    for body in unread {
        whole += usize::from(body.collect().await.is_ok());
    }
    assert_eq!(whole, 6);
}

#[tokio::test]
async fn responses_for_which_the_client_waits_end_for_nobody() {
    let (address, rest_follows, mut was_closed) = beginning(4).await;
    let upstream = upstream_with(address, |entry| {
        entry.max_connections = 4;
        entry.connect_timeout = Span::from_secs(2);
    });
    let pools = pools();
    let mut read = for_client(&pools, &upstream, 4, [192, 0, 2, 1]).await;
    for body in &mut read {
        assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "half");
        let is_waiting = std::future::poll_fn(|cx| Poll::Ready(Pin::new(&mut *body).poll_frame(cx).is_pending())).await;
        assert!(is_waiting);
    }
    let error = fetch(&pools, &upstream, get()).await.unwrap_err();
    assert_eq!(error.kind(), UpstreamErrorKind::Exhausted);
    assert_eq!(was_closed.try_recv(), Err(mpsc::error::TryRecvError::Empty));
    rest_follows.notify_waiters();
    for body in read {
        assert_eq!(body.collect().await.unwrap().to_bytes(), "ending");
    }
}
