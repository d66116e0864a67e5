use super::*;

#[test]
fn user_space_counts_as_booted() {
    for console in [
        "Debian GNU/Linux 12 onprem ttyS0\r\n\r\nonprem login: ",
        "[  OK  ] Reached target network.target - Network.",
        "[    1.2] Run /sbin/init as init process",
        "Kernel panic - not syncing\r\nLinux version 6.1\r\nonprem login: ",
        "dracut (Initramfs)!\r\nReached target initrd.target\r\nStarting Switch Root...\r\nReached target multi-user.target",
    ] {
        assert!(boot(console).passed, "{console}");
    }
}

#[test]
fn what_stops_before_user_space_does_not() {
    for (console, detail) in [
        ("", "not show user space"),
        ("Welcome to GRUB!\r\nLoading Linux 6.1 ...", "not show user space"),
        ("[    1.2] Run /init as init process", "not show user space"),
        ("Gave up waiting for root file system device.  Common problems:", "root file system does not appear"),
        ("Run /init as init process\r\nKernel panic - not syncing: Attempted to kill init!", "panicked"),
        ("Reached target Emergency Mode\r\nYou are in emergency mode.", "emergency mode"),
        ("Debian (Initramfs)!\r\n[  OK  ] Reached target initrd-root-device.target", "not show user space"),
    ] {
        let outcome = boot(console);
        assert!(!outcome.passed && outcome.detail.contains(detail), "{console}: {outcome:?}");
    }
}

#[test]
fn only_an_established_connection_of_the_port_counts() {
    let table = "Hub -1 (net0):\r\n  Protocol[State]    FD  Source Address  Port   Dest. Address  Port RecvQ SendQ\r\n  \
                 TCP[SYN_SENT]      14       127.0.0.1 18999       10.0.2.15    80     0     0\r\n  \
                 TCP[ESTABLISHED]   15       127.0.0.1 18998       10.0.2.15    22     0     0\r\n  \
                 TCP[HOST_FORWARD]   9       127.0.0.1 18999       10.0.2.15    80     0     0\r\n";
    assert!(has_established(table, 18998, 22));
    assert!(!has_established(table, 18999, 80));
    assert!(!has_established(table, 18998, 80));
}

#[test]
fn statuses_are_read_from_the_first_line() {
    assert_eq!(status(b"HTTP/1.0 404 Not Found\r\nX: 1"), Some(404));
    assert_eq!(status(b"HTTP/1.1 99\r\n"), None);
    assert_eq!(status(b"SSH-2.0-OpenSSH_9.2\r\n"), None);
    assert_eq!(status(b""), None);
}

/// One connection is answered with `answer`.
async fn server(answer: &'static [u8]) -> SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut request = [0u8; 1024];
        let _ = stream.read(&mut request).await;
        stream.write_all(answer).await.unwrap();
    });
    address
}

#[tokio::test]
async fn http_passes_below_500() {
    for (answer, passes, detail) in [
        (&b"HTTP/1.1 200 OK\r\n\r\nhello"[..], true, "HTTP 200"),
        (b"HTTP/1.0 404 Not Found\r\n\r\n", true, "HTTP 404"),
        (b"HTTP/1.1 503 Service Unavailable\r\n\r\n", false, "HTTP 503"),
        (b"", false, "connection refused, or closed without an answer"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", false, "the answer is not HTTP"),
    ] {
        let outcome = bounded(http(server(answer).await, "/")).await;
        assert_eq!((outcome.passed, outcome.detail.as_str()), (passes, detail));
    }
}
