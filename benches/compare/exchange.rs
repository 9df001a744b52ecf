//! Tasks that exchange the tokens of their pods for Doorward's, and use those.

use std::{
    fmt::Write as _,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
};

use serde_json::Value;

use crate::{Failure, cluster::TASKS, peers::Bench, tokens::Algorithm};

/// The token endpoint.
pub const TOKEN: &str = "/oauth2/token";

/// The number of tasks whose tokens have been exchanged before.
const SEEN: usize = 32;

/// The form of an exchange, without the token at its end.
const FORM: &str = "grant_type=urn%3Aietf%3Aparams%3Aoauth%3Agrant-type%3Atoken-exchange\
    &subject_token_type=urn%3Aietf%3Aparams%3Aoauth%3Atoken-type%3Ajwt&audience=https%3A%2F%2Ftarget.bench&scope=push&subject_token=";

/// Creates the run of each task, so that its cause is known.
pub fn starts(bench: &Bench) -> Result<String, Failure> {
    let token = bench.keys.tokens(&bench.issuer(), Algorithm::Es256, 1)?.pop().ok_or("no token")?;
    Ok(format!(
        "local i = 0
        request = function()
            i = i + 1
            if i > {TASKS} then wrk.thread:stop() i = 1 end
            local body = '{{\"apiVersion\":\"tekton.dev/v1\",\"kind\":\"PipelineRun\",\"metadata\":{{\"name\":\"run-' .. (i - 1) .. '\"}},\"spec\":{{\"pipelineRef\":{{\"name\":\"release\"}}}}}}'
            return wrk.format('POST', '/apis/tekton.dev/v1/namespaces/ci/pipelineruns', {{Host = 'tasks.bench',
                Authorization = 'Bearer {token}', ['Content-Type'] = 'application/json'}}, body)
        end"
    ))
}

/// Exchanges the tokens of all tasks, each once, or of some tasks repeatedly.
pub fn swaps(bench: &Bench, new: bool) -> Result<String, Failure> {
    let mut list = String::new();
    for token in bench.keys.pod_tokens(if new { TASKS } else { SEEN })? {
        write!(list, "'{token}',")?;
    }
    let stop = if new { "wrk.thread:stop()" } else { "" };
    Ok(format!(
        "local tokens = {{{list}}}
        local requests, i = {{}}, 0
        init = function() for n, t in ipairs(tokens) do requests[n] = wrk.format('POST', '{TOKEN}', {{Host = 'doorward.bench',
            ['Content-Type'] = 'application/x-www-form-urlencoded'}}, '{FORM}' .. t) end end
        request = function() i = i + 1 if i > #tokens then {stop} i = 1 end return requests[i] end"
    ))
}

/// Doorward's tokens for some of the tasks, as a Lua list.
pub fn own(bench: &Bench, address: SocketAddr) -> Result<String, Failure> {
    let mut list = String::new();
    for token in bench.keys.pod_tokens(SEEN)? {
        let form = format!("{FORM}{token}");
        let mut stream = TcpStream::connect(address)?;
        write!(
            stream,
            "POST {TOKEN} HTTP/1.1\r\nHost: doorward.bench\r\nContent-Type: application/x-www-form-urlencoded\r\n\
             Content-Length: {}\r\nConnection: close\r\n\r\n{form}",
            form.len()
        )?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let body = answer.split_once("\r\n\r\n").map(|(_, body)| body).unwrap_or_default();
        let body: Value = serde_json::from_str(body).map_err(|error| format!("{error}: {answer}"))?;
        let token = body["access_token"].as_str().ok_or_else(|| format!("no token, but {answer}"))?;
        write!(list, "'{token}',")?;
    }
    Ok(list)
}
