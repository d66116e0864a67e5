//! MGN's replication configuration: of a server, and of the template.

use anyhow::{Context, Result};
use serde_json::Value;

use super::Mgn;
use crate::args::ReplicationArgs;

/// Names in a call what is given; three operations have the same members, each with types of its own.
macro_rules! with_settings {
    ($call:expr, $args:expr) => {{
        let args: &ReplicationArgs = $args;
        $call
            .set_staging_area_subnet_id(args.staging_subnet.clone())
            .set_replication_servers_security_groups_ids(args.security_groups())
            .set_associate_default_security_group(args.default_security_group)
            .set_replication_server_instance_type(args.replication_server_type.clone())
            .set_use_dedicated_replication_server(args.dedicated)
            .set_default_large_staging_disk_type(args.large_disk_type.map(|kind| word(kind).as_str().into()))
            .set_ebs_encryption(args.encryption.map(|kind| word(kind).as_str().into()))
            .set_ebs_encryption_key_arn(args.encryption_key.clone())
            .set_bandwidth_throttling(args.throttle.map(|mbit| i64::try_from(mbit).unwrap_or(i64::MAX)))
            .set_data_plane_routing(args.routing.map(|kind| word(kind).as_str().into()))
            .set_create_public_ip(args.public_ip)
            .set_staging_area_tags(args.staging_tags())
    }};
}

/// As MGN writes it.
fn word(kind: impl serde::Serialize) -> String {
    serde_json::to_value(kind).ok().and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default()
}

impl Mgn {
    /// A server's replication configuration.
    pub(crate) async fn replication(&self, server: &str) -> Result<Value> {
        self.told(self.sdk.get_replication_configuration().source_server_id(server).send().await)?;
        Ok(self.bodies.last())
    }

    /// Changes a server's replication configuration.
    pub(crate) async fn set_replication(&self, server: &str, args: &ReplicationArgs) -> Result<()> {
        let call = self.sdk.update_replication_configuration().source_server_id(server);
        self.told(with_settings!(call, args).send().await).map(drop)
    }

    /// The template, if there is one.
    pub(crate) async fn template(&self) -> Result<Option<Value>> {
        self.told(self.sdk.describe_replication_configuration_templates().send().await)?;
        Ok(self.bodies.items().pointer("/items/0").cloned())
    }

    /// Changes the template, or makes it; how it is then.
    pub(crate) async fn set_template(&self, args: &ReplicationArgs) -> Result<Value> {
        match self.template().await? {
            Some(template) => {
                let call = self.sdk.update_replication_configuration_template();
                let call = call.replication_configuration_template_id(id(&template)?);
                self.told(with_settings!(call, args).send().await)?;
            }
            None => {
                let call = self.sdk.create_replication_configuration_template();
                self.told(with_settings!(call, args).send().await)?;
            }
        }
        Ok(self.bodies.last())
    }

    /// Deletes the template, if there is one.
    pub(crate) async fn delete_template(&self) -> Result<()> {
        let Some(template) = self.template().await? else { return Ok(()) };
        let call = self.sdk.delete_replication_configuration_template();
        self.told(call.replication_configuration_template_id(id(&template)?).send().await).map(drop)
    }
}

fn id(template: &Value) -> Result<&str> {
    template["replicationConfigurationTemplateID"].as_str().context("the service shows a template without an id")
}
