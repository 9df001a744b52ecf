//! `audit.export`: receivers that the audit trail is sent to.

use std::{collections::BTreeMap, path::PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::ClientTls;
use crate::config::values::{SecretSource, Size, Span};

/// A receiver of the audit trail, in addition to its file: exactly one of `syslog` and `otlp`. Each line is sent
/// exactly as it is in the file, in order and at least once. The set of receivers is fixed until restart; their
/// addresses are not.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AuditExport {
    /// Its name in metrics, in the log and in the name of the file beside the store that records its position: letters,
    /// digits, `-` and `_`.
    pub name: String,
    /// Syslog over TCP or TLS.
    #[serde(default)]
    pub syslog: Option<SyslogExport>,
    /// An OpenTelemetry collector, or another receiver of OTLP over HTTP.
    #[serde(default)]
    pub otlp: Option<OtlpExport>,
    /// How much of the trail may wait for this receiver before requests are refused, with `when_behind: refuse`. A new
    /// receiver is first given time to catch up to this. Default: any amount.
    #[serde(default)]
    pub max_behind: Option<Size>,
    /// What happens when the receiver does not keep up.
    #[serde(default = "AuditExport::when_behind")]
    pub when_behind: WhenBehind,
}

/// Defaults.
impl AuditExport {
    const fn when_behind() -> WhenBehind {
        WhenBehind::Refuse
    }
}

/// What happens when a receiver of the audit trail does not keep up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum WhenBehind {
    /// The receiver loses nothing, unless somebody moves or removes files by hand: full files that it still needs are
    /// retained beyond `keep`, and beyond `max_behind` requests are refused with 503.
    Refuse,
    /// Requests continue, `keep` deletes files, and the lines that the receiver misses are counted.
    Continue,
}

/// A syslog server: RFC 5424 with octet counting (RFC 6587), facility 13 (log audit).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SyslogExport {
    /// `host:port`.
    pub address: String,
    /// TLS for connections to it (RFC 5425). `{}` trusts the system's authorities. Default: none, in clear text.
    #[serde(default)]
    pub tls: Option<ClientTls>,
}

/// A receiver of OTLP over HTTP, in its JSON encoding.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct OtlpExport {
    /// Its URL: https, or http on loopback. Without a path `/v1/logs` is added.
    pub endpoint: String,
    /// Certificate authorities (CAs) that its certificate is verified against. Default: the system's.
    #[serde(default)]
    pub ca: Option<PathBuf>,
    /// Headers of each call, such as `authorization`. Their values are secrets; a new value is used without a restart.
    #[serde(default)]
    pub headers: BTreeMap<String, SecretSource>,
    /// How long a call may take.
    #[serde(default = "OtlpExport::timeout")]
    pub timeout: Span,
}

/// Defaults.
impl OtlpExport {
    const fn timeout() -> Span {
        Span::from_secs(10)
    }
}
