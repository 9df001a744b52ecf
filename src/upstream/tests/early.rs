//! Responses that arrive before the end of an upload.

use futures_util::FutureExt as _;
use http::StatusCode;
use hyper::body::Frame;
use tokio::sync::mpsc;

use super::*;
use crate::{
    body::{BodyError, EndedBy, Received, ResponseBody, Trailers},
    error::Rejection,
    request::expect::Awaited,
    upstream::ExpectsContinue,
};

#[tokio::test]
async fn an_upload_that_ends_after_the_answer_began_leaves_the_answer_its_time() {
    let (address, _) = scripted(|_, mut stream| async move {
        read_head(&mut stream).await;
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\no").await.unwrap();
        let mut upload = Vec::new();
        while !upload.ends_with(b"0\r\n\r\n") {
            upload.push(stream.read_u8().await.unwrap());
        }
        tokio::time::sleep(Duration::from_secs(2)).await;
        stream.write_all(b"k").await.unwrap();
    })
    .await;
    let upstream = upstream_with(address, |entry| entry.response_timeout = Span::from_secs(1));
    let (frames, body) = mpsc::unbounded_channel::<Result<Frame<Bytes>, Infallible>>();
    frames.send(Ok(Frame::data(Bytes::from_static(b"begin")))).unwrap();
    let body = RequestBody::streaming(incoming(Frames(body)).await, Trailers::Drop);
    let response = pools().send(&upstream, &mut request("POST", body), Lane::Short).await.unwrap();
    drop(frames);
    assert_eq!(text(response).await, "ok");
}

/// A typical Node server responds before it has read the request, and continues to read.
#[tokio::test]
async fn an_upload_that_is_answered_early_arrives_whole() {
    const BODIES: [&str; 3] = [
        "Content-Length: 0\r\n\r\n",
        "Content-Length: 2\r\n\r\nok",
        "Transfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    ];
    for body in BODIES {
        let (uploads, mut uploaded) = mpsc::unbounded_channel();
        let (address, accepted) = scripted(move |_, mut stream| {
            let uploads = uploads.clone();
            async move {
                while read_head(&mut stream).await.is_some() {
                    stream.write_all(format!("HTTP/1.1 202 Accepted\r\n{body}").as_bytes()).await.unwrap();
                    let mut upload = Vec::new();
                    while !upload.ends_with(b"0\r\n\r\n") {
                        assert_ne!(stream.read_buf(&mut upload).await.unwrap(), 0, "it is cut");
                    }
                    uploads.send(upload.len()).unwrap();
                }
            }
        })
        .await;
        let (pools, upstream) = (pools(), upstream(address));
        for _ in 0..2 {
            let (frames, source) = mpsc::unbounded_channel::<Result<Frame<Bytes>, Infallible>>();
            frames.send(Ok(Frame::data(Bytes::from_static(b"begin")))).unwrap();
            let upload = RequestBody::streaming(incoming(Frames(source)).await, Trailers::Drop);
            let mut answer = std::pin::pin!(fetch(&pools, &upstream, request("POST", upload)));
            tokio::time::timeout(Duration::from_millis(300), answer.as_mut())
                .await
                .expect_err("an end before its time");
            frames.send(Ok(Frame::data(Bytes::from(vec![b'x'; 1 << 20])))).unwrap();
            drop(frames);
            let expected = if body.contains("ok") { "ok" } else { "" };
            assert_eq!(answer.await.unwrap(), expected, "{body}");
            assert!(uploaded.recv().await.unwrap() > 1 << 20, "{body}");
        }
        assert_eq!(accepted.load(Ordering::SeqCst), 1, "{body}: the connection serves the next one");
    }
}

/// If the response has no content, the client sees only the error about its body, though the upstream may have done
/// what was asked. After a 408 it would retry without checking.
#[tokio::test]
async fn an_answer_abandoned_with_the_upload_is_reported() {
    let (address, _) = scripted(|_, mut stream| async move {
        read_head(&mut stream).await;
        stream.write_all(b"HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n").await.unwrap();
        std::future::pending::<()>().await;
    })
    .await;
    let limits = raw::Limits { stream_idle_timeout: Span::from_secs(1), ..Default::default() };
    let upstream = resolve(&raw_upstream(format!("http://{address}")), &limits, Path::new("/"));
    for (max, expected) in [(100, StatusCode::BAD_REQUEST), (10, StatusCode::PAYLOAD_TOO_LARGE)] {
        let (frames, source) = mpsc::unbounded_channel::<Result<Frame<Bytes>, Infallible>>();
        frames.send(Ok(Frame::data(Bytes::from_static(b"begin")))).unwrap();
        let upload = RequestBody::streaming(incoming(Frames(source)).await, Trailers::Drop).limited(max);
        let pools = pools();
        let mut answer = std::pin::pin!(fetch(&pools, &upstream, request("POST", upload)));
        tokio::time::timeout(Duration::from_millis(100), answer.as_mut()).await.expect_err("it waits for the upload");
        if max == 10 {
            frames.send(Ok(Frame::data(Bytes::from_static(b"too large")))).unwrap();
        }
        let rejection = Rejection::from(answer.await.unwrap_err());
        assert_eq!(rejection.status(), expected);
        assert_eq!(rejection.upstream_status(), Some(StatusCode::ACCEPTED), "{expected}");
        let fix = rejection.fix_text().unwrap();
        assert!(fix.contains("check first whether it did what was asked") && fix.contains("202"), "{fix}");
    }
}

#[tokio::test]
async fn an_answer_that_ends_with_an_upload_that_is_too_large_is_not_blamed_on_the_upstream() {
    let (address, _) = scripted(|_, mut stream| async move {
        read_head(&mut stream).await;
        stream.write_all(OK).await.unwrap();
        std::future::pending::<()>().await;
    })
    .await;
    let (frames, source) = mpsc::unbounded_channel::<Result<Frame<Bytes>, Infallible>>();
    let upload = RequestBody::streaming(incoming(Frames(source)).await, Trailers::Drop).limited(10);
    let mut request = request("POST", upload);
    let response = pools().send(&upstream(address), &mut request, Lane::Short).await.unwrap();
    let (ends, mut ended) = mpsc::unbounded_channel();
    let hook = move |end: BodyEnd| ends.send(end).unwrap();
    let mut body = ResponseBody::streaming(response.into_body(), Trailers::Drop).on_end(hook);
    tokio::time::timeout(Duration::from_millis(100), body.frame()).await.expect_err("it waits for the upload");
    frames.send(Ok(Frame::data(Bytes::from_static(b"more than ten")))).unwrap();
    assert!(matches!(body.frame().await, Some(Err(BodyError::TooLarge(10)))));
    assert_eq!(ended.recv().await.unwrap().outcome, EndedBy::ClientAborted);
}

/// As for a complete response: here the HTTP library ends it along with the upload.
#[tokio::test]
async fn a_response_aborted_by_an_upload_that_is_too_large_is_not_blamed_on_the_upstream() {
    let (half, _) = scripted(|_, mut stream| async move {
        read_head(&mut stream).await;
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nok").await.unwrap();
        std::future::pending::<()>().await;
    })
    .await;
    let (of_http2, _) = scripted(|_, stream| async move {
        let mut connection = h2::server::handshake(stream).await.unwrap();
        let mut answers = Vec::new();
        while let Some(Ok((request, mut respond))) = connection.accept().await {
            let mut answer = respond.send_response(Response::new(()), false).unwrap();
            answer.send_data(Bytes::from_static(b"ok"), false).unwrap();
            answers.push((request, answer));
        }
    })
    .await;
    let of_http2 = upstream_with(of_http2, |entry| entry.protocol = Some(raw::UpstreamProtocol::Http2));
    for upstream in [upstream(half), of_http2] {
        let (frames, source) = mpsc::unbounded_channel::<Result<Frame<Bytes>, Infallible>>();
        let upload = RequestBody::streaming(incoming(Frames(source)).await, Trailers::Drop).limited(10);
        let mut request = request("POST", upload);
        let response = pools().send(&upstream, &mut request, Lane::Short).await.unwrap();
        let (ends, mut ended) = mpsc::unbounded_channel();
        let hook = move |end: BodyEnd| ends.send(end).unwrap();
        let mut body = ResponseBody::streaming(response.into_body(), Trailers::Drop).on_end(hook);
        assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "ok");
        frames.send(Ok(Frame::data(Bytes::from_static(b"more than ten")))).unwrap();
        let cut = body.frame().await;
        assert!(matches!(cut, Some(Err(BodyError::TooLarge(10)))), "{cut:?}");
        assert_eq!(ended.recv().await.unwrap().outcome, EndedBy::ClientAborted);
    }
}

/// Once it has a response, the client need not send its body (RFC 9110 section 10.1.1).
#[tokio::test]
async fn an_answer_waits_for_no_body_of_a_client_that_waits_for_the_answer() {
    for body in ["Content-Length: 0\r\n\r\n", "Content-Length: 2\r\n\r\nok"] {
        let (address, _) = scripted(move |_, mut stream| async move {
            read_head(&mut stream).await;
            stream.write_all(format!("HTTP/1.1 202 Accepted\r\n{body}").as_bytes()).await.unwrap();
            std::future::pending::<()>().await;
        })
        .await;
        let (_frames, source) = mpsc::unbounded_channel::<Result<Frame<Bytes>, Infallible>>();
        let upload = RequestBody::streaming(incoming(Frames(source)).await, Trailers::Drop);
        let mut request = request("POST", upload);
        request.extensions_mut().insert(ExpectsContinue);
        let (pools, upstream) = (pools(), upstream(address));
        let expected = if body.contains("ok") { "ok" } else { "" };
        assert_eq!(fetch(&pools, &upstream, request).await.unwrap(), expected, "{body}");
    }
}

/// There is nothing more to wait for, although no data arrived.
#[tokio::test]
async fn an_empty_body_that_has_ended_is_not_awaited() {
    let received = Arc::new(Received::default());
    let (frames, source) = mpsc::unbounded_channel::<Result<Frame<Bytes>, Infallible>>();
    let mut body = RequestBody::streaming(incoming(Frames(source)).await, Trailers::Drop).noted(&received, false);
    assert!(body.frame().now_or_never().is_none());
    assert_eq!(received.awaited(), Awaited::Nothing);
    drop(frames);
    assert!(body.frame().await.is_none());
    assert_eq!(received.awaited(), Awaited::NotYet);
}

/// The rest of the upload is lost with the connection, whether or not the response waits.
#[tokio::test]
async fn an_upstream_that_stops_reading_an_upload_does_not_delay_its_answer() {
    for close in ["Connection: keep-alive, Close\r\n", ""] {
        for length in ["0\r\n\r\n", "2\r\n\r\nok"] {
            let (address, _) = scripted(move |_, mut stream| async move {
                read_head(&mut stream).await;
                let answer = format!("HTTP/1.1 202 Accepted\r\n{close}Content-Length: {length}");
                stream.write_all(answer.as_bytes()).await.unwrap();
                if !close.is_empty() {
                    std::future::pending::<()>().await;
                }
            })
            .await;
            let (frames, source) = mpsc::unbounded_channel::<Result<Frame<Bytes>, Infallible>>();
            frames.send(Ok(Frame::data(Bytes::from_static(b"begin")))).unwrap();
            let upload = RequestBody::streaming(incoming(Frames(source)).await, Trailers::Drop);
            let (pools, upstream) = (pools(), upstream(address));
            let answer = fetch(&pools, &upstream, request("POST", upload));
            let answer = tokio::time::timeout(Duration::from_secs(5), answer).await.expect("it ends");
            assert_eq!(answer.unwrap().len(), if length.starts_with('0') { 0 } else { 2 }, "{close}{length}");
            drop(frames);
        }
    }
}
