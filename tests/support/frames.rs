//! Maximum stack use of the programs, by the rules of the strictest kernel. The verifier rejects a program if the frames of
//! nested calls exceed 512 bytes; before 6.8 each frame is rounded up to a multiple of 32, later of 16
//! (`kernel/bpf/verifier.c`, `check_max_stack_depth()`), so that a newer kernel accepts programs that an older one rejects.

use anyhow::{Context, Result};
use object::{Object, ObjectSection, ObjectSymbol, RelocationTarget, SymbolKind};
use std::collections::BTreeMap;

/// Rounding of a frame, in bytes.
const STEP: u32 = 32;
/// The size of an instruction, in bytes.
const SLOT: u64 = 8;
const FRAME_POINTER: u8 = 10;

/// The index of a section, and an offset in it.
type Place = (usize, u64);

struct Function {
    name: String,
    is_program: bool,
    frame: u32,
    calls: Vec<Place>,
}

/// A program and its call chain with the largest stack, with the frame of each function, rounded up.
#[derive(Debug)]
pub struct Deepest {
    pub bytes: u32,
    pub chain: Vec<(String, u32)>,
}

/// One entry for each program of an object.
///
/// # Errors
/// Not an object file.
pub fn deepest(object: &[u8]) -> Result<Vec<Deepest>> {
    let file = object::File::parse(object).context("the object cannot be read")?;
    let mut functions: BTreeMap<Place, Function> = BTreeMap::new();
    for symbol in file.symbols().filter(|s| s.kind() == SymbolKind::Text) {
        let section = symbol.section_index().context("a function without a section")?;
        let section = file.section_by_index(section)?;
        let (name, is_program) = (symbol.name()?.to_owned(), section.name()? != ".text");
        let begin = symbol.address() as usize;
        let code =
            section.data()?.get(begin..begin + symbol.size() as usize).context("a function out of its section")?;
        let function = Function { name, is_program, frame: frame(code), calls: Vec::new() };
        functions.insert((section.index().0, symbol.address()), function);
    }
    for section in file.sections() {
        let data = section.data()?;
        // Calls of functions elsewhere, which the linker leaves to the loader.
        let mut left: BTreeMap<u64, Place> = BTreeMap::new();
        for (at, relocation) in section.relocations() {
            let RelocationTarget::Symbol(symbol) = relocation.target() else { continue };
            let symbol = file.symbol_by_index(symbol)?;
            let (Some(slot), Some(to)) = (slot(data, at), symbol.section_index()) else { continue };
            let is_named = symbol.kind() != SymbolKind::Section;
            left.insert(at, (to.0, if is_named { symbol.address() } else { behind(0, slot) }));
        }
        for at in (0..data.len() as u64).step_by(SLOT as usize) {
            let Some(slot) = slot(data, at).filter(|s| is_call(s)) else { continue };
            let target = left.get(&at).copied().unwrap_or((section.index().0, behind(at, slot)));
            if let Some((_, caller)) = functions.range_mut((section.index().0, 0)..=(section.index().0, at)).next_back()
            {
                caller.calls.push(target);
            }
        }
    }
    let programs = functions.iter().filter(|(_, f)| f.is_program);
    Ok(programs.map(|(place, _)| below(&functions, *place)).collect())
}

fn below(functions: &BTreeMap<Place, Function>, place: Place) -> Deepest {
    let Some(function) = functions.get(&place) else { return Deepest { bytes: 0, chain: Vec::new() } };
    let own = function.frame.max(1).next_multiple_of(STEP);
    let next = function.calls.iter().map(|c| below(functions, *c)).max_by_key(|d| d.bytes);
    let next = next.unwrap_or(Deepest { bytes: 0, chain: Vec::new() });
    let chain = std::iter::once((function.name.clone(), own)).chain(next.chain).collect();
    Deepest { bytes: own + next.bytes, chain }
}

/// The size of a function's frame: the lowest byte that an instruction reaches from the frame pointer, or from a copy of it
/// to which the next instruction with that register adds.
fn frame(code: &[u8]) -> u32 {
    let mut copies = [false; 16];
    let mut frame = 0;
    for slot in code.chunks_exact(SLOT as usize) {
        let (opcode, to, from) = (slot[0], slot[1] & 0xf, slot[1] >> 4);
        let offset = i32::from(i16::from_le_bytes([slot[2], slot[3]]));
        let reached = match (opcode & 7, opcode) {
            (1, _) if from == FRAME_POINTER => offset,
            (2 | 3, _) if to == FRAME_POINTER => offset,
            (_, 0x07) if copies[usize::from(to)] => immediate(slot),
            _ => 0,
        };
        frame = frame.max(reached.min(0).unsigned_abs());
        if matches!(opcode & 7, 1 | 7) {
            copies[usize::from(to)] = opcode == 0xbf && from == FRAME_POINTER;
        }
    }
    frame
}

fn slot(code: &[u8], at: u64) -> Option<&[u8]> {
    code.get(at as usize..(at + SLOT) as usize)
}

/// The target of a call at `at`: its immediate counts instructions from the next one on.
fn behind(at: u64, slot: &[u8]) -> u64 {
    (at as i64 + (i64::from(immediate(slot)) + 1) * SLOT as i64) as u64
}

/// Whether it calls another function of the object, not a helper.
fn is_call(slot: &[u8]) -> bool {
    slot[0] == 0x85 && slot[1] >> 4 == 1
}

fn immediate(slot: &[u8]) -> i32 {
    i32::from_le_bytes([slot[4], slot[5], slot[6], slot[7]])
}
