//! The watches of one cluster, which follow the namespaces in which its tasks get tokens.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use futures_util::{StreamExt, stream::BoxStream};
use kube::{Api, Client, api::DynamicObject};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{
    Kind, RunEnds, Watch,
    follow::Present,
    watching::{ObjectEvent, WatchError, watch},
};
use crate::clock::Clock;

/// The running watches. Dropping this marks them as lost, however their follower has ended.
pub(super) struct Watches {
    ends: RunEnds,
    clock: Clock,
    client: Client,
    /// The name of its issuer.
    cluster: Arc<str>,
    going: HashMap<Watch, Going>,
}

/// A running watch; dropping this stops it.
pub(super) struct Going {
    _end: DropGuard,
    /// The objects it has reported, until its list is complete.
    pub(super) present: Present,
    /// The last logged reason why it cannot watch.
    pub(super) trouble: Option<String>,
}

/// The events of a watch.
type Events = BoxStream<'static, (Watch, Result<ObjectEvent, WatchError>)>;

impl Watches {
    pub(super) fn new(ends: RunEnds, clock: Clock, client: Client, cluster: Arc<str>) -> Self {
        Self { ends, clock, client, cluster, going: HashMap::new() }
    }

    pub(super) fn get_mut(&mut self, watch: &Watch) -> Option<&mut Going> {
        self.going.get_mut(watch)
    }

    /// Starts the watches that these namespaces need in addition, and stops those that they do not need. An empty list
    /// means all namespaces.
    pub(super) fn change(&mut self, namespaces: &[String]) -> Vec<Events> {
        let wanted: HashSet<Watch> = match namespaces {
            [] => self.of_namespace(None).into(),
            listed => listed.iter().flat_map(|namespace| self.of_namespace(Some(namespace))).collect(),
        };
        self.going.retain(|watch, _| wanted.contains(watch));
        self.ends.keep(&self.cluster, &wanted);
        let new: Vec<Watch> = wanted.into_iter().filter(|watch| !self.going.contains_key(watch)).collect();
        new.into_iter().map(|watch| self.begin(watch)).collect()
    }

    fn of_namespace(&self, namespace: Option<&str>) -> [Watch; 3] {
        [Kind::TaskRun, Kind::Pod, Kind::PipelineRun].map(|kind| Watch {
            cluster: Arc::clone(&self.cluster),
            kind,
            namespace: namespace.map(ToOwned::to_owned),
        })
    }

    fn begin(&mut self, of: Watch) -> Events {
        self.ends.begin(&of);
        let api = api(&self.client, of.kind, of.namespace.as_deref());
        let end = CancellationToken::new();
        let told = watch(api, of.kind, self.clock.clone()).take_until(end.clone().cancelled_owned());
        let going = Going { _end: end.drop_guard(), present: Present::new(), trouble: None };
        self.going.insert(of.clone(), going);
        told.map(move |told| (of.clone(), told)).boxed()
    }
}

impl Drop for Watches {
    fn drop(&mut self) {
        for watch in self.going.keys() {
            self.ends.mark_lost(watch, self.clock.moment());
        }
    }
}

pub(super) fn api(client: &Client, kind: Kind, namespace: Option<&str>) -> Api<DynamicObject> {
    let resource = kind.resource();
    match namespace {
        Some(namespace) => Api::namespaced_with(client.clone(), namespace, &resource),
        None => Api::all_with(client.clone(), &resource),
    }
}

#[cfg(test)]
mod tests {
    use std::{convert::Infallible, future::pending};

    use futures_util::FutureExt;
    use http::{Request, Response};
    use kube::client::Body;

    use super::{super::MAX_UNOBSERVED, *};
    use crate::clock::Timestamp;

    /// No watches yet, of a cluster whose API server never responds.
    fn watches() -> (RunEnds, Clock, Watches) {
        let silent = tower::service_fn(|_: Request<Body>| pending::<Result<Response<Body>, Infallible>>());
        let (ends, clock) = (RunEnds::default(), Clock::manual(Timestamp::from_secs(1_700_000_000)));
        let watches = Watches::new(ends.clone(), clock.clone(), Client::new(silent, "ci"), "c".into());
        (ends, clock, watches)
    }

    /// Otherwise tasks would get tokens whose ends nobody sees, until the watches of the next follower failed or
    /// completed their lists.
    #[tokio::test]
    async fn watches_whose_follower_ended_count_as_lost() {
        let (ends, clock, mut watches) = watches();
        let are_observed =
            || ends.are_observed("c", "ci", &[Kind::TaskRun, Kind::Pod, Kind::PipelineRun], clock.moment());
        for mut events in watches.change(&["ci".to_owned()]) {
            let (watch, _) = events.next().await.unwrap();
            ends.mark_current(&watch, ends.turn(&watch), clock.moment());
        }
        clock.advance(MAX_UNOBSERVED);
        assert!(are_observed(), "the watches go on");
        drop(watches);
        assert!(are_observed(), "for a moment");
        clock.advance(MAX_UNOBSERVED);
        assert!(!are_observed());
    }

    /// All were restarted by each reload that named one more, and until they had listed everything, tasks got tokens
    /// nowhere in the cluster.
    #[tokio::test]
    async fn watches_of_remaining_namespaces_continue_while_others_are_added_and_removed() {
        let (ends, clock, mut watches) = watches();
        let names = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<Vec<String>>();
        let kinds = [Kind::TaskRun, Kind::Pod, Kind::PipelineRun];
        let are_observed = |namespace| ends.are_observed("c", namespace, &kinds, clock.moment());
        // Marks each list as complete.
        let begin = async |begun: &mut Vec<Events>, namespace: &str| {
            assert_eq!(begun.len(), 3);
            for events in begun {
                let (watch, told) = events.next().await.unwrap();
                assert!(matches!(told, Ok(ObjectEvent::ListBegins)));
                assert_eq!(watch.namespace.as_deref(), Some(namespace));
                ends.mark_current(&watch, ends.turn(&watch), clock.moment());
            }
        };
        let mut of_ci = watches.change(&names(&["ci"]));
        begin(&mut of_ci, "ci").await;
        assert!(watches.change(&names(&["ci", "ci"])).is_empty());
        let mut of_shop = watches.change(&names(&["shop", "ci"]));
        assert!(are_observed("ci") && !are_observed("shop"));
        begin(&mut of_shop, "shop").await;
        assert!(of_ci.iter_mut().all(|events| events.next().now_or_never().is_none()), "they go on");
        assert!(are_observed("ci") && are_observed("shop"));

        assert!(watches.change(&names(&["shop"])).is_empty());
        assert!(of_ci.iter_mut().all(|events| matches!(events.next().now_or_never(), Some(None))), "they have ended");
        assert!(!are_observed("ci") && are_observed("shop"));

        let everywhere = watches.change(&[]);
        assert!(of_shop.iter_mut().all(|events| matches!(events.next().now_or_never(), Some(None))));
        assert_eq!((everywhere.len(), are_observed("shop")), (3, false));
        drop(watches);
        for mut events in everywhere {
            assert!(events.next().await.is_none(), "none goes on by itself");
        }
    }
}
