//! Programs that sign in at two replicas on one Redis, where each step reaches the other replica.

use super::*;
use crate::{
    harness::RedisServer,
    login_fixture::{STORE, on_redis},
};

/// One of the replicas, to which a balancer sends requests.
async fn replica(issuer: &Issuer, redis: &RedisServer, instance: &str) -> LoginFixture {
    let store = on_redis(&format!("server: '{}'", redis.address()));
    let audit = format!("audit: {{instance: {instance}, ");
    let (upstream, dir) = (Upstream::start().await, tempfile::tempdir().unwrap());
    let mut replica = LoginFixture::at(issuer.url(), 0, upstream, dir, &[(STORE, &store), ("audit: {", &audit)]).await;
    // As a browser sees them: both are one host.
    replica.host = "localhost:8080".to_owned();
    replica
}

const ORIGIN: &str = "Origin: http://localhost:8080";

#[tokio::test]
async fn a_program_signs_in_whichever_replica_handles_each_step() {
    let issuer = Issuer::start().await;
    let redis = RedisServer::start(&[]);
    let here = replica(&issuer, &redis, "here").await;
    let there = replica(&issuer, &redis, "there").await;
    let handle_of = |answer: &Answer| {
        assert_eq!(answer.status, 200, "{}", answer.text());
        answer.json()["access_token"].as_str().unwrap().to_owned()
    };
    // The program asks at one replica; the person types the code at the other, and returns from the provider to the
    // first.
    let begin = async || {
        let form = format!("code_challenge={CHALLENGE}&machine=build-7");
        let told = here.submit("/.doorward/login/device", &[], &form).await.json();
        (told["device_code"].as_str().unwrap().to_owned(), format!("code={}", told["user_code"].as_str().unwrap()))
    };
    let let_in = async |typed: &str| {
        let away = there.submit("/.doorward/device?issuer=a", &[ORIGIN], typed).await;
        let back = here.come_back(&away).await;
        assert!(back.header("location").unwrap().starts_with("/.doorward/device/done?of="), "{}", back.head);
        let told = there.get(back.header("location").unwrap(), &[]).await.text();
        assert!(told.contains("build-7") && told.contains("alice"), "{told}");
    };
    let (code, typed) = begin().await;
    assert_eq!(there.submit("/.doorward/device", &[ORIGIN], &typed).await.status, 200);
    assert_eq!(there.poll(&code, VERIFIER).await.json()["error"], "authorization_pending");
    let_in(&typed).await;
    let handle = handle_of(&here.poll(&code, VERIFIER).await);
    assert_eq!((here.status_of(&handle).await, there.status_of(&handle).await), (200, 200));
    // Presented again at the other replica, it ends at both.
    assert_eq!(there.poll(&code, VERIFIER).await.json()["error"], "invalid_grant");
    assert_eq!(there.status_of(&handle).await, 401);
    until(async || here.status_of(&handle).await == 401).await;

    // A refusal at one replica, and an end by an operator at one, apply to both.
    let (code, typed) = begin().await;
    let_in(&typed).await;
    assert_eq!(there.submit("/.doorward/device?decline", &[ORIGIN], &typed).await.status, 200);
    assert_eq!(here.poll(&code, VERIFIER).await.json()["error"], "access_denied");
    let (code, typed) = begin().await;
    let_in(&typed).await;
    let (done, said) = there.sessions("end").await;
    assert_eq!(done, Some(0), "{said}");
    let told = here.poll(&code, VERIFIER).await;
    assert_eq!(told.json()["error"], "access_denied", "{}", told.text());

    // With the loopback flow: asked at one, confirmed at the other, presented at the first.
    let asked = page(&[]);
    assert_eq!(here.get(&asked, &[]).await.status, 200);
    let away = there.submit(&format!("{asked}&issuer=a"), &[ORIGIN], "").await;
    let back = there.come_back(&away).await;
    let code = back.header("location").unwrap().strip_prefix("http://127.0.0.1:7000/?code=").unwrap().to_owned();
    let code = code.strip_suffix(&format!("&state={STATE}")).unwrap();
    let form = format!("grant_type=authorization_code&code={code}&code_verifier={VERIFIER}");
    let handle = handle_of(&here.submit("/.doorward/login/token", &[], &form).await);
    assert_eq!((here.status_of(&handle).await, there.status_of(&handle).await), (200, 200));
}
