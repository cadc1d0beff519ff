//! Where each value lies. It is handed over as it is: most of it is one piece of bytes in the order of the
//! keys, which nobody has to put together again before the first client is served.

use std::collections::BTreeMap;

/// Where a value lies in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) at: u64,
    pub(crate) length: u32,
}

impl Place {
    /// How many bytes it is.
    pub(crate) const BYTES: usize = 12;

    pub(crate) fn to_bytes(self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes[..8].copy_from_slice(&self.at.to_le_bytes());
        bytes[8..].copy_from_slice(&self.length.to_le_bytes());
        bytes
    }

    pub(crate) fn take(rest: &mut &[u8]) -> Option<Self> {
        let (at, left) = rest.split_first_chunk()?;
        let (length, left) = left.split_first_chunk()?;
        *rest = left;
        Some(Self { at: u64::from_le_bytes(*at), length: u32::from_le_bytes(*length) })
    }
}

/// The places, by their keys.
#[derive(Debug, Default)]
pub(crate) struct Index {
    /// Entries in the order of their keys: place, length of the key (2), key.
    table: Vec<u8>,
    /// Where each of them begins.
    entries: Vec<u32>,
    /// Keys that the table does not have.
    new: BTreeMap<Vec<u8>, Place>,
}

/// In an entry, ahead of the key.
const HEAD: usize = Place::BYTES + 2;

impl Index {
    /// Takes over what [`Index::to_bytes`] has made.
    pub(crate) fn of(table: Vec<u8>) -> Option<Self> {
        let (mut entries, mut at) = (Vec::with_capacity(table.len() / (HEAD + 8)), 0);
        while at < table.len() {
            let length = table.get(at + Place::BYTES..at + HEAD)?;
            entries.push(u32::try_from(at).ok()?);
            at += HEAD + usize::from(u16::from_le_bytes([length[0], length[1]]));
        }
        (at == table.len()).then_some(Self { table, entries, new: BTreeMap::new() })
    }

    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.table.len() + self.new.len() * 32);
        let mut new = self.new.iter().peekable();
        let mut put = |key: &[u8], place: Place| {
            bytes.extend(place.to_bytes());
            bytes.extend((key.len() as u16).to_le_bytes());
            bytes.extend(key);
        };
        for &entry in &self.entries {
            let (key, place) = self.entry(entry);
            while let Some((earlier, place)) = new.next_if(|(it, _)| it.as_slice() < key) {
                put(earlier, *place);
            }
            put(key, place);
        }
        new.for_each(|(key, place)| put(key, *place));
        bytes
    }

    pub(crate) fn get(&self, key: &[u8]) -> Option<Place> {
        self.new.get(key).copied().or_else(|| Some(self.entry(self.find(key)?).1))
    }

    pub(crate) fn insert(&mut self, key: &[u8], place: Place) {
        match self.find(key) {
            Some(entry) => {
                let at = entry as usize;
                self.table[at..at + Place::BYTES].copy_from_slice(&place.to_bytes());
            }
            None => drop(self.new.insert(key.into(), place)),
        }
    }

    fn find(&self, key: &[u8]) -> Option<u32> {
        let found = self.entries.binary_search_by(|entry| self.entry(*entry).0.cmp(key));
        found.ok().map(|index| self.entries[index])
    }

    /// Each of the entries is a whole one: [`Index::of`] has gone through them.
    fn entry(&self, at: u32) -> (&[u8], Place) {
        let mut rest = &self.table[at as usize..];
        let place = Place::take(&mut rest).unwrap_or(Place { at: 0, length: 0 });
        let length = usize::from(u16::from_le_bytes([rest[0], rest[1]]));
        (&rest[2..2 + length], place)
    }
}
