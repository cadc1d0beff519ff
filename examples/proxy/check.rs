//! `--check`: what is wrong with the routes, and with what stands beside them.

use std::path::Path;

use tablecloth::{Address, Config};

use super::common::options::owner;
use super::common::{logging, output};
use super::file;
use super::options::Options;
use super::routes::{self, Route};

/// Says what is wrong with the routes, and with where they listen, without using any of it.
pub(crate) fn check(mut options: Options) -> Result<(), String> {
    let written = match options.file.take() {
        Some(file) => file::read(&file, &mut options),
        None => file::of_flags(&options),
    };
    let written = written?;
    check_common(&options.common.config)?;
    // Names that are not known are told.
    logging::start_buffered(options.common.log_level)?;
    logging::go();
    let routes = routes::make(written)?;
    let mut seen: Vec<(Address, &str)> = Vec::new();
    if let Some(admin) = &options.common.config.admin {
        let address = Address::resolve(admin).map_err(|error| format!("admin: {error}"))?;
        seen.extend(address.into_iter().next().map(|address| (address, "the admin endpoint")));
    }
    let others = seen.len();
    for Route { place, listen, .. } in &routes {
        let address = Address::resolve(listen).map_err(|error| format!("{place}: {error}"))?;
        let Some(address) = address.into_iter().next() else { continue };
        if let Some((_, first)) = seen.iter().find(|(other, _)| cover(other, &address)) {
            return Err(format!("{place}: {listen} is listened on already, by {first}"));
        }
        if let Address::Path(path) = &address {
            is_place_for(path).map_err(|error| format!("{place}: {listen}: {error}"))?;
        }
        seen.push((address, place));
    }
    for Route { place, listen, settings, .. } in &routes {
        settings.extra.check().map_err(|error| format!("{place}: {listen}: {error}"))?;
    }
    for (route, (address, _)) in routes.iter().zip(&seen[others..]) {
        if let Some(upstream) = route.leads_to_itself(address) {
            let Route { place, listen, .. } = route;
            return Err(format!("{place}: {listen} leads to itself, by {}", upstream.text));
        }
    }
    if let Some(route) = routes.iter().find(|route| route.upstreams.iter().count() == 0) {
        let Route { place, listen, .. } = route;
        return Err(format!("{place}: {listen} leads nowhere: the name of no upstream is known"));
    }
    let upstreams: usize = routes.iter().map(|route| route.upstreams.iter().count()).sum();
    output::print(&format_args!(
        "{} listening, {upstreams} upstreams: nothing is wrong",
        routes.len()
    ));
    Ok(())
}

/// Whether two sockets cannot have these addresses at the same time.
fn cover(one: &Address, other: &Address) -> bool {
    match (one, other) {
        (Address::Internet(one), Address::Internet(other)) if one.port() == other.port() => {
            let is_any = one.ip().is_unspecified() || other.ip().is_unspecified();
            one.port() != 0 && (one == other || is_any && one.is_ipv4() == other.is_ipv4())
        }
        _ => one == other,
    }
}

/// What is wrong with what all servers have in common, as far as that is found out without starting one.
fn check_common(config: &Config) -> Result<(), String> {
    if let Some(user) = &config.user {
        owner(user).map_err(|error| format!("user {user:?}: {error}"))?;
    }
    if let Some(path) = &config.pid_file {
        is_place_for(path).map_err(|error| format!("pid file {}: {error}", path.display()))?;
    }
    if let Some(admin) = &config.admin {
        let address = Address::resolve(admin).map_err(|error| format!("admin: {error}"))?;
        if let Some(Address::Path(path)) = address.first() {
            is_place_for(path).map_err(|error| format!("admin {admin}: {error}"))?;
        }
    }
    Ok(())
}

/// Whether there is a directory for a file.
fn is_place_for(path: &Path) -> Result<(), String> {
    let directory = match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
        Some(parent) => parent,
        None => return Err("it is a directory".into()),
    };
    match std::fs::metadata(directory) {
        Ok(found) if found.is_dir() => Ok(()),
        Ok(_) => Err(format!("{} is no directory", directory.display())),
        Err(error) => Err(format!("{}: {error}", directory.display())),
    }
}
