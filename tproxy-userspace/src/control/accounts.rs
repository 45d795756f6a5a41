//! Users and groups by name and number.
//!
//! The C library's own look-up loads the modules that `/etc/nsswitch.conf` names, which a statically linked program
//! cannot do: with glibc it dies of it. So the files are read here, and all else is asked of `getent`, which the
//! machine's own C library comes with.

use std::fs;
use std::io::{self, ErrorKind};
use std::process::{Command, Stdio};

/// What `getent` ends with when it does not find the key.
const NOT_FOUND: i32 = 2;

/// What is looked up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accounts {
    /// Users.
    Users,
    /// Groups.
    Groups,
}

/// A user by numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct User {
    /// The user.
    pub uid: u32,
    /// The group that it has by itself.
    pub gid: u32,
}

impl Accounts {
    /// As `getent` calls them, and the file in `/etc`.
    const fn word(self) -> &'static str {
        match self {
            Self::Users => "passwd",
            Self::Groups => "group",
        }
    }

    /// The number of a name; none if nobody has the name.
    ///
    /// # Errors
    /// The file cannot be read, or `getent` fails.
    pub fn id(self, name: &str) -> io::Result<Option<u32>> {
        let found = self.line(name, |entry| entry.name == name)?;
        Ok(found.and_then(|line| Some(Entry::read(&line)?.id)))
    }

    /// The user of a name or a number.
    ///
    /// # Errors
    /// As [`Self::id`].
    pub fn user(name: &str) -> io::Result<Option<User>> {
        let id = name.parse();
        let is_it = |entry: &Entry<'_>| entry.name == name || Ok(entry.id) == id;
        let found = Self::Users.line(name, is_it)?;
        Ok(found.and_then(|line| {
            let gid = line.split(':').nth(3)?.parse().ok()?;
            let uid = Entry::read(&line)?.id;
            Some(User { uid, gid })
        }))
    }

    /// The name of a number; none if it has none.
    ///
    /// # Errors
    /// As [`Self::id`].
    pub fn name(self, id: u32) -> io::Result<Option<String>> {
        let found = self.line(&id.to_string(), |entry| entry.id == id)?;
        Ok(found.and_then(|line| Some(Entry::read(&line)?.name.to_owned())))
    }

    fn line(self, key: &str, is_it: impl Fn(&Entry<'_>) -> bool) -> io::Result<Option<String>> {
        let text = match fs::read(format!("/etc/{}", self.word())) {
            Err(error) if error.kind() == ErrorKind::NotFound => Vec::new(),
            text => text?,
        };
        if let Some(line) = find(&String::from_utf8_lossy(&text), is_it) {
            return Ok(Some(line.to_owned()));
        }
        Ok(getent(self.word(), key)?.and_then(|text| text.lines().next().map(str::to_owned)))
    }
}

/// The first line that `is_it`.
fn find(text: &str, is_it: impl Fn(&Entry<'_>) -> bool) -> Option<&str> {
    text.lines()
        .find(|line| Entry::read(line).is_some_and(|entry| is_it(&entry)))
}

/// A line of either file begins with `name:password:number`.
struct Entry<'l> {
    name: &'l str,
    id: u32,
}

impl<'l> Entry<'l> {
    fn read(line: &'l str) -> Option<Self> {
        let mut fields = line.split(':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        let id = fields.nth(1)?.parse().ok()?;
        Some(Self { name, id })
    }
}

/// What the machine's own look-up says: `getent DATABASE KEY`. None if it does not know the key, or the machine has no
/// `getent`.
///
/// # Errors
/// It cannot be started, or fails.
pub fn getent(database: &str, key: &str) -> io::Result<Option<String>> {
    // It would be taken for an option.
    if key.starts_with('-') {
        return Ok(None);
    }
    let mut command = Command::new("getent");
    command.args([database, key]).stdin(Stdio::null());
    let output = match command.stderr(Stdio::null()).output() {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        output => output?,
    };
    match output.status.code() {
        Some(0) => Ok(Some(String::from_utf8_lossy(&output.stdout).into_owned())),
        Some(NOT_FOUND) => Ok(None),
        _ => Err(io::Error::other(format!(
            "`getent {database}` ended with {}",
            output.status
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "# a comment\nroot:x:0:0:root:/root:/bin/sh\n+@netgroup:::::\nbroken\n:x:7:7::/:\n\
                        alice:x:4711:100::/:/bin/sh\nbad:x:-1:0::/:\nalice:x:1:1::/:\n";

    #[test]
    fn lines_are_found_by_name_and_number() {
        let by_name = |name: &str| Some(Entry::read(find(FILE, |entry| entry.name == name)?)?.id);
        let by_id = |id: u32| Some(Entry::read(find(FILE, |entry| entry.id == id)?)?.name);
        assert_eq!(by_name("root"), Some(0));
        // The first counts, as for the C library.
        assert_eq!(by_name("alice"), Some(4711));
        assert_eq!(by_id(4711), Some("alice"));
        for nobody in ["", "bad", "broken", "x", "# a comment"] {
            assert_eq!(by_name(nobody), None, "{nobody}");
        }
        assert_eq!(by_id(7), None);
    }

    #[test]
    fn this_machine_has_a_root_and_no_such_user() {
        let root = Some(User { uid: 0, gid: 0 });
        assert_eq!(Accounts::user("root").unwrap(), root);
        assert_eq!(Accounts::user("0").unwrap(), root);
        assert_eq!(Accounts::user("no-such-name-here").unwrap(), None);
        for accounts in [Accounts::Users, Accounts::Groups] {
            assert_eq!(accounts.id("root").unwrap(), Some(0));
            assert_eq!(accounts.name(0).unwrap().as_deref(), Some("root"));
            assert_eq!(accounts.id("no-such-name-here").unwrap(), None);
            assert_eq!(accounts.name(u32::MAX - 7).unwrap(), None);
        }
    }
}
