//! Which of the requested scopes rules give, and why not the others.

use std::{collections::BTreeSet, fmt};

use serde::Serialize;

use crate::{authn::Principal, config::raw::Effect, terminal};

use super::{AskedToken, Explanation, Policy, RequestView, TokenView};

/// The result of a request for a token. Displays as text for a terminal, serialises as JSON.
#[derive(Clone, Debug, Serialize)]
pub struct TokenExplanation {
    /// `allow` if there would be a token.
    pub outcome: Effect,
    pub asked: AskedToken,
    /// The scopes that would be in it.
    pub scopes: Vec<String>,
    /// The decision on each scope that was requested. If none was requested by name: on each scope that rules name (for
    /// a login also as a pattern), and on a token without scopes if they give none.
    pub decisions: Vec<ScopeExplanation>,
}

/// The decision on one scope.
#[derive(Clone, Debug, Serialize)]
pub struct ScopeExplanation {
    /// `None`: a token without scopes.
    pub scope: Option<String>,
    #[serde(flatten)]
    pub explanation: Explanation,
}

impl ScopeExplanation {
    fn is_allow(&self) -> bool {
        self.explanation.outcome == Effect::Allow
    }
}

impl Policy {
    /// Explains what rules give to a request for a token. A token in `request` is replaced.
    pub fn explain_token(
        &self,
        principal: &Principal,
        request: &RequestView<'_>,
        asked: &AskedToken,
    ) -> TokenExplanation {
        let explain = |scope: Option<&str>| {
            let token = Some(TokenView { audience: &asked.audience, scope, task: asked.task.as_ref() });
            let explanation = self.explain(principal, &RequestView { token, ..*request });
            ScopeExplanation { scope: scope.map(str::to_owned), explanation }
        };
        let named = || self.token_scopes(&asked.audience).into_iter().map(str::to_owned);
        let scopes: Vec<String> = match &asked.scopes {
            _ if asked.is_login() => {
                let token = Some(TokenView { audience: &asked.audience, scope: None, task: asked.task.as_ref() });
                let rules = self.token_rules(principal, &RequestView { token, ..*request });
                rules.scope_patterns().into_iter().chain(named()).collect::<BTreeSet<_>>().into_iter().collect()
            }
            Some(scopes) => scopes.clone(),
            None => named().collect(),
        };
        let mut decisions: Vec<ScopeExplanation> = scopes.iter().map(|scope| explain(Some(scope))).collect();
        let is_named = asked.scopes.as_ref().is_some_and(|scopes| !scopes.is_empty());
        if !is_named && !decisions.iter().any(ScopeExplanation::is_allow) {
            decisions.push(explain(None));
        }
        let all = decisions.iter().all(ScopeExplanation::is_allow);
        let given = if is_named && !asked.partly { all } else { decisions.iter().any(ScopeExplanation::is_allow) };
        let scopes = decisions.iter().filter(|decision| given && !asked.is_login() && decision.is_allow());
        TokenExplanation {
            outcome: if given { Effect::Allow } else { Effect::Deny },
            asked: asked.clone(),
            scopes: scopes.filter_map(|decision| decision.scope.clone()).collect(),
            decisions,
        }
    }
}

impl AskedToken {
    /// Whether it is the login of a registry client, which succeeds if the client could get any scope at all, and gives
    /// none.
    fn is_login(&self) -> bool {
        self.partly && self.scopes.as_ref().is_some_and(Vec::is_empty)
    }

    fn scopes_in_words(&self) -> String {
        match &self.scopes {
            None => "all scopes that rules give".to_owned(),
            Some(_) if self.is_login() => "no scope, for the login of a registry client".to_owned(),
            Some(scopes) if scopes.is_empty() => "no scope".to_owned(),
            Some(scopes) => format!("scope {}", scopes.join(" ")),
        }
    }
}

impl fmt::Display for AskedToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a token for {}, {}", terminal::line(&self.audience), terminal::line(&self.scopes_in_words()))
    }
}

impl fmt::Display for TokenExplanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scopes = match (self.outcome, self.scopes.as_slice()) {
            (Effect::Allow, []) => " without a scope".to_owned(),
            (Effect::Allow, scopes) => format!(" with scope {}", scopes.join(" ")),
            _ => String::new(),
        };
        let audience = terminal::line(&self.asked.audience);
        writeln!(f, "{}: a token for {audience}{}", self.outcome.as_str().to_uppercase(), terminal::line(&scopes))?;
        // If no scope was requested by name, those that are not given are many and of little interest.
        let is_open = self.asked.scopes.is_none() || self.asked.is_login();
        let is_short = |decision: &ScopeExplanation| is_open && !decision.is_allow();
        for ScopeExplanation { scope, explanation } in self.decisions.iter().filter(|one| is_short(one)) {
            let scope = scope.as_deref().map(|scope| format!("scope {scope}"));
            let scope = scope.as_deref().unwrap_or("a token without a scope");
            writeln!(f, "  {} is not given: {}", terminal::line(scope), terminal::line(&explanation.summary))?;
            for fix in &explanation.fixes {
                writeln!(f, "    to pass: {}", terminal::line(fix))?;
            }
        }
        for ScopeExplanation { scope, explanation } in self.decisions.iter().filter(|one| !is_short(one)) {
            match scope {
                Some(scope) => writeln!(f, "\nscope {}:", terminal::line(scope))?,
                None => writeln!(f, "\nwithout a scope:")?,
            }
            write!(f, "{explanation}")?;
        }
        Ok(())
    }
}
