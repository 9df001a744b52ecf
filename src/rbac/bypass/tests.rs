use serde_json::json;

use super::*;

const CONFIGURATION: &str = "
routes:
  - {name: api, kind: kubernetes, hosts: [api.test], schemes: [bearer], upstream: cluster}
  - {name: hooks, kind: webhook, hosts: [hooks.test], schemes: [webhook], webhook: gh, upstream: el, event_listener: {namespace: ci, name: build}}
grants:
  - {id: dev, who: {groups: [dev]}, kubernetes_groups: ['tekton:dev', 'tekton:other']}
";

/// A ClusterRole of this name with these rules, bound to these subjects.
fn bound(name: &str, rules: &Value, subjects: &[Value]) -> [Value; 2] {
    let version = "rbac.authorization.k8s.io/v1";
    [
        json!({"apiVersion": version, "kind": "ClusterRole", "metadata": {"name": name}, "rules": rules}),
        json!({"apiVersion": version, "kind": "ClusterRoleBinding", "metadata": {"name": name},
            "roleRef": {"kind": "ClusterRole", "name": name}, "subjects": subjects}),
    ]
}

fn user(name: &str) -> Value {
    json!({"kind": "User", "name": name})
}

fn group(name: &str) -> Value {
    json!({"kind": "Group", "name": name})
}

fn account(namespace: &str, name: &str) -> Value {
    json!({"kind": "ServiceAccount", "namespace": namespace, "name": name})
}

fn runs(more: &Value) -> Value {
    let mut rule = json!({"apiGroups": ["tekton.dev"], "resources": ["pipelineruns", "taskruns"], "verbs": ["create"]});
    rule.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    json!([rule])
}

fn bypass(items: &[Value]) -> Bypass {
    bypass_beside("tekton-pipelines", items)
}

fn bypass_beside(tekton: &str, items: &[Value]) -> Bypass {
    let root: raw::Root = serde_saphyr::from_str(CONFIGURATION).unwrap();
    let doorward = Account { namespace: "doorward".to_owned(), name: "doorward".to_owned() };
    let installed = Installed { doorward: &doorward, tekton };
    find_bypass(json!({"items": items}).to_string().as_bytes(), &root, installed, "ci").unwrap()
}

/// `SUBJECT: MAY`, with `+` where it is expected, and the note.
fn told(rights: &[BypassRight]) -> Vec<String> {
    let line = |right: &BypassRight| {
        let sign = if right.expected.is_some() { "+" } else { "" };
        let why = right.expected.iter().chain(&right.note).map(|text| format!(" ({text})"));
        format!("{sign}{}: {}{}", right.subject, right.may.join(", "), why.collect::<String>())
    };
    rights.iter().map(line).collect()
}

#[test]
fn groups_of_grants_are_listed_apart_from_subjects_that_need_no_rule() {
    let bypass = bypass(&bound("run", &runs(&json!({})), &[group("tekton:dev"), group("ops"), user("ann")]));
    assert_eq!(told(&bypass.by_group["tekton:dev"]), ["Group tekton:dev: create pipelineruns, create taskruns"]);
    assert!(bypass.by_group["tekton:other"].is_empty());
    let expected = [
        "Group ops: create pipelineruns, create taskruns",
        "User ann: create pipelineruns, create taskruns (anybody who has this name at the API server; those who get it \
         through Doorward need a rule too)",
    ];
    assert_eq!(told(&bypass.others), expected);
}

#[test]
fn the_groups_of_grants_have_the_rights_of_everybody_too() {
    let bypass = bypass(&bound("run", &runs(&json!({})), &[group("system:authenticated")]));
    assert_eq!(bypass.by_group["tekton:other"].len(), 1);
    assert!(told(&bypass.others)[0].ends_with("(everybody with any credential of the cluster)"));
}

#[test]
fn expected_subjects_are_reported_with_the_reason() {
    let all = json!([{"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]}]);
    let people = json!([{"apiGroups": [""], "resources": ["users", "groups"], "verbs": ["impersonate"]}]);
    let mut items: Vec<Value> = bound("all", &all, &[group("system:masters")]).into();
    let makers = [
        account("ci", "build"),
        account("ci", "deploy"),
        account("ci", "gone"),
        account("doorward", "doorward"),
        user("system:serviceaccount:ci:default"),
    ];
    items.extend(bound("run", &runs(&json!({"resources": ["taskruns"]})), &makers));
    let controller = account("tekton-pipelines", "tekton-pipelines-controller");
    let access = "tekton-pipelines-controller-cluster-access";
    items.extend(bound(access, &runs(&json!({"resources": ["taskruns"]})), &[controller]));
    items.extend(bound("people", &people, &[account("doorward", "doorward"), account("ci", "build")]));
    let names = ["build", "deploy", "default"];
    items.extend(names.map(|name| json!({"kind": "ServiceAccount", "metadata": {"namespace": "ci", "name": name}})));
    let listener = |name: &str, spec: Value| json!({"kind": "EventListener", "metadata": {"namespace": "ci", "name": name}, "spec": spec});
    items.push(listener("build", json!({"serviceAccountName": "build", "triggers": [{"name": "t"}]})));
    let routed = told(&bypass(&items).others);
    let of_tokens = [
        "change cronjobs",
        "change daemonsets",
        "change deployments",
        "change jobs",
        "change pods",
        "change pods/ephemeralcontainers",
        "change replicasets",
        "change replicationcontrollers",
        "change statefulsets",
        "create pods",
        "create serviceaccounts/token",
        "read secrets",
        "use nodes/proxy",
        "use pods/attach",
        "use pods/exec",
    ];
    let tokens = of_tokens.map(|what| match what {
        "use nodes/proxy" => what.to_owned(),
        _ => ["ci", "doorward", "tekton-pipelines"].map(|of| format!("{what} of {of}")).join(", "),
    });
    let expected = [
        "+Group system:masters: bind clusterroles, bind roles, escalate clusterroles, escalate roles (administrators of the cluster, \
         whom no authorizer refuses anything)",
        "+Group system:masters: change clusterinterceptors, change clustertriggerbindings, change eventlisteners, change interceptors, \
         change triggerbindings, change triggers, change triggertemplates (administrators of the cluster, whom no authorizer refuses anything)",
        &format!(
            "+Group system:masters: {} (administrators of the cluster, whom no authorizer refuses anything)",
            tokens.join(", ")
        ),
        "+Group system:masters: create pipelineruns, create taskruns (administrators of the cluster, whom no authorizer refuses anything)",
        "+Group system:masters: reach EventListeners by pods/portforward of ci, reach EventListeners by pods/proxy of ci, \
         reach EventListeners by services/proxy of ci (administrators of the cluster, whom no authorizer refuses anything)",
        "ServiceAccount ci/deploy: create taskruns",
        "ServiceAccount ci/gone: create taskruns (there is no such service account: whoever may make one of that name has the right)",
        "+ServiceAccount ci/build: create taskruns (it makes the runs of EventListener ci/build, behind the route hooks)",
        "ServiceAccount doorward/doorward: create taskruns (Doorward itself, which needs no such right: see `doorward rbac --check`)",
        "+ServiceAccount tekton-pipelines/tekton-pipelines-controller: create taskruns (Tekton's own controller, which makes the runs of pipelines)",
        "User system:serviceaccount:ci:default: create taskruns",
        "+Group system:masters: impersonate serviceaccounts of ci, impersonate serviceaccounts of doorward, \
         impersonate serviceaccounts of tekton-pipelines (administrators of the cluster, whom no authorizer refuses anything)",
        "+Group system:masters: impersonate groups, impersonate users (administrators of the cluster, whom no authorizer refuses anything)",
        "ServiceAccount ci/build: impersonate groups, impersonate users",
        "+ServiceAccount doorward/doorward: impersonate groups, impersonate users (Doorward itself, which impersonates the people that it let in)",
    ];
    let sorted = |mut lines: Vec<String>| {
        lines.sort_unstable();
        lines
    };
    assert_eq!(sorted(routed), sorted(expected.map(str::to_owned).into()));

    let trigger = json!({"kind": "Trigger", "metadata": {"namespace": "ci", "name": "x"}, "spec": {"serviceAccountName": "deploy"}});
    let with_trigger = told(&bypass(&[items.clone(), vec![trigger.clone()]].concat()).others).join("\n");
    let of_trigger = "it makes the runs of Trigger ci/x, set off by EventListeners that are all behind routes";
    assert!(
        with_trigger.contains(&format!("+ServiceAccount ci/deploy: create taskruns ({of_trigger})")),
        "{with_trigger}"
    );
    items.retain(|item| item["kind"] != "EventListener");
    items.push(trigger);
    let alone = told(&bypass(&items).others).join("\n");
    assert!(
        alone.contains("\nServiceAccount ci/deploy: create taskruns (it makes the runs of Trigger ci/x, and"),
        "{alone}"
    );
    items.pop();

    items.push(listener("build", json!({"serviceAccountName": "build"})));
    items.push(listener("stray", json!({"triggers": [{"name": "t", "serviceAccountName": "deploy"}]})));
    items.push(json!({"kind": "Trigger", "metadata": {"namespace": "ci", "name": "x"}, "spec": {"serviceAccountName": "build"}}));
    let stray = told(&bypass(&items).others).join("\n");
    for line in [
        "\nServiceAccount ci/deploy: create taskruns (it makes the runs of EventListener ci/stray, to which no route leads)\n",
        "\nServiceAccount ci/build: create taskruns (it makes the runs of Trigger ci/x, and not each EventListener is known to be behind a route)\n",
        "\nUser system:serviceaccount:ci:default: create taskruns (it makes the runs of EventListener ci/stray, to which no route leads)\n",
    ] {
        assert!(stray.contains(line), "{line}{stray}");
    }
}

/// An EventListener creates runs for anybody who reaches it, but these rights alone were not reported.
#[test]
fn subjects_that_reach_an_event_listener_past_its_route_are_reported() {
    let reach = |resource: &str, verb: &str| json!([{"apiGroups": [""], "resources": [resource], "verbs": [verb]}]);
    let listener = json!({"kind": "EventListener", "metadata": {"namespace": "ci", "name": "build"}, "spec": {"serviceAccountName": "build"}});
    let mut items: Vec<Value> =
        bound("run", &runs(&json!({})), &[account("ci", "build"), account("other", "cron")]).into();
    items.extend(bound("forward", &reach("pods/portforward", "create"), &[user("ann")]));
    items.extend(bound("proxy", &reach("services/proxy", "update"), &[group("tekton:dev")]));
    items.extend(bound("look", &reach("services", "get"), &[user("bob")]));
    let reaching = |items: &[Value]| {
        let told = told(&bypass(items).others);
        told.into_iter().filter(|line| line.contains("reach EventListeners")).collect::<Vec<_>>()
    };
    assert_eq!(reaching(&items), [""; 0], "there is none");
    items.push(listener);
    let expected = [
        "Group tekton:dev: reach EventListeners by services/proxy of ci (a group that grants give: through Doorward a rule must allow this \
         too)",
        "User ann: reach EventListeners by pods/portforward of ci (anybody who has this name at the API server; those who get it \
         through Doorward need a rule too)",
    ];
    assert_eq!(reaching(&items), expected);
}

/// Its own account may create none, and that of the Trigger is in another namespace.
#[test]
fn subjects_that_reach_an_event_listener_with_triggers_elsewhere_are_reported() {
    let forward = json!([{"apiGroups": [""], "resources": ["pods/portforward"], "verbs": ["create"]}]);
    let object = |kind: &str, namespace: &str, spec: &Value| json!({"kind": kind, "metadata": {"namespace": namespace, "name": "x"}, "spec": spec});
    let build = json!({"serviceAccountName": "build"});
    let own = |names: &[&str]| json!({"serviceAccountName": "hooks", "namespaceSelector": {"matchNames": names}});
    // Selectors of groups were not read, so nobody who reaches such an EventListener was reported.
    let group = |names: &[&str]| json!({"name": "g", "triggerSelector": {"namespaceSelector": {"matchNames": names}}});
    let groups = |groups: &[Value]| json!({"serviceAccountName": "hooks", "triggerGroups": groups});
    for (what, listener, trigger, is_told) in [
        ("by name", own(&["other", "ci"]), ("ci", &build), true),
        ("all", own(&["*"]), ("ci", &build), true),
        ("none", own(&[]), ("ci", &build), false),
        ("another namespace", own(&["other"]), ("ci", &build), false),
        ("an account that makes no runs", own(&["*"]), ("other", &build), false),
        ("the account of the EventListener", own(&["*"]), ("ci", &json!({})), false),
        ("by a group", groups(&[json!({"name": "f"}), group(&["other"]), group(&["ci"])]), ("ci", &build), true),
        ("all by a group", groups(&[group(&["*"])]), ("ci", &build), true),
        ("another namespace by a group", groups(&[group(&["other"])]), ("ci", &build), false),
    ] {
        let mut items: Vec<Value> = bound("run", &runs(&json!({})), &[account("ci", "build")]).into();
        items.extend(bound("forward", &forward, &[user("ann")]));
        items.push(object("EventListener", "hooks", &listener));
        items.push(object("Trigger", trigger.0, trigger.1));
        let told = told(&bypass(&items).others);
        let reaching = "User ann: reach EventListeners by pods/portforward of hooks (";
        assert_eq!(told.iter().any(|line| line.starts_with(reaching)), is_told, "{what}: {told:?}");
    }
}

/// What creates the pod determines the account, whatever else the EventListener says.
#[test]
fn an_event_listener_makes_runs_with_the_account_of_its_pod_where_that_is_known() {
    let deployer = json!({"spec": {"template": {"spec": {"serviceAccountName": "deployer"}}}});
    for (spec, expected) in [
        (json!({}), &["default"][..]),
        (json!({"serviceAccountName": "build"}), &["build"]),
        (json!({"serviceAccountName": "build", "resources": {"kubernetesResource": {"replicas": 1}}}), &["build"]),
        (json!({"serviceAccountName": "build", "resources": {"kubernetesResource": deployer}}), &["deployer"]),
        (json!({"serviceAccountName": "build", "resources": {"customResource": {"kind": "Service"}}}), &[]),
        (
            json!({"serviceAccountName": "build", "resources": {"customResource": {}}, "triggers": [{"serviceAccountName": "own"}, {}]}),
            &["own"],
        ),
        (
            json!({"resources": {"kubernetesResource": deployer}, "triggers": [{"serviceAccountName": "own"}, {}]}),
            &["deployer", "own"],
        ),
        // Triggers that cannot be read.
        (json!({"serviceAccountName": "build", "triggers": "all"}), &[]),
    ] {
        let makers = ["build", "default", "deployer", "own"].map(|name| account("ci", name));
        let mut items: Vec<Value> = bound("run", &runs(&json!({})), &makers).into();
        items.push(
            json!({"kind": "EventListener", "metadata": {"namespace": "ci", "name": "build"}, "spec": spec.clone()}),
        );
        let others = bypass(&items).others;
        let names = others.iter().filter(|right| right.expected.is_some()).map(|right| right.subject.name.as_str());
        assert_eq!(names.collect::<BTreeSet<_>>(), expected.iter().copied().collect(), "{spec}");
    }
}

#[test]
fn subjects_that_may_impersonate_others_are_reported_with_the_limits() {
    let impersonate = |group: &str, resource: &str, verb: &str, names: &[&str]| json!([{"apiGroups": [group], "resources": [resource], "verbs": [verb], "resourceNames": names}]);
    let mut items: Vec<Value> = Vec::new();
    items.extend(bound("g", &impersonate("", "groups", "impersonate", &["tekton:dev"]), &[user("ann")]));
    items.extend(bound("s", &impersonate("", "serviceaccounts", "impersonate", &["build", "other"]), &[user("bob")]));
    items.extend(bound("n", &impersonate("", "serviceaccounts", "impersonate", &["other"]), &[user("cat")]));
    let constrained = impersonate("authentication.k8s.io", "users", "impersonate:user-info", &[]);
    items.extend(bound("c", &constrained, &[user("dan")]));
    items.extend(bound("r", &runs(&json!({})), &[account("ci", "build")]));
    let expected = [
        "ServiceAccount ci/build: create pipelineruns, create taskruns",
        "User bob: impersonate serviceaccounts of ci named build",
        "User ann: impersonate groups named tekton:dev",
    ];
    assert_eq!(told(&bypass(&items).others), expected, "what may be done as somebody else is needed too");

    items.extend(bound("a", &runs(&json!({"verbs": ["impersonate-on:user-info:create"]})), &[user("dan")]));
    assert_eq!(told(&bypass(&items).others).last().unwrap(), "User dan: impersonate:user-info users");
}

#[test]
fn ways_to_tokens_to_triggers_and_to_more_rights_are_reported() {
    let rule = |group: &str, resources: &[&str], verbs: &[&str], names: &[&str]| json!([{"apiGroups": [group], "resources": resources, "verbs": verbs, "resourceNames": names}]);
    let rbac = "rbac.authorization.k8s.io";
    let mut items: Vec<Value> = bound("r", &runs(&json!({})), &[account("ci", "build")]).into();
    items.extend(bound("t", &rule("", &["serviceaccounts/token"], &["create"], &["build"]), &[user("ann")]));
    items.extend(bound("o", &rule("", &["serviceaccounts/token"], &["create"], &["other"]), &[user("bob")]));
    items.extend(bound("p", &rule("", &["pods"], &["create"], &[]), &[group("tekton:dev"), account("ci", "cron")]));
    items.extend(bound(
        "system:c",
        &rule("", &["pods"], &["create"], &[]),
        &[account("kube-system", "job-controller")],
    ));
    items.extend(bound("j", &rule("batch", &["jobs"], &["patch"], &[]), &[account("ci", "jobs")]));
    items.extend(bound("s", &rule("", &["secrets"], &["list"], &[]), &[account("ci", "vault")]));
    items.extend(bound("c", &rule("", &["pods"], &["create"], &[]), &[account("kube-system", "mallory")]));
    items.extend(bound("i", &rule("", &["pods"], &["patch"], &[]), &[account("ci", "image")]));
    items.extend(bound("n", &rule("", &["nodes/proxy"], &["get"], &[]), &[account("ci", "metrics")]));
    // The resource is cluster-scoped, so this binding gives nothing.
    items.push(
        json!({"apiVersion": format!("{rbac}/v1"), "kind": "RoleBinding", "metadata": {"namespace": "ci", "name": "n"},
        "roleRef": {"kind": "ClusterRole", "name": "n"}, "subjects": [account("ci", "node")]}),
    );
    items.extend(bound(
        "d",
        &rule("triggers.tekton.dev", &["triggers", "clusterinterceptors"], &["patch"], &[]),
        &[account("ci", "cd")],
    ));
    items.extend(bound("e", &rule(rbac, &["clusterroles"], &["bind"], &["view"]), &[account("ci", "cd")]));
    let expected = [
        "ServiceAccount ci/build: create pipelineruns, create taskruns",
        "Group tekton:dev: create pods of ci (a group that grants give: through Doorward a rule must allow this too)",
        "ServiceAccount ci/cron: create pods of ci",
        "ServiceAccount ci/image: change pods of ci",
        "ServiceAccount ci/jobs: change jobs of ci",
        "ServiceAccount ci/metrics: use nodes/proxy",
        "ServiceAccount ci/vault: read secrets of ci",
        "+ServiceAccount kube-system/job-controller: create pods of ci (a part of Kubernetes, as it is installed)",
        "ServiceAccount kube-system/mallory: create pods of ci",
        "User ann: create serviceaccounts/token of ci named build (anybody who has this name at the API server; those who get it \
         through Doorward need a rule too)",
        "ServiceAccount ci/cd: change clusterinterceptors, change triggers",
        "ServiceAccount ci/cd: bind clusterroles named view",
    ];
    assert_eq!(told(&bypass(&items).others), expected);
}

/// On a cluster with an unmodified Tekton nothing is reported, so that every report matters.
#[test]
fn only_tektons_own_bindings_to_its_accounts_are_expected() {
    let rule = |group: &str, resources: &[&str], verbs: &[&str]| json!([{"apiGroups": [group], "resources": resources, "verbs": verbs}]);
    let own = |name: &str| account("tekton-pipelines", name);
    let resolvers = || account("tekton-pipelines-resolvers", "tekton-pipelines-resolvers");
    let secrets = rule("", &["secrets"], &["get", "list", "watch"]);
    let definitions = rule("triggers.tekton.dev", &["triggers", "eventlisteners", "clusterinterceptors"], &["update"]);
    let interceptors = rule("triggers.tekton.dev", &["clusterinterceptors"], &["patch"]);
    let deployments = rule("apps", &["deployments"], &["create"]);
    let of_triggers = [own("tekton-triggers-controller"), own("tekton-triggers-webhook")];
    let mut items: Vec<Value> = Vec::new();
    let make = &runs(&json!({}));
    items.extend(bound("tekton-pipelines-controller-cluster-access", make, &[own("tekton-pipelines-controller")]));
    items.extend(bound("tekton-pipelines-webhook", &secrets, &[own("tekton-pipelines-webhook")]));
    items.extend(bound("tekton-triggers-admin", &definitions, &of_triggers));
    items.extend(bound("tekton-triggers-deployments", &deployments, &of_triggers));
    items.extend(bound("tekton-triggers-core-interceptors", &secrets, &[own("tekton-triggers-core-interceptors")]));
    items.extend(bound("tekton-triggers-secrets", &interceptors, &[own("tekton-triggers-core-interceptors")]));
    items.extend(bound("tekton-pipelines-resolvers", &secrets, &[resolvers()]));
    let installed = bypass(&items).others;
    assert_eq!(installed.len(), 9, "{installed:#?}");
    let strays = |rights: &[BypassRight]| {
        told(&rights.iter().filter(|right| right.expected.is_none()).cloned().collect::<Vec<_>>())
    };
    assert_eq!(strays(&installed), [""; 0]);

    let all = rule("*", &["*"], &["*"]);
    for (name, rules, who) in [
        ("more", &secrets, own("tekton-pipelines-webhook")),
        ("tekton-more", make, own("tekton-triggers-controller")),
        ("tekton-more", &secrets, own("tekton-dashboard")),
        ("tekton-more", &secrets, account("ci", "tekton-pipelines-webhook")),
        ("cluster-admin", &all, resolvers()),
    ] {
        let with = bypass(&[items.clone(), bound(name, rules, std::slice::from_ref(&who)).into()].concat());
        let strays = strays(&with.others);
        assert!(!strays.is_empty(), "{name} {who}");
        let name = format!("{}/{}: ", who["namespace"].as_str().unwrap(), who["name"].as_str().unwrap());
        assert!(strays.iter().all(|line| line.contains(&name)), "{strays:?}");
    }
}

/// Removing the rights of these accounts stops all runs of the cluster.
#[test]
fn tektons_own_accounts_are_expected_in_the_namespace_that_it_has() {
    let secrets = json!([{"apiGroups": [""], "resources": ["secrets"], "verbs": ["get"]}]);
    let strays = |tekton: &str, (namespace, resolvers): (&str, &str)| {
        let mut items: Vec<Value> = Vec::new();
        let controller = account(namespace, "tekton-pipelines-controller");
        items.extend(bound("tekton-pipelines-controller", &runs(&json!({})), &[controller]));
        let accounts =
            [account(namespace, "tekton-pipelines-webhook"), account(resolvers, "tekton-pipelines-resolvers")];
        items.extend(bound("tekton-pipelines-webhook", &secrets, &accounts));
        let others = bypass_beside(tekton, &items).others;
        others.iter().filter(|right| right.expected.is_none()).count()
    };
    const OPENSHIFT: &str = "openshift-pipelines";
    assert_eq!(strays(OPENSHIFT, (OPENSHIFT, OPENSHIFT)), 0);
    assert_eq!(strays(OPENSHIFT, (OPENSHIFT, "openshift-pipelines-resolvers")), 0);
    assert_eq!(strays(OPENSHIFT, (OPENSHIFT, "tekton-pipelines-resolvers")), 1);
    assert_eq!(strays(OPENSHIFT, ("tekton-pipelines", "tekton-pipelines-resolvers")), 3);
    assert_eq!(strays("tekton-pipelines", (OPENSHIFT, OPENSHIFT)), 3);
}

#[test]
fn impersonation_by_doorward_is_expected_only_if_a_route_impersonates() {
    let impersonate = json!([{"apiGroups": [""], "resources": ["users"], "verbs": ["impersonate"]}]);
    let items = bound("doorward-impersonator", &impersonate, &[account("doorward", "doorward")]);
    assert!(bypass(&items).others[0].expected.is_some());
    let root: raw::Root = serde_saphyr::from_str(&CONFIGURATION.replace("kind: kubernetes", "kind: http")).unwrap();
    let doorward = Account { namespace: "doorward".to_owned(), name: "doorward".to_owned() };
    let installed = Installed { doorward: &doorward, tekton: "tekton-pipelines" };
    let found = find_bypass(json!({"items": items}).to_string().as_bytes(), &root, installed, "ci").unwrap();
    assert_eq!((found.others.len(), &found.others[0].expected), (1, &None));
}

#[test]
fn objects_outside_the_expected_namespaces_are_reported_once() {
    let mut items: Vec<Value> = bound("r", &runs(&json!({})), &[account("ci", "cron"), group("system:masters")]).into();
    let pipeline = |namespace: &str| json!({"apiVersion": "tekton.dev/v1", "kind": "Pipeline", "metadata": {"namespace": namespace, "name": "p"}});
    items.extend(["ci", "prod"].map(pipeline));
    items.push(json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"namespace": "other", "name": "s"}}));
    let root: raw::Root = serde_saphyr::from_str(CONFIGURATION).unwrap();
    let doorward = Account { namespace: "doorward".to_owned(), name: "doorward".to_owned() };
    let installed = Installed { doorward: &doorward, tekton: "tekton-pipelines" };
    let strays = strays(json!({"items": items}).to_string().as_bytes(), &root, installed).unwrap();
    assert_eq!(strays.lacks, ["Role", "RoleBinding"]);
    let [(right, namespaces)] = &strays.rights[..] else { panic!("{strays:?}") };
    assert_eq!(
        (right.subject.to_string(), namespaces.join(" ")),
        ("ServiceAccount ci/cron".to_owned(), "ci prod".to_owned())
    );
}

#[test]
fn a_create_that_is_limited_by_name_is_one_by_apply() {
    let bypass = bypass(&bound("run", &runs(&json!({"resourceNames": ["nightly"]})), &[account("ci", "build")]));
    let may =
        "create pipelineruns named nightly by server-side apply, create taskruns named nightly by server-side apply";
    assert_eq!(told(&bypass.others), [format!("ServiceAccount ci/build: {may}")]);
    assert_eq!(bypass.lacks, ["Role", "RoleBinding"]);
}
