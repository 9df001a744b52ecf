//! Checks from elsewhere that nobody but Doorward reaches what it protects. A NetworkPolicy says so, but only a network
//! plug-in that enforces it makes it true.

use std::{net::SocketAddr, time::Duration};

use futures_util::future::{join_all, select_ok};
use tokio::{
    net::{TcpStream, lookup_host},
    time::timeout,
};
use url::Url;

use super::{Check, Finding, State, upstream::What};
use crate::config::raw;

/// How long a connection is tried. A policy drops what it does not allow, so nothing comes back.
const PATIENCE: Duration = Duration::from_secs(5);

/// The address of something that others should not reach.
#[derive(Clone, Debug)]
pub struct Address {
    /// As it was written.
    text: String,
    host: String,
    port: u16,
}

impl Address {
    /// Parses `http://HOST` or `https://HOST`, with or without a port, or `HOST:PORT`. Anything else would be checked
    /// at another address than was meant, or not at all.
    pub fn parse(text: &str) -> Result<Self, String> {
        const FORM: &str = "write http://HOST:PORT or HOST:PORT, such as http://el-build.ci.svc:8080";
        let url = if text.contains("://") {
            Url::parse(text)
        } else {
            let port = text.rsplit_once(':').map_or("", |(_, port)| port);
            if port.is_empty() || !port.bytes().all(|byte| byte.is_ascii_digit()) {
                return Err(format!("it names no port: {FORM}"));
            }
            Url::parse(&format!("http://{text}"))
        };
        let url = url.map_err(|error| format!("{error}: {FORM}"))?;
        let is_alone = url.username().is_empty()
            && url.password().is_none()
            && url.path() == "/"
            && url.query().is_none()
            && url.fragment().is_none();
        match (url.scheme(), url.host_str(), url.port_or_known_default()) {
            ("http" | "https", Some(host), Some(port @ 1..)) if is_alone => {
                Ok(Self { text: text.to_owned(), host: host.to_owned(), port })
            }
            _ => Err(FORM.to_owned()),
        }
    }
}

/// Tries to connect to addresses of upstreams. Nothing is sent to them.
pub async fn examine_outside(addresses: &[Address]) -> Vec<Finding> {
    join_all(addresses.iter().map(one)).await
}

/// Returns what to do to check this, which is not possible from here.
pub(super) fn advise(raw: &raw::Root) -> Finding {
    // An API server authenticates its callers itself.
    let guarded = raw.upstreams.iter().filter(|upstream| What::of(raw, &upstream.name) != What::ApiServer);
    let addresses: Vec<&str> = guarded.filter_map(|upstream| upstream.url.as_deref()).collect();
    let (message, fix) = match addresses.as_slice() {
        [] => ("there is nothing but API servers", String::new()),
        addresses => (
            "whether others reach them can only be checked from elsewhere",
            format!("in a pod of another namespace run `doorward doctor --outside {}`", addresses.join(" ")),
        ),
    };
    Finding::new(Check::Isolation, "upstreams", State::Skipped, message.to_owned(), fix)
}

async fn one(Address { text: address, host, port }: &Address) -> Finding {
    let known: Vec<SocketAddr> = match timeout(PATIENCE, lookup_host(format!("{host}:{port}"))).await {
        Ok(Ok(known)) => known.collect(),
        failed => {
            let why = failed.map_or_else(
                |_| "no answer".to_owned(),
                |failed| failed.err().map(|error| error.to_string()).unwrap_or_default(),
            );
            // That does not say whether others know the address.
            return Finding::skipped(Check::Isolation, address, format!("its name is not known here: {why}"));
        }
    };
    match reachable(&known).await {
        Ok(at) => Finding::fault(
            Check::Isolation,
            address,
            format!("it can be reached from here, past Doorward, at {at}"),
            "restrict it to Doorward with a NetworkPolicy, and use a network plug-in that enforces it. If it is an \
             EventListener, until then only its Triggers that ask Doorward's interceptor are safe",
        ),
        Err(why) => Finding::good(Check::Isolation, address, format!("it cannot be reached from here: {why}")),
    }
}

/// Returns the first address of a name that accepts a connection, or why none does. All are tried at once, because one
/// that drops packets would use up the time of those after it.
async fn reachable(known: &[SocketAddr]) -> Result<SocketAddr, String> {
    if known.is_empty() {
        return Err("its name has no address".to_owned());
    }
    let tried = known.iter().map(|at| Box::pin(async move { TcpStream::connect(*at).await.map(|_| *at) }));
    match timeout(PATIENCE, select_ok(tried)).await {
        Ok(Ok((at, _))) => Ok(at),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("no answer within {} s", PATIENCE.as_secs())),
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::{TcpListener, TcpSocket};

    use super::*;

    /// If packets to the first address were dropped, the whole name was taken for unreachable.
    #[tokio::test]
    async fn an_address_that_drops_packets_hides_none_that_answers() {
        // A full queue: its length and one more.
        let full = TcpSocket::new_v4().unwrap();
        full.bind(([127, 0, 0, 1], 0).into()).unwrap();
        let full = full.listen(1).unwrap();
        let dropping = full.local_addr().unwrap();
        let waiting = [TcpStream::connect(dropping).await.unwrap(), TcpStream::connect(dropping).await.unwrap()];
        let open = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let answering = open.local_addr().unwrap();
        assert_eq!(reachable(&[dropping, answering]).await, Ok(answering));
        drop(waiting);
    }

    #[test]
    fn an_address_without_a_scheme_is_one_of_a_host_and_a_port() {
        for (text, host, port) in [
            ("el-build.ci.svc:8080", "el-build.ci.svc", 8080),
            ("el-build.ci.svc:80", "el-build.ci.svc", 80),
            ("[::1]:8080", "[::1]", 8080),
            ("http://el-build.ci.svc:8080", "el-build.ci.svc", 8080),
            ("http://el-build.ci.svc/", "el-build.ci.svc", 80),
            ("https://10.0.0.1", "10.0.0.1", 443),
        ] {
            let found = Address::parse(text).unwrap();
            assert_eq!((&*found.text, &*found.host, found.port), (text, host, port));
        }
    }

    #[test]
    fn an_address_that_would_be_ignored_is_refused() {
        for text in [
            "",
            "el-build.ci.svc",
            "el-build.ci.svc:",
            "el-build.ci.svc:http",
            "el-build.ci.svc:99999",
            "el-build.ci.svc:0",
            "::1",
            "[::1]",
            "ftp://el-build.ci.svc:8080",
            "file:///el-build",
            "http://",
            "http://user@el-build.ci.svc:8080",
            "http://el-build.ci.svc:8080/live",
            "el-build.ci.svc/live:8080",
            "http://el-build.ci.svc:8080?a",
        ] {
            assert!(Address::parse(text).is_err(), "{text}");
        }
    }
}
