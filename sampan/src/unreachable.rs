//! One sentence for a cluster that does not answer, in the place of the layers that noticed it.

use std::error::Error;
use std::io;

use tower::BoxError;

#[derive(Debug, thiserror::Error)]
#[error("the cluster at {server} does not answer: {cause} (kubeconfig {kubeconfig})")]
pub struct Unreachable {
    server: String,
    cause: String,
    kubeconfig: String,
}

/// What becomes of an error of the connection; errors of kube's own stay.
pub fn describe(error: BoxError, server: &str, kubeconfig: &str) -> BoxError {
    if error.is::<kube::Error>() {
        return error;
    }
    Box::new(Unreachable { server: server.to_owned(), cause: cause(error.as_ref()), kubeconfig: kubeconfig.to_owned() })
}

/// The innermost error: those around it repeat it.
pub fn cause(error: &(dyn Error + 'static)) -> String {
    let mut error = error;
    loop {
        // The source of an I/O error is its inner error's, which would skip that one.
        let inner = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        match inner.map(|inner| inner as &(dyn Error + 'static)).or_else(|| error.source()) {
            Some(source) => error = source,
            None => break,
        }
    }
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    let mut letters = text.chars();
    letters.next().map(|first| first.to_lowercase().chain(letters).collect()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_innermost_cause_is_told_once() {
        let refused = io::Error::from_raw_os_error(111);
        let error = describe(Box::new(io::Error::other(refused)), "https://127.0.0.1:1", "/k");
        assert_eq!(
            error.to_string(),
            "the cluster at https://127.0.0.1:1 does not answer: connection refused (kubeconfig /k)"
        );
        assert!(error.source().is_none());
        let kube = describe(Box::new(kube::Error::LinesCodecMaxLineLengthExceeded), "x", "y");
        assert!(kube.is::<kube::Error>());
    }
}
