//! Where things are placed: subnets, and the security groups of replication and conversion servers.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, PoisonError};

use aws_sdk_ec2::types::{
    Filter, GroupIdentifier, Instance, InstanceNetworkInterface, IpPermission, IpRange, ResourceType, SecurityGroup,
};
use rehost_control::PortError;
use rehost_control::ports::{GroupRole, GroupSource, InstanceState, PortResult, SharedGroup, Tags};
use rehost_model::SecurityGroupId;
use rehost_model::settings::ReplicationSettings;

use crate::Ec2Compute;
use crate::errors::{code, failed};
use crate::instances::state_of;
use crate::tags::{self, STACK_TAG};

/// Where agents connect to replication servers.
const REPLICATION_PORT: i32 = 1500;

fn description(role: GroupRole) -> &'static str {
    match role {
        GroupRole::Replication => "Agents reach replication servers (rehost)",
        GroupRole::Conversion => "Conversion servers (rehost): nobody reaches them",
    }
}

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
    /// The stack has a group of each role in every network that its servers are in: its template makes it in the stack's own network,
    /// and in others the first server there does.
    fn group_name(&self, role: GroupRole) -> String {
        format!("rehost-{}-{}", role.name(), self.config.stack)
    }

    /// See [`rehost_control::ports::Compute::group_source`].
    pub(crate) async fn source_of_group(
        &self,
        settings: &ReplicationSettings,
        role: GroupRole,
    ) -> PortResult<GroupSource> {
        let named = settings.replication_servers_security_groups_ids.first();
        let named = named.filter(|_| role == GroupRole::Replication && !settings.associate_default_security_group);
        if let Some(group) = named {
            return Ok(GroupSource::Given(group.clone()));
        }
        let subnet = self.staging_subnet_id(&settings.staging_area_subnet_id);
        Ok(match (self.foreign_vpc(subnet).await?, role) {
            (Some(vpc), _) => GroupSource::Shared(vpc),
            (None, GroupRole::Replication) => GroupSource::Given(group_id(&self.config.staging_security_group)?),
            // The launch template's.
            (None, GroupRole::Conversion) => GroupSource::Unnamed,
        })
    }

    /// See [`rehost_control::ports::Compute::ensure_shared_group`]. Conversion servers' lets nobody in, and out whatever wants out, as
    /// groups do that nothing was said about.
    pub(crate) async fn group_for(&self, vpc: &str, role: GroupRole) -> PortResult<SecurityGroupId> {
        let group = self.group_of_vpc(vpc, role).await?;
        let id = group.group_id().unwrap_or_default();
        if role == GroupRole::Replication && !lets_agents_in(&group, &self.config.agent_cidr) {
            self.let_agents_in(id).await?;
        }
        group_id(id)
    }

    /// The network of a subnet, where that is not the stack's own.
    async fn foreign_vpc(&self, subnet: &str) -> PortResult<Option<String>> {
        if subnet == self.config.staging_subnet {
            return Ok(None);
        }
        let vpc = self.subnet(subnet).await?.vpc;
        let own = self.subnet(&self.config.staging_subnet).await?.vpc;
        Ok((vpc != own).then_some(vpc))
    }

    /// The stack's own group in a network that the stack's template did not make one for.
    async fn group_of_vpc(&self, vpc: &str, role: GroupRole) -> PortResult<SecurityGroup> {
        if let Some(group) = self.find_group(vpc, role).await? {
            return Ok(group);
        }
        self.create_group(vpc, role).await?;
        self.find_group(vpc, role).await?.ok_or_else(|| {
            PortError::conflict(format!("the security group of {vpc} does not show yet; it is looked for again"))
        })
    }

    async fn find_group(&self, vpc: &str, role: GroupRole) -> PortResult<Option<SecurityGroup>> {
        let found = self
            .ec2
            .describe_security_groups()
            .filters(tags::filter("vpc-id", vpc))
            .filters(tags::filter("group-name", self.group_name(role)))
            .filters(tags::with_tag(STACK_TAG, &self.config.stack))
            .send()
            .await
            .map_err(|e| failed("ec2:DescribeSecurityGroups", vpc, &e))?;
        Ok(found.security_groups.unwrap_or_default().into_iter().next())
    }

    async fn create_group(&self, vpc: &str, role: GroupRole) -> PortResult<()> {
        let tags = Tags::from([(STACK_TAG.to_owned(), self.config.stack.clone())]);
        let created = self
            .ec2
            .create_security_group()
            .group_name(self.group_name(role))
            .description(description(role))
            .vpc_id(vpc)
            .tag_specifications(tags::specification(ResourceType::SecurityGroup, &tags))
            .send()
            .await;
        match created {
            Err(e) if code(&e) != Some("InvalidGroup.Duplicate") => Err(failed("ec2:CreateSecurityGroup", vpc, &e)),
            _ => Ok(()),
        }
    }

    /// See [`rehost_control::ports::Compute::shared_groups`].
    pub(crate) async fn groups_elsewhere(&self) -> PortResult<Vec<SharedGroup>> {
        let names = GroupRole::ALL.map(|role| self.group_name(role)).to_vec();
        let pages = self
            .ec2
            .describe_security_groups()
            .filters(Filter::builder().name("group-name").set_values(Some(names)).build())
            .filters(tags::with_tag(STACK_TAG, &self.config.stack))
            .into_paginator()
            .items()
            .send();
        let found = pages.collect::<Result<Vec<_>, _>>().await;
        let found = found.map_err(|e| failed("ec2:DescribeSecurityGroups", "the stack's groups", &e))?;
        if found.is_empty() {
            return Ok(Vec::new());
        }
        let own = self.subnet(&self.config.staging_subnet).await?.vpc;
        let instances = self.instances_where(tags::with_tag_key(STACK_TAG)).await?;
        let used = groups_of(instances.iter().filter(|instance| state_of(instance) != InstanceState::Terminated));
        let elsewhere = found.iter().filter(|group| group.vpc_id() != Some(&own));
        let shared = |group: &SecurityGroup| {
            let id = group_id(group.group_id().unwrap_or_default())?;
            let role = GroupRole::ALL.into_iter().find(|role| group.group_name() == Some(&self.group_name(*role)));
            let network = group.vpc_id().unwrap_or_default().to_owned();
            let in_use = used.contains(id.as_str());
            Ok(role.map(|role| SharedGroup { id, network, role, in_use }))
        };
        elsewhere.filter_map(|group| shared(group).transpose()).collect()
    }

    /// The refusal of a launch into a group that servers share: the reaper may have been faster, and whoever tries again makes another.
    pub(crate) fn refused_with(&self, group: Option<&SecurityGroupId>, error: PortError) -> PortError {
        let is_shared = group.is_some_and(|group| group.as_str() != self.config.staging_security_group);
        let went = is_shared && error.message.contains("InvalidGroup.NotFound");
        if went { PortError::conflict(error.message) } else { error }
    }

    /// See [`rehost_control::ports::Compute::delete_security_group`].
    pub(crate) async fn remove_group(&self, id: &SecurityGroupId) -> PortResult<()> {
        match self.ec2.delete_security_group().group_id(id.as_str()).send().await {
            Err(e) if code(&e) != Some("InvalidGroup.NotFound") => Err(failed("ec2:DeleteSecurityGroup", id, &e)),
            _ => Ok(()),
        }
    }

    async fn let_agents_in(&self, group: &str) -> PortResult<()> {
        let range = IpRange::builder().cidr_ip(&self.config.agent_cidr).description("Agents; mutual TLS").build();
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

/// The security groups that these instances and their interfaces have.
fn groups_of<'a>(instances: impl Iterator<Item = &'a Instance>) -> HashSet<&'a str> {
    let groups = instances.flat_map(|instance| {
        let of_interfaces = instance.network_interfaces().iter().flat_map(InstanceNetworkInterface::groups);
        instance.security_groups().iter().chain(of_interfaces)
    });
    groups.filter_map(GroupIdentifier::group_id).collect()
}

fn no_subnet(id: &str) -> String {
    format!("the subnet {id} does not exist: name another in the replication settings, or deploy the stack again")
}

fn group_id(text: &str) -> PortResult<SecurityGroupId> {
    text.parse()
        .map_err(|e| PortError::invalid(format!("the security group of replication or conversion servers: {e}")))
}

/// Whether there is a rule for this very block: after a change of the stack's parameter there is none. The rule for the former block
/// stays; taking it away could cut off an agent that has not moved yet.
fn lets_agents_in(group: &SecurityGroup, agents: &str) -> bool {
    let lets_in = |p: &IpPermission| {
        let all = p.ip_protocol() == Some("-1");
        let from = p.from_port().is_some_and(|port| port <= REPLICATION_PORT);
        let to = p.to_port().is_some_and(|port| port >= REPLICATION_PORT);
        let from_agents = p.ip_ranges().iter().any(|range| range.cidr_ip() == Some(agents));
        (all || p.ip_protocol() == Some("tcp") && from && to) && from_agents
    };
    group.ip_permissions().iter().any(lets_in)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(protocol: &str, ports: (i32, i32), blocks: &[&str]) -> SecurityGroup {
        let ranges = blocks.iter().map(|block| IpRange::builder().cidr_ip(*block).build()).collect();
        let permission = IpPermission::builder()
            .ip_protocol(protocol)
            .from_port(ports.0)
            .to_port(ports.1)
            .set_ip_ranges(Some(ranges))
            .build();
        SecurityGroup::builder().ip_permissions(permission).build()
    }

    #[test]
    fn agents_are_let_in_from_their_block_and_to_their_port() {
        const AGENTS: &str = "10.0.0.0/8";
        for (protocol, ports, blocks, expected) in [
            ("tcp", (1500, 1500), vec![AGENTS], true),
            ("tcp", (1024, 2048), vec!["192.0.2.0/24", AGENTS], true),
            ("-1", (-1, -1), vec![AGENTS], true),
            ("tcp", (1500, 1500), vec!["0.0.0.0/0"], false),
            ("tcp", (1500, 1500), vec![], false),
            ("tcp", (443, 443), vec![AGENTS], false),
            ("udp", (1500, 1500), vec![AGENTS], false),
        ] {
            let lets_in = lets_agents_in(&group(protocol, ports, &blocks), AGENTS);
            assert_eq!(lets_in, expected, "{protocol} {ports:?} {blocks:?}");
        }
        assert!(!lets_agents_in(&SecurityGroup::builder().build(), AGENTS));
    }
}
