//! The differences between two configurations, one setting at a time. Entries of a list that have an `id` or `name` are
//! matched by it, whatever their position: the order of rules, grants and the like has no meaning.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use serde::Serialize;
use serde_json::Value;

/// A setting that differs.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Change {
    /// Its path, with the `id` or `name` in place of an index: `/rules/deploy/who/groups`.
    pub at: String,
    /// `None` if it was not set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub before: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after: Option<Value>,
}

/// Returns the changes from `before` to `after`. A null value counts as not set.
pub fn changes(before: &Value, after: &Value) -> Vec<Change> {
    let mut found = Vec::new();
    compare("", Some(before), Some(after), &mut found);
    found
}

fn compare(at: &str, before: Option<&Value>, after: Option<&Value>, found: &mut Vec<Change>) {
    let is_set = |value: &&Value| !value.is_null();
    let (before, after) = (before.filter(is_set), after.filter(is_set));
    if before == after
        || (has_no_order(at) && before.zip(after).is_some_and(|(before, after)| is_same_set(before, after)))
    {
        return;
    }
    let Some((before, after)) = before.and_then(parts).zip(after.and_then(parts)) else {
        found.push(Change { at: at.to_owned(), before: before.cloned(), after: after.cloned() });
        return;
    };
    let names: BTreeSet<&str> = before.keys().chain(after.keys()).copied().collect();
    for name in names {
        compare(&format!("{at}/{name}"), before.get(name).copied(), after.get(name).copied(), found);
    }
}

/// Whether the order of a list at this path has no meaning: conditions of rules and grants, and lists that are only
/// searched.
fn has_no_order(at: &str) -> bool {
    let name = at.rsplit('/').next().unwrap_or_default();
    at.starts_with("/rules/")
        || at.starts_with("/grants/")
        || ["algorithms", "methods", "token_types", "trusted_proxies"].contains(&name)
}

fn is_same_set(before: &Value, after: &Value) -> bool {
    let Some((before, after)) = before.as_array().zip(after.as_array()) else { return false };
    let within = |list: &[Value], other: &[Value]| list.iter().all(|value| other.contains(value));
    within(before, after) && within(after, before)
}

/// Returns the parts of a value by name; `None` for a scalar, and for a list whose entries have no names or not unique
/// ones.
fn parts(value: &Value) -> Option<BTreeMap<&str, &Value>> {
    let list = match value {
        Value::Object(map) => return Some(map.iter().map(|(name, value)| (name.as_str(), value)).collect()),
        Value::Array(list) => list,
        _ => return None,
    };
    let mut named = BTreeMap::new();
    for value in list {
        let name = ["id", "name"].into_iter().find_map(|key| value.get(key)?.as_str())?;
        if named.insert(name, value).is_some() {
            return None;
        }
    }
    Some(named)
}

/// `+ /rules/deploy {...}`, `- /rules/old {...}`, `~ /sessions/idle 8h -> 4h`; for a list of scalars, what was added
/// and removed.
impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = &self.at;
        match (&self.before, &self.after) {
            (None, Some(after)) => write!(f, "+ {at} {}", Short(after)),
            (Some(before), None) => write!(f, "- {at} {}", Short(before)),
            (None, None) => write!(f, "- {at}"),
            (Some(before @ Value::Array(_)), Some(after)) if is_same_set(before, after) => {
                write!(f, "~ {at} {} -> {}", Short(before), Short(after))
            }
            (Some(Value::Array(before)), Some(Value::Array(after))) => {
                write!(f, "~ {at}")?;
                for (sign, list, other) in [("-", before, after), ("+", after, before)] {
                    for value in list.iter().filter(|value| !other.contains(value)) {
                        write!(f, " {sign}{}", Short(value))?;
                    }
                }
                Ok(())
            }
            (Some(before), Some(after)) => write!(f, "~ {at} {} -> {}", Short(before), Short(after)),
        }
    }
}

/// A value on one line.
struct Short<'a>(&'a Value);

impl fmt::Display for Short<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Value::String(text) => f.write_str(text),
            // Settings that are not set are left out.
            Value::Object(map) => {
                f.write_str("{")?;
                let set = map.iter().filter(|(_, value)| !says_nothing(value));
                for (index, (key, value)) in set.enumerate() {
                    write!(f, "{}{key}: {}", if index == 0 { "" } else { ", " }, Short(value))?;
                }
                f.write_str("}")
            }
            Value::Array(list) => {
                f.write_str("[")?;
                for (index, value) in list.iter().enumerate() {
                    write!(f, "{}{}", if index == 0 { "" } else { ", " }, Short(value))?;
                }
                f.write_str("]")
            }
            other => write!(f, "{other}"),
        }
    }
}

fn says_nothing(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.values().all(says_nothing),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn each_changed_setting_is_reported_with_its_path() {
        let before = json!({
            "rules": [{"id": "a", "who": {"groups": ["dev", "ops"]}, "do": "allow"}, {"id": "b", "do": "deny"}],
            "sessions": {"idle": "8h", "absolute": null},
            "tests": [{"a": 1}, {"a": 2}],
        });
        let after = json!({
            "rules": [{"id": "c", "why": null, "who": {"groups": []}, "do": "allow"}, {"id": "a", "who": {"groups": ["sre", "dev"]}, "do": "allow"}],
            "sessions": {"idle": "4h"},
            "tests": [{"a": 1}],
        });
        let told: Vec<String> = changes(&before, &after).iter().map(ToString::to_string).collect();
        assert_eq!(
            told,
            [
                "~ /rules/a/who/groups -ops +sre",
                "- /rules/b {do: deny, id: b}",
                "+ /rules/c {do: allow, id: c}",
                "~ /sessions/idle 8h -> 4h",
                "~ /tests -{a: 2}",
            ]
        );
        let json = serde_json::to_value(changes(&before, &after)).unwrap();
        assert_eq!(json[3], json!({"at": "/sessions/idle", "before": "8h", "after": "4h"}));
    }

    #[test]
    fn the_order_of_what_has_a_name_is_no_difference() {
        let list = |names: [&str; 2]| json!({"grants": names.map(|name| json!({"id": name}))});
        assert!(changes(&list(["a", "b"]), &list(["b", "a"])).is_empty());
        let who = |groups: [&str; 2]| json!({"rules": [{"id": "a", "who": {"groups": groups}}]});
        assert!(changes(&who(["a", "b"]), &who(["b", "a"])).is_empty());
        assert_eq!(changes(&who(["a", "b"]), &who(["a", "a"])).len(), 1);
        let schemes = |schemes: [&str; 2]| json!({"routes": [{"name": "a", "schemes": schemes}]});
        let found = changes(&schemes(["bearer", "session"]), &schemes(["session", "bearer"]));
        let told: Vec<String> = found.iter().map(ToString::to_string).collect();
        assert_eq!(told, ["~ /routes/a/schemes [bearer, session] -> [session, bearer]"], "the first is asked first");
        assert_eq!(changes(&list(["a", "a"]), &list(["a", "b"])).len(), 1, "two of one name are compared as a whole");
    }
}
