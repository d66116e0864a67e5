use rehost_control::PortError;
use rehost_link::identity::Identity;
use rehost_model::link::{AGENT_POLL_PATH, AgentReport, ENROL_PATH, EnrolResponse};
use serde_json::{Value, json};

use super::*;
use crate::gateway::tests::event;
use crate::tests::{TestRegion, enrolment};

async fn function(part: Part, region: &TestRegion) -> Http {
    Http::prepare(part, region.connected().await).await
}

async fn answer(http: &Http, event: Value) -> (u16, Value) {
    let event = LambdaEvent { payload: serde_json::from_value(event).unwrap(), context: Context::default() };
    let response = http.answer(event).await.unwrap();
    assert_eq!(response.headers["content-type"], "application/json");
    (response.status_code, serde_json::from_str(&response.body).unwrap())
}

fn unvouched(path: &str, body: &str) -> Value {
    let mut event = event(path, body);
    event["requestContext"].as_object_mut().unwrap().remove("authorizer");
    event
}

#[tokio::test]
async fn whom_the_gateway_does_not_vouch_for_is_refused() {
    let region = TestRegion::new().await;
    let (enrol, api) = (function(Part::Enrol, &region).await, function(Part::Api, &region).await);
    for (http, path) in [(&enrol, ENROL_PATH), (&api, "/DescribeSourceServers")] {
        let (status, body) = answer(http, unvouched(path, "{}")).await;
        assert_eq!((status, body["code"].as_str()), (403, Some("MissingAuthenticationTokenException")), "{path}");
        let mut stranger = event(path, "{}");
        stranger["requestContext"]["authorizer"]["iam"]["accountId"] = json!("111111111111");
        let (status, body) = answer(http, stranger).await;
        assert_eq!((status, body["code"].as_str()), (403, Some("AccessDeniedException")), "{path}");
    }
}

#[tokio::test]
async fn a_server_enrols_polls_and_is_described_each_at_its_function() {
    let region = TestRegion::new().await;
    let (key, request) = enrolment();
    let enrol = function(Part::Enrol, &region).await;
    let (status, body) = answer(&enrol, event(ENROL_PATH, &serde_json::to_string(&request).unwrap())).await;
    assert_eq!(status, 200, "{body}");
    let enrolled: EnrolResponse = serde_json::from_value(body).unwrap();
    let identity = Identity::new(&key, &enrolled.issued).unwrap();
    let report = AgentReport { agent_version: "0.1.0".to_owned(), ..AgentReport::default() };
    let report = serde_json::to_string(&report).unwrap();
    let header =
        identity.signer().unwrap().sign("POST", AGENT_POLL_PATH, report.as_bytes(), region.ports.clock.now()).unwrap();
    let mut poll = unvouched(AGENT_POLL_PATH, &report);
    poll["headers"]["authorization"] = json!(header);
    let agent = function(Part::Agent, &region).await;
    let (status, body) = answer(&agent, poll.clone()).await;
    assert_eq!((status, &body["command"]["type"]), (200, &json!("WAIT")), "{body}");
    poll["body"] = json!("{}");
    assert_eq!(answer(&agent, poll).await.1["code"], "InvalidSignatureException");
    let api = function(Part::Api, &region).await;
    let (status, body) = answer(&api, event("/DescribeSourceServers", "{}")).await;
    assert_eq!((status, &body["items"][0]["sourceServerID"]), (200, &json!(enrolled.source_server_id)));
    for (http, path) in [(&api, ENROL_PATH), (&api, AGENT_POLL_PATH), (&agent, "/StartTest"), (&enrol, "/StartTest")] {
        assert_eq!(answer(http, event(path, "{}")).await.0, 404, "{path}");
    }
}

#[tokio::test]
async fn what_is_wrong_with_the_environment_is_told() {
    let wrong = PortError::invalid("the environment variable REHOST_TABLE is not set");
    let region = Region::prepare(|| async { Err(wrong) }).await;
    let http = Http::prepare(Part::Api, region).await;
    let (status, body) = answer(&http, event("/DescribeSourceServers", "{}")).await;
    assert!(status >= 400 && body["message"].as_str().unwrap().contains("REHOST_TABLE"), "{body}");
}

#[tokio::test]
async fn every_answer_is_http() {
    let region = TestRegion::new().await;
    let api = function(Part::Api, &region).await;
    for (path, body, status) in [("/a b", "", 400), ("/StartTest", "no JSON", 400), ("/", "{}", 404)] {
        assert_eq!(answer(&api, event(path, body)).await.0, status, "{path}");
    }
}
