use std::sync::Arc;

use super::*;
use crate::{
    sessions::KeyRing,
    store::{Embedded, Expect, Store, Table},
    webhooks::WebhookMetrics,
};

fn held(delivery: &str) -> Held {
    serde_json::from_value(json!({
        "webhook": "hub", "route": "hub", "delivery": delivery, "request": uuid::Uuid::nil(), "size": 1, "received": 0,
        "span": 1, "until": 1, "tries": 0, "refusals": 0, "next": 0, "policy": "policy",
    }))
    .unwrap()
}

#[test]
fn an_unreadable_delivery_does_not_block_the_others() {
    let id = |number: u8| HeldId::new([number; 32]);
    let held = held("d-1");
    let corrupt = || Err(StoreError::Corrupt("junk".to_owned()));
    let mut all = Tally::of(1, true);
    assert!(all.count((&id(1), &held), Ok(true)).is_continue());
    let one = all.answer(Act::Retry).unwrap();
    let named = json!({"id": id(1).to_string(), "request": uuid::Uuid::nil(), "delivery": "d-1"});
    assert_eq!(
        one,
        Done { answer: json!({"retried": 1, "deliveries": [named]}), deliveries: Some(vec![recorded(&held)]) }
    );

    let mut all = Tally::of(8, true);
    assert!(all.count((&id(1), &held), Ok(true)).is_continue());
    assert!(all.count((&id(2), &held), corrupt()).is_continue());
    assert!(all.count((&id(3), &held), Ok(false)).is_continue(), "gone meanwhile");
    assert!(all.count((&id(4), &held), Ok(true)).is_continue());
    assert!(all.count((&id(5), &held), Err(StoreError::Timeout)).is_break(), "the others would not fare better");
    let error = all.answer(Act::Retry).unwrap_err();
    let said = &error.message;
    assert!(said.starts_with("2 held deliveries are tried at once; it failed for 2: "), "{said}");
    assert!(said.ends_with("; 3 were not tried"), "{said}");
    assert!([2, 5].iter().all(|number| said.contains(&id(*number).to_string())), "{said}");
    let help = error.help.unwrap();
    assert!(help.contains("hooks drop") && help.contains("the store"), "{help}");
    assert_eq!(error.deliveries.unwrap(), [recorded(&held), recorded(&held)], "the trail names what was done");

    for (came, helps) in [(corrupt(), "hooks drop"), (Err(StoreError::Timeout), "check the store")] {
        let mut all = Tally::of(1, true);
        let _ = all.count((&id(1), &held), came);
        let error = all.answer(Act::Retry).unwrap_err();
        assert!(!error.message.contains("not tried"), "{error}");
        let help = error.help.unwrap();
        assert!(help.contains(helps) && !help.contains(';'), "{help}");
    }
}

/// An operator who freed space in a store that was full, or answered late, was told that held deliveries cannot be
/// looked up, or that it failed.
#[test]
fn a_delivery_that_may_have_been_dropped_is_reported_as_such() {
    let held = held("d-1");
    let full = StoreError::Full("OOM".to_owned());
    for (error, is_shared, is_known) in [
        (StoreError::Timeout, true, false),
        (StoreError::Unavailable("away".to_owned()), true, false),
        (full.clone(), false, false),
        (full, true, true),
    ] {
        let one = undropped(&error, is_shared);
        let expected =
            if is_known { "nothing was dropped: " } else { "it is not known whether the delivery was dropped: " };
        assert!(one.message.starts_with(expected), "{one}");
        let mut all = Tally::of(1, is_shared);
        assert!(all.count((&HeldId::new([1; 32]), &held), Err(error)).is_break());
        let many = all.answer(Act::Drop).unwrap_err();
        assert_ne!(many.message.ends_with("(it may have happened nonetheless)"), is_known, "{many}");
    }
}

#[test]
fn an_answer_about_many_names_some_and_the_trail_all() {
    let held = held("d-1");
    let mut all = Tally::of(MOST + 1, true);
    for _ in 0..=MOST {
        assert!(all.count((&HeldId::new([1; 32]), &held), Ok(true)).is_continue());
    }
    let done = all.answer(Act::Drop).unwrap();
    assert_eq!(done.answer["dropped"], MOST + 1);
    assert_eq!(done.answer["deliveries"].as_array().unwrap().len(), MOST);
    assert_eq!(done.deliveries.unwrap().len(), MOST + 1);
}

/// `show` and `retry` reported that no such delivery is held.
#[tokio::test]
async fn an_unreadable_delivery_is_reported_if_its_full_id_is_given() {
    let folder = tempfile::tempdir().unwrap();
    let store: Store = Arc::new(Embedded::open(&folder.path().join("store.redb")).unwrap());
    let queue = Queue::new(Arc::clone(&store), &KeyRing::of(&[[1; 32]]), WebhookMetrics::default());
    let (id, now) = (HeldId::new([1; 32]), Timestamp::from_secs(1_700_000_000));
    let junk = b"junk".to_vec();
    store.put(Table::Held, id.as_bytes(), junk, Timestamp::MAX, Expect::Any, now).await.unwrap();
    let find = async |id: String| find(&queue, &One { id }, LEAST_DIGITS, now).await.unwrap_err();
    let unreadable = find(id.to_string()).await;
    assert!(unreadable.message.starts_with("the delivery cannot be read: "), "{unreadable}");
    assert!(unreadable.help.unwrap().contains("hooks drop"));
    for other in [HeldId::new([2; 32]).to_string(), id.to_string()[..32].to_owned()] {
        assert_eq!(find(other).await, gone());
    }
}

#[test]
fn a_command_names_one_delivery_or_says_which_of_many() {
    let chosen = |arguments: Value| {
        let (command, who, why) = ("retry-hook".to_owned(), "alice".to_owned(), "drill".to_owned());
        Chosen::of(&Command { command, who, why, arguments }).map_err(|error| error.message)
    };
    assert!(matches!(chosen(json!({"id": "1"})), Ok(Chosen::One(One { id })) if id == "1"));
    let many = chosen(json!({"webhook": "hub", "parked": true}));
    assert!(matches!(many, Ok(Chosen::Many(Which { webhook: Some(name), parked: true })) if name == "hub"));
    for (arguments, said) in [(json!({"id": 1}), "expected a string"), (json!({"parked": 1}), "expected a boolean")] {
        let error = chosen(arguments).unwrap_err();
        assert!(error.contains(said), "{error}");
    }
}

#[test]
fn the_id_of_a_sender_is_distinguished_from_that_of_a_held_delivery() {
    let held = held("145ebc3a-1");
    let all = [(HeldId::new([7; 32]), held)];
    let told = called_by_its_sender("145ebc3a-1", &all).unwrap();
    assert!(told.message.contains("`145ebc3a-1` is the id that the sender gave"), "{told:?}");
    assert_eq!(told.help.unwrap(), format!("write `{}`", all[0].0));
    assert!(called_by_its_sender("145ebc3a", &all).is_none());
}

#[test]
fn a_beginning_that_could_be_a_mistake_names_no_delivery() {
    for short in ["", "1", "abc", "0123456"] {
        let refused = check_id(short, LEAST_DIGITS).unwrap_err();
        assert!(refused.message.contains(&format!("`{short}` is too short")), "{refused:?}");
        assert!(refused.help.unwrap().starts_with("write 8 digits"), "{short}");
    }
    check_id("01234567", LEAST_DIGITS).unwrap();
    check_id(&"0".repeat(64), LEAST_DIGITS).unwrap();
    check_id("1", 1).unwrap();
    check_id("", 1).unwrap_err();
}

#[test]
fn a_sender_of_another_name_than_any_is_refused_with_the_nearest() {
    let check = |name, configured: &[&'static str]| {
        check_sender(name, configured.iter().copied()).map_err(|error| (error.message, error.help.unwrap()))
    };
    check("github", &["gitlab", "github"]).unwrap();
    let unknown = "there is no sender `githbu`".to_owned();
    let asked = "did you mean `github`?".to_owned();
    assert_eq!(check("githbu", &["gitlab", "github"]), Err((unknown.clone(), asked)));
    assert_eq!(check("githbu", &["shop"]), Err((unknown, "known: shop".to_owned())));
    assert!(check("", &[]).unwrap_err().1.starts_with("no sender is configured"));
}
