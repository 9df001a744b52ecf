//! Resolves `issuers` of the configuration to [`Issuers`], and reports all problems.

mod login_only;
mod names;

use std::{collections::HashSet, ops::RangeInclusive, sync::Arc, time::Duration};

use http::HeaderValue;
use prometheus_client::metrics::{counter::Counter, family::Family};
use url::Url;

use self::names::check_distinct;
use super::{
    Breaker, Context, Issuer, Issuers, LONGEST_ISSUER_PAUSE,
    checks::{AccessTokenChecks, MAX_SUBJECT},
    claim_path::ClaimPath,
    client_auth::ClientAuth,
    defaults::{self, Defaults},
    discovery::secure_url,
    introspection::{Introspection, IntrospectionSettings},
    key_cache::{COOL_DOWN, FetchSettings, KeyCache, KeySettings, KeySource},
    kinds::Kinds,
    lookup::{Lookup, LookupSettings},
    metrics::OutcomeLabels,
    presets,
    principal::Mapping,
    signed_answer::SignedAnswers,
    tenants::Tenants,
    token_review::{TokenReview, TokenReviewSettings},
    username::{Overlap, UsernameTemplate},
    verified::VerifiedTokens,
};
use crate::{
    authn::{break_glass, principal},
    config::{
        raw::{self, CircuitBreaker, IntrospectionMode, Preset},
        report::At,
        resolver::{Resolver, Secret},
        values::{SecretSource, Span},
    },
    egress::{self, Egress},
    upstream::Access,
};

const MAX_SKEW: Duration = Duration::from_secs(60);

/// The bounds of the time for one query or one fetch.
const TIMEOUTS: RangeInclusive<Span> = Span::from_millis(50)..=Span::from_secs(10);

/// The bounds of the cache time for the answer that a token is not valid.
const NEGATIVE_CACHES: RangeInclusive<Span> = Span::from_secs(1)..=Span::from_secs(60);

/// The bounds of the time for which an unknown key causes no further fetch; other values would have no effect.
const UNKNOWN_KEYS: RangeInclusive<Span> = Span(COOL_DOWN)..=Span::from_secs(3_600);

impl Issuers {
    /// Resolves `issuers` of the configuration. Key sets, cached answers and breakers of `previous` are retained if
    /// their settings are unchanged. Problems are reported; an issuer that cannot be built is left out, and its report
    /// refuses the configuration.
    pub fn resolve(root: &raw::Root, resolver: &mut Resolver, previous: Option<&Self>, context: &Context) -> Self {
        let at = At::root().key("issuers");
        let mut list: Vec<Arc<Issuer>> = Vec::new();
        for (index, raw) in root.issuers.iter().enumerate() {
            let at = at.index(index);
            check_distinct(raw, root.issuers.iter().take(index), &at, resolver);
            let previous = previous.and_then(|previous| previous.get(&raw.name));
            if let Some(issuer) = (Builder { raw, at, resolver, context, previous, root }).build() {
                list.push(Arc::new(issuer));
            }
        }
        report_overlaps(&list, root, &at, resolver);
        let by_name = list.iter().map(|issuer| (Arc::clone(issuer.name()), Arc::clone(issuer))).collect();
        let clusters = root.clusters().cloned().collect();
        Self { list, by_name, verified: VerifiedTokens::default(), context: context.clone(), clusters }
    }
}

fn report_overlaps(list: &[Arc<Issuer>], root: &raw::Root, at: &At, resolver: &mut Resolver) {
    for (index, issuer) in list.iter().enumerate() {
        for other in list.iter().take(index) {
            let position = root.issuers.iter().position(|raw| raw.name == **issuer.name()).unwrap_or(index);
            let at = at.index(position).key("username");
            match issuer.mapping.overlap(&other.mapping) {
                Overlap::None => {}
                Overlap::Same => {
                    let message = format!("a principal of `{}` could have the same user name", other.name());
                    resolver.error(&at, message).help("put `{issuer}#` or a fixed prefix into one of the templates");
                }
                Overlap::Possible => {
                    let message =
                        format!("the names of this template and of the one of `{}` can be the same", other.name());
                    let help = "give each template a prefix of its own, unless you trust both issuers alike";
                    resolver.warning(&at, message).help(help);
                }
            }
        }
    }
}

struct Builder<'a> {
    raw: &'a raw::Issuer,
    at: At,
    resolver: &'a mut Resolver,
    context: &'a Context,
    previous: Option<&'a Arc<Issuer>>,
    root: &'a raw::Root,
}

impl Builder<'_> {
    fn build(mut self) -> Option<Issuer> {
        let raw = self.raw;
        let defaults = Defaults::of(raw.preset);
        let name: Arc<str> = raw.name.as_str().into();
        let identifier: Arc<str> = raw.issuer.as_str().into();
        if matches!(&*name, principal::ANONYMOUS | break_glass::ISSUER) {
            self.error("name", format!("`{name}` is Doorward's own name for callers without an issuer"))
                .help("give it another name: rules with this one in `who.issuers` would match both");
        }
        self.check_names();
        let tenants = self.tenants();
        let mapping = self.mapping(&defaults, &name, &identifier, tenants.as_ref());
        let checks = self.checks(&defaults, &identifier, tenants);
        // A missing file has been reported and refuses the configuration; the rest is still checked.
        let ca = raw.ca.as_ref().and_then(|path| self.resolver.read(&self.at.key("ca"), path));
        let egress = self.egress(ca.as_deref())?;
        let (keys, fetches) = self.keys(&name, &identifier, &checks, ca.clone(), egress.clone())?;
        let introspection = self.introspection(&name, &checks, &keys, ca, &egress);
        let token_review = self.token_review(&name, &checks);
        Some(Issuer { name, checks, mapping: mapping?, keys, fetches, introspection, token_review })
    }

    fn error(&mut self, key: &str, message: impl Into<String>) -> &mut crate::config::report::Problem {
        self.resolver.error(&self.at.key(key), message)
    }

    fn warning(&mut self, key: &str, message: impl Into<String>) -> &mut crate::config::report::Problem {
        self.resolver.warning(&self.at.key(key), message)
    }

    fn checks(&mut self, defaults: &Defaults, identifier: &Arc<str>, tenants: Option<Tenants>) -> AccessTokenChecks {
        let raw = self.raw;
        let algorithms = raw.algorithms.clone().unwrap_or_else(|| defaults.algorithms.to_vec());
        if algorithms.is_empty() {
            self.error("algorithms", "no algorithm is accepted");
        }
        let token_types: Box<[Box<str>]> = match &raw.token_types {
            Some(types) => types.iter().map(|typ| typ.to_ascii_lowercase().into()).collect(),
            None => defaults.token_types.iter().map(|typ| typ.to_ascii_lowercase().into()).collect(),
        };
        if token_types.is_empty() {
            self.error("token_types", "no `typ` is accepted").help("`\"\"` is an absent one");
        }
        self.check_id_tokens(&token_types);
        let skew = self.span("clock_skew", raw.clock_skew, defaults.clock_skew.get(), Some(MAX_SKEW));
        let max_lifetime = self.span("max_lifetime", raw.max_lifetime, defaults.max_lifetime, None);
        let mut required_claims = Vec::new();
        for (claim, values) in &raw.required_claims {
            match ClaimPath::parse(claim) {
                Ok(path) => required_claims.push((path, values.clone())),
                Err(why) => _ = self.error("required_claims", format!("`{claim}` {why}")),
            }
            if values.is_empty() {
                self.error("required_claims", format!("`{claim}` has no accepted value"));
            }
        }
        // If the configuration names another claim for the client, `client_id` is not required.
        let left_out = |name: &&str| {
            presets::left_out(raw.preset).contains(name) || (*name == "client_id" && raw.claims.client.is_some())
        };
        AccessTokenChecks {
            profile_claims: ["client_id", "jti"].into_iter().filter(|name| !left_out(name)).collect(),
            issuer: Arc::clone(identifier),
            audiences: raw.audiences.iter().map(|audience| audience.as_str().into()).collect(),
            algorithms: algorithms.into(),
            token_types,
            required_claims: required_claims.into(),
            skew,
            max_lifetime,
            other_issuer: presets::other_identifier(raw.preset),
            tenants,
            client_is_audience: raw.preset == Some(Preset::Cognito),
            like_id_tokens: raw.preset == Some(Preset::Dex),
            id_tokens_for_project: raw.preset == Some(Preset::Zitadel),
            marks: presets::marks_of_access_tokens(raw.preset),
            longest_subject: match raw.preset {
                Some(Preset::Kubernetes | Preset::Doorward) => principal::MAX_NAME,
                _ => MAX_SUBJECT,
            },
        }
    }

    /// Warns if ID tokens could be mistaken for access tokens. An ID token of the login has the login's client as
    /// audience, and the `typ` `JWT` or none. If access tokens may have both, only some providers mark the kind of a
    /// token in its claims.
    fn check_id_tokens(&mut self, token_types: &[Box<str>]) {
        let raw = self.raw;
        let Some(login) = &raw.login else { return };
        let like_an_id_token = token_types.iter().any(|typ| matches!(&**typ, "" | "jwt"));
        if like_an_id_token && raw.audiences.contains(&login.client.id) && !presets::tells_kinds_apart(raw.preset) {
            self.warning("token_types", "ID tokens of the login could pass for access tokens: both may have the same `typ` and audience")
                .help("have the issuer give access tokens an audience of their own, or the `typ` `at+jwt`, and accept that alone");
        }
    }

    fn mapping(
        &mut self,
        defaults: &Defaults,
        name: &Arc<str>,
        identifier: &str,
        tenants: Option<&Tenants>,
    ) -> Option<Mapping> {
        let raw = self.raw;
        let kubernetes = raw.preset == Some(Preset::Kubernetes);
        let template = raw.username.as_deref().unwrap_or(defaults.username);
        let username = match raw.preset {
            Some(Preset::Doorward) => {
                if raw.username.as_deref().is_some_and(|template| template != defaults.username) {
                    self.error("username", "Doorward's own tokens contain the whole user name").help("leave it out");
                }
                Ok(UsernameTemplate::given())
            }
            _ => UsernameTemplate::parse(template, identifier, kubernetes),
        };
        let username = username.map_err(|why| _ = self.error("username", why)).ok();
        let of_tenants: Box<[_]> = tenants
            .into_iter()
            .flat_map(Tenants::ids)
            .filter_map(|id| {
                let issuer = tenants?.issuer_of(id);
                Some((id.into(), UsernameTemplate::parse(template, &issuer, kubernetes).ok()?))
            })
            .collect();
        if let [(_, one), (_, other), ..] = &*of_tenants
            && one.overlap(other) != Overlap::None
        {
            self.error("username", "people of several tenants could have the same user name")
                .help("put `{issuer}#` into the template: it is replaced by the issuer of their own tenant");
        }
        if raw.username.is_some() && username.as_ref().is_some_and(|username| !username.is_stable()) {
            self.warning("username", format!("`{template}` uses a claim that can pass from one person to another"))
                .help("prefer `{sub}`, which the issuer never reuses");
        }
        let mut clients = HashSet::new();
        for client in &raw.clients {
            if client.subject.as_deref() == Some("") {
                self.error("clients", format!("the `subject` of client `{}` is empty", client.id));
            }
            if client.id.is_empty() || !clients.insert(&client.id) {
                self.error("clients", format!("client `{}` is empty or listed twice", client.id));
            }
        }
        if raw.listed_clients_only && raw.clients.is_empty() {
            self.warning("clients", "only listed clients are accepted, and none is listed");
        }
        let kinds = Kinds::of(raw);
        self.check_kind_of_logins(kinds.of_logins.or(kinds.of_issuer));
        let listed_clients_only = raw.listed_clients_only || defaults::shared_audience(raw).is_some();
        if !listed_clients_only {
            self.check_pseudonyms(kinds.of_issuer);
        }
        let groups = self.path("groups", raw.claims.groups.as_deref(), defaults.groups);
        let scopes = self.path("scopes", raw.claims.scopes.as_deref(), &["scope", "scp"]);
        let client = self.path("client", raw.claims.client.as_deref(), &["client_id", "azp", "cid", "appid"]);
        Some(Mapping {
            name: Arc::clone(name),
            preset: raw.preset,
            username: username?,
            of_tenants,
            kinds,
            listed_clients_only,
            groups: groups.into(),
            scopes: scopes.into(),
            client: client.into(),
            audience_is_client: presets::audience_is_client(raw.preset) && raw.claims.client.is_none(),
        })
    }

    /// Reports a login without a `kind`: its people would be agents, whom rules for people leave out, which nobody
    /// intends.
    fn check_kind_of_logins(&mut self, kind: Option<raw::Kind>) {
        let raw = self.raw;
        let Some(login) = raw.login.as_ref().filter(|_| kind.is_none()) else { return };
        if !raw.clients.iter().any(|client| client.id == login.client.id && client.kind.is_some()) {
            self.error("login", "nothing says the kind of those who log in here, so they would count as agents")
                .help("write `kind: human` into `login`, or into the issuer if its bearer tokens are for people too");
        }
    }

    /// Warns if a trail with pseudonyms would have names of people: a caller with a token of an unlisted client is of the
    /// kind of the issuer, and only people get a pseudonym.
    fn check_pseudonyms(&mut self, kind: Option<raw::Kind>) {
        let has_people = self.raw.login.is_some() && !self.raw.audiences.is_empty();
        if self.root.audit.pseudonym_key.is_some() && has_people && kind != Some(raw::Kind::Human) {
            self.warning(
                "clients",
                "nothing says that callers with a bearer token of a client that is not listed are people, so the audit trail has the \
                 names of those who are in spite of `pseudonym_key`",
            )
            .help(
                "list the clients through which people get tokens, with `kind: human`, and set `listed_clients_only: true`; or write \
                 `kind: human` into the issuer if programs get no tokens for these `audiences`",
            );
        }
    }

    fn path(&mut self, key: &str, written: Option<&str>, defaults: &[&str]) -> Vec<ClaimPath> {
        match written.map(ClaimPath::parse) {
            None => defaults.iter().filter_map(|path| ClaimPath::parse(path).ok()).collect(),
            Some(Ok(path)) => vec![path],
            Some(Err(why)) => {
                let at = self.at.key("claims").key(key);
                self.resolver.error(&at, format!("`{}` {why}", written.unwrap_or_default()));
                Vec::new()
            }
        }
    }

    fn span(&mut self, key: &str, written: Option<Span>, default: Duration, most: Option<Duration>) -> Duration {
        let span = written.map_or(default, Span::get);
        if let Some(most) = most.filter(|most| span > *most) {
            self.error(key, format!("`{key}` is more than {}", Span(most)));
        }
        span
    }

    /// Reports the `key` below `at` if it is not within `bounds`; `help` says why.
    fn bounded(&mut self, at: &At, key: &str, span: Span, bounds: RangeInclusive<Span>, help: &str) -> Duration {
        if let Some(problem) = self.resolver.report.bounded(at, key, span, bounds) {
            problem.help(help);
        }
        span.get()
    }

    fn url(&mut self, at: &At, written: Option<&String>) -> Option<Url> {
        let text = written?;
        // The text is not repeated, as it may hold a password.
        secure_url(text).map_err(|why| _ = self.resolver.error(at, format!("this {why}"))).ok()
    }

    /// The value of `Authorization` with the token of `source`, which is at `at`.
    fn bearer(&mut self, at: &At, source: &SecretSource) -> Option<HeaderValue> {
        let token = self.resolver.secret(at, source)?;
        let bearer = egress::bearer(token.expose());
        if bearer.is_none() {
            self.resolver
                .error(at, format!("{source} has characters that are not allowed in a header"))
                .help("it must contain only the token, on one line");
        }
        bearer
    }

    fn egress(&mut self, ca: Option<&[u8]>) -> Option<Egress> {
        let Some((path, ca)) = self.raw.ca.as_ref().zip(ca) else { return Some(self.context.egress.clone()) };
        if let Some(previous) = self.previous.filter(|previous| previous.keys.settings().ca.as_deref() == Some(ca)) {
            return Some(previous.keys.egress().clone());
        }
        let path = self.resolver.path(path);
        self.context.egress.trusting(ca).map_err(|why| _ = self.error("ca", format!("{}: {why}", path.display()))).ok()
    }

    fn keys(
        &mut self,
        name: &Arc<str>,
        identifier: &Arc<str>,
        checks: &AccessTokenChecks,
        ca: Option<Vec<u8>>,
        egress: Egress,
    ) -> Option<(Arc<KeyCache>, Arc<FetchSettings>)> {
        let raw = self.raw;
        let at = self.at.key("keys");
        let url = self.url(&at.key("url"), raw.keys.url.as_ref());
        let bearer = raw.keys.bearer.as_ref().and_then(|source| self.bearer(&at.key("bearer"), source));
        let keep_in = raw.keys.keep_in.as_deref().map(|folder| self.resolver.path(folder));
        let is_here = !self.resolver.is_elsewhere();
        if let Some(folder) = keep_in.as_deref().filter(|folder| is_here && folder.exists() && !folder.is_dir()) {
            self.resolver.error(&at.key("keep_in"), format!("{} is not a folder", folder.display()));
        }
        let help =
            "a token with an unknown key waits up to four times as long, and 5s more if the disk of `keep_in` is slow";
        let timeout = raw.keys.timeout.unwrap_or(defaults::KEYS_TIMEOUT);
        let timeout = self.bounded(&at, "timeout", timeout, TIMEOUTS, help);
        let help = "unknown keys cause at most one fetch in 30s, and without them the set is fetched within an hour";
        let negative_for = raw.keys.negative_cache.unwrap_or(defaults::KEYS_NEGATIVE_CACHE);
        let negative_for = self.bounded(&at, "negative_cache", negative_for, UNKNOWN_KEYS, help);
        let fetches = Arc::new(FetchSettings { bearer, timeout, negative_for });
        let endpoint_wanted = raw.introspection.as_ref().is_some_and(|introspection| introspection.endpoint.is_none());
        let source = match raw.preset {
            Some(Preset::Doorward) => KeySource::Own,
            Some(Preset::GithubOauth) => KeySource::Nowhere,
            _ => KeySource::Issuer,
        };
        let settings = KeySettings {
            name: Arc::clone(name),
            issuer: Arc::clone(identifier),
            discover: source == KeySource::Issuer && (url.is_none() || raw.login.is_some() || endpoint_wanted),
            url,
            algorithms: checks.algorithms.clone(),
            max_stale: raw.keys.max_stale.unwrap_or(defaults::MAX_STALE).get(),
            keep_in,
            ca,
            source,
            tenants: checks.tenants.clone(),
        };
        if let Some(previous) = self.previous.filter(|previous| *previous.keys.settings() == settings) {
            return Some((Arc::clone(&previous.keys), fetches));
        }
        let Context { clock, metrics, refetches, .. } = self.context;
        let (clock, metrics, refetches) = (clock.clone(), metrics.clone(), Arc::clone(refetches));
        let cache = KeyCache::new(settings, Arc::clone(&fetches), egress, clock, metrics, refetches);
        Some((Arc::new(cache), fetches))
    }

    fn introspection(
        &mut self,
        name: &Arc<str>,
        checks: &AccessTokenChecks,
        keys: &Arc<KeyCache>,
        ca: Option<Vec<u8>>,
        egress: &Egress,
    ) -> Option<Arc<Introspection>> {
        let raw = self.raw.introspection.as_ref()?;
        if raw.mode == IntrospectionMode::Never {
            return None;
        }
        let at = self.at.key("introspection");
        let endpoint = self.url(&at.key("endpoint"), raw.endpoint.as_ref());
        let client = ClientAuth::resolve(&raw.client, &checks.issuer, &at.key("client"), self.resolver)?;
        if client.is_public() {
            self.resolver.error(&at.key("client"), "introspection needs a client with a credential").help(
                "give it a secret, a key or an assertion; otherwise anybody could query tokens (RFC 7662 section 2.1)",
            );
        }
        let cache = raw.cache.unwrap_or(defaults::INTROSPECTION_CACHE).get();
        if cache > Duration::from_secs(60) {
            let help = "a revoked token is accepted for as long as this";
            self.resolver.error(&at.key("cache"), "`cache` is more than 60s").help(help);
        }
        let timeout = raw.timeout.unwrap_or(defaults::INTROSPECTION_TIMEOUT);
        let help = "the caller waits for as long as this, in each of `tries`";
        let timeout = self.bounded(&at, "timeout", timeout, TIMEOUTS, help);
        let tries = raw.tries.unwrap_or(defaults::INTROSPECTION_TRIES);
        if let Some(problem) = self.resolver.report.bounded(&at, "tries", tries, 1..=5) {
            problem.help("each try takes up to `timeout` while the caller waits");
        }
        let lookup = self.lookup_settings(&at, cache, raw.negative_cache, raw.circuit_breaker);
        let ours = checks.audiences.iter().cloned().chain([client.client_id().as_ref().into()]);
        let signed_for = raw.signed.then(|| (ours.collect(), checks.skew));
        let settings = IntrospectionSettings {
            issuer: Arc::clone(name),
            raw: raw.clone(),
            client,
            ca,
            endpoint,
            timeout,
            tries,
            signed_for,
        };
        let previous = self.previous.filter(|previous| *previous.identifier() == checks.issuer);
        if let Some(previous) = previous.and_then(|previous| previous.introspection.as_ref())
            && *previous.settings() == settings
            && previous.keys().is_none_or(|former| Arc::ptr_eq(former, keys))
        {
            return Some(Arc::clone(previous));
        }
        let signed = settings.signed_for.clone().map(|(audiences, skew)| SignedAnswers {
            keys: Arc::clone(keys),
            issuer: Arc::clone(&checks.issuer),
            audiences,
            algorithms: checks.algorithms.clone(),
            skew,
            clock: self.context.clock.clone(),
        });
        let outcomes = self.context.metrics.introspections.clone();
        let lookup = self.lookup(name, lookup, outcomes);
        let clock = self.context.clock.clone();
        Some(Arc::new(Introspection::new(settings, egress.clone(), clock, lookup, signed)))
    }

    fn token_review(&mut self, name: &Arc<str>, checks: &AccessTokenChecks) -> Option<Arc<TokenReview>> {
        let raw = self.raw.token_review.as_ref()?;
        let at = self.at.key("token_review");
        if self.raw.preset != Some(Preset::Kubernetes) {
            self.resolver.error(&at, "only a Kubernetes cluster reviews tokens").help("set `preset: kubernetes`");
        }
        // A missing upstream is reported with the configuration as a whole.
        let mut upstreams = self.root.upstreams.iter().enumerate();
        let (index, upstream) = upstreams.find(|(_, upstream)| upstream.name == raw.upstream)?;
        let cache = raw.cache.unwrap_or(defaults::TOKEN_REVIEW_CACHE).get();
        if cache > Duration::from_secs(10) {
            let help = "a token of a deleted pod is accepted for as long as this";
            self.resolver.error(&at.key("cache"), "`cache` is more than 10s").help(help);
        }
        let timeout = raw.timeout.unwrap_or(defaults::TOKEN_REVIEW_TIMEOUT);
        let timeout = self.bounded(&at, "timeout", timeout, TIMEOUTS, "the caller waits for as long as this");
        let lookup = self.lookup_settings(&at, cache, raw.negative_cache, raw.circuit_breaker);
        // Problems of the upstream are reported once, as an upstream.
        let told = std::mem::take(&mut self.resolver.report);
        let access = Access::resolve(upstream, &At::root().key("upstreams").index(index), self.resolver);
        let authorities = access.as_ref().and_then(|access| access.tls()?.authorities.as_ref());
        let ca = authorities.map(|pem| pem.read(self.resolver));
        self.resolver.report = told;
        let server = self.url(&at.key("upstream"), Some(&access.as_ref()?.url().to_string()))?;
        let ca = match ca {
            Some(ca) => Some(ca?),
            None => None,
        };
        let bearer = self.bearer(&at.key("bearer"), &raw.bearer)?;
        let server_name = access.as_ref().and_then(|access| access.tls()?.server_name.clone());
        let audiences = checks.audiences.clone();
        let settings = TokenReviewSettings { server, server_name, audiences, timeout, lookup, ca, bearer };
        if let Some(previous) = self.previous.and_then(|previous| previous.token_review.as_ref())
            && *previous.settings() == settings
        {
            return Some(Arc::clone(previous));
        }
        let ca = settings.ca.as_ref().map(Secret::expose);
        let egress = Egress::direct(ca, settings.server_name.clone()).map_err(|why| {
            let of = authorities.map_or_else(|| "the system's certificate authorities".to_owned(), ToString::to_string);
            _ = self.resolver.error(&at.key("upstream"), format!("{of}: {why}"));
        });
        let egress = egress.ok()?;
        let outcomes = self.context.metrics.token_reviews.clone();
        let lookup = self.lookup(name, settings.lookup, outcomes);
        let review = TokenReview::new(settings, egress, lookup);
        review.map_err(|why| _ = self.resolver.error(&at.key("upstream"), why)).ok().map(Arc::new)
    }

    /// Reads the cache times and the circuit breaker of queries about tokens, below `at`.
    fn lookup_settings(
        &mut self,
        at: &At,
        positive_for: Duration,
        negative_cache: Option<Span>,
        circuit_breaker: CircuitBreaker,
    ) -> LookupSettings {
        let help = "with less, each request with an invalid token is a query; a token that becomes valid is refused for as long as this";
        let negative_for = negative_cache.unwrap_or(defaults::NEGATIVE_CACHE);
        let negative_for = self.bounded(at, "negative_cache", negative_for, NEGATIVE_CACHES, help);
        Breaker::check(circuit_breaker, LONGEST_ISSUER_PAUSE, &at.key("circuit_breaker"), &mut self.resolver.report);
        LookupSettings { positive_for, negative_for, circuit_breaker }
    }

    fn lookup(&self, name: &Arc<str>, settings: LookupSettings, outcomes: Family<OutcomeLabels, Counter>) -> Lookup {
        let Context { clock, control, .. } = self.context;
        Lookup::new(Arc::clone(name), settings, clock.clone(), control.clone(), outcomes)
    }
}
