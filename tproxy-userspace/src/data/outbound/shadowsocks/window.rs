//! Which numbers of datagrams have come already (RFC 6479, as WireGuard does it).

/// Numbers that are remembered, in blocks of 64. One block is always being filled.
const BLOCKS: usize = 32;
/// How far behind the highest number one may be.
pub(super) const WINDOW: u64 = (BLOCKS as u64 - 1) * 64;

/// See the module.
#[derive(Clone, Debug, Default)]
pub(super) struct Window {
    highest: Option<u64>,
    seen: [u64; BLOCKS],
}

impl Window {
    /// Is this number new, and not too far behind?
    pub fn admits(&self, number: u64) -> bool {
        let Some(highest) = self.highest else {
            return true;
        };
        if number > highest {
            return true;
        }
        highest - number < WINDOW && self.seen[index(number)] & bit(number) == 0
    }

    /// Remembers a number that [`admits`](Self::admits) takes.
    pub fn mark(&mut self, number: u64) {
        if self.highest.is_none_or(|highest| number > highest) {
            let from = self.highest.map_or(0, |highest| highest / 64);
            let skipped = (number / 64 - from).min(BLOCKS as u64);
            for block in 0..skipped {
                // Counted back from the new number's block, which is cleared too.
                let at = (number / 64).wrapping_sub(block) as usize % BLOCKS;
                self.seen[at] = 0;
            }
            self.highest = Some(number);
        }
        self.seen[index(number)] |= bit(number);
    }
}

fn index(number: u64) -> usize {
    (number / 64) as usize % BLOCKS
}

fn bit(number: u64) -> u64 {
    1 << (number % 64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn take(window: &mut Window, number: u64) -> bool {
        let admits = window.admits(number);
        if admits {
            window.mark(number);
        }
        admits
    }

    #[test]
    fn the_ends_of_numbers_are_numbers() {
        let mut window = Window::default();
        assert!(take(&mut window, 0) && !take(&mut window, 0));
        assert!(take(&mut window, u64::MAX) && !take(&mut window, u64::MAX));
        assert!(take(&mut window, u64::MAX - WINDOW + 1));
        assert!(!take(&mut window, u64::MAX - WINDOW));
    }

    proptest! {
        #[test]
        fn each_number_is_taken_once_and_none_from_behind_the_window(
            start: u64, steps in proptest::collection::vec((any::<bool>(), 0..3 * WINDOW), 1..400),
        ) {
            let (mut window, mut seen) = (Window::default(), BTreeSet::new());
            let mut highest = start;
            for (forwards, step) in steps {
                let number = if forwards {
                    highest.saturating_add(step % 200)
                } else {
                    highest.saturating_sub(step)
                };
                let old = seen.last().is_some_and(|last: &u64| number + WINDOW.min(*last) <= *last && *last >= WINDOW);
                prop_assert_eq!(take(&mut window, number), !old && !seen.contains(&number));
                if !old {
                    seen.insert(number);
                }
                highest = highest.max(number);
            }
        }
    }
}
