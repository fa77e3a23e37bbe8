//! The routes, one file for each part of the contract.

mod answers;
mod checkpoints;
mod commands;
mod exec;
mod files;
pub(crate) mod guest;
mod history;
mod past;
mod proxy;
mod socket;
mod sprites;

pub use files::refusal;

use crate::error::ApiError;
use crate::lifecycle::App;
use axum::extract::DefaultBodyLimit;
use axum::http::{HeaderName, HeaderValue};
use axum::response::Response;
use axum::Router;
use std::sync::Arc;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::{Modify, OpenApi};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use utoipa_swagger_ui::SwaggerUi;

/// Bytes of a request in JSON.
const JSON_MAX: usize = 1 << 20;
/// Bytes of standard input in a request that is no WebSocket's.
const INPUT_MAX: usize = 16 << 20;
/// What SDKs take for the version of what runs in the guest: one that knows `/exec/{id}`.
const VERSION: &str = "v0.0.1-rc43";

async fn version(mut response: Response) -> Response {
    response.headers_mut().insert(HeaderName::from_static("sprite-version"), HeaderValue::from_static(VERSION));
    response
}

/// The document's frame; the routes are added by the router itself, so that it has no others.
#[derive(OpenApi)]
#[openapi(
    info(title = "The sandbox API of Cairn", description = "Stateful sandboxes: Linux machines with checkpoints. The routes are those of \
        Fly.io's Sprites, with more. `cairn token create` makes a token."),
    modifiers(&Tokens),
    security(("token" = [])),
)]
struct Document;

struct Tokens;

impl Modify for Tokens {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        let scheme = SecurityScheme::Http(HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build());
        document.components.get_or_insert_default().add_security_scheme("token", scheme);
    }
}

/// The routes with their descriptions.
fn described() -> OpenApiRouter<Arc<App>> {
    let within = OpenApiRouter::new()
        .merge(
            OpenApiRouter::new()
                .routes(routes!(exec::begin_or_list, commands::run))
                .layer(DefaultBodyLimit::max(INPUT_MAX)),
        )
        .routes(routes!(exec::attach))
        .routes(routes!(commands::kill))
        .routes(routes!(checkpoints::create))
        .routes(routes!(checkpoints::list))
        .routes(routes!(checkpoints::get, checkpoints::delete))
        .routes(routes!(checkpoints::restore))
        .routes(routes!(past::diff))
        .routes(routes!(past::list))
        .routes(routes!(past::read))
        .routes(routes!(files::read))
        .merge(OpenApiRouter::new().routes(routes!(files::write)).layer(DefaultBodyLimit::disable()))
        .routes(routes!(files::list))
        .routes(routes!(files::delete))
        .routes(routes!(files::rename))
        .routes(routes!(files::copy))
        .routes(routes!(files::chmod))
        .routes(routes!(files::chown))
        .routes(routes!(proxy::proxy))
        .routes(routes!(proxy::files))
        .routes(routes!(proxy::ports))
        .layer(axum::middleware::map_response(version));
    OpenApiRouter::with_openapi(Document::openapi())
        .routes(routes!(sprites::list, sprites::create))
        .routes(routes!(sprites::get, sprites::put, sprites::post, sprites::delete))
        .routes(routes!(sprites::restart))
        .routes(routes!(sprites::upgrade))
        .routes(routes!(sprites::check))
        .routes(routes!(sprites::organization))
        .merge(within)
}

/// Everything that the server answers.
pub fn all(app: Arc<App>) -> Router {
    let (router, document) = described().split_for_parts();
    router
        .merge(SwaggerUi::new("/docs").url("/v1/openapi.json", document))
        .fallback(|| async { ApiError::not_found("there is no such route") })
        .method_not_allowed_fallback(|| async {
            ApiError::new(axum::http::StatusCode::METHOD_NOT_ALLOWED, "this route does not take this method")
        })
        .layer(DefaultBodyLimit::max(JSON_MAX))
        .with_state(app)
}
