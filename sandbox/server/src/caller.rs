//! Who asks: the token in the request's head.

use crate::error::{ApiError, ApiResult};
use crate::lifecycle::App;
use crate::limits::Guard;
use crate::registry::{Sandbox, State};
use crate::token::{Scope, Token};
use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{header, StatusCode};
use std::sync::Arc;

/// Whoever holds a token that is good.
#[derive(Clone, Debug)]
pub struct Caller {
    pub org: String,
    pub scope: Scope,
    /// Its token's id.
    pub token: String,
    /// Counts as open for as long as somebody holds it.
    _open: Arc<Guard>,
}

impl Caller {
    /// A guest, which has no token and sees its own sandbox alone.
    pub fn guest(app: &App, sandbox: &Sandbox, most: usize) -> ApiResult<Self> {
        let token = format!("guest {}", sandbox.id);
        let open = Arc::new(app.open.enter(&token, most)?);
        Ok(Self { org: sandbox.org.clone(), scope: Scope::Sandbox(sandbox.name.clone()), token, _open: open })
    }

    /// The sandbox of this name, if the caller may see it.
    pub async fn sandbox(&self, app: &App, name: &str) -> ApiResult<Sandbox> {
        let found = match self.sees(name) {
            true => app.registry.find(&self.org, name).await?,
            false => None,
        };
        let found = found.filter(|sandbox| sandbox.state == State::Ready);
        found.ok_or_else(|| ApiError::not_found("sprite not found"))
    }

    /// Whether the token is good for a sandbox of this name.
    pub fn sees(&self, name: &str) -> bool {
        match &self.scope {
            Scope::Organization => true,
            Scope::Sandbox(only) => only == name,
        }
    }

    /// Refuses a token that is good for one sandbox only.
    pub fn whole_organization(&self) -> ApiResult<()> {
        match self.scope {
            Scope::Organization => Ok(()),
            Scope::Sandbox(_) => Err(ApiError::new(StatusCode::FORBIDDEN, "this token is good for one sandbox only")),
        }
    }
}

impl FromRequestParts<Arc<App>> for Caller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, ApiError> {
        // A guest that asks about itself has no token: its relay says who it is.
        if let Some(known) = parts.extensions.get::<Self>() {
            return Ok(known.clone());
        }
        let refused = || ApiError::new(StatusCode::UNAUTHORIZED, "authentication failed");
        let text = parts.headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let token = text.and_then(|text| text.strip_prefix("Bearer ")).and_then(|text| Token::parse(text.trim()));
        let token = token.ok_or_else(refused)?;
        let scope = app.registry.scope_of(&token).await?.ok_or_else(refused)?;
        let open = Arc::new(app.open.enter(&token.id, app.limits.open)?);
        Ok(Self { org: token.org, scope, token: token.id, _open: open })
    }
}
