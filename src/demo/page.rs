//! The pages of the development provider and of the samples.

use maud::{DOCTYPE, Markup, PreEscaped, html};
use serde_json::Value;

use super::provider::PEOPLE;
use crate::{endpoints::WHO_AM_I, oidc::SIGN_OUT};

const STYLE: &str = "
:root{color-scheme:light dark;--bg:#f5f6f8;--card:#fff;--ink:#1a1d23;--soft:#5a6270;--line:#dde1e7;--accent:#2457d6}
@media(prefers-color-scheme:dark){:root{--bg:#14161a;--card:#1d2026;--ink:#eceff4;--soft:#a4acb9;--line:#323741;--accent:#8fb0ff}}
*{box-sizing:border-box}body{margin:0;background:var(--bg);color:var(--ink);font:16px/1.5 system-ui,sans-serif}
main{max-width:34rem;margin:8vh auto;padding:2rem;background:var(--card);border:1px solid var(--line);border-radius:14px}
main.wide{max-width:54rem}h1{font-size:1.35rem;margin:0 0 .25rem}p{margin:.25rem 0 1rem;color:var(--soft)}
button{display:block;width:100%;margin:.6rem 0;padding:.8rem 1rem;text-align:left;font:inherit;color:inherit;cursor:pointer;
background:transparent;border:1px solid var(--line);border-radius:10px}button:hover,button:focus-visible{border-color:var(--accent);outline:2px solid var(--accent)}
button span{display:block;color:var(--soft);font-size:.9rem}a{color:var(--accent)}
table{border-collapse:collapse;width:100%;font-size:.9rem}td,th{padding:.4rem .5rem;border-top:1px solid var(--line);text-align:left;vertical-align:top;overflow-wrap:anywhere}
th{width:34%;font-weight:600}.scroll{overflow-x:auto}
@media(max-width:40rem){main,main.wide{margin:0;border:0;border-radius:0;min-height:100vh;padding:1.25rem}}
";

fn page(title: &str, wide: bool, content: &Markup) -> Markup {
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                title { (title) }
                style { (PreEscaped(STYLE)) }
            }
            body { main.wide[wide] { (content) } }
        }
    }
}

/// Asks people who they want to be.
pub fn people(fields: &[(&str, &str)]) -> Markup {
    page(
        "Development provider",
        false,
        &html! {
            h1 { "Who do you want to be?" }
            p { "This is the development provider of the Doorward demo. There are no passwords." }
            form method="post" action="/authorize" {
                @for (name, value) in fields { input type="hidden" name=(name) value=(value); }
                @for person in PEOPLE {
                    button type="submit" name="person" value=(person.subject) { (person.name) span { (person.what) } }
                }
            }
        },
    )
}

pub fn logged_out() -> Markup {
    page("Signed out", false, &html! { h1 { "Signed out" } p { "You are signed out of the development provider." } })
}

/// The page of the sample Dashboard: the request that arrived.
pub fn arrived(arrived: &Value) -> Markup {
    let text = |value: &Value| match value {
        Value::String(text) => text.clone(),
        Value::Array(lines) => lines.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(", "),
        other => other.to_string(),
    };
    // First what Doorward says about the person, then what the browser sent.
    let says_who = |name: &str| name.starts_with("x-forwarded-") || name == "x-request-id";
    let headers = |who: bool| {
        let all = arrived["headers"].as_object().into_iter().flatten();
        all.filter(move |(name, _)| says_who(name) == who)
    };
    page(
        "Sample Dashboard",
        true,
        &html! {
            h1 { "Sample Dashboard" }
            p {
                "You are in. This page stands for the Tekton Dashboard and shows the request as it arrived behind Doorward. "
                a href=(WHO_AM_I) { "Who am I?" } " · "
                a href="/apis/tekton.dev/v1/namespaces/ci/pipelineruns/" { "The sample Kubernetes API" } " · "
                a href=(SIGN_OUT) { "Sign out" }
            }
            div.scroll {
                table {
                    tr { th { (text(&arrived["method"])) } td { (text(&arrived["path"])) } }
                    @for (name, value) in headers(true).chain(headers(false)) {
                        tr { th { (name) } td { (text(value)) } }
                    }
                }
            }
        },
    )
}
