//! What the example servers share: flags, a log that looks like the reference's, and descriptors.

pub(crate) mod ctl;
pub(crate) mod descriptors;
pub(crate) mod init;
pub(crate) mod logging;
pub(crate) mod options;
pub(crate) mod output;
#[allow(dead_code, reason = "the proxy takes the last part of it")]
pub(crate) mod program;
