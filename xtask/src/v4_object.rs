//! The object for networks without IPv6. In it calls of a global function of IPv6 (`np_…6`) lead to its IPv4 twin: they are behind a
//! constant and never run, but before 6.8 the verifier checks every global function of a program, called or not.

use anyhow::{Context, Result, ensure};
use object::LittleEndian;
use object::elf::{FileHeader64, SHT_REL, STT_FUNC};
use object::read::elf::{FileHeader, SectionHeader, Sym};
use std::collections::HashMap;

/// # Errors
/// It is no object of the eBPF machine, or a function has no twin.
pub(crate) fn of(object: &[u8]) -> Result<Vec<u8>> {
    let elf = FileHeader64::<LittleEndian>::parse(object).context("cannot read the object")?;
    let endian = LittleEndian;
    let sections = elf.sections(endian, object).context("cannot read the object's sections")?;
    let symbols = sections.symbols(endian, object, object::elf::SHT_SYMTAB).context("cannot read its symbols")?;
    let mut functions: HashMap<&str, u32> = HashMap::new();
    for (index, symbol) in symbols.enumerate() {
        if symbol.st_type() == STT_FUNC {
            let name = symbol.name(endian, symbols.strings()).ok().and_then(|n| std::str::from_utf8(n).ok());
            functions.extend(name.filter(|n| n.starts_with("np_")).map(|name| (name, index.0 as u32)));
        }
    }
    let twins: HashMap<u32, u32> = functions
        .iter()
        .filter_map(|(name, index)| Some((*index, *functions.get(format!("{}4", name.strip_suffix('6')?).as_str())?)))
        .collect();
    ensure!(!twins.is_empty(), "the object has no functions of IPv6");
    let mut patched = object.to_vec();
    let mut calls = 0;
    for section in sections.iter().filter(|s| s.sh_type(endian) == SHT_REL) {
        let start = usize::try_from(section.sh_offset(endian))?;
        let Some((entries, _)) = section.rel(endian, object).context("cannot read relocations")? else { continue };
        for (at, entry) in entries.iter().enumerate() {
            // `Elf64_Rel`: the offset, then type and symbol.
            let Some(twin) = twins.get(&entry.r_sym(endian)) else { continue };
            let symbol = start + at * size_of_val(entry) + 12;
            patched[symbol..symbol + 4].copy_from_slice(&twin.to_le_bytes());
            calls += 1;
        }
    }
    ensure!(calls > 0, "the object calls no function of IPv6");
    Ok(patched)
}
