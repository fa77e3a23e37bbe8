//! `cairn vm`, `cairn doctor`.

use crate::args::{parse_size, Cli};
use crate::client::Failure;
use crate::guest_args::VmVerb;
use crate::output::print;
use crate::requests::pool_folder;
use crate::vm_store::Daemon;
use serde::Serialize;
use serde_json::{json, Value};
use std::io::{self, Write};
use std::path::Path;
use std::time::{Duration, Instant};
use vmm_glue::{tail, Agent, Exec, ExecEnd, Machine, Machines, New, Terminal, Transport};

const VM_COLUMNS: &[&str] = &["name", "state", "image", "cpus", "memory_bytes", "resident_bytes", "accel"];
/// All that is kept of a console.
const LOG_MAX: u64 = 2 << 20;
/// How long a guest's agent may take to answer a command.
const AGENT: Duration = Duration::from_secs(30);

fn size(text: &str) -> Result<u64, Failure> {
    parse_size(text).ok_or_else(|| Failure::new("invalid", format!("{text:?} is not a size: use 20G, 512M or bytes")))
}

pub(crate) fn value(of: &impl Serialize) -> Value {
    serde_json::to_value(of).unwrap_or_default()
}

pub(crate) fn with(mut answer: Value, more: Value) -> Value {
    if let (Some(fields), Value::Object(more)) = (answer.as_object_mut(), more) {
        fields.extend(more);
    }
    answer
}

pub(crate) fn ms(begin: Instant) -> Value {
    json!((begin.elapsed().as_secs_f64() * 1e4).round() / 10.0)
}

/// The machines of a pool.
pub fn machines(folder: &Path) -> Result<Machines, Failure> {
    let words = [std::env::current_exe()?, "--pool".into(), std::path::absolute(folder)?, "vm".into(), "keep".into()];
    Ok(Machines::of(folder, words.iter().map(|word| word.to_string_lossy().into_owned()).collect()))
}

/// Carries out a command on machines.
pub fn vm(cli: &Cli, verb: &VmVerb) -> Result<(), Failure> {
    let folder = pool_folder(cli)?;
    let (machines, store) = (machines(&folder)?, Daemon::of(&folder));
    let begin = Instant::now();
    let started =
        |machine: &Machine, more: Value| with(with(value(&machine.status()), json!({"start_ms": ms(begin)})), more);
    let answer = match verb {
        VmVerb::Run { name, image, cpus, memory, disk, transport } => match image {
            Some(image) => {
                let disk = disk.as_deref().map(size).transpose()?;
                let transport = if transport == "nbd" { Transport::Nbd } else { Transport::VhostUser };
                let (name, image) = (name.clone(), image.clone());
                let new = New { name, image, cpus: *cpus, memory: size(memory)?, disk, transport };
                started(&machines.run(&store, &new)?, json!({}))
            }
            None if machines.has(name) => {
                let mut machine = machines.get(name)?;
                let resumed = machine.boot_or_wake(&store)?;
                started(&machine, json!({"resumed": resumed}))
            }
            None => {
                let text = format!("there is no machine {name:?}: give --image to make one (cairn image list)");
                return Err(Failure::new("not_found", text));
            }
        },
        VmVerb::Exec { tty, env, cwd, user, name, command } => {
            let exec = exec_of(command, env, cwd, *tty)?;
            return exec_in(&machines.folder(name)?, as_user(exec, user.as_deref(), &machines, name)?);
        }
        VmVerb::Console { user, name } => {
            let shell = ["sh", "-c", "exec \"${SHELL:-sh}\" -l"].map(str::to_owned);
            let exec = exec_of(&shell, &[], "", true)?;
            return exec_in(&machines.folder(name)?, as_user(exec, user.as_deref(), &machines, name)?);
        }
        VmVerb::Checkpoint { name, comment, memory } => {
            let mut machine = machines.get(name)?;
            let cut = match memory {
                true => machine.checkpoint_with_memory(&store, comment)?,
                false => machine.checkpoint(&store, comment)?,
            };
            if let Some(why) = cut.why.as_ref().filter(|_| !cli.json) {
                eprintln!("cairn: the guest did not help, so that {} is as after a power loss: {why}", cut.id);
            }
            with(value(&cut), json!({"name": name, "total_ms": ms(begin)}))
        }
        VmVerb::Restore { name, id } => {
            let mut machine = machines.get(name)?;
            let undo = machine.restore(&store, id)?;
            started(&machine, json!({"restored": id, "undo": undo}))
        }
        VmVerb::Fork { source, name } => started(&machines.fork(&store, source, name)?, json!({"parent": source})),
        VmVerb::Suspend { name } => {
            let cut = machines.get(name)?.suspend(&store)?;
            json!({"name": name, "state": "suspended", "checkpoint": cut.id, "total_ms": ms(begin)})
        }
        VmVerb::Resume { name } => {
            let mut machine = machines.get(name)?;
            let resumed = machine.wake(&store)?;
            if !resumed && !cli.json {
                eprintln!("cairn: the disk has changed since {name} was suspended: its memory was discarded, and it has booted");
            }
            started(&machine, json!({"resumed": resumed}))
        }
        VmVerb::Stop { name, force } => {
            let ended = machines.get(name)?.stop(*force)?;
            with(json!({"name": name, "total_ms": ms(begin)}), json!({"ended": ended}))
        }
        VmVerb::Rm { names, force } => {
            for name in names {
                machines.get(name)?.remove(&store, *force)?;
            }
            json!({"deleted": names})
        }
        VmVerb::List => value(&machines.list()?),
        VmVerb::Logs { name } => return logs(&machines.folder(name)?, cli.json),
        VmVerb::Keep { name } => return Ok(vmm_glue::keep(&machines.folder(name)?)?),
    };
    print(&answer, cli.json, VM_COLUMNS);
    Ok(())
}

fn logs(folder: &Path, as_json: bool) -> Result<(), Failure> {
    let bytes = tail(folder, LOG_MAX);
    if as_json {
        print(&json!(String::from_utf8_lossy(&bytes)), true, &[]);
        return Ok(());
    }
    // A console is a terminal's bytes; those that could do something to another terminal are left out.
    let text = String::from_utf8_lossy(&bytes);
    let text: String = text.chars().filter(|c| matches!(c, '\n' | '\t') || !c.is_control()).collect();
    Ok(io::stdout().write_all(text.as_bytes())?)
}

fn exec_of(command: &[String], env: &[String], cwd: &str, tty: bool) -> Result<Exec, Failure> {
    let variable = |text: &String| match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.as_bytes().to_vec(), value.as_bytes().to_vec())),
        _ => Err(Failure::new("invalid", format!("--env {text:?}: write NAME=VALUE"))),
    };
    Ok(Exec {
        argv: command.iter().map(|word| word.clone().into_bytes()).collect(),
        env: env.iter().map(variable).collect::<Result<_, _>>()?,
        cwd: cwd.as_bytes().to_vec(),
        tty: tty.then(Terminal::size),
    })
}

/// As who is asked for, or as the machine's image says; the agent itself is root.
fn as_user(exec: Exec, asked: Option<&str>, machines: &Machines, name: &str) -> Result<Exec, Failure> {
    let user = match asked {
        Some(user) => Some(user.to_owned()),
        None => machines.user(name)?,
    };
    Ok(match user.filter(|user| user != "root") {
        Some(user) => vmm_glue::run_as(exec, &user),
        None => exec,
    })
}

/// Runs a command in a machine; this process ends as the command does.
fn exec_in(folder: &Path, exec: Exec) -> Result<(), Failure> {
    let agent = Agent::session(folder, AGENT)?;
    let terminal = if exec.tty.is_some() { Terminal::raw()? } else { None };
    let outcome = agent.exec(exec, Some(0), &mut io::stdout(), &mut io::stderr());
    drop(terminal);
    let code = match outcome? {
        ExecEnd::Exited(code) => code,
        ExecEnd::Signalled(signal) => 128_u8.wrapping_add(signal),
        ExecEnd::NotStarted(errno) if errno == libc::ENOENT as u32 => 127,
        ExecEnd::NotStarted(_) => 126,
    };
    if code == 0 {
        return Ok(());
    }
    std::process::exit(i32::from(code));
}

/// Tells how guests would be run here.
pub fn doctor(cli: &Cli) -> Result<(), Failure> {
    let folder = pool_folder(cli)?;
    let found = machines(&folder)?.acceleration()?;
    let programs =
        ["qemu-system-x86_64", "mke2fs", "debugfs", "dpkg-deb", "apt-get", "busybox", "mmdebstrap", "qemu-img"];
    let path = std::env::var("PATH").unwrap_or_default();
    let has = |name: &&str| {
        path.split(':').chain(["/usr/sbin", "/sbin"]).any(|folder| Path::new(folder).join(name).is_file())
    };
    let missing: Vec<&str> = programs.into_iter().filter(|name| !has(name)).collect();
    let answer = json!({"accel": found.accel.name(), "why": found.why, "missing_programs": missing});
    print(&answer, cli.json, &[]);
    Ok(())
}
