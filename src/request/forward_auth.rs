//! Forward authentication: a proxy in front asks whether a request may pass. nginx asks with `auth_request`, Traefik
//! with `forwardAuth`, Envoy with `ext_authz` over HTTP, at `/oauth2/auth` as for oauth2-proxy.
//!
//! The request in question is rebuilt from what the proxy says about it, and takes the same steps as every other
//! request up to the decision; only the forwarding is the proxy's. So one policy applies, whoever forwards. What a
//! proxy says is read only in that proxy's own format, because each proxy passes on the headers of the others' formats
//! as the client wrote them.

use std::sync::Arc;

use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri, Version, header, uri::PathAndQuery,
};
use url::form_urlencoded;

use super::{
    decide::decide_by_policy,
    exchange::{Exchange, RawTarget},
    method,
    notes::note_route,
    outbound::name_line,
    own::own_response,
    pipeline::{Ending, arrival, refuse_impersonation},
    respond::Manner,
    route::Target,
    worker::Worker,
};
use crate::{
    authn::{self, Principal},
    body::ClientBody,
    config::raw::{ForwardAuth, RouteKind},
    downstream::Connection,
    error::{Reason, Rejection},
    snapshot::Snapshot,
    tekton::dashboard::Page,
};

/// The path at which the proxy asks. Envoy appends the path of the original request.
const PATH: &str = "/oauth2/auth";

/// Whether proxies ask at this path.
pub fn is_question(path: &str) -> bool {
    path.strip_prefix(PATH).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Returns which proxy asks, if `request` comes from a proxy that may ask.
pub(super) fn querying_proxy<B>(request: &Request<B>, trusted: bool, snapshot: &Snapshot) -> Option<ForwardAuth> {
    let proxy = snapshot.raw.forward_auth.filter(|_| trusted)?;
    let rest = request.uri().path().strip_prefix(PATH)?;
    let fits = match proxy {
        ForwardAuth::Nginx | ForwardAuth::Traefik => rest.is_empty(),
        ForwardAuth::Envoy => rest.starts_with('/'),
    };
    fits.then_some(proxy)
}

impl Worker {
    /// Decides the request that the proxy asks about, and answers the proxy: 200 with the caller's identity, or the
    /// refusal.
    pub(super) async fn answer_proxy(
        &self,
        proxy: ForwardAuth,
        snapshot: &Arc<Snapshot>,
        connection: &Arc<Connection>,
        request: Request<ClientBody>,
        exchange: &mut Exchange,
        manner: &mut Manner,
    ) -> Result<Ending, Rejection> {
        let id = exchange.record().id;
        exchange.record().endpoint = Some("forward_auth");
        let sent = RawTarget::of(&request, arrival(connection, snapshot));
        let request = original(request, proxy).inspect_err(|_| exchange.note_raw_target(&sent))?;
        exchange.record().method = request.method().clone();
        *manner = Manner::of(id, &request);
        manner.proxy = Some(proxy);
        let request = self.sanitize_and_note(snapshot, arrival(connection, snapshot), request, exchange, manner)?;
        let route = match snapshot.routes.find(request.host(), request.path(), request.method())? {
            Target::Upstream(route) => route,
            Target::Own(_) => {
                return Err(Rejection::new(Reason::PolicyDenied, "this path is Doorward's own")
                    .fix("have the proxy forward `/oauth2/` and `/.doorward/` to Doorward, and not ask about them"));
            }
        };
        note_route(&route, snapshot, exchange, manner);
        if matches!(route.kind, RouteKind::Kubernetes | RouteKind::Webhook) {
            return Err(only_through_us(
                "this route needs the request's body, or another identity on the request, and a proxy that only asks \
                 for a decision provides neither",
            ));
        }
        if let Err(refusal) = refuse_impersonation(&request) {
            return Err(Box::pin(self.authenticator(snapshot).named(request, &route, refusal)).await);
        }
        let now = self.app.clock.moment();
        let authenticator = self.authenticator(snapshot);
        let authenticated = match authenticator.authenticate(request, &route, connection, exchange.record()).await? {
            authn::Authentication::Known(authenticated, _) => authenticated,
            // nginx accepts nothing but 2xx, 401 and 403, and redirects people to the login itself (`error_page 401`).
            authn::Authentication::Respond(_) if proxy == ForwardAuth::Nginx => {
                return Err(Rejection::new(Reason::CredentialMissing, "nobody is signed in").fix("sign in"));
            }
            authn::Authentication::Respond(response) => return Ok(own_response(response, id)),
        };
        if matches!(authenticated.page(), Some(Page::ExternalLog { .. })) {
            return Err(only_through_us(
                "the API server is asked who may read this log, but only when Doorward forwards the request",
            ));
        }
        let (permit, _) = decide_by_policy(&snapshot.policy, authenticated, now.wall(), exchange.record())?;
        let answer = passed(permit.principal())?;
        // On this answer the proxy forwards the request.
        self.record_decision(snapshot, &permit, now, exchange).await?;
        Ok(own_response(answer, id))
    }
}

/// Whether the proxy names the request by a URL, as only ingress-nginx does.
pub(super) fn is_by_url<B>(request: &Request<B>) -> bool {
    request.headers().contains_key(&ORIGINAL_URL)
}

/// nginx understands no refusals but 401 and 403 (`ngx_http_auth_request_module`), and turns any other into an error of
/// its own. On 401, it hands the request itself to Doorward (`error_page`), which asks for the login that is needed.
/// ingress-nginx sends people to a login that does not ask for it, and would then send them there again.
pub(super) fn as_understood_by(proxy: ForwardAuth, is_by_url: bool, rejection: Rejection) -> Rejection {
    let status = rejection.status();
    let is_understood = status == StatusCode::UNAUTHORIZED && !(is_by_url && rejection.reason() == Reason::NeedUnmet);
    if proxy == ForwardAuth::Nginx && status.is_client_error() && !is_understood {
        return rejection.with_status(StatusCode::FORBIDDEN);
    }
    rejection
}

fn only_through_us(why: &'static str) -> Rejection {
    Rejection::new(Reason::PolicyDenied, why).fix("send such requests through Doorward")
}

/// The answer that lets the request pass: 200, as Envoy accepts no other (nginx, Traefik and Caddy treat all 2xx
/// alike), with the header names of oauth2-proxy (`--set-xauthrequest`). The user is named as in rules and in the audit
/// trail; for an anonymous caller the name is empty.
fn passed(principal: &Principal) -> Result<Response<Bytes>, Rejection> {
    let mut response = Response::new(Bytes::new());
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    // Separated by commas, as readers expect. A group with a comma in its name is left out, as it would be read as two
    // others.
    let groups: Vec<&str> =
        principal.groups.iter().map(|group| &**group).filter(|group| !group.contains(',')).collect();
    let user = if principal.is_anonymous() { "" } else { &*principal.username };
    for (name, text) in [
        ("x-auth-request-user", user),
        ("x-auth-request-preferred-username", user),
        ("x-auth-request-email", principal.email.as_deref().unwrap_or_default()),
        ("x-auth-request-groups", &groups.join(",")),
    ] {
        // A proxy copies these over headers of the same names from the client, so they are set even if empty.
        headers.insert(name, HeaderValue::try_from(text).unwrap_or_else(|_| HeaderValue::from_static("")));
    }
    let actor = principal.actor.as_ref().map(|actor| &*actor.subject);
    headers.insert("x-auth-request-actor", name_line("actor", actor.unwrap_or_default())?);
    headers.insert("x-auth-request-client", name_line("client", principal.client.as_deref().unwrap_or_default())?);
    Ok(response)
}

/// The parameters by which oauth2-proxy lets fewer people pass, if they are in the URL at which a proxy asks.
const NARROWER: [&str; 3] = ["allowed_groups", "allowed_emails", "allowed_email_domains"];

/// Whether `query` is also the query of the original request, which Caddy copies if the URL at which it asks has no
/// `?`.
fn is_of_original(headers: &HeaderMap, query: &str) -> bool {
    let uri = headers.get(&FORWARDED_URI).and_then(|uri| uri.to_str().ok());
    uri.and_then(|uri| uri.split_once('?')).is_some_and(|(_, original)| original == query)
}

/// The request that the proxy asks about.
fn original<B>(request: Request<B>, proxy: ForwardAuth) -> Result<Request<B>, Rejection> {
    let (mut parts, body) = request.into_parts();
    // The query that Envoy sends is that of the original request.
    let query = parts.uri.query().filter(|_| proxy != ForwardAuth::Envoy).unwrap_or_default();
    if let Some((name, _)) = form_urlencoded::parse(query.as_bytes()).find(|(name, _)| NARROWER.contains(&&**name)) {
        let why = format!("the proxy asks with `{name}`, which restricts nobody here");
        // It is refused in either case, as a client can make its own query equal to that of the URL.
        let fix = match is_of_original(&parts.headers, query) && proxy == ForwardAuth::Traefik {
            true => {
                "end the URL at which it asks with a `?` (`uri /oauth2/auth?` in Caddy), or it gets the query of the \
                 original request; if the parameter is in that URL, replace it with a rule that says who may pass"
            }
            false => {
                "write a rule by `hosts` and `paths` for who may pass, and remove the parameter from the URL at which \
                 the proxy asks"
            }
        };
        return Err(Rejection::new(Reason::PolicyDenied, why).fix(fix));
    }
    let sent_to = match parts.uri.authority() {
        Some(authority) => HeaderValue::from_str(authority.as_str()).ok(),
        None => only(&parts.headers, &header::HOST)?.cloned(),
    };
    let (method, host, target) = match proxy {
        ForwardAuth::Nginx => nginx(&mut parts.headers, sent_to)?,
        ForwardAuth::Traefik => {
            let host = only(&parts.headers, &FORWARDED_HOST)?.cloned();
            (method(&parts.headers, &FORWARDED_METHOD)?, host, text(&parts.headers, &FORWARDED_URI)?)
        }
        ForwardAuth::Envoy => {
            let target = parts.uri.path_and_query().map_or("", PathAndQuery::as_str);
            let target = target.strip_prefix(PATH).unwrap_or_default().to_owned();
            (Some(parts.method.clone()), sent_to, Some(target))
        }
    };
    let method = method.ok_or_else(|| missing(proxy, "method"))?;
    let host = host.ok_or_else(|| missing(proxy, "host"))?;
    let target = target.filter(|target| target.starts_with('/')).ok_or_else(|| missing(proxy, "path"))?;
    // It would be cut off here, while a proxy that forwards what it got sends it on.
    if target.contains('#') {
        return Err(ambiguous("its path has a `#`"));
    }
    let target = PathAndQuery::try_from(target).map_err(|_| missing(proxy, "path"))?;
    if method == Method::CONNECT || method == Method::TRACE {
        return Err(Rejection::method_not_allowed(method::TAKEN, "no route takes this method"));
    }
    // These belong to the proxy's connection to Doorward. A WebSocket handshake is recognised by its other headers.
    for name in [header::CONNECTION, header::UPGRADE, header::CONTENT_LENGTH, header::TRANSFER_ENCODING] {
        parts.headers.remove(name);
    }
    // A handshake over HTTP/2 has no key (RFC 8441 section 5.1).
    if [header::SEC_WEBSOCKET_KEY, header::SEC_WEBSOCKET_VERSION].iter().any(|name| parts.headers.contains_key(name)) {
        parts.headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        parts.headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    }
    parts.headers.insert(header::HOST, host);
    parts.method = method;
    parts.uri = Uri::from(target);
    parts.version = Version::HTTP_11;
    Ok(Request::from_parts(parts, body))
}

static FORWARDED_METHOD: HeaderName = HeaderName::from_static("x-forwarded-method");
static FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
static FORWARDED_URI: HeaderName = HeaderName::from_static("x-forwarded-uri");
static FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
static ORIGINAL_METHOD: HeaderName = HeaderName::from_static("x-original-method");
static ORIGINAL_URI: HeaderName = HeaderName::from_static("x-original-uri");
static ORIGINAL_URL: HeaderName = HeaderName::from_static("x-original-url");

type Original = (Option<Method>, Option<HeaderValue>, Option<String>);

/// The format of nginx: `X-Original-Method` with `X-Original-URI` and the host that the proxy asks at, or with
/// `X-Original-URL`, which includes scheme and host (ingress-nginx). With both it would not be clear which of them the
/// client sent.
fn nginx(headers: &mut HeaderMap, sent_to: Option<HeaderValue>) -> Result<Original, Rejection> {
    let method = method(headers, &ORIGINAL_METHOD)?;
    let target = text(headers, &ORIGINAL_URI)?;
    let Some(url) = text(headers, &ORIGINAL_URL)? else { return Ok((method, sent_to, target)) };
    if target.is_some() {
        return Err(ambiguous("`X-Original-URI` and `X-Original-URL` are both present"));
    }
    let Some((scheme @ ("http" | "https"), rest)) = url.split_once("://") else {
        return Err(ambiguous("`X-Original-URL` is not an http URL"));
    };
    let (host, target) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    if !headers.contains_key(&FORWARDED_PROTO)
        && let Ok(scheme) = HeaderValue::from_str(scheme)
    {
        headers.insert(FORWARDED_PROTO.clone(), scheme);
    }
    Ok((method, HeaderValue::from_str(host).ok(), Some(target.to_owned())))
}

/// The value of a header that must not occur twice: if there are two, one is the client's.
fn only<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Result<Option<&'h HeaderValue>, Rejection> {
    let mut values = headers.get_all(name).iter();
    let first = values.next();
    if values.next().is_some() {
        return Err(ambiguous(format!("`{name}` occurs more than once")));
    }
    Ok(first)
}

fn text(headers: &HeaderMap, name: &HeaderName) -> Result<Option<String>, Rejection> {
    let value = only(headers, name)?.filter(|value| !value.is_empty());
    let text = value.map(|value| value.to_str().map(str::to_owned)).transpose();
    text.map_err(|_| ambiguous(format!("`{name}` is not ASCII")))
}

fn method(headers: &HeaderMap, name: &HeaderName) -> Result<Option<Method>, Rejection> {
    let method = text(headers, name)?.map(|text| Method::from_bytes(text.as_bytes())).transpose();
    method.map_err(|_| ambiguous(format!("`{name}` is not a method")))
}

fn ambiguous(what: impl Into<String>) -> Rejection {
    Rejection::new(Reason::PolicyDenied, format!("it is not clear which request is asked about: {}", what.into()))
        .fix("have the proxy set these headers itself, in place of what clients send")
}

fn missing(proxy: ForwardAuth, what: &str) -> Rejection {
    let fix = match proxy {
        ForwardAuth::Nginx => {
            "set `X-Original-Method $request_method`, `X-Original-URI $request_uri` and `Host $host` (at another port than 443 \
             `$host:$server_port`) in the location that asks"
        }
        ForwardAuth::Traefik => "ask with the `forwardAuth` middleware, without `trustForwardHeader`",
        ForwardAuth::Envoy => "ask with `path_prefix: /oauth2/auth`",
    };
    Rejection::new(Reason::PolicyDenied, format!("the proxy does not say the {what} of the request that it asks about"))
        .fix(fix)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authn::{Actor, Scheme};

    type Row<'a> = (&'a str, ForwardAuth, &'a str, &'a [(&'static str, &'a str)], Option<&'a str>);

    #[test]
    fn each_proxy_is_understood_in_its_own_way_alone() {
        use ForwardAuth::{Envoy, Nginx, Traefik};
        let (own_method, own_uri) = (("x-original-method", "POST"), ("x-original-uri", "/a?b=c"));
        let url = ("x-original-url", "https://b.example:8443/a?b=c");
        let forwarded =
            [("x-forwarded-method", "POST"), ("x-forwarded-host", "b.example"), ("x-forwarded-uri", "/a?b=c")];
        let [forwarded_method, forwarded_host, forwarded_uri] = forwarded;
        let rows: &[Row<'_>] = &[
            ("nginx", Nginx, PATH, &[own_method, own_uri], Some("POST a.example /a?b=c")),
            ("ingress-nginx", Nginx, PATH, &[own_method, url], Some("POST b.example:8443 /a?b=c")),
            ("attacks:Z15 no method", Nginx, PATH, &[own_uri], None),
            ("attacks:Z15 empty method", Nginx, PATH, &[("x-original-method", ""), own_uri], None),
            ("attacks:Z15 no path", Nginx, PATH, &[own_method], None),
            ("both", Nginx, PATH, &[own_method, own_uri, url], None),
            ("attacks:Z42 two addresses", Nginx, PATH, &[own_method, url, url], None),
            ("attacks:Z15 method twice", Nginx, PATH, &[own_method, ("x-original-method", "GET"), own_uri], None),
            ("attacks:Z15 path twice", Nginx, PATH, &[own_method, own_uri, ("x-original-uri", "/")], None),
            ("an address as a path", Nginx, PATH, &[own_method, ("x-original-uri", "http://x/")], None),
            ("a bare path", Nginx, PATH, &[own_method, ("x-original-uri", "a")], None),
            ("no path in the address", Nginx, PATH, &[own_method, ("x-original-url", "https://b.example")], None),
            ("a query alone", Nginx, PATH, &[own_method, ("x-original-url", "https://b.example?x=/")], None),
            ("a fragment", Nginx, PATH, &[own_method, ("x-original-uri", "/a#/../b")], None),
            ("a fragment in the query", Nginx, PATH, &[own_method, ("x-original-uri", "/a?b#c")], None),
            (
                "a fragment in the address",
                Nginx,
                PATH,
                &[own_method, ("x-original-url", "https://b.example/a#/../b")],
                None,
            ),
            ("another scheme", Nginx, PATH, &[own_method, ("x-original-url", "ftp://b.example/")], None),
            ("a tunnel", Nginx, PATH, &[("x-original-method", "CONNECT"), own_uri], None),
            ("Traefik's words to nginx", Nginx, PATH, &forwarded, None),
            ("Traefik", Traefik, PATH, &forwarded, Some("POST b.example /a?b=c")),
            ("nginx's words to Traefik", Traefik, PATH, &[own_method, own_uri], None),
            (
                "Traefik, a fragment",
                Traefik,
                PATH,
                &[forwarded_method, forwarded_host, ("x-forwarded-uri", "/a#/../b")],
                None,
            ),
            ("Traefik, no host", Traefik, PATH, &[forwarded_method, forwarded_uri], None),
            ("Traefik, no method", Traefik, PATH, &[forwarded_host, forwarded_uri], None),
            ("Traefik, host twice", Traefik, PATH, &[forwarded_host, forwarded[0], forwarded[1], forwarded[2]], None),
            ("Envoy", Envoy, "/oauth2/auth/a?b=c", &forwarded, Some("PUT a.example /a?b=c")),
            ("groups in the question", Nginx, "/oauth2/auth?allowed_groups=dev", &[own_method, own_uri], None),
            ("domains in Traefik's", Traefik, "/oauth2/auth?a=b&allowed_email_domains=b.example", &forwarded, None),
            ("something else", Nginx, "/oauth2/auth?a=b", &[own_method, own_uri], Some("POST a.example /a?b=c")),
            (
                "the query of the original",
                Envoy,
                "/oauth2/auth/a?allowed_groups=dev",
                &forwarded,
                Some("PUT a.example /a?allowed_groups=dev"),
            ),
        ];
        for (row, proxy, uri, headers, expected) in rows {
            let mut request = Request::builder().method("PUT").uri(*uri).header("host", "a.example");
            for (name, value) in *headers {
                request = request.header(*name, *value);
            }
            let found = original(request.body(()).unwrap(), *proxy).ok().map(|request| {
                let host = request.headers()[header::HOST].to_str().unwrap().to_owned();
                format!("{} {host} {}", request.method(), request.uri())
            });
            assert_eq!(found.as_deref(), *expected, "{row}");
        }
    }

    /// Caddy copies the query of the original request if the URL at which it asks has none.
    #[test]
    fn a_refusal_of_an_unsupported_parameter_names_its_origin() {
        for (proxy, original_uri, fix) in [
            (ForwardAuth::Traefik, "/search?allowed_groups=dev", "`uri /oauth2/auth?`"),
            (ForwardAuth::Traefik, "/search?a=b", "remove the parameter from the URL"),
            (ForwardAuth::Traefik, "/search", "remove the parameter from the URL"),
            (ForwardAuth::Nginx, "/search?allowed_groups=dev", "remove the parameter from the URL"),
        ] {
            let request = Request::builder()
                .uri("/oauth2/auth?allowed_groups=dev")
                .header("x-forwarded-method", "GET")
                .header("x-forwarded-host", "a.example")
                .header("x-forwarded-uri", original_uri);
            let refused = original(request.body(()).unwrap(), proxy).unwrap_err();
            assert!(refused.fix_text().unwrap().contains(fix), "{proxy:?} {original_uri}: {refused:?}");
        }
        let guide = include_str!("../../docs/migrate-from-oauth2-proxy.md");
        let (_, recipe) = guide.split_once("```caddyfile\n").unwrap();
        let recipe = recipe.split("```").next().unwrap();
        assert!(recipe.contains("uri /oauth2/auth?\n"), "{recipe}");
    }

    #[test]
    fn the_answer_overwrites_actor_and_client_headers_that_the_client_sent() {
        let alice = Principal::new(Scheme::Bearer, "corp", "7", "alice");
        let by_agent = Principal {
            client: Some("cli".into()),
            actor: Some(Actor { issuer: None, subject: "worker".into(), client: None }),
            ..alice.clone()
        };
        for (principal, actor, client) in [(&alice, "", ""), (&by_agent, "worker", "cli")] {
            let answer = passed(principal).unwrap();
            assert_eq!(answer.status(), StatusCode::OK, "the only one by which Envoy lets pass");
            assert_eq!(answer.headers()["x-auth-request-user"], "alice");
            assert_eq!(answer.headers()["x-auth-request-actor"], actor);
            assert_eq!(answer.headers()["x-auth-request-client"], client);
        }
        let hidden =
            Principal { actor: Some(Actor { issuer: None, subject: "wor\nker".into(), client: None }), ..alice };
        assert_eq!(passed(&hidden).unwrap_err().reason(), Reason::IdentityRefused);
    }

    #[test]
    fn nginx_gets_only_status_codes_that_it_understands() {
        for (row, reason, proxy, expected) in [
            ("nobody is signed in", Reason::CredentialMissing, ForwardAuth::Nginx, 401),
            ("no such page", Reason::RouteNotFound, ForwardAuth::Nginx, 403),
            ("our own trouble", Reason::StoreUnavailable, ForwardAuth::Nginx, 503),
            ("no such page, elsewhere", Reason::RouteNotFound, ForwardAuth::Traefik, 404),
        ] {
            for is_by_url in [false, true] {
                let told = as_understood_by(proxy, is_by_url, Rejection::new(reason, ""));
                assert_eq!(told.status().as_u16(), expected, "{row}");
            }
        }
    }

    /// Behind nginx, such a person was shut out by a bare 403.
    #[test]
    fn a_proxy_that_leads_to_the_needed_login_is_told_that_the_login_does_not_suffice() {
        for (row, proxy, is_by_url, expected) in [
            ("nginx hands the request over", ForwardAuth::Nginx, false, 401),
            ("ingress-nginx would go round in circles", ForwardAuth::Nginx, true, 403),
            ("Envoy passes the answer on", ForwardAuth::Envoy, false, 401),
        ] {
            let told = as_understood_by(proxy, is_by_url, Rejection::new(Reason::NeedUnmet, ""));
            assert_eq!(told.status().as_u16(), expected, "{row}");
        }
    }

    #[test]
    fn a_websocket_is_recognized_even_if_the_proxy_removes_its_upgrade() {
        let asked = |lines: &[(&'static str, &str)]| {
            let mut request = Request::builder().uri(PATH).header("host", "a.example").header("connection", "close");
            for (name, value) in [("x-original-method", "GET"), ("x-original-uri", "/")].iter().chain(lines) {
                request = request.header(*name, *value);
            }
            let request = original(request.body(()).unwrap(), ForwardAuth::Nginx).unwrap();
            crate::upstream::upgrade::requested(&request).map(|protocol| protocol.is_some()).ok()
        };
        let (key, version) = (("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="), ("sec-websocket-version", "13"));
        assert_eq!(asked(&[key, version]), Some(true));
        assert_eq!(asked(&[]), Some(false));
        // One over HTTP/2 was taken for a plain request, whose `Origin` may be any.
        assert_eq!(asked(&[version]), None);
        assert_eq!(asked(&[key]), None);
    }
}
