//! kubectl with a credential from `doorward login`.

use serde_json::json;

use super::{
    programs,
    world::{Front, Setup, World},
};
use crate::{
    fixture::Change,
    harness::{browse, within},
    login::Shell,
};

#[tokio::test]
async fn kubectl_acts_as_whoever_ran_doorward_login_until_the_session_ends() {
    login(Front::Own(0)).await;
}

/// With kubectl, a browser and `doorward login` that use Doorward at `front`.
pub(super) async fn login(front: Front) {
    let change = |yaml: String| {
        yaml.change("kind: human}", "kind: human, login: {client: {id: doorward, secret: {file: client}}}}")
            .change("schemes: [bearer]", "schemes: [session]")
            .change("rules:\n", "rules:\n  - {id: me, on: {routes: [api]}, who: {users: [alice]}, do: allow}\n")
            .change("grants:\n", "grants:\n  - {id: me, who: {users: [alice]}, kubernetes_groups: ['tekton:dev']}\n")
    };
    let world = World::set_up(Setup { front, files: &[("client", "client-secret")], ..Setup::default() }, change).await;
    let shell = Shell::new();
    let url = world.origin();
    let ca = world.doorward.dir().join("ca.pem");
    let (mut child, _lines, page, _) =
        shell.login(&["--kubeconfig", "build", "--ca", ca.to_str().unwrap(), &url]).await;
    let saw = browse(&json!({"scenario": "program", "url": page})).await;
    assert!(saw["told"].as_str().unwrap().contains("As alice"), "{saw}");
    assert!(within(child.wait()).await.unwrap().success());

    let kubectl = async |arguments: &[&str]| {
        let output = within(shell.command_of(&programs::path("kubectl"), arguments).output()).await.unwrap();
        (output.status.success(), String::from_utf8([output.stdout, output.stderr].concat()).unwrap())
    };
    let (done, who) = kubectl(&["auth", "whoami", "-o", "jsonpath={.status.userInfo.username}"]).await;
    assert!(done && who == "alice", "{who}");
    let (done, said) = kubectl(&["create", "configmap", "mine", "-n", &world.namespace]).await;
    assert!(done, "{said}");
    world.assert_sent_as(&["alice"]).await;

    let person = ["sessions", "end", "--issuer", "a", "--subject", "alice", "--why", "laptop lost"];
    assert_eq!(world.doorward.operator(&person).await.0, Some(0));
    let (done, said) = kubectl(&["get", "configmaps", "-n", &world.namespace]).await;
    assert!(!done && said.contains(&format!("has ended; run `doorward login {url} --ca {}`", ca.display())), "{said}");
}
