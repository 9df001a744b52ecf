//! A route that names issuers takes the sessions of those alone, whatever holds them. People of two providers log in at its host.

use crate::harness::{
    Answer, Doorward, Issuer, Upstream, come_back, session,
    streams::{WATCH, begin, ends_in, streaming},
    within,
};

struct World {
    doorward: Doorward,
    host: String,
    upstream: Upstream,
    _issuers: [Issuer; 2],
}

async fn world() -> World {
    let (corp, partner, upstream) = (Issuer::start().await, Issuer::start().await, Upstream::scripted(streaming).await);
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("client"), "client-secret").unwrap();
    let issuer = |name: &str, issuer: &Issuer| {
        format!(
            "{{name: {name}, issuer: '{}', username: '{name}#{{sub}}', kind: human,
               login: {{client: {{id: doorward, secret: {{file: client}}}}}}}}",
            issuer.url()
        )
    };
    let yaml = format!(
        "
listeners: [{{name: public, address: 127.0.0.1:0, trusted_proxies: [127.0.0.1/32]}}]
forward_auth: nginx
issuers:
  - {}
  - {}
upstreams: [{{name: web, url: '{upstream}'}}]
routes:
  - {{name: all, kind: http, hosts: [localhost], schemes: [session], upstream: web}}
  - {{name: own, kind: http, hosts: [localhost], paths: ['/own/*'], schemes: [session], issuers: [corp], upstream: web}}
  - {{name: shop, kind: http, hosts: [shop.localhost], schemes: [session], issuers: [corp], upstream: web}}
rules: [{{id: people, on: {{routes: [all, own, shop]}}, who: {{kind: human}}, do: allow}}]
store: {{path: doorward.redb}}
audit: {{sink: {{file: {{path: audit.jsonl}}}}}}
limits: {{drain_accept: 0}}
",
        issuer("corp", &corp),
        issuer("partner", &partner),
        upstream = upstream.url(),
    );
    let doorward = Doorward::start_in(dir, &yaml).await;
    let host = format!("localhost:{}", doorward.address("public").port());
    let world = World { doorward, host, upstream, _issuers: [corp, partner] };
    for name in ["corp", "partner"] {
        within(async {
            while world.get(&format!("/oauth2/start?issuer={name}"), &[]).await.status != 303 {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }
    world
}

impl World {
    async fn get(&self, path: &str, more: &[&str]) -> Answer {
        self.doorward.get(path, &[&[format!("Host: {}", self.host).as_str()], more].concat()).await
    }

    async fn post(&self, path: &str, more: &[&str], body: &str) -> Answer {
        let (line, host) = (format!("POST {path} HTTP/1.1"), format!("Host: {}", self.host));
        self.doorward.send(&[&[line.as_str(), &host], more].concat(), body.as_bytes()).await
    }

    /// The `Cookie` line of a browser after a login at this issuer.
    async fn cookie(&self, issuer: &str) -> String {
        let away = self.get(&format!("/oauth2/start?issuer={issuer}&rd=/page"), &[]).await;
        let location = away.header("location").unwrap().to_owned();
        let back = come_back(&self.doorward, &[&format!("Host: {}", self.host)], &away, &location).await;
        session(&back).unwrap()
    }

    /// The `Authorization` line of a program after a login at this issuer.
    async fn handle(&self, issuer: &str) -> String {
        // Those of RFC 7636, appendix B.
        let (verifier, challenge) =
            ("dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk", "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM");
        let page = format!(
            "/.doorward/login?port=7000&state=a-state-of-the-program&code_challenge={challenge}&machine=laptop&issuer={issuer}"
        );
        let away = self.post(&page, &[&format!("Origin: http://{}", self.host)], "").await;
        let location = away.header("location").unwrap_or_else(|| panic!("{}{}", away.head, away.text())).to_owned();
        let back = come_back(&self.doorward, &[&format!("Host: {}", self.host)], &away, &location).await;
        let location = back.header("location").unwrap();
        let code = location.split_once("code=").unwrap().1.split('&').next().unwrap();
        let form = format!("grant_type=authorization_code&code={code}&code_verifier={verifier}");
        let kind = "Content-Type: application/x-www-form-urlencoded";
        let handle = self.post("/.doorward/login/token", &[kind], &form).await;
        format!("Authorization: Bearer {}", handle.json()["access_token"].as_str().unwrap())
    }
}

#[tokio::test]
async fn a_route_that_names_issuers_takes_the_sessions_of_no_other() {
    let world = world().await;
    for issuer in ["corp", "partner"] {
        for credential in [world.cookie(issuer).await, world.handle(issuer).await] {
            world.upstream.take();
            let anywhere = world.get("/page", &[&credential]).await;
            assert_eq!((anywhere.status, world.upstream.take().len()), (200, 1), "{issuer}: {}", anywhere.text());
            let own = world.get("/own/page", &[&credential]).await;
            let question = ["X-Original-Method: GET", "X-Original-URI: /own/page", &credential];
            let asked = world.get("/oauth2/auth", &question).await;
            if issuer == "corp" {
                assert_eq!((own.status, asked.status, world.upstream.take().len()), (200, 202, 1), "{}", own.text());
                continue;
            }
            assert_eq!((own.status, asked.status), (403, 403), "{credential}: {}{}", own.text(), asked.text());
            assert!(own.text().contains("sign in at `corp`"), "{}", own.text());
            let id = own.header("x-request-id").unwrap();
            let is_named = |record: &serde_json::Value| {
                record.to_string().contains(id)
                    && record["actor"]["user"]["name"].as_str().is_some_and(|name| name.starts_with("partner#"))
            };
            within(async {
                while !world.doorward.audit().iter().any(is_named) {
                    tokio::task::yield_now().await;
                }
            })
            .await;
            assert!(world.upstream.take().is_empty());
        }
    }
}

#[tokio::test]
async fn a_stream_ends_when_a_reload_takes_its_issuer_off_the_route() {
    let world = world().await;
    let (corp, partner) = (world.cookie("corp").await, world.cookie("partner").await);
    let host = format!("Host: {}", world.host);
    let mut kept = begin(&world.doorward, WATCH, &[&host, &corp, "Connection: close"], 200).await;
    let mut cut = begin(&world.doorward, WATCH, &[&host, &partner, "Connection: close"], 200).await;
    let path = world.doorward.dir().join("doorward.yaml");
    let before = std::fs::read_to_string(&path).unwrap();
    let after = before.replacen("schemes: [session], upstream", "schemes: [session], issuers: [corp], upstream", 1);
    assert_ne!(after, before);
    let draft = path.with_extension("draft");
    std::fs::write(&draft, after).unwrap();
    std::fs::rename(draft, path).unwrap();
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
        // Where there is one alone, nobody is asked.
        let start = world.doorward.get("/oauth2/start", &[&host]).await;
        assert_eq!(start.header("location").unwrap().starts_with("/oauth2/sign_in"), offered, "{}", start.head);
    }
}
