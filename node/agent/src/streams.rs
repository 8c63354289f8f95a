//! `exec`, `attach` and `portForward` of the node's API, by WebSocket or SPDY.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsFd as _;
use std::path::PathBuf;
use std::sync::PoisonError;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Path as Route, Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use http_body_util::Full;
use sampan_streaming::{Forward, Outcome, Pending, PortForward, Refused, Wanted};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::api::Api;
use crate::pod::spec;
use crate::runtime::ContainerId;

/// The kubelet's: how long a session may carry nothing, and how long a client may take to begin.
const IDLE: Duration = Duration::from_secs(4 * 3600);
const CREATION: Duration = Duration::from_secs(30);
const DIAL: Duration = Duration::from_secs(30);

pub fn routes() -> Router<Api> {
    Router::new()
        .route("/exec/{namespace}/{pod}/{container}", get(exec).post(exec))
        .route("/attach/{namespace}/{pod}/{container}", get(attach).post(attach))
        .route("/portForward/{namespace}/{pod}", get(port_forward).post(port_forward))
}

/// The parameters of a query, in order.
fn parameters(request: &Request) -> Vec<(String, String)> {
    axum::extract::Query::try_from_uri(request.uri()).map(|axum::extract::Query(pairs)| pairs).unwrap_or_default()
}

fn wanted(query: &[(String, String)]) -> Result<Wanted, Box<Response>> {
    let flag = |name: &str| query.iter().any(|(key, value)| key == name && value == "1");
    let wanted = Wanted { stdin: flag("input"), stdout: flag("output"), stderr: flag("error"), tty: flag("tty") };
    if !wanted.stdin && !wanted.stdout && !wanted.stderr {
        let words = "you must specify at least 1 of stdin, stdout, stderr\n";
        return Err(Box::new((StatusCode::BAD_REQUEST, words).into_response()));
    }
    Ok(wanted)
}

fn refused(refused: &Refused) -> Response {
    refused.response().map(|text| Body::new(Full::from(text)))
}

fn switching<T>(pending: &Pending<T>) -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = pending.response.status();
    response.headers_mut().clone_from(pending.response.headers());
    response
}

/// The run of a container that is running.
fn running(api: &Api, namespace: &str, name: &str, container: &str) -> Result<ContainerId, Box<Response>> {
    let pod = api.pods.get(namespace, name);
    let pod = pod.ok_or_else(|| Box::new((StatusCode::NOT_FOUND, "pod does not exist\n").into_response()))?;
    let runs = api.shared.runs.lock().unwrap_or_else(PoisonError::into_inner);
    let run = runs.get(spec::uid(&pod)).and_then(|pod| pod.get(container)).filter(|run| run.live.is_some());
    let found = run.and_then(|run| {
        Some(ContainerId {
            tenant: run.tenant.clone(),
            pod_uid: spec::uid(&pod).to_owned(),
            container: container.to_owned(),
            attempt: run.current?,
        })
    });
    found.ok_or_else(|| {
        let words = format!("container not found (\"{container}\")\n");
        Box::new((StatusCode::INTERNAL_SERVER_ERROR, words).into_response())
    })
}

type Names = Route<(String, String, String)>;

async fn exec(State(api): State<Api>, Route((namespace, pod, container)): Names, request: Request) -> Response {
    remote(&api, (&namespace, &pod, &container), request, true).unwrap_or_else(|response| *response)
}

async fn attach(State(api): State<Api>, Route((namespace, pod, container)): Names, request: Request) -> Response {
    remote(&api, (&namespace, &pod, &container), request, false).unwrap_or_else(|response| *response)
}

fn remote(
    api: &Api,
    (namespace, pod, container): (&str, &str, &str),
    mut request: Request,
    runs: bool,
) -> Result<Response, Box<Response>> {
    let query = parameters(&request);
    let wanted = wanted(&query)?;
    let id = running(api, namespace, pod, container)?;
    let command: Vec<String> = query.into_iter().filter(|(key, _)| key == "command").map(|(_, word)| word).collect();
    if runs && command.is_empty() {
        let words = "query parameter \"command\" is required: the command to run\n";
        return Err(Box::new((StatusCode::BAD_REQUEST, words).into_response()));
    }
    let pending = sampan_streaming::remote_command(&mut request, wanted).map_err(|error| Box::new(refused(&error)))?;
    let response = switching(&pending);
    let shared = api.shared.clone();
    tokio::spawn(async move {
        let client = match pending.open(CREATION).await {
            Ok(client) => client,
            Err(error) => return tracing::debug!(container = id.id(), %error, "remote command not begun"),
        };
        let started = match runs {
            true => shared.runtimes.of(&id).exec(&id, command, wanted).await,
            false => shared.runtimes.of(&id).attach(&id, wanted).await,
        };
        match started {
            Ok(streams) => client.run(streams, IDLE).await,
            Err(error) => {
                let what = if runs { "executing command in" } else { "attaching to" };
                client.finish(&Outcome::Failed(format!("error {what} container: {error:#}"))).await;
            }
        }
    });
    Ok(response)
}

async fn port_forward(
    State(api): State<Api>,
    Route((namespace, name)): Route<(String, String)>,
    mut request: Request,
) -> Response {
    let Some(pod) = api.pods.get(&namespace, &name) else {
        return (StatusCode::NOT_FOUND, "pod does not exist\n").into_response();
    };
    let mut ports = Vec::new();
    for (_, text) in parameters(&request).iter().filter(|(key, _)| key == "port") {
        for text in text.split(',') {
            match text.parse() {
                Ok(port @ 1_u16..) => ports.push(port),
                _ => {
                    let words = format!("port {text:?} must be between 1 and 65535\n");
                    return (StatusCode::BAD_REQUEST, words).into_response();
                }
            }
        }
    }
    let pending = match sampan_streaming::port_forward(&mut request, ports) {
        Ok(pending) => pending,
        Err(error) => return refused(&error),
    };
    let response = switching(&pending);
    tokio::spawn(async move {
        match pending.open(CREATION).await {
            Ok(forwards) => serve(api, &namespace, &name, spec::uid(&pod), forwards).await,
            Err(error) => tracing::debug!(pod = name, %error, "port-forward not begun"),
        }
    });
    response
}

/// Connects to the pod until the client is gone; its connections go with it.
async fn serve(api: Api, namespace: &str, name: &str, uid: &str, mut forwards: PortForward) {
    let (closed, idle) = (forwards.closed(), forwards.idle(IDLE));
    tokio::pin!(idle);
    let mut open = JoinSet::new();
    loop {
        let forward = tokio::select! {
            forward = forwards.next() => forward,
            Some(_) = open.join_next(), if !open.is_empty() => continue,
            () = closed.cancelled() => return,
            () = &mut idle => return,
        };
        let Some(forward) = forward else {
            // Nothing more will come, but what is open goes on.
            tokio::select! {
                () = closed.cancelled() => return,
                () = &mut idle => return,
                () = async { while open.join_next().await.is_some() {} } => return,
            }
        };
        let (api, namespace) = (api.clone(), namespace.to_owned());
        let title = (name.to_owned(), uid.to_owned());
        open.spawn(async move { connect(&api, &namespace, &title.0, &title.1, forward).await });
    }
}

async fn connect(api: &Api, namespace: &str, name: &str, uid: &str, forward: Forward) {
    let port = forward.port;
    let failed = |error: String| format!("error forwarding port {port} to pod {name}, uid {uid}: {error}");
    let stream = match dial(api, namespace, uid, port).await {
        Ok(stream) => stream,
        Err(error) => return forward.fail(&failed(error)).await,
    };
    if let Err(error) = forward.copy(stream).await {
        tracing::debug!(pod = name, port, %error, "forwarded connection ended");
    }
}

/// A connection to a pod's own address, which is asked of who gave it: a status is only what
/// somebody wrote.
async fn dial(api: &Api, namespace: &str, uid: &str, port: u16) -> Result<TcpStream, String> {
    if let Some(ground) = api.shared.oci().ground(uid) {
        return inside(ground.netns, port).await;
    }
    let addresses = &api.shared.addresses;
    if !addresses.assigned().await.iter().any(|assigned| assigned == uid) {
        return Err("the pod has no address".to_owned());
    }
    let address = addresses.assign(namespace, uid).await.map_err(|error| format!("{error:#}"))?;
    let target = SocketAddr::new(address, api.shared.shift.apply(port));
    match tokio::time::timeout(DIAL, TcpStream::connect(target)).await {
        Ok(Ok(stream)) => {
            let _ = stream.set_nodelay(true);
            Ok(stream)
        }
        Ok(Err(error)) => Err(refusal(target, &error)),
        Err(_) => Err(format!("failed to connect to {target}: dial tcp {target}: i/o timeout")),
    }
}

fn refusal(target: SocketAddr, error: &std::io::Error) -> String {
    let why = match error.kind() {
        std::io::ErrorKind::ConnectionRefused => "connect: connection refused".to_owned(),
        _ => error.to_string(),
    };
    format!("failed to connect to {target}: dial tcp {target}: {why}")
}

/// A connection to a pod's own loopback, which is where a sandbox's ports are looked for: what
/// listens there alone is found too. Without a namespace it is the node's.
async fn inside(netns: Option<PathBuf>, port: u16) -> Result<TcpStream, String> {
    let dialled = tokio::task::spawn_blocking(move || {
        let dial = move || {
            if let Some(path) = netns {
                let netns = std::fs::File::open(&path).map_err(|error| format!("{}: {error}", path.display()))?;
                let kind = Some(rustix::thread::LinkNameSpaceType::Network);
                rustix::thread::move_into_link_name_space(netns.as_fd(), kind).map_err(|error| error.to_string())?;
            }
            let four = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
            let six = SocketAddr::from((Ipv6Addr::LOCALHOST, port));
            let stream = std::net::TcpStream::connect_timeout(&four, DIAL)
                .or_else(|error| std::net::TcpStream::connect_timeout(&six, DIAL).map_err(|_| error));
            stream.map_err(|error| refusal(four, &error))
        };
        // A thread that has gone there is not used for anything else.
        std::thread::spawn(dial).join()
    });
    let stream = match dialled.await {
        Ok(Ok(stream)) => stream?,
        _ => return Err("the connection's thread has ended".to_owned()),
    };
    let ready = stream.set_nonblocking(true).and_then(|()| stream.set_nodelay(true));
    ready.and_then(|()| TcpStream::from_std(stream)).map_err(|error| error.to_string())
}
