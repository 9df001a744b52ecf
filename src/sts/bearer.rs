//! Records who has tokens, so that the end of a run ends them, and ends tokens at their holders' request.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{Response, StatusCode};
use moka::sync::Cache;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::{
    MAX_LIFETIME,
    ends::Kind,
    exchange::Exchanger,
    form::Form,
    look_up::Lookup,
    party::{Party, TaskOrigin},
    refusal::{Refusal, answer},
};
use crate::{
    authn::principal::workload_key,
    clock::Timestamp,
    downstream::finished,
    error::Reason,
    issuers::RUN_CLAIM,
    request::{exchange::Exchange, sanitize::CleanRequest},
    store::{Expect, Put, Revocations, Store, StoreError, Table, Target, WrittenAll},
};

/// The minimum time that a record is kept after the last token of its run.
const AFTER: Duration = Duration::from_secs(120);

/// How much longer it is kept, so that not every token of a run rewrites it.
const FURTHER: Duration = Duration::from_secs(1800);

/// The refusal after the end of a run. The run itself may go on: a reload removes its cluster, or an operator revokes
/// whoever caused it. `doorward token` recognises the end of a run by the beginning of this text, and images of steps
/// that contain it are not updated together with Doorward.
pub const OVER: &str = "the run has ended, or its tokens were ended";
pub(super) const NO_OTHERS: &str = "it gets no others; start it again";

/// The refusal of a task whose tokens have ended for good.
pub(super) fn over(why: &str) -> Refusal {
    Refusal::subject(format!("{OVER}: {why}"))
}

/// How often writing a record is tried while others write it too.
const MAX_ATTEMPTS: usize = 20;

/// The number of tokens that one holder may end before they expire.
const MAX_PER_HOLDER: u32 = 1000;

/// The number of holders that are counted at once. Beyond that, the least frequent are forgotten.
const MAX_HOLDERS: u64 = 10_000;

/// The number of tokens that each holder has ended. Until its expiry, each ended token takes room in the store and in
/// the memory of every replica, and nothing else bounds how many a holder gets in exchange for its own.
#[derive(Clone, Debug)]
pub struct HolderRevocations(Cache<String, Arc<AtomicU32>>);

impl Default for HolderRevocations {
    fn default() -> Self {
        Self(Cache::builder().max_capacity(MAX_HOLDERS).time_to_live(MAX_LIFETIME + AFTER).build())
    }
}

impl HolderRevocations {
    /// Counts one more for the holder of the token with these claims, and refuses if there are too many.
    fn take(&self, claims: &Map<String, Value>) -> Result<(), Refusal> {
        if self.0.get_with(holder(claims), Arc::default).fetch_add(1, Ordering::Relaxed) < MAX_PER_HOLDER {
            return Ok(());
        }
        let detail = format!(
            "its holder has ended {MAX_PER_HOLDER} tokens within some minutes, and can end no more for now; the token expires within {} \
             minutes",
            MAX_LIFETIME.as_secs() / 60
        );
        Err(Refusal::unavailable(Reason::Overloaded, detail))
    }

    /// Ends a token at its holder's request. Returns whether that is new; repeating it ends nothing more and takes
    /// no more room.
    async fn revoke(
        &self,
        revocations: &Revocations,
        token: Target<'_>,
        claims: &Map<String, Value>,
        until: Timestamp,
    ) -> Result<bool, Refusal> {
        if revocations.is_revoked_until(token, until) {
            return Ok(false);
        }
        self.take(claims)?;
        revocations.revoke_for_holder(token, "its holder revoked it", until).await?;
        Ok(true)
    }
}

/// The holder of a token: the pod of a task, or a client on behalf of somebody.
fn holder(claims: &Map<String, Value>) -> String {
    let pod = claims.get(RUN_CLAIM).and_then(|run| run.get("pod")?.get("uid"));
    json!([pod, claims.get("client_id"), claims.get("sub")]).to_string()
}

/// The stored record of a run or a pod that has tokens, by its cluster and uid ([`workload_key`]): enough to find it
/// again there. A replica that cannot read a record ends the tokens of its run, so a version that shares a store with
/// an older one may only add fields that have a default.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Bearer {
    /// The name of the cluster's issuer.
    pub cluster: Arc<str>,
    /// The issuer of the token for which this was last written, which identifies the Doorward that gave it.
    pub issuer: Arc<str>,
    /// The issuers of its other tokens, including tokens that have ended: several Doorwards on one store may be in
    /// front of one cluster, and one may have had another host.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub others: Vec<Arc<str>>,
    pub kind: Kind,
    pub namespace: String,
    pub name: String,
    /// Whether the end of its tokens is in the audit trail.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub end_recorded: bool,
}

impl Bearer {
    /// Whether it has tokens of this issuer.
    pub(super) fn has_of(&self, issuer: &str) -> bool {
        self.issuers().any(|noted| **noted == *issuer)
    }

    /// The issuers of which it has, or has had, tokens.
    pub(super) fn issuers(&self) -> impl Iterator<Item = &Arc<str>> {
        std::iter::once(&self.issuer).chain(&self.others)
    }

    /// This record, with all issuers of the known one added.
    fn beside(mut self, known: Option<&Self>) -> Self {
        let before = known.into_iter().flat_map(Self::issuers);
        self.others = before.filter(|noted| **noted != self.issuer).cloned().collect();
        self
    }
}

/// Whether a token was recorded.
#[derive(Debug, PartialEq, Eq)]
enum Noted {
    Done,
    /// An object with which the token ends has ended, and that has been recorded.
    Ended,
}

/// Extends each record so that it is kept long enough for a token that lasts until `expires`. Others have tokens of the
/// same run, some of which last longer: their entries are kept.
async fn note(
    store: &Store,
    bearers: Vec<(String, Bearer)>,
    expires: Timestamp,
    now: Timestamp,
) -> Result<Noted, StoreError> {
    for _ in 0..MAX_ATTEMPTS {
        let keys = bearers.iter().map(|(key, _)| key.clone().into_bytes()).collect();
        let found = store.get_all(Table::Tokens, keys, now).await?;
        let mut puts = Vec::new();
        for ((key, bearer), stored) in bearers.iter().zip(found) {
            let known = stored.as_ref().and_then(|stored| serde_json::from_slice::<Bearer>(&stored.value).ok());
            if known.as_ref().is_some_and(|known| known.end_recorded) {
                return Ok(Noted::Ended);
            }
            // A record that only others have written would be left out when ends are looked for.
            let is_ours = known.as_ref().is_some_and(|known| known.has_of(&bearer.issuer));
            let lasts = stored.as_ref().map(|stored| stored.expires);
            if is_ours && lasts.is_some_and(|lasts| lasts >= expires + AFTER) {
                continue;
            }
            puts.push(Put {
                table: Table::Tokens,
                key: key.clone().into_bytes(),
                value: serde_json::to_vec(&bearer.clone().beside(known.as_ref())).unwrap_or_default(),
                expires: lasts.unwrap_or_default().max(expires + AFTER + FURTHER),
                expect: stored.map_or(Expect::Absent, |stored| Expect::Version(stored.version)),
            });
        }
        if puts.is_empty() {
            return Ok(Noted::Done);
        }
        if let WrittenAll::Done(_) = store.put_all(puts, now).await? {
            return Ok(Noted::Done);
        }
    }
    Err(StoreError::Unavailable("others write the records of the same run again and again".to_owned()))
}

impl Exchanger<'_> {
    /// Records that a run has a token, so that its end ends it. Refuses if it has ended meanwhile.
    pub(super) async fn note_bearer(
        &self,
        party: &Party,
        origin: &TaskOrigin,
        expires: Timestamp,
        now: Timestamp,
    ) -> Result<(), Refusal> {
        let task = &origin.task;
        let bearers = task.lives_with().map(|(kind, object)| {
            let (cluster, issuer) = (Arc::clone(&origin.cluster), Arc::clone(self.own_issuer.issuer()));
            let (namespace, name) = (task.view.namespace.clone(), object.name.clone());
            let bearer = Bearer { cluster, issuer, kind, namespace, name, others: Vec::new(), end_recorded: false };
            (workload_key(&origin.cluster, &object.uid), bearer)
        });
        if let Noted::Ended = note(self.app.store(), bearers.collect(), expires, now).await? {
            return Err(over(NO_OTHERS));
        }
        // The search for ends may have run before this was recorded. No provider is asked for a token that nobody would
        // end there.
        party.check_namespace(&self.app.snapshot.load().issuers)?;
        task.still_runs(self.lookup(&origin.cluster)?).await?;
        match self.app.revocations.is_revoked(&party.principal) {
            Some(_) => Err(over(NO_OTHERS)),
            None => Ok(()),
        }
    }

    /// The look-up for a cluster, by the name of its issuer.
    pub(super) fn lookup<'a>(&'a self, cluster: &'a Arc<str>) -> Result<Lookup<'a>, Refusal> {
        let found = self.own_issuer.settings.clusters.get(cluster);
        let found = found.ok_or_else(|| Refusal::unavailable(Reason::Internal, "the cluster is not known"))?;
        let (ends, lookups, clock) = (&self.app.run_ends, &self.app.lookups, &self.app.clock);
        Ok(Lookup { ends, lookups, clock, cluster, pools: self.pools, server: &found.server })
    }

    /// Ends a token at its holder's request (RFC 7009). A token that is not Doorward's, or has ended, is not an
    /// error.
    pub async fn revoke(
        &self,
        request: &CleanRequest<()>,
        body: &[u8],
        exchange: &mut Exchange,
    ) -> Result<Response<Bytes>, Refusal> {
        let form = Form::parse(request.headers(), body)?;
        let token = form.need("token")?;
        let now = self.app.clock.now();
        if let Some(claims) = self.keys.verify(token)
            && let (Some(jti), Some(expires)) =
                (claims.get("jti").and_then(Value::as_str), claims.get("exp").and_then(Value::as_i64))
            // Routes accept it a little longer, as clocks differ.
            && Timestamp::from_secs(expires) + AFTER > now
        {
            exchange.reserve(2).await?;
            let until = Timestamp::from_secs(expires) + AFTER;
            let (issuer, id) = (self.own_issuer.name(&self.snapshot.issuers).to_owned(), jti.to_owned());
            let (revocations, holder_revocations) = (self.app.revocations.clone(), self.app.holder_revocations.clone());
            let mut lent = exchange.lend();
            // If the holder disconnects, the token is ended all the same, and the trail must say by whom.
            let ended = self.app.drain.finish_on(&self.app.control, async move {
                let ending = async {
                    let token = Target::Token { issuer: &issuer, id: &id };
                    let is_new = holder_revocations.revoke(&revocations, token, &claims, until).await?;
                    lent.record().revoked = Some(id.clone());
                    lent.write_decided().await?;
                    Ok::<_, Refusal>(is_new)
                };
                (ending.await, lent)
            });
            let (ended, back) = finished(ended).await;
            *exchange = back;
            if ended? {
                self.app.close_revoked_streams();
            }
        }
        Ok(answer(StatusCode::OK, &json!({})))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{clock::Clock, issuers::lives_with, store::Embedded};

    const NOW: Timestamp = Timestamp::from_secs(1_700_000_000);

    fn bearers(pod: &str) -> Vec<(String, Bearer)> {
        let of = |kind, name: &str| {
            let (cluster, namespace) = ("east".into(), "ci".to_owned());
            let (issuer, name) = ("https://door.example".into(), name.to_owned());
            (name.clone(), Bearer { cluster, issuer, kind, namespace, name, others: Vec::new(), end_recorded: false })
        };
        vec![of(Kind::Pod, pod), of(Kind::PipelineRun, "run")]
    }

    #[tokio::test]
    async fn a_short_token_of_a_run_does_not_shorten_what_is_kept_for_a_longer_one_of_it() {
        let folder = tempfile::tempdir().unwrap();
        let store: Store = Arc::new(Embedded::open(&folder.path().join("store.redb")).unwrap());
        let seconds = Duration::from_secs;
        let run = async |now| store.get(Table::Tokens, b"run", now).await.unwrap().unwrap();
        let noted = async |pod, now, lasts| note(&store, bearers(pod), now + seconds(lasts), now).await.unwrap();
        assert_eq!(noted("a", NOW, 600).await, Noted::Done);
        let first = run(NOW).await;
        assert_eq!(noted("b", NOW + seconds(10), 300).await, Noted::Done);
        assert_eq!(run(NOW).await, first, "the record of the run is good for both");
        // As long as a token of the run lasts, there is a record of it.
        let late = NOW + seconds(1795);
        assert_eq!(noted("a", late, 600).await, Noted::Done);
        assert!(run(late).await.expires >= late + seconds(600));
        assert!(store.get(Table::Tokens, b"b", late + seconds(600)).await.unwrap().is_none(), "it has none any more");

        // An end that was recorded is not forgotten, and nothing is recorded after it.
        let (_, mut bearer) = bearers("a").pop().unwrap();
        bearer.end_recorded = true;
        let told = serde_json::to_vec(&bearer).unwrap();
        store.put(Table::Tokens, b"run", told.clone(), late + seconds(700), Expect::Any, late).await.unwrap();
        assert_eq!(noted("c", late, 600).await, Noted::Ended);
        assert_eq!(run(late).await.value, told);
    }

    /// Each replaced the other in the record of a run, and only the one that wrote last found that it had ended in a
    /// gap of the watch.
    #[tokio::test]
    async fn a_run_with_tokens_of_two_doorwards_before_one_cluster_is_noted_as_of_both() {
        let folder = tempfile::tempdir().unwrap();
        let store: Store = Arc::new(Embedded::open(&folder.path().join("store.redb")).unwrap());
        let note_of = async |issuer: &str, lasts| {
            let (key, bearer) = bearers("a").remove(0);
            let bearer = Bearer { issuer: issuer.into(), ..bearer };
            let noted = note(&store, vec![(key, bearer)], NOW + Duration::from_secs(lasts), NOW).await;
            assert_eq!(noted.unwrap(), Noted::Done);
            store.get(Table::Tokens, b"a", NOW).await.unwrap().unwrap()
        };
        let (one, other) = ("https://one.example", "https://other.example");
        note_of(one, 600).await;
        let both = note_of(other, 600).await;
        let bearer: Bearer = serde_json::from_slice(&both.value).unwrap();
        assert!([one, other].iter().all(|issuer| bearer.has_of(issuer)), "{bearer:?}");
        assert!(!bearer.has_of("https://third.example"));
        assert_eq!(note_of(one, 600).await, both, "the record is good for each of them");
        let longer: Bearer = serde_json::from_slice(&note_of(one, 6000).await.value).unwrap();
        assert!(longer.has_of(other) && longer.others.len() == 1, "{longer:?}");
    }

    /// One step could fill the memory of every replica with tokens that it got and ended.
    #[test]
    fn one_holder_can_revoke_a_thousand_tokens_and_does_not_block_others() {
        let holder_revocations = HolderRevocations::default();
        let claims = |pod: Option<&str>, client: &str| {
            let run = pod.map(|uid| json!({"pod": {"name": "build", "uid": uid}}));
            let mut claims = json!({"sub": "alice", "client_id": client, "jti": "7"}).as_object().unwrap().clone();
            claims.extend(run.map(|run| (RUN_CLAIM.to_owned(), run)));
            claims
        };
        for (pod, client) in [(Some("a"), "builder"), (Some("b"), "builder"), (None, "builder"), (None, "web")] {
            let claims = claims(pod, client);
            assert!((0..1000).all(|_| holder_revocations.take(&claims).is_ok()), "{claims:?}");
            let refused = holder_revocations.take(&claims).unwrap_err();
            assert_eq!((refused.status(), refused.reason()), (StatusCode::SERVICE_UNAVAILABLE, Reason::Overloaded));
            assert!(refused.description().contains("can end no more"), "{}", refused.description());
        }
    }

    #[tokio::test]
    async fn tokens_a_holder_revokes_beyond_the_bound_stay_valid_and_none_counts_twice() {
        let folder = tempfile::tempdir().unwrap();
        let store: Store = Arc::new(Embedded::open(&folder.path().join("store.redb")).unwrap());
        let (holder_revocations, revocations) =
            (HolderRevocations::default(), Revocations::new(store, Clock::manual(NOW)));
        let claims = |holder: &str| json!({"sub": holder, "client_id": "builder"}).as_object().unwrap().clone();
        let (token, until) = (|id: &'static str| Target::Token { issuer: "own", id }, NOW + Duration::from_secs(600));
        let end = async |holder: &'static str, id: &'static str| {
            holder_revocations.revoke(&revocations, token(id), &claims(holder), until).await
        };
        assert!(end("alice", "first").await.unwrap());
        assert!((1..MAX_PER_HOLDER).all(|_| holder_revocations.take(&claims("alice")).is_ok()));
        assert!(!end("alice", "first").await.unwrap());
        end("alice", "more").await.unwrap_err();
        assert!(!revocations.is_revoked_until(token("more"), until));
        assert!(end("bob", "of another").await.unwrap());
        assert!(revocations.is_revoked_until(token("of another"), until));
    }

    #[test]
    fn a_token_lives_as_long_as_its_pod_and_every_run_around_it_in_its_own_cluster() {
        let run = json!({
            "cluster": "east", "task_run": {"uid": "t"}, "pod": {"uid": "p"},
            "pipeline_run": {"uid": "r"}, "within": [{"uid": "w"}],
        });
        let lives = lives_with(json!({RUN_CLAIM: run}).as_object().unwrap());
        assert_eq!(lives.join(" "), "east/t east/p east/r east/w");
        assert!(lives_with(&Map::new()).is_empty());
    }
}
