//! The user's launch template, and what a copy's launch takes from it: EC2 itself merges the two, except where a copy has to
//! have a subnet or an address that the template does not name.

use std::net::IpAddr;

use aws_sdk_ec2::types::{
    InstanceNetworkInterfaceSpecification as Interface,
    LaunchTemplateInstanceNetworkInterfaceSpecification as TemplateInterface, LaunchTemplateSpecification,
    ResponseLaunchTemplateData,
};
use rehost_control::PortError;
use rehost_control::ports::PortResult;

use crate::Ec2Compute;
use crate::errors::failed;

/// The version that its owner declared the default.
const DEFAULT_VERSION: &str = "$Default";

/// A launch template, by its id, in its default version.
pub(crate) fn by_default_version(id: &str) -> LaunchTemplateSpecification {
    LaunchTemplateSpecification::builder().launch_template_id(id).version(DEFAULT_VERSION).build()
}

impl Ec2Compute {
    /// What the default version of a launch template says.
    pub(crate) async fn template(&self, id: &str) -> PortResult<ResponseLaunchTemplateData> {
        let subject = format!("the launch template {id}");
        let call = self.ec2.describe_launch_template_versions().launch_template_id(id).versions(DEFAULT_VERSION);
        let described = call.send().await.map_err(|e| failed("ec2:DescribeLaunchTemplateVersions", &subject, &e))?;
        let version = described.launch_template_versions.unwrap_or_default().into_iter().next();
        let data = version.and_then(|version| version.launch_template_data);
        data.ok_or_else(|| PortError::invalid(format!("{subject} has no default version: set one")))
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
                let mut interface = taken_over(interface);
                if index == primary {
                    interface = interface.subnet_id(subnet).set_private_ip_address(private_ip.map(|ip| ip.to_string()));
                }
                interface.build()
            };
            let interfaces = interfaces.iter().enumerate().map(with_subnet).collect();
            Ok(Placement { interfaces, in_subnet: Some(subnet.to_owned()), ..Placement::default() })
        }
    }
}

/// The interface of a template as an interface of a request: the two have the same members in two types.
fn taken_over(
    template: &TemplateInterface,
) -> aws_sdk_ec2::types::builders::InstanceNetworkInterfaceSpecificationBuilder {
    let groups = template.groups();
    Interface::builder()
        .device_index(template.device_index().unwrap_or(0))
        .set_network_card_index(template.network_card_index())
        .set_network_interface_id(template.network_interface_id().map(str::to_owned))
        .set_interface_type(template.interface_type().map(str::to_owned))
        .set_description(template.description().map(str::to_owned))
        .set_groups((!groups.is_empty()).then(|| groups.to_vec()))
        .set_subnet_id(template.subnet_id().map(str::to_owned))
        .set_private_ip_address(template.private_ip_address().map(str::to_owned))
        .set_secondary_private_ip_address_count(template.secondary_private_ip_address_count())
        .set_associate_public_ip_address(template.associate_public_ip_address())
        .set_associate_carrier_ip_address(template.associate_carrier_ip_address())
        .set_delete_on_termination(template.delete_on_termination())
}

#[cfg(test)]
mod tests {
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
    fn an_existing_interface_keeps_its_address() {
        let data = template(vec![TemplateInterface::builder().network_interface_id("eni-1").build()]);
        assert_eq!(placement(Some(&data), TARGET, None).unwrap(), Placement::default());
        let refused = placement(Some(&data), TARGET, ip()).unwrap_err();
        assert_eq!(refused.kind, PortErrorKind::Invalid);
        assert!(refused.message.contains("copyPrivateIp"), "{refused}");
    }
}
