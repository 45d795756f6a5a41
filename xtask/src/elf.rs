//! What a program file tells of itself: for which machine it is, and what it needs there.

use anyhow::{Result, bail};

/// The fields of ELF (`elf(5)`) for 64 bits, little-endian, that matter here.
const IDENT: &[u8] = b"\x7fELF\x02\x01";
const MACHINE: usize = 18;
const PROGRAM_HEADERS: usize = 32;
const PROGRAM_HEADER_SIZE: usize = 54;
const PROGRAM_HEADER_COUNT: usize = 56;
/// `PT_INTERP`: the loader that is to load it with its libraries.
const INTERPRETER: u64 = 3;

/// What is known of a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Program {
    /// The machine (`EM_…`).
    machine: u64,
    /// It needs nothing but the kernel.
    pub is_static: bool,
}

impl Program {
    /// From the bytes of its file.
    ///
    /// # Errors
    /// It is no program for Linux with 64 bits, little-endian.
    pub fn read(bytes: &[u8]) -> Result<Self> {
        let number = |at: usize, size: usize| -> Option<u64> {
            let bytes = bytes.get(at..at.checked_add(size)?)?;
            Some(
                bytes
                    .iter()
                    .rev()
                    .fold(0, |sum, byte| sum << 8 | u64::from(*byte)),
            )
        };
        let headers = || -> Option<(u64, Vec<u64>)> {
            let start = usize::try_from(number(PROGRAM_HEADERS, 8)?).ok()?;
            let size = usize::try_from(number(PROGRAM_HEADER_SIZE, 2)?).ok()?;
            let count = usize::try_from(number(PROGRAM_HEADER_COUNT, 2)?).ok()?;
            let kinds = (0..count).map(|index| number(start.checked_add(index * size)?, 4));
            Some((number(MACHINE, 2)?, kinds.collect::<Option<_>>()?))
        };
        let (true, Some((machine, kinds))) = (bytes.starts_with(IDENT), headers()) else {
            bail!("it is no ELF file of 64 bits, little-endian");
        };
        Ok(Self {
            machine,
            is_static: !kinds.contains(&INTERPRETER),
        })
    }

    /// What the kernel and Debian call the machine.
    pub fn machine(&self) -> Result<(&'static str, &'static str)> {
        Ok(match self.machine {
            62 => ("x86_64", "amd64"),
            183 => ("aarch64", "arm64"),
            243 => ("riscv64", "riscv64"),
            other => {
                bail!("it is for a machine that there is no package for (ELF machine {other})")
            }
        })
    }
}

/// Minor version of the oldest glibc 2 that has all that a program asks for, by names such as `GLIBC_2.34`.
pub fn glibc(bytes: &[u8]) -> Option<u32> {
    const NAME: &[u8] = b"\0GLIBC_2.";
    let places = bytes.windows(NAME.len()).enumerate();
    places
        .filter(|(_, window)| *window == NAME)
        .filter_map(|(at, _)| {
            let digits = &bytes[at + NAME.len()..];
            let end = digits.iter().position(|byte| !byte.is_ascii_digit())?;
            std::str::from_utf8(&digits[..end]).ok()?.parse().ok()
        })
        .max()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_very_program_is_known() {
        let path = std::env::current_exe().expect("a path");
        let program = Program::read(&std::fs::read(path).expect("a file")).expect("a program");
        let linked = cfg!(all(target_env = "gnu", not(target_feature = "crt-static")));
        assert_eq!(program.is_static, !linked);
        assert_eq!(
            program.machine().expect("a machine").0,
            std::env::consts::ARCH
        );
    }

    #[test]
    fn other_files_are_no_programs() {
        let path = std::env::current_exe().expect("a path");
        let bytes = std::fs::read(path).expect("a file");
        for bytes in [&bytes[..63], &bytes[..0], b"#!/bin/sh\n", &bytes[1..]] {
            Program::read(bytes).expect_err("no program");
        }
    }

    #[test]
    fn the_newest_glibc_counts() {
        assert_eq!(glibc(b"\0GLIBC_2.2.5\0GLIBC_2.34\0GLIBC_2.4\0"), Some(34));
        assert_eq!(glibc(b"GLIBC_PRIVATE\0GLIBC_2.\0"), None);
    }
}
