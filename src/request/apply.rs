//! Checks the run that an apply or a patch refers to, so that an apply does not take over somebody else's run, and a
//! patch does not change where a run came from.

use bytes::Bytes;
use http::{HeaderValue, Method, Request, StatusCode, Uri, header};

use super::{outbound::Outbound, worker::Worker};
use crate::{
    body::{RequestBody, collect},
    error::{Reason, Rejection},
    tekton::{Fit, MAX_BODY, Unknown},
    upstream::Lane,
};

/// The metadata alone.
const METADATA: HeaderValue =
    HeaderValue::from_static("application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1, application/json");

impl Worker {
    /// Adapts the body to the existing run, if there is one. The run is looked up as the caller by an empty dry-run
    /// patch: every apply and patch needs the right to that, and not the right to `get`.
    ///
    /// The run may disappear, or appear, before the request itself arrives. The API server refuses it then.
    pub(super) async fn fit_to_existing_run(&self, fit: Fit, outbound: &mut Outbound) -> Result<(), Rejection> {
        let server = &outbound.permit().route().upstream;
        let failed = |why: String| {
            Rejection::new(Reason::UpstreamFailed, "the API server could not be asked for the existing run")
                .fix("try again; nothing was changed")
                .because(why)
        };
        let path = format!("{}?dryRun=All", outbound.request().uri().path());
        let mut look = Request::new(RequestBody::Buffered(Bytes::from_static(b"{}")));
        *look.method_mut() = Method::PATCH;
        *look.uri_mut() = path.parse::<Uri>().map_err(|error| failed(error.to_string()))?;
        look.headers_mut().clone_from(outbound.request().headers());
        look.headers_mut().insert(header::ACCEPT, METADATA);
        look.headers_mut().remove(header::ACCEPT_ENCODING);
        look.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/merge-patch+json"));
        let response = self.pools.send(server, &mut look, Lane::Short).await?;
        match response.status() {
            StatusCode::OK => {}
            StatusCode::UNAUTHORIZED => return Err(server.credential_refused()),
            // These are temporary, while the unchanged body would be refused as if the run had changed.
            busy if busy == StatusCode::TOO_MANY_REQUESTS || busy.is_server_error() => {
                return Err(failed(format!("the API server answered {busy}")));
            }
            // The unchanged body does nothing to an existing run, so the API server itself may say what is wrong.
            _ => return Ok(()),
        }
        let found = collect(response.into_body(), MAX_BODY).await;
        let found = found.ok_or_else(|| failed("the answer has no end, or is too long".to_owned()))?;
        let RequestBody::Buffered(body) = outbound.request().body() else {
            return Err(failed("the body was not read".to_owned()));
        };
        let body = fit.onto(body, &found).map_err(|error| match error {
            Unknown::Refused(why) => why.into(),
            unknown => failed(unknown.to_string()),
        })?;
        let body = self.app.budget.hold(body).ok_or_else(Rejection::short_of_memory)?;
        outbound.replace_body(body);
        Ok(())
    }
}
