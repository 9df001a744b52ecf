//! What `deploy/` ships, as the real API server takes it: every object, and the admission policies at work.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::{Value, json};

use super::{
    api_server::ApiServer,
    programs,
    tekton::{Tekton, pipeline_run},
    world::{Kubectl, World},
};
use crate::harness::{Authority, RedisServer, unique, within};

const OVERLAYS: [&str; 2] = ["single", "replicas"];

fn deploy() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy")
}

/// What `kubectl apply -k` would send of an overlay.
fn built(overlay: &str) -> String {
    let output = Command::new(programs::path("kubectl"))
        .args(["kustomize"])
        .arg(deploy().join("overlays").join(overlay))
        .output()
        .unwrap();
    assert!(output.status.success(), "{overlay}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn objects(yaml: &str) -> Vec<Value> {
    let documents = yaml.split("\n---\n").filter(|text| !text.trim().is_empty());
    documents.map(|text| serde_saphyr::from_str(text).unwrap()).collect()
}

/// The one object of a kind and a name.
fn find<'o>(objects: &'o [Value], kind: &str, name: &str) -> &'o Value {
    let found = objects.iter().find(|object| object["kind"] == kind && object["metadata"]["name"] == name);
    found.unwrap_or_else(|| panic!("no {kind} {name}"))
}

fn doorward(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_doorward"));
    command.args(arguments);
    command
}

/// A folder like a pod's file system, with the mounted files of an overlay.
fn pod(objects: &[Value]) -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    let at = |path: &str| root.path().join(path.trim_start_matches('/'));
    for folder in ["etc/doorward/config", "etc/doorward/secrets", "var/lib/doorward", "run/doorward"] {
        fs::create_dir_all(at(folder)).unwrap();
    }
    let authority = Authority::new();
    for (folder, name) in [("tls", "tekton.example.com"), ("interceptor-tls", "doorward-interceptor.doorward.svc")] {
        let folder = at("etc/doorward").join(folder);
        fs::create_dir_all(&folder).unwrap();
        authority.issue(&[name]).write(&folder, "tls");
        fs::rename(folder.join("tls.pem"), folder.join("tls.crt")).unwrap();
    }
    let assertion_key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap().serialize_pem();
    let session_key = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=".to_owned();
    for (path, text) in [
        ("etc/doorward/secrets/oidc-client-secret", unique()),
        ("etc/doorward/secrets/github-webhook", format!("{}{}", unique(), unique())),
        ("etc/doorward/secrets/metrics-token", unique()),
        ("etc/doorward/secrets/assertion-key", assertion_key),
        ("etc/doorward/secrets/session-key", session_key),
        ("etc/doorward/valkey/password", unique()),
        ("etc/doorward/valkey-tls/ca.crt", authority.pem()),
        ("var/run/secrets/doorward/token", unique()),
        ("var/run/secrets/doorward/ca.crt", authority.pem()),
    ] {
        fs::create_dir_all(at(path).parent().unwrap()).unwrap();
        fs::write(at(path), text).unwrap();
    }
    for (name, text) in find(objects, "ConfigMap", "doorward")["data"].as_object().unwrap() {
        fs::write(at("etc/doorward/config").join(name), within_pod(text.as_str().unwrap(), root.path())).unwrap();
    }
    root
}

/// The absolute paths of a configuration, as those of the folder that stands for the pod's file system.
fn within_pod(text: &str, root: &Path) -> String {
    let places = ["/etc/doorward", "/var/lib/doorward", "/var/run/secrets/doorward", "/run/doorward"];
    places.iter().fold(text.to_owned(), |text, place| text.replace(place, &format!("{}{place}", root.display())))
}

/// A server with the shipped settings, and the rights that docs/store.md names.
fn valkey(objects: &[Value], root: &Path) -> RedisServer {
    let at = |path: &str| root.join("etc/valkey").join(path);
    let authority = Authority::new();
    for folder in ["tls", "secrets", "data"] {
        fs::create_dir_all(at(folder)).unwrap();
    }
    authority.issue(&["127.0.0.1"]).write(&at("tls"), "tls");
    fs::rename(at("tls/tls.pem"), at("tls/tls.crt")).unwrap();
    for copy in [at("tls/ca.crt"), root.join("etc/doorward/valkey-tls/ca.crt")] {
        fs::write(copy, authority.pem()).unwrap();
    }
    let password = fs::read_to_string(root.join("etc/doorward/valkey/password")).unwrap();
    let told = fs::read_to_string(deploy().join("../docs/store.md")).unwrap();
    let user = told.lines().find_map(|line| line.strip_prefix("ACL SETUSER ")).unwrap().replace("PASSWORD", &password);
    fs::write(at("secrets/users.acl"), format!("user default off\nuser {user}\n")).unwrap();
    let settings = objects.iter().find_map(|object| object["data"]["valkey.conf"].as_str()).unwrap();
    let settings = settings
        .replace("/etc/valkey", &root.join("etc/valkey").display().to_string())
        .replace("dir /data", &format!("dir {}", at("data").display()));
    fs::write(at("valkey.conf"), settings).unwrap();
    let settings = at("valkey.conf").display().to_string();
    RedisServer::start(&["--include", &settings, "--port", "0", "--tls-port", "{port}"])
}

#[test]
fn the_shipped_configurations_are_good_and_their_cases_decided_as_they_say() {
    for overlay in OVERLAYS {
        let objects = objects(&built(overlay));
        let root = pod(&objects);
        let container = &find(&objects, "StatefulSet", "doorward")["spec"]["template"]["spec"]["containers"][0];
        // The store that replicas share, as it is shipped, for what is asked of it.
        let valkey = (overlay == "replicas").then(|| valkey(&objects, root.path()));
        let environment = container["env"].as_array().unwrap().iter().map(|variable| {
            let mut value = within_pod(variable["value"].as_str().unwrap(), root.path());
            if let Some(valkey) = &valkey {
                value = value.replace("doorward-valkey.doorward.svc:6379", &valkey.address());
            }
            (variable["name"].as_str().unwrap().to_owned(), value)
        });
        let environment: Vec<(String, String)> = environment.collect();
        assert_eq!(environment.len(), if overlay == "single" { 1 } else { 2 });
        let arguments = container["args"].as_array().unwrap();
        assert_eq!((&arguments[0], arguments.len()), (&json!("serve"), 2));
        let folder = within_pod(arguments[1].as_str().unwrap(), root.path());
        for command in ["check", "test"] {
            let output = doorward(&[command, &folder]).envs(environment.clone()).output().unwrap();
            let said = String::from_utf8_lossy(&output.stdout).into_owned();
            assert!(output.status.success(), "{overlay} {command}: {said}");
            assert!(!said.contains("warning"), "{overlay} {command}: {said}");
        }
    }
}

#[test]
fn the_providers_of_the_installation_guide_fit_into_the_shipped_configuration() {
    let guide = fs::read_to_string(deploy().join("../docs/install.md")).unwrap();
    let blocks = guide.split("```yaml\n").skip(1).filter_map(|rest| rest.split("```").next());
    let providers: Vec<&str> = blocks.filter(|block| block.starts_with("issuers:")).collect();
    assert_eq!(providers.len(), 3);
    let objects = objects(&built("single"));
    for provider in providers {
        let root = pod(&objects);
        let file = root.path().join("etc/doorward/config/doorward.yaml");
        let shipped = fs::read_to_string(&file).unwrap();
        let (before, rest) = shipped.split_once("issuers:\n").unwrap();
        let (_, after) = rest.split_once("webhooks:\n").unwrap();
        let provider = within_pod(provider, root.path());
        fs::write(&file, format!("{before}{provider}\nwebhooks:\n{after}")).unwrap();
        let output = doorward(&["check"]).arg(&file).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success() && !said.contains("warning"), "{provider}: {said}");
    }
}

#[test]
fn the_shipped_roles_are_what_the_configuration_needs() {
    let output = doorward(&["rbac"]).arg(deploy().join("base/config")).output().unwrap();
    let shipped = fs::read_to_string(deploy().join("base/rbac.yaml")).unwrap();
    assert_eq!(
        String::from_utf8(output.stdout).unwrap(),
        shipped,
        "write it anew: doorward rbac deploy/base/config > deploy/base/rbac.yaml"
    );
}

fn administrator(api: &ApiServer, namespace: &str) -> Kubectl {
    Kubectl::new(&format!("https://{}", api.address), &api.authority.pem(), &api.admin_token, namespace)
}

#[tokio::test]
async fn the_api_server_takes_all_that_is_shipped() {
    Tekton::get().await;
    let api = ApiServer::get().await;
    let kubectl = administrator(api, "default");
    // A dry run makes no namespaces, and others need them.
    let base = deploy().join("base");
    let text = fs::read_to_string(base.join("namespace.yaml")).unwrap()
        + "---\n"
        + &fs::read_to_string(base.join("service-account.yaml")).unwrap()
        + "---\n{apiVersion: v1, kind: Namespace, metadata: {name: ci}}\n";
    kubectl.write("before.yaml", &text);
    kubectl.run(&["apply", "-f", "before.yaml"]).await;
    for overlay in OVERLAYS {
        let yaml = built(overlay);
        kubectl.write("all.yaml", &yaml);
        let output = kubectl.output(&["apply", "--dry-run=server", "-f", "all.yaml"]).await;
        let (said, warned) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success() && warned.is_empty(), "{overlay}: {said}{warned}");
        let objects = objects(&yaml);
        assert_eq!(said.lines().count(), objects.len(), "{said}");
        // The API server's own judgement of a pod under the strictest of its standards.
        for set in objects.iter().filter(|object| object["kind"] == "StatefulSet") {
            let mut pod = set["spec"]["template"].clone();
            pod["metadata"]["name"] = json!("pod");
            let volumes = pod["spec"]["volumes"].as_array_mut().unwrap();
            let claims = set["spec"]["volumeClaimTemplates"].as_array().unwrap();
            volumes.extend(claims.iter().map(|claim| json!({"name": claim["metadata"]["name"], "emptyDir": {}})));
            if pod["spec"]["serviceAccountName"].is_null() {
                pod["spec"]["serviceAccountName"] = json!("doorward");
            }
            let answer = api.ask("POST", "/api/v1/namespaces/doorward/pods?dryRun=All", Some(&pod)).await;
            assert_eq!(answer.status, 201, "{overlay}: {}", answer.text());
            pod["spec"]["containers"][0]["securityContext"]["allowPrivilegeEscalation"] = json!(true);
            let answer = api.ask("POST", "/api/v1/namespaces/doorward/pods?dryRun=All", Some(&pod)).await;
            assert_eq!(answer.status, 403, "its twin: {}", answer.text());
        }
    }
    let ingress = deploy().join("examples/ingress.yaml").display().to_string();
    kubectl.run(&["apply", "--dry-run=server", "-f", &ingress]).await;
    let ca = kubectl.write("ca.crt", &api.authority.pem());
    let printed = doorward(&["interceptor", "--ca"]).arg(ca).output().unwrap();
    kubectl.write("interceptor.json", &String::from_utf8(printed.stdout).unwrap());
    kubectl.run(&["apply", "--dry-run=server", "-f", "interceptor.json"]).await;
}

#[tokio::test]
async fn the_examples_for_steps_are_taken_and_give_the_pod_its_token() {
    Tekton::get().await;
    let api = ApiServer::get().await;
    let namespace = api.namespace().await;
    api.account(&namespace, "builder").await;
    let kubectl = administrator(api, &namespace);
    for file in ["task.yaml", "step-action.yaml", "run.yaml"] {
        let path = deploy().join("tekton").join(file).display().to_string();
        kubectl.run(&["create", "-f", &path]).await;
    }
    let pods = format!("/api/v1/namespaces/{namespace}/pods");
    let pod = within(async {
        loop {
            if let Some(pod) = api.read(&pods).await["items"].get(0) {
                return pod.clone();
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    })
    .await;
    let spec = &pod["spec"];
    let tokens = spec["volumes"].as_array().unwrap().iter().filter_map(|volume| {
        Some((volume["name"].clone(), volume["projected"]["sources"].get(0)?["serviceAccountToken"].clone()))
    });
    let (volume, token) =
        tokens.into_iter().find(|(_, token)| token["audience"] == "https://tekton.example.com").unwrap();
    assert_eq!((&token["path"], &spec["serviceAccountName"]), (&json!("token"), &json!("builder")));
    let mounts = spec["containers"][0]["volumeMounts"].as_array().unwrap();
    let mount = mounts.iter().find(|mount| mount["name"] == volume).unwrap();
    // Where the program looks for it.
    assert_eq!((&mount["mountPath"], &mount["readOnly"]), (&json!("/var/run/secrets/doorward"), &json!(true)));
}

#[tokio::test]
async fn the_roles_of_a_cluster_are_held_against_the_configuration() {
    let api = ApiServer::get().await;
    let kubectl = administrator(api, "default");
    kubectl.write("ci.yaml", "{apiVersion: v1, kind: Namespace, metadata: {name: ci}}\n");
    kubectl.run(&["apply", "-f", "ci.yaml"]).await;
    let check = async || {
        let kinds = "clusterroles,clusterrolebindings,roles,rolebindings";
        let list = kubectl.write("list.json", &kubectl.run(&["get", kinds, "-A", "-o", "json"]).await);
        let output = doorward(&["rbac", "--check"]).arg(list).arg(deploy().join("base/config")).output().unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    };
    let (code, said) = check().await;
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("missing   ClusterRole doorward-impersonator\n"), "{said}");
    kubectl.run(&["apply", "-f", &deploy().join("base/rbac.yaml").display().to_string()]).await;
    assert_eq!(check().await, (Some(0), "the cluster has what the configuration needs, and no more\n".to_owned()));
    let account = "--serviceaccount=doorward:doorward";
    kubectl.run(&["create", "clusterrolebinding", "oops", "--clusterrole=view", account]).await;
    let told = "too wide  ClusterRoleBinding oops gives doorward/doorward the ClusterRole view\n";
    assert_eq!(check().await, (Some(1), told.to_owned()));
    kubectl.run(&["delete", "clusterrolebinding", "oops"]).await;
}

/// Puts the shipped policies in force in the namespace of a test, where `admin` is Tekton's controller and `listed` the account
/// of an EventListener.
async fn enforce(api: &ApiServer, namespace: &str, listed: &str) {
    let shipped = objects(&fs::read_to_string(deploy().join("base/admission.yaml")).unwrap());
    let path = "/apis/admissionregistration.k8s.io/v1";
    let mut makers = find(&shipped, "ConfigMap", "doorward-run-makers").clone();
    makers["metadata"]["namespace"] = json!(namespace);
    makers["data"] = json!({"controllers": "admin\n", "event_listeners": format!("{listed}\n")});
    api.create(&format!("/api/v1/namespaces/{namespace}/configmaps"), &makers).await;
    let kubectl = administrator(api, namespace);
    for policy in ["doorward-runs", "doorward-templates"] {
        kubectl.write("policy.json", &find(&shipped, "ValidatingAdmissionPolicy", policy).to_string());
        kubectl.run(&["apply", "-f", "policy.json"]).await;
        let mut binding = find(&shipped, "ValidatingAdmissionPolicyBinding", policy).clone();
        binding["metadata"]["name"] = json!(format!("{policy}-{namespace}"));
        let selector = json!({"matchLabels": {"kubernetes.io/metadata.name": namespace}});
        binding["spec"]["matchResources"] = json!({"namespaceSelector": selector});
        if let Some(params) = binding["spec"].get_mut("paramRef") {
            params["namespace"] = json!(namespace);
        }
        api.create(&format!("{path}/validatingadmissionpolicybindings"), &binding).await;
    }
}

/// kubectl past Doorward, whom RBAC allows everything: what is refused is refused by an admission policy.
struct Past(Kubectl);

impl Past {
    fn arguments<'a>(who: &'a str, arguments: &[&'a str]) -> Vec<&'a str> {
        [&["--as", who, "--as-group", "system:masters"], arguments].concat()
    }

    async fn run(&self, who: &str, arguments: &[&str]) -> String {
        self.0.run(&Self::arguments(who, arguments)).await
    }

    async fn fails(&self, who: &str, arguments: &[&str]) -> String {
        self.0.fails(&Self::arguments(who, arguments)).await
    }

    /// Waits until an object of `file` is refused: the API server learns of policies a little later.
    async fn is_refused(&self, who: &str, file: &str) {
        within(async {
            let arguments = Self::arguments(who, &["create", "--dry-run=server", "-f", file]);
            while self.0.output(&arguments).await.status.success() {}
        })
        .await;
    }
}

#[tokio::test]
async fn runs_and_templates_past_doorward_say_nothing_in_its_name() {
    Tekton::get().await;
    let world = World::start().await;
    let listed = format!("system:serviceaccount:{}:build", world.namespace);
    enforce(world.api, &world.namespace, &listed).await;
    let past = Past(administrator(world.api, &world.namespace));
    let write = |name: &str, object: &Value| drop(past.0.write(name, &object.to_string()));
    let forged = json!({"doorward.dev/requested-by": "alice", "doorward.dev/request-id": "1", "team": "a"});

    let mut template = json!({
        "apiVersion": "triggers.tekton.dev/v1beta1",
        "kind": "TriggerTemplate",
        "metadata": {"name": "template"},
        "spec": {"resourcetemplates": [pipeline_run("made", &json!({"team": "a"}))]},
    });
    let mut pipeline = json!({
        "apiVersion": "tekton.dev/v1",
        "kind": "Pipeline",
        "metadata": {"name": "pipeline", "annotations": {"team": "a"}},
        "spec": {"tasks": [{"name": "only", "taskSpec": {"steps": [{"name": "run", "image": "x", "command": ["true"]}]}}]},
    });
    write("pipeline.json", &pipeline);
    write("template.json", &template);
    pipeline["spec"]["tasks"][0]["taskSpec"]["metadata"] = json!({"labels": {"doorward.dev/rule": "x"}});
    write("forged-within.json", &pipeline);
    pipeline["spec"]["tasks"][0]["taskSpec"]["metadata"] = Value::Null;
    pipeline["metadata"]["annotations"] = json!({"Doorward.dev/approved-by": "bob"});
    write("forged-pipeline.json", &pipeline);
    template["spec"]["resourcetemplates"][0]["metadata"]["annotations"] = forged.clone();
    write("forged-template.json", &template);
    write("run.json", &pipeline_run("run", &json!({"team": "a"})));
    write("forged-run.json", &pipeline_run("forged", &forged));
    past.is_refused("mallory", "forged-pipeline.json").await;
    past.is_refused("mallory", "run.json").await;

    for file in ["forged-pipeline.json", "forged-within.json", "forged-template.json"] {
        let said = past.fails("mallory", &["create", "-f", file]).await;
        assert!(said.contains("would be copied to runs"), "attacks:Z51 {file}: {said}");
    }
    for file in ["pipeline.json", "template.json"] {
        past.run("mallory", &["create", "-f", file]).await;
    }

    let said = past.fails("mallory", &["create", "-f", "run.json"]).await;
    assert!(said.contains("runs are made through Doorward") && said.contains("mallory"), "attacks:Z52 {said}");
    let said = past.fails("alice", &["create", "-f", "forged-run.json"]).await;
    assert!(said.contains("runs are made through Doorward"), "attacks:Z52 the person that it names: {said}");

    // An EventListener's account makes runs, and vouches for nobody.
    past.run(&listed, &["create", "-f", "run.json"]).await;
    let said = past.fails(&listed, &["create", "-f", "forged-run.json"]).await;
    assert!(said.contains("only Doorward writes them"), "attacks:Z52 {said}");
    let mut run = pipeline_run("forged", &json!({}));
    run["spec"]["taskRunSpecs"] = json!([{"pipelineTaskName": "only", "metadata": {"annotations": forged}}]);
    write("forged-part.json", &run);
    let said = past.fails(&listed, &["create", "-f", "forged-part.json"]).await;
    assert!(said.contains("parts of a run"), "attacks:Z52 {said}");

    // Who may impersonate even our extra, as nobody but Doorward should, is held to what it says.
    for (who, id, expected) in [("alice", "2", false), ("bob", "1", false), ("alice", "1", true)] {
        let extra = format!("doorward.dev/request-id={id}");
        let arguments = ["--as-user-extra", &extra, "create", "--dry-run=server", "-f", "forged-run.json"];
        let output = past.0.output(&Past::arguments(who, &arguments)).await;
        assert_eq!(output.status.success(), expected, "attacks:Z52 {who} {id}");
    }

    // Through Doorward, with what the controller makes of it.
    let bob = world.kubectl("bob");
    bob.write("run.json", &pipeline_run("through", &forged).to_string());
    bob.run(&["create", "-f", "run.json"]).await;
    bob.run(&["wait", "--for=condition=Succeeded", "pipelinerun/through", "--timeout=90s"]).await;
    let tasks = format!(
        "/apis/tekton.dev/v1/namespaces/{}/taskruns?labelSelector=tekton.dev/pipelineRun=through",
        world.namespace
    );
    let tasks = world.api.read(&tasks).await;
    assert_eq!(tasks["items"][0]["metadata"]["annotations"]["doorward.dev/requested-by"], "bob");
    let mut pending = pipeline_run("applied", &json!({}));
    pending["spec"]["status"] = json!("PipelineRunPending");
    bob.write("apply.json", &pending.to_string());
    for _ in 0..2 {
        bob.run(&["apply", "--server-side", "--force-conflicts", "-f", "apply.json"]).await;
    }

    // What is written stays so.
    for change in ["doorward.dev/requested-by=carol", "doorward.dev/approved-by=carol", "doorward.dev/rule-"] {
        let said = past.fails("mallory", &["annotate", "--overwrite", "pipelinerun/through", change]).await;
        assert!(said.contains("only Doorward writes them"), "attacks:Z25 {change}: {said}");
        assert!(bob.fails(&["annotate", "--overwrite", "pipelinerun/through", change]).await.contains("Forbidden"));
    }
    let said = past.fails("mallory", &["label", "pipelinerun/through", "doorward.dev/rule=x"]).await;
    assert!(said.contains("as if Doorward had written them"), "attacks:Z25 {said}");
    past.run("mallory", &["annotate", "--overwrite", "pipelinerun/through", "team=b"]).await;
    past.run("mallory", &["delete", "pipelinerun/through"]).await;
    world.assert_sent_as(&["bob"]).await;
}
