//! What the histories showed, as lines for people or as JSON.

use std::time::Duration;

/// Sums over histories.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Histories run.
    pub histories: u64,
    /// Operations carried out.
    pub operations: u64,
    /// Lives of a pool that ended in a power loss.
    pub power_losses: u64,
    /// Lives that ended in the death of the process.
    pub kills: u64,
    /// Failures injected that fired: EIO and ENOSPC.
    pub faults: u64,
    /// Pools that closed themselves after a failure.
    pub poisoned: u64,
    /// Recoveries that completed.
    pub recoveries: u64,
    /// Recoveries that were interrupted.
    pub crashes_in_recovery: u64,
    /// States of volumes and checkpoints compared byte by byte.
    pub states: u64,
    /// Blocks that lived in the accounts and were reached by no root once all work was done.
    pub leaked: u64,
    /// Time each completed recovery took.
    pub recovery_times: Vec<Duration>,
    /// Time in all.
    pub elapsed: Duration,
    /// Hash over everything that happened: equal for equal seeds.
    pub trace: u64,
    /// What was found wrong.
    pub violations: Vec<Violation>,
}

/// Something that must not happen, and how to see it again.
#[derive(Clone, Debug)]
pub struct Violation {
    /// Seed of the history.
    pub seed: u64,
    /// Number of the operation.
    pub operation: u64,
    /// What is wrong.
    pub what: String,
}

impl Report {
    /// Takes up another history's sums.
    pub fn add(&mut self, other: Report) {
        self.histories += other.histories;
        self.operations += other.operations;
        self.power_losses += other.power_losses;
        self.kills += other.kills;
        self.faults += other.faults;
        self.poisoned += other.poisoned;
        self.recoveries += other.recoveries;
        self.crashes_in_recovery += other.crashes_in_recovery;
        self.states += other.states;
        self.leaked += other.leaked;
        self.recovery_times.extend(other.recovery_times);
        self.trace = self.trace.rotate_left(1) ^ other.trace;
        self.violations.extend(other.violations);
    }

    /// The recovery time that `percent` of all recoveries stay below, milliseconds.
    fn recovery_ms(&self, percent: usize) -> f64 {
        let mut times = self.recovery_times.clone();
        times.sort_unstable();
        let at = (times.len() * percent / 100).min(times.len().saturating_sub(1));
        times.get(at).map_or(0.0, |time| time.as_secs_f64() * 1e3)
    }

    /// Names and values.
    fn fields(&self) -> Vec<(&'static str, String)> {
        let rate = self.operations as f64 / self.elapsed.as_secs_f64().max(1e-9);
        vec![
            ("histories", self.histories.to_string()),
            ("operations", self.operations.to_string()),
            ("power_losses", self.power_losses.to_string()),
            ("kills", self.kills.to_string()),
            ("faults", self.faults.to_string()),
            ("poisoned", self.poisoned.to_string()),
            ("recoveries", self.recoveries.to_string()),
            ("crashes_in_recovery", self.crashes_in_recovery.to_string()),
            ("states_compared", self.states.to_string()),
            ("leaked_blocks", self.leaked.to_string()),
            ("seconds", format!("{:.1}", self.elapsed.as_secs_f64())),
            ("operations_per_second", format!("{rate:.0}")),
            ("recovery_ms_p50", format!("{:.2}", self.recovery_ms(50))),
            ("recovery_ms_p99", format!("{:.2}", self.recovery_ms(99))),
            ("recovery_ms_max", format!("{:.2}", self.recovery_ms(100))),
            ("violations", self.violations.len().to_string()),
        ]
    }

    /// One JSON object.
    pub fn json(&self) -> String {
        let mut parts: Vec<String> = self.fields().iter().map(|(name, value)| format!("\"{name}\":{value}")).collect();
        parts.push(format!("\"trace\":\"{:016x}\"", self.trace));
        let found = self.violations.iter().map(|v| {
            let plain = |c: char| if c.is_ascii_graphic() && c != '"' && c != '\\' { c } else { ' ' };
            let what: String = v.what.chars().map(plain).collect();
            format!("{{\"seed\":{},\"operation\":{},\"what\":\"{what}\"}}", v.seed, v.operation)
        });
        parts.push(format!("\"found\":[{}]", found.collect::<Vec<_>>().join(",")));
        format!("{{{}}}", parts.join(","))
    }

    /// Lines for people.
    pub fn text(&self) -> String {
        let mut out = String::new();
        for (name, value) in self.fields() {
            out.push_str(&format!("{:<22} {value}\n", name.replace('_', " ")));
        }
        out.push_str(&format!("{:<22} {:016x}\n", "trace", self.trace));
        for v in &self.violations {
            out.push_str(&format!("VIOLATION seed {} operation {}: {}\n", v.seed, v.operation, v.what));
        }
        out
    }
}
