//! Who has tokens, so that the end of a run ends them, and the end of one at the word of who has it.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Response, StatusCode};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{
    ends::Kind,
    exchange::Exchanger,
    form::Form,
    look_up::Lookup,
    party::{OfTask, Party},
    refusal::{Refusal, answer},
    task::Named,
};
use crate::{
    authn::principal::workload_key,
    clock::Timestamp,
    error::Reason,
    request::{exchange::Exchange, sanitize::CleanRequest},
    store::{Expect, Put, Table, Target},
};

/// How long after the last token of a run its record is kept at least.
const AFTER: Duration = Duration::from_secs(120);

/// How much longer it is kept, so that not each token that a run gets writes it anew.
const FURTHER: Duration = Duration::from_secs(1800);

/// What the store has of a run or a pod that has tokens, by its cluster and uid ([`workload_key`]): enough to find it again there.
/// Older versions have it by the uid alone.
#[derive(Debug, Serialize, Deserialize)]
pub struct Bearer {
    /// The name of the cluster's issuer.
    pub cluster: Arc<str>,
    pub kind: Kind,
    pub namespace: String,
    /// Under another name than older versions have, which would look for the key as for an uid.
    #[serde(rename = "object", alias = "name")]
    pub name: String,
    /// Whether the end of its tokens is in the audit trail.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_told: bool,
}

impl Exchanger<'_> {
    /// Notes that a run has a token, so that its end ends it; refuses if it has ended meanwhile.
    pub(super) async fn note_bearer(
        &self,
        party: &Party,
        of: &OfTask,
        expires: Timestamp,
        now: Timestamp,
    ) -> Result<(), Refusal> {
        let (store, task) = (self.app.store(), &of.task);
        let noted = store.get(Table::Tokens, workload_key(&of.cluster, &task.pod.uid).as_bytes(), now).await?;
        if noted.as_ref().is_none_or(|noted| noted.expires < expires + AFTER) {
            let put = |(kind, object): (Kind, &Named)| {
                let (cluster, name) = (Arc::clone(&of.cluster), object.name.clone());
                let bearer = Bearer { cluster, kind, namespace: task.view.namespace.clone(), name, is_told: false };
                Put {
                    table: Table::Tokens,
                    key: workload_key(&of.cluster, &object.uid).into_bytes(),
                    value: serde_json::to_vec(&bearer).unwrap_or_default(),
                    expires: expires + AFTER + FURTHER,
                    expect: Expect::Any,
                }
            };
            store.put_all(task.lives_with().map(put).collect(), now).await?;
        }
        // Whoever looks for ends may not have found this one's until now.
        task.still_runs(self.lookup(&of.cluster)?).await?;
        match self.app.revocations.is_revoked(&party.principal) {
            Some(_) => Err(Refusal::subject("the run has ended")),
            None => Ok(()),
        }
    }

    /// Where objects of a cluster are looked up, by the name of its issuer.
    pub(super) fn lookup<'a>(&'a self, cluster: &'a Arc<str>) -> Result<Lookup<'a>, Refusal> {
        let found = self.tokens.settings.clusters.get(cluster);
        let found = found.ok_or_else(|| Refusal::unavailable(Reason::Internal, "the cluster is not known"))?;
        let (ends, asking, clock) = (&self.app.ends, &self.app.asking, &self.app.clock);
        Ok(Lookup { ends, asking, clock, cluster, pools: self.pools, server: &found.server })
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
            // Routes take it a little longer, for clocks that differ.
            && Timestamp::from_secs(expires) + AFTER > now
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::issuers::{RUN_CLAIM, lives_with};

    #[test]
    fn records_of_an_older_version_are_read_and_that_reads_none_of_ours() {
        let old = json!({"cluster": "east", "kind": "Pod", "namespace": "ci", "name": "push-pod"});
        let bearer: Bearer = serde_json::from_value(old).unwrap();
        assert_eq!((&*bearer.cluster, &*bearer.name, bearer.is_told), ("east", "push-pod", false));
        // It would take the key for an uid that the cluster does not have, and end the tokens of a run that goes on.
        let new = serde_json::to_value(&bearer).unwrap();
        assert!(new.get("name").is_none(), "{new}");
        assert_eq!(serde_json::from_value::<Bearer>(new).unwrap().name, "push-pod");
    }

    #[test]
    fn a_token_lives_as_long_as_its_pod_and_every_run_around_it_in_its_own_cluster() {
        let lives = |more: Value| {
            let mut run = json!({"task_run": {"uid": "t"}, "pod": {"uid": "p"}, "pipeline_run": {"uid": "r"}, "within": [{"uid": "w"}]});
            run.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            lives_with(json!({RUN_CLAIM: run}).as_object().unwrap()).join(" ")
        };
        assert_eq!(lives(json!({"cluster": "east"})), "east/t east/p east/r east/w");
        assert_eq!(lives(json!({})), "t p r w", "as an older version ends it");
        assert!(lives_with(&serde_json::Map::new()).is_empty());
    }
}
