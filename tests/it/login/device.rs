//! `doorward login --device`: a terminal whose machine has no browser, and what others try with it.

use super::*;
use crate::harness::call_back;

const TYPE: &str = "/.doorward/device";

/// What a program without a browser has been given.
struct Device {
    code: String,
    user_code: String,
}

impl World {
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

    async fn submit(&self, path: &str, more: &[&str], form: &str) -> Answer {
        let kind = "Content-Type: application/x-www-form-urlencoded";
        self.post(path, &[&[kind], more].concat(), form).await
    }

    /// As a browser sends a form of our own page.
    async fn press(&self, path: &str, form: &str) -> Answer {
        self.submit(path, &[&format!("Origin: {}", self.origin()), "Accept: text/html"], form).await
    }

    /// As the program asks for its session, when it may ask again.
    async fn poll(&self, code: &str, verifier: &str) -> Answer {
        let form = format!(
            "grant_type=urn:ietf:params:oauth:grant-type:device_code&device_code={code}&code_verifier={verifier}"
        );
        within(async {
            loop {
                let answer = self.submit("/.doorward/login/token", &[], &form).await;
                if answer.status == 200 || answer.json()["error"] != "slow_down" {
                    return answer;
                }
                tokio::task::yield_now().await;
            }
        })
        .await
    }

    /// Types the code, presses the button, and comes back from the provider.
    async fn let_in(&self, device: &Device) -> Answer {
        let away = self.press(&format!("{TYPE}?issuer=a"), &format!("code={}", device.user_code)).await;
        assert_eq!(away.status, 303, "{}{}", away.head, away.text());
        let location = away.header("location").unwrap().to_owned();
        come_back(&self.doorward, &[&format!("Host: {}", self.host), "Accept: text/html"], &away, &location).await
    }
}

fn refused(answer: &Answer, error: &str) {
    assert_eq!(answer.status, 400, "{error}: {}", answer.text());
    assert_eq!(answer.json()["error"], error, "{}", answer.text());
}

#[tokio::test]
async fn a_machine_without_a_browser_signs_in_by_a_code_that_is_typed_on_another() {
    let port = free_port();
    let provider = OidcProvider::start(&format!("http://localhost:{port}")).await;
    let world = world_of(&provider.issuer, "algorithms: [RS256]", "doorward-secret-of-the-tests", port).await;
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
    assert!(saw["told"].as_str().unwrap().contains("Go back to your terminal"), "{saw}");
    assert_eq!(saw["faults"], json!([]));
    assert!(!saw["cookies"].to_string().contains("\"__Host-doorward\""), "the browser is not signed in: {saw}");
    assert!(within(child.wait()).await.unwrap().success());
    let (status, who) = shell.run(&["whoami"]).await;
    assert_eq!(status, Some(0), "{who}");
    assert!(who.contains("alice"), "{who}");
}

#[tokio::test]
async fn a_person_who_declines_ends_the_wait() {
    let (world, _issuer) = world().await;
    let device = world.device().await;
    refused(&world.poll(&device.code, VERIFIER).await, "authorization_pending");
    let declined = world.press(&format!("{TYPE}?decline"), &format!("code={}", device.user_code)).await;
    assert!(declined.status == 200 && declined.text().contains("You declined"), "{}", declined.text());
    refused(&world.poll(&device.code, VERIFIER).await, "access_denied");
    let again = world.press(&format!("{TYPE}?issuer=a"), &format!("code={}", device.user_code)).await;
    assert_eq!(again.status, 400, "nobody waits for it any more: {}", again.text());
}

/// An attacker begins a login and has a victim finish it.
#[tokio::test]
async fn attacks_z43_a_code_must_be_typed_and_what_it_does_confirmed() {
    let (world, _issuer) = world().await;
    let device = world.device().await;
    let form = format!("code={}", device.user_code);
    // A link types nothing.
    let parameters = format!("code={0}&user_code={0}&issuer=a", device.user_code);
    let opened = world.get(&format!("{TYPE}?{parameters}"), &["Accept: text/html"]).await;
    assert_eq!(opened.status, 200);
    assert!(!opened.text().contains(&device.user_code), "{}", opened.text());
    // Nor does a page of somebody else.
    for (row, more) in [
        ("no origin", &[][..]),
        ("another origin", &["Origin: http://evil.example"]),
        ("another site", &["Sec-Fetch-Site: cross-site"]),
        ("a sandboxed page", &["Origin: null"]),
    ] {
        for path in [TYPE.to_owned(), format!("{TYPE}?issuer=a"), format!("{TYPE}?decline")] {
            let answer = world.submit(&path, more, &form).await;
            assert_eq!(answer.status, 403, "{row}: {}", answer.text());
        }
    }
    // Typing it does nothing yet: the page says who asks, and that a code from somebody else is an attack.
    let asked = world.press(TYPE, &form).await;
    assert_eq!(asked.status, 200);
    for said in ["build-7", "127.0.0.1", "If somebody gave it to you, decline"] {
        assert!(asked.text().contains(said), "{said}: {}", asked.text());
    }
    refused(&world.poll(&device.code, VERIFIER).await, "authorization_pending");
    // What the page shows cannot be framed, so no click can be stolen.
    assert!(asked.header("content-security-policy").unwrap().contains("frame-ancestors 'none'"), "{}", asked.head);
}

#[tokio::test]
async fn a_device_code_is_good_for_its_program_its_host_once_and_ten_minutes() {
    let (world, _issuer) = world().await;
    let device = world.device().await;
    let back = world.let_in(&device).await;
    assert_eq!(back.header("location"), Some("/.doorward/device/done"), "{}{}", back.head, back.text());
    let (shown, secret) = device.code.split_once('.').unwrap();
    assert_eq!(shown, device.user_code);
    // Who saw the code on the screen, and who has it without what it is bound to.
    refused(&world.poll(&format!("{shown}.{}", secret.to_uppercase()), VERIFIER).await, "expired_token");
    refused(&world.poll(&device.code, &VERIFIER.replace('d', "e")).await, "invalid_grant");
    let elsewhere = format!("Host: other.{}", world.host);
    let form = format!("code={}", device.user_code);
    let origin = format!("Origin: http://other.{}", world.host);
    let lines = [&format!("POST {TYPE} HTTP/1.1"), &elsewhere, &origin];
    let other = world.device().await;
    let typed = world.doorward.send(&lines.map(String::as_str), format!("code={}", other.user_code).as_bytes()).await;
    assert_eq!(typed.status, 400, "{}", typed.text());
    // It lets one program in, and nobody a second time by the same code.
    assert_eq!(world.press(TYPE, &form).await.status, 400);
    let given = world.poll(&device.code, VERIFIER).await;
    assert_eq!(given.status, 200, "{}", given.text());
    let handle = given.json()["access_token"].as_str().unwrap().to_owned();
    assert_eq!(world.status(&handle).await, 200);
    // Brought twice: one of the two stole it.
    refused(&world.poll(&device.code, VERIFIER).await, "invalid_grant");
    assert_eq!(world.status(&handle).await, 401);

    let late = world.device().await;
    let away = world.press(&format!("{TYPE}?issuer=a"), &format!("code={}", late.user_code)).await;
    assert_eq!(away.status, 303);
    world.doorward.set_clock_ahead(601);
    refused(&world.poll(&late.code, VERIFIER).await, "expired_token");
    assert_eq!(world.press(TYPE, &format!("code={}", late.user_code)).await.status, 400);
}

#[tokio::test]
async fn a_login_that_comes_back_after_the_terminal_has_gone_says_so() {
    let (world, _issuer) = world().await;
    let device = world.device().await;
    let away = world.press(&format!("{TYPE}?issuer=a"), &format!("code={}", device.user_code)).await;
    let location = away.header("location").unwrap().to_owned();
    assert_eq!(world.press(&format!("{TYPE}?decline"), &format!("code={}", device.user_code)).await.status, 200);
    let lines = [&*format!("Host: {}", world.host), "Accept: text/html"];
    let back = call_back(&world.doorward, &lines, &away, &location).await;
    assert_eq!(back.status, 400, "{}", back.text());
    assert!(back.text().contains("Your terminal does not wait any more"), "{}", back.text());
    refused(&world.poll(&device.code, VERIFIER).await, "access_denied");
}

#[tokio::test]
async fn what_comes_of_nobody_yet_is_bounded() {
    let (world, _issuer) = world().await;
    for form in
        ["", "machine=a", &format!("code_challenge={CHALLENGE}"), "code_challenge=short&machine=a", "machine=%ff"]
    {
        refused(&world.submit("/.doorward/login/device", &[], form).await, "invalid_request");
    }
    let device = world.device().await;
    // Asked again and again, it is to slow down.
    let form = format!(
        "grant_type=urn:ietf:params:oauth:grant-type:device_code&device_code={}&code_verifier={VERIFIER}",
        device.code
    );
    within(async { while world.submit("/.doorward/login/token", &[], &form).await.json()["error"] != "slow_down" {} })
        .await;
    // Thirty wait from here, the ones above included.
    for _ in 1..30 {
        assert_eq!(world.ask_for_device().await.status, 200);
    }
    let more = world.ask_for_device().await;
    assert_eq!(more.status, 503, "{}", more.text());
    assert!(more.header("retry-after").is_some() && more.json()["error"] == "temporarily_unavailable");
    // Twenty guesses.
    for _ in 0..20 {
        assert_eq!(world.press(TYPE, "code=BCDF-GHJK").await.status, 400);
    }
    let stopped = world.press(TYPE, &format!("code={}", device.user_code)).await;
    assert_eq!(stopped.status, 429, "not even a good one: {}", stopped.text());
    world.doorward.set_clock_ahead(601);
    assert_eq!(world.press(TYPE, "code=BCDF-GHJK").await.status, 400);
    assert_eq!(world.ask_for_device().await.status, 200);
}
