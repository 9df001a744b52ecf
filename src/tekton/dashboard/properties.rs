//! `/v1/properties`: the features that the Dashboard's pages offer. It is rewritten for each person, so that pages show
//! no buttons that would only lead to a refusal.

use std::sync::Arc;

use serde_json::{Map, Value};

/// The largest body. Properties have about 300 bytes.
pub const MAX_PROPERTIES: usize = 64 << 10;

/// What a person may see and do, as far as the pages need it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sight {
    /// The namespaces whose runs the person may see; `None`: all.
    pub namespaces: Option<Vec<Arc<str>>>,
    /// Whether the person may create runs in any of them.
    pub may_create: bool,
    /// The sign-out address; `None` for callers with a token, who cannot sign out.
    pub sign_out: Option<&'static str>,
}

/// Writes what a person may see and do into the back end's answer. It only restricts: what the back end is configured
/// to hide stays hidden.
pub fn rewrite(body: &[u8], sight: &Sight) -> Result<Vec<u8>, String> {
    let mut properties: Map<String, Value> =
        serde_json::from_slice(body).map_err(|error| format!("the properties are not a JSON object: {error}"))?;
    let is_read_only = match properties.get("isReadOnly") {
        None => false,
        Some(Value::Bool(is_read_only)) => *is_read_only,
        Some(_) => return Err("`isReadOnly` is neither true nor false".to_owned()),
    };
    properties.insert("isReadOnly".to_owned(), Value::Bool(is_read_only || !sight.may_create));
    match sight.sign_out {
        Some(address) => drop(properties.insert("logoutURL".to_owned(), address.into())),
        None => drop(properties.remove("logoutURL")),
    }
    let own = namespaces(&properties)?;
    let shown: Option<Vec<String>> = match (&sight.namespaces, own) {
        (None, own) => own,
        (Some(seen), None) => Some(seen.iter().map(|name| name.as_ref().to_owned()).collect()),
        (Some(seen), Some(own)) => {
            Some(own.into_iter().filter(|name| seen.iter().any(|seen| **seen == **name)).collect())
        }
    };
    if let Some(shown) = shown {
        let is_shown = |name: &Value| name.as_str().is_some_and(|name| shown.iter().any(|shown| shown == name));
        if !properties.get("defaultNamespace").is_none_or(is_shown) {
            properties.remove("defaultNamespace");
        }
        properties.insert("tenantNamespaces".to_owned(), shown.into());
    }
    serde_json::to_vec(&properties).map_err(|error| error.to_string())
}

/// The namespaces that the back end is limited to. It omits the list if there is none.
fn namespaces(properties: &Map<String, Value>) -> Result<Option<Vec<String>>, String> {
    let list = match properties.get("tenantNamespaces") {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::Array(list)) => list,
        Some(_) => return Err("`tenantNamespaces` is not a list".to_owned()),
    };
    let names: Option<Vec<String>> = list.iter().map(|name| name.as_str().map(str::to_owned)).collect();
    let names = names.ok_or("`tenantNamespaces` contains an entry that is not a name")?;
    Ok((!names.is_empty()).then_some(names))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn rewritten(body: &Value, sight: &Sight) -> Value {
        serde_json::from_slice(&rewrite(body.to_string().as_bytes(), sight).unwrap()).unwrap()
    }

    #[test]
    fn pages_offer_what_the_person_may_do() {
        let backend =
            json!({"dashboardVersion": "v0.60.0", "isReadOnly": false, "streamLogs": true, "logoutURL": "/elsewhere"});
        let all = Sight { namespaces: None, may_create: true, sign_out: Some("/oauth2/sign_out") };
        let expected = json!({"dashboardVersion": "v0.60.0", "isReadOnly": false, "streamLogs": true, "logoutURL": "/oauth2/sign_out"});
        assert_eq!(rewritten(&backend, &all), expected);
        let little = Sight { namespaces: Some(vec!["team-a".into()]), may_create: false, sign_out: None };
        let expected = json!({"dashboardVersion": "v0.60.0", "isReadOnly": true, "streamLogs": true, "tenantNamespaces": ["team-a"]});
        assert_eq!(rewritten(&backend, &little), expected);
    }

    #[test]
    fn properties_that_the_back_end_hides_stay_hidden() {
        let backend = json!({"isReadOnly": true, "tenantNamespaces": ["b", "c"], "defaultNamespace": "c"});
        let sight = Sight { namespaces: Some(vec!["a".into(), "b".into()]), may_create: true, sign_out: None };
        assert_eq!(rewritten(&backend, &sight), json!({"isReadOnly": true, "tenantNamespaces": ["b"]}));
        let all = Sight { namespaces: None, may_create: true, sign_out: None };
        assert_eq!(rewritten(&backend, &all), backend);
    }

    #[test]
    fn properties_that_cannot_be_read_are_not_passed_on() {
        let sight = Sight::default();
        for body in
            ["", "[]", "<html>", r#"{"isReadOnly":"no"}"#, r#"{"tenantNamespaces":"a"}"#, r#"{"tenantNamespaces":[1]}"#]
        {
            assert!(rewrite(body.as_bytes(), &sight).is_err(), "{body}");
        }
    }
}
