//! `slow_proxy HOST:PORT MILLISECONDS` puts an HTTP server on this machine so far away; prints the URL to use
//! instead, then ends with its standard input.

use nbd_server::testing::SlowProxy;
use std::io::Read;
use std::net::ToSocketAddrs;
use std::time::Duration;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [server, milliseconds] = arguments.as_slice() else { return usage() };
    let address = server.trim_start_matches("http://").to_socket_addrs().ok().and_then(|mut found| found.next());
    let (Some(address), Ok(latency)) = (address, milliseconds.parse()) else { return usage() };
    match SlowProxy::start(address, Duration::from_millis(latency)) {
        Ok(proxy) => {
            println!("{}", proxy.url());
            let _ = std::io::stdin().read_to_end(&mut Vec::new());
        }
        Err(e) => {
            eprintln!("slow_proxy: {e}");
            std::process::exit(1);
        }
    }
}

fn usage() {
    eprintln!("usage: slow_proxy HOST:PORT MILLISECONDS");
    std::process::exit(2);
}
