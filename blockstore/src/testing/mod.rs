//! Stand-ins for the world, for tests and the simulator.

mod decode;
mod decode_bucket;
mod reference;
mod rng;
mod seal;
pub mod sequences;
mod sim_clock;
mod sim_disk;
mod sim_store;
mod sim_tier;
mod sparse;
mod store_conformance;

pub use decode::decode;
pub use decode_bucket::{attach_manifest, decode_bucket};
pub use reference::ReferenceDisk;
pub use rng::Rng;
pub use sim_clock::SimClock;
pub use sim_disk::{Fault, SimDisk};
pub use sim_store::{SimStore, StoreFault, StoreOp};
pub use sim_tier::{sim_tier, tier_step, SimEntropy};
pub use sparse::Sparse;
pub use store_conformance::{one_of_many_creates, store_conformance};
