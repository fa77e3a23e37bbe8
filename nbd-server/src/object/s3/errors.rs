//! What an answer of S3 means to the store, and what its user should do.
//!
//! Invariants
//!   * messages name operation, key and store; of the server's text nothing is repeated where it may speak of
//!     credentials;
//!   * what could succeed later is `Unavailable`, what cannot is not.

use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use blockstore::object::{StoreError, StoreErrorKind};
use std::error::Error;

/// Longest part of a server's text that is repeated.
const TEXT_MAX: usize = 300;

/// The parts of a failure that the verdict depends on.
#[derive(Debug)]
pub(super) struct Failure {
    /// HTTP status, 0 if there was no answer.
    pub status: u16,
    /// S3's word for it, possibly empty.
    code: String,
    /// What the server or the SDK says about it.
    text: String,
    /// The credentials could not even be found.
    no_credentials: bool,
}

impl Failure {
    pub fn of<E>(error: &SdkError<E>) -> Self
    where
        E: ProvideErrorMetadata + Error + 'static,
    {
        let status = error.raw_response().map_or(0, |response| response.status().as_u16());
        let metadata = error.as_service_error().map(ProvideErrorMetadata::meta);
        let code = metadata.and_then(|meta| meta.code()).unwrap_or_default().to_owned();
        let said = metadata.and_then(|meta| meta.message()).map(str::to_owned);
        Self { status, code, text: said.unwrap_or_else(|| chain(error)), no_credentials: lacks_credentials(error) }
    }

    /// The verdict on `operation` of `key` in the store `place`.
    pub fn explain(&self, operation: &str, key: &str, place: &str) -> StoreError {
        let (kind, what) = self.verdict();
        StoreError::new(kind, format!("{operation} {key:?} in {place}: {what}"))
    }

    fn verdict(&self) -> (StoreErrorKind, String) {
        use StoreErrorKind::{Denied, Invalid, NotFound, Unavailable};
        if self.no_credentials {
            return (
                Denied,
                "no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE".to_owned(),
            );
        }
        let named = match self.code.as_str() {
            "NoSuchKey" => Some((NotFound, "there is no such object")),
            "NoSuchBucket" => Some((Invalid, "there is no such bucket: make it, or mend the URL")),
            "InvalidBucketName" => Some((Invalid, "that is no bucket's name: mend the URL")),
            "RequestTimeTooSkewed" | "RequestExpired" => {
                Some((Denied, "this machine's clock is off, and S3 refuses requests of another time: set the clock"))
            }
            "InvalidAccessKeyId" | "SignatureDoesNotMatch" | "InvalidSecurity" => {
                Some((Denied, "the credentials are wrong: check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"))
            }
            "ExpiredToken" | "InvalidToken" | "TokenRefreshRequired" => {
                Some((Denied, "the session's credentials have expired: renew them, AWS_SESSION_TOKEN included"))
            }
            "AccessDenied" | "AllAccessDisabled" | "AccountProblem" => Some((
                Denied,
                "access denied: the credentials need s3:GetObject, s3:PutObject, s3:DeleteObject and s3:ListBucket here \
                 (check AWS_ACCESS_KEY_ID if they are not the ones you mean)",
            )),
            "PermanentRedirect" | "AuthorizationHeaderMalformed" | "IllegalLocationConstraintException" => {
                Some((Invalid, "the bucket is in another region: set AWS_REGION"))
            }
            "NotImplemented" => Some((Invalid, "the server does not know this request: it has not all of S3 that is needed")),
            _ => None,
        };
        if let Some((kind, what)) = named {
            return (kind, what.to_owned());
        }
        let said = self.said();
        match self.status {
            0 => (Unavailable, format!("no answer ({said}): check network and endpoint")),
            401 | 403 => (Denied, format!("access denied (status {}): check AWS_ACCESS_KEY_ID", self.status)),
            301 | 302 | 307 | 308 => {
                (Invalid, "the bucket is elsewhere: set AWS_REGION, or mend the endpoint".to_owned())
            }
            404 => (NotFound, "there is no such object or bucket".to_owned()),
            // 408 Request Timeout, 409 a change that goes on, 425 and 429 too much at a time.
            408 | 409 | 425 | 429 | 500.. => {
                (Unavailable, format!("the store cannot now (status {}, {said})", self.status))
            }
            200..=299 => (Unavailable, format!("an answer that cannot be understood ({said}): is this S3?")),
            _ => (Invalid, format!("refused (status {}, {said})", self.status)),
        }
    }

    /// What the server or the SDK said, short and without control characters.
    fn said(&self) -> String {
        let text = self.text.chars().filter(|c| !c.is_control()).take(TEXT_MAX);
        let text: String = if self.code.is_empty() {
            text.collect()
        } else {
            format!("{}: ", self.code).chars().chain(text).collect()
        };
        if text.is_empty() {
            "no explanation".to_owned()
        } else {
            text
        }
    }
}

/// An error, and what caused it.
fn causes<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |e| (**e).source())
}

/// The texts of an error and of its causes, each once.
fn chain(error: &(dyn Error + 'static)) -> String {
    let mut texts: Vec<String> = Vec::new();
    for cause in causes(error) {
        let text = cause.to_string();
        if !texts.iter().any(|known| known.contains(&text)) {
            texts.push(text);
        }
    }
    texts.join(": ")
}

fn lacks_credentials(error: &(dyn Error + 'static)) -> bool {
    causes(error).any(|cause| cause.is::<CredentialsError>())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(status: u16, code: &str) -> (StoreErrorKind, String) {
        let text = "the server's text".to_owned();
        let failure = Failure { status, code: code.to_owned(), text, no_credentials: false };
        let error = failure.explain("get", "seg/1", "s3://disks");
        assert!(error.message.starts_with("get \"seg/1\" in s3://disks: "), "{error}");
        (error.kind, error.message)
    }

    #[test]
    fn each_answer_says_what_to_do() {
        use StoreErrorKind::{Denied, Invalid, NotFound, Unavailable};
        let table = [
            (404, "NoSuchKey", NotFound, "no such object"),
            (404, "", NotFound, "no such object"),
            (404, "NoSuchBucket", Invalid, "no such bucket"),
            (403, "RequestTimeTooSkewed", Denied, "clock"),
            (403, "InvalidAccessKeyId", Denied, "AWS_ACCESS_KEY_ID"),
            (403, "SignatureDoesNotMatch", Denied, "AWS_ACCESS_KEY_ID"),
            (400, "ExpiredToken", Denied, "AWS_SESSION_TOKEN"),
            (403, "AccessDenied", Denied, "s3:PutObject"),
            (403, "Strange", Denied, "AWS_ACCESS_KEY_ID"),
            (301, "PermanentRedirect", Invalid, "AWS_REGION"),
            (501, "NotImplemented", Invalid, "does not know"),
            (503, "SlowDown", Unavailable, "SlowDown: the server's text"),
            (500, "", Unavailable, "status 500"),
            (429, "", Unavailable, "status 429"),
            (409, "ConditionalRequestConflict", Unavailable, "status 409"),
            (400, "InvalidArgument", Invalid, "InvalidArgument"),
            (200, "", Unavailable, "is this S3"),
            (0, "", Unavailable, "endpoint"),
        ];
        for (status, code, kind, hint) in table {
            let (found, message) = verdict(status, code);
            assert_eq!(found, kind, "{status} {code}");
            assert!(message.contains(hint), "{status} {code}: {message}");
            assert!(kind != Denied || !message.contains("the server's text"), "{message}");
        }
    }
}
