//! The service account that makes the runs of a Trigger, as the API server tells it.
//!
//! An EventListener makes them as `serviceAccountName` of the Trigger, or else with its own pod's account
//! (`pkg/sink/auth_override.go` of Tekton Triggers).

use std::{collections::BTreeSet, sync::Arc};

use http::{HeaderValue, Request, StatusCode, header};
use serde::Deserialize;

use super::dashboard::is_subdomain;
use crate::{
    body::{RequestBody, collect},
    error::{Reason, Rejection},
    upstream::{Lane, Pools, Upstream},
};

/// An EventListener may have hundreds of Triggers in it.
const MAX_OBJECT: usize = 3 << 20;

#[derive(Default, Deserialize)]
#[serde(default)]
struct Object {
    spec: Spec,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Spec {
    service_account_name: String,
    /// Of an EventListener: those that are no objects of their own.
    triggers: Vec<Inline>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Inline {
    name: String,
    service_account_name: String,
}

/// Reads Triggers and EventListeners with Doorward's own credential at the API server.
#[derive(Clone, Copy, Debug)]
pub struct TriggerReader<'a> {
    pub pools: &'a Pools,
    pub server: &'a Arc<Upstream>,
}

impl TriggerReader<'_> {
    /// The account of a Trigger that the EventListener `listener` (namespace, name) sets off. `None` where there is no such Trigger,
    /// or where one within the EventListener and an object of that name have different accounts.
    pub async fn service_account(
        &self,
        (namespace, name): (&str, &str),
        listener: (&str, &str),
    ) -> Result<Option<String>, Rejection> {
        if ![namespace, name, listener.0, listener.1].into_iter().all(is_subdomain) {
            return Ok(None);
        }
        let Some(of_listener) = self.get("eventlisteners", listener).await? else { return Ok(None) };
        let fallback = if of_listener.service_account_name.is_empty() {
            "default"
        } else {
            of_listener.service_account_name.as_str()
        };
        let account = |own: &str| if own.is_empty() { fallback.to_owned() } else { own.to_owned() };
        let inline = of_listener.triggers.iter().filter(|inline| namespace == listener.0 && inline.name == name);
        let mut accounts: BTreeSet<String> = inline.map(|inline| account(&inline.service_account_name)).collect();
        let object = self.get("triggers", (namespace, name)).await?;
        accounts.extend(object.map(|object| account(&object.service_account_name)));
        Ok(if accounts.len() == 1 { accounts.pop_first() } else { None })
    }

    /// `None` if there is none.
    async fn get(&self, resource: &str, (namespace, name): (&str, &str)) -> Result<Option<Spec>, Rejection> {
        let path = format!("/apis/triggers.tekton.dev/v1beta1/namespaces/{namespace}/{resource}/{name}");
        let failed = |why: String| {
            let what = "the service account of a Trigger cannot be read at the API server";
            Rejection::new(Reason::UpstreamFailed, what).because(format!("{path}: {why}"))
        };
        let mut request = Request::new(RequestBody::Empty);
        *request.uri_mut() = path.parse().map_err(|_| failed("this is no address".to_owned()))?;
        request.headers_mut().insert(header::ACCEPT, HeaderValue::from_static("application/json"));
        let response = self.pools.send(self.server, &mut request, Lane::Short).await?;
        match response.status() {
            StatusCode::OK => {}
            StatusCode::NOT_FOUND => return Ok(None),
            StatusCode::UNAUTHORIZED => return Err(self.server.credential_refused()),
            status => return Err(failed(format!("status {status}; its credential must be allowed to get {resource}"))),
        }
        let body = collect(response.into_body(), MAX_OBJECT).await;
        let body = body.ok_or_else(|| failed("the answer has no end, or is too long".to_owned()))?;
        let object: Object = serde_json::from_slice(&body).map_err(|error| failed(error.to_string()))?;
        Ok(Some(object.spec))
    }
}
