//! Launch templates, and what a launch takes from them: EC2 itself merges the two, except where a copy has to have a subnet or an
//! address that the user's template does not name, or a conversion server another subnet or group than the stack's own.

use std::net::IpAddr;

use aws_sdk_ec2::types::{
    ConnectionTrackingSpecificationRequest, EnaSrdSpecificationRequest, EnaSrdUdpSpecificationRequest,
    InstanceNetworkInterfaceSpecification as Interface, Ipv4PrefixSpecificationRequest, Ipv6PrefixSpecificationRequest,
    LaunchTemplateInstanceNetworkInterfaceSpecification as TemplateInterface, LaunchTemplateSpecification,
    ResponseLaunchTemplateData,
};
use rehost_control::PortError;
use rehost_control::ports::PortResult;

use crate::Ec2Compute;
use crate::errors::failed;

/// The version that its owner declared the default: of the user's launch templates.
pub(crate) const DEFAULT_VERSION: &str = "$Default";

/// The newest version: of the stack's own. CloudFormation makes a version with each change, and leaves the default at the first.
pub(crate) const LATEST_VERSION: &str = "$Latest";

/// A user's launch template, by its id.
pub(crate) fn by_default_version(id: &str) -> LaunchTemplateSpecification {
    LaunchTemplateSpecification::builder().launch_template_id(id).version(DEFAULT_VERSION).build()
}

/// A launch template of the stack, by its id.
pub(crate) fn by_latest_version(id: &str) -> LaunchTemplateSpecification {
    LaunchTemplateSpecification::builder().launch_template_id(id).version(LATEST_VERSION).build()
}

impl Ec2Compute {
    /// What this version of a launch template says.
    pub(crate) async fn template(&self, id: &str, version: &str) -> PortResult<ResponseLaunchTemplateData> {
        let subject = format!("the launch template {id}");
        let call = self.ec2.describe_launch_template_versions().launch_template_id(id).versions(version);
        let described = call.send().await.map_err(|e| failed("ec2:DescribeLaunchTemplateVersions", &subject, &e))?;
        let found = described.launch_template_versions.unwrap_or_default().into_iter().next();
        let data = found.and_then(|found| found.launch_template_data);
        data.ok_or_else(|| PortError::invalid(format!("{subject} has no version {version}: make or set one")))
    }
}

/// Where in the network a copy is launched: what the request says beside the launch template.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Placement {
    /// The request's own subnet and address; EC2 takes them only where there are no interfaces.
    pub(crate) subnet: Option<String>,
    pub(crate) private_ip: Option<String>,
    /// The template's interfaces with the subnet and the address put in; empty where they serve as they are.
    pub(crate) interfaces: Vec<Interface>,
    /// The subnet in which the copy will be, as far as that is known.
    pub(crate) in_subnet: Option<String>,
}

impl Placement {
    /// The same with this security group alone, for a launch template that names none of the network it goes to.
    pub(crate) fn with_group(mut self, group: &str) -> Self {
        if self.interfaces.is_empty() {
            let interface = Interface::builder().device_index(0).set_subnet_id(self.subnet.take());
            let interface = interface.set_private_ip_address(self.private_ip.take()).delete_on_termination(true);
            self.interfaces.push(interface.build());
        }
        for interface in &mut self.interfaces {
            interface.groups = Some(vec![group.to_owned()]);
        }
        self
    }
}

/// Where a copy goes with this template: `target_subnet` unless the template names a subnet, with the address `private_ip` if
/// there is one.
///
/// # Errors
/// `Invalid` when the address is asked for and the template brings an interface that has one already.
pub(crate) fn placement(
    template: Option<&ResponseLaunchTemplateData>,
    target_subnet: &str,
    private_ip: Option<IpAddr>,
) -> PortResult<Placement> {
    let interfaces = template.map(ResponseLaunchTemplateData::network_interfaces).unwrap_or_default();
    let Some(primary) = interfaces.iter().position(|i| i.device_index().unwrap_or(0) == 0) else {
        let subnet = Some(target_subnet.to_owned());
        let private_ip = private_ip.map(|ip| ip.to_string());
        return Ok(Placement { in_subnet: subnet.clone(), subnet, private_ip, interfaces: Vec::new() });
    };
    let (named, existing) = (interfaces[primary].subnet_id(), interfaces[primary].network_interface_id());
    match (existing, private_ip) {
        (Some(id), Some(ip)) => Err(PortError::invalid(format!(
            "the copy cannot have the source's address {ip}: the launch template brings the interface {id}, which has its own; turn \
             copyPrivateIp off or take the interface out of the template"
        ))),
        (Some(_), None) => Ok(Placement::default()),
        (None, None) if named.is_some() => {
            Ok(Placement { in_subnet: named.map(str::to_owned), ..Placement::default() })
        }
        (None, _) => {
            let subnet = named.unwrap_or(target_subnet);
            let with_subnet = |(index, interface): (usize, &TemplateInterface)| {
                if index == primary { placed(interface, subnet, private_ip) } else { taken_over(interface) }
            };
            let interfaces = interfaces.iter().enumerate().map(with_subnet).collect();
            Ok(Placement { interfaces, in_subnet: Some(subnet.to_owned()), ..Placement::default() })
        }
    }
}

/// The first interface of a template in this subnet. An address of ours takes the place of those that the template lists: EC2 takes
/// one or the other.
fn placed(template: &TemplateInterface, subnet: &str, private_ip: Option<IpAddr>) -> Interface {
    let mut interface = taken_over(template);
    interface.subnet_id = Some(subnet.to_owned());
    if let Some(ip) = private_ip {
        interface.private_ip_address = Some(ip.to_string());
        interface.private_ip_addresses = None;
    }
    interface
}

/// The interface of a template as an interface of a request: the two have the same members in two types.
fn taken_over(template: &TemplateInterface) -> Interface {
    let (ipv4, ipv6) = (template.ipv4_prefixes(), template.ipv6_prefixes());
    let ipv4 =
        ipv4.iter().map(|p| Ipv4PrefixSpecificationRequest::builder().set_ipv4_prefix(p.ipv4_prefix.clone()).build());
    let ipv6 =
        ipv6.iter().map(|p| Ipv6PrefixSpecificationRequest::builder().set_ipv6_prefix(p.ipv6_prefix.clone()).build());
    Interface::builder()
        .device_index(template.device_index().unwrap_or(0))
        .set_network_card_index(template.network_card_index())
        .set_network_interface_id(template.network_interface_id().map(str::to_owned))
        .set_interface_type(template.interface_type().map(str::to_owned))
        .set_description(template.description().map(str::to_owned))
        .set_groups(unless_empty(template.groups().to_vec()))
        .set_subnet_id(template.subnet_id().map(str::to_owned))
        .set_private_ip_address(template.private_ip_address().map(str::to_owned))
        .set_secondary_private_ip_address_count(template.secondary_private_ip_address_count())
        .set_associate_public_ip_address(template.associate_public_ip_address())
        .set_associate_carrier_ip_address(template.associate_carrier_ip_address())
        .set_delete_on_termination(template.delete_on_termination())
        .set_private_ip_addresses(unless_empty(template.private_ip_addresses().to_vec()))
        .set_ipv4_prefixes(unless_empty(ipv4.collect()))
        .set_ipv4_prefix_count(template.ipv4_prefix_count())
        .set_ipv6_address_count(template.ipv6_address_count())
        .set_ipv6_addresses(unless_empty(template.ipv6_addresses().to_vec()))
        .set_ipv6_prefixes(unless_empty(ipv6.collect()))
        .set_ipv6_prefix_count(template.ipv6_prefix_count())
        .set_primary_ipv6(template.primary_ipv6())
        .set_ena_srd_specification(ena_express(template))
        .set_ena_queue_count(template.ena_queue_count())
        .set_connection_tracking_specification(connection_tracking(template))
        .build()
}

/// EC2 takes no empty lists for absent ones.
fn unless_empty<T>(list: Vec<T>) -> Option<Vec<T>> {
    (!list.is_empty()).then_some(list)
}

fn ena_express(template: &TemplateInterface) -> Option<EnaSrdSpecificationRequest> {
    let said = template.ena_srd_specification()?;
    let udp = said
        .ena_srd_udp_specification()
        .map(|udp| EnaSrdUdpSpecificationRequest::builder().set_ena_srd_udp_enabled(udp.ena_srd_udp_enabled()).build());
    let request = EnaSrdSpecificationRequest::builder().set_ena_srd_enabled(said.ena_srd_enabled());
    Some(request.set_ena_srd_udp_specification(udp).build())
}

fn connection_tracking(template: &TemplateInterface) -> Option<ConnectionTrackingSpecificationRequest> {
    let said = template.connection_tracking_specification()?;
    let request = ConnectionTrackingSpecificationRequest::builder()
        .set_tcp_established_timeout(said.tcp_established_timeout())
        .set_udp_stream_timeout(said.udp_stream_timeout())
        .set_udp_timeout(said.udp_timeout());
    Some(request.build())
}

#[cfg(test)]
mod tests {
    use aws_sdk_ec2::types::{
        ConnectionTrackingSpecification, InstanceIpv6Address, Ipv4PrefixSpecificationResponse,
        LaunchTemplateEnaSrdSpecification, LaunchTemplateEnaSrdUdpSpecification, PrivateIpAddressSpecification,
    };
    use rehost_control::PortErrorKind;

    use super::*;

    const TARGET: &str = "subnet-target";

    fn template(interfaces: Vec<TemplateInterface>) -> ResponseLaunchTemplateData {
        ResponseLaunchTemplateData::builder().set_network_interfaces(Some(interfaces)).build()
    }

    fn ip() -> Option<IpAddr> {
        Some("10.0.0.9".parse().unwrap())
    }

    #[test]
    fn without_interfaces_the_target_subnet_and_the_address_are_the_requests() {
        for data in [None, Some(template(Vec::new()))] {
            let placed = placement(data.as_ref(), TARGET, ip()).unwrap();
            assert_eq!((placed.subnet.as_deref(), placed.private_ip.as_deref()), (Some(TARGET), Some("10.0.0.9")));
            assert!(placed.interfaces.is_empty());
        }
    }

    #[test]
    fn a_subnet_of_the_template_is_left_as_it_is() {
        let data = template(vec![TemplateInterface::builder().device_index(0).subnet_id("subnet-own").build()]);
        let placed = placement(Some(&data), TARGET, None).unwrap();
        assert_eq!(placed, Placement { in_subnet: Some("subnet-own".to_owned()), ..Placement::default() });
    }

    #[test]
    fn an_interface_without_subnet_gets_the_target_subnet_and_keeps_the_rest() {
        let second = TemplateInterface::builder().device_index(1).subnet_id("subnet-two").build();
        let first =
            TemplateInterface::builder().device_index(0).groups("sg-1").associate_public_ip_address(true).build();
        let placed = placement(Some(&template(vec![second, first])), TARGET, ip()).unwrap();
        assert_eq!((placed.subnet, placed.in_subnet.as_deref()), (None, Some(TARGET)));
        let [second, first] = placed.interfaces.as_slice() else { panic!("{:?}", placed.interfaces) };
        assert_eq!((first.subnet_id(), first.private_ip_address()), (Some(TARGET), Some("10.0.0.9")));
        assert_eq!((first.groups(), first.associate_public_ip_address()), (["sg-1".to_owned()].as_slice(), Some(true)));
        assert_eq!((second.subnet_id(), second.private_ip_address()), (Some("subnet-two"), None));
    }

    #[test]
    fn an_interface_is_taken_over_whole() {
        let udp = LaunchTemplateEnaSrdUdpSpecification::builder().ena_srd_udp_enabled(true).build();
        let srd =
            LaunchTemplateEnaSrdSpecification::builder().ena_srd_enabled(true).ena_srd_udp_specification(udp).build();
        let data = template(vec![
            TemplateInterface::builder()
                .ipv6_addresses(InstanceIpv6Address::builder().ipv6_address("2001:db8::1").build())
                .primary_ipv6(true)
                .ipv4_prefixes(Ipv4PrefixSpecificationResponse::builder().ipv4_prefix("10.0.0.16/28").build())
                .ipv6_prefix_count(1)
                .ena_srd_specification(srd)
                .connection_tracking_specification(ConnectionTrackingSpecification::builder().udp_timeout(40).build())
                .build(),
        ]);
        let placed = placement(Some(&data), TARGET, None).unwrap();
        let [interface] = placed.interfaces.as_slice() else { panic!("{:?}", placed.interfaces) };
        assert_eq!(interface.ipv6_addresses()[0].ipv6_address(), Some("2001:db8::1"));
        assert_eq!(interface.ipv4_prefixes()[0].ipv4_prefix(), Some("10.0.0.16/28"));
        assert_eq!((interface.primary_ipv6(), interface.ipv6_prefix_count()), (Some(true), Some(1)));
        let srd = interface.ena_srd_specification().unwrap();
        let udp = srd.ena_srd_udp_specification().unwrap();
        assert_eq!((srd.ena_srd_enabled(), udp.ena_srd_udp_enabled()), (Some(true), Some(true)));
        assert_eq!(interface.connection_tracking_specification().unwrap().udp_timeout(), Some(40));
        assert_eq!((&interface.groups, &interface.ipv6_prefixes), (&None, &None));
    }

    #[test]
    fn an_address_takes_the_place_of_those_that_the_template_lists() {
        let listed = PrivateIpAddressSpecification::builder().primary(true).private_ip_address("10.0.0.1").build();
        let data = template(vec![TemplateInterface::builder().private_ip_addresses(listed.clone()).build()]);
        let kept = placement(Some(&data), TARGET, None).unwrap();
        assert_eq!(kept.interfaces[0].private_ip_addresses(), [listed]);
        let replaced = placement(Some(&data), TARGET, ip()).unwrap();
        assert_eq!(replaced.interfaces[0].private_ip_address(), Some("10.0.0.9"));
        assert!(replaced.interfaces[0].private_ip_addresses().is_empty());
    }

    #[test]
    fn another_group_takes_the_place_of_the_templates() {
        let interface = TemplateInterface::builder().groups("sg-own").associate_public_ip_address(true).build();
        let placed = placement(Some(&template(vec![interface])), TARGET, None).unwrap().with_group("sg-there");
        let [interface] = placed.interfaces.as_slice() else { panic!("{:?}", placed.interfaces) };
        assert_eq!((interface.groups(), interface.subnet_id()), (["sg-there".to_owned()].as_slice(), Some(TARGET)));
        assert_eq!(interface.associate_public_ip_address(), Some(true));
        let placed = placement(None, TARGET, ip()).unwrap().with_group("sg-there");
        assert_eq!((placed.subnet, placed.private_ip), (None, None));
        let [interface] = placed.interfaces.as_slice() else { panic!("{:?}", placed.interfaces) };
        assert_eq!((interface.groups(), interface.subnet_id()), (["sg-there".to_owned()].as_slice(), Some(TARGET)));
        assert_eq!(interface.private_ip_address(), Some("10.0.0.9"));
    }

    #[test]
    fn an_existing_interface_keeps_its_address() {
        let data = template(vec![TemplateInterface::builder().network_interface_id("eni-1").build()]);
        assert_eq!(placement(Some(&data), TARGET, None).unwrap(), Placement::default());
        let refused = placement(Some(&data), TARGET, ip()).unwrap_err();
        assert_eq!(refused.kind, PortErrorKind::Invalid);
        assert!(refused.message.contains("copyPrivateIp"), "{refused}");
    }
}
