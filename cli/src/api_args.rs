//! The command line of the sandbox API's server.

use clap::Args;
use std::net::SocketAddr;
use std::path::PathBuf;

/// Options of the sandbox API, of `serve` and of the process that it starts.
#[derive(Args, Clone)]
pub struct ApiArgs {
    /// Serve the sandbox API over HTTP, see cairn token
    #[arg(long, value_name = "HOST:PORT", num_args = 0..=1, default_missing_value = sandbox_server::DEFAULT_LISTEN)]
    pub api: Option<SocketAddr>,
    /// What sandboxes are made from when their creator does not say: cairn image list
    #[arg(long, default_value = sandbox_server::DEFAULT_IMAGE, value_name = "IMAGE", requires = "api")]
    pub api_image: String,
    /// Certificate chain of the API: it is served over HTTPS
    #[arg(long, value_name = "PEM", requires = "api_tls_key", requires = "api")]
    pub api_tls_cert: Option<PathBuf>,
    /// Private key of that certificate
    #[arg(long, value_name = "PEM", requires = "api_tls_cert")]
    pub api_tls_key: Option<PathBuf>,
    /// Sandboxes that one token may have made at a time
    #[arg(long, default_value_t = 1000, value_name = "N", requires = "api")]
    pub api_max_sandboxes: usize,
    /// Requests and streams that one token may have open
    #[arg(long, default_value_t = 256, value_name = "N", requires = "api")]
    pub api_max_requests: usize,
}

impl ApiArgs {
    /// The words that say the same to another process.
    pub fn words(&self) -> Vec<std::ffi::OsString> {
        let mut words: Vec<std::ffi::OsString> = Vec::new();
        let mut say = |name: &str, value: std::ffi::OsString| words.extend([name.into(), value]);
        if let Some(listen) = self.api {
            say("--api", listen.to_string().into());
        }
        say("--api-image", (&self.api_image).into());
        say("--api-max-sandboxes", self.api_max_sandboxes.to_string().into());
        say("--api-max-requests", self.api_max_requests.to_string().into());
        if let (Some(cert), Some(key)) = (&self.api_tls_cert, &self.api_tls_key) {
            say("--api-tls-cert", cert.into());
            say("--api-tls-key", key.into());
        }
        words
    }
}
