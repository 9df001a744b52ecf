//! The condition on what a request does to a Tekton run.

use std::{collections::BTreeMap, sync::Arc};

use crate::{
    config::{
        raw::{self, RunIntent},
        report::{At, Report},
    },
    tekton::Run,
};

use super::{condition::Reading, names::Prefix, on::parse_all, resolvers};

/// The condition of a rule on runs. An empty list or `None` restricts nothing.
#[derive(Debug)]
pub(super) struct RunCondition {
    does: Box<[RunIntent]>,
    code: Box<[Prefix]>,
    inline: Option<bool>,
    service_accounts: Box<[Prefix]>,
    pod_template: Option<bool>,
    binds_secrets: Option<bool>,
    params: Named,
    labels: Named,
}

/// Values by name.
type Named = Box<[(Arc<str>, Box<[Prefix]>)]>;

impl RunCondition {
    pub(super) fn compile(raw: &raw::OnRun, action: &raw::Action, at: &At, report: &mut Report) -> Self {
        if *raw == raw::OnRun::default() {
            report
                .error(at, "the condition is empty")
                .help("say what the request `does`, or what its body may contain");
        }
        resolvers::check(&raw.code, action, &at.key("code"), report);
        match action {
            raw::Action::Deny if raw.code.is_empty() => {
                for (key, values, why) in [
                    ("params", &raw.params, "the default may be one of these values"),
                    ("labels", &raw.labels, "the run gets the labels of its pipeline or task"),
                ] {
                    if !values.is_empty() {
                        report
                            .warning(
                                &at.key(key),
                                format!("this denies every run that leaves these out, whatever its pipeline: {why}"),
                            )
                            .help(format!("name in `code` the pipelines and tasks that have these {key}"));
                    }
                }
            }
            raw::Action::Deny => {}
            raw::Action::Allow | raw::Action::Approve(_) => {
                let makes_runs = raw.does.is_empty() || raw.does.iter().any(|intent| intent.makes_a_run());
                let only_does = *raw == raw::OnRun { does: raw.does.clone(), ..raw::OnRun::default() };
                let is_code_meant = !raw.code.is_empty() || raw.inline == Some(true);
                if !makes_runs && !only_does {
                    report
                        .warning(
                            at,
                            "no request meets it: the content of a request that does this to a run is not looked at",
                        )
                        .help("leave all but `does` out, or name `create` or `apply` there");
                } else if is_code_meant && raw.service_accounts.is_empty() {
                    report.warning(at, "whoever starts this code chooses the service account that it runs as").help(
                        "list in `service_accounts` those that they may choose, and write `pod_template: false` and \
                             `binds_secrets: false` if they must not choose these",
                    );
                } else if !raw.code.is_empty() && raw.pod_template.is_none() {
                    // Its `env` is that of each step: `BASH_ENV` or `LD_PRELOAD` there is code.
                    report
                        .warning(
                            &at.key("code"),
                            "whoever starts this code may configure its pods, and so make its steps run other code and \
                             read Secrets of the namespace",
                        )
                        .help(
                            "write `pod_template: false` (and `binds_secrets: false`, if they must not choose Secrets \
                             for its workspaces), or `pod_template: true` if this is meant",
                        );
                }
            }
        }
        let mut patterns = |texts: &[String], at: &At| parse_all(texts, at, report, Prefix::parse);
        let code = patterns(&raw.code, &at.key("code"));
        let service_accounts = patterns(&raw.service_accounts, &at.key("service_accounts"));
        let mut named = |values: &BTreeMap<String, Vec<String>>, at: &At| -> Named {
            let one = |(name, values): (&String, &Vec<String>)| (name.as_str().into(), patterns(values, &at.key(name)));
            values.iter().map(one).collect()
        };
        let (params, labels) = (named(&raw.params, &at.key("params")), named(&raw.labels, &at.key("labels")));
        for (key, values) in [("params", &raw.params), ("labels", &raw.labels)] {
            // No run would match it, so a deny would prevent nothing.
            for name in values.iter().filter(|(_, values)| values.is_empty()).map(|(name, _)| name) {
                report.error(&at.key(key).key(name), "an empty list matches nothing");
            }
        }
        Self {
            does: raw.does.iter().copied().collect(),
            code,
            inline: raw.inline,
            service_accounts,
            pod_template: raw.pod_template,
            binds_secrets: raw.binds_secrets,
            params,
            labels,
        }
    }

    pub(super) fn holds(&self, run: &Run, reading: Reading) -> bool {
        let does = self.does_hold(run.intent, reading) || (reading == Reading::Wide && self.may_do(run));
        does && (self.says_only_what_it_does() || self.brings(run, reading))
    }

    /// Whether it holds for requests with this intent, whatever they contain.
    pub(super) fn does_hold(&self, intent: RunIntent, reading: Reading) -> bool {
        let does = |intent| self.does.contains(&intent);
        let either = |first, second| match reading {
            Reading::Strict => does(first) && does(second),
            Reading::Wide => does(first) || does(second),
        };
        self.does.is_empty()
            || does(intent)
            || (intent == RunIntent::Apply && either(RunIntent::Create, RunIntent::Change))
    }

    /// Whether `does` contains what a request also does to the status. An apply without a status removes the one that
    /// the same manager set before, which starts a run that waits.
    fn may_do(&self, run: &Run) -> bool {
        let leaves_it_out = run.intent == RunIntent::Apply && run.statuses.is_empty();
        let besides = run.statuses.iter().chain(leaves_it_out.then_some(&RunIntent::Start));
        besides.into_iter().any(|status| self.does.contains(status))
    }

    fn says_only_what_it_does(&self) -> bool {
        let Self { code, service_accounts, params, labels, .. } = self;
        let flags = [self.inline, self.pod_template, self.binds_secrets];
        code.is_empty()
            && service_accounts.is_empty()
            && params.is_empty()
            && labels.is_empty()
            && flags.iter().all(Option::is_none)
    }

    /// Whether the content of the request matches. A change may contain anything; a new status contains nothing.
    fn brings(&self, run: &Run, reading: Reading) -> bool {
        if !run.intent.makes_a_run() {
            return reading == Reading::Wide && !run.intent.is_status();
        }
        let values = |wanted: &Named, given: &BTreeMap<Arc<str>, Arc<str>>, left_out: bool| {
            let is_such = |patterns: &[Prefix], value: &Arc<str>| among(value, patterns, reading);
            wanted.iter().all(|(name, patterns)| given.get(name).map_or(left_out, |value| is_such(patterns, value)))
        };
        // The code that runs has not been read. A parameter that is left out has the default from that code. So may a
        // label, since Tekton copies the labels of a pipeline or a task to its run (`storePipelineSpecAndMergeMeta`),
        // but not those of code in the run itself.
        let has_default = reading == Reading::Wide;
        let may_get_labels = has_default && !run.references.is_empty();
        let code = match reading {
            // Inline code has none of the names.
            Reading::Strict => !(run.inline && self.inline.is_none()) && all_among(&run.references, &self.code),
            Reading::Wide => run
                .references
                .iter()
                .any(|name| among(name, &self.code, reading) || resolvers::may_be(name, &self.code)),
        };
        let accounts = match reading {
            Reading::Strict => all_among(&run.service_accounts, &self.service_accounts),
            Reading::Wide => run.service_accounts.iter().any(|name| among(name, &self.service_accounts, reading)),
        };
        (self.code.is_empty() || code)
            && (self.service_accounts.is_empty() || accounts)
            && self.inline.is_none_or(|inline| inline == run.inline)
            && self.pod_template.is_none_or(|template| template == run.pod_template)
            && self.binds_secrets.is_none_or(|binds| binds == run.binds_secrets)
            && values(&self.params, &run.params, has_default)
            && values(&self.labels, &run.labels, may_get_labels)
    }

    /// Names of the parameters and labels that it looks at.
    pub(super) fn names(&self) -> impl Iterator<Item = &Arc<str>> {
        self.params.iter().chain(&self.labels).map(|(name, _)| name)
    }

    pub(super) fn looks_at_accounts(&self) -> bool {
        !self.service_accounts.is_empty()
    }

    pub(super) fn needs(&self) -> String {
        let mut parts = Vec::new();
        let mut list = |key: &str, values: Vec<String>| {
            if !values.is_empty() {
                parts.push(format!("{key} {}", values.join(", ")));
            }
        };
        let texts = |patterns: &[Prefix]| patterns.iter().map(ToString::to_string).collect::<Vec<_>>();
        list("does", self.does.iter().map(|intent| intent.as_str().to_owned()).collect());
        list("code", texts(&self.code));
        list("service_accounts", texts(&self.service_accounts));
        let flags =
            [("inline", self.inline), ("pod_template", self.pod_template), ("binds_secrets", self.binds_secrets)];
        for (key, flag) in flags {
            list(key, flag.into_iter().map(|flag| flag.to_string()).collect());
        }
        for (kind, named) in [("params", &self.params), ("labels", &self.labels)] {
            for (name, patterns) in named {
                list(&format!("{kind}.{name}"), texts(patterns));
            }
        }
        parts.join("; ")
    }
}

/// Strict: there are names, and all match.
fn all_among(names: &[Arc<str>], patterns: &[Prefix]) -> bool {
    !names.is_empty() && names.iter().all(|name| among(name, patterns, Reading::Strict))
}

/// Whether a name matches. One that Tekton fills in later (`$(params.x)`) may become any name.
fn among(name: &str, patterns: &[Prefix], reading: Reading) -> bool {
    if name.contains("$(") {
        return reading == Reading::Wide;
    }
    patterns.iter().any(|pattern| pattern.matches(name))
}

/// Describes what a request does to a run.
pub(super) fn found(run: &Run) -> String {
    let mut parts = vec![run.intent.as_str().to_owned()];
    if run.intent.makes_a_run() {
        if !run.references.is_empty() {
            parts.push(format!("code {}", run.references.join(", ")));
        }
        parts.push(format!("service_accounts {}", run.service_accounts.join(", ")));
        let flags =
            [("inline code", run.inline), ("a pod template", run.pod_template), ("a bound secret", run.binds_secrets)];
        parts.extend(flags.into_iter().filter(|(_, is_set)| *is_set).map(|(what, _)| what.to_owned()));
        for (kind, named) in [("params", &run.params), ("labels", &run.labels)] {
            parts.extend(named.iter().map(|(name, value)| format!("{kind}.{name} {value}")));
        }
    }
    parts.join("; ")
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::tekton::RunKind;

    fn condition(rule: Value) -> RunCondition {
        let raw: raw::OnRun = serde_json::from_value(rule).unwrap();
        let mut report = Report::default();
        let condition = RunCondition::compile(&raw, &raw::Action::Allow, &At::root(), &mut report);
        assert!(!report.has_errors(), "{:?}", report.problems());
        condition
    }

    fn created(spec: &Value) -> Run {
        let object = json!({"metadata": {"labels": {"team": "a"}}, "spec": spec});
        Run::read(RunKind::PipelineRun, RunIntent::Create, object.as_object().unwrap(), "default").unwrap()
    }

    /// Whether an allow and a deny with the condition match a run.
    fn both(rule: &Value, run: &Run) -> (bool, bool) {
        let condition = condition(rule.clone());
        (condition.holds(run, Reading::Strict), condition.holds(run, Reading::Wide))
    }

    #[test]
    fn an_allow_needs_all_to_be_listed_and_a_deny_any() {
        let rule = json!({"does": ["create"], "code": ["deploy", "git?*"], "service_accounts": ["deployer"]});
        let spec = |pipeline: &str, accounts: &[&str]| {
            let parts: Vec<Value> = accounts.iter().map(|name| json!({"serviceAccountName": name})).collect();
            created(
                &json!({"pipelineRef": {"name": pipeline}, "taskRunTemplate": {"serviceAccountName": "deployer"}, "taskRunSpecs": parts}),
            )
        };
        assert_eq!(both(&rule, &spec("deploy", &[])), (true, true));
        assert_eq!(both(&rule, &spec("deploy", &["admin"])), (false, true));
        assert_eq!(both(&rule, &spec("other", &[])), (false, false));
        let default = created(&json!({"pipelineRef": {"name": "deploy"}}));
        assert_eq!(both(&rule, &default), (false, false), "no account is the default one");
        let filled_in = created(
            &json!({"pipelineRef": {"name": "deploy"}, "taskRunTemplate": {"serviceAccountName": "$(params.x)"}}),
        );
        assert_eq!(both(&rule, &filled_in), (false, true));
        let git = json!({"resolver": "git", "params": [{"name": "url", "value": "https://git.example/a?b&c"}]});
        let git = created(&json!({"pipelineRef": git, "serviceAccountName": "deployer"}));
        assert_eq!(&*git.references[0], "git?url=https%3A%2F%2Fgit.example%2Fa%3Fb%26c");
        assert_eq!(both(&rule, &git), (true, true));
        let filled_in = json!({"resolver": "git", "params": [{"name": "url", "value": "$(params.u)"}]});
        let filled_in =
            created(&json!({"pipelineRef": filled_in, "taskRunTemplate": {"serviceAccountName": "deployer"}}));
        assert_eq!(both(&rule, &filled_in), (true, true), "all of git is allowed");
        let one = json!({"code": ["git?url=https%3A%2F%2Fold.example"]});
        assert_eq!(both(&one, &filled_in), (false, true), "it may become the one that is denied");
        let inline = created(
            &json!({"pipelineSpec": {"tasks": [{"taskRef": {"name": "deploy"}}]}, "serviceAccountName": "deployer"}),
        );
        assert_eq!(both(&rule, &inline), (false, true), "inline code is none that is named");
    }

    #[test]
    fn flags_parameters_and_labels() {
        let run = created(&json!({
            "pipelineRef": {"name": "deploy"},
            "params": [{"name": "env", "value": "staging"}, {"name": "list", "value": ["a"]}],
            "taskRunSpecs": [{"taskPodTemplate": {}}],
            "workspaces": [{"name": "w", "secret": {"secretName": "s"}}],
        }));
        for (rule, expected) in [
            (json!({"pod_template": true}), (true, true)),
            (json!({"pod_template": false}), (false, false)),
            (json!({"binds_secrets": true}), (true, true)),
            (json!({"inline": false}), (true, true)),
            (json!({"params": {"env": ["staging", "test"]}}), (true, true)),
            (json!({"params": {"env": ["prod"]}}), (false, false)),
            (json!({"params": {"list": ["[\"a\"]"]}}), (true, true)),
            (json!({"labels": {"team": ["a"]}}), (true, true)),
        ] {
            assert_eq!(both(&rule, &run), expected, "{rule}");
        }
    }

    /// A run evaded a deny of `env: prod` by leaving it to a pipeline that has this as its default.
    #[test]
    fn a_parameter_that_is_left_to_its_default_may_have_what_is_denied() {
        let run = created(&json!({"pipelineRef": {"name": "deploy"}, "params": [{"name": "env", "value": "staging"}]}));
        for (rule, expected) in [
            (json!({"code": ["deploy"], "params": {"zone": ["a"]}}), (false, true)),
            (json!({"params": {"zone": ["*"]}}), (false, true)),
            (json!({"code": ["deploy"], "params": {"zone": ["a"], "env": ["prod"]}}), (false, false)),
            (json!({"code": ["other"], "params": {"zone": ["a"]}}), (false, false)),
        ] {
            assert_eq!(both(&rule, &run), expected, "{rule}");
        }
    }

    /// A run evaded a deny of `tier: prod` by leaving it to a pipeline that has this label.
    #[test]
    fn a_label_that_is_left_out_may_be_that_of_the_pipeline_which_is_denied() {
        let run = created(&json!({"pipelineRef": {"name": "deploy"}}));
        let inline = created(&json!({"pipelineSpec": {"tasks": []}}));
        for (rule, run, expected) in [
            (json!({"code": ["deploy"], "labels": {"tier": ["prod"]}}), &run, (false, true)),
            (json!({"labels": {"tier": ["*"]}}), &run, (false, true)),
            (json!({"labels": {"tier": ["prod"], "team": ["b"]}}), &run, (false, false)),
            (json!({"code": ["other"], "labels": {"tier": ["prod"]}}), &run, (false, false)),
            // The run has only the labels that it names.
            (json!({"labels": {"tier": ["prod"]}}), &inline, (false, false)),
        ] {
            assert_eq!(both(&rule, run), expected, "{rule}");
        }
    }

    #[test]
    fn a_deny_of_parameters_or_labels_without_code_is_warned_to_hit_runs_without_them() {
        for (rule, action, expected) in [
            (json!({"params": {"env": ["prod"]}}), raw::Action::Deny, &["/params"][..]),
            (json!({"labels": {"env": ["prod"]}}), raw::Action::Deny, &["/labels"]),
            (
                json!({"params": {"env": ["prod"]}, "labels": {"env": ["prod"]}}),
                raw::Action::Deny,
                &["/params", "/labels"],
            ),
            (json!({"code": ["deploy"], "params": {"env": ["prod"]}, "labels": {"a": ["b"]}}), raw::Action::Deny, &[]),
            (json!({"params": {"env": ["prod"]}, "labels": {"env": ["prod"]}}), raw::Action::Allow, &[]),
        ] {
            let raw: raw::OnRun = serde_json::from_value(rule.clone()).unwrap();
            let mut report = Report::default();
            RunCondition::compile(&raw, &action, &At::root(), &mut report);
            assert!(!report.has_errors());
            let told: Vec<&str> = report.problems().iter().map(|problem| problem.at.as_str()).collect();
            assert_eq!(told, expected, "{rule} {action:?}");
        }
    }

    /// The rule looked as if the account had to be listed, but a run of the code could have any account; and as if only
    /// this code could run, but the environment of its steps could bring any other.
    #[test]
    fn an_allow_of_code_without_service_accounts_or_pod_template_is_warned_about() {
        for (rule, action, expected) in [
            (json!({"does": ["create"], "code": ["deploy"]}), raw::Action::Allow, 1),
            (json!({"code": ["deploy"], "service_accounts": ["deployer"]}), raw::Action::Allow, 1),
            (
                json!({"code": ["deploy"], "service_accounts": ["deployer"], "binds_secrets": false}),
                raw::Action::Allow,
                1,
            ),
            (
                json!({"code": ["deploy"], "service_accounts": ["deployer"], "pod_template": false}),
                raw::Action::Allow,
                0,
            ),
            (json!({"does": ["apply"], "inline": true}), raw::Action::Allow, 1),
            (json!({"inline": true, "service_accounts": ["deployer"]}), raw::Action::Allow, 0),
            (json!({"does": ["create"], "inline": false}), raw::Action::Allow, 0),
            (json!({"does": ["cancel"]}), raw::Action::Allow, 0),
            (json!({"code": ["deploy"]}), raw::Action::Deny, 0),
        ] {
            let raw: raw::OnRun = serde_json::from_value(rule.clone()).unwrap();
            let mut report = Report::default();
            RunCondition::compile(&raw, &action, &At::root(), &mut report);
            assert!(!report.has_errors(), "it is no error");
            assert_eq!(report.problems().len(), expected, "{rule} {action:?}");
        }
        let anything = created(&json!({
            "pipelineRef": {"name": "deploy"},
            "taskRunTemplate": {"serviceAccountName": "admin", "podTemplate": {}},
            "params": [{"name": "image", "value": "x"}],
        }));
        assert_eq!(both(&json!({"does": ["create"], "code": ["deploy"]}), &anything), (true, true));
    }

    #[test]
    fn an_allow_of_content_for_status_changes_alone_is_warned_to_match_nothing() {
        for (rule, action, expected) in [
            (json!({"does": ["cancel"], "code": ["deploy"]}), raw::Action::Allow, true),
            (json!({"does": ["change", "start"], "params": {"env": ["prod"]}}), raw::Action::Allow, true),
            (json!({"does": ["cancel"], "pod_template": false}), raw::Action::Allow, true),
            (json!({"does": ["cancel", "create"], "code": ["deploy"]}), raw::Action::Allow, false),
            (json!({"code": ["deploy"]}), raw::Action::Allow, false),
            // It matches a change, which may contain anything.
            (json!({"does": ["change"], "code": ["deploy"]}), raw::Action::Deny, false),
        ] {
            let raw: raw::OnRun = serde_json::from_value(rule.clone()).unwrap();
            let mut report = Report::default();
            RunCondition::compile(&raw, &action, &At::root(), &mut report);
            let told = report.problems().iter().any(|problem| problem.message.starts_with("no request meets it"));
            assert_eq!(told, expected, "{rule} {action:?}");
        }
    }

    #[test]
    fn a_change_may_have_any_content_and_a_status_change_none() {
        let rule = json!({"service_accounts": ["deployer"]});
        assert_eq!(both(&rule, &Run::only(RunIntent::Change)), (false, true));
        assert_eq!(both(&rule, &Run::only(RunIntent::Cancel)), (false, false));
        let cancel = json!({"does": ["cancel"]});
        assert_eq!(both(&cancel, &Run::only(RunIntent::Cancel)), (true, true));
        assert_eq!(both(&cancel, &Run::only(RunIntent::Change)), (false, false));
        // A status beside something else still counts for a deny, and does not count for an allow of the status alone.
        for intent in [RunIntent::Change, RunIntent::Apply] {
            let besides = Run { statuses: vec![RunIntent::Cancel], ..Run::only(intent) };
            assert_eq!(both(&cancel, &besides), (false, true), "{intent:?}");
            assert_eq!(both(&json!({"does": ["pause"]}), &besides), (false, false), "{intent:?}");
        }
        let apply =
            Run::read(RunKind::PipelineRun, RunIntent::Apply, json!({}).as_object().unwrap(), "default").unwrap();
        for (does, expected) in [
            (json!(["apply"]), (true, true)),
            (json!(["create", "change"]), (true, true)),
            (json!(["create"]), (false, true)),
            (json!(["cancel"]), (false, false)),
            (json!(["start"]), (false, true)),
        ] {
            assert_eq!(both(&json!({"does": does}), &apply), expected, "{does}");
        }
    }

    #[test]
    fn a_condition_without_any_test_is_an_error() {
        let mut report = Report::default();
        RunCondition::compile(&raw::OnRun::default(), &raw::Action::Allow, &At::root(), &mut report);
        assert_eq!(report.problems().len(), 1);
    }

    #[test]
    fn an_allow_must_name_the_source_of_a_resolver_and_a_deny_need_not() {
        let raw = raw::OnRun { code: vec!["hub?kind=task&name=git-clone&*".to_owned()], ..raw::OnRun::default() };
        for (action, expected) in [(raw::Action::Allow, true), (raw::Action::Deny, false)] {
            let mut report = Report::default();
            RunCondition::compile(&raw, &action, &At::root(), &mut report);
            assert_eq!(report.has_errors(), expected, "{action:?}");
        }
    }
}
