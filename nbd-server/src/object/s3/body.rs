//! The bytes of a get: what to ask for, how many must come, and that they came.

use aws_sdk_s3::primitives::ByteStream;
use blockstore::object::{Range, OBJECT_BYTES_MAX};

/// Beyond every object; larger numbers are more than some servers parse.
const OFFSET_MAX: u64 = 1 << 50;

/// The `Range` header.
pub(super) fn header(range: Range) -> Option<String> {
    match range {
        Range::All => None,
        Range::Part { offset, len } => {
            let first = offset.min(OFFSET_MAX);
            let last = offset.saturating_add(len.saturating_sub(1)).min(OFFSET_MAX);
            Some(format!("bytes={first}-{last}"))
        }
    }
}

/// How many bytes the answer must have; `None` if the server does not say and the whole object was asked for.
pub(super) fn length(range: Range, length: Option<i64>, part: Option<&str>) -> Result<Option<u64>, String> {
    let announced = match length.map(u64::try_from) {
        Some(Err(_)) => return Err("a negative length".to_owned()),
        Some(Ok(bytes)) if bytes > OBJECT_BYTES_MAX => {
            return Err(format!("it has {bytes} bytes, and none of ours has more than {OBJECT_BYTES_MAX}"));
        }
        Some(Ok(bytes)) => Some(bytes),
        None => None,
    };
    let Range::Part { offset, len } = range else { return Ok(announced) };
    let part = part.ok_or("the server ignores ranges")?;
    let expected =
        part_length(part, offset, len).ok_or_else(|| format!("{part:?} is not the range that was asked for"))?;
    match announced {
        Some(bytes) if bytes != expected => Err(format!("{bytes} bytes announced for {part:?}")),
        _ if expected > OBJECT_BYTES_MAX => Err(format!("{expected} bytes are more than an object has")),
        _ => Ok(Some(expected)),
    }
}

/// The length of `bytes FIRST-LAST/TOTAL` if that is all the object has of what was asked for.
fn part_length(part: &str, offset: u64, len: u64) -> Option<u64> {
    let (span, total) = part.trim().strip_prefix("bytes")?.trim_start().split_once('/')?;
    let (first, last) = span.split_once('-')?;
    let (first, last): (u64, u64) = (first.parse().ok()?, last.parse().ok()?);
    let length = last.checked_sub(first)?.checked_add(1)?;
    let complete = match total.parse::<u64>() {
        Ok(total) => length == total.checked_sub(offset)?.min(len),
        Err(_) => total == "*" && length <= len,
    };
    (first == offset && complete).then_some(length)
}

/// All bytes of a body; never more than announced, or than an object may have.
pub(super) async fn collect(mut body: ByteStream, length: Option<u64>) -> Result<Vec<u8>, String> {
    let limit = length.unwrap_or(OBJECT_BYTES_MAX);
    let mut bytes = Vec::with_capacity(usize::try_from(length.unwrap_or_default()).unwrap_or_default());
    while let Some(piece) = body.try_next().await.map_err(|e| cut(&e, bytes.len()))? {
        bytes.extend_from_slice(&piece);
        if bytes.len() as u64 > limit {
            return Err(format!("the body has more than the {limit} bytes it should have"));
        }
    }
    match length {
        Some(length) if length != bytes.len() as u64 => {
            Err(format!("the body ended after {} of {length} bytes", bytes.len()))
        }
        _ => Ok(bytes),
    }
}

fn cut(error: &dyn std::error::Error, after: usize) -> String {
    let cause = std::iter::successors(Some(error), |e| e.source()).last().map(ToString::to_string);
    format!("the body broke off after {after} bytes ({})", cause.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_name_first_and_last_byte() {
        let part = |offset, len| header(Range::Part { offset, len }).expect("a header");
        assert_eq!(header(Range::All), None);
        assert_eq!(part(0, 1), "bytes=0-0");
        assert_eq!(part(5, 10), "bytes=5-14");
        assert_eq!(part(u64::MAX, u64::MAX), format!("bytes={OFFSET_MAX}-{OFFSET_MAX}"));
    }

    #[test]
    fn only_the_whole_of_what_was_asked_for_is_taken() {
        let part = |announced, text| length(Range::Part { offset: 5, len: 10 }, announced, text);
        assert_eq!(part(Some(10), Some("bytes 5-14/100")), Ok(Some(10)));
        assert_eq!(part(None, Some("bytes 5-14/*")), Ok(Some(10)));
        assert_eq!(part(Some(3), Some("bytes 5-7/8")), Ok(Some(3)));
        for text in [
            "",
            "bytes 5-7/100",
            "bytes 4-13/100",
            "bytes 5-15/100",
            "bytes 5-14/14",
            "bytes 14-5/100",
            "bytes 5-14",
            "lines 5-14/100",
            "bytes 5-99999999999999999999/*",
            "bytes 0-18446744073709551615/*",
            "bytes 5-14/x",
            "bytes */100",
        ] {
            assert!(part(None, Some(text)).is_err(), "{text:?}");
        }
        assert!(part(Some(9), Some("bytes 5-14/100")).is_err());
        assert!(part(Some(100), None).is_err(), "the range was ignored");
        assert_eq!(length(Range::All, Some(0), None), Ok(Some(0)));
        assert_eq!(length(Range::All, None, None), Ok(None));
        assert!(length(Range::All, Some(-1), None).is_err());
        assert!(length(Range::All, Some(i64::MAX), None).is_err());
        let all = length(Range::Part { offset: 0, len: u64::MAX }, None, Some("bytes 0-9999999999/10000000000"));
        assert!(all.is_err(), "more than an object has");
    }
}
