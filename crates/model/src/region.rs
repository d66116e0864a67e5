//! What the parts of one region agree on.

/// The DNS name in the certificate of the control plane's endpoint. A role, not an address: clients check it whatever
/// address they dialled.
pub const CONTROL_ROLE: &str = "control.rehost.internal";

/// The DNS name in the certificate of a replication server.
pub const REPLICATOR_ROLE: &str = "replicator.rehost.internal";

/// URI SAN that names the server of a client certificate: this prefix and the server's id.
pub const SERVER_URI: &str = "rehost:server:";

/// URI SAN that names a volume which the certificate's holder may write: this prefix and the volume's id.
pub const VOLUME_URI: &str = "rehost:volume:";

/// URI SAN that names the replication server of a certificate: this prefix and its id.
pub const REPLICATOR_URI: &str = "rehost:replicator:";

/// The port that the data plane uses, as with MGN.
pub const REPLICATION_PORT: u16 = 1500;

/// The account and region in the ARNs of the local region.
pub const LOCAL_REGION: &str = "local";

/// The ARN of a resource of MGN, such as `arn:aws:mgn:local:000000000000:source-server/s-…`.
#[must_use]
pub fn arn(region: &str, account: &str, kind: &str, id: &str) -> String {
    format!("arn:aws:mgn:{region}:{account}:{kind}/{id}")
}
