//! Figures to tables.

use std::{collections::BTreeMap, fmt::Write as _, fs, path::PathBuf};

use crate::{Failure, Figures, Sample};

const BEGIN: &str = "<!-- figures: written by `benches/run report` -->";
const END: &str = "<!-- /figures -->";

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

/// Writes the table of the committed figures into the README.
pub fn write() -> Result<(), Failure> {
    let figures: Figures = serde_json::from_slice(&fs::read(crate::results())?)?;
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("README.md");
    let readme = fs::read_to_string(&path)?;
    let (before, rest) = readme.split_once(BEGIN).ok_or("the README has no place for figures")?;
    let (_, after) = rest.split_once(END).ok_or("the README's place for figures has no end")?;
    fs::write(path, format!("{before}{BEGIN}\n{}{END}{after}", table(&figures)))?;
    Ok(())
}
