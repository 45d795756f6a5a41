//! Passwords and keys, and what follows from them for a connection.

use std::fmt;

use base64::Engine as _;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use md5::{Digest as _, Md5};
use ring::hkdf::{HKDF_SHA1_FOR_LEGACY_USE_ONLY, KeyType, Salt};

use super::cipher::Block;
use super::method::Method;

/// The longest key.
const LONGEST: usize = 32;
/// Bytes of an identity header.
pub(super) const IDENTITY: usize = 16;

/// Standard base64, whose padding people lose.
pub(super) const BASE64: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true),
);

/// A method with what is secret. Neither `Debug` nor any error shows it.
#[derive(Clone, PartialEq, Eq)]
pub struct Keys {
    method: Method,
    /// What encrypts.
    key: Key,
    /// The keys of those on the way who need to know whom a connection is for, from the first on (2022-2).
    identities: Vec<Key>,
}

/// A key of the length that the method says.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Key {
    bytes: [u8; LONGEST],
    length: usize,
}

/// Why a password does not fit a method. The password itself is left out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Nothing.
    #[error("the password is empty; write METHOD:PASSWORD")]
    Empty,
    /// SIP022 wants keys, not passwords.
    #[error(
        "the password of the method {method} must be a key in base64{}, and it is none; `openssl rand -base64 {}` makes one",
        which(*.number),
        method.key_length()
    )]
    Base64 {
        /// The method.
        method: Method,
        /// Which of several, from 1 on; 0 if there is one.
        number: usize,
    },
    /// A key of the wrong length.
    #[error(
        "the key of the method {method} must have {} bytes, and it has {length}{}; `openssl rand -base64 {}` makes one",
        method.key_length(),
        which(*.number),
        method.key_length()
    )]
    Length {
        /// The method.
        method: Method,
        /// Which of several, from 1 on; 0 if there is one.
        number: usize,
        /// The bytes that it has.
        length: usize,
    },
    /// Several keys where there can be one only.
    #[error(
        "the method {0} takes one key, not several with `:` between them; those need a method with AES"
    )]
    Several(Method),
}

/// Which of several keys, in brackets.
fn which(number: usize) -> String {
    match number {
        0 => String::new(),
        number => format!(" (the {number}. of several)"),
    }
}

impl Keys {
    /// The keys of a password. With SIP022 it is a key in base64, or several with `:` between them, the user's own last.
    ///
    /// # Errors
    /// When it does not fit the method.
    pub fn new(method: Method, password: &[u8]) -> Result<Self, KeyError> {
        if password.is_empty() {
            return Err(KeyError::Empty);
        }
        if !method.is_2022() {
            return Ok(Self {
                method,
                key: Key::of_password(password, method.key_length()),
                identities: Vec::new(),
            });
        }
        let parts: Vec<&[u8]> = password.split(|byte| *byte == b':').collect();
        let number = |index| if parts.len() > 1 { index + 1 } else { 0 };
        let keys = parts.iter().enumerate();
        let keys = keys.map(|(index, part)| Key::of_base64(method, part, number(index)));
        let mut identities = keys.collect::<Result<Vec<Key>, KeyError>>()?;
        let key = identities.pop().ok_or(KeyError::Empty)?;
        if !identities.is_empty() && !method.takes_identities() {
            return Err(KeyError::Several(method));
        }
        Ok(Self {
            method,
            key,
            identities,
        })
    }

    /// The method.
    #[must_use]
    pub fn method(&self) -> Method {
        self.method
    }

    /// The key that encrypts.
    pub(super) fn key(&self) -> &[u8] {
        self.key.as_slice()
    }

    /// The key that encrypts the number of a datagram of SIP022: the first who handles it has to read it.
    pub(super) fn first(&self) -> &[u8] {
        self.identities.first().unwrap_or(&self.key).as_slice()
    }

    /// The key of what is encrypted with this salt.
    pub(super) fn subkey(&self, salt: &[u8]) -> Key {
        if self.method.is_2022() {
            let key = derive("shadowsocks 2022 session subkey", self.key(), salt);
            return Key::new(&key[..self.method.key_length()]);
        }
        let secret = Salt::new(HKDF_SHA1_FOR_LEGACY_USE_ONLY, salt).extract(self.key());
        let mut subkey = Key::new(&[0; LONGEST][..self.method.key_length()]);
        secret
            .expand(&[b"ss-subkey"], Length(subkey.length))
            .and_then(|okm| okm.fill(&mut subkey.bytes[..subkey.length]))
            .expect("32 bytes are not too many for HKDF");
        subkey
    }

    /// The identity headers of a connection with this salt (2022-2).
    pub(super) fn identity_headers(&self, salt: &[u8]) -> impl Iterator<Item = [u8; IDENTITY]> {
        self.identities_and_next().map(move |(key, next)| {
            let subkey = derive("shadowsocks 2022 identity subkey", key, salt);
            Block::new(&subkey[..self.method.key_length()]).encrypt(identity(next))
        })
    }

    /// For each key of those on the way: it, and what names the next one.
    pub(super) fn identities(&self) -> impl Iterator<Item = (&[u8], [u8; IDENTITY])> {
        self.identities_and_next()
            .map(|(key, next)| (key, identity(next)))
    }

    fn identities_and_next(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        let next = self.identities.iter().skip(1).chain([&self.key]);
        let both = self.identities.iter().zip(next);
        both.map(|(key, next)| (key.as_slice(), next.as_slice()))
    }
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Keys({}:…)", self.method)
    }
}

impl Key {
    fn new(bytes: &[u8]) -> Self {
        let mut key = Self {
            bytes: [0; LONGEST],
            length: bytes.len(),
        };
        key.bytes[..bytes.len()].copy_from_slice(bytes);
        key
    }

    pub(super) fn as_slice(&self) -> &[u8] {
        &self.bytes[..self.length]
    }

    /// As `EVP_BytesToKey` of OpenSSL with MD5 and no salt, which is how SIP004 makes a password a key.
    fn of_password(password: &[u8], length: usize) -> Self {
        let first = Md5::digest(password);
        let second = Md5::new()
            .chain_update(first)
            .chain_update(password)
            .finalize();
        Self::new(&[&first[..], &second[..]].concat()[..length])
    }

    fn of_base64(method: Method, text: &[u8], number: usize) -> Result<Self, KeyError> {
        if text.is_empty() {
            return Err(KeyError::Empty);
        }
        let Ok(bytes) = BASE64.decode(standard(text)) else {
            return Err(KeyError::Base64 { method, number });
        };
        if bytes.len() != method.key_length() {
            let length = bytes.len();
            return Err(KeyError::Length {
                method,
                number,
                length,
            });
        }
        Ok(Self::new(&bytes))
    }
}

/// Base64 in the alphabet of URLs (RFC 4648 section 5) as standard base64.
pub(super) fn standard(text: &[u8]) -> Vec<u8> {
    let byte = |byte: &u8| match byte {
        b'-' => b'+',
        b'_' => b'/',
        other => *other,
    };
    text.iter().map(byte).collect()
}

/// BLAKE3's key derivation.
fn derive(context: &str, key: &[u8], salt: &[u8]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new_derive_key(context);
    hasher.update(key).update(salt);
    *hasher.finalize().as_bytes()
}

/// What names a key (2022-2).
fn identity(key: &[u8]) -> [u8; IDENTITY] {
    *blake3::hash(key)
        .as_bytes()
        .first_chunk()
        .expect("a hash has 32 bytes")
}

/// How many bytes HKDF is to make.
struct Length(usize);

impl KeyType for Length {
    fn len(&self) -> usize {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn base64(bytes: &[u8]) -> String {
        BASE64.encode(bytes)
    }

    fn decoded(text: &str) -> Vec<u8> {
        BASE64.decode(text).expect("base64")
    }

    /// By `openssl enc -aes-256-cbc -md md5 -nosalt -P -k foobar`.
    #[test]
    fn a_password_becomes_the_key_that_openssl_makes() {
        let key = Key::of_password(b"foobar", 32);
        assert_eq!(
            base64(key.as_slice()),
            "OFj2IjCsPJFfMAxmQxLGP1aDeFKWFNIt20kjfS9gv98="
        );
        assert_eq!(
            Key::of_password(b"foobar", 16).as_slice(),
            &key.as_slice()[..16]
        );
    }

    /// A subkey that another implementation's tests hold (urban-spork, `AEAD2022TestCase`).
    #[test]
    fn the_session_subkey_is_that_of_others() {
        let password = b"Lc3tTx0BY6ZJ/fCwOx3JvF0I/anhwJBO5p2+FA5Vce4=";
        let keys = Keys::new(Method::Blake3Aes256Gcm, password).expect("a key");
        let subkey = keys.subkey(&decoded("3oFO0VyLyGI4nFN0M9P+62vPND/L6v8IingaPJWTbJA="));
        assert_eq!(
            base64(subkey.as_slice()),
            "EdNE+4U8dVnHT0+poAFDK2bdlwfrHT61sUNr9WYPh+E="
        );
    }

    #[test]
    fn keys_are_refused_with_what_is_wrong() {
        let refused = |method, password: &str| {
            let error = Keys::new(method, password.as_bytes()).unwrap_err();
            error.to_string()
        };
        let (short, long) = (base64(&[7; 16]), base64(&[7; 32]));
        assert_eq!(
            refused(Method::Blake3Aes256Gcm, &short),
            "the key of the method 2022-blake3-aes-256-gcm must have 32 bytes, and it has 16; `openssl rand -base64 32` makes one"
        );
        assert_eq!(
            refused(Method::Blake3Aes128Gcm, "my password"),
            "the password of the method 2022-blake3-aes-128-gcm must be a key in base64, and it is none; \
             `openssl rand -base64 16` makes one"
        );
        assert!(
            refused(Method::Blake3Aes128Gcm, &format!("{short}:{long}"))
                .contains("the 2. of several")
        );
        assert!(
            refused(Method::Blake3Chacha20Poly1305, &format!("{long}:{long}"))
                .contains("takes one key")
        );
        assert!(refused(Method::Aes128Gcm, "").contains("empty"));
        assert!(refused(Method::Blake3Aes128Gcm, &format!("{short}:")).contains("empty"));
    }

    proptest! {
        #[test]
        fn no_error_and_no_debug_shows_the_password(password in "[A-Z]{9,40}(:[A-Z]{9,40})?") {
            for method in Method::ALL {
                let shown = match Keys::new(method, password.as_bytes()) {
                    Ok(keys) => format!("{keys:?}"),
                    Err(error) => format!("{error} {error:?}"),
                };
                prop_assert!(!shown.contains(&password), "{}", shown);
            }
        }

        #[test]
        fn padding_and_alphabet_of_a_key_do_not_matter(bytes: [u8; 32]) {
            let text = base64(&bytes);
            let loose = text.trim_end_matches('=').replace('+', "-").replace('/', "_");
            let keys = |text: &str| Keys::new(Method::Blake3Aes256Gcm, text.as_bytes());
            prop_assert_eq!(keys(&loose), keys(&text));
            prop_assert!(keys(&text).is_ok_and(|keys| keys.key() == bytes));
        }
    }
}
