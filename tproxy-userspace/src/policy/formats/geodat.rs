//! v2ray's `geoip.dat` and `geosite.dat`: many lists by code in the wire format of Protocol Buffers.
//!
//! Messages: v2fly's app/router/routercommon/common.proto, of which Xray's common/geodata/geodat.proto
//! is the same on the wire:
//!
//! ```text
//! GeoIPList   { repeated GeoIP entry = 1 }
//! GeoIP       { string country_code = 1; repeated CIDR cidr = 2; bool inverse_match = 3 }
//! CIDR        { bytes ip = 1 /* 4 or 16 */; uint32 prefix = 2 }
//! GeoSiteList { repeated GeoSite entry = 1 }
//! GeoSite     { string country_code = 1; repeated Domain domain = 2 }
//! Domain      { Type type = 1; string value = 2; repeated Attribute attribute = 3 }
//! Type        0 keyword, 1 regular expression, 2 name and all below, 3 name alone
//! Attribute   { string key = 1; … }
//! ```
//!
//! Only the list that is wanted is decoded. Of the others the frame and the code are read, so a file
//! that is cut off is noticed, except between two lists.

use std::net::IpAddr;

use ipnet::IpNet;

use super::cursor::Cursor;
use super::reading::{Codes, Reading, Trouble};
use super::{EntryError, Fault, Format};
use crate::policy::aggregate;
use crate::policy::prefix::excerpt;
use crate::policy::source::Selector;

pub(super) fn geoip(
    bytes: &[u8],
    selector: Option<&Selector>,
    out: &mut Reading,
) -> Result<(), Trouble> {
    if let Some((_, [attribute, ..])) = selector
        .map(Selector::parts)
        .as_ref()
        .map(|(code, list)| (code, &list[..]))
    {
        return Err(Trouble::whole(Fault::NoAttributes((*attribute).to_owned())));
    }
    let mut codes = Codes::default();
    let mut found = false;
    for_each_list(bytes, &mut codes, |code, list| {
        if !selector.is_some_and(|selector| code.eq_ignore_ascii_case(&selector.code)) {
            return Ok(());
        }
        found = true;
        let mut inverse = false;
        let mut prefixes = Vec::new();
        while let Some(field) = next_field(list)? {
            match field {
                (2, Value::Bytes(cidr)) => prefixes.push(prefix(cidr)?),
                (3, Value::Number(number)) => inverse = number != 0,
                _ => {}
            }
        }
        if inverse {
            prefixes = aggregate::complement(&prefixes);
        }
        for prefix in prefixes {
            out.prefix(prefix);
        }
        out.room().map_err(Trouble::whole)
    })?;
    if found {
        Ok(())
    } else {
        Err(Trouble::whole(codes.fault(Format::GeoIp, selector)))
    }
}

pub(super) fn geosite(
    bytes: &[u8],
    selector: Option<&Selector>,
    out: &mut Reading,
) -> Result<(), Trouble> {
    if selector.is_some_and(|selector| selector.negated) {
        return Err(Trouble::whole(Fault::NotNegated(Format::GeoSite)));
    }
    let (code, attributes) = selector.map(Selector::parts).unwrap_or_default();
    let whole = selector.map_or("", |selector| selector.code.as_str());
    let mut codes = Codes::default();
    let mut there = Codes::default();
    let (mut found, mut taken) = (false, 0_usize);
    for_each_list(bytes, &mut codes, |this, list| {
        // Some files have lists whose codes contain the attribute.
        let attributes = if selector.is_none() {
            return Ok(());
        } else if this.eq_ignore_ascii_case(whole) {
            &[][..]
        } else if this.eq_ignore_ascii_case(code) {
            &attributes[..]
        } else {
            return Ok(());
        };
        found = true;
        while let Some(field) = next_field(list)? {
            let (2, Value::Bytes(entry)) = field else {
                continue;
            };
            taken += usize::from(domain(entry, attributes, &mut there, out)?);
            out.room().map_err(Trouble::whole)?;
        }
        Ok(())
    })?;
    if !found {
        // What is like the code without its attributes is what was meant.
        let asked = selector.map(|selector| Selector {
            code: code.to_owned(),
            ..selector.clone()
        });
        return Err(Trouble::whole(codes.fault(Format::GeoSite, asked.as_ref())));
    }
    if taken == 0 && !attributes.is_empty() {
        return Err(Trouble::whole(Fault::AttributeUnknown {
            code: excerpt(code),
            attribute: excerpt(&attributes.join("@")),
            there: there.sample(),
        }));
    }
    Ok(())
}

/// Is it the list of addresses or that of names? From the first entry; None if it is neither.
pub(super) fn kind(bytes: &[u8]) -> Option<Format> {
    let mut file = Cursor::new(bytes);
    // The frame may be cut off, and is a `.dat` all the same.
    if file.byte("").ok()? != 0x0a {
        return None;
    }
    let length = file.varint("").ok()?.min(file.left() as u64) as usize;
    let mut list = file.part(length, "").ok()?;
    if list.byte("").ok()? != 0x0a {
        return None;
    }
    let code = list.counted("").ok()?;
    let plausible = (1..=64).contains(&code.len()) && code.iter().all(u8::is_ascii_graphic);
    if !plausible {
        return None;
    }
    // The first entry: an address begins with its bytes, a domain with its type or its text.
    while let Ok(tag) = list.varint("") {
        match (tag, list.counted("")) {
            (0x12, Ok([0x0a, 4 | 16, ..])) => return Some(Format::GeoIp),
            (0x12, Ok([0x08 | 0x12, ..])) => return Some(Format::GeoSite),
            (tag, Ok(_)) if tag & 7 == 2 => {}
            _ => break,
        }
    }
    Some(Format::GeoIp)
}

/// Gives each list with its code to `take`.
fn for_each_list(
    bytes: &[u8],
    codes: &mut Codes,
    mut take: impl FnMut(&str, &mut Cursor<'_>) -> Result<(), Trouble>,
) -> Result<(), Trouble> {
    let mut file = Cursor::new(bytes);
    while let Some(field) = next_field(&mut file)? {
        let (1, Value::Bytes(mut list)) = field else {
            return file.malformed("something stands there that is no list");
        };
        let mut fields = list.clone();
        let code = loop {
            match next_field(&mut fields)? {
                Some((1, Value::Bytes(mut code))) => break text(&mut code)?,
                Some(_) => {}
                None => return list.malformed("a list has no code"),
            }
        };
        codes.note(&code.to_lowercase());
        take(code, &mut list)?;
    }
    Ok(())
}

/// The value of a field.
enum Value<'a> {
    Number(u64),
    Bytes(Cursor<'a>),
    /// Of a fixed size, which none of our fields has.
    Fixed,
}

/// The number of the next field and its value (the wire types of Protocol Buffers' encoding).
fn next_field<'a>(data: &mut Cursor<'a>) -> Result<Option<(u64, Value<'a>)>, Trouble> {
    const READING: &str = "a list";
    if data.is_empty() {
        return Ok(None);
    }
    let tag = data.varint(READING)?;
    let value = match tag & 7 {
        0 => Value::Number(data.varint(READING)?),
        2 => {
            let length = data.varint(READING)?;
            let length = data.count(length, 1, READING)?;
            Value::Bytes(data.part(length, READING)?)
        }
        1 => data.take(8, READING).map(|_| Value::Fixed)?,
        5 => data.take(4, READING).map(|_| Value::Fixed)?,
        _ => return data.malformed("a field has a type that there is not"),
    };
    Ok(Some((tag >> 3, value)))
}

fn text<'a>(data: &mut Cursor<'a>) -> Result<&'a str, Trouble> {
    let place = data.place();
    let bytes = data.take(data.left(), "a text")?;
    std::str::from_utf8(bytes)
        .map_err(|_| Trouble::byte(place, Fault::Malformed("a text is not UTF-8")))
}

fn prefix(mut cidr: Cursor<'_>) -> Result<IpNet, Trouble> {
    let place = cidr.clone();
    let (mut address, mut length) = (None, 0);
    while let Some(field) = next_field(&mut cidr)? {
        match field {
            (1, Value::Bytes(mut bytes)) => {
                address = match bytes.left() {
                    4 => Some(IpAddr::from(bytes.array::<4>("an address")?)),
                    16 => Some(IpAddr::from(bytes.array::<16>("an address")?)),
                    _ => return bytes.malformed("an address has neither 4 nor 16 bytes"),
                }
            }
            (2, Value::Number(number)) => length = number,
            _ => {}
        }
    }
    let Some(address) = address else {
        return place.malformed("a prefix has no address");
    };
    match u8::try_from(length)
        .ok()
        .and_then(|length| IpNet::new(address, length).ok())
    {
        Some(prefix) => Ok(prefix.trunc()),
        None => place.malformed("a prefix is longer than its address"),
    }
}

/// Takes a domain if it has all the attributes, and says whether it did.
fn domain(
    mut entry: Cursor<'_>,
    attributes: &[&str],
    there: &mut Codes,
    out: &mut Reading,
) -> Result<bool, Trouble> {
    let place = entry.place();
    let (mut kind, mut value) = (0, "");
    let mut missing: Vec<&str> = attributes.to_vec();
    while let Some(field) = next_field(&mut entry)? {
        match field {
            (1, Value::Number(number)) => kind = number,
            (2, Value::Bytes(mut bytes)) => value = text(&mut bytes)?,
            (3, Value::Bytes(mut attribute)) if !attributes.is_empty() => {
                while let Some(field) = next_field(&mut attribute)? {
                    if let (1, Value::Bytes(mut key)) = field {
                        let key = text(&mut key)?;
                        there.note(key);
                        missing.retain(|wanted| !wanted.eq_ignore_ascii_case(key));
                    }
                }
            }
            _ => {}
        }
    }
    if !missing.is_empty() {
        return Ok(false);
    }
    let taken = match kind {
        0 => out.keyword(value),
        1 => out.regex(value),
        2 => out.suffix(value),
        3 => out.full_name(value),
        _ => Err(EntryError::Line(
            "it is a domain of a type that there is not",
        )),
    };
    taken.map_err(|reason| Trouble::entry(place, excerpt(value), reason))?;
    Ok(true)
}
