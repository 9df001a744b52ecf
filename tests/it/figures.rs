//! What `docs/performance.md` says of the cost of Doorward is what was measured.

#[path = "../../benches/compare/report.rs"]
mod report;

#[test]
fn the_table_of_the_page_is_what_the_committed_figures_give() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let figures = serde_json::from_slice(&std::fs::read(report::results()).unwrap()).unwrap();
    let page = std::fs::read_to_string(root.join("docs/performance.md")).unwrap();
    let written = report::written_into(&page, &figures).unwrap();
    assert!(page == written, "`benches/run report` writes another table:\n{}", report::table(&figures));
}

#[test]
fn a_figure_that_was_changed_by_hand_would_be_seen() {
    let mut figures: report::Figures = serde_json::from_slice(&std::fs::read(report::results()).unwrap()).unwrap();
    let before = report::table(&figures);
    for sample in &mut figures.samples {
        sample.cpu_us_per_request *= 2.0;
    }
    assert_ne!(report::table(&figures), before);
    assert!(report::written_into("no place for them", &figures).is_err());
}
