//! `audit.export`: receivers that the audit trail is sent to.

use std::{collections::BTreeMap, path::PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::ClientTls;
use crate::config::values::{SecretSource, Size, Span};

/// A receiver of the audit trail, besides its file: exactly one of `syslog` and `otlp`. Each line goes there as it stands
/// in the file, in order and at least once. Which receivers there are is fixed until restart; where each of them is, is
/// not.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AuditExport {
    /// Its name in metrics and in the log, and of the file beside the store that keeps how far it has come: letters,
    /// digits, `-` and `_`.
    pub name: String,
    /// Syslog over TCP or TLS.
    #[serde(default)]
    pub syslog: Option<SyslogExport>,
    /// An OpenTelemetry collector, or what else takes OTLP over HTTP.
    #[serde(default)]
    pub otlp: Option<OtlpExport>,
    /// How much of the trail may wait for this receiver before requests are refused, with `when_behind: refuse`. A
    /// receiver that is new has time to come that near first. Default: any amount.
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
    /// Nothing is lost to the receiver but what somebody moves or removes by hand: full files that it still needs stay beyond
    /// `keep`, and beyond `max_behind` requests are refused with 503.
    Refuse,
    /// Requests go on, `keep` deletes files, and lines that the receiver never had are counted.
    Continue,
}

/// A syslog server: RFC 5424 with octet counting (RFC 6587), facility 13 (log audit).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SyslogExport {
    /// `host:port`.
    pub address: String,
    /// TLS to it (RFC 5425). `{}` trusts the system's authorities. Default: none, in clear text.
    #[serde(default)]
    pub tls: Option<ClientTls>,
}

/// A receiver of OTLP over HTTP, in its JSON encoding.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct OtlpExport {
    /// Its URL: https, or http on loopback. Without a path `/v1/logs` is added.
    pub endpoint: String,
    /// Authorities that its certificate is trusted by. Default: the system's.
    #[serde(default)]
    pub ca: Option<PathBuf>,
    /// Headers of each call, such as `authorization`; their values are secrets. A new value is used without a restart.
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
