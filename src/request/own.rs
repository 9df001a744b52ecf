//! Requests for Doorward itself: its pages, the token issuer, the interceptor. Nothing here can forward.

use std::sync::Arc;

use bytes::Bytes;
use http::Response;
use uuid::Uuid;

use super::{
    exchange::{AnswerBy, Exchange},
    pipeline::{Ending, refuse_impersonation},
    respond::{self, Manner},
    route::{Miss, OwnEndpoint},
    sanitize::CleanRequest,
    worker::Worker,
};
use crate::{
    body::{ClientBody, ResponseBody},
    downstream::Connection,
    endpoints,
    error::Rejection,
    interceptor,
    snapshot::Snapshot,
    sts::Issuing,
};

impl Worker {
    /// Answers a request for Doorward itself.
    pub(super) async fn serve_own(
        &self,
        asked: OwnEndpoint,
        snapshot: &Arc<Snapshot>,
        connection: &Connection,
        request: CleanRequest<ClientBody>,
        exchange: &mut Exchange,
        manner: &mut Manner,
    ) -> Result<Ending, Rejection> {
        refuse_impersonation(&request)?;
        let answer = match asked {
            OwnEndpoint::Page => {
                let asks_who = request.path() == endpoints::WHO_AM_I;
                let of_tokens =
                    asks_who.then(|| snapshot.routes.taking_tokens(request.host()).next().cloned()).flatten();
                let authenticator = self.authenticator(snapshot);
                let answer = endpoints::serve(snapshot, request, authenticator, exchange).await;
                manner.endpoint_route = of_tokens;
                answer
            }
            OwnEndpoint::Issuer(endpoint) => {
                let Some(own_issuer) = &snapshot.own_issuer else { return Err(Miss::Path.into()) };
                let issuing = Issuing { app: &self.app, pools: &self.pools, snapshot, own_issuer };
                issuing.answer(endpoint, request, exchange).await
            }
            OwnEndpoint::Interceptor => {
                if self.app.interceptor_listener.as_deref().is_some_and(|asked_on| *asked_on != *connection.listener) {
                    return Err(Miss::Path.into());
                }
                interceptor::answer(&self.app, &self.pools, snapshot, request, exchange).await
            }
        };
        answer.map(|response| own_response(response, exchange.record().id))
    }
}

/// A response of Doorward's own to the request with this id.
pub(super) fn own_response(mut response: Response<Bytes>, id: Uuid) -> Ending {
    respond::identify(&mut response, id);
    Ending::Response { response: response.map(ResponseBody::full), by: AnswerBy::Us }
}
