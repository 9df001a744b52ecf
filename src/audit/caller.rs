//! The parts of lines about callers. Most callers return often, so the text written about one is cached and copied.

use std::{
    collections::HashMap,
    sync::{Arc, Weak},
};

use serde::{Serialize, Serializer};
use serde_json::Value;

use super::{
    budget::{Budget, Cut, Field},
    json::Object,
    record::{Phase, Record},
};
use crate::{
    authn::{CredentialId, Principal},
    clock::Timestamp,
};

/// Claims that are always recorded: those that grants and rules can use without naming them. Apart from these only
/// claims that the policy names ([`Record::claims`]) are written, so that nothing else that an issuer puts into a token
/// reaches the trail.
pub const CLAIMS: [&str; 11] = [
    "aud",
    "environment",
    "iss",
    "job_workflow_ref",
    "kubernetes.io",
    "namespace_id",
    "project_id",
    "ref",
    "repository",
    "repository_id",
    "repository_owner_id",
];

/// Bytes of text that are cached in each of the two halves: enough for more than a thousand callers.
const ROOM: usize = 1 << 20;

/// A cache of the callers written about recently, by the addresses of their principals. When `recent` is full it
/// becomes `older`, from which callers that return are moved back and all others are dropped: a thousand bots taking
/// turns must not evict each other.
#[derive(Debug, Default)]
pub(super) struct Callers {
    recent: HashMap<usize, Kept>,
    older: HashMap<usize, Kept>,
    /// Bytes of text in `recent`.
    size: usize,
}

/// A caller, and the text written about it within the full budget.
#[derive(Debug)]
struct Kept {
    /// Keeps the address from being reused, without keeping the principal's content alive.
    principal: Weak<Principal>,
    claims: Option<Arc<[Arc<str>]>>,
    actor: Text,
    details: Text,
}

/// Members of an object as JSON, and the fields that were cut to write them.
#[derive(Debug)]
struct Text {
    json: Vec<u8>,
    cut: Cut,
}

/// The caller of one record.
#[derive(Clone, Copy, Debug)]
pub(super) struct Caller<'a> {
    principal: &'a Principal,
    kept: Option<&'a Kept>,
}

impl Callers {
    /// Returns the caller of a record, if it is known.
    pub(super) fn of<'a>(&'a mut self, record: &'a Record) -> Option<Caller<'a>> {
        let principal = record.principal.as_ref()?;
        Some(Caller { principal, kept: self.kept(principal, record.claims.as_ref()) })
    }

    /// Returns the cache entry of a caller. None is created for a delivery, or for a principal that nobody else holds:
    /// these do not return.
    fn kept(&mut self, principal: &Arc<Principal>, claims: Option<&Arc<[Arc<str>]>>) -> Option<&Kept> {
        if principal.delivery.is_some() {
            return None;
        }
        let address = Arc::as_ptr(principal).addr();
        let is_current = |kept: &Kept| {
            Weak::as_ptr(&kept.principal) == Arc::as_ptr(principal)
                && kept.claims.as_ref().map(Arc::as_ptr) == claims.map(Arc::as_ptr)
        };
        if !self.recent.get(&address).is_some_and(is_current) {
            let known = self.older.remove(&address).filter(is_current);
            let comes_again = Arc::strong_count(principal) > 1;
            self.keep(address, known.or_else(|| comes_again.then(|| Kept::new(principal, claims)))?);
        }
        self.recent.get(&address)
    }

    fn keep(&mut self, address: usize, kept: Kept) {
        let size = kept.size();
        if self.size + size > ROOM {
            self.older = std::mem::take(&mut self.recent);
            self.size = 0;
        }
        self.size += size;
        // An entry from another policy, which names other claims.
        if let Some(before) = self.recent.insert(address, kept) {
            self.size -= before.size();
        }
    }
}

impl Kept {
    fn size(&self) -> usize {
        self.actor.json.len() + self.details.json.len()
    }

    fn new(principal: &Arc<Principal>, claims: Option<&Arc<[Arc<str>]>>) -> Self {
        let names = claims.map(|names| &**names).unwrap_or_default();
        Self {
            principal: Arc::downgrade(principal),
            claims: claims.cloned(),
            actor: Text::written(|budget, object| write_actor(principal, budget, object)),
            details: Text::written(|budget, object| {
                write_identity(principal, budget, object);
                write_facts(principal, names, budget, object);
            }),
        }
    }
}

impl Text {
    fn written(write: impl FnOnce(&mut Budget, &mut Object<'_>)) -> Self {
        let mut budget = Budget::new(0);
        let mut json = Vec::new();
        write(&mut budget, &mut Object::open(&mut json));
        Self { json, cut: budget.cut() }
    }

    fn copy(&self, budget: &mut Budget, object: &mut Object<'_>) {
        object.members(&self.json);
        budget.add(self.cut);
    }
}

impl Caller<'_> {
    /// Writes OCSF's `actor`.
    pub(super) fn write_actor(self, budget: &mut Budget, object: &mut Object<'_>) {
        match self.kept.filter(|_| budget.is_full()) {
            Some(kept) => kept.actor.copy(budget, object),
            None => write_actor(self.principal, budget, object),
        }
    }

    /// Writes the facts about the caller that a decision needs. The record of a request's end omits them: the first
    /// record with the same id has them.
    pub(super) fn write_principal(self, record: &Record, budget: &mut Budget, object: &mut Object<'_>) {
        if record.phase == Phase::Completed {
            return write_identity(self.principal, budget, object);
        }
        match self.kept.filter(|_| budget.is_full()) {
            Some(kept) => kept.details.copy(budget, object),
            None => {
                write_identity(self.principal, budget, object);
                write_facts(self.principal, record.claims.as_deref().unwrap_or_default(), budget, object);
            }
        }
    }
}

/// Writes OCSF's `actor`.
fn write_actor(principal: &Principal, budget: &mut Budget, object: &mut Object<'_>) {
    object.object("user", |user| {
        user.text("uid", budget.text(Field::Names, &principal.subject))
            .text("name", budget.text(Field::Names, &principal.username));
    });
    object.object("idp", |idp| {
        idp.text("name", budget.text(Field::Names, &principal.issuer));
    });
    let (_, id) = credential(&principal.credential);
    let expires = (principal.expires != Timestamp::MAX).then(|| principal.expires.as_millis());
    // Anonymous callers have none.
    if !id.is_empty() || expires.is_some() {
        object.object("session", |session| {
            session
                .some_text("uid", budget.optional(Field::Names, (!id.is_empty()).then_some(id)))
                .some("expiration_time", expires);
        });
    }
    object.some_text("app_uid", budget.optional(Field::Names, principal.client.as_deref()));
}

/// Returns the type of a credential, and its id.
pub(super) fn credential(id: &CredentialId) -> (&'static str, &str) {
    match id {
        CredentialId::Token(id) => ("token", id),
        CredentialId::Session(id) => ("session", id),
        CredentialId::Delivery(id) => ("delivery", id),
        CredentialId::Certificate(id) => ("certificate", id),
        CredentialId::None => ("none", ""),
    }
}

/// Writes the caller's kind, scheme and credential type, and who acts for it.
fn write_identity(principal: &Principal, budget: &mut Budget, object: &mut Object<'_>) {
    let (credential, _) = credential(&principal.credential);
    object
        .field("kind", principal.kind)
        .some("subject_kind", principal.subject_kind)
        .field("scheme", principal.scheme)
        .text("credential", credential);
    if let Some(actor) = &principal.actor {
        object.object("actor", |object| {
            object
                .some_text("issuer", budget.optional(Field::Names, actor.issuer.as_deref()))
                .text("subject", budget.text(Field::Names, &actor.subject))
                .some_text("client", budget.optional(Field::Names, actor.client.as_deref()));
        });
    }
}

/// Writes the facts that rules and grants use. `named` are the claims that the policy names.
fn write_facts(principal: &Principal, named: &[Arc<str>], budget: &mut Budget, object: &mut Object<'_>) {
    // A deny by groups matches a caller whose issuer said nothing about groups, but not one that has no groups.
    match principal.says_groups && principal.groups.is_empty() {
        true => object.empty_list("groups"),
        false => object.list("groups", budget.list(Field::Groups, &principal.groups)),
    };
    match principal.says_scopes && principal.scopes.is_empty() {
        true => object.empty_list("scopes"),
        false => object.list("scopes", budget.list(Field::Scopes, &principal.scopes)),
    };
    object
        .some("auth_time", principal.login.auth_time.map(Timestamp::as_millis))
        .some_text("acr", budget.optional(Field::Names, principal.login.acr.as_deref()))
        .list("amr", budget.list(Field::Names, &principal.login.amr));
    let named = named.iter().map(|name| &**name).filter(|name| !CLAIMS.contains(name));
    let mut claims: Vec<(&str, &Value)> = CLAIMS
        .into_iter()
        .chain(named)
        .filter_map(|name| principal.claims.get_key_value(name))
        .map(|(name, value)| (name.as_str(), value))
        .collect();
    budget.values(Field::Claims, &mut claims);
    object.some("claims", (!claims.is_empty()).then_some(Members(claims)));
}

/// The members of an object.
struct Members<'a>(Vec<(&'a str, &'a Value)>);

impl Serialize for Members<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().copied())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authn::Scheme;

    /// More than a hundred were dropped all at once, so that none of them was known when it returned.
    #[test]
    fn recent_callers_stay_cached_and_the_cache_is_bounded() {
        let caller = |number: usize| Arc::new(Principal::new(Scheme::Bearer, "corp", format!("bot-{number}"), "bot"));
        let bots: Vec<Arc<Principal>> = (0..1000).map(caller).collect();
        // Somebody else holds them too, otherwise nothing is cached.
        let (cache, mut callers) = (bots.clone(), Callers::default());
        let written = |callers: &mut Callers| -> Vec<usize> {
            bots.iter().map(|bot| callers.kept(bot, None).unwrap().details.json.as_ptr().addr()).collect()
        };
        let first = written(&mut callers);
        assert!(written(&mut callers) == first, "what was written at first is there still");

        let first_of_all = Arc::downgrade(&cache[1]);
        for number in 0..30_000 {
            let other = caller(number);
            let _elsewhere = Arc::clone(&other);
            callers.kept(&other, None).unwrap();
            // A caller that keeps returning stays.
            callers.kept(&cache[0], None).unwrap();
            let held = || callers.recent.values().chain(callers.older.values()).map(Kept::size).sum::<usize>();
            assert!(number % 1000 > 0 || held() <= 2 * ROOM && callers.size <= ROOM, "{}", held());
        }
        assert_eq!(callers.kept(&cache[0], None).unwrap().details.json.as_ptr().addr(), first[0]);
        assert!(callers.recent.len() + callers.older.len() < 30_000);
        drop((bots, cache));
        assert!(first_of_all.upgrade().is_none(), "what a principal holds goes with whoever else has it");
    }

    /// Like the end of an exchange, when nobody else holds the task any more.
    #[test]
    fn the_text_written_for_a_caller_is_copied_into_its_last_line() {
        let (mut callers, task) =
            (Callers::default(), Arc::new(Principal::new(Scheme::Bearer, "corp", "task", "task")));
        assert!(callers.kept(&task, None).is_none(), "nobody else has it");
        let party = Arc::clone(&task);
        let first = callers.kept(&task, None).unwrap().actor.json.as_ptr();
        drop(party);
        assert_eq!(callers.kept(&task, None).unwrap().actor.json.as_ptr(), first);
    }
}
