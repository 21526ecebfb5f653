//! Cost of the programs that can be counted: instructions as the verifier counts them, and stack. The bench measures time.

use anyhow::{Result, ensure};
use aya::VerifierLogLevel;
use support::frames::deepest;
use support::need::{self, say};
use support::object::load_for_v4;
use support::packet::{accept, explained, load};

#[test]
fn every_program_is_accepted_by_the_verifier() -> Result<()> {
    need!(need::root(), need::bpf());
    let (mut lines, mut refused) = (Vec::new(), Vec::new());
    let (mut both, mut v4) = (load(VerifierLogLevel::STATS)?, load_for_v4(VerifierLogLevel::STATS)?);
    let all = both.programs_mut().map(|p| ("", p)).chain(v4.programs_mut().map(|p| ("-v4", p)));
    for (families, (name, program)) in all {
        match accept(program).and_then(|()| program.info()) {
            Ok(i) => {
                let count = i.verified_instruction_count().unwrap_or(0);
                lines.push(format!("{name}{families}: {count} verified instructions"));
            }
            Err(_) => refused.push(format!("{name}{families}: {}", explained(name))),
        }
    }
    ensure!(refused.is_empty(), "{} programs are refused:\n{}", refused.len(), refused.join("\n\n"));
    ensure!(lines.len() == 42, "21 programs for each choice of families, and not {}", lines.len());
    lines.sort();
    lines.iter().for_each(|line| say(line));
    Ok(())
}

/// Detects on every kernel what only an old kernel rejects.
#[test]
fn no_chain_of_calls_needs_more_stack_than_the_oldest_kernel_has() -> Result<()> {
    const MOST: u32 = 512;
    let programs = deepest(&support::object::bytes()?)?;
    ensure!(programs.len() == 21, "21 programs, and not {}", programs.len());
    let too_deep: Vec<String> = programs.iter().filter(|d| d.bytes > MOST).map(|d| format!("{d:?}")).collect();
    ensure!(too_deep.is_empty(), "more than {MOST} bytes in {} programs:\n{}", too_deep.len(), too_deep.join("\n"));
    Ok(())
}
