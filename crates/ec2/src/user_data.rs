//! User data: the scripts of `infra/user-data`, with what stands between `@` signs replaced.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use rehost_control::PortError;
use rehost_control::ports::PortResult;

/// EC2 takes no more; bytes before base64.
const LONGEST: usize = 16 << 10;

/// What a replication server runs when it starts first.
pub(crate) const REPLICATOR: &str = include_str!("../../../infra/user-data/replicator.sh");

/// What a conversion server runs.
pub(crate) const CONVERTER: &str = include_str!("../../../infra/user-data/converter.sh");

/// A script with these words replaced, in base64 as `RunInstances` takes it.
///
/// # Errors
/// `Invalid` for a value that could end the quotes it stands in, and for a script that is too long.
pub(crate) fn render(script: &str, values: &[(&str, &str)]) -> PortResult<String> {
    let mut text = script.to_owned();
    for (name, value) in values {
        let harmless = |c: u8| c.is_ascii_alphanumeric() || b"-_./:+=".contains(&c);
        if !value.bytes().all(harmless) {
            return Err(PortError::invalid(format!(
                "the value of {name} for a machine's first start has odd characters: deploy again"
            )));
        }
        text = text.replace(&format!("@{name}@"), value);
    }
    if text.len() > LONGEST {
        return Err(PortError::invalid(format!(
            "{} bytes of user data; EC2 takes {LONGEST}: shorten the configuration",
            text.len()
        )));
    }
    Ok(BASE64.encode(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(rendered: &str) -> String {
        String::from_utf8(BASE64.decode(rendered).unwrap()).unwrap()
    }

    /// Words between `@` signs, such as `@REGION@`.
    fn placeholders(text: &str) -> Vec<&str> {
        let word = |part: &&str| {
            !part.is_empty() && part.bytes().all(|c| c.is_ascii_uppercase() || c.is_ascii_digit() || c == b'_')
        };
        text.split('@').filter(word).collect()
    }

    #[test]
    fn every_placeholder_of_the_scripts_is_known() {
        let config = "e30=".repeat(400);
        for (script, values) in [
            (REPLICATOR, vec![("REGION", "eu-west-1"), ("BUCKET", "b"), ("CONFIG_BASE64", config.as_str())]),
            (CONVERTER, vec![("REGION", "eu-west-1"), ("BUCKET", "b"), ("TOKEN", "t-1")]),
        ] {
            let text = plain(&render(script, &values).unwrap());
            assert_eq!(placeholders(&text), Vec::<&str>::new());
            assert!(values.iter().all(|(name, value)| script.contains(&format!("@{name}@")) && text.contains(value)));
        }
    }

    #[test]
    fn values_cannot_leave_their_quotes() {
        for value in ["a'b", "a b", "a\nb", "$(x)", "`x`", "\"", "\\"] {
            assert!(render("x='@V@'", &[("V", value)]).is_err(), "{value:?}");
        }
    }

    #[test]
    fn too_long_scripts_are_refused() {
        assert!(render(&"x".repeat(LONGEST), &[]).is_ok());
        assert!(render(&"x".repeat(LONGEST + 1), &[]).is_err());
    }
}
