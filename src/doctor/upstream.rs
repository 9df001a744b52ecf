//! Whether upstreams can be reached, and what Kubernetes allows Doorward.

use std::sync::Arc;

use futures_util::future::join_all;
use http::{Request, StatusCode};
use serde_json::Value;

use super::{Check, Doctor, Finding};
use crate::{
    app::rights::{self, Rights},
    body::{RequestBody, collect},
    config::raw::{self, RouteKind},
    error::Rejection,
    rbac::PRINTS,
    upstream::{Lane, SEARCH_LIST_FIX, Upstream, UpstreamErrorKind, search_list_problem},
};

const MAX_ANSWER: usize = 64 << 10;

/// The kind of an upstream, judging by its routes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum What {
    ApiServer,
    Dashboard,
    EventListener,
    Other,
}

impl What {
    pub(super) fn of(raw: &raw::Root, name: &str) -> Self {
        let is = |kind: RouteKind| raw.routes.iter().any(|route| route.kind == kind && route.upstream == name);
        let of_dashboards = raw.routes.iter().filter_map(|route| route.kubernetes.as_deref());
        let mut clusters = raw.servers().map(|(_, server)| server).chain(of_dashboards);
        if is(RouteKind::Kubernetes) || clusters.any(|cluster| cluster == name) {
            Self::ApiServer
        } else if is(RouteKind::Dashboard) {
            Self::Dashboard
        } else if is(RouteKind::Webhook) {
            Self::EventListener
        } else {
            Self::Other
        }
    }

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::ApiServer => "API server",
            Self::Dashboard => "Dashboard",
            Self::EventListener => "EventListener",
            Self::Other => "upstream",
        }
    }

    /// The path at which such a server reports its health.
    const fn path(self) -> &'static str {
        match self {
            Self::ApiServer => "/version",
            Self::Dashboard => "/health",
            Self::EventListener => "/live",
            Self::Other => "/",
        }
    }
}

/// Upstreams for which no token could be obtained, and why.
pub(super) type WithoutToken = [(Arc<str>, Rejection)];

pub(super) async fn examine(doctor: &Doctor<'_>, without: &WithoutToken) -> Vec<Finding> {
    let upstreams = doctor.resolved.upstreams().iter().filter(|upstream| !lacks(without, upstream.name()));
    let mut findings = join_all(upstreams.map(|upstream| one(doctor, upstream))).await;
    let unread = search_list_problem();
    findings.extend(unread.map(|why| Finding::fault(Check::Upstreams, "names", why, SEARCH_LIST_FIX)));
    findings
}

fn lacks(without: &WithoutToken, upstream: &str) -> bool {
    without.iter().any(|(name, _)| **name == *upstream)
}

/// Reports the rights that Doorward lacks at each API server, and those that it does not need.
pub(super) async fn examine_rights(doctor: &Doctor<'_>, without: &WithoutToken) -> Vec<Finding> {
    let mut answers = rights::examine(&doctor.pools, doctor.raw(), doctor.resolved).await;
    answers.retain(|(name, _)| !lacks(without, name));
    let finding = |(name, answer): (Arc<str>, Result<Rights, Rejection>)| {
        let subject = format!("API server `{name}`");
        match answer {
            Ok(Rights { lacks, .. }) if !lacks.is_empty() => Finding::fault(
                Check::Rights,
                &subject,
                format!("Doorward may not {}", lacks.join(", ")),
                format!("apply what {PRINTS} for this configuration"),
            ),
            Ok(Rights { beyond, .. }) if !beyond.is_empty() => Finding::warning(
                Check::Rights,
                &subject,
                format!("it allows what the configuration needs, and more: Doorward may {}", beyond.join(", ")),
                format!("bind Doorward's account to what {PRINTS} for this configuration alone"),
            ),
            Ok(_) => Finding::good(Check::Rights, &subject, "it allows what the configuration needs"),
            Err(error) => Finding::fault(
                Check::Rights,
                &subject,
                format!("it could not be queried: {}", error.in_full()),
                "see the finding on the upstream itself",
            ),
        }
    };
    answers.into_iter().map(finding).collect()
}

/// Reports that Doorward gets no token of the service account that it uses at an upstream.
pub(super) fn without_token(check: Check, name: &str, error: &Rejection) -> Finding {
    let fix = format!(
        "make sure that the account exists, that the upstream in its `credential` answers, and that what {PRINTS} is \
         applied"
    );
    Finding::fault(check, &format!("API server `{name}`"), error.in_full(), fix)
}

async fn one(doctor: &Doctor<'_>, upstream: &Arc<Upstream>) -> Finding {
    let what = What::of(doctor.raw(), upstream.name());
    let subject = format!("{} `{}`", what.name(), upstream.name());
    let mut request = Request::new(RequestBody::Empty);
    *request.uri_mut() = http::Uri::from_static(what.path());
    let answer = match doctor.pools.send(upstream, &mut request, Lane::Short).await {
        Ok(answer) => answer,
        Err(error) => {
            let fix = match error.kind() {
                UpstreamErrorKind::NotHttp1 => {
                    "check its `url`; if it speaks only HTTP/2, as gRPC servers do, set `protocol: http2`"
                }
                _ => "check its `url` and `tls`, and whether it can be reached from here",
            };
            let message = Rejection::from(error).in_full();
            return Finding::fault(Check::Upstreams, &subject, message, fix);
        }
    };
    let status = answer.status();
    let body = collect(answer.into_body(), MAX_ANSWER).await;
    let message = format!("it answers {} with {status}", what.path());
    let fault = |fix: &str| Finding::fault(Check::Upstreams, &subject, message.clone(), fix);
    match (what, status) {
        (What::ApiServer, StatusCode::OK) => {
            let version = body.and_then(|body| serde_json::from_slice::<Value>(&body).ok());
            match version.as_ref().and_then(|version| version["gitVersion"].as_str()) {
                Some(version) => Finding::good(Check::Upstreams, &subject, format!("Kubernetes {version}")),
                None => fault("it is not an API server; check its `url`"),
            }
        }
        (What::ApiServer, StatusCode::UNAUTHORIZED) => fault(
            "it rejects Doorward's own credential: check whether the token has expired, or the certificate is from its \
             authority",
        ),
        (What::ApiServer, _) => {
            fault("an API server answers with 200; check its `url`, and what is between it and here")
        }
        (What::Dashboard | What::EventListener, StatusCode::OK) => {
            Finding::good(Check::Upstreams, &subject, "it is healthy")
        }
        (What::Dashboard, _) => fault("a healthy Tekton Dashboard answers with 200; check its `url` and the pod"),
        (What::EventListener, _) if status.is_server_error() => fault("check the pod of the EventListener"),
        (What::EventListener, _) => Finding::warning(
            Check::Upstreams,
            &subject,
            message,
            "a healthy EventListener answers with 200; if this is another receiver of webhooks, there is no problem",
        ),
        (What::Other, _) if status.is_server_error() => fault("check that server"),
        (What::Other, _) => Finding::good(Check::Upstreams, &subject, message),
    }
}
