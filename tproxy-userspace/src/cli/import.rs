//! `import`: a set-up of iptables with Xray or V2Ray as a configuration.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use tproxy_userspace::import::{Imported, Input, Options};
use tproxy_userspace::policy::source::STANDARD_INPUT;

use super::{ImportArgs, output};

/// Larger files (in bytes) are something else.
const LARGEST: u64 = 32 << 20;

pub fn import(args: &ImportArgs) -> Result<ExitCode> {
    let _: Vec<tproxy_userspace::config::LinkPattern> =
        super::run::parse_patterns(&args.lan).context("--lan")?;
    let inputs = args
        .files
        .iter()
        .map(|path| read(path))
        .collect::<Result<Vec<_>>>()?;
    let options = Options {
        lan: args.lan.clone(),
        lists: args.lists.clone(),
    };
    let Imported { toml, notes } = tproxy_userspace::import::import(&inputs, &options)?;
    output::text_out(&toml)?;
    eprint!("{notes}");
    Ok(ExitCode::SUCCESS)
}

fn read(path: &Path) -> Result<Input> {
    let is_input = path.as_os_str() == STANDARD_INPUT;
    let name = match path.file_name() {
        _ if is_input => "standard input".to_owned(),
        Some(name) => name.to_string_lossy().into_owned(),
        None => path.display().to_string(),
    };
    let mut bytes = Vec::new();
    let reading = if is_input {
        io::stdin().lock().take(LARGEST + 1).read_to_end(&mut bytes)
    } else {
        File::open(path).and_then(|file| file.take(LARGEST + 1).read_to_end(&mut bytes))
    };
    reading.with_context(|| format!("reading {} failed", path.display()))?;
    ensure!(
        bytes.len() as u64 <= LARGEST,
        "{} is larger than {} MiB, so it is no file that is read here",
        path.display(),
        LARGEST >> 20
    );
    Ok(Input { name, bytes })
}
