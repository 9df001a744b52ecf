//! OpenTelemetry logs: OTLP/HTTP in its JSON encoding (OTLP 1.x, `POST /v1/logs`).

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, header};
use serde_json::{Map, Value, json};
use url::Url;

use super::{
    facts::{Facts, Severity},
    settings::Unfit,
};
use crate::{
    clock::Timestamp,
    config::{raw, report::At, resolver::Resolver},
    egress::{Bounds, Egress},
    issuers::secure_url,
    terminal::bounded,
};

/// The maximum size of a response. It says at most how many lines were rejected, and why.
const MAX_ANSWER: usize = 64 << 10;
/// A call without lines.
const NOTHING: &[u8] = br#"{"resourceLogs":[]}"#;
/// How long a probe may take, whatever the timeout of calls with lines.
const LOOK: Duration = Duration::from_secs(10);
/// The names that receivers give the protobuf encoding.
const PROTOBUF: [&str; 3] = ["application/x-protobuf", "application/protobuf", "application/vnd.google.protobuf"];
/// The longest pause that a receiver can request.
const MAX_PAUSE: Duration = Duration::from_secs(300);

/// A receiver.
#[derive(Clone, Debug)]
pub(super) struct Collector {
    endpoint: Url,
    /// Marked as sensitive, so that they are not printed.
    headers: HeaderMap,
    timeout: Duration,
    egress: Egress,
}

/// Why lines were not accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Refused {
    /// They may be accepted later, not before the time that the receiver gave, if any.
    Later { cause: &'static str, why: String, after: Duration },
    /// The call was too large.
    TooLarge(String),
    /// They will not be accepted until something changes.
    Never(String),
}

/// The result of a call that the receiver accepted.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Taken {
    /// The number of lines that it rejected.
    pub(super) rejected: u64,
    /// Its message about them.
    pub(super) why: String,
}

impl Collector {
    pub(super) fn resolve(raw: &raw::OtlpExport, egress: &Egress, at: &At, resolver: &mut Resolver) -> Option<Self> {
        let endpoint = secure_url(&raw.endpoint).map_err(|why| {
            // Not repeated, because it may contain a password.
            resolver
                .error(&at.key("endpoint"), format!("this {why}"))
                .help("write `https://collector.example.com:4318`");
        });
        let mut headers = HeaderMap::new();
        for (name, source) in &raw.headers {
            let at = at.key("headers").key(name);
            let Some(secret) = resolver.secret(&at, source) else { continue };
            let ours = [
                "content-type",
                "content-length",
                "content-encoding",
                "accept-encoding",
                "host",
                "connection",
                "transfer-encoding",
            ];
            let name = HeaderName::try_from(name.as_str()).ok().filter(|name| !ours.contains(&name.as_str()));
            let value = HeaderValue::from_bytes(secret.expose()).ok();
            match (name, value) {
                (Some(name), Some(mut value)) => {
                    value.set_sensitive(true);
                    headers.insert(name, value);
                }
                (None, _) => _ = resolver.error(&at, "is not the name of a header that can be set"),
                (_, None) => _ = resolver.error(&at, format!("{source} holds what a header cannot carry")),
            }
        }
        if raw.timeout.get().is_zero() {
            resolver.error(&at.key("timeout"), "`timeout` must be more than zero");
        }
        let egress = egress.resolve(raw.ca.as_deref(), &at.key("ca"), resolver)?;
        let mut endpoint = endpoint.ok()?;
        if endpoint.path() == "/" {
            endpoint.set_path("/v1/logs");
        }
        Some(Self { endpoint, headers, timeout: raw.timeout.get(), egress })
    }

    /// Checks whether lines would be accepted, by a call without any. The body of the response is not repeated: it may
    /// be a stranger's, and may echo our headers.
    pub(super) async fn probe(&self, now: Timestamp) -> Result<(), Unfit> {
        let bounded = Self { timeout: self.timeout.min(LOOK), ..self.clone() };
        let answer = bounded.call(NOTHING.to_vec()).await.map_err(Unfit::Unreachable)?;
        // Loki answers this to a call without lines, and accepts calls with lines.
        if answer.status() == StatusCode::UNPROCESSABLE_ENTITY {
            return Ok(());
        }
        let manner = if answer.status().is_success() { ", but not as OTLP does" } else { "" };
        let said = format!("it answers {} to a call without lines{manner}", answer.status());
        match read(&answer, now) {
            Ok(_) => Ok(()),
            Err(Refused::Later { .. }) => Err(Unfit::Busy(said)),
            Err(Refused::TooLarge(_) | Refused::Never(_)) => Err(Unfit::Refuses(said)),
        }
    }

    /// Sends lines and waits until the receiver has them.
    pub(super) async fn send(&self, body: Vec<u8>, now: Timestamp) -> Result<Taken, Refused> {
        match self.call(body).await {
            Ok(answer) => read(&answer, now),
            Err(why) => Err(Refused::Later { cause: "unreachable", why, after: Duration::ZERO }),
        }
    }

    async fn call(&self, body: Vec<u8>) -> Result<Response<Bytes>, String> {
        let mut request = Request::post(self.endpoint.as_str())
            .header(header::CONTENT_TYPE, "application/json")
            // A receiver may compress its response otherwise (RFC 9110 section 12.5.3), which would not be read.
            .header(header::ACCEPT_ENCODING, "identity")
            .header(header::USER_AGENT, concat!("doorward/", env!("CARGO_PKG_VERSION")))
            .body(Bytes::from(body))
            .map_err(|error| error.to_string())?;
        request.headers_mut().extend(self.headers.clone());
        let bounds = Bounds { timeout: self.timeout, max_body: MAX_ANSWER };
        self.egress.send(request, bounds).await.map_err(|error| error.to_string())
    }
}

/// Interprets a response.
fn read(answer: &Response<Bytes>, now: Timestamp) -> Result<Taken, Refused> {
    let status = answer.status();
    let why = format!("the receiver answered {status}: {}", bounded(&String::from_utf8_lossy(answer.body())));
    match status {
        status if status.is_success() => accepted(answer).ok_or_else(|| {
            Refused::Never(format!(
                "{why}; this is not an OTLP response, so the lines may not have been received: check `endpoint`, and whether a proxy \
                 answers in its place"
            ))
        }),
        // The statuses after which a client may retry (OTLP, "Failures").
        StatusCode::TOO_MANY_REQUESTS
        | StatusCode::BAD_GATEWAY
        | StatusCode::SERVICE_UNAVAILABLE
        | StatusCode::GATEWAY_TIMEOUT => {
            let after = retry_after(answer.headers(), now).unwrap_or_default();
            Err(Refused::Later { cause: "busy", why, after })
        }
        StatusCode::PAYLOAD_TOO_LARGE => Err(Refused::TooLarge(why)),
        _ => Err(Refused::Never(why)),
    }
}

/// Reads the body of a response that says success (OTLP/HTTP, "Response"). None if it is of no OTLP receiver, such as
/// the login page of a proxy. The protobuf encoding is not read, and an empty body is an empty message.
fn accepted(answer: &Response<Bytes>) -> Option<Taken> {
    let kind = answer.headers().get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default().trim();
    let is_protobuf = PROTOBUF.iter().any(|name| name.eq_ignore_ascii_case(kind));
    if is_protobuf || answer.body().trim_ascii().is_empty() {
        return Some(Taken { rejected: 0, why: String::new() });
    }
    let members: Map<String, Value> = serde_json::from_slice(answer.body()).ok()?;
    // Each member by itself, as one of the wrong type must not hide the other.
    let partial = |name: &str| members.get("partialSuccess").and_then(|partial| partial.get(name));
    let (count, why) = (partial("rejectedLogRecords"), partial("errorMessage").and_then(Value::as_str));
    // A 64-bit number, which protobuf's JSON encoding writes as a string.
    let rejected = count.and_then(|count| count.as_u64().or_else(|| count.as_str()?.parse().ok()));
    Some(Taken { rejected: rejected.unwrap_or_default(), why: bounded(why.unwrap_or_default()) })
}

/// Reads `Retry-After` (RFC 9110 section 10.2.3): seconds, or a date in its preferred form.
fn retry_after(headers: &HeaderMap, now: Timestamp) -> Option<Duration> {
    let text = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim();
    let pause = match text.parse() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => {
            let text = text.strip_suffix("GMT")?;
            let date =
                time::OffsetDateTime::parse(&format!("{text}+0000"), &time::format_description::well_known::Rfc2822);
            Timestamp::from_secs(date.ok()?.unix_timestamp()).since(now)
        }
    };
    Some(pause.min(MAX_PAUSE))
}

/// Encodes the body of a call.
pub(super) fn encode<'a>(lines: impl Iterator<Item = &'a [u8]>, instance: &str, now: Timestamp) -> Vec<u8> {
    let records: Vec<Value> = lines.map(|line| log_record(line, now)).collect();
    let version = env!("CARGO_PKG_VERSION");
    let logs = json!({"resourceLogs": [{
        "resource": {"attributes": [
            attribute("service.name", "doorward"),
            attribute("service.version", version),
            attribute("service.instance.id", instance),
        ]},
        "scopeLogs": [{"scope": {"name": "doorward.audit", "version": version}, "logRecords": records}],
    }]});
    logs.to_string().into_bytes()
}

fn log_record(line: &[u8], now: Timestamp) -> Value {
    let facts = Facts::of(line);
    // The mapping of syslog severities in the data model of OpenTelemetry logs.
    let (severity_number, severity_text) = match facts.severity() {
        Severity::Informational => (9, "INFO"),
        Severity::Notice => (10, "NOTICE"),
        Severity::Warning => (13, "WARN"),
        Severity::Error => (17, "ERROR"),
        Severity::Critical => (18, "CRITICAL"),
    };
    let mut attributes = Vec::new();
    if facts.seq > 0 {
        attributes.push(json!({"key": "doorward.seq", "value": {"intValue": facts.seq.to_string()}}));
    }
    attributes.extend(facts.metadata.event_code.map(|code| attribute("doorward.event_code", &code)));
    attributes.extend(facts.metadata.correlation_uid.map(|id| attribute("doorward.request_id", &id)));
    let mut record = json!({
        "timeUnixNano": nanos(facts.time),
        "observedTimeUnixNano": nanos(now.as_millis()),
        "severityNumber": severity_number,
        "severityText": severity_text,
        // Lines are UTF-8; a line that was damaged so that it is not cannot be sent unchanged.
        "body": {"stringValue": String::from_utf8_lossy(line)},
        "attributes": attributes,
    });
    let is_id = |id: &str| id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit());
    let trace_id = facts.unmapped.trace_id.filter(|id| is_id(id));
    if let Some((record, id)) = record.as_object_mut().zip(trace_id) {
        record.insert("traceId".to_owned(), id.into());
    }
    record
}

fn attribute(key: &str, text: &str) -> Value {
    json!({"key": key, "value": {"stringValue": text}})
}

/// Formats nanoseconds. Protobuf's JSON encoding writes 64-bit numbers as strings.
fn nanos(millis: i64) -> String {
    (i128::from(millis.max(0)) * 1_000_000).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_millis(1_700_000_000_123);

    fn answer(status: u16, retry: Option<&str>, body: &str) -> Result<Taken, Refused> {
        let mut response = Response::builder().status(status);
        if let Some(retry) = retry {
            response = response.header(header::RETRY_AFTER, retry);
        }
        read(&response.body(Bytes::copy_from_slice(body.as_bytes())).unwrap(), NOW)
    }

    #[test]
    fn lines_are_log_records() {
        let lines: [&[u8]; 3] = [
            br#"{"severity_id":1,"time":1700000000123,"metadata":{"event_code":"request","correlation_uid":"0198"},"unmapped":{"trace_id":"0af7651916cd43dd8448eb211c80319c"},"seq":7}"#,
            br#"{"severity_id":4,"time":1700000000124,"metadata":{"event_code":"alarm"},"unmapped":{},"seq":8}"#,
            b"{\"torn \xff",
        ];
        let body = encode(lines.into_iter(), "doorward-0", NOW);
        let mut value: Value = serde_json::from_slice(&body).unwrap();
        let scope = "/resourceLogs/0/scopeLogs/0/scope/version";
        *value.pointer_mut(scope).unwrap() = "VERSION".into();
        *value.pointer_mut("/resourceLogs/0/resource/attributes/1/value/stringValue").unwrap() = "VERSION".into();
        insta::assert_snapshot!("otlp", serde_json::to_string_pretty(&value).unwrap());
    }

    #[test]
    fn answers_say_whether_to_try_again() {
        let taken = |rejected, message: &str| Ok(Taken { rejected, why: message.to_owned() });
        assert_eq!(answer(200, None, "{}"), taken(0, ""));
        assert_eq!(answer(200, None, ""), taken(0, ""));
        assert_eq!(answer(200, None, r#"{"partialSuccess":{}}"#), taken(0, ""));
        let partial = r#"{"partialSuccess":{"rejectedLogRecords":"3","errorMessage":"no"}}"#;
        assert_eq!(answer(200, None, partial), taken(3, "no"));
        assert_eq!(answer(200, None, r#"{"partialSuccess":{"rejectedLogRecords":2}}"#), taken(2, ""));
        // The rejected lines did not count if the message was no text.
        for message in ["null", "7", "{}"] {
            let partial = format!(r#"{{"partialSuccess":{{"rejectedLogRecords":"2","errorMessage":{message}}}}}"#);
            assert_eq!(answer(200, None, &partial), taken(2, ""));
        }
        let partial = r#"{"partialSuccess":{"rejectedLogRecords":[],"errorMessage":"no"}}"#;
        assert_eq!(answer(200, None, partial), taken(0, "no"));
        for (status, retry, after) in [
            (429, Some("7"), 7),
            (503, Some("100000"), 300),
            (503, Some("Tue, 14 Nov 2023 22:13:50 GMT"), 29),
            (503, Some("Tue, 14 Nov 2023 22:13:00 GMT"), 0),
            (503, Some("soon"), 0),
            (502, None, 0),
            (504, None, 0),
        ] {
            match answer(status, retry, "later") {
                Err(Refused::Later { after: found, .. }) => {
                    assert_eq!(found.as_secs(), after, "{status} {retry:?}");
                }
                other => panic!("{status}: {other:?}"),
            }
        }
        assert!(matches!(answer(413, None, ""), Err(Refused::TooLarge(_))));
        for status in [301, 400, 401, 403, 404, 500] {
            let Err(Refused::Never(why)) = answer(status, None, "a\nb") else { panic!("{status}") };
            assert!(why.contains(&status.to_string()) && why.ends_with("a b"), "{why}");
        }
    }

    /// The trail drained into the login page of a proxy, and no metric showed it.
    #[test]
    fn a_success_that_is_no_answer_of_otlp_delivers_nothing() {
        let of = |kind: &str, body: &'static [u8]| {
            let response = Response::builder().status(200).header(header::CONTENT_TYPE, kind);
            read(&response.body(Bytes::from_static(body)).unwrap(), NOW)
        };
        let others: [(&str, &[u8]); 5] = [
            ("text/html", b"<title>Sign in</title>"),
            ("text/plain", b"OK"),
            ("application/json", b"{\"partial"),
            ("application/json", b"[]"),
            ("application/json", b"null"),
        ];
        for (kind, body) in others {
            let Err(Refused::Never(why)) = of(kind, body) else { panic!("{kind}: {body:?}") };
            assert!(why.contains("200") && why.contains("check `endpoint`"), "{why}");
        }
        let answers: [(&str, &[u8]); 8] = [
            ("application/json", b"{}"),
            ("Application/JSON; charset=utf-8", b"{\"partialSuccess\":null}"),
            ("text/plain", b"{}\n"),
            ("application/json", br#"{"partialSuccess":{"errorMessage":5}}"#),
            ("text/plain", b" \n"),
            ("application/x-protobuf", b"\x0a\x02\x08\x01"),
            ("Application/X-Protobuf; charset=utf-8", b"\x0a\x00"),
            ("application/protobuf", b"\x0a\x00"),
        ];
        for (kind, body) in answers {
            assert_eq!(of(kind, body), Ok(Taken { rejected: 0, why: String::new() }), "{kind}: {body:?}");
        }
    }
}
