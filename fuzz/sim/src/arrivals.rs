//! Writes that arrive in parts: what has come is put into the log ahead of its batch, while other requests
//! come between.

use crate::history::{History, Step};
use blockstore::limits::{AHEAD_BYTES_MIN, ATOMIC_BYTES_MAX};
use blockstore::testing::ReferenceDisk;
use blockstore::Ahead;

/// Requests under way at a time.
const ARRIVALS_MAX: usize = 3;

/// A request of which the store has been told.
pub struct Arrival {
    volume: String,
    at: usize,
    data: Vec<u8>,
    told: usize,
    ahead: Ahead,
}

impl History {
    /// A request begins, goes on, or is complete.
    pub fn arrive(&mut self, name: &str) -> Step {
        if self.arrivals.is_empty() || self.arrivals.len() < ARRIVALS_MAX && self.rng.one_in(3) {
            self.begin_arrival(name);
        }
        if self.arrivals.is_empty() {
            return Ok(());
        }
        let i = self.rng.below(self.arrivals.len());
        let mut arrival = self.arrivals.swap_remove(i);
        if !self.volumes.contains_key(&arrival.volume) || arrival.at + arrival.data.len() > self.size(&arrival.volume) {
            return Ok(());
        }
        if self.rng.one_in(3) {
            return self.complete(arrival);
        }
        let more = 1 + self.rng.below(arrival.data.len() / 2);
        arrival.told = (arrival.told + more).min(arrival.data.len());
        let id = self.id(&arrival.volume);
        let (at, len, told) = (arrival.at as u64, arrival.data.len() as u64, arrival.told);
        self.say(|| format!("arriving {} {at} +{told} of {len}", arrival.volume));
        self.pool().write_ahead(id, at, len, &arrival.data[..told], &mut arrival.ahead);
        self.arrivals.push(arrival);
        Ok(())
    }

    fn begin_arrival(&mut self, name: &str) {
        let size = self.size(name);
        let least = AHEAD_BYTES_MIN as usize;
        let blocks = self.rng.below((ATOMIC_BYTES_MAX as usize - least) / 4096 + 1);
        let len = least + blocks * 4096;
        if len > size {
            return;
        }
        let mut data = self.rng.bytes(len);
        if self.rng.one_in(4) {
            let zero = self.rng.below(len / 4096) * 4096;
            data[zero..zero + 4096].fill(0);
        }
        let at = self.place(size, len) / 4096 * 4096;
        self.arrivals.push(Arrival { volume: name.to_owned(), at, data, told: 0, ahead: Ahead::default() });
    }

    fn complete(&mut self, arrival: Arrival) -> Step {
        let Arrival { volume, at, data, ahead, .. } = arrival;
        self.say(|| format!("arrived {volume} {at} +{}", data.len()));
        let model = |m: &mut ReferenceDisk, v: &str| m.write(v, at, &data);
        self.change(&volume, model, |pool, id| pool.write_arrived(id, at as u64, &data, ahead)).map(drop)
    }
}
