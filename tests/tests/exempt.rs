//! Who on the gateway goes direct: by gid, uid, cgroup, mark, destination and `exempt run`.

use std::{
    collections::BTreeMap,
    fs,
    net::IpAddr,
    path::PathBuf,
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use lab::{
    Family, Lab, Namespace, Output, Process, Snapshot, Tproxy,
    addr::url,
    gateway, process,
    servers::{Danted, Dnsmasq, Nginx},
    traffic::HeldDownload,
    wait::until,
    ways::soon,
};
use serde_json::{Value, json};
use tproxy_userspace::control::cgroup;

const LIMIT: Duration = Duration::from_secs(10);
const GID: [&str; 5] = ["setpriv", "--regid", "4242", "--clear-groups", "--"];
const UID: [&str; 5] = ["setpriv", "--reuid", "4343", "--clear-groups", "--"];
const NEIGHBOUR: [&str; 7] = [
    "setpriv",
    "--reuid",
    "4344",
    "--regid",
    "4243",
    "--clear-groups",
    "--",
];

/// Servers in the internet, and a SOCKS server there: whoever is proxied comes from its address.
struct Servers {
    danted: Danted,
    nginx: Nginx,
    dnsmasq: Dnsmasq,
}

impl Servers {
    fn start(lab: &Lab) -> Result<Self> {
        Ok(Self {
            danted: Danted::start(&lab.internet, lab.dir())?,
            nginx: Nginx::start(&lab.internet, lab.dir())?,
            dnsmasq: Dnsmasq::start(&lab.internet)?,
        })
    }

    fn outbound(&self) -> String {
        self.danted.url(Family::V4)
    }

    /// Whom the servers see when a program on the gateway is started with `prefix` in front: TCP (curl),
    /// UDP (dig).
    fn see(&self, ns: &Namespace, prefix: &[&str], family: Family) -> Result<[IpAddr; 2]> {
        static QUESTION: AtomicU32 = AtomicU32::new(0);
        let target = url(family.far(1), "whoami");
        let curl = [
            "curl",
            "-sS",
            "--fail",
            "--noproxy",
            "*",
            "--max-time",
            "10",
            &target,
        ];
        let answer = ns.run(&[prefix, &curl].concat())?.stdout;
        let tcp = answer.split_whitespace().next().unwrap_or_default();
        let tcp = tcp.parse().with_context(|| format!("in {answer:?}"))?;
        let name = format!("q{}.lab", QUESTION.fetch_add(1, Ordering::Relaxed));
        let server = format!("@{}", family.far(2));
        let dig = [
            "dig", "+short", "+time=5", "+tries=1", "+notcp", &server, &name,
        ];
        ns.run(&[prefix, &dig].concat())?;
        Ok([tcp, self.dnsmasq.client_of(&name, 1)?])
    }

    fn want(
        &self,
        ns: &Namespace,
        prefix: &[&str],
        address: impl Fn(Family) -> IpAddr,
        way: &str,
    ) -> Result<()> {
        for family in Family::BOTH {
            let (seen, wanted) = (self.see(ns, prefix, family)?, [address(family); 2]);
            ensure!(
                seen == wanted,
                "{prefix:?}, {family:?}: the servers saw {seen:?}, so it did not go {way}"
            );
        }
        Ok(())
    }

    fn direct(&self, ns: &Namespace, prefix: &[&str]) -> Result<()> {
        self.want(ns, prefix, Family::gateway_wan, "direct")
    }

    fn proxied(&self, ns: &Namespace, prefix: &[&str]) -> Result<()> {
        self.want(ns, prefix, |family| family.upstream(1), "by the proxy")
    }
}

/// A lab whose gateway proxies its own traffic.
fn own_traffic(config: &str) -> Result<(Lab, Servers, Tproxy)> {
    let lab = Lab::new()?;
    let servers = Servers::start(&lab)?;
    let proxy = run(&lab, &servers, config)?;
    Ok((lab, servers, proxy))
}

fn run(lab: &Lab, servers: &Servers, config: &str) -> Result<Tproxy> {
    let path = write(lab, config)?;
    lab.tproxy(&args(&path, &servers.outbound()))
}

/// The gateway's own traffic, by this configuration and this outbound.
fn args<'a>(path: &'a str, outbound: &'a str) -> [&'a str; 7] {
    [
        "run",
        "-c",
        path,
        "--wan",
        "default",
        "--outbound",
        outbound,
    ]
}

fn write(lab: &Lab, config: &str) -> Result<String> {
    let path = lab.dir().join("exempt.toml");
    fs::write(&path, config)?;
    Ok(path.to_string_lossy().into_owned())
}

fn exempt(lab: &Lab, args: &[&str]) -> Result<Output> {
    lab.tproxy_run(&[&["exempt"], args].concat())?.ok()
}

fn list(lab: &Lab) -> Result<Vec<Value>> {
    exempt(lab, &["list", "--json"])?.json()
}

/// Others mark what the gateway sends, by an nft match.
fn mark_packets(lab: &Lab, which: &str, mark: &str) -> Result<()> {
    lab.gateway.run(&[
        "nft",
        &format!(
            "add table inet theirs; \
             add chain inet theirs out {{ type filter hook output priority mangle; }}; \
             add rule inet theirs out {which} meta mark set {mark}"
        ),
    ])?;
    Ok(())
}

/// A cgroup of a test.
struct Cgroup {
    path: String,
    folder: PathBuf,
}

impl Cgroup {
    /// Its path, with nothing there yet.
    fn named(name: &str) -> Result<Self> {
        let root = cgroup::mount()?.context("this machine has no cgroup2")?;
        let path = format!("/lab-{}-{name}", std::process::id());
        let folder = root.join(&path[1..]);
        Ok(Self { path, folder })
    }

    fn make(&self) -> Result<()> {
        fs::create_dir_all(&self.folder).with_context(|| format!("making {}", self.path))
    }

    fn new(name: &str) -> Result<Self> {
        let cgroup = Self::named(name)?;
        cgroup.make()?;
        Ok(cgroup)
    }

    /// Removes it, and what is above it if nothing else is there.
    fn remove(&self) -> Result<()> {
        // The kernel lets go of a process a moment after it was waited for.
        soon("an empty cgroup", || Ok(fs::remove_dir(&self.folder)?))?;
        let above = self.folder.ancestors().skip(1);
        // It ends at the root at the latest, which cannot be removed.
        above
            .take_while(|folder| fs::remove_dir(folder).is_ok())
            .count();
        Ok(())
    }

    /// What to put in front of a program that is to run in it.
    fn prefix(&self) -> Vec<String> {
        let enter = "echo 0 >\"$0/cgroup.procs\" && exec \"$@\"".to_owned();
        let folder = self.folder.to_string_lossy().into_owned();
        vec!["sh".to_owned(), "-c".to_owned(), enter, folder]
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        if self.folder.exists()
            && let Err(error) = self.remove()
        {
            eprintln!("{error:#}");
        }
    }
}

fn strs(words: &[String]) -> Vec<&str> {
    words.iter().map(String::as_str).collect()
}

#[test]
fn each_of_them_goes_direct_and_its_neighbour_does_not() -> Result<()> {
    let (lab, servers, _proxy) = own_traffic("")?;
    let ns = &lab.gateway;
    let cgroup = Cgroup::new("each")?;
    let below = Cgroup::new("each/below/deeper")?;
    mark_packets(&lab, "meta skuid 4545", "0x00a80001")?;
    let marked = ["setpriv", "--reuid", "4545", "--clear-groups", "--"];
    let (inside, deeper) = (cgroup.prefix(), below.prefix());
    let (inside, deeper) = (strs(&inside), strs(&deeper));
    for (who, prefix) in [
        (["--gid", "4242"], &GID[..]),
        (["--uid", "4343"], &UID[..]),
        (["--cgroup", &cgroup.path], &inside),
        (["--cgroup", &cgroup.path], &deeper),
        (["--mark", "0x80000/0x0f0000"], &marked[..]),
    ] {
        servers.proxied(ns, prefix)?;
        exempt(&lab, &[&["add"], &who[..]].concat())?;
        let rows = list(&lab)?;
        ensure!(rows.len() == 1 && rows[0]["in_force"] == true, "{rows:?}");
        let before = lab.packets("exempt")?;
        servers.direct(ns, prefix)?;
        ensure!(lab.packets("exempt")? > before, "it is not counted");
        servers.proxied(ns, &NEIGHBOUR)?;
        servers.proxied(ns, &[])?;
        exempt(&lab, &[&["del"], &who[..]].concat())?;
        servers.proxied(ns, prefix)?;
        ensure!(list(&lab)?.is_empty());
    }
    drop((below, cgroup));

    // The fourth way is by destination, for everybody.
    lab.bypass(&["add", "203.0.113.0/24", "2001:db8:f::/64"])?;
    servers.direct(ns, &NEIGHBOUR)?;
    lab.bypass(&["flush"])?;
    servers.proxied(ns, &NEIGHBOUR)
}

#[test]
fn an_edit_leaves_connections_that_live_as_they_are() -> Result<()> {
    const MIB: u64 = 1 << 20;
    let (lab, servers, proxy) = own_traffic("")?;
    let (path, content) = servers.nginx.offer(64 * MIB)?;
    let start = || -> Result<Vec<HeldDownload>> {
        let start = |family: Family| {
            let mut held = HeldDownload::start(&lab.gateway, &url(family.far(1), &path))?;
            held.advance(MIB)?;
            Ok(held)
        };
        Family::BOTH.into_iter().map(start).collect()
    };
    // curl's alone: the proxy asks danted.
    mark_packets(&lab, "tcp dport 80", "0x100")?;
    let (mut direct, mut proxied) = (Vec::new(), Vec::new());
    for who in [["--uid", "0"], ["--mark", "0x100"]] {
        proxied.extend(start()?);
        exempt(&lab, &[&["add"], &who[..]].concat())?;
        direct.extend(start()?);
        exempt(&lab, &[&["del"], &who[..]].concat())?;
    }
    exempt(&lab, &["add", "--mark", "0x100", "--uid", "0"])?;
    let mut clients = BTreeMap::new();
    for (held, address) in [
        (direct, Family::gateway_wan as fn(Family) -> IpAddr),
        (proxied, |family| family.upstream(1)),
    ] {
        for (mut held, family) in held.into_iter().zip(Family::BOTH.into_iter().cycle()) {
            held.advance(16 * MIB)?;
            assert_eq!(held.finish()?.sha256, content.sha256);
            *clients.entry(address(family)).or_insert(0) += 1;
        }
    }
    // nginx logs a request at its end.
    until("all downloads in the log", LIMIT, || {
        let mut seen: BTreeMap<IpAddr, u32> = BTreeMap::new();
        for request in servers.nginx.requests()? {
            *seen.entry(request.client).or_insert(0) += 1;
        }
        Ok((seen == clients).then_some(()))
    })
    .with_context(|| format!("wanted {clients:?}, in {:?}", servers.nginx.requests()))?;
    proxy.stop()
}

#[test]
fn a_command_that_is_run_exempt_goes_direct_and_ends_as_it_would() -> Result<()> {
    let (lab, servers, _proxy) = own_traffic("")?;
    let ns = &lab.gateway;
    let binary = gateway::binary()?;
    let binary = binary.to_str().context("a path in UTF-8")?;
    let prefix = [binary, "exempt", "run", "--"];
    servers.direct(ns, &prefix)?;
    // What it starts goes direct as well.
    let nested = [&prefix[..], &["sh", "-c", "\"$@\"; exit $?", "sh"]].concat();
    servers.direct(ns, &nested)?;
    servers.proxied(ns, &NEIGHBOUR)?;
    let rows = list(&lab)?;
    ensure!(rows.len() == 1 && rows[0]["origin"] == "run", "{rows:?}");
    let own = format!("/tproxy-bpf.{}", ns.inode());
    assert_eq!(rows[0]["name"], own.as_str());

    // A program that was started before the exemption ended is not exempt any more for what is new.
    let wait = "echo ready; read _; exec \"$@\"";
    let target = url(Family::V4.far(1), "whoami");
    let mut command = ns.argv(
        &[
            &prefix[..],
            &["sh", "-c", wait, "sh", "curl", "-sS", &target],
        ]
        .concat(),
    );
    command.stdin(std::process::Stdio::piped());
    let mut child = command.stdout(std::process::Stdio::piped()).spawn()?;
    until("the command in its cgroup", LIMIT, || {
        let processes = fs::read_to_string(
            Cgroup::named("x")?
                .folder
                .with_file_name(&own[1..])
                .join("cgroup.procs"),
        )?;
        let pid = child.id().to_string();
        Ok(processes.lines().any(|line| line == pid).then_some(()))
    })?;
    exempt(&lab, &["del", "--cgroup", &own])?;
    drop(child.stdin.take());
    let said = child.wait_with_output()?;
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    ensure!(said.contains(&Family::V4.upstream(1).to_string()), "{said}");

    let ends = |args: &[&str]| lab.tproxy_run(&[&["exempt", "run"], args].concat());
    assert_eq!(ends(&["sh", "-c", "exit 3"])?.code(), Some(3));
    assert_eq!(ends(&["--", "true"])?.code(), Some(0));
    let killed = ends(&["sh", "-c", "kill -9 $$"])?;
    assert_eq!(killed.code(), None);
    lab.refused(
        &["exempt", "run", "--", "no-such-command", "-x"],
        127,
        &["no-such-command", "No such file", "PATH"],
    )?;
    lab.refused(&["exempt", "run", "--", "/etc"], 126, &["/etc"])?;
    lab.refused(&["exempt", "run"], 2, &["CMD"])?;
    Ok(())
}

/// The program at the root of cgroup2 hears of the sockets of all gateways.
#[test]
fn who_is_exempt_on_one_gateway_is_not_on_another() -> Result<()> {
    let (lab, servers, _proxy) = own_traffic("[exempt]\ngids = [4242]\nuids = [4343]\n")?;
    let (other, others, _other_proxy) = own_traffic("")?;
    let cgroup = Cgroup::new("two")?;
    exempt(&lab, &["add", "--cgroup", &cgroup.path])?;
    let inside = cgroup.prefix();
    for prefix in [&GID[..], &UID, &strs(&inside)] {
        others.proxied(&other.gateway, prefix)?;
        servers.direct(&lab.gateway, prefix)?;
    }
    ensure!(list(&other)?.is_empty());
    Ok(())
}

#[test]
fn a_cgroup_that_is_made_anew_is_exempt_again() -> Result<()> {
    let unit = Cgroup::named("anew/system.slice/foo.service")?;
    let by_command = Cgroup::named("anew-too/foo")?;
    let config = format!("[exempt]\ncgroups = [\"{}\"]\n", unit.path);
    let (lab, servers, _proxy) = own_traffic(&config)?;
    exempt(&lab, &["add", "--cgroup", &by_command.path])?;
    let state = |cgroup: &Cgroup| -> Result<(Value, Value)> {
        let rows = list(&lab)?;
        let mut rows = rows
            .iter()
            .filter(|row| row["name"] == cgroup.path.as_str());
        let row = rows.next().context("it is not in the list")?;
        Ok((row["exists"].clone(), row["in_force"].clone()))
    };
    let text = exempt(&lab, &["list"])?.stdout;
    ensure!(text.matches("does not exist yet").count() == 2, "{text}");
    for round in 0..3 {
        for cgroup in [&unit, &by_command] {
            assert_eq!(state(cgroup)?, (json!(false), json!(false)));
            cgroup.make()?;
            let start = Instant::now();
            until("the new cgroup to be exempt", LIMIT, || {
                Ok((state(cgroup)? == (json!(true), json!(true))).then_some(()))
            })?;
            eprintln!("round {round}: found after {:?}", start.elapsed());
            let inside = cgroup.prefix();
            servers.direct(&lab.gateway, &strs(&inside))?;
            servers.proxied(&lab.gateway, &[])?;
            cgroup.remove()?;
        }
    }
    // With the proxy gone an edit finds it.
    _proxy.kill9();
    lab.tproxy_run(&["attach", "--as", "wan", "wan0"])?.ok()?;
    unit.make()?;
    assert_eq!(state(&unit)?, (json!(true), json!(false)));
    let text = exempt(&lab, &["list"])?.stdout;
    ensure!(text.contains("made anew"), "{text}");
    exempt(&lab, &["add", "--gid", "1"])?;
    assert_eq!(state(&unit)?, (json!(true), json!(true)));
    Ok(())
}

/// A command that runs on: what `exempt run` started, and a child of it in a cgroup below.
fn lives_on(lab: &Lab) -> Result<Process> {
    let own = format!("/tproxy-bpf.{}", lab.gateway.inode());
    let folder = Cgroup::named("x")?.folder.with_file_name(&own[1..]);
    let script = "mkdir \"$0/sub\" && (echo 0 >\"$0/sub/cgroup.procs\"; exec sleep 600) & \
                  until [ -d \"$0/sub\" ] && grep -q . \"$0/sub/cgroup.procs\"; do :; done; \
                  echo up; exec sleep 600";
    let folder = folder.to_string_lossy();
    let command = lab.tproxy_command(&["exempt", "run", "--", "sh", "-c", script, &folder])?;
    let process = Process::spawn(command)?;
    process.wait_for_line("up", LIMIT)?;
    Ok(process)
}

fn is_at_the_root(process: &mut Process) -> Result<()> {
    ensure!(process.ended()?.is_none(), "the command has ended");
    let text = fs::read_to_string(format!("/proc/{}/cgroup", process.pid()))?;
    ensure!(text.lines().any(|line| line == "0::/"), "it is in {text}");
    Ok(())
}

#[test]
fn detach_leaves_no_cgroup_and_the_command_lives_on() -> Result<()> {
    let lab = Lab::new()?;
    let servers = Servers::start(&lab)?;
    let before = Snapshot::take(&lab)?;
    let ends: [fn(&Lab, Tproxy) -> Result<()>; 3] = [
        |_, proxy| proxy.stop(),
        |lab, _proxy| lab.tproxy_run(&["detach"])?.ok().map(drop),
        |lab, proxy| {
            proxy.kill9();
            lab.tproxy_run(&["detach"])?.ok().map(drop)
        },
    ];
    for (number, end) in ends.into_iter().enumerate() {
        let proxy = run(&lab, &servers, "")?;
        let mut command = lives_on(&lab)?;
        let with = Snapshot::take(&lab)?.since(&before);
        ensure!(
            with.iter()
                .any(|line| line.starts_with("+ cgroup: tproxy-bpf.")),
            "a cgroup of ours shows nowhere: {with:?}"
        );
        end(&lab, proxy)?;
        lab.restored(&before)
            .with_context(|| format!("end {number}"))?;
        is_at_the_root(&mut command)?;
    }
    Ok(())
}

#[test]
fn without_a_daemon_edits_are_kept_and_whole() -> Result<()> {
    let lab = Lab::new()?;
    let cgroup = Cgroup::new("whole")?;
    for args in [
        &["add", "--gid", "1"][..],
        &["del", "--gid", "1"],
        &["list"],
        &["run", "--", "true"],
    ] {
        let args = [&["exempt"], args].concat();
        lab.refused(&args, 1, &["nothing is attached"])?;
    }
    let none = Snapshot::take(&lab)?;
    lab.tproxy_run(&["attach", lab.lan()])?.ok()?;
    let said = exempt(&lab, &["add", "--gid", "4242"])?.stdout;
    ensure!(said.contains("no WAN link is attached"), "{said}");
    lab.tproxy_run(&["attach", "--as", "wan", "wan0"])?.ok()?;
    let said = exempt(
        &lab,
        &[
            "add",
            "--gid",
            "root",
            "--gid",
            "4242",
            "--uid",
            "daemon",
            "--cgroup",
            &cgroup.path,
            "--mark",
            "0x80000/0xff0000",
            "--mark",
            "16",
        ],
    )?
    .stdout;
    assert_eq!(said, "6 exemptions added\n");
    let rows = list(&lab)?;
    let shown: Vec<_> = rows
        .iter()
        .map(|row| {
            (
                row["kind"].as_str().unwrap_or("?"),
                row["id"].to_string(),
                row["name"].clone(),
            )
        })
        .collect();
    let id = fs::metadata(&cgroup.folder)?;
    let id = std::os::unix::fs::MetadataExt::ino(&id).to_string();
    assert_eq!(
        shown,
        [
            ("gid", "0".into(), json!("root")),
            ("gid", "4242".into(), json!(null)),
            ("uid", "1".into(), json!("daemon")),
            ("cgroup", id, json!(cgroup.path)),
            ("mark", "\"0x10\"".into(), json!(null)),
            ("mark", "\"0x80000/0xff0000\"".into(), json!(null)),
        ]
    );
    let full = format!("{}", cgroup.folder.display());
    for (args, words) in [
        (
            &["del", "--gid", "root", "--uid", "77"][..],
            &["uid 77", "nothing was removed"][..],
        ),
        (&["del", "--mark", "0x11", "--gid", "0"], &["mark 0x11"]),
        (
            &["add", "--gid", "5", "--gid", "no-such-group"],
            &["group", "no-such-group", "number"],
        ),
        (&["add", "--gid", "5", "--uid=-1"], &["--uid", "-1"]),
        (
            &["add", "--gid", "5", "--cgroup", "foo"],
            &["--cgroup", "slash"],
        ),
        (
            &[
                "add",
                "--gid",
                "5",
                "--cgroup",
                "/sys/fs/cgroup/nowhere/../x",
            ],
            &["`..`"],
        ),
        (&["add", "--gid", "5", "--mark", "1/0"], &["--mark", "mask"]),
        (
            &["add", "--gid", "5", "--mark", "0xa0"],
            &["0xa0", "tproxy-bpf itself"],
        ),
    ] {
        let args = [&["exempt"], args].concat();
        lab.refused(&args, 1, words)?;
        assert_eq!(list(&lab)?, rows, "after {args:?}");
    }
    let many: Vec<String> = (1..=15).map(|n| format!("--mark={}", n << 8)).collect();
    let many = [&["exempt", "add", "--gid=5"], &strs(&many)[..]].concat();
    lab.refused(&many, 1, &["16", "17", "nothing was changed"])?;
    assert_eq!(list(&lab)?, rows);
    lab.refused(&["exempt", "add"], 2, &["--gid"])?;
    lab.refused(&["exempt", "add", "--frob", "1"], 2, &[])?;
    // The absolute path is the same cgroup.
    exempt(
        &lab,
        &["del", "--cgroup", &full, "--mark", "0x10", "--uid", "1"],
    )?;
    assert_eq!(list(&lab)?.len(), 3);
    let status = lab.status()?;
    assert_eq!(
        status["exempt"],
        json!({ "entries": 3, "in_force": { "wan": true, "makers": true } })
    );
    let text = lab.tproxy_run(&["status"])?.ok()?.stdout;
    ensure!(
        text.contains("3 entries; by gid, uid, cgroup, mark: in force"),
        "{text}"
    );
    lab.tproxy_run(&["detach"])?.ok()?;
    lab.restored(&none)
}

#[test]
fn a_configuration_replaces_what_a_configuration_said() -> Result<()> {
    let lab = Lab::new()?;
    let before = Snapshot::take(&lab)?;
    let attach = |config: &str| -> Result<Output> {
        let path = write(&lab, config)?;
        lab.tproxy_run(&["attach", "--as", "wan", "wan0", "-c", &path])
    };
    let origins = || -> Result<Vec<(Value, Value)>> {
        let rows = list(&lab)?.into_iter();
        Ok(rows
            .map(|row| (row["id"].clone(), row["origin"].clone()))
            .collect())
    };
    attach("[exempt]\ngids = [5, \"root\"]\nmarks = [0x100, \"0x200/0xf00\"]\n")?.ok()?;
    exempt(&lab, &["add", "--gid", "5", "--gid", "6"])?;
    attach("[exempt]\ngids = [6, 7]\nmarks = [0x100]\n")?.ok()?;
    assert_eq!(
        origins()?,
        [
            (json!(5), json!("command")),
            (json!(6), json!("command")),
            (json!(7), json!("config")),
            (json!("0x100"), json!("config")),
        ]
    );
    for (wrong, words) in [
        (
            "gids = [\"no-such-group\"]",
            &["no-such-group", "write its number"][..],
        ),
        ("uids = [\"no-such-user\"]", &["user", "no-such-user"]),
        (
            "cgroups = [\"/sys/fs/cgroup/nowhere\"]",
            &["not a path of cgroup2"],
        ),
    ] {
        let path = write(&lab, &format!("[exempt]\n{wrong}\n"))?;
        for args in [
            &["attach", "--as", "wan", "wan0", "-c", &path][..],
            &["run", "--wan", "wan0", "-c", &path],
            &["check", &path],
        ] {
            lab.refused(args, 1, words)?;
        }
        assert_eq!(origins()?.len(), 4);
    }
    lab.tproxy_run(&["detach"])?.ok()?;
    lab.restored(&before)
}

/// `tproxy-bpf` where no cgroup2 is mounted.
fn without_cgroup2(lab: &Lab, args: &[&str]) -> Result<std::process::Command> {
    let binary = gateway::binary()?;
    let binary = binary.to_str().context("a path in UTF-8")?;
    let script = "umount -a -t cgroup2 && exec \"$@\"";
    let front = ["unshare", "--mount", "sh", "-c", script, "sh", binary];
    Ok(lab.gateway.argv(&[&front[..], args].concat()))
}

#[test]
fn without_cgroup2_marks_and_destinations_still_go_direct() -> Result<()> {
    let lab = Lab::new()?;
    let servers = Servers::start(&lab)?;
    let before = Snapshot::take(&lab)?;
    let ns = &lab.gateway;
    let there = |args: &[&str]| process::run(without_cgroup2(&lab, args)?, LIMIT);
    let refused = |args: &[&str]| -> Result<()> {
        let output = there(args)?;
        assert_eq!(output.code(), Some(1), "{output:?}");
        for word in ["no cgroup2", "mark", "bypass add", "mount -t cgroup2"] {
            ensure!(
                output.stderr.contains(word),
                "nothing of {word}: {}",
                output.stderr
            );
        }
        Ok(())
    };
    for named in ["gids = [1]", "uids = [\"root\"]", "cgroups = [\"/a\"]"] {
        let path = write(&lab, &format!("[exempt]\n{named}\n"))?;
        refused(&["run", "-c", &path, "--wan", "default"])?;
        refused(&["attach", "-c", &path, "--as", "wan", "wan0"])?;
        lab.restored(&before)?;
    }
    let path = write(&lab, "[exempt]\nmarks = [0x200]\n")?;
    let outbound = servers.outbound();
    let args = args(&path, &outbound);
    let proxy = Lab::tproxy_by(without_cgroup2(&lab, &args)?)?;
    proxy.process().wait_for_line("no cgroup2", LIMIT)?;
    for who in [["--gid", "4242"], ["--uid", "4343"], ["--cgroup", "/a"]] {
        refused(&[&["exempt", "add"], &who[..]].concat())?;
    }
    refused(&["exempt", "run", "--", "true"])?;
    refused(&["exempt", "add", "--mark", "0x100", "--gid", "1"])?;
    assert_eq!(list(&lab)?.len(), 1);
    let text = there(&["exempt", "list"])?.ok()?.stdout;
    ensure!(text.contains("by gid, uid, cgroup: not in force"), "{text}");

    servers.proxied(ns, &[])?;
    mark_packets(&lab, "meta skuid 4343", "0x100")?;
    servers.proxied(ns, &UID)?;
    there(&["exempt", "add", "--mark", "0x100"])?.ok()?;
    servers.direct(ns, &UID)?;
    there(&["exempt", "del", "--mark", "0x100"])?.ok()?;
    servers.proxied(ns, &UID)?;
    ns.run(&["nft", "delete table inet theirs"])?;
    there(&["bypass", "add", "203.0.113.0/24", "2001:db8:f::/64"])?.ok()?;
    servers.direct(ns, &NEIGHBOUR)?;
    proxy.stop()?;
    lab.restored(&before)
}
