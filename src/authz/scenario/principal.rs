//! The principal of a test of a policy, or of `explain`, completed from partial facts.

use std::sync::Arc;

use serde_json::{Map, Value};

use super::NotEvaluated;
use crate::{
    authn::{Actor, Kind, LoginFacts, Principal, Scheme, break_glass, principal::KIND_CLAIM, wanted},
    clock::Timestamp,
    config::{raw, report::no_such},
    error::{Reason, Rejection},
    issuers::{self, Kinds},
    pointer::unescape,
    webhooks::{self, Facts},
};

/// Completes the facts from the configuration and the request; the error says what is missing or wrong, or why the
/// proxy refuses such a principal before any rule.
pub(super) fn complete(
    facts: &raw::PrincipalFacts,
    delivery: Option<Arc<Facts>>,
    token: Option<&raw::TokenFacts>,
    route: &raw::Route,
    root: &raw::Root,
    now: Timestamp,
) -> Result<Principal, NotEvaluated> {
    let task = token.and_then(|token| token.task.as_ref());
    task.map_or(Ok(()), |task| check_cluster(task, root))?;
    let is_one_of_several = root.clusters().nth(1).is_some();
    let issuer = match (&facts.issuer, &delivery, root.issuers.as_slice()) {
        (Some(issuer), ..) => issuer.clone(),
        (None, Some(facts), _) => webhooks::issuer(&facts.webhook),
        (None, None, [only]) => only.name.clone(),
        (None, None, _) => return Err("several issuers are defined; say which gave the principal".to_owned().into()),
    };
    let configured = root.issuers.iter().find(|known| known.name == issuer);
    if configured.is_none() && webhooks::of_issuer(&issuer).is_none() && issuer != break_glass::ISSUER {
        return Err(no_such("issuer", &issuer, root.issuers.iter().map(|issuer| issuer.name.as_str())).into());
    }
    let actor = facts.actor.as_ref().map(|actor| actor_of(actor, &issuer, configured, token.is_some(), root));
    let actor = actor.transpose()?;
    let schemes = match token {
        None => schemes_of(&issuer, configured, route)?,
        Some(_) if delivery.is_some() => vec![Scheme::Webhook],
        Some(_) => vec![Scheme::Bearer],
    };
    if schemes.first() == Some(&Scheme::Anonymous) {
        return Ok(Principal::anonymous());
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
    if let Some(name) = of_sender
        && let Some(other) = [&facts.subject, &facts.username].into_iter().flatten().find(|other| *other != name)
    {
        return Err(format!(
            "a delivery is named by its repository: this one is `{name}`, and not `{other}`; leave that out, and in a \
             test write the repository's number in `delivery`, as `repository_id`"
        )
        .into());
    }
    let subject = facts.subject.as_deref().or(of_sender).unwrap_or("test");
    let username = match (&facts.username, of_sender, configured) {
        (Some(written), ..) => written.clone(),
        (None, Some(name), _) => name.to_owned(),
        (None, None, _) if issuer == break_glass::ISSUER => break_glass::username(subject),
        (None, None, Some(configured)) => or_any_name(issuers::username(configured, subject, &claims), root)?,
        // The sender is known, but not what it sent.
        (None, None, None) => or_any_name(Err("no delivery is written".to_owned()), root)?,
    };
    if let (Some(kind), Some(raw::Preset::Doorward)) = (facts.kind, configured.and_then(|issuer| issuer.preset)) {
        put(&mut claims, KIND_CLAIM, kind.as_str().into());
    }
    let kinds = configured.map(Kinds::of);
    let is_proved = |scheme: &Scheme| *scheme != Scheme::Anonymous;
    let possible = schemes.into_iter().filter(is_proved).flat_map(|scheme| {
        let kinds = match &kinds {
            Some(kinds) => kinds_by(scheme, kinds, subject, facts, token, &claims),
            None if issuer == break_glass::ISSUER => vec![Kind::Human],
            // A delivery.
            None => vec![Kind::Agent],
        };
        kinds.into_iter().map(move |kind| (scheme, kind))
    });
    let (scheme, kind) = chosen(&possible.collect::<Vec<_>>(), facts, &issuer, configured)?;
    // At the token endpoint, the actor may prove itself by a token of its own, beside the person's.
    let is_acted_for = actor.is_some() && token.is_none();
    let (kind, subject_kind) = Principal::kinds(kind, is_acted_for);
    Ok(Principal {
        kind,
        subject_kind,
        groups: arcs(facts.groups.as_deref().unwrap_or_default()),
        scopes: arcs(facts.scopes.as_deref().unwrap_or_default()),
        client: arc(&facts.client),
        actor: actor.or_else(|| {
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

/// Completes an actor of a principal of `issuer`. Only where tokens are exchanged can it have proved itself by a token
/// of another one: of an actor that a provider writes into its own token, no other issuer is known.
fn actor_of(
    facts: &raw::ActorFacts,
    issuer: &str,
    configured: Option<&raw::Issuer>,
    is_exchanged: bool,
    root: &raw::Root,
) -> Result<Actor, NotEvaluated> {
    let is_doorward = configured.is_some_and(|issuer| issuer.preset == Some(raw::Preset::Doorward));
    if let Some(named) = &facts.issuer
        && !root.issuers.iter().any(|known| known.name == *named)
    {
        return Err(no_such("issuer", named, root.issuers.iter().map(|issuer| issuer.name.as_str())).into());
    }
    let issuer = match &facts.issuer {
        Some(named) => (is_doorward || is_exchanged || named == issuer).then_some(named.as_str()),
        None => (!is_doorward).then_some(issuer),
    };
    Ok(Actor { issuer: issuer.map(Into::into), subject: facts.subject.as_str().into(), client: arc(&facts.client) })
}

/// Returns the kinds that the subject can have by a credential, the one that is taken without a written kind first.
fn kinds_by(
    scheme: Scheme,
    kinds: &Kinds,
    subject: &str,
    facts: &raw::PrincipalFacts,
    token: Option<&raw::TokenFacts>,
    claims: &Map<String, Value>,
) -> Vec<Kind> {
    let by = |scheme| kinds.of_subject(subject, facts.client.as_deref(), scheme, claims, facts.actor.is_some());
    match token.and_then(|token| token.task.as_ref()) {
        None => vec![by(scheme)],
        // Whoever caused a run may have signed in.
        Some(_) => vec![by(Scheme::Bearer), by(Scheme::Session)],
    }
}

/// Chooses among what the principal can be: the first without a written kind, and otherwise the first of that kind.
fn chosen(
    possible: &[(Scheme, Kind)],
    facts: &raw::PrincipalFacts,
    issuer: &str,
    configured: Option<&raw::Issuer>,
) -> Result<(Scheme, Kind), String> {
    let fits = |(_, kind): &&(Scheme, Kind)| facts.kind.is_none_or(|written| written == *kind);
    if let Some(&found) = possible.iter().find(fits) {
        return Ok(found);
    }
    let written = facts.kind.map_or("", Kind::as_str);
    let mut can_be: Vec<&str> = possible.iter().map(|(_, kind)| kind.as_str()).collect();
    can_be.dedup();
    let of_client = facts.client.as_ref().map(|client| format!(" with the client `{client}`")).unwrap_or_default();
    let clients = configured.map(|issuer| issuer.clients.as_slice()).unwrap_or_default();
    let of_kind: Vec<&str> =
        clients.iter().filter(|client| client.kind == facts.kind).map(|client| client.id.as_str()).collect();
    let fix = match (configured, of_kind.as_slice()) {
        (None, _) => String::new(),
        (Some(_), []) => ", or change the `kind` of the issuer, its `login` or the client".to_owned(),
        (Some(_), of_kind) => {
            format!(", write a `client` of that kind ({}), or change the configuration", of_kind.join(", "))
        }
    };
    Err(format!(
        "a principal of `{issuer}`{of_client} is of the kind `{}` here, and never `{written}`; leave `kind` out{fix}",
        can_be.join("` or `")
    ))
}

/// Returns the credentials that a principal of this issuer can use on a route, as the proxy decides before any rule.
/// The first counts, unless only another gives the written kind; it is `Anonymous` if the route accepts anonymous
/// requests and no credential that the principal can have.
fn schemes_of(issuer: &str, configured: Option<&raw::Issuer>, route: &raw::Route) -> Result<Vec<Scheme>, Rejection> {
    let can_have = |scheme: &Scheme| match scheme {
        Scheme::Bearer => configured.is_some_and(|issuer| route.fits_tokens_of(issuer)),
        Scheme::Session => configured.is_some_and(|issuer| issuer.login.is_some()),
        Scheme::Webhook => webhooks::of_issuer(issuer).is_some_and(|name| route.webhook.as_deref() == Some(name)),
        Scheme::BreakGlass => issuer == break_glass::ISSUER,
        Scheme::Anonymous => true,
    };
    let schemes: Vec<Scheme> = route.schemes.iter().copied().filter(can_have).collect();
    let Some(scheme) = schemes.first().copied() else {
        let why = format!("this route accepts {}, and no principal of `{issuer}` has that", wanted(&route.schemes));
        let fix = "add the scheme that they use to `schemes` of the route, or write a principal that can use it";
        return Err(Rejection::new(Reason::CredentialMissing, why).fix(fix));
    };
    let reason = match scheme {
        Scheme::Bearer => Reason::IssuerUnknown,
        Scheme::Session => Reason::IdentityRefused,
        Scheme::Webhook | Scheme::BreakGlass | Scheme::Anonymous => return Ok(schemes),
    };
    if route.takes_issuer(issuer) {
        return Ok(schemes);
    }
    let why = format!("this route accepts no principal of the issuer `{issuer}`");
    Err(Rejection::new(reason, why)
        .fix("list it in `issuers` of the route, or write a principal of an issuer that is listed there"))
}

/// Returns the user name. If it is unknown and the policy does not look at user names, any name will do.
fn or_any_name(told: Result<String, String>, root: &raw::Root) -> Result<String, String> {
    told.or_else(|why| match looks_at_usernames(root) {
        true => Err(format!(
            "the policy looks at the user name of this principal, which is unknown: {why}; write `username`, or what \
             is missing"
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

/// Inserts a claim where it is looked up, unless it is there already.
fn put(claims: &mut Map<String, Value>, path: &str, value: Value) {
    let Some(pointer) = path.strip_prefix('/') else {
        claims.entry(path).or_insert(value);
        return;
    };
    let mut at = claims;
    let mut tokens = pointer.split('/').map(unescape).peekable();
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

/// The cluster of a task; if the task names none, the only one there is.
pub(super) fn cluster<'a>(task: &'a raw::TaskFacts, root: &'a raw::Root) -> Option<&'a str> {
    let mut known = root.clusters().map(|of| of.issuer.as_str());
    task.cluster.as_deref().or_else(|| known.next().filter(|_| known.next().is_none()))
}

/// Refuses a task of an unknown cluster, and one that does not say which of several it is in.
fn check_cluster(task: &raw::TaskFacts, root: &raw::Root) -> Result<(), String> {
    let known: Vec<&str> = root.clusters().map(|of| of.issuer.as_str()).collect();
    match &task.cluster {
        Some(cluster) if !known.contains(&cluster.as_str()) => {
            Err(format!("`tokens.exchange` has no cluster `{cluster}`"))
        }
        None if known.len() > 1 => {
            Err(format!("tasks of several clusters get tokens; write one of them in `cluster`: {}", known.join(", ")))
        }
        _ => Ok(()),
    }
}

/// Refuses principals that get no token, whatever rules say. `issuer` is that of the caller, or for a task, that of
/// whoever caused its run.
pub(super) fn check_exchanged(issuer: &str, token: &raw::TokenFacts, root: &raw::Root) -> Result<(), Rejection> {
    let mut exchanged = root.exchanged();
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authz::Scenario;

    /// Such a principal was decided by the rules, which the proxy does not evaluate for it, so access looked allowed
    /// that nobody has.
    #[test]
    fn a_principal_needs_a_credential_that_its_issuer_gives_and_the_route_accepts() {
        const LOGIN: &str = "login: {client: {id: door, secret: {env: SECRET}}}";
        let root: raw::Root = serde_saphyr::from_str(&format!(
            "
issuers:
  - {{name: company, issuer: 'https://company.example', {LOGIN}}}
  - {{name: partner, issuer: 'https://partner.example', audiences: [door], {LOGIN}}}
  - {{name: opaque, issuer: 'https://opaque.example', clients: [{{id: robot}}], {LOGIN},
      introspection: {{mode: opaque, client: {{id: door, secret: {{env: SECRET}}}}}}}}
  - {{name: hub, issuer: 'https://github.com', preset: github_oauth, {LOGIN}}}
  - {{name: cluster, issuer: 'https://cluster.example', preset: kubernetes}}
webhooks:
  - {{name: gh, sender: github, secrets: [{{secret: {{env: GH}}}}]}}
  - {{name: gl, sender: gitlab, secrets: [{{secret: {{env: GL}}}}]}}
routes:
  - {{name: prod, kind: http, hosts: [prod.example], schemes: [bearer, session], issuers: [company], upstream: web}}
  - {{name: tokens, kind: http, hosts: [tokens.example], schemes: [bearer], upstream: web}}
  - {{name: narrow, kind: http, hosts: [narrow.example], schemes: [bearer], audiences: [other], upstream: web}}
  - {{name: board, kind: http, hosts: [board.example], schemes: [session], upstream: web}}
  - {{name: both, kind: http, hosts: [both.example], schemes: [session, bearer], upstream: web}}
  - {{name: glass, kind: http, hosts: [glass.example], schemes: [break_glass], issuers: [company], upstream: web}}
  - {{name: open, kind: http, hosts: [open.example], schemes: [bearer, anonymous], issuers: [company], upstream: web}}
  - {{name: hooks, kind: webhook, hosts: [hooks.example], schemes: [webhook], webhook: gh, upstream: web}}
"
        ))
        .unwrap();
        let missing = Err(Reason::CredentialMissing);
        for (route, issuer, expected) in [
            // It has no audiences, so none of its tokens is for Doorward.
            ("prod", "company", Ok(Scheme::Session)),
            ("prod", "partner", Err(Reason::IssuerUnknown)),
            ("prod", "cluster", Err(Reason::IssuerUnknown)),
            ("prod", "hub", Err(Reason::IdentityRefused)),
            ("prod", "break-glass", missing),
            ("tokens", "company", missing),
            ("tokens", "partner", Ok(Scheme::Bearer)),
            // Introspection vouches for tokens of listed clients.
            ("tokens", "opaque", Ok(Scheme::Bearer)),
            // A token can have the audience of the route beside that of its issuer, unless that has none.
            ("narrow", "partner", Ok(Scheme::Bearer)),
            ("narrow", "opaque", missing),
            ("tokens", "cluster", Ok(Scheme::Bearer)),
            ("tokens", "hub", missing),
            ("tokens", "webhook:gh", missing),
            ("board", "partner", Ok(Scheme::Session)),
            ("board", "hub", Ok(Scheme::Session)),
            ("board", "cluster", missing),
            ("both", "company", Ok(Scheme::Session)),
            ("both", "cluster", Ok(Scheme::Bearer)),
            ("glass", "break-glass", Ok(Scheme::BreakGlass)),
            ("glass", "company", missing),
            ("open", "company", Ok(Scheme::Anonymous)),
            ("open", "partner", Err(Reason::IssuerUnknown)),
            // The certificate is not checked.
            ("open", "break-glass", Ok(Scheme::Anonymous)),
            ("hooks", "webhook:gh", Ok(Scheme::Webhook)),
            ("hooks", "webhook:gl", missing),
            ("hooks", "company", missing),
        ] {
            let facts = raw::PrincipalFacts { issuer: Some(issuer.to_owned()), ..raw::PrincipalFacts::default() };
            let request = raw::RequestFacts { route: route.to_owned(), ..raw::RequestFacts::default() };
            let came = match Scenario::new(Some(&facts), &request, &root) {
                Ok(scenario) => Ok(scenario.principal.scheme),
                Err(NotEvaluated::Refused(refused)) => Err(refused.reason()),
                Err(unasked) => panic!("{issuer} at {route}: {unasked}"),
            };
            assert_eq!(came, expected, "{issuer} at {route}");
        }
    }

    /// Rules gave what the token endpoint refuses before it evaluates any.
    #[test]
    fn a_token_that_nobody_can_request_is_refused_before_any_rule() {
        let root: raw::Root = serde_saphyr::from_str(
            "
issuers: [{name: corp, issuer: 'https://corp.example'}]
tokens: {exchange: [{issuer: corp}], registries: [{service: registry.example}]}
",
        )
        .unwrap();
        let no_action = Some("is no action on a repository");
        for (audience, scope, refused) in [
            ("registry.example", "pull:acme/app", None),
            ("registry.example", "pull:acme/../x", no_action),
            ("registry.example", "pull:acme/app:latest", no_action),
            ("registry.example", "repository:acme/app:pull", no_action),
            ("registry.example", "pull:acme/*", Some("has a `*`")),
            ("target.example", "pull:acme/app:latest", None),
            ("target.example", "a\"b", Some("has characters that no scope has")),
            ("target.example", "a b", Some("has characters that no scope has")),
            ("target\nexample", "a", Some("the audience")),
        ] {
            let token = raw::TokenFacts { audience: audience.to_owned(), scope: Some(scope.to_owned()), task: None };
            let request = raw::RequestFacts { token: Some(token), ..raw::RequestFacts::default() };
            match (Scenario::new(Some(&raw::PrincipalFacts::default()), &request, &root), refused) {
                (Ok(_), None) => {}
                (Err(NotEvaluated::Refused(rejection)), Some(part)) => {
                    assert_eq!(rejection.reason(), Reason::BadRequest, "{audience} {scope}");
                    assert!(rejection.detail().contains(part), "{audience} {scope}: {}", rejection.detail());
                }
                (came, refused) => panic!("{audience} {scope}: {came:?}, not {refused:?}"),
            }
        }
    }

    /// Without a kind each was an agent, and with one it was what the case said, so that a table passed of which the
    /// proxy decided the opposite.
    #[test]
    fn a_principal_has_the_kind_that_the_configuration_gives_it_and_no_other() {
        const LOGIN: &str = "client: {id: door, secret: {env: SECRET}}";
        let root: raw::Root = serde_saphyr::from_str(&format!(
            "
issuers:
  - {{name: company, issuer: 'https://company.example', audiences: [door], login: {{kind: human, {LOGIN}}},
      clients: [{{id: cli, kind: human}}, {{id: assistant, kind: agent}}]}}
  - {{name: people, issuer: 'https://people.example', audiences: [door], kind: human,
      clients: [{{id: planner, kind: agent}}]}}
  - {{name: jobs, issuer: 'https://jobs.example', audiences: [door], preset: github_actions}}
  - {{name: cluster, issuer: 'https://cluster.example', audiences: [door], preset: kubernetes}}
  - {{name: own, issuer: 'https://door.example', audiences: [door], preset: doorward}}
webhooks:
  - {{name: gh, sender: github, secrets: [{{secret: {{env: GH}}}}]}}
tokens: {{exchange: [{{issuer: cluster, kubernetes: api}}, {{issuer: company}}, {{issuer: people}}]}}
routes:
  - {{name: api, kind: http, hosts: [api.example], schemes: [bearer], upstream: web}}
  - {{name: board, kind: http, hosts: [board.example], schemes: [session], upstream: web}}
  - {{name: both, kind: http, hosts: [both.example], schemes: [session, bearer, anonymous], upstream: web}}
  - {{name: glass, kind: http, hosts: [glass.example], schemes: [break_glass], upstream: web}}
  - {{name: hooks, kind: webhook, hosts: [hooks.example], schemes: [webhook], webhook: gh, upstream: web}}
"
        ))
        .unwrap();
        let (token, task) = ("token: {audience: x}", "token: {audience: x, task: {namespace: ci, service_account: b}}");
        for (facts, request, expected) in [
            ("issuer: company, client: cli", "route: api", Ok(Kind::Human)),
            ("issuer: company, client: assistant", "route: api", Ok(Kind::Agent)),
            ("issuer: company", "route: api", Ok(Kind::Agent)),
            ("issuer: company", "route: board", Ok(Kind::Human)),
            ("issuer: company", "route: both", Ok(Kind::Human)),
            // Not by a login, but by a token.
            ("issuer: company, kind: agent", "route: both", Ok(Kind::Agent)),
            ("issuer: company, kind: workload", "route: both", Err("is of the kind `human` or `agent` here")),
            (
                "issuer: company, client: assistant, kind: human",
                "route: api",
                Err("`company` with the client `assistant` is of the kind `agent` here, and never `human`; leave \
                     `kind` out, write a `client` of that kind (cli), or change"),
            ),
            ("issuer: people", "route: api", Ok(Kind::Human)),
            ("issuer: people, client: test", "route: api", Ok(Kind::Agent)),
            ("issuer: jobs", "route: api", Ok(Kind::Workload)),
            (
                "issuer: jobs, kind: human",
                "route: api",
                Err("`jobs` is of the kind `workload` here, and never `human`"),
            ),
            ("issuer: own", "route: api", Ok(Kind::Agent)),
            ("issuer: own, kind: human", "route: api", Ok(Kind::Human)),
            ("issuer: own, kind: agent, claims: {kind: human}", "route: api", Err("never `agent`")),
            ("issuer: break-glass, subject: ann", "route: glass", Ok(Kind::Human)),
            ("issuer: 'webhook:gh'", "route: hooks", Ok(Kind::Agent)),
            ("issuer: 'webhook:gh', kind: human", "route: hooks", Err("never `human`")),
            ("issuer: people, client: planner, actor: {subject: planner}", token, Ok(Kind::Human)),
            ("issuer: people, client: planner, actor: {subject: planner}", "route: api", Ok(Kind::Human)),
            ("issuer: people, client: planner, kind: agent, actor: {subject: planner}", token, Err("never `agent`")),
            ("issuer: company", task, Ok(Kind::Agent)),
            ("issuer: company, kind: human", task, Ok(Kind::Human)),
        ] {
            let request: raw::RequestFacts = serde_saphyr::from_str(&format!("{{{request}}}")).unwrap();
            let written: raw::PrincipalFacts = serde_saphyr::from_str(&format!("{{{facts}}}")).unwrap();
            match (Scenario::new(Some(&written), &request, &root), expected) {
                (Ok(scenario), Ok(kind)) => assert_eq!(scenario.principal.kind_of_subject(), kind, "{facts}"),
                (Err(NotEvaluated::Incomplete(why)), Err(part)) => assert!(why.contains(part), "{facts}: {why}"),
                (came, expected) => panic!("{facts} with {request:?}: {came:?}, not {expected:?}"),
            }
        }
    }
}
