//! The second act, in a lab of its own: a near and a far world whose DNS servers disagree.

use anyhow::{Context, Result, ensure};
use lab::{
    Family, Namespace, Split, SplitServers, names,
    traffic::{Over, question, whoami},
};

use super::{Account, came_from};

/// Plays it, and takes its lab down again.
pub fn play(account: &mut Account) -> Result<()> {
    let split = Split::build()?;
    let servers = SplitServers::start(&split)?;
    let config = Split::config(&servers, Family::V4);
    println!("\nIn another lab, of a near and a far world, with this configuration:\n");
    for line in config.lines() {
        println!("        {line}");
    }
    println!();
    let tproxy = split.run(&config)?;
    let capture = split.capture()?;
    let act = Act {
        servers: &servers,
        split: &split,
    };
    for (who, from) in [
        ("device", &split.lab.device),
        ("gateway", &split.lab.gateway),
    ] {
        for family in Family::BOTH {
            account.check(&format!("{who}, {family:?}: {}", names::NEAR), || {
                act.near(from, family)
            });
            account.check(&format!("{who}, {family:?}: {}", names::FAR), || {
                act.far(from, family)
            });
        }
    }
    let packets = capture.stop()?;
    account.check("what the provider saw", || {
        let leaks = Split::leaks(&packets).len();
        ensure!(leaks == 0, "{leaks} packets name the far world");
        let near = packets.iter().filter(|packet| packet.names(names::NEAR));
        Ok(format!(
            "{} packets, {} with a near name, none with a far one",
            packets.len(),
            near.count()
        ))
    });
    tproxy.stop()
}

struct Act<'a> {
    servers: &'a SplitServers,
    split: &'a Split,
}

impl Act<'_> {
    fn near(&self, from: &Namespace, family: Family) -> Result<String> {
        let site = Split::near_site(family);
        self.stands_for(from, names::NEAR, family, site)?;
        let asked = self.servers.near_dns.client_of(names::NEAR, 1)?;
        came_from(asked, Family::V4.gateway_wan())?;
        let lab = &self.split.lab;
        let before = (lab.packets("bypassed")?, lab.packets("tcp_opened")?);
        let seen = whoami(from, site)?;
        let bypassed = lab.packets("bypassed")? - before.0;
        ensure!(
            bypassed > 0 && lab.packets("tcp_opened")? == before.1,
            "it came to the proxy"
        );
        Ok(format!(
            "the near server says {site}; past the proxy, it saw {seen}"
        ))
    }

    fn far(&self, from: &Namespace, family: Family) -> Result<String> {
        let site = Split::far_site(family);
        self.stands_for(from, names::FAR, family, site)?;
        ensure!(
            self.servers.near_dns.clients_of(names::FAR).is_empty(),
            "the near server was asked"
        );
        let seen = whoami(from, site)?;
        came_from(seen, Split::exit(family))?;
        Ok(format!(
            "the far server says {site}; through the SOCKS server, it saw {seen}"
        ))
    }

    fn stands_for(
        &self,
        from: &Namespace,
        name: &str,
        family: Family,
        site: std::net::IpAddr,
    ) -> Result<()> {
        let kind = match family {
            Family::V4 => "A",
            Family::V6 => "AAAA",
        };
        // A server that is none: whoever is asked, the gateway answers.
        let answer = question(from, Split::no_dns(Family::V4), name, kind, &Over::Udp)?;
        let addresses = answer.context("no answer")?.addresses();
        ensure!(addresses == [site], "{name} stands for {addresses:?}");
        Ok(())
    }
}
