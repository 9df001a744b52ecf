//! Tokens of other providers, for audiences that trust those and not Doorward. After rules have decided, Doorward signs
//! an assertion with the content of its own token, exchanges it for the provider's token (RFC 8693, RFC 7523), and
//! passes on that token.
//!
//! | file | holds |
//! |---|---|
//! | `protocol` | the requests, as a table of parameters for each kind of provider |
//! | `answer` | the responses, and whether they may be passed on |
//! | `cache` | cached tokens, and calls in flight |
//! | `swap` | from what rules gave to the response for the caller |
//! | `audiences` | checks that no audience is also one of Doorward's own tokens |
//! | `rules` | checks of rules about an audience whose provider does not do what they say |

mod answer;
mod audiences;
mod cache;
mod protocol;
mod rules;
mod swap;

use std::{collections::BTreeMap, ops::RangeInclusive, sync::Arc, time::Duration};

use url::Url;

pub use self::cache::{Metrics, ProviderTokens};
use self::protocol::{Kind, Protocol};
use super::{
    SigningKeys,
    form::{MAX_SCOPE, is_scope},
};
use crate::{
    config::{
        raw::{self, CircuitBreaker, OnwardSubject, SigningAlgorithm},
        report::At,
        resolver::Resolver,
        values::Span,
    },
    egress::{Bounds, Egress},
    issuers::Breaker,
    sha256::sha256,
};

/// The maximum timeout of one call.
const MAX_TIMEOUT: Duration = Duration::from_secs(30);

/// The maximum pause for a provider; some count requests over minutes.
const LONGEST_PAUSE: Duration = Duration::from_secs(300);

/// The bounds of `max_lifetime`. `MIN_SESSION` is the minimum for a session of AWS.
const MAX_LIFETIMES: RangeInclusive<Span> = Span::from_secs(60)..=Span::from_secs(12 * 3600);
const MIN_SESSION: Span = Span::from_secs(900);

/// The beginning of audiences of assertions for Entra ID, in all of its clouds.
const ENTRA: &str = "api://AzureADTokenExchange";

/// An audience that trusts another provider.
#[derive(Debug)]
pub struct Onward {
    audience: Arc<str>,
    /// Identifies this configuration.
    fingerprint: [u8; 32],
    protocol: Protocol,
    /// The audience of assertions.
    assertion_audience: String,
    subject: OnwardSubject,
    /// The algorithm of assertions; `None` for that of the first key.
    algorithm: Option<SigningAlgorithm>,
    scopes: BTreeMap<String, String>,
    default_scopes: Vec<String>,
    /// In seconds.
    max_lifetime: u64,
    revocation_url: Option<Url>,
    bounds: Bounds,
    circuit_breaker: CircuitBreaker,
    egress: Egress,
}

/// By audience.
pub type Onwards = BTreeMap<Arc<str>, Arc<Onward>>;

impl Onward {
    /// Reads the configuration. `ours` is the identifier of Doorward as an issuer; `keys` are those from files, if
    /// there are any.
    pub fn resolve_all(
        root: &raw::Root,
        (ours, keys): (&str, Option<&SigningKeys>),
        egress: &Egress,
        at: &At,
        resolver: &mut Resolver,
    ) -> Onwards {
        let mut onwards = Onwards::new();
        for (index, raw) in root.onward().enumerate() {
            let at = at.index(index);
            if onwards.contains_key(raw.audience.as_str()) {
                resolver.error(&at.key("audience"), format!("`{}` is there twice", raw.audience));
            }
            audiences::check(raw, root, ours, &at, &mut resolver.report);
            rules::check(raw, root, &at, resolver);
            rules::check_names(raw, &at, resolver);
            check_algorithm(raw, root, keys, &at, resolver);
            let Some(onward) = Self::resolve(raw, ours, egress, &at, resolver) else { continue };
            onwards.insert(Arc::clone(&onward.audience), Arc::new(onward));
        }
        onwards
    }

    fn resolve(raw: &raw::Onward, ours: &str, egress: &Egress, at: &At, resolver: &mut Resolver) -> Option<Self> {
        check_spans(raw, at, resolver);
        Breaker::check(raw.circuit_breaker, LONGEST_PAUSE, &at.key("circuit_breaker"), &mut resolver.report);
        let written = raw.assertion.audience.as_deref();
        let lasts = raw.max_lifetime.get().as_secs();
        let protocol = Protocol::resolve(&raw.provider, written, lasts, &at.key("provider"), resolver);
        let revocation_url = match &raw.revocation_url {
            None => None,
            Some(text) => protocol::address(text, &at.key("revocation_url"), resolver),
        };
        let egress = egress.resolve(raw.ca.as_deref(), &at.key("ca"), resolver);
        let protocol = protocol?;
        if revocation_url.is_some() && matches!(protocol.kind, Kind::Aws | Kind::Google) {
            resolver.error(&at.key("revocation_url"), "this kind of provider cannot revoke tokens");
        }
        let Some(assertion_audience) = written.map(str::to_owned).or_else(|| protocol.default_audience.clone()) else {
            resolver
                .error(&at.key("assertion"), "the assertion has no audience")
                .help("set `audience` in `assertion` to what the provider expects, such as its issuer identifier");
            return None;
        };
        if assertion_audience == ours || assertion_audience.is_empty() {
            resolver.error(&at.key("assertion").key("audience"), format!("`{assertion_audience}` is not the provider"));
        }
        if raw.assertion.subject == Some(OnwardSubject::Text(String::new())) {
            resolver.error(&at.key("assertion").key("subject"), "the subject is empty");
        }
        if protocol.kind == Kind::Aws && !(raw.scopes.is_empty() && raw.default_scopes.is_empty()) {
            resolver
                .error(&at.key("scopes"), "AWS knows no scopes")
                .help("narrow what the role may do, or set `session_policy`");
        }
        let subject = raw.assertion.subject.clone().unwrap_or_else(|| match protocol.is_client() {
            true => OnwardSubject::Client,
            false => OnwardSubject::Caller,
        });
        Some(Self {
            audience: raw.audience.as_str().into(),
            // Includes the content of files that it names: a policy that was narrowed gives another token.
            fingerprint: sha256(&[
                &serde_json::to_vec(&(raw, protocol.url.as_str(), &protocol.fixed)).unwrap_or_default()
            ]),
            protocol,
            assertion_audience,
            subject,
            algorithm: raw.assertion.algorithm,
            scopes: raw.scopes.clone(),
            default_scopes: raw.default_scopes.clone(),
            max_lifetime: lasts,
            revocation_url,
            bounds: Bounds { timeout: raw.timeout.get(), max_body: answer::MAX_ANSWER },
            circuit_breaker: raw.circuit_breaker,
            egress: egress?,
        })
    }

    /// Whether the provider knows Doorward as the client that got the tokens of `former`, and so lets it revoke them.
    /// Another provider must not see them.
    fn ends_tokens_of(&self, former: &Self) -> bool {
        self.protocol.url == former.protocol.url
            && self.revocation_url == former.revocation_url
            && self.protocol.client_id() == former.protocol.client_id()
    }

    /// The provider's names of these scopes, without duplicates.
    fn named_there(&self, scopes: &[Arc<str>]) -> Vec<String> {
        let mut named: Vec<String> = Vec::with_capacity(scopes.len());
        for scope in scopes {
            let there = self.scope(scope);
            if !named.iter().any(|known| known == there) {
                named.push(there.to_owned());
            }
        }
        named
    }

    fn scope<'s>(&'s self, scope: &'s str) -> &'s str {
        self.scopes.get(scope).map_or(scope, String::as_str)
    }

    /// The name of the provider in messages.
    fn name(&self) -> String {
        let host = self.protocol.url.host_str().unwrap_or_default();
        format!("the provider of `{}` ({} at {host})", self.audience, self.protocol.kind.as_str())
    }
}

fn check_algorithm(raw: &raw::Onward, root: &raw::Root, keys: Option<&SigningKeys>, at: &At, resolver: &mut Resolver) {
    let is_for_entra = raw.assertion.audience.as_deref().is_some_and(|audience| audience.starts_with(ENTRA));
    // Keys that Doorward makes itself are P-256. Errors in files were reported before.
    let has_files = root.tokens.iter().any(|tokens| !tokens.keys.is_empty());
    let signs = match (raw.assertion.algorithm, keys) {
        (Some(algorithm), _) => Some(algorithm),
        (None, Some(keys)) => keys.algorithm(),
        (None, None) => (!has_files).then_some(SigningAlgorithm::Es256),
    };
    if is_for_entra && signs == Some(SigningAlgorithm::Es256) {
        resolver
            .warning(
                &at.key("assertion"),
                "Entra ID documents only RS256 for such issuers, and the assertion may be signed with another algorithm",
            )
            .help("set `algorithm: RS256`, with an RSA key in `tokens.keys` behind the one that signs everything else");
    }
    let Some(algorithm) = raw.assertion.algorithm else { return };
    let can_sign = match keys {
        Some(keys) => keys.can_sign(algorithm),
        None => algorithm == SigningAlgorithm::Es256 || has_files,
    };
    if can_sign {
        return;
    }
    let (name, make) = match algorithm {
        SigningAlgorithm::Es256 => ("ES256", "-algorithm EC -pkeyopt ec_paramgen_curve:P-256"),
        SigningAlgorithm::Rs256 => ("RS256", "-algorithm RSA -pkeyopt rsa_keygen_bits:3072"),
    };
    resolver
        .error(&at.key("assertion").key("algorithm"), format!("no key in `tokens.keys` signs with {name}"))
        .help(format!("make one with `openssl genpkey {make}` and add it behind the others"));
}

fn check_spans(raw: &raw::Onward, at: &At, resolver: &mut Resolver) {
    let report = &mut resolver.report;
    let is_aws = matches!(raw.provider, raw::OnwardProvider::Aws(_));
    let least = if is_aws { MIN_SESSION } else { *MAX_LIFETIMES.start() };
    report.bounded(at, "max_lifetime", raw.max_lifetime, least..=*MAX_LIFETIMES.end());
    if raw.timeout.get().is_zero() || raw.timeout.get() > MAX_TIMEOUT {
        report.error(&at.key("timeout"), format!("`timeout` is zero, or more than {}", Span(MAX_TIMEOUT)));
    }
    let is_none = format!("is not one scope, or has more than {MAX_SCOPE} bytes");
    for (ours, there) in raw.scopes.iter().filter(|(ours, there)| !is_scope(ours) || !is_scope(there)) {
        report.error(&at.key("scopes").key(ours), format!("`{ours}` or `{there}` {is_none}"));
    }
    for ours in raw.scopes.keys().filter(|ours| ours.contains('*')) {
        report
            .error(&at.key("scopes").key(ours), format!("`{ours}` has a `*`, and no request can name such a scope"))
            .help("choose a name without it; the provider's name may have one");
    }
    for (index, scope) in raw.default_scopes.iter().enumerate().filter(|(_, scope)| !is_scope(scope)) {
        report.error(&at.key("default_scopes").index(index), format!("`{scope}` {is_none}"));
    }
}

#[cfg(test)]
mod tests;
