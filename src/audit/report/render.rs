//! The report as text, and as a page that can be printed.

use std::fmt;

use maud::{DOCTYPE, PreEscaped, html};

use super::{Access, Counted, Held, HeldSecret, Report, Row};
use crate::clock::Timestamp;

const STYLE: &str = "body{font:14px/1.4 system-ui,sans-serif;margin:2rem auto;max-width:70rem;padding:0 1rem;color:#111}\
h2{font-size:1.1rem;margin:2rem 0 .2rem}small{color:#555}table{border-collapse:collapse;width:100%;margin:.5rem 0}\
th,td{text-align:left;vertical-align:top;padding:.2rem .6rem .2rem 0;border-bottom:1px solid #ccc;overflow-wrap:anywhere}\
pre{background:#f3f3f3;padding:.5rem;white-space:pre-wrap;overflow-wrap:anywhere;font-size:.75rem}\
@media print{body{margin:0;max-width:none;font-size:10pt}h2{break-after:avoid}tr,pre{break-inside:avoid}\
thead{display:table-header-group}pre{background:none;border:1px solid #ccc}}";

/// What gives the rules and grants, and the places of secrets.
const OF_CONFIGURATION: &str = "doorward print-config CONFIG";

fn time(millis: i64) -> String {
    Timestamp::from_millis(millis).to_string()
}

fn optional(millis: Option<i64>) -> String {
    millis.map_or_else(|| "not known".to_owned(), time)
}

impl Report {
    /// The command whose output is the rows of a section.
    fn command(&self, section: &Counted) -> String {
        let files: Vec<String> =
            self.files.iter().map(|file| format!("'{}'", file.display().to_string().replace('\'', r"'\''"))).collect();
        format!("cat {} | jq -n '{}'", files.join(" "), section.query)
    }

    /// One page of HTML that needs nothing else.
    pub fn to_html(&self) -> String {
        html! {
            (DOCTYPE)
            html lang="en" {
                head {
                    meta charset="utf-8";
                    title { "Access report" }
                    style { (PreEscaped(STYLE)) }
                }
                body {
                    h1 { "Access report" }
                    p { "From " (time(self.from)) " to before " (time(self.to)) ". " (self.records) " records in the period, "
                        (self.unreadable) " lines that are no records." }
                    @if let Some(held) = &self.configuration { (configuration(held)) }
                    @for section in &self.sections {
                        h2 { (section.title) }
                        small { (section.controls) }
                        @if section.rows.is_empty() { p { "None." } } @else { (rows(&section.rows)) }
                        @if section.left_out > 0 {
                            p { (section.left_out) " records more are left out; the query shows them." }
                        }
                        pre { (self.command(section)) }
                    }
                }
            }
        }
        .into_string()
    }
}

fn rows(rows: &[Row]) -> maud::Markup {
    html! {
        table {
            thead { tr { th { "What" } th { "Records" } th { "First" } th { "Last" } } }
            tbody {
                @for row in rows {
                    tr { td { (row.what) } td { (row.records) } td { (time(row.first)) } td { (time(row.last)) } }
                }
            }
        }
    }
}

fn configuration(held: &Held) -> maud::Markup {
    html! {
        h2 { "Who has access, by rule and grant" }
        small { "CC6.1, CC6.3; A.5.15, A.5.18" }
        table {
            thead { tr { th { "Rule or grant" } th { "Who" } th { "What" } th { "Why" } th { "In the period" } } }
            tbody {
                @for Access { kind, id, who, gives, why, used } in &held.access {
                    tr {
                        td { (kind) " " (id) } td { (who) } td { (gives) } td { (why.as_deref().unwrap_or("")) }
                        td { (if *used { "used" } else { "UNUSED" }) }
                    }
                }
            }
        }
        pre { (OF_CONFIGURATION) }
        h2 { "Keys, certificates and secrets" }
        small { "CC6.1, CC6.7; A.5.17" }
        table {
            thead { tr { th { "Place" } th { "Source" } th { "Written" } th { "Valid from" } th { "Valid until" } } }
            tbody {
                @for HeldSecret { place, source, written, not_before, not_after } in &held.secrets {
                    tr {
                        td { (place) } td { (source) } td { (optional(*written)) }
                        td { (not_before.map(time).unwrap_or_default()) } td { (not_after.map(time).unwrap_or_default()) }
                    }
                }
            }
        }
        pre { (OF_CONFIGURATION) }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "Access report from {} to before {}", time(self.from), time(self.to))?;
        writeln!(f, "{} records in the period, {} lines that are no records", self.records, self.unreadable)?;
        if let Some(held) = &self.configuration {
            writeln!(f, "\nWho has access, by rule and grant (CC6.1, CC6.3; A.5.15, A.5.18)")?;
            for Access { kind, id, who, gives, used, .. } in &held.access {
                let used = if *used { "used" } else { "UNUSED in the period" };
                writeln!(f, "  {kind} {}, {used}\n    who   {who}\n    what  {gives}", id.escape_debug())?;
            }
            writeln!(f, "  $ {OF_CONFIGURATION}")?;
            writeln!(f, "\nKeys, certificates and secrets (CC6.1, CC6.7; A.5.17)")?;
            for HeldSecret { place, source, written, not_before, not_after } in &held.secrets {
                write!(f, "  {place} of {}, written {}", source.escape_debug(), optional(*written))?;
                if let (Some(from), Some(until)) = (not_before, not_after) {
                    write!(f, ", valid from {} to {}", time(*from), time(*until))?;
                }
                writeln!(f)?;
            }
            writeln!(f, "  $ {OF_CONFIGURATION}")?;
        }
        for section in &self.sections {
            writeln!(f, "\n{} ({})", section.title, section.controls)?;
            if section.rows.is_empty() {
                writeln!(f, "  none")?;
            }
            for Row { what, records, first, last } in &section.rows {
                // Names of strangers: nothing of them may move the cursor.
                writeln!(f, "  {records:>8}  {}  {} to {}", what.escape_debug(), time(*first), time(*last))?;
            }
            if section.left_out > 0 {
                writeln!(f, "  {} records more are left out; the query shows them", section.left_out)?;
            }
            writeln!(f, "  $ {}", self.command(section))?;
        }
        Ok(())
    }
}
