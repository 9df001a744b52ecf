//! Finds the principal and the request that `doorward explain` explains.

mod recorded;
mod target;
mod unrecorded;

use std::{
    io::{self, Read, Write},
    sync::Arc,
    time::Duration,
};

use tokio::runtime::Runtime;
use uuid::Uuid;

use self::{
    recorded::{FromTrail, Recorded},
    target::Target,
    unrecorded::{as_recorded, unrecorded},
};
use super::{
    Failure,
    audit::files_of,
    explain::{Answer, ExplainArgs, explain},
    format::Format,
    load_policy, yaml,
};
use crate::{
    app::{self, StartError},
    audit::{Files, ReplayInputs},
    authn::{Principal, wanted},
    authz::{AskedToken, NotEvaluated, Policy, RequestView, Scenario},
    clock::{Clock, Timestamp},
    config::{
        self, Sources,
        raw::{AuditSink, PolicyFile, PrincipalFacts, RequestFacts, Root, Scheme, TaskFacts, TokenFacts},
        resolver::Resolver,
    },
    error::Rejection,
    issuers::{KeySource, Unverified},
    request::{route, sanitize::misdirected},
    runtime::control,
    sessions,
    snapshot::Resolved,
    sts,
};

/// There is nothing to explain.
const OWN_PAGE: &str = "this is one of Doorward's own pages, which no rule decides";

/// Revocations are in the store, which a running Doorward has open.
const NOT_REVOKED: &str = "it is not checked whether the token or its subject was revoked";

/// Break-glass is prepared while it is closed, and this is how its rules are tried.
const CLOSED: &str = "break-glass is closed at this time, so the request would be refused: this is what is decided while \
                      it is open, until `break_glass.until`";

/// Without the body, rules that ask for something of the run do not match, and the body itself may be refused.
const NO_BODY: &str = "the request has no body, which rules with `run` look at if some body may be allowed; give the \
                       body with `--body`";

/// Only the API server has the run.
const HELD_AGAINST_RUN: &str = "the patch is compared with the existing run: what it says about who asked for it, \
                                where it came from and what owns it must already be so there";

/// How long the command waits for keys of issuers.
const PATIENCE: Duration = Duration::from_secs(10);

/// The command line is not understood.
#[derive(Debug, thiserror::Error)]
pub(super) enum Misused {
    #[error(
        "give the configuration and an address, `--audience` or `--audit-id`; the configuration may be left out if \
         `DOORWARD_CONFIG` names it"
    )]
    NothingAsked,
    #[error("`{url}` is not a valid address ({why}); write it whole, as `https://tekton.example.com/`")]
    Address { url: String, why: String },
    #[error("`{0}` is not a valid host")]
    Host(String),
}

/// Explains and prints. Returns whether the request would pass.
pub fn run(sources: &Sources, args: &ExplainArgs, out: &mut impl Write) -> Result<bool, Failure> {
    let answer = match (args.audit_id, &args.url) {
        (Some(id), _) => return from_trail(sources, id, args.format, out),
        (None, Some(url)) => from_request(sources, args, url)?,
        (None, None) => match &args.audience {
            Some(audience) => of_token(sources, args, audience)?,
            None => return Err(Misused::NothingAsked.into()),
        },
    };
    args.format.print(&answer, out)?;
    Ok(answer.is_allow())
}

fn from_request(sources: &Sources, args: &ExplainArgs, url: &str) -> Result<Answer, Failure> {
    let target = Target::of(url)?;
    let runtime = control()?;
    let now = time(args);
    // Tokens expire by the same time that rules are evaluated at.
    let mut check = app::check_at(&runtime, Clock::manual(now))?;
    let components = |root: &Root, resolver: &mut Resolver| {
        if args.token_file.is_some() {
            return check(root, resolver);
        }
        // Secrets and certificates do not matter to a request that presents none, so a checkout of the policy is
        // enough.
        resolver.elsewhere();
        check(&without_files(root), resolver)
    };
    let (loaded, resolved) = config::load(sources, components).map_err(StartError::Configuration)?;
    if let Err(rejection) = target.check(&args.method, &loaded.raw.limits) {
        return Ok(rejection.into());
    }
    let request = match request_facts(&resolved, args, &target, now) {
        Err(NotEvaluated::Refused(rejection)) => return Ok(rejection.into()),
        request => request?,
    };
    let policy = resolved.policy().ok_or("the policy could not be compiled")?;
    let written = written_principal(args)?;
    let scenario = match Scenario::new(written.as_ref(), &request, &loaded.raw) {
        Err(NotEvaluated::Refused(rejection)) => return Ok(rejection.into()),
        scenario => scenario?,
    };
    let schemes = resolved.routes().by_name(&request.route).map(|route| route.schemes.as_slice()).unwrap_or_default();
    let answer = match &args.token_file {
        None if written.is_none() && !schemes.contains(&Scheme::Anonymous) => {
            explain(policy, Err(without_credential(schemes)), &scenario.request())
        }
        None => explain(policy, Ok(&scenario.principal), &scenario.request()),
        Some(path) => {
            let token = read_token(path)?;
            if sessions::is_handle(&token) {
                return Err(
                    "this is the handle of a session, which only the Doorward that issued it knows; write down its \
                     owner and name that file with `--principal`"
                        .into(),
                );
            }
            if !schemes.contains(&Scheme::Bearer) {
                return Ok(without_tokens(policy, &scenario, schemes));
            }
            resolved.supply_token_keys();
            if has_keys_elsewhere(&resolved, &request.route, &token) {
                return Err(
                    "this is a token of Doorward's own, and the keys of those are in the store of the running \
                     Doorward; write down its owner and name that file with `--principal`"
                        .into(),
                );
            }
            match principal_of(&runtime, &resolved, &request.route, &token) {
                Ok(principal) => explain(policy, Ok(&principal), &scenario.request()).with_note(NOT_REVOKED),
                // If an issuer does not answer from here, that says nothing about the token.
                Err(rejection) if rejection.status().is_server_error() => return Err(in_plain_words(&rejection).into()),
                Err(rejection) => explain(policy, Err(in_plain_words(&rejection)), &scenario.request()),
            }
        }
    };
    let answer = match is_closed(&scenario.principal, &loaded.raw, now) {
        true => answer.with_note(CLOSED),
        false => answer,
    };
    Ok(match scenario.is_held_against_run() {
        true => answer.with_note(HELD_AGAINST_RUN),
        false if scenario.lacks_body() => answer.with_note(NO_BODY),
        false => answer,
    })
}

/// Whether the principal's certificate is not accepted at this time.
fn is_closed(principal: &Principal, root: &Root, now: Timestamp) -> bool {
    let until = root.break_glass.as_ref().and_then(|raw| Timestamp::from_rfc3339(&raw.until));
    principal.scheme == Scheme::BreakGlass && until.is_none_or(|until| until <= now)
}

/// The configuration with upstreams that name no file. An upstream whose files are not looked at would be left out,
/// with its routes.
fn without_files(root: &Root) -> Root {
    let mut root = root.clone();
    for upstream in &mut root.upstreams {
        if upstream.kubeconfig.take().is_some() {
            upstream.url = Some("https://kubeconfig.invalid".to_owned());
        }
        (upstream.tls, upstream.credential) = (None, None);
    }
    root
}

/// Says what a route accepts, and how a caller that has it is explained.
fn without_credential(schemes: &[Scheme]) -> String {
    let ways = [
        (&[Scheme::Bearer][..], "name a token with `--token-file`"),
        (
            &[Scheme::Bearer, Scheme::Session, Scheme::BreakGlass],
            "write down the caller and name that file with `--principal`",
        ),
        (
            &[Scheme::Webhook],
            "name the record of a delivery with `--audit-id`, or write a case with `delivery` in `tests` and run \
             `doorward test`",
        ),
    ];
    let ways = ways.into_iter().filter(|(of, _)| schemes.iter().any(|scheme| of.contains(scheme)));
    let ways: Vec<&str> = ways.map(|(_, way)| way).collect();
    format!("This route accepts {}, and none was given: {}", wanted(schemes), ways.join(", or "))
}

/// Explains a token on a route that accepts none and does not look at them.
fn without_tokens(policy: &Policy, scenario: &Scenario, schemes: &[Scheme]) -> Answer {
    if schemes.contains(&Scheme::Anonymous) {
        let note = "this route does not look at tokens: a caller with nothing else is anonymous";
        return explain(policy, Ok(&scenario.principal), &scenario.request()).with_note(note);
    }
    let why = format!("This route accepts {}, and no bearer token", wanted(schemes));
    explain(policy, Err(why), &scenario.request())
}

fn time(args: &ExplainArgs) -> Timestamp {
    args.at.unwrap_or_else(|| Clock::default().now())
}

fn written_principal(args: &ExplainArgs) -> Result<Option<PrincipalFacts>, Failure> {
    Ok(args.principal.as_deref().map(config::read).transpose()?)
}

/// Explains which scopes a caller would get in a token.
fn of_token(sources: &Sources, args: &ExplainArgs, audience: &str) -> Result<Answer, Failure> {
    let (loaded, policy) = load_policy(sources)?;
    let task = args.service_account.as_ref().map(|account| TaskFacts {
        cluster: args.cluster.clone(),
        namespace: account.namespace.clone(),
        service_account: account.name.clone(),
        pipeline: args.pipeline.clone(),
        pipeline_task: args.pipeline_task.clone(),
        task: args.task.clone(),
    });
    let request = RequestFacts {
        address: Some(args.address),
        at: Some(time(args).to_string()),
        token: Some(TokenFacts { audience: audience.to_owned(), scope: None, task }),
        ..RequestFacts::default()
    };
    let scenario = match Scenario::new(written_principal(args)?.as_ref(), &request, &loaded.raw) {
        Err(NotEvaluated::Refused(rejection)) => return Ok(rejection.into()),
        scenario => scenario?,
    };
    let view = scenario.request();
    let asked = AskedToken {
        audience: audience.to_owned(),
        scopes: args.scope.as_ref().map(|scopes| scopes.split_whitespace().map(str::to_owned).collect()),
        partly: false,
        task: view.token.and_then(|token| token.task).cloned(),
    };
    if let Err(rejection) = sts::check_asked(audience, asked.scopes.as_deref().unwrap_or_default(), &loaded.raw) {
        return Ok(rejection.into());
    }
    Ok(Answer::Token(Box::new(policy.explain_token(&scenario.principal, &view, &asked))))
}

fn request_facts(
    resolved: &Resolved,
    args: &ExplainArgs,
    target: &Target<'_>,
    now: Timestamp,
) -> Result<RequestFacts, NotEvaluated> {
    if resolved.routes().host(&target.host).is_none() {
        return Err(misdirected().into());
    }
    let route = match resolved.routes().find(&target.host, target.path, &args.method) {
        Ok(route::Target::Upstream(route)) => route,
        Ok(route::Target::Own(_)) => {
            return Err(OWN_PAGE.to_owned().into());
        }
        Err(miss) => return Err(Rejection::from(miss).into()),
    };
    let path = match target.query {
        Some(query) => format!("{}?{query}", target.path),
        None => target.path.to_owned(),
    };
    Ok(RequestFacts {
        route: route.name.to_string(),
        host: Some(target.host.clone()),
        path: Some(path),
        method: Some(args.method.to_string()),
        address: Some(args.address),
        at: Some(now.to_string()),
        kubernetes: None,
        trigger: None,
        token: None,
        delivery: None,
        body: args.body.as_deref().map(yaml).transpose()?,
        content_type: args.content_type.clone(),
    })
}

fn read_token(path: &std::path::Path) -> Result<String, Failure> {
    let mut text = String::new();
    if path.as_os_str() == "-" {
        io::stdin().read_to_string(&mut text)?;
    } else {
        text = std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
    }
    let token = text.trim().trim_start_matches("Bearer ");
    let why = match token.chars().next() {
        None => "it is empty; see whether the command that wrote it failed",
        Some('"' | '\'') => "it begins with a quotation mark; write the token alone, as `jq -r` does",
        Some('\u{feff}') => "it begins with a byte order mark; write the token alone",
        Some(_) => return Ok(token.to_owned()),
    };
    Err(format!("{}: {why}", path.display()).into())
}

/// Whether a token claims to be one of our own on a route that accepts those, and the configuration has no keys for
/// them.
fn has_keys_elsewhere(resolved: &Resolved, route: &str, token: &str) -> bool {
    let Some(route) = resolved.routes().by_name(route) else { return false };
    let Ok(token) = Unverified::parse(token) else { return false };
    route.accepts.issuers().iter().any(|issuer| {
        let keys = issuer.keys();
        keys.settings().source == KeySource::Own
            && !keys.status().usable
            && token.issuer() == Some(&**issuer.identifier())
    })
}

/// Returns the principal that the token proves on a route, after fetching the keys of the issuers.
fn principal_of(runtime: &Runtime, resolved: &Resolved, route: &str, token: &str) -> Result<Arc<Principal>, Rejection> {
    let issuers = resolved.issuers();
    let Some(route) = resolved.routes().by_name(route) else {
        return Err(Rejection::from(route::Miss::Path));
    };
    runtime.block_on(async {
        issuers.start_and_wait(PATIENCE).await;
        issuers.authenticate(token, &route.accepts, &|_: &Principal| false).await
    })
}

/// What an operator may know of a refusal: also the cause, which names what was expected and what was found.
fn in_plain_words(rejection: &Rejection) -> String {
    match std::error::Error::source(rejection) {
        Some(cause) => format!("{} ({cause})", rejection.detail()),
        None => rejection.detail().to_owned(),
    }
}

/// Explains the recorded inputs by the recorded policy, if it is stored, and by the current one.
fn from_trail(sources: &Sources, id: Uuid, format: Format, out: &mut impl Write) -> Result<bool, Failure> {
    let (loaded, current) = load_policy(sources)?;
    let AuditSink::File(file) = &loaded.raw.audit.sink else {
        return Err(
            "the audit trail goes to standard output; write its lines to a file and name that in `audit.sink`".into()
        );
    };
    let path = loaded.base().join(&file.path);
    let inputs = record_of(&Files::new(files_of(&[path])?), id)?;
    if is_for_own_page(&inputs) {
        return Err(OWN_PAGE.into());
    }
    // A request that was refused before the rules lacks facts that they look at.
    let asked = inputs.decision.as_ref().and(inputs.principal.as_ref()).zip(inputs.view());
    let recorded = inputs.policy.as_deref().filter(|digest| **digest != **current.digest());
    let recorded = recorded.map(|digest| stored_policy(&loaded, digest));
    let again = |policy: &Policy, principal: &Principal, view: &RequestView<'_>| match &inputs.asked {
        Some(token) => Answer::Token(Box::new(policy.explain_token(principal, view, token))),
        None => explain(policy, Ok(principal), view),
    };
    let then = recorded.as_ref().map_or(Some(&loaded.raw), |kept| kept.as_ref().map(|(_, root)| root));
    let known = asked.map(|(principal, view)| (as_recorded(principal, then), view));
    let under_current = known.as_ref().map(|(principal, view)| again(&current, principal, view));
    let unrecorded =
        known.zip(under_current.as_ref()).map(|((principal, _), now)| unrecorded(&principal, &loaded.raw, now));
    let told = FromTrail {
        recorded: Recorded::of(&inputs),
        policy_is_kept: recorded.as_ref().is_none_or(Option::is_some),
        under_recorded: asked
            .zip(recorded.flatten())
            .map(|((principal, view), (policy, _))| again(&policy, principal, &view)),
        unrecorded: unrecorded.unwrap_or_default(),
        under_current,
        truncated: &inputs.truncated,
        about: inputs.about,
        pseudonymous: inputs.is_pseudonymous(),
    };
    format.print(&told, out)?;
    match told.unrecorded.is_empty() {
        true => Ok(told.under_current.is_some_and(|answer| answer.is_allow())),
        false => {
            Err("the record does not show whether the request would pass now: it lacks claims that rules read".into())
        }
    }
}

/// Whether Doorward answered a request itself, without evaluating any rule.
fn is_for_own_page(inputs: &ReplayInputs) -> bool {
    let ReplayInputs { route, decision, reason, about, .. } = inputs;
    route.is_none() && decision.is_none() && reason.is_none() && about.is_none()
}

fn record_of(files: &Files, id: Uuid) -> Result<ReplayInputs, Failure> {
    if let Some(found) = files.request(id)? {
        return Ok(found);
    }
    let unreadable = files.unreadable();
    let Some((file, line)) = unreadable.first() else { return Err(format!("the trail has no request {id}").into()) };
    let lines = if unreadable.len() == 1 { "a line that names" } else { "lines that name" };
    let more = if unreadable.len() == 1 { "" } else { ", the first of them" };
    Err(format!(
        "the trail has no record of the request {id} that can be read: {lines} it cannot be read, {}:{line}{more}; check the trail with \
         `doorward audit verify`",
        file.display()
    )
    .into())
}

/// Reads a policy that was in force, from the folder where policies are stored by digest.
fn stored_policy(loaded: &config::Loaded, digest: &str) -> Option<(Policy, Root)> {
    let source = app::stored_policy(&loaded.base().join(&loaded.raw.store.path), digest)?;
    policy_of(&source, &loaded.raw)
}

/// Compiles a policy in canonical form; `raw` has the issuers.
fn policy_of(source: &str, raw: &Root) -> Option<(Policy, Root)> {
    let kept: PolicyFile = serde_json::from_str(source).ok()?;
    let root = Root { rules: kept.rules, grants: kept.grants, ..raw.clone() };
    let policy = Policy::compile_with(&root, kept.scopes_of, &mut Resolver::default())?;
    Some((policy, root))
}

#[cfg(test)]
mod tests;
