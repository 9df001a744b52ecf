//! What arrived of a request, which shows what was lost on the way: the proxy in front may be misconfigured in ways
//! that Doorward cannot notice by itself. `doorward doctor` queries it. It tells callers nothing but what they sent and
//! what became of it.

use std::net::IpAddr;

use bytes::Bytes;
use http::{HeaderValue, Response, header};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{Context, document};
use crate::upstream::upgrade::UpgradeProtocol;

pub const PATH: &str = "/.doorward/probe";

/// What arrived of a request.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Arrived {
    /// The origin under which a browser sees this; `None` if Doorward was not told that it was https.
    pub origin: Option<String>,
    /// Whether it asks for an upgrade to WebSocket.
    pub websocket: bool,
    /// The total length of the values of `Cookie`, in bytes.
    pub cookies: usize,
    /// The client, as far as trusted proxies name it.
    pub client: IpAddr,
}

pub(super) fn answer(context: &Context<'_>) -> Response<Bytes> {
    let cookies = context.request.headers().get_all(header::COOKIE).iter().map(HeaderValue::len).sum();
    let arrived = Arrived {
        origin: context.origin.as_ref().map(ToString::to_string),
        websocket: context.request.meta().upgrade == Some(UpgradeProtocol::WebSocket),
        cookies,
        client: context.request.meta().client,
    };
    document("no-store", &json!(arrived))
}
