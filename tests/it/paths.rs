//! A property test over many paths, raw on the wire: the decided path is the forwarded and the recorded one, and no
//! other reader of it would get another path.

use percent_encoding::percent_decode_str;
use proptest::{
    strategy::{Strategy, ValueTree},
    test_runner::{RngAlgorithm, TestRng, TestRunner},
};

use crate::{
    fixture::{Change, Fixture},
    harness::Reply,
};

const CASES: usize = 400;

/// Common beginnings, the pieces of path tricks, and ordinary segments.
const PATH: &str = r"/(open/)?((open|closed|x|a\.b|%20|%C3%A9|:|@|~|%25|\.\.\.)/?){0,3}((/|\.|\.\.|\\|;|;a=b|%2[eEfF]|%5[cC]|%00|%41|%252e|%zz|%)(x|/|\.\.|closed)?){0,2}";

/// The paths that a server further on might read instead: as it is, decoded once and twice, with backslashes as
/// slashes, cut at `;` and at NUL, and each of them with dot segments and empty segments resolved.
fn readings(path: &str) -> Vec<String> {
    let decode = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
    let once = decode(path);
    let twice = decode(&once);
    let mut all = vec![path.to_owned(), once, twice];
    for index in 0..all.len() {
        let text = all[index].clone();
        all.push(text.replace('\\', "/"));
        all.push(text.split('/').map(|part| part.split(';').next().unwrap_or_default()).collect::<Vec<_>>().join("/"));
        all.push(text.split('\0').next().unwrap_or_default().to_owned());
    }
    all.iter().map(|text| resolved(text)).collect()
}

fn resolved(path: &str) -> String {
    let mut kept: Vec<&str> = Vec::new();
    for segment in path.split('/') {
        match segment {
            "" | "." => {}
            ".." => _ = kept.pop(),
            other => kept.push(other),
        }
    }
    format!("/{}", kept.join("/"))
}

#[tokio::test]
async fn the_path_that_is_decided_is_the_path_that_is_forwarded() {
    let only_open = |yaml: String| {
        yaml.change(
            "{id: open, on: {routes: [open]}, who",
            "{id: open, on: {routes: [open], paths: [/open, '/open/*']}, who",
        )
    };
    let fixture = Fixture::with(only_open, |_| Reply::json(200, "{}")).await;
    // The same paths in every run.
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &[7; 32]);
    let mut runner = TestRunner::new_with_rng(Default::default(), rng);
    let paths = proptest::string::string_regex(PATH).unwrap();
    let mut raw = fixture.doorward.raw().await;
    let mut passed = Vec::new();
    for _ in 0..CASES {
        let path = paths.new_tree(&mut runner).unwrap().current();
        let _ = fixture.upstream.take();
        raw.send(format!("GET {path} HTTP/1.1\r\nHost: open.test\r\n\r\n")).await;
        let answer = raw.answer().await;
        if answer.closed || answer.header("connection") == Some("close") {
            raw = fixture.doorward.raw().await;
        }
        let seen = fixture.upstream.take();
        match answer.status {
            200 => {
                assert_eq!(seen.len(), 1, "{path}");
                assert_eq!(seen[0].line(), format!("GET {path} HTTP/1.1"));
                for reading in readings(&path) {
                    let is_open = reading == "/open" || reading.starts_with("/open/");
                    assert!(is_open, "{path} was allowed, and can be read as {reading}");
                }
                passed.push(path);
            }
            400 | 401 | 403 => assert!(seen.is_empty(), "{path}: {seen:?}"),
            other => panic!("{path}: {other}"),
        }
    }
    assert!(passed.len() >= 10, "hardly a path passed: {passed:?}");
    let allowed = fixture.doorward.records(passed.len(), |record| record["http_response"]["code"] == 200).await;
    let recorded: Vec<&str> =
        allowed.iter().filter_map(|record| record["http_request"]["url"]["path"].as_str()).collect();
    assert_eq!(recorded, passed);
}
