//! The benchmark cases, with wrk as the load generator.

use std::{collections::HashMap, fmt::Write as _, fs, process::Command, sync::OnceLock};

use aws_lc_rs::hmac;

use crate::{
    Failure, Sample,
    cluster::TASKS,
    exchange,
    peers::{Bench, Running},
    tokens::Algorithm,
};

pub const WEBHOOK_SECRET: &str = "a webhook secret of the bench";

/// A benchmark case.
pub struct Case {
    pub name: &'static str,
    /// The proxies to run it with, the baseline first.
    pub proxies: Vec<&'static str>,
    pub tls: bool,
    path: &'static str,
    traffic: Traffic,
}

enum Traffic {
    Plain,
    /// Tokens that the proxy has seen before.
    Seen(Algorithm),
    /// Each token once.
    New(Algorithm),
    /// Signed deliveries, each once.
    Webhook,
    /// Users who are signed in.
    Session,
    /// Tokens of pods that are exchanged, for the first time or repeatedly.
    Exchange {
        new: bool,
    },
    /// Tokens from such exchanges.
    Own,
}

/// How many tokens are in use when each has been seen before.
const SEEN: usize = 1000;
/// The number of requests of a run in which none may repeat.
const ONCE: usize = 12_000;
/// Connections of the load generator, each with one request at a time.
const CONNECTIONS: usize = 64;
/// How many users are signed in at once.
const PEOPLE: usize = 32;

pub fn cases(_: &Bench) -> Vec<Case> {
    let api = "/apis/tekton.dev/v1/namespaces/ci/pipelineruns";
    let case = |name, path, traffic, tls, proxies: &[&'static str]| Case {
        name,
        proxies: proxies.to_vec(),
        tls,
        path,
        traffic,
    };
    let all: &[&str] = &["bare", "doorward", "nginx"];
    let ours: &[&str] = &["doorward"];
    let once: &[&str] = &["signature", "doorward"];
    vec![
        case("plain", "/plain/x", Traffic::Plain, false, all),
        case("bearer RS256 seen", api, Traffic::Seen(Algorithm::Rs256), false, ours),
        case("bearer ES256 seen", api, Traffic::Seen(Algorithm::Es256), false, ours),
        case("bearer RS256 new", api, Traffic::New(Algorithm::Rs256), false, once),
        case("bearer ES256 new", api, Traffic::New(Algorithm::Es256), false, once),
        case("session cookie", api, Traffic::Session, false, ours),
        case("bearer own seen", "/x", Traffic::Own, false, ours),
        case("exchange, seen", exchange::TOKEN, Traffic::Exchange { new: false }, false, once),
        case("exchange, new", exchange::TOKEN, Traffic::Exchange { new: true }, false, once),
        case("webhook 25 kB", "/hooks", Traffic::Webhook, false, all),
        case("TLS", "/plain/x", Traffic::Plain, true, all),
        case("1 MiB body", "/big", Traffic::Plain, false, all),
    ]
}

/// Runs one case with one newly started proxy, and measures it.
pub fn run(bench: &Bench, case: &Case, proxy: &str, round: usize) -> Result<Sample, Failure> {
    let signatures = match (&case.traffic, proxy) {
        (Traffic::New(algorithm), "signature") => Some(bench.keys.check_signatures(*algorithm)?),
        (Traffic::Exchange { new }, "signature") => Some(bench.keys.exchange_signatures(*new)?),
        _ => None,
    };
    if let Some((checks, cpu_us)) = signatures {
        return Ok(Sample {
            case: case.name.to_owned(),
            proxy: proxy.to_owned(),
            round,
            requests: checks,
            cpu_us_per_request: cpu_us / checks as f64,
            requests_per_second: Some(checks as f64 * 1e6 / cpu_us),
        });
    }
    let issues = matches!(case.traffic, Traffic::Exchange { .. } | Traffic::Own);
    let running = match proxy {
        _ if issues => bench.issuer_of_tokens()?,
        "bare" => bench.bare(case.tls)?,
        "nginx" => bench.nginx(case.tls)?,
        _ => bench.doorward(case.tls)?,
    };
    let script = bench.dir.path().join("load.lua");
    let once = match case.traffic {
        Traffic::New(_) => Some(ONCE),
        Traffic::Webhook => Some(ONCE / 4),
        Traffic::Exchange { new: true } => Some(TASKS),
        Traffic::Plain | Traffic::Seen(_) | Traffic::Session | Traffic::Exchange { new: false } | Traffic::Own => None,
    };
    if issues {
        let starts = bench.dir.path().join("starts.lua");
        fs::write(&starts, exchange::starts(bench)?)?;
        wrk(&running, case, &starts, "2s", Some(TASKS))?;
    }
    fs::write(&script, lua(bench, case, &running, round)?)?;
    // Warms up connections, pools and, for tokens that count as seen, the cache.
    let warm = if once.is_some() { bench.dir.path().join("warm.lua") } else { script.clone() };
    if once.is_some() {
        fs::write(&warm, "request = function() return wrk.format('GET', '/plain/x') end")?;
    }
    wrk(&running, case, &warm, "1s", None)?;
    let before = running.cpu_us()?;
    // Twice as long as they take: wrk does not stop early, and what Doorward does meanwhile counts.
    let seconds = if once.is_some() { "3s" } else { "2s" };
    let (requests, per_second) = wrk(&running, case, &script, seconds, once)?;
    let cpu = running.cpu_us()? - before;
    Ok(Sample {
        case: case.name.to_owned(),
        proxy: proxy.to_owned(),
        round,
        requests,
        cpu_us_per_request: cpu / requests as f64,
        requests_per_second: per_second,
    })
}

/// The requests of a case as a wrk script, generated in advance so that the load generator costs little.
fn lua(bench: &Bench, case: &Case, running: &Running, round: usize) -> Result<String, Failure> {
    let list = match &case.traffic {
        Traffic::Plain => return Ok(format!("wrk.path = '{}'", case.path)),
        Traffic::Seen(algorithm) => bearer(bench, *algorithm, SEEN)?,
        Traffic::New(algorithm) => bearer(bench, *algorithm, ONCE)?,
        Traffic::Own => exchange::own(bench, running.address)?,
        Traffic::Webhook => return Ok(deliveries(case.path, round)),
        Traffic::Session => return people(case.path, running),
        Traffic::Exchange { new } => return exchange::swaps(bench, *new),
    };
    let stop = if matches!(case.traffic, Traffic::New(_)) {
        "if i > #tokens then wrk.thread:stop() i = 1 end"
    } else {
        "if i > #tokens then i = 1 end"
    };
    let host = if matches!(case.traffic, Traffic::Own) { ", Host = 'own.bench'" } else { "" };
    Ok(format!(
        "local tokens = {{{list}}}
        local requests, i = {{}}, 0
        init = function() for n, t in ipairs(tokens) do requests[n] = wrk.format('GET', '{}', {{Authorization = 'Bearer ' .. t{host}}}) end end
        request = function() i = i + 1 {stop} return requests[i] end",
        case.path
    ))
}

/// Signing thousands of RSA tokens takes seconds, so they are created once per process. A proxy is restarted for each
/// run and has not seen any.
fn bearer(bench: &Bench, algorithm: Algorithm, count: usize) -> Result<String, Failure> {
    static MADE: OnceLock<std::sync::Mutex<HashMap<String, String>>> = OnceLock::new();
    let mut made = MADE.get_or_init(Default::default).lock().map_err(|_| "poisoned")?;
    let key = format!("{algorithm:?} {count}");
    if let Some(list) = made.get(&key) {
        return Ok(list.clone());
    }
    let mut list = String::new();
    for token in bench.keys.tokens(&bench.issuer(), algorithm, count)? {
        write!(list, "'{token}',")?;
    }
    made.insert(key, list.clone());
    Ok(list)
}

fn people(path: &str, running: &Running) -> Result<String, Failure> {
    let mut list = String::new();
    for _ in 0..PEOPLE {
        write!(list, "'{}',", crate::person::log_in(running.address, path)?)?;
    }
    Ok(format!(
        "local cookies = {{{list}}}
        local requests, i = {{}}, 0
        init = function() for n, c in ipairs(cookies) do requests[n] = wrk.format('GET', '{path}', {{Host = 'localhost:{}', Cookie = c}}) end end
        request = function() i = i % #requests + 1 return requests[i] end",
        running.address.port()
    ))
}

fn deliveries(path: &str, round: usize) -> String {
    let key = hmac::Key::new(hmac::HMAC_SHA256, WEBHOOK_SECRET.as_bytes());
    let padding = "x".repeat(25_000);
    let mut list = String::new();
    for number in 0..ONCE / 4 {
        let body = format!(
            r#"{{"ref":"refs/heads/main","before":"{round:040}","after":"{number:040}","repository":{{"id":1234,"full_name":"acme/app","owner":{{"login":"acme"}}}},"sender":{{"id":7,"login":"octocat"}},"commits":[],"padding":"{padding}"}}"#
        );
        let tag = hmac::sign(&key, body.as_bytes());
        let hex: String = tag.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        let _ = write!(list, "{{'{hex}','{round:06}-{number:06}','{number:040}'}},");
    }
    // The body is assembled in Lua: 3,000 bodies of 25 kB would not fit in a script.
    format!(
        "local list = {{{list}}}
        local padding = string.rep('x', 25000)
        local i = 0
        request = function()
            i = i + 1
            if i > #list then wrk.thread:stop() i = 1 end
            local d = list[i]
            local body = '{{\"ref\":\"refs/heads/main\",\"before\":\"{round:040}\",\"after\":\"' .. d[3] .. '\",\"repository\":{{\"id\":1234,\"full_name\":\"acme/app\",\"owner\":{{\"login\":\"acme\"}}}},\"sender\":{{\"id\":7,\"login\":\"octocat\"}},\"commits\":[],\"padding\":\"' .. padding .. '\"}}'
            return wrk.format('POST', '{path}', {{['Content-Type'] = 'application/json', ['X-GitHub-Event'] = 'push',
                ['X-GitHub-Delivery'] = d[2], ['X-Hub-Signature-256'] = 'sha256=' .. d[1]}}, body)
        end"
    )
}

/// Returns the number of requests served, and their rate. With `once`, the script stops after that many requests; the
/// rate is unknown then, as wrk divides by its whole duration. Any response other than 2xx fails the run. So does any
/// socket error or, if the script stops, which breaks connections, a last request that was not reached. Connections
/// that are ready when it stops still repeat one of the first requests: there may be one more for each other connection
/// than are counted.
fn wrk(
    running: &Running,
    case: &Case,
    script: &std::path::Path,
    seconds: &str,
    once: Option<usize>,
) -> Result<(u64, Option<f64>), Failure> {
    let scheme = if case.tls { "https" } else { "http" };
    let output = Command::new("taskset")
        .args(["-c", "1", "wrk", "-t1", &format!("-c{CONNECTIONS}"), "-d", seconds, "-s"])
        .arg(script)
        .arg(format!("{scheme}://{}", running.address))
        .output()
        .map_err(|error| format!("wrk: {error}"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if text.contains("Non-2xx") || (text.contains("Socket errors") && once.is_none()) {
        return Err(format!("{}: not every request went well\n{text}", case.name).into());
    }
    let counted: u64 = text
        .lines()
        .find_map(|line| line.trim().split_once(" requests in "))
        .and_then(|(count, _)| count.parse().ok())
        .ok_or_else(|| format!("wrk printed no count\n{text}"))?;
    let Some(all) = once else {
        let rate = text
            .lines()
            .find_map(|line| line.strip_prefix("Requests/sec:"))
            .and_then(|rate| rate.trim().parse().ok())
            .ok_or_else(|| format!("wrk printed no rate\n{text}"))?;
        return Ok((counted, Some(rate)));
    };
    // The last request of each connection is not counted, as wrk stops before it is answered. The proxy still answers
    // it: the connections stay open until the time is over.
    if counted + (CONNECTIONS as u64) < all as u64 {
        return Err(format!(
            "{}: no more than {counted} of {all} requests were answered in {seconds}\n{text}",
            case.name
        )
        .into());
    }
    Ok((all as u64, None))
}
