//! Sandboxes, on this machine or another one: the commands that speak to the sandbox API.
//!
//! Nothing here needs a pool or its folder. The server and the token are `CAIRN_URL` and `CAIRN_TOKEN`, or what `cairn login`
//! kept; there is no runtime: a command waits for its descriptors itself.

pub mod args;
mod aside;
mod chosen;
mod credentials;
mod fds;
mod forward;
mod list;
mod login;
mod manage;
mod place;
mod ports;
mod proxy;
mod pull;
mod push;
mod remote;
mod run;
pub mod saved;
mod socket;
mod table;
mod talk;
mod tar;
mod url;

use crate::client::Failure;
use crate::output::print;
use args::{At, FileVerb, SandboxVerb};
use remote::Sandbox;

fn found(at: &At) -> Result<Sandbox, Failure> {
    Sandbox::found(at.sandbox.as_deref(), &at.server)
}

/// Carries out a verb on sandboxes.
pub fn run(verb: &SandboxVerb, json: bool) -> Result<(), Failure> {
    match verb {
        SandboxVerb::Login { url, token_file, server } => {
            login::login(url.as_deref(), token_file.as_deref(), server, json)
        }
        SandboxVerb::Create(args) => manage::create(args, json),
        SandboxVerb::Use { name, server } => manage::choose(name.as_deref(), server, json),
        SandboxVerb::List { watch, prefix, server } => list::list(server, prefix, *watch, json),
        SandboxVerb::Info { at } => manage::info(&found(at)?, json),
        SandboxVerb::Exec(args) => run::exec(args, json),
        SandboxVerb::Console { at, no_port_forward } => run::console(found(at)?, *no_port_forward, json),
        SandboxVerb::Sessions(verb) => run::sessions(verb, json),
        SandboxVerb::File(FileVerb::Push { at, sources, dest }) => {
            print(&push::push(&found(at)?, sources, dest, json)?, json, &[]);
            Ok(())
        }
        SandboxVerb::File(FileVerb::Pull { at, source, dest }) => {
            let told = pull::pull(&found(at)?, source, dest, json)?;
            if dest.as_os_str() != "-" {
                print(&told, json, &[]);
            }
            Ok(())
        }
        SandboxVerb::Proxy { at, ports } => proxy::proxy(found(at)?, ports, json),
        SandboxVerb::Destroy { name, force, server } => manage::destroy(name, *force, server, json),
        SandboxVerb::Api(args) => manage::api(args),
    }
}
