//! Volumes that move from host to host, many together and many times.

mod bucket_world;

use blockstore::testing::Rng;
use blockstore::CheckpointName;
use bucket_world::{data, observe, World, BLOCKS, MINUTE};

/// Three volumes with checkpoints go to and fro between two hosts, written at each. The numbers of segments that a host
/// uses follow what there is, not what there was.
#[test]
fn volumes_that_move_together_use_few_numbers() {
    const MOVES: u64 = 40;
    let mut world = World::new(11, 2);
    let mut rng = Rng::new(5);
    let names = ["one", "two", "three"];
    for name in names {
        let host = &mut world.hosts[0];
        let id = host.create(name);
        host.write(name, 0, &data(&mut rng, BLOCKS));
        let (_, job) = host.pool.create_checkpoint(id, "first").unwrap();
        host.pool.finish(job).unwrap();
    }
    let mut most = 0;
    for turn in 0..MOVES {
        let [from, to] = [turn % 2, (turn + 1) % 2].map(|at| at as usize);
        for name in names {
            let at = rng.below(BLOCKS - 8);
            let piece = data(&mut rng, 8);
            world.hosts[from].write(name, at, &piece);
            let (head, first) = (world.hosts[from].contents(name, None).unwrap(), CheckpointName::parse("v1"));
            let first = first.map(|v1| world.hosts[from].contents(name, Some(v1)).unwrap());
            world.hosts[from].sync();
            let gone = world.hosts[from].detach(name);
            gone.unwrap_or_else(|e| panic!("turn {turn}: {e}"));
            world.hosts[from].sync();
            world.pass(MINUTE);
            world.hosts[to].attach(name, false).unwrap_or_else(|e| panic!("turn {turn}: {e}"));
            world.hosts[to].sync();
            assert!(world.hosts[to].contents(name, None).unwrap() == head, "turn {turn}: {name}");
            assert!(first == CheckpointName::parse("v1").map(|v1| world.hosts[to].contents(name, Some(v1)).unwrap()));
        }
        world.quiesce(&format!("turn {turn}"));
        let check = world.hosts[to].pool.check().unwrap();
        assert!(check.problems.is_empty(), "turn {turn}: {:?}", check.problems);
        for name in names {
            let newest = blockstore::object::newest_manifest(&world.store.observer(), name).unwrap().unwrap();
            most = most.max(newest.next_segment);
        }
    }
    observe(&world.store, "at the end");
    assert!(most < 200 * MOVES as u32, "{most} numbers");
}
