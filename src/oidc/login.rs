//! The login of one configuration generation: routes its paths, and sends browsers without a session to it.

use std::{fmt, net::IpAddr, sync::Arc};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, header};
use openidconnect::{
    AuthUrl, AuthenticationContextClass, AuthenticationFlow, ClientId, CsrfToken, IssuerUrl, JsonWebKeySet, LoginHint,
    Nonce, PkceCodeChallenge, RedirectUrl, Scope,
    core::{CoreAuthPrompt, CoreClient, CoreResponseType},
};
use url::Url;

use super::{
    LoginMetrics, Metadata, Outcome, Protocol, Provider, SIGN_IN, SIGN_OUT, START, Wishes, attempts, backchannel,
    choice,
    failure::Failure,
    flow::{self, Flow, State},
    parameters::{Parameters, encode},
    program::{self, Program},
    redirect as address,
    return_to::{self, ReturnTo},
    unsent,
};
use crate::{
    audit::FailedLogin,
    authn::{EndpointAudit, NeededLogin},
    clock::Timestamp,
    config::raw::Prompt,
    error::Rejection,
    pages::{self, Brand, Choice, GoingView, SignInView},
    request::{method, respond::see_other},
    sessions::{Ended, Origin, Session, SessionHash, Sessions, cookie, csrf},
    store::StoreError,
};

/// The login of one generation of the configuration. Cheap to clone.
#[derive(Clone)]
pub struct Login(pub(super) Arc<Inner>);

pub(super) struct Inner {
    pub providers: Vec<Arc<dyn Provider>>,
    pub sessions: Sessions,
    pub metrics: LoginMetrics,
    pub brand: Brand,
}

/// A request to one of the paths of the login.
#[derive(Clone, Copy, Debug)]
pub struct LoginRequest<'a> {
    /// The origin at which it arrived.
    pub origin: &'a Origin,
    pub method: &'a Method,
    pub path: &'a str,
    pub query: Option<&'a str>,
    /// All headers as received, including `Cookie`, `Origin` and `Sec-Fetch-*`.
    pub headers: &'a HeaderMap,
    /// The body of a form; empty for other requests.
    pub body: &'a [u8],
    pub request_id: &'a str,
    /// The address of the client.
    pub address: IpAddr,
    /// Whether `address` is that of a proxy that did not name its client.
    pub is_shared_address: bool,
    /// Records the identity of the caller once it is known, and why a login failed.
    pub audit: &'a EndpointAudit,
    /// Issuers whose sessions no route of this host accepts.
    pub left_out: &'a [Arc<str>],
}

impl LoginRequest<'_> {
    /// The address to rate limit by; `None` for a proxy that did not name its client, as one client would lock out all
    /// others.
    pub(super) fn party(&self) -> Option<IpAddr> {
        (!self.is_shared_address).then_some(self.address)
    }
}

/// Requirements of a login beyond the configured ones.
pub(super) struct Wanted {
    /// What a rule needs of the login.
    pub needed: Option<NeededLogin>,
    /// Whether the person must authenticate even if they have a session at the provider.
    pub anew: bool,
}

/// The page that a browser without a session is sent to. It preserves the fragment of the address, which a direct
/// redirect to the provider would lose.
const CONTINUE: &str = "/oauth2/continue";

/// The page that the provider sends the browser to after a logout.
pub(super) const SIGNED_OUT: &str = "/oauth2/signed_out";

/// The allowed methods of a login path, in the form of an `Allow` header. `None` for other paths and for the back
/// channel, which answers every method itself.
fn methods(path: &str) -> Option<&'static str> {
    Some(match path {
        CONTINUE | SIGN_IN | SIGNED_OUT | unsent::PATH | program::DONE => "GET, HEAD",
        SIGN_OUT | program::PAGE | program::DEVICE => "GET, HEAD, POST",
        program::TOKEN | program::END | program::DEVICE_REQUEST => "POST",
        START => "GET",
        path if address::leads_back(path) => "GET",
        _ => return None,
    })
}

impl Login {
    /// `providers` are in the order in which they are offered.
    pub fn new(providers: Vec<Arc<dyn Provider>>, sessions: Sessions, metrics: LoginMetrics, brand: Brand) -> Self {
        Self(Arc::new(Inner { providers, sessions, metrics, brand }))
    }

    /// The names of the issuers at which people can log in, in the order in which they are offered.
    pub fn issuers(&self) -> impl Iterator<Item = &Arc<str>> {
        self.0.providers.iter().map(|provider| provider.name())
    }

    /// Whether there is a provider at all.
    fn is_possible(&self) -> bool {
        !self.0.providers.is_empty()
    }

    /// The redirect for a browser whose request needs a session and has no valid one. After the login, a navigation
    /// returns to its page, and a form of one of our pages leads to a page that says that it was not sent. `None` for
    /// all other requests, which get a refusal.
    pub fn challenge(
        &self,
        origin: &Origin,
        method: &Method,
        path: &str,
        query: Option<&str>,
        headers: &HeaderMap,
    ) -> Option<String> {
        if !self.is_possible() {
            return None;
        }
        let target = if csrf::is_navigation(method, headers) {
            query.map_or_else(|| path.to_owned(), |query| format!("{path}?{query}"))
        } else if csrf::is_submission(method, headers) && csrf::check(method, headers, false, origin).is_ok() {
            unsent::address(self.0.sessions.keys(), origin, method, path, headers)?
        } else {
            return None;
        };
        Some(format!("{CONTINUE}?rd={}", encode(&target)))
    }

    /// The address of a step-up login at `issuer`, for a session whose login lacks `needed`.
    pub fn step_up(&self, issuer: &str, needed: &NeededLogin, return_to: &str) -> String {
        choice::way(CONTINUE, issuer, Some(needed), return_to)
    }

    /// Whether this request may give a session to a browser or a program, or allow a program one.
    pub fn lets_in(method: &Method, path: &str) -> bool {
        address::leads_back(path) || path == program::TOKEN || (path == program::DEVICE && *method == Method::POST)
    }

    /// Reserves space in the audit trail for the record of a sign-in. Called after all checks, so that unauthenticated
    /// clients cannot take space that requests need.
    pub(super) async fn reserve(&self, audit: &EndpointAudit) -> Result<(), Rejection> {
        audit.set_reservation(self.0.sessions.shared().trail.reserve(1).await?);
        Ok(())
    }

    /// Answers a request to a path of the login; `None` for other paths. Every answer is final and must not be cached.
    pub async fn answer(&self, request: LoginRequest<'_>) -> Option<Response<Bytes>> {
        if request.path == backchannel::PATH {
            return Some(self.backchannel_logout(request).await);
        }
        let allow = methods(request.path)?;
        if !method::is_listed(request.method, allow) {
            return Some(self.not_allowed(request, allow));
        }
        let posts = *request.method == Method::POST;
        let answer = match request.path {
            CONTINUE => self.go_on(request).await,
            START => self.start(request).await,
            SIGN_IN => self.sign_in(request).await,
            SIGN_OUT if posts => self.sign_out(request).await,
            SIGN_OUT => self.confirm_sign_out(request).await,
            SIGNED_OUT => self.signed_out(request).await,
            unsent::PATH => self.unsent(request).await,
            program::PAGE if posts => self.begin_for_program(request).await,
            program::PAGE => self.ask_for_program(request).await,
            program::TOKEN => Ok(self.exchange_code(request).await),
            program::END => Ok(self.end_for_program(request).await),
            program::DEVICE => self.device(request).await,
            program::DEVICE_REQUEST => Ok(self.begin_device(request).await),
            program::DONE => Ok(self.device_done(request)),
            path if address::leads_back(path) => self.callback(request).await,
            _ => return None,
        };
        Some(answer.unwrap_or_else(|mut failure| {
            let issuer = request.audit.issuer();
            if matches!(request.path, SIGN_OUT | SIGNED_OUT) {
                failure.log("a sign-out", issuer.as_deref(), request.request_id);
            } else {
                failure.log("a login", issuer.as_deref(), request.request_id);
                let failed = FailedLogin { outcome: failure.outcome, issuer };
                request.audit.set_failed_login(failed, failure.refusal.take());
            }
            failure.page(request.request_id, &self.0.brand)
        }))
    }

    fn not_allowed(&self, request: LoginRequest<'_>, allow: &'static str) -> Response<Bytes> {
        let failure = Failure::new(Outcome::malformed, "This address is not used in this way.")
            .detail(format!("the method is {}; allowed: {allow}", super::bounded(request.method.as_str())))
            .titled(StatusCode::METHOD_NOT_ALLOWED, "This does not work here");
        let mut response = failure.page(request.request_id, &self.0.brand);
        response.headers_mut().insert(header::ALLOW, HeaderValue::from_static(allow));
        response
    }

    async fn go_on(&self, request: LoginRequest<'_>) -> Result<Response<Bytes>, Failure> {
        let parameters = parse(request)?;
        let ReturnTo { address: return_to, is_elsewhere } = return_to::of(request.origin, parameters.get("rd"));
        let needed = needed(&parameters);
        if self.signed_in_meanwhile(request, needed.as_ref()).await?.is_some() {
            // The browser adds the fragment of this page to an address without one (Fetch section 4.4).
            return Ok(redirect(if is_elsewhere { "/#" } else { &return_to }));
        }
        let host = request.origin.authority();
        let named = parameters.get("issuer").and_then(|name| self.offered_as(name, request));
        let (several, chosen) = match self.only_offered(request) {
            Some(only) => (false, Some(only)),
            None => (named.is_none(), named.or_else(|| self.chosen_before(request))),
        };
        let page = match chosen {
            Some(provider) => pages::going_to_sign_in(&GoingView {
                host,
                name: &choice::label(&**provider),
                href: &choice::start(provider.name(), needed.as_ref(), &return_to),
                others: several.then(|| choice::sign_in_page(&return_to)).as_deref(),
                keeps_fragment: !is_elsewhere,
            }),
            None => pages::sign_in(&SignInView {
                host,
                choices: &self.sign_in_choices(request, &return_to, false),
                keeps_fragment: !is_elsewhere,
            }),
        };
        Ok(pages::html(StatusCode::OK, &page, &self.0.brand))
    }

    async fn start(&self, request: LoginRequest<'_>) -> Result<Response<Bytes>, Failure> {
        let parameters = parse(request)?;
        let return_to = return_to::of(request.origin, parameters.get("rd")).address;
        let provider = match (parameters.get("issuer"), self.only_offered(request)) {
            (None, Some(only)) => only,
            (None, None) => {
                return Ok(redirect(&choice::sign_in_page(&return_to)));
            }
            (Some(name), _) => self.chosen(name, request)?,
        };
        let wanted = Wanted { needed: needed(&parameters), anew: parameters.get("prompt") == Some("login") };
        if !wanted.anew
            && is_led_by_page(request.headers)
            && let Some(session) = self.signed_in_meanwhile(request, wanted.needed.as_ref()).await?
            && session.issuer() == provider.name()
        {
            return Ok(redirect(&return_to));
        }
        self.begin(provider, request, &return_to, wanted, None).await.map_err(|mut failure| {
            failure.return_to = return_to;
            failure
        })
    }

    /// The session of the browser, if it suffices: another tab has signed in since this one was sent to the login.
    async fn signed_in_meanwhile(
        &self,
        request: LoginRequest<'_>,
        needed: Option<&NeededLogin>,
    ) -> Result<Option<Arc<Session>>, Failure> {
        let held = self.0.sessions.held_by(request.headers, request.origin).await?;
        Ok(held.filter(|session| !lacks(session, needed, self.0.sessions.now())))
    }

    /// Redirects the browser to the provider, to sign in the browser itself or `program`.
    pub(super) async fn begin(
        &self,
        provider: &Arc<dyn Provider>,
        request: LoginRequest<'_>,
        return_to: &str,
        wanted: Wanted,
        program: Option<Program>,
    ) -> Result<Response<Bytes>, Failure> {
        let internal = || Failure::new(Outcome::internal, "The sign-in could not begin. Try again.");
        request.audit.set_issuer(provider.name());
        let made = attempts::made(request.headers);
        if made >= attempts::MAX {
            return Err(self.looping(provider.name(), request));
        }
        let metadata = reachable(&**provider).await?;
        let (keys, now) = (self.0.sessions.keys(), self.0.sessions.now());
        let state = State::new(keys, now).ok_or_else(internal)?;
        let (challenge, verifier) = PkceCodeChallenge::new_random_sha256();
        let own_address =
            address::is_own(provider.client(), metadata.iss_parameter_supported, self.has_several_providers());
        let flow = Flow {
            origin: request.origin.as_str().to_owned(),
            issuer: provider.name().to_string(),
            issuer_url: provider.issuer().to_owned(),
            own_address,
            nonce: Nonce::new_random_len(32).secret().clone(),
            verifier: verifier.into_secret(),
            return_to: return_to.to_owned(),
            attempt: made.saturating_add(1),
            before: SessionHash::of_browser(request.headers).map(|session| session.to_string()),
            needed: wanted.needed,
            program,
        };
        let anew = wanted.anew || flow.begins_anew(provider.client());
        let line = flow.to_cookie(keys, &state).ok_or_else(internal)?;
        let url = authorization_url(&**provider, &metadata, request.origin, &flow, &state, challenge, anew);
        let url = url.ok_or_else(internal)?;
        self.0.metrics.begun();
        let mut response = redirect(url.as_str());
        for line in flow::give_up_oldest(request.headers, &line).into_iter().chain([line]) {
            response.headers_mut().append(header::SET_COOKIE, line);
        }
        Ok(response)
    }

    /// Stops a browser whose sessions do not last, and logs it.
    fn looping(&self, issuer: &Arc<str>, request: LoginRequest<'_>) -> Failure {
        self.0.metrics.ended(Some(issuer), Outcome::looping);
        tracing::warn!(
            request_id = request.request_id,
            issuer = %issuer,
            origin = %request.origin,
            "a browser signs in again and again: its sessions are invalid a moment later"
        );
        let mut failure = Failure::new(
            Outcome::looping,
            "You signed in several times in a row, and each time the session was gone at once. Doorward stopped \
             trying. If it goes on, tell whoever runs Doorward: the log says why sessions are refused.",
        );
        failure.cookie = Some(Box::new(attempts::forget()));
        failure
    }

    /// The page with the providers. A person who opens it wants to sign in again, so an existing session is ended
    /// (CVE-2026-34454 is a page that only seemed to do so). It is not ended if another site sent the browser here, nor
    /// for an image or a frame with this address, which a request from a service worker may be too.
    async fn sign_in(&self, request: LoginRequest<'_>) -> Result<Response<Bytes>, Failure> {
        let parameters = parse(request)?;
        let ReturnTo { address: return_to, is_elsewhere } = return_to::of(request.origin, parameters.get("rd"));
        let site = request.headers.get("sec-fetch-site").map(HeaderValue::as_bytes);
        let wanted = matches!(site, None | Some(b"none" | b"same-origin"))
            && csrf::is_navigation(request.method, request.headers)
            && request.headers.get("sec-fetch-dest").is_none_or(|destination| destination == "document");
        let held = wanted && !matches!(cookie::find(request.headers, cookie::SESSION), Ok(None));
        if held && let Some(session) = self.0.sessions.held_by(request.headers, request.origin).await? {
            self.0.sessions.end(&session, Ended::signed_out).await.map_err(|error| store_failed(&error))?;
        }
        let view = SignInView {
            host: request.origin.authority(),
            choices: &self.sign_in_choices(request, &return_to, held),
            keeps_fragment: !is_elsewhere,
        };
        let mut response = pages::html(StatusCode::OK, &pages::sign_in(&view), &self.0.brand);
        if held {
            for line in [cookie::delete(cookie::SESSION), attempts::forget()] {
                response.headers_mut().append(header::SET_COOKIE, line);
            }
        }
        Ok(response)
    }

    /// With `anew`, the links have the person authenticate again: the provider would sign in the same person without
    /// asking.
    fn sign_in_choices(&self, request: LoginRequest<'_>, return_to: &str, anew: bool) -> Vec<Choice> {
        self.choices(request, |issuer| match anew {
            true => choice::start_anew(issuer, None, return_to),
            false => choice::start(issuer, None, return_to),
        })
    }

    pub(super) fn has_several_providers(&self) -> bool {
        self.0.providers.len() > 1
    }

    pub(super) fn provider(&self, name: &str) -> Option<&Arc<dyn Provider>> {
        self.0.providers.iter().find(|provider| **provider.name() == *name)
    }
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Login").field("providers", &self.0.providers).finish_non_exhaustive()
    }
}

pub(super) fn parse(request: LoginRequest<'_>) -> Result<Parameters<'_>, Failure> {
    Parameters::parse(request.query).map_err(|error| {
        Failure::new(Outcome::malformed, "The address is not one that a sign-in uses.").detail(error.to_string())
    })
}

/// The metadata of a provider that can be used now. Nobody is sent to a provider if the login could not be completed.
async fn reachable(provider: &dyn Provider) -> Result<Arc<Metadata>, Failure> {
    let unavailable = |detail: String| Failure::new(Outcome::provider_unavailable, detail);
    let metadata = provider.metadata().filter(|_| provider.can_verify()).ok_or_else(|| {
        let label = choice::label(provider);
        unavailable(format!(
            "Doorward has not reached `{label}` yet, or cannot use it as it is set up. Try again in a moment; if that does \
             not help, tell whoever runs Doorward."
        ))
    })?;
    if !provider.answers().await {
        let label = choice::label(provider);
        return Err(unavailable(format!("`{label}` does not answer. Try again in a moment.")));
    }
    Ok(metadata)
}

/// The authorization request; `None` if the issuer or our redirect address is not a valid URL.
fn authorization_url(
    provider: &dyn Provider,
    metadata: &Metadata,
    origin: &Origin,
    flow: &Flow,
    state: &State,
    challenge: PkceCodeChallenge,
    anew: bool,
) -> Option<Url> {
    let us = provider.client();
    let issuer = IssuerUrl::new(provider.issuer().to_owned()).ok()?;
    let redirect_uri = RedirectUrl::new(origin.url(&flow.callback())).ok()?;
    let client = CoreClient::new(ClientId::new(us.id().to_string()), issuer, JsonWebKeySet::new(Vec::new()))
        .set_auth_uri(AuthUrl::from_url(metadata.authorization_endpoint.clone()))
        .set_redirect_uri(redirect_uri);
    let client = match us.protocol {
        Protocol::OpenId => client,
        Protocol::Github(_) => client.disable_openid_scope(),
    };
    let (csrf, nonce) = (CsrfToken::new(state.as_str().to_owned()), Nonce::new(flow.nonce.clone()));
    let scopes = us.scopes.iter().filter(|scope| ***scope != *"openid");
    let mut asked = client
        .authorize_url(AuthenticationFlow::<CoreResponseType>::AuthorizationCode, || csrf, || nonce)
        .add_scopes(scopes.map(|scope| Scope::new(scope.to_string())))
        .set_pkce_challenge(challenge);
    let Wishes { prompt, login_hint, max_age, parameters, .. } = &us.wishes;
    // Only one value: not every provider accepts two.
    if let Some(prompt) = anew.then_some(us.anew).or(*prompt) {
        asked = asked.add_prompt(match prompt {
            Prompt::Login => CoreAuthPrompt::Login,
            Prompt::Consent => CoreAuthPrompt::Consent,
            Prompt::SelectAccount => CoreAuthPrompt::SelectAccount,
        });
    }
    if let Some(hint) = login_hint {
        asked = asked.set_login_hint(LoginHint::new(hint.clone()));
    }
    if let Some(max_age) = flow.max_age(*max_age) {
        asked = asked.set_max_age(max_age);
    }
    for acr in flow.acr_values(us) {
        asked = asked.add_auth_context_value(AuthenticationContextClass::new(acr));
    }
    for (name, value) in parameters {
        asked = asked.add_extra_param(*name, value.as_str());
    }
    Some(asked.url().0)
}

/// Whether the login of a session does not meet what is needed.
pub(super) fn lacks(session: &Session, needed: Option<&NeededLogin>, now: Timestamp) -> bool {
    needed.is_some_and(|needed| needed.missing(&session.principal.login, now).is_some())
}

/// Whether one of our pages has led the browser here by itself (Fetch Metadata Request Headers section 2.4): nobody
/// asked for another login.
fn is_led_by_page(headers: &HeaderMap) -> bool {
    headers.get("sec-fetch-site").is_some_and(|site| site == "same-origin") && !headers.contains_key("sec-fetch-user")
}

/// What a rule needs of the login, from the query of its address.
fn needed(parameters: &Parameters<'_>) -> Option<NeededLogin> {
    NeededLogin::from_query(|name| parameters.get(name))
}

pub(super) fn store_failed(error: &StoreError) -> Failure {
    tracing::error!(%error, "the store failed during a login or a logout");
    Failure::new(Outcome::store_unavailable, "Doorward cannot reach its store. Try again in a moment.")
}

/// Like [`see_other`], but without a `Referer` for the target.
pub fn redirect(location: &str) -> Response<Bytes> {
    let mut response = see_other(location);
    response.headers_mut().insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    response
}
