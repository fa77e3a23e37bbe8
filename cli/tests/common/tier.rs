//! Hosts that share a bucket: each a pool of its own with a daemon, all behind one proxy.

use super::moto::moto;
use super::slow_proxy::{HttpFault, SlowProxy};
use super::Pool;
use serde_json::Value;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// What nobody may ever read in a log, an error or an answer.
pub const SECRET: &str = "wJalrXUtnFEMI-never-told-bPxRfiCY";

/// A bucket of an S3 server of ours, behind a proxy.
pub struct Bucket {
    url: String,
    pub proxy: SlowProxy,
}

impl Bucket {
    /// A new one.
    pub fn new(name: &'static str) -> Self {
        moto().bucket(name);
        Self::missing(name)
    }

    /// One that does not exist.
    pub fn missing(name: &'static str) -> Self {
        Self::at(format!("s3://{name}/disks"))
    }

    fn at(url: String) -> Self {
        Self { url, proxy: SlowProxy::start(moto().address, Duration::ZERO).expect("a proxy") }
    }

    /// The same one through another proxy.
    pub fn again(&self) -> Self {
        Self::at(self.url.clone())
    }

    /// A prefix of it that nobody else uses.
    pub fn part(&self, number: u64) -> Self {
        Self::at(format!("{}/{number}", self.url))
    }

    /// The daemon's options for it.
    pub fn options(&self) -> [String; 2] {
        [format!("--object-store={}", self.url), format!("--s3-endpoint={}", self.proxy.url())]
    }

    /// A new host with an empty pool.
    pub fn host(&self, more: &[&str]) -> Pool {
        let mut pool = host();
        self.serve(&mut pool, more);
        pool
    }

    /// Starts the daemon of a host.
    pub fn serve(&self, pool: &mut Pool, more: &[&str]) {
        let options = self.options();
        pool.serve(&[&[options[0].as_str(), &options[1]], more].concat());
    }
}

/// A host without a daemon, that knows the secret.
pub fn host() -> Pool {
    let mut pool = Pool::new();
    pool.environment = [
        ("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE"),
        ("AWS_SECRET_ACCESS_KEY", SECRET),
        ("AWS_REGION", "us-east-1"),
        ("AWS_EC2_METADATA_DISABLED", "true"),
    ]
    .map(|(name, value)| (name, value.to_owned()))
    .to_vec();
    pool
}

/// Attaches `volume`, again and again while the store fails.
pub fn take_over(pool: &Pool, volume: &str) -> Value {
    let begin = Instant::now();
    loop {
        let out = pool.run(&["--json", "volume", "attach", volume, "--takeover"]);
        if out.status.success() {
            return serde_json::from_slice(&out.stdout).expect("JSON");
        }
        let said = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
        assert!(!said.contains("panicked") && !said.contains(SECRET), "{said}");
        assert!(begin.elapsed() < Duration::from_secs(60), "{volume} cannot be attached: {said}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// The object store's part of `volume info`.
pub fn standing(pool: &Pool, volume: &str) -> Value {
    pool.json(&["volume", "info", volume])["object_store"].take()
}

/// Waits until `volume` is in this state; the standing then.
pub fn wait_for_state(pool: &Pool, volume: &str, state: &str) -> Value {
    let begin = Instant::now();
    loop {
        let now = standing(pool, volume);
        if now["state"] == state {
            return now;
        }
        assert!(begin.elapsed() < Duration::from_secs(60), "{volume} never becomes {state}: {now}\n{}", pool.log());
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Makes requests fail, one in ten or so, until `over`.
pub fn trouble(proxy: &SlowProxy, mut random: impl FnMut() -> u64, over: &AtomicBool) {
    while !over.load(Ordering::SeqCst) {
        let fault = match random() % 9 {
            0..=2 => HttpFault::error(503, "SlowDown"),
            3..=5 => HttpFault::DropReply,
            6..=7 => HttpFault::CutBody,
            _ => HttpFault::Hang,
        };
        let (before, nth) = (proxy.requests(), 1 + random() % 20);
        proxy.fail_nth(nth, fault);
        while proxy.requests() < before + nth && !over.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}
