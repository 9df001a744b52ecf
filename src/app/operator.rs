//! What operators can ask of a running Doorward over its socket.

use std::{borrow::Cow, sync::Arc};

use serde_json::{Value, json};

use super::{App, hooks, revoke, rollout, sessions};
use crate::{
    admin::socket::{Command, CommandError, CommandFuture, Commands, Peer, Record},
    audit::{Note, Operator},
    config::watch::Trigger,
    snapshot::Snapshot,
};

/// The commands of the socket.
#[derive(Debug)]
pub struct Operators {
    app: Arc<App>,
    reload: Trigger,
}

impl Operators {
    pub fn new(app: Arc<App>, reload: Trigger) -> Self {
        Self { app, reload }
    }

    fn status(&self) -> Value {
        let snapshot = self.app.snapshot.load();
        json!({
            "generation": snapshot.number,
            "policy": &**snapshot.policy.digest(),
            "streams": self.app.streams.len(),
            "health": self.app.health.report(),
        })
    }
}

const KNOWN: &str =
    "drop-hook, end-sessions, hooks, reload, retry-hook, revocations, revoke, rollout, sessions, show-hook, status";

/// A command as the audit trail has it: with its arguments, none of which is a secret. What is revoked has its issuer by name, as
/// records of its tokens have.
fn written(snapshot: &Snapshot, command: &Command) -> String {
    let mut arguments = Cow::Borrowed(&command.arguments);
    let issuer = arguments.get("issuer").and_then(Value::as_str).filter(|_| command.command == "revoke");
    if let Some(name) = issuer.and_then(|issuer| revoke::known_issuer(snapshot, issuer).ok()) {
        arguments.to_mut()["issuer"] = json!(*name);
    }
    match &*arguments {
        Value::Null => command.command.clone(),
        arguments => format!("{} {arguments}", command.command),
    }
}

impl Commands for Operators {
    fn record<'a>(&'a self, record: Record<'a>) -> CommandFuture<'a, ()> {
        Box::pin(async move {
            let written = |command| written(&self.app.snapshot.load(), command);
            let note = |peer: Peer, command: String, user, why, outcome| {
                Note::Operator(Operator { command, uid: Some(peer.uid), user, why, outcome })
            };
            let note = match record {
                Record::PeerRefused(peer) => {
                    note(peer, "connect".to_owned(), None, None, Err("this user may not use the socket".to_owned()))
                }
                Record::Begun(peer, command) => {
                    let begun = format!("{} (begun)", written(command));
                    note(peer, begun, Some(command.who.clone()), Some(command.why.clone()), Ok(()))
                }
                Record::Ended(peer, command, error) => note(
                    peer,
                    written(command),
                    Some(command.who.clone()),
                    Some(command.why.clone()),
                    error.map_or(Ok(()), |error| Err(error.message.clone())),
                ),
            };
            self.app.trail.note_durable(note).await.map_err(|error| CommandError::new(error.to_string()))
        })
    }

    fn run<'a>(&'a self, _: Peer, command: &'a Command) -> CommandFuture<'a, Value> {
        Box::pin(async move {
            match command.command.as_str() {
                "status" => Ok(self.status()),
                "reload" => {
                    self.reload.fire();
                    Ok(json!({"asked": true, "generation": self.app.snapshot.load().number}))
                }
                "rollout" => rollout::status(&self.app, command).await,
                "revoke" => revoke::revoke(&self.app, command).await,
                "sessions" => sessions::list(&self.app, command).await,
                "end-sessions" => sessions::end(&self.app, command).await,
                "hooks" => hooks::list(&self.app, command).await,
                "show-hook" => hooks::show(&self.app, command).await,
                "retry-hook" => hooks::retry(&self.app, command).await,
                "drop-hook" => hooks::drop(&self.app, command).await,
                "revocations" => Ok(json!({"revocations": self.app.revocations.list()})),
                other => {
                    Err(CommandError::new(format!("there is no command `{other}`")).help(format!("known: {KNOWN}")))
                }
            }
        })
    }
}
