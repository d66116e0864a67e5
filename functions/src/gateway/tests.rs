use axum::http::StatusCode;
use serde_json::{Value, json};

use super::*;

/// A request as API Gateway sends it (format 2.0, its members that matter here and some that do not).
pub(crate) fn event(path: &str, body: &str) -> Value {
    json!({
        "version": "2.0",
        "routeKey": "POST /{operation}",
        "rawPath": path,
        "rawQueryString": "",
        "headers": {"content-type": "application/json", "host": "a1b2c3.execute-api.eu-west-1.amazonaws.com"},
        "requestContext": {
            "accountId": "000000000000",
            "apiId": "a1b2c3",
            "authorizer": {"iam": {
                "accessKey": "ASIAEXAMPLE",
                "accountId": "000000000000",
                "callerId": "AROAEXAMPLE:me",
                "cognitoIdentity": null,
                "principalOrgId": null,
                "userArn": "arn:aws:sts::000000000000:assumed-role/migrators/me",
                "userId": "AROAEXAMPLE:me",
            }},
            "http": {"method": "POST", "path": path, "protocol": "HTTP/1.1", "sourceIp": "192.0.2.1"},
            "stage": "$default",
            "timeEpoch": 1_900_000_000_000_u64,
        },
        "body": body,
        "isBase64Encoded": false,
    })
}

fn http(event: Value) -> Result<Request<Body>, ApiError> {
    serde_json::from_value::<GatewayRequest>(event).unwrap().into_http()
}

async fn body_of(request: Request<Body>) -> Vec<u8> {
    axum::body::to_bytes(request.into_body(), 1 << 20).await.unwrap().to_vec()
}

#[tokio::test]
async fn a_request_comes_as_it_was_sent_and_with_its_caller() {
    let mut sent = event("/StartTest", "{\"a\":1}");
    sent["rawQueryString"] = json!("x=1&y=%2F");
    let request = http(sent).unwrap();
    assert_eq!(
        (request.method().as_str(), request.uri().path(), request.uri().query()),
        ("POST", "/StartTest", Some("x=1&y=%2F"))
    );
    assert_eq!(request.headers()["content-type"], "application/json");
    let caller = request.extensions().get::<GatewayCaller>().unwrap();
    assert_eq!(caller.user_arn, "arn:aws:sts::000000000000:assumed-role/migrators/me");
    assert_eq!((caller.account.as_str(), caller.access_key.as_str()), ("000000000000", "ASIAEXAMPLE"));
    assert_eq!(body_of(request).await, b"{\"a\":1}");
}

#[tokio::test]
async fn bodies_may_be_encoded_or_missing() {
    let mut encoded = event("/", &BASE64.encode([0, 255, 7]));
    encoded["isBase64Encoded"] = json!(true);
    assert_eq!(body_of(http(encoded.clone()).unwrap()).await, [0, 255, 7]);
    encoded["body"] = json!("%%%");
    assert_eq!(http(encoded).unwrap_err().exception(), rehost_api::Exception::Validation);
    let mut missing = event("/", "");
    missing.as_object_mut().unwrap().remove("body");
    assert!(body_of(http(missing).unwrap()).await.is_empty());
}

#[test]
fn nothing_but_the_iam_authoriser_names_a_caller() {
    let iam = event("/", "")["requestContext"]["authorizer"]["iam"].clone();
    let forgeries: [fn(&mut Value, Value); 7] = [
        |event, _| event["requestContext"]["authorizer"]["iam"]["userArn"] = Value::Null,
        |event, _| drop(event["requestContext"].as_object_mut().unwrap().remove("authorizer")),
        |event, _| event["requestContext"]["authorizer"] = Value::Null,
        |event, iam| event["requestContext"]["authorizer"] = json!({"lambda": iam}),
        |event, iam| event["requestContext"]["authorizer"] = json!({"jwt": {"claims": iam}}),
        |event, iam| {
            event["requestContext"]["authorizer"] = json!({});
            event["headers"]["x-amzn-iam"] = json!(iam.to_string());
            event["headers"]["requestcontext"] = json!(json!({"authorizer": {"iam": iam}}).to_string());
        },
        |event, iam| {
            event["requestContext"]["authorizer"] = json!({"iam": null});
            event["body"] = json!(json!({"requestContext": {"authorizer": {"iam": iam}}}).to_string());
            event["queryStringParameters"] = json!({"iam": iam.to_string()});
        },
    ];
    for (i, forge) in forgeries.into_iter().enumerate() {
        let mut forged = event("/StartTest", "{}");
        forge(&mut forged, iam.clone());
        assert!(http(forged).unwrap().extensions().get::<GatewayCaller>().is_none(), "forgery {i}");
    }
}

#[test]
fn what_is_not_http_is_refused() {
    for (pointer, wrong) in [("/rawPath", "/a b"), ("/rawPath", ""), ("/requestContext/http/method", "PO ST")] {
        let mut event = event("/", "");
        *event.pointer_mut(pointer).unwrap() = json!(wrong);
        assert_eq!(http(event).unwrap_err().exception(), rehost_api::Exception::Validation, "{pointer} {wrong}");
    }
    let mut odd = event("/", "");
    odd["headers"] = json!({"bad name": "x", "fine": "y", "bad-value": "a\nb"});
    assert_eq!(http(odd).unwrap().headers().len(), 1);
}

#[tokio::test]
async fn responses_are_text_or_base64() {
    let response = |body: Vec<u8>| {
        Response::builder().status(StatusCode::ACCEPTED).header("x-a", "b").body(Body::from(body)).unwrap()
    };
    let text = GatewayResponse::of(response(b"{}".to_vec())).await.unwrap();
    let expected = json!({"statusCode": 202, "headers": {"x-a": "b"}, "body": "{}", "isBase64Encoded": false});
    assert_eq!(serde_json::to_value(text).unwrap(), expected);
    let bytes = GatewayResponse::of(response(vec![0xff])).await.unwrap();
    assert_eq!((bytes.body.as_str(), bytes.is_base64_encoded), ("/w==", true));
    assert!(GatewayResponse::of(response(vec![b'a'; MAX_ANSWER_BYTES + 1])).await.is_err());
}
