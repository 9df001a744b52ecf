//! What Doorward may do itself, as it finds out and tells.

use serde_json::json;

use super::world::{GROUP, World};
use crate::harness::within;

async fn tells(world: &World, text: &str) {
    within(async {
        while !world.doorward.admin("/readyz").await.text().contains(text) {
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_right_that_is_missing_is_told_until_it_is_there() {
    let grant = "grants:\n  - {id: more, who: {groups: [more]}, kubernetes_groups: ['tekton:more']}\n";
    let world = World::with(|yaml| yaml.replace("grants:\n", grant)).await;
    tells(&world, "Doorward may not impersonate groups tekton:more; `doorward rbac`").await;
    assert_eq!(world.doorward.admin("/readyz").await.status, 200, "it stops nobody");

    let account = json!({"kind": "ServiceAccount", "namespace": world.namespace, "name": "doorward"});
    let more = json!([{"apiGroups": [""], "resources": ["groups"], "verbs": ["impersonate"],
        "resourceNames": [GROUP, "tekton:more"]}]);
    world.api.allow_everywhere(&format!("{}-more", world.namespace), &account, &more).await;
    // It is asked again with the next generation.
    let path = world.doorward.dir().join("doorward.yaml");
    let yaml = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, yaml.replace("{id: more,", "{id: many,")).unwrap();
    within(async {
        while world.doorward.admin("/readyz").await.text().contains("may not impersonate") {
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    })
    .await;
}
