//! Behind API Gateway: only what the authoriser says counts, and each part serves its own paths.

use super::*;
use crate::fake::ACCOUNT;

const PARTS: [Part; 3] = [Part::Enrol, Part::Agent, Part::Api];

async fn behind_gateway() -> Region {
    let mut region = Region::new().await;
    region.state.authentication = Authentication::Gateway;
    region
}

fn caller() -> GatewayCaller {
    GatewayCaller {
        user_arn: format!("arn:aws:sts::{}:assumed-role/migrators/me", ACCOUNT),
        account: ACCOUNT.to_owned(),
        access_key: "ASIAEXAMPLE".to_owned(),
    }
}

fn vouched(path: &str, body: &Value) -> Request<Body> {
    let request = Request::post(path).extension(caller());
    request.body(Body::from(body.to_string())).unwrap()
}

#[tokio::test]
async fn the_gateways_word_counts_and_nothing_else() {
    let region = behind_gateway().await;
    let path = "/DescribeSourceServers";
    let answer = send(&region, vouched(path, &json!({}))).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.body);
    let unsigned = Request::post(path).body(Body::empty()).unwrap();
    let own_signature = signed(&region, ADMIN_KEY, path, b"");
    let caller = json!({"userArn": caller().user_arn, "accountId": caller().account, "accessKey": "ASIAEXAMPLE"});
    let context = json!({"authorizer": {"iam": caller}}).to_string();
    let forged = Request::post(path)
        .header("x-amzn-request-context", &context)
        .header("x-rehost-caller", caller.to_string())
        .header("authorization", "AWS4-HMAC-SHA256 Credential=ASIAEXAMPLE")
        .body(Body::from(json!({"requestContext": context}).to_string()))
        .unwrap();
    for request in [unsigned, own_signature, forged] {
        let answer = send(&region, request).await;
        assert_eq!((answer.status.as_u16(), answer.exception.as_str()), (403, "MissingAuthenticationTokenException"));
    }
}

#[tokio::test]
async fn a_caller_that_somebody_claims_is_nobody_where_keys_count() {
    let region = Region::new().await;
    let answer = send(&region, vouched("/DescribeSourceServers", &json!({}))).await;
    assert_eq!(answer.exception, "MissingAuthenticationTokenException");
}

#[tokio::test]
async fn servers_enrol_and_poll_through_the_gateway() {
    let region = behind_gateway().await;
    let (key, request) = csr();
    let answer = send(&region, vouched(link::ENROL_PATH, &enrolment(&request))).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.body);
    let enrolled: EnrolResponse = serde_json::from_value(answer.body).unwrap();
    let signer = RequestSigner::new(&der(&enrolled.issued.certificate), &key.serialize_der()).unwrap();
    let body = report();
    let header = signer.sign("POST", link::AGENT_POLL_PATH, &body, region.now()).unwrap();
    let poll = Request::post(link::AGENT_POLL_PATH).header("authorization", header).body(Body::from(body)).unwrap();
    assert_eq!(send(&region, poll).await.status, StatusCode::OK);
    let vouched_only = send(&region, vouched(link::AGENT_POLL_PATH, &json!({}))).await;
    // The gateway vouches for callers with keys; an agent is who its certificate says.
    assert_eq!(vouched_only.exception, "MissingAuthenticationTokenException", "{}", vouched_only.body);
}

#[tokio::test]
async fn each_part_serves_its_own_paths() {
    let region = behind_gateway().await;
    let paths = [
        (link::ENROL_PATH, Part::Enrol),
        (link::AGENT_POLL_PATH, Part::Agent),
        (link::REPLICATOR_ENROL_PATH, Part::Agent),
        (link::REPLICATOR_MANIFEST_PATH, Part::Agent),
        ("/StartTest", Part::Api),
        (snapshots::LIST_PATH, Part::Api),
        (settings::SETTINGS_PATH, Part::Api),
    ];
    for (path, owner) in paths {
        for part in PARTS {
            let asked = router_of(part, region.state.clone()).oneshot(vouched(path, &json!({}))).await.unwrap();
            assert_eq!(asked.status() != StatusCode::NOT_FOUND, part == owner, "{path} of {part:?}");
        }
    }
}
