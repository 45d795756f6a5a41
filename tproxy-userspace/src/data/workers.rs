//! Threads that relay datagrams, each with a Tokio runtime of its own.
//!
//! A lane of the kernel half belongs to one of them, and with it the associations of its devices. So no thread wakes
//! another for a datagram, which costs more than the datagram itself. Connections are left to a runtime that moves tasks
//! to idle threads: they take no less time here, and the connections of one device would have to share one thread.

use std::io;
use std::sync::Arc;
use std::thread;

use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;

use super::sockets::LANES;

/// The runtimes of all workers.
#[derive(Clone, Debug)]
pub struct Runtimes(Arc<[Handle]>);

impl Runtimes {
    /// That of a lane.
    #[must_use]
    pub fn of_lane(&self, lane: usize) -> &Handle {
        &self.0[lane % self.0.len()]
    }

    /// How many tasks live in all of them.
    #[must_use]
    pub fn tasks(&self) -> usize {
        let tasks = |runtime: &Handle| runtime.metrics().num_alive_tasks();
        self.0.iter().map(tasks).sum()
    }
}

/// See the module. Dropping them drops what they do.
#[derive(Debug)]
pub struct Workers {
    /// What work is given to.
    pub runtimes: Runtimes,
    _threads: Vec<Worker>,
}

impl Workers {
    /// As many as this process has processors, and no more than there are lanes.
    ///
    /// # Errors
    /// When this machine has no file or no memory left for one of them.
    pub fn start() -> io::Result<Self> {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        let started = (0..cores.min(LANES)).map(Worker::start);
        let (runtimes, threads): (Vec<_>, _) =
            started.collect::<io::Result<Vec<_>>>()?.into_iter().unzip();
        Ok(Self {
            runtimes: Runtimes(runtimes.into()),
            _threads: threads,
        })
    }
}

#[derive(Debug)]
struct Worker {
    /// It ends when this is dropped.
    stop: Option<oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Worker {
    fn start(number: usize) -> io::Result<(Handle, Self)> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel::<()>();
        let thread = thread::Builder::new()
            .name(format!("datagrams-{number}"))
            .spawn(move || {
                // An error says that nobody holds the other end any more, which is what is waited for.
                let _ = runtime.block_on(stopped);
            })?;
        let worker = Self {
            stop: Some(stop),
            thread: Some(thread),
        };
        Ok((handle, worker))
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(Err(_)) = self.thread.take().map(thread::JoinHandle::join) {
            tracing::error!("a relaying thread has panicked");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread::ThreadId;

    use super::*;

    fn thread_of(runtime: &Handle) -> ThreadId {
        let (tell, told) = mpsc::channel();
        runtime.spawn(async move { tell.send(thread::current().id()) });
        told.recv().expect("it runs")
    }

    #[test]
    fn a_lane_stays_on_its_thread_and_lanes_are_spread() {
        let workers = Workers::start().expect("files are left");
        let threads: Vec<_> = (0..LANES)
            .map(|lane| thread_of(workers.runtimes.of_lane(lane)))
            .collect();
        for (lane, thread) in threads.iter().enumerate() {
            assert_eq!(*thread, thread_of(workers.runtimes.of_lane(lane)));
        }
        let distinct: std::collections::HashSet<_> = threads.iter().collect();
        assert_eq!(distinct.len(), workers.runtimes.0.len());
    }

    #[test]
    fn what_they_do_ends_with_them() {
        struct Last(mpsc::Sender<()>);
        impl Drop for Last {
            fn drop(&mut self) {
                // The test waits for it.
                let _ = self.0.send(());
            }
        }
        let workers = Workers::start().expect("files are left");
        let (tell, told) = mpsc::channel();
        let last = Last(tell);
        let (begin, begun) = mpsc::channel();
        workers.runtimes.of_lane(0).spawn(async move {
            let _last = last;
            let _ = begin.send(());
            std::future::pending::<()>().await;
        });
        begun.recv().expect("it runs");
        assert_eq!(workers.runtimes.tasks(), 1);
        assert!(told.try_recv().is_err(), "it lives");
        drop(workers);
        told.try_recv().expect("it was dropped with its thread");
    }
}
