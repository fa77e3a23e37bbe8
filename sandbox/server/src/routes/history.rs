//! What a checkpoint came of: those that the disk was at before, the nearest first.
//!
//! Invariants
//!   * what is told of each checkpoint is bounded, and what is looked at grows with their number alone;
//!   * a chain ends, whatever a pool says of parents.

use crate::wire::Checkpoint;
use serde_json::Value;
use std::collections::HashMap;

/// Names that are told of one checkpoint: the nearest. Each of them tells of those before it.
const TOLD_MAX: usize = 50;

type Parents = HashMap<String, String>;

/// What `id` came of.
fn before<'a>(parents: &'a Parents, id: &str) -> impl Iterator<Item = &'a str> {
    std::iter::successors(parents.get(id), |at| parents.get(*at)).map(String::as_str).take(parents.len())
}

/// Whether `id` is `wanted` or came of it; `known` is what was found out about others.
fn came_of<'a>(parents: &'a Parents, id: &'a str, wanted: &str, known: &mut HashMap<&'a str, bool>) -> bool {
    let mut passed = Vec::new();
    let mut found = false;
    for at in std::iter::once(id).chain(before(parents, id)) {
        if let Some(answer) = known.get(at) {
            found = *answer;
            break;
        }
        passed.push(at);
        if at == wanted {
            found = true;
            break;
        }
    }
    known.extend(passed.into_iter().map(|at| (at, found)));
    found
}

/// Adds to the checkpoints in `list` what each came of, as the pool's `all` of `volume` says; with `wanted`, only those that
/// are it or came of it are left.
pub fn told(mut list: Vec<Checkpoint>, all: &[Value], volume: &str, wanted: Option<&str>) -> Vec<Checkpoint> {
    let parent = |info: &'_ Value| -> Option<(String, String)> {
        let (of, parent) = info["parent"].as_str()?.split_once('@')?;
        (of == volume).then(|| Some((info["id"].as_str()?.to_owned(), parent.to_owned()))).flatten()
    };
    let parents: Parents = all.iter().filter_map(parent).collect();
    if let Some(wanted) = wanted {
        let mut known = HashMap::new();
        let ids: Vec<String> = list.iter().map(|info| info.id.clone()).collect();
        let stays: Vec<bool> = ids.iter().map(|id| came_of(&parents, id, wanted, &mut known)).collect();
        let mut stays = stays.into_iter();
        list.retain(|_| stays.next() == Some(true));
    }
    for info in &mut list {
        info.history = before(&parents, &info.id).take(TOLD_MAX).map(str::to_owned).collect();
    }
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

    /// Ten thousand checkpoints in a row would be fifty million names.
    #[test]
    fn what_is_told_of_many_checkpoints_grows_with_their_number_alone() {
        let id = |n: usize| format!("v{n}");
        let all: Vec<Value> =
            (1..=10_000).map(|n| json!({"id": id(n), "parent": format!("mine@v{}", n.saturating_sub(1))})).collect();
        let list = || (1..=10_000).rev().map(|n| named(&id(n))).collect();
        let found = told(list(), &all, "mine", None);
        assert_eq!(found[0].history[..2], ["v9999", "v9998"]);
        let names: usize = found.iter().map(|info| info.history.len()).sum();
        assert!(names <= found.len() * 100, "{names}");
        assert_eq!(told(list(), &all, "mine", Some("v1")).len(), 10_000, "however far back it is");
        assert_eq!(told(list(), &all, "mine", Some("v9999")).len(), 2);
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
