//! Files with passwords or tokens that others than their owner can read.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use super::{Facts, Finding, Subject};
use crate::config;

/// Everybody may read it.
const OTHERS_READ: u32 = 0o004;

/// Looks at the files. One that cannot be read tells nothing.
pub(super) fn gather(subject: &Subject) -> Vec<(PathBuf, u32)> {
    let holds = |file: &&PathBuf| {
        let text = fs::read(file).unwrap_or_default();
        config::holds_secret(&String::from_utf8_lossy(&text))
    };
    let files = subject.file.iter().filter(holds).chain(&subject.token_file);
    let modes =
        files.filter_map(|file| Some((file.clone(), fs::metadata(file).ok()?.mode() & 0o777)));
    modes.filter(|(_, mode)| mode & OTHERS_READ != 0).collect()
}

/// Judges.
pub(super) fn check(facts: &Facts) -> Vec<Finding> {
    const CHECK: &str = "secrets";
    if facts.exposed.is_empty() {
        return vec![Finding::ok(
            CHECK,
            "no file with passwords is for everybody to read",
        )];
    }
    let exposed = facts.exposed.iter().map(|(file, mode)| {
        let file = file.display();
        Finding::problem(CHECK, format!("{file} has the mode {mode:03o}"))
            .because("every user of this machine can read the passwords or the token in it")
            .remedy(format!("chmod o= {file}"))
    });
    exposed.collect()
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn only_files_with_secrets_that_others_can_read_are_told() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("config.toml");
        let token = folder.path().join("token");
        let subject = Subject {
            file: Some(file.clone()),
            token_file: Some(token.clone()),
            ..Subject::default()
        };
        let mode =
            |file: &PathBuf, mode| fs::set_permissions(file, Permissions::from_mode(mode)).unwrap();
        fs::write(&token, "0123456789").unwrap();
        mode(&token, 0o600);
        fs::write(&file, "stage = 2\n").unwrap();
        mode(&file, 0o644);
        assert_eq!(gather(&subject), []);
        fs::write(&file, "[[outbound]]\nurl = \"socks5://me:hunter2@h:1\"\n").unwrap();
        assert_eq!(gather(&subject), [(file.clone(), 0o644)]);
        mode(&file, 0o640);
        assert_eq!(gather(&subject), []);
        mode(&token, 0o604);
        assert_eq!(gather(&subject), [(token, 0o604)]);
    }
}
