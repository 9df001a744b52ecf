//! CEL expressions of rules. They are compiled once, with their names checked at load, and evaluated over values that
//! borrow from the request and the principal. The caller must turn an evaluation error into a denial.

mod check;
mod patterns;
mod reads;
mod values;

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr},
    sync::{Arc, LazyLock},
};

use cel::{Context, Env, ExecutionError, Program, Value, common::types::CelBool};
use http::Method;

use crate::{
    authn::{Actor, Principal, Scheme},
    clock::Timestamp,
    config::{
        raw::RouteKind,
        report::{At, Report},
    },
    kubernetes::Attributes,
    webhooks::Facts,
};

use self::patterns::Patterns;
use super::RequestView;

pub(super) use self::reads::Reads;

/// No expression may be longer, in bytes. With the bound on nesting it bounds what an evaluation can cost.
const MAX_LENGTH: usize = 4096;
/// No expression may nest brackets deeper.
const MAX_NESTING: usize = 32;
/// No expression may have more operators, dots and opening square brackets. Each may be a level of recursion in the
/// parser, on whatever stack loads the policy.
const MAX_OPERATORS: usize = 200;

/// The standard library of CEL and its functions on strings, without optional values. Building it costs more than a
/// hundred evaluations, so all expressions share one. `matches` is not in it: see [`Patterns`].
static ENV: LazyLock<Arc<Env>> = LazyLock::new(|| {
    let mut env = Env::stdlib().with_optional_support(false);
    // The extension is new to this environment, so no name can be taken.
    let _ = env.add_extension(cel::extensions::strings);
    Arc::new(env)
});

/// A compiled expression that gives a bool.
#[derive(Debug)]
pub(super) struct Expression {
    program: Program,
    source: Arc<str>,
    claims: BTreeSet<String>,
    patterns: Option<Arc<Patterns>>,
    reads_time: bool,
}

impl Expression {
    /// Compiles an expression. Errors are reported with the offset in its text.
    pub(super) fn compile(source: &str, at: &At, report: &mut Report) -> Option<Self> {
        if source.len() > MAX_LENGTH {
            report.error(at, format!("the expression is longer than {MAX_LENGTH} bytes"));
            return None;
        }
        let (nesting, operators) = measure(source);
        if nesting > MAX_NESTING {
            report.error(at, format!("the expression nests brackets more than {MAX_NESTING} deep"));
            return None;
        }
        if operators > MAX_OPERATORS {
            report.error(at, format!("the expression has more than {MAX_OPERATORS} operators")).help("split the rule");
            return None;
        }
        let program = match ENV.compile(source) {
            Ok(program) => program,
            Err(errors) => {
                for error in errors.errors {
                    report
                        .error(at, format!("the expression does not parse: {}", syntax_error(&error.msg)))
                        .offset(offset(source, error.pos));
                }
                return None;
            }
        };
        let problems = check::check(&program);
        if !problems.is_empty() {
            for problem in problems {
                let reported = report.error(at, problem.message);
                if let Some(help) = problem.help {
                    reported.help(help);
                }
                if let Some(char) = problem.char {
                    reported.offset(byte_of(source, char));
                }
            }
            return None;
        }
        let Reads { claims, patterns, time: reads_time, .. } = reads::reads(program.expression());
        let patterns = Patterns::compile(&patterns);
        let expression = Self { program, source: source.into(), claims, patterns, reads_time };
        match expression.try_on_samples() {
            Ok(()) => Some(expression),
            Err(error) => {
                let help = match error {
                    EvaluationError::NoBool(_) => "a `when` must give true or false",
                    _ => check::CONVERT,
                };
                report.error(at, format!("the expression fails on a sample request: {error}")).help(help);
                None
            }
        }
    }

    pub(super) fn source(&self) -> &Arc<str> {
        &self.source
    }

    /// What it reads.
    pub(super) fn reads(&self) -> Reads<'_> {
        reads::reads(self.program.expression())
    }

    /// Whether its value may change as time passes.
    pub(super) fn reads_time(&self) -> bool {
        self.reads_time
    }

    /// A claim that it reads and whose value was not stored: to the expression it would look absent.
    pub(super) fn misses_of(&self, principal: &Principal) -> Option<&str> {
        self.claims.iter().find(|name| principal.may_have_had(name)).map(String::as_str)
    }

    /// The value of the expression.
    pub(super) fn evaluate(&self, principal: &Principal, request: &RequestView<'_>) -> Result<bool, EvaluationError> {
        let scope = values::Scope::new(principal, &self.claims, request);
        let mut context = Context::with_env(Arc::clone(&ENV));
        context.set_variable_resolver(&scope);
        if let Some(patterns) = &self.patterns {
            patterns.add_to(&mut context).map_err(|error| EvaluationError::Type(error.to_string()))?;
        }
        let value = Value::resolve_val(self.program.expression(), &context).map_err(EvaluationError::from)?;
        match value.downcast_ref::<CelBool>() {
            Some(bool) => Ok(*bool.inner()),
            None => Err(EvaluationError::NoBool(value.get_type().name().to_owned())),
        }
    }

    /// CEL has no static types here, so types are tested on samples: one request that has everything, and one that has
    /// nothing.
    fn try_on_samples(&self) -> Result<(), EvaluationError> {
        let attributes = Attributes::default();
        let facts = full_facts();
        let full = RequestView {
            route: "sample",
            kind: RouteKind::Http,
            host: "sample.example",
            path: "/sample",
            method: &Method::GET,
            upgrade: false,
            address: IpAddr::V4(Ipv4Addr::LOCALHOST),
            event_listener: None,
            kubernetes: Some(&attributes),
            run: None,
            delivery: Some(&facts),
            trigger: None,
            token: None,
            now: Timestamp::from_secs(1_700_000_000),
        };
        let sparse = RequestView { kubernetes: None, delivery: None, ..full };
        for (principal, request) in [(full_principal(), full), (sparse_principal(), sparse)] {
            match self.evaluate(&principal, &request) {
                Ok(_) | Err(EvaluationError::Absent(_) | EvaluationError::Value(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// Returns the names of the claims that an expression reads; none if it does not parse, as no policy has such an
/// expression.
pub(super) fn claims_read(source: &str) -> BTreeSet<String> {
    ENV.compile(source).map(|program| reads::reads(program.expression()).claims).unwrap_or_default()
}

/// Why an expression failed. The text may quote values of the request, and is for operators only.
#[derive(Debug, thiserror::Error)]
pub(super) enum EvaluationError {
    #[error("`{0}` is absent")]
    Absent(String),
    #[error("{0}")]
    Type(String),
    #[error("{0}")]
    Value(String),
    #[error("the expression gives a value of type `{0}`, not a bool")]
    NoBool(String),
}

impl From<ExecutionError> for EvaluationError {
    fn from(error: ExecutionError) -> Self {
        match error {
            ExecutionError::NoSuchKey(key) => Self::Absent(key.to_string()),
            ExecutionError::NoSuchOverload(_)
            | ExecutionError::UndeclaredReference(_)
            | ExecutionError::UnexpectedType { .. }
            | ExecutionError::InvalidArgumentCount { .. }
            | ExecutionError::NotSupportedAsMethod { .. }
            | ExecutionError::UnsupportedKeyType(_)
            | ExecutionError::MissingArgumentOrTarget => Self::Type(error.to_string()),
            ExecutionError::UnsupportedBinaryOperator(operator, left, right) => {
                let sign = match operator {
                    "add" => "+",
                    "sub" => "-",
                    "mul" => "*",
                    "div" => "/",
                    "rem" => "%",
                    other => other,
                };
                Self::Type(format!("`{sign}` does not take {} and {}", type_name(&left), type_name(&right)))
            }
            error => Self::Value(error.to_string()),
        }
    }
}

/// The name of a type in CEL.
fn type_name(value: &Value) -> String {
    match value {
        Value::Float(_) => "double".to_owned(),
        other => other.type_of().to_string(),
    }
}

/// Rewords a message of the parser, which is in terms of its grammar.
fn syntax_error(message: &str) -> String {
    let message = message.trim().trim_start_matches("Syntax error: ");
    // It ends with a list of all tokens that the grammar accepts there.
    let message = message.split(" expecting ").next().unwrap_or(message);
    let found =
        ["mismatched input ", "extraneous input ", "token recognition error at: ", "no viable alternative at input "]
            .into_iter()
            .find_map(|beginning| message.strip_prefix(beginning)?.strip_prefix('\'')?.strip_suffix('\''));
    match found.map(str::trim) {
        Some("<EOF>") => "it ends too early".to_owned(),
        Some("=") => "`=` is not an operator; equality is `==`".to_owned(),
        Some(token) => format!("`{token}` is not expected here"),
        None => message.replace("'<EOF>'", "the end"),
    }
}

/// Returns how deep brackets nest, and an upper bound on the number of operators, as text in quotes counts too. A
/// closing bracket in quotes hides a level of nesting; the parser has a limit of its own on that.
fn measure(source: &str) -> (usize, usize) {
    let (mut depth, mut deepest) = (0_usize, 0);
    let words = source.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let mut operators = words.filter(|word| ends_in_operator(word)).count();
    for byte in source.bytes() {
        match byte {
            b'(' | b'{' => depth += 1,
            // One index may follow another without nesting: `a[0][0]`.
            b'[' => {
                depth += 1;
                operators += 1;
            }
            b')' | b']' | b'}' => depth = depth.saturating_sub(1),
            b'.' | b'+' | b'-' | b'*' | b'/' | b'%' | b'!' | b'<' | b'>' | b'=' | b'?' | b'&' | b'|' => operators += 1,
            _ => {}
        }
        deepest = deepest.max(depth);
    }
    (deepest, operators)
}

/// Whether a run of letters, digits and `_` ends in the operator `in`. No blank need stand before it where a number
/// ends: `1in[1]`.
fn ends_in_operator(word: &str) -> bool {
    let before = word.strip_suffix("in");
    before.is_some_and(|before| before.is_empty() || before.starts_with(|c: char| c.is_ascii_digit()))
}

/// The byte offset of a line and a column, both counted from 1.
fn offset(source: &str, (line, column): (isize, isize)) -> usize {
    let line = usize::try_from(line - 1).unwrap_or(0);
    let column = usize::try_from(column - 1).unwrap_or(0);
    let before: usize = source.split_inclusive('\n').take(line).map(str::len).sum();
    let text = source.get(before..).unwrap_or_default();
    before + byte_of(text, column)
}

fn byte_of(text: &str, char: usize) -> usize {
    text.char_indices().nth(char).map_or(text.len(), |(byte, _)| byte)
}

fn full_facts() -> Facts {
    let text = || Some(Arc::from("sample"));
    Facts {
        webhook: "sample".into(),
        sender_kind: "github".into(),
        delivery: "sample".into(),
        event: text(),
        action: text(),
        repository: text(),
        repository_id: text(),
        owner: text(),
        branch: text(),
        tag: text(),
        commit: text(),
        actor: text(),
        actor_id: text(),
        fork: Some(false),
        pull_request: text(),
        draft: Some(false),
        several: false,
        build: false,
    }
}

fn full_principal() -> Principal {
    Principal {
        groups: vec!["sample".into()],
        scopes: vec!["sample".into()],
        client: Some("sample".into()),
        actor: Some(Actor { issuer: Some("sample".into()), subject: "sample".into(), client: Some("sample".into()) }),
        email: Some("sample@sample.example".into()),
        ..sparse_principal()
    }
}

fn sparse_principal() -> Principal {
    Principal::new(Scheme::Bearer, "sample", "sample", "sample")
}

#[cfg(test)]
mod tests;
