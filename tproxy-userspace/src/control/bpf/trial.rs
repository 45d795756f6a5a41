//! Running a program on a made packet (`BPF_PROG_TEST_RUN`), without any traffic.

use std::time::Duration;

use aya::TestRun;
use aya::programs::TestRunOptions;

use super::{Error, Programs};

/// Offsets in `struct __sk_buff` of `linux/bpf.h`.
const SKB_MARK: usize = 8;
const SKB_CAME_BY: usize = 36;
const SKB_INTERFACE: usize = 40;
/// The size of the structure's part that all kernels since 5.15 know.
const SKB_SIZE: usize = 192;
/// How much room is left for what a program may have made of the packet.
const HEADROOM: usize = 256;

/// A made packet.
#[derive(Clone, Copy, Debug)]
pub struct Trial<'a> {
    /// The name of the program, one of `tproxy_common::abi::program` for tc.
    pub program: &'static str,
    /// The frame, Ethernet header included. To count as addressed to this machine its destination
    /// must be the address of the interface.
    pub frame: &'a [u8],
    /// The interface it comes in or goes out by; 0 is `lo`.
    pub interface: u32,
    /// Of what goes out, the interface that it came in by; 0 if this machine made it.
    pub came_by: u32,
    /// The mark it has.
    pub mark: u32,
    /// How often to run the program on it.
    pub repeat: u32,
}

/// What came of a [`Trial`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The return value of the program, as a tc action.
    pub action: i32,
    /// The mark the packet has now.
    pub mark: u32,
    /// The packet as it is now.
    pub frame: Vec<u8>,
    /// The mean time of a run.
    pub time: Duration,
}

impl Programs {
    /// Runs a tc program on a made packet. It counts, and it can assign no socket: the kernel lets a
    /// program do that only on real ingress, so what would be steered to a listener comes out as if
    /// the proxy were down.
    ///
    /// # Errors
    /// [`Error::Program`].
    pub fn try_packet(&mut self, trial: &Trial<'_>) -> Result<Outcome, Error> {
        let mut context = [0; SKB_SIZE];
        context[SKB_MARK..][..4].copy_from_slice(&trial.mark.to_ne_bytes());
        context[SKB_CAME_BY..][..4].copy_from_slice(&trial.came_by.to_ne_bytes());
        context[SKB_INTERFACE..][..4].copy_from_slice(&trial.interface.to_ne_bytes());
        let mut context_out = [0; SKB_SIZE];
        let mut frame = vec![0; trial.frame.len() + HEADROOM];
        let failed = |source| Error::Program {
            name: trial.program,
            source,
        };
        let result = self
            .classifier(trial.program)
            .and_then(|program| {
                program.test_run(TestRunOptions {
                    data_in: Some(trial.frame),
                    data_out: Some(&mut frame),
                    ctx_in: Some(&context),
                    ctx_out: Some(&mut context_out),
                    repeat: trial.repeat,
                    ..TestRunOptions::new()
                })
            })
            .map_err(failed)?;
        frame.truncate(result.data_size_out as usize);
        let mut mark = [0; 4];
        mark.copy_from_slice(&context_out[SKB_MARK..][..4]);
        Ok(Outcome {
            action: result.return_value.cast_signed(),
            mark: u32::from_ne_bytes(mark),
            frame,
            time: result.duration,
        })
    }
}
