//! The ServiceAccount `default` of every namespace.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Namespace, ServiceAccount};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt;
use kube::api::{Api, PostParams};
use sampan_client::{Change, Informer};

use crate::context::Context;
use crate::error::{Error, namespace_terminating, status};
use crate::queue::{self, Controller, Queue};

const NAME: &str = "default";

pub(crate) async fn run(context: Context) {
    let namespaces = context.informers.all::<Namespace>();
    let accounts = context.informers.selected::<ServiceAccount>("metadata.name=default");
    let controller =
        Arc::new(Accounts { namespaces: namespaces.clone(), accounts: accounts.clone(), context: context.clone() });
    let queue = Queue::new();
    namespaces.synced().await;
    accounts.synced().await;
    let keys = queue.clone();
    queue::feed(&namespaces, &context.shutdown, move |change| keys.add(change.object().name_any()));
    let keys = queue.clone();
    queue::feed(&accounts, &context.shutdown, move |change| {
        if let Change::Deleted(account) = change {
            keys.add(account.namespace().unwrap_or_default());
        }
    });
    queue::work(controller, queue, 4, context.shutdown).await;
}

struct Accounts {
    context: Context,
    namespaces: Informer<Namespace>,
    accounts: Informer<ServiceAccount>,
}

/// Whether a namespace takes new objects.
pub(crate) fn is_active(namespace: &Namespace) -> bool {
    let phase = namespace.status.as_ref().and_then(|status| status.phase.as_deref());
    namespace.metadata.deletion_timestamp.is_none() && phase != Some("Terminating")
}

impl Controller for Accounts {
    const NAME: &'static str = "serviceaccount";
    type Key = String;

    async fn reconcile(&self, key: &String) -> Result<Option<Duration>, Error> {
        let is_active = self.namespaces.get("", key).is_some_and(|namespace| is_active(&namespace));
        if !is_active || self.accounts.get(key, NAME).is_some() {
            return Ok(None);
        }
        let account = ServiceAccount {
            metadata: ObjectMeta { name: Some(NAME.to_owned()), namespace: Some(key.clone()), ..Default::default() },
            ..Default::default()
        };
        let accounts: Api<ServiceAccount> = Api::namespaced(self.context.client.clone(), key);
        match accounts.create(&PostParams::default(), &account).await {
            Ok(_) => Ok(None),
            Err(error) if namespace_terminating(&error) => Ok(None),
            Err(error) if status(&error).is_some_and(|it| it.is_already_exists()) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}
