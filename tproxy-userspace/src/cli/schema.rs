//! `schema`: what a configuration may hold, for editors and other programs.

use std::process::ExitCode;

use anyhow::{Context, Result};
use tproxy_userspace::config::schema as of_configuration;

use super::output;

/// Prints the JSON Schema of the configuration.
pub fn schema() -> Result<ExitCode> {
    let text = serde_json::to_string_pretty(&of_configuration()).context("making the schema")?;
    output::text_out(&format!("{text}\n"))?;
    Ok(ExitCode::SUCCESS)
}
