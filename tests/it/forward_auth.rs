//! An existing proxy asks Doorward about each request: a real nginx, and requests as Traefik and Envoy send them.

mod envoy;

use serde_json::{Value, json};

use crate::{
    harness::{Answer, HANDSHAKE, Nginx, Raw, log_in, request},
    login_fixture::{LoginFixture, RULE},
};

async fn world(forward_auth: &str) -> LoginFixture {
    let listener = format!("'127.0.0.1:{{port}}', trusted_proxies: [127.0.0.1/32]}}]\n{forward_auth}");
    let changes = [
        ("'127.0.0.1:{port}'}]", &*listener),
        ("hosts: [localhost]", "hosts: [localhost, other.localhost, app.example.com]"),
        ("routes:\n", "  - {name: api, url: '{upstream}', credential: {bearer: {file: token}}}\nroutes:\n"),
        ("rules:\n", "  - {name: board, kind: dashboard, hosts: [localhost], paths: ['/v1/*'], schemes: [session], upstream: web, kubernetes: api}
  - {name: kube, kind: kubernetes, hosts: [kube.test], schemes: [bearer], upstream: api}
  - {name: open, kind: http, hosts: [open.localhost], schemes: [session, anonymous], upstream: web}
  - {name: public, kind: http, hosts: [public.localhost], schemes: [session, anonymous], upstream: web}
  - {name: careful, kind: http, hosts: [localhost], paths: [/careful], schemes: [session], upstream: web}
rules:
"),
        (RULE, "{id: read, on: {routes: [web, board], methods: [GET]}, who: {users: [alice]}, do: allow}
  - {id: careful, on: {routes: [careful]}, who: {users: [alice]}, need: {acr: [gold]}, do: allow}
  - {id: open, on: {routes: [open]}, who: {anonymous: true}, do: allow}
  - {id: public, on: {routes: [public], paths: ['/public/*']}, who: {anonymous: true}, do: allow}
  - {id: public-to-users, on: {routes: [public], paths: ['/public/*']}, who: {users: [alice]}, do: allow}
  - {id: open-to-users, on: {routes: [open]}, who: {users: [alice]}, do: allow}
  - {id: save, on: {routes: [web], methods: [POST], paths: [/save]}, who: {users: [alice]}, do: allow}"),
    ];
    LoginFixture::scripted(&changes).await.0
}

impl LoginFixture {
    /// Asks as a proxy that passes on its client's `headers`.
    async fn ask(&self, line: &str, headers: &[&str]) -> Answer {
        self.doorward.send(&[&[line], headers].concat(), b"").await
    }
}

/// The tested configuration is the documented one.
#[test]
fn the_recipe_for_nginx_is_the_one_that_is_tested() {
    let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let guide = include_str!("../../docs/migrate-from-oauth2-proxy.md");
    let tested = include_str!("forward_auth/nginx.conf");
    let tested = tested.replace("{upstream}", "http://app").replace("{doorward}", "doorward:8080");
    // The test listens at a port that is part of the address.
    let tested = tested.replace("$host:$server_port", "$host");
    let recipes: Vec<&str> = guide.split("```nginx\n").skip(1).map(|rest| rest.split("```").next().unwrap()).collect();
    assert_eq!(recipes.len(), 2);
    for recipe in recipes {
        assert!(words(&tested).contains(&words(recipe)), "{recipe}");
    }
}

/// nginx in front of the upstream, which asks Doorward about each request.
async fn nginx(world: &LoginFixture) -> Nginx {
    let (doorward, upstream) = (world.doorward.address("public").to_string(), world.upstream.url());
    let config = |address: &str| {
        include_str!("forward_auth/nginx.conf")
            .replace("{address}", address)
            .replace("{doorward}", &doorward)
            .replace("{upstream}", &upstream)
    };
    Nginx::start(config).await
}

async fn ask(nginx: &Nginx, lines: &[&str]) -> Answer {
    let mut raw = Raw::connect(nginx.address).await;
    raw.send(request(lines, b"")).await;
    raw.answer().await
}

/// nginx selects its `server` by the host in the request line, if there is one, but `$http_host` is always that of the
/// header.
#[tokio::test]
async fn a_request_line_that_names_another_host_than_the_header_borrows_no_policy() {
    let world = world("forward_auth: nginx").await;
    let nginx = nginx(&world).await;
    let port = nginx.address.port();
    let (protected, open) = (format!("localhost:{port}"), format!("open.localhost:{port}"));
    for (row, line, header, status) in
        [("attack", &protected, &open, 401), ("the other way", &open, &protected, 200), ("the same", &open, &open, 200)]
    {
        let line = format!("GET http://{line}/page HTTP/1.1");
        let answer = ask(&nginx, &[&line, &format!("Host: {header}")]).await;
        assert_eq!(answer.status, status, "{row}: {}", answer.text());
        assert_eq!(world.upstream.take().len(), usize::from(status == 200), "{row}");
    }
}

/// peers:T10: a program that claims to be a health check of a cloud or of the kubelet gets no access.
#[tokio::test]
async fn a_client_that_claims_to_be_a_health_check_gets_no_access() {
    let world = world("forward_auth: nginx").await;
    let cookie = world.log_in().await;
    let host = format!("Host: {}", world.host);
    for agent in ["User-Agent: GoogleHC/1.0", "User-Agent: kube-probe/1.30"] {
        let about = [&*host, agent, "X-Original-Method: GET", "X-Original-URI: /page"];
        let refused = world.ask("GET /oauth2/auth HTTP/1.1", &about).await;
        assert_eq!(refused.status, 401, "peers:T10 {agent}: {}", refused.text());
        let passed = world.ask("GET /oauth2/auth HTTP/1.1", &[&about[..], &[&cookie]].concat()).await;
        assert_eq!(passed.status, 200, "peers:T10 {agent}: the twin: {}", passed.text());
        let refused = world.ask("GET /page HTTP/1.1", &[&*host, agent]).await;
        assert_eq!(refused.status, 401, "peers:T10 {agent}: {}", refused.text());
    }
    assert!(world.upstream.take().is_empty(), "peers:T10");
}

#[tokio::test]
async fn nginx_lets_through_what_the_policy_allows() {
    let world = world("forward_auth: nginx").await;
    let nginx = nginx(&world).await;
    let host = format!("localhost:{}", nginx.address.port());
    let (host_line, origin) = (format!("Host: {host}"), format!("Origin: http://{host}"));

    let away = ask(&nginx, &["GET /page?x=1 HTTP/1.1", &host_line, "Accept: text/html"]).await;
    assert_eq!((away.status, away.header("location")), (303, Some("/oauth2/continue?rd=%2Fpage%3Fx%3D1")));
    assert_eq!(ask(&nginx, &["GET /page HTTP/1.1", &host_line]).await.status, 401, "a program");
    let cookie = log_in(&world.doorward, &host, "/page").await;
    world.upstream.take();

    let forged = [
        "X-Auth-Request-User: root",
        "X-Auth-Request-Preferred-Username: root",
        "X-Auth-Request-Email: root@example.com",
        "X-Auth-Request-Groups: root",
        "X-Auth-Request-Actor: root",
        "X-Auth-Request-Client: root",
        "X-Forwarded-User: root",
        "X-Forwarded-Preferred-Username: root",
        "X-Forwarded-Email: root@example.com",
        "X-Forwarded-Groups: root",
        "X-Forwarded-Actor: root",
        "X-Forwarded-Client: root",
        "X-Remote-User: root",
        "X-Remote-Group: root",
        "X-Remote-Groups: root",
        "X-Original-Method: GET",
        "X-Original-URL: http://localhost/free",
    ];
    let good = [&["GET /page?x=1 HTTP/1.1", &host_line, &cookie], &forged[..]].concat();
    assert_eq!(ask(&nginx, &good).await.status, 200);
    let came = world.upstream.only();
    assert_eq!((came.line(), came.all("x-auth-request-user")), ("GET /page?x=1 HTTP/1.0", vec!["alice"]));
    assert_eq!(came.all("x-auth-request-preferred-username"), ["alice"]);
    assert!(!came.head.contains("root"), "{}", came.head);
    world.upstream.take();

    // The app does not get the session cookie; other cookies stay.
    let session = cookie.strip_prefix("Cookie: ").unwrap();
    for (sent, passed) in [
        (format!("a=1; {session}; b=2"), vec!["a=1; b=2"]),
        (format!("a=1; {session}"), vec!["a=1;"]),
        (format!("{session}; b=2"), vec!["b=2"]),
        (session.to_owned(), vec![]),
    ] {
        assert_eq!(ask(&nginx, &["GET /page HTTP/1.1", &host_line, &format!("Cookie: {sent}")]).await.status, 200);
        assert_eq!(world.upstream.only().all("cookie"), passed, "{sent}");
        world.upstream.take();
    }

    // The policy sees the real method, whatever the client claims.
    let other = [&["DELETE /page HTTP/1.1", &host_line, &origin, &cookie], &forged[..]].concat();
    assert_eq!(ask(&nginx, &other).await.status, 403);
    // A page of another origin opens no stream with the cookie, although nginx does not pass on `Upgrade`.
    let handshake = &HANDSHAKE[2..];
    let stream = [&["GET /page HTTP/1.1", &host_line, "Origin: http://evil.localhost", &cookie], handshake].concat();
    assert_eq!(ask(&nginx, &stream).await.status, 403);
    let stream = [&["GET /page HTTP/1.1", &host_line, &origin, &cookie], handshake].concat();
    assert_eq!(ask(&nginx, &stream).await.status, 200, "the twin");
    world.upstream.take();

    // nginx forwards the path as received, including what follows a `#`; such a path is not decided by its first part.
    let cut = ask(&nginx, &["GET /page#/../secret HTTP/1.1", &host_line, &cookie]).await;
    assert_eq!((cut.status, world.upstream.take().len()), (403, 0), "{}", cut.text());

    // ingress-nginx sends it as one address. nginx understands only 401 and 403 as refusals.
    let about = |address: &str| format!("X-Original-URL: {address}");
    let (page, method) = (about(&format!("http://{host}/page")), "X-Original-Method: GET");
    for (row, further, status) in [
        ("good", vec![method, &page], 200),
        ("attacks:Z42 two addresses", vec![method, &page, &page], 403),
        ("attacks:Z42 another host", vec![method, &about("http://other.test/page")], 403),
        ("attacks:Z42 another port of ours", vec![method, &about("http://localhost:1/page")], 401),
        ("a path in disguise", vec![method, &about(&format!("http://{host}/a/../page"))], 403),
        ("attacks:Z15 no method", vec![&page], 403),
        ("attacks:Z15 no address", vec![method], 403),
    ] {
        let headers = [&["Host: doorward.doorward.svc", &cookie, "X-Forwarded-Proto: http"], &further[..]].concat();
        let answer = world.ask("GET /oauth2/auth HTTP/1.1", &headers).await;
        assert_eq!(answer.status, status, "{row}: {}{}", answer.head, answer.text());
    }

    let who = ask(&nginx, &["GET /.doorward/whoami HTTP/1.1", &host_line, &cookie]).await;
    assert_eq!(who.status, 200, "{}", who.text());
    let who = ask(&nginx, &["GET /oauth2/userinfo HTTP/1.1", &host_line, &cookie]).await.json();
    assert_eq!(who["user"], "alice");
    assert_eq!(ask(&nginx, &["GET /oauth2/userinfo HTTP/1.1", &host_line]).await.status, 401);

    let out = ask(&nginx, &["POST /oauth2/sign_out HTTP/1.1", &host_line, &origin, &cookie, "Content-Length: 0"]).await;
    assert_eq!(out.status, 303);
    assert_eq!(ask(&nginx, &good).await.status, 401, "at once");
    assert!(world.upstream.requests().is_empty());

    let is_asked = |record: &Value| {
        record["unmapped"]["endpoint"] == "forward_auth" && record["http_request"]["http_method"] == "DELETE"
    };
    let denied = world.doorward.record(is_asked).await;
    assert_eq!(denied["http_request"]["url"]["path"], "/page", "{denied}");
    assert_eq!((&denied["unmapped"]["route"], &denied["http_response"]["code"]), (&json!("web"), &json!(403)));
    assert_eq!(denied["status_code"], "no_rule_matched", "{denied}");
}

/// Regression: people got a bare 403, and no way to such a login.
#[tokio::test]
async fn behind_nginx_people_are_sent_to_the_login_that_a_rule_needs() {
    let world = world("forward_auth: nginx").await;
    let nginx = nginx(&world).await;
    let host = format!("localhost:{}", nginx.address.port());
    let host_line = format!("Host: {host}");
    let cookie = log_in(&world.doorward, &host, "/page").await;
    world.upstream.take();
    let lines = ["GET /careful?x=1 HTTP/1.1", &host_line, &cookie];
    let away = ask(&nginx, &[&lines[..], &["Accept: text/html"]].concat()).await;
    let to = "/oauth2/continue?issuer=a&acr_values=gold&rd=%2Fcareful%3Fx%3D1";
    assert_eq!((away.status, away.header("location")), (303, Some(to)), "{}", away.text());
    let fetch = ask(&nginx, &lines).await;
    assert_eq!((fetch.status, &*fetch.reason()), (401, "need_unmet"), "{}", fetch.text());

    // nginx itself is not redirected, which it would take for an error. ingress-nginx would send people to a login that
    // does not ask for what is needed, again and again.
    for (proxy, status) in [("nginx", 401), ("ingress-nginx", 403)] {
        let lines = question(proxy, &format!("GET {host} /careful"), &[&*cookie, "Accept: text/html"]);
        let answer = world.doorward.send(&lines.iter().map(String::as_str).collect::<Vec<_>>(), b"").await;
        assert_eq!(answer.status, status, "{proxy}: {}", answer.text());
    }
    assert!(world.upstream.take().is_empty());
}

#[tokio::test]
async fn traefik_says_what_is_asked_about_or_gets_nothing() {
    let world = world("forward_auth: traefik").await;
    let cookie = log_in(&world.doorward, "localhost", "/page").await;
    let base = ["Host: doorward.doorward.svc", "X-Forwarded-Proto: http"];
    let about = |method: &str, host: &str, uri: &str| {
        [
            format!("X-Forwarded-Method: {method}"),
            format!("X-Forwarded-Host: {host}"),
            format!("X-Forwarded-Uri: {uri}"),
        ]
    };
    let page = "Accept: text/html";
    for (row, [method, host, uri], further, status) in [
        ("good", about("GET", "localhost", "/page?x=1"), vec![&*cookie], 200),
        ("a page, nobody signed in", about("GET", "localhost", "/page"), vec![page], 303),
        ("a fetch, nobody signed in", about("GET", "localhost", "/page"), vec![], 401),
        ("another method", about("PUT", "localhost", "/page"), vec![&cookie, "Origin: http://localhost"], 403),
        (
            "a page of another origin",
            about("PUT", "localhost", "/page"),
            vec![&cookie, "Origin: http://evil.test"],
            403,
        ),
        ("another origin's session", about("GET", "localhost:1", "/page"), vec![&cookie], 401),
        ("a host of nobody", about("GET", "other.test", "/page"), vec![&cookie], 421),
        ("two hosts", about("GET", "localhost, other.test", "/page"), vec![&cookie], 400),
        ("a path in disguise", about("GET", "localhost", "/a/../page"), vec![&cookie], 400),
        ("a path of ours", about("GET", "localhost", "/oauth2/start"), vec![&cookie], 403),
        ("said twice", about("GET", "localhost", "/page"), vec![&cookie, "X-Forwarded-Method: GET"], 403),
        ("what pages offer", about("GET", "localhost", "/v1/properties"), vec![&cookie], 200),
        ("a log that RBAC guards", about("GET", "localhost", "/v1/logs-proxy/ci/pod/step"), vec![&cookie], 403),
        ("the API as the dashboard", about("GET", "localhost", "/api/v1/pods"), vec![&cookie], 403),
        ("another identity", about("GET", "kube.test", "/api"), vec![&cookie], 403),
        ("somebody else", about("GET", "localhost", "/page"), vec![&cookie, "Impersonate-User: root"], 403),
    ] {
        let headers = [&base[..], &[&method, &host, &uri], &further].concat();
        let answer = world.ask("GET /oauth2/auth HTTP/1.1", &headers).await;
        assert_eq!(answer.status, status, "{row}: {}{}", answer.head, answer.text());
        if status == 200 {
            assert_eq!(answer.header("x-auth-request-user"), Some("alice"));
        }
        if status == 303 {
            assert_eq!(answer.header("location"), Some("/oauth2/continue?rd=%2Fpage"));
        }
        // Without any one of the three headers nothing passes.
        for left_out in [&method, &host, &uri] {
            let headers: Vec<&str> = headers.iter().copied().filter(|line| line != left_out).collect();
            let answer = world.ask("GET /oauth2/auth HTTP/1.1", &headers).await;
            assert!(status != 200 || answer.status == 403, "{row} without {left_out}: {}", answer.status);
        }
    }
    assert!(world.upstream.requests().iter().all(|request| !request.head.contains("oauth2")));

    // Only a trusted proxy may ask.
    let [method, host, uri] = about("GET", "localhost", "/page");
    let mut stranger = Raw::connect_from([127, 0, 0, 2].into(), world.doorward.address("public")).await;
    let lines = ["GET /oauth2/auth HTTP/1.1", "Host: localhost", &method, &host, &uri, &cookie];
    stranger.send(request(&lines, b"")).await;
    assert_eq!(stranger.answer().await.status, 403);
}

#[tokio::test]
async fn envoy_sends_the_request_itself_below_a_path() {
    let world = world("forward_auth: envoy").await;
    let cookie = log_in(&world.doorward, "localhost", "/page").await;
    let lines = ["Host: localhost", &cookie, "X-Forwarded-Method: GET", "X-Original-URI: /page"];
    assert_eq!(world.ask("GET /oauth2/auth/page?x=1 HTTP/1.1", &lines).await.status, 200);
    assert_eq!(world.ask("GET /oauth2/auth/page HTTP/1.1", &lines[..1]).await.status, 401);
    assert_eq!(world.ask("DELETE /oauth2/auth/page HTTP/1.1", &lines).await.status, 403, "not what a header says");
    assert_eq!(world.ask("GET /oauth2/auth/../page HTTP/1.1", &lines).await.status, 400);
    assert_eq!(world.ask("GET /oauth2/auth HTTP/1.1", &lines).await.status, 403, "about nothing");
}

/// The requests of proxies, in the form of each: with the client's headers except hop-by-hop ones. `asked` is a method,
/// a host and a path.
fn question(proxy: &str, asked: &str, more: &[&str]) -> Vec<String> {
    let [method, host, uri] = asked.split(' ').collect::<Vec<_>>()[..] else { panic!("{asked}") };
    let mut lines = match proxy {
        "traefik" => vec![
            "GET /oauth2/auth HTTP/1.1".to_owned(),
            "Host: doorward.doorward.svc".to_owned(),
            format!("X-Forwarded-Method: {method}"),
            format!("X-Forwarded-Host: {host}"),
            format!("X-Forwarded-Uri: {uri}"),
        ],
        "nginx" => vec![
            "GET /oauth2/auth HTTP/1.1".to_owned(),
            format!("Host: {host}"),
            format!("X-Original-Method: {method}"),
            format!("X-Original-URI: {uri}"),
        ],
        "ingress-nginx" => vec![
            "GET /oauth2/auth HTTP/1.1".to_owned(),
            "Host: doorward.doorward.svc".to_owned(),
            format!("X-Original-Method: {method}"),
            format!("X-Original-URL: http://{host}{uri}"),
        ],
        _ => vec![
            format!("{method} /oauth2/auth{uri} HTTP/1.1"),
            format!("Host: {host}"),
            "Content-Length: 0".to_owned(),
        ],
    };
    lines.push("X-Forwarded-Proto: http".to_owned());
    lines.extend(more.iter().map(|line| (*line).to_owned()));
    lines
}

/// Another program could read each of them as `/public/`.
#[tokio::test]
async fn a_path_is_open_by_its_own_bytes_alone_whichever_proxy_asks() {
    let attacks = [
        ("peers:T8", "/page?path=/public/x"),
        ("peers:T12", "/page%23/public/x"),
        ("peers:T12", "/page#/public/x"),
        ("peers:D4", "/public/%2e%2e/page"),
        ("peers:D4", "/public/..%2fpage"),
        ("peers:D4", "/public%2f..%2fpage"),
        ("peers:D4", "/public/;/../page"),
        ("peers:D4", "/public%00"),
        ("peers:D5", "//page/public/x"),
        ("peers:D5", "http://localhost/public/x"),
        ("peers:D5", "http://public.localhost/public/x"),
        ("peers:D5", "/public/%zz"),
        ("peers:D5", "page"),
        ("peers:D5", ""),
    ];
    for (setting, proxies) in
        [("nginx", &["nginx", "ingress-nginx"][..]), ("traefik", &["traefik"]), ("envoy", &["envoy"])]
    {
        let world = world(&format!("forward_auth: {setting}")).await;
        let cookie = log_in(&world.doorward, "public.localhost", "/oauth2/start?rd=%2Fpublic%2Fx").await;
        // nginx understands no other refusals.
        let refused: &[u16] = if setting == "nginx" { &[401, 403] } else { &[400, 401, 403] };
        for proxy in proxies {
            let credentials: [&[&str]; 2] = [&[], &[&cookie]];
            for more in credentials {
                let ask = async |uri: &str| {
                    let lines = question(proxy, &format!("GET public.localhost {uri}"), more);
                    world.doorward.send(&lines.iter().map(String::as_str).collect::<Vec<_>>(), b"").await
                };
                for (row, uri) in attacks {
                    // Envoy appends it to a path, which makes it another request.
                    if *proxy == "envoy" && !uri.starts_with('/') {
                        continue;
                    }
                    let answer = ask(uri).await;
                    assert!(
                        refused.contains(&answer.status),
                        "{row} {proxy} {uri:?}: {}{}",
                        answer.head,
                        answer.text()
                    );
                }
                let answer = ask("/public/x").await;
                assert_eq!(answer.status, 200, "{proxy}: the twin: {}{}", answer.head, answer.text());
            }
        }
        assert!(world.upstream.take().is_empty(), "{setting}");
    }
}

/// An upstream that signs in the user in the header had a user `anonymous` for all requests without a credential.
#[tokio::test]
async fn a_client_without_a_credential_passes_as_anonymous() {
    for proxy in ["traefik", "envoy"] {
        let world = world(&format!("forward_auth: {proxy}")).await;
        let cookie = log_in(&world.doorward, "open.localhost", "/oauth2/start?rd=%2Fpage").await;
        for (more, user) in [(vec!["X-Auth-Request-User: root"], ""), (vec![&*cookie], "alice")] {
            let lines = question(proxy, "GET open.localhost /page", &more);
            let answer = world.doorward.send(&lines.iter().map(String::as_str).collect::<Vec<_>>(), b"").await;
            assert_eq!(answer.status, 200, "{proxy}: {}{}", answer.head, answer.text());
            // Present even if empty: they overwrite what the client sent.
            for name in ["x-auth-request-user", "x-auth-request-preferred-username"] {
                assert_eq!(answer.header(name), Some(user), "{proxy}: {}", answer.head);
            }
        }
    }
}

#[tokio::test]
async fn hosts_forms_and_streams_are_asked_about_as_they_would_be_sent() {
    for proxy in ["traefik", "envoy"] {
        let world = world(&format!("forward_auth: {proxy}")).await;
        let cookie = log_in(&world.doorward, "localhost", "/page").await;
        let there = log_in(&world.doorward, "other.localhost", "/page").await;
        let (own, evil) = ("Origin: http://localhost", "Origin: http://evil.localhost");
        let handshake = &HANDSHAKE[2..];
        let stream = |origin| [&[&*cookie, origin], handshake].concat();
        let rows: Vec<(&str, &str, Vec<&str>, u16)> = vec![
            ("the second host", "GET other.localhost /page", vec![&there], 200),
            ("the first one's session at it", "GET other.localhost /page", vec![&cookie], 401),
            ("its session at the first one", "GET localhost /page", vec![&there], 401),
            ("a page of it", "POST localhost /save", vec![&cookie, "Origin: http://other.localhost"], 403),
            ("a form", "POST localhost /save", vec![&cookie, own], 200),
            ("a form that the policy forbids", "POST localhost /page", vec![&cookie, own], 403),
            ("a form of another origin", "POST localhost /save", vec![&cookie, evil], 403),
            ("a form of nobody", "POST localhost /save", vec![&cookie], 403),
            ("a form of a sandbox", "POST localhost /save", vec![&cookie, "Origin: null"], 403),
            ("a form of two origins", "POST localhost /save", vec![&cookie, own, evil], 403),
            (
                "a form whose browser knows better",
                "POST localhost /save",
                vec![&cookie, own, "Sec-Fetch-Site: same-site"],
                403,
            ),
            ("a form, nobody signed in", "POST localhost /save", vec![own], 401),
            // A link, which changes nothing, and whose response no other origin can read.
            ("a link on another origin", "GET localhost /page", vec![&cookie, "Sec-Fetch-Site: cross-site"], 200),
            ("a stream", "GET localhost /page", stream(own), 200),
            ("a stream of another origin", "GET localhost /page", stream(evil), 403),
            ("a stream of nobody", "GET localhost /page", stream("X-Origin: http://localhost"), 403),
            ("half a handshake", "GET localhost /page", vec![&cookie, own, handshake[1]], 400),
            (
                "two handshakes",
                "GET localhost /page",
                vec![&cookie, own, handshake[0], handshake[1], handshake[1]],
                400,
            ),
            ("a handshake by a form", "POST localhost /save", stream(own), 400),
            ("a stream, nobody signed in", "GET localhost /page", vec![own, handshake[0], handshake[1]], 401),
        ];
        for (row, asked, more, status) in rows {
            let lines = question(proxy, asked, &more);
            let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
            let answer = world.doorward.send(&lines, b"").await;
            assert_eq!(answer.status, status, "{proxy}, {row}: {}{}", answer.head, answer.text());
            assert_eq!(answer.header("x-auth-request-user"), (status == 200).then_some("alice"), "{proxy}, {row}");
        }
        // A request with `Upgrade` that the proxy is told to forward to Doorward itself is still a forward-auth
        // request.
        let upgrade = question(proxy, "GET localhost /page", &stream(own));
        let upgrade = upgrade.iter().map(String::as_str).chain(HANDSHAKE[..2].iter().copied());
        let answer = world.doorward.send(&upgrade.collect::<Vec<_>>(), b"").await;
        assert_eq!(answer.status, 200, "{proxy}: {}", answer.text());
        assert!(world.upstream.requests().iter().all(|request| !request.head.contains("oauth2")), "{proxy}");
    }
}

/// After a 200 the proxy forwards the request, whatever happens to Doorward afterwards.
#[tokio::test]
async fn writes_and_streams_are_in_the_trail_before_the_proxy_is_answered() {
    let world = world("forward_auth: traefik").await;
    let cookie = log_in(&world.doorward, "localhost", "/page").await;
    let own = "Origin: http://localhost";
    let stream = [&[&*cookie, own], &HANDSHAKE[2..]].concat();
    for (row, asked, more, codes) in [
        ("a form", "POST localhost /save", vec![&*cookie, own], ["request.decided", "request.completed"].as_slice()),
        ("a stream", "GET localhost /page", stream, &["request.decided", "request.completed"]),
        ("a page", "GET localhost /page", vec![&cookie], &["request"]),
    ] {
        let lines = question("traefik", asked, &more);
        let answer = world.doorward.send(&lines.iter().map(String::as_str).collect::<Vec<_>>(), b"").await;
        assert_eq!(answer.status, 200, "{row}: {}{}", answer.head, answer.text());
        let id = answer.header("x-request-id").unwrap();
        let is_its = |record: &Value| record["http_request"]["uid"] == *id;
        let there = world.doorward.audit().into_iter().any(|record| is_its(&record));
        assert!(there || codes.len() == 1, "{row} is not there yet");
        let records = world.doorward.records(codes.len(), is_its).await;
        let found: Vec<&str> =
            records.iter().map(|record| record["metadata"]["event_code"].as_str().unwrap()).collect();
        assert_eq!(found, codes, "{row}");
    }
}

#[tokio::test]
async fn forward_auth_answers_404_unless_it_is_configured() {
    let world = world("").await;
    let cookie = log_in(&world.doorward, "localhost", "/page").await;
    let lines = ["Host: localhost", &cookie, "X-Original-Method: GET", "X-Original-URI: /page"];
    assert_eq!(world.ask("GET /oauth2/auth HTTP/1.1", &lines).await.status, 404);
    assert_eq!(world.ask("GET /oauth2/auth/page HTTP/1.1", &lines).await.status, 404);
}
