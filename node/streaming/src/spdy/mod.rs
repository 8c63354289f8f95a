//! SPDY/3.1, as much of it as Kubernetes' streams use.

mod frame;
mod headers;
mod session;
mod stream;
mod window;

pub use frame::{Decoder, Encoder, Error, Frame};
pub use headers::Headers;
pub use session::{Incoming, Role, Session};
pub use stream::Stream;
