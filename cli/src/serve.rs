//! `cairn serve`.

use crate::args::{parse_size, Cli, ServeArgs};
use crate::beside::Beside;
use crate::client::Failure;
use crate::logging;
use crate::{api, mount};
use blockstore::disk::{Disk, OsDisk};
use blockstore::object::ObjectTier;
use blockstore::{Error, ErrorKind, PoolOptions};
use nbd_server::object::{CachedStore, Connected};
use nbd_server::{hold_signals, open_pool_with, while_in_use, Listen, Server, ServerOptions, Tls, TlsFiles};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tracing::{debug, error, info, warn};

/// Bounds of the cache for map pages: with less every request would read them from the disk.
const MAP_CACHE: std::ops::RangeInclusive<u64> = 1 << 20..=1 << 40;

/// Bounds of what a pool keeps here: less than a few segments is no use.
const CACHE_SIZE: std::ops::RangeInclusive<u64> = 256 << 20..=1 << 50;

/// How far the object store may lag behind: less than a round takes is no use.
const LAGS: std::ops::RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(3600);

fn tls(args: &ServeArgs) -> Result<Option<Tls>, Failure> {
    let (Some(cert), Some(key)) = (args.tls_cert.clone(), args.tls_key.clone()) else { return Ok(None) };
    if args.tls_client_ca.is_none() {
        warn!("without --tls-client-ca every client that can connect may read and write every volume");
    }
    let files = TlsFiles { cert, key, client_ca: args.tls_client_ca.clone() };
    Tls::load(&files).map(Some).map_err(|e| Failure::new("invalid", format!("TLS: {e}")))
}

/// Of --cache-size, one part in so many is for what was read from the object store, the rest for segments.
const CACHE_PART: u64 = 4;
/// Without --cache-size, what was read may take this much, or a tenth of the free space if that is less.
const CACHE_BYTES: u64 = 10 << 30;

fn cache_size(args: &ServeArgs) -> Result<Option<u64>, Failure> {
    let Some(text) = &args.cache_size else { return Ok(None) };
    if args.object.object_store.is_none() {
        return Err(Failure::new("invalid", "--cache-size is of use only with --object-store URL"));
    }
    match parse_size(text).filter(|size| CACHE_SIZE.contains(size)) {
        Some(size) => Ok(Some(size)),
        None => {
            Err(Failure::new("invalid", format!("--cache-size {text:?} is not a size from 256M to 1P: use 20G, …")))
        }
    }
}

/// Begins the file of what is read from the object store; without a store none is left.
fn begin_cache(folder: &Path, cache: Option<&CachedStore>, size: Option<u64>) {
    let path = folder.join("cache");
    let Some(cache) = cache else {
        // Most pools have none.
        let _ = std::fs::remove_file(path);
        return;
    };
    let free = OsDisk::new(folder).space().ok().flatten().map_or(0, |space| space.free);
    let bytes = size.map_or(CACHE_BYTES.min(free / 10), |size| size / CACHE_PART);
    if let Err(e) = cache.begin(&path, bytes) {
        warn!(error = %e, "there is no cache of the object store: what is read comes from there each time");
    }
}

/// Runs the daemon until it is told to stop.
pub fn serve(cli: &Cli, args: &ServeArgs) -> Result<(), Failure> {
    logging::start(args.log_level, args.log_format);
    let folder = crate::requests::pool_folder(cli)?;
    // What cannot be right is found before anything is made.
    let usage = |why: String| Failure::new("invalid", why);
    let mut listen = args.nbd.iter().map(|text| Listen::parse(text)).collect::<Result<Vec<_>, _>>().map_err(usage)?;

    let tls = tls(args)?;
    Listen::check_all(&listen, tls.is_some()).map_err(usage)?;
    if args.api.api.is_some() {
        api::tls(&args.api)?;
        api::own_socket(&folder, &mut listen)?;
    }
    let map_cache = parse_size(&args.map_cache).filter(|size| MAP_CACHE.contains(size)).ok_or_else(|| {
        usage(format!("--map-cache {:?} is not a size from 1M to 1T: use 256M, 1G, …", args.map_cache))
    })?;
    let options = PoolOptions { map_cache, ..PoolOptions::default() };
    let lag = Duration::try_from_secs_f64(args.lag)
        .ok()
        .filter(|lag| LAGS.contains(lag))
        .ok_or_else(|| usage(format!("--lag {} is not a number of seconds from 0.1 to 3600", args.lag)))?;
    let cache_size = cache_size(args)?;
    // The store's threads are started below, and signals are the server's.
    hold_signals()?;
    let connected = crate::store::connect(&args.object)?;
    let cache = connected.as_ref().map(|connected| Arc::new(CachedStore::new(connected.tier.store.clone())));
    let tier = connected.as_ref().zip(cache.clone()).map(|(connected, cache)| {
        let entropy = connected.tier.entropy.clone();
        ObjectTier { store: cache, entropy }
    });
    let begin = Instant::now();
    let is_busy = |e: &Error| e.kind() == ErrorKind::Busy;
    let (_lock, mut pool, report) = while_in_use(is_busy, || open_pool_with(&folder, true, options, tier.clone()))?;
    begin_cache(&folder, cache.as_deref(), cache_size);
    pool.set_local_limit(cache_size.map(|size| size - size / CACHE_PART));
    let time_ms = begin.elapsed().as_millis() as u64;
    let (batches, changes, bytes) = (report.batches, report.records, report.bytes);
    info!(pool = %folder.display(), time_ms, batches, changes, bytes, "the pool is open");
    report.dropped.iter().for_each(|why| warn!(why, "recovery dropped something"));
    for id in pool.volumes() {
        let v = pool.volume_info(id)?;
        debug!(name = v.name, size_bytes = v.size, checkpoints = v.checkpoints, "a volume");
    }
    let volumes = pool.volumes().len();
    if let Some(Err(e)) = connected.as_ref().map(Connected::look) {
        if volumes == 0 {
            return Err(Failure::new("denied", format!("the object store cannot be used: {e}")));
        }
        error!(error = %e, "the object store cannot be used: volumes are served from here, and it is tried again");
    }
    if listen.is_empty() {
        warn!("without --nbd only commands are served: add --nbd unix:PATH or --nbd tcp:HOST:PORT for disks");
    }
    let pool_folder = folder.clone();
    let mut server = Server::new(
        pool,
        ServerOptions {
            folder,
            control: None,
            listen,
            spares: usize::from(args.spares),
            tls,
            lag,
            counted: connected.map(|connected| connected.raw),
        },
    )?;
    cache.into_iter().for_each(|cache| server.set_cache(cache));
    let mounted =
        args.mount.as_deref().map(|at| Ok::<_, Failure>((mount::serve_beside(&pool_folder, at)?, at))).transpose()?;
    let api = args.api.api.map(|_| api::serve_beside(&pool_folder, args)).transpose()?;
    info!(nbd = args.nbd.join(" "), volumes, version = env!("CARGO_PKG_VERSION"), "serving");
    let outcome = server.run();
    api.into_iter().for_each(Beside::end);
    mounted.into_iter().for_each(|(mounted, at)| mount::end_beside(mounted, at));
    Ok(outcome?)
}
