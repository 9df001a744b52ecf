//! Finds the guards in Doorward's sources and rewrites a copy so that each can be taken away while it runs: guard `N` is
//! away in a process whose environment has [`AWAY`]`=N`, so that one build serves for all of them.

use std::{
    fs, io,
    ops::Range,
    path::{Path, PathBuf},
};

use proc_macro2::TokenTree;
use quote::ToTokens;
use syn::{
    BinOp, Block, Expr, ExprBinary, ExprIf, ExprMatch, ImplItemFn, ItemFn, ItemMod, Pat, Stmt,
    spanned::Spanned,
    visit::{self, Visit},
};

/// The variable that names the guard that is away. Those that begin with Doorward's name are settings of it.
pub const AWAY: &str = "WITHOUT_GUARD_DOORWARD";

/// The variable that names a file, to which the names of threads and the numbers of the guards that they meet are written.
pub const SEEN: &str = "GUARDS_SEEN_DOORWARD";

/// What the rewritten sources ask.
const MODULE: &str = include_str!("stands.rs");

/// Folders and files whose code refuses nothing to a stranger.
const LEFT_OUT: [&str; 8] = ["fuzz", "fuzz.rs", "tests", "tests.rs", "demo", "cli", "pages", "main.rs"];

/// How the text of a guard is changed.
enum Change {
    /// A condition under which something is refused: with it away, nothing is.
    Condition,
    /// The same with a `let` in it, around which no brackets may stand.
    Chain,
    /// A statement that refuses by `?`.
    Statement,
    /// One of the conditions that must all hold.
    Operand,
    /// The pattern of an arm that refuses, of a `match` whose last arm takes all the rest.
    Pattern,
}

impl Change {
    /// What stands before the text of guard `number`, and what after.
    fn around(&self, number: usize) -> (String, String) {
        let stands = format!("crate::guards::stands({number})");
        match self {
            Self::Condition => (format!("{stands} && ("), ")".to_owned()),
            Self::Chain => (format!("{stands} && "), String::new()),
            Self::Statement => (format!("if {stands} {{ "), " }".to_owned()),
            Self::Operand => (format!("(!{stands} || ("), "))".to_owned()),
            Self::Pattern => (String::new(), format!(" if {stands}")),
        }
    }
}

/// Where a guard stands in a file.
struct Place {
    at: Range<usize>,
    line: usize,
    change: Change,
}

/// A guard, as it is shown.
#[derive(Debug)]
pub struct Guard {
    /// From the root of the repository.
    pub file: String,
    pub line: usize,
    /// On one line.
    pub source: String,
    /// How many of the same source stand before it in the file.
    pub nth: usize,
}

/// The guards of a file.
#[derive(Default)]
struct Places(Vec<Place>);

impl Places {
    fn add(&mut self, spanned: &impl Spanned, change: Change) {
        let span = spanned.span();
        self.0.push(Place { at: span.byte_range(), line: span.start().line, change });
    }

    fn add_condition(&mut self, condition: &Expr) {
        let change = if has_let(condition) { Change::Chain } else { Change::Condition };
        self.add(condition, change);
    }

    /// The conditions that an expression joins by `&&`, each of which may be the one that refuses.
    fn add_operands(&mut self, expression: &Expr) {
        match expression {
            Expr::Binary(ExprBinary { left, op: BinOp::And(_), right, .. }) => {
                self.add_operands(left);
                self.add_operands(right);
            }
            Expr::Let(_) => {}
            other => self.add(other, Change::Operand),
        }
    }
}

fn has_let(condition: &Expr) -> bool {
    match condition {
        Expr::Let(_) => true,
        Expr::Binary(ExprBinary { left, right, op: BinOp::And(_), .. }) => has_let(left) || has_let(right),
        _ => false,
    }
}

/// Whether the text makes an error, or writes one down for the report of a configuration.
fn refuses(tokens: &impl ToTokens) -> bool {
    fn any(tokens: proc_macro2::TokenStream) -> bool {
        tokens.into_iter().any(|token| match token {
            TokenTree::Ident(ident) => {
                matches!(&*ident.to_string(), "Err" | "Rejection" | "error" | "error_at" | "refuse" | "deny")
            }
            TokenTree::Group(group) => any(group.stream()),
            TokenTree::Punct(_) | TokenTree::Literal(_) => false,
        })
    }
    any(tokens.to_token_stream())
}

/// Whether a block refuses and does nothing else of weight: it ends by it.
fn ends_by_refusing(block: &Block) -> bool {
    block.stmts.last().is_some_and(|last| match last {
        Stmt::Expr(last, _) => is_refusal(last),
        Stmt::Local(_) | Stmt::Item(_) | Stmt::Macro(_) => false,
    })
}

fn is_refusal(expression: &Expr) -> bool {
    match expression {
        Expr::If(_) | Expr::Match(_) | Expr::ForLoop(_) | Expr::While(_) | Expr::Loop(_) => false,
        Expr::Block(block) => ends_by_refusing(&block.block),
        Expr::Return(done) => done.expr.as_ref().is_none_or(|value| refuses(value) || is_plain_no(value)),
        Expr::Continue(_) | Expr::Break(_) => true,
        other => refuses(other),
    }
}

/// Whether what is called does something, so that its failure is trouble of ours and no guard against a caller.
fn has_effect(called: &Expr) -> bool {
    const EFFECTS: [&str; 16] = [
        "write", "read", "flush", "sync", "create", "remove", "set_", "rename", "save", "put", "insert", "append",
        "open", "send", "answer", "commit",
    ];
    let name = match called {
        // `write!` and its like.
        Expr::Macro(_) => return true,
        Expr::Await(waited) => return has_effect(&waited.base),
        Expr::Call(call) => match &*call.func {
            Expr::Path(path) => path.path.segments.last().map(|last| last.ident.to_string()),
            _ => None,
        },
        Expr::MethodCall(call) if matches!(&*call.method.to_string(), "map_err" | "context") => {
            return has_effect(&call.receiver);
        }
        Expr::MethodCall(call) => Some(call.method.to_string()),
        _ => None,
    };
    name.is_some_and(|name| EFFECTS.iter().any(|effect| name.starts_with(effect)))
}

fn is_plain_no(value: &Expr) -> bool {
    matches!(&*value.to_token_stream().to_string(), "false" | "None")
}

fn is_of_tests(attributes: &[syn::Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        attribute.path().is_ident("cfg") && {
            let text = attribute.meta.to_token_stream().to_string();
            text.contains("test") || text.contains("fuzzing")
        }
    })
}

impl<'ast> Visit<'ast> for Places {
    fn visit_item_mod(&mut self, module: &'ast ItemMod) {
        if !is_of_tests(&module.attrs) {
            visit::visit_item_mod(self, module);
        }
    }

    fn visit_item_fn(&mut self, function: &'ast ItemFn) {
        if function.sig.constness.is_none() && !is_of_tests(&function.attrs) {
            visit::visit_item_fn(self, function);
        }
    }

    fn visit_impl_item_fn(&mut self, function: &'ast ImplItemFn) {
        if function.sig.constness.is_none() && !is_of_tests(&function.attrs) {
            visit::visit_impl_item_fn(self, function);
        }
    }

    fn visit_block(&mut self, block: &'ast Block) {
        // What a block gives, where that is whether all of some conditions hold.
        if let Some(Stmt::Expr(last @ Expr::Binary(ExprBinary { op: BinOp::And(_), .. }), None)) = block.stmts.last()
            && !has_let(last)
        {
            self.add_operands(last);
        }
        visit::visit_block(self, block);
    }

    fn visit_stmt(&mut self, statement: &'ast Stmt) {
        if let Stmt::Expr(Expr::Try(tried), Some(_)) = statement
            && !has_effect(&tried.expr)
        {
            self.add(statement, Change::Statement);
        }
        visit::visit_stmt(self, statement);
    }

    fn visit_expr_if(&mut self, expression: &'ast ExprIf) {
        if ends_by_refusing(&expression.then_branch) {
            self.add_condition(&expression.cond);
        }
        visit::visit_expr_if(self, expression);
    }

    fn visit_expr_match(&mut self, expression: &'ast ExprMatch) {
        let last = expression.arms.last().filter(|last| last.guard.is_none());
        let has_rest = last.is_some_and(|last| match &last.pat {
            Pat::Wild(_) => true,
            // A name in lower case takes all; others, as `None`, are those of a variant.
            Pat::Ident(name) => name.ident.to_string().starts_with(|first: char| first.is_ascii_lowercase()),
            _ => false,
        });
        for (index, arm) in expression.arms.iter().enumerate() {
            let is_rest = index + 1 == expression.arms.len();
            match &arm.guard {
                _ if !is_refusal(&arm.body) => {}
                Some((_, condition)) => self.add_condition(condition),
                None if has_rest && !is_rest => self.add(&arm.pat, Change::Pattern),
                None => {}
            }
        }
        visit::visit_expr_match(self, expression);
    }

    /// What is in a macro's brackets is no syntax that this reads.
    fn visit_macro(&mut self, _: &'ast syn::Macro) {}
}

/// All source files of a folder, in order.
fn sources(folder: &Path, into: &mut Vec<PathBuf>) -> io::Result<()> {
    let mut entries: Vec<PathBuf> = fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect::<io::Result<_>>()?;
    entries.sort();
    for path in entries {
        if path.file_name().is_some_and(|name| LEFT_OUT.iter().any(|left_out| name == *left_out)) {
            continue;
        }
        if path.is_dir() {
            sources(&path, into)?;
        } else if path.extension().is_some_and(|kind| kind == "rs") {
            into.push(path);
        }
    }
    Ok(())
}

/// Writes the guards of a file into it.
fn rewrite(root: &Path, path: &Path, guards: &mut Vec<Guard>) -> Result<(), Box<dyn std::error::Error>> {
    let text = fs::read_to_string(path)?;
    let mut found = Places::default();
    found.visit_file(&syn::parse_file(&text)?);
    // Both ends of a guard are inserted by themselves, from the end, as one guard may contain another: what is around
    // begins before and ends after what is inside.
    let mut insertions: Vec<(usize, usize, String)> = Vec::new();
    for (index, place) in found.0.iter().enumerate() {
        let (before, after) = place.change.around(guards.len());
        insertions.push((place.at.start, index, before));
        insertions.push((place.at.end, usize::MAX - index, after));
        let source = text[place.at.clone()].split_whitespace().collect::<Vec<_>>().join(" ");
        let file = path.strip_prefix(root)?.display().to_string();
        let nth = guards.iter().filter(|other| other.file == file && other.source == source).count();
        guards.push(Guard { file, line: place.line, source, nth });
    }
    insertions.sort();
    let mut rewritten = text;
    for (at, _, inserted) in insertions.iter().rev() {
        rewritten.insert_str(*at, inserted);
    }
    fs::write(path, rewritten)?;
    Ok(())
}

/// Rewrites the copy at `root`, and gives its guards by their numbers.
pub fn all(root: &Path) -> Result<Vec<Guard>, Box<dyn std::error::Error>> {
    let mut paths = Vec::new();
    sources(&root.join("src"), &mut paths)?;
    let mut guards = Vec::new();
    for path in paths {
        rewrite(root, &path, &mut guards).map_err(|error| format!("{}: {error}", path.display()))?;
    }
    let library = root.join("src/lib.rs");
    let module = format!("\n#[doc(hidden)]\npub mod guards {{\n{MODULE}}}\n");
    fs::write(&library, fs::read_to_string(&library)? + &module)?;
    Ok(guards)
}

/// Makes `copy` the same as `sources`, and leaves alone what is the same already: cargo goes by the time of a file.
pub fn replace(sources: &Path, copy: &Path) -> io::Result<()> {
    fs::create_dir_all(copy)?;
    let names = |folder: &Path| -> io::Result<Vec<_>> {
        fs::read_dir(folder)?.map(|entry| Ok(entry?.file_name())).collect::<io::Result<_>>()
    };
    let wanted = names(sources)?;
    for name in names(copy)?.iter().filter(|name| !wanted.contains(name)) {
        let surplus = copy.join(name);
        match fs::symlink_metadata(&surplus)?.file_type() {
            kind if kind.is_dir() => fs::remove_dir_all(surplus)?,
            kind if kind.is_file() => fs::remove_file(surplus)?,
            // The modules for Node.js.
            _ => {}
        }
    }
    for name in wanted {
        let (from, to) = (sources.join(&name), copy.join(&name));
        if from.is_dir() {
            replace(&from, &to)?;
        } else if fs::read(&to).ok() != Some(fs::read(&from)?) {
            fs::copy(from, to)?;
        }
    }
    Ok(())
}
