//! Published ports and outbound traffic, from every kind of client.

use super::*;
use anyhow::ensure;
use support::podman::image::PAGE;

pub(crate) fn a_page_is_fetched_from_outside_and_from_the_host(m: &Machine) -> Result<()> {
    run_httpd(m, "web", &["-p", "8080:80"])?;
    assert_eq!(PAGE, page_outside(m, HOST, 8080)?);
    logs_until(m, "web", &format!("[::ffff:{CLIENT}]"))?;
    assert_eq!(PAGE, page_inside(m, LOCALHOST, 8080)?);
    assert_eq!(PAGE, page_inside(m, HOST, 8080)?);
    let own = m.address("web", "podman")?;
    assert_eq!(PAGE, page_inside(m, own, 80)?);
    // Not possible with netfilter: ::1, and ::1 of a container without IPv6.
    if m.backend() == Backend::Netpath(None) {
        assert_eq!(PAGE, page_inside(m, LOCALHOST6, 8080)?);
    }
    check_rung(m)?;
    m.podman(&["rm", "-f", "-t", "0", "web"])?;
    m.client(|| reach::silent(SocketAddr::new(HOST, 8080)))??;
    m.host(|| reach::silent(SocketAddr::new(LOCALHOST, 8080)))?
}

pub(crate) fn a_udp_port_answers_from_the_address_that_was_asked(m: &Machine) -> Result<()> {
    run_peer(m, "dns", &["5300"], &["-p", "5353:5300/udp", "-p", "5353:5300/tcp"])?;
    let host = SocketAddr::new(HOST, 5353);
    assert_eq!(format!("dns:5300 sees {CLIENT}"), m.client(|| reach::udp(host))??);
    assert_eq!(format!("dns:5300 sees {CLIENT}"), m.client(|| reach::udp_connected(host))??);
    assert_eq!(format!("dns:5300 sees {CLIENT}"), m.client(|| reach::tcp(host))??);
    for to in [host, SocketAddr::new(LOCALHOST, 5353)] {
        for ask in [reach::udp, reach::udp_connected, reach::tcp] {
            let answer = m.host(|| ask(to))??;
            ensure!(answer.starts_with("dns:5300 sees "), "{to}: {answer}");
        }
    }
    check_rung(m)
}

pub(crate) fn a_range_leads_each_port_to_its_own(m: &Machine) -> Result<()> {
    run_peer(m, "many", &["7000", "7009"], &["-p", "9000-9009:7000-7009", "-p", "9000-9009:7000-7009/udp"])?;
    for offset in [0, 1, 5, 9] {
        let (to, expected) = (SocketAddr::new(HOST, 9000 + offset), format!("many:{} sees {CLIENT}", 7000 + offset));
        assert_eq!(expected, m.client(|| reach::tcp(to))??);
        assert_eq!(expected, m.client(|| reach::udp(to))??);
        let local = SocketAddr::new(LOCALHOST, 9000 + offset);
        let inside = m.host(|| reach::tcp(local))??;
        ensure!(inside.starts_with(&format!("many:{} ", 7000 + offset)), "{local}: {inside}");
    }
    m.client(|| reach::silent(SocketAddr::new(HOST, 9010)))??;
    m.client(|| reach::silent(SocketAddr::new(HOST, 8999)))??;
    check_rung(m)
}

pub(crate) fn a_port_of_localhost_is_not_reached_from_outside(m: &Machine) -> Result<()> {
    run_httpd(m, "private", &["-p", "127.0.0.1:8081:80"])?;
    run_httpd(m, "public", &["-p", &format!("{HOST}:8082:80")])?;
    assert_eq!(PAGE, page_inside(m, LOCALHOST, 8081)?);
    m.client(|| reach::silent(SocketAddr::new(HOST, 8081)))??;
    m.host(|| reach::silent(SocketAddr::new(HOST, 8081)))??;
    assert_eq!(PAGE, page_outside(m, HOST, 8082)?);
    assert_eq!(PAGE, page_inside(m, HOST, 8082)?);
    m.host(|| reach::silent(SocketAddr::new(LOCALHOST, 8082)))??;
    check_rung(m)
}

pub(crate) fn an_ipv6_client_is_seen_with_its_own_address(m: &Machine) -> Result<()> {
    m.podman(&["network", "create", "--ipv6", "--subnet", "10.89.6.0/24", "--subnet", "fd00:6::/64", "six"])?;
    run_peer(m, "both", &["80"], &["--network", "six", "-p", "8080:80", "-p", "8080:80/udp"])?;
    let (host4, host6) = (SocketAddr::new(HOST, 8080), SocketAddr::new(HOST6, 8080));
    for ask in [reach::tcp, reach::udp, reach::udp_connected] {
        assert_eq!(format!("both:80 sees {CLIENT}"), m.client(|| ask(host4))??);
        assert_eq!(format!("both:80 sees {CLIENT6}"), m.client(|| ask(host6))??);
        for to in [host4, host6] {
            let answer = m.host(|| ask(to))??;
            ensure!(answer.starts_with("both:80 sees "), "{to}: {answer}");
        }
        // Netfilter cannot serve ::1.
        if m.backend() == Backend::Netpath(None) {
            let answer = m.host(|| ask(SocketAddr::new(LOCALHOST6, 8080)))??;
            ensure!(answer.starts_with("both:80 sees "), "::1: {answer}");
        }
    }
    check_rung(m)
}

pub(crate) fn a_container_reaches_published_ports_by_the_host_address(m: &Machine) -> Result<()> {
    m.podman(&["network", "create", "other"])?;
    run_httpd(m, "web", &["-p", "8080:80"])?;
    run_httpd(m, "neighbour", &[])?;
    run_httpd(m, "stranger", &["--network", "other"])?;
    page_outside(m, HOST, 8080)?;
    // With br_netfilter, Netavark's bridge does not send a frame back to its port.
    let own = if m.backend() == Backend::Netavark { None } else { Some("web") };
    for from in ["neighbour", "stranger"].into_iter().chain(own) {
        let page = page_from(m, from, &format!("http://{HOST}:8080/")).with_context(|| format!("from {from}"))?;
        assert_eq!(PAGE.trim_end(), page);
    }
    // The bridge's own address is an address of the host.
    assert_eq!(PAGE.trim_end(), page_from(m, "neighbour", "http://10.88.0.1:8080/")?);
    check_rung(m)
}

pub(crate) fn a_container_reaches_the_outside_as_the_host(m: &Machine) -> Result<()> {
    let far = IpAddr::V4(support::podman::FAR);
    let server = m.client(|| std::net::TcpListener::bind((far, 8000)))??;
    let thread = std::thread::spawn(move || -> Result<SocketAddr> {
        let (mut stream, from) = server.accept()?;
        std::io::Read::read(&mut stream, &mut [0; 512])?;
        std::io::Write::write_all(&mut stream, b"HTTP/1.0 200 OK\r\n\r\nfar away\n")?;
        Ok(from)
    });
    run_httpd(m, "web", &["--cap-add", "net_raw"])?;
    assert_eq!("far away", page_from(m, "web", &format!("http://{far}:8000/"))?);
    let seen = thread.join().map_err(|_| anyhow::anyhow!("the server panicked"))??;
    assert_eq!(HOST, seen.ip());
    m.podman(&["exec", "web", "ping", "-c", "1", "-W", "3", &far.to_string()])?;
    check_rung(m)
}

pub(crate) fn a_udp_client_reaches_the_container_that_took_the_place(m: &Machine) -> Result<()> {
    // One socket, as of a resolver or a game client: its flow exists when the container is removed.
    let publish = ["-p", "5353:5300/udp"];
    run_peer(m, "first", &["5300"], &publish)?;
    let to = SocketAddr::new(HOST, 5353);
    let socket = m.client(|| std::net::UdpSocket::bind((CLIENT, 40_000)))??;
    let ask = || -> Result<String> {
        socket.set_read_timeout(Some(Duration::from_millis(500)))?;
        socket.send_to(b"who\n", to)?;
        let mut buffer = [0; 512];
        let len = support::traffic::again(|| socket.recv(&mut buffer)).context("no answer")?;
        Ok(String::from_utf8_lossy(&buffer[..len]).trim_end().to_owned())
    };
    assert_eq!(format!("first:5300 sees {CLIENT}"), reach::eventually(Duration::from_secs(3), ask)?);
    m.podman(&["rm", "-f", "-t", "0", "first"])?;
    ensure!(ask().is_err(), "a removed container answers");
    // Another address, so that an old flow leads nowhere.
    run_peer(m, "second", &["5300"], &[&publish[..], &["--ip", "10.88.0.77"]].concat())?;
    let answer = reach::eventually(Duration::from_secs(3), ask);
    // Netavark keeps the old flow (netavark#1045).
    if m.backend() != Backend::Netavark {
        assert_eq!(format!("second:5300 sees {CLIENT}"), answer?);
    }
    check_rung(m)
}

/// conmon holds the published port meanwhile.
pub(crate) fn a_container_that_speaks_first_keeps_its_published_port(m: &Machine) -> Result<()> {
    m.podman(&["network", "create", "--ipv6", "--subnet", "10.89.6.0/24", "--subnet", "fd00:6::/64", "six"])?;
    run_httpd(m, "phone", &["--network", "six", "-p", "5060:5060/udp", "-p", "5061:5061/tcp"])?;
    let bound = m.run_on_host("cat", &["/proc/net/tcp", "/proc/net/udp", "/proc/net/tcp6", "/proc/net/udp6"])?;
    ensure!(bound.contains(":13C4 ") && bound.contains(":13C5 "), "nothing holds the ports on the host: {bound}");
    for (client, host) in [(CLIENT, HOST), (CLIENT6, HOST6)] {
        let to = SocketAddr::new(client, 8000);
        let (tcp, udp) = m.client(|| -> Result<_> {
            let udp = std::net::UdpSocket::bind(to)?;
            udp.set_read_timeout(Some(Duration::from_secs(3)))?;
            Ok((std::net::TcpListener::bind(to)?, udp))
        })??;
        tcp.set_nonblocking(true)?;
        m.podman(&["exec", "phone", "peer", "from", "udp", "5060", &to.to_string()])?;
        let (_, from) = support::traffic::again(|| udp.recv_from(&mut [0; 512])).context("no datagram")?;
        assert_eq!(SocketAddr::new(host, 5060), from);
        m.podman(&["exec", "phone", "peer", "from", "tcp", "5061", &to.to_string()])?;
        let (_, from) = tcp.accept().context("no connection")?;
        assert_eq!(SocketAddr::new(host, 5061), from);
    }
    check_rung(m)
}
