//! Rights that nothing in the configuration needs. Somebody who takes over Doorward has them too, so each is worth a
//! warning.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    Form,
    own::own_roles,
    right::{Right, Rights},
};
use crate::{
    config::raw,
    kubernetes::{PolicyRule, access_review::Access},
};

/// Far-reaching rights that may be allowed by an authorizer that lists no rules. Verb, API group, resource with its
/// sub-resource, name.
const FAR_REACHING: [(&str, &str, &str, &str); 14] = [
    ("*", "*", "*", ""),
    ("impersonate", "", "groups", "system:masters"),
    ("impersonate", "", "users", "system:admin"),
    ("list", "", "secrets", ""),
    ("create", "", "secrets", ""),
    ("create", "", "serviceaccounts/token", ""),
    ("create", "", "pods", ""),
    ("create", "", "pods/exec", ""),
    ("get", "", "pods/exec", ""),
    ("create", "tekton.dev", "pipelineruns", ""),
    ("create", "tekton.dev", "taskruns", ""),
    ("create", "rbac.authorization.k8s.io", "clusterrolebindings", ""),
    ("bind", "rbac.authorization.k8s.io", "clusterroles", ""),
    ("escalate", "rbac.authorization.k8s.io", "clusterroles", ""),
];

/// Replaces rights that nothing needs because the classic form is in use: removing those would leave the wide form.
const UNDONE: &str = "act by roles of the constrained form, which the classic one undoes (apply what `doorward rbac --form constrained`, \
                      with its other options as before, prints, or delete these roles to stay with the classic form)";

/// Returns the far-reaching rights that are not needed at the upstream `server`, to be asked about everywhere at once.
pub fn far_reaching(root: &raw::Root, server: &str, form: Form) -> Vec<Access> {
    let needed = needed(root, server, form);
    let all = FAR_REACHING.iter().map(|(verb, group, resource, name)| {
        let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
        Access {
            group: (*group).into(),
            resource: resource.into(),
            subresource: subresource.into(),
            name: (*name).into(),
            ..Access::new(*verb, "".into())
        }
    });
    let everywhere = Rights::of(&needed.everywhere);
    all.filter(|far| !everywhere.include(&Right::from(far))).collect()
}

/// Describes what Doorward may do and nothing needs at the upstream `server`, each right once and only the widest: from
/// the rules that the API server lists in each of [`namespaces`], and from the far-reaching rights that it confirms.
pub fn beyond(
    root: &raw::Root,
    server: &str,
    form: Form,
    rules: &[(String, Vec<PolicyRule>)],
    far_reaching: &[Access],
) -> Vec<String> {
    let needed = needed(root, server, form);
    let everywhere = Rights::of(&needed.everywhere);
    let mut at: BTreeMap<Right, Vec<&str>> = BTreeMap::new();
    let mut is_undone = false;
    for (namespace, rules) in rules {
        let given: BTreeSet<Right> = rules.iter().flat_map(Right::of).collect();
        let all_given = Rights::of(&given);
        let here = Rights::of(needed.within.get(namespace.as_str()).into_iter().flatten());
        let is_needed = |given: &Right| given.is_everybodys() || everywhere.include(given) || here.include(given);
        for right in given.iter().filter(|given| !is_needed(given)) {
            if form == Form::Classic && right.is_acting() {
                is_undone = true;
            } else if !all_given.include_more_than(right) {
                at.entry(right.clone()).or_default().push(namespace);
            }
        }
    }
    let listed = at.iter().map(|(right, namespaces)| match namespaces.len() == rules.len() {
        true => right.to_string(),
        false => format!("{right} in {}", namespaces.join(", ")),
    });
    let everywhere = |right: &Right| at.get(right).is_some_and(|namespaces| namespaces.len() == rules.len());
    let is_listed = |far: &&Access| {
        let far = Right::from(*far);
        at.keys().any(|right| right.covers(&far) && everywhere(right))
    };
    let further = far_reaching.iter().filter(|far| !is_listed(far)).map(|far| Right::from(far).to_string());
    let undone = is_undone.then(|| UNDONE.to_owned());
    undone.into_iter().chain(listed).chain(further).collect()
}

/// Returns the namespaces in which rights should be looked up: those where Doorward needs some, and one that represents
/// all others.
pub fn namespaces(root: &raw::Root, server: &str) -> Vec<String> {
    let needed = [Form::Classic, Form::Constrained].map(|form| needed(root, server, form));
    let named = needed.into_iter().flat_map(|needed| needed.within.into_keys());
    let all: BTreeSet<String> = named.chain(["default".to_owned()]).collect();
    all.into_iter().collect()
}

#[derive(Default)]
struct Needed {
    everywhere: Vec<Right>,
    within: BTreeMap<String, Vec<Right>>,
}

fn needed(root: &raw::Root, server: &str, form: Form) -> Needed {
    let mut needed = Needed::default();
    for (_, role) in own_roles(root, form).into_iter().filter(|(upstream, _)| *upstream == server) {
        let of = match role.namespace {
            Some(namespace) => needed.within.entry(namespace.to_owned()).or_default(),
            None => &mut needed.everywhere,
        };
        of.extend(role.rules.iter().flat_map(Right::of));
    }
    // By the same account, if `token_review.bearer` is Doorward's own token.
    let mut reviews = root.issuers.iter().filter_map(|issuer| issuer.token_review.as_ref());
    if reviews.any(|review| review.upstream == server) {
        needed.everywhere.extend(Right::of(&PolicyRule::new(
            &["authentication.k8s.io"],
            &["tokenreviews"],
            &["create"],
        )));
    }
    needed
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const CONFIGURATION: &str = "
routes: [{name: api, kind: kubernetes, hosts: [api.test], schemes: [bearer], upstream: cluster}]
grants: [{id: dev, who: {issuers: [a]}, kubernetes_groups: ['tekton:dev']}]
runs: {kubernetes: cluster, namespaces: [ci]}
";

    fn told(form: Form, rules: &[(&str, Value)], far: &[(&'static str, &'static str)]) -> Vec<String> {
        let root: raw::Root = serde_saphyr::from_str(CONFIGURATION).unwrap();
        let read = |(namespace, rules): &(&str, Value)| {
            ((*namespace).to_owned(), serde_json::from_value(rules.clone()).unwrap())
        };
        let rules: Vec<(String, Vec<PolicyRule>)> = rules.iter().map(read).collect();
        let far =
            far.iter().map(|(verb, resource)| Access { resource: (*resource).into(), ..Access::new(*verb, "".into()) });
        beyond(&root, "cluster", form, &rules, &far.collect::<Vec<_>>())
    }

    fn classic() -> Value {
        json!([
            {"apiGroups": [""], "resources": ["users"], "verbs": ["impersonate"]},
            {"apiGroups": [""], "resources": ["groups"], "verbs": ["impersonate"], "resourceNames": ["tekton:dev"]},
            {"apiGroups": ["authorization.k8s.io"], "resources": ["selfsubjectaccessreviews"], "verbs": ["create"]},
            {"nonResourceURLs": ["/api", "/api/*"], "verbs": ["get"]},
        ])
    }

    fn and(rules: Value, more: Value) -> Value {
        let (Value::Array(rules), Value::Array(more)) = (rules, more) else { panic!() };
        Value::Array([rules, more].concat())
    }

    #[test]
    fn needed_rights_and_those_of_everybody_are_not_excessive() {
        let runs = json!([{"apiGroups": ["tekton.dev"], "resources": ["pipelineruns", "taskruns"], "verbs": ["list", "watch"]}]);
        let listed = [("ci", and(classic(), runs.clone())), ("default", classic())];
        assert!(told(Form::Classic, &listed, &[]).is_empty());
        // A right that is needed in one namespace is not needed everywhere.
        let all = [("ci", and(classic(), runs.clone())), ("default", and(classic(), runs))];
        assert_eq!(told(Form::Classic, &all, &[])[0], "list pipelineruns of tekton.dev in default");
    }

    #[test]
    fn excess_rights_are_reported_once_in_their_widest_form() {
        let admin = json!([{"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]}, {"nonResourceURLs": ["*"], "verbs": ["*"]}]);
        let listed = [("ci", and(classic(), admin.clone())), ("default", and(classic(), admin))];
        assert_eq!(told(Form::Classic, &listed, &[("list", "secrets")]), ["* * of *", "* *"]);
        let here = json!([{"apiGroups": [""], "resources": ["secrets"], "verbs": ["list"]}]);
        let listed = [("ci", and(classic(), here)), ("default", classic())];
        // It is confirmed everywhere, by an authorizer that lists no rules.
        let told = told(Form::Classic, &listed, &[("list", "secrets")]);
        assert_eq!(told, ["list secrets in ci", "list secrets"]);
    }

    #[test]
    fn doorwards_own_account_may_review_tokens_where_it_does() {
        let reviews =
            json!([{"apiGroups": ["authentication.k8s.io"], "resources": ["tokenreviews"], "verbs": ["create"]}]);
        let listed = [("ci", and(classic(), reviews.clone())), ("default", and(classic(), reviews))];
        assert_eq!(told(Form::Classic, &listed, &[]), ["create tokenreviews of authentication.k8s.io"]);
        let issuer = "issuers: [{name: pods, preset: kubernetes, issuer: 'https://pods.test', audiences: [d], \
                      token_review: {upstream: cluster, bearer: {file: token}}}]";
        let root: raw::Root = serde_saphyr::from_str(&format!("{CONFIGURATION}{issuer}")).unwrap();
        let read = |(namespace, rules): &(&str, Value)| {
            ((*namespace).to_owned(), serde_json::from_value(rules.clone()).unwrap())
        };
        let rules: Vec<(String, Vec<PolicyRule>)> = listed.iter().map(read).collect();
        assert!(beyond(&root, "cluster", Form::Classic, &rules, &[]).is_empty());
    }

    #[test]
    fn the_classic_role_beside_the_constrained_one_is_excessive() {
        let told = told(Form::Constrained, &[("ci", classic()), ("default", classic())], &[]);
        assert_eq!(told, ["impersonate groups named tekton:dev", "impersonate users"]);
    }

    /// The advice was to remove each of the rights that limit Doorward.
    #[test]
    fn a_classic_role_beside_the_constrained_one_is_reported_to_undo_it() {
        let act = json!([
            {"apiGroups": [""], "resources": ["pods", "pods/log"], "verbs": ["impersonate-on:user-info:get"]},
            {"nonResourceURLs": ["/version"], "verbs": ["impersonate-on:user-info:get"]},
            {"apiGroups": [""], "resources": ["secrets"], "verbs": ["list"]},
        ]);
        let listed = [("ci", and(classic(), act.clone())), ("default", and(classic(), act))];
        assert_eq!(told(Form::Classic, &listed, &[]), [UNDONE, "list secrets"]);
    }

    #[test]
    fn namespaces_are_those_of_the_configuration_and_one_more() {
        let root: raw::Root = serde_saphyr::from_str(CONFIGURATION).unwrap();
        assert_eq!(namespaces(&root, "cluster"), ["ci", "default"]);
        assert_eq!(namespaces(&root, "another"), ["default"]);
    }
}
