//! Which part of the period the files of a report cover, and whether they cover it once.

use std::{collections::HashSet, io};

use serde::Serialize;
use serde_json::Value;

use super::{Counts, readable};

/// What is in the files of a report, by the records in them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Covered {
    /// The times of the earliest and the latest record, Unix time in milliseconds.
    pub first: i64,
    pub last: i64,
    /// The number of records that do not follow the line before them, or say that records were lost, so that lines of
    /// the period may be missing there. Those that ended before the period do not count.
    pub breaks: u64,
}

/// Finds out what the files cover, in the order in which they are read.
#[derive(Debug, Default)]
pub(super) struct Coverage {
    covered: Option<Covered>,
    /// The code of the last record, which the next one names.
    mac: Value,
    /// The codes of the first records of the files.
    begun: HashSet<String>,
}

impl Coverage {
    /// Begins the next file with its first record. Refuses a copy of an earlier file.
    pub(super) fn begin(&mut self, record: &Value) -> io::Result<()> {
        match record.get("mac").and_then(Value::as_str) {
            Some(mac) if !self.begun.insert(mac.to_owned()) => {
                let why = "another file given begins with the same record, so that records would count twice; give each trail once, and \
                           no copies of it";
                Err(io::Error::new(io::ErrorKind::InvalidInput, why))
            }
            _ => Ok(()),
        }
    }

    /// Adds the next record, for a period that begins at `from`.
    pub(super) fn add(&mut self, record: &Value, time: i64, from: i64) {
        let covered = self.covered.get_or_insert(Covered { first: time, last: time, breaks: 0 });
        covered.first = covered.first.min(time);
        covered.last = covered.last.max(time);
        let begins = record.get("seq").and_then(Value::as_f64) == Some(1.0);
        let follows = *record.get("prev").unwrap_or(&Value::Null) == self.mac;
        let is_lossy = record.pointer("/unmapped/lost").and_then(Value::as_f64).is_some_and(|lost| lost > 0.0);
        // A stream that ended in the period was written then, however long before that it began.
        let is_later = Counts::ByEnd.time(record, time) > from;
        covered.breaks += u64::from((is_lossy || (!begins && !follows)) && is_later);
        self.mac = record.get("mac").cloned().unwrap_or_default();
    }

    /// Returns what the files cover; none if no record is in them.
    pub(super) const fn covered(&self) -> Option<Covered> {
        self.covered
    }
}

/// Returns the `jq -nR` program that computes the same.
pub(super) fn query(from: i64) -> String {
    let (read, end) = (readable(), Counts::ByEnd.jq());
    format!(
        "reduce (inputs | {read}) as $one ({{breaks: 0}}; .first = ([.first // $one.time, $one.time] | min) | \
         .last = ([.last // $one.time, $one.time] | max) | \
         .breaks += (if ((($one.unmapped.lost)? // 0 | type == \"number\" and . > 0) or \
         ($one.seq != 1 and $one.prev != .mac)) and ($one | {end}) > {from} then 1 else 0 end) | \
         .mac = $one.mac) | {{first, last, breaks}}"
    )
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            Configured, Report,
            tests::{access, denied, report},
        },
        *,
    };
    use crate::clock::Timestamp;

    /// Files that were compressed, removed or not given were not missed, and what they name was called unused.
    #[test]
    fn a_report_tells_what_its_files_do_not_cover_and_calls_nothing_unused_if_lines_are_missing() {
        let chained = |name: &str| -> Vec<Value> {
            let line = |seq: i64| {
                let mut line = denied(seq, "a");
                line["seq"] = seq.into();
                line["prev"] = format!("{name}{}", seq - 1).into();
                line["mac"] = format!("{name}{seq}").into();
                line
            };
            (1..10).map(line).collect()
        };
        let (whole, other) = (chained("a"), chained("b"));
        let mut lossy = whole.clone();
        lossy[3]["unmapped"]["lost"] = 0.into();
        lossy[5]["unmapped"]["lost"] = 2.into();
        let mut streamed = [&whole[..3], &whole[5..]].concat();
        streamed[3]["time"] = 2.into();
        streamed[3]["duration"] = 4.into();
        let of = |lines: &[Value], from, to| {
            let held = Configured::new(
                "doorward.yaml".into(),
                vec![access("rule", "no-secrets"), access("rule", "idle")],
                Vec::new(),
            );
            report(lines, from, to).with(held)
        };
        for (row, lines, from, breaks, used) in [
            ("whole", whole.clone(), 0, 0, [Some(true), Some(false)]),
            ("two trails", [&whole[..], &other[..]].concat(), 0, 0, [Some(true), Some(false)]),
            ("without the middle", [&whole[..3], &whole[5..]].concat(), 0, 1, [Some(true), None]),
            ("without the beginning", whole[4..].to_vec(), 0, 1, [Some(true), None]),
            ("both without it", [&whole[4..], &other[2..]].concat(), 0, 2, [Some(true), None]),
            ("without lines before the period", whole[4..].to_vec(), 5, 0, [Some(true), Some(false)]),
            ("without the middle, before the end of an early stream", streamed, 3, 1, [Some(true), None]),
            ("with a gap in which records were lost", lossy, 0, 1, [Some(true), None]),
            ("nothing in the period", whole.clone(), 10, 0, [None, None]),
        ] {
            let report = of(&lines, from, 20);
            assert_eq!(report.covered.breaks, breaks, "{row}");
            let access = &report.configuration.as_ref().unwrap().access;
            assert_eq!(access.iter().map(|access| access.used).collect::<Vec<_>>(), used, "{row}");
            for text in [report.to_string(), report.to_html()] {
                assert_eq!(text.contains("INCOMPLETE"), breaks > 0, "{row}: {text}");
                assert_eq!(text.contains("UNUSED"), used[1] == Some(false), "{row}: {text}");
            }
        }
        let (before, after) = ("in the period before the first record", "in the period after the last record");
        for (from, to, told) in [(1, 9, [false, false]), (0, 9, [true, false]), (1, 10, [false, true])] {
            let text = of(&whole, from, to).to_string();
            assert_eq!([before, after].map(|what| text.contains(what)), told, "{from} to {to}: {text}");
        }
    }

    /// Each record counted twice, without a word.
    #[test]
    fn a_copy_of_a_trail_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let [one, other, copy] = ["one", "other", "copy"].map(|name| folder.path().join(name));
        for (path, mac, more) in [(&one, "a", ""), (&other, "b", ""), (&copy, "a", "{\"time\":2}\n")] {
            std::fs::write(path, format!("{{\"time\":1,\"seq\":1,\"mac\":\"{mac}\"}}\n{more}")).unwrap();
        }
        let read = |files: [&std::path::PathBuf; 2]| {
            let files = files.map(Clone::clone).into();
            Report::read(files, Timestamp::from_millis(0), Timestamp::from_millis(9)).map(|report| report.records)
        };
        assert_eq!(read([&one, &other]).unwrap(), 2);
        let told = read([&one, &copy]).unwrap_err().to_string();
        assert!(told.contains("copy: another file given begins with the same record"), "{told}");
    }
}
