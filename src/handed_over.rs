//! The application's own state on its way from one process to the next.

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::OwnedFd;

use nix::sys::memfd::{MFdFlags, memfd_create};

/// An application's own state, as it is handed over at the commit: bytes of any length, and descriptors. It is
/// made by [`HandedOver::new`].
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct HandedOver {
    /// The form of `bytes`, by the application's own count; 1 or more.
    pub schema: u32,
    /// What the next process has to know. They go through a file in memory (memfd_create(2)).
    pub bytes: Vec<u8>,
    /// Whatever belongs to it, at most
    /// [`STATE_DESCRIPTORS`](crate::STATE_DESCRIPTORS): sockets, files, files in memory. Both
    /// processes share their flags and positions (open(2)).
    pub descriptors: Vec<OwnedFd>,
}

impl HandedOver {
    /// State without descriptors.
    #[must_use]
    pub fn new(schema: u32, bytes: Vec<u8>) -> Self {
        Self { schema, bytes, descriptors: Vec::new() }
    }

    /// The same with these descriptors.
    #[must_use]
    pub fn with(self, descriptors: Vec<OwnedFd>) -> Self {
        Self { descriptors, ..self }
    }

    /// A file in memory of the bytes, and the descriptors behind it.
    pub(crate) fn into_descriptors(self) -> io::Result<Vec<OwnedFd>> {
        let mut descriptors = vec![file_of(&self.bytes)?];
        descriptors.extend(self.descriptors);
        Ok(descriptors)
    }

    /// The other way round. May take as long as so many bytes take to be copied.
    pub(crate) fn from_descriptors(schema: u32, descriptors: Vec<OwnedFd>) -> io::Result<Self> {
        let mut descriptors = descriptors.into_iter();
        let first = descriptors.next().ok_or(io::ErrorKind::InvalidData)?;
        let bytes = bytes_of(first, u64::MAX)?;
        Ok(Self { schema, bytes, descriptors: descriptors.collect() })
    }
}

/// A file in memory of these bytes.
pub(crate) fn file_of(bytes: &[u8]) -> io::Result<OwnedFd> {
    let mut file = File::from(memfd_create(c"tablecloth-state", MFdFlags::MFD_CLOEXEC)?);
    file.write_all(bytes)?;
    Ok(file.into())
}

/// The other way round, of a file with at most so many.
pub(crate) fn bytes_of(file: OwnedFd, most: u64) -> io::Result<Vec<u8>> {
    let (mut file, mut bytes) = (File::from(file), Vec::new());
    if file.metadata()?.len() > most {
        return Err(io::Error::other(format!("there are more than {most} bytes")));
    }
    file.rewind()?;
    file.read_to_end(&mut bytes)?;
    Ok(bytes)
}
