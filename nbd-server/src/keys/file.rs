//! Key files: 256 bits as 64 hex digits, as base64, or as they are.

use base64::engine::general_purpose::STANDARD;
use base64::Engine;
use blockstore::object::sealed::Secret;
use blockstore::{Error, ErrorKind, Result};
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// More than any of the forms, with line ends, needs.
const FILE_BYTES_MAX: u64 = 256;
/// Readable by others than the owner and the group.
const READABLE_BY_OTHERS: u32 = 0o004;

/// The key in the file `path`. A file that everybody on the host may read is taken, with a warning.
///
/// # Errors
/// If it cannot be read or is no key; names the file and what one looks like.
pub fn read_key_file(path: &Path) -> Result<Secret> {
    let shown = path.display();
    let failed = |e| Error::io(format!("reading the key file {shown}"), e);
    let file = File::open(path).map_err(failed)?;
    if file.metadata().map_err(failed)?.mode() & READABLE_BY_OTHERS != 0 {
        tracing::warn!("the key file {shown} is readable by everybody on this host: chmod o-r {shown}");
    }
    let mut bytes = zeroize::Zeroizing::new(Vec::with_capacity(FILE_BYTES_MAX as usize));
    file.take(FILE_BYTES_MAX).read_to_end(&mut bytes).map_err(failed)?;
    parse(&bytes).ok_or_else(|| {
        let text = format!(
            "{shown} is no key file: it holds 32 bytes as they are, 64 hex digits, or 44 characters of base64. \
             head -c 32 /dev/urandom >FILE makes one"
        );
        Error::new(ErrorKind::Invalid, text)
    })
}

/// The key that `bytes` are a form of.
pub(super) fn parse(bytes: &[u8]) -> Option<Secret> {
    if let Ok(mut raw) = <[u8; 32]>::try_from(bytes) {
        return Some(Secret::new(&mut raw));
    }
    let text = bytes.trim_ascii();
    let mut key = [0; 32];
    if text.len() == 64 {
        for (byte, digits) in key.iter_mut().zip(text.chunks(2)) {
            let digit = |i: usize| char::from(digits[i]).to_digit(16).map(|digit| digit as u8);
            *byte = digit(0)? << 4 | digit(1)?;
        }
    } else {
        let decoded = zeroize::Zeroizing::new(STANDARD.decode(text).ok()?);
        key = decoded.as_slice().try_into().ok()?;
    }
    Some(Secret::new(&mut key))
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: [u8; 32] = *b"\x00\x01\xfe\xff0123456789abcdef0123456789ab";

    #[test]
    fn every_form_of_a_key_is_read() {
        let hex: String = KEY.iter().map(|byte| format!("{byte:02x}")).collect();
        let base64 = STANDARD.encode(KEY);
        let forms = [KEY.to_vec(), hex.clone().into(), hex.to_uppercase().into(), format!("{hex}\r\n").into()];
        for form in forms.into_iter().chain([base64.clone().into(), format!(" {base64}\n").into()]) {
            assert_eq!(parse(&form).expect("a key").expose(), &KEY, "{form:?}");
        }
    }

    #[test]
    fn what_is_no_key_is_refused_and_not_repeated() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("key");
        for bytes in [&b""[..], b"secret", &[0; 31], &[0; 33], &[b'x'; 64], &[b'A'; 43], &[b'1'; 65], &[b'1'; 4096]] {
            std::fs::write(&path, bytes).expect("written");
            let e = read_key_file(&path).expect_err("no key");
            assert!(e.kind() == ErrorKind::Invalid && e.to_string().contains("no key file"), "{e}");
            assert!(!e.to_string().contains("secret"), "{e}");
        }
        assert!(read_key_file(&folder.path().join("absent")).is_err());
        std::fs::write(&path, KEY).expect("written");
        assert_eq!(read_key_file(&path).expect("a key").expose(), &KEY);
    }
}
