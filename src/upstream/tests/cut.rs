//! How response bodies end, as seen by a client on the wire and by the audit trail.

use tokio::sync::mpsc;

use super::*;
use crate::{
    body::{CutStyle, EndedBy, Events, Received, ResponseBody, Trailers},
    clock::{Clock, Timestamp},
    streams::{CutReason, Registry, tests as streams},
};

struct Front {
    address: SocketAddr,
    registry: Registry,
    clock: Clock,
    ends: mpsc::UnboundedReceiver<BodyEnd>,
}

/// Proxies every request to `upstream` as a stream with a limit of one minute that is cut according to `style`.
async fn front(upstream: Arc<Upstream>, style: CutStyle) -> Front {
    let (registry, clock) = streams::registry();
    let (ended, ends) = mpsc::unbounded_channel();
    let pools = pools();
    let (shared, time) = (registry.clone(), clock.clone());
    let (address, _) = scripted(move |_, stream| {
        let (pools, upstream, registry, ended, clock) =
            (pools.clone(), Arc::clone(&upstream), shared.clone(), ended.clone(), time.clone());
        let service = hyper::service::service_fn(move |_: Request<Incoming>| {
            let (pools, upstream, registry, ended, clock) =
                (pools.clone(), Arc::clone(&upstream), registry.clone(), ended.clone(), clock.clone());
            async move {
                let now = clock.moment();
                let expires = now.wall() + Duration::from_secs(60);
                let handle = registry.register(streams::watch("alice", expires, now));
                let response = pools.send(&upstream, &mut get(), Lane::Long).await.unwrap();
                let hook: EndHook = Box::new(move |end| ended.send(end).unwrap());
                Ok::<_, Infallible>(response.map(|body| {
                    ResponseBody::<EndHook>::streaming(body, Trailers::Drop).cut_by(handle, style).on_end(hook)
                }))
            }
        });
        async move {
            let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        }
    })
    .await;
    Front { address, registry, clock, ends }
}

/// An upstream that sends `bytes` and then waits for the end of its connection.
async fn upstream_that_sends(bytes: &'static str) -> (Arc<Upstream>, mpsc::UnboundedReceiver<()>) {
    let (close, closed) = mpsc::unbounded_channel();
    let (address, _) = scripted(move |_, mut stream| {
        let close = close.clone();
        async move {
            read_head(&mut stream).await;
            stream.write_all(bytes.as_bytes()).await.unwrap();
            is_closed_silently(&mut stream).await;
            close.send(()).unwrap();
        }
    })
    .await;
    (upstream(address), closed)
}

const EVENT: &str = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\n{}\n\r\n";
const FRAME: &str = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n\0\0\0\x01p\r\n";
const HALF_FRAME: &str = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n\0\0\0\x02\n\r\n";
const HALF: &str = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{\r\n";

async fn open(address: SocketAddr, until_chunk: &str) -> TcpStream {
    let mut client = TcpStream::connect(address).await.unwrap();
    client.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    let mut got = Vec::new();
    while !got.ends_with(until_chunk.as_bytes()) {
        got.push(client.read_u8().await.unwrap());
    }
    client
}

#[tokio::test]
async fn kubernetes_t1_a_watch_ends_cleanly_and_a_log_never_looks_complete() {
    for (style, sent, chunk, rest) in [
        (CutStyle::End(Events::LINES), EVENT, "3\r\n{}\n\r\n", "0\r\n\r\n"),
        (CutStyle::End(Events::LINES), HALF, "1\r\n{\r\n", ""),
        (CutStyle::Abort, EVENT, "3\r\n{}\n\r\n", ""),
        (CutStyle::End(Events::FRAMES), FRAME, "5\r\n\0\0\0\x01p\r\n", "0\r\n\r\n"),
        // Its first byte is a newline, and it was not complete.
        (CutStyle::End(Events::FRAMES), HALF_FRAME, "5\r\n\0\0\0\x02\n\r\n", ""),
    ] {
        let (upstream, mut closed) = upstream_that_sends(sent).await;
        let mut front = front(upstream, style).await;
        let mut client = open(front.address, chunk).await;
        front.clock.advance(Duration::from_secs(59));
        assert_eq!(front.registry.cut_expired(), 0);
        front.clock.advance(Duration::from_secs(1));
        assert_eq!(front.registry.cut_expired(), 1);
        let mut got = vec![0; rest.len()];
        client.read_exact(&mut got).await.unwrap();
        assert_eq!(got, rest.as_bytes());
        if rest.is_empty() {
            assert!(is_closed_silently(&mut client).await);
        }
        let end = front.ends.recv().await.unwrap();
        assert_eq!(end.outcome, EndedBy::Cut(CutReason::Expired));
        closed.recv().await.unwrap();
        assert!(front.registry.is_empty());
    }
}

/// gRPC clients took the reset for a server fault (INTERNAL), which many do not retry.
#[tokio::test]
async fn grpc_clients_learn_why_their_stream_was_ended() {
    for (reason, status) in [(CutReason::Revoked, "16"), (CutReason::PermissionLost, "7"), (CutReason::Draining, "14")]
    {
        let (upstream, _closed) = upstream_that_sends(EVENT).await;
        let (registry, clock) = streams::registry();
        let handle = registry.register(streams::watch("alice", Timestamp::MAX, clock.moment()));
        let response = pools().send(&upstream, &mut get(), Lane::Long).await.unwrap();
        let mut body =
            ResponseBody::<EndHook>::streaming(response.into_body(), Trailers::Pass).cut_by(handle, CutStyle::Status);
        assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "{}\n");
        assert_eq!(registry.close_matching(|_| true, reason), 1);
        let trailers = body.frame().await.unwrap().unwrap().into_trailers().unwrap();
        assert_eq!(trailers["grpc-status"], status);
        assert!(trailers.contains_key("grpc-message") && body.frame().await.is_none());
    }
}

type Sending = mpsc::UnboundedSender<Result<Frame<Bytes>, Infallible>>;

/// An HTTP/2 upstream with a receive window of `window`. Returns the request bodies it gets, each with a sender for its
/// response.
async fn http2_upstream(window: u32) -> (Arc<Upstream>, mpsc::UnboundedReceiver<(Incoming, Sending)>) {
    let (hand_over, handed_over) = mpsc::unbounded_channel::<(Incoming, Sending)>();
    let (address, _) = scripted(move |_, stream| {
        let hand_over = hand_over.clone();
        let service = hyper::service::service_fn(move |request: Request<Incoming>| {
            let (answer, frames) = mpsc::unbounded_channel();
            hand_over.send((request.into_body(), answer)).unwrap();
            async move { Ok::<_, Infallible>(Response::new(Frames(frames))) }
        });
        async move {
            let _ = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                .initial_stream_window_size(window)
                .serve_connection(TokioIo::new(stream), service)
                .await;
        }
    })
    .await;
    (upstream_with(address, |entry| entry.protocol = Some(raw::UpstreamProtocol::Http2)), handed_over)
}

/// Clients that had the trailers of a call, or a complete response, continued to send to the upstream with a revoked
/// credential.
#[tokio::test]
async fn what_a_client_sends_over_http2_ends_with_the_cut_beside_its_answer_and_after_it() {
    for answer_is_over in [false, true] {
        let (upstream, mut handed_over) = http2_upstream(1 << 16).await;
        let (registry, clock) = streams::registry();
        let register = || registry.register(streams::watch("alice", Timestamp::MAX, clock.moment()));
        let upload = Arc::new(register());
        let (feed, fed): (Sending, _) = mpsc::unbounded_channel();
        feed.send(Ok(Frame::data(Bytes::from_static(b"first")))).unwrap();
        let mut sent = RequestBody::streaming(incoming(Frames(fed)).await, Trailers::Pass);
        sent.cut_by(&upload);
        let pools = pools();
        let response = pools.send(&upstream, &mut request("POST", sent), Lane::Short).await.unwrap();
        let mut body = ResponseBody::<EndHook>::streaming(response.into_body(), Trailers::Pass)
            .cut_by(register().joined(&upload), CutStyle::Status);
        drop(upload);
        let (mut received, answer) = handed_over.recv().await.unwrap();
        assert_eq!(received.frame().await.unwrap().unwrap().into_data().unwrap(), "first");
        if answer_is_over {
            drop(answer);
            assert!((&mut body).collect().await.unwrap().to_bytes().is_empty());
            assert_eq!(registry.len(), 1, "what is sent is registered still");
        }
        assert_eq!(registry.close_matching(|_| true, CutReason::Revoked), 1, "both are one");
        let end = received.frame().await;
        assert!(matches!(end, Some(Err(_))), "answer is over: {answer_is_over}: {end:?}");
        if !answer_is_over {
            let trailers = body.frame().await.unwrap().unwrap().into_trailers().unwrap();
            assert_eq!(trailers["grpc-status"], "16");
        }
        until(|| registry.is_empty()).await;
    }
}

/// With data in hand for which the upstream gave no window, the sender polled nothing more, and missed the cut.
#[tokio::test]
async fn what_a_client_sends_over_http2_ends_after_the_cut_though_its_upstream_takes_nothing() {
    let (upstream, mut handed_over) = http2_upstream(1).await;
    let (registry, clock) = streams::registry();
    let register = || registry.register(streams::watch("alice", Timestamp::MAX, clock.moment()));
    let pools = pools();
    let mut uploads = Vec::new();
    for answer_is_over in [false, true] {
        let upload = Arc::new(register());
        let (feed, fed): (Sending, _) = mpsc::unbounded_channel();
        feed.send(Ok(Frame::data(Bytes::from_static(b"first")))).unwrap();
        let received = Arc::<Received>::default();
        let mut sent = RequestBody::streaming(incoming(Frames(fed)).await, Trailers::Pass).noted(&received, false);
        sent.cut_by(&upload);
        let response = pools.send(&upstream, &mut request("POST", sent), Lane::Short).await.unwrap();
        let mut body = ResponseBody::<EndHook>::streaming(response.into_body(), Trailers::Pass)
            .cut_by(register().joined(&upload), CutStyle::Status);
        drop(upload);
        let (unread, answer) = handed_over.recv().await.unwrap();
        // The connection holds the first piece, of which it may send one byte; the second is in hand.
        until(|| received.bytes() == 5).await;
        feed.send(Ok(Frame::data(Bytes::from_static(b"second")))).unwrap();
        until(|| received.bytes() == 11).await;
        let answer = (!answer_is_over).then_some(answer);
        if answer_is_over {
            assert!((&mut body).collect().await.unwrap().to_bytes().is_empty());
        }
        uploads.push((unread, body, answer, feed));
    }
    assert_eq!(registry.close_matching(|_| true, CutReason::Revoked), 2);
    let trailers = uploads[0].1.frame().await.unwrap().unwrap().into_trailers().unwrap();
    assert_eq!(trailers["grpc-status"], "16");
    assert_eq!(registry.len(), 2, "what is sent cannot end by itself");
    until(|| {
        registry.abort_stuck();
        registry.is_empty()
    })
    .await;
    for (unread, ..) in uploads {
        let read = tokio::time::timeout(Duration::from_secs(10), unread.collect()).await.unwrap();
        assert!(read.is_err(), "it is reset, and not whole");
    }
}

#[tokio::test]
async fn the_hook_is_called_once_for_each_end() {
    const WHOLE: &str = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nwhole";
    const CHUNKED: &str = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nwhole\r\n0\r\n\r\n";
    for sent in [WHOLE, CHUNKED] {
        let (upstream, _closed) = upstream_that_sends(sent).await;
        let mut front = front(upstream, CutStyle::Abort).await;
        let _client = open(front.address, if sent == WHOLE { "whole" } else { "0\r\n\r\n" }).await;
        assert_eq!(front.ends.recv().await.unwrap(), BodyEnd { outcome: EndedBy::Complete, bytes: 5 });
        assert!(front.ends.try_recv().is_err());
    }

    let (upstream, mut closed) = upstream_that_sends(EVENT).await;
    let mut front_ = front(upstream, CutStyle::End(Events::LINES)).await;
    drop(open(front_.address, "{}\n\r\n").await);
    assert_eq!(front_.ends.recv().await.unwrap(), BodyEnd { outcome: EndedBy::ClientAborted, bytes: 3 });
    closed.recv().await.unwrap();
    assert!(front_.registry.is_empty());

    let (address, _) = scripted(|_, mut stream| async move {
        read_head(&mut stream).await;
        stream.write_all(EVENT.as_bytes()).await.unwrap();
    })
    .await;
    let mut front = front(super::upstream(address), CutStyle::End(Events::LINES)).await;
    let mut client = open(front.address, "{}\n\r\n").await;
    assert!(is_closed_silently(&mut client).await);
    assert_eq!(front.ends.recv().await.unwrap(), BodyEnd { outcome: EndedBy::UpstreamAborted, bytes: 3 });
}

#[tokio::test]
async fn doorwards_own_bodies_report_their_end_too() {
    let (ended, mut ends) = mpsc::unbounded_channel();
    let hook = || {
        let ended = ended.clone();
        Box::new(move |end| ended.send(end).unwrap()) as EndHook
    };
    ResponseBody::full("four").on_end(hook()).collect().await.unwrap();
    assert_eq!(ends.recv().await.unwrap(), BodyEnd { outcome: EndedBy::Complete, bytes: 4 });
    drop(ResponseBody::full("four").on_end(hook()));
    assert_eq!(ends.recv().await.unwrap(), BodyEnd { outcome: EndedBy::ClientAborted, bytes: 0 });
    drop(ResponseBody::empty().on_end(hook()));
    assert_eq!(ends.recv().await.unwrap(), BodyEnd { outcome: EndedBy::Complete, bytes: 0 });
    assert!(ends.try_recv().is_err());
}

#[tokio::test]
async fn a_watch_on_which_nothing_moves_is_ended_as_idle() {
    let (address, _) = scripted(|_, mut stream| async move {
        read_head(&mut stream).await;
        stream.write_all(EVENT.as_bytes()).await.unwrap();
        is_closed_silently(&mut stream).await;
    })
    .await;
    let limits = raw::Limits { upgrade_idle_timeout: Span::from_millis(300), ..Default::default() };
    let upstream = resolve(&raw_upstream(format!("http://{address}")), &limits, Path::new("/"));
    let mut front = front(upstream, CutStyle::End(Events::LINES)).await;
    let _client = open(front.address, "0\r\n\r\n").await;
    assert_eq!(front.ends.recv().await.unwrap().outcome, EndedBy::Cut(CutReason::Idle));
}

#[tokio::test]
async fn a_stream_registered_after_its_credential_ended_sends_nothing() {
    let (upstream, _closed) = upstream_that_sends(EVENT).await;
    let (registry, clock) = streams::registry();
    let handle = registry.register(streams::watch("alice", Timestamp::from_secs(1), clock.moment()));
    let response = pools().send(&upstream, &mut get(), Lane::Long).await.unwrap();
    let body = ResponseBody::<EndHook>::streaming(response.into_body(), Trailers::Drop).cut_by(handle, CutStyle::Abort);
    assert!(body.collect().await.is_err());
}
