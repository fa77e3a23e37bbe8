//! `cairn-agent proxy HOST PORT`: a TCP connection of the guest on standard input and output.

use super::{tell, Failure};
use serde_json::json;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpStream, ToSocketAddrs};
use std::time::Duration;

/// How long a connection may take to be made; the host waits for ten.
const CONNECT: Duration = Duration::from_secs(8);

fn connect(host: &str, port: u16) -> io::Result<TcpStream> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    // A guest need not have a resolver, nor a file of names.
    let own = [SocketAddr::from((Ipv4Addr::LOCALHOST, port)), SocketAddr::from((Ipv6Addr::LOCALHOST, port))];
    let found = match host {
        "localhost" => own.to_vec(),
        host => (host, port).to_socket_addrs()?.collect(),
    };
    for address in found {
        match TcpStream::connect_timeout(&address, CONNECT) {
            Ok(stream) => return Ok(stream),
            Err(e) => last = e,
        }
    }
    Err(last)
}

fn pump(from: &mut impl Read, to: &mut impl Write) {
    let mut buffer = [0; 16 << 10];
    while let Ok(n) = from.read(&mut buffer) {
        let Some(bytes) = buffer.get(..n).filter(|bytes| !bytes.is_empty()) else { break };
        if to.write_all(bytes).and_then(|()| to.flush()).is_err() {
            break;
        }
    }
}

/// A line that says that it is there, then what comes from it; what comes on standard input goes to it.
pub(super) fn carry_out(host: &str, port: &str) -> Result<(), Failure> {
    let port = port.parse().map_err(|_| super::usage())?;
    let mut stream = connect(host, port)?;
    let _ = stream.set_nodelay(true);
    tell(&json!({"status": "connected", "target": format!("{host}:{port}")}))?;
    let mut to = stream.try_clone()?;
    std::thread::spawn(move || {
        pump(&mut io::stdin().lock(), &mut to);
        let _ = to.shutdown(Shutdown::Write);
    });
    pump(&mut stream, &mut io::stdout().lock());
    Ok(())
}
