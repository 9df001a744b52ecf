//! Looked at from elsewhere: that nobody but Doorward reaches what it stands in front of. A NetworkPolicy says so, and only a network
//! plug-in that heeds it makes it true.

use std::{net::SocketAddr, time::Duration};

use futures_util::future::join_all;
use tokio::{
    net::{TcpStream, lookup_host},
    time::timeout,
};
use url::Url;

use super::{Check, Finding, upstream::What};
use crate::config::raw;

/// How long is tried. A policy drops what it does not allow, so that nothing comes back.
const PATIENCE: Duration = Duration::from_secs(5);

/// Tries each upstream but API servers, which ask by themselves who somebody is.
pub async fn examine_outside(raw: &raw::Root) -> Vec<Finding> {
    let guarded = raw.upstreams.iter().map(|upstream| (What::of(raw, &upstream.name), upstream));
    join_all(guarded.filter(|(what, _)| *what != What::ApiServer).map(|(what, upstream)| one(what, upstream))).await
}

async fn one(what: What, upstream: &raw::Upstream) -> Finding {
    let of = format!("{} `{}`", what.name(), upstream.name);
    let addresses = match timeout(PATIENCE, addresses(upstream)).await {
        Ok(Ok(addresses)) => addresses,
        failed => {
            let why = failed.map_or_else(|_| "no answer".to_owned(), |failed| failed.err().unwrap_or_default());
            // That says nothing of who knows the address.
            return Finding::skipped(Check::Isolation, &of, format!("its name is not known here: {why}"));
        }
    };
    let reached = TcpStream::connect(&*addresses);
    let not = |why: String| Finding::good(Check::Isolation, &of, format!("it cannot be reached from here: {why}"));
    match timeout(PATIENCE, reached).await {
        Ok(Ok(_)) => Finding::fault(
            Check::Isolation,
            &of,
            "it can be reached from here, past Doorward",
            match what {
                What::EventListener => {
                    "let a NetworkPolicy keep all but Doorward from it, with a network plug-in that heeds it. Until then only \
                     Triggers that ask Doorward's interceptor are safe"
                }
                _ => "let a NetworkPolicy keep all but Doorward from it, with a network plug-in that heeds it",
            },
        ),
        Ok(Err(error)) => not(error.to_string()),
        Err(_) => not(format!("no answer within {} s", PATIENCE.as_secs())),
    }
}

async fn addresses(upstream: &raw::Upstream) -> Result<Vec<SocketAddr>, String> {
    let url = upstream.url.as_deref().ok_or("it has no `url`")?;
    let url = Url::parse(url).map_err(|error| error.to_string())?;
    let (host, port) = url.host_str().zip(url.port_or_known_default()).ok_or("its `url` names no host")?;
    lookup_host(format!("{host}:{port}")).await.map(Iterator::collect).map_err(|error| error.to_string())
}
