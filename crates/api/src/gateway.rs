//! Callers that API Gateway has authenticated.

use axum::http::request::Parts;
use rehost_model::link::ENROL_PATH;

use crate::access::{GatewayCaller, Permission};
use crate::error::{ApiError, Exception};

/// What the caller of a request may do. Which paths an identity may call is what its IAM policies say, and the gateway refuses
/// the others: whoever comes through on a path may do what stands there.
///
/// # Errors
/// `MissingAuthenticationToken` when no gateway vouches for anybody, `AccessDenied` for an identity of another account.
pub(crate) fn verify(account: &str, request: &Parts) -> Result<Permission, ApiError> {
    let caller = request.extensions.get::<GatewayCaller>().ok_or_else(|| {
        let message = "nobody has checked who sends this request; sign it with Signature Version 4 for the service \
                       `execute-api`, and send it to the region's HTTP API";
        ApiError::new(Exception::MissingAuthenticationToken, message)
    })?;
    if caller.account != account {
        let message = format!("{} is not of the account {account}; use a role of that account", caller.user_arn);
        return Err(ApiError::new(Exception::AccessDenied, message));
    }
    let path = request.uri.path();
    tracing::info!(caller = caller.user_arn, path, "asked");
    Ok(if path == ENROL_PATH { Permission::Enrol } else { Permission::Admin })
}

#[cfg(test)]
mod tests {
    use axum::http::Request;

    use super::*;

    const ACCOUNT: &str = "123456789012";

    fn asked(path: &str, account: Option<&str>) -> Result<Permission, Exception> {
        let mut request = Request::post(path).body(()).unwrap();
        if let Some(account) = account {
            let user_arn = format!("arn:aws:iam::{account}:user/migrator");
            let caller = GatewayCaller { user_arn, account: account.to_owned(), access_key: "AKIA".to_owned() };
            request.extensions_mut().insert(caller);
        }
        verify(ACCOUNT, &request.into_parts().0).map_err(|e| e.exception())
    }

    #[test]
    fn only_callers_of_the_account_come_through() {
        let table = [
            ("/StartTest", Some(ACCOUNT), Ok(Permission::Admin)),
            (ENROL_PATH, Some(ACCOUNT), Ok(Permission::Enrol)),
            ("/rehost/v1/enrol/", Some(ACCOUNT), Ok(Permission::Admin)),
            ("/StartTest", Some("111111111111"), Err(Exception::AccessDenied)),
            ("/StartTest", Some(""), Err(Exception::AccessDenied)),
            (ENROL_PATH, None, Err(Exception::MissingAuthenticationToken)),
        ];
        for (path, account, expected) in table {
            assert_eq!(asked(path, account), expected, "{path} {account:?}");
        }
    }
}
