//! Files that an init has opened for all of its servers: told by a variable, inherited by number.

use std::ffi::{CString, OsStr};
use std::fmt::Write;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use crate::error::Error;
use crate::limits;
use crate::sys;
use crate::wire::{Entry, Kind, SHARED_VARIABLE};

/// The assignment that tells a server of these files. `None` if there are none.
pub(crate) fn assignment(files: &[(String, OwnedFd)]) -> io::Result<Option<CString>> {
    if files.is_empty() {
        return Ok(None);
    }
    let mut text = format!("{SHARED_VARIABLE}=");
    for (place, (name, fd)) in files.iter().enumerate() {
        let is_odd = |char: char| char.is_control() || char == ':' || char == ',';
        if name.is_empty() || name.len() > limits::NAME_BYTES || name.contains(is_odd) {
            let reason = format!("{name:?} is no name for a file that servers share");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, reason));
        }
        let comma = if place > 0 { "," } else { "" };
        // Writing to a string does not fail.
        let _ = write!(text, "{comma}{}:{name}", fd.as_raw_fd());
    }
    Ok(Some(CString::new(text)?))
}

/// The files that the init of this process has opened, if it has one. The variable is taken out of the
/// environment in any case: a successor has them from its predecessor.
pub(crate) fn take(is_first: bool) -> Result<Vec<(Entry, OwnedFd)>, Error> {
    let Some(said) = sys::take_variable(SHARED_VARIABLE).filter(|_| is_first) else {
        return Ok(Vec::new());
    };
    let failed = Error::system("adopt what the init has opened");
    let files = parse(&said).ok_or_else(|| {
        let reason = format!("{SHARED_VARIABLE} is {said:?}, and no list of files");
        failed(io::Error::new(io::ErrorKind::InvalidData, reason))
    })?;
    let adopt = |(number, name): (RawFd, String)| {
        let fd = sys::adopt(number).map_err(&failed)?;
        Ok((Entry { name, kind: Kind::File, asked: String::new(), file: None }, fd))
    };
    files.into_iter().map(adopt).collect()
}

fn parse(said: &OsStr) -> Option<Vec<(RawFd, String)>> {
    let one = |text: &str| {
        let (number, name) = text.split_once(':')?;
        // Standard input, output and error are nobody's to give away.
        let number = number.parse().ok().filter(|number| *number > 2)?;
        Some((number, name.to_owned()))
    };
    said.to_str()?.split(',').map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_is_what_is_read() {
        let open = || OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
        let files = [("keys".to_owned(), open()), ("a b".to_owned(), open())];
        let told = assignment(&files).unwrap().unwrap().into_string().unwrap();
        let said = told.strip_prefix(&format!("{SHARED_VARIABLE}=")).unwrap();
        let expected = files.iter().map(|(name, fd)| (fd.as_raw_fd(), name.clone())).collect();
        assert_eq!(parse(said.as_ref()), Some(expected));
        assert!(assignment(&[]).unwrap().is_none());
        for name in ["", "a:b", "a,b", "a\nb", &"x".repeat(limits::NAME_BYTES + 1)] {
            assert!(assignment(&[(name.to_owned(), open())]).is_err(), "{name:?}");
        }
        for said in ["", "x", "3", "x:y", "2:y", "-1:y", "3:y,,4:z"] {
            assert_eq!(parse(said.as_ref()), None, "{said:?}");
        }
    }
}
