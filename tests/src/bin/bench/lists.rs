//! Large lists: what they cost to load, to hold and to look into.

use std::{
    fmt::Write as _,
    fs,
    hint::black_box,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::{Context, Result};
use ipnet::IpNet;
use lab::{Family, Lab};
use tproxy_userspace::policy::{
    domain::{Domain, DomainSet},
    list::{load_domains, load_prefixes},
    rule::{Protocol, Query, Rule, Rules},
    source::Source,
};

use crate::{
    load::idle::settled_kib,
    options::Options,
    prefixes::{self, Random},
    results::median,
};

/// The name for `--only` and in the JSON.
pub const NAME: &str = "lists";
/// How many prefixes of each family there are, as in lists of one country.
pub const PREFIXES: usize = 16_384;
/// How many names there are.
pub const DOMAINS: usize = 100_000;
/// How many different things are looked up, in turn: more than a cache of the processor holds.
const LOOKED_UP: usize = 16_384;
/// Look-ups of one run.
const LOOKUPS: usize = 1_000_000;
const QUICK_LOOKUPS: usize = 100_000;

/// One line: a figure and what it is.
pub struct Line {
    /// What it is.
    pub title: String,
    /// The median.
    pub figure: f64,
    /// Its unit.
    pub unit: &'static str,
    /// All of them.
    pub samples: Vec<f64>,
}

impl Line {
    /// Its median is what counts.
    pub fn new(title: impl Into<String>, unit: &'static str, samples: Vec<f64>) -> Self {
        Self {
            title: title.into(),
            figure: median(samples.clone()).unwrap_or(f64::NAN),
            unit,
            samples,
        }
    }
}

/// Measures all.
///
/// # Errors
/// When the program does not start, or a list is not read.
pub fn measure(options: &Options) -> Result<Vec<Line>> {
    let lab = Lab::new()?;
    let files = Files::write(lab.dir())?;
    let mut lines = of_the_program(&lab, &files, options)?;
    lines.extend(of_the_sets(&files, options)?);
    Ok(lines)
}

/// The lists as files.
struct Files {
    domains: PathBuf,
    prefixes: PathBuf,
    names: Vec<String>,
    nets: Vec<IpNet>,
}

impl Files {
    fn write(dir: &Path) -> Result<Self> {
        let mut random = Random(DOMAINS as u64);
        let names: Vec<String> = (0..DOMAINS)
            .map(|number| domain(&mut random, number))
            .collect();
        let nets = prefixes::random(PREFIXES);
        let (mut domains, mut prefixes) = (String::new(), String::new());
        for name in &names {
            // As the best known list of this kind is written.
            writeln!(domains, "server=/{name}/114.114.114.114")?;
        }
        for net in &nets {
            writeln!(prefixes, "{net}")?;
        }
        let files = Self {
            domains: dir.join("domains.conf"),
            prefixes: dir.join("prefixes.txt"),
            names,
            nets,
        };
        for (path, text) in [(&files.domains, domains), (&files.prefixes, prefixes)] {
            fs::write(path, text).with_context(|| format!("writing {}", path.display()))?;
        }
        Ok(files)
    }
}

/// A name as registrars sell them; `number` makes it different from all others.
fn domain(random: &mut Random, number: usize) -> String {
    const ENDS: [&str; 5] = ["com", "cn", "net", "com.cn", "org"];
    let bits = random.next();
    let letters = 3 + bits % 8;
    let mut name: String = (0..letters)
        .map(|at| char::from(b'a' + (bits >> (8 + 5 * at)) as u8 % 26))
        .collect();
    name += &format!("{number}.{}", ENDS[number % ENDS.len()]);
    name
}

/// From start to ready, and resident memory after it.
fn of_the_program(lab: &Lab, files: &Files, options: &Options) -> Result<Vec<Line>> {
    let (domains, prefixes) = (files.domains.display(), files.prefixes.display());
    let dns = "[dns]\ndirect = [\"203.0.113.3\"]\nproxy = [\"203.0.113.3\"]\n";
    let configs = [
        ("without lists", dns.to_owned()),
        (
            "as dns.direct_domains and [bypass] files",
            format!("{dns}direct_domains = [\"{domains}\"]\n[bypass]\nfiles = [\"{prefixes}\"]\n"),
        ),
        (
            "as domain of a [[rule]] and prefix_files of another",
            format!(
                "{dns}[[rule]]\ndomain = [\"{domains}\"]\noutbound = \"direct\"\n\
                 [[rule]]\nprefix_files = [\"{prefixes}\"]\noutbound = \"direct\"\n"
            ),
        ),
    ];
    let mut times = vec![Vec::new(); configs.len()];
    let mut sizes = times.clone();
    for _ in 0..options.rounds() {
        for (index, (title, more)) in configs.iter().enumerate() {
            let config = format!(
                "stage = 2\n[lan]\ninterfaces = [\"{}\"]\n\
                 [[outbound]]\nname = \"out\"\nurl = \"direct://\"\n{more}",
                lab.lan()
            );
            let path = lab.write(&config)?;
            let start = Instant::now();
            let tproxy = lab
                .tproxy(&["run", "-c", &path])
                .with_context(|| format!("{DOMAINS} names {title}"))?;
            times[index].push(start.elapsed().as_secs_f64() * 1e3);
            sizes[index].push(settled_kib(tproxy.process().pid())? as f64 / 1024.0);
            tproxy.stop()?;
        }
    }
    let lines = configs.iter().zip(times).zip(sizes);
    Ok(lines
        .flat_map(|(((title, _), times), sizes)| {
            [
                Line::new(format!("start to ready, {title}"), "ms", times),
                Line::new(format!("resident memory, {title}"), "MiB", sizes),
            ]
        })
        .collect())
}

/// The same code in this process: reading, building, looking up.
fn of_the_sets(files: &Files, options: &Options) -> Result<Vec<Line>> {
    let mut lines = Vec::new();
    let rounds = 0..options.rounds();
    let mut steps = [Vec::new(), Vec::new(), Vec::new()];
    let mut made = None;
    for _ in rounds.clone() {
        let start = Instant::now();
        let domains = load_domains(&[Source::new(&files.domains)], &mut |_| {})?.entries;
        steps[0].push(milliseconds(start));
        let start = Instant::now();
        let prefixes = load_prefixes(&[Source::new(&files.prefixes)], &mut |_| {})?.entries;
        steps[1].push(milliseconds(start));
        let rules = [
            rule("names", Some(domains.clone()), None),
            rule("prefixes", None, Some(prefixes)),
        ];
        let start = Instant::now();
        let set = DomainSet::new(domains.into_iter().map(|domain| (domain, 0)))?;
        steps[2].push(milliseconds(start));
        made = Some((set, Rules::new(rules, "out")?));
    }
    let (set, rules) = made.context("there was no round")?;
    let [domains, prefixes, building] = steps;
    lines.push(Line::new("reading the names", "ms", domains));
    lines.push(Line::new("reading the prefixes", "ms", prefixes));
    lines.push(Line::new("making a set of the names", "ms", building));
    let size = set.bytes() as f64 / f64::from(1 << 20);
    lines.push(Line::new("the set of the names", "MiB", vec![size]));

    let lookups = if options.quick {
        QUICK_LOOKUPS
    } else {
        LOOKUPS
    };
    let step = files.names.len() / LOOKED_UP;
    let picked = || files.names.iter().step_by(step).take(LOOKED_UP);
    let names = [
        ("is in the list", picked().cloned().collect::<Vec<_>>()),
        (
            "is below one in the list",
            picked().map(|name| format!("img.www.{name}")).collect(),
        ),
        (
            "is not",
            picked().map(|name| format!("www.x{name}")).collect(),
        ),
    ];
    for (title, names) in &names {
        let samples = rounds.clone().map(|_| {
            nanoseconds(lookups, names, |name| {
                black_box(set.lookup(name));
            })
        });
        let title = format!("a look-up in the set, the name {title}");
        lines.push(Line::new(title, "ns", samples.collect()));
    }
    for (title, names) in &names {
        let samples = rounds.clone().map(|_| {
            nanoseconds(lookups, names, |name| {
                black_box(rules.decide(&query(Some(name), Family::V4.far(1))));
            })
        });
        let title = format!("a decision of the rules, the name {title}");
        lines.push(Line::new(title, "ns", samples.collect()));
    }
    for family in Family::BOTH {
        let addresses: Vec<IpAddr> = files
            .nets
            .iter()
            .filter(|net| Family::of(net.addr()) == family)
            .map(IpNet::broadcast)
            .take(LOOKED_UP)
            .collect();
        let samples = rounds.clone().map(|_| {
            nanoseconds(lookups, &addresses, |address| {
                black_box(rules.decide(&query(None, *address)));
            })
        });
        let title = format!("a decision of the rules by {family:?} prefix");
        lines.push(Line::new(title, "ns", samples.collect()));
    }
    Ok(lines)
}

fn rule(name: &str, domain: Option<Vec<Domain>>, prefix: Option<Vec<IpNet>>) -> Rule {
    Rule {
        name: name.to_owned(),
        domain,
        prefix,
        source: None,
        port: None,
        protocol: None,
        outbound: "direct".to_owned(),
    }
}

fn query(name: Option<&str>, destination: IpAddr) -> Query<'_> {
    Query {
        protocol: Protocol::Tcp,
        source: SocketAddr::new(Family::V4.device(), 40_000),
        destination: SocketAddr::new(destination, 443),
        name,
    }
}

fn milliseconds(start: Instant) -> f64 {
    start.elapsed().as_secs_f64() * 1e3
}

/// The mean of many look-ups.
fn nanoseconds<T>(count: usize, keys: &[T], mut look: impl FnMut(&T)) -> f64 {
    let start = Instant::now();
    for key in keys.iter().cycle().take(count) {
        look(black_box(key));
    }
    start.elapsed().as_secs_f64() * 1e9 / count as f64
}
