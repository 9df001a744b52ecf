use super::*;
use url::form_urlencoded;

fn resolve(yaml: &str) -> (Option<Protocol>, Vec<String>) {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("secret"), "s3cret of the client\n").unwrap();
    std::fs::write(folder.path().join("policy.json"), r#"{"Version":"2012-10-17"}"#).unwrap();
    std::fs::write(folder.path().join("long.json"), format!(r#"{{"a":"{}"}}"#, "a".repeat(2048))).unwrap();
    let raw: OnwardProvider = serde_saphyr::from_str(yaml).unwrap();
    let mut resolver = Resolver::new(folder.path());
    let protocol = Protocol::resolve(&raw, Some("https://idp.example"), 1800, &At::root(), &mut resolver);
    let places = resolver.report.problems().iter().map(|problem| problem.at.as_str().to_owned());
    (protocol, places.collect())
}

#[test]
fn each_kind_of_provider_is_asked_in_its_own_words() {
    let secret = "Basic aWQ6czNjcmV0K29mK3RoZStjbGllbnQ=";
    for (yaml, url, authorization, expected) in [
        (
            "token_exchange: {token_url: 'https://idp.example/token', audience: api}",
            "https://idp.example/token",
            None,
            &[
                ("grant_type", GRANT),
                ("requested_token_type", ACCESS_TOKEN),
                ("subject_token_type", JWT),
                ("audience", "api"),
                ("scope", "read write"),
                ("subject_token", "a.b.c"),
            ][..],
        ),
        (
            "token_exchange: {token_url: 'http://localhost/t', resource: 'https://api', client: {id: id, secret: {file: secret}}}",
            "http://localhost/t",
            Some(secret),
            &[
                ("grant_type", GRANT),
                ("requested_token_type", ACCESS_TOKEN),
                ("subject_token_type", JWT),
                ("resource", "https://api"),
                ("scope", "read write"),
                ("subject_token", "a.b.c"),
            ],
        ),
        (
            "token_exchange: {token_url: 'https://idp.example/token', client: {id: id, method: none}, client_assertion: true}",
            "https://idp.example/token",
            None,
            &[
                ("grant_type", GRANT),
                ("requested_token_type", ACCESS_TOKEN),
                ("subject_token_type", JWT),
                ("scope", "read write"),
                ("subject_token", "a.b.c"),
                ("client_id", "id"),
                ("client_assertion_type", ASSERTION_TYPE),
                ("client_assertion", "d.e.f"),
            ],
        ),
        (
            "jwt_bearer: {token_url: 'https://idp.example/token', client: {id: id, method: post, secret: {file: secret}}}",
            "https://idp.example/token",
            None,
            &[
                ("grant_type", JWT_BEARER),
                ("scope", "read write"),
                ("assertion", "a.b.c"),
                ("client_id", "id"),
                ("client_secret", "s3cret of the client"),
            ],
        ),
        (
            "client_credentials: {token_url: 'https://login.example/oauth2/v2.0/token', client_id: app}",
            "https://login.example/oauth2/v2.0/token",
            None,
            &[
                ("grant_type", "client_credentials"),
                ("client_assertion_type", ASSERTION_TYPE),
                ("client_id", "app"),
                ("scope", "read write"),
                ("client_assertion", "a.b.c"),
            ],
        ),
        (
            "google: {pool_provider: '//iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/p/providers/q'}",
            GOOGLE,
            None,
            &[
                ("grant_type", GRANT),
                ("requested_token_type", ACCESS_TOKEN),
                ("subject_token_type", JWT),
                ("audience", "//iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/p/providers/q"),
                ("scope", "read write"),
                ("subject_token", "a.b.c"),
            ],
        ),
        (
            "aws: {role: 'arn:aws:iam::1:role/deploy', session_policy: policy.json}",
            AWS,
            None,
            &[
                ("Action", "AssumeRoleWithWebIdentity"),
                ("Version", "2011-06-15"),
                ("RoleArn", "arn:aws:iam::1:role/deploy"),
                ("DurationSeconds", "1800"),
                ("Policy", r#"{"Version":"2012-10-17"}"#),
                ("RoleSessionName", "ci.push"),
                ("WebIdentityToken", "a.b.c"),
            ],
        ),
    ] {
        let (protocol, problems) = resolve(yaml);
        let protocol = protocol.unwrap_or_else(|| panic!("{yaml}: {problems:?}"));
        let client_assertion = protocol.wants_client_assertion().then_some("d.e.f");
        let scopes = ["read".to_owned(), "write".to_owned()];
        let sent = Sent { assertion: "a.b.c", client_assertion, scopes: &scopes, session: "ci.push" };
        let request = protocol.request(&sent, Timestamp::default()).unwrap();
        assert_eq!((request.uri().to_string().as_str(), request.method().as_str()), (url, "POST"));
        assert_eq!(request.headers()[header::ACCEPT], "application/json");
        assert_eq!(request.headers().get(header::AUTHORIZATION).map(|value| value.to_str().unwrap()), authorization);
        let form: Vec<(String, String)> = form_urlencoded::parse(request.body()).into_owned().collect();
        let form: Vec<(&str, &str)> = form.iter().map(|(name, value)| (&**name, &**value)).collect();
        assert_eq!(form, expected, "{yaml}");
    }
}

#[test]
fn a_service_account_is_asked_for_with_the_least_token_of_the_pool() {
    let (protocol, problems) = resolve(
        "google: {pool_provider: '//iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/p/providers/q', \
         service_account: deploy@acme.iam.gserviceaccount.com}",
    );
    let protocol = protocol.unwrap_or_else(|| panic!("{problems:?}"));
    let scopes = ["https://www.googleapis.com/auth/devstorage.read_only".to_owned()];
    let sent = Sent { assertion: "a.b.c", client_assertion: None, scopes: &scopes, session: "" };
    let request = protocol.request(&sent, Timestamp::default()).unwrap();
    let asked: Vec<_> = form_urlencoded::parse(request.body()).filter(|(name, _)| name == "scope").collect();
    assert_eq!(asked, [("scope".into(), IAM_SCOPE.into())]);
    let request = protocol.next.as_ref().unwrap().request("pool", &scopes, 1800).unwrap();
    assert_eq!(
        request.uri(),
        "https://iamcredentials.googleapis.com/v1/projects/-/serviceAccounts/deploy@acme.iam.gserviceaccount.com:generateAccessToken"
    );
    let (below, problems) = resolve(
        "google: {pool_provider: '//iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/p/providers/q', \
         service_account: deploy@acme.iam.gserviceaccount.com, iam_credentials_url: 'https://proxy.test/google/'}",
    );
    let below = below.and_then(|protocol| protocol.next).unwrap_or_else(|| panic!("{problems:?}"));
    let address = "https://proxy.test/google/v1/projects/-/serviceAccounts/deploy@acme.iam.gserviceaccount.com:generateAccessToken";
    assert_eq!(below.url.as_str(), address, "a path of its own stays");
    assert_eq!(request.headers()[header::AUTHORIZATION], "Bearer pool");
    let body: serde_json::Value = serde_json::from_slice(request.body()).unwrap();
    assert_eq!(body, json!({"scope": scopes, "lifetime": "1800s"}));
}

#[test]
fn a_revocation_request_is_authenticated_like_the_token_request() {
    let pairs = |yaml: &str| -> Vec<(String, String)> {
        let protocol = resolve(yaml).0.unwrap();
        let url = Url::parse("https://idp.example/revoke").unwrap();
        let request = protocol.revocation(&url, "t", Some("d.e.f"), Timestamp::default()).unwrap();
        assert_eq!(request.uri(), "https://idp.example/revoke");
        form_urlencoded::parse(request.body()).into_owned().collect()
    };
    let names = |pairs: &[(String, String)]| pairs.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
    let bare = pairs("jwt_bearer: {token_url: 'https://idp.example/token'}");
    assert_eq!(names(&bare), ["token", "token_type_hint"]);
    for yaml in [
        "client_credentials: {token_url: 'https://idp.example/token', client_id: app}",
        "jwt_bearer: {token_url: 'https://idp.example/token', client: {id: app, method: none}, client_assertion: true}",
    ] {
        let said = pairs(yaml);
        let expected = ["token", "token_type_hint", "client_id", "client_assertion_type", "client_assertion"];
        assert_eq!(names(&said), expected, "{yaml}");
    }
}

#[test]
fn impossible_providers_are_reported_at_their_path() {
    for (yaml, place) in [
        ("token_exchange: {token_url: 'http://idp.example/token'}", "/token_exchange/token_url"),
        ("jwt_bearer: {token_url: nothing}", "/jwt_bearer/token_url"),
        (
            "jwt_bearer: {token_url: 'https://a', client: {id: a, secret: {file: secret}}, client_assertion: true}",
            "/jwt_bearer/client",
        ),
        ("client_credentials: {token_url: 'https://u:p@a'}", "/client_credentials/token_url"),
        ("google: {pool_provider: 'https://iam.googleapis.com/x'}", "/google/pool_provider"),
        (
            "google: {pool_provider: '//iam.googleapis.com/p/providers/q', service_account: 'a@b/../c'}",
            "/google/service_account",
        ),
        ("aws: {role: deploy}", "/aws/role"),
        ("aws: {role: 'arn:aws:iam::1:role/a', session_policy: secret}", "/aws/session_policy"),
        ("aws: {role: 'arn:aws:iam::1:role/a', session_policy: long.json}", "/aws/session_policy"),
        ("aws: {role: 'arn:aws:iam::1:role/a', session_policy: absent}", "/aws/session_policy"),
    ] {
        assert_eq!(resolve(yaml).1, [place], "{yaml}");
    }
}

#[test]
fn a_session_has_a_name_that_aws_takes() {
    for (text, name) in [
        ("ci.release-x7k2p-push", "ci.release-x7k2p-push".to_owned()),
        ("company#alice@example.com", "company-alice@example.com".to_owned()),
        ("é", "--".to_owned()),
        ("", "--".to_owned()),
        (&format!("{}push", "a".repeat(80)), format!("{}push", "a".repeat(60))),
    ] {
        assert_eq!(session_name(text), name);
    }
}
