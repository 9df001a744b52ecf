//! What an expression reads: claims, so that the audit trail can record them and the decision can be made again; the
//! time, so that long-lived streams are decided again; patterns, so that they are compiled once; and fields, so that
//! authors are warned of those that requests may lack.

use std::collections::BTreeSet;

use cel::common::ast::{EntryExpr, Expr, IdedExpr, LiteralValue, operators};

use super::patterns::MATCHES;

/// What an expression reads.
#[derive(Default)]
pub(in super::super) struct Reads<'e> {
    /// Names of top-level claims.
    pub claims: BTreeSet<String>,
    /// Uses of all claims without a name: in a loop, by a computed name, or by their number.
    pub whole: Vec<&'e IdedExpr>,
    /// Patterns of `matches`.
    pub patterns: BTreeSet<&'e str>,
    /// Whether it reads the time of the request.
    pub time: bool,
    /// Fields that it reads, as variable and name: `kubernetes` and `namespace`.
    pub fields: BTreeSet<(&'e str, &'e str)>,
    /// Fields for which it tests whether they are there (`has`).
    pub tested: BTreeSet<(&'e str, &'e str)>,
    /// Fields that it reads within a `!` or a `!=`.
    pub negated: BTreeSet<(&'e str, &'e str)>,
    /// Whether it may test whether a text is empty.
    pub empty: bool,
}

/// Searches the whole expression.
pub(super) fn reads(expression: &IdedExpr) -> Reads<'_> {
    let mut reads = Reads::default();
    reads.visit(expression);
    reads
}

impl<'e> Reads<'e> {
    fn visit(&mut self, expr: &'e IdedExpr) {
        if let Expr::Select(select) = &expr.expr
            && let Expr::Ident(variable) = &select.operand.expr
        {
            let fields = if select.test { &mut self.tested } else { &mut self.fields };
            fields.insert((variable.as_str(), select.field.as_str()));
        }
        match &expr.expr {
            Expr::Select(select) if is_claims(&select.operand) => {
                self.claims.insert(select.field.clone());
            }
            // The claims that `Principal::verified_email` is made from.
            Expr::Select(select) if select.field == "email" && is_principal(&select.operand) => {
                self.claims.extend(["email", "email_verified"].map(str::to_owned));
            }
            Expr::Select(select) if is_claims(expr) => {
                if !select.test {
                    self.whole.push(expr);
                }
            }
            Expr::Select(select) if is_request(&select.operand) => self.time |= select.field == "time",
            Expr::Select(select) => self.visit(&select.operand),
            Expr::Call(call) => {
                if call.func_name == MATCHES {
                    self.patterns.extend(call.args.last().and_then(text));
                }
                if matches!(call.func_name.as_str(), operators::LOGICAL_NOT | operators::NOT_EQUALS) {
                    self.negated.extend(call.args.iter().flat_map(|part| reads(part).fields));
                }
                self.empty |= call.func_name == "size";
                let named = match (call.func_name.as_str(), call.args.as_slice()) {
                    (operators::INDEX, [claims, name]) | (operators::IN, [name, claims]) if is_claims(claims) => {
                        text(name)
                    }
                    _ => None,
                };
                match named {
                    Some(name) => _ = self.claims.insert(name.to_owned()),
                    None => {
                        call.target.iter().map(|target| &**target).chain(&call.args).for_each(|part| self.visit(part))
                    }
                }
            }
            Expr::List(list) => list.elements.iter().for_each(|element| self.visit(element)),
            Expr::Map(map) => {
                for entry in &map.entries {
                    if let EntryExpr::MapEntry(entry) = &entry.expr {
                        self.visit(&entry.key);
                        self.visit(&entry.value);
                    }
                }
            }
            Expr::Comprehension(comprehension) => [
                &comprehension.iter_range,
                &comprehension.accu_init,
                &comprehension.loop_cond,
                &comprehension.loop_step,
                &comprehension.result,
            ]
            .into_iter()
            .for_each(|part| self.visit(part)),
            Expr::Literal(_) => self.empty |= text(expr) == Some(""),
            // `check` refuses the request as a whole, by which the time could be read.
            Expr::Ident(_) | Expr::Struct(_) | Expr::Unspecified => {}
        }
    }
}

fn is_principal(expr: &IdedExpr) -> bool {
    matches!(&expr.expr, Expr::Ident(name) if name == "principal")
}

fn is_request(expr: &IdedExpr) -> bool {
    matches!(&expr.expr, Expr::Ident(name) if name == "request")
}

fn is_claims(expr: &IdedExpr) -> bool {
    matches!(&expr.expr, Expr::Select(select) if select.field == "claims" && is_principal(&select.operand))
}

fn text(expr: &IdedExpr) -> Option<&str> {
    match &expr.expr {
        Expr::Literal(LiteralValue::String(text)) => Some(text.inner()),
        _ => None,
    }
}
