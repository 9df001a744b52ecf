//! A browser login without a browser: the redirects are followed by hand.

use super::{Answer, Doorward, OidcProvider};

/// Logs Alice in at a host of this machine with the scripted issuer, and returns her `Cookie` line. `page` is any page
/// that accepts sessions.
pub async fn log_in(doorward: &Doorward, host: &str, page: &str) -> String {
    let host = format!("Host: {host}");
    let navigation = [host.as_str(), "Accept: text/html", "Sec-Fetch-Mode: navigate", "Sec-Fetch-Dest: document"];
    let mut away = doorward.get(page, &navigation).await;
    let location = loop {
        let location = away.header("location").map(str::to_owned);
        let location = location.or_else(|| next(&away)).unwrap_or_else(|| panic!("{}{}", away.head, away.text()));
        if !location.starts_with('/') {
            break location;
        }
        away = doorward.get(&location, &navigation).await;
    };
    let back = call_back(doorward, &navigation, &away, &location).await;
    session(&back).unwrap_or_else(|| panic!("{}{}", back.head, back.text()))
}

/// A login that the certified provider has answered, and that is not completed yet.
pub struct Answered {
    /// The `Cookie` line of the browser that began it.
    pub cookies: String,
    /// The callback that the browser is redirected to, without the origin.
    pub callback: String,
}

impl Answered {
    /// Begins a login at a host of this machine for `person`, with these lines, and signs them in at the provider. The
    /// callback is not called.
    pub async fn begin(doorward: &Doorward, host: &str, lines: &[&str], provider: &OidcProvider, person: &str) -> Self {
        let host_line = format!("Host: {host}");
        let away = doorward.get("/oauth2/start?rd=%2Fpage", &[&[&*host_line], lines].concat()).await;
        let location = away.header("location").unwrap_or_else(|| panic!("{}{}", away.head, away.text()));
        let back = provider.sign_in(location, person).await;
        let callback = back.strip_prefix(&format!("http://{host}")).expect(&back).to_owned();
        Self { cookies: cookies(&away), callback }
    }
}

/// The session that a response sets, as a `Cookie` line.
pub fn session(answer: &Answer) -> Option<String> {
    let set = cookies(answer);
    let pair = set.trim_start_matches("Cookie: ").split("; ").find(|pair| pair.starts_with("__Host-doorward="))?;
    Some(format!("Cookie: {pair}"))
}

/// The callback's response to a browser that `away` redirected to the issuer at `location`, which lets everybody in.
pub async fn call_back(doorward: &Doorward, lines: &[&str], away: &Answer, location: &str) -> Answer {
    let address = asked(location, "redirect_uri");
    let (_, path) = address.split_once("/oauth2/").unwrap();
    let callback = format!("/oauth2/{path}?code={}&state={}", asked(location, "nonce"), asked(location, "state"));
    let begun = cookies(away);
    doorward.get(&callback, &[lines, &[&begun]].concat()).await
}

/// A parameter of the request with which a browser is redirected to the issuer.
pub fn asked(location: &str, name: &str) -> String {
    let (_, query) = location.split_once('?').unwrap();
    let mut pairs = url::form_urlencoded::parse(query.as_bytes());
    pairs.find(|(found, _)| found == name).unwrap_or_else(|| panic!("{name} in {location}")).1.into_owned()
}

/// Where a page redirects a browser without scripts.
fn next(answer: &Answer) -> Option<String> {
    let text = answer.text();
    let (_, rest) = text.split_once("content=\"0;url=")?;
    Some(rest.split_once('"')?.0.replace("&amp;", "&"))
}

/// The cookies that a response sets and does not delete, as a `Cookie` line.
pub fn cookies(answer: &Answer) -> String {
    let pairs = answer.all("set-cookie").into_iter().filter_map(|line| line.split(';').next());
    format!("Cookie: {}", pairs.filter(|pair| !pair.ends_with('=')).collect::<Vec<_>>().join("; "))
}
