//! The store.

use tokio::runtime::Handle;

use super::{Check, Doctor, Finding};
use crate::{
    clock::Clock,
    config::resolver::folder_of,
    store::{Backend, Durability, Embedded, Examined, OpenError, Redis, Settings, StoreError, clock_trouble},
};

pub(super) async fn examine(doctor: &Doctor<'_>) -> Vec<Finding> {
    match &doctor.resolved.store {
        Some(Settings::Redis(settings)) => {
            let store = Redis::new((**settings).clone(), Handle::current());
            redis(&store, doctor.resolved.routes().hold(), &doctor.clock).await
        }
        Some(Settings::Embedded) => vec![embedded(doctor)],
        None => Vec::new(),
    }
}

async fn redis(redis: &Redis, holds: bool, clock: &Clock) -> Vec<Finding> {
    let subject = "Redis";
    let durability = match redis.durability().await {
        Ok(durability) => durability,
        Err(error) => {
            let fix = "check `store.redis`, and whether it can be reached from here; without it no session, delivery \
                       or revocation is known, and all of them are refused";
            return vec![Finding::fault(Check::Store, subject, error.to_string(), fix)];
        }
    };
    if let Err(error) = redis.ping().await {
        let fix = match error {
            StoreError::Full(_) => "give Redis more memory (`maxmemory`), or find out what else fills it",
            _ => {
                "point `store.redis` at a server that accepts writes, a master with free disk space, as a user with all rights that it needs"
            }
        };
        let message = format!("it answers but accepts no writes: {error}");
        return vec![Finding::fault(Check::Store, subject, message, fix)];
    }
    let mut findings = match durability {
        Durability::Lossy(why) if holds => {
            vec![Finding::fault(Check::Store, subject, why, "or set `hold: false` for all senders (docs/webhooks.md)")]
        }
        Durability::Lossy(_) | Durability::Synced => {
            let copied = if redis.has_replica() { "a replica follows it" } else { "no replica follows it" };
            vec![Finding::good(Check::Store, subject, format!("it answers and accepts writes; {copied}"))]
        }
    };
    for warning in redis.warnings().await.unwrap_or_default() {
        findings.push(Finding::warning(Check::Store, subject, warning, "see docs/store.md"));
    }
    if let Some(trouble) = redis.clock_ahead(clock).await.ok().and_then(clock_trouble) {
        findings.push(Finding::warning(Check::Store, subject, trouble, "compare `date` here with `TIME` of Redis"));
    }
    findings
}

fn embedded(doctor: &Doctor<'_>) -> Finding {
    let path = folder_of(&doctor.loaded.path).join(&doctor.raw().store.path);
    let subject = format!("store {}", path.display());
    // The first start fills an empty file.
    if std::fs::metadata(&path).map_or(true, |file| file.len() == 0) {
        return Finding::good(Check::Store, &subject, "it does not exist yet; the first start creates it");
    }
    match Embedded::examine(&path) {
        Ok(Examined::Good) => Finding::good(Check::Store, &subject, "it can be opened"),
        Ok(Examined::NotClosed) => Finding::warning(
            Check::Store,
            &subject,
            "it was not closed properly, as after a crash",
            "start Doorward: it checks and repairs the file, and refuses one that is damaged",
        ),
        Err(OpenError::Locked(_)) => Finding::good(Check::Store, &subject, "a running Doorward has it open"),
        // The error says what to do.
        Err(error @ (OpenError::Corrupt { .. } | OpenError::Format { .. })) => {
            Finding::fault(Check::Store, &subject, error.to_string(), "")
        }
        Err(error @ (OpenError::Io { .. } | OpenError::Thread(_))) => Finding::fault(
            Check::Store,
            &subject,
            error.to_string(),
            "run this as the user that Doorward runs as, and check the file",
        ),
    }
}
