//! `select`: which member a group takes.

use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use tproxy_userspace::control::place::Place;
use tproxy_userspace::observe::socket::{Request, ask};

use super::output;
use super::status::PATIENCE;

pub fn select(group: &str, member: &str) -> Result<ExitCode> {
    let place = Place::current()?;
    let doing = || format!("choosing \"{member}\" in the group \"{group}\"");
    if place.proxy_pid().is_none() {
        bail!(
            "{} failed: no proxy runs here; start one with `tproxy-bpf run`",
            doing()
        );
    }
    let request = Request::Select {
        group: group.to_owned(),
        member: member.to_owned(),
    };
    let answer = ask(&place.control_socket(), &request, PATIENCE).with_context(doing)?;
    if let Some(error) = answer["error"].as_str() {
        bail!("{} failed: {error}", doing());
    }
    output::text_out(&format!("{group} takes {member} from now on\n"))?;
    Ok(ExitCode::SUCCESS)
}
