//! How scheduler, controllers and node reach the cluster: one shared, decoded cache per kind and
//! process ([`Informers`]) and one way to tell users what happened ([`EventRecorder`]). Both see
//! the cluster only through the Kubernetes API.

mod clock;
mod events;
mod informer;
mod receipt;
mod unmanaged;

pub use clock::Clock;
pub use events::{EventKind, EventRecorder};
pub use informer::{Change, Index, Informer, Informers, Object, Subscription};
pub use receipt::{Receipt, create, patch_status};
