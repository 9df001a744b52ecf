//! The upstreams of oauth2-proxy, and the routes to them here.

use std::borrow::Cow;

use serde_json::{Value, json};
use url::Url;

use super::options::{Options, is_off};

/// The note on upstreams whose requests get another path there, or are chosen by an expression.
const REWRITTEN: &str = "upstreamConfig.rewriteTarget";

/// An upstream of oauth2-proxy. It takes the requests for one path, or for all paths below it if it ends with a slash.
/// If several match, the longest path wins.
#[derive(Debug)]
pub(super) struct Upstream {
    pub path: String,
    /// The address of a server or of files, or `static://` and a status.
    pub address: String,
    /// Whether the path is an expression, or is replaced by another one at the upstream.
    pub is_rewritten: bool,
    /// Whether it sees its own `Host` instead of the client's. `None` if an option decides for all upstreams.
    pub sees_own_host: Option<bool>,
}

impl Upstream {
    /// Creates one as flags and the `.cfg` name it: by an address, with the path that it takes.
    pub fn of_address(address: &str) -> Self {
        let url = Url::parse(address).ok();
        let path = url.as_ref().and_then(|url| match url.scheme() {
            "http" | "https" => Some(url.path()),
            "file" => Some(url.fragment().filter(|path| !path.is_empty()).unwrap_or_else(|| url.path())),
            _ => None,
        });
        let path = path.unwrap_or("/").to_owned();
        // Braces are encoded.
        let is_rewritten = is_expression(&path) || path.contains("%7B");
        Self { path, address: address.to_owned(), is_rewritten, sees_own_host: None }
    }

    /// The address of its server; `None` if requests cannot be sent there unchanged.
    fn server(&self) -> Option<Url> {
        let url = Url::parse(&self.address).ok().filter(|_| !self.is_rewritten)?;
        let mut server = Some(url).filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host())?;
        server.set_path("");
        without_secrets(&mut server);
        Some(server)
    }

    /// The address in a form that may be printed.
    fn shown(&self) -> Cow<'_, str> {
        if !self.address.contains(['@', '?']) {
            return self.address.as_str().into();
        }
        // If it cannot be parsed, it may have a user and password anywhere.
        let Some(mut url) = Url::parse(&self.address).ok().filter(Url::has_host) else {
            return "(an address that cannot be read)".into();
        };
        without_secrets(&mut url);
        String::from(url).into()
    }

    fn has_user(&self) -> bool {
        Url::parse(&self.address).is_ok_and(|url| !url.username().is_empty() || url.password().is_some())
    }

    /// The path as routes and rules write it; `None` if none of their forms is as narrow.
    fn pattern(&self) -> Option<String> {
        if self.is_rewritten {
            return refusable(&self.path);
        }
        Some(match self.path.strip_suffix('/') {
            Some(prefix) => format!("{prefix}/*"),
            None if self.path.is_empty() => "/*".to_owned(),
            None => self.path.clone(),
        })
    }
}

/// Removes parts that oauth2-proxy never sends.
fn without_secrets(url: &mut Url) {
    // This fails only for an address without a host, which has neither.
    let _ = url.set_username("");
    let _ = url.set_password(None);
    url.set_query(None);
    url.set_fragment(None);
}

/// Whether a path stands for other paths than those that begin with it, such as a path with variables.
pub(super) fn is_expression(path: &str) -> bool {
    path.starts_with('^') || path.contains(['{', '*'])
}

/// The upstreams, and what leads to them.
pub(super) struct Places {
    pub upstreams: Vec<Value>,
    pub routes: Vec<Value>,
    /// Rules that refuse requests which would now go to another upstream.
    pub left_out: Vec<Value>,
    /// Whether there is no upstream, because an ingress asks about each request and forwards it itself.
    pub asked: bool,
}

/// Returns the upstreams, and a route to each: the path of its address, as oauth2-proxy reads it.
pub(super) fn places(options: &mut Options, host: &str, notes: &mut Vec<String>) -> Places {
    let mut all = std::mem::take(&mut options.upstreams);
    let asked = !all.is_empty() && all.iter().all(|upstream| upstream.address.starts_with("static://2"));
    if asked {
        notes.push(
            "`upstream`: it answers an ingress that asks (`auth_request` of nginx is assumed: write `traefik` or `envoy` under \
             `forward_auth` if it is another), and forwards nothing. `upstream-1` is in the place of what stands behind the \
             ingress and is never used; add each further host of the ingress to `hosts` of the route"
                .to_owned(),
        );
        all = vec![Upstream::of_address("http://127.0.0.1:9/")];
    }
    let see_own_host = options.take("pass_host_header").is_some_and(|value| is_off(&value));
    let mut places = Places { upstreams: Vec::new(), routes: Vec::new(), left_out: Vec::new(), asked };
    let (mut served, mut others) = (Vec::new(), Vec::new());
    for upstream in &all {
        let (Some(server), Some(pattern)) = (upstream.server(), upstream.pattern()) else {
            others.push(upstream);
            continue;
        };
        let name = format!("upstream-{}", places.upstreams.len() + 1);
        if upstream.has_user() {
            notes.push(format!(
                "`upstream`: user and password in the address of `{name}` are left out; they were never sent"
            ));
        }
        let mut entry = json!({"name": name, "url": server.as_str().trim_end_matches('/')});
        if upstream.sees_own_host.unwrap_or(see_own_host)
            && let Some(entry) = entry.as_object_mut()
        {
            entry.insert("host".to_owned(), json!("own"));
        }
        places.upstreams.push(entry);
        places.routes.push(json!({
            "name": name,
            "kind": "http",
            "hosts": [host],
            "paths": [pattern],
            "schemes": ["session"],
            "upstream": name,
        }));
        served.push((upstream.path.as_str(), name));
    }
    for upstream in others {
        let Upstream { path, is_rewritten, .. } = upstream;
        let address = upstream.shown();
        let (setting, why) = match is_rewritten {
            true => (REWRITTEN, "paths go on as they are"),
            false => ("upstream", "it is not an http address"),
        };
        let mut note = format!("`{setting}`: the upstream `{address}` at the path `{path}` is left out, as {why}");
        match upstream.pattern().filter(|pattern| pattern != "/*") {
            None if *is_rewritten => note.push_str("; its requests go to other routes that have the path"),
            // Without a longer path there is no route for these requests.
            None => {}
            Some(pattern) => {
                let id = format!("left-out-{}", places.left_out.len() + 1);
                note.push_str(&format!(
                    "; the rule `{id}` refuses all at `{pattern}`, which would now go to another route"
                ));
                let is_below = |path: &str| pattern.strip_suffix('*').is_some_and(|start| path.starts_with(start));
                for (_, name) in served.iter().filter(|(path, _)| is_below(path)) {
                    note.push_str(&format!(", and with it the route `{name}`: narrow the rule"));
                }
                places.left_out.push(json!({
                    "id": id,
                    "why": format!("oauth2-proxy sent these requests to {address}"),
                    "on": {"paths": [pattern]},
                    "do": "deny",
                }));
            }
        }
        notes.push(note);
    }
    places
}

/// Returns what an expression for paths matches, in a form that a rule can have: one path, or everything below the
/// segments that it begins with. `None` for an expression with alternatives, or one that begins with something else.
fn refusable(path: &str) -> Option<String> {
    let path = path.strip_prefix('^').unwrap_or(path);
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '/' | '-' | '_');
    if path.contains('|') {
        return None;
    }
    if let Some(exact) = path.strip_suffix('$').filter(|exact| exact.starts_with('/') && exact.chars().all(is_plain)) {
        return Some(exact.to_owned());
    }
    let plain = path.find(|c| !is_plain(c)).and_then(|end| path.get(..end)?.rsplit_once('/')).map(|(start, _)| start);
    let start = plain.unwrap_or(path).trim_end_matches('/');
    (!start.is_empty()).then(|| format!("{start}/*"))
}
