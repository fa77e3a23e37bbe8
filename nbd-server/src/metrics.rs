//! Counters, in the text form that Prometheus reads.

use blockstore::PoolStats;
use std::fmt::Write;

/// What the daemon counts.
#[derive(Default)]
pub struct Metrics {
    /// Requests by kind: reads, writes, trims (and zeroes), flushes, others.
    pub requests: [u64; 5],
    /// Bytes read by clients.
    pub read_bytes: u64,
    /// Bytes written by clients.
    pub written_bytes: u64,
    /// Requests answered with an error.
    pub errors: u64,
    /// Requests answered with ENOSPC.
    pub no_space: u64,
    /// Connections since the start.
    pub connections: u64,
    /// Anchors written.
    pub anchors: u64,
    /// Segment files cleaned.
    pub cleaned: u64,
}

impl Metrics {
    /// The whole page.
    pub fn render(&self, pool: &PoolStats, open: usize) -> String {
        let mut out = String::new();
        for (kind, count) in ["read", "write", "trim", "flush", "other"].iter().zip(self.requests) {
            let _ = writeln!(out, "cairn_requests_total{{kind=\"{kind}\"}} {count}");
        }
        for (name, value) in [
            ("cairn_read_bytes_total", self.read_bytes),
            ("cairn_written_bytes_total", self.written_bytes),
            ("cairn_errors_total", self.errors),
            ("cairn_no_space_errors_total", self.no_space),
            ("cairn_connections_total", self.connections),
            ("cairn_connections_open", open as u64),
            ("cairn_anchors_total", self.anchors),
            ("cairn_cleaned_segments_total", self.cleaned),
            ("cairn_live_bytes", pool.live),
            ("cairn_stored_bytes", pool.stored),
            ("cairn_dead_bytes", pool.dead),
            ("cairn_segments", pool.segments),
            ("cairn_map_cache_bytes", pool.map_cache),
            ("cairn_unanchored_log_bytes", pool.unanchored),
        ] {
            let _ = writeln!(out, "{name} {value}");
        }
        out
    }
}
