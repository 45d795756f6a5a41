//! The methods: which cipher, and which edition of the protocol.

use std::fmt;
use std::str::FromStr;

use ring::aead::{AES_128_GCM, AES_256_GCM, Algorithm, CHACHA20_POLY1305};

/// How traffic is encrypted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Method {
    /// AES-128-GCM (SIP004).
    Aes128Gcm,
    /// AES-256-GCM (SIP004).
    Aes256Gcm,
    /// ChaCha20-Poly1305 (SIP004).
    Chacha20Poly1305,
    /// AES-128-GCM (SIP022).
    Blake3Aes128Gcm,
    /// AES-256-GCM (SIP022).
    Blake3Aes256Gcm,
    /// ChaCha20-Poly1305 (SIP022 section 4).
    Blake3Chacha20Poly1305,
}

/// Why a text is no method.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MethodError {
    /// It does not encrypt.
    #[error(
        "the method \"none\" does not encrypt, so that everybody on the way could read and change the traffic; use one of {}",
        names()
    )]
    Plain,
    /// It encrypts without noticing what is changed on the way.
    #[error(
        "the method \"{}\" is a stream cipher: what is changed on the way goes unnoticed, and its traffic can be read \
         (SIP004 replaced it in 2017); set the server to one of {}",
        .0,
        names()
    )]
    Stream(&'static str),
    /// It is not known. It is left out, because a password may stand in the wrong place.
    #[error("the method is not known; use one of {}", names())]
    Unknown,
}

/// All of them, for messages.
fn names() -> String {
    Method::ALL.map(Method::name).join(", ")
}

impl Method {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::Aes128Gcm,
        Self::Aes256Gcm,
        Self::Chacha20Poly1305,
        Self::Blake3Aes128Gcm,
        Self::Blake3Aes256Gcm,
        Self::Blake3Chacha20Poly1305,
    ];

    /// Its name in URLs and in the configurations of servers.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Aes128Gcm => "aes-128-gcm",
            Self::Aes256Gcm => "aes-256-gcm",
            Self::Chacha20Poly1305 => "chacha20-ietf-poly1305",
            Self::Blake3Aes128Gcm => "2022-blake3-aes-128-gcm",
            Self::Blake3Aes256Gcm => "2022-blake3-aes-256-gcm",
            Self::Blake3Chacha20Poly1305 => "2022-blake3-chacha20-poly1305",
        }
    }

    /// Is it of SIP022?
    #[must_use]
    pub const fn is_2022(self) -> bool {
        match self {
            Self::Aes128Gcm | Self::Aes256Gcm | Self::Chacha20Poly1305 => false,
            Self::Blake3Aes128Gcm | Self::Blake3Aes256Gcm | Self::Blake3Chacha20Poly1305 => true,
        }
    }

    /// Bytes of a key, and of a salt.
    #[must_use]
    pub const fn key_length(self) -> usize {
        match self {
            Self::Aes128Gcm | Self::Blake3Aes128Gcm => 16,
            _ => 32,
        }
    }

    /// Can a server have several users (identity headers)? They are made with AES.
    #[must_use]
    pub const fn takes_identities(self) -> bool {
        matches!(self, Self::Blake3Aes128Gcm | Self::Blake3Aes256Gcm)
    }

    /// The most bytes of a chunk (SIP004: 14 bits).
    pub(super) const fn longest_chunk(self) -> usize {
        if self.is_2022() { 0xffff } else { 0x3fff }
    }

    pub(super) fn algorithm(self) -> &'static Algorithm {
        match self {
            Self::Aes128Gcm | Self::Blake3Aes128Gcm => &AES_128_GCM,
            Self::Aes256Gcm | Self::Blake3Aes256Gcm => &AES_256_GCM,
            Self::Chacha20Poly1305 | Self::Blake3Chacha20Poly1305 => &CHACHA20_POLY1305,
        }
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Method {
    type Err = MethodError;

    fn from_str(text: &str) -> Result<Self, MethodError> {
        const STREAMS: [&str; 18] = [
            "aes-128-cfb",
            "aes-128-ctr",
            "aes-128-ofb",
            "aes-192-cfb",
            "aes-192-ctr",
            "aes-256-cfb",
            "aes-256-ctr",
            "aes-256-ofb",
            "bf-cfb",
            "camellia-128-cfb",
            "camellia-192-cfb",
            "camellia-256-cfb",
            "chacha20",
            "chacha20-ietf",
            "rc4",
            "rc4-md5",
            "salsa20",
            "table",
        ];
        // Their second names.
        let name = match text.to_ascii_lowercase().as_str() {
            "chacha20-poly1305" => "chacha20-ietf-poly1305".to_owned(),
            "aead_aes_128_gcm" => "aes-128-gcm".to_owned(),
            "aead_aes_256_gcm" => "aes-256-gcm".to_owned(),
            "aead_chacha20_poly1305" => "chacha20-ietf-poly1305".to_owned(),
            other => other.to_owned(),
        };
        if let Some(method) = Self::ALL.into_iter().find(|method| method.name() == name) {
            return Ok(method);
        }
        if matches!(name.as_str(), "none" | "plain") {
            return Err(MethodError::Plain);
        }
        let stream = STREAMS.into_iter().find(|stream| *stream == name);
        Err(stream.map_or(MethodError::Unknown, MethodError::Stream))
    }
}
