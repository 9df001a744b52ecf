use super::*;

fn arrival(trusted: &[IpNet]) -> Arrival<'_> {
    Arrival {
        peer: "10.0.0.9:4711".parse().unwrap(),
        peer_line: None,
        lacks_proxy_address: false,
        trusted: !trusted.is_empty(),
        trusted_proxies: trusted,
        tls: false,
        server_name: None,
    }
}

fn clean(lines: &[(&str, &str)]) -> Result<CleanRequest<()>, Rejection> {
    clean_from(arrival(&[]), lines)
}

fn clean_from(arrival: Arrival<'_>, lines: &[(&str, &str)]) -> Result<CleanRequest<()>, Rejection> {
    let mut request = Request::builder().uri("/a?b=c").header("host", "Tekton.Example:8443");
    for (name, value) in lines {
        request = request.header(*name, *value);
    }
    sanitize(request.body(()).unwrap(), arrival, Uuid::nil(), |host| Some(host.into()))
}

fn refusal(lines: &[(&str, &str)]) -> Option<Reason> {
    clean(lines).err().map(|rejection| rejection.reason())
}

#[test]
fn a_plain_request_keeps_its_headers() {
    let request = clean(&[("accept", "text/html"), ("x-a", "1"), ("x-a", "2")]).unwrap();
    assert_eq!(&**request.host(), "tekton.example");
    assert_eq!(request.headers().get_all("x-a").iter().count(), 2);
    assert!(!request.headers().contains_key("host"));
    assert_eq!(request.meta().client, IpAddr::from([10, 0, 0, 9]));
}

/// Some servers take `delete` for DELETE, and no rule about DELETE would apply to it.
#[test]
fn a_known_method_in_another_spelling_is_refused() {
    let send = |method: &str| {
        let request = Request::builder().method(method).uri("/").header("host", "a.test").body(()).unwrap();
        sanitize(request, arrival(&[]), Uuid::nil(), |host| Some(host.into())).err().map(|refused| refused.reason())
    };
    for method in ["delete", "Delete", "pOST", "get", "connect", "trace"] {
        assert_eq!(send(method), Some(Reason::BadRequest), "{method}");
    }
    assert_eq!([send("DELETE"), send("PROPFIND")], [None, None]);
}

#[test]
fn the_host_of_an_absolute_target_is_the_one_that_upstreams_get() {
    let request = Request::builder().uri("http://Tekton.Example:8443/a").header("host", "other.example");
    let known = |host: &str| (host == "tekton.example").then(|| host.into());
    let request = sanitize(request.body(()).unwrap(), arrival(&[]), Uuid::nil(), known).unwrap();
    assert_eq!(&**request.host(), "tekton.example");
    assert_eq!(request.meta().host_line.as_ref().unwrap(), "Tekton.Example:8443");
}

#[test]
fn headers_named_by_connection_are_removed_and_our_credential_is_still_read() {
    for lines in [
        &[("connection", "close, X-Secret"), ("x-secret", "1")][..],
        &[("connection", ""), ("connection", "x-secret"), ("x-secret", "1")],
    ] {
        assert!(!clean(lines).unwrap().headers().contains_key("x-secret"), "kubernetes:H1 H2");
    }
    let request = clean(&[("connection", "keep-alive, Authorization"), ("authorization", "Bearer x")]).unwrap();
    assert!(request.headers().contains_key("authorization"));
}

#[test]
fn impersonation_headers_are_recorded_by_name_and_removed() {
    let request = clean(&[("impersonate-user", "root"), ("impersonate-extra-%41cme", "x")]).unwrap();
    assert_eq!(request.meta().impersonation.len(), 2);
    assert!(request.headers().is_empty());
    assert!(clean(&[]).unwrap().meta().impersonation.is_empty());
}

#[test]
fn forwarded_addresses_count_from_trusted_proxies_only() {
    let trusted: Vec<IpNet> = vec!["10.0.0.0/8".parse().unwrap()];
    let from = |lines: &[(&str, &str)]| clean_from(arrival(&trusted), lines).unwrap().meta().client.to_string();
    assert_eq!(from(&[("x-forwarded-for", "203.0.113.9")]), "203.0.113.9");
    assert_eq!(from(&[("x-forwarded-for", "10.1.1.1, 203.0.113.9")]), "203.0.113.9", "peers:T15");
    assert_eq!(from(&[("x-forwarded-for", "198.51.100.1, 203.0.113.9, 10.2.2.2")]), "203.0.113.9");
    assert_eq!(from(&[("x-forwarded-for", "198.51.100.1"), ("x-forwarded-for", "203.0.113.9")]), "203.0.113.9");
    assert_eq!(from(&[("x-forwarded-for", " ,"), ("x-forwarded-for", "")]), "10.0.0.9");
    let untrusted = clean(&[("x-forwarded-for", "1.2.3.4"), ("x-real-ip", "1.2.3.4")]).unwrap();
    assert_eq!(untrusted.meta().client.to_string(), "10.0.0.9", "kubernetes:X4");
}

/// Google's load balancers append the client's address and then their own, at which browsers reach them.
#[test]
fn a_load_balancer_that_appends_itself_is_trusted_by_both_of_its_addresses() {
    let networks: Vec<IpNet> = vec!["35.191.0.0/16".parse().unwrap(), "130.211.0.0/22".parse().unwrap()];
    let both = [&networks[..], &["203.0.113.2/32".parse().unwrap()]].concat();
    let from = |trusted: &[IpNet]| {
        let arrival = Arrival { peer: "35.191.3.4:4711".parse().unwrap(), ..arrival(trusted) };
        let lines = [("x-forwarded-for", "192.0.2.66, 198.51.100.7,203.0.113.2")];
        clean_from(arrival, &lines).unwrap().meta().client.to_string()
    };
    assert_eq!(from(&both), "198.51.100.7");
    assert_eq!(from(&networks), "203.0.113.2", "the same for everybody");
}

/// Where a proxy sent `wss` for a WebSocket over TLS, nobody was signed in.
#[test]
fn a_websocket_over_tls_is_as_secure_as_a_page_over_tls() {
    let trusted: Vec<IpNet> = vec!["10.0.0.0/8".parse().unwrap()];
    for (said, secure) in [("https", true), ("wss", true), ("WSS", true), ("http", false), ("ws", false), ("", false)] {
        let request = clean_from(arrival(&trusted), &[("x-forwarded-proto", said)]).unwrap();
        let origin = request.origin().map(|origin| origin.to_string());
        assert_eq!(request.meta().secure, secure, "{said}");
        assert_eq!(origin.as_deref(), secure.then_some("https://tekton.example:8443"), "{said}");
    }
    assert!(!clean(&[("x-forwarded-proto", "wss")]).unwrap().meta().secure, "of a stranger it is not read");
}

/// What a client wrote comes before what a proxy appended.
#[test]
fn a_forwarded_protocol_that_occurs_twice_is_ignored() {
    let trusted: Vec<IpNet> = vec!["10.0.0.0/8".parse().unwrap()];
    let said = |protocol: &'static str| ("x-forwarded-proto", protocol);
    for (lines, secure) in [(vec![said("https")], true), (vec![said("https"), said("http")], false)] {
        assert_eq!(clean_from(arrival(&trusted), &lines).unwrap().meta().secure, secure, "{lines:?}");
    }
}

#[test]
fn a_port_beside_a_forwarded_address_hides_no_client() {
    let trusted: Vec<IpNet> = vec!["10.0.0.0/8".parse().unwrap()];
    for (line, client) in [
        ("203.0.113.9:4711", "203.0.113.9"),
        ("10.1.1.1, 203.0.113.9:4711, 10.2.2.2:80", "203.0.113.9"),
        ("2001:db8::9", "2001:db8::9"),
        ("[2001:db8::9]", "2001:db8::9"),
        ("[2001:db8::9]:4711", "2001:db8::9"),
        ("[::ffff:203.0.113.9]:4711", "203.0.113.9"),
    ] {
        let request = clean_from(arrival(&trusted), &[("x-forwarded-for", line)]).unwrap();
        assert_eq!(request.meta().client.to_string(), client, "{line}");
    }
}

/// Memory that one of them takes is missing for all others.
#[test]
fn bodies_are_counted_by_address_where_it_is_that_of_one_client() {
    fn of(arrival: Arrival<'_>, lines: &[(&str, &str)]) -> Share {
        clean_from(arrival, lines).unwrap().meta().unproven()
    }
    let one = |address: &str| Share::Unproven(Some(address.parse().unwrap()));
    let (trusted, many): (Vec<IpNet>, _) = (vec!["10.0.0.0/8".parse().unwrap()], Share::Unproven(None));
    assert_eq!(of(arrival(&[]), &[]), one("10.0.0.9"));
    assert_eq!(of(arrival(&trusted), &[]), many);
    assert_eq!(of(arrival(&trusted), &[("x-forwarded-for", "203.0.113.9")]), one("203.0.113.9"));
    assert_eq!(of(arrival(&trusted), &[("x-forwarded-for", "2001:db8::1:2:3:4")]), one("2001:db8::"));
    assert_eq!(of(Arrival { lacks_proxy_address: true, ..arrival(&[]) }, &[]), many);
}

#[test]
fn a_forwarded_client_that_is_no_address_is_refused() {
    let trusted: Vec<IpNet> = vec!["10.0.0.0/8".parse().unwrap()];
    for (line, expected) in [
        ("nonsense", None),
        ("unknown", None),
        ("203.0.113.9:99999", None),
        ("[203.0.113.9]", None),
        ("é", None),
        ("é, 10.1.1.1", None),
        ("203.0.113.9, nonsense", None),
        ("é, 203.0.113.9", Some("203.0.113.9")),
        ("é, 203.0.113.9, 10.1.1.1", Some("203.0.113.9")),
    ] {
        let outcome = clean_from(arrival(&trusted), &[("x-forwarded-for", line)]);
        let outcome = outcome.map(|request| request.meta().client.to_string());
        let outcome = outcome.map_err(|rejection| rejection.reason());
        assert_eq!(outcome.as_deref(), expected.ok_or(&Reason::BadRequest), "{line}");
        assert!(clean(&[("x-forwarded-for", line)]).is_ok(), "{line}: of a stranger it is not read");
    }
}

#[test]
fn a_name_that_two_programs_read_as_two_headers_is_refused() {
    assert_eq!(refusal(&[("x-a", "1")]), None);
    assert_eq!(refusal(&[("x_a", "1")]), Some(Reason::BadRequest));
}

/// Found by fuzzing: an authority alone was taken for the path `/`.
#[test]
fn a_target_that_has_no_path_is_refused() {
    for (target, refused) in [
        ("/", None),
        ("http://tekton.example", None),
        ("tekton.example", Some(Reason::PathNotCanonical)),
        ("tekton.example:443", Some(Reason::PathNotCanonical)),
        ("*", Some(Reason::PathNotCanonical)),
    ] {
        let request = Request::builder().uri(target).header("host", "tekton.example").body(()).unwrap();
        let outcome = sanitize(request, arrival(&[]), Uuid::nil(), |host| Some(host.into()));
        assert_eq!(outcome.err().map(|rejection| rejection.reason()), refused, "{target}");
    }
}

#[test]
fn a_tls_name_that_does_not_fit_is_misdirected() {
    let trusted: Vec<IpNet> = vec!["10.0.0.0/8".parse().unwrap()];
    for (name, proxies, expected) in [
        ("tekton.example", &[][..], Ok(())),
        ("other.example", &[], Err(Reason::MisdirectedHost)),
        ("tekton.example", &trusted, Ok(())),
        // The proxy knows Doorward by one name, and sends requests for all hosts.
        ("other.example", &trusted, Ok(())),
    ] {
        let arrival = Arrival { server_name: Some(name), tls: true, ..arrival(proxies) };
        let refused = clean_from(arrival, &[]).err();
        // It has nothing to do with routes, and an operator would look for a missing one in vain.
        assert!(refused.as_ref().is_none_or(|refused| !refused.detail().contains("route")), "{refused:?}");
        let outcome = refused.map_or(Ok(()), |refused| Err(refused.reason()));
        assert_eq!(outcome, expected, "{name}, trusted: {}", !proxies.is_empty());
    }
}
