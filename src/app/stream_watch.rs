//! Rechecks of open streams against the current configuration and facts, whenever these change.

use std::{
    borrow::Cow,
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex},
    time::Duration,
};

use futures_util::{StreamExt, stream};
use tokio::time::Instant;

use super::App;
use crate::{
    authn::{CredentialId, Principal, Scheme},
    clock::{Moment, Timestamp, every},
    error::Reason,
    issuers::LONGEST_ISSUER_PAUSE,
    lock::lock,
    request::route::{Route, Target},
    sessions::Ended,
    snapshot::Snapshot,
    streams::{CheckedStream, CutReason, Stream, VouchedToken},
};

impl App {
    /// Returns why the generation in force would refuse the stream if it began now; `None` if it would not.
    pub fn refusal_of(&self, stream: &Stream) -> Option<CutReason> {
        self.refusal_of_as(&stream.principal, stream)
    }

    /// Does the same with the current facts about its caller.
    fn refusal_of_as(&self, principal: &Principal, stream: &Stream) -> Option<CutReason> {
        let snapshot = self.snapshot.load();
        if let Some(why) = self.withdrawal_of(principal, &snapshot) {
            return Some(why);
        }
        let now = self.clock.now();
        let route = route_of(&snapshot, stream).filter(|route| route.schemes.contains(&principal.scheme));
        let Some(route) = route else { return Some(CutReason::PermissionLost) };
        let known = match principal.scheme {
            Scheme::Bearer => route.accepts.judge_again(principal).map(Cow::Owned),
            Scheme::BreakGlass => snapshot
                .break_glass
                .as_ref()
                .and_then(|break_glass| break_glass.judge_again(principal, now))
                .map(Cow::Owned),
            Scheme::Session => {
                let is_taken = route.accepts.takes_logins_at(&principal.issuer);
                snapshot.issuers.get(&principal.issuer).filter(|_| is_taken).map(|_| Cow::Borrowed(principal))
            }
            Scheme::Webhook | Scheme::Anonymous => Some(Cow::Borrowed(principal)),
        };
        let Some(principal) = known else { return Some(CutReason::PermissionLost) };
        let principal = &*principal;
        // The stream was forwarded under the name and groups of its start. A caller who now has another name, or lacks
        // one of the groups, may not continue under them. An additional group does no harm.
        let given = snapshot.policy.kubernetes_groups(principal).groups;
        let is_who_was_sent =
            principal.username == stream.principal.username && stream.groups.iter().all(|group| given.contains(group));
        let is_allowed = is_who_was_sent && snapshot.policy.decide(principal, &stream.view(now)).is_allow();
        (!is_allowed).then_some(CutReason::PermissionLost)
    }

    /// Returns the latest end of a stream under the generation in force, whose route may allow it less time than when
    /// it began.
    pub fn latest_end(&self, stream: &Stream) -> Option<Moment> {
        route_of(&self.snapshot.load(), stream).map(|route| stream.began + route.max_stream)
    }

    /// Returns why the credential of a caller is no longer valid, if it was withdrawn: by the caller, an operator, the
    /// issuer together with the key that signed it, or a reload that removed the cluster of its run.
    pub fn withdrawal_of(&self, principal: &Principal, snapshot: &Snapshot) -> Option<CutReason> {
        if let Some(end) = self.revocations.end_of_session(principal) {
            return Some(of_ended_session(&end.reason));
        }
        let is_revoked = self.revocations.is_revoked(principal).is_some()
            || snapshot.issuers.have_lost_key_of(principal)
            || snapshot.issuers.have_lost_run_of(principal);
        is_revoked.then_some(CutReason::Revoked)
    }

    /// Ends the streams of sessions that have ended, of tokens and people that are revoked, and of tokens whose key
    /// was withdrawn. Returns their number.
    pub fn close_revoked_streams(&self) -> usize {
        let snapshot = self.snapshot.load();
        self.streams.recheck(|stream| self.withdrawal_of(&stream.principal, &snapshot))
    }
}

/// Returns the reason for ending the streams of a session that ended for the reason `why`.
fn of_ended_session(why: &str) -> CutReason {
    let is = |reason: Ended| why == reason.as_str();
    if is(Ended::revoked) {
        CutReason::Revoked
    } else if is(Ended::replaced) || is(Ended::surplus) {
        CutReason::Replaced
    } else {
        CutReason::SignedOut
    }
}

/// Returns the route that now handles the request of a stream, if it has the same name and upstream: a route of that
/// name may now have other paths or another upstream.
fn route_of(snapshot: &Snapshot, Stream { request, .. }: &Stream) -> Option<Arc<Route>> {
    match snapshot.routes.find(&request.host, request.target.path(), &request.method) {
        Ok(Target::Upstream(route)) if route.name == request.route && route.upstream.place() == request.upstream => {
            Some(route)
        }
        _ => None,
    }
}

/// How often streams are checked against revocations and the keys of issuers.
const STREAM_TICK: Duration = Duration::from_millis(500);

/// How often streams are decided again under a policy whose decisions can change at any moment.
const CLOCK_TICK: Duration = Duration::from_secs(5);

/// Ends streams whose credential was revoked, or signed with a key that its issuer withdrew.
pub(super) async fn watch_streams(app: &App) {
    let mut tick = every(STREAM_TICK);
    loop {
        tick.tick().await;
        if !app.streams.is_empty() {
            app.close_revoked_streams();
        }
    }
}

/// Ends streams that a rule no longer allows because of the time: its hours are over, a login has become too old for
/// it, or its expression uses the time. It is a task of its own, as deciding all streams takes long and must not delay
/// revocations.
pub(super) async fn watch_decisions(app: &App) {
    let mut tick = every(STREAM_TICK);
    let mut looked = app.clock.now();
    let mut decided = Instant::now();
    loop {
        tick.tick().await;
        let now = app.clock.now();
        // Even if there is no stream: one that was decided before the boundary and begins after it must notice.
        let snapshot = app.snapshot.load_full();
        if may_decide_otherwise(looked, now, |from| snapshot.policy.next_change(from)) {
            app.streams.recheck_in_parts(|stream| app.refusal_of(stream)).await;
        }
        if decided.elapsed() >= CLOCK_TICK {
            decided = Instant::now();
            if snapshot.policy.follows_the_clock() {
                // Streams of sessions are decided in `watch_sessions`, with the current facts about the person.
                let may_change = |stream: &Stream| {
                    stream.principal.scheme != Scheme::Session
                        && snapshot.policy.follows_the_clock_on(&stream.request.route)
                };
                let refuses = |stream: &Stream| may_change(stream).then(|| app.refusal_of(stream)).flatten();
                app.streams.recheck_in_parts(refuses).await;
            }
        }
        looked = now;
    }
}

/// Whether rules may decide differently at `now` than at the last check. `next_change` returns the next time at which
/// they do so by themselves. A clock that was set back since then may also change the decision.
fn may_decide_otherwise(
    looked: Timestamp,
    now: Timestamp,
    next_change: impl FnOnce(Timestamp) -> Option<Timestamp>,
) -> bool {
    now < looked || next_change(looked).is_some_and(|boundary| boundary <= now)
}

/// How often issuers are asked about the tokens of open streams. Cached answers are used as long as for requests, so
/// most checks cause no call.
const TOKEN_TICK: Duration = Duration::from_secs(5);

/// Tokens that are checked concurrently.
const TOKENS_AT_ONCE: usize = 16;

/// How long a stream continues while its issuer cannot be asked.
const UNASKED: Duration = Duration::from_secs(300);

// While a circuit breaker is open, the issuer is not asked; a single failed probe must not be the only one in that
// time.
const _: () = assert!(UNASKED.as_secs() >= 4 * LONGEST_ISSUER_PAUSE.as_secs());

/// Ends streams whose token is no longer valid at its issuer, if that is asked about tokens: by introspection or
/// TokenReview.
pub(super) async fn watch_tokens(app: &Arc<App>) {
    let mut tick = every(TOKEN_TICK);
    loop {
        tick.tick().await;
        let look = async |checked: CheckedStream| {
            if let Some(why) = app.ends_at_issuer(checked.stream()).await {
                checked.cut(why);
            }
        };
        stream::iter(app.streams.with_tokens()).for_each_concurrent(TOKENS_AT_ONCE, look).await;
    }
}

impl App {
    /// Checks the token of a stream as for a new request. Returns why the stream is to end, if it is.
    async fn ends_at_issuer(&self, stream: &Stream) -> Option<CutReason> {
        let token = stream.token.as_ref()?;
        let snapshot = self.snapshot.load_full();
        let Some(route) = route_of(&snapshot, stream) else { return Some(CutReason::PermissionLost) };
        let text = token.text().expose_str()?;
        let now = self.clock.moment();
        match Box::pin(snapshot.issuers.authenticate(text, &route.accepts, &self.revocations)).await {
            Ok(principal) => {
                token.vouched_again(now);
                self.refusal_of_as(&principal, stream)
            }
            Err(rejection) => match rejection.reason() {
                // It may be valid. That is enough for a while, so that a provider can restart, but not for hours.
                Reason::IssuerUnavailable | Reason::Overloaded => {
                    is_unasked_too_long(token, now).then_some(CutReason::Expired)
                }
                Reason::TokenExpired => Some(CutReason::Expired),
                Reason::TokenInactive => Some(of_inactive(&stream.principal, now.wall())),
                Reason::TokenRevoked => Some(CutReason::Revoked),
                _ => Some(CutReason::PermissionLost),
            },
        }
    }
}

/// Whether the issuer of a stream could not be asked about its token for so long that the stream ends.
fn is_unasked_too_long(token: &VouchedToken, now: Moment) -> bool {
    now.since(token.vouched()) >= UNASKED
}

/// Returns the reason for ending the stream of a token that its issuer calls inactive, which applies to expired tokens
/// as well as to revoked ones.
fn of_inactive(principal: &Principal, now: Timestamp) -> CutReason {
    if principal.expires <= now { CutReason::Expired } else { CutReason::Revoked }
}

/// How often the sessions of open streams are checked. This is short compared with `sessions.recheck`, which is a
/// minute or more.
const SESSION_TICK: Duration = Duration::from_secs(5);

/// Sessions that are checked concurrently.
const SESSIONS_AT_ONCE: usize = 16;

/// Rechecks the sessions of open streams, and ends the streams of sessions that have ended or whose person may no
/// longer do what was requested.
pub(super) async fn watch_sessions(app: &App) {
    let mut tick = every(SESSION_TICK);
    // The person of each session at the last look-up.
    let known: Mutex<HashMap<Arc<str>, Arc<Principal>>> = Mutex::default();
    loop {
        tick.tick().await;
        let sessions = app.snapshot.load().sessions.clone();
        let open = app.streams.by_session();
        lock(&known).retain(|name, _| open.contains_key(name));
        let over: Mutex<HashSet<Arc<str>>> = Mutex::default();
        let look = async |(name, streams): (Arc<str>, Vec<CheckedStream>)| {
            let principal = match sessions.current(&name).await {
                Ok(Some(principal)) => {
                    lock(&known).insert(name, Arc::clone(&principal));
                    Some(principal)
                }
                Ok(None) => {
                    lock(&over).insert(name);
                    return;
                }
                // A store failure logs nobody out. But time passes, so rules are applied to the person of the last
                // look-up.
                Err(error) => {
                    tracing::debug!(%error, "the session of a stream was not looked up");
                    lock(&known).get(&name).cloned()
                }
            };
            for checked in &streams {
                let stream = checked.stream();
                if let Some(why) = app.refusal_of_as(principal.as_ref().unwrap_or(&stream.principal), stream) {
                    checked.cut(why);
                }
            }
        };
        stream::iter(open).for_each_concurrent(SESSIONS_AT_ONCE, look).await;
        let over = std::mem::take(&mut *lock(&over));
        if !over.is_empty() {
            // The end of a session is recorded before the session is removed, perhaps only a moment ago.
            drop(app.revocations.refresh().await);
            app.close_revoked_streams();
            let is_over = |stream: &Stream| match &stream.principal.credential {
                CredentialId::Session(name) => over.contains(name),
                _ => false,
            };
            app.streams.close_matching(is_over, CutReason::Expired);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{clock::Clock, config::resolver::Secret};

    #[test]
    fn a_stream_whose_issuer_is_down_lasts_five_minutes_even_if_the_clock_is_set_back() {
        let clock = Clock::manual(Timestamp::from_secs(1_700_000_000));
        let token = VouchedToken::new(Arc::new(Secret::new(b"opaque".to_vec())), clock.moment());
        clock.set(clock.now() - Duration::from_secs(3600));
        clock.advance(Duration::from_secs(299));
        assert!(!is_unasked_too_long(&token, clock.moment()));
        clock.advance(Duration::from_secs(1));
        assert!(is_unasked_too_long(&token, clock.moment()));
        token.vouched_again(clock.moment());
        assert!(!is_unasked_too_long(&token, clock.moment()));
    }

    /// A person who had stepped up in another tab, or signed in once more elsewhere, read that they had signed out.
    #[test]
    fn streams_of_a_session_that_a_later_login_replaced_are_not_called_signed_out() {
        for (why, reason) in [
            (Ended::replaced, CutReason::Replaced),
            (Ended::surplus, CutReason::Replaced),
            (Ended::signed_out, CutReason::SignedOut),
            (Ended::provider, CutReason::SignedOut),
            (Ended::revoked, CutReason::Revoked),
        ] {
            assert_eq!(of_ended_session(why.as_str()), reason, "{why:?}");
        }
    }

    /// An issuer calls both inactive, from the expiry of the token on, and some time before the stream ends by itself.
    #[test]
    fn a_token_that_has_expired_was_not_revoked() {
        let now = Timestamp::from_secs(1_700_000_000);
        for (expires, why) in [(now, CutReason::Expired), (now + Duration::from_secs(1), CutReason::Revoked)] {
            assert_eq!(of_inactive(&Principal { expires, ..Principal::anonymous() }, now), why);
        }
    }

    /// A stream that had been allowed while the clock was ahead continued in hours in which no rule allows it.
    #[test]
    fn streams_are_decided_again_at_the_boundaries_of_rules_and_when_the_clock_is_set_back() {
        let at = |seconds: i64| Timestamp::from_secs(1_700_000_000 + seconds);
        for (looked, now, boundary, expected) in [
            (0, 10, None, false),
            (0, 10, Some(11), false),
            (0, 10, Some(10), true),
            (10, 10, Some(20), false),
            (10, 9, Some(20), true),
            (10, 9, None, true),
        ] {
            let found = may_decide_otherwise(at(looked), at(now), |_| boundary.map(at));
            assert_eq!(found, expected, "{looked} {now} {boundary:?}");
        }
    }
}
