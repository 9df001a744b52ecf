//! The costs stated in the README and in `docs/performance.md` are the measured ones.

#[path = "../../benches/compare/report.rs"]
mod report;

fn figures() -> report::Figures {
    serde_json::from_slice(&std::fs::read(report::results()).unwrap()).unwrap()
}

#[test]
fn the_pages_say_what_the_committed_figures_give() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    for (page, told) in [("docs/performance.md", report::table(&figures())), ("README.md", report::summary(&figures()))]
    {
        let text = std::fs::read_to_string(root.join(page)).unwrap();
        assert!(
            text == report::written_into(&text, &told).unwrap(),
            "`benches/run report` writes into {page}:\n{told}"
        );
    }
}

#[test]
fn a_figure_that_was_changed_by_hand_would_be_seen() {
    let (before, mut figures) = (figures(), figures());
    for sample in &mut figures.samples {
        sample.cpu_us_per_request *= 2.0;
    }
    assert_ne!(report::table(&figures), report::table(&before));
    assert_ne!(report::summary(&figures), report::summary(&before));
    assert!(report::written_into("no place for them", "").is_err());
}
