//! `cairn-agent ports`: TCP ports that somebody listens on, as they come and go.

use super::{tell, Failure};
use serde_json::{json, Value};
use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

/// Between two looks.
const LOOK: Duration = Duration::from_millis(250);
/// The kernel's number of the state in which a socket listens.
const LISTEN: &str = "0A";

/// An address of `/proc/net/tcp`, whose words are in the processor's order.
fn address(text: &str) -> Option<IpAddr> {
    let words = text.as_bytes().chunks(8).map(|word| u32::from_str_radix(std::str::from_utf8(word).ok()?, 16).ok());
    match words.collect::<Option<Vec<u32>>>()?.as_slice() {
        [word] => Some(IpAddr::V4(Ipv4Addr::from(word.to_ne_bytes()))),
        [a, b, c, d] => {
            let mut bytes = [0; 16];
            let all = [a, b, c, d].into_iter().flat_map(|word| word.to_ne_bytes());
            bytes.iter_mut().zip(all).for_each(|(to, byte)| *to = byte);
            Some(IpAddr::V6(Ipv6Addr::from(bytes)))
        }
        _ => None,
    }
}

/// Who listens, by port: the address, and the socket's number.
fn listening(table: &str) -> Vec<(u16, IpAddr, u64)> {
    let line = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (at, port) = fields.get(1)?.split_once(':')?;
        (*fields.get(3)? == LISTEN).then_some(())?;
        Some((u16::from_str_radix(port, 16).ok()?, address(at)?, fields.get(9)?.parse().ok()?))
    };
    table.lines().skip(1).filter_map(line).collect()
}

/// The process that has each socket.
fn holders() -> HashMap<u64, u32> {
    let mut found = HashMap::new();
    for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = process.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        for descriptor in fs::read_dir(process.path().join("fd")).into_iter().flatten().flatten() {
            let Ok(target) = fs::read_link(descriptor.path()) else { continue };
            let socket =
                target.to_str().and_then(|text| text.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok());
            socket.map(|socket: u64| found.insert(socket, pid));
        }
    }
    found
}

fn look() -> BTreeMap<u16, (IpAddr, u64)> {
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"].map(|path| fs::read_to_string(path).unwrap_or_default());
    let all = tables.iter().rev().flat_map(|table| listening(table));
    all.map(|(port, address, socket)| (port, (address, socket))).collect()
}

fn told(port: u16, address: &IpAddr, pid: Option<&u32>) -> Value {
    json!({"port": port, "address": address.to_string(), "pid": pid})
}

/// Tells what is open, and then what changes, until nobody listens any more.
pub(super) fn watch() -> Result<(), Failure> {
    let (mut before, mut first) = (BTreeMap::new(), true);
    loop {
        let now = look();
        if first || now != before {
            let holders = holders();
            let of = |port: &u16, (address, socket): &(IpAddr, u64)| told(*port, address, holders.get(socket));
            if first {
                tell(
                    &json!({"type": "port_list", "ports": now.iter().map(|(port, at)| of(port, at)).collect::<Vec<_>>()}),
                )?;
            } else {
                for (kind, some, others) in [("port_closed", &before, &now), ("port_opened", &now, &before)] {
                    for (port, at) in some.iter().filter(|(port, at)| others.get(port) != Some(at)) {
                        let mut line = of(port, at);
                        line["type"] = json!(kind);
                        tell(&line)?;
                    }
                }
            }
            (before, first) = (now, false);
        }
        std::thread::sleep(LOOK);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_table_is_read() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4711 1 0\n   1: 0100007F:1F91 0100007F:9999 01 00000000:00000000 00:00000000 00000000     0        0 4712 1 0\nrubbish\n";
        assert_eq!(listening(table), [(8080, IpAddr::V4(Ipv4Addr::LOCALHOST), 4711)]);
        assert_eq!(address("00000000000000000000000001000000"), Some(IpAddr::V6(Ipv6Addr::LOCALHOST)));
    }
}
