//! The programs that are measured: the examples, and one that does nothing.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::failed;

/// Builds an example as `cargo bench` builds the benches: optimised, into the same target
/// directory. That is fast where nothing has changed.
pub(crate) fn example(name: &str) -> Result<PathBuf, String> {
    let own = std::env::current_exe().map_err(failed("find this program"))?;
    // TARGET/release/deps/BENCH-HASH
    let release = own.ancestors().nth(2).ok_or("this program is not where cargo puts it")?;
    let target = release.parent().ok_or("this program is not where cargo puts it")?;
    let built = Command::new(env!("CARGO"))
        .args(["build", "--quiet", "--release", "--example", name, "--target-dir"])
        .arg(target)
        .arg("--manifest-path")
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml"))
        .status()
        .map_err(failed("run cargo"))?;
    if !built.success() {
        return Err(format!("example {name} cannot be built"));
    }
    Ok(target.join("release/examples").join(name))
}

/// Compiles `fn main() {}` into a directory: the least that spawning a Rust program can cost.
pub(crate) fn empty(directory: &Path) -> Result<PathBuf, String> {
    let (source, program) = (directory.join("empty.rs"), directory.join("empty"));
    fs::write(&source, "fn main() {}\n").map_err(failed(source.display()))?;
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let compiled = Command::new(rustc)
        .args(["--edition=2024", "-O", "-o"])
        .args([&program, &source])
        .stdin(Stdio::null())
        .status()
        .map_err(failed("run rustc"))?;
    if compiled.success() { Ok(program) } else { Err("fn main() {} cannot be compiled".into()) }
}
