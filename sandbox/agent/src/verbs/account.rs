//! `cairn-agent as USER FOLDER COMMAND…`: becomes a user of the guest, and then the command.
//!
//! The agent is root; an image may say that commands are somebody else's. The host asks for it with this verb, so that the
//! guest's own list of users counts.
//!
//! Invariant: nothing of root is kept: groups, group and user are given up in this order, each with an error if it cannot be.

use crate::sys::check;
use std::ffi::{OsStr, OsString};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode};

/// Statuses of a shell for what it cannot start.
const NOT_FOUND: u8 = 127;
const NOT_STARTED: u8 = 126;
/// Debian's group of terminals.
const TTY: u32 = 5;
/// The program that stands for the agent itself.
const OWN: &str = "cairn-agent";

/// A line of /etc/passwd.
#[derive(Debug, PartialEq, Eq)]
struct Account {
    uid: u32,
    gid: u32,
    home: String,
    shell: String,
}

fn account(passwd: &str, user: &str) -> Option<Account> {
    passwd.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        let [name, _, uid, gid, _, home, shell] = fields.as_slice() else { return None };
        let numbers = (*name == user).then(|| uid.parse().ok().zip(gid.parse().ok()))??;
        Some(Account { uid: numbers.0, gid: numbers.1, home: home.to_string(), shell: shell.to_string() })
    })
}

fn groups(table: &str, user: &str, own: u32) -> Vec<u32> {
    let is_in = |line: &str| {
        let fields: Vec<&str> = line.split(':').collect();
        let [_, _, gid, members] = fields.as_slice() else { return None };
        members.split(',').any(|member| member == user).then(|| gid.parse().ok())?
    };
    let mut found: Vec<u32> = std::iter::once(own).chain(table.lines().filter_map(is_in)).collect();
    found.sort_unstable();
    found.dedup();
    found
}

/// Carries out the verb: `args` are what follows it. Returns if the command is not started.
pub(crate) fn run_as(args: &[OsString]) -> ExitCode {
    let [user, folder, program, rest @ ..] = args else {
        return told(NOT_STARTED, "the agent was not asked in a way that it understands");
    };
    let (user, folder) = (user.to_string_lossy(), Path::new(folder));
    let passwd = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let Some(account) = account(&passwd, &user) else {
        return told(NOT_STARTED, &format!("the guest has no user {user} (--user root is another one)"));
    };
    let table = std::fs::read_to_string("/etc/group").unwrap_or_default();
    if let Err(e) = become_user(&account, &groups(&table, &user, account.gid)) {
        return told(NOT_STARTED, &format!("to become {user}: {e}"));
    }
    let home = Path::new(&account.home);
    let place = if folder.as_os_str().is_empty() { home } else { folder };
    if let Err(e) = std::env::set_current_dir(place) {
        if !folder.as_os_str().is_empty() {
            return told(NOT_STARTED, &format!("{}: {e}", place.display()));
        }
        // A home that was removed keeps nobody out.
        let _ = std::env::set_current_dir("/");
    }
    let own = (program == OWN).then(std::env::current_exe).and_then(Result::ok);
    let mut command = Command::new(own.as_deref().map_or(program.as_os_str(), Path::as_os_str));
    command.args(rest);
    // What root's commands begin with; what the host has set differs from that.
    for (name, roots, theirs) in [
        ("HOME", "/root", account.home.as_str()),
        ("USER", "root", &user),
        ("LOGNAME", "", &user),
        ("SHELL", "", &account.shell),
    ] {
        if std::env::var_os(name).is_none_or(|value| value.as_bytes() == roots.as_bytes()) {
            command.env(name, theirs);
        }
    }
    let e = command.exec();
    let status = if e.kind() == io::ErrorKind::NotFound { NOT_FOUND } else { NOT_STARTED };
    told(status, &format!("{}: {e}", OsStr::new(program).to_string_lossy()))
}

fn told(status: u8, text: &str) -> ExitCode {
    let _ = writeln!(io::stderr(), "cairn: the guest: {text}");
    ExitCode::from(status)
}

fn become_user(account: &Account, groups: &[u32]) -> io::Result<()> {
    // SAFETY: plain system calls; the list lives through the one that reads it.
    unsafe {
        if libc::isatty(0) == 1 {
            // So that the command can open its terminal by name.
            check(libc::fchown(0, account.uid, TTY))?;
        }
        check(libc::setgroups(groups.len(), groups.as_ptr()))?;
        check(libc::setgid(account.gid))?;
        check(libc::setuid(account.uid))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guests_lists_say_who_somebody_is() {
        let passwd = "root:x:0:0:root:/root:/bin/bash\nbroken\nsprite2:x:7:7::/x:/y\nsprite:x:1000:1001:,,:/home/sprite:/bin/sh\n";
        let found = account(passwd, "sprite").expect("an account");
        assert_eq!(
            (found.uid, found.gid, found.home.as_str(), found.shell.as_str()),
            (1000, 1001, "/home/sprite", "/bin/sh")
        );
        assert_eq!(account(passwd, "nobody"), None);
        assert_eq!(account("sprite:x:many:0::/:/bin/sh", "sprite"), None);
        let table = "sudo:x:27:sprite\ndocker:x:99:other,sprite\nsprites:x:5:sprites\nbroken\n";
        assert_eq!(groups(table, "sprite", 1001), [27, 99, 1001]);
    }
}
