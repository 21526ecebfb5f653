//! netpath, on the datapath that it chooses by itself, beside real software that filters and translates on the same host:
//! what was published is served, what leaves is masqueraded, names are answered, and rules that close a port hold.

mod docker;
mod firewalld;
mod libvirt;
mod rig;
mod rules;
mod translated;
mod ufw;
