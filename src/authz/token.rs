//! The tokens that Doorward issues in exchange for others, and who gets them.

use std::{collections::BTreeMap, time::Duration};

use serde::{Deserialize, Serialize};

use crate::{
    authn::{Kind, break_glass},
    config::{
        raw::{self, OnToken},
        report::{At, Report},
        values::Span,
    },
};

use super::{
    condition::{Condition, Reading, joined, or_none},
    decision::Decision,
    names::Prefix,
    on::parse_all,
    resolvers,
};

/// Stands for the route of a request for a token. No route has this name, because names of routes contain no slash.
pub const TOKEN_ENDPOINT: &str = "/oauth2/token";

/// The shortest lifetime of a token: a shorter one would be renewed all the time, and clients of registries assume at
/// least this.
const MIN_LIFETIME: Span = Span::from_secs(60);

/// Reports the `lifetime` below `at` if no token may have it. `longest` is `tokens.lifetime`.
pub fn check_lifetime(lifetime: Span, longest: Span, at: &At, report: &mut Report) {
    if let Some(problem) = report.bounded(at, "lifetime", lifetime, MIN_LIFETIME..=longest) {
        problem.help("no token lasts longer than `tokens.lifetime`");
    }
}

/// A token that is requested.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenView<'a> {
    /// The audience that it would have (`aud`).
    pub audience: &'a str,
    /// One scope that it would have; `None`: no scope.
    pub scope: Option<&'a str>,
    /// The task that asks, if it is a task.
    pub task: Option<&'a TaskView>,
}

/// A running task, as far as rules can tell it from others.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskView {
    /// The name of its cluster's issuer.
    pub cluster: String,
    pub namespace: String,
    /// The service account of its pod.
    pub service_account: String,
    /// The pipeline that it is part of, by reference; `None` for a task on its own, or if the run contained the code.
    pub pipeline: Option<String>,
    /// The name of the task within the pipeline.
    pub pipeline_task: Option<String>,
    /// The task, by reference; `None` if the run or the pipeline contained the code.
    pub task: Option<String>,
}

impl TaskView {
    /// Its service account, as rules name it: `NAMESPACE/ACCOUNT`.
    pub(crate) fn account(&self) -> String {
        format!("{}/{}", self.namespace, self.service_account)
    }
}

/// A request for a token, as it was made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AskedToken {
    /// The audience that it would have (`aud`).
    pub audience: String,
    /// `None`: every scope that rules give.
    pub scopes: Option<Vec<String>>,
    /// Whether fewer scopes than requested are acceptable. If not, it is all of them or none.
    #[serde(default)]
    pub partly: bool,
    /// The task that asks, if it is a task, once that is known.
    pub task: Option<TaskView>,
}

/// The condition of a rule on tokens, parsed once. An empty list matches everything, but see
/// [`TokenCondition::matches`].
#[derive(Debug)]
pub(super) struct TokenCondition {
    audiences: Box<[Prefix]>,
    scopes: Box<[Prefix]>,
    service_accounts: Box<[Prefix]>,
    clusters: Box<[Prefix]>,
    pipelines: Box<[Prefix]>,
    pipeline_tasks: Box<[Prefix]>,
    tasks: Box<[Prefix]>,
    /// The longest lifetime of a token that it gives.
    pub(super) lifetime: Option<Duration>,
}

impl TokenCondition {
    /// Reports conditions that no token can meet, and those that would give more than they say.
    pub(super) fn compile(
        raw: &raw::On,
        token: &OnToken,
        action: &raw::Action,
        at: &At,
        root: &raw::Root,
        report: &mut Report,
    ) -> Self {
        check(raw, token, action, at, root, report);
        resolvers::check(&token.pipelines, action, &at.key("pipelines"), report);
        resolvers::check(&token.tasks, action, &at.key("tasks"), report);
        let mut parsed = |key: &str, patterns: &[String]| parse_all(patterns, &at.key(key), report, Prefix::parse);
        Self {
            audiences: parsed("audiences", &token.audiences),
            scopes: parsed("scopes", &token.scopes),
            service_accounts: parsed("service_accounts", &token.service_accounts),
            clusters: parsed("clusters", &token.clusters),
            pipelines: parsed("pipelines", &token.pipelines),
            pipeline_tasks: parsed("pipeline_tasks", &token.pipeline_tasks),
            tasks: parsed("tasks", &token.tasks),
            lifetime: token.lifetime.map(Span::get),
        }
    }

    /// Whether a token matches the condition. An allow matches a task only if it names the task's service account.
    pub(super) fn matches(&self, token: &TokenView<'_>, reading: Reading) -> bool {
        Part::ALL.into_iter().all(|part| self.holds(part, token, reading))
    }

    /// Whether a token matches, regardless of its scope.
    pub(super) fn matches_but_scope(&self, token: &TokenView<'_>, reading: Reading) -> bool {
        let mut parts = Part::ALL.into_iter().filter(|part| !matches!(part, Part::Scopes));
        parts.all(|part| self.holds(part, token, reading))
    }

    /// Whether the scope of a token matches. Without a list of scopes, an allow matches only a token without scopes,
    /// and a deny any.
    pub(super) fn takes(&self, scope: Option<&str>, reading: Reading) -> bool {
        match (scope, self.scopes.is_empty()) {
            (None, is_empty) => is_empty || reading == Reading::Wide,
            (Some(_), true) => reading == Reading::Wide,
            (Some(scope), false) => self.scopes.iter().any(|pattern| pattern.matches(scope)),
        }
    }

    fn holds(&self, part: Part, token: &TokenView<'_>, reading: Reading) -> bool {
        let patterns = self.patterns(part);
        let fits = |text: &str| patterns.iter().any(|pattern| pattern.matches(text));
        let is_given = |text: Option<&str>| patterns.is_empty() || text.is_some_and(fits);
        let is_code = |reference: Option<&str>| {
            let may_be = |text| reading == Reading::Wide && resolvers::may_be(text, patterns);
            is_given(reference) || reference.is_some_and(may_be)
        };
        match (part, token.task) {
            (Part::Audiences, _) => is_given(Some(token.audience)),
            (Part::Scopes, _) => self.takes(token.scope, reading),
            (_, None) => patterns.is_empty(),
            (Part::ServiceAccounts, Some(_)) if patterns.is_empty() => reading == Reading::Wide,
            (Part::ServiceAccounts, Some(task)) => fits(&task.account()),
            (Part::Clusters, Some(task)) => is_given(Some(&task.cluster)),
            (Part::Pipelines, Some(task)) => is_code(task.pipeline.as_deref()),
            (Part::PipelineTasks, Some(task)) => is_given(task.pipeline_task.as_deref()),
            (Part::Tasks, Some(task)) => is_code(task.task.as_deref()),
        }
    }

    fn patterns(&self, part: Part) -> &[Prefix] {
        match part {
            Part::Audiences => &self.audiences,
            Part::Scopes => &self.scopes,
            Part::ServiceAccounts => &self.service_accounts,
            Part::Clusters => &self.clusters,
            Part::Pipelines => &self.pipelines,
            Part::PipelineTasks => &self.pipeline_tasks,
            Part::Tasks => &self.tasks,
        }
    }

    /// Whether it applies to tokens for an audience.
    pub(super) fn is_for(&self, audience: &str) -> bool {
        self.audiences.is_empty() || self.audiences.iter().any(|pattern| pattern.matches(audience))
    }

    /// The scopes that it names in full.
    pub(super) fn scopes(&self) -> impl Iterator<Item = &str> {
        self.scopes.iter().filter_map(|scope| if let Prefix::Exact(scope) = scope { Some(&**scope) } else { None })
    }

    pub(super) fn scope_patterns(&self) -> impl Iterator<Item = String> {
        self.scopes.iter().map(ToString::to_string)
    }

    /// Describes the parts of a token that do not match.
    pub(super) fn misses(&self, token: &TokenView<'_>, reading: Reading) -> Vec<Condition> {
        let missed = Part::ALL.into_iter().filter(|part| !self.holds(*part, token, reading));
        missed.map(|part| Condition::new(part.key(), self.needs(part), part.found(token))).collect()
    }

    fn needs(&self, part: Part) -> String {
        match (part, self.patterns(part)) {
            (Part::Scopes, []) => "none".to_owned(),
            (Part::ServiceAccounts, []) => "the service account of a task by name".to_owned(),
            (_, patterns) => joined(patterns),
        }
    }
}

/// The parts of the condition, in the order in which they are checked: the cheap ones first.
#[derive(Clone, Copy, Debug)]
enum Part {
    Audiences,
    Scopes,
    ServiceAccounts,
    Clusters,
    Pipelines,
    PipelineTasks,
    Tasks,
}

impl Part {
    const ALL: [Self; 7] = [
        Self::Audiences,
        Self::Scopes,
        Self::ServiceAccounts,
        Self::Clusters,
        Self::Pipelines,
        Self::PipelineTasks,
        Self::Tasks,
    ];

    fn key(self) -> &'static str {
        match self {
            Self::Audiences => "on.token.audiences",
            Self::Scopes => "on.token.scopes",
            Self::ServiceAccounts => "on.token.service_accounts",
            Self::Clusters => "on.token.clusters",
            Self::Pipelines => "on.token.pipelines",
            Self::PipelineTasks => "on.token.pipeline_tasks",
            Self::Tasks => "on.token.tasks",
        }
    }

    fn found(self, token: &TokenView<'_>) -> String {
        match (self, token.task) {
            (Self::Audiences, _) => token.audience.to_owned(),
            (Self::Scopes, _) => or_none(token.scope).to_owned(),
            (_, None) => "no task".to_owned(),
            (Self::ServiceAccounts, Some(task)) => task.account(),
            (Self::Clusters, Some(task)) => {
                or_none(Some(&task.cluster).filter(|name| !name.is_empty()).map(|name| &**name)).to_owned()
            }
            (Self::Pipelines, Some(task)) => or_none(task.pipeline.as_deref()).to_owned(),
            (Self::PipelineTasks, Some(task)) => or_none(task.pipeline_task.as_deref()).to_owned(),
            (Self::Tasks, Some(task)) => or_none(task.task.as_deref()).to_owned(),
        }
    }
}

fn check(raw: &raw::On, token: &OnToken, action: &raw::Action, at: &At, root: &raw::Root, report: &mut Report) {
    if root.tokens.is_none() {
        report
            .error(at, "without the section `tokens` no token is given")
            .help("set `tokens: {exchange: [{issuer: ...}]}`");
    }
    let alone = raw::On { token: None, namespace: None, time: None, addresses: Vec::new(), ..raw.clone() };
    if alone != raw::On::default() {
        report
            .error(at, "tokens are not requested on a route, so only `namespace`, `time` and `addresses` go with it")
            .help(instead(raw));
    }
    match action {
        raw::Action::Approve(_) => {
            report.error(at, "no token waits for an approval").help("write an allow or a deny");
        }
        raw::Action::Allow if token.audiences.is_empty() => {
            report.error(at, "an allow must name the audiences of the token").help("list them in `audiences`");
        }
        _ => {}
    }
    if let Some(lifetime) = token.lifetime {
        if !matches!(action, raw::Action::Allow) {
            report.error(&at.key("lifetime"), "only an allow can have a `lifetime`").help("leave it out");
        } else if let Some(tokens) = &root.tokens {
            check_lifetime(lifetime, tokens.lifetime, at, report);
        }
    }
    let known: Vec<&str> = root.clusters().map(|of| of.issuer.as_str()).collect();
    for (index, cluster) in token.clusters.iter().enumerate() {
        let is_known = known.iter().any(|known| Prefix::parse(cluster).is_ok_and(|cluster| cluster.matches(known)));
        if !is_known && Prefix::parse(cluster).is_ok() {
            report.unknown(
                &at.key("clusters").index(index),
                "cluster of `tokens.exchange`",
                cluster,
                known.iter().copied(),
            );
        }
    }
    let is_for_tasks = matches!(action, raw::Action::Allow) && !token.service_accounts.is_empty();
    if is_for_tasks && token.clusters.is_empty() && known.len() > 1 {
        report
            .error(at, "tasks of several clusters get tokens, and each cluster has accounts of any name")
            .help(format!("list those that are meant in `clusters`: {}", known.join(", ")));
    }
    for (index, account) in token.service_accounts.iter().enumerate().filter(|(_, text)| !text.contains('/')) {
        report
            .error(&at.key("service_accounts").index(index), format!("`{account}` names no namespace"))
            .help(format!("write `NAMESPACE/{account}`"));
    }
    if is_for_tasks {
        check_namespaces(token, at, root, report);
    }
    for (index, scope) in token.scopes.iter().enumerate().filter(|(_, scope)| scope.contains(' ')) {
        report
            .error(&at.key("scopes").index(index), format!("`{scope}` has a blank, which no scope has"))
            .help("write one scope an entry");
    }
}

/// What to write instead of a condition that no request for a token has. Of two rules either suffices, so one on tokens
/// alone would give them to the runs of all events.
fn instead(raw: &raw::On) -> String {
    let of_deliveries = [
        ("event", !raw.event.is_empty()),
        ("action", !raw.action.is_empty()),
        ("branch", !raw.branch.is_empty()),
        ("tag", !raw.tag.is_empty()),
        ("fork", raw.fork.is_some()),
        ("draft", raw.draft.is_some()),
    ];
    match of_deliveries.into_iter().find_map(|(key, is_set)| is_set.then_some(key)) {
        Some(key) => format!(
            "write `{key}` into `when`, which has the delivery that caused the run: `delivery.event == 'push' && \
             delivery.branch == 'main'`"
        ),
        None => "write two rules".to_owned(),
    }
}

/// Warns of accounts in namespaces whose tasks get no tokens.
fn check_namespaces(token: &OnToken, at: &At, root: &raw::Root, report: &mut Report) {
    let patterns: Vec<Prefix> = token.clusters.iter().filter_map(|cluster| Prefix::parse(cluster).ok()).collect();
    let is_meant = |cluster: &str| patterns.is_empty() || patterns.iter().any(|pattern| pattern.matches(cluster));
    let clusters: Vec<&raw::Exchanged> = root.clusters().filter(|of| is_meant(&of.issuer)).collect();
    for (index, account) in token.service_accounts.iter().enumerate() {
        let Some((namespace, _)) = account.split_once('/') else { continue };
        if !clusters.is_empty() && !clusters.iter().any(|cluster| cluster.gives_in(namespace)) {
            report
                .warning(
                    &at.key("service_accounts").index(index),
                    format!("no task in namespace `{namespace}` gets tokens, so this gives none"),
                )
                .help(
                    "list the namespace in `namespaces` of the cluster in `tokens.exchange`, or take the account out",
                );
        }
    }
}

/// Warns of an allow for people that nobody can meet: only bearer tokens are exchanged, to which `login.kind` does not
/// apply. A task acts for the person who caused its run, and that person may have logged in.
pub(super) fn check_people(rule: &raw::Rule, at: &At, root: &raw::Root, report: &mut Report) {
    let Some(token) = &rule.on.token else { return };
    let is_for_people = rule.who.kind == Some(Kind::Human) && matches!(rule.action, raw::Action::Allow);
    if !is_for_people || !token.service_accounts.is_empty() {
        return;
    }
    let is_exchanged = |issuer: &raw::Issuer| {
        root.exchanged().any(|of| of.issuer == issuer.name)
            && (rule.who.issuers.is_empty() || rule.who.issuers.contains(&issuer.name))
    };
    let gives_people = |issuer: &&raw::Issuer| {
        issuer.kind == Some(Kind::Human)
            || issuer.preset == Some(raw::Preset::Doorward)
            || issuer.clients.iter().any(|client| client.kind == Some(Kind::Human))
    };
    let exchanged: Vec<&raw::Issuer> = root.issuers.iter().filter(|issuer| is_exchanged(issuer)).collect();
    if !exchanged.is_empty() && !exchanged.iter().any(gives_people) {
        report
            .warning(
                &at.key("who").key("kind"),
                "no caller matches it: only bearer tokens are exchanged, and `kind` of a `login` does not apply to them",
            )
            .help("write `kind: human` into the issuer, or at the client in its `clients`, if no program gets such a token");
    }
}

/// Warns of an allow for callers that break-glass let in: nobody exchanges a certificate, and the tasks of runs that
/// they start get no token.
pub(super) fn check_break_glass(rule: &raw::Rule, at: &At, report: &mut Report) {
    if rule.on.token.is_none() || !matches!(rule.action, raw::Action::Allow) {
        return;
    }
    for (index, _) in rule.who.issuers.iter().enumerate().filter(|(_, name)| *name == break_glass::ISSUER) {
        report
            .warning(
                &at.key("who").key("issuers").index(index),
                "nobody from `break-glass` gets a token, and neither do the tasks of runs that they start",
            )
            .help("leave it out; there are no tokens of Doorward's for break-glass");
    }
}

/// Warns of a deny by the accounts of callers: of a task's request, the caller is whoever caused its run.
pub(super) fn check_accounts(rule: &raw::Rule, at: &At, report: &mut Report) {
    let Some(token) = &rule.on.token else { return };
    let named = !rule.who.service_accounts.is_empty() && token.service_accounts.is_empty();
    if named && matches!(rule.action, raw::Action::Deny) {
        report
            .warning(
                &at.key("who").key("service_accounts"),
                "`who` is about whoever caused a run, so that this misses the tasks that run as these accounts",
            )
            .help(
                "to deny such tasks, write `service_accounts` into `token`; to deny those who start runs as these \
                 accounts, write `subjects: ['system:serviceaccount:NAMESPACE:NAME']`",
            );
    }
}

/// Returns our names for a scope whose given name is used by its provider only.
pub(super) fn our_names<'n>(names: Option<&'n BTreeMap<String, String>>, scope: &str) -> Vec<&'n str> {
    let names = names.filter(|names| !names.contains_key(scope));
    let named = names.into_iter().flatten().filter(|(_, there)| there.eq_ignore_ascii_case(scope));
    named.map(|(ours, _)| ours.as_str()).collect()
}

/// Refuses a scope whose given name is used by its provider only: rules use our names, so a scope that a rule denies
/// would be given under the other name.
pub(super) fn misnamed(names: Option<&BTreeMap<String, String>>, scope: Option<&str>) -> Option<Decision> {
    let scope = scope?;
    let ours = our_names(names, scope);
    if ours.is_empty() {
        return None;
    }
    let ours = format!("`{}`", ours.join("` or `"));
    let why = format!("`{scope}` is the provider's name of {ours}, and rules go by the latter alone");
    Some(Decision::denied(why, format!("ask for {ours}, if a rule gives it"), None))
}

/// Describes the request.
pub(super) fn found(token: &TokenView<'_>) -> String {
    let mut text = format!("audience {}; scope {}", token.audience, or_none(token.scope));
    if let Some(task) = token.task {
        text.push_str(&format!(
            "; service account {}; pipeline {}; pipeline task {}; task {}",
            task.account(),
            or_none(task.pipeline.as_deref()),
            or_none(task.pipeline_task.as_deref()),
            or_none(task.task.as_deref())
        ));
        if !task.cluster.is_empty() {
            text.push_str(&format!("; cluster {}", task.cluster));
        }
    }
    text
}

#[cfg(test)]
mod tests;
