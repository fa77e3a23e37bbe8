//! Debian's packages as a tree, installed by `mmdebstrap` as a recipe says.
//!
//! Invariants
//!   * `mmdebstrap` writes an archive and leaves nothing else; it needs no root where users may have namespaces;
//!   * no text of a recipe becomes a word of a shell but quoted ([`sh`]);
//!   * what is this machine's, its name, resolver and mirrors, is not in the image.

use super::apt::sources;
use super::kernel::{initrd, Boot};
use super::recipe::Recipe;
use super::tools::{Listener, Progress, Tool};
use super::tree::Tree;
use crate::{Error, Result};
use std::fs;
use std::io::Write;
use std::path::Path;

/// Where what is of use to the build alone lies in the root file system.
const BUILD: &str = "cairn-build";
const HOOK: &str = include_str!("guest/build-hook");

/// A word of a shell.
fn sh(text: &str) -> String {
    format!("'{}'", text.replace('\'', "'\\''"))
}

/// Installs what the recipe names, and takes the kernel out of it. `work` is a folder of ours.
pub(super) fn install(recipe: &Recipe, work: &Path, progress: &mut Listener) -> Result<(Tree, Boot)> {
    let tool = Tool::contained("mmdebstrap", "mmdebstrap")?;
    let sources = sources(recipe)?;
    let (settings, into) = (work.join("apt.conf"), work.join("into.tar"));
    fs::write(&settings, &sources.settings).map_err(Error::of_file(&settings))?;
    let file = fs::File::create_new(&into).map_err(Error::of_file(&into))?;
    archive(recipe, file).map_err(|e| e.about("what goes into the build"))?;
    let mut tool = tool.args(["--variant=apt", "--format=tar"]);
    tool = tool.args(["--include=ca-certificates".to_owned()]).env("TMPDIR", work);
    tool = tool.env("SOURCE_DATE_EPOCH", recipe.epoch().to_string());
    tool = tool.args(recipe.packages().into_iter().map(|package| format!("--include={package}")));
    if !sources.settings.is_empty() {
        tool = tool.args([format!("--aptopt={}", settings.display())]);
    }
    for (number, path) in sources.auth.iter().enumerate() {
        // Named so that it is found and removed again.
        let to = format!("/etc/apt/auth.conf.d/cairn-build-{number}.conf");
        tool = tool.args(["--setup-hook=mkdir -p \"$1/etc/apt/auth.conf.d\"".to_owned()]);
        tool = tool.args([format!("--setup-hook=upload {} {to}", sh(&path.to_string_lossy()))]);
    }
    tool = tool.args([format!("--customize-hook=tar-in {} /", sh(&into.to_string_lossy()))]);
    tool = tool.args([format!("--customize-hook=sh \"$1/{BUILD}/build-hook\" \"$1\"")]);
    tool = tool.args([recipe.suite(), "-"]).args(&sources.build);
    progress(Progress::Step(&format!(
        "installing {} packages of {}, and what they need",
        recipe.packages().len(),
        recipe.suite()
    )));
    let mut tree = Tree::new(work.join("spool"), recipe.epoch())?;
    let mut listen = |said: Progress| match said {
        Progress::Detail(line) => match line.strip_prefix("cairn: ") {
            Some(step) => progress(Progress::Step(step)),
            None => progress(Progress::Detail(line.trim_start_matches("I: "))),
        },
        step => progress(step),
    };
    tool.feed(&mut listen, |out| tree.read(out))?;
    let boot = boot(&tree)?;
    tree.remove(BUILD);
    let list = sources.image.join("\n") + "\n";
    let (name, hosts) = (format!("{}\n", recipe.host_name()), hosts(recipe.host_name()));
    // What the build has of this machine is not in the image; what the recipe says of them is.
    for (path, text) in [
        ("etc/hostname", name.as_str()),
        ("etc/hosts", &hosts),
        ("etc/resolv.conf", ""),
        ("etc/apt/sources.list", &list),
    ] {
        if !recipe.files().iter().any(|extra| extra.path.strip_prefix('/') == Some(path)) {
            tree.put(path, 0o644, text.as_bytes())?;
        }
    }
    Ok((tree, boot))
}

fn hosts(name: &str) -> String {
    format!("127.0.0.1\tlocalhost\n127.0.1.1\t{name}\n::1\tlocalhost ip6-localhost ip6-loopback\n")
}

/// What is put into the root file system before the hook runs: the hook, commands, files.
fn archive(recipe: &Recipe, file: impl Write) -> Result<()> {
    let mut builder = tar::Builder::new(file);
    let mut put = |path: String, mode: u32, data: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_mode(mode);
        header.set_mtime(recipe.epoch());
        header.set_size(data.len() as u64);
        builder.append_data(&mut header, path, data)
    };
    put(format!("{BUILD}/build-hook"), 0o755, hook(recipe).as_bytes())?;
    for (number, command) in recipe.commands().iter().enumerate() {
        put(format!("{BUILD}/commands/{number:04}"), 0o644, command.trim_start().as_bytes())?;
    }
    for (number, extra) in recipe.files().iter().enumerate() {
        put(format!("{BUILD}/files/{number}"), 0o600, &extra.contents()?)?;
    }
    Ok(builder.finish()?)
}

fn hook(recipe: &Recipe) -> String {
    let yes = |is: bool| if is { "yes" } else { "no" }.to_owned();
    let user = recipe.user();
    let files: String = recipe.files().iter().enumerate().map(|(number, extra)| file_lines(number, extra)).collect();
    [
        ("@KERNEL@", sh(recipe.kernel())),
        ("@MODULES@", yes(recipe.has_kernel_modules())),
        ("@USER@", sh(user.map_or("", |user| user.name.0.as_str()))),
        ("@SHELL@", sh(user.map_or("", |user| user.shell.0.as_str()))),
        ("@SUDO@", yes(user.is_some_and(|user| user.sudo))),
        // Last: its text is the recipe's.
        ("@FILES@", files),
    ]
    .iter()
    .fold(HOOK.to_owned(), |text, (word, with)| text.replace(word, with))
}

/// Puts one file in from within, so that links in the new root file system lead nowhere else.
fn file_lines(number: usize, extra: &super::recipe::Extra) -> String {
    let (path, owner) = (sh(&extra.path), sh(&extra.owner));
    format!("put {number} {path} {owner} {:o}\n", extra.mode)
}

/// The kernel that the build has unpacked, and an initrd for it.
fn boot(tree: &Tree) -> Result<Boot> {
    let unpacked = format!("{BUILD}/unpacked");
    let kernels = format!("{unpacked}/boot/vmlinuz-");
    let lost = |what: &str| Error::failed(format!("the packages that were downloaded have no {what}"));
    let kernel = tree.find(&kernels, "").next().ok_or_else(|| lost("kernel"))?;
    let release = kernel.strip_prefix(&kernels).unwrap_or_default().to_owned();
    let vmlinuz = tree.contents(kernel)?.ok_or_else(|| lost("kernel"))?;
    let below = format!("{unpacked}/");
    let busybox = tree.find(&below, "bin/busybox").next().ok_or_else(|| lost("busybox"))?;
    let busybox = tree.contents(busybox)?.ok_or_else(|| lost("busybox"))?;
    let modules = format!("{unpacked}/lib/modules/{release}/");
    let module = |name: &str| match tree.find(&modules, &format!("/{name}.ko")).next() {
        Some(path) => tree.contents(path),
        None => Ok(None),
    };
    let initrd = initrd(&busybox, module)?;
    Ok(Boot { release, vmlinuz, initrd, busybox })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_text_of_a_recipe_is_a_word_of_the_shell() {
        let text = "name = \"x\"\nsuite = \"bookworm\"\n[user]\nname = \"me\"\nsudo = true\n\
                    [[files]]\npath = \"/etc/it's $(here)\"\ncontents = \"\"\nmode = \"4755\"\nowner = \"me\"\n";
        let hook = hook(&Recipe::parse(text).expect("a recipe"));
        assert!(hook.contains("\nput 0 '/etc/it'\\''s $(here)' 'me' 4755\n"), "{hook}");
        let checked = std::process::Command::new("sh").args(["-n", "-c", &hook]).status().expect("sh runs");
        assert!(checked.success(), "{hook}");
        assert!(!hook.contains("@K") && !hook.contains("@F") && !hook.contains("@U") && !hook.contains("@S"), "{hook}");
    }
}
