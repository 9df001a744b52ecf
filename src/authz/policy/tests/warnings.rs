//! Policies that are accepted although they are probably mistaken, and the warnings at load.

use super::*;

#[test]
fn a_rule_that_opens_a_dashboard_is_warned_to_open_its_api_too() {
    const BOARD: &str = "
issuers: [{name: corp, issuer: 'https://corp.example', kind: human}]
routes:
  - {name: board, kind: dashboard, hosts: [board.example], schemes: [session], upstream: board, kubernetes: api}
  - {name: old, kind: dashboard, hosts: [old.example], schemes: [session], upstream: board}
";
    for (on, action, expected) in [
        ("{routes: [board]}", "allow", 1),
        ("{routes: [board], methods: [GET, HEAD]}", "allow", 1),
        ("{routes: [board], methods: [GET, HEAD], pages: true}", "allow", 0),
        ("{routes: [board], methods: [GET], kubernetes: {namespaces: [ci]}}", "allow", 0),
        ("{routes: [board], methods: [GET, POST]}", "allow", 0),
        ("{routes: [old], methods: [GET]}", "allow", 0),
        ("{routes: [board], methods: [GET]}", "deny", 0),
        ("{routes: [board]}", "deny", 0),
    ] {
        let root = root(BOARD, &format!("rules: [{{id: a, on: {on}, do: {action}}}]"));
        let told = warnings_of(&root);
        let of_the_api = told.iter().filter(|problem| problem.message.starts_with("this also allows")).count();
        assert_eq!(of_the_api, expected, "{on} {action}: {told:?}");
    }
}

/// Such a rule never matches, but looks as if it did.
#[test]
fn an_event_under_the_name_of_another_git_host_is_warned_about() {
    const HOSTS: &str = "
webhooks:
  - {name: gh, sender: github, secrets: [{secret: {env: SECRET}}]}
  - {name: bb, sender: bitbucket_cloud, secrets: [{secret: {env: SECRET}}]}
  - {name: lab, sender: gitlab, secrets: [{secret: {env: SECRET}}]}
  - {name: gogs, sender: gogs, secrets: [{secret: {env: SECRET}}]}
routes:
  - {name: gogs, kind: webhook, hosts: [gogs.example], schemes: [webhook], webhook: gogs, upstream: el}
  - {name: gh, kind: webhook, hosts: [gh.example], schemes: [webhook], webhook: gh, upstream: el}
  - {name: bb, kind: webhook, hosts: [bb.example], schemes: [webhook], webhook: bb, upstream: el}
  - {name: lab, kind: webhook, hosts: [lab.example], schemes: [webhook], webhook: lab, upstream: el}
";
    for (on, expected) in [
        ("{routes: [gh], event: [push, pull_request]}", None),
        ("{routes: [gh], event: [push, pull_requests]}", Some("did you mean `pull_request`?")),
        ("{routes: [gh], event: [package, star]}", None),
        ("{routes: [gh], event: [watch]}", Some("known: branch_protection_rule, ")),
        ("{routes: [gogs], event: [push, fork]}", None),
        ("{routes: [gogs], event: [workflow_run]}", Some("known: create, ")),
        ("{routes: [bb], event: [pull_request]}", Some("write `pullrequest:created` or `pullrequest:fulfilled` or ")),
        ("{routes: [bb], event: ['pullrequest:create']}", Some("did you mean `pullrequest:created`?")),
        ("{routes: [gh, bb], event: [pull_request, 'repo:push']}", None),
        ("{routes: [gh, lab], event: [merge_request]}", None),
        ("{routes: [gh], event: [push, ping]}", Some("remove it from the list")),
        ("{routes: [gh, bb], event: [ping]}", Some("remove it from the list")),
        ("{routes: [gh, lab], event: [ping]}", None),
        ("{event: [merge_request]}", None),
    ] {
        let root = root(HOSTS, &format!("rules: [{{id: a, on: {on}, do: allow}}]"));
        let warnings = warnings_of(&root);
        let told: Vec<_> = warnings.iter().filter(|p| p.at.as_str().contains("/on/event/")).collect();
        assert_eq!(told.len(), usize::from(expected.is_some()), "{on}: {told:?}");
        let help = told.first().and_then(|problem| problem.help.as_deref()).unwrap_or_default();
        assert!(help.starts_with(expected.unwrap_or_default()), "{on}: {help}");
    }
}

/// There was no warning that such a rule only refuses.
#[test]
fn a_rule_that_waits_for_approvals_warns_that_there_are_none() {
    const APPROVE: &str = "{approve: {by: {kind: human}}}";
    for (mode, action, expected) in
        [("enforce", APPROVE, 1), ("shadow", APPROVE, 0), ("enforce", "allow", 0), ("enforce", "deny", 0)]
    {
        let root = root(ONE_ISSUER, &format!("rules: [{{id: a, mode: {mode}, do: {action}}}]"));
        let told = warnings_of(&root);
        let of_approvals: Vec<_> =
            told.iter().filter(|problem| problem.message.contains("not implemented yet")).collect();
        assert_eq!(of_approvals.len(), expected, "{mode} {action}: {told:?}");
        assert!(of_approvals.iter().all(|problem| problem.at.to_string() == "/rules/0/do/approve"), "{told:?}");
    }
}

/// Such a need is never met: a login asks only for the classes of its issuer.
#[test]
fn an_authentication_class_that_no_login_gives_is_warned_about() {
    for (login, acr, expected) in [
        ("login: {client: {id: doorward}, acr_values: [silver]}", "[gold]", 1),
        ("login: {client: {id: doorward}, acr_values: [silver]}", "[gold, silver]", 0),
        ("login: {client: {id: doorward}}", "[gold]", 0),
        ("kind: human", "[gold]", 0),
    ] {
        let ground = ONE_ISSUER.replace("kind: human", login);
        let root = root(&ground, &format!("rules: [{{id: a, need: {{acr: {acr}}}, do: allow}}]"));
        let told = warnings_of(&root).into_iter().filter(|problem| problem.at.as_str() == "/rules/0/need/acr");
        assert_eq!(told.count(), expected, "{login} {acr}");
    }
}

/// A login asks only for the classes in its `acr_values`, so such a need may never be met.
#[test]
fn a_need_for_more_factors_that_no_provider_is_asked_for_is_warned_about() {
    let okta = "issuers: [{name: corp, issuer: 'https://corp.example', preset: okta, login: {client: {id: doorward}, ";
    for (login, expected) in [
        ("acr_values: [phr]}}]", 1),
        ("acr_values: [phr], mfa_acr_values: [two]}}]", 1),
        ("acr_values: [phr], mfa_acr_values: [phr]}}]", 0),
        ("acr_values: [phr, 'urn:okta:loa:2fa:any']}}]", 0),
        ("}}]", 0),
    ] {
        let root = root(&format!("{okta}{login}\n"), "rules: [{id: a, need: {mfa: {max_age: 15m}}, do: allow}]");
        let told = warnings_of(&root).into_iter().filter(|problem| problem.at.as_str() == "/rules/0/need/mfa");
        assert_eq!(told.count(), expected, "{login}");
    }
}

/// `login.kind` applies to people who log in, and nobody logs in at the token endpoint.
#[test]
fn a_rule_for_people_whose_tokens_never_name_their_kind_is_warned_about() {
    let token = "token: {audiences: [x], scopes: [y]}";
    let of_task = "token: {audiences: [x], scopes: [y], service_accounts: [ci/a]}";
    let login = "login: {kind: human, client: {id: doorward}}";
    let client = "clients: [{id: web, kind: human}]";
    for (issuer, on, who, action, expected) in [
        (login, token, "kind: human, issuers: [corp]", "allow", 1),
        (login, token, "kind: human", "allow", 1),
        ("preset: auth0", token, "kind: human, issuers: [corp], on_behalf_of: {groups: [dev]}", "allow", 1),
        ("kind: agent", token, "kind: human, issuers: [corp]", "allow", 1),
        ("kind: human", token, "kind: human, issuers: [corp]", "allow", 0),
        (client, token, "kind: human, issuers: [corp]", "allow", 0),
        (login, token, "kind: human, issuers: [people]", "allow", 0),
        (login, of_task, "kind: human, issuers: [corp]", "allow", 0),
        (login, token, "kind: agent, issuers: [corp]", "allow", 0),
        (login, token, "kind: human, issuers: [corp]", "deny", 0),
        (login, "paths: [/]", "kind: human, issuers: [corp]", "allow", 0),
    ] {
        let ground = format!(
            "
issuers:
  - {{name: corp, issuer: 'https://corp.example', {issuer}}}
  - {{name: people, issuer: 'https://people.example', kind: human}}
  - {{name: cluster, issuer: 'https://cluster.example', preset: kubernetes}}
tokens: {{exchange: [{{issuer: corp}}, {{issuer: cluster, kubernetes: api}}{}]}}
",
            if who.contains("people") { ", {issuer: people}" } else { "" }
        );
        let root = root(&ground, &format!("rules: [{{id: a, on: {{{on}}}, who: {{{who}}}, do: {action}}}]"));
        let told = warnings_of(&root);
        let found = told.iter().filter(|problem| problem.at.as_str() == "/rules/0/who/kind").count();
        assert_eq!(found, expected, "{issuer} {on} {who} {action}: {told:?}");
    }
}

/// These are not errors: somebody may have defined such a resource, and a `*` may be part of a name.
#[test]
fn unusual_resource_names_are_warned_about_with_a_suggestion() {
    for (rule, told) in [
        ("on: {kubernetes: {resources: [pod/exec]}}", "did you mean `pods/exec`?"),
        ("on: {kubernetes: {resources: [pods/Exec]}}", "did you mean `pods/exec`?"),
        ("on: {kubernetes: {resources: [PipelineRuns]}}", "did you mean `pipelineruns`?"),
        ("on: {kubernetes: {resources: [pods/logs]}}", "did you mean `pods/log`?"),
        ("on: {kubernetes: {resources: [secret]}}", "did you mean `secrets`?"),
        ("on: {kubernetes: {resources: [pipelinerun]}}", "did you mean `pipelineruns`?"),
        ("on: {kubernetes: {resources: ['ingress/*']}}", "did you mean `ingresses/*`?"),
        ("on: {kubernetes: {resources: [networkpolicy]}}", "did you mean `networkpolicies`?"),
        ("on: {kubernetes: {resources: ['*/logs']}}", "did you mean `*/log`?"),
        ("on: {kubernetes: {resources: [widget, widgets/logs, secrets, pods/log, '*']}}", ""),
        ("on: {hosts: [ap.example]}", "did you mean `api.example`?"),
        ("on: {routes: [web], hosts: [elsewhere.test]}", "name a host that is in `hosts` of a route"),
        ("on: {hosts: [api.example, '*.example', WEB.example]}", ""),
        ("who: {issuers: [corp], groups: ['dev*']}", "write out each one"),
        ("who: {issuers: [corp], subjects: ['*']}", "write out each one"),
        ("who: {issuers: [corp], on_behalf_of: {groups: ['dev*']}}", "write out each one"),
        ("who: {issuers: [corp], clients: ['bot-*']}", "write out each one"),
        ("who: {issuers: [corp], clients: [bot], scopes: ['tekton:*']}", "write out each one"),
        ("who: {issuers: [actions], claims: {ref: [refs/heads/main, 'refs/heads/release/*']}}", "write out each one"),
        ("who: {issuers: [corp], users: [alice@example.com]}", "write the whole name"),
        ("who: {issuers: [corp], users: ['https://corp.example#alice', 'corp#Alice']}", ""),
        ("who: {users: [alice@example.com]}", ""),
    ] {
        let root = root(GROUND, &format!("rules: [{{id: a, {rule}, do: deny}}]"));
        let warnings = warnings_of(&root);
        let helps: Vec<&str> = warnings.iter().filter_map(|found| found.help.as_deref()).collect();
        match told {
            "" => assert!(helps.is_empty(), "{rule}: {helps:?}"),
            told => assert!(helps.len() == 1 && helps[0].contains(told), "{rule}: {helps:?}"),
        }
    }
}

/// Such a deny let shells through, and such a window left a minute open.
#[test]
fn verbs_that_open_no_shell_and_a_day_that_ends_a_minute_early_are_warned_about() {
    for (on, action, place) in [
        ("{kubernetes: {verbs: [read], resources: [pods, pods/exec]}}", "deny", Some("kubernetes/resources/1")),
        ("{kubernetes: {verbs: [get], resources: [pods/attach]}}", "deny", Some("kubernetes/resources/0")),
        ("{kubernetes: {verbs: [get], resources: ['*/portforward']}}", "allow", Some("kubernetes/resources/0")),
        ("{kubernetes: {verbs: [get, create], resources: [pods/exec]}}", "allow", None),
        ("{kubernetes: {verbs: [write], resources: [pods/exec]}}", "deny", None),
        ("{kubernetes: {verbs: [get], resources: [pods/log, services/proxy]}}", "allow", None),
        ("{kubernetes: {resources: [pods/exec]}}", "deny", None),
        ("{time: {days: 'sat,sun', from: '00:00', to: '23:59'}}", "deny", Some("time/to")),
        ("{time: {days: 'sat,sun', from: '00:00', to: '24:00'}}", "deny", None),
    ] {
        let policy = format!("rules: [{{id: a, on: {on}, who: {{issuers: [corp]}}, do: {action}}}]");
        let warnings = warnings_of(&root(GROUND, &policy));
        let told: Vec<&str> =
            warnings.iter().filter_map(|told| told.at.as_str().strip_prefix("/rules/0/on/")).collect();
        assert_eq!(told, Vec::from_iter(place), "{on} {action}");
    }
}

/// Such a rule matches nothing, which a deny beside a broad allow does not show.
#[test]
fn a_resource_that_is_in_none_of_the_listed_api_groups_is_warned_about() {
    for (kubernetes, warned) in [
        ("api_groups: [tekton.dev], resources: [pods/exec, pods]", &["0 `\"\"` or `metrics.k8s.io`", "1 `\"\"`"][..]),
        ("api_groups: [tekton.dev], resources: [pipelineruns, secrets]", &["1 `\"\"`"]),
        ("api_groups: [''], resources: [pipelineruns, 'services/*', '*']", &["0 `tekton.dev`"]),
        ("api_groups: [tekton.dev, triggers.tekton.dev, ''], resources: [pods, pipelineruns, triggers]", &[]),
        ("api_groups: [events.k8s.io, metrics.k8s.io], resources: [events, pods]", &[]),
        // Their resources may have any name.
        ("api_groups: [tekton.dev, serving.example], resources: [services]", &[]),
        ("api_groups: ['*'], resources: [pods]", &[]),
        ("api_groups: [tekton.dev], resources: [widgets, '*/status']", &[]),
        ("resources: [pods]", &[]),
    ] {
        let root = root(GROUND, &format!("rules: [{{id: a, on: {{kubernetes: {{{kubernetes}}}}}, do: deny}}]"));
        let told = warnings_of(&root);
        assert_eq!(told.len(), warned.len(), "{kubernetes}: {told:?}");
        for (problem, expected) in told.iter().zip(warned) {
            let (index, groups) = expected.split_once(' ').unwrap();
            assert_eq!(problem.at.as_str(), format!("/rules/0/on/kubernetes/resources/{index}"), "{kubernetes}");
            let said = format!("is of the API group {groups}");
            assert!(problem.message.contains(&said), "{kubernetes}: {problem:?}");
            assert!(problem.help.as_ref().is_some_and(|help| help.contains(groups)), "{kubernetes}: {problem:?}");
        }
    }
}

/// `system:masters` was an error, and the group that took its place loaded without a word.
#[test]
fn a_grant_of_the_group_of_cluster_admins_is_warned_about() {
    let grant =
        "grants: [{id: a, who: {groups: [x]}, kubernetes_groups: ['kubeadm:others', 'kubeadm:cluster-admins']}]";
    let warnings = warnings_of(&root(ONE_ISSUER, grant));
    let [told] = &*warnings else { panic!("{warnings:?}") };
    assert_eq!(told.at.as_str(), "/grants/0/kubernetes_groups/1");
    assert!(told.message.contains("`cluster-admin`") && told.help.is_some(), "{told:?}");
}

#[test]
fn a_user_name_is_held_against_the_template_of_its_issuer() {
    for (template, user, action, expected) in [
        ("{sub}", "alice", "deny", 0),
        ("corp:{claim:/email}", "CORP:alice@example.com", "deny", 0),
        ("corp:{claim:/email}", "CORP:alice@example.com", "allow", 1),
        ("corp:{claim:/email}", "alice@example.com", "deny", 1),
        ("{sub}@corp", "alice@corp", "allow", 0),
        ("{sub}@corp", "alice", "deny", 1),
        // Regression: it is refused, and a warning said of each user that it has another form.
        ("sub", "alice", "deny", 0),
    ] {
        let ground = ONE_ISSUER.replacen("kind: human", &format!("kind: human, username: '{template}'"), 1);
        let root = root(&ground, &format!("rules: [{{id: a, who: {{users: ['{user}']}}, do: {action}}}]"));
        assert_eq!(warnings_of(&root).len(), expected, "{template} {user} {action}");
    }
}

/// Such an allow matches no job. A deny does, as it is read wide.
#[test]
fn a_number_or_a_flag_among_the_claims_of_ci_jobs_is_warned_about() {
    for (who, action, expected) in [
        ("issuers: [actions], claims: {repository_id: ['13', 13]}", "allow", Some(("repository_id/1", "`\"13\"`"))),
        ("issuers: [actions], claims: {/ref_protected: [true]}", "allow", Some(("~1ref_protected/0", "`\"true\"`"))),
        ("issuers: [actions], claims: {repository_id: [13]}", "deny", None),
        ("issuers: [actions], claims: {repository_id: ['13'], iat: [13], /act/n: [1]}", "allow", None),
        ("issuers: [actions, corp], claims: {repository_id: [13]}", "allow", None),
        ("issuers: [corp], claims: {repository_id: [13]}", "allow", None),
    ] {
        let root = root(GROUND, &format!("rules: [{{id: a, who: {{{who}}}, do: {action}}}]"));
        let told = warnings_of(&root);
        let told = told.iter().find(|problem| problem.message.contains("have a text in"));
        let found = told.map(|problem| (problem.at.to_string(), problem.help.clone().unwrap_or_default()));
        let expected = expected.map(|(at, text)| (format!("/rules/0/who/claims/{at}"), format!("write {text}")));
        assert_eq!(found, expected, "{who} {action}");
    }
}

/// Such a deny let everybody through, and `check` was silent.
#[test]
fn an_id_of_a_host_from_which_no_caller_of_the_rule_comes_is_warned_about() {
    let ground = GROUND
        .replace("webhooks:\n", "webhooks:\n  - {name: lab, sender: gitlab, secrets: [{secret: {env: OTHER}}]}\n")
        .replace("issuers:\n", "issuers:\n  - {name: jobs, issuer: 'https://jobs.example', preset: gitlab_ci}\n");
    for (who, expected) in [
        ("webhooks: [lab], repositories: ['gitlab:7', 'github:7']", Some("repositories/1")),
        ("webhooks: [lab], senders: ['github:7']", Some("senders/0")),
        ("issuers: [jobs], repositories: ['github:7']", Some("repositories/0")),
        ("issuers: [jobs], senders: ['gitlab:7']", Some("senders/0")),
        ("webhooks: [lab, gh], repositories: ['github:7', 'gitlab:7'], senders: ['github:7']", None),
        ("issuers: [jobs, actions], repositories: ['github:7', 'gitlab:7']", None),
        ("repositories: ['github:7', 'gitlab:7']", None),
        ("senders: ['github:7', 'gitlab:7']", None),
    ] {
        let root = root(&ground, &format!("rules: [{{id: a, who: {{{who}}}, do: deny}}]"));
        let told = warnings_of(&root);
        let told = told.iter().find(|problem| problem.message.contains("beside it is of"));
        let found = told.map(|problem| problem.at.to_string());
        assert_eq!(found, expected.map(|at| format!("/rules/0/who/{at}")), "{who}");
    }
}

/// A team that locked out a service account so had locked out nothing.
#[test]
fn a_deny_of_tokens_by_the_account_of_the_caller_is_warned_about() {
    let ground = format!("{GROUND}tokens: {{exchange: [{{issuer: cluster, kubernetes: api}}]}}\n");
    for (token, who, action, expected) in [
        ("{}", "service_accounts: [ci/builder]", "deny", 1),
        ("{audiences: [x]}", "service_accounts: ['ci/*']", "deny", 1),
        ("{service_accounts: [ci/builder]}", "service_accounts: [ci/starter]", "deny", 0),
        ("{service_accounts: [ci/builder]}", "issuers: [corp]", "deny", 0),
        ("{}", "issuers: [cluster], subjects: ['system:serviceaccount:ci:builder']", "deny", 0),
        ("{audiences: [x], service_accounts: [ci/builder]}", "service_accounts: [ci/starter]", "allow", 0),
    ] {
        let root = root(&ground, &format!("rules: [{{id: a, on: {{token: {token}}}, who: {{{who}}}, do: {action}}}]"));
        let told = warnings_of(&root);
        let found = told.iter().filter(|problem| problem.at.as_str() == "/rules/0/who/service_accounts").count();
        assert_eq!(found, expected, "{token} {who} {action}: {told:?}");
    }
}
