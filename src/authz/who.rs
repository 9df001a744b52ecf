//! The callers that a rule applies to, or that get a grant.

mod compile;
mod unmet;

use std::sync::Arc;

use serde_json::Value;

use crate::{
    authn::{Actor, Kind, Principal, Scheme, principal::ANONYMOUS},
    config::raw,
    webhooks,
};

use super::{
    condition::{Condition, Met, Reading, listed, or_none},
    issuers::{ClaimPath, IssuerFacts},
    names::{Names, same_user},
};

pub(super) use compile::{Purpose, compile, facts_of_an_issuer};

/// A principal and what is known of its issuer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Caller<'a> {
    pub principal: &'a Principal,
    pub issuer: Option<&'a IssuerFacts>,
}

/// One condition on a principal.
#[derive(Debug)]
pub(super) enum Who {
    Anonymous,
    Authenticated {
        /// Whether `who` has no other key. Read wide, the rule then applies to everybody.
        everybody: bool,
    },
    Issuers {
        named: NamedIssuers,
        /// Whether the rule [may be about actors](speaks_of_actors), whose issuer then counts too if it is read wide.
        with_actors: bool,
    },
    Kind {
        kind: Kind,
        /// Whether the rule also considers the person behind an actor.
        behalf: bool,
    },
    Groups {
        key: &'static str,
        names: Names,
    },
    Scopes(Names),
    /// The implied condition of scopes that no other key backs: it excludes people and whoever acts for one, because
    /// what a client asks for is no right of the person. Scopes in a token of Doorward's own were given by rules, and
    /// count for whoever has the token.
    NoPerson,
    Subjects {
        key: &'static str,
        names: Names,
        issuers: NamedIssuers,
        of: Party,
    },
    Users(Box<[Arc<str>]>),
    Clients {
        names: Names,
        issuers: NamedIssuers,
        of: Party,
    },
    Claim {
        path: ClaimPath,
        values: Box<[Value]>,
    },
    Repositories(Box<[(Arc<str>, Arc<str>)]>),
    /// Kinds and numbers of the accounts that cause deliveries.
    Senders(Box<[(Arc<str>, Arc<str>)]>),
    /// Subjects, and prefixes of subjects that end in a colon.
    ServiceAccounts(Box<[Arc<str>]>),
    /// Somebody acts for the principal.
    ActedFor,
}

/// The issuers that a rule names, and webhooks as `webhook:NAME`.
#[derive(Clone, Debug)]
pub(super) struct NamedIssuers {
    names: Names,
    /// Whether the only issuer is implied because the rule names none. Read wide, others match as well.
    implied: bool,
}

impl NamedIssuers {
    pub(super) fn names(&self) -> &Names {
        &self.names
    }

    fn have(&self, principal: &Principal, reading: Reading) -> bool {
        self.names.contains(&principal.issuer) || (reading == Reading::Wide && self.implied)
    }

    /// Whether an actor is of one of them. Only Doorward names tasks, so that a task's name alone identifies it.
    fn have_actor(&self, actor: &Actor) -> bool {
        actor.is_service_account() || actor.issuer.as_ref().is_some_and(|issuer| self.names.contains(issuer))
    }

    /// Whether an actor is of one of them, or may be.
    fn may_have_actor(&self, actor: &Actor) -> bool {
        match &actor.issuer {
            Some(issuer) => self.names.contains(issuer),
            None => !actor.is_service_account(),
        }
    }
}

/// The party that a condition is about, if somebody acts for a person.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Party {
    /// Read wide, the actor as well.
    Principal,
    Actor,
    /// The person and never the actor, whom other keys are about.
    Person,
}

impl<'a> Caller<'a> {
    /// The client that makes the request.
    fn client(&self) -> Option<&'a Arc<str>> {
        self.principal.requesting_client(self.issuer.is_some_and(|issuer| issuer.gives_scopes_by_rules))
    }
}

impl Who {
    pub(super) fn met(&self, caller: &Caller<'_>, reading: Reading) -> Met {
        let principal = caller.principal;
        let actor = principal.actor.as_ref();
        let wide = reading == Reading::Wide;
        // Read wide, a value that an issuer should have provided and did not counts as the worst that it could have
        // been.
        let or_withheld = |met: bool, withheld: fn(&IssuerFacts, &Principal) -> bool| match met {
            true => Met::Yes,
            false if wide && caller.issuer.is_some_and(|issuer| withheld(issuer, principal)) => Met::Withheld,
            false => Met::No,
        };
        match self {
            Self::Anonymous => is_anonymous(principal).into(),
            Self::Authenticated { everybody } => (!is_anonymous(principal) || (wide && *everybody)).into(),
            Self::Issuers { named, with_actors } => {
                let theirs = || wide && *with_actors && actor.is_some_and(|actor| named.may_have_actor(actor));
                (named.have(principal, reading) || theirs()).into()
            }
            Self::Kind { kind, behalf } => {
                let own = principal.kind_of_subject() == *kind && (wide || *behalf || actor.is_none());
                (own || (*kind == Kind::Agent && actor.is_some())).into()
            }
            Self::Groups { names, .. } => {
                or_withheld(names.contains_any(&principal.groups), IssuerFacts::withholds_groups)
            }
            Self::Scopes(names) => or_withheld(names.contains_any(&principal.scopes), IssuerFacts::withholds_scopes),
            Self::NoPerson => {
                let is_given = caller.issuer.is_some_and(|issuer| issuer.gives_scopes_by_rules);
                (wide || is_given || principal.kind_of_subject() != Kind::Human).into()
            }
            Self::Subjects { names, issuers, of, .. } => {
                let is_own = *of != Party::Actor && names.contains(&principal.subject);
                let own = is_own && issuers.have(principal, reading);
                // Read wide, the issuer of either is enough, which the condition on issuers requires.
                let is_named = |actor: &Actor| names.contains(&actor.subject) && (wide || issuers.have_actor(actor));
                let is_of_actor = *of == Party::Actor || (wide && *of == Party::Principal);
                let theirs = is_of_actor && actor.is_some_and(is_named);
                (own || theirs).into()
            }
            Self::Users(users) => users.iter().any(|user| same_user(user, &principal.username, reading)).into(),
            Self::Clients { names, issuers, of } => {
                let is_named = |client: Option<&Arc<str>>| client.is_some_and(|client| names.contains(client));
                let of_named = wide || actor.is_none_or(|actor| issuers.have_actor(actor));
                let (client, own) = (caller.client(), principal.client.as_ref());
                let asks = is_named(client) && of_named;
                let is_own_named = issuers.have(principal, reading);
                let issued = is_named(own) && is_own_named;
                match (reading, of) {
                    (Reading::Wide, _) if asks || issued => Met::Yes,
                    // An actor need not say which client it is, so that it may be any.
                    (Reading::Wide, _) => match caller.issuer {
                        Some(issuer) if issuer.withholds_client(client) => Met::Withheld,
                        Some(issuer) if is_own_named && issuer.withholds_client(own) => Met::Withheld,
                        _ => Met::No,
                    },
                    (Reading::Strict, Party::Actor) => asks.into(),
                    // A named actor alone does not open this to everybody it acts for: a named client must have got the
                    // token, too.
                    (Reading::Strict, Party::Principal | Party::Person) => (asks && issued).into(),
                }
            }
            Self::Claim { path, values } => match path.find(&principal.claims) {
                Some(Value::Array(given)) => given.iter().any(|given| is_claim(given, values, reading)).into(),
                Some(given) => is_claim(given, values, reading).into(),
                None if wide && principal.may_have_had(&path.claim()) => Met::Withheld,
                None if wide && caller.issuer.is_some_and(|issuer| issuer.withholds(path, principal)) => Met::Withheld,
                None => Met::No,
            },
            Self::Repositories(named) => repository(caller).map_or(Met::No, |of| of.met(named, reading)),
            Self::Senders(named) => sender(principal).map_or(Met::No, |of| of.met(named, reading)),
            Self::ServiceAccounts(accounts) => (caller.issuer.is_some_and(|issuer| issuer.service_accounts)
                && accounts.iter().any(|account| match account.ends_with(':') {
                    true => principal.subject.starts_with(&**account),
                    false => principal.subject == *account,
                }))
            .into(),
            Self::ActedFor => actor.is_some().into(),
        }
    }

    /// The scopes of which it requires one, if it is a condition on scopes.
    pub(super) fn scopes(&self) -> Option<&Names> {
        match self {
            Self::Scopes(names) => Some(names),
            _ => None,
        }
    }

    /// Describes the condition and what the principal has.
    pub(super) fn describe(&self, caller: &Caller<'_>) -> Condition {
        let principal = caller.principal;
        let actor = principal.actor.as_ref();
        match self {
            Self::Anonymous => Condition::new("who.anonymous", "no credential", &principal.issuer),
            Self::Authenticated { .. } => Condition::new("who", "an authenticated caller", "no credential"),
            // By the names that the rule uses.
            Self::Issuers { named, .. } if named.names.iter().all(|name| webhooks::of_issuer(name).is_some()) => {
                let bare = |name: &str| webhooks::of_issuer(name).map(str::to_owned);
                let needs: Vec<String> = named.names.iter().filter_map(|name| bare(name)).collect();
                let found = bare(&principal.issuer);
                let found = found.unwrap_or_else(|| format!("no delivery, but {}", principal.issuer));
                Condition::new(WEBHOOKS, listed(&needs), found)
            }
            Self::Issuers { named, .. } => Condition::new("who.issuers", &named.names, &principal.issuer),
            Self::Kind { kind, .. } => {
                let through = if actor.is_some() { ", through an actor" } else { "" };
                Condition::new("who.kind", kind.as_str(), format!("{}{through}", principal.kind_of_subject().as_str()))
            }
            Self::Groups { key, names } => Condition::new(key, names.one_of(), listed(&principal.groups)),
            Self::Scopes(names) => Condition::new("who.scopes", names, listed(&principal.scopes)),
            Self::NoPerson => {
                Condition::new("who.scopes", "no person, as a scope alone gives people nothing", "a person")
            }
            Self::Subjects { key, names, issuers, of } => {
                let found = match (of, actor) {
                    (Party::Principal | Party::Person, _) => principal.subject.to_string(),
                    (Party::Actor, None) => or_none(None).to_owned(),
                    (Party::Actor, Some(actor)) => match unfit_issuer(actor, issuers) {
                        Some(issuer) => format!("{} {issuer}", actor.subject),
                        None => actor.subject.to_string(),
                    },
                };
                Condition::new(key, names, found)
            }
            Self::Users(users) => {
                let given = &principal.username;
                let looks_alike = |user: &&Arc<str>| same_user(user, given, Reading::Wide);
                let found = match users.iter().find(looks_alike) {
                    Some(user) if !users.contains(given) => format!("{given}, which only a deny treats as {user}"),
                    _ => given.to_string(),
                };
                Condition::new("who.users", listed(users), found)
            }
            Self::Clients { names, issuers, .. } => {
                let found = or_none(caller.client().map(|client| &**client));
                let of = match actor.map(|actor| unfit_issuer(actor, issuers)) {
                    None => String::new(),
                    Some(None) => " (of the actor)".to_owned(),
                    Some(Some(issuer)) => format!(" (of the actor, {issuer})"),
                };
                Condition::new("who.clients", names, format!("{found}{of}"))
            }
            Self::Claim { path, values } => {
                let values: Vec<String> = values.iter().map(ToString::to_string).collect();
                let found = path.find(&principal.claims).map(ToString::to_string);
                let needs = format!("{} = {}", path.as_str(), values.join(" or "));
                Condition::new("who.claims", needs, or_none(found.as_deref()))
            }
            Self::Repositories(repositories) => {
                let needs: Vec<String> = repositories.iter().map(|(kind, number)| format!("{kind}:{number}")).collect();
                let found = repository(caller).and_then(|of| of.text());
                Condition::new("who.repositories", listed(&needs), or_none(found.as_deref()))
            }
            Self::Senders(senders) => {
                let needs: Vec<String> = senders.iter().map(|(kind, number)| format!("{kind}:{number}")).collect();
                let found = sender(principal).and_then(|of| of.text());
                Condition::new("who.senders", listed(&needs), or_none(found.as_deref()))
            }
            Self::ServiceAccounts(accounts) => {
                Condition::new("who.service_accounts", listed(accounts), &principal.subject)
            }
            Self::ActedFor => {
                Condition::new("who.on_behalf_of", "somebody who acts for another", "nobody acts for the principal")
            }
        }
    }
}

/// The issuer of an actor in words, if an allow would have to name it and does not.
fn unfit_issuer(actor: &Actor, issuers: &NamedIssuers) -> Option<String> {
    match &actor.issuer {
        _ if issuers.have_actor(actor) => None,
        Some(issuer) => Some(format!("of issuer {issuer}, which `issuers` does not name")),
        None => Some("of an issuer that is not known".to_owned()),
    }
}

/// Whether the value of a claim is one of `values`. Read wide, numbers are the same if their values are: some issuers
/// write `5` as `5.0`, and others write numbers and flags as text. Two integers are not compared as fractions, which
/// have no room for the last digits of long ids.
fn is_claim(given: &Value, values: &[Value], reading: Reading) -> bool {
    values.contains(given) || (reading == Reading::Wide && values.iter().any(|value| is_same(given, value)))
}

fn is_same(given: &Value, value: &Value) -> bool {
    let is_same_number =
        |one: &Value, other: &Value| (one.is_f64() || other.is_f64()) && one.as_f64() == other.as_f64();
    match (given, value) {
        (Value::String(text), plain @ (Value::Number(_) | Value::Bool(_)))
        | (plain @ (Value::Number(_) | Value::Bool(_)), Value::String(text)) => {
            serde_json::from_str::<Value>(text).is_ok_and(|read| read == *plain || is_same_number(&read, plain))
        }
        _ => is_same_number(given, value),
    }
}

/// The condition on senders of deliveries.
pub(super) const WEBHOOKS: &str = "who.webhooks";

pub(super) fn is_anonymous(principal: &Principal) -> bool {
    principal.scheme == Scheme::Anonymous || &*principal.issuer == ANONYMOUS
}

/// An identity that has a number, such as a repository.
struct Numbered<'a> {
    kind: &'a str,
    /// From a delivery or a claim, if it is there.
    number: Option<Number<'a>>,
}

#[derive(Clone, Copy)]
enum Number<'a> {
    Text(&'a str),
    Json(&'a Value),
}

impl Numbered<'_> {
    /// Whether it is one of `named`. Read wide, a missing number may be any of its kind.
    fn met(&self, named: &[(Arc<str>, Arc<str>)], reading: Reading) -> Met {
        let mut of_kind = named.iter().filter(|(kind, _)| **kind == *self.kind);
        match self.number {
            Some(number) => of_kind.any(|(_, own)| is_number(number, own)).into(),
            None if reading == Reading::Wide && of_kind.next().is_some() => Met::Withheld,
            None => Met::No,
        }
    }

    fn text(&self) -> Option<String> {
        let kind = self.kind;
        Some(match self.number? {
            Number::Text(text) => format!("{kind}:{text}"),
            Number::Json(Value::String(text)) => format!("{kind}:{text}"),
            Number::Json(value) => format!("{kind}:{value}"),
        })
    }
}

/// The repository of a delivery or a CI job.
fn repository<'a>(caller: &Caller<'a>) -> Option<Numbered<'a>> {
    let principal = caller.principal;
    if let Some(facts) = &principal.delivery {
        return Some(Numbered { kind: &facts.sender_kind, number: facts.repository_id.as_deref().map(Number::Text) });
    }
    let (kind, claim) = caller.issuer?.repositories?;
    let told = principal.claims.get(claim).filter(|told| told.is_string() || told.is_u64());
    Some(Numbered { kind, number: told.map(Number::Json) })
}

/// The account that caused a delivery.
fn sender(principal: &Principal) -> Option<Numbered<'_>> {
    let facts = principal.delivery.as_deref()?;
    Some(Numbered { kind: &facts.sender_kind, number: facts.actor_id.as_deref().map(Number::Text) })
}

fn is_number(number: Number<'_>, own: &str) -> bool {
    match number {
        Number::Text(text) => text == own,
        Number::Json(Value::String(text)) => text == own,
        Number::Json(Value::Number(number)) => number.as_u64().is_some_and(|number| own.parse() == Ok(number)),
        Number::Json(_) => false,
    }
}

/// Whether `who` may be about the actor of a person rather than about the person. A sender of deliveries is no actor.
pub(super) fn speaks_of_actors(raw: &raw::Who) -> bool {
    let may_be_actors = !raw.subjects.is_empty() || !raw.clients.is_empty() || raw.kind == Some(Kind::Agent);
    may_be_actors && raw.webhooks.is_empty()
}

/// Whether `who` has no key.
pub(super) fn says_nothing(raw: &raw::Who) -> bool {
    *raw == raw::Who::default()
}
