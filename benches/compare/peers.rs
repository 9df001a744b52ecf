//! The processes of a run: the upstream and issuer (one nginx on core 1), and the proxies (each on core 0).

use std::{
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use tempfile::TempDir;

use crate::{
    Failure, person,
    tokens::{AUDIENCE, Keys},
};

/// Shared by all runs.
pub struct Bench {
    pub dir: TempDir,
    pub keys: Keys,
    pub upstream: SocketAddr,
    /// The port of the Doorward under test, which the provider must know.
    port: u16,
    /// The issuer of the people.
    people: String,
    /// The API server with the tasks.
    tasks: SocketAddr,
    _nginx: Killed,
    _tasks: Killed,
}

/// A process that ends with its owner.
pub struct Killed(pub Child);

impl Drop for Killed {
    fn drop(&mut self) {
        // nginx exits on SIGTERM along with its worker; SIGKILL would orphan the worker.
        let _ = Command::new("kill").arg(self.0.id().to_string()).status();
        let _ = self.0.wait();
    }
}

/// A proxy under test.
pub struct Running {
    pub address: SocketAddr,
    process: Killed,
}

impl Running {
    /// The memory of the process in MiB, with its share of shared pages.
    pub fn memory_mib(&self) -> Result<f64, Failure> {
        let rollup = fs::read_to_string(format!("/proc/{}/smaps_rollup", self.process.0.id()))?;
        let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:")).ok_or("no Pss")?;
        Ok(line.trim().trim_end_matches(" kB").parse::<f64>()? / 1024.0)
    }

    /// User and system time so far, in microseconds, of the process and its children (nginx serves in one).
    pub fn cpu_us(&self) -> Result<f64, Failure> {
        let id = self.process.0.id();
        let mut ids = vec![id.to_string()];
        let children = fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap_or_default();
        ids.extend(children.split_whitespace().map(str::to_owned));
        let mut ticks = 0.0;
        for id in ids {
            let stat = fs::read_to_string(format!("/proc/{id}/stat"))?;
            let after_name = stat.rsplit_once(')').ok_or("no name in stat")?.1;
            let fields: Vec<&str> = after_name.split_whitespace().collect();
            ticks += fields[11].parse::<f64>()? + fields[12].parse::<f64>()?;
        }
        // Linux counts in hundredths of a second on every platform relevant here (USER_HZ).
        Ok(ticks * 10_000.0)
    }
}

const UPSTREAM_CORE: &str = "1";
const PROXY_CORE: &str = "0";

impl Bench {
    pub fn start() -> Result<Self, Failure> {
        let dir = TempDir::new()?;
        let keys = Keys::new()?;
        let upstream = free_address()?;
        let web = dir.path().join("web");
        fs::create_dir_all(web.join(".well-known"))?;
        let issuer = format!("http://{upstream}");
        fs::write(
            web.join(".well-known/openid-configuration"),
            serde_json::json!({"issuer": issuer, "jwks_uri": format!("{issuer}/jwks")}).to_string(),
        )?;
        fs::write(web.join("jwks"), keys.key_set().to_string())?;
        fs::write(web.join("big"), vec![b'x'; 1 << 20])?;
        fs::write(web.join("small"), format!("{{\"data\":\"{}\"}}", "x".repeat(1013)))?;
        certificate(dir.path())?;
        let locations = "location / { root WEB; try_files $uri /small; default_type application/json; }
            location /hooks { return 202 '{\"eventID\":\"0\"}'; }"
            .replace("WEB", &web.display().to_string());
        let nginx =
            nginx(dir.path(), "upstream", UPSTREAM_CORE, &format!("server {{ listen {upstream}; {locations} }}"))?;
        wait_for(upstream)?;
        let tasks = free_address()?;
        let mut cluster = pinned(UPSTREAM_CORE, &std::env::current_exe()?.display().to_string());
        let cluster = Killed(cluster.args(["cluster", &tasks.to_string()]).spawn()?);
        wait_for(tasks)?;
        let port = free_address()?.port();
        let people = person::provider(&[port])?;
        Ok(Self { dir, keys, upstream, port, people, tasks, _nginx: nginx, _tasks: cluster })
    }

    pub fn issuer(&self) -> String {
        format!("http://{}", self.upstream)
    }

    pub fn bare(&self, tls: bool) -> Result<Running, Failure> {
        let address = free_address()?;
        let mut command = pinned(PROXY_CORE, &std::env::current_exe()?.display().to_string());
        command.args(["bare", &address.to_string(), &self.upstream.to_string()]);
        if tls {
            command.arg(self.dir.path().join("tls.crt")).arg(self.dir.path().join("tls.key"));
        }
        running(command.spawn()?, address)
    }

    pub fn nginx(&self, tls: bool) -> Result<Running, Failure> {
        let address = free_address()?;
        let dir = self.dir.path().display();
        let listen = if tls {
            format!("listen {address} ssl; ssl_certificate {dir}/tls.crt; ssl_certificate_key {dir}/tls.key;")
        } else {
            format!("listen {address};")
        };
        let http = format!(
            "upstream up {{ server {}; keepalive 64; }} server {{ {listen} client_max_body_size 32m; location / {{
                proxy_pass http://up; proxy_http_version 1.1; proxy_set_header Connection \"\"; }} }}",
            self.upstream
        );
        let process = nginx(self.dir.path(), "peer", PROXY_CORE, &http)?;
        wait_for(address)?;
        Ok(Running { address, process })
    }

    /// Doorward with one worker, with the audit trail on and the log off.
    pub fn doorward(&self, tls: bool) -> Result<Running, Failure> {
        self.doorward_with(tls, "")
    }

    /// As [`Self::doorward`], and it issues tokens to tasks.
    pub fn issuer_of_tokens(&self) -> Result<Running, Failure> {
        self.doorward_with(false, &TOKENS.replace("{tasks}", &self.tasks.to_string()))
    }

    fn doorward_with(&self, tls: bool, more: &str) -> Result<Running, Failure> {
        let home = self.home()?;
        let shared = self.dir.path().display().to_string();
        let tls = match tls {
            true => format!("tls: {{certificates: [{{chain: {shared}/tls.crt, key: {shared}/tls.key}}]}}"),
            false => String::new(),
        };
        let (sections, entries) = more.split_once("---\n").unwrap_or_default();
        let mut yaml = CONFIG.to_owned() + sections;
        // List entries are appended to the existing ones.
        for entry in entries.split("---\n").filter(|entry| !entry.is_empty()) {
            let (list, entry) = entry.split_once('\n').ok_or("an entry of no list")?;
            yaml = yaml.replace(&format!("\n{list}\n"), &format!("\n{list}\n{entry}"));
        }
        let yaml = yaml
            .replace("{address}", &self.address().to_string())
            .replace("{tls}", &tls)
            .replace("{upstream}", &self.upstream.to_string())
            .replace("{audience}", AUDIENCE)
            .replace("{people}", &self.people)
            .replace("{client}", person::CLIENT.0);
        fs::write(home.join("doorward.yaml"), yaml)?;
        let mut command = pinned(PROXY_CORE, env!("CARGO_BIN_EXE_doorward"));
        command.arg("serve").arg(home.join("doorward.yaml")).stdout(Stdio::null());
        running(command.spawn()?, self.address())
    }

    /// Doorward with the demo's configuration, on all cores. Its provider and samples are separate processes.
    pub fn demo(&self) -> Result<Running, Failure> {
        let home = self.home()?;
        let mut yaml = include_str!("../../src/demo/doorward.yaml")
            .replace("{listeners}", &format!("{{name: public, address: \"{}\"}}", self.address()))
            .replace("{issuer}", &self.people)
            .replace("{audience}", AUDIENCE)
            .replace("{client}", person::CLIENT.0)
            .replace("{agent}", "agent");
        for upstream in ["{event_listener}", "{dashboard}", "{kubernetes}"] {
            yaml = yaml.replace(upstream, &self.upstream.to_string());
        }
        fs::write(home.join("doorward.yaml"), yaml)?;
        let mut command = Command::new(env!("CARGO_BIN_EXE_doorward"));
        command.arg("serve").arg(home.join("doorward.yaml")).stdout(Stdio::null());
        running(command.spawn()?, self.address())
    }

    fn address(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.port))
    }

    /// A folder with the secrets, and a subfolder that is not watched for changes.
    fn home(&self) -> Result<PathBuf, Failure> {
        let home = TempDir::new_in(self.dir.path())?.keep();
        fs::create_dir(home.join("state"))?;
        for (name, text) in [
            ("webhook.secret", crate::load::WEBHOOK_SECRET),
            ("cluster.token", "upstream-token"),
            ("client.secret", person::CLIENT.1),
        ] {
            fs::write(home.join(name), text)?;
        }
        Ok(home)
    }
}

const CONFIG: &str = "
workers: 1
listeners:
  - name: public
    address: {address}
    {tls}
limits: {connections_per_address: 10000}
issuers:
  - name: bench
    issuer: http://{upstream}
    audiences: [\"{audience}\"]
    clients: [{id: bench, kind: human}]
  - name: people
    issuer: {people}
    audiences: [\"{audience}\"]
    username: \"people:{sub}\"
    kind: human
    login: {client: {id: \"{client}\", secret: {file: client.secret}}, scopes: [profile, email, groups]}
upstreams:
  - {name: plain, url: \"http://{upstream}\"}
  - {name: cluster, url: \"http://{upstream}\", credential: {bearer: {file: cluster.token}}}
webhooks:
  - {name: github, sender: github, hold: false, secrets: [{secret: {file: webhook.secret}}]}
routes:
  - {name: plain, kind: http, hosts: [\"127.0.0.1\"], paths: [/plain/*, /big], schemes: [anonymous], upstream: plain}
  - {name: cluster, kind: kubernetes, hosts: [\"127.0.0.1\"], paths: [/apis/*], schemes: [bearer], upstream: cluster}
  - {name: browser, kind: kubernetes, hosts: [localhost], paths: [/apis/*], schemes: [session], upstream: cluster}
  - name: hooks
    kind: webhook
    hosts: [\"127.0.0.1\"]
    paths: [/hooks]
    schemes: [webhook]
    webhook: github
    upstream: plain
grants:
  - {id: developers, who: {issuers: [bench, people], groups: [developers]}, kubernetes_groups: [\"tekton:developers\"]}
  - {id: on-call, who: {issuers: [bench, people], groups: [on-call]}, kubernetes_groups: [\"tekton:on-call\"]}
rules:
  - {id: everybody, on: {routes: [plain]}, who: {anonymous: true}, do: allow}
  - {id: no-exec, on: {routes: [cluster], kubernetes: {resources: [pods/exec]}}, do: deny}
  - {id: read, on: {routes: [cluster, browser], kubernetes: {verbs: [read], api_groups: [tekton.dev], namespaces: [ci]}}, who: {issuers: [bench, people], groups: [developers], kind: human}, do: allow}
  - {id: run, on: {routes: [cluster], kubernetes: {verbs: [create], api_groups: [tekton.dev], namespaces: [ci]}}, who: {issuers: [bench, people], groups: [developers], kind: human}, do: allow}
  - {id: hooks, on: {routes: [hooks], event: [push]}, who: {webhooks: [github]}, do: allow}
store: {path: state/doorward.redb}
audit: {sink: {file: {path: state/audit.jsonl, max_size: 64MiB, keep: 2}}}
log: {filter: error}
";

/// The configuration that makes Doorward an issuer: sections, and list entries.
const TOKENS: &str = "external_host: doorward.bench
tokens: {exchange: [{issuer: tasks, kubernetes: tasks, namespaces: [ci]}]}
---
issuers:
  - name: tasks
    issuer: https://kubernetes.bench
    preset: kubernetes
    audiences: [\"{audience}\"]
    keys: {url: \"http://{upstream}/jwks\"}
    token_review: {upstream: tasks, bearer: {file: cluster.token}}
  - {name: own, preset: doorward, audiences: ['https://target.bench']}
---
upstreams:
  - {name: tasks, url: \"http://{tasks}\", credential: {bearer: {file: cluster.token}}}
---
routes:
  - {name: tasks, kind: kubernetes, hosts: [tasks.bench], paths: [/apis/*], schemes: [bearer], issuers: [bench], upstream: tasks}
  - {name: own, kind: http, hosts: [own.bench], schemes: [bearer], issuers: [own], upstream: plain}
---
grants:
  - {id: start, who: {issuers: [bench], groups: [developers]}, kubernetes_groups: [\"tekton:start\"]}
---
rules:
  - {id: use, on: {routes: [own]}, who: {issuers: [own], kind: agent, on_behalf_of: {}, scopes: [push]}, do: allow}
  - {id: start, on: {routes: [tasks]}, who: {issuers: [bench], groups: [developers], kind: human}, do: allow}
  - id: push
    on: {token: {audiences: ['https://target.bench'], scopes: [push], service_accounts: [ci/builder], pipelines: [release], pipeline_tasks: [push]}}
    who: {issuers: [bench], on_behalf_of: {groups: [developers]}}
    do: allow
";

fn running(child: Child, address: SocketAddr) -> Result<Running, Failure> {
    let process = Killed(child);
    wait_for(address)?;
    Ok(Running { address, process })
}

fn pinned(core: &str, program: &str) -> Command {
    let mut command = Command::new("taskset");
    command.args(["-c", core, program]);
    command
}

fn nginx(dir: &Path, name: &str, core: &str, http: &str) -> Result<Killed, Failure> {
    let config = dir.join(format!("{name}.conf"));
    let state = dir.display();
    let text = format!(
        "daemon off; worker_processes 1; pid {state}/{name}.pid; error_log stderr crit; events {{ worker_connections 4096; }}
        http {{ access_log off; keepalive_requests 100000000; client_body_temp_path {state}; proxy_temp_path {state};
        fastcgi_temp_path {state}; uwsgi_temp_path {state}; scgi_temp_path {state}; sendfile on; {http} }}"
    );
    fs::write(&config, text)?;
    let mut command = pinned(core, "nginx");
    Ok(Killed(command.arg("-c").arg(&config).stderr(Stdio::null()).spawn().map_err(|e| format!("nginx: {e}"))?))
}

/// An address at which nothing listens at the moment.
fn free_address() -> Result<SocketAddr, Failure> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

/// Waits until something listens at the address.
fn wait_for(address: SocketAddr) -> Result<(), Failure> {
    let until = Instant::now() + Duration::from_secs(20);
    while Instant::now() < until {
        if let Ok(mut stream) = TcpStream::connect(address) {
            let _ = stream.write_all(b"GET / HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n");
            stream.set_read_timeout(Some(Duration::from_secs(2)))?;
            let _ = stream.read(&mut [0; 16]);
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Err(format!("nothing listens at {address}").into())
}

fn certificate(dir: &Path) -> Result<(), Failure> {
    let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned(), "localhost".to_owned()])?;
    fs::write(dir.join("tls.crt"), made.cert.pem())?;
    fs::write(dir.join("tls.key"), made.signing_key.serialize_pem())?;
    Ok(())
}
