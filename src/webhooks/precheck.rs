//! Reads the head of a delivery before its body is polled, so that only plausible callers are asked for a body.

use std::sync::Arc;

use http::{HeaderMap, Method};

use super::{
    Expected, Webhook, facts,
    media::media,
    signature::{Form, Presented, single, unproven},
    sns,
};
use crate::error::{Reason, Rejection};

impl Webhook {
    /// Whether this is the test of a sender that does not sign it. It is answered and not forwarded.
    pub fn is_unsigned_ping(&self, method: &Method, headers: &HeaderMap) -> bool {
        let event = self.event_header.as_ref().and_then(|name| single(headers, name).ok()?);
        let is_ping =
            event.and_then(|event| event.to_str().ok()).is_some_and(|event| self.sender.pings.contains(&event));
        let is_signed = self.forms.iter().filter_map(Form::header).any(|header| headers.contains_key(header));
        self.unsigned_pings && method == Method::POST && is_ping && !is_signed
    }

    /// Reads the head of a delivery before its body is polled, so that only plausible callers are asked for one.
    /// Refuses with 405, 415, 413, 400 or 401.
    pub fn precheck(
        &self,
        method: &Method,
        headers: &HeaderMap,
        query: Option<&str>,
        content_length: Option<u64>,
    ) -> Result<Expected, Rejection> {
        if method != Method::POST {
            return Err(Rejection::method_not_allowed("POST", "webhooks are delivered by POST"));
        }
        let media = media(headers, self.sender.media, self.sender.media_fix)?;
        if content_length.is_some_and(|length| length > self.max_body as u64) {
            return Err(self.too_large());
        }
        if self.sns.is_some() && headers.get(sns::RAW_DELIVERY).is_some_and(|value| value == "true") {
            return Err(bad_request("the subscription has raw message delivery, which SNS does not sign".to_owned())
                .fix("turn raw message delivery of the subscription off"));
        }
        let (form, presented) = self.presented(headers, query)?;
        // Most are not signed, and the upstream may read either value.
        for name in &self.allowed_headers {
            single(headers, name)?;
        }
        Ok(Expected {
            max_body: self.max_body,
            signs_body: form.signs_body(),
            id: self.delivery_id(headers, &presented)?,
            presented,
            media,
            event: self.event(headers)?,
            topic: headers.get(sns::TOPIC).cloned(),
        })
    }

    /// Reads the strongest form of proof that the delivery uses. Weaker ones are not verified, but must not be repeated
    /// either.
    fn presented(&self, headers: &HeaderMap, query: Option<&str>) -> Result<(&Form, Presented), Rejection> {
        for header in self.forms.iter().filter_map(Form::header) {
            single(headers, header)?;
        }
        for form in &self.forms {
            if let Some(presented) = form.read(headers, query)? {
                return Ok((form, presented));
            }
        }
        Err(unproven(Reason::CredentialMissing, "the delivery has no proof of its origin"))
    }

    fn delivery_id(&self, headers: &HeaderMap, presented: &Presented) -> Result<Option<Arc<str>>, Rejection> {
        if let Some(id) = &presented.signed_id {
            return Ok(Some(id.as_str().into()));
        }
        for name in &self.id_headers {
            single(headers, name)?;
        }
        for name in &self.id_headers {
            let Some(value) = single(headers, name)? else { continue };
            return match value.to_str() {
                Ok(id) if facts::is_delivery_id(id) => Ok(Some(id.into())),
                _ => Err(bad_request(format!("{name} is not 1 to 255 visible ASCII characters"))),
            };
        }
        match self.id_headers.first() {
            Some(name) if self.sender.id_required => Err(bad_request(format!("{name} is missing"))),
            _ => Ok(None),
        }
    }

    fn event(&self, headers: &HeaderMap) -> Result<Option<String>, Rejection> {
        let Some(name) = &self.event_header else { return Ok(None) };
        let value = single(headers, name)?;
        for twin in &self.event_twins {
            // It is not signed, and an interceptor may use it.
            if single(headers, twin)?.is_some_and(|other| Some(other) != value) {
                return Err(bad_request(format!("{twin} names another event than {name}")));
            }
        }
        match value.map(|value| value.to_str()) {
            Some(Ok("")) => match self.sender.events.unnamed() {
                Some(event) => Ok(Some(event.to_owned())),
                None => Err(bad_request(format!("{name} is empty"))),
            },
            Some(Ok(event)) if (1..=64).contains(&event.len()) => Ok(Some(event.to_owned())),
            Some(_) => Err(bad_request(format!("{name} is not 1 to 64 visible ASCII characters"))),
            None => Err(bad_request(format!("{name} is missing"))),
        }
    }
}

fn bad_request(detail: String) -> Rejection {
    Rejection::new(Reason::BadRequest, detail)
}
