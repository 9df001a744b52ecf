//! Headers that no signature covers, and that are forwarded.

use super::*;

/// The EventListener got both values, or another than the one that was verified.
#[test]
fn a_forwarded_header_that_is_repeated_or_contradicts_a_verified_one_is_refused() {
    const KEY: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    const BASE64: &str = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=";
    let hex = "0".repeat(64);
    let prefixed = format!("sha256={hex}");
    let gitea = [("x-gitea-event", "push"), ("x-gitea-delivery", "1"), ("x-gitea-signature", hex.as_str())];
    let bitbucket = [("x-event-key", "repo:push"), ("x-request-uuid", "1"), ("x-hub-signature", prefixed.as_str())];
    let standard = [("webhook-id", "m1"), ("webhook-timestamp", "1"), ("webhook-signature", BASE64)];
    let svix = [("svix-id", "m1"), ("svix-timestamp", "1"), ("svix-signature", BASE64)];
    let both = [standard, svix].concat();
    let (twice, other) = (Some(Reason::CredentialAmbiguous), Some(Reason::BadRequest));
    for (sender, secret, headers, more, refused) in [
        ("gitea", SECRET, &gitea[..], &[("x-hub-signature-256", "a")][..], None),
        ("gitea", SECRET, &gitea, &[("x-hub-signature-256", "a"), ("x-hub-signature-256", "b")], twice),
        ("gitea", SECRET, &gitea, &[("user-agent", "a"), ("user-agent", "b")], twice),
        ("bitbucket_cloud", SECRET, &bitbucket, &[("x-hook-uuid", "a"), ("x-attempt-number", "1")], None),
        ("bitbucket_cloud", SECRET, &bitbucket, &[("x-hook-uuid", "a"), ("x-hook-uuid", "b")], twice),
        ("bitbucket_cloud", SECRET, &bitbucket, &[("x-attempt-number", "1"), ("x-attempt-number", "1")], twice),
        ("standard_webhooks", KEY, &standard, &[], None),
        ("standard_webhooks", KEY, &both, &[], None),
        ("standard_webhooks", KEY, &standard, &[("svix-id", "m1"), ("svix-id", "m2")], twice),
        ("standard_webhooks", KEY, &standard, &[("svix-id", "m2")], other),
        ("standard_webhooks", KEY, &standard, &[("svix-timestamp", "2")], other),
        ("standard_webhooks", KEY, &standard, &[("svix-signature", "v1,AAAA")], other),
        ("standard_webhooks", KEY, &svix, &[("webhook-id", "m2")], other),
    ] {
        let (webhook, resolver) = resolve(json!({"name": "x", "sender": sender}), &secrets(&[secret]));
        let webhook = webhook.unwrap_or_else(|| panic!("{:?}", resolver.report.problems()));
        let all = [&[("content-type", "application/json")][..], headers, more].concat();
        let read = webhook.precheck(&Method::POST, &head(&all), None, None);
        assert_eq!(read.err().map(|rejection| rejection.reason()), refused, "{sender} {more:?}");
    }
}
