//! `doorward login --device`: a terminal whose machine has no browser, and attempts to abuse it.

use super::*;
use crate::harness::Reply;

const TYPE: &str = "/.doorward/device";

/// The codes given to a program without a browser.
struct Device {
    code: String,
    user_code: String,
}

/// The form by which a program asks for its session.
fn collect(code: &str, verifier: &str) -> String {
    format!("grant_type=urn:ietf:params:oauth:grant-type:device_code&device_code={code}&code_verifier={verifier}")
}

impl LoginFixture {
    async fn ask_for_device(&self) -> Answer {
        self.submit("/.doorward/login/device", &[], &format!("code_challenge={CHALLENGE}&machine=build-7")).await
    }

    async fn device(&self) -> Device {
        let answer = self.ask_for_device().await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        let told = answer.json();
        assert_eq!(told["verification_uri"], format!("{}{TYPE}", self.origin()));
        assert!(told["verification_uri_complete"].is_null(), "attacks:Z43: {told}");
        let text = |name: &str| told[name].as_str().unwrap().to_owned();
        Device { code: text("device_code"), user_code: text("user_code") }
    }

    /// Sends a form like a browser from Doorward's own page.
    async fn press(&self, path: &str, form: &str) -> Answer {
        self.submit(path, &[&format!("Origin: {}", self.origin()), "Accept: text/html"], form).await
    }

    /// Polls for the session like the program, respecting the interval.
    pub async fn poll(&self, code: &str, verifier: &str) -> Answer {
        let form = collect(code, verifier);
        found(async || {
            let answer = self.submit("/.doorward/login/token", &[], &form).await;
            (answer.status == 200 || answer.json()["error"] != "slow_down").then_some(answer)
        })
        .await
    }

    /// Types the code, presses the button, and returns from the provider.
    async fn let_in(&self, device: &Device) -> Answer {
        let away = self.press(&format!("{TYPE}?issuer=a"), &format!("code={}", device.user_code)).await;
        assert_eq!(away.status, 303, "{}{}", away.head, away.text());
        self.come_back(&away).await
    }
}

fn refused(answer: &Answer, error: &str) {
    assert_eq!(answer.status, 400, "{error}: {}", answer.text());
    assert_eq!(answer.json()["error"], error, "{}", answer.text());
}

#[tokio::test]
async fn a_machine_without_a_browser_signs_in_by_a_code_that_is_typed_on_another() {
    let (world, _provider) = certified().await;
    let shell = Shell::new();
    let mut command = shell.command(&["login", "--device", &world.origin()]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let (mut page, mut code) = (None, None);
    while code.is_none() {
        let line = within(lines.next_line()).await.unwrap().expect("it ended");
        if line.trim().starts_with("http") {
            page = Some(line.trim().to_owned());
        }
        code = line.strip_prefix("and type the code ").map(|code| code.trim_end_matches('.').to_owned());
    }
    let (page, code) = (page.unwrap(), code.unwrap());
    assert_eq!(page, format!("{}{TYPE}", world.origin()));
    let typed = code.to_lowercase().replace('-', " ");
    let saw = browse(&json!({"scenario": "device", "url": page, "code": typed, "screenshots": screenshots()})).await;
    assert!(saw["again"].as_str().unwrap().contains("No terminal waits for this code"), "{saw}");
    let asked = saw["asked"].as_str().unwrap();
    assert!(asked.contains(&code) && asked.contains("127.0.0.1") && asked.contains("act as you"), "{asked}");
    let told = saw["told"].as_str().unwrap();
    assert!(told.contains("Go back to your terminal") && told.contains("is signed in as alice"), "{told}");
    assert_eq!(saw["faults"], json!([]));
    assert!(!saw["cookies"].to_string().contains("\"__Host-doorward\""), "the browser is not signed in: {saw}");
    assert!(within(child.wait()).await.unwrap().success());
    let (status, who) = shell.run(&["whoami"]).await;
    assert_eq!(status, Some(0), "{who}");
    assert!(who.contains("alice"), "{who}");
}

/// For a sign-in, nobody could tell when it happened; a sign-out may go unrecorded.
#[tokio::test]
async fn while_the_trail_fails_nobody_signs_in_and_signing_out_works() {
    let (world, _issuer) = world().await;
    let cookie = world.log_in().await;
    let (device, code) = (world.device().await, world.code().await);
    let away = world.get("/oauth2/start?rd=%2Fpage", &[]).await;
    let break_trail = async || {
        world.doorward.break_trail(true);
        until(async || {
            // Any record detects it.
            world.get("/nowhere", &[]).await;
            world.doorward.admin("/readyz").await.status == 503
        })
        .await;
    };
    let mend_trail = async || {
        world.doorward.break_trail(false);
        world.doorward.until_ready().await;
    };
    break_trail().await;
    let typed = format!("code={}", device.user_code);
    for (row, answer) in [
        ("the callback", world.call_back(&away).await),
        ("a code that is brought", world.redeem(&code, VERIFIER).await),
        ("a code that is typed", world.press(TYPE, &typed).await),
        ("its program", world.submit("/.doorward/login/token", &[], &collect(&device.code, VERIFIER)).await),
    ] {
        assert_eq!(answer.status, 503, "{row}: {}{}", answer.head, answer.text());
        assert!(answer.header("set-cookie").is_none(), "{row}: {}", answer.head);
        assert!(answer.text().contains("cannot be recorded"), "{row}: {}", answer.text());
    }
    mend_trail().await;
    // Nothing was used up.
    world.come_back(&away).await;
    assert_eq!(world.press(TYPE, &typed).await.status, 200);
    world.let_in(&device).await;
    for given in [world.redeem(&code, VERIFIER).await, world.poll(&device.code, VERIFIER).await] {
        assert_eq!(given.status, 200, "{}", given.text());
    }

    break_trail().await;
    let out = world.post("/oauth2/sign_out", &[&cookie, &format!("Origin: {}", world.origin())], "").await;
    assert_eq!(out.status, 303, "{}{}", out.head, out.text());
    mend_trail().await;
    assert_eq!(world.status(&cookie).await, 401);
}

/// With the most verbose log, after everything that involves a secret: logins, refreshes and sign-outs, of browsers and
/// programs.
#[tokio::test]
async fn no_code_verifier_token_cookie_or_handle_is_in_the_log_or_the_trail() {
    let limits = "limits: {drain_accept: 0}";
    let (mut world, issuer) = LoginFixture::scripted(&[(limits, &format!("{limits}\nlog: {{filter: trace}}"))]).await;
    issuer.give_refresh_tokens();
    let cookie = world.log_in().await;
    let code = world.code().await;
    let token_of = |answer: Answer| {
        answer.json()["access_token"].as_str().unwrap_or_else(|| panic!("{}", answer.text())).to_owned()
    };
    let handle = token_of(world.redeem(&code, VERIFIER).await);
    let device = world.device().await;
    world.let_in(&device).await;
    let of_device = token_of(world.poll(&device.code, VERIFIER).await);
    let of_logins = issuer.secrets().len();
    world.doorward.set_clock_ahead(301);
    assert_eq!((world.status(&cookie).await, world.status_of(&handle).await), (200, 200));
    assert!(issuer.secrets().len() >= of_logins + 6, "each was refreshed");
    let ended = world.submit("/.doorward/login/end", &[&format!("Authorization: Bearer {handle}")], "").await;
    assert_eq!(ended.status, 200, "{}", ended.text());
    let out = world.post("/oauth2/sign_out", &[&cookie, &format!("Origin: {}", world.origin())], "").await;
    assert_eq!(out.status, 303, "{}{}", out.head, out.text());

    world.doorward.signal("TERM");
    world.doorward.ended().await;
    let trail = fs::read_to_string(world.doorward.audit_path()).unwrap();
    let log = world.doorward.log().iter().map(|line| format!("{line}\n")).collect::<String>();
    assert!(log.contains("\"TRACE\"") && trail.contains("/oauth2/callback"), "both tell of it");
    let after = |text: &str, mark: &str| text.split_once(mark).expect(text).1.to_owned();
    let mut secrets = issuer.secrets();
    secrets.extend([after(&cookie, "__Host-doorward="), after(&handle, "dws_"), after(&of_device, "dws_"), code]);
    secrets.extend([after(&device.code, "."), VERIFIER.to_owned(), "doorward-secret-of-the-tests".to_owned()]);
    for secret in secrets {
        for (what, text) in [("log", &log), ("trail", &trail)] {
            let line = text.lines().find(|line| line.contains(&secret));
            assert_eq!(line, None, "{secret} is in the {what}");
        }
    }
}

/// Each would occupy a place of the trail for half a minute, and no other request could be recorded.
#[tokio::test]
async fn a_withheld_login_body_blocks_no_other_login() {
    const QUEUE: usize = 8;
    let queue = format!("audit: {{queue: {QUEUE}, ");
    let (world, _issuer) = LoginFixture::scripted(&[("audit: {", &*queue)]).await;
    let cookie = world.log_in().await;
    let mut kept = Vec::new();
    for path in ["/.doorward/login/token", TYPE].into_iter().cycle().take(QUEUE) {
        let mut raw = world.doorward.raw().await;
        let host = &world.host;
        let kind = "Content-Type: application/x-www-form-urlencoded\r\nContent-Length: 9";
        raw.send(format!("POST {path} HTTP/1.1\r\nHost: {host}\r\n{kind}\r\nExpect: 100-continue\r\n\r\n")).await;
        // So the server waits for the body.
        let told = raw.some().await;
        assert!(told.starts_with(b"HTTP/1.1 100 "), "{}", String::from_utf8_lossy(&told));
        kept.push(raw);
    }
    assert_eq!(world.status(&cookie).await, 200);
}

/// Each occupied a place of the trail until its refusal was written, and waited for one ahead of valid requests.
#[tokio::test]
async fn worthless_codes_need_no_place_in_the_trail() {
    let upstream = Upstream::scripted(|request| match request.line().contains("/held") {
        true => Reply::Hang,
        false => Reply::json(200, "{}"),
    })
    .await;
    let (mut world, _issuer) = LoginFixture::scripted_with(upstream, &[("audit: {", "audit: {queue: 1, ")]).await;
    let cookie = world.log_in().await;
    // The only place is taken.
    let mut holder = world.doorward.raw().await;
    holder.send(format!("GET /held HTTP/1.1\r\nHost: {}\r\n{cookie}\r\n\r\n", world.host)).await;
    world.upstream.wait_for_path("/held").await;
    for (row, answer) in [
        ("a code", world.redeem("of-nobody", VERIFIER).await),
        ("the code of a terminal", world.poll("BCDFGHJK.of-nobody", VERIFIER).await),
        ("one that is typed", world.press(TYPE, "code=BCDFGHJK").await),
        ("the answer of a provider", world.get("/oauth2/callback?code=x&state=y", &[]).await),
    ] {
        assert_eq!(answer.status, 400, "{row}: {}{}", answer.head, answer.text());
    }
}

#[tokio::test]
async fn declining_ends_the_wait_of_the_program() {
    let (world, _issuer) = world().await;
    let device = world.device().await;
    refused(&world.poll(&device.code, VERIFIER).await, "authorization_pending");
    let declined = world.press(&format!("{TYPE}?decline"), &format!("code={}", device.user_code)).await;
    assert!(declined.status == 200 && declined.text().contains("You declined"), "{}", declined.text());
    refused(&world.poll(&device.code, VERIFIER).await, "access_denied");
    let again = world.press(&format!("{TYPE}?issuer=a"), &format!("code={}", device.user_code)).await;
    assert_eq!(again.status, 400, "nobody waits for it any more: {}", again.text());
    assert!(again.text().contains("declined already"), "{}", again.text());
}

/// An attacker begins a login and tricks a victim into finishing it.
#[tokio::test]
async fn attacks_z43_a_code_must_be_typed_and_what_it_does_confirmed() {
    let (world, _issuer) = world().await;
    let device = world.device().await;
    let form = format!("code={}", device.user_code);
    // A link cannot type the code.
    let parameters = format!("code={0}&user_code={0}&issuer=a", device.user_code);
    let opened = world.get(&format!("{TYPE}?{parameters}"), &["Accept: text/html"]).await;
    assert_eq!(opened.status, 200);
    assert!(!opened.text().contains(&device.user_code), "{}", opened.text());
    // Nor can a page of another site.
    for (row, more) in FORGED {
        for path in [TYPE.to_owned(), format!("{TYPE}?issuer=a"), format!("{TYPE}?decline")] {
            let answer = world.submit(&path, more, &form).await;
            assert_eq!(answer.status, 403, "{row}: {}", answer.text());
        }
    }
    // Typing it does nothing yet: the page says which program asks, and that a code from somebody else is an attack.
    let asked = world.press(TYPE, &form).await;
    assert_eq!(asked.status, 200);
    for said in ["build-7", "127.0.0.1", "If somebody gave it to you, decline"] {
        assert!(asked.text().contains(said), "{said}: {}", asked.text());
    }
    refused(&world.poll(&device.code, VERIFIER).await, "authorization_pending");
    // The page cannot be framed, so that no click can be stolen.
    assert!(asked.header("content-security-policy").unwrap().contains("frame-ancestors 'none'"), "{}", asked.head);
}

#[tokio::test]
async fn a_device_code_is_good_for_its_program_its_host_once_and_ten_minutes() {
    let (world, _issuer) = world().await;
    let device = world.device().await;
    let back = world.let_in(&device).await;
    let done = back.header("location").unwrap();
    assert!(done.starts_with("/.doorward/device/done?of="), "{}{}", back.head, back.text());
    let told = world.get(done, &["Accept: text/html"]).await.text();
    assert!(told.contains("build-7") && told.contains("alice"), "{told}");
    // It does not show text that somebody else supplies.
    let told = world.get("/.doorward/device/done?of=bWFjaGluZQ", &["Accept: text/html"]).await;
    assert!(told.status == 200 && told.text().contains("Go back to your terminal"), "{}", told.text());
    let (shown, secret) = device.code.split_once('.').unwrap();
    assert_eq!(shown, device.user_code);
    // Somebody who saw the code on the screen, and somebody who has it without the secret it is bound to.
    refused(&world.poll(&format!("{shown}.{}", secret.to_uppercase()), VERIFIER).await, "expired_token");
    refused(&world.poll(&device.code, &VERIFIER.replace('d', "e")).await, "invalid_grant");
    let elsewhere = format!("Host: other.{}", world.host);
    let form = format!("code={}", device.user_code);
    let origin = format!("Origin: http://other.{}", world.host);
    let lines = [&format!("POST {TYPE} HTTP/1.1"), &elsewhere, &origin];
    let other = world.device().await;
    let typed = world.doorward.send(&lines.map(String::as_str), format!("code={}", other.user_code).as_bytes()).await;
    assert_eq!(typed.status, 400, "{}", typed.text());
    // It lets one program in, and cannot be used a second time.
    assert_eq!(world.press(TYPE, &form).await.status, 409);
    assert_eq!(world.press(&format!("{TYPE}?issuer=a"), &form).await.status, 409);
    let given = world.poll(&device.code, VERIFIER).await;
    assert_eq!(given.status, 200, "{}", given.text());
    let handle = given.json()["access_token"].as_str().unwrap().to_owned();
    assert_eq!(world.status_of(&handle).await, 200);
    // Presented twice: one of the two stole it.
    refused(&world.poll(&device.code, VERIFIER).await, "invalid_grant");
    assert_eq!(world.status_of(&handle).await, 401);

    let late = world.device().await;
    let away = world.press(&format!("{TYPE}?issuer=a"), &format!("code={}", late.user_code)).await;
    assert_eq!(away.status, 303);
    world.doorward.set_clock_ahead(601);
    refused(&world.poll(&late.code, VERIFIER).await, "expired_token");
    assert_eq!(world.press(TYPE, &format!("code={}", late.user_code)).await.status, 400);
}

#[tokio::test]
async fn a_login_that_completes_after_the_terminal_left_says_so() {
    let (world, _issuer) = world().await;
    let device = world.device().await;
    let away = world.press(&format!("{TYPE}?issuer=a"), &format!("code={}", device.user_code)).await;
    assert_eq!(world.press(&format!("{TYPE}?decline"), &format!("code={}", device.user_code)).await.status, 200);
    let back = world.call_back(&away).await;
    assert_eq!(back.status, 400, "{}", back.text());
    assert!(back.text().contains("Your terminal does not wait any more"), "{}", back.text());
    refused(&world.poll(&device.code, VERIFIER).await, "access_denied");
}

#[tokio::test]
async fn pending_device_logins_of_strangers_are_bounded() {
    let (world, _issuer) = world().await;
    let challenge = format!("code_challenge={CHALLENGE}");
    let no_text = format!("{challenge}&machine=%ff");
    for form in ["", "machine=a", &challenge, "code_challenge=short&machine=a", &no_text] {
        refused(&world.submit("/.doorward/login/device", &[], form).await, "invalid_request");
    }
    let device = world.device().await;
    // A program that polls too often is told to slow down.
    let form = collect(&device.code, VERIFIER);
    until(async || world.submit("/.doorward/login/token", &[], &form).await.json()["error"] == "slow_down").await;
    // Thirty wait from here, including the one above.
    let mut waiting = vec![device];
    while waiting.len() < 30 {
        waiting.push(world.device().await);
    }
    let more = world.ask_for_device().await;
    assert_eq!(more.status, 429, "{}", more.text());
    let wait: u64 = more.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=600).contains(&wait) && more.json()["error"] == "temporarily_unavailable", "{}", more.head);
    // One that got its session makes room for another, and one that is declined does not: its record stays as long as
    // any.
    let (declined, used) = (waiting.pop().unwrap(), waiting.pop().unwrap());
    assert_eq!(world.press(&format!("{TYPE}?decline"), &format!("code={}", declined.user_code)).await.status, 200);
    assert_eq!(world.ask_for_device().await.status, 429);
    world.let_in(&used).await;
    assert_eq!(world.poll(&used.code, VERIFIER).await.status, 200);
    for status in [200, 429] {
        assert_eq!(world.ask_for_device().await.status, status);
    }
    // Twenty wrong guesses; known codes and malformed ones do not count.
    let good = format!("code={}", waiting[0].user_code);
    for _ in 0..20 {
        assert_eq!(world.press(TYPE, "code=hello").await.status, 400);
        assert_eq!(world.press(&format!("{TYPE}?decline"), &format!("code={}", declined.user_code)).await.status, 200);
        assert_eq!(world.press(TYPE, &format!("code={}", used.user_code)).await.status, 409);
        assert_eq!(world.press(TYPE, "code=BCDF-GHJK").await.status, 400);
    }
    let stopped = world.press(TYPE, &good).await;
    assert_eq!(stopped.status, 429, "not even a good one: {}", stopped.text());
    let wait: u64 = stopped.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=600).contains(&wait) && stopped.text().contains("minutes"), "{}", stopped.head);
    // A reload resets none of it.
    world.doorward.change("label: Example Corp", "label: Renamed");
    let renamed = page(&[]);
    until(async || world.get(&renamed, &[]).await.text().contains("Renamed")).await;
    assert_eq!(world.press(TYPE, &good).await.status, 429);
    world.doorward.stays_below(100, "logins that nobody ends");
    assert_eq!(world.ask_for_device().await.status, 429);
    world.doorward.set_clock_ahead(601);
    assert_eq!(world.press(TYPE, "code=BCDF-GHJK").await.status, 400);
    assert_eq!(world.ask_for_device().await.status, 200);
}

/// Between the confirmation and the program's next poll, which may take minutes.
#[tokio::test]
async fn a_session_that_was_not_collected_yet_is_listed_and_ended_as_any_other() {
    let (world, issuer) = world().await;
    let cookie = world.log_in().await;
    let origin = format!("Origin: {}", world.origin());
    for way in ["others", "one of one's own", "operator", "logout of the person", "loopback, operator"] {
        let is_loopback = way.starts_with("loopback");
        let (device, code) = if is_loopback {
            (None, Some(world.code().await))
        } else {
            let device = world.device().await;
            world.let_in(&device).await;
            (Some(device), None)
        };
        if way == "others" || way == "one of one's own" {
            let listed = world.get("/.doorward/sessions", &[&cookie, "Accept: application/json"]).await.json();
            let sessions = listed["sessions"].as_array().expect("a list");
            let waits = sessions.iter().find(|session| session.to_string().contains("has not collected it yet"));
            let waits = waits.unwrap_or_else(|| panic!("{listed}"));
            assert_eq!(waits["address"], "127.0.0.1", "{waits}");
            let which = match way {
                "others" => "others=yes".to_owned(),
                _ => format!("session={}", waits["session"].as_str().unwrap()),
            };
            let ended = world.post(&format!("/.doorward/sessions/end?{which}"), &[&cookie, &origin], "").await;
            assert!((300..400).contains(&ended.status), "{}{}", ended.head, ended.text());
        } else if way == "logout of the person" {
            let form = format!("logout_token={}", issuer.logout_token(&json!({})));
            let ended = world.submit("/oauth2/backchannel_logout", &[], &form).await;
            assert_eq!(ended.status, 200, "{}", ended.text());
        } else {
            let (status, said) = world.sessions("end").await;
            assert_eq!(status, Some(0), "{said}");
        }
        let answer = match (device, code) {
            (Some(device), _) => world.poll(&device.code, VERIFIER).await,
            (None, code) => world.redeem(&code.unwrap(), VERIFIER).await,
        };
        assert_eq!(answer.status, 400, "{way}: {}", answer.text());
        assert_eq!(answer.json()["error"], "access_denied", "{way}: {}", answer.text());
        assert!(answer.text().contains("ended before this program collected"), "{way}: {}", answer.text());
    }
    // Not collected, it expires long before a session that is in use.
    let device = world.device().await;
    world.let_in(&device).await;
    let (_, said) = world.sessions("list").await;
    assert!(said.contains("has not collected it yet"), "{said}");
    world.doorward.set_clock_ahead(601);
    let (_, said) = world.sessions("list").await;
    assert!(!said.contains("doorward login on"), "{said}");
}

/// The proxy's address was that of everybody, and everybody had to wait because of one client.
#[tokio::test]
async fn behind_a_proxy_that_hides_clients_one_of_them_locks_no_other_out() {
    let proxy = ("'127.0.0.1:{port}'}", "'127.0.0.1:{port}', trusted_proxies: [127.0.0.1/32]}");
    let (world, _issuer) = LoginFixture::scripted(&[proxy]).await;
    let named = ["X-Forwarded-For: 192.0.2.1"];
    let form = format!("code_challenge={CHALLENGE}&machine=build-7");
    for number in 0..31 {
        world.device().await;
        let of_one = if number < 30 { 200 } else { 429 };
        assert_eq!(world.submit("/.doorward/login/device", &named, &form).await.status, of_one, "{number}");
    }
    for number in 0..21 {
        assert_eq!(world.press(TYPE, "code=BCDF-GHJK").await.status, 400, "{number}");
    }
}

#[tokio::test]
async fn the_approval_of_a_terminal_can_be_withdrawn_until_it_is_used() {
    let (world, _issuer) = world().await;
    let device = world.device().await;
    world.let_in(&device).await;
    let form = format!("code={}", device.user_code);
    let asked = world.press(TYPE, &form).await;
    assert!(asked.status == 409 && asked.text().contains("has not come for its session yet"), "{}", asked.text());
    for _ in 0..2 {
        let declined = world.press(&format!("{TYPE}?decline"), &form).await;
        assert!(declined.status == 200 && declined.text().contains("You declined"), "{}", declined.text());
    }
    let told = world.poll(&device.code, VERIFIER).await;
    refused(&told, "access_denied");
    assert!(told.text().contains("the person declined"), "{}", told.text());
    let (_, said) = world.sessions("list").await;
    assert!(!said.contains("doorward login on"), "its session has ended: {said}");

    let late = world.device().await;
    world.let_in(&late).await;
    let handle = world.poll(&late.code, VERIFIER).await.json()["access_token"].as_str().unwrap().to_owned();
    let declined = world.press(&format!("{TYPE}?decline"), &format!("code={}", late.user_code)).await;
    assert_eq!(declined.status, 409, "{}", declined.text());
    let text = declined.text();
    assert!(text.contains("too late to decline") && text.contains("/.doorward/sessions"), "{text}");
    assert_eq!(world.status_of(&handle).await, 200);
}

#[tokio::test]
async fn a_person_who_may_not_sign_in_learns_it_and_returns_to_the_page_of_the_program() {
    let (world, _issuer) = world().await;
    let device = world.device().await;
    let person = ["revoke", "--issuer", "a", "--subject", "alice", "--why", "left"];
    let (status, said) = world.doorward.operator(&person).await;
    assert_eq!(status, Some(0), "{said}");
    let origin = format!("Origin: {}", world.origin());
    let of_device = world.press(&format!("{TYPE}?issuer=a"), &format!("code={}", device.user_code)).await;
    let of_loopback = world.post(&format!("{}&issuer=a", page(&[])), &[&origin], "").await;
    for (away, begins) in [(of_device, TYPE), (of_loopback, "/.doorward/login?port=7000")] {
        let back = world.call_back(&away).await;
        assert_eq!(back.status, 403, "{}", back.text());
        let text = back.text();
        assert!(text.contains("was revoked") && text.contains(&format!("href=\"{begins}")), "{text}");
        assert!(!text.contains("/oauth2/start"), "it would sign the browser in: {text}");
    }
    refused(&world.poll(&device.code, VERIFIER).await, "authorization_pending");
    let names_them = |line: &Value| {
        let unmapped = &line["unmapped"];
        (&line["status_code"], &line["http_response"]["code"]) == (&json!("token_revoked"), &json!(403))
            && unmapped["login"] == json!({"outcome": "identity_refused", "issuer": "a"})
            && (&unmapped["presented"]["issuer"], &unmapped["presented"]["subject"]) == (&json!("a"), &json!("alice"))
    };
    assert_eq!(world.doorward.records(2, names_them).await.len(), 2);
    // Without a valid program, the page leads nowhere.
    let nothing = world.get("/.doorward/login?port=1", &["Accept: text/html"]).await;
    assert!(nothing.status == 400 && !nothing.text().contains("/oauth2/start"), "{}", nothing.text());
}

#[tokio::test]
async fn no_page_can_make_a_browser_send_the_requests_of_programs() {
    let (world, _issuer) = world().await;
    let form = "Content-Type: application/x-www-form-urlencoded";
    let begin = format!("code_challenge={CHALLENGE}&machine=build-7");
    let device = world.device().await;
    let poll = collect(&device.code, VERIFIER);
    let handle = world.handle().await;
    let bearer = format!("Authorization: Bearer {handle}");
    let origin = format!("Origin: {}", world.origin());
    for (path, body, more) in [
        ("/.doorward/login/device", &*begin, "Accept: */*"),
        ("/.doorward/login/token", &*poll, "Accept: */*"),
        ("/.doorward/login/end", "", &*bearer),
    ] {
        for (status, lines) in [
            (403, [form, "Origin: http://evil.example"]),
            (403, [form, &origin]),
            (403, [form, "Sec-Fetch-Site: cross-site"]),
            (403, [form, "Sec-Fetch-Site: none"]),
            (400, ["Content-Type: text/plain", "X-Other: a"]),
            (400, ["X-Another: b", "X-Other: a"]),
        ] {
            let answer = world.post(path, &[&lines[..], &[more]].concat(), body).await;
            assert_eq!(answer.status, status, "{path} {lines:?}: {}", answer.text());
            assert_eq!(answer.json()["error"], "invalid_request", "{path} {lines:?}");
        }
    }
    assert_eq!(world.status_of(&handle).await, 200);
}
