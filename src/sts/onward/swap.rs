//! From what rules gave to the token of a provider.

use std::sync::Arc;

use bytes::Bytes;
use http::{Response, StatusCode};
use serde_json::{Map, Value, json};

use super::{
    Onward,
    answer::{Failure, TokenForm},
    cache::{Gained, TokenRequest},
    protocol::{Kind, session_name},
};
use crate::{
    audit,
    clock::Timestamp,
    config::raw::OnwardSubject,
    error::Reason,
    issuers::{EXCHANGED_CLAIM, RUN_CLAIM},
    request::exchange::Exchange,
    sts::{
        claims::{self, AccessToken},
        exchange::Exchanger,
        form::ACCESS_TOKEN,
        metadata,
        party::Party,
        refusal::{Refusal, answer},
    },
};

/// The token type of what AWS's `credential_process` reads.
const AWS_CREDENTIALS: &str = "https://doorward.dev/token-type/aws-credentials";

impl Exchanger<'_> {
    /// Gives the provider's token in place of one of our own. `claims` are those that our own would have, and `issued`
    /// what the trail would record; both have been decided. `gives_until` returns until when rules give the token, at
    /// most until its argument.
    pub(in crate::sts) async fn pass_on(
        &self,
        onward: &Arc<Onward>,
        claims: &AccessToken<'_>,
        party: &Party,
        issued: audit::Issued,
        gives_until: impl Fn(Timestamp) -> Timestamp,
        exchange: &mut Exchange,
    ) -> Result<Response<Bytes>, Refusal> {
        let gained = self.gain(onward, claims, party, &issued).await?;
        let (given, now) = (&gained.given, self.app.clock.moment());
        let expires = gained.expires(now);
        // It may outlast the assertion for which the run was recorded, and ends with the run all the same.
        if let Some(origin) = &party.task {
            self.note_bearer(party, origin, expires, now.wall()).await?;
        }
        // While the caller waited, the grounds of the decision may have gone.
        if self.app.revocations.is_revoked(&party.principal).is_some() {
            return Err(Refusal::subject("the run has ended, or the caller was revoked, while the provider was asked"));
        }
        let by_rules = gives_until(expires);
        if by_rules < expires {
            return Err(Refusal::target(format!(
                "the token of {} lasts until {expires}, and rules give it only until {by_rules}, by their hours (`time`), how old the login \
                 may be (`need`), or `request.time` in `when`; it is given only while it ends before that; let the provider, \
                 and `max_lifetime`, make it shorter",
                onward.name()
            )));
        }
        let had = |scope: &Arc<str>| match &given.scopes {
            None => true,
            Some(named) => named.iter().any(|named| named == onward.scope(scope)),
        };
        let scopes: Vec<Arc<str>> = issued.scopes.into_iter().filter(had).collect();
        let scope = scopes.join(" ");
        let issued = audit::Issued {
            scopes,
            expires,
            onward: Some(audit::IssuedOnward {
                provider: format!(
                    "{} at {}",
                    onward.protocol.kind.as_str(),
                    onward.protocol.url.host_str().unwrap_or_default()
                ),
                assertion: gained.assertion.clone(),
                sha256: gained.digest.clone(),
            }),
            ..issued
        };
        self.give(party, issued, exchange).await?;
        let (issued_token_type, token_type) = match given.form {
            TokenForm::Bearer => (ACCESS_TOKEN, "Bearer"),
            TokenForm::AwsCredentials => (AWS_CREDENTIALS, "N_A"),
        };
        let body = json!({
            "access_token": &*given.token,
            "issued_token_type": issued_token_type,
            "token_type": token_type,
            "expires_in": self.app.clock.moment().until(gained.ends).as_secs(),
            "scope": scope,
        });
        Ok(answer(StatusCode::OK, &body))
    }

    /// Obtains the provider's token for an assertion of what was decided.
    async fn gain(
        &self,
        onward: &Arc<Onward>,
        claims: &AccessToken<'_>,
        party: &Party,
        issued: &audit::Issued,
    ) -> Result<Arc<Gained>, Refusal> {
        let scopes = onward.named_there(&issued.scopes);
        if onward.protocol.kind == Kind::Aws && !scopes.is_empty() {
            return Err(Refusal::scope(format!(
                "AWS knows no scopes, so none can be given for `{}`; ask for none, with a rule without `scopes`",
                onward.audience
            )));
        }
        let subject = match &onward.subject {
            OnwardSubject::Caller => claims.sub,
            OnwardSubject::Client => claims.client_id,
            OnwardSubject::Text(text) => text,
        };
        let session = match party.task_details() {
            Some(task) => session_name(&format!("{}.{}", task.view.namespace, task.task_run.name)),
            None => session_name(&format!("{}.{}", claims.origin.issuer, claims.origin.sub)),
        };
        let wanted = TokenRequest {
            onward: Arc::clone(onward),
            claims: assertion(claims, &onward.assertion_audience, subject)?,
            client: claims.client_id.into(),
            scopes,
            session,
            lives_with: party.principal.lives_with.clone(),
        };
        let obtained = self.app.onward.obtain(wanted, self.keys, claims.jti, issued.expires).await;
        obtained.map_err(|failure| self.refusal(onward, subject, failure))
    }

    fn refusal(&self, onward: &Onward, subject: &str, failure: Failure) -> Refusal {
        let name = onward.name();
        let away = |why: &str| {
            // It may have been reached, and have answered that it is in trouble or asked too often.
            let description = format!(
                "{name} gives no token at the moment: {why}; try again, and if it stays so, check its status and that \
                 Doorward can reach it"
            );
            Refusal::unavailable(Reason::UpstreamUnreachable, description)
        };
        match failure {
            Failure::Away(why) => away(&why),
            Failure::LeftAlone(left) => {
                let pause = onward.circuit_breaker.pause;
                away(&format!("its last calls failed, so it is not asked again for {pause}")).again_after(left)
            }
            Failure::Unfit(why) => Refusal::gateway(format!("what {name} gives is not passed on: {why}")),
            Failure::Refused { error, said, passes } => {
                let said = said.map(|said| format!(" ({said})")).unwrap_or_default();
                // At the front, as a step shows only the beginning of a long text.
                let passing = if passes { ", which can be temporary, so try again" } else { "" };
                let issuer = self.own_issuer.issuer();
                let description = format!(
                    "{name} refused with `{error}`{passing}{said}. It was shown issuer `{issuer}`, subject `{subject}`, audience `{}`: it must \
                     trust exactly these, be able to fetch {issuer}{}, and let this subject have the scopes",
                    onward.assertion_audience,
                    metadata::KEYS,
                );
                match passes {
                    true => Refusal::refused_for_now(description),
                    false => Refusal::of_provider(&error, description),
                }
            }
        }
    }
}

/// The claims of an assertion: those of our own token, with another audience and possibly another subject. The times
/// are added when it is signed. The provider's token is for every caller in the pod that asks for the same, whichever
/// token of the pod it uses.
fn assertion(claims: &AccessToken<'_>, audience: &str, subject: &str) -> Result<Map<String, Value>, Refusal> {
    let unsigned = || Refusal::unavailable(Reason::Internal, "the assertion cannot be made");
    let Ok(Value::Object(mut said)) = serde_json::to_value(claims) else { return Err(unsigned()) };
    said.insert("aud".to_owned(), audience.into());
    said.insert("sub".to_owned(), subject.into());
    for name in ["iat", "exp", "jti", EXCHANGED_CLAIM] {
        said.remove(name);
    }
    if let Some(Value::Object(run)) = said.get_mut(RUN_CLAIM) {
        run.remove(claims::POD_TOKEN);
    }
    Ok(said)
}
