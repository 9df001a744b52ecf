//! Tokens for container registries, in the protocol of docker, podman, kaniko, crane and others
//! (distribution.github.io/distribution/spec/auth/token, scope and jwt): the client sends its credential as a password
//! to the address that the registry names, says what it wants to do, and gets a token with `access` for it.
//!
//! In rules, an action on a repository is a scope: `push:acme/app`.

mod rules;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use serde::Serialize;
use serde_json::{Map, Value, json};
use url::form_urlencoded;
use zeroize::Zeroizing;

use super::{
    Issuing,
    exchange::{Exchanger, IssuedToken},
    form::{basic, is_audience, short},
    metadata,
    refusal::{Refusal, printable},
};
use crate::{
    authn::Principal,
    authz::{AskedToken, check_lifetime},
    clock::Timestamp,
    config::{
        raw,
        report::{At, Report},
        values::Span,
    },
    error::Reason,
    request::{exchange::Exchange, sanitize::CleanRequest},
};

/// The default lifetime of a token. No registry checks whether it was revoked.
const LIFETIME: Span = Span::from_secs(300);
/// What one client may ask for at once: the actions on all repositories of an image with its base images.
const MAX_SCOPES: usize = 32;
/// The actions on a repository (distribution's token scope, `action`).
const ACTIONS: [&str; 3] = ["delete", "pull", "push"];
/// The longest name of a repository.
const MAX_NAME: usize = 255;
const MAX_QUERY: usize = 8 << 10;

/// The registries that trust Doorward's tokens, by `service`, with the lifetime of their tokens.
pub type Registries = BTreeMap<String, Duration>;

/// Reads the configuration, and checks the rules for the registries.
pub fn resolve(tokens: &raw::Tokens, root: &raw::Root, at: &At, report: &mut Report) -> Registries {
    let mut registries = Registries::new();
    for (index, raw) in tokens.registries.iter().enumerate() {
        let at = at.index(index);
        let lifetime = raw.lifetime.unwrap_or_else(|| LIFETIME.min(tokens.lifetime));
        check_lifetime(lifetime, tokens.lifetime, &at, report);
        if !is_audience(&raw.service) {
            report
                .error(&at.key("service"), "`service` is empty, too long, or has control characters")
                .help("write what the registry has as `auth.token.service`");
        } else if registries.insert(raw.service.clone(), lifetime.get()).is_some() {
            report.error(&at.key("service"), format!("`{}` is listed twice", raw.service));
        }
    }
    rules::check(&registries, root, report);
    registries
}

/// What a token permits at a registry, in the registry's form.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Access {
    #[serde(rename = "type")]
    kind: &'static str,
    name: String,
    actions: Vec<String>,
}

/// The claim `access` for scopes of the form `push:acme/app`. Other scopes have no effect at a registry.
pub fn access(scopes: &[Arc<str>]) -> Vec<Access> {
    let mut access: Vec<Access> = Vec::new();
    for (action, name) in scopes.iter().filter_map(|scope| action_on(scope)) {
        match access.iter_mut().find(|access| access.name == name) {
            Some(access) => access.actions.push(action.to_owned()),
            None => {
                access.push(Access { kind: "repository", name: name.to_owned(), actions: vec![action.to_owned()] });
            }
        }
    }
    access
}

/// Refuses scopes that no registry knows, even if a rule's pattern matches them, as `pull:acme/*` matches
/// `pull:acme/../x`.
pub fn check_scopes(scopes: &[String]) -> Result<(), Refusal> {
    match scopes.iter().find(|scope| action_on(scope).is_none()) {
        Some(scope) => Err(Refusal::bad_scope(format!(
            "`{}` is no action on a repository, and a registry knows nothing else; ask for one action, a colon and a name in lower \
             case without a tag, such as `pull:acme/app`, and for each action by a scope of its own",
            short(scope)
        ))),
        None => Ok(()),
    }
}

/// The action and the repository of a scope as rules name them.
fn action_on(scope: &str) -> Option<(&str, &str)> {
    scope.split_once(':').filter(|(action, name)| is_action(action) && is_name(name))
}

/// All actions at once (`*`) is not one that a token has: a deny that names one of them would not match it. Nor is
/// `repository`, with which clients begin what they ask for.
fn is_action(action: &str) -> bool {
    !action.is_empty() && action != "repository" && action.bytes().all(|byte| byte.is_ascii_lowercase())
}

/// Whether this is a repository, optionally behind a host with its port (distribution's token scope, `resourcename`).
fn is_name(name: &str) -> bool {
    let is_plain = |part: &str| part.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'_' | b'-'));
    let is_part = |part: &str| !part.is_empty() && part != "." && part != ".." && is_plain(part);
    let is_port = |port: &str| !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
    let path = match name.split_once('/').map(|(host, path)| (host.split_once(':'), path)) {
        Some((Some((host, port)), path)) if is_part(host) && is_port(port) => path,
        _ => name,
    };
    name.len() <= MAX_NAME && path.split('/').all(is_part)
}

/// The request of a client.
#[derive(Debug, PartialEq, Eq)]
struct TokenQuery {
    service: String,
    /// As rules name them. Empty if the client only checks whether its password is valid.
    scopes: Vec<String>,
}

impl TokenQuery {
    fn read(query: Option<&str>) -> Result<Self, Refusal> {
        let query = query.unwrap_or_default();
        if query.len() > MAX_QUERY {
            return Err(Refusal::malformed(format!("the query is longer than {MAX_QUERY} bytes")));
        }
        let mut service = None;
        let mut scopes: Vec<String> = Vec::new();
        let mut unknown = None;
        for (name, value) in form_urlencoded::parse(query.as_bytes()) {
            match &*name {
                "service" if service.is_some() => return Err(Refusal::malformed("`service` is there more than once")),
                "service" => service = Some(value.into_owned()),
                "scope" => {
                    for resource in value.split(' ').filter(|resource| !resource.is_empty()) {
                        match actions(resource) {
                            Some(actions) => scopes.extend(actions),
                            None => _ = unknown.get_or_insert_with(|| short(resource)),
                        }
                    }
                }
                // `account`, `client_id` and `offline_token` add nothing to the password.
                _ => {}
            }
        }
        let service = service.filter(|service| !service.is_empty());
        let service = service.ok_or_else(|| Refusal::malformed("`service` is missing: say for which registry"))?;
        scopes.sort();
        scopes.dedup();
        if scopes.len() > MAX_SCOPES {
            return Err(Refusal::malformed(format!("more than {MAX_SCOPES} actions are asked for at once")));
        }
        match unknown {
            Some(resource) if scopes.is_empty() => {
                Err(Refusal::bad_scope(format!("`{resource}` is not given here; ask for `repository:NAME:pull,push`")))
            }
            _ => Ok(Self { service, scopes }),
        }
    }
}

/// The scopes of `repository:acme/app:pull,push`; `None` if it is of another kind, or malformed. Clients that delete
/// may ask for `*` (skopeo).
fn actions(resource: &str) -> Option<Vec<String>> {
    let (name, actions) = resource.strip_prefix("repository:")?.rsplit_once(':')?;
    let actions = actions.split(',').flat_map(|action| if action == "*" { ACTIONS.to_vec() } else { vec![action] });
    let actions: Vec<&str> = actions.collect();
    (is_name(name) && actions.iter().all(|action| is_action(action)))
        .then(|| actions.iter().map(|action| format!("{action}:{name}")).collect())
}

impl Issuing<'_> {
    /// Answers a client of a registry.
    pub(super) async fn answer_registry(self, request: CleanRequest<()>, exchange: &mut Exchange) -> Response<Bytes> {
        let given = match self.keys() {
            Err(rejection) => Err(Refusal::from(rejection)),
            Ok(keys) => Exchanger::new(self, &keys).registry(&request, exchange).await,
        };
        given.unwrap_or_else(|refusal| {
            super::refused(&refusal, exchange);
            refused(&refusal, self.own_issuer.issuer())
        })
    }
}

impl Exchanger<'_> {
    async fn registry(&self, request: &CleanRequest<()>, exchange: &mut Exchange) -> Result<Response<Bytes>, Refusal> {
        let asked = TokenQuery::read(request.query());
        if let Ok(asked) = &asked {
            exchange.record().asked = Some(Box::new(AskedToken {
                audience: asked.service.clone(),
                scopes: Some(asked.scopes.clone()),
                partly: true,
                task: None,
            }));
        }
        // Errors in a request are shown only to callers with a credential.
        let asked = asked.and_then(|asked| self.known(asked));
        let password = password(request.headers()).ok_or_else(|| {
            Refusal::subject(
                "log in first: `docker login -u doorward`, with the token of a person or a pod as the password",
            )
        })?;
        if let Some(claims) = self.keys.verify(&password) {
            // An ended token proves nothing. It is checked once more when there is room in the trail.
            self.held(&claims)?;
            exchange.reserve(1).await?;
            return self.return_unchanged(&password, asked, &claims, self.app.clock.now(), exchange);
        }
        let subject = self.authenticate("password", &password).await?;
        exchange.record().principal = Some(Arc::clone(&subject));
        let asked = asked?;
        // After the caller is authenticated, as in an exchange.
        exchange.reserve(2).await?;
        let now = self.app.clock.now();
        let party = self.party("password", subject, now).await?;
        self.recheck(&party)?;
        let view = party.view(request, &asked.service, now);
        // `docker login` asks for no scope, to check the password: it succeeds if a rule gives something there.
        let decided = match asked.scopes.as_slice() {
            [] => self.decide_whether_any(&party, &view),
            scopes => self.decide_some(&party, &view, scopes),
        };
        let granted = self.record(&party, decided, exchange)?;
        match self.issue(&party, &view, granted, exchange).await? {
            IssuedToken::Own { token, expires, .. } => Ok(given(&token, now, expires)),
            IssuedToken::Onward(_) => {
                Err(Refusal::unavailable(Reason::Internal, "a registry trusts no other provider"))
            }
        }
    }

    /// The request, if its registry is known.
    fn known(&self, asked: TokenQuery) -> Result<TokenQuery, Refusal> {
        if self.own_issuer.settings.registries.contains_key(&asked.service) {
            return Ok(asked);
        }
        Err(Refusal::bad_target(
            "no registry with this `service` is among `tokens.registries`; it must be what the registry has as \
             `auth.token.service`",
        ))
    }

    /// The holder of a Doorward token that was sent as a password.
    fn held(&self, claims: &Map<String, Value>) -> Result<Principal, Refusal> {
        self.check_revocations()?;
        self.holder(claims).ok_or_else(|| {
            Refusal::subject("password: the token has ended, with its time, with its run, or because it was revoked")
        })
    }

    /// Returns a Doorward token for this registry as it is: rules were evaluated when it was issued.
    fn return_unchanged(
        &self,
        token: &str,
        asked: Result<TokenQuery, Refusal>,
        claims: &Map<String, Value>,
        now: Timestamp,
        exchange: &mut Exchange,
    ) -> Result<Response<Bytes>, Refusal> {
        let holder = self.held(claims)?;
        let audience = claims.get("aud").and_then(Value::as_str).unwrap_or_default();
        let expires = holder.expires;
        exchange.record().principal = Some(Arc::new(holder));
        let TokenQuery { service, .. } = asked?;
        if audience != service {
            return Err(Refusal::subject(format!(
                "password: the token is for another audience than `{service}`; ask for one with this audience"
            )));
        }
        Ok(given(token, now, expires))
    }
}

/// The password of a basic credential; the user name is ignored.
fn password(headers: &HeaderMap) -> Option<Zeroizing<String>> {
    let plain = basic(headers)?;
    let (_, password) = plain.split_once(':')?;
    (!password.is_empty()).then(|| Zeroizing::new(password.to_owned()))
}

/// Both names of the token are in use; which one a client reads depends on its age.
fn given(token: &str, now: Timestamp, expires: Timestamp) -> Response<Bytes> {
    let body = json!({
        "token": token,
        "access_token": token,
        "expires_in": expires.since(now).as_secs(),
        "issued_at": now.to_string(),
    });
    super::refusal::answer(StatusCode::OK, &body)
}

/// A refusal in the form that registry clients show (distribution's API, "Errors").
fn refused(refusal: &Refusal, issuer: &str) -> Response<Bytes> {
    let is_decision = refusal.reason() == Reason::PolicyDenied;
    let (status, code) = match refusal.reason() {
        Reason::BadRequest => (StatusCode::BAD_REQUEST, "UNSUPPORTED"),
        _ if refusal.status().is_server_error() => (refusal.status(), "UNAVAILABLE"),
        _ if is_decision => (StatusCode::FORBIDDEN, "DENIED"),
        _ => (StatusCode::UNAUTHORIZED, "UNAUTHORIZED"),
    };
    let body = json!({"errors": [{"code": code, "message": printable(refusal.description()), "detail": null}]});
    let mut response = super::refusal::answer(status, &body);
    let headers = response.headers_mut();
    if status == StatusCode::UNAUTHORIZED
        && let Ok(value) = HeaderValue::from_str(&format!("Basic realm=\"{issuer}{}\"", metadata::REGISTRY))
    {
        headers.insert(header::WWW_AUTHENTICATE, value);
    }
    if let Some(seconds) = refusal.retry_after() {
        headers.insert(header::RETRY_AFTER, seconds);
    }
    response
}

#[cfg(test)]
mod tests {
    use base64::{Engine, prelude::BASE64_STANDARD};

    use super::*;

    fn asked(query: &str) -> Result<TokenQuery, String> {
        TokenQuery::read(Some(query)).map_err(|refusal| refusal.description().to_owned())
    }

    #[test]
    fn requested_registry_access_is_read_as_scopes_of_rules() {
        for (query, scopes) in [
            ("service=r&scope=repository:acme/app:pull,push", &["pull:acme/app", "push:acme/app"][..]),
            ("service=r&scope=repository%3Aacme%2Fapp%3Apull&account=x&client_id=docker", &["pull:acme/app"]),
            ("service=r&scope=repository:a:pull&scope=repository:b:pull,push", &["pull:a", "pull:b", "push:b"]),
            ("service=r&scope=repository:a:pull+repository:b:pull", &["pull:a", "pull:b"]),
            ("service=r&scope=repository:a:pull&scope=repository:a:pull", &["pull:a"]),
            ("service=r&scope=repository:reg:5000/a:pull", &["pull:reg:5000/a"]),
            ("service=r&scope=repository:a:*", &["delete:a", "pull:a", "push:a"]),
            ("service=r&scope=repository:a:pull,*", &["delete:a", "pull:a", "push:a"]),
            ("service=r&scope=registry:catalog:*&scope=repository:a:pull", &["pull:a"]),
            ("service=r", &[]),
        ] {
            assert_eq!(asked(query).unwrap().scopes, scopes, "{query}");
        }
    }

    #[test]
    fn nonsensical_settings_are_refused_with_the_reason() {
        for (query, said) in [
            ("", "`service` is missing"),
            ("service=&scope=repository:a:pull", "`service` is missing"),
            ("service=r&service=s", "more than once"),
            ("service=r&scope=registry:catalog:*", "`registry:catalog:*` is not given here"),
            ("service=r&scope=repository:../a:pull", "is not given here"),
            ("service=r&scope=repository:a//b:pull", "is not given here"),
            ("service=r&scope=repository:a/b:latest:pull", "is not given here"),
            ("service=r&scope=repository:A:pull", "is not given here"),
            ("service=r&scope=repository:a:PULL", "is not given here"),
            ("service=r&scope=repository:a:", "is not given here"),
            ("service=r&scope=repository:a:pull,", "is not given here"),
            ("service=r&scope=repository:a:pu*", "is not given here"),
        ] {
            let why = asked(query).unwrap_err();
            assert!(why.contains(said), "{query}: {why}");
        }
        let many: String = (0..33).map(|n| format!("&scope=repository:a{n}:pull")).collect();
        assert!(asked(&format!("service=r{many}")).unwrap_err().contains("more than 32 actions"));
        assert!(asked(&format!("service=r&x={}", "a".repeat(MAX_QUERY))).unwrap_err().contains("longer than"));
    }

    #[test]
    fn the_access_claim_corresponds_to_the_scopes() {
        let scopes = ["pull:acme/app", "push:acme/app", "pull:reg:5000/base", "deploy"].map(Arc::from);
        let of = |name: &str, actions: &[&str]| Access {
            kind: "repository",
            name: name.to_owned(),
            actions: actions.iter().map(ToString::to_string).collect(),
        };
        assert_eq!(access(&scopes), [of("acme/app", &["pull", "push"]), of("reg:5000/base", &["pull"])]);
    }

    #[test]
    fn no_token_names_what_a_registry_would_be_refused_whatever_pattern_it_meets() {
        for good in ["pull:acme/app", "pull:reg:5000/acme/app", "pull:a"] {
            assert!(check_scopes(&[good.to_owned()]).is_ok(), "{good}");
            assert_eq!(access(&[good.into()]).len(), 1, "{good}");
        }
        for bad in [
            "*:acme/app",
            "pull:acme/../x",
            "pull:acme/",
            "pull:acme/x*",
            "pull:acme/app:latest",
            "pull:reg:5000",
            "pull:reg:x/app",
            "pull:a:1/:2",
            "pull:",
            ":acme/app",
            "PULL:acme/app",
            "pull",
            "pull:/a",
            "pull:acme/App",
        ] {
            let refusal = check_scopes(&["pull:acme/app".to_owned(), bad.to_owned()]).unwrap_err();
            assert!(refusal.description().contains(&format!("`{bad}` is no action")), "{}", refusal.description());
            assert_eq!(refusal.reason(), Reason::BadRequest);
            assert!(access(&[bad.into()]).is_empty(), "a rule may name it: {bad}");
        }
    }

    #[test]
    fn a_password_is_accepted_in_one_way_only() {
        let read = |values: &[&str]| {
            let values = values.iter().map(|value| (header::AUTHORIZATION, value.parse().unwrap()));
            password(&values.collect()).map(|password| password.to_string())
        };
        let basic = |plain: &str| format!("Basic {}", BASE64_STANDARD.encode(plain));
        assert_eq!(read(&[&basic("doorward:a.b.c")]), Some("a.b.c".to_owned()));
        assert_eq!(read(&[&basic(":a:b")]), Some("a:b".to_owned()));
        for values in [
            vec![],
            vec![basic("x:")],
            vec![basic("x")],
            vec!["Bearer a.b.c".to_owned()],
            vec![basic("a:b"), basic("a:b")],
        ] {
            let values: Vec<&str> = values.iter().map(String::as_str).collect();
            assert_eq!(read(&values), None, "{values:?}");
        }
    }

    /// Regression: `Retry-After` was a constant, whatever the refusal said.
    #[test]
    fn a_registry_client_gets_the_retry_time_of_the_refusal() {
        let refusal = Refusal::unavailable(Reason::UpstreamUnreachable, "left alone");
        for (left, told) in [(2, "2"), (5, "5")] {
            let response = refused(&refusal.clone().again_after(Duration::from_secs(left)), "https://door.example");
            assert_eq!(
                (response.status(), &response.headers()[header::RETRY_AFTER]),
                (StatusCode::SERVICE_UNAVAILABLE, &HeaderValue::from_static(told))
            );
        }
        let denied = refused(&Refusal::target("no rule gives it"), "https://door.example");
        assert!(!denied.headers().contains_key(header::RETRY_AFTER));
    }
}
