//! Engines' words in, the model's values out, and back. No decision about networking is taken here.

pub mod podman;
