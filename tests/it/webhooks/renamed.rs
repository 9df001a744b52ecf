//! Configuration entries that are renamed, and what is stored under the old name.

use std::net::SocketAddr;

use super::hold::{configuration, deliver_to, held};
use crate::{
    fixture::{Change, WEBHOOK_SECRET},
    harness::{Doorward, Push, Reply, Upstream, folder_with, free_port, replace_file, unique, until},
};

/// A Doorward that holds GitHub's deliveries, with a rule that names no route.
async fn holding(address: SocketAddr) -> Doorward {
    let dir = folder_with(&[("secret", WEBHOOK_SECRET)]);
    Doorward::start_in(
        dir,
        &configuration(address, "store: {path: doorward.redb}").change("routes: [hooks]", "event: [push]"),
    )
    .await
}

fn body(repository: u32) -> String {
    Push::body().replace("1234", &repository.to_string())
}

/// Renames everything called `former` to `name`.
pub(super) fn rename(doorward: &Doorward, former: &str, name: &str) {
    let path = doorward.dir().join("doorward.yaml");
    let renamed = std::fs::read_to_string(&path).unwrap().replace(former, name);
    replace_file(&path, &renamed);
}

/// Regression: such a delivery was retried without success for a day, and new deliveries of its repository waited
/// behind it.
#[tokio::test]
async fn held_deliveries_use_the_route_of_their_sender_even_after_it_was_renamed() {
    let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let mut doorward = holding(address).await;
    let (before, after) = (unique(), unique());
    assert_eq!(deliver_to(&doorward, &before, &body(1)).await.status, 202);
    rename(&doorward, "name: hooks,", "name: renamed,");
    doorward.wait_for_generation(2).await;
    assert_eq!(deliver_to(&doorward, &after, &body(1)).await.status, 202);
    let upstream = Upstream::scripted_at(address, |_| Reply::json(202, "{}")).await;
    until(async || upstream.requests().len() == 2).await;
    let ids: Vec<String> =
        upstream.requests().iter().map(|request| request.one("x-github-delivery").to_owned()).collect();
    assert_eq!(ids, [before, after]);
    until(async || held(&doorward).await.is_empty()).await;
}

#[tokio::test]
async fn held_deliveries_of_a_renamed_sender_are_reported_at_a_reload_and_at_the_start() {
    const SAID: &str = "held deliveries cannot be delivered";
    let mut doorward = holding(SocketAddr::from(([127, 0, 0, 1], free_port()))).await;
    assert_eq!(deliver_to(&doorward, &unique(), &body(1)).await.status, 202);
    rename(&doorward, "github", "forge");
    rename(&doorward, "sender: forge", "sender: github");
    doorward.wait_for_generation(2).await;
    let line = doorward.wait_for_log_containing(SAID).await;
    assert_eq!((&line["level"], &line["webhook"], &line["waiting"]), (&"WARN".into(), &"github".into(), &1.into()));
    let mut doorward = doorward.kill_and_restart().await;
    doorward.wait_for_log_containing(SAID).await;
}

#[tokio::test]
async fn revocations_of_a_renamed_sender_are_reported_at_a_reload_and_at_the_start() {
    const SAID: &str = "revocations have no effect";
    let mut doorward = holding(SocketAddr::from(([127, 0, 0, 1], free_port()))).await;
    let revoke = ["revoke", "--issuer", "webhook:github", "--subject", "webhook:github:repo:1", "--why", "test"];
    let (code, said) = doorward.operator(&revoke).await;
    assert_eq!(code, Some(0), "{said}");
    rename(&doorward, "github", "forge");
    rename(&doorward, "sender: forge", "sender: github");
    doorward.wait_for_generation(2).await;
    let line = doorward.wait_for_log_containing(SAID).await;
    assert_eq!(
        (&line["level"], &line["issuer"], &line["count"]),
        (&"ERROR".into(), &"webhook:github".into(), &1.into())
    );
    let mut doorward = doorward.kill_and_restart().await;
    doorward.wait_for_log_containing(SAID).await;
    // Under the old name it can be lifted, but nothing else can be revoked.
    let (code, said) = doorward.operator(&[&revoke[..], &["--for", "1s"][..]].concat()).await;
    assert_eq!(code, Some(0), "{said}");
    let other = ["revoke", "--issuer", "webhook:github", "--subject", "webhook:github:repo:2", "--why", "test"];
    let (code, said) = doorward.operator(&other).await;
    assert_ne!(code, Some(0), "{said}");
}
