//! A single watch: the initial list, then events, and up to when it has reported everything.
//!
//! The watcher of `kube` reports objects alone. Without events it is silent, so a running watch cannot be distinguished
//! from one that was cut. This one also passes on how far the API server says that it has come.

use std::{collections::VecDeque, time::Duration};

use futures_util::{StreamExt, stream, stream::BoxStream};
use kube::{
    Api,
    api::{DynamicObject, ListParams, WatchEvent, WatchParams},
};
use tokio::time::Instant;

use super::{Kind, Object};
use crate::{
    clock::{Clock, Moment},
    sts::objects::TASK_RUN,
};

/// The initial pause before a watch starts again.
const FIRST_RETRY: Duration = Duration::from_millis(250);

/// The longest pause: once the API server is back, tokens of what ended meanwhile must be refused within two seconds.
pub(super) const MAX_RETRY: Duration = Duration::from_millis(500);

/// The pause after several lists in a row whose watches did not last: the API server is there but slow, and lists would
/// add to its load.
const LATE_RETRY: Duration = Duration::from_secs(5);
const LATE: u32 = 3;

/// The requested duration of a watch, in seconds. The API server sends a bookmark two seconds before its end, and the
/// end counts as one too, so reports do not grow older than [`MAX_UNOBSERVED`](super::MAX_UNOBSERVED) in normal
/// operation.
const WATCH: u32 = 4;

/// A watch that is silent for this long after that, or before it begins, was cut silently. Over HTTP/2 a
/// [ping](crate::upstream::Pings) detects that sooner, unless something in between answers it.
const SILENT: Duration = Duration::from_secs(4);

/// The deadline for a page of a list.
const LIST: Duration = Duration::from_secs(30);

/// Objects per page of a list.
const PAGE: u32 = 500;

/// An event of a watch, in order.
#[derive(Debug)]
pub(super) enum ObjectEvent {
    /// A complete list follows.
    ListBegins,
    Listed(Object),
    /// The list is complete, as of this moment.
    ListComplete(Moment),
    Changed(Object),
    Deleted(Object),
    /// Everything that happened until then is reported.
    Bookmark(Moment),
}

#[derive(Debug, thiserror::Error)]
pub(super) enum WatchError {
    #[error(transparent)]
    Server(#[from] kube::Error),
    #[error("the API server sent no resource version")]
    NoVersion,
    #[error("the API server says nothing")]
    Silent,
}

enum State {
    New,
    /// A list that was requested at `asked`.
    Listing {
        asked: Moment,
        rest: VecDeque<DynamicObject>,
        next: Next,
    },
    /// Everything up to this resource version is reported.
    At(String),
    Watching(Watching),
}

/// What follows the objects of a page.
enum Next {
    Page(Option<String>),
    Version(String),
}

struct Watching {
    version: String,
    /// When it was requested. What had happened by then comes first, so any later bookmark proves that it is reported.
    asked: Moment,
    began: Instant,
    events: BoxStream<'static, kube::Result<WatchEvent<DynamicObject>>>,
}

/// The events of the watch of a kind of objects. After an error it starts again with a complete list.
pub(super) fn watch(
    api: Api<DynamicObject>,
    kind: Kind,
    clock: Clock,
) -> BoxStream<'static, Result<ObjectEvent, WatchError>> {
    let watcher = Watcher { api, kind, clock };
    let begin = (watcher, State::New, Duration::ZERO, FIRST_RETRY, 0);
    stream::unfold(begin, async |(watcher, state, wait, next, lists)| {
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
        let lists_now = matches!(state, State::New | State::Listing { .. });
        let (event, state) = match watcher.next(state).await {
            Ok((event, state)) => (Ok(event), state),
            Err(error) => (Err(error), State::New),
        };
        let (wait, next, lists) = match &event {
            Err(_) if lists >= LATE && !lists_now => (LATE_RETRY, next, lists),
            // A server that does not list either is not slow but away.
            Err(_) => (next, (next * 2).min(MAX_RETRY), if lists_now { 0 } else { lists }),
            // A reported list does not prove that the watch after it works.
            Ok(ObjectEvent::Bookmark(_) | ObjectEvent::Changed(_) | ObjectEvent::Deleted(_)) => {
                (Duration::ZERO, FIRST_RETRY, 0)
            }
            Ok(ObjectEvent::ListComplete(_)) => (Duration::ZERO, next, lists + 1),
            Ok(_) => (Duration::ZERO, next, lists),
        };
        Some((event, (watcher, state, wait, next, lists)))
    })
    .boxed()
}

struct Watcher {
    api: Api<DynamicObject>,
    kind: Kind,
    clock: Clock,
}

impl Watcher {
    async fn next(&self, mut state: State) -> Result<(ObjectEvent, State), WatchError> {
        loop {
            state = match state {
                State::New => {
                    let (asked, next) = (self.clock.moment(), Next::Page(None));
                    return Ok((ObjectEvent::ListBegins, State::Listing { asked, rest: VecDeque::new(), next }));
                }
                State::Listing { asked, mut rest, next } => match (rest.pop_front(), next) {
                    (Some(object), next) => {
                        return Ok((ObjectEvent::Listed(self.read(object)), State::Listing { asked, rest, next }));
                    }
                    (None, Next::Page(token)) => {
                        let (rest, next) = self.page(token).await?;
                        State::Listing { asked, rest, next }
                    }
                    (None, Next::Version(version)) => {
                        return Ok((ObjectEvent::ListComplete(asked), State::At(version)));
                    }
                },
                State::At(version) => {
                    let (asked, began) = (self.clock.moment(), Instant::now());
                    let watch = self.watch();
                    let events = tokio::time::timeout(SILENT, self.api.watch(&watch, &version)).await;
                    let events = events.map_err(|_| WatchError::Silent)??.boxed();
                    State::Watching(Watching { version, asked, began, events })
                }
                State::Watching(watching) => match self.step(watching).await? {
                    (Some(event), state) => return Ok((event, state)),
                    (None, state) => state,
                },
            };
        }
    }

    async fn page(&self, token: Option<String>) -> Result<(VecDeque<DynamicObject>, Next), WatchError> {
        let parameters = ListParams {
            label_selector: self.selector(),
            limit: Some(PAGE),
            continue_token: token,
            ..ListParams::default()
        };
        let list = tokio::time::timeout(LIST, self.api.list(&parameters)).await.map_err(|_| WatchError::Silent)??;
        let is_there = |text: &String| !text.is_empty();
        let next = match (list.metadata.continue_.filter(is_there), list.metadata.resource_version.filter(is_there)) {
            (Some(token), _) => Next::Page(Some(token)),
            (None, Some(version)) => Next::Version(version),
            (None, None) => return Err(WatchError::NoVersion),
        };
        Ok((list.items.into(), next))
    }

    /// The next event of a watch.
    async fn step(&self, mut watching: Watching) -> Result<(Option<ObjectEvent>, State), WatchError> {
        let silent = Duration::from_secs(WATCH.into()) + SILENT;
        let event = tokio::time::timeout(silent, watching.events.next()).await.map_err(|_| WatchError::Silent)?;
        let asked = watching.asked;
        let event = match event.transpose()? {
            // It ends by itself when its time is up. A watch that the API server ends earlier may have been too slow,
            // and have missed events.
            None => {
                let is_whole = watching.began.elapsed() >= Duration::from_secs(WATCH.into());
                if !is_whole {
                    tokio::time::sleep(FIRST_RETRY).await;
                }
                return Ok((is_whole.then_some(ObjectEvent::Bookmark(asked)), State::At(watching.version)));
            }
            Some(WatchEvent::Error(status)) => return Err(kube::Error::Api(status).into()),
            Some(WatchEvent::Bookmark(bookmark)) => {
                watching.version = bookmark.metadata.resource_version;
                ObjectEvent::Bookmark(asked)
            }
            Some(WatchEvent::Added(object) | WatchEvent::Modified(object)) => {
                watching.version = version(&object)?;
                ObjectEvent::Changed(self.read(object))
            }
            Some(WatchEvent::Deleted(object)) => {
                watching.version = version(&object)?;
                ObjectEvent::Deleted(self.read(object))
            }
        };
        Ok((Some(event), State::Watching(watching)))
    }

    fn watch(&self) -> WatchParams {
        WatchParams { label_selector: self.selector(), timeout: Some(WATCH), ..WatchParams::default() }
    }

    fn selector(&self) -> Option<String> {
        match self.kind {
            // Tekton writes it on all pods that it makes.
            Kind::Pod => Some(TASK_RUN.to_owned()),
            Kind::TaskRun | Kind::PipelineRun => None,
        }
    }

    fn read(&self, object: DynamicObject) -> Object {
        Object::read(self.kind, object)
    }
}

fn version(object: &DynamicObject) -> Result<String, WatchError> {
    object.metadata.resource_version.clone().filter(|version| !version.is_empty()).ok_or(WatchError::NoVersion)
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    };

    use http::{Request, Response};
    use kube::{Client, client::Body};
    use serde_json::json;

    use super::*;
    use crate::{clock::Timestamp, upstream::Pings};

    const NOW: Timestamp = Timestamp::from_secs(1_700_000_000);

    /// What the API server sends to one watch, and how long the watch stays silent before it ends. `None` for ever.
    type Script = (Vec<serde_json::Value>, Option<u64>);

    struct World {
        clock: Clock,
        asked: Arc<Mutex<Vec<String>>>,
        told: BoxStream<'static, Result<ObjectEvent, WatchError>>,
        /// Whether it fails to list at the moment.
        is_away: Arc<AtomicBool>,
        /// Requests whose query contains this are never answered.
        unanswered: Arc<Mutex<Option<&'static str>>>,
    }

    fn pod(name: &str, version: &str) -> serde_json::Value {
        json!({"apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "namespace": "ci", "uid": name, "resourceVersion": version}})
    }

    fn bookmark(version: &str) -> serde_json::Value {
        json!({"type": "BOOKMARK", "object": {"apiVersion": "v1", "kind": "Pod", "metadata": {"resourceVersion": version}}})
    }

    fn refused() -> serde_json::Value {
        json!({"type": "ERROR", "object": {"kind": "Status", "apiVersion": "v1", "metadata": {}, "code": 500,
            "status": "Failure", "reason": "InternalError", "message": "late"}})
    }

    fn world(scripts: Vec<Script>) -> World {
        let (asked, clock) = (Arc::new(Mutex::new(Vec::new())), Clock::manual(NOW));
        let scripts = Arc::new(Mutex::new(VecDeque::from(scripts)));
        let is_away = Arc::new(AtomicBool::new(false));
        let away = Arc::clone(&is_away);
        let unanswered = Arc::new(Mutex::new(None::<&'static str>));
        let hangs = Arc::clone(&unanswered);
        let log = Arc::clone(&asked);
        let service = tower::service_fn(move |request: Request<Body>| {
            let query = request.uri().query().unwrap_or_default().to_owned();
            log.lock().unwrap().push(query.clone());
            let (lines, lasts) = match query.contains("watch=true") {
                true => scripts.lock().unwrap().pop_front().unwrap_or_default(),
                false if away.load(Ordering::Relaxed) => (vec![], Some(0)),
                false => {
                    let list = json!({"apiVersion": "v1", "kind": "PodList", "metadata": {"resourceVersion": "7"},
                        "items": [pod("a", "5")]});
                    (vec![list], Some(0))
                }
            };
            let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
            let frame =
                |text: String| Ok::<_, std::convert::Infallible>(http_body::Frame::data(bytes::Bytes::from(text)));
            let end = async move {
                match lasts {
                    Some(lasts) => tokio::time::sleep(Duration::from_secs(lasts)).await,
                    None => std::future::pending().await,
                }
            };
            let frames = stream::once(async move { frame(text) }).chain(stream::once(end).filter_map(async |()| None));
            let is_unanswered = hangs.lock().unwrap().is_some_and(|part| query.contains(part));
            async move {
                if is_unanswered {
                    std::future::pending::<()>().await;
                }
                Ok::<_, std::convert::Infallible>(Response::new(http_body_util::StreamBody::new(frames.boxed())))
            }
        });
        let api = Api::namespaced_with(Client::new(service, "ci"), "ci", &Kind::Pod.resource());
        World { told: watch(api, Kind::Pod, clock.clone()), clock, asked, is_away, unanswered }
    }

    /// The events, until there is an error or silence for some seconds.
    async fn told(world: &mut World, seconds: u64) -> Vec<String> {
        let mut all = Vec::new();
        let until = Instant::now() + Duration::from_secs(seconds);
        while let Ok(Some(told)) = tokio::time::timeout_at(until, world.told.next()).await {
            all.push(match told {
                Ok(ObjectEvent::ListBegins) => "begins".to_owned(),
                Ok(ObjectEvent::Listed(object)) => format!("present {}", object.identity().name),
                Ok(ObjectEvent::ListComplete(at)) => format!("all at {}", at.wall().as_secs() - NOW.as_secs()),
                Ok(ObjectEvent::Changed(object)) => format!("changed {}", object.identity().name),
                Ok(ObjectEvent::Deleted(object)) => format!("gone {}", object.identity().name),
                Ok(ObjectEvent::Bookmark(at)) => format!("up to {}", at.wall().as_secs() - NOW.as_secs()),
                Err(error) => format!("error: {error}"),
            });
            // As the watcher's clock advances with time.
            world.clock.advance(Duration::from_secs(1));
        }
        all
    }

    #[tokio::test(start_paused = true)]
    async fn a_quiet_watch_reports_its_progress_repeatedly() {
        let quiet = || (vec![bookmark("8")], Some(4));
        let mut world = world(vec![quiet(), (vec![], Some(4)), (vec![], None)]);
        assert_eq!(
            told(&mut world, 9).await,
            // As of when each was requested, by a clock that advances by a second with each event.
            ["begins", "present a", "all at 0", "up to 3", "up to 3", "up to 5"]
        );
        let asked = world.asked.lock().unwrap();
        let watches: Vec<_> = asked.iter().filter(|query| query.contains("watch=true")).collect();
        assert!(watches[0].contains("resourceVersion=7") && watches[1].contains("resourceVersion=8"), "{watches:?}");
        assert!(
            watches
                .iter()
                .all(|query| query.contains("timeoutSeconds=4") && query.contains("allowWatchBookmarks=true"))
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_cut_or_silent_watch_reports_no_progress() {
        let event = |kind: &str, name: &str| json!({"type": kind, "object": pod(name, "9")});
        let cut = (vec![event("MODIFIED", "a"), event("DELETED", "b")], Some(1));
        let mut world = world(vec![cut, (vec![], None), (vec![], None)]);
        let all = told(&mut world, 12).await;
        assert_eq!(all[..5], ["begins", "present a", "all at 0", "changed a", "gone b"], "{all:?}");
        assert_eq!(all[5..], ["error: the API server says nothing", "begins", "present a", "all at 6"], "{all:?}");
        let asked = world.asked.lock().unwrap();
        assert_eq!(asked.iter().filter(|query| query.contains("resourceVersion=9")).count(), 1, "{asked:?}");
    }

    /// An API server, or a proxy in front of it, that accepts a request and never answers would stop the watch for
    /// good, while ends of runs would count as seen.
    #[tokio::test(start_paused = true)]
    async fn a_list_or_a_watch_that_is_never_answered_is_given_up() {
        const SILENCE: &str = "error: the API server says nothing";
        for (unanswered, seconds, expected) in [
            ("watch=true", 6, &["begins", "present a", "all at 0", SILENCE][..]),
            ("limit=500", 31, &["begins", SILENCE]),
        ] {
            let mut world = world(vec![]);
            *world.unanswered.lock().unwrap() = Some(unanswered);
            let all = told(&mut world, seconds).await;
            assert!(all.iter().take(expected.len()).eq(expected), "{unanswered}: {all:?}");
        }
    }

    /// An API server that ends each watch at once would be queried as fast as it responds.
    #[tokio::test(start_paused = true)]
    async fn a_watch_that_is_ended_at_once_is_asked_for_again_after_a_pause() {
        let mut world = world((0..40).map(|_| (vec![], Some(0))).collect());
        told(&mut world, 2).await;
        let asked = world.asked.lock().unwrap();
        let watches = asked.iter().filter(|query| query.contains("watch=true")).count();
        assert!((7..=10).contains(&watches), "{watches}");
    }

    /// The network, TLS and the API server take part of that time.
    #[test]
    fn a_cut_watch_is_noticed_and_retried_within_the_promised_two_seconds() {
        let longest = Pings::EAGER.notice() + MAX_RETRY;
        assert!(longest <= Duration::from_millis(1750), "{longest:?}");
    }

    /// Everything was listed again every second, for as long as the API server was slow.
    #[tokio::test(start_paused = true)]
    async fn where_no_watch_lasts_after_a_list_the_next_lists_wait() {
        let mut world = world((0..20).map(|_| (vec![refused()], Some(0))).collect());
        let told = told(&mut world, 20).await;
        let lists = told.iter().filter(|told| told.starts_with("all at")).count();
        assert!((4..=8).contains(&lists), "{told:?}");
    }

    /// A server that was away after it had been slow was queried only every five seconds as well.
    #[tokio::test(start_paused = true)]
    async fn an_api_server_that_lists_nothing_is_asked_soon_again() {
        let mut world = world((0..20).map(|_| (vec![refused()], Some(0))).collect());
        assert_eq!(told(&mut world, 1).await.iter().filter(|told| told.starts_with("all at")).count(), 3);
        world.is_away.store(true, Ordering::Relaxed);
        told(&mut world, 7).await;
        world.is_away.store(false, Ordering::Relaxed);
        let back = told(&mut world, 1).await;
        assert!(back.iter().any(|told| told.starts_with("all at")), "{back:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn after_an_error_everything_is_listed_again() {
        let gone = json!({"type": "ERROR", "object": {"kind": "Status", "apiVersion": "v1", "metadata": {}, "code": 410,
            "status": "Failure", "reason": "Expired", "message": "too old"}});
        let mut world = world(vec![(vec![gone], Some(0)), (vec![], None)]);
        let told = told(&mut world, 5).await;
        assert!(told[3].starts_with("error: ") && told[3].contains("too old"), "{told:?}");
        assert_eq!(told[4..], ["begins", "present a", "all at 4"], "{told:?}");
    }
}
