//! Source servers: listing them, and finding the one that a user means.

use anyhow::{Result, anyhow};
use aws_sdk_mgn::types::{DescribeSourceServersRequestFilters as Filters, LifeCycleState, SourceServer};
use rehost_model::ServerId;

use super::{Mgn, Shown};

impl Mgn {
    /// The servers that are, or are not, archived; only those in `states` unless that is empty.
    pub(crate) async fn servers(&self, archived: bool, states: &[String]) -> Result<Shown<Vec<SourceServer>>> {
        let states = states.iter().map(|s| LifeCycleState::from(s.to_ascii_uppercase().as_str())).collect::<Vec<_>>();
        let states = Some(states).filter(|s| !s.is_empty());
        self.list(Filters::builder().is_archived(archived).set_life_cycle_states(states).build()).await
    }

    /// One server, archived or not.
    pub(crate) async fn server(&self, id: &str) -> Result<Shown<SourceServer>> {
        for archived in [false, true] {
            let filters = Filters::builder().source_server_ids(id).is_archived(archived).build();
            let mut found = self.list(filters).await?;
            if let Some(value) = found.value.pop() {
                return Ok(Shown { value, json: found.json["items"][0].take() });
            }
        }
        Err(anyhow!("there is no server {id}; `rehost servers` lists them"))
    }

    /// The id of the server that `text` means: an id, the beginning of one, a host name or a user-provided id.
    pub(crate) async fn resolve(&self, text: &str) -> Result<String> {
        if text.parse::<ServerId>().is_ok() {
            return Ok(text.to_owned());
        }
        let mut servers = self.servers(false, &[]).await?.value;
        servers.append(&mut self.servers(true, &[]).await?.value);
        pick(&servers, text)
    }

    /// As [`Self::resolve`], for several.
    pub(crate) async fn resolve_all(&self, texts: &[String]) -> Result<Vec<String>> {
        let mut ids = Vec::new();
        for text in texts {
            ids.push(self.resolve(text).await?);
        }
        Ok(ids)
    }

    async fn list(&self, filters: Filters) -> Result<Shown<Vec<SourceServer>>> {
        let mut pages = self.sdk.describe_source_servers().filters(filters).into_paginator().items().send();
        let mut value = Vec::new();
        while let Some(server) = pages.next().await {
            value.push(self.told(server)?);
        }
        Ok(Shown { value, json: self.bodies.items() })
    }
}

/// A name that fits exactly wins over the beginning of an id.
fn pick(servers: &[SourceServer], text: &str) -> Result<String> {
    let named: Vec<_> = servers.iter().filter(|s| names(s).contains(&text)).collect();
    let begun = || servers.iter().filter(|s| id(s).starts_with(text) || suffix(s).starts_with(text)).collect();
    let fitting: Vec<_> = if named.is_empty() { begun() } else { named };
    match fitting.as_slice() {
        [server] => Ok(id(server).to_owned()),
        [] => Err(anyhow!("no server is called `{text}`; `rehost servers` lists them")),
        several => {
            let ids: Vec<_> = several.iter().map(|s| id(s)).collect();
            Err(anyhow!("`{text}` means more than one server: {}; write the id", ids.join(", ")))
        }
    }
}

fn names(server: &SourceServer) -> Vec<&str> {
    let hints = server.source_properties().and_then(|p| p.identification_hints());
    let hints = [hints.and_then(|h| h.hostname()), hints.and_then(|h| h.fqdn()), server.user_provided_id()];
    hints.into_iter().flatten().collect()
}

fn id(server: &SourceServer) -> &str {
    server.source_server_id().unwrap_or_default()
}

fn suffix(server: &SourceServer) -> &str {
    id(server).strip_prefix(ServerId::PREFIX).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use aws_sdk_mgn::types::{IdentificationHints, SourceProperties};

    use super::*;

    fn server(id: &str, host: &str) -> SourceServer {
        let hints = IdentificationHints::builder().hostname(host).build();
        let properties = SourceProperties::builder().identification_hints(hints).build();
        SourceServer::builder().source_server_id(id).source_properties(properties).user_provided_id("cmdb-7").build()
    }

    #[test]
    fn servers_are_found_by_what_is_unique() {
        let servers = [server("s-0aa", "web-1"), server("s-0ab", "web-2"), server("s-1", "0aa")];
        for (text, expected) in
            [("s-0aa", "s-0aa"), ("0ab", "s-0ab"), ("web-2", "s-0ab"), ("0aa", "s-1"), ("s-1", "s-1")]
        {
            assert_eq!(pick(&servers, text).unwrap(), expected, "{text}");
        }
        for (text, part) in [("s-0", "more than one"), ("cmdb-7", "more than one"), ("web", "no server is called")] {
            assert!(pick(&servers, text).unwrap_err().to_string().contains(part), "{text}");
        }
    }
}
