//! Bodies on their way through: what a client sends to an upstream, and what goes back to it. Neither is boxed, both
//! are counted, and of each response somebody hears once how it ended.

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
use crate::upstream::streams::CutReason;

/// Whether trailers pass. They do on `http` routes from HTTP/2 to HTTP/2, as gRPC needs it. Everywhere else they are
/// dropped: a trailer could otherwise bring in a header that was taken off the head of the request. For the same reason
/// those of a request that pass are only those that its head could have had.
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

/// A body that is read whole; `None` if it breaks off or has more than `max` bytes.
pub async fn collect<B>(body: B, max: usize) -> Option<Bytes>
where
    B: Body<Data = Bytes>,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    Limited::new(body, max).collect().await.ok().map(http_body_util::Collected::to_bytes)
}

/// `size_hint` of a body that is there as a whole.
fn exactly(bytes: &Bytes) -> http_body::SizeHint {
    http_body::SizeHint::with_exact(u64::try_from(bytes.len()).unwrap_or(u64::MAX))
}
