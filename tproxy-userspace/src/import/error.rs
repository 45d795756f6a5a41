//! Why a file could not be read.

/// Why there is no configuration. `Display` names the file, what is wrong and what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ImportError {
    /// A form that is not read here.
    #[error("{file} is {what}, which is not read here; {help}")]
    Kind {
        /// The file.
        file: String,
        /// What it is.
        what: &'static str,
        /// What to give instead.
        help: &'static str,
    },
    /// The file is of a form that is read, and broken.
    #[error("{file}{}: {why}", line.map(|line| format!(":{line}")).unwrap_or_default())]
    Broken {
        /// The file.
        file: String,
        /// The line, counted from 1.
        line: Option<usize>,
        /// What is wrong.
        why: String,
    },
    /// Two files of which there may be one.
    #[error("{first} and {second} are both {what}; give one of them")]
    Twice {
        /// The one.
        first: String,
        /// The other.
        second: String,
        /// What they are.
        what: &'static str,
    },
    /// Nothing in the files steers traffic to a proxy or says where it goes.
    #[error(
        "nothing in {files} leads traffic to a proxy: there is no TPROXY or REDIRECT that PREROUTING or OUTPUT comes to, \
         and no Xray or V2Ray configuration; give the output of iptables-save, ip6tables-save, or a config.json"
    )]
    Nothing {
        /// The files.
        files: String,
    },
    /// What was made of the files is no configuration.
    #[error(
        "what the files come to is no valid configuration, so nothing is printed: {why}; leave out the file or the part \
         that this is about"
    )]
    Unfit {
        /// What the check of the configuration says.
        why: String,
    },
}
