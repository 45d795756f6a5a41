//! Programs of others beside ours.

use aya::programs::{SchedClassifier, TcAttachType, loaded_programs};

use super::programs::CLASSIFIERS;

/// A program that is loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loaded {
    /// The kernel's number of it.
    pub id: u32,
    /// Its name; empty if it has none.
    pub name: String,
}

impl Loaded {
    /// Is it one of ours, by its name? The kernel keeps 15 bytes of it.
    #[must_use]
    pub fn is_ours(&self) -> bool {
        CLASSIFIERS
            .iter()
            .any(|own| own.get(..15).unwrap_or(own) == self.name)
    }
}

/// The tcx programs of a link in their order: ingress, or egress. Fails on kernels without tcx.
///
/// # Errors
/// What the kernel says.
pub fn tcx(link: &str, ingress: bool) -> Result<Vec<Loaded>, String> {
    let direction = if ingress {
        TcAttachType::Ingress
    } else {
        TcAttachType::Egress
    };
    let (_, programs) =
        SchedClassifier::query_tcx(link, direction).map_err(|error| super::chain(&error))?;
    let loaded = programs.iter().map(|info| Loaded {
        id: info.id(),
        name: info.name_as_str().unwrap_or_default().to_owned(),
    });
    Ok(loaded.collect())
}

/// The name of the program with this number, if it has one and may be asked.
#[must_use]
pub fn name_of(id: u32) -> Option<String> {
    let mut programs = loaded_programs().filter_map(Result::ok);
    let program = programs.find(|info| info.id() == id)?;
    let name = program.name_as_str()?.to_owned();
    (!name.is_empty()).then_some(name)
}
