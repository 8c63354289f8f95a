//! Reads the committed table into memory. It is ours, so a fault in it is a bug that the tests below
//! find; at run time a line that does not parse is left out.

use std::sync::OnceLock;

use super::{Field, FieldKind, ListType, Merge, TypeDef, TypeId};

const TYPES: &str = include_str!("../../schema/types.txt");
const DESCRIPTIONS: &str = include_str!("../../schema/descriptions.txt");

fn lines() -> impl Iterator<Item = &'static str> {
    TYPES.lines().filter(|line| !line.starts_with('#'))
}

pub(super) fn load() -> Vec<TypeDef> {
    let names: Vec<&'static str> =
        lines().filter(|line| !line.starts_with('\t')).map(|line| line.split('\t').next().unwrap_or(line)).collect();
    let mut types: Vec<TypeDef> = Vec::with_capacity(names.len());
    for (prose, line) in (0..).zip(lines()) {
        let mut columns = line.split('\t');
        let mut next = || columns.next().unwrap_or_default();
        let first = next();
        if first.is_empty() {
            let field = field(&mut next, &names, prose);
            if let (Some(of), Some(field)) = (types.last_mut(), field) {
                of.fields.push(field);
            }
        } else {
            let atomic = next() == "A";
            let gvk = (next(), next(), next());
            types.push(TypeDef {
                name: first,
                fields: Vec::new(),
                kinds: if gvk.2.is_empty() { Vec::new() } else { vec![gvk] },
                atomic,
                prose,
                index: u16::try_from(types.len()).unwrap_or(u16::MAX),
                tags: Vec::new(),
                inlined: Vec::new(),
            });
        }
    }
    for this in &mut types {
        index_tags(this);
    }
    types
}

fn index_tags(this: &mut TypeDef) {
    for (i, field) in this.fields.iter().enumerate() {
        if field.tags == 0 {
            continue;
        }
        this.tags.push((field.tags, u16::try_from(i).unwrap_or(u16::MAX)));
        let mut outer = field.tags >> 16;
        while outer != 0 {
            this.inlined.push(outer);
            outer >>= 16;
        }
    }
    this.tags.sort_unstable();
    this.inlined.sort_unstable();
    this.inlined.dedup();
}

fn field(next: &mut impl FnMut() -> &'static str, names: &[&'static str], prose: u32) -> Option<Field> {
    let name = next();
    let kind = kind(next(), names)?;
    let mut tags = 0;
    for tag in next().split('.').filter(|tag| !tag.is_empty()) {
        tags = tags << 16 | tag.parse::<u64>().ok()?;
    }
    let flags = next();
    let merge = next().split_once(':').map(|(flags, key)| Merge {
        merge: flags.contains('m'),
        retain_keys: flags.contains('r'),
        key,
    });
    let list = match next() {
        "s" => ListType::Set,
        keys => match keys.strip_prefix("k:") {
            Some(keys) => ListType::Map(keys.split(',').collect()),
            None => ListType::Atomic,
        },
    };
    let text = |s: &'static str| (!s.is_empty()).then_some(s);
    Some(Field {
        name,
        kind,
        pointer: flags.contains('p'),
        always: flags.contains('a'),
        required: flags.contains('r'),
        atomic: flags.contains('A'),
        merge,
        list,
        go_type: text(next()),
        default: text(next()),
        tags,
        prose,
    })
}

fn kind(text: &str, names: &[&'static str]) -> Option<FieldKind> {
    Some(match text.split_at_checked(1)? {
        ("b", "") => FieldKind::Bool,
        ("i", "") => FieldKind::Int32,
        ("l", "") => FieldKind::Int64,
        ("d", "") => FieldKind::Double,
        ("s", "") => FieldKind::String,
        ("y", "") => FieldKind::Bytes,
        ("t", "") => FieldKind::Time,
        ("u", "") => FieldKind::MicroTime,
        ("q", "") => FieldKind::Quantity,
        ("x", "") => FieldKind::IntOrString,
        ("j", "") => FieldKind::Any,
        ("[", of) => FieldKind::List(Box::new(kind(of, names)?)),
        ("{", of) => FieldKind::Map(Box::new(kind(of, names)?)),
        ("@", name) => FieldKind::Type(TypeId(u16::try_from(names.binary_search(&name).ok()?).ok()?)),
        _ => return None,
    })
}

/// The prose of a type or field, by its line in the table.
pub(super) fn describe(line: u32) -> String {
    static LINES: OnceLock<Vec<&'static str>> = OnceLock::new();
    let lines = LINES.get_or_init(|| DESCRIPTIONS.lines().collect());
    let escaped = lines.get(line as usize).copied().unwrap_or_default();
    let mut text = String::with_capacity(escaped.len());
    let mut letters = escaped.chars();
    while let Some(letter) = letters.next() {
        match letter {
            '\\' => text.push(if letters.next() == Some('n') { '\n' } else { '\\' }),
            letter => text.push(letter),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::*;

    #[test]
    fn every_line_is_read() {
        let fields = super::lines().filter(|line| line.starts_with('\t')).count();
        let types = super::lines().count() - fields;
        let schema = Schema::get();
        assert_eq!(schema.types().len(), types);
        assert_eq!(schema.types().iter().map(|t| t.fields.len()).sum::<usize>(), fields);
        assert!(schema.types().is_sorted_by_key(|t| t.name));
        for this in schema.types() {
            assert!(this.fields.is_sorted_by_key(|f| f.name), "{}", this.name);
            assert!(this.fields.len() <= 128, "{}", this.name);
            assert_eq!(this.id().get().name, this.name);
        }
        assert_eq!(super::DESCRIPTIONS.lines().count(), types + fields);
    }

    #[test]
    fn knows_the_types() {
        let schema = Schema::get();
        let pod = schema.type_("io.k8s.api.core.v1.Pod").unwrap();
        assert_eq!(pod.go_name(), "v1.Pod");
        assert_eq!(schema.kind("", "v1", "Pod").unwrap().name, pod.name);
        assert_eq!(schema.kind("apps", "v1", "DeploymentList").unwrap().short_name(), "DeploymentList");
        let spec = pod.field("spec").unwrap().item_type().unwrap();
        let containers = spec.field("containers").unwrap();
        assert!(containers.always && containers.required);
        assert_eq!(containers.list, ListType::Map(vec!["name"]));
        assert_eq!(containers.merge.unwrap().key, "name");
        let container = containers.item_type().unwrap();
        let ports = container.field("ports").unwrap();
        assert_eq!(ports.list, ListType::Map(vec!["containerPort", "protocol"]));
        assert_eq!(ports.merge.unwrap().key, "containerPort");
        assert_eq!(ports.item_type().unwrap().field("protocol").unwrap().default, Some("\"TCP\""));
        let volumes = spec.field("volumes").unwrap();
        assert!(volumes.merge.unwrap().retain_keys);
        assert!(spec.field("nodeSelector").unwrap().atomic);
        assert!(schema.type_("io.k8s.api.core.v1.ObjectReference").unwrap().atomic);
        assert!(schema.type_("nothing").is_none());
        assert!(pod.description().starts_with("Pod is a collection of containers"));
        let spread = spec.field("topologySpreadConstraints").unwrap();
        assert_eq!(spread.list, ListType::Map(vec!["topologyKey", "whenUnsatisfiable"]));
        // Inlined in JSON, a message of its own in protobuf.
        let volume = volumes.item_type().unwrap();
        assert_eq!(volume.field("emptyDir").unwrap().tags, 2 << 16 | 2);
        assert_eq!(volume.inlined, [2]);
    }

    #[test]
    fn nearly_every_field_of_a_served_type_has_a_tag() {
        let known = ["stubPKCS10Request"];
        for this in Schema::get().types().iter().filter(|t| {
            ["api.apps.v1.", "api.coordination.v1.", "api.discovery.v1.", "api.node.v1.", "api.events.v1."]
                .iter()
                .any(|g| t.name.contains(g))
        }) {
            for field in &this.fields {
                let meta = matches!(field.name, "apiVersion" | "kind") && !this.kinds.is_empty();
                assert!(field.tags != 0 || meta || known.contains(&field.name), "{} {}", this.name, field.name);
            }
        }
    }
}
