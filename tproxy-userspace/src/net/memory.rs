//! Memory that only the start needed.

use std::fs;

/// Gives back to the kernel what was freed, and the program's code: of ten MiB that the start read, serving reads one or two
/// again, page by page from the cache of the file. Where it cannot be done, nothing is lost.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: the allocator looks after its own locks.
    unsafe {
        libc::malloc_trim(0);
    }
    let (Ok(program), Ok(maps)) = (
        std::env::current_exe(),
        fs::read_to_string("/proc/self/maps"),
    ) else {
        return;
    };
    for (start, length) in maps.lines().filter_map(code_of(&program.to_string_lossy())) {
        // SAFETY: the pages are code of this program, which nobody writes to; the kernel reads them from the file again when
        // they are needed (`MADV_DONTNEED` of a private mapping, madvise(2)).
        unsafe {
            libc::madvise(start as *mut libc::c_void, length, libc::MADV_DONTNEED);
        }
    }
}

/// Where code of this program lies, by a line of proc_pid_maps(5), and how long it is.
fn code_of(program: &str) -> impl Fn(&str) -> Option<(usize, usize)> {
    move |line| {
        let mut words = line.splitn(6, ' ');
        let (start, end) = words.next()?.split_once('-')?;
        let is_code = words.next()? == "r-xp";
        let is_own = words.nth(3)?.trim_start() == program;
        let start = usize::from_str_radix(start, 16).ok()?;
        let end = usize::from_str_radix(end, 16).ok()?;
        (is_code && is_own && start < end).then(|| (start, end - start))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_code_of_the_program_is_given_back() {
        let code = code_of("/usr/bin/the program");
        let line =
            |address, rights, path| code(&format!("{address} {rights} 0000a000 fe:00 123 {path}"));
        let path = "                       /usr/bin/the program";
        assert_eq!(line("1000-3000", "r-xp", path), Some((0x1000, 0x2000)));
        assert_eq!(line("1000-3000", "r--p", path), None);
        assert_eq!(line("1000-3000", "rw-p", path), None);
        assert_eq!(line("1000-3000", "r-xp", "  /usr/lib/libc.so.6"), None);
        assert_eq!(line("3000-1000", "r-xp", path), None);
        assert_eq!(code("7ffc-7ffd r-xp 00000000 00:00 0"), None);
        assert_eq!(code(""), None);
    }

    #[test]
    fn the_program_runs_on_without_what_it_gave_back() {
        give_back();
        let maps = fs::read_to_string("/proc/self/maps").expect("its own");
        let program = std::env::current_exe().expect("it has a path");
        let program = program.to_string_lossy();
        assert!(maps.lines().filter_map(code_of(&program)).count() > 0);
    }
}
