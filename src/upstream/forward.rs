//! Sends what may be sent and gives back what came, clean: the last step but the audit.

use std::{fmt, future::Future, pin::Pin, sync::Arc};

use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header};
use http_body::Body as _;

use super::{
    Lane, Pools, Upstream, UpstreamBody, is_event_stream, is_of_messages, refusal,
    streams::{CutReason, StreamHandle, StreamKind},
    upgrade::{SpliceEnd, UpgradeAnswer, UpgradeProtocol},
};
use crate::{
    authz::Permit,
    body::{CutStyle, Events, OnEnd, RequestBody, ResponseBody, Trailers},
    config::raw::RouteKind,
    error::{Reason, Rejection},
    request::{
        headers::{REQUEST_ID, clean_response},
        outbound::{Lifetime, Outbound},
        respond::is_grpc,
    },
    sessions::cookie,
};

/// Up to how many bytes an upload is over before it matters whether it still may go on, at the pace that is asked of it.
const SOON: u64 = 64 << 10;

/// What came of a request.
#[derive(Debug)]
pub enum Forwarded<E: OnEnd> {
    Response {
        response: Response<ResponseBody<E>>,
        /// The body is a stream whose beginning is recorded too.
        long: bool,
    },
    Upgraded(Upgraded),
}

/// A connection that speaks another protocol now.
pub struct Upgraded {
    response: Response<()>,
    splice: SpliceFuture,
}

type SpliceFuture = Pin<Box<dyn Future<Output = SpliceEnd> + Send>>;

impl Upgraded {
    /// The head for the client, and what copies once it is written.
    pub fn into_parts(self) -> (Response<()>, SpliceFuture) {
        (self.response, self.splice)
    }
}

impl fmt::Debug for Upgraded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Upgraded").field("response", &self.response).finish_non_exhaustive()
    }
}

/// Forwards. `begin` registers the request as a stream, if it is or may become one, and before that what the client sends, where that
/// may last. `outbound` is borrowed, as what an async function owns is moved and held once more at each level.
pub async fn forward<E: OnEnd>(
    pools: &Pools,
    outbound: &mut Outbound,
    begin: impl Fn(&Outbound, StreamKind) -> StreamHandle,
) -> Result<Forwarded<E>, Rejection> {
    let lane = match outbound.lifetime {
        Lifetime::Upgrade(protocol) => return Box::pin(upgrade(pools, outbound, protocol, begin)).await,
        Lifetime::Short => Lane::Short,
        Lifetime::Long => Lane::Long,
    };
    let upload = may_last(&outbound.request, lane).then(|| Arc::new(begin(outbound, StreamKind::Upload)));
    if let Some(upload) = &upload {
        outbound.request.body_mut().cut_by(upload);
    }
    let upstream = &outbound.permit.route().upstream;
    let response = match &upload {
        Some(upload) => Box::pin(send_until_cut(pools, upstream, &mut outbound.request, lane, upload)).await?,
        None => pools.send(upstream, &mut outbound.request, lane).await?,
    };
    let route = outbound.permit.route();
    let response = accepted(response, &outbound.permit)?;
    let long = lane == Lane::Long || is_event_stream(response.headers());
    let kind = if long {
        Some(outbound.permit.stream_kind())
    } else {
        is_unsized(response.body(), route.kind).then_some(StreamKind::Unsized)
    };
    let trailers = if route.kind == RouteKind::Http { Trailers::Pass } else { Trailers::Drop };
    let hears_status = trailers == Trailers::Pass && outbound.permit.meta().accepts_trailers;
    let style = match kind {
        Some(StreamKind::Watch) => CutStyle::End(Events::of(response.headers())),
        _ if hears_status && response.headers().get(header::CONTENT_TYPE).is_some_and(is_grpc) => CutStyle::Status,
        _ => CutStyle::Abort,
    };
    let mut response = passed(response, outbound, trailers).await?;
    clean(&mut response, &outbound.permit);
    identify(response.headers_mut(), outbound);
    let response = response.map(|body| {
        // An upload may go on beside its answer, and after it.
        match (kind.map(|kind| begin(outbound, kind)), upload) {
            (Some(answer), Some(upload)) => body.cut_by(answer.joined(&upload), style),
            (Some(answer), None) => body.cut_by(answer, style),
            (None, Some(upload)) => body.cut_by(upload, style),
            (None, None) => body,
        }
    });
    Ok(Forwarded::Response { response, long })
}

/// Whether what the client sends may go on for long: nobody says how much it is, or nobody asks how fast it comes.
fn may_last(request: &Request<RequestBody>, lane: Lane) -> bool {
    let body = request.body();
    body.is_streaming()
        && (lane == Lane::Long
            || body.size_hint().exact().is_none_or(|bytes| bytes > SOON)
            || is_of_messages(request.headers(), true))
}

/// Sends, for as long as the client may.
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

/// The refusal of a request that was allowed when it began and is not any more.
fn broken_off(reason: CutReason) -> Rejection {
    let (reason, why) = match reason {
        CutReason::Expired => (Reason::TokenExpired, "the time of its credential is over"),
        // Not 401, for which clients throw a good token away and send all of it again with another.
        CutReason::Overlong => (Reason::BodyTimeout, "the time that its route allows is over (`max_stream`)"),
        CutReason::SignedOut => (Reason::SessionExpired, "its session has ended"),
        CutReason::Revoked => (Reason::TokenRevoked, "its credential was revoked"),
        CutReason::PermissionLost => {
            (Reason::PolicyDenied, "the policy no longer allows it, or its route leads elsewhere by now")
        }
        CutReason::Draining => (Reason::Draining, "Doorward stops"),
        CutReason::Idle => (Reason::BodyTimeout, "nothing moved for too long"),
    };
    Rejection::new(reason, format!("the request was broken off while its body was being sent, as {why}"))
        .fix("look what was done of it before you send it again")
}

async fn upgrade<E: OnEnd>(
    pools: &Pools,
    outbound: &mut Outbound,
    protocol: UpgradeProtocol,
    begin: impl FnOnce(&Outbound, StreamKind) -> StreamHandle,
) -> Result<Forwarded<E>, Rejection> {
    let Some(client) = outbound.on_upgrade.take() else {
        return Err(Rejection::new(Reason::UpgradeRefused, "this connection cannot be upgraded"));
    };
    let request = std::mem::take(&mut outbound.request).map(drop);
    let route = outbound.permit.route();
    match pools.upgrade(&route.upstream, request, protocol).await? {
        UpgradeAnswer::Switched(mut response, splice) => {
            // A browser takes cookies from this answer too. What else other answers get is about content, which it has none of.
            clean_response(response.headers_mut(), cookie::PREFIX);
            protocol.announce(response.headers_mut());
            identify(response.headers_mut(), outbound);
            let handle = begin(outbound, outbound.permit.stream_kind());
            let splice = Box::pin(splice.run(client, handle));
            Ok(Forwarded::Upgraded(Upgraded { response, splice }))
        }
        UpgradeAnswer::Refused(response) => {
            let response = accepted(response, &outbound.permit)?;
            let mut response = passed(response, outbound, Trailers::Drop).await?;
            clean(&mut response, &outbound.permit);
            identify(response.headers_mut(), outbound);
            // The connection ends with this answer, lest anything follows on it (CVE-2018-1002105).
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            Ok(Forwarded::Response { response, long: false })
        }
    }
}

/// An answer with the body that goes on, unless it refuses our own account.
async fn passed<E: OnEnd>(
    response: Response<UpstreamBody>,
    outbound: &Outbound,
    trailers: Trailers,
) -> Result<Response<ResponseBody<E>>, Rejection> {
    if refusal::may_be_of_us(&response, &outbound.permit) {
        return Ok(Box::pin(refusal::of_the_caller(response, &outbound.permit)).await?.map(ResponseBody::full));
    }
    Ok(response.map(|body| ResponseBody::streaming(body, trailers)))
}

/// A 401 to our own credential is our trouble, not the caller's: clients throw good tokens away for it.
fn accepted(response: Response<UpstreamBody>, permit: &Permit) -> Result<Response<UpstreamBody>, Rejection> {
    let route = permit.route();
    if response.status() == StatusCode::UNAUTHORIZED && route.upstream.knows_us() {
        return Err(match permit.is_proxied() {
            // A server behind the API server says nothing of that token.
            true => route.upstream.unauthorized(),
            false => route.upstream.credential_refused(),
        });
    }
    Ok(response)
}

fn clean<B>(response: &mut Response<B>, permit: &Permit) {
    // Has no content, and a cache would write a type that is said here over that of the content it kept.
    let is_unchanged = response.status() == StatusCode::NOT_MODIFIED;
    let headers = response.headers_mut();
    clean_response(headers, cookie::PREFIX);
    if !headers.contains_key(header::CACHE_CONTROL) {
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("private, no-store"));
    }
    if permit.is_of_kubernetes() {
        headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        // Logs hold what strangers wrote; on this host a script in them would be one of ours.
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

/// The type of a content that has one. Of several, in one line or more, a browser takes the last.
fn only_type(headers: &HeaderMap) -> Option<&HeaderValue> {
    let mut lines = headers.get_all(header::CONTENT_TYPE).iter();
    let only = lines.next().filter(|line| !line.as_bytes().contains(&b','))?;
    lines.next().is_none().then_some(only)
}

fn identify(headers: &mut HeaderMap, outbound: &Outbound) {
    headers.insert(REQUEST_ID, outbound.permit.meta().id_line.clone());
}

/// Whether a body has no length, so that it may go on for as long as the upstream likes. What of the API server goes on is
/// known by what was asked.
fn is_unsized(body: &UpstreamBody, kind: RouteKind) -> bool {
    matches!(kind, RouteKind::Http | RouteKind::Dashboard)
        && !body.is_end_stream()
        && body.size_hint().exact().is_none()
}
