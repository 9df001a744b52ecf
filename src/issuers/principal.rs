//! Turns verified claims into a [`Principal`]. Claims that cannot be understood are refused.

use std::{sync::Arc, time::Duration};

use serde::Deserialize as _;
use serde_json::{Map, Value};

use super::{
    checks::{MAX_SUBJECT, numeric_date, text_up_to, wrong, wrong_at},
    claim_path::ClaimPath,
    kinds::Kinds,
    token_error::{Quoted, TokenError, name_claim},
    username::{NoUsername, Overlap, UsernameTemplate},
};
use crate::{
    authn::{
        Actor, CredentialId, KnownAs, KnownToken, LoginFacts, Principal, Scheme,
        principal::{InvalidName, MAX_NAME, WorkloadIdentity, check_name, workload_key},
    },
    clock::Timestamp,
    config::raw::Preset,
    error::{PresentedIdentity, Reason, Rejection},
};

/// The claim of Doorward's own tokens that names the Tekton run that requested them.
pub const RUN_CLAIM: &str = "doorward.dev/run";

/// The claim of Doorward's own tokens with all actors, by the configured names of their issuers.
const ACTING_CLAIM: &str = "acting";

/// The claim of Doorward's own tokens with the tokens that they were exchanged for.
pub const EXCHANGED_CLAIM: &str = "exchanged";

/// The maximum number of groups and of scopes; a principal with more is refused.
const MAX_ENTRIES: usize = 1_000;

/// The mapping of one issuer's claims to principals.
#[derive(Debug)]
pub struct Mapping {
    pub name: Arc<str>,
    pub preset: Option<Preset>,
    pub username: UsernameTemplate,
    /// The templates that replace `username` if there are several tenants, each with the tenant's id.
    pub of_tenants: Box<[(Box<str>, UsernameTemplate)]>,
    pub kinds: Kinds,
    pub listed_clients_only: bool,
    /// The places of the groups; the first that is present counts, as for `scopes` and `client`.
    pub groups: Box<[ClaimPath]>,
    pub scopes: Box<[ClaimPath]>,
    pub client: Box<[ClaimPath]>,
    /// Whether a single audience is the client if no other claim names it; never for a login.
    pub audience_is_client: bool,
}

/// The input for a principal.
#[derive(Debug)]
pub struct Facts {
    /// The verified claims of a token or of an introspection answer.
    pub claims: Map<String, Value>,
    pub subject: Arc<str>,
    pub expires: Timestamp,
    pub scheme: Scheme,
    /// The scopes, if they are not from the claims: a login takes them from the token response.
    pub scopes: Option<Vec<Arc<str>>>,
    pub credential: CredentialId,
}

/// When and how the person of these claims authenticated.
pub fn login_facts(claims: &Map<String, Value>) -> Result<LoginFacts, TokenError> {
    Ok(LoginFacts {
        auth_time: numeric_date(claims, "auth_time")?,
        acr: text(claims, "acr").map(Into::into),
        amr: match claims.get("amr") {
            Some(Value::Array(methods)) => methods.iter().filter_map(Value::as_str).map(Into::into).collect(),
            _ => Vec::new(),
        },
    })
}

impl Mapping {
    /// Builds the principal of verified claims. Refuses with 401 if a claim cannot be understood, and with 403 if the
    /// claims give no usable identity.
    pub fn principal(&self, facts: Facts) -> Result<Principal, Rejection> {
        let mut presented = PresentedIdentity {
            issuer: Arc::clone(&self.name),
            subject: Arc::clone(&facts.subject),
            user: None,
            group: None,
            credential: facts.credential.clone(),
        };
        self.identity(facts, &mut presented).map_err(|refused| name_claim(refused).with_presented(presented))
    }

    /// Builds the principal; a name that is refused is recorded in `presented`.
    fn identity(&self, facts: Facts, presented: &mut PresentedIdentity) -> Result<Principal, Rejection> {
        let Facts { claims, subject, expires, scheme, scopes, credential } = facts;
        let client = self.client(&claims, scheme)?;
        // The tokens of a login were issued to our own client, which need not be listed.
        if scheme != Scheme::Session {
            self.check_client(client.as_deref())?;
        }
        let workload = self.workload(&subject, &claims)?;
        let service_account = match &workload {
            Some(WorkloadIdentity::ServiceAccount { namespace, name }) => Some((&**namespace, &**name)),
            _ => None,
        };
        let template = self.template(&claims).ok_or_else(|| no_username(NoUsername::Missing))?;
        let username = template.render(&subject, service_account, &claims).map_err(|why| {
            presented.user = template.claimed(&claims).map(Into::into);
            no_username(why)
        })?;
        let actor = self.actor(&claims)?;
        let kind = self.kinds.of_subject(&subject, client.as_deref(), scheme, &claims, actor.is_some());
        let (kind, subject_kind) = Principal::kinds(kind, actor.is_some());
        let own = Some(&claims).filter(|_| self.preset == Some(Preset::Doorward));
        let scopes = match scopes {
            Some(scopes) => scopes,
            None => self.scopes(&claims)?,
        };
        Ok(Principal {
            issuer: Arc::clone(&self.name),
            kind,
            subject_kind,
            username: username.into(),
            scheme,
            groups: self.groups(&claims, presented)?,
            says_groups: first_at(&self.groups, &claims).is_some(),
            scopes,
            says_scopes: first_at(&self.scopes, &claims).is_some(),
            client,
            actor,
            login: login_facts(&claims)?,
            email: Principal::verified_email(&claims),
            subject,
            credential,
            signed_by: None,
            expires,
            skew: Duration::ZERO,
            delivery: None,
            on_behalf_of: own.and_then(on_behalf_of),
            acting: own.map_or_else(|| self.acting(&claims), acting),
            exchanged: own.map(exchanged).unwrap_or_default(),
            lives_with: own.map(lives_with).unwrap_or_default(),
            workload,
            claims: Arc::new(claims),
            kept_claims: None,
        })
    }

    /// All templates of user names.
    fn templates(&self) -> impl Iterator<Item = &UsernameTemplate> + Clone {
        let alone = self.of_tenants.is_empty().then_some(&self.username);
        alone.into_iter().chain(self.of_tenants.iter().map(|(_, template)| template))
    }

    /// The worst overlap between the names of another issuer's principals and these.
    pub fn overlap(&self, other: &Self) -> Overlap {
        let pairs = self.templates().flat_map(|one| other.templates().map(move |other| one.overlap(other)));
        pairs.max().unwrap_or(Overlap::None)
    }

    /// The template for these claims.
    fn template(&self, claims: &Map<String, Value>) -> Option<&UsernameTemplate> {
        if self.of_tenants.is_empty() {
            return Some(&self.username);
        }
        let tenant = claims.get("tid").and_then(Value::as_str)?;
        self.of_tenants.iter().find(|(id, _)| **id == *tenant).map(|(_, template)| template)
    }

    /// The client that the token was issued to. For a login the audience does not count: it is always our own client,
    /// and settings for a bot with the same client would make workloads of people.
    pub fn client(&self, claims: &Map<String, Value>, scheme: Scheme) -> Result<Option<Arc<str>>, TokenError> {
        let tells = self.audience_is_client && scheme != Scheme::Session;
        let audience = || Some(("aud", claims.get("aud").filter(|audience| tells && audience.is_string())?));
        let Some((place, found)) = first_at(&self.client, claims).or_else(audience) else { return Ok(None) };
        match found {
            Value::String(client) if self.reserves_accounts() && Actor::is_reserved(client) => {
                Err(wrong_at(place, Some(found), "a client that is not a service account"))
            }
            Value::String(client) if (1..=self.longest()).contains(&client.len()) => Ok(Some(client.as_str().into())),
            other => Err(wrong_at(place, Some(other), text_up_to(self.longest()))),
        }
    }

    /// Whether the client is listed.
    pub fn lists(&self, client: Option<&str>) -> bool {
        client.is_some_and(|client| self.kinds.clients.contains_key(client))
    }

    /// Refuses unlisted clients if only listed ones are accepted.
    fn check_client(&self, client: Option<&str>) -> Result<(), TokenError> {
        if !self.listed_clients_only || self.lists(client) {
            return Ok(());
        }
        Err(TokenError::ClientNotListed {
            issuer: Arc::clone(&self.name),
            client: client.map_or_else(|| Quoted::json(None), Quoted::text),
        })
    }

    fn groups(
        &self,
        claims: &Map<String, Value>,
        presented: &mut PresentedIdentity,
    ) -> Result<Vec<Arc<str>>, Rejection> {
        let overage = claims.get("_claim_names").is_some_and(|names| {
            !names.is_object() || self.groups.iter().any(|path| names.get(path.claim()).is_some())
        });
        if overage {
            return Err(Rejection::new(
                Reason::IdentityRefused,
                "the token says that its groups are elsewhere (too many for a token), and they cannot be looked up",
            )
            .fix(match self.preset {
                Some(Preset::Entra) => {
                    "in Entra ID, have the application's tokens carry the groups assigned to the application, or app roles \
                     with `claims.groups: roles`"
                }
                _ => "have the issuer put only the groups that matter here into the token",
            }));
        }
        let keys: Vec<Value>;
        let expected = "a list of at most 1000 texts";
        let Some((place, found)) = first_at(&self.groups, claims) else { return Ok(Vec::new()) };
        let groups = match found {
            Value::Array(groups) if groups.len() <= MAX_ENTRIES => groups,
            // The keys are the roles; the values name the organisations.
            Value::Object(roles) if self.preset == Some(Preset::Zitadel) && roles.len() <= MAX_ENTRIES => {
                keys = roles.keys().map(|role| Value::from(role.as_str())).collect();
                &keys
            }
            other => return Err(wrong_at(place, Some(other), expected).into()),
        };
        let mut names = Vec::with_capacity(groups.len());
        for group in groups {
            let name = group.as_str().ok_or_else(|| wrong_at(place, Some(group), expected))?;
            // The API server adds this group to all authenticated users itself.
            if name == "system:authenticated" {
                continue;
            }
            match check_name(name) {
                Ok(()) => names.push(name.into()),
                Err(InvalidName::Empty) => {}
                Err(why) => {
                    presented.group = Some(name.into());
                    return Err(Rejection::new(
                        Reason::IdentityRefused,
                        format!("a group of the token cannot be used: it {why}"),
                    )
                    .fix("have the issuer leave that group out of the token"));
                }
            }
        }
        Ok(names)
    }

    /// The scopes exactly as granted (RFC 6749 section 3.3): a text is split at spaces, entries of an array are not.
    fn scopes(&self, claims: &Map<String, Value>) -> Result<Vec<Arc<str>>, TokenError> {
        let expected = "a text, or a list of at most 1000 texts";
        let Some((place, found)) = first_at(&self.scopes, claims) else { return Ok(Vec::new()) };
        let scopes: Option<Vec<Arc<str>>> = match found {
            Value::String(scopes) => Some(split_scopes(scopes)),
            Value::Array(scopes) => scopes.iter().map(|scope| scope.as_str().map(Into::into)).collect(),
            _ => None,
        };
        let scopes = scopes.filter(|scopes| scopes.len() <= MAX_ENTRIES);
        scopes.ok_or_else(|| wrong_at(place, Some(found), expected))
    }

    /// Whether this issuer must not name service accounts: only clusters and Doorward, which has verified them, may.
    fn reserves_accounts(&self) -> bool {
        !matches!(self.preset, Some(Preset::Doorward | Preset::Kubernetes))
    }

    /// The maximum bytes of the name of a client or an actor. Doorward's own tokens name service accounts, with cluster
    /// and namespace.
    fn longest(&self) -> usize {
        if self.preset == Some(Preset::Doorward) { MAX_NAME } else { MAX_SUBJECT }
    }

    /// The outermost actor; nested ones are history (RFC 8693 section 4.1).
    fn actor(&self, claims: &Map<String, Value>) -> Result<Option<Actor>, TokenError> {
        let Some(act) = claims.get("act") else { return Ok(None) };
        let fits = |text: &&str| (1..=self.longest()).contains(&text.len());
        let text = |name| act.get(name).and_then(Value::as_str).filter(fits);
        let Some(subject) = text("sub") else { return Err(wrong("act", Some(act), "an object with a `sub`")) };
        let is_account = |act: &Value| {
            let named = ["sub", "client_id"].into_iter().filter_map(|name| act.get(name)?.as_str());
            named.into_iter().any(Actor::is_reserved)
        };
        if self.reserves_accounts() && levels(act).any(is_account) {
            return Err(wrong("act", Some(act), "actors that are not service accounts"));
        }
        // A task, whose service account Doorward has verified: the token was issued to it, under its name as an actor.
        // Only tokens of tasks have a run.
        if self.preset == Some(Preset::Doorward) && Actor::is_reserved(subject) {
            let task = self
                .client(claims, Scheme::Bearer)?
                .filter(|client| claims.contains_key(RUN_CLAIM) && Actor::is_reserved(client));
            let subject = task.ok_or_else(|| wrong("act", Some(act), "a service account only for a task"))?;
            return Ok(Some(Actor { issuer: None, subject, client: None }));
        }
        let issuer = match self.preset {
            Some(Preset::Doorward) => issuer_of_actor(act, subject, claims),
            _ => is_of_same_issuer(act, claims).then(|| Arc::clone(&self.name)),
        };
        Ok(Some(Actor { issuer, subject: subject.into(), client: text("client_id").map(Into::into) }))
    }

    /// All present and former actors that are of this issuer.
    fn acting(&self, claims: &Map<String, Value>) -> Box<[KnownAs]> {
        let acts = claims.get("act").into_iter().flat_map(levels).filter(|act| is_of_same_issuer(act, claims));
        let subjects = acts.filter_map(|act| act.get("sub")?.as_str());
        subjects.map(|subject| KnownAs { issuer: Arc::clone(&self.name), subject: subject.into() }).collect()
    }

    /// The workload behind the token, for presets that know it.
    fn workload(&self, subject: &str, claims: &Map<String, Value>) -> Result<Option<WorkloadIdentity>, TokenError> {
        let repository = |provider, name: &'static str| match claims.get(name) {
            Some(Value::String(id)) if !id.is_empty() && id.bytes().all(|byte| byte.is_ascii_digit()) => {
                Ok(Some(WorkloadIdentity::Repository { provider, id: id.as_str().into() }))
            }
            other => Err(wrong(name, other, "a number as text")),
        };
        match self.preset {
            Some(Preset::GithubActions) => repository("github", "repository_id"),
            Some(Preset::GitlabCi) => repository("gitlab", "project_id"),
            Some(Preset::Kubernetes) => match service_account(subject) {
                Some((namespace, name)) => {
                    Ok(Some(WorkloadIdentity::ServiceAccount { namespace: namespace.into(), name: name.into() }))
                }
                None => Err(wrong(
                    "sub",
                    Some(&subject.into()),
                    "a service account (`system:serviceaccount:NAMESPACE:NAME`)",
                )),
            },
            _ => Ok(None),
        }
    }
}

/// The first of these places that has a value, with that. `null` counts as absent, as in rules.
fn first_at<'c>(paths: &'c [ClaimPath], claims: &'c Map<String, Value>) -> Option<(&'c str, &'c Value)> {
    let mut found = paths.iter().filter_map(|path| Some((path.as_str(), path.find(claims)?)));
    found.find(|(_, value)| !value.is_null())
}

/// The person or webhook on whose behalf one of Doorward's own tokens was issued.
pub fn on_behalf_of(claims: &Map<String, Value>) -> Option<Box<KnownAs>> {
    KnownAs::deserialize(claims.get("origin")?).ok().map(Box::new)
}

/// All present and former actors of one of Doorward's own tokens, as known to their issuers.
pub fn acting(claims: &Map<String, Value>) -> Box<[KnownAs]> {
    let acting = claims.get(ACTING_CLAIM).and_then(Value::as_array).into_iter().flatten();
    acting.filter_map(|actor| KnownAs::deserialize(actor).ok()).collect()
}

/// The tokens that one of Doorward's own tokens was exchanged for.
pub fn exchanged(claims: &Map<String, Value>) -> Box<[KnownToken]> {
    let exchanged = claims.get(EXCHANGED_CLAIM).and_then(Value::as_array).into_iter().flatten();
    exchanged.filter_map(|token| KnownToken::deserialize(token).ok()).collect()
}

/// Whether an actor is of the issuer of the token.
fn is_of_same_issuer(act: &Value, claims: &Map<String, Value>) -> bool {
    act.get("iss").is_none_or(|iss| claims.get("iss") == Some(iss))
}

/// The issuer of the actor in one of Doorward's own tokens. `acting` omits actors of unknown issuers and may list
/// another actor of the same name, so its first entry is the outermost actor only if the list is complete.
fn issuer_of_actor(act: &Value, subject: &str, claims: &Map<String, Value>) -> Option<Arc<str>> {
    let known = acting(claims);
    let first = known.first().filter(|first| *first.subject == *subject && known.len() == levels(act).count())?;
    Some(Arc::clone(&first.issuer))
}

/// An actor and its nested actors.
fn levels(act: &Value) -> impl Iterator<Item = &Value> {
    std::iter::successors(Some(act), |act| act.get("act"))
}

/// The pod and the runs with whose end one of Doorward's own tokens ends.
pub fn lives_with(claims: &Map<String, Value>) -> Box<[Arc<str>]> {
    let Some(run) = claims.get(RUN_CLAIM) else { return Box::default() };
    let cluster = run.get("cluster").and_then(Value::as_str).unwrap_or_default();
    let key = |uid: &str| workload_key(cluster, uid).into();
    let named = ["task_run", "pod", "pipeline_run"].into_iter().filter_map(|of| run.get(of));
    let within = run.get("within").and_then(Value::as_array).into_iter().flatten();
    named.chain(within).filter_map(|object| object.get("uid")?.as_str().map(key)).collect()
}

/// Splits a space-separated list of scopes.
pub fn split_scopes(scopes: &str) -> Vec<Arc<str>> {
    scopes.split(' ').filter(|scope| !scope.is_empty()).map(Into::into).collect()
}

fn text<'c>(claims: &'c Map<String, Value>, name: &str) -> Option<&'c str> {
    claims.get(name)?.as_str().filter(|text| !text.is_empty() && text.len() <= 255)
}

/// The namespace and name of the service account that is the subject of a cluster's token.
pub(super) fn service_account(subject: &str) -> Option<(&str, &str)> {
    let (namespace, name) = subject.strip_prefix("system:serviceaccount:")?.split_once(':')?;
    (is_dns_name(namespace) && is_dns_name(name)).then_some((namespace, name))
}

/// Whether this is a DNS subdomain (RFC 1123), the form of names in Kubernetes. It has no `/`.
fn is_dns_name(name: &str) -> bool {
    (1..=253).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-' || byte == b'.')
}

fn no_username(why: NoUsername) -> Rejection {
    Rejection::new(Reason::IdentityRefused, format!("the token gives no identity that can be used: {why}"))
        .fix("have the issuer put a usable user name into the token")
}

#[cfg(test)]
mod tests;
