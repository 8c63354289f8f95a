//! Images of the node: both kinds, brought, listed and taken away.

use std::path::PathBuf;

use anyhow::Context as _;
use axum::body::Body;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use bytes::{Bytes, BytesMut};
use futures::{Stream, StreamExt as _};
use k8s_openapi::api::core::v1 as core;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;

use super::{Api, status};
use crate::image::{self, Reference};
use crate::oci::images::Linux;
use crate::pod::spec;

/// Where an archive says that it is one, and what it says there.
const MAGIC: std::ops::Range<usize> = 257..262;
/// Archives that are compressed as a whole, which containerd's import tells what to do with.
const COMPRESSED: [&[u8]; 3] = [b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"BZh"];
/// The largest archive taken.
const LARGEST: u64 = 16 << 30;

pub fn routes() -> Router<Api> {
    Router::new().route("/images", get(list).post(import).delete(remove))
}

#[derive(Debug, Deserialize)]
struct ImageQuery {
    #[serde(rename = "ref")]
    reference: Option<String>,
}

impl IntoResponse for image::Error {
    fn into_response(self) -> Response {
        let (code, reason) = match &self {
            Self::Reference(_) | Self::Digest | Self::Body(_) => (StatusCode::BAD_REQUEST, "BadRequest"),
            Self::Module(_) | Self::Archive(_) => (StatusCode::UNPROCESSABLE_ENTITY, "Invalid"),
            Self::TooLarge(_) => (StatusCode::PAYLOAD_TOO_LARGE, "RequestEntityTooLarge"),
            Self::NotFound(_) => (StatusCode::NOT_FOUND, "NotFound"),
            Self::InUse { .. } => (StatusCode::CONFLICT, "Conflict"),
            Self::Io { .. } | Self::Damaged { .. } => (StatusCode::INTERNAL_SERVER_ERROR, "InternalError"),
        };
        status(code, reason, &self.to_string())
    }
}

fn wasm(name: &str, image: &image::Image) -> Value {
    json!({ "name": name, "digest": image.digest, "size": image.size, "kind": image.kind, "imported": image.imported })
}

fn linux(name: &str, image: &Linux) -> Value {
    json!({ "name": name, "digest": image.id, "size": image.size, "kind": "linux", "imported": null })
}

async fn list(State(api): State<Api>) -> Response {
    let mut images: Vec<_> = api.shared.images.list().iter().map(|(name, image)| wasm(name, image)).collect();
    images.extend(api.shared.oci().images().await.iter().map(|(name, image)| linux(name, image)));
    Json(json!({ "images": images })).into_response()
}

fn named(query: ImageQuery) -> Result<String, Box<Response>> {
    query.reference.ok_or_else(|| {
        Box::new(status(StatusCode::BAD_REQUEST, "BadRequest", "the query has no ref: give ?ref=localhost/NAME:TAG"))
    })
}

async fn import(State(api): State<Api>, Query(query): Query<ImageQuery>, body: Body) -> Response {
    let name = match named(query) {
        Ok(name) => name,
        Err(answer) => return *answer,
    };
    let mut body = body.into_data_stream();
    let mut head = BytesMut::new();
    while head.len() < MAGIC.end
        && let Some(chunk) = body.next().await
    {
        match chunk {
            Ok(chunk) => head.extend_from_slice(&chunk),
            Err(error) => return image::Error::Body(error.to_string()).into_response(),
        }
    }
    let plain = head.get(MAGIC) == Some(b"ustar");
    let archive = plain || COMPRESSED.iter().any(|magic| head.starts_with(magic));
    let body = futures::stream::once(std::future::ready(Ok(head.freeze()))).chain(body);
    if archive {
        return import_archive(&api, &name, body, plain).await;
    }
    match api.shared.images.import(&name, body).await {
        Ok((reference, image)) => imported(&reference, &image),
        Err(error) => error.into_response(),
    }
}

fn imported(reference: &Reference, image: &image::Image) -> Response {
    tracing::info!(image = %reference, digest = image.digest, kind = image.kind, "image imported");
    (StatusCode::CREATED, Json(wasm(&reference.to_string(), image))).into_response()
}

async fn import_archive(
    api: &Api,
    name: &str,
    body: impl Stream<Item = Result<Bytes, axum::Error>> + Unpin,
    plain: bool,
) -> Response {
    let reference = match Reference::parse(name) {
        Ok(reference) if reference.digest.is_none() => reference,
        Ok(_) => return image::Error::Digest.into_response(),
        Err(error) => return image::Error::Reference(error).into_response(),
    };
    let file = Temporary(api.shared.images.temporary());
    if let Err(error) = save(&file, body).await {
        return status(StatusCode::BAD_REQUEST, "BadRequest", &format!("{error:#}"));
    }
    let linux_runs = api.shared.oci().available();
    if plain {
        match api.shared.images.import_archive(&reference, &file.0).await {
            Ok(Some(image)) => return imported(&reference, &image),
            Ok(None) => {}
            // What is wrong with an archive of a Linux image is told below.
            Err(image::Error::Archive(_)) if linux_runs.is_ok() => {}
            Err(error) => return error.into_response(),
        }
    }
    if let Err(why) = linux_runs {
        let message = format!("this is an archive of a Linux image, and this node runs WebAssembly only: {why}");
        return status(StatusCode::UNPROCESSABLE_ENTITY, "Invalid", &message);
    }
    match api.shared.oci().import(&file.0, &reference).await {
        Ok(image) => {
            tracing::info!(image = %reference, digest = image.id, kind = "linux", "image imported");
            // One name, one image.
            let _ = api.shared.images.remove(&reference.to_string(), |_| None).await;
            api.shared.images.touch();
            (StatusCode::CREATED, Json(linux(&reference.to_string(), &image))).into_response()
        }
        Err(error) => status(StatusCode::UNPROCESSABLE_ENTITY, "Invalid", &format!("{error:#}")),
    }
}

/// A file that goes when this does.
struct Temporary(PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

async fn save(
    file: &Temporary,
    mut body: impl Stream<Item = Result<Bytes, axum::Error>> + Unpin,
) -> anyhow::Result<()> {
    let mut out = tokio::fs::File::create(&file.0).await.with_context(|| file.0.display().to_string())?;
    let mut size = 0;
    while let Some(chunk) = body.next().await {
        let chunk = chunk.context("the body ended early")?;
        size += chunk.len() as u64;
        anyhow::ensure!(size <= LARGEST, "the archive is larger than {} GiB", LARGEST >> 30);
        out.write_all(&chunk).await.context("the disk")?;
    }
    out.flush().await.context("the disk")
}

async fn remove(State(api): State<Api>, Query(query): Query<ImageQuery>) -> Response {
    let name = match named(query) {
        Ok(name) => name,
        Err(answer) => return *answer,
    };
    let user = |digest: &str| {
        let digest_of = |image: &str| {
            Reference::parse(image).ok().and_then(|it| api.shared.images.find(&it)).map(|image| image.digest)
        };
        used(&api, |image| digest_of(image).as_deref() == Some(digest))
    };
    let reference = match Reference::parse(&name) {
        Ok(reference) => reference,
        Err(error) => return image::Error::Reference(error).into_response(),
    };
    if let (None, Some(image)) = (api.shared.images.find(&reference), api.shared.oci().find(&reference).await) {
        let names = api.shared.oci().names(&image).await;
        let same = |image: &str| Reference::parse(image).is_ok_and(|it| names.contains(&it.to_string()));
        if let Some(pod) = used(&api, same) {
            return image::Error::InUse { image: reference.to_string(), pod }.into_response();
        }
        return match api.shared.oci().remove_image(&reference.to_string()).await {
            Ok(()) => Json(linux(&reference.to_string(), &image)).into_response(),
            Err(error) => status(StatusCode::INTERNAL_SERVER_ERROR, "InternalError", &format!("{error:#}")),
        };
    }
    match api.shared.images.remove(&name, user).await {
        Ok(image) => Json(wasm(&name, &image)).into_response(),
        Err(error) => error.into_response(),
    }
}

/// The pod that has a container or a volume with such an image.
fn used(api: &Api, matches: impl Fn(&str) -> bool) -> Option<String> {
    let uses = |pod: &core::Pod| !spec::is_terminal(pod) && spec::images(pod).any(|image| matches(&image));
    let pod = api.pods.list().into_iter().find(|pod| uses(pod))?;
    Some(format!("{}/{}", spec::namespace(&pod), spec::name(&pod)))
}
