//! The commands that operators can send to a running Doorward over its socket.

use std::{borrow::Cow, sync::Arc, time::Duration};

use serde_json::{Value, json};

use super::{
    App, hooks, revoke,
    rollout::{self, Applied},
    sessions, token_keys,
};
use crate::{
    admin::socket::{Command, CommandError, CommandFuture, CommandName, Commands, Done, Peer, Record},
    audit::{HeldDelivery, Note, Operator},
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

    /// Triggers a reload, and returns its outcome.
    async fn reload(&self) -> Result<Value, CommandError> {
        let outcome = self.app.outcome.of_next(RELOAD, || self.reload.fire()).await;
        match outcome {
            Some(Ok(Applied { after_restart, warnings })) => {
                let snapshot = self.app.snapshot.load();
                Ok(json!({
                    "applied": true,
                    "generation": snapshot.number,
                    "policy": &**snapshot.policy.digest(),
                    "after_restart": after_restart,
                    "warnings": warnings,
                }))
            }
            Some(Err(refused)) => Err(CommandError::new(format!(
                "the configuration was refused, and the older one is kept: {}",
                refused.problems.join("; ")
            ))
            .help(match refused.in_files {
                true => "correct it; `doorward check` shows all problems in the files",
                false => "the files themselves are good; `doorward doctor` shows what is wrong around them",
            })),
            None => Err(CommandError::new(format!("the configuration is still being loaded after {RELOAD:?}"))
                .help("`doorward status` and the log show the outcome")),
        }
    }
}

/// How long the command waits for a reload, which may call API servers that do not answer.
const RELOAD: Duration = Duration::from_secs(60);

/// Returns a command for the audit trail, with its arguments, none of which is a secret. In a revocation the issuer is
/// given by name, as in records of its tokens.
fn written(snapshot: &Snapshot, command: &Command) -> String {
    let mut arguments = Cow::Borrowed(&command.arguments);
    let issuer =
        arguments.get("issuer").and_then(Value::as_str).filter(|_| command.command == CommandName::Revoke.as_str());
    if let Some(name) = issuer.and_then(|issuer| revoke::known_issuer(snapshot, issuer).ok()) {
        arguments.to_mut()["issuer"] = json!(*name);
    }
    match &*arguments {
        Value::Null => command.command.clone(),
        arguments => format!("{} {arguments}", command.command),
    }
}

/// Returns a command that has ended for the audit trail. A reload includes the generation that it put in force, as the
/// record of the load itself does not say who requested it.
fn ended(command: String, result: &Result<Done, CommandError>) -> String {
    let answer = result.as_ref().ok().map(|done| &done.answer).filter(|answer| answer["applied"] == true);
    match answer.and_then(|answer| answer["generation"].as_u64().zip(answer["policy"].as_str())) {
        Some((generation, policy)) => format!("{command} (generation {generation}, policy {policy})"),
        None => command,
    }
}

/// Returns the held deliveries that a command tried or dropped: a command that names them by the beginning of their
/// ids, or by their sender, does not say which they were.
fn deliveries(result: &Result<Done, CommandError>) -> Option<Vec<HeldDelivery>> {
    result.as_ref().map_or_else(|error| error.deliveries.clone(), |done| done.deliveries.clone())
}

impl Commands for Operators {
    fn record<'a>(&'a self, record: Record<'a>) -> CommandFuture<'a, ()> {
        Box::pin(async move {
            let written = |command| written(&self.app.snapshot.load(), command);
            let note = |peer: Peer, command: &Command, text: String| Operator {
                command: text,
                uid: Some(peer.uid),
                user: Some(command.who.clone()),
                why: Some(command.why.clone()),
                outcome: Ok(()),
                deliveries: None,
            };
            let operator = match record {
                Record::PeerRefused(peer) => Operator {
                    command: "connect".to_owned(),
                    uid: Some(peer.uid),
                    user: None,
                    why: None,
                    outcome: Err("this user may not use the socket".to_owned()),
                    deliveries: None,
                },
                Record::Begun(peer, command) => note(peer, command, format!("{} (begun)", written(command))),
                Record::Ended(peer, command, result) => Operator {
                    outcome: result.as_ref().map(|_| ()).map_err(|error| error.message.clone()),
                    deliveries: deliveries(result),
                    ..note(peer, command, ended(written(command), result))
                },
            };
            let written = self.app.trail.note_durable(Note::Operator(operator)).await;
            written.map_err(|error| match record {
                Record::Begun(..) => CommandError::new(format!("nothing was done: {error}")).help(
                    "each command is recorded in the trail before it runs: make room for it, or set `audit.when_full`; `/readyz` shows the reason",
                ),
                Record::PeerRefused(_) | Record::Ended(..) => CommandError::new(error.to_string()),
            })
        })
    }

    fn run<'a>(&'a self, _: Peer, command: &'a Command) -> CommandFuture<'a, Done> {
        Box::pin(async move {
            let app = &self.app;
            let answer = match command.command.parse()? {
                CommandName::DropHook => return hooks::drop_held(app, command).await,
                CommandName::RetryHook => return hooks::retry(app, command).await,
                CommandName::DropTokenKeys => token_keys::drop_unusable(app, command).await?,
                CommandName::EndSessions => sessions::end(app, command).await?,
                CommandName::Hooks => hooks::list(app, command).await?,
                CommandName::Reload => self.reload().await?,
                CommandName::Revocations => {
                    let read = app.revocations.read_list().await;
                    let list = read.map_err(|error| CommandError::store("the revocations cannot be read", &error))?;
                    json!({"revocations": list})
                }
                CommandName::Revoke => revoke::revoke(app, command).await?,
                CommandName::Rollout => rollout::status(app, command).await?,
                CommandName::Sessions => sessions::list(app, command).await?,
                CommandName::ShowHook => hooks::show(app, command).await?,
                CommandName::Status => self.status(),
            };
            Ok(answer.into())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_applied_reload_is_recorded_with_its_generation_and_policy() {
        let of = |answer: Value| ended("reload".to_owned(), &Ok(answer.into()));
        let applied = json!({"applied": true, "generation": 7, "policy": "sha256:1a"});
        assert_eq!(of(applied), "reload (generation 7, policy sha256:1a)");
        assert_eq!(of(json!({"generation": 7, "policy": "sha256:1a"})), "reload", "of `status` it says nothing");
        assert_eq!(ended("reload".to_owned(), &Err(CommandError::new("it was refused"))), "reload");
    }

    #[test]
    fn deliveries_dropped_before_the_store_failed_are_named_too() {
        let named = vec![HeldDelivery::Known { request: "r".to_owned(), delivery: "d".to_owned() }];
        let done = Done { answer: json!({"dropped": 1}), deliveries: Some(named.clone()) };
        assert_eq!(deliveries(&Ok(done)), Some(named.clone()));
        assert_eq!(deliveries(&Err(CommandError::new("the store is away").after(named.clone()))), Some(named));
        assert_eq!(deliveries(&Err(CommandError::new("the store is away"))), None);
        assert_eq!(deliveries(&Ok(json!({"revocations": []}).into())), None);
    }
}
