//! Compressed data, unpacked up to a limit.

use std::io::Read as _;

use flate2::{Decompress, FlushDecompress, Status};
use ruzstd::decoding::StreamingDecoder;

use super::Fault;
use super::reading::Trouble;

/// What a list may unpack to, in bytes: several times the largest in use. A small file can unpack to
/// any size.
pub(super) const MOST: usize = 64 << 20;
/// How far back a zstd frame may refer, in bytes: four times what the highest usual level has.
const WINDOW: u64 = 32 << 20;

/// Unpacks zlib (RFC 1950) from byte `start` on, up to `most` bytes.
pub(super) fn zlib(bytes: &[u8], start: usize, most: usize) -> Result<Vec<u8>, Trouble> {
    let mut inflate = Decompress::new(true);
    let mut unpacked = Vec::new();
    loop {
        let at = start + inflate.total_in() as usize;
        let before = unpacked.len();
        // Room that doubles, so the data are not moved too often.
        unpacked.reserve(before.max(32 << 10));
        let status = inflate
            .decompress_vec(&bytes[at..], &mut unpacked, FlushDecompress::None)
            .map_err(|error| Trouble::byte(at, Fault::Unpack(error.to_string())))?;
        if unpacked.len() > most {
            return Err(Trouble::byte(at, Fault::Bomb(most >> 20)));
        }
        let progress = unpacked.len() > before || start + inflate.total_in() as usize > at;
        match status {
            Status::StreamEnd => return Ok(unpacked),
            _ if progress => {}
            _ => {
                return Err(Trouble::byte(
                    bytes.len(),
                    Fault::Cut("the compressed data"),
                ));
            }
        }
    }
}

/// Unpacks a zstd frame (RFC 8878), up to `most` bytes.
pub(super) fn zstd(bytes: &[u8], most: usize) -> Result<Vec<u8>, Trouble> {
    let mut rest = bytes;
    let mut unpacked = Vec::new();
    let result = StreamingDecoder::new_with_max_window_size(&mut rest, WINDOW)
        .map_err(|error| error.to_string())
        .and_then(|mut decoder| {
            (&mut decoder)
                .take(most as u64 + 1)
                .read_to_end(&mut unpacked)
                .map_err(|error| error.to_string())?;
            let decoder = decoder.into_frame_decoder();
            let (said, is) = (
                decoder.get_checksum_from_data(),
                decoder.get_calculated_checksum(),
            );
            let whole = unpacked.len() > most || said.is_none() || said == is;
            if whole {
                Ok(())
            } else {
                Err("its checksum is not that of its data".to_owned())
            }
        });
    let at = bytes.len() - rest.len();
    match result {
        Ok(()) if unpacked.len() > most => Err(Trouble::byte(at, Fault::Bomb(most >> 20))),
        Ok(()) => Ok(unpacked),
        Err(_) if rest.is_empty() => Err(Trouble::byte(
            bytes.len(),
            Fault::Cut("the compressed data"),
        )),
        Err(error) => Err(Trouble::byte(at, Fault::Unpack(error))),
    }
}
