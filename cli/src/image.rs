//! `cairn image`: what machines start from.

use crate::args::Cli;
use crate::client::Failure;
use crate::guest_args::ImageVerb;
use crate::output::print;
use crate::requests::pool_folder;
use crate::vm::{machines, ms, value, with};
use crate::vm_store::Daemon;
use serde_json::{json, Value};
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use vmm_glue::{Import, Interruptible, Progress, Recipe};

const COLUMNS: &[&str] = &["name", "volume", "checkpoint", "size_bytes", "disk_bytes", "user", "kernel"];
/// How often a line that changes is shown anew.
const SHOW: Duration = Duration::from_millis(100);
/// What a line of a terminal has room for, beside the time.
const WIDTH: usize = 70;

/// Tells how it goes on: steps are lines, what is between them is one line that changes, on a terminal.
struct Shown {
    begin: Instant,
    step: String,
    last: Option<Instant>,
    is_quiet: bool,
    is_terminal: bool,
}

impl Shown {
    fn new(is_quiet: bool) -> Self {
        let is_terminal = io::stderr().is_terminal() && !is_quiet;
        Self { begin: Instant::now(), step: String::new(), last: None, is_quiet, is_terminal }
    }

    fn hear(&mut self, said: Progress) {
        match said {
            _ if self.is_quiet => {}
            Progress::Step(step) => {
                self.clear();
                eprintln!("image: {}", plain(step, usize::MAX));
                self.step = step.to_owned();
            }
            Progress::Detail(line) if self.is_terminal && self.last.is_none_or(|last| last.elapsed() > SHOW) => {
                self.last = Some(Instant::now());
                // The cursor goes to the line's begin, and what was there is cleared.
                eprint!("\r\x1b[K{:>5} s  {}", self.begin.elapsed().as_secs(), plain(line, WIDTH));
                let _ = io::stderr().flush();
            }
            Progress::Detail(_) => {}
        }
    }

    fn clear(&mut self) {
        if self.last.take().is_some() {
            eprint!("\r\x1b[K");
        }
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        self.clear();
    }
}

/// What a program says, so that a terminal can show it.
fn plain(text: &str, width: usize) -> String {
    text.chars().take(width).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// Where the agent is, that goes into images.
fn agent_file(given: Option<&PathBuf>) -> Result<PathBuf, Failure> {
    let exe = std::env::current_exe()?;
    let folder = exe.parent().unwrap_or(Path::new("."));
    let places = [folder.join("cairn-agent"), folder.join("../lib/cairn/cairn-agent")];
    let found = given.cloned().or_else(|| places.into_iter().find(|place| place.is_file()));
    found.ok_or_else(|| {
        Failure::new("not_found", "there is no cairn-agent beside this command: run make build, or give --agent FILE")
    })
}

/// Carries out a command on images.
pub fn image(cli: &Cli, verb: &ImageVerb) -> Result<(), Failure> {
    if let ImageVerb::Recipe { name } = verb {
        let text = vmm_glue::built_in_recipe(name).unwrap_or_default();
        if cli.json {
            print(&json!({"name": name, "recipe": text}), true, &[]);
            return Ok(());
        }
        return Ok(io::stdout().write_all(text.as_bytes())?);
    }
    let folder = pool_folder(cli)?;
    let (machines, store, begin) = (machines(&folder)?, Daemon::of(&folder), Instant::now());
    let images = &machines.images;
    let mut shown = Shown::new(cli.json);
    let _told = Interruptible::new();
    let mut progress = |said: Progress| shown.hear(said);
    let answer: Value = match verb {
        ImageVerb::Build { name, recipe, again, agent } => {
            let agent = agent_file(agent.as_ref())?;
            let built = match (name.as_deref(), recipe) {
                (Some("tiny"), None) => vmm_glue::build_tiny(images, &store, &agent, &mut progress)?,
                (name, recipe) => {
                    let recipe = match (name, recipe) {
                        (name, Some(path)) => {
                            let recipe = Recipe::read(path)?;
                            name.map_or(Ok(recipe.clone()), |name| recipe.called(name))?
                        }
                        (name, None) => Recipe::built_in(name.unwrap_or_default())?,
                    };
                    vmm_glue::build(images, &store, &recipe, &agent, *again, &mut progress)?
                }
            };
            with(value(&built), json!({"build_ms": ms(begin)}))
        }
        ImageVerb::Import { name, file, kernel, initrd, agent } => {
            let boot = kernel.as_deref().zip(initrd.as_deref());
            let agent = agent_file(agent.as_ref()).ok();
            value(&vmm_glue::import(images, &store, &Import { name, file, boot, agent }, &mut progress)?)
        }
        ImageVerb::List => value(&images.list()?),
        ImageVerb::Rm { names } => {
            for name in names {
                images.remove(&store, name)?;
            }
            json!({"deleted": names})
        }
        ImageVerb::Recipe { .. } => Value::Null,
    };
    drop(shown);
    print(&answer, cli.json, COLUMNS);
    Ok(())
}
