//! Stand-ins for the world, for tests and the simulator.

mod decode;
mod reference;
mod sim_clock;
mod sim_disk;

pub use decode::decode;
pub use reference::ReferenceDisk;
pub use sim_clock::SimClock;
pub use sim_disk::{Fault, SimDisk};
