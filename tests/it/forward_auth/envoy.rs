//! The documented Envoy configuration, and the requests that Envoy sends with it.

use serde_json::{Value, json};

use super::world;
use crate::harness::{HANDSHAKE, call_back, session};

/// The documented Envoy configuration.
fn recipe_for_envoy() -> Value {
    let guide = include_str!("../../../docs/migrate-from-oauth2-proxy.md");
    let (_, section) = guide.split_once("### Envoy\n").unwrap();
    let (_, recipe) = section.split_once("```yaml\n").unwrap();
    serde_saphyr::from_str(recipe.split("```").next().unwrap()).unwrap()
}

/// The headers that Envoy asks with: of its client's headers `Authorization` and those in the documented configuration,
/// and what that adds.
fn asked_by_envoy(filter: &Value, headers: &[&str]) -> Vec<String> {
    let allowed = filter["allowed_headers"]["patterns"].as_array().unwrap();
    let passes = |line: &str| {
        let name = line.split(':').next().unwrap().to_ascii_lowercase();
        let fits = |pattern: &Value| {
            pattern["exact"].as_str().is_some_and(|exact| exact == name)
                || pattern["prefix"].as_str().is_some_and(|prefix| name.starts_with(prefix))
        };
        name == "authorization" || allowed.iter().any(fits)
    };
    let added = filter["http_service"]["authorization_request"]["headers_to_add"].as_array().unwrap();
    let added = added.iter().map(|header| {
        let text = |key: &str| header[key].as_str().unwrap().to_owned();
        format!("{}: {}", text("key"), text("value"))
    });
    headers.iter().filter(|line| passes(line)).map(|line| (*line).to_owned()).chain(added).collect()
}

/// No session was accepted, as nothing said that browsers use https, and nobody was redirected to a login.
#[tokio::test]
async fn people_get_in_and_are_led_to_the_login_with_the_recipe_for_envoy() {
    let recipe = recipe_for_envoy();
    let filter = &recipe["http_filters"][0]["typed_config"];
    let service = &filter["http_service"];
    assert_eq!(
        (&service["path_prefix"], &filter["status_on_error"]["code"]),
        (&json!("/oauth2/auth"), &json!("ServiceUnavailable"))
    );
    assert_eq!(
        service["authorization_response"],
        json!({"allowed_upstream_headers": {"patterns": [{"prefix": "x-auth-request-"}]}})
    );
    let routes = recipe["route_config"]["virtual_hosts"][0]["routes"].as_array().unwrap();
    for (route, path, cluster) in [(0, "/oauth2/", "doorward"), (1, "/.doorward/", "doorward"), (2, "/", "app")] {
        let (route, own) = (&routes[route], cluster == "doorward");
        assert_eq!((&route["match"]["prefix"], &route["route"]["cluster"]), (&json!(path), &json!(cluster)));
        let disabled = &route["typed_per_filter_config"]["envoy.filters.http.ext_authz"]["disabled"];
        assert_eq!(disabled.as_bool(), own.then_some(true), "{path}");
    }

    let world = world("forward_auth: envoy").await;
    let browser = ["Accept: text/html", "Sec-Fetch-Mode: navigate", "Sec-Fetch-Dest: document"];
    let lines = [&["Host: app.example.com", "X-Forwarded-Proto: https"], &browser[..]].concat();
    let away = world.doorward.get("/oauth2/start?rd=%2Fpage", &lines).await;
    let location = away.header("location").unwrap_or_else(|| panic!("{}{}", away.head, away.text())).to_owned();
    let back = call_back(&world.doorward, &lines, &away, &location).await;
    let cookie = session(&back).unwrap_or_else(|| panic!("{}{}", back.head, back.text()));

    let ask = async |line: &str, headers: &[&str]| {
        let asked = asked_by_envoy(filter, headers);
        let own = [line, "Host: app.example.com", "Content-Length: 0"];
        let lines: Vec<&str> = own.into_iter().chain(asked.iter().map(String::as_str)).collect();
        world.doorward.send(&lines, b"").await
    };
    let page = "GET /oauth2/auth/page HTTP/1.1";
    let away = ask(page, &browser).await;
    assert_eq!((away.status, away.header("location")), (303, Some("/oauth2/continue?rd=%2Fpage")), "{}", away.text());
    let client = "X-Forwarded-For: 203.0.113.9, 127.0.0.1";
    let (own, evil) = ("Origin: https://app.example.com", "Origin: https://evil.example.com");
    let stream = |origin| [&[&*cookie, client, origin], &HANDSHAKE[..]].concat();
    for (row, line, headers, status) in [
        ("signed in", page, [&[&*cookie, client, "X-Forwarded-Proto: http"], &browser[..]].concat(), 200),
        ("a form", "POST /oauth2/auth/save HTTP/1.1", vec![&*cookie, own], 200),
        ("a form of another origin", "POST /oauth2/auth/save HTTP/1.1", vec![&*cookie, evil], 403),
        ("a stream", page, stream(own), 200),
        ("a stream of another origin", page, stream(evil), 403),
        ("another identity", page, vec![&*cookie, "Impersonate-User: root"], 403),
    ] {
        let answer = ask(line, &headers).await;
        assert_eq!(answer.status, status, "{row}: {}{}", answer.head, answer.text());
        assert_eq!(answer.header("x-auth-request-user"), (status == 200).then_some("alice"), "{row}");
        if headers.contains(&client) {
            let id = answer.header("x-request-id").unwrap().to_owned();
            let record = world.doorward.record(|record| record["http_request"]["uid"] == *id).await;
            assert_eq!(record["src_endpoint"]["ip"], "203.0.113.9", "{row}: {record}");
        }
    }
}
