//! Where Debian's packages come from: as this machine's apt has it, so that a mirror, a proxy or a password that it needs
//! is told once.
//!
//! Invariant: what is this machine's (proxies, passwords, addresses of its mirrors) is used while an image is built, and is
//! not in it.

use super::recipe::Recipe;
use super::tools::Tool;
use crate::Result;
use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

/// Debian's own mirrors: of packages, and of security updates.
const MIRROR: &str = "http://deb.debian.org/debian";
const SECURITY: &str = "http://deb.debian.org/debian-security";
/// Settings of apt that are about reaching a mirror.
const REACHING: [&str; 7] = [
    "Acquire::http::",
    "Acquire::https::",
    "Acquire::ForceIPv4 ",
    "Acquire::ForceIPv6 ",
    "Acquire::Retries ",
    "Acquire::Check-Valid-Until ",
    "Acquire::Check-Date ",
];

/// How packages are reached while an image is built, and what the image's own apt is told.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Sources {
    /// Lines of a sources.list for the build.
    pub(super) build: Vec<String>,
    /// Those that stay in the image.
    pub(super) image: Vec<String>,
    /// Settings for the build.
    pub(super) settings: String,
    /// Files with passwords for mirrors.
    pub(super) auth: Vec<PathBuf>,
}

/// What a recipe's packages come from.
pub(super) fn sources(recipe: &Recipe) -> Result<Sources> {
    let public = public(recipe);
    let settings = Tool::new("apt-config", "apt").args(["dump", "Acquire"]).output().unwrap_or_default();
    let settings = reaching(&settings);
    let auth = auth_files();
    let build = match recipe.mirror() {
        Some(_) => public.clone(),
        None => {
            let format = "$(CREATED_BY)|$(ORIGIN)|$(RELEASE)|$(REPO_URI)|$(COMPONENT)";
            let listed = Tool::new("apt-get", "apt").args(["indextargets", "--format", format]).output();
            // A machine without apt has no mirror of its own.
            own(&listed.unwrap_or_default(), recipe).unwrap_or_else(|| public.clone())
        }
    };
    Ok(Sources { build, image: public, settings, auth })
}

/// What a recipe says, or Debian's mirrors.
fn public(recipe: &Recipe) -> Vec<String> {
    let (suite, components) = (recipe.suite(), recipe.components().join(" "));
    match recipe.mirror() {
        Some(mirror) => vec![format!("deb {mirror} {suite} {components}")],
        None => vec![
            format!("deb {MIRROR} {suite} {components}"),
            format!("deb {MIRROR} {suite}-updates {components}"),
            format!("deb {SECURITY} {suite}-security {components}"),
        ],
    }
}

/// Those of this machine's sources that are Debian's for the recipe's release, if it has the release itself.
fn own(listed: &str, recipe: &Recipe) -> Option<Vec<String>> {
    let suite = recipe.suite();
    let mut found: BTreeMap<(String, String), Vec<String>> = BTreeMap::new();
    for line in listed.lines() {
        let fields: Vec<&str> = line.split('|').collect();
        let ["Packages", origin, release, uri, component] = fields.as_slice() else { continue };
        let rest = release.strip_prefix(suite);
        let is_release = matches!(rest, Some("" | "-updates" | "-security" | "-backports"));
        // Others call their releases so as well. Before the first update apt does not know whose a source is.
        let is_debian = *origin == "Debian"
            || origin.is_empty() && ["/debian/", "/debian-security/"].iter().any(|end| uri.ends_with(end));
        let is_plain = uri.chars().all(|c| c.is_ascii_graphic() && !"[]\"'\\".contains(c));
        if is_release && rest != Some("-backports") && is_debian && is_plain && recipe.components().contains(component)
        {
            found.entry((release.to_string(), uri.to_string())).or_default().push(component.to_string());
        }
    }
    let has_release = found.keys().any(|(release, _)| release == suite);
    let lines = found.into_iter().map(|((release, uri), mut components)| {
        components.sort();
        components.dedup();
        format!("deb {uri} {release} {}", components.join(" "))
    });
    has_release.then(|| lines.collect())
}

fn reaching(dump: &str) -> String {
    let kept = dump.lines().filter(|line| REACHING.iter().any(|begin| line.starts_with(begin)));
    kept.map(|line| format!("{line}\n")).collect()
}

fn auth_files() -> Vec<PathBuf> {
    let folder = fs::read_dir("/etc/apt/auth.conf.d").into_iter().flatten().flatten().map(|entry| entry.path());
    let named = folder.filter(|path| path.extension().is_some_and(|extension| extension == "conf"));
    let mut files: Vec<PathBuf> = std::iter::once(PathBuf::from("/etc/apt/auth.conf")).chain(named).collect();
    files.retain(|path| fs::metadata(path).is_ok_and(|found| found.is_file() && found.len() > 0));
    files.sort();
    files
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recipe(more: &str) -> Recipe {
        Recipe::parse(&format!("name = \"x\"\nsuite = \"bookworm\"\n{more}")).expect("a recipe")
    }

    #[test]
    fn what_this_machine_has_of_the_release_is_used_and_nobody_elses() {
        let listed = "\
Packages|Debian|bookworm|http://mirror.test/debian/|main
Packages|Debian|bookworm|http://mirror.test/debian/|contrib
DEP-11|Debian|bookworm|http://mirror.test/debian/|main
Packages|Debian|bookworm-security|http://mirror.test/debian-security/|main
Packages||bookworm-updates|http://mirror.test/debian/|main
Packages|Somebody|bookworm|http://other.test/apt/|main
Packages||bookworm|http://other.test/apt/|main
Packages|Debian|bookworm-backports|http://mirror.test/debian/|main
Packages|Debian|trixie|http://mirror.test/debian/|main
";
        let lines = own(listed, &recipe("")).expect("it has the release");
        let at = "http://mirror.test/debian";
        assert_eq!(
            lines,
            [
                format!("deb {at}/ bookworm main"),
                format!("deb {at}-security/ bookworm-security main"),
                format!("deb {at}/ bookworm-updates main"),
            ]
        );
        let both = own(listed, &recipe("components = [\"main\", \"contrib\"]")).expect("it has the release");
        assert_eq!(both[0], format!("deb {at}/ bookworm contrib main"));
        assert_eq!(own(&listed.replace("bookworm", "jammy"), &recipe("")), None);
        assert_eq!(own("", &recipe("")), None);
    }

    #[test]
    fn a_mirror_of_the_recipe_is_the_only_one_and_stays() {
        let found = sources(&recipe("mirror = \"http://mirror.test/debian\"")).expect("sources");
        assert_eq!(found.build, ["deb http://mirror.test/debian bookworm main"]);
        assert_eq!(found.image, found.build);
        assert!(public(&recipe(""))[2].contains("debian-security bookworm-security main"));
    }

    #[test]
    fn proxies_are_taken_over_and_what_weakens_apt_is_not() {
        let dump = "Acquire \"\";\nAcquire::http::Proxy \"http://proxy.test:3128\";\nAcquire::AllowInsecureRepositories \"1\";\n";
        assert_eq!(reaching(dump), "Acquire::http::Proxy \"http://proxy.test:3128\";\n");
    }
}
