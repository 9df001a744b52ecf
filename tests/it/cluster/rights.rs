//! Doorward's own rights, as it checks and reports them.

use serde_json::{Value, json};

use super::{
    impersonation::printed_of,
    tasks::Tasks,
    world::{GROUP, Setup, World},
};
use crate::{doctor::doctor, fixture::Change, harness::until};

async fn tells(world: &World, text: &str) {
    world.doorward.until_readyz_says(text).await;
}

#[tokio::test]
async fn a_missing_right_is_reported_until_it_is_granted() {
    let grant = "grants:\n  - {id: more, who: {groups: [more]}, kubernetes_groups: ['tekton:more']}\n";
    let world = World::with(|yaml| yaml.change("grants:\n", grant)).await;
    tells(&world, "Doorward may not impersonate groups tekton:more; `doorward rbac`").await;
    assert_eq!(world.doorward.admin("/readyz").await.status, 200, "it stops nobody");
    let doctor = async || doctor(world.doorward.dir(), &["--only", "rights", "--only", "upstreams"]).await;
    let said = doctor().await;
    said.is("rights", "fault", &["Doorward may not impersonate groups tekton:more", "`doorward rbac`"]);
    said.is("upstreams", "good", &["Kubernetes v"]);

    let account = json!({"kind": "ServiceAccount", "namespace": world.namespace, "name": "doorward"});
    let more = json!([{"apiGroups": [""], "resources": ["groups"], "verbs": ["impersonate"],
        "resourceNames": [GROUP, "tekton:more"]}]);
    world.api.allow_everywhere(&format!("{}-more", world.namespace), &account, &more).await;
    // Checked again with the next generation.
    let path = world.doorward.dir().join("doorward.yaml");
    let yaml = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, yaml.change("{id: more,", "{id: many,")).unwrap();
    until(async || !world.doorward.admin("/readyz").await.text().contains("may not impersonate")).await;
    doctor().await.is("rights", "good", &[]);
}

/// Constrained impersonation needs more rights, which are also checked one by one.
#[tokio::test]
async fn actions_that_are_forbidden_while_impersonating_are_reported() {
    let nothing = json!([{"apiGroups": [""], "resources": ["configmaps"], "verbs": ["get"]}]);
    let world = World::set_up(Setup { rights: nothing, ..Setup::default() }, |yaml| yaml).await;
    let account = json!({"kind": "ServiceAccount", "namespace": world.namespace, "name": "doorward"});
    let rules = printed_of(world.doorward.dir(), "constrained");
    let acts = |rule: &Value| rule["verbs"].to_string().contains("impersonate-on:") && rule["resources"].is_array();
    let (acting, others): (Vec<Value>, Vec<Value>) = rules.into_iter().partition(acts);
    let allow = async |name: &str, rules: &[Value]| {
        let name = format!("{}-{name}", world.namespace);
        world.api.allow_everywhere(&name, &account, &json!(rules)).await;
        doctor(world.doorward.dir(), &["--only", "rights"]).await
    };
    allow("whom", &others).await.is("rights", "fault", &["Doorward may not impersonate-on:user-info:"]);
    let said = allow("what", &acting).await;
    assert!(said.findings.iter().all(|finding| finding["state"] != "fault"), "{:?}", said.findings);
}

/// Users with groups that Doorward may not impersonate would suddenly be refused.
#[tokio::test]
async fn attacks_z28_a_policy_is_refused_until_all_its_groups_may_be_impersonated() {
    let mut world = World::start().await;
    let path = world.doorward.dir().join("doorward.yaml");
    let yaml = std::fs::read_to_string(&path).unwrap();
    let more = yaml
        .change("grants:\n", "grants:\n  - {id: more, who: {groups: [more]}, kubernetes_groups: ['tekton:more']}\n");
    std::fs::write(&path, &more).unwrap();
    let refusal = world.doorward.wait_for_log_containing("the configuration was refused").await.to_string();
    assert!(refusal.contains("grants give the group tekton:more, which Doorward may not impersonate"), "{refusal}");
    let rule = r#"{apiGroups: [""], resources: [groups], verbs: ["impersonate"], resourceNames: ["tekton:more"]}"#;
    assert!(refusal.replace('\\', "").contains(rule), "{refusal}");
    assert!(world.doorward.metrics().await.contains("reloads_total{outcome=\"refused\"} 1"));

    let account = json!({"kind": "ServiceAccount", "namespace": world.namespace, "name": "doorward"});
    let rights = json!([{"apiGroups": [""], "resources": ["groups"], "verbs": ["impersonate"],
        "resourceNames": [GROUP, "tekton:more"]}]);
    world.api.allow_everywhere(&format!("{}-more", world.namespace), &account, &rights).await;
    std::fs::write(&path, more.change("{id: more,", "{id: many,")).unwrap();
    world.doorward.wait_for_generation(2).await;

    // The files are good, so that `check` would find nothing in them.
    std::fs::write(&path, more.change("['tekton:more']", "['tekton:net', 'tekton:ops']")).unwrap();
    let (code, said) = world.doorward.operator(&["reload", "--why", "test"]).await;
    assert!(code == Some(1) && said.contains("grants give 2 groups that Doorward may not impersonate"), "{said}");
    assert!(said.contains("`doorward doctor`") && !said.contains("`doorward check`"), "{said}");
}

/// Whoever takes over Doorward would have these rights too.
#[tokio::test]
async fn far_reaching_rights_that_nothing_needs_are_reported() {
    let world = World::start().await;
    let doctor = async || doctor(world.doorward.dir(), &["--only", "rights"]).await;
    doctor().await.is("rights", "good", &[]);
    let account = json!({"kind": "ServiceAccount", "namespace": world.namespace, "name": "doorward"});
    let more = json!([
        {"apiGroups": [""], "resources": ["groups"], "verbs": ["impersonate"], "resourceNames": ["system:masters"]},
        {"apiGroups": [""], "resources": ["secrets"], "verbs": ["list"]},
        // Neither far-reaching nor needed.
        {"apiGroups": [""], "resources": ["configmaps"], "verbs": ["watch"]},
    ]);
    world.api.allow_everywhere(&format!("{}-beyond", world.namespace), &account, &more).await;
    let said = doctor().await;
    let beyond = "Doorward may impersonate groups named system:masters, list secrets, watch configmaps";
    said.is("rights", "warning", &[beyond, "`doorward rbac`"]);
    // Checked again with the next generation.
    let path = world.doorward.dir().join("doorward.yaml");
    let yaml = std::fs::read_to_string(&path).unwrap();
    std::fs::write(
        &path,
        yaml.change_first(
            "grants:\n",
            "grants:\n  - {id: same, who: {groups: [same]}, kubernetes_groups: ['GROUP']}\n",
        )
        .change("GROUP", GROUP),
    )
    .unwrap();
    tells(&world, &format!("{beyond}, which this configuration does not need")).await;
}

/// The API server falls back to the classic right, which defeats the limits of the constrained form.
#[tokio::test]
async fn a_classic_role_left_beside_the_constrained_one_is_reported() {
    let nothing =
        json!([{"apiGroups": [""], "resources": ["configmaps"], "resourceNames": ["none"], "verbs": ["get"]}]);
    let world = World::set_up(Setup { rights: nothing, ..Setup::default() }, |yaml| yaml).await;
    let account = json!({"kind": "ServiceAccount", "namespace": world.namespace, "name": "doorward"});
    let allow = async |form: &str| {
        let rules = json!(printed_of(world.doorward.dir(), form));
        world.api.allow_everywhere(&format!("{}-{form}", world.namespace), &account, &rules).await;
        doctor(world.doorward.dir(), &["--only", "rights"]).await
    };
    allow("constrained").await.is("rights", "good", &[]);
    allow("classic").await.is("rights", "warning", &["Doorward may impersonate groups named", "impersonate users"]);
}

/// It has a credential of its own, which needs the right to review.
#[tokio::test]
async fn a_credential_without_the_right_to_review_tokens_is_reported() {
    let world = World::start().await;
    let name = format!("{}-reviewer", world.namespace);
    world.api.account(&world.namespace, "reviewer").await;
    let token = world.api.token(&world.namespace, "reviewer").await;
    std::fs::write(world.doorward.dir().join("reviewer"), token).unwrap();
    let path = world.doorward.dir().join("doorward.yaml");
    let yaml = std::fs::read_to_string(&path).unwrap();
    let pods = "issuers:\n  - {name: pods, preset: kubernetes, issuer: 'https://pods.test', audiences: [doorward], username: 'pod:{sub}', \
                token_review: {upstream: cluster, bearer: {file: reviewer}}}\n";
    let yaml = yaml.change_first("issuers:\n", pods).change("{groups: [dev]}", "{issuers: [a], groups: [dev]}");
    std::fs::write(&path, yaml).unwrap();
    let doctor = async || doctor(world.doorward.dir(), &["--only", "rights"]).await;
    let lacks =
        "Doorward may not create tokenreviews.authentication.k8s.io with `token_review.bearer` of issuer `pods`";
    doctor().await.is("rights", "fault", &[lacks]);
    let account = json!({"kind": "ServiceAccount", "namespace": world.namespace, "name": "reviewer"});
    let rights = json!([{"apiGroups": ["authentication.k8s.io"], "resources": ["tokenreviews"], "verbs": ["create"]}]);
    world.api.allow_everywhere(&name, &account, &rights).await;
    doctor().await.is("rights", "good", &[]);
}

/// An API server serves its keys only to requests that accept their media type.
#[tokio::test]
async fn the_doctor_reads_the_keys_of_a_cluster_as_the_proxy_does() {
    let tasks = Tasks::start().await;
    let said = doctor(tasks.world.doorward.dir(), &["--only", "algorithms"]).await;
    let of_cluster = said.findings.iter().find(|finding| finding["subject"] == "issuer `cluster`");
    assert_eq!(of_cluster.map(|finding| &finding["state"]), Some(&json!("good")), "{:#?}", said.findings);
}
