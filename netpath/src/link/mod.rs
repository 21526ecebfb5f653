//! The kernel's links, addresses, routes and sysctls behind typed calls. Netlink words stay in here, no child process
//! is ever started, and every call may be repeated.
