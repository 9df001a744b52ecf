//! `doorward login --device`: shows a code, and waits until the person has typed it in some browser.

use std::{io::Write, time::Duration};

use tokio::time::{Instant, sleep};

use super::{
    Failure, PATIENCE, SignedIn, keep, machine,
    server::{Refused, Server, Waiting},
};
use crate::{authn::NeededLogin, oidc::program::challenge, sessions::keyring::random_text};

/// By how much a program slows down when it is told to (RFC 8628 section 3.5).
const SLOWER: Duration = Duration::from_secs(5);

/// The longest pause between two polls while Doorward cannot be reached.
const LONGEST: Duration = Duration::from_secs(30);

/// Signs in with a code that the person types in any browser (RFC 8628 section 3).
pub async fn sign_in(server: &Server, needed: &NeededLogin, out: &mut (dyn Write + Send)) -> Result<SignedIn, Failure> {
    let verifier = random_text();
    let begun = server.begin_device(&challenge(&verifier), &machine(), needed).await;
    let Waiting { code, user_code, expires, interval } =
        begun.map_err(|refused| refused.advise(&server.address, server.ca.as_deref()))?;
    writeln!(out, "In a browser of any machine, open\n\n  {}\n\nand type the code {user_code}.", server.device_page())?;
    let end = Instant::now() + expires.min(PATIENCE);
    let (mut interval, mut trouble) = (interval, Duration::ZERO);
    while Instant::now() + interval + trouble < end {
        sleep(interval + trouble).await;
        match server.redeem_device(&code, &verifier).await {
            Ok(entry) => return keep(server, entry).await,
            Err(Refused::Told(error, why)) => match error.as_str() {
                "authorization_pending" => trouble = Duration::ZERO,
                "slow_down" => interval += SLOWER,
                "temporarily_unavailable" | "server_error" => trouble = later(interval, trouble),
                "access_denied" => return Err(why.into()),
                _ => return Err(format!("{why}; run `doorward login --device` again").into()),
            },
            // A network that fails for a moment must not invalidate the code that the person is typing (RFC 8628
            // section 3.5).
            Err(_) => trouble = later(interval, trouble),
        }
    }
    Err("nobody typed the code within ten minutes; run `doorward login --device` again".into())
}

fn later(interval: Duration, trouble: Duration) -> Duration {
    (trouble * 2).clamp(interval, LONGEST.max(interval))
}
