//! MGN's replication configuration template: what new servers start from. A region has one at most, as an account has in MGN.

use rehost_model::ReplicationTemplateId;
use rehost_model::settings::{ReplicationSettings, ReplicationTemplate};

use sha2::{Digest as _, Sha256};

use super::settings::{ReplicationChange, check_bandwidth, check_encryption};
use super::{OperationError, OperationResult};
use crate::ports::Ports;
use crate::{PortError, repo};

const RESOURCE_TYPE: &str = "ReplicationConfigurationTemplate";

/// MGN's `DescribeReplicationConfigurationTemplates`: those with these ids, or all of them if none is named.
///
/// # Errors
/// `NotFound` for an id that does not exist.
pub async fn describe_replication_configuration_templates(
    ports: &Ports,
    ids: &[ReplicationTemplateId],
) -> OperationResult<Vec<ReplicationTemplate>> {
    let mut templates: Vec<ReplicationTemplate> = repo::list(ports, "").await?;
    if let Some(absent) = ids.iter().find(|id| templates.iter().all(|template| template.id != **id)) {
        return Err(OperationError::NotFound { resource_type: RESOURCE_TYPE, resource_id: absent.to_string() });
    }
    templates.retain(|template| ids.is_empty() || ids.contains(&template.id));
    Ok(templates)
}

/// MGN's `CreateReplicationConfigurationTemplate`; what is not named is as it would be without a template.
///
/// # Errors
/// `Conflict` if there is one; `Validation` for values out of range.
pub async fn create_replication_configuration_template(
    ports: &Ports,
    change: &ReplicationChange,
) -> OperationResult<ReplicationTemplate> {
    check(change)?;
    if let Some(template) = repo::list::<ReplicationTemplate>(ports, "").await?.into_iter().next() {
        return Err(OperationError::Conflict {
            message: format!("there is a template, {}, and a region has one alone: change that one", template.id),
            resource_type: RESOURCE_TYPE,
            resource_id: template.id.to_string(),
        });
    }
    let mut settings = ReplicationSettings::default();
    change.clone().apply_to(&mut settings);
    check_encryption(&settings)?;
    let template = ReplicationTemplate { id: the_id(ports)?, settings };
    repo::create(ports, &template).await?;
    Ok(template)
}

/// The same always: of two who create the only template at once, one is refused.
fn the_id(ports: &Ports) -> OperationResult<ReplicationTemplateId> {
    let hash = hex::encode(Sha256::digest(format!("{} {}", ports.account, ports.region)));
    let id: String = ReplicationTemplateId::PREFIX.chars().chain(hash.chars().take(17)).collect();
    Ok(id.parse().map_err(PortError::invalid)?)
}

/// MGN's `UpdateReplicationConfigurationTemplate`. Servers that are there keep their settings.
///
/// # Errors
/// `NotFound`; `Validation` for values out of range.
pub async fn update_replication_configuration_template(
    ports: &Ports,
    id: &ReplicationTemplateId,
    change: &ReplicationChange,
) -> OperationResult<ReplicationTemplate> {
    check(change)?;
    let changed = repo::update(ports, id.as_str(), |template: &mut ReplicationTemplate| {
        change.clone().apply_to(&mut template.settings);
        check_encryption(&template.settings)
    });
    changed.await.map(|(template, ())| template).map_err(|e| e.about(RESOURCE_TYPE, id.as_str()))
}

/// MGN's `DeleteReplicationConfigurationTemplate`; from then on new servers start from what is the default.
///
/// # Errors
/// `NotFound`.
pub async fn delete_replication_configuration_template(
    ports: &Ports,
    id: &ReplicationTemplateId,
) -> OperationResult<()> {
    if repo::find::<ReplicationTemplate>(ports, id.as_str()).await?.is_none() {
        return Err(OperationError::NotFound { resource_type: RESOURCE_TYPE, resource_id: id.to_string() });
    }
    Ok(repo::remove::<ReplicationTemplate>(ports, id.as_str()).await?)
}

fn check(change: &ReplicationChange) -> OperationResult<()> {
    check_bandwidth(change.bandwidth_throttling)?;
    if change.replicated_disks.is_some() {
        let message = "a template has none: they are a server's own".to_owned();
        return Err(OperationError::Validation { field: "replicatedDisks", message });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use rehost_model::settings::EbsEncryption;

    use super::*;
    use crate::testing::Fake;

    fn subnet(id: &str) -> ReplicationChange {
        ReplicationChange { staging_area_subnet_id: Some(id.to_owned()), ..ReplicationChange::default() }
    }

    #[tokio::test]
    async fn a_region_has_one_template_at_most() {
        let ports = Fake::default().ports();
        let none = describe_replication_configuration_templates(&ports, &[]).await.unwrap();
        assert_eq!(none, []);
        let made = create_replication_configuration_template(&ports, &subnet("subnet-1")).await.unwrap();
        assert_eq!(made.settings.staging_area_subnet_id, "subnet-1");
        assert_eq!(made.settings.replication_server_instance_type, "t3.small", "what is not named is the default");
        let again = create_replication_configuration_template(&ports, &subnet("subnet-2")).await.unwrap_err();
        assert!(matches!(again, OperationError::Conflict { resource_id, .. } if resource_id == made.id.to_string()));
        let changed = update_replication_configuration_template(&ports, &made.id, &subnet("subnet-3")).await.unwrap();
        for ids in [vec![], vec![made.id.clone()]] {
            let described = describe_replication_configuration_templates(&ports, &ids).await.unwrap();
            assert_eq!(described, std::slice::from_ref(&changed));
        }
        let absent = describe_replication_configuration_templates(&ports, &[other()]).await.unwrap_err();
        assert!(matches!(absent, OperationError::NotFound { .. }));
        delete_replication_configuration_template(&ports, &made.id).await.unwrap();
        let another = create_replication_configuration_template(&ports, &subnet("subnet-1")).await.unwrap();
        assert_eq!(another, made, "of two who make it at once, one is refused by its id");
        delete_replication_configuration_template(&ports, &made.id).await.unwrap();
        for id in [made.id, other()] {
            let absent = delete_replication_configuration_template(&ports, &id).await.unwrap_err();
            assert!(matches!(absent, OperationError::NotFound { .. }));
            let absent = update_replication_configuration_template(&ports, &id, &subnet("")).await.unwrap_err();
            assert!(matches!(absent, OperationError::NotFound { .. }));
        }
    }

    fn other() -> ReplicationTemplateId {
        ReplicationTemplateId::generate()
    }

    #[tokio::test]
    async fn what_cannot_be_is_refused() {
        let ports = Fake::default().ports();
        let too_fast = ReplicationChange { bandwidth_throttling: Some(10_001), ..ReplicationChange::default() };
        let disks = ReplicationChange { replicated_disks: Some(vec![]), ..ReplicationChange::default() };
        let no_key = ReplicationChange {
            ebs_encryption: Some(EbsEncryption::Custom),
            ebs_encryption_key_arn: Some(String::new()),
            ..ReplicationChange::default()
        };
        let refused = [(too_fast, "bandwidthThrottling"), (disks, "replicatedDisks"), (no_key, "ebsEncryptionKeyArn")];
        for (change, named) in refused {
            let refused = create_replication_configuration_template(&ports, &change).await.unwrap_err();
            assert!(matches!(refused, OperationError::Validation { field, .. } if field == named));
        }
    }
}
