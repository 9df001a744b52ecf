//! The pages of `doorward login`, which people see while a terminal signs in.

use std::net::IpAddr;

use maud::{Markup, html};

use super::{
    Choice, Page, Tone, sign,
    views::{name, prose, sentence},
};

/// A program that asks to sign in through this browser.
#[derive(Clone, Copy, Debug)]
pub struct ProgramView<'a> {
    pub host: &'a str,
    /// The name that the program's machine gave; unverified.
    pub machine: &'a str,
    /// The code that the person's terminal shows too, if the program is theirs.
    pub confirmation: &'a str,
    /// The person who is signed in in this browser.
    pub who: Option<&'a str>,
    /// The providers; their addresses are the targets of forms.
    pub choices: &'a [Choice],
    pub cancel: &'a str,
}

pub fn program(view: &ProgramView<'_>) -> Page {
    let main = html! {
        (sign(Tone::Plain))
        h1 { "Sign in a terminal?" }
        p class="lead" { code { "doorward login" } " on " strong { (view.machine) } " wants to act as you at " strong class="host" { (view.host) } "." }
        p { "Your terminal must show this code:" }
        p class="confirmation" { (view.confirmation) }
        p class="note" {
            "If it shows another one, or you did not run " code { "doorward login" }
            " yourself just now, press Cancel: somebody may have sent you their own link."
        }
        @if let Some(who) = view.who {
            p { "In this browser you are signed in as " strong { (name(who)) } "." }
        }
        ul class="choices" {
            @for choice in view.choices {
                li { (allow(choice, &html! {})) }
            }
        }
        p class="actions" { a href=(view.cancel) { "Cancel" } }
    };
    Page::new("Sign in a terminal", Tone::Plain, main)
}

/// The page that the program itself shows in the browser, once it has its session or was refused one.
#[derive(Clone, Copy, Debug)]
pub struct ProgramDoneView<'a> {
    /// The person who is signed in, or why nobody is.
    pub outcome: Result<&'a str, &'a str>,
}

pub fn program_done(view: &ProgramDoneView<'_>) -> Page {
    let (tone, title) = match view.outcome {
        Ok(_) => (Tone::Good, "Your terminal is signed in"),
        Err(_) => (Tone::Refused, "Your terminal is not signed in"),
    };
    let main = html! {
        (sign(tone))
        h1 { (title) }
        @match view.outcome {
            Ok(who) => p class="lead" { "As " strong { (name(who)) } ". You can close this page." },
            Err(why) => p class="lead" { (prose(&sentence(why))) },
        }
    };
    Page::new(title, tone, main)
}

/// The page on which the code of a terminal on another machine is typed.
#[derive(Clone, Copy, Debug)]
pub struct TypeCodeView<'a> {
    pub host: &'a str,
    /// The target of the form.
    pub action: &'a str,
    /// Why the typed code was refused.
    pub problem: Option<&'a str>,
}

pub fn type_code(view: &TypeCodeView<'_>) -> Page {
    let tone = if view.problem.is_some() { Tone::Refused } else { Tone::Plain };
    let main = html! {
        (sign(tone))
        h1 { "Sign in a terminal" }
        p class="lead" { "that uses " strong class="host" { (view.host) } }
        form class="actions" method="post" action=(view.action) {
            label for="code" { "The code that " code { "doorward login --device" } " shows" }
            input id="code" name="code" type="text" required autofocus autocomplete="off" autocapitalize="characters"
                spellcheck="false" maxlength="12" placeholder="BCDF-GHJK" aria-describedby=[view.problem.map(|_| "problem")]
                aria-invalid=[view.problem.map(|_| "true")];
            @if let Some(problem) = view.problem { p id="problem" class="note" role="alert" { (problem) } }
            button class="button" type="submit" { "Go on" }
        }
        p class="note" {
            "Type a code of your own terminal only. Whoever gave you another one, in a mail, a chat or a call, wants to act as you."
        }
    };
    Page::new("Sign in a terminal", tone, main)
}

/// A terminal on another machine, whose code was typed.
#[derive(Clone, Copy, Debug)]
pub struct DeviceView<'a> {
    pub host: &'a str,
    /// The name that the terminal's machine gave; unverified.
    pub machine: &'a str,
    /// The address from which it asked.
    pub address: IpAddr,
    pub code: &'a str,
    /// The person who is signed in in this browser.
    pub who: Option<&'a str>,
    /// The providers; their addresses are the targets of forms with the code.
    pub choices: &'a [Choice],
    /// The target of another form with the code.
    pub decline: &'a str,
}

pub fn device(view: &DeviceView<'_>) -> Page {
    let code = html! { input type="hidden" name="code" value=(view.code); };
    let main = html! {
        (sign(Tone::Plain))
        h1 { "Sign in a terminal?" }
        p class="lead" { code { "doorward login" } " on " strong { (view.machine) } " wants to act as you at " strong class="host" { (view.host) } "." }
        dl {
            div { dt { "Code" } dd { code { (view.code) } } }
            div { dt { "It asks from" } dd { code { (view.address) } } }
            @if let Some(who) = view.who { div { dt { "You are" } dd { (name(who)) } } }
        }
        p class="note" {
            "Go on only if you ran " code { "doorward login --device" }
            " yourself just now and your terminal shows this code. If somebody gave it to you, decline: they would act as you."
        }
        ul class="choices" {
            @for choice in view.choices { li { (allow(choice, &code)) } }
        }
        form class="actions" method="post" action=(view.decline) {
            (code)
            button class="small button" type="submit" { "Decline" }
        }
    };
    Page::new("Sign in a terminal", Tone::Plain, main)
}

/// The button to sign the terminal in with a provider.
fn allow(choice: &Choice, fields: &Markup) -> Markup {
    html! {
        form method="post" action=(choice.href) {
            (fields)
            button class="button" type="submit" {
                "Allow with " strong { (choice.name) }
                @if choice.used_last { " " span class="last" { "used last" } }
            }
        }
    }
}

/// A terminal on another machine that was allowed.
#[derive(Clone, Copy, Debug)]
pub struct DeviceDoneView<'a> {
    /// The name that its machine gave.
    pub machine: &'a str,
    /// The person it acts as.
    pub who: &'a str,
}

/// The page after a terminal on another machine was allowed.
pub fn device_done(view: Option<&DeviceDoneView<'_>>) -> Page {
    let main = html! {
        (sign(Tone::Good))
        h1 { "Go back to your terminal" }
        p class="lead" {
            @match view {
                Some(DeviceDoneView { machine, who }) => {
                    "The one on " strong { (machine) } " is signed in as " strong { (name(who)) } " within some seconds."
                }
                None => "It is signed in within some seconds.",
            }
            " You can close this page."
        }
        p { a href="/.doorward/sessions" { "Your sessions" } " shows it, and ends it." }
    };
    Page::new("Go back to your terminal", Tone::Good, main)
}

/// A terminal that was allowed before.
#[derive(Clone, Copy, Debug)]
pub struct LetInView<'a> {
    /// The name that its machine gave.
    pub machine: &'a str,
    pub code: &'a str,
    /// The target of the form that declines, if it is not too late.
    pub decline: Option<&'a str>,
}

/// The page for a code that is no longer valid because somebody allowed its terminal.
pub fn let_in_before(view: &LetInView<'_>) -> Page {
    let title = if view.decline.is_some() { "This terminal was let in" } else { "This terminal is signed in already" };
    let main = html! {
        (sign(Tone::Refused))
        h1 { (title) }
        p class="lead" {
            "Somebody let " code { "doorward login" } " on " strong { (view.machine) } " in with this code, perhaps you in another tab"
            @if view.decline.is_none() { ", and it came for its session: it is too late to decline" }
            "."
        }
        @if let Some(decline) = view.decline {
            p class="note" { "If it was not you, or you think better of it, decline: it has not come for its session yet." }
            form class="actions" method="post" action=(decline) {
                input type="hidden" name="code" value=(view.code);
                button class="button" type="submit" { "Decline" }
            }
        } @else {
            p class="note" { "If it was you, end its session where all of yours are listed." }
        }
        p { a href="/.doorward/sessions" { "Your sessions" } " shows it, and ends it." }
    };
    Page::new(title, Tone::Refused, main)
}
