//! The call of an EventListener. Anybody may send one, and a JSON list that is parsed into values takes sixteen times
//! its size. So only the few texts that are needed are parsed, and the body only after the assertion was verified.
//! Texts are borrowed; one with an escape is copied, and must be short. Skipping takes one byte for each level of
//! nesting.

use std::{borrow::Cow, fmt};

use serde::{
    Deserialize, Deserializer,
    de::{Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor},
};
use serde_json::value::RawValue;

use crate::assertions;

/// The longest text with an escape that is parsed before the assertion was verified. An EventListener sends none with
/// escapes.
const MAX_ESCAPED: usize = 64 << 10;

/// A call, mostly unparsed.
#[derive(Debug, Deserialize)]
pub(super) struct Question<'a> {
    #[serde(borrow, default)]
    body: Option<&'a RawValue>,
    #[serde(borrow, default, rename = "header")]
    pub(super) assertions: Assertions<'a>,
    #[serde(borrow, default)]
    interceptor_params: Option<Params<'a>>,
    #[serde(borrow)]
    pub(super) context: Context<'a>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Context<'a> {
    #[serde(borrow, deserialize_with = "bounded")]
    pub(super) event_id: Cow<'a, str>,
    /// `namespaces/NAMESPACE/triggers/NAME`.
    #[serde(borrow, deserialize_with = "bounded")]
    pub(super) trigger_id: Cow<'a, str>,
}

/// The parameters of the Trigger, by name.
#[derive(Debug, Default)]
struct Params<'a> {
    /// Unparsed, and present even if it is `null`.
    event_listener: Option<&'a RawValue>,
    /// Whether there are others.
    more: bool,
}

impl<'a> Question<'a> {
    pub(super) fn read(text: &'a [u8]) -> serde_json::Result<Self> {
        serde_json::from_slice(text)
    }

    /// The body that the EventListener received.
    pub(super) fn body(&self) -> serde_json::Result<Cow<'a, str>> {
        self.body.map_or(Ok(Cow::Borrowed("")), text)
    }

    /// Whether the Trigger has a parameter that is not known.
    pub(super) fn has_unknown_params(&self) -> bool {
        self.interceptor_params.as_ref().is_some_and(|params| params.more)
    }

    /// The Trigger's parameter `event_listener`, if it has one.
    pub(super) fn event_listener(&self) -> serde_json::Result<Option<Cow<'a, str>>> {
        self.interceptor_params.as_ref().and_then(|params| params.event_listener).map(text).transpose()
    }
}

fn text(raw: &RawValue) -> serde_json::Result<Cow<'_, str>> {
    let Text(text) = serde_json::from_str(raw.get())?;
    Ok(text)
}

/// A text, borrowed if nothing in it is escaped.
#[derive(Debug, Deserialize)]
#[serde(transparent)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

/// A text that is never copied if it is large.
struct Bounded<'a>(Cow<'a, str>);

impl<'de: 'a, 'a> Deserialize<'de> for Bounded<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        bounded(deserializer).map(Self)
    }
}

fn bounded<'de: 'a, 'a, D: Deserializer<'de>>(deserializer: D) -> Result<Cow<'a, str>, D::Error> {
    let raw = <&RawValue>::deserialize(deserializer)?;
    if raw.get().len() > MAX_ESCAPED && raw.get().contains('\\') {
        return Err(D::Error::custom("a text with escapes is too long"));
    }
    text(raw).map_err(D::Error::custom)
}

impl<'de: 'a, 'a> Deserialize<'de> for Params<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(ParamsByName)
    }
}

struct ParamsByName;

impl<'de> Visitor<'de> for ParamsByName {
    type Value = Params<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("parameters by their names")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut params: A) -> Result<Self::Value, A::Error> {
        let mut found = Params::default();
        while let Some(Bounded(name)) = params.next_key()? {
            if name != "event_listener" {
                found.more = true;
                params.next_value::<IgnoredAny>()?;
            } else if found.event_listener.replace(params.next_value()?).is_some() {
                return Err(A::Error::duplicate_field("event_listener"));
            }
        }
        Ok(found)
    }
}

/// The values of the assertion header in the request's headers.
#[derive(Debug, Default)]
pub(super) struct Assertions<'a> {
    first: Option<Cow<'a, str>>,
    /// Whether there are others.
    more: bool,
}

impl Assertions<'_> {
    /// The assertion, if there is exactly one.
    pub(super) fn only(&self) -> Option<&str> {
        self.first.as_deref().filter(|_| !self.more)
    }

    pub(super) fn are_several(&self) -> bool {
        self.more
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Assertions<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Headers)
    }
}

/// Reads `{NAME: [VALUE, ...], ...}`. Go writes empty values as `null`.
struct Headers;

impl<'de> Visitor<'de> for Headers {
    type Value = Assertions<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("headers by their names")
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(Assertions::default())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut headers: A) -> Result<Self::Value, A::Error> {
        let mut found = Assertions::default();
        while let Some(Bounded(name)) = headers.next_key()? {
            if !name.eq_ignore_ascii_case(assertions::HEADER.as_str()) {
                headers.next_value::<IgnoredAny>()?;
                continue;
            }
            let Assertions { first, more } = headers.next_value_seed(Values)?;
            found.more |= more || (found.first.is_some() && first.is_some());
            found.first = found.first.or(first);
        }
        Ok(found)
    }
}

/// Reads the values of one header.
struct Values;

impl<'de> serde::de::DeserializeSeed<'de> for Values {
    type Value = Assertions<'de>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Values {
    type Value = Assertions<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the values of a header")
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(Assertions::default())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut values: A) -> Result<Self::Value, A::Error> {
        let first = values.next_element::<Bounded<'de>>()?.map(|Bounded(text)| text);
        let mut more = false;
        while values.next_element::<IgnoredAny>()?.is_some() {
            more = true;
        }
        Ok(Assertions { first, more })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn question(header: &str, more: &str) -> String {
        format!(r#"{{"header":{header},"context":{{"event_id":"e","trigger_id":"t"}}{more}}}"#)
    }

    #[test]
    fn the_assertion_counts_only_if_it_occurs_once() {
        for (header, only) in [
            (r#"{"Doorward-Assertion":["a"]}"#, Some("a")),
            (r#"{"X":["b", 7, {}],"doorward-assertion":["a"]}"#, Some("a")),
            (r#"{"Doorward-Assertion":["\u0061"]}"#, Some("a")),
            (r#"{"\u0044oorward-Assertion":["a"],"Doorward-Assertion":["a"]}"#, None),
            (r#"{"Doorward-Assertion":["a","a"]}"#, None),
            (r#"{"Doorward-Assertion":["a", null]}"#, None),
            (r#"{"Doorward-Assertion":["a"],"DOORWARD-ASSERTION":["a"]}"#, None),
            (r#"{"Doorward-Assertion":["a"],"DOORWARD-ASSERTION":[]}"#, Some("a")),
            (r#"{"Doorward-Assertion":[]}"#, None),
            (r#"{"Doorward-Assertion":null}"#, None),
            ("{}", None),
            ("null", None),
        ] {
            let text = question(header, "");
            let assertions = Question::read(text.as_bytes()).unwrap().assertions;
            assert_eq!(assertions.only(), only, "{header}");
            // Twice, or with something beside it.
            let several = only.is_none() && header.contains("\"a\"");
            assert_eq!(assertions.are_several(), several, "{header}");
        }
        for header in [r#"{"Doorward-Assertion":"a"}"#, r#"{"Doorward-Assertion":[7]}"#, "[]", "7"] {
            assert!(Question::read(question(header, "").as_bytes()).is_err(), "{header}");
        }
    }

    /// Regression: a Trigger whose `event_listener` was misspelt took the deliveries of all EventListeners of its
    /// namespace.
    #[test]
    fn parameters_that_are_not_known_are_noticed() {
        for (params, unknown) in [
            ("{}", false),
            ("null", false),
            (r#"{"event_listener":"a/b"}"#, false),
            (r#"{"\u0065vent_listener":"a/b"}"#, false),
            (r#"{"event-listener":"a/b"}"#, true),
            (r#"{"event_listener":"a/b","more":null}"#, true),
        ] {
            let text = question("{}", &format!(r#","interceptor_params":{params}"#));
            assert_eq!(Question::read(text.as_bytes()).unwrap().has_unknown_params(), unknown, "{params}");
        }
        for params in [r#"{"event_listener":"a/b","event_listener":"a/c"}"#, "[]", "7"] {
            let text = question("{}", &format!(r#","interceptor_params":{params}"#));
            assert!(Question::read(text.as_bytes()).is_err(), "{params}");
        }
    }

    #[test]
    fn the_body_and_the_parameter_are_text_or_not_there() {
        let bare = question("{}", "");
        let bare = Question::read(bare.as_bytes()).unwrap();
        assert_eq!((bare.body().unwrap().as_ref(), bare.event_listener().unwrap()), ("", None));
        let full =
            question("{}", r#","body":"{\"a\":1}\u00e9","interceptor_params":{"event_listener":"ci/build","x":[]}"#);
        let full = Question::read(full.as_bytes()).unwrap();
        assert_eq!(full.body().unwrap(), "{\"a\":1}é");
        assert_eq!(full.event_listener().unwrap().unwrap(), "ci/build");
        for more in
            [r#","interceptor_params":{"event_listener":null}"#, r#","interceptor_params":{"event_listener":7}"#]
        {
            let odd = question("{}", more);
            assert!(Question::read(odd.as_bytes()).unwrap().event_listener().is_err(), "{more}");
        }
        let odd = question("{}", r#","body":7"#);
        assert!(Question::read(odd.as_bytes()).unwrap().body().is_err());
    }
}
