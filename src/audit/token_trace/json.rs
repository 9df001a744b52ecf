//! A token in a trace for programs. Times are Unix time in milliseconds, as in the trail.

use serde::{Serialize, Serializer};
use uuid::Uuid;

use super::{TracedToken, Use};
use crate::audit::traced_line::{AtServer, OnwardLine, TaskLine};

#[derive(Serialize)]
struct TokenView<'a> {
    token: &'a str,
    audience: &'a str,
    scopes: &'a [String],
    /// By the Kubernetes user name.
    on_behalf_of: &'a str,
    issued: i64,
    expires: i64,
    /// The request that asked for it.
    request: Uuid,
    rules: &'a [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    task: Option<&'a TaskLine>,
    /// Where it is another provider's.
    #[serde(skip_serializing_if = "Option::is_none")]
    onward: Option<&'a OnwardLine>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ended: Option<EndView<'a>>,
    uses: Vec<UseView<'a>>,
    /// Further ones, which are only counted.
    more_uses: usize,
}

/// An end before its time.
#[derive(Serialize)]
struct EndView<'a> {
    time: i64,
    why: &'a str,
}

#[derive(Serialize)]
struct UseView<'a> {
    time: i64,
    request: Uuid,
    method: &'a str,
    host: &'a str,
    path: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rule: Option<&'a str>,
    /// Where a resource server asked about it: its name, and whether it heard that the token is active.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    at_server: Option<&'a AtServer>,
}

impl<'a> From<&'a Use> for UseView<'a> {
    fn from(used: &'a Use) -> Self {
        let Use { request, at, method, host, path, status, rule, at_server } = used;
        Self {
            time: at.as_millis(),
            request: *request,
            method,
            host,
            path,
            status: *status,
            rule: rule.as_deref(),
            at_server: at_server.as_ref(),
        }
    }
}

impl Serialize for TracedToken {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self { issued, request, at, whose, uses, more, ended, .. } = self;
        let view = TokenView {
            token: &issued.token,
            audience: &issued.audience,
            scopes: &issued.scopes,
            on_behalf_of: whose,
            issued: at.as_millis(),
            expires: issued.expires,
            request: *request,
            rules: &issued.rules,
            task: issued.task.as_ref(),
            onward: issued.onward.as_ref(),
            ended: ended.as_ref().map(|(at, why)| EndView { time: at.as_millis(), why }),
            uses: uses.iter().map(UseView::from).collect(),
            more_uses: more.len(),
        };
        view.serialize(serializer)
    }
}
