use super::*;

fn root(yaml: &str) -> raw::Root {
    serde_saphyr::from_str(yaml).unwrap()
}

fn print(yaml: &str, form: Form) -> String {
    let account = Account { namespace: "doorward".to_owned(), name: "proxy".to_owned() };
    manifest(&root(yaml), form, Accounts { impersonator: &account, reader: &account }).unwrap()
}

const CONFIGURATION: &str = "
upstreams: [{name: cluster, url: 'https://kubernetes.default.svc'}]
routes:
  - {name: api, kind: kubernetes, hosts: [api.test], schemes: [bearer], upstream: cluster}
  - {name: web, kind: http, hosts: [web.test], schemes: [bearer], upstream: cluster}
grants:
  - {id: dev, who: {issuers: [a], groups: [dev]}, kubernetes_groups: ['tekton:dev'], tekton_roles: [{role: run, namespaces: [ci]}, {role: view}]}
  - {id: ops, who: {issuers: [a], groups: [ops]}, kubernetes_groups: ['tekton:ops'], tekton_roles: [{role: admin, namespaces: [ci]}]}
rules:
  - {id: look, on: {kubernetes: {verbs: [read], api_groups: [tekton.dev, ''], resources: [pipelineruns, pods, pods/log]}}, who: {issuers: [a]}, do: allow}
  - {id: shell, on: {kubernetes: {resources: [pods/exec], namespaces: [ci]}}, who: {issuers: [a], groups: [ops]}, do: allow}
  - {id: run, on: {namespace: ci, run: {does: [create]}}, who: {issuers: [a], groups: [dev]}, do: allow}
  - {id: pages, on: {routes: [web]}, who: {issuers: [a]}, do: allow}
  - {id: never, on: {kubernetes: {resources: [secrets]}}, do: deny}
";

#[test]
fn the_classic_form() {
    insta::assert_snapshot!(print(CONFIGURATION, Form::Classic));
}

#[test]
fn the_constrained_form() {
    insta::assert_snapshot!(print(CONFIGURATION, Form::Constrained));
}

#[test]
fn forms_are_never_mixed() {
    let (classic, constrained) = (print(CONFIGURATION, Form::Classic), print(CONFIGURATION, Form::Constrained));
    assert!(
        classic.contains("- impersonate\n") && !classic.contains("impersonate:") && !classic.contains("impersonate-on")
    );
    assert!(constrained.contains("impersonate:user-info") && !constrained.contains("- impersonate\n"));
}

#[test]
fn without_grants_no_group_may_be_impersonated() {
    let yaml = CONFIGURATION.split("grants:").next().unwrap();
    let printed = print(yaml, Form::Classic);
    assert!(!printed.contains("groups\n"), "{printed}");
}

const WITHOUT_IMPERSONATION: &str = "
routes:
  - {name: web, kind: http, hosts: [web.test], schemes: [bearer], upstream: web}
  - {name: hooks, kind: webhook, hosts: [hooks.test], schemes: [webhook], webhook: gh, upstream: el}
grants: [{id: dev, who: {issuers: [a]}, kubernetes_groups: ['tekton:dev']}]
rules: [{id: all, on: {}, who: {issuers: [a]}, do: allow}]
";

/// The right to impersonate any user was printed in any case.
#[test]
fn without_a_route_to_an_api_server_nobody_may_be_impersonated() {
    for form in [Form::Classic, Form::Constrained] {
        assert_eq!(print(WITHOUT_IMPERSONATION, form), "");
        let follows = print(&format!("{WITHOUT_IMPERSONATION}runs: {{kubernetes: cluster}}\n"), form);
        assert!(follows.contains("name: doorward-reader") && !follows.contains("impersonat"), "{follows}");
    }
}

#[test]
fn the_right_to_impersonate_that_an_earlier_configuration_left_is_reported() {
    let [impersonator, reader] =
        ["proxy", "reader"].map(|name| Account { namespace: "doorward".to_owned(), name: name.to_owned() });
    let accounts = Accounts { impersonator: &impersonator, reader: &reader };
    let before = objects(&root(CONFIGURATION), Form::Classic, accounts);
    let mut left: Vec<serde_json::Value> = before.iter().map(|object| serde_json::to_value(object).unwrap()).collect();
    left.retain(|object| object["metadata"]["name"] == "doorward-impersonator");
    let told = |items: &[serde_json::Value]| -> Vec<String> {
        let list = serde_json::json!({"items": items}).to_string();
        let told = compare(&root(WITHOUT_IMPERSONATION), Form::Classic, accounts, list.as_bytes()).unwrap();
        told.iter().map(ToString::to_string).collect()
    };
    assert!(told(&[]).is_empty());
    let stale = ["stale     ClusterRole doorward-impersonator", "stale     ClusterRoleBinding doorward-impersonator"];
    assert_eq!(told(&left), stale);
    // Somebody else made them.
    for object in &mut left {
        object["metadata"]["labels"] = serde_json::json!({});
    }
    let too_wide =
        "too wide  ClusterRoleBinding doorward-impersonator gives doorward/proxy the ClusterRole doorward-impersonator";
    assert_eq!(told(&left), [too_wide]);
}

#[test]
fn rights_of_doorwards_own_account_follow_the_configuration() {
    assert!(!print(CONFIGURATION, Form::Classic).contains("doorward-reader"));
    let triggers = format!(
        "{CONFIGURATION}  - {{id: t, on: {{trigger: {{service_accounts: [builder]}}}}, who: {{issuers: [a]}}, do: allow}}\n"
    );
    let printed = print(&triggers, Form::Classic);
    assert!(printed.contains("doorward-reader") && printed.contains("- eventlisteners"), "{printed}");
    let everywhere = print(&format!("{CONFIGURATION}runs: {{kubernetes: api}}\n"), Form::Classic);
    assert!(everywhere.contains("kind: ClusterRole\nmetadata:\n  name: doorward-reader\n"), "{everywhere}");
    let in_two = print(&format!("{CONFIGURATION}runs: {{kubernetes: api, namespaces: [a, b]}}\n"), Form::Classic);
    for namespace in ["a", "b"] {
        let role = format!("kind: Role\nmetadata:\n  name: doorward-reader\n  namespace: {namespace}\n");
        assert!(in_two.contains(&role), "{in_two}");
    }
}

#[test]
fn the_rights_for_tokens_of_tasks_cover_every_kind_of_run_that_a_pipeline_run_lists() {
    let tokens = "tokens: {exchange: [{issuer: cluster, kubernetes: cluster, namespaces: [ci]}]}\n";
    let rights = own_rights(&root(&format!("{CONFIGURATION}{tokens}")), Form::Classic);
    let rights: Vec<String> = rights.iter().map(|right| right.access.to_string()).collect();
    for kind in ["taskruns", "pipelineruns", "customruns"] {
        assert!(rights.contains(&format!("get {kind}.tekton.dev in ci")), "{kind}: {rights:?}");
    }
}

#[test]
fn rights_that_two_features_need_in_one_namespace_are_printed_once() {
    let shared = "runs: {kubernetes: cluster, namespaces: [ci]}
tokens: {exchange: [{issuer: cluster, kubernetes: cluster, namespaces: [ci]}]}
";
    let printed = print(&format!("{CONFIGURATION}{shared}"), Form::Classic);
    let of_ci =
        printed.split("---\n").find(|object| object.contains("kind: Role\n") && object.contains("doorward-reader"));
    let of_ci = of_ci.unwrap();
    assert_eq!(of_ci.matches("- taskruns\n").count(), 1, "{of_ci}");
    let wide = CONFIGURATION.replace(
        "on: {kubernetes: {verbs: [read], api_groups: [tekton.dev, ''], resources: [pipelineruns, pods, pods/log]}}",
        "on: {kubernetes: {}}",
    );
    let printed = print(&wide, Form::Constrained);
    assert!(!printed.contains("selfsubjectreviews"), "it is among everything: {printed}");
}

#[test]
fn what_is_asked_of_an_api_server_is_each_right_of_the_roles_there() {
    let yaml = "
routes:
  - {name: board, kind: dashboard, hosts: [a.test], schemes: [session], upstream: board, kubernetes: api}
  - {name: web, kind: http, hosts: [b.test], schemes: [session], upstream: web}
grants:
  - {id: dev, who: {issuers: [a]}, kubernetes_groups: [dev, ops]}
rules:
  - {id: exec, on: {kubernetes: {namespaces: [ci], resources: [pods/exec], api_groups: ['']}}, who: {issuers: [a]}, do: allow}
  - {id: t, on: {trigger: {service_accounts: [builder]}}, who: {issuers: [a]}, do: allow}
interceptor: {host: interceptor.test, kubernetes: triggers}
runs: {kubernetes: other, namespaces: [ci]}
";
    let told = |form| -> Vec<String> {
        let rights = own_rights(&root(yaml), form);
        rights.iter().map(|right| format!("{}: {}", right.upstream, right.access)).collect()
    };
    let classic = told(Form::Classic);
    let expected = [
        "api: impersonate users",
        "api: impersonate groups dev",
        "api: impersonate groups ops",
        "api: impersonate userextras/doorward.dev/client.authentication.k8s.io",
        "api: impersonate userextras/doorward.dev/actor.authentication.k8s.io",
        "api: impersonate userextras/doorward.dev/request-id.authentication.k8s.io",
        "other: list pipelineruns.tekton.dev in ci",
        "other: watch pipelineruns.tekton.dev in ci",
        "other: list taskruns.tekton.dev in ci",
        "other: watch taskruns.tekton.dev in ci",
        "triggers: get triggers.triggers.tekton.dev",
        "triggers: get eventlisteners.triggers.tekton.dev",
    ];
    assert_eq!(classic, expected);
    let groups: Vec<_> =
        group_rights(&root(yaml), Form::Classic).iter().map(|right| right.access.to_string()).collect();
    assert_eq!(groups, ["impersonate groups dev", "impersonate groups ops"]);
    let constrained = told(Form::Constrained);
    assert_eq!(constrained[0], "api: impersonate:user-info users.authentication.k8s.io");
    let act = |what: &str| constrained.iter().any(|right| right == &format!("api: impersonate-on:user-info:{what}"));
    assert!(act("create selfsubjectaccessreviews.authorization.k8s.io"), "{constrained:?}");
    assert!(act("create pods/exec in ci") && !act("create pods/exec"), "{constrained:?}");
    assert!(act("get /version"), "{constrained:?}");
    assert!(
        constrained.iter().all(|right| !right.contains('*') || right.contains(" /")),
        "of a rule on Triggers: {constrained:?}"
    );
}

/// The API server refuses what is not printed, for everybody, although the check against the cluster found nothing
/// missing.
#[test]
fn a_rule_about_everything_is_about_paths_that_are_no_resource_too() {
    let printed = |on: &str| -> String {
        let rules = format!("rules: [{{id: a, on: {on}, who: {{issuers: [a]}}, do: allow}}]\n");
        let root = root(&format!("{}{rules}", CONFIGURATION.split_once("rules:").unwrap().0));
        let rights = own_rights(&root, Form::Constrained);
        let urls = rights.iter().map(|right| right.access.to_string());
        let urls = urls.filter_map(|right| Some(right.strip_prefix("impersonate-on:user-info:")?.to_owned()));
        let known = ["get /api", "get /healthz", "get /livez", "get /openapi", "get /readyz", "get /version"];
        let added = urls.filter(|url| url.contains(['/', '*']) && !known.iter().any(|known| url.starts_with(known)));
        added.filter(|right| !right.contains(" *.") && !right.contains(" pods")).collect::<Vec<_>>().join(", ")
    };
    const ALL: &str = "get *, head *, options *, post *, put *, patch *, delete *";
    for (on, expected) in [
        ("{}", ALL),
        ("{kubernetes: {verbs: [read]}}", "get *, head *, options *"),
        ("{kubernetes: {non_resource_urls: [/metrics], verbs: [get, post]}}", "get /metrics, post /metrics"),
        ("{paths: [/metrics], methods: [GET]}", "get /metrics"),
        ("{paths: [/metrics/*], methods: [GET]}", "get /metrics, get /metrics/*"),
        ("{namespace: ci}", ""),
        ("{kubernetes: {resources: [pods]}}", ""),
        ("{kubernetes: {namespaces: [ci], non_resource_urls: [/metrics], verbs: [get]}}", "get /metrics"),
        ("{run: {does: [create]}}", ""),
    ] {
        assert_eq!(printed(on), expected, "{on}");
    }
}

/// Beside `namespace`, a `*` gave everything everywhere, and a list gave what the policy never allows.
#[test]
fn a_rule_with_both_conditions_on_namespaces_has_rights_where_both_hold() {
    for (on, expected) in [
        ("{namespace: ci}", "ci"),
        ("{namespace: ci, kubernetes: {resources: [pods], namespaces: ['*']}}", "ci"),
        ("{namespace: ci, kubernetes: {resources: [pods], namespaces: [ci, dev]}}", "ci"),
        ("{namespace: ci, kubernetes: {resources: [pods], namespaces: [dev]}}", ""),
        ("{kubernetes: {resources: [pods], namespaces: [ci, dev]}}", "ci dev"),
        ("{kubernetes: {resources: [pods], namespaces: [ci, '*']}}", "all"),
    ] {
        let rules = format!("rules: [{{id: a, on: {on}, who: {{issuers: [a]}}, do: allow}}]\n");
        let root = root(&format!("{}{rules}", CONFIGURATION.split_once("rules:").unwrap().0));
        let roles = actions::roles(&root);
        // The role for the whole cluster also has what everybody needs, which is not of all API groups.
        let is_of_rule = |role: &&Bound<'_>| role.rules.iter().any(|rule| rule.groups == ["*"]);
        let given = roles.iter().filter(is_of_rule).map(|role| role.namespace.unwrap_or("all"));
        let given: Vec<&str> = given.collect();
        assert_eq!(given.join(" "), expected, "{on}");
    }
}

/// A WebSocket is a GET, which a role with only writing verbs lacks, so the API server refuses it.
#[test]
fn a_rule_that_lets_write_everywhere_has_the_right_to_open_tunnels_by_get() {
    let printed = |schemes: &str, on: &str| -> String {
        let rules = format!("rules: [{{id: a, on: {on}, who: {{issuers: [a]}}, do: allow}}]\n");
        let yaml = CONFIGURATION
            .split_once("rules:")
            .unwrap()
            .0
            .replace("kubernetes, hosts: [api.test], schemes: [bearer]", schemes);
        let rights = own_rights(&root(&format!("{yaml}{rules}")), Form::Constrained);
        let rights = rights.iter().map(|right| right.access.to_string());
        let rights = rights.filter_map(|right| Some(right.strip_prefix("impersonate-on:user-info:")?.to_owned()));
        rights.filter(|right| right.contains("/exec")).collect::<Vec<_>>().join(", ")
    };
    const BEARER: &str = "kubernetes, hosts: [api.test], schemes: [bearer]";
    const BOTH: &str = "get */exec.* in dev, create */exec.* in dev";
    for (schemes, on, expected) in [
        (BEARER, "{kubernetes: {verbs: [write], namespaces: [dev]}}", BOTH),
        (BEARER, "{kubernetes: {verbs: [create], namespaces: [dev]}}", BOTH),
        (BEARER, "{kubernetes: {verbs: [write], resources: ['*'], namespaces: [dev]}}", BOTH),
        (BEARER, "{methods: [GET], kubernetes: {verbs: [write], namespaces: [dev]}}", BOTH),
        // Here `*` has both verbs.
        (BEARER, "{kubernetes: {namespaces: [dev]}}", ""),
        (BEARER, "{methods: [POST], kubernetes: {verbs: [write], namespaces: [dev]}}", ""),
        (BEARER, "{kubernetes: {verbs: [read], namespaces: [dev]}}", ""),
        (BEARER, "{kubernetes: {verbs: [write], resources: [pods], namespaces: [dev]}}", ""),
        (BEARER, "{kubernetes: {verbs: [write], non_resource_urls: [/metrics]}}", ""),
        (
            BEARER,
            "{kubernetes: {verbs: [write], api_groups: [''], namespaces: [dev]}}",
            "get */exec in dev, create */exec in dev",
        ),
        // Tunnels are in the core group, and belong to no run.
        (BEARER, "{kubernetes: {verbs: [write], api_groups: [tekton.dev], namespaces: [dev]}}", ""),
        (BEARER, "{run: {does: [create]}, kubernetes: {verbs: [write], namespaces: [dev]}}", ""),
        // On routes that accept a browser's session, a rule must name tunnels.
        (
            "kubernetes, hosts: [api.test], schemes: [bearer, session]",
            "{kubernetes: {verbs: [write], namespaces: [dev]}}",
            "",
        ),
    ] {
        assert_eq!(printed(schemes, on), expected, "{schemes} {on}");
    }
}

#[test]
fn the_pattern_of_all_subresources_has_those_that_pods_and_namespaces_have() {
    let rules = "rules: [{id: a, on: {kubernetes: {verbs: [write], resources: ['pods/*', 'namespaces/*', 'pipelineruns/*']}}, who: {issuers: [a]}, do: allow}]\n";
    let yaml = format!("{}{rules}", CONFIGURATION.split_once("rules:").unwrap().0);
    let rights = own_rights(&root(&yaml), Form::Constrained);
    let has = |what: &str| {
        rights
            .iter()
            .any(|right| right.access.to_string().starts_with(&format!("impersonate-on:user-info:update {what}")))
    };
    assert!(has("pods/resize") && has("namespaces/finalize"));
    assert!(!has("pipelineruns/finalize.") && has("pipelineruns/finalizers"));
}

/// `kubectl certificate approve` got 502, although the rule allowed it and no right was reported as missing.
#[test]
fn the_pattern_of_all_subresources_of_signing_requests_has_their_approval() {
    let rules = "rules: [{id: a, on: {kubernetes: {verbs: [update], resources: [certificatesigningrequests, \
                 'certificatesigningrequests/*']}}, who: {issuers: [a]}, do: allow}]\n";
    let yaml = format!("{}{rules}", CONFIGURATION.split_once("rules:").unwrap().0);
    let rights = own_rights(&root(&yaml), Form::Constrained);
    let acting: Vec<String> = rights.iter().map(|right| right.access.to_string()).collect();
    for sub in ["approval", "status"] {
        let needed = format!("impersonate-on:user-info:update certificatesigningrequests/{sub}");
        assert!(acting.iter().any(|right| right.starts_with(&needed)), "{needed}: {acting:#?}");
    }
}

/// The configuration names the account that impersonates. The account that requests its token may do only that.
#[test]
fn the_account_that_impersonates_is_the_one_that_the_configuration_names() {
    let server = "url: 'https://kubernetes.default.svc'";
    let (from, to) = (
        "upstreams: [{name: cluster,",
        "upstreams: [{name: own, SERVER}, {name: cluster, credential: {service_account: {namespace: front, name: proxy, upstream: own}},",
    );
    assert!(CONFIGURATION.contains(from));
    let root = root(&CONFIGURATION.replace(from, &to.replace("SERVER", server)));
    let own = Account { namespace: "doorward".to_owned(), name: "doorward".to_owned() };
    let accounts = Accounts { impersonator: &own, reader: &own };
    let printed: Vec<serde_json::Value> =
        objects(&root, Form::Classic, accounts).iter().map(|object| serde_json::to_value(object).unwrap()).collect();
    let find = |kind: &str, name: &str| {
        printed.iter().find(|object| object["kind"] == kind && object["metadata"]["name"] == name).unwrap()
    };
    let proxy = serde_json::json!([{"kind": "ServiceAccount", "name": "proxy", "namespace": "front"}]);
    assert_eq!(find("ClusterRoleBinding", "doorward-impersonator")["subjects"], proxy);
    let own = serde_json::json!([{"kind": "ServiceAccount", "name": "doorward", "namespace": "doorward"}]);
    let (role, binding) = (find("Role", "doorward-reader"), find("RoleBinding", "doorward-reader"));
    assert_eq!((&role["metadata"]["namespace"], &binding["subjects"]), (&"front".into(), &own));
    let rule = serde_json::json!([{"apiGroups": [""], "resources": ["serviceaccounts/token"],
        "resourceNames": ["proxy"], "verbs": ["create"]}]);
    assert_eq!(role["rules"], rule);

    // Both accounts are Doorward's, and bindings of others must not give them more.
    let bound = |namespace: &str, name: &str| {
        let extra = serde_json::json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": "oops"},
            "roleRef": {"kind": "ClusterRole", "name": "edit"},
            "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": namespace}],
        });
        let items = [printed.clone(), vec![extra]].concat();
        let list = serde_json::json!({"items": items}).to_string();
        compare(&root, Form::Classic, accounts, list.as_bytes()).unwrap().len()
    };
    assert_eq!([bound("front", "proxy"), bound("doorward", "doorward"), bound("front", "other")], [1, 1, 0]);

    let rights: Vec<String> = own_rights(&root, Form::Classic)
        .into_iter()
        .filter(|right| right.upstream == "own")
        .map(|right| right.access.to_string())
        .collect();
    assert_eq!(rights, ["create serviceaccounts/token proxy in front"]);
}

/// The account that may impersonate anybody has no other right if another account reads.
#[test]
fn the_roles_to_read_are_those_of_the_account_that_reads() {
    let (impersonator, reader) = ("proxy", "reader");
    let [impersonator, reader] =
        [impersonator, reader].map(|name| Account { namespace: "doorward".to_owned(), name: name.to_owned() });
    let accounts = Accounts { impersonator: &impersonator, reader: &reader };
    let apart =
        CONFIGURATION.replace("upstreams: [", "upstreams: [{name: own, url: 'https://kubernetes.default.svc'}, ");
    let written = root(&format!("{apart}runs: {{kubernetes: own, namespaces: [ci]}}\n"));
    assert_eq!(shared_upstream(&written), None);
    let printed = manifest(&written, Form::Classic, accounts).unwrap();
    let bound_to = |role: &str| -> Vec<&str> {
        let of_role = printed.split("---\n").filter(|object| object.contains(&format!("  name: {role}\nsubjects:")));
        of_role.flat_map(|object| object.lines().filter_map(|line| line.strip_prefix("  name: "))).collect()
    };
    assert_eq!(bound_to("doorward-impersonator"), ["doorward-impersonator", "doorward-impersonator", "proxy"]);
    assert_eq!(bound_to("doorward-reader"), ["doorward-reader", "doorward-reader", "reader"]);

    let printed: Vec<_> =
        objects(&written, Form::Classic, accounts).iter().map(|object| serde_json::to_value(object).unwrap()).collect();
    let list = |more: serde_json::Value| {
        let items = [printed.clone(), vec![more]].concat();
        serde_json::json!({"items": items}).to_string()
    };
    let bound = |account: &str| {
        serde_json::json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": "oops"},
            "roleRef": {"kind": "ClusterRole", "name": "edit"},
            "subjects": [{"kind": "ServiceAccount", "name": account, "namespace": "doorward"}],
        })
    };
    for account in ["proxy", "reader", "another"] {
        let told = compare(&written, Form::Classic, accounts, list(bound(account)).as_bytes()).unwrap();
        let told: Vec<String> = told.iter().map(ToString::to_string).collect();
        let too_wide = format!("too wide  ClusterRoleBinding oops gives doorward/{account} the ClusterRole edit");
        assert_eq!(told, if account == "another" { Vec::new() } else { vec![too_wide] });
    }
    // With one credential for both there is one account.
    for shared in ["runs: {kubernetes: cluster}", "interceptor: {host: i.test, kubernetes: cluster}"] {
        let triggers = "  - {id: t, on: {trigger: {service_accounts: [builder]}}, who: {issuers: [a]}, do: allow}\n";
        assert_eq!(shared_upstream(&root(&format!("{CONFIGURATION}{triggers}{shared}\n"))), Some("cluster"));
    }
}
