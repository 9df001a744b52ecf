//! Benchmarks Doorward against a bare hyper proxy and nginx: CPU time of the proxy per request, with one worker on one
//! core.
//!
//! `benches/run` installs wrk and nginx and runs this. All proxies are pinned to core 0; load generator and upstream to
//! core 1. Rounds are interleaved and ratios are taken within a round, so that a drifting machine speed has no effect.
//! Raw results are written to `benches/results/`; `report` generates the table in `docs/performance.md` and the figures
//! in the README from them.

#![expect(clippy::indexing_slicing, reason = "a bench that meets what it does not expect may stop")]

mod bare;
mod cluster;
mod exchange;
mod load;
mod peers;
mod person;
mod report;
mod tokens;

use std::{path::PathBuf, process::ExitCode};

use report::{Figures, Sample, results};

/// Writes the committed results into `docs/performance.md` and the README.
fn write_report() -> Result<(), Failure> {
    let figures: Figures = serde_json::from_slice(&std::fs::read(results())?)?;
    for (page, told) in [("docs/performance.md", report::table(&figures)), ("README.md", report::summary(&figures))] {
        let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(page);
        let written = report::written_into(&std::fs::read_to_string(&path)?, &told)?;
        std::fs::write(path, written)?;
    }
    Ok(())
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let result = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["bare", listen, upstream] => bare::run(listen, upstream, None),
        ["bare", listen, upstream, chain, key] => bare::run(listen, upstream, Some((chain, key))),
        ["cluster", listen] => cluster::run(listen),
        ["report"] => write_report(),
        [] => measure(10, None),
        ["rounds", rounds] => measure(rounds.parse().unwrap_or(10), None),
        ["rounds", rounds, case] => measure(rounds.parse().unwrap_or(10), Some(case)),
        _ => Err("usage: compare [rounds N [CASE] | report]".into()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("compare: {error}");
            ExitCode::FAILURE
        }
    }
}

type Failure = Box<dyn std::error::Error + Send + Sync>;

fn measure(rounds: usize, only: Option<&str>) -> Result<(), Failure> {
    let bench = peers::Bench::start()?;
    let mut samples = Vec::new();
    let mut cases = load::cases(&bench);
    cases.retain(|case| only.is_none_or(|only| only == case.name));
    // Rounds are outermost: a ratio may refer to another case of the same round.
    for round in 0..rounds {
        for case in &cases {
            for proxy in &case.proxies {
                let sample = load::run(&bench, case, proxy, round)?;
                let rate = sample.requests_per_second.map(|rate| format!(" {rate:>8.0} rps")).unwrap_or_default();
                eprintln!(
                    "{:>2} {:<18} {:<9} {:>7.2} us{rate}",
                    round, sample.case, sample.proxy, sample.cpu_us_per_request
                );
                samples.push(sample);
            }
        }
    }
    let figures = Figures { idle_mib: idle_mib(&bench)?, samples };
    if only.is_none() {
        std::fs::write(results(), serde_json::to_vec_pretty(&figures)?)?;
    }
    print!("{}", report::table(&figures));
    Ok(())
}

/// Memory of a Doorward that has started and been idle for so long that each background task has run several times.
fn idle_mib(bench: &peers::Bench) -> Result<f64, Failure> {
    let demo = bench.demo()?;
    std::thread::sleep(std::time::Duration::from_secs(30));
    demo.memory_mib()
}
