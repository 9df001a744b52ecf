//! The canonical form of a policy, from which its digest is computed.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::config::raw;

/// Returns the providers' names of scopes, by audience and by our names, for audiences where any scope has another
/// name.
pub(super) fn scopes_of(root: &raw::Root) -> BTreeMap<String, BTreeMap<String, String>> {
    let onwards = root.onward().filter(|onward| !onward.scopes.is_empty());
    onwards.map(|onward| (onward.audience.clone(), onward.scopes.clone())).collect()
}

/// Returns the canonical form of everything that decides, except facts about issuers. The same policy has the same
/// digest, however it is written.
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

/// Keys that mean the same whether they are absent or empty. Everywhere else an empty object is a condition:
/// `kubernetes: {}` asks for a Kubernetes request, `on_behalf_of: {}` for a person behind an agent.
pub const SAME_WITHOUT: [&str; 5] = ["on", "who", "claims", "params", "labels"];

/// Removes what is not set. Values of claims stay as they are, and so do `false` and `{}` where they are conditions
/// (`fork: false`, `run: {}`).
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
