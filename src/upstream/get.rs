//! Reads objects from an API server with Doorward's own credential.

use std::sync::Arc;

use http::{HeaderValue, Request, StatusCode, header};
use serde::de::DeserializeOwned;

use super::{Lane, Pools, Upstream, UpstreamError};
use crate::body::{RequestBody, collect};

/// Why an object could not be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum GetError {
    #[error("the path is not valid")]
    Path,
    #[error("{0}")]
    Upstream(UpstreamError),
    /// Left to the caller, which knows the missing right after a 401 or 403.
    #[error("status {0}")]
    Status(StatusCode),
    #[error("the answer is incomplete or too long")]
    Body,
    #[error("{0}")]
    Json(serde_json::Error),
}

impl Pools {
    /// Reads the object at `path`, of at most `max` bytes. `None` if it does not exist.
    pub(crate) async fn get_json<T: DeserializeOwned>(
        &self,
        server: &Arc<Upstream>,
        path: &str,
        max: usize,
    ) -> Result<Option<T>, GetError> {
        let mut request = Request::new(RequestBody::Empty);
        *request.uri_mut() = path.parse().map_err(|_| GetError::Path)?;
        request.headers_mut().insert(header::ACCEPT, HeaderValue::from_static("application/json"));
        let response = self.send(server, &mut request, Lane::Short).await.map_err(GetError::Upstream)?;
        match response.status() {
            StatusCode::OK => {}
            StatusCode::NOT_FOUND => return Ok(None),
            status => return Err(GetError::Status(status)),
        }
        let body = collect(response.into_body(), max).await.ok_or(GetError::Body)?;
        serde_json::from_slice(&body).map(Some).map_err(GetError::Json)
    }
}
