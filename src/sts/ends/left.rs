//! Tokens of tasks where a reload has it that they get none any more.

use std::time::Duration;

use super::{follow::EndsError, watching::MAX_RETRY};
use crate::config::raw;

/// How often is looked for tokens of tasks where they get none any more, once they have ended.
const END_AGAIN: Duration = Duration::from_secs(30);

/// Where tasks of a cluster got tokens by former configurations, and get none by the one in force.
pub(super) struct Left<'a> {
    before: Vec<&'a raw::Exchanged>,
    pub(super) given: Option<&'a raw::Exchanged>,
}

impl<'a> Left<'a> {
    pub(super) fn new(before: &'a [raw::Exchanged], given: Option<&'a raw::Exchanged>) -> Self {
        let gave_more = |of: &&raw::Exchanged| match (of.namespaces.as_slice(), given) {
            (_, None) => true,
            ([], Some(given)) => !given.namespaces.is_empty(),
            (listed, Some(given)) => listed.iter().any(|namespace| !given.gives_in(namespace)),
        };
        Self { before: before.iter().filter(gave_more).collect(), given }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.before.is_empty()
    }

    pub(super) fn is_in(&self, namespace: &str) -> bool {
        let gave = self.before.iter().any(|of| of.gives_in(namespace));
        gave && self.given.is_none_or(|of| !of.gives_in(namespace))
    }
}

pub(super) async fn until(is_so: impl Fn() -> bool) {
    while !is_so() {
        tokio::time::sleep(MAX_RETRY).await;
    }
}

/// Ends what is left again and again, until that `is_over`. What comes of it is `told` once, until something else does.
pub(super) async fn end_until<F: Future<Output = Result<(), EndsError>>>(
    is_over: impl Fn() -> bool,
    end_left: impl Fn() -> F,
    told: impl Fn(&Result<(), EndsError>),
) {
    let mut before = None;
    while !is_over() {
        let ended = end_left().await;
        if before.replace(ended.is_ok()) != Some(ended.is_ok()) {
            told(&ended);
        }
        // An exchange that began before, here or at another replica, may still note a token.
        let again = if ended.is_ok() { END_AGAIN } else { MAX_RETRY };
        _ = tokio::time::timeout(again, until(&is_over)).await;
    }
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};

    use super::*;

    /// What another replica watches, by whose configuration alone tasks get tokens there, is none of it.
    #[test]
    fn tokens_are_left_where_a_former_configuration_gave_them_and_the_one_in_force_does_not() {
        let given = |namespaces: &[&str]| raw::Exchanged {
            issuer: "c".to_owned(),
            kubernetes: Some("api".to_owned()),
            upstreams: Vec::new(),
            namespaces: namespaces.iter().map(|&namespace| namespace.to_owned()).collect(),
        };
        let (all, both, one) = (given(&[]), given(&["ci", "staging"]), given(&["ci"]));
        for (before, now, expected) in [
            (vec![], Some(&one), [false; 3]),
            (vec![&one], Some(&both), [false; 3]),
            (vec![&one], Some(&all), [false; 3]),
            (vec![&both], Some(&one), [false, true, false]),
            (vec![&both, &one], Some(&both), [false; 3]),
            (vec![&all], Some(&one), [false, true, true]),
            (vec![&one], None, [true, false, false]),
            (vec![&all], None, [true; 3]),
        ] {
            let before: Vec<raw::Exchanged> = before.into_iter().cloned().collect();
            let left = Left::new(&before, now);
            assert_eq!(
                ["ci", "staging", "other"].map(|namespace| left.is_in(namespace)),
                expected,
                "{before:?} {now:?}"
            );
            assert_eq!(left.is_empty(), expected == [false; 3], "{before:?} {now:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_token_that_an_exchange_notes_after_its_cluster_is_gone_ends_too() {
        let (left, fails, is_over) = (Cell::new(1), Cell::new(false), Cell::new(false));
        let told = RefCell::new(Vec::new());
        let end_left = || async {
            if fails.get() {
                return Err(EndsError::Ended);
            }
            left.set(0);
            Ok(())
        };
        let ends = end_until(|| is_over.get(), end_left, |ended| told.borrow_mut().push(ended.is_ok()));
        let late = async {
            let soon = Duration::from_secs(1);
            tokio::time::sleep(soon).await;
            assert_eq!(left.replace(1), 0, "what there was has ended at once");
            tokio::time::sleep(END_AGAIN).await;
            assert_eq!(left.replace(1), 0, "what came later ends with the next round");
            fails.set(true);
            tokio::time::sleep(END_AGAIN).await;
            fails.set(false);
            tokio::time::sleep(MAX_RETRY + soon).await;
            assert_eq!(left.get(), 0, "what could not be ended is tried again soon");
            is_over.set(true);
        };
        tokio::time::timeout(5 * END_AGAIN, async { tokio::join!(ends, late) }).await.expect("it ends with the reload");
        let told = told.into_inner();
        assert_eq!(told, [true, false, true], "each is told once");
    }
}
