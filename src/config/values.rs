//! Values that are written as text: durations, sizes, secrets and file paths.

use std::{borrow::Cow, fmt, path::PathBuf, str::FromStr, time::Duration};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A span of time, written as a number with a unit: `500ms`, `30s`, `5m`, `8h`, `7d`; `0` is zero.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Span(pub Duration);

impl Span {
    pub const fn from_secs(seconds: u64) -> Self {
        Self(Duration::from_secs(seconds))
    }

    pub const fn from_millis(millis: u64) -> Self {
        Self(Duration::from_millis(millis))
    }

    pub const fn get(self) -> Duration {
        self.0
    }
}

impl FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let text = text.trim();
        if text == "0" {
            return Ok(Self(Duration::ZERO));
        }
        let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let (number, unit) = text.split_at(digits);
        let explain = || {
            format!(
                "`{text}` is not a duration; write a whole number and a unit, such as `500ms`, `30s`, `5m`, `8h` or `7d`"
            )
        };
        let number: u64 = number.parse().map_err(|_| explain())?;
        let millis = match unit {
            "ms" => Some(number),
            "s" => number.checked_mul(1_000),
            "m" => number.checked_mul(60_000),
            "h" => number.checked_mul(3_600_000),
            "d" => number.checked_mul(86_400_000),
            _ => return Err(explain()),
        };
        // A century is far beyond every use and keeps later arithmetic from overflowing.
        millis
            .filter(|millis| *millis <= 100 * 366 * 86_400_000)
            .map(|millis| Self(Duration::from_millis(millis)))
            .ok_or_else(|| format!("`{text}` is more than a hundred years"))
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millis = self.0.as_millis();
        let units = [(86_400_000, "d"), (3_600_000, "h"), (60_000, "m"), (1_000, "s")];
        if millis == 0 {
            return f.write_str("0s");
        }
        match units.into_iter().find(|(size, _)| millis.is_multiple_of(*size)) {
            Some((size, unit)) => write!(f, "{}{unit}", millis / size),
            None => write!(f, "{millis}ms"),
        }
    }
}

/// A number of bytes: `512`, `64KiB`, `26MiB`, `1GiB`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Size(pub u64);

impl Size {
    pub const fn kib(count: u64) -> Self {
        Self(count << 10)
    }

    pub const fn mib(count: u64) -> Self {
        Self(count << 20)
    }

    pub fn bytes(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }
}

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let text = text.trim();
        let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let (number, unit) = text.split_at(digits);
        let explain = || {
            format!(
                "`{text}` is not a size; write a whole number and a unit, such as `512`, `64KiB`, `26MiB` or `1GiB`"
            )
        };
        let number: u64 = number.parse().map_err(|_| explain())?;
        let shift = match unit.trim_start() {
            "" | "B" => 0,
            "KiB" => 10,
            "MiB" => 20,
            "GiB" => 30,
            _ => return Err(explain()),
        };
        number.checked_mul(1 << shift).map(Self).ok_or_else(|| format!("`{text}` is too large"))
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            n if n != 0 && n % (1 << 30) == 0 => write!(f, "{}GiB", n >> 30),
            n if n != 0 && n % (1 << 20) == 0 => write!(f, "{}MiB", n >> 20),
            n if n != 0 && n % (1 << 10) == 0 => write!(f, "{}KiB", n >> 10),
            n => write!(f, "{n}"),
        }
    }
}

/// Reads text or a bare number, as YAML yields a number for `0` and for `512`.
fn text_or_number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    struct Visitor;
    impl de::Visitor<'_> for Visitor {
        type Value = String;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a number with a unit")
        }
        fn visit_str<E: de::Error>(self, text: &str) -> Result<String, E> {
            Ok(text.to_owned())
        }
        fn visit_u64<E: de::Error>(self, number: u64) -> Result<String, E> {
            Ok(number.to_string())
        }
        fn visit_i64<E: de::Error>(self, number: i64) -> Result<String, E> {
            Ok(number.to_string())
        }
    }
    deserializer.deserialize_any(Visitor)
}

macro_rules! textual {
    ($type:ident, $description:literal, $example:literal, $forms:tt) => {
        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                text_or_number(deserializer)?.parse().map_err(de::Error::custom)
            }
        }
        impl JsonSchema for $type {
            fn schema_name() -> Cow<'static, str> {
                stringify!($type).into()
            }
            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({
                    "description": $description,
                    "anyOf": $forms,
                    "examples": [$example],
                })
            }
        }
    };
}

// The only number without a unit that is a duration is 0.
textual!(Span, "A duration: a whole number and a unit (ms, s, m, h, d).", "30s", [
    {"type": "string", "pattern": "^(0|[0-9]+(ms|s|m|h|d))$"},
    {"const": 0},
]);
textual!(Size, "A size in bytes: a whole number and a unit (B, KiB, MiB, GiB).", "64KiB", [
    {"type": "string", "pattern": "^[0-9]+ ?(B|KiB|MiB|GiB)?$"},
    {"type": "integer", "minimum": 0},
]);

/// The JSON Schema of an address range ([`ipnet::IpNet`]).
#[derive(Debug)]
pub enum Cidr {}

/// The JSON Schema of an address to listen on ([`std::net::SocketAddr`]).
#[derive(Debug)]
pub enum SocketAddress {}

macro_rules! schema_only {
    ($type:ident, $format:literal, $example:literal) => {
        impl JsonSchema for $type {
            fn inline_schema() -> bool {
                true
            }
            fn schema_name() -> Cow<'static, str> {
                stringify!($type).into()
            }
            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({ "type": "string", "format": $format, "examples": [$example] })
            }
        }
    };
}

schema_only!(Cidr, "cidr", "10.0.0.0/8");
schema_only!(SocketAddress, "socket-address", "0.0.0.0:8443");

/// The source of a secret. There is no inline form, as a secret in a policy file ends up in Git.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum SecretSource {
    /// A file with the secret; one trailing newline is removed. Read again when the file changes.
    File(PathBuf),
    /// The name of an environment variable.
    Env(String),
}

impl fmt::Display for SecretSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "file {}", path.display()),
            Self::Env(name) => write!(f, "environment variable {name}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_and_print_the_same() {
        for text in ["500ms", "30s", "5m", "8h", "7d", "90s"] {
            assert_eq!(text.parse::<Span>().unwrap().to_string(), text);
        }
        assert_eq!("0".parse::<Span>().unwrap().get(), Duration::ZERO);
    }

    #[test]
    fn durations_without_a_unit_or_beyond_a_century_are_refused() {
        for text in ["", "30", "s", "-1s", "1.5h", "99999999999d", "1 s"] {
            assert!(text.parse::<Span>().is_err(), "{text}");
        }
    }

    #[test]
    fn the_schema_takes_the_bare_numbers_that_the_loader_takes() {
        fn takes(schema: &Schema, number: i64) -> bool {
            schema.get("anyOf").and_then(|forms| forms.as_array()).unwrap().iter().any(|form| match form.get("const") {
                Some(constant) => *constant == number,
                None => form["type"] == "integer" && form["minimum"].as_i64().is_none_or(|least| number >= least),
            })
        }
        let generator = &mut SchemaGenerator::default();
        let (span, size) = (Span::json_schema(generator), Size::json_schema(generator));
        for number in [0, 1, 30, -1] {
            let value = serde_json::Value::from(number);
            assert_eq!(takes(&span, number), serde_json::from_value::<Span>(value.clone()).is_ok(), "{number}");
            assert_eq!(takes(&size, number), serde_json::from_value::<Size>(value).is_ok(), "{number}");
        }
    }

    #[test]
    fn sizes_read_and_print_the_same() {
        for text in ["512", "64KiB", "26MiB", "1GiB"] {
            assert_eq!(text.parse::<Size>().unwrap().to_string(), text);
        }
        for text in ["", "KiB", "1KB", "-1", "99999999999GiB"] {
            assert!(text.parse::<Size>().is_err(), "{text}");
        }
    }
}
