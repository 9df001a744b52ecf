//! Records in the store and the trail that something has ended.

use std::{collections::HashSet, sync::Arc, time::Duration};

use futures_util::{StreamExt, TryStreamExt, stream};
use tokio::sync::watch::Sender;

use super::{
    Kind, Object, Watch,
    follow::{EndsError, Follower, Present},
    token_namespaces::TokenNamespaces,
    watches::api,
};
use crate::{
    audit::{Note, TokensEnded},
    authn::principal::workload_key,
    clock::Timestamp,
    store::{Change, Expect, Revocations, Store, StoreError, Stored, Table, Target, Written},
    sts::{MAX_LIFETIME, bearer::Bearer},
};

/// Room for clocks that differ.
pub(super) const SKEW: Duration = Duration::from_secs(120);

/// Records that are read at once.
const PAGE: usize = 1000;

/// Objects that are looked up at once, and whose tokens end at once.
const BATCH: usize = 64;

/// The reason if a run does not exist any more.
pub(super) const GONE: &str = "it was deleted";

/// The reason if nobody watches a run any more.
const NOT_CONFIGURED: &str = "its cluster, or its namespace there, is no longer configured to have tokens";

/// The reason if nobody can tell which object a record is of.
const UNREADABLE: &str = "its record in the store cannot be read";

/// The key of a record that cannot be read, and why.
type Unreadable = (String, StoreError);

/// An object whose tokens are to end.
#[derive(Clone)]
pub(super) struct EndedObject {
    pub(super) cluster: Arc<str>,
    pub(super) kind: Kind,
    pub(super) uid: String,
    pub(super) why: &'static str,
}

/// An object with tokens that are to end, with the key of its record.
struct Ending<'a> {
    over: &'a EndedObject,
    key: &'a str,
    stored: Stored,
    bearer: Bearer,
    until: Timestamp,
}

impl Follower {
    /// The objects with tokens that have ended, or no longer exist, according to the complete list of a watch.
    pub(super) async fn find_ended(&self, watch: &Watch, present: &Present) -> Result<Vec<EndedObject>, EndsError> {
        let (mut over, mut missing, mut after) = (Vec::new(), Vec::new(), 0);
        loop {
            let now = self.app.clock.now();
            let page = self.app.store().changes(Table::Tokens, after, PAGE, now).await?;
            let (full, last) = (page.len() == PAGE, page.last().map(|change| change.version));
            let (found, unreadable) = read(page, &watch.cluster);
            self.end_unreadable(&unreadable).await?;
            for (bearer, uid) in found {
                if !is_watched(watch, self.own().as_deref(), &bearer) {
                    continue;
                }
                match present.get(&uid) {
                    Some(None) => {}
                    Some(Some(why)) => {
                        over.push(EndedObject { cluster: Arc::clone(&watch.cluster), kind: watch.kind, uid, why })
                    }
                    None => missing.push((bearer, uid)),
                }
            }
            match last.filter(|_| full) {
                Some(last) => after = last,
                None => break,
            }
        }
        // It may have begun since the list was made.
        let asked = stream::iter(missing).map(async |(bearer, uid)| {
            let is_there = self.is_there(&bearer, &uid).await?;
            Ok::<_, EndsError>((!is_there).then_some(EndedObject {
                cluster: Arc::clone(&watch.cluster),
                kind: watch.kind,
                uid,
                why: GONE,
            }))
        });
        let gone: Vec<Option<EndedObject>> = asked.buffer_unordered(BATCH).try_collect().await?;
        over.extend(gone.into_iter().flatten());
        Ok(over)
    }

    async fn is_there(&self, bearer: &Bearer, uid: &str) -> Result<bool, EndsError> {
        let is_revoked = || self.app.revocations.workload(&workload_key(&bearer.cluster, uid)).is_some();
        if bearer.end_recorded || is_revoked() {
            return Ok(false);
        }
        let found = api(&self.client, bearer.kind, Some(&bearer.namespace)).get_opt(&bearer.name).await?;
        Ok(found.is_some_and(|object| goes_on(&Object::read(bearer.kind, object), uid)))
    }

    /// Revokes the tokens of objects that have any. Many are revoked at once, as each batch costs a write to the store
    /// and a sweep over all streams.
    pub(super) async fn end(&self, mut over: Vec<EndedObject>) -> Result<(), EndsError> {
        // Objects that have ended are reported several times in a row: each is ended once.
        let mut ending = HashSet::new();
        over.retain(|over| ending.insert((Arc::clone(&over.cluster), over.uid.clone())));
        for over in over.chunks(BATCH) {
            let known: Vec<(&EndedObject, String)> =
                over.iter().map(|over| (over, workload_key(&over.cluster, &over.uid))).collect();
            let ended = self.end_own(&known).await;
            // After the revocation: a call in progress checks for that once it has cached its token.
            self.end_onward(known.iter().map(|(_, key)| key));
            ended?;
        }
        Ok(())
    }

    /// Ends the tokens that this process got from providers for objects with these keys. After a reload that removed
    /// `tokens` as a whole there is no key with which to ask for that: they end with their run if another reload brings
    /// it back, else by themselves.
    fn end_onward<K: AsRef<str>>(&self, known: impl Iterator<Item = K>) {
        let snapshot = self.app.snapshot.load();
        let Some(own) = &snapshot.own_issuer else { return };
        let keys = own.keys(self.app.clock.now());
        for key in known {
            self.app.onward.end(key.as_ref(), Some(&own.settings.onward), keys.as_ref());
        }
    }

    async fn end_own(&self, known: &[(&EndedObject, String)]) -> Result<(), EndsError> {
        let now = self.app.clock.now();
        let keys: Vec<Vec<u8>> = known.iter().map(|(_, key)| key.clone().into_bytes()).collect();
        let found = get_each(self.app.store(), &keys, now).await?;
        let (mut ending, mut unreadable): (Vec<Ending<'_>>, Vec<Unreadable>) = (Vec::new(), Vec::new());
        for ((over, key), found) in known.iter().zip(found) {
            let Some(found) = found.transpose() else { continue };
            match found.and_then(|stored| Ok((bearer_of(key, &stored)?, stored))) {
                Ok(((bearer, _), stored)) => {
                    // While there is a record to find, so that it is ended once.
                    let until = stored.expires.max(now + MAX_LIFETIME + SKEW);
                    ending.push(Ending { over, key, stored, bearer, until });
                }
                Err(error) => unreadable.push((key.clone(), error)),
            }
        }
        self.end_unreadable(&unreadable).await?;
        let new: Vec<&Ending<'_>> =
            ending.iter().filter(|ending| !self.app.revocations.has_stored(ending.key)).collect();
        if !new.is_empty() {
            let targets: Vec<_> =
                new.iter().map(|ending| (Target::Workload(ending.key), ending.over.why, ending.until)).collect();
            self.app.revocations.revoke_all(&targets).await?;
            let streams = self.app.close_revoked_streams();
            for Ending {
                over: EndedObject { cluster, kind, why, .. }, bearer: Bearer { namespace, name, .. }, ..
            } in &new
            {
                let (cluster, kind) = (&**cluster, kind.name());
                tracing::info!(cluster, kind, namespace, name, why, "tokens have ended");
            }
            if streams > 0 {
                tracing::info!(streams, "closed streams whose tokens ended");
            }
        }
        stream::iter(ending.into_iter().map(Ok)).try_for_each_concurrent(BATCH, |ending| self.tell(ending)).await
    }

    /// Ends the tokens of objects whose records cannot be read.
    async fn end_unreadable(&self, unreadable: &[Unreadable]) -> Result<(), EndsError> {
        let ended = revoke_unreadable(&self.app.revocations, unreadable, self.app.clock.now()).await;
        self.end_onward(unreadable.iter().map(|(key, _)| key));
        if ended? {
            self.app.close_revoked_streams();
        }
        Ok(())
    }

    /// Records the end in the trail, unless that was done: the replica that revoked it may have stopped before.
    async fn tell(&self, Ending { over, key, stored, bearer, until }: Ending<'_>) -> Result<(), EndsError> {
        if bearer.end_recorded {
            return Ok(());
        }
        let EndedObject { cluster, kind, uid, why } = over;
        let ended = TokensEnded {
            cluster: Arc::clone(cluster),
            kind: kind.name(),
            namespace: bearer.namespace.clone(),
            name: bearer.name.clone(),
            uid: uid.clone(),
            why,
        };
        self.app.trail.note_once(Note::TokensEnded(ended)).await?;
        self.note_told(key, (stored, bearer), until).await
    }

    /// Marks the end as recorded in the trail. A concurrent writer of the record may extend its expiry.
    async fn note_told(
        &self,
        key: &str,
        (mut stored, mut bearer): (Stored, Bearer),
        mut until: Timestamp,
    ) -> Result<(), EndsError> {
        while !bearer.end_recorded {
            bearer.end_recorded = true;
            let told = serde_json::to_vec(&bearer).unwrap_or_default();
            let (expect, now) = (Expect::Version(stored.version), self.app.clock.now());
            match self.app.store().put(Table::Tokens, key.as_bytes(), told, until, expect, now).await? {
                Written::Done(_) | Written::Conflict(None) => return Ok(()),
                Written::Conflict(Some(found)) => stored = found,
            }
            let Ok(found) = serde_json::from_slice(&stored.value) else { return Ok(()) };
            (bearer, until) = (found, until.max(stored.expires));
        }
        Ok(())
    }

    /// Ends the tokens of tasks where they get none any more.
    pub(super) async fn end_all_withdrawn(&self, namespaces: &Sender<TokenNamespaces>) -> Result<(), EndsError> {
        let mut after = 0;
        loop {
            let page = self.app.store().changes(Table::Tokens, after, PAGE, self.app.clock.now()).await?;
            let Some(last) = page.last().map(|change| change.version) else { return Ok(()) };
            let (mut left, unreadable) = read(page, &self.cluster);
            self.end_unreadable(&unreadable).await?;
            // Checked again for each page, as a reload may bring a namespace back meanwhile.
            left.retain(|(bearer, _)| {
                bearer.cluster == self.cluster && namespaces.borrow().is_withdrawn(&bearer.namespace)
            });
            // For all of them, as each process has its own tokens from providers, whoever else has ended the rest or
            // continues to give some.
            self.end_onward(left.iter().map(|(bearer, uid)| workload_key(&bearer.cluster, uid)));
            // An object with tokens of several Doorwards has one end for all of them, and another Doorward may continue
            // to give it tokens.
            let own = self.own();
            left.retain(|(bearer, _)| !bearer.end_recorded && !is_also_of_others(own.as_deref(), bearer));
            let over = left.into_iter().map(|(Bearer { cluster, kind, .. }, uid)| EndedObject {
                cluster,
                kind,
                uid,
                why: NOT_CONFIGURED,
            });
            self.end(over.collect()).await?;
            after = last;
        }
    }

    /// The issuer of Doorward's own tokens, unless a reload has removed `tokens` as a whole.
    fn own(&self) -> Option<Arc<str>> {
        self.app.snapshot.load().own_issuer.as_ref().map(|own| Arc::clone(own.issuer()))
    }
}

/// Whether a watch reports the object of a record.
fn is_watched(watch: &Watch, own: Option<&str>, bearer: &Bearer) -> bool {
    watch.covers(&bearer.cluster, bearer.kind, &bearer.namespace) && !is_of_others(own, bearer)
}

/// Whether only other Doorwards on the same store gave the tokens. Their cluster is a different one, though it may have
/// the same name.
fn is_of_others(own: Option<&str>, bearer: &Bearer) -> bool {
    own.is_none_or(|own| !bearer.has_of(own))
}

/// Whether other Doorwards on the same store gave some of the tokens, or all. After a reload that removed `tokens` as a
/// whole no route here accepts our own, which then count as those of others.
fn is_also_of_others(own: Option<&str>, bearer: &Bearer) -> bool {
    bearer.issuers().any(|noted| own != Some(&**noted))
}

/// Whether the object found is the one with tokens, has not ended, and would be seen to end: a pod whose label was
/// removed is no longer watched.
fn goes_on(object: &Object, uid: &str) -> bool {
    let is_seen = !matches!(object, Object::Pod(pod) if !pod.is_watched);
    object.identity().uid == uid && object.end().is_none() && is_seen
}

/// Returns the object with tokens in a record, and its uid.
fn bearer_of(key: &str, stored: &Stored) -> Result<(Bearer, String), StoreError> {
    let corrupt = |why: String| StoreError::Corrupt(format!("that of the tokens of `{key}`: {why}"));
    let bearer: Bearer = serde_json::from_slice(&stored.value).map_err(|error| corrupt(error.to_string()))?;
    match key.strip_prefix(&workload_key(&bearer.cluster, "")) {
        Some(uid) => Ok((bearer, uid.to_owned())),
        None => Err(corrupt(format!("it names the cluster `{}`", bearer.cluster))),
    }
}

/// Returns the objects with tokens in these records, each with its uid, and the records of a cluster that cannot be
/// read.
fn read(page: Vec<Change>, cluster: &str) -> (Vec<(Bearer, String)>, Vec<Unreadable>) {
    let (mut found, mut unreadable) = (Vec::new(), Vec::new());
    let is_of_cluster = |key: &str| key.rsplit_once('/').is_some_and(|(of, _)| of == cluster);
    for Change { key, stored, .. } in page {
        // Nobody writes such a key.
        let Ok(key) = String::from_utf8(key) else { continue };
        match stored.and_then(|stored| bearer_of(&key, &stored)) {
            Ok(bearer) => found.push(bearer),
            Err(error) if is_of_cluster(&key) => unreadable.push((key, error)),
            Err(_) => {}
        }
    }
    (found, unreadable)
}

/// Returns the records under these keys. One that cannot be read does not keep the others from being read.
async fn get_each(
    store: &Store,
    keys: &[Vec<u8>],
    now: Timestamp,
) -> Result<Vec<Result<Option<Stored>, StoreError>>, StoreError> {
    match store.get_all(Table::Tokens, keys.to_vec(), now).await {
        Ok(found) => return Ok(found.into_iter().map(Ok).collect()),
        Err(StoreError::Corrupt(_)) => {}
        Err(error) => return Err(error),
    }
    let mut each = Vec::with_capacity(keys.len());
    for key in keys {
        match store.get(Table::Tokens, key, now).await {
            found @ (Ok(_) | Err(StoreError::Corrupt(_))) => each.push(found),
            Err(error) => return Err(error),
        }
    }
    Ok(each)
}

/// Revokes the tokens of objects whose records cannot be read. Only the record says where an object is, so its end
/// might not be seen. Those may be tokens of another Doorward on the same store. Returns whether any were not revoked
/// before.
async fn revoke_unreadable(
    revocations: &Revocations,
    unreadable: &[Unreadable],
    now: Timestamp,
) -> Result<bool, StoreError> {
    let new: Vec<&Unreadable> = unreadable.iter().filter(|(key, _)| !revocations.has_stored(key)).collect();
    for batch in new.chunks(BATCH) {
        // Every token issued so far has expired by then.
        let until = now + MAX_LIFETIME + SKEW;
        let targets: Vec<_> = batch.iter().map(|(key, _)| (Target::Workload(key), UNREADABLE, until)).collect();
        revocations.revoke_all(&targets).await?;
        for (key, error) in batch {
            tracing::error!(
                %key,
                %error,
                "the tokens of a run have ended, as its record cannot be read and its end would not be seen; start the run again"
            );
        }
    }
    Ok(!new.is_empty())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::{
        clock::Clock,
        store::{Embedded, disturbed::Disturbed},
    };

    const NOW: Timestamp = Timestamp::from_secs(1_700_000_000);

    fn bearer(cluster: &str) -> Bearer {
        Bearer {
            cluster: cluster.into(),
            issuer: "https://door.example".into(),
            others: Vec::new(),
            kind: Kind::Pod,
            namespace: "ci".to_owned(),
            name: "build-pod".to_owned(),
            end_recorded: false,
        }
    }

    /// A store with these records, some of which it cannot read.
    async fn store(folder: &tempfile::TempDir, records: &[(&str, Vec<u8>)], torn: &[&str]) -> Store {
        let store = Disturbed::new(Arc::new(Embedded::open(&folder.path().join("store.redb")).unwrap()));
        *store.torn.lock().unwrap() = torn.iter().map(|key| key.as_bytes().to_vec()).collect();
        let store: Store = Arc::new(store);
        for (key, value) in records {
            let expires = NOW + MAX_LIFETIME;
            store.put(Table::Tokens, key.as_bytes(), value.clone(), expires, Expect::Any, NOW).await.unwrap();
        }
        store
    }

    /// Regression: the record was skipped, so the tokens stayed valid after their run had ended.
    #[tokio::test]
    async fn tokens_whose_record_cannot_be_read_have_ended_and_no_others() {
        let folder = tempfile::tempdir().unwrap();
        let (east, west) = (serde_json::to_vec(&bearer("east")).unwrap(), serde_json::to_vec(&bearer("west")).unwrap());
        let records = [
            ("east/whole", east.clone()),
            ("east/torn", east),
            ("east/other-form", b"{}".to_vec()),
            ("east/of-another", west.clone()),
            ("west/torn", west),
        ];
        let store = store(&folder, &records, &["east/torn", "west/torn"]).await;
        let page = store.changes(Table::Tokens, 0, PAGE, NOW).await.unwrap();
        let (found, unreadable) = read(page, "east");
        assert!(matches!(found.as_slice(), [(_, uid)] if uid == "whole"), "{found:?}");
        let revocations = Revocations::new(Arc::clone(&store), Clock::manual(NOW));
        for is_new in [true, false] {
            assert_eq!(revoke_unreadable(&revocations, &unreadable, NOW).await.unwrap(), is_new);
            for (key, _) in &records {
                let has_ended = !["east/whole", "west/torn"].contains(key);
                assert_eq!(revocations.has_stored(key), has_ended, "{key}");
            }
        }
    }

    /// Regression: the whole batch failed, so no end in it was recorded.
    #[tokio::test]
    async fn a_record_that_cannot_be_read_hides_no_other_that_is_looked_up_with_it() {
        let folder = tempfile::tempdir().unwrap();
        let value = serde_json::to_vec(&bearer("east")).unwrap();
        let records = [("east/a", value.clone()), ("east/torn", value.clone()), ("east/b", value)];
        let store = store(&folder, &records, &["east/torn"]).await;
        let keys = ["east/a", "east/torn", "east/b", "east/none"].map(|key| key.as_bytes().to_vec());
        let found = get_each(&store, &keys, NOW).await.unwrap();
        assert!(
            matches!(found.as_slice(), [Ok(Some(_)), Err(StoreError::Corrupt(_)), Ok(Some(_)), Ok(None)]),
            "{found:?}"
        );
    }

    /// Each list, and a reload that removed a cluster, ended all tokens of another Doorward's cluster with the same
    /// name; and such a reload ended those that another gave to a run of the same cluster, which went on.
    #[test]
    fn tokens_of_another_doorward_on_the_same_store_are_left() {
        let (own, other) = ("https://east.example", "https://west.example");
        // Whether all are of others, and whether some are.
        for (own, noted, beside, expected) in [
            (Some(own), other, None, (true, true)),
            (Some(own), own, None, (false, false)),
            (Some(own), other, Some(own), (false, true)),
            (Some(own), own, Some(other), (false, true)),
            (None, other, None, (true, true)),
        ] {
            let others = beside.into_iter().map(Into::into).collect();
            let bearer = Bearer { issuer: noted.into(), others, ..bearer("east") };
            assert_eq!((is_of_others(own, &bearer), is_also_of_others(own, &bearer)), expected, "{own:?} {bearer:?}");
            let watch = |cluster: &str, kind, namespace: Option<&str>| {
                let watch = Watch { cluster: cluster.into(), kind, namespace: namespace.map(str::to_owned) };
                is_watched(&watch, own, &bearer)
            };
            for namespace in [None, Some("ci")] {
                assert_eq!(watch("east", Kind::Pod, namespace), !expected.0, "{own:?} {bearer:?}");
            }
            assert!(!watch("west", Kind::Pod, None) && !watch("east", Kind::TaskRun, None));
            assert!(!watch("east", Kind::Pod, Some("shop")));
        }
    }

    /// For objects that the list of a restarted watch does not contain.
    #[test]
    fn a_pod_that_lost_its_label_while_unwatched_has_no_tokens_even_if_it_runs() {
        let pod = |change: fn(&mut Value)| {
            let mut pod = json!({
                "metadata": {"name": "build-pod", "uid": "u", "labels": {"tekton.dev/taskRun": "build"}},
                "status": {"phase": "Running"},
            });
            change(&mut pod);
            goes_on(&Object::read(Kind::Pod, serde_json::from_value(pod).unwrap()), "u")
        };
        assert!(pod(|_| {}));
        assert!(!pod(|pod| pod["metadata"]["labels"] = json!({"app": "x"})));
        assert!(!pod(|pod| pod["metadata"]["uid"] = json!("another")));
        assert!(!pod(|pod| pod["status"]["phase"] = json!("Succeeded")));
        let run = serde_json::from_value(json!({"metadata": {"name": "build", "uid": "u"}})).unwrap();
        assert!(goes_on(&Object::read(Kind::TaskRun, run), "u"), "runs are watched without a label");
    }
}
