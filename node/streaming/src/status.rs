//! How a command ended, in the words clients expect.

use serde_json::{Value, json};

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Exit code 0, or the end of what was attached to.
    Success,
    /// It ran and gave another exit code.
    Exit { code: i32, message: String },
    /// It did not run, or not to its end.
    Failed(String),
    /// As another server said it: a `v1.Status`.
    Status(Value),
}

impl Outcome {
    /// A command's end.
    pub fn exit(command: &[String], code: i32) -> Self {
        match code {
            0 => Self::Success,
            _ => Self::Exit {
                code,
                message: format!("error executing command [{}], exit code {code}", command.join(" ")),
            },
        }
    }

    /// The `v1.Status` of protocols from v4 on.
    pub fn status(&self) -> Value {
        match self {
            Self::Success => json!({ "metadata": {}, "status": "Success" }),
            Self::Exit { code, message } => json!({
                "metadata": {}, "status": "Failure", "reason": "NonZeroExitCode",
                "message": format!("command terminated with non-zero exit code: {message}"),
                "details": { "causes": [{ "reason": "ExitCode", "message": code.to_string() }] },
            }),
            Self::Failed(message) => json!({
                "metadata": {}, "status": "Failure", "reason": "InternalError", "code": 500,
                "message": format!("Internal error occurred: {message}"),
                "details": { "causes": [{ "message": message }] },
            }),
            Self::Status(status) => status.clone(),
        }
    }

    /// What goes on the error stream; empty: nothing.
    pub(crate) fn encode(&self, as_status: bool) -> String {
        let status = self.status();
        let text = |key: &str| status.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        match as_status {
            true => status.to_string(),
            false if text("status") == "Success" => String::new(),
            false => text("message"),
        }
    }

    /// Reads what [`Self::encode`] wrote as a status.
    pub(crate) fn decode(bytes: &[u8]) -> Self {
        if bytes.is_empty() {
            return Self::Success;
        }
        match serde_json::from_slice::<Value>(bytes) {
            Ok(status) if status.get("status").and_then(Value::as_str) == Some("Success") => Self::Success,
            Ok(status) if status.get("status").is_some() => Self::Status(status),
            _ => Self::Failed(String::from_utf8_lossy(bytes).into_owned()),
        }
    }

    /// The exit code, where there is one.
    pub fn code(&self) -> Option<i32> {
        match self {
            Self::Success => Some(0),
            Self::Exit { code, .. } => Some(*code),
            Self::Failed(_) => None,
            Self::Status(status) => {
                let causes = status.pointer("/details/causes")?.as_array()?;
                let cause = causes.iter().find(|cause| cause.get("reason").is_some_and(|it| it == "ExitCode"))?;
                cause.get("message")?.as_str()?.parse().ok()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_survive() {
        let exit = Outcome::exit(&["sh".to_owned(), "-c".to_owned()], 3);
        let back = Outcome::decode(exit.encode(true).as_bytes());
        assert_eq!(back.code(), Some(3));
        assert_eq!(
            back.encode(false),
            "command terminated with non-zero exit code: error executing command [sh -c], exit code 3"
        );
        assert_eq!(Outcome::exit(&[], 0).encode(false), "");
        assert_eq!(Outcome::decode(br#"{"metadata":{},"status":"Success"}"#), Outcome::Success);
        assert_eq!(Outcome::decode(b"no such thing"), Outcome::Failed("no such thing".to_owned()));
        assert_eq!(Outcome::Failed("x".to_owned()).encode(false), "Internal error occurred: x");
    }
}
