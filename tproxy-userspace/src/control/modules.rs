//! Which modules of the kernel can be had: those that are loaded or built in, and those whose files are there.

use std::fs;
use std::path::Path;

/// What holds programs at a link where there is no tcx: the qdisc, and the filter that is a program.
const CLSACT: [&str; 2] = ["sch_ingress", "cls_bpf"];

/// The modules that the running kernel would need to hold programs by filters, and that are certainly not to be had.
#[must_use]
pub fn missing_for_clsact() -> Vec<&'static str> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let folder = Path::new("/lib/modules").join(release.trim());
    missing(&CLSACT, Path::new("/sys/module"), &folder)
}

fn missing(names: &[&'static str], loaded: &Path, folder: &Path) -> Vec<&'static str> {
    let list = |name: &str| fs::read_to_string(folder.join(name)).ok();
    // Without both lists (modules without an index, or a container without their folder) nothing is certain.
    let (Some(built_in), Some(files)) = (list("modules.builtin"), list("modules.dep")) else {
        return Vec::new();
    };
    let is_listed = |name: &str| {
        let file = format!("/{name}.ko");
        let paths = built_in.lines().chain(files.lines());
        let mut paths = paths.filter_map(|line| line.split(':').next());
        // Files may be compressed, which adds an ending.
        paths.any(|path| {
            path.rfind(&file)
                .is_some_and(|at| !path[at + file.len()..].contains('/'))
        })
    };
    let is_missing = |name: &&str| !loaded.join(name).exists() && !is_listed(name);
    names.iter().copied().filter(is_missing).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_is_missing_only_if_the_lists_are_there_and_without_it() {
        let folder = tempfile::tempdir().unwrap();
        let (loaded, modules) = (folder.path().join("loaded"), folder.path().join("modules"));
        fs::create_dir_all(loaded.join("loaded_one")).unwrap();
        fs::create_dir_all(&modules).unwrap();
        let names = ["loaded_one", "built_in", "a_file", "compressed", "absent"];
        let found = || missing(&names, &loaded, &modules);
        assert!(found().is_empty(), "nothing is known");
        fs::write(modules.join("modules.builtin"), "kernel/net/built_in.ko\n").unwrap();
        assert!(found().is_empty(), "half is known");
        let files = "kernel/net/a_file.ko: kernel/net/other.ko\nkernel/net/compressed.ko.zst:\n\
                     kernel/net/not_absent.ko: kernel/net/absent.ko\n";
        fs::write(modules.join("modules.dep"), files).unwrap();
        assert_eq!(found(), ["absent"]);
    }
}
