//! Replication servers: launched from the stack's launch template, set up by their user data.

use aws_sdk_ec2::types::InstanceNetworkInterfaceSpecification as Interface;
use aws_sdk_ec2::types::InstanceType;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use rehost_control::PortError;
use rehost_control::ports::{ClientToken, PortResult, ReplicationServerSpec};
use rehost_model::settings::{DataPlaneRouting, ReplicationSettings};
use rehost_model::{InstanceId, ReplicatorId, SecurityGroupId};
use serde::Serialize;

use crate::Ec2Compute;
use crate::instances::instance_id;
use crate::tags;
use crate::template::by_latest_version;
use crate::user_data::{REPLICATOR, render};

/// Where a replicator listens, keeps its state (the unit's `StateDirectory`), and how long it holds volumes still for a
/// snapshot that nobody releases.
const LISTEN: &str = "0.0.0.0:1500";
const STATE_DIRECTORY: &str = "/var/lib/rehost-replicator";
const HOLD_TIMEOUT_SECONDS: u64 = 600;

/// What `rehost-replicator run --config` reads.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ReplicatorConfig<'a> {
    #[serde(rename = "replicatorID")]
    replicator_id: &'a ReplicatorId,
    /// A secret, good for one use.
    enrol_token: &'a str,
    control_endpoint: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    ca_fingerprint: Option<&'a str>,
    listen: &'a str,
    state_dir: &'a str,
    hold_timeout_seconds: u64,
}

impl Ec2Compute {
    /// See [`rehost_control::ports::Compute::launch_replication_server`].
    pub(crate) async fn launch_replicator(
        &self,
        spec: &ReplicationServerSpec,
        token: &ClientToken,
    ) -> PortResult<InstanceId> {
        if let Some(launched) = self.launched_with(token).await? {
            return instance_id(launched.instance_id());
        }
        let settings = &spec.settings;
        let subnet = self.staging_subnet_id(&settings.staging_area_subnet_id);
        let groups = groups(settings, spec.security_group.as_ref()).iter().map(ToString::to_string).collect();
        // Whether a public address is wanted can be said of an interface alone; the launch template must have none.
        let interface = Interface::builder()
            .device_index(0)
            .subnet_id(subnet)
            .set_groups(Some(groups))
            .set_associate_public_ip_address(wants_public_ip(settings))
            .delete_on_termination(true)
            .build();
        let all_tags = tags::complete(&spec.tags, &self.config.stack, token);
        let request = self
            .ec2_once
            .run_instances()
            .launch_template(by_latest_version(&self.config.staging_launch_template))
            .instance_type(InstanceType::from(settings.replication_server_instance_type.as_str()))
            .network_interfaces(interface)
            .user_data(self.replicator_user_data(spec)?);
        let subject =
            format!("the replication server {} ({} in {subnet})", spec.id, settings.replication_server_instance_type);
        let all_tags = tags::named(all_tags, format!("rehost replication server {}", spec.id));
        let named = &settings.replication_servers_security_groups_ids;
        // One that settings name is the user's business.
        let own_group = spec.security_group.as_ref().filter(|_| named.is_empty());
        let launched = self.launch(request, &subject, &all_tags, token).await;
        launched.map_err(|error| self.refused_with(own_group, error))
    }

    fn replicator_user_data(&self, spec: &ReplicationServerSpec) -> PortResult<String> {
        let config = ReplicatorConfig {
            replicator_id: &spec.id,
            enrol_token: &spec.enrol_token,
            control_endpoint: &self.config.endpoint,
            ca_fingerprint: self.config.ca_fingerprint.as_deref(),
            listen: LISTEN,
            state_dir: STATE_DIRECTORY,
            hold_timeout_seconds: HOLD_TIMEOUT_SECONDS,
        };
        let config = serde_json::to_vec(&config)
            .map_err(|e| PortError::invalid(format!("the configuration of {}: {e}", spec.id)))?;
        let config = BASE64.encode(config);
        render(
            REPLICATOR,
            &[("REGION", &self.config.region), ("BUCKET", &self.config.bucket), ("CONFIG_BASE64", &config)],
        )
    }
}

/// The groups that the settings name, and the default one if they want it or name none.
fn groups(settings: &ReplicationSettings, default: Option<&SecurityGroupId>) -> Vec<SecurityGroupId> {
    let mut groups = settings.replication_servers_security_groups_ids.clone();
    let wanted = default.filter(|default| {
        (settings.associate_default_security_group || groups.is_empty()) && !groups.contains(default)
    });
    groups.extend(wanted.cloned());
    groups
}

/// `None`: as the subnet has it.
fn wants_public_ip(settings: &ReplicationSettings) -> Option<bool> {
    (settings.create_public_ip || settings.data_plane_routing == DataPlaneRouting::PublicIp).then_some(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_group_comes_last_and_once() {
        let (own, default) = (SecurityGroupId::generate(), SecurityGroupId::generate());
        let with = |ids: &[&SecurityGroupId], associate| {
            let ids = ids.iter().map(|id| (*id).clone()).collect();
            let settings = ReplicationSettings {
                associate_default_security_group: associate,
                replication_servers_security_groups_ids: ids,
                ..ReplicationSettings::default()
            };
            groups(&settings, Some(&default))
        };
        for (ids, associate, expected) in [
            (vec![&own], true, vec![&own, &default]),
            (vec![&own], false, vec![&own]),
            (vec![], false, vec![&default]),
            (vec![&default], true, vec![&default]),
        ] {
            assert_eq!(with(&ids, associate).iter().collect::<Vec<_>>(), expected);
        }
    }

    #[test]
    fn a_public_address_is_asked_for_where_agents_need_it() {
        let settings = ReplicationSettings::default();
        assert_eq!(wants_public_ip(&settings), None);
        let routed = ReplicationSettings { data_plane_routing: DataPlaneRouting::PublicIp, ..settings.clone() };
        assert_eq!(wants_public_ip(&routed), Some(true));
        assert_eq!(wants_public_ip(&ReplicationSettings { create_public_ip: true, ..settings }), Some(true));
    }
}
