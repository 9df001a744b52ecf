use super::*;
use crate::downstream::drain::{Drain, Phase};

fn control() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}

/// Goes through all phases, and waits at most `rest` for what is in progress. Returns how many connections were cut.
async fn through(drain: &Drain, rest: Duration) -> usize {
    drain.begin();
    drain.close();
    drain.wait(rest).await
}

#[test]
fn requests_in_progress_complete_and_idle_connections_are_closed() {
    let mut server = Server::start();
    let (mut idle, mut slow) = (server.connect(), server.connect());
    assert_eq!(status(&idle.get("/")), "200");
    slow.send("GET /slow HTTP/1.1\r\nHost: a\r\n\r\n");
    eventually("it is served", || server.hits() == 2);

    let drain = server.downstream().drain().clone();
    drain.begin();
    // Still accepting, and each response asks the client to leave.
    for mut client in [server.connect(), server.connect()] {
        let response = client.get("/");
        assert!(response.to_lowercase().contains("connection: close"), "{response}");
        assert_eq!(client.rest(), "");
    }
    assert_eq!(drain.phase(), Phase::Announced);
    eventually("the others are left", || drain.connections() == 2);

    drain.close();
    assert_eq!(idle.rest(), "");
    eventually("the port is closed", || TcpStream::connect(server.address).is_err());
    server.fixture.gate.add_permits(1);
    let response = slow.response();
    assert!(response.ends_with("slow") && response.to_lowercase().contains("connection: close"), "{response}");
    assert_eq!(control().block_on(drain.wait(PATIENCE)), 0);
    server.downstream.take().unwrap().join();
}

/// Nobody told such a connection to end, so the whole shutdown lasted until its deadline.
#[test]
fn a_response_in_progress_when_the_listeners_close_ends_its_connection() {
    let server = Server::start();
    let mut client = server.connect();
    client.send("GET /parts HTTP/1.1\r\nHost: a\r\n\r\n");
    let head = client.response();
    assert!(!head.to_lowercase().contains("connection: close"), "{head}");
    let drain = server.downstream().drain().clone();
    drain.close();
    eventually("the port is closed", || TcpStream::connect(server.address).is_err());
    // Those that found the port open are counted until the worker has noticed that they are gone.
    eventually("what is under way goes on alone", || drain.connections() == 1);
    server.fixture.gate.add_permits(1);
    assert!(client.rest().ends_with("0\r\n\r\n"));
    let (begun, deadline) = (Instant::now(), PATIENCE * 6);
    assert_eq!(control().block_on(drain.wait(deadline)), 0);
    assert!(begun.elapsed() < deadline);
}

#[test]
fn a_head_in_flight_when_the_listeners_close_is_still_served() {
    let server = Server::start();
    let mut client = server.connect();
    assert_eq!(status(&client.get("/")), "200");
    client.send("GET / HTTP/1.1\r\nHost");
    let mut other = server.connect();
    // One worker: once this is answered, the bytes above have been read.
    assert_eq!(status(&other.get("/")), "200");
    server.downstream().drain().close();
    assert_eq!(other.rest(), "");
    client.send(": a\r\n\r\n");
    assert_eq!(status(&client.response()), "200");
    assert_eq!(client.rest(), "");
}

#[test]
fn everything_left_at_the_deadline_is_cut_including_upgraded_streams() {
    let mut server = Server::start();
    let (mut slow, mut upgraded) = (server.connect(), server.connect());
    slow.send("GET /slow HTTP/1.1\r\nHost: a\r\n\r\n");
    upgraded.send("GET /upgrade HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n");
    assert_eq!(status(&upgraded.response()), "101");
    let tunnel = b"POST / HTTP/1.1\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n";
    upgraded.send(tunnel);
    let mut echo = [0; 65];
    upgraded.0.read_exact(&mut echo).unwrap();
    assert_eq!(&echo, tunnel, "an upgraded stream is not looked at");
    eventually("both are served", || server.hits() == 2);

    let drain = server.downstream().drain().clone();
    assert_eq!(control().block_on(through(&drain, Duration::from_millis(50))), 2);
    assert_eq!((slow.rest(), upgraded.rest()), (String::new(), String::new()));
    server.downstream.take().unwrap().join();
    assert_eq!(drain.connections(), 0);
}

#[test]
fn a_stream_that_ends_on_its_own_does_not_delay_the_drain() {
    let server = Server::start();
    let mut upgraded = server.connect();
    upgraded.send("GET /upgrade HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n");
    assert_eq!(status(&upgraded.response()), "101");
    let drain = server.downstream().drain().clone();
    assert_eq!(drain.connections(), 1);
    drop(upgraded);
    let (begun, deadline) = (Instant::now(), PATIENCE * 6);
    assert_eq!(control().block_on(through(&drain, deadline)), 0);
    assert!(begun.elapsed() < deadline);
}
