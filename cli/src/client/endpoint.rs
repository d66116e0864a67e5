//! An HTTP API of API Gateway instead of MGN's endpoint: the official client signs for the gateway there.

use std::collections::HashMap;

use aws_sdk_mgn::config::endpoint::{Endpoint, EndpointFuture, Params, ResolveEndpoint};
use aws_smithy_types::Document;

use crate::target::Target;

/// One fixed endpoint, and the service and region that its signatures name.
#[derive(Debug)]
pub(super) struct GatewayEndpoint(Endpoint);

impl GatewayEndpoint {
    pub(super) fn of(target: &Target) -> Self {
        let members = [
            ("name", "sigv4"),
            ("signingName", target.scope.service.as_str()),
            ("signingRegion", target.scope.region.as_str()),
        ];
        let text = |value: &str| Document::String(value.to_owned());
        let scheme: HashMap<_, _> = members.map(|(name, value)| (name.to_owned(), text(value))).into();
        let schemes = vec![Document::Object(scheme)];
        Self(Endpoint::builder().url(target.endpoint().to_owned()).property("authSchemes", schemes).build())
    }
}

impl ResolveEndpoint for GatewayEndpoint {
    fn resolve_endpoint<'a>(&'a self, _params: &'a Params) -> EndpointFuture<'a> {
        EndpointFuture::ready(Ok(self.0.clone()))
    }
}
