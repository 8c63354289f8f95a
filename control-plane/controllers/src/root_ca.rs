//! The ConfigMap `kube-root-ca.crt` of every namespace: what pods verify the API server with.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt;
use kube::api::{Api, PostParams};
use sampan_client::Informer;

use crate::context::Context;
use crate::error::{Error, namespace_terminating};
use crate::queue::{self, Controller, Queue};
use crate::service_account::is_active;

const NAME: &str = "kube-root-ca.crt";
const KEY: &str = "ca.crt";
const DESCRIPTION: (&str, &str) = (
    "kubernetes.io/description",
    "Contains a CA bundle that can be used to verify the kube-apiserver when using internal endpoints \
     such as the internal service IP or kubernetes.default.svc. No other usage is guaranteed across \
     distributions of Kubernetes clusters.",
);

pub(crate) async fn run(context: Context) {
    if context.config.root_ca.is_empty() {
        tracing::debug!("no root certificate to publish");
        return;
    }
    let namespaces = context.informers.all::<Namespace>();
    let maps = context.informers.selected::<ConfigMap>("metadata.name=kube-root-ca.crt");
    let controller =
        Arc::new(Publisher { namespaces: namespaces.clone(), maps: maps.clone(), context: context.clone() });
    let queue = Queue::new();
    namespaces.synced().await;
    maps.synced().await;
    let keys = queue.clone();
    queue::feed(&namespaces, &context.shutdown, move |change| keys.add(change.object().name_any()));
    let keys = queue.clone();
    queue::feed(&maps, &context.shutdown, move |change| {
        keys.add(change.object().namespace().unwrap_or_default());
    });
    queue::work(controller, queue, 4, context.shutdown).await;
}

struct Publisher {
    context: Context,
    namespaces: Informer<Namespace>,
    maps: Informer<ConfigMap>,
}

impl Controller for Publisher {
    const NAME: &'static str = "root-ca-certificate-publisher";
    type Key = String;

    async fn reconcile(&self, key: &String) -> Result<Option<Duration>, Error> {
        if !self.namespaces.get("", key).is_some_and(|namespace| is_active(&namespace)) {
            return Ok(None);
        }
        let maps: Api<ConfigMap> = Api::namespaced(self.context.client.clone(), key);
        let data = BTreeMap::from([(KEY.to_owned(), self.context.config.root_ca.clone())]);
        let described = BTreeMap::from([(DESCRIPTION.0.to_owned(), DESCRIPTION.1.to_owned())]);
        let written = match self.maps.get(key, NAME) {
            Some(map) if map.data.as_ref() == Some(&data) && has_description(&map) => return Ok(None),
            Some(map) => {
                let mut map = (*map).clone();
                map.data = Some(data);
                map.metadata.annotations.get_or_insert_default().extend(described);
                maps.replace(NAME, &PostParams::default(), &map).await
            }
            None => {
                let map = ConfigMap {
                    metadata: ObjectMeta {
                        name: Some(NAME.to_owned()),
                        namespace: Some(key.clone()),
                        annotations: Some(described),
                        ..Default::default()
                    },
                    data: Some(data),
                    ..Default::default()
                };
                maps.create(&PostParams::default(), &map).await
            }
        };
        match written {
            Ok(_) => Ok(None),
            Err(error) if namespace_terminating(&error) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

fn has_description(map: &ConfigMap) -> bool {
    map.annotations().get(DESCRIPTION.0).is_some_and(|text| text == DESCRIPTION.1)
}
