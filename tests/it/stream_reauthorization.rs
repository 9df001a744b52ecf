//! Each condition for a stream to continue, removed on its own: the identity it was sent with, its destination, the
//! issuer's confirmation, and time. The stream then ends, whatever its client does.

use std::{
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use http_body_util::BodyExt;
use serde_json::json;
use tokio::sync::Notify;

use crate::{
    fixture::{Change, Fixture, bearer},
    harness::{
        Doorward, Fault, Raw, Recorded, RedisServer, Reply, Reviews, Upstream, Verdict, held_up, log_in, now,
        replace_file, request, settled,
        streams::{LOG, OF_CLUSTER, Streams, WATCH, begin, ends, http2, stream, streaming, with_login},
        unique, until, within,
    },
    login_fixture::{LoginFixture, RULE, STORE, on_redis},
};

async fn watch(doorward: &Doorward, host: &str, credential: &str) -> Raw {
    begin(doorward, WATCH, &[host, credential, "Connection: close"], 200).await
}

async fn has_ended(mut watch: Raw, why: &str) {
    let rest = watch.rest().await;
    assert!(rest.ends_with(b"0\r\n\r\n"), "{why}: {}", String::from_utf8_lossy(&rest));
}

async fn is_open(watch: &mut Raw, what: &str) {
    assert!(tokio::time::timeout(Duration::from_millis(300), watch.rest()).await.is_err(), "{what} goes on");
}

/// The rule stays. The API server would continue with the identity it got when the stream began.
#[tokio::test]
async fn a_stream_ends_when_a_reload_takes_a_group_away_that_it_was_sent_under() {
    let mut fixture = Fixture::with(
        |yaml| {
            yaml.change(
                "grants:\n",
                "grants:\n  - {id: admins, who: {issuers: [a], groups: [sre]}, kubernetes_groups: [admins]}\n",
            )
        },
        streaming,
    )
    .await;
    let sre = bearer(&fixture.a.token("sam", &["dev", "sre"]));
    let lost = watch(&fixture.doorward, "Host: api.test", &sre).await;
    let mut twin = watch(&fixture.doorward, "Host: api.test", &fixture.alice()).await;
    // An additional group ends nothing.
    fixture.doorward.change("kubernetes_groups: ['tekton:dev']", "kubernetes_groups: ['tekton:dev', 'tekton:more']");
    fixture.doorward.wait_for_generation(2).await;
    is_open(&mut twin, "one that would have a group more").await;
    fixture
        .doorward
        .change("groups: [sre]}, kubernetes_groups: [admins]", "groups: [other]}, kubernetes_groups: [admins]");
    has_ended(lost, "a group is gone").await;
    is_open(&mut twin, "one that never had the group").await;
    assert_eq!(ends(&fixture.doorward, 1).await, ["permission_lost"]);
}

/// While the caller is being authenticated, a reload removes the rule, but the request is still decided by the previous
/// configuration.
#[tokio::test]
async fn a_stream_admitted_by_a_meanwhile_replaced_generation_ends() {
    let told = Arc::new(Notify::new());
    let script = {
        let told = Arc::clone(&told);
        move |request: &Recorded| {
            if !request.line().starts_with("POST /introspect ") {
                return streaming(request);
            }
            let answer = json!({"active": true, "sub": "alice", "aud": "https://doorward.test", "client_id": "tests",
                "exp": now() + 7200, "groups": ["dev"]})
            .to_string();
            let head = format!("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}", answer.len());
            Reply::Later(Arc::clone(&told), format!("{head}\r\n\r\n{answer}").into_bytes())
        }
    };
    let ask_upstream = |yaml: String| {
        let (_, rest) = yaml.split_once("{name: cluster, url: '").unwrap();
        let (url, _) = rest.split_once('\'').unwrap();
        let asked = format!("{{mode: opaque, endpoint: '{url}/introspect', timeout: 10s, tries: 5, cache: 1s");
        yaml.change("{mode: opaque, cache: 1s", &asked)
    };
    let mut fixture = Fixture::with(ask_upstream, script).await;
    let mut watch = fixture.doorward.raw().await;
    let lines = [&format!("GET {WATCH} HTTP/1.1"), "Host: api.test", "Connection: close", &bearer("opaque")];
    watch.send(request(&lines, b"")).await;
    fixture.upstream.wait_for_path("/introspect").await;
    fixture.doorward.change("on: {routes: [api, only-a, board, web]}", "on: {routes: [web]}");
    fixture.doorward.wait_for_generation(2).await;
    told.notify_one();
    // It may be cut before its first line or after it.
    let rest = watch.rest().await;
    assert!(rest.starts_with(b"HTTP/1.1 200 "), "{}", String::from_utf8_lossy(&rest));
    assert_eq!(ends(&fixture.doorward, 1).await, ["permission_lost"]);
}

#[tokio::test]
async fn a_stream_of_a_session_ends_when_its_person_has_another_name() {
    let (mut doorward, _peers, host, cookie) = with_login("", "").await;
    // The rule applies to any user name.
    doorward.change("who: {users: [alice]}", "who: {issuers: [a]}");
    doorward.wait_for_generation(2).await;
    let mut open = watch(&doorward, &format!("Host: {host}"), &cookie).await;
    is_open(&mut open, "the name is the same").await;
    doorward.change("username: '{sub}'", "username: 'corp:{sub}'");
    has_ended(open, "the name is another").await;
    assert_eq!(ends(&doorward, 1).await, ["permission_lost"]);
}

#[tokio::test]
async fn a_stream_ends_when_its_route_changes_its_match_or_upstream() {
    let start = |yaml: String| {
        let api = "{name: api, kind: kubernetes, hosts: [api.test],";
        let upstream = yaml.lines().find(|line| line.contains("{name: cluster, url")).unwrap().to_owned();
        let second = upstream.change("name: cluster", "name: second");
        // The probe shows whether the keys have been fetched.
        yaml.change(
            api,
            "{name: api, kind: kubernetes, hosts: [api.test, more.test], paths: ['/api/*', '/apis/*', '/probe-of-the-tests'],",
        )
        .change(&upstream, &format!("{upstream}\n{second}"))
    };
    let fixture = Fixture::with(start, streaming).await;
    let alice = fixture.alice();
    let mut kept = watch(&fixture.doorward, "Host: api.test", &alice).await;
    let mut log = begin(&fixture.doorward, LOG, &["Host: api.test", &alice, "Connection: close"], 200).await;
    fixture
        .doorward
        .change("paths: ['/api/*', '/apis/*', '/probe-of-the-tests']", "paths: ['/apis/*', '/probe-of-the-tests']");
    assert!(!log.rest().await.ends_with(b"0\r\n\r\n"), "the path is gone");
    is_open(&mut kept, "another path").await;

    let lost = watch(&fixture.doorward, "Host: more.test", &alice).await;
    fixture.doorward.change("hosts: [api.test, more.test]", "hosts: [api.test]");
    has_ended(lost, "the host is gone").await;
    is_open(&mut kept, "another host").await;

    let route = "paths: ['/apis/*', '/probe-of-the-tests'], schemes: [bearer], upstream: ";
    fixture.doorward.change(&format!("{route}cluster"), &format!("{route}second"));
    has_ended(kept, "the route leads elsewhere").await;
    assert!(ends(&fixture.doorward, 3).await.iter().all(|why| why == "permission_lost"));
}

/// An operator who wants to close forgotten shells does not wait for the time with which they began.
#[tokio::test]
async fn a_stream_ends_by_the_shorter_time_that_a_reload_gives_its_route() {
    let mut fixture = Fixture::with_faults(|yaml| yaml, streaming).await;
    let mut claims = fixture.a.claims("alice", &["dev"]);
    claims["exp"] = json!(now() + 7200);
    let alice = bearer(&fixture.a.sign(&claims));
    let mut lost = watch(&fixture.doorward, "Host: api.test", &alice).await;
    let mut twin = watch(&fixture.doorward, "Host: a.test", &alice).await;
    let api = "hosts: [api.test], schemes: [bearer], upstream: cluster";
    fixture.doorward.change(api, &format!("{api}, max_stream: 20m"));
    fixture.doorward.wait_for_generation(2).await;
    is_open(&mut lost, "its time is not over").await;
    fixture.doorward.set_clock_ahead(1300);
    has_ended(lost, "its time is over").await;
    is_open(&mut twin, "another route").await;
    assert_eq!(ends(&fixture.doorward, 1).await, ["max_stream"], "its token is good still");
    fixture.doorward.until_metrics_say("doorward_streams_cut_total{kind=\"watch\",reason=\"max_stream\"} 1\n").await;
}

/// The files of the active configuration are reloaded on their own while the configuration beside them is refused.
#[tokio::test]
async fn a_stream_ends_when_a_kubeconfig_changes_server_even_if_the_configuration_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("kube.yaml");
    let write = |server: &str| {
        let kubeconfig = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "tests", "cluster": {"server": server}}],
            "users": [{"name": "doorward", "user": {"token": "upstream-token"}}],
            "contexts": [{"name": "tests", "context": {"cluster": "tests", "user": "doorward"}}],
            "current-context": "tests",
        });
        replace_file(&path, &kubeconfig.to_string());
    };
    let start = |yaml: String| {
        let upstream = yaml.lines().find(|line| line.contains("{name: cluster, url")).unwrap();
        write(upstream.split('\'').nth(1).unwrap());
        yaml.change(upstream, &format!("  - {{name: cluster, kubeconfig: {{file: '{}'}}}}", path.display()))
    };
    let mut fixture = Fixture::with(start, streaming).await;
    let lost = watch(&fixture.doorward, "Host: api.test", &fixture.alice()).await;
    let mut twin = watch(&fixture.doorward, "Host: web.test", &fixture.alice()).await;
    fixture.doorward.change("who: {anonymous: true}", "whom: {anonymous: true}");
    fixture.doorward.wait_for_log_containing("the configuration was refused").await;
    write(&fixture.upstream.url().replace("127.0.0.1", "localhost"));
    has_ended(lost, "the kubeconfig leads elsewhere").await;
    is_open(&mut twin, "one at another upstream").await;
    assert_eq!(ends(&fixture.doorward, 1).await, ["permission_lost"]);
}

/// About an opaque token only the issuer's answer is known, which may change.
#[tokio::test]
async fn a_stream_ends_when_its_token_has_ended_at_its_issuer() {
    let fixture = Fixture::with_faults(|yaml| yaml, streaming).await;
    let answer = |active: bool| {
        json!({"active": active, "sub": "alice", "iss": fixture.a.url(), "aud": "https://doorward.test",
            "client_id": "tests", "exp": now() + 7200, "groups": ["dev"]})
    };
    for token in ["revoked", "kept"] {
        fixture.a.opaque(token, answer(true));
    }
    let lost = watch(&fixture.doorward, "Host: api.test", &bearer("revoked")).await;
    let mut twin = watch(&fixture.doorward, "Host: api.test", &bearer("kept")).await;
    fixture.a.opaque("revoked", answer(false));
    has_ended(lost, "the token was revoked at its issuer").await;
    is_open(&mut twin, "another token").await;
    assert_eq!(ends(&fixture.doorward, 1).await, ["revoked"]);

    // An issuer that gives no clear answer does not invalidate a token, for a while.
    fixture.a.opaque("kept", json!({"active": "perhaps"}));
    let asked = fixture.a.introspections();
    until(async || fixture.a.introspections() != asked).await;
    is_open(&mut twin, "nobody can be asked").await;
    fixture.doorward.set_clock_ahead(301);
    has_ended(twin, "nobody could be asked for too long").await;
    assert_eq!(ends(&fixture.doorward, 2).await, ["revoked", "expired"]);
}

/// Its signature stays valid after its pod is gone.
#[tokio::test]
async fn a_stream_ends_when_the_api_server_says_no_to_the_token_of_its_workload() {
    let reviews = Reviews::default();
    let change = |yaml: String| {
        let entry = yaml.lines().find(|line| line.contains("- {name: b, issuer: ")).unwrap().to_owned();
        let pods = entry.change(
            "username: 'b:{sub}', kind: human",
            "preset: kubernetes, token_review: {upstream: cluster, bearer: {file: token}, cache: 1s}",
        );
        assert_ne!(pods, entry);
        let rule = "rules:\n  - {id: pods, on: {routes: [api]}, who: {issuers: [b], service_accounts: [ci/builder]}, do: allow}\n";
        yaml.change(&entry, &pods).change("rules:\n", rule)
    };
    let script = {
        let reviews = reviews.clone();
        move |request: &Recorded| reviews.answer(request).unwrap_or_else(|| streaming(request))
    };
    let fixture = Fixture::with_faults(change, script).await;
    let [lost, kept] = [(); 2].map(|()| fixture.b.pod_token("ci", "builder"));
    for token in [&lost, &kept] {
        reviews.say(token, Verdict::Good);
        settled(async || fixture.doorward.get("/api/v1/pods", &["Host: api.test", &bearer(token)]).await).await;
    }
    let mut streams = Streams::open(&fixture.doorward, &["Host: api.test", &bearer(&lost)]).await;
    let mut twin = watch(&fixture.doorward, "Host: api.test", &bearer(&kept)).await;
    streams.are_open().await;
    reviews.say(&lost, Verdict::Gone);
    streams.have_ended(1008, "revoked").await;
    is_open(&mut twin, "another pod").await;
    assert_eq!(ends(&fixture.doorward, 6).await, ["revoked"; 6]);

    // An API server that fails does not invalidate a pod's token, for a while.
    reviews.say(&kept, Verdict::Error);
    let asked = reviews.asked_about(&kept);
    until(async || reviews.asked_about(&kept) != asked).await;
    is_open(&mut twin, "nobody can be asked").await;
    fixture.doorward.set_clock_ahead(301);
    has_ended(twin, "nobody could be asked for too long").await;
    assert_eq!(ends(&fixture.doorward, 7).await[6], "expired");
}

/// An issuer removes a key from its set when it is no longer to be trusted, perhaps because it was stolen.
#[tokio::test]
async fn a_stream_ends_when_the_key_of_its_token_leaves_the_set_of_its_issuer() {
    let mut fixture = Fixture::with_faults(|yaml| yaml, streaming).await;
    let alice = fixture.alice();
    // For longer than it takes until streams are rechecked.
    let stays = async |twin: &mut Raw, streams: &mut Streams, what: &str| {
        for _ in 0..2 {
            is_open(twin, what).await;
        }
        streams.are_open().await;
    };
    let mut streams = Streams::open(&fixture.doorward, &["Host: api.test", &alice]).await;

    // The set gains a key, and is fetched again for the first token with that key.
    fixture.a.add_key("key-2");
    let mut twin = watch(&fixture.doorward, "Host: api.test", &bearer(&fixture.a.token("bea", &["dev"]))).await;
    stays(&mut twin, &mut streams, "a new key").await;
    // A set fetched again after a reload has another version and the same keys.
    fixture.doorward.change("    username: '{sub}'", "    keys: {max_stale: 2h}\n    username: '{sub}'");
    fixture.doorward.wait_for_generation(2).await;
    // With a stale set nothing would be tested.
    let fresh = bearer(&fixture.a.token("bea", &["dev"]));
    until(async || fixture.doorward.get("/api/v1/pods", &["Host: api.test", &fresh]).await.status == 200).await;
    stays(&mut twin, &mut streams, "the same keys").await;

    // A set that cannot be fetched invalidates no key.
    let unknown =
        || fixture.a.sign_with(&json!({"alg": "ES256", "typ": "at+jwt", "kid": unique()}), &fixture.a.claims("x", &[]));
    let fetched = async |ahead: u64| {
        fixture.doorward.set_clock_ahead(ahead);
        let before = fixture.a.key_fetches();
        until(async || {
            let answer = fixture.doorward.get("/api/v1/pods", &["Host: api.test", &bearer(&unknown())]).await;
            assert_eq!(answer.status, 401, "{}", answer.text());
            fixture.a.key_fetches() != before
        })
        .await;
    };
    fixture.a.set_fault(Fault::Error);
    fetched(31).await;
    stays(&mut twin, &mut streams, "no keys are had").await;

    // A single response without the key may be a mistake, and only refuses requests.
    fixture.a.set_fault(Fault::None);
    fixture.doorward.set_clock_ahead(70);
    fixture.a.withdraw("key-1");
    fetched(70).await;
    until(async || fixture.doorward.get("/api/v1/pods", &["Host: api.test", &alice]).await.status == 401).await;
    stays(&mut twin, &mut streams, "the key is missing for the first time").await;
    fetched(105).await;
    streams.have_ended(1008, "revoked").await;
    is_open(&mut twin, "a key that stayed").await;
    assert_eq!(ends(&fixture.doorward, 6).await, ["revoked"; 6]);
}

/// No token expires here, and no hours of a rule end.
#[tokio::test]
async fn a_stream_ends_when_a_login_grows_too_old_or_an_expression_looks_at_the_time() {
    let until = now() + 900;
    let rules = format!(
        "rules:\n  - {{id: fresh, on: {{routes: [api]}}, who: {{issuers: [a], groups: [fresh]}}, need: {{fresh_login: {{max_age: 15m}}}}, do: allow}}\n  \
         - {{id: timed, on: {{routes: [api]}}, who: {{issuers: [a], groups: [timed]}}, when: 'request.time < {until}', do: allow}}\n"
    );
    let fixture = Fixture::with_faults(|yaml| yaml.change("rules:\n", &rules), streaming).await;
    let token = |group: &str| {
        let mut claims = fixture.a.claims(group, &[group]);
        (claims["exp"], claims["auth_time"]) = (json!(now() + 7200), json!(now()));
        bearer(&fixture.a.sign(&claims))
    };
    let mut open = Vec::new();
    for group in ["fresh", "timed", "dev"] {
        open.push(watch(&fixture.doorward, "Host: api.test", &token(group)).await);
    }
    let mut twin = open.pop().unwrap();
    fixture.doorward.set_clock_ahead(1000);
    for lapsed in open {
        has_ended(lapsed, "the rule does not hold any more").await;
    }
    is_open(&mut twin, "another rule").await;
    assert_eq!(ends(&fixture.doorward, 2).await, ["permission_lost", "permission_lost"]);
}

/// The session cannot be looked up then, and its cached data is used.
#[tokio::test]
async fn a_session_stream_ends_when_its_rule_no_longer_holds_even_without_the_store() {
    let mut redis = RedisServer::start(&[]);
    let store = on_redis(&format!("server: '{}'", redis.address()));
    let until = now() + 300;
    let rule = format!(
        "{{id: people, on: {{routes: [cluster], kubernetes: {{resources: [pods, pods/log]}}}}, who: {{users: [alice]}}, do: allow}}\n  \
         - {{id: timed, on: {{routes: [cluster], kubernetes: {{resources: [taskruns]}}}}, who: {{users: [alice]}}, when: 'request.time < {until}', do: allow}}"
    );
    let changes = [&OF_CLUSTER[..2], &[(RULE, &rule), (STORE, &store)]].concat();
    let (world, issuer) = LoginFixture::scripted_with(Upstream::scripted(streaming).await, &changes).await;
    let LoginFixture { doorward, upstream: _upstream, host } = world;
    let token = bearer(&issuer.token("probe", &[]));
    settled(async || doorward.get("/api/v1/pods", &["Host: localhost", &token]).await).await;
    let cookie = log_in(&doorward, &host, "/api/v1/pods").await;
    let host = format!("Host: {host}");
    let lost = watch(&doorward, &host, &cookie).await;
    let mut twin = begin(&doorward, LOG, &[&host, &cookie, "Connection: close"], 200).await;
    redis.kill();
    is_open(&mut twin, "the store is away").await;
    doorward.set_clock_ahead(400);
    has_ended(lost, "the rule does not hold any more").await;
    is_open(&mut twin, "another rule").await;
    assert_eq!(ends(&doorward, 1).await, ["permission_lost"]);
}

/// The longer it does not read, the more data is waiting, so that the response would not be polled for hours.
#[tokio::test]
async fn a_stream_whose_client_does_not_read_ends_too() {
    let (of_raw, of_http2) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let floods = [("/first/", Arc::clone(&of_raw)), ("/second/", Arc::clone(&of_http2))];
    let without_end = move |request: &Recorded| match floods.iter().find(|(name, _)| request.line().contains(name)) {
        Some((_, sent)) => Reply::Flood(Arc::clone(sent)),
        None => Reply::json(200, "{}"),
    };
    let fixture = Fixture::answering(without_end).await;
    let alice = fixture.alice();
    let log = |pod: &str| format!("/api/v1/namespaces/ci/pods/{pod}/log?follow=true");
    let lines = ["Host: api.test", &alice, "Connection: close"];
    let mut raw = begin(&fixture.doorward, &log("first"), &lines, 200).await;
    let mut connection = http2(&fixture.doorward).await;
    let body = stream(&mut connection, &log("second"), &lines[..2]).await;
    // Both wait for their clients, one with a full socket and one without a window.
    for sent in [&of_raw, &of_http2] {
        held_up(sent).await;
    }
    let revoke = ["revoke", "--issuer", "a", "--subject", "alice", "--why", "a client that does not read"];
    let (code, said) = fixture.doorward.operator(&revoke).await;
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(ends(&fixture.doorward, 2).await, ["revoked", "revoked"]);
    // Only the streams: the other requests of the HTTP/2 connection continue.
    assert!(within(body.collect()).await.is_err(), "it breaks off");
    let other = bearer(&fixture.a.token("bob", &["dev"]));
    let request =
        http::Request::get("http://api.test/api/v1/pods").header("authorization", &other["Authorization: ".len()..]);
    let answer = within(connection.send_request(request.body(Default::default()).unwrap())).await.unwrap();
    assert_eq!(answer.status(), 200, "the connection is open");
    assert!(!raw.rest().await.ends_with(b"0\r\n\r\n"), "it breaks off");
}
