//! `completions` and `man`: the command line as shells and readers of manual pages want it.

use std::fs;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::CommandFactory;
use clap_complete::Shell;
use clap_mangen::Man;

use super::{Cli, output};

const PROGRAM: &str = "tproxy-bpf";

/// Prints what a shell reads to complete words of the command line.
pub fn completions(shell: Shell) -> Result<ExitCode> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), PROGRAM, &mut script);
    output::text_out(&String::from_utf8_lossy(&script))?;
    Ok(ExitCode::SUCCESS)
}

/// Prints the manual page, or writes one for each command into a folder.
pub fn man(folder: Option<&Path>) -> Result<ExitCode> {
    let mut command = Cli::command();
    command.build();
    match folder {
        None => output::text_out(&page(&command)?)?,
        Some(folder) => {
            fs::create_dir_all(folder)
                .with_context(|| format!("making the folder {}", folder.display()))?;
            write_all(&command, folder)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// One page for a command, and one for each below it: `tproxy-bpf.1`, `tproxy-bpf-bypass-add.1`.
fn write_all(command: &clap::Command, folder: &Path) -> Result<()> {
    let name = command.get_display_name().unwrap_or(command.get_name());
    let path = folder.join(format!("{name}.1"));
    fs::write(&path, page(command)?).with_context(|| format!("writing {}", path.display()))?;
    for below in told_below(command) {
        write_all(below, folder)?;
    }
    Ok(())
}

/// The commands below a command that a person is told of. `help`, which every one has, is told once.
fn told_below(command: &clap::Command) -> impl Iterator<Item = &clap::Command> {
    let all = command.get_subcommands();
    all.filter(|one| !one.is_hide_set() && one.get_name() != "help")
}

fn page(command: &clap::Command) -> Result<String> {
    let mut page = Vec::new();
    Man::new(command.clone())
        .render(&mut page)
        .context("making the manual page")?;
    Ok(String::from_utf8_lossy(&page).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(command: &clap::Command, into: &mut Vec<String>) {
        for below in told_below(command) {
            into.push(below.get_display_name().unwrap_or_default().to_owned());
            names(below, into);
        }
    }

    /// What the page of the documentation says of a command, and of those below it.
    fn reference(command: &clap::Command, into: &mut String) {
        use std::fmt::Write as _;
        let name = command.get_display_name().unwrap_or(command.get_name());
        let words = name.replacen("tproxy-bpf-", "tproxy-bpf ", 1);
        let parents = ["bypass", "exempt"];
        let words = parents.iter().fold(words, |words, parent| {
            words.replace(&format!(" {parent}-"), &format!(" {parent} "))
        });
        let text = |text: Option<&clap::builder::StyledStr>| {
            let text = text.map(ToString::to_string).unwrap_or_default();
            // What stands in angle brackets would be HTML.
            text.replace('<', "\\<")
        };
        let usage = command.clone().render_usage().to_string();
        let usage = usage.trim_start_matches("Usage: ");
        let _ = writeln!(into, "\n## {words}\n");
        let about = command.get_long_about().or(command.get_about());
        let _ = writeln!(into, "{}\n\n```text\n{usage}\n```", text(about));
        let mut rows = String::new();
        for one in command.get_arguments().filter(|one| !one.is_hide_set()) {
            if ["help", "version"].contains(&one.get_id().as_str()) {
                continue;
            }
            let help = one.get_long_help().or(one.get_help());
            let help = text(help).replace('\n', " ").replace('|', "\\|");
            let shown = one.to_string().replace('|', "\\|");
            let short = one.get_short().map(|short| format!("`-{short}`, "));
            let short = short.unwrap_or_default();
            let _ = writeln!(rows, "| {short}`{shown}` | {help} |");
        }
        if !rows.is_empty() {
            let _ = write!(into, "\n| argument | |\n|---|---|\n{rows}");
        }
        for below in told_below(command) {
            reference(below, into);
        }
    }

    const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/commands.md");
    /// Behind this the page is made.
    const MADE: &str = "<!-- made by `cargo test -p tproxy-userspace -- --ignored write_the_page_of_commands` -->\n";

    fn made() -> String {
        let mut command = Cli::command();
        command.build();
        let mut text = String::new();
        for below in told_below(&command) {
            reference(below, &mut text);
        }
        text
    }

    #[test]
    fn the_page_of_commands_has_every_command_and_argument() {
        let page = fs::read_to_string(PAGE).expect("it is in the repository");
        let (_, found) = page
            .split_once(MADE)
            .expect("the line that it is made behind");
        let made = made();
        for line in made.lines() {
            assert!(
                found.contains(line),
                "docs/commands.md is out of step: it has no line {line:?}; {}",
                MADE.trim()
            );
        }
        assert_eq!(found, made, "{}", MADE.trim());
        assert!(made.contains("\n## tproxy-bpf bypass add\n") && made.contains("`--ttl <TIME>`"));
    }

    #[test]
    #[ignore = "writes into the source tree; run it by hand when commands change"]
    fn write_the_page_of_commands() {
        let page = fs::read_to_string(PAGE).expect("it is in the repository");
        let (head, _) = page
            .split_once(MADE)
            .expect("the line that it is made behind");
        fs::write(PAGE, format!("{head}{MADE}{}", made())).expect("it can be written");
    }

    #[test]
    fn each_command_has_a_page_and_a_completion() {
        let mut command = Cli::command();
        command.build();
        let mut all = Vec::new();
        names(&command, &mut all);
        assert!(all.contains(&"tproxy-bpf-bypass-add".to_owned()), "{all:?}");
        let folder = std::env::temp_dir().join(format!("tproxy-bpf-man-{}", std::process::id()));
        fs::create_dir_all(&folder).expect("a folder");
        let written = write_all(&command, &folder);
        let pages: Vec<_> = all
            .iter()
            .map(|name| fs::read_to_string(folder.join(format!("{name}.1"))))
            .collect();
        fs::remove_dir_all(&folder).expect("it was made");
        written.expect("written");
        for (name, page) in all.iter().zip(pages) {
            let page = page.expect(name);
            assert!(page.contains(&format!(".TH {name} ")), "{page}");
        }
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), PROGRAM, &mut script);
            let script = String::from_utf8(script).expect("text");
            for word in ["bypass", "select", "on-proxy-down"] {
                assert!(script.contains(word), "{shell} knows no {word}");
            }
        }
    }
}
