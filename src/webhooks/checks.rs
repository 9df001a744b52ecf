//! Checks for settings of a sender that exclude each other, or that only another kind of sender has.

use std::time::Duration;

use super::{
    senders::{self, Bodies, Setting, sender},
    sns,
};
use crate::config::{
    raw,
    report::{At, Report},
    resolver::Resolver,
    values::Span,
};

/// The retry schedule that Standard Webhooks recommends ends after 28 h.
const STANDARD_RETRIES: Duration = Duration::from_secs(28 * 3600);

/// Reports settings that belong to another kind of sender, or that would disable a protection.
pub(super) fn check_settings(raw: &raw::Webhook, at: &At, resolver: &mut Resolver) {
    let report = &mut resolver.report;
    let takes = |setting| sender(raw.sender).takes.contains(&setting);
    if raw.require_signature && !takes(Setting::RequireSignature) {
        report
            .error(&at.key("require_signature"), "only `gitlab` has deliveries without a signature")
            .help("remove it; a delivery of this sender is always refused without one");
    }
    if raw.unsigned_pings && !takes(Setting::UnsignedPings) {
        report
            .error(&at.key("unsigned_pings"), "only `bitbucket_data_center` has a test without a signature")
            .help("remove it");
    }
    match (&raw.signature, takes(Setting::Signature)) {
        (None, true) => {
            report.error(at, "a `generic` sender needs `signature`").help("name at least its `header`");
        }
        (Some(_), false) => {
            report
                .error(&at.key("signature"), "the signature format of this sender is known")
                .help("remove it, or write `sender: generic`");
        }
        _ => {}
    }
    if raw.facts != raw::FactPointers::default() && !takes(Setting::Facts) {
        report
            .error(&at.key("facts"), "the places of facts in this sender's bodies are known")
            .help("remove it, or write `sender: generic`");
    }
    let facts_at = at.key("facts");
    for (_, key, pointer) in senders::configured(&raw.facts) {
        if !pointer.starts_with('/') || pointer.len() > 256 {
            report
                .error(&facts_at.key(key), format!("`{pointer}` is not a JSON pointer"))
                .help("write it as `/repository/id`");
        }
    }
    let least = least_window(raw);
    if raw.replay_window.is_some_and(|window| window.get() < least) {
        let least = Span::from_secs(least.as_secs());
        report.error(
            &at.key("replay_window"),
            format!("`replay_window` is shorter than {least}, for which a delivery is valid: it could be replayed"),
        );
    }
    if raw.unique_bodies == Some(false) {
        check_repeated_bodies(raw, &at.key("unique_bodies"), report);
    }
    if raw.redeliveries > 10 {
        report.error(&at.key("redeliveries"), "`redeliveries` is more than 10");
    }
    if let Some(budget) = raw.answer_within {
        report.bounded(at, "answer_within", budget, Span::from_millis(100)..=Span::from_secs(60));
    }
    if raw.max_body.is_some_and(|size| size.0 == 0) {
        report.error(&at.key("max_body"), "`max_body` is zero, so that every delivery would be refused");
    }
    check_hold(raw, at, resolver);
    if let Some(signature) = &raw.signature {
        check_signature(signature, &at.key("signature"), &mut resolver.report);
    }
}

/// Checks the settings of `signature`.
fn check_signature(signature: &raw::GenericSignature, at: &At, report: &mut Report) {
    if signature.tolerance.is_some() && signature.timestamp_header.is_none() {
        report.error(&at.key("tolerance"), "`tolerance` needs `timestamp_header`");
    }
    if signature.tolerance.is_some_and(|tolerance| tolerance.get() > Duration::from_secs(3600)) {
        report.error(&at.key("tolerance"), "`tolerance` is longer than 1 h");
    }
    if signature.plain {
        let written = [
            ("algorithm", signature.algorithm.is_some()),
            ("encoding", signature.encoding.is_some()),
            ("timestamp_header", signature.timestamp_header.is_some()),
        ];
        for (key, _) in written.into_iter().filter(|(_, is_set)| *is_set) {
            report.error(&at.key(key), "nothing is signed where `plain` is set").help("remove one of the two");
        }
    }
}

/// Checks that deliveries whose bodies may be identical are signed and have an id.
fn check_repeated_bodies(raw: &raw::Webhook, at: &At, report: &mut Report) {
    let signature = raw.signature.as_ref();
    if sender(raw.sender).bodies == Bodies::Unique {
        report.error(at, "no two deliveries of this sender have the same body, or it signs their ids").help(
            "remove it; the setting is for `generic`, `github`, `gitea`, `forgejo`, `gogs`, `bitbucket_cloud` and `bitbucket_data_center`",
        );
    } else if signature.is_some_and(|signature| signature.plain) {
        report.error(at, "nothing is signed where `plain` is set, so ids alone count").help("remove one of the two");
    } else if signature.is_some_and(|signature| signature.id_header.is_none()) {
        report
            .error(at, "deliveries without an id can be distinguished by their bodies alone")
            .help("name the header that contains the id of a delivery: `signature: {id_header: ...}`");
    }
}

/// How long a delivery of a sender is valid, or is retried by the sender itself.
fn least_window(raw: &raw::Webhook) -> Duration {
    let of_sender = match raw.sender {
        raw::Sender::AwsSns => sns::GOOD_FOR,
        raw::Sender::StandardWebhooks => STANDARD_RETRIES,
        _ => Duration::from_secs(600),
    };
    let tolerance = raw.signature.as_ref().and_then(|signature| signature.tolerance);
    of_sender.max(tolerance.map_or(Duration::ZERO, |tolerance| tolerance.get() * 2))
}

fn check_hold(raw: &raw::Webhook, at: &At, resolver: &mut Resolver) {
    let report = &mut resolver.report;
    let never_retries = sender(raw.sender).never_retries;
    match raw.hold {
        Some(true) if raw.sender == raw::Sender::Slack => {
            report
                .error(&at.key("hold"), "Slack shows people what the EventListener answers")
                .help("remove it; Slack retries events itself, and the person who gave a command sees that it failed");
        }
        Some(false) if never_retries => {
            report
                .warning(
                    &at.key("hold"),
                    "this sender never retries: a delivery that its EventListener does not accept is lost",
                )
                .help("remove it, so that deliveries are stored until they are accepted");
        }
        _ => {}
    }
    let Some(limits) = &raw.held else { return };
    let at = at.key("held");
    if !raw.hold.unwrap_or(never_retries) {
        report.error(&at, "nothing of this sender is held").help("add `hold: true`, or remove it");
    }
    report.bounded(&at, "try_for", limits.try_for, Span::from_secs(60)..=Span::from_secs(30 * 86_400));
    if limits.max == 0 {
        report.error(&at.key("max"), "`max` is zero, so that every delivery would be refused");
    }
    if limits.max_size.0 == 0 {
        report.error(&at.key("max_size"), "`max_size` is zero, so that every delivery would be refused");
    }
}
