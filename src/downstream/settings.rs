//! The listeners and limits of a configuration, checked.

use std::{fmt, net::SocketAddr, sync::Arc};

use ipnet::IpNet;
use rustls::ServerConfig;

use super::tls;
use crate::{
    clock::Timestamp,
    config::{
        raw::{Limits, Listener},
        report::{At, Report},
        resolver::Resolver,
        values::Span,
    },
    open_files,
};

/// The listeners of one generation, ready to bind or to reload.
#[derive(Clone, Debug)]
pub struct Settings {
    pub(super) listeners: Vec<ListenerSettings>,
    pub(super) limits: Arc<Limits>,
}

#[derive(Clone)]
pub(super) struct ListenerSettings {
    pub(super) name: Arc<str>,
    pub(super) address: SocketAddr,
    pub(super) proxy_protocol_from: Arc<[IpNet]>,
    pub(super) trusted_proxies: Arc<[IpNet]>,
    pub(super) connections_per_address: Option<u32>,
    pub(super) tls: Option<ServerConfig>,
    /// When the first of its certificates expires, in seconds since 1970.
    pub(super) certificate_ends: Option<i64>,
    pub(super) client_ca: Option<Arc<tls::ClientCa>>,
}

impl fmt::Debug for ListenerSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ListenerSettings")
            .field("name", &self.name)
            .field("address", &self.address)
            .field("tls", &self.tls.is_some())
            .finish_non_exhaustive()
    }
}

impl Settings {
    /// Resolves `listeners` and `limits`, which are below `at`. All problems are reported except those that the check
    /// of the whole configuration reports; `None` if any of them is an error.
    pub fn resolve(
        listeners: &[Listener],
        limits: &Limits,
        now: Timestamp,
        resolver: &mut Resolver,
        at: &At,
    ) -> Option<Self> {
        let mut ok = check_limits(limits, &mut resolver.report, &at.key("limits"));
        let at = at.key("listeners");
        let mut resolved = Vec::with_capacity(listeners.len());
        for (index, raw) in listeners.iter().enumerate() {
            let at = at.index(index);
            let tls = match &raw.tls {
                None => None,
                Some(tls) => {
                    let resolved = tls::resolve(tls, now, resolver, &at.key("tls"));
                    ok &= resolved.is_some();
                    resolved
                }
            };
            let (tls, certificate_ends, client_ca) =
                tls.map_or((None, None, None), |tls| (Some(tls.config), tls.ends, tls.client_ca));
            resolved.push(ListenerSettings {
                name: Arc::from(raw.name.as_str()),
                address: raw.address,
                proxy_protocol_from: Arc::from(raw.proxy_protocol_from.as_slice()),
                trusted_proxies: Arc::from(raw.trusted_proxies.as_slice()),
                connections_per_address: raw.connections_per_address,
                tls,
                certificate_ends,
                client_ca,
            });
        }
        ok.then(|| Self { listeners: resolved, limits: Arc::new(limits.clone()) })
    }
}

/// The largest flow-control window of HTTP/2 (RFC 9113 section 6.9.1).
const MAX_WINDOW: u64 = (1 << 31) - 1;

fn check_limits(limits: &Limits, report: &mut Report, at: &At) -> bool {
    let mut ok = true;
    let mut within = |key: &str, value: u64, least: u64, most: u64, unit: &str| {
        let is_within = (least..=most).contains(&value);
        if !is_within {
            report.error(&at.key(key), format!("`{key}` must be between {least} and {most}{unit}"));
            ok = false;
        }
        is_within
    };
    within("header_bytes", limits.header_bytes.0, 1 << 10, 1 << 20, " bytes");
    within("uri_bytes", limits.uri_bytes.0, 256, 60 << 10, " bytes");
    within("header_count", limits.header_count.into(), 8, 1000, "");
    within("http2_streams", limits.http2_streams.into(), 1, 10_000, "");
    let windows = within("http2_stream_window", limits.http2_stream_window.0, 16 << 10, MAX_WINDOW, " bytes")
        & within("http2_connection_window", limits.http2_connection_window.0, 65_535, MAX_WINDOW, " bytes");
    within("http2_reset_window", limits.http2_reset_window.into(), 10, 100_000, "");
    within("http2_reset_share", limits.http2_reset_share.into(), 1, 100, " percent");
    within("http2_pending_resets", limits.http2_pending_resets.into(), 1, 10_000, "");
    within("http2_local_resets", limits.http2_local_resets.into(), 1, 100_000, "");
    within("floods_per_address", limits.floods_per_address.into(), 1, 1000, "");
    within("body_buffer", limits.body_buffer.0, 8 << 10, 16 << 20, " bytes");
    within("connections", limits.connections.into(), 1, u32::MAX.into(), "");
    within("connections_file_share", limits.connections_file_share.into(), 1, open_files::MAX_CLIENT_SHARE, " percent");
    within("connections_per_address", limits.connections_per_address.into(), 1, u32::MAX.into(), "");
    within("refusals_per_address", limits.refusals_per_address.into(), 1, u32::MAX.into(), "");
    // Below that, there is nothing to shed: an idle Doorward would turn everybody away.
    let ladder = [
        ("memory_close_idle", limits.memory_close_idle),
        ("memory_refuse_streams", limits.memory_refuse_streams),
        ("memory_refuse_connections", limits.memory_refuse_connections),
        ("memory_refuse_requests", limits.memory_refuse_requests),
    ];
    for (key, percent) in ladder {
        within(key, percent.into(), 10, 100, " percent");
    }
    // A bound that is invalid by itself has already been reported, here and for the ladder.
    if windows && limits.http2_stream_window > limits.http2_connection_window {
        let message =
            "`http2_stream_window` is more than `http2_connection_window`, which all streams of a connection share";
        report.error(&at.key("http2_stream_window"), message);
        ok = false;
    }
    let bounds = Span::from_millis(100)..=Span::from_secs(10);
    if let Some(problem) = report.bounded(at, "http2_reset_within", limits.http2_reset_within, bounds) {
        problem.help("with less, a client that waits a moment may flood; with more, clients that give up on a slow upstream count as floods");
        ok = false;
    }
    for ((former, less), (key, percent)) in ladder.into_iter().zip(ladder.into_iter().skip(1)) {
        if percent < less && percent >= 10 && less <= 100 {
            report
                .error(&at.key(key), format!("`{key}` is less than `{former}`, which costs less"))
                .help("each level also sheds what the one before it sheds");
            ok = false;
        }
    }
    ok
}
