//! The verbs, and the one place that puts link, datapath and store together.
