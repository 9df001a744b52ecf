//! Senders that are described by how they sign, not by their vendor. Each entry of the configuration is a sender of its
//! own.

use super::{Bodies, Field, Media, Sender, Setting, Stated, stating};
use crate::{
    config::raw,
    webhooks::signature::{Form, Key, SVIX, Timed, WEBHOOK},
};

/// <https://www.standardwebhooks.com>, also with the header names of Svix. The body is plain JSON or a complete
/// CloudEvent (such as CDEvents).
pub(super) static STANDARD_WEBHOOKS: Sender = Sender {
    media: &[Media::Json, Media::CloudEvent],
    forms: |_| vec![Form::StandardWebhooks(&WEBHOOK), Form::StandardWebhooks(&SVIX)],
    key: |_, secret| match (secret.strip_prefix(b"whsec_"), secret.strip_prefix(b"whpk_")) {
        (Some(encoded), _) => Key::standard(encoded),
        (_, Some(encoded)) => Key::ed25519(encoded),
        _ => Err("begins neither with `whsec_` nor with `whpk_`"),
    },
    bodies: Bodies::Unique,
    facts: &[(Field::Event, &["/type"])],
    takes: &[Setting::Facts],
    passes: &["webhook-id", "webhook-timestamp", "webhook-signature", "svix-id", "svix-timestamp", "svix-signature"],
    ..GENERIC
};

/// Any sender that puts an HMAC of the body, or the secret itself, into a header.
pub(super) static ANY: Sender = GENERIC;

const GENERIC: Sender = Sender {
    media: &[Media::Json, Media::OtherJson],
    // The header names were checked when the configuration was resolved.
    forms: |webhook| webhook.signature.iter().filter_map(form).collect(),
    key: |webhook, secret| match &webhook.signature {
        Some(signature) if signature.plain => Ok(Key::token(secret)),
        signature => {
            let algorithm = signature.as_ref().and_then(|signature| signature.algorithm);
            Ok(Key::mac(algorithm.unwrap_or_default(), secret))
        }
    },
    takes: &[Setting::Signature, Setting::Facts],
    ..stating(Stated { counts_refusals: false, bodies: Bodies::Any, id_required: true, text_ids: true })
};

fn form(signature: &raw::GenericSignature) -> Option<Form> {
    let header = signature.header.parse().ok()?;
    let prefix = signature.prefix.as_str().into();
    if signature.plain {
        return Some(Form::Token { header, prefix });
    }
    let timestamp = match &signature.timestamp_header {
        Some(header) => Some(Timed { header: header.parse().ok()?, before: "", after: "." }),
        None => None,
    };
    Some(Form::Body {
        header,
        prefix,
        algorithm: signature.algorithm.unwrap_or_default(),
        encoding: signature.encoding.unwrap_or_default(),
        timestamp,
    })
}
