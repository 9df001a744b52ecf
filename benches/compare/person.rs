//! People who sign in: the demo's development provider, and logins as a browser performs them.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use doorward::{
    clock::Clock,
    demo::provider::{DOORWARD_CLIENT, Provider},
};

use crate::Failure;

/// The client of the login at the provider, and its secret.
pub const CLIENT: (&str, &str) = DOORWARD_CLIENT;

/// How long a newly started Doorward may take to reach its provider.
const PATIENCE: Duration = Duration::from_secs(10);

/// Starts the provider in this process, for a Doorward at each of `ports`, and returns its issuer.
pub fn provider(ports: &[u16]) -> Result<String, Failure> {
    let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
    listener.set_nonblocking(true)?;
    let issuer = format!("http://localhost:{}", listener.local_addr()?.port());
    let origins: Vec<String> = ports.iter().map(|port| format!("http://localhost:{port}")).collect();
    let provider = Provider::new(issuer.clone(), &origins, Clock::default()).map_err(|error| error.to_string())?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    std::thread::spawn(move || {
        runtime.block_on(async move {
            let listener = tokio::net::TcpListener::from_std(listener)?;
            axum::serve(listener, provider.router()).await
        })
    });
    Ok(issuer)
}

/// Logs Alice in at the Doorward on `address` and returns the `Cookie` line of her session.
pub fn log_in(address: SocketAddr, path: &str) -> Result<String, Failure> {
    let host = format!("localhost:{}", address.port());
    let page = "Accept: text/html\r\nSec-Fetch-Mode: navigate\r\nSec-Fetch-Dest: document\r\n";
    let until = Instant::now() + PATIENCE;
    let start = loop {
        match ask(address, &format!("GET /oauth2/start?rd={path} HTTP/1.1\r\nHost: {host}\r\n{page}"), "") {
            Ok(start) => break start,
            // It listens before it has reached its provider.
            Err(_) if Instant::now() < until => std::thread::sleep(Duration::from_millis(20)),
            Err(error) => return Err(error),
        }
    };
    let (server, query) = authorize(&start.location)?;
    let form = format!("{query}&person=alice");
    let head = format!(
        "POST /authorize HTTP/1.1\r\nHost: {server}\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: {}\r\n",
        form.len()
    );
    let port = server.rsplit_once(':').ok_or("no port")?.1;
    let back = ask(SocketAddr::from(([127, 0, 0, 1], port.parse()?)), &head, &form)?;
    let cookies = start.cookies.join("; ");
    let callback = local(&back.location)?;
    let done = ask(address, &format!("GET {callback} HTTP/1.1\r\nHost: {host}\r\n{page}Cookie: {cookies}\r\n"), "")?;
    done.cookies.into_iter().find(|cookie| !cookie.ends_with('=')).ok_or_else(|| "the login gave no session".into())
}

struct Answer {
    location: String,
    /// Names and values.
    cookies: Vec<String>,
}

fn ask(address: SocketAddr, head: &str, body: &str) -> Result<Answer, Failure> {
    let mut stream = TcpStream::connect(address)?;
    write!(stream, "{head}Connection: close\r\n\r\n{body}")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let values = |name: &str| -> Vec<String> {
        answer
            .lines()
            .take_while(|line| !line.is_empty())
            .filter_map(|line| line.split_once(": "))
            .filter(|(found, _)| found.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.to_owned())
            .collect()
    };
    let location = values("location").pop().ok_or_else(|| format!("no redirect, but:\n{answer}"))?;
    let cookies = values("set-cookie").iter().filter_map(|line| line.split(';').next()).map(str::to_owned).collect();
    Ok(Answer { location, cookies })
}

/// The path and query of an address.
fn local(location: &str) -> Result<&str, Failure> {
    let rest = location.split_once("://").map_or(location, |(_, rest)| rest);
    let at = rest.find('/').ok_or_else(|| format!("{location} has no path"))?;
    Ok(&rest[at..])
}

/// The host and query of the address of the provider's page.
fn authorize(location: &str) -> Result<(&str, &str), Failure> {
    let rest = location.strip_prefix("http://").ok_or_else(|| format!("{location} is not the provider's"))?;
    rest.split_once("/authorize?").ok_or_else(|| format!("{location} is not the page of its people").into())
}
