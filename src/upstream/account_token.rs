//! Short-lived service account tokens that Doorward presents to an API server. They are requested with another
//! credential (TokenRequest, `authentication.k8s.io/v1`) and stored in memory only.
//!
//! This separates rights: requests on behalf of callers use an account that can impersonate and nothing else, while a
//! pod's own token always belongs to the account for everything that the pod does.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwapOption;
use http::{HeaderValue, Method, Request, StatusCode, header};
use serde::Deserialize;
use serde_json::json;
use zeroize::Zeroizing;

use super::{Lane, Pools, Upstream, settings::bearer_line};
use crate::{
    body::{RequestBody, collect},
    clock::Clock,
    config::raw,
    error::{Reason, Rejection},
    rbac::PRINTS,
};

/// The shortest lifetime that an API server grants.
const LIFETIME: Duration = Duration::from_secs(600);

/// Tokens have about 1 KiB.
const MAX_ANSWER: usize = 64 << 10;

/// How long the API server may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// The service account that Doorward uses at an upstream, and its current token.
pub(crate) struct AccountToken {
    namespace: Box<str>,
    name: Box<str>,
    /// The name of the upstream that issues the token.
    asked_at: Box<str>,
    held: ArcSwapOption<Held>,
    /// The API server rejected the current token.
    is_refused: AtomicBool,
}

/// A token and its lifetime.
struct Held {
    authorization: HeaderValue,
    /// When it was requested, by the monotonic clock ([`Clock::passed`]).
    asked: Duration,
    lifetime: Duration,
}

impl AccountToken {
    pub(super) fn new(raw: &raw::RequestedAccount) -> Self {
        Self {
            namespace: raw.namespace.as_str().into(),
            name: raw.name.as_str().into(),
            asked_at: raw.upstream.as_str().into(),
            held: ArcSwapOption::empty(),
            is_refused: AtomicBool::new(false),
        }
    }

    /// The name of the upstream that issues the token.
    pub(crate) fn asked_at(&self) -> &str {
        &self.asked_at
    }

    /// The value of `Authorization`; `None` while there is no token. An expired one is still returned, and the API
    /// server rejects it.
    pub(super) fn authorization(&self) -> Option<HeaderValue> {
        self.held.load().as_ref().map(|held| held.authorization.clone())
    }

    /// Records that the token was rejected, so that a new one is requested: the account may have been recreated.
    pub(super) fn refused(&self) {
        self.is_refused.store(true, Ordering::Relaxed);
    }

    /// Whether `other` is for the same account and from the same upstream.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        (&self.namespace, &self.name, &self.asked_at) == (&other.namespace, &other.name, &other.asked_at)
    }

    /// Takes over the token of the previous configuration if it is for the same account.
    pub(super) fn keep(&self, before: &Self) {
        if self.is_same(before) {
            self.held.store(before.held.load_full());
            self.is_refused.store(before.is_refused.load(Ordering::Relaxed), Ordering::Relaxed);
        }
    }

    /// Whether there is a token that has not expired.
    pub(crate) fn is_held(&self, clock: &Clock) -> bool {
        self.held.load().as_ref().is_some_and(|held| held.age(clock) < held.lifetime)
    }

    /// Whether a token must be requested: half of the last one's lifetime has passed, or it was rejected.
    pub(crate) fn is_due(&self, clock: &Clock) -> bool {
        let held = self.held.load();
        let Some(held) = held.as_ref() else { return true };
        held.age(clock) >= held.lifetime / 2 || self.is_refused.load(Ordering::Relaxed)
    }

    /// Requests a token and stores it.
    pub(crate) async fn renew(&self, pools: &Pools, server: &Arc<Upstream>, clock: &Clock) -> Result<(), Rejection> {
        let asked = clock.passed();
        let answer = tokio::time::timeout(PATIENCE, self.request(pools, server)).await;
        let answer = answer.unwrap_or_else(|_| Err(self.failed("the API server does not answer")))?;
        let token = Zeroizing::new(answer.status.token);
        let authorization =
            bearer_line(token.as_bytes()).ok_or_else(|| self.failed("the API server's answer has no valid token"))?;
        let lifetime = Duration::from_secs(answer.spec.expiration_seconds);
        self.held.store(Some(Arc::new(Held { authorization, asked, lifetime })));
        self.is_refused.store(false, Ordering::Relaxed);
        Ok(())
    }

    async fn request(&self, pools: &Pools, server: &Arc<Upstream>) -> Result<TokenRequest, Rejection> {
        let body = json!({
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "spec": {"expirationSeconds": LIFETIME.as_secs()},
        });
        let mut request = Request::new(RequestBody::Buffered(body.to_string().into()));
        *request.method_mut() = Method::POST;
        let path = format!("/api/v1/namespaces/{}/serviceaccounts/{}/token", self.namespace, self.name);
        *request.uri_mut() = path.parse().map_err(|_| self.failed("its name is not valid"))?;
        let json = HeaderValue::from_static("application/json");
        request.headers_mut().insert(header::ACCEPT, json.clone());
        request.headers_mut().insert(header::CONTENT_TYPE, json);
        let response = pools.send(server, &mut request, Lane::Short).await?;
        match response.status() {
            StatusCode::CREATED => {}
            StatusCode::UNAUTHORIZED => return Err(server.credential_refused()),
            StatusCode::FORBIDDEN => {
                let why = format!(
                    "the credential of upstream `{}` may not `create` `serviceaccounts/token` of it, or it does not exist; apply \
                     what {PRINTS}",
                    self.asked_at
                );
                return Err(self.failed(&why).with_upstream_status(StatusCode::FORBIDDEN));
            }
            StatusCode::NOT_FOUND => {
                return Err(self.failed("it does not exist").with_upstream_status(StatusCode::NOT_FOUND));
            }
            status => return Err(self.failed(&format!("the API server answers {status}"))),
        }
        let body = collect(response.into_body(), MAX_ANSWER).await.unwrap_or_default();
        // The cause is left out: it may show a part of the token.
        serde_json::from_slice(&body).map_err(|_| self.failed("the answer of the API server cannot be read"))
    }

    fn failed(&self, why: &str) -> Rejection {
        Rejection::new(Reason::UpstreamCredential, format!("there is no token of the service account {self}: {why}"))
    }
}

impl Held {
    fn age(&self, clock: &Clock) -> Duration {
        clock.passed().saturating_sub(self.asked)
    }
}

impl fmt::Display for AccountToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl fmt::Debug for AccountToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("AccountToken").field(&self.to_string()).finish()
    }
}

#[derive(Deserialize)]
struct TokenRequest {
    spec: Spec,
    status: Status,
}

/// An API server may grant another lifetime than was requested, and says so here.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Spec {
    expiration_seconds: u64,
}

#[derive(Deserialize)]
struct Status {
    token: String,
}

#[cfg(test)]
mod tests {
    use std::{net::SocketAddr, sync::Mutex};

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::{
        clock::Timestamp,
        upstream::{
            UpstreamErrorKind,
            tests::{fetch, get, pools, read_head, scripted, upstream, upstream_with},
        },
    };

    fn account(raw: &mut raw::Upstream) {
        let (namespace, name, upstream) = ("doorward".to_owned(), "proxy".to_owned(), "own".to_owned());
        let account = raw::RequestedAccount { namespace, name, upstream };
        raw.credential = Some(raw::UpstreamCredential::ServiceAccount(account));
    }

    fn answer(status: &str, body: &str) -> String {
        format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n{body}", body.len())
    }

    fn made(token: &str, seconds: u64) -> String {
        let body = json!({"spec": {"expirationSeconds": seconds}, "status": {"token": token}});
        answer("201 Created", &body.to_string())
    }

    /// The address of a server that gives these responses in turn, and the request heads that it received.
    async fn answering(answers: Vec<String>) -> (SocketAddr, Arc<Mutex<Vec<String>>>) {
        let heads: Arc<Mutex<Vec<String>>> = Arc::default();
        let (seen, answers) = (Arc::clone(&heads), Arc::new(Mutex::new(answers.into_iter())));
        let (address, _) = scripted(move |_, mut stream| {
            let (seen, answers) = (Arc::clone(&seen), Arc::clone(&answers));
            async move {
                let Some(head) = read_head(&mut stream).await else { return };
                let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
                stream.read_exact(&mut vec![0; length.unwrap_or_default()]).await.unwrap();
                seen.lock().unwrap().push(head);
                let next = answers.lock().unwrap().next().unwrap_or_default();
                let next = next.replacen("\r\n", "\r\nConnection: close\r\n", 1);
                stream.write_all(next.as_bytes()).await.unwrap();
            }
        })
        .await;
        (address, heads)
    }

    #[tokio::test]
    async fn an_upstream_is_asked_with_the_token_of_the_account_and_not_before_there_is_one() {
        let clock = Clock::manual(Timestamp::from_secs(1_000_000));
        let (server, asked) = answering(vec![made("first", 600), made("second", 600)]).await;
        let (address, shown) = answering(vec![answer("200 OK", ""), answer("200 OK", "")]).await;
        let target = upstream_with(address, account);
        let token = target.account_token().unwrap();
        let refused = fetch(&pools(), &target, get()).await.unwrap_err();
        assert_eq!(refused.kind(), UpstreamErrorKind::NoCredential);
        assert!(shown.lock().unwrap().is_empty() && token.is_due(&clock) && !token.is_held(&clock));

        for (name, passed) in [("first", 299), ("second", 1)] {
            token.renew(&pools(), &upstream(server), &clock).await.unwrap();
            fetch(&pools(), &target, get()).await.unwrap();
            let line = format!("authorization: Bearer {name}\r\n");
            assert!(shown.lock().unwrap().last().unwrap().contains(&line), "{line}");
            assert!(!token.is_due(&clock) && token.is_held(&clock));
            clock.advance(Duration::from_secs(passed));
            assert!(!token.is_due(&clock));
            clock.advance(Duration::from_secs(1));
            assert_eq!(token.is_due(&clock), passed == 299, "half of its time is over");
        }
        clock.advance(Duration::from_secs(599));
        assert!(token.is_due(&clock) && !token.is_held(&clock), "it has ended");
        let line = "POST /api/v1/namespaces/doorward/serviceaccounts/proxy/token HTTP/1.1\r\n";
        assert!(asked.lock().unwrap().iter().all(|head| head.starts_with(line)));
    }

    /// When an apply was looked up first, its refusal did not replace the token.
    #[tokio::test]
    async fn a_token_that_is_not_taken_is_replaced_wherever_that_is_answered() {
        let clock = Clock::manual(Timestamp::from_secs(1_000_000));
        let (server, _) = answering(vec![made("first", 600), made("second", 600)]).await;
        let target = upstream_with("127.0.0.1:1".parse().unwrap(), account);
        let token = target.account_token().unwrap();
        token.renew(&pools(), &upstream(server), &clock).await.unwrap();
        assert!(!token.is_due(&clock));
        assert_eq!(target.unauthorized().reason(), Reason::UpstreamCredential);
        assert!(!token.is_due(&clock), "a server behind the API server says nothing of it");
        assert_eq!(target.credential_refused().reason(), Reason::UpstreamCredential);
        assert!(token.is_due(&clock) && token.is_held(&clock));
        token.renew(&pools(), &upstream(server), &clock).await.unwrap();
        assert!(!token.is_due(&clock));
    }

    #[tokio::test]
    async fn a_generation_takes_over_the_token_of_the_previous_one_for_the_same_account_and_server() {
        let clock = Clock::manual(Timestamp::from_secs(1_000_000));
        let (server, _) = answering(vec![made("first", 600)]).await;
        let (here, there) = ("127.0.0.1:1".parse().unwrap(), "127.0.0.1:2".parse().unwrap());
        let before = upstream_with(here, account);
        before.account_token().unwrap().renew(&pools(), &upstream(server), &clock).await.unwrap();
        let other = |raw: &mut raw::Upstream, change: fn(&mut raw::RequestedAccount)| {
            account(raw);
            if let Some(raw::UpstreamCredential::ServiceAccount(account)) = &mut raw.credential {
                change(account);
            }
        };
        for (what, after, is_kept) in [
            ("the same", upstream_with(here, account), true),
            ("another server", upstream_with(there, account), false),
            ("another name", upstream_with(here, |raw| other(raw, |account| account.name = "x".to_owned())), false),
            ("another namespace", upstream_with(here, |raw| other(raw, |it| it.namespace = "x".to_owned())), false),
            ("asked elsewhere", upstream_with(here, |raw| other(raw, |it| it.upstream = "x".to_owned())), false),
        ] {
            after.keep_token_of(&before);
            assert_eq!(after.account_token().unwrap().is_held(&clock), is_kept, "{what}");
        }
    }

    #[tokio::test]
    async fn an_error_of_the_api_server_is_explained_and_gives_no_token() {
        let clock = Clock::manual(Timestamp::from_secs(1_000_000));
        let target = upstream_with("127.0.0.1:1".parse().unwrap(), account);
        let token = target.account_token().unwrap();
        for (given, told) in [
            (
                answer("403 Forbidden", "{}"),
                "apply what `doorward rbac`, with the same options as before (`--form` too), prints",
            ),
            (answer("404 Not Found", "{}"), "it does not exist"),
            (answer("401 Unauthorized", "{}"), "did not accept Doorward's own credential"),
            (answer("500 Oops", "{}"), "the API server answers 500"),
            (answer("201 Created", "{}"), "cannot be read"),
            (answer("201 Created", "secret"), "cannot be read"),
            (made("two words", 600), "no valid token"),
            (made("", 600), "no valid token"),
        ] {
            let (server, _) = answering(vec![given]).await;
            let refused = token.renew(&pools(), &upstream(server), &clock).await.unwrap_err();
            assert_eq!(refused.reason(), Reason::UpstreamCredential, "{told}");
            assert!(refused.to_string().contains(told) && !refused.to_string().contains("secret"), "{refused}");
            assert!(!token.is_held(&clock));
        }
    }
}
