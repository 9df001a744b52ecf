use super::*;
use crate::webhooks::testing::MemoryStore;

const NOW: Timestamp = Timestamp::from_secs(1_700_000_000);

fn event(text: &str) -> EventId {
    EventId::parse(text).unwrap()
}

fn delivery(once: &str) -> Named {
    Named { once: once.into(), until: None }
}

/// Parses `EVENT@ATTEMPT`.
fn named(text: &str) -> TriedEvent {
    let (event, attempt) = text.split_once('@').unwrap();
    TriedEvent { event: EventId::parse(event).unwrap(), attempt: attempt.into() }
}

#[test]
fn an_event_id_is_taken_only_where_it_could_label_a_run() {
    for (text, good) in [("a-1", true), ("", false), ("a b", false), (&*"x".repeat(64), false), ("é", false)] {
        assert_eq!(EventId::parse(text).is_some(), good, "{text:?}");
    }
}

#[tokio::test]
async fn each_trigger_is_of_one_event_over_all_tries() {
    let replay = Replay::new(MemoryStore::shared());
    let ask = async |trigger, text| replay.bind_event(&delivery("d"), trigger, &named(text), NOW).await.unwrap();
    assert_eq!(ask("a", "e1@1").await, Bound::Ours);
    assert_eq!(ask("a", "e1@1").await, Bound::Ours, "asked twice");
    // The answer was lost, or the process died before the next Trigger asked.
    assert_eq!(ask("a", "e2@2").await, Bound::Others(event("e1")));
    assert_eq!(ask("b", "e2@2").await, Bound::Ours, "it had made no run");
    let confirmed = replay.confirm_event(&delivery("d"), &named("e2@2"), NOW).await.unwrap();
    assert_eq!(confirmed.false_one, None, "that is no alarm");
    assert_eq!(confirmed, replay.leave_open(&delivery("d"), "3", NOW).await.unwrap());
    assert_eq!(ask("a", "e2@2").await, Bound::Others(event("e1")));
    assert!(confirmed.bound.len() == 2 && confirmed.bound.contains(&event("e1")), "{confirmed:?}");
    let other = replay.bind_event(&delivery("other"), "a", &named("e3@3"), NOW).await.unwrap();
    assert_eq!(other, Bound::Ours, "another delivery");
}

#[tokio::test]
async fn attacks_z46_within_a_try_the_event_listeners_own_answer_decides() {
    let replay = Replay::new(MemoryStore::shared());
    let ask = async |trigger, text| replay.bind_event(&delivery("d"), trigger, &named(text), NOW).await.unwrap();
    assert_eq!(ask("a", "false@1").await, Bound::Ours);
    assert_eq!(ask("a", "true@1").await, Bound::Disputed(event("false")));
    let confirmed = replay.confirm_event(&delivery("d"), &named("true@1"), NOW).await.unwrap();
    assert_eq!((confirmed.false_one, confirmed.bound), (Some(event("false")), vec![]), "nothing is caused by that");
    assert_eq!(ask("a", "true@1").await, Bound::Ours);
    assert_eq!(ask("a", "false@1").await, Bound::Others(event("true")));
    assert_eq!(ask("b", "false@1").await, Bound::Others(event("true")), "not even for another Trigger");
    assert_eq!(ask("b", "true@1").await, Bound::Ours);
}

/// The genuine question was disputed, was about another Trigger, or came after the attempt.
#[tokio::test]
async fn attacks_z46_a_false_event_of_an_attempt_with_a_lost_answer_loses_no_run() {
    for (row, in_the_try, afterwards) in [
        ("the same Trigger", &[("a", "false@1"), ("a", "true@1")][..], &[][..]),
        ("another Trigger", &[("a", "false@1"), ("b", "true@1")], &[]),
        ("too late", &[("a", "false@1")], &[("a", "true@1")]),
        ("who was false asked later", &[("a", "true@1"), ("a", "false@1")], &[]),
    ] {
        let replay = Replay::new(MemoryStore::shared());
        let ask = async |trigger, text| replay.bind_event(&delivery("d"), trigger, &named(text), NOW).await.unwrap();
        for (trigger, text) in in_the_try {
            ask(trigger, text).await;
        }
        let left = replay.leave_open(&delivery("d"), "1", NOW).await.unwrap();
        assert_eq!(left.false_one.is_some(), afterwards.is_empty(), "{row}: an alarm");
        assert_eq!(
            left.bound.is_empty(),
            left.false_one.is_some(),
            "{row}: nobody caused what a stranger may have named"
        );
        for (trigger, text) in afterwards {
            assert_eq!(ask(trigger, text).await, Bound::Disputed(event("false")), "{row}");
        }
        assert_eq!(ask("a", "next@2").await, Bound::Ours, "{row}");
        assert_eq!(replay.confirm_event(&delivery("d"), &named("next@2"), NOW).await.unwrap().false_one, None, "{row}");
        assert_eq!(ask("a", "third@3").await, Bound::Others(event("next")), "{row}");
    }
}

/// Its run may exist, and was certainly the caller's.
#[tokio::test]
async fn attacks_z46_a_dispute_takes_nothing_from_the_event_of_an_earlier_try() {
    let replay = Replay::new(MemoryStore::shared());
    let ask = async |trigger, text| replay.bind_event(&delivery("d"), trigger, &named(text), NOW).await.unwrap();
    assert_eq!(ask("a", "e1@1").await, Bound::Ours);
    assert_eq!(replay.leave_open(&delivery("d"), "1", NOW).await.unwrap().bound, [event("e1")]);
    ask("b", "false@2").await;
    ask("b", "e2@2").await;
    let left = replay.leave_open(&delivery("d"), "2", NOW).await.unwrap();
    assert_eq!((left.false_one, left.bound), (Some(event("false")), vec![event("e1")]));
}

#[tokio::test]
async fn a_dispute_does_not_remove_the_answer_of_the_event_listener() {
    let replay = Replay::new(MemoryStore::shared());
    let ask = async |text| replay.bind_event(&delivery("d"), "a", &named(text), NOW).await.unwrap();
    assert_eq!(ask("true@1").await, Bound::Ours);
    assert_eq!(ask("false@1").await, Bound::Disputed(event("true")));
    replay.confirm_event(&delivery("d"), &named("true@1"), NOW).await.unwrap();
    assert_eq!(ask("e2@2").await, Bound::Others(event("true")));
    // The dispute was written after that.
    let disputed = Binding { disputed: true, ..Binding::new(&named("true@1")) };
    let later = named("e3@3");
    assert!(!disputed.is_open(&later, Some(&named("true@1"))));
    assert!(disputed.is_open(&later, Some(&named("e2@2"))) && disputed.is_open(&later, None));
}

/// Otherwise the Trigger would be bound to an event that nobody disputes, and the genuine question would be refused.
#[tokio::test]
async fn attacks_z46_an_older_assertion_takes_nothing_that_a_later_try_disputes() {
    for is_answered in [true, false] {
        let replay = Replay::new(MemoryStore::shared());
        let ask = async |text| replay.bind_event(&delivery("d"), "a", &named(text), NOW).await.unwrap();
        assert_eq!(ask("false@2").await, Bound::Ours);
        assert_eq!(ask("other@2").await, Bound::Disputed(event("false")));
        assert_eq!(ask("older@1").await, Bound::Others(event("false")));
        assert_eq!(ask("e2@2").await, Bound::Disputed(event("false")));
        if is_answered {
            let confirmed = replay.confirm_event(&delivery("d"), &named("e2@2"), NOW).await.unwrap();
            assert_eq!(confirmed.false_one, Some(event("false")));
            assert_eq!(ask("e2@2").await, Bound::Ours);
        } else {
            assert!(replay.leave_open(&delivery("d"), "2", NOW).await.unwrap().false_one.is_some());
            assert_eq!(ask("older@1").await, Bound::Others(event("false")));
            assert_eq!(ask("e3@3").await, Bound::Ours);
        }
    }
}

/// Somebody who asks about Triggers that do not exist must not stop those that do.
#[tokio::test]
async fn attacks_z46_beyond_the_most_triggers_a_run_is_made_rather_than_lost() {
    let replay = Replay::new(MemoryStore::shared());
    let ask = async |trigger: &str, text| replay.bind_event(&delivery("d"), trigger, &named(text), NOW).await.unwrap();
    let names = (0..).map(|number| format!("t{number}")).filter(|name| key_of("d", name) == key_of("d", "a"));
    for name in names.take(MAX_TRIGGERS) {
        assert_eq!(ask(&name, "true@1").await, Bound::Ours);
    }
    assert_eq!(ask("a", "true@1").await, Bound::Unnoted);
    assert_eq!(ask("a", "false@1").await, Bound::Disputed(event("true")));
    replay.confirm_event(&delivery("d"), &named("true@1"), NOW).await.unwrap();
    assert_eq!(ask("a", "true@1").await, Bound::Unnoted);
    assert_eq!(ask("a", "false@1").await, Bound::Others(event("true")), "what is answered needs no room");
}

#[tokio::test]
async fn attacks_z46_using_up_all_room_does_not_give_a_run_for_each_event() {
    for is_answered in [true, false] {
        let replay = Replay::new(MemoryStore::shared());
        let ask =
            async |trigger: &str, text| replay.bind_event(&delivery("d"), trigger, &named(text), NOW).await.unwrap();
        let names = (0..).map(|number| format!("t{number}")).filter(|name| key_of("d", name) == key_of("d", "a"));
        for name in names.take(MAX_TRIGGERS) {
            assert_eq!(ask(&name, "false@1").await, Bound::Ours);
        }
        assert_eq!(ask("a", "true@1").await, Bound::Disputed(event("false")));
        if is_answered {
            replay.confirm_event(&delivery("d"), &named("true@1"), NOW).await.unwrap();
            assert_eq!(ask("a", "true@1").await, Bound::Ours, "there is room again");
        } else {
            let left = replay.leave_open(&delivery("d"), "1", NOW).await.unwrap();
            assert_eq!(left.false_one, Some(event("false")), "an alarm");
            assert_eq!(ask("a", "next@2").await, Bound::Unnoted);
        }
    }
}

#[tokio::test]
async fn a_bound_event_lives_as_long_as_its_delivery_may_be_retried() {
    let replay = Replay::new(MemoryStore::shared());
    let late = NOW + KEPT + Duration::from_secs(1);
    let ask = async |once, text, now| replay.bind_event(&delivery(once), "a", &named(text), now).await.unwrap();
    for once in ["d", "e"] {
        ask(once, "e1@1", NOW).await;
    }
    replay.keep_events("d", Duration::from_secs(86_400), NOW).await.unwrap();
    replay.keep_events("none", Duration::from_secs(86_400), NOW).await.unwrap();
    assert_eq!(ask("d", "e2@2", late).await, Bound::Others(event("e1")));
    assert_eq!(ask("e", "e2@2", late).await, Bound::Ours, "the twin that nothing kept");
}

/// A sender without ids sends the same body every night, and is remembered for an hour.
#[tokio::test]
async fn a_delivery_that_is_new_again_is_another_to_its_triggers() {
    let replay = Replay::new(MemoryStore::shared());
    let window = Duration::from_secs(3600);
    let ask = async |text, asserted: Timestamp, now| {
        let delivery = Named { until: Some(asserted + window), ..delivery("d") };
        replay.bind_event(&delivery, "a", &named(text), now).await.unwrap()
    };
    let (second, late) = (Duration::from_secs(1), NOW + window - Duration::from_secs(1));
    assert_eq!(ask("e1@1", NOW, NOW + second).await, Bound::Ours);
    let known = Named { until: Some(NOW + window), ..delivery("d") };
    replay.confirm_event(&known, &named("e1@1"), NOW + second).await.unwrap();
    assert_eq!(ask("e2@2", late, late).await, Bound::Others(event("e1")), "a late try of the same");
    assert_eq!(ask("e3@3", NOW + window, NOW + window).await, Bound::Ours);
}

#[tokio::test]
async fn a_late_question_does_not_shorten_a_longer_retention() {
    let replay = Replay::new(MemoryStore::shared());
    let ask =
        async |trigger: &str, text, now| replay.bind_event(&delivery("d"), trigger, &named(text), now).await.unwrap();
    ask("a", "e1@1", NOW).await;
    replay.keep_events("d", Duration::from_secs(86_400), NOW).await.unwrap();
    // In the same record.
    let same = (0..).map(|number| format!("t{number}")).find(|name| key_of("d", name) == key_of("d", "a")).unwrap();
    ask(&same, "e1@1", NOW).await;
    let late = NOW + KEPT + Duration::from_secs(1);
    assert_eq!(ask("a", "e2@2", late).await, Bound::Others(event("e1")));
}
