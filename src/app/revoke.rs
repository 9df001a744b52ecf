//! The operator command that revokes a token, or all credentials of a principal, from now until a given time.

use std::{sync::Arc, time::Duration};

use serde::Deserialize;
use serde_json::{Value, json};

use super::App;
use crate::{
    admin::socket::{Command, CommandError},
    authn::break_glass,
    clock::Timestamp,
    config::{raw, values::Span},
    snapshot::Snapshot,
    store::Target,
    webhooks,
};

/// The default period, longer than the lifetime of most tokens. The docs and the help of `doorward revoke` state it.
const DEFAULT: Duration = Duration::from_secs(30 * 24 * 3600);

/// The most bytes of a subject or of a token id.
const MAX_NAME: usize = 1024;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Arguments {
    /// The issuer's name in the configuration, or its identifier.
    issuer: String,
    subject: Option<String>,
    token_id: Option<String>,
    /// A duration.
    r#for: Option<Span>,
    /// RFC 3339.
    until: Option<String>,
}

/// Revokes, and ends the affected streams. Returns the end of the revocation, and how many streams were ended.
pub async fn revoke(app: &Arc<App>, command: &Command) -> Result<Value, CommandError> {
    let arguments: Arguments = command.arguments()?;
    let issuer = known_issuer(&app.snapshot.load(), &arguments.issuer).or_else(|unknown| {
        // A revocation under a former name can still be lifted.
        let former = arguments.target(&arguments.issuer).ok().filter(|target| app.revocations.meets_nobody(*target));
        former.map(|_| Arc::from(&*arguments.issuer)).ok_or(unknown)
    })?;
    let until = arguments.until(app.clock.now())?;
    let target = arguments.target(&issuer)?;
    // A revocation whose target has become impossible since can still be changed or lifted.
    if !app.revocations.is_revoked_until(target, app.clock.now()) {
        check_possible(&app.snapshot.load().raw.webhooks, target)?;
    }
    let stored = app.revocations.revoke(target, &command.why, until).await;
    stored.map_err(|error| {
        let unknown = "it is not known whether it is revoked";
        CommandError::write("nothing was revoked", unknown, &error, app.store.is_shared())
    })?;
    let ended = app.close_revoked_streams();
    let (subject, token_id) = (arguments.subject.as_deref(), arguments.token_id.as_deref());
    let (who, why) = (&*command.who, &*command.why);
    tracing::warn!(issuer = &*issuer, subject, token_id, %until, who, why, streams_ended = ended, "revoked");
    Ok(json!({
        "issuer": &*issuer,
        "subject": arguments.subject,
        "token_id": arguments.token_id,
        "until": until.to_string(),
        "streams_ended": ended,
        "then": format!("revoked credentials are valid again from `until` on, unless they have expired: {}", remedy(target)),
    }))
}

/// Returns what an operator has to do to end access for good.
fn remedy(target: Target<'_>) -> &'static str {
    match target {
        Target::Principal { issuer, .. } if webhooks::of_issuer(issuer).is_some() => {
            "remove the webhook at the sender, too"
        }
        Target::Principal { issuer, .. } if issuer == break_glass::ISSUER => {
            "remove the certificate from `break_glass`, too"
        }
        Target::Principal { .. } => "disable the account at the identity provider, too",
        // The account behind it is not shut out, and pods and jobs have none.
        Target::Token { .. } | Target::Session(_) | Target::Workload(_) => {
            "if it lasts longer, revoke it until its own end (`--until`)"
        }
    }
}

impl Arguments {
    fn target<'a>(&'a self, issuer: &'a str) -> Result<Target<'a>, CommandError> {
        match (&self.subject, &self.token_id) {
            (Some(subject), None) => Ok(Target::Principal { issuer, subject: named("subject", subject)? }),
            (None, Some(id)) => Ok(Target::Token { issuer, id: named("token_id", id)? }),
            _ => Err(CommandError::new("name either a `subject` or a `token_id`")),
        }
    }

    fn until(&self, now: Timestamp) -> Result<Timestamp, CommandError> {
        match (self.r#for, &self.until) {
            (None, None) => Ok(now + DEFAULT),
            (Some(span), None) => Ok(now + span.get()),
            (None, Some(text)) => match Timestamp::from_rfc3339(text) {
                Some(until) if until > now => Ok(until),
                Some(_) => Err(CommandError::new(format!("{text} has passed"))),
                None => Err(CommandError::new(format!("`{text}` is not a time"))
                    .help("write it as `2026-01-31T18:00:00Z` (RFC 3339)")),
            },
            (Some(_), Some(_)) => Err(CommandError::new("give either `for` or `until`")),
        }
    }
}

/// Returns the name that principals of this issuer have. An unknown name is an error, as it would silently revoke
/// nothing.
pub(super) fn known_issuer(snapshot: &Snapshot, asked: &str) -> Result<Arc<str>, CommandError> {
    if let Some(issuer) = snapshot.issuers.called(asked) {
        return Ok(Arc::clone(issuer.name()));
    }
    // Doorward as an issuer accepts its own name, whether or not a route accepts its tokens.
    let own = snapshot.own_issuer.as_ref().map(|own| (own.name(&snapshot.issuers), own.issuer()));
    if let Some((name, _)) = own.filter(|(name, issuer)| *name == asked || ***issuer == *asked) {
        return Ok(name.into());
    }
    let webhooks = snapshot.raw.webhooks.iter().map(|webhook| webhooks::issuer(&webhook.name));
    let mut others: Vec<String> = webhooks.collect();
    others.push(break_glass::ISSUER.to_owned());
    if let Some(found) = others.iter().find(|other| *other == asked) {
        return Ok(found.as_str().into());
    }
    let mut known: Vec<String> = snapshot.issuers.iter().map(|issuer| issuer.name().to_string()).collect();
    known.extend(own.map(|(name, _)| name.to_owned()).filter(|own| !known.contains(own)));
    known.append(&mut others);
    Err(CommandError::new(format!("there is no issuer `{asked}`")).help(format!("known: {}", known.join(", "))))
}

/// Refuses a target that no caller can match, as the operator would believe that somebody was shut out.
fn check_possible(senders: &[raw::Webhook], target: Target<'_>) -> Result<(), CommandError> {
    match target {
        Target::Token { issuer, .. } if webhooks::of_issuer(issuer).is_some() || issuer == break_glass::ISSUER => {
            Err(CommandError::new(format!("`{issuer}` has no tokens")).help("name a `subject`"))
        }
        Target::Principal { issuer, subject } => {
            let sender = webhooks::of_issuer(issuer).and_then(|name| senders.iter().find(|sender| sender.name == name));
            let Some(sender) = sender else { return Ok(()) };
            let identity = webhooks::identity(sender);
            let of_hook = webhooks::subject_of_hook(identity, &sender.name);
            let of_repository = |id: &str| webhooks::subject_of_repository(identity, id);
            let id = subject.strip_prefix(&*of_repository(""));
            let meant = id.and_then(|id| webhooks::written_repository_id(sender, id)).map(|id| of_repository(&id));
            if subject == of_hook || meant.as_deref() == Some(subject) {
                return Ok(());
            }
            let form = match (meant, webhooks::repository_ids(sender)) {
                (Some(meant), _) => format!("write `{meant}`"),
                (None, Some(ids)) => {
                    let form = of_repository(ids);
                    format!("name a repository as `{form}`, or the deliveries that name none as `{of_hook}`")
                }
                (None, None) => format!("its deliveries have no id of a repository; name them all as `{of_hook}`"),
            };
            let help = format!("{form}; the audit trail has the subject of each delivery in `actor.user.uid`");
            Err(CommandError::new(format!("no delivery of `{issuer}` has the subject `{subject}`")).help(help))
        }
        Target::Token { .. } | Target::Session(_) | Target::Workload(_) => Ok(()),
    }
}

fn named<'a>(what: &str, value: &'a str) -> Result<&'a str, CommandError> {
    if value.trim().is_empty() || value.len() > MAX_NAME || value.chars().any(char::is_control) {
        return Err(CommandError::new(format!("`{what}` must be 1 to {MAX_NAME} bytes without control characters")));
    }
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Regression: they were accepted, and the deliveries of the repository that was to be shut out too.
    #[test]
    fn a_subject_that_no_delivery_can_have_is_refused_with_the_form_of_those_that_can() {
        let senders: Vec<raw::Webhook> = serde_json::from_value(json!([
            {"name": "github", "sender": "github"},
            {"name": "forge", "sender": "gitea", "identity": "forge-2"},
            {"name": "ci", "sender": "generic"},
            {"name": "hub", "sender": "docker_hub"},
            {"name": "bbc", "sender": "bitbucket_cloud"},
            {"name": "sns", "sender": "aws_sns"},
            {"name": "app", "sender": "generic", "facts": {"repository_id": "/id"}},
        ]))
        .unwrap();
        for (issuer, subject, help) in [
            ("webhook:github", "repo:1296269", Some("`webhook:github:repo:NUMBER`")),
            ("webhook:github", "acme/app", Some("`webhook:github:hook:github`")),
            ("webhook:github", "github:repo:1296269", Some("`webhook:github:repo:NUMBER`")),
            ("webhook:github", "webhook:github:repo:", Some("`webhook:github:repo:NUMBER`")),
            ("webhook:github", "webhook:github:repo:1296269", None),
            ("webhook:github", "webhook:github:hook:github", None),
            ("webhook:github", "webhook:github:hook:forge", Some("`webhook:github:hook:github`")),
            ("webhook:forge", "webhook:gitea:repo:7", Some("`webhook:forge-2:repo:NUMBER`")),
            ("webhook:forge", "webhook:forge-2:repo:7", None),
            ("webhook:ci", "webhook:ci:hook:ci", None),
            ("people", "repo:1296269", None),
            ("webhook:github", "webhook:github:repo:015", Some("write `webhook:github:repo:15`")),
            ("webhook:github", "webhook:github:repo:15 ", Some("write `webhook:github:repo:15`")),
            ("webhook:github", "webhook:github:repo:app", Some("`webhook:github:repo:NUMBER`")),
            ("webhook:ci", "webhook:ci:repo:5", Some("all as `webhook:ci:hook:ci`")),
            ("webhook:hub", "webhook:docker-hub:repo:5", Some("all as `webhook:docker-hub:hook:hub`")),
            ("webhook:hub", "webhook:docker-hub:hook:hub", None),
            ("webhook:bbc", "webhook:bitbucket:repo:{AA}", Some("write `webhook:bitbucket:repo:{aa}`")),
            ("webhook:bbc", "webhook:bitbucket:repo:{aa}", None),
            (
                "webhook:sns",
                "webhook:aws-sns:repo:arn:aws:codecommit:us-east-1:123456789012:app",
                Some("write `webhook:aws-sns:repo:us-east-1/123456789012/app`"),
            ),
            ("webhook:sns", "webhook:aws-sns:repo:app", Some("`webhook:aws-sns:repo:REGION/ACCOUNT/NAME`")),
            ("webhook:sns", "webhook:aws-sns:repo:us-east-1/123456789012/app", None),
            ("webhook:app", "webhook:app:repo:a:b", Some("`webhook:app:repo:ID`")),
            ("webhook:app", "webhook:app:repo:015", None),
        ] {
            let refused = check_possible(&senders, Target::Principal { issuer, subject }).err();
            let told = refused.and_then(|refused| refused.help);
            let fits = told.as_deref().zip(help).is_some_and(|(told, help)| told.contains(help));
            assert!(fits || (told.is_none() && help.is_none()), "{issuer} {subject}: {told:?}");
        }
    }

    /// It would do nothing.
    #[test]
    fn a_token_of_an_issuer_without_tokens_is_refused() {
        for (issuer, is_refused) in [("webhook:github", true), ("break-glass", true), ("people", false)] {
            let target = Target::Token { issuer, id: "t-1" };
            assert_eq!(check_possible(&[], target).is_err(), is_refused, "{issuer}");
        }
    }

    /// A token of a pod or a job has no account that could be disabled.
    #[test]
    fn the_remedy_is_one_that_the_target_has() {
        let subject = "x";
        for (target, advice) in [
            (Target::Principal { issuer: "people", subject }, "disable the account"),
            (Target::Principal { issuer: "webhook:github", subject }, "remove the webhook"),
            (Target::Principal { issuer: "break-glass", subject }, "remove the certificate"),
            (Target::Token { issuer: "cluster", id: "t-1" }, "until its own end (`--until`)"),
        ] {
            assert!(remedy(target).contains(advice), "{target:?}: {}", remedy(target));
        }
    }
}
