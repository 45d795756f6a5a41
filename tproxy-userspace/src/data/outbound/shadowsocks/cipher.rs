//! The ciphers: AEAD with a counting nonce, single blocks of AES, and XChaCha20-Poly1305.

use aes::cipher::{BlockCipherDecrypt as _, BlockCipherEncrypt as _, KeyInit as _};
use aes::{Aes128, Aes256};
use chacha20poly1305::aead::AeadInOut as _;
use chacha20poly1305::{Tag, XChaCha20Poly1305, XNonce};
use ring::aead::{Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};

use super::method::Method;

/// Bytes that show whether something was changed. They follow what is encrypted.
pub(super) const TAG: usize = 16;
/// Bytes of XChaCha20's nonce.
pub(super) const XNONCE: usize = 24;

/// Something was not encrypted with this key, or was changed since.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Forged;

/// One direction of a stream: a key, and a nonce that counts (SIP004; SIP022 section 3.1.1).
pub(super) struct Counting {
    key: LessSafeKey,
    /// The first 8 bytes of the nonce, little-endian. The other 4 would be used after 2^64 chunks.
    next: u64,
}

impl Counting {
    /// # Panics
    /// With a key that has not the method's length, which [`Keys`](super::Keys) makes sure of.
    pub fn new(method: Method, key: &[u8]) -> Self {
        Self {
            key: body_key(method, key),
            next: 0,
        }
    }

    fn nonce(&mut self) -> [u8; NONCE_LEN] {
        let mut nonce = [0; NONCE_LEN];
        nonce[..8].copy_from_slice(&self.next.to_le_bytes());
        self.next += 1;
        nonce
    }

    /// Encrypts what is in `bytes` from `start` on and adds the tag.
    pub fn seal(&mut self, bytes: &mut Vec<u8>, start: usize) {
        let nonce = self.nonce();
        seal(&self.key, nonce, bytes, start);
    }

    /// Decrypts a chunk with its tag in its place. What is before the tag is then the text.
    pub fn open(&mut self, chunk: &mut [u8]) -> Result<(), Forged> {
        let nonce = self.nonce();
        open(&self.key, nonce, chunk).map(|_| ())
    }
}

/// The AEAD key of a method.
///
/// # Panics
/// As [`Counting::new`].
pub(super) fn body_key(method: Method, key: &[u8]) -> LessSafeKey {
    let key = UnboundKey::new(method.algorithm(), key).expect("the key has the method's length");
    LessSafeKey::new(key)
}

/// Encrypts what is in `bytes` from `start` on and adds the tag.
pub(super) fn seal(key: &LessSafeKey, nonce: [u8; NONCE_LEN], bytes: &mut Vec<u8>, start: usize) {
    let nonce = Nonce::assume_unique_for_key(nonce);
    let tag = key
        .seal_in_place_separate_tag(nonce, Aad::empty(), &mut bytes[start..])
        .expect("a chunk or datagram is not too long for AEAD");
    bytes.extend_from_slice(tag.as_ref());
}

/// Decrypts a text with its tag in its place; gives the text.
pub(super) fn open<'b>(
    key: &LessSafeKey,
    nonce: [u8; NONCE_LEN],
    bytes: &'b mut [u8],
) -> Result<&'b mut [u8], Forged> {
    let nonce = Nonce::assume_unique_for_key(nonce);
    key.open_in_place(nonce, Aad::empty(), bytes)
        .map_err(|_| Forged)
}

/// AES on single blocks.
pub(super) enum Block {
    Aes128(Box<Aes128>),
    Aes256(Box<Aes256>),
}

impl Block {
    /// # Panics
    /// With a key that has neither 16 nor 32 bytes.
    pub fn new(key: &[u8]) -> Self {
        if let Ok(key) = <[u8; 16]>::try_from(key) {
            Self::Aes128(Box::new(Aes128::new(&key.into())))
        } else {
            let key: [u8; 32] = key.try_into().expect("a key of AES");
            Self::Aes256(Box::new(Aes256::new(&key.into())))
        }
    }

    pub fn encrypt(&self, block: [u8; 16]) -> [u8; 16] {
        let mut block = block.into();
        match self {
            Self::Aes128(aes) => aes.encrypt_block(&mut block),
            Self::Aes256(aes) => aes.encrypt_block(&mut block),
        }
        block.into()
    }

    pub fn decrypt(&self, block: [u8; 16]) -> [u8; 16] {
        let mut block = block.into();
        match self {
            Self::Aes128(aes) => aes.decrypt_block(&mut block),
            Self::Aes256(aes) => aes.decrypt_block(&mut block),
        }
        block.into()
    }
}

/// XChaCha20-Poly1305, which ring does not have.
pub(super) struct Extended(XChaCha20Poly1305);

impl Extended {
    /// # Panics
    /// With a key that has not 32 bytes.
    pub fn new(key: &[u8]) -> Self {
        let key: [u8; 32] = key.try_into().expect("a key of ChaCha20");
        Self(XChaCha20Poly1305::new(&key.into()))
    }

    /// Encrypts what is in `bytes` from `start` on and adds the tag.
    pub fn seal(&self, nonce: [u8; XNONCE], bytes: &mut Vec<u8>, start: usize) {
        let text = (&mut bytes[start..]).into();
        let tag = self
            .0
            .encrypt_inout_detached(&XNonce::from(nonce), &[], text)
            .expect("a datagram is not too long for ChaCha20");
        bytes.extend_from_slice(&tag);
    }

    /// Decrypts a text with its tag in its place; gives the text.
    pub fn open<'b>(
        &self,
        nonce: [u8; XNONCE],
        bytes: &'b mut [u8],
    ) -> Result<&'b mut [u8], Forged> {
        let (text, tag) = bytes.split_last_chunk_mut::<TAG>().ok_or(Forged)?;
        self.0
            .decrypt_inout_detached(
                &XNonce::from(nonce),
                &[],
                (&mut *text).into(),
                &Tag::from(*tag),
            )
            .map_err(|_| Forged)?;
        Ok(text)
    }
}
