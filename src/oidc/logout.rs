//! Sign-out at `/oauth2/sign_out`: ends the session here, those of this browser on our other hosts, and the one at the
//! provider.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Response, StatusCode, header};
use url::Url;

use super::{
    Login, LoginRequest, Outcome, Provider, SIGN_OUT, attempts,
    failure::Failure,
    login::{SIGNED_OUT, redirect, store_failed},
};
use crate::{
    clock::Timestamp,
    downstream::finished,
    egress::Bounds,
    issuers::presets::Logout,
    pages::{self, ConfirmSignOutView},
    sessions::{Ended, Session, cookie, csrf},
    store::StoreError,
};

/// The bounds of a revocation request.
const REVOCATION: Bounds = Bounds { timeout: Duration::from_secs(10), max_body: 64 << 10 };

/// The maximum bytes of an ID token that is sent to the provider as a hint. It is in a header of our response, for
/// which proxies in front allow 8 KiB if configured so, and then in a request line, for which providers allow no more.
/// Without it the provider asks the person.
const MAX_HINT: usize = 6 << 10;

/// The scope of a grant that outlasts the session at the provider (OpenID Connect Core 1.0 section 11).
const OFFLINE_ACCESS: &str = "offline_access";

impl Login {
    /// The confirmation page, as a link or an image must not sign anybody out. It says which sessions end.
    pub(super) async fn confirm_sign_out(&self, request: LoginRequest<'_>) -> Result<Response<Bytes>, Failure> {
        let session = self.to_sign_out(request).await?;
        let (others, some_go_on) = match &session {
            Some(session) => {
                let listed = self.0.sessions.signed_out_with(session).await;
                listed.map_err(|error| store_failed(&error).of_sign_out(false))?
            }
            None => (Vec::new(), false),
        };
        let who = session.as_ref().map(|session| display_name(session));
        let view = ConfirmSignOutView { who: who.as_deref(), others: &others, some_go_on };
        let page = pages::confirm_sign_out(&view);
        Ok(pages::html(StatusCode::OK, &page, &self.0.brand))
    }

    /// Ends the sessions of this browser on every host, then sends it to the provider to end its session there
    /// (OpenID Connect RP-Initiated Logout 1.0 section 2).
    pub(super) async fn sign_out(&self, request: LoginRequest<'_>) -> Result<Response<Bytes>, Failure> {
        csrf::check(request.method, request.headers, false, request.origin).map_err(|refusal| {
            // Browsers omit the cookie if another site sends a form, so without one nothing is known about a session.
            let brings_session = !matches!(cookie::find(request.headers, cookie::SESSION), Ok(None));
            let failure = if brings_session {
                Failure::new(Outcome::malformed, "Another page tried to sign you out. Nothing was done.")
                    .detail(refusal.detail().to_owned())
                    .titled(refusal.status(), "You are still signed in")
            } else {
                Failure::new(Outcome::malformed, "Another page sent the request, and without a session.")
                    .titled(refusal.status(), "Nobody was signed out")
            };
            failure.final_here()
        })?;
        let session = self.to_sign_out(request).await?;
        let mut location = SIGNED_OUT.to_owned();
        if let Some(session) = session {
            location = self.end_at_provider(&session, request).unwrap_or(location);
            let login = self.clone();
            // A client that disconnects must not leave a session ended and its grant valid.
            let signed_out = self.0.sessions.shared().finish(async move {
                // End it here first: whatever the provider does, this session is over.
                login.0.sessions.end_login(&session, Ended::signed_out).await?;
                login.take_back_grant(session);
                Ok::<_, StoreError>(())
            });
            finished(signed_out).await.map_err(|error| store_failed(&error).of_sign_out(true))?;
        }
        let mut response = redirect(&location);
        for line in [cookie::delete(cookie::SESSION), attempts::forget()] {
            response.headers_mut().append(header::SET_COOKIE, line);
        }
        Ok(response)
    }

    /// The session of the browser, which nothing has ended if this fails.
    async fn to_sign_out(&self, request: LoginRequest<'_>) -> Result<Option<Arc<Session>>, Failure> {
        let held = self.0.sessions.held_to_sign_out(request.headers, request.origin).await;
        held.map_err(|refusal| Failure::from(refusal).of_sign_out(false))
    }

    /// The page after a sign-out. Anybody may link to it, so somebody who is signed in is asked instead.
    pub(super) async fn signed_out(&self, request: LoginRequest<'_>) -> Result<Response<Bytes>, Failure> {
        let held = self.0.sessions.held_by(request.headers, request.origin).await;
        if held.map_err(|refusal| Failure::from(refusal).of_sign_out(true))?.is_some() {
            return Ok(redirect(SIGN_OUT));
        }
        Ok(pages::html(StatusCode::OK, &pages::signed_out(), &self.0.brand))
    }

    fn end_at_provider(&self, session: &Session, request: LoginRequest<'_>) -> Option<String> {
        let provider = self.provider(session.issuer())?;
        let metadata = provider.metadata()?;
        let (client, back) = (provider.client(), request.origin.url(SIGNED_OUT));
        let announced = metadata.end_session_endpoint.clone();
        let mut url = match (client.logout, announced) {
            (Logout::Cognito, announced) => {
                // Not the issuer's host: the pool's own domain, where people log in.
                let mut url = announced.unwrap_or_else(|| metadata.authorization_endpoint.clone());
                url.set_path("/logout");
                url.set_query(None);
                url.query_pairs_mut().append_pair("logout_uri", &back);
                url
            }
            (Logout::Auth0, None) => {
                let mut url = Url::parse(provider.issuer()).ok()?.join("/v2/logout").ok()?;
                url.query_pairs_mut().append_pair("returnTo", &back);
                url
            }
            (Logout::RpInitiated | Logout::Auth0, announced) => {
                let mut url = announced?;
                if let Some(token) = session.tokens().id.as_ref().filter(|token| token.len() <= MAX_HINT) {
                    url.query_pairs_mut().append_pair("id_token_hint", token);
                }
                url.query_pairs_mut().append_pair("post_logout_redirect_uri", &back);
                url
            }
        };
        url.query_pairs_mut().append_pair("client_id", client.id());
        Some(url.into())
    }

    /// Revokes the grant of a session that was signed out, in the background, if it outlasts the session at the
    /// provider. Not at Auth0, where this would revoke the grants of the person's other sessions too. Cognito's refresh
    /// tokens last for 30 days without that scope, and its `/logout` only deletes the cookie.
    fn take_back_grant(&self, session: Arc<Session>) {
        let Some(provider) = self.provider(session.issuer()).map(Arc::clone) else { return };
        let Some(endpoint) = provider.metadata().and_then(|metadata| metadata.revocation_endpoint.clone()) else {
            return;
        };
        let is_offline = || session.principal.scopes.iter().any(|scope| **scope == *OFFLINE_ACCESS);
        let outlasts = match provider.client().logout {
            Logout::Auth0 => false,
            Logout::Cognito => true,
            Logout::RpInitiated => is_offline(),
        };
        if !outlasts {
            return;
        }
        let now = self.0.sessions.now();
        self.0.sessions.shared().finish(async move {
            let Some(token) = session.tokens().refresh.as_deref() else { return };
            if let Err(why) = revoke(&*provider, &endpoint, token, now).await {
                let issuer = provider.name();
                tracing::warn!(%issuer, why, "could not revoke the grant of a session that was signed out");
            }
        });
    }
}

/// Revokes a refresh token (RFC 7009). A token that is already invalid is not an error (section 2.2).
async fn revoke(provider: &dyn Provider, endpoint: &Url, token: &str, now: Timestamp) -> Result<(), String> {
    let revoked = [("token", token), ("token_type_hint", "refresh_token")];
    let request = provider.client().authentication.post(now, endpoint, "application/json", &revoked)?;
    let answer = provider.egress().send(request, REVOCATION).await.map_err(|error| error.to_string())?;
    if answer.status().is_success() { Ok(()) } else { Err(format!("it answers {}", answer.status())) }
}

pub(super) fn display_name(session: &Session) -> String {
    session.principal.email.as_ref().unwrap_or(&session.principal.username).to_string()
}
