use cel::{
    common::{types::CelString, value::CowVal},
    context::VariableResolver,
};
use serde_json::json;

use super::*;
use crate::authn::Kind;

fn principal() -> Principal {
    let claims = json!({
        "level": 4, "big": u64::MAX, "ratio": 1.5, "tags": ["a", "b"], "nested": {"x": "y"}, "none": null, "on": true
    });
    Principal {
        subject: "alice".into(),
        groups: vec!["dev".into(), "team-a".into()],
        email: Some("alice@corp.example".into()),
        claims: Arc::new(claims.as_object().unwrap().clone()),
        ..sparse_principal()
    }
}

fn compile(source: &str) -> Expression {
    let mut report = Report::default();
    let expression = Expression::compile(source, &At::root(), &mut report);
    expression.unwrap_or_else(|| panic!("{source}: {:?}", report.problems()))
}

fn evaluate_for(source: &str, principal: &Principal) -> Result<bool, String> {
    run(&compile(source), principal)
}

fn run(expression: &Expression, principal: &Principal) -> Result<bool, String> {
    let attributes = Attributes { verb: "get".into(), resource: "pods".into(), ..Attributes::default() };
    with_request(&attributes, |request| expression.evaluate(principal, request).map_err(|error| error.to_string()))
}

fn with_request<T>(attributes: &Attributes, look: impl FnOnce(&RequestView<'_>) -> T) -> T {
    look(&RequestView {
        route: "api",
        kind: RouteKind::Kubernetes,
        host: "api.example",
        path: "/api/v1/pods",
        method: &Method::GET,
        upgrade: false,
        address: "::ffff:192.0.2.1".parse().unwrap(),
        event_listener: None,
        kubernetes: Some(attributes),
        run: None,
        delivery: None,
        trigger: None,
        token: None,
        now: Timestamp::from_secs(1_700_000_000),
    })
}

fn evaluate(source: &str) -> Result<bool, String> {
    evaluate_for(source, &principal())
}

#[test]
fn an_expression_that_may_look_at_the_time_is_known() {
    for (source, expected) in [
        ("request.time < 1800000000", true),
        ("principal.groups.exists(g, g == 'dev' && request.time > 5)", true),
        ("[request.time][0] > 5", true),
        ("request.path == '/time'", false),
        ("principal.claims.time == 5 || 'time' in principal.groups", false),
    ] {
        assert_eq!(compile(source).reads_time(), expected, "{source}");
    }
}

#[test]
fn expressions_see_the_request_and_the_principal() {
    for (source, expected) in [
        ("'dev' in principal.groups", true),
        ("'ops' in principal.groups", false),
        ("principal.groups.exists(g, g.startsWith('team-'))", true),
        ("principal.groups.all(g, g.startsWith('team-'))", false),
        ("principal.groups.filter(g, g.startsWith('team-')).size() == 1", true),
        ("size(principal.groups) == 2 && principal.groups[0] == 'dev'", true),
        ("principal.subject == 'alice' && principal.kind == 'agent'", true),
        ("principal.claims.level > 3 && principal.claims.ratio < 2.0", true),
        ("principal.claims['level'] == 4", true),
        ("principal.claims.tags == ['a', 'b']", true),
        ("['a', 'b'] == principal.claims.tags", true),
        ("principal.claims.nested.x == 'y'", true),
        ("principal.claims.nested == {'x': 'y'}", true),
        ("'level' in principal.claims && !('nope' in principal.claims)", true),
        ("principal.claims.on", true),
        ("has(principal.claims.level) && !has(principal.claims.nope)", true),
        ("has(principal.email) && principal.email.endsWith('@corp.example')", true),
        ("has(principal.actor) || has(principal.client)", false),
        ("has(delivery.event)", false),
        ("!has(kubernetes.verb) || kubernetes.verb == 'get'", true),
        ("request.path.matches('^/api/v[0-9]+/')", true),
        ("matches(request.path, '^/apis/') || principal.groups.exists(g, g.matches('^team-.$'))", true),
        ("principal.groups.all(g, g.matches('^dev'))", false),
        ("request.method == 'GET' && request.route == 'api' && request.host.lowerAscii() == 'api.example'", true),
        ("request.address == '192.0.2.1'", true),
        ("request.time - 900 < 1700000000", true),
        ("kubernetes.name == ''", true),
        ("principal.claims.level + 1 > 2", true),
        ("has(principal.email) && principal.email > 'a'", true),
    ] {
        assert_eq!(evaluate(source), Ok(expected), "{source}");
    }
}

/// It was `""`, which no expression about a namespace has in mind.
#[test]
fn the_namespace_of_a_request_about_all_namespaces_is_absent() {
    for (method, target, is_prod) in [
        ("GET", "/api/v1/namespaces/prod/pods", Some(true)),
        ("GET", "/api/v1/namespaces/dev/pods", Some(false)),
        ("GET", "/api/v1/pods", None),
        ("GET", "/api/v1/pods?watch=true", None),
        ("DELETE", "/api/v1/pods", None),
        ("GET", "/apis/widgets.example/v1/widgets", None),
        ("GET", "/api/v1/nodes", Some(false)),
        ("GET", "/api/v1/nodes/n", Some(false)),
        ("GET", "/version", Some(false)),
        ("GET", "/apis", Some(false)),
    ] {
        let (path, query) = target.split_once('?').map_or((target, None), |(path, query)| (path, Some(query)));
        let attributes = Attributes::parse(&method.parse().unwrap(), path, query).unwrap();
        let value =
            |source: &str| with_request(&attributes, |request| compile(source).evaluate(&principal(), request).ok());
        assert_eq!(value("kubernetes.namespace == 'prod'"), is_prod, "{method} {target}");
        assert_eq!(value("has(kubernetes.namespace)"), Some(is_prod.is_some()), "{method} {target}");
    }
}

#[test]
fn absent_attributes_and_those_of_another_type_have_no_value() {
    for source in [
        "principal.claims.nope == 'x'",
        "principal.claims.level == 4 && principal.claims.nope",
        "principal.claims.level",
        "principal.claims.tags > 3",
        "principal.client == 'x'",
        "principal.actor.subject == 'x'",
        "delivery.event == 'push'",
        "principal.groups[7] == 'x'",
        "principal.claims.level / 0 == 1",
        "principal.claims.level.matches('4')",
    ] {
        assert!(evaluate(source).is_err(), "{source}");
    }
}

/// Otherwise each call would compile its own pattern.
#[test]
fn a_text_is_matched_with_what_was_compiled_at_load_alone() {
    let mut expression = compile("request.path.matches('^/api/') && request.path.matches('s$')");
    assert_eq!(run(&expression, &principal()), Ok(true));
    expression.patterns = None;
    assert!(run(&expression, &principal()).is_err());
}

/// Otherwise a loop over groups would create a whole list for each of them.
#[test]
fn a_claim_and_a_list_are_made_values_once_in_an_evaluation() {
    let attributes = Attributes::default();
    with_request(&attributes, |request| {
        let (principal, names) = (principal(), BTreeSet::from(["tags".to_owned()]));
        let scope = values::Scope::new(&principal, &names, request);
        let get = |field: &[&str]| {
            let mut value = scope.resolve("principal").unwrap();
            for name in field {
                let CowVal::Borrowed(of) = value else { panic!("`{name}` is of what was made anew") };
                value = of.as_indexer().unwrap().get(&CelString::from(*name)).unwrap();
            }
            let CowVal::Borrowed(value) = value else { panic!("{field:?} was made anew") };
            std::ptr::from_ref(value).cast::<()>()
        };
        for field in [&["claims", "tags"][..], &["groups"], &["scopes"]] {
            assert_eq!(get(field), get(field), "{field:?}");
        }
    });
}

/// By `kind` alone, a deny of people missed those who acted for one.
#[test]
fn a_person_behind_an_actor_is_a_person_in_an_expression() {
    const PERSON: &str = "principal.subject_kind == 'human'";
    for (subject, is_acted_for, expected) in [
        (Kind::Human, false, [true, true]),
        (Kind::Human, true, [false, true]),
        (Kind::Agent, true, [false, false]),
        (Kind::Workload, false, [false, false]),
    ] {
        let (kind, subject_kind) = Principal::kinds(subject, is_acted_for);
        let principal = Principal { kind, subject_kind, ..principal() };
        let told = ["principal.kind == 'human'", PERSON].map(|source| evaluate_for(source, &principal));
        assert_eq!(told, expected.map(Ok), "{subject:?} {is_acted_for}");
    }
    // Where tokens are exchanged, the person remains a person beside the actor.
    assert_eq!(evaluate_for(PERSON, &Principal { kind: Kind::Human, ..principal() }), Ok(true));
}

#[test]
fn an_address_with_two_at_signs_is_invalid() {
    let with = |email: &str| Principal { email: Some(email.into()), ..principal() };
    let source = "principal.email.endsWith('@company.com')";
    assert_eq!(evaluate_for(source, &with("alice@company.com")), Ok(true));
    assert!(evaluate_for(source, &with("attacker@evil.com@company.com")).is_err(), "peers:T13");
}

#[test]
fn mistakes_are_reported_at_load_with_their_position() {
    for (source, message, at) in [
        ("principal.groups ==", "does not parse", None),
        ("principal.group == 'x'", "there is no field `group`", Some("principal.".len() - 1)),
        ("'x' in principal.groups && usr.name == 'x'", "there is no variable `usr`", Some(27)),
        ("principal == request", "an object is used", None),
        ("principal.groups == ['x']", "a list is used", None),
        ("['x'] == principal.groups", "a list is used", None),
        ("principal.groups in ['x']", "a list is used", None),
        ("principal.claims == {}", "an object is used", None),
        ("principal.claims.exists(name, name == 'x')", "used as a whole", Some("principal.".len() - 1)),
        ("size(principal.claims) > 3", "used as a whole", None),
        ("principal.claims[request.host] == 'x'", "used as a whole", None),
        ("request.host in principal.claims", "used as a whole", None),
        ("principal['subject'] == 'x'", "an object is used", None),
        ("principal.subject.x == 'x'", "has no fields", None),
        ("principal.actor.name == 'x'", "there is no field `name`", None),
        ("principal.subject.startWith('x')", "there is no function `startWith`", None),
        ("principal.subject.matches(request.path)", "must be written out", None),
        ("principal.subject.matches('(')", "is invalid", None),
        ("principal.subject.matches('a', 'b')", "a text and a pattern", None),
        ("matches('b')", "a text and a pattern", None),
        ("principal.groups.exists(g, principal.scopes.exists(s, s == g))", "a loop inside a loop", None),
        ("principal.groups.exists(g, h == 'x')", "there is no variable `h`", None),
        ("principal.subject", "not a bool", None),
        ("size(principal.groups)", "not a bool", None),
        ("'x'", "not a bool", None),
        ("principal.claims.level + 1", "not a bool", None),
        // Each of them on one of the two samples.
        ("has(principal.email) && [principal.email][0] > 3", "fails on a sample", None),
        ("!has(principal.email) && [principal.subject][0] > 3", "fails on a sample", None),
        ("principal.?subject == 'x'", "does not parse", None),
        ("cel.MyStruct{x: 1} == 1", "messages", None),
    ] {
        let mut report = Report::default();
        let compiled = Expression::compile(source, &At::root(), &mut report);
        assert!(compiled.is_none(), "{source}");
        let problem = report.problems().first().unwrap();
        assert!(problem.message.contains(message), "{source}: {}", problem.message);
        if at.is_some() {
            assert_eq!(problem.offset, at, "{source}");
        }
    }
}

/// Such an expression passed at load, and then refused each request that its rule is about.
#[test]
fn arithmetic_on_types_that_have_none_is_an_error_at_load() {
    for (source, message) in [
        ("(request.time / 3600.0) > 9.0", "`/` does not take int and double"),
        ("request.path + 1 == 'x'", "`+` does not take string and int"),
        ("request.path - 'a' == 'b'", "`-` does not take string and string"),
        ("request.path * 2 == 'b'", "`*` does not take string and int"),
        ("request.time % 2.0 == 0.0", "`%` does not take int and double"),
    ] {
        let reported = first_problem(source).unwrap_or_default();
        assert!(reported.ends_with(message), "{source}: {reported}");
    }
    // What depends on the data is not known at load.
    for source in ["principal.claims.level + 1 > 3", "principal.claims.level / 0 == 1", "principal.groups[7] == 'x'"] {
        assert_eq!(first_problem(source), None, "{source}");
    }
    assert_eq!(evaluate("double(request.time) / 3600.0 > 9.0"), Ok(true));
}

/// They loaded, and were then the same for every request: a deny by `delivery.actor_id == 7` let everybody pass.
#[test]
fn values_of_unlike_types_are_not_compared() {
    for (source, message) in [
        ("delivery.actor_id == 7", "`==` compares string and int, of which no values are equal"),
        ("delivery.actor_id != 7", "`!=` compares string and int, of which no values are equal"),
        ("delivery.actor_id in ['1', 7]", "`in` compares string and int, of which no values are equal"),
        ("delivery.repository_id == 1296269", "`==` compares string and int, of which no values are equal"),
        ("12 == delivery.pull_request", "`==` compares int and string, of which no values are equal"),
        ("delivery.fork == 'true'", "`==` compares bool and string, of which no values are equal"),
        ("delivery.fork == 1", "`==` compares bool and int, of which no values are equal"),
        ("delivery.draft != 1u", "`!=` compares bool and uint, of which no values are equal"),
        ("delivery.several == 'x'", "`==` compares bool and string, of which no values are equal"),
        ("principal.subject == 5.0", "`==` compares string and double, of which no values are equal"),
        ("principal.subject == ['ada']", "`==` compares string and list, of which no values are equal"),
        ("principal.client == null", "`==` compares string and null, of which no values are equal"),
        ("request.time == '2024'", "`==` compares int and string, of which no values are equal"),
        ("principal.groups.exists(g, g == 5)", "`==` compares string and int, of which no values are equal"),
        ("size(principal.groups) == '1'", "`==` compares int and string, of which no values are equal"),
        ("request.host.lowerAscii() == 1", "`==` compares string and int, of which no values are equal"),
        ("principal.subject > 3", "`>` does not take string and int"),
        (
            "(has(delivery.actor_id) ? delivery.actor_id : '0') == 7",
            "`==` compares string and int, of which no values are equal",
        ),
        ("request.path.split('/')[1] == 7", "`==` compares string and int, of which no values are equal"),
        ("principal.groups[0] == 7", "`==` compares string and int, of which no values are equal"),
        ("request.path.split('/').exists(p, p == 7)", "`==` compares string and int, of which no values are equal"),
        ("7 in request.path.split('/')", "`in` does not take int and list"),
    ] {
        assert_eq!(first_problem(source).as_deref(), Some(message), "{source}");
    }
    // Numbers of any type are equal if their values are, and those of a claim have the type that the issuer gives them.
    for source in [
        "request.time == 1.5",
        "principal.claims.level == '4' || principal.claims.level == 4",
        "principal.claims.tags.exists(tag, tag == 4)",
        "principal.groups[0] == 'dev'",
        "delivery.fork == (delivery.several != true)",
        "principal.groups.map(g, size(g)).exists(s, s == 4)",
    ] {
        assert_eq!(first_problem(source), None, "{source}");
    }
}

/// Of what is not known before a request, nothing is refused.
#[test]
fn expressions_whose_types_fit_or_are_not_known_are_accepted() {
    for source in [
        "int(delivery.pull_request) > 10 && string(delivery.fork) == 'true'",
        "delivery.fork in [true] && delivery.branch in ['main', 'next'] || delivery.branch.startsWith('v')",
        "(has(delivery.actor_id) ? delivery.actor_id : '0') == '7'",
        "(has(delivery.fork) ? delivery.fork : true) && request.method in (has(delivery.tag) ? ['GET'] : ['PUT'])",
        "has(principal.email) ? principal.email != 'x' : (has(principal.client) ? principal.client == 'c' : false)",
        "(has(principal.email) ? principal.email : principal.username).endsWith('x')",
        "(has(principal.claims.level) ? principal.claims.level : 0) >= 4",
        "(principal.kind == 'agent' ? 1 : 2.5) < 2",
        "principal.subject in (principal.kind == 'agent' ? ['alice'] : ['bob'])",
        "!(principal.subject in ['bob', 'carol']) && !has(principal.actor)",
        "(principal.kind == 'human') == (principal.subject_kind == 'human')",
        "has(principal.claims.nested.x) && principal.claims.nested.x in ['y', 5, null]",
        "principal.claims.none == null && principal.claims.on != null",
        "principal.claims.tags.all(tag, tag in ['a', 'b', 5]) && principal.claims.tags[0] == 'a'",
        "'c' in (principal.claims.tags + ['c']) && principal.claims.tags.size() > 1",
        "principal.claims['tags'].map(tag, tag + '!').exists(tag, tag == 'a!')",
        "principal.groups.filter(g, g.startsWith('dev')).map(g, size(g))[0] == 3",
        "principal.groups.map(g, g.startsWith('t'), g + '!') == ['team-a!']",
        "principal.groups.exists_one(g, g == 'dev') && !principal.groups.all(g, g != 'dev')",
        "['a', 5].exists(x, x == 5) && [1, 2].map(x, x * 2) == [2, 4]",
        "'alice' in {'alice': 1} && {'alice': ['dev']}[principal.subject].exists(g, g == 'dev')",
        "{'alice': 1}.alice == 1u && {'x': 'y'} == principal.claims.nested",
        "(request.time % 86400) / 3600 >= 8 && request.time - int(principal.claims.level) > 1.5",
        "request.path.split('/', 3)[1] in ['api', 'apis'] && 'v1' in request.path.split('/')",
        "string(principal.claims.level) + 'x' == '4x' && -principal.claims.level < 0",
    ] {
        assert_eq!(first_problem(source), None, "{source}");
    }
}

/// No sample request has the event, so that each push was refused.
#[test]
fn wrong_types_are_found_behind_a_condition_that_no_sample_meets() {
    for (then, message) in [
        ("delivery.pull_request > 10", "`>` does not take string and int"),
        ("delivery.pull_request + 1 > 10", "`+` does not take string and int"),
        ("-delivery.pull_request < 10", "`-` does not take string"),
        ("delivery.branch", "the expression gives a value that is not a bool"),
        ("!delivery.branch", "the expression gives a value that is not a bool"),
        ("(delivery.branch ? true : false)", "the expression gives a value that is not a bool"),
        ("delivery.fork.startsWith('x')", "`startsWith` does not take bool"),
        ("delivery.branch.startsWith(7)", "`startsWith` does not take int"),
        ("request.time.lowerAscii() == 'x'", "`lowerAscii` does not take int"),
        ("7 in principal.groups", "`in` does not take int and list"),
        ("'main' in delivery.branch", "`in` does not take string on its right"),
    ] {
        let source = format!("delivery.event == 'push' && {then}");
        assert_eq!(first_problem(&source).as_deref(), Some(message), "{source}");
    }
}

#[test]
fn a_literal_of_the_wrong_type_is_rewritten_in_the_help() {
    for (source, help) in [
        ("delivery.actor_id == 7", "`delivery.actor_id` is of type string: write `'7'`"),
        ("true == delivery.actor", "`delivery.actor` is of type string: write `'true'`"),
        ("delivery.fork == 'true'", "`delivery.fork` is of type bool: write `true` or `false`"),
        ("request.time < '2024'", "`request.time` is of type int: write a number without quotes"),
        (
            "principal.client != null",
            "`principal.client` is of type string: write `has(principal.client)` to ask whether it is there",
        ),
        ("request.host == request.time", check::CONVERT),
    ] {
        let mut report = Report::default();
        assert!(Expression::compile(source, &At::root(), &mut report).is_none(), "{source}");
        let problem = report.problems().first().unwrap();
        assert_eq!(problem.help.as_deref(), Some(help), "{source}");
    }
}

#[test]
fn errors_of_syntax_are_in_words_of_the_writer() {
    for (source, said) in [
        ("principal.groups ==", "the expression does not parse: it ends too early"),
        ("request.path = 'x'", "the expression does not parse: `=` is not an operator; equality is `==`"),
        ("request.path == 'x' )", "the expression does not parse: `)` is not expected here"),
    ] {
        assert_eq!(first_problem(source).as_deref(), Some(said), "{source}");
    }
}

#[test]
fn an_invalid_pattern_is_explained_on_one_line() {
    let reported = first_problem("principal.subject.matches('(')");
    assert_eq!(reported.as_deref(), Some("the pattern of `matches` is invalid: unclosed group"));
}

#[test]
fn expressions_are_bounded() {
    let long = format!("principal.subject == '{}'", "x".repeat(MAX_LENGTH));
    let deep = format!("{}true{}", "(".repeat(MAX_NESTING + 1), ")".repeat(MAX_NESTING + 1));
    let wide = format!("true{}", " && true".repeat(100));
    let wider = format!("true{}", " && true".repeat(101));
    let tall = format!("1{} == 1", " + 1".repeat(190));
    let fields = format!("has(principal.claims{}.x)", ".x".repeat(190));
    let nots = format!("{}true", "!".repeat(200));
    let terms = format!("{}true", "true ? true : ".repeat(190));
    for (source, problem) in [
        (&long, Some("longer than")),
        (&deep, Some("brackets more than")),
        (&wide, None),
        (&wider, Some("operators")),
        (&tall, Some("nests more than")),
        (&fields, Some("fields deep")),
        (&nots, None),
        (&terms, Some("does not parse")),
    ] {
        let reported = first_problem(source);
        let is_expected = match problem {
            Some(problem) => reported.as_ref().is_some_and(|reported| reported.contains(problem)),
            None => reported.is_none(),
        };
        assert!(is_expected, "{source:.40}: {reported:?}");
    }
}

/// `in` was counted only between blanks, and an index not at all, so that chains of them reached the parser whole.
#[test]
fn operators_are_counted_with_and_without_blanks_and_so_are_indices() {
    for (first, more, per_level) in [
        ("true", " in true", 1),
        ("'a'", "in'a'", 1),
        ("1", "in 1", 1),
        ("1u", "in\n1u", 1),
        ("0x1", "in 0xa", 1),
        ("(1)", "in(1)", 1),
        ("[]", "in[]", 2),
        ("principal.groups", "[0]", 1),
    ] {
        let chain = |levels: usize| format!("{first}{}", more.repeat(levels));
        let own = usize::from(first.contains(['.', '[']));
        let most = (MAX_OPERATORS - own) / per_level;
        for (levels, problem) in [(most, "nests more than 48 deep"), (most + 1, "more than 200 operators")] {
            let reported = first_problem(&chain(levels)).unwrap_or_default();
            assert!(reported.contains(problem), "{levels} times `{more}`: {reported}");
        }
    }
    let names = format!("'admin' in principal.groups{}", " || 'admin' == 'begin'".repeat(49));
    assert_eq!(first_problem(&names), None, "names that end in `in` are no operators");
}

/// What is wrong with an expression, if anything is.
fn first_problem(source: &str) -> Option<String> {
    let mut report = Report::default();
    let compiled = Expression::compile(source, &At::root(), &mut report);
    let problem = report.problems().first().map(|problem| problem.message.clone());
    assert_eq!(compiled.is_none(), problem.is_some(), "{source:.40}");
    problem
}
