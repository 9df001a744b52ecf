//! `doorward audit who-can`: who may start a run, by the policy, and past it in the cluster.

use std::{
    collections::HashMap,
    fmt::{self, Write as _},
    io::Write,
    path::PathBuf,
};

use serde::Serialize;
use serde_json::{Map, Value};

use crate::{
    authz::{Policy, RuleAction, StartRoute, StartRule, Through},
    cli::{
        CONFIG, Failure,
        format::Format,
        load_policy,
        rbac::{account, no_list, read},
    },
    config::{
        Sources,
        raw::{self, EventListener, TektonRole},
    },
    rbac::{self, Account, Bypass, BypassRight, Installed, PRINTS},
    tekton::dashboard::is_subdomain,
    terminal,
};

/// Show who may start a PipelineRun or a TaskRun in a namespace: by which rules and grants, and, with `--cluster`, who
/// needs neither because Kubernetes lets them past Doorward.
#[derive(Debug, clap::Args)]
pub struct WhoCanArgs {
    /// What they may do.
    #[arg(value_enum)]
    does: Does,
    /// The namespace.
    #[arg(value_name = "NAMESPACE", value_parser = namespace)]
    namespace: String,
    /// The configuration: a file, or a folder with a `doorward.yaml`.
    #[arg(long, value_name = "FILE|DIR", env = CONFIG)]
    config: PathBuf,
    /// The output of `kubectl get
    /// clusterroles,clusterrolebindings,roles,rolebindings,serviceaccounts,eventlisteners,triggers.triggers.tekton.dev
    /// -A -o json`; `-` is standard input. The last three kinds may be left out; they show what accounts are for.
    #[arg(long, value_name = "FILE")]
    cluster: Option<PathBuf>,
    /// Doorward's service account in the cluster.
    #[arg(long, value_name = "NAMESPACE/NAME", default_value = "doorward/doorward", value_parser = account)]
    service_account: Account,
    /// The namespace of Tekton's controllers, which may start runs. Its resolvers may be in that namespace with
    /// `-resolvers` appended.
    #[arg(long, value_name = "NAMESPACE", default_value = "tekton-pipelines")]
    tekton_namespace: String,
    /// How the answer is printed.
    #[arg(long, value_enum, default_value_t = Format::Human)]
    format: Format,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Does {
    /// Create a PipelineRun or a TaskRun.
    StartRun,
}

fn namespace(text: &str) -> Result<String, String> {
    if is_subdomain(text) {
        Ok(text.to_owned())
    } else {
        Err("write the name of one namespace, such as `ci`".to_owned())
    }
}

pub fn run(args: &WhoCanArgs, out: &mut impl Write) -> Result<u8, Failure> {
    let Does::StartRun = args.does;
    let (loaded, policy) = load_policy(&Sources::of_process(args.config.clone(), Vec::new()))?;
    let root = &loaded.raw;
    let bypass = args.cluster.as_ref().map(|path| -> Result<Bypass, Failure> {
        let list = read(path)?;
        let installed = Installed { doorward: &args.service_account, tekton: &args.tekton_namespace };
        let bypass =
            rbac::find_bypass(&list, root, installed, &args.namespace).map_err(|error| no_list(path, &error))?;
        if !bypass.lacks.is_empty() {
            return Err(format!(
                "{} has no {}, although every cluster has some, so it cannot show who may do what; get all kinds of \
                 all namespaces: kubectl get clusterroles,clusterrolebindings,roles,rolebindings -A -o json",
                path.display(),
                bypass.lacks.join(" and no ")
            )
            .into());
        }
        Ok(bypass)
    });
    let answer = Answer::of(root, &policy, &args.namespace, bypass.transpose()?)?;
    args.format.print(&answer, out)?;
    Ok(0)
}

/// Who may start a run.
#[derive(Debug, Serialize)]
struct Answer {
    namespace: String,
    /// The digest of the policy.
    policy: String,
    /// Rules that allow it, or would after an approval, which nobody can give yet.
    rules: Vec<RuleLine>,
    /// Rules that deny it, and take precedence over all others.
    narrowed_by: Vec<RuleLine>,
    /// Rules that would deny it, but are in `mode: shadow`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    in_shadow: Vec<String>,
    grants: Vec<GrantLine>,
    /// `None` if no list of the cluster was given.
    cluster: Option<Bypass>,
}

/// A rule that may decide.
#[derive(Debug, Serialize)]
struct RuleLine {
    id: String,
    does: RuleAction,
    routes: Vec<StartRoute>,
    /// The keys of the rule that are set, as they are written.
    #[serde(flatten)]
    written: Map<String, Value>,
}

/// A grant, and what its groups may do in the namespace.
#[derive(Debug, Serialize)]
struct GrantLine {
    id: String,
    who: Value,
    #[serde(skip_serializing_if = "Option::is_none")]
    why: Option<String>,
    groups: Vec<String>,
    /// Whether `tekton_roles` of the grant let its groups create runs there.
    has_role: bool,
}

impl Answer {
    fn of(root: &raw::Root, policy: &Policy, namespace: &str, cluster: Option<Bypass>) -> serde_json::Result<Self> {
        // Without keys that are not set.
        let mut written: Value = serde_json::from_str(policy.source())?;
        let mut by_id = |kind: &str| -> HashMap<String, Map<String, Value>> {
            let all = written.get_mut(kind).and_then(Value::as_array_mut).into_iter().flatten();
            let all = all.filter_map(|members| match members.take() {
                Value::Object(members) => Some((members.get("id")?.as_str()?.to_owned(), members)),
                _ => None,
            });
            all.collect()
        };
        let (mut of_rules, mut of_grants) = (by_id("rules"), by_id("grants"));
        let mut told = |StartRule { rule, does, routes }: StartRule| {
            let mut written = of_rules.remove(&*rule).unwrap_or_default();
            // `do` has more than `does` only for an approval.
            written.retain(|name, value| {
                !(matches!(name.as_str(), "id" | "fix" | "mode") || (name == "do" && value.is_string()))
            });
            RuleLine { id: rule.to_string(), does, routes, written }
        };
        let (denies, allows) =
            policy.starts(root, namespace).into_iter().partition(|start| start.does == RuleAction::Deny);
        let rules = Vec::into_iter(allows).map(&mut told).collect();
        let narrowed_by = Vec::into_iter(denies).map(&mut told).collect();
        let in_shadow = policy.shadow_starts(root, namespace).into_iter();
        let in_shadow = in_shadow.filter(|start| start.does == RuleAction::Deny).map(|start| start.rule.to_string());
        let grants = root.grants.iter().map(|grant| GrantLine {
            id: grant.id.clone(),
            who: of_grants
                .remove(&grant.id)
                .and_then(|mut members| members.remove("who"))
                .unwrap_or_else(|| Map::new().into()),
            why: grant.why.clone(),
            groups: grant.kubernetes_groups.clone(),
            has_role: grant.tekton_roles.iter().any(|given| {
                let is_there = given.namespaces.is_empty() || given.namespaces.iter().any(|of| of == namespace);
                is_there && matches!(given.role, TektonRole::Run | TektonRole::Admin)
            }),
        });
        let grants = grants.collect();
        Ok(Self {
            namespace: namespace.to_owned(),
            policy: policy.digest().to_string(),
            rules,
            narrowed_by,
            in_shadow: in_shadow.collect(),
            grants,
            cluster,
        })
    }

    /// Whether some route needs the rights of the person to start a run.
    fn needs_groups(&self) -> bool {
        self.rules.iter().flat_map(|rule| &rule.routes).any(|route| route.through == Through::Impersonation)
    }

    fn grants(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { namespace, grants, .. } = self;
        if !self.needs_groups() {
            return Ok(());
        }
        writeln!(f, "\nKubernetes must allow it as well, by a group that a grant gives:")?;
        if grants.is_empty() {
            writeln!(f, "  no grant gives any, so Kubernetes decides by user names alone")?;
        }
        for grant in grants {
            writeln!(f, "  grant {} to {}", grant.id, terminal::line(&grant.who.to_string()))?;
            for group in &grant.groups {
                let group_told = terminal::line(group);
                match self.cluster.as_ref().and_then(|bypass| bypass.by_group.get(group)) {
                    Some(rights) if rights.is_empty() => {
                        let what = match grant.has_role {
                            true => format!(
                                "the grant gives it the role, but the cluster does not bind it (apply what {PRINTS})"
                            ),
                            false => format!("may create no runs in {namespace}"),
                        };
                        writeln!(
                            f,
                            "    {group_told}: {what}; without another group, Kubernetes refuses it whatever a rule \
                             allows"
                        )?;
                    }
                    Some(rights) => {
                        for right in rights {
                            let by = if right.subject.name == *group { "" } else { ", as everybody may" };
                            writeln!(f, "    {group_told}: {}{by}", told(right))?;
                        }
                    }
                    None if grant.has_role => {
                        writeln!(
                            f,
                            "    {group_told}: may create runs by a role of the grant, once what {PRINTS} is applied"
                        )?;
                    }
                    None => writeln!(
                        f,
                        "    {group_told}: no role of the grant allows it; `--cluster` shows what the cluster allows"
                    )?,
                }
            }
        }
        Ok(())
    }

    fn cluster(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(Bypass { others, dangling, .. }) = &self.cluster else {
            return writeln!(f, "\nTo see who gets past Doorward by the roles of the cluster, use `--cluster`.");
        };
        let (expected, unexpected): (Vec<&BypassRight>, Vec<&BypassRight>) =
            others.iter().partition(|right| right.expected.is_some());
        writeln!(f, "\nPast Doorward, by the roles of the cluster:")?;
        if unexpected.is_empty() {
            writeln!(f, "  nobody unexpected")?;
        }
        for right in unexpected {
            let note = right.note.as_ref().map(|note| format!("\n    {}", terminal::line(note))).unwrap_or_default();
            writeln!(f, "  {}: {}{note}", terminal::line(&right.subject.to_string()), told(right))?;
        }
        if !expected.is_empty() {
            writeln!(f, "As expected:")?;
        }
        for right in expected {
            let why = terminal::line(right.expected.as_deref().unwrap_or_default());
            writeln!(f, "  {}: {}\n    {why}", terminal::line(&right.subject.to_string()), told(right))?;
        }
        if !dangling.is_empty() {
            writeln!(f, "These roles do not exist; whoever creates one decides what it gives:")?;
        }
        for none in dangling {
            let subjects: Vec<String> = none.subjects.iter().map(ToString::to_string).collect();
            let line = format!("{} to {}, by {}", none.role, subjects.join(", "), none.binding);
            writeln!(f, "  {}", terminal::line(&line))?;
        }
        Ok(())
    }
}

fn told(right: &BypassRight) -> String {
    terminal::line(&format!("{}, by {} and {}", right.may.join(", "), right.binding, right.role))
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "Starting a PipelineRun or TaskRun in {}, by policy {}", self.namespace, self.policy)?;
        let is_allowed = self.rules.iter().any(|rule| rule.does == RuleAction::Allow);
        if is_allowed {
            writeln!(f, "\nThrough Doorward, if one of these rules holds:")?;
        } else {
            writeln!(f, "\nNo rule allows it: nobody does through Doorward.")?;
        }
        self.rules.iter().try_for_each(|rule| rule.fmt(f))?;
        if !self.rules.is_empty() && !self.narrowed_by.is_empty() {
            writeln!(f, "\n{}", if is_allowed { "and none of these:" } else { "It is denied besides by:" })?;
            self.narrowed_by.iter().try_for_each(|rule| rule.fmt(f))?;
        }
        if !self.rules.is_empty() && !self.in_shadow.is_empty() {
            writeln!(f, "\nThese would deny it, but decide nothing in `mode: shadow`:")?;
            self.in_shadow.iter().try_for_each(|id| writeln!(f, "  rule {id}"))?;
        }
        self.grants(f)?;
        self.cluster(f)
    }
}

impl fmt::Display for RuleLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let does = match self.does {
            RuleAction::Approve => "would allow it after an approval, which nobody can give yet",
            RuleAction::Deny => "denies it",
            RuleAction::Allow => "allows it",
        };
        writeln!(f, "  rule {} {does}", self.id)?;
        for StartRoute { name, through } in &self.routes {
            let mut by = String::new();
            match through {
                Through::Impersonation => {}
                Through::Dashboard => {
                    by.push_str(", with the Dashboard's own right whoever it is: set `kubernetes` of the route")
                }
                Through::EventListener(None) => {
                    by.push_str(", by the EventListener behind it, which the route does not name")
                }
                Through::EventListener(Some(EventListener { namespace, name })) => {
                    write!(by, ", by the service accounts of the EventListener {namespace}/{name} and its Triggers")?;
                }
            }
            writeln!(f, "    route {name}{by}")?;
        }
        let everybody = || "everybody who has a credential of the route".to_owned();
        let who = self.written.get("who").map_or_else(everybody, ToString::to_string);
        writeln!(f, "    who   {}", terminal::line(&who))?;
        for member in ["on", "need", "when", "do", "why"] {
            match self.written.get(member) {
                Some(Value::String(text)) => writeln!(f, "    {member:<5} {}", terminal::line(text))?,
                Some(value) => writeln!(f, "    {member:<5} {}", terminal::line(&value.to_string()))?,
                None => {}
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::resolver::Resolver;

    fn told(yaml: &str, cluster: Option<Bypass>) -> String {
        let root: raw::Root = serde_saphyr::from_str(yaml).unwrap();
        let policy = Policy::compile(&root, &mut Resolver::new(Path::new("/"))).unwrap();
        Answer::of(&root, &policy, "ci", cluster).unwrap().to_string()
    }

    #[test]
    fn a_rule_that_waits_for_an_approval_permits_no_run_yet() {
        let by = |action: &str| {
            let yaml = format!(
                "
issuers: [{{name: corp, issuer: 'https://corp.example'}}]
upstreams: [{{name: api, url: 'https://kubernetes.default.svc', credential: {{bearer: {{file: token}}}}}}]
routes: [{{name: k8s, kind: kubernetes, hosts: [k8s.example], schemes: [bearer], upstream: api}}]
rules:
  - {{id: start, on: {{kubernetes: {{verbs: [create], resources: [pipelineruns]}}}}, who: {{groups: [dev]}}, do: {action}}}
  - {{id: leavers, who: {{groups: [leaving]}}, do: deny}}
"
            );
            told(&yaml, None)
        };
        let (waits, allows) = (by("{approve: {by: {groups: [leads]}}}"), by("allow"));
        assert!(
            waits.contains("No rule allows it: nobody does through Doorward.\n  rule start would allow it after"),
            "{waits}"
        );
        assert!(waits.contains("which nobody can give yet") && !waits.contains("one of these rules holds"), "{waits}");
        assert!(allows.contains("if one of these rules holds:\n  rule start allows it"), "{allows}");
        assert!(allows.contains("\nand none of these:\n  rule leavers denies it"), "{allows}");
        assert!(waits.contains("\nIt is denied besides by:\n  rule leavers denies it"), "{waits}");
    }

    /// A freeze that was left in this mode looked as if nobody had written it.
    #[test]
    fn a_deny_in_shadow_is_said_to_decide_nothing() {
        const YAML: &str = "
issuers: [{name: corp, issuer: 'https://corp.example'}]
upstreams: [{name: api, url: 'https://kubernetes.default.svc', credential: {bearer: {file: token}}}]
routes: [{name: k8s, kind: kubernetes, hosts: [k8s.example], schemes: [bearer], upstream: api}]
rules:
  - {id: start, on: {kubernetes: {verbs: [create], resources: [pipelineruns]}}, who: {groups: [dev]}, do: allow}
  - {id: freeze, do: deny, mode: shadow}
  - {id: tried, who: {groups: [ops]}, do: allow, mode: shadow}
  - {id: pods, on: {kubernetes: {resources: [pods]}}, do: deny, mode: shadow}
";
        let told = told(YAML, None);
        let expected = "\nThese would deny it, but decide nothing in `mode: shadow`:\n  rule freeze\n\n";
        assert!(told.contains(expected) && !told.contains("rule tried"), "{told}");
    }

    /// Without its options, `doorward rbac` prints the classic form, and for one account.
    #[test]
    fn a_role_that_the_cluster_lacks_is_to_be_applied_with_the_same_options_as_before() {
        const YAML: &str = "
issuers: [{name: corp, issuer: 'https://corp.example'}]
upstreams: [{name: api, url: 'https://kubernetes.default.svc', credential: {bearer: {file: token}}}]
routes: [{name: k8s, kind: kubernetes, hosts: [k8s.example], schemes: [bearer], upstream: api}]
grants: [{id: dev, who: {groups: [dev]}, kubernetes_groups: ['tekton:dev'], tekton_roles: [{role: run, namespaces: [ci]}]}]
rules: [{id: start, on: {kubernetes: {verbs: [create], resources: [pipelineruns]}}, who: {groups: [dev]}, do: allow}]
";
        let unbound = Bypass { by_group: [("tekton:dev".to_owned(), Vec::new())].into(), ..Bypass::default() };
        for (cluster, expected) in [(None, "once what "), (Some(unbound), "does not bind it (apply what ")] {
            let told = told(YAML, cluster);
            assert!(told.contains(&format!("{expected}{PRINTS}")), "{told}");
        }
    }
}
