//! The alphabet of byte-level BPE: each byte has a printable character of its own.
//!
//! Source: `bytes_to_unicode` in openai/gpt-2 `src/encoder.py`. Bytes that Latin-1 prints stand for
//! themselves; the other 68, in ascending order, for U+0100 and on.

const fn is_printable(byte: u8) -> bool {
    matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF)
}

/// The character of each byte.
pub(super) const CHAR_OF_BYTE: [char; 256] = {
    let mut chars = ['\0'; 256];
    let mut next = 0x100_u32;
    let mut byte = 0;
    while byte < 256 {
        if is_printable(byte as u8) {
            chars[byte] = byte as u8 as char;
        } else {
            chars[byte] = match char::from_u32(next) {
                Some(c) => c,
                None => panic!("U+0100 to U+0143 are characters"),
            };
            next += 1;
        }
        byte += 1;
    }
    chars
};

const BYTE_OF_CHAR: [Option<u8>; 0x144] = {
    let mut bytes = [None; 0x144];
    let mut byte = 0;
    while byte < 256 {
        bytes[CHAR_OF_BYTE[byte] as usize] = Some(byte as u8);
        byte += 1;
    }
    bytes
};

/// The bytes that a token spells, or `None` if it has a character outside the alphabet.
pub(super) fn bytes_of(token: &str) -> Option<Vec<u8>> {
    token
        .chars()
        .map(|c| BYTE_OF_CHAR.get(c as usize).copied().flatten())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_has_a_character_of_its_own() {
        for byte in 0..=255_u8 {
            let token = CHAR_OF_BYTE[usize::from(byte)].to_string();
            assert_eq!(bytes_of(&token), Some(vec![byte]));
        }
        assert_eq!(
            (CHAR_OF_BYTE[usize::from(b' ')], CHAR_OF_BYTE[0x0A]),
            ('Ġ', 'Ċ')
        );
    }

    #[test]
    fn characters_outside_the_alphabet_are_not_bytes() {
        assert_eq!(bytes_of("▁the"), None);
        assert_eq!(bytes_of(" the"), None);
    }
}
