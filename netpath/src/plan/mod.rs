//! Desired state → ordered steps, each with what takes it back. Knows only the model: the steps are done by a `Host`.
