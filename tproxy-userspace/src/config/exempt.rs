//! Who on the gateway goes direct, as it is written: users and groups, cgroups, marks.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use serde::{Serialize, Serializer};
use tproxy_common::abi::{CGROUP_DEPTH, EXEMPT_TEXT_BYTES, MARK_MASK, MARK_REPLY, MARK_STEER};

use super::Refusal;
use crate::policy::prefix::excerpt;

/// No path is longer (`PATH_MAX`).
const LONGEST_PATH: usize = 4096;
/// As much as `useradd` allows, many times over.
const LONGEST_NAME: usize = 256;
/// Where cgroup file systems are mounted by custom.
const CGROUP_FOLDER: &str = "/sys/fs/cgroup";

/// A user or a group.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum IdOrName {
    /// By number.
    Id(u32),
    /// By name. Never a number.
    Name(String),
}

impl IdOrName {
    /// The largest number: the kernel keeps the one above it for "none" (`INVALID_UID`).
    pub const LARGEST: u32 = u32::MAX - 1;
}

impl FromStr for IdOrName {
    type Err = Refusal;

    /// # Errors
    /// When it is neither a number that the kernel can have nor a name that a system can have.
    fn from_str(text: &str) -> Result<Self, Refusal> {
        const FORM: &str = "write a number, or a name as it stands in /etc/passwd or /etc/group";
        let refuse = |why: &str| Err(Refusal::new(format!("`{}` {why}", excerpt(text)), FORM));
        if text.is_empty() {
            return Err(Refusal::new("there is no number and no name", FORM));
        }
        if text.bytes().all(|byte| byte.is_ascii_digit()) {
            return match text.parse() {
                Ok(id) if id <= Self::LARGEST => Ok(Self::Id(id)),
                _ => Err(Refusal::new(
                    format!("{} is too large for a uid or gid", excerpt(text)),
                    format!("the largest is {}", Self::LARGEST),
                )),
            };
        }
        if text.len() > LONGEST_NAME {
            return refuse("is too long for a name");
        }
        if text.starts_with(['-', '+']) {
            return refuse("is neither a number nor a name");
        }
        if let Some(bad) = text
            .chars()
            .find(|c| matches!(c, ':' | '/' | ',') || c.is_whitespace() || c.is_control())
        {
            return refuse(&format!("holds {bad:?}, which no name can have"));
        }
        Ok(Self::Name(text.to_owned()))
    }
}

impl fmt::Display for IdOrName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Id(id) => id.fmt(f),
            Self::Name(name) => f.write_str(name),
        }
    }
}

impl Serialize for IdOrName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Id(id) => serializer.serialize_u32(*id),
            Self::Name(name) => serializer.serialize_str(name),
        }
    }
}

/// The path of a cgroup, with a slash in front and single ones inside: below the root of cgroup2
/// (`/system.slice/foo.service`), or where it is mounted in front of that.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CgroupPath(String);

impl CgroupPath {
    /// The path as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Its parts from the root on. There is at least one.
    pub fn parts(&self) -> impl Iterator<Item = &str> {
        self.0.split('/').skip(1)
    }

    /// This path below the root of cgroup2, which is mounted at `root`.
    ///
    /// # Errors
    /// When it names the root itself, or something below another file system, or is too long or too deep
    /// to be remembered.
    pub fn below(&self, root: &Path) -> Result<Self, Refusal> {
        let shown = excerpt(&self.0);
        let path = Path::new(&self.0);
        let below = match path.strip_prefix(root) {
            Ok(rest) => format!("/{}", rest.to_string_lossy()).parse::<Self>()?,
            Err(_) if path.starts_with(CGROUP_FOLDER) => {
                return Err(Refusal::new(
                    format!("`{shown}` is not a path of cgroup2"),
                    format!("its paths begin with {}", root.display()),
                ));
            }
            Err(_) => self.clone(),
        };
        if below.0.len() > EXEMPT_TEXT_BYTES {
            return Err(Refusal::new(
                format!("the path `{shown}` is longer than {EXEMPT_TEXT_BYTES} bytes"),
                "exempt a cgroup above it",
            ));
        }
        if below.parts().count() > CGROUP_DEPTH as usize {
            return Err(Refusal::new(
                format!("the cgroup `{shown}` is more than {CGROUP_DEPTH} levels deep"),
                "exempt a cgroup above it",
            ));
        }
        Ok(below)
    }
}

impl FromStr for CgroupPath {
    type Err = Refusal;

    /// # Errors
    /// When no cgroup can have such a path, or it is the root.
    fn from_str(text: &str) -> Result<Self, Refusal> {
        const FORM: &str = "write a path like /system.slice/foo.service";
        let refuse = |why: &str| Err(Refusal::new(format!("`{}` {why}", excerpt(text)), FORM));
        if !text.starts_with('/') {
            return refuse("does not begin with a slash");
        }
        if text.len() > LONGEST_PATH {
            return refuse("is too long for a path");
        }
        if text.contains(char::is_control) {
            return refuse("holds a control character");
        }
        let parts: Vec<&str> = text.split('/').filter(|part| !part.is_empty()).collect();
        if parts.iter().any(|part| matches!(*part, "." | "..")) {
            return refuse("holds `.` or `..`");
        }
        if parts.is_empty() {
            return refuse("is the root, which everything is below");
        }
        Ok(Self(format!("/{}", parts.join("/"))))
    }
}

impl fmt::Display for CgroupPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Serialize for CgroupPath {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

/// A packet mark (`SO_MARK`, `meta mark`): those of its bits that the mask has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mark {
    value: u32,
    mask: u32,
}

impl Mark {
    /// The bits of `mask` being those of `value`.
    ///
    /// # Errors
    /// When it could never match, would match packets without a mark, or those that the proxy itself
    /// marks.
    pub fn new(value: u32, mask: u32) -> Result<Self, Refusal> {
        if mask == 0 {
            return Err(Refusal::new(
                "the mask is 0, so every packet would match",
                "write a mask with the bits that count, or none for all of them",
            ));
        }
        if value & !mask != 0 {
            return Err(Refusal::new(
                format!("{value:#x} has bits that the mask {mask:#x} has not, so nothing matches"),
                "write a mask that has them, or a value without them",
            ));
        }
        if value == 0 {
            return Err(Refusal::new(
                "packets without a mark would match",
                "write a value other than 0",
            ));
        }
        // Our marks leave the bits of others as they are, so only ours are compared.
        let ours = mask & MARK_MASK;
        let matches = |mark: u32| ours != 0 && mark & ours == value & ours;
        if let Some(mark) = [MARK_STEER, MARK_REPLY].into_iter().find(|m| matches(*m)) {
            return Err(Refusal::new(
                format!(
                    "{value:#x}/{mask:#x} could be taken for {mark:#x}, a mark of tproxy-bpf itself"
                ),
                format!("choose one with other bits in {MARK_MASK:#x}, or a mask without them"),
            ));
        }
        Ok(Self { value, mask })
    }

    /// The bits under the mask.
    #[must_use]
    pub const fn value(self) -> u32 {
        self.value
    }

    /// Which bits count. Never 0.
    #[must_use]
    pub const fn mask(self) -> u32 {
        self.mask
    }
}

impl FromStr for Mark {
    type Err = Refusal;

    /// # Errors
    /// When it is not of the form `VALUE` or `VALUE/MASK`, hexadecimal (`0x…`) or decimal; and as [`Mark::new`].
    fn from_str(text: &str) -> Result<Self, Refusal> {
        let number = |part: &str| {
            let (digits, radix) = match part.strip_prefix("0x").or(part.strip_prefix("0X")) {
                Some(digits) => (digits, 16),
                None => (part, 10),
            };
            // `from_str_radix` takes a sign.
            let plain = digits.bytes().all(|byte| byte.is_ascii_hexdigit());
            let number = u32::from_str_radix(digits, radix).ok().filter(|_| plain);
            number.ok_or_else(|| {
                Refusal::new(
                    format!("`{}` is not a number of 32 bits", excerpt(part)),
                    "write a mark like 0x10, 16 or 0x80000/0xff0000",
                )
            })
        };
        match text.split_once('/') {
            Some((value, mask)) => Self::new(number(value)?, number(mask)?),
            None => Self::new(number(text)?, u32::MAX),
        }
    }
}

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.value)?;
        if self.mask == u32::MAX {
            return Ok(());
        }
        write!(f, "/{:#x}", self.mask)
    }
}

impl Serialize for Mark {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tproxy_common::abi::MARK_EXEMPT;

    use super::*;

    #[test]
    fn ids_and_names_are_told_apart() {
        assert_eq!("0".parse(), Ok(IdOrName::Id(0)));
        assert_eq!("4294967294".parse(), Ok(IdOrName::Id(IdOrName::LARGEST)));
        assert_eq!("www-data".parse(), Ok(IdOrName::Name("www-data".into())));
        assert_eq!("0x10".parse(), Ok(IdOrName::Name("0x10".into())));
        for text in [
            "",
            "4294967295",
            "99999999999",
            "-1",
            "+1",
            "a b",
            "a:b",
            "a\n",
        ] {
            assert!(text.parse::<IdOrName>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn paths_of_cgroups_are_put_in_order() {
        for (text, path) in [
            ("/a", "/a"),
            ("//a///b.service/", "/a/b.service"),
            ("/a b", "/a b"),
        ] {
            assert_eq!(text.parse::<CgroupPath>().unwrap().as_str(), path);
        }
        for text in ["", "a", "/", "//", "/a/../b", "/./a", "/a\nb", "a/b"] {
            assert!(text.parse::<CgroupPath>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_path_is_taken_below_the_mount() {
        let below = |text: &str, root: &str| {
            let path: CgroupPath = text.parse().unwrap();
            path.below(Path::new(root)).map(|path| path.0)
        };
        let root = "/sys/fs/cgroup/unified";
        assert_eq!(below("/sys/fs/cgroup/unified/a/b", root).unwrap(), "/a/b");
        assert_eq!(below("/a/b", root).unwrap(), "/a/b");
        assert_eq!(below("/unified/a", root).unwrap(), "/unified/a");
        assert_eq!(below("/cg", "/c").unwrap(), "/cg");
        for wrong in ["/sys/fs/cgroup/unified", "/sys/fs/cgroup/memory/a"] {
            below(wrong, root).unwrap_err();
        }
        let long = format!("/{}", "a".repeat(EXEMPT_TEXT_BYTES - 1));
        assert_eq!(below(&long, root).unwrap(), long);
        below(&format!("{long}a"), root).unwrap_err();
        let deep = "/a".repeat(CGROUP_DEPTH as usize);
        assert_eq!(below(&deep, root).unwrap(), deep);
        below(&format!("{deep}/a"), root).unwrap_err();
        assert_eq!(below(&format!("{root}{deep}"), root).unwrap(), deep);
    }

    #[test]
    fn marks_that_match_too_much_or_nothing_are_refused() {
        for (text, value, mask) in [
            ("0x80000/0xff0000", 0x8_0000, 0xff_0000),
            ("0x10", 0x10, u32::MAX),
            ("255", 255, u32::MAX),
            ("1/1", 1, 1),
            ("0X1/0X0F", 1, 0xf),
            ("0xb0/0xf0", MARK_EXEMPT, MARK_MASK),
        ] {
            assert_eq!(text.parse(), Ok(Mark { value, mask }), "{text}");
        }
        for (text, word) in [
            ("0", "without a mark"),
            ("0/0xff", "without a mark"),
            ("1/0", "every packet"),
            ("0/0", "every packet"),
            ("0x100/0xff", "nothing matches"),
            ("0xa0", "0xa0"),
            ("0x1d0", "0xd0"),
            ("0x80/0x80", "0xa0"),
            ("0x10/0x10", "0xd0"),
            ("0x100/0x110", ""),
            ("0x", "number"),
            ("", "number"),
            ("-1", "number"),
            ("+1", "number"),
            ("0x+1", "number"),
            ("1/", "number"),
            ("1/2/3", "number"),
            ("4294967296", "number"),
            ("0x80000/ff0000", "number"),
        ] {
            match text.parse::<Mark>() {
                Ok(mark) => assert!(word.is_empty(), "{text} became {mark}"),
                Err(refusal) => assert!(refusal.to_string().contains(word), "{text}: {refusal}"),
            }
        }
    }

    proptest! {
        #[test]
        fn what_is_printed_is_read_back(id in 0..u32::MAX, name in "[a-z_][a-z0-9_.-]{0,30}",
            path in "(/[a-z0-9@.-]{3,8}){1,6}", value: u32, mask: u32) {
            for text in [id.to_string(), name] {
                prop_assert_eq!(text.parse::<IdOrName>().unwrap().to_string(), text);
            }
            prop_assert_eq!(path.parse::<CgroupPath>().unwrap().to_string(), path);
            if let Ok(mark) = Mark::new(value & mask, mask) {
                prop_assert_eq!(mark.to_string().parse(), Ok(mark));
            }
        }

        #[test]
        fn no_text_makes_it_panic(text: String, mark in "[0-9a-fx/+-]{0,12}", path in "[/.a-z]{0,20}") {
            for text in [text, mark, path] {
                let _ = text.parse::<IdOrName>();
                let _ = text.parse::<Mark>();
                if let Ok(path) = text.parse::<CgroupPath>() {
                    prop_assert!(path.parts().all(|part| !part.is_empty()));
                    let _ = path.below(Path::new("/sys/fs/cgroup"));
                }
            }
        }

        /// Whatever others put beside our bits.
        #[test]
        fn no_mark_takes_what_is_ours_or_unmarked(value: u32, mask: u32, others: u32) {
            if let Ok(mark) = Mark::new(value & mask, mask) {
                let hits = |packet: u32| packet & mark.mask() == mark.value();
                prop_assert!(!hits(0));
                if mask & MARK_MASK != 0 {
                    for ours in [MARK_STEER, MARK_REPLY] {
                        prop_assert!(!hits(others & !MARK_MASK | ours));
                    }
                }
            }
        }
    }
}
