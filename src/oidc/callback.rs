//! The callback (`/oauth2/callback`): turns the response of the provider into a session, or a page that says why not.

use std::{borrow::Cow, collections::BTreeSet, error::Error, net::IpAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, Response, StatusCode, header};
use serde_json::{Map, Value};

use super::{
    Login, LoginRequest, Outcome, Protocol, Provider, VerifiedIdToken, attempts, bounded, choice,
    exchange::{self, ExchangeError, Granted},
    failure::{Failure, token_error},
    flow::{self, Flow, LIFETIME, State},
    github::{Github, GithubError},
    id_token::{self, Expected, Mismatch, Nonce, SKEW},
    login::{lacks, parse, redirect, store_failed},
    parameters::Parameters,
    program,
    refresh::RefreshError,
    vouch::require_userinfo,
};
use crate::{
    authn::EndpointAudit,
    config::values::Span,
    error::{Reason, Rejection},
    issuers::{TokenError, login_facts},
    sessions::{Ended, NewSession, Origin, Seen, Tab, Tokens, cookie, keyring::Purpose, userinfo},
    store::{Expect, StoreError, Table, Written},
};

/// A response of the provider that is known to belong to this browser's login, to be completed.
struct Accepted {
    provider: Arc<dyn Provider>,
    state: State,
    /// The store version of the record that marks the state as used.
    mark: u64,
    flow: Flow,
    code: String,
    origin: Origin,
    headers: HeaderMap,
    address: IpAddr,
    audit: EndpointAudit,
}

impl Login {
    /// Handles the response of the provider. Nothing is sent to the provider, and no cookie is set, before the response
    /// is known to belong to a login that this browser began here, and to come from the provider where it began.
    pub(super) async fn callback(&self, request: LoginRequest<'_>) -> Result<Response<Bytes>, Failure> {
        let (result, issuer) = self.complete(request).await;
        if let Some(issuer) = &issuer {
            request.audit.set_issuer(issuer);
        }
        let outcome = result.as_ref().map_or_else(|failure| failure.outcome, |_| Outcome::success);
        self.0.metrics.ended(issuer.as_ref(), outcome);
        result
    }

    async fn complete(&self, request: LoginRequest<'_>) -> (Result<Response<Bytes>, Failure>, Option<Arc<str>>) {
        let keys = self.0.sessions.keys();
        let (parameters, state) = match parse(request).and_then(|parameters| {
            let state = self.state(&parameters)?;
            Ok((parameters, state))
        }) {
            Ok(found) => found,
            Err(failure) => return (Err(failure), None),
        };
        let Some(flow) = Flow::from_cookie(keys, &state, request.headers) else {
            let mut failure = self.without_cookie(&state, request).await;
            failure.signed_in = self.is_signed_in(request).await;
            if failure.outcome == Outcome::other_browser
                && (failure.signed_in || flow::browser(request.headers).is_some())
            {
                let advice = if failure.signed_in { "Just go on" } else { "Sign in again" };
                failure.text = format!(
                    "It began somewhere else, or in a tab of this browser and was given up: of many at once the oldest are. \
                     {advice}. If you did not begin a sign-in at all, close this page: somebody may have sent you their own."
                )
                .into();
            }
            return (Err(if_just_go_on(failure)), None);
        };
        let (return_to, name) = (flow.return_to.clone(), flow.issuer.clone());
        let needed = flow.needed.clone();
        let provider = self.provider(&name).filter(|provider| provider.issuer() == flow.issuer_url);
        let issuer = provider.map(|provider| Arc::clone(provider.name()));
        let result = match self.accept(request, &parameters, &state, flow, provider).await {
            Ok(accepted) => self.finish(accepted).await,
            Err(failure) => Err(failure),
        };
        let over = cookie::delete(&state.cookie_name());
        let result = match result {
            Ok(mut response) => {
                response.headers_mut().append(header::SET_COOKIE, over);
                Ok(response)
            }
            Err(mut failure) => {
                failure.retry = failure.anew.then(|| choice::start_anew(&name, needed.as_ref(), &return_to).into());
                failure.return_to = return_to;
                // The cookie stays after a refusal of the provider, so that reloading the page shows the same refusal.
                failure.cookie = (failure.outcome != Outcome::provider_error).then(|| Box::new(over));
                // In a step-up, going on with the existing session would only meet the same rule again.
                let is_signed_in = self.is_signed_in(request).await;
                failure.signed_in = needed.is_none() && is_signed_in;
                if needed.is_some() && is_signed_in && !program::is_page(&failure.return_to) {
                    failure = still_signed_in(failure);
                }
                Err(if_just_go_on(failure))
            }
        };
        (result, issuer)
    }

    /// Whether the browser can go on although this response is worthless: another tab has signed in, or the person went
    /// back in the history.
    pub(super) async fn is_signed_in(&self, request: LoginRequest<'_>) -> bool {
        matches!(self.0.sessions.held_by(request.headers, request.origin).await, Ok(Some(_)))
    }

    fn state(&self, parameters: &Parameters<'_>) -> Result<State, Failure> {
        let malformed = |detail| {
            Failure::new(Outcome::malformed, "The provider sent you back with an incomplete answer. Sign in again.")
                .detail(detail)
        };
        match (parameters.get("code"), parameters.get("error")) {
            (Some(_), Some(_)) => return Err(malformed("both `code` and `error` are there")),
            (None, None) => return Err(malformed("neither `code` nor `error` is there")),
            _ => {}
        }
        let text = parameters.get("state").ok_or_else(|| malformed("`state` is missing"))?;
        State::parse(self.0.sessions.keys(), text).ok_or_else(|| {
            Failure::new(Outcome::state_unknown, "Doorward does not know the sign-in that this answers. Sign in again.")
        })
    }

    /// Why a response to one of our logins comes without its cookie: it is late, it was completed before, or it is in
    /// the wrong browser.
    async fn without_cookie(&self, state: &State, request: LoginRequest<'_>) -> Failure {
        let (shared, now) = (self.0.sessions.shared(), self.0.sessions.now());
        if state.is_over(now) {
            return expired();
        }
        match shared.store.get(Table::Logins, &state.hash(), now).await {
            Ok(Some(completed)) => {
                let mut failure = replayed();
                failure.return_to = self.led_to(state, &completed.value).unwrap_or(failure.return_to);
                failure
            }
            Ok(None) => {
                let text = "Open Doorward in the browser in which you want to work, and sign in there. \
                            If you did not begin a sign-in at all, close this page: somebody may have sent you their own.";
                let told: Cow<'static, str> = keeps_no_cookie(request)
                    .map_or_else(|| text.into(), |told| format!("{told} Otherwise: {text}").into());
                Failure::new(Outcome::other_browser, told)
            }
            Err(error) => store_failed(&error),
        }
    }

    /// Makes all checks of the response that need no other party, and finally marks the state as used.
    async fn accept(
        &self,
        request: LoginRequest<'_>,
        parameters: &Parameters<'_>,
        state: &State,
        flow: Flow,
        provider: Option<&Arc<dyn Provider>>,
    ) -> Result<Accepted, Failure> {
        if flow.origin != request.origin.as_str() {
            return Err(Failure::new(Outcome::other_browser, "It began on another host. Sign in again on this one."));
        }
        if state.is_over(self.0.sessions.now()) {
            return Err(expired());
        }
        let provider = provider.ok_or_else(|| {
            Failure::new(Outcome::provider_unavailable, "The provider is no longer configured. Choose another one.")
        })?;
        let elsewhere =
            || Failure::new(Outcome::issuer_mismatch, "The answer does not come from the provider where you began.");
        // RFC 9700 section 4.4.2.2.
        if request.path != flow.callback() {
            let detail = format!("it was expected at {} and came at {}", flow.callback(), bounded(request.path));
            return Err(elsewhere().detail(detail));
        }
        let names_itself = provider.metadata().is_some_and(|metadata| metadata.iss_parameter_supported);
        // RFC 9207 section 2.4. An `iss` must match even if it was not announced. Without one, the address must prove
        // who responds, unless the configuration says otherwise.
        let named = parameters.get("iss");
        let at_risk = self.has_several_providers() && !flow.own_address;
        let must_name = names_itself || (at_risk && provider.client().redirect.is_none());
        if named.is_some_and(|named| !provider.is_named(named)) || (named.is_none() && must_name) {
            let named = named.map_or_else(|| "none".to_owned(), bounded);
            return Err(elsewhere().detail(format!("expected {}, the answer names {named}", provider.issuer())));
        }
        // Before anything is stored: anybody may send such a response any number of times, with the same result.
        if let Some(error) = parameters.get("error") {
            let description = parameters.get("error_description").map(|text| format!(": {}", bounded(text)));
            let text = match error {
                "access_denied" => "You or the provider declined. Sign in again, perhaps with another account.",
                "temporarily_unavailable" | "server_error" => "The provider has trouble. Try again in a moment.",
                _ => "It gave the reason below. If this keeps happening, tell whoever runs Doorward.",
            };
            let detail = format!("{}{}", bounded(error), description.unwrap_or_default());
            let mut failure = Failure::new(Outcome::provider_error, text).detail(detail);
            failure.anew = error == "access_denied";
            return Err(failure);
        }
        let mark = self.use_up(state).await?;
        Ok(Accepted {
            provider: Arc::clone(provider),
            state: state.clone(),
            mark,
            flow,
            code: parameters.get("code").unwrap_or_default().to_owned(),
            origin: request.origin.clone(),
            headers: request.headers.clone(),
            address: request.address,
            audit: request.audit.clone(),
        })
    }

    /// Marks a state as used, so that only one of several responses with it succeeds. The record is empty: the client
    /// is not authenticated yet and could fill the store with data of its choice.
    async fn use_up(&self, state: &State) -> Result<u64, Failure> {
        match self.mark(state, Vec::new(), Expect::Absent).await {
            Ok(Written::Done(version)) => Ok(version),
            Ok(Written::Conflict(_)) => Err(replayed()),
            Err(error) => Err(store_failed(&error)),
        }
    }

    /// Stores where a successful login led to, for the page that is shown if its response is repeated.
    async fn note_where_it_led(&self, state: &State, mark: u64, return_to: &str) {
        let keys = self.0.sessions.keys();
        let Some(led_to) = keys.seal(Purpose::Completed, state.as_str().as_bytes(), return_to.as_bytes()) else {
            return;
        };
        if let Err(error) = self.mark(state, led_to, Expect::Version(mark)).await {
            tracing::debug!(%error, "where a login led to was not noted");
        }
    }

    async fn mark(&self, state: &State, value: Vec<u8>, expect: Expect) -> Result<Written, StoreError> {
        // Stored until the state has expired by the clock of every replica.
        let until = state.began + LIFETIME * 2;
        let store = &self.0.sessions.shared().store;
        store.put(Table::Logins, &state.hash(), value, until, expect, self.0.sessions.now()).await
    }

    fn led_to(&self, state: &State, sealed: &[u8]) -> Option<String> {
        let plain = self.0.sessions.keys().open(Purpose::Completed, state.as_str().as_bytes(), sealed).ok()?;
        String::from_utf8(plain).ok()
    }

    /// Completes the login on the control runtime: a client that disconnects must not leave a used code without a
    /// session.
    async fn finish(&self, accepted: Accepted) -> Result<Response<Bytes>, Failure> {
        let login = self.clone();
        let task = self.0.sessions.shared().finish(async move { login.sign_in_with(accepted).await });
        task.await.unwrap_or_else(|error| {
            tracing::error!(%error, "a login ended early");
            Err(Failure::new(Outcome::internal, "The sign-in could not be completed. Try again."))
        })
    }

    async fn sign_in_with(&self, accepted: Accepted) -> Result<Response<Bytes>, Failure> {
        let Accepted { provider, state, mark, flow, code, origin, headers, address, audit } = accepted;
        let Granted { access, refresh, id, scopes } = self.exchange(&*provider, &flow, code, &origin).await?;
        let tokens = Tokens { access, refresh, id };
        let mut claims = self.identify(&*provider, &flow, &tokens).await?;
        let (mut from_userinfo, mut in_both) = (BTreeSet::new(), BTreeSet::new());
        if provider.client().asks_userinfo {
            let userinfo = self.ask_userinfo(&*provider, &tokens.access, &claims).await?;
            in_both = userinfo::known(&claims, &userinfo).cloned().collect();
            userinfo::complete(Arc::make_mut(&mut claims), &mut from_userinfo, &userinfo);
        }
        self.check_needed(&*provider, &flow, &claims)?;
        self.reserve(&audit).await?;
        // An answer without `scope` grants what was asked for (RFC 6749 section 5.1).
        let client = provider.client();
        let scopes = scopes.map_or_else(|| client.scopes.clone(), |scopes| client.protocol.split_scopes(scopes));
        let sessions = &self.0.sessions;
        if let Some(program) = flow.program {
            let seen = Seen::default();
            let new = NewSession {
                origin: &origin,
                provider: &*provider,
                claims,
                from_userinfo,
                in_both,
                scopes,
                tokens,
                seen,
            };
            let response = self.hand_over(program, new, &audit).await?;
            self.note_where_it_led(&state, mark, &flow.return_to).await;
            return Ok(response);
        }
        let before = sessions.held_by(&headers, &origin).await?;
        let seen = Seen::of(&headers, address);
        let new =
            NewSession { origin: &origin, provider: &*provider, claims, from_userinfo, in_both, scopes, tokens, seen };
        // The session of a tab that was faster is retained if it suffices, as it may already have streams. A session
        // that the browser had when this login began is always replaced, so that such a login gives a new id.
        let needed = flow.needed.as_ref();
        let (line, session) = match before {
            Some(before)
                if flow.before != Some(before.name())
                    && before.covers(&new)
                    && !lacks(&before, needed, sessions.now()) =>
            {
                (None, before)
            }
            before => {
                let tab = flow::browser(&headers).map(|browser| Tab { browser, began: state.began });
                let (line, session) = sessions.create(new, tab).await?;
                if let Some(before) = before.filter(|before| before.name() != session.name()) {
                    sessions.end(&before, Ended::replaced).await.map_err(|error| store_failed(&error))?;
                }
                (line, session)
            }
        };
        audit.set_principal(&session.principal);
        self.note_where_it_led(&state, mark, &flow.return_to).await;
        if line.is_some() {
            tracing::info!(issuer = %provider.name(), subject = %session.principal.subject, "signed in");
        }
        let mut response = redirect(&flow.return_to);
        let choice = (self.0.providers.len() > 1).then(|| choice::remember(provider.name()));
        for line in line.into_iter().chain([attempts::note(flow.attempt)]).chain(choice) {
            response.headers_mut().append(header::SET_COOKIE, line);
        }
        Ok(response)
    }

    async fn exchange(
        &self,
        provider: &dyn Provider,
        flow: &Flow,
        code: String,
        origin: &Origin,
    ) -> Result<Granted, Failure> {
        let unreachable = || {
            Failure::new(Outcome::provider_unavailable, "Doorward cannot reach the provider. Try again in a moment.")
        };
        let metadata = provider.metadata().ok_or_else(unreachable)?;
        let (now, verifier) = (self.0.sessions.now(), flow.verifier.clone());
        exchange::exchange(provider, &metadata, code, verifier, origin.url(&flow.callback()), now).await.map_err(
            |error| {
                tracing::warn!(issuer = %provider.name(), %error, "a code gave no tokens");
                match error {
                    ExchangeError::Unreachable(_) => unreachable(),
                    error => exchange_failed(error.to_string()),
                }
            },
        )
    }

    /// The claims of the person who signed in.
    async fn identify(
        &self,
        provider: &dyn Provider,
        flow: &Flow,
        tokens: &Tokens,
    ) -> Result<Arc<Map<String, Value>>, Failure> {
        match (&provider.client().protocol, &tokens.id) {
            (Protocol::Github(github), _) => Ok(Arc::new(self.ask_github(provider, github, &tokens.access).await?)),
            (Protocol::OpenId, Some(token)) => Ok(self.verify(provider, flow, token, &tokens.access).await?.claims),
            (Protocol::OpenId, None) => {
                tracing::warn!(issuer = %provider.name(), "a code gave no ID token");
                Err(exchange_failed("the answer of the provider has no `id_token`".to_owned()))
            }
        }
    }

    /// The claims that userinfo returns. Without them the login fails: claims that are missing would match neither
    /// grants nor denies.
    async fn ask_userinfo(
        &self,
        provider: &dyn Provider,
        access: &str,
        claims: &Map<String, Value>,
    ) -> Result<Map<String, Value>, Failure> {
        let told = match provider.metadata() {
            Some(metadata) => {
                let subject = claims.get("sub").and_then(Value::as_str);
                require_userinfo(provider, &metadata, access, subject).await
            }
            None => Err(RefreshError::Later("the provider was not reached yet".to_owned())),
        };
        told.map_err(|error| {
            tracing::warn!(issuer = %provider.name(), %error, "userinfo returned no claims at a sign-in");
            if let RefreshError::Gone(why) = error {
                return exchange_failed(why);
            }
            let text = "The provider does not tell Doorward who you are right now. Try again in a moment. If this \
                        keeps happening, tell whoever runs Doorward.";
            Failure::new(Outcome::provider_unavailable, text).detail(error.to_string())
        })
    }

    /// Checks that a step-up login satisfies the rule. Otherwise the browser would be redirected in a loop.
    fn check_needed(&self, provider: &dyn Provider, flow: &Flow, claims: &Map<String, Value>) -> Result<(), Failure> {
        let Some(needed) = &flow.needed else { return Ok(()) };
        let login = login_facts(claims).map_err(Rejection::from)?;
        match needed.missing(&login, self.0.sessions.now()) {
            None => Ok(()),
            Some(missing) => {
                tracing::warn!(issuer = %provider.name(), %missing, "a step-up login did not satisfy the rule");
                let mut failure = too_weak(Failure::new(Outcome::id_token_refused, ""));
                failure.text = format!("What you were doing needs {missing}. {}", failure.text).into();
                Err(failure)
            }
        }
    }

    async fn ask_github(
        &self,
        provider: &dyn Provider,
        github: &Github,
        access: &str,
    ) -> Result<Map<String, Value>, Failure> {
        github.person(provider, access).await.map_err(|error| {
            tracing::warn!(issuer = %provider.name(), %error, "GitHub did not confirm that a person may sign in");
            match error {
                GithubError::TokenRefused => exchange_failed(error.to_string()),
                GithubError::NotMember(why) => Failure::new(Outcome::identity_refused, format!("{why}.")),
                GithubError::Outsider(rejection) => outsider(provider, &rejection),
                GithubError::Unanswered(why) => Failure::new(
                    Outcome::provider_unavailable,
                    "GitHub does not tell Doorward who you are right now. Try again in a moment.",
                )
                .detail(why),
            }
        })
    }

    async fn verify(
        &self,
        provider: &dyn Provider,
        flow: &Flow,
        token: &str,
        access_token: &str,
    ) -> Result<VerifiedIdToken, Failure> {
        let refused = |why: String| {
            tracing::warn!(issuer = %provider.name(), %why, "an ID token was refused");
            Failure::new(
                Outcome::id_token_refused,
                "Sign in again. If this keeps happening, tell whoever runs Doorward.",
            )
            .detail(format!("ID token: {why}"))
        };
        let clocks = |why: String, skew: Duration| {
            let mut failure = refused(why).titled(StatusCode::BAD_GATEWAY, "The clocks do not agree");
            failure.text = format!(
                "The provider's clock and Doorward's differ by more than {}. Whoever runs Doorward can set them right; then sign \
                 in again.",
                Span(skew)
            )
            .into();
            failure
        };
        let token = match provider.verify_id_token(token).await {
            Ok(token) => token,
            Err(rejection) if rejection.status().is_server_error() => return Err(rejection.into()),
            Err(rejection) if lacks_required_claim(&rejection) => return Err(outsider(provider, &rejection)),
            Err(rejection) if matches!(rejection.reason(), Reason::TokenExpired | Reason::TokenNotYetValid) => {
                return Err(clocks(rejection.detail().to_owned(), provider.clock_skew()));
            }
            Err(rejection) => {
                tracing::warn!(issuer = %provider.name(), cause = rejection.source(), "an ID token was refused");
                return Err(Failure::of_id_token(rejection));
            }
        };
        let expected = Expected {
            issuer: provider.issuer(),
            client: provider.client().id(),
            nonce: Nonce::Required(&flow.nonce),
            access_token,
            max_age: flow.max_age(provider.client().wishes.max_age),
            acr_values: &provider.client().wishes.acr_values,
            now: self.0.sessions.now(),
        };
        id_token::check(&token, expected).map_err(|mismatch| match mismatch {
            Mismatch::IssuedAt | Mismatch::Expired => clocks(mismatch.to_string(), SKEW),
            Mismatch::AuthenticatedAt | Mismatch::AuthenticationContext => too_weak(refused(mismatch.to_string())),
            _ => refused(mismatch.to_string()),
        })?;
        Ok(token)
    }
}

/// The failure for a login that was not as strong, or as recent, as required.
fn too_weak(failure: Failure) -> Failure {
    let mut failure = failure.titled(StatusCode::FORBIDDEN, "The provider did not authenticate you as it was asked to");
    failure.text = "Sign in again, there with what is asked for (such as a second factor).".into();
    failure.anew = true;
    failure
}

fn lacks_required_claim(rejection: &Rejection) -> bool {
    matches!(token_error(rejection), Some(TokenError::RequiredClaim { .. }))
}

/// Advice for a browser that may not store our cookies. The loop breaker cannot stop it, as its count is a cookie too.
fn keeps_no_cookie(request: LoginRequest<'_>) -> Option<String> {
    if cookie::pairs(request.headers).any(|(name, _)| name.starts_with(cookie::PREFIX.as_bytes())) {
        return None;
    }
    let host = request.origin.authority();
    let advice = match request.origin.as_str().starts_with("http://") {
        true => format!(
            "allow cookies of {host}, and sign in again. Safari and other browsers of WebKit keep none over `http://`: use Firefox, \
             or a browser of Chromium."
        ),
        false => format!("allow cookies of {host}, and sign in again."),
    };
    Some(format!("If you began it in this browser, it did not keep Doorward's cookie: {advice}"))
}

/// The failure for a person whom the provider knows but `required_claims` excludes.
fn outsider(provider: &dyn Provider, rejection: &Rejection) -> Failure {
    tracing::warn!(issuer = %provider.name(), cause = rejection.source(), "sign-in rejected");
    Failure::new(
        Outcome::identity_refused,
        "The provider knows you, and your account there is not one of those that may sign in here. Sign in with another \
         account, or ask whoever runs Doorward.",
    )
}

fn exchange_failed(why: String) -> Failure {
    Failure::new(Outcome::exchange_failed, "Sign in again. If this keeps happening, tell whoever runs Doorward.")
        .detail(why)
}

fn expired() -> Failure {
    Failure::new(Outcome::expired, "More than ten minutes passed since it began. Sign in again.")
}

fn replayed() -> Failure {
    Failure::new(Outcome::replayed, "Its address is good for once only. Sign in again.")
}

/// The advice for somebody who comes back to a completed login: only with a session is there something to go on with.
fn if_just_go_on(mut failure: Failure) -> Failure {
    if failure.outcome == Outcome::replayed && failure.signed_in {
        failure.text = "If that was you, just go on. Otherwise sign in again.".into();
    }
    failure
}

/// The failure of a step-up login, which leaves the session as it was. It reads as signed out otherwise, and another
/// account is not what is missing.
fn still_signed_in(mut failure: Failure) -> Failure {
    let refused = failure.outcome == Outcome::provider_error && failure.anew;
    let said: &str = if refused { "You or the provider declined." } else { &failure.text };
    failure.text = format!("{said} You are still signed in as before: only what you were doing needs more.").into();
    failure
}
