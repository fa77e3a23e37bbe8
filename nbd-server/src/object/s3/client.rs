//! How a bucket is reached: the SDK's client, configured as its users know it from the AWS command line.
//!
//! Not here: the network's time limits per request (`super`), which depend on the request's size.

use super::super::StoreOptions;
use aws_config::environment::region::EnvironmentVariableRegionProvider;
use aws_config::meta::region::RegionProviderChain;
use aws_config::profile::{ProfileFileCredentialsProvider, ProfileFileRegionProvider};
use aws_config::provider_config::ProviderConfig;
use aws_config::retry::RetryConfig;
use aws_config::stalled_stream_protection::StalledStreamProtectionConfig;
use aws_config::{BehaviorVersion, Region};
use aws_runtime::env_config::file::{EnvConfigFileKind, EnvConfigFiles};
use aws_sdk_s3::config::{Builder, RequestChecksumCalculation, ResponseChecksumValidation};
use aws_sdk_s3::Client;
use aws_smithy_http_client::tls::rustls_provider::CryptoMode;
use aws_smithy_http_client::tls::Provider;
use std::time::Duration;

/// The region of stores that have none.
const REGION: &str = "us-east-1";
/// Pauses between the attempts of one request, before jitter: from, and to.
pub(super) const BACKOFF: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));

/// The client of one store, and the endpoint if it is not Amazon's.
pub(super) async fn client(options: &StoreOptions) -> Result<(Client, Option<String>), String> {
    let tls = Provider::Rustls(CryptoMode::Ring);
    let http = aws_smithy_http_client::Builder::new().tls_provider(tls).build_https();
    let mut loader = aws_config::defaults(BehaviorVersion::latest()).http_client(http.clone()).region(region(options));
    if let Some(profile) = &options.profile {
        loader = loader.profile_name(profile);
    }
    if let Some(file) = &options.credentials_file {
        let files = EnvConfigFiles::builder().with_file(EnvConfigFileKind::Credentials, file).build();
        let source = ProviderConfig::without_region().with_http_client(http);
        let mut provider = ProfileFileCredentialsProvider::builder().configure(&source).profile_files(files);
        if let Some(profile) = &options.profile {
            provider = provider.profile_name(profile);
        }
        loader = loader.credentials_provider(provider.build());
    }
    let shared = loader.load().await;
    let endpoint = options
        .endpoint
        .clone()
        .or_else(|| std::env::var("AWS_ENDPOINT_URL_S3").ok().filter(|url| !url.is_empty()))
        .or_else(|| shared.endpoint_url().map(str::to_owned));
    let mut config = Builder::from(&shared)
        .force_path_style(options.path_style.unwrap_or(endpoint.is_some()))
        .retry_config(
            RetryConfig::standard()
                .with_max_attempts(options.attempts.max(1))
                .with_initial_backoff(BACKOFF.0)
                .with_max_backoff(BACKOFF.1),
        )
        // Our own time limits cover every byte; see `super`.
        .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
        // Signatures cover the bodies of puts, digests of ours what is got. Checksums in trailers would cost a second
        // pass and are more than many servers understand.
        .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
        .response_checksum_validation(ResponseChecksumValidation::WhenRequired);
    if let Some(url) = &endpoint {
        check_endpoint(url)?;
        config = config.endpoint_url(url);
    }
    Ok((Client::from_conf(config.build()), endpoint))
}

/// Option, environment, profile, default. Amazon's machines are not asked: elsewhere that takes seconds.
fn region(options: &StoreOptions) -> RegionProviderChain {
    let mut profile = ProfileFileRegionProvider::builder();
    if let Some(name) = &options.profile {
        profile = profile.profile_name(name);
    }
    RegionProviderChain::first_try(options.region.clone().map(Region::new))
        .or_else(EnvironmentVariableRegionProvider::new())
        .or_else(profile.build())
        .or_else(Region::new(REGION))
}

/// An endpoint is shown in messages, so it must not hold a password.
fn check_endpoint(url: &str) -> Result<(), String> {
    let rest = url.strip_prefix("http://").or_else(|| url.strip_prefix("https://"));
    let host = rest.and_then(|rest| rest.split('/').next()).unwrap_or_default();
    if host.is_empty() {
        return Err("the endpoint must be a URL, as in http://127.0.0.1:9000".to_owned());
    }
    if host.contains('@') {
        return Err("the endpoint's URL must not contain a name or password: AWS_ACCESS_KEY_ID and \
                    AWS_SECRET_ACCESS_KEY are the place for them"
            .to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::check_endpoint;

    #[test]
    fn endpoints_are_urls_without_secrets() {
        for good in ["http://127.0.0.1:9000", "https://s3.example.com/", "http://minio:9000/path@x"] {
            check_endpoint(good).expect(good);
        }
        for bad in ["", "127.0.0.1:9000", "http://", "https:///x", "ftp://host", "http://key:secret@host"] {
            let why = check_endpoint(bad).expect_err(bad);
            assert!(!why.contains("key:secret"), "{why}");
        }
    }
}
