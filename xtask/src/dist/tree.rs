//! The tree of files that both packages hold, and what makes it a Debian package.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use super::{VERSION, epoch};
use crate::elf;
use crate::shell;

const DOCUMENTATION: &str = "usr/share/doc/tproxy-bpf";
const MAINTAINER: &str = "tproxy-bpf contributors <tproxy-bpf@localhost>";

/// Files of the project, and where they go.
const FILES: [(&str, &str); 7] = [
    (
        "packaging/systemd/tproxy-bpf.service",
        "usr/lib/systemd/system/tproxy-bpf.service",
    ),
    (
        "packaging/systemd/tproxy-bpf-restart.service",
        "usr/lib/systemd/system/tproxy-bpf-restart.service",
    ),
    (
        "packaging/systemd/notify-reload.conf",
        "usr/share/tproxy-bpf/notify-reload.conf",
    ),
    (
        "packaging/openwrt/tproxy-bpf.init",
        "usr/share/doc/tproxy-bpf/openwrt/tproxy-bpf.init",
    ),
    ("README.md", "usr/share/doc/tproxy-bpf/README.md"),
    ("LICENSE-MIT", "usr/share/doc/tproxy-bpf/LICENSE-MIT"),
    ("LICENSE-APACHE", "usr/share/doc/tproxy-bpf/LICENSE-APACHE"),
];

/// What the program writes for a shell, and where that looks for it.
const COMPLETIONS: [(&str, &str); 3] = [
    ("bash", "usr/share/bash-completion/completions/tproxy-bpf"),
    ("zsh", "usr/share/zsh/vendor-completions/_tproxy-bpf"),
    (
        "fish",
        "usr/share/fish/vendor_completions.d/tproxy-bpf.fish",
    ),
];

/// Lays out the tree at `at`, anew. `writer` is a `tproxy-bpf` that runs here.
pub fn stage(built: &Path, writer: &Path, at: &Path, is_static: bool) -> Result<()> {
    if at.exists() {
        fs::remove_dir_all(at).with_context(|| format!("removing {}", at.display()))?;
    }
    let root = shell::root();
    let program = at.join("usr/bin/tproxy-bpf");
    copy(built, &program)?;
    set_mode(&program, 0o755)?;
    // A program for another machine may be none that this `strip` knows; it is large then, no more.
    if shell::find_program("strip").is_some() {
        shell::succeeds(Command::new("strip").arg("--strip-unneeded").arg(&program));
    }
    for (from, to) in FILES {
        copy(&root.join(from), &at.join(to))?;
    }
    copy_all(
        &root.join("packaging/examples"),
        &at.join(DOCUMENTATION).join("examples"),
    )?;
    copy_all(&root.join("docs"), &at.join(DOCUMENTATION).join("docs"))?;
    for (shell, to) in COMPLETIONS {
        write(&at.join(to), &output_of(writer, &["completions", shell])?)?;
    }
    write(
        &at.join("usr/share/tproxy-bpf/config.schema.json"),
        &output_of(writer, &["schema"])?,
    )?;
    // Where the configuration goes, which is nobody's but the administrator's. It may hold passwords.
    let configuration = at.join("etc/tproxy-bpf");
    fs::create_dir_all(&configuration)
        .with_context(|| format!("making {}", configuration.display()))?;
    set_mode(&configuration, 0o755)?;
    manual(writer, &at.join("usr/share/man/man1"))?;
    if is_static {
        write(
            &at.join("usr/share/lintian/overrides/tproxy-bpf"),
            "# It runs on machines with another C library, or none.\n\
             tproxy-bpf: statically-linked-binary [usr/bin/tproxy-bpf]\n\
             tproxy-bpf: shared-library-lacks-prerequisites [usr/bin/tproxy-bpf]\n",
        )?;
    }
    Ok(())
}

/// Adds what only a Debian package has.
pub fn debianize(at: &Path, is_static: bool, architecture: &str) -> Result<()> {
    let program = at.join("usr/bin/tproxy-bpf");
    let bytes = fs::read(&program).with_context(|| format!("reading {}", program.display()))?;
    let glibc = elf::glibc(&bytes).filter(|_| !is_static);
    let documentation = at.join(DOCUMENTATION);
    // Debian has it once for all.
    fs::remove_file(documentation.join("LICENSE-APACHE")).context("removing a licence")?;
    let own = shell::root().join("packaging/debian");
    copy(&own.join("copyright"), &documentation.join("copyright"))?;
    let mut date = Command::new("date");
    date.args(["--utc", "--rfc-email", &format!("--date=@{}", epoch())]);
    let date = text_of(&mut date)?;
    let changelog = documentation.join("changelog");
    write(
        &changelog,
        &format!(
            "tproxy-bpf ({VERSION}) stable; urgency=medium\n\n  * Version {VERSION}.\n\n -- {MAINTAINER}  {date}"
        ),
    )?;
    compress(&changelog)?;
    let control = at.join("DEBIAN");
    for script in ["postinst", "prerm", "postrm"] {
        copy(&own.join(script), &control.join(script))?;
        set_mode(&control.join(script), 0o755)?;
    }
    let sums = text_of(
        Command::new("find")
            .args(["usr", "-type", "f", "-exec", "md5sum", "{}", "+"])
            .current_dir(at),
    )?;
    write(&control.join("md5sums"), &sums)?;
    let kibibytes = size(&at.join("usr"))?.div_ceil(1024);
    write(
        &control.join("control"),
        &description(glibc, architecture, kibibytes),
    )
}

/// The control file (`deb-control(5)`).
fn description(glibc: Option<u32>, architecture: &str, kibibytes: u64) -> String {
    let depends = glibc.map_or_else(String::new, |minor| {
        format!("Depends: libc6 (>= 2.{minor}), libgcc-s1\n")
    });
    format!(
        "Package: tproxy-bpf\n\
         Version: {VERSION}\n\
         Architecture: {architecture}\n\
         Maintainer: {MAINTAINER}\n\
         Installed-Size: {kibibytes}\n\
         {depends}\
         Recommends: ca-certificates, nftables\n\
         Section: net\n\
         Priority: optional\n\
         Description: transparent proxy for a Linux gateway\n \
         eBPF programs on the LAN link steer the traffic of the devices behind a\n \
         gateway to a proxy, which relays it through SOCKS5, HTTP, Shadowsocks or\n \
         Trojan servers. What is to go direct is looked up in the kernel. The\n \
         devices run nothing and notice nothing.\n"
    )
}

fn manual(writer: &Path, folder: &Path) -> Result<()> {
    let text = folder.to_str().context("the folder's path is text")?;
    output_of(writer, &["man", "--folder", text])?;
    for page in files(folder)? {
        compress(&page)?;
    }
    Ok(())
}

/// As Debian wants it: small, and the same each time.
fn compress(file: &Path) -> Result<()> {
    let status = Command::new("gzip")
        .args(["-9", "-n", "-f"])
        .arg(file)
        .status();
    if !status.context("starting gzip failed")?.success() {
        bail!("gzip did not compress {}", file.display());
    }
    let mut name = file.as_os_str().to_owned();
    name.push(".gz");
    set_mode(Path::new(&name), 0o644)
}

fn output_of(program: &Path, arguments: &[&str]) -> Result<String> {
    text_of(Command::new(program).args(arguments))
}

fn text_of(command: &mut Command) -> Result<String> {
    let output = command
        .output()
        .with_context(|| format!("starting {command:?} failed"))?;
    if !output.status.success() {
        let words = String::from_utf8_lossy(&output.stderr);
        bail!("{command:?} failed ({}): {}", output.status, words.trim());
    }
    String::from_utf8(output.stdout).with_context(|| format!("{command:?} printed no text"))
}

fn write(path: &Path, text: &str) -> Result<()> {
    let written = path
        .parent()
        .map_or(Ok(()), fs::create_dir_all)
        .and_then(|()| fs::write(path, text));
    written.with_context(|| format!("writing {}", path.display()))?;
    set_mode(path, 0o644)
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    let copied = to
        .parent()
        .map_or(Ok(()), fs::create_dir_all)
        .and_then(|()| fs::copy(from, to));
    copied.with_context(|| format!("copying {} to {}", from.display(), to.display()))?;
    set_mode(to, 0o644)
}

/// What people read in a folder, and in those below it: pages and configurations.
fn copy_all(from: &Path, to: &Path) -> Result<()> {
    for path in files(from)? {
        let extension = path.extension().and_then(|extension| extension.to_str());
        let name = path.strip_prefix(from).context("it lies in the folder")?;
        if matches!(extension, Some("md" | "toml")) {
            copy(&path, &to.join(name))?;
        }
    }
    Ok(())
}

/// All files below a folder, in order.
fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let entries = fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))?;
    for entry in entries {
        let path = entry
            .with_context(|| format!("reading {}", folder.display()))?
            .path();
        if path.is_dir() {
            found.extend(files(&path)?);
        } else {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

fn size(folder: &Path) -> Result<u64> {
    let sizes = files(folder)?
        .into_iter()
        .map(|file| Ok(fs::metadata(file)?.len()));
    sizes.sum()
}

fn set_mode(path: &Path, mode: u32) -> Result<()> {
    fs::set_permissions(path, Permissions::from_mode(mode))
        .with_context(|| format!("setting the mode of {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_linked_depends_on_its_library() {
        let text = description(Some(36), "amd64", 7);
        assert!(text.contains("\nDepends: libc6 (>= 2.36), libgcc-s1\nRecommends: "));
        let text = description(None, "amd64", 7);
        assert!(text.contains("\nInstalled-Size: 7\nRecommends: "), "{text}");
        // Every line but the first of a description is indented.
        let (_, long) = text.split_once("Description: ").expect("a description");
        assert!(
            long.lines().skip(1).all(|line| line.starts_with(' ')),
            "{text}"
        );
    }

    #[test]
    fn what_is_packaged_is_there() {
        for (from, _) in FILES {
            assert!(shell::root().join(from).is_file(), "{from}");
        }
    }
}
