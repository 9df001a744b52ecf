//! Two providers, one of them dishonest: it redirects browsers to the other, and waits for the code (RFC 9700 section
//! 4.4).

use crate::{
    doctor::doctor,
    harness::{Answer, Issuer, Raw, Upstream, asked, cookies, until},
    login_fixture::{Changes, LoginFixture, RULE, provider},
};

/// People choose between these two. `login` are further settings of the login at both.
pub async fn two_providers(
    [first, second]: [(&str, &Issuer); 2],
    login: &str,
    upstream: Upstream,
    changes: Changes<'_>,
) -> LoginFixture {
    let both: [(&str, &str); 4] = [
        ("name: a\n", &format!("name: {}\n", first.0)),
        ("'{sub}'", &format!("'{}#{{sub}}'", first.0)),
        ("label: Example Corp", login),
        ("upstreams:\n", &provider(second.0, second.1.url(), login)),
    ];
    let dir = tempfile::tempdir().unwrap();
    let world = LoginFixture::at(first.1.url(), 0, upstream, dir, &[&both, changes].concat()).await;
    for (name, _) in [first, second] {
        until(async || world.get(&format!("/oauth2/start?issuer={name}"), &[]).await.status == 303).await;
    }
    world
}

struct World {
    at: LoginFixture,
    evil: Issuer,
    honest: Issuer,
}

/// `login` are further settings of the login at both.
async fn world(login: &str) -> World {
    let (evil, honest) = (Issuer::start().await, Issuer::start().await);
    let rule = (RULE, "{id: people, on: {routes: [web]}, who: {users: ['honest#alice']}, do: allow}");
    let providers = [("evil", &evil), ("honest", &honest)];
    let at = two_providers(providers, login, Upstream::start().await, &[rule]).await;
    World { at, evil, honest }
}

impl World {
    /// The response to somebody who chose this provider.
    async fn begin(&self, name: &str) -> Answer {
        self.at.get(&format!("/oauth2/start?issuer={name}&rd=/page"), &[]).await
    }

    /// The response to a browser that returns with the cookies of `away`.
    async fn come_back(&self, away: &Answer, path: &str) -> Answer {
        self.at.get(path, &[&cookies(away)]).await
    }

    /// Where the honest provider redirects a browser with a code, for a redirect address that it knows: it does not
    /// name itself.
    async fn code_of_honest(&self, redirect: &str, state: &str) -> String {
        let mut raw = Raw::connect(self.honest.address()).await;
        let query = format!("redirect_uri=http://{}{redirect}&state={state}&nonce=of-the-honest", self.at.host);
        raw.send(format!("GET /authorize?{query} HTTP/1.1\r\nHost: idp\r\nConnection: close\r\n\r\n")).await;
        let location = raw.answer().await.header("location").unwrap().to_owned();
        let (location, _) = location.split_once("&iss=").unwrap();
        location.strip_prefix(&format!("http://{}", self.at.host)).unwrap().to_owned()
    }
}

#[tokio::test]
async fn a_provider_cannot_pass_off_the_code_of_another_one_as_its_own() {
    let world = world("label: Corp").await;
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
    // This keeps nobody out.
    let away = world.begin("honest").await;
    let location = away.header("location").unwrap();
    assert!(asked(location, "redirect_uri").ends_with("/oauth2/callback/honest"), "{location}");
    let back = format!("/oauth2/callback/honest?code={}&state={}", asked(location, "nonce"), asked(location, "state"));
    let signed_in = world.come_back(&away, &back).await;
    assert_eq!((signed_in.status, signed_in.header("location")), (303, Some("/page")), "{}", signed_in.text());
}

/// The counterpart: with one address for both, which must be configured explicitly, the attack succeeds.
#[tokio::test]
async fn with_one_address_for_both_it_could() {
    let world = world("redirect: shared").await;
    let away = world.begin("evil").await;
    let state = asked(away.header("location").unwrap(), "state");
    let back = world.code_of_honest("/oauth2/callback", &state).await;
    world.come_back(&away, &back).await;
    assert_eq!(world.evil.redeemed(), ["of-the-honest"]);
}

#[tokio::test]
async fn the_doctor_names_the_redirect_address_of_each_provider_and_those_at_risk() {
    for (login, address, at_risk) in
        [("label: Corp", "/oauth2/callback/evil", false), ("redirect: shared", "/oauth2/callback", true)]
    {
        let world = world(login).await;
        let public = world.at.origin();
        let said = doctor(world.at.doorward.dir(), &["--only", "redirect", "--public", &public]).await;
        let of_evil = said.findings.iter().filter(|finding| finding["subject"] == "issuer `evil`");
        let told = of_evil.map(|finding| format!("{finding}\n")).collect::<String>();
        assert!(told.contains(&format!("it knows {public}{address}\"")), "{told}");
        assert_eq!(told.contains("codes of another provider could be taken for its own"), at_risk, "{told}");
        assert_eq!(told.contains(r#""state":"warning""#), at_risk, "{told}");
    }
}
