//! Code injection and session fixation at the certified provider: a foreign code, or a cookie planted before a login,
//! gives no access (RFC 9700 sections 2.1.1 and 4.5).

use serde_json::json;

use crate::{
    harness::{Answer, Answered, OidcProvider, asked, session},
    login_fixture::LoginFixture,
};

struct World {
    at: LoginFixture,
    provider: OidcProvider,
}

async fn world() -> World {
    let (at, provider) = LoginFixture::certified(&json!({}), &[("users: [alice]", "users: [alice, mallory]")]).await;
    World { at, provider }
}

impl World {
    /// A login that the provider has answered, and that is not completed yet.
    async fn answered(&self, person: &str) -> Answered {
        self.answered_with(person, &[]).await
    }

    async fn answered_with(&self, person: &str, lines: &[&str]) -> Answered {
        Answered::begin(&self.at.doorward, &self.at.host, lines, &self.provider, person).await
    }

    async fn get(&self, path: &str, cookies: &str) -> Answer {
        self.at.get(path, &[cookies]).await
    }

    /// A new session, as a `Cookie` line.
    async fn log_in(&self, person: &str) -> String {
        let answered = self.answered(person).await;
        let back = self.get(&answered.callback, &answered.cookies).await;
        session(&back).unwrap_or_else(|| panic!("{}{}", back.head, back.text()))
    }

    /// The user of a session; `None` without one.
    async fn who(&self, cookie: &str) -> Option<String> {
        let answer = self.get("/oauth2/userinfo", cookie).await;
        (answer.status == 200).then(|| answer.json()["user"].as_str().unwrap().to_owned())
    }
}

/// The callback of one login with the code of another.
fn with_code_of(callback: &str, other: &str) -> String {
    let (code, injected) = (asked(callback, "code"), asked(other, "code"));
    assert_ne!(code, injected);
    callback.replace(&format!("code={code}"), &format!("code={injected}"))
}

fn refused(answer: &Answer, status: u16, title: &str) {
    assert_eq!(answer.status, status, "{}", answer.text());
    assert!(answer.text().contains(title), "{title}: {}", answer.text());
    assert_eq!(session(answer), None, "{}", answer.head);
}

#[tokio::test]
async fn a_code_of_another_persons_login_gives_no_session() {
    let mut world = world().await;
    // The attacker's code in the victim's login would sign the victim in as the attacker; a stolen code of the victim
    // in the attacker's login would sign the attacker in as the victim. The provider detects both by PKCE.
    for (whose_login, whose_code) in [("alice", "mallory"), ("mallory", "alice")] {
        let (login, stolen) = (world.answered(whose_login).await, world.answered(whose_code).await);
        let back = world.get(&with_code_of(&login.callback, &stolen.callback), &login.cookies).await;
        refused(&back, 502, "The answer of the provider is not valid");
        // The login is over, with either code.
        refused(&world.get(&login.callback, &login.cookies).await, 400, "This sign-in was already completed");
        // For Doorward the code was not used, whatever the provider decides.
        let late = world.get(&stolen.callback, &stolen.cookies).await;
        match session(&late) {
            Some(cookie) => assert_eq!(world.who(&cookie).await.as_deref(), Some(whose_code)),
            None => refused(&late, 502, "The answer of the provider is not valid"),
        }
    }
    let cause = world.at.doorward.wait_for_log("a code gave no tokens").await.to_string();
    assert!(cause.contains("invalid_grant"), "the provider refused it: {cause}");

    // The whole callback in a browser that did not begin the login, which is a login CSRF.
    let (attackers, victims) = (world.answered("mallory").await, world.answered("alice").await);
    refused(&world.get(&attackers.callback, &victims.cookies).await, 403, "This sign-in began somewhere else");
    // The counterpart: each of them works where it belongs.
    for (answered, person) in [(victims, "alice"), (attackers, "mallory")] {
        let back = world.get(&answered.callback, &answered.cookies).await;
        assert_eq!(world.who(&session(&back).expect("a session")).await.as_deref(), Some(person));
    }
}

#[tokio::test]
async fn a_replayed_answer_gives_no_second_session_and_ends_none() {
    let world = world().await;
    let answered = world.answered("alice").await;
    let first = world.get(&answered.callback, &answered.cookies).await;
    let cookie = session(&first).expect("a session");
    // By the victim, as from the browser's history, and by somebody who has copied all that it sent.
    for cookies in [format!("{}; {}", answered.cookies, cookie.trim_start_matches("Cookie: ")), answered.cookies] {
        refused(&world.get(&answered.callback, &cookies).await, 400, "This sign-in was already completed");
    }
    assert_eq!(
        world.who(&cookie).await.as_deref(),
        Some("alice"),
        "it did not reach the provider, which would end the grant"
    );
    // Nor does a code work twice in a login of its own.
    let another = world.answered("alice").await;
    let back = world.get(&with_code_of(&another.callback, &answered.callback), &another.cookies).await;
    refused(&back, 502, "The answer of the provider is not valid");
}

#[tokio::test]
async fn a_cookie_from_before_the_login_is_worthless_after_it() {
    let world = world().await;
    let planted = [
        ("one that was made up", format!("Cookie: __Host-doorward={}", "A".repeat(43)), false),
        ("a session of the attacker", world.log_in("mallory").await, false),
        ("the one with which the same person began the login", world.log_in("alice").await, true),
    ];
    for (row, before, was_there) in planted {
        let lines: &[&str] = if was_there { &[&before] } else { &[] };
        let answered = world.answered_with("alice", lines).await;
        let browser = format!("{}; {}", before, answered.cookies.trim_start_matches("Cookie: "));
        let back = world.get(&answered.callback, &browser).await;
        let after = session(&back).unwrap_or_else(|| panic!("{row}: {}{}", back.head, back.text()));
        assert_ne!(after, before, "{row}");
        assert_eq!(world.who(&after).await.as_deref(), Some("alice"), "{row}");
        assert_eq!(world.who(&before).await, None, "{row}");
        assert_eq!(world.get("/page", &before).await.status, 401, "{row}");
        // The login cookies, which an attacker may have planted, are never those of a session.
        assert_eq!(world.who(&answered.cookies).await, None, "{row}");
    }
}
