//! Just enough of Redis: a list, appended to and read.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;

const LIST: &str = "guestbook";
/// Longest entry taken back, bytes.
const LONGEST: usize = 64 * 1024;

pub fn append(address: &str, entry: &str) -> io::Result<()> {
    match ask(address, &["RPUSH", LIST, entry])? {
        Answer::Number => Ok(()),
        Answer::List(_) => Err(unexpected("a list")),
    }
}

pub fn entries(address: &str) -> io::Result<Vec<String>> {
    match ask(address, &["LRANGE", LIST, "0", "-1"])? {
        Answer::List(entries) => Ok(entries),
        Answer::Number => Err(unexpected("a number")),
    }
}

enum Answer {
    Number,
    List(Vec<String>),
}

fn unexpected(what: &str) -> io::Error {
    io::Error::other(format!("Redis answered {what}"))
}

fn ask(address: &str, words: &[&str]) -> io::Result<Answer> {
    let mut stream = TcpStream::connect(address)?;
    let mut request = format!("*{}\r\n", words.len());
    for word in words {
        request += &format!("${}\r\n{word}\r\n", word.len());
    }
    stream.write_all(request.as_bytes())?;
    let mut reader = BufReader::new(stream);
    let head = line(&mut reader)?;
    match head.split_at_checked(1) {
        Some((":", _)) => Ok(Answer::Number),
        Some(("*", count)) => {
            let count: usize = count.parse().map_err(io::Error::other)?;
            Ok(Answer::List((0..count).map(|_| bulk(&mut reader)).collect::<io::Result<_>>()?))
        }
        _ => Err(unexpected(&head)),
    }
}

fn line(reader: &mut BufReader<TcpStream>) -> io::Result<String> {
    let mut line = String::new();
    reader.take(1024).read_line(&mut line)?;
    Ok(line.trim_end().to_owned())
}

fn bulk(reader: &mut BufReader<TcpStream>) -> io::Result<String> {
    let head = line(reader)?;
    let length: usize = head.strip_prefix('$').and_then(|it| it.parse().ok()).ok_or_else(|| unexpected(&head))?;
    if length > LONGEST {
        return Err(unexpected("an entry that is too long"));
    }
    let mut bytes = vec![0; length + 2];
    reader.read_exact(&mut bytes)?;
    bytes.truncate(length);
    String::from_utf8(bytes).map_err(io::Error::other)
}
