//! `cairn serve`.

use crate::args::{parse_size, Cli, ServeArgs};
use crate::client::Failure;
use crate::logging;
use blockstore::{Error, ErrorKind, PoolOptions};
use nbd_server::object::Connected;
use nbd_server::{hold_signals, open_pool_with, while_in_use, Listen, Server, ServerOptions, Tls, TlsFiles};
use std::time::{Duration, Instant};
use tracing::{debug, error, info, warn};

/// Bounds of the cache for map pages: with less every request would read them from the disk.
const MAP_CACHE: std::ops::RangeInclusive<u64> = 1 << 20..=1 << 40;

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

/// Runs the daemon until it is told to stop.
pub fn serve(cli: &Cli, args: &ServeArgs) -> Result<(), Failure> {
    logging::start(args.log_level, args.log_format);
    let folder = crate::requests::pool_folder(cli)?;
    // What cannot be right is found before anything is made.
    let usage = |why: String| Failure::new("invalid", why);
    let listen = args.nbd.iter().map(|text| Listen::parse(text)).collect::<Result<Vec<_>, _>>().map_err(usage)?;
    let tls = tls(args)?;
    Listen::check_all(&listen, tls.is_some()).map_err(usage)?;
    let map_cache = parse_size(&args.map_cache).filter(|size| MAP_CACHE.contains(size)).ok_or_else(|| {
        usage(format!("--map-cache {:?} is not a size from 1M to 1T: use 256M, 1G, …", args.map_cache))
    })?;
    let options = PoolOptions { map_cache, ..PoolOptions::default() };
    let lag = Duration::try_from_secs_f64(args.lag)
        .ok()
        .filter(|lag| LAGS.contains(lag))
        .ok_or_else(|| usage(format!("--lag {} is not a number of seconds from 0.1 to 3600", args.lag)))?;
    // The store's threads are started below, and signals are the server's.
    hold_signals()?;
    let connected = crate::store::connect(&args.object)?;
    let tier = connected.as_ref().map(|connected| connected.tier.clone());
    let begin = Instant::now();
    let is_busy = |e: &Error| e.kind() == ErrorKind::Busy;
    let (_lock, pool, report) = while_in_use(is_busy, || open_pool_with(&folder, true, options, tier.clone()))?;
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
    let server = Server::new(
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
    info!(nbd = args.nbd.join(" "), volumes, version = env!("CARGO_PKG_VERSION"), "serving");
    Ok(server.run()?)
}
