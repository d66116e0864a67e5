use super::*;

/// A server that sends back what it gets, for any number of connections.
fn echo() -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            thread::spawn(move || {
                let mut back = stream.try_clone().unwrap();
                let _ = std::io::copy(&mut stream, &mut back);
                let _ = back.shutdown(Shutdown::Write);
            });
        }
    });
    address
}

fn dial(forwarder: &Forwarder) -> TcpStream {
    let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, forwarder.port())).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream
}

fn round_trip(stream: &mut TcpStream, bytes: usize) -> std::io::Result<()> {
    stream.write_all(&vec![7; bytes])?;
    stream.read_exact(&mut vec![0; bytes])
}

#[test]
fn bytes_go_through_and_are_counted() {
    let forwarder = Forwarder::start(echo(), Link::default()).unwrap();
    let mut stream = dial(&forwarder);
    stream.write_all(b"hello").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    assert_eq!(answer, b"hello");
    assert_eq!((forwarder.sent(), forwarder.received()), (5, 5));
}

#[test]
fn delay_counts_in_both_directions() {
    let link = Link { delay: Duration::from_millis(60), ..Link::default() };
    let forwarder = Forwarder::start(echo(), link).unwrap();
    let mut stream = dial(&forwarder);
    let start = Instant::now();
    round_trip(&mut stream, 10).unwrap();
    assert!(start.elapsed() >= Duration::from_millis(120));
}

#[test]
fn the_rate_is_kept() {
    let link = Link { bytes_per_second: Some(1_000_000), ..Link::default() };
    let forwarder = Forwarder::start(echo(), link).unwrap();
    let mut stream = dial(&forwarder);
    let start = Instant::now();
    round_trip(&mut stream, 200_000).unwrap();
    assert!(start.elapsed() >= Duration::from_millis(200));
}

#[test]
fn a_cut_breaks_what_is_open_and_later_connections_work() {
    let forwarder = Forwarder::start(echo(), Link::default()).unwrap();
    forwarder.cut_after(1000);
    let mut stream = dial(&forwarder);
    round_trip(&mut stream, 500).unwrap();
    let broken = (0..100).any(|_| round_trip(&mut stream, 500).is_err());
    assert!(broken && forwarder.cuts() == 1);
    round_trip(&mut dial(&forwarder), 5000).unwrap();
}

#[test]
fn refused_connections_end_at_once() {
    let forwarder = Forwarder::start(echo(), Link::default()).unwrap();
    forwarder.refuse(true);
    assert!(round_trip(&mut dial(&forwarder), 10).is_err());
    forwarder.refuse(false);
    round_trip(&mut dial(&forwarder), 10).unwrap();
}
