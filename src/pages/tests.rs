use std::{env, fs, path::Path, time::Duration};

use super::*;
use crate::{
    authz::{Concern, RuleAction},
    clock::Timestamp,
    error::{Reason, Rejection},
    sessions::Listed,
};

const NOW: Timestamp = Timestamp::from_secs(1_700_000_000);
const HOSTILE: &str = "<script>alert('x')</script>\"&%s%n";

fn rejection(detail: &str) -> Rejection {
    Rejection::new(Reason::PolicyDenied, detail.to_owned())
        .with_rule("deploy-prod-humans".into())
        .fix("ask a release admin to start it, or join the group `release-admins`")
}

fn denied_page(rejection: &Rejection, why: &str, request: &str, who: &str) -> Page {
    denied(&DeniedView {
        rejection,
        why: Some(why),
        request,
        who: Some(who),
        request_id: "0192a7c4-7f1e-7c3a-9d56-0c7f2f6c1b2e",
        now: NOW,
        step_up: None,
        sign_in: None,
        no_sign_in: None,
    })
}

fn listed(browser: &str, address: &str) -> Listed {
    Listed {
        session: "mUJr2KFzXjGkEZG2zW5cVYq2J1m9bYB0bYqkJpY0T5g".to_owned(),
        origin: "https://dashboard.ci.example.com".to_owned(),
        browser: browser.to_owned(),
        address: Some(address.parse().unwrap()),
        created: NOW,
        last_seen: NOW,
        checked: NOW,
        ends_if_unused: NOW,
        ends: NOW,
    }
}

fn sign_out_of(who: &str) -> ConfirmSignOutView<'_> {
    ConfirmSignOutView { who: Some(who), others: &[], some_go_on: false }
}

fn concern<'a>(rule: &'a str, does: RuleAction, why: Option<&'a str>) -> Concern<'a> {
    Concern { rule, does, why, routes: vec!["dashboard", "api"], only: Vec::new() }
}

fn device_view<'a>(machine: &'a str, choices: &'a [Choice]) -> DeviceView<'a> {
    DeviceView {
        host: "k8s.ci.example.com",
        machine,
        address: "192.0.2.17".parse().unwrap(),
        code: "BCDF-GHJK",
        who: Some("alice@example.com"),
        choices,
        decline: "/.doorward/device?decline",
    }
}

/// Every page, with ordinary values.
fn pages() -> Vec<(&'static str, Page)> {
    let choices = [("Corporate account", "corp"), ("GitHub", "github"), ("Partners", "partners")].map(|(name, id)| {
        Choice { name: name.to_owned(), href: format!("/oauth2/start?issuer={id}&rd=%2F"), used_last: id == "corp" }
    });
    let host = "dashboard.ci.example.com";
    let times = SessionTimes {
        created: NOW,
        recheck: NOW + Duration::from_secs(300),
        idle_end: NOW + Duration::from_secs(8 * 3600),
        end: NOW + Duration::from_secs(24 * 3600),
    };
    let own = [
        listed("Firefox on Linux", "192.0.2.17"),
        listed("Safari on iPhone", "2001:db8:85a3::8a2e:370:7334"),
        listed("Chrome on Windows", "198.51.100.4"),
    ];
    let own: Vec<_> =
        own.iter().enumerate().map(|(index, listed)| OwnSession { listed, current: index == 0 }).collect();
    let sessions = |sessions, ended| {
        let request_id = "0192a7c4-7f1e-7c3a-9d56-0c7f2f6c1b2e";
        own_sessions(&OwnSessionsView { who: "alice@example.com", sessions, ended, request_id })
    };
    vec![
        ("sessions", sessions(&own, Some(2))),
        ("sessions-one", sessions(&own[..1], Some(0))),
        (
            "going-to-sign-in",
            going_to_sign_in(&GoingView {
                host,
                name: "Corp",
                href: &choices[0].href,
                others: None,
                keeps_fragment: true,
            }),
        ),
        (
            "going-to-the-last",
            going_to_sign_in(&GoingView {
                host,
                name: "Corp",
                href: &choices[0].href,
                others: Some("/oauth2/sign_in"),
                keeps_fragment: true,
            }),
        ),
        ("program-done", program_done(&ProgramDoneView { outcome: Ok("alice@example.com") })),
        ("program-not-done", program_done(&ProgramDoneView { outcome: Err("the code was used before") })),
        ("device", device(&device_view("laptop", &choices))),
        ("device-done", device_done(Some(&DeviceDoneView { machine: "build-7", who: "alice@example.com" }))),
        ("device-done-somewhere", device_done(None)),
        (
            "let-in-before",
            let_in_before(&LetInView {
                machine: "build-7",
                code: "BCDF-GHJK",
                decline: Some("/.doorward/device?decline"),
            }),
        ),
        ("too-late-to-decline", let_in_before(&LetInView { machine: "build-7", code: "BCDF-GHJK", decline: None })),
        ("type-code", type_code(&TypeCodeView { host, action: "/.doorward/device", problem: None })),
        (
            "type-code-again",
            type_code(&TypeCodeView {
                host,
                action: "/.doorward/device",
                problem: Some("No terminal waits for this code here."),
            }),
        ),
        (
            "unsent",
            unsent(&UnsentView { request: "POST /deploy", back: Some("/deploy/form?env=prod"), signed_in: true }),
        ),
        ("unsent-somewhere", unsent(&UnsentView { request: "POST /deploy", back: None, signed_in: false })),
        ("sign-in", sign_in(&SignInView { host, choices: &choices, keeps_fragment: true })),
        ("sign-in-one", sign_in(&SignInView { host, choices: &choices[..1], keeps_fragment: true })),
        (
            "denied",
            denied_page(
                &rejection("the policy does not let you start production deployments at this hour"),
                "Release admins deploy in office hours after MFA",
                "POST /apis/tekton.dev/v1/namespaces/prod/pipelineruns",
                "alice@example.com",
            ),
        ),
        (
            "denied-for-good",
            denied(&DeniedView {
                rejection: &Rejection::new(Reason::TokenRevoked, "your access was revoked")
                    .fix("ask whoever runs Doorward"),
                why: None,
                request: "GET /",
                who: None,
                request_id: "0192a7c4-7f1e-7c3a-9d56-0c7f2f6c1b2e",
                now: NOW,
                step_up: None,
                sign_in: Some("/oauth2/sign_in"),
                no_sign_in: None,
            }),
        ),
        (
            "who-am-i",
            who_am_i(&WhoAmIView {
                username: "corp#alice",
                email: Some("alice@example.com"),
                issuer: "Corporate account",
                subject: "00u1a2b3c4d5e6f7g8h9",
                kind: "human",
                groups: &["engineering", "release-admins", "on-call"],
                scopes: &["openid", "groups"],
                kubernetes_groups: &["tekton-developers", "tekton-release"],
                rules: &[
                    concern("production", RuleAction::Approve, Some("A second person looks at each release")),
                    concern("developers", RuleAction::Allow, None),
                ],
                session: Some(times),
                request_id: "0192a7c4-7f1e-7c3a-9d56-0c7f2f6c1b2e",
            }),
        ),
        ("confirm-sign-out", confirm_sign_out(&sign_out_of("alice@example.com"))),
        (
            "confirm-sign-out-others",
            confirm_sign_out(&ConfirmSignOutView {
                others: &[listed("Firefox on Linux", "192.0.2.17")],
                some_go_on: true,
                ..sign_out_of("alice@example.com")
            }),
        ),
        ("confirm-sign-out-none", confirm_sign_out(&ConfirmSignOutView { who: None, others: &[], some_go_on: false })),
        ("signed-out", signed_out()),
        (
            "login-error",
            login_error(&LoginErrorView {
                title: "The provider did not sign you in",
                text: "You or the provider declined. Sign in again, perhaps with another account.",
                detail: Some("access_denied: the user is not assigned to this application"),
                retry: Some(("/oauth2/start?rd=%2F", "Sign in again")),
                cancel: None,
                go_on: None,
                request_id: "0192a7c4-7f1e-7c3a-9d56-0c7f2f6c1b2e",
            }),
        ),
        (
            "login-error-signed-in",
            login_error(&LoginErrorView {
                title: "This sign-in was already completed",
                text: "If that was you, just go on. Otherwise sign in again.",
                detail: None,
                retry: Some(("/oauth2/start?rd=%2Fruns", "Sign in again")),
                cancel: None,
                go_on: Some("/runs"),
                request_id: "0192a7c4-7f1e-7c3a-9d56-0c7f2f6c1b2e",
            }),
        ),
    ]
}

/// Stores the pages as files in the folder `DOORWARD_PAGES`, if it is set.
#[test]
fn pages_have_landmarks_one_heading_and_no_script_but_the_one() {
    for (name, page) in pages() {
        let whole = page.render(&Brand::default()).into_string();
        let script = format!("<script>{SCRIPT}</script>");
        assert_eq!(
            whole.contains(&script),
            matches!(name, "going-to-sign-in" | "going-to-the-last" | "sign-in" | "sign-in-one"),
            "{name}"
        );
        let text = whole.replace(&script, "");
        for (mark, count) in [("<main>", 1), ("<header>", 1), ("<footer>", 1), ("<h1>", 1), ("<html lang=\"en\">", 1)] {
            assert_eq!(text.matches(mark).count(), count, "{name}: {mark}");
        }
        for absent in ["<script", " style=", " onclick", "javascript:", "http://", "https://"] {
            assert!(!text.contains(absent), "{name}: {absent}");
        }
        assert!(text.len() < 16 << 10, "{name}: {} bytes", text.len());
        if let Ok(folder) = env::var("DOORWARD_PAGES") {
            fs::write(Path::new(&folder).join(format!("{name}.html")), whole).unwrap();
        }
    }
}

#[test]
fn a_denial_shows_the_reason_the_rule_the_request_and_a_remedy() {
    let text = denied_page(&rejection("no"), "Because.", "GET /x", "alice").render(&Brand::default()).into_string();
    for part in [
        "You may not do this",
        "No.",
        "Because.",
        "<code>deploy-prod-humans</code>",
        "<code>policy_denied</code>",
        "join the group <code>release-admins</code>",
        "<code>GET /x</code>",
        "alice",
        "0192a7c4-7f1e-7c3a-9d56-0c7f2f6c1b2e",
        "datetime=\"2023-11-14T22:13:20.000Z\"",
        "2023-11-14 22:13 UTC",
    ] {
        assert!(text.contains(part), "{part}");
    }
}

/// Regression: people with a bad link were told of the form of paths, and nothing led on.
#[test]
fn a_page_about_a_bad_address_leads_to_the_start_page() {
    for (reason, leads_on) in [
        (Reason::PathNotCanonical, true),
        (Reason::UriTooLong, true),
        (Reason::RouteNotFound, true),
        (Reason::OriginRefused, true),
        // There is no start page at that host.
        (Reason::MisdirectedHost, false),
        (Reason::PolicyDenied, false),
    ] {
        let page = denied_page(&Rejection::new(reason, "no"), "Because.", "GET /x", "alice");
        let text = page.render(&Brand::default()).into_string();
        assert_eq!(text.contains("<a href=\"/\">To the start page</a>"), leads_on, "{reason}: {text}");
    }
}

/// Regression: screen readers read the same for each of several sessions of one kind.
#[test]
fn the_buttons_that_end_sessions_of_one_kind_have_names_of_their_own() {
    let earlier = listed("Chrome on Linux", "192.0.2.17");
    let later = Listed { created: NOW + Duration::from_secs(60), ..listed("Chrome on Linux", "192.0.2.17") };
    let own = [&earlier, &later].map(|listed| OwnSession { listed, current: false });
    let page = own_sessions(&OwnSessionsView { who: "alice", sessions: &own, ended: None, request_id: "r-1" });
    let text = page.render(&Brand::default()).into_string();
    for minute in ["22:13", "22:14"] {
        let name = format!(
            "End the session of Chrome on Linux at dashboard.ci.example.com, signed in 2023-11-14 {minute} UTC"
        );
        assert_eq!(text.matches(&name).count(), 1, "{name}: {text}");
    }
}

#[test]
fn a_request_that_waits_for_an_approval_is_shown_as_refused() {
    let shown = |does: RuleAction| {
        let view = WhoAmIView {
            username: "alice",
            email: None,
            issuer: "corp",
            subject: "1",
            kind: "human",
            groups: &[],
            scopes: &[],
            kubernetes_groups: &[],
            rules: &[concern("production", does, None)],
            session: None,
            request_id: "0192a7c4-7f1e-7c3a-9d56-0c7f2f6c1b2e",
        };
        who_am_i(&view).render(&Brand::default()).into_string()
    };
    let (waits, allows) = (shown(RuleAction::Approve), shown(RuleAction::Allow));
    assert!(
        waits.contains("<strong>Refused</strong> by <code>production</code>")
            && waits.contains("an approval, which nobody can give yet")
            && waits.contains("no rule allows anything"),
        "{waits}"
    );
    assert!(allows.contains("Allowed") && !allows.contains("no rule allows anything"), "{allows}");
}

/// `peers:D11`: untrusted text is escaped on every page that shows it.
#[test]
fn whatever_is_shown_is_escaped() {
    let choices =
        [Choice { name: HOSTILE.to_owned(), href: format!("/oauth2/start?issuer={HOSTILE}"), used_last: true }];
    let names = [HOSTILE];
    let hostile = Listed { session: HOSTILE.to_owned(), origin: HOSTILE.to_owned(), ..listed(HOSTILE, "::1") };
    let own = [OwnSession { listed: &hostile, current: false }];
    for page in [
        sign_in(&SignInView { host: HOSTILE, choices: &choices, keeps_fragment: true }),
        going_to_sign_in(&GoingView {
            host: HOSTILE,
            name: HOSTILE,
            href: HOSTILE,
            others: Some(HOSTILE),
            keeps_fragment: true,
        }),
        program(&ProgramView {
            host: HOSTILE,
            machine: HOSTILE,
            confirmation: HOSTILE,
            who: Some(HOSTILE),
            choices: &choices,
            cancel: HOSTILE,
        }),
        program_done(&ProgramDoneView { outcome: Ok(HOSTILE) }),
        program_done(&ProgramDoneView { outcome: Err(HOSTILE) }),
        device(&DeviceView { host: HOSTILE, who: Some(HOSTILE), decline: HOSTILE, ..device_view(HOSTILE, &choices) }),
        device_done(Some(&DeviceDoneView { machine: HOSTILE, who: HOSTILE })),
        let_in_before(&LetInView { machine: HOSTILE, code: HOSTILE, decline: Some(HOSTILE) }),
        type_code(&TypeCodeView { host: HOSTILE, action: HOSTILE, problem: Some(HOSTILE) }),
        unsent(&UnsentView { request: HOSTILE, back: Some(HOSTILE), signed_in: true }),
        denied_page(&rejection(HOSTILE), HOSTILE, HOSTILE, HOSTILE),
        who_am_i(&WhoAmIView {
            username: HOSTILE,
            email: Some(HOSTILE),
            issuer: HOSTILE,
            subject: HOSTILE,
            kind: HOSTILE,
            groups: &names,
            scopes: &names,
            kubernetes_groups: &names,
            rules: &[Concern {
                rule: HOSTILE,
                does: RuleAction::Deny,
                why: Some(HOSTILE),
                routes: vec![HOSTILE],
                only: vec![HOSTILE.to_owned()],
            }],
            session: None,
            request_id: HOSTILE,
        }),
        own_sessions(&OwnSessionsView { who: HOSTILE, sessions: &own, ended: None, request_id: HOSTILE }),
        confirm_sign_out(&sign_out_of(HOSTILE)),
        login_error(&LoginErrorView {
            title: HOSTILE,
            text: HOSTILE,
            detail: Some(HOSTILE),
            retry: Some((HOSTILE, HOSTILE)),
            cancel: Some(HOSTILE),
            go_on: Some(HOSTILE),
            request_id: HOSTILE,
        }),
    ] {
        let text = page.render(&Brand::default()).into_string().replace(&format!("<script>{SCRIPT}</script>"), "");
        assert!(!text.contains("<script"), "{text}");
        assert!(!text.contains("')</script>\""), "{text}");
        assert!(text.contains("&lt;script&gt;alert"), "{text}");
        assert!(text.contains("%s%n"), "{text}");
    }
}

#[test]
fn a_name_with_direction_marks_does_not_reverse_the_text_beside_it() {
    let who = "nimda\u{202e}\u{2067}";
    let page = confirm_sign_out(&sign_out_of(who)).render(&Brand::default()).into_string();
    assert!(page.contains("<strong><bdi>nimda\\u202e\\u2067</bdi></strong>"), "{page}");
    let done = program_done(&ProgramDoneView { outcome: Err("\u{202e}no") }).render(&Brand::default()).into_string();
    assert!(!done.contains('\u{202e}'), "{done}");
}

#[test]
fn a_sentence_begins_with_a_capital_unless_it_begins_with_an_address() {
    for (text, expected) in [
        ("the code is old", "The code is old."),
        ("https://a.example: no answer", "https://a.example: no answer."),
        ("it is https://a.example", "It is https://a.example."),
    ] {
        assert_eq!(sentence(text), expected);
    }
}

#[test]
fn responses_carry_the_policy_that_fits_their_style() {
    let response = html(StatusCode::FORBIDDEN, &signed_out(), &Brand::default());
    assert_eq!(response.status(), StatusCode::FORBIDDEN);
    let policy = response.headers()[header::CONTENT_SECURITY_POLICY].to_str().unwrap();
    let hash = BASE64_STANDARD.encode(digest(&SHA256, STYLE.as_bytes()));
    assert!(policy.contains(&format!("style-src 'sha256-{hash}'")), "{policy}");
    assert!(policy.contains("default-src 'none'") && policy.contains("frame-ancestors 'none'"), "{policy}");
    assert!(!policy.contains("unsafe") && !policy.contains("script-src"), "{policy}");
    let response = html(StatusCode::OK, &signed_out().with_script(), &Brand::default());
    let policy = response.headers()[header::CONTENT_SECURITY_POLICY].to_str().unwrap();
    let script = BASE64_STANDARD.encode(digest(&SHA256, SCRIPT.as_bytes()));
    assert!(policy.contains(&format!("; script-src 'sha256-{script}';")) && !policy.contains("unsafe"), "{policy}");
    let body = std::str::from_utf8(response.body()).unwrap();
    assert!(body.contains(&format!("<style>{STYLE}</style>")));
    assert_eq!(response.headers()[header::CACHE_CONTROL], "no-store");
}
