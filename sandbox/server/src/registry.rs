//! What the server knows of sandboxes and tokens: a SQLite database in the pool's folder.
//!
//! Invariants
//!   * a sandbox's row is there before its machine is made, and until its machine is gone: its state says which of the
//!     two is under way, so that a server that starts finishes it;
//!   * an organization has a name once.

use crate::error::ApiResult;
use crate::time::now_us;
use crate::token::{Scope, Token, TokenInfo};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteRow, SqliteSynchronous};
use sqlx::{Row, SqlitePool};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

/// How long another process's change is waited for.
const BUSY: Duration = Duration::from_secs(10);
/// Each entry leads from one version of the tables to the next.
const MIGRATIONS: [&str; 2] = [
    "
    CREATE TABLE sandboxes (
        id TEXT PRIMARY KEY, org TEXT NOT NULL, name TEXT NOT NULL, machine TEXT NOT NULL UNIQUE,
        state TEXT NOT NULL, labels TEXT NOT NULL, environment TEXT NOT NULL, config TEXT NOT NULL,
        url_auth TEXT NOT NULL, suffix TEXT NOT NULL, created_us BIGINT NOT NULL, updated_us BIGINT NOT NULL,
        last_active_us BIGINT, UNIQUE (org, name));
    CREATE TABLE tokens (
        id TEXT PRIMARY KEY, org TEXT NOT NULL, hash TEXT NOT NULL, scope TEXT NOT NULL,
        created_us BIGINT NOT NULL, expires_us BIGINT, revoked_us BIGINT);
",
    "
    ALTER TABLE sandboxes ADD COLUMN token TEXT NOT NULL DEFAULT '';
",
];

/// Where a sandbox is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// Its machine is being made: what is found of it at a start is removed.
    Creating,
    /// It is there.
    Ready,
    /// It is being deleted: a start goes on with that.
    Deleting,
}

impl State {
    fn text(self) -> &'static str {
        match self {
            Self::Creating => "creating",
            Self::Ready => "ready",
            Self::Deleting => "deleting",
        }
    }

    fn of(text: &str) -> Self {
        match text {
            "creating" => Self::Creating,
            "deleting" => Self::Deleting,
            _ => Self::Ready,
        }
    }
}

/// A sandbox's row.
#[derive(Clone, Debug)]
pub(crate) struct Sandbox {
    pub id: String,
    pub org: String,
    pub name: String,
    /// The name of its machine and volume.
    pub machine: String,
    pub state: State,
    /// The id of the token that it was made with; empty of those that an older program made.
    pub token: String,
    pub labels: Vec<String>,
    pub environment: Vec<(String, String)>,
    pub config: serde_json::Value,
    pub url_auth: String,
    pub suffix: String,
    pub created_us: i64,
    pub updated_us: i64,
    pub last_active_us: Option<i64>,
}

/// The database.
#[derive(Clone)]
pub struct Registry {
    pool: SqlitePool,
}

fn sandbox(row: &SqliteRow) -> Result<Sandbox, sqlx::Error> {
    let json = |column: &str| row.try_get::<String, _>(column);
    Ok(Sandbox {
        id: row.try_get("id")?,
        org: row.try_get("org")?,
        name: row.try_get("name")?,
        machine: row.try_get("machine")?,
        state: State::of(&row.try_get::<String, _>("state")?),
        token: row.try_get("token")?,
        labels: serde_json::from_str(&json("labels")?).unwrap_or_default(),
        environment: serde_json::from_str(&json("environment")?).unwrap_or_default(),
        config: serde_json::from_str(&json("config")?).unwrap_or_default(),
        url_auth: row.try_get("url_auth")?,
        suffix: row.try_get("suffix")?,
        created_us: row.try_get("created_us")?,
        updated_us: row.try_get("updated_us")?,
        last_active_us: row.try_get("last_active_us")?,
    })
}

fn is_taken(e: &sqlx::Error) -> bool {
    matches!(e, sqlx::Error::Database(e) if e.is_unique_violation())
}

impl Registry {
    /// Opens the registry at `path`, and makes it if there is none.
    ///
    /// # Errors
    /// It cannot be opened, or a newer program made it.
    pub async fn open(path: &Path) -> Result<Self, sqlx::Error> {
        // Nobody else reads hashes, not even for the moment before the mode is set.
        let made = std::fs::OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path);
        drop(made.map_err(sqlx::Error::Io)?);
        let options = SqliteConnectOptions::new()
            .filename(path)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(BUSY);
        let pool = SqlitePoolOptions::new().max_connections(4).connect_with(options).await?;
        let registry = Self { pool };
        registry.migrate().await?;
        Ok(registry)
    }

    async fn migrate(&self) -> Result<(), sqlx::Error> {
        let mut change = self.pool.begin_with("BEGIN IMMEDIATE").await?;
        let version: i64 = sqlx::query_scalar("PRAGMA user_version").fetch_one(&mut *change).await?;
        let known = MIGRATIONS.len() as i64;
        if version > known {
            let text = format!("it has version {version}, this program knows {known}: use a newer cairn");
            return Err(sqlx::Error::Configuration(text.into()));
        }
        for step in MIGRATIONS.iter().skip(version as usize) {
            sqlx::raw_sql(step).execute(&mut *change).await?;
        }
        sqlx::raw_sql(&format!("PRAGMA user_version = {known}")).execute(&mut *change).await?;
        change.commit().await
    }

    /// Writes down a sandbox that is about to be made; `false` if the name is taken.
    pub(crate) async fn add(&self, new: &Sandbox) -> ApiResult<bool> {
        let outcome = sqlx::query(
            "INSERT INTO sandboxes (id, org, name, machine, state, labels, environment, config, url_auth, suffix, \
             created_us, updated_us, token) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)",
        )
        .bind(&new.id)
        .bind(&new.org)
        .bind(&new.name)
        .bind(&new.machine)
        .bind(new.state.text())
        .bind(json_text(&new.labels))
        .bind(json_text(&new.environment))
        .bind(json_text(&new.config))
        .bind(&new.url_auth)
        .bind(&new.suffix)
        .bind(new.created_us)
        .bind(new.updated_us)
        .bind(&new.token)
        .execute(&self.pool)
        .await;
        match outcome {
            Err(e) if is_taken(&e) => Ok(false),
            other => Ok(other.map(|_| true)?),
        }
    }

    /// How many sandboxes there are that were made with a token.
    pub(crate) async fn count(&self, token: &str) -> ApiResult<usize> {
        let query =
            sqlx::query_scalar::<_, i64>("SELECT COUNT(*) FROM sandboxes WHERE token = $1 AND state <> 'deleting'");
        Ok(usize::try_from(query.bind(token).fetch_one(&self.pool).await?).unwrap_or_default())
    }

    pub(crate) async fn set_state(&self, id: &str, state: State) -> ApiResult<()> {
        let change = sqlx::query("UPDATE sandboxes SET state = $1, updated_us = $2 WHERE id = $3");
        change.bind(state.text()).bind(now_us()).bind(id).execute(&self.pool).await?;
        Ok(())
    }

    pub(crate) async fn update(&self, id: &str, labels: &[String], url_auth: &str) -> ApiResult<()> {
        let change = sqlx::query("UPDATE sandboxes SET labels = $1, url_auth = $2, updated_us = $3 WHERE id = $4");
        let labels = json_text(&labels);
        change.bind(labels).bind(url_auth).bind(now_us()).bind(id).execute(&self.pool).await?;
        Ok(())
    }

    pub(crate) async fn was_active(&self, id: &str) -> ApiResult<()> {
        let change = sqlx::query("UPDATE sandboxes SET last_active_us = $1 WHERE id = $2");
        change.bind(now_us()).bind(id).execute(&self.pool).await?;
        Ok(())
    }

    pub(crate) async fn remove(&self, id: &str) -> ApiResult<()> {
        sqlx::query("DELETE FROM sandboxes WHERE id = $1").bind(id).execute(&self.pool).await?;
        Ok(())
    }

    pub(crate) async fn find(&self, org: &str, name: &str) -> ApiResult<Option<Sandbox>> {
        let query = sqlx::query("SELECT * FROM sandboxes WHERE org = $1 AND name = $2");
        let row = query.bind(org).bind(name).fetch_optional(&self.pool).await?;
        Ok(row.as_ref().map(sandbox).transpose()?)
    }

    /// Sandboxes of an organization whose names begin with `prefix` and come after `after`, by name.
    pub(crate) async fn list(&self, org: &str, prefix: &str, after: &str, max: usize) -> ApiResult<Vec<Sandbox>> {
        let query = sqlx::query(
            "SELECT * FROM sandboxes WHERE org = $1 AND substr(name, 1, length($2)) = $2 AND name > $3 \
             ORDER BY name LIMIT $4",
        );
        let rows = query.bind(org).bind(prefix).bind(after).bind(max as i64).fetch_all(&self.pool).await?;
        Ok(rows.iter().map(sandbox).collect::<Result<_, _>>()?)
    }

    /// All that is not as it should stay.
    pub(crate) async fn unfinished(&self) -> ApiResult<Vec<Sandbox>> {
        let rows = sqlx::query("SELECT * FROM sandboxes WHERE state <> 'ready'").fetch_all(&self.pool).await?;
        Ok(rows.iter().map(sandbox).collect::<Result<_, _>>()?)
    }

    /// All that are there, of every organization.
    pub(crate) async fn ready(&self) -> ApiResult<Vec<Sandbox>> {
        let rows = sqlx::query("SELECT * FROM sandboxes WHERE state = 'ready'").fetch_all(&self.pool).await?;
        Ok(rows.iter().map(sandbox).collect::<Result<_, _>>()?)
    }

    /// Takes note of a new token.
    ///
    /// # Errors
    /// The registry cannot be written.
    pub async fn add_token(&self, token: &Token, scope: &Scope, expires_us: Option<i64>) -> Result<(), sqlx::Error> {
        let add = sqlx::query(
            "INSERT INTO tokens (id, org, hash, scope, created_us, expires_us) VALUES ($1, $2, $3, $4, $5, $6)",
        );
        let add = add.bind(&token.id).bind(&token.org).bind(token.hash()).bind(scope.text()).bind(now_us());
        add.bind(expires_us).execute(&self.pool).await.map(drop)
    }

    /// What a token is good for now; `None` if it is none.
    pub(crate) async fn scope_of(&self, token: &Token) -> ApiResult<Option<Scope>> {
        let query = sqlx::query(
            "SELECT hash, scope FROM tokens WHERE id = $1 AND org = $2 AND revoked_us IS NULL \
             AND (expires_us IS NULL OR expires_us > $3)",
        );
        let row = query.bind(&token.id).bind(&token.org).bind(now_us()).fetch_optional(&self.pool).await?;
        let Some(row) = row else { return Ok(None) };
        let (hash, scope): (String, String) = (row.try_get("hash")?, row.try_get("scope")?);
        Ok(token.is(&hash).then(|| Scope::parse(&scope)).flatten())
    }

    /// All tokens that are good for something.
    ///
    /// # Errors
    /// The registry cannot be read.
    pub async fn tokens(&self) -> Result<Vec<TokenInfo>, sqlx::Error> {
        let query = sqlx::query(
            "SELECT id, org, scope, created_us, expires_us FROM tokens WHERE revoked_us IS NULL \
             AND (expires_us IS NULL OR expires_us > $1) ORDER BY created_us",
        );
        let info = |row: &SqliteRow| {
            Ok(TokenInfo {
                id: row.try_get("id")?,
                org: row.try_get("org")?,
                scope: row.try_get("scope")?,
                created_us: row.try_get("created_us")?,
                expires_us: row.try_get("expires_us")?,
            })
        };
        query.bind(now_us()).fetch_all(&self.pool).await?.iter().map(info).collect()
    }

    /// Whether there has ever been a token.
    pub(crate) async fn has_had_tokens(&self) -> Result<bool, sqlx::Error> {
        let count: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM tokens").fetch_one(&self.pool).await?;
        Ok(count > 0)
    }

    /// Ends a token; `false` if there is none of this id.
    ///
    /// # Errors
    /// The registry cannot be written.
    pub async fn revoke(&self, id: &str) -> Result<bool, sqlx::Error> {
        let change = sqlx::query("UPDATE tokens SET revoked_us = $1 WHERE id = $2 AND revoked_us IS NULL");
        Ok(change.bind(now_us()).bind(id).execute(&self.pool).await?.rows_affected() > 0)
    }
}

fn json_text(value: &impl serde::Serialize) -> String {
    serde_json::to_string(value).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lifecycle::row;
    use std::os::unix::fs::PermissionsExt;

    #[tokio::test]
    async fn a_name_is_taken_once_and_what_was_begun_is_found_again() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("sandboxes.db");
        let registry = Registry::open(&path).await.expect("a registry");
        let mode = std::fs::metadata(&path).expect("a file").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let body = serde_json::json!({"labels": ["a"], "environment": {"X": "1"}, "config": {"cpus": 2}});
        let body = serde_json::from_value(body).expect("a body");
        let first = row("local", "t1", "web", &body).expect("a row");
        assert!(registry.add(&first).await.expect("added"));
        assert!(!registry.add(&row("local", "t1", "web", &body).expect("a row")).await.expect("refused"));
        assert!(registry.add(&row("other", "t2", "web", &body).expect("a row")).await.expect("another organization's"));
        assert_eq!(registry.count("t1").await.expect("a count"), 1);
        drop(registry);
        let registry = Registry::open(&path).await.expect("again");
        assert_eq!(registry.unfinished().await.expect("rows").len(), 2);
        registry.set_state(&first.id, State::Ready).await.expect("ready");
        assert_eq!(registry.unfinished().await.expect("rows").len(), 1);
        let found = registry.find("local", "web").await.expect("a row").expect("it is there");
        assert_eq!((found.labels, found.environment), (first.labels, first.environment));
        assert_eq!((found.state, found.machine, found.config), (State::Ready, first.machine, first.config));
        for (prefix, after, count) in [("", "", 1), ("we", "", 1), ("x", "", 0), ("", "web", 0), ("%", "", 0)] {
            assert_eq!(registry.list("local", prefix, after, 10).await.expect("rows").len(), count, "{prefix} {after}");
        }
        registry.remove(&first.id).await.expect("removed");
        assert!(registry.find("local", "web").await.expect("no row").is_none());
    }

    #[tokio::test]
    async fn a_token_is_good_until_it_ends_or_is_revoked() {
        let folder = tempfile::tempdir().expect("a folder");
        let registry = Registry::open(&folder.path().join("sandboxes.db")).await.expect("a registry");
        let token = |org: &str| Token::new(org).expect("random bytes");
        let (good, narrow, over, unknown) = (token("local"), token("local"), token("local"), token("local"));
        let scope = Scope::Sandbox("web".to_owned());
        registry.add_token(&good, &Scope::Organization, Some(i64::MAX)).await.expect("added");
        registry.add_token(&narrow, &scope, None).await.expect("added");
        registry.add_token(&over, &Scope::Organization, Some(1)).await.expect("added");
        assert_eq!(registry.scope_of(&good).await.expect("found"), Some(Scope::Organization));
        assert_eq!(registry.scope_of(&narrow).await.expect("found"), Some(scope));
        assert_eq!(registry.scope_of(&over).await.expect("none"), None);
        assert_eq!(registry.scope_of(&unknown).await.expect("none"), None);
        // Another organization's name before a good secret.
        let forged = Token::parse(&good.text().replace("local", "other")).expect("a text");
        assert_eq!(registry.scope_of(&forged).await.expect("none"), None);
        assert_eq!(registry.tokens().await.expect("rows").len(), 2);
        assert!(registry.revoke(&good.id).await.expect("revoked"));
        assert!(!registry.revoke(&good.id).await.expect("no more"));
        assert_eq!(registry.scope_of(&good).await.expect("none"), None);
        assert!(registry.has_had_tokens().await.expect("rows"));
    }

    #[tokio::test]
    async fn a_newer_registry_is_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("sandboxes.db");
        let registry = Registry::open(&path).await.expect("a registry");
        sqlx::raw_sql("PRAGMA user_version = 99").execute(&registry.pool).await.expect("changed");
        let refused = Registry::open(&path).await.err().expect("refused").to_string();
        assert!(refused.contains("newer cairn"), "{refused}");
    }
}
