//! Where things are placed: subnets, and the security group of replication servers.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use aws_sdk_ec2::types::{IpPermission, IpRange, ResourceType, SecurityGroup};
use rehost_control::PortError;
use rehost_control::ports::{PortResult, Tags};
use rehost_model::SecurityGroupId;
use rehost_model::settings::ReplicationSettings;

use crate::Ec2Compute;
use crate::errors::{code, failed};
use crate::tags::{self, STACK_TAG};

/// Where agents connect to replication servers.
const REPLICATION_PORT: i32 = 1500;

/// Agents are anywhere; what keeps others out is mutual TLS with the region's own authority.
const ANYWHERE: &str = "0.0.0.0/0";

/// A subnet; neither its zone nor its network ever changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Subnet {
    pub(crate) id: String,
    pub(crate) zone: String,
    pub(crate) vpc: String,
}

/// Subnets that were looked up before.
pub(crate) type KnownSubnets = Mutex<HashMap<String, Subnet>>;

impl Ec2Compute {
    /// See [`rehost_control::ports::Compute::ensure_security_group`].
    pub(crate) async fn security_group(&self, settings: &ReplicationSettings) -> PortResult<SecurityGroupId> {
        let named = settings.replication_servers_security_groups_ids.first();
        if let Some(group) = named.filter(|_| !settings.associate_default_security_group) {
            return Ok(group.clone());
        }
        let subnet = self.staging_subnet_id(&settings.staging_area_subnet_id);
        if subnet == self.config.staging_subnet {
            return group_id(&self.config.staging_security_group);
        }
        let subnet = self.subnet(subnet).await?;
        if subnet.vpc == self.subnet(&self.config.staging_subnet).await?.vpc {
            return group_id(&self.config.staging_security_group);
        }
        self.group_of_vpc(&subnet.vpc).await
    }

    /// The stack's own group in a network that the stack's template did not make one for.
    async fn group_of_vpc(&self, vpc: &str) -> PortResult<SecurityGroupId> {
        let group = match self.find_group(vpc).await? {
            Some(group) => group,
            None => {
                self.create_group(vpc).await?;
                self.find_group(vpc).await?.ok_or_else(|| {
                    PortError::conflict(format!(
                        "the security group of {vpc} does not show yet; it is looked for again"
                    ))
                })?
            }
        };
        let id = group.group_id().unwrap_or_default();
        if !lets_agents_in(&group) {
            self.let_agents_in(id).await?;
        }
        group_id(id)
    }

    async fn find_group(&self, vpc: &str) -> PortResult<Option<SecurityGroup>> {
        let found = self
            .ec2
            .describe_security_groups()
            .filters(tags::filter("vpc-id", vpc))
            .filters(tags::filter("group-name", self.group_name()))
            .filters(tags::with_tag(STACK_TAG, &self.config.stack))
            .send()
            .await
            .map_err(|e| failed("ec2:DescribeSecurityGroups", vpc, &e))?;
        Ok(found.security_groups.unwrap_or_default().into_iter().next())
    }

    async fn create_group(&self, vpc: &str) -> PortResult<()> {
        let tags = Tags::from([(STACK_TAG.to_owned(), self.config.stack.clone())]);
        let created = self
            .ec2
            .create_security_group()
            .group_name(self.group_name())
            .description("Agents reach replication servers (rehost)")
            .vpc_id(vpc)
            .tag_specifications(tags::specification(ResourceType::SecurityGroup, &tags))
            .send()
            .await;
        match created {
            Err(e) if code(&e) != Some("InvalidGroup.Duplicate") => Err(failed("ec2:CreateSecurityGroup", vpc, &e)),
            _ => Ok(()),
        }
    }

    async fn let_agents_in(&self, group: &str) -> PortResult<()> {
        let range = IpRange::builder().cidr_ip(ANYWHERE).description("Agents; mutual TLS").build();
        let permission = IpPermission::builder()
            .ip_protocol("tcp")
            .from_port(REPLICATION_PORT)
            .to_port(REPLICATION_PORT)
            .ip_ranges(range)
            .build();
        let call = self.ec2.authorize_security_group_ingress().group_id(group).ip_permissions(permission);
        match call.send().await {
            Err(e) if code(&e) != Some("InvalidPermission.Duplicate") => {
                Err(failed("ec2:AuthorizeSecurityGroupIngress", group, &e))
            }
            _ => Ok(()),
        }
    }

    fn group_name(&self) -> String {
        format!("rehost-replication-{}", self.config.stack)
    }

    /// The subnet that settings name for replication, else the stack's.
    pub(crate) fn staging_subnet_id<'a>(&'a self, named: &'a str) -> &'a str {
        if named.is_empty() { &self.config.staging_subnet } else { named }
    }

    /// A subnet by its id.
    pub(crate) async fn subnet(&self, id: &str) -> PortResult<Subnet> {
        if let Some(known) = self.subnets.lock().unwrap_or_else(PoisonError::into_inner).get(id) {
            return Ok(known.clone());
        }
        let subnet = self.describe_subnet(id).await?;
        self.subnets.lock().unwrap_or_else(PoisonError::into_inner).insert(id.to_owned(), subnet.clone());
        Ok(subnet)
    }

    async fn describe_subnet(&self, id: &str) -> PortResult<Subnet> {
        let described = self
            .ec2
            .describe_subnets()
            .subnet_ids(id)
            .send()
            .await
            .map_err(|e| failed("ec2:DescribeSubnets", format_args!("the subnet {id}"), &e))?;
        let subnet = described.subnets().first().ok_or_else(|| PortError::invalid(no_subnet(id)))?;
        let text = |text: Option<&str>| text.unwrap_or_default().to_owned();
        Ok(Subnet { id: id.to_owned(), zone: text(subnet.availability_zone()), vpc: text(subnet.vpc_id()) })
    }
}

fn no_subnet(id: &str) -> String {
    format!("the subnet {id} does not exist: name another in the replication settings, or deploy the stack again")
}

fn group_id(text: &str) -> PortResult<SecurityGroupId> {
    text.parse().map_err(|e| PortError::invalid(format!("the security group of replication servers: {e}")))
}

fn lets_agents_in(group: &SecurityGroup) -> bool {
    let lets_in = |p: &IpPermission| {
        let all = p.ip_protocol() == Some("-1");
        let from = p.from_port().is_some_and(|port| port <= REPLICATION_PORT);
        let to = p.to_port().is_some_and(|port| port >= REPLICATION_PORT);
        all || p.ip_protocol() == Some("tcp") && from && to
    };
    group.ip_permissions().iter().any(lets_in)
}
