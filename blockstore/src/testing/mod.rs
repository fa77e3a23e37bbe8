//! Stand-ins for the world, for tests and the simulator.

mod decode;
mod reference;
mod rng;
mod seal;
pub mod sequences;
mod sim_clock;
mod sim_disk;
mod sparse;

pub use decode::decode;
pub use reference::ReferenceDisk;
pub use rng::Rng;
pub use sim_clock::SimClock;
pub use sim_disk::{Fault, SimDisk};
pub use sparse::Sparse;
