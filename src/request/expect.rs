//! Clients that wait over HTTP/2 for `100 Continue` before they send the body, which hyper's server cannot send there.
//!
//! Most continue by themselves after a second (RFC 9110 section 10.1.1 does not let them wait indefinitely), and are
//! waited for; refusing the expectation at once would reject their uploads. A few wait for an answer, whichever it is.
//! They get 417 before they give up.

use std::time::Duration;

use http::{StatusCode, Version, header, request::Parts};
use tokio::time::sleep;

use crate::error::{Reason, Rejection};

/// The interval between checks whether anything of the body has arrived, and the number of checks after which the
/// request is refused. Together well beyond the second of curl, Go and .NET, and within the ten of OkHttp.
const LOOK: Duration = Duration::from_secs(1);
const LOOKS: u32 = 5;

/// Whether a client waits for a `100 Continue` that it cannot get.
pub(super) fn expects_continue(parts: &Parts) -> bool {
    let asks = |value: &http::HeaderValue| value.as_bytes().eq_ignore_ascii_case(b"100-continue");
    parts.version == Version::HTTP_2 && parts.headers.get_all(header::EXPECT).iter().any(asks)
}

/// Whether anything of a body has arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Awaited {
    /// Nobody has asked for the body yet.
    NotYet,
    /// Nothing, although the upstream would read it.
    Nothing,
    Something,
}

/// Waits for the answer to a request whose client may send the body only after a `100 Continue`, or refuses the request
/// if nothing of the body arrives.
pub(super) async fn answer_or_refuse<T>(
    answer: impl Future<Output = Result<T, Rejection>>,
    body: impl Fn() -> Awaited,
) -> Result<T, Rejection> {
    let in_vain = async {
        let mut looks = 0;
        while looks < LOOKS {
            sleep(LOOK).await;
            match body() {
                Awaited::NotYet => {}
                Awaited::Nothing => looks += 1,
                Awaited::Something => std::future::pending().await,
            }
        }
    };
    tokio::select! {
        biased;
        answer = answer => answer,
        () = in_vain => Err(refused()),
    }
}

fn refused() -> Rejection {
    let detail =
        "the client waits for `100 Continue` before it sends the body, and Doorward cannot send that over HTTP/2";
    Rejection::new(Reason::BodyTimeout, detail)
        .with_status(StatusCode::EXPECTATION_FAILED)
        .fix("send the body without `Expect: 100-continue`, or over HTTP/1.1")
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, future::pending};

    use http::Request;
    use tokio::time::Instant;

    use super::*;

    #[test]
    fn only_a_client_of_http2_that_expects_100_continue_may_not_get_it() {
        for (version, expect, expected) in [
            (Version::HTTP_2, Some("100-continue"), true),
            (Version::HTTP_2, Some("100-Continue"), true),
            (Version::HTTP_2, Some("200-ok"), false),
            (Version::HTTP_2, None, false),
            (Version::HTTP_11, Some("100-continue"), false),
        ] {
            let mut request = Request::post("/").version(version);
            if let Some(expect) = expect {
                request = request.header("expect", expect);
            }
            let (parts, ()) = request.body(()).unwrap().into_parts();
            assert_eq!(expects_continue(&parts), expected, "{version:?} {expect:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_waits_for_100_continue_is_refused_after_five_seconds() {
        let begun = Instant::now();
        let refused = answer_or_refuse(pending::<Result<(), _>>(), || Awaited::Nothing).await.unwrap_err();
        assert_eq!((refused.status(), refused.reason()), (StatusCode::EXPECTATION_FAILED, Reason::BodyTimeout));
        assert_eq!(begun.elapsed(), Duration::from_secs(5));
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_sends_its_body_or_could_not_yet_is_not_refused() {
        let answer = || async {
            sleep(Duration::from_secs(60)).await;
            Ok(())
        };
        answer_or_refuse(answer(), || Awaited::NotYet).await.unwrap();
        let looks = Cell::new(0);
        let body = || {
            looks.set(looks.get() + 1);
            if looks.get() < LOOKS { Awaited::Nothing } else { Awaited::Something }
        };
        answer_or_refuse(answer(), body).await.unwrap();
    }
}
