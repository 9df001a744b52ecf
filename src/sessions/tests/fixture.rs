//! Sessions of a scripted provider, on a store that can fail.

use std::{collections::BTreeSet, path::Path, sync::atomic::Ordering::SeqCst};

use tempfile::TempDir;
use tokio::sync::Barrier;

use super::*;

/// Sessions on a store that can be taken away.
pub(crate) struct Fixture {
    pub sessions: Sessions,
    pub provider: Arc<ScriptedProvider>,
    pub store: Arc<Switched>,
    pub shared: Shared,
    pub(super) folder: TempDir,
}

#[derive(Debug)]
pub(crate) struct Switched {
    inner: Embedded,
    pub away: std::sync::atomic::AtomicBool,
    /// Whether the store is one that replicas share, which says that it is full.
    pub is_shared: std::sync::atomic::AtomicBool,
    /// A table that accepts no writes.
    pub full: std::sync::Mutex<Option<Table>>,
    /// Except for this many writes.
    pub spare: std::sync::atomic::AtomicUsize,
    /// A table whose next write or removal happens, but whose response is lost.
    pub unheard: std::sync::Mutex<Option<Table>>,
    /// A table whose next write or removal happens, but whose response waits until two have met a second time.
    pub late: std::sync::Mutex<Option<(Table, Arc<Barrier>)>>,
    /// A table from which nothing is removed.
    pub(super) stays: std::sync::Mutex<Option<Table>>,
    /// How far our clock is ahead of its own, in seconds.
    pub(super) ahead: std::sync::atomic::AtomicI64,
    /// The number of writes.
    pub(super) puts: std::sync::atomic::AtomicUsize,
}

impl Switched {
    fn call<'a, T: Send + 'a>(&self, call: StoreFuture<'a, T>) -> StoreFuture<'a, T> {
        if self.away.load(SeqCst) {
            return Box::pin(async { Err(StoreError::Timeout) });
        }
        call
    }

    /// The call, or its result if the response is late or lost.
    fn write<'a, T: Send + 'a>(&self, call: StoreFuture<'a, T>, table: impl Fn(Table) -> bool) -> StoreFuture<'a, T> {
        let call = self.call(call);
        let late = self.late.lock().unwrap().take_if(|(late, _)| table(*late));
        let is_unheard = self.unheard.lock().unwrap().take_if(|unheard| table(*unheard)).is_some();
        if late.is_none() && !is_unheard {
            return call;
        }
        Box::pin(async move {
            let answer = call.await?;
            if let Some((_, met)) = late {
                met.wait().await;
                met.wait().await;
            }
            if is_unheard { Err(StoreError::Timeout) } else { Ok(answer) }
        })
    }

    /// Drops `asked` once its next write or removal in this table has happened; then lets the response arrive.
    pub async fn leave_at<T>(&self, at: Table, asked: impl Future<Output = T>) {
        let met = Arc::new(Barrier::new(2));
        *self.late.lock().unwrap() = Some((at, Arc::clone(&met)));
        tokio::select! {
            _ = asked => panic!("nothing was written"),
            _ = met.wait() => {}
        }
        let answered = tokio::time::timeout(Duration::from_secs(10), met.wait()).await;
        answered.expect("it ends with whoever asked for it");
    }

    pub fn switch(&self, away: bool) {
        self.away.store(away, SeqCst);
    }
}

impl Backend for Switched {
    fn get<'a>(&'a self, table: Table, key: &'a [u8], now: Timestamp) -> StoreFuture<'a, Option<Stored>> {
        self.call(self.inner.get(table, key, now))
    }
    fn put_all(&self, puts: Vec<Put>, now: Timestamp) -> StoreFuture<'_, WrittenAll> {
        self.puts.fetch_add(1, SeqCst);
        let full = *self.full.lock().unwrap();
        let spare = |spare: usize| spare.checked_sub(1);
        if puts.iter().any(|put| Some(put.table) == full) && self.spare.fetch_update(SeqCst, SeqCst, spare).is_err() {
            let error = match self.is_shared() {
                true => StoreError::Full("it takes nothing".to_owned()),
                false => StoreError::Timeout,
            };
            return Box::pin(async { Err(error) });
        }
        let tables: Vec<Table> = puts.iter().map(|put| put.table).collect();
        self.write(self.inner.put_all(puts, now), |table| tables.contains(&table))
    }
    fn delete<'a>(&'a self, table: Table, key: &'a [u8]) -> StoreFuture<'a, bool> {
        if *self.stays.lock().unwrap() == Some(table) {
            return Box::pin(async { Err(StoreError::Timeout) });
        }
        self.write(self.inner.delete(table, key), |unheard| unheard == table)
    }
    fn changes<'a>(&'a self, table: Table, after: u64, limit: usize, now: Timestamp) -> StoreFuture<'a, Vec<Change>> {
        self.call(self.inner.changes(table, after, limit, now))
    }
    fn is_shared(&self) -> bool {
        self.is_shared.load(SeqCst)
    }
    fn seconds_ahead<'a>(&'a self, _clock: &'a Clock) -> StoreFuture<'a, f64> {
        let ahead = self.ahead.load(SeqCst) as f64;
        self.call(Box::pin(async move { Ok(ahead) }))
    }
    fn ping(&self) -> StoreFuture<'_, ()> {
        self.call(self.inner.ping())
    }
}

pub(crate) fn settings() -> Settings {
    Settings { idle: HOUR * 8, absolute: HOUR * 24, recheck: Duration::from_secs(300), max_per_person: 5, keys: None }
}

/// A trail in that folder, in `audit.jsonl`.
pub(crate) fn trail(folder: &Path) -> Trail {
    let (egress, mut resolver) = (Egress::direct(None, None).unwrap(), Resolver::new(folder));
    let settings = audit::Settings::resolve(&raw::Audit::default(), &egress, &mut resolver, &At::root()).unwrap();
    let path = folder.join("audit.jsonl");
    let destination = audit::Destination::File { path, max_size: 1 << 20, retention: audit::Retention::default() };
    let settings = audit::Settings { instance: "replica-0".to_owned(), destination, ..settings };
    Trail::open(&settings, folder, Clock::default()).unwrap()
}

impl Fixture {
    pub fn new(provider: ScriptedProvider) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = Arc::new(Switched {
            inner: Embedded::open(&folder.path().join("store.redb")).unwrap(),
            away: false.into(),
            is_shared: false.into(),
            full: None.into(),
            spare: 0.into(),
            unheard: None.into(),
            late: None.into(),
            stays: None.into(),
            ahead: 0.into(),
            puts: 0.into(),
        });
        let clock = Clock::manual(Timestamp::from_secs(1_700_000_000));
        let shared = Shared {
            store: Arc::clone(&store) as Store,
            revocations: Revocations::new(Arc::clone(&store) as Store, clock.clone()),
            clock,
            control: Handle::current(),
            drain: Drain::default(),
            metrics: SessionMetrics::default(),
            refreshes: Refreshes::default(),
            devices: Default::default(),
            trail: trail(folder.path()),
        };
        // As at a start. A runtime cannot wait for another on its own thread.
        let revocations = shared.revocations.clone();
        let read = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
            runtime.block_on(revocations.refresh())
        });
        read.join().unwrap().unwrap();
        let provider = Arc::new(provider);
        let sessions = Self::generation(&provider, &shared, settings(), &[[1; 32]]);
        Self { sessions, provider, store, shared, folder }
    }

    pub(super) fn offline() -> Self {
        Self::new(ScriptedProvider::offline("corp"))
    }

    pub(super) fn generation(
        provider: &Arc<ScriptedProvider>,
        shared: &Shared,
        settings: Settings,
        keys: &[[u8; 32]],
    ) -> Sessions {
        let providers = [Arc::clone(provider) as Arc<dyn Provider>];
        Sessions::new(settings, KeyRing::of(keys), &providers, shared.clone())
    }

    pub(super) async fn create(&self, subject: &str, origin: &Origin) -> HeaderMap {
        self.create_with(json!({"sub": subject, "groups": ["dev"]}), origin).await
    }

    pub(super) async fn create_with(&self, claims: Value, origin: &Origin) -> HeaderMap {
        self.try_create(claims, origin).await.unwrap()
    }

    pub(super) async fn try_create(&self, claims: Value, origin: &Origin) -> Result<HeaderMap, Reason> {
        let tokens = Tokens { access: "access".to_owned(), refresh: None, id: Some("id".to_owned()) };
        self.create_of(claims, &["openid"], tokens, origin).await
    }

    pub(super) async fn create_of(
        &self,
        claims: Value,
        scopes: &[&str],
        tokens: Tokens,
        origin: &Origin,
    ) -> Result<HeaderMap, Reason> {
        let new = self.new_session(claims, scopes, tokens, origin);
        let created = self.sessions.create(new, None).await;
        created.map(|(line, _)| sent_back(&line.unwrap())).map_err(|rejection| rejection.reason())
    }

    /// The result that a login at the provider would have had.
    pub(super) fn new_session<'a>(
        &'a self,
        claims: Value,
        scopes: &[&str],
        tokens: Tokens,
        origin: &'a Origin,
    ) -> NewSession<'a> {
        let Value::Object(claims) = claims else { panic!("{claims}") };
        NewSession {
            origin,
            provider: &*self.provider,
            claims: Arc::new(claims),
            from_userinfo: BTreeSet::new(),
            in_both: BTreeSet::new(),
            scopes: scopes.iter().map(|scope| Arc::from(*scope)).collect(),
            tokens,
            seen: Seen::default(),
        }
    }
}

/// The cookie that a browser sends after this line.
pub(super) fn sent_back(line: &HeaderValue) -> HeaderMap {
    let pair = line.to_str().unwrap().split(';').next().unwrap();
    HeaderMap::from_iter([(header::COOKIE, HeaderValue::from_str(pair).unwrap())])
}
