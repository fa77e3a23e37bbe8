//! `cairn serve`.

use crate::args::{parse_size, Cli, ServeArgs};
use crate::client::Failure;
use blockstore::PoolOptions;
use nbd_server::{open_pool, Listen, Server, ServerOptions, Tls, TlsFiles};

fn listen(text: &str) -> Result<Listen, Failure> {
    match text.split_once(':') {
        Some(("unix", path)) if !path.is_empty() => Ok(Listen::Unix(path.into())),
        Some(("tcp", address)) if address.contains(':') => Ok(Listen::Tcp(address.to_owned())),
        _ => Err(Failure::new("invalid", format!("{text:?} is not an address: use unix:PATH or tcp:HOST:PORT"))),
    }
}

fn tls(args: &ServeArgs) -> Result<Option<Tls>, Failure> {
    let (Some(cert), Some(key)) = (args.tls_cert.clone(), args.tls_key.clone()) else { return Ok(None) };
    if args.tls_client_ca.is_none() {
        eprintln!("cairn: without --tls-client-ca every client that can connect may read and write every volume");
    }
    let files = TlsFiles { cert, key, client_ca: args.tls_client_ca.clone() };
    Tls::load(&files).map(Some).map_err(|e| Failure::new("invalid", format!("TLS: {e}")))
}

/// Runs the daemon until it is told to stop.
pub fn serve(cli: &Cli, args: &ServeArgs) -> Result<(), Failure> {
    let folder = crate::requests::pool_folder(cli)?;
    let listen = args.nbd.iter().map(|text| listen(text)).collect::<Result<Vec<_>, _>>()?;
    let tls = tls(args)?;
    let map_cache = parse_size(&args.map_cache)
        .ok_or_else(|| Failure::new("invalid", format!("{:?} is not a size: use 256M, 1G, …", args.map_cache)))?;
    let options = PoolOptions { map_cache, ..PoolOptions::default() };
    let (_lock, pool, report) = open_pool(&folder, true, options)?;
    if report.batches > 0 {
        eprintln!("cairn: replayed {} changes in {} batches", report.records, report.batches);
    }
    report.dropped.iter().for_each(|why| eprintln!("cairn: recovery dropped {why}"));
    let server = Server::new(pool, ServerOptions { folder: folder.clone(), listen, spares: args.spares, tls })?;
    eprintln!("cairn: serving {} ({})", folder.display(), args.nbd.join(", "));
    Ok(server.run()?)
}
