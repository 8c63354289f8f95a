//! One log style: `tracing` with structured fields, on standard error. `SAMPAN_LOG` filters it.

use std::io::IsTerminal as _;

use tracing_subscriber::EnvFilter;

use crate::cli::LogFormat;

const DEFAULT: &str = "info,kube=warn,hyper=warn,tower=warn,h2=warn,hickory_server=warn";

pub fn start(format: LogFormat) {
    let filter = EnvFilter::try_from_env("SAMPAN_LOG").unwrap_or_else(|_| EnvFilter::new(DEFAULT));
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match format {
        LogFormat::Text => lines.with_ansi(std::io::stderr().is_terminal()).init(),
        LogFormat::Json => lines.json().flatten_event(true).init(),
    }
}
