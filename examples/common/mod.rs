//! What the example servers share: flags, and a log that looks like the reference's.

pub(crate) mod logging;
pub(crate) mod options;
