//! A sender that floods, beside one that does not. Deliveries of both are held.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use tokio::{task::JoinSet, time::interval};

use super::{BODY, hold::configuration};
use crate::{
    fixture::{Change, WEBHOOK_SECRET},
    harness::{Answer, Doorward, Push, Recorded, Reply, Upstream, folder_with, unique, until},
};

/// How many lanes of a sender are delivered concurrently.
const LANES: usize = 8;

const QUIET_SECRET: &str = "a secret of the quiet sender";

async fn doorward(upstream: &Upstream) -> Doorward {
    let dir = folder_with(&[("secret", WEBHOOK_SECRET), ("quiet", QUIET_SECRET)]);
    let yaml = configuration(upstream.address, "store: {path: doorward.redb}")
        // Far longer than the test: what hangs is not tried again.
        .change("{name: el, url:", "{name: el, response_timeout: 10m, url:")
        .change("webhooks:\n", "webhooks:\n  - {name: quiet, sender: github, secrets: [{secret: {file: quiet}}]}\n")
        .change(
            "routes:\n",
            "routes:\n  - {name: quiet, kind: webhook, hosts: [hooks.test], paths: [/quiet], schemes: [webhook], \
             webhook: quiet, upstream: el}\n",
        )
        .change("rules:\n", "rules:\n  - {id: quiet, on: {routes: [quiet]}, who: {webhooks: [quiet]}, do: allow}\n");
    Doorward::start_in(dir, &yaml).await
}

async fn send(doorward: &Doorward, path: &str, secret: &str, id: &str, repository: usize) -> Answer {
    let body = BODY.replace("\"0\"", &format!("\"{id}\"")).replace("1234", &repository.to_string());
    let mut push = Push::of(&body, id, secret);
    push.lines[0] = format!("POST {path} HTTP/1.1");
    push.send(doorward, &[]).await
}

fn is_quiet(request: &Recorded) -> bool {
    request.line().contains("/quiet")
}

#[tokio::test]
async fn a_flood_that_hangs_at_the_event_listener_does_not_delay_another_sender() {
    let script = |request: &Recorded| if is_quiet(request) { Reply::json(202, "{}") } else { Reply::Hang };
    let upstream = Upstream::scripted(script).await;
    let doorward = doorward(&upstream).await;
    for number in 0..100 {
        assert_eq!(send(&doorward, "/github", WEBHOOK_SECRET, &unique(), number % 50).await.status, 202);
        if number % 10 == 9 {
            let id = unique();
            assert_eq!(send(&doorward, "/quiet", QUIET_SECRET, &id, 1).await.status, 202);
            let arrived = |request: &Recorded| is_quiet(request) && request.one("x-github-delivery") == id;
            until(async || upstream.requests().iter().any(arrived)).await;
        }
    }
    let loud = upstream.requests().iter().filter(|request| !is_quiet(request)).count();
    assert!((1..=LANES).contains(&loud), "{loud} at once");
    doorward.stays_below(100, "a sender that floods");
}

/// Measures how long deliveries of the quiet sender take, one per second, while the other sends nothing and while it
/// sends 10,000 per minute.
#[tokio::test]
#[ignore = "it takes two minutes and measures: scripts/flood"]
async fn a_flood_of_ten_thousand_a_minute_is_measured() {
    const PERIOD: Duration = Duration::from_secs(60);
    let arrivals: Arc<Mutex<HashMap<String, Instant>>> = Arc::default();
    let log = arrivals.clone();
    let upstream = Upstream::scripted(move |request| {
        let id = request.one("x-github-delivery").to_owned();
        log.lock().unwrap().entry(id).or_insert_with(Instant::now);
        Reply::json(202, "{}")
    })
    .await;
    let doorward = Arc::new(doorward(&upstream).await);
    for (name, every) in [("alone", None), ("beside 10,000 a minute", Some(PERIOD / 10_000))] {
        let loud = tokio::spawn({
            let doorward = doorward.clone();
            async move {
                let (Some(every), mut sends) = (every, JoinSet::new()) else { return 0 };
                let mut ticks = interval(every);
                for number in 0..10_000 {
                    ticks.tick().await;
                    let doorward = doorward.clone();
                    sends.spawn(async move {
                        send(&doorward, "/github", WEBHOOK_SECRET, &unique(), number % 50).await.status
                    });
                }
                sends.join_all().await.into_iter().filter(|status| *status == 202).count()
            }
        });
        let mut sent = Vec::new();
        let mut ticks = interval(Duration::from_secs(1));
        for _ in 0..PERIOD.as_secs() {
            ticks.tick().await;
            let (id, at) = (unique(), Instant::now());
            assert_eq!(send(&doorward, "/quiet", QUIET_SECRET, &id, 1).await.status, 202);
            sent.push((id, at));
        }
        let taken = loud.await.unwrap();
        let arrived = |id: &str| arrivals.lock().unwrap().get(id).copied();
        until(async || sent.iter().all(|(id, _)| arrived(id).is_some())).await;
        let mut delays: Vec<Duration> = sent.iter().map(|(id, at)| arrived(id).unwrap() - *at).collect();
        delays.sort_unstable();
        let median = delays[delays.len() / 2];
        println!("{name} ({taken} taken): median {median:?}, slowest {:?}", delays[delays.len() - 1]);
        assert!(median < Duration::from_millis(500), "{name}: {median:?}");
    }
}
