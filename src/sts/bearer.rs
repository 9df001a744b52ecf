//! Who has tokens, so that the end of a run ends them, and the end of one at the word of who has it.

use std::sync::Arc;

use bytes::Bytes;
use http::{Response, StatusCode};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{
    ends::Kind,
    exchange::Exchanger,
    form::Form,
    party::Party,
    refusal::{Refusal, answer},
    task::{Named, Reader, Task},
};
use crate::{
    clock::Timestamp,
    error::Reason,
    request::{exchange::Exchange, sanitize::CleanRequest},
    store::{Expect, Put, Table, Target, WrittenAll},
};

/// How long after the last token of a run its record is kept.
const AFTER: std::time::Duration = std::time::Duration::from_secs(120);

/// What the store has of a TaskRun or a pod that has tokens, by its uid: enough to find it again in the cluster.
#[derive(Debug, Serialize, Deserialize)]
pub struct Bearer {
    /// The name of the cluster's issuer.
    pub cluster: Arc<str>,
    pub kind: Kind,
    pub namespace: String,
    pub name: String,
}

impl Exchanger<'_> {
    /// Notes that a run has a token, so that its end ends it; refuses if it has ended meanwhile.
    pub(super) async fn note_bearer(
        &self,
        party: &Party,
        task: &Task,
        cluster: &Arc<str>,
        expires: Timestamp,
        now: Timestamp,
    ) -> Result<(), Refusal> {
        let until = expires + AFTER;
        let put = |kind: Kind, object: &Named, expect| {
            let (cluster, name) = (Arc::clone(cluster), object.name.clone());
            let bearer = Bearer { cluster, kind, namespace: task.view.namespace.clone(), name };
            let value = serde_json::to_vec(&bearer).unwrap_or_default();
            Put { table: Table::Tokens, key: object.uid.clone().into_bytes(), value, expires: until, expect }
        };
        let both = |expect| vec![put(Kind::Pod, &task.pod, expect), put(Kind::TaskRun, &task.task_run, Expect::Any)];
        let store = self.app.store();
        match store.put_all(both(Expect::Absent), now).await? {
            WrittenAll::Done(_) => {
                // Whoever looks for ends did not look for this one's until now.
                let server = self.tokens.settings.clusters.get(cluster).map(|cluster| &cluster.server);
                let server =
                    server.ok_or_else(|| Refusal::unavailable(Reason::Internal, "the cluster is not known"))?;
                task.still_runs(Reader { pools: self.pools, server }).await?;
            }
            WrittenAll::Conflict { .. } => {
                store.put_all(both(Expect::Any), now).await?;
            }
        }
        match self.app.revocations.is_revoked(&party.principal) {
            Some(_) => Err(Refusal::subject("the run has ended")),
            None => Ok(()),
        }
    }

    /// Ends a token that its holder has done with (RFC 7009). One that is none of ours, or has ended, is no error.
    pub async fn revoke(
        &self,
        request: &CleanRequest<()>,
        body: &[u8],
        exchange: &mut Exchange,
    ) -> Result<Response<Bytes>, Refusal> {
        let form = Form::parse(request.headers(), body)?;
        let token = form.get("token").ok_or_else(|| Refusal::malformed("`token` is missing"))?;
        let now = self.app.clock.now();
        if let Some(claims) = self.keys.verify(token)
            && let (Some(jti), Some(expires)) =
                (claims.get("jti").and_then(Value::as_str), claims.get("exp").and_then(Value::as_i64))
            && Timestamp::from_secs(expires) > now
        {
            exchange.reserve(2)?;
            let until = Timestamp::from_secs(expires) + AFTER;
            let target = Target::Token { issuer: self.tokens.name(&self.snapshot.issuers), id: jti };
            self.app.revocations.revoke(target, "its holder has done with it", until).await?;
            exchange.record().revoked = Some(jti.to_owned());
            exchange.decided().await?;
            self.app.close_revoked_streams();
        }
        Ok(answer(StatusCode::OK, &json!({})))
    }
}
