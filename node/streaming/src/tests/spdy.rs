//! SPDY: our client against our server.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;
use crate::client;

#[tokio::test]
async fn a_command_by_spdy() {
    let (address, _watched) = server().await;
    let wanted = Wanted { stdin: true, stdout: true, stderr: true, tty: false };
    let url = format!("http://{address}/exec?stdin&stdout&stderr");
    let streams = soon(client::remote_command(&url, wanted)).await.unwrap();
    let sent = pattern(5 << 20);
    let (mut stdin, mut stdout, mut stderr) =
        (streams.stdin.unwrap(), streams.stdout.unwrap(), streams.stderr.unwrap());
    let feeding = async {
        stdin.write_all(&sent).await.unwrap();
        stdin.shutdown().await.unwrap();
    };
    let (mut back, mut said) = (Vec::new(), String::new());
    let reading = async {
        stdout.read_to_end(&mut back).await.unwrap();
        stderr.read_to_string(&mut said).await.unwrap();
    };
    soon(async { tokio::join!(feeding, reading) }).await;
    assert!(back == sent, "{} bytes came back of {}", back.len(), sent.len());
    assert_eq!(said, format!("{} bytes", sent.len()));
    let outcome = soon(streams.outcome).await;
    assert_eq!(outcome.code(), Some(3));
    let message = "command terminated with non-zero exit code: error executing command [test], exit code 3";
    assert_eq!(outcome.status()["message"], message);
}

#[tokio::test]
async fn a_terminal_tells_its_sizes() {
    let (address, mut watched) = server().await;
    let wanted = Wanted { stdin: true, stdout: true, stderr: false, tty: true };
    let url = format!("http://{address}/exec?stdin&stdout&tty");
    let streams = soon(client::remote_command(&url, wanted)).await.unwrap();
    assert!(streams.stderr.is_none());
    let resize = streams.resize.unwrap();
    for (width, height) in [(80, 24), (132, 50)] {
        resize.send(Size { width, height }).await.unwrap();
        assert_eq!(soon(watched.sizes.recv()).await, Some(Size { width, height }));
    }
}

#[tokio::test]
async fn a_client_that_leaves_ends_its_command() {
    let (address, watched) = server().await;
    let wanted = Wanted { stdin: true, stdout: true, ..Wanted::default() };
    let url = format!("http://{address}/exec?stdin&stdout");
    let streams = soon(client::remote_command(&url, wanted)).await.unwrap();
    drop(streams);
    soon(watched.dropped.cancelled()).await;
}

#[tokio::test]
async fn ports_by_spdy() {
    let (address, _watched) = server().await;
    let url = format!("http://{address}/portForward?forward");
    let mut forward = soon(client::PortForward::connect(&url)).await.unwrap();
    let port = echo().await;
    let mut open = Vec::new();
    for number in 0..40_usize {
        let (stream, complaint) = soon(forward.open(port)).await.unwrap();
        open.push((pattern(number * 5000), stream, complaint));
    }
    for (sent, stream, complaint) in open {
        let (mut from, mut to) = tokio::io::split(stream);
        let feeding = async {
            to.write_all(&sent).await.unwrap();
            to.shutdown().await.unwrap();
        };
        let mut back = Vec::new();
        soon(async { tokio::join!(feeding, from.read_to_end(&mut back)) }).await.1.unwrap();
        assert!(back == sent);
        assert_eq!(soon(complaint).await, None);
    }
    let (mut stream, complaint) = soon(forward.open(closed_port().await)).await.unwrap();
    assert_eq!(soon(complaint).await.as_deref(), Some("refused"));
    assert_eq!(soon(stream.read(&mut [0; 8])).await.unwrap(), 0);
}

#[tokio::test]
async fn what_the_client_is_told_when_it_cannot_be() {
    let (address, _watched) = server().await;
    let wanted = Wanted { stdout: true, ..Wanted::default() };
    let refused = soon(client::remote_command("https://x/", wanted)).await.map(drop).unwrap_err();
    assert!(refused.to_string().contains("another scheme"), "{refused}");
    let url = format!("http://127.0.0.1:{}/", closed_port().await);
    let refused = soon(client::remote_command(&url, wanted)).await.map(drop).unwrap_err();
    assert!(refused.to_string().starts_with("connecting to"), "{refused}");
    // A port-forward's protocol is no command's.
    let url = format!("http://{address}/?forward");
    let refused = soon(client::remote_command(&url, wanted)).await.map(drop).unwrap_err();
    let words = "answered 403 Forbidden: unable to upgrade: unable to negotiate protocol: \
        client supports [v4.channel.k8s.io], server accepts [portforward.k8s.io]";
    assert!(refused.to_string().ends_with(words), "{refused}");
}
