use super::*;
use crate::config::values::{Size, Span};

fn short() -> Limits {
    Limits {
        header_timeout: Span::from_millis(200),
        idle_timeout: Span::from_millis(400),
        stream_idle_timeout: Span::from_millis(300),
        handshake_timeout: Span::from_millis(200),
        ..Limits::default()
    }
}

#[test]
fn a_head_that_drips_is_cut_off() {
    let server = Server::with_limits(&short());
    let mut client = server.connect();
    let start = Instant::now();
    client.send("GET / HTTP/1.1\r\nHost: a\r\nX: ");
    while client.0.write_all(b"x").is_ok() {
        assert!(start.elapsed() < PATIENCE, "still open");
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(start.elapsed() >= Duration::from_millis(200));
    server.await_metric("connections_expired_total{phase=\"head\"} 1");
    assert_eq!(server.hits(), 0);
}

#[test]
fn every_head_of_a_connection_has_the_deadline_of_its_own() {
    let server = Server::with_limits(&Limits { idle_timeout: Span::from_secs(600), ..short() });
    let mut client = server.connect();
    assert_eq!(status(&client.get("/")), "200");
    client.send("GET / HT");
    assert_eq!(client.rest(), "");
    server.await_metric("connections_expired_total{phase=\"head\"} 1");
}

#[test]
fn a_head_that_was_begun_behind_another_request_has_the_deadline_of_a_head() {
    let server = Server::with_limits(&short());
    let mut client = server.connect();
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\nGET / HT");
    assert_eq!(status(&client.response()), "200");
    assert_eq!(client.rest(), "");
    server.await_metric("connections_expired_total{phase=\"head\"} 1");
}

#[test]
fn a_silent_connection_is_closed() {
    let server = Server::with_limits(&short());
    assert_eq!(server.connect().rest(), "");
    server.await_metric("connections_refused_total{reason=\"silent\"} 1");
}

/// As port health checks do.
#[test]
fn a_peer_that_vanishes_silently_is_not_awaited() {
    let server = Server::with_limits(&Limits { header_timeout: Span::from_secs(600), ..Limits::default() });
    drop(server.connect());
    server.await_metric("connections_accepted_total{listener=\"main\"} 1");
    eventually("it is over", || server.connections() == 0);
}

#[test]
fn an_idle_connection_is_closed_after_its_time_and_not_before() {
    let server = Server::with_limits(&Limits { idle_timeout: Span::from_millis(1500), ..short() });
    let mut client = server.connect();
    assert_eq!(status(&client.get("/")), "200");
    // Longer than a head may take: the deadline of the head must not apply here.
    std::thread::sleep(Duration::from_millis(260));
    // Before its time begins: this thread may be slow to see the answer.
    let start = Instant::now();
    assert_eq!(status(&client.get("/")), "200");
    assert_eq!(client.rest(), "");
    assert!(start.elapsed() >= Duration::from_millis(1400), "{:?}", start.elapsed());
    server.await_metric("connections_expired_total{phase=\"idle\"} 1");
}

#[test]
fn a_request_that_is_served_has_no_deadline_here() {
    let server = Server::with_limits(&short());
    let mut client = server.connect();
    client.send("GET /slow HTTP/1.1\r\nHost: a\r\n\r\n");
    std::thread::sleep(Duration::from_millis(700));
    server.fixture.gate.add_permits(1);
    assert!(client.response().ends_with("slow"));
}

#[test]
fn a_client_that_takes_nothing_of_a_response_is_cut_off() {
    let server = Server::with_limits(&short());
    let mut client = server.connect();
    client.send("GET /endless HTTP/1.1\r\nHost: a\r\n\r\n");
    server.await_metric("connections_expired_total{phase=\"stalled\"} 1");
    eventually("closed", || server.connections() == 0);
}

#[test]
fn connections_are_limited_in_all() {
    let server = Server::with_limits(&Limits { connections: 2, ..Limits::default() });
    let mut clients = [server.connect(), server.connect()];
    for client in &mut clients {
        assert_eq!(status(&client.get("/")), "200");
    }
    assert_eq!(server.connect().rest(), "");
    server.await_metric("connections_refused_total{reason=\"total\"} 1");
    let [first, _second] = clients;
    drop(first);
    eventually("given back", || server.connections() == 1);
    assert_eq!(status(&server.connect().get("/")), "200");
}

#[test]
fn connections_of_an_address_are_limited_unless_it_is_a_trusted_proxy() {
    let limits = Limits { connections_per_address: 1, ..Limits::default() };
    for (trusted, expected) in [(vec![], "closed"), (vec!["127.0.0.0/8".parse().unwrap()], "200")] {
        let server = Server::with(Listener { trusted_proxies: trusted, ..listener("main") }, &limits);
        let mut first = server.connect();
        assert_eq!(status(&first.get("/")), "200");
        let second = server.exchange(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
        assert_eq!(status(&second), expected);
    }
}

/// Those of an EventListener, which queries the interceptor about each of its Triggers over a connection of its own.
#[test]
fn a_listener_may_take_more_connections_of_an_address_than_others() {
    let limits = Limits { connections_per_address: 1, ..Limits::default() };
    let server = Server::with(Listener { connections_per_address: Some(3), ..listener("interceptor") }, &limits);
    let mut clients = [server.connect(), server.connect(), server.connect()];
    for client in &mut clients {
        assert_eq!(status(&client.get("/")), "200");
    }
    assert_eq!(server.connect().rest(), "");
    server.await_metric("connections_refused_total{reason=\"address\"} 1");
}

#[test]
fn a_reload_changes_limits_and_trusted_peers_for_new_connections() {
    let server = Server::with_limits(&Limits { connections_per_address: 1, ..Limits::default() });
    let mut old = server.connect();
    assert_eq!(status(&old.get("/")), "200");
    assert_eq!(server.connect().rest(), "", "it may have one connection");
    let changed = Listener { trusted_proxies: vec!["127.0.0.1/32".parse().unwrap()], ..listener("main") };
    let limits = Limits { connections_per_address: 1, uri_bytes: Size(256), ..Limits::default() };
    assert_eq!(server.downstream().reload(&resolve(std::slice::from_ref(&changed), &limits)), []);
    let mut new = server.connect();
    assert_eq!(status(&new.get("/")), "200", "a proxy may have any number");
    let long = format!("/{}", "p".repeat(300));
    assert_eq!(status(&new.get(&long)), "414");
    assert_eq!(status(&old.get(&long)), "200");

    let moved = Listener { address: "127.0.0.1:1".parse().unwrap(), ..changed };
    let left = server.downstream().reload(&resolve(&[moved, listener("other")], &limits));
    assert_eq!(
        left.iter().map(|change| change.0.as_str()).collect::<Vec<_>>(),
        ["the address of listener `main` changed to 127.0.0.1:1", "listener `other` was added",]
    );
}

#[test]
fn all_errors_of_the_configuration_are_reported_together() {
    let limits = Limits { header_count: 0, http2_streams: 0, ..Limits::default() };
    let mut resolver = Resolver::new(Path::new("/"));
    assert!(Settings::resolve(&[listener("a")], &limits, Timestamp::default(), &mut resolver, &At::root()).is_none());
    let places: Vec<&str> = resolver.report.problems().iter().map(|problem| problem.at.as_str()).collect();
    assert_eq!(places, ["/limits/header_count", "/limits/http2_streams"]);
}
