//! The health of each component, and readiness.
//!
//! A component declares at its registration whether readiness depends on it ([`Gate`]). An issuer that is down is
//! reported and gates nothing, so that it cannot take the routes of all others down; the store and the listeners gate.

use std::{
    borrow::Cow,
    collections::BTreeMap,
    sync::{
        Arc, Mutex, Weak,
        atomic::{AtomicBool, Ordering},
    },
};

use serde::Serialize;

use crate::{
    clock::{Clock, Timestamp},
    lock::lock,
};

/// The most bytes of a reason.
const MAX_REASON: usize = 512;

/// Whether readiness depends on a component.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gate {
    /// While it is starting or failed, `/readyz` fails.
    Readiness,
    /// It is only reported.
    Report,
}

/// The health of a component.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// It has not reported yet.
    Starting,
    Ok,
    /// It works, but less well than it should.
    Degraded,
    /// It does not work.
    Failed,
    /// It works, but somebody must check it now.
    Alarm,
}

/// The registry of components. Clones share it.
#[derive(Clone, Debug)]
pub struct Health(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    clock: Clock,
    draining: AtomicBool,
    /// A component is reported as long as there is a handle to it.
    components: Mutex<BTreeMap<Arc<str>, Weak<Component>>>,
}

#[derive(Debug)]
struct Component {
    name: Arc<str>,
    clock: Clock,
    state: Mutex<State>,
}

#[derive(Clone, Debug)]
struct State {
    gate: Gate,
    status: Status,
    reason: Cow<'static, str>,
    since: Timestamp,
}

/// The handle by which a component reports its state. Clones refer to the same component, which is removed when the
/// last is dropped.
#[derive(Clone, Debug)]
pub struct ComponentHandle(Arc<Component>);

/// The state of all components at one time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct HealthReport {
    pub ready: bool,
    /// Whether Doorward is shutting down, and should receive no new requests.
    pub draining: bool,
    pub components: Vec<ComponentReport>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ComponentReport {
    pub name: String,
    pub status: Status,
    /// Whether readiness depends on it.
    pub gates: bool,
    #[serde(skip_serializing_if = "str::is_empty")]
    pub reason: Cow<'static, str>,
    /// When it entered this state, RFC 3339.
    pub since: String,
}

impl Health {
    pub fn new(clock: Clock) -> Self {
        Self(Arc::new(Inner { clock, draining: AtomicBool::new(false), components: Mutex::default() }))
    }

    /// Returns the component of that name, which is starting until it reports. An existing one is shared, so that a new
    /// generation takes over the state of the old one; `gate` then replaces its gate.
    pub fn component(&self, name: impl Into<Arc<str>>, gate: Gate) -> ComponentHandle {
        let name = name.into();
        let mut components = lock(&self.0.components);
        components.retain(|_, component| component.strong_count() > 0);
        if let Some(component) = components.get(&name).and_then(Weak::upgrade) {
            lock(&component.state).gate = gate;
            return ComponentHandle(component);
        }
        let state = State { gate, status: Status::Starting, reason: Cow::Borrowed(""), since: self.0.clock.now() };
        let component =
            Arc::new(Component { name: Arc::clone(&name), clock: self.0.clock.clone(), state: Mutex::new(state) });
        components.insert(name, Arc::downgrade(&component));
        ComponentHandle(component)
    }

    /// Makes readiness fail from now on, whatever the components report.
    pub fn drain(&self) {
        self.0.draining.store(true, Ordering::Release);
    }

    pub fn is_ready(&self) -> bool {
        self.report().ready
    }

    /// Returns the state of all components, by name.
    pub fn report(&self) -> HealthReport {
        let live: Vec<_> = lock(&self.0.components).values().filter_map(Weak::upgrade).collect();
        let draining = self.0.draining.load(Ordering::Acquire);
        let mut ready = !draining;
        let components = live
            .iter()
            .map(|component| {
                let state = lock(&component.state).clone();
                ready &= !state.blocks();
                ComponentReport {
                    name: component.name.to_string(),
                    status: state.status,
                    gates: state.gate == Gate::Readiness,
                    reason: state.reason,
                    since: state.since.to_string(),
                }
            })
            .collect();
        HealthReport { ready, draining, components }
    }
}

impl State {
    fn blocks(&self) -> bool {
        self.gate == Gate::Readiness && matches!(self.status, Status::Starting | Status::Failed)
    }
}

impl ComponentHandle {
    pub fn ok(&self) {
        self.set(Status::Ok, Cow::Borrowed(""));
    }

    /// Reports that it works, but less well than it should. Reasons must not contain secrets, as everybody who may read
    /// metrics can read them.
    pub fn degraded(&self, reason: impl Into<Cow<'static, str>>) {
        self.set(Status::Degraded, reason.into());
    }

    pub fn failed(&self, reason: impl Into<Cow<'static, str>>) {
        self.set(Status::Failed, reason.into());
    }

    /// Reports that it works, but somebody must check it now. It does not affect readiness.
    pub fn alarm(&self, reason: impl Into<Cow<'static, str>>) {
        self.set(Status::Alarm, reason.into());
    }

    #[cfg(test)]
    pub fn status(&self) -> Status {
        lock(&self.0.state).status
    }

    fn set(&self, status: Status, mut reason: Cow<'static, str>) {
        if reason.len() > MAX_REASON {
            let end = (0..=MAX_REASON).rev().find(|end| reason.is_char_boundary(*end)).unwrap_or(0);
            reason.to_mut().truncate(end);
        }
        let mut state = lock(&self.0.state);
        if state.status == status && state.reason == reason {
            return;
        }
        if state.status != status {
            state.since = self.0.clock.now();
        }
        state.status = status;
        state.reason = reason;
        let state = state.clone();
        let name = &*self.0.name;
        match status {
            Status::Starting | Status::Ok => tracing::info!(component = name, "component is healthy"),
            Status::Degraded => tracing::warn!(component = name, reason = %state.reason, "component is degraded"),
            Status::Failed => tracing::error!(component = name, reason = %state.reason, "component has failed"),
            Status::Alarm => tracing::error!(component = name, reason = %state.reason, "component raises an alarm"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn health() -> (Health, Clock) {
        let clock = Clock::manual(Timestamp::from_secs(1_700_000_000));
        (Health::new(clock.clone()), clock)
    }

    #[test]
    fn only_what_gates_decides_readiness() {
        for (gate, status, ready) in [
            (Gate::Readiness, Status::Starting, false),
            (Gate::Readiness, Status::Failed, false),
            (Gate::Readiness, Status::Degraded, true),
            (Gate::Readiness, Status::Alarm, true),
            (Gate::Readiness, Status::Ok, true),
            (Gate::Report, Status::Starting, true),
            (Gate::Report, Status::Failed, true),
        ] {
            let (health, _) = health();
            health.component("listener", Gate::Readiness).ok();
            let component = health.component("issuer/corp", gate);
            component.set(status, "why".into());
            assert_eq!(health.is_ready(), ready, "{gate:?} {status:?}");
            let report = health.report();
            assert_eq!((report.ready, report.components[0].status), (ready, status));
        }
    }

    #[test]
    fn a_component_is_forgotten_with_its_last_handle_and_taken_over_before() {
        let (health, _) = health();
        let old = health.component("issuer/corp", Gate::Readiness);
        old.failed("unreachable");
        let new = health.component("issuer/corp", Gate::Readiness);
        drop(old);
        assert_eq!(new.status(), Status::Failed);
        assert!(!health.is_ready());
        drop(new);
        assert!(health.is_ready());
        assert!(health.report().components.is_empty());
    }

    #[test]
    fn draining_is_not_ready_and_reasons_are_bounded() {
        let (health, clock) = health();
        let component = health.component("store", Gate::Readiness);
        component.ok();
        clock.advance(Duration::from_secs(1));
        component.degraded("é".repeat(MAX_REASON));
        let report = health.report();
        assert_eq!(report.components[0].reason.len(), MAX_REASON);
        assert_eq!(report.components[0].since, "2023-11-14T22:13:21.000Z");
        health.drain();
        assert!(!health.is_ready() && !health.report().ready);
    }
}
