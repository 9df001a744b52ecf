//! Sends an [`Outbound`] to its upstream and returns the response, with its headers cleaned for the client.

use std::{fmt, future::Future, pin::Pin, sync::Arc};

use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header};
use http_body::Body as _;

use super::{
    account_refusal,
    headers::{REQUEST_ID, clean_response, is_only_chunked, unite_lengths},
    outbound::Outbound,
    respond::is_grpc,
};
use crate::{
    authz::Permit,
    body::{CutStyle, Events, OnEnd, RequestBody, ResponseBody, Trailers},
    config::raw::RouteKind,
    error::{Reason, Rejection},
    sessions::cookie,
    streams::{CutReason, StreamHandle, StreamKind},
    upstream::{
        Lane, Lifetime, Pools, Upstream, UpstreamBody, is_event_stream, is_of_messages,
        upgrade::{SpliceEnd, UpgradeAnswer, UpgradeProtocol},
    },
};

/// An upload of up to this many bytes is over, at the minimum pace, before a lost permission could matter.
const SMALL_UPLOAD: u64 = 64 << 10;

/// The outcome of a forwarded request.
#[derive(Debug)]
pub enum Forwarded<E: OnEnd> {
    Response {
        response: Response<ResponseBody<E>>,
        /// Whether the body is a long-lived stream, whose start is recorded too.
        long: bool,
    },
    Upgraded(Upgraded),
}

/// A connection that has switched to another protocol.
pub struct Upgraded {
    response: Response<()>,
    splice: SpliceFuture,
}

type SpliceFuture = Pin<Box<dyn Future<Output = SpliceEnd> + Send>>;

impl Upgraded {
    /// The response head for the client, and the future that copies both ways once the head is written.
    pub fn into_parts(self) -> (Response<()>, SpliceFuture) {
        (self.response, self.splice)
    }
}

impl fmt::Debug for Upgraded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Upgraded").field("response", &self.response).finish_non_exhaustive()
    }
}

/// Forwards a request. `begin` registers a stream: one for a request body that may last, and one for a response that
/// may. `outbound` is borrowed because an owned argument would be stored again in the future of each calling function.
pub async fn forward<E: OnEnd>(
    pools: &Pools,
    outbound: &mut Outbound,
    begin: impl Fn(&Outbound, StreamKind) -> StreamHandle,
) -> Result<Forwarded<E>, Rejection> {
    let lane = match outbound.lifetime() {
        Lifetime::Upgrade(protocol) => return Box::pin(upgrade(pools, outbound, protocol, begin)).await,
        Lifetime::Short => Lane::Short,
        Lifetime::Long => Lane::Long,
    };
    let upload = may_last(outbound.request(), lane).then(|| Arc::new(begin(outbound, StreamKind::Upload)));
    let (request, permit) = outbound.parts_to_send();
    let upstream = &permit.route().upstream;
    let response = match &upload {
        Some(upload) => {
            request.body_mut().cut_by(upload);
            Box::pin(send_until_cut(pools, upstream, request, lane, upload)).await?
        }
        None => pools.send(upstream, request, lane).await?,
    };
    let route = outbound.permit().route();
    let response = accepted(response, outbound.permit())?;
    let long = lane == Lane::Long || is_event_stream(response.headers());
    let kind = if long {
        Some(outbound.permit().stream_kind())
    } else {
        is_unsized(response.body(), route.kind).then_some(StreamKind::Unsized)
    };
    let trailers = if route.kind == RouteKind::Http { Trailers::Pass } else { Trailers::Drop };
    let hears_status = trailers == Trailers::Pass && outbound.permit().meta().accepts_trailers;
    let style = match kind {
        Some(StreamKind::Watch) => CutStyle::End(Events::of(response.headers())),
        _ if hears_status && response.headers().get(header::CONTENT_TYPE).is_some_and(is_grpc) => CutStyle::Status,
        _ => CutStyle::Abort,
    };
    let mut response = passed(response, outbound, trailers).await?;
    clean(&mut response, outbound.permit());
    identify(response.headers_mut(), outbound);
    let response = response.map(|body| {
        // An upload may continue while the response is sent, and after it.
        match (kind.map(|kind| begin(outbound, kind)), upload) {
            (Some(answer), Some(upload)) => body.cut_by(answer.joined(&upload), style),
            (Some(answer), None) => body.cut_by(answer, style),
            (None, Some(upload)) => body.cut_by(upload, style),
            (None, None) => body,
        }
    });
    Ok(Forwarded::Response { response, long })
}

/// Whether the upload may last: its length is unknown or large, or its pace is not enforced.
fn may_last(request: &Request<RequestBody>, lane: Lane) -> bool {
    let body = request.body();
    body.is_streaming()
        && (lane == Lane::Long
            || body.size_hint().exact().is_none_or(|bytes| bytes > SMALL_UPLOAD)
            || is_of_messages(request.headers(), true))
}

/// Sends the request, and gives up when the upload is cut.
async fn send_until_cut(
    pools: &Pools,
    upstream: &Arc<Upstream>,
    request: &mut Request<RequestBody>,
    lane: Lane,
    upload: &StreamHandle,
) -> Result<Response<UpstreamBody>, Rejection> {
    tokio::select! {
        biased;
        reason = upload.cut() => Err(broken_off(reason)),
        response = pools.send(upstream, request, lane) => Ok(response?),
    }
}

/// The refusal of a request that lost its permission while its body was being sent.
fn broken_off(reason: CutReason) -> Rejection {
    let (reason, why) = match reason {
        CutReason::Expired => (Reason::TokenExpired, "its credential has expired"),
        // Not 401: clients would discard a good token and send everything again with another.
        CutReason::Overlong => (Reason::BodyTimeout, "it lasted longer than its route allows (`max_stream`)"),
        CutReason::SignedOut => (Reason::SessionExpired, "its session has ended"),
        CutReason::Replaced => (Reason::SessionExpired, "a later login has replaced its session"),
        CutReason::Revoked => (Reason::TokenRevoked, "its credential was revoked"),
        CutReason::PermissionLost => {
            (Reason::PolicyDenied, "the policy no longer allows it, or its route now has another upstream")
        }
        CutReason::Draining => (Reason::Draining, "Doorward is shutting down"),
        CutReason::Idle => (Reason::BodyTimeout, "no bytes arrived for too long"),
    };
    Rejection::new(reason, format!("the request was aborted while its body was being sent: {why}"))
        .fix("check what took effect before you send it again")
}

async fn upgrade<E: OnEnd>(
    pools: &Pools,
    outbound: &mut Outbound,
    protocol: UpgradeProtocol,
    begin: impl FnOnce(&Outbound, StreamKind) -> StreamHandle,
) -> Result<Forwarded<E>, Rejection> {
    let Some(client) = outbound.take_upgrade() else {
        return Err(Rejection::new(Reason::UpgradeRefused, "this connection cannot be upgraded"));
    };
    let (request, permit) = outbound.parts_to_send();
    let request = std::mem::take(request).map(drop);
    match pools.upgrade(&permit.route().upstream, request, protocol).await? {
        UpgradeAnswer::Switched(mut response, splice) => {
            // A browser accepts cookies from this response too. The other headers that `clean` sets are about content,
            // which it lacks.
            clean_response(response.headers_mut(), cookie::PREFIX);
            protocol.announce(response.headers_mut());
            identify(response.headers_mut(), outbound);
            let handle = begin(outbound, outbound.permit().stream_kind());
            let splice = Box::pin(splice.run(client, handle));
            Ok(Forwarded::Upgraded(Upgraded { response, splice }))
        }
        UpgradeAnswer::Refused(response) => {
            let response = accepted(response, outbound.permit())?;
            let mut response = passed(response, outbound, Trailers::Drop).await?;
            clean(&mut response, outbound.permit());
            identify(response.headers_mut(), outbound);
            // The connection ends with this response, so that no request can follow on it (CVE-2018-1002105).
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            Ok(Forwarded::Response { response, long: false })
        }
    }
}

/// The response with its body for the client, unless it is a refusal of Doorward's own account.
async fn passed<E: OnEnd>(
    response: Response<UpstreamBody>,
    outbound: &Outbound,
    trailers: Trailers,
) -> Result<Response<ResponseBody<E>>, Rejection> {
    if account_refusal::may_be_of_us(&response, outbound.permit()) {
        return Ok(Box::pin(account_refusal::of_the_caller(response, outbound.permit()))
            .await?
            .map(ResponseBody::full));
    }
    let network = outbound.permit().meta().client_network();
    Ok(response.map(|body| ResponseBody::streaming(body.read_by(network), trailers)))
}

/// A 401 for Doorward's own credential becomes an upstream error: clients would discard a good token because of it.
fn accepted(mut response: Response<UpstreamBody>, permit: &Permit) -> Result<Response<UpstreamBody>, Rejection> {
    let route = permit.route();
    check_framing(&mut response, route.upstream.name())?;
    if response.status() == StatusCode::UNAUTHORIZED && route.upstream.knows_us() {
        return Err(match permit.is_proxied() {
            // A 401 of a server behind the API server is not about that token.
            true => route.upstream.unauthorized(),
            false => route.upstream.credential_refused(),
        });
    }
    Ok(response)
}

/// Makes one of several equal lengths, removes that of a 204, and refuses a response whose body has no certain end or is
/// in a coding that nobody decodes. The upstream may have done what it was asked all the same.
fn check_framing<B>(response: &mut Response<B>, upstream: &str) -> Result<(), Rejection> {
    let (what, fix) = if !unite_lengths(response.headers_mut()) {
        ("several `Content-Length` that differ", "an operator should make it answer with one")
    } else if !is_only_chunked(response.headers()) {
        (
            "a `Transfer-Encoding` that is not `chunked`",
            "an operator should make it compress with `Content-Encoding` instead",
        )
    } else {
        // RFC 9110 section 8.6. Over HTTP/2, clients take it for a response that ended too early.
        if response.status() == StatusCode::NO_CONTENT {
            response.headers_mut().remove(header::CONTENT_LENGTH);
        }
        return Ok(());
    };
    Err(Rejection::new(Reason::UpstreamProtocol, format!("the upstream `{upstream}` answered with {what}"))
        .fix(format!("{fix}; if the request was to change something, check first whether it did"))
        .with_upstream_status(response.status()))
}

fn clean<B>(response: &mut Response<B>, permit: &Permit) {
    // A 304 has no content, and a cache would replace the type of its stored content by one that is set here.
    let is_unchanged = response.status() == StatusCode::NOT_MODIFIED;
    let headers = response.headers_mut();
    clean_response(headers, cookie::PREFIX);
    if !headers.contains_key(header::CACHE_CONTROL) {
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("private, no-store"));
    }
    if permit.is_of_kubernetes() {
        headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        // Logs contain what strangers wrote; a script in them would run in the origin of this host.
        let kind = only_type(headers).map(HeaderValue::as_bytes).unwrap_or_default();
        let is_data =
            [&b"application/json"[..], b"application/vnd.kubernetes.", b"application/yaml", b"application/apply-patch"]
                .iter()
                .any(|prefix| kind.starts_with(prefix));
        let is_for_programs = kind.starts_with(b"application/");
        if !is_data && !is_unchanged {
            headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static("sandbox; default-src 'none'"));
            if !is_for_programs {
                headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
            }
        }
    }
}

/// The content type, if there is exactly one: given several, on one line or more, a browser uses the last.
fn only_type(headers: &HeaderMap) -> Option<&HeaderValue> {
    let mut lines = headers.get_all(header::CONTENT_TYPE).iter();
    let only = lines.next().filter(|line| !line.as_bytes().contains(&b','))?;
    lines.next().is_none().then_some(only)
}

fn identify(headers: &mut HeaderMap, outbound: &Outbound) {
    headers.insert(REQUEST_ID, outbound.permit().meta().id_line.clone());
}

/// Whether a body has no length, so that the upstream may continue it indefinitely. For the API server, the request
/// already tells which responses last.
fn is_unsized(body: &UpstreamBody, kind: RouteKind) -> bool {
    matches!(kind, RouteKind::Http | RouteKind::Dashboard)
        && !body.is_end_stream()
        && body.size_hint().exact().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The trail said that there was no answer to a request that had made something.
    #[test]
    fn a_response_refused_for_its_framing_is_recorded_with_its_status() {
        for (name, value) in [(header::CONTENT_LENGTH, "2, 3"), (header::TRANSFER_ENCODING, "gzip, chunked")] {
            let mut response = Response::builder().status(StatusCode::CREATED).header(&name, value).body(()).unwrap();
            let refused = check_framing(&mut response, "board").unwrap_err();
            assert_eq!(refused.reason(), Reason::UpstreamProtocol, "{name}");
            assert_eq!(refused.upstream_status(), Some(StatusCode::CREATED), "{name}");
            assert!(refused.fix_text().is_some_and(|fix| fix.contains("check first whether it did")), "{name}");
        }
        let mut response = Response::builder().header(header::CONTENT_LENGTH, "2, 2").body(()).unwrap();
        assert!(check_framing(&mut response, "board").is_ok());
        assert_eq!(response.headers()[header::CONTENT_LENGTH], "2");
    }

    /// curl, Node and all others with nghttp2 refused the response over HTTP/2.
    #[test]
    fn a_204_loses_its_length_and_a_304_keeps_that_of_what_it_stands_for() {
        for (status, kept) in
            [(StatusCode::NO_CONTENT, false), (StatusCode::NOT_MODIFIED, true), (StatusCode::OK, true)]
        {
            let mut response = Response::builder().status(status).header(header::CONTENT_LENGTH, "5").body(()).unwrap();
            check_framing(&mut response, "board").unwrap();
            assert_eq!(response.headers().contains_key(header::CONTENT_LENGTH), kept, "{status}");
        }
    }
}
