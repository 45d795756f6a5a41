//! What the virtual machine begins with: busybox, the modules that the root is mounted by, and what to do then.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use super::kernel::Kernel;
use crate::elf::Program;
use crate::shell;

/// The modules that lead to the root.
const EARLY: [&str; 4] = ["virtio_pci", "9pnet_virtio", "9p", "overlay"];

/// Makes the archive that the kernel unpacks as its first root.
///
/// # Errors
/// A file is missing, or there is no busybox that needs nothing else.
pub fn make(folder: &Path, kernel: &Kernel, job: &str) -> Result<PathBuf> {
    let busybox = shell::find_program("busybox").context("busybox is missing")?;
    let bytes =
        fs::read(&busybox).with_context(|| format!("reading {} failed", busybox.display()))?;
    if !Program::read(&bytes)?.is_static {
        bail!(
            "{} needs libraries, and there are none where it is run first: apt-get install busybox-static",
            busybox.display()
        );
    }
    let root = folder.join("image");
    let _ = fs::remove_dir_all(&root);
    let order = order(kernel)?;
    let mut names = Vec::new();
    let put = |name: &str, content: &[u8]| {
        let path = root.join(name);
        fs::create_dir_all(path.parent().unwrap_or(&root))
            .and_then(|()| fs::write(&path, content))
            .and_then(|()| fs::set_permissions(&path, Permissions::from_mode(0o755)))
            .with_context(|| format!("writing {} failed", path.display()))
    };
    for module in &order {
        let path = kernel.modules.join(module);
        let name = module.rsplit('/').next().unwrap_or(module);
        let content =
            fs::read(&path).with_context(|| format!("reading {} failed", path.display()))?;
        put(name, &content)?;
        names.push(name);
    }
    put("bin/busybox", &bytes)?;
    put("init", include_bytes!("init.sh"))?;
    put("early", names.join(" ").as_bytes())?;
    put("modules", kernel.modules.as_os_str().as_encoded_bytes())?;
    put("job", job.as_bytes())?;
    archive(&root, &folder.join("image.cpio"))
}

/// The files of the early modules, each behind those that it needs.
fn order(kernel: &Kernel) -> Result<Vec<String>> {
    let file = kernel.modules.join("modules.dep");
    let text =
        fs::read_to_string(&file).with_context(|| format!("reading {} failed", file.display()))?;
    let mut order: Vec<String> = Vec::new();
    for module in EARLY {
        let end = format!("/{module}.ko");
        let line = text
            .lines()
            .filter_map(|line| line.split_once(':'))
            .find(|(name, _)| name.ends_with(&end));
        let (name, needs) = line.with_context(|| format!("the kernel has no module {module}"))?;
        // The most basic ones are named last.
        for part in needs.split_whitespace().rev().chain([name]) {
            if !order.iter().any(|known| known == part) {
                order.push(part.to_owned());
            }
        }
    }
    Ok(order)
}

fn archive(root: &Path, file: &Path) -> Result<PathBuf> {
    let mut find = Command::new("find");
    let mut find = find
        .arg(".")
        .current_dir(root)
        .stdout(Stdio::piped())
        .spawn()
        .context("starting find failed")?;
    let mut pack = Command::new("busybox");
    pack.args(["cpio", "-o", "-H", "newc", "-F"])
        .arg(file)
        .current_dir(root)
        .stderr(Stdio::null());
    if let Some(pipe) = find.stdout.take() {
        pack.stdin(pipe);
    }
    let status = pack.status().context("starting busybox failed")?;
    find.wait().context("waiting for find failed")?;
    if !status.success() {
        bail!("packing {} failed ({status})", root.display());
    }
    Ok(file.to_owned())
}
