//! Generates tables from results.

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
    /// `None` if the requests were completed before the time was over.
    pub requests_per_second: Option<f64>,
}

/// The stored results of a whole run.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub struct Figures {
    /// PSS when idle, with the demo's configuration, without its provider and samples.
    pub idle_mib: f64,
    pub samples: Vec<Sample>,
}

/// The folder of raw results.
pub fn results() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("benches/results/latest.json")
}

/// The runs of each case by each proxy.
struct Runs<'a>(BTreeMap<(&'a str, &'a str), Vec<&'a Sample>>);

impl<'a> Runs<'a> {
    fn of(figures: &'a Figures) -> Self {
        let mut runs: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for sample in &figures.samples {
            runs.entry((&*sample.case, &*sample.proxy)).or_default().push(sample);
        }
        Self(runs)
    }

    fn costs(&self, case: &str, proxy: &str) -> Vec<f64> {
        self.0.get(&(case, proxy)).into_iter().flatten().map(|sample| sample.cpu_us_per_request).collect()
    }

    /// Ratios to the bare proxy within each round. The ratio to the plain run shows the cost of a credential.
    fn ratios(&self, case: &str, proxy: &str) -> Vec<f64> {
        let yardstick = if self.0.contains_key(&(case, "bare")) { case } else { "plain" };
        let bare_of = |round| self.0.get(&(yardstick, "bare"))?.iter().find(|bare| bare.round == round);
        let of = |sample: &&Sample| Some(sample.cpu_us_per_request / bare_of(sample.round)?.cpu_us_per_request);
        self.0.get(&(case, proxy)).into_iter().flatten().filter_map(of).collect()
    }
}

/// A Markdown table of medians, and of the median of the ratios within each round to the bare proxy's plain run of that
/// kind.
pub fn table(figures: &Figures) -> String {
    let runs = Runs::of(figures);
    let mut cases: Vec<&str> = Vec::new();
    for sample in &figures.samples {
        if !cases.contains(&sample.case.as_str()) {
            cases.push(&sample.case);
        }
    }
    let mut text = String::from(
        "| case | proxy | CPU us/request, median (min to max) | to bare hyper, median (min to max) |\n|---|---|---|---|\n",
    );
    for case in cases {
        for proxy in ["bare", "signature", "doorward", "nginx"] {
            let (costs, ratios) = (runs.costs(case, proxy), runs.ratios(case, proxy));
            if !costs.is_empty() {
                let _ = writeln!(text, "| {case} | {proxy} | {} | {} |", spread(&costs, 1), spread(&ratios, 2));
            }
        }
    }
    let _ = writeln!(
        text,
        "\nIdle, with the demo's configuration less provider and samples: {:.1} MiB (PSS).",
        figures.idle_mib
    );
    text
}

/// The same as a short summary.
pub fn summary(figures: &Figures) -> String {
    let runs = Runs::of(figures);
    let cost = |case, proxy| median(&runs.costs(case, proxy));
    let ratio = |case| median(&runs.ratios(case, "doorward"));
    let mut seen = [ratio("bearer RS256 seen"), ratio("bearer ES256 seen")];
    seen.sort_by(f64::total_cmp);
    let [least, most] = seen;
    format!(
        "A plain request takes {:.0} us of CPU time in Doorward and {:.0} us in a bare hyper proxy. With a session it takes {:.2} times as much as\n\
         in the bare proxy, and with a bearer token seen before {:.2} to {:.2} times. A signed delivery of 25 kB takes {:.0} us, and an idle\n\
         Doorward {:.1} MiB.\n",
        cost("plain", "doorward"),
        cost("plain", "bare"),
        ratio("session cookie"),
        least,
        most,
        cost("webhook 25 kB", "doorward"),
        figures.idle_mib,
    )
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = |at: usize| sorted.get(at).copied().unwrap_or(f64::NAN);
    // For an even number, the mean of the two in the middle.
    f64::midpoint(middle(sorted.len().saturating_sub(1) / 2), middle(sorted.len() / 2))
}

fn spread(values: &[f64], digits: usize) -> String {
    let (min, max) = values.iter().fold((f64::MAX, f64::MIN), |(min, max), value| (min.min(*value), max.max(*value)));
    if values.is_empty() {
        return String::new();
    }
    format!("{:.digits$} ({min:.digits$} to {max:.digits$})", median(values))
}

/// The page with its generated block replaced by `told`.
pub fn written_into(page: &str, told: &str) -> Result<String, &'static str> {
    let (before, rest) = page.split_once(BEGIN).ok_or("the page has no place for figures")?;
    let (_, after) = rest.split_once(END).ok_or("the page's place for figures has no end")?;
    Ok(format!("{before}{BEGIN}\n{told}{END}{after}"))
}
