//! Runs inside the containers of the engine tests: a server that tells each client its own name and the client's address.
//!
//! `peer FIRST [LAST]` answers on these ports, TCP and UDP, IPv4 and IPv6, each line with a line: `HOSTNAME:PORT sees ADDRESS`,
//! so that a client knows which server it reached, and from which address.
//!
//! `peer from tcp|udp PORT TO` connects, or sends one datagram, from `PORT` to the address and port `TO`.

#![allow(unused_crate_dependencies, reason = "checked in support/lib.rs, for all targets of the package")]

use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::AsRawFd;

fn main() -> std::io::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [from, proto, port, to] = arguments.as_slice()
        && from == "from"
    {
        let port: u16 = port.parse().map_err(std::io::Error::other)?;
        return speak_first(proto, port, to.parse().map_err(std::io::Error::other)?);
    }
    let ports: Vec<u16> = arguments.iter().filter_map(|a| a.parse().ok()).collect();
    let (Some(&first), Some(&last)) = (ports.first(), ports.last()) else {
        eprintln!("usage: peer FIRST [LAST]");
        std::process::exit(2);
    };
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname")?.trim().to_owned();
    for port in first..=last {
        let tcp = TcpListener::bind(("::", port))?;
        let udp = UdpSocket::bind(("::", port))?;
        let own = name.clone();
        std::thread::spawn(move || {
            for client in tcp.incoming().flatten() {
                let own = own.clone();
                std::thread::spawn(move || {
                    let Ok(from) = client.peer_addr() else { return };
                    for _ in BufReader::new(&client).lines().map_while(Result::ok) {
                        if (&client).write_all(line(&own, port, from).as_bytes()).is_err() {
                            return;
                        }
                    }
                });
            }
        });
        let own = name.clone();
        std::thread::spawn(move || {
            let mut buffer = [0; 2048];
            while let Ok((_, from)) = udp.recv_from(&mut buffer) {
                let _ = udp.send_to(line(&own, port, from).as_bytes(), from);
            }
        });
    }
    println!("serving {first} to {last}");
    loop {
        std::thread::park();
    }
}

fn speak_first(proto: &str, port: u16, to: SocketAddr) -> std::io::Result<()> {
    use nix::sys::socket::{
        AddressFamily, SockFlag, SockType, SockaddrStorage, bind, connect, setsockopt, socket, sockopt,
    };
    let (any, family) = if to.is_ipv4() { ("0.0.0.0", AddressFamily::Inet) } else { ("::", AddressFamily::Inet6) };
    if proto == "udp" {
        return UdpSocket::bind((any, port))?.send_to(b"first\n", to).map(drop);
    }
    let from = SocketAddr::new(any.parse().map_err(std::io::Error::other)?, port);
    let fd = socket(family, SockType::Stream, SockFlag::empty(), None)?;
    setsockopt(&fd, sockopt::ReuseAddr, &true)?;
    bind(fd.as_raw_fd(), &SockaddrStorage::from(from))?;
    connect(fd.as_raw_fd(), &SockaddrStorage::from(to))?;
    Ok(())
}

fn line(own: &str, port: u16, from: SocketAddr) -> String {
    let ip = match from.ip() {
        IpAddr::V6(a) => a.to_ipv4_mapped().map_or(IpAddr::V6(a), IpAddr::V4),
        v4 => v4,
    };
    format!("{own}:{port} sees {ip}\n")
}
