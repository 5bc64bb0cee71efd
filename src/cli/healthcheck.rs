//! `healthcheck`: asks the role that runs beside it how it is, for container engines. An image needs no shell and no
//! HTTP client for that.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Args;

use crate::config::{AdminListenArgs, Findings};

/// A role that has not answered by then does not work: it does nothing for a probe but ask its broker, whose answer it
/// does not wait for longer than this.
const LIMIT: Duration = Duration::from_secs(5);

#[derive(Debug, Args)]
pub(super) struct HealthcheckArgs {
    #[command(flatten)]
    admin: AdminListenArgs,
    /// Ask only whether the process answers (/livez), not whether it takes work (/readyz)
    #[arg(long)]
    live: bool,
}

/// Succeeds when the role answers that it is well.
pub(super) async fn run(args: HealthcheckArgs) -> anyhow::Result<()> {
    let mut findings = Findings::default();
    let listen = args.admin.resolve(&mut findings);
    findings.check()?;
    let Some(listen) = listen else {
        bail!("BRIDGE_ADMIN_LISTEN is off: nobody can be asked");
    };
    let url = format!("http://{}/{}", reachable(listen), if args.live { "livez" } else { "readyz" });
    // It is this machine: no proxy, and no redirect to anywhere.
    let client = reqwest::Client::builder().no_proxy().redirect(reqwest::redirect::Policy::none());
    let client = client.timeout(LIMIT).build().context("the HTTP client cannot be set up")?;
    let answer = client.get(&url).send().await.with_context(|| format!("{url} does not answer"))?;
    let status = answer.status();
    let text = answer.text().await.with_context(|| format!("{url} does not answer"))?;
    if !status.is_success() {
        bail!("{url} answers {}: {}", status.as_u16(), text.trim());
    }
    println!("{}", text.trim());
    Ok(())
}

/// Where somebody who listens on `listen` can be reached: on all addresses means also on the loopback.
fn reachable(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, listen.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_role_that_listens_everywhere_is_asked_on_the_loopback() {
        for (listen, asked) in [
            ("0.0.0.0:8081", "127.0.0.1:8081"),
            ("[::]:8081", "[::1]:8081"),
            ("127.0.0.1:9", "127.0.0.1:9"),
            ("192.0.2.7:8081", "192.0.2.7:8081"),
        ] {
            assert_eq!(reachable(listen.parse().unwrap()), asked.parse().unwrap());
        }
    }
}
