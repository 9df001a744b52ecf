//! Tokens over the wire. The details of the rows `oauth:*` are unit tests of `issuers`; here each row is tested once
//! with the whole program, along with what needs it: misbehaving issuers, caches, restarts.

use std::time::Instant;

use aws_lc_rs::hmac;
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD as BASE64URL, prelude::BASE64_STANDARD};
use serde_json::{Value, json};

use crate::{
    fixture::{Change, Fixture, bearer},
    harness::{
        Doorward, Fault, HANDSHAKE, Issuer, Reply, Upstream, folder_with, found, now, settled,
        streams::{EXEC, streaming},
        unique, until,
    },
};

const AUDIENCE: &str = "https://doorward.test";
const PATH: &str = "/apis/tekton.dev/v1/namespaces/ci/taskruns";

#[tokio::test]
async fn every_attack_on_a_token_is_refused_and_never_reaches_the_upstream() {
    let fixture = Fixture::start().await;
    let (a, b) = (&fixture.a, &fixture.b);
    let header = |more: Value| {
        let mut header = json!({"alg": "ES256", "typ": "at+jwt", "kid": "key-1"});
        header.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        header
    };
    let claims = |more: Value| {
        let mut claims = a.claims("alice", &["dev"]);
        claims.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        claims
    };
    let without = |name: &str| {
        let mut claims = claims(json!({}));
        claims.as_object_mut().unwrap().remove(name);
        claims
    };
    let good = a.token("alice", &["dev"]);
    let part = |index: usize| good.split('.').nth(index).unwrap().to_owned();
    let unsigned =
        |alg: &str| format!("{}.{}.", BASE64URL.encode(json!({"alg": alg, "typ": "at+jwt"}).to_string()), part(1));
    let mac = |key: &[u8]| {
        let header = header(json!({"alg": "HS256"})).to_string();
        let signed = format!("{}.{}", BASE64URL.encode(header), part(1));
        let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), signed.as_bytes());
        format!("{signed}.{}", BASE64URL.encode(tag))
    };
    // Anybody can build this from the public key (RFC 5480 section 2): its prefix means P-256, uncompressed.
    let jwk = a.public_key();
    let coordinate = |name: &str| BASE64URL.decode(jwk[name].as_str().unwrap()).unwrap();
    let prefix =
        b"\x30\x59\x30\x13\x06\x07\x2a\x86\x48\xce\x3d\x02\x01\x06\x08\x2a\x86\x48\xce\x3d\x03\x01\x07\x03\x42\x00\x04";
    let spki = [&prefix[..], &coordinate("x"), &coordinate("y")].concat();
    let text = BASE64_STANDARD.encode(&spki);
    let (first, second) = text.split_at(64);
    let pem = format!("-----BEGIN PUBLIC KEY-----\n{first}\n{second}\n-----END PUBLIC KEY-----\n");
    let twice = format!(r#"{{"iss":"{}","sub":"mallory",{}"#, a.url(), &claims(json!({})).to_string()[1..]);
    let cases: Vec<(&str, String)> = vec![
        ("oauth:1", unsigned("none")),
        ("oauth:1", unsigned("nOnE")),
        ("oauth:2", mac(jwk.to_string().as_bytes())),
        ("oauth:2", mac(&spki)),
        ("oauth:2", mac(pem.as_bytes())),
        ("oauth:2", mac(pem.trim_end().as_bytes())),
        ("oauth:3", a.sign_with(&header(json!({"alg": "ES384"})), &claims(json!({})))),
        ("oauth:4", a.sign_with(&header(json!({"alg": "RS512"})), &claims(json!({})))),
        ("oauth:5", a.sign_with(&header(json!({"kid": "unknown"})), &claims(json!({})))),
        ("oauth:6", a.sign_with(&header(json!({"kid": "../../dev/null"})), &claims(json!({})))),
        ("oauth:7", a.sign_with(&header(json!({"kid": "key-enc"})), &claims(json!({})))),
        ("oauth:8", b.sign_with(&header(json!({"jku": format!("{}/jwks", b.url())})), &claims(json!({})))),
        ("oauth:9", b.sign_with(&header(json!({"jwk": {"kty": "EC"}})), &claims(json!({})))),
        ("oauth:10", a.sign_with(&header(json!({"crit": ["exp"]})), &claims(json!({})))),
        ("oauth:11", a.sign_with(&header(json!({"b64": false})), &claims(json!({})))),
        ("oauth:12", format!("{good}.{}.{}", part(1), part(2))),
        ("oauth:13", json!({"protected": part(0), "payload": part(1), "signature": part(2)}).to_string()),
        (
            "oauth:13",
            json!({"payload": part(1), "signatures": [{"protected": part(0), "signature": part(2)}]}).to_string(),
        ),
        ("oauth:14", a.sign_with(&header(json!({"typ": "logout+jwt"})), &claims(json!({})))),
        ("oauth:14", a.sign_with(&header(json!({"typ": "JWT"})), &claims(json!({})))),
        ("oauth:15", a.sign(&claims(json!({"iss": [a.url()]})))),
        ("oauth:15", a.sign(&claims(json!({"iss": format!("{}/", a.url())})))),
        ("oauth:16", a.sign(&claims(json!({"aud": "https://doorward.test.evil"})))),
        ("oauth:16", a.sign(&claims(json!({"aud": 5})))),
        ("oauth:16", a.sign(&without("aud"))),
        ("oauth:16", a.sign(&claims(json!({"aud": null})))),
        ("oauth:16", a.sign(&claims(json!({"aud": {AUDIENCE: true}})))),
        ("oauth:16", a.sign(&claims(json!({"aud": []})))),
        ("oauth:16", a.sign(&claims(json!({"aud": [AUDIENCE, 5]})))),
        ("oauth:16", a.sign(&claims(json!({"aud": ["https://other.test"]})))),
        ("oauth:16", a.sign(&claims(json!({"aud": vec![AUDIENCE; 500]})))),
        ("oauth:17", a.sign(&claims(json!({"exp": 1})))),
        ("oauth:17", a.sign(&claims(json!({"exp": "9999999999"})))),
        ("oauth:17", a.sign(&claims(json!({"exp": 99_999_999_999_u64})))),
        ("oauth:18", a.sign(&claims(json!({"sub": ""})))),
        ("oauth:18", a.sign(&without("sub"))),
        ("oauth:18", a.sign(&claims(json!({"sub": 5})))),
        ("oauth:18", a.sign(&claims(json!({"sub": "a".repeat(10_000)})))),
        ("oauth:19", a.sign_text(&header(json!({})).to_string(), &twice)),
        ("oauth:20", format!("{good}=")),
        ("oauth:20", format!("{}.{}", part(0), part(1))),
        ("oauth:21", format!("{}.{}.{}", part(0), part(1), BASE64URL.encode([0; 64]))),
        ("oauth:23", b.sign(&claims(json!({})))),
        ("oauth:24", format!("{}.{}.{}", part(0), "A".repeat(17_000), part(2))),
        ("oauth:25", a.sign(&claims(json!({"scope": {"admin": true}})))),
        ("oauth:26", a.sign(&claims(json!({"groups": "dev"})))),
        ("oauth:26", a.sign(&claims(json!({"groups": [{"dev": 1}]})))),
        ("peers:D8", a.sign(&claims(json!({"aud": [1]})))),
        ("cnf", a.sign(&claims(json!({"cnf": {"jkt": "x"}})))),
    ];
    let (fetches, fetches_of_b, introspections) = (a.key_fetches(), b.key_fetches(), a.introspections());
    for (row, token) in cases {
        let (answer, seen) = fixture.api(PATH, &[&bearer(&token)]).await;
        assert_eq!(answer.status, 401, "{row}: {}", answer.text());
        let challenge = answer.header("www-authenticate").unwrap();
        assert!(
            challenge.starts_with("Bearer ") && challenge.contains("error=\"invalid_token\""),
            "{row}: {challenge}"
        );
        assert!(seen.is_empty(), "{row}");
        assert!(!answer.text().contains(&token[..40.min(token.len())]), "{row}: the token is in the answer");
    }
    let long = a.sign(&claims(json!({"aud": vec![AUDIENCE; 10_000]})));
    let (answer, seen) = fixture.api(PATH, &[&bearer(&long)]).await;
    assert_eq!((answer.status, seen.len()), (431, 0), "oauth:16: {}", answer.text());
    // All unknown keys together cause one fetch, and no other request to any issuer.
    assert!(a.key_fetches() - fetches <= 1, "{} fetches", a.key_fetches() - fetches);
    assert_eq!((b.key_fetches(), a.introspections()), (fetches_of_b, introspections));

    // The counterpart of them all.
    let (answer, seen) = fixture.api(PATH, &[&bearer(&good)]).await;
    assert_eq!((answer.status, seen.len()), (200, 1), "{}", answer.text());
    assert_eq!(seen[0].one("impersonate-user"), "alice");
    assert_eq!(seen[0].one("impersonate-group"), "tekton:dev");
    assert_eq!(seen[0].one("authorization"), "Bearer upstream-token");
}

/// attacks:Z2: an audience that every application of a provider may have, in the form of Okta's tokens.
#[tokio::test]
async fn a_token_for_an_audience_that_others_share_is_taken_of_a_listed_client_alone() {
    let change = |yaml: String| {
        yaml.replacen(
            "    audiences: ['https://doorward.test']\n",
            "    audiences: ['https://doorward.test', 'api://default']\n    token_types: ['', at+jwt]\n    clients: [{id: tests, kind: human}]\n",
            1,
        )
    };
    let fixture = Fixture::with(change, |_| Reply::json(200, "{}")).await;
    for (application, status) in [("another", 401), ("tests", 200)] {
        let mut claims = fixture.a.claims("alice", &["dev"]);
        claims["aud"] = json!("api://default");
        claims["cid"] = json!(application);
        claims.as_object_mut().unwrap().remove("client_id");
        let token = fixture.a.sign_with(&json!({"alg": "ES256", "kid": "key-1"}), &claims);
        let (answer, seen) = fixture.api(PATH, &[&bearer(&token)]).await;
        assert_eq!((answer.status, seen.len()), (status, usize::from(status == 200)), "attacks:Z2 {}", answer.text());
    }
}

/// oauth:27: an issuer's answer is cached for its time and no longer.
#[tokio::test]
async fn a_token_that_its_issuer_ends_is_refused_once_the_answer_of_before_is_old() {
    let fixture = Fixture::start().await;
    let mut answer = fixture.a.claims("alice", &["dev"]);
    for (active, status) in [(true, 200), (false, 401)] {
        answer["active"] = json!(active);
        fixture.a.opaque("ended", answer.clone());
        until(async || fixture.api(PATH, &[&bearer("ended")]).await.0.status == status).await;
    }
    let (answer, seen) = fixture.api(PATH, &[&bearer("ended")]).await;
    assert_eq!((answer.status, seen.len()), (401, 0), "oauth:27: {}", answer.text());
    // The counterpart has not ended.
    fixture.a.opaque("good", {
        let mut answer = fixture.a.claims("alice", &["dev"]);
        answer["active"] = json!(true);
        answer
    });
    assert_eq!(fixture.api(PATH, &[&bearer("good")]).await.0.status, 200, "oauth:27: the twin");
}

#[tokio::test]
async fn an_identity_that_kubernetes_would_misread_is_403() {
    let fixture = Fixture::start().await;
    for (row, subject) in [
        ("kubernetes:S1", "system:admin"),
        ("oauth:18", "system:masters"),
        ("kubernetes:E1", " "),
        ("oauth:18", "alice\n"),
    ] {
        let (answer, seen) = fixture.api(PATH, &[&bearer(&fixture.a.token(subject, &["dev"]))]).await;
        assert!(matches!(answer.status, 401 | 403), "{row}: {}", answer.text());
        assert!(seen.is_empty(), "{row}");
    }
    let (answer, seen) = fixture.api(PATH, &[&bearer(&fixture.a.token("alice", &["dev", "system:masters"]))]).await;
    assert_eq!((answer.status, seen.len()), (403, 0), "kubernetes:S1: {}", answer.text());
    // The counterpart: a group that everybody has, which no grant maps and which so is not forwarded.
    let (answer, seen) =
        fixture.api(PATH, &[&bearer(&fixture.a.token("alice", &["dev", "system:authenticated"]))]).await;
    assert_eq!(answer.status, 200, "kubernetes:S2: {}", answer.text());
    assert_eq!(seen[0].all("impersonate-group"), ["tekton:dev"]);
}

#[tokio::test]
async fn statements_of_an_issuer_count_for_that_issuer_only() {
    let fixture = Fixture::start().await;
    // The same group and subject from another issuer.
    let (answer, seen) = fixture.api(PATH, &[&bearer(&fixture.b.token("alice", &["dev"]))]).await;
    assert_eq!((answer.status, seen.len()), (403, 0), "attacks:Z1 peers:D9: {}", answer.text());
    // A route that accepts no token of the issuer.
    let token = bearer(&fixture.b.token("bob", &["dev"]));
    assert_eq!(fixture.doorward.get(PATH, &["Host: api.test", &token]).await.status, 403);
    assert_eq!(fixture.doorward.get(PATH, &["Host: a.test", &token]).await.status, 401);
    assert_eq!(fixture.doorward.get(PATH, &["Host: a.test", &fixture.alice()]).await.status, 200);
}

/// attacks:Z33: that one route accepted a token means nothing for another, whose audience it may lack.
#[tokio::test]
async fn a_token_that_one_route_has_taken_is_refused_by_one_of_another_audience() {
    const OTHER: &str = "https://other.test";
    let change = |yaml: String| {
        yaml.change_first(&format!("['{AUDIENCE}']"), &format!("['{AUDIENCE}', '{OTHER}']"))
            .change(
                "issuers: [a], upstream: cluster}\n",
                &format!(
                    "issuers: [a], audiences: ['{AUDIENCE}'], upstream: cluster}}\n  - {{name: other, kind: kubernetes, \
                     hosts: [other.test], schemes: [bearer], issuers: [a], audiences: ['{OTHER}'], upstream: cluster}}\n"
                ),
            )
            .change("routes: [api, only-a, board, web]", "routes: [api, only-a, other, board, web]")
    };
    let fixture = Fixture::with(change, streaming).await;
    for (audience, taken) in [
        (json!(AUDIENCE), [true, false, true]),
        (json!(OTHER), [false, true, false]),
        (json!([AUDIENCE, OTHER]), [true, true, true]),
    ] {
        let mut claims = fixture.a.claims("alice", &["dev"]);
        claims["aud"] = audience.clone();
        let signed = bearer(&fixture.a.sign(&claims));
        claims["active"] = json!(true);
        let (opaque, among) = (unique(), unique());
        for token in [&opaque, &among] {
            fixture.a.opaque(token, claims.clone());
        }
        let opaque = bearer(&opaque);
        let protocols = format!(
            "Sec-WebSocket-Protocol: base64url.bearer.authorization.k8s.io.{}, v5.channel.k8s.io",
            BASE64URL.encode(&among)
        );
        for (path, lines, good) in [
            (PATH, vec![&*signed], 200),
            (PATH, vec![&*opaque], 200),
            (EXEC, [&[&*protocols], &HANDSHAKE[..]].concat(), 101),
        ] {
            for (host, is_taken) in ["Host: a.test", "Host: other.test", "Host: a.test"].into_iter().zip(taken) {
                let _ = fixture.upstream.take();
                let answer = fixture.doorward.get(path, &[&[host], &lines[..]].concat()).await;
                let (expected, reached) = if is_taken { (good, 1) } else { (401, 0) };
                let came = (answer.status, fixture.upstream.take().len());
                assert_eq!(came, (expected, reached), "attacks:Z33 {path} {host} {audience}: {}", answer.text());
                assert!(is_taken || answer.reason() == "audience_mismatch", "attacks:Z33: {}", answer.text());
            }
        }
    }
}

#[tokio::test]
async fn unknown_keys_make_a_bounded_number_of_fetches() {
    let fixture = Fixture::start().await;
    let before = fixture.a.key_fetches();
    for number in 0..100 {
        let header = json!({"alg": "ES256", "typ": "at+jwt", "kid": format!("unknown-{number}")});
        let token = fixture.a.sign_with(&header, &fixture.a.claims("alice", &["dev"]));
        let (answer, seen) = fixture.api(PATH, &[&bearer(&token)]).await;
        assert_eq!((answer.status, seen.len()), (401, 0), "peers:D7");
    }
    assert!(fixture.a.key_fetches() - before <= 1, "{} fetches", fixture.a.key_fetches() - before);
    // oauth:6: made-up ids create no series.
    let metrics = fixture.doorward.metrics().await;
    let series: Vec<&str> =
        metrics.lines().filter(|line| line.starts_with("doorward_issuer_unknown_kids_total")).collect();
    // One for each issuer.
    assert!(series.len() <= 2 && series.iter().any(|line| line.contains("issuer=\"a\"")), "oauth:6: {series:?}");
    assert!(!metrics.contains("unknown-"), "oauth:6: {metrics}");
    fixture.doorward.stays_below(90, "peers:D7 keys that nobody has");
}

#[tokio::test]
async fn a_new_key_is_fetched_for_its_first_token_and_the_old_one_dies() {
    let fixture = Fixture::start().await;
    let old = bearer(&fixture.a.token("alice", &["dev"]));
    assert_eq!(fixture.api(PATH, &[&old]).await.0.status, 200);
    fixture.a.rotate("key-2");
    let (answer, _) = fixture.api(PATH, &[&bearer(&fixture.a.token("alice", &["dev"]))]).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(fixture.api(PATH, &[&old]).await.0.status, 401, "a key that left the set is dead, cached tokens too");
}

#[tokio::test]
async fn a_clock_of_an_issuer_that_is_off_is_forgiven_for_half_a_minute() {
    let fixture = Fixture::start().await;
    // Seconds, with room on both sides of the tolerance of 30 s for the duration of a request.
    for (ahead, status, why) in
        [(20, 200, ""), (120, 401, "token_not_yet_valid"), (-610, 200, ""), (-700, 401, "token_expired"), (0, 200, "")]
    {
        fixture.a.set_clock_ahead(ahead);
        let (answer, seen) = fixture.api(PATH, &[&fixture.alice()]).await;
        assert_eq!((answer.status, seen.len()), (status, usize::from(status == 200)), "{ahead}: {}", answer.text());
        assert!(answer.text().contains(why), "{ahead}: {}", answer.text());
    }
}

#[tokio::test]
async fn a_misbehaving_issuer_blocks_nobody_else_costs_no_memory_and_can_recover() {
    // An issuer that does not answer is waited for.
    let others = async {
        for fault in [Fault::Garbage, Fault::Huge, Fault::Error, Fault::Redirect, Fault::Empty, Fault::OtherIssuer] {
            misbehaves_from_the_start(fault).await;
        }
    };
    tokio::join!(misbehaves_from_the_start(Fault::Hang), others);
}

async fn misbehaves_from_the_start(fault: Fault) {
    let (a, b) = (Issuer::start().await, Issuer::start().await);
    b.set_fault(fault);
    let upstream = Upstream::start().await;
    let dir = folder_with(&[("token", "upstream-token")]);
    let yaml = format!(
        "
listeners: [{{name: public, address: 127.0.0.1:0}}]
issuers:
  - {{name: a, issuer: '{}', audiences: ['https://doorward.test'], username: 'a:{{sub}}', kind: human}}
  - {{name: b, issuer: '{}', audiences: ['https://doorward.test'], username: 'b:{{sub}}', kind: human}}
upstreams: [{{name: cluster, url: '{}', credential: {{bearer: {{file: token}}}}}}]
routes: [{{name: api, kind: kubernetes, hosts: [tekton.test], schemes: [bearer], upstream: cluster}}]
rules: [{{id: dev, who: {{issuers: [a, b], groups: [dev]}}, do: allow}}]
store: {{path: doorward.redb}}
audit: {{sink: {{file: {{path: audit.jsonl}}}}}}
admin: {{address: 127.0.0.1:0}}
limits: {{drain_accept: 0}}
",
        a.url(),
        b.url(),
        upstream.url()
    );
    let doorward = Doorward::start_in(dir, &yaml).await;
    doorward.wait_for_keys(&a).await;
    assert_eq!(doorward.get(PATH, &[&bearer(&a.token("alice", &["dev"]))]).await.status, 200, "{fault:?}");
    let refused = doorward.get(PATH, &[&bearer(&b.token("alice", &["dev"]))]).await;
    assert_eq!(refused.status, 503, "{fault:?}: our trouble, not the caller's");
    assert!(refused.header("retry-after").is_some());
    // Components report their state soon after the start.
    until(async || {
        let ready = doorward.admin("/readyz").await;
        ready.status == 200 && ready.text().contains("issuer/b")
    })
    .await;
    doorward.stays_below(90, "an issuer that misbehaves");
    // The counterpart: the issuer recovers, without any restart.
    b.set_fault(Fault::None);
    until(async || doorward.get(PATH, &[&bearer(&b.token("alice", &["dev"]))]).await.status == 200).await;
}

/// A valid set is not replaced by an invalid response, and one that is too old is Doorward's problem, not the caller's.
#[tokio::test]
async fn fetched_keys_outlive_an_outage_of_their_issuer_until_they_are_too_old() {
    let keys = |yaml: String| yaml.change("    kind: human\n", "    kind: human\n    keys: {max_stale: 2h}\n");
    let fixture = Fixture::with_faults(keys, |_| Reply::json(200, "{}")).await;
    let mut ahead = 0;
    let mut wait = |seconds: u64| {
        ahead += seconds;
        fixture.doorward.set_clock_ahead(ahead);
        for issuer in [&fixture.a, &fixture.b] {
            issuer.set_clock_ahead(i64::try_from(ahead).unwrap());
        }
    };
    let of_b = || bearer(&fixture.b.token("bob", &["dev"]));
    for fault in [Fault::Garbage, Fault::Error, Fault::Redirect, Fault::Empty] {
        fixture.a.set_fault(fault);
        // A set whose response stated no lifetime is stale after ten minutes.
        wait(600);
        let answer = settled(async || fixture.api(PATH, &[&fixture.alice()]).await.0).await;
        assert_eq!(answer.status, 200, "{fault:?}: {}", answer.text());
        fixture.doorward.until_readyz_says("issuer/a degraded").await;
        assert_eq!(fixture.api(PATH, &[&fixture.alice()]).await.0.status, 200, "{fault:?}");
        wait(7200);
        let answer = found(async || {
            let answer = fixture.api(PATH, &[&fixture.alice()]).await.0;
            (answer.status != 200 && answer.reason() != "store_unavailable").then_some(answer)
        })
        .await;
        assert_eq!((answer.status, answer.reason().as_str()), (503, "issuer_unavailable"), "{fault:?}");
        assert!(answer.header("retry-after").is_some(), "{fault:?}: {}", answer.head);
        assert_eq!(fixture.api(PATH, &[&of_b()]).await.0.status, 403, "{fault:?}: another issuer's");
        fixture.a.set_fault(Fault::None);
        wait(60);
        until(async || fixture.api(PATH, &[&fixture.alice()]).await.0.status == 200).await;
    }
}

/// An issuer may replace a key and keep its id.
#[tokio::test]
async fn another_key_of_the_same_name_counts_after_the_refresh_and_the_old_one_no_longer() {
    let fixture = Fixture::with_faults(|yaml| yaml, |_| Reply::json(200, "{}")).await;
    for issuer in [&fixture.a, &fixture.b] {
        issuer.set_lifetime(3600);
    }
    let (old, of_b) = (fixture.alice(), bearer(&fixture.b.token("bob", &["dev"])));
    let ask = async |token: &str| settled(async || fixture.api(PATH, &[token]).await.0).await.status;
    assert_eq!((ask(&old).await, ask(&of_b).await), (200, 403));
    fixture.a.rotate("key-1");
    let (new, fetches) = (fixture.alice(), fixture.a.key_fetches());
    for _ in 0..20 {
        assert_eq!((ask(&old).await, ask(&new).await), (200, 401), "until the set is fetched anew");
        assert_eq!(ask(&fixture.alice()).await, 401, "whichever token");
    }
    assert_eq!(fixture.a.key_fetches(), fetches, "a signature that is not good has nothing fetched");
    fixture.doorward.set_clock_ahead(600);
    until(async || ask(&new).await == 200).await;
    let fetches = fixture.a.key_fetches();
    for _ in 0..20 {
        let (answer, seen) = fixture.api(PATH, &[&old]).await;
        assert_eq!((answer.status, seen.len()), (401, 0), "what was verified before is dead too: {}", answer.text());
    }
    assert_eq!((ask(&new).await, ask(&of_b).await), (200, 403));
    assert!(fixture.a.key_fetches() <= fetches + 1, "a key that is lost is looked for once more");
}

#[tokio::test]
async fn opaque_tokens_are_asked_about_once_and_answers_are_read_strictly() {
    let fixture = Fixture::start().await;
    let now = now();
    let good = json!({"active": true, "sub": "alice", "client_id": "tests", "aud": "https://doorward.test",
        "iss": fixture.a.url(), "exp": now + 600, "groups": ["dev"], "scope": "x"});
    let with = |name: &str, value: Value| {
        let mut answer = good.clone();
        answer[name] = value;
        answer
    };
    // An invalid response is Doorward's problem, not the caller's.
    for (what, answer, status) in [
        ("inactive", json!({"active": false}), 401),
        ("active as text", with("active", json!("true")), 503),
        ("no active", json!({"sub": "alice"}), 503),
        ("another audience", with("aud", json!("https://other.test")), 401),
        ("expired", with("exp", json!(now - 600)), 401),
        ("another issuer", with("iss", json!("https://other.test")), 401),
        ("a refresh token", with("token_type", json!("refresh_token")), 401),
        ("bound to a key", with("cnf", json!({"jkt": "x"})), 401),
    ] {
        let token = unique();
        fixture.a.opaque(&token, answer);
        let (answer, seen) = fixture.api(PATH, &[&bearer(&token)]).await;
        assert_eq!(answer.status, status, "{what}: {}", answer.text());
        assert!(seen.is_empty(), "{what}");
    }
    let token = unique();
    fixture.a.opaque(&token, good.clone());
    let (before, begun) = (fixture.a.introspections(), Instant::now());
    for _ in 0..20 {
        assert_eq!(fixture.api(PATH, &[&bearer(&token)]).await.0.status, 200);
    }
    let (asked, seconds) = (fixture.a.introspections() - before, begun.elapsed().as_secs());
    assert!(asked as u64 <= 2 + seconds, "good answers are used for a second: {asked} in {seconds} s");
}

/// attacks:Z35: each of two issuers is asked about opaque tokens, but never about one sent to a route of the other.
#[tokio::test]
async fn an_opaque_token_is_shown_to_no_issuer_but_that_of_its_route() {
    let (a, b) = (Issuer::start().await, Issuer::start().await);
    let upstream = Upstream::scripted(streaming).await;
    let dir = tempfile::tempdir().unwrap();
    for name in ["token", "client"] {
        std::fs::write(dir.path().join(name), "a-secret-of-the-tests").unwrap();
    }
    let (mut issuers, mut routes) = (String::new(), String::new());
    for (name, issuer) in [("a", &a), ("b", &b)] {
        issuers.push_str(&format!(
            "  - {{name: {name}, issuer: '{}', audiences: ['{AUDIENCE}'], username: '{name}:{{sub}}', kind: human, \
             introspection: {{mode: opaque, cache: 1s, client: {{id: doorward, secret: {{file: client}}}}}}}}\n",
            issuer.url()
        ));
        routes.push_str(&format!(
            "  - {{name: {name}, kind: kubernetes, hosts: [{name}.test], schemes: [bearer], issuers: [{name}], upstream: cluster}}\n"
        ));
    }
    let yaml = format!(
        "
listeners: [{{name: public, address: 127.0.0.1:0}}]
issuers:
{issuers}
upstreams: [{{name: cluster, url: '{}', credential: {{bearer: {{file: token}}}}}}]
routes:
{routes}
rules: [{{id: dev, on: {{routes: [a, b]}}, who: {{issuers: [a, b], groups: [dev]}}, do: allow}}]
store: {{path: doorward.redb}}
audit: {{sink: {{file: {{path: audit.jsonl}}}}}}
admin: {{address: 127.0.0.1:0}}
limits: {{drain_accept: 0}}
",
        upstream.url()
    );
    let doorward = Doorward::start_in(dir, &yaml).await;
    doorward.wait_for_keys_at("a.test", &a).await;
    doorward.wait_for_keys_at("b.test", &b).await;
    let (at_a, at_b) = (("Host: a.test", &a), ("Host: b.test", &b));
    for ((own_host, own), (other_host, other)) in [(at_a, at_b), (at_b, at_a)] {
        for (path, reaches) in [(PATH, 1), ("/.doorward/whoami", 0), (EXEC, 1)] {
            let token = unique();
            own.opaque(
                &token,
                json!({"active": true, "sub": "alice", "iss": own.url(), "aud": AUDIENCE, "client_id": "tests",
                    "groups": ["dev"], "exp": now() + 600}),
            );
            let protocols = format!(
                "Sec-WebSocket-Protocol: base64url.bearer.authorization.k8s.io.{}, v5.channel.k8s.io",
                BASE64URL.encode(&token)
            );
            let header = bearer(&token);
            let (lines, good) = match path {
                EXEC => ([&[&*protocols], &HANDSHAKE[..]].concat(), 101),
                _ => (vec![&*header], 200),
            };
            let asked = || (own.introspections(), other.introspections());
            let (by_own, by_other) = asked();
            let _ = upstream.take();
            let answer = doorward.get(path, &[&[own_host], &lines[..]].concat()).await;
            assert_eq!((answer.status, upstream.take().len()), (good, reaches), "attacks:Z35 {path}: {}", answer.head);
            assert_eq!(asked(), (by_own + 1, by_other), "attacks:Z35 {path} at {own_host}");
            let answer = doorward.get(path, &[&[other_host], &lines[..]].concat()).await;
            assert_eq!((answer.status, upstream.take().len()), (401, 0), "attacks:Z35 {path}: {}", answer.head);
            assert_eq!(asked(), (by_own + 1, by_other + 1), "attacks:Z35 {path} at {other_host}");
        }
    }
}
