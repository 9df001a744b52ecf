//! Every kind of route with every kind of credential, enumerated from the enums themselves. Each combination that can
//! be configured gets a request that must not pass, and a counterpart that differs in one thing and passes.

use doorward::config::raw::{RouteKind, Scheme};
use serde::de::DeserializeOwned;

use crate::{
    fixture::{WEBHOOK_SECRET, bearer},
    harness::{
        AUDIENCE, Authority, Doorward, EXCHANGE, HANDSHAKE, Issuer, Pair, Push, Raw, Recorded, Reply, Reviews,
        Upstream, Verdict, exchange_form, log_in, now, part, settled, told,
    },
};

/// All variants of an enum, taken from the error message for an unknown one.
fn all<T: DeserializeOwned + std::fmt::Debug>() -> Vec<(String, T)> {
    let error = serde_json::from_value::<T>("?".into()).unwrap_err().to_string();
    let names = error.split('`').skip(3).step_by(2);
    let variants: Vec<_> = names.map(|name| (name.to_owned(), serde_json::from_value(name.into()).unwrap())).collect();
    assert!(variants.len() >= 4, "{error}");
    variants
}

/// Whether a route of this kind can have this scheme; compared with `doorward check`.
fn is_possible(kind: RouteKind, scheme: Scheme) -> bool {
    match (kind, scheme) {
        (RouteKind::Webhook, Scheme::Webhook) => true,
        (RouteKind::Dashboard | RouteKind::Kubernetes | RouteKind::Http, Scheme::Webhook) => false,
        (RouteKind::Kubernetes, Scheme::Anonymous) => false,
        (RouteKind::Webhook | RouteKind::Dashboard | RouteKind::Http, Scheme::Anonymous) => true,
        (
            RouteKind::Webhook | RouteKind::Dashboard | RouteKind::Kubernetes | RouteKind::Http,
            Scheme::Session | Scheme::Bearer | Scheme::BreakGlass,
        ) => true,
    }
}

/// The status of a request over TLS with a client certificate.
async fn request(authority: &Authority, doorward: &Doorward, client: &Pair, head: &str) -> u16 {
    let mut raw = Raw::tls(doorward.address("tls"), authority, Some(client), "localhost").await;
    raw.send(head).await;
    raw.answer().await.status
}

/// A folder with all files named in the configuration.
fn folder(authority: &Authority, server: &Pair) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in [
        ("token", "upstream-token"),
        ("secret", WEBHOOK_SECRET),
        ("client", "client-secret"),
        ("session", "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY="),
        ("localhost.pem", &server.chain),
        ("localhost.key", &server.key),
        ("ca.pem", &authority.pem()),
    ] {
        std::fs::write(dir.path().join(name), text).unwrap();
    }
    dir
}

fn route(kind: &str, scheme: &str) -> String {
    let upstream = if kind == "kubernetes" { "cluster" } else { "web" };
    let webhook = if scheme == "webhook" { ", webhook: github" } else { "" };
    format!(
        "  - {{name: {kind}-{scheme}, kind: {kind}, hosts: [localhost], paths: ['/{kind}/{scheme}', '/{kind}/{scheme}/*'], \
         schemes: [{scheme}], upstream: {upstream}{webhook}}}\n"
    )
}

/// The peers of Doorward.
struct Peers {
    issuer: Issuer,
    /// A cluster, whose service accounts have tokens, and its API server.
    cluster: Issuer,
    api_server: Upstream,
    /// Its reviews of these tokens.
    reviews: Reviews,
    upstream: Upstream,
}

impl Peers {
    async fn start(upstream: Upstream) -> Self {
        let reviews = Reviews::default();
        let said = reviews.clone();
        let api_server =
            Upstream::scripted(move |request| said.answer(request).unwrap_or_else(|| Reply::json(404, "{}"))).await;
        Self { issuer: Issuer::start().await, cluster: Issuer::start().await, api_server, reviews, upstream }
    }
}

fn configuration(peers: &Peers, certificate: &str, routes: &str, paths: &str) -> String {
    let until = doorward::clock::Timestamp::from_secs(i64::try_from(now() + 3000).unwrap());
    format!(
        "
listeners:
  - {{name: public, address: 127.0.0.1:0}}
  - {{name: tls, address: 127.0.0.1:0, tls: {{certificates: [{{chain: localhost.pem, key: localhost.key}}], client_ca: ca.pem}}}}
external_host: doorward.test
issuers:
  - name: a
    issuer: '{issuer}'
    audiences: ['https://doorward.test']
    username: '{{sub}}'
    kind: human
    login: {{client: {{id: doorward, secret: {{file: client}}}}}}
    introspection: {{mode: opaque, client: {{id: doorward, secret: {{file: client}}}}}}
  - name: pods
    issuer: '{cluster}'
    preset: kubernetes
    audiences: ['https://doorward.test']
    token_review: {{upstream: api-server, bearer: {{file: token}}}}
  - {{name: own, preset: doorward, audiences: ['{TARGET}']}}
upstreams:
  - {{name: api-server, url: '{api_server}'}}
  - {{name: cluster, url: '{upstream}', credential: {{bearer: {{file: token}}}}}}
  - {{name: web, url: '{upstream}'}}
webhooks:
  - {{name: github, sender: github, hold: false, secrets: [{{secret: {{file: secret}}}}]}}
break_glass:
  until: '{until}'
  certificates: [{{name: alice, sha256: '{certificate}', groups: [dev]}}]
routes:
{routes}
rules:
  - {{id: people, on: {{paths: [{paths}]}}, who: {{users: [alice, 'break-glass:alice']}}, do: allow}}
  - {{id: pods, on: {{paths: [{paths}]}}, who: {{issuers: [pods], service_accounts: [ci/builder]}}, do: allow}}
  - {{id: hooks, on: {{paths: [{paths}]}}, who: {{webhooks: [github]}}, do: allow}}
  - {{id: open, on: {{paths: [{paths}]}}, who: {{anonymous: true}}, do: allow}}
  - {{id: tokens, on: {{token: {{audiences: ['{TARGET}', '{ELSEWHERE}'], scopes: [use]}}}}, who: {{issuers: [a], users: [alice]}}, do: allow}}
tokens: {{exchange: [{{issuer: a}}]}}
sessions: {{keys: [{{file: session}}]}}
store: {{path: doorward.redb}}
audit: {{sink: {{file: {{path: audit.jsonl}}}}}}
admin: {{address: 127.0.0.1:0}}
limits: {{drain_accept: 0}}
",
        issuer = peers.issuer.url(),
        cluster = peers.cluster.url(),
        api_server = peers.api_server.url(),
        upstream = peers.upstream.url(),
    )
}

/// An audience of Doorward's own tokens that is accepted here, and one that is not.
const TARGET: &str = "https://target.test";
const ELSEWHERE: &str = "https://elsewhere.test";

/// A token for this audience that Doorward issued to Alice.
async fn own_token(doorward: &Doorward, peers: &Peers, audience: &str) -> String {
    let alice = peers.issuer.token("alice", &[]);
    let form = exchange_form(&[("subject_token", &alice), ("audience", audience), ("scope", "use")]);
    settled(async || doorward.send(&EXCHANGE, form.as_bytes()).await).await.token()
}

/// Each way in which such a token is not valid.
async fn own_cases(doorward: &Doorward, peers: &Peers, stranger: &Issuer) -> Vec<Case> {
    let ended = own_token(doorward, peers, TARGET).await;
    let answer = doorward.submit("/oauth2/revoke", &[], &format!("token={ended}")).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let good = own_token(doorward, peers, TARGET).await;
    let case = |form, refused: &str, reason| Case {
        reason: Some(reason),
        ..Case::of(form, vec![bearer(refused)], vec![bearer(&good)], Some("alice"))
    };
    // The same except for the signature, even with the key id.
    let forged = stranger.sign_with(&part(&good, 0), &part(&good, 1));
    let elsewhere = own_token(doorward, peers, ELSEWHERE).await;
    vec![
        case("a token of ours, signed by another", &forged, "signature_invalid"),
        case("a token of ours, for another audience", &elsewhere, "audience_mismatch"),
        case("a token of ours that was ended", &ended, "token_revoked"),
    ]
}

async fn wait_for_keys(doorward: &Doorward, peers: &Peers) {
    for token in [peers.issuer.token("probe", &[]), peers.cluster.pod_token("probe", "probe")] {
        let token = bearer(&token);
        settled(async || doorward.get("/http/bearer/probe", &["Host: localhost", &token]).await).await;
    }
}

/// The request as it was sent, as the authenticated user, and without the credential.
fn check_forwarded(kind: RouteKind, scheme: Scheme, user: Option<&str>, seen: &Recorded, first: &str, body: &str) {
    let what = format!("{kind:?} {scheme:?}: {}", seen.head);
    assert_eq!(seen.line(), format!("{first} HTTP/1.1"), "{what}");
    assert_eq!(seen.body, body.as_bytes(), "{what}");
    let users: Vec<&str> = user.into_iter().collect();
    let none: &[&str] = &[];
    let (name, other, credential) = match kind {
        RouteKind::Kubernetes => ("impersonate-user", "x-forwarded-user", &["Bearer upstream-token"][..]),
        RouteKind::Webhook | RouteKind::Dashboard | RouteKind::Http => ("x-forwarded-user", "impersonate-user", none),
    };
    assert_eq!((seen.all(name), seen.all(other)), (users, none.to_vec()), "{what}");
    assert_eq!(seen.all("authorization"), credential, "{what}");
    assert!(!seen.has("cookie"), "{what}");
    // Would show a name that somebody added to the lists without thinking.
    let names =
        seen.head.lines().skip(1).filter_map(|line| line.split_once(':')).map(|(name, _)| name.to_ascii_lowercase());
    let passes = |name: &str| match (kind, scheme) {
        (_, Scheme::Webhook) => {
            ["content-type", "content-length", "x-github-event", "x-github-delivery", "x-hub-signature-256"]
                .contains(&name)
        }
        (RouteKind::Webhook, _) => ["content-type", "content-length"].contains(&name),
        (RouteKind::Dashboard | RouteKind::Http, _) => ["content-length", "origin"].contains(&name),
        (RouteKind::Kubernetes, _) => name == "content-length",
    };
    let ours: &[&str] = match kind {
        RouteKind::Kubernetes => {
            &["host", "impersonate-user", "impersonate-group", "authorization", "audit-id", "x-forwarded-for"]
        }
        RouteKind::Webhook | RouteKind::Dashboard | RouteKind::Http => &[
            "host",
            "x-forwarded-user",
            "x-forwarded-groups",
            "x-forwarded-actor",
            "x-forwarded-client",
            "x-request-id",
            "x-forwarded-for",
            "x-forwarded-proto",
            "x-forwarded-host",
            "doorward-assertion",
        ],
    };
    assert_eq!(seen.has("doorward-assertion"), kind == RouteKind::Webhook, "{what}");
    for name in names {
        assert!(ours.contains(&&*name) || passes(&name) || name.starts_with("impersonate-extra-"), "{name} of {what}");
    }
}

/// One form of a credential, and how a request with it ends.
struct Case {
    form: &'static str,
    /// The header lines of a request that must not pass, and those of its counterpart, which differs in one thing.
    refused: Vec<String>,
    passes: Vec<String>,
    /// The user name of the counterpart.
    user: Option<String>,
    /// Why the first is refused, where that does not follow from its form.
    reason: Option<&'static str>,
}

impl Case {
    fn of(form: &'static str, refused: Vec<String>, passes: Vec<String>, user: Option<&str>) -> Self {
        Self { form, refused, passes, user: user.map(str::to_owned), reason: None }
    }
}

/// Each form of a bearer token.
fn bearer_cases(peers: &Peers, stranger: &Issuer) -> Vec<Case> {
    let Peers { issuer, cluster, reviews, .. } = peers;
    let case = |form, refused: String, passes: String, user: &str| {
        let line = |token: String| vec![bearer(&token)];
        Case::of(form, line(refused), line(passes), Some(user))
    };
    let mut cases = Vec::new();
    let mut claims = stranger.claims("alice", &[]);
    claims["iss"] = issuer.url().into();
    cases.push(case("a JWT", stranger.sign(&claims), issuer.token("alice", &[]), "alice"));
    for (token, active) in [("opaque-and-ended", false), ("opaque-and-good", true)] {
        let mut answer = issuer.claims("alice", &[]);
        answer["active"] = active.into();
        issuer.opaque(token, answer);
    }
    cases.push(case("an opaque token", "opaque-and-ended".to_owned(), "opaque-and-good".to_owned(), "alice"));

    let pod = format!("{}#ci/builder", cluster.url());
    let good = |account: &str| {
        let token = cluster.pod_token("ci", account);
        reviews.say(&token, Verdict::Good);
        token
    };
    let forged = stranger.sign_pod_token(cluster.url(), AUDIENCE, "ci", "builder");
    let of_the_api_server = cluster.sign_pod_token(cluster.url(), "https://kubernetes.default.svc", "ci", "builder");
    for token in [&forged, &of_the_api_server] {
        reviews.say(token, Verdict::Good);
    }
    for (form, refused) in [
        ("the token of a pod, signed by another", forged),
        ("the token of a pod, for the API server itself", of_the_api_server),
        ("the token of a pod that is gone", cluster.pod_token("ci", "builder")),
        ("the token of a pod of another service account", good("other")),
    ] {
        cases.push(case(form, refused, good("builder"), &pod));
    }
    cases
}

#[tokio::test]
async fn every_kind_of_route_refuses_each_scheme_done_wrong_and_takes_it_done_right() {
    let (peers, stranger) = (Peers::start(Upstream::start().await).await, Issuer::start().await);
    let authority = Authority::new();
    let [server, known, unknown] = ["localhost", "alice", "alice"].map(|name| authority.issue(&[name]));
    let folder = || folder(&authority, &server);
    let print = known.sha256();
    let (mut routes, mut paths, mut pairs, mut impossible) = (String::new(), Vec::new(), Vec::new(), Vec::new());
    for (kind_name, kind) in all::<RouteKind>() {
        for (scheme_name, scheme) in all::<Scheme>() {
            if is_possible(kind, scheme) {
                routes += &route(&kind_name, &scheme_name);
                let path = format!("/{kind_name}/{scheme_name}");
                paths.push(format!("'{path}'"));
                pairs.push((kind, scheme, path));
            } else {
                impossible.push(route(&kind_name, &scheme_name));
            }
        }
    }
    let yaml = configuration(&peers, &print, &routes, &paths.join(", "));

    // Combinations declared impossible are refused by `doorward check`, one by one; all others start below.
    for route in &impossible {
        let dir = folder();
        let yaml = configuration(&peers, &print, &format!("{routes}{route}"), &paths.join(", "));
        std::fs::write(dir.path().join("doorward.yaml"), yaml).unwrap();
        let (code, said) = told(dir.path(), &["check", "doorward.yaml"]).await;
        assert_eq!(code, Some(64), "{route}: {said}");
    }

    let doorward = Doorward::start_in(folder(), &yaml).await;
    wait_for_keys(&doorward, &peers).await;
    let host = format!("localhost:{}", doorward.address("public").port());
    let origin = format!("Origin: http://{host}");
    let cookie = log_in(&doorward, &host, "/http/session").await;
    let upstream = &peers.upstream;
    for (index, (kind, scheme, path)) in pairs.iter().enumerate() {
        let method = if *kind == RouteKind::Webhook { "POST" } else { "GET" };
        // An EventListener accepts only JSON.
        let json = if *kind == RouteKind::Webhook { "Content-Type: application/json\r\n" } else { "" };
        let host = format!("Host: {host}");
        let cases: Vec<Case> = match scheme {
            Scheme::Session => {
                let mut other = cookie.clone();
                let last = other.pop().unwrap();
                other.push(if last == 'A' { 'B' } else { 'A' });
                let lines = |cookie: String| vec![origin.clone(), cookie];
                vec![Case::of("a cookie", lines(other), lines(cookie.clone()), Some("alice"))]
            }
            Scheme::Bearer => {
                let mut cases = bearer_cases(&peers, &stranger);
                cases.extend(own_cases(&doorward, &peers, &stranger).await);
                cases
            }
            Scheme::Webhook => {
                let lines = |secret: &str| Push::of(Push::BODY, &index.to_string(), secret).lines.split_off(3);
                let user = Some("webhook:github:repo:1234");
                vec![Case::of("a signature", lines("another secret of the tests"), lines(WEBHOOK_SECRET), user)]
            }
            Scheme::BreakGlass => {
                let head = format!(
                    "{method} {path} HTTP/1.1\r\nHost: localhost\r\n{json}Content-Length: 0\r\nConnection: close\r\n\r\n"
                );
                let status = request(&authority, &doorward, &unknown, &head).await;
                assert!(matches!(status, 401 | 403), "{kind:?} {scheme:?}: {status}");
                assert!(upstream.take().is_empty(), "{kind:?} {scheme:?}");
                let status = request(&authority, &doorward, &known, &head).await;
                let seen = upstream.take();
                assert_eq!((status, seen.len()), (200, 1), "{kind:?} {scheme:?}: the twin");
                check_forwarded(*kind, *scheme, Some("break-glass:alice"), &seen[0], &format!("{method} {path}"), "");
                continue;
            }
            // Anonymous requests may only do what a rule allows to everybody.
            Scheme::Anonymous => vec![Case::of("nothing", Vec::new(), Vec::new(), None)],
        };
        let body = if *scheme == Scheme::Webhook { Push::BODY } else { "" };
        let send = async |path: &str, lines: &[String]| {
            let _ = upstream.take();
            let first = format!("{method} {path} HTTP/1.1");
            let mut all = vec![first.as_str(), &host];
            all.extend(json.lines());
            all.extend(lines.iter().map(String::as_str));
            (doorward.send(&all, body.as_bytes()).await, upstream.take())
        };
        let other = format!("{path}/other");
        let wrong = if *scheme == Scheme::Anonymous { other.as_str() } else { path };
        for Case { form, refused, passes, user, reason } in &cases {
            let (answer, seen) = send(wrong, refused).await;
            assert!(matches!(answer.status, 401 | 403), "{kind:?} {scheme:?} {form}: {}{}", answer.head, answer.text());
            if let Some(reason) = reason {
                assert_eq!(answer.reason(), *reason, "{kind:?} {scheme:?} {form}");
            }
            assert!(seen.is_empty(), "{kind:?} {scheme:?} {form}");
            let (answer, seen) = send(path, passes).await;
            let what = format!("{kind:?} {scheme:?} {form}: the twin: {}", answer.text());
            assert_eq!((answer.status, seen.len()), (200, 1), "{what}");
            check_forwarded(*kind, *scheme, user.as_deref(), &seen[0], &format!("{method} {path}"), body);
        }
    }
}

/// `kubernetes:W6`, `attacks:Z39`: a browser says which origin opens a socket; only Doorward's own may.
#[tokio::test]
async fn an_upgrade_with_a_cookie_is_accepted_only_from_own_pages() {
    let upstream = Upstream::scripted(|request| match request.has("upgrade") {
        true => Reply::Echo,
        false => Reply::json(200, "{}"),
    })
    .await;
    let peers = Peers::start(upstream).await;
    let authority = Authority::new();
    let server = authority.issue(&["localhost"]);
    let routes = route("http", "session") + &route("http", "bearer");
    let yaml = configuration(&peers, &server.sha256(), &routes, "'/http/session'");
    let doorward = Doorward::start_in(folder(&authority, &server), &yaml).await;
    wait_for_keys(&doorward, &peers).await;
    let host = format!("localhost:{}", doorward.address("public").port());
    let cookie = log_in(&doorward, &host, "/http/session").await;
    let (host_line, ours) = (format!("Host: {host}"), format!("Origin: http://{host}"));
    for (origin, status) in
        [(Some("Origin: https://evil.test"), 403), (Some("Origin: null"), 403), (None, 403), (Some(ours.as_str()), 101)]
    {
        let _ = peers.upstream.take();
        let mut lines = vec!["GET /http/session HTTP/1.1", &host_line, &cookie];
        lines.extend(HANDSHAKE);
        lines.extend(origin);
        let answer = doorward.send(&lines, b"").await;
        assert_eq!(answer.status, status, "kubernetes:W6 {origin:?}: {}", answer.text());
        assert_eq!(peers.upstream.take().len(), usize::from(status == 101), "kubernetes:W6 {origin:?}");
    }
}
