//! Who somebody is that a test of a policy, or `explain`, writes down in part.

use std::sync::Arc;

use serde_json::{Map, Value};

use crate::{
    authn::{Actor, Kind, LoginFacts, Principal, Scheme, break_glass},
    clock::Timestamp,
    config::{raw, report::no_such},
    error::{Reason, Rejection},
    issuers,
    webhooks::{self, Facts},
};

/// Completes what is written from the configuration and from what comes with the request; the error says what cannot be.
pub(super) fn complete(
    facts: &raw::PrincipalFacts,
    delivery: Option<Arc<Facts>>,
    token: Option<&raw::TokenFacts>,
    route: &raw::Route,
    root: &raw::Root,
    now: Timestamp,
) -> Result<Principal, String> {
    let task = token.and_then(|token| token.task.as_ref());
    task.map_or(Ok(()), |task| check_cluster(task, root))?;
    let is_one_of_several = root.tokens.iter().flat_map(raw::Tokens::clusters).nth(1).is_some();
    let issuer = match (&facts.issuer, &delivery, root.issuers.as_slice()) {
        (Some(issuer), ..) => issuer.clone(),
        (None, Some(facts), _) => webhooks::issuer(&facts.webhook),
        (None, None, [only]) => only.name.clone(),
        (None, None, _) => return Err("several issuers are defined; say which gave the principal".to_owned()),
    };
    let configured = root.issuers.iter().find(|known| known.name == issuer);
    if configured.is_none() && webhooks::of_issuer(&issuer).is_none() && issuer != break_glass::ISSUER {
        return Err(no_such("issuer", &issuer, root.issuers.iter().map(|issuer| issuer.name.as_str())));
    }
    let mut claims: Map<String, Value> = facts.claims.clone().into_iter().collect();
    let paths = configured.map(|issuer| issuer.claims.clone()).unwrap_or_default();
    if let Some(groups) = &facts.groups {
        put(&mut claims, paths.groups.as_deref().unwrap_or("groups"), groups.clone().into());
    }
    if let Some(scopes) = &facts.scopes {
        put(&mut claims, paths.scopes.as_deref().unwrap_or("scope"), scopes.join(" ").into());
    }
    if let Some(email) = &facts.email {
        put(&mut claims, "email", email.as_str().into());
        put(&mut claims, "email_verified", true.into());
    }
    let sender = delivery.as_ref().map(|facts| webhooks::principal(facts, Timestamp::MAX)).transpose();
    let sender = sender.map_err(|rejection| rejection.detail().to_owned())?.filter(|sender| *sender.issuer == *issuer);
    let of_sender = sender.as_ref().map(|sender| &*sender.username);
    let subject = facts.subject.as_deref().or(of_sender).unwrap_or("test");
    let username = match (&facts.username, of_sender, configured) {
        (Some(written), ..) => written.clone(),
        (None, Some(name), _) => name.to_owned(),
        (None, None, _) if issuer == break_glass::ISSUER => break_glass::username(subject),
        (None, None, Some(configured)) => or_any_name(issuers::username(configured, subject, &claims), root)?,
        // Its sender is known, and not what it sent.
        (None, None, None) => or_any_name(Err("no delivery is written".to_owned()), root)?,
    };
    let scheme = if delivery.is_some() { Scheme::Webhook } else { *route.schemes.first().unwrap_or(&Scheme::Bearer) };
    Ok(Principal {
        kind: facts.kind.unwrap_or(Kind::Agent),
        groups: arcs(facts.groups.as_deref().unwrap_or_default()),
        scopes: arcs(facts.scopes.as_deref().unwrap_or_default()),
        client: arc(&facts.client),
        actor: facts
            .actor
            .as_ref()
            .map(|actor| Actor { subject: actor.subject.as_str().into(), client: arc(&actor.client) })
            .or_else(|| {
                task.map(|task| {
                    let cluster = cluster(task, root).filter(|_| is_one_of_several);
                    Actor::service_account(cluster, &task.namespace, &task.service_account)
                })
            }),
        login: LoginFacts {
            auth_time: facts.login_age.map(|age| now - age.get()),
            acr: arc(&facts.acr),
            amr: arcs(&facts.amr),
        },
        claims: Arc::new(claims),
        expires: Timestamp::MAX,
        delivery,
        email: arc(&facts.email),
        ..Principal::new(scheme, issuer, subject, username)
    })
}

/// The user name; where it cannot be told and nothing in the policy looks at user names, any will do.
fn or_any_name(told: Result<String, String>, root: &raw::Root) -> Result<String, String> {
    told.or_else(|why| match looks_at_usernames(root) {
        true => Err(format!(
            "the user name of this principal, which the policy looks at, cannot be told: {why}; write `username`, or what is missing"
        )),
        false => Ok("unknown".to_owned()),
    })
}

fn looks_at_usernames(root: &raw::Root) -> bool {
    let of_rules = root
        .rules
        .iter()
        .any(|rule| !rule.who.users.is_empty() || rule.when.as_ref().is_some_and(|when| when.contains("username")));
    of_rules || root.grants.iter().any(|grant| !grant.who.users.is_empty())
}

/// Puts a claim where it is looked for, unless it is there.
fn put(claims: &mut Map<String, Value>, path: &str, value: Value) {
    let Some(pointer) = path.strip_prefix('/') else {
        claims.entry(path).or_insert(value);
        return;
    };
    let mut at = claims;
    let mut tokens = pointer.split('/').map(|token| token.replace("~1", "/").replace("~0", "~")).peekable();
    while let Some(token) = tokens.next() {
        if tokens.peek().is_none() {
            at.entry(token).or_insert(value);
            return;
        }
        match at.entry(token).or_insert_with(|| Value::Object(Map::new())) {
            Value::Object(inner) => at = inner,
            _ => return,
        }
    }
}

/// The cluster of a task: where it names none, the only one.
pub(super) fn cluster<'a>(task: &'a raw::TaskFacts, root: &'a raw::Root) -> Option<&'a str> {
    let mut known = root.tokens.iter().flat_map(raw::Tokens::clusters);
    task.cluster.as_deref().or_else(|| known.next().filter(|_| known.next().is_none()))
}

/// Refuses a task of no cluster, or of one of several.
fn check_cluster(task: &raw::TaskFacts, root: &raw::Root) -> Result<(), String> {
    let known: Vec<&str> = root.tokens.iter().flat_map(raw::Tokens::clusters).collect();
    match &task.cluster {
        Some(cluster) if !known.contains(&cluster.as_str()) => {
            Err(format!("`tokens.exchange` has no cluster `{cluster}`"))
        }
        None if known.len() > 1 => {
            Err(format!("tasks of several clusters get tokens; say of which: {}", known.join(", ")))
        }
        _ => Ok(()),
    }
}

/// Refuses who gets no token whatever rules say: `issuer` is that of who asks or, of a task, of who caused its run.
pub(super) fn check_exchanged(issuer: &str, token: &raw::TokenFacts, root: &raw::Root) -> Result<(), Rejection> {
    let mut exchanged = root.tokens.iter().flat_map(|tokens| &tokens.exchange);
    let Some(task) = &token.task else {
        return match exchanged.any(|of| of.issuer == issuer) {
            true => Ok(()),
            false => Err(Rejection::new(
                Reason::IssuerUnknown,
                format!("tokens of the issuer `{issuer}` are not exchanged for others"),
            )
            .fix("list it in `tokens.exchange`, or write the task that asks on behalf of the principal")),
        };
    };
    let cluster = cluster(task, root);
    let of_cluster = exchanged.find(|of| Some(of.issuer.as_str()) == cluster);
    match of_cluster.is_none_or(|of| of.gives_in(&task.namespace)) {
        true => Ok(()),
        false => {
            Err(Rejection::new(Reason::TokenInvalid, format!("no task in namespace {} gets tokens", task.namespace))
                .fix("list it in `namespaces` of the cluster in `tokens.exchange`"))
        }
    }
}

fn arcs(list: &[String]) -> Vec<Arc<str>> {
    list.iter().map(|text| text.as_str().into()).collect()
}

pub(super) fn arc(text: &Option<String>) -> Option<Arc<str>> {
    text.as_deref().map(Arc::from)
}
