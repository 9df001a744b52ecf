//! Tokens of clusters and of CI systems.

use std::{path::Path, time::Duration};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde_json::{Value, json};

use super::super::{
    Accepts, Context, Issuers,
    metrics::{Metrics, OutcomeLabels},
    testing::*,
};
use crate::{
    authn::{Kind, Principal},
    config::{raw, report::Severity, resolver::Resolver},
    error::{Reason, Rejection},
};

struct Bench {
    provider: Provider,
    issuers: Issuers,
    accepts: Accepts,
    context: Context,
    _bearer: tempfile::NamedTempFile,
}

const REVIEWS: &str = "/apis/authentication.k8s.io/v1/tokenreviews";

impl Bench {
    async fn new(preset: &str, review: bool) -> Self {
        Self::with(preset, review, json!({})).await
    }

    /// With additional settings of the review.
    async fn with(preset: &str, review: bool, more: Value) -> Self {
        let context = context();
        let provider = Provider::with_keys(&[RSA.jwk("rsa", json!({}))]).await;
        let bearer = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(bearer.path(), "reviewer-token").unwrap();
        let mut issuer = json!({"name": "main", "issuer": provider.url, "audiences": ["doorward"], "preset": preset});
        if review {
            issuer["token_review"] = changed(json!({"upstream": "api", "bearer": {"file": bearer.path()}}), &more);
            issuer["keys"] = json!({"bearer": {"file": bearer.path()}});
        }
        let root = json!({"issuers": [issuer], "upstreams": [{"name": "api", "url": provider.url}]});
        let (issuers, accepts) = ready(&root, &context).await;
        Self { provider, issuers, accepts, context, _bearer: bearer }
    }

    async fn ask(&self, header: &str, payload: Value) -> Result<std::sync::Arc<Principal>, Rejection> {
        self.issuers.authenticate(&RSA.token(header, &payload.to_string()), &self.accepts, &nothing).await
    }

    /// A projected service-account token: no `typ`.
    async fn pod(&self, changes: Value) -> Result<std::sync::Arc<Principal>, Rejection> {
        let payload = json!({
            "iss": self.provider.url, "sub": "system:serviceaccount:ci:builder", "aud": ["doorward"], "jti": "j",
            "iat": START, "nbf": START, "exp": START + 3_600,
            "kubernetes.io": {"namespace": "ci", "pod": {"name": "p", "uid": "u"}, "serviceaccount": {"name": "builder", "uid": "s"}},
        });
        self.ask(r#"{"alg":"RS256","kid":"rsa"}"#, changed(payload, &changes)).await
    }

    fn review(&self, status: Value) {
        self.provider.on(REVIEWS, Reply::Answer(201, "application/json", json!({"status": status}).to_string().into()));
    }
}

#[tokio::test]
async fn service_accounts_are_workloads_with_a_name_of_their_own() {
    let bench = Bench::new("kubernetes", false).await;
    let principal = bench.pod(json!({})).await.unwrap();
    assert_eq!(*principal.username, format!("{}#ci/builder", bench.provider.url));
    assert_eq!((principal.kind, principal.service_account()), (Kind::Workload, Some(("ci", "builder"))));
    for (changes, reason) in [
        (json!({"sub": "system:node:a"}), Reason::TokenInvalid),
        (json!({"sub": "system:serviceaccount:ci"}), Reason::TokenInvalid),
        (json!({"sub": "system:serviceaccount:ci:a:b"}), Reason::TokenInvalid),
        (json!({"sub": "system:serviceaccount:a/b:c"}), Reason::TokenInvalid),
        (json!({"sub": "system:serviceaccount::builder"}), Reason::TokenInvalid),
        (json!({"sub": format!("system:serviceaccount:{}:x", "n".repeat(300))}), Reason::TokenInvalid),
        (json!({"sub": "alice"}), Reason::TokenInvalid),
        (json!({"aud": ["https://kubernetes.default.svc"]}), Reason::AudienceMismatch),
        (json!({"exp": START + 3_607}), Reason::TokenInvalid),
        (json!({"exp": START + 31_536_000}), Reason::TokenInvalid),
    ] {
        assert_eq!(bench.pod(changes.clone()).await.unwrap_err().reason(), reason, "{changes}");
    }
}

/// Kubernetes allows 253 bytes for a service account and 63 for a namespace; with more than 232 together the token was
/// refused.
#[tokio::test]
async fn the_longest_name_that_a_service_account_can_have_is_taken() {
    let bench = Bench::new("kubernetes", false).await;
    let (namespace, account) = ("n".repeat(63), "a".repeat(253));
    let sub = format!("system:serviceaccount:{namespace}:{account}");
    let principal = bench.pod(json!({"sub": sub})).await.unwrap();
    assert_eq!(principal.service_account(), Some((&*namespace, &*account)));
    assert_eq!(*principal.username, format!("{}#{namespace}/{account}", bench.provider.url));
    let longer = bench.pod(json!({"sub": format!("{sub}a")})).await.unwrap_err();
    assert_eq!(longer.reason(), Reason::TokenInvalid, "it is none that a cluster could have");
}

#[tokio::test]
async fn only_presets_vouch_for_workloads() {
    let provider = Provider::with_keys(&[RSA.jwk("rsa", json!({}))]).await;
    let root = json!({"issuers": [{"name": "main", "issuer": provider.url, "audiences": ["doorward"]}]});
    let (issuers, accepts) = ready(&root, &context()).await;
    let forged =
        json!({"sub": "system:serviceaccount:ci:builder", "repository_id": "1", "kubernetes.io": {"namespace": "ci"}});
    let token = RSA.token(r#"{"alg":"RS256","kid":"rsa","typ":"at+jwt"}"#, &claims(&provider.url, forged));
    let principal = issuers.authenticate(&token, &accepts, &nothing).await.unwrap();
    assert_eq!((principal.service_account(), principal.repository()), (None, None));
    assert!(principal.username.starts_with("http://"));
}

#[tokio::test]
async fn token_reviews_decide_if_configured() {
    let bench = Bench::new("kubernetes", true).await;
    let good = json!({"authenticated": true, "audiences": ["doorward"], "user": {
        "username": "system:serviceaccount:ci:builder", "uid": "s",
        "extra": {"authentication.kubernetes.io/pod-uid": ["u"]}}});
    bench.review(good.clone());
    let principal = bench.pod(json!({})).await.unwrap();
    let pointer = "/extra/authentication.kubernetes.io~1pod-uid/0";
    assert_eq!(principal.claims["authentication.kubernetes.io"].pointer(pointer), Some(&json!("u")));
    let got = bench.provider.got().into_iter().find(|got| got.path == REVIEWS).unwrap();
    assert_eq!(got.headers["authorization"], "Bearer reviewer-token");
    let asked: Value = serde_json::from_str(&got.body).unwrap();
    assert_eq!(asked["spec"]["audiences"], json!(["doorward"]));
    assert_eq!(bench.provider.got()[0].headers["authorization"], "Bearer reviewer-token", "for discovery too");

    for (number, (status, reason)) in [
        (json!({"authenticated": false}), Reason::TokenInactive),
        (changed(good.clone(), &json!({"audiences": null})), Reason::TokenInactive),
        (changed(good.clone(), &json!({"audiences": ["other"]})), Reason::TokenInactive),
        (changed(good.clone(), &json!({"user": {"username": "system:admin"}})), Reason::TokenInactive),
    ]
    .into_iter()
    .enumerate()
    {
        bench.review(status);
        assert_eq!(bench.pod(json!({"jti": number.to_string()})).await.unwrap_err().reason(), reason, "{number}");
    }
    bench.provider.on(REVIEWS, Reply::Answer(403, "application/json", "{}".into()));
    assert_eq!(bench.pod(json!({"jti": "x"})).await.unwrap_err().reason(), Reason::IssuerUnavailable);
}

#[tokio::test]
async fn token_reviews_go_to_the_server_in_the_kubeconfig_of_the_upstream() {
    let bench = Bench::new("kubernetes", false).await;
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let authority = rcgen::generate_simple_self_signed(["a.test".to_owned()]).unwrap().cert.pem();
    let resolved = |server: &str, data: &str| {
        let kubeconfig = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "x",
            "clusters": [{"name": "c", "cluster": {
                "server": server, "certificate-authority-data": data,
                "tls-server-name": if data.is_empty() { "" } else { "a.test" },
            }}],
            "users": [{"name": "u", "user": {"token": "not-for-reviews"}}],
            "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        });
        std::fs::write(path("kubeconfig"), kubeconfig.to_string()).unwrap();
        std::fs::write(path("token"), "reviewer-token").unwrap();
        let issuer = json!({"name": "main", "issuer": bench.provider.url, "audiences": ["doorward"],
            "preset": "kubernetes", "token_review": {"upstream": "api", "bearer": {"file": path("token")}}});
        let upstream = json!({"name": "api", "kubeconfig": {"file": path("kubeconfig")}});
        resolve(&json!({"issuers": [issuer], "upstreams": [upstream]}), None, &bench.context).0
    };
    let settings = |issuers: &Issuers| {
        let issuer = issuers.get("main").unwrap().token_review.clone().unwrap();
        let settings = issuer.settings();
        (settings.server.to_string(), settings.ca.clone(), settings.server_name.clone())
    };
    let (server, ca, name) = settings(&resolved("https://api.test:6443", &BASE64_STANDARD.encode(&authority)));
    assert_eq!((server.as_str(), name), ("https://api.test:6443/", Some("a.test".try_into().unwrap())));
    assert_eq!(ca.unwrap().expose(), authority.as_bytes());
    let (server, ca, name) = settings(&resolved(&bench.provider.url, ""));
    assert_eq!(server, format!("{}/", bench.provider.url));
    assert!(ca.is_none() && name.is_none());
}

/// Before, each token was answered with 503.
#[tokio::test]
async fn a_bearer_token_invalid_in_a_header_is_reported_at_its_path() {
    let bearer = tempfile::NamedTempFile::new().unwrap();
    let issuer = json!({"name": "main", "issuer": "https://kubernetes.test", "audiences": ["doorward"],
        "preset": "kubernetes", "keys": {"bearer": {"file": bearer.path()}},
        "token_review": {"upstream": "api", "bearer": {"file": bearer.path()}}});
    let root = json!({"issuers": [issuer], "upstreams": [{"name": "api", "url": "http://127.0.0.1:6443"}]});
    let root: raw::Root = serde_json::from_value(root).unwrap();
    let places = ["/issuers/0/keys/bearer", "/issuers/0/token_review/bearer"];
    for (token, problems) in [("of\ntwo lines", &places[..]), ("of one\n", &[])] {
        std::fs::write(bearer.path(), token).unwrap();
        let mut resolver = Resolver::new(Path::new("/"));
        Issuers::resolve(&root, &mut resolver, None, &context());
        let errors = resolver.report.problems().iter().filter(|problem| problem.severity == Severity::Error);
        let (found, helped): (Vec<_>, Vec<_>) =
            errors.map(|problem| (problem.at.to_string(), problem.help.is_some())).unzip();
        assert_eq!(found, problems, "{token:?}");
        assert!(helped.into_iter().all(|is_helped| is_helped), "what to do about it");
    }
}

/// kubernetes:C5: a dead token causes one review.
#[tokio::test]
async fn a_dead_token_does_not_hammer_the_api_server() {
    let bench = Bench::new("kubernetes", true).await;
    bench.review(json!({"authenticated": false}));
    for _ in 0..1_000 {
        assert_eq!(bench.pod(json!({})).await.unwrap_err().reason(), Reason::TokenInactive);
    }
    assert_eq!(bench.provider.hits(REVIEWS), 1);
    let counted = |outcome| {
        let Metrics { token_reviews, introspections, .. } = &bench.context.metrics;
        let labels = OutcomeLabels { issuer: "main".into(), outcome };
        [token_reviews, introspections].map(|family| family.get_or_create(&labels).get())
    };
    assert_eq!((counted("inactive"), counted("active")), ([1, 0], [0, 0]));
}

#[tokio::test]
async fn how_long_a_review_counts_and_the_pause_of_an_api_server_that_fails_can_be_set() {
    let more = json!({"negative_cache": "2s", "circuit_breaker": {"failures": 1, "pause": "1m"}});
    let bench = Bench::with("kubernetes", true, more).await;
    let ask = async |token: &str| bench.pod(json!({"jti": token})).await.map(|_| ()).map_err(|error| error.reason());
    let good = json!({"authenticated": true, "audiences": ["doorward"], "user": {
        "username": "system:serviceaccount:ci:builder"}});
    bench.review(json!({"authenticated": false}));
    assert_eq!(ask("late").await, Err(Reason::TokenInactive));
    bench.review(good.clone());
    bench.context.clock.advance(Duration::from_secs(1));
    assert_eq!(ask("late").await, Err(Reason::TokenInactive));
    bench.context.clock.advance(Duration::from_secs(1));
    assert_eq!(ask("late").await, Ok(()));

    bench.provider.on(REVIEWS, Reply::Answer(500, "text/plain", "".into()));
    assert_eq!(ask("first").await, Err(Reason::IssuerUnavailable));
    bench.review(good);
    bench.context.clock.advance(Duration::from_secs(59));
    assert_eq!(ask("second").await, Err(Reason::IssuerUnavailable), "one failure is enough");
    bench.context.clock.advance(Duration::from_secs(1));
    assert_eq!(ask("second").await, Ok(()));
}

#[tokio::test]
async fn how_long_a_review_may_take_can_be_set() {
    let bench = Bench::with("kubernetes", true, json!({"timeout": "50ms"})).await;
    bench.provider.on(REVIEWS, Reply::Hang);
    let rejection = bench.pod(json!({})).await.unwrap_err();
    assert!(precise(&rejection).ends_with("no answer within 50ms"), "{}", precise(&rejection));
}

#[tokio::test]
async fn ci_jobs_are_known_by_the_number_of_their_repository() {
    let bench = Bench::new("github_actions", false).await;
    let github = |changes| {
        let sub = json!({"sub": "repo:o/r:ref:refs/heads/main", "repository_id": "42", "ref": "refs/heads/main"});
        serde_json::from_str::<Value>(&claims(&bench.provider.url, changed(sub, &changes))).unwrap()
    };
    let header = r#"{"alg":"RS256","kid":"rsa","typ":"JWT","x5t":"abc"}"#;
    let principal = bench.ask(header, github(json!({}))).await.unwrap();
    assert_eq!((principal.kind, principal.repository()), (Kind::Workload, Some(("github", "42"))));
    for id in [json!(42), json!("4 2"), json!(null), json!("")] {
        let rejection = bench.ask(header, changed(github(json!({})), &json!({"repository_id": id}))).await.unwrap_err();
        assert_eq!(rejection.reason(), Reason::TokenInvalid);
    }
    let bench = Bench::new("gitlab_ci", false).await;
    let token = serde_json::from_str(&claims(&bench.provider.url, json!({"project_id": "7"}))).unwrap();
    assert_eq!(bench.ask(header, token).await.unwrap().repository(), Some(("gitlab", "7")));
}
