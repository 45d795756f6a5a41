//! The program under test on the lab's gateway: that the lab can start, ask, stop and kill it, and
//! tells when something is left behind.

use std::time::Duration;

use anyhow::Result;
use lab::{
    Family, Lab, Lan, Snapshot,
    servers::{Danted, Nginx, UdpEcho},
    traffic::{self, whoami},
    wait::until,
};

#[test]
fn a_run_from_start_to_sigterm_leaves_nothing() -> Result<()> {
    let lab = Lab::builder().alone().build()?;
    let _nginx = Nginx::start(&lab.internet, lab.dir())?;
    let before = Snapshot::take(&lab)?;
    let tproxy = lab.tproxy_with("direct://")?;
    for family in Family::BOTH {
        assert_eq!(whoami(&lab.device, family.far(1))?, family.gateway_wan());
    }
    assert_eq!(lab.packets("tcp_opened")?, 2);
    // While it runs there is something in every place that is looked at.
    let during = Snapshot::take(&lab)?.since(&before);
    for part in ["rule", "route", "attached", "program", "map", "file"] {
        let start = format!("+ {part}: ");
        assert!(
            during.iter().any(|line| line.starts_with(&start)),
            "no {part} in {during:#?}"
        );
    }
    tproxy.stop()?;
    lab.restored(&before)
}

#[test]
fn killed_it_leaves_something_and_detach_clears_it() -> Result<()> {
    let lab = Lab::builder().alone().build()?;
    let _nginx = Nginx::start(&lab.internet, lab.dir())?;
    let before = Snapshot::take(&lab)?;
    lab.tproxy_with("direct://")?.kill9();
    assert!(Snapshot::take(&lab)?.same_as(&before).is_err());
    for family in Family::BOTH {
        assert_eq!(whoami(&lab.device, family.far(1))?, family.device());
    }
    lab.tproxy_run(&["detach"])?.ok()?;
    lab.restored(&before)
}

#[test]
fn what_it_says_when_it_does_not_start_is_in_the_error() -> Result<()> {
    let lab = Lab::new()?;
    let error = lab
        .tproxy(&["run", "--lan", "lan0", "--outbound", "gopher://x"])
        .expect_err("there is no such outbound");
    assert!(error.to_string().contains("gopher"), "{error:#}");
    Ok(())
}

#[test]
fn by_a_real_socks_server() -> Result<()> {
    let lab = Lab::new()?;
    let _nginx = Nginx::start(&lab.internet, lab.dir())?;
    let echo = UdpEcho::start(&lab.internet, 7000..=7000)?;
    let danted = Danted::start(&lab.internet, lab.dir())?;
    for by in Family::BOTH {
        let tproxy = lab.tproxy_with(&danted.url(by))?;
        for family in Family::BOTH {
            let seen = whoami(&lab.device, family.far(1))?;
            assert_eq!(seen, family.upstream(1), "TCP {family:?} by {by:?}");
            let target = (family.far(1), 7000).into();
            traffic::echo_sizes(&lab.device, target, &[1, 1_473, 65_000])?;
            let clients = echo.clients();
            assert!(
                clients
                    .keys()
                    .all(|client| client.ip() == family.upstream(1))
            );
            echo.forget();
        }
        assert!(danted.open_associations() > 0);
        tproxy.stop()?;
        until(
            "the end of the associations",
            Duration::from_secs(5),
            || Ok((danted.open_associations() == 0).then_some(())),
        )?;
    }
    Ok(())
}

#[test]
fn on_a_link_without_ethernet_and_on_a_bridge() -> Result<()> {
    for lan in [Lan::Tun, Lan::Bridge] {
        let lab = Lab::builder().lan(lan).build()?;
        let _nginx = Nginx::start(&lab.internet, lab.dir())?;
        let _echo = UdpEcho::start(&lab.internet, 7000..=7000)?;
        let tproxy = lab.tproxy_with("direct://")?;
        for family in Family::BOTH {
            let seen = whoami(&lab.device, family.far(1))?;
            assert_eq!(seen, family.gateway_wan(), "{lan:?}");
            let target = (family.far(1), 7000).into();
            traffic::echo_sizes(&lab.device, target, &[1, 1_473, 65_507])?;
        }
        tproxy.stop()?;
    }
    Ok(())
}
