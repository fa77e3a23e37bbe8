//! The upgrade of a request to a WebSocket, whose refusal looks like every other one.

use crate::error::ApiError;
use axum::extract::ws::WebSocketUpgrade;
use axum::extract::FromRequestParts;
use axum::http::request::Parts;

/// A request that asks for an upgrade.
pub struct Upgrade(pub WebSocketUpgrade);

impl<S: Send + Sync> FromRequestParts<S> for Upgrade {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let refused = |e: axum::extract::ws::rejection::WebSocketUpgradeRejection| {
            ApiError::new(e.status(), format!("this route is a WebSocket: {}", e.body_text()))
        };
        WebSocketUpgrade::from_request_parts(parts, state).await.map(Self).map_err(refused)
    }
}
