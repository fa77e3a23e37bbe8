//! A pool for a mount: what its daemon tells, through connections that somebody hands over.
//!
//! Invariant: nothing is waited for longer than [`PATIENCE`]: a daemon that is restarted meanwhile is found again, one that does
//! not answer is an error.

use super::broker;
use crate::client::line;
use fs_inspect::mount::{Checkpoint, Pool};
use fs_inspect::{NbdImage, ReadAt};
use nbd_client::Nbd;
use serde_json::{json, Value};
use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(100);
/// Where connections come from.
#[derive(Clone)]
pub struct Daemon(Arc<Mutex<UnixStream>>);

impl Daemon {
    pub fn new(keeper: UnixStream) -> Self {
        Self(Arc::new(Mutex::new(keeper)))
    }

    fn connect(&self) -> io::Result<UnixStream> {
        let begun = Instant::now();
        loop {
            let asked = broker::ask(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
            match asked {
                Err(e) if e.kind() == io::ErrorKind::ConnectionRefused && begun.elapsed() < PATIENCE => {
                    thread::sleep(PAUSE);
                }
                asked => {
                    let stream = asked?;
                    stream.set_read_timeout(Some(PATIENCE))?;
                    stream.set_write_timeout(Some(PATIENCE))?;
                    return Ok(stream);
                }
            }
        }
    }

    fn ask(&self, request: &Value) -> io::Result<(UnixStream, Value)> {
        let mut stream = self.connect()?;
        stream.write_all(format!("{request}\n").as_bytes())?;
        loop {
            let answer: Value = serde_json::from_str(&line(&stream)?)?;
            if answer.get("progress").is_some() {
                continue;
            }
            let Some(error) = answer.get("error") else { return Ok((stream, answer)) };
            let kind = match error["kind"].as_str() {
                Some("not_found") => io::ErrorKind::NotFound,
                _ => io::ErrorKind::Other,
            };
            return Err(io::Error::new(kind, error["message"].as_str().unwrap_or("refused").to_owned()));
        }
    }
}

fn names(answer: &Value) -> Vec<String> {
    answer.as_array().into_iter().flatten().filter_map(|one| one["name"].as_str()).map(str::to_owned).collect()
}

/// `2026-01-31T12:00:00.000000Z` as seconds since 1970 (days from a date after Howard Hinnant's `days_from_civil`).
fn seconds(time: &str) -> u64 {
    let field = |from: usize, to: usize| time.get(from..to).and_then(|text| text.parse::<i64>().ok()).unwrap_or(0);
    let (year, month, day) = (field(0, 4), field(5, 7), field(8, 10));
    let year = if month <= 2 { year - 1 } else { year };
    let (era, of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let days = era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468;
    u64::try_from(days * 86_400 + field(11, 13) * 3600 + field(14, 16) * 60 + field(17, 19)).unwrap_or(0)
}

impl Pool for Daemon {
    fn volumes(&self) -> io::Result<Vec<String>> {
        self.ask(&json!({"op": "volume.list"})).map(|(_, answer)| names(&answer))
    }

    fn checkpoints(&self, volume: &str) -> io::Result<Vec<Checkpoint>> {
        let answer = self.ask(&json!({"op": "checkpoint.list", "volume": volume, "all": true}))?.1;
        let one = |of: &Value| {
            let info = serde_json::to_string_pretty(of).unwrap_or_default() + "\n";
            let created = seconds(of["create_time"].as_str().unwrap_or_default());
            Some(Checkpoint { id: of["id"].as_str()?.to_owned(), created, info })
        };
        let all = answer.as_array().into_iter().flatten().filter_map(one);
        Ok(all.filter(|checkpoint| checkpoint.id != "Current").collect())
    }

    fn image(&self, volume: &str, id: &str) -> io::Result<Arc<dyn ReadAt>> {
        let (daemon, request) = (self.clone(), json!({"op": "export", "volume": format!("{volume}@{id}")}));
        let session = move || {
            let (stream, begun) = daemon.ask(&request)?;
            Ok(Nbd::new(stream, begun["export"].as_str().unwrap_or_default())?)
        };
        let first = session()?;
        Ok(Arc::new(NbdImage::new(first, session)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_they_are_told() {
        for us in [0, 951_782_400_000_000, 1_709_164_800_000_000, 1_764_000_123_000_000, 4_102_444_800_000_000] {
            assert_eq!(seconds(&nbd_server::control::timestamp(us)), us / 1_000_000);
        }
        assert_eq!(seconds("rubbish"), 0);
    }
}
