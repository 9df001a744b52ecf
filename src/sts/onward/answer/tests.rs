use super::*;

const NOW: i64 = 1_700_000_000;

fn answer(status: u16, body: &str) -> Response<Bytes> {
    Response::builder().status(status).body(Bytes::copy_from_slice(body.as_bytes())).unwrap()
}

fn expected(reads: Reads) -> Expected<'static> {
    static ASKED: std::sync::LazyLock<[Vec<String>; 2]> =
        std::sync::LazyLock::new(|| [vec!["read".to_owned(), "write".to_owned()], vec!["profile".to_owned()]]);
    let [asked, default_scopes] = &*ASKED;
    Expected { reads, asked, default_scopes, max_lifetime: 3600, now: Timestamp::from_secs(NOW) }
}

fn jwt_of(claims: &Value) -> String {
    format!("eyJh.{}.x", BASE64_URL_SAFE_NO_PAD.encode(claims.to_string()))
}

fn with(change: &Value) -> Value {
    let mut body = json!({
        "access_token": "t0ken", "token_type": "bearer", "issued_token_type": ACCESS_TOKEN, "expires_in": 3600,
        "refresh_token": "never", "id_token": "never",
    });
    for (name, value) in change.as_object().unwrap() {
        match value {
            Value::Null => _ = body.as_object_mut().unwrap().remove(name),
            value => body[name] = value.clone(),
        }
    }
    body
}

#[test]
fn a_token_of_the_standard_is_taken_as_it_is() {
    for (what, change, lasts, scopes) in [
        ("no scope: what was asked for", json!({}), 3600, None),
        ("fewer scopes", json!({"scope": "read"}), 3600, Some(vec!["read"])),
        (
            "one that may be added",
            json!({"scope": "profile read  write"}),
            3600,
            Some(vec!["profile", "read", "write"]),
        ),
        ("seconds as text", json!({"expires_in": "60"}), 60, None),
        (
            "a JWT that says when it ends",
            json!({"expires_in": null, "access_token": jwt_of(&json!({"exp": NOW + 77}))}),
            77,
            None,
        ),
        ("a clock that is ahead", json!({"access_token": jwt_of(&json!({"exp": NOW + 3630}))}), 3600, None),
        ("a JWT that ends sooner", json!({"access_token": jwt_of(&json!({"exp": NOW + 77}))}), 77, None),
        ("a JWT as the type", json!({"issued_token_type": JWT}), 3600, None),
    ] {
        let given = expected(Reads::OAuth { exchanged: true }).read(&answer(200, &with(&change).to_string()));
        let given = given.unwrap_or_else(|why| panic!("{what}: {why:?}"));
        assert_eq!((given.expires.as_secs() - NOW, given.form), (lasts, TokenForm::Bearer), "{what}");
        let named = given.scopes.map(|scopes| scopes.iter().map(|scope| scope.clone().leak() as &str).collect());
        assert_eq!(named, scopes, "{what}");
    }
    let plain = with(&json!({"issued_token_type": null})).to_string();
    assert!(expected(Reads::OAuth { exchanged: false }).read(&answer(200, &plain)).is_ok());
}

/// They were refused as no number.
#[test]
fn a_lifetime_with_a_fraction_is_a_number_and_null_is_none() {
    let given = |body: Value| expected(Reads::OAuth { exchanged: true }).read(&answer(200, &body.to_string()));
    for (lifetime, lasts) in [(json!(600.0), 600), (json!(1e3), 1000), (json!(60.9), 60)] {
        let given = given(with(&json!({"expires_in": lifetime}))).unwrap();
        assert_eq!(given.expires.as_secs() - NOW, lasts, "{lifetime}");
    }
    let mut body = with(&json!({"access_token": jwt_of(&json!({"exp": NOW + 77}))}));
    body["expires_in"] = Value::Null;
    assert_eq!(given(body).unwrap().expires.as_secs() - NOW, 77);
}

/// The provider chose its scopes then, and neither caller nor trail learned of them.
#[test]
fn a_token_without_a_scope_asked_for_is_passed_on_only_if_something_says_what_it_has() {
    let ends = json!({"exp": NOW + 9});
    for (what, change, default_scopes, is_passed_on) in [
        ("opaque, with what may be added", json!({}), &["profile".to_owned()][..], true),
        ("opaque, and nothing is said", json!({}), &[], false),
        ("opaque, with none", json!({"scope": ""}), &[], true),
        ("a JWT with none", json!({"access_token": jwt_of(&ends)}), &[], true),
    ] {
        let expected = Expected { asked: &[], default_scopes, ..expected(Reads::OAuth { exchanged: true }) };
        let given = expected.read(&answer(200, &with(&change).to_string()));
        match &given {
            Ok(_) => assert!(is_passed_on, "{what}"),
            Err(Failure::Unfit(why)) => {
                assert!(!is_passed_on && why.contains("no scope was asked for"), "{what}: {why}")
            }
            Err(other) => panic!("{what}: {other:?}"),
        }
    }
}

#[test]
fn scopes_that_were_not_requested_are_not_passed_on() {
    for (what, change, said) in [
        ("a wider scope", json!({"scope": "read admin"}), "scope `admin`, which was not asked for (`read write` was)"),
        (
            "a wider scope within",
            json!({"access_token": jwt_of(&json!({"exp": NOW + 9, "scope": "read admin"}))}),
            "`admin`",
        ),
        ("scopes as a list", json!({"scope": ["read"]}), "is no text"),
        (
            "more in its `scp`",
            json!({"access_token": jwt_of(&json!({"exp": NOW + 9, "scp": "read admin"}))}),
            "`admin`, which was not asked for",
        ),
        (
            "more in a list",
            json!({"access_token": jwt_of(&json!({"scp": ["read", "admin"]}))}),
            "`admin`, which was not asked for",
        ),
        ("scopes that are none", json!({"access_token": jwt_of(&json!({"scp": 7}))}), "`scp` of the token is neither"),
        ("too long", json!({"expires_in": 3601}), "lasts 3601 s, where `max_lifetime` lets it last 3600 s"),
        ("longer than it says", json!({"access_token": jwt_of(&json!({"exp": NOW + 7200}))}), "lasts 7200 s"),
        ("ended", json!({"expires_in": 0}), "has ended already"),
        ("before it began", json!({"expires_in": -9_223_372_036_854_775_808_i64}), "has ended already"),
        ("no end", json!({"expires_in": null}), "does not say how long"),
        ("no number", json!({"expires_in": "soon"}), "no number of seconds"),
        ("less than a second", json!({"expires_in": 0.5}), "has ended already"),
        ("too long, as a power of ten", json!({"expires_in": 1e30}), "where `max_lifetime` lets it last 3600 s"),
        ("bound to a key", json!({"token_type": "DPoP"}), "is `DPoP`, where `Bearer` is expected"),
        (
            "bound to a certificate",
            json!({"access_token": jwt_of(&json!({"exp": NOW + 9, "cnf": {"x5t#S256": "bwcK"}}))}),
            "bound to a key or a certificate (`cnf`)",
        ),
        ("no type", json!({"token_type": null}), "its `token_type` is missing, where `Bearer` is expected"),
        (
            "a refresh token",
            json!({"issued_token_type": "urn:ietf:params:oauth:token-type:refresh_token"}),
            "refresh_token`",
        ),
        ("no issued type", json!({"issued_token_type": null}), "is missing"),
        ("no token", json!({"access_token": null}), "no token in its answer"),
        ("a line end in it", json!({"access_token": "a\r\nX: b"}), "no token in its answer"),
    ] {
        let failure = expected(Reads::OAuth { exchanged: true }).read(&answer(200, &with(&change).to_string()));
        match failure {
            Err(Failure::Unfit(why)) => assert!(why.contains(said), "{what}: {why}"),
            other => panic!("{what}: {other:?}"),
        }
    }
    for body in ["", "<html>", "[]", r#"{"access_token":"a","access_token":"b"}"#] {
        let failure = expected(Reads::OAuth { exchanged: false }).read(&answer(200, body));
        let told = ["the answer is not ", "the answer has a member twice"];
        let Err(Failure::Unfit(why)) = failure else { panic!("{body}: {failure:?}") };
        assert!(told.iter().any(|told| why.starts_with(told)), "{body}: {why}");
    }
}

/// Entra ID.
#[test]
fn scopes_of_a_resource_are_those_that_were_asked_for_there() {
    for (asked, scp, good) in [
        ("api://app/Deploy", "Deploy", true),
        ("api://app/Deploy", "Deploy Admin", false),
        ("https://vault.azure.net/.default", "user_impersonation", true),
        ("Deploy", "Deploy", true),
        ("xDeploy", "Deploy", false),
    ] {
        let expected = Expected { asked: &[asked.to_owned()], ..expected(Reads::OAuth { exchanged: true }) };
        let body = with(&json!({"access_token": jwt_of(&json!({"scp": scp}))})).to_string();
        assert_eq!(expected.read(&answer(200, &body)).is_ok(), good, "{asked}: {scp}");
    }
}

#[test]
fn the_error_of_a_provider_is_reported_shortened_and_without_tokens() {
    let read = |status, body: &str| expected(Reads::Aws).read(&answer(status, body)).unwrap_err();
    let refused = |error: &str, said: Option<&str>| Failure::Refused {
        error: error.to_owned(),
        said: said.map(str::to_owned),
        passes: false,
    };
    for (status, body, failure) in [
        (
            400,
            r#"{"error":"invalid_grant","error_description":"no\nmatch\u0007"}"#,
            refused("invalid_grant", Some("no match")),
        ),
        (401, r#"{"error":"invalid_client"}"#, refused("invalid_client", None)),
        (
            400,
            r#"{"error":"invalid_grant","error_description":"got eyJhbGci.eyJzdWIi.c2ln"}"#,
            refused("invalid_grant", Some("got (a token)")),
        ),
        (
            403,
            r#"{"Error":{"Code":"AccessDenied","Message":"Not authorized"},"RequestId":"1"}"#,
            refused("AccessDenied", Some("Not authorized")),
        ),
        (
            403,
            r#"{"error":{"code":403,"message":"denied","status":"PERMISSION_DENIED"}}"#,
            refused("PERMISSION_DENIED", Some("denied")),
        ),
        (404, "<html>", refused("404", None)),
        (500, "oops", Failure::Away("it answers 500".to_owned())),
        (429, r#"{"error":"slow_down"}"#, Failure::Away("it answers 429 (slow_down)".to_owned())),
        (
            400,
            r#"{"error":"temporarily_unavailable"}"#,
            Failure::Away("it answers 400 (temporarily_unavailable)".to_owned()),
        ),
    ] {
        assert_eq!(read(status, body), failure, "{body}");
    }
    assert!(matches!(read(302, ""), Failure::Unfit(why) if why.contains("redirect (302)")));
    assert_eq!(clean(&"é ".repeat(300)).chars().count(), 200);
}

/// Steps ended at once with a text that blamed what was right.
#[test]
fn a_refusal_that_a_provider_says_to_try_again_after_is_one_that_passes() {
    let exchanged = false;
    let entra = |code: &str| {
        let said = format!("{code}: No matching federated identity record found. Trace ID: 1");
        json!({"error": "invalid_client", "error_description": said}).to_string()
    };
    let aws =
        |code: &str| json!({"Error": {"Code": code, "Message": "Couldn't retrieve verification key"}}).to_string();
    for (reads, body, may_pass) in [
        (Reads::OAuth { exchanged }, entra("AADSTS70021"), true),
        (Reads::OAuth { exchanged }, entra("AADSTS700211"), true),
        (Reads::OAuth { exchanged }, entra("AADSTS700212"), true),
        (Reads::OAuth { exchanged }, entra("AADSTS700213"), true),
        (Reads::OAuth { exchanged }, entra("AADSTS50166"), true),
        (Reads::OAuth { exchanged }, entra("AADSTS501661"), true),
        // Means that the subject differs only in case, which is permanent.
        (Reads::OAuth { exchanged }, entra("AADSTS7002138"), false),
        (Reads::OAuth { exchanged }, aws("InvalidIdentityToken"), false),
        (Reads::Aws, aws("InvalidIdentityToken"), true),
        (Reads::Aws, aws("AccessDenied"), false),
    ] {
        match expected(reads).read(&answer(400, &body)) {
            Err(Failure::Refused { passes, .. }) => assert_eq!(passes, may_pass, "{body}"),
            other => panic!("{body}: {other:?}"),
        }
    }
}

#[test]
fn credentials_of_aws_become_what_credential_process_reads() {
    let body = |expiration: &Value| {
        json!({"AssumeRoleWithWebIdentityResponse": {"AssumeRoleWithWebIdentityResult": {"Credentials": {
            "AccessKeyId": "ASIA", "SecretAccessKey": "s/+=", "SessionToken": "t==", "Expiration": expiration,
        }, "Audience": "sts.amazonaws.com"}, "ResponseMetadata": {"RequestId": "1"}}})
        .to_string()
    };
    for expiration in [json!(NOW + 900), json!(1_700_000_900.0), json!("2023-11-14T22:28:20Z")] {
        let given = expected(Reads::Aws).read(&answer(200, &body(&expiration))).unwrap();
        assert_eq!((given.expires.as_secs(), given.form), (NOW + 900, TokenForm::AwsCredentials));
        let said: Value = serde_json::from_str(&given.token).unwrap();
        let expected = json!({
            "Version": 1, "AccessKeyId": "ASIA", "SecretAccessKey": "s/+=", "SessionToken": "t==",
            "Expiration": "2023-11-14T22:28:20.000Z",
        });
        assert_eq!(said, expected);
    }
    for (expiration, said) in
        [(json!(NOW + 3700), "lasts 3700 s"), (json!(null), "does not say when"), (json!(NOW), "ended")]
    {
        let failure = expected(Reads::Aws).read(&answer(200, &body(&expiration)));
        assert!(matches!(&failure, Err(Failure::Unfit(why)) if why.contains(said)), "{failure:?}");
    }
    let empty = expected(Reads::Aws).read(&answer(200, "{}"));
    assert!(matches!(empty, Err(Failure::Unfit(why)) if why.contains("no `Credentials`")));
}

#[test]
fn a_service_account_of_google_has_an_end() {
    let read = |body: &str| expected(Reads::OAuth { exchanged: true }).service_account(&answer(200, body));
    let given = read(r#"{"accessToken":"ya29.x","expireTime":"2023-11-14T23:13:20Z"}"#).unwrap();
    assert_eq!((given.token.as_str(), given.expires.as_secs()), ("ya29.x", NOW + 3600));
    for body in [
        r#"{"accessToken":"ya29.x"}"#,
        r#"{"accessToken":"ya29.x","expireTime":"2023-11-15T10:13:20Z"}"#,
        r#"{"expireTime":"2023-11-14T23:13:20Z"}"#,
    ] {
        assert!(matches!(read(body), Err(Failure::Unfit(_))), "{body}");
    }
}
