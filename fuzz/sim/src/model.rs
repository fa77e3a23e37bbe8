//! What may be found after a crash: the recent history of each volume.
//!
//! Invariants
//!   * `window[0]` is promised to survive power loss, `window[..=acked]` to survive the death of the
//!     process; what follows was asked for and not answered;
//!   * a volume's log survives as a prefix, so the state found is one of the window, checkpoints
//!     included, at or past the floor of that kind of crash.

use blockstore::testing::{ReferenceDisk, Sparse};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

/// The name every volume has in its own model.
const SELF: &str = "";
/// Stands for the name of a checkpoint that was asked for: the answer gives it.
pub const UNNAMED: &str = "?";

/// One volume's past.
pub struct Past {
    window: VecDeque<ReferenceDisk>,
    /// Number of the state `window[0]`, counted from the volume's beginning.
    first: u64,
    acked: u64,
}

/// What a pool shows of a volume, or should show.
#[derive(Clone, PartialEq)]
pub struct Shown {
    /// The head's bytes.
    pub head: Arc<Sparse>,
    /// The checkpoints' bytes by name.
    pub checkpoints: BTreeMap<String, Arc<Sparse>>,
}

impl Shown {
    /// What a model of one volume shows.
    pub fn of(model: &ReferenceDisk) -> Self {
        let checkpoints = model.checkpoints.iter().map(|((_, name), state)| (name.clone(), state.clone()));
        Self { head: model.heads.get(SELF).cloned().unwrap_or_default(), checkpoints: checkpoints.collect() }
    }

    /// What `model` shows if it explains `self`: a checkpoint whose name was not answered has the one
    /// that is otherwise unexplained.
    fn as_of(&self, model: &ReferenceDisk) -> Self {
        let mut shown = Self::of(model);
        let mut new = self.checkpoints.keys().filter(|name| !shown.checkpoints.contains_key(*name));
        if let (Some(name), None) = (new.next().cloned(), new.next()) {
            if let Some(state) = shown.checkpoints.remove(UNNAMED) {
                shown.checkpoints.insert(name, state);
            }
        }
        shown
    }

    fn to_model(&self) -> ReferenceDisk {
        let key = |name: &String| (SELF.to_owned(), name.clone());
        ReferenceDisk {
            heads: BTreeMap::from([(SELF.to_owned(), self.head.clone())]),
            checkpoints: self.checkpoints.iter().map(|(name, state)| (key(name), state.clone())).collect(),
        }
    }

    /// In words, where it differs from `other`.
    pub fn difference(&self, other: &Self) -> String {
        let names = |shown: &Self| shown.checkpoints.keys().cloned().collect::<Vec<_>>();
        if names(self) != names(other) {
            return format!("checkpoints {:?} against {:?}", names(self), names(other));
        }
        let bytes = |a: &Sparse, b: &Sparse| {
            if a.len() != b.len() {
                return Some(format!("{} against {} bytes", a.len(), b.len()));
            }
            let (mut x, mut y) = ([0; 4096], [0; 4096]);
            let differs = |at: &usize| {
                let len = 4096.min(a.len() - at);
                a.read(&mut x[..len], *at);
                b.read(&mut y[..len], *at);
                x[..len] != y[..len]
            };
            a.pages().chain(b.pages()).find(differs).map(|at| format!("block {}", at / 4096))
        };
        if let Some(what) = bytes(&self.head, &other.head) {
            return format!("the head: {what}");
        }
        let checkpoint = |(name, state): (&String, &Arc<Sparse>)| {
            bytes(state, other.checkpoints.get(name)?).map(|what| format!("{name}: {what}"))
        };
        self.checkpoints.iter().find_map(checkpoint).unwrap_or_else(|| "nothing".to_owned())
    }
}

impl Past {
    /// A volume that starts, durably, as `shown`.
    pub fn new(shown: &Shown) -> Self {
        Self { window: VecDeque::from([shown.to_model()]), first: 0, acked: 0 }
    }

    /// The volume as it is now, as far as it was asked for.
    pub fn now(&self) -> &ReferenceDisk {
        self.window.back().expect("a window is never empty")
    }

    /// The head's bytes now.
    pub fn head(&self) -> Arc<Sparse> {
        self.now().heads.get(SELF).cloned().unwrap_or_default()
    }

    /// A change is asked for; what it makes of the present state is done by `change`.
    pub fn ask(&mut self, change: impl FnOnce(&mut ReferenceDisk, &str)) {
        let mut next = self.now().clone();
        change(&mut next, SELF);
        self.window.push_back(next);
    }

    /// Everything asked for so far was answered.
    pub fn answer(&mut self) {
        self.acked = self.number();
    }

    /// Everything asked for so far was answered, and the new checkpoint is called `name`.
    pub fn answer_named(&mut self, name: &str) {
        if let Some(state) = self.window.back_mut() {
            if let Some(bytes) = state.checkpoints.remove(&(SELF.to_owned(), UNNAMED.to_owned())) {
                state.checkpoints.insert((SELF.to_owned(), name.to_owned()), bytes);
            }
        }
        self.answer();
    }

    /// Number of the present state.
    pub fn number(&self) -> u64 {
        self.first + self.window.len() as u64 - 1
    }

    /// States up to `number` were promised to survive power loss.
    pub fn promise(&mut self, number: u64) {
        while self.first < number && self.window.len() > 1 {
            self.window.pop_front();
            self.first += 1;
        }
    }

    /// Whether `shown` is allowed after a crash: at or past what was promised or, when the disk kept
    /// its power, answered. The reason, when it is not.
    pub fn allows(&self, shown: &Shown, power_lost: bool) -> Result<(), String> {
        let floor = if power_lost { self.first } else { self.acked.max(self.first) };
        let mut fits = self.window.iter().skip((floor - self.first) as usize);
        if fits.any(|state| shown.as_of(state) == *shown) {
            return Ok(());
        }
        let newest = Shown::of(self.now());
        let behind = self.window.iter().position(|state| Shown::of(state) == *shown);
        Err(match behind {
            Some(at) => format!("state {} is back, {floor} was promised", self.first + at as u64),
            None => format!(
                "none of the states {floor} to {} (found against the newest: {})",
                self.number(),
                shown.difference(&newest)
            ),
        })
    }

    /// `shown` is what there is, of what was asked for since the last answer.
    pub fn settle(&mut self, shown: &Shown) -> Result<(), String> {
        while self.number() > self.acked && shown.as_of(self.now()) != *shown {
            self.window.pop_back();
        }
        self.acked = self.number();
        self.allows(shown, false)?;
        if let Some(state) = self.window.back_mut() {
            *state = shown.to_model();
        }
        Ok(())
    }

    /// A crash is over, and `shown` was found: the past begins anew.
    pub fn restart(&mut self, shown: &Shown) {
        let number = self.number();
        *self = Self { first: number, acked: number, ..Self::new(shown) };
    }
}
