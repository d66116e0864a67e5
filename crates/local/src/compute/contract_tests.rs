//! What every `Compute` promises, whoever keeps it: written against the port alone.

use std::collections::BTreeSet;

use rehost_control::PortErrorKind;
use rehost_control::ports::{ClientToken, Compute, MAX_SNAPSHOT_READ, SnapshotState, Tags, VolumeSpec};
use rehost_model::ledger::{ResourceKind, SERVER_TAG};
use rehost_model::settings::{EbsEncryption, StagingDiskType};
use rehost_model::{InstanceId, ServerId, SnapshotId, VolumeId};

use super::tests::compute;

pub(super) fn token(parts: &[&str]) -> ClientToken {
    ClientToken::derive(parts)
}

pub(super) fn tags(server: &ServerId) -> Tags {
    Tags::from([(SERVER_TAG.to_owned(), server.to_string())])
}

pub(super) fn volume(server: &ServerId, size_bytes: u64, from_snapshot: Option<SnapshotId>) -> VolumeSpec {
    VolumeSpec {
        size_bytes,
        from_snapshot,
        staging_disk_type: StagingDiskType::Auto,
        staging_subnet_id: String::new(),
        encryption: EbsEncryption::Default,
        encryption_key_arn: None,
        tags: tags(server),
    }
}

/// Runs every promise.
async fn keeps_its_promises(compute: &dyn Compute) {
    one_token_means_one_volume(compute).await;
    snapshots_and_clones_are_whole(compute).await;
    volumes_grow_and_never_shrink(compute).await;
    deleting_twice_is_a_success(compute).await;
    what_does_not_exist_is_not_found(compute).await;
    tagged_resources_are_all_listed(compute).await;
}

async fn one_token_means_one_volume(compute: &dyn Compute) {
    let server = ServerId::generate();
    let spec = volume(&server, 1 << 20, None);
    let first = compute.create_volume(&spec, &token(&[server.as_str(), "a"])).await.unwrap();
    assert_eq!(compute.create_volume(&spec, &token(&[server.as_str(), "a"])).await.unwrap(), first);
    let second = compute.create_volume(&spec, &token(&[server.as_str(), "b"])).await.unwrap();
    assert_ne!(first, second);
    assert_eq!(compute.tagged_resources(Some(&server)).await.unwrap().len(), 2);
    compute.delete_volume(&first).await.unwrap();
    compute.delete_volume(&second).await.unwrap();
    // A late repetition must not make what nobody knows of.
    assert_eq!(compute.create_volume(&spec, &token(&[server.as_str(), "a"])).await.unwrap(), first);
    assert!(compute.tagged_resources(Some(&server)).await.unwrap().is_empty());
}

async fn snapshots_and_clones_are_whole(compute: &dyn Compute) {
    let server = ServerId::generate();
    let make = |name: &'static str| {
        let (spec, token) = (volume(&server, 1 << 20, None), token(&[server.as_str(), name]));
        async move { compute.create_volume(&spec, &token).await.unwrap() }
    };
    let volumes = [make("a").await, make("b").await];
    let taken = token(&[server.as_str(), "snapshots"]);
    let snapshots = compute.create_snapshots(&volumes, &tags(&server), &taken).await.unwrap();
    assert_eq!(compute.create_snapshots(&volumes, &tags(&server), &taken).await.unwrap(), snapshots);
    assert_eq!(snapshots.iter().collect::<BTreeSet<_>>().len(), 2);
    for snapshot in &snapshots {
        assert_eq!(compute.snapshot_state(snapshot).await.unwrap(), SnapshotState::Completed);
    }
    let whole = compute.read_snapshot(&snapshots[0], 0, MAX_SNAPSHOT_READ).await.unwrap();
    assert_eq!((whole.len(), whole.iter().max()), (1 << 20, Some(&0)), "it ends where the snapshot does");
    assert_eq!(compute.read_snapshot(&snapshots[0], 1 << 19, 1 << 19).await.unwrap().len(), 1 << 19);
    assert!(compute.read_snapshot(&snapshots[0], 1 << 20, 1 << 19).await.unwrap().is_empty());
    let endless = compute.read_snapshot(&snapshots[0], 0, MAX_SNAPSHOT_READ + 1).await.unwrap_err();
    assert_eq!(endless.kind, PortErrorKind::Invalid);
    let missing = compute.read_snapshot(&SnapshotId::generate(), 0, 1 << 19).await.unwrap_err();
    assert!(missing.is_not_found());
    let too_small = volume(&server, 512, Some(snapshots[0].clone()));
    let refused = compute.create_volume(&too_small, &token(&[server.as_str(), "small"])).await.unwrap_err();
    assert_eq!(refused.kind, PortErrorKind::Invalid);
    let clone = volume(&server, 1 << 20, Some(snapshots[0].clone()));
    let clone = compute.create_volume(&clone, &token(&[server.as_str(), "clone"])).await.unwrap();
    for snapshot in &snapshots {
        compute.delete_snapshot(snapshot).await.unwrap();
        assert!(compute.snapshot_state(snapshot).await.unwrap_err().is_not_found());
    }
    for volume in volumes.iter().chain([&clone]) {
        compute.delete_volume(volume).await.unwrap();
    }
    assert!(compute.tagged_resources(Some(&server)).await.unwrap().is_empty());
}

async fn volumes_grow_and_never_shrink(compute: &dyn Compute) {
    let server = ServerId::generate();
    let made = compute.create_volume(&volume(&server, 1 << 20, None), &token(&[server.as_str(), "v"])).await.unwrap();
    for size_bytes in [2 << 20, 2 << 20, 1 << 20] {
        compute.modify_volume(&made, size_bytes).await.unwrap();
    }
    let taken = token(&[server.as_str(), "s"]);
    let snapshots = compute.create_snapshots(std::slice::from_ref(&made), &tags(&server), &taken).await.unwrap();
    let clone = |size_bytes| volume(&server, size_bytes, Some(snapshots[0].clone()));
    let too_small = compute.create_volume(&clone(1 << 20), &token(&[server.as_str(), "small"])).await;
    assert_eq!(
        too_small.unwrap_err().kind,
        PortErrorKind::Invalid,
        "the snapshot is as large as the volume has become"
    );
    let whole = compute.create_volume(&clone(2 << 20), &token(&[server.as_str(), "whole"])).await.unwrap();
    compute.delete_snapshot(&snapshots[0]).await.unwrap();
    for volume in [made, whole] {
        compute.delete_volume(&volume).await.unwrap();
    }
    assert!(compute.modify_volume(&VolumeId::generate(), 1 << 20).await.unwrap_err().is_not_found());
}

async fn deleting_twice_is_a_success(compute: &dyn Compute) {
    compute.delete_volume(&VolumeId::generate()).await.unwrap();
    compute.delete_snapshot(&SnapshotId::generate()).await.unwrap();
    compute.terminate_instance(&InstanceId::generate()).await.unwrap();
    compute.detach_volume(&VolumeId::generate(), &InstanceId::generate()).await.unwrap();
    assert_eq!(compute.instance(&InstanceId::generate()).await.unwrap(), None);
}

async fn what_does_not_exist_is_not_found(compute: &dyn Compute) {
    let server = ServerId::generate();
    let missing = VolumeId::generate();
    let (snapshots, clone) = (token(&[server.as_str(), "s"]), token(&[server.as_str(), "c"]));
    let refused = compute.create_snapshots(std::slice::from_ref(&missing), &tags(&server), &snapshots).await;
    assert!(refused.unwrap_err().is_not_found());
    let spec = volume(&server, 1 << 20, Some(SnapshotId::generate()));
    assert!(compute.create_volume(&spec, &clone).await.unwrap_err().is_not_found());
    assert!(compute.attach_volume(&missing, &InstanceId::generate()).await.unwrap_err().is_not_found());
    assert!(compute.console_output(&InstanceId::generate()).await.unwrap_err().is_not_found());
    assert!(compute.tagged_resources(Some(&server)).await.unwrap().is_empty(), "a refused call leaves nothing");
}

async fn tagged_resources_are_all_listed(compute: &dyn Compute) {
    let (server, other) = (ServerId::generate(), ServerId::generate());
    let mine = compute.create_volume(&volume(&server, 4096, None), &token(&[server.as_str(), "v"])).await.unwrap();
    let theirs = compute.create_volume(&volume(&other, 4096, None), &token(&[other.as_str(), "v"])).await.unwrap();
    let taken = token(&[server.as_str(), "s"]);
    let snapshots = compute.create_snapshots(std::slice::from_ref(&mine), &tags(&server), &taken).await.unwrap();
    let listed = compute.tagged_resources(Some(&server)).await.unwrap();
    let listed: BTreeSet<(ResourceKind, String)> = listed.into_iter().map(|r| (r.kind, r.id)).collect();
    let expected = [(ResourceKind::Volume, mine.to_string()), (ResourceKind::Snapshot, snapshots[0].to_string())];
    assert_eq!(listed, expected.into_iter().collect());
    assert!(compute.tagged_resources(None).await.unwrap().iter().any(|r| r.id == theirs.as_str()));
    compute.delete_snapshot(&snapshots[0]).await.unwrap();
    compute.delete_volume(&mine).await.unwrap();
    compute.delete_volume(&theirs).await.unwrap();
}

#[tokio::test]
async fn local_compute_keeps_its_promises() {
    let home = tempfile::tempdir().unwrap();
    keeps_its_promises(&compute(home.path())).await;
    for directory in ["volumes", "snapshots", "instances", "replicators"] {
        let left: Vec<_> = std::fs::read_dir(home.path().join(directory)).unwrap().collect();
        assert!(left.is_empty(), "{directory}: {left:?}");
    }
}
