//! containerd's way of calling a shim: Go's flags, then an action.

/// What containerd told us on the command line.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Flags {
    pub namespace: String,
    pub id: String,
    /// containerd's own socket.
    pub address: String,
    pub bundle: String,
    pub debug: bool,
    pub version: bool,
    /// `start`, `delete`, or none: serve.
    pub action: String,
}

impl Flags {
    pub fn parse(arguments: &[String]) -> anyhow::Result<Flags> {
        let mut flags = Flags::default();
        let mut arguments = arguments.iter();
        while let Some(argument) = arguments.next() {
            let Some(flag) = argument.strip_prefix('-').map(|flag| flag.strip_prefix('-').unwrap_or(flag)) else {
                flags.action.clone_from(argument);
                continue;
            };
            let (name, inline) = match flag.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (flag, None),
            };
            match name {
                "debug" => flags.debug = inline.is_none_or(|value| value == "true"),
                "v" | "version" => flags.version = true,
                _ => {
                    let value = inline.or_else(|| arguments.next().cloned());
                    let value = value.ok_or_else(|| anyhow::anyhow!("-{name}: a value is missing"))?;
                    match name {
                        "namespace" => flags.namespace = value,
                        "id" => flags.id = value,
                        "address" => flags.address = value,
                        "bundle" => flags.bundle = value,
                        // Of no use here, or of a later containerd.
                        _ => {}
                    }
                }
            }
        }
        Ok(flags)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn parse(line: &str) -> anyhow::Result<Flags> {
        Flags::parse(&line.split(' ').map(ToOwned::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn as_containerd_calls() {
        let flags = parse("-namespace k8s.io -address /run/c.sock -publish-binary /usr/bin/c -id a1 -debug start");
        let flags = flags.unwrap();
        assert_eq!((flags.namespace.as_str(), flags.id.as_str(), flags.action.as_str()), ("k8s.io", "a1", "start"));
        assert!(flags.debug && !flags.version);
        let flags = parse("--namespace=default -id=x -bundle /b delete").unwrap();
        assert_eq!(
            (flags.namespace.as_str(), flags.bundle.as_str(), flags.action.as_str()),
            ("default", "/b", "delete")
        );
        assert!(parse("-v").unwrap().version);
        assert!(parse("-id").is_err());
    }
}
