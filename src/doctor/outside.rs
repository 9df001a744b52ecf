//! Looked at from elsewhere: that nobody but Doorward reaches what it stands in front of. A NetworkPolicy says so, and only a network
//! plug-in that heeds it makes it true.

use std::time::Duration;

use futures_util::future::join_all;
use tokio::{net::TcpStream, time::timeout};
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
    let reached = async {
        let url = upstream.url.as_deref().ok_or("it has no `url`")?;
        let url = Url::parse(url).map_err(|error| error.to_string())?;
        let addresses = url.socket_addrs(|| None).map_err(|error| error.to_string())?;
        TcpStream::connect(&*addresses).await.map_err(|error| error.to_string())
    };
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
        Ok(Err(why)) => not(why),
        Err(_) => not(format!("no answer within {} s", PATIENCE.as_secs())),
    }
}
