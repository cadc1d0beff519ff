//! Whom a process that was started as root becomes, for good.

use std::ffi::CString;
use std::fs;

use nix::errno::Errno;
use nix::sys::prctl;
use nix::unistd::{
    Gid, Group, Uid, User as Entry, getresgid, getresuid, initgroups, setgroups, setresgid,
    setresuid,
};

use crate::error::Error;
use crate::sys;

/// A user with a group, who are there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct User {
    /// As it was asked for.
    text: String,
    /// Whose further groups are to be taken, if the system knows the user.
    name: Option<CString>,
    user: Uid,
    group: Gid,
}

impl User {
    /// `USER` or `USER:GROUP`, each by name or number. A number that the system has no entry for needs its group: a
    /// container from scratch has no such file as passwd(5).
    pub(crate) fn find(text: &str) -> Result<Self, Error> {
        let refuse = |reason: String| Error::User { text: text.into(), reason };
        let failed = |errno: Errno| refuse(format!("look it up: {}", std::io::Error::from(errno)));
        let (user, group) = match text.split_once(':') {
            Some((user, group)) => (user, Some(group)),
            None => (text, None),
        };
        let number = user.parse().ok().map(Uid::from_raw);
        let entry = match number {
            Some(number) => Entry::from_uid(number).ok().flatten(),
            None => Entry::from_name(user).map_err(failed)?,
        };
        let id = entry.as_ref().map(|entry| entry.uid).or(number);
        let id = id.ok_or_else(|| refuse(format!("there is no user {user:?}")))?;
        let group = match (group, &entry) {
            (Some(group), _) => match group.parse() {
                Ok(number) => Gid::from_raw(number),
                Err(_) => {
                    Group::from_name(group)
                        .map_err(failed)?
                        .ok_or_else(|| refuse(format!("there is no group {group:?}")))?
                        .gid
                }
            },
            (None, Some(entry)) => entry.gid,
            (None, None) => {
                let reason = "the system does not know its group: say it, as in USER:GROUP";
                return Err(refuse(reason.into()));
            }
        };
        if id.is_root() || id.as_raw() == u32::MAX || group.as_raw() == u32::MAX {
            return Err(refuse("it has to be a user without privileges".into()));
        }
        let name = entry.and_then(|entry| CString::new(entry.name).ok());
        Ok(Self { text: text.into(), name, user: id, group })
    }

    pub(crate) fn user(&self) -> u32 {
        self.user.as_raw()
    }

    pub(crate) fn group(&self) -> u32 {
        self.group.as_raw()
    }

    /// Whether this process is that user in every respect, as a successor is.
    pub(crate) fn is_own(&self) -> bool {
        let user = |ids: nix::unistd::ResUid| [ids.real, ids.effective, ids.saved];
        getresuid().is_ok_and(|ids| user(ids) == [self.user; 3])
    }

    /// Becomes it, with all threads, and has no way back: groups, user and group, real, effective and saved, and no
    /// capability (credentials(7), capabilities(7)). What was checked is the kernel's answer, not what was asked for.
    pub(crate) fn become_it(&self) -> Result<(), Error> {
        let refuse = |reason: String| Error::User { text: self.text.clone(), reason };
        let failed = |step: &'static str| {
            move |errno: Errno| format!("{step}: {}", std::io::Error::from(errno))
        };
        if !self.is_own() {
            let was = getresuid().map_or(0, |ids| ids.effective.as_raw());
            let hint = |reason: String| match was {
                0 => refuse(reason),
                was => refuse(format!("{reason}; this process is user {was}, and no longer root")),
            };
            // The kernel takes the capabilities of a process that ceases to be root, unless it was told not to
            // (SECBIT_KEEP_CAPS).
            let _ = prctl::set_keepcaps(false);
            let groups = match &self.name {
                Some(name) => initgroups(name, self.group),
                None => setgroups(&[self.group]),
            };
            groups.map_err(failed("set its groups")).map_err(hint)?;
            let (user, group) = (self.user, self.group);
            setresgid(group, group, group).map_err(failed("set its group")).map_err(hint)?;
            setresuid(user, user, user).map_err(failed("set the user")).map_err(hint)?;
        }
        sys::drop_capabilities().map_err(|error| refuse(format!("drop capabilities: {error}")))?;
        self.check().map_err(refuse)
    }

    fn check(&self) -> Result<(), String> {
        let group = |ids: nix::unistd::ResGid| [ids.real, ids.effective, ids.saved];
        let is_group = getresgid().is_ok_and(|ids| group(ids) == [self.group; 3]);
        if !self.is_own() || !is_group {
            return Err("the system says that it is somebody else".into());
        }
        let root = Uid::from_raw(0);
        if setresuid(root, root, root).is_ok() {
            return Err("it can become root again".into());
        }
        // Each thread has capabilities of its own, and what is in one of them is in the process.
        let tasks = fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
        for status in tasks.filter_map(|task| fs::read_to_string(task.path().join("status")).ok()) {
            for line in status.lines() {
                let Some((name @ ("CapPrm" | "CapEff" | "CapAmb"), mask)) = line.split_once(':')
                else {
                    continue;
                };
                if mask.trim().bytes().any(|digit| digit != b'0') {
                    return Err(format!("a thread has capabilities left: {name} {}", mask.trim()));
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_found_by_name_and_by_number_and_root_is_none() {
        let nobody = User::find("nobody").expect("there is one");
        assert_eq!(nobody.user(), 65534);
        assert_eq!(User::find("65534").expect("the same").user(), 65534);
        let unknown = User::find("54321:12345").expect("numbers");
        assert_eq!((unknown.user(), unknown.group(), &unknown.name), (54321, 12345, &None));
        for (text, reason) in [
            ("54321", "say it, as in USER:GROUP"),
            ("no such user", "there is no user"),
            ("nobody:no such group", "there is no group"),
            ("root", "without privileges"),
            ("0:0", "without privileges"),
            ("", "there is no user"),
        ] {
            let error = User::find(text).expect_err("refused").to_string();
            assert!(error.contains(reason), "{error}");
        }
    }
}
