//! The report as text, and as a printable page.

use std::fmt;

use maud::{DOCTYPE, PreEscaped, html};

use super::{Access, Configured, ConfiguredSecret, Counted, Covered, Report, Row, sections::KEYS};
use crate::{clock::Timestamp, terminal};

const STYLE: &str = "body{font:14px/1.4 system-ui,sans-serif;margin:2rem auto;max-width:70rem;padding:0 1rem;color:#111}\
h2{font-size:1.1rem;margin:2rem 0 .2rem}small{color:#555}table{border-collapse:collapse;width:100%;margin:.5rem 0}\
th,td{text-align:left;vertical-align:top;padding:.2rem .6rem .2rem 0;border-bottom:1px solid #ccc;overflow-wrap:anywhere}\
th,.access td:first-child,.access td:last-child{overflow-wrap:break-word}.access td:nth-child(4){min-width:6em}\
pre{background:#f3f3f3;padding:.5rem;white-space:pre-wrap;overflow-wrap:anywhere;font-size:.75rem}\
@media print{body{margin:0;max-width:none;font-size:10pt}h2{break-after:avoid}tr,pre{break-inside:avoid}\
thead{display:table-header-group}pre{background:none;border:1px solid #ccc}}";

fn time(millis: i64) -> String {
    Timestamp::from_millis(millis).to_string()
}

fn optional(millis: Option<i64>) -> String {
    millis.map_or_else(|| "not known".to_owned(), time)
}

impl Report {
    /// Renders one self-contained HTML page.
    pub fn to_html(&self) -> String {
        html! {
            (DOCTYPE)
            html lang="en" {
                head {
                    meta charset="utf-8";
                    meta name="viewport" content="width=device-width, initial-scale=1";
                    title { "Access report" }
                    style { (PreEscaped(STYLE)) }
                }
                body { main {
                    h1 { "Access report" }
                    p { "From " (time(self.from)) " to before " (time(self.to)) "." }
                    p { "Run this first; the commands below read it:" }
                    pre { (self.trail) }
                    p { (self.records) " records in the period:" }
                    pre { (command(&self.records_query)) }
                    p { (self.unreadable) " lines that are not records:" }
                    pre { (command(&self.unreadable_query)) }
                    p { (self.coverage()) ":" }
                    pre { (command(&self.covered_query)) }
                    @for caveat in self.caveats() { p { strong { (caveat) } } }
                    @if let Some(held) = &self.configuration { (configuration(held, self.to)) }
                    @for section in &self.sections {
                        h2 { (section.title) }
                        small { (section.controls) }
                        @if section.rows.is_empty() { p { "None." } } @else { (rows(section, self.to)) }
                        @if section.left_out > 0 {
                            p { (section.left_out) " more records are left out; the query shows them." }
                        }
                        pre { (command(&section.query)) }
                    }
                } }
            }
        }
        .into_string()
    }

    fn coverage(&self) -> String {
        let Covered { first, last, breaks } = self.covered;
        format!("records from {} to {} in the files, with lines missing in {breaks} places", time(first), time(last))
    }
}

/// Renders a text of a stranger for a page.
fn distinct(text: &impl fmt::Display) -> String {
    terminal::distinct(&text.to_string()).into_owned()
}

/// Returns the command that computes a figure.
fn command(query: &str) -> String {
    format!("trail | jq -nR '{query}'")
}

/// Returns the age of something at the end of the period.
fn age(since: i64, to: i64) -> String {
    match (to - since) / 86_400_000 {
        days if since > to || days < 0 => "later than the period".to_owned(),
        1 => "1 day old".to_owned(),
        days => format!("{days} days old"),
    }
}

/// Returns the age of the key in a row, if the row is about a created key.
fn row_age(section: &Counted, row: &Row, to: i64) -> Option<String> {
    (section.id == KEYS && row.what.starts_with("key.made")).then(|| age(row.first, to))
}

fn rows(section: &Counted, to: i64) -> maud::Markup {
    html! {
        table {
            thead { tr { th scope="col" { "What" } th scope="col" { "Records" } th scope="col" { "First" } th scope="col" { "Last" } } }
            tbody {
                @for row in &section.rows {
                    tr {
                        td { (distinct(&row.what)) @if let Some(age) = row_age(section, row, to) { ", " (age) } }
                        td { (row.records) } td { (time(row.first)) } td { (time(row.last)) }
                    }
                }
            }
        }
    }
}

fn configuration(held: &Configured, to: i64) -> maud::Markup {
    html! {
        h2 { "Who has access, by rule and grant" }
        small { "CC6.1, CC6.3; A.5.15, A.5.18" }
        table.access {
            thead { tr { @for head in ["Rule or grant", "Who", "What", "Why", "In the period"] { th scope="col" { (head) } } } }
            tbody {
                @for Access { kind, id, who, gives, why, used } in &held.access {
                    tr {
                        td { (kind) " " (distinct(id)) } td { (distinct(who)) } td { (distinct(gives)) }
                        td { (why.as_ref().map(distinct).unwrap_or_default()) }
                        td { (match used { Some(true) => "used", Some(false) => "UNUSED", None => "not known" }) }
                    }
                }
            }
        }
        pre { (held.command) "\n" (command(&held.unused_query)) }
        h2 { "Keys, certificates and secrets" }
        small { "CC6.1, CC6.7; A.5.17" }
        table {
            thead { tr { @for head in ["Place", "Source", "Written or mounted", "Age", "Valid from", "Valid until"] { th scope="col" { (head) } } } }
            tbody {
                @for ConfiguredSecret { place, source, written, not_before, not_after } in &held.secrets {
                    tr {
                        td { (distinct(place)) } td { (distinct(source)) } td { (optional(*written)) }
                        td { (written.map(|written| age(written, to)).unwrap_or_default()) }
                        td { (not_before.map(time).unwrap_or_default()) } td { (not_after.map(time).unwrap_or_default()) }
                    }
                }
            }
        }
        pre { (held.command) @for age in &held.age_commands { "\n" (age) } }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "Access report from {} to before {}", time(self.from), time(self.to))?;
        writeln!(f, "Run this first; the commands below read it\n  $ {}", self.trail)?;
        writeln!(f, "{} records in the period\n  $ {}", self.records, command(&self.records_query))?;
        writeln!(f, "{} lines that are not records\n  $ {}", self.unreadable, command(&self.unreadable_query))?;
        writeln!(f, "{}\n  $ {}", self.coverage(), command(&self.covered_query))?;
        for caveat in self.caveats() {
            writeln!(f, "{caveat}")?;
        }
        if let Some(held) = &self.configuration {
            writeln!(f, "\nWho has access, by rule and grant (CC6.1, CC6.3; A.5.15, A.5.18)")?;
            for Access { kind, id, who, gives, why, used } in &held.access {
                let used = match used {
                    Some(true) => "used",
                    Some(false) => "UNUSED in the period",
                    None => "not known whether it was used",
                };
                let [who, gives] = [who, gives].map(|told| terminal::line(&told.to_string()));
                writeln!(f, "  {kind} {}, {used}\n    who   {who}\n    what  {gives}", terminal::line(id))?;
                if let Some(why) = why {
                    writeln!(f, "    why   {}", terminal::line(why))?;
                }
            }
            writeln!(f, "  $ {}\n  $ {}", held.command, command(&held.unused_query))?;
            writeln!(f, "\nKeys, certificates and secrets (CC6.1, CC6.7; A.5.17)")?;
            for ConfiguredSecret { place, source, written, not_before, not_after } in &held.secrets {
                write!(f, "  {place} of {}, written or mounted {}", terminal::line(source), optional(*written))?;
                if let Some(written) = written {
                    write!(f, ", {}", age(*written, self.to))?;
                }
                if let (Some(from), Some(until)) = (not_before, not_after) {
                    write!(f, ", valid from {} to {}", time(*from), time(*until))?;
                }
                writeln!(f)?;
            }
            writeln!(f, "  $ {}", held.command)?;
            for age in &held.age_commands {
                writeln!(f, "  $ {age}")?;
            }
        }
        for section in &self.sections {
            writeln!(f, "\n{} ({})", section.title, section.controls)?;
            if section.rows.is_empty() {
                writeln!(f, "  none")?;
            }
            for row @ Row { what, records, first, last } in &section.rows {
                // These are strangers' texts: they must not control the terminal.
                write!(f, "  {records:>8}  {}  {} to {}", terminal::line(what), time(*first), time(*last))?;
                match row_age(section, row, self.to) {
                    Some(age) => writeln!(f, ", {age}")?,
                    None => writeln!(f)?,
                }
            }
            if section.left_out > 0 {
                writeln!(f, "  {} more records are left out; the query shows them", section.left_out)?;
            }
            writeln!(f, "  $ {}", command(&section.query))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::{
        Access, Configured,
        tests::{denied, report},
    };

    #[test]
    fn the_reason_of_a_rule_is_in_the_text_and_on_the_page() {
        let access = |id: &str, why: Option<&str>| Access {
            kind: "rule",
            id: id.to_owned(),
            who: json!({}),
            gives: json!({}),
            why: why.map(str::to_owned),
            used: Some(false),
        };
        let access = vec![access("a", Some("Secrets\u{1b} stay.")), access("b", None)];
        let report = report(&[denied(1, "a")], 0, 2).with(Configured::new("doorward.yaml".into(), access, Vec::new()));
        assert!(report.to_string().contains("\n    why   Secrets\\u001b stay.\n  rule b, "), "{report}");
        assert!(report.to_html().contains(" stay."));
    }

    /// It broke inside words on a phone and on paper, where the other columns took its width.
    #[test]
    fn the_column_of_reasons_is_as_wide_as_a_word() {
        let report = report(&[denied(1, "a")], 0, 2);
        let html = report.with(Configured::new("doorward.yaml".into(), Vec::new(), Vec::new())).to_html();
        assert!(html.contains(".access td:nth-child(4){min-width:6em}"), "{html}");
        let (_, table) = html.split_once("<table class=\"access\">").unwrap();
        assert!(table.split("<th scope=\"col\">").nth(4).unwrap().starts_with("Why<"), "{table}");
    }

    /// Rows of different people looked the same, or were reversed.
    #[test]
    fn names_that_look_like_others_are_told_apart() {
        let report = report(&[denied(1, "x\u{202e}ecila"), denied(1, "al\u{200b}ice")], 0, 2);
        for text in [report.to_string(), report.to_html()] {
            assert!(!text.contains(['\u{202e}', '\u{200b}']), "{text}");
            assert!(text.contains("x\\u202eecila") && text.contains("al\\u200bice"), "{text}");
        }
    }
}
