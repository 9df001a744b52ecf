//! The claims of a pod's token, compared with what the cluster says about the same token.

use serde_json::{Map, Value};

use super::refusal::Refusal;
use crate::{issuers::REVIEW_CLAIM, kubernetes::ObjectRef, tekton::dashboard::is_subdomain};

/// What a token says about its pod (KEP-1205, KEP-4193).
#[derive(Debug, PartialEq, Eq)]
pub struct PodToken {
    pub(super) namespace: String,
    pub(super) service_account: String,
    pub(super) pod: ObjectRef,
    pub(super) node: Option<String>,
    /// Servers before 1.32 give none.
    pub(super) id: Option<String>,
}

impl PodToken {
    /// Reads verified claims and the API server's review of the same token. The error names what does not match.
    pub fn read(claims: &Map<String, Value>) -> Result<Self, Refusal> {
        let misfit = |why: &str| Refusal::subject(format!("subject_token: {why}"));
        let own = claims.get("kubernetes.io").and_then(Value::as_object);
        let own = own.ok_or_else(|| misfit("it has no claim `kubernetes.io`, so it is no service-account token"))?;
        // Any other audience could exchange it as the task does.
        if claims.get("aud").and_then(Value::as_array).is_some_and(|audiences| audiences.len() > 1) {
            return Err(misfit(
                "it is for others too (`aud`), each of whom could exchange it; project one whose `audience` is Doorward alone",
            ));
        }
        let text = |path: [&str; 2]| own.get(path[0])?.get(path[1])?.as_str();
        if own.contains_key("secret") {
            return Err(misfit("it is bound to a Secret; project one into the pod (serviceAccountToken)"));
        }
        let pod = text(["pod", "name"]).zip(text(["pod", "uid"]));
        let (name, uid) =
            pod.ok_or_else(|| misfit("it is bound to no pod; project one into the pod (serviceAccountToken)"))?;
        let namespace = own.get("namespace").and_then(Value::as_str).unwrap_or_default();
        let account = text(["serviceaccount", "name"]).unwrap_or_default();
        let node = text(["node", "name"]);
        if ![namespace, account, name].into_iter().all(is_subdomain) {
            return Err(misfit("its pod, account or namespace has a name that Kubernetes does not give"));
        }
        if claims.get("sub").and_then(Value::as_str) != Some(&format!("system:serviceaccount:{namespace}:{account}")) {
            return Err(misfit("its subject and the account that it names differ"));
        }
        let review =
            claims.get(REVIEW_CLAIM).ok_or_else(|| misfit("the cluster was not asked about it (`token_review`)"))?;
        let id = claims.get("jti").and_then(Value::as_str);
        let credential = id.map(|id| format!("JTI={id}"));
        let said = |name: &str| {
            let values = review.get("extra")?.get(format!("authentication.kubernetes.io/{name}"))?.as_array()?;
            values.first()?.as_str()
        };
        // What an older server does not say is not compared, except for the pod.
        let agrees = |name: &str, ours: Option<&str>| match (said(name), ours) {
            (Some(theirs), Some(ours)) => theirs == ours,
            _ => true,
        };
        let account_uid = text(["serviceaccount", "uid"]);
        let is_same = said("pod-name") == Some(name)
            && said("pod-uid") == Some(uid)
            && account_uid.is_some_and(|uid| review.get("uid").and_then(Value::as_str) == Some(uid))
            && agrees("node-name", node)
            && agrees("node-uid", text(["node", "uid"]))
            && agrees("credential-id", credential.as_deref());
        if !is_same {
            return Err(misfit("the cluster reports another pod, account or node for it than the token names"));
        }
        Ok(Self {
            namespace: namespace.to_owned(),
            service_account: account.to_owned(),
            pod: ObjectRef { name: name.to_owned(), uid: uid.to_owned() },
            node: node.map(str::to_owned),
            id: id.map(str::to_owned),
        })
    }
}

#[cfg(test)]
pub(super) mod tests {
    use serde_json::json;

    use super::*;

    pub fn claims(change: impl FnOnce(&mut Value)) -> Map<String, Value> {
        let mut claims = json!({
            "sub": "system:serviceaccount:ci:builder",
            "aud": ["https://doorward.test"],
            "jti": "j",
            "kubernetes.io": {
                "namespace": "ci",
                "node": {"name": "n", "uid": "nu"},
                "pod": {"name": "build-pod", "uid": "pu"},
                "serviceaccount": {"name": "builder", "uid": "su"},
            },
            "authentication.kubernetes.io": {
                "username": "system:serviceaccount:ci:builder",
                "uid": "su",
                "extra": {
                    "authentication.kubernetes.io/pod-name": ["build-pod"],
                    "authentication.kubernetes.io/pod-uid": ["pu"],
                    "authentication.kubernetes.io/node-name": ["n"],
                    "authentication.kubernetes.io/node-uid": ["nu"],
                    "authentication.kubernetes.io/credential-id": ["JTI=j"],
                },
            },
        });
        change(&mut claims);
        claims.as_object().unwrap().clone()
    }

    #[test]
    fn a_token_is_of_the_pod_that_it_and_the_cluster_name() {
        let token = PodToken::read(&claims(|_| {})).unwrap();
        assert_eq!((token.namespace.as_str(), token.pod.uid.as_str(), token.node.as_deref()), ("ci", "pu", Some("n")));
        assert_eq!(token.id.as_deref(), Some("j"));
        let extra = |name: &'static str, value: &'static str| {
            move |claims: &mut Value| {
                claims["authentication.kubernetes.io"]["extra"][format!("authentication.kubernetes.io/{name}")] =
                    json!([value]);
            }
        };
        type Change = Box<dyn FnOnce(&mut Value)>;
        let rows: Vec<(&str, Change)> = vec![
            (
                "kubernetes:6.4 bound to a secret",
                Box::new(|claims| claims["kubernetes.io"]["secret"] = json!({"name": "s", "uid": "u"})),
            ),
            (
                "kubernetes:6.4 bound to no pod",
                Box::new(|claims| _ = claims["kubernetes.io"].as_object_mut().unwrap().remove("pod")),
            ),
            ("no claim of a cluster", Box::new(|claims| _ = claims.as_object_mut().unwrap().remove("kubernetes.io"))),
            ("for others too", Box::new(|claims| claims["aud"] = json!(["https://doorward.test", "vault"]))),
            ("another account", Box::new(|claims| claims["kubernetes.io"]["serviceaccount"]["name"] = json!("admin"))),
            (
                "a name that leads elsewhere",
                Box::new(|claims| claims["kubernetes.io"]["pod"]["name"] = json!("../../secrets/x")),
            ),
            (
                "never reviewed",
                Box::new(|claims| _ = claims.as_object_mut().unwrap().remove("authentication.kubernetes.io")),
            ),
            ("the cluster says another pod", Box::new(extra("pod-uid", "other"))),
            ("the cluster says another name", Box::new(extra("pod-name", "other"))),
            ("the cluster says another node", Box::new(extra("node-name", "other"))),
            ("the cluster says another node of that name", Box::new(extra("node-uid", "other"))),
            ("the cluster says another token", Box::new(extra("credential-id", "JTI=other"))),
            (
                "the account was made anew",
                Box::new(|claims| claims["authentication.kubernetes.io"]["uid"] = json!("other")),
            ),
        ];
        for (what, change) in rows {
            assert!(PodToken::read(&claims(change)).is_err(), "{what}");
        }
        // A server before 1.32 names neither node nor credential.
        let old = PodToken::read(&claims(|claims| {
            let extra = claims["authentication.kubernetes.io"]["extra"].as_object_mut().unwrap();
            extra.retain(|name, _| name.contains("pod-"));
            claims["kubernetes.io"].as_object_mut().unwrap().remove("node");
            claims.as_object_mut().unwrap().remove("jti");
        }));
        let old = old.unwrap();
        assert_eq!((old.node, old.id), (None, None));
    }
}
