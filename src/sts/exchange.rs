//! One exchange, from the form to the token.

use std::sync::Arc;

use bytes::Bytes;
use http::{Response, StatusCode};
use serde_json::json;
use uuid::Uuid;
use zeroize::Zeroizing;

use super::{
    Issuing, OwnIssuer,
    bearer::{NO_OTHERS, over},
    claims::{self, AccessToken},
    form::{ACCESS_TOKEN, ExchangeRequest, Form},
    grant::{Granted, TokenDecision, audience},
    keys::SigningKeys,
    party::Party,
    refusal::{Refusal, answer},
    registry,
    task::Task,
};
use crate::{
    app::App,
    audit,
    authn::{CredentialId, KnownAs, Principal},
    authz::{AskedToken, RequestView},
    clock::Timestamp,
    error::Reason,
    issuers::{RevocationCheck as _, Revoked, TokenError, Unverified},
    request::{exchange::Exchange, notes::recorded, sanitize::CleanRequest},
    snapshot::Snapshot,
    upstream::Pools,
};

/// The context of one exchange.
#[derive(Clone, Copy)]
pub struct Exchanger<'a> {
    pub app: &'a App,
    pub pools: &'a Pools,
    pub snapshot: &'a Snapshot,
    pub own_issuer: &'a OwnIssuer,
    pub keys: &'a SigningKeys,
}

/// The token that was given.
pub(super) enum IssuedToken {
    Own {
        token: Zeroizing<String>,
        expires: Timestamp,
        /// Separated by spaces.
        scope: String,
    },
    /// The response with the token of another provider.
    Onward(Response<Bytes>),
}

impl<'a> Exchanger<'a> {
    pub fn new(issuing: Issuing<'a>, keys: &'a SigningKeys) -> Self {
        let Issuing { app, pools, snapshot, own_issuer } = issuing;
        Self { app, pools, snapshot, own_issuer, keys }
    }

    pub async fn exchange(
        &self,
        request: &CleanRequest<()>,
        body: &[u8],
        exchange: &mut Exchange,
    ) -> Result<Response<Bytes>, Refusal> {
        let asked = ExchangeRequest::read(Form::parse(request.headers(), body)?)?;
        exchange.record().asked = Some(Box::new(AskedToken {
            audience: asked.audience.clone(),
            scopes: asked.scopes.clone(),
            partly: false,
            task: None,
        }));
        let subject = self.authenticate("subject_token", &asked.subject_token).await?;
        let subject = if asked.actor_token.is_some() { self.as_themselves(subject) } else { subject };
        exchange.record().principal = Some(Arc::clone(&subject));
        // Only callers with a credential learn what is a registry.
        if self.own_issuer.settings.registries.contains_key(&asked.audience) {
            registry::check_scopes(asked.scopes.as_deref().unwrap_or_default())?;
        }
        let actor = match &asked.actor_token {
            None => None,
            Some(actor) => Some(self.authenticate("actor_token", actor).await?),
        };
        // After the caller is authenticated, as that may wait for keys: strangers must not hold reservations that
        // requests need. And before the time is read.
        exchange.reserve(2).await?;
        let now = self.app.clock.now();
        let party = match actor {
            None => self.party("subject_token", subject, now).await?,
            Some(actor) => self.delegated(&subject, &actor)?,
        };
        self.recheck(&party)?;
        let view = party.view(request, &asked.audience, now);
        let decided = self.decide_all_or_nothing(&party, &view, asked.scopes.as_deref());
        let granted = self.record(&party, decided, exchange)?;
        let issued = self.issue(&party, &view, granted, exchange).await?;
        let body = match issued {
            IssuedToken::Own { token, expires, scope } => json!({
                "access_token": &*token,
                "issued_token_type": ACCESS_TOKEN,
                "token_type": "Bearer",
                // Writing the record may have taken long.
                "expires_in": expires.since(self.app.clock.now()).as_secs(),
                "scope": scope,
            }),
            IssuedToken::Onward(response) => return Ok(response),
        };
        Ok(answer(StatusCode::OK, &body))
    }

    /// Records who asks and what was decided.
    pub(super) fn record(
        &self,
        party: &Party,
        decided: TokenDecision,
        exchange: &mut Exchange,
    ) -> Result<Granted, Refusal> {
        let record = exchange.record();
        record.principal = Some(Arc::clone(&party.principal));
        record.policy = Some(Arc::clone(self.snapshot.policy.digest()));
        record.claims.clone_from(&self.snapshot.claims);
        record.decision = Some(recorded(&decided.decision));
        if let Some(asked) = &mut record.asked {
            asked.task = party.task_details().map(|task| task.view.clone());
        }
        decided.granted
    }

    /// Issues what was granted: a token of Doorward's own or, for an audience that trusts another provider, one of that
    /// provider.
    pub(super) async fn issue(
        &self,
        party: &Party,
        view: &RequestView<'_>,
        granted: Granted,
        exchange: &mut Exchange,
    ) -> Result<IssuedToken, Refusal> {
        let (task, now) = (party.task_details(), view.now);
        let audience = audience(view);
        let registries = &self.own_issuer.settings.registries;
        let lifetime = registries.get(audience).copied().unwrap_or(self.own_issuer.settings.lifetime);
        let given_until = self.given_until(party, view, &granted);
        let expires = claims::expires(now, lifetime, party.ends, task).min(given_until);
        // A token that lasts less than a second is of no use.
        if expires.as_secs() <= now.as_secs() {
            return Err(out_of_time(party, now));
        }
        if let Some(origin) = &party.task {
            self.note_bearer(party, origin, expires, now).await?;
        }
        let (jti, by_rules) = (Uuid::now_v7().to_string(), granted.clone());
        let scope = granted.scopes.join(" ");
        let client = client(&party.principal)?;
        let exchanged = party.exchanged();
        let claims = AccessToken {
            iss: self.own_issuer.issuer(),
            sub: &party.principal.username,
            aud: audience,
            client_id: &client,
            iat: now.as_secs(),
            exp: expires.as_secs(),
            jti: &jti,
            kind: party.principal.kind_of_subject(),
            origin: party.origin(),
            scope: &scope,
            access: registries.contains_key(audience).then(|| registry::access(&granted.scopes)),
            act: party.act.clone(),
            acting: &party.principal.acting,
            exchanged: &exchanged,
            run: task.map(claims::run).unwrap_or_default(),
        };
        let issuer: Arc<str> = self.own_issuer.name(&self.snapshot.issuers).into();
        let onward = self.own_issuer.settings.onward.get(audience);
        let parties = parties(&party.principal, onward.is_none().then_some(&issuer));
        let issued = audit::Issued {
            token: jti.clone(),
            issuer,
            audience: audience.to_owned(),
            scopes: granted.scopes,
            expires,
            rules: granted.rules,
            cause: party.task.as_ref().map(|origin| origin.cause),
            task: task.map(issued_to),
            parties,
            exchanged: exchanged.clone(),
            onward: None,
        };
        if let Some(onward) = onward {
            let gives_until = |until| self.gives_until(party, view, &by_rules, until);
            let given = self.pass_on(onward, &claims, party, issued, gives_until, exchange).await?;
            return Ok(IssuedToken::Onward(given));
        }
        let token = self.keys.sign(&claims);
        let token =
            Zeroizing::new(token.ok_or_else(|| Refusal::unavailable(Reason::Internal, "the token cannot be signed"))?);
        self.give(party, issued, exchange).await?;
        Ok(IssuedToken::Own { token, expires, scope })
    }

    /// Records that a token was issued, before it leaves Doorward. A token that cannot be recorded is not given, nor is
    /// one to a caller who was revoked meanwhile.
    pub(super) async fn give(
        &self,
        party: &Party,
        issued: audit::Issued,
        exchange: &mut Exchange,
    ) -> Result<(), Refusal> {
        exchange.record().issued = Some(Box::new(issued));
        let written = exchange.write_decided().await.map_err(Refusal::from);
        let given = written.and_then(|()| self.recheck(party));
        if given.is_err() {
            exchange.record().issued = None;
        }
        given
    }

    /// Refuses callers who were revoked since they authenticated, and tasks where none gets tokens any more. The
    /// request may have waited for the audit trail while its disk stalls, and a token given then would outlast its
    /// grounds.
    pub(super) fn recheck(&self, party: &Party) -> Result<(), Refusal> {
        self.check_revocations()?;
        let snapshot = self.app.snapshot.load();
        let is_out = |principal: &Principal| self.app.withdrawal_of(principal, &snapshot).is_some();
        if let Some(&(parameter, ref principal)) = party.presented.iter().find(|(_, principal)| is_out(principal)) {
            // The key of its issuer, or the cluster of its run, may be gone instead.
            let revoked = self.app.revocations.revoked(principal).unwrap_or(Revoked::Credential);
            return Err(Refusal::of_token(parameter, &revoked.refusal()));
        }
        // For a task: who caused it, and the objects with which it ends. All others have presented their own token.
        if is_out(&party.principal) {
            return Err(over(NO_OTHERS));
        }
        // A revocation may name the holder of Doorward's own tokens, by the user name. Registries do not check for
        // it, and other providers do not know it.
        let own = self.own_issuer.name(&snapshot.issuers);
        let is_out_by_name =
            |principal: &Principal| self.app.revocations.find(&CredentialId::None, own, &principal.username).is_some();
        if let Some(&(parameter, _)) = party.presented.iter().find(|(_, principal)| is_out_by_name(principal)) {
            return Err(Refusal::of_token(parameter, &Revoked::Holder.refusal()));
        }
        if is_out_by_name(&party.principal) {
            return Err(over(NO_OTHERS));
        }
        party.check_namespace(&snapshot.issuers)
    }

    /// Refuses while the known revocations are too old.
    pub(super) fn check_revocations(&self) -> Result<(), Refusal> {
        Ok(self.app.revocations.check_fresh(self.snapshot.max_mirror_age)?)
    }

    /// Authenticates the holder of the token that is to be exchanged. What the token permits elsewhere does not matter
    /// here.
    pub(super) async fn authenticate(&self, parameter: &'static str, token: &str) -> Result<Arc<Principal>, Refusal> {
        self.check_revocations()?;
        let accepts = &self.own_issuer.settings.accepts;
        let authenticated = self.snapshot.issuers.authenticate(token, accepts, &self.app.revocations).await;
        authenticated.map_err(|rejection| {
            let refusal = Refusal::of_token(parameter, &rejection);
            // Only the text depends on the unverified issuer. Routes of this host may accept such tokens.
            let own = self.own_issuer.issuer();
            let is_own = || Unverified::parse(token).is_ok_and(|read| read.issuer() == Some(&**own));
            if rejection.reason() == Reason::IssuerUnknown && is_own() {
                return refusal.described(format!("{parameter}: a token of Doorward's own is not exchanged"));
            }
            refusal
        })
    }
}

/// Everybody whose revocation ends a token for this principal. The holder of a token of Doorward's own, of the issuer
/// `own`, is also known by the name in it.
fn parties(principal: &Principal, own: Option<&Arc<str>>) -> Vec<KnownAs> {
    let mut parties: Vec<KnownAs> = principal.parties().collect();
    if let Some(own) = own {
        let holder = KnownAs { issuer: Arc::clone(own), subject: Arc::clone(&principal.username) };
        if !parties.contains(&holder) {
            parties.push(holder);
        }
    }
    parties
}

/// The refusal of a token that would last less than a second. A task has several limits, and no use for knowing which
/// one is reached.
fn out_of_time(party: &Party, now: Timestamp) -> Refusal {
    if party.task_details().is_some() {
        return Refusal::subject("the run, or the token, has timed out");
    }
    // A route accepts it a little longer, as clocks differ.
    if party.ends.as_secs() <= now.as_secs() {
        let expired = TokenError::Expired { by: now.since(party.ends), at: party.ends };
        return Refusal::of_token(party.parameter, &expired.into());
    }
    Refusal::subject("the time for which rules give it ends within a second")
}

/// The client id of a token for this principal. Refuses a principal without one whose subject is a name that only tasks
/// have.
fn client(principal: &Principal) -> Result<Arc<str>, Refusal> {
    claims::client(principal).ok_or_else(|| {
        let subject = &principal.subject;
        Refusal::subject(format!(
            "subject_token: `{subject}` is the name of a service account, which only a task's pod can have here, and the token names no \
             client"
        ))
    })
}

/// The task, as the audit trail records it.
fn issued_to(task: &Task) -> audit::IssuedTask {
    audit::IssuedTask {
        cluster: task.view.cluster.clone(),
        namespace: task.view.namespace.clone(),
        task_run: task.task_run.clone(),
        pod: task.pod.clone(),
        pipeline_run: task.pipeline_run().cloned(),
        pipeline_task: task.view.pipeline_task.clone(),
        root: task.root.uid.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        authn::Scheme,
        authz::TaskView,
        issuers::testing,
        kubernetes::ObjectRef,
        sts::{party::TaskOrigin, task::Root},
    };

    #[test]
    fn without_a_run_a_just_expired_token_is_reported_as_expired() {
        let now = Timestamp::from_secs(1_700_000_000);
        let seconds = std::time::Duration::from_secs;
        let told = |parameter, ends| {
            let principal = Arc::new(Principal::new(Scheme::Bearer, "corp", "7", "alice"));
            out_of_time(&Party { ends, parameter, ..Party::of_tests(principal) }, now)
        };
        for (parameter, ends, why) in [
            ("subject_token", now, "subject_token: the token expired 0 s ago, at "),
            ("actor_token", Timestamp::from_secs(1_699_999_990), "actor_token: the token expired 10 s ago, at "),
        ] {
            let refusal = told(parameter, ends);
            assert!(refusal.description().starts_with(why), "{}", refusal.description());
            assert!(refusal.description().ends_with("; get a new token"), "{}", refusal.description());
            assert_eq!(refusal.reason(), Reason::TokenExpired);
        }
        assert!(told("subject_token", now + seconds(60)).description().contains("rules give it"));
    }

    /// Regression: an exchange that recorded itself after a reload had ended the tokens there still gave its token,
    /// which lasted until another check half a minute later.
    #[tokio::test]
    async fn a_task_is_refused_as_soon_as_the_configuration_gives_its_namespace_no_tokens() {
        let object = |name: &str| ObjectRef { name: name.to_owned(), uid: name.to_owned() };
        let view = TaskView {
            cluster: "east".to_owned(),
            namespace: "ci".to_owned(),
            service_account: "builder".to_owned(),
            pipeline: None,
            pipeline_task: None,
            task: None,
        };
        let task = Task {
            view,
            pod: object("build-pod"),
            task_run: object("build"),
            pipeline_runs: Vec::new(),
            root: Root { uid: "build".to_owned(), event: None, created: None, is_part: false, owner: None },
            times_out: None,
            pod_token: None,
        };
        let origin = TaskOrigin { task: Box::new(task), cluster: "east".into(), cause: Uuid::nil() };
        let principal = Arc::new(Principal::new(Scheme::Bearer, "company", "7", "alice"));
        let party = Party { task: Some(origin), ..Party::of_tests(principal) };
        let refused = |exchange: serde_json::Value| {
            let (issuers, _) = testing::resolve(&json!({"tokens": {"exchange": exchange}}), None, &testing::context());
            party.check_namespace(&issuers).err().map(|refusal| refusal.description().to_owned())
        };
        let why = Some("no task in namespace ci gets tokens".to_owned());
        assert_eq!(refused(json!([{"issuer": "east", "kubernetes": "api", "namespaces": ["ci", "shop"]}])), None);
        assert_eq!(refused(json!([{"issuer": "east", "kubernetes": "api", "namespaces": ["shop"]}])), why);
        assert_eq!(refused(json!([{"issuer": "west", "kubernetes": "api"}])), why);
        assert_eq!(refused(json!([])), why);
    }

    /// A second identical entry, or a name that no token of another provider has, would trace a token to a revocation
    /// that did not end it.
    #[test]
    fn the_holder_of_an_own_token_is_listed_once_by_the_name_in_it() {
        let own: Arc<str> = "own".into();
        let listed = |principal: &Principal, own: Option<&Arc<str>>| {
            let parties = parties(principal, own);
            parties.iter().map(|party| format!("{}/{}", party.issuer, party.subject)).collect::<Vec<_>>()
        };
        let of_corp = Principal::new(Scheme::Bearer, "corp", "7", "alice");
        assert_eq!(listed(&of_corp, Some(&own)), ["corp/7", "own/alice"]);
        assert_eq!(listed(&of_corp, None), ["corp/7"], "a token of another provider");
        let of_ours = Principal { issuer: Arc::clone(&own), subject: "alice".into(), ..of_corp };
        assert_eq!(listed(&of_ours, Some(&own)), ["own/alice"], "for one of ours already");
    }
}
