//! Two providers, of which one is not honest: it sends browsers on to the other, and waits for the code (RFC 9700 section 4.4).

use crate::{
    doctor::doctor,
    harness::{Answer, Doorward, Issuer, Raw, asked, cookies, within},
};

struct World {
    doorward: Doorward,
    host: String,
    evil: Issuer,
    honest: Issuer,
}

/// `login` are further settings of the login at both.
async fn world(login: &str) -> World {
    let (evil, honest) = (Issuer::start().await, Issuer::start().await);
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("client"), "client-secret").unwrap();
    let issuer = |name: &str, issuer: &Issuer| {
        format!(
            "{{name: {name}, issuer: '{}', username: '{name}#{{sub}}', kind: human,
               login: {{client: {{id: doorward, secret: {{file: client}}}}{login}}}}}",
            issuer.url()
        )
    };
    let yaml = format!(
        "
listeners: [{{name: public, address: 127.0.0.1:0}}]
issuers:
  - {}
  - {}
upstreams: [{{name: web, url: 'http://127.0.0.1:1'}}]
routes: [{{name: web, kind: http, hosts: [localhost], schemes: [session], upstream: web}}]
rules: [{{id: people, on: {{routes: [web]}}, who: {{users: ['honest#alice']}}, do: allow}}]
store: {{path: doorward.redb}}
audit: {{sink: {{file: {{path: audit.jsonl}}}}}}
limits: {{drain_accept: 0}}
",
        issuer("evil", &evil),
        issuer("honest", &honest)
    );
    let doorward = Doorward::start_in(dir, &yaml).await;
    let host = format!("localhost:{}", doorward.address("public").port());
    let world = World { doorward, host, evil, honest };
    for name in ["evil", "honest"] {
        within(async {
            while world.begin(name).await.status != 303 {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }
    world
}

impl World {
    /// The answer to who chose this provider.
    async fn begin(&self, name: &str) -> Answer {
        let start = format!("/oauth2/start?issuer={name}&rd=/page");
        self.doorward.get(&start, &[&format!("Host: {}", self.host)]).await
    }

    /// What Doorward answers to a browser that comes back with the cookies of `away`.
    async fn come_back(&self, away: &Answer, path: &str) -> Answer {
        self.doorward.get(path, &[&format!("Host: {}", self.host), &cookies(away)]).await
    }

    /// Where the honest provider sends a browser with a code, for a redirect address that it knows: it does not name itself.
    async fn code_of_honest(&self, redirect: &str, state: &str) -> String {
        let mut raw = Raw::connect(self.honest.address()).await;
        let query = format!("redirect_uri=http://{}{redirect}&state={state}&nonce=of-the-honest", self.host);
        raw.send(format!("GET /authorize?{query} HTTP/1.1\r\nHost: idp\r\nConnection: close\r\n\r\n")).await;
        let location = raw.answer().await.header("location").unwrap().to_owned();
        let (location, _) = location.split_once("&iss=").unwrap();
        location.strip_prefix(&format!("http://{}", self.host)).unwrap().to_owned()
    }
}

#[tokio::test]
async fn a_provider_cannot_pass_off_the_code_of_another_one_as_its_own() {
    let world = world("").await;
    let away = world.begin("evil").await;
    let location = away.header("location").unwrap();
    assert!(asked(location, "redirect_uri").ends_with("/oauth2/callback/evil"), "{location}");
    for redirect in ["/oauth2/callback/honest", "/oauth2/callback"] {
        let back = world.code_of_honest(redirect, &asked(location, "state")).await;
        let refused = world.come_back(&away, &back).await;
        assert_eq!(refused.status, 400, "rfc9700:4.4 {}", refused.text());
        assert!(refused.text().contains("Another provider answered"), "{}", refused.text());
        assert!(
            world.evil.redeemed().is_empty() && world.honest.redeemed().is_empty(),
            "rfc9700:4.4 the code was sent"
        );
    }
    // Nobody is kept out by that.
    let away = world.begin("honest").await;
    let location = away.header("location").unwrap();
    assert!(asked(location, "redirect_uri").ends_with("/oauth2/callback/honest"), "{location}");
    let back = format!("/oauth2/callback/honest?code={}&state={}", asked(location, "nonce"), asked(location, "state"));
    let signed_in = world.come_back(&away, &back).await;
    assert_eq!((signed_in.status, signed_in.header("location")), (303, Some("/page")), "{}", signed_in.text());
}

/// The twin: with one address for both, which the configuration has to ask for, the attack succeeds.
#[tokio::test]
async fn with_one_address_for_both_it_could() {
    let world = world(", redirect: shared").await;
    let away = world.begin("evil").await;
    let state = asked(away.header("location").unwrap(), "state");
    let back = world.code_of_honest("/oauth2/callback", &state).await;
    world.come_back(&away, &back).await;
    assert_eq!(world.evil.redeemed(), ["of-the-honest"]);
}

#[tokio::test]
async fn the_doctor_tells_which_address_a_provider_wants_and_who_is_at_risk() {
    for (login, address, at_risk) in
        [("", "/oauth2/callback/evil", false), (", redirect: shared", "/oauth2/callback", true)]
    {
        let world = world(login).await;
        let public = format!("http://{}", world.host);
        let said = doctor(world.doorward.dir(), &["--only", "redirect", "--public", &public]).await;
        let of_evil = said.findings.iter().filter(|finding| finding["of"] == "issuer `evil`");
        let told = of_evil.map(|finding| format!("{finding}\n")).collect::<String>();
        assert!(told.contains(&format!("it knows {public}{address}\"")), "{told}");
        assert_eq!(told.contains("codes of another one could be taken for its own"), at_risk, "{told}");
        assert_eq!(told.contains(r#""state":"warning""#), at_risk, "{told}");
    }
}
