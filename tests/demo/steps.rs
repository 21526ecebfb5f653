//! Output of the demo: each step with its command, result and duration.

use std::time::Instant;

pub(crate) struct Steps {
    total: usize,
    begun: usize,
}

impl Steps {
    pub(crate) fn of(total: usize) -> Self {
        Self { total, begun: 0 }
    }

    /// Begins the next step; `what` is a sentence or the command as typed.
    pub(crate) fn next(&mut self, what: &str) -> Step {
        self.begun += 1;
        println!("[{}/{}] {what}", self.begun, self.total);
        Step(Instant::now())
    }
}

pub(crate) struct Step(Instant);

impl Step {
    /// Prints the result.
    pub(crate) fn done(self, lines: &[String]) {
        let took = self.0.elapsed().as_secs_f32();
        for line in lines.iter().flat_map(|l| l.lines()) {
            println!("{}", format!("      {line}").trim_end());
        }
        println!("      {took:.1} s");
    }
}
