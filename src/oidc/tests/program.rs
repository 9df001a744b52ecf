//! Programs that sign in while the store fails, people decline, or others use the same code.

use futures_util::FutureExt as _;

use super::*;
use crate::{
    oidc::program,
    sessions::Ended,
    store::{Backend as _, Table, Target},
};

const VERIFIER: &str = "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk";

/// The code that a program waits with or presents.
enum Brought {
    Code(String),
    Device(Value),
}

impl Browser {
    async fn program(&mut self, path: &str, form: &str) -> (StatusCode, Value) {
        let kind = [("content-type", "application/x-www-form-urlencoded")];
        let answer = self.send(Method::POST, path, None, &kind, form).await;
        (answer.status(), serde_json::from_slice(answer.body()).unwrap())
    }

    /// Sends a form as the browser does from our own page.
    async fn press(&mut self, address: &str, form: &str) -> Response<Bytes> {
        let (path, query) = address.split_once('?').map_or((address, None), |(path, query)| (path, Some(query)));
        let ours = [("origin", "https://dash.example.com"), ("content-type", "application/x-www-form-urlencoded")];
        self.send(Method::POST, path, query, &ours, form).await
    }

    async fn begin_device(&mut self) -> Value {
        let form = format!("code_challenge={}&machine=build-7", program::challenge(VERIFIER));
        let (status, told) = self.program(program::DEVICE_REQUEST, &form).await;
        assert_eq!(status, StatusCode::OK, "{told}");
        told
    }

    /// Goes to the provider to allow that device.
    async fn depart_for(&mut self, device: &Value) -> Sent {
        let form = format!("code={}", device["user_code"].as_str().unwrap());
        let away = self.press(&format!("{}?issuer=corp", program::DEVICE), &form).await;
        self.sent_by(&away)
    }

    async fn allowed_device(&mut self) -> Brought {
        let device = self.begin_device().await;
        let sent = self.depart_for(&device).await;
        assert_eq!(self.get(&sent.good()).await.status(), StatusCode::SEE_OTHER);
        Brought::Device(device)
    }

    async fn depart_for_loopback(&mut self) -> Sent {
        let page = format!(
            "{}?port=7000&state=a-state-of-the-program&code_challenge={}&machine=laptop&issuer=corp",
            program::PAGE,
            program::challenge(VERIFIER)
        );
        let away = self.press(&page, "").await;
        self.sent_by(&away)
    }

    async fn allowed_loopback(&mut self) -> Brought {
        let sent = self.depart_for_loopback().await;
        let back = self.get(&sent.good()).await;
        let back = Url::parse(location(&back)).unwrap();
        Brought::Code(back.query_pairs().find(|(name, _)| name == "code").unwrap().1.into_owned())
    }

    /// The page for a person who may not sign in.
    async fn refused_loopback(&mut self, subject: &str) -> String {
        let sent = self.depart_for_loopback().await;
        self.script(|script| script.claims.as_mut().unwrap()["sub"] = json!(subject));
        let back = self.get(&sent.good()).await;
        assert_eq!(back.status(), StatusCode::FORBIDDEN);
        body(&back).to_owned()
    }

    async fn allowed(&mut self, is_device: bool) -> Brought {
        if is_device { self.allowed_device().await } else { self.allowed_loopback().await }
    }

    /// The program presents its code, after the interval between polls.
    async fn bring(&mut self, brought: &Brought) -> (StatusCode, Value) {
        self.fixture.shared.clock.advance(Duration::from_secs(2));
        let what = match brought {
            Brought::Code(code) => format!("grant_type=authorization_code&code={code}"),
            Brought::Device(device) => {
                let code = device["device_code"].as_str().unwrap();
                format!("grant_type={}&device_code={code}", program::DEVICE_GRANT)
            }
        };
        self.program(program::TOKEN, &format!("{what}&code_verifier={VERIFIER}")).await
    }

    async fn is_good(&self, told: &Value) -> bool {
        let handle = told["access_token"].as_str().unwrap();
        let found = self.fixture.sessions.authenticate_handle(handle, &self.origin, [127, 0, 0, 1].into()).await;
        found.is_ok()
    }

    async fn listed(&self) -> Vec<String> {
        let list = self.fixture.sessions.list(&self.fixture.provider.issuer, "alice").await.unwrap();
        list.into_iter().map(|listed| listed.browser).collect()
    }

    fn fill(&self, table: Option<Table>) {
        *self.fixture.store.full.lock().unwrap() = table;
    }
}

fn refused((status, told): &(StatusCode, Value), error: &str, why: &str) {
    assert_eq!((*status, told["error"].as_str()), (StatusCode::BAD_REQUEST, Some(error)), "{told}");
    assert!(told["error_description"].as_str().unwrap().contains(why), "{told}");
}

#[tokio::test]
async fn a_store_that_fails_while_a_program_collects_its_login_loses_no_login() {
    for is_device in [true, false] {
        for table in [Table::SessionIndex, Table::Sessions] {
            let mut browser = Browser::new().await;
            let brought = browser.allowed(is_device).await;
            browser.fill(Some(table));
            let (status, told) = browser.bring(&brought).await;
            assert_eq!((status, &told["error"]), (StatusCode::SERVICE_UNAVAILABLE, &json!("temporarily_unavailable")));
            browser.fill(None);
            let (status, told) = browser.bring(&brought).await;
            assert_eq!(status, StatusCode::OK, "{table:?}: {told}");
            assert!(browser.is_good(&told).await);
        }
        // A failure after the handle exists does not affect the program, and a thief of the code is still detected.
        let mut browser = Browser::new().await;
        let brought = browser.allowed(is_device).await;
        browser.fill(Some(Table::Logins));
        let (status, told) = browser.bring(&brought).await;
        assert_eq!(status, StatusCode::OK, "{told}");
        assert!(browser.is_good(&told).await);
        browser.fill(None);
        refused(&browser.bring(&brought).await, "invalid_grant", "so its session has ended");
        assert!(!browser.is_good(&told).await);

        // It reports that the session has ended only when it has.
        let brought = browser.allowed(is_device).await;
        let (_, told) = browser.bring(&brought).await;
        browser.fixture.store.switch(true);
        let (status, again) = browser.bring(&brought).await;
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "{again}");
        browser.fixture.store.switch(false);
        assert!(browser.is_good(&told).await);
        refused(&browser.bring(&brought).await, "invalid_grant", "so its session has ended");
        assert!(!browser.is_good(&told).await);
    }
}

#[tokio::test]
async fn a_code_that_is_redeemed_twice_at_once_leaves_no_session() {
    for is_device in [true, false] {
        let mut browser = Browser::new().await;
        let brought = browser.allowed(is_device).await;
        let (login, origin) = (browser.login.clone(), browser.origin.clone());
        browser.fixture.shared.clock.advance(Duration::from_secs(2));
        let what = match &brought {
            Brought::Code(code) => format!("grant_type=authorization_code&code={code}"),
            Brought::Device(device) => {
                format!("grant_type={}&device_code={}", program::DEVICE_GRANT, device["device_code"].as_str().unwrap())
            }
        };
        let form = format!("{what}&code_verifier={VERIFIER}");
        let headers = HeaderMap::from_iter([(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/x-www-form-urlencoded"),
        )]);
        let bring = async || {
            let request = LoginRequest {
                origin: &origin,
                method: &Method::POST,
                path: program::TOKEN,
                query: None,
                headers: &headers,
                body: form.as_bytes(),
                request_id: "r-1",
                address: [127, 0, 0, 1].into(),
                is_shared_address: false,
                audit: &EndpointAudit::default(),
                left_out: &[],
            };
            let answer = login.answer(request).await.unwrap();
            serde_json::from_slice::<Value>(answer.body()).unwrap()
        };
        let both = tokio::join!(bring(), bring());
        for told in [&both.0, &both.1] {
            if told.get("access_token").is_some() && !is_device {
                assert!(!browser.is_good(told).await, "{told}");
            }
        }
        // With two devices, the second gets `slow_down`, and is detected at its next poll.
        if is_device {
            refused(&browser.bring(&brought).await, "invalid_grant", "so its session has ended");
        }
        assert_eq!(browser.listed().await, [""; 0]);
    }
}

#[tokio::test]
async fn a_second_use_before_the_code_is_marked_as_used_is_detected() {
    let mut browser = Browser::new().await;
    let brought = browser.allowed_device().await;
    // The first has its session, but the code is not marked as used yet.
    browser.fill(Some(Table::Logins));
    let (_, first) = browser.bring(&brought).await;
    let second = browser.bring(&brought).await;
    refused(&second, "invalid_grant", "so its session has ended");
    assert!(!browser.is_good(&first).await);
}

#[tokio::test]
async fn a_session_that_waits_for_its_program_is_out_of_reach_and_within_that_of_its_person() {
    let mut browser = Browser::new().await;
    let brought = browser.allowed_device().await;
    assert_eq!(browser.listed().await, ["doorward login on build-7, which has not collected it yet"]);
    let began = browser.fixture.shared.clock.now();
    browser.fixture.shared.clock.advance(Duration::from_secs(200));
    let (status, told) = browser.bring(&brought).await;
    assert_eq!(status, StatusCode::OK, "{told}");
    let list = browser.fixture.sessions.list(&browser.fixture.provider.issuer, "alice").await.unwrap();
    // The facts about the person are as old as the login, whenever the program collected the session, which ends like
    // any other.
    assert_eq!((list[0].created, list[0].checked), (began, began));
    assert_eq!(list[0].ends, began + Duration::from_secs(24 * 3600));
    assert_eq!(list[0].browser, "doorward login on build-7");

    // The provider ends the session in between by its `sid`.
    let issuer = browser.fixture.provider.issuer.clone();
    let brought = browser.allowed_device().await;
    assert_eq!(browser.fixture.sessions.end_by_provider(&issuer, None, Some("s-1")).await.unwrap(), 2);
    refused(&browser.bring(&brought).await, "access_denied", "ended before this program collected");

    // The person ends it, or an operator revokes them.
    let brought = browser.allowed_device().await;
    assert_eq!(browser.fixture.sessions.end_of(&issuer, "alice", None, Ended::revoked).await.unwrap(), 1);
    refused(&browser.bring(&brought).await, "access_denied", "ended before this program collected");
    let brought = browser.allowed_device().await;
    let revocations = &browser.fixture.shared.revocations;
    let (person, until) = (Target::Principal { issuer: "corp", subject: "alice" }, began + Duration::from_secs(86_400));
    revocations.revoke(person, "left", until).await.unwrap();
    refused(&browser.bring(&brought).await, "access_denied", "was revoked");
}

#[tokio::test]
async fn a_login_that_is_never_collected_leaves_nothing() {
    for (is_device, lifetime) in [(true, 600), (false, 60)] {
        let mut browser = Browser::new().await;
        let brought = browser.allowed(is_device).await;
        assert_eq!(browser.listed().await.len(), 1);
        let lists = async |browser: &Browser| {
            let now = browser.fixture.shared.clock.now();
            browser.fixture.store.changes(Table::SessionIndex, 0, 10, now).await.unwrap().len()
        };
        let before = lists(&browser).await;
        browser.fixture.shared.clock.advance(Duration::from_secs(lifetime));
        assert_eq!(browser.listed().await, [""; 0]);
        let (status, told) = browser.bring(&brought).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{told}");
        // It does not count towards the maximum of sessions either.
        assert_eq!(lists(&browser).await, before - 1);
    }
}

#[tokio::test]
async fn a_terminal_that_is_declined_while_being_approved_gets_nothing() {
    let mut browser = Browser::new().await;
    let device = browser.begin_device().await;
    let sent = browser.depart_for(&device).await;
    let form = format!("code={}", device["user_code"].as_str().unwrap());
    assert_eq!(browser.press(&format!("{}?decline", program::DEVICE), &form).await.status(), StatusCode::OK);
    let back = browser.get(&sent.good()).await;
    assert!(body(&back).contains("Your terminal does not wait any more"), "{}", body(&back));
    assert_eq!(browser.listed().await, [""; 0]);

    // A session that its program cannot learn of ends at once.
    let device = browser.begin_device().await;
    let sent = browser.depart_for(&device).await;
    // The store accepts that the login was completed, but nothing after that.
    browser.fixture.store.spare.store(1, std::sync::atomic::Ordering::SeqCst);
    browser.fill(Some(Table::Logins));
    let back = browser.get(&sent.good()).await;
    assert_eq!(back.status(), StatusCode::SERVICE_UNAVAILABLE, "{}", body(&back));
    assert!(body(&back).contains("href=\"/.doorward/device\"") && !body(&back).contains("/oauth2/start"));
    assert_eq!(browser.listed().await, [""; 0]);
}

/// Declining freed the place at once, while the record stayed, so anybody could fill the store by declining programs of
/// their own.
#[tokio::test]
async fn declined_terminals_do_not_fill_the_store() {
    let mut browser = Browser::new().await;
    let form = format!("code_challenge={}&machine=build-7", program::challenge(VERIFIER));
    for _ in 0..30 {
        let device = browser.begin_device().await;
        let typed = format!("code={}", device["user_code"].as_str().unwrap());
        assert_eq!(browser.press(&format!("{}?decline", program::DEVICE), &typed).await.status(), StatusCode::OK);
    }
    let (status, told) = browser.program(program::DEVICE_REQUEST, &form).await;
    assert_eq!(status, StatusCode::TOO_MANY_REQUESTS, "{told}");
    browser.fixture.shared.clock.advance(Duration::from_secs(600));
    // Twin: one that was allowed frees its place.
    for _ in 0..31 {
        let Brought::Device(device) = browser.allowed_device().await else { unreachable!() };
        let typed = format!("code={}", device["user_code"].as_str().unwrap());
        assert_eq!(browser.press(&format!("{}?decline", program::DEVICE), &typed).await.status(), StatusCode::OK);
    }
}

/// The session was of no use, and stayed in the person's list.
#[tokio::test]
async fn declining_a_terminal_ends_its_session_even_if_the_browser_leaves() {
    let mut browser = Browser::new().await;
    let Brought::Device(device) = browser.allowed_device().await else { unreachable!() };
    let typed = format!("code={}", device["user_code"].as_str().unwrap());
    let store = Arc::clone(&browser.fixture.store);
    let decline = format!("{}?decline", program::DEVICE);
    store.leave_at(Table::Logins, browser.press(&decline, &typed)).await;
    browser.fixture.shared.drain.wait(Duration::from_secs(10)).await;
    assert_eq!(browser.listed().await, [""; 0]);
    refused(&browser.bring(&Brought::Device(device)).await, "access_denied", "the person declined");
}

/// The place was freed at once, while the store kept the record, so clients that disconnect early could fill the store.
#[tokio::test]
async fn a_request_for_a_code_keeps_its_place_if_the_program_leaves_or_the_store_is_silent() {
    let form = format!("code_challenge={}&machine=build-7", program::challenge(VERIFIER));
    let kind = [("content-type", "application/x-www-form-urlencoded")];
    for leaves in [true, false] {
        let mut browser = Browser::new().await;
        for _ in 0..30 {
            if leaves {
                browser.send(Method::POST, program::DEVICE_REQUEST, None, &kind, &form).now_or_never();
            } else {
                *browser.fixture.store.unheard.lock().unwrap() = Some(Table::Logins);
                assert_eq!(browser.program(program::DEVICE_REQUEST, &form).await.0, StatusCode::SERVICE_UNAVAILABLE);
            }
        }
        let (status, told) = browser.program(program::DEVICE_REQUEST, &form).await;
        assert_eq!(status, StatusCode::TOO_MANY_REQUESTS, "{leaves}: {told}");
        browser.fixture.shared.clock.advance(Duration::from_secs(600));
        browser.begin_device().await;
    }
}

/// Retries while the store was full took all places of a network, which was then refused for ten more minutes.
#[tokio::test]
async fn a_store_that_was_full_leaves_no_place_taken() {
    let mut browser = Browser::new().await;
    browser.fixture.store.is_shared.store(true, std::sync::atomic::Ordering::SeqCst);
    browser.fill(Some(Table::Logins));
    let form = format!("code_challenge={}&machine=build-7", program::challenge(VERIFIER));
    for _ in 0..30 {
        assert_eq!(browser.program(program::DEVICE_REQUEST, &form).await.0, StatusCode::SERVICE_UNAVAILABLE);
    }
    browser.fill(None);
    browser.begin_device().await;
}

#[tokio::test]
async fn an_account_that_may_not_sign_in_learns_it_in_the_browser_and_another_may_be_used() {
    let mut browser = Browser::new().await;
    let device = browser.begin_device().await;
    let sent = browser.depart_for(&device).await;
    browser.script(|script| script.claims.as_mut().unwrap()["sub"] = json!("system:admin"));
    let back = browser.get(&sent.good()).await;
    assert_eq!(back.status(), StatusCode::FORBIDDEN);
    assert!(body(&back).contains("reserved prefix") && body(&back).contains("href=\"/.doorward/device\""));
    let brought = Brought::Device(device);
    refused(&browser.bring(&brought).await, "authorization_pending", "nobody");
    let Brought::Device(device) = &brought else { unreachable!() };
    let sent = browser.depart_for(device).await;
    assert_eq!(browser.get(&sent.good()).await.status(), StatusCode::SEE_OTHER);
    assert_eq!(browser.bring(&brought).await.0, StatusCode::OK);
}

/// Otherwise the program would wait for ten minutes.
#[tokio::test]
async fn a_person_who_may_not_sign_in_can_decline_the_waiting_program() {
    let cancel = "href=\"http://127.0.0.1:7000/?error=access_denied&amp;state=a-state-of-the-program\"";
    let mut browser = Browser::new().await;
    let refused = browser.refused_loopback("system:admin").await;
    assert!(refused.contains("reserved prefix") && refused.contains("Try again"), "{refused}");
    assert!(refused.contains(cancel), "{refused}");

    // The same account would get the same result.
    let mut browser = Browser::new().await;
    let until = browser.fixture.shared.clock.now() + Duration::from_secs(86_400);
    let person = Target::Principal { issuer: "corp", subject: "alice" };
    browser.fixture.shared.revocations.revoke(person, "left", until).await.unwrap();
    let refused = browser.refused_loopback("alice").await;
    assert!(refused.contains("Your access was revoked. Ask whoever runs Doorward."), "{refused}");
    assert!(!refused.contains("Try again") && refused.contains("Use another account"), "{refused}");
    assert!(refused.contains(cancel), "{refused}");
}

#[tokio::test]
async fn when_strangers_use_up_all_guesses_the_page_says_how_long_and_sessions_pass() {
    let mut browser = Browser::new().await;
    let device = browser.begin_device().await;
    let form = format!("code={}", device["user_code"].as_str().unwrap());
    let (devices, now) = (browser.fixture.shared.devices.clone(), browser.fixture.shared.clock.moment());
    for address in 0..2500_u32 {
        let address = Some(std::net::Ipv4Addr::from_bits(0x0a00_0000 + address).into());
        while devices.guess(address, now, false).is_ok_and(|guess| guess.keep() < u64::MAX) {}
        while devices.place(address, now).is_ok() {}
    }
    browser.fixture.shared.clock.advance(Duration::from_secs(100));
    let stopped = browser.press(program::DEVICE, &form).await;
    assert_eq!(
        (stopped.status(), stopped.headers()[header::RETRY_AFTER].to_str().unwrap()),
        (StatusCode::SERVICE_UNAVAILABLE, "500")
    );
    assert!(body(&stopped).contains("9 minutes") && body(&stopped).contains("Sign in here"), "{}", body(&stopped));
    let kind = [("content-type", "application/x-www-form-urlencoded")];
    let more = format!("code_challenge={}&machine=build-8", program::challenge(VERIFIER));
    let full = browser.send(Method::POST, program::DEVICE_REQUEST, None, &kind, &more).await;
    assert_eq!(
        (full.status(), full.headers()[header::RETRY_AFTER].to_str().unwrap()),
        (StatusCode::SERVICE_UNAVAILABLE, "500")
    );
    browser.sign_in().await;
    assert_eq!(browser.press(program::DEVICE, &form).await.status(), StatusCode::OK);
}

/// Their page offers no second try with stronger parameters.
#[tokio::test]
async fn a_login_of_a_program_that_must_satisfy_a_rule_asks_for_authentication() {
    let mut browser = Browser::new().await;
    for (needed, prompt) in [("", None), ("&acr_values=gold", Some("login"))] {
        let page = format!(
            "{}?port=7000&state=a-state-of-the-program&code_challenge={}&machine=laptop&issuer=corp{needed}",
            program::PAGE,
            program::challenge(VERIFIER)
        );
        let away = browser.press(&page, "").await;
        let sent = browser.sent_by(&away);
        assert_eq!(sent.parameters.get("prompt").map(|prompt| &**prompt), prompt, "{needed}");
        // The twin: the browser's own login with the same need.
        let sent = browser.depart_from(&format!("/oauth2/start?issuer=corp{needed}")).await;
        assert_eq!(sent.parameters.get("prompt").map(|prompt| &**prompt), None, "{needed}");
    }
}
