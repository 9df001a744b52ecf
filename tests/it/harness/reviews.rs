//! An API server's reviews of tokens that it signed (`authentication.k8s.io/v1`, TokenReview).

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use serde_json::{Value, json};

use super::{Recorded, Reply, part};

/// The result of a review.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Good,
    /// Its pod or its service account is gone.
    Gone,
    /// The API server fails.
    Error,
}

/// The result for each token; unknown ones are not valid. Clones share it.
#[derive(Clone, Default)]
pub struct Reviews {
    verdicts: Arc<Mutex<HashMap<String, Verdict>>>,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Reviews {
    pub fn say(&self, token: &str, verdict: Verdict) {
        self.verdicts.lock().unwrap().insert(token.to_owned(), verdict);
    }

    /// How often a token was reviewed.
    pub fn asked_about(&self, token: &str) -> usize {
        self.asked.lock().unwrap().iter().filter(|asked| *asked == token).count()
    }

    /// The response to a request, if it is a TokenReview.
    pub fn answer(&self, request: &Recorded) -> Option<Reply> {
        if !request.line().starts_with("POST /apis/authentication.k8s.io/v1/tokenreviews ") {
            return None;
        }
        let review: Value = serde_json::from_slice(&request.body).unwrap();
        let token = review["spec"]["token"].as_str().unwrap();
        self.asked.lock().unwrap().push(token.to_owned());
        let verdict = self.verdicts.lock().unwrap().get(token).copied();
        let status = match verdict.unwrap_or(Verdict::Gone) {
            Verdict::Good => {
                let user = json!({"username": part(token, 1)["sub"]});
                json!({"authenticated": true, "audiences": review["spec"]["audiences"], "user": user})
            }
            Verdict::Gone => json!({"error": "the pod is gone"}),
            Verdict::Error => return Some(Reply::json(500, "{}")),
        };
        Some(Reply::json(201, &json!({"status": status}).to_string()))
    }
}
