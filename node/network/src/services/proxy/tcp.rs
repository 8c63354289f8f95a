use std::io;
use std::net::{SocketAddr, SocketAddrV4};
use std::sync::Arc;
use std::time::Duration;

use rustix::net::SocketType;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::Choice;

const BACKLOG: i32 = 1024;
const CONNECT: Duration = Duration::from_secs(5);
/// Endpoints tried for one connection.
const TRIES: usize = 3;
const BUFFER: usize = 32 * 1024;

pub(super) fn listen(
    address: SocketAddrV4,
    shared: bool,
    choice: watch::Receiver<Arc<Choice>>,
    stop: CancellationToken,
) -> io::Result<()> {
    let socket = super::socket(SocketType::STREAM, address, shared)?;
    rustix::net::listen(&socket, BACKLOG)?;
    let listener = TcpListener::from_std(socket.into())?;
    tokio::spawn(async move {
        loop {
            let accepted = tokio::select! {
                () = stop.cancelled() => return,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, client)) => {
                    // Connections outlive the listener, as they do with nftables.
                    let choice = choice.borrow().clone();
                    tokio::spawn(carry(stream, client, choice));
                }
                Err(error) => {
                    // Out of descriptors most likely: connections that end give some back.
                    tracing::debug!(%error, %address, "a connection was not accepted");
                    sleep(Duration::from_millis(50)).await;
                }
            }
        }
    });
    Ok(())
}

async fn carry(mut client: TcpStream, from: SocketAddr, choice: Arc<Choice>) {
    let Some(mut endpoint) = connect(from, &choice).await else {
        // As if nobody had listened.
        let _ = client.set_zero_linger();
        return;
    };
    let _ = client.set_nodelay(true);
    let _ = endpoint.set_nodelay(true);
    let result = tokio::io::copy_bidirectional_with_sizes(&mut client, &mut endpoint, BUFFER, BUFFER).await;
    if result.is_err() {
        // One side broke off: so shall the other.
        let _ = client.set_zero_linger();
        let _ = endpoint.set_zero_linger();
    }
}

async fn connect(from: SocketAddr, choice: &Choice) -> Option<TcpStream> {
    for endpoint in choice.order(from.ip()).into_iter().take(TRIES) {
        match timeout(CONNECT, TcpStream::connect(endpoint)).await {
            Ok(Ok(stream)) => {
                choice.settled(from.ip(), endpoint);
                return Some(stream);
            }
            Ok(Err(error)) => tracing::debug!(%error, %endpoint, "no connection"),
            Err(_) => tracing::debug!(%endpoint, "no connection in time"),
        }
    }
    None
}
