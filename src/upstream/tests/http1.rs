use http::{HeaderValue, StatusCode, Version, header};
use hyper::body::Frame;
use tokio::sync::mpsc;

use super::*;
use crate::{
    body::{BodyError, Trailers},
    error::Rejection,
    upstream::UpstreamErrorKind,
};

fn error_kind(result: Result<String, UpstreamError>) -> UpstreamErrorKind {
    result.unwrap_err().kind()
}

#[tokio::test]
async fn a_request_carries_our_credential_the_upstreams_host_and_framing_of_our_own() {
    let (heads, mut seen) = mpsc::unbounded_channel();
    let (address, _) = scripted(move |_, mut stream| {
        let heads = heads.clone();
        async move {
            while let Some(head) = read_head(&mut stream).await {
                heads.send(head).unwrap();
                stream.write_all(OK).await.unwrap();
            }
        }
    })
    .await;
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("token"), "ours").unwrap();
    let mut entry = raw_upstream(format!("http://{address}"));
    entry.credential = Some(raw::UpstreamCredential::Bearer(crate::config::values::SecretSource::File("token".into())));
    let upstream = resolve(&entry, &raw::Limits::default(), dir.path());
    let mut request = request("POST", RequestBody::Empty);
    *request.uri_mut() = "http://elsewhere/path?query".parse().unwrap();
    for (name, value) in [
        (header::AUTHORIZATION, "Bearer theirs"),
        (header::TRANSFER_ENCODING, "chunked"),
        (header::CONTENT_LENGTH, "100"),
        (header::EXPECT, "100-continue"),
        (header::TE, "trailers"),
    ] {
        request.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    fetch(&pools(), &upstream, request).await.unwrap();
    let head = seen.recv().await.unwrap();
    let mut lines: Vec<_> = head.trim_end().split("\r\n").map(str::to_owned).collect();
    lines.sort();
    assert_eq!(
        lines,
        [
            "POST /path?query HTTP/1.1".to_owned(),
            "authorization: Bearer ours".to_owned(),
            "content-length: 0".to_owned(),
            format!("host: {address}")
        ]
    );
}

#[tokio::test]
async fn attacks_z10_an_answer_before_the_end_of_the_request_ends_the_connection() {
    const LENGTH: usize = 8 << 20;
    for is_streaming in [false, true] {
        for is_early in [true, false] {
            let (address, accepted) = scripted(move |_, mut stream| async move {
                while read_head(&mut stream).await.is_some() {
                    if is_early {
                        stream.write_all(b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nok").await.unwrap();
                        std::future::pending::<()>().await;
                    }
                    let mut body = vec![0; LENGTH];
                    stream.read_exact(&mut body).await.unwrap();
                    stream.write_all(OK).await.unwrap();
                }
            })
            .await;
            let (pools, upstream) = (pools(), upstream(address));
            for _ in 0..2 {
                let bytes = Bytes::from(vec![1; LENGTH]);
                let body = if is_streaming {
                    RequestBody::streaming(incoming(Full::new(bytes)).await, Trailers::Drop)
                } else {
                    RequestBody::Buffered(bytes)
                };
                assert_eq!(fetch(&pools, &upstream, request("POST", body)).await.unwrap(), "ok");
            }
            let expected = if is_early { 2 } else { 1 };
            assert_eq!(accepted.load(Ordering::SeqCst), expected, "streaming {is_streaming}, early {is_early}");
        }
    }
}

#[tokio::test]
async fn attacks_z10_bytes_behind_a_response_never_reach_the_next_request() {
    const MORE: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil";
    for is_at_once in [true, false] {
        let (address, accepted) = scripted(move |number, mut stream| async move {
            while read_head(&mut stream).await.is_some() {
                let mut answer = OK.to_vec();
                if number == 0 && is_at_once {
                    answer.extend_from_slice(MORE);
                }
                stream.write_all(&answer).await.unwrap();
                if number == 0 && !is_at_once {
                    stream.write_all(MORE).await.unwrap();
                }
            }
        })
        .await;
        let metrics = Metrics::default();
        let (pools, upstream) = (Pools::new(metrics.clone(), Pings::NORMAL), upstream(address));
        assert_eq!(fetch(&pools, &upstream, get()).await.unwrap(), "ok");
        until(|| metrics.of(upstream.name()).open.get() == 0).await;
        for _ in 0..3 {
            assert_eq!(fetch(&pools, &upstream, get()).await.unwrap(), "ok");
        }
        assert_eq!(accepted.load(Ordering::SeqCst), 2, "at once {is_at_once}");
    }
}

#[tokio::test]
async fn attacks_z38_an_unrequested_101_is_refused_and_its_connection_closed() {
    for (status, is_fine) in
        [("101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade", false), ("200 OK", true)]
    {
        let (closed, mut was_closed) = mpsc::unbounded_channel();
        let (address, accepted) = scripted(move |_, mut stream| {
            let closed = closed.clone();
            async move {
                while read_head(&mut stream).await.is_some() {
                    stream
                        .write_all(format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n").as_bytes())
                        .await
                        .unwrap();
                }
                closed.send(()).unwrap();
            }
        })
        .await;
        let (pools, upstream) = (pools(), upstream(address));
        for _ in 0..2 {
            let result = fetch(&pools, &upstream, get()).await;
            if is_fine {
                result.unwrap();
            } else {
                let error = result.unwrap_err();
                assert_eq!(error.kind(), UpstreamErrorKind::Protocol);
                assert_eq!(Rejection::from(error).status(), StatusCode::BAD_GATEWAY);
                was_closed.recv().await.unwrap();
            }
        }
        assert_eq!(accepted.load(Ordering::SeqCst), if is_fine { 1 } else { 2 });
    }
}

/// gRPC servers begin with HTTP/2 settings, whatever the request.
#[tokio::test]
async fn the_fix_for_a_peer_with_http2_alone_names_the_setting() {
    let (address, _) = scripted(|_, mut stream| async move {
        read_head(&mut stream).await;
        let settings = [0_u8, 0, 6, 4, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 100];
        stream.write_all(&settings).await.unwrap();
        read_head(&mut stream).await;
    })
    .await;
    let error = fetch(&pools(), &upstream(address), get()).await.unwrap_err();
    assert_eq!(error.kind(), UpstreamErrorKind::NotHttp1);
    assert!(Rejection::from(error).fix_text().unwrap().contains("`protocol: http2`"));
}

#[tokio::test]
async fn informational_responses_are_skipped() {
    let (address, _) = scripted(|_, mut stream| async move {
        read_head(&mut stream).await;
        stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n").await.unwrap();
        stream.write_all(OK).await.unwrap();
    })
    .await;
    assert_eq!(fetch(&pools(), &upstream(address), get()).await.unwrap(), "ok");
}

/// The first connection answers once and is closed when the second request arrives.
async fn stale_after_one() -> (SocketAddr, Arc<AtomicUsize>) {
    scripted(|number, mut stream| async move {
        read_head(&mut stream).await;
        stream.write_all(OK).await.unwrap();
        if number == 0 {
            read_head(&mut stream).await;
        } else {
            answer_all(number, stream).await;
        }
    })
    .await
}

#[tokio::test]
async fn a_stale_connection_costs_an_idempotent_request_one_retry_and_no_other_any() {
    for (method, body, is_sent_again) in [
        ("GET", RequestBody::Empty, true),
        ("PUT", RequestBody::Buffered(Bytes::from_static(b"x")), true),
        ("DELETE", RequestBody::Empty, true),
        ("POST", RequestBody::Empty, false),
        ("PATCH", RequestBody::Buffered(Bytes::from_static(b"x")), false),
    ] {
        let (address, accepted) = stale_after_one().await;
        let (pools, upstream) = (pools(), upstream(address));
        fetch(&pools, &upstream, get()).await.unwrap();
        let result = fetch(&pools, &upstream, request(method, body)).await;
        if is_sent_again {
            assert_eq!(result.unwrap(), "ok", "{method}");
        } else {
            assert_eq!(error_kind(result), UpstreamErrorKind::Closed, "{method}");
        }
        assert_eq!(accepted.load(Ordering::SeqCst), if is_sent_again { 2 } else { 1 }, "{method}");
    }
}

#[tokio::test]
async fn a_streamed_body_is_never_sent_twice() {
    let (address, accepted) = stale_after_one().await;
    let (pools, upstream) = (pools(), upstream(address));
    fetch(&pools, &upstream, get()).await.unwrap();
    let body = RequestBody::streaming(incoming(Full::from("x")).await, Trailers::Drop);
    assert_eq!(error_kind(fetch(&pools, &upstream, request("PUT", body)).await), UpstreamErrorKind::Closed);
    assert_eq!(accepted.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_retry_is_made_once() {
    let (address, accepted) = scripted(|number, mut stream| async move {
        read_head(&mut stream).await;
        if number == 0 {
            stream.write_all(OK).await.unwrap();
            read_head(&mut stream).await;
        }
    })
    .await;
    let (pools, upstream) = (pools(), upstream(address));
    fetch(&pools, &upstream, get()).await.unwrap();
    assert_eq!(error_kind(fetch(&pools, &upstream, get()).await), UpstreamErrorKind::Closed);
    assert_eq!(accepted.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn an_upstream_that_is_not_there_is_a_502() {
    let address = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let metrics = Metrics::default();
    let pools = Pools::new(metrics.clone(), Pings::NORMAL);
    let upstream = upstream(address);
    let error = fetch(&pools, &upstream, get()).await.unwrap_err();
    assert_eq!(error.kind(), UpstreamErrorKind::Unreachable);
    assert!(error.is_retryable());
    let rejection = Rejection::from(error);
    assert_eq!(rejection.status(), StatusCode::BAD_GATEWAY);
    assert!(!rejection.detail().contains("127.0.0.1"));
    let counters = metrics.of(upstream.name());
    assert_eq!((counters.connect_failures.get(), counters.retries.get(), counters.open.get()), (2, 1, 0));
}

#[tokio::test]
async fn a_peer_that_takes_no_tls_handshake_is_a_connect_timeout() {
    let (address, _) = scripted(|_, mut stream| async move {
        is_closed_silently(&mut stream).await;
    })
    .await;
    let upstream = upstream_with(address, |entry| {
        entry.url = Some(format!("https://{address}"));
        entry.connect_timeout = Span::from_millis(200);
    });
    let error = fetch(&pools(), &upstream, get()).await.unwrap_err();
    assert_eq!(error.kind(), UpstreamErrorKind::ConnectTimeout);
    assert_eq!(Rejection::from(error).status(), StatusCode::GATEWAY_TIMEOUT);
}

#[tokio::test]
async fn a_missing_answer_becomes_504_and_its_connection_is_closed() {
    let (closed, mut was_closed) = mpsc::unbounded_channel();
    let (address, accepted) = scripted(move |_, mut stream| {
        let closed = closed.clone();
        async move {
            read_head(&mut stream).await;
            closed.send(is_closed_silently(&mut stream).await).unwrap();
        }
    })
    .await;
    let upstream = upstream_with(address, |entry| entry.response_timeout = Span::from_millis(300));
    let error = fetch(&pools(), &upstream, get()).await.unwrap_err();
    assert_eq!(error.kind(), UpstreamErrorKind::ResponseTimeout);
    assert_eq!(Rejection::from(error).status(), StatusCode::GATEWAY_TIMEOUT);
    assert!(was_closed.recv().await.unwrap());
    assert_eq!(accepted.load(Ordering::SeqCst), 1, "a request that was sent is not sent again");
}

#[tokio::test]
async fn an_answer_within_its_time_is_not_cut_by_the_next_tick() {
    let (address, _) = scripted(|_, mut stream| async move {
        while read_head(&mut stream).await.is_some() {
            tokio::time::sleep(Duration::from_millis(250)).await;
            stream.write_all(OK).await.unwrap();
        }
    })
    .await;
    let upstream = upstream_with(address, |entry| entry.response_timeout = Span::from_millis(600));
    let pools = pools();
    for _ in 0..3 {
        assert_eq!(fetch(&pools, &upstream, get()).await.unwrap(), "ok");
    }
}

#[tokio::test]
async fn a_body_that_stalls_breaks_off() {
    let (address, _) = scripted(|_, mut stream| async move {
        read_head(&mut stream).await;
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf").await.unwrap();
        is_closed_silently(&mut stream).await;
    })
    .await;
    let limits = raw::Limits { stream_idle_timeout: Span::from_millis(300), ..Default::default() };
    let upstream = resolve(&raw_upstream(format!("http://{address}")), &limits, Path::new("/"));
    let response = pools().send(&upstream, &mut get(), Lane::Short).await.unwrap();
    let error = response.into_body().collect().await.unwrap_err();
    assert!(matches!(error, BodyError::Idle), "{error:?}");
}

/// An agent listens for hours to a server that has nothing to send.
#[tokio::test]
async fn a_stream_of_events_may_be_silent_as_long_as_a_watch() {
    for (media, is_cut) in
        [("text/event-stream", false), ("text/event-stream; charset=utf-8", false), ("text/plain", true)]
    {
        let (address, _) = scripted(move |_, mut stream| async move {
            read_head(&mut stream).await;
            let head = format!("HTTP/1.1 200 OK\r\nContent-Type: {media}\r\nContent-Length: 2\r\n\r\no");
            stream.write_all(head.as_bytes()).await.unwrap();
            tokio::time::sleep(Duration::from_millis(900)).await;
            // Fails if the stream was cut.
            let _ = stream.write_all(b"k").await;
        })
        .await;
        let limits = raw::Limits { stream_idle_timeout: Span::from_millis(300), ..Default::default() };
        let upstream = resolve(&raw_upstream(format!("http://{address}")), &limits, Path::new("/"));
        let response = pools().send(&upstream, &mut get(), Lane::Short).await.unwrap();
        let whole = response.into_body().collect().await;
        assert_eq!(whole.is_err(), is_cut, "{media}: {whole:?}");
    }
}

#[tokio::test]
async fn a_client_that_stalls_or_disconnects_is_named_as_the_cause() {
    let (address, _) = scripted(|_, mut stream| async move {
        is_closed_silently(&mut stream).await;
    })
    .await;
    let limits = raw::Limits { stream_idle_timeout: Span::from_millis(300), ..Default::default() };
    let upstream = resolve(&raw_upstream(format!("http://{address}")), &limits, Path::new("/"));

    let (frames, body) = mpsc::unbounded_channel::<Result<Frame<Bytes>, std::io::Error>>();
    frames.send(Ok(Frame::data(Bytes::from_static(b"begin")))).unwrap();
    let stalled = RequestBody::streaming(incoming(Frames(body)).await, Trailers::Drop);
    let error = fetch(&pools(), &upstream, request("POST", stalled)).await.unwrap_err();
    assert_eq!(Rejection::from(error).status(), StatusCode::REQUEST_TIMEOUT);
    drop(frames);

    let (frames, body) = mpsc::unbounded_channel::<Result<Frame<Bytes>, std::io::Error>>();
    frames.send(Ok(Frame::data(Bytes::from_static(b"begin")))).unwrap();
    let broken = RequestBody::streaming(incoming(Frames(body)).await, Trailers::Drop);
    frames.send(Err(std::io::Error::other("gone"))).unwrap();
    let error = fetch(&pools(), &upstream, request("POST", broken)).await.unwrap_err();
    assert_eq!(Rejection::from(error).status(), StatusCode::BAD_REQUEST);
}

/// Without a length or chunks, a client takes a truncated response for a complete one.
#[tokio::test]
async fn an_http_1_0_answer_is_forwarded_as_http_1_1() {
    let (address, _) = scripted(|_, mut stream| async move {
        read_head(&mut stream).await;
        stream.write_all(b"HTTP/1.0 200 OK\r\n\r\nok").await.unwrap();
    })
    .await;
    let response = pools().send(&upstream(address), &mut get(), Lane::Short).await.unwrap();
    assert_eq!(response.version(), Version::HTTP_11);
    assert_eq!(text(response).await, "ok");
}

#[tokio::test]
async fn a_head_that_is_too_large_is_refused() {
    for (headers, length, is_fine) in [(1, 60 << 10, true), (1, 70 << 10, false), (255, 1, true), (256, 1, false)] {
        let (address, _) = scripted(move |_, mut stream| async move {
            read_head(&mut stream).await;
            let lines = format!("X: {}\r\n", "x".repeat(length)).repeat(headers);
            let head = format!("HTTP/1.1 200 OK\r\n{lines}Content-Length: 0\r\n\r\n");
            let _ = stream.write_all(head.as_bytes()).await;
        })
        .await;
        let result = fetch(&pools(), &upstream(address), get()).await;
        if is_fine {
            result.unwrap();
        } else {
            let error = result.unwrap_err();
            let says = error.to_string();
            assert!(says.ends_with("an answer whose head has more than 256 headers or 64 KiB"), "{says}");
            assert_eq!(error.kind(), UpstreamErrorKind::HeadTooLarge);
        }
    }
}

#[tokio::test]
async fn attacks_z37_trailers_of_a_chunked_request_are_never_sent_on() {
    let (bodies, mut seen) = mpsc::unbounded_channel();
    let (address, _) = scripted(move |_, mut stream| {
        let bodies = bodies.clone();
        async move {
            read_head(&mut stream).await;
            let mut body = Vec::new();
            while !body.ends_with(b"\r\n\r\n") {
                body.push(stream.read_u8().await.unwrap());
            }
            bodies.send(String::from_utf8(body).unwrap()).unwrap();
            stream.write_all(OK).await.unwrap();
        }
    })
    .await;
    let mut trailers = HeaderMap::new();
    trailers.insert("x-t", HeaderValue::from_static("system:masters"));
    for allowed in [Trailers::Drop, Trailers::Pass] {
        let frames =
            [Ok::<_, Infallible>(Frame::data(Bytes::from_static(b"body"))), Ok(Frame::trailers(trailers.clone()))];
        let (sender, receiver) = mpsc::unbounded_channel();
        frames.into_iter().for_each(|frame| sender.send(frame).unwrap());
        drop(sender);
        let body = RequestBody::streaming(incoming(Frames(receiver)).await, allowed);
        fetch(&pools(), &upstream(address), request("POST", body)).await.unwrap();
        assert_eq!(seen.recv().await.unwrap(), "4\r\nbody\r\n0\r\n\r\n");
    }
}

/// The body of a GET was left out, and the upstream answered the request without it.
#[tokio::test]
async fn a_body_of_unknown_length_is_sent_whatever_the_method_and_nothing_follows_one_that_servers_ignore() {
    for (method, connections) in [("POST", 1), ("GET", 2), ("HEAD", 2)] {
        let (requests, mut seen) = mpsc::unbounded_channel();
        let (address, accepted) = scripted(move |_, mut stream| {
            let requests = requests.clone();
            async move {
                while let Some(head) = read_head(&mut stream).await {
                    let mut body = Vec::new();
                    while !body.ends_with(b"0\r\n\r\n") {
                        let Ok(byte) = stream.read_u8().await else { break };
                        body.push(byte);
                    }
                    requests.send((head, String::from_utf8(body).unwrap())).unwrap();
                    stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await.unwrap();
                }
            }
        })
        .await;
        let (pools, upstream) = (pools(), upstream(address));
        for _ in 0..2 {
            let (sender, receiver) = mpsc::unbounded_channel();
            sender.send(Ok::<_, Infallible>(Frame::data(Bytes::from_static(b"query")))).unwrap();
            drop(sender);
            let body = RequestBody::streaming(incoming(Frames(receiver)).await, Trailers::Drop);
            fetch(&pools, &upstream, request(method, body)).await.unwrap();
            let (head, body) = seen.recv().await.unwrap();
            assert!(head.contains("transfer-encoding: chunked\r\n") && !head.contains("content-length"), "{head}");
            assert_eq!(head.contains("connection: close\r\n"), connections == 2, "{head}");
            assert_eq!(body, "5\r\nquery\r\n0\r\n\r\n", "{method}");
        }
        assert_eq!(accepted.load(Ordering::SeqCst), connections, "{method}");
    }
}
