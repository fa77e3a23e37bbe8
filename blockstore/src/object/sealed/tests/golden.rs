//! Sealed objects as `docs/FORMAT.md` shows them; `format/golden.rs` compares.

use super::*;
use crate::object::sealed::keyring::{first_name, wrapped};
use crate::object::sealed::record::KeyRecord;

/// Bytes that count up.
struct Counting;

impl Entropy for Counting {
    fn fill(&self, buf: &mut [u8]) {
        buf.iter_mut().zip(0xa0..).for_each(|(to, from)| *to = from);
    }
}

const NAME: &str = "volumes/disk/00000001";
const BODY: &[u8] = b"a manifest, for example";

fn parts() -> (Secret, chunk::DataKey, LocalKey) {
    let mut data: [u8; 32] = std::array::from_fn(|i| i as u8);
    let data = Secret::new(&mut data);
    let kek = Secret::new(&mut [0x4b; 32]);
    (data.clone(), chunk::DataKey::new(data, scope(NAME)).unwrap(), LocalKey::new(kek, Arc::new(Counting)).unwrap())
}

/// Every structure of this module, by its name in the document.
pub fn examples() -> Vec<(String, Vec<u8>)> {
    let (_, key, wrap) = parts();
    let mut salt = [0; chunk::SALT];
    Counting.fill(&mut salt);
    let object = chunk::seal(&key, NAME, salt, BODY).unwrap();
    let record = wrapped(&key, &wrap).unwrap();
    let retired = KeyRecord { wrapped: None, ..record.clone() };
    vec![
        ("sealed-object".to_owned(), object),
        ("wrapped-key".to_owned(), record.encode().unwrap()),
        ("wrapped-key-retired".to_owned(), retired.encode().unwrap()),
    ]
}

#[test]
fn what_the_document_shows_is_read() {
    let shown = crate::format::golden::documented();
    let (data, _, wrap) = parts();
    let objects = [(NAME, "sealed-object"), (&first_name("volumes/disk"), "wrapped-key")];
    let store = Memory::of(objects.iter().map(|(key, name)| ((*key).to_owned(), shown[*name].clone())).collect());
    let sealed = Sealed::new(store.clone(), Arc::new(wrap), Seeded::new(1));
    assert_eq!(sealed.get(NAME, Range::All).unwrap(), BODY);
    let (_, _, wrap) = parts();
    let record = KeyRecord::decode("it", &shown["wrapped-key"]).unwrap();
    let (by, bytes) = record.wrapped.unwrap();
    assert_eq!((by, wrap.unwrap(&bytes).unwrap()), (wrap.id(), data));
    assert_eq!(KeyRecord::decode("it", &shown["wrapped-key-retired"]).unwrap().wrapped, None);
}
