//! Recipes: what goes into an image, as a file that a person edits.
//!
//! Invariants
//!   * what was parsed can be carried out: every name, path and mode has been checked, so that none of them is taken for
//!     an option or for more than one word later;
//!   * every refusal names the line;
//!   * the same recipe, with the same files beside it, has the same [`Recipe::digest`].

use crate::files::check_name;
use crate::{Error, Kind, Result};
use serde::Deserialize;
use std::fs;
use std::path::{Component, Path, PathBuf};

/// Longest recipe; and longest file that goes into an image by one.
const RECIPE_MAX: u64 = 1 << 20;
const FILE_MAX: u64 = 256 << 20;
/// Most packages, files and commands of one recipe.
const ENTRIES_MAX: usize = 4096;
/// What a machine's disk is at most; ext4 ends there with blocks of 4 KiB.
const DISK_MAX: u64 = 16 << 40;
/// 2026-01-01: no file of an image is younger, unless its recipe says otherwise.
pub(super) const EPOCH: u64 = 1_767_225_600;

/// The recipes that are part of this program.
const BUILT_IN: [(&str, &str); 1] = [("debian-12", include_str!("debian-12.toml"))];

/// The text of a recipe that is part of this program.
pub fn built_in(name: &str) -> Option<&'static str> {
    BUILT_IN.iter().find(|(known, _)| *known == name).map(|(_, text)| *text)
}

/// What goes into an image.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// The image's name.
    name: Name,
    /// Debian's name of the release.
    suite: Suite,
    /// Where packages come from; without it, as this machine's apt has it, or from Debian's public mirror.
    #[serde(default)]
    mirror: Option<Url>,
    #[serde(default = "main_only")]
    components: Vec<Word>,
    /// What is installed beside Debian's essential packages.
    #[serde(default)]
    packages: Vec<Package>,
    #[serde(default = "cloud_kernel")]
    kernel: Package,
    /// Whether the kernel's modules go into the image, too.
    #[serde(default)]
    kernel_modules: bool,
    #[serde(default)]
    hostname: Option<HostName>,
    /// Size of a new machine's disk.
    #[serde(default = "large")]
    disk: Size,
    #[serde(default = "epoch")]
    source_date_epoch: u64,
    #[serde(default)]
    user: Option<User>,
    #[serde(default)]
    files: Vec<Extra>,
    /// Run by `sh` as root in the new root file system, in order, after all else is there.
    #[serde(default)]
    commands: Vec<String>,
}

/// A person's account.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct User {
    pub(super) name: UserName,
    /// Whether `sudo` asks for no password.
    #[serde(default)]
    pub(super) sudo: bool,
    #[serde(default = "bash")]
    pub(super) shell: Place,
}

/// A file that is put into the image.
#[derive(Clone, Debug, Deserialize)]
#[serde(try_from = "RawExtra")]
pub(super) struct Extra {
    pub(super) path: String,
    pub(super) mode: u32,
    pub(super) owner: String,
    contents: Contents,
}

#[derive(Clone, Debug)]
enum Contents {
    Here(String),
    /// A file beside the recipe.
    In(PathBuf),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawExtra {
    path: Place,
    #[serde(default)]
    mode: Option<Mode>,
    #[serde(default)]
    owner: Option<UserName>,
    #[serde(default)]
    contents: Option<String>,
    #[serde(default)]
    source: Option<String>,
}

impl TryFrom<RawExtra> for Extra {
    type Error = String;

    fn try_from(raw: RawExtra) -> std::result::Result<Self, String> {
        let contents = match (raw.contents, raw.source) {
            (Some(text), None) => Contents::Here(text),
            (None, Some(path)) => Contents::In(path.into()),
            _ => return Err(format!("the file {} needs either contents or source", raw.path.0)),
        };
        let owner = raw.owner.map_or_else(|| "root".to_owned(), |owner| owner.0);
        Ok(Self { path: raw.path.0, mode: raw.mode.map_or(0o644, |mode| mode.0), owner, contents })
    }
}

fn main_only() -> Vec<Word> {
    vec![Word("main".to_owned())]
}

fn cloud_kernel() -> Package {
    Package("linux-image-cloud-amd64".to_owned())
}

fn bash() -> Place {
    Place("/bin/bash".to_owned())
}

fn large() -> Size {
    Size(100 << 30)
}

fn epoch() -> u64 {
    EPOCH
}

/// A type of text that has been checked.
macro_rules! checked {
    ($name:ident, $what:expr, $check:expr) => {
        #[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
        #[serde(try_from = "String")]
        pub(super) struct $name(pub(super) String);

        impl TryFrom<String> for $name {
            type Error = String;

            fn try_from(text: String) -> std::result::Result<Self, String> {
                let check: fn(&str) -> bool = $check;
                if check(&text) {
                    return Ok(Self(text));
                }
                Err(format!("{text:?} is not {}", $what))
            }
        }
    };
}

fn is_of(text: &str, max: usize, others: &str) -> bool {
    let begins_well = text.starts_with(|c: char| c.is_ascii_alphanumeric());
    begins_well && text.len() <= max && text.chars().all(|c| c.is_ascii_alphanumeric() || others.contains(c))
}

checked!(Name, "a name of an image: use letters, digits, '.', '_' and '-'", |text| check_name(text).is_ok());
checked!(Word, "a component, like main or non-free-firmware", |text| is_of(text, 64, "-"));
checked!(Suite, "a Debian release, like bookworm", |text| is_of(text, 64, "-"));
checked!(Package, "a package, like git or python3=3.11.2-1", |text| is_of(text, 200, "+-.=~:"));
checked!(HostName, "a host name: use letters, digits and '-'", |text| is_of(text, 63, "-"));
checked!(UserName, "the name of a user: use lower-case letters, digits, '-' and '_'", |text| {
    text.starts_with(|c: char| c.is_ascii_lowercase() || c == '_')
        && text.len() <= 32
        && text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "-_".contains(c))
});
checked!(Place, "a path in the image: begin with /, without .. and characters that do not print", |text| {
    let mut parts = Path::new(text).components();
    parts.next() == Some(Component::RootDir)
        && text.len() <= 1024
        && !text.ends_with('/')
        && !text.chars().any(char::is_control)
        && parts.all(|part| matches!(part, Component::Normal(_)))
});
checked!(Url, "the address of a mirror, like http://deb.debian.org/debian", |text| {
    let has_scheme = ["http://", "https://", "file:///"].iter().any(|scheme| text.starts_with(scheme));
    has_scheme && text.len() <= 1024 && text.chars().all(|c| c.is_ascii_graphic() && !"[]\"'\\".contains(c))
});

/// Permissions, written in octal.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(try_from = "String")]
struct Mode(u32);

impl TryFrom<String> for Mode {
    type Error = String;

    fn try_from(text: String) -> std::result::Result<Self, String> {
        let mode = u32::from_str_radix(&text, 8).ok().filter(|mode| *mode <= 0o7777 && text.len() <= 5);
        mode.map(Self).ok_or_else(|| format!("{text:?} is not a mode: write it in octal, like \"0644\""))
    }
}

/// A size, with a unit.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(try_from = "String")]
struct Size(u64);

impl TryFrom<String> for Size {
    type Error = String;

    fn try_from(text: String) -> std::result::Result<Self, String> {
        let digits = text.trim_end_matches(['M', 'G', 'T']);
        let shift = match text.strip_prefix(digits) {
            Some("M") => 20,
            Some("G") => 30,
            Some("T") => 40,
            _ => return Err(format!("{text:?} is not a size: write 512M, 100G or 1T")),
        };
        let size = digits.parse::<u64>().ok().and_then(|n| n.checked_mul(1 << shift));
        let size = size.filter(|size| (64 << 20..=DISK_MAX).contains(size));
        size.map(Self).ok_or_else(|| format!("{text:?} is no size of a disk: 64M to 16T"))
    }
}

impl Recipe {
    /// Reads a recipe and looks for the files that it names, beside it.
    ///
    /// # Errors
    /// It cannot be read, or says something that cannot be done: then with the line.
    pub fn read(path: &Path) -> Result<Self> {
        let explain = Error::of_file(path);
        let len = fs::metadata(path).map_err(&explain)?.len();
        if len > RECIPE_MAX {
            let text = format!("{} has {len} bytes: a recipe has at most 1 MiB", path.display());
            return Err(Error::new(Kind::Invalid, text));
        }
        let text = fs::read_to_string(path).map_err(&explain)?;
        let mut recipe = Self::parse(&text).map_err(|e| e.about(&path.display().to_string()))?;
        let folder = path.parent().unwrap_or(Path::new("."));
        for extra in &mut recipe.files {
            if let Contents::In(source) = &mut extra.contents {
                *source = folder.join(&*source);
                let found = fs::metadata(&*source).map_err(|e| Error::of_file(source)(e).about(&extra.path))?;
                if !found.is_file() || found.len() > FILE_MAX {
                    let text = format!("{}: {} is not a file of at most 256 MiB", extra.path, source.display());
                    return Err(Error::new(Kind::Invalid, text));
                }
            }
        }
        Ok(recipe)
    }

    /// Understands a recipe's text.
    ///
    /// # Errors
    /// With the line that cannot be understood.
    pub fn parse(text: &str) -> Result<Self> {
        let refuse = |why: String| Error::new(Kind::Invalid, why);
        let recipe: Self = toml::from_str(text).map_err(|e| refuse(e.to_string().trim_end().to_owned()))?;
        let counts = [recipe.packages.len(), recipe.files.len(), recipe.commands.len(), recipe.components.len()];
        if counts.iter().any(|count| *count > ENTRIES_MAX) {
            return Err(refuse(format!("at most {ENTRIES_MAX} packages, files and commands go into an image")));
        }
        if recipe.components.is_empty() {
            return Err(refuse(
                "components: Debian has no package in none: leave it out, or write [\"main\"]".to_owned(),
            ));
        }
        if recipe.commands.iter().any(|command| command.contains('\0')) {
            return Err(refuse("commands: a command cannot hold a zero byte".to_owned()));
        }
        Ok(recipe)
    }

    /// The recipe that is part of this program, with this name.
    ///
    /// # Errors
    /// There is none of this name.
    pub fn built_in(name: &str) -> Result<Self> {
        let text = built_in(name).ok_or_else(|| {
            let known: Vec<&str> = BUILT_IN.iter().map(|(name, _)| *name).collect();
            let known = known.join(", ");
            let text = format!("this command cannot build {name:?}: it knows tiny and {known}, or give --recipe FILE");
            Error::new(Kind::NotFound, text)
        })?;
        Self::parse(text)
    }

    /// The image's name.
    pub fn name(&self) -> &str {
        &self.name.0
    }

    /// The same recipe, for an image of another name.
    ///
    /// # Errors
    /// An image cannot be called so.
    pub fn called(self, name: &str) -> Result<Self> {
        check_name(name)?;
        Ok(Self { name: Name(name.to_owned()), ..self })
    }

    pub(super) fn suite(&self) -> &str {
        &self.suite.0
    }

    pub(super) fn mirror(&self) -> Option<&str> {
        self.mirror.as_ref().map(|url| url.0.as_str())
    }

    pub(super) fn components(&self) -> Vec<&str> {
        self.components.iter().map(|word| word.0.as_str()).collect()
    }

    pub(super) fn packages(&self) -> Vec<&str> {
        self.packages.iter().map(|package| package.0.as_str()).collect()
    }

    pub(super) fn kernel(&self) -> &str {
        &self.kernel.0
    }

    pub(super) fn has_kernel_modules(&self) -> bool {
        self.kernel_modules
    }

    pub(super) fn host_name(&self) -> &str {
        self.hostname.as_ref().map_or("cairn", |name| name.0.as_str())
    }

    pub(super) fn disk(&self) -> u64 {
        self.disk.0
    }

    pub(super) fn epoch(&self) -> u64 {
        self.source_date_epoch
    }

    pub(super) fn user(&self) -> Option<&User> {
        self.user.as_ref()
    }

    pub(super) fn files(&self) -> &[Extra] {
        &self.files
    }

    pub(super) fn commands(&self) -> &[String] {
        &self.commands
    }

    /// Tells this recipe, with its files, from every other: what it is to make, whatever the mirror has.
    pub(super) fn digest(&self) -> Result<blake3::Hash> {
        let mut hasher = blake3::Hasher::new();
        // Its own words in a fixed order; what they point to after them, each with its length.
        hasher.update(format!("{:?}", Self { files: Vec::new(), ..self.clone() }).as_bytes());
        for extra in &self.files {
            let contents = extra.contents()?;
            let head = format!("\n{} {:o} {} {}\n", extra.path, extra.mode, extra.owner, contents.len());
            hasher.update(head.as_bytes()).update(&contents);
        }
        Ok(hasher.finalize())
    }
}

impl Extra {
    pub(super) fn contents(&self) -> Result<Vec<u8>> {
        match &self.contents {
            Contents::Here(text) => Ok(text.clone().into_bytes()),
            Contents::In(path) => fs::read(path).map_err(Error::of_file(path)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEAST: &str = "name = \"mine\"\nsuite = \"bookworm\"\n";

    fn refused(more: &str) -> String {
        Recipe::parse(&format!("{LEAST}{more}")).expect_err(more).message
    }

    #[test]
    fn two_words_are_enough() {
        let recipe = Recipe::parse(LEAST).expect("a recipe");
        assert_eq!((recipe.name(), recipe.suite(), recipe.host_name()), ("mine", "bookworm", "cairn"));
        assert_eq!((recipe.disk(), recipe.components()), (100 << 30, vec!["main"]));
        assert!(recipe.packages().is_empty() && recipe.mirror().is_none() && !recipe.has_kernel_modules());
    }

    #[test]
    fn what_is_part_of_this_program_can_be_built_and_names_what_a_developer_expects() {
        let recipe = Recipe::built_in("debian-12").expect("a recipe");
        for package in ["bash", "coreutils", "curl", "git", "python3", "nodejs", "build-essential", "nano", "sudo"] {
            assert!(recipe.packages().contains(&package), "{package}");
        }
        let user = recipe.user().expect("a user");
        assert!(user.name.0 == "sprite" && user.sudo);
        assert!(Recipe::built_in("debian-3").expect_err("no such").message.contains("debian-12"));
    }

    #[test]
    fn a_mistake_is_told_with_its_line() {
        for (bad, line, word) in [
            ("pakages = []", "line 3", "pakages"),
            ("\n\npackages = [\"--force\"]", "line 5", "--force"),
            ("packages = [\"git; rm -rf /\"]", "line 3", "is not a package"),
            ("packages = \"git\"", "line 3", "sequence"),
            ("disk = \"lots\"", "line 3", "lots"),
            ("disk = \"1M\"", "line 3", "64M"),
            ("disk = 100", "line 3", "string"),
            ("hostname = \"a b\"", "line 3", "host name"),
            ("mirror = \"ftp://x\"", "line 3", "mirror"),
            ("mirror = \"http://x/ [trusted=yes]\"", "line 3", "mirror"),
            ("kernel = \"-o\"", "line 3", "package"),
            ("[user]\nname = \"Root User\"", "line 4", "user"),
            ("[user]\nname = \"me\"\nshell = \"bash\"", "line 5", "path"),
            ("[[files]]\npath = \"etc/x\"\ncontents = \"\"", "line 4", "begin with /"),
            ("[[files]]\npath = \"/etc/../x\"\ncontents = \"\"", "line 4", "path"),
            ("[[files]]\npath = \"/etc/x\"\nmode = \"999\"\ncontents = \"\"", "line 5", "octal"),
            ("[[files]]\npath = \"/etc/x\"", "line 3", "either contents or source"),
            ("[[files]]\npath = \"/x\"\ncontents = \"\"\nsource = \"y\"", "line 3", "either contents or source"),
            ("commands = [", "line 3", ""),
        ] {
            let said = refused(bad);
            assert!(said.contains(line) && said.contains(word), "{bad}: {said}");
        }
        assert!(Recipe::parse("suite = \"x\"").expect_err("no name").message.contains("name"));
        assert!(Recipe::parse("name = \"../x\"\nsuite = \"x\"").expect_err("a path").message.contains("line 1"));
        assert!(refused("components = []").contains("components"));
    }

    #[test]
    fn the_digest_follows_the_recipe_and_the_files_beside_it() {
        let folder = tempfile::tempdir().expect("a folder");
        let (path, beside) = (folder.path().join("r.toml"), folder.path().join("motd"));
        fs::write(&beside, "one").expect("written");
        fs::write(&path, format!("{LEAST}[[files]]\npath = \"/etc/motd\"\nsource = \"motd\"\n")).expect("written");
        let digest = || Recipe::read(&path).and_then(|recipe| recipe.digest()).expect("a digest");
        let first = digest();
        assert_eq!(first, digest());
        fs::write(&beside, "two").expect("written");
        assert_ne!(first, digest());
        fs::remove_file(&beside).expect("removed");
        let said = Recipe::read(&path).expect_err("no file").message;
        assert!(said.contains("/etc/motd") && said.contains("motd: No such file"), "{said}");
    }
}
