//! Sessions that others end: the provider by a back-channel logout, an operator by a command.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::{
    harness::{HANDSHAKE, Raw, browse, log_in, settled},
    login_fixture::{LoginFixture, ROUTE, STORE},
};

/// Users who were signed in read "Please sign in", as browsers send no cookie with such a form. Forms of this very host
/// were refused if its page sends no referrer.
#[tokio::test]
async fn a_form_of_another_host_is_refused_and_an_own_one_passes_even_without_a_referrer() {
    let (world, _issuer) = LoginFixture::scripted(&[]).await;
    let (cookie, origin) = (world.log_in().await, format!("Origin: {}", world.origin()));
    let form = async |site: &str, more: &[&str]| {
        let browser =
            [site, "Sec-Fetch-Mode: navigate", "Sec-Fetch-Dest: document", "Sec-Fetch-User: ?1", "Accept: text/html"];
        world.submit("/deploy", &[&browser[..], more].concat(), "to=prod").await
    };
    let sent = || world.upstream.requests().iter().filter(|request| request.line().contains("/deploy")).count();
    let (cross, same) = ("Sec-Fetch-Site: cross-site", "Sec-Fetch-Site: same-origin");
    for (more, said) in [
        (&["Origin: https://evil.example"][..], "and without a session cookie"),
        (&["Origin: https://evil.example", &*cookie], "does not come from a page of"),
        (&["Origin: null", &*cookie], "does not come from a page of"),
    ] {
        let refused = form(cross, more).await;
        let page = refused.text();
        assert_eq!(refused.status, 403, "{page}");
        for part in [said, "<code>origin_refused</code>", "href=\"/\">To the start page<"] {
            assert!(page.contains(part), "{part} in {page}");
        }
        assert!(!page.contains("/oauth2/sign_in"), "signing in helps with nothing: {page}");
    }
    assert_eq!(sent(), 0);
    for more in [[&*origin, &*cookie], ["Origin: null", &*cookie]] {
        let answer = form(same, &more).await;
        assert_eq!(answer.status, 200, "{more:?}: {}", answer.text());
    }
    assert_eq!(sent(), 2);
    // It was sent with an ended session, which the user is told after the login.
    let unsent = form(same, &["Origin: null"]).await;
    assert!(unsent.header("location").is_some_and(|to| to.contains("unsent")), "{}{}", unsent.head, unsent.text());
}

/// As from a page of a sibling host, whose form needs no preflight and comes with the cookies; and from a browser that
/// does not say which page sent it.
#[tokio::test]
async fn attacks_z39_a_plain_text_form_without_an_origin_changes_nothing_on_any_kind_of_route() {
    let changes = [
        ("upstreams:\n", "upstreams:\n  - {name: cluster, url: '{upstream}', credential: {bearer: {file: token}}}\n"),
        (
            "routes:\n",
            "routes:
  - {name: kube, kind: kubernetes, hosts: [localhost], paths: ['/api/*'], schemes: [session], upstream: cluster}
  - {name: board, kind: dashboard, hosts: [board.localhost], schemes: [session], upstream: web, kubernetes: cluster}
",
        ),
        ("on: {routes: [web]}", "on: {routes: [web, kube, board]}"),
    ];
    let (world, _issuer) = LoginFixture::scripted(&changes).await;
    let board = world.host.replace("localhost", "board.localhost");
    let config_maps = "/api/v1/namespaces/ci/configmaps";
    for (host, path) in [(&world.host, "/page"), (&world.host, config_maps), (&board, config_maps)] {
        let cookie = log_in(&world.doorward, host, "/").await;
        let (line, host_line, origin) =
            (format!("POST {path} HTTP/1.1"), format!("Host: {host}"), format!("Origin: http://{host}"));
        let send = async |more: &[&str]| {
            let _ = world.upstream.take();
            let lines = [&[&*line, &host_line, &cookie, "Content-Type: text/plain"], more].concat();
            let answer = world.doorward.send(&lines, b"{}").await;
            (answer, world.upstream.take().len())
        };
        let forged: [&[&str]; 2] = [&["Sec-Fetch-Site: same-site"], &[]];
        for more in forged {
            let (answer, arrived) = send(more).await;
            let refused = (answer.status, answer.reason());
            assert_eq!(
                (refused, arrived),
                ((403, "origin_refused".to_owned()), 0),
                "attacks:Z39 {host}{path} {more:?}"
            );
        }
        let (answer, arrived) = send(&[&origin, "Sec-Fetch-Site: same-origin"]).await;
        assert_eq!((answer.status, arrived), (200, 1), "attacks:Z39 {host}{path}: the twin: {}", answer.text());
    }
}

/// As the Dashboard asks for a log that it follows. A redirect would lead its script to the provider. It gets a
/// `Status`, as from the API, with a message for people.
#[tokio::test]
async fn peers_d17_a_followed_log_after_the_session_ended_gets_a_401_status_and_no_redirect() {
    let store = format!("sessions: {{absolute: 2h, idle: 2h}}\n{STORE}");
    let changes = [
        (
            "  - {name: web, url: '{upstream}'}\n",
            "  - {name: web, url: '{upstream}'}\n  - {name: cluster, url: '{upstream}', credential: {bearer: {file: token}}}\n",
        ),
        (
            ROUTE,
            "{name: board, kind: dashboard, hosts: [localhost], schemes: [session], upstream: web, kubernetes: cluster}",
        ),
        ("on: {routes: [web]}", "on: {routes: [board]}"),
        (STORE, &*store),
    ];
    let (world, _issuer) = LoginFixture::scripted(&changes).await;
    let cookie = log_in(&world.doorward, &world.host, "/").await;
    let ask = async |more: &[&str]| {
        let lines = [&[&*cookie, "Accept: text/plain,*/*"], more].concat();
        settled(async || world.get("/api/v1/namespaces/ci/pods/p/log?container=c&follow=true", &lines).await).await
    };
    let sent = || world.upstream.requests().iter().filter(|request| request.line().contains("/log?")).count();
    let fetches: [&[&str]; 2] = [&[], &["Sec-Fetch-Mode: cors", "Sec-Fetch-Dest: empty"]];
    for more in fetches {
        let answer = ask(more).await;
        assert_eq!(answer.status, 200, "peers:D17 the twin: {}", answer.text());
    }
    assert_eq!(sent(), 2);
    world.doorward.set_clock_ahead(7300);
    for more in fetches {
        let answer = ask(more).await;
        let text = answer.text();
        assert_eq!((answer.status, answer.header("location")), (401, None), "peers:D17 {more:?}: {text}");
        assert_eq!(answer.reason(), "session_expired", "peers:D17 {more:?}: {text}");
        assert!(text.contains("ign in again"), "peers:D17 {more:?}: {text}");
    }
    assert_eq!(sent(), 2, "peers:D17");
    let page = ["Accept: text/html", "Sec-Fetch-Mode: navigate", "Sec-Fetch-Dest: document", &cookie];
    assert_eq!(world.get("/", &page).await.status, 303, "peers:D17 who looks at a page is led to the login");
}

/// Each in a new browser, through the whole login, until Chromium's final address.
#[tokio::test]
async fn no_return_address_sends_a_browser_to_another_site() {
    let (world, _issuer) = LoginFixture::scripted(&[]).await;
    let classes: BTreeMap<String, Vec<String>> =
        serde_json::from_str(include_str!("../../src/oidc/return_to/hostile.json")).unwrap();
    let all: Vec<&str> = classes.values().flatten().map(String::as_str).collect();
    let one_of_each: Vec<&str> = classes.values().filter_map(|class| class.first()).map(String::as_str).collect();
    assert!(one_of_each.len() >= 20 && all.len() >= 200);
    let origin = world.origin();
    let (half, other_half) = all.split_at(all.len() / 2);
    for (begin, addresses) in
        [("start", half), ("start", other_half), ("continue", &one_of_each), ("sign_in", &one_of_each)]
    {
        let saw =
            browse(&json!({"scenario": "returnAddresses", "url": origin, "begin": begin, "addresses": addresses}))
                .await;
        let ended = saw["ended"].as_array().unwrap();
        assert_eq!(ended.len(), addresses.len());
        for (address, ended) in addresses.iter().zip(ended) {
            assert_eq!(*ended, format!("{origin}/"), "{begin}: {address:?}");
        }
    }
    // The counterpart: a good address is followed.
    let good = ["/runs?a=b#/c"];
    let saw = browse(&json!({"scenario": "returnAddresses", "url": origin, "begin": "start", "addresses": good})).await;
    assert_eq!(saw["ended"][0], format!("{origin}/runs?a=b#/c"));
}

/// Where the pages of a login lead with each address, and where users are sent who are already signed in. Checks only
/// the responses, as the table is long.
#[tokio::test]
async fn no_foreign_return_address_is_stored_at_a_login_or_followed_when_signed_in() {
    let (world, _issuer) = LoginFixture::scripted(&[]).await;
    let cookie = world.log_in().await;
    let classes: BTreeMap<String, Vec<String>> =
        serde_json::from_str(include_str!("../../src/oidc/return_to/hostile.json")).unwrap();
    let get = async |path: &str, address: &str, more: &[&str]| {
        let address: String = url::form_urlencoded::byte_serialize(address.as_bytes()).collect();
        world.get(&format!("{path}?rd={address}"), &[&["Accept: text/html"], more].concat()).await
    };
    // The links of Doorward's page other than to its own files.
    let ways = |page: &str| -> Vec<String> {
        let page = page.replace("<link rel=\"icon\" href=", "");
        let named = page.match_indices("href=\"").chain(page.match_indices("content=\"0;url="));
        let ways = named.map(|(at, mark)| page[at + mark.len()..].split('"').next().unwrap().replace("&amp;", "&"));
        ways.filter(|way| !way.starts_with("/.doorward/")).collect()
    };
    for (class, addresses) in &classes {
        for address in addresses {
            for path in ["/oauth2/continue", "/oauth2/sign_in"] {
                let page = get(path, address, &[]).await;
                assert_eq!(page.status, 200, "{class}: {path} {address:?}: {}", page.text());
                let ways = ways(&page.text());
                assert!(!ways.is_empty(), "{class}: {path} {address:?}: {}", page.text());
                for way in ways {
                    assert_eq!(way, "/oauth2/start?issuer=a&rd=%2F", "{class}: {path} {address:?}");
                }
            }
            let on = get("/oauth2/continue", address, &[&cookie]).await;
            assert_eq!((on.status, on.header("location")), (303, Some("/#")), "{class}: {address:?}");
        }
    }
    // The counterpart: a good address is kept and followed.
    let page = get("/oauth2/sign_in", "/runs?a=b#/c", &[]).await;
    assert_eq!(ways(&page.text()), ["/oauth2/start?issuer=a&rd=%2Fruns%3Fa%3Db%23%2Fc"]);
    let on = get("/oauth2/continue", "/runs?a=b#/c", &[&cookie]).await;
    assert_eq!(on.header("location"), Some("/runs?a=b#/c"));
}

#[tokio::test]
async fn the_provider_ends_sessions_without_a_cookie() {
    let (world, issuer) = LoginFixture::scripted(&[]).await;
    let post = async |body: &str| world.submit("/oauth2/backchannel_logout", &[], body).await;
    let (one, other) = (world.log_in().await, world.log_in().await);
    assert_eq!((world.status(&one).await, world.status(&other).await), (200, 200));

    let for_another = issuer.logout_token(&json!({"aud": "another"}));
    let id_token = issuer.logout_token(&json!({"nonce": "n"}));
    let of_nobody = issuer.logout_token(&json!({"iss": "https://nobody.example"}));
    let good = issuer.logout_token(&json!({}));
    for (row, body) in [
        ("another client's", format!("logout_token={for_another}")),
        ("an ID token", format!("logout_token={id_token}")),
        ("another issuer's", format!("logout_token={of_nobody}")),
        ("none", String::new()),
        ("two", format!("logout_token={good}&logout_token={good}")),
        ("not a token", "logout_token=x.y.z".to_owned()),
    ] {
        let answer = post(&body).await;
        assert_eq!(
            (answer.status, answer.header("cache-control")),
            (400, Some("no-store")),
            "{row}: {}",
            answer.text()
        );
        assert_eq!(answer.json()["error"], "invalid_request", "{row}");
    }
    let why = post(&format!("logout_token={id_token}")).await.json()["error_description"].clone();
    assert_eq!(why, "logout token: it is an ID token (it has a `nonce`)");
    let form = format!("logout_token={good}");
    let no_form = world.post("/oauth2/backchannel_logout", &["Content-Type: text/plain"], &form).await;
    assert_eq!(no_form.status, 400, "{}", no_form.text());
    let why = no_form.json()["error_description"].clone();
    assert_eq!(why, "the body is not `application/x-www-form-urlencoded`");
    assert_eq!((world.status(&one).await, world.status(&other).await), (200, 200), "nothing was ended");

    let of_bob = issuer.logout_token(&json!({"sub": "bob"}));
    assert_eq!(post(&format!("logout_token={of_bob}")).await.status, 200, "no session of his is here");
    assert_eq!(world.status(&one).await, 200);
    let answer = post(&form).await;
    assert_eq!((answer.status, answer.header("cache-control")), (200, Some("no-store")), "{}", answer.text());
    assert_eq!((world.status(&one).await, world.status(&other).await), (401, 401));

    let again = world.log_in().await;
    let replayed = post(&form).await;
    assert_eq!(replayed.status, 400, "{}", replayed.text());
    assert_eq!(world.status(&again).await, 200, "a token is good once");
    let big = post(&format!("logout_token={}", "x".repeat(40_000))).await;
    assert_eq!(big.status, 413);
}

/// Regression: forms were read outside that budget, from anybody, on as many connections as allowed.
#[tokio::test]
async fn forms_of_logins_and_logouts_are_read_within_the_memory_for_bodies() {
    let (world, _issuer) = LoginFixture::scripted(&[("limits: {", "limits: {buffered_bytes: 2KiB, ")]).await;
    for path in ["/oauth2/backchannel_logout", "/.doorward/login/token", "/.doorward/login/device", "/.doorward/device"]
    {
        let refused = world.submit(path, &[], &format!("code={}", "x".repeat(3000))).await;
        assert_eq!(refused.status, 503, "{path}: {}", refused.text());
        assert!(refused.text().contains("too many bodies are being read"), "{path}: {}", refused.text());
        let read = world.submit(path, &[], "code=x").await;
        assert!([400, 403].contains(&read.status), "{path}: {} {}", read.status, read.text());
    }
}

/// Every page was 403 until the session ended: users with such a session were not led to a login that could deliver the
/// claim.
#[tokio::test]
async fn a_session_without_a_newly_required_claim_needs_a_new_login() {
    let (mut world, _issuer) = LoginFixture::scripted(&[]).await;
    let cookie = world.log_in().await;
    assert_eq!(world.status(&cookie).await, 200);
    world.doorward.change("    kind: human\n", "    kind: human\n    required_claims: {tenant: [ours]}\n");
    world.doorward.wait_for_generation(2).await;

    let page = ["Sec-Fetch-Mode: navigate", "Sec-Fetch-Dest: document", &cookie];
    let away = world.get("/page", &page).await;
    assert_eq!((away.status, away.header("location")), (303, Some("/oauth2/continue?rd=%2Fpage")));
    let on = world.get("/oauth2/continue?rd=%2Fpage", &page).await;
    assert!(on.status == 200 && on.text().contains("/oauth2/start?"), "no way back without a login: {}", on.text());
    let of_script = world.get("/page", &[&cookie]).await;
    assert_eq!((of_script.status, of_script.reason().as_str()), (401, "session_expired"));
}

#[tokio::test]
async fn a_person_lists_and_ends_their_own_sessions_and_forged_requests_cannot() {
    let (world, _issuer) = LoginFixture::scripted(&[]).await;
    let (here, there, elsewhere) = (world.log_in().await, world.log_in().await, world.log_in().await);
    let json = "Accept: application/json";
    let list = async |cookie: &str| world.get("/.doorward/sessions", &[json, cookie]).await;
    let listed = list(&here).await.json();
    let sessions = listed["sessions"].as_array().unwrap();
    assert_eq!(sessions.len(), 3, "{listed}");
    assert_eq!((&sessions[0]["session"], &sessions[0]["address"]), (&listed["current"], &json!("127.0.0.1")));

    let end = async |query: &str, lines: &[&str]| {
        world.post(&format!("/.doorward/sessions/end?{query}"), &[lines, &["Content-Length: 0"]].concat(), "").await
    };
    let origin = format!("Origin: {}", world.origin());
    for forged in ["Origin: https://evil.example", "Origin: null", "X-Nothing: x", "Sec-Fetch-Site: same-site"] {
        let answer = end("others", &[forged, &here]).await;
        assert_eq!(answer.status, 403, "{forged}: {}", answer.text());
    }
    let by_link = world.get("/.doorward/sessions/end?others", &[&here]).await;
    assert_eq!(by_link.status, 405, "{}", by_link.text());
    assert_eq!(world.status(&there).await, 200, "nothing was ended");
    let by_nobody = end("others", &[&origin]).await;
    assert_eq!(by_nobody.status, 401, "{}", by_nobody.text());

    let post = async |query: &str| {
        let answer = end(query, &[&origin, &here]).await;
        (answer.status, answer.header("location").unwrap_or_default().to_owned())
    };
    let name = sessions[1]["session"].as_str().unwrap();
    assert_eq!(post(&format!("session={name}")).await, (303, "/.doorward/sessions?ended=1".to_owned()));
    assert_eq!(
        [world.status(&here).await, world.status(&there).await, world.status(&elsewhere).await],
        [200, 401, 200]
    );
    assert_eq!(post(&format!("session={name}")).await, (303, "/.doorward/sessions?ended=0".to_owned()));
    let own = listed["current"].as_str().unwrap();
    assert_eq!(post(&format!("session={own}")).await, (303, "/oauth2/sign_out".to_owned()));
    assert_eq!(post("").await.0, 400);
    assert_eq!(post("others").await, (303, "/.doorward/sessions?ended=1".to_owned()));
    assert_eq!([world.status(&here).await, world.status(&elsewhere).await], [200, 401]);
    assert_eq!(list(&elsewhere).await.status, 401);

    let page = world.get("/.doorward/sessions?ended=1", &["Accept: text/html", &here]).await;
    let text = page.text();
    assert!(text.contains("this one") && text.contains("One session was ended") && !text.contains("<form"), "{text}");
    let whoami = world.get("/.doorward/whoami", &[json, &here]).await.json();
    for member in ["created", "checked_again_by", "ends_if_unused", "ends"] {
        assert!(whoami["session"][member].as_str().unwrap().ends_with('Z'), "{whoami}");
    }
}

#[tokio::test]
async fn an_operator_lists_and_ends_sessions() {
    let (world, _issuer) = LoginFixture::scripted(&[]).await;
    let operator = async |arguments: &[&str]| {
        let person = ["--issuer", "a", "--subject", "alice", "--why", "laptop lost"];
        world.doorward.operator(&[&["sessions"], arguments, &person[..]].concat()).await
    };
    let (one, other) = (world.log_in().await, world.log_in().await);
    let (code, said) = operator(&["list"]).await;
    assert_eq!(code, Some(0), "{said}");
    let said: Value = serde_json::from_str(&said).unwrap();
    let listed = said["sessions"].as_array().unwrap();
    assert_eq!(listed.len(), 2, "{said}");
    assert_eq!(listed[0]["origin"], world.origin());

    let first = listed[0]["session"].as_str().unwrap();
    let (code, said) = operator(&["end", "--session", first]).await;
    assert_eq!(code, Some(0), "{said}");
    assert_eq!((world.status(&one).await, world.status(&other).await), (401, 200));
    let (code, said) = operator(&["end", "--session", first]).await;
    assert!(code == Some(1) && said.contains("no such session"), "{said}");

    let (code, said) = operator(&["end", "--session", "-Nv"]).await;
    assert!(code == Some(1) && said.contains("no such session"), "one may begin with a hyphen: {said}");

    let (code, said) = operator(&["end"]).await;
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(serde_json::from_str::<Value>(&said).unwrap()["ended"], 1);
    assert_eq!(world.status(&other).await, 401);
    assert_eq!(world.status(&world.log_in().await).await, 200, "they may sign in again");
    let trail = world.doorward.audit().iter().map(Value::to_string).collect::<String>();
    assert!(trail.contains("end-sessions") && trail.contains("laptop lost"));
}

/// The pages of one user delayed everybody's programs, instead of them being told how to sign in.
#[tokio::test]
async fn refusals_behind_a_proxy_are_counted_only_for_the_client_that_it_names() {
    let limits = ("drain_accept: 0", "drain_accept: 0, refusals_per_address: 4");
    let proxy = ("'127.0.0.1:{port}'}", "'127.0.0.1:{port}', trusted_proxies: [127.0.0.1/32, 10.0.0.0/8]}");
    let (world, _issuer) = LoginFixture::scripted(&[limits, proxy]).await;
    let ask = async |named: &[&str]| world.get("/page", &[&["Accept: application/json"], named].concat()).await.status;
    for round in 0..8 {
        let of_one = if round < 4 { 401 } else { 429 };
        assert_eq!(ask(&["X-Forwarded-For: 192.0.2.1"]).await, of_one, "{round}");
        assert_eq!(ask(&[]).await, 401, "{round}: nothing says whose it is");
        assert_eq!(ask(&["X-Forwarded-For: 10.0.0.7"]).await, 401, "{round}: a proxy names the one before it alone");
    }
    assert_eq!(ask(&["X-Forwarded-For: 192.0.2.2"]).await, 401, "another client");
}

/// Like the trust in proxies for client addresses.
#[tokio::test]
async fn the_client_that_refusals_are_counted_for_follows_a_reload_on_open_connections() {
    let limits = ("drain_accept: 0", "drain_accept: 0, refusals_per_address: 4");
    let proxy = ("'127.0.0.1:{port}'}", "'127.0.0.1:{port}', trusted_proxies: [192.0.2.0/24]}");
    let (mut world, _issuer) = LoginFixture::scripted(&[limits, proxy]).await;
    let request = format!("GET /page HTTP/1.1\r\nHost: {}\r\nAccept: application/json\r\n\r\n", world.host);
    let ask = async |raw: &mut Raw| {
        raw.send(&request).await;
        raw.answer().await.status
    };
    let mut of_client = world.doorward.raw().await;
    assert_eq!(ask(&mut of_client).await, 401);
    world.doorward.change("192.0.2.0/24", "127.0.0.0/8");
    world.doorward.wait_for_generation(2).await;
    let mut of_proxy = world.doorward.raw().await;
    for round in 0..8 {
        assert_eq!(ask(&mut of_client).await, 401, "{round}: of a proxy by now");
        assert_eq!(ask(&mut of_proxy).await, 401, "{round}");
    }
    world.doorward.change("127.0.0.0/8", "192.0.2.0/24");
    world.doorward.wait_for_generation(3).await;
    let mut last = 0;
    for _ in 0..5 {
        last = ask(&mut of_proxy).await;
    }
    assert_eq!(last, 429, "of a client by now");
}

/// As the pages of a Dashboard do that stay open after their session ends.
#[tokio::test]
async fn a_client_that_keeps_asking_without_a_session_gets_429_and_others_do_not() {
    let limits = ("drain_accept: 0", "drain_accept: 0, refusals_per_address: 4");
    let (world, _issuer) = LoginFixture::scripted(&[limits]).await;
    let cookie = world.log_in().await;
    let origin = format!("Origin: {}", world.origin());
    let ended = format!("Cookie: __Host-doorward={}", "a".repeat(43));
    for round in 0..6 {
        for (status, answer) in [
            (401, world.get("/page", &[&ended, "Accept: application/json"]).await),
            (401, world.get("/page", &[&[&*ended, &origin], &HANDSHAKE[..]].concat()).await),
        ] {
            let status = if round < 2 { status } else { 429 };
            assert_eq!(answer.status, status, "{round}: {}", answer.head);
            assert_eq!(answer.header("retry-after"), (status == 429).then_some("60"), "{}", answer.head);
        }
    }
    // From the same address: users with a session, and users who come to sign in.
    assert_eq!(world.status(&cookie).await, 200);
    let navigation = ["Accept: text/html", "Sec-Fetch-Mode: navigate", "Sec-Fetch-Dest: document"];
    let away = world.get("/page", &navigation).await;
    assert!((300..400).contains(&away.status), "{}", away.head);
    // Each is recorded.
    let told = "4 times within a minute";
    world.doorward.records(8, |record| record["status_detail"].as_str().is_some_and(|why| why.contains(told))).await;
}
