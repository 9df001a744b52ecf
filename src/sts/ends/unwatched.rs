//! Tokens of tasks that this process does not watch, as it was started with a configuration that does not name their cluster, or
//! their namespace there. Where a reload takes a cluster away its watch ends them; after a restart there is none that would.

use std::time::Duration;

use super::{
    ending::end_all,
    follow::{END_AGAIN, EndsError},
    watching::MAX_RETRY,
};
use crate::{app::App, config::raw, runs::root_cause, sts::bearer::Bearer};

/// Ends the tokens of all tasks but those of the clusters and namespaces that are `watched`.
pub async fn end_unwatched(app: &App, watched: &[raw::Exchanged]) {
    end_twice(|| end_all(app, move |bearer| !is_watched(watched, bearer))).await;
}

fn is_watched(watched: &[raw::Exchanged], bearer: &Bearer) -> bool {
    watched.iter().any(|cluster| cluster.issuer == *bearer.cluster && cluster.gives_in(&bearer.namespace))
}

/// Ends all now, and once more for what replicas with the configuration of before have noted meanwhile. Not for good: others may be
/// started later with one that names more.
async fn end_twice<F: Future<Output = Result<(), EndsError>>>(end_all: impl Fn() -> F) {
    for wait in [Duration::ZERO, END_AGAIN] {
        tokio::time::sleep(wait).await;
        while let Err(error) = end_all().await {
            tracing::warn!(
                error = root_cause(&error),
                "tokens of tasks whose cluster or namespace is not configured any more have not ended yet; it is tried again"
            );
            tokio::time::sleep(MAX_RETRY).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use tokio::time::Instant;

    use super::*;
    use crate::sts::ends::Kind;

    #[test]
    fn what_is_watched_is_of_a_cluster_and_a_namespace_that_have_tokens() {
        let of = |text: &str| serde_saphyr::from_str::<raw::Exchanged>(text).unwrap();
        let watched =
            [of("{issuer: east, kubernetes: api, namespaces: [ci, prod]}"), of("{issuer: west, kubernetes: api}")];
        for (cluster, namespace, expected) in
            [("east", "prod", true), ("east", "staging", false), ("west", "staging", true), ("renamed", "ci", false)]
        {
            let (name, kind) = ("build".to_owned(), Kind::TaskRun);
            let bearer =
                Bearer { cluster: cluster.into(), kind, namespace: namespace.to_owned(), name, is_told: false };
            assert_eq!(is_watched(&watched, &bearer), expected, "{cluster} {namespace}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_an_older_replica_notes_after_the_start_ends_too_and_a_store_that_is_away_is_waited_for() {
        let (began, asked) = (Instant::now(), RefCell::new(Vec::new()));
        end_twice(|| async {
            asked.borrow_mut().push(began.elapsed());
            match asked.borrow().len() {
                1 => Err(EndsError::Ended),
                _ => Ok(()),
            }
        })
        .await;
        let asked = asked.into_inner();
        let [first, second, last] = asked.as_slice() else { panic!("{asked:?}") };
        assert!(*first < MAX_RETRY && *second < 2 * MAX_RETRY && *last >= END_AGAIN, "{asked:?}");
    }
}
