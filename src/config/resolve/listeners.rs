//! Listeners, and limits on what arrives through them.

use std::net::SocketAddr;

use ipnet::IpNet;

use super::item;
use crate::{
    config::{
        raw::{self, Limits},
        report::{At, Report},
        values::Span,
    },
    memory,
};

pub(super) fn check(root: &raw::Root, report: &mut Report) {
    if root.listeners.is_empty() {
        report
            .error(&At::root().key("listeners"), "there is no listener")
            .help("add one: `listeners: [{name: main, address: \"127.0.0.1:8080\"}]`");
    }
    let mut taken: Vec<(SocketAddr, String)> = Vec::new();
    for (index, listener) in root.listeners.iter().enumerate() {
        let at = item("listeners", index);
        address(listener.address, &listener.name, &mut taken, &at.key("address"), report);
        match &listener.tls {
            Some(tls) if tls.certificates.is_empty() => {
                report.error(&at.key("tls").key("certificates"), "TLS needs at least one certificate");
            }
            Some(_) => {}
            None if listener.address.ip().is_loopback() || !listener.trusted_proxies.is_empty() => {}
            None => {
                report
                    .warning(&at.key("address"), "tokens and cookies cross the network in clear text")
                    .help("set `tls`; behind an ingress, list its addresses in `trusted_proxies`");
            }
        }
        if let Some(most) = listener.connections_per_address {
            let at = at.key("connections_per_address");
            if most == 0 {
                report.error(&at, "`connections_per_address` cannot be zero").help("leave it out for that of `limits`");
            } else if (1..most).contains(&root.limits.connections) {
                report.error(&at, "it is more than `limits.connections`, and would never be reached");
            }
        }
        peers(&listener.trusted_proxies, "X-Forwarded-For", &at.key("trusted_proxies"), report);
        peers(&listener.proxy_protocol_from, "a PROXY header", &at.key("proxy_protocol_from"), report);
    }
    if let Some(admin) = root.admin.address {
        let at = At::root().key("admin").key("address");
        address(admin, "admin", &mut taken, &at, report);
        if !admin.ip().is_loopback() && root.admin.token.is_none() {
            report
                .warning(&at, "from other machines, `/metrics` and the reasons of `/readyz` cannot be read")
                .help("set `token` within `admin`, or listen on loopback");
        }
    }
    limits(&root.limits, &At::root().key("limits"), report);
}

fn address(new: SocketAddr, name: &str, taken: &mut Vec<(SocketAddr, String)>, at: &At, report: &mut Report) {
    let clash = |(old, _): &&(SocketAddr, String)| {
        let (old, new) = (old.ip(), new.ip());
        old == new || old.is_unspecified() || new.is_unspecified()
    };
    let same_port = |(old, _): &&(SocketAddr, String)| old.port() == new.port() && new.port() != 0;
    if let Some((_, other)) = taken.iter().filter(same_port).find(clash) {
        report.error(at, format!("`{other}` listens on this address already"));
    }
    taken.push((new, name.to_owned()));
}

fn peers(ranges: &[IpNet], believed: &str, at: &At, report: &mut Report) {
    for (index, range) in ranges.iter().enumerate() {
        if range.prefix_len() == 0 {
            report
                .warning(&at.index(index), format!("everybody on the Internet is trusted to send {believed}"))
                .help("list only the addresses of the proxy in front");
        }
    }
}

fn limits(limits: &Limits, at: &At, report: &mut Report) {
    let zero = [
        ("header_timeout", limits.header_timeout.get().is_zero()),
        ("handshake_timeout", limits.handshake_timeout.get().is_zero()),
        ("body_timeout", limits.body_timeout.get().is_zero()),
        ("body_min_rate", limits.body_min_rate.0 == 0),
        ("idle_timeout", limits.idle_timeout.get().is_zero()),
        ("stream_idle_timeout", limits.stream_idle_timeout.get().is_zero()),
        ("upgrade_idle_timeout", limits.upgrade_idle_timeout.get().is_zero()),
        ("http2_ping_interval", limits.http2_ping_interval.get().is_zero()),
        ("buffered_bytes", limits.buffered_bytes.0 == 0),
        ("memory", limits.memory.is_some_and(|memory| memory.0 == 0)),
    ];
    for (name, _) in zero.iter().filter(|(_, zero)| *zero) {
        report.error(&at.key(name), format!("`{name}` cannot be zero")).help("leave it out for the default");
    }
    // Linux counts it in whole seconds up to 32,767 (tcp(7), TCP_KEEPIDLE).
    if !(1..=32_767).contains(&limits.tcp_keepalive.get().as_secs()) {
        report
            .error(&at.key("tcp_keepalive"), format!("{} is not from 1 s to 32,767 s", limits.tcp_keepalive))
            .help("leave it out for the default");
    }
    let mut at_most = |small: &str, large: &str, wrong: bool| {
        if wrong {
            report.error(&at.key(small), format!("`{small}` is more than `{large}`, and would never be reached"));
        }
    };
    // That `connections` cannot be zero is reported with its bounds, by `downstream`.
    let is_over = (1..limits.connections_per_address).contains(&limits.connections);
    at_most("connections_per_address", "connections", is_over);
    at_most("drain_accept", "drain", limits.drain_accept > limits.drain);
    let buffered = limits.buffered_within(limits.memory);
    if buffered < limits.buffered_bytes {
        let what = format!(
            "only {buffered} of the {} of `buffered_bytes` are used, half of `memory` without code and files: the other half is for \
             everything else",
            limits.buffered_bytes
        );
        let enough = limits.memory_for_buffered();
        report
            .warning(&at.key("memory"), what)
            .help(format!("raise `memory`, and the limit of the container, to {enough}, or lower `buffered_bytes`"));
    }
    if limits.memory.is_some_and(memory::is_little) {
        let least = memory::LITTLE;
        let what = format!(
            "`memory` is less than {least}, of which little is left beside the program: floods of requests can make \
             it slow for all"
        );
        report
            .warning(&at.key("memory"), what)
            .help(format!("raise `memory`, and the limit of the container, to {least} or more"));
    }
    let (accept, rest) = limits.drain_times();
    if accept < limits.drain_accept.get() && limits.drain_accept <= limits.drain {
        report
            .warning(
                &at.key("drain_accept"),
                format!("`drain_accept` is more than half of `drain`, and ends after {}", Span(accept)),
            )
            .help(format!("requests in flight have the other {}; raise `drain` or lower `drain_accept`", Span(rest)));
    }
}
