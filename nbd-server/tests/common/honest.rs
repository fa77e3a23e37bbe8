//! A client that does what clients do, and compares every byte it gets with what it wrote.

use super::wire::{self, FLUSH, READ, TRIM, WRITE, ZEROES};
use std::io::{Read, Write};
use std::time::{Duration, Instant};

/// The part of the disk that belongs to the honest client.
pub const OURS: usize = 16 << 20;

pub struct Honest<S> {
    stream: S,
    model: Vec<u8>,
    seed: u64,
    cookie: u64,
    /// How long each request took.
    pub times: Vec<Duration>,
}

impl<S: Read + Write> Honest<S> {
    /// Negotiates on a fresh connection to a fresh disk.
    pub fn new(mut stream: S) -> Self {
        wire::go(&mut stream).expect("the honest client is let in");
        Self { stream, model: vec![0; OURS], seed: 0x9e37_79b9_7f4a_7c15, cookie: 1 << 40, times: Vec::new() }
    }

    /// The same client on another connection: it expects what it wrote before.
    pub fn moved_to(self, mut stream: S) -> Self {
        wire::go(&mut stream).expect("the honest client is let in again");
        Self { stream, ..self }
    }

    fn random(&mut self) -> u64 {
        self.seed ^= self.seed << 13;
        self.seed ^= self.seed >> 7;
        self.seed ^= self.seed << 17;
        self.seed
    }

    fn ask(&mut self, kind: u16, flags: u16, offset: usize, length: usize, data: &[u8]) {
        self.cookie += 1;
        let mut bytes = wire::request(kind, flags, self.cookie, offset as u64, length as u32);
        bytes.extend(data);
        let begin = Instant::now();
        self.stream.write_all(&bytes).expect("the honest client is heard");
        let error = wire::simple(&mut self.stream, self.cookie).expect("the honest client is answered");
        assert_eq!(error, 0, "command {kind} at {offset}");
        if kind == READ {
            let got = wire::take(&mut self.stream, length).expect("the data follows");
            assert!(got == self.model[offset..offset + length], "wrong data at {offset}");
        }
        self.times.push(begin.elapsed());
    }

    /// One random request.
    pub fn turn(&mut self) {
        let r = self.random();
        let offset = (r >> 8) as usize % (OURS - 8192);
        let (offset, length) =
            if r & 7 == 7 { (offset, 1 + (r >> 40) as usize % 8000) } else { (offset & !4095, 4096) };
        match r >> 3 & 15 {
            0..=6 => self.ask(READ, 0, offset, length, &[]),
            7..=12 => {
                let data: Vec<u8> = (0..length).map(|i| (r >> 16) as u8 ^ i as u8).collect();
                self.model[offset..offset + length].copy_from_slice(&data);
                self.ask(WRITE, 0, offset, length, &data);
            }
            13 => {
                self.model[offset..offset + length].fill(0);
                self.ask(ZEROES, 0, offset, length, &[]);
            }
            14 => {
                let (offset, length) = (offset & !4095, 4096);
                self.model[offset..offset + length].fill(0);
                self.ask(TRIM, 0, offset, length, &[]);
            }
            _ => self.ask(FLUSH, 0, 0, 0, &[]),
        }
    }

    /// Reads everything and compares.
    pub fn audit(&mut self) {
        for offset in (0..OURS).step_by(1 << 20) {
            self.ask(READ, 0, offset, 1 << 20, &[]);
        }
    }
}
