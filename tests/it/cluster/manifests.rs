//! The consistency of the objects in `deploy/`, as built by overlays: whom network policies admit, what selectors
//! select, the names of ports, and how far pods are restricted.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    process::Command,
};

use serde_json::{Value, json};

use super::shipped::{OVERLAYS, built, deploy, find, objects};

fn overlays() -> Vec<(&'static str, Vec<Value>)> {
    OVERLAYS.map(|overlay| (overlay, objects(&built(overlay)))).to_vec()
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

fn of_kind<'o>(objects: &'o [Value], kind: &str) -> Vec<&'o Value> {
    objects.iter().filter(|object| object["kind"] == kind).collect()
}

/// Whether a selector selects something with these labels. The selectors here have only `matchLabels`; one without any
/// would select everything.
fn selects(selector: &Value, labels: &Value) -> bool {
    let parts: Vec<&String> = selector.as_object().unwrap().keys().collect();
    assert_eq!(parts, ["matchLabels"], "{selector}");
    let wanted = selector["matchLabels"].as_object().unwrap();
    assert!(!wanted.is_empty(), "{selector}");
    wanted.iter().all(|(name, value)| labels[name] == *value)
}

/// The pods of a StatefulSet.
fn pods<'o>(objects: &'o [Value], name: &str) -> &'o Value {
    &find(objects, "StatefulSet", name)["spec"]["template"]
}

fn labels<'o>(objects: &'o [Value], name: &str) -> &'o Value {
    &pods(objects, name)["metadata"]["labels"]
}

/// The ports of a pod that have a name.
fn port_names(pod: &Value) -> BTreeSet<&str> {
    let ports = list(&pod["spec"]["containers"]).iter().flat_map(|container| list(&container["ports"]));
    ports.filter_map(|port| port["name"].as_str()).collect()
}

/// The host and port of an upstream of the shipped configuration.
fn upstream(objects: &[Value], name: &str) -> (String, u64) {
    let text = find(objects, "ConfigMap", "doorward")["data"]["doorward.yaml"].as_str().unwrap();
    let root: Value = serde_saphyr::from_str(text).unwrap();
    let upstream = list(&root["upstreams"]).iter().find(|upstream| upstream["name"] == name).unwrap();
    let (host, port) = upstream["url"].as_str().unwrap().strip_prefix("http://").unwrap().rsplit_once(':').unwrap();
    (host.to_owned(), port.parse().unwrap())
}

/// The upstreams that only Doorward may reach: their host, the label of their pods, and the policy that keeps others
/// out.
const GUARDED: [(&str, &str, &str, &str); 2] = [
    ("dashboard", "app.kubernetes.io/part-of", "tekton-dashboard", "dashboard-by-doorward"),
    ("el-build", "app.kubernetes.io/managed-by", "EventListener", "event-listeners-by-doorward"),
];

#[test]
fn event_listeners_and_the_dashboard_admit_only_the_pods_of_doorward() {
    for (overlay, objects) in overlays() {
        let policies = of_kind(&objects, "NetworkPolicy");
        for (name, label, value, policy) in GUARDED {
            let (host, port) = upstream(&objects, name);
            let namespace = host.split('.').nth(1).unwrap();
            // A second policy would admit more, whatever the first says.
            let there: Vec<&&Value> =
                policies.iter().filter(|policy| policy["metadata"]["namespace"] == namespace).collect();
            let [found] = there[..] else { panic!("{overlay} {namespace}: {there:#?}") };
            assert_eq!(found["metadata"]["name"], policy, "{overlay}");
            let spec = &found["spec"];
            assert_eq!(spec["podSelector"], json!({"matchLabels": {label: value}}), "{overlay} {policy}");
            assert_eq!(spec["policyTypes"], json!(["Ingress"]), "{overlay} {policy}");
            let mut admitted = BTreeMap::new();
            for rule in list(&spec["ingress"]) {
                // Without either, all ports or all peers would be admitted.
                let ([port], [peer]) = (list(&rule["ports"]), list(&rule["from"])) else { panic!("{policy}: {rule}") };
                assert!(admitted.insert(port["port"].as_u64().unwrap(), peer).is_none(), "{policy}: {rule}");
            }
            let peer = admitted.remove(&port).unwrap_or_else(|| panic!("{policy}: not at {port}"));
            // Both selectors in one peer: as separate peers they would admit a whole namespace, or pods with that name
            // anywhere.
            let doorward = json!({"matchLabels": {"kubernetes.io/metadata.name": "doorward"}});
            assert_eq!(peer.as_object().unwrap().len(), 2, "{policy}: {peer}");
            assert_eq!(peer["namespaceSelector"], doorward, "{policy}");
            assert!(selects(&peer["podSelector"], labels(&objects, "doorward")), "{overlay} {policy}");
            for set in of_kind(&objects, "StatefulSet") {
                let its = &set["spec"]["template"]["metadata"]["labels"];
                let is_doorward = set["metadata"]["name"] == "doorward";
                assert_eq!(selects(&peer["podSelector"], its), is_doorward, "{overlay} {policy}: {its}");
                assert_eq!(set["metadata"]["namespace"], "doorward", "{overlay}");
            }
            let metrics = json!({"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}});
            let more: Vec<(u64, Value)> = admitted.into_iter().map(|(port, peer)| (port, peer.clone())).collect();
            let expected = if name == "dashboard" { vec![] } else { vec![(9000, metrics)] };
            assert_eq!(more, expected, "{overlay} {policy}");
        }
    }
}

#[test]
fn doorward_connects_only_to_configured_addresses() {
    for (overlay, objects) in overlays() {
        let policy = &find(&objects, "NetworkPolicy", "doorward")["spec"];
        assert!(selects(&policy["podSelector"], labels(&objects, "doorward")), "{overlay}");
        assert_eq!(policy["policyTypes"], json!(["Ingress", "Egress"]), "{overlay}");
        let at = |namespace: &str| json!({"matchLabels": {"kubernetes.io/metadata.name": namespace}});
        // GKE's Cloud DNS, which Autopilot always uses, and node-local caches are not pods: no name could be resolved.
        let on_node = |address: &str| json!({"ipBlock": {"cidr": format!("{address}/32")}});
        let dns = json!({"ports": [{"port": 53, "protocol": "UDP"}, {"port": 53, "protocol": "TCP"}],
            "to": [{"namespaceSelector": at("kube-system")}, on_node("169.254.169.254"), on_node("169.254.20.10")]});
        let itself = json!({"ports": [{"port": 8443}],
            "to": [{"podSelector": {"matchLabels": {"app.kubernetes.io/name": "doorward"}}}]});
        let mut expected = vec![dns, json!({"ports": [{"port": 443}, {"port": 6443}]}), itself];
        for (name, label, value, _) in GUARDED {
            let (host, port) = upstream(&objects, name);
            let pods = json!({"matchLabels": {label: value}});
            let to = json!([{"namespaceSelector": at(host.split('.').nth(1).unwrap()), "podSelector": pods}]);
            expected.push(json!({"ports": [{"port": port}], "to": to}));
        }
        if overlay == "replicas" {
            let labels = labels(&objects, "doorward-valkey");
            expected.push(json!({"ports": [{"port": 6379}], "to": [{"podSelector": {"matchLabels": labels}}]}));
        }
        assert_eq!(policy["egress"], json!(expected), "{overlay}");
        let monitoring = json!([{"namespaceSelector": at("monitoring")}]);
        let taken = json!([
            {"ports": [{"port": "https"}, {"port": "interceptor"}]},
            {"ports": [{"port": "admin"}], "from": monitoring},
        ]);
        assert_eq!(policy["ingress"], taken, "{overlay}");
    }
    let (_, objects) = overlays().pop().unwrap();
    let policy = &find(&objects, "NetworkPolicy", "doorward-valkey")["spec"];
    assert!(selects(&policy["podSelector"], labels(&objects, "doorward-valkey")));
    assert_eq!((&policy["policyTypes"], &policy["egress"]), (&json!(["Ingress", "Egress"]), &json!([])));
    let [rule] = list(&policy["ingress"]) else { panic!("{policy}") };
    let [peer] = list(&rule["from"]) else { panic!("{policy}") };
    assert_eq!(peer.as_object().unwrap().len(), 1, "{peer}");
    assert!(selects(&peer["podSelector"], labels(&objects, "doorward")));
    assert!(!selects(&peer["podSelector"], labels(&objects, "doorward-valkey")));
    assert_eq!(rule["ports"], json!([{"port": "valkey"}]));
}

#[test]
fn each_port_that_is_named_is_one_of_the_pods_that_are_selected() {
    for (overlay, objects) in overlays() {
        let sets = of_kind(&objects, "StatefulSet");
        let selected = |selector: &Value| -> Vec<&Value> {
            let all = sets.iter().map(|set| &set["spec"]["template"]);
            all.filter(|pod| selects(selector, &pod["metadata"]["labels"])).collect()
        };
        let mut services = BTreeSet::new();
        for service in of_kind(&objects, "Service") {
            let name = service["metadata"]["name"].as_str().unwrap();
            let [pod] = selected(&json!({"matchLabels": service["spec"]["selector"]}))[..] else {
                panic!("{overlay} {name} leads to other pods than those of one set")
            };
            for port in list(&service["spec"]["ports"]) {
                assert!(port_names(pod).contains(port["targetPort"].as_str().unwrap()), "{overlay} {name}: {port}");
            }
            services.insert(name);
        }
        for set in &sets {
            assert!(services.contains(set["spec"]["serviceName"].as_str().unwrap()), "{overlay}: {set:#}");
            assert!(selects(&set["spec"]["selector"], &set["spec"]["template"]["metadata"]["labels"]), "{overlay}");
        }
        for policy in of_kind(&objects, "NetworkPolicy") {
            for rule in list(&policy["spec"]["ingress"]) {
                let named = list(&rule["ports"]).iter().filter_map(|port| port["port"].as_str());
                for name in named {
                    let [pod] = selected(&policy["spec"]["podSelector"])[..] else { panic!("{overlay}: {policy:#}") };
                    assert!(port_names(pod).contains(name), "{overlay} {name}: {policy:#}");
                }
            }
        }
    }
}

#[test]
fn pods_are_restricted_and_have_probes() {
    for (overlay, objects) in overlays() {
        let sets = of_kind(&objects, "StatefulSet");
        assert_eq!(sets.len(), if overlay == "single" { 1 } else { 2 });
        for set in sets {
            let (name, pod) = (&set["metadata"]["name"], &set["spec"]["template"]["spec"]);
            let security = &pod["securityContext"];
            assert_eq!(security["runAsNonRoot"], true, "{overlay} {name}");
            assert_ne!(security["runAsUser"].as_u64().unwrap(), 0, "{overlay} {name}");
            assert_eq!(security["seccompProfile"], json!({"type": "RuntimeDefault"}), "{overlay} {name}");
            assert_eq!(pod["automountServiceAccountToken"], false, "{overlay} {name}");
            for shared in ["hostNetwork", "hostPID", "hostIPC"] {
                assert!(pod[shared].is_null(), "{overlay} {name} {shared}");
            }
            assert!(list(&pod["volumes"]).iter().all(|volume| volume["hostPath"].is_null()), "{overlay} {name}");
            let containers: Vec<&Value> = list(&pod["containers"]).iter().chain(list(&pod["initContainers"])).collect();
            assert_eq!(containers.len(), 1, "{overlay} {name}");
            for container in containers {
                let expected = json!({
                    "allowPrivilegeEscalation": false, "privileged": false, "readOnlyRootFilesystem": true,
                    "capabilities": {"drop": ["ALL"]},
                });
                assert_eq!(container["securityContext"], expected, "{overlay} {name}");
                assert!(container["resources"]["limits"]["memory"].is_string(), "{overlay} {name}");
                for probe in ["readinessProbe", "livenessProbe"] {
                    let probe = &container[probe];
                    let port = probe["httpGet"]["port"].as_str().or_else(|| probe["tcpSocket"]["port"].as_str());
                    assert!(port_names(&set["spec"]["template"]).contains(port.unwrap()), "{overlay} {name}: {probe}");
                }
                // A path that needs writes has a volume, and mounted input is read-only.
                let written = list(&container["volumeMounts"]).iter().filter(|mount| mount["readOnly"] != true);
                let written: Vec<&str> = written.filter_map(|mount| mount["name"].as_str()).collect();
                let expected = if name == "doorward" { vec!["state", "run"] } else { vec!["data"] };
                assert_eq!(written, expected, "{overlay} {name}");
            }
        }
        let container = &pods(&objects, "doorward")["spec"]["containers"][0];
        for (probe, path) in
            [("startupProbe", "/healthz"), ("livenessProbe", "/healthz"), ("readinessProbe", "/readyz")]
        {
            assert_eq!(container[probe]["httpGet"], json!({"path": path, "port": "admin"}), "{overlay} {probe}");
        }
        let replicas = find(&objects, "StatefulSet", "doorward")["spec"]["replicas"].as_u64();
        assert_eq!(replicas, Some(if overlay == "single" { 1 } else { 3 }));
    }
}

#[test]
fn replicas_are_spread_and_protected_from_simultaneous_eviction() {
    for (overlay, objects) in overlays() {
        let labels = labels(&objects, "doorward");
        let budgets = of_kind(&objects, "PodDisruptionBudget");
        let [budget] = budgets[..] else { panic!("{overlay}: {budgets:#?}") };
        assert!(selects(&budget["spec"]["selector"], labels), "{overlay}");
        let namespaces =
            (&budget["metadata"]["namespace"], &find(&objects, "StatefulSet", "doorward")["metadata"]["namespace"]);
        assert_eq!(namespaces.0, namespaces.1, "{overlay}");
        assert_eq!((&budget["spec"]["maxUnavailable"], &budget["spec"]["minAvailable"]), (&json!(1), &Value::Null));
        let spread = list(&pods(&objects, "doorward")["spec"]["topologySpreadConstraints"]);
        let keys: Vec<&Value> = spread.iter().map(|constraint| &constraint["topologyKey"]).collect();
        assert_eq!(keys, ["kubernetes.io/hostname", "topology.kubernetes.io/zone"], "{overlay}");
        for constraint in spread {
            assert!(selects(&constraint["labelSelector"], labels), "{overlay}");
            assert_eq!(constraint["maxSkew"], 1, "{overlay}");
        }
    }
}

/// The objects of a custom overlay with these lines and files. `DEPLOY` is the path to the shipped `deploy/`, relative,
/// as kustomize accepts no absolute paths.
pub(super) fn built_beside(kustomization: &str, files: &[(&str, &str)]) -> Vec<Value> {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path().canonicalize().unwrap();
    let ours = deploy().canonicalize().unwrap();
    let up = "../".repeat(here.components().count() - 1);
    let ours = format!("{up}{}", ours.display().to_string().trim_start_matches('/'));
    fs::write(here.join("kustomization.yaml"), kustomization.replace("DEPLOY", &ours)).unwrap();
    for (name, text) in files {
        fs::create_dir_all(here.join(name).parent().unwrap()).unwrap();
        fs::write(here.join(name), text).unwrap();
    }
    objects(&built(here.to_str().unwrap()))
}

/// Changes the namespace of the objects in all files below a folder, as the guide describes it.
fn move_objects(folder: &Path, namespace: &str) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            move_objects(&path, namespace);
        } else {
            let text = fs::read_to_string(&path).unwrap();
            let is_it = |line: &str| line.trim() == "namespace: doorward";
            let lines = text.lines().map(|line| match is_it(line) {
                true => line.replace("doorward", namespace) + "\n",
                false => format!("{line}\n"),
            });
            fs::write(&path, lines.collect::<String>()).unwrap();
        }
    }
}

/// kustomize reports no error for a patch that matches no object.
#[test]
fn in_another_namespace_doorward_reaches_its_valkey_too() {
    let folder = tempfile::tempdir().unwrap();
    let copied = Command::new("cp").arg("-r").arg(deploy()).arg(folder.path().join("deploy")).status().unwrap();
    assert!(copied.success());
    let deploy = folder.path().join("deploy");
    move_objects(&deploy, "elsewhere");
    let objects = objects(&built(deploy.join("overlays/replicas").to_str().unwrap()));
    let policy = find(&objects, "NetworkPolicy", "doorward");
    assert_eq!(policy["metadata"]["namespace"], "elsewhere");
    let at_valkey = |rule: &Value| rule["ports"] == json!([{"port": 6379}]);
    assert!(list(&policy["spec"]["egress"]).iter().any(at_valkey), "{policy:#}");
    let container = &pods(&objects, "doorward")["spec"]["containers"][0];
    assert!(list(&container["env"]).iter().any(|variable| variable["name"] == "DOORWARD_STORE__REDIS"), "{container}");
}

/// OpenShift refuses pods that set a user or a group.
#[test]
fn on_openshift_no_pod_names_its_user_and_all_else_stays() {
    let objects =
        built_beside("resources: [DEPLOY/overlays/replicas]\ncomponents: [DEPLOY/components/openshift]\n", &[]);
    let sets = of_kind(&objects, "StatefulSet");
    assert_eq!(sets.len(), 2);
    for set in sets {
        let security = &set["spec"]["template"]["spec"]["securityContext"];
        let expected = json!({
            "runAsNonRoot": true, "fsGroupChangePolicy": "OnRootMismatch", "seccompProfile": {"type": "RuntimeDefault"},
        });
        assert_eq!(*security, expected, "{}", set["metadata"]["name"]);
    }
}

#[test]
fn the_overlay_of_the_guide_replaces_the_configuration_under_the_name_that_pods_mount() {
    let guide = guide();
    let (_, overlay) = guide.split_once("```yaml\n# kustomization.yaml of your overlay\n").unwrap();
    let (overlay, _) = overlay.split_once("```").unwrap();
    let files = ["config/doorward.yaml", "config/grants.yaml", "config/rules.yaml"].map(|file| (file, "# ours"));
    let objects = built_beside(&overlay.replace("../deploy/", "DEPLOY/"), &files);
    let config = &find(&objects, "ConfigMap", "doorward")["data"];
    assert_eq!(*config, json!({"doorward.yaml": "# ours", "grants.yaml": "# ours", "rules.yaml": "# ours"}));
    let volumes = list(&pods(&objects, "doorward")["spec"]["volumes"]);
    assert!(volumes.iter().any(|volume| volume["configMap"]["name"] == "doorward"), "{volumes:?}");
    let image = &list(&pods(&objects, "doorward")["spec"]["containers"])[0]["image"];
    assert_eq!(*image, "registry.example.org/doorward:0.1.0");
}

/// A Service that replaces the client address by a node's makes all callers one client.
#[test]
fn the_load_balancer_of_the_examples_keeps_the_address_of_clients() {
    let service: Value = serde_saphyr::from_str(&example("load-balancer.yaml")).unwrap();
    assert_eq!(service["spec"]["externalTrafficPolicy"], "Local");
    let (_, shipped) = overlays().swap_remove(0);
    let of_shipped = &find(&shipped, "Service", "doorward")["spec"];
    assert_eq!(
        (&service["spec"]["selector"], &service["spec"]["ports"]),
        (&of_shipped["selector"], &of_shipped["ports"])
    );
}

/// An AWS NLB with pods as targets opens its own connections, so that all users shared one address and its connection
/// limit.
#[test]
fn the_load_balancer_of_the_examples_keeps_the_address_of_clients_on_aws_too() {
    let example = example("load-balancer.yaml");
    let on_aws = example.replace("  # annotations:\n", "  annotations:\n").replace("  #   service.", "    service.");
    let service: Value = serde_saphyr::from_str(&on_aws).unwrap();
    for (name, value) in [
        ("scheme", "internet-facing"),
        ("nlb-target-type", "ip"),
        ("target-group-attributes", "preserve_client_ip.enabled=true"),
    ] {
        let name = format!("service.beta.kubernetes.io/aws-load-balancer-{name}");
        assert_eq!(service["metadata"]["annotations"][&name], value, "{name}");
    }
}

/// Its addresses include all pods, so that a step of a run could claim any address if nothing else kept it out.
#[test]
fn the_guide_trusts_an_ingress_at_a_listener_that_admits_only_it() {
    let guide = guide();
    let block = |first: &str| {
        let (_, rest) = guide.split_once(&format!("```yaml\n{first}\n")).unwrap();
        rest.split("```").next().unwrap()
    };
    let listener: Value = serde_saphyr::from_str(block("# doorward.yaml, among `listeners`")).unwrap();
    let [listener] = list(&listener) else { panic!("{listener}") };
    assert!(listener["tls"].is_object() && !list(&listener["trusted_proxies"]).is_empty(), "{listener}");
    let overlay = block("# the overlay, for a proxy in the cluster");
    let objects = built_beside(&format!("resources: [DEPLOY/overlays/single]\n{overlay}"), &[]);
    let shipped = find(&objects, "ConfigMap", "doorward")["data"]["doorward.yaml"].as_str().unwrap();
    let shipped: Value = serde_saphyr::from_str(shipped).unwrap();
    let trusting = |listener: &&Value| !list(&listener["trusted_proxies"]).is_empty();
    assert_eq!(list(&shipped["listeners"]).iter().find(trusting), None, "everybody gets to these");

    let pod = pods(&objects, "doorward");
    let ports = list(&pod["spec"]["containers"][0]["ports"]);
    let port = ports.iter().find(|port| port["name"] == listener["name"]).unwrap();
    let (_, bound) = listener["address"].as_str().unwrap().rsplit_once(':').unwrap();
    assert_eq!(port["containerPort"].to_string(), bound);
    let services = list(&find(&objects, "Service", "doorward")["spec"]["ports"]);
    assert!(services.iter().any(|service| service["targetPort"] == port["name"]), "{services:?}");
    let policy = &find(&objects, "NetworkPolicy", "doorward")["spec"];
    let lets_in = |rule: &&Value| list(&rule["ports"]).iter().any(|of| of["port"] == port["name"]);
    let rules: Vec<&Value> = list(&policy["ingress"]).iter().filter(lets_in).collect();
    let [rule] = rules[..] else { panic!("{policy:#}") };
    let [peer] = list(&rule["from"]) else { panic!("{rule}") };
    for selector in ["namespaceSelector", "podSelector"] {
        assert!(!peer[selector]["matchLabels"].as_object().unwrap().is_empty(), "{rule}");
    }
}

fn guide() -> String {
    fs::read_to_string(deploy().join("../docs/install.md")).unwrap()
}

fn example(name: &str) -> String {
    fs::read_to_string(deploy().join("examples").join(name)).unwrap()
}

/// The arguments of each directive, by its name, without directives that occur more than once.
fn directives(configuration: &str) -> BTreeMap<String, Vec<String>> {
    let lines = configuration.lines().filter_map(|line| line.trim().strip_suffix(';'));
    let words = lines.map(|line| line.split_whitespace().map(str::to_owned).collect::<Vec<String>>());
    words.map(|mut words| (words.remove(0), words)).filter(|(name, _)| name != "proxy_set_header").collect()
}

const OF_INGRESS: &str = "nginx.ingress.kubernetes.io/";

/// Annotations of ingress-nginx, the corresponding nginx directives, and the values that match.
#[test]
fn the_ingress_says_what_the_tested_nginx_does() {
    let nginx = directives(&example("nginx.conf"));
    let ingress: Value = serde_saphyr::from_str(&example("ingress.yaml")).unwrap();
    let mut annotations = BTreeMap::new();
    for (name, value) in ingress["metadata"]["annotations"].as_object().unwrap() {
        annotations.insert(name.strip_prefix(OF_INGRESS).unwrap(), value.as_str().unwrap().to_owned());
    }
    let seconds = |value: &str| format!("{}h", value.parse::<u32>().unwrap() / 3600);
    let hosts = nginx["server_name"].clone();
    let mut compared = BTreeSet::new();
    for (annotation, value) in &annotations {
        let (directive, expected) = match *annotation {
            "backend-protocol" => ("proxy_pass", format!("{}://doorward", value.to_lowercase())),
            "proxy-ssl-secret" => {
                // A Secret with a key too would be presented to Doorward as a client certificate.
                assert_eq!(value, "doorward/doorward-ca");
                ("proxy_ssl_trusted_certificate", "/etc/nginx/tls/ca.crt".to_owned())
            }
            // One name for all hosts, which the certificate contains as one of them.
            "proxy-ssl-name" => {
                assert!(hosts.contains(value), "{value}");
                ("proxy_ssl_name", value.clone())
            }
            "proxy-body-size" => ("client_max_body_size", value.clone()),
            "proxy-read-timeout" => ("proxy_read_timeout", seconds(value)),
            "proxy-send-timeout" => ("proxy_send_timeout", seconds(value)),
            "proxy-ssl-verify" => ("proxy_ssl_verify", value.clone()),
            "proxy-ssl-server-name" => ("proxy_ssl_server_name", value.clone()),
            "proxy-http-version" => ("proxy_http_version", value.clone()),
            "proxy-buffering" => ("proxy_buffering", value.clone()),
            "proxy-request-buffering" => ("proxy_request_buffering", value.clone()),
            "proxy-buffer-size" => ("proxy_buffer_size", value.clone()),
            "proxy-next-upstream" => ("proxy_next_upstream", value.clone()),
            // For example one that rewrites paths.
            other => panic!("nginx.conf has nothing of {other}"),
        };
        assert_eq!(nginx[directive], [expected], "{annotation}");
        compared.insert(directive);
    }
    let said = nginx.keys().filter(|name| name.starts_with("proxy_") || *name == "client_max_body_size");
    let left: Vec<&String> = said.filter(|name| !compared.contains(name.as_str())).collect();
    assert!(left.is_empty(), "the Ingress lacks {left:?}");

    let (_, objects) = overlays().swap_remove(0);
    let ports = list(&find(&objects, "Service", "doorward")["spec"]["ports"]);
    let mut found = Vec::new();
    for rule in list(&ingress["spec"]["rules"]) {
        let [path] = list(&rule["http"]["paths"]) else { panic!("{rule}") };
        assert_eq!((&path["path"], &path["pathType"]), (&json!("/"), &json!("Prefix")), "{rule}");
        let service = &path["backend"]["service"];
        assert_eq!(service["name"], "doorward");
        assert!(ports.iter().any(|port| port["name"] == service["port"]["name"]), "{rule}");
        found.push(rule["host"].as_str().unwrap());
    }
    assert_eq!(found, hosts);
    assert_eq!(ingress["spec"]["tls"], json!([{"hosts": hosts, "secretName": "doorward-tls"}]));
}

#[test]
fn the_route_of_a_gateway_ends_no_stream_and_rewrites_nothing() {
    let found = objects(&example("http-route.yaml"));
    let (route, policy) = (find(&found, "HTTPRoute", "doorward"), find(&found, "BackendTLSPolicy", "doorward"));
    let hosts = json!(directives(&example("nginx.conf"))["server_name"]);
    assert_eq!(route["spec"]["hostnames"], hosts);
    // Any request may be a stream, so that no rule covers only some.
    let [rule] = list(&route["spec"]["rules"]) else { panic!("{route:#}") };
    let parts: Vec<&String> = rule.as_object().unwrap().keys().collect();
    assert_eq!(parts, ["backendRefs", "timeouts"], "neither filters nor matches nor retries");
    assert_eq!(rule["timeouts"], json!({"request": "0s", "backendRequest": "0s"}));
    // Controllers need not support it.
    for feature in ["HTTPRouteRequestTimeout", "HTTPRouteBackendTimeout"] {
        assert!(example("http-route.yaml").contains(feature), "{feature}");
    }
    assert_eq!(rule["backendRefs"], json!([{"name": "doorward", "port": 443}]));
    let (_, shipped) = overlays().swap_remove(0);
    let service = find(&shipped, "Service", "doorward");
    assert!(list(&service["spec"]["ports"]).iter().any(|port| port["port"] == 443));
    assert_eq!(policy["spec"]["targetRefs"], json!([{"group": "", "kind": "Service", "name": "doorward"}]));
    assert!(list(&hosts).contains(&policy["spec"]["validation"]["hostname"]));
}
