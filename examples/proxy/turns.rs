//! Whose turn it is, in a file that passes from process to process: upstreams are used in turn across
//! upgrades and rollbacks, too.
//!
//! It has no name in the file system. Each route that takes turns has 16 bytes in it: a number of the
//! route, and its turn. Little-endian, because another build may read it.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::rc::Rc;

use nix::sys::memfd::{MFdFlags, memfd_create};

use super::routes::{Route, number_of};

const ENTRY_BYTES: usize = 16;

pub(crate) struct Turns {
    file: File,
    /// What the predecessor had written when this process began to serve is read by now.
    is_read: bool,
    /// Of each route its number, in the order of the file.
    numbers: Vec<u64>,
}

impl Turns {
    /// A file that is empty.
    pub(crate) fn make() -> io::Result<OwnedFd> {
        Ok(memfd_create(c"turns", MFdFlags::MFD_CLOEXEC)?)
    }

    pub(crate) fn new(file: OwnedFd) -> Self {
        Self { file: file.into(), is_read: false, numbers: Vec::new() }
    }

    /// To be called before the first turn, when the predecessor takes none any more.
    pub(crate) fn read(&mut self, routes: &[Rc<Route>]) {
        if std::mem::replace(&mut self.is_read, true) {
            return;
        }
        let mut entry = [0; ENTRY_BYTES];
        // Turns only spread the load: what cannot be read begins anew.
        while self.file.read_exact_at(&mut entry, self.place(self.numbers.len())).is_ok() {
            let (number, turn) = entry.split_at(8);
            let number = number.try_into().map_or(0, u64::from_le_bytes);
            let turn = turn[..4].try_into().map_or(0, u32::from_le_bytes);
            self.numbers.push(number);
            let route = routes.iter().find(|route| number_of(&route.name) == number);
            route.iter().for_each(|route| route.upstreams.set_turn(turn));
        }
        for route in routes.iter().filter(|route| route.upstreams.has_turns()) {
            let number = number_of(&route.name);
            let known = self.numbers.iter().position(|known| *known == number);
            route.slot.set(Some(known.unwrap_or_else(|| {
                self.numbers.push(number);
                self.numbers.len() - 1
            })));
        }
    }

    /// A route has taken a turn.
    pub(crate) fn write(&self, route: &Route) {
        let Some(slot) = route.slot.get() else { return };
        let mut entry = [0; ENTRY_BYTES];
        entry[..8].copy_from_slice(&number_of(&route.name).to_le_bytes());
        entry[8..12].copy_from_slice(&route.upstreams.turn().to_le_bytes());
        // It is memory, of which there may be none left: then the next process begins anew.
        let _ = self.file.write_all_at(&entry, self.place(slot));
    }

    fn place(&self, slot: usize) -> u64 {
        (slot * ENTRY_BYTES) as u64
    }
}
