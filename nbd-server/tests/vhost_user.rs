//! A volume over vhost-user: an own VMM and driver against a real daemon.

mod common;

use common::Daemon;
use nbd_server::testing::{feature, Front, Setup};
use std::path::PathBuf;

const READ: u32 = 0;
const WRITE: u32 = 1;
const FLUSH: u32 = 4;
const ID: u32 = 8;
const DISCARD: u32 = 11;
const ZERO: u32 = 13;
const OK: u8 = 0;
const IO_ERROR: u8 = 1;
const UNSUPPORTED: u8 = 2;

fn listen(daemon: &Daemon, volume: &str) -> PathBuf {
    let answer = daemon.control(&format!(r#"{{"op":"vhost.listen","volume":"{volume}"}}"#));
    let answer: serde_json::Value = serde_json::from_str(&answer).expect("JSON");
    answer["socket"].as_str().expect("a path").into()
}

fn range(sector: u64, sectors: u32, flags: u32) -> Vec<u8> {
    let mut out = sector.to_le_bytes().to_vec();
    out.extend(sectors.to_le_bytes());
    out.extend(flags.to_le_bytes());
    out
}

#[test]
fn every_kind_of_request_does_what_it_says() {
    let daemon = Daemon::start();
    let socket = listen(&daemon, "disk");
    for features in [feature::USUAL, feature::USUAL & !feature::INDIRECT, feature::USUAL & !feature::EVENT_IDX] {
        let mut guest = Front::connect(&socket, Setup { features, ..Setup::default() }).expect("a guest");
        let data: Vec<u8> = (0..8192u32).map(|i| (i % 251) as u8).collect();
        assert_eq!(guest.call(0, WRITE, 8, &data, 0).expect("an answer").0, OK);
        assert_eq!(guest.call(0, FLUSH, 0, &[], 0).expect("an answer").0, OK);
        assert_eq!(guest.call(0, READ, 8, &[], 8192).expect("an answer"), (OK, data.clone()));
        // Part of a block.
        assert_eq!(guest.call(0, WRITE, 9, &[7; 512], 0).expect("an answer").0, OK);
        let read = guest.call(0, READ, 8, &[], 1536).expect("an answer").1;
        assert!(read[..512] == data[..512] && read[512..1024] == [7; 512] && read[1024..] == data[1024..1536]);
        assert_eq!(guest.call(0, DISCARD, 0, &range(8, 8, 0), 0).expect("an answer").0, OK);
        assert_eq!(guest.call(0, ZERO, 0, &range(16, 4, 1), 0).expect("an answer").0, OK);
        let read = guest.call(0, READ, 8, &[], 8192).expect("an answer").1;
        assert!(read[..6144].iter().all(|byte| *byte == 0) && read[6144..] == data[6144..]);
        let (status, id) = guest.call(0, ID, 0, &[], 20).expect("an answer");
        assert_eq!((status, &id[..5]), (OK, &b"disk\0"[..]));
        assert_eq!(guest.call(0, 99, 0, &[], 0).expect("an answer").0, UNSUPPORTED);
        let beyond = common::DISK_BYTES / 512;
        for (kind, sector, out, space) in [
            (READ, beyond, 0, 512),
            (READ, u64::MAX, 0, 512),
            (READ, beyond - 1, 0, 1024),
            (WRITE, beyond, 512, 0),
            (READ, 0, 0, 100),
            (ID, 0, 0, 19),
            (DISCARD, 0, 15, 0),
        ] {
            let (status, _) = guest.call(0, kind, sector, &vec![1; out], space).expect("an answer");
            assert_eq!(status, IO_ERROR, "{kind} at {sector}");
        }
        assert_eq!(guest.call(0, DISCARD, 0, &range(8, 8, 1), 0).expect("an answer").0, UNSUPPORTED);
        assert_eq!(guest.call(0, DISCARD, 0, &range(beyond, 8, 0), 0).expect("an answer").0, IO_ERROR);
    }
}
