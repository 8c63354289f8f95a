//! Header blocks: name and value pairs, compressed by one zlib stream per direction that begins
//! with SPDY/3's dictionary.

use std::sync::LazyLock;

use zlib_rs::{Deflate, DeflateFlush, Inflate, InflateError, InflateFlush, Status};

use super::frame::Error;

/// Most bytes of a block once inflated, and most headers in it.
const BLOCK: usize = 64 << 10;
const COUNT: usize = 256;

const WORDS: &[&str] = &[
    "options",
    "head",
    "post",
    "put",
    "delete",
    "trace",
    "accept",
    "accept-charset",
    "accept-encoding",
    "accept-language",
    "accept-ranges",
    "age",
    "allow",
    "authorization",
    "cache-control",
    "connection",
    "content-base",
    "content-encoding",
    "content-language",
    "content-length",
    "content-location",
    "content-md5",
    "content-range",
    "content-type",
    "date",
    "etag",
    "expect",
    "expires",
    "from",
    "host",
    "if-match",
    "if-modified-since",
    "if-none-match",
    "if-range",
    "if-unmodified-since",
    "last-modified",
    "location",
    "max-forwards",
    "pragma",
    "proxy-authenticate",
    "proxy-authorization",
    "range",
    "referer",
    "retry-after",
    "server",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "user-agent",
    "vary",
    "via",
    "warning",
    "www-authenticate",
    "method",
    "get",
    "status",
    "200 OK",
    "version",
    "HTTP/1.1",
    "url",
    "public",
    "set-cookie",
    "keep-alive",
    "origin",
];
const TAIL: &str = "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505\
    203 Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized\
    403 Forbidden404 Not Found500 Internal Server Error501 Not Implemented503 Service Unavailable\
    Jan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMT\
    chunked,text/html,image/png,image/jpg,image/gif,application/xml,application/xhtml+xml,text/plain,\
    text/javascript,publicprivatemax-age=gzip,deflate,sdchcharset=utf-8charset=iso-8859-1,utf-,*,enq=0.";

static DICTIONARY: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut all = Vec::new();
    for word in WORDS {
        put(&mut all, word.as_bytes());
    }
    all.extend_from_slice(TAIL.as_bytes());
    all
});

fn put(into: &mut Vec<u8>, bytes: &[u8]) {
    into.extend_from_slice(&u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_be_bytes());
    into.extend_from_slice(bytes);
}

/// Headers of a stream. Names are lower case; a name comes once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Headers(Vec<(String, String)>);

impl Headers {
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }
}

impl<const N: usize> From<[(&str, &str); N]> for Headers {
    fn from(pairs: [(&str, &str); N]) -> Self {
        Self(pairs.iter().map(|(name, value)| (name.to_ascii_lowercase(), (*value).to_owned())).collect())
    }
}

impl FromIterator<(String, String)> for Headers {
    fn from_iter<I: IntoIterator<Item = (String, String)>>(pairs: I) -> Self {
        Self(pairs.into_iter().map(|(name, value)| (name.to_ascii_lowercase(), value)).collect())
    }
}

/// Compresses the blocks of one direction, in the order in which they are sent.
pub struct Compressor(Deflate);

impl Compressor {
    pub fn new() -> Self {
        let mut deflate = Deflate::new(6, true, 15);
        // Refused only once data has gone through.
        let _ = deflate.set_dictionary(&DICTIONARY);
        Self(deflate)
    }

    pub fn compress(&mut self, headers: &Headers, into: &mut Vec<u8>) -> Result<(), Error> {
        let mut block = Vec::new();
        block.extend_from_slice(&u32::try_from(headers.0.len()).unwrap_or(u32::MAX).to_be_bytes());
        for (name, value) in &headers.0 {
            put(&mut block, name.as_bytes());
            put(&mut block, value.as_bytes());
        }
        let (mut rest, mut chunk) = (block.as_slice(), [0; 4096]);
        loop {
            let (read, written) = (self.0.total_in(), self.0.total_out());
            let status = self.0.compress(rest, &mut chunk, DeflateFlush::SyncFlush);
            status.map_err(|error| Error::Compression(error.as_str()))?;
            rest = rest.get((self.0.total_in() - read) as usize..).unwrap_or_default();
            let made = (self.0.total_out() - written) as usize;
            into.extend_from_slice(chunk.get(..made).unwrap_or_default());
            // Room left over: the flush is whole.
            if made < chunk.len() {
                return Ok(());
            }
        }
    }
}

/// Inflates the blocks of one direction, in the order in which they came.
pub struct Decompressor(Inflate);

impl Decompressor {
    pub fn new() -> Self {
        Self(Inflate::new(true, 15))
    }

    pub fn decompress(&mut self, mut input: &[u8]) -> Result<Headers, Error> {
        let (mut block, mut chunk) = (Vec::new(), [0; 4096]);
        loop {
            let (read, written) = (self.0.total_in(), self.0.total_out());
            let result = self.0.decompress(input, &mut chunk, InflateFlush::SyncFlush);
            input = input.get((self.0.total_in() - read) as usize..).unwrap_or_default();
            let made = (self.0.total_out() - written) as usize;
            block.extend_from_slice(chunk.get(..made).unwrap_or_default());
            if block.len() > BLOCK {
                return Err(Error::HeadersTooLarge);
            }
            match result {
                Ok(Status::StreamEnd) => return Err(Error::Compression("the stream of headers has ended")),
                Ok(Status::Ok | Status::BufError) => {}
                Err(InflateError::NeedDict { .. }) => {
                    self.0.set_dictionary(&DICTIONARY).map_err(|error| Error::Compression(error.as_str()))?;
                    continue;
                }
                Err(error) => return Err(Error::Compression(error.as_str())),
            }
            if made < chunk.len() {
                if !input.is_empty() && made == 0 && self.0.total_in() == read {
                    return Err(Error::Compression("no progress"));
                }
                if input.is_empty() {
                    return parse(&block);
                }
            }
        }
    }
}

fn parse(block: &[u8]) -> Result<Headers, Error> {
    let mut rest = block;
    let count = length(&mut rest)?;
    if count > COUNT {
        return Err(Error::HeadersTooLarge);
    }
    let mut headers: Vec<(String, String)> = Vec::new();
    for _ in 0..count {
        let (name, value) = (text(&mut rest)?, text(&mut rest)?);
        if name.is_empty() || headers.iter().any(|(known, _)| *known == name) {
            return Err(Error::Headers);
        }
        headers.push((name.to_ascii_lowercase(), value));
    }
    if rest.is_empty() { Ok(Headers(headers)) } else { Err(Error::Headers) }
}

fn length(rest: &mut &[u8]) -> Result<usize, Error> {
    let (bytes, tail) = rest.split_first_chunk::<4>().ok_or(Error::Headers)?;
    *rest = tail;
    usize::try_from(u32::from_be_bytes(*bytes)).map_err(|_| Error::Headers)
}

fn text(rest: &mut &[u8]) -> Result<String, Error> {
    let length = length(rest)?;
    let (bytes, tail) = rest.split_at_checked(length).ok_or(Error::Headers)?;
    *rest = tail;
    String::from_utf8(bytes.to_vec()).map_err(|_| Error::Headers)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_dictionary_is_the_one_of_spdy_3() {
        let (mut a, mut b) = (1_u32, 0_u32);
        for byte in DICTIONARY.iter() {
            a = (a + u32::from(*byte)) % 65_521;
            b = (b + a) % 65_521;
        }
        assert_eq!((DICTIONARY.len(), b << 16 | a), (1423, 0xe3c6_a7c2));
    }

    #[test]
    fn more_than_a_block_may_hold_is_refused() {
        let mut compressor = Compressor::new();
        let mut wire = Vec::new();
        let huge = Headers::from([("a", "x".repeat(BLOCK + 1).as_str())]);
        compressor.compress(&huge, &mut wire).unwrap();
        assert!(wire.len() < 1024, "a bomb is small");
        assert_eq!(Decompressor::new().decompress(&wire), Err(Error::HeadersTooLarge));
    }

    proptest! {
        #[test]
        fn blocks_come_back_one_after_another(
            blocks in prop::collection::vec(prop::collection::btree_map("[a-z-]{1,20}", ".{0,200}", 0..20), 1..8)
        ) {
            let (mut compressor, mut decompressor) = (Compressor::new(), Decompressor::new());
            for block in blocks {
                let headers: Headers = block.into_iter().collect();
                let mut wire = Vec::new();
                compressor.compress(&headers, &mut wire).unwrap();
                prop_assert_eq!(decompressor.decompress(&wire).unwrap(), headers);
            }
        }

        #[test]
        fn any_block_is_parsed_or_refused(block in prop::collection::vec(any::<u8>(), 0..200), cut in 0usize..200) {
            let _ = parse(&block);
            let mut wire = Vec::new();
            Compressor::new().compress(&Headers::from([("streamtype", "data"), ("port", "80")]), &mut wire).unwrap();
            wire.truncate(cut);
            wire.extend_from_slice(&block);
            let mut decompressor = Decompressor::new();
            let _ = decompressor.decompress(&wire);
            let _ = decompressor.decompress(&block);
        }
    }
}
