//! Amazon SNS, by which CodeCommit and others send notifications.

use super::{Bodies, Events, Field, Media, Sender, Setting, Stated, stating};
use crate::{config::values::Size, webhooks::signature::Form};

/// <https://docs.aws.amazon.com/sns/latest/dg/http-subscription-confirmation-json.html>. The proof is in the message;
/// there is no secret. The facts are those of its `Message`, as CodeCommit writes them.
pub(super) static AWS_SNS: Sender = Sender {
    label: Some("aws-sns"),
    media: &[Media::Text, Media::Json],
    media_fix: "take `headerContentType` out of the delivery policy of the topic and the subscription, or set it to application/json",
    max_body: Size::kib(512),
    forms: |_| vec![Form::Message],
    key: |_, _| Err("is of no use: SNS signs with a certificate"),
    id_headers: &["x-amz-sns-message-id"],
    events: Events::Within { header: "x-amz-sns-message-type" },
    pushes: &["ReferenceChanges"],
    facts: &[
        (Field::Repository, &["/Records/*/eventSourceARN"]),
        (Field::Event, &["/Records/*/eventName"]),
        (Field::Ref, &["/Records/*/codecommit/references/*/ref"]),
        (Field::Changes, &["/Records", "/Records/*/codecommit/references"]),
        (Field::Commit, &["/Records/*/codecommit/references/*/commit"]),
        (Field::Actor, &["/Records/*/userIdentityARN"]),
    ],
    takes: &[Setting::Facts],
    passes: &["x-amz-sns-message-type", "x-amz-sns-message-id", "x-amz-sns-topic-arn", "x-amz-sns-subscription-arn"],
    ..stating(Stated { counts_refusals: false, bodies: Bodies::Unique, id_required: false, text_ids: true })
};
