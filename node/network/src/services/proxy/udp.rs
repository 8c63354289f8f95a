use std::collections::HashMap;
use std::io;
use std::net::{SocketAddr, SocketAddrV4};
use std::sync::Arc;
use std::time::Duration;

use rustix::net::SocketType;
use tokio::net::UdpSocket;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::Choice;

const LARGEST: usize = 65_535;
/// A client that is silent for so long begins anew.
const IDLE: Duration = Duration::from_secs(60);
/// Clients at a time; more are not answered.
const SESSIONS: usize = 4096;

struct Session {
    socket: Arc<UdpSocket>,
    endpoint: SocketAddrV4,
    stop: CancellationToken,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

pub(super) fn listen(
    address: SocketAddrV4,
    shared: bool,
    choice: watch::Receiver<Arc<Choice>>,
    stop: CancellationToken,
) -> io::Result<()> {
    let socket = super::socket(SocketType::DGRAM, address, shared)?;
    let listener = Arc::new(UdpSocket::from_std(socket.into())?);
    tokio::spawn(async move {
        tokio::select! {
            () = stop.cancelled() => {}
            () = carry(listener, choice) => {}
        }
    });
    Ok(())
}

async fn carry(listener: Arc<UdpSocket>, mut choice: watch::Receiver<Arc<Choice>>) {
    let mut sessions: HashMap<SocketAddr, Session> = HashMap::new();
    let (ended, mut ends) = mpsc::unbounded_channel();
    let mut buffer = vec![0; LARGEST];
    loop {
        tokio::select! {
            received = listener.recv_from(&mut buffer) => {
                // An error here tells of an earlier answer that did not arrive.
                let Ok((length, client)) = received else { continue };
                let Some(datagram) = buffer.get(..length) else { continue };
                if !sessions.contains_key(&client) && sessions.len() < SESSIONS {
                    let chosen = choice.borrow().one(client.ip());
                    match open(&listener, client, chosen, &ended).await {
                        Ok(Some(session)) => { sessions.insert(client, session); }
                        Ok(None) => {}
                        Err(error) => tracing::debug!(%error, %client, "no way to an endpoint"),
                    }
                }
                if let Some(session) = sessions.get(&client)
                    && session.socket.send(datagram).await.is_err()
                {
                    // Refused: the next datagram looks for another endpoint.
                    sessions.remove(&client);
                }
            }
            Some((client, endpoint)) = ends.recv() => {
                if sessions.get(&client).is_some_and(|it| it.endpoint == endpoint) {
                    sessions.remove(&client);
                }
            }
            changed = choice.changed() => {
                if changed.is_err() {
                    return;
                }
                let choice = choice.borrow().clone();
                sessions.retain(|_, session| choice.has(session.endpoint));
            }
        }
    }
}

async fn open(
    listener: &Arc<UdpSocket>,
    client: SocketAddr,
    endpoint: Option<SocketAddrV4>,
    ended: &mpsc::UnboundedSender<(SocketAddr, SocketAddrV4)>,
) -> io::Result<Option<Session>> {
    let Some(endpoint) = endpoint else {
        return Ok(None);
    };
    let socket = Arc::new(UdpSocket::bind("0.0.0.0:0").await?);
    socket.connect(endpoint).await?;
    let stop = CancellationToken::new();
    let session = Session { socket: socket.clone(), endpoint, stop: stop.clone() };
    let (listener, ended) = (listener.clone(), ended.clone());
    tokio::spawn(async move {
        tokio::select! {
            () = stop.cancelled() => {}
            () = answer(&listener, client, &socket) => {}
        }
        let _ = ended.send((client, endpoint));
    });
    Ok(Some(session))
}

/// Carries answers back until there are none for a while.
async fn answer(listener: &UdpSocket, client: SocketAddr, socket: &UdpSocket) {
    let mut buffer = vec![0; LARGEST];
    while let Ok(Ok(length)) = timeout(IDLE, socket.recv(&mut buffer)).await {
        if let Some(datagram) = buffer.get(..length) {
            let _ = listener.send_to(datagram, client).await;
        }
    }
}
