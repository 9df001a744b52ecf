//! `doorward audit who-can` on the roles of the real API server, compared with the API server's own answer.

use std::process::{Command, Output};

use serde_json::{Value, json};

use super::{
    api_server::ApiServer,
    shipped::administrator,
    tekton::{Tekton, pipeline_run},
    world::Kubectl,
};

const CONFIGURATION: &str = "
listeners: [{name: main, address: '127.0.0.1:0'}]
issuers: [{name: a, issuer: 'https://id.test', audiences: [doorward], kind: human}]
upstreams: [{name: cluster, url: 'https://kubernetes.default.svc', credential: {bearer: {file: token}}}]
routes: [{name: api, kind: kubernetes, hosts: [api.test], schemes: [bearer], upstream: cluster}]
grants:
  - {id: dev, who: {groups: [dev]}, kubernetes_groups: ['dev-{ns}']}
  - {id: late, who: {groups: [late]}, kubernetes_groups: ['late-{ns}'], tekton_roles: [{role: run, namespaces: ['{ns}']}]}
rules:
  - {id: start, why: Developers build, on: {namespace: '{ns}', run: {does: [create]}}, who: {groups: [dev]}, need: {acr: [gold]}, do: allow}
  - {id: look, on: {kubernetes: {verbs: [read]}}, who: {groups: [dev]}, do: allow}
  - {id: no-inline, on: {run: {inline: true}}, do: deny}
";

const KINDS: &str = "clusterroles,clusterrolebindings,roles,rolebindings,serviceaccounts";

fn who_can(namespace: &str, kubectl: &Kubectl, list: &str, more: &[&str]) -> Output {
    let config = kubectl.write("doorward.yaml", &CONFIGURATION.replace("{ns}", namespace));
    let list = kubectl.write("list.json", list);
    let mut command = Command::new(env!("CARGO_BIN_EXE_doorward"));
    command.args(["audit", "who-can", "start-run", namespace, "--config"]).arg(config).arg("--cluster").arg(list);
    command.args(more).output().unwrap()
}

#[tokio::test]
async fn who_can_lists_the_subjects_that_may_start_runs_past_doorward_in_the_cluster() {
    Tekton::get().await;
    let api = ApiServer::get().await;
    let ns = &api.namespace().await;
    let kubectl = administrator(api, ns);
    let group =
        |name: &str| json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": format!("{name}-{ns}")});
    let account = |name: &str| json!({"kind": "ServiceAccount", "namespace": ns, "name": name});
    let runs = |verbs: &[&str]| json!({"apiGroups": ["tekton.dev"], "resources": ["pipelineruns"], "verbs": verbs});
    let mut nightly = runs(&["create", "patch"]);
    nightly["resourceNames"] = json!(["nightly"]);
    for name in ["deployer", "reader", "nightly", "actor"] {
        api.account(ns, name).await;
    }
    api.allow(ns, "dev", &group("dev"), &json!([runs(&["create"])])).await;
    api.allow(ns, "releases", &group("releases"), &json!([runs(&["*"])])).await;
    api.allow(
        ns,
        "deployer",
        &account("deployer"),
        &json!([{"apiGroups": ["*"], "resources": ["*"], "verbs": ["create"]}]),
    )
    .await;
    api.allow(ns, "reader", &account("reader"), &json!([runs(&["get", "list", "patch"])])).await;
    api.allow(ns, "nightly", &account("nightly"), &json!([nightly])).await;
    let people = json!([{"apiGroups": [""], "resources": ["users"], "verbs": ["impersonate"]}]);
    api.allow_everywhere(&format!("{ns}-actor"), &account("actor"), &people).await;

    let list = kubectl.run(&["get", KINDS, "-A", "-o", "json"]).await;
    let output = who_can(ns, &kubectl, &list, &["--format", "json"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let told: Value = serde_json::from_slice(&output.stdout).unwrap();
    let others = told["cluster"]["others"].as_array().unwrap();
    let creates = |right: &Value| right["may"].as_array().unwrap().contains(&json!("create pipelineruns"));
    let of_here = |name: &str| {
        others.iter().find(|right| right["subject"]["name"] == name && right["subject"]["namespace"] == **ns)
    };
    for (name, may) in [("deployer", true), ("reader", false), ("nightly", false), ("actor", false), ("default", false)]
    {
        assert_eq!(of_here(name).is_some_and(creates), may, "{name}: {told:#}");
        let whom = format!("--as=system:serviceaccount:{ns}:{name}");
        let answer = kubectl.output(&["auth", "can-i", "create", "pipelineruns.tekton.dev", &whom]).await;
        assert_eq!(String::from_utf8_lossy(&answer.stdout).trim(), if may { "yes" } else { "no" }, "{name}");
    }
    assert_eq!(
        of_here("deployer").unwrap()["binding"],
        json!({"kind": "RoleBinding", "namespace": ns, "name": "deployer"})
    );
    assert_eq!(of_here("deployer").unwrap()["expected"], Value::Null);
    assert_eq!(of_here("actor").unwrap()["may"], json!(["impersonate users"]));
    let of_group = |name: &str| others.iter().find(|right| right["subject"]["name"] == format!("{name}-{ns}"));
    assert!(of_group("releases").is_some_and(creates));
    assert_eq!(of_group("dev"), None, "it is one that a grant gives");
    assert_eq!(told["cluster"]["by_group"][format!("dev-{ns}")][0]["binding"]["name"], "dev");
    for (name, may) in [("dev", "yes"), ("releases", "yes"), ("late", "no")] {
        let whom = format!("--as-group={name}-{ns}");
        let answer = kubectl.output(&["auth", "can-i", "create", "pipelineruns.tekton.dev", "--as=x", &whom]).await;
        assert_eq!(String::from_utf8_lossy(&answer.stdout).trim(), may, "{name}");
    }
    let masters = others.iter().find(|right| right["subject"]["name"] == "system:masters" && creates(right)).unwrap();
    assert!(masters["expected"].is_string(), "{masters}");

    // An apply is a patch by name, which creates what does not exist.
    let by_apply = json!(["create pipelineruns named nightly by server-side apply"]);
    assert_eq!(of_here("nightly").unwrap()["may"], by_apply);
    let token = api.token(ns, "nightly").await;
    let own = Kubectl::new(&format!("https://{}", api.address), &api.authority.pem(), &token, ns);
    for (name, may) in [("nightly", true), ("other", false)] {
        let path = own.write("run.json", &pipeline_run(name, &json!({})).to_string()).display().to_string();
        let applied = own.output(&["apply", "--server-side", "--validate=false", "-f", &path]).await;
        assert_eq!(applied.status.success(), may, "{name}: {}", String::from_utf8_lossy(&applied.stderr));
    }

    let output = who_can(ns, &kubectl, &list, &[]);
    let text = String::from_utf8(output.stdout).unwrap();
    for line in [
        "  rule start allows it\n    route api\n    who   {\"groups\":[\"dev\"]}\n".to_owned(),
        "    need  {\"acr\":[\"gold\"]}\n    why   Developers build\n".to_owned(),
        "\nand none of these:\n  rule no-inline denies it\n".to_owned(),
        format!("    dev-{ns}: create pipelineruns, by RoleBinding {ns}/dev and Role {ns}/dev\n"),
        format!("    late-{ns}: the grant gives it the role, but the cluster does not bind it"),
        format!("  ServiceAccount {ns}/deployer: create pipelineruns, create taskruns, by RoleBinding {ns}/deployer"),
    ] {
        assert!(text.contains(&line), "{line}\n{text}");
    }
    assert!(!text.contains("rule look"), "{text}");

    // An incomplete list would hide somebody.
    let part = kubectl.run(&["get", "roles,rolebindings", "-A", "-o", "json"]).await;
    let refused = who_can(ns, &kubectl, &part, &[]);
    let said = String::from_utf8(refused.stderr).unwrap();
    assert_eq!(refused.status.code(), Some(1), "{said}");
    assert!(said.contains("has no ClusterRole and no ClusterRoleBinding, although every cluster has some"), "{said}");
}
