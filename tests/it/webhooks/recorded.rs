//! Held deliveries in the audit trail: what is recorded before what.

use std::net::SocketAddr;

use serde_json::Value;

use super::{
    BODY,
    hold::{configuration, deliver_to, held, hooks},
};
use crate::{
    fixture::WEBHOOK_SECRET,
    harness::{Doorward, folder_with, free_port, unique, until},
};

/// A Doorward that holds deliveries to nobody.
async fn holding() -> Doorward {
    let nobody = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let dir = folder_with(&[("secret", WEBHOOK_SECRET)]);
    Doorward::start_with_faults(dir, &configuration(nobody, "store: {path: doorward.redb}")).await
}

/// Regression: its sender got 202, and if Doorward ended then, the delivery was sent on later without a record of its
/// arrival.
#[tokio::test]
async fn a_delivery_that_cannot_be_recorded_is_not_stored() {
    let doorward = holding().await;
    let id = unique();
    doorward.break_trail(true);
    // The first finds out that writing fails; the other is refused because of it.
    for _ in 0..2 {
        let refused = deliver_to(&doorward, &id, BODY).await;
        assert_eq!((refused.status, refused.reason().as_str()), (503, "audit_unavailable"), "{}", refused.text());
    }
    doorward.break_trail(false);
    // Commands need the trail too.
    until(async || hooks(&doorward, &["list"]).await.is_ok()).await;
    assert!(held(&doorward).await.is_empty(), "nothing was stored");
    assert_eq!(deliver_to(&doorward, &id, BODY).await.status, 202);
}

/// Regression: a kill lost the record of an arrival.
#[tokio::test]
async fn the_arrival_of_a_delivery_is_in_the_trail_when_its_sender_gets_its_answer() {
    let doorward = holding().await;
    let id = unique();
    assert_eq!(deliver_to(&doorward, &id, BODY).await.status, 202);
    let is_arrival = |record: &&Value| {
        record["metadata"]["event_code"] == "request.decided"
            && record["unmapped"]["webhook"]["delivery"] == id.as_str()
            && record["unmapped"]["held"].is_null()
    };
    assert_eq!(doorward.audit().iter().filter(is_arrival).count(), 1, "{:#?}", doorward.audit());
    let doorward = doorward.kill_and_restart().await;
    let (code, said) = doorward.trace("delivery", &id).await;
    assert!(code == Some(0) && said.contains("POST hooks.test/github\n"), "{said}");
}
