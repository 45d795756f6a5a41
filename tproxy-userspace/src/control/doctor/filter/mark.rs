//! What an expression makes of a mark, bit by bit.

use serde_json::Value;

/// What is known of each bit. A bit of which nothing is known is in none of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Bits {
    /// As in the mark before.
    kept: u32,
    zero: u32,
    one: u32,
}

impl Bits {
    const fn number(number: u32) -> Self {
        Self {
            kept: 0,
            zero: !number,
            one: number,
        }
    }

    const fn and(self, other: Self) -> Self {
        Self {
            kept: self.kept & (other.one | other.kept) | other.kept & self.one,
            zero: self.zero | other.zero,
            one: self.one & other.one,
        }
    }

    const fn or(self, other: Self) -> Self {
        Self {
            kept: self.kept & (other.zero | other.kept) | other.kept & self.zero,
            zero: self.zero & other.zero,
            one: self.one | other.one,
        }
    }

    const fn xor(self, other: Self) -> Self {
        Self {
            kept: self.kept & other.zero | other.kept & self.zero,
            zero: self.zero & other.zero | self.one & other.one,
            one: self.zero & other.one | self.one & other.zero,
        }
    }
}

/// Deeper expressions are nobody's.
const DEEPEST: usize = 32;

/// Which bits a value that nft sets the mark to leaves as they are.
pub(super) fn kept(value: &Value) -> u32 {
    bits(value, 0).kept
}

fn bits(value: &Value, depth: usize) -> Bits {
    let unknown = Bits {
        kept: 0,
        zero: 0,
        one: 0,
    };
    if depth > DEEPEST {
        return unknown;
    }
    if let Some(number) = value.as_u64().and_then(|number| u32::try_from(number).ok()) {
        return Bits::number(number);
    }
    if value["meta"]["key"] == "mark" {
        return Bits {
            kept: u32::MAX,
            ..unknown
        };
    }
    for (word, join) in [
        ("&", Bits::and as fn(Bits, Bits) -> Bits),
        ("|", Bits::or),
        ("^", Bits::xor),
    ] {
        // Newer versions of nft write more than two in one list.
        if let Some(parts) = value[word].as_array() {
            let parts = parts.iter().map(|part| bits(part, depth + 1));
            return parts.reduce(join).unwrap_or(unknown);
        }
    }
    unknown
}

/// Which bits `--set-xmark VALUE/MASK` leaves as they are: it clears those under the mask and turns those of
/// the value round.
pub(super) const fn kept_by_xmark(value: u32, mask: u32) -> u32 {
    !mask & !value
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    /// What nft would make of it; `ct mark` is `other`.
    fn value_of(expression: &Value, mark: u32, other: u32) -> u32 {
        if let Some(number) = expression.as_u64() {
            return number as u32;
        }
        if expression["meta"]["key"] == "mark" {
            return mark;
        }
        if expression["ct"]["key"] == "mark" {
            return other;
        }
        let of = |part: &Value| value_of(part, mark, other);
        let all = |word: &str| {
            expression[word]
                .as_array()
                .map(|parts| parts.iter().map(of))
        };
        if let Some(parts) = all("&") {
            return parts.fold(u32::MAX, |all, part| all & part);
        }
        if let Some(parts) = all("|") {
            return parts.fold(0, |all, part| all | part);
        }
        all("^").unwrap().fold(0, |all, part| all ^ part)
    }

    fn expressions() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            any::<u32>().prop_map(|number| json!(number)),
            Just(json!({ "meta": { "key": "mark" } })),
            Just(json!({ "ct": { "key": "mark" } })),
        ];
        leaf.prop_recursive(4, 24, 3, |inner| {
            let parts = prop::collection::vec(inner, 1..4);
            (prop::sample::select(vec!["&", "|", "^"]), parts)
                .prop_map(|(word, parts)| json!({ word: parts }))
        })
    }

    proptest! {
        #[test]
        fn a_bit_that_is_kept_is_kept(expression in expressions(), mark: u32, other: u32) {
            let kept = kept(&expression);
            prop_assert_eq!((value_of(&expression, mark, other) ^ mark) & kept, 0);
        }

        #[test]
        fn xmark_keeps_what_it_does_not_touch(value: u32, mask: u32, mark: u32) {
            let kept = kept_by_xmark(value, mask);
            prop_assert_eq!(((mark & !mask ^ value) ^ mark) & kept, 0);
        }
    }

    #[test]
    fn the_usual_expressions_are_understood() {
        let mark = json!({ "meta": { "key": "mark" } });
        let ct = json!({ "ct": { "key": "mark" } });
        for (value, expected) in [
            (json!(1), 0),
            (json!({ "|": [mark, 1] }), !1),
            (
                json!({ "|": [{ "&": [mark, 0xffff_ff0f_u32] }, 0x20] }),
                0xffff_ff0f,
            ),
            (ct.clone(), 0),
            (
                json!({ "|": [{ "&": [mark, !0xff00_u32] }, { "&": [ct, 0xff00] }] }),
                !0xff00,
            ),
            (json!({ "map": {} }), 0),
        ] {
            assert_eq!(kept(&value), expected, "{value}");
        }
        assert_eq!(kept_by_xmark(0x1, u32::MAX), 0);
        assert_eq!(kept_by_xmark(0x100, 0xff00), !0xff00);
    }
}
