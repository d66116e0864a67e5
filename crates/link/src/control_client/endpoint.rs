//! The address of a control plane.

use std::fmt;
use std::str::FromStr;

use super::ControlError;

const HTTPS_PORT: u16 = 443;

/// `https://host[:port]`, without a path; the scheme may be left out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    host: String,
    port: u16,
}

impl Endpoint {
    /// The host name or address; an IPv6 address without its brackets.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port, 443 unless given.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// What stands in the `host` header: the port is left out when it is the scheme's own.
    #[must_use]
    pub fn authority(&self) -> String {
        let bracketed = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        if self.port == HTTPS_PORT { bracketed } else { format!("{bracketed}:{}", self.port) }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "https://{}", self.authority())
    }
}

impl FromStr for Endpoint {
    type Err = ControlError;

    fn from_str(text: &str) -> Result<Self, ControlError> {
        let wrong = |reason| ControlError::Endpoint { text: text.chars().take(200).collect(), reason };
        if text.starts_with("http://") {
            return Err(wrong("the agent's endpoint is https (the same port serves both)"));
        }
        let rest = text.strip_prefix("https://").unwrap_or(text);
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let authority: http::uri::Authority =
            rest.parse().map_err(|_| wrong("it is not a host with an optional port"))?;
        if authority.as_str().contains('@') {
            return Err(wrong("it must not hold a user name"));
        }
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        let after_host = authority.as_str().rsplit_once(']').map_or(authority.as_str(), |(_, rest)| rest);
        let port = match after_host.rsplit_once(':') {
            None => HTTPS_PORT,
            Some((_, port)) => {
                port.parse().ok().filter(|p| *p > 0).ok_or(wrong("its port is not a number from 1 to 65535"))?
            }
        };
        if host.is_empty() {
            return Err(wrong("the host is missing"));
        }
        Ok(Self { host, port })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_read_with_and_without_scheme_and_port() {
        let table = [
            ("https://control.example", "control.example", 443, "control.example"),
            ("https://control.example/", "control.example", 443, "control.example"),
            ("10.0.2.2:8443", "10.0.2.2", 8443, "10.0.2.2:8443"),
            ("https://[::1]:8443", "::1", 8443, "[::1]:8443"),
            ("https://[::1]", "::1", 443, "[::1]"),
        ];
        for (text, host, port, authority) in table {
            let endpoint: Endpoint = text.parse().unwrap();
            assert_eq!((endpoint.host(), endpoint.port(), endpoint.authority().as_str()), (host, port, authority));
            assert_eq!(endpoint.to_string().parse::<Endpoint>().unwrap(), endpoint);
        }
    }

    #[test]
    fn anything_else_is_refused_with_the_reason() {
        for text in
            ["", "http://a", "https://a/b", "https://u@a", "a:0", "a:99999", "a:b", "https://", "ftp://a", "a b"]
        {
            assert!(matches!(text.parse::<Endpoint>(), Err(ControlError::Endpoint { .. })), "{text}");
        }
    }
}
