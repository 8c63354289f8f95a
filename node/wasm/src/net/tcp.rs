//! TCP of `wasi:sockets`.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt as _;
use rustix::net::sockopt;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::JoinHandle;
use wasmtime::component::Resource;
use wasmtime_wasi::p2::bindings::sockets::network::{ErrorCode, IpAddressFamily, IpSocketAddress, Network};
use wasmtime_wasi::p2::{
    DynInputStream, DynOutputStream, DynPollable, InputStream, OutputStream, Pollable, SocketResult, StreamError,
    StreamResult, subscribe,
};

use super::sockets::View;
use super::sockets::bindings::wasi::sockets::{tcp, tcp_create_socket};
use super::{PodNet, bind_ephemeral, dial, tcp_socket};

/// Most that is read or taken for writing at once.
const CHUNK: usize = 64 << 10;
const BACKLOG: u32 = 1024;

type Connecting = Pin<Box<dyn Future<Output = io::Result<TcpStream>> + Send>>;

enum State {
    /// Not bound.
    New(TcpSocket),
    BindStarted(TcpSocket),
    Bound(TcpSocket),
    Connecting(Connecting),
    /// The outcome, until it is fetched.
    ConnectDone(io::Result<TcpStream>),
    ListenStarted(TcpListener),
    Listening {
        listener: TcpListener,
        next: Option<io::Result<(TcpStream, SocketAddr)>>,
    },
    Connected(Connection),
    Closed,
}

pub struct Tcp {
    state: State,
    family: IpAddressFamily,
    backlog: u32,
    net: Arc<PodNet>,
}

#[derive(Clone)]
struct Connection {
    stream: Arc<TcpStream>,
    reader: Arc<Mutex<bool>>,
    writer: Arc<Mutex<Writing>>,
}

impl Tcp {
    fn fd(&self) -> Result<BorrowedFd<'_>, ErrorCode> {
        Ok(match &self.state {
            State::New(socket) | State::BindStarted(socket) | State::Bound(socket) => socket.as_fd(),
            State::ListenStarted(listener) | State::Listening { listener, .. } => listener.as_fd(),
            State::Connected(connection) => connection.stream.as_fd(),
            State::ConnectDone(Ok(stream)) => stream.as_fd(),
            State::Connecting(_) => return Err(ErrorCode::ConcurrencyConflict),
            State::ConnectDone(Err(_)) | State::Closed => return Err(ErrorCode::InvalidState),
        })
    }

    fn connected(stream: TcpStream) -> (State, DynInputStream, DynOutputStream) {
        // Guests write whole messages; waiting for more only adds delay.
        let _ = stream.set_nodelay(true);
        let connection = Connection {
            stream: Arc::new(stream),
            reader: Arc::new(Mutex::new(true)),
            writer: Arc::new(Mutex::new(Writing::Idle)),
        };
        let input: DynInputStream = Box::new(Reader(connection.clone()));
        let output: DynOutputStream = Box::new(Writer(connection.clone()));
        (State::Connected(connection), input, output)
    }
}

#[async_trait::async_trait]
impl Pollable for Tcp {
    async fn ready(&mut self) {
        match &mut self.state {
            State::Connecting(connecting) => {
                let result = connecting.await;
                self.state = State::ConnectDone(result);
            }
            State::Listening { listener, next } if next.is_none() => {
                *next = Some(listener.accept().await);
            }
            _ => {}
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|e| e.into_inner())
}

struct Reader(Connection);

impl InputStream for Reader {
    fn read(&mut self, size: usize) -> StreamResult<Bytes> {
        if !*lock(&self.0.reader) {
            return Err(StreamError::Closed);
        }
        if size == 0 {
            return Ok(Bytes::new());
        }
        let mut buffer = bytes::BytesMut::with_capacity(size.min(CHUNK));
        match self.0.stream.try_read_buf(&mut buffer) {
            Ok(0) => {
                *lock(&self.0.reader) = false;
                Err(StreamError::Closed)
            }
            Ok(_) => Ok(buffer.freeze()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(Bytes::new()),
            Err(error) => {
                *lock(&self.0.reader) = false;
                Err(StreamError::LastOperationFailed(error.into()))
            }
        }
    }
}

#[async_trait::async_trait]
impl Pollable for Reader {
    async fn ready(&mut self) {
        if *lock(&self.0.reader) {
            let _ = self.0.stream.readable().await;
        }
    }
}

/// What of the guest's output is still ours to send.
enum Writing {
    Idle,
    /// Sends what the socket would not take at once, whatever the guest does meanwhile.
    Busy(JoinHandle<io::Result<()>>),
    Failed(io::Error),
    Closed,
}

impl Writing {
    /// Whether more can be taken now.
    fn settle(&mut self) -> StreamResult<bool> {
        if let Writing::Busy(task) = self {
            match task.now_or_never() {
                None => return Ok(false),
                Some(result) => self.finished(result),
            }
        }
        match std::mem::replace(self, Writing::Closed) {
            Writing::Idle => {
                *self = Writing::Idle;
                Ok(true)
            }
            Writing::Failed(error) if error.kind() != io::ErrorKind::BrokenPipe => {
                Err(StreamError::LastOperationFailed(error.into()))
            }
            _ => Err(StreamError::Closed),
        }
    }

    fn finished(&mut self, result: Result<io::Result<()>, tokio::task::JoinError>) {
        *self = match result {
            Ok(Ok(())) => Writing::Idle,
            Ok(Err(error)) => Writing::Failed(error),
            Err(_) => Writing::Closed,
        };
    }
}

async fn send_all(stream: &TcpStream, mut bytes: Bytes) -> io::Result<()> {
    while !bytes.is_empty() {
        stream.writable().await?;
        match stream.try_write(&bytes) {
            Ok(sent) => drop(bytes.split_to(sent)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

struct Writer(Connection);

impl OutputStream for Writer {
    fn write(&mut self, mut bytes: Bytes) -> StreamResult<()> {
        let mut writing = lock(&self.0.writer);
        if !writing.settle()? {
            return Err(StreamError::trap("write without a permit"));
        }
        while !bytes.is_empty() {
            match self.0.stream.try_write(&bytes) {
                Ok(sent) => drop(bytes.split_to(sent)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let stream = self.0.stream.clone();
                    *writing = Writing::Busy(tokio::spawn(async move { send_all(&stream, bytes).await }));
                    return Ok(());
                }
                Err(error) => {
                    *writing = Writing::Failed(error);
                    return writing.settle().map(|_| ());
                }
            }
        }
        Ok(())
    }

    fn flush(&mut self) -> StreamResult<()> {
        // Nothing is held back; `check_write` answers 0 until all is sent.
        lock(&self.0.writer).settle().map(|_| ())
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        Ok(if lock(&self.0.writer).settle()? { CHUNK } else { 0 })
    }
}

#[async_trait::async_trait]
impl Pollable for Writer {
    async fn ready(&mut self) {
        std::future::poll_fn(|context| {
            let mut writing = lock(&self.0.writer);
            if let Writing::Busy(task) = &mut *writing {
                let result = std::task::ready!(Pin::new(task).poll(context));
                writing.finished(result);
            }
            std::task::Poll::Ready(())
        })
        .await;
        // A socket that takes nothing would have the guest spin on empty permits.
        if matches!(*lock(&self.0.writer), Writing::Idle) {
            let _ = self.0.stream.writable().await;
        }
    }
}

impl tcp_create_socket::Host for View<'_> {
    fn create_tcp_socket(&mut self, family: IpAddressFamily) -> SocketResult<Resource<Tcp>> {
        self.family(family)?;
        let socket = tcp_socket(family == IpAddressFamily::Ipv4)?;
        let _ = socket.set_reuseaddr(true);
        let net = self.net.clone();
        let tcp = Tcp { state: State::New(socket), family, backlog: BACKLOG, net };
        Ok(self.table.push(tcp)?)
    }
}

impl tcp::Host for View<'_> {}

impl Tcp {
    fn check(&self, address: SocketAddr) -> Result<(), ErrorCode> {
        let matches = match (self.family, address) {
            (IpAddressFamily::Ipv4, SocketAddr::V4(_)) => true,
            (IpAddressFamily::Ipv6, SocketAddr::V6(v6)) => v6.ip().to_ipv4_mapped().is_none(),
            _ => false,
        };
        matches.then_some(()).ok_or(ErrorCode::InvalidArgument)
    }

    fn start_bind(&mut self, wanted: SocketAddr) -> Result<(), ErrorCode> {
        self.check(wanted)?;
        match std::mem::replace(&mut self.state, State::Closed) {
            State::New(socket) => {
                let result = self.net.bind(wanted).and_then(|address| socket.bind(address).map_err(ErrorCode::from));
                self.state = match result {
                    Ok(()) => State::BindStarted(socket),
                    Err(_) => State::New(socket),
                };
                result
            }
            state => {
                let busy = matches!(state, State::BindStarted(_) | State::Connecting(_) | State::ListenStarted(_));
                self.state = state;
                Err(if busy { ErrorCode::ConcurrencyConflict } else { ErrorCode::InvalidState })
            }
        }
    }

    fn start_connect(&mut self, wanted: SocketAddr) -> Result<(), ErrorCode> {
        self.check(wanted)?;
        if wanted.ip().is_unspecified() || wanted.port() == 0 {
            return Err(ErrorCode::InvalidArgument);
        }
        let route = self.net.route(wanted)?;
        match std::mem::replace(&mut self.state, State::Closed) {
            State::New(socket) => {
                if let Err(error) = bind_ephemeral(&socket, route.from) {
                    self.state = State::New(socket);
                    return Err(error.into());
                }
                self.state = State::Connecting(Box::pin(async move {
                    match socket.connect(route.to).await {
                        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => match route.or {
                            Some(or) => dial(or.ip(), or).await,
                            None => Err(error),
                        },
                        result => result,
                    }
                }));
                Ok(())
            }
            State::Bound(socket) => {
                self.state = State::Connecting(Box::pin(socket.connect(route.to)));
                Ok(())
            }
            state => {
                let busy = matches!(state, State::BindStarted(_) | State::Connecting(_) | State::ListenStarted(_));
                self.state = state;
                Err(if busy { ErrorCode::ConcurrencyConflict } else { ErrorCode::InvalidState })
            }
        }
    }
}

impl tcp::HostTcpSocket for View<'_> {
    fn start_bind(
        &mut self,
        this: Resource<Tcp>,
        network: Resource<Network>,
        address: IpSocketAddress,
    ) -> SocketResult<()> {
        self.table.get(&network)?;
        Ok(self.table.get_mut(&this)?.start_bind(address.into())?)
    }

    fn finish_bind(&mut self, this: Resource<Tcp>) -> SocketResult<()> {
        let tcp = self.table.get_mut(&this)?;
        match std::mem::replace(&mut tcp.state, State::Closed) {
            State::BindStarted(socket) => {
                tcp.state = State::Bound(socket);
                Ok(())
            }
            state => {
                tcp.state = state;
                Err(ErrorCode::NotInProgress.into())
            }
        }
    }

    fn start_connect(
        &mut self,
        this: Resource<Tcp>,
        network: Resource<Network>,
        address: IpSocketAddress,
    ) -> SocketResult<()> {
        self.table.get(&network)?;
        Ok(self.table.get_mut(&this)?.start_connect(address.into())?)
    }

    fn finish_connect(
        &mut self,
        this: Resource<Tcp>,
    ) -> SocketResult<(Resource<DynInputStream>, Resource<DynOutputStream>)> {
        let tcp = self.table.get_mut(&this)?;
        let result = match std::mem::replace(&mut tcp.state, State::Closed) {
            State::ConnectDone(result) => result,
            State::Connecting(mut connecting) => match (&mut connecting).now_or_never() {
                Some(result) => result,
                None => {
                    tcp.state = State::Connecting(connecting);
                    return Err(ErrorCode::WouldBlock.into());
                }
            },
            state => {
                tcp.state = state;
                return Err(ErrorCode::NotInProgress.into());
            }
        };
        let (state, input, output) = Tcp::connected(result?);
        tcp.state = state;
        let input = self.table.push_child(input, &this)?;
        let output = self.table.push_child(output, &this)?;
        Ok((input, output))
    }

    fn start_listen(&mut self, this: Resource<Tcp>) -> SocketResult<()> {
        let tcp = self.table.get_mut(&this)?;
        match std::mem::replace(&mut tcp.state, State::Closed) {
            State::Bound(socket) => {
                tcp.state = State::ListenStarted(socket.listen(tcp.backlog)?);
                Ok(())
            }
            state => {
                let busy = matches!(state, State::BindStarted(_) | State::Connecting(_) | State::ListenStarted(_));
                tcp.state = state;
                let code = if busy { ErrorCode::ConcurrencyConflict } else { ErrorCode::InvalidState };
                Err(code.into())
            }
        }
    }

    fn finish_listen(&mut self, this: Resource<Tcp>) -> SocketResult<()> {
        let tcp = self.table.get_mut(&this)?;
        match std::mem::replace(&mut tcp.state, State::Closed) {
            State::ListenStarted(listener) => {
                tcp.state = State::Listening { listener, next: None };
                Ok(())
            }
            state => {
                tcp.state = state;
                Err(ErrorCode::NotInProgress.into())
            }
        }
    }

    fn accept(
        &mut self,
        this: Resource<Tcp>,
    ) -> SocketResult<(Resource<Tcp>, Resource<DynInputStream>, Resource<DynOutputStream>)> {
        let tcp = self.table.get_mut(&this)?;
        let State::Listening { listener, next } = &mut tcp.state else {
            return Err(ErrorCode::InvalidState.into());
        };
        let next = match next.take() {
            Some(next) => next,
            None => match listener.accept().now_or_never() {
                Some(next) => next,
                None => return Err(ErrorCode::WouldBlock.into()),
            },
        };
        let (stream, _) = next.map_err(|error| match error.kind() {
            // Linux tells of a connection that failed before it was accepted.
            io::ErrorKind::ConnectionReset => ErrorCode::ConnectionAborted,
            _ => error.into(),
        })?;
        let (state, input, output) = Tcp::connected(stream);
        let accepted = Tcp { state, family: tcp.family, backlog: tcp.backlog, net: tcp.net.clone() };
        let accepted = self.table.push(accepted)?;
        let input = self.table.push_child(input, &accepted)?;
        let output = self.table.push_child(output, &accepted)?;
        Ok((accepted, input, output))
    }

    fn local_address(&mut self, this: Resource<Tcp>) -> SocketResult<IpSocketAddress> {
        let tcp = self.table.get(&this)?;
        let address = match &tcp.state {
            State::Bound(socket) => socket.local_addr()?,
            State::Listening { listener, .. } | State::ListenStarted(listener) => listener.local_addr()?,
            State::Connected(connection) => connection.stream.local_addr()?,
            State::BindStarted(_) | State::Connecting(_) => {
                return Err(ErrorCode::ConcurrencyConflict.into());
            }
            _ => return Err(ErrorCode::InvalidState.into()),
        };
        Ok(tcp.net.shown(address).into())
    }

    fn remote_address(&mut self, this: Resource<Tcp>) -> SocketResult<IpSocketAddress> {
        let tcp = self.table.get(&this)?;
        match &tcp.state {
            State::Connected(connection) => Ok(tcp.net.shown(connection.stream.peer_addr()?).into()),
            State::Connecting(_) => Err(ErrorCode::ConcurrencyConflict.into()),
            _ => Err(ErrorCode::InvalidState.into()),
        }
    }

    fn is_listening(&mut self, this: Resource<Tcp>) -> wasmtime::Result<bool> {
        Ok(matches!(self.table.get(&this)?.state, State::Listening { .. }))
    }

    fn address_family(&mut self, this: Resource<Tcp>) -> wasmtime::Result<IpAddressFamily> {
        Ok(self.table.get(&this)?.family)
    }

    fn set_listen_backlog_size(&mut self, this: Resource<Tcp>, value: u64) -> SocketResult<()> {
        let tcp = self.table.get_mut(&this)?;
        if value == 0 {
            return Err(ErrorCode::InvalidArgument.into());
        }
        match tcp.state {
            State::New(_) | State::Bound(_) => {
                tcp.backlog = u32::try_from(value).unwrap_or(BACKLOG).min(BACKLOG);
                Ok(())
            }
            // The kernel would take it, but says nothing of what it made of it.
            State::Listening { .. } => Err(ErrorCode::NotSupported.into()),
            _ => Err(ErrorCode::InvalidState.into()),
        }
    }

    fn keep_alive_enabled(&mut self, this: Resource<Tcp>) -> SocketResult<bool> {
        Ok(sockopt::socket_keepalive(self.table.get(&this)?.fd()?)?)
    }

    fn set_keep_alive_enabled(&mut self, this: Resource<Tcp>, value: bool) -> SocketResult<()> {
        Ok(sockopt::set_socket_keepalive(self.table.get(&this)?.fd()?, value)?)
    }

    fn keep_alive_idle_time(&mut self, this: Resource<Tcp>) -> SocketResult<u64> {
        Ok(nanoseconds(sockopt::tcp_keepidle(self.table.get(&this)?.fd()?)?))
    }

    fn set_keep_alive_idle_time(&mut self, this: Resource<Tcp>, value: u64) -> SocketResult<()> {
        Ok(sockopt::set_tcp_keepidle(self.table.get(&this)?.fd()?, seconds(value)?)?)
    }

    fn keep_alive_interval(&mut self, this: Resource<Tcp>) -> SocketResult<u64> {
        Ok(nanoseconds(sockopt::tcp_keepintvl(self.table.get(&this)?.fd()?)?))
    }

    fn set_keep_alive_interval(&mut self, this: Resource<Tcp>, value: u64) -> SocketResult<()> {
        Ok(sockopt::set_tcp_keepintvl(self.table.get(&this)?.fd()?, seconds(value)?)?)
    }

    fn keep_alive_count(&mut self, this: Resource<Tcp>) -> SocketResult<u32> {
        Ok(sockopt::tcp_keepcnt(self.table.get(&this)?.fd()?)?)
    }

    fn set_keep_alive_count(&mut self, this: Resource<Tcp>, value: u32) -> SocketResult<()> {
        if value == 0 {
            return Err(ErrorCode::InvalidArgument.into());
        }
        Ok(sockopt::set_tcp_keepcnt(self.table.get(&this)?.fd()?, value.min(127))?)
    }

    fn hop_limit(&mut self, this: Resource<Tcp>) -> SocketResult<u8> {
        let tcp = self.table.get(&this)?;
        hop_limit(tcp.fd()?, tcp.family)
    }

    fn set_hop_limit(&mut self, this: Resource<Tcp>, value: u8) -> SocketResult<()> {
        let tcp = self.table.get(&this)?;
        set_hop_limit(tcp.fd()?, tcp.family, value)
    }

    fn receive_buffer_size(&mut self, this: Resource<Tcp>) -> SocketResult<u64> {
        buffer_size(sockopt::socket_recv_buffer_size(self.table.get(&this)?.fd()?)?)
    }

    fn set_receive_buffer_size(&mut self, this: Resource<Tcp>, value: u64) -> SocketResult<()> {
        let tcp = self.table.get(&this)?;
        Ok(sockopt::set_socket_recv_buffer_size(tcp.fd()?, wanted_size(value)?)?)
    }

    fn send_buffer_size(&mut self, this: Resource<Tcp>) -> SocketResult<u64> {
        buffer_size(sockopt::socket_send_buffer_size(self.table.get(&this)?.fd()?)?)
    }

    fn set_send_buffer_size(&mut self, this: Resource<Tcp>, value: u64) -> SocketResult<()> {
        let tcp = self.table.get(&this)?;
        Ok(sockopt::set_socket_send_buffer_size(tcp.fd()?, wanted_size(value)?)?)
    }

    fn subscribe(&mut self, this: Resource<Tcp>) -> wasmtime::Result<Resource<DynPollable>> {
        subscribe(self.table, this)
    }

    fn shutdown(&mut self, this: Resource<Tcp>, how: tcp::ShutdownType) -> SocketResult<()> {
        let State::Connected(connection) = &self.table.get(&this)?.state else {
            return Err(ErrorCode::InvalidState.into());
        };
        if matches!(how, tcp::ShutdownType::Receive | tcp::ShutdownType::Both) {
            *lock(&connection.reader) = false;
            let _ = rustix::net::shutdown(&connection.stream, rustix::net::Shutdown::Read);
        }
        if matches!(how, tcp::ShutdownType::Send | tcp::ShutdownType::Both) {
            let mut writing = lock(&connection.writer);
            if let Writing::Busy(task) = std::mem::replace(&mut *writing, Writing::Closed) {
                let stream = connection.stream.clone();
                tokio::spawn(async move {
                    // What the guest wrote before is sent before.
                    let _ = task.await;
                    shutdown_send(&stream);
                });
            } else {
                shutdown_send(&connection.stream);
            }
        }
        Ok(())
    }

    fn drop(&mut self, this: Resource<Tcp>) -> wasmtime::Result<()> {
        self.table.delete(this)?;
        Ok(())
    }
}

fn shutdown_send(stream: &TcpStream) {
    let _ = rustix::net::shutdown(stream, rustix::net::Shutdown::Write);
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// Whole seconds within what the kernel takes; never rounded to nothing.
fn seconds(nanoseconds: u64) -> Result<Duration, ErrorCode> {
    if nanoseconds == 0 {
        return Err(ErrorCode::InvalidArgument);
    }
    Ok(Duration::from_secs(nanoseconds.div_ceil(1_000_000_000).clamp(1, 32_767)))
}

pub(super) fn hop_limit(fd: BorrowedFd<'_>, family: IpAddressFamily) -> SocketResult<u8> {
    Ok(match family {
        IpAddressFamily::Ipv4 => u8::try_from(sockopt::ip_ttl(fd)?).unwrap_or(u8::MAX),
        IpAddressFamily::Ipv6 => sockopt::ipv6_unicast_hops(fd)?,
    })
}

pub(super) fn set_hop_limit(fd: BorrowedFd<'_>, family: IpAddressFamily, value: u8) -> SocketResult<()> {
    if value == 0 {
        return Err(ErrorCode::InvalidArgument.into());
    }
    match family {
        IpAddressFamily::Ipv4 => sockopt::set_ip_ttl(fd, value.into())?,
        IpAddressFamily::Ipv6 => sockopt::set_ipv6_unicast_hops(fd, Some(value))?,
    }
    Ok(())
}

/// Linux doubles what it is told, for its own use.
pub(super) fn buffer_size(size: usize) -> SocketResult<u64> {
    Ok(size as u64 / 2)
}

pub(super) fn wanted_size(value: u64) -> Result<usize, ErrorCode> {
    if value == 0 {
        return Err(ErrorCode::InvalidArgument);
    }
    Ok(usize::try_from(value).unwrap_or(usize::MAX).min(4 << 20))
}
