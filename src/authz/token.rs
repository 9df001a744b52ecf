//! Which tokens Doorward gives to whom, in exchange for theirs.

use crate::config::{
    raw::{self, OnToken},
    report::{At, Report},
};

use super::{condition::Reading, names::Prefix};

/// What stands for the route where a token is asked for. No route has this name, as no name of one has a slash.
pub const TOKEN_ENDPOINT: &str = "/oauth2/token";

/// A token that is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenView<'a> {
    /// For whom it would be (`aud`).
    pub audience: &'a str,
    /// One scope that would be in it. `None`: it would have none.
    pub scope: Option<&'a str>,
    /// The task that asks, where it is one.
    pub task: Option<&'a TaskView>,
}

/// A task that runs, as far as rules can tell it from others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TaskView {
    pub namespace: String,
    /// The service account of its pod.
    pub service_account: String,
    /// The pipeline that it is a part of, by reference; `None` for one alone, and where the run brought its own code.
    pub pipeline: Option<String>,
    /// What the pipeline calls it.
    pub pipeline_task: Option<String>,
    /// The task, by reference; `None` where the run or the pipeline brought the code.
    pub task: Option<String>,
}

/// Whether a token is among those of a condition. A task is among those of an allow only if its service account is named.
pub(super) fn matches(condition: &OnToken, token: &TokenView<'_>, reading: Reading) -> bool {
    let fits = |patterns: &[String], text: &str| {
        patterns.iter().any(|pattern| Prefix::parse(pattern).is_ok_and(|pattern| pattern.matches(text)))
    };
    let is_given =
        |patterns: &[String], text: Option<&str>| patterns.is_empty() || text.is_some_and(|text| fits(patterns, text));
    // Without a list of scopes an allow gives none, and a deny is of all.
    let scope = match (token.scope, condition.scopes.is_empty()) {
        (None, is_empty) => is_empty || reading == Reading::Wide,
        (Some(_), true) => reading == Reading::Wide,
        (Some(scope), false) => fits(&condition.scopes, scope),
    };
    let names_tasks = [&condition.service_accounts, &condition.pipelines, &condition.pipeline_tasks, &condition.tasks];
    let task = match token.task {
        None => names_tasks.iter().all(|patterns| patterns.is_empty()),
        Some(task) => {
            let account = format!("{}/{}", task.namespace, task.service_account);
            let account = match condition.service_accounts.is_empty() {
                true => reading == Reading::Wide,
                false => fits(&condition.service_accounts, &account),
            };
            account
                && is_given(&condition.pipelines, task.pipeline.as_deref())
                && is_given(&condition.pipeline_tasks, task.pipeline_task.as_deref())
                && is_given(&condition.tasks, task.task.as_deref())
        }
    };
    is_given(&condition.audiences, Some(token.audience)) && scope && task
}

/// Reports what no token can meet, and what would give more than it says.
pub(super) fn check(
    raw: &raw::On,
    token: &OnToken,
    action: &raw::Action,
    at: &At,
    root: &raw::Root,
    report: &mut Report,
) {
    if root.tokens.is_none() {
        report
            .error(at, "without the section `tokens` no token is given")
            .help("set `tokens: {exchange: [{issuer: ...}]}`");
    }
    let alone = raw::On { token: None, namespace: None, time: None, addresses: Vec::new(), ..raw.clone() };
    if alone != raw::On::default() {
        report
            .error(at, "a token is asked for at no route, so only `namespace`, `time` and `addresses` go with it")
            .help("write two rules");
    }
    match action {
        raw::Action::Approve(_) => {
            report.error(at, "no token waits for an approval").help("write an allow or a deny");
        }
        raw::Action::Allow if token.audiences.is_empty() => {
            report.error(at, "a token for everybody is given to nobody").help("list in `audiences` for whom it may be");
        }
        _ => {}
    }
    for (key, patterns) in [
        ("audiences", &token.audiences),
        ("scopes", &token.scopes),
        ("service_accounts", &token.service_accounts),
        ("pipelines", &token.pipelines),
        ("pipeline_tasks", &token.pipeline_tasks),
        ("tasks", &token.tasks),
    ] {
        for (index, text) in patterns.iter().enumerate() {
            if let Err(why) = Prefix::parse(text) {
                report.error(&at.key(key).index(index), format!("`{text}` {why}"));
            }
        }
    }
    for (index, account) in token.service_accounts.iter().enumerate().filter(|(_, text)| !text.contains('/')) {
        report
            .error(&at.key("service_accounts").index(index), format!("`{account}` names no namespace"))
            .help(format!("write `NAMESPACE/{account}`"));
    }
    for (index, scope) in token.scopes.iter().enumerate().filter(|(_, scope)| scope.contains(' ')) {
        report
            .error(&at.key("scopes").index(index), format!("`{scope}` has a blank, which no scope has"))
            .help("write one scope an entry");
    }
}

/// The condition in words.
pub(super) fn needs(raw: &OnToken) -> String {
    let part = |name: &str, list: &[String]| (!list.is_empty()).then(|| format!("{name} {}", list.join(", ")));
    let parts = [
        part("audience", &raw.audiences),
        part("scope", &raw.scopes),
        part("service account", &raw.service_accounts),
        part("pipeline", &raw.pipelines),
        part("pipeline task", &raw.pipeline_tasks),
        part("task", &raw.tasks),
    ];
    let parts: Vec<_> = parts.into_iter().flatten().collect();
    if parts.is_empty() { "a token".to_owned() } else { parts.join("; ") }
}

/// What is asked for, in words.
pub(super) fn found(token: &TokenView<'_>) -> String {
    let mut text = format!("audience {}; scope {}", token.audience, token.scope.unwrap_or("none"));
    if let Some(task) = token.task {
        let or_own = |name: &Option<String>| name.clone().unwrap_or_else(|| "none".to_owned());
        text.push_str(&format!(
            "; service account {}/{}; pipeline {}; pipeline task {}; task {}",
            task.namespace,
            task.service_account,
            or_own(&task.pipeline),
            or_own(&task.pipeline_task),
            or_own(&task.task)
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn on(yaml: &str) -> OnToken {
        serde_saphyr::from_str(yaml).unwrap()
    }

    fn task() -> TaskView {
        TaskView {
            namespace: "ci".to_owned(),
            service_account: "builder".to_owned(),
            pipeline: Some("release".to_owned()),
            pipeline_task: Some("push".to_owned()),
            task: None,
        }
    }

    #[test]
    fn a_task_gets_what_its_service_account_pipeline_and_task_may_have() {
        let task = task();
        let token = |audience, scope| TokenView { audience, scope, task: Some(&task) };
        let push = token("registry.example", Some("push:app"));
        for (what, condition, strict, wide) in [
            (
                "all named",
                "{audiences: [registry.example], scopes: ['push:*'], service_accounts: [ci/builder], pipelines: [release], pipeline_tasks: [push]}",
                true,
                true,
            ),
            ("no service account", "{audiences: [registry.example], scopes: ['push:*']}", false, true),
            (
                "of another namespace",
                "{audiences: [registry.example], scopes: ['push:*'], service_accounts: [dev/builder]}",
                false,
                false,
            ),
            (
                "a prefix is no part of a name",
                "{audiences: [registry.example], scopes: ['push:*'], service_accounts: [ci/build]}",
                false,
                false,
            ),
            (
                "another audience",
                "{audiences: [registry], scopes: ['push:*'], service_accounts: [ci/builder]}",
                false,
                false,
            ),
            (
                "another scope",
                "{audiences: [registry.example], scopes: [pull], service_accounts: [ci/builder]}",
                false,
                false,
            ),
            ("no scope listed", "{audiences: [registry.example], service_accounts: [ci/builder]}", false, true),
            (
                "another pipeline",
                "{audiences: [registry.example], scopes: ['push:*'], service_accounts: ['ci/*'], pipelines: [test]}",
                false,
                false,
            ),
            (
                "the code is the pipeline's own",
                "{audiences: [registry.example], scopes: ['push:*'], service_accounts: ['ci/*'], tasks: [push]}",
                false,
                false,
            ),
        ] {
            let condition = on(condition);
            assert_eq!(matches(&condition, &push, Reading::Strict), strict, "{what}");
            assert_eq!(matches(&condition, &push, Reading::Wide), wide, "{what}");
        }
        let bare = on("{audiences: [registry.example], service_accounts: [ci/builder]}");
        assert!(matches(&bare, &token("registry.example", None), Reading::Strict));
        let scoped = on("{audiences: [registry.example], scopes: [pull], service_accounts: [ci/builder]}");
        assert!(!matches(&scoped, &token("registry.example", None), Reading::Strict));
    }

    #[test]
    fn who_is_no_task_gets_nothing_by_a_rule_for_tasks() {
        let token = TokenView { audience: "a", scope: None, task: None };
        assert!(matches(&on("{audiences: [a]}"), &token, Reading::Strict));
        for condition in ["{audiences: [a], service_accounts: ['ci/*']}", "{audiences: [a], pipelines: [p]}"] {
            assert!(!matches(&on(condition), &token, Reading::Strict), "{condition}");
        }
    }
}
