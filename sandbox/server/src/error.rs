//! What goes wrong, as an answer: a status and JSON that says what to do.

use crate::limits;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::Json;
use serde_json::{json, Value};
use vmm_glue::Kind;

/// A refusal.
#[derive(Debug)]
pub struct ApiError {
    pub status: StatusCode,
    pub body: Value,
}

/// Outcome of a request.
pub type ApiResult<T> = Result<T, ApiError>;

impl ApiError {
    pub fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, body: json!({"error": message.into()}) }
    }

    pub fn bad(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    /// Several things are wrong with what was sent: the form in which the API tells that.
    pub fn invalid(message: &str) -> Self {
        Self { status: StatusCode::BAD_REQUEST, body: json!({"errors": [message]}) }
    }

    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, message)
    }

    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, message)
    }

    pub fn message(&self) -> String {
        // Where there are both, the error is a code.
        let found = self.body["message"].as_str().or(self.body["error"].as_str());
        found.map_or_else(|| self.body.to_string(), str::to_owned)
    }
}

impl std::fmt::Display for ApiError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message())
    }
}

impl std::error::Error for ApiError {}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        if self.status.is_server_error() {
            tracing::error!(status = self.status.as_u16(), error = self.message(), "a request failed");
        }
        let heads = if self.status == StatusCode::TOO_MANY_REQUESTS { limits::heads(&self.body) } else { Vec::new() };
        let mut answer = (self.status, Json(self.body)).into_response();
        answer.headers_mut().extend(heads);
        answer
    }
}

impl From<vmm_glue::Error> for ApiError {
    fn from(e: vmm_glue::Error) -> Self {
        let status = match e.kind {
            Kind::Invalid => StatusCode::BAD_REQUEST,
            Kind::NotFound => StatusCode::NOT_FOUND,
            Kind::Exists => StatusCode::CONFLICT,
            Kind::Busy => StatusCode::SERVICE_UNAVAILABLE,
            Kind::Missing | Kind::Failed => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self::new(status, e.message)
    }
}

impl From<sqlx::Error> for ApiError {
    fn from(e: sqlx::Error) -> Self {
        Self::internal(format!("the registry: {e}"))
    }
}
