use super::*;

fn root(yaml: &str) -> raw::Root {
    serde_saphyr::from_str(yaml).unwrap()
}

fn print(yaml: &str, form: Form) -> String {
    let account = Account { namespace: "doorward".to_owned(), name: "proxy".to_owned() };
    manifest(&root(yaml), form, &account).unwrap()
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

#[test]
fn what_doorward_does_as_itself_is_only_what_is_configured() {
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
