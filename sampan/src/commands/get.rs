//! `sampan get`: the server's own tables.

use anyhow::{Result, bail};
use kube::Client;
use serde::Deserialize;
use serde_json::{Value, json};

use super::resources::{Resource, Resources};
use super::{escape, get, print_json};
use crate::cli::{GetArgs, Output};
use crate::{kubeconfig, terminal};

const TABLE: &str = "application/json;as=Table;v=v1;g=meta.k8s.io";

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Table {
    column_definitions: Vec<Column>,
    #[serde(default)]
    rows: Vec<Row>,
}

#[derive(Deserialize)]
struct Column {
    name: String,
    #[serde(default)]
    priority: i32,
}

#[derive(Deserialize)]
struct Row {
    cells: Vec<Value>,
    object: Value,
}

pub async fn run(args: GetArgs) -> Result<()> {
    let client = kubeconfig::client(args.cluster.kubeconfig.as_deref()).await?;
    let resources = Resources::discover(&client).await?;
    let mut wanted = Vec::new();
    for kind in args.kinds.split(',') {
        // kubectl's `pod/name` is taken too.
        let (kind, name) = kind.split_once('/').map_or((kind, None), |(kind, name)| (kind, Some(name.to_owned())));
        let names: Vec<String> = name.into_iter().chain(args.names.iter().cloned()).collect();
        wanted.extend(resources.called(kind)?.into_iter().map(|resource| (resource, names.clone())));
    }
    let several = wanted.len() > 1;
    let nothing = nothing(&wanted.iter().map(|(resource, _)| *resource).collect::<Vec<_>>(), &args);
    let mut objects = Vec::new();
    let mut printed = false;
    for (resource, names) in wanted {
        for path in paths(resource, &names, &args)? {
            match args.output {
                None | Some(Output::Wide) => {
                    let table: Table = get(&client, &path, TABLE).await?;
                    if table.rows.is_empty() {
                        continue;
                    }
                    if printed {
                        println!();
                    }
                    print(resource, &table, &args, several);
                    printed = true;
                }
                Some(Output::Json | Output::Yaml | Output::Name) => {
                    objects.extend(items(&client, resource, &path).await?);
                }
            }
        }
    }
    match args.output {
        None | Some(Output::Wide) if !printed => {
            eprintln!("{nothing}");
        }
        None | Some(Output::Wide) => {}
        Some(Output::Name) => objects.iter().for_each(print_name),
        Some(output) => {
            let document = match <[Value; 1]>::try_from(objects) {
                Ok([object]) if !args.names.is_empty() => object,
                Ok([object]) => list(vec![object]),
                Err(objects) => list(objects),
            };
            if output == Output::Json {
                print_json(&document)?;
            } else {
                print!("{}", serde_saphyr::to_string(&document)?);
            }
        }
    }
    Ok(())
}

/// What is said on standard error where there is nothing to print.
fn nothing(wanted: &[&Resource], args: &GetArgs) -> String {
    let what = match wanted {
        [resource] => resource.plural.as_str(),
        _ => "resources",
    };
    if args.all_namespaces || wanted.iter().all(|resource| !resource.namespaced) {
        format!("no {what}")
    } else {
        format!("no {what} in namespace {}", args.namespace)
    }
}

fn list(items: Vec<Value>) -> Value {
    json!({ "apiVersion": "v1", "kind": "List", "items": items })
}

fn paths(resource: &Resource, names: &[String], args: &GetArgs) -> Result<Vec<String>> {
    let namespace = (!args.all_namespaces).then_some(args.namespace.as_str());
    let collection = resource.path(namespace);
    if names.is_empty() {
        let selector = args.selector.as_deref().map_or(String::new(), |it| format!("&labelSelector={}", escape(it)));
        return Ok(vec![format!("{collection}?limit=0{selector}")]);
    }
    if args.all_namespaces && resource.namespaced {
        bail!("a name needs a namespace: leave out --all-namespaces");
    }
    Ok(names.iter().map(|name| format!("{collection}/{}", escape(name))).collect())
}

async fn items(client: &Client, resource: &Resource, path: &str) -> Result<Vec<Value>> {
    let mut answer: Value = get(client, path, "application/json").await?;
    let Some(Value::Array(mut items)) = answer.get_mut("items").map(Value::take) else { return Ok(vec![answer]) };
    for item in &mut items {
        // Lists leave out what all their items share.
        item["apiVersion"] = resource.api_version().into();
        item["kind"] = resource.kind.clone().into();
    }
    Ok(items)
}

fn print(resource: &Resource, table: &Table, args: &GetArgs, several: bool) {
    let with_namespace = args.all_namespaces && resource.namespaced;
    let shown: Vec<usize> = table
        .column_definitions
        .iter()
        .enumerate()
        .filter(|(_, column)| column.priority == 0 || args.output == Some(Output::Wide))
        .map(|(index, _)| index)
        .collect();
    let mut header: Vec<String> =
        shown.iter().map(|index| table.column_definitions[*index].name.to_uppercase()).collect();
    if with_namespace {
        header.insert(0, "NAMESPACE".to_owned());
    }
    let rows = table.rows.iter().map(|row| {
        let mut cells: Vec<String> = shown.iter().map(|index| cell(row.cells.get(*index))).collect();
        if let Some(name) = cells.first_mut().filter(|_| several) {
            *name = resource.describe(name);
        }
        if with_namespace {
            cells.insert(0, cell(row.object.pointer("/metadata/namespace")));
        }
        cells
    });
    terminal::print_table(&header, rows);
}

fn cell(value: Option<&Value>) -> String {
    match value {
        None | Some(Value::Null) => "<none>".to_owned(),
        Some(Value::String(text)) => text.clone(),
        Some(value) => value.to_string(),
    }
}

fn print_name(object: &Value) {
    let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    let group = text("/apiVersion").split_once('/').map_or(String::new(), |(group, _)| format!(".{group}"));
    println!("{}{group}/{}", text("/kind").to_lowercase(), text("/metadata/name"));
}
