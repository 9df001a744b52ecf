//! The values that an expression sees. They borrow from the principal and the request, and are created when they are
//! read.

use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
    sync::{Arc, OnceLock},
};

use cel::{
    ExecutionError,
    common::{
        traits::{Container, Indexer, Iterable, Iterator as ValIterator, Sizer},
        types::{
            CelBool, CelDouble, CelInt, CelList, CelMap, CelMapKey, CelNull, CelString, CelUInt, LIST_TYPE, MAP_TYPE,
            Type,
        },
        value::{CowVal, Val},
    },
    context::VariableResolver,
};
use serde_json::Value as Json;

use crate::{
    authn::{Actor, Principal},
    authz::{RequestView, kubernetes::is_about_all_namespaces},
    kubernetes::Attributes,
    webhooks::Facts,
};

/// The variables of an expression.
#[derive(Debug)]
pub(super) struct Scope<'a> {
    principal: Object<'a>,
    request: Object<'a>,
    kubernetes: Object<'a>,
    delivery: Object<'a>,
}

impl<'a> Scope<'a> {
    /// `claims`: the names of the claims that the expression reads.
    pub(super) fn new(principal: &'a Principal, claims: &'a BTreeSet<String>, request: &'a RequestView<'a>) -> Self {
        Self {
            principal: Object::Principal(Person::new(principal, claims)),
            request: Object::Request(request),
            kubernetes: Object::Kubernetes(request.kubernetes),
            delivery: Object::Delivery(request.delivery),
        }
    }
}

impl VariableResolver for Scope<'_> {
    fn resolve<'b>(&'b self, variable: &str) -> Option<CowVal<'b, 'b>> {
        match variable {
            "principal" => Some(CowVal::Borrowed(&self.principal)),
            "request" => Some(CowVal::Borrowed(&self.request)),
            "kubernetes" => Some(CowVal::Borrowed(&self.kubernetes)),
            "delivery" => Some(CowVal::Borrowed(&self.delivery)),
            _ => None,
        }
    }
}

/// A value with fields. An absent field is an error; `has()` tests for it.
#[derive(Clone, Debug)]
enum Object<'a> {
    Principal(Person<'a>),
    Actor(&'a Actor),
    Claims(Claims<'a>),
    Request(&'a RequestView<'a>),
    Kubernetes(Option<&'a Attributes>),
    Delivery(Option<&'a Facts>),
}

impl<'a> Object<'a> {
    fn field<'b>(&'b self, name: &str) -> Option<CowVal<'b, 'a>> {
        match self {
            Self::Principal(person) => person.field(name),
            Self::Actor(actor) => match name {
                "issuer" => text(actor.issuer.as_deref()?),
                "subject" => text(&actor.subject),
                "client" => text(actor.client.as_deref()?),
                _ => None,
            },
            Self::Claims(claims) => claims.field(name),
            Self::Request(request) => match name {
                "host" => text(request.host),
                "path" => text(request.path),
                "method" => text(request.method.as_str()),
                "route" => text(request.route),
                "address" => Some(CowVal::owned(address(request.address))),
                // Seconds since the epoch, so that it compares with `exp`, `iat` and `auth_time`.
                "time" => Some(CowVal::owned(CelInt::from(request.now.as_secs()))),
                _ => None,
            },
            Self::Kubernetes(attributes) => {
                let a = (*attributes)?;
                match name {
                    "verb" => text(&a.verb),
                    "api_group" => text(&a.api_group),
                    "resource" => text(&a.resource),
                    "subresource" => text(&a.subresource),
                    // It would be `""`, which an expression about one namespace takes for another.
                    "namespace" if is_about_all_namespaces(a) => None,
                    "namespace" => text(&a.namespace),
                    "name" => text(&a.name),
                    _ => None,
                }
            }
            Self::Delivery(facts) => {
                let facts = (*facts)?;
                let optional = |fact: &'a Option<Arc<str>>| text(fact.as_deref()?);
                let flag = |fact: Option<bool>| fact.map(|fact| CowVal::owned(CelBool::from(fact)));
                match name {
                    "webhook" => text(&facts.webhook),
                    "event" => optional(&facts.event),
                    "action" => optional(&facts.action),
                    "repository" => optional(&facts.repository),
                    "repository_id" => optional(&facts.repository_id),
                    "owner" => optional(&facts.owner),
                    "branch" => optional(&facts.branch),
                    "tag" => optional(&facts.tag),
                    "commit" => optional(&facts.commit),
                    "actor" => optional(&facts.actor),
                    "actor_id" => optional(&facts.actor_id),
                    "fork" => flag(facts.fork),
                    "pull_request" => optional(&facts.pull_request),
                    "draft" => flag(facts.draft),
                    "several" => flag(Some(facts.several)),
                    "build" => flag(Some(facts.build)),
                    _ => None,
                }
            }
        }
    }
}

/// A principal. Its lists and claims are converted once, however often a loop reads them.
#[derive(Clone, Debug)]
struct Person<'a> {
    principal: &'a Principal,
    groups: Strings<'a>,
    scopes: Strings<'a>,
    claims: Box<Object<'a>>,
}

impl<'a> Person<'a> {
    fn new(principal: &'a Principal, claims: &'a BTreeSet<String>) -> Self {
        Self {
            principal,
            groups: Strings::new(&principal.groups),
            scopes: Strings::new(&principal.scopes),
            claims: Box::new(Object::Claims(Claims::new(&principal.claims, claims))),
        }
    }

    fn field<'b>(&'b self, name: &str) -> Option<CowVal<'b, 'a>> {
        let principal = self.principal;
        match name {
            "issuer" => text(&principal.issuer),
            "subject" => text(&principal.subject),
            "username" => text(&principal.username),
            "kind" => text(principal.kind.as_str()),
            "subject_kind" => text(principal.kind_of_subject().as_str()),
            "groups" => Some(CowVal::Borrowed(&self.groups)),
            "scopes" => Some(CowVal::Borrowed(&self.scopes)),
            "client" => text(principal.client.as_deref()?),
            "actor" => Some(CowVal::owned(Object::Actor(principal.actor.as_ref()?))),
            "claims" => Some(CowVal::Borrowed(&*self.claims)),
            // If an address has two `@`, its end does not reveal its domain (CVE-2026-40574).
            "email" => text(principal.email.as_deref().filter(|email| email.matches('@').count() == 1)?),
            _ => None,
        }
    }
}

/// Claims, each converted to a CEL value once.
#[derive(Clone, Debug)]
struct Claims<'a> {
    claims: &'a serde_json::Map<String, Json>,
    names: &'a BTreeSet<String>,
    /// In the order of `names`.
    values: Box<[OnceLock<Box<dyn Val + 'a>>]>,
}

impl<'a> Claims<'a> {
    fn new(claims: &'a serde_json::Map<String, Json>, names: &'a BTreeSet<String>) -> Self {
        Self { claims, names, values: names.iter().map(|_| OnceLock::new()).collect() }
    }

    fn field<'b>(&'b self, name: &str) -> Option<CowVal<'b, 'a>> {
        let claim = self.claims.get(name)?;
        let value = self.names.iter().zip(&self.values).find_map(|(own, value)| (own == name).then_some(value));
        Some(match value {
            Some(value) => CowVal::Borrowed(&**value.get_or_init(|| json(claim))),
            None => CowVal::Owned(json(claim)),
        })
    }
}

fn text<'b, 'a: 'b>(text: &'a str) -> Option<CowVal<'b, 'a>> {
    Some(CowVal::owned(CelString::from(text)))
}

fn address(address: IpAddr) -> CelString<'static> {
    CelString::from(address.to_canonical().to_string())
}

/// Converts a claim. Lists and objects become CEL's own, so that they compare with literals.
fn json(value: &Json) -> Box<dyn Val + '_> {
    match value {
        Json::Null => Box::new(CelNull),
        Json::Bool(bool) => Box::new(CelBool::from(*bool)),
        Json::Number(number) => match (number.as_i64(), number.as_u64(), number.as_f64()) {
            (Some(int), ..) => Box::new(CelInt::from(int)),
            (_, Some(uint), _) => Box::new(CelUInt::from(uint)),
            (.., double) => Box::new(CelDouble::from(double.unwrap_or(f64::NAN))),
        },
        Json::String(text) => Box::new(CelString::from(text.as_str())),
        Json::Array(list) => Box::new(CelList::from(list.iter().map(json).collect::<Vec<_>>())),
        Json::Object(map) => {
            let map: HashMap<CelMapKey<'_>, Box<dyn Val + '_>> =
                map.iter().map(|(key, value)| (CelMapKey::from(key.as_str()), json(value))).collect();
            Box::new(CelMap::from(map))
        }
    }
}

/// The key of a field, which must be text.
pub(super) fn key<'k>(index: &'k (dyn Val + '_)) -> Result<&'k str, ExecutionError> {
    index.downcast_ref::<CelString<'_>>().map(CelString::inner).ok_or_else(|| ExecutionError::UnexpectedType {
        got: index.get_type().name().to_owned(),
        want: "string".to_owned(),
    })
}

impl Val for Object<'_> {
    fn get_type(&self) -> &Type {
        &MAP_TYPE
    }

    fn cel_type() -> &'static Type {
        &MAP_TYPE
    }

    fn as_indexer<'b, 'v>(&'b self) -> Option<&'b (dyn Indexer + 'v)>
    where
        Self: 'v,
    {
        Some(self)
    }

    fn as_container(&self) -> Option<&dyn Container> {
        Some(self)
    }

    fn clone_as_boxed<'v>(&self) -> Box<dyn Val + 'v>
    where
        Self: 'v,
    {
        Box::new(self.clone())
    }
}

impl Indexer for Object<'_> {
    fn get<'b, 'v>(&'b self, index: &dyn Val) -> Result<CowVal<'b, 'v>, ExecutionError>
    where
        Self: 'v,
    {
        let name = key(index)?;
        self.field(name).ok_or_else(|| ExecutionError::no_such_key(name))
    }

    fn steal<'v>(self: Box<Self>, index: &dyn Val) -> Result<Box<dyn Val + 'v>, ExecutionError>
    where
        Self: 'v,
    {
        self.get(index).map(CowVal::into_owned)
    }
}

impl Container for Object<'_> {
    fn contains(&self, value: &dyn Val) -> Result<bool, ExecutionError> {
        key(value).map(|name| self.field(name).is_some())
    }
}

/// A list of texts. Testing whether it contains a text does not allocate; iterating creates the values once.
#[derive(Clone, Debug)]
struct Strings<'a> {
    list: &'a [Arc<str>],
    values: OnceLock<Vec<CelString<'a>>>,
}

impl<'a> Strings<'a> {
    fn new(list: &'a [Arc<str>]) -> Self {
        Self { list, values: OnceLock::new() }
    }

    fn values(&self) -> &[CelString<'a>] {
        self.values.get_or_init(|| self.list.iter().map(|text| CelString::from(&**text)).collect())
    }
}

impl Val for Strings<'_> {
    fn get_type(&self) -> &Type {
        &LIST_TYPE
    }

    fn cel_type() -> &'static Type {
        &LIST_TYPE
    }

    fn as_container(&self) -> Option<&dyn Container> {
        Some(self)
    }

    fn as_indexer<'b, 'v>(&'b self) -> Option<&'b (dyn Indexer + 'v)>
    where
        Self: 'v,
    {
        Some(self)
    }

    fn as_iterable<'b, 'v>(&'b self) -> Option<&'b (dyn Iterable + 'v)>
    where
        Self: 'v,
    {
        Some(self)
    }

    fn as_sizer(&self) -> Option<&dyn Sizer> {
        Some(self)
    }

    fn clone_as_boxed<'v>(&self) -> Box<dyn Val + 'v>
    where
        Self: 'v,
    {
        Box::new(self.clone())
    }
}

impl Container for Strings<'_> {
    fn contains(&self, value: &dyn Val) -> Result<bool, ExecutionError> {
        key(value).map(|text| self.list.iter().any(|own| **own == *text))
    }
}

impl Indexer for Strings<'_> {
    fn get<'b, 'v>(&'b self, index: &dyn Val) -> Result<CowVal<'b, 'v>, ExecutionError>
    where
        Self: 'v,
    {
        let number = index.downcast_ref::<CelInt>().map(|int| *int.inner()).ok_or_else(|| {
            ExecutionError::UnexpectedType { got: index.get_type().name().to_owned(), want: "int".to_owned() }
        })?;
        let value = usize::try_from(number).ok().and_then(|at| self.values().get(at));
        value.map(|value| CowVal::Borrowed(value as &dyn Val)).ok_or(ExecutionError::IndexOutOfBounds(number.into()))
    }

    fn steal<'v>(self: Box<Self>, index: &dyn Val) -> Result<Box<dyn Val + 'v>, ExecutionError>
    where
        Self: 'v,
    {
        self.get(index).map(CowVal::into_owned)
    }
}

impl Iterable for Strings<'_> {
    fn iter<'b, 'v>(&'b self) -> Box<dyn ValIterator<'b, 'v> + 'b>
    where
        Self: 'v,
    {
        Box::new(Texts(self.values().iter()))
    }
}

impl Sizer for Strings<'_> {
    fn size(&self) -> CelInt {
        CelInt::from(i64::try_from(self.list.len()).unwrap_or(i64::MAX))
    }
}

struct Texts<'b, 'a>(std::slice::Iter<'b, CelString<'a>>);

impl<'b, 'a: 'v, 'v> ValIterator<'b, 'v> for Texts<'b, 'a> {
    fn next(&mut self) -> Option<&'b (dyn Val + 'v)> {
        self.0.next().map(|text| text as &(dyn Val + 'v))
    }
}
