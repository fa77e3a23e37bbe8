//! Archives in the form of tar, as the guest's own `tar` writes and reads them.
//!
//! Read are the old form, ustar, GNU's and pax; written is ustar with GNU's long names. A guest's archive is not trusted: names
//! are bounded, numbers checked, and what it means is decided by who places the files (`place`), not here.

use std::io::{self, Read, Write};

const BLOCK: usize = 512;
/// Bytes of a name.
const NAME_MAX: u64 = 64 << 10;
/// Bytes of a header's extension.
const EXTENSION_MAX: u64 = 1 << 20;
/// The largest size that fits in octal digits.
const OCTAL_MAX: u64 = 0o77_777_777_777;

/// What an entry is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    File,
    Folder,
    /// With what it names.
    Link(Vec<u8>),
    /// Another name of an entry before it.
    Same(Vec<u8>),
    /// Devices, pipes, and what is not known.
    Other,
}

/// An entry; its bytes follow, `size` of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub name: Vec<u8>,
    pub kind: Kind,
    pub mode: u32,
    pub size: u64,
    /// Seconds.
    pub time: i64,
}

fn damaged(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the archive is damaged: {what}"))
}

fn field(block: &[u8; BLOCK], from: usize, len: usize) -> &[u8] {
    block.get(from..from + len).unwrap_or_default()
}

fn text(field: &[u8]) -> Vec<u8> {
    field.iter().copied().take_while(|byte| *byte != 0).collect()
}

/// Octal digits, or a binary number when the first bit says so.
fn number(field: &[u8]) -> io::Result<u64> {
    let (first, rest) = field.split_first().ok_or_else(|| damaged("a number"))?;
    if first & 0x80 != 0 {
        // Eight bytes hold what can be; those before them are zero.
        let (high, low) = rest.split_at(rest.len().saturating_sub(8));
        if first & 0x7f != 0 || high.iter().any(|byte| *byte != 0) {
            return Err(damaged("a number"));
        }
        return Ok(low.iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte)));
    }
    let digits: Vec<u8> = field.iter().copied().filter(|byte| !matches!(byte, b' ' | 0)).collect();
    let digits = std::str::from_utf8(&digits).map_err(|_| damaged("a number"))?;
    if digits.is_empty() {
        return Ok(0);
    }
    u64::from_str_radix(digits, 8).map_err(|_| damaged("a number"))
}

/// The sum of a header's bytes, in which the sum's own are spaces.
fn sum(block: &[u8; BLOCK]) -> u64 {
    let one = |(at, byte): (usize, &u8)| u64::from(if (148..156).contains(&at) { b' ' } else { *byte });
    block.iter().enumerate().map(one).sum()
}

/// An archive that is read.
pub struct Reader<R> {
    from: R,
    /// Bytes of the last entry that were not read, and those behind them up to the next block.
    left: u64,
    padding: u64,
}

impl<R: Read> Reader<R> {
    pub fn new(from: R) -> Self {
        Self { from, left: 0, padding: 0 }
    }

    fn skip(&mut self) -> io::Result<()> {
        let skipped = self.left + self.padding;
        let got = io::copy(&mut (&mut self.from).take(skipped), &mut io::sink())?;
        (self.left, self.padding) = (0, 0);
        if got < skipped {
            return Err(damaged("it is cut off"));
        }
        Ok(())
    }

    fn block(&mut self) -> io::Result<[u8; BLOCK]> {
        let mut block = [0; BLOCK];
        match self.from.read_exact(&mut block) {
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Err(damaged("it is cut off")),
            other => other.map(|()| block),
        }
    }

    /// Bytes that belong to the next header.
    fn extension(&mut self, size: u64, max: u64) -> io::Result<Vec<u8>> {
        if size > max {
            return Err(damaged("a name is too long"));
        }
        let mut bytes = Vec::new();
        (&mut self.from).take(size).read_to_end(&mut bytes)?;
        if (bytes.len() as u64) < size {
            return Err(damaged("it is cut off"));
        }
        self.padding = size.next_multiple_of(BLOCK as u64) - size;
        self.skip()?;
        Ok(bytes)
    }

    /// The next entry, whose bytes are read through `self`; `None` at the end.
    pub fn next(&mut self) -> io::Result<Option<Entry>> {
        self.skip()?;
        let (mut name, mut target, mut size, mut time) = (None, None, None, None);
        loop {
            let block = self.block()?;
            if block.iter().all(|byte| *byte == 0) {
                // What comes behind the end is read, so that who writes it is not cut off.
                io::copy(&mut self.from, &mut io::sink())?;
                return Ok(None);
            }
            if number(field(&block, 148, 8))? != sum(&block) {
                return Err(damaged("a header's sum is wrong"));
            }
            let own = number(field(&block, 124, 12))?;
            let kind = block.get(156).copied().unwrap_or_default();
            match kind {
                b'L' => name = Some(text(&self.extension(own, NAME_MAX)?)),
                b'K' => target = Some(text(&self.extension(own, NAME_MAX)?)),
                b'x' => {
                    for (key, value) in records(&self.extension(own, EXTENSION_MAX)?)? {
                        let digits = || std::str::from_utf8(value).ok();
                        let whole = || digits().and_then(|text| text.split('.').next());
                        match key {
                            b"path" => name = Some(value.to_vec()),
                            b"linkpath" => target = Some(value.to_vec()),
                            b"size" => {
                                let found = digits().and_then(|text| text.parse::<u64>().ok());
                                size = Some(found.ok_or_else(|| damaged("a size"))?);
                            }
                            b"mtime" => time = whole().and_then(|text| text.parse::<i64>().ok()),
                            _ => {}
                        }
                    }
                }
                b'g' => drop(self.extension(own, EXTENSION_MAX)?),
                _ => {
                    let target = target.unwrap_or_else(|| text(field(&block, 157, 100)));
                    let kind = match kind {
                        b'0' | 0 | b'7' => Kind::File,
                        b'5' => Kind::Folder,
                        b'2' => Kind::Link(target),
                        b'1' => Kind::Same(target),
                        _ => Kind::Other,
                    };
                    let size = match kind {
                        Kind::File | Kind::Other => size.unwrap_or(own),
                        _ => 0,
                    };
                    self.left = size;
                    self.padding = size.checked_next_multiple_of(BLOCK as u64).ok_or_else(|| damaged("a size"))? - size;
                    return Ok(Some(Entry {
                        name: name.unwrap_or_else(|| own_name(&block)),
                        kind,
                        mode: (number(field(&block, 100, 8))? & 0o7777) as u32,
                        size,
                        time: time.unwrap_or(i64::try_from(number(field(&block, 136, 12))?).unwrap_or(0)),
                    }));
                }
            }
        }
    }
}

impl<R: Read> Read for Reader<R> {
    /// The bytes of the entry.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let got = (&mut self.from).take(self.left).read(buffer)?;
        if got == 0 && self.left > 0 && !buffer.is_empty() {
            return Err(damaged("it is cut off"));
        }
        self.left -= got as u64;
        Ok(got)
    }
}

/// The name in a header, in POSIX's form with what stands before it.
fn own_name(block: &[u8; BLOCK]) -> Vec<u8> {
    let (name, before) = (text(field(block, 0, 100)), text(field(block, 345, 155)));
    if field(block, 257, 6) == b"ustar\0" && !before.is_empty() {
        return [before.as_slice(), b"/", &name].concat();
    }
    name
}

/// The records of a pax header: `LENGTH KEY=VALUE\n`.
fn records(mut bytes: &[u8]) -> io::Result<Vec<(&[u8], &[u8])>> {
    let mut all = Vec::new();
    while !bytes.is_empty() {
        let bad = || damaged("an extended header");
        let space = bytes.iter().position(|byte| *byte == b' ').ok_or_else(bad)?;
        let len = bytes.get(..space).and_then(|digits| std::str::from_utf8(digits).ok()?.parse::<usize>().ok());
        let len = len.filter(|len| *len > space + 1).ok_or_else(bad)?;
        let record = bytes.get(space + 1..len - 1).ok_or_else(bad)?;
        let equals = record.iter().position(|byte| *byte == b'=').ok_or_else(bad)?;
        all.push((record.get(..equals).unwrap_or_default(), record.get(equals + 1..).unwrap_or_default()));
        bytes = bytes.get(len..).ok_or_else(bad)?;
    }
    Ok(all)
}

fn put(block: &mut [u8; BLOCK], from: usize, bytes: &[u8]) {
    if let Some(to) = block.get_mut(from..from + bytes.len()) {
        to.copy_from_slice(bytes);
    }
}

/// One header's block; names that are too long for it are cut, and stand in one before it.
fn header(to: &mut impl Write, name: &[u8], kind: u8, mode: u32, size: u64, time: i64, link: &[u8]) -> io::Result<()> {
    let mut block = [0; BLOCK];
    let cut = |name: &[u8]| name.get(..100).unwrap_or(name).to_vec();
    put(&mut block, 0, &cut(name));
    put(&mut block, 100, format!("{:07o}", mode & 0o7777).as_bytes());
    // Owners stay behind: those of this machine mean nothing in the guest.
    put(&mut block, 108, b"0000000");
    put(&mut block, 116, b"0000000");
    if size <= OCTAL_MAX {
        put(&mut block, 124, format!("{size:011o}").as_bytes());
    } else {
        put(&mut block, 124, &[&[0x80, 0, 0, 0][..], &size.to_be_bytes()].concat());
    }
    let time = u64::try_from(time).unwrap_or(0).min(OCTAL_MAX);
    put(&mut block, 136, format!("{time:011o}").as_bytes());
    put(&mut block, 156, &[kind]);
    put(&mut block, 157, &cut(link));
    put(&mut block, 257, b"ustar  \0");
    let sum = sum(&block);
    put(&mut block, 148, format!("{sum:06o}\0 ").as_bytes());
    to.write_all(&block)
}

/// Writes the head of an entry; `size` bytes and `pad` have to follow.
pub fn write_entry(to: &mut impl Write, entry: &Entry) -> io::Result<()> {
    let mut long = |kind: u8, name: &[u8]| -> io::Result<()> {
        if name.len() <= 100 {
            return Ok(());
        }
        let bytes = [name, &[0]].concat();
        header(to, b"././@LongLink", kind, 0o644, bytes.len() as u64, 0, b"")?;
        to.write_all(&bytes)?;
        pad(to, bytes.len() as u64)
    };
    let (kind, link): (u8, &[u8]) = match &entry.kind {
        Kind::File => (b'0', b""),
        Kind::Folder => (b'5', b""),
        Kind::Link(target) => (b'2', target),
        Kind::Same(target) => (b'1', target),
        Kind::Other => return Err(io::Error::new(io::ErrorKind::InvalidInput, "it cannot be put into an archive")),
    };
    long(b'K', link)?;
    long(b'L', &entry.name)?;
    header(to, &entry.name, kind, entry.mode, entry.size, entry.time, link)
}

/// Fills up to the next block behind an entry's bytes.
pub fn pad(to: &mut impl Write, size: u64) -> io::Result<()> {
    let padding = (size.next_multiple_of(BLOCK as u64) - size) as usize;
    to.write_all([0; BLOCK].get(..padding).unwrap_or_default())
}

/// Writes the end.
pub fn end(to: &mut impl Write) -> io::Result<()> {
    to.write_all(&[0; 2 * BLOCK])
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    fn entry(name: &[u8], kind: Kind, size: u64) -> Entry {
        Entry { name: name.to_vec(), kind, mode: 0o640, size, time: 1_700_000_000 }
    }

    fn archive(entries: &[(Entry, &[u8])]) -> Vec<u8> {
        let mut out = Vec::new();
        for (entry, bytes) in entries {
            write_entry(&mut out, entry).expect("memory");
            out.extend(*bytes);
            pad(&mut out, entry.size).expect("memory");
        }
        end(&mut out).expect("memory");
        out
    }

    fn all(bytes: &[u8]) -> io::Result<Vec<(Entry, Vec<u8>)>> {
        let (mut reader, mut found) = (Reader::new(bytes), Vec::new());
        while let Some(entry) = reader.next()? {
            let mut bytes = Vec::new();
            reader.read_to_end(&mut bytes)?;
            found.push((entry, bytes));
        }
        Ok(found)
    }

    #[test]
    fn what_is_written_is_read() {
        let long = [b"d/".as_slice(), &[b'n'; 300]].concat();
        let entries = [
            (entry(b"./", Kind::Folder, 0), &b""[..]),
            (entry("ü \n".as_bytes(), Kind::File, 5), b"bytes"),
            (entry(&long, Kind::Link(vec![b't'; 200]), 0), b""),
            (entry(b"\xff\xfe", Kind::File, 0), b""),
        ];
        let found = all(&archive(&entries)).expect("an archive");
        assert!(found.iter().zip(&entries).all(|(a, b)| a.0 == b.0 && a.1 == b.1));
        assert_eq!(found.len(), entries.len());
        let mut large = [0; BLOCK];
        put(&mut large, 124, &[&[0x80, 0, 0, 0][..], &(9u64 << 30).to_be_bytes()].concat());
        assert_eq!(number(field(&large, 124, 12)).ok(), Some(9 << 30));
    }

    #[test]
    fn forms_of_the_systems_tar_are_read() {
        let folder = tempfile::tempdir().expect("a folder");
        let name = "deep/".repeat(30) + &"n".repeat(150);
        let path = folder.path().join(&name);
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("folders");
        std::fs::write(&path, "text").expect("a file");
        std::os::unix::fs::symlink("l".repeat(140), folder.path().join("link")).expect("a link");
        for form in ["gnu", "pax", "ustar"] {
            let mut command = Command::new("tar");
            command.args(["-c", "-f", "-", &format!("--format={form}"), "--sort=name", "."]).current_dir(&folder);
            let out = command.stderr(Stdio::null()).output().expect("tar runs");
            let found = all(&out.stdout).expect("an archive");
            // The oldest form has no room for the long ones.
            if form != "ustar" {
                let wanted = format!("./{name}");
                assert!(found.iter().any(|(e, b)| e.name == wanted.as_bytes() && b == b"text"), "{form}");
                assert!(found.iter().any(|(e, _)| e.kind == Kind::Link(vec![b'l'; 140])), "{form}");
            }
        }
    }

    #[test]
    fn damage_is_told_and_takes_no_room() {
        let good = archive(&[(entry(b"file", Kind::File, 5), b"bytes")]);
        for cut in [1, 511, 512, 515, 1000, 1024] {
            assert!(all(good.get(..cut).unwrap_or_default()).is_err(), "{cut}");
        }
        for at in 0..512 {
            let mut bad = good.clone();
            bad.get_mut(at).into_iter().for_each(|byte| *byte ^= 0x11);
            assert!(all(&bad).is_err(), "{at}");
        }
        let mut huge = Vec::new();
        header(&mut huge, b"x", b'L', 0, u64::MAX >> 1, 0, b"").expect("memory");
        assert!(all(&huge).is_err());
        let mut huge = Vec::new();
        header(&mut huge, b"x", b'0', 0, u64::MAX, 0, b"").expect("memory");
        assert!(all(&huge).is_err());
        for bad in [&b"6 a=\n"[..], b"9 a=b\n", b"1 ", b"x", b"3 \n", b"99999999999999999999 a=b\n"] {
            assert!(records(bad).is_err(), "{}", String::from_utf8_lossy(bad));
        }
        assert_eq!(records(b"6 a=b\n7 cc=d\n").ok().map(|all| all.len()), Some(2));
    }
}
