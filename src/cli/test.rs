//! `doorward test`: decides the tests of the policy, and shows those that are decided differently than expected.

use std::{fmt, io::Write, path::PathBuf};

use clap::Args;
use serde::Serialize;

use super::{Failure, format::Format, load_policy};
use crate::{
    authz::{Policy, Scenario},
    config::{
        self, Sources,
        raw::{Effect, Mode, PolicyTest, Root, TestFile},
        report::no_such,
    },
    terminal,
};

/// Run the test cases of the policy.
#[derive(Args, Clone, Debug)]
pub struct TestArgs {
    /// Further files with `tests`, such as `policy.test.yaml`
    #[arg(long = "tests", value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// Decide only cases whose name contains this
    #[arg(long, value_name = "TEXT")]
    pub only: Option<String>,
    /// How the result is printed
    #[arg(long, value_enum, default_value_t = Format::Human)]
    pub format: Format,
}

/// Decides the cases and prints the results. Returns the exit status.
pub fn decide(sources: &Sources, args: &TestArgs, out: &mut impl Write) -> Result<u8, Failure> {
    let mut further = Vec::new();
    for path in &args.files {
        further.extend(config::read::<TestFile>(path)?.tests);
    }
    let (loaded, policy) = load_policy(sources)?;
    let results = run(&policy, &loaded.raw, &further, args.only.as_deref());
    args.format.print(&results, out)?;
    Ok(results.exit_code())
}

/// The result of one case.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CaseResult {
    pub name: String,
    /// The decision, with its rule.
    pub decided: String,
    /// How the decision differs from what was expected; empty if it does not.
    pub differences: Vec<String>,
}

/// The results of all cases. Displays as a table.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Results {
    pub cases: Vec<CaseResult>,
    /// Cases that `--only` left out.
    #[serde(skip)]
    pub left_out: usize,
}

impl Results {
    /// Whether every case is decided as expected. Having no case at all is a failure, so that a lost file of tests is
    /// noticed.
    pub fn passed(&self) -> bool {
        !self.cases.is_empty() && self.cases.iter().all(|case| case.differences.is_empty())
    }

    /// 0, or 1 if a case is decided differently than expected or if there is none.
    pub fn exit_code(&self) -> u8 {
        u8::from(!self.passed())
    }
}

/// Decides cases: those of the configuration and `further` ones.
pub fn run(policy: &Policy, root: &Root, further: &[PolicyTest], only: Option<&str>) -> Results {
    let (asked, left_out): (Vec<_>, Vec<_>) =
        root.tests.iter().chain(further).partition(|test| only.is_none_or(|text| test.name.contains(text)));
    Results { cases: asked.into_iter().map(|test| run_one(policy, root, test)).collect(), left_out: left_out.len() }
}

fn run_one(policy: &Policy, root: &Root, test: &PolicyTest) -> CaseResult {
    let name = test.name.clone();
    let scenario = match Scenario::new(test.principal.as_ref(), &test.request, root) {
        Ok(scenario) => scenario,
        Err(why) => {
            return CaseResult { name, decided: "not decided".to_owned(), differences: vec![why.to_string()] };
        }
    };
    let decision = policy.decide(&scenario.principal, &scenario.request());
    let mut differences = Vec::new();
    // The proxy asks such a caller for a credential, whatever rules give.
    let needs_credential = scenario.lacks_credential() && decision.outcome.effect() != Effect::Deny;
    let (outcome, rule) = match needs_credential {
        true => (Effect::Deny, None),
        false => (decision.outcome.effect(), decision.rule.as_deref()),
    };
    if outcome != test.expect.outcome {
        differences.push(format!("expected {}", test.expect.outcome.as_str()));
    }
    if let Some(expected) = &test.expect.rule
        && rule != Some(expected)
    {
        differences.push(match root.rules.iter().find(|known| known.id == *expected).map(|known| known.mode) {
            Some(Mode::Enforce) => format!("expected rule {expected}"),
            Some(Mode::Shadow) => format!("expected rule {expected}, which is in `mode: shadow` and decides nothing"),
            None => no_such("rule", expected, root.rules.iter().map(|known| known.id.as_str())),
        });
    }
    if let Some(expected) = &test.expect.kubernetes_groups {
        let given = policy.kubernetes_groups(&scenario.principal).groups;
        let mut given: Vec<&str> = given.iter().map(|group| &**group).collect();
        let mut expected: Vec<&str> = expected.iter().map(String::as_str).collect();
        given.sort_unstable();
        expected.sort_unstable();
        if given != expected {
            let text = |groups: &[&str]| if groups.is_empty() { "none".to_owned() } else { groups.join(", ") };
            differences.push(format!("expected groups {}, got {}", text(&expected), text(&given)));
        }
    }
    if !differences.is_empty() {
        let explanation = policy.explain(&scenario.principal, &scenario.request());
        differences.extend(explanation.fixes.iter().map(|fix| format!("to pass: {fix}")));
        if needs_credential {
            differences.push(
                "to pass: write a `principal`; the route does not accept callers without a credential".to_owned(),
            );
        }
    }
    CaseResult { name, decided: format!("{} by {}", outcome.as_str(), rule.unwrap_or("no rule")), differences }
}

impl fmt::Display for Results {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<String> = self.cases.iter().map(|case| terminal::line(&case.name)).collect();
        let width = names.iter().map(|name| name.chars().count()).max().unwrap_or(0);
        for (case, name) in self.cases.iter().zip(&names) {
            let mark = if case.differences.is_empty() { "ok  " } else { "FAIL" };
            writeln!(f, "{mark}  {name:width$}  {}", terminal::line(&case.decided))?;
            for difference in &case.differences {
                writeln!(f, "      {}", terminal::line(difference))?;
            }
        }
        let failed = self.cases.iter().filter(|case| !case.differences.is_empty()).count();
        match self.cases.len() {
            0 if self.left_out > 0 => {
                writeln!(f, "no case has a name that contains the text of `--only`; there are {}", self.left_out)
            }
            0 => writeln!(f, "no cases; write some under `tests`"),
            all => writeln!(f, "{} of {all} cases are decided as expected", all - failed),
        }
    }
}

#[cfg(test)]
mod tests;
