use super::*;
use crate::upstream::upgrade::requested;

#[test]
fn what_kubectl_reads_as_bytes_is_refused_in_plain_text() {
    let brand = Brand::default();
    for (path, is_text) in [
        ("/api", true),
        ("/apis", true),
        ("/version", true),
        ("/version/", true),
        ("/openapi/v2", true),
        ("/openapi/v3", true),
        ("/openapi/v3/api/v1", true),
        ("/api/v1", false),
        ("/apis/tekton.dev/v1", false),
        ("/apis/tekton.dev/v1/namespaces/ci/taskruns", false),
        ("/versions", false),
    ] {
        let request = Request::get(path).body(()).unwrap();
        let manner = Manner { is_discovery: is_discovery(path), ..Manner::of(Uuid::nil(), &request) };
        let route = Some(RouteTerms { kind: Some(RouteKind::Kubernetes), schemes: &[] });
        let context = manner.context(None, None, Timestamp::default(), &brand);
        let rejection = Rejection::new(Reason::PolicyDenied, "no rule allows this").fix("ask for one");
        let answer = refuse(&rejection, &RefusalContext { route, ..context });
        let kind = answer.headers()["content-type"].to_str().unwrap();
        assert_eq!((answer.status(), kind.starts_with("text/plain")), (StatusCode::FORBIDDEN, is_text), "{path}");
        let said = "doorward: no rule allows this. Ask for one (request 00000000-0000-0000-0000-000000000000)";
        assert!(!answer.headers().contains_key("warning"), "{path}: its text is shown");
        if is_text {
            assert_eq!(answer.body(), said, "{path}");
        } else {
            let status: Value = serde_json::from_slice(answer.body()).unwrap();
            assert_eq!(status["message"], said, "{path}");
        }
    }
}

/// After it, people were at the front page, and had to find the link to the denied page again.
#[test]
fn who_signs_in_as_somebody_else_returns_to_the_denied_page() {
    let brand = Brand::default();
    let route = Some(RouteTerms { kind: Some(RouteKind::Http), schemes: &[Scheme::Session] });
    let text = |text: &str| Some(text.to_owned());
    for (back, form, href) in [
        (text("/admin/x?y=1"), None, "/oauth2/sign_in?rd=%2Fadmin%2Fx%3Fy%3D1"),
        (None, text("/admin/form"), "/oauth2/sign_in?rd=%2Fadmin%2Fform"),
        (None, None, "/oauth2/sign_in"),
    ] {
        let of_page = Manner::of(Uuid::nil(), &Request::get("/").body(()).unwrap());
        let manner = Manner { is_page: true, back, form, ..of_page };
        let context = RefusalContext { route, ..manner.context(None, Some("alice"), Timestamp::default(), &brand) };
        let answer = refuse(&Rejection::new(Reason::PolicyDenied, "no"), &context);
        let page = std::str::from_utf8(answer.body()).unwrap();
        assert!(page.contains(&format!("href=\"{href}\">Sign in as somebody else")), "{href} in {page}");
    }
}

/// People who were signed in read "Please sign in" where it does not help.
#[test]
fn nobody_is_asked_to_sign_in_where_nobody_can() {
    let brand = Brand::default();
    let manner = Manner { is_page: true, ..Manner::of(Uuid::nil(), &Request::get("/").body(()).unwrap()) };
    for (schemes, title) in [
        (&[Scheme::Session, Scheme::Bearer][..], "<h1>Please sign in</h1>"),
        (&[Scheme::Bearer][..], "<h1>This address is for programs</h1>"),
        (&[Scheme::Webhook][..], "<h1>This address is for programs</h1>"),
        (&[Scheme::BreakGlass, Scheme::Bearer][..], "<h1>This address takes no sign-in</h1>"),
    ] {
        let route = Some(RouteTerms { kind: Some(RouteKind::Http), schemes });
        let context = RefusalContext { route, ..manner.context(None, None, Timestamp::default(), &brand) };
        let answer = refuse(&Rejection::new(Reason::CredentialMissing, "no"), &context);
        let page = std::str::from_utf8(answer.body()).unwrap();
        assert!(page.contains(title), "{schemes:?}: {page}");
        assert_eq!(page.contains("/oauth2/sign_in"), schemes.contains(&Scheme::Session), "{page}");
    }
}

/// kubectl shows nothing else of a refusal.
#[test]
fn a_refusal_to_a_client_of_kubernetes_says_what_was_refused_and_which_request_it_was() {
    let brand = Brand::default();
    let path = "/api/v1/namespaces/ci/secrets";
    let kubernetes = Some(Arc::new(Attributes::parse(&http::Method::GET, path, None).unwrap()));
    let manner = Manner { kubernetes, ..Manner::of(Uuid::from_u128(7), &Request::get(path).body(()).unwrap()) };
    let route = Some(RouteTerms { kind: Some(RouteKind::Kubernetes), schemes: &[] });
    let context = RefusalContext { route, ..manner.context(None, None, Timestamp::default(), &brand) };
    for (reason, of) in [
        (Reason::NoRuleMatched, "list secrets in namespace \"ci\"; "),
        (Reason::PolicyDenied, "list secrets in namespace \"ci\"; "),
        (Reason::UpstreamTimeout, ""),
    ] {
        let status: Value = serde_json::from_slice(refuse(&Rejection::new(reason, "no"), &context).body()).unwrap();
        assert_eq!(
            status["message"],
            format!("doorward: no ({of}request 00000000-0000-0000-0000-000000000007)"),
            "{reason}"
        );
    }
}

/// client-go discards the text of a 401 to a discovery request, and prints each warning once.
#[test]
fn kubectl_gets_a_warning_that_explains_why_its_credential_is_refused() {
    let brand = Brand::default();
    let warning = |path: &str, reason, detail: &'static str| {
        let manner = Manner {
            is_discovery: is_discovery(path),
            ..Manner::of(Uuid::now_v7(), &Request::get(path).body(()).unwrap())
        };
        let route = Some(RouteTerms { kind: Some(RouteKind::Kubernetes), schemes: &[Scheme::Bearer] });
        let context = RefusalContext { route, ..manner.context(None, None, Timestamp::default(), &brand) };
        let answer = refuse(&Rejection::new(reason, detail).fix("get a new one"), &context);
        answer.headers().get("warning").map(|value| value.to_str().unwrap().to_owned())
    };
    assert_eq!(
        warning("/api", Reason::TokenExpired, "the \"token\" of Jos\u{e9} \\ has expired").as_deref(),
        Some("299 - \"doorward: the 'token' of Jos? / has expired. Get a new one\"")
    );
    assert_eq!(warning("/api", Reason::PolicyDenied, "no"), None);
    assert_eq!(warning("/api/v1/pods", Reason::TokenExpired, "no"), None, "there the status is read");
}

/// By these a client asks for more scopes, discards its token, or sends it in another way (RFC 6750 section 3.1). For
/// the last there was no challenge.
#[test]
fn a_bearer_challenge_distinguishes_no_token_a_bad_one_too_few_scopes_and_a_misused_one() {
    let brand = Brand::default();
    let manner = Manner::of(Uuid::nil(), &Request::get("/").body(()).unwrap());
    let route = Some(RouteTerms { kind: Some(RouteKind::Http), schemes: &[Scheme::Bearer] });
    let context = RefusalContext { route, ..manner.context(None, None, Timestamp::default(), &brand) };
    let refused = |reason| Rejection::new(reason, "the \"token\" will not do");
    let scopes = ["tekton:read", "tekton:run"].map(str::to_owned).to_vec();
    let why = "error_description=\"the 'token' will not do\"";
    for (rejection, challenge) in [
        (refused(Reason::CredentialMissing), Some(String::new())),
        (refused(Reason::SessionExpired), Some(String::new())),
        (refused(Reason::TokenExpired), Some(format!(", error=\"invalid_token\", {why}"))),
        (refused(Reason::TokenInvalid), Some(format!(", error=\"invalid_token\", {why}"))),
        (
            refused(Reason::NoRuleMatched).needs_scopes(scopes),
            Some(format!(", error=\"insufficient_scope\", {why}, scope=\"tekton:read tekton:run\"")),
        ),
        (refused(Reason::NoRuleMatched), None),
        (refused(Reason::CredentialAmbiguous).misuses_bearer(), Some(format!(", error=\"invalid_request\", {why}"))),
        (refused(Reason::BadRequest).misuses_bearer(), Some(format!(", error=\"invalid_request\", {why}"))),
        (refused(Reason::CredentialAmbiguous), None),
        (refused(Reason::BadRequest), None),
    ] {
        let answer = refuse(&rejection, &context);
        let lines = answer.headers().get_all(header::WWW_AUTHENTICATE).iter();
        let came: Vec<_> = lines.map(|line| line.to_str().unwrap()).collect();
        let expected: Vec<_> = challenge.map(|more| format!("Bearer realm=\"doorward\"{more}")).into_iter().collect();
        assert_eq!(came, expected, "{rejection}");
    }
}

/// RFC 6455 section 4.4. It was told to ask by HTTP/1.1 and without a body, which it had done.
#[test]
fn a_client_with_another_version_of_websockets_is_told_the_one_that_is_known() {
    let brand = Brand::default();
    let handshake = Request::get("/")
        .header(header::CONNECTION, "Upgrade")
        .header(header::UPGRADE, "websocket")
        .header(header::SEC_WEBSOCKET_KEY, "dGhlIHNhbXBsZSBub25jZQ==")
        .header(header::SEC_WEBSOCKET_VERSION, "8")
        .body(())
        .unwrap();
    let manner = Manner::of(Uuid::nil(), &handshake);
    let context = manner.context(None, None, Timestamp::default(), &brand);
    let other = Rejection::new(Reason::UpgradeRefused, "no");
    for (rejection, is_told) in [(requested(&handshake).unwrap_err(), true), (other, false)] {
        let answer = refuse(&rejection, &context);
        assert_eq!(answer.status(), StatusCode::BAD_REQUEST, "{rejection}");
        let told = answer.headers().get(header::SEC_WEBSOCKET_VERSION);
        assert_eq!(told.is_some_and(|version| version == "13"), is_told, "{rejection}");
    }
}

/// grpc-js showed `token%2C`.
#[test]
fn a_message_of_grpc_encodes_only_what_grpc_decodes_again() {
    let rejection = Rejection::new(Reason::CredentialMissing, "a token, \"x-y\" (100 %) of Jos\u{e9}:\n/?#");
    assert_eq!(trailers_only(&rejection).headers()["grpc-message"], "a token, \"x-y\" (100 %25) of Jos%C3%A9:%0A/?#");
}

#[test]
fn clients_of_grpc_web_are_refused_in_the_words_of_http() {
    let brand = Brand::default();
    for (content_type, is_grpc) in [
        ("application/grpc", true),
        ("application/grpc+proto", true),
        ("application/grpc; charset=utf-8", true),
        ("application/grpc-web", false),
        ("application/grpc-web+proto", false),
        ("application/grpc-web-text", false),
        ("application/json", false),
    ] {
        let request = Request::post("/").header("content-type", content_type).body(()).unwrap();
        let manner = Manner::of(Uuid::nil(), &request);
        let route = Some(RouteTerms { kind: Some(RouteKind::Http), schemes: &[] });
        let context = RefusalContext { route, ..manner.context(None, None, Timestamp::default(), &brand) };
        let answer = refuse(&Rejection::new(Reason::CredentialMissing, "no"), &context);
        let expected = if is_grpc { (200, "application/grpc") } else { (401, "application/problem+json") };
        let found = (answer.status().as_u16(), answer.headers()["content-type"].to_str().unwrap());
        assert_eq!(found, expected, "{content_type}");
    }
}

/// By these clients wait and retry, or give up as after a bad request.
#[test]
fn each_kind_of_client_gets_a_refusal_in_its_own_format() {
    let request = Request::post("/").header("content-type", "application/grpc").body(()).unwrap();
    let manner = Manner::of(Uuid::nil(), &request);
    let brand = Brand::default();
    for (reason, kubernetes, grpc) in [
        (Reason::CredentialMissing, "Unauthorized", "16"),
        (Reason::PolicyDenied, "Forbidden", "7"),
        (Reason::RouteNotFound, "NotFound", "12"),
        (Reason::BadRequest, "BadRequest", "3"),
        (Reason::BodyTimeout, "Timeout", "4"),
        (Reason::BodyTooLarge, "RequestEntityTooLarge", "8"),
        (Reason::TooManyRefusals, "TooManyRequests", "8"),
        (Reason::Overloaded, "ServiceUnavailable", "14"),
        (Reason::UpstreamTimeout, "Timeout", "14"),
        (Reason::Internal, "InternalError", "13"),
    ] {
        let answer = |kind| {
            let route = Some(RouteTerms { kind: Some(kind), schemes: &[] });
            let context = manner.context(None, None, Timestamp::default(), &brand);
            refuse(&Rejection::new(reason, "no"), &RefusalContext { route, ..context })
        };
        let status: Value = serde_json::from_slice(answer(RouteKind::Kubernetes).body()).unwrap();
        assert_eq!(status["reason"], kubernetes, "{reason}");
        assert_eq!(answer(RouteKind::Http).headers()["grpc-status"], grpc, "{reason}");
    }
}
