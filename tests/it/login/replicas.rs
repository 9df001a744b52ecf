//! Programs that sign in where there are two replicas on one Redis, and each step comes to the other one.

use base64::{Engine as _, prelude::BASE64_STANDARD};

use super::*;
use crate::harness::RedisServer;

/// One of the replicas, to which a balancer sends a request.
async fn replica(instance: &str, issuer: &Issuer, upstream: &Upstream, redis: &RedisServer) -> Doorward {
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in [("client", "client-secret".to_owned()), ("key", BASE64_STANDARD.encode([7; 32]))] {
        fs::write(dir.path().join(name), text).unwrap();
    }
    let yaml = format!(
        "
listeners: [{{name: public, address: '127.0.0.1:0'}}]
issuers:
  - name: a
    issuer: '{issuer}'
    audiences: ['https://doorward.test']
    username: '{{sub}}'
    kind: human
    login: {{client: {{id: doorward, secret: {{file: client}}}}}}
upstreams:
  - {{name: web, url: '{upstream}'}}
routes:
  - {{name: web, kind: http, hosts: [localhost], schemes: [session], upstream: web}}
rules:
  - {{id: people, on: {{routes: [web]}}, who: {{users: [alice]}}, do: allow}}
sessions: {{keys: [{{file: key}}]}}
store: {{path: doorward.redb, redis: {{server: '{redis}'}}}}
audit: {{instance: {instance}, sink: {{file: {{path: audit.jsonl}}}}}}
admin: {{address: 127.0.0.1:0, socket: operator.sock}}
limits: {{drain_accept: 0}}
",
        issuer = issuer.url(),
        upstream = upstream.url(),
        redis = redis.address(),
    );
    let doorward = Doorward::start_in(dir, &yaml).await;
    doorward.until_people_can_sign_in("localhost").await;
    doorward
}

const HOST: &str = "Host: localhost:8080";
const ORIGIN: &str = "Origin: http://localhost:8080";
const FORM: &str = "Content-Type: application/x-www-form-urlencoded";

async fn submit(at: &Doorward, path: &str, more: &[&str], form: &str) -> Answer {
    let line = format!("POST {path} HTTP/1.1");
    at.send(&[&[line.as_str(), HOST, FORM], more].concat(), form.as_bytes()).await
}

async fn poll(at: &Doorward, code: &str) -> Answer {
    let form =
        format!("grant_type=urn:ietf:params:oauth:grant-type:device_code&device_code={code}&code_verifier={VERIFIER}");
    within(async {
        loop {
            let answer = submit(at, "/.doorward/login/token", &[], &form).await;
            if answer.status == 200 || answer.json()["error"] != "slow_down" {
                return answer;
            }
            tokio::task::yield_now().await;
        }
    })
    .await
}

#[tokio::test]
async fn a_program_signs_in_whichever_replica_each_step_comes_to() {
    let (issuer, upstream) = (Issuer::start().await, Upstream::start().await);
    let redis = RedisServer::start(&[]);
    let here = replica("here", &issuer, &upstream, &redis).await;
    let there = replica("there", &issuer, &upstream, &redis).await;
    let status = async |at: &Doorward, handle: &str| {
        at.get("/page", &[HOST, &format!("Authorization: Bearer {handle}")]).await.status
    };
    let handle_of = |answer: &Answer| {
        assert_eq!(answer.status, 200, "{}", answer.text());
        answer.json()["access_token"].as_str().unwrap().to_owned()
    };
    // It asks here; the person types the code there, and comes back from the provider here.
    let begin = async || {
        let form = format!("code_challenge={CHALLENGE}&machine=build-7");
        let told = submit(&here, "/.doorward/login/device", &[], &form).await.json();
        (told["device_code"].as_str().unwrap().to_owned(), format!("code={}", told["user_code"].as_str().unwrap()))
    };
    let let_in = async |typed: &str| {
        let away = submit(&there, "/.doorward/device?issuer=a", &[ORIGIN], typed).await;
        let location = away.header("location").unwrap_or_else(|| panic!("{}", away.text())).to_owned();
        let back = come_back(&here, &[HOST, "Accept: text/html"], &away, &location).await;
        assert!(back.header("location").unwrap().starts_with("/.doorward/device/done?of="), "{}", back.head);
        let told = there.get(back.header("location").unwrap(), &[HOST]).await.text();
        assert!(told.contains("build-7") && told.contains("alice"), "{told}");
    };
    let (code, typed) = begin().await;
    assert_eq!(submit(&there, "/.doorward/device", &[ORIGIN], &typed).await.status, 200);
    assert_eq!(poll(&there, &code).await.json()["error"], "authorization_pending");
    let_in(&typed).await;
    let handle = handle_of(&poll(&here, &code).await);
    assert_eq!((status(&here, &handle).await, status(&there, &handle).await), (200, 200));
    // Brought again at the other one, it ends at both.
    assert_eq!(poll(&there, &code).await.json()["error"], "invalid_grant");
    assert_eq!(status(&there, &handle).await, 401);
    within(async { while status(&here, &handle).await != 401 {} }).await;

    // Declined at one, and ended by an operator of one, it is so for the other.
    let (code, typed) = begin().await;
    let_in(&typed).await;
    assert_eq!(submit(&there, "/.doorward/device?decline", &[ORIGIN], &typed).await.status, 200);
    assert_eq!(poll(&here, &code).await.json()["error"], "access_denied");
    let (code, typed) = begin().await;
    let_in(&typed).await;
    let person = ["sessions", "end", "--issuer", "a", "--subject", "alice", "--why", "laptop lost"];
    let (done, said) = there.operator(&person).await;
    assert_eq!(done, Some(0), "{said}");
    let told = poll(&here, &code).await;
    assert_eq!(told.json()["error"], "access_denied", "{}", told.text());

    // By the loopback: asked here, allowed there, brought here.
    let asked = page(&[]);
    assert_eq!(here.get(&asked, &[HOST]).await.status, 200);
    let away = submit(&there, &format!("{asked}&issuer=a"), &[ORIGIN], "").await;
    let location = away.header("location").unwrap_or_else(|| panic!("{}", away.text())).to_owned();
    let back = come_back(&there, &[HOST, "Accept: text/html"], &away, &location).await;
    let code = back.header("location").unwrap().strip_prefix("http://127.0.0.1:7000/?code=").unwrap().to_owned();
    let code = code.strip_suffix(&format!("&state={STATE}")).unwrap();
    let form = format!("grant_type=authorization_code&code={code}&code_verifier={VERIFIER}");
    let handle = handle_of(&submit(&here, "/.doorward/login/token", &[], &form).await);
    assert_eq!((status(&here, &handle).await, status(&there, &handle).await), (200, 200));
}
