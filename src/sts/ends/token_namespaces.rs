//! Where tasks of a cluster get tokens, and the end of their tokens where a reload no longer gives them any.

use std::{collections::BTreeSet, mem};

use tokio::{sync::watch::Sender, time::timeout};

use super::{follow::EndsError, watching::MAX_RETRY};
use crate::config::raw;

/// Where tasks of a cluster get tokens by the configuration in force, and where tokens from before are still to be
/// ended.
#[derive(Debug, Default)]
pub(super) struct TokenNamespaces {
    /// `None` for nowhere.
    pub(super) exchanged: Option<raw::Exchanged>,
    withdrawn: Withdrawn,
}

/// Where reloads have taken tokens away, until the tokens there have ended. Only while the store is away can several
/// reloads add up. What a later reload gives again is removed.
#[derive(Debug)]
enum Withdrawn {
    /// In all namespaces.
    All,
    In(BTreeSet<String>),
}

impl Default for Withdrawn {
    fn default() -> Self {
        Self::In(BTreeSet::new())
    }
}

impl TokenNamespaces {
    /// Applies the configuration in force. Returns whether it has changed.
    pub(super) fn change(&mut self, exchanged: Option<&raw::Exchanged>) -> bool {
        if self.exchanged.as_ref() == exchanged {
            return false;
        }
        if let Some(before) = mem::replace(&mut self.exchanged, exchanged.cloned()) {
            self.withdrawn.add(before.namespaces);
        }
        if let Some(given) = exchanged {
            self.withdrawn.take_out(given);
        }
        true
    }

    pub(super) fn none_withdrawn(&self) -> bool {
        matches!(&self.withdrawn, Withdrawn::In(names) if names.is_empty())
    }

    pub(super) fn is_withdrawn(&self, namespace: &str) -> bool {
        let is_taken_away = match &self.withdrawn {
            Withdrawn::All => true,
            Withdrawn::In(names) => names.contains(namespace),
        };
        is_taken_away && self.exchanged.as_ref().is_none_or(|given| !given.gives_in(namespace))
    }
}

impl Withdrawn {
    fn add(&mut self, namespaces: Vec<String>) {
        match self {
            _ if namespaces.is_empty() => *self = Self::All,
            Self::All => {}
            Self::In(names) => names.extend(namespaces),
        }
    }

    fn take_out(&mut self, given: &raw::Exchanged) {
        match self {
            _ if given.namespaces.is_empty() => *self = Self::default(),
            // Except where tokens are given now.
            Self::All => {}
            Self::In(names) => {
                for namespace in &given.namespaces {
                    names.remove(namespace);
                }
            }
        }
    }
}

/// Ends what each reload leaves, retrying until that succeeds. `told` receives the result of each attempt. An
/// exchange that records itself later gives no token, as it checks again whether tokens are given there.
pub(super) async fn end_withdrawn<F: Future<Output = Result<(), EndsError>>>(
    namespaces: &Sender<TokenNamespaces>,
    end: impl Fn() -> F,
    mut told: impl FnMut(&Result<(), EndsError>),
) {
    let mut heard = namespaces.subscribe();
    loop {
        let none_withdrawn = heard.borrow_and_update().none_withdrawn();
        if none_withdrawn {
            _ = heard.changed().await;
            continue;
        }
        let ended = end().await;
        told(&ended);
        if ended.is_err() {
            _ = timeout(MAX_RETRY, heard.changed()).await;
            continue;
        }
        namespaces.send_if_modified(|namespaces| {
            // What a reload has left meanwhile has not ended.
            if !heard.has_changed().unwrap_or_default() {
                namespaces.withdrawn = Withdrawn::default();
            }
            false
        });
    }
}

#[cfg(test)]
mod tests {
    use std::{
        cell::{Cell, RefCell},
        time::Duration,
    };

    use serde_json::json;

    use super::{super::RunEnds, *};

    fn given(namespaces: &[&str]) -> raw::Exchanged {
        raw::Exchanged {
            issuer: "c".to_owned(),
            kubernetes: Some("api".to_owned()),
            upstreams: Vec::new(),
            namespaces: namespaces.iter().map(|&namespace| namespace.to_owned()).collect(),
        }
    }

    /// Regression: tokens from before the process began and those of other replicas were ignored; and namespaces that a
    /// reload had brought back were still ended, even where another replica gave tokens.
    #[test]
    fn tokens_are_left_where_reloads_took_them_away_and_the_last_one_does_not_give_them() {
        let (all, both, one) = (given(&[]), given(&["ci", "staging"]), given(&["ci"]));
        for (reloads, expected) in [
            (vec![Some(&one)], [false; 3]),
            (vec![Some(&one), Some(&both)], [false; 3]),
            (vec![Some(&one), Some(&all)], [false; 3]),
            (vec![Some(&both), Some(&one)], [false, true, false]),
            (vec![Some(&both), Some(&one), Some(&both)], [false; 3]),
            (vec![Some(&both), Some(&one), None], [true, true, false]),
            (vec![Some(&all), Some(&one)], [false, true, true]),
            (vec![Some(&all), Some(&one), Some(&both)], [false, false, true]),
            (vec![Some(&all), Some(&one), Some(&all)], [false; 3]),
            (vec![Some(&one), None], [true, false, false]),
            (vec![Some(&one), None, Some(&one)], [false; 3]),
            (vec![Some(&all), None], [true; 3]),
        ] {
            let mut given = TokenNamespaces::default();
            for reload in &reloads {
                assert!(given.change(*reload) && !given.change(*reload), "{reloads:?}");
            }
            assert_eq!(
                ["ci", "staging", "other"].map(|namespace| given.is_withdrawn(namespace)),
                expected,
                "{reloads:?}"
            );
            assert_eq!(given.none_withdrawn(), expected == [false; 3], "{reloads:?}");
        }
    }

    /// Each round asked whether the configuration had changed by then, and missed what came and went in between.
    #[test]
    fn a_follower_of_a_cluster_gets_each_reload_and_a_cluster_is_new_only_once() {
        let configuration = |exchange: serde_json::Value| raw::Root {
            tokens: Some(serde_json::from_value(json!({"exchange": exchange})).unwrap()),
            ..raw::Root::default()
        };
        let entry = |issuer: &str, namespaces: &[&str]| json!({"issuer": issuer, "kubernetes": "api", "namespaces": namespaces});
        let ends = RunEnds::default();
        let new =
            |exchange| ends.configure(&configuration(exchange)).iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(new(json!([{"issuer": "a"}, entry("c", &["ci", "staging"])])), ["c"]);
        let (given, mut heard) = (ends.token_namespaces("c"), ends.token_namespaces("c").subscribe());
        assert!(given.borrow().none_withdrawn() && given.borrow().exchanged.is_some());
        assert_eq!(new(json!([entry("c", &["ci", "staging"]), json!({"issuer": "d", "kubernetes": "api"})])), ["d"]);
        assert!(!heard.has_changed().unwrap(), "nothing has changed there");
        assert!(new(json!([entry("c", &["other"])])).is_empty());
        assert!(new(json!([entry("c", &["other", "ci"])])).is_empty());
        assert!(heard.has_changed().unwrap());
        let left = |namespace| heard.borrow_and_update().is_withdrawn(namespace);
        assert_eq!(["ci", "staging", "other"].map(left), [false, true, false]);
        assert!(ends.configure(&raw::Root::default()).is_empty());
        assert!(given.borrow().exchanged.is_none() && given.borrow().is_withdrawn("ci"));
        assert!(new(json!([json!({"issuer": "c", "kubernetes": "api"})])).is_empty(), "somebody follows it already");
        assert!(given.borrow().none_withdrawn());
    }

    /// Regression: what a reload had removed was ended again every half minute while the process ran.
    #[tokio::test(start_paused = true)]
    async fn what_a_reload_leaves_is_ended_until_that_succeeds_and_is_then_forgotten() {
        let sender = Sender::<TokenNamespaces>::default();
        let reload = |namespaces: &[&str]| {
            sender.send_if_modified(|state| state.change(Some(&given(namespaces))));
        };
        let (fails, told) = (Cell::new(true), RefCell::new(Vec::new()));
        let end = || async { if fails.get() { Err(EndsError::Ended) } else { Ok(()) } };
        let ends = end_withdrawn(&sender, end, |ended| told.borrow_mut().push(ended.is_ok()));
        let events = async {
            let soon = Duration::from_secs(1);
            reload(&["ci"]);
            tokio::time::sleep(soon).await;
            assert!(told.borrow().is_empty(), "nothing was taken away");
            reload(&["other"]);
            tokio::time::sleep(soon).await;
            assert!(told.take().starts_with(&[false, false]), "it is tried again");
            assert!(sender.borrow().is_withdrawn("ci"));
            fails.set(false);
            tokio::time::sleep(soon).await;
            assert_eq!(told.take().last(), Some(&true));
            assert!(sender.borrow().none_withdrawn() && !sender.borrow().is_withdrawn("ci"));
            tokio::time::sleep(100 * soon).await;
            assert!(told.borrow().is_empty(), "it is forgotten");

            reload(&["staging"]);
            tokio::time::sleep(soon).await;
            assert_eq!(told.take(), [true], "once");
            assert!(sender.borrow().none_withdrawn());
        };
        tokio::select! {
            () = ends => {}
            () = events => {}
        }
    }

    /// The round had begun before, and did not cover it.
    #[tokio::test(start_paused = true)]
    async fn what_a_reload_leaves_during_a_round_is_ended_as_well() {
        let sender = Sender::<TokenNamespaces>::default();
        let reload = |namespaces: &[&str]| {
            sender.send_if_modified(|state| state.change(Some(&given(namespaces))));
        };
        reload(&["ci", "staging"]);
        reload(&["staging"]);
        let rounds = RefCell::new(Vec::new());
        let end = || async {
            rounds.borrow_mut().push(["ci", "staging"].map(|namespace| sender.borrow().is_withdrawn(namespace)));
            if rounds.borrow().len() == 1 {
                reload(&["other"]);
            }
            Ok::<_, EndsError>(())
        };
        let ends = end_withdrawn(&sender, end, |_| ());
        assert!(timeout(Duration::from_secs(60), ends).await.is_err());
        assert_eq!(*rounds.borrow(), [[true, false], [true, true]]);
        assert!(sender.borrow().none_withdrawn());
    }
}
