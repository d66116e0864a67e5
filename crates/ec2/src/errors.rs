//! What EC2's refusals mean: each code becomes a kind of [`PortError`], and where it can be said, how to mend it.
//!
//! EC2 has hundreds of codes and adds more; the table names those that this crate's calls can meet, in the order in which they
//! are tried: a later rule is more general. The codes are those of "Error codes for the Amazon EC2 API" in EC2's API reference.

use std::fmt::Display;

use aws_sdk_ec2::config::http::HttpResponse;
use aws_sdk_ec2::error::{ProvideErrorMetadata, SdkError};
use rehost_control::{PortError, PortErrorKind};

use PortErrorKind::{Conflict, Denied, Invalid, NotFound, Quota, Throttled, Unavailable};

/// Some refusals come with kilobytes of an encoded explanation; characters.
const LONGEST_MESSAGE: usize = 500;

/// From here on a message of `UnauthorizedOperation` is for machines.
const ENCODED: &str = "Encoded authorization failure message";

/// The error of a call that failed: `action` as IAM names it (`ec2:CreateVolume`), `subject` is what it was for.
pub(crate) fn failed<E>(action: &str, subject: impl Display, error: &SdkError<E, HttpResponse>) -> PortError
where
    E: ProvideErrorMetadata + std::error::Error + 'static,
{
    let SdkError::ServiceError(refusal) = error else {
        return unanswered(action, &subject, error);
    };
    let (status, code) = (refusal.raw().status().as_u16(), refusal.err().code());
    let Meaning { kind, remedy } = meaning(code.unwrap_or_default(), status);
    let code = code.map_or_else(|| format!("status {status}"), str::to_owned);
    let message = shortened(refusal.err().message().unwrap_or("no reason was given"));
    let remedy = if kind == Denied && remedy.is_empty() { needed(action) } else { remedy.to_owned() };
    let remedy = if remedy.is_empty() { remedy } else { format!("; {remedy}") };
    PortError::new(kind, format!("{action} for {subject}: {code}: {message}{remedy}"))
}

/// What the role lacks. A launch is refused as a whole for any one thing that its launch template brings.
fn needed(action: &str) -> String {
    match action {
        "ec2:RunInstances" => format!("the role needs {action}{FOR_A_LAUNCH}"),
        _ => format!("the role needs {action}"),
    }
}

/// The code of a refusal, when it is one.
pub(crate) fn code<E: ProvideErrorMetadata>(error: &SdkError<E, HttpResponse>) -> Option<&str> {
    error.as_service_error().and_then(ProvideErrorMetadata::code)
}

fn unanswered<E>(action: &str, subject: &dyn Display, error: &SdkError<E, HttpResponse>) -> PortError
where
    E: std::error::Error + 'static,
{
    let cause = shortened(&causes(error));
    match error {
        SdkError::ConstructionFailure(_) => {
            PortError::invalid(format!("{action} for {subject} cannot be asked: {cause}"))
        }
        _ => PortError::unavailable(format!("{action} for {subject} was not answered: {cause}")),
    }
}

/// An SDK error says little itself; its sources do.
fn causes(error: &dyn std::error::Error) -> String {
    let chain = std::iter::successors(Some(error), |error| error.source());
    chain.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

fn shortened(message: &str) -> String {
    let message = message.split(ENCODED).next().unwrap_or_default().trim_end();
    message.chars().take(LONGEST_MESSAGE).collect()
}

/// What a code means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Meaning {
    pub(crate) kind: PortErrorKind,
    /// How to mend it; empty where the message alone can say.
    pub(crate) remedy: &'static str,
}

/// The meaning of a refusal by its code, or where that is unknown by its HTTP status.
pub(crate) fn meaning(code: &str, status: u16) -> Meaning {
    let code = code.strip_prefix("Client.").or_else(|| code.strip_prefix("Server.")).unwrap_or(code);
    let rule = RULES.iter().find(|(pattern, _, _)| matches(pattern, code));
    match rule {
        Some((_, kind, remedy)) => Meaning { kind: *kind, remedy },
        None => Meaning { kind: by_status(status), remedy: "" },
    }
}

fn by_status(status: u16) -> PortErrorKind {
    match status {
        403 | 401 => Denied,
        404 => NotFound,
        429 => Throttled,
        500.. => Unavailable,
        _ => Invalid,
    }
}

/// `*` at the beginning or at the end stands for anything.
fn matches(pattern: &str, code: &str) -> bool {
    match (pattern.strip_prefix('*'), pattern.strip_suffix('*')) {
        (Some(end), _) => code.ends_with(end),
        (_, Some(start)) => code.starts_with(start),
        _ => pattern == code,
    }
}

const FOR_A_LAUNCH: &str = " for all that the launch template brings (capacity reservation, host, placement group, key pair, interfaces, \
                            license configuration), and iam:PassRole for its instance profile's role (the stack's parameter \
                            TargetRoleArns)";
const KEY: &str = "let the key's policy allow the account's roles to use it with EBS (kms:CreateGrant, kms:Decrypt, \
                   kms:GenerateDataKeyWithoutPlaintext), or choose another key in the replication settings";
const TEMPLATE: &str = "name a launch template of this account and region in the launch settings (ec2LaunchTemplateID), or deploy the \
                        stack again if it is the stack's own";
const NETWORK: &str =
    "name one that exists in this region in the replication settings, the launch template or the stack's parameters";
const CAPACITY: &str = "choose another instance type, or a subnet in another availability zone";
const ADDRESSES: &str = "free addresses in the subnet or choose a larger one";
const LIMIT: &str = "ask for a higher quota (Service Quotas), or delete what is not needed";
const LATER: &str = "it is tried again";
const ADDRESS_IN_USE: &str = "free the address, or turn copyPrivateIp off in the launch settings";
const MODIFIED: &str = "EBS lets a volume be modified again only after six hours";

/// Code (or pattern), kind and remedy.
const RULES: &[(&str, PortErrorKind, &str)] = &[
    // Too fast.
    ("RequestLimitExceeded", Throttled, LATER),
    ("*ThrottlingException", Throttled, LATER),
    ("Throttling", Throttled, LATER),
    ("ThrottledException", Throttled, LATER),
    ("EC2ThrottledException", Throttled, LATER),
    ("RequestThrottled", Throttled, LATER),
    ("RequestThrottledException", Throttled, LATER),
    ("TooManyRequestsException", Throttled, LATER),
    ("BandwidthLimitExceeded", Throttled, LATER),
    ("SlowDown", Throttled, LATER),
    ("ConcurrentLimitExceededException", Throttled, LATER),
    (
        "ConcurrentSnapshotLimitExceeded",
        Throttled,
        "earlier snapshots of the volume must be complete first; it is tried again",
    ),
    ("SnapshotCreationPerVolumeRateExceeded", Throttled, "one snapshot of a volume in 15 seconds; it is tried again"),
    ("VolumeModificationRateExceeded", Throttled, MODIFIED),
    ("VolumeModificationSizeLimitExceeded", Quota, LIMIT),
    // Keys, before what is missing or denied in general.
    ("InvalidKMSKey*", Denied, KEY),
    ("KMS*", Denied, KEY),
    ("KmsKey*", Denied, KEY),
    // Not allowed.
    ("UnauthorizedOperation", Denied, ""),
    ("AccessDenied", Denied, ""),
    ("AccessDeniedException", Denied, ""),
    ("AuthFailure", Denied, ""),
    ("UnrecognizedClientException", Denied, ""),
    ("InvalidClientTokenId", Denied, ""),
    ("OptInRequired", Denied, "the account is not signed up for this service"),
    ("PendingVerification", Denied, "AWS still verifies the account"),
    ("OperationNotPermitted", Denied, "turn the instance's termination or stop protection off"),
    ("RequestExpired", Unavailable, LATER),
    ("ExpiredToken*", Unavailable, LATER),
    // Limits and capacity.
    ("InsufficientFreeAddressesInSubnet", Quota, ADDRESSES),
    ("InsufficientAddressCapacity", Quota, ADDRESSES),
    ("InsufficientInstanceCapacity", Quota, CAPACITY),
    ("InsufficientHostCapacity", Quota, CAPACITY),
    ("InsufficientReservedInstanceCapacity", Quota, CAPACITY),
    ("InsufficientCapacity*", Quota, CAPACITY),
    ("InsufficientVolumeCapacity", Quota, "choose another volume type, or a subnet in another availability zone"),
    ("Unsupported", Quota, "the availability zone does not offer this: choose another instance type or subnet"),
    ("UnsupportedHostConfiguration", Quota, CAPACITY),
    (
        "TagLimitExceeded",
        Quota,
        "a resource has at most 50 tags: remove some, or turn copyTags off in the launch settings",
    ),
    ("SnapshotLimitExceeded", Quota, "keep fewer snapshots (retention), delete others, or ask for a higher quota"),
    ("VcpuLimitExceeded", Quota, "ask for a higher quota of vCPUs (Service Quotas), or choose a smaller instance type"),
    (
        "AttachmentLimitExceeded",
        Quota,
        "choose a larger type for replication servers (replicationServerInstanceType) or conversion servers (the stack's parameter)",
    ),
    ("*LimitExceeded", Quota, LIMIT),
    ("*LimitExceededException", Quota, LIMIT),
    ("ServiceQuotaExceededException", Quota, LIMIT),
    ("ResourceCountExceeded", Quota, LIMIT),
    // What a setting refers to is not there: that is not the thing that was asked for, and asking again does not help.
    ("InvalidLaunchTemplate*", Invalid, TEMPLATE),
    ("InvalidSubnetID*", Invalid, NETWORK),
    ("InvalidSubnet.NotFound", Invalid, NETWORK),
    ("InvalidGroup.NotFound", Invalid, NETWORK),
    ("InvalidGroupId.Malformed", Invalid, NETWORK),
    ("InvalidSecurityGroupID.NotFound", Invalid, NETWORK),
    ("InvalidVpcID.NotFound", Invalid, NETWORK),
    ("InvalidNetworkInterfaceID.NotFound", Invalid, NETWORK),
    ("InvalidKeyPair.NotFound", Invalid, "name a key pair of this region in the launch template"),
    ("InvalidIamInstanceProfile*", Invalid, "name an instance profile of this account in the launch template"),
    (
        "InvalidVolume.ZoneMismatch",
        Invalid,
        "volume and instance must be in one availability zone: one staging subnet for both",
    ),
    // Not now.
    ("IncorrectState", Conflict, LATER),
    ("IncorrectInstanceState", Conflict, LATER),
    ("IncorrectModificationState", Conflict, LATER),
    ("InvalidState", Conflict, LATER),
    ("VolumeInUse", Conflict, LATER),
    ("InvalidSnapshot.InUse", Conflict, LATER),
    ("InvalidIPAddress.InUse", Conflict, ADDRESS_IN_USE),
    ("PrivateIpAddressInUse", Conflict, ADDRESS_IN_USE),
    ("DependencyViolation", Conflict, LATER),
    ("ConcurrentTagAccess", Conflict, LATER),
    ("OperationInProgress", Conflict, LATER),
    ("*.Duplicate", Conflict, LATER),
    // It was made by an earlier call whose settings were others; the next look finds it by its tag.
    ("IdempotentParameterMismatch", Conflict, LATER),
    // The thing itself does not exist (any more).
    ("InvalidAMIID.Unavailable", NotFound, ""),
    ("*.NotFound", NotFound, ""),
    ("*NotFoundException", NotFound, ""),
    // The other side.
    ("InternalError", Unavailable, LATER),
    ("InternalFailure", Unavailable, LATER),
    ("InternalServerException", Unavailable, LATER),
    ("ServiceUnavailable", Unavailable, LATER),
    ("Unavailable", Unavailable, LATER),
    ("RequestTimeout", Unavailable, LATER),
];

#[cfg(test)]
#[path = "errors/tests.rs"]
mod tests;
