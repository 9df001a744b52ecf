//! The pages of browser logins, sessions and refusals, each rendered from a view.

use maud::{Markup, html};

use super::{Page, Tone, sign};
use crate::{
    authz::{Concern, RuleAction},
    clock::Timestamp,
    endpoints::WHO_AM_I,
    error::{Reason, Rejection},
    oidc::{SIGN_IN, SIGN_OUT},
    sessions::Listed,
    terminal,
};

/// The choice of a provider.
#[derive(Clone, Copy, Debug)]
pub struct SignInView<'a> {
    /// The host that the person wants to reach.
    pub host: &'a str,
    pub choices: &'a [Choice],
    /// Whether the fragment of the page's address applies to the return address of the login.
    pub keeps_fragment: bool,
}

/// A provider to sign in with.
#[derive(Clone, Debug)]
pub struct Choice {
    pub name: String,
    pub href: String,
    /// Whether this browser used it last.
    pub used_last: bool,
}

pub fn sign_in(view: &SignInView<'_>) -> Page {
    let main = html! {
        (sign(Tone::Plain))
        h1 { "Sign in" }
        p class="lead" { "to continue to " strong class="host" { (view.host) } }
        @if view.choices.is_empty() {
            p { "No provider is set up for signing in with a browser. Ask whoever runs Doorward." }
        } @else {
            nav aria-label="Providers" {
                ul class="choices" {
                    @for choice in view.choices {
                        li { a class="button" data-return[view.keeps_fragment] href=(choice.href) {
                            "Continue with " strong { (choice.name) }
                            @if choice.used_last { " " span class="last" { "used last" } }
                        } }
                    }
                }
            }
        }
    };
    Page::new("Sign in", Tone::Plain, main).with_script()
}

/// The page on the way to the provider.
#[derive(Clone, Copy, Debug)]
pub struct GoingView<'a> {
    pub host: &'a str,
    /// The name of the provider; `href` is the address of the login.
    pub name: &'a str,
    pub href: &'a str,
    /// A link to the choice, if there are other providers.
    pub others: Option<&'a str>,
    /// Whether the fragment of the page's address applies to the return address of the login.
    pub keeps_fragment: bool,
}

/// Shown for a moment, or longer if neither script nor refresh is allowed.
pub fn going_to_sign_in(view: &GoingView<'_>) -> Page {
    let GoingView { name, href, keeps_fragment, .. } = *view;
    let head = html! { noscript { meta http-equiv="refresh" content=(format!("0;url={href}")); } };
    let main = html! {
        (sign(Tone::Plain))
        h1 { "Taking you to sign in" }
        p class="lead" { "to continue to " strong class="host" { (view.host) } }
        p class="actions" {
            a class="button" data-return[keeps_fragment] data-next href=(href) { "Continue with " strong { (name) } }
            @if let Some(href) = view.others { a data-return[keeps_fragment] href=(href) { "Sign in another way" } }
        }
    };
    Page::new("Taking you to sign in", Tone::Plain, main).with_head(head).with_script()
}

/// A form whose session had ended.
#[derive(Clone, Copy, Debug)]
pub struct UnsentView<'a> {
    /// Method and path.
    pub request: &'a str,
    /// The page of the form, if it is known.
    pub back: Option<&'a str>,
    /// Whether the browser has a session now.
    pub signed_in: bool,
}

pub fn unsent(view: &UnsentView<'_>) -> Page {
    let main = html! {
        (sign(Tone::Refused))
        h1 { "Your form was not sent" }
        p class="lead" {
            "Your session had ended when you sent it."
            @if view.signed_in { " You are signed in again now." }
        }
        p {
            "Nothing of it was passed on and nothing was kept, so nothing has changed. "
            @if view.signed_in { "Please fill it in and send it again." }
            @else { "Sign in, then fill it in and send it again." }
        }
        dl { div { dt { "Not sent" } dd { code { (view.request) } } } }
        p class="actions" {
            @match view.back {
                Some(back) => a class="button" href=(back) { "Back to the form" },
                None => a class="button" href="/" { "To the start page" },
            }
        }
    };
    Page::new("Your form was not sent", Tone::Refused, main)
}

/// A refusal, as the refused person should read it.
#[derive(Clone, Copy, Debug)]
pub struct DeniedView<'a> {
    pub rejection: &'a Rejection,
    /// The `why` of the rule that decided.
    pub why: Option<&'a str>,
    /// The request, such as `POST /deploy`; empty if it was not read that far.
    pub request: &'a str,
    /// The user name of the caller, if known.
    pub who: Option<&'a str>,
    pub request_id: &'a str,
    pub now: Timestamp,
    /// A link to a step-up login, if that is all that is missing.
    pub step_up: Option<&'a str>,
    /// A link to sign in, if that helps.
    pub sign_in: Option<&'a str>,
    /// The title instead of "Please sign in" where nobody can sign in.
    pub no_sign_in: Option<&'a str>,
}

/// The page for any refusal: of the credential, by the policy, or because of a failure here or of an upstream.
pub fn denied(view: &DeniedView<'_>) -> Page {
    let status = view.rejection.status();
    let title = match status.as_u16() {
        401 if view.step_up.is_some() => "Please sign in again",
        401 if view.rejection.reason() == Reason::TokenRevoked => "Your access has ended",
        401 => view.no_sign_in.unwrap_or("Please sign in"),
        403 => "You may not do this",
        404 => "There is nothing here",
        503 => "Not possible right now",
        400..500 => "This request cannot be taken",
        _ => "Something went wrong",
    };
    let leads_nowhere =
        matches!(view.rejection.reason(), Reason::OriginRefused | Reason::PathNotCanonical | Reason::UriTooLong);
    let main = html! {
        (sign(Tone::Refused))
        h1 { (title) }
        p class="lead" { (prose(&sentence(view.rejection.detail()))) }
        @if let Some(why) = view.why {
            p { strong { "Why: " } (prose(why)) }
        }
        @if let Some(fix) = view.rejection.fix_text() {
            p class="note" { strong { "What you can do: " } (prose(&sentence(fix))) }
        }
        dl {
            @if !view.request.is_empty() {
                div { dt { "Request" } dd { code { (view.request) } } }
            }
            @if let Some(who) = view.who {
                div { dt { "You are" } dd { (name(who)) } }
            }
            @if let Some(rule) = view.rejection.rule() {
                div { dt { "Rule" } dd { code { (rule) } } }
            }
            div { dt { "Reason" } dd { code { (view.rejection.reason().as_str()) } " (" (status.as_u16()) ")" } }
            div { dt { "Time" } dd { (time(view.now)) } }
        }
        @if status.as_u16() == 404 || leads_nowhere {
            p class="actions" { a href="/" { "To the start page" } }
        }
        // Signing in again as the same person does not help if their access was revoked.
        @let is_other = view.who.is_some() || view.rejection.reason() == Reason::TokenRevoked;
        @let label = if is_other { "Sign in as somebody else" } else { "Sign in" };
        @match (view.step_up, view.sign_in) {
            (Some(step_up), other) => p class="actions" {
                a class="button" href=(step_up) { "Sign in again" }
                @if let Some(href) = other { a href=(href) { (label) } }
            },
            (None, Some(href)) => p class="actions" { a class="button" href=(href) { (label) } },
            (None, None) => {}
        }
    };
    Page::new(title, Tone::Refused, main).of_request(view.request_id)
}

/// The identity of a person for Doorward and for Kubernetes.
#[derive(Clone, Copy, Debug)]
pub struct WhoAmIView<'a> {
    pub username: &'a str,
    pub email: Option<&'a str>,
    /// The name of the issuer; `subject` is the subject there.
    pub issuer: &'a str,
    pub subject: &'a str,
    pub kind: &'a str,
    /// Groups from the issuer.
    pub groups: &'a [&'a str],
    pub scopes: &'a [&'a str],
    /// Groups from grants.
    pub kubernetes_groups: &'a [&'a str],
    /// The rules that apply to them.
    pub rules: &'a [Concern<'a>],
    pub session: Option<SessionTimes>,
    pub request_id: &'a str,
}

/// When a session began and ends.
#[derive(Clone, Copy, Debug)]
pub struct SessionTimes {
    pub created: Timestamp,
    /// The latest time of the next recheck at the provider.
    pub recheck: Timestamp,
    pub idle_end: Timestamp,
    pub end: Timestamp,
}

pub fn who_am_i(view: &WhoAmIView<'_>) -> Page {
    let main = html! {
        (sign(Tone::Good))
        h1 { (name(view.email.unwrap_or(view.username))) }
        p class="lead" { "You are signed in." }
        dl {
            div { dt { "User in Kubernetes" } dd { code { (name(view.username)) } } }
            div { dt { "Groups in Kubernetes" } dd { (list(view.kubernetes_groups)) } }
            div { dt { "Provider" } dd { (view.issuer) } }
            div { dt { "Subject" } dd { code { (name(view.subject)) } } }
            div { dt { "Kind" } dd { (view.kind) } }
            div { dt { "Groups there" } dd { (list(view.groups)) } }
            div { dt { "Scopes" } dd { (list(view.scopes)) } }
            div { dt { "What you may do" } dd { (rules(view.rules)) } }
            @if let Some(session) = view.session {
                div { dt { "Signed in at" } dd { (time(session.created)) } }
                div { dt { "Checked again by" } dd { (time(session.recheck)) } }
                div { dt { "Ends if unused" } dd { (time(session.idle_end)) } }
                div { dt { "Ends" } dd { (time(session.end)) } }
            }
        }
        @if view.session.is_some() {
            (sign_out_form())
            p class="actions" { a href="/.doorward/sessions" { "Your sessions" } }
        }
    };
    Page::new("Who am I", Tone::Good, main).of_request(view.request_id)
}

/// The sessions of a person.
#[derive(Clone, Copy, Debug)]
pub struct OwnSessionsView<'a> {
    pub who: &'a str,
    /// The sessions in display order.
    pub sessions: &'a [OwnSession<'a>],
    /// The number of sessions that were just ended, after an attempt to end some.
    pub ended: Option<usize>,
    pub request_id: &'a str,
}

/// One of a person's sessions.
#[derive(Clone, Copy, Debug)]
pub struct OwnSession<'a> {
    pub listed: &'a Listed,
    /// Whether it is the session of this request.
    pub current: bool,
}

pub fn own_sessions(view: &OwnSessionsView<'_>) -> Page {
    let main = html! {
        (sign(Tone::Plain))
        h1 { "Your sessions" }
        p class="lead" { "Where " strong { (name(view.who)) } " is signed in." }
        @match view.ended {
            Some(0) => p class="note" role="status" { "That session had ended already." },
            Some(1) => p class="note" role="status" { "One session was ended, with everything that was open in it." },
            Some(count) => p class="note" role="status" { (count) " sessions were ended, with everything that was open in them." },
            None => {}
        }
        ul class="sessions" {
            @for own in view.sessions { li { (own_session(own)) } }
        }
        @if view.sessions.iter().any(|own| !own.current) {
            form class="actions" method="post" action="/.doorward/sessions/end?others" {
                button class="button" type="submit" { "End all others" }
            }
        }
        p class="actions" { a href=(WHO_AM_I) { "Who am I" } a href=(SIGN_OUT) { "Sign out" } }
    };
    Page::new("Your sessions", Tone::Plain, main).of_request(view.request_id)
}

fn own_session(own: &OwnSession<'_>) -> Markup {
    let Listed { session, browser, created, last_seen, .. } = own.listed;
    // Screen readers read this alone: several sessions of one kind differ only in their times.
    let label = format!("End the session of {browser} at {}, signed in {}", host(own.listed), in_words(*created));
    html! {
        h2 { (browser) @if own.current { " " span class="badge" { "this one" } } }
        p {
            (place(own.listed))
            br;
            "Signed in " (time(*created))
            br;
            "Last seen " (time(*last_seen))
        }
        @if !own.current {
            form method="post" action=(format!("/.doorward/sessions/end?session={session}")) {
                button class="small button" type="submit" aria-label=(label) { "End" }
            }
        }
    }
}

fn host(listed: &Listed) -> &str {
    listed.origin.split_once("://").map_or(listed.origin.as_str(), |(_, host)| host)
}

/// Where a session is used.
fn place(listed: &Listed) -> Markup {
    html! { (host(listed)) @if let Some(address) = listed.address { " from " (address) } }
}

/// The confirmation of a sign-out.
#[derive(Clone, Copy, Debug)]
pub struct ConfirmSignOutView<'a> {
    /// The person of the session; `None` if there is none.
    pub who: Option<&'a str>,
    /// The other sessions that end with it.
    pub others: &'a [Listed],
    /// Whether the person has sessions that go on.
    pub some_go_on: bool,
}

pub fn confirm_sign_out(view: &ConfirmSignOutView<'_>) -> Page {
    let main = html! {
        (sign(Tone::Plain))
        @match view.who {
            Some(who) => {
                h1 { "Sign out?" }
                p class="lead" { "You are signed in as " strong { (name(who)) } "." }
                @if view.others.is_empty() {
                    p { "This ends your session here, with everything that is open in it." }
                } @else {
                    p { "This ends your session here and these others, with everything that is open in them." }
                    ul class="sessions" {
                        @for other in view.others { li {
                            h2 { (other.browser) }
                            p { (place(other)) br; "Last seen " (time(other.last_seen)) }
                        } }
                    }
                }
                @if view.some_go_on {
                    p { "Your sessions in other browsers and in terminals go on, unless the provider ends them too." }
                }
                (sign_out_form())
                p class="actions" {
                    a href="/" { "Stay signed in" }
                    @if view.some_go_on { a href="/.doorward/sessions" { "Your sessions" } }
                }
            }
            None => {
                h1 { "You are not signed in" }
                p class="actions" { a class="button" href=(SIGN_IN) { "Sign in" } }
            }
        }
    };
    Page::new("Sign out", Tone::Plain, main)
}

pub fn signed_out() -> Page {
    let main = html! {
        (sign(Tone::Good))
        h1 { "You are signed out" }
        p class="lead" { "Your sessions in this browser have ended, on every host of Doorward." }
        p { "Other browsers, terminals and accounts may still be signed in." }
        p { "On a computer that others use, close the browser as well." }
        p class="actions" { a class="button" href=(SIGN_IN) { "Sign in again" } }
    };
    Page::new("Signed out", Tone::Good, main)
}

/// A failed login.
#[derive(Clone, Copy, Debug)]
pub struct LoginErrorView<'a> {
    pub title: &'a str,
    pub text: &'a str,
    /// The provider's message, or the check that failed. Untrusted text of bounded length.
    pub detail: Option<&'a str>,
    /// The address and label of a link to a new login, if it makes sense to try.
    pub retry: Option<(&'a str, &'a str)>,
    /// The address that cancels the wait of a program on this machine.
    pub cancel: Option<&'a str>,
    /// The address at which a person who is signed in anyway can go on.
    pub go_on: Option<&'a str>,
    pub request_id: &'a str,
}

pub fn login_error(view: &LoginErrorView<'_>) -> Page {
    let main = html! {
        (sign(Tone::Refused))
        h1 { (view.title) }
        p class="lead" { (prose(view.text)) }
        @if let Some(detail) = view.detail {
            p class="note" { code { (name(detail)) } }
        }
        @match view.go_on {
            Some(href) => {
                p class="note" { "You are signed in in this browser." }
                p class="actions" {
                    a class="button" href=(href) { "Go on" }
                    @if let Some((href, label)) = view.retry { a href=(href) { (label) } }
                }
            }
            None => p class="actions" {
                @if let Some((href, label)) = view.retry { a class="button" href=(href) { (label) } }
                @match view.cancel {
                    Some(cancel) => a href=(cancel) { "Cancel" },
                    None => a href="/" { "To the start page" },
                }
            },
        }
    };
    Page::new(view.title, Tone::Refused, main).of_request(view.request_id)
}

/// Capitalizes the first letter, unless the text begins with a URL, and adds a missing full stop.
pub(super) fn sentence(text: &str) -> String {
    let mut chars = text.chars();
    let is_address = text.split_whitespace().next().is_some_and(|word| word.contains("://"));
    let mut sentence: String = match is_address {
        true => text.to_owned(),
        false => chars.next().into_iter().flat_map(char::to_uppercase).chain(chars).collect(),
    };
    if !sentence.ends_with(['.', '!', '?']) {
        sentence.push('.');
    }
    sentence
}

/// Renders a message, in which names are in backticks.
pub(super) fn prose(text: &str) -> Markup {
    let even = text.matches('`').count().is_multiple_of(2);
    html! {
        @for (part, text) in text.split('`').enumerate() {
            @let text = terminal::undirected(text);
            @if even && part % 2 == 1 { code { (text) } } @else { @if !even && part > 0 { "`" } (text) }
        }
    }
}

/// Renders a name from outside. `bdi` isolates right-to-left text, so that no name changes the direction of the text
/// beside it.
pub(super) fn name(text: &str) -> Markup {
    html! { bdi { (terminal::undirected(text)) } }
}

fn sign_out_form() -> Markup {
    html! {
        form class="actions" method="post" action=(SIGN_OUT) { button class="button" type="submit" { "Sign out" } }
    }
}

fn list(names: &[&str]) -> Markup {
    html! {
        @if names.is_empty() {
            span class="none" { "none" }
        } @else {
            ul class="names" { @for entry in names { li { code { (name(entry)) } } } }
        }
    }
}

fn rules(rules: &[Concern<'_>]) -> Markup {
    html! {
        @if !rules.iter().any(|rule| rule.does == RuleAction::Allow) {
            p class="none" { "Nothing: no rule allows anything to you." }
        }
        ul class="rules" {
            @for rule in rules {
                li {
                    strong { (match rule.does {
                        RuleAction::Deny => "Denied",
                        RuleAction::Approve => "Refused",
                        RuleAction::Allow => "Allowed",
                    }) }
                    " by " code { (rule.rule) } " on " (rule.routes.join(", "))
                    @if !rule.only.is_empty() { ": only " (rule.only.join(", ")) }
                    @if rule.does == RuleAction::Approve { "; it waits for an approval, which nobody can give yet" }
                    @if let Some(why) = rule.why { br; span class="none" { (prose(why)) } }
                }
            }
        }
    }
}

fn time(time: Timestamp) -> Markup {
    html! { time datetime=(time.to_string()) { (in_words(time)) } }
}

/// The day and the minute.
fn in_words(time: Timestamp) -> String {
    let machine = time.to_string();
    machine.get(..16).map_or_else(|| machine.clone(), |text| format!("{} UTC", text.replace('T', " ")))
}
