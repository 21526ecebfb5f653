//! What netpath keeps on disk of one host namespace: records, the rung in use, sysctl values to put back, the lock.
