//! Finds errors in an expression that are visible before any request: unknown variables, fields and functions,
//! comparisons that can never hold, and loops that could take long.

use cel::{
    Program,
    common::ast::{CallExpr, EntryExpr, Expr, IdedExpr, LiteralValue, SourceInfo, operators},
};

use super::{
    patterns::{MATCHES, try_pattern},
    reads::reads,
};
use crate::config::report::meant;

/// One problem of an expression.
#[derive(Debug)]
pub(super) struct Problem {
    pub message: String,
    pub help: Option<String>,
    /// The position, in characters.
    pub char: Option<usize>,
}

/// The type of a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Type {
    Scalar,
    List,
    Fields(&'static [(&'static str, Self)]),
    /// Known only to the issuer.
    Any,
}

use Type::{Any, Fields, List, Scalar};

const ROOTS: [(&str, Type); 4] = [
    (
        "principal",
        Fields(&[
            ("issuer", Scalar),
            ("subject", Scalar),
            ("username", Scalar),
            ("kind", Scalar),
            ("subject_kind", Scalar),
            ("groups", List),
            ("scopes", List),
            ("client", Scalar),
            ("actor", Fields(&[("issuer", Scalar), ("subject", Scalar), ("client", Scalar)])),
            ("claims", Any),
            ("email", Scalar),
        ]),
    ),
    (
        "request",
        Fields(&[
            ("host", Scalar),
            ("path", Scalar),
            ("method", Scalar),
            ("route", Scalar),
            ("address", Scalar),
            ("time", Scalar),
        ]),
    ),
    (
        "kubernetes",
        Fields(&[
            ("verb", Scalar),
            ("api_group", Scalar),
            ("resource", Scalar),
            ("subresource", Scalar),
            ("namespace", Scalar),
            ("name", Scalar),
        ]),
    ),
    (
        "delivery",
        Fields(&[
            ("webhook", Scalar),
            ("event", Scalar),
            ("action", Scalar),
            ("repository", Scalar),
            ("repository_id", Scalar),
            ("owner", Scalar),
            ("branch", Scalar),
            ("several", Scalar),
            ("build", Scalar),
            ("tag", Scalar),
            ("commit", Scalar),
            ("actor", Scalar),
            ("actor_id", Scalar),
            ("fork", Scalar),
            ("pull_request", Scalar),
            ("draft", Scalar),
        ]),
    ),
];

/// Functions that return a bool.
const PREDICATES: [&str; 4] = ["contains", "startsWith", "endsWith", MATCHES];
/// Functions that return something else.
const FUNCTIONS: [&str; 9] = ["size", "string", "int", "uint", "double", "lowerAscii", "upperAscii", "trim", "split"];
const ARITHMETIC: [&str; 6] = ["_+_", "_-_", "_*_", "_/_", "_%_", "-_"];

/// No expression may be a deeper tree: evaluation recurses, on the stack of a worker.
const MAX_DEPTH: usize = 48;

/// How a value is used, which decides whether it may be one of our lists: these are created when they are read, and do
/// not compare with literals.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Use {
    Value,
    Collection,
}

/// Returns all errors in an expression.
pub(super) fn check(program: &Program) -> Vec<Problem> {
    let root = program.expression();
    let mut checker =
        Checker { info: program.source_info(), locals: Vec::new(), in_loop: false, depth: 0, problems: Vec::new() };
    if let Expr::Call(call) = &root.expr
        && (ARITHMETIC.contains(&call.func_name.as_str()) || FUNCTIONS.contains(&call.func_name.as_str()))
    {
        checker.problem(
            root,
            "the expression gives a value that is not a bool",
            Some("compare it with something".into()),
        );
    }
    checker.visit(root, Use::Value);
    for at in reads(root).whole {
        checker.problem(
            at,
            "the claims are used as a whole, so the audit trail could not record which of them decided",
            Some("name the claim, such as `principal.claims.team` or `'team' in principal.claims`".into()),
        );
    }
    checker.problems
}

struct Checker<'e> {
    info: &'e SourceInfo,
    /// Variables of the enclosing loops.
    locals: Vec<&'e str>,
    in_loop: bool,
    depth: usize,
    problems: Vec<Problem>,
}

impl<'e> Checker<'e> {
    fn problem(&mut self, at: &IdedExpr, message: impl Into<String>, help: Option<String>) {
        let char = self.info.offset_for(at.id).map(|(start, _)| start as usize);
        self.problems.push(Problem { message: message.into(), help, char });
    }

    fn visit(&mut self, expr: &'e IdedExpr, used: Use) {
        self.depth += 1;
        match self.depth {
            0..=MAX_DEPTH => self.visit_node(expr, used),
            _ => self.problem(
                expr,
                format!("the expression nests more than {MAX_DEPTH} deep"),
                Some("split the rule".into()),
            ),
        }
        self.depth -= 1;
    }

    fn visit_node(&mut self, expr: &'e IdedExpr, used: Use) {
        match &expr.expr {
            Expr::Literal(_) => {}
            Expr::Ident(_) | Expr::Select(_) => self.visit_path(expr, used),
            Expr::Call(call) => {
                let name = call.func_name.as_str();
                self.check_function(expr, name, call);
                let collections = matches!(name, "size" | operators::INDEX);
                let used = if collections { Use::Collection } else { Use::Value };
                if let Some(target) = &call.target {
                    self.visit(target, used);
                }
                for (i, arg) in call.args.iter().enumerate() {
                    let is_collection = (name == operators::IN && i == 1) || (collections && i == 0);
                    self.visit(arg, if is_collection { Use::Collection } else { Use::Value });
                }
            }
            Expr::List(list) => list.elements.iter().for_each(|element| self.visit(element, Use::Value)),
            Expr::Map(map) => {
                for entry in &map.entries {
                    if let EntryExpr::MapEntry(entry) = &entry.expr {
                        self.visit(&entry.key, Use::Value);
                        self.visit(&entry.value, Use::Value);
                    }
                }
            }
            Expr::Comprehension(comprehension) => {
                self.visit(&comprehension.iter_range, Use::Collection);
                if self.in_loop {
                    self.problem(expr, "a loop inside a loop could take long", None);
                }
                let (outer, outer_locals) = (self.in_loop, self.locals.len());
                self.in_loop = true;
                self.locals.extend([comprehension.iter_var.as_str(), comprehension.accu_var.as_str()]);
                self.locals.extend(comprehension.iter_var2.as_deref());
                for part in [
                    &comprehension.accu_init,
                    &comprehension.loop_cond,
                    &comprehension.loop_step,
                    &comprehension.result,
                ] {
                    self.visit(part, Use::Value);
                }
                self.locals.truncate(outer_locals);
                self.in_loop = outer;
            }
            Expr::Struct(_) | Expr::Unspecified => self.problem(expr, "messages are not supported", None),
        }
    }

    fn check_function(&mut self, at: &IdedExpr, name: &str, call: &CallExpr) {
        let is_operator = !name.starts_with(|c: char| c.is_ascii_alphabetic());
        let known = || PREDICATES.into_iter().chain(FUNCTIONS);
        if !is_operator && !known().any(|known| known == name) {
            let known: Vec<_> = known().chain(["has", "all", "exists", "exists_one", "map", "filter"]).collect();
            self.problem(at, format!("there is no function `{name}`"), Some(meant(name, &known)));
        }
        if name == MATCHES {
            if call.args.len() + usize::from(call.target.is_some()) != 2 {
                return self.problem(at, "`matches` takes a text and a pattern", None);
            }
            match call.args.last().map(|arg| &arg.expr) {
                Some(Expr::Literal(LiteralValue::String(pattern))) => {
                    if let Err(why) = try_pattern(pattern.inner()) {
                        self.problem(at, format!("the pattern of `matches` is invalid: {why}"), None);
                    }
                }
                _ => self.problem(at, "the pattern of `matches` must be written out", None),
            }
        }
    }

    /// Checks a variable and the fields selected on it.
    fn visit_path(&mut self, expr: &'e IdedExpr, used: Use) {
        let mut fields = Vec::new();
        let mut at = expr;
        let mut is_tested = false;
        while let Expr::Select(select) = &at.expr {
            is_tested |= select.test;
            fields.push((at, select.field.as_str()));
            at = &select.operand;
        }
        if fields.len() > MAX_DEPTH {
            return self.problem(expr, format!("more than {MAX_DEPTH} fields deep"), None);
        }
        let Expr::Ident(root) = &at.expr else {
            return self.visit(at, Use::Collection);
        };
        if self.locals.contains(&root.as_str()) {
            return;
        }
        let Some((_, mut kind)) = ROOTS.into_iter().find(|(name, _)| name == root) else {
            let help = meant(root, &ROOTS.map(|(name, _)| name));
            return self.problem(at, format!("there is no variable `{root}`"), Some(help));
        };
        for (at, field) in fields.into_iter().rev() {
            kind = match kind {
                Any => return,
                Scalar | List => {
                    return self.problem(at, format!("`{field}` is selected on a value that has no fields"), None);
                }
                Fields(known) => match known.iter().find(|(name, _)| *name == field) {
                    Some((_, kind)) => *kind,
                    None => {
                        let known: Vec<_> = known.iter().map(|(name, _)| *name).collect();
                        return self.problem(at, format!("there is no field `{field}`"), Some(meant(field, &known)));
                    }
                },
            };
        }
        match (kind, used) {
            _ if is_tested => {}
            (Scalar, _) | (List | Any, Use::Collection) => {}
            (List, Use::Value) => {
                self.problem(
                    expr,
                    "a list is used where a single value is required",
                    Some("use `in`, `exists`, `all` or `size`".into()),
                );
            }
            (Fields(_), _) | (Any, Use::Value) => {
                self.problem(
                    expr,
                    "an object is used where a single value is required",
                    Some("name one of its fields".into()),
                );
            }
        }
    }
}
