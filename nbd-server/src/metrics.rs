//! Counters, in the text form that Prometheus reads.

use blockstore::PoolStats;
use std::fmt::Write;

/// Appends what a figure is.
pub fn describe(out: &mut String, name: &str, help: &str) {
    let kind = if name.ends_with("_total") { "counter" } else { "gauge" };
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

/// Appends a figure.
pub fn figure(out: &mut String, name: &str, help: &str, value: u64) {
    describe(out, name, help);
    let _ = writeln!(out, "{name} {value}");
}

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
    /// Requests to the object store for what is not here.
    pub fetches: u64,
    /// Those that failed, after several tries.
    pub failed_fetches: u64,
}

impl Metrics {
    /// The whole page.
    pub fn render(&self, pool: &PoolStats, open: usize, poisoned: bool) -> String {
        let mut out = String::new();
        out.push_str("# HELP cairn_requests_total NBD requests carried out, by kind.\n");
        out.push_str("# TYPE cairn_requests_total counter\n");
        for (kind, count) in ["read", "write", "trim", "flush", "other"].iter().zip(self.requests) {
            let _ = writeln!(out, "cairn_requests_total{{kind=\"{kind}\"}} {count}");
        }
        for (name, help, value) in [
            ("cairn_read_bytes_total", "Bytes read by clients.", self.read_bytes),
            ("cairn_written_bytes_total", "Bytes written by clients.", self.written_bytes),
            ("cairn_errors_total", "Requests answered with an error.", self.errors),
            ("cairn_no_space_errors_total", "Requests answered with ENOSPC.", self.no_space),
            ("cairn_connections_total", "Connections since the start, commands included.", self.connections),
            ("cairn_anchors_total", "Anchors written.", self.anchors),
            ("cairn_cleaned_segments_total", "Segment files removed, reused or packed.", self.cleaned),
            ("cairn_fetches_total", "Pieces fetched from the object store for clients.", self.fetches),
            ("cairn_failed_fetches_total", "Fetches that failed after several tries.", self.failed_fetches),
            ("cairn_connections_open", "Connections that are open.", open as u64),
            ("cairn_poisoned", "1 when a failed sync has stopped all changes.", u64::from(poisoned)),
            ("cairn_live_bytes", "Blocks that some volume or checkpoint holds.", pool.live),
            ("cairn_stored_bytes", "Bytes that the segment files take.", pool.stored),
            ("cairn_dead_bytes", "Stored bytes that nobody needs.", pool.dead),
            ("cairn_segments", "Segment files.", pool.segments),
            ("cairn_map_cache_bytes", "Map and directory pages in memory.", pool.map_cache),
            ("cairn_unanchored_log_bytes", "Log bytes that an opening would replay.", pool.unanchored),
            ("cairn_deleted_states", "Deleted states whose blocks are being given back.", pool.reaping),
        ] {
            figure(&mut out, name, help, value);
        }
        out
    }
}
