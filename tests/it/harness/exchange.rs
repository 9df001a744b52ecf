//! Forms for the endpoints of Doorward's token issuer.

use url::form_urlencoded;

use super::{Answer, Doorward};

const FORM: &str = "Content-Type: application/x-www-form-urlencoded";

/// The request line and headers of a token request.
pub const EXCHANGE: [&str; 3] = ["POST /oauth2/token HTTP/1.1", "Host: doorward.test", FORM];

/// The form of a token exchange with these parameters.
pub fn exchange_form(parameters: &[(&str, &str)]) -> String {
    form_urlencoded::Serializer::new(String::new())
        .append_pair("grant_type", "urn:ietf:params:oauth:grant-type:token-exchange")
        .append_pair("subject_token_type", "urn:ietf:params:oauth:token-type:jwt")
        .extend_pairs(parameters)
        .finish()
}

impl Doorward {
    /// Sends a form to `/oauth2/revoke` or `/oauth2/introspect`.
    pub async fn submit(&self, path: &str, more: &[&str], form: &str) -> Answer {
        let line = format!("POST {path} HTTP/1.1");
        self.send(&[&[&*line, "Host: doorward.test", FORM], more].concat(), form.as_bytes()).await
    }
}
