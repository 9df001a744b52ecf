//! A problem at a place is reported once, although the check of the whole and a component both check there.

use super::{Case, GOOD, load};
use crate::config::report::Severity;

/// Returns the places of the errors of a configuration, sorted.
fn places(main: &str) -> Vec<String> {
    let runtime = crate::runtime::control().unwrap();
    let case = Case::new(main);
    let refused = load(&case.sources, crate::app::check(&runtime).unwrap()).unwrap_err();
    let errors = refused.diagnosis.findings().iter().filter(|finding| finding.severity == Severity::Error);
    let mut places: Vec<String> = errors.map(|finding| finding.at.as_str().to_owned()).collect();
    places.sort_unstable();
    places
}

#[test]
fn no_path_has_two_errors() {
    let with = |old: &str, new: &str| GOOD.replace(old, new);
    for (main, place) in [
        (
            with("name: company", "name: my company").replace("{kind: human,", "{kind: human, redirect: own,"),
            "/issuers/0/name",
        ),
        (
            with("name: company", "name: '..'").replace("{kind: human,", "{kind: human, redirect: own,"),
            "/issuers/0/name",
        ),
        (
            with("name: github\n    sender", "name: My hook\n    sender")
                .replace("webhook: github", "webhook: My hook"),
            "/webhooks/0/name",
        ),
        (
            with("name: github\n    sender", "name: Hook\n    sender").replace("webhook: github", "webhook: Hook"),
            "/webhooks/0/name",
        ),
        (with("sessions:", "external_host: '*'\nsessions:"), "/external_host"),
        (with("sessions:", "interceptor: {host: '*'}\nsessions:"), "/interceptor/host"),
        (with("sessions:", "limits: {uri_bytes: 64KiB}\nsessions:"), "/limits/uri_bytes"),
        (with("sessions:", "limits: {http2_stream_window: 3GiB}\nsessions:"), "/limits/http2_stream_window"),
        (with("sessions:", "limits: {http2_stream_window: 2MiB}\nsessions:"), "/limits/http2_stream_window"),
        (with("sessions:", "limits: {memory_refuse_streams: 5}\nsessions:"), "/limits/memory_refuse_streams"),
        (with("sessions:", "limits: {memory_refuse_streams: 50}\nsessions:"), "/limits/memory_refuse_streams"),
    ] {
        let places = places(&main);
        assert!(places.iter().any(|found| found == place), "{place}: {places:?}");
        assert!(places.windows(2).all(|pair| pair[0] != pair[1]), "{place}: {places:?}");
    }
}

#[test]
fn a_limit_is_not_compared_with_one_that_is_invalid() {
    let of_listener =
        GOOD.replace("address: 127.0.0.1:8080", "address: 127.0.0.1:8080\n    connections_per_address: 5");
    for (main, limits, expected) in [
        (GOOD, "connections: 0", &["/limits/connections"][..]),
        (of_listener.as_str(), "connections: 0", &["/limits/connections"]),
        (
            of_listener.as_str(),
            "connections: 4",
            &["/limits/connections_per_address", "/listeners/0/connections_per_address"],
        ),
    ] {
        let mut found = places(&main.replace("sessions:", &format!("limits: {{{limits}}}\nsessions:")));
        found.retain(|place| place.contains("connections"));
        assert_eq!(found, expected, "{main} {limits}");
    }
}
