//! Figures to tables.

use std::{collections::BTreeMap, fmt::Write as _, path::PathBuf};

const BEGIN: &str = "<!-- figures: written by `benches/run report` -->";
const END: &str = "<!-- /figures -->";

/// One measured run.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub struct Sample {
    pub case: String,
    pub proxy: String,
    pub round: usize,
    pub requests: u64,
    /// User and system time of all threads of the proxy.
    pub cpu_us_per_request: f64,
    pub requests_per_second: f64,
}

/// What is kept of a whole run.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub struct Figures {
    /// With the configuration of the demo, less its provider and samples: PSS when idle.
    pub idle_mib: f64,
    pub samples: Vec<Sample>,
}

/// Where raw figures are kept.
pub fn results() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("benches/results/latest.json")
}

/// A Markdown table: medians, and the median of the ratios within each round to the bare proxy's plain run of that kind.
pub fn table(figures: &Figures) -> String {
    let samples = &figures.samples;
    let mut cases: Vec<&str> = Vec::new();
    let mut by: BTreeMap<(&str, &str), Vec<&Sample>> = BTreeMap::new();
    for sample in samples {
        if !cases.contains(&sample.case.as_str()) {
            cases.push(&sample.case);
        }
        by.entry((&sample.case, &sample.proxy)).or_default().push(sample);
    }
    let mut text = String::from(
        "| case | proxy | CPU us/request, median (min to max) | to bare hyper, median (min to max) |\n|---|---|---|---|\n",
    );
    for case in cases {
        for proxy in ["bare", "signature", "doorward", "nginx"] {
            let Some(found) = by.get(&(case, proxy)) else { continue };
            let cost: Vec<f64> = found.iter().map(|sample| sample.cpu_us_per_request).collect();
            let ratios: Vec<f64> = found
                .iter()
                .filter_map(|sample| {
                    // What a credential costs shows against the bare proxy's plain run of the same round.
                    let own = by.contains_key(&(case, "bare"));
                    let yardstick = if own { case } else { "plain" };
                    let bare = by.get(&(yardstick, "bare"))?.iter().find(|bare| bare.round == sample.round)?;
                    Some(sample.cpu_us_per_request / bare.cpu_us_per_request)
                })
                .collect();
            let _ = writeln!(text, "| {case} | {proxy} | {} | {} |", spread(&cost, 1), spread(&ratios, 2));
        }
    }
    let _ = writeln!(
        text,
        "\nIdle, with the demo's configuration less provider and samples: {:.1} MiB (PSS).",
        figures.idle_mib
    );
    text
}

fn spread(values: &[f64], digits: usize) -> String {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match (sorted.first(), sorted.get(sorted.len() / 2), sorted.last()) {
        (Some(min), Some(median), Some(max)) => format!("{median:.digits$} ({min:.digits$} to {max:.digits$})"),
        _ => String::new(),
    }
}

/// The page with the table of these figures in its place.
pub fn written_into(page: &str, figures: &Figures) -> Result<String, &'static str> {
    let (before, rest) = page.split_once(BEGIN).ok_or("the page has no place for figures")?;
    let (_, after) = rest.split_once(END).ok_or("the page's place for figures has no end")?;
    Ok(format!("{before}{BEGIN}\n{}{END}{after}", table(figures)))
}
