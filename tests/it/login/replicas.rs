//! Programs that sign in where there are two replicas on one Redis, and each step comes to the other one.

use super::*;
use crate::{
    harness::RedisServer,
    login_world::{STORE, on_redis},
};

/// One of the replicas, to which a balancer sends a request.
async fn replica(issuer: &Issuer, redis: &RedisServer, instance: &str) -> LoginWorld {
    let store = on_redis(&format!("server: '{}'", redis.address()));
    let audit = format!("audit: {{instance: {instance}, ");
    let (upstream, dir) = (Upstream::start().await, tempfile::tempdir().unwrap());
    let mut replica = LoginWorld::at(issuer.url(), 0, upstream, dir, &[(STORE, &store), ("audit: {", &audit)]).await;
    // As a browser sees it, for which both are one.
    replica.host = "localhost:8080".to_owned();
    replica
}

const ORIGIN: &str = "Origin: http://localhost:8080";

#[tokio::test]
async fn a_program_signs_in_whichever_replica_each_step_comes_to() {
    let issuer = Issuer::start().await;
    let redis = RedisServer::start(&[]);
    let here = replica(&issuer, &redis, "here").await;
    let there = replica(&issuer, &redis, "there").await;
    let handle_of = |answer: &Answer| {
        assert_eq!(answer.status, 200, "{}", answer.text());
        answer.json()["access_token"].as_str().unwrap().to_owned()
    };
    // It asks here; the person types the code there, and comes back from the provider here.
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
    // Brought again at the other one, it ends at both.
    assert_eq!(there.poll(&code, VERIFIER).await.json()["error"], "invalid_grant");
    assert_eq!(there.status_of(&handle).await, 401);
    until(async || here.status_of(&handle).await == 401).await;

    // Declined at one, and ended by an operator of one, it is so for the other.
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

    // By the loopback: asked here, allowed there, brought here.
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
