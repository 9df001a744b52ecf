//! The operator command for generated token keys.

use serde_json::{Value, json};

use super::App;
use crate::{
    admin::socket::{Command, CommandError},
    sts::RingError,
};

/// Drops keys that can no longer be unsealed. The key task generates others if the configuration has none, and records
/// each of them in the trail.
pub async fn drop_unusable(app: &App, command: &Command) -> Result<Value, CommandError> {
    let snapshot = app.snapshot.load_full();
    let dropped = app.key_storage(&snapshot).drop_unusable(app.clock.now()).await.map_err(|error| match error {
        RingError::Store(error) => {
            let unknown = "it is not known whether the keys of tokens were dropped";
            CommandError::write("nothing was dropped", unknown, &error, app.store.is_shared())
        }
        error => CommandError::new(format!("nothing was dropped: {error}")).help("try again"),
    })?;
    if !dropped {
        return Err(CommandError::new("nothing was dropped: the store has no keys of tokens that cannot be used"));
    }
    tracing::warn!(who = command.who, why = command.why, "keys of tokens that could not be used were dropped");
    Ok(json!({"dropped": true}))
}
