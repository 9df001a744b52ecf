//! Tests of the trail as a whole, over sinks in memory that fail on command and over real files.

mod all;
mod copies;
mod file;
mod line;
mod pseudonym;
mod retention;
mod room;
mod tamper;
mod trail;

use std::{
    io,
    path::Path,
    sync::{Arc, Condvar, Mutex},
    time::Duration,
};

use http::{Method, StatusCode};
use serde_json::{Value, json};
use uuid::Uuid;

use super::{
    chain::Link,
    settings::{Destination, Retention, Settings},
    sink::{Found, Sink, Stdout, Surplus},
    trail::{Keys, Opened, Trail},
    *,
};
use crate::{
    authn::{Actor, CredentialId, Kind, LoginFacts, Principal, Scheme},
    clock::{Clock, Timestamp},
    config::raw::{Effect, EventListener, RouteKind, RunIntent, WhenFull},
    kubernetes::Attributes,
    tekton::Run,
    webhooks::Facts,
};

const NOW: Timestamp = Timestamp::from_millis(1_700_000_000_123);

/// The content of a sink in memory, and how it behaves.
#[derive(Debug, Default)]
struct Disk {
    bytes: Vec<u8>,
    /// Bytes that it can still take; none: unlimited.
    room: Option<usize>,
    syncs: usize,
    /// Whether a sync waits until this is false again.
    hold_syncs: bool,
    syncing: bool,
    fail_syncs: bool,
    /// Whether the next sync fails as on Linux: unsynced data is lost, and this is reported once.
    lose_unsynced: bool,
    /// Bytes that were synced.
    safe: usize,
    /// The largest number of bytes that were not.
    most_at_risk: usize,
    /// Whether a new file should begin.
    is_full: bool,
    /// Whether beginning a file, and searching for files to remove, waits until this is false again.
    hold_files: bool,
    at_files: bool,
    /// How many bytes were not synced when a file began.
    at_risk_when_full: Option<usize>,
    /// Whether the next write ends the thread.
    panics: bool,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Memory(Arc<(Mutex<Disk>, Condvar)>);

impl Memory {
    fn set<T>(&self, change: impl FnOnce(&mut Disk) -> T) -> T {
        let result = change(&mut self.0.0.lock().unwrap());
        self.0.1.notify_all();
        result
    }

    fn wait_for(&self, condition: impl Fn(&Disk) -> bool) {
        let guard = self.0.0.lock().unwrap();
        drop(self.0.1.wait_while(guard, |disk| !condition(disk)).unwrap());
    }

    fn look_after_files(&self) {
        self.set(|disk| disk.at_files = true);
        self.wait_for(|disk| !disk.hold_files);
        self.set(|disk| disk.at_files = false);
    }

    pub(super) fn bytes(&self) -> Vec<u8> {
        self.set(|disk| disk.bytes.clone())
    }

    fn lines(&self) -> Vec<Value> {
        lines(&self.bytes())
    }
}

impl Sink for Memory {
    fn write(&mut self, lines: &[u8]) -> io::Result<usize> {
        assert!(!self.set(|disk| disk.panics), "as it was told");
        self.set(|disk| {
            let taken = disk.room.unwrap_or(usize::MAX).min(lines.len());
            if taken == 0 {
                return Err(io::ErrorKind::StorageFull.into());
            }
            disk.bytes.extend_from_slice(&lines[..taken]);
            disk.most_at_risk = disk.most_at_risk.max(disk.bytes.len() - disk.safe);
            disk.room = disk.room.map(|room| room - taken);
            Ok(taken)
        })
    }

    fn sync(&mut self) -> io::Result<()> {
        self.set(|disk| disk.syncing = true);
        self.wait_for(|disk| !disk.hold_syncs);
        self.set(|disk| {
            disk.syncing = false;
            disk.syncs += 1;
            if std::mem::take(&mut disk.lose_unsynced) {
                let safe = disk.safe;
                disk.bytes[safe..].fill(0);
                return Err(io::Error::other("the disk has lost something"));
            }
            disk.safe = disk.bytes.len();
            if disk.fail_syncs { Err(io::Error::other("the disk is broken")) } else { Ok(()) }
        })
    }

    fn sync_again(&mut self, taken: &[u8]) -> io::Result<()> {
        self.set(|disk| {
            let place = disk.bytes.len() - taken.len();
            disk.bytes[place..].copy_from_slice(taken);
        });
        self.sync()
    }

    fn is_full(&self, _more: usize) -> bool {
        self.set(|disk| disk.is_full)
    }

    fn rotate(&mut self, _now: Timestamp) -> io::Result<Option<Arc<str>>> {
        self.look_after_files();
        self.set(|disk| {
            disk.is_full = false;
            disk.at_risk_when_full = Some(disk.bytes.len() - disk.safe);
        });
        Ok(Some("memory.000001".into()))
    }

    fn surplus(&self, _now: Timestamp) -> io::Result<Option<Surplus>> {
        self.look_after_files();
        Ok(None)
    }

    fn goes_on(&self) -> bool {
        false
    }

    fn name(&self) -> Arc<str> {
        "memory".into()
    }
}

fn lines(bytes: &[u8]) -> Vec<Value> {
    bytes
        .split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty())
        .map(|line| serde_json::from_slice(line).unwrap())
        .collect()
}

fn kind(line: &Value) -> &str {
    line["metadata"]["event_code"].as_str().unwrap()
}

pub(super) fn settings() -> Settings {
    Settings {
        instance: "replica-0".to_owned(),
        destination: Destination::Stdout,
        chain_key: Some(ChainKey::new(&[7; 32]).unwrap()),
        checkpoint_key: Some(CheckpointKey::generate().unwrap()),
        pseudonym_key: None,
        checkpoint_copy: None,
        checkpoint_records: 1000,
        checkpoint_interval: Duration::from_secs(60),
        when_full: WhenFull::Refuse,
        queue: 64,
        exports: Vec::new(),
    }
}

fn file_settings(path: &Path) -> Settings {
    Settings {
        destination: Destination::File { path: path.to_owned(), max_size: 64 << 10, retention: Retention::default() },
        ..settings()
    }
}

/// A trail over a sink in memory.
fn start(settings: &Settings, sink: &Memory, clock: &Clock) -> Trail {
    start_over(settings, over(sink), clock)
}

pub(super) fn over(sink: &Memory) -> Opened {
    let found = Found { last: Link::NONE, empty: false, repaired: 0 };
    Opened { sink: Box::new(sink.clone()), found, backlog: Arc::new(export::Backlog::none()) }
}

fn start_over(settings: &Settings, opened: Opened, clock: &Clock) -> Trail {
    Trail::start(settings, keys_of(settings), opened, clock.clone()).unwrap()
}

pub(super) fn keys_of(settings: &Settings) -> Keys {
    Keys { chain: settings.chain_key.clone().unwrap(), checkpoint: settings.checkpoint_key.clone().unwrap() }
}

/// Returns when the sink takes lines again.
fn wait_until_recovered(trail: &Trail) {
    while trail.failure().is_some() {
        std::thread::yield_now();
    }
}

pub(super) fn clock() -> Clock {
    Clock::manual(NOW)
}

pub(super) fn proof(settings: &Settings) -> Proof {
    Proof {
        keys: settings.chain_key.clone().into_iter().collect(),
        checkpoint_keys: settings.checkpoint_key.iter().map(|key| key.public().clone()).collect(),
        last_checkpoint: None,
        restarts: false,
        part: false,
    }
}

pub(super) fn verify(bytes: &[u8], proof: &Proof) -> Findings {
    let mut verifier = Verifier::new(proof).unwrap();
    verifier.read("trail", bytes).unwrap();
    verifier.finish()
}

pub(super) fn problems(findings: &Findings) -> Vec<String> {
    findings.problems.iter().map(ToString::to_string).collect()
}

pub(super) fn record(number: u128) -> Record {
    Record {
        host: "tekton.example.com".into(),
        path: format!("/apis/{number}").into(),
        ..Record::begin(Uuid::from_u128(number), NOW, Method::POST)
    }
}

fn principal() -> Principal {
    let claims = json!({
        "iss": "https://idp.example.com",
        "aud": ["doorward"],
        "department": "platform",
        "at_hash": "a-hash",
        "nonce": "the-nonce-of-a-login",
        "refresh_token": "rt-secret",
    });
    Principal {
        issuer: "corp".into(),
        subject: "00u1".into(),
        username: "corp:alice".into(),
        kind: Kind::Human,
        subject_kind: None,
        scheme: Scheme::Bearer,
        groups: vec!["devs".into(), "release-admins".into()],
        says_groups: true,
        scopes: vec!["openid".into(), "tekton:deploy".into()],
        says_scopes: true,
        client: Some("cli".into()),
        actor: Some(Actor { issuer: Some("bots".into()), subject: "agent-7".into(), client: Some("planner".into()) }),
        login: LoginFacts {
            auth_time: Some(Timestamp::from_secs(1_699_999_000)),
            acr: Some("phr".into()),
            amr: vec!["hwk".into()],
        },
        claims: Arc::new(claims.as_object().unwrap().clone()),
        kept_claims: None,
        credential: CredentialId::Token("jti-1".into()),
        signed_by: None,
        expires: Timestamp::from_secs(1_700_003_600),
        skew: Duration::ZERO,
        delivery: None,
        workload: None,
        on_behalf_of: None,
        acting: Box::default(),
        exchanged: Box::default(),
        lives_with: Box::default(),
        email: Some("alice@example.com".into()),
    }
}

/// Creates a record in which every field is set.
fn full_record() -> Record {
    Record {
        latency: Duration::from_micros(4321),
        trace: Some([0xab; 16]),
        route: Some("kube".into()),
        kind: Some(RouteKind::Kubernetes),
        endpoint: None,
        upgrade: true,
        address: Some("192.0.2.7".parse().unwrap()),
        tls: Some(Arc::new(Tls {
            version: "1.3",
            server_name: Some("tekton.example.com".into()),
            certificate: Some([1; 32]),
            subject: Some("CN=ops".into()),
        })),
        user_agent: Some("kubectl/1.36".into()),
        principal: Some(Arc::new(principal())),
        claims: Some(Arc::from([Arc::from("department")])),
        decision: Some(Decision {
            outcome: Effect::Allow,
            rule: Some("deploy-prod".into()),
            shadow: vec!["shadow-1".into()],
            grants: vec!["grant-1".into()],
        }),
        kubernetes: Some(Arc::new(Attributes {
            is_resource: true,
            follow: false,
            verb: "create".into(),
            api_group: "tekton.dev".into(),
            api_version: "v1".into(),
            namespace: "prod".into(),
            resource: "pipelineruns".into(),
            subresource: String::new(),
            name: "deploy".into(),
            path: String::new(),
            apply: true,
        })),
        run: Some(Arc::new(Run {
            intent: RunIntent::Create,
            statuses: vec![RunIntent::Cancel],
            references: vec!["deploy".into()],
            inline: true,
            service_accounts: vec!["deployer".into()],
            pod_template: true,
            binds_secrets: true,
            params: [("env".into(), "prod".into())].into(),
            labels: [("team".into(), "a".into())].into(),
        })),
        impersonated_groups: Some(["tekton-deployers".into()].into()),
        event_listener: Some(Arc::new(EventListener { namespace: "prod".into(), name: "deploy".into() })),
        delivery: Some(Arc::new(Facts {
            webhook: "hub".into(),
            sender_kind: "github".into(),
            delivery: "d-1".into(),
            event: Some("push".into()),
            repository: Some("acme/app".into()),
            repository_id: Some("42".into()),
            branch: Some("main".into()),
            fork: Some(false),
            ..Facts::default()
        })),
        upstream: Some(Upstream { name: "apiserver".into(), status: Some(StatusCode::CREATED) }),
        status: Some(StatusCode::CREATED),
        held: None,
        body_digest: Some([0xcd; 32]),
        bytes_in: 10,
        bytes_out: 20,
        event_id: Some("event-1".into()),
        policy: Some("sha256:0123".into()),
        ..record(0x0190_0000_0000_7000_8000_0000_0000_0001)
    }
}
