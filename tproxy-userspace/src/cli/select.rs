//! `select`: which member a group takes.

use std::process::ExitCode;

use anyhow::Result;
use tproxy_userspace::control::place::Place;
use tproxy_userspace::observe::socket::Request;

use super::asking::asked;
use super::output;
use super::status::PATIENCE;

pub fn select(group: &str, member: &str) -> Result<ExitCode> {
    let place = Place::current()?;
    let request = Request::Select {
        group: group.to_owned(),
        member: member.to_owned(),
    };
    let doing = format!("choosing \"{member}\" in the group \"{group}\"");
    asked(&place, &doing, &request, PATIENCE)?;
    output::text_out(&format!("{group} takes {member} from now on\n"))?;
    Ok(ExitCode::SUCCESS)
}
