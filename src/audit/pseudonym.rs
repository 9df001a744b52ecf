//! Pseudonyms for people in the trail: the same name always has the same pseudonym, and only the key reveals whose it
//! is.
//!
//! A pseudonym is HMAC-SHA256 (RFC 2104) over the text that it replaces, truncated to 80 bits. Workloads, bots, agents
//! known by a client, operators and break-glass access keep their names: they are not private, or are accountable for
//! what they do.

use std::{borrow::Cow, collections::HashMap, fmt, sync::Arc};

use aws_lc_rs::hmac;
use base64::{Engine, engine::general_purpose::STANDARD};
use data_encoding::HEXLOWER;
use serde_json::{Map, Value};
use zeroize::Zeroizing;

use super::{
    caller::CLAIMS,
    keys::InvalidKey,
    note::{Note, Operator},
    record::{Record, Tls},
};
use crate::{
    authn::{Actor, Kind, Principal, break_glass, principal::KIND_CLAIM},
    issuers::RUN_CLAIM,
    webhooks::Facts,
};

/// The prefix of every pseudonym.
const PREFIX: &str = "pseudonym-";

/// The names of claims with personal data, in lower case: those of OpenID Connect Core section 5.1, of Entra ID and
/// Azure AD B2C, and of directories.
const PERSONAL: [&str; 36] = [
    "sub",
    "name",
    "given_name",
    "family_name",
    "middle_name",
    "nickname",
    "preferred_username",
    "profile",
    "picture",
    "website",
    "email",
    "gender",
    "birthdate",
    "phone_number",
    "address",
    "upn",
    "unique_name",
    "oid",
    "mail",
    "emails",
    "emailaddress",
    "verified_primary_email",
    "verified_secondary_email",
    "login_hint",
    "ipaddr",
    "onprem_sid",
    "puid",
    "username",
    "user_name",
    "user_email",
    "display_name",
    "displayname",
    "givenname",
    "surname",
    "samaccountname",
    "phone",
];

/// Shorter names are replaced in texts only as whole words, as other words contain them.
const MIN_NAME: usize = 3;

/// How many principals are cached with their pseudonyms.
const KEPT: usize = 128;

/// The key of pseudonyms. Its holders can find out whose a pseudonym is, by trying names.
#[derive(Clone)]
pub struct PseudonymKey(hmac::Key);

impl PseudonymKey {
    /// Parses base64 of at least 32 bytes, ignoring surrounding whitespace.
    pub fn from_base64(text: &[u8]) -> Result<Self, InvalidKey> {
        let bytes = Zeroizing::new(STANDARD.decode(text.trim_ascii()).map_err(|_| InvalidKey::Base64)?);
        if bytes.len() < 32 {
            return Err(InvalidKey::Short(bytes.len()));
        }
        Ok(Self(hmac::Key::new(hmac::HMAC_SHA256, &bytes)))
    }

    /// Returns the pseudonym of `text`: a subject, a user name, a login at a Git host, or an e-mail address.
    pub fn pseudonym(&self, text: &str) -> String {
        let tag = hmac::sign(&self.0, text.as_bytes());
        format!("{PREFIX}{}", HEXLOWER.encode(tag.as_ref().get(..10).unwrap_or_default()))
    }
}

impl fmt::Debug for PseudonymKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PseudonymKey")
    }
}

/// Whether a name in the trail is a pseudonym.
pub(super) fn is_pseudonym(name: &str) -> bool {
    name.starts_with(PREFIX)
}

/// Replaces people's names in records and notes by pseudonyms.
#[derive(Debug)]
pub(super) struct Pseudonyms {
    key: PseudonymKey,
    /// Principals that return, by their memory address, each with its pseudonymous form. They are held so that no other
    /// principal can get the address.
    kept: HashMap<usize, (Arc<Principal>, Arc<Principal>)>,
}

impl Pseudonyms {
    pub(super) fn new(key: PseudonymKey) -> Self {
        Self { key, kept: HashMap::new() }
    }

    pub(super) fn hide(&mut self, record: &mut Record) {
        if let (Some(refusal), Some(principal)) = (&mut record.refusal, &record.principal) {
            let names = own_names(principal).filter(|_| is_person(principal));
            let actor = principal.actor.as_ref().filter(|actor| is_hidden(actor)).map(|actor| &*actor.subject);
            for name in names.chain(actor) {
                refusal.detail = self.key.replaced(&refusal.detail, name).into_owned().into();
            }
        }
        if let Some(principal) = record.principal.take() {
            record.principal = Some(self.principal(principal));
        }
        if let Some(presented) = record.presented.as_deref_mut() {
            presented.subject = self.key.party(&presented.subject).into();
            presented.user = presented.user.as_deref().map(|user| self.key.pseudonym(user).into());
        }
        if let Some(facts) = record.delivery.take() {
            record.delivery = Some(self.key.facts(&facts));
        }
        for party in record.issued.iter_mut().flat_map(|issued| &mut issued.parties) {
            party.subject = self.key.party(&party.subject).into();
        }
        if let Some(tls) = record.tls.take_if(|tls| tls.subject.is_some()) {
            let subject = tls.subject.as_deref().map(|subject| self.key.pseudonym(subject).into());
            record.tls = Some(Arc::new(Tls { subject, ..(*tls).clone() }));
        }
    }

    /// Replaces the name of the person whom an operator's command is about.
    pub(super) fn hide_note(&self, note: &mut Note) {
        let Note::Operator(Operator { command, why, outcome, .. }) = note else { return };
        let Some((name, text)) = command.split_once(' ') else { return };
        // The text after the arguments is for people.
        let mut read = serde_json::Deserializer::from_str(text).into_iter::<Value>();
        let Some(Ok(mut arguments)) = read.next() else { return };
        let rest = text.get(read.byte_offset()..).unwrap_or_default();
        let Some(Value::String(subject)) = arguments.get_mut("subject") else { return };
        let shown = std::mem::take(subject);
        *subject = self.key.party(&shown).into_owned();
        if *subject == shown {
            return;
        }
        *command = format!("{name} {arguments}{rest}");
        for text in [why.as_mut(), outcome.as_mut().err()].into_iter().flatten() {
            *text = self.key.replaced(text, &shown).into_owned();
        }
    }

    fn principal(&mut self, principal: Arc<Principal>) -> Arc<Principal> {
        let address = Arc::as_ptr(&principal).addr();
        if let Some((_, hidden)) = self.kept.get(&address) {
            return Arc::clone(hidden);
        }
        let hidden = Arc::new(self.key.principal(&principal));
        // A principal that nobody else holds will not return.
        if Arc::strong_count(&principal) > 1 {
            if self.kept.len() >= KEPT {
                self.kept.clear();
            }
            self.kept.insert(address, (principal, Arc::clone(&hidden)));
        }
        hidden
    }
}

/// Whether the subject of a principal is a person. With an actor the principal as a whole is an agent: a token of
/// Doorward's own says of which kind the subject is, while another issuer's subject may always be a person. A token of
/// ours that replaces such a token is of an agent too.
fn is_person(principal: &Principal) -> bool {
    let is_human = match principal.kind {
        Kind::Human => true,
        _ if principal.on_behalf_of.is_some() => match principal.claims.get(KIND_CLAIM).and_then(Value::as_str) {
            Some("agent") => has_other_actor(&principal.claims),
            Some("workload") => false,
            // A token that does not say so may be of a person.
            _ => true,
        },
        Kind::Agent => principal.actor.is_some() && principal.claims.contains_key("act"),
        Kind::Workload => false,
    };
    is_human && !principal.is_anonymous() && *principal.issuer != *break_glass::ISSUER
}

/// Returns the names by which a principal is known.
fn own_names(principal: &Principal) -> impl Iterator<Item = &str> {
    [&*principal.subject, &*principal.username].into_iter().chain(principal.email.as_deref())
}

/// Whether a claim of this name has personal data. Some providers write names of their own as URLs.
fn is_personal(name: &str) -> bool {
    let last = name.rsplit('/').next().unwrap_or(name);
    PERSONAL.iter().any(|personal| personal.eq_ignore_ascii_case(last))
}

/// Whether an actor gets a pseudonym. An agent with a client is known by that, and a task is not a person; any other
/// actor may be one.
fn is_hidden(actor: &Actor) -> bool {
    actor.client.is_none() && !actor.is_service_account()
}

/// Whether an actor other than a task acts, or acted before. A task acts for bots as well as for people.
fn has_other_actor(claims: &Map<String, Value>) -> bool {
    let actors = std::iter::successors(claims.get("act"), |act| act.get("act"));
    actors.filter_map(|act| act.get("sub")?.as_str()).any(|subject| !Actor::is_reserved(subject))
}

impl PseudonymKey {
    fn principal(&self, principal: &Principal) -> Principal {
        let mut hidden = Principal {
            actor: principal.actor.as_ref().map(|actor| self.actor(actor)),
            delivery: principal.delivery.as_deref().map(|facts| self.facts(facts)),
            ..principal.clone()
        };
        if is_person(principal) {
            hidden.subject = self.pseudonym(&principal.subject).into();
            hidden.username = self.pseudonym(&principal.username).into();
            hidden.email = None;
            hidden.claims = Arc::new(self.claims(principal));
        }
        hidden
    }

    fn actor(&self, actor: &Actor) -> Actor {
        match is_hidden(actor) {
            true => Actor { subject: self.pseudonym(&actor.subject).into(), ..actor.clone() },
            false => actor.clone(),
        }
    }

    fn claims(&self, principal: &Principal) -> Map<String, Value> {
        // The address of the principal is only set if it is verified.
        let address = principal.claims.get("email").and_then(Value::as_str);
        let names: Vec<&str> = own_names(principal).chain(address).collect();
        let hide = |(name, value): (&String, &Value)| {
            // They have the names of objects, which are not personal.
            let is_kept = CLAIMS.contains(&name.as_str()) || name == RUN_CLAIM;
            (name.clone(), if is_kept { value.clone() } else { self.claim(name, value, &names) })
        };
        principal.claims.iter().map(hide).collect()
    }

    /// Returns the pseudonymized form of a claim, or of a member of a claim. `names` are the names of the person: in
    /// clear text beside a pseudonym, under whatever claim, they would reveal whose it is.
    fn claim(&self, name: &str, value: &Value, names: &[&str]) -> Value {
        let is_personal = is_personal(name);
        match value {
            Value::Array(items) => items.iter().map(|item| self.claim(name, item, names)).collect(),
            Value::Object(members) if !is_personal => {
                let hide = |(name, value): (&String, &Value)| (name.clone(), self.claim(name, value, names));
                Value::Object(members.iter().map(hide).collect())
            }
            Value::String(text) if is_personal => self.pseudonym(text).into(),
            Value::String(text) => match names.iter().find(|name| name.eq_ignore_ascii_case(text)) {
                Some(name) => self.pseudonym(name).into(),
                None => value.clone(),
            },
            _ if is_personal => self.pseudonym(&value.to_string()).into(),
            _ => value.clone(),
        }
    }

    fn facts(&self, facts: &Facts) -> Arc<Facts> {
        let hide = |name: &Option<Arc<str>>| name.as_deref().map(|name| self.pseudonym(name).into());
        let mut hidden = Facts { actor: hide(&facts.actor), actor_id: hide(&facts.actor_id), ..facts.clone() };
        // The name of a personal repository beside the pseudonym would reveal for ever whose that is.
        if let (Some(actor), Some(pseudonym)) = (&facts.actor, &hidden.actor) {
            let is_own = |owner: &str| owner.eq_ignore_ascii_case(actor);
            if facts.owner.as_deref().is_some_and(is_own) {
                hidden.owner = Some(Arc::clone(pseudonym));
            }
            if let Some((owner, name)) = facts.repository.as_deref().and_then(|name| name.split_once('/'))
                && is_own(owner)
            {
                hidden.repository = Some(format!("{pseudonym}/{name}").into());
            }
        }
        Arc::new(hidden)
    }

    /// Returns the form of a subject of unknown kind: only service accounts keep their names.
    fn party<'a>(&self, subject: &'a str) -> Cow<'a, str> {
        match Actor::is_reserved(subject) {
            true => subject.into(),
            false => self.pseudonym(subject).into(),
        }
    }

    /// Replaces a name in a text, whatever the case of its letters, with the rest of the word that it is part of: after
    /// the pseudonym of `alice`, the end of `alice.zaphod@example.com` would reveal whose that is.
    fn replaced<'a>(&self, text: &'a str, name: &str) -> Cow<'a, str> {
        // ASCII letters only, so that all positions stay the same.
        let (sought, within) = (name.to_ascii_lowercase(), text.to_ascii_lowercase());
        if name.is_empty() || !within.contains(&sought) {
            return text.into();
        }
        let (pseudonym, is_word) = (self.pseudonym(name), is_sought_as_word(name));
        let mut replaced = String::with_capacity(text.len());
        let mut done = 0;
        for (start, _) in within.match_indices(&sought) {
            let end = start + sought.len();
            // No text is left before a match within the word that was replaced last.
            let Some(before) = text.get(done..start) else { continue };
            let after = text.get(end..).unwrap_or_default();
            if is_word && (before.ends_with(is_letter) || after.starts_with(is_letter)) {
                continue;
            }
            let word_start = before.trim_end_matches(is_part).len();
            let word_end = after.len() - after.trim_start_matches(is_part).len();
            let (kept, head) = before.split_at(word_start);
            // Marks around a word, such as the end of a sentence, are no part of it.
            let marks = head.len() - head.trim_start_matches(|c: char| !is_letter(c)).len();
            let tail = after.get(..word_end).unwrap_or_default().trim_end_matches(|c: char| !is_letter(c));
            replaced.push_str(kept);
            replaced.push_str(head.get(..marks).unwrap_or_default());
            replaced.push_str(&pseudonym);
            done = end + tail.len();
        }
        replaced.push_str(text.get(done..).unwrap_or_default());
        replaced.into()
    }
}

/// Whether a name is replaced only as a whole word. Not in scripts without spaces between words, from Thai on (U+0E00),
/// where the name would stay readable.
fn is_sought_as_word(name: &str) -> bool {
    name.chars().count() < MIN_NAME && !name.chars().any(has_no_spaces)
}

/// Whether a character may be of a script without spaces between words.
fn has_no_spaces(c: char) -> bool {
    c >= '\u{0E00}'
}

fn is_letter(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Whether a character may be part of the word that a name is in, such as an e-mail address.
fn is_part(c: char) -> bool {
    (is_letter(c) && !has_no_spaces(c)) || matches!(c, '.' | '-' | '+' | '@')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authn::Scheme;

    fn key(byte: u8) -> PseudonymKey {
        PseudonymKey::from_base64(STANDARD.encode([byte; 32]).as_bytes()).unwrap()
    }

    #[test]
    fn the_same_name_has_the_same_pseudonym_and_another_under_another_key() {
        let pseudonym = key(1).pseudonym("alice");
        // printf alice | openssl dgst -sha256 -mac HMAC -macopt hexkey:0101...01
        assert_eq!(pseudonym, "pseudonym-b9ac4ee7242bea2f07e6");
        assert_eq!(pseudonym, key(1).pseudonym("alice"));
        assert_ne!(pseudonym, key(2).pseudonym("alice"));
        assert_ne!(pseudonym, key(1).pseudonym("alicia"));
        assert!(is_pseudonym(&pseudonym));
    }

    #[test]
    fn an_invalid_key_is_refused_and_a_key_never_prints_itself() {
        assert_eq!(PseudonymKey::from_base64(b"***").unwrap_err(), InvalidKey::Base64);
        assert_eq!(PseudonymKey::from_base64(b"c2hvcnQ=").unwrap_err(), InvalidKey::Short(5));
        assert_eq!(format!("{:?}", key(1)), "PseudonymKey");
    }

    #[test]
    fn a_short_name_is_replaced_as_a_word_and_not_within_others() {
        let pseudonym = key(1).pseudonym("7");
        for (text, expected) in [
            ("7", "P".to_owned()),
            ("corp:7 left at 17:07, as did 77 and `7`.", "corp:P left at 17:07, as did 77 and `P`.".to_owned()),
            ("7 7", "P P".to_owned()),
            ("7é x7 7_", "7é x7 7_".to_owned()),
        ] {
            assert_eq!(key(1).replaced(text, "7").replace(&pseudonym, "P"), expected, "{text}");
        }
        // Two letters of more than two bytes, and two of a script without spaces.
        for (name, text, expected) in
            [("Ян", "Ян left, and Яна did not", "P left, and Яна did not"), ("李明", "李明离职", "P离职")]
        {
            assert_eq!(key(1).replaced(text, name).replace(&key(1).pseudonym(name), "P"), expected);
        }
        assert_eq!(key(1).replaced("nobody", ""), "nobody");
    }

    /// What was left of a word revealed the surname beside the pseudonym.
    #[test]
    fn a_name_is_replaced_with_the_word_that_it_is_part_of_in_any_case() {
        for (name, text, expected) in [
            ("alice", "alice.zaphod@example.com left", "P left"),
            ("alice", "Alice left; mail alice@example.com.", "P left; mail P."),
            ("alice", "<a-alice+x@example.com>, corp:ALICE: alice's (`alice`)", "<P>, corp:P: P's (`P`)"),
            ("alice", "@alice -- alice-alice", "@P -- P"),
            ("7", "7.zaphod@example.com, 17 and v1.7", "P, 17 and P"),
            ("alice@example.com", "see Alice@Example.com", "see P"),
            ("李明", "李明离职", "P离职"),
            ("alice", "alice离职", "P离职"),
            ("Zoë", "Zoë.zaphod ZoË", "P ZoË"),
        ] {
            assert_eq!(key(1).replaced(text, name).replace(&key(1).pseudonym(name), "P"), expected, "{text}");
        }
    }

    #[test]
    fn the_subject_of_a_command_is_pseudonymized_and_its_operator_is_not() {
        let pseudonyms = Pseudonyms::new(key(1));
        let hidden = |subject: &str, issuer: &str, why: String| {
            let arguments = serde_json::json!({"issuer": issuer, "subject": subject});
            let mut note = Note::Operator(Operator {
                command: format!("revoke {arguments} (begun)"),
                uid: Some(0),
                user: Some("root".to_owned()),
                why: Some(why.clone()),
                outcome: Err(why),
                deliveries: None,
            });
            pseudonyms.hide_note(&mut note);
            let Note::Operator(hidden) = note else { panic!() };
            hidden
        };
        // Two that JSON escapes, and two that are parts of other words.
        for (subject, issuer) in
            [("alice", "corp"), (r"CORP\alice", "corp"), (r#"a"b"#, "corp"), ("7", "corp7"), ("al", "corp")]
        {
            let said = hidden(subject, issuer, format!("{subject} left"));
            let pseudonym = key(1).pseudonym(subject);
            assert_eq!(said.command, format!(r#"revoke {{"issuer":"{issuer}","subject":"{pseudonym}"}} (begun)"#));
            let why = format!("{pseudonym} left");
            assert_eq!((said.why.as_ref(), said.outcome.as_ref().unwrap_err()), (Some(&why), &why));
            assert_eq!(said.user.as_deref(), Some("root"));
        }
        let account = "system:serviceaccount:ci:builder";
        let said = hidden(account, "cluster", format!("{account} is out"));
        assert_eq!(said.command, format!(r#"revoke {{"issuer":"cluster","subject":"{account}"}} (begun)"#));
        assert_eq!(said.why.unwrap(), format!("{account} is out"));
    }

    #[test]
    fn so_many_principals_are_cached_and_only_those_that_are_in_use_elsewhere() {
        let mut pseudonyms = Pseudonyms::new(key(1));
        let person = |number: usize| Arc::new(Principal::new(Scheme::Bearer, "corp", format!("user-{number}"), "user"));
        let in_use: Vec<Arc<Principal>> = (0..300).map(person).collect();
        for principal in &in_use {
            let hidden = pseudonyms.principal(Arc::clone(principal));
            assert!(pseudonyms.kept.len() <= KEPT);
            assert!(Arc::ptr_eq(&pseudonyms.principal(Arc::clone(principal)), &hidden), "it is cached");
        }
        let cached = pseudonyms.kept.len();
        pseudonyms.principal(person(300));
        assert_eq!(pseudonyms.kept.len(), cached);
    }
}
