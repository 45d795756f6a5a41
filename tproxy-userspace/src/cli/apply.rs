//! `apply` and `confirm`: a configuration that comes into force while the proxy runs and, on trial, goes again by itself.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;
use tproxy_userspace::config::{Config, parse_duration};
use tproxy_userspace::control::place::Place;
use tproxy_userspace::observe::socket::Request;

use super::asking::asked;
use super::output;
use super::status::PATIENCE;

/// How long servers may be looked up and lists be read.
const APPLY_PATIENCE: Duration = Duration::from_secs(60);
/// What a configuration is kept as when another one takes its place.
const BEFORE: &str = "before";

/// Puts the configuration of a file into force.
pub fn apply(file: &Path, confirm: Option<&str>) -> Result<ExitCode> {
    let confirm = confirm
        .map(parse_duration)
        .transpose()
        .context("--confirm")?;
    if confirm.is_some_and(|time| time.is_zero()) {
        bail!("--confirm: in no time nobody can confirm anything; leave it out to apply for good");
    }
    // What is wrong with it is said with its own name.
    Config::load(file)?;
    let text = read(file)?;
    let place = Place::current()?;
    let path = fs::canonicalize(file).with_context(|| format!("finding {}", file.display()))?;
    let request = Request::Apply {
        text,
        path: path.clone(),
        confirm_seconds: confirm.map(|time| time.as_secs().max(1)),
    };
    let doing = format!("applying {}", file.display());
    let answer = asked(&place, &doing, &request, APPLY_PATIENCE)?;
    let Some(time) = confirm else {
        keep(&answer, &path)?;
        return Ok(ExitCode::SUCCESS);
    };
    let time = output::duration(time);
    output::text_out(&format!(
        "in force for {time}; `tproxy-bpf confirm` keeps it, and without that the configuration before comes back\n"
    ))?;
    Ok(ExitCode::SUCCESS)
}

/// Keeps the configuration that is on trial.
pub fn confirm() -> Result<ExitCode> {
    let place = Place::current()?;
    let answer = asked(&place, "confirming", &Request::Confirm, PATIENCE)?;
    let from = answer["from"].as_str().context("the proxy names no file")?;
    keep(&answer, Path::new(from))?;
    Ok(ExitCode::SUCCESS)
}

/// Makes the text in force the proxy's configuration file, which a restart reads.
fn keep(answer: &Value, from: &Path) -> Result<()> {
    let text = answer["text"].as_str().context("the proxy gives no text")?;
    let Some(file) = answer["file"].as_str() else {
        return output::text_out(
            "in force until the proxy ends: it was started without a configuration file\n",
        );
    };
    let file = Path::new(file);
    let is_same = fs::canonicalize(file).is_ok_and(|file| file == from);
    if is_same && read(file)? == text {
        return output::text_out(&format!("in force, as in {}\n", file.display()));
    }
    let before = with_suffix(file, BEFORE);
    replace(file, &before, text).with_context(|| {
        format!(
            "it is in force, but writing it to {} failed, so a restart would bring the configuration before",
            file.display()
        )
    })?;
    output::text_out(&format!(
        "in force, and written to {}; what was there is in {}\n",
        file.display(),
        before.display()
    ))
}

/// Replaces a file at once. What was there, if anything, is kept beside it.
fn replace(file: &Path, before: &Path, text: &str) -> io::Result<()> {
    let permissions = match fs::metadata(file) {
        Ok(metadata) => metadata.permissions(),
        // It may hold passwords.
        Err(_) => fs::Permissions::from_mode(0o600),
    };
    let new = with_suffix(file, "new");
    let write = || {
        let mut out = File::create(&new)?;
        out.set_permissions(permissions)?;
        out.write_all(text.as_bytes())?;
        out.sync_all()?;
        match fs::copy(file, before) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        fs::rename(&new, file)
    };
    // Half of it would take the room that there is too little of.
    write().inspect_err(|_| drop(fs::remove_file(&new)))
}

fn with_suffix(file: &Path, suffix: &str) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(".");
    name.push(suffix);
    name.into()
}

fn read(file: &Path) -> Result<String> {
    let mut text = String::new();
    File::open(file)
        .and_then(|mut file| file.read_to_string(&mut text))
        .with_context(|| format!("reading {}", file.display()))?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_with_its_permissions_and_the_old_one_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("config.toml");
        let before = with_suffix(&file, BEFORE);
        assert_eq!(before, folder.path().join("config.toml.before"));
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        replace(&file, &before, "one").unwrap();
        assert_eq!((read(&file).unwrap().as_str(), mode(&file)), ("one", 0o600));
        assert!(!before.exists());
        fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
        replace(&file, &before, "two").unwrap();
        assert_eq!((read(&file).unwrap().as_str(), mode(&file)), ("two", 0o640));
        assert_eq!(read(&before).unwrap(), "one");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
    }
}
