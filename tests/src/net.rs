//! Ports and a small HTTP client: enough to ask a page whether it is there.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use crate::error::{Context, Error, Result};

/// An HTTP answer.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// The body, as sent.
    pub body: Vec<u8>,
}

impl Answer {
    /// The body as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// A port of the loopback interface that was free a moment ago.
///
/// # Errors
/// When the system has none.
pub fn free_port() -> Result<u16> {
    let socket = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context(|| "find a free port".to_owned())?;
    Ok(socket.local_addr().context(|| "find a free port".to_owned())?.port())
}

/// Asks `http://127.0.0.1:PORT PATH` once; `patience` bounds the connection and every silence.
///
/// # Errors
/// When nothing listens, the answer does not come in time, or it is not HTTP.
pub fn http_get(port: u16, path: &str, patience: Duration) -> Result<Answer> {
    request(port, &format!("GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n"), &[], patience)
}

/// Posts `body` to `http://127.0.0.1:PORT PATH`.
///
/// # Errors
/// As [`http_get`].
pub fn http_post(port: u16, path: &str, body: &[u8], patience: Duration) -> Result<Answer> {
    let head = format!("POST {path} HTTP/1.0\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n", body.len());
    request(port, &head, body, patience)
}

/// Sends a request of any method with these headers to `http://127.0.0.1:PORT PATH`.
///
/// # Errors
/// As [`http_get`].
pub fn http_request(
    port: u16,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
    patience: Duration,
) -> Result<Answer> {
    let mut head = format!("{method} {path} HTTP/1.0\r\nHost: localhost\r\nContent-Length: {}\r\n", body.len());
    for (name, value) in headers {
        head += &format!("{name}: {value}\r\n");
    }
    request(port, &(head + "\r\n"), body, patience)
}

/// Asks until the answer is 200, for at most `limit`. A guest's port accepts before the guest listens: silence counts
/// as not yet.
///
/// # Errors
/// [`Error::Timeout`] with the last answer or error seen.
pub fn wait_http(port: u16, path: &str, limit: Duration) -> Result<Answer> {
    wait_http_while(port, path, limit, || Ok(()))
}

pub(crate) fn wait_http_while(
    port: u16,
    path: &str,
    limit: Duration,
    mut alive: impl FnMut() -> Result<()>,
) -> Result<Answer> {
    let start = Instant::now();
    loop {
        let seen = match http_get(port, path, Duration::from_secs(2)) {
            Ok(answer) if answer.status == 200 => return Ok(answer),
            Ok(answer) => format!("status {}", answer.status),
            Err(error) => error.to_string(),
        };
        alive()?;
        if start.elapsed() >= limit {
            return Err(Error::Timeout { what: format!("an answer on port {port}{path}"), after: limit, seen });
        }
        thread::sleep(Duration::from_millis(100));
    }
}

fn request(port: u16, head: &str, body: &[u8], patience: Duration) -> Result<Answer> {
    let what = || format!("ask 127.0.0.1:{port}");
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let mut stream = TcpStream::connect_timeout(&address, patience).context(what)?;
    stream.set_read_timeout(Some(patience)).context(what)?;
    stream.set_write_timeout(Some(patience)).context(what)?;
    stream.write_all(head.as_bytes()).context(what)?;
    stream.write_all(body).context(what)?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).context(what)?;
    parse(&answer)
        .ok_or_else(|| Error::Unexpected(format!("127.0.0.1:{port} did not answer in HTTP ({} bytes)", answer.len())))
}

fn parse(answer: &[u8]) -> Option<Answer> {
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n")?;
    let head = std::str::from_utf8(answer.get(..end)?).ok()?;
    let status = head.strip_prefix("HTTP/1.")?.split(' ').nth(1)?.trim_end().parse().ok()?;
    Some(Answer { status, body: answer.get(end + 4..)?.to_vec() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_parsed() {
        let answer = parse(b"HTTP/1.1 200 OK\r\nServer: x\r\n\r\nhello").unwrap();
        assert_eq!((answer.status, answer.text().as_str()), (200, "hello"));
        assert!(parse(b"").is_none());
        assert!(parse(b"SSH-2.0-OpenSSH\r\n\r\n").is_none());
        assert!(parse(b"HTTP/1.1 200 OK\r\n").is_none());
    }

    #[test]
    fn waiting_ends_with_what_was_seen() {
        let port = free_port().unwrap();
        let error = wait_http(port, "/", Duration::from_millis(300)).unwrap_err();
        assert!(matches!(error, Error::Timeout { .. }));
        assert!(error.to_string().contains("refused"), "{error}");
    }
}
