//! Slack.

use super::{Bodies, Field, Media, NOTHING_ELSE, Sender, Stated, stating};
use crate::{
    config::{
        raw::{HmacAlgorithm, SignatureEncoding},
        values::{Size, Span},
    },
    webhooks::signature::{Form, Timed},
};

/// Slash commands and interactions with buttons and dialogs, which are forms, and the Events API:
/// <https://docs.slack.dev/authentication/verifying-requests-from-slack>.
pub(super) static SLACK: Sender = Sender {
    label: Some("slack"),
    media: &[Media::Json, Media::Form],
    media_fix: NOTHING_ELSE,
    max_body: Size::kib(512),
    // Its timeout is 3 s.
    answer_within: Span::from_millis(2500),
    forms: |_| {
        vec![Form::Body {
            header: http::HeaderName::from_static("x-slack-signature"),
            prefix: "v0=".into(),
            algorithm: HmacAlgorithm::Sha256,
            encoding: SignatureEncoding::Hex,
            timestamp: Some(Timed {
                header: http::HeaderName::from_static("x-slack-request-timestamp"),
                before: "v0:",
                after: ":",
            }),
        }]
    },
    pings: &["url_verification", "ssl_check"],
    facts: &[
        // A retry is signed again, with the same id in its body.
        (Field::Delivery, &["/event_id", "/trigger_id", "/payload/trigger_id"]),
        (Field::FormKind, &["/command", "/payload", "/ssl_check"]),
        (Field::FormPing, &["/ssl_check"]),
        // What makes a form one comes first, as it could have a field `type` too.
        (Field::Event, &["/command", "/payload/type", "/event/type", "/type"]),
        // The app's name for its button, shortcut or dialog.
        (Field::Action, &["/payload/actions/*/action_id", "/payload/callback_id", "/payload/view/callback_id"]),
        (Field::Actions, &["/payload/actions"]),
        // Events for an app of a whole organization may have no team.
        (Field::Owner, &["/team_id", "/payload/team/id", "/payload/user/team_id"]),
        (Field::Actor, &["/user_name", "/payload/user/username", "/payload/user/name"]),
        // Some events have an object for the user there.
        (Field::ActorId, &["/event/user/id", "/event/user", "/user_id", "/payload/user/id"]),
        (Field::Challenge, &["/challenge"]),
    ],
    passes: &["x-slack-request-timestamp", "x-slack-signature", "x-slack-retry-num", "x-slack-retry-reason"],
    ..stating(Stated { counts_refusals: false, bodies: Bodies::Unique, id_required: false, text_ids: true })
};
