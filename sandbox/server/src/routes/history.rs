//! What a checkpoint came of: those that the disk was at before, the nearest first.
//!
//! Invariant: a chain is no longer than there are checkpoints, whatever a pool says of parents.

use crate::wire::Checkpoint;
use serde_json::Value;
use std::collections::HashMap;

/// What `id` came of.
fn before<'a>(parents: &'a HashMap<String, String>, id: &str) -> Vec<&'a str> {
    let mut chain: Vec<&str> = Vec::new();
    let mut at = parents.get(id);
    while let Some(parent) = at.filter(|_| chain.len() < parents.len()) {
        chain.push(parent);
        at = parents.get(parent);
    }
    chain
}

/// Adds to the checkpoints in `list` what each came of, as the pool's `all` of `volume` says; with `wanted`, only those that
/// are it or came of it are left.
pub fn told(mut list: Vec<Checkpoint>, all: &[Value], volume: &str, wanted: Option<&str>) -> Vec<Checkpoint> {
    let parent = |info: &'_ Value| -> Option<(String, String)> {
        let (of, parent) = info["parent"].as_str()?.split_once('@')?;
        (of == volume).then(|| Some((info["id"].as_str()?.to_owned(), parent.to_owned()))).flatten()
    };
    let parents: HashMap<String, String> = all.iter().filter_map(parent).collect();
    for info in &mut list {
        info.history = before(&parents, &info.id).into_iter().map(str::to_owned).collect();
    }
    let is_wanted = |info: &Checkpoint, wanted: &str| info.id == wanted || info.history.iter().any(|id| id == wanted);
    list.retain(|info| wanted.is_none_or(|wanted| is_wanted(info, wanted)));
    list
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn ids(list: Vec<Checkpoint>) -> Vec<String> {
        list.into_iter().map(|info| info.id).collect()
    }

    fn named(id: &str) -> Checkpoint {
        Checkpoint { id: id.to_owned(), ..Checkpoint::default() }
    }

    #[test]
    fn a_history_is_a_chain_of_parents_of_the_same_volume_and_ends() {
        let all = [
            json!({"id": "v1", "parent": "image@v1"}),
            json!({"id": "v2", "parent": "mine@v1"}),
            json!({"id": "auto-1", "parent": "mine@v2"}),
            json!({"id": "v3", "parent": "mine@v1"}),
            // What no pool says.
            json!({"id": "v8", "parent": "mine@v9"}),
            json!({"id": "v9", "parent": "mine@v8"}),
        ];
        let list = || -> Vec<Checkpoint> {
            let all = all.iter().rev().filter_map(|info| info["id"].as_str().map(named));
            all.chain([named("Current")]).collect()
        };
        let found = told(list(), &all, "mine", None);
        assert_eq!(found[3].history, ["v2", "v1"]);
        assert!(found[5].history.is_empty(), "an image's is not its own");
        assert_eq!(ids(found), ["v9", "v8", "v3", "auto-1", "v2", "v1", "Current"]);
        assert_eq!(ids(told(list(), &all, "mine", Some("v1"))), ["v3", "auto-1", "v2", "v1"]);
        assert_eq!(ids(told(list(), &all, "mine", Some("v2"))), ["auto-1", "v2"]);
        assert_eq!(ids(told(list(), &all, "mine", Some("nothing"))), [""; 0]);
    }
}
