//! Sends back what it gets, for any number of connections at once: one task, woken by wasi:io/poll.

use std::io;

use wasip2::io::poll::{Pollable, poll};
use wasip2::io::streams::{InputStream, OutputStream, StreamError};
use wasip2::sockets::instance_network::instance_network;
use wasip2::sockets::network::{ErrorCode, IpAddressFamily, IpSocketAddress, Ipv4SocketAddress};
use wasip2::sockets::tcp::TcpSocket;
use wasip2::sockets::tcp_create_socket::create_tcp_socket;

/// Bytes taken from a connection at a time; also what may wait to be sent.
const CHUNK: u64 = 16 * 1024;

struct Connection {
    // Fields drop in this order: streams and what waits on them before their socket.
    readable: Pollable,
    writable: Pollable,
    input: InputStream,
    output: OutputStream,
    _socket: TcpSocket,
    waiting: Vec<u8>,
    ended: bool,
}

impl Connection {
    /// Moves what can be moved; false when the connection is over.
    fn step(&mut self) -> bool {
        loop {
            if !self.waiting.is_empty() {
                let room = match self.output.check_write() {
                    Ok(0) => return true,
                    Ok(room) => usize::try_from(room).unwrap_or(usize::MAX).min(self.waiting.len()),
                    Err(_) => return false,
                };
                let chunk: Vec<u8> = self.waiting.drain(..room).collect();
                if self.output.write(&chunk).is_err() || self.output.flush().is_err() {
                    return false;
                }
                continue;
            }
            if self.ended {
                return false;
            }
            match self.input.read(CHUNK) {
                Ok(bytes) if bytes.is_empty() => return true,
                Ok(bytes) => self.waiting = bytes,
                Err(StreamError::Closed) => self.ended = true,
                Err(StreamError::LastOperationFailed(_)) => return false,
            }
        }
    }

    fn waits_for(&self) -> &Pollable {
        if self.waiting.is_empty() { &self.readable } else { &self.writable }
    }
}

fn error(code: ErrorCode) -> io::Error {
    io::Error::other(format!("{code:?}"))
}

fn listen(port: u16) -> io::Result<TcpSocket> {
    let socket = create_tcp_socket(IpAddressFamily::Ipv4).map_err(error)?;
    let address = IpSocketAddress::Ipv4(Ipv4SocketAddress { port, address: (0, 0, 0, 0) });
    socket.start_bind(&instance_network(), address).map_err(error)?;
    socket.subscribe().block();
    socket.finish_bind().map_err(error)?;
    socket.start_listen().map_err(error)?;
    socket.subscribe().block();
    socket.finish_listen().map_err(error)?;
    Ok(socket)
}

fn main() -> io::Result<()> {
    let port = std::env::var("PORT").ok().and_then(|port| port.parse().ok()).unwrap_or(7007);
    let listener = listen(port)?;
    println!("echoing on port {port}");
    let incoming = listener.subscribe();
    let mut connections: Vec<Connection> = Vec::new();
    loop {
        let mut waits = vec![&incoming];
        waits.extend(connections.iter().map(Connection::waits_for));
        let ready = poll(&waits);
        let mut over = Vec::new();
        for index in ready {
            let Some(index) = (index as usize).checked_sub(1) else { continue };
            if !connections[index].step() {
                over.push(index);
            }
        }
        over.sort_unstable();
        for index in over.into_iter().rev() {
            connections.swap_remove(index);
        }
        loop {
            match listener.accept() {
                Ok((socket, input, output)) => connections.push(Connection {
                    readable: input.subscribe(),
                    writable: output.subscribe(),
                    input,
                    output,
                    _socket: socket,
                    waiting: Vec::new(),
                    ended: false,
                }),
                Err(ErrorCode::WouldBlock) => break,
                // The client left before it was accepted.
                Err(ErrorCode::ConnectionAborted | ErrorCode::ConnectionReset) => {}
                Err(code) => return Err(error(code)),
            }
        }
    }
}
