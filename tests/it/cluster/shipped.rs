//! The content of `deploy/`, as the real API server accepts it.

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
use crate::harness::{Authority, RedisServer, found, unique};

pub(super) const OVERLAYS: [&str; 2] = ["single", "replicas"];

pub(super) fn deploy() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy")
}

/// What `kubectl apply -k` would send for an overlay.
pub(super) fn built(overlay: &str) -> String {
    let output = Command::new(programs::path("kubectl"))
        .args(["kustomize"])
        .arg(deploy().join("overlays").join(overlay))
        .output()
        .unwrap();
    assert!(output.status.success(), "{overlay}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

pub(super) fn objects(yaml: &str) -> Vec<Value> {
    let documents = yaml.split("\n---\n").filter(|text| !text.trim().is_empty());
    documents.map(|text| serde_saphyr::from_str(text).unwrap()).collect()
}

/// The one object with a kind and a name.
pub(super) fn find<'o>(objects: &'o [Value], kind: &str, name: &str) -> &'o Value {
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
        ("etc/doorward/metrics/token", unique()),
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

/// Moves the absolute paths of a configuration into the folder that stands for the pod's file system.
fn within_pod(text: &str, root: &Path) -> String {
    let places = ["/etc/doorward", "/var/lib/doorward", "/var/run/secrets/doorward", "/run/doorward"];
    places.iter().fold(text.to_owned(), |text, place| text.replace(place, &format!("{}{place}", root.display())))
}

/// Creates the certificate of a part as in docs/install.md, for the name or address by which it is reached here.
fn certificate_by_the_guide(folder: &Path, part: &str, asked_as: &str) {
    let guide = fs::read_to_string(deploy().join("../docs/install.md")).unwrap();
    let subject = format!("-subj /CN=doorward-{part} ");
    let is_it = |line: &&str| line.starts_with("openssl req ") && line.contains(&subject);
    let mut goes_on = true;
    let lines = guide.lines().skip_while(|line| !is_it(line));
    let lines = lines.take_while(|line| std::mem::replace(&mut goes_on, line.ends_with('\\')));
    let lines: String = lines.map(|line| format!("{line}\n")).collect();
    let name = format!("DNS:doorward-{part}.doorward.svc");
    assert!(lines.contains(&name), "{lines}");
    let lines = lines.replace(&name, asked_as);
    let output = Command::new("sh").args(["-euc", &lines]).current_dir(folder).output().unwrap();
    assert!(output.status.success(), "{lines}: {}", String::from_utf8_lossy(&output.stderr));
    for (made, mounted) in [("key", "tls.key"), ("crt", "tls.crt")] {
        fs::rename(folder.join(format!("{part}.{made}")), folder.join(mounted)).unwrap();
    }
}

/// A server with the shipped settings, the rights from docs/store.md and the certificate from the guide.
fn valkey(objects: &[Value], root: &Path) -> RedisServer {
    let at = |path: &str| root.join("etc/valkey").join(path);
    for folder in ["tls", "secrets", "data"] {
        fs::create_dir_all(at(folder)).unwrap();
    }
    certificate_by_the_guide(&at("tls"), "valkey", "IP:127.0.0.1");
    for copy in [at("tls/ca.crt"), root.join("etc/doorward/valkey-tls/ca.crt")] {
        fs::copy(at("tls/tls.crt"), copy).unwrap();
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

/// The environment variables of a container.
fn environment(container: &Value, root: &Path, valkey: Option<&RedisServer>) -> Vec<(String, String)> {
    let variables = container["env"].as_array().unwrap().iter().map(|variable| {
        let mut value = within_pod(variable["value"].as_str().unwrap(), root);
        if let Some(valkey) = valkey {
            value = value.replace("doorward-valkey.doorward.svc:6379", &valkey.address());
        }
        (variable["name"].as_str().unwrap().to_owned(), value)
    });
    variables.collect()
}

#[test]
fn the_example_of_tokens_of_several_replicas_fits_into_the_shipped_configuration() {
    let objects = objects(&built("replicas"));
    let root = pod(&objects);
    let container = &find(&objects, "StatefulSet", "doorward")["spec"]["template"]["spec"]["containers"][0];
    let valkey = valkey(&objects, root.path());
    let environment = environment(container, root.path(), Some(&valkey));
    for name in ["token-key-1", "token-key-2"] {
        let key = root.path().join("etc/doorward/secrets").join(name);
        fs::write(key, rcgen::KeyPair::generate().unwrap().serialize_pem()).unwrap();
    }
    let example = fs::read_to_string(deploy().join("examples/tokens.yaml")).unwrap();
    let example: Value = serde_saphyr::from_str(&within_pod(&example, root.path())).unwrap();
    let folder = root.path().join("etc/doorward/config");
    let add = |file: &str, list: &str| {
        let mut config: Value = serde_saphyr::from_str(&fs::read_to_string(folder.join(file)).unwrap()).unwrap();
        config[list].as_array_mut().unwrap().extend(example[list].as_array().unwrap().clone());
        config
    };
    fs::write(folder.join("rules.yaml"), add("rules.yaml", "rules").to_string()).unwrap();
    let mut config = add("doorward.yaml", "issuers");
    config["tokens"] = example["tokens"].clone();
    let check = |config: &Value| {
        fs::write(folder.join("doorward.yaml"), config.to_string()).unwrap();
        let output = doorward(&["check"]).arg(&folder).envs(environment.clone()).output().unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let (good, said) = check(&config);
    assert!(good && !said.contains("warning"), "{said}");
    // Otherwise each would create keys of its own.
    config["tokens"].as_object_mut().unwrap().remove("keys");
    let (good, said) = check(&config);
    assert!(!good && said.contains("tokens need `keys`, the same on every replica"), "{said}");
}

#[test]
fn the_shipped_configurations_are_good_and_their_cases_decided_as_they_say() {
    for overlay in OVERLAYS {
        let objects = objects(&built(overlay));
        let root = pod(&objects);
        let container = &find(&objects, "StatefulSet", "doorward")["spec"]["template"]["spec"]["containers"][0];
        // The store shared by replicas, as shipped.
        let valkey = (overlay == "replicas").then(|| valkey(&objects, root.path()));
        let environment = environment(container, root.path(), valkey.as_ref());
        assert_eq!(environment.len(), if overlay == "single" { 1 } else { 2 });
        // A replica that does not answer yet must not be asked.
        let service = find(&objects, "Service", "doorward-interceptor");
        assert_eq!(service["spec"]["publishNotReadyAddresses"] == true, overlay == "single");
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
    assert_eq!(providers.len(), 5);
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

/// Regression: the guide made a CA certificate, which the doctor warns of, although the migration ends when the doctor
/// finds nothing.
#[test]
fn the_doctor_finds_nothing_in_the_certificate_of_the_interceptor_by_the_guide() {
    let objects = objects(&built("single"));
    let root = pod(&objects);
    let folder = root.path().join("etc/doorward/interceptor-tls");
    certificate_by_the_guide(&folder, "interceptor", "DNS:doorward-interceptor.doorward.svc");
    // Nothing listens there, and no other server is contacted.
    let asked = ["--only", "certificates", "--public", "https://localhost:1", "--format", "json"];
    let output = doorward(&["doctor"]).arg(root.path().join("etc/doorward/config")).args(asked).output().unwrap();
    let findings: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
    let is_of_it = |finding: &&Value| finding["subject"].as_str().unwrap().contains("interceptor-tls/tls.crt");
    let states: Vec<&Value> = findings.iter().filter(is_of_it).map(|finding| &finding["state"]).collect();
    assert_eq!(states, ["good"], "{findings:#?}");
}

#[test]
fn the_shipped_roles_are_what_the_configuration_needs() {
    let output = doorward(&["rbac"]).arg(deploy().join("base/config")).output().unwrap();
    let shipped = fs::read_to_string(deploy().join("base/rbac.yaml")).unwrap();
    assert_eq!(
        String::from_utf8(output.stdout).unwrap(),
        shipped,
        "write it anew: doorward rbac deploy/base/config --out deploy/base/rbac.yaml"
    );
}

pub(super) fn administrator(api: &ApiServer, namespace: &str) -> Kubectl {
    Kubectl::new(&format!("https://{}", api.address), &api.authority.pem(), &api.admin_token, namespace)
}

#[tokio::test]
async fn the_api_server_takes_all_that_is_shipped() {
    Tekton::get().await;
    let api = ApiServer::get().await;
    let kubectl = administrator(api, "default");
    // A dry run creates no namespaces, and other objects need them.
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
        let output = found(async || {
            let output = kubectl.output(&["apply", "--dry-run=server", "-f", "all.yaml"]).await;
            // Another test created an object with that name after kubectl had looked for it.
            Some(output).filter(|output| !String::from_utf8_lossy(&output.stderr).contains("AlreadyExists"))
        })
        .await;
        let (said, warned) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success() && warned.is_empty(), "{overlay}: {said}{warned}");
        let objects = objects(&yaml);
        assert_eq!(said.lines().count(), objects.len(), "{said}");
        // The API server's own check of a pod under the strictest Pod Security Standard.
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
    for example in ["ingress.yaml", "load-balancer.yaml"] {
        let example = deploy().join("examples").join(example).display().to_string();
        kubectl.run(&["apply", "--dry-run=server", "-f", &example]).await;
    }
    for kind in ["httproutes", "backendtlspolicies"] {
        let definition = programs::gateway().join(format!("gateway.networking.k8s.io_{kind}.yaml"));
        kubectl.run(&["apply", "--server-side", "-f", &definition.display().to_string()]).await;
        let name = format!("crd/{kind}.gateway.networking.k8s.io");
        kubectl.run(&["wait", "--for=condition=Established", &name]).await;
    }
    let route = deploy().join("examples/http-route.yaml").display().to_string();
    // Unknown fields are an error, not a warning.
    kubectl.run(&["apply", "--dry-run=server", "--validate=strict", "-f", &route]).await;
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
    let pod = first_pod(api, &namespace).await;
    let arguments: Vec<&str> =
        pod["spec"]["containers"][0]["args"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    let asked =
        |name: &str| -> Vec<&str> { arguments.iter().filter_map(|argument| argument.strip_prefix(name)).collect() };
    let scopes = asked("--scope=");
    assert_eq!(scopes, ["push:acme/app", "pull:acme/app"], "a registry wants both of who pushes");
    takes(&arguments);
    // The step asks for what the example of a policy grants this task.
    let case = |scope: &str| {
        json!({
            "name": "the task that is shipped",
            "principal": {"issuer": "company", "groups": ["developers"]},
            "request": {"token": {
                "audience": asked("--audience=")[0],
                "scope": scope,
                "task": {
                    "namespace": "ci",
                    "service_account": pod["spec"]["serviceAccountName"],
                    "pipeline": pod["metadata"]["labels"]["tekton.dev/pipeline"],
                    "pipeline_task": pod["metadata"]["labels"]["tekton.dev/pipelineTask"],
                },
            }},
            "expect": {"outcome": "allow", "rule": "release-pushes"},
        })
    };
    let cases: Vec<Value> = scopes.iter().map(|scope| case(scope)).collect();
    let tests = kubectl.write("tests.yaml", &json!({"tests": cases}).to_string());
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/examples/workload-tokens.yaml");
    let output = doorward(&["test"]).arg(example).arg("--tests").arg(tests).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stdout));
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
async fn a_task_can_refer_to_the_step_that_is_shipped() {
    Tekton::get().await;
    let api = ApiServer::get().await;
    let namespace = api.namespace().await;
    api.account(&namespace, "builder").await;
    let kubectl = administrator(api, &namespace);
    kubectl.run(&["create", "-f", &deploy().join("tekton/step-action.yaml").display().to_string()]).await;
    let param = |name: &str, value: &str| json!({"name": name, "value": value});
    let run = json!({
        "apiVersion": "tekton.dev/v1",
        "kind": "TaskRun",
        "metadata": {"name": "refers"},
        "spec": {
            "serviceAccountName": "builder",
            "taskSpec": {"steps": [{
                "name": "token",
                "ref": {"name": "doorward-token"},
                "params": [
                    param("server", "https://tekton.example.com"),
                    param("audience", "https://api.example.com"),
                    param("scope", "deploy"),
                    param("subject", "/var/run/secrets/doorward"),
                    param("out", "/tekton/home/token"),
                ],
            }]},
        },
    });
    api.create(&format!("/apis/tekton.dev/v1/namespaces/{namespace}/taskruns"), &run).await;
    let pod = first_pod(api, &namespace).await;
    let step = &pod["spec"]["containers"][0];
    let arguments: Vec<&str> = step["args"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    let (_, command) = arguments.split_at(arguments.iter().position(|argument| *argument == "--").unwrap() + 1);
    let expected = "token --audience=https://api.example.com --scope=deploy --as=token --registry= --cluster= --out=/tekton/home/token";
    assert_eq!(command.join(" "), expected);
    let env = step["env"].as_array().unwrap();
    assert!(env.contains(&param("DOORWARD_SERVER", "https://tekton.example.com")), "{env:?}");
    assert!(env.contains(&param("DOORWARD_SUBJECT_TOKEN_FILE", "/var/run/secrets/doorward/token")), "{env:?}");
    takes(&arguments);
}

/// The program accepts the exact arguments with which Tekton's entrypoint runs it.
fn takes(arguments: &[&str]) {
    let (_, command) = arguments.split_at(arguments.iter().position(|argument| *argument == "--").unwrap() + 1);
    let mut program = doorward(command);
    program.env("DOORWARD_SERVER", "https://127.0.0.1:1").env("DOORWARD_SUBJECT_TOKEN_FILE", "/no/such/token");
    let said = String::from_utf8_lossy(&program.output().unwrap().stderr).into_owned();
    // It gets as far as to what exists only in a pod.
    let is_missing = ["/no/such/token", "/tekton/home/token"].iter().any(|file| said.contains(file));
    assert!(is_missing && !said.contains("Usage"), "{command:?}: {said}");
}

/// The first lines of `docs/workload-identity.md`, in an otherwise empty run and step.
#[tokio::test]
async fn seven_lines_give_an_existing_pipeline_its_first_token() {
    Tekton::get().await;
    let api = ApiServer::get().await;
    let namespace = api.namespace().await;
    let guide = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/workload-identity.md");
    let guide = fs::read_to_string(guide).unwrap();
    let (_, block) = guide.split_once("```yaml\n").unwrap();
    let (block, _) = block.split_once("```").unwrap();
    assert_eq!(block.lines().filter(|line| !line.starts_with('#')).count(), 7);
    let (of_run, of_step) = block.split_once("# Task, in the step:\n").unwrap();
    let spec: Value = serde_saphyr::from_str(of_run).unwrap();
    let mut step: Value = serde_saphyr::from_str(of_step).unwrap();
    step["name"] = json!("deploy");
    step["image"] = json!("images.test/deploy");
    let mut run = json!({
        "apiVersion": "tekton.dev/v1",
        "kind": "PipelineRun",
        "metadata": {"name": "existing"},
        "spec": {"pipelineSpec": {"tasks": [{"name": "deploy", "taskSpec": {"steps": [step]}}]}},
    });
    run["spec"].as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
    api.create(&format!("/apis/tekton.dev/v1/namespaces/{namespace}/pipelineruns"), &run).await;

    let pod = first_pod(api, &namespace).await;
    let container = &pod["spec"]["containers"][0];
    let env = container["env"].as_array().unwrap();
    let server = &env.iter().find(|variable| variable["name"] == "DOORWARD_SERVER").unwrap()["value"];
    let volumes = pod["spec"]["volumes"].as_array().unwrap();
    let volume = volumes.iter().find(|volume| volume["name"] == "identity").unwrap();
    let token = &volume["projected"]["sources"][0]["serviceAccountToken"];
    assert_eq!((&token["audience"], &token["path"]), (server, &json!("token")), "made out to the server that is asked");
    let mounts = container["volumeMounts"].as_array().unwrap();
    let mount = mounts.iter().find(|mount| mount["name"] == "identity").unwrap();
    let arguments: Vec<&str> = container["args"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    let entrypoint: Vec<&str> = arguments.split(|argument| *argument == "--").next().unwrap().to_vec();
    let program = entrypoint.iter().position(|argument| *argument == "-entrypoint").map(|at| entrypoint[at + 1]);
    assert_eq!(program, Some("doorward"), "{arguments:?}");
    let (_, command) = arguments.split_at(arguments.iter().position(|argument| *argument == "--").unwrap() + 1);
    // The program accepts these exact arguments, and looks for the token where it is mounted.
    let said = doorward(command).env("DOORWARD_SERVER", server.as_str().unwrap()).output().unwrap();
    let said = String::from_utf8_lossy(&said.stderr).into_owned();
    assert!(said.contains(&format!("{}/token", mount["mountPath"].as_str().unwrap())), "{said}");
}

/// Waits for the only pod of a namespace.
async fn first_pod(api: &ApiServer, namespace: &str) -> Value {
    let pods = format!("/api/v1/namespaces/{namespace}/pods");
    found(async || api.read(&pods).await["items"].get(0).cloned()).await
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
    let impersonator = "--clusterrole=doorward-impersonator";
    kubectl.run(&["create", "clusterrolebinding", "oops", impersonator, "--user=mallory"]).await;
    let told = "too wide  ClusterRoleBinding oops gives User mallory the ClusterRole doorward-impersonator, which is Doorward's own\n";
    assert_eq!(check().await, (Some(1), told.to_owned()));
    kubectl.run(&["delete", "clusterrolebinding", "oops"]).await;
}

#[test]
fn the_image_has_the_program_that_was_built_for_a_named_target() {
    let text = fs::read_to_string(deploy().join("Dockerfile")).unwrap();
    assert!(text.contains("+crt-static"));
    // Otherwise the flags would also apply to procedural macros, which cannot be static.
    assert!(text.lines().filter(|line| line.contains("cargo build")).all(|line| line.contains("--target \"$target\"")));
    let made = text
        .split("strip -o ")
        .nth(1)
        .and_then(|rest| rest.split_once(" \"target/$target/release/doorward\""))
        .unwrap()
        .0;
    assert!(text.contains(&format!("COPY --from=build --chmod=0555 {made} /usr/local/bin/doorward\n")), "{made}");
}

/// The API server rules for people, with the names of this test instead of those that an installation changes.
fn shipped_rules() -> String {
    let shipped = fs::read_to_string(deploy().join("base/config/rules.yaml")).unwrap();
    let mut policy: Value = serde_saphyr::from_str(&shipped).unwrap();
    let rules = policy["rules"].as_array_mut().unwrap();
    rules.retain(|rule| ["discovery", "who-am-i", "look", "run"].contains(&rule["id"].as_str().unwrap()));
    assert_eq!(rules.len(), 4);
    let rules = json!({"rules": rules}).to_string();
    let named =
        [("\"company\"", "\"a\""), ("\"engineering\"", "\"dev\""), ("\"builders\"", "\"dev\""), ("\"ci\"", "\"{ns}\"")];
    named.iter().fold(rules, |rules, (there, here)| rules.replace(there, here))
}

#[tokio::test]
async fn kubectl_works_by_the_shipped_rules_and_does_no_more() {
    Tekton::get().await;
    let change = |yaml: String| {
        let mut root: Value = serde_saphyr::from_str(&yaml).unwrap();
        let shipped: Value = serde_json::from_str(&shipped_rules()).unwrap();
        root["rules"] = shipped["rules"].clone();
        root.to_string()
    };
    let world = World::with(change).await;
    let kubectl = world.kubectl("alice");
    assert!(kubectl.run(&["auth", "whoami"]).await.contains("alice"));
    assert_eq!(kubectl.run(&["auth", "can-i", "create", "pipelineruns.tekton.dev"]).await.trim(), "yes");
    kubectl.write("run.json", &pipeline_run("run", &json!({})).to_string());
    kubectl.run(&["create", "-f", "run.json"]).await;
    assert!(kubectl.run(&["get", "pipelineruns"]).await.contains("run"));
    kubectl.run(&["api-resources"]).await;
    for refused in [&["get", "pipelineruns", "-A"][..], &["get", "secrets"], &["delete", "pipelinerun", "run"]] {
        let said = kubectl.fails(refused).await;
        assert!(said.contains("rule"), "{refused:?}: {said}");
    }
}
