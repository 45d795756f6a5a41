//! The command line: one file a verb group.

mod account;
mod api;
mod apply;
mod asking;
mod attach;
mod bypass;
mod check;
mod counters;
mod doctor;
mod exempt;
mod explain;
mod flows;
mod import;
mod keep;
mod lists;
mod manual;
mod output;
mod progress;
mod run;
mod schema;
mod select;
mod session;
mod status;
mod top;
mod trace;
mod upstream;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use ipnet::IpNet;
use tproxy_common::abi::Reason;
use tproxy_userspace::config;
use tproxy_userspace::control::bpf::Maps;
use tproxy_userspace::control::place::Place;
use tproxy_userspace::observe::log::Format;
use tproxy_userspace::policy::prefix;
use tproxy_userspace::policy::source::Source;
use tproxy_userspace::privileges::arguments;
use tproxy_userspace::step;

use self::explain::{Destination, SentBy};

/// A transparent proxy for a Linux gateway: eBPF steers, the proxy relays.
#[derive(Debug, Parser)]
#[command(
    name = "tproxy-bpf",
    version,
    propagate_version = true,
    max_term_width = 100
)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Attach, and proxy until SIGINT or SIGTERM; then drain and detach.
    Run(RunArgs),
    /// What tproxy-bpf-restart.service runs before systemd ends the proxy: for a restart it goes on to serve.
    #[command(hide = true)]
    Leave,
    /// What a proxy of another user than root starts beside itself: removes the folders that it may not.
    #[command(hide = true)]
    Keep {
        /// Whose the folders were before.
        #[arg(long, value_name = "UID:GID")]
        before: Option<String>,
        /// Their group could use the control socket.
        #[arg(long)]
        shared: bool,
    },
    /// Attach the kernel half alone; it stays without a daemon.
    Attach(AttachArgs),
    /// Detach from links; with no name, from all, and remove everything that was left.
    Detach(DetachArgs),
    /// Show or edit the prefixes that go direct.
    Bypass {
        #[command(subcommand)]
        command: BypassCommand,
    },
    /// Show or edit who on the gateway itself goes direct, or run a command that does.
    Exempt {
        #[command(subcommand)]
        command: ExemptCommand,
    },
    /// What is attached where, whether the proxy runs, and what it does.
    Status(ReadArgs),
    /// The connections and associations that live: who, where to, by which way, how much.
    Flows(flows::FlowsArgs),
    /// Why packets passed, were steered or were dropped.
    Counters(CountersArgs),
    /// How many bytes each device sent and got, by the proxy and past it.
    Account(account::AccountArgs),
    /// The gateway as it works, live in the terminal: flows, devices, destinations, counters, outbounds.
    Top(top::TopArgs),
    /// Put a configuration into force while the proxy runs, and keep it as its file.
    ///
    /// It is all of it or nothing, as with SIGHUP. Paths in it are relative to the folder of the proxy's own file, which it
    /// takes the place of; what was there is kept beside it (`.before`).
    Apply {
        /// The configuration.
        #[arg(value_name = "FILE")]
        file: PathBuf,
        /// Take it back after this time, such as "60s", unless `tproxy-bpf confirm` comes before.
        #[arg(long, value_name = "TIME")]
        confirm: Option<String>,
    },
    /// Keep the configuration that `apply --confirm` put on trial.
    Confirm,
    /// Choose the member that a group of the kind "select" takes.
    ///
    /// New connections take it; those that live keep theirs. It holds until the proxy ends; `default` of the group
    /// in the configuration is what a start begins with.
    Select {
        /// The group's name.
        #[arg(value_name = "GROUP")]
        group: String,
        /// The member's name.
        #[arg(value_name = "MEMBER")]
        member: String,
    },
    /// Have the running proxy read its configuration anew, as SIGHUP does, and say what came of it.
    ///
    /// Ends with exit code 1 if it is refused; then the old configuration goes on to hold.
    Reload,
    /// Show or change what the running proxy's log tells.
    ///
    /// It holds until the proxy ends, or `[log]` changes in a configuration that it reads anew.
    Log {
        /// A level (off, error, warn, info, debug, trace), or directives such as "info,access=info", which tells of
        /// each connection.
        #[arg(value_name = "LEVEL|DIRECTIVES")]
        filter: Option<String>,
        #[command(flatten)]
        read: ReadArgs,
    },
    /// What would happen to such a packet, and why: the kernel's program, then the rules.
    ///
    /// A packet is made and the program is run on it. Nothing is sent or counted. It is the first of a TCP
    /// connection or, with --udp, a datagram.
    Explain(ExplainArgs),
    /// What is decided about packets, as it happens, and why.
    ///
    /// All packets, or those that meet every condition; of conditions that may stand several times, one has to be met. Only
    /// what is decided is told: what is forwarded to a device, for example, is not. Nothing of it costs anything before
    /// and afterwards. Ctrl-C ends it.
    Trace(TraceArgs),
    /// Validate a configuration and print what it comes to.
    Check(CheckArgs),
    /// Print the JSON Schema of the configuration, for editors.
    Schema,
    /// Examine this machine: what keeps it from being a gateway, and how to mend it.
    ///
    /// Ends with exit code 1 if there is a problem. Without arguments it is about the links that are
    /// attached, or else about those of /etc/tproxy-bpf/config.toml.
    Doctor(DoctorArgs),
    /// Turn a set-up of iptables with Xray or V2Ray into a configuration.
    ///
    /// Reads what iptables-save, ip6tables-save and ipset save print, and the config.json of Xray or V2Ray. Prints one
    /// configuration of all of them together, with what was taken over, what needs no line any more, and what was not taken
    /// over, in comments and on standard error. Nothing is changed on the machine.
    Import(ImportArgs),
    /// Print what a shell needs to complete this command line.
    ///
    /// bash: tproxy-bpf completions bash > /usr/share/bash-completion/completions/tproxy-bpf
    Completions {
        /// The shell.
        shell: Shell,
    },
    /// Print the manual page.
    Man {
        /// Write one page for each command into this folder instead.
        #[arg(long, value_name = "FOLDER")]
        folder: Option<PathBuf>,
    },
}

#[derive(Debug, Args)]
struct ReadArgs {
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct RunArgs {
    /// The configuration [default: /etc/tproxy-bpf/config.toml if no link is named].
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// A link with devices behind it, or a glob such as "br-*".
    #[arg(long, value_name = "IF")]
    lan: Vec<String>,
    /// A link that the gateway's own traffic leaves by, a glob, or "default" for those that hold a default
    /// route: that traffic is proxied too.
    #[arg(long, value_name = "IF")]
    wan: Vec<String>,
    /// Where proxied traffic goes: direct://, block://, socks5://, http:// or https:// with [user:password@]host:port,
    /// ss://method:password@host:port, or trojan://password@host:port.
    #[arg(long, value_name = "URL")]
    outbound: Option<String>,
    /// What happens to new traffic when the proxy is down.
    #[arg(long, value_name = "POLICY")]
    on_proxy_down: Option<Policy>,
    /// Take over from the proxy that runs here, if there is one: what is new goes to this one at once, and what lives
    /// ends there, within `takeover_drain` of its `[proxy]`.
    #[arg(long)]
    takeover: bool,
    /// What the log looks like: "auto" is for people at a terminal and JSON elsewhere [default: `[log] format`, or auto].
    #[arg(long, value_name = "FORMAT", env = "TPROXY_BPF_LOG_FORMAT", hide_env = true, value_parser = api::log_format)]
    log_format: Option<Format>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Policy {
    /// It goes direct.
    Pass,
    /// It goes nowhere.
    Drop,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Role {
    /// Devices are behind the link.
    Lan,
    /// The gateway's own traffic leaves by the link ("default": by those that hold a default route).
    Wan,
}

#[derive(Debug, Args)]
struct AttachArgs {
    /// The links, or globs.
    #[arg(required = true, value_name = "IF")]
    links: Vec<String>,
    /// What they are for.
    #[arg(long = "as", value_enum, default_value_t = Role::Lan)]
    role: Role,
    /// Settings, bypass prefixes and exemptions to put into force. With `[gateway] masquerade`, links and default
    /// routes that come later are not followed, and the kernel keeps state (conntrack) for each
    /// connection that it forwards.
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// What happens to new traffic when the proxy is down.
    #[arg(long, value_name = "POLICY")]
    on_proxy_down: Option<Policy>,
}

#[derive(Debug, Args)]
struct DetachArgs {
    /// The links.
    #[arg(value_name = "IF")]
    links: Vec<String>,
}

#[derive(Debug, Subcommand)]
enum BypassCommand {
    /// Add prefixes or addresses.
    Add {
        /// The prefixes.
        #[arg(required = true, value_name = "CIDR")]
        prefixes: Vec<String>,
        #[command(flatten)]
        terms: TermsArgs,
    },
    /// Remove prefixes.
    Del {
        /// The prefixes.
        #[arg(required = true, value_name = "CIDR")]
        prefixes: Vec<String>,
    },
    /// Show the prefixes.
    List {
        /// Show packets and bytes, most first.
        #[arg(long)]
        hits: bool,
        #[command(flatten)]
        read: ReadArgs,
    },
    /// Add the prefixes of lists ("-" is standard input), as the fewest that cover them.
    Load {
        /// The lists: plain text, geoip.dat:CODE, Country.mmdb:CODE, delegated-apnic-latest:CODE, sets of nft
        /// and ipset, rule sets of sing-box (.srs, .json) and mihomo (.mrs, .yaml).
        #[arg(required = true, value_name = "FILE[:CODE]")]
        files: Vec<Source>,
        /// Remove what was added by command before and is not in the files.
        #[arg(long)]
        replace: bool,
        #[command(flatten)]
        terms: TermsArgs,
    },
    /// Remove all prefixes.
    Flush,
}

#[derive(Debug, Subcommand)]
enum ExemptCommand {
    /// Exempt groups, users, cgroups or marks, from the next socket on.
    ///
    /// A socket keeps for its life what held when it was made: connections that live, and sockets that a
    /// service already has open, go on as they were. A mark counts for connections that open, and datagrams that
    /// are sent, from now on.
    Add(WhoArgs),
    /// End exemptions.
    ///
    /// Sockets that were made exempt stay so for their life.
    Del(WhoArgs),
    /// Show who is exempt.
    List(ReadArgs),
    /// Run a command that goes direct, and all that it starts.
    ///
    /// It runs in a cgroup of its own and ends with the command's exit code; with 127 if there is no such
    /// command.
    Run {
        /// The command.
        #[arg(
            required = true,
            trailing_var_arg = true,
            allow_hyphen_values = true,
            value_name = "CMD"
        )]
        command: Vec<OsString>,
    },
}

#[derive(Debug, Args)]
#[group(required = true, multiple = true)]
struct WhoArgs {
    /// A group, by number or name: the real group of the process that makes a socket.
    #[arg(long, value_name = "GID")]
    gid: Vec<String>,
    /// A user, by number or name: the real user of the process that makes a socket.
    #[arg(long, value_name = "UID")]
    uid: Vec<String>,
    /// A cgroup with all below it, such as /system.slice/foo.service; it need not be there yet.
    #[arg(long, value_name = "PATH")]
    cgroup: Vec<String>,
    /// A packet mark, with a mask if not all bits count: 0x10 or 0x80000/0xff0000.
    #[arg(long, value_name = "MARK")]
    mark: Vec<String>,
}

#[derive(Debug, Args)]
struct TermsArgs {
    /// For how long, such as "90s" or "1h30m" [default: for ever].
    #[arg(long, value_name = "TIME")]
    ttl: Option<String>,
    /// A text to find it again by.
    #[arg(long, value_name = "TEXT")]
    comment: Option<String>,
}

#[derive(Debug, Args)]
struct CountersArgs {
    #[command(flatten)]
    read: ReadArgs,
    /// Show also the reasons that never occurred.
    #[arg(long)]
    all: bool,
}

#[derive(Debug, Args)]
struct ExplainArgs {
    /// Where it goes: an address or a name, such as 192.0.2.1, [2001:db8::1]:53 or www.example.com:80. A name is
    /// looked up as for a device, and taken for --name [default port: 443].
    #[arg(value_name = "DEST[:PORT]")]
    destination: Destination,
    /// Who sends it; "gateway" is the gateway itself [default: a device].
    #[arg(long, value_name = "IP")]
    from: Option<SentBy>,
    /// A datagram, not a connection.
    #[arg(long)]
    udp: bool,
    /// The name that the device asks for, as rules see it.
    #[arg(long, value_name = "NAME", value_parser = explain::name)]
    name: Option<String>,
    /// The link that it comes in by; for what the gateway sends, goes out by.
    #[arg(long, value_name = "IF")]
    on: Option<String>,
    #[command(flatten)]
    read: ReadArgs,
}

#[derive(Debug, Args)]
struct TraceArgs {
    /// Sent from there.
    #[arg(long, value_name = "CIDR", value_parser = prefix::parse)]
    from: Option<IpNet>,
    /// Sent to there.
    #[arg(long, value_name = "CIDR", value_parser = prefix::parse)]
    to: Option<IpNet>,
    /// One of the two ports.
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    port: Option<u16>,
    /// The destination port.
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    to_port: Option<u16>,
    /// What the packet carries; may stand several times.
    #[arg(long, value_enum, value_name = "PROTOCOL")]
    protocol: Vec<trace::ProtocolWord>,
    /// What became of it; may stand several times.
    #[arg(long, value_enum, value_name = "EFFECT")]
    effect: Vec<trace::EffectWord>,
    /// Why, by a word of `counters --all`; may stand several times.
    #[arg(long, value_name = "REASON", value_parser = trace::reasons(), hide_possible_values = true)]
    reason: Vec<Reason>,
    /// The link that it came in by; for what the gateway sends, goes out by.
    #[arg(long, value_name = "IF")]
    on: Option<String>,
    /// Of TCP only what opens a connection.
    #[arg(long)]
    new: bool,
    /// End after so many decisions.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// End after this time, such as "10s".
    #[arg(long = "for", value_name = "TIME", value_parser = config::parse_duration)]
    time: Option<Duration>,
    /// Print JSON, a line each.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct CheckArgs {
    /// The configuration.
    #[arg(value_name = "FILE")]
    file: PathBuf,
    #[command(flatten)]
    read: ReadArgs,
}

#[derive(Debug, Args)]
struct ImportArgs {
    /// The files ("-" is standard input).
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// A link with devices behind it, or a glob such as "br-*", in the place of those that the rules name.
    #[arg(long, value_name = "IF")]
    lan: Vec<String>,
    /// Where geoip.dat, geosite.dat and other lists are [default: the folder of the configuration].
    #[arg(long, value_name = "FOLDER")]
    lists: Option<String>,
}

#[derive(Debug, Args)]
struct DoctorArgs {
    /// The configuration that the machine is to fit.
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// A link with devices behind it, or a glob such as "br-*".
    #[arg(long, value_name = "IF")]
    lan: Vec<String>,
    #[command(flatten)]
    read: ReadArgs,
}

/// Does what the command line says.
pub fn main() -> ExitCode {
    // clap itself ends with 2 on wrong usage.
    let cli = Cli::parse();
    if matches!(cli.command, Command::Run(_)) {
        arguments::hide();
    }
    let armed = step::arm().map_err(anyhow::Error::from);
    match armed.and_then(|()| dispatch(cli.command)) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("tproxy-bpf: {}", output::one_message(&error));
            ExitCode::FAILURE
        }
    }
}

fn dispatch(command: Command) -> Result<ExitCode> {
    match command {
        Command::Run(args) => run::run(args),
        Command::Leave => run::leave(),
        Command::Keep { before, shared } => keep::keep(before.as_deref(), shared),
        Command::Attach(args) => attach::attach(args),
        Command::Detach(args) => attach::detach(&args),
        Command::Bypass { command } => bypass::bypass(command),
        Command::Exempt { command } => exempt::exempt(command),
        Command::Apply { file, confirm } => apply::apply(&file, confirm.as_deref()),
        Command::Confirm => apply::confirm(),
        Command::Select { group, member } => select::select(&group, &member),
        Command::Flows(args) => flows::flows(&args),
        Command::Status(args) => status::status(&args),
        Command::Counters(args) => counters::counters(&args),
        Command::Account(args) => account::account(&args),
        Command::Reload => api::reload(),
        Command::Log { filter, read } => api::log(filter, &read),
        Command::Top(args) => top::top(&args),
        Command::Explain(args) => explain::explain(&args),
        Command::Trace(args) => trace::trace(&args),
        Command::Check(args) => check::check(&args),
        Command::Schema => schema::schema(),
        Command::Doctor(args) => doctor::doctor(&args),
        Command::Import(args) => import::import(&args),
        Command::Completions { shell } => manual::completions(shell),
        Command::Man { folder } => manual::man(folder.as_deref()),
    }
}

/// The pinned maps of this gateway, for the commands that work without a daemon.
fn pinned_maps(place: &Place) -> Result<Maps> {
    Maps::open(place.pins())?.context(
        "nothing is attached in this network namespace; \
         `tproxy-bpf run --lan IF` or `tproxy-bpf attach IF` comes first",
    )
}

/// A runtime for the commands that need one; only the proxy itself needs more than a thread.
fn small_runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("starting the asynchronous runtime failed")
}
