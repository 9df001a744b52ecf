//! The paths of one host, and the routes at each of them.

use std::collections::HashMap;

use matchit::Router;

#[derive(Debug)]
pub(super) struct Paths<R> {
    paths: Router<usize>,
    /// The index of each pattern in `routes`.
    patterns: HashMap<String, usize>,
    /// The routes of each path pattern, which differ in their methods, in order of precedence.
    routes: Vec<Vec<Choice<R>>>,
}

/// One of the routes of a path pattern.
#[derive(Debug)]
pub(super) struct Choice<R> {
    /// Whether the route names this path itself and not a prefix of it.
    exact: bool,
    names_methods: bool,
    pub route: R,
}

impl<R> Choice<R> {
    /// The precedence within a pattern. The more specific route comes first, in whatever order routes are configured.
    /// Between patterns `matchit` sees to that.
    fn rank(&self) -> (bool, bool) {
        (self.exact, self.names_methods)
    }
}

impl<R> Default for Paths<R> {
    fn default() -> Self {
        Self { paths: Router::new(), patterns: HashMap::new(), routes: Vec::new() }
    }
}

impl<R: Clone> Paths<R> {
    pub fn insert(&mut self, path: &str, route: &R, names_methods: bool) -> Result<(), matchit::InsertError> {
        // `matchit` reads braces as parameters.
        let literal = |text: &str| text.replace('{', "{{").replace('}', "}}");
        let prefix = path.strip_suffix("/*");
        let exact = prefix.is_none();
        let patterns = match prefix {
            None => vec![literal(path)],
            Some("") => vec!["/".to_owned(), "/{*rest}".to_owned()],
            Some(prefix) => {
                let prefix = literal(prefix);
                vec![prefix.clone(), format!("{prefix}/"), format!("{prefix}/{{*rest}}")]
            }
        };
        for pattern in patterns {
            let choice = Choice { exact, names_methods, route: route.clone() };
            // The same pattern again belongs to a route that differs in its methods, or that names the path that is a
            // prefix of another route.
            if let Some(same) = self.patterns.get(&pattern).and_then(|index| self.routes.get_mut(*index)) {
                same.push(choice);
                same.sort_by_key(|choice| std::cmp::Reverse(choice.rank()));
                continue;
            }
            self.paths.insert(&pattern, self.routes.len())?;
            self.patterns.insert(pattern, self.routes.len());
            self.routes.push(vec![choice]);
        }
        Ok(())
    }
}

impl<R> Paths<R> {
    /// The routes of a path, in order of precedence.
    pub fn at(&self, path: &str) -> &[Choice<R>] {
        let found = self.paths.at(path).ok().and_then(|found| self.routes.get(*found.value));
        found.map(Vec::as_slice).unwrap_or_default()
    }

    /// The routes of a path that are considered. If one names this very path, those that have it only as a prefix are
    /// not considered, just as they are not for longer paths.
    pub fn asked(&self, path: &str) -> impl Iterator<Item = &R> + Clone {
        let found = self.at(path);
        let exact = found.first().is_some_and(|first| first.exact);
        found.iter().take_while(move |choice| choice.exact == exact).map(|choice| &choice.route)
    }

    pub fn routes(&self) -> impl Iterator<Item = &R> {
        self.routes.iter().flatten().map(|choice| &choice.route)
    }
}
