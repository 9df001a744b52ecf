//! My sessions: where a person is signed in, and how they end their sessions. Whoever can see one of their sessions can
//! end them all, so nothing here accepts another credential than a session.

use bytes::Bytes;
use http::{Response, StatusCode};
use serde_json::json;
use url::form_urlencoded;

use super::{Context, document, signed_out};
use crate::{
    error::{Reason, Rejection},
    oidc::SIGN_OUT,
    pages::{self, OwnSession, OwnSessionsView},
    request::respond::see_other,
    sessions::{Which, csrf},
    store::StoreError,
};

pub const PATH: &str = "/.doorward/sessions";

/// Takes `session=NAME` or `others` in its query, and a POST from Doorward's own pages.
pub const END: &str = "/.doorward/sessions/end";

pub(super) async fn list(context: &Context<'_>) -> Result<Response<Bytes>, Rejection> {
    let Some(session) = context.session().await? else { return Ok(signed_out(context)) };
    let listed = context.snapshot.sessions.list_own(&session).await.map_err(unavailable)?;
    let current = session.name();
    if context.wants_json() {
        return Ok(document("no-store", &json!({"current": current, "sessions": listed})));
    }
    // The newest first, but the one of this request before all others.
    let mut own: Vec<OwnSession<'_>> =
        listed.iter().rev().map(|listed| OwnSession { listed, current: listed.session == current }).collect();
    own.sort_by_key(|own| !own.current);
    let view = OwnSessionsView {
        who: session.principal.email.as_deref().unwrap_or(&session.principal.username),
        sessions: &own,
        ended: parameter(context, "ended").and_then(|count| count.parse().ok()),
        request_id: &context.request.meta().id.to_string(),
    };
    Ok(pages::html(StatusCode::OK, &pages::own_sessions(&view), &context.snapshot.brand))
}

pub(super) async fn end(context: &Context<'_>) -> Result<Response<Bytes>, Rejection> {
    let (Some(session), Some(origin)) = (context.session().await?, &context.origin) else {
        return Ok(signed_out(context));
    };
    let request = &context.request;
    // No browser adds a handle by itself, so only its holder can have sent it.
    if !session.is_of_program() {
        csrf::check(request.method(), request.headers(), false, origin)?;
    }
    let named = parameter(context, "session");
    let which = match (&named, parameter(context, "others")) {
        // Signing out ends more than this record: the sessions at all hosts, and the provider's own.
        (Some(name), None) if *name == session.name() && !session.is_of_program() => {
            return Ok(see_other(SIGN_OUT));
        }
        (Some(name), None) => Which::One(name),
        (None, Some(_)) => Which::Others,
        _ => {
            return Err(Rejection::new(Reason::BadRequest, "the request does not say which session to end")
                .fix("go back to your sessions and press a button there"));
        }
    };
    let ended = context.snapshot.sessions.end_own(&session, which).await.map_err(unavailable)?;
    tracing::info!(
        issuer = %session.principal.issuer,
        subject = %session.principal.subject,
        by = session.name(),
        ended,
        "a user ended sessions of their own"
    );
    Ok(see_other(&format!("{PATH}?ended={ended}")))
}

fn parameter(context: &Context<'_>, name: &str) -> Option<String> {
    let query = context.request.query().unwrap_or_default();
    form_urlencoded::parse(query.as_bytes()).find(|(found, _)| found == name).map(|(_, value)| value.into_owned())
}

fn unavailable(error: StoreError) -> Rejection {
    Rejection::new(Reason::StoreUnavailable, "your sessions cannot be looked up at the moment")
        .fix("try again in a moment; you stay signed in")
        .because(error)
}
