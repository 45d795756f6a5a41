//! One process takes over from another: what the two say to each other, and what each does.
//!
//! The new process asks at the old one's socket and gets its sockets and its lock at once, as files. When it is ready to
//! serve it says so; the old one stops to take what is new and tells what else there is to know. Only when the new
//! one serves does the old one let go. Until then it can go on as before: nothing of the gateway was taken down.

use std::fs;
use std::future::pending;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use ipnet::IpNet;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::net::{UnixListener, UnixStream};
use tokio::time::timeout;
use tproxy_userspace::config::Config;
use tproxy_userspace::control::life::{Life, life};
use tproxy_userspace::control::place::{Lock, Place};
use tproxy_userspace::control::preflight::KernelVersion;
use tproxy_userspace::data::{Handed, Inheritance, Inherited, Sockets, Upstream};
use tproxy_userspace::net::pass;
use tproxy_userspace::observe::api::Prepared;
use tproxy_userspace::observe::log::Log;
use tproxy_userspace::step::{Step, step};

use super::super::api;
use super::Session;
use super::signals::Signals;
use super::start::{Begun, Presence, open_gateway, serve_on};

/// Which messages the two exchange. Both must be of one version.
const VERSION: u32 = 1;
/// The longest message, in bytes: of the largest table of names.
const LONGEST: usize = 64 << 20;
/// How long each side waits for a word of the other that needs no work.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long it may take to ask systemd and to tell it.
const LEAVE_PATIENCE: Duration = Duration::from_secs(30);
/// How long the old process waits until the new one serves.
const START_PATIENCE: Duration = Duration::from_secs(60);

/// The first word of the old process. With it come the sockets, then the lock.
#[derive(Serialize, Deserialize)]
struct Hello {
    version: u32,
    pid: u32,
}

/// What the new process says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Word {
    /// Take nothing new any more.
    Commit,
    /// This one serves: let go.
    Done,
    /// The service manager is about to end its main process: go on to serve if that is for a restart.
    Leave,
}

/// What the old process says to [`Word::Leave`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Answer {
    /// It goes on until another process takes over.
    Left,
    /// It stays the main process, which is told to end in the usual way.
    Stays,
    /// It ends now.
    Ends,
}

/// What another process wants of this one.
pub(super) enum Wish {
    /// To serve in its place.
    TakeOver,
    /// That it goes on beside the service manager.
    Leave,
}

/// What the old process tells when it takes nothing new any more. With it come the channels to those that drain.
#[derive(Default, Serialize, Deserialize)]
pub(super) struct State {
    selected: Vec<(String, String)>,
    last_flow: u64,
    /// By process: the clients that it has.
    predecessors: Vec<(u32, Vec<SocketAddr>)>,
    /// Names and addresses that the kernel lets pass or not, and for how many seconds.
    pub(super) learned: Vec<(String, IpAddr, u64)>,
    /// Links that `detach` took.
    pub(super) released: Vec<String>,
}

/// Where a proxy is taken over from.
pub(super) struct Heirs {
    listener: UnixListener,
    path: PathBuf,
}

impl Heirs {
    /// Listens at the place's socket. Only the holder of the proxy's lock may call this.
    pub(super) fn bind(place: &Place) -> Result<Self> {
        let path = place.takeover_socket();
        let bind = || {
            match fs::remove_file(&path) {
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            let listener = UnixListener::bind(&path)?;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
            Ok(listener)
        };
        let listener =
            bind().with_context(|| format!("making the socket {} failed", path.display()))?;
        Ok(Self { listener, path })
    }

    /// The next process that wants to take over. Nothing is lost when the future is dropped.
    pub(super) async fn next(&self) -> UnixStream {
        loop {
            match self.listener.accept().await {
                Ok((stream, _)) => return stream,
                // Out of descriptors, most likely: they come back.
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
    }
}

impl Drop for Heirs {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// The process that wants to take over, as the old one sees it.
pub(super) struct Heir {
    stream: UnixStream,
    pid: Option<i32>,
}

impl Heir {
    /// Gives it what it needs to get ready.
    pub(super) async fn greet(stream: UnixStream, sockets: &Sockets, lock: &Lock) -> Result<Self> {
        let pid = stream.peer_cred().ok().and_then(|peer| peer.pid());
        let mut heir = Self { stream, pid };
        let hello = Hello {
            version: VERSION,
            pid: std::process::id(),
        };
        let mut files = sockets.files();
        files.push(lock.file());
        say(&mut heir.stream, &hello, &files).await?;
        step(Step::TestatorGreeted);
        Ok(heir)
    }

    /// For people.
    pub(super) fn name(&self) -> String {
        self.pid.map_or_else(
            || "another process".to_owned(),
            |pid| format!("process {pid}"),
        )
    }

    /// Waits until it is ready. An error: it gave up.
    async fn wish(&mut self) -> Result<Wish> {
        // Nothing is lost when this is dropped while it waits.
        self.stream.readable().await?;
        match hear(&mut self.stream, PATIENCE).await?.0 {
            Word::Commit => Ok(Wish::TakeOver),
            Word::Leave => Ok(Wish::Leave),
            word => bail!("it said {word:?} where {:?} was due", Word::Commit),
        }
    }

    /// Answers the wish that this process leaves.
    pub(super) async fn answer(&mut self, answer: Answer) {
        // Whoever does not hear it any more waits for nothing.
        let _ = say(&mut self.stream, &answer, &[]).await;
    }

    /// Tells it the rest, and waits until it serves.
    pub(super) async fn give(&mut self, inheritance: Inheritance, mut state: State) -> Result<()> {
        let mut channels = Vec::new();
        for one in inheritance.predecessors {
            state.predecessors.push((one.pid, one.clients));
            channels.push(one.channel);
        }
        state.selected = inheritance.selected;
        state.last_flow = inheritance.last_flow;
        let files: Vec<_> = channels.iter().map(AsFd::as_fd).collect();
        say(&mut self.stream, &state, &files).await?;
        self.hears(Word::Done, START_PATIENCE).await
    }

    async fn hears(&mut self, wanted: Word, patience: Duration) -> Result<()> {
        let (word, _) = hear::<Word>(&mut self.stream, patience).await?;
        if word != wanted {
            bail!("it said {word:?} where {wanted:?} was due");
        }
        Ok(())
    }
}

/// The process to take over from, as the new one sees it.
pub(super) struct Testator {
    stream: UnixStream,
    pub(super) pid: u32,
}

impl Testator {
    /// Asks the proxy that runs in this place for its sockets and its lock. None: there is no proxy.
    pub(super) async fn ask(place: &Place) -> Result<Option<(Self, Sockets, Lock)>> {
        let path = place.takeover_socket();
        let asked = Self::ask_at(&path, place.proxy_pid().is_some()).await;
        asked.with_context(|| format!("taking over from the proxy at {} failed", path.display()))
    }

    async fn ask_at(path: &Path, runs: bool) -> Result<Option<(Self, Sockets, Lock)>> {
        let mut stream = match UnixStream::connect(path).await {
            Ok(stream) => stream,
            Err(error) if !runs => match error.kind() {
                ErrorKind::NotFound | ErrorKind::ConnectionRefused => return Ok(None),
                _ => return Err(error.into()),
            },
            Err(error) => {
                return Err(error).context(
                    "a proxy runs, but it cannot be taken over from now: it is starting, stopping or being taken over \
                     from; try again, or stop it",
                );
            }
        };
        let (hello, mut files) = hear::<Hello>(&mut stream, PATIENCE).await?;
        if hello.version != VERSION {
            bail!(
                "the proxy that runs (process {}) hands over in another way than this version; stop it, then start this \
                 one",
                hello.pid
            );
        }
        let lock = files.pop().context("it gave no files")?;
        let sockets = Sockets::from_files(files).context("it gave no sockets")?;
        step(Step::HeirAsked);
        let testator = Self {
            stream,
            pid: hello.pid,
        };
        Ok(Some((testator, sockets, Lock::given(lock))))
    }

    /// Tells the old process that the service manager is about to end its main process.
    pub(super) async fn leave(mut self) -> Result<Answer> {
        say(&mut self.stream, &Word::Leave, &[]).await?;
        Ok(hear(&mut self.stream, LEAVE_PATIENCE).await?.0)
    }

    /// Says that this process is ready, and gets the rest.
    pub(super) async fn commit(&mut self) -> Result<(Inheritance, State)> {
        say(&mut self.stream, &Word::Commit, &[]).await?;
        let (mut state, channels) = hear::<State>(&mut self.stream, PATIENCE).await?;
        let predecessors = std::mem::take(&mut state.predecessors);
        if predecessors.len() != channels.len() {
            bail!("it gave other channels than it told of");
        }
        let predecessors = predecessors.into_iter().zip(channels);
        let inheritance = Inheritance {
            predecessors: predecessors
                .map(|((pid, clients), channel)| Inherited {
                    pid,
                    clients,
                    channel,
                })
                .collect(),
            selected: std::mem::take(&mut state.selected),
            last_flow: state.last_flow,
        };
        Ok((inheritance, state))
    }

    /// Gets ready with the sockets of the other process, and serves them in its place. An error, or dropping this, leaves the
    /// other one as it was.
    pub(super) async fn take_over(
        &mut self,
        opening: impl Future<Output = Result<(Sockets, Upstream)>>,
        (lock, log): (Lock, Log),
        config: &Config,
        prefixes: &[IpNet],
        place: &Place,
        kernel: KernelVersion,
    ) -> Result<(Begun, Presence, State)> {
        let port = config.proxy.port;
        let opened = opening.await?;
        if port != 0 && !opened.0.all_have(port) {
            bail!(
                "proxy.port is another than that of the proxy that runs: stop that one, then start this one"
            );
        }
        let mut gateway = open_gateway(place, kernel).await?;
        // From the next word on, what is new waits for this process.
        gateway.load_programs()?;
        step(Step::HeirLoaded);
        let (inheritance, state) = self.commit().await?;
        step(Step::HeirCommitted);
        let presence = Presence::with_lock(place, lock, log)?;
        step(Step::HeirPresent);
        let served = serve_on(&mut gateway, config, opened, prefixes, inheritance);
        let (proxy, learned) = served?;
        step(Step::HeirServing);
        let begun = Begun {
            gateway,
            proxy,
            learned,
        };
        Ok((begun, presence, state))
    }

    /// Says that this process serves.
    pub(super) async fn done(mut self) -> Result<()> {
        say(&mut self.stream, &Word::Done, &[]).await
    }
}

impl Session<'_> {
    /// Answers a process that wants to take over.
    pub(super) async fn greet(&self, stream: UnixStream, lock: &Lock) -> Option<Heir> {
        let sockets = self.proxy.sockets()?;
        let greeted = Heir::greet(stream, sockets, lock).await;
        greeted
            .inspect(|heir| tracing::info!("{} asks about taking over", heir.name()))
            .inspect_err(|error| tracing::warn!("a process could not take over: {error:#}"))
            .ok()
    }

    /// Lets a process take over. If it fails, this one goes on as before.
    pub(super) async fn hand_over(
        &mut self,
        mut heir: Heir,
        wish: Result<Wish>,
        presence: &mut Presence,
    ) -> Option<Handed> {
        if let Err(error) = wish {
            tracing::warn!("{} did not take over: {error:#}", heir.name());
            return None;
        }
        // What lives stays with this process, which goes on without the lane: the other one has it.
        if let Some(lane) = &self.lane {
            lane.close();
        }
        // The other one listens at the same paths.
        presence.close_doors();
        step(Step::TestatorClosed);
        let given = async {
            let (inheritance, handed) = self.proxy.hand_over().await?;
            step(Step::TestatorHanded);
            heir.give(inheritance, self.state()).await?;
            anyhow::Ok(handed)
        };
        match given.await {
            Ok(handed) => {
                step(Step::TestatorReplaced);
                tracing::info!("{} has taken over", heir.name());
                return Some(handed);
            }
            Err(error) => tracing::error!(
                "{} did not take over, and this one goes on: {error:#}",
                heir.name()
            ),
        }
        if let Err(error) = self.go_on(presence).await {
            tracing::error!("going on after that: {error:#}");
        }
        None
    }

    /// Takes what is new again, and puts right what another process may have changed.
    async fn go_on(&mut self, presence: &mut Presence) -> Result<()> {
        self.proxy.go_on()?;
        if let Some(lane) = &self.lane {
            lane.reopen();
        }
        presence.open(&self.place)?;
        self.teller = presence.teller();
        self.teller
            .listen(api::prepare(&self.teller, &self.config)?);
        self.show();
        let (config, lists) = (self.config.clone(), self.lists.clone());
        self.put_into_force(&config, &lists).await?;
        self.spare_servers()?;
        let synced = self.sync().await?;
        self.tell(&synced);
        Ok(())
    }

    /// What another process must know to go on.
    fn state(&self) -> State {
        State {
            learned: self.names_left(),
            released: self.released.clone(),
            ..State::default()
        }
    }

    /// Goes on from what another process had, and tells it that this one serves.
    pub(super) async fn succeed(
        &mut self,
        testator: Testator,
        state: State,
        (presence, listening): (Presence, Prepared),
    ) -> Result<Presence> {
        let pid = testator.pid;
        self.released = state.released;
        let go_on = async {
            self.inherit_names(state.learned)?;
            self.first_sync().await
        };
        let gone_on = go_on.await;
        // Its paths go before the other one, which waits for a word, makes them anew.
        let presence = gone_on.map(|()| presence)?;
        self.show();
        self.teller.listen(listening);
        step(Step::HeirLinked);
        match testator.done().await {
            // It was killed in the meantime, so it serves no more.
            Err(_) if life(pid) == Life::Gone => {
                tracing::warn!("process {pid} has died while this one took over from it");
            }
            done => done?,
        }
        step(Step::HeirDone);
        tracing::info!("taken over from process {pid}, which ends when its connections do");
        Ok(presence)
    }

    /// Relays what lives while another process takes all that is new, then ends. Nothing of the gateway is touched.
    pub(super) async fn drain_beside(self, signals: &mut Signals, handed: Handed) {
        let Self { proxy, config, .. } = self;
        let limit = config.proxy.takeover_drain;
        let live = proxy.stats();
        tracing::info!(
            "draining: {} connections and {} associations have up to {} s; a signal ends them now",
            live.connections,
            live.associations,
            limit.as_secs()
        );
        tokio::select! {
            report = proxy.drain_beside(handed, limit, config.proxy.drain) => tracing::info!("{report}"),
            () = signals.stop() => tracing::info!("connections were cut"),
        }
    }
}

/// Waits until the process at the door is ready, or gives up.
pub(super) async fn wish(heir: &mut Option<Heir>) -> Result<Wish> {
    match heir {
        Some(heir) => heir.wish().await,
        None => pending().await,
    }
}

async fn say(
    stream: &mut UnixStream,
    what: &impl Serialize,
    files: &[BorrowedFd<'_>],
) -> Result<()> {
    let bytes = serde_json::to_vec(what)?;
    let sending = timeout(PATIENCE, pass::send(stream, &bytes, files));
    let sent = sending.await.unwrap_or(Err(ErrorKind::TimedOut.into()));
    sent.context("telling the other process failed")
}

async fn hear<T: DeserializeOwned>(
    stream: &mut UnixStream,
    patience: Duration,
) -> Result<(T, Vec<OwnedFd>)> {
    let heard = timeout(patience, pass::receive(stream, LONGEST)).await;
    let heard = heard.unwrap_or(Err(ErrorKind::TimedOut.into()));
    let (bytes, files) = heard.map_err(|error| match error.kind() {
        ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset => {
            anyhow::anyhow!("the other process has given up")
        }
        ErrorKind::TimedOut => anyhow::anyhow!("the other process does not answer"),
        _ => anyhow::Error::from(error).context("hearing the other process failed"),
    })?;
    let what =
        serde_json::from_slice(&bytes).context("what the other process says is not understood")?;
    Ok((what, files))
}
