//! A real dashboard in a real browser, on a device behind the gateway.
//!
//! `LAB_DASHBOARD` names the folder of a built dashboard (Yacd, metacubexd and zashboard are known to do). With
//! `LAB_SHOTS` pictures of the pages are put there.

use std::{
    env, fs,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use base64::Engine;
use lab::{
    Panel,
    api::{ECHO, TOKEN},
    browser::{self, Browser},
    wait::{SOON, until},
};
use serde_json::Value;

/// Elements that a person sees and that have just this text.
fn with_text(text: &str) -> String {
    format!(
        "[...document.querySelectorAll('body *')].filter(one => one.offsetParent !== null \
         && [...one.childNodes].some(node => node.nodeType === 3 && node.textContent.trim() === '{text}'))"
    )
}

struct Board {
    panel: Panel,
    browser: Browser,
}

impl Board {
    fn go(&mut self, page: &str) -> Result<()> {
        self.browser
            .value(&format!("location.hash = '#/{page}'"))
            .map(drop)
    }

    fn picture(&mut self, name: &str) -> Result<()> {
        let Some(folder) = env::var_os("LAB_SHOTS") else {
            return Ok(());
        };
        let picture = base64::prelude::BASE64_STANDARD.decode(self.browser.picture()?)?;
        let path = Path::new(&folder).join(format!("{name}.png"));
        fs::write(&path, picture).with_context(|| format!("writing {}", path.display()))
    }

    /// Connections to the echo.
    fn connections(&self) -> Result<Vec<Value>> {
        let all = self.panel.get("/connections")?.json()?;
        let all = all["connections"].as_array().context("no connections")?;
        let port = ECHO.to_string();
        let meant = |one: &&Value| one["metadata"]["destinationPort"] == *port;
        Ok(all.iter().filter(meant).cloned().collect())
    }

    /// Clicks on a member of the group "mine" until it is taken.
    fn choose(&mut self, member: &str) -> Result<()> {
        let is_taken = |board: &Self| -> Result<bool> {
            Ok(board.panel.get("/proxies/mine")?.json()?["now"] == member)
        };
        let fold = format!("{}.at(-1)", with_text("mine"));
        let start = Instant::now();
        while start.elapsed() < 2 * SOON {
            // What is folded up is unfolded by a click on its name, if nothing lies over it or moves.
            let members = self
                .browser
                .value(&format!("{}.length", with_text(member)))?;
            if members == 0 {
                self.browser.click(&fold)?;
                let unfolded = format!("{}.at(-1)", with_text(member));
                let _ = until("the members to be there", Duration::from_secs(2), || {
                    let found = self.browser.value(&format!("!!{unfolded}"))?;
                    Ok((found == true).then_some(()))
                });
            }
            for nth in (-4..0).rev() {
                let there = format!("{}.at({nth})", with_text(member));
                if !self.browser.click(&there)? {
                    continue;
                }
                let taken = until("the group to take it", Duration::from_secs(1), || {
                    Ok(is_taken(self)?.then_some(()))
                });
                if taken.is_ok() {
                    return Ok(());
                }
            }
        }
        let text = self.browser.text()?;
        anyhow::bail!("{member} cannot be chosen in\n{text}")
    }

    /// Ends one connection, or all where a page has only that.
    fn close_one(&mut self) -> Result<()> {
        let row = "[...document.querySelectorAll('tr')].find(row => row.innerText.includes('203.0.113.1:7'))";
        if self
            .browser
            .click(&format!("{row}?.querySelector('button')"))?
        {
            return Ok(());
        }
        let all = format!("{}.at(0)", with_text("Close All Connections"));
        self.browser.value(&format!(
            "({all}?.closest('li')?.querySelector('button') ?? {all})?.click()"
        ))?;
        let sure = with_text("I'm sure").replace("'I'm sure'", "\"I'm sure\"");
        until("to be asked whether one is sure", SOON, || {
            Ok(self.browser.click(&format!("{sure}.at(0)"))?.then_some(()))
        })
    }
}

#[test]
fn a_dashboard_shows_what_is_there_and_changes_it() -> Result<()> {
    let folder = env::var_os("LAB_DASHBOARD")
        .filter(|folder| Path::new(folder).join("index.html").is_file());
    let Some(folder) = folder else {
        eprintln!("SKIPPED: LAB_DASHBOARD names no folder with a built dashboard");
        return Ok(());
    };
    if !browser::is_installed() {
        eprintln!("SKIPPED: there is no {} on this machine", browser::PROGRAM);
        return Ok(());
    }
    let panel = Panel::start(Some(Path::new(&folder)))?;
    let browser = Browser::start(&panel.lab.device, panel.lab.dir())?;
    let mut board = Board { panel, browser };
    let (first, _second) = (board.panel.open()?, board.panel.open()?);
    let at = Panel::address();
    let login = format!(
        "hostname={}&port={}&secret={}",
        at.ip(),
        at.port(),
        TOKEN.replace(' ', "%20")
    );
    // One of the two is read, in front of the # or behind it.
    board
        .browser
        .open(&format!("http://{at}/ui/?{login}#/setup?http=true&{login}"))?;
    until("the page to have let us in", 2 * SOON, || {
        let text = board.browser.text()?;
        Ok((!text.trim().is_empty() && !text.contains("Secret")).then_some(()))
    })?;

    board.go("proxies")?;
    board.browser.shows(&["auto", "mine"])?;
    board.picture("proxies")?;

    board.go("connections")?;
    board
        .browser
        .shows(&["203.0.113.1:7", "mine", "echoes", "5 B"])?;
    board.picture("connections")?;
    let known = board.connections()?;
    assert_eq!(known.len(), 2, "{known:?}");
    assert_eq!(known[0]["chains"], serde_json::json!(["one", "mine"]));
    board.close_one()?;
    until("a connection to be gone", SOON, || {
        Ok((board.connections()?.len() < 2).then_some(()))
    })?;

    board.go("proxies")?;
    board.browser.shows(&["auto", "mine"])?;
    board.choose("two")?;
    board.picture("chosen")?;
    let third = board.panel.open()?;
    let seen = board.connections()?;
    let last = seen.iter().find(|one| {
        let port = third.local_addr().map(|address| address.port().to_string());
        port.is_ok_and(|port| one["metadata"]["sourcePort"] == *port)
    });
    assert_eq!(last.context("it is not there")?["chains"][0], "two");

    board.go("logs")?;
    // Whoever looks at the page sees what happens from then on.
    until("the log to show an end", 2 * SOON, || {
        drop(board.panel.open()?);
        Ok(board
            .browser
            .text()?
            .contains("destination=203.0.113.1:7")
            .then_some(()))
    })
    .with_context(|| format!("it shows {:?}", board.browser.text()))?;
    board.picture("logs")?;
    drop((first, third));

    let complaints = board.browser.complaints();
    eprintln!("the page complained of {complaints:#?}");
    // Not what pages look for that other servers have.
    let served = [
        "proxies",
        "group",
        "providers",
        "connections",
        "configs",
        "rules",
        "version",
    ];
    let own = served.map(|path| format!("http://{at}/{path}"));
    let is_refusal = |one: &&String| own.iter().any(|url| one.contains(url));
    ensure!(
        !complaints.iter().any(|one| is_refusal(&one)),
        "{complaints:#?}"
    );
    Ok(())
}
