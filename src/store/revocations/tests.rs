use super::{list::RevokedWhat, *};
use crate::store::{Embedded, disturbed::Disturbed};

struct Fixture {
    store: Store,
    clock: Clock,
    _folder: tempfile::TempDir,
}

fn fixture() -> Fixture {
    let folder = tempfile::tempdir().unwrap();
    let store: Store = Arc::new(Embedded::open(&folder.path().join("store.redb")).unwrap());
    Fixture { store, clock: Clock::manual(Timestamp::from_secs(1_700_000_000)), _folder: folder }
}

fn named(name: &str, identifier: &str) -> Named {
    Named { name: name.into(), identifier: identifier.into() }
}

fn session(id: &str) -> CredentialId {
    CredentialId::Session(id.into())
}

#[tokio::test]
async fn a_revocation_applies_here_at_once_and_elsewhere_after_a_refresh() {
    let at = fixture();
    let here = Revocations::new(Arc::clone(&at.store), at.clock.clone());
    let elsewhere = Revocations::new(Arc::clone(&at.store), at.clock.clone());
    let until = at.clock.now() + Duration::from_secs(60);
    here.revoke(Target::Session("s"), "signed out", until).await.unwrap();
    here.revoke(Target::Principal { issuer: "corp", subject: "bob" }, "left", until).await.unwrap();
    here.revoke(Target::Token { issuer: "corp", id: "t-1" }, "leaked", until).await.unwrap();
    assert_eq!(&*here.find(&session("s"), "corp", "alice").unwrap().reason, "signed out");
    assert_eq!(elsewhere.find(&session("s"), "corp", "alice"), None);
    elsewhere.refresh().await.unwrap();
    for (credential, issuer, subject, revoked) in [
        (session("s"), "corp", "alice", true),
        (session("t"), "corp", "alice", false),
        (CredentialId::Token("s".into()), "corp", "alice", false),
        (CredentialId::Token("t-1".into()), "corp", "alice", true),
        // Another issuer may use the same id.
        (CredentialId::Token("t-1".into()), "other", "alice", false),
        (session("t"), "corp", "bob", true),
        (session("t"), "other", "bob", false),
        (CredentialId::None, "corp", "bob", true),
    ] {
        assert_eq!(elsewhere.find(&credential, issuer, subject).is_some(), revoked, "{credential} {issuer} {subject}");
    }
}

/// Each write and each sweep of streams that a repeated revocation would cost is wasted.
#[tokio::test]
async fn a_target_revoked_by_all_names_for_as_long_is_not_revoked_again() {
    let at = fixture();
    let here = Revocations::new(Arc::clone(&at.store), at.clock.clone());
    let until = at.clock.now() + Duration::from_secs(60);
    let token = Target::Token { issuer: "corp", id: "t-1" };
    assert!(!here.is_revoked_until(token, until));
    here.revoke(token, "leaked", until).await.unwrap();
    assert!(here.is_revoked_until(token, until) && !here.is_revoked_until(token, until + Duration::from_secs(1)));
    for other in [Target::Token { issuer: "other", id: "t-1" }, Target::Session("t-1"), Target::Workload("t-1")] {
        assert!(!here.is_revoked_until(other, until), "{other:?}");
    }
    // Its issuer now has one more name, under which the revocation is not stored yet.
    here.know(&[named("own", "corp")]);
    assert!(!here.is_revoked_until(token, until));
    here.revoke(token, "leaked", until).await.unwrap();
    assert!(here.is_revoked_until(token, until));
}

/// Token holders could revoke so many that each further revocation blocked its worker for tens of milliseconds.
#[tokio::test]
async fn a_revocation_copies_few_of_those_that_are_known_however_many_there_are() {
    let at = fixture();
    let here = Revocations::new(Arc::clone(&at.store), at.clock.clone());
    let until = at.clock.now() + Duration::from_secs(60);
    let ids: Vec<String> = (0..20_000).map(|number| number.to_string()).collect();
    let tokens = || ids.iter().map(|id| Target::Token { issuer: "corp", id });
    let revocation = Revocation { reason: "leaked".into(), until, kept: until };
    here.learn(tokens().map(|target| Record::of(What::from(target), revocation.clone())));
    let before = here.0.mirror.load_full();
    here.revoke(Target::Token { issuer: "corp", id: "one more" }, "leaked", until).await.unwrap();
    let after = here.0.mirror.load_full();
    assert!(here.is_revoked_until(Target::Token { issuer: "corp", id: "one more" }, until));
    let is_shared = |target: &Target<'_>| {
        let (before, after) = (before.get(*target).unwrap(), after.get(*target).unwrap());
        std::ptr::eq(before, after)
    };
    let copied = ids.len() - tokens().filter(is_shared).count();
    assert!(copied <= 64, "{copied}");
}

/// Each sweep took the lock and walked through all entries, while revocations on workers waited.
#[tokio::test]
async fn a_look_that_finds_nothing_new_and_nothing_over_leaves_the_copy_as_it_is() {
    let at = fixture();
    let here = Revocations::new(Arc::clone(&at.store), at.clock.clone());
    let until = at.clock.now() + Duration::from_secs(60);
    here.revoke(Target::Session("s"), "signed out", until).await.unwrap();
    here.refresh().await.unwrap();
    let before = here.0.mirror.load_full();
    here.refresh().await.unwrap();
    assert!(Arc::ptr_eq(&before, &here.0.mirror.load_full()));
    at.clock.set(until);
    here.refresh().await.unwrap();
    assert!(here.0.empty.load(Ordering::Acquire));
}

/// Regression: such a revocation was stored for an hour, while its holder could get and revoke further tokens every few
/// minutes.
#[tokio::test]
async fn a_revocation_by_the_holder_is_kept_until_the_token_expires_and_can_be_undone() {
    let at = fixture();
    let here = Revocations::new(Arc::clone(&at.store), at.clock.clone());
    let elsewhere = Revocations::new(Arc::clone(&at.store), at.clock.clone());
    let until = at.clock.now() + Duration::from_secs(600);
    let token = |id| Target::Token { issuer: "corp", id };
    here.revoke_for_holder(token("over"), "its holder has done with it", until).await.unwrap();
    here.revoke_for_holder(token("mistaken"), "its holder has done with it", until).await.unwrap();
    elsewhere.refresh().await.unwrap();
    assert!(elsewhere.is_revoked_until(token("over"), until) && elsewhere.is_revoked_until(token("mistaken"), until));
    let is_known = |of: &Revocations, id| of.0.mirror.load().get(token(id)).is_some();
    // A replica that polls late reads the revocation that lifts it.
    here.revoke(token("mistaken"), "it is needed", at.clock.now() + Duration::from_secs(1)).await.unwrap();
    at.clock.advance(Duration::from_secs(2));
    elsewhere.refresh().await.unwrap();
    let mistaken = CredentialId::Token("mistaken".into());
    assert!(elsewhere.find(&mistaken, "corp", "alice").is_none() && is_known(&elsewhere, "mistaken"));
    at.clock.set(until);
    for of in [&here, &elsewhere] {
        of.refresh().await.unwrap();
        assert!(!is_known(of, "over") && is_known(of, "mistaken"));
    }
}

#[tokio::test]
async fn targets_revoked_together_have_their_own_reason_and_end() {
    let at = fixture();
    let here = Revocations::new(Arc::clone(&at.store), at.clock.clone());
    let elsewhere = Revocations::new(Arc::clone(&at.store), at.clock.clone());
    let until = at.clock.now() + Duration::from_secs(60);
    let (of, later) = (Target::Workload, until + Duration::from_secs(60));
    here.revoke_all(&[(of("a"), "it has ended", until), (of("b"), "it was deleted", later)]).await.unwrap();
    elsewhere.refresh().await.unwrap();
    for known in [&here, &elsewhere] {
        assert_eq!(known.workload("a"), Some(Revocation { reason: "it has ended".into(), until, kept: until }));
        let deleted = Revocation { reason: "it was deleted".into(), until: later, kept: later };
        assert_eq!(known.workload("b"), Some(deleted));
    }
}

#[tokio::test]
async fn a_local_revocation_holds_until_the_store_has_it_and_no_longer_than_its_lifetime() {
    let at = fixture();
    let here = Revocations::new(Arc::clone(&at.store), at.clock.clone());
    let until = at.clock.now() + Duration::from_secs(60);
    let end = || here.end_here([("c/pod".to_owned(), "it has ended")], until);
    assert!(end() && !end(), "it is told once");
    assert_eq!(&*here.workload("c/pod").unwrap().reason, "it has ended");
    assert!(here.workload("c/other").is_none() && !here.has_stored("c/pod"));
    here.refresh().await.unwrap();
    assert!(here.workload("c/pod").is_some(), "though the store knows nothing of it");
    here.revoke(Target::Workload("c/pod"), "it has ended", until).await.unwrap();
    assert!(here.has_stored("c/pod") && !end());
    at.clock.advance(Duration::from_secs(60));
    assert!(!here.has_stored("c/pod"), "though the copy still has it");
    here.refresh().await.unwrap();
    assert!(here.workload("c/pod").is_none() && !here.has_stored("c/pod"));
}

/// A new credential helps only in the first case.
#[tokio::test]
async fn a_revoked_credential_is_distinguished_from_a_revoked_holder() {
    let at = fixture();
    let here = Revocations::new(Arc::clone(&at.store), at.clock.clone());
    let until = at.clock.now() + Duration::from_secs(60);
    for target in [
        Target::Token { issuer: "corp", id: "t-1" },
        Target::Session("s"),
        Target::Workload("u"),
        Target::Principal { issuer: "corp", subject: "bob" },
    ] {
        here.revoke(target, "leaked", until).await.unwrap();
    }
    let of = |subject: &str, credential: CredentialId| Principal {
        credential,
        ..Principal::new(crate::authn::Scheme::Bearer, "corp", subject, "name")
    };
    let token = |id: &str| CredentialId::Token(id.into());
    let bob = || KnownAs { issuer: "corp".into(), subject: "bob".into() };
    for (row, principal, revoked) in [
        ("nothing", of("alice", token("t-2")), None),
        ("the token", of("alice", token("t-1")), Some(Revoked::Credential)),
        ("the session", of("alice", session("s")), Some(Revoked::Credential)),
        (
            "the run",
            Principal { lives_with: [Arc::<str>::from("u")].into(), ..of("alice", token("t-2")) },
            Some(Revoked::Credential),
        ),
        ("the holder", of("bob", token("t-2")), Some(Revoked::Holder)),
        ("the holder and the token", of("bob", token("t-1")), Some(Revoked::Holder)),
        (
            "for whom it acts",
            Principal { on_behalf_of: Some(Box::new(bob())), ..of("alice", token("t-2")) },
            Some(Revoked::Holder),
        ),
        ("who acts for it", Principal { acting: [bob()].into(), ..of("alice", token("t-2")) }, Some(Revoked::Holder)),
    ] {
        assert_eq!(here.revoked(&principal), revoked, "{row}");
    }
}

#[tokio::test]
async fn the_end_of_a_workload_ends_all_its_tokens_and_no_others() {
    let at = fixture();
    let here = Revocations::new(Arc::clone(&at.store), at.clock.clone());
    let elsewhere = Revocations::new(Arc::clone(&at.store), at.clock.clone());
    let of_run = |uid: Option<&str>| Principal {
        lives_with: uid.map(|_| "pod".into()).into_iter().chain(uid.map(Into::into)).collect(),
        ..Principal::new(crate::authn::Scheme::Bearer, "doorward", "alice", "alice")
    };
    here.revoke(Target::Workload("u"), "the run has ended", at.clock.now() + Duration::from_secs(60)).await.unwrap();
    elsewhere.refresh().await.unwrap();
    for known in [&here, &elsewhere] {
        assert!(known.is_revoked(&of_run(Some("u"))).is_some());
        assert!(known.is_revoked(&of_run(Some("v"))).is_none());
        assert!(known.is_revoked(&of_run(None)).is_none());
    }
    at.clock.advance(Duration::from_secs(60));
    assert!(here.is_revoked(&of_run(Some("u"))).is_none());
    here.refresh().await.unwrap();
    assert!(here.0.empty.load(Ordering::Acquire));
}

/// It was refused from then on, and what somebody had exchanged it for was not.
#[tokio::test]
async fn the_revocation_of_a_token_ends_those_that_it_was_exchanged_for() {
    let at = fixture();
    let revocations = Revocations::new(Arc::clone(&at.store), at.clock.clone());
    revocations.know(&[named("corp", "https://corp.test")]);
    let of = |issuer: &str, id: &str| Principal {
        credential: CredentialId::Token("new".into()),
        exchanged: [("own", "first"), (issuer, id)]
            .map(|(issuer, id)| KnownToken { issuer: issuer.into(), id: id.into() })
            .into(),
        ..Principal::new(crate::authn::Scheme::Bearer, "own", "alice", "alice")
    };
    let until = at.clock.now() + Duration::from_secs(60);
    revocations.revoke(Target::Token { issuer: "corp", id: "leaked" }, "leaked", until).await.unwrap();
    assert!(revocations.is_revoked(&of("corp", "leaked")).is_some());
    assert!(revocations.is_revoked(&of("https://corp.test", "leaked")).is_some());
    for (issuer, id) in [("corp", "other"), ("partner", "leaked")] {
        assert!(revocations.is_revoked(&of(issuer, id)).is_none(), "{issuer} {id}");
    }
    at.clock.advance(Duration::from_secs(60));
    assert!(revocations.is_revoked(&of("corp", "leaked")).is_none());
}

#[tokio::test]
async fn a_revocation_ends_at_its_time() {
    let at = fixture();
    let revocations = Revocations::new(Arc::clone(&at.store), at.clock.clone());
    let until = at.clock.now() + Duration::from_secs(60);
    revocations.revoke(Target::Session("s"), "signed out", until).await.unwrap();
    at.clock.advance(Duration::from_millis(59_999));
    assert!(revocations.find(&session("s"), "", "").is_some());
    at.clock.advance(Duration::from_millis(1));
    assert!(revocations.find(&session("s"), "", "").is_none());
    revocations.refresh().await.unwrap();
    assert!(revocations.0.empty.load(Ordering::Acquire));
}

#[tokio::test]
async fn a_later_revocation_of_the_same_target_replaces_the_earlier() {
    let at = fixture();
    let revocations = Revocations::new(Arc::clone(&at.store), at.clock.clone());
    revocations.know(&[named("corp", "https://corp.test")]);
    let bob = Target::Principal { issuer: "corp", subject: "bob" };
    let hour = at.clock.now() + Duration::from_secs(3600);
    revocations.revoke(bob, "lost laptop", hour).await.unwrap();
    revocations.revoke(Target::Token { issuer: "corp", id: "t" }, "leaked", hour).await.unwrap();
    let listed = |revocations: &Revocations| serde_json::to_value(revocations.list()).unwrap();
    let token = serde_json::json!({"issuer": "corp", "token_id": "t", "why": "leaked", "until": hour.to_string()});
    let person =
        serde_json::json!({"issuer": "corp", "subject": "bob", "why": "lost laptop", "until": hour.to_string()});
    assert_eq!(listed(&revocations), serde_json::json!([person, token]));
    revocations.revoke(bob, "found again", at.clock.now() + Duration::from_secs(1)).await.unwrap();
    at.clock.advance(Duration::from_secs(1));
    assert_eq!(listed(&revocations), serde_json::json!([token]));
    assert!(revocations.find(&CredentialId::None, "corp", "bob").is_none());
}

/// The list was empty, or old, and looked like one of nobody else.
#[tokio::test]
async fn revocations_that_cannot_be_read_are_not_listed_as_none() {
    let at = fixture();
    let elsewhere = Revocations::new(Arc::clone(&at.store), at.clock.clone());
    let store = Arc::new(Disturbed::new(Arc::clone(&at.store)));
    let here = Revocations::new(Arc::clone(&store) as Store, at.clock.clone());
    let until = at.clock.now() + Duration::from_secs(60);
    for subject in ["bob", "carol"] {
        elsewhere.revoke(Target::Principal { issuer: "corp", subject }, "left", until).await.unwrap();
        store.fails.store(true, Ordering::SeqCst);
        assert!(matches!(here.read_list().await, Err(StoreError::Timeout)), "{subject}");
        store.fails.store(false, Ordering::SeqCst);
        let listed = here.read_list().await.unwrap();
        assert!(listed.iter().any(|revoked| revoked.what == RevokedWhat::Subject(subject.into())), "{subject}");
    }
}

/// The replica enforced its own one until it was restarted, and lifted what another replica had revoked since.
#[tokio::test]
async fn a_later_change_by_another_replica_wins_over_an_own_earlier_one_that_arrives_late() {
    let at = fixture();
    let new = || Revocations::new(Arc::clone(&at.store), at.clock.clone());
    let (here, elsewhere) = (new(), new());
    let bob = Target::Principal { issuer: "corp", subject: "bob" };
    let until = at.clock.now() + Duration::from_secs(60);
    // A write by `here` whose response is still on its way.
    new().revoke(bob, "found again", until).await.unwrap();
    let written =
        at.store.changes(Table::Revocations, 0, PAGE, at.clock.now()).await.unwrap().remove(0).stored.unwrap();
    elsewhere.revoke(bob, "left", until).await.unwrap();
    here.refresh().await.unwrap();
    let own = (serde_json::from_slice(&written.value).unwrap(), written.expires);
    here.learn_own(vec![own], &[written.version]);
    here.refresh().await.unwrap();
    assert_eq!(&*here.find(&CredentialId::None, "corp", "bob").unwrap().reason, "left");
}

/// The record of the later revocation had expired when such a replica polled, so that it enforced the earlier one for a
/// month.
#[tokio::test]
async fn an_undone_revocation_is_undone_at_replicas_whose_clock_is_ahead_or_that_read_late() {
    let seconds = Duration::from_secs;
    for (row, span, ahead, late) in [
        ("its clock is ahead", 1, 5, 0),
        ("it looks late", 1, 0, 60),
        ("it looks later than anything is kept that replaces nothing", 1, 0, 7200),
        ("the later word ends at once", 0, 0, 0),
    ] {
        let at = fixture();
        let there = Clock::manual(at.clock.now() + seconds(ahead));
        let here = Revocations::new(Arc::clone(&at.store), at.clock.clone());
        let elsewhere = Revocations::new(Arc::clone(&at.store), there.clone());
        let bob = Target::Principal { issuer: "corp", subject: "bob" };
        let token = Target::Token { issuer: "corp", id: "t-1" };
        let is_revoked = |of: &Revocations, id: &str, subject: &str| {
            of.find(&CredentialId::Token(id.into()), "corp", subject).is_some()
        };
        let month = at.clock.now() + seconds(30 * 86_400);
        here.revoke_all(&[(bob, "left", month), (token, "leaked", month)]).await.unwrap();
        elsewhere.refresh().await.unwrap();
        assert!(is_revoked(&elsewhere, "x", "bob") && is_revoked(&elsewhere, "t-1", "alice"), "{row}");
        // Revoked twice, as the second one replaces the replacement.
        for _ in 0..2 {
            let until = at.clock.now() + seconds(span);
            here.revoke_all(&[(bob, "back again", until), (token, "a mistake", until)]).await.unwrap();
        }
        at.clock.advance(seconds(late + 1));
        there.advance(seconds(late + 1));
        elsewhere.refresh().await.unwrap();
        for of in [&here, &elsewhere] {
            assert!(!is_revoked(of, "x", "bob") && !is_revoked(of, "t-1", "alice"), "{row}");
            assert_eq!(of.list(), [], "{row}");
        }
        // It is stored no longer than the one that it replaces.
        for (of, clock) in [(&here, &at.clock), (&elsewhere, &there)] {
            clock.set(month);
            of.refresh().await.unwrap();
            assert!(of.0.empty.load(Ordering::Acquire), "{row}");
        }
    }
}

#[tokio::test]
async fn the_age_of_the_copy_grows_while_the_store_is_away() {
    let at = fixture();
    let revocations = Revocations::new(Arc::clone(&at.store), at.clock.clone());
    assert_eq!(revocations.mirror_age(), Duration::MAX);
    revocations.refresh().await.unwrap();
    assert_eq!(revocations.mirror_age(), Duration::ZERO);
    at.clock.advance(Duration::from_secs(61));
    assert_eq!(revocations.mirror_age(), Duration::from_secs(61));
}

#[tokio::test]
async fn tokens_are_refused_while_the_copy_is_older_than_allowed() {
    let at = fixture();
    let revocations = Revocations::new(Arc::clone(&at.store), at.clock.clone());
    let refused = || revocations.check_fresh(Duration::from_secs(60)).err().map(|rejection| rejection.reason());
    let unknown = Some(Reason::StoreUnavailable);
    assert_eq!(refused(), unknown, "nothing was read yet");
    revocations.refresh().await.unwrap();
    assert_eq!(refused(), None);
    at.clock.advance(Duration::from_secs(60));
    assert_eq!(refused(), None);
    at.clock.advance(Duration::from_secs(1));
    assert_eq!(refused(), unknown);
}

/// Regression: the copy looked fresh for as long as the clock was set back, so bearer routes were served without
/// knowing who is revoked.
#[tokio::test]
async fn the_copy_becomes_stale_even_if_the_clock_is_set_back() {
    let at = fixture();
    let revocations = Revocations::new(Arc::clone(&at.store), at.clock.clone());
    revocations.refresh().await.unwrap();
    at.clock.set(at.clock.now() - Duration::from_secs(3600));
    at.clock.advance(Duration::from_secs(61));
    assert_eq!(revocations.mirror_age(), Duration::from_secs(61));
    // And it is fresh again once it was renewed, although the clock shows an earlier time.
    revocations.refresh().await.unwrap();
    assert_eq!(revocations.mirror_age(), Duration::ZERO);
    at.clock.advance(Duration::from_secs(61));
    assert_eq!(revocations.mirror_age(), Duration::from_secs(61));
}

/// Regression: after a night in which the machine slept, the copy looked as young as before.
#[tokio::test]
async fn the_copy_grows_old_while_the_machine_is_suspended() {
    let at = fixture();
    let revocations = Revocations::new(Arc::clone(&at.store), at.clock.clone());
    revocations.refresh().await.unwrap();
    // Only the wall clock shows that time.
    at.clock.set(at.clock.now() + Duration::from_secs(3600));
    assert_eq!(revocations.mirror_age(), Duration::from_secs(3600));
}

/// A clock that was ahead for one renewal removed it from the copy, and nothing read it again.
#[tokio::test]
async fn a_revocation_expired_by_a_fast_clock_applies_again_once_the_clock_is_right() {
    let at = fixture();
    let right = at.clock.now();
    let until = right + Duration::from_secs(86_400);
    let bob = Target::Principal { issuer: "corp", subject: "bob" };
    let known = Revocations::new(Arc::clone(&at.store), at.clock.clone());
    known.revoke(bob, "left", until).await.unwrap();
    known.refresh().await.unwrap();
    let new = Revocations::new(Arc::clone(&at.store), at.clock.clone());
    at.clock.set(until + Duration::from_secs(86_400));
    for revocations in [&known, &new] {
        revocations.refresh().await.unwrap();
        assert!(revocations.0.empty.load(Ordering::Acquire));
    }
    // Writes meanwhile must not remove it from the store either.
    known.revoke(Target::Session("s"), "signed out", Timestamp::MAX).await.unwrap();
    at.clock.set(right);
    for revocations in [&known, &new] {
        revocations.refresh().await.unwrap();
        assert!(revocations.find(&CredentialId::None, "corp", "bob").is_some());
    }
}

#[tokio::test]
async fn more_than_a_page_of_revocations_is_followed() {
    let at = fixture();
    let here = Revocations::new(Arc::clone(&at.store), at.clock.clone());
    let until = at.clock.now() + Duration::from_secs(60);
    let writes = (0..PAGE + 5).map(|number| {
        let here = here.clone();
        tokio::spawn(async move {
            here.revoke(Target::Session(&number.to_string()), "test", until).await.unwrap();
        })
    });
    for write in writes.collect::<Vec<_>>() {
        write.await.unwrap();
    }
    let elsewhere = Revocations::new(Arc::clone(&at.store), at.clock.clone());
    elsewhere.refresh().await.unwrap();
    assert_eq!(elsewhere.0.mirror.load().sessions.iter().count(), PAGE + 5);
}

/// A reload that added or renamed the entry for our own tokens made revoked tokens valid again.
#[tokio::test]
async fn revoked_own_tokens_stay_revoked_whatever_the_name_of_their_issuer() {
    let at = fixture();
    let new = || Revocations::new(Arc::clone(&at.store), at.clock.clone());
    let until = at.clock.now() + Duration::from_secs(60);
    let here = new();
    // As stored by a replica whose configuration lacks this issuer.
    new().revoke(Target::Token { issuer: "entry", id: "old" }, "leaked", until).await.unwrap();
    let identifier: Arc<str> = "https://door.test".into();
    here.know(&[named(&identifier, &identifier)]);
    here.revoke(Target::Token { issuer: &identifier, id: "before" }, "leaked", until).await.unwrap();
    here.know(&[named("entry", &identifier)]);
    here.revoke(Target::Token { issuer: "entry", id: "with" }, "leaked", until).await.unwrap();
    here.revoke(Target::Principal { issuer: "entry", subject: "bob" }, "left", until).await.unwrap();
    here.refresh().await.unwrap();
    let restarted = new();
    restarted.refresh().await.unwrap();
    restarted.know(&[named("renamed", &identifier)]);
    let token = |id: &str| CredentialId::Token(id.into());
    for (credential, subject, lasts) in [
        (token("before"), "alice", true),
        (token("with"), "alice", true),
        (token("x"), "bob", true),
        (token("old"), "alice", false),
    ] {
        for issuer in ["entry", &identifier] {
            assert!(here.find(&credential, issuer, subject).is_some(), "{credential} {issuer}");
        }
        assert_eq!(restarted.find(&credential, "renamed", subject).is_some(), lasts, "{credential} after a restart");
        assert!(here.find(&credential, "corp", subject).is_none(), "{credential} of another issuer");
    }
    assert!(here.find(&token("x"), "entry", "alice").is_none());
    // A stream that began before the reload has the former name.
    here.know(&[named("renamed", &identifier)]);
    here.revoke(Target::Token { issuer: "renamed", id: "after" }, "leaked", until).await.unwrap();
    assert!(here.find(&token("after"), "entry", "alice").is_some());
    let listed: Vec<_> = here.list().into_iter().map(|revoked| (revoked.issuer, revoked.what)).collect();
    let tokens = ["after", "before", "old", "with"].map(|id| RevokedWhat::TokenId(id.into()));
    let all = [RevokedWhat::Subject("bob".into())].into_iter().chain(tokens);
    assert_eq!(listed, all.map(|what| ("renamed".into(), what)).collect::<Vec<_>>());
    // A later revocation applies to all names.
    let now = at.clock.now() + Duration::from_secs(1);
    here.revoke(Target::Principal { issuer: "renamed", subject: "bob" }, "back again", now).await.unwrap();
    at.clock.advance(Duration::from_secs(1));
    assert!(here.find(&CredentialId::None, "entry", "bob").is_none());
}

/// Two entries that swapped their names, or one that took a former name, would have shared their revocations.
#[tokio::test]
async fn a_former_name_of_the_own_issuer_that_another_has_now_revokes_nobody_there() {
    let at = fixture();
    let until = at.clock.now() + Duration::from_secs(60);
    let identifier: Arc<str> = "https://door.test".into();
    let own = |name: &'static str| Some(named(name, &identifier));
    for (row, own, others, own_name, former_is_own) in [
        ("another has it", own("renamed"), &["corp", "entry"][..], "renamed", false),
        ("nobody has it", own("renamed"), &["corp"], "renamed", true),
        ("another has it, and no tokens are issued", None, &["corp", "entry"], &*identifier, false),
        ("nobody has it, and no tokens are issued", None, &["corp"], &*identifier, true),
    ] {
        let revocations = Revocations::new(Arc::clone(&at.store), at.clock.clone());
        revocations.know(&[named("entry", &identifier), named("corp", "https://corp.test")]);
        let others = others.iter().map(|name| named(name, &format!("https://{name}.test")));
        revocations.know(&others.chain(own).collect::<Vec<_>>());
        let is_revoked = |issuer: &str, subject: &str| revocations.find(&CredentialId::None, issuer, subject).is_some();
        revocations.revoke(Target::Principal { issuer: own_name, subject: "ours" }, "left", until).await.unwrap();
        assert!(is_revoked(own_name, "ours") && is_revoked(&identifier, "ours"), "{row}");
        assert_eq!(is_revoked("entry", "ours"), former_is_own, "{row}");
        revocations.revoke(Target::Principal { issuer: "entry", subject: "theirs" }, "left", until).await.unwrap();
        assert!(is_revoked("entry", "theirs"), "{row}");
        assert_eq!(is_revoked(own_name, "theirs"), former_is_own, "{row}");
        let listed =
            revocations.list().iter().filter(|revoked| revoked.what == RevokedWhat::Subject("theirs".into())).count();
        assert_eq!(listed, 1, "{row}");
    }
}

/// Revoked people got in again when the entry of their provider was renamed, also if they had been revoked before it
/// was configured.
#[tokio::test]
async fn revocations_of_any_issuer_survive_a_renaming_of_its_entry() {
    let at = fixture();
    let new = || Revocations::new(Arc::clone(&at.store), at.clock.clone());
    let until = at.clock.now() + Duration::from_secs(60);
    let of = |issuer, subject| Target::Principal { issuer, subject };
    let identifier = "https://corp.test";
    // As stored by a replica whose configuration lacks this issuer.
    new().revoke(of("corp", "bob"), "left", until).await.unwrap();
    let before = new();
    before.know(&[named("corp", identifier)]);
    before.revoke(of("corp", "eve"), "left", until).await.unwrap();
    before.refresh().await.unwrap();
    before.keep_by_all_names().await.unwrap();
    let after = new();
    after.know(&[named("corp-sso", identifier), named("other", "https://other.test")]);
    after.refresh().await.unwrap();
    for subject in ["bob", "eve"] {
        assert!(after.find(&CredentialId::None, "corp-sso", subject).is_some(), "{subject}");
        assert!(after.find(&CredentialId::None, "other", subject).is_none(), "{subject}");
    }
    let listed: Vec<_> = after.list().into_iter().map(|revoked| (revoked.issuer, revoked.meets_nobody)).collect();
    assert_eq!(listed, [("corp-sso".into(), false), ("corp-sso".into(), false)]);
    // If it is lifted, it is lifted under all names.
    after.revoke(of("corp-sso", "bob"), "back again", at.clock.now() + Duration::from_secs(1)).await.unwrap();
    assert!(after.list().iter().all(|revoked| !revoked.meets_nobody), "not under the former name either");
    at.clock.advance(Duration::from_secs(1));
    after.refresh().await.unwrap();
    after.keep_by_all_names().await.unwrap();
    assert!(after.find(&CredentialId::None, "corp-sso", "bob").is_none());
}

/// A sender of webhooks is identified by nothing but its name.
#[tokio::test]
async fn a_revocation_of_a_renamed_sender_is_listed_as_without_effect() {
    let at = fixture();
    let (revocations, until) =
        (Revocations::new(Arc::clone(&at.store), at.clock.clone()), at.clock.now() + Duration::from_secs(60));
    let sender = |name: &str| [named(name, name)];
    let meets_nobody = || revocations.list().iter().map(|revoked| revoked.meets_nobody).collect::<Vec<_>>();
    revocations.know(&sender("webhook:github"));
    let target = Target::Principal { issuer: "webhook:github", subject: "webhook:github:repo:1" };
    revocations.revoke(target, "abused", until).await.unwrap();
    assert_eq!(meets_nobody(), [false]);
    revocations.know(&sender("webhook:gh"));
    assert_eq!(meets_nobody(), [true]);
    revocations.know(&sender("webhook:github"));
    assert_eq!(meets_nobody(), [false]);
}

/// A longer revocation by another issuer hid it.
#[tokio::test]
async fn a_revocation_without_effect_is_listed_even_if_another_issuer_has_the_same_name() {
    let at = fixture();
    let revocations = Revocations::new(Arc::clone(&at.store), at.clock.clone());
    let (gone, stays) = (named("gone", "https://gone.test"), named("stays", "https://stays.test"));
    revocations.know(&[gone, stays.clone()]);
    for (issuer, seconds) in [("gone", 60), ("stays", 120)] {
        let until = at.clock.now() + Duration::from_secs(seconds);
        revocations.revoke(Target::Principal { issuer, subject: "builder" }, "leaked", until).await.unwrap();
    }
    revocations.know(&[stays]);
    let listed: Vec<_> = revocations.list().into_iter().map(|revoked| (revoked.issuer, revoked.meets_nobody)).collect();
    assert_eq!(listed, [("gone".into(), true), ("stays".into(), false)]);
    for (issuer, subject, is_told) in [("gone", "builder", true), ("gone", "other", false), ("stays", "builder", false)]
    {
        assert_eq!(revocations.meets_nobody(Target::Principal { issuer, subject }), is_told, "{issuer}: {subject}");
    }
}
