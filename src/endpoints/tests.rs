use std::future::{pending, ready};

use http::Request;
use http_body_util::Full;
use tokio::runtime::Handle;
use uuid::Uuid;

use super::*;
use crate::{
    admin::metrics::RequestMetrics,
    audit::Record,
    authn::Actor,
    clock::Timestamp,
    config::{raw, resolver::Resolver},
    egress::Egress,
    issuers,
    oidc::{LoginMetrics, SIGN_OUT, scripted::ScriptedProvider},
    request::{
        exchange::Ledger,
        sanitize::{Arrival, sanitize},
    },
    sessions::{KeyRing, tests::Fixture},
    snapshot::{self, Shared},
    sts::SigningKeyRing,
    upstream::buffered::ByteBudget,
    webhooks::{Replay, WebhookMetrics},
};

/// A Doorward whose configuration is empty.
struct World {
    fixture: Fixture,
    snapshot: Snapshot,
}

impl World {
    fn new() -> Self {
        let fixture = Fixture::new(ScriptedProvider::offline("corp"));
        let (folder, clock) = (tempfile::tempdir().unwrap(), fixture.shared.clock.clone());
        let issuers = issuers::Context {
            clock: clock.clone(),
            control: Handle::current(),
            egress: Egress::direct(None, None).unwrap(),
            metrics: issuers::Metrics::default(),
            refetches: issuers::Context::refetches(&clock),
        };
        let context = snapshot::Context { issuers, requests: RequestMetrics::default() };
        let mut resolver = Resolver::new(folder.path());
        let resolved = snapshot::resolve(&raw::Root::default(), &mut resolver, &context, None);
        let shared = Shared {
            sessions: fixture.shared.clone(),
            logins: LoginMetrics::default(),
            requests: context.requests.clone(),
            keys: KeyRing::of(&[[1; 32]]),
            assertion_keys: assertions::Keys::load_or_create(&folder.path().join("assertions")).unwrap(),
            token_keys: SigningKeyRing::default(),
        };
        let snapshot = resolved.into_snapshot(1, &shared, &clock).unwrap();
        Self { fixture, snapshot }
    }

    /// The answer to a request without a credential, and the endpoint that is recorded.
    async fn ask(
        &self,
        method: Method,
        path: &str,
        body: Vec<u8>,
    ) -> (Result<Response<Bytes>, Rejection>, Option<&'static str>) {
        let shared = &self.fixture.shared;
        let requests = RequestMetrics::default();
        let metrics = Arc::new(requests.route(&"-".into()));
        let ledger = Ledger { trail: shared.trail.clone(), metrics, in_flight: requests.begin(), epoch: 0 };
        let record = Record::begin(Uuid::nil(), Timestamp::default(), method.clone());
        let mut exchange = Exchange::resume(record, ledger);
        let request = Request::builder().method(method).uri(path).header(header::HOST, "localhost");
        let request = request.body(Full::<Bytes>::from(body)).unwrap();
        let request = sanitize(request, Arrival::of_tests(), Uuid::nil(), |host| Some(host.into())).unwrap();
        let authenticator = Authenticator {
            issuers: &self.snapshot.issuers,
            sessions: &self.snapshot.sessions,
            login: &self.snapshot.login,
            break_glass: None,
            anonymous: &Arc::new(Principal::anonymous()),
            revocations: &shared.revocations,
            max_mirror_age: self.snapshot.max_mirror_age,
            replay: &Replay::new(Arc::clone(&shared.store)),
            webhooks: &WebhookMetrics::default(),
            limits: &self.snapshot.limits,
            budget: &ByteBudget::new(1 << 24),
            clock: &shared.clock,
            control: &shared.control,
        };
        let answer = serve(&self.snapshot, request, authenticator, &mut exchange).await;
        let endpoint = exchange.record().endpoint;
        (answer, endpoint)
    }
}

fn reason(answer: Result<Response<Bytes>, Rejection>) -> Option<Reason> {
    answer.err().map(|rejection| rejection.reason())
}

#[tokio::test]
async fn a_path_without_a_page_is_not_found() {
    let world = World::new();
    for (path, endpoint) in [
        ("/.doorward/nothing", "own"),
        ("/.doorward/whoami/more", "own"),
        ("/.well-known/oauth-protected-resource/", "own"),
        ("/oauth2/", "own"),
        ("/oauth2/nothing", "login"),
        // Without `forward_auth`.
        ("/oauth2/auth", "login"),
    ] {
        let (answer, recorded) = world.ask(Method::GET, path, Vec::new()).await;
        assert_eq!((reason(answer), recorded), (Some(Reason::RouteNotFound), Some(endpoint)), "{path}");
    }
}

#[tokio::test]
async fn every_page_refuses_other_methods_and_says_which_it_accepts() {
    let world = World::new();
    for (path, endpoint, allow) in [
        ("/oauth2/userinfo", "login", "GET, HEAD"),
        (WHO_AM_I, "whoami", "GET, HEAD"),
        (probe::PATH, "probe", "GET, HEAD"),
        (sessions::PATH, "sessions", "GET, HEAD"),
        (sessions::END, "sessions", "POST"),
        (assertions::KEY_SET, "metadata", "GET, HEAD"),
        (PROTECTED_RESOURCE, "metadata", "GET, HEAD, OPTIONS"),
        ("/.well-known/oauth-protected-resource/api", "metadata", "GET, HEAD, OPTIONS"),
    ] {
        let (answer, recorded) = world.ask(Method::DELETE, path, Vec::new()).await;
        let refusal = answer.unwrap_err();
        assert_eq!((refusal.reason(), refusal.allow()), (Reason::MethodNotAllowed, Some(allow)), "{path}");
        assert_eq!(recorded, Some(endpoint), "{path}");
        for accepted in allow.split(", ") {
            let (answer, _) = world.ask(accepted.parse().unwrap(), path, Vec::new()).await;
            assert_eq!(reason(answer), None, "{accepted} {path}");
        }
    }
    // The login has a page for it.
    let (answer, recorded) = world.ask(Method::DELETE, SIGN_OUT, Vec::new()).await;
    let page = answer.unwrap();
    assert_eq!((page.status(), recorded), (StatusCode::METHOD_NOT_ALLOWED, Some("login")));
    assert_eq!(page.headers()[header::ALLOW], "GET, HEAD, POST");
}

/// The content is removed where all of Doorward's own responses to HEAD are made, so it must be that of GET: its length
/// is kept.
#[tokio::test]
async fn head_is_answered_as_get_is() {
    let world = World::new();
    for (path, status) in [
        (probe::PATH, StatusCode::OK),
        (assertions::KEY_SET, StatusCode::OK),
        (PROTECTED_RESOURCE, StatusCode::OK),
        (WHO_AM_I, StatusCode::UNAUTHORIZED),
    ] {
        let (get, _) = world.ask(Method::GET, path, Vec::new()).await;
        let (head, _) = world.ask(Method::HEAD, path, Vec::new()).await;
        let (get, head) = (get.unwrap(), head.unwrap());
        assert_eq!((get.status(), head.status()), (status, status), "{path}");
        assert_eq!((get.headers(), get.body()), (head.headers(), head.body()), "{path}");
        assert!(!head.body().is_empty(), "{path}");
        assert_eq!(head.headers()[header::X_CONTENT_TYPE_OPTIONS], "nosniff", "{path}");
    }
}

#[tokio::test]
async fn only_pages_that_take_a_form_read_the_body_up_to_their_limit() {
    let world = World::new();
    for (method, path, max) in [
        (Method::POST, program::TOKEN, Some(program::MAX_BODY)),
        (Method::POST, program::DEVICE_REQUEST, Some(program::MAX_BODY)),
        (Method::POST, program::DEVICE, Some(program::MAX_BODY)),
        (Method::POST, backchannel::PATH, Some(backchannel::MAX_BODY)),
        (Method::GET, probe::PATH, None),
    ] {
        let larger = max.unwrap_or(1 << 20) + 1;
        let (answer, _) = world.ask(method.clone(), path, vec![b'a'; larger]).await;
        assert_eq!(reason(answer), max.map(|_| Reason::BodyTooLarge), "{path}");
        let (answer, _) = world.ask(method, path, vec![b'a'; larger - 1]).await;
        assert_eq!(reason(answer), None, "{path}");
    }
}

/// Regression: a slow provider or a bug led to an empty page or a bare text, without a refusal in the record.
#[tokio::test(start_paused = true)]
async fn an_endpoint_that_takes_too_long_or_panics_refuses_the_request() {
    async fn panics() -> Result<Response<Bytes>, Rejection> {
        panic!("scripted")
    }
    assert_eq!(reason(guarded(ready(Ok(Response::default()))).await), None);
    assert_eq!(reason(guarded(pending()).await), Some(Reason::UpstreamTimeout));
    assert_eq!(reason(guarded(panics()).await), Some(Reason::Internal));
}

/// An agent that came with a person's token was shown the person alone.
#[test]
fn whoami_tells_an_agent_that_it_acts_and_by_what_rules_know_it() {
    let told = json!({"issuer": "bots", "subject": "worker", "client": "worker-app"});
    for (actor, told) in [(None, json!(null)), (Some("worker-app"), told)] {
        let principal = Principal {
            client: Some("cli".into()),
            actor: actor.map(|client: &str| Actor {
                issuer: Some("bots".into()),
                subject: "worker".into(),
                client: Some(client.into()),
            }),
            ..Principal::new(Scheme::Bearer, "corp", "7", "alice")
        };
        let about = About { principal: &principal, groups: &[], rules: Vec::new(), session: None };
        let body: Value = serde_json::from_slice(about.as_json().body()).unwrap();
        assert_eq!((&body["subject"], &body["client"], &body["actor"]), (&json!("7"), &json!("cli"), &told), "{body}");
    }
}
