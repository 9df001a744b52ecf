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

/// The type of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Type {
    Text,
    Int,
    Uint,
    Double,
    Bool,
    Bytes,
    Null,
    /// A field of this type contains texts.
    List,
    Fields(&'static [(&'static str, Self)]),
    /// Known only to the issuer.
    Any,
}

use Type::{Any, Bool, Fields, Int, List, Text};

impl Type {
    /// Its name in CEL.
    fn name(self) -> &'static str {
        match self {
            Text => "string",
            Int => "int",
            Self::Uint => "uint",
            Self::Double => "double",
            Bool => "bool",
            Self::Bytes => "bytes",
            Self::Null => "null",
            List => "list",
            Fields(_) => "map",
            Any => "any",
        }
    }

    fn is_number(self) -> bool {
        matches!(self, Int | Self::Uint | Self::Double)
    }

    /// Whether some values of the two are equal.
    fn is_comparable(self, other: Self) -> bool {
        self.name() == other.name() || (self.is_number() && other.is_number())
    }

    fn of_literal(literal: &LiteralValue) -> Self {
        match literal {
            LiteralValue::Boolean(_) => Bool,
            LiteralValue::Bytes(_) => Self::Bytes,
            LiteralValue::Double(_) => Self::Double,
            LiteralValue::Int(_) => Int,
            LiteralValue::Null => Self::Null,
            LiteralValue::String(_) => Text,
            LiteralValue::UInt(_) => Self::Uint,
        }
    }
}

const ROOTS: [(&str, Type); 4] = [
    (
        "principal",
        Fields(&[
            ("issuer", Text),
            ("subject", Text),
            ("username", Text),
            ("kind", Text),
            ("subject_kind", Text),
            ("groups", List),
            ("scopes", List),
            ("client", Text),
            ("actor", Fields(&[("issuer", Text), ("subject", Text), ("client", Text)])),
            ("claims", Any),
            ("email", Text),
        ]),
    ),
    (
        "request",
        Fields(&[("host", Text), ("path", Text), ("method", Text), ("route", Text), ("address", Text), ("time", Int)]),
    ),
    (
        "kubernetes",
        Fields(&[
            ("verb", Text),
            ("api_group", Text),
            ("resource", Text),
            ("subresource", Text),
            ("namespace", Text),
            ("name", Text),
        ]),
    ),
    (
        "delivery",
        Fields(&[
            ("webhook", Text),
            ("event", Text),
            ("action", Text),
            ("repository", Text),
            ("repository_id", Text),
            ("owner", Text),
            ("branch", Text),
            ("several", Bool),
            ("build", Bool),
            ("tag", Text),
            ("commit", Text),
            ("actor", Text),
            ("actor_id", Text),
            ("fork", Bool),
            ("pull_request", Text),
            ("draft", Bool),
        ]),
    ),
];

/// Functions that return a bool.
const PREDICATES: [&str; 4] = ["contains", "startsWith", "endsWith", MATCHES];
/// Functions that return something else, and what.
const FUNCTIONS: [(&str, Type); 9] = [
    ("size", Int),
    ("string", Text),
    ("int", Int),
    ("uint", Type::Uint),
    ("double", Type::Double),
    ("lowerAscii", Text),
    ("upperAscii", Text),
    ("trim", Text),
    ("split", List),
];
const ARITHMETIC: [&str; 6] = ["_+_", "_-_", "_*_", "_/_", "_%_", "-_"];
const OPERATORS_OF_BOOL: [&str; 10] =
    ["_==_", "_!=_", "_<_", "_<=_", "_>_", "_>=_", operators::IN, "_&&_", "_||_", "!_"];

/// What to do about values of different types.
pub(super) const CONVERT: &str = "values of different types need `int()`, `double()` or `string()` around one of them";

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
    checker.check_is_bool(root);
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
    /// Variables of the enclosing loops, and their types if these are known.
    locals: Vec<(&'e str, Option<Type>)>,
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
                let before = self.problems.len();
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
                // Not of what is wrong already.
                if self.problems.len() == before {
                    self.check_types(expr, name, call);
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
                let is_of_texts = self.is_of_texts(&comprehension.iter_range);
                let element = (is_of_texts && comprehension.iter_var2.is_none()).then_some(Text);
                self.locals
                    .extend([(comprehension.iter_var.as_str(), element), (comprehension.accu_var.as_str(), None)]);
                self.locals.extend(comprehension.iter_var2.as_deref().map(|name| (name, None)));
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
        let known = || PREDICATES.into_iter().chain(FUNCTIONS.map(|(name, _)| name));
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

    /// Reports operands of known types that do not fit. Such a comparison has the same result for every request, and
    /// everything else fails, if only for the requests that reach it.
    fn check_types(&mut self, at: &'e IdedExpr, name: &str, call: &'e CallExpr) {
        let sign = name.trim_matches(|c: char| matches!(c, '_' | '@'));
        match (name, call.args.as_slice()) {
            (
                operators::EQUALS
                | operators::NOT_EQUALS
                | operators::LESS
                | operators::LESS_EQUALS
                | operators::GREATER
                | operators::GREATER_EQUALS,
                [left, right],
            ) => _ = self.check_comparison(at, sign, left, right),
            (operators::IN, [value, list]) => match (&list.expr, self.type_of(value), self.type_of(list)) {
                (Expr::List(list), ..) => {
                    _ = list.elements.iter().all(|element| self.check_comparison(at, sign, value, element));
                }
                (_, Some(of), _) if of != Text && self.is_of_texts(list) => self.misfit(at, sign, &[of, List]),
                (_, _, Some(list)) if !matches!(list, List | Fields(_)) => {
                    self.problem(at, format!("`in` does not take {} on its right", list.name()), None);
                }
                _ => {}
            },
            (operators::LOGICAL_AND | operators::LOGICAL_OR | operators::LOGICAL_NOT, args) => {
                args.iter().for_each(|arg| self.check_is_bool(arg));
            }
            (operators::CONDITIONAL, [condition, ..]) => self.check_is_bool(condition),
            (operators::NEGATE, [value]) => {
                if let Some(of) = self.type_of(value).filter(|of| !of.is_number()) {
                    self.misfit(at, sign, &[of]);
                }
            }
            (_, [left, right]) if ARITHMETIC.contains(&name) => {
                let (Some(left), Some(right)) = (self.type_of(left), self.type_of(right)) else { return };
                let is_joined = name == operators::ADD && matches!(left, Text | List | Type::Bytes);
                if left.name() != right.name() || !(left.is_number() || is_joined) {
                    self.misfit(at, sign, &[left, right]);
                }
            }
            (_, args) if PREDICATES.contains(&name) || (FUNCTIONS.contains(&(name, Text)) && name != "string") => {
                let is_wrong = |of: &Type| of.is_number() || matches!(of, Bool | Type::Null);
                let operands = call.target.as_deref().into_iter().chain(args);
                let wrong = operands.filter_map(|operand| self.type_of(operand)).find(is_wrong);
                if let Some(of) = wrong {
                    self.misfit(at, name, &[of]);
                }
            }
            _ => {}
        }
    }

    fn check_is_bool(&mut self, expr: &'e IdedExpr) {
        let is_other = match &expr.expr {
            Expr::Call(call) if ARITHMETIC.contains(&call.func_name.as_str()) => true,
            _ => self.type_of(expr).is_some_and(|of| matches!(of, Text | Type::Null | Type::Bytes) || of.is_number()),
        };
        if is_other {
            self.problem(
                expr,
                "the expression gives a value that is not a bool",
                Some("compare it with something".into()),
            );
        }
    }

    /// Whether values of the two types can be compared, as far as the types are known.
    fn check_comparison(&mut self, at: &'e IdedExpr, sign: &str, left: &'e IdedExpr, right: &'e IdedExpr) -> bool {
        let (Some(of_left), Some(of_right)) = (self.type_of(left), self.type_of(right)) else { return true };
        if of_left.is_comparable(of_right) {
            return true;
        }
        let help = self.rewritten(left, right).or_else(|| self.rewritten(right, left));
        let help = help.unwrap_or_else(|| CONVERT.to_owned());
        let (left, right) = (of_left.name(), of_right.name());
        let message = match sign {
            "==" | "!=" | "in" => format!("`{sign}` compares {left} and {right}, of which no values are equal"),
            _ => format!("`{sign}` does not take {left} and {right}"),
        };
        self.problem(at, message, Some(help));
        false
    }

    fn misfit(&mut self, at: &'e IdedExpr, operation: &str, types: &[Type]) {
        let names: Vec<_> = types.iter().map(|of| of.name()).collect();
        self.problem(at, format!("`{operation}` does not take {}", names.join(" and ")), Some(CONVERT.to_owned()));
    }

    /// Says how to write a literal that is compared with a field.
    fn rewritten(&self, field: &IdedExpr, literal: &IdedExpr) -> Option<String> {
        let (path, of, Expr::Literal(literal)) = (path(field)?, self.type_of(field)?, &literal.expr) else {
            return None;
        };
        let write = match (of, literal) {
            (_, LiteralValue::Null) => format!("write `has({path})` to ask whether it is there"),
            (Text, LiteralValue::Int(int)) => format!("write `'{}'`", int.inner()),
            (Text, LiteralValue::Boolean(bool)) => format!("write `'{}'`", bool.inner()),
            (Int, _) => "write a number without quotes".to_owned(),
            (Bool, _) => "write `true` or `false`".to_owned(),
            _ => return None,
        };
        Some(format!("`{path}` is of type {}: {write}", of.name()))
    }

    /// The type of a value, if it is known.
    fn type_of(&self, expr: &IdedExpr) -> Option<Type> {
        match &expr.expr {
            Expr::Literal(literal) => Some(Type::of_literal(literal)),
            Expr::Ident(name) => match self.locals.iter().rev().find(|(local, _)| local == name) {
                Some((_, of)) => *of,
                None => ROOTS.into_iter().find_map(|(root, of)| (root == name).then_some(of)),
            },
            Expr::Select(select) if select.test => Some(Bool),
            Expr::Select(select) => match self.type_of(&select.operand)? {
                Fields(known) => {
                    let of = known.iter().find_map(|(name, of)| (*name == select.field).then_some(*of));
                    of.filter(|of| *of != Any)
                }
                _ => None,
            },
            Expr::List(_) => Some(List),
            Expr::Map(_) => Some(Fields(&[])),
            Expr::Call(call) => match (call.func_name.as_str(), call.args.as_slice()) {
                (operators::CONDITIONAL, [_, yes, no]) => self.type_of(yes).filter(|of| self.type_of(no) == Some(*of)),
                (operators::INDEX, [list, _]) => self.is_of_texts(list).then_some(Text),
                (name, args) if ARITHMETIC.contains(&name) => args.iter().find_map(|arg| self.type_of(arg)),
                (name, _) if PREDICATES.contains(&name) || OPERATORS_OF_BOOL.contains(&name) => Some(Bool),
                (name, _) => FUNCTIONS.into_iter().find_map(|(function, of)| (function == name).then_some(of)),
            },
            Expr::Comprehension(_) | Expr::Struct(_) | Expr::Unspecified => None,
        }
    }

    /// Whether it is a list that contains nothing but texts.
    fn is_of_texts(&self, list: &IdedExpr) -> bool {
        match &list.expr {
            Expr::Select(_) => self.type_of(list) == Some(List),
            Expr::Call(call) => call.func_name == "split",
            _ => false,
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
        if self.locals.iter().any(|(local, _)| local == root) {
            return;
        }
        let Some((_, mut kind)) = ROOTS.into_iter().find(|(name, _)| name == root) else {
            let help = meant(root, &ROOTS.map(|(name, _)| name));
            return self.problem(at, format!("there is no variable `{root}`"), Some(help));
        };
        for (at, field) in fields.into_iter().rev() {
            kind = match kind {
                Any => return,
                List | Text | Int | Bool | Type::Uint | Type::Double | Type::Bytes | Type::Null => {
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
            _ => {}
        }
    }
}

/// A variable and the fields selected on it, as they are written.
fn path(expr: &IdedExpr) -> Option<String> {
    match &expr.expr {
        Expr::Ident(name) => Some(name.clone()),
        Expr::Select(select) if !select.test => Some(format!("{}.{}", path(&select.operand)?, select.field)),
        _ => None,
    }
}
