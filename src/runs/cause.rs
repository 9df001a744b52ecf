//! Who caused a run, as seen by Doorward: the principal of the request that created it, or of the delivery that an
//! EventListener created it for. What a run says about itself is not trusted, since anybody who can create runs without
//! Doorward can write anything into them.

use std::{sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use uuid::Uuid;

use crate::{
    audit::CLAIMS,
    authn::{
        Actor, Kind, KnownAs, LoginFacts, Principal, Scheme,
        principal::{ANONYMOUS, KIND_CLAIM},
    },
    clock::Timestamp,
    webhooks::Facts,
};

/// How long the cause of a run is kept, which is the longest time that a run can get tokens. It is not extended while a
/// run continues: rules decide by the groups and claims at the time of the request, which may have changed since.
pub const KEPT: Duration = Duration::from_secs(7 * 86_400);

/// How long after a delivery an EventListener may create runs for it.
pub const EVENT_WINDOW: Duration = Duration::from_secs(120);

/// The tolerated difference to the clock of the API server.
pub const SKEW: Duration = Duration::from_secs(30);

/// Who caused a run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Cause {
    /// The id of the request, which is also that of its audit record.
    pub request: Uuid,
    /// When the request arrived, in milliseconds.
    at: i64,
    issuer: Arc<str>,
    subject: Arc<str>,
    username: Arc<str>,
    kind: Kind,
    /// The kind of the subject, whoever acted for them.
    subject_kind: Kind,
    /// `None` if the claims contain no groups claim.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    groups: Option<Vec<Arc<str>>>,
    /// `None` if the claims contain no scopes claim.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    scopes: Option<Vec<Arc<str>>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    client: Option<Arc<str>>,
    /// For a request with one of Doorward's own tokens: the person on whose behalf it was issued.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    on_behalf_of: Option<KnownAs>,
    /// Those who acted for the subject, now and before, as their issuers know them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    acting: Vec<KnownAs>,
    /// The `act` claim (RFC 8693) for tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    act: Option<Value>,
    /// The actor: subject and client.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    actor: Option<(Arc<str>, Option<Arc<str>>)>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    actor_issuer: Option<Arc<str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    auth_time: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    acr: Option<Arc<str>>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    amr: Vec<Arc<str>>,
    /// The claims that rules can use, as in the audit trail, and for one of Doorward's own tokens the kind of its
    /// subject.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    claims: Map<String, Value>,
    /// The names of the claims that were looked for. Rules that a reload adds may use others.
    looked_for: Vec<Arc<str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    delivery: Option<Facts>,
}

impl Cause {
    /// `identifier` is that of the principal's issuer. `claims` are the names of the claims that the policy uses.
    pub fn new(
        principal: &Principal,
        identifier: Option<&str>,
        request: Uuid,
        at: Timestamp,
        claims: &[Arc<str>],
    ) -> Self {
        let kept = |name: &str| Some((name.to_owned(), principal.claims.get(name)?.clone()));
        let said = |is_said: bool, list: &[Arc<str>]| (is_said || !list.is_empty()).then(|| list.to_vec());
        // From this claim the audit trail derives whether one of Doorward's own tokens is on behalf of a person.
        let own = principal.on_behalf_of.as_ref().map(|_| Arc::from(KIND_CLAIM));
        let looked_for: Vec<Arc<str>> =
            CLAIMS.into_iter().map(Arc::from).chain(claims.iter().cloned()).chain(own).collect();
        Self {
            request,
            at: at.as_millis(),
            issuer: Arc::clone(&principal.issuer),
            subject: Arc::clone(&principal.subject),
            username: Arc::clone(&principal.username),
            kind: principal.kind,
            subject_kind: principal.kind_of_subject(),
            groups: said(principal.says_groups, &principal.groups),
            scopes: said(principal.says_scopes, &principal.scopes),
            client: principal.client.clone(),
            on_behalf_of: principal.on_behalf_of.as_deref().cloned(),
            acting: principal.acting.to_vec(),
            act: principal.act(identifier),
            actor: principal.actor.as_ref().map(|actor| (Arc::clone(&actor.subject), actor.client.clone())),
            actor_issuer: principal.actor.as_ref().and_then(|actor| actor.issuer.clone()),
            auth_time: principal.login.auth_time.map(Timestamp::as_millis),
            acr: principal.login.acr.clone(),
            amr: principal.login.amr.clone(),
            claims: looked_for.iter().filter_map(|name| kept(name)).collect(),
            looked_for,
            delivery: principal.delivery.as_deref().cloned(),
        }
    }

    /// The principal as it was. Its credential counts as expired: it is only for decisions about tokens.
    pub fn principal(&self) -> Principal {
        let mut claims = self.claims.clone();
        // From this claim the audit trail derives that the subject may be a person, though an agent acted for them.
        if let Some(act) = &self.act {
            claims.entry("act").or_insert_with(|| act.clone());
        }
        Principal {
            kind: self.kind,
            subject_kind: Some(self.subject_kind).filter(|kind| *kind != self.kind),
            says_groups: self.groups.is_some(),
            groups: self.groups.clone().unwrap_or_default(),
            says_scopes: self.scopes.is_some(),
            scopes: self.scopes.clone().unwrap_or_default(),
            client: self.client.clone(),
            actor: self.actor.clone().map(|(subject, client)| Actor {
                issuer: self.actor_issuer.clone(),
                subject,
                client,
            }),
            on_behalf_of: self.on_behalf_of.clone().map(Box::new),
            acting: self.acting.as_slice().into(),
            login: LoginFacts {
                auth_time: self.auth_time.map(Timestamp::from_millis),
                acr: self.acr.clone(),
                amr: self.amr.clone(),
            },
            email: Principal::verified_email(&claims),
            claims: Arc::new(claims),
            // Signed deliveries have no claims.
            kept_claims: self.delivery.is_none().then(|| self.looked_for.as_slice().into()),
            delivery: self.delivery.clone().map(Arc::new),
            ..Principal::new(
                match &self.delivery {
                    Some(_) => Scheme::Webhook,
                    None if *self.issuer == *ANONYMOUS => Scheme::Anonymous,
                    None => Scheme::Bearer,
                },
                Arc::clone(&self.issuer),
                Arc::clone(&self.subject),
                Arc::clone(&self.username),
            )
        }
    }

    /// The `act` claim for tokens.
    pub fn act(&self) -> Option<&Value> {
        self.act.as_ref()
    }

    /// When it expires.
    pub(super) fn ends(&self) -> Timestamp {
        Timestamp::from_millis(self.at) + KEPT
    }

    /// Whether a run that was created at `created` can be the result of the delivery.
    pub(super) fn explains(&self, created: Timestamp) -> bool {
        let at = Timestamp::from_millis(self.at);
        created + SKEW >= at && created <= at + EVENT_WINDOW + SKEW
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::runs) const NOW: Timestamp = Timestamp::from_secs(1_700_000_000);

    pub(in crate::runs) fn alice() -> Principal {
        let claims = serde_json::json!({"department": "x", "address": "y"});
        Principal {
            kind: Kind::Human,
            groups: vec!["dev".into()],
            actor: Some(Actor { issuer: Some("bots".into()), subject: "bot".into(), client: Some("b".into()) }),
            claims: Arc::new(claims.as_object().unwrap().clone()),
            ..Principal::new(Scheme::Session, "corp", "7", "alice")
        }
    }

    #[test]
    fn the_attributes_of_a_person_are_known_for_a_run_that_their_task_made() {
        let own = Some(Box::new(KnownAs { issuer: "corp".into(), subject: "7".into() }));
        for (of_subject, on_behalf_of, claims) in [
            (Kind::Human, own.clone(), 1),
            (Kind::Agent, own.clone(), 1),
            (Kind::Workload, own, 1),
            // The claim of that name in a token of another issuer is not kept.
            (Kind::Human, None, 0),
        ] {
            let (kind, subject_kind) = Principal::kinds(of_subject, true);
            let said = serde_json::json!({"kind": of_subject, "scope": "x"});
            let principal = Principal {
                kind,
                subject_kind,
                on_behalf_of,
                claims: Arc::new(said.as_object().unwrap().clone()),
                ..alice()
            };
            let kept = serde_json::to_vec(&Cause::new(&principal, None, Uuid::from_u128(1), NOW, &[])).unwrap();
            let again = serde_json::from_slice::<Cause>(&kept).unwrap().principal();
            assert_eq!((again.kind, again.kind_of_subject(), again.claims.len()), (kind, of_subject, claims));
            assert_ne!(again.kind, Kind::Human, "they do not act themselves");
        }
    }
}
