//! Builds senders from `webhooks` of the configuration: defaults, checks and secrets.

use std::{collections::BTreeMap, sync::Arc};

use aws_lc_rs::hmac;
use http::{HeaderName, header};

use super::{
    Period, Reader, Secret, Webhook,
    certificate::Certificates,
    checks::check_settings,
    hold, passes_from_nobody,
    senders::{self, Field, is_label, sender},
    sns::{self, Sns},
};
use crate::{
    clock::Timestamp,
    config::{
        raw,
        report::At,
        resolve::is_name,
        resolver::{self, Resolver},
        values::Span,
    },
    egress::Egress,
    request::headers::{Class, classify},
};

/// Three days: how long GitHub offers to redeliver.
const REPLAY_WINDOW: Span = Span::from_secs(3 * 86_400);

/// The tolerance of the Standard Webhooks libraries.
const TOLERANCE: Span = Span::from_secs(300);

/// Headers that are forwarded from every sender.
const COMMON_HEADERS: [HeaderName; 2] = [header::CONTENT_TYPE, header::USER_AGENT];

/// Headers that a generic sender must not sign with: they are credentials of another kind, or belong to HTTP.
const NOT_A_SIGNATURE: [HeaderName; 5] =
    [header::AUTHORIZATION, header::COOKIE, header::CONTENT_TYPE, header::CONTENT_LENGTH, header::HOST];

/// Resolves all senders, by name. `at` is the place of the list, `egress` is used to reach a sender's own servers, and
/// `now` is when the configuration is loaded. Also refuses a secret that two senders share, as a delivery for one would
/// be genuine for the other.
pub fn resolve_all(
    webhooks: &[raw::Webhook],
    at: &At,
    egress: &Egress,
    now: Timestamp,
    resolver: &mut Resolver,
) -> BTreeMap<Arc<str>, Arc<Webhook>> {
    let mut resolved: BTreeMap<Arc<str>, Arc<Webhook>> = BTreeMap::new();
    for (index, raw) in webhooks.iter().enumerate() {
        let at = at.index(index);
        let Some(webhook) = Webhook::resolve(raw, &at, egress, now, resolver) else { continue };
        let shares =
            |other: &&Arc<Webhook>| webhook.shares_secret_with(other) && !is_one_source(webhooks, raw, &other.name);
        if let Some(other) = resolved.values().find(shares) {
            resolver
                .error(&at.key("secrets"), format!("`{}` and `{}` have a secret in common", other.name, webhook.name))
                .help("give each its own: a delivery for one would be genuine for the other");
        }
        for other in resolved.values() {
            if let Some(topic) = webhook.topics().iter().find(|topic| other.topics().contains(topic)) {
                resolver.error(&at.key("sns").key("topics"), format!("`{}` takes the messages of `{topic}` too", other.name))
                    .help("list it once: a message has the same id for all subscriptions, so the second would be treated as a duplicate");
            }
        }
        let twin = resolved.values().find(|other| other.identity == webhook.identity);
        if let Some(twin) = twin.filter(|_| raw.identity.is_none()) {
            let message = format!("`{}` and `{}` have the identity `{}`", twin.name, webhook.name, webhook.identity);
            resolver
                .warning(&at, message)
                .help("repository 7 of one is repository 7 of the other; if they are two servers, set `identity`");
        }
        resolved.insert(Arc::clone(&webhook.name), Arc::new(webhook));
    }
    resolved
}

/// Whether an entry takes a secret from the same source as another, which is reported elsewhere without reading
/// secrets.
fn is_one_source(webhooks: &[raw::Webhook], raw: &raw::Webhook, other: &str) -> bool {
    let others = webhooks.iter().filter(|webhook| webhook.name == other);
    let theirs: Vec<String> =
        others.flat_map(|webhook| &webhook.secrets).map(|secret| secret.secret.to_string()).collect();
    raw.secrets.iter().any(|own| theirs.contains(&own.secret.to_string()))
}

/// Writes the defaults into an entry, for display.
pub fn fill_defaults(raw: &mut raw::Webhook) {
    let sender = sender(raw.sender);
    raw.replay_window.get_or_insert(REPLAY_WINDOW);
    raw.unique_bodies.get_or_insert(true);
    raw.max_body.get_or_insert(sender.max_body);
    raw.answer_within.get_or_insert(sender.answer_within);
    let name = identity(raw).to_owned();
    raw.identity.get_or_insert(name);
    if *raw.hold.get_or_insert(sender.never_retries) {
        raw.held.get_or_insert_default();
    }
    if let Some(sns) = &mut raw.sns
        && sns.hosts.is_empty()
    {
        sns.hosts = sns::hosts(&sns.topics);
    }
    let Some(signature) = &mut raw.signature else { return };
    if !signature.plain {
        signature.algorithm.get_or_insert_default();
        signature.encoding.get_or_insert_default();
    }
    if signature.timestamp_header.is_some() {
        signature.tolerance.get_or_insert(TOLERANCE);
    }
}

impl Webhook {
    /// Resolves an entry of `webhooks` and reports its problems.
    pub fn resolve(
        raw: &raw::Webhook,
        at: &At,
        egress: &Egress,
        now: Timestamp,
        resolver: &mut Resolver,
    ) -> Option<Self> {
        let sender = sender(raw.sender);
        let mark = resolver.report.mark();
        // The check of the whole configuration reports a name that no entry can have.
        if is_name(&raw.name) {
            check_name(&raw.name, &at.key("name"), resolver);
        }
        check_settings(raw, at, resolver);
        let generic_headers = generic_headers(raw, at, resolver);
        let identity = resolve_identity(raw, sender, at, resolver);

        let secrets_at = at.key("secrets");
        let sns = resolve_sns(raw, at, egress, resolver);
        if raw.secrets.is_empty() && raw.sender != raw::Sender::AwsSns {
            resolver
                .error(&secrets_at, "there is no secret")
                .help("without one, anybody could send deliveries; write `secrets: [{secret: {file: ...}}]`");
        }
        let mut periods = Vec::new();
        let mut secrets: Vec<Secret> = Vec::new();
        for (index, secret) in raw.secrets.iter().enumerate() {
            let at = secrets_at.index(index);
            let period = resolve_period(secret, &at, resolver);
            periods.push(period);
            secrets.extend(resolve_secret(raw, secret, period, sender, &at.key("secret"), resolver));
        }
        let certificates = raw
            .client_certificate
            .as_ref()
            .and_then(|raw| Certificates::resolve(raw, &at.key("client_certificate"), resolver));
        // There is no form if `signature` names no header, which is reported there.
        let forms = (sender.forms)(raw);
        if !forms.is_empty()
            && !secrets.is_empty()
            && !secrets.iter().any(|secret| forms.iter().any(|form| secret.key.signs(form)))
        {
            resolver
                .error(&secrets_at, "no secret can verify a signature, as `require_signature` asks")
                .help("add the signing token, which begins with `whsec_`");
        }

        if resolver.report.has_errors_since(mark) {
            return None;
        }
        warn_of_periods(&periods, now, &secrets_at, resolver);
        Some(Self { certificates, sns, ..Self::build(raw, identity, generic_headers, secrets) })
    }

    /// Builds a sender whose settings are valid.
    pub(super) fn build(
        raw: &raw::Webhook,
        identity: Arc<str>,
        generic_headers: Vec<HeaderName>,
        secrets: Vec<Secret>,
    ) -> Self {
        let sender = sender(raw.sender);
        let signature = raw.signature.as_ref();
        let names = |names: &[&'static str]| names.iter().map(|name| HeaderName::from_static(name)).collect::<Vec<_>>();
        let configured_id = signature.and_then(|signature| signature.id_header.as_deref()?.parse().ok());
        let configured_facts = senders::configured(&raw.facts).map(|(field, _, at)| (field, vec![at]));
        let known_facts = sender.facts.iter().map(|(field, at)| (*field, at.to_vec()));
        // A list that contains a branch, a tag or an action may contain several.
        let lists = |kind: Field| {
            let known = sender.facts.iter().filter(|(field, _)| *field == kind).flat_map(|(_, at)| *at);
            let configured = senders::configured_lists(&raw.facts).filter(|(field, _)| *field == kind);
            let all: Vec<&str> = known.copied().chain(configured.map(|(_, at)| at)).collect();
            (kind, all)
        };
        let mut allowed_headers = COMMON_HEADERS.to_vec();
        allowed_headers.extend(names(sender.passes));
        allowed_headers.extend(names(sender.events.twins()));
        allowed_headers.extend(generic_headers);
        Self {
            name: raw.name.as_str().into(),
            identity,
            sender,
            forms: (sender.forms)(raw),
            scopes: secrets.iter().map(|secret| secret.scope).collect(),
            secrets,
            id_headers: names(sender.id_headers).into_iter().chain(configured_id).collect(),
            event_header: sender.events.header().map(HeaderName::from_static),
            event_twins: names(sender.events.twins()),
            allowed_headers,
            tolerance: signature.and_then(|signature| signature.tolerance).unwrap_or(TOLERANCE).get(),
            replay_window: raw.replay_window.unwrap_or(REPLAY_WINDOW).get(),
            redeliveries: raw.redeliveries,
            unique_bodies: raw.unique_bodies.unwrap_or(true),
            max_body: raw.max_body.unwrap_or(sender.max_body).bytes(),
            answer_within: raw.answer_within.unwrap_or(sender.answer_within).get(),
            hold: raw.hold.unwrap_or(sender.never_retries).then(|| {
                let limits = raw.held.clone().unwrap_or_default();
                hold::Settings { span: limits.try_for.get(), max: limits.max as usize, max_bytes: limits.max_size.0 }
            }),
            unsigned_pings: raw.unsigned_pings,
            certificates: None,
            sns: None,
            facts: Reader::new(
                known_facts.chain(configured_facts).chain([Field::Changes, Field::Actions].map(lists)),
                sender,
            ),
        }
    }
}

/// Resolves the topics of SNS, which that sender must have and no other may.
fn resolve_sns(raw: &raw::Webhook, at: &At, egress: &Egress, resolver: &mut Resolver) -> Option<Sns> {
    match (&raw.sns, raw.sender == raw::Sender::AwsSns) {
        (Some(sns), true) => Sns::resolve(sns, &at.key("sns"), egress, resolver),
        (None, true) => {
            resolver.error(at, "an `aws_sns` sender needs `sns`").help("list its `topics`");
            None
        }
        (Some(_), false) => {
            resolver.error(&at.key("sns"), "only `aws_sns` has topics").help("remove it");
            None
        }
        (None, false) => None,
    }
}

/// The headers that a generic sender names, which are forwarded to the EventListener unless one is the secret itself.
/// Refuses headers that are removed from every request, or that make it refused, as no delivery could have them.
fn generic_headers(raw: &raw::Webhook, at: &At, resolver: &mut Resolver) -> Vec<HeaderName> {
    let Some(signature) = &raw.signature else { return Vec::new() };
    let at = at.key("signature");
    let mut headers: Vec<HeaderName> = Vec::new();
    let named = [
        ("header", Some(&signature.header)),
        ("id_header", signature.id_header.as_ref()),
        ("timestamp_header", signature.timestamp_header.as_ref()),
    ];
    for (key, name) in named.into_iter().filter_map(|(key, name)| Some((key, name?))) {
        match name.parse::<HeaderName>() {
            Err(_) => drop(resolver.error(&at.key(key), format!("`{name}` is not the name of a header"))),
            Ok(name) if NOT_A_SIGNATURE.contains(&name) => {
                resolver.error(&at.key(key), format!("`{name}` has another meaning"));
            }
            Ok(name) if classify(&name) != Class::EndToEnd => {
                resolver
                    .error(&at.key(key), format!("no delivery can have `{name}`: it is removed or refused before"))
                    .help("it is ambiguous, could forge an identity or belongs to one connection; name another");
            }
            Ok(name) if headers.contains(&name) => {
                resolver.error(&at.key(key), format!("`{name}` is named twice"));
            }
            // A plain secret is not forwarded.
            Ok(name) if passes_from_nobody(&name).is_some() && !(signature.plain && key == "header") => {
                resolver.error(
                        &at.key(key),
                        format!("`{name}` would be forwarded to the EventListener, and Tekton's interceptors give it another meaning"),
                    )
                    .help("name another header");
            }
            Ok(name) => headers.push(name),
        }
    }
    if signature.plain {
        headers.retain(|name| *name != signature.header.as_str());
    }
    headers
}

fn check_name(name: &str, at: &At, resolver: &mut Resolver) {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-_.".contains(&byte);
    if !(1..=63).contains(&name.len()) || !name.bytes().all(plain) {
        resolver
            .error(at, format!("`{name}` cannot be part of an identity"))
            .help("write 1 to 63 lower case letters, digits, `-`, `_` and `.`");
    }
}

/// The name of a sender in identities.
pub fn identity(raw: &raw::Webhook) -> &str {
    raw.identity.as_deref().or_else(|| sender(raw.sender).label).unwrap_or(&raw.name)
}

/// Resolves the name in identities. Two kinds of senders must not share one, or repository 7 of one would be repository
/// 7 of the other.
fn resolve_identity(raw: &raw::Webhook, sender: &senders::Sender, at: &At, resolver: &mut Resolver) -> Arc<str> {
    let name = identity(raw);
    if is_label(name) && sender.label != Some(name) {
        let at = if raw.identity.is_some() { at.key("identity") } else { at.key("name") };
        resolver
            .error(&at, format!("`{name}` is the identity of another kind of sender"))
            .help("set `identity` to a name of its own");
    }
    if raw.identity.is_some() {
        check_name(name, &at.key("identity"), resolver);
    }
    name.into()
}

fn resolve_period(raw: &raw::WebhookSecret, at: &At, resolver: &mut Resolver) -> Period {
    let mut time = |key: &str, text: &Option<String>| {
        let text = text.as_ref()?;
        let time = Timestamp::from_rfc3339(text);
        if time.is_none() {
            resolver
                .error(&at.key(key), format!("`{text}` is not a time"))
                .help("write it as `2026-01-31T18:00:00Z` (RFC 3339)");
        }
        time
    };
    let (not_before, not_after) = (time("not_before", &raw.not_before), time("not_after", &raw.not_after));
    if not_before.zip(not_after).is_some_and(|(from, until)| from >= until) {
        resolver.error(&at.key("not_after"), "`not_after` is not after `not_before`, so the secret is never accepted");
    }
    Period { not_before, not_after }
}

/// Warns if no secret is accepted now. The periods are known even if the secrets are not read.
fn warn_of_periods(periods: &[Period], now: Timestamp, at: &At, resolver: &mut Resolver) {
    if periods.is_empty() || periods.iter().any(|period| period.includes(now)) {
        return;
    }
    let ahead = periods.iter().filter(|period| !period.has_ended(now));
    match ahead.filter_map(|period| period.not_before).min() {
        None => resolver
            .warning(at, "all secrets have expired, so that no delivery is genuine")
            .help("add the secret that the sender signs with now, or set a new `not_after`"),
        Some(first) => resolver
            .warning(at, format!("no secret is accepted before {first}, so that no delivery is genuine until then"))
            .help("add the secret that the sender signs with now, or set an earlier `not_before`"),
    };
}

fn resolve_secret(
    webhook: &raw::Webhook,
    raw: &raw::WebhookSecret,
    period: Period,
    sender: &senders::Sender,
    at: &At,
    resolver: &mut Resolver,
) -> Option<Secret> {
    let secret = resolver.secret(at, &raw.secret)?;
    let key = match (sender.key)(webhook, secret.expose()) {
        Ok(key) => key,
        Err(why) => {
            resolver.error(at, format!("the secret {why}"));
            return None;
        }
    };
    if secret.expose().len() < 16 {
        resolver
            .warning(at, "the secret is shorter than 16 bytes")
            .help("anybody who sees one delivery can guess it; generate one with `openssl rand -hex 32`");
    }
    let is_blank = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_whitespace);
    if is_blank(secret.expose().first()) || is_blank(secret.expose().last()) {
        resolver
            .warning(at, "the secret begins or ends with a blank or a line end, which counts as part of it")
            .help("if the sender has it without, no delivery is accepted: write it without, as `printf '%s'` does");
    }
    Some(Secret { key, scope: scope(&secret), period })
}

/// A name for a secret that does not reveal it.
fn scope(secret: &resolver::Secret) -> [u8; 32] {
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret.expose()), b"doorward webhook replay scope");
    let mut scope = [0; 32];
    scope.iter_mut().zip(tag.as_ref()).for_each(|(to, from)| *to = *from);
    scope
}
