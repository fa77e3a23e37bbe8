//! A store in a bucket of S3, or of a server that speaks its protocol.
//!
//! Invariants
//!   * every call ends in bounded time, whatever the network does: connecting, each attempt and each body have limits;
//!   * a body is returned only if it has the length that was asked for and the server announced;
//!   * a conditional put is sent as `If-None-Match: *` and never without it; a 412 is `Exists`, also when an earlier
//!     attempt of ours made the object and its reply was lost;
//!   * calls from several threads run side by side.
//!
//! The SDK is asynchronous; a small runtime of the store's own does its waiting, and callers' threads the rest.
//! The runtime's threads keep the signal mask of the thread that opens the store.

mod body;
mod client;
mod errors;

use super::{check_put, StoreOptions};
use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::config::Builder;
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::Object;
use aws_sdk_s3::Client;
use blockstore::object::{
    check_key, is_key, Created, ObjectEntry, ObjectStore, Range, StoreError, StoreErrorKind, StoreResult,
};
use client::BACKOFF;
use errors::Failure;
use std::future::Future;
use std::time::Duration;
use tokio::runtime::Runtime;
use tokio::time::{sleep, timeout};

/// Time for a connection.
const CONNECT_TIME: Duration = Duration::from_secs(3);
/// Slowest transfer that is waited for, bytes per second.
const SLOWEST: u64 = 1 << 20;
/// Tries of a conditional put that meets another one (409): S3 then decided for neither.
const CONFLICT_TRIES: u32 = 5;
/// Threads that wait for the network.
const WORKERS: usize = 2;
/// Most objects per request of a list, S3's own limit.
const PAGE_MAX: usize = 1000;

/// A bucket, or the part of it behind a prefix.
pub struct S3Store {
    client: Client,
    bucket: String,
    /// Empty, or ends with `/`.
    prefix: String,
    /// The store's URL and endpoint, for messages.
    place: String,
    attempt_timeout: Duration,
    attempts: u32,
    runtime: Runtime,
}

impl S3Store {
    /// Opens the store behind `prefix`, without a `/` at its end, in `bucket`. Nothing is sent yet.
    ///
    /// # Errors
    /// `Invalid` for an endpoint that is no URL; `Unavailable` if the system gives no threads.
    pub fn open(bucket: &str, prefix: &str, options: &StoreOptions) -> StoreResult<Self> {
        let url = format!("s3://{bucket}/{prefix}");
        let url = url.trim_end_matches('/');
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(WORKERS)
            .thread_name("cairn-s3")
            .enable_all()
            .build()
            .map_err(|e| {
                StoreError::new(StoreErrorKind::Unavailable, format!("{url}: no threads for the store: {e}"))
            })?;
        let (client, endpoint) = runtime
            .block_on(client::client(options))
            .map_err(|why| StoreError::new(StoreErrorKind::Invalid, format!("{url}: {why}")))?;
        Ok(Self {
            client,
            bucket: bucket.to_owned(),
            prefix: if prefix.is_empty() { String::new() } else { format!("{prefix}/") },
            place: endpoint.map_or_else(|| url.to_owned(), |endpoint| format!("{url} at {endpoint}")),
            attempt_timeout: options.attempt_timeout,
            attempts: options.attempts.max(1),
            runtime,
        })
    }

    fn path(&self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }

    fn error(&self, kind: StoreErrorKind, operation: &str, key: &str, what: &str) -> StoreError {
        StoreError::new(kind, format!("{operation} {key:?} in {}: {what}", self.place))
    }

    fn explain<E>(&self, operation: &str, key: &str, error: &SdkError<E>) -> StoreError
    where
        E: ProvideErrorMetadata + std::error::Error + 'static,
    {
        Failure::of(error).explain(operation, key, &self.place)
    }

    /// Time for one attempt that moves `bytes`.
    fn attempt_time(&self, bytes: u64) -> Duration {
        self.attempt_timeout + Duration::from_millis(bytes.saturating_mul(1000) / SLOWEST)
    }

    /// The time limits of a request whose body has `bytes`.
    fn limits(&self, bytes: u64) -> Builder {
        let attempt = self.attempt_time(bytes);
        let limits = TimeoutConfig::builder()
            .connect_timeout(CONNECT_TIME.min(attempt))
            .operation_attempt_timeout(attempt)
            .operation_timeout((attempt + BACKOFF.1) * self.attempts);
        Builder::new().timeout_config(limits.build())
    }

    /// Waits, before try `number` (1 is the second) of a request.
    async fn back_off(&self, number: u32) {
        sleep((BACKOFF.0 * 2_u32.saturating_pow(number.saturating_sub(1))).min(BACKOFF.1)).await;
    }

    async fn put_once(&self, key: &str, body: Vec<u8>, condition: Option<&str>) -> Result<(), Failure> {
        let limits = self.limits(body.len() as u64);
        let request = self.client.put_object().bucket(&self.bucket).key(self.path(key));
        let request = request.set_if_none_match(condition.map(str::to_owned)).body(ByteStream::from(body));
        let outcome = request.customize().config_override(limits).send().await;
        outcome.map(|_| ()).map_err(|e| Failure::of(&e))
    }

    async fn create(&self, key: &str, body: &[u8]) -> StoreResult<Created> {
        let mut tried = 1;
        loop {
            match self.put_once(key, body.to_vec(), Some("*")).await {
                Ok(()) => return Ok(Created::Yes),
                Err(failure) if failure.status == 412 => return Ok(Created::Exists),
                Err(failure) if failure.status == 409 && tried < CONFLICT_TRIES => self.back_off(tried).await,
                Err(failure) => return Err(failure.explain("put", key, &self.place)),
            }
            tried += 1;
        }
    }

    /// One request for a body. `Err(Ok(error))` is final; with `Err(Err(error))` another try may go better.
    async fn get_once(&self, key: &str, range: Range) -> Result<Vec<u8>, Result<StoreError, StoreError>> {
        let request = self.client.get_object().bucket(&self.bucket).key(self.path(key));
        let request = request.set_range(body::header(range));
        let answer = match request.customize().config_override(self.limits(0)).send().await {
            Ok(answer) => answer,
            // Behind the object's end, or the object is empty.
            Err(e) if Failure::of(&e).status == 416 => return Ok(Vec::new()),
            Err(e) => return Err(Ok(self.explain("get", key, &e))),
        };
        let length = body::length(range, answer.content_length(), answer.content_range())
            .map_err(|why| Ok(self.error(StoreErrorKind::Corrupt, "get", key, &why)))?;
        let limit = self.attempt_time(length.unwrap_or_default());
        match timeout(limit, body::collect(answer.body, length)).await {
            Ok(Ok(bytes)) => Ok(bytes),
            Ok(Err(why)) => Err(Err(self.error(StoreErrorKind::Unavailable, "get", key, &why))),
            Err(_) => {
                let why = format!("the body did not arrive within {} s", limit.as_secs());
                Err(Err(self.error(StoreErrorKind::Unavailable, "get", key, &why)))
            }
        }
    }

    async fn get_within_tries(&self, key: &str, range: Range) -> StoreResult<Vec<u8>> {
        let mut tried = 1;
        loop {
            match self.get_once(key, range).await {
                Ok(body) => return Ok(body),
                Err(Err(_)) if tried < self.attempts => self.back_off(tried).await,
                Err(Ok(error) | Err(error)) => return Err(error),
            }
            tried += 1;
        }
    }

    /// One page of a list: objects in S3's words, and how to go on.
    async fn page(&self, prefix: &str, place: &ListPlace, max: usize) -> StoreResult<(Vec<Object>, Option<String>)> {
        let request = self.client.list_objects_v2().bucket(&self.bucket).prefix(self.path(prefix));
        let request = match place {
            ListPlace::After(key) => request.set_start_after(Some(key.clone()).filter(|key| !key.is_empty())),
            ListPlace::Token(token) => request.continuation_token(token),
        };
        let request = request.max_keys(max.min(PAGE_MAX) as i32).customize().config_override(self.limits(0));
        let answer = request.send().await.map_err(|e| match self.explain("list", prefix, &e) {
            // There is no object that could be missing: a bucket it is.
            error if error.kind == StoreErrorKind::NotFound => StoreError::new(StoreErrorKind::Invalid, error.message),
            error => error,
        })?;
        let more = answer.is_truncated().unwrap_or_default();
        let token = answer.next_continuation_token().filter(|_| more).map(str::to_owned);
        if more && token.is_none() {
            return Err(self.error(StoreErrorKind::Corrupt, "list", prefix, "the list ends without its rest"));
        }
        Ok((answer.contents.unwrap_or_default(), token))
    }

    async fn list_pages(&self, prefix: &str, after: &str, max: usize) -> StoreResult<Vec<ObjectEntry>> {
        let mut out = Vec::new();
        let mut place = ListPlace::After(self.path(after));
        let mut last = self.path(after);
        while out.len() < max {
            let (objects, token) = self.page(prefix, &place, max - out.len()).await?;
            for object in objects {
                let path = object.key.unwrap_or_default();
                let key = path.strip_prefix(&self.prefix).filter(|key| key.starts_with(prefix));
                let Some(key) = key.filter(|_| path > last || after.is_empty() && last == self.prefix) else {
                    let what = format!("{path:?} is not what comes next: directory buckets cannot be used");
                    return Err(self.error(StoreErrorKind::Corrupt, "list", prefix, &what));
                };
                if is_key(key) && out.len() < max {
                    let modified = object.last_modified.and_then(|at| u64::try_from(at.as_nanos() / 1000).ok());
                    let size = object.size.and_then(|size| u64::try_from(size).ok()).unwrap_or_default();
                    out.push(ObjectEntry { key: key.to_owned(), size, modified_us: modified.unwrap_or_default() });
                }
                last = path;
            }
            let Some(token) = token else { break };
            place = ListPlace::Token(token);
        }
        Ok(out)
    }

    async fn remove(&self, key: &str) -> StoreResult<()> {
        let request = self.client.delete_object().bucket(&self.bucket).key(self.path(key));
        let outcome = request.customize().config_override(self.limits(0)).send().await;
        match outcome.map_err(|e| self.explain("delete", key, &e)) {
            Err(e) if e.kind == StoreErrorKind::NotFound => Ok(()),
            outcome => outcome.map(|_| ()),
        }
    }

    /// Does `work` on the calling thread, with the runtime's timers and sockets.
    fn wait<T>(&self, work: impl Future<Output = T>) -> T {
        self.runtime.block_on(work)
    }
}

/// Where a list goes on.
enum ListPlace {
    After(String),
    Token(String),
}

impl ObjectStore for S3Store {
    fn put(&self, key: &str, body: &[u8]) -> StoreResult<()> {
        check_put("put", key, body)?;
        let outcome = self.wait(self.put_once(key, body.to_vec(), None));
        outcome.map_err(|failure| failure.explain("put", key, &self.place))
    }

    fn put_if_absent(&self, key: &str, body: &[u8]) -> StoreResult<Created> {
        check_put("put", key, body)?;
        self.wait(self.create(key, body))
    }

    fn get(&self, key: &str, range: Range) -> StoreResult<Vec<u8>> {
        check_key(key)?;
        self.wait(self.get_within_tries(key, range))
    }

    fn list(&self, prefix: &str, after: Option<&str>, max: usize) -> StoreResult<Vec<ObjectEntry>> {
        self.wait(self.list_pages(prefix, after.unwrap_or_default(), max))
    }

    fn delete(&self, key: &str) -> StoreResult<()> {
        check_key(key)?;
        self.wait(self.remove(key))
    }
}
