//! Real traffic through real namespaces: data and the source address that the server saw, on every rung.

mod publish;
