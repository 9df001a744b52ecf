use super::*;

fn compiled(yaml: &str, report: &mut Report) -> TokenCondition {
    compiled_as(yaml, &raw::Action::Allow, report)
}

fn compiled_as(yaml: &str, action: &raw::Action, report: &mut Report) -> TokenCondition {
    let token: OnToken = serde_saphyr::from_str(yaml).unwrap();
    let on = raw::On { token: Some(token.clone()), ..raw::On::default() };
    compiled_among("[{issuer: east, kubernetes: api}]", &on, &token, action, report)
}

fn compiled_among(
    exchange: &str,
    on: &raw::On,
    token: &OnToken,
    action: &raw::Action,
    report: &mut Report,
) -> TokenCondition {
    let tokens = serde_saphyr::from_str(&format!("exchange: {exchange}")).unwrap();
    let root = raw::Root { tokens: Some(tokens), ..raw::Root::default() };
    TokenCondition::compile(on, token, action, &At::root(), &root, report)
}

fn on(yaml: &str) -> TokenCondition {
    let mut report = Report::default();
    let condition = compiled(yaml, &mut report);
    assert!(!report.has_errors(), "{yaml}: {:?}", report.problems());
    condition
}

fn task() -> TaskView {
    TaskView {
        cluster: "east".to_owned(),
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
        assert_eq!(condition.matches(&push, Reading::Strict), strict, "{what}");
        assert_eq!(condition.matches(&push, Reading::Wide), wide, "{what}");
    }
    let bare = on("{audiences: [registry.example], service_accounts: [ci/builder]}");
    assert!(bare.matches(&token("registry.example", None), Reading::Strict));
    let scoped = on("{audiences: [registry.example], scopes: [pull], service_accounts: [ci/builder]}");
    assert!(!scoped.matches(&token("registry.example", None), Reading::Strict));
}

/// Two rules would give the token to the runs of every branch and event.
#[test]
fn a_condition_on_deliveries_is_sent_to_when_and_any_other_to_a_rule_of_its_own() {
    for (yaml, expected) in [
        ("{branch: [main], token: {audiences: [a]}}", "write `branch` into `when`"),
        ("{fork: false, token: {audiences: [a]}}", "write `fork` into `when`"),
        ("{methods: [GET], token: {audiences: [a]}}", "write two rules"),
    ] {
        let on: raw::On = serde_saphyr::from_str(yaml).unwrap();
        let token = on.token.clone().unwrap();
        let mut report = Report::default();
        compiled_among("[{issuer: east, kubernetes: api}]", &on, &token, &raw::Action::Allow, &mut report);
        let helps: Vec<&str> = report.problems().iter().filter_map(|problem| problem.help.as_deref()).collect();
        assert!(helps.len() == 1 && helps[0].starts_with(expected), "{yaml}: {helps:?}");
    }
}

/// The code of a run is reported as it was written, before Tekton fills in parameters.
#[test]
fn a_deny_of_code_applies_if_a_resolver_parameter_may_become_it() {
    let of = |pipeline: &str| TaskView { pipeline: Some(pipeline.to_owned()), ..task() };
    let filled_in = of("bundles?bundle=%24%28params.b%29&kind=pipeline&name=release");
    let other = of("bundles?bundle=new.example%2Fci%3A1&kind=pipeline&name=release");
    let condition =
        on("{audiences: [a], service_accounts: [ci/builder], pipelines: ['bundles?bundle=old.example%2Fci%3A*']}");
    for (task, wide) in [(&filled_in, true), (&other, false)] {
        let view = TokenView { audience: "a", scope: None, task: Some(task) };
        assert!(!condition.matches(&view, Reading::Strict), "{:?}", task.pipeline);
        assert_eq!(condition.matches(&view, Reading::Wide), wide, "{:?}", task.pipeline);
    }
}

#[test]
fn a_service_account_of_one_cluster_is_not_that_of_another() {
    let token: OnToken =
        serde_saphyr::from_str("{audiences: [a], service_accounts: [ci/builder], clusters: [east]}").unwrap();
    let of = |cluster: &str| TaskView { cluster: cluster.to_owned(), ..task() };
    let (east, west) = (of("east"), of("west"));
    let condition = on("{audiences: [a], service_accounts: [ci/builder], clusters: [east]}");
    for (task, expected) in [(&east, true), (&west, false)] {
        let view = TokenView { audience: "a", scope: None, task: Some(task) };
        assert_eq!(condition.matches(&view, Reading::Strict), expected, "{}", task.cluster);
        assert_eq!(condition.matches(&view, Reading::Wide), expected, "{}", task.cluster);
    }
    const BOTH: &str = "[{issuer: east, kubernetes: e}, {issuer: west, kubernetes: w}, {issuer: jobs}]";
    let unnamed = OnToken { clusters: Vec::new(), ..token.clone() };
    let of_jobs = OnToken { service_accounts: Vec::new(), ..unnamed.clone() };
    let unknown = OnToken { clusters: vec!["north".to_owned()], ..token.clone() };
    for (what, token, action, at) in [
        ("named", &token, raw::Action::Allow, None),
        ("not named", &unnamed, raw::Action::Allow, Some("")),
        ("a deny is of all", &unnamed, raw::Action::Deny, None),
        ("for no task", &of_jobs, raw::Action::Allow, None),
        ("unknown", &unknown, raw::Action::Allow, Some("/clusters/0")),
    ] {
        let mut report = Report::default();
        let on = raw::On { token: Some(token.clone()), ..raw::On::default() };
        compiled_among(BOTH, &on, token, &action, &mut report);
        let told: Vec<&str> = report.problems().iter().map(|problem| problem.at.as_str()).collect();
        assert_eq!(told, at.into_iter().collect::<Vec<_>>(), "{what}");
    }
}

#[test]
fn an_account_in_a_namespace_whose_tasks_get_no_tokens_is_warned_about() {
    const BOTH: &str =
        "[{issuer: east, kubernetes: e, namespaces: [ci]}, {issuer: west, kubernetes: w, namespaces: [dev]}]";
    let (ci, all) = ("[{issuer: east, kubernetes: e, namespaces: [ci]}]", "[{issuer: east, kubernetes: e}]");
    for (exchange, accounts, clusters, action, at) in [
        (
            ci,
            "ci/builder, other/builder, 'other/*'",
            "",
            raw::Action::Allow,
            &["/service_accounts/1", "/service_accounts/2"][..],
        ),
        (ci, "other/builder", "", raw::Action::Deny, &[]),
        (all, "other/builder", "", raw::Action::Allow, &[]),
        (BOTH, "ci/builder, dev/builder", ", clusters: [east]", raw::Action::Allow, &["/service_accounts/1"]),
        (BOTH, "ci/builder, dev/builder", ", clusters: ['*']", raw::Action::Allow, &[]),
    ] {
        let token: OnToken =
            serde_saphyr::from_str(&format!("{{audiences: [a], service_accounts: [{accounts}]{clusters}}}")).unwrap();
        let (mut report, on) = (Report::default(), raw::On { token: Some(token.clone()), ..raw::On::default() });
        compiled_among(exchange, &on, &token, &action, &mut report);
        let told: Vec<&str> = report.problems().iter().map(|problem| problem.at.as_str()).collect();
        assert_eq!(told, at, "{exchange} {accounts} {action:?}");
        assert!(!report.has_errors());
    }
}

#[test]
fn a_rule_bounds_the_life_of_what_it_gives_within_that_of_all() {
    for (yaml, action, good) in [
        ("{audiences: [a], lifetime: 60s}", raw::Action::Allow, true),
        ("{audiences: [a], lifetime: 10m}", raw::Action::Allow, true),
        ("{audiences: [a], lifetime: 59s}", raw::Action::Allow, false),
        ("{audiences: [a], lifetime: 601s}", raw::Action::Allow, false),
        ("{audiences: [a], lifetime: 60s}", raw::Action::Deny, false),
    ] {
        let mut report = Report::default();
        compiled_as(yaml, &action, &mut report);
        let at: Vec<&str> = report.problems().iter().map(|problem| problem.at.as_str()).collect();
        assert_eq!(at, if good { &[][..] } else { &["/lifetime"] }, "{yaml} {action:?}");
    }
}

#[test]
fn a_caller_that_is_no_task_gets_nothing_from_a_rule_for_tasks() {
    let token = TokenView { audience: "a", scope: None, task: None };
    assert!(on("{audiences: [a]}").matches(&token, Reading::Strict));
    for condition in ["{audiences: [a], service_accounts: ['ci/*']}", "{audiences: [a], pipelines: [p]}"] {
        assert!(!on(condition).matches(&token, Reading::Strict), "{condition}");
    }
}

#[test]
fn a_pattern_that_cannot_be_parsed_is_reported_at_its_path() {
    for key in ["audiences", "scopes", "service_accounts", "pipelines", "pipeline_tasks", "tasks"] {
        let mut report = Report::default();
        let audiences = if key == "audiences" { "" } else { "audiences: [a], " };
        compiled(&format!("{{{audiences}{key}: [n/a, 'n/*b', '']}}"), &mut report);
        let told: Vec<String> = report.problems().iter().map(|problem| problem.at.to_string()).collect();
        for index in [1, 2] {
            assert!(told.iter().any(|at| at.ends_with(&format!("{key}/{index}"))), "{key}: {told:?}");
        }
    }
}

#[test]
fn only_the_conditions_that_a_token_misses_are_reported() {
    let task = task();
    let token = |scope| TokenView { audience: "registry.example", scope, task: Some(&task) };
    let misses = |condition: &str, token: &TokenView<'_>| -> Vec<String> {
        on(condition).misses(token, Reading::Strict).iter().map(ToString::to_string).collect()
    };
    let named =
        "{audiences: [registry.example], scopes: ['push:*'], service_accounts: [ci/builder], pipelines: [test]}";
    assert_eq!(misses(named, &token(Some("push:app"))), ["on.token.pipelines: needs test, has release"]);
    assert_eq!(
        misses(named, &TokenView { task: None, ..token(None) }),
        [
            "on.token.scopes: needs push:*, has none",
            "on.token.service_accounts: needs ci/builder, has no task",
            "on.token.pipelines: needs test, has no task",
        ]
    );
    assert_eq!(
        misses("{audiences: [other], tasks: [t]}", &token(Some("pull"))),
        [
            "on.token.audiences: needs other, has registry.example",
            "on.token.scopes: needs none, has pull",
            "on.token.service_accounts: needs the service account of a task by name, has ci/builder",
            "on.token.tasks: needs t, has none",
        ]
    );
}

#[test]
fn an_allow_must_name_the_source_of_a_resolver_and_a_deny_need_not() {
    for (key, pattern, allowed) in [
        ("pipelines", "git?pathInRepo=a&revision=main&*", false),
        ("tasks", "hub?kind=task&name=git-clone&*", false),
        ("tasks", "hub?kind=task&name=git-clone&version=0.9&*", true),
        ("pipelines", "git?*", true),
    ] {
        let yaml = format!("{{audiences: [a], service_accounts: [ci/builder], {key}: ['{pattern}']}}");
        for (action, is_good) in [(raw::Action::Allow, allowed), (raw::Action::Deny, true)] {
            let mut report = Report::default();
            compiled_as(&yaml, &action, &mut report);
            assert_eq!(!report.has_errors(), is_good, "{action:?} {pattern}: {:?}", report.problems());
        }
    }
}

/// `test` and `explain` decide by the rules alone, and would show that it gives something.
#[test]
fn an_allow_of_tokens_for_break_glass_users_is_warned_about() {
    for (on, action, at) in [
        ("token: {audiences: [a]}", "allow", &["/who/issuers/1"][..]),
        ("token: {audiences: [a]}", "deny", &[]),
        ("routes: [glass]", "allow", &[]),
    ] {
        let rule = format!("{{id: a, on: {{{on}}}, who: {{issuers: [company, break-glass]}}, do: {action}}}");
        let mut report = Report::default();
        check_break_glass(&serde_saphyr::from_str(&rule).unwrap(), &At::root(), &mut report);
        let told: Vec<&str> = report.problems().iter().map(|problem| problem.at.as_str()).collect();
        assert_eq!(told, at, "{rule}");
        assert!(!report.has_errors());
    }
}
