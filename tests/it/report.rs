//! The report for reviewers, on a real trail: each number equals the result of the query printed with it.

use std::{fs, io::Write, process::Command};

use serde_json::{Value, json};

use crate::{
    fixture::{Change, Fixture, bearer},
    harness::{Doorward, browse, streams::with_login, until},
    issuing,
    pages::screenshots,
};

const PATH: &str = "/apis/tekton.dev/v1/namespaces/ci/taskruns";

fn report(doorward: &Doorward, further: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_doorward"))
        .args(["audit", "report", "--from", "2020-01-01", "--to", "2200-01-01", "--trail"])
        .arg(doorward.audit_path())
        .arg("--config")
        .arg(doorward.dir().join("doorward.yaml"))
        .args(further)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// A trail with some requests, of a Doorward that has ended.
async fn world() -> Fixture {
    let mut fixture = Fixture::start().await;
    let (alice, stranger) = (fixture.alice(), bearer(&fixture.a.token("mallory", &["nobody"])));
    for headers in [&[alice.as_str()][..], &[stranger.as_str()], &["Authorization: Bearer forged"], &[alice.as_str()]] {
        fixture.api(PATH, headers).await;
    }
    end(&mut fixture.doorward).await;
    fixture
}

/// Its trail is complete then.
async fn end(doorward: &mut Doorward) {
    doorward.signal("TERM");
    doorward.ended().await;
}

/// Runs each command that the report prints, and compares the result with the number printed with it.
fn compare_with_queries(doorward: &Doorward) -> Value {
    let told: Value = serde_json::from_str(&report(doorward, &["--format", "json"])).unwrap();
    let unused = |kind: &str| -> Vec<&Value> {
        let access = told["configuration"]["access"].as_array().unwrap().iter();
        access.filter(|one| one["kind"] == kind && one["used"] == false).map(|one| &one["id"]).collect()
    };
    let unused = json!({"rules": unused("rule"), "grants": unused("grant")});
    let of_trail = ["records", "unreadable", "covered"].map(|figure| (figure, &told[figure]));
    let mut figures = [&of_trail[..], &[("unused", &unused)]].concat();
    for section in told["sections"].as_array().unwrap() {
        figures.push((section["id"].as_str().unwrap(), &section["rows"]));
    }
    let text = report(doorward, &[]);
    let commands = || text.lines().filter_map(|line| line.strip_prefix("  $ "));
    let trail = commands().find(|command| command.starts_with("trail()")).unwrap();
    // A JSON parser finds them all too.
    let configuration = &told["configuration"];
    let sections = told["sections"].as_array().unwrap().iter().map(|section| &section["query"]);
    let of_trail = ["records_query", "unreadable_query", "covered_query"].map(|query| &told[query]);
    let queries = of_trail.into_iter().chain([&configuration["unused_query"]]);
    let queries = queries.chain(sections).map(|query| format!("trail | jq -nR '{}'", query.as_str().unwrap()));
    let of_files =
        configuration["age_commands"].as_array().unwrap().iter().chain([&told["trail"], &configuration["command"]]);
    let told_of: Vec<String> = of_files.map(|command| command.as_str().unwrap().to_owned()).chain(queries).collect();
    let mut unlike: Vec<&str> = commands().filter(|command| !told_of.iter().any(|one| one == command)).collect();
    unlike.extend(told_of.iter().map(String::as_str).filter(|one| !commands().any(|command| command == *one)));
    assert!(unlike.is_empty(), "{unlike:#?}");
    let commands: Vec<&str> = commands().filter(|command| command.starts_with("trail |")).collect();
    assert_eq!(commands.len(), figures.len(), "{text}");
    for (command, (id, figure)) in commands.into_iter().zip(figures) {
        // `scripts/test` installs jq.
        let output = Command::new("sh").args(["-c", &format!("{trail}; {command}")]).output().unwrap();
        assert!(output.status.success(), "{id}: {}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(serde_json::from_slice::<Value>(&output.stdout).unwrap(), *figure, "{id}");
    }
    told
}

/// The texts of a section.
fn rows(told: &Value, id: &str) -> Vec<String> {
    let section = told["sections"].as_array().unwrap().iter().find(|section| section["id"] == id).unwrap();
    section["rows"].as_array().unwrap().iter().map(|row| row["what"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn a_rule_that_gave_one_of_several_scopes_is_used_and_tokens_and_keys_are_counted() {
    let also = "  - {id: tags, on: {token: {audiences: ['https://target.test'], scopes: [tag]}}, who: {issuers: [ci]}, do: allow}\n";
    let mut world =
        issuing::World::with(|yaml| yaml.change("  - id: agents\n", &format!("{also}  - id: agents\n"))).await;
    world.exchange(&world.job(&json!({})), "deploy tag").await.token();
    // A token that cannot be recorded is not issued.
    world.doorward.break_trail(true);
    assert_eq!(world.exchange(&world.job(&json!({})), "deploy tag").await.status, 503);
    world.doorward.break_trail(false);
    until(async || world.exchange(&world.job(&json!({})), "deploy tag").await.status == 200).await;
    let done = world.exchange(&world.job(&json!({})), "deploy tag").await.token();
    let agent = world.person("planner-account", &json!({"client_id": "planner"}));
    let lets = world.person("alice", &json!({"may_act": {"sub": "planner-account"}}));
    let asked = [
        ("subject_token", lets.as_str()),
        ("actor_token", agent.as_str()),
        ("actor_token_type", "urn:ietf:params:oauth:token-type:access_token"),
        ("audience", "https://target.test"),
        ("scope", "plan"),
    ];
    world.ask(&asked).await.token();
    let lines =
        ["POST /oauth2/revoke HTTP/1.1", "Host: doorward.test", "Content-Type: application/x-www-form-urlencoded"];
    assert_eq!(world.doorward.send(&lines, format!("token={done}").as_bytes()).await.status, 200);
    end(&mut world.doorward).await;
    let told = compare_with_queries(&world.doorward);
    assert_eq!(rows(&told, "tokens_ended"), ["its holder revoked it"]);
    assert_eq!(rows(&told, "rules"), ["agents", "deploy-from-main", "tags"]);
    let issued = rows(&told, "issued");
    let [of_job, of_agent] = issued.as_slice() else { panic!("{issued:?}") };
    let job = "https://target.test (deploy tag) by deploy-from-main tags for a caller without task: ";
    assert!(of_job.starts_with(job), "{of_job}");
    let alice = world.username("alice");
    let agent =
        format!("https://target.test (plan) by agents for a caller without task: {alice}, through planner-account");
    assert_eq!(*of_agent, agent);
    let of_alice: Vec<String> = rows(&told, "principals").into_iter().filter(|row| row.contains("alice")).collect();
    // At first she also asked for herself.
    let own = format!("{} of people", world.username("alice"));
    assert_eq!(of_alice, [own.clone(), format!("{own}, through planner-account")]);
    let section = told["sections"].as_array().unwrap().iter().find(|section| section["id"] == "issued").unwrap();
    assert_eq!(section["rows"][0]["records"], 3, "each token counts once: {section:#}");
    assert!(rows(&told, "keys").iter().any(|key| key.starts_with("key.made: tokens ")), "{:?}", rows(&told, "keys"));
}

#[tokio::test]
async fn sessions_that_ended_and_what_operators_did_are_counted() {
    let (mut doorward, (issuer, _upstream), host, cookie) = with_login("", "").await;
    let (host_line, origin) = (format!("Host: {host}"), format!("Origin: http://{host}"));
    let out = doorward.send(&["POST /oauth2/sign_out HTTP/1.1", &host_line, &origin, &cookie], b"").await;
    assert!((300..400).contains(&out.status), "{}{}", out.head, out.text());
    let revoke = ["revoke", "--issuer", issuer.url(), "--subject", "alice", "--why", "left"];
    let (code, said) = doorward.operator(&revoke).await;
    assert_eq!(code, Some(0), "{said}");
    let (code, said) = doorward.operator(&["reload", "--why", "a new rule"]).await;
    assert_eq!(code, Some(0), "{said}");
    end(&mut doorward).await;
    let told = compare_with_queries(&doorward);
    assert_eq!(rows(&told, "session_ends"), ["signed_out"]);
    assert!(!rows(&told, "operators").is_empty());
    // Who loaded which policy.
    let policies = rows(&told, "policies");
    let asked = policies.iter().find(|row| row.ends_with(", cause operator")).unwrap_or_else(|| panic!("{policies:?}"));
    let (_, rest) = asked.split_once("policy.loaded ").unwrap();
    let by_olga = format!("olga: reload (generation 2, policy {})", rest.split_once(" at ").unwrap().0);
    assert!(rows(&told, "operators").contains(&by_olga), "{by_olga}: {:?}", rows(&told, "operators"));
}

#[tokio::test]
async fn a_damaged_line_stops_no_query() {
    let fixture = world().await;
    let path = fixture.doorward.audit_path();
    let whole = fs::read(&path).unwrap();
    let lines: Vec<&[u8]> = whole.split_inclusive(|byte| *byte == b'\n').collect();
    let request = lines.iter().find(|line| line.windows(7).any(|text| text == b"mallory")).unwrap();
    let request = request.strip_suffix(b"\n").unwrap();
    let time = serde_json::from_slice::<Value>(request).unwrap()["time"].clone();
    let with = |from: &str, to: &[u8]| {
        let at = request.windows(from.len()).position(|text| text == from.as_bytes()).unwrap();
        [&request[..at], to, &request[at + from.len()..]].concat()
    };
    let (half, _) = request.split_at(request.len() / 2);
    let mut damaged: Vec<Vec<u8>> = [
        "no JSON".to_owned(),
        String::new(),
        "null".to_owned(),
        "5".to_owned(),
        "\"text\"".to_owned(),
        json!({"time": "soon"}).to_string(),
        json!({"time": 1.5}).to_string(),
        // Records with other values where an object is expected.
        json!({"time": time, "actor": "alice", "authorizations": "x", "unmapped": [], "metadata": 1}).to_string(),
        json!({"time": time, "actor": {"user": "alice", "idp": {"name": "a"}}, "status_code": "policy_denied"})
            .to_string(),
        format!("{} {}", json!({"time": time}), json!({"time": time})),
        json!({"time": time, "x": "y".repeat(20_000)}).to_string(),
    ]
    .map(String::into_bytes)
    .into();
    damaged.extend([
        half.to_vec(),
        with("mallory", b"mal\xfflory"),
        with("mallory", b"mal\x01lory"),
        with("mallory", b"mal\0ory"),
    ]);
    let mut file = fs::File::create(&path).unwrap();
    for (index, line) in lines.iter().enumerate() {
        file.write_all(line).unwrap();
        if index == 1 {
            damaged.iter().for_each(|line| file.write_all(&[line, &b"\n"[..]].concat()).unwrap());
        }
    }
    // The last line is cut off, in a file that is followed by another.
    file.write_all(half).unwrap();
    let mut before = fs::read(&path).unwrap();
    // A copy that begins like the file itself is refused.
    before.drain(..lines[0].len());
    fs::write(path.with_file_name("audit.jsonl.000001"), before).unwrap();
    let told = compare_with_queries(&fixture.doorward);
    assert!(told["unreadable"].as_u64().unwrap() >= 10, "{}", told["unreadable"]);
    assert!(told["records"].as_u64().unwrap() as usize >= lines.len(), "{}", told["records"]);
}

#[tokio::test]
async fn the_page_of_a_report_is_accessible_and_prints_completely() {
    let fixture = world().await;
    let page = fixture.doorward.dir().join("report.html");
    fs::write(&page, report(&fixture.doorward, &["--format", "html"])).unwrap();
    let saw = browse(&json!({"scenario": "report", "file": page, "screenshots": screenshots()})).await;
    assert_eq!(saw["faults"], json!([]));
    assert_eq!(saw["seen"], json!(["report: Access report"]));
    assert!(saw["pages"].as_u64().unwrap() > 0, "{saw}");
    assert_eq!(saw["cut"], json!([]));
    assert_ne!(saw["twin"], json!([]), "a table that is too wide is found out");
}

#[tokio::test]
async fn each_figure_of_a_report_is_what_its_query_gives() {
    let fixture = world().await;
    let report_json = compare_with_queries(&fixture.doorward);
    assert_eq!((&report_json["unreadable"], &report_json["covered"]["breaks"]), (&json!(0), &json!(0)));
    let rows = |id: &str| rows(&report_json, id);
    let has = |id: &str, what: &str| rows(id).iter().any(|row| row.contains(what));
    assert!(has("principals", "alice") && has("principals", "mallory"), "{:?}", rows("principals"));
    assert!(has("denials", "mallory"), "{:?}", rows("denials"));
    assert!(!has("denials", "alice"), "{:?}", rows("denials"));
    assert!(has("login_failures", "nobody at"), "{:?}", rows("login_failures"));
    assert!(has("policies", ", cause start"), "{:?}", rows("policies"));

    assert!(!rows("grants").is_empty());

    let access = report_json["configuration"]["access"].as_array().unwrap();
    for used in [true, false] {
        assert!(access.iter().any(|access| access["kind"] == "rule" && access["used"] == used), "{used}: {access:?}");
    }
    for (form, text) in
        [("text", report(&fixture.doorward, &[])), ("html", report(&fixture.doorward, &["--format", "html"]))]
    {
        assert!(text.contains("mallory") && text.contains("UNUSED"), "{form}");
        for secret in ["upstream-token", "introspection-secret", "the-admin-token-of-the-tests"] {
            assert!(!text.contains(secret), "{form}: {secret}");
        }
    }
    assert!(report(&fixture.doorward, &["--format", "html"]).contains("@media print"));
}
