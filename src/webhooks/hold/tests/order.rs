//! The order of a lane that several replicas store for.

use super::*;

/// While it brings the first, the next comes to another replica and the one after it to this one.
struct Meanwhile {
    here: Fixture,
    there: Fixture,
    seen: Mutex<Vec<String>>,
}

impl Carrier for Meanwhile {
    async fn bring(&self, _: HeldId, held: &Held, _: HeldRequest) -> Brought {
        self.seen.lock().unwrap().push(held.delivery.to_string());
        if &*held.delivery == "1" {
            self.there.keep("hub", "7", "2").await.unwrap();
            self.here.keep("hub", "7", "3").await.unwrap();
        }
        Brought::Taken(None)
    }
}

/// It knew of its own at once, and of the other's half a second later.
#[tokio::test]
async fn what_another_replica_stored_before_is_not_overtaken() {
    let store = MemoryStore::shared();
    let nothing = || Fixture::new(&store, |_| panic!("another brings"));
    let (here, mut same) = (nothing(), nothing());
    same.queue = here.queue.clone();
    let carrier = Arc::new(Meanwhile { here: same, there: nothing(), seen: Mutex::default() });
    for queue in [&here.queue, &carrier.there.queue] {
        queue.set_doubt(None);
    }
    here.keep("hub", "7", "1").await.unwrap();
    tokio::spawn(run(here.queue.clone(), Arc::clone(&carrier), here.clock.clone(), Duration::ZERO, here.stop.clone()));
    here.until("brought", async || carrier.seen.lock().unwrap().len() == 3).await;
    assert_eq!(*carrier.seen.lock().unwrap(), ["1", "2", "3"]);
}
