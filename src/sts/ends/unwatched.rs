//! Tokens of tasks that this process does not watch, as it was started with a configuration that does not name their cluster, or
//! their namespace there. Where a reload takes a cluster away its watch ends them; after a restart there is none that would.
//!
//! Others on the same store may watch them: a replica that has the configuration of before, or another Doorward, which has clusters
//! and an issuer of its own. What one of those gives is theirs to end.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{
    ending::end_all,
    follow::{END_AGAIN, EndsError},
    watching::MAX_RETRY,
};
use crate::{
    app::{App, rollout},
    config::raw,
    runs::root_cause,
    sts::bearer::Bearer,
};

/// A cluster whose tasks have tokens of a replica, which watches their ends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gives {
    /// The name of its issuer.
    cluster: Arc<str>,
    /// In which namespaces; in all where there are none.
    namespaces: Vec<String>,
}

impl Gives {
    /// All of a configuration.
    pub fn all(root: &raw::Root) -> Vec<Self> {
        let exchanged = root.tokens.iter().flat_map(|tokens| &tokens.exchange);
        let clusters = exchanged.filter(|exchanged| exchanged.kubernetes.is_some());
        clusters.map(|of| Self { cluster: of.issuer.as_str().into(), namespaces: of.namespaces.clone() }).collect()
    }

    fn covers(&self, bearer: &Bearer) -> bool {
        let is_in = self.namespaces.is_empty() || self.namespaces.contains(&bearer.namespace);
        self.cluster == bearer.cluster && is_in
    }
}

/// What each replica gives that is there. `None`: it is of a version that does not tell.
type Replicas = [Option<Vec<Gives>>];

/// Ends the tokens of all tasks but those that a replica watches. Not for good: others may be started later with a configuration that
/// names more.
pub async fn end_unwatched(app: &App) {
    end_until_alike(|| end_once(app)).await;
}

/// Gives whether no other replica gives what this one does not.
async fn end_once(app: &App) -> Result<bool, EndsError> {
    let replicas: Vec<_> = rollout::replicas(app).await?.into_iter().map(|replica| replica.gives).collect();
    let issuer = app.snapshot.load().own_issuer.as_ref().map(|own| Arc::clone(own.issuer()));
    let are_alike = are_alike(&replicas);
    if let Some(issuer) = issuer {
        end_all(app, move |bearer| is_unwatched(&replicas, &issuer, bearer)).await?;
    }
    Ok(are_alike)
}

/// Whether it is a token of this issuer whose end nobody sees. Versions that noted no issuer leave it to end by itself.
fn is_unwatched(replicas: &Replicas, issuer: &str, bearer: &Bearer) -> bool {
    let watches = |gives: &Option<Vec<Gives>>| match gives {
        Some(gives) => gives.iter().any(|gives| gives.covers(bearer)),
        None => true,
    };
    bearer.issuer.as_deref() == Some(issuer) && !replicas.iter().any(watches)
}

fn are_alike(replicas: &Replicas) -> bool {
    let is_told = replicas.iter().all(Option::is_some);
    is_told && replicas.windows(2).all(|pair| matches!(pair, [one, other] if one == other))
}

/// Ends all now and as long as other replicas give more, and once more for what the last of those noted at its end.
async fn end_until_alike<F: Future<Output = Result<bool, EndsError>>>(end_once: impl Fn() -> F) {
    let (mut was_alike, mut failing) = (false, false);
    loop {
        match end_once().await {
            Ok(true) if was_alike => return,
            Ok(are_alike) => {
                (was_alike, failing) = (are_alike, false);
                tokio::time::sleep(END_AGAIN).await;
            }
            Err(error) => {
                let why = "tokens of tasks whose cluster or namespace is not configured any more have not ended yet; it is tried \
                           again";
                let error = root_cause(&error);
                match failing {
                    true => tracing::debug!(error, "{why}"),
                    false => tracing::warn!(error, "{why}"),
                }
                failing = true;
                tokio::time::sleep(MAX_RETRY).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{cell::RefCell, slice::from_ref, time::Duration};

    use tokio::time::Instant;

    use super::*;
    use crate::sts::ends::Kind;

    const ISSUER: &str = "https://door.example";

    fn gives(text: &str) -> Option<Vec<Gives>> {
        let tokens: raw::Tokens = serde_saphyr::from_str(&format!("{{exchange: {text}}}")).unwrap();
        Some(Gives::all(&raw::Root { tokens: Some(tokens), ..raw::Root::default() }))
    }

    fn bearer(issuer: Option<&str>, cluster: &str, namespace: &str) -> Bearer {
        let (name, kind, issuer) = ("build".to_owned(), Kind::TaskRun, issuer.map(Into::into));
        Bearer { cluster: cluster.into(), issuer, kind, namespace: namespace.to_owned(), name, is_told: false }
    }

    #[test]
    fn what_is_watched_is_of_a_cluster_and_a_namespace_that_have_tokens() {
        let replicas = [gives(
            "[{issuer: east, kubernetes: api, namespaces: [ci, prod]}, {issuer: west, kubernetes: api}, {issuer: github}]",
        )];
        for (cluster, namespace, expected) in [
            ("east", "prod", true),
            ("east", "staging", false),
            ("west", "staging", true),
            ("renamed", "ci", false),
            ("github", "ci", false),
        ] {
            let bearer = bearer(Some(ISSUER), cluster, namespace);
            assert_eq!(!is_unwatched(&replicas, ISSUER, &bearer), expected, "{cluster} {namespace}");
        }
    }

    /// A start took all that its own configuration does not name for what nobody watches, and ended it for good: the tokens of another
    /// Doorward on the same store, and those of the replicas that a mistaken rollout had not replaced yet.
    #[test]
    fn what_another_replica_watches_or_another_doorward_gave_is_left() {
        let (own, other) = (gives("[{issuer: east, kubernetes: api}]"), gives("[{issuer: west, kubernetes: api}]"));
        let west = bearer(Some(ISSUER), "west", "ci");
        assert!(is_unwatched(from_ref(&own), ISSUER, &west), "nobody is left who would end it");
        assert!(!is_unwatched(&[own.clone(), other.clone()], ISSUER, &west));
        assert!(!is_unwatched(&[own.clone(), None], ISSUER, &west), "an older version may watch it");
        for issuer in [Some("https://west.example"), None] {
            let bearer = bearer(issuer, "west", "ci");
            assert!(!is_unwatched(from_ref(&own), ISSUER, &bearer), "it need not be there at this moment: {issuer:?}");
        }
        assert!(are_alike(from_ref(&own)) && are_alike(&[own.clone(), own.clone()]));
        assert!(!are_alike(&[own.clone(), other]) && !are_alike(&[own, None]));
    }

    #[tokio::test(start_paused = true)]
    async fn all_ends_again_until_the_last_replica_that_gave_more_is_gone_and_a_store_that_is_away_is_waited_for() {
        let (began, asked) = (Instant::now(), RefCell::new(Vec::new()));
        end_until_alike(|| async {
            asked.borrow_mut().push(began.elapsed());
            match asked.borrow().len() {
                1 => Err(EndsError::Ended),
                2 | 3 => Ok(false),
                _ => Ok(true),
            }
        })
        .await;
        let asked: Vec<Duration> = asked.into_inner();
        let [failed, one, other, alike, last] = asked.as_slice() else { panic!("{asked:?}") };
        assert!(*failed < MAX_RETRY && *one < 2 * MAX_RETRY, "{asked:?}");
        assert!(*other - *one >= END_AGAIN && *alike - *other >= END_AGAIN && *last - *alike >= END_AGAIN, "{asked:?}");
    }
}
