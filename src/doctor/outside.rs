//! Looked at from elsewhere: that nobody but Doorward reaches what it stands in front of. A NetworkPolicy says so, and only a network
//! plug-in that heeds it makes it true.

use std::time::Duration;

use futures_util::future::join_all;
use tokio::{
    net::{TcpStream, lookup_host},
    time::timeout,
};
use url::Url;

use super::{Check, Finding, State, upstream::What};
use crate::config::raw;

/// How long is tried. A policy drops what it does not allow, so that nothing comes back.
const PATIENCE: Duration = Duration::from_secs(5);

/// Tries addresses of upstreams, such as `http://el-build.ci.svc:8080`. Nothing is sent to them.
pub async fn examine_outside(addresses: &[String]) -> Vec<Finding> {
    join_all(addresses.iter().map(|address| one(address))).await
}

/// What to do where this cannot be looked at from here.
pub(super) fn advise(raw: &raw::Root) -> Finding {
    // An API server asks by itself who somebody is.
    let guarded = raw.upstreams.iter().filter(|upstream| What::of(raw, &upstream.name) != What::ApiServer);
    let addresses: Vec<&str> = guarded.filter_map(|upstream| upstream.url.as_deref()).collect();
    let (said, cure) = match addresses.as_slice() {
        [] => ("there is nothing but API servers", String::new()),
        addresses => (
            "that others do not reach them is seen from elsewhere",
            format!("in a pod of another namespace run `doorward doctor --outside {}`", addresses.join(" ")),
        ),
    };
    Finding::new(Check::Isolation, "upstreams", State::Skipped, said.to_owned(), cure)
}

async fn one(address: &str) -> Finding {
    let known = match timeout(PATIENCE, look_up(address)).await {
        Ok(Ok(known)) => known,
        failed => {
            let why = failed.map_or_else(|_| "no answer".to_owned(), |failed| failed.err().unwrap_or_default());
            // That says nothing of who knows the address.
            return Finding::skipped(Check::Isolation, address, format!("its name is not known here: {why}"));
        }
    };
    let not = |why: String| Finding::good(Check::Isolation, address, format!("it cannot be reached from here: {why}"));
    match timeout(PATIENCE, TcpStream::connect(&*known)).await {
        Ok(Ok(_)) => Finding::fault(
            Check::Isolation,
            address,
            "it can be reached from here, past Doorward",
            "let a NetworkPolicy keep all but Doorward from it, with a network plug-in that heeds it. Of an EventListener, until then \
             only Triggers that ask Doorward's interceptor are safe",
        ),
        Ok(Err(error)) => not(error.to_string()),
        Err(_) => not(format!("no answer within {} s", PATIENCE.as_secs())),
    }
}

async fn look_up(address: &str) -> Result<Vec<std::net::SocketAddr>, String> {
    let url = Url::parse(address).map_err(|error| error.to_string())?;
    let (host, port) = url.host_str().zip(url.port_or_known_default()).ok_or("it names no host and port")?;
    lookup_host(format!("{host}:{port}")).await.map(Iterator::collect).map_err(|error| error.to_string())
}
