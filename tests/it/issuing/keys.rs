//! Rotation of the signing keys, while tokens are issued and used all the time: no valid one is refused.

use std::{
    cell::RefCell,
    collections::VecDeque,
    convert::Infallible,
    fs,
    time::{Duration, Instant},
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde_json::json;

use super::{TARGET, World, kids, part};
use crate::{
    fixture::Change,
    harness::{
        Answer, Doorward, EXCHANGE, NOT_ALLOWED, Raw, RedisServer, exchange_form, found, now, replace_file, request,
        rfc3339, until, within,
    },
};

/// The number of concurrent clients.
const CLIENTS: usize = 4;

/// How many earlier tokens are used again and again.
const KEPT: usize = 40;

/// Clients at one or more replicas that send without pause.
struct Load<'w> {
    world: &'w World,
    replicas: Vec<&'w Doorward>,
    seen: RefCell<Seen>,
}

#[derive(Default)]
struct Seen {
    /// The keys that have signed, in the order of their first tokens.
    signers: Vec<String>,
    /// Tokens that must be valid.
    tokens: VecDeque<String>,
    uses: usize,
    /// Uses of a token after a later key had signed.
    of_older: usize,
}

fn kid(token: &str) -> String {
    part(token, 0)["kid"].as_str().unwrap().to_owned()
}

/// A persistent connection.
struct Client<'w> {
    doorward: &'w Doorward,
    raw: Raw,
}

impl<'w> Client<'w> {
    async fn to(doorward: &'w Doorward) -> Self {
        Self { doorward, raw: doorward.raw().await }
    }

    async fn ask(&mut self, lines: &[&str], body: &[u8]) -> Answer {
        self.raw.send(request(lines, body)).await;
        let answer = self.raw.answer().await;
        if answer.closed || answer.header("connection") == Some("close") {
            self.raw = self.doorward.raw().await;
        }
        answer
    }

    /// Asks for a token for Alice's agent.
    async fn exchange(&mut self, world: &World) -> Answer {
        let (agent, person) = ("planner-account", json!({"client_id": "planner"}));
        let form = exchange_form(&[
            ("subject_token", &world.person("alice", &person)),
            ("actor_token_type", "urn:ietf:params:oauth:token-type:access_token"),
            ("actor_token", &world.person(agent, &person)),
            ("audience", TARGET),
            ("scope", "plan"),
        ]);
        self.ask(&EXCHANGE, form.as_bytes()).await
    }

    async fn kids(&mut self) -> Vec<String> {
        kids(&self.ask(&["GET /oauth2/jwks HTTP/1.1", "Host: doorward.test"], b"").await)
    }
}

impl<'w> Load<'w> {
    fn new(world: &'w World, replicas: Vec<&'w Doorward>) -> Self {
        Self { world, replicas, seen: RefCell::default() }
    }

    /// Asks the replicas in turn for tokens, and uses each of them, and an earlier one, at all replicas.
    async fn client(&self, number: usize) -> Infallible {
        let mut clients = Vec::new();
        for replica in &self.replicas {
            clients.push(Client::to(replica).await);
        }
        let mut turn = number;
        loop {
            turn += 1;
            let at = turn % clients.len();
            let own = clients[at].exchange(self.world).await.token();
            let older = self.note(&own, turn);
            for (replica, client) in clients.iter_mut().enumerate() {
                for token in [&own, &older] {
                    let bearer = format!("Authorization: Bearer {token}");
                    let answer = client.ask(&["GET / HTTP/1.1", "Host: localhost", &bearer], b"").await;
                    let signers = &self.seen.borrow().signers;
                    assert_eq!(
                        answer.status,
                        200,
                        "of key {} at replica {replica} after {signers:?}: {}",
                        kid(token),
                        answer.text()
                    );
                }
                // Other verifiers know only the key set.
                let kids = client.kids().await;
                for token in [&own, &older] {
                    assert!(kids.contains(&kid(token)), "{} is not published: {kids:?}", kid(token));
                }
                let mut seen = self.seen.borrow_mut();
                seen.uses += 2;
                seen.of_older += usize::from(seen.signers.last() != Some(&kid(&older)));
            }
        }
    }

    /// Records a new token, and returns an earlier one.
    fn note(&self, own: &str, turn: usize) -> String {
        let mut seen = self.seen.borrow_mut();
        let signer = kid(own);
        if !seen.signers.contains(&signer) {
            seen.signers.push(signer);
        }
        if seen.tokens.len() < KEPT {
            seen.tokens.push_back(own.to_owned());
        }
        seen.tokens[turn % seen.tokens.len()].clone()
    }

    /// Lets the clients send until `meanwhile` has completed.
    async fn during<T>(&self, meanwhile: impl Future<Output = T>) -> T {
        let clients = (0..CLIENTS).map(|number| self.client(number));
        tokio::select! {
            _ = futures_util::future::join_all(clients) => unreachable!("they never stop"),
            done = within(meanwhile) => done,
        }
    }

    async fn until(&self, done: impl Fn(&Seen) -> bool) {
        while !done(&self.seen.borrow()) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Until `uses` more uses have succeeded.
    async fn more(&self, uses: usize) {
        let until = self.seen.borrow().uses + uses;
        self.until(|seen| seen.uses >= until).await;
    }

    /// Sets all clocks ahead, between two loads, as earlier tokens may have expired by then.
    async fn set_clocks_ahead(&self, seconds: u64) {
        self.seen.borrow_mut().tokens.clear();
        self.advance_clocks_to(seconds).await;
    }

    /// Sets all clocks to a few seconds before the moment that is `ahead` seconds from now, with valid tokens of a
    /// minute before it: however long that takes, they are older than the moment.
    async fn come_close_to(&self, ahead: impl Fn() -> u64) {
        self.set_clocks_ahead(ahead() - 60).await;
        self.during(self.more(100)).await;
        self.advance_clocks_to(ahead() - 5).await;
    }

    async fn advance_clocks_to(&self, seconds: u64) {
        self.world.people.set_clock_ahead(seconds.cast_signed());
        for replica in &self.replicas {
            replica.set_clock_ahead(seconds);
        }
        self.are_ready().await;
    }

    /// Waits until no replica considers its data stale.
    async fn are_ready(&self) {
        for replica in &self.replicas {
            let mut client = Client::to(replica).await;
            until(async || {
                let answer = client.exchange(self.world).await;
                if answer.status == 503 {
                    return false;
                }
                let own = format!("Authorization: Bearer {}", answer.token());
                client.ask(&["GET / HTTP/1.1", "Host: localhost", &own], b"").await.status != 503
            })
            .await;
        }
    }
}

/// Two replicas of one store, with keys from the same files.
struct Replicas {
    world: World,
    other: Doorward,
    _redis: RedisServer,
}

impl Replicas {
    /// `keys` configures the signing keys `first.pem` and `second.pem`.
    async fn with_keys(keys: &str) -> Self {
        let redis = RedisServer::start(&["--appendonly", "yes", "--appendfsync", "always"]);
        let seal = BASE64_STANDARD.encode([7; 32]);
        let [first, second] = [(); 2].map(|()| rcgen::KeyPair::generate().unwrap().serialize_pem());
        let files = [("first.pem", first.as_str()), ("second.pem", &second), ("seal", &seal)];
        let store = format!("store: {{path: doorward.redb, redis: {{server: '{}'}}}}", redis.address());
        let change = |yaml: String| {
            yaml.change("\ntokens:\n", &format!("\nsessions: {{keys: [{{file: seal}}]}}\ntokens:\n  keys: {keys}\n"))
                .change("store: {path: doorward.redb}", &store)
        };
        let world = World::with_files(change, &files).await;
        let (one, dir) = (world.doorward.dir(), tempfile::tempdir().unwrap());
        for name in ["target", "other", "first.pem", "second.pem", "seal"] {
            fs::copy(one.join(name), dir.path().join(name)).unwrap();
        }
        let yaml = fs::read_to_string(one.join("doorward.yaml")).unwrap();
        let other = Doorward::start_with_faults(dir, &yaml).await;
        Self { world, other, _redis: redis }
    }

    fn both(&self) -> [&Doorward; 2] {
        [&self.world.doorward, &self.other]
    }

    fn load(&self) -> Load<'_> {
        Load::new(&self.world, self.both().to_vec())
    }
}

/// Changes the configuration of a replica, and waits until it is in force.
pub(super) async fn reload(doorward: &Doorward, change: impl FnOnce(String) -> String) {
    // Key sets have generations too.
    let loads = || doorward.log().iter().filter(|line| line["message"] == "configuration loaded").count();
    let (before, path) = (loads(), doorward.dir().join("doorward.yaml"));
    let old = fs::read_to_string(&path).unwrap();
    let new = change(old.clone());
    assert_ne!(new, old);
    replace_file(&path, &new);
    until(async || loads() > before).await;
}

#[tokio::test]
async fn no_valid_token_is_refused_while_doorwards_own_keys_are_replaced() {
    // Not later than its first key.
    let started = Instant::now();
    let world = World::with(|yaml| yaml.change("\ntokens:\n", "\ntokens:\n  rotate: 1h\n")).await;
    let load = Load::new(&world, vec![&world.doorward]);
    load.are_ready().await;
    let keys = world.kids().await;
    let signing = async || {
        let metrics = world.doorward.metrics().await;
        let signs = |kid: &String| metrics.contains(&format!("doorward_token_key_signs{{kid=\"{kid}\"}} 1\n"));
        keys.iter().map(signs).collect::<Vec<_>>()
    };
    assert_eq!(signing().await, [true, false]);
    load.during(async {
        load.more(100).await;
        reload(&world.doorward, |yaml| yaml.change("rotate: 1h", "rotate: 1h\n  lifetime: 9m")).await;
        load.more(100).await;
    })
    .await;
    // A few seconds before the successor starts to sign.
    load.come_close_to(|| 3600 - started.elapsed().as_secs()).await;
    load.during(async {
        load.until(|seen| seen.signers.len() == 2).await;
        load.until(|seen| seen.of_older >= 200).await;
    })
    .await;
    assert_eq!(load.seen.borrow().signers, keys, "the successor was published all along");
    assert_eq!(signing().await, [false, true]);
    // The same before the first key is withdrawn from the set, half an hour later.
    load.set_clocks_ahead(3600 + 1800 - 5 - started.elapsed().as_secs()).await;
    load.during(async {
        while world.kids().await.contains(&keys[0]) {
            load.more(10).await;
        }
        load.more(100).await;
    })
    .await;
    assert_eq!(load.seen.borrow().signers, keys);
    assert_eq!(world.kids().await.first(), keys.last(), "one signs");
    assert_eq!(world.kids().await.len(), 2, "and one will");
}

#[tokio::test]
async fn no_valid_token_is_refused_while_replicas_get_another_key_from_a_file() {
    let replicas = Replicas::with_keys("[{file: first.pem}]").await;
    let load = replicas.load();
    load.are_ready().await;

    let (one, both, turned, other) = (
        "keys: [{file: first.pem}]",
        "keys: [{file: first.pem}, {file: second.pem}]",
        "keys: [{file: second.pem}, {file: first.pem}]",
        "keys: [{file: second.pem}]",
    );
    load.during(async {
        load.more(100).await;
        // Each replica publishes it before any signs with it.
        for (before, after) in [(one, both), (both, turned)] {
            for replica in replicas.both() {
                reload(replica, |yaml| yaml.change(before, after)).await;
                load.more(100).await;
            }
        }
        load.until(|seen| seen.of_older >= 200).await;
    })
    .await;
    assert_eq!(load.seen.borrow().signers.len(), 2);
    // The last token signed by the first key has expired, and the key is removed.
    load.set_clocks_ahead(660).await;
    load.during(async {
        for replica in replicas.both() {
            reload(replica, |yaml| yaml.change(turned, other)).await;
            load.more(100).await;
        }
    })
    .await;
    assert_eq!(replicas.world.kids().await, load.seen.borrow().signers[1..]);
}

#[tokio::test]
async fn no_valid_token_is_refused_while_replicas_switch_to_another_key() {
    const AHEAD: u64 = 3600;
    let at = now() + AHEAD;
    let from = rfc3339(at);
    let replicas = Replicas::with_keys(&format!("[{{file: first.pem}}, {{file: second.pem, from: '{from}'}}]")).await;
    let load = replicas.load();
    load.are_ready().await;
    let published = replicas.world.kids().await;
    assert_eq!(published.len(), 2);
    load.during(load.more(100)).await;
    assert_eq!(load.seen.borrow().signers, published[..1]);
    // The moment comes while tokens are issued and used, without any reload.
    load.come_close_to(|| at - now()).await;
    load.during(async {
        load.until(|seen| seen.signers.len() == 2).await;
        load.until(|seen| seen.of_older >= 200).await;
    })
    .await;
    assert_eq!(load.seen.borrow().signers, published);
    assert_eq!(replicas.world.kids().await, published);
}

#[tokio::test]
async fn no_valid_token_is_refused_while_keys_from_files_replace_generated_ones() {
    let pem = rcgen::KeyPair::generate().unwrap().serialize_pem();
    let world = World::with_files(|yaml| yaml, &[("first.pem", &pem)]).await;
    let mut client = Client::to(&world.doorward).await;
    let (made, old) = (world.kids().await, client.exchange(&world).await.token());
    reload(&world.doorward, |yaml| yaml.change("\ntokens:\n", "\ntokens:\n  keys: [{file: first.pem}]\n")).await;
    let new = client.exchange(&world).await.token();
    assert!(!made.contains(&kid(&new)), "that of the file signs");
    let published = world.kids().await;
    assert_eq!((published.first(), &published[1..]), (Some(&kid(&new)), &made[..]), "all are published");
    for token in [&old, &new] {
        let answer =
            client.ask(&["GET / HTTP/1.1", "Host: localhost", &format!("Authorization: Bearer {token}")], b"").await;
        assert_eq!(answer.status, 200, "{}: {}", kid(token), answer.text());
    }
    // Also after a restart.
    let World { doorward, .. } = world;
    let doorward = doorward.kill_and_restart().await;
    let answer = doorward.get("/oauth2/jwks", &["Host: doorward.test"]).await;
    assert_eq!(answer.json()["keys"].as_array().unwrap().len(), published.len(), "{}", answer.text());
}

#[tokio::test]
async fn no_valid_token_is_refused_while_generated_keys_replace_those_from_files() {
    let pem = rcgen::KeyPair::generate().unwrap().serialize_pem();
    let keys = "\ntokens:\n  keys: [{file: first.pem}]\n";
    let world = World::with_files(|yaml| yaml.change("\ntokens:\n", keys), &[("first.pem", &pem)]).await;
    let mut client = Client::to(&world.doorward).await;
    let (of_file, old) = (world.kids().await, client.exchange(&world).await.token());
    reload(&world.doorward, |yaml| yaml.change(keys, "\ntokens:\n")).await;
    // Immediately: nothing waits for keys.
    let new = client.exchange(&world).await.token();
    assert!(!of_file.contains(&kid(&new)), "one that was made signs");
    let published = world.kids().await;
    assert_eq!((published.first(), published.len(), &published[2..]), (Some(&kid(&new)), 3, &of_file[..]));
    for token in [&old, &new] {
        let answer =
            client.ask(&["GET / HTTP/1.1", "Host: localhost", &format!("Authorization: Bearer {token}")], b"").await;
        assert_eq!(answer.status, 200, "{}: {}", kid(token), answer.text());
    }
}

/// Its tokens were refused at once, and nothing said so.
#[tokio::test]
async fn the_key_that_signs_stays_published_for_its_last_tokens_if_a_reload_replaces_it() {
    let [first, second] = [(); 2].map(|()| rcgen::KeyPair::generate().unwrap().serialize_pem());
    let keys = "\ntokens:\n  keys: [{file: first.pem}]\n";
    let files = [("first.pem", first.as_str()), ("second.pem", &second)];
    let world = World::with_files(|yaml| yaml.change("\ntokens:\n", keys), &files).await;
    let mut client = Client::to(&world.doorward).await;
    let (before, old) = (world.kids().await, client.exchange(&world).await.token());
    reload(&world.doorward, |yaml| yaml.change("first.pem", "second.pem")).await;
    let new = client.exchange(&world).await.token();
    assert_eq!(world.kids().await, [kid(&new), before[0].clone()]);
    for token in [&old, &new] {
        let answer =
            client.ask(&["GET / HTTP/1.1", "Host: localhost", &format!("Authorization: Bearer {token}")], b"").await;
        assert_eq!(answer.status, 200, "{}: {}", kid(token), answer.text());
    }
    assert!(world.doorward.log().iter().any(|line| line.to_string().contains("the key that signed tokens until now")));
    // One that leaked is refused after a restart.
    let World { doorward, .. } = world;
    let doorward = doorward.kill_and_restart().await;
    assert_eq!(kids(&doorward.get("/oauth2/jwks", &["Host: doorward.test"]).await), [kid(&new)]);
}

/// It may be valid in itself: that a group may not be impersonated is found only after everything has been read.
#[tokio::test]
async fn a_configuration_that_is_refused_leaves_the_keys_of_tokens_as_they_are() {
    let [first, second] = [(); 2].map(|()| rcgen::KeyPair::generate().unwrap().serialize_pem());
    let change = |yaml: String| {
        let url = yaml.split("{name: web, url: '").nth(1).unwrap().split('\'').next().unwrap();
        let cluster = format!("upstreams: [{{name: cluster, url: '{url}', credential: {{bearer: {{file: api}}}}}}, ");
        let route = "routes: [{name: api, kind: kubernetes, hosts: [api.test], schemes: [bearer], issuers: [people], \
                     upstream: cluster}, ";
        yaml.change("upstreams: [", &cluster)
            .change("routes: [{", &format!("{route}{{"))
            .change("\ntokens:\n", "\ntokens:\n  keys: [{file: first.pem}]\n")
    };
    let files = [("first.pem", first.as_str()), ("second.pem", &second), ("api", "token")];
    let mut world = World::with_files(change, &files).await;
    let (published, token) = (world.kids().await, Client::to(&world.doorward).await.exchange(&world).await.token());
    let path = world.doorward.dir().join("doorward.yaml");
    let refused = fs::read_to_string(&path).unwrap().change("first.pem", "second.pem").change(
        "\nrules:\n",
        &format!(
            "\ngrants: [{{id: more, who: {{issuers: [people], groups: [more]}}, kubernetes_groups: ['{NOT_ALLOWED}']}}]\nrules:\n"
        ),
    );
    replace_file(&path, &refused);
    let refusal = world.doorward.wait_for_log_containing("the configuration was refused").await.to_string();
    assert!(refusal.contains(NOT_ALLOWED), "{refusal}");
    assert_eq!(world.kids().await, published);
    let new = Client::to(&world.doorward).await.exchange(&world).await.token();
    for token in [&token, &new] {
        let answer = world.doorward.get("/", &["Host: localhost", &format!("Authorization: Bearer {token}")]).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
}

#[tokio::test]
async fn keys_are_replaced_without_a_gap() {
    let world = World::start().await;
    let before = world.kids().await;
    let old = world.exchange(&world.job(&json!({})), "deploy").await.token();
    assert_eq!(part(&old, 0)["kid"].as_str(), before.first().map(String::as_str));
    // Slightly more than seven days.
    let ahead = 7 * 86_400 + 60;
    world.doorward.set_clock_ahead(ahead);
    world.ci.set_clock_ahead(ahead.cast_signed());
    let new = found(async || {
        let answer = world.exchange(&world.job(&json!({})), "deploy").await;
        // For a moment it considers its revocations stale.
        if answer.status == 503 {
            return None;
        }
        Some(answer.token()).filter(|new| part(new, 0)["kid"] != part(&old, 0)["kid"])
    })
    .await;
    assert_eq!(
        part(&new, 0)["kid"].as_str(),
        before.get(1).map(String::as_str),
        "the successor was published all along"
    );
    let after = world.kids().await;
    assert!(before.iter().all(|kid| after.contains(kid)), "the old one is published still: {before:?} {after:?}");
}
