//! Callers that wait for room in the audit trail, and may have been revoked when there is some.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
};

use serde_json::json;
use tokio::sync::Notify;

use super::{World, introspected};
use crate::{
    fixture::{Change, bearer},
    harness::{Raw, Reply, Upstream, until},
};

/// Occupies places of a trail that has two, by requests whose upstream answers only when notified.
pub struct Holder {
    upstream: Upstream,
    /// One for each occupied place: a shared one would lose the second of two notifications.
    told: Arc<Mutex<VecDeque<Arc<Notify>>>>,
}

impl Holder {
    pub async fn start() -> Self {
        let told = Arc::<Mutex<VecDeque<Arc<Notify>>>>::default();
        let places = Arc::clone(&told);
        let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
        let upstream = Upstream::scripted(move |_| {
            let place = Arc::new(Notify::new());
            places.lock().unwrap().push_back(Arc::clone(&place));
            Reply::Later(place, answer.to_vec())
        })
        .await;
        Self { upstream, told }
    }

    /// The configuration of a [`World`] with such a trail, with this upstream for its route.
    pub fn change(&self, yaml: &str) -> String {
        let (before, rest) = yaml.split_once("web, url: '").unwrap();
        let (_, after) = rest.split_once('\'').unwrap();
        format!("{before}web, url: '{}'{after}", self.upstream.url()).change("audit: {", "audit: {queue: 2, ")
    }

    /// Occupies one place. An exchange needs two.
    pub async fn take(&mut self, world: &World) -> Raw {
        let carol = bearer(&world.person("carol", &json!({})));
        let before = self.upstream.requests().len();
        let mut raw = world.doorward.raw().await;
        raw.send(format!("GET / HTTP/1.1\r\nHost: localhost\r\n{carol}\r\n\r\n")).await;
        self.upstream.wait_for(before + 1).await;
        raw
    }

    /// Releases the place that was occupied first.
    pub fn give_back(&self) {
        self.told.lock().unwrap().pop_front().expect("a place is kept").notify_one();
    }
}

#[tokio::test]
async fn a_request_that_waits_for_the_trail_gets_no_token_if_revocations_become_stale() {
    let mut holder = Holder::start().await;
    let world = World::with(|yaml| holder.change(&yaml)).await;
    let job = world.job(&json!({}));
    let own = world.exchange(&job, "deploy").await.token();
    world.doorward.break_disk(true);
    // A write detects the broken disk, and nothing is read from then on.
    until(async || world.doorward.submit("/oauth2/revoke", &[], &format!("token={own}")).await.status == 503).await;
    for (ahead, status) in [(0, 200), (120, 503)] {
        let _held = holder.take(&world).await;
        let before = world.doorward.audit_waits().await;
        let meanwhile = async {
            until(async || world.doorward.audit_waits().await > before).await;
            world.doorward.set_clock_ahead(ahead);
            until(async || introspected(&world, "target", &own).await["active"].is_boolean() == (status == 200)).await;
            holder.give_back();
        };
        let (answer, ()) = tokio::join!(world.exchange(&job, "deploy"), meanwhile);
        assert_eq!(answer.status, status, "{ahead} s later: {}", answer.text());
        let is_unknown = answer.text().contains("whether the token was revoked");
        assert_eq!(is_unknown, status == 503, "{ahead} s later: {}", answer.text());
    }
}
