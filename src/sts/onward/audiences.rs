//! Checks of audiences: tokens of a provider, and assertions for it, are not for those who accept Doorward's own tokens.

use crate::{
    config::{
        raw::{self, Preset},
        report::{At, Report},
    },
    issuers::Quoted,
    sts::form::is_audience,
};

/// Reports an audience, and that of the assertion, if Doorward's own tokens are for it, too. `ours` is the identifier of
/// Doorward as an issuer.
pub(super) fn check(raw: &raw::Onward, root: &raw::Root, ours: &str, at: &At, report: &mut Report) {
    let place = at.key("audience");
    if !is_audience(&raw.audience) {
        report.error(&place, format!("{} is empty, long, or has control characters", Quoted::text(&raw.audience)));
    }
    if let Some(by) = who_accepts(&raw.audience, root, ours) {
        report
            .error(&place, format!("`{}` is an audience of Doorward's own tokens, which {by}", raw.audience))
            .help("an audience has tokens of one kind: Doorward's own, or the provider's; choose another name for one of them");
    }
    // That it is no name of Doorward itself is checked with the rest of the assertion.
    let assertion = raw.assertion.audience.as_deref().filter(|audience| *audience != ours);
    if let Some((audience, by)) = assertion.and_then(|audience| Some((audience, who_accepts(audience, root, ours)?))) {
        report
            .warning(
                &at.key("assertion").key("audience"),
                format!("`{audience}` is also an audience of Doorward's own tokens, which {by}"),
            )
            .help(
                "the provider gets an assertion that is valid there for whoever does not check the `typ` of a token; choose another name \
                 for one of them",
            );
    }
}

/// Who accepts Doorward's own tokens for an audience, if anybody does.
fn who_accepts(audience: &str, root: &raw::Root, ours: &str) -> Option<&'static str> {
    let mut own = root.issuers.iter().filter(|issuer| issuer.preset == Some(Preset::Doorward));
    if audience == ours || own.any(|issuer| issuer.audiences.iter().any(|own| own == audience)) {
        return Some("routes of Doorward accept");
    }
    let tokens = root.tokens.as_ref()?;
    if tokens.resource_servers.iter().any(|server| server.audiences.iter().any(|served| served == audience)) {
        return Some("a resource server asks about");
    }
    let is_registry = tokens.registries.iter().any(|registry| registry.service == audience);
    is_registry.then_some("a registry of `tokens.registries` accepts")
}

#[cfg(test)]
mod tests {
    use super::super::tests::resolve;

    /// The provider held what some servers take for a token of Doorward's.
    #[test]
    fn an_assertion_for_an_audience_of_doorwards_own_tokens_is_warned_of() {
        const ONWARD: &str = "{audience: v, provider: {jwt_bearer: {token_url: 'https://idp.test/t'}}, assertion: {audience: 'https://idp.test'}}";
        for (audience, is_reported) in [("https://idp.test", true), ("https://other.test", false)] {
            for (rest, by) in [
                (
                    format!(", resource_servers: [{{id: a, secret: {{env: A}}, audiences: ['{audience}']}}]}}"),
                    "a resource server asks about",
                ),
                (format!(", registries: [{{service: '{audience}'}}]}}"), "a registry of `tokens.registries` accepts"),
                (
                    format!("}}\nissuers: [{{name: own, preset: doorward, audiences: ['{audience}']}}]"),
                    "routes of Doorward accept",
                ),
            ] {
                let (onwards, problems) = resolve(ONWARD, &rest);
                let told: Vec<_> = problems.iter().map(|(at, said)| (at.as_str(), said.ends_with(by))).collect();
                assert_eq!(told, Vec::from_iter(is_reported.then_some(("/0/assertion/audience", true))), "{rest}");
                assert!(onwards.contains_key("v"), "it stops nobody");
            }
        }
    }
}
