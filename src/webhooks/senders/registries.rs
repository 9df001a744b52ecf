//! Container registries. They sign nothing: anybody who knows the secret can send anything.

use super::{Bodies, Field, NOTHING_ELSE, Sender, Stated, stating};
use crate::webhooks::signature::{Form, Key};

/// The configured secret is the exact value of `Authorization`:
/// <https://goharbor.io/docs/main/working-with-projects/project-configuration/configure-webhooks/>.
pub(super) static HARBOR: Sender = Sender {
    label: Some("harbor"),
    media_fix: "set the payload format of the policy to Default; its CloudEvents are signed by nobody",
    forms: |_| vec![Form::token("authorization")],
    facts: &[
        (Field::Event, &["/type"]),
        (Field::Repository, &["/event_data/repository/repo_full_name"]),
        (Field::Owner, &["/event_data/repository/namespace"]),
        (Field::Tag, &["/event_data/resources/*/tag"]),
        (Field::Changes, &["/event_data/resources"]),
        (Field::Actor, &["/operator"]),
    ],
    ..COMMON
};

/// It only proves that it knows the URL, which therefore contains a secret as `?secret=`:
/// <https://docs.docker.com/docker-hub/repos/manage/webhooks/>.
pub(super) static DOCKER_HUB: Sender = Sender {
    label: Some("docker-hub"),
    forms: |_| vec![Form::Query("secret")],
    facts: &[
        (Field::Repository, &["/repository/repo_name"]),
        (Field::Owner, &["/repository/namespace"]),
        (Field::Tag, &["/push_data/tag"]),
        (Field::Actor, &["/push_data/pusher"]),
    ],
    ..COMMON
};

const COMMON: Sender = Sender {
    media_fix: NOTHING_ELSE,
    key: |_, secret| Ok(Key::token(secret)),
    ..stating(Stated { counts_refusals: false, bodies: Bodies::Unique, id_required: false, text_ids: false })
};
