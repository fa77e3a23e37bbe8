//! Images from files that somebody else has made: raw and qcow2 disks, and archives of a root file system.
//!
//! Invariants
//!   * a file's format is what its first bytes say, looked at here once, and named to whatever reads it afterwards;
//!   * no file leads to another one: a qcow2 image with a backing file or a data file of its own is refused;
//!   * a disk is one root file system, without partitions.

use super::build::of_archive;
use super::kernel::Boot;
use super::publish::{hold, publish, Finished};
use super::tools::{Listener, Progress, Tool, Work};
use super::{Image, Images};
use crate::{Error, Kind, Result, Store};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const QCOW2: &[u8] = b"QFI\xfb";
/// Ways in which archives are packed: their mark, who unpacks it.
const PACKED: [(&[u8], &str); 3] = [(b"\x1f\x8b", "gzip"), (b"\xfd7zXZ\0", "xz"), (b"\x28\xb5\x2f\xfd", "zstd")];

/// What an image is made from.
pub struct Import<'a> {
    /// The new image's name.
    pub name: &'a str,
    /// A raw or qcow2 disk, or an archive.
    pub file: &'a Path,
    /// A kernel and its initrd; an archive gets ours.
    pub boot: Option<(&'a Path, &'a Path)>,
    /// The agent that goes into what an archive has.
    pub agent: Option<PathBuf>,
}

enum Format {
    Raw,
    Qcow2,
    Tar(Option<&'static str>),
}

fn invalid(text: String) -> Error {
    Error::new(Kind::Invalid, text)
}

/// Makes an image of a file. A disk is one root file system that has the agent, started by its init, and the initrd mounts
/// `/dev/vda`; an archive is furnished with all of that.
///
/// # Errors
/// There is an image of this name, the file cannot be read or is of no known format, or something that it needs is not given.
pub fn import(images: &Images, store: &dyn Store, from: &Import, progress: &mut Listener) -> Result<Image> {
    let (name, path) = (from.name, from.file);
    let _lock = hold(images, name)?;
    if images.get(name).is_ok() {
        return Err(Error::new(Kind::Exists, format!("there is an image {name:?} already: choose another name")));
    }
    let file = File::open(path).map_err(Error::of_file(path))?;
    let format = format_of(&file)?;
    if let Format::Tar(packed) = format {
        if from.boot.is_some() {
            return Err(invalid(format!(
                "{}: an archive gets Cairn's kernel and initrd: leave them out",
                path.display()
            )));
        }
        let agent =
            from.agent.as_deref().ok_or_else(|| invalid("an archive needs the agent: give --agent".to_owned()))?;
        return match packed {
            None => of_archive(images, store, name, file, agent, progress),
            Some(program) => {
                let mut command = Command::new(program);
                command.arg("-dc").stdin(file).stdout(Stdio::piped()).stderr(Stdio::null());
                let mut child = command.spawn().map_err(|e| super::tools::missing(program, program, &e.to_string()))?;
                let out = child.stdout.take().ok_or_else(|| Error::failed("no pipe"))?;
                let made = of_archive(images, store, name, out, agent, progress);
                let status = child.wait()?;
                // An archive that is cut short is told of as such.
                made.map_err(|e| if status.success() { e } else { e.about(&format!("{program} failed ({status})")) })
            }
        };
    }
    let (kernel, initrd) = from.boot.ok_or_else(|| {
        invalid(format!("{}: a disk needs the kernel that boots it: give --kernel and --initrd", path.display()))
    })?;
    let read = |path: &Path| fs::read(path).map_err(Error::of_file(path));
    let release = kernel.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let boot = Boot { release, vmlinuz: read(kernel)?, initrd: read(initrd)?, busybox: Vec::new() };
    let work = Work::new()?;
    let disk = match format {
        Format::Qcow2 => {
            check_qcow2(&file).map_err(|e| e.about(&path.display().to_string()))?;
            progress(Progress::Step("converting it from qcow2"));
            let disk = work.path.join("disk.raw");
            convert(path, &disk)?;
            disk
        }
        _ => path.to_owned(),
    };
    let opened = File::open(&disk).map_err(Error::of_file(&disk))?;
    if let Some(what) = partitioned(&opened) {
        let text = format!(
            "{}: it has {what}, and an image is one root file system on the whole disk: import that partition alone, \
             or an archive of its files",
            path.display()
        );
        return Err(invalid(text));
    }
    let image = Image {
        name: name.to_owned(),
        volume: format!("image-{name}"),
        kernel: boot.release.clone(),
        ..Image::default()
    };
    publish(images, store, Finished { image, disk: &disk, boot: &boot }, progress)
}

fn has(file: &File, at: u64, mark: &[u8]) -> bool {
    let mut found = vec![0; mark.len()];
    file.read_exact_at(&mut found, at).is_ok() && found == mark
}

fn format_of(file: &File) -> Result<Format> {
    if let Some((_, program)) = PACKED.iter().find(|(mark, _)| has(file, 0, mark)) {
        return Ok(Format::Tar(Some(*program)));
    }
    // A disk begins with anything: that a file is an archive is said where no boot sector says something else.
    let is_archive = has(file, 257, b"ustar") && !has(file, 1024 + 56, &[0x53, 0xef]);
    match () {
        () if has(file, 0, QCOW2) => Ok(Format::Qcow2),
        () if is_archive => Ok(Format::Tar(None)),
        () => Ok(Format::Raw),
    }
}

/// A table of partitions, if a disk has one and no file system of its own at its beginning.
fn partitioned(disk: &File) -> Option<&'static str> {
    match () {
        () if has(disk, 1024 + 56, &[0x53, 0xef]) => None,
        () if has(disk, 512, b"EFI PART") => Some("a table of partitions (GPT)"),
        () if has(disk, 510, &[0x55, 0xaa]) => Some("a table of partitions (MBR)"),
        () => None,
    }
}

/// Refuses what could make a reader of the image open another file, or what it cannot read.
fn check_qcow2(file: &File) -> Result<()> {
    let mut header = [0; 104];
    let broken = || invalid("its qcow2 header is damaged".to_owned());
    file.read_exact_at(header.get_mut(..72).unwrap_or_default(), 0).map_err(|_| broken())?;
    let number = |at: usize, len: usize| -> Result<u64> {
        let bytes = header.get(at..at + len).ok_or_else(broken)?;
        Ok(bytes.iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte)))
    };
    let version = number(4, 4)?;
    if version != 2 && version != 3 {
        return Err(invalid(format!("version {version} of qcow2 is not known")));
    }
    if number(8, 8)? != 0 || number(16, 4)? != 0 {
        return Err(invalid(
            "it has a backing file, which is not followed: make it whole with qemu-img convert".to_owned(),
        ));
    }
    if number(32, 4)? != 0 {
        return Err(invalid("it is encrypted".to_owned()));
    }
    if version == 3 {
        let mut features = [0; 8];
        file.read_exact_at(&mut features, 72).map_err(|_| broken())?;
        // Bit 2: its data is in a file of its own.
        if u64::from_be_bytes(features) & 1 << 2 != 0 {
            return Err(invalid("its data is in another file, which is not followed".to_owned()));
        }
    }
    Ok(())
}

/// Converts a qcow2 file, said to be one, without what it could be a layer of.
fn convert(from: &Path, to: &Path) -> Result<()> {
    let from = std::path::absolute(from)?;
    let source = serde_json::json!({
        "driver": "qcow2", "backing": null,
        "file": {"driver": "file", "filename": from.to_string_lossy(), "locking": "off"},
    });
    let (source, to) = (format!("json:{source}"), to.to_string_lossy().into_owned());
    Tool::new("qemu-img", "qemu-utils").args(["convert", "-O", "raw", "-S", "4k", &source, &to]).output().map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(bytes: &[u8]) -> (tempfile::TempDir, PathBuf, File) {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("disk");
        fs::write(&path, bytes).expect("written");
        let file = File::open(&path).expect("opened");
        (folder, path, file)
    }

    fn qemu_img(args: &[&str]) {
        let out = Command::new("qemu-img").args(args).output().expect("qemu-img runs");
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    }

    #[test]
    fn a_qcow2_image_that_leads_elsewhere_is_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        let at = |name: &str| folder.path().join(name).to_string_lossy().into_owned();
        fs::write(at("secret"), [7; 1 << 16]).expect("written");
        qemu_img(&["create", "-f", "qcow2", &at("plain"), "1M"]);
        qemu_img(&["create", "-f", "qcow2", "-o", "compat=0.10", &at("old"), "1M"]);
        qemu_img(&["create", "-f", "qcow2", "-b", &at("secret"), "-F", "raw", &at("backed")]);
        let data = format!("data_file={}", at("data"));
        qemu_img(&["create", "-f", "qcow2", "-o", &data, &at("split"), "1M"]);
        let check = |name: &str| check_qcow2(&File::open(at(name)).expect("opened")).map_err(|e| e.message);
        assert_eq!((check("plain"), check("old")), (Ok(()), Ok(())));
        assert!(check("backed").expect_err("refused").contains("backing file"));
        assert!(check("split").expect_err("refused").contains("another file"));
        convert(Path::new(&at("plain")), Path::new(&at("raw"))).expect("converted");
        assert_eq!(fs::metadata(at("raw")).expect("a file").len(), 1 << 20);
        for bytes in [&b"QFI\xfb"[..], b"QFI\xfb\0\0\0\x09", &[b"QFI\xfb\0\0\0\x09".as_slice(), &[0; 99]].concat()] {
            assert!(check_qcow2(&file(bytes).2).is_err(), "{bytes:?}");
        }
    }

    #[test]
    fn formats_are_told_by_their_marks() {
        let marked = |at: usize, mark: &[u8]| {
            let mut bytes = vec![0; 4096];
            bytes[at..at + mark.len()].copy_from_slice(mark);
            file(&bytes)
        };
        assert!(matches!(format_of(&marked(0, b"QFI\xfb").2), Ok(Format::Qcow2)));
        assert!(matches!(format_of(&marked(257, b"ustar").2), Ok(Format::Tar(None))));
        assert!(matches!(format_of(&marked(0, b"\x1f\x8b").2), Ok(Format::Tar(Some("gzip")))));
        assert!(matches!(format_of(&marked(0, b"").2), Ok(Format::Raw)));
        assert!(partitioned(&marked(512, b"EFI PART").2).is_some_and(|what| what.contains("GPT")));
        assert!(partitioned(&marked(510, &[0x55, 0xaa]).2).is_some_and(|what| what.contains("MBR")));
        assert!(partitioned(&marked(1080, &[0x53, 0xef]).2).is_none());
    }
}
