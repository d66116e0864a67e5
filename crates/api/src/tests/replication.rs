//! MGN's operations on a server's data replication and its configuration.

use super::*;

#[tokio::test]
async fn replication_is_started_paused_resumed_and_stopped_in_mgns_words() {
    let region = Region::new().await;
    let (_, enrolled) = enrol(&region).await;
    let server = json!({"sourceServerID": enrolled.source_server_id});
    let steps = [
        ("/PauseReplication", None),
        ("/StartReplication", Some("INITIATING")),
        ("/StartReplication", None),
        ("/RetryDataReplication", None),
        ("/PauseReplication", Some("PAUSED")),
        ("/ResumeReplication", Some("INITIATING")),
        ("/StopReplication", Some("STOPPED")),
    ];
    for (path, expected) in steps {
        let answer = call(&region, path, server.clone()).await;
        match expected {
            Some(state) => {
                assert_eq!(answer.status, StatusCode::OK, "{path}: {}", answer.body);
                assert_eq!(answer.body["dataReplicationInfo"]["dataReplicationState"], state, "{path}");
                assert!(answer.body["rehost"].is_object(), "what MGN has no member for stands beside it");
            }
            None => assert_eq!(answer.exception, "ConflictException", "{path}: {}", answer.body),
        }
    }
    let missing = call(&region, "/PauseReplication", json!({"sourceServerID": "s-00000000000000000"})).await;
    assert_eq!(missing.exception, "ResourceNotFoundException");
}

#[tokio::test]
async fn the_replication_configuration_is_read_and_changed() {
    let region = Region::new().await;
    let (_, enrolled) = enrol(&region).await;
    let with = |members: Value| {
        let mut request = json!({"sourceServerID": enrolled.source_server_id});
        request.as_object_mut().unwrap().extend(members.as_object().unwrap().clone());
        request
    };
    let change = json!({"bandwidthThrottling": 50, "useDedicatedReplicationServer": true, "name": "not kept"});
    let changed = call(&region, "/UpdateReplicationConfiguration", with(change)).await;
    assert_eq!(changed.status, StatusCode::OK, "{}", changed.body);
    let read = call(&region, "/GetReplicationConfiguration", with(json!({}))).await.body;
    assert_eq!((&read["bandwidthThrottling"], &read["useDedicatedReplicationServer"]), (&json!(50), &json!(true)));
    assert_eq!((&read, &read["sourceServerID"]), (&changed.body, &json!(enrolled.source_server_id)));
    for (members, named) in [
        (json!({"bandwidthThrottling": 10_001}), "bandwidthThrottling"),
        (json!({"ebsEncryption": "SOME"}), "ebsEncryption"),
        (json!({"ebsEncryption": "CUSTOM"}), "ebsEncryptionKeyArn"),
        (
            json!({"replicatedDisks": [{"deviceName": "/dev/x", "isBootDisk": false, "stagingDiskType": "GP3"}]}),
            "replicatedDisks",
        ),
    ] {
        let refused = call(&region, "/UpdateReplicationConfiguration", with(members)).await;
        assert_eq!(refused.exception, "ValidationException");
        assert_eq!(refused.body["fieldList"][0]["name"], named, "{}", refused.body);
    }
}

#[tokio::test]
async fn a_disk_that_nobody_has_seen_is_not_added() {
    let region = Region::new().await;
    let (_, enrolled) = enrol(&region).await;
    let request = json!({"sourceServerID": enrolled.source_server_id, "deviceName": "/dev/sdz"});
    let stopped = call(&region, settings::ADD_DISK_PATH, request.clone()).await;
    assert_eq!(stopped.exception, "ConflictException", "{}", stopped.body);
    call(&region, "/StartReplication", json!({"sourceServerID": enrolled.source_server_id})).await;
    let unknown = call(&region, settings::ADD_DISK_PATH, request).await;
    assert_eq!(unknown.exception, "ValidationException", "{}", unknown.body);
}

#[tokio::test]
async fn new_servers_start_from_the_template() {
    let region = Region::new().await;
    let ask = async |path: &str, request: Value| call(&region, &format!("/{path}Template"), request).await;
    let change = json!({"bandwidthThrottling": 50, "stagingAreaSubnetId": "subnet-1", "tags": {"not": "kept"}});
    let made = ask("CreateReplicationConfiguration", change).await;
    assert_eq!((made.status, &made.body["bandwidthThrottling"]), (StatusCode::OK, &json!(50)), "{}", made.body);
    let id = made.body["replicationConfigurationTemplateID"].clone();
    assert!(made.body["arn"].as_str().unwrap().ends_with(&format!("template/{}", id.as_str().unwrap())));
    let second = ask("CreateReplicationConfiguration", json!({})).await;
    assert_eq!((second.exception.as_str(), &second.body["resourceId"]), ("ConflictException", &id));
    let update = json!({"replicationConfigurationTemplateID": id, "bandwidthThrottling": 60});
    let changed = ask("UpdateReplicationConfiguration", update).await;
    assert_eq!(changed.status, StatusCode::OK, "{}", changed.body);
    let listed = call(&region, "/DescribeReplicationConfigurationTemplates", json!({})).await;
    assert_eq!(listed.body, json!({"items": [changed.body]}));
    let (_, enrolled) = enrol(&region).await;
    let server = json!({"sourceServerID": enrolled.source_server_id});
    let read = call(&region, "/GetReplicationConfiguration", server).await.body;
    assert_eq!((&read["bandwidthThrottling"], &read["stagingAreaSubnetId"]), (&json!(60), &json!("subnet-1")));
    for (path, members, named) in [
        ("Update", json!({"replicationConfigurationTemplateID": "x"}), "replicationConfigurationTemplateID"),
        ("Update", json!({"replicationConfigurationTemplateID": id, "ebsEncryption": "SOME"}), "ebsEncryption"),
        ("Update", json!({"replicationConfigurationTemplateID": id, "replicatedDisks": []}), "replicatedDisks"),
        ("Delete", json!({}), "replicationConfigurationTemplateID"),
    ] {
        let refused = ask(&format!("{path}ReplicationConfiguration"), members).await;
        assert_eq!(refused.exception, "ValidationException");
        assert_eq!(refused.body["fieldList"][0]["name"], named, "{}", refused.body);
    }
    let template = json!({"replicationConfigurationTemplateID": id});
    for expected in [StatusCode::OK, StatusCode::NOT_FOUND] {
        assert_eq!(ask("DeleteReplicationConfiguration", template.clone()).await.status, expected);
    }
}
