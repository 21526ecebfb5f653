//! What Podman sends and expects: command line, documents, answers, and what they leave in the kernel.

mod command_line;
mod example;
mod macvlan;
mod options;
mod own;
mod owners;
mod refused;
mod repeated;
