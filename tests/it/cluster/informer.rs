//! An informer of client-go, as every controller has one. By default it reads all existing objects by a watch
//! (KEP-3157, `sendInitialEvents`), and hangs forever if the bookmark at their end gets lost.

use std::process::Stdio;

use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::Command,
};

use super::{programs, world::World};
use crate::harness::within;

#[tokio::test]
async fn attacks_z29_an_informer_that_lists_by_a_watch_syncs_and_gets_changes() {
    let world = World::start().await;
    for http1 in [false, true] {
        let kubectl = world.kubectl("alice");
        for name in ["a", "b", "c"] {
            kubectl.run(&["create", "configmap", name, "--from-literal=k=1"]).await;
        }
        let before = initial(&world);
        let ca = world.doorward.dir().join("ca.pem");
        let server = format!("https://localhost:{}", world.doorward.address("secure").port());
        let mut command = Command::new(programs::path("informer"));
        command.arg(&server).arg(&ca).arg(world.issuer.token("alice", &["dev"])).arg(&world.namespace);
        if http1 {
            command.env("DISABLE_HTTP2", "true");
        }
        let mut informer = command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true).spawn().unwrap();
        let mut said = BufReader::new(informer.stdout.take().unwrap()).lines();
        let mut next = async || within(said.next_line()).await.unwrap().unwrap_or_default();
        assert_eq!(next().await, "synced 3", "over HTTP/1.1: {http1}");
        kubectl.run(&["create", "configmap", "d"]).await;
        assert_eq!(next().await, "added d");
        kubectl.run(&["label", "configmap", "a", "team=x"]).await;
        assert_eq!(next().await, "changed a");
        kubectl.run(&["delete", "configmap", "a", "b", "c", "d"]).await;
        let mut gone = [next().await, next().await, next().await, next().await];
        gone.sort();
        assert_eq!(gone, ["deleted a", "deleted b", "deleted c", "deleted d"]);
        assert!(initial(&world) > before, "it read all by a list, so that nothing was shown");
    }
    world.assert_sent_as(&["alice"]).await;
}

/// How many watches asked for all existing objects.
fn initial(world: &World) -> usize {
    let asks = |event: &&serde_json::Value| {
        event["verb"] == "watch"
            && event["requestURI"].as_str().is_some_and(|uri| uri.contains("sendInitialEvents=true"))
    };
    world.audit().iter().filter(asks).count()
}
