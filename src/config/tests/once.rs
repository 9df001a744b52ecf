//! What is wrong at a place is told once, though the configuration as a whole and a component both look there.

use super::{Case, GOOD, load};
use crate::config::report::Severity;

#[test]
fn of_no_place_two_errors_are_told() {
    let runtime = crate::runtime::control().unwrap();
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
        (with("sessions:", "limits: {uri_bytes: 8KiB, header_bytes: 4KiB}\nsessions:"), "/limits/uri_bytes"),
        (with("sessions:", "limits: {http2_stream_window: 3GiB}\nsessions:"), "/limits/http2_stream_window"),
        (with("sessions:", "limits: {http2_stream_window: 2MiB}\nsessions:"), "/limits/http2_stream_window"),
        (with("sessions:", "limits: {memory_refuse_streams: 5}\nsessions:"), "/limits/memory_refuse_streams"),
        (with("sessions:", "limits: {memory_refuse_streams: 50}\nsessions:"), "/limits/memory_refuse_streams"),
    ] {
        let case = Case::new(&main);
        let refused = load(&case.sources, crate::app::check(&runtime).unwrap()).unwrap_err();
        let errors = refused.diagnosis.findings().iter().filter(|finding| finding.severity == Severity::Error);
        let mut places: Vec<&str> = errors.map(|finding| finding.at.as_str()).collect();
        places.sort_unstable();
        assert!(places.contains(&place), "{place}: {places:?}");
        assert!(places.windows(2).all(|pair| pair[0] != pair[1]), "{place}: {places:?}");
    }
}
