//! The object store that the command line names.

use crate::args::ObjectArgs;
use crate::client::Failure;
use blockstore::object::sealed::{KeyWrap, LocalKey};
use blockstore::object::{StoreError, StoreErrorKind};
use nbd_server::object::{ConnectOptions, Connected, StoreOptions};
use nbd_server::{read_key_file, CommandKey, SystemEntropy};
use std::path::Path;
use std::sync::Arc;

/// A store's error as a failure of the command.
pub fn failure(e: &StoreError) -> Failure {
    let kind = match e.kind {
        StoreErrorKind::NotFound => "not_found",
        StoreErrorKind::Invalid => "invalid",
        StoreErrorKind::Denied => "denied",
        StoreErrorKind::Corrupt => "corrupt",
        _ => "unavailable",
    };
    Failure::new(kind, e.message.clone())
}

/// The store of the command line, if it names one.
pub fn connect(args: &ObjectArgs) -> Result<Option<Connected>, Failure> {
    let key = key(args)?;
    let Some(url) = args.object_store.clone() else {
        if key.is_some() {
            return Err(Failure::new("invalid", "a key is of use only with --object-store URL"));
        }
        return Ok(None);
    };
    let store =
        StoreOptions { endpoint: args.s3_endpoint.clone(), path_style: args.s3_path_style, ..StoreOptions::default() };
    let options = ConnectOptions { url, store, key, single_writer: args.single_writer };
    Connected::open(&options).map(Some).map_err(|e| failure(&e))
}

/// The key that the command line names, if it names one.
pub fn key(args: &ObjectArgs) -> Result<Option<Arc<dyn KeyWrap>>, Failure> {
    key_of(args.key_file.as_deref(), args.key_command.as_deref())
}

/// The key in a file, or behind a command.
pub fn key_of(file: Option<&Path>, command: Option<&str>) -> Result<Option<Arc<dyn KeyWrap>>, Failure> {
    if let Some(path) = file {
        let key = LocalKey::new(read_key_file(path)?, Arc::new(SystemEntropy)).map_err(|e| failure(&e))?;
        return Ok(Some(Arc::new(key)));
    }
    let Some(command) = command else { return Ok(None) };
    let key = CommandKey::new(command).map_err(|e| failure(&e))?;
    Ok(Some(Arc::new(key)))
}
