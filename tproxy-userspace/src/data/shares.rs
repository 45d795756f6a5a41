//! How the places of a limit are divided among devices.
//!
//! A device may have [`FACTOR`] times as many places as are free: many when there is room, fewer the scarcer places are. So
//! one that takes all it can leaves a seventeenth free, two leave a thirty-third, and there is a place for the next device. (Switches divide
//! their memory among ports in this way: Choudhury and Hahne, "Dynamic queue length thresholds for shared-memory packet
//! switches", 1998.)

use std::collections::HashMap;
use std::net::IpAddr;

/// See the module.
const FACTOR: usize = 16;

/// May who has so many take another one while so many are free?
#[must_use]
pub fn has_share(held: usize, free: usize) -> bool {
    held < free.saturating_mul(FACTOR)
}

/// Places by device.
#[derive(Debug)]
pub struct Shares {
    most: usize,
    taken: usize,
    held: HashMap<IpAddr, usize>,
}

/// Why there is no place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Full {
    /// For nobody.
    All,
    /// For a device that has so many already.
    Device,
}

impl Shares {
    /// So many for all together.
    #[must_use]
    pub fn new(most: usize) -> Self {
        Self {
            most,
            taken: 0,
            held: HashMap::new(),
        }
    }

    /// Takes a place.
    ///
    /// # Errors
    /// Why there is none.
    pub fn take(&mut self, device: IpAddr) -> Result<(), Full> {
        let free = self.most.saturating_sub(self.taken);
        if free == 0 {
            return Err(Full::All);
        }
        let held = self.held.get(&device).copied().unwrap_or(0);
        if !has_share(held, free) {
            return Err(Full::Device);
        }
        self.taken += 1;
        self.held.insert(device, held + 1);
        Ok(())
    }

    /// Gives a place back that was taken.
    pub fn give_back(&mut self, device: IpAddr) {
        self.taken = self.taken.saturating_sub(1);
        if let Some(held) = self.held.get_mut(&device) {
            *held -= 1;
            if *held == 0 {
                self.held.remove(&device);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(last: u8) -> IpAddr {
        [192, 0, 2, last].into()
    }

    /// How many places a device gets if it takes all it can.
    fn flood(shares: &mut Shares, last: u8) -> usize {
        (0..)
            .take_while(|_| shares.take(device(last)).is_ok())
            .count()
    }

    #[test]
    fn one_that_takes_all_it_can_leaves_room_for_others() {
        let mut shares = Shares::new(9_700);
        let first = flood(&mut shares, 1);
        assert!((9_100..9_200).contains(&first), "{first}");
        assert_eq!(shares.take(device(1)), Err(Full::Device));
        // The next one finds room, and so does the one after that.
        let second = flood(&mut shares, 2);
        assert!((500..).contains(&second), "{second}");
        assert!((25..).contains(&flood(&mut shares, 3)));
        // What ends makes room again, and nothing is kept of who has left.
        for _ in 0..first {
            shares.give_back(device(1));
        }
        assert!(!shares.held.contains_key(&device(1)));
        assert!((1_000..).contains(&flood(&mut shares, 2)));
    }

    #[test]
    fn few_places_are_all_given_away() {
        for most in 1..=16 {
            let mut shares = Shares::new(most);
            assert_eq!(flood(&mut shares, 1), most);
            assert_eq!(shares.take(device(1)), Err(Full::All));
            assert_eq!(shares.take(device(2)), Err(Full::All));
            shares.give_back(device(1));
            assert_eq!(shares.take(device(2)), Ok(()));
        }
    }
}
