use aws_sdk_ec2::config::http::HttpResponse;
use aws_sdk_ec2::error::{ErrorMetadata, SdkError};
use aws_sdk_ec2::operation::run_instances::RunInstancesError;
use aws_smithy_types::body::SdkBody;

use super::*;

/// Every code that the table knows, as EC2 writes it.
const CODES: &[(&str, PortErrorKind)] = &[
    ("RequestLimitExceeded", Throttled),
    ("Client.RequestLimitExceeded", Throttled),
    ("ThrottlingException", Throttled),
    ("RequestThrottlingException", Throttled),
    ("Throttling", Throttled),
    ("ThrottledException", Throttled),
    ("EC2ThrottledException", Throttled),
    ("RequestThrottled", Throttled),
    ("RequestThrottledException", Throttled),
    ("TooManyRequestsException", Throttled),
    ("BandwidthLimitExceeded", Throttled),
    ("SlowDown", Throttled),
    ("ConcurrentLimitExceededException", Throttled),
    ("ConcurrentSnapshotLimitExceeded", Throttled),
    ("SnapshotCreationPerVolumeRateExceeded", Throttled),
    ("VolumeModificationRateExceeded", Throttled),
    ("VolumeModificationSizeLimitExceeded", Quota),
    ("InvalidKMSKey.InvalidState", Denied),
    ("InvalidKMSKey.NotFound", Denied),
    ("InvalidKMSKeyId.NotFound", Denied),
    ("KMS.DisabledException", Denied),
    ("KMSKeyNotAccessibleFault", Denied),
    ("KmsKeyAccessDenied", Denied),
    ("UnauthorizedOperation", Denied),
    ("Client.UnauthorizedOperation", Denied),
    ("AccessDenied", Denied),
    ("AccessDeniedException", Denied),
    ("AuthFailure", Denied),
    ("UnrecognizedClientException", Denied),
    ("InvalidClientTokenId", Denied),
    ("OptInRequired", Denied),
    ("PendingVerification", Denied),
    ("OperationNotPermitted", Denied),
    ("RequestExpired", Unavailable),
    ("ExpiredToken", Unavailable),
    ("ExpiredTokenException", Unavailable),
    ("InsufficientFreeAddressesInSubnet", Quota),
    ("InsufficientAddressCapacity", Quota),
    ("InsufficientInstanceCapacity", Quota),
    ("Server.InsufficientInstanceCapacity", Quota),
    ("InsufficientHostCapacity", Quota),
    ("InsufficientReservedInstanceCapacity", Quota),
    ("InsufficientCapacityOnHost", Quota),
    ("InsufficientVolumeCapacity", Quota),
    ("Unsupported", Quota),
    ("UnsupportedHostConfiguration", Quota),
    ("TagLimitExceeded", Quota),
    ("SnapshotLimitExceeded", Quota),
    ("VcpuLimitExceeded", Quota),
    ("VolumeLimitExceeded", Quota),
    ("InstanceLimitExceeded", Quota),
    ("MaxIOPSLimitExceeded", Quota),
    ("AttachmentLimitExceeded", Quota),
    ("SecurityGroupLimitExceeded", Quota),
    ("ResourceLimitExceededException", Quota),
    ("ServiceQuotaExceededException", Quota),
    ("ResourceCountExceeded", Quota),
    ("InvalidLaunchTemplateId.NotFound", Invalid),
    ("InvalidLaunchTemplateId.NotFoundException", Invalid),
    ("InvalidLaunchTemplateId.VersionNotFound", Invalid),
    ("InvalidSubnetID.NotFound", Invalid),
    ("InvalidSubnet.NotFound", Invalid),
    ("InvalidGroup.NotFound", Invalid),
    ("InvalidGroupId.Malformed", Invalid),
    ("InvalidSecurityGroupID.NotFound", Invalid),
    ("InvalidVpcID.NotFound", Invalid),
    ("InvalidNetworkInterfaceID.NotFound", Invalid),
    ("InvalidKeyPair.NotFound", Invalid),
    ("InvalidIamInstanceProfile.NotFound", Invalid),
    ("InvalidVolume.ZoneMismatch", Invalid),
    ("IncorrectState", Conflict),
    ("IncorrectInstanceState", Conflict),
    ("IncorrectModificationState", Conflict),
    ("InvalidState", Conflict),
    ("VolumeInUse", Conflict),
    ("InvalidSnapshot.InUse", Conflict),
    ("InvalidIPAddress.InUse", Conflict),
    ("PrivateIpAddressInUse", Conflict),
    ("DependencyViolation", Conflict),
    ("ConcurrentTagAccess", Conflict),
    ("OperationInProgress", Conflict),
    ("InvalidGroup.Duplicate", Conflict),
    ("InvalidAMIName.Duplicate", Conflict),
    ("InvalidPermission.Duplicate", Conflict),
    ("IdempotentParameterMismatch", Conflict),
    ("InvalidAMIID.Unavailable", NotFound),
    ("InvalidVolume.NotFound", NotFound),
    ("InvalidSnapshot.NotFound", NotFound),
    ("InvalidInstanceID.NotFound", NotFound),
    ("InvalidAMIID.NotFound", NotFound),
    ("ResourceNotFoundException", NotFound),
    ("InternalError", Unavailable),
    ("Server.InternalError", Unavailable),
    ("InternalFailure", Unavailable),
    ("InternalServerException", Unavailable),
    ("ServiceUnavailable", Unavailable),
    ("Unavailable", Unavailable),
    ("RequestTimeout", Unavailable),
];

#[test]
fn every_code_has_its_kind() {
    for (code, kind) in CODES {
        assert_eq!(meaning(code, 400).kind, *kind, "{code}");
    }
}

#[test]
fn every_rule_is_reached_by_a_code() {
    for (pattern, _, _) in RULES {
        let reached = |code: &str| {
            let code = code.strip_prefix("Client.").or_else(|| code.strip_prefix("Server.")).unwrap_or(code);
            RULES.iter().find(|(pattern, _, _)| matches(pattern, code)).is_some_and(|(first, _, _)| first == pattern)
        };
        assert!(CODES.iter().any(|(code, _)| reached(code)), "{pattern} stands behind a more general rule");
    }
}

#[test]
fn unknown_codes_go_by_their_status() {
    let by_status =
        [(400, Invalid), (403, Denied), (404, NotFound), (429, Throttled), (500, Unavailable), (503, Unavailable)];
    for (status, kind) in by_status {
        assert_eq!(meaning("Novelty", status).kind, kind, "{status}");
    }
}

fn refusal(code: &str, message: &str) -> SdkError<RunInstancesError, HttpResponse> {
    let metadata = ErrorMetadata::builder().code(code).message(message).build();
    let response = HttpResponse::new(400.try_into().unwrap(), SdkBody::empty());
    SdkError::service_error(RunInstancesError::generic(metadata), response)
}

#[test]
fn an_error_says_what_where_and_how_to_mend_it() {
    let error = failed("ec2:RunInstances", "the copy of s-1", &refusal("InsufficientFreeAddressesInSubnet", "0 free"));
    assert_eq!(error.kind, Quota);
    for part in ["ec2:RunInstances", "the copy of s-1", "InsufficientFreeAddressesInSubnet", "0 free", "free addresses"]
    {
        assert!(error.message.contains(part), "{error}");
    }
}

#[test]
fn a_missing_permission_is_named_without_the_encoded_message() {
    let message = format!("You are not authorized. {ENCODED}: {}", "x".repeat(4000));
    let error = failed("ec2:RunInstances", "r-1", &refusal("UnauthorizedOperation", &message));
    assert_eq!(error.kind, Denied);
    assert!(error.message.contains("You are not authorized.; the role needs ec2:RunInstances for all"), "{error}");
    for part in ["the launch template brings", "iam:PassRole", "TargetRoleArns"] {
        assert!(error.message.contains(part), "{error}");
    }
    let error = failed("ec2:CreateVolume", "v-1", &refusal("UnauthorizedOperation", &message));
    assert!(error.message.ends_with("You are not authorized.; the role needs ec2:CreateVolume"), "{error}");
}

#[test]
fn no_answer_can_be_tried_again_and_a_request_that_cannot_be_built_cannot() {
    let unsent = |error| failed::<RunInstancesError>("ec2:RunInstances", "r-1", &error);
    let late = unsent(SdkError::timeout_error("too slow"));
    assert_eq!(late.kind, Unavailable);
    assert!(late.message.contains("was not answered"), "{late}");
    assert_eq!(unsent(SdkError::construction_failure("no region")).kind, Invalid);
}
