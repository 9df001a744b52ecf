//! How `doorward explain` comes by a principal and a request.

use std::{
    io::{self, Read, Write},
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::runtime::Runtime;
use url::Url;

use super::{
    Failure,
    explain::{Answer, ExplainArgs, explain},
    load_policy,
};
use crate::{
    app::{self, StartError},
    audit::{ReplayInputs, trail_files},
    authn::Principal,
    authz::{Policy, Scenario},
    config::{
        self, Sources,
        raw::{AuditSink, PrincipalFacts, RequestFacts, Root},
    },
    error::Rejection,
    request::route::Target,
    runtime::control,
    snapshot::Resolved,
};

/// How long keys of issuers are waited for.
const PATIENCE: Duration = Duration::from_secs(10);

/// Explains, prints, and tells whether the request would pass.
pub fn run(sources: &Sources, args: &ExplainArgs, out: &mut impl Write) -> Result<bool, Failure> {
    let answer = match (&args.audit_id, &args.url) {
        (Some(id), _) => return from_trail(sources, id, args.json, out),
        (None, Some(url)) => from_request(sources, args, url)?,
        (None, None) => return Err("give an address, or `--audit-id`".into()),
    };
    answer.print(out, args.json)?;
    Ok(answer.is_allow())
}

fn from_request(sources: &Sources, args: &ExplainArgs, url: &str) -> Result<Answer, Failure> {
    let runtime = control()?;
    let (loaded, resolved) = config::load(sources, app::check(&runtime)?).map_err(StartError::Configuration)?;
    let request = request_facts(&resolved, args, url)?;
    let policy = resolved.policy().ok_or("the policy could not be compiled")?;
    let written = args.principal.as_ref().map(|path| -> Result<PrincipalFacts, Failure> {
        let text = std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
        Ok(serde_saphyr::from_str(&text).map_err(|error| format!("{}: {error}", path.display()))?)
    });
    let written = written.transpose()?;
    let scenario = Scenario::new(written.as_ref(), &request, &loaded.raw)?;
    Ok(match &args.token_file {
        None => explain(policy, Ok(&scenario.principal), &scenario.request()),
        Some(path) => {
            let token = read_token(path)?;
            match principal_of(&runtime, &resolved, &request.route, &token) {
                Ok(principal) => explain(policy, Ok(&principal), &scenario.request()),
                Err(rejection) => explain(policy, Err(in_plain_words(&rejection)), &scenario.request()),
            }
        }
    })
}

fn request_facts(resolved: &Resolved, args: &ExplainArgs, url: &str) -> Result<RequestFacts, Failure> {
    let url: Url = url.parse().map_err(|error| format!("`{url}` is no address: {error}"))?;
    let host = url.host_str().ok_or("the address names no host")?;
    let method = args.method.parse().map_err(|_| format!("`{}` is no method", args.method))?;
    if resolved.routes().host(host).is_none() {
        return Err(format!("no route is configured for the host `{host}`: the answer is 421").into());
    }
    let route = match resolved.routes().find(host, url.path(), &method) {
        Ok(Target::Upstream(route)) => route,
        Ok(Target::Own | Target::Interceptor) => {
            return Err("this is one of Doorward's own pages, which no rule decides".into());
        }
        Err(miss) => return Err(Rejection::from(miss).detail().to_owned().into()),
    };
    let path = match url.query() {
        Some(query) => format!("{}?{query}", url.path()),
        None => url.path().to_owned(),
    };
    let now = crate::clock::Clock::default().now().to_string();
    Ok(RequestFacts {
        route: route.name.to_string(),
        host: Some(host.to_owned()),
        path: Some(path),
        method: Some(args.method.clone()),
        address: Some(args.address),
        at: Some(args.at.clone().unwrap_or(now)),
        kubernetes: None,
        delivery: None,
    })
}

fn read_token(path: &std::path::Path) -> Result<String, Failure> {
    let mut text = String::new();
    if path.as_os_str() == "-" {
        io::stdin().read_to_string(&mut text)?;
    } else {
        text = std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
    }
    Ok(text.trim().trim_start_matches("Bearer ").to_owned())
}

/// Whom the token proves on that route, by the issuers themselves: their keys are fetched for it.
fn principal_of(runtime: &Runtime, resolved: &Resolved, route: &str, token: &str) -> Result<Arc<Principal>, Rejection> {
    let issuers = resolved.issuers();
    issuers.start();
    let Some(route) = resolved.routes().by_name(route) else {
        return Err(Rejection::from(crate::request::route::Miss::Path));
    };
    let until = Instant::now() + PATIENCE;
    runtime.block_on(async {
        let pending = || {
            issuers.iter().any(|issuer| !issuer.keys().status().usable && issuer.keys().status().last_error.is_none())
        };
        while pending() && Instant::now() < until {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        issuers.authenticate(token, &route.accepts, &|_: &Principal| false).await
    })
}

/// What an operator may know of a refusal: the cause too, which names what was expected and what came.
fn in_plain_words(rejection: &Rejection) -> String {
    match std::error::Error::source(rejection) {
        Some(cause) => format!("{} ({cause})", rejection.detail()),
        None => rejection.detail().to_owned(),
    }
}

/// The recorded inputs under the recorded policy, where it is at hand, and under the current one.
fn from_trail(sources: &Sources, id: &str, json: bool, out: &mut impl Write) -> Result<bool, Failure> {
    let id = id.parse().map_err(|_| format!("`{id}` is no request id"))?;
    let (loaded, current) = load_policy(sources)?;
    let AuditSink::File(file) = &loaded.raw.audit.sink else {
        return Err(
            "the audit trail goes to standard output; give its lines to a file and name that in `audit.sink`".into()
        );
    };
    let path = loaded.path.parent().unwrap_or_else(|| std::path::Path::new("")).join(&file.path);
    let inputs =
        ReplayInputs::find(trail_files(&path)?, id)?.ok_or_else(|| format!("the trail has no request {id}"))?;
    let principal = inputs.principal.as_ref().ok_or("the request was refused before it was known who asked")?;
    let view = inputs.view().ok_or("the request matched no route, so no rule was asked")?;
    if let Some(decision) = &inputs.decision {
        let rule = decision.rule.as_deref().unwrap_or("no rule");
        writeln!(
            out,
            "recorded: {} by {rule}, policy {}",
            decision.outcome.as_str(),
            inputs.policy.as_deref().unwrap_or("unknown")
        )?;
    }
    let recorded = inputs.policy.as_deref().filter(|digest| **digest != **current.digest());
    match recorded.map(|digest| kept_policy(&loaded, digest)) {
        None => {}
        Some(None) => writeln!(out, "recorded policy: not kept any more")?,
        Some(Some(policy)) => {
            writeln!(out, "\nunder the recorded policy:")?;
            explain(&policy, Ok(principal), &view).print(out, json)?;
        }
    }
    writeln!(out, "\nunder the current policy:")?;
    let answer = explain(&current, Ok(principal), &view);
    answer.print(out, json)?;
    Ok(answer.is_allow())
}

/// A policy that was in force, from the folder where they are kept by digest.
fn kept_policy(loaded: &config::Loaded, digest: &str) -> Option<Policy> {
    let base = loaded.path.parent().unwrap_or_else(|| std::path::Path::new(""));
    let source = app::kept_policy(&base.join(&loaded.raw.store.path), digest)?;
    let kept: config::raw::PolicyFile = serde_json::from_str(&source).ok()?;
    let root = Root { rules: kept.rules, grants: kept.grants, ..loaded.raw.clone() };
    Policy::compile(&root, &mut config::resolver::Resolver::default())
}
