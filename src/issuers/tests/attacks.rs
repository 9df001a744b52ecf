//! Every row of the attack table for bearer JWTs (`oauth:1` to `oauth:28`), each with a twin that differs in one
//! respect and passes. The bytes are built by hand.

use aws_lc_rs::{
    encoding::{AsDer, PublicKeyX509Der},
    hmac,
    signature::{self, KeyPair},
};
use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use serde_json::{Value, json};

use super::super::{Issuers, RevocationCheck, Revoked, testing::*, weak_rsa};
use crate::{
    authn::{CredentialId, Principal},
    error::Reason,
};

/// One attack: the row, the token, and the expected reason.
struct Attack {
    row: &'static str,
    token: String,
    reason: Reason,
    twin: Twin,
}

enum Twin {
    /// The valid token of the test, from which the attack differs in one respect.
    Standard,
    /// Its own valid token.
    Own(String),
}

struct Bench {
    provider: Provider,
    other: Provider,
    issuers: Issuers,
    accepts: super::super::Accepts,
}

const HEADER: &str = r#"{"alg":"RS256","kid":"rsa","typ":"at+jwt"}"#;

/// An ECDSA signature as a SEQUENCE of two INTEGERs (RFC 3279 section 2.2.3), as in certificates.
fn asn1(signature: &[u8]) -> Vec<u8> {
    let tagged = |tag: u8, content: &[u8]| [&[tag, u8::try_from(content.len()).unwrap()], content].concat();
    let integer = |half: &[u8]| {
        let significant: Vec<u8> = half.iter().copied().skip_while(|byte| *byte == 0).collect();
        // Otherwise it would be negative.
        let sign: &[u8] = if significant[0] < 0x80 { &[] } else { &[0] };
        tagged(2, &[sign, &significant].concat())
    };
    let (r, s) = signature.split_at(signature.len() / 2);
    tagged(0x30, &[integer(r), integer(s)].concat())
}

/// A header with changes.
fn header(changes: Value) -> String {
    changed(serde_json::from_str(HEADER).unwrap(), &changes).to_string()
}

impl Bench {
    async fn new() -> Self {
        let context = context();
        let provider = Provider::with_keys(&Self::keys()).await;
        let other = Provider::with_keys(&[OTHER_RSA.jwk("rsa", json!({}))]).await;
        let root = json!({"issuers": [
            {"name": "main", "issuer": provider.url, "audiences": ["doorward"], "algorithms": ["RS256", "ES256", "EdDSA"],
                "required_claims": {"tid": ["t-1"]}},
            {"name": "other", "issuer": other.url, "audiences": ["other-audience"]},
        ]});
        let (issuers, accepts) = ready(&root, &context).await;
        Self { provider, other, issuers, accepts }
    }

    fn keys() -> Vec<Value> {
        let weak = |kid: &str, n: Vec<u8>, e: &[u8]| json!({"kty": "RSA", "kid": kid, "n": b64(n), "e": b64(e)});
        vec![
            json!({"kty": "AKP", "alg": "ML-DSA-65", "kid": "akp", "pub": "AAAA"}),
            RSA.jwk("rsa", json!({"use": "sig"})),
            P256.jwk("p256", json!({})),
            OTHER_RSA.jwk("enc", json!({"use": "enc"})),
            OTHER_RSA.jwk("ps", json!({"alg": "PS256"})),
            OTHER_RSA.jwk("ops", json!({"key_ops": ["encrypt"]})),
            json!({"kty": "oct", "kid": "oct", "k": b64(b"secret")}),
            weak("1024", vec![0xa5; 128], &[1, 0, 1]),
            weak("e1", vec![0xa5; 256], &[1]),
            weak("e3", vec![0xa5; 256], &[3]),
            weak("even", vec![0xa5; 256], &[1, 0, 2]),
            weak("roca", weak_rsa::tests::roca_modulus(), &[1, 0, 1]),
            P384.jwk("p384", json!({})),
            ED25519.jwk("ed25519", json!({})),
            // Its signatures would be valid if it were used as a key of the other curve.
            ED25519.jwk("x25519", json!({"crv": "X25519"})),
            json!({"kty": "EC", "crv": "P-256", "kid": "off-curve", "x": b64([1; 32]), "y": b64([1; 32])}),
        ]
    }

    fn payload(&self, changes: Value) -> String {
        let standard = serde_json::from_str(&claims(&self.provider.url, json!({"tid": "t-1"}))).unwrap();
        changed(standard, &changes).to_string()
    }

    fn good(&self) -> String {
        RSA.token(HEADER, &self.payload(json!({})))
    }

    fn with_claims(&self, changes: Value) -> String {
        RSA.token(HEADER, &self.payload(changes))
    }

    fn with_header(&self, changes: Value) -> String {
        RSA.token(&header(changes), &self.payload(json!({})))
    }

    /// A valid token with an edited payload text.
    fn with_text(&self, from: &str, to: &str) -> String {
        let payload = self.payload(json!({}));
        assert!(payload.contains(from), "{from} is not in the payload");
        RSA.token(HEADER, &payload.replace(from, to))
    }

    async fn reason(&self, token: &str) -> Result<(), (Reason, String)> {
        match self.issuers.authenticate(token, &self.accepts, &nothing).await {
            Ok(_) => Ok(()),
            Err(rejection) => Err((rejection.reason(), precise(&rejection))),
        }
    }

    fn header_rows(&self) -> Vec<Attack> {
        use Reason::*;
        let row = |row, token, reason| Attack { row, token, reason, twin: Twin::Standard };
        let unsigned = |alg: &str| format!("{}.{}.", b64(header(json!({"alg": alg}))), b64(self.payload(json!({}))));
        let mac_of = |kid: &str, key: &[u8]| {
            let header = header(json!({"alg": "HS256", "kid": kid}));
            let signed = format!("{}.{}", b64(header), b64(self.payload(json!({}))));
            let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), signed.as_bytes());
            format!("{signed}.{}", b64(tag))
        };
        let mac = |key: &[u8]| mac_of("rsa", key);
        let TestKey::Rsa(pair) = &*RSA else { unreachable!() };
        let modulus = pair.public_key().modulus().big_endian_without_leading_zero().to_vec();
        let der = pair.public_key().as_ref().to_vec();
        let spki: PublicKeyX509Der<'_> = pair.public_key().as_der().unwrap();
        let pem = pem(spki.as_ref());
        let resigned = |alg: &str, encoding| {
            let signed = format!("{}.{}", b64(header(json!({"alg": alg}))), b64(self.payload(json!({}))));
            format!("{signed}.{}", b64(RSA.sign_rsa(encoding, signed.as_bytes())))
        };
        let ec = |changes| changed(json!({"alg": "ES256", "kid": "p256", "typ": "at+jwt"}), &changes).to_string();
        let ec_twin = || Twin::Own(P256.token(&ec(json!({})), &self.payload(json!({}))));
        // A valid token whose signature is `wanted`, and the same signature in another form.
        let ec_as = |row, wanted: fn(&[u8]) -> bool, form: fn(&[u8]) -> Vec<u8>| {
            let signature = |token: &str| URL_SAFE_NO_PAD.decode(token.rsplit_once('.').unwrap().1).unwrap();
            let made = || P256.token(&ec(json!({})), &self.payload(json!({})));
            let good = std::iter::repeat_with(made).find(|good| wanted(&signature(good))).unwrap();
            let token = format!("{}.{}", good.rsplit_once('.').unwrap().0, b64(form(&signature(&good))));
            Attack { row, token, reason: SignatureInvalid, twin: Twin::Own(good) }
        };
        let ed = |kid: &str| ED25519.token(&ec(json!({"alg": "EdDSA", "kid": kid})), &self.payload(json!({})));
        vec![
            row("oauth:1 none", unsigned("none"), TokenInvalid),
            row("oauth:1 None", unsigned("None"), TokenInvalid),
            row("oauth:1 nOnE", unsigned("nOnE"), TokenInvalid),
            row("oauth:1 missing", self.with_header(json!({"alg": null})), TokenInvalid),
            row("oauth:1 array", self.with_header(json!({"alg": ["RS256"]})), TokenInvalid),
            row("oauth:1 unknown", self.with_header(json!({"alg": "RS257"})), TokenInvalid),
            row("oauth:2 HMAC with DER", mac(&der), TokenInvalid),
            row("oauth:2 HMAC with DER of SPKI", mac(spki.as_ref()), TokenInvalid),
            row("oauth:2 HMAC with PEM", mac(pem.as_bytes()), TokenInvalid),
            row("oauth:2 HMAC with PEM without the last line end", mac(pem.trim_end().as_bytes()), TokenInvalid),
            row("oauth:2 HMAC with modulus", mac(&modulus), TokenInvalid),
            row("oauth:2 HMAC with JWK", mac(RSA.jwk("rsa", json!({})).to_string().as_bytes()), TokenInvalid),
            row("oauth:2 HMAC with nothing", mac(b""), TokenInvalid),
            row("oauth:3 PS256 signature", resigned("RS256", &signature::RSA_PSS_SHA256), SignatureInvalid),
            Attack {
                row: "oauth:3 ES256 with a P-384 key",
                token: P384.token(&ec(json!({"kid": "p384"})), &self.payload(json!({}))),
                reason: KeyUnknown,
                twin: ec_twin(),
            },
            Attack {
                row: "oauth:3 EdDSA with X25519",
                token: ed("x25519"),
                reason: KeyUnknown,
                twin: Twin::Own(ed("ed25519")),
            },
            row("oauth:4 RS384", resigned("RS384", &signature::RSA_PKCS1_SHA384), TokenInvalid),
            row("oauth:4 RS512", resigned("RS512", &signature::RSA_PKCS1_SHA512), TokenInvalid),
            row("oauth:5 unknown kid", self.with_header(json!({"kid": "nobody"})), KeyUnknown),
            row("oauth:6 path", self.with_header(json!({"kid": "../../dev/null"})), KeyUnknown),
            row("oauth:6 SQL", self.with_header(json!({"kid": "' OR 1=1"})), KeyUnknown),
            row("oauth:6 NUL", self.with_header(json!({"kid": "\0"})), KeyUnknown),
            row("oauth:6 long", self.with_header(json!({"kid": "k".repeat(8_000)})), CredentialMalformed),
            row("oauth:6 100 kB", self.with_header(json!({"kid": "k".repeat(100_000)})), CredentialMalformed),
            row("oauth:6 number", self.with_header(json!({"kid": 5})), CredentialMalformed),
            row("oauth:6 empty", self.with_header(json!({"kid": ""})), CredentialMalformed),
            row("oauth:7 enc", OTHER_RSA.token(&header(json!({"kid": "enc"})), &self.payload(json!({}))), KeyUnknown),
            row(
                "oauth:7 key_ops",
                OTHER_RSA.token(&header(json!({"kid": "ops"})), &self.payload(json!({}))),
                KeyUnknown,
            ),
            row("oauth:7 oct", self.with_header(json!({"kid": "oct"})), KeyUnknown),
            row("oauth:7 oct as what it is", mac_of("oct", b"secret"), TokenInvalid),
            row(
                "oauth:7 another alg",
                OTHER_RSA.token(&header(json!({"kid": "ps"})), &self.payload(json!({}))),
                KeyUnknown,
            ),
            row(
                "oauth:9 jwk",
                {
                    let jwk = OTHER_RSA.jwk("rsa", json!({}));
                    OTHER_RSA.token(&header(json!({"jwk": jwk})), &self.payload(json!({})))
                },
                TokenInvalid,
            ),
            row("oauth:9 x5c", self.with_header(json!({"x5c": ["MIIB"]})), TokenInvalid),
            row("oauth:10 crit exp", self.with_header(json!({"crit": ["exp"]})), TokenInvalid),
            row("oauth:10 crit empty", self.with_header(json!({"crit": []})), TokenInvalid),
            row("oauth:10 crit b64", self.with_header(json!({"crit": ["b64"], "b64": false})), TokenInvalid),
            row("oauth:10 crit unknown", self.with_header(json!({"crit": ["x"], "x": 1})), TokenInvalid),
            row("oauth:10 crit no array", self.with_header(json!({"crit": "exp"})), TokenInvalid),
            row("oauth:11 b64", self.with_header(json!({"b64": false})), TokenInvalid),
            row("oauth:11 zip", self.with_header(json!({"zip": "DEF"})), TokenInvalid),
            row("oauth:11 cty", self.with_header(json!({"cty": "JWT"})), TokenInvalid),
            row("oauth:12 JWE", format!("{}.a.b.c.d", b64(r#"{"alg":"dir","enc":"A256GCM"}"#)), CredentialMalformed),
            row(
                "oauth:12 PBES2",
                format!("{}.a.b.c.d", b64(r#"{"alg":"PBES2-HS256+A128KW","p2c":2147483648}"#)),
                CredentialMalformed,
            ),
            row("oauth:14 logout+jwt", self.with_header(json!({"typ": "logout+jwt"})), TokenInvalid),
            row("oauth:14 dpop+jwt", self.with_header(json!({"typ": "dpop+jwt"})), TokenInvalid),
            row("oauth:14 introspection", self.with_header(json!({"typ": "token-introspection+jwt"})), TokenInvalid),
            row("oauth:14 txntoken+jwt", self.with_header(json!({"typ": "txntoken+jwt"})), TokenInvalid),
            row("oauth:14 oauth-id-jag+jwt", self.with_header(json!({"typ": "oauth-id-jag+jwt"})), TokenInvalid),
            row("oauth:14 JWT", self.with_header(json!({"typ": "JWT"})), TokenInvalid),
            row("oauth:14 absent", self.with_header(json!({"typ": null})), TokenInvalid),
            row("oauth:14 number", self.with_header(json!({"typ": 1})), CredentialMalformed),
            row("oauth:14 logout claims", self.with_claims(json!({"events": {}})), TokenInvalid),
            row("oauth:14 refresh token", self.with_claims(json!({"token_use": "refresh"})), TokenInvalid),
            row("oauth:14 logout token", self.with_claims(json!({"typ": "Logout"})), TokenInvalid),
            row("oauth:14 introspection answer", self.with_claims(json!({"token_introspection": {}})), TokenInvalid),
            Attack {
                row: "oauth:21 r=0 s=0",
                token: forged(&ec(json!({})), &self.payload(json!({})), &[0; 64]),
                reason: SignatureInvalid,
                twin: ec_twin(),
            },
            ec_as("oauth:21 DER", |_| true, asn1),
            ec_as("oauth:21 65 bytes", |_| true, |signature| [signature, &[0]].concat()),
            ec_as("oauth:21 63 bytes", |signature| signature[0] == 0, |signature| signature[1..].to_vec()),
            row("oauth:22 1024 bits", self.with_header(json!({"kid": "1024"})), KeyUnknown),
            row("oauth:22 e=1", self.with_header(json!({"kid": "e1"})), KeyUnknown),
            row("oauth:22 e=3", self.with_header(json!({"kid": "e3"})), KeyUnknown),
            row("oauth:22 even e", self.with_header(json!({"kid": "even"})), KeyUnknown),
            row("oauth:22 ROCA", self.with_header(json!({"kid": "roca"})), KeyUnknown),
            row("oauth:23 mix-up", OTHER_RSA.token(HEADER, &self.payload(json!({}))), SignatureInvalid),
            row("peers:D7 bad signature", forged(HEADER, &self.payload(json!({})), &[7; 256]), SignatureInvalid),
            row(
                "peers:D9 audience of another issuer",
                self.with_claims(json!({"aud": "other-audience"})),
                AudienceMismatch,
            ),
        ]
    }

    fn claim_rows(&self) -> Vec<Attack> {
        use Reason::*;
        let url = &self.provider.url;
        let row = |row, token, reason| Attack { row, token, reason, twin: Twin::Standard };
        let claim = |name, changes, reason| row(name, self.with_claims(changes), reason);
        let text = |name, from: &str, to: &str, reason| row(name, self.with_text(from, to), reason);
        let exp = format!("\"exp\":{}", START + 600);
        vec![
            claim("RFC 9068 no client", json!({"client_id": null}), TokenInvalid),
            claim("RFC 9068 no client but another name", json!({"client_id": null, "azp": "cli"}), TokenInvalid),
            claim("RFC 9068 empty client", json!({"client_id": ""}), TokenInvalid),
            claim("RFC 9068 no id", json!({"jti": null}), TokenInvalid),
            claim("RFC 9068 id of another kind", json!({"jti": 7}), TokenInvalid),
            claim("oauth:15 missing", json!({"iss": null}), IssuerUnknown),
            text("oauth:15 null", &format!("\"iss\":\"{url}\""), "\"iss\":null", IssuerUnknown),
            claim("oauth:15 number", json!({"iss": 5}), IssuerUnknown),
            claim("oauth:15 array", json!({"iss": ["https://evil.example", url]}), IssuerUnknown),
            claim("oauth:15 slash", json!({"iss": format!("{url}/")}), IssuerUnknown),
            claim("oauth:15 upper case", json!({"iss": url.replace("http", "HTTP")}), IssuerUnknown),
            claim("oauth:15 look-alike", json!({"iss": url.replace("127", "\u{217a}27")}), IssuerUnknown),
            claim("oauth:15 unknown", json!({"iss": "https://evil.example"}), IssuerUnknown),
            claim("oauth:16 missing", json!({"aud": null}), AudienceMismatch),
            text("oauth:16 null", "\"aud\":\"doorward\"", "\"aud\":null", TokenInvalid),
            claim("oauth:16 number", json!({"aud": 12345}), TokenInvalid),
            claim("oauth:16 object", json!({"aud": {"doorward": true}}), TokenInvalid),
            claim("oauth:16 empty list", json!({"aud": []}), AudienceMismatch),
            claim("oauth:16 ours and 5", json!({"aud": ["doorward", 5]}), TokenInvalid),
            claim("oauth:16 other", json!({"aud": ["somebody"]}), AudienceMismatch),
            claim("oauth:16 suffix", json!({"aud": "doorward.evil.example"}), AudienceMismatch),
            claim("oauth:16 case", json!({"aud": "Doorward"}), AudienceMismatch),
            claim("oauth:16 1000", json!({"aud": vec!["doorward"; 1_000]}), TokenInvalid),
            claim("oauth:16 10000", json!({"aud": vec!["doorward"; 10_000]}), CredentialMalformed),
            claim("peers:D8 [1]", json!({"aud": [1]}), TokenInvalid),
            claim("oauth:17 exp missing", json!({"exp": null}), TokenInvalid),
            claim("oauth:17 exp text", json!({"exp": "1800000600"}), TokenInvalid),
            claim("oauth:17 exp -1", json!({"exp": -1}), TokenInvalid),
            text("oauth:17 exp 1e30", &exp, "\"exp\":1e30", TokenInvalid),
            text("oauth:17 exp null", &exp, "\"exp\":null", TokenInvalid),
            text("oauth:17 exp NaN", &exp, "\"exp\":NaN", CredentialMalformed),
            claim("oauth:17 exp 50 years", json!({"exp": START + 50 * 31_556_952}), TokenInvalid),
            Attack {
                row: "oauth:17 exp at the edge",
                token: self.with_claims(json!({"iat": START - 600, "exp": START - 30})),
                reason: TokenExpired,
                twin: Twin::Own(self.with_claims(json!({"iat": START - 600, "exp": START - 29}))),
            },
            Attack {
                row: "oauth:17 nbf",
                token: self.with_claims(json!({"nbf": START + 31})),
                reason: TokenNotYetValid,
                twin: Twin::Own(self.with_claims(json!({"nbf": START + 30}))),
            },
            Attack {
                row: "oauth:17 nbf text",
                token: self.with_claims(json!({"nbf": "1"})),
                reason: TokenInvalid,
                twin: Twin::Own(self.with_text(&exp, &format!("\"exp\":{}.5", START + 600))),
            },
            claim("oauth:17 iat future", json!({"iat": START + 3_600, "exp": START + 3_700}), TokenNotYetValid),
            claim("oauth:17 iat missing", json!({"iat": null}), TokenInvalid),
            Attack {
                row: "oauth:17 lifetime",
                token: self.with_claims(json!({"exp": START + 86_401})),
                reason: TokenInvalid,
                twin: Twin::Own(self.with_claims(json!({"exp": START + 86_400}))),
            },
            claim("oauth:18 missing", json!({"sub": null}), TokenInvalid),
            claim("oauth:18 empty", json!({"sub": ""}), TokenInvalid),
            claim("kubernetes:E1 blank", json!({"sub": " "}), TokenInvalid),
            claim("oauth:18 number", json!({"sub": 5}), TokenInvalid),
            Attack {
                row: "oauth:18 long",
                token: self.with_claims(json!({"sub": "s".repeat(256)})),
                reason: TokenInvalid,
                twin: Twin::Own(self.with_claims(json!({"sub": "s".repeat(200)}))),
            },
            claim("oauth:18 newline", json!({"sub": "a\nb"}), TokenInvalid),
            text("oauth:19 sub", "\"sub\":\"alice\"", "\"sub\":\"alice\",\"sub\":\"root\"", CredentialMalformed),
            text("oauth:19 scope", "\"tid\":", "\"scope\":\"admin\",\"tid\":", CredentialMalformed),
            text(
                "oauth:19 escaped",
                "\"sub\":\"alice\"",
                "\"sub\":\"alice\",\"s\\u0075b\":\"root\"",
                CredentialMalformed,
            ),
            row(
                "oauth:19 alg",
                RSA.token(r#"{"alg":"RS256","alg":"none","kid":"rsa","typ":"at+jwt"}"#, &self.payload(json!({}))),
                CredentialMalformed,
            ),
            row(
                "oauth:20 BOM",
                RSA.token(HEADER, &format!("\u{feff}{}", self.payload(json!({})))),
                CredentialMalformed,
            ),
            row("oauth:20 payload array", RSA.token(HEADER, "[]"), CredentialMalformed),
            row("oauth:20 payload text", RSA.token(HEADER, "\"x\""), CredentialMalformed),
            claim(
                "oauth-section:9 cnf jkt",
                json!({"cnf": {"jkt": "0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I"}}),
                TokenInvalid,
            ),
            claim("oauth-section:9 cnf unknown", json!({"cnf": {"osc": {}}}), TokenInvalid),
            text(
                "oauth:24 deep",
                "\"tid\":",
                &format!("\"x\":{}{},\"tid\":", "[".repeat(5_000), "]".repeat(5_000)),
                CredentialMalformed,
            ),
            claim("oauth:26 groups text", json!({"groups": "admins"}), TokenInvalid),
            claim("peers:D8 groups objects", json!({"groups": [{"name": "admins"}]}), TokenInvalid),
            claim("oauth:26 overage", json!({"groups": null, "_claim_names": {"groups": "src1"}}), IdentityRefused),
            claim("oauth:26 newline", json!({"groups": ["dev\nadmins"]}), IdentityRefused),
            claim("oauth:25 scope number", json!({"scope": 5}), TokenInvalid),
            claim("oauth:28 another tenant", json!({"tid": "t-2"}), TokenInvalid),
            claim("oauth:28 tenant as list", json!({"tid": ["t-1"]}), TokenInvalid),
            claim("oauth:28 no tenant", json!({"tid": null}), TokenInvalid),
        ]
    }

    fn encoding_rows(&self) -> Vec<Attack> {
        use Reason::*;
        let good = self.good();
        let (signed, signature) = good.rsplit_once('.').unwrap();
        let (head, payload) = signed.split_once('.').unwrap();
        let row = |row, token: String| Attack { row, token, reason: CredentialMalformed, twin: Twin::Standard };
        // 256 bytes leave four unused bits in the last character, which must be zero.
        let last = signature.chars().last().unwrap();
        let next = char::from_u32(last as u32 + 1).unwrap();
        vec![
            row(
                "oauth:13 flattened",
                json!({"protected": head, "payload": payload, "signature": signature}).to_string(),
            ),
            row(
                "oauth:13 general",
                json!({"payload": payload, "signatures": [{"protected": head, "signature": signature}]}).to_string(),
            ),
            row("oauth:20 padding", format!("{signed}.{signature}==")),
            row(
                "oauth:20 standard alphabet",
                format!("{signed}.{}", signature.replace('-', "+").replace('_', "/") + "+/"),
            ),
            row("oauth:20 blank", format!("{head} .{payload}.{signature}")),
            row("oauth:20 trailing dot", format!("{good}.")),
            row("oauth:20 fourth part", format!("{good}.e30")),
            row("oauth:20 two parts", signed.to_owned()),
            row("oauth:20 last bits", format!("{signed}.{}{next}", &signature[..signature.len() - 1])),
            row("oauth:20 not UTF-8", {
                let signed = format!("{}.{}", b64(HEADER), b64(b"{\"sub\":\"\xff\"}"));
                format!("{signed}.{}", b64(RSA.sign(signed.as_bytes())))
            }),
            row("oauth:24 1 MB", format!("{signed}.{}", "A".repeat(1 << 20))),
            row("oauth:24 100k dots", ".".repeat(100_000)),
            row("oauth:24 dots in the limit", format!("{head}{}", ".".repeat(10_000))),
            row("oauth:24 just too long", format!("{good}{}", "A".repeat(super::super::jwt::MAX_TOKEN))),
        ]
    }
}

/// A public key in PEM (RFC 7468), the form that most attacks with one use.
fn pem(spki: &[u8]) -> String {
    let text = STANDARD.encode(spki);
    let lines: Vec<_> = text.as_bytes().chunks(64).map(String::from_utf8_lossy).collect();
    format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n", lines.join("\n"))
}

fn forged(header: &str, payload: &str, signature: &[u8]) -> String {
    format!("{}.{}.{}", b64(header), b64(payload), b64(signature))
}

#[tokio::test]
async fn every_row_is_refused_and_its_twin_passes() {
    let bench = Bench::new().await;
    bench.reason(&bench.good()).await.unwrap();
    let rows: Vec<Attack> =
        [bench.header_rows(), bench.claim_rows(), bench.encoding_rows()].into_iter().flatten().collect();
    let mut wrong = Vec::new();
    for Attack { row, token, reason, twin } in &rows {
        match bench.reason(token).await {
            Err((came, _)) if came == *reason => {}
            other => wrong.push(format!("{row}: {other:?}, expected {reason}")),
        }
        if let Twin::Own(twin) = twin
            && let Err((_, why)) = bench.reason(twin).await
        {
            wrong.push(format!("the twin of {row} is refused: {why}"));
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), rows.len(), wrong.join("\n"));

    let numbers = ["1", "2", "3", "4", "5", "6", "7", "9", "10", "11", "12", "13", "14", "15", "16", "17", "18", "19"];
    for number in numbers.iter().chain(&["20", "21", "22", "23", "24", "25", "26", "28"]) {
        let prefix = format!("oauth:{number} ");
        assert!(rows.iter().any(|attack| attack.row.starts_with(&prefix)), "row {number} is missing");
    }
    // All unknown keys together caused at most one fetch besides the first (`oauth:5`, `peers:D7`).
    assert!(bench.provider.hits("/jwks") <= 2, "{} fetches", bench.provider.hits("/jwks"));
    assert_eq!(bench.other.hits("/jwks"), 1);
}

/// oauth:8: references to keys are ignored; only the configured keys verify the token.
#[tokio::test]
async fn pointers_to_keys_are_never_followed() {
    let bench = Bench::new().await;
    let thief = Provider::with_keys(&[OTHER_RSA.jwk("rsa", json!({}))]).await;
    let pointers = json!({"jku": format!("{}/jwks", thief.url), "x5u": format!("{}/chain", thief.url)});
    bench.reason(&bench.with_header(pointers.clone())).await.unwrap();
    let forged = OTHER_RSA.token(&header(pointers), &bench.payload(json!({})));
    assert_eq!(bench.reason(&forged).await.unwrap_err().0, Reason::SignatureInvalid);
    assert!(thief.got().is_empty());
}

/// oauth:6: a token without `kid` is valid if exactly one key matches.
#[tokio::test]
async fn without_kid_exactly_one_key_must_fit() {
    for (keys, expected) in [
        (vec![RSA.jwk("a", json!({}))], None),
        (vec![RSA.jwk("a", json!({})), P256.jwk("b", json!({}))], None),
        (vec![RSA.jwk("a", json!({})), OTHER_RSA.jwk("b", json!({}))], Some(Reason::KeyUnknown)),
    ] {
        let provider = Provider::with_keys(&keys).await;
        let root = json!({"issuers": [{"name": "main", "issuer": provider.url, "audiences": ["doorward"]}]});
        let (issuers, accepts) = ready(&root, &context()).await;
        let token = RSA.token(r#"{"alg":"RS256","typ":"at+jwt"}"#, &claims(&provider.url, json!({})));
        let outcome = issuers.authenticate(&token, &accepts, &nothing).await;
        assert_eq!(outcome.err().map(|rejection| rejection.reason()), expected);
    }
}

/// oauth:21: the high-s twin of an ECDSA signature may verify, so revocations use `jti`, never the bytes.
#[tokio::test]
async fn revocations_go_by_jti() {
    let bench = Bench::new().await;
    let first = bench.good();
    let second = bench.with_claims(json!({"unrelated": 1}));
    let principal = bench.issuers.authenticate(&first, &bench.accepts, &nothing).await.unwrap();
    let revoked = principal.credential.clone();
    let revocations = move |principal: &Principal| principal.credential == revoked;
    for token in [&first, &second] {
        let rejection = bench.issuers.authenticate(token, &bench.accepts, &revocations).await.unwrap_err();
        assert_eq!(rejection.reason(), Reason::TokenRevoked);
    }
    let other = bench.with_claims(json!({"jti": "t2"}));
    bench.issuers.authenticate(&other, &bench.accepts, &revocations).await.unwrap();
}

/// Regression: a bot whose access was revoked was told to get a new token, and did so again and again.
#[tokio::test]
async fn a_new_token_is_advised_only_if_it_would_be_accepted() {
    struct Of(Revoked);

    impl RevocationCheck for Of {
        fn revoked(&self, _: &Principal) -> Option<Revoked> {
            Some(self.0)
        }
    }

    let bench = Bench::new().await;
    for (revoked, told) in [
        (Revoked::Credential, "the token was revoked. Get a new token"),
        (Revoked::Holder, "your access was revoked. Ask whoever runs Doorward"),
    ] {
        let refused = bench.issuers.authenticate(&bench.good(), &bench.accepts, &Of(revoked)).await.unwrap_err();
        assert_eq!((refused.reason(), refused.in_words()), (Reason::TokenRevoked, told.to_owned()));
    }
}

/// Regression: the trail named nobody, and could not tell whether a leaked token is still being tried.
#[tokio::test]
async fn the_refusal_of_a_revoked_token_says_whose_and_which_it_is() {
    let bench = Bench::new().await;
    let refused = bench.issuers.authenticate(&bench.good(), &bench.accepts, &|_: &Principal| true).await.unwrap_err();
    let presented = refused.presented().unwrap();
    assert_eq!((&*presented.issuer, &*presented.subject), ("main", "alice"));
    assert_eq!(presented.credential, CredentialId::Token("t1".into()));
}

/// oauth:21: without a `jti`, revocations use the signed text.
#[tokio::test]
async fn the_high_s_twin_of_a_revoked_token_with_an_empty_jti_is_revoked_too() {
    let bench = Bench::new().await;
    let payload = |more: Value| bench.payload(changed(json!({"jti": "x".repeat(257)}), &more));
    let es256 = header(json!({"alg": "ES256", "kid": "p256"}));
    let token = P256.token(&es256, &payload(json!({})));
    let twin = twin_of(&token);
    assert_ne!(token, twin);
    let known = async |token: &str, revocations: &dyn RevocationCheck| {
        bench.issuers.authenticate(token, &bench.accepts, revocations).await
    };
    let [first, second] = [known(&token, &nothing).await.unwrap(), known(&twin, &nothing).await.unwrap()];
    assert_eq!(first.credential, second.credential, "the signature of both is good");
    let revoked = first.credential.clone();
    let revocations = move |principal: &Principal| principal.credential == revoked;
    for token in [&token, &twin] {
        assert_eq!(known(token, &revocations).await.unwrap_err().reason(), Reason::TokenRevoked);
    }
    known(&P256.token(&es256, &payload(json!({"unrelated": 1}))), &revocations).await.unwrap();
}

/// The token with the other valid signature, which anybody can compute: `n - s` in place of `s`.
fn twin_of(token: &str) -> String {
    /// The order of P-256 (FIPS 186-5, SP 800-186 section 3.2.1.3).
    const ORDER: [u8; 32] = [
        0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xbc, 0xe6, 0xfa, 0xad,
        0xa7, 0x17, 0x9e, 0x84, 0xf3, 0xb9, 0xca, 0xc2, 0xfc, 0x63, 0x25, 0x51,
    ];
    let (signed, signature) = token.rsplit_once('.').unwrap();
    let mut signature = URL_SAFE_NO_PAD.decode(signature).unwrap();
    let mut borrow = false;
    for (digit, order) in signature[32..].iter_mut().zip(ORDER).rev() {
        let (rest, under) = order.overflowing_sub(*digit);
        let (rest, under_again) = rest.overflowing_sub(u8::from(borrow));
        (*digit, borrow) = (rest, under || under_again);
    }
    format!("{signed}.{}", b64(signature))
}
