//! Revoking by an operator: at once, everywhere, across a restart, and on the record.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::{
    fixture::{Fixture, bearer},
    harness::{
        Doorward, found,
        streams::{Streams, streaming},
        until,
    },
};

const PATH: &str = "/apis/tekton.dev/v1/namespaces/ci/taskruns";

#[tokio::test]
async fn a_revoked_token_is_out_at_once_with_its_streams_and_stays_out() {
    let fixture = Fixture::answering(streaming).await;
    let mut claims = fixture.a.claims("alice", &["dev"]);
    claims["jti"] = "jti-of-the-leaked-token".into();
    let (leaked, other) = (bearer(&fixture.a.sign(&claims)), fixture.alice());
    // Issuer B gives the same id to a token of its own, which has nothing to do with it.
    let mut namesake = fixture.b.claims("bea", &["dev"]);
    namesake["jti"] = claims["jti"].clone();
    let namesake = bearer(&fixture.b.sign(&namesake));
    let get = async |token: &str| fixture.doorward.get(PATH, &["Host: api.test", token]).await;
    assert_eq!((get(&leaked).await.status, get(&other).await.status, get(&namesake).await.status), (200, 200, 403));
    let streams = Streams::open(&fixture.doorward, &["Host: api.test", &leaked]).await;
    let mut twin = Streams::open(&fixture.doorward, &["Host: api.test", &other]).await;

    let revoke = ["revoke", "--issuer", "a", "--token-id", "jti-of-the-leaked-token", "--why", "it was in a build log"];
    let (code, said) = fixture.doorward.operator(&revoke).await;
    let revoked = Instant::now();
    assert_eq!(code, Some(0), "{said}");
    let said: Value = serde_json::from_str(&said).unwrap();
    assert_eq!((&said["issuer"], &said["token_id"]), (&"a".into(), &"jti-of-the-leaked-token".into()));
    assert_eq!(said["streams_ended"], 6, "{said}");
    assert!(said["then"].as_str().unwrap().contains("good again from `until` on"), "{said}");
    let line = found(async || fixture.doorward.log().into_iter().find(|line| line["message"] == "revoked")).await;
    assert_eq!((&line["token_id"], &line["target"]), (&said["token_id"], &"doorward::app::revoke".into()), "{line}");
    let refused = get(&leaked).await;
    assert_eq!((refused.status, refused.reason().as_str()), (401, "token_revoked"), "{}", refused.text());
    assert!(refused.header("www-authenticate").unwrap().contains("invalid_token"), "{}", refused.head);
    streams.have_ended(1008, "revoked").await;
    assert!(revoked.elapsed() < Duration::from_secs(2), "{:?}", revoked.elapsed());
    twin.are_open().await;
    assert_eq!((get(&other).await.status, get(&namesake).await.status), (200, 403));

    // On every route, not only where it was seen.
    for host in ["a.test", "web.test", "board.test"] {
        let host = format!("Host: {host}");
        assert_eq!(fixture.doorward.get(PATH, &[&host, &leaked]).await.status, 401, "{host}");
        assert_eq!(fixture.doorward.get(PATH, &[&host, &other]).await.status, 200, "{host}");
    }
    let record = fixture.doorward.audit().into_iter().rfind(|record| record["metadata"]["event_code"] == "operator");
    let record = record.unwrap().to_string();
    for part in ["olga", "it was in a build log", "revoke", "jti-of-the-leaked-token"] {
        assert!(record.contains(part), "{part} in {record}");
    }

    let Fixture { doorward, a, .. } = fixture;
    let doorward = doorward.kill_and_restart().await;
    doorward.wait_for_keys_at("api.test", &a).await;
    assert_eq!(doorward.get(PATH, &["Host: api.test", &leaked]).await.status, 401);
    assert_eq!(doorward.get(PATH, &["Host: api.test", &other]).await.status, 200);
    let (code, said) = doorward.operator(&["revocations", "--why", "to see"]).await;
    assert_eq!(code, Some(0), "{said}");
    let said: Value = serde_json::from_str(&said).unwrap();
    let listed = &said["revocations"][0];
    assert_eq!((&listed["token_id"], &listed["why"]), (&claims["jti"], &"it was in a build log".into()), "{said}");
    assert_eq!(said["revocations"].as_array().unwrap().len(), 1, "{said}");
}

#[tokio::test]
async fn a_revoked_subject_loses_every_token_until_the_time_is_over() {
    let fixture = Fixture::answering(streaming).await;
    let (one, two) = (fixture.alice(), fixture.alice());
    let adam = bearer(&fixture.a.token("adam", &["dev"]));
    let get = async |token: &str| fixture.doorward.get(PATH, &["Host: api.test", token]).await.status;
    // The length of a revocation is read with the rest: this one is over soon.
    let revoke = ["revoke", "--issuer", fixture.a.url(), "--subject", "alice", "--for", "2s", "--why", "a drill"];
    let (code, said) = fixture.doorward.operator(&revoke).await;
    assert_eq!(code, Some(0), "{said}");
    assert_eq!((get(&one).await, get(&two).await, get(&adam).await), (401, 401, 200));
    assert_eq!(get(&fixture.alice()).await, 401, "a new token is no way around it");
    until(async || get(&one).await == 200).await;
}

/// They got in again, as revocations were kept under the name of the entry alone.
#[tokio::test]
async fn who_is_revoked_stays_out_when_the_entry_of_their_issuer_has_another_name() {
    let Fixture { mut doorward, a, upstream: _upstream, .. } = Fixture::answering(streaming).await;
    let (alice, adam) = (bearer(&a.token("alice", &["dev"])), bearer(&a.token("adam", &["dev"])));
    let revoke = ["revoke", "--issuer", "a", "--subject", "alice", "--why", "left"];
    let (code, said) = doorward.operator(&revoke).await;
    assert_eq!(code, Some(0), "{said}");
    let path = doorward.dir().join("doorward.yaml");
    let renamed = std::fs::read_to_string(&path).unwrap().replace("name: a\n", "name: sso\n").replace("[a]", "[sso]");
    std::fs::write(path.with_extension("draft"), renamed).unwrap();
    std::fs::rename(path.with_extension("draft"), path).unwrap();
    doorward.wait_for_generation(2).await;
    let get = async |doorward: &Doorward, token: &str| doorward.get(PATH, &["Host: api.test", token]).await.status;
    assert_eq!((get(&doorward, &alice).await, get(&doorward, &adam).await), (401, 200));
    let doorward = doorward.kill_and_restart().await;
    doorward.wait_for_keys_at("api.test", &a).await;
    assert_eq!((get(&doorward, &alice).await, get(&doorward, &adam).await), (401, 200), "after a restart");
}

#[tokio::test]
async fn a_revocation_that_would_do_nothing_is_refused() {
    let fixture = Fixture::answering(streaming).await;
    let cases: [(&[&str], i32, &str); 8] = [
        (&["--issuer", "corp", "--subject", "alice", "--why", "x"], 1, "no issuer `corp`"),
        (&["--issuer", "a", "--subject", "alice"], 64, "--why"),
        (&["--issuer", "a", "--subject", "alice", "--why", " "], 1, "`why` must be"),
        (&["--issuer", "a", "--subject", " ", "--why", "x"], 1, "`subject` must be"),
        (&["--issuer", "a", "--why", "x"], 64, "--subject"),
        (&["--issuer", "a", "--subject", "s", "--token-id", "t", "--why", "x"], 64, "cannot be used with"),
        (&["--issuer", "a", "--subject", "s", "--until", "2020-01-01T00:00:00Z", "--why", "x"], 1, "has passed"),
        (&["--issuer", "a", "--subject", "s", "--until", "tomorrow", "--why", "x"], 1, "not a time"),
    ];
    for (arguments, status, words) in cases {
        let (code, said) = fixture.doorward.operator(&[&["revoke"], arguments].concat()).await;
        assert_eq!(code, Some(status), "{arguments:?}: {said}");
        assert!(said.contains(words), "{arguments:?}: {said}");
    }
    assert_eq!(fixture.doorward.get(PATH, &["Host: api.test", &fixture.alice()]).await.status, 200);
    let refused = fixture.doorward.audit().into_iter().filter(|record| record.to_string().contains("no issuer `corp`"));
    assert_eq!(refused.count(), 1, "a command that did not happen is on the record too");
}
