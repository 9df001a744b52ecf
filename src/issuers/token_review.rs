//! TokenReview (`authentication.k8s.io/v1`): asks the API server whether the pod and the service account of a token
//! that it signed still exist, which the signature does not show.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderValue, Request, Uri, header};
use rustls::pki_types::ServerName;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use url::Url;

use super::{
    lookup::{Answer, Lookup, LookupSettings, Told},
    single_flight::Key,
    token_error::TokenError,
};
use crate::{
    config::resolver::Secret,
    egress::{Bounds, Egress},
    kubernetes::access_review::{self, Access},
};

const MAX_ANSWER: usize = 256 << 10;
const PATH: &str = "/apis/authentication.k8s.io/v1/tokenreviews";

/// The claim that stores the user information of the review.
pub const REVIEW_CLAIM: &str = "authentication.kubernetes.io";

/// The settings that determine the cached reviews. A reload keeps the cache if they are unchanged.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenReviewSettings {
    /// The address of the API server.
    pub server: Url,
    /// The name that its certificate must have.
    pub server_name: Option<ServerName<'static>>,
    pub audiences: Box<[Box<str>]>,
    pub timeout: Duration,
    pub lookup: LookupSettings,
    pub ca: Option<Secret>,
    /// The value of `Authorization`.
    pub bearer: HeaderValue,
}

/// Token reviews at one API server.
#[derive(Debug)]
pub struct TokenReview {
    client: Arc<Client>,
    lookup: Lookup,
}

#[derive(Debug)]
struct Client {
    settings: TokenReviewSettings,
    egress: Egress,
    /// The endpoint for reviews.
    address: Uri,
}

#[derive(Deserialize)]
struct Review {
    #[serde(default)]
    status: Status,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Status {
    authenticated: bool,
    audiences: Vec<String>,
    user: Map<String, Value>,
    error: Option<String>,
}

impl TokenReview {
    /// Fails if the address of the server is not valid.
    pub(super) fn new(settings: TokenReviewSettings, egress: Egress, lookup: Lookup) -> Result<Self, String> {
        let address = address(&settings.server, PATH)?;
        Ok(Self { client: Arc::new(Client { settings, egress, address }), lookup })
    }

    pub fn settings(&self) -> &TokenReviewSettings {
        &self.client.settings
    }

    /// Returns the user information of the review; `None`: the token is no longer valid. The caller has verified the
    /// token's signature.
    pub async fn ask(&self, token: &str, key: Key) -> Result<Option<Arc<Answer>>, TokenError> {
        self.lookup.find(key, true, || Arc::clone(&self.client).review(token.to_owned())).await
    }

    /// Whether the API server allows `bearer` to review tokens.
    pub async fn is_allowed(&self) -> Result<bool, String> {
        let access = Access {
            group: "authentication.k8s.io".into(),
            resource: "tokenreviews".into(),
            ..Access::new("create", "".into())
        };
        let address = address(&self.client.settings.server, access_review::PATH)?;
        let answer = self.client.post(address, access_review::review(&access)).await?;
        access_review::is_allowed(&answer).map_err(|error| format!("the answer cannot be read: {error}"))
    }
}

impl Client {
    async fn review(self: Arc<Self>, token: String) -> Result<Told, String> {
        let body = json!({
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenReview",
            "spec": {"token": token, "audiences": self.settings.audiences},
        });
        let answer = self.post(self.address.clone(), body.to_string().into()).await?;
        read(&answer, &self.settings.audiences)
    }

    async fn post(&self, address: Uri, body: Bytes) -> Result<Bytes, String> {
        let request = Request::post(address)
            .header(header::ACCEPT, "application/json")
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::AUTHORIZATION, self.settings.bearer.clone())
            .body(body)
            .map_err(|error| error.to_string())?;
        let bounds = Bounds { timeout: self.settings.timeout, max_body: MAX_ANSWER };
        let answer = self.egress.send(request, bounds).await.map_err(|error| error.to_string())?;
        if !answer.status().is_success() {
            return Err(format!("the API server answers the review with {}", answer.status()));
        }
        Ok(answer.into_body())
    }
}

fn address(server: &Url, path: &str) -> Result<Uri, String> {
    let address = server.join(path).map_err(|error| error.to_string())?;
    Uri::try_from(address.as_str()).map_err(|error| error.to_string())
}

/// Reads an answer. One without audiences is from a server that does not check them: the token is then only known to be
/// valid for the API server itself, so it is refused (`TokenReviewStatus.audiences` in the API types).
fn read(body: &[u8], ours: &[Box<str>]) -> Result<Told, String> {
    let Review { status } =
        serde_json::from_slice(body).map_err(|error| format!("the TokenReview cannot be read: {error}"))?;
    if !status.authenticated {
        if let Some(error) = status.error {
            tracing::debug!(%error, "a token did not pass its review");
        }
        return Ok(None);
    }
    if !status.audiences.iter().any(|audience| ours.iter().any(|ours| **ours == **audience)) {
        return Ok(None);
    }
    Ok(Some((status.user, body.len())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_authenticated_answer_for_our_audience_counts() {
        let ours = [Box::from("doorward")];
        let good = br#"{"status":{"authenticated":true,"audiences":["x","doorward"],"user":{"username":"u"}}}"#;
        assert_eq!(read(good, &ours).unwrap().unwrap().0.get("username"), Some(&Value::from("u")));
        for (what, body) in [
            ("not authenticated", &br#"{"status":{"authenticated":false,"audiences":["doorward"]}}"#[..]),
            ("another audience", br#"{"status":{"authenticated":true,"audiences":["doorward2"]}}"#),
            ("kubernetes 1.7: no audiences", br#"{"status":{"authenticated":true}}"#),
            ("no status", b"{}"),
        ] {
            assert_eq!(read(body, &ours), Ok(None), "{what}");
        }
        for bad in [&b"<html>"[..], br#"{"status":{"authenticated":"true"}}"#, b""] {
            assert!(read(bad, &ours).is_err());
        }
    }
}
