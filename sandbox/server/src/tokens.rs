//! Tokens of a registry, for a command that does nothing else.

use crate::registry::Registry;
use crate::time::now_us;
use crate::token::{Scope, Token, TokenInfo};
use std::future::Future;
use std::io;
use std::path::Path;
use std::time::Duration;

fn now<T>(work: impl Future<Output = Result<T, sqlx::Error>>) -> io::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(work).map_err(|e| io::Error::other(format!("the registry of sandboxes: {e}")))
}

async fn add(registry: &Registry, org: &str, scope: &Scope, lasts: Option<Duration>) -> Result<Token, sqlx::Error> {
    let token = Token::new(org).map_err(sqlx::Error::Io)?;
    let expires_us = lasts.map(|lasts| now_us().saturating_add(i64::try_from(lasts.as_micros()).unwrap_or(i64::MAX)));
    registry.add_token(&token, scope, expires_us).await?;
    Ok(token)
}

/// Makes a token, which is known to nobody else.
///
/// # Errors
/// The registry cannot be written.
pub fn create_token(registry: &Path, org: &str, scope: &Scope, lasts: Option<Duration>) -> io::Result<Token> {
    now(async { add(&Registry::open(registry).await?, org, scope, lasts).await })
}

/// A token of the organization `org` if the registry has none at all.
///
/// # Errors
/// The registry cannot be written.
pub fn first_token(registry: &Path, org: &str) -> io::Result<Option<Token>> {
    now(async {
        let registry = Registry::open(registry).await?;
        match registry.has_had_tokens().await? {
            true => Ok(None),
            false => add(&registry, org, &Scope::Organization, None).await.map(Some),
        }
    })
}

/// All tokens that are good for something.
///
/// # Errors
/// The registry cannot be read.
pub fn tokens(registry: &Path) -> io::Result<Vec<TokenInfo>> {
    now(async { Registry::open(registry).await?.tokens().await })
}

/// Ends a token; `false` if there is none of this id.
///
/// # Errors
/// The registry cannot be written.
pub fn revoke_token(registry: &Path, id: &str) -> io::Result<bool> {
    now(async { Registry::open(registry).await?.revoke(id).await })
}
