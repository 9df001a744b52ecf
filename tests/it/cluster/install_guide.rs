//! Commands of `docs/install.md` and `docs/upkeep.md`, run as they are printed there.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Output,
};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use serde_json::Value;
use tokio::process::Command;

use super::{
    api_server::ApiServer,
    manifests::built_beside,
    programs,
    shipped::{administrator, built, deploy, find, objects},
};
use crate::{fixture::Change, harness::Authority};

/// The shell commands after a heading, except lines that begin with one of `left_out`.
fn lines_after(heading: &str, left_out: &[&str]) -> String {
    let guide = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/install.md")).unwrap();
    let (_, part) = guide.split_once(&format!("\n## {heading}\n")).unwrap();
    let (_, rest) = part.split_once("```sh\n").unwrap();
    let (block, _) = rest.split_once("```").unwrap();
    let kept = block.lines().filter(|line| !left_out.iter().any(|start| line.starts_with(start)));
    kept.map(|line| format!("{line}\n")).collect()
}

/// Runs commands up to the first that fails, with the program of this build and kubectl.
async fn shell(lines: &str, mut command: Command) -> Output {
    let programs = [Path::new(env!("CARGO_BIN_EXE_doorward")), &programs::path("kubectl")];
    let folders = programs.map(|program| program.parent().unwrap().to_owned());
    let inherited = std::env::var_os("PATH").unwrap_or_default();
    let path: Vec<PathBuf> = folders.into_iter().chain(std::env::split_paths(&inherited)).collect();
    command.env("PATH", std::env::join_paths(path).unwrap()).args(["-euc", lines]).output().await.unwrap()
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
    }
}

#[tokio::test]
async fn ci_checks_tests_and_compares_a_policy_without_any_of_its_secrets() {
    let (repository, config) = (tempfile::tempdir().unwrap(), deploy().join("base/config"));
    let [before, after] = ["before/deploy/base/config", "deploy/base/config"].map(|path| repository.path().join(path));
    copy(&config, &before);
    copy(&config, &after);
    // There is no Git repository here; its content is provided instead.
    let lines = lines_after("Changing the policy", &["git worktree"]);
    assert_eq!(lines.lines().count(), 3, "{lines}");
    let run = async || {
        let mut command = Command::new("sh");
        command.current_dir(repository.path());
        let output = shell(&lines, command).await;
        let said = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8(said).unwrap())
    };
    let (code, said) = run().await;
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("doorward.yaml is good: 2 listeners") && !said.contains("warning"), "{said}");

    let change = |file: &str, there: &str, here: &str| {
        let text = fs::read_to_string(config.join(file)).unwrap();
        fs::write(after.join(file), text.change(there, here)).unwrap();
    };
    // Each step finds the change it is for.
    change("rules.yaml", "why: Builders start", "why: They start");
    let (code, said) = run().await;
    assert!(code == Some(1) && said.contains("They start"), "it is another policy: {said}");
    change("rules.yaml", "        namespaces: [ci]\n", "");
    let (code, said) = run().await;
    assert!(code == Some(1) && said.contains("7 of 8 cases"), "a case is decided otherwise: {said}");
    change("rules.yaml", "who: {webhooks: [github], ", "who: {webhooks: [gitlab], ");
    let (code, said) = run().await;
    assert!(code == Some(64) && said.contains("gitlab"), "{said}");
    change("rules.yaml", "why: Builders start", "why: They start");
    change("doorward.yaml", "upstream: el-build", "upstream: el-other");
    let (code, said) = run().await;
    assert!(code == Some(64) && said.contains("el-other"), "{said}");
    // Can be detected only at a start.
    change("doorward.yaml", "upstream: el-build", "upstream: el-build");
    let check = |more: &[&str]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_doorward"));
        command.arg("check").args(more).arg(&after).output().unwrap()
    };
    assert_eq!(check(&["--without-files"]).status.code(), Some(0));
    let output = check(&[]);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(64), "{said}");
    assert!(said.contains("/etc/doorward/secrets/session-key") && said.contains("/run/doorward"), "{said}");
}

#[tokio::test]
async fn the_proxies_of_the_examples_find_the_authority_of_the_certificate() {
    let api = ApiServer::get().await;
    let namespace = api.namespace().await;
    let kubectl = administrator(api, &namespace);
    let authority = Authority::new();
    let folder = kubectl.write("ca.crt", &authority.pem()).parent().unwrap().to_owned();
    authority.issue(&["tekton.example.com"]).write(&folder, "tls");
    fs::rename(folder.join("tls.pem"), folder.join("tls.crt")).unwrap();
    let secrets = lines_after("4. Secrets and certificates", &[]);
    let made = secrets.lines().find(|line| line.contains("secret tls doorward-tls ")).unwrap();
    let lines = format!("{made}\n{}", lines_after("8. A way in", &[]));
    let lines = lines.replace("-n doorward", &format!("-n {namespace}"));
    let mut command = Command::new("sh");
    let of_kubectl = kubectl.command(&[]);
    let environment = of_kubectl.as_std().get_envs().filter_map(|(name, value)| Some((name, value?)));
    command.envs(environment).current_dir(&folder);
    let output = shell(&lines, command).await;
    assert!(output.status.success(), "{lines}: {}", String::from_utf8_lossy(&output.stderr));
    let found = async |object: &str| kubectl.run(&["get", object, "-o", "jsonpath={.data.ca\\.crt}"]).await;
    assert_eq!(BASE64.decode(found("secret/doorward-ca").await).unwrap(), authority.pem().as_bytes());
    assert_eq!(found("configmap/doorward-ca").await, authority.pem());
}

/// Users who were told to change it by a patch got everything of an upgrade except its image.
#[tokio::test]
async fn a_volume_cannot_be_resized_by_changing_the_stateful_set_and_the_page_shows_how() {
    let page = fs::read_to_string(deploy().join("../docs/upkeep.md")).unwrap();
    let (_, part) = page.split_once("\n## When a volume is too small\n").unwrap();
    let (overlay, rest) = part.split_once("```yaml\n# the overlay\n").unwrap().1.split_once("```").unwrap();
    let api = ApiServer::get().await;
    let kubectl = administrator(api, &api.namespace().await);
    let write = |name: &str, patches: &str| {
        let objects = built_beside(&format!("resources: [DEPLOY/overlays/single]\n{patches}"), &[]);
        let mut set = find(&objects, "StatefulSet", "doorward").clone();
        set["metadata"].as_object_mut().unwrap().remove("namespace");
        kubectl.write(name, &set.to_string());
    };
    write("shipped.json", "");
    write("larger.json", overlay);
    kubectl.run(&["apply", "-f", "shipped.json"]).await;
    let said = kubectl.fails(&["apply", "-f", "larger.json"]).await;
    assert!(said.contains("updates to statefulset spec"), "{said}");
    let (commands, _) = rest.split_once("```sh\n").unwrap().1.split_once("```").unwrap();
    assert!(commands.contains("delete statefulset doorward --cascade=orphan"), "{commands}");
    // Nobody here would remove its pods, of which there are none.
    kubectl.run(&["delete", "statefulset", "doorward"]).await;
    kubectl.run(&["apply", "-f", "larger.json"]).await;
}

/// A provider behind an ingress of the cluster is reached at the pods of the ingress, whatever its name: the entry for
/// the provider's own pods let nothing through.
#[test]
fn the_guide_has_an_entry_of_the_network_policy_for_the_pods_of_an_ingress() {
    let guide = fs::read_to_string(deploy().join("../docs/install.md")).unwrap();
    let is_it = |line: &&str| line.starts_with("| a provider in the same cluster by its public name");
    let row = guide.lines().find(is_it).unwrap();
    let entry = row.split('`').find(|part| part.starts_with("- {ports: ")).unwrap();
    let entries: Value = serde_saphyr::from_str(entry).unwrap();
    let peer = &entries[0]["to"][0];
    assert!(peer["namespaceSelector"].is_object() && peer["podSelector"].is_object(), "{entries}");
}

/// Doorward takes revocations only while it runs, and the page left it reachable meanwhile: users revoked since the
/// snapshot got in.
#[tokio::test]
async fn a_restore_admits_nobody_until_later_revocations_are_repeated() {
    let page = fs::read_to_string(deploy().join("../docs/upkeep.md")).unwrap();
    let (_, restore) = page.split_once("\n## Restore\n").unwrap();
    let steps =
        ["--replicas=0", "\n6. Shut the way in", "\n7. Scale up again", "doorward revoke", "\n8. Open it again"];
    let places = steps.map(|step| restore.find(step).unwrap_or_else(|| panic!("no step {step}")));
    assert!(places.is_sorted(), "{places:?}");
    let step = |words: &str| {
        let (_, rest) = restore.split_once(words).unwrap();
        rest.split_once("```sh\n").unwrap().1.split_once("```").unwrap().0
    };

    let api = ApiServer::get().await;
    let namespace = api.namespace().await;
    let kubectl = administrator(api, &namespace);
    let objects = objects(&built("single"));
    let mut service = find(&objects, "Service", "doorward").clone();
    service["metadata"].as_object_mut().unwrap().remove("namespace");
    kubectl.write("service.json", &service.to_string());
    kubectl.run(&["apply", "-f", "service.json"]).await;
    let labels = &find(&objects, "StatefulSet", "doorward")["spec"]["template"]["metadata"]["labels"];
    for (step, leads) in [(step("6. Shut the way in"), false), (step("8. Open it again"), true)] {
        let lines = step.replace("-n doorward", &format!("-n {namespace}"));
        let mut command = Command::new("sh");
        let of_kubectl = kubectl.command(&[]);
        command.envs(of_kubectl.as_std().get_envs().filter_map(|(name, value)| Some((name, value?))));
        let output = shell(&lines, command).await;
        assert!(output.status.success(), "{lines}: {}", String::from_utf8_lossy(&output.stderr));
        let selector = kubectl.run(&["get", "service/doorward", "-o", "jsonpath={.spec.selector}"]).await;
        let selector: Value = serde_json::from_str(&selector).unwrap();
        let fits = selector.as_object().unwrap().iter().all(|(name, value)| labels[name] == *value);
        assert_eq!(fits, leads, "{selector}");
    }
}
