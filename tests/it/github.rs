//! Logins at GitHub, against a server that behaves like the real one. Each case that lets somebody in has a counterpart
//! that keeps them out.

use serde_json::{Value, json};

use crate::{
    doctor::doctor,
    harness::{
        Answer, Doorward, Raw, Upstream, asked, cookies, folder_with,
        github::{CLIENT, GithubServer, SECRET, membership, team},
    },
};

struct World {
    doorward: Doorward,
    github: GithubServer,
    host: String,
    _upstream: Upstream,
}

async fn world() -> World {
    world_of("tenant: acme", SECRET).await
}

/// `settings` are lines of the issuer's entry.
async fn world_of(settings: &str, secret: &str) -> World {
    let (github, upstream) = (GithubServer::start().await, Upstream::start().await);
    let dir = folder_with(&[("client", secret)]);
    let yaml = format!(
        "
listeners: [{{name: public, address: '127.0.0.1:0'}}]
issuers:
  - name: github
    preset: github_oauth
    issuer: {}
    {settings}
    login: {{client: {{id: {CLIENT}, secret: {{file: client}}}}}}
upstreams: [{{name: web, url: '{}'}}]
routes: [{{name: web, kind: http, hosts: [localhost], schemes: [session, bearer], upstream: web}}]
rules: [{{id: platform, on: {{routes: [web]}}, who: {{groups: ['Acme:platform']}}, do: allow}}]
store: {{path: doorward.redb}}
audit: {{sink: {{file: {{path: audit.jsonl}}}}}}
admin: {{address: 127.0.0.1:0, socket: operator.sock}}
limits: {{drain_accept: 0}}
",
        github.url(),
        upstream.url()
    );
    std::fs::write(dir.path().join("doorward.yaml"), &yaml).unwrap();
    let doorward = Doorward::start_with_faults(dir, &yaml).await;
    let host = format!("localhost:{}", doorward.address("public").port());
    World { doorward, github, host, _upstream: upstream }
}

impl World {
    async fn get(&self, path: &str, more: &[&str]) -> Answer {
        self.doorward.get(path, &[&[format!("Host: {}", self.host).as_str()], more].concat()).await
    }

    /// Goes to GitHub, which approves the login. Returns the callback address and the cookies for it.
    async fn depart(&self) -> (String, String) {
        let away = self.get("/oauth2/start?rd=/page", &[]).await;
        let location = away.header("location").unwrap_or_else(|| panic!("{}", away.text())).to_owned();
        let path = location.strip_prefix(&self.github.url()).unwrap();
        let mut raw = Raw::connect(self.github.address()).await;
        raw.send(format!("GET {path} HTTP/1.1\r\nHost: github\r\nConnection: close\r\n\r\n")).await;
        let back = raw.answer().await;
        let back = back.header("location").unwrap_or_else(|| panic!("{}", back.head)).to_owned();
        (back.strip_prefix(&format!("http://{}", self.host)).unwrap().to_owned(), cookies(&away))
    }

    async fn sign_in(&self) -> Answer {
        let (path, cookie) = self.depart().await;
        self.get(&path, &[&cookie]).await
    }

    /// The `Cookie` line of a new session.
    async fn session(&self) -> String {
        let back = self.sign_in().await;
        assert_eq!((back.status, back.header("location")), (303, Some("/page")), "{}", back.text());
        cookies(&back)
    }

    async fn whoami(&self, cookie: &str) -> Value {
        let answer = self.get("/.doorward/whoami", &[cookie, "Accept: application/json"]).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        answer.json()
    }

    /// The status of a page once `seconds` have passed and the session must be rechecked.
    async fn after(&self, seconds: u64, cookie: &str) -> u16 {
        self.doorward.set_clock_ahead(seconds);
        self.get("/page", &[cookie]).await.status
    }
}

#[tokio::test]
async fn a_member_is_their_number_with_the_teams_of_the_organisation_and_a_verified_address() {
    let world = world().await;
    let away = world.get("/oauth2/start?rd=/page", &[]).await;
    let location = away.header("location").unwrap();
    assert_eq!(asked(location, "scope"), "read:org user:email", "GitHub knows no `openid`");
    assert_eq!(asked(location, "code_challenge_method"), "S256");

    let cookie = world.session().await;
    let me = world.whoami(&cookie).await;
    assert_eq!(me["username"], format!("{}#583231", world.github.url()), "{me}");
    assert_eq!(me["groups"], json!(["Acme:platform"]), "of another organisation none: {me}");
    assert_eq!(me["email"], "mona@acme.example", "never the one that the person shows: {me}");
    assert_eq!(me["kind"], "human", "{me}");
    assert_eq!(me["scopes"], json!(["read:org", "user:email"]), "{me}");
    assert_eq!(world.get("/page", &[&cookie]).await.status, 200);
    // GitHub has no logout, so only the session here ends.
    let origin = format!("Origin: http://{}", world.host);
    let lines = ["POST /oauth2/sign_out HTTP/1.1", &format!("Host: {}", world.host), &origin, &cookie];
    let out = world.doorward.send(&lines, b"").await;
    assert_eq!((out.status, out.header("location")), (303, Some("/oauth2/signed_out")), "{}", out.text());
    assert_eq!(world.get("/page", &[&cookie]).await.status, 401);
}

/// GitHub names itself in its responses (RFC 9207), with a name other than its address.
#[tokio::test]
async fn an_answer_that_names_github_signs_in_and_one_that_names_another_does_not() {
    let world = world().await;
    let (path, cookie) = world.depart().await;
    let (path, named) = path.split_once("&iss=").unwrap();
    assert!(named.ends_with("%2Flogin%2Foauth"), "{named}");
    let refused = world.get(&format!("{path}&iss=https%3A%2F%2Fevil.example%2Flogin%2Foauth"), &[&cookie]).await;
    assert_eq!(refused.status, 400, "{}", refused.text());
    assert!(!cookies(&refused).contains("__Host-doorward="), "{}", refused.head);

    let signed_in = world.sign_in().await;
    assert_eq!((signed_in.status, signed_in.header("location")), (303, Some("/page")), "{}", signed_in.text());
}

#[tokio::test]
async fn a_person_who_is_no_active_member_is_refused_with_the_reason() {
    type Change = fn(&mut crate::harness::github::People);
    let rows: [(&str, &str, Change, u16, &str); 9] = [
        ("of another organisation", "tenant: other", |_| (), 403, "a member of the organisation `other`"),
        (
            "a name that was taken over",
            "tenant: '9919'",
            |people| people.memberships = vec![membership(8, "Acme", "admin")],
            403,
            "`9919`",
        ),
        ("invited only", "tenant: acme", |people| people.memberships[0]["state"] = "pending".into(), 403, "a member"),
        (
            "who pays the bills",
            "tenant: acme",
            |people| people.memberships = vec![membership(9919, "Acme", "billing_manager")],
            403,
            "a member",
        ),
        ("no person", "tenant: acme", |people| people.user["type"] = "Bot".into(), 403, "not a person but a Bot"),
        (
            "not told",
            "tenant: acme",
            |people| {
                people.refusal =
                    Some((403, "4999", json!({"message": "Resource protected by organization SAML enforcement."})))
            },
            403,
            "SAML enforcement",
        ),
        (
            "asked too often",
            "tenant: acme",
            |people| people.refusal = Some((403, "0", json!({"message": "API rate limit exceeded"}))),
            503,
            "rate limit",
        ),
        ("broken", "tenant: acme", |people| people.refusal = Some((502, "4999", Value::Null)), 503, "502"),
        (
            "another claim",
            "tenant: acme\n    required_claims: {/organization/role: [admin]}",
            |_| (),
            403,
            "not one of those",
        ),
    ];
    for (row, settings, change, status, words) in rows {
        let world = world_of(settings, SECRET).await;
        assert!(!settings.contains("9919") || world.sign_in().await.status == 303, "{row}: the number fits");
        change(&mut world.github.people());
        let refused = world.sign_in().await;
        assert_eq!(refused.status, status, "{row}: {}", refused.text());
        let text = refused.text().replace("<code>", "`").replace("</code>", "`");
        assert!(text.contains(words), "{row}: {text}");
        assert!(!cookies(&refused).contains("__Host-doorward="), "{row}");
    }
}

#[tokio::test]
async fn errors_with_a_success_status_are_treated_as_errors() {
    let world = world_of("tenant: acme", "another-secret").await;
    let refused = world.sign_in().await;
    assert_eq!(refused.status, 502, "{}", refused.text());
    assert!(refused.text().contains("incorrect_client_credentials"), "{}", refused.text());
    assert!(!refused.text().contains("another-secret"), "{}", refused.text());
}

#[tokio::test]
async fn more_teams_than_one_page_has_are_all_there() {
    let world = world().await;
    world.github.people().teams.splice(0..0, (0..250).map(|number| team(9919, "Acme", &format!("team-{number}"))));
    let me = world.whoami(&world.session().await).await;
    assert_eq!(me["groups"].as_array().unwrap().len(), 251);
}

#[tokio::test]
async fn as_many_organisations_as_ten_pages_have_are_more_than_is_read() {
    let world = world().await;
    let mut memberships: Vec<Value> = (0..998).map(|number| membership(20_000 + number, "other", "member")).collect();
    memberships.push(membership(9919, "Acme", "member"));
    world.github.people().memberships.clone_from(&memberships);
    assert_eq!(world.sign_in().await.status, 303);
    memberships.push(membership(7, "elsewhere", "admin"));
    world.github.people().memberships = memberships;
    let refused = world.sign_in().await;
    assert_eq!(refused.status, 403, "{}", refused.text());
    assert!(refused.text().contains("1000 organisations or teams there or more"), "{}", refused.text());
}

#[tokio::test]
async fn an_application_that_may_not_read_addresses_lets_people_in_without_one() {
    let world = world().await;
    world.github.people().emails = None;
    let me = world.whoami(&world.session().await).await;
    assert_eq!(me["email"], Value::Null, "{me}");
}

/// Anybody can add a foreign address to their account, and make it the primary one.
#[tokio::test]
async fn an_address_that_github_has_not_verified_is_not_used() {
    let world = world().await;
    for (verified, expected) in [(false, Value::Null), (true, "boss@acme.example".into())] {
        world.github.people().emails = Some(json!([
            {"email": "boss@acme.example", "primary": true, "verified": verified},
            {"email": "old@acme.example", "primary": false, "verified": true},
        ]));
        let me = world.whoami(&world.session().await).await;
        assert_eq!(me["email"], expected, "verified: {verified}: {me}");
    }
}

/// Attack Z45: GitHub notifies nobody when a member leaves.
#[tokio::test]
async fn leaving_the_organisation_or_removing_the_app_ends_the_session_at_the_next_recheck() {
    for (row, leave) in [
        ("left", (|people| people.memberships.clear()) as fn(&mut crate::harness::github::People)),
        ("took the application away", |people| people.tokens.clear()),
        ("became somebody else", |people| people.user["id"] = 1.into()),
    ] {
        let world = world().await;
        let cookie = world.session().await;
        assert_eq!(world.after(301, &cookie).await, 200, "{row}: a member still");
        // A rate limit of GitHub ends no session.
        world.github.people().refusal = Some((429, "0", json!({"message": "API rate limit exceeded"})));
        assert_eq!(world.after(602, &cookie).await, 200, "{row}");
        world.github.people().refusal = None;
        leave(&mut world.github.people());
        assert_eq!(world.after(903, &cookie).await, 401, "{row}");
    }
}

#[tokio::test]
async fn teams_follow_what_github_says_later() {
    let world = world().await;
    let cookie = world.session().await;
    world.github.people().teams = vec![team(9919, "Acme", "guests")];
    assert_eq!(world.after(301, &cookie).await, 403, "the rule asks for another team");
    assert_eq!(world.whoami(&cookie).await["groups"], json!(["Acme:guests"]));
}

#[tokio::test]
async fn expiring_tokens_are_renewed_and_a_failed_renewal_ends_the_session() {
    let world = world().await;
    world.github.people().expiring = true;
    let cookie = world.session().await;
    for ahead in [301, 602] {
        world.github.people().tokens.clear();
        assert_eq!(world.after(ahead, &cookie).await, 200);
    }
    // A new token that could not be verified is stored, but the session does not count as rechecked: it is rechecked
    // soon.
    world.github.people().tokens.clear();
    world.github.people().refuse_new_tokens = true;
    assert_eq!(world.after(903, &cookie).await, 200);
    world.github.people().refuse_new_tokens = false;
    world.github.people().memberships.clear();
    assert_eq!(world.after(940, &cookie).await, 401);
    let cookie = {
        world.github.people().memberships = vec![membership(9919, "Acme", "member")];
        world.doorward.set_clock_ahead(0);
        world.session().await
    };
    world.github.people().take_everything_back();
    assert_eq!(world.after(301, &cookie).await, 401);
}

#[tokio::test]
async fn a_token_that_claims_to_be_of_github_is_refused() {
    let world = world().await;
    let claims = data_encoding::BASE64URL_NOPAD.encode(json!({"iss": world.github.url()}).to_string().as_bytes());
    for token in ["gho_16C7e42F292c6912E7710c838347Ae178B4a".to_owned(), format!("eyJhbGciOiJSUzI1NiJ9.{claims}.AAAA")]
    {
        let refused = world.get("/page", &[&format!("Authorization: Bearer {token}")]).await;
        assert_eq!(refused.status, 401, "{}", refused.text());
    }
}

#[tokio::test]
async fn the_doctor_asks_the_api_of_github() {
    let world = world().await;
    let said = doctor(world.doorward.dir(), &["--only", "discovery", "--only", "clock"]).await;
    said.is("discovery", "good", &["its API answers at"]);
    let said =
        doctor(world.doorward.dir(), &["--only", "redirect", "--public", &format!("http://{}", world.host)]).await;
    said.is("redirect", "good", &[&format!("it knows http://{}/oauth2/callback", world.host)]);
}
