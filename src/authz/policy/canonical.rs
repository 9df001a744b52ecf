//! What the digest of a policy is of: one form, however the policy is written down.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::config::raw;

/// What providers call scopes, by audience and by our names, where any has another name.
pub(super) fn scopes_of(root: &raw::Root) -> BTreeMap<String, BTreeMap<String, String>> {
    let onwards = root.onward().filter(|onward| !onward.scopes.is_empty());
    onwards.map(|onward| (onward.audience.clone(), onward.scopes.clone())).collect()
}

/// The canonical form of all that decides but what is known of issuers. Written down differently, the same policy has the same digest.
pub(super) fn canonical(root: &raw::Root, scopes_of: &BTreeMap<String, BTreeMap<String, String>>) -> String {
    let mut file = raw::PolicyFile {
        grants: root.grants.clone(),
        rules: root.rules.clone(),
        tests: Vec::new(),
        scopes_of: scopes_of.clone(),
    };
    file.rules.sort_by(|a, b| a.id.cmp(&b.id));
    let mut value = serde_json::to_value(&file).unwrap_or_default();
    prune(&mut value);
    // Maps of serde_json are sorted by key.
    value.to_string()
}

/// What means the same left out and written with nothing in it. Everywhere else an empty object is a condition: `kubernetes: {}`
/// asks for a request of Kubernetes, `on_behalf_of: {}` for a person behind an agent.
pub const SAME_WITHOUT: [&str; 5] = ["on", "who", "claims", "params", "labels"];

/// Takes away what is not set. The values of claims stay as they are, and so do `false` and `{}` where they ask for something (`fork:
/// false`, `run: {}`).
fn prune(value: &mut Value) {
    match value {
        Value::Object(map) => {
            for (_, value) in map.iter_mut().filter(|(key, _)| *key != "claims") {
                prune(value);
            }
            map.retain(|key, value| match value {
                Value::Null => false,
                Value::Bool(is_set) => *is_set || key != "anonymous",
                Value::Object(map) => !map.is_empty() || !SAME_WITHOUT.contains(&key.as_str()),
                _ => true,
            });
        }
        Value::Array(list) => list.iter_mut().for_each(prune),
        _ => {}
    }
}
