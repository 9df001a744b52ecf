//! Looks at the run that an apply or a patch is for, so that who applies does not take it over, and who patches it changes nothing of
//! where it came from.

use bytes::Bytes;
use http::{HeaderValue, Method, Request, StatusCode, Uri, header};

use super::{outbound::Outbound, pipeline::Worker};
use crate::{
    body::{RequestBody, collect},
    error::{Reason, Rejection},
    tekton::{Fit, MAX_BODY, Unknown},
    upstream::Lane,
};

/// The metadata is enough.
const METADATA: HeaderValue =
    HeaderValue::from_static("application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1, application/json");

impl Worker {
    /// Makes a body that does nothing to a run one for the run that is there, if one is. It is looked for as the caller, by a patch
    /// that changes nothing: the right to it is one that every apply and patch needs, which the right to `get` is not.
    ///
    /// What is there may be gone, or come, before the body arrives. The API server refuses it then.
    pub(super) async fn fit_to_existing_run(&self, fit: Fit, outbound: &mut Outbound) -> Result<(), Rejection> {
        let server = &outbound.permit.route().upstream;
        let failed = |why: String| {
            Rejection::new(Reason::UpstreamFailed, "whether the run is there, and what it says, cannot be seen")
                .fix("try again; nothing was changed")
                .because(why)
        };
        let path = format!("{}?dryRun=All", outbound.request.uri().path());
        let mut look = Request::new(RequestBody::Buffered(Bytes::from_static(b"{}")));
        *look.method_mut() = Method::PATCH;
        *look.uri_mut() = path.parse::<Uri>().map_err(|error| failed(error.to_string()))?;
        look.headers_mut().clone_from(outbound.request.headers());
        look.headers_mut().insert(header::ACCEPT, METADATA);
        look.headers_mut().remove(header::ACCEPT_ENCODING);
        look.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/merge-patch+json"));
        let response = self.pools.send(server, &mut look, Lane::Short).await?;
        match response.status() {
            StatusCode::OK => {}
            StatusCode::UNAUTHORIZED => return Err(server.credential_refused()),
            // It passes by itself, while the answer to the body as it stands would be that the run has changed.
            busy if busy == StatusCode::TOO_MANY_REQUESTS || busy.is_server_error() => {
                return Err(failed(format!("the API server answered {busy}")));
            }
            // As it stands, the body does nothing to a run that is there, so the API server itself may say what is wrong.
            _ => return Ok(()),
        }
        let found = collect(response.into_body(), MAX_BODY).await;
        let found = found.ok_or_else(|| failed("the answer has no end, or is too long".to_owned()))?;
        let RequestBody::Buffered(body) = outbound.request.body() else {
            return Err(failed("the body was not read".to_owned()));
        };
        let body = fit.onto(body, &found).map_err(|error| match error {
            Unknown::Refused(why) => why.into(),
            unknown => failed(unknown.to_string()),
        })?;
        let body = self.app.budget.hold(body).ok_or_else(Rejection::short_of_memory)?;
        *outbound.request.body_mut() = RequestBody::Buffered(body);
        Ok(())
    }
}
