//! A generation: everything that one configuration produces. It is built as a whole beside the one in force and swapped
//! in as a whole. A request is decided by the generation that it began with.

mod defaults;

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use ipnet::IpNet;

pub use self::defaults::fill_defaults;
use crate::{
    admin::{
        metrics::{RequestMetrics, RouteMetrics},
        server::AdminSettings,
    },
    assertions::{self, Assertions},
    audit,
    authn::break_glass::{self, BreakGlass},
    authz::{Policy, check_cases, claims_named},
    clock::Clock,
    config::{
        raw::{self, Limits},
        report::At,
        resolver::Resolver,
    },
    downstream,
    issuers::{self, Issuers},
    logging,
    oidc::{Login, LoginClient, LoginIssuer, LoginMetrics, Provider},
    pages::Brand,
    request::route::{self, Parts, Routes},
    sessions::{self, Sessions, keyring::KeyRing},
    store::{self, Named, Revocations},
    sts::{self, OwnIssuer},
    upstream::Upstream,
    webhooks,
};

/// A generation in force.
#[derive(Debug)]
pub struct Snapshot {
    /// Counts from 1.
    pub number: u64,
    pub raw: Arc<raw::Root>,
    pub limits: Arc<Limits>,
    pub routes: Routes,
    pub upstreams: Vec<Arc<Upstream>>,
    pub issuers: Issuers,
    pub policy: Arc<Policy>,
    /// Names of the claims that the policy reads, for the audit trail.
    pub claims: Option<Arc<[Arc<str>]>>,
    pub assertions: Assertions,
    /// Doorward as a token issuer, if it is one.
    pub own_issuer: Option<OwnIssuer>,
    pub sessions: Sessions,
    pub login: Login,
    /// The branding of Doorward's pages.
    pub brand: Brand,
    pub break_glass: Option<BreakGlass>,
    /// Keyed by the name of the listener.
    trusted_proxies: HashMap<Arc<str>, Arc<[IpNet]>>,
    pub max_mirror_age: Duration,
    /// Counts requests that match no route.
    pub unrouted: Arc<RouteMetrics>,
}

impl Snapshot {
    /// Tells revocations under which names this generation knows the issuers.
    pub fn name_issuers(&self, revocations: &Revocations) {
        let own = self.own_issuer.as_ref().map(|own| (own.name(&self.issuers), own.issuer()));
        let mut named: Vec<Named> = Vec::new();
        for issuer in self.issuers.iter() {
            let own = own.filter(|(name, _)| **issuer.name() == **name).map(|(_, identifier)| identifier);
            let identifier = Arc::clone(own.unwrap_or_else(|| issuer.identifier()));
            named.push(Named { name: Arc::clone(issuer.name()), identifier });
        }
        if let Some((name, identifier)) = own.filter(|(name, _)| self.issuers.get(name).is_none()) {
            named.push(Named { name: name.into(), identifier: Arc::clone(identifier) });
        }
        // These have no identifier but their name.
        let webhooks = self.raw.webhooks.iter().map(|webhook| webhooks::issuer(&webhook.name));
        let others = webhooks.chain([break_glass::ISSUER.to_owned()]).map(Arc::<str>::from);
        named.extend(others.map(|name| Named { identifier: Arc::clone(&name), name }));
        revocations.know(&named);
    }

    /// Supplies the keys of this generation for verifying Doorward's own tokens. All generations share one key set, so
    /// only the generation that is in force, or about to be, may say what is in it.
    pub fn supply_token_keys(&self) {
        if let Some(own_issuer) = &self.own_issuer {
            own_issuer.supply(&self.issuers);
        }
    }
}

/// What a configuration resolves to without a running process. [`crate::config::load`] reports what is wrong. If
/// anything is, parts are missing and the whole is discarded.
#[derive(Debug)]
pub struct Resolved {
    pub downstream: Option<downstream::Settings>,
    pub admin: AdminSettings,
    pub audit: Option<audit::Settings>,
    pub sessions: Option<sessions::Settings>,
    pub store: Option<store::Settings>,
    assertion_keys: Option<assertions::Keys>,
    tokens: Option<sts::Settings>,
    root: Arc<raw::Root>,
    routes: Routes,
    upstreams: Vec<Arc<Upstream>>,
    issuers: Issuers,
    policy: Option<Policy>,
    /// The clients at the providers where people sign in, in the order of the configuration.
    clients: Vec<LoginClient>,
    break_glass: Option<BreakGlass>,
    brand: Option<Brand>,
}

/// What resolving needs.
#[derive(Clone, Debug)]
pub struct Context {
    pub issuers: issuers::Context,
    pub requests: RequestMetrics,
}

impl Context {
    pub fn clock(&self) -> &Clock {
        &self.issuers.clock
    }
}

/// Turns the written configuration into what the program runs on. `previous` provides what outlives a generation: keys,
/// caches, and connections whose settings have not changed.
pub fn resolve(root: &raw::Root, resolver: &mut Resolver, context: &Context, previous: Option<&Snapshot>) -> Resolved {
    let (at, egress, now) = (At::root(), &context.issuers.egress, context.clock().now());
    resolver.makes_folder_of(&root.store.path);
    if root.store.redis.is_none() {
        resolver.written(&at.key("store").key("path"), &root.store.path);
    }
    logging::check(&root.log, &at.key("log"), resolver);
    let downstream = downstream::Settings::resolve(&root.listeners, &root.limits, now, resolver, &at);
    let admin = AdminSettings::resolve(&root.admin, &at.key("admin"), resolver);
    let audit = audit::Settings::resolve(&root.audit, egress, resolver, &at.key("audit"));
    let sessions = sessions::Settings::resolve(&root.sessions, resolver, &at.key("sessions"));
    let has_keys = !root.sessions.keys.is_empty();
    let store = store::Settings::resolve(&root.store, has_keys, resolver, &at.key("store"));
    let asserts = root.routes.iter().any(|route| route.kind == raw::RouteKind::Webhook);
    let shared = root.store.redis.is_some() && asserts;
    let assertion_keys = assertions::Keys::resolve(&root.assertions, shared, resolver, &at.key("assertions"));
    let issuers = Issuers::resolve(root, resolver, previous.map(|snapshot| &snapshot.issuers), &context.issuers);
    let clients = LoginClient::resolve_all(&root.issuers, &at.key("issuers"), resolver);
    let upstreams: BTreeMap<Arc<str>, Arc<Upstream>> = root
        .upstreams
        .iter()
        .enumerate()
        .filter_map(|(index, raw)| Upstream::resolve(raw, &root.limits, &at.key("upstreams").index(index), resolver))
        .inspect(|upstream| {
            let before =
                previous.and_then(|known| known.upstreams.iter().find(|known| known.name() == upstream.name()));
            if let Some(before) = before {
                upstream.keep_token_of(before);
            }
        })
        .map(|upstream| (Arc::clone(upstream.name()), upstream))
        .collect();
    let webhooks = webhooks::resolve_all(&root.webhooks, &at.key("webhooks"), egress, now, resolver);
    for webhook in webhooks.values() {
        let before = previous.and_then(|known| known.routes.of_webhook(webhook.name())?.webhook.as_deref());
        if let Some(before) = before {
            webhook.keep_fetched_of(before);
        }
    }
    let tokens = sts::Settings::resolve(root, &issuers, &upstreams, egress, now, resolver);
    let parts = Parts { upstreams: &upstreams, webhooks: &webhooks, issuers: &issuers, metrics: &context.requests };
    let routes = route::resolve(root, parts, resolver);
    let policy = Policy::compile(root, resolver);
    check_cases(root, &mut resolver.report);
    let break_glass =
        root.break_glass.as_ref().and_then(|raw| BreakGlass::resolve(raw, &at.key("break_glass"), now, resolver));
    let brand = Brand::resolve(&root.pages, resolver, &at.key("pages"));
    Resolved {
        downstream,
        admin,
        audit,
        sessions,
        store,
        assertion_keys,
        tokens,
        root: Arc::new(root.clone()),
        routes,
        upstreams: upstreams.into_values().collect(),
        issuers,
        policy,
        clients,
        break_glass,
        brand,
    }
}

/// What a generation needs from a running process.
#[derive(Clone, Debug)]
pub struct Shared {
    pub sessions: sessions::Shared,
    pub logins: LoginMetrics,
    pub requests: RequestMetrics,
    /// The keys of sessions, if the configuration has none.
    pub keys: KeyRing,
    /// The key of assertions, if the configuration has none.
    pub assertion_keys: assertions::Keys,
    /// The keys of tokens, if the configuration has none.
    pub token_keys: sts::SigningKeyRing,
}

impl Snapshot {
    /// The proxies whose `X-Forwarded-*` headers are trusted on a listener.
    pub fn trusted_proxies(&self, listener: &str) -> &[IpNet] {
        self.trusted_proxies.get(listener).map_or(&[], |nets| nets)
    }

    /// Keeps the trusted proxies of listeners that are no longer configured. These listeners stay open until a restart,
    /// and clients that come through the proxy in front of them are still those that it names.
    pub fn keep_trust_of(&mut self, before: &Self) {
        for (listener, proxies) in &before.trusted_proxies {
            self.trusted_proxies.entry(Arc::clone(listener)).or_insert_with(|| Arc::clone(proxies));
        }
    }
}

impl Resolved {
    pub fn routes(&self) -> &Routes {
        &self.routes
    }

    pub fn issuers(&self) -> &Issuers {
        &self.issuers
    }

    pub fn policy(&self) -> Option<&Policy> {
        self.policy.as_ref()
    }

    pub fn into_policy(self) -> Option<Policy> {
        self.policy
    }

    pub fn upstreams(&self) -> &[Arc<Upstream>] {
        &self.upstreams
    }

    /// Doorward's clients at the providers where people sign in.
    pub fn clients(&self) -> &[LoginClient] {
        &self.clients
    }

    /// How long a token key signs, if Doorward generates the keys.
    pub fn token_rotation(&self) -> Option<Duration> {
        self.tokens.as_ref().and_then(sts::Settings::rotation)
    }

    /// Supplies the configured keys for verifying Doorward's own tokens. Generated keys are in the store of a running
    /// process.
    pub fn supply_token_keys(&self) {
        if let Some(tokens) = &self.tokens {
            tokens.supply(&self.issuers);
        }
    }

    /// Makes a generation of what was resolved without a problem; `None` if there was one.
    pub fn into_snapshot(self, number: u64, shared: &Shared, clock: &Clock) -> Option<Snapshot> {
        let settings = self.sessions?;
        let policy = self.policy?;
        let brand = self.brand?;
        let providers: Vec<Arc<dyn Provider>> = self
            .clients
            .into_iter()
            .filter_map(|LoginClient { issuer, client }| {
                let issuer = Arc::clone(self.issuers.get(&issuer)?);
                Some(Arc::new(LoginIssuer::new(issuer, client, clock.clone())) as Arc<dyn Provider>)
            })
            .collect();
        let keys = settings.keys.clone().unwrap_or_else(|| shared.keys.clone());
        let assertion_keys = self.assertion_keys.unwrap_or_else(|| shared.assertion_keys.clone());
        let assertions = Assertions::new(&self.root.assertions, self.root.external_host.as_deref(), assertion_keys);
        let sessions = Sessions::new(settings, keys, &providers, shared.sessions.clone());
        let own_issuer = self.tokens.map(|settings| OwnIssuer::new(settings, shared.token_keys.clone()));
        let login = Login::new(providers, sessions.clone(), shared.logins.clone(), brand.clone());
        let root = self.root;
        let trusted = root
            .listeners
            .iter()
            .map(|listener| (Arc::from(listener.name.as_str()), Arc::from(listener.trusted_proxies.as_slice())));
        Some(Snapshot {
            number,
            limits: Arc::new(root.limits.clone()),
            routes: self.routes,
            upstreams: self.upstreams,
            issuers: self.issuers,
            claims: claims_named(&root),
            policy: Arc::new(policy),
            assertions,
            own_issuer,
            sessions,
            login,
            brand,
            break_glass: self.break_glass,
            trusted_proxies: trusted.collect(),
            max_mirror_age: root.store.max_mirror_age.get(),
            unrouted: Arc::new(shared.requests.route(&"-".into())),
            raw: root,
        })
    }
}
