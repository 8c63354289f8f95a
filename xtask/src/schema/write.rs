//! Writes the table. `control-plane/api/src/schema/table.rs` reads it.

use std::fmt::Write;
use std::path::Path;

use anyhow::Result;

use super::Types;

pub fn write(types: &Types, folder: &Path) -> Result<()> {
    let mut table = String::from(
        "# Written by `cargo xtask schema`; change facts.txt instead.\n\
         # type, atomic, group, version, kind / field, kind, tags, flags, merge, list, Go type, default\n",
    );
    let mut prose = String::new();
    for (name, this) in types {
        let (group, version, kind) =
            this.kind.as_ref().map_or(("", "", ""), |(g, v, k)| (g.as_str(), v.as_str(), k.as_str()));
        let atomic = if this.atomic { "A" } else { "" };
        line(&mut table, &[name, atomic, group, version, kind])?;
        writeln!(prose, "{}", escape(&this.description))?;
        for (name, field) in &this.fields {
            let mut flags = String::new();
            for (set, letter) in [(field.pointer, 'p'), (field.always, 'a'), (field.required, 'r'), (field.atomic, 'A')]
            {
                if set {
                    flags.push(letter);
                }
            }
            let tags: Vec<String> = field.tags.iter().map(u32::to_string).collect();
            line(
                &mut table,
                &[
                    "",
                    name,
                    &field.kind,
                    &tags.join("."),
                    &flags,
                    field.merge.as_deref().unwrap_or_default(),
                    field.list.as_deref().unwrap_or_default(),
                    field.go.as_deref().unwrap_or_default(),
                    field.default.as_deref().unwrap_or_default(),
                ],
            )?;
            writeln!(prose, "{}", escape(&field.description))?;
        }
    }
    std::fs::write(folder.join("types.txt"), table)?;
    std::fs::write(folder.join("descriptions.txt"), prose)?;
    Ok(())
}

fn line(out: &mut String, columns: &[&str]) -> Result<()> {
    let line = columns.join("\t");
    writeln!(out, "{}", line.trim_end_matches('\t'))?;
    Ok(())
}

fn escape(text: &str) -> String {
    text.replace('\\', "\\\\").replace('\n', "\\n").replace('\r', "")
}
