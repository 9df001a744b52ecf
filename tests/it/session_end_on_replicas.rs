//! A session that ends at one of two replicas ends at the other one within 2 s, with everything that is open there. The
//! time is measured from the response of the first replica to the end at the second.

use std::{
    cell::Cell,
    future::Future,
    time::{Duration, Instant},
};

use serde_json::json;

use crate::{
    harness::{
        Answered, Doorward, Issuer, OidcProvider, RedisServer, Upstream, free_port, log_in, session,
        streams::{OF_CLUSTER, Streams, streaming},
        until, within,
    },
    login_fixture::{LoginFixture, STORE, on_redis},
};

const PROMISED: Duration = Duration::from_secs(2);
const PAGE: &str = "/api/v1/pods";

/// How fast a replica and these tests are, which depends on what else the machine has to do.
struct Pace {
    asked: Cell<Instant>,
    slowest: Cell<Duration>,
}

impl Pace {
    fn new() -> Self {
        Self { asked: Cell::new(Instant::now()), slowest: Cell::default() }
    }

    /// Sends requests that need no store, again and again.
    async fn follow(&self, replica: &Doorward) {
        loop {
            self.asked.set(Instant::now());
            replica.admin("/readyz").await;
            self.slowest.set(self.slowest());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// The longest time that one took, which may be the last one.
    fn slowest(&self) -> Duration {
        self.slowest.get().max(self.asked.get().elapsed())
    }
}

/// Two replicas on one Redis. The clock of one can be set.
struct Replicas {
    here: LoginFixture,
    there: Doorward,
    _redis: RedisServer,
}

impl Replicas {
    /// `login` are settings of the login at this issuer, and `recheck` is how often it is asked.
    async fn start(port: u16, issuer: &str, login: &str, recheck: &str) -> Self {
        let redis = RedisServer::start(&[]);
        let here = replica("here", port, issuer, (login, recheck), &redis).await;
        let there = replica("there", 0, issuer, (login, recheck), &redis).await.doorward;
        Self { here, there, _redis: redis }
    }

    /// Opens a stream of each kind at the other replica, ends the session here with `end`, and asserts that the session
    /// ends there in time and that the streams are closed with the reason `why`.
    async fn end_in_time(&self, (way, why): (&str, &str), cookie: &str, end: impl Future<Output = ()>) {
        // As a browser sees them: both are one host.
        let (host, origin) = (format!("Host: {}", self.here.host), format!("Origin: {}", self.here.origin()));
        let lines = [host.as_str(), &origin, cookie];
        let mut streams = Streams::open(&self.there, &lines).await;
        streams.are_open().await;
        // The worst moment: the other replica has just read the session.
        assert_eq!(self.there.get(PAGE, &lines).await.status, 200, "{way}");
        end.await;
        let ended = Instant::now();
        let refused = async {
            while self.there.get(PAGE, &lines).await.status != 401 {}
            ended.elapsed()
        };
        let closed = async {
            streams.have_ended(1008, why).await;
            ended.elapsed()
        };
        let pace = Pace::new();
        let ((refused, closed), slowest) = tokio::select! {
            both = within(async { tokio::join!(refused, closed) }) => (both, pace.slowest()),
            () = pace.follow(&self.there) => unreachable!("it never stops"),
        };
        // Whatever takes part in an end may have to wait for the machine as long as a request that needs no store.
        let limit = PROMISED + 4 * slowest;
        assert!(refused < limit, "{way}: requests were taken for {refused:?}, of at most {limit:?}");
        assert!(closed < limit, "{way}: streams went on for {closed:?}, of at most {limit:?}");
        assert_eq!(self.status(cookie).await, 401, "{way}");
    }

    /// The status of a page at this replica.
    async fn status(&self, cookie: &str) -> u16 {
        self.here.get(PAGE, &[cookie]).await.status
    }
}

async fn replica(
    instance: &str,
    port: u16,
    issuer: &str,
    (login, recheck): (&str, &str),
    redis: &RedisServer,
) -> LoginFixture {
    let store = on_redis(&format!("server: '{}'", redis.address()));
    let store = store.replace("sessions: {", &format!("sessions: {{recheck: {recheck}, "));
    let audit = format!("audit: {{instance: {instance}, ");
    let changes = [OF_CLUSTER, &[(STORE, &store), ("audit: {", &audit), ("label: Example Corp", login)]].concat();
    LoginFixture::at(issuer, port, Upstream::scripted(streaming).await, tempfile::tempdir().unwrap(), &changes).await
}

#[tokio::test]
async fn a_session_ended_at_one_replica_ends_at_the_other_within_two_seconds() {
    let issuer = Issuer::start().await;
    let replicas = Replicas::start(0, issuer.url(), "label: Example Corp", "1m").await;
    let origin = format!("Origin: {}", replicas.here.origin());
    let log_in = || log_in(&replicas.here.doorward, &replicas.here.host, PAGE);

    let (cookie, other) = (log_in().await, log_in().await);
    let sign_out = async {
        let lines = [&*origin, &cookie, "Content-Length: 0"];
        assert_eq!(replicas.here.post("/oauth2/sign_out", &lines, "").await.status, 303);
    };
    replicas.end_in_time(("signed out", "signed_out"), &cookie, sign_out).await;
    assert_eq!(replicas.status(&other).await, 200, "that of another browser: one has a single cookie of a host");

    let cookie = log_in().await;
    let logout = async {
        let form = format!("logout_token={}", issuer.logout_token(&json!({})));
        let answer = replicas.here.submit("/oauth2/backchannel_logout", &[], &form).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
    };
    replicas.end_in_time(("logged out at the provider", "signed_out"), &cookie, logout).await;

    let cookie = log_in().await;
    let command = async {
        let (code, said) = replicas.here.sessions("end").await;
        assert_eq!(code, Some(0), "{said}");
    };
    replicas.end_in_time(("ended by an operator", "revoked"), &cookie, command).await;

    let cookie = log_in().await;
    let shut_out = async {
        issuer.shut_out();
        // Less than the minute by which clocks may differ if a refusal is to count: the provider is asked soon.
        replicas.here.doorward.set_clock_ahead(59);
        until(async || replicas.status(&cookie).await == 401).await;
    };
    replicas.end_in_time(("shut out at the provider", "signed_out"), &cookie, shut_out).await;
}

/// The certified provider no longer knows the refresh token.
#[tokio::test]
async fn a_session_whose_refresh_fails_at_one_replica_ends_at_the_other_within_two_seconds() {
    let port = free_port();
    let origin = format!("http://localhost:{port}");
    let provider = OidcProvider::start(&origin).await;
    let login = "scopes: [offline_access], prompt: consent";
    let replicas = Replicas::start(port, &provider.issuer, login, "5m").await;
    let here = &replicas.here;
    let answered = Answered::begin(&here.doorward, &here.host, &[], &provider, "alice").await;
    let back = here.get(&answered.callback, &[&answered.cookies]).await;
    let cookie = session(&back).unwrap_or_else(|| panic!("{}{}", back.head, back.text()));
    replicas.here.doorward.set_clock_ahead(301);
    assert_eq!(replicas.status(&cookie).await, 200, "the twin");
    assert_eq!(provider.refreshes().await, (1, 0));

    let idp_port = provider.port();
    let forgotten = async {
        provider.stop().await;
        let provider = OidcProvider::start_at(&origin, idp_port).await;
        replicas.here.doorward.set_clock_ahead(602);
        assert_eq!(replicas.status(&cookie).await, 401, "the provider was asked");
        assert_eq!(provider.refreshes().await, (0, 1));
    };
    replicas.end_in_time(("the grant is gone", "signed_out"), &cookie, forgotten).await;
}
