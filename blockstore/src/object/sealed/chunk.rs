//! Bytes of sealed objects: chunks that open one by one, each bound to its object, place and end.
//!
//! A chunk is tried with the head it should have, and only what fails is asked why. So a damaged head is damage, and a key or
//! version that the head names is believed only if the chunk does not open without it.

use super::super::{StoreError, StoreErrorKind, StoreResult};
use super::key::Secret;
use ring::aead::{Aad, LessSafeKey, Nonce, UnboundKey, AES_256_GCM};
use ring::hkdf::{self, HKDF_SHA256};

/// Plaintext bytes of every chunk but the last. Larger chunks make small reads dearer, smaller ones make objects longer.
pub const CHUNK: usize = 16 << 10;
/// Bytes before a chunk's ciphertext.
pub const HEAD: usize = 32;
/// Bytes after it.
pub const TAG: usize = 16;
/// A full chunk as stored.
pub const SEALED_CHUNK: usize = CHUNK + OVERHEAD;
/// Random bytes drawn for each put.
pub const SALT: usize = 16;
/// Version of sealed objects and of wrapped keys.
pub const VERSION: u8 = 1;

const OVERHEAD: usize = HEAD + TAG;
const MAGIC: [u8; 4] = *b"CSLD";
/// Flag of the last chunk: without it an object could be cut between chunks, or lengthened.
const LAST: u8 = 1;

/// The key of a scope, and its name: derived from the key and the scope, so it cannot be given to another scope.
#[derive(Debug)]
pub struct DataKey {
    pub secret: Secret,
    pub id: DataKeyId,
}

/// Names a data key. No secret.
pub type DataKeyId = [u8; 8];

impl DataKey {
    /// The data key of `scope`.
    pub fn new(secret: Secret, scope: &str) -> StoreResult<Self> {
        let mut id = [0; 8];
        derive(&secret, &[], &[b"cairn data key id", &[0], scope.as_bytes()], &mut id)?;
        Ok(Self { secret, id })
    }

    fn object_cipher(&self, name: &str, salt: &[u8]) -> StoreResult<LessSafeKey> {
        cipher(&self.secret, salt, &[b"cairn sealed object", &[0], name.as_bytes()])
    }
}

/// What a chunk begins with.
struct Head {
    is_last: bool,
    key: DataKeyId,
    salt: [u8; SALT],
}

impl Head {
    fn encode(&self) -> [u8; HEAD] {
        let mut out = [0; HEAD];
        let fields = MAGIC.into_iter().chain([VERSION, u8::from(self.is_last), 0, 0]).chain(self.key).chain(self.salt);
        out.iter_mut().zip(fields).for_each(|(to, from)| *to = from);
        out
    }
}

/// What a run of chunks held.
pub struct Opening {
    /// Their plaintext.
    pub plain: Vec<u8>,
    /// Their number.
    pub chunks: u64,
    /// Whether the object ends with them.
    pub is_end: bool,
}

/// Length of the object whose sealed form has `sealed` bytes; of what cannot be a sealed object a guess.
pub fn plain_len(sealed: u64) -> u64 {
    sealed.saturating_sub(sealed.div_ceil(SEALED_CHUNK as u64).saturating_mul(OVERHEAD as u64))
}

/// Whether the object that begins with `bytes`, or a chunk of it, claims to be sealed.
pub fn looks_sealed(bytes: &[u8]) -> bool {
    bytes.starts_with(&MAGIC)
}

/// Seals `body` as the object `name`. `salt` is fresh: the caller never uses it again.
pub fn seal(key: &DataKey, name: &str, salt: [u8; SALT], body: &[u8]) -> StoreResult<Vec<u8>> {
    let cipher = key.object_cipher(name, &salt)?;
    let count = body.len().div_ceil(CHUNK).max(1);
    let mut out = Vec::with_capacity(body.len().saturating_add(count.saturating_mul(OVERHEAD)));
    let empty = body.is_empty().then_some(body);
    for (index, chunk) in body.chunks(CHUNK).chain(empty).enumerate() {
        let is_last = index.saturating_add(1) == count;
        let head = Head { is_last, key: key.id, salt }.encode();
        out.extend(head);
        let start = out.len();
        out.extend(chunk);
        let text = out.get_mut(start..).unwrap_or_default();
        let tag = cipher.seal_in_place_separate_tag(nonce(index as u64, is_last), bound_to(&head, name), text);
        let tag =
            tag.map_err(|_| StoreError::new(StoreErrorKind::Invalid, format!("object {name} cannot be sealed")))?;
        out.extend(tag.as_ref());
    }
    Ok(out)
}

/// Opens the chunks in `bytes`, of which the first is number `first` of object `name`.
pub fn open(key: &DataKey, name: &str, first: u64, bytes: &mut [u8]) -> StoreResult<Opening> {
    if bytes.is_empty() {
        return Err(not_sealed(name));
    }
    let mut opening = Opening { plain: Vec::with_capacity(bytes.len()), chunks: 0, is_end: false };
    let mut current: Option<([u8; SALT], LessSafeKey)> = None;
    for sealed in bytes.chunks_mut(SEALED_CHUNK) {
        if opening.is_end {
            return Err(damaged(name, "has bytes behind its end"));
        }
        let Some((found, text)) = sealed.split_first_chunk_mut::<HEAD>() else {
            return Err(if looks_sealed(sealed) { cut(name) } else { not_sealed(name) });
        };
        let (_, salt) = found.split_last_chunk::<SALT>().ok_or_else(|| not_sealed(name))?;
        if current.as_ref().is_some_and(|(first, _)| first != salt) {
            return Err(damaged(name, "is put together from several"));
        }
        let (_, cipher) = match &mut current {
            Some(current) => current,
            none => none.insert((*salt, key.object_cipher(name, salt)?)),
        };
        // Only the last chunk may be short, so a short one that does not say so was cut.
        let is_last = found.get(5).is_some_and(|flags| *flags & LAST != 0);
        let wanted = Head { is_last, key: key.id, salt: *salt }.encode();
        let place = nonce(first.saturating_add(opening.chunks), is_last);
        match cipher.open_in_place(place, bound_to(&wanted, name), text) {
            Ok(plain) if wanted == *found => opening.plain.extend_from_slice(plain),
            Ok(_) => return Err(damaged(name, "is damaged")),
            Err(_) => return Err(why(found, &key.id, name)),
        }
        opening.is_end = is_last;
        opening.chunks = opening.chunks.saturating_add(1);
    }
    Ok(opening)
}

/// Why a chunk with this head does not open with the data key `ours`.
fn why(head: &[u8; HEAD], ours: &DataKeyId, name: &str) -> StoreError {
    let theirs = head.get(8..16).unwrap_or_default();
    let version = head.get(4).copied().unwrap_or_default();
    if !looks_sealed(head) {
        not_sealed(name)
    } else if version != VERSION {
        let text = format!("object {name} is sealed in version {version}; this program reads version {VERSION}");
        StoreError::new(StoreErrorKind::Invalid, text)
    } else if theirs != ours {
        let (theirs, ours) = (hex(theirs), hex(ours));
        let text = format!(
            "object {name} is sealed with data key {theirs}; the store's keys lead to {ours}: \
             objects and keys come from different stores, or keys were lost"
        );
        StoreError::new(StoreErrorKind::Denied, text)
    } else {
        damaged(name, "is damaged: it is not what was sealed under this name")
    }
}

/// The error for an object that should be sealed.
pub fn not_sealed(name: &str) -> StoreError {
    damaged(name, "is not sealed, or its head is damaged; this host has a key and reads nothing else")
}

/// The error for an object that ends before its last chunk.
pub fn cut(name: &str) -> StoreError {
    damaged(name, "is cut off")
}

fn damaged(name: &str, how: &str) -> StoreError {
    StoreError::new(StoreErrorKind::Corrupt, format!("object {name} {how}"))
}

/// Chunk `index` of an object, and whether it is the last: both are in the nonce, so that no chunk opens in another place.
fn nonce(index: u64, is_last: bool) -> Nonce {
    let mut out = [0; 12];
    out.iter_mut().zip(index.to_le_bytes().into_iter().chain([u8::from(is_last)])).for_each(|(to, from)| *to = from);
    Nonce::assume_unique_for_key(out)
}

fn bound_to(head: &[u8; HEAD], name: &str) -> Aad<Vec<u8>> {
    Aad::from([head.as_slice(), name.as_bytes()].concat())
}

/// The AES-256-GCM key that HKDF-SHA-256 derives from `secret`, `salt` and `info`.
pub fn cipher(secret: &Secret, salt: &[u8], info: &[&[u8]]) -> StoreResult<LessSafeKey> {
    let salt = hkdf::Salt::new(HKDF_SHA256, salt);
    let key = salt.extract(secret.expose());
    let key = key.expand(info, &AES_256_GCM).map_err(|_| no_key())?;
    Ok(LessSafeKey::new(UnboundKey::from(key)))
}

/// Fills `out` with what HKDF-SHA-256 derives from `secret`, `salt` and `info`; for names, not for keys.
pub fn derive(secret: &Secret, salt: &[u8], info: &[&[u8]], out: &mut [u8]) -> StoreResult<()> {
    struct Length(usize);
    impl hkdf::KeyType for Length {
        fn len(&self) -> usize {
            self.0
        }
    }
    let key = hkdf::Salt::new(HKDF_SHA256, salt).extract(secret.expose());
    let derived = key.expand(info, Length(out.len())).and_then(|key| key.fill(out));
    derived.map_err(|_| no_key())
}

fn no_key() -> StoreError {
    StoreError::new(StoreErrorKind::Invalid, "a key cannot be derived")
}

/// Lower-case hex digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
