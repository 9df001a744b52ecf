use super::*;

fn parse(method: &str, target: &str) -> Result<Attributes, InvalidAttributes> {
    let (path, query) = target.split_once('?').map_or((target, None), |(path, query)| (path, Some(query)));
    Attributes::parse(&method.parse().unwrap(), path, query)
}

/// `verb group/version namespace resource/subresource name`, with `-` for empty parts.
fn line(a: &Attributes) -> String {
    let dash = |text: &str| if text.is_empty() { "-".to_owned() } else { text.to_owned() };
    format!(
        "{} {}/{} {} {}/{} {}",
        dash(&a.verb),
        dash(&a.api_group),
        a.api_version,
        dash(&a.namespace),
        dash(&a.resource),
        dash(&a.subresource),
        dash(&a.name)
    )
}

#[test]
fn resources_are_read_as_the_api_server_reads_them() {
    // (row, method, target, attributes)
    for (row, method, target, expected) in [
        (
            "",
            "GET",
            "/apis/tekton.dev/v1/namespaces/ci/pipelineruns/build-7",
            "get tekton.dev/v1 ci pipelineruns/- build-7",
        ),
        ("", "GET", "/apis/tekton.dev/v1/namespaces/ci/pipelineruns", "list tekton.dev/v1 ci pipelineruns/- -"),
        ("", "GET", "/apis/tekton.dev/v1/pipelineruns/", "list tekton.dev/v1 - pipelineruns/- -"),
        (
            "",
            "POST",
            "/apis/triggers.tekton.dev/v1beta1/namespaces/ci/triggers",
            "create triggers.tekton.dev/v1beta1 ci triggers/- -",
        ),
        ("", "PUT", "/apis/tekton.dev/v1/namespaces/ci/tasks/lint", "update tekton.dev/v1 ci tasks/- lint"),
        (
            "",
            "PATCH",
            "/apis/tekton.dev/v1/namespaces/ci/taskruns/t/status",
            "patch tekton.dev/v1 ci taskruns/status t",
        ),
        ("", "DELETE", "/apis/tekton.dev/v1/namespaces/ci/taskruns/t", "delete tekton.dev/v1 ci taskruns/- t"),
        // A namespace is a resource itself; only `status` and `finalize` are its own subresources.
        ("", "GET", "/api/v1/namespaces?limit=5", "list -/v1 - namespaces/- -"),
        ("", "PATCH", "/api/v1/namespaces/ci", "patch -/v1 ci namespaces/- ci"),
        ("", "PATCH", "/api/v1/namespaces/ci/status", "patch -/v1 ci namespaces/status ci"),
        ("", "POST", "/api/v1/namespaces/ci/finalize", "create -/v1 ci namespaces/finalize ci"),
        ("", "GET", "/api/v1/namespaces/ci/configmaps", "list -/v1 ci configmaps/- -"),
        ("kubernetes:P2", "GET", "/api/v1/proxy/namespaces/ci/services/s/x/y", "proxy -/v1 ci services/- s"),
        ("kubernetes:P2", "GET", "/apis/tekton.dev/v1/watch/namespaces/ci/tasks/t", "watch tekton.dev/v1 ci tasks/- t"),
        ("kubernetes:P5", "HEAD", "/apis/tekton.dev/v1/namespaces/ci/tasks/t", "get tekton.dev/v1 ci tasks/- t"),
        ("kubernetes:P5", "DELETE", "/apis/tekton.dev/v1/pipelines", "deletecollection tekton.dev/v1 - pipelines/- -"),
        ("kubernetes:P6", "GET", "/api/v1/namespaces/ci/pods/p/proxy/x", "get -/v1 ci pods/proxy p"),
        ("kubernetes:P5", "HEAD", "/api/v1/pods", "list -/v1 - pods/- -"),
        ("kubernetes:P2", "GET", "/api/v1/watch/pods", "watch -/v1 - pods/- -"),
        ("kubernetes:P2", "GET", "/api/v1/watch/secrets", "watch -/v1 - secrets/- -"),
        ("kubernetes:P2", "POST", "/apis/tekton.dev/v1/watch/taskruns", "watch tekton.dev/v1 - taskruns/- -"),
        ("kubernetes:P3", "GET", "/api/v1/pods?watch=true", "watch -/v1 - pods/- -"),
        ("kubernetes:P3", "GET", "/api/v1/pods?watch=false", "list -/v1 - pods/- -"),
        ("kubernetes:P3", "GET", "/api/v1/pods?watch=FALSE", "list -/v1 - pods/- -"),
        ("kubernetes:P3", "GET", "/api/v1/pods?watch=1", "watch -/v1 - pods/- -"),
        ("kubernetes:P3", "GET", "/api/v1/pods?watch=t", "watch -/v1 - pods/- -"),
        ("kubernetes:P3", "GET", "/api/v1/pods?watch", "watch -/v1 - pods/- -"),
        ("kubernetes:P3", "GET", "/api/v1/pods?watch=", "watch -/v1 - pods/- -"),
        ("kubernetes:P3", "GET", "/api/v1/pods?watch=0", "list -/v1 - pods/- -"),
        ("kubernetes:P3", "GET", "/api/v1/pods?w%61tch=1", "watch -/v1 - pods/- -"),
        ("kubernetes:P3", "GET", "/api/v1/pods?watch=false&watch=true", "list -/v1 - pods/- -"),
        ("kubernetes:P3", "GET", "/api/v1/pods?watch=true&watch=false", "watch -/v1 - pods/- -"),
        ("kubernetes:P3", "GET", "/api/v1/pods?limit=x&watch=1", "watch -/v1 - pods/- -"),
        ("kubernetes:P3", "GET", "/api/v1/pods?watch=1;x", "list -/v1 - pods/- -"),
        ("kubernetes:P3", "GET", "/api/v1/pods?watch=%zz", "list -/v1 - pods/- -"),
        ("kubernetes:P3", "GET", "/api/v1/namespaces/a/pods/b?watch=1", "get -/v1 a pods/- b"),
        ("kubernetes:P6", "GET", "/api/v1/namespaces/a/services/x:80/proxy/y", "get -/v1 a services/proxy x:80"),
        ("kubernetes:P6", "POST", "/api/v1/nodes/n/proxy/exec/a/b", "create -/v1 - nodes/proxy n"),
        (
            "kubernetes:P5",
            "DELETE",
            "/apis/tekton.dev/v1/namespaces/a/taskruns",
            "deletecollection tekton.dev/v1 a taskruns/- -",
        ),
        ("kubernetes:P5", "OPTIONS", "/api/v1/pods", "- -/v1 - pods/- -"),
        ("kubernetes:P5", "get", "/api/v1/pods", "- -/v1 - pods/- -"),
        ("kubernetes:P4", "GET", "/api/v1/pods?fieldSelector=metadata.name=x", "list -/v1 - pods/- x"),
        ("kubernetes:P4", "GET", "/api/v1/pods?fieldSelector=metadata.name%3D%3Dx", "list -/v1 - pods/- x"),
        ("kubernetes:P4", "GET", "/api/v1/pods?watch=1&fieldSelector=metadata.name=x", "watch -/v1 - pods/- x"),
        ("kubernetes:P4", "GET", "/api/v1/pods?fieldSelector=a=b,metadata.name=x", "list -/v1 - pods/- x"),
        ("kubernetes:P4", "GET", "/api/v1/pods?fieldSelector=metadata.name!=x", "list -/v1 - pods/- -"),
        ("kubernetes:P4", "GET", "/api/v1/pods?fieldSelector=metadata.name=x,foo", "list -/v1 - pods/- -"),
        ("kubernetes:P4", "GET", "/api/v1/pods?fieldSelector=metadata.name=a/b", "list -/v1 - pods/- -"),
        ("kubernetes:P4", "GET", "/api/v1/pods?fieldSelector=metadata.name=x=y", "list -/v1 - pods/- -"),
        ("kubernetes:P4", "GET", "/api/v1/pods?fieldSelector=metadata.name=x%5C%3Dy", "list -/v1 - pods/- x=y"),
        ("kubernetes:P4", "GET", "/api/v1/pods?fieldSelector=metadata.name=x%5C%5Cy", "list -/v1 - pods/- x\\y"),
        ("kubernetes:P4", "GET", "/api/v1/pods?fieldSelector=metadata.name=x%5Cy", "list -/v1 - pods/- -"),
        ("kubernetes:P4", "GET", "/api/v1/pods?fieldSelector=metadata.name=a%2Db", "list -/v1 - pods/- a-b"),
        ("kubernetes:P4", "GET", "/api/v1/pods?fieldSelector=metadata.name=a%25b", "list -/v1 - pods/- -"),
        ("kubernetes:P4", "GET", "/api/v1/pods?fieldSelector=metadata.name=x..", "list -/v1 - pods/- x.."),
        ("kubernetes:P4", "GET", "/api/v1/pods?fieldSelector=metadata.name=..", "list -/v1 - pods/- -"),
        ("kubernetes:P4", "GET", "/api/v1/pods?fieldSelector=metadata.name=.", "list -/v1 - pods/- -"),
        // The API server sorts the terms and uses the first.
        ("kubernetes:P4", "GET", "/api/v1/pods?fieldSelector=metadata.name=b,metadata.name=a", "list -/v1 - pods/- a"),
        ("kubernetes:P4", "GET", "/api/v1/pods?fieldSelector=metadata.name=x&limit=5", "list -/v1 - pods/- x"),
        ("kubernetes:P4", "GET", "/api/v1/pods?fieldSelector=metadata.name=x&limit=y", "list -/v1 - pods/- -"),
        ("kubernetes:P4", "GET", "/api/v1/pods?fieldSelector=metadata.name=x&timeoutSeconds=5", "list -/v1 - pods/- x"),
        ("kubernetes:P4", "GET", "/api/v1/pods?fieldSelector=metadata.name=x&timeoutSeconds=y", "list -/v1 - pods/- -"),
        ("kubernetes:P4", "GET", "/api/v1/pods?FieldSelector=metadata.name=x", "list -/v1 - pods/- -"),
        ("kubernetes:P4", "GET", "/api/v1/watch/pods?fieldSelector=metadata.name=x", "watch -/v1 - pods/- -"),
        ("kubernetes:P4", "DELETE", "/api/v1/pods?fieldSelector=metadata.name=x", "deletecollection -/v1 - pods/- -"),
        ("kubernetes:C4", "GET", "/api/v1/pods?namespace=a", "list -/v1 - pods/- -"),
    ] {
        let attributes = parse(method, target).unwrap();
        assert!(attributes.is_resource, "{row} {method} {target}");
        assert_eq!(line(&attributes), expected, "{row} {method} {target}");
    }
}

#[test]
fn other_paths_are_no_resources() {
    for target in
        ["/", "", "/api", "/api/v1", "/api/v1/", "/apis/tekton.dev/v1", "/version", "/apis/v1/pods", "/x/v1/pods"]
    {
        let attributes = parse("GET", target).unwrap();
        assert!(!attributes.is_resource, "{target}");
        assert_eq!((attributes.verb.as_str(), attributes.path.as_str()), ("get", target));
    }
    assert_eq!(parse("FOO", "/version").unwrap().verb, "foo");
    // Whatever the method is called, it is neither a tunnel nor a watch.
    for method in ["PROXY", "WATCH"] {
        let attributes = parse(method, "/version").unwrap();
        assert!(!attributes.is_proxy() && !attributes.is_tunnel() && !attributes.is_long_running(), "{method}");
    }
}

#[test]
fn requests_that_two_parsers_could_read_differently_are_refused() {
    for (row, target) in [
        ("kubernetes:P2", "/api/v1/watch"),
        ("kubernetes:P2", "/apis/tekton.dev/v1/proxy"),
        ("kubernetes:P1", "/api/v1/namespaces/a%2Fb/pods"),
        ("kubernetes:P1", "/api/v1/namespaces/a%00/pods"),
        ("kubernetes:P1", "/api/v1/namespaces/a%zz/pods"),
        ("kubernetes:P1", "/api/v1/namespaces/a%ff/pods"),
        ("kubernetes:C4", "/api/v1/pods?Namespace=a&namespace=b"),
        ("kubernetes:C4", "/api/v1/pods?Namespace=a&namespace=a"),
        ("kubernetes:C4", "/api/v1/pods?Watch=0&watch=1"),
        ("kubernetes:C4", "/api/v1/pods?fieldSelector=metadata.name=a&fieldSelector=metadata.name=b"),
    ] {
        assert!(parse("GET", target).is_err(), "{row} {target}");
    }
    assert!(parse("GET", "/api/v1/pods?fieldSelector=metadata.name=a&fieldSelector=metadata.name=a").is_ok());
    assert!(parse("GET", "/api/v1/namespaces/a%20b/pods").is_ok_and(|a| a.namespace == "a b"));
}

/// HTML forms and many APIs send a list as a repeated parameter.
#[test]
fn a_query_is_read_only_where_the_api_server_reads_it() {
    let ambiguous = |name: &'static str| Some(InvalidAttributes::Ambiguous(name));
    for (target, expected) in [
        ("/api/v1/namespaces/a/services/s/proxy/x?name=a&name=b", None),
        ("/api/v1/namespaces/a/services/s:80/proxy/x?Namespace=a&namespace=b&watch=1&Watch=0&follow=fal%C5%BFe", None),
        ("/api/v1/nodes/n/proxy/x?resource=a&resource=b", None),
        ("/api/v1/proxy/namespaces/a/services/s?name=a&name=b&follow=a&follow=b", None),
        ("/openapi/v3?name=a&name=b", None),
        ("/api/v1/namespaces/a/pods/p?name=a&name=b&fieldSelector=a=b&fieldSelector=c=d", None),
        ("/api/v1/namespaces/a/pods/p/log?container=a&container=b", None),
        ("/api/v1/namespaces/a/pods/p/log?follow=1&follow=0", ambiguous("follow")),
        ("/api/v1/namespaces/a/pods/p?watch=1&Watch=0", ambiguous("watch")),
        ("/api/v1/namespaces/a/pods?name=a&name=b", ambiguous("name")),
        ("/api/v1/namespaces/a/services?labelSelector=a&labelSelector=b", ambiguous("labelSelector")),
        // `proxy` is the name of a service here.
        ("/api/v1/namespaces/a/services/proxy?follow=1&follow=0", ambiguous("follow")),
        // A pod in a namespace `proxy`.
        ("/api/v1/namespaces/proxy/pods?name=a&name=b", ambiguous("name")),
    ] {
        assert_eq!(parse("GET", target).err(), expected, "{target}");
    }
    let proxied = parse("GET", "/api/v1/namespaces/a/services/s/proxy/x?name=a&name=b").unwrap();
    assert_eq!(line(&proxied), "get -/v1 a services/proxy s");
}

/// The API server would create the object in the body, while rules with `names` would see another name.
#[test]
fn a_create_names_no_object_in_its_path() {
    for (target, is_taken) in [
        ("/apis/tekton.dev/v1/namespaces/ci/pipelines/other", false),
        ("/apis/tekton.dev/v1/namespaces/ci/pipelines/other/", false),
        ("/apis/tekton.dev/v1/namespaces/ci/pipelines/other?watch=1", false),
        ("/apis/tekton.dev/v1alpha1/clustertasks/other", false),
        ("/api/v1/namespaces/ci", false),
        ("/apis/tekton.dev/v1/namespaces/ci/pipelines", true),
        ("/apis/tekton.dev/v1/namespaces/ci/pipelines/", true),
        ("/api/v1/namespaces", true),
        ("/api/v1/namespaces/ci/pods/p/eviction", true),
        ("/api/v1/namespaces/ci/finalize", true),
        ("/api/v1/proxy/namespaces/ci/services/s", true),
    ] {
        let read = parse("POST", target);
        assert_eq!(read.as_ref().err(), (!is_taken).then_some(&InvalidAttributes::NamedCreate), "{target}");
        let Err(refused) = read else { continue };
        let refused = Rejection::from(refused);
        assert_eq!(refused.reason(), Reason::MethodNotAllowed);
        for method in ["GET", "PUT", "PATCH", "DELETE"] {
            assert!(parse(method, target).is_ok(), "{method} {target}");
        }
    }
}

#[test]
fn tunnels_are_writes_and_last_whatever_the_method() {
    for (target, write, long) in [
        ("/api/v1/namespaces/a/pods/p/exec?command=sh", true, true),
        ("/api/v1/namespaces/a/pods/p/attach", true, true),
        ("/api/v1/namespaces/a/pods/p/portforward", true, true),
        ("/api/v1/namespaces/a/pods/p/proxy/x", true, true),
        ("/api/v1/proxy/nodes/n", true, true),
        ("/api/v1/namespaces/a/pods/p/log", false, false),
        ("/api/v1/namespaces/a/pods/p/log?follow=true", false, true),
        ("/api/v1/namespaces/a/pods/p/log?follow=false", false, false),
        ("/api/v1/pods?watch=1", false, true),
        ("/api/v1/pods", false, false),
        ("/version", false, false),
    ] {
        let attributes = parse("GET", target).unwrap();
        assert_eq!((attributes.is_write(), attributes.is_long_running()), (write, long), "{target}");
    }
    for method in ["PUT", "PATCH", "DELETE", "OPTIONS"] {
        assert!(parse(method, "/api/v1/namespaces/a/pods/p").unwrap().is_write(), "{method}");
    }
    assert!(parse("POST", "/api/v1/namespaces/a/pods").unwrap().is_write());
    assert!(parse("POST", "/version").unwrap().is_write());
}

/// Regression: Headlamp reads unfollowed logs over a WebSocket too, which the API server allows, and showed none.
#[test]
fn a_log_may_be_upgraded_whether_or_not_it_is_followed() {
    for (target, upgradable) in [
        ("/api/v1/namespaces/a/pods/p/exec?command=sh", true),
        ("/api/v1/namespaces/a/pods/p/log", true),
        ("/api/v1/namespaces/a/pods/p/log?follow=true", true),
        ("/api/v1/namespaces/a/pods/p/log?follow=false", true),
        ("/api/v1/pods?watch=1", true),
        ("/api/v1/pods", false),
        ("/api/v1/namespaces/a/pods/log", false),
        ("/api/v1/namespaces/a/pods/p/status", false),
        ("/log", false),
        ("/version", false),
    ] {
        assert_eq!(parse("GET", target).unwrap().is_upgradable(), upgradable, "{target}");
    }
}

#[test]
fn an_apply_is_distinguished_from_other_patches_by_its_type() {
    const POD: &str = "/api/v1/namespaces/a/pods/p";
    for (method, target, types, expected) in [
        ("PATCH", POD, &["application/apply-patch+yaml"][..], true),
        ("PATCH", POD, &["application/apply-patch+cbor"], true),
        ("PATCH", POD, &[" Application/Apply-Patch+YAML; charset=utf-8"], true),
        ("PATCH", POD, &["application/merge-patch+json", "application/apply-patch+yaml"], true),
        ("PATCH", POD, &["application/merge-patch+json"], false),
        ("PATCH", POD, &[], false),
        // It creates nothing.
        ("PATCH", "/api/v1/namespaces/a/pods/p/status", &["application/apply-patch+yaml"], false),
        ("PATCH", "/version", &["application/apply-patch+yaml"], false),
        ("PUT", POD, &["application/apply-patch+yaml"], false),
    ] {
        let attributes = parse(method, target).unwrap().sent_as(types.iter().map(|media| media.as_bytes()));
        assert_eq!(attributes.apply, expected, "{method} {target} {types:?}");
    }
}

/// Go folds U+017F to `s`, so the API server would list where Doorward saw a watch.
#[test]
fn a_watch_that_readers_take_in_two_ways_is_refused() {
    for (target, refused) in [
        ("/api/v1/pods?watch=fal%C5%BFe", Some("watch")),
        ("/api/v1/pods?watch=true&watch=fal\u{17f}e", Some("watch")),
        ("/api/v1/namespaces/a/pods/b/log?follow=fal%C5%BFe", Some("follow")),
        ("/api/v1/pods?watch=%FF", Some("watch")),
        ("/api/v1/pods?watch=false&labelSelector=a%3D%C5%BF", None),
    ] {
        assert_eq!(parse("GET", target).err(), refused.map(InvalidAttributes::NotAscii), "{target}");
    }
}

/// The API server would list all objects where Doorward saw one name, and create what Doorward saw as a dry run.
#[test]
fn a_query_of_which_the_api_server_reads_nothing_is_refused() {
    for (method, target) in [
        ("GET", "/api/v1/namespaces/a/configmaps?fieldSelector=metadata.name=public"),
        ("GET", "/api/v1/pods?watch=1"),
        ("POST", "/apis/tekton.dev/v1/namespaces/a/pipelineruns?dryRun=All"),
    ] {
        let with_parts = |parts: usize| parse(method, &format!("{target}{}", "&".repeat(parts - 1)));
        assert_eq!(with_parts(10_000), parse(method, target), "{target}");
        assert!(matches!(with_parts(10_001), Err(InvalidAttributes::TooManyParts(_))), "{target}");
    }
}
