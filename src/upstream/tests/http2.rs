use std::sync::Mutex;

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Version, header};
use hyper::body::Frame;
use tokio::sync::{Notify, mpsc};

use super::*;
use crate::{
    body::{BodyError, Trailers},
    error::Rejection,
    upstream::{
        UpstreamErrorKind,
        buffered::{self, BufferLimits, ByteBudget, Share},
        is_of_messages,
    },
};

fn http2_upstream(address: SocketAddr) -> Arc<Upstream> {
    upstream_with(address, |entry| entry.protocol = Some(raw::UpstreamProtocol::Http2))
}

fn as_user(user: &str) -> Request<RequestBody> {
    let mut request = get();
    request.headers_mut().insert("impersonate-user", HeaderValue::from_str(user).unwrap());
    request
}

#[tokio::test]
async fn kubernetes_r3_identities_belong_to_requests_not_to_connections() {
    for protocol in [raw::UpstreamProtocol::Http1, raw::UpstreamProtocol::Http2] {
        let (address, accepted) = scripted(|_, stream| async move {
            let service = hyper::service::service_fn(|request: Request<Incoming>| async move {
                tokio::task::yield_now().await;
                Ok::<_, Infallible>(echo(request.headers()))
            });
            let _ = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new())
                .serve_connection(TokioIo::new(stream), service)
                .await;
        })
        .await;
        let (pools, upstream) = (pools(), upstream_with(address, |entry| entry.protocol = Some(protocol)));
        let users: Vec<_> = (0..60).map(|number| format!("user-{number}")).collect();
        let mut tasks = tokio::task::JoinSet::new();
        for user in users {
            let (pools, upstream) = (pools.clone(), Arc::clone(&upstream));
            tasks.spawn(async move {
                for _ in 0..3 {
                    assert_eq!(fetch(&pools, &upstream, as_user(&user)).await.unwrap(), user);
                }
            });
        }
        tasks.join_all().await;
        assert_eq!(fetch(&pools, &upstream, get()).await.unwrap(), "");
        if protocol == raw::UpstreamProtocol::Http2 {
            assert_eq!(accepted.load(Ordering::SeqCst), 1, "a burst shares one connection");
        }
    }
}

#[tokio::test]
async fn the_host_travels_as_the_authority() {
    let (address, _) = scripted(|_, stream| {
        serve_http2(stream, |request| async move {
            assert_eq!(request.version(), Version::HTTP_2);
            assert!(!request.headers().contains_key("host"));
            Response::new(Full::from(request.uri().to_string()))
        })
    })
    .await;
    let (pools, upstream) = (pools(), http2_upstream(address));
    assert_eq!(fetch(&pools, &upstream, get()).await.unwrap(), format!("http://{address}/path?query"));
    let mut named = get();
    named.headers_mut().insert("host", HeaderValue::from_static("tekton.example.com"));
    assert_eq!(fetch(&pools, &upstream, named).await.unwrap(), "http://tekton.example.com/path?query");
}

/// The client's acceptance of trailers is forwarded only on connections that support them.
#[tokio::test]
async fn te_is_forwarded_over_http2_alone() {
    let (heads, mut seen) = mpsc::unbounded_channel();
    let (address, _) = scripted(move |_, stream| {
        let heads = heads.clone();
        let service = hyper::service::service_fn(move |request: Request<Incoming>| {
            heads.send(request.headers().get(header::TE).cloned()).unwrap();
            async { Ok::<_, Infallible>(Response::new(Full::<Bytes>::from("ok"))) }
        });
        async move {
            let _ = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new())
                .serve_connection(TokioIo::new(stream), service)
                .await;
        }
    })
    .await;
    let trailers = HeaderValue::from_static("trailers");
    for (upstream, te, expected) in [
        (http2_upstream(address), Some(&trailers), Some(&trailers)),
        (http2_upstream(address), None, None),
        (upstream(address), Some(&trailers), None),
    ] {
        let mut request = get();
        request.headers_mut().extend(te.map(|te| (header::TE, te.clone())));
        fetch(&pools(), &upstream, request).await.unwrap();
        assert_eq!(seen.recv().await.unwrap().as_ref(), expected);
    }
}

#[tokio::test]
async fn another_connection_is_opened_at_the_peers_stream_limit() {
    let release = Arc::new(Notify::new());
    let gate = Arc::clone(&release);
    let started = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&started);
    let (address, accepted) = scripted(move |_, stream| {
        let (gate, count) = (Arc::clone(&gate), Arc::clone(&count));
        let service = hyper::service::service_fn(move |_: Request<Incoming>| {
            let (gate, count) = (Arc::clone(&gate), Arc::clone(&count));
            async move {
                let wait = gate.notified();
                count.fetch_add(1, Ordering::SeqCst);
                wait.await;
                Ok::<_, Infallible>(Response::new(Full::<Bytes>::from("ok")))
            }
        });
        async move {
            let _ = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                .max_concurrent_streams(2)
                .serve_connection(TokioIo::new(stream), service)
                .await;
        }
    })
    .await;
    let (pools, upstream) = (pools(), http2_upstream(address));
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..6 {
        let (pools, upstream) = (pools.clone(), Arc::clone(&upstream));
        tasks.spawn(async move { fetch(&pools, &upstream, get()).await.unwrap() });
    }
    until(|| started.load(Ordering::SeqCst) == 6).await;
    assert_eq!(accepted.load(Ordering::SeqCst), 3);
    release.notify_waiters();
    assert_eq!(tasks.join_all().await, ["ok"; 6]);
    // Streams that have ended make room.
    let again = tokio::spawn(async move { fetch(&pools, &upstream, get()).await.unwrap() });
    until(|| started.load(Ordering::SeqCst) == 7).await;
    release.notify_waiters();
    again.await.unwrap();
    assert_eq!(accepted.load(Ordering::SeqCst), 3);
}

#[tokio::test]
async fn a_goaway_of_the_peer_fails_no_request() {
    let goodbye = Arc::new(Notify::new());
    let say = Arc::clone(&goodbye);
    let ended = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&ended);
    let (address, accepted) = scripted(move |_, stream| {
        let (say, count) = (Arc::clone(&say), Arc::clone(&count));
        async move {
            let service = hyper::service::service_fn(|request: Request<Incoming>| async move {
                Ok::<_, Infallible>(echo(request.headers()))
            });
            let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            let mut connection = std::pin::pin!(builder.serve_connection(TokioIo::new(stream), service));
            tokio::select! {
                _ = connection.as_mut() => {}
                () = say.notified() => {
                    connection.as_mut().graceful_shutdown();
                    let _ = connection.await;
                }
            }
            count.fetch_add(1, Ordering::SeqCst);
        }
    })
    .await;
    let (pools, upstream) = (pools(), http2_upstream(address));
    // A method that must not be repeated, to show that nothing is lost on the way.
    let post = || {
        let mut request = as_user("alice");
        *request.method_mut() = http::Method::POST;
        request
    };
    for round in 1..4 {
        for _ in 0..3 {
            assert_eq!(fetch(&pools, &upstream, post()).await.unwrap(), "alice");
        }
        assert_eq!(accepted.load(Ordering::SeqCst), round);
        goodbye.notify_waiters();
        until(|| ended.load(Ordering::SeqCst) == round).await;
    }
    // Also at the very moment of the GOAWAY.
    fetch(&pools, &upstream, post()).await.unwrap();
    goodbye.notify_waiters();
    for _ in 0..20 {
        assert_eq!(fetch(&pools, &upstream, post()).await.unwrap(), "alice");
    }
}

/// An HTTP/2 server that resets the first stream with `reason` and answers the others.
async fn resetting(reason: h2::Reason) -> (SocketAddr, Arc<AtomicUsize>) {
    let hits = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&hits);
    let (address, _) = scripted(move |_, stream| {
        let count = Arc::clone(&count);
        async move {
            let mut connection = h2::server::handshake(stream).await.unwrap();
            while let Some(Ok((_, mut respond))) = connection.accept().await {
                if count.fetch_add(1, Ordering::SeqCst) == 0 {
                    respond.send_reset(reason);
                } else {
                    respond.send_response(Response::new(()), true).unwrap();
                }
            }
        }
    })
    .await;
    (address, hits)
}

#[tokio::test]
async fn a_request_that_the_peer_ignored_is_sent_again_whatever_its_method() {
    for (reason, method, is_sent_again) in [
        (h2::Reason::REFUSED_STREAM, "POST", true),
        (h2::Reason::REFUSED_STREAM, "GET", true),
        (h2::Reason::INTERNAL_ERROR, "POST", false),
    ] {
        let (address, hits) = resetting(reason).await;
        let body = RequestBody::Buffered(Bytes::from_static(b"{}"));
        let result = fetch(&pools(), &http2_upstream(address), request(method, body)).await;
        assert_eq!(result.is_ok(), is_sent_again, "{reason:?} {method}");
        assert_eq!(hits.load(Ordering::SeqCst), if is_sent_again { 2 } else { 1 }, "{reason:?} {method}");
    }
}

/// A streamed body is not stored, so that only the client can send it again.
#[tokio::test]
async fn a_streamed_body_that_the_peer_ignored_is_reported_as_not_processed() {
    for (reason, kind, status) in [
        (h2::Reason::REFUSED_STREAM, UpstreamErrorKind::NotTaken, StatusCode::SERVICE_UNAVAILABLE),
        (h2::Reason::INTERNAL_ERROR, UpstreamErrorKind::Closed, StatusCode::BAD_GATEWAY),
    ] {
        let (address, hits) = resetting(reason).await;
        let body = RequestBody::streaming(incoming(Full::from("x")).await, Trailers::Drop);
        let error = fetch(&pools(), &http2_upstream(address), request("POST", body)).await.unwrap_err();
        assert_eq!(error.kind(), kind);
        let rejection = Rejection::from(error);
        let says_so = rejection.fix_text().unwrap().starts_with("nothing was done");
        assert_eq!((rejection.status(), says_so), (status, kind == UpstreamErrorKind::NotTaken));
        assert_eq!(hits.load(Ordering::SeqCst), 1);
    }
}

/// RFC 9113 section 8.1: this tells the client that the server has responded completely and needs no more of the
/// request.
#[tokio::test]
async fn an_answer_that_no_error_cuts_is_not_whole() {
    for is_whole in [true, false] {
        let (address, _) = scripted(move |_, stream| async move {
            let mut connection = h2::server::handshake(stream).await.unwrap();
            while let Some(Ok((_, mut respond))) = connection.accept().await {
                let mut body = respond.send_response(Response::new(()), false).unwrap();
                tokio::spawn(async move {
                    body.send_data(Bytes::from_static(b"part"), is_whole).unwrap();
                    // By now the frame is sent; a reset would discard it otherwise.
                    tokio::time::sleep(Duration::from_millis(200)).await;
                    body.send_reset(h2::Reason::NO_ERROR);
                });
            }
        })
        .await;
        // The client has more to send, or there would be nothing to reset.
        let (frames, body) = mpsc::unbounded_channel::<Result<Frame<Bytes>, Infallible>>();
        frames.send(Ok(Frame::data(Bytes::from_static(b"begin")))).unwrap();
        let body = RequestBody::streaming(incoming(Frames(body)).await, Trailers::Drop);
        let (pools, upstream) = (pools(), http2_upstream(address));
        let response = pools.send(&upstream, &mut request("POST", body), Lane::Short).await.unwrap();
        // The rest is read after the reset.
        tokio::time::sleep(Duration::from_millis(400)).await;
        let whole = response.into_body().collect().await;
        match whole {
            Ok(body) => assert!(is_whole && body.to_bytes() == "part"),
            Err(error) => assert!(!is_whole && matches!(error, BodyError::Unfinished), "{error:?}"),
        }
    }
}

/// A request may be what ends a new connection; a retry would do it again.
#[tokio::test]
async fn a_request_is_sent_again_after_a_connection_closed_only_if_that_was_there_before() {
    for (served_before, is_sent_again) in [(0, false), (1, true)] {
        let hits = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&hits);
        let (address, accepted) = scripted(move |number, stream| {
            let count = Arc::clone(&count);
            async move {
                let mut connection = h2::server::handshake(stream).await.unwrap();
                let mut served = 0;
                while let Some(Ok((_, mut respond))) = connection.accept().await {
                    count.fetch_add(1, Ordering::SeqCst);
                    // The first connection is closed silently during the request.
                    if number == 0 && served == served_before {
                        return;
                    }
                    served += 1;
                    respond.send_response(Response::new(()), true).unwrap();
                }
            }
        })
        .await;
        let (pools, upstream) = (pools(), http2_upstream(address));
        for _ in 0..served_before {
            fetch(&pools, &upstream, get()).await.unwrap();
        }
        assert_eq!(fetch(&pools, &upstream, get()).await.is_ok(), is_sent_again, "{served_before}");
        let expected = if is_sent_again { (3, 2) } else { (1, 1) };
        assert_eq!((hits.load(Ordering::SeqCst), accepted.load(Ordering::SeqCst)), expected, "{served_before}");
    }
}

#[tokio::test]
async fn a_client_that_breaks_off_ends_its_own_stream_alone() {
    let (address, accepted) = scripted(|_, stream| {
        serve_http2(stream, |request| async move {
            let whole = request.into_body().collect().await.is_ok();
            Response::new(Full::from(if whole { "whole" } else { "broken" }))
        })
    })
    .await;
    let (pools, upstream) = (pools(), http2_upstream(address));
    assert_eq!(fetch(&pools, &upstream, get()).await.unwrap(), "whole");
    for _ in 0..5 {
        let (frames, body) = mpsc::unbounded_channel::<Result<Frame<Bytes>, std::io::Error>>();
        frames.send(Ok(Frame::data(Bytes::from_static(b"begin")))).unwrap();
        let broken = RequestBody::streaming(incoming(Frames(body)).await, Trailers::Drop);
        frames.send(Err(std::io::Error::other("gone"))).unwrap();
        let error = fetch(&pools, &upstream, request("POST", broken)).await.unwrap_err();
        assert_eq!(error.kind(), UpstreamErrorKind::RequestBody);
    }
    assert_eq!(fetch(&pools, &upstream, get()).await.unwrap(), "whole");
    assert_eq!(accepted.load(Ordering::SeqCst), 1);
}

/// Over HTTP/2, the error said that the upstream had closed the connection, and for a buffered body that the client had
/// aborted.
#[tokio::test]
async fn a_body_beyond_what_its_route_takes_is_too_large_however_it_travels() {
    let large = async || {
        let (frames, body) = mpsc::unbounded_channel::<Result<Frame<Bytes>, Infallible>>();
        frames.send(Ok(Frame::data(Bytes::from_static(b"begin")))).unwrap();
        frames.send(Ok(Frame::data(Bytes::from_static(b"and more")))).unwrap();
        RequestBody::streaming(incoming(Frames(body)).await, Trailers::Drop).limited(8)
    };
    for protocol in [raw::UpstreamProtocol::Http1, raw::UpstreamProtocol::Http2] {
        let (address, _) = scripted(|_, stream| async move {
            let service = hyper::service::service_fn(|request: Request<Incoming>| async {
                let whole = request.into_body().collect().await.is_ok();
                Ok::<_, Infallible>(Response::new(Full::<Bytes>::from(if whole { "whole" } else { "broken" })))
            });
            let _ = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new())
                .serve_connection(TokioIo::new(stream), service)
                .await;
        })
        .await;
        let (pools, upstream) = (pools(), upstream_with(address, |entry| entry.protocol = Some(protocol)));
        let error = fetch(&pools, &upstream, request("POST", large().await)).await.unwrap_err();
        assert_eq!(error.kind(), UpstreamErrorKind::RequestBodyTooLarge(8), "{protocol:?}");
        assert_eq!(fetch(&pools, &upstream, get()).await.unwrap(), "whole", "{protocol:?}: the next one");
    }
    // The limit that is reached first is reported.
    for (buffered, least) in [(1000, 8), (4, 4)] {
        let limits = BufferLimits::new(&raw::Limits::default(), buffered);
        let refused = buffered::read(large().await, limits, &ByteBudget::new(1 << 20), Share::Known).await.unwrap_err();
        assert_eq!(refused.status(), StatusCode::PAYLOAD_TOO_LARGE);
        assert_eq!(refused.detail(), format!("the body is larger than {least} bytes"));
    }
}

#[tokio::test]
async fn a_peer_that_does_not_speak_http2_is_an_error() {
    let (address, _) = scripted(|_, mut stream| async move {
        let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n").await;
    })
    .await;
    let error = fetch(&pools(), &http2_upstream(address), get()).await.unwrap_err();
    assert_eq!(error.kind(), UpstreamErrorKind::Protocol);
}

#[tokio::test]
async fn a_stream_without_an_answer_ends_alone() {
    let (address, accepted) = scripted(|_, stream| {
        serve_http2(stream, |request| async move {
            if request.headers().contains_key("impersonate-user") {
                std::future::pending::<()>().await;
            }
            Response::new(Full::from("ok"))
        })
    })
    .await;
    let upstream = upstream_with(address, |entry| {
        entry.protocol = Some(raw::UpstreamProtocol::Http2);
        entry.response_timeout = Span::from_millis(300);
    });
    let pools = pools();
    let (stalled, answered) = tokio::join!(fetch(&pools, &upstream, as_user("alice")), fetch(&pools, &upstream, get()));
    assert_eq!(stalled.unwrap_err().kind(), UpstreamErrorKind::ResponseTimeout);
    assert_eq!(answered.unwrap(), "ok");
    assert_eq!(fetch(&pools, &upstream, get()).await.unwrap(), "ok");
    assert_eq!(accepted.load(Ordering::SeqCst), 1);
}

/// A frame of RFC 9113 section 4.1.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// They ended the connection with all its streams, although its window had room. The frames are written by hand because
/// a library would interleave the streams: here all small ones arrive before the second response.
#[tokio::test]
async fn small_frames_of_an_unread_answer_end_no_neighbouring_stream() {
    const DATA: u8 = 0;
    const HEADERS: u8 = 1;
    const SETTINGS: u8 = 4;
    const END_STREAM: u8 = 1;
    const END_HEADERS: u8 = 4;
    // The indexed `:status: 200`.
    const OK: &[u8] = &[0x88];
    const PIECES: usize = 40_000;
    let (address, accepted) = scripted(|_, mut stream| async move {
        let _preface = stream.read_exact(&mut [0; 24]).await;
        let _ = stream.write_all(&frame(SETTINGS, 0, 0, &[])).await;
        let mut head = [0; 9];
        while stream.read_exact(&mut head).await.is_ok() {
            let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
            let _ = stream.read_exact(&mut payload).await;
            if head[3] != HEADERS {
                continue;
            }
            let id = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
            let mut answer = frame(HEADERS, END_HEADERS, id, OK);
            if id == 1 {
                answer.extend(frame(DATA, 0, id, b"x").repeat(PIECES));
            }
            answer.extend(frame(DATA, END_STREAM, id, b"ok"));
            let _ = stream.write_all(&answer).await;
        }
    })
    .await;
    let (pools, upstream) = (pools(), http2_upstream(address));
    let unread = pools.send(&upstream, &mut get(), Lane::Short).await.unwrap();
    assert_eq!(fetch(&pools, &upstream, get()).await.unwrap(), "ok");
    assert_eq!(text(unread).await.len(), PIECES + 2);
    assert_eq!(accepted.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn attacks_z37_trailers_pass_only_where_they_are_allowed() {
    let seen = Arc::new(Mutex::new(None));
    let record = Arc::clone(&seen);
    let (address, _) = scripted(move |_, stream| {
        let record = Arc::clone(&record);
        serve_http2(stream, move |request| {
            let record = Arc::clone(&record);
            async move {
                let collected = request.into_body().collect().await.unwrap();
                *record.lock().unwrap() = Some(collected.trailers().cloned());
                Response::new(Full::from("ok"))
            }
        })
    })
    .await;
    let plain = HeaderMap::from_iter([(HeaderName::from_static("x-t"), HeaderValue::from_static("system:masters"))]);
    let forged = |name: &&'static str| (HeaderName::from_static(name), HeaderValue::from_static("system:masters"));
    let trailers = HeaderMap::from_iter(TRAILERS.iter().map(forged));
    for (allowed, expected) in [(Trailers::Drop, None), (Trailers::Pass, Some(plain))] {
        let (sender, receiver) = mpsc::unbounded_channel::<Result<_, Infallible>>();
        sender.send(Ok(Frame::data(Bytes::from_static(b"body")))).unwrap();
        sender.send(Ok(Frame::trailers(trailers.clone()))).unwrap();
        drop(sender);
        let body = RequestBody::streaming(incoming(Frames(receiver)).await, allowed);
        fetch(&pools(), &http2_upstream(address), request("POST", body)).await.unwrap();
        assert_eq!(seen.lock().unwrap().take().unwrap(), expected);
    }
}

#[test]
fn only_bodies_over_http2_may_count_as_messages() {
    for (kind, of_messages) in [
        ("application/grpc", true),
        ("application/grpc+proto", true),
        ("application/connect+json", true),
        ("application/json", false),
        ("", false),
    ] {
        let headers = HeaderMap::from_iter([(header::CONTENT_TYPE, HeaderValue::from_static(kind))]);
        assert_eq!(is_of_messages(&headers, true), of_messages, "{kind}");
        assert!(!is_of_messages(&headers, false), "{kind}");
    }
}

/// A call that streams messages to its server may be silent for longer than an upload.
#[tokio::test]
async fn messages_may_arrive_at_any_time_and_other_bodies_need_a_minimum_rate() {
    let (address, _) = scripted(|_, stream| {
        serve_http2(stream, |request| async move {
            let whole = request.into_body().collect().await.is_ok();
            Response::new(Full::from(if whole { "whole" } else { "broken" }))
        })
    })
    .await;
    let mut entry = raw_upstream(format!("http://{address}"));
    entry.protocol = Some(raw::UpstreamProtocol::Http2);
    let limits = raw::Limits {
        body_timeout: Span::from_millis(300),
        stream_idle_timeout: Span::from_secs(1),
        ..raw::Limits::default()
    };
    let (pools, upstream) = (pools(), resolve(&entry, &limits, Path::new("/")));
    for (kind, expected) in
        [("application/grpc", Ok("whole".to_owned())), ("text/plain", Err(StatusCode::REQUEST_TIMEOUT))]
    {
        let (frames, body) = mpsc::unbounded_channel::<Result<Frame<Bytes>, Infallible>>();
        frames.send(Ok(Frame::data(Bytes::from_static(b"begin")))).unwrap();
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_secs(2)).await;
            // Fails if the request has been given up by then.
            let _ = frames.send(Ok(Frame::data(Bytes::from_static(b"end"))));
        });
        let mut call = request("POST", RequestBody::streaming(incoming(Frames(body)).await, Trailers::Drop));
        call.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
        let outcome = fetch(&pools, &upstream, call).await.map_err(|error| Rejection::from(error).status());
        assert_eq!(outcome, expected, "{kind}");
    }
}

/// A peer that disappears silently sends no frame either, and its requests would wait until their time limits.
#[tokio::test(start_paused = true)]
async fn an_upstream_that_does_not_answer_to_a_ping_is_given_up() {
    const SETTINGS: &[u8] = &[0, 0, 0, 4, 0, 0, 0, 0, 0];
    let (address, _) = scripted(|_, mut stream| async move {
        stream.write_all(SETTINGS).await.unwrap();
        while matches!(stream.read(&mut [0; 4096]).await, Ok(1..)) {}
    })
    .await;
    let upstream = upstream_with(address, |entry| {
        entry.protocol = Some(raw::UpstreamProtocol::Http2);
        entry.response_timeout = Span::from_secs(3600);
    });
    let begun = tokio::time::Instant::now();
    assert!(fetch(&pools(), &upstream, get()).await.is_err());
    let waited = begun.elapsed().as_secs();
    assert!((20..120).contains(&waited), "{waited} s");
}
