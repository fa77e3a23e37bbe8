//! Sandboxes, and whose they are.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use utoipa::ToSchema;

/// What a new sandbox has; the image's or the server's usual values for what is left out.
#[derive(Clone, Debug, Default, Deserialize, Serialize, ToSchema)]
pub struct Config {
    /// Memory, MiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ram_mb: Option<u64>,
    /// Processors.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpus: Option<u32>,
    /// Where it is to be: taken note of, and without meaning on one host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// Size of its disk, GiB. What is not written takes no space.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub storage_gb: Option<u64>,
}

/// Who may reach a sandbox's URL.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, ToSchema, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum UrlAuth {
    /// Who has a token.
    #[default]
    Sprite,
    /// Everybody.
    Public,
}

/// How a sandbox's URL is reached.
#[derive(Clone, Debug, Default, Deserialize, Serialize, ToSchema)]
pub struct UrlSettings {
    /// `sprite` or `public`.
    #[schema(value_type = Option<UrlAuth>)]
    pub auth: Option<String>,
}

/// What a sandbox is made from: an image, or another sandbox as it is now or was at a checkpoint. Copies nothing.
#[derive(Clone, Debug, Default, Deserialize, Serialize, ToSchema)]
pub struct Source {
    /// An image's name.
    pub image: Option<String>,
    /// A sandbox's name.
    pub sprite: Option<String>,
    /// A checkpoint of it; as it is now without.
    pub checkpoint: Option<String>,
}

/// A new sandbox.
#[derive(Clone, Debug, Default, Deserialize, Serialize, ToSchema)]
pub struct SpriteCreate {
    /// Its name: 1 to 63 of `a-z`, `0-9` and `-`, as in a host's name.
    pub name: Option<String>,
    /// What it has.
    pub config: Option<Config>,
    /// Variables of every command in it.
    pub environment: Option<BTreeMap<String, String>>,
    /// How its URL is reached.
    pub url_settings: Option<UrlSettings>,
    /// Words to find it by.
    pub labels: Option<Vec<String>>,
    /// What it is made from; the server's usual image without.
    pub from: Option<Source>,
}

/// A change of a sandbox. If there is none of this name, it is made: then the fields of [`SpriteCreate`] hold, too.
#[derive(Clone, Debug, Default, Deserialize, Serialize, ToSchema)]
pub struct SpriteUpdate {
    /// All its labels.
    pub labels: Option<Vec<String>>,
    /// No label stays.
    pub clear_labels: Option<bool>,
    /// How its URL is reached.
    pub url_settings: Option<UrlSettings>,
    /// Of one that is made.
    pub config: Option<Config>,
    /// Of one that is made.
    pub environment: Option<BTreeMap<String, String>>,
    /// Of one that is made.
    pub from: Option<Source>,
}

/// Whether a sandbox's guest runs.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, ToSchema, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum SpriteStatus {
    /// It does not: the next request boots it.
    Cold,
    /// It does not, and its memory is kept: the next request wakes it.
    Warm,
    /// It does.
    Running,
}

/// A sandbox.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Sprite {
    /// What tells it from every other that ever was.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Whether its guest runs.
    pub status: SpriteStatus,
    /// Null.
    pub version: Option<String>,
    /// Where it is to be reached.
    pub url: String,
    /// When it was made (RFC 3339).
    pub created_at: String,
    /// When it was changed (RFC 3339).
    pub updated_at: String,
    /// When it was woken last (RFC 3339).
    pub last_active_at: Option<String>,
    /// Whose it is.
    pub organization: String,
    /// How its URL is reached.
    pub url_settings: UrlSettings,
    /// Null.
    pub environment_version: Option<String>,
    /// Its labels.
    pub labels: Vec<String>,
    /// What its creator asked for.
    #[schema(value_type = Option<Config>)]
    pub config: serde_json::Value,
}

/// How many sandboxes are how.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Counts {
    /// The organization.
    pub name: String,
    /// That run.
    pub running: usize,
    /// That sleep.
    pub warm: usize,
    /// That do neither.
    pub cold: usize,
}

/// A page of sandboxes, by name.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct SpritePage {
    /// The sandboxes.
    pub sprites: Vec<Sprite>,
    /// Whether more come after them.
    pub has_more: bool,
    /// Ask with this for the next page.
    pub next_continuation_token: Option<String>,
    /// Counts of this page.
    #[serde(flatten)]
    pub counts: Counts,
    /// Null: there is no limit.
    pub running_limit: Option<u64>,
    /// Null: there is no limit.
    pub warm_limit: Option<u64>,
    /// The same counts.
    pub org: Counts,
}

/// Answer to a new start.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Restarted {
    /// The sandbox.
    pub sprite_name: String,
    /// Its machine.
    pub machine_id: String,
    /// `restarted`.
    pub message: String,
}

/// Answer to an upgrade.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Upgraded {
    /// The sandbox.
    pub name: String,
    /// `upgraded`.
    pub status: String,
}

/// How a sandbox is.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Check {
    /// Its name.
    pub sprite_name: String,
    /// Its id.
    pub sprite_id: String,
    /// `healthy`, `hibernated`, `unhealthy` or `error`.
    pub status: String,
    /// Why, unless it is healthy.
    pub reason: String,
    /// When (RFC 3339).
    pub checked_at: String,
    /// How long that took.
    pub elapsed: String,
}

/// The caller's organization.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Organization {
    /// It.
    pub organization: OrganizationInfo,
}

/// About an organization.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct OrganizationInfo {
    /// Its name.
    pub slug: String,
    /// True.
    pub sprites_enabled: bool,
    /// Sandboxes of the host that run.
    pub active_sprites: usize,
    /// Sandboxes that it may have; null: without limit.
    pub max_sprites: Option<u64>,
    /// Null: without limit.
    pub active_sprite_limit: Option<u64>,
}
