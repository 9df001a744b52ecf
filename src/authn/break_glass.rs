//! Break-glass access for when the provider is down: named client certificates, for at most an hour.
//!
//! It is off unless it is configured and its `until` is in the future. TLS has already verified the certificate's chain
//! and possession of the key; this module checks whether the certificate is one of those configured.

use std::{sync::Arc, time::Duration};

use aws_lc_rs::constant_time::verify_slices_are_equal;
use data_encoding::HEXLOWER;
use prometheus_client::{metrics::gauge::Gauge, registry::Registry};

use super::{
    CredentialId, Kind, Presented, Principal, Scheme,
    principal::{InvalidName, check_name},
};
use crate::{
    admin::health::ComponentHandle,
    audit::Note,
    clock::Timestamp,
    config::{raw, report::At, resolver::Resolver},
    error::{Reason, Rejection},
    sha256::{self, sha256},
};

/// The issuer name of break-glass principals.
pub const ISSUER: &str = "break-glass";

/// How far ahead `until` may lie when a configuration is loaded.
const MAX_AHEAD: Duration = Duration::from_secs(3600);

/// The certificates that are accepted, and until when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BreakGlass {
    until: Timestamp,
    certificates: Vec<Certificate>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Certificate {
    name: Arc<str>,
    sha256: [u8; 32],
    /// `sha256` as text, as the audit trail records it.
    fingerprint: Arc<str>,
    groups: Vec<Arc<str>>,
}

/// Whether break-glass is open.
#[derive(Clone, Debug, Default)]
pub struct BreakGlassMetrics {
    open: Gauge,
}

impl BreakGlassMetrics {
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "break_glass_open",
            "1 while break-glass certificates are accepted, else 0",
            self.open.clone(),
        );
    }
}

impl BreakGlass {
    /// Resolves the section and reports what is wrong with it. `now` is when the configuration is loaded.
    pub fn resolve(raw: &raw::BreakGlass, at: &At, now: Timestamp, resolver: &mut Resolver) -> Option<Self> {
        let until_at = at.key("until");
        let until = Timestamp::from_rfc3339(&raw.until);
        match until {
            None => {
                resolver
                    .error(&until_at, format!("`{}` is not a time", raw.until))
                    .help("write it as `2026-01-31T18:00:00Z` (RFC 3339)");
            }
            Some(until) if until > now + MAX_AHEAD => {
                resolver
                    .error(&until_at, "`until` is more than an hour ahead")
                    .help("break-glass is open for an hour at most; to extend it, set a later `until` and reload");
            }
            // Prepared in advance and closed: nothing to report.
            Some(until) if until <= now => {}
            Some(_) => {
                resolver.warning(at, format!("break-glass is open until {}", raw.until));
            }
        }
        let certificates_at = at.key("certificates");
        if raw.certificates.is_empty() {
            resolver.error(&certificates_at, "there is no certificate");
        }
        let mut certificates: Vec<Certificate> = Vec::new();
        for (index, raw) in raw.certificates.iter().enumerate() {
            let at = certificates_at.index(index);
            let Some(certificate) = Certificate::resolve(raw, &at, resolver) else { continue };
            if certificates.iter().any(|other| other.sha256 == certificate.sha256) {
                resolver.error(&at.key("sha256"), "is listed twice, so that its name would be ambiguous");
            }
            certificates.push(certificate);
        }
        // The order does not matter, so a change of it alone is not recorded.
        certificates.sort_by(|one, other| (&one.name, &one.sha256).cmp(&(&other.name, &other.sha256)));
        (certificates.len() == raw.certificates.len()).then_some(Self { until: until?, certificates })
    }

    pub fn is_open(&self, now: Timestamp) -> bool {
        now < self.until
    }

    fn why(&self) -> String {
        format!("break-glass is open until {}", self.until)
    }

    /// Judges a principal that one of the certificates let in before. Returns it as it would be let in now, perhaps
    /// with other groups, or `None` if it would be refused.
    pub fn judge_again(&self, principal: &Principal, now: Timestamp) -> Option<Principal> {
        let CredentialId::Certificate(fingerprint) = &principal.credential else { return None };
        let named = |known: &&Certificate| known.fingerprint == *fingerprint && known.name == principal.subject;
        self.certificates.iter().find(named).filter(|_| self.is_open(now)).map(|known| self.principal(known))
    }

    /// Authenticates by the leaf certificate (DER) of a client whose chain and key TLS has verified.
    pub fn present(&self, certificate: Option<&[u8]>, now: Timestamp) -> Presented<Principal> {
        let Some(certificate) = certificate else { return Presented::Absent };
        let presented = sha256(&[certificate]);
        let matches = |known: &&Certificate| verify_slices_are_equal(&known.sha256, &presented).is_ok();
        let Some(known) = self.certificates.iter().find(matches) else {
            return Presented::Invalid(not_known());
        };
        if !self.is_open(now) {
            return Presented::Invalid(Rejection::new(Reason::TokenExpired, "break-glass is closed").fix(
                "sign in at the provider; if it is down, ask an operator to open break-glass (`break_glass.until`)",
            ));
        }
        Presented::Valid(self.principal(known))
    }

    fn principal(&self, known: &Certificate) -> Principal {
        Principal {
            kind: Kind::Human,
            groups: known.groups.clone(),
            credential: CredentialId::Certificate(Arc::clone(&known.fingerprint)),
            expires: self.until,
            ..Principal::new(Scheme::BreakGlass, ISSUER, Arc::clone(&known.name), username(&known.name))
        }
    }
}

/// The Kubernetes user name. No issuer's user can have one like it, so what was done with break-glass is never mistaken
/// for what the same person did with a token.
pub fn username(name: &str) -> String {
    format!("{ISSUER}:{name}")
}

/// The refusal of a certificate that is not configured, or of any certificate if there is no section.
pub fn not_known() -> Rejection {
    Rejection::new(Reason::CredentialMalformed, "this client certificate is not known here")
}

/// Logs that break-glass is configured but its `until` has passed. While it is open, `resolve` warns and [`watch`]
/// raises an alarm.
pub fn log_closed(break_glass: Option<&BreakGlass>, now: Timestamp) {
    if let Some(closed) = break_glass.filter(|break_glass| !break_glass.is_open(now)) {
        tracing::info!(until = %closed.until, "break-glass is closed: its `until` has passed");
    }
}

/// Raises the alarm while break-glass is open and clears it afterwards. Called periodically.
pub fn watch(
    break_glass: Option<&BreakGlass>,
    component: &ComponentHandle,
    metrics: &BreakGlassMetrics,
    now: Timestamp,
) {
    let open = break_glass.filter(|break_glass| break_glass.is_open(now));
    metrics.open.set(i64::from(open.is_some()));
    match open {
        Some(open) => component.alarm(open.why()),
        None => component.ok(),
    }
}

/// Returns the audit note for a change of break-glass since `noted`: opened, closed, or open for other certificates.
pub fn note(break_glass: Option<&BreakGlass>, noted: &mut Option<BreakGlass>, now: Timestamp) -> Option<Note> {
    let open = break_glass.filter(|break_glass| break_glass.is_open(now));
    if noted.as_ref() == open {
        return None;
    }
    *noted = open.cloned();
    let detail = open.map_or_else(
        || "break-glass is closed".to_owned(),
        |open| {
            let whom: Vec<String> = open.certificates.iter().map(Certificate::told).collect();
            format!("{} for {}", open.why(), whom.join("; "))
        },
    );
    Some(Note::Alarm { what: "break_glass", detail })
}

impl Certificate {
    fn resolve(raw: &raw::BreakGlassCertificate, at: &At, resolver: &mut Resolver) -> Option<Self> {
        let mut good = true;
        let mut check = |at: &At, name: &str| {
            let Err(why) = check_name(name) else { return true };
            let problem = resolver.error(at, format!("`{name}` {why}"));
            if why == InvalidName::Reserved {
                problem.help("such names belong to Kubernetes itself and have rights that no policy gave");
            }
            good = false;
            false
        };
        let name_at = at.key("name");
        // The name must be valid without the prefix, which would hide that it is blank.
        if check(&name_at, &raw.name) {
            check(&name_at, &username(&raw.name));
        }
        for (index, group) in raw.groups.iter().enumerate() {
            check(&at.key("groups").index(index), group);
        }
        let Some(sha256) = sha256::from_hex(&raw.sha256) else {
            resolver
                .error(&at.key("sha256"), "`sha256` is not a SHA-256 in hex")
                .help("get it with `openssl x509 -in FILE -noout -fingerprint -sha256`");
            return None;
        };
        good.then(|| Self {
            name: raw.name.as_str().into(),
            sha256,
            fingerprint: HEXLOWER.encode(&sha256).into(),
            groups: raw.groups.iter().map(|group| group.as_str().into()).collect(),
        })
    }

    /// Names, groups and fingerprint: under the same name, another certificate is a different one to let in.
    fn told(&self) -> String {
        let groups = if self.groups.is_empty() { "no groups".to_owned() } else { self.groups.join(", ") };
        format!("{} ({groups}, {})", self.name, self.fingerprint)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::{
        admin::health::{Gate, Health, Status},
        clock::Clock,
    };

    /// 2026-01-31T17:30:00Z
    const NOW: Timestamp = Timestamp::from_secs(1_769_880_600);
    const DER: &[u8] = b"the certificate of alice";

    fn sha256_hex(der: &[u8]) -> String {
        HEXLOWER.encode(&sha256(&[der]))
    }

    fn resolve(value: Value) -> (Option<BreakGlass>, Resolver) {
        let raw = serde_json::from_value(value).unwrap();
        let mut resolver = Resolver::default();
        (BreakGlass::resolve(&raw, &At::root().key("break_glass"), NOW, &mut resolver), resolver)
    }

    fn alice(until: &str) -> Value {
        json!({"until": until, "certificates": [
            {"name": "alice", "sha256": sha256_hex(DER), "groups": ["sre"]},
        ]})
    }

    #[test]
    fn a_named_certificate_opens_until_the_end() {
        let open = resolve(alice("2026-01-31T18:30:00Z")).0.unwrap();
        let until = Timestamp::from_rfc3339("2026-01-31T18:30:00Z").unwrap();
        let Presented::Valid(principal) = open.present(Some(DER), NOW) else { panic!("it is refused") };
        assert_eq!(
            (&*principal.issuer, &*principal.username, principal.kind),
            ("break-glass", "break-glass:alice", Kind::Human)
        );
        assert_eq!((principal.scheme, principal.expires), (Scheme::BreakGlass, until));
        assert_eq!(principal.groups, [Arc::<str>::from("sre")]);
        assert_eq!(principal.credential, CredentialId::Certificate(sha256_hex(DER).into()));

        assert_eq!(open.judge_again(&principal, NOW).unwrap().groups, principal.groups);
        assert!(open.judge_again(&principal, until).is_none());
        let regrouped = resolve(json!({"until": "2026-01-31T18:30:00Z", "certificates": [
            {"name": "alice", "sha256": sha256_hex(DER), "groups": ["readers"]},
        ]}));
        let again = regrouped.0.unwrap().judge_again(&principal, NOW).unwrap();
        assert_eq!(again.groups, [Arc::<str>::from("readers")], "a group that was taken away is gone");
        let renamed = resolve(json!({"until": "2026-01-31T18:30:00Z", "certificates": [
            {"name": "bob", "sha256": sha256_hex(DER)},
        ]}));
        assert!(renamed.0.unwrap().judge_again(&principal, NOW).is_none(), "the certificate is another's now");
        let replaced = resolve(json!({"until": "2026-01-31T18:30:00Z", "certificates": [
            {"name": "alice", "sha256": sha256_hex(b"the next certificate of alice"), "groups": ["sre"]},
        ]}));
        assert!(replaced.0.unwrap().judge_again(&principal, NOW).is_none(), "she has another certificate now");

        assert!(matches!(open.present(None, NOW), Presented::Absent));
        let reason = |presented| match presented {
            Presented::Invalid(rejection) => Some(Rejection::reason(&rejection)),
            _ => None,
        };
        assert_eq!(reason(open.present(Some(b"the certificate of mallory"), NOW)), Some(Reason::CredentialMalformed));
        assert_eq!(reason(open.present(Some(DER), until - Duration::from_millis(1))), None);
        assert_eq!(reason(open.present(Some(DER), until)), Some(Reason::TokenExpired));
        let Presented::Invalid(closed) = open.present(Some(DER), until) else { panic!("it is open") };
        assert!(closed.fix_text().unwrap().contains("ask an operator to open break-glass"), "the provider is down");
    }

    #[test]
    fn invalid_break_glass_settings_are_refused_at_load() {
        let with = |name: &str, sha256: String, group: &str| json!({"until": "2026-01-31T18:00:00Z", "certificates": [{"name": name, "sha256": sha256, "groups": [group]}]});
        let digest = || sha256_hex(DER);
        let twice = json!({"until": "2026-01-31T18:00:00Z", "certificates": [
            {"name": "alice", "sha256": digest()}, {"name": "bob", "sha256": digest()},
        ]});
        for (value, message) in [
            (alice("2026-01-31T18:30:01Z"), "more than an hour"),
            (alice("tomorrow"), "not a time"),
            (alice("2026-01-31T18:00:00"), "not a time"),
            (json!({"until": "2026-01-31T18:00:00Z", "certificates": []}), "no certificate"),
            (with("alice", digest()[1..].to_owned(), "sre"), "not a SHA-256"),
            (with("alice", digest().replace(|c: char| c.is_ascii_digit(), "g"), "sre"), "not a SHA-256"),
            (with("system:admin", digest(), "sre"), "reserved prefix"),
            (with("alice\n", digest(), "sre"), "control character"),
            (with(&"a".repeat(510), digest(), "sre"), "longer than"),
            (with("", digest(), "sre"), "is empty"),
            (with("alice", digest(), "system:masters"), "reserved prefix"),
            (twice, "twice"),
        ] {
            let resolver = resolve(value).1;
            let problems = resolver.report.problems();
            assert!(resolver.report.has_errors(), "{message}");
            assert!(problems.iter().any(|problem| problem.message.contains(message)), "{message}: {problems:?}");
        }
        let upper = digest().to_uppercase();
        let colons = upper.as_bytes().chunks(2).map(|pair| str::from_utf8(pair).unwrap()).collect::<Vec<_>>();
        let (open, resolver) = resolve(with("alice", colons.join(":"), "sre"));
        assert!(open.is_some() && !resolver.report.has_errors());
    }

    /// Only the first was reported, and the others were found in later runs.
    #[test]
    fn a_bad_name_and_all_bad_groups_are_reported_together() {
        let places = |name: &str, groups: &[&str]| {
            let certificate = json!({"name": name, "sha256": sha256_hex(DER), "groups": groups});
            let (open, resolver) = resolve(json!({"until": "2026-01-31T17:00:00Z", "certificates": [certificate]}));
            assert!(open.is_none(), "{name:?} {groups:?}");
            let problems = resolver.report.problems();
            let problems = problems.iter().map(|problem| (problem.at.as_str().to_owned(), problem.help.is_some()));
            let within = "/break_glass/certificates/0";
            problems.map(|(at, helps)| (at.strip_prefix(within).unwrap().to_owned(), helps)).collect::<Vec<_>>()
        };
        let told = |at: &str, helps: bool| (at.to_owned(), helps);
        assert_eq!(
            places("system:admin", &["system:masters", "sre", "\n"]),
            [told("/name", true), told("/groups/0", true), told("/groups/2", false)]
        );
        // A problem that only the prefixed name has is reported where the name itself is valid.
        assert_eq!(places(&"a".repeat(510), &[]), [told("/name", false)]);
        assert_eq!(places(&"a".repeat(600), &[]), [told("/name", false)]);
    }

    #[test]
    fn an_expired_break_glass_is_closed_and_no_configuration_problem() {
        let (closed, resolver) = resolve(alice("2026-01-31T17:30:00Z"));
        assert_eq!(resolver.report.problems(), []);
        assert!(!closed.unwrap().is_open(NOW));
    }

    #[test]
    fn an_alarm_is_raised_while_it_is_open() {
        let health = Health::new(Clock::default());
        let component = health.component("break_glass", Gate::Report);
        let metrics = BreakGlassMetrics::default();
        let open = resolve(alice("2026-01-31T18:30:00Z")).0;
        let mut noted = None;
        let mut announce = |break_glass: Option<&BreakGlass>, now| {
            watch(break_glass, &component, &metrics, now);
            note(break_glass, &mut noted, now)
        };
        let note = announce(open.as_ref(), NOW);
        assert_eq!((component.status(), metrics.open.get()), (Status::Alarm, 1));
        let Some(Note::Alarm { what: "break_glass", detail }) = note else { panic!("{note:?}") };
        assert!(detail.contains("alice") && detail.contains("18:30"), "{detail}");
        assert_eq!(announce(open.as_ref(), NOW), None, "it is told once");
        let break_glass = |until: &str, sha256: &str, group: Option<&str>, alice_first: bool| {
            let mut break_glass = alice(until);
            let certificates = break_glass["certificates"].as_array_mut().unwrap();
            let groups: Vec<&str> = group.into_iter().collect();
            certificates.insert(usize::from(alice_first), json!({"name": "bob", "sha256": sha256, "groups": groups}));
            resolve(break_glass).0
        };
        // The same text twice did not say what had changed.
        let [one, another] = ["a", "b"].map(|digit| digit.repeat(64));
        for (until, sha256, group, says) in [
            ("2026-01-31T18:30:00Z", &one, Some("sre"), "(sre, aaaa"),
            ("2026-01-31T18:30:00Z", &another, Some("sre"), "(sre, bbbb"),
            ("2026-01-31T18:30:00Z", &another, Some("dev"), "(dev, bbbb"),
            ("2026-01-31T18:30:00Z", &another, None, "(no groups, bbbb"),
            ("2026-01-31T18:10:00Z", &another, None, "18:10"),
        ] {
            let note = announce(break_glass(until, sha256, group, true).as_ref(), NOW);
            let Some(Note::Alarm { detail, .. }) = note else { panic!("{note:?}") };
            assert!(["alice (sre, ", "; bob ", says].iter().all(|part| detail.contains(*part)), "{says}: {detail}");
            assert_eq!(announce(break_glass(until, sha256, group, true).as_ref(), NOW), None, "it is told once");
            assert_eq!(
                announce(break_glass(until, sha256, group, false).as_ref(), NOW),
                None,
                "the order says nothing"
            );
        }
        let note = announce(open.as_ref(), open.as_ref().unwrap().until);
        assert_eq!((component.status(), metrics.open.get()), (Status::Ok, 0));
        assert!(matches!(note, Some(Note::Alarm { detail, .. }) if detail.contains("closed")));
        assert_eq!(announce(None, NOW), None);
        assert_eq!((component.status(), metrics.open.get()), (Status::Ok, 0));
    }
}
