//! What the userinfo endpoint of a provider tells (OpenID Connect Core 1.0 section 5.3), among the claims of a session.
//!
//! A session remembers the names of claims that came from there, as what is not told any more is gone.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

/// Claims that are about a token, or about the login, and not about the person.
const PROTOCOL: [&str; 20] = [
    "iss",
    "sub",
    "aud",
    "exp",
    "iat",
    "nbf",
    "jti",
    "sid",
    "auth_time",
    "nonce",
    "acr",
    "amr",
    "azp",
    "at_hash",
    "c_hash",
    "s_hash",
    "client_id",
    "act",
    "may_act",
    "cnf",
];

/// Takes what the userinfo endpoint tells and the ID token does not, in place of what it told before.
pub fn complete(claims: &mut Map<String, Value>, names: &mut BTreeSet<String>, told: &Map<String, Value>) {
    for name in std::mem::take(names) {
        claims.remove(&name);
    }
    if told.contains_key("email") && !claims.contains_key("email") {
        // Whose address it is says whether it is verified.
        claims.remove("email_verified");
    }
    let is_another_address = claims.get("email").is_some_and(|ours| Some(ours) != told.get("email"));
    for (name, value) in told {
        let is_about_the_token = PROTOCOL.contains(&name.as_str());
        if is_about_the_token || claims.contains_key(name) || (name == "email_verified" && is_another_address) {
            continue;
        }
        claims.insert(name.clone(), value.clone());
        names.insert(name.clone());
    }
}

/// The names of what the userinfo endpoint tells and the claims have as well.
pub fn known<'a>(claims: &Map<String, Value>, told: &'a Map<String, Value>) -> impl Iterator<Item = &'a String> {
    told.keys().filter(move |name| !PROTOCOL.contains(&name.as_str()) && claims.contains_key(*name))
}

/// Takes from what the userinfo endpoint tells only what the login knew as well: a claim from elsewhere never stands for one that policy
/// was written for. What it told before, by `names` or as it has `named` it elsewhere, and does not tell any more is gone; many tell only
/// in the ID token what groups there are.
pub(super) fn follow(
    claims: &mut Map<String, Value>,
    names: &mut BTreeSet<String>,
    named: &BTreeSet<String>,
    told: &Map<String, Value>,
) {
    names.extend(known(claims, told).cloned());
    names.extend(named.iter().filter(|name| claims.contains_key(*name)).cloned());
    let email = claims.get("email").cloned();
    for name in names.iter() {
        match told.get(name) {
            Some(value) => drop(claims.insert(name.clone(), value.clone())),
            None => drop(claims.remove(name)),
        }
    }
    // The login said so of another address.
    if claims.get("email") != email.as_ref() && !told.contains_key("email_verified") {
        claims.remove("email_verified");
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_address_is_verified_by_who_tells_of_it() {
        for (row, ours, told, verified) in [
            ("userinfo alone", json!({}), json!({"email": "a@b.c", "email_verified": true}), true),
            ("the same", json!({"email": "a@b.c"}), json!({"email": "a@b.c", "email_verified": true}), true),
            ("another", json!({"email": "a@b.c"}), json!({"email": "boss@b.c", "email_verified": true}), false),
            ("of no address", json!({"email": "a@b.c"}), json!({"email_verified": true}), false),
            ("before it is told", json!({"email_verified": true}), json!({"email": "a@b.c"}), false),
        ] {
            let mut claims = ours.as_object().unwrap().clone();
            complete(&mut claims, &mut BTreeSet::new(), told.as_object().unwrap());
            assert_eq!(claims["email"], "a@b.c", "{row}");
            assert_eq!(claims.contains_key("email_verified"), verified, "{row}");
        }
    }

    /// Both `groups` of the login and those of others were told; the session was not asked about in between.
    #[test]
    fn what_userinfo_has_named_and_names_no_more_is_gone_and_comes_back_when_it_is_named_again() {
        let told = |told: Value| told.as_object().unwrap().clone();
        let mut claims = told(json!({"groups": ["dev"], "team": "a"}));
        let mut names = BTreeSet::new();
        let named = BTreeSet::from(["groups".to_owned(), "nickname".to_owned()]);
        for (row, tells, groups) in [
            ("not any more", json!({}), None),
            ("again", json!({"groups": ["release"], "nickname": "al"}), Some(json!(["release"]))),
            ("nor later", json!({}), None),
        ] {
            follow(&mut claims, &mut names, &named, &told(tells));
            assert_eq!(claims.get("groups"), groups.as_ref(), "{row}");
            assert_eq!(
                (&claims["team"], claims.get("nickname")),
                (&json!("a"), None),
                "{row}: of these it said nothing"
            );
        }
    }

    #[test]
    fn what_a_token_says_of_itself_and_of_the_login_is_of_no_other() {
        let mut claims = Map::new();
        let mut names = BTreeSet::new();
        let told =
            PROTOCOL.iter().map(|name| ((*name).to_owned(), json!("x"))).chain([("nickname".to_owned(), json!("x"))]);
        complete(&mut claims, &mut names, &told.collect());
        assert_eq!(claims.keys().collect::<Vec<_>>(), ["nickname"]);
        assert_eq!(names.iter().collect::<Vec<_>>(), ["nickname"]);
    }
}
