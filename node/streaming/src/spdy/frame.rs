//! Frames of SPDY/3.1 and their bytes. No I/O.

use bytes::{Buf as _, Bytes, BytesMut};

use super::headers::{Compressor, Decompressor, Headers};

const VERSION: u16 = 3;
const CONTROL: u32 = 1 << 31;
const ID: u32 = CONTROL - 1;
const FIN: u8 = 1;
const UNIDIRECTIONAL: u8 = 2;
/// Largest control frame that is taken. Data frames are handed on in pieces and need no limit.
const CONTROL_FRAME: usize = 64 << 10;

/// What a peer sent against the protocol.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("a SPDY frame of version {0}, only 3 is spoken")]
    Version(u16),
    #[error("a SPDY control frame of {0} bytes, at most {CONTROL_FRAME} are taken")]
    TooLarge(usize),
    #[error("a SPDY frame of type {kind} with {length} bytes, which it cannot have")]
    Length { kind: u16, length: usize },
    #[error("a SPDY frame on stream 0")]
    Stream,
    #[error("SPDY headers cannot be inflated: {0}")]
    Compression(&'static str),
    #[error("malformed SPDY headers")]
    Headers,
    #[error("too many or too long SPDY headers")]
    HeadersTooLarge,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    SynStream {
        id: u32,
        associated: u32,
        priority: u8,
        fin: bool,
        unidirectional: bool,
        headers: Headers,
    },
    SynReply {
        id: u32,
        fin: bool,
        headers: Headers,
    },
    RstStream {
        id: u32,
        status: u32,
    },
    /// Flags, id and value of each.
    Settings(Vec<(u8, u32, u32)>),
    Ping(u32),
    GoAway {
        last: u32,
        status: u32,
    },
    Headers {
        id: u32,
        fin: bool,
        headers: Headers,
    },
    WindowUpdate {
        id: u32,
        delta: u32,
    },
    Data {
        id: u32,
        fin: bool,
        data: Bytes,
    },
}

/// Frames to bytes.
pub struct Encoder {
    compressor: Compressor,
}

impl Default for Encoder {
    fn default() -> Self {
        Self { compressor: Compressor::new() }
    }
}

impl Encoder {
    /// Data has to be shorter than 16 MiB.
    pub fn encode(&mut self, frame: &Frame, into: &mut BytesMut) -> Result<(), Error> {
        let mut body = Vec::new();
        let mut word = |value: u32| body.extend_from_slice(&value.to_be_bytes());
        let (kind, flags) = match frame {
            Frame::Data { id, fin, data } => {
                let length = u32::try_from(data.len()).ok().filter(|length| *length < 1 << 24);
                let length = length.ok_or(Error::TooLarge(data.len()))?;
                into.extend_from_slice(&(id & ID).to_be_bytes());
                into.extend_from_slice(&(u32::from(*fin) << 24 | length).to_be_bytes());
                into.extend_from_slice(data);
                return Ok(());
            }
            Frame::SynStream { id, associated, priority, fin, unidirectional, headers } => {
                word(id & ID);
                word(associated & ID);
                body.extend_from_slice(&[(priority & 7) << 5, 0]);
                self.compressor.compress(headers, &mut body)?;
                (1, (u8::from(*fin) * FIN) | (u8::from(*unidirectional) * UNIDIRECTIONAL))
            }
            Frame::SynReply { id, fin, headers } => {
                word(id & ID);
                self.compressor.compress(headers, &mut body)?;
                (2, u8::from(*fin))
            }
            Frame::RstStream { id, status } => {
                word(id & ID);
                word(*status);
                (3, 0)
            }
            Frame::Settings(settings) => {
                word(u32::try_from(settings.len()).unwrap_or(u32::MAX));
                for (flags, id, value) in settings {
                    word(u32::from(*flags) << 24 | (id & 0xff_ffff));
                    word(*value);
                }
                (4, 0)
            }
            Frame::Ping(id) => {
                word(*id);
                (6, 0)
            }
            Frame::GoAway { last, status } => {
                word(last & ID);
                word(*status);
                (7, 0)
            }
            Frame::Headers { id, fin, headers } => {
                word(id & ID);
                self.compressor.compress(headers, &mut body)?;
                (8, u8::from(*fin))
            }
            Frame::WindowUpdate { id, delta } => {
                word(id & ID);
                word(delta & ID);
                (9, 0)
            }
        };
        let length = u32::try_from(body.len()).ok().filter(|length| *length < 1 << 24);
        let length = length.ok_or(Error::TooLarge(body.len()))?;
        into.extend_from_slice(&(CONTROL | u32::from(VERSION) << 16 | kind).to_be_bytes());
        into.extend_from_slice(&(u32::from(flags) << 24 | length).to_be_bytes());
        into.extend_from_slice(&body);
        Ok(())
    }
}

/// Bytes to frames. A data frame may come out in pieces, the last of which ends the stream if the
/// frame does.
pub struct Decoder {
    decompressor: Decompressor,
    /// Of a data frame under way: its stream, whether it is the last, and bytes to come.
    rest: Option<(u32, bool, usize)>,
}

impl Default for Decoder {
    fn default() -> Self {
        Self { decompressor: Decompressor::new(), rest: None }
    }
}

impl Decoder {
    /// The next frame, or none until more bytes have come. After an error the connection is over.
    pub fn decode(&mut self, buffer: &mut BytesMut) -> Result<Option<Frame>, Error> {
        loop {
            if let Some((id, last, rest)) = self.rest {
                if buffer.is_empty() && rest > 0 {
                    return Ok(None);
                }
                let data = buffer.split_to(rest.min(buffer.len())).freeze();
                let rest = rest - data.len();
                self.rest = (rest > 0).then_some((id, last, rest));
                return Ok(Some(Frame::Data { id, fin: last && rest == 0, data }));
            }
            let Some(head) = buffer.first_chunk::<8>() else { return Ok(None) };
            let [a, b, c, d, flags, e, f, g] = *head;
            let first = u32::from_be_bytes([a, b, c, d]);
            let length = usize::try_from(u32::from_be_bytes([0, e, f, g])).unwrap_or(usize::MAX);
            if first & CONTROL == 0 {
                if first == 0 {
                    return Err(Error::Stream);
                }
                buffer.advance(8);
                self.rest = Some((first, flags & FIN != 0, length));
                continue;
            }
            let version = u16::try_from((first & ID) >> 16).unwrap_or(u16::MAX);
            if version != VERSION {
                return Err(Error::Version(version));
            }
            if length > CONTROL_FRAME {
                return Err(Error::TooLarge(length));
            }
            if buffer.len() < 8 + length {
                return Ok(None);
            }
            buffer.advance(8);
            let body = buffer.split_to(length);
            let kind = u16::try_from(first & 0xffff).unwrap_or_default();
            if let Some(frame) = self.control(kind, flags, &body)? {
                return Ok(Some(frame));
            }
        }
    }

    /// None for frames of a type that is not known: they are to be ignored.
    fn control(&mut self, kind: u16, flags: u8, body: &[u8]) -> Result<Option<Frame>, Error> {
        let wrong = Error::Length { kind, length: body.len() };
        let word = |index: usize| -> Result<u32, Error> {
            let bytes = body.get(index * 4..).and_then(|rest| rest.first_chunk::<4>());
            bytes.map(|bytes| u32::from_be_bytes(*bytes)).ok_or_else(|| wrong.clone())
        };
        let stream = || match word(0)? & ID {
            0 => Err(Error::Stream),
            id => Ok(id),
        };
        let exactly = |length: usize| if body.len() == length { Ok(()) } else { Err(wrong.clone()) };
        let after = |length: usize| body.get(length..).ok_or_else(|| wrong.clone());
        let fin = flags & FIN != 0;
        Ok(Some(match kind {
            1 => {
                let (id, associated) = (stream()?, word(1)? & ID);
                let block = after(10)?;
                let priority = body.get(8).map_or(0, |byte| byte >> 5);
                let unidirectional = flags & UNIDIRECTIONAL != 0;
                let headers = self.decompressor.decompress(block)?;
                Frame::SynStream { id, associated, priority, fin, unidirectional, headers }
            }
            2 => {
                let (id, block) = (stream()?, after(4)?);
                Frame::SynReply { id, fin, headers: self.decompressor.decompress(block)? }
            }
            3 => {
                exactly(8)?;
                Frame::RstStream { id: stream()?, status: word(1)? }
            }
            4 => {
                let count = usize::try_from(word(0)?).unwrap_or(usize::MAX);
                exactly(count.saturating_mul(8).saturating_add(4))?;
                let mut settings = Vec::new();
                for index in 0..count {
                    let id = word(1 + 2 * index)?;
                    settings.push(((id >> 24) as u8, id & 0xff_ffff, word(2 + 2 * index)?));
                }
                Frame::Settings(settings)
            }
            6 => {
                exactly(4)?;
                Frame::Ping(word(0)?)
            }
            7 => {
                exactly(8)?;
                Frame::GoAway { last: word(0)? & ID, status: word(1)? }
            }
            8 => {
                let (id, block) = (stream()?, after(4)?);
                Frame::Headers { id, fin, headers: self.decompressor.decompress(block)? }
            }
            9 => {
                exactly(8)?;
                // 3.1 has a window for the whole connection too: stream 0.
                Frame::WindowUpdate { id: word(0)? & ID, delta: word(1)? & ID }
            }
            _ => return Ok(None),
        }))
    }
}

#[cfg(test)]
#[path = "frame_tests.rs"]
mod tests;
