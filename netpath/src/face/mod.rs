//! Translates between an engine's documents and the model. Faces take no decision about networking.

pub mod podman;
