//! Request and response bodies in transit. Neither is a trait object, both are counted, and each response reports once
//! how it ended.

mod client;
mod events;
mod request;
mod response;

use bytes::Bytes;
use http_body::Body;
use http_body_util::{BodyExt, Limited};

pub use self::{client::ClientBody, request::RequestBody};
pub(crate) use self::{
    events::Events,
    request::Received,
    response::{BodyEnd, CutStyle, EndedBy, OnEnd, ResponseBody},
};
use crate::streams::CutReason;

/// Whether trailers are forwarded. They are on `http` routes from HTTP/2 to HTTP/2, as gRPC needs them. Elsewhere they
/// are dropped, because a trailer could bring back a header that was removed from the head of the request. For the same
/// reason only those request trailers are forwarded that the head could have had.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Trailers {
    #[default]
    Drop,
    Pass,
}

/// Why a body broke off.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    #[error("the client did not send the whole body: {0}")]
    Client(#[source] hyper::Error),
    #[error("the client reset the stream before the body was whole")]
    Reset,
    #[error("the upstream did not send the whole body: {0}")]
    Upstream(#[source] hyper::Error),
    #[error("the upstream ended its answer before it was whole")]
    Unfinished,
    #[error("the body is larger than {0} bytes")]
    TooLarge(u64),
    #[error("nothing moved for too long")]
    Idle,
    #[error("the stream was ended: {0}")]
    Cut(CutReason),
}

/// Reads a body whole; `None` if it breaks off or has more than `max` bytes.
pub async fn collect<B>(body: B, max: usize) -> Option<Bytes>
where
    B: Body<Data = Bytes>,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    Limited::new(body, max).collect().await.ok().map(http_body_util::Collected::to_bytes)
}

/// The `size_hint` of a body that is in memory as a whole.
fn exactly(bytes: &Bytes) -> http_body::SizeHint {
    http_body::SizeHint::with_exact(u64::try_from(bytes.len()).unwrap_or(u64::MAX))
}
