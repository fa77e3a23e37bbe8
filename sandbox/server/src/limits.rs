//! How much one token may have: sandboxes, and requests and streams that are open.
//!
//! Invariant: what is counted as open is closed when its guard goes, whatever became of the request.

use crate::error::ApiError;
use axum::http::{HeaderName, HeaderValue, StatusCode};
use serde_json::json;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

/// When it is of use to ask again, seconds.
const RETRY_AFTER_S: u64 = 5;

/// What one token may have.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Sandboxes that it made and that are there.
    pub sandboxes: usize,
    /// Requests, streams and watchers of commands that are open.
    pub open: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { sandboxes: 1000, open: 256 }
    }
}

/// Counts what is open, by token.
#[derive(Clone, Default)]
pub struct Open(Arc<Mutex<HashMap<String, usize>>>);

/// Something that is open.
#[derive(Debug)]
pub struct Guard {
    open: Arc<Mutex<HashMap<String, usize>>>,
    token: String,
}

impl Open {
    /// Counts one more of this token's.
    pub fn enter(&self, token: &str, most: usize) -> Result<Guard, ApiError> {
        let mut open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = open.entry(token.to_owned()).or_default();
        if *count >= most {
            return Err(too_many("too_many_requests", "too many of this token's requests are open", most, *count));
        }
        *count += 1;
        Ok(Guard { open: self.0.clone(), token: token.to_owned() })
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = open.get_mut(&self.token) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.token);
            }
        }
    }
}

/// A refusal of what would be more than may be.
pub fn too_many(code: &str, what: &str, limit: usize, count: usize) -> ApiError {
    let body = json!({
        "error": code, "message": format!("{what}: {limit} may be"), "limit": limit, "current_count": count,
        "retry_after_seconds": RETRY_AFTER_S,
    });
    ApiError { status: StatusCode::TOO_MANY_REQUESTS, body }
}

/// What the head of such an answer says beside its status.
pub fn heads(body: &serde_json::Value) -> Vec<(HeaderName, HeaderValue)> {
    let limit = body["limit"].as_u64().unwrap_or_default();
    let left = limit.saturating_sub(body["current_count"].as_u64().unwrap_or_default());
    let named = |name: &'static str, value: u64| (HeaderName::from_static(name), HeaderValue::from(value));
    vec![
        named("retry-after", RETRY_AFTER_S),
        named("x-ratelimit-limit", limit),
        named("x-ratelimit-remaining", left),
        named("x-ratelimit-reset", RETRY_AFTER_S),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_open_is_counted_by_token_until_it_goes() {
        let open = Open::default();
        let first = open.enter("a", 2).expect("one");
        let _second = open.enter("a", 2).expect("two");
        let refused = open.enter("a", 2).expect_err("three");
        assert_eq!((refused.status.as_u16(), &refused.body["current_count"]), (429, &json!(2)));
        let _other = open.enter("b", 2).expect("another's");
        drop(first);
        let _third = open.enter("a", 2).expect("two again");
        drop((_second, _third, _other));
        assert!(open.0.lock().expect("it is whole").is_empty());
    }
}
