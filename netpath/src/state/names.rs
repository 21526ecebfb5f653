//! File names for identifiers of any content.

/// The longest name in bytes: the kernel allows 255, and `.json` and a temporary suffix are added.
const LONGEST: usize = 200;

/// A file name that is unique to this list of identifiers, stays in its directory whatever they contain, and is readable for ordinary
/// ones: letters, digits, `-` and `_` stand for themselves, every other byte is `%XX`.
pub fn file_name(parts: &[&str]) -> String {
    let whole = parts.iter().map(|p| escape(p)).collect::<Vec<_>>().join(".");
    if whole.len() <= LONGEST {
        return whole;
    }
    // `escape` never yields `~`, so that a shortened name differs from every whole one.
    let kept: String = whole.chars().take(LONGEST - 33).collect();
    format!("{kept}~{:032x}", fnv128(parts))
}

fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_' {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

/// FNV-1a with 128 bits (draft-eastlake-fnv), each part followed by its length.
fn fnv128(parts: &[&str]) -> u128 {
    const PRIME: u128 = 0x0000_0000_0100_0000_0000_0000_0000_013b;
    let mut hash: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
    for part in parts {
        for byte in part.bytes().chain((part.len() as u64).to_le_bytes()) {
            hash ^= u128::from(byte);
            hash = hash.wrapping_mul(PRIME);
        }
    }
    hash
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_identifier_leads_out_of_the_directory_or_hides_a_file() {
        for id in ["..", ".", "", "../../etc/passwd", "a/b", "nul\0", "a\nb", "ü", "%2e%2e", &"x".repeat(9_000)] {
            for network in ["net", "..", "/", &"y/".repeat(500)] {
                let name = file_name(&[id, network]);
                assert!(!name.contains('/') && !name.contains('\0'), "{name:?}");
                assert!(name != "." && name != ".." && !name.is_empty(), "{name:?}");
                assert!(name.len() <= LONGEST, "{name:?}");
            }
        }
    }

    #[test]
    fn different_identifiers_have_different_names() {
        let long = "x".repeat(300);
        let pairs = [
            ("a", "b.c"),
            ("a.b", "c"),
            ("a%2Eb", "c"),
            ("A", "b"),
            ("a", "b"),
            (long.as_str(), "b"),
            (long.as_str(), "c"),
            (&long[1..], "xb"),
        ];
        let mut names: std::collections::HashSet<String> = pairs.iter().map(|(c, n)| file_name(&[c, n])).collect();
        names.extend(["eth0", "eth1"].map(|i| file_name(&["a", "b", i])));
        assert_eq!(pairs.len() + 2, names.len());
    }

    #[test]
    fn an_ordinary_pair_can_be_read() {
        assert_eq!("5d2f0c1b7a9e.front-net", file_name(&["5d2f0c1b7a9e", "front-net"]));
    }
}
