//! How long the task waits after a failure.

use super::*;
use crate::config::{raw, report::At, resolver::Resolver};

fn task(trail: &Written) -> Task {
    let (_backlog, export) = open(trail, limit(None, WhenBehind::Refuse));
    let clock = Clock::default();
    let component = Health::new(clock.clone()).component("export", Gate::Report);
    Task::new(export, clock, component)
}

/// Half of a single line cannot be sent, so the same call would be repeated in a loop.
#[test]
fn a_line_too_large_for_the_receiver_is_sent_again_only_after_a_long_pause() {
    let mut task = task(&Written::new(&[2]));
    for (count, waits) in [(2, false), (1, true)] {
        let batch = lines(&task, count, 100);
        let failure = task.refused(Refused::TooLarge(String::new()), &batch);
        assert_eq!(task.fail(failure).is_some_and(|pause| pause >= SLOW), waits, "{count} lines");
    }
}

/// A server that takes each connection and closes it would be connected to several times a second.
#[tokio::test]
async fn only_a_connection_that_stood_for_some_time_shortens_the_pause_again() {
    let mut task = task(&Written::new(&[2]));
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let raw = raw::SyslogExport { address: listener.local_addr().unwrap().to_string(), tls: None };
    let server = syslog::Server::resolve(&raw, &At::root(), &mut Resolver::default()).unwrap();
    let mut connections = Vec::new();
    for _ in 0..4 {
        connections.push(server.connect().await.unwrap());
    }
    tokio::time::pause();
    let steady = connections.pop().unwrap();
    let breaks = |task: &mut Task, connection: Connection| {
        task.connection = Some((connection, task.export.target()));
        task.fail(Failure::new("connection", ""));
    };
    for connection in connections {
        breaks(&mut task, connection);
    }
    assert_eq!(task.pause, FIRST_PAUSE * 8);
    advance(STEADY).await;
    breaks(&mut task, steady);
    assert_eq!(task.pause, FIRST_PAUSE * 2);
}
