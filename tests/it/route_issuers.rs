//! A route that names issuers accepts only sessions from those, in any form. People of two providers log in at its
//! host.

use serde_json::Value;

use crate::{
    harness::{
        Issuer, Upstream, session,
        streams::{WATCH, begin, ends_in, streaming},
    },
    idp_mix_up::two_providers,
    login_fixture::{CHALLENGE, LoginFixture, ROUTE, RULE, VERIFIER},
};

async fn world() -> LoginFixture {
    let changes = [
        ("'127.0.0.1:{port}'}]", "'127.0.0.1:{port}', trusted_proxies: [127.0.0.1/32]}]\nforward_auth: nginx"),
        (
            ROUTE,
            "{name: all, kind: http, hosts: [localhost], schemes: [session], upstream: web}
  - {name: own, kind: http, hosts: [localhost], paths: ['/own/*'], schemes: [session], issuers: [corp], upstream: web}
  - {name: shop, kind: http, hosts: [shop.localhost], schemes: [session], issuers: [corp], upstream: web}",
        ),
        (RULE, "{id: people, on: {routes: [all, own, shop]}, who: {kind: human}, do: allow}"),
    ];
    let (corp, partner) = (Issuer::start().await, Issuer::start().await);
    two_providers([("corp", &corp), ("partner", &partner)], "label: A", Upstream::scripted(streaming).await, &changes)
        .await
}

impl LoginFixture {
    /// The `Cookie` line of a browser after a login at this issuer.
    async fn cookie_of(&self, issuer: &str) -> String {
        let away = self.get(&format!("/oauth2/start?issuer={issuer}&rd=/page"), &[]).await;
        session(&self.come_back(&away).await).unwrap()
    }

    /// The `Authorization` line of a program after a login at this issuer.
    async fn handle_of(&self, issuer: &str) -> String {
        let page = format!(
            "/.doorward/login?port=7000&state=a-state-of-the-program&code_challenge={CHALLENGE}&machine=laptop&issuer={issuer}"
        );
        let away = self.post(&page, &[&format!("Origin: {}", self.origin())], "").await;
        let back = self.come_back(&away).await;
        let location = back.header("location").unwrap();
        let code = location.split_once("code=").unwrap().1.split('&').next().unwrap();
        let form = format!("grant_type=authorization_code&code={code}&code_verifier={VERIFIER}");
        let handle = self.submit("/.doorward/login/token", &[], &form).await;
        format!("Authorization: Bearer {}", handle.json()["access_token"].as_str().unwrap())
    }
}

#[tokio::test]
async fn a_route_that_names_issuers_takes_the_sessions_of_no_other() {
    let world = world().await;
    for issuer in ["corp", "partner"] {
        for credential in [world.cookie_of(issuer).await, world.handle_of(issuer).await] {
            world.upstream.take();
            let anywhere = world.get("/page", &[&credential]).await;
            assert_eq!((anywhere.status, world.upstream.take().len()), (200, 1), "{issuer}: {}", anywhere.text());
            let own = world.get("/own/page", &[&credential]).await;
            let question = ["X-Original-Method: GET", "X-Original-URI: /own/page", &credential];
            let asked = world.get("/oauth2/auth", &question).await;
            if issuer == "corp" {
                assert_eq!((own.status, asked.status, world.upstream.take().len()), (200, 200, 1), "{}", own.text());
                continue;
            }
            assert_eq!((own.status, asked.status), (403, 403), "{credential}: {}{}", own.text(), asked.text());
            assert!(own.text().contains("sign in at `corp`"), "{}", own.text());
            let id = own.header("x-request-id").unwrap();
            let is_named = |record: &Value| {
                record.to_string().contains(id)
                    && record["actor"]["user"]["name"].as_str().is_some_and(|name| name.starts_with("partner#"))
            };
            world.doorward.record(is_named).await;
            assert!(world.upstream.take().is_empty());
        }
    }
}

#[tokio::test]
async fn a_stream_ends_when_a_reload_takes_its_issuer_off_the_route() {
    let world = world().await;
    let (corp, partner) = (world.cookie_of("corp").await, world.cookie_of("partner").await);
    let host = format!("Host: {}", world.host);
    let mut kept = begin(&world.doorward, WATCH, &[&host, &corp, "Connection: close"], 200).await;
    let mut cut = begin(&world.doorward, WATCH, &[&host, &partner, "Connection: close"], 200).await;
    world.doorward.change("schemes: [session], upstream", "schemes: [session], issuers: [corp], upstream");
    cut.rest().await;
    assert_eq!(ends_in(&world.doorward, "request", 1).await, ["permission_lost"]);
    let goes_on = tokio::time::timeout(std::time::Duration::from_millis(300), kept.rest()).await;
    assert!(goes_on.is_err(), "the twin");
}

#[tokio::test]
async fn a_host_offers_the_logins_that_its_routes_take() {
    let world = world().await;
    let port = world.doorward.address("public").port();
    for (host, offered) in [("localhost", true), ("shop.localhost", false)] {
        let host = format!("Host: {host}:{port}");
        let page = world.doorward.get("/oauth2/sign_in", &[&host]).await.text();
        assert!(page.contains("issuer=corp"), "{host}: {page}");
        assert_eq!(page.contains("issuer=partner"), offered, "{host}: {page}");
        let chosen = world.doorward.get("/oauth2/start?issuer=partner", &[&host]).await;
        assert_eq!(chosen.status == 303, offered, "{host}: {}", chosen.text());
        // If there is only one, nobody has to choose.
        let start = world.doorward.get("/oauth2/start", &[&host]).await;
        assert_eq!(start.header("location").unwrap().starts_with("/oauth2/sign_in"), offered, "{}", start.head);
    }
}
