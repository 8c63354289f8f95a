//! Writing a checked image into containerd's stores.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::Channel;
use tonic::{Code, Status};

use super::archive::Part;
use super::check::{Blob, Plan};
use super::reference::Name;
use crate::client::{Containerd, SHORT, call, leased};
use crate::error::{Error, Result};
use crate::lease::Lease;
use crate::proto::containerd::services::content::v1 as content;
use crate::proto::containerd::services::images::v1 as images;
use crate::proto::containerd::types::Descriptor;
use content::content_client::ContentClient;
use images::images_client::ImagesClient;

const CHUNK: usize = 1 << 20;

type Labels = BTreeMap<String, String>;

/// Writes blobs, then names. Until the names hold the blobs a lease does.
pub(super) async fn write(client: &Containerd, plan: Plan, name: &Name) -> Result<()> {
    let lease = Lease::take(client, "import").await?;
    let written = write_leased(client, plan, name, &lease.header).await;
    // Also after a failure: half an image is garbage.
    lease.give_back().await;
    written
}

async fn write_leased(client: &Containerd, plan: Plan, name: &Name, lease: &MetadataValue<Ascii>) -> Result<()> {
    let store = Store { client: ContentClient::new(client.channel()), lease };
    for layer in &plan.layers {
        let source = Source::File(plan.file.clone(), layer.part);
        store.write(&layer.digest, source, Labels::new()).await?;
    }
    // What the manifest holds, in the words of containerd's collector.
    let mut holds = Labels::from([("containerd.io/gc.ref.content.config".into(), plan.config.digest.clone())]);
    for (number, layer) in plan.layers.iter().enumerate() {
        holds.insert(format!("containerd.io/gc.ref.content.l.{number}"), layer.digest.clone());
    }
    let id = plan.config.digest.clone();
    let target = Descriptor {
        media_type: plan.manifest.media_type.clone(),
        digest: plan.manifest.digest.clone(),
        size: i64::try_from(plan.manifest.bytes.len()).unwrap_or(i64::MAX),
        annotations: BTreeMap::new(),
    };
    store.write_bytes(plan.config, Labels::new()).await?;
    store.write_bytes(plan.manifest, holds).await?;
    // The id, and last the name, which makes it whole. After a pull there would be one with the digest
    // too: without that it is known to have been brought by hand.
    for name in [id, name.tagged()] {
        name_image(client, name, &target, lease).await?;
    }
    Ok(())
}

async fn name_image(
    client: &Containerd,
    name: String,
    target: &Descriptor,
    lease: &MetadataValue<Ascii>,
) -> Result<()> {
    let mut client = ImagesClient::new(client.channel());
    let labels = Labels::from([("io.cri-containerd.image".into(), "managed".into())]);
    let image = Some(images::Image { name, labels, target: Some(target.clone()) });
    let create = leased(images::CreateImageRequest { image: image.clone() }, lease);
    match call("Images.Create", SHORT, client.create(create)).await {
        Err(error) if error.is_already_exists() => {
            let update = leased(images::UpdateImageRequest { image, update_mask: None }, lease);
            call("Images.Update", SHORT, client.update(update)).await.map(drop)
        }
        other => other.map(drop),
    }
}

enum Source {
    Bytes(Vec<u8>),
    File(Arc<std::fs::File>, Part),
}

struct Store<'a> {
    client: ContentClient<Channel>,
    lease: &'a MetadataValue<Ascii>,
}

impl Store<'_> {
    async fn write_bytes(&self, blob: Blob, labels: Labels) -> Result<()> {
        self.write(&blob.digest, Source::Bytes(blob.bytes), labels).await
    }

    /// containerd compares the digest again, and has a blob once whoever writes it.
    async fn write(&self, digest: &str, source: Source, labels: Labels) -> Result<()> {
        let name = "Content.Write";
        let (sender, receiver) = mpsc::channel(4);
        // A name of our own: two imports of one image do not wait for each other.
        let reference = format!("sampan-{}-{digest}", uuid::Uuid::new_v4());
        let task = Upload { reference: reference.clone(), digest: digest.to_owned(), labels: labels.clone() };
        let feed = tokio::task::spawn_blocking(move || task.feed(source, &sender));
        let mut client = self.client.clone();
        let answers = async {
            let request = leased(ReceiverStream::new(receiver), self.lease);
            let mut answers = client.write(request).await?.into_inner();
            while let Some(answer) = answers.message().await? {
                if answer.action() == content::WriteAction::Commit {
                    return Ok(());
                }
            }
            Err(Status::aborted("the blob was not committed"))
        };
        // The feeder ends with the call: its channel does.
        let answer = answers.await;
        let fed = feed.await.map_err(|e| Error::io(digest)(e.into()))?;
        match answer {
            Ok(()) => Ok(()),
            // It is here; the lease holds it now too, and perhaps its labels are another's.
            Err(status) if status.code() == Code::AlreadyExists => self.label(digest, labels).await,
            Err(status) => {
                let abort = leased(content::AbortRequest { r#ref: reference }, self.lease);
                let _ = self.client.clone().abort(abort).await;
                // What we could not read is the cause of what containerd says.
                fed.map_err(Error::io(digest))?;
                Err(Error::rpc(name, &status))
            }
        }
    }

    async fn label(&self, digest: &str, labels: Labels) -> Result<()> {
        if labels.is_empty() {
            return Ok(());
        }
        let paths = labels.keys().map(|key| format!("labels.{key}")).collect();
        let info = Some(content::Info { digest: digest.to_owned(), size: 0, labels });
        let request = content::UpdateRequest { info, update_mask: Some(prost_types::FieldMask { paths }) };
        call("Content.Update", SHORT, self.client.clone().update(leased(request, self.lease))).await.map(drop)
    }
}

struct Upload {
    reference: String,
    digest: String,
    labels: Labels,
}

impl Upload {
    /// Sends chunks, then the commit. Ends early, and well, when nobody takes them any more.
    fn feed(&self, source: Source, sender: &mpsc::Sender<content::WriteContentRequest>) -> std::io::Result<()> {
        let total = match &source {
            Source::Bytes(bytes) => bytes.len() as u64,
            Source::File(_, part) => part.size,
        };
        let mut offset = 0;
        while offset < total {
            let length = usize::try_from(total - offset).unwrap_or(CHUNK).min(CHUNK);
            let mut data = vec![0; length];
            match &source {
                Source::Bytes(bytes) => {
                    let from = usize::try_from(offset).unwrap_or(usize::MAX);
                    bytes.get(from..).unwrap_or_default().read_exact(&mut data)?;
                }
                Source::File(file, part) => file.read_exact_at(&mut data, part.offset + offset)?,
            }
            let request = self.request(content::WriteAction::Write, total, offset, data);
            if sender.blocking_send(request).is_err() {
                return Ok(());
            }
            offset += length as u64;
        }
        let mut commit = self.request(content::WriteAction::Commit, total, total, Vec::new());
        commit.labels.clone_from(&self.labels);
        let _ = sender.blocking_send(commit);
        Ok(())
    }

    fn request(
        &self,
        action: content::WriteAction,
        total: u64,
        offset: u64,
        data: Vec<u8>,
    ) -> content::WriteContentRequest {
        content::WriteContentRequest {
            action: action.into(),
            r#ref: self.reference.clone(),
            total: i64::try_from(total).unwrap_or(i64::MAX),
            expected: self.digest.clone(),
            offset: i64::try_from(offset).unwrap_or(i64::MAX),
            data,
            labels: Labels::new(),
        }
    }
}
