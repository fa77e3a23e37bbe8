//! `proxy`: ports of a sandbox at this machine, until it is ended.

use super::forward::{Forward, Told};
use super::ports::Voice;
use super::remote::{Content, Sandbox};
use crate::client::Failure;
use crate::output::printable;
use serde_json::json;
use std::io::{self, Write};
use std::sync::Arc;

/// `PORT`, or `PORT:REMOTE`: here and there.
fn pair(text: &str) -> Result<(u16, u16), Failure> {
    let bad = || Failure::new("invalid", format!("{text:?} are no ports: write 8080, or 9000:8080 (here:there)"));
    let (here, there) = text.split_once(':').unwrap_or((text, text));
    let (here, there) = (here.parse().map_err(|_| bad())?, there.parse().map_err(|_| bad())?);
    // Here 0 is any that is free.
    if there == 0 {
        return Err(bad());
    }
    Ok((here, there))
}

/// `proxy PORT[:REMOTE]…`.
pub fn proxy(sandbox: Sandbox, ports: &[String], as_json: bool) -> Result<(), Failure> {
    let pairs = ports.iter().map(|text| pair(text)).collect::<Result<Vec<_>, _>>()?;
    // A sandbox that is not there, or a bad token, is told now and not at the first connection.
    sandbox.ask("GET", "", Content::Nothing)?;
    let sandbox = Arc::new(sandbox);
    let told: Told = Arc::new(|why: &str| eprintln!("cairn: {}", printable(why)));
    let voice = Voice { raw: false, json: false };
    let mut all = Vec::new();
    for (here, there) in pairs {
        let forward = Forward::start(&sandbox, here, there, told.clone()).map_err(|e| match e.kind() {
            io::ErrorKind::AddrInUse => {
                let text = format!("port {here} is used by another program here: take another one, as in 9000:{there}");
                Failure::new("busy", text)
            }
            io::ErrorKind::PermissionDenied => Failure::new(
                "denied",
                format!("port {here} is not for everybody: take another one, as in 9000:{there}"),
            ),
            _ => Failure::new("io", format!("port {here}: {e}")),
        })?;
        match as_json {
            true => {
                let line = json!({"sandbox": sandbox.name, "port": there, "local_port": forward.local});
                writeln!(io::stdout(), "{line}")?;
            }
            false => voice.forwarded(&sandbox.name, forward.local, there),
        }
        all.push(forward);
    }
    all.into_iter().for_each(Forward::wait);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_of_ports() {
        assert_eq!(pair("8080").ok(), Some((8080, 8080)));
        assert_eq!((pair("9000:80").ok(), pair("0:80").ok()), (Some((9000, 80)), Some((0, 80))));
        for bad in ["", "0", "80:0", "x", "1:2:3", "65536", "-1"] {
            assert!(pair(bad).is_err(), "{bad}");
        }
    }
}
