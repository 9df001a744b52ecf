//! Operator commands for the browser sessions of a person.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::{Value, json};

use super::App;
use crate::{
    admin::socket::{Command, CommandError},
    sessions::Ended,
};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Arguments {
    /// The issuer's name in the configuration, or its identifier.
    issuer: String,
    subject: String,
    /// One of their sessions, as it is listed.
    session: Option<String>,
}

/// Lists the sessions of a person.
pub async fn list(app: &App, command: &Command) -> Result<Value, CommandError> {
    let (issuer, arguments) = read(app, command)?;
    let sessions = app.snapshot.load().sessions.clone();
    let list = sessions
        .list(&issuer, &arguments.subject)
        .await
        .map_err(|error| CommandError::store("the sessions cannot be looked up", &error))?;
    Ok(json!({"sessions": list}))
}

/// Ends the sessions of a person, or one of them, with their streams. They may sign in again.
pub async fn end(app: &App, command: &Command) -> Result<Value, CommandError> {
    let (issuer, arguments) = read(app, command)?;
    let sessions = app.snapshot.load().sessions.clone();
    let ended = sessions
        .end_of(&issuer, &arguments.subject, arguments.session.as_deref(), Ended::revoked)
        .await
        .map_err(|error| {
            let unknown = "it is not known which sessions have ended";
            CommandError::write("no session was ended", unknown, &error, app.store.is_shared())
        })?;
    if ended == 0 && arguments.session.is_some() {
        return Err(CommandError::new("this person has no such session").help("`doorward sessions list` shows them"));
    }
    let streams = app.close_revoked_streams();
    tracing::warn!(%issuer, subject = arguments.subject, ended, who = command.who, why = command.why, "sessions ended");
    Ok(json!({"ended": ended, "streams_ended": streams}))
}

/// Reads the arguments; also returns the identifier of the issuer.
fn read(app: &App, command: &Command) -> Result<(Arc<str>, Arguments), CommandError> {
    let arguments: Arguments = command.arguments()?;
    let snapshot = app.snapshot.load();
    let asked = arguments.issuer.as_str();
    let identifier = snapshot.issuers.called(asked).map(|issuer| Arc::clone(issuer.identifier())).ok_or_else(|| {
        let known: Vec<&str> = snapshot.issuers.iter().map(|issuer| &**issuer.name()).collect();
        CommandError::new(format!("there is no issuer `{asked}`")).help(format!("known: {}", known.join(", ")))
    })?;
    Ok((identifier, arguments))
}
