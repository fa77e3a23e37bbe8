//! Refusals that many routes have in common, and their parameters, for the document.

use crate::wire::Problem;
use utoipa::{IntoParams, IntoResponses};

macro_rules! refusals {
    ($($name:ident $status:literal $text:literal),+ $(,)?) => {$(
        #[derive(IntoResponses)]
        #[response(status = $status, description = $text)]
        #[allow(dead_code)]
        pub struct $name(#[to_schema] Problem);
    )+};
}

refusals! {
    BadRequest 400 "What was sent cannot be",
    Refused 401 "No token, or one that is good for nothing",
    TooNarrow 403 "The token is good for one sandbox only",
    Gone 404 "There is none that this token is good for",
    Taken 409 "There is one already",
    NoRange 416 "The file is shorter",
    TooMany 429 "As many as may be: Retry-After says when to try again",
    Failed 500 "The guest or the host failed",
    Busy 503 "Somebody else changes it: try again",
}

/// The sandbox.
#[derive(IntoParams)]
#[into_params(parameter_in = Path)]
#[allow(dead_code)]
pub struct Name {
    /// Its name
    name: String,
}

/// The sandbox and a checkpoint of it.
#[derive(IntoParams)]
#[into_params(parameter_in = Path)]
#[allow(dead_code)]
pub struct NameAndId {
    /// Its name
    name: String,
    /// A checkpoint, or `Current`
    id: String,
}

/// The sandbox and a command that runs in it.
#[derive(IntoParams)]
#[into_params(parameter_in = Path)]
#[allow(dead_code)]
pub struct NameAndSession {
    /// Its name
    name: String,
    /// The command's number, as the list of them shows it
    id: String,
}

/// A file.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[allow(dead_code)]
pub struct Place {
    /// Its path
    path: String,
    /// What a path without a leading `/` begins at
    #[param(rename = "workingDir")]
    working_dir: Option<String>,
}
