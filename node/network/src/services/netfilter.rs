//! Messages between netfilter and us, as netlink carries them: a header, then attributes within attributes.

use std::io;

use rtnetlink::sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};

pub(super) const ERROR: u16 = 2;
pub(super) const DONE: u16 = 3;
pub(super) const REQUEST: u16 = 1;
pub(super) const ACK: u16 = 4;
pub(super) const DUMP: u16 = 0x300;
pub(super) const CREATE: u16 = 0x400;
pub(super) const AF_INET: u8 = 2;
const NESTED: u16 = 0x8000;
/// Kind of an attribute without its flags.
const KIND: u16 = 0x3fff;

/// Messages that are sent together, numbered from 0.
#[derive(Default)]
pub(super) struct Messages {
    pub(super) bytes: Vec<u8>,
    count: u32,
    /// Where the last one begins.
    last: usize,
}

/// Of a message that is being written.
#[derive(Clone, Copy)]
pub(super) struct Header {
    pub(super) kind: u16,
    pub(super) flags: u16,
    pub(super) family: u8,
    /// Says of a batch whose it is.
    pub(super) resource: u16,
}

impl Messages {
    /// Writes a message whose attributes `write` adds.
    pub(super) fn add(&mut self, header: Header, write: impl FnOnce(&mut Attributes)) {
        let (start, number) = (self.bytes.len(), self.count);
        (self.count, self.last) = (number + 1, start);
        self.bytes.extend([0; 4]);
        self.bytes.extend(header.kind.to_ne_bytes());
        self.bytes.extend(header.flags.to_ne_bytes());
        self.bytes.extend(number.to_ne_bytes());
        self.bytes.extend([0, 0, 0, 0, header.family, 0]);
        self.bytes.extend(header.resource.to_be_bytes());
        write(&mut Attributes(&mut self.bytes));
        let length = u32::try_from(self.bytes.len() - start).unwrap_or(u32::MAX);
        if let Some(place) = self.bytes.get_mut(start..start + 4) {
            place.copy_from_slice(&length.to_ne_bytes());
        }
    }

    /// Wants an answer to the last one, also where it succeeds; tells its number.
    pub(super) fn acknowledged(&mut self) -> u32 {
        if let Some([low, high]) = self.bytes.get_mut(self.last + 6..self.last + 8) {
            let flags = u16::from_ne_bytes([*low, *high]) | ACK;
            [*low, *high] = flags.to_ne_bytes();
        }
        self.count.saturating_sub(1)
    }
}

/// Writes attributes, one after the other. One with all that is in it has less than 64 KiB.
pub(super) struct Attributes<'a>(&'a mut Vec<u8>);

impl Attributes<'_> {
    pub(super) fn put(&mut self, kind: u16, value: &[u8]) {
        self.write(kind, |bytes| bytes.extend(value));
    }

    /// A name, ended by a zero byte.
    pub(super) fn name(&mut self, kind: u16, name: impl std::fmt::Display) {
        self.write(kind, |bytes| {
            // Writing to memory does not fail.
            let _ = io::Write::write_fmt(bytes, format_args!("{name}\0"));
        });
    }

    pub(super) fn nest(&mut self, kind: u16, write: impl FnOnce(&mut Attributes)) {
        self.write(kind | NESTED, |bytes| write(&mut Attributes(bytes)));
    }

    /// With attributes that were written before.
    pub(super) fn nested(&mut self, kind: u16, value: &[u8]) {
        self.put(kind | NESTED, value);
    }

    pub(super) fn write(&mut self, kind: u16, write: impl FnOnce(&mut Vec<u8>)) {
        let start = self.0.len();
        self.0.extend([0; 2]);
        self.0.extend(kind.to_ne_bytes());
        write(self.0);
        let length = u16::try_from(self.0.len() - start).unwrap_or(u16::MAX);
        if let Some(place) = self.0.get_mut(start..start + 2) {
            place.copy_from_slice(&length.to_ne_bytes());
        }
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }
}

/// One message that was received.
#[derive(Clone, Copy)]
pub(super) struct Received<'a> {
    pub(super) kind: u16,
    /// Of the message that it answers.
    pub(super) number: u32,
    body: &'a [u8],
}

impl<'a> Received<'a> {
    /// What an ERROR says; an ACK is one too, of no error.
    pub(super) fn result(&self) -> io::Result<()> {
        match self.body.first_chunk().map(|bytes| i32::from_ne_bytes(*bytes)) {
            Some(0) => Ok(()),
            Some(code) => Err(io::Error::from_raw_os_error(code.saturating_neg())),
            None => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    pub(super) fn attributes(&self) -> &'a [u8] {
        self.body.get(4..).unwrap_or_default()
    }
}

/// The messages in what was received.
pub(super) fn messages(mut bytes: &[u8]) -> impl Iterator<Item = Received<'_>> {
    std::iter::from_fn(move || {
        let length = usize::try_from(u32::from_ne_bytes(*bytes.first_chunk()?)).ok()?;
        let kind = u16::from_ne_bytes(*bytes.get(4..)?.first_chunk()?);
        let number = u32::from_ne_bytes(*bytes.get(8..)?.first_chunk()?);
        let body = bytes.get(16..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(Received { kind, number, body })
    })
}

/// The value of the first attribute of a kind.
pub(super) fn find(mut bytes: &[u8], kind: u16) -> Option<&[u8]> {
    loop {
        let length = usize::from(u16::from_ne_bytes(*bytes.first_chunk()?));
        let found = u16::from_ne_bytes(*bytes.get(2..)?.first_chunk()?);
        let value = bytes.get(4..length)?;
        if found & KIND == kind {
            return Some(value);
        }
        bytes = bytes.get(length.next_multiple_of(4)..)?;
    }
}

/// A connection to the netfilter of the calling thread's network namespace.
pub(super) struct Connection(Socket);

impl Connection {
    pub(super) fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_NETFILTER)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        // An error need not repeat the message that it is about.
        socket.set_cap_ack(true)?;
        Ok(Self(socket))
    }

    /// Sends all in one piece. The kernel is done with it when this returns: its answers are there.
    pub(super) fn send(&self, messages: &Messages) -> io::Result<()> {
        // As much again as a reserve for the kernel's own bookkeeping.
        rustix::net::sockopt::set_socket_send_buffer_size_force(&self.0, messages.bytes.len() + (64 << 10))?;
        self.0.send(&messages.bytes, 0)?;
        Ok(())
    }

    pub(super) fn receive(&self) -> io::Result<Vec<u8>> {
        Ok(self.0.recv_from_full()?.0)
    }

    /// What the kernel lists on a question, each message as `read` makes something of it.
    pub(super) fn list<T>(&self, kind: u16, read: impl Fn(Received) -> Option<T>) -> io::Result<Vec<T>> {
        let mut question = Messages::default();
        question.add(Header { kind, flags: REQUEST | DUMP, family: AF_INET, resource: 0 }, |_| {});
        self.send(&question)?;
        let mut all = Vec::new();
        loop {
            for message in messages(&self.receive()?) {
                match message.kind {
                    DONE => return Ok(all),
                    ERROR => message.result()?,
                    _ => all.extend(read(message)),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;

    const HELLO: Header = Header { kind: 7, flags: REQUEST, family: AF_INET, resource: 0 };

    #[test]
    fn what_is_written_is_read() {
        let mut sent = Messages::default();
        sent.add(HELLO, |it| {
            it.name(1, "web");
            it.nest(2, |it| it.put(1, &[8, 9, 10, 11, 12]));
        });
        sent.add(HELLO, |_| {});
        assert_eq!(sent.acknowledged(), 1);
        assert_eq!(sent.bytes.get(sent.last + 6), Some(&u8::try_from(REQUEST | ACK).unwrap()));
        assert_eq!(sent.bytes.len() % 4, 0);
        let all: Vec<_> = messages(&sent.bytes).collect();
        assert_eq!(all.iter().map(|it| (it.kind, it.number)).collect::<Vec<_>>(), [(7, 0), (7, 1)]);
        assert_eq!(find(all[0].attributes(), 1), Some(&b"web\0"[..]));
        assert_eq!(find(find(all[0].attributes(), 2).unwrap(), 1), Some(&[8, 9, 10, 11, 12][..]));
        assert_eq!(find(all[1].attributes(), 1), None);
        assert_eq!(sent.bytes.len(), 2 * 20 + 8 + 4 + 12);
    }

    proptest! {
        #[test]
        fn reads_anything(bytes in prop::collection::vec(any::<u8>(), 0..200), kind in 0..4u16) {
            for message in messages(&bytes) {
                let _ = (message.result(), find(message.attributes(), kind));
            }
        }
    }
}
