//! Just enough of a client to ask a Service.

use std::io::{Read as _, Write as _};
use std::net::{TcpStream, ToSocketAddrs as _};
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(10);

pub(crate) fn connect(authority: &str) -> std::io::Result<TcpStream> {
    let address = authority.to_socket_addrs()?.next().ok_or_else(|| std::io::Error::other("no address"))?;
    let stream = TcpStream::connect_timeout(&address, LIMIT)?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.set_write_timeout(Some(LIMIT))?;
    Ok(stream)
}

/// Status and body of `http://AUTHORITY/PATH`.
pub fn http_get(authority: &str, path: &str) -> std::io::Result<(u16, String)> {
    ask(authority, &format!("GET {path} HTTP/1.0\r\nHost: {authority}\r\nConnection: close\r\n\r\n"))
}

/// Status and body of what a form gets that is sent to `http://AUTHORITY/PATH`.
pub fn http_post(authority: &str, path: &str, form: &str) -> std::io::Result<(u16, String)> {
    let head = format!("POST {path} HTTP/1.0\r\nHost: {authority}\r\nConnection: close\r\n");
    let length = form.len();
    let kind = "application/x-www-form-urlencoded";
    ask(authority, &format!("{head}Content-Type: {kind}\r\nContent-Length: {length}\r\n\r\n{form}"))
}

fn ask(authority: &str, request: &str) -> std::io::Result<(u16, String)> {
    let mut stream = connect(authority)?;
    stream.write_all(request.as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let bad = || std::io::Error::other(format!("no HTTP answer: {answer:?}"));
    let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(bad)?;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).ok_or_else(bad)?;
    Ok((status, body.to_owned()))
}

/// Sends bytes and reads as many back.
pub fn tcp_echo(authority: &str, bytes: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut stream = connect(authority)?;
    let mut writer = stream.try_clone()?;
    let sent = bytes.to_vec();
    let sender = std::thread::spawn(move || writer.write_all(&sent));
    let mut back = vec![0; bytes.len()];
    stream.read_exact(&mut back)?;
    sender.join().map_err(|_| std::io::Error::other("the sender panicked"))??;
    Ok(back)
}
