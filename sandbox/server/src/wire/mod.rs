//! What goes over the wire as JSON: requests, answers and refusals. The OpenAPI document is made of these types.
//!
//! Fields that are not known are passed over; what is missing, or null, has the value that its description names.

mod checkpoints;
mod exec;
mod files;
mod sprites;

pub use checkpoints::*;
pub use exec::*;
pub use files::*;
pub use sprites::*;

use crate::error::{ApiError, ApiResult};
use axum::body::Bytes;
use serde::de::DeserializeOwned;
use serde::Serialize;
use utoipa::ToSchema;

/// The body as JSON; none is an empty object.
pub fn parse<T: DeserializeOwned>(bytes: &Bytes) -> ApiResult<T> {
    let bytes: &[u8] = if bytes.iter().all(u8::is_ascii_whitespace) { b"{}" } else { bytes };
    if bytes.trim_ascii_start().first() != Some(&b'{') {
        return Err(ApiError::bad("the body is no JSON object"));
    }
    serde_json::from_slice(bytes).map_err(|e| ApiError::bad(format!("the body is not what is expected here: {e}")))
}

/// Why something was not done.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Problem {
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// All that is wrong with what was sent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub errors: Option<Vec<String>>,
    /// Of a file: `ENOENT`, `EEXIST`, ….
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    /// The file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_are_objects_whose_unknown_fields_are_passed_over() {
        let parsed = |text: &str| parse::<SpriteCreate>(&Bytes::from(text.to_owned()));
        assert!(parsed("").expect("nothing").name.is_none());
        assert_eq!(parsed(" {\"name\": \"a\", \"later\": [1]}").expect("an object").name.as_deref(), Some("a"));
        assert!(parsed("{\"name\": null, \"labels\": null}").is_ok());
        for bad in ["[]", "1", "{", "{\"name\": 1}", "null", "[\"a\"]", "{\"config\": {\"cpus\": -1}}", "{} x"] {
            assert_eq!(parsed(bad).map(|_| ()).map_err(|e| e.status.as_u16()), Err(400), "{bad}");
        }
    }
}
