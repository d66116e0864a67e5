//! Instances of any kind: launched once, looked at, ended.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use aws_sdk_ec2::operation::run_instances::builders::RunInstancesFluentBuilder;
use aws_sdk_ec2::types::{Filter, Instance as Ec2Instance, InstanceStateName, ResourceType};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use rehost_control::PortError;
use rehost_control::ports::{ClientToken, Instance, InstanceState, PortResult, Tags};
use rehost_model::InstanceId;
use tokio::time::sleep;

use crate::Ec2Compute;
use crate::errors::{code, failed};
use crate::tags::{self, PORTS_TAG};

/// A new instance shows itself to everybody only after a moment: so often, with a growing pause, it is looked for.
const LOOKS: u32 = 5;
const PAUSE: Duration = Duration::from_millis(300);

/// The most of a console that is passed on; bytes.
const CONSOLE_BYTES: usize = 64 << 10;

/// How EC2 says that an instance could not be started for a reason that it does not tell.
const CLIENT_ERROR: &str = "Client.InternalError";

impl Ec2Compute {
    /// The instance that an earlier launch with this token made. EC2 forgets a client token some time after its instance ended and
    /// refuses it when the settings have changed meanwhile; the tag stays as long as the instance shows.
    pub(crate) async fn launched_with(&self, token: &ClientToken) -> PortResult<Option<Ec2Instance>> {
        let mut found = self.instances_where(tags::made_with(token)).await?;
        found.sort_by_key(|instance| {
            (state_of(instance) == InstanceState::Terminated, instance.instance_id().map(str::to_owned))
        });
        Ok(found.into_iter().next())
    }

    /// All instances of the stack that this filter lets pass.
    pub(crate) async fn instances_where(&self, wanted: Filter) -> PortResult<Vec<Ec2Instance>> {
        let pages = self
            .ec2
            .describe_instances()
            .filters(wanted)
            .filters(tags::with_tag(tags::STACK_TAG, &self.config.stack))
            .into_paginator()
            .items()
            .send();
        let reservations = pages.collect::<Result<Vec<_>, _>>().await;
        let reservations = reservations.map_err(|e| failed("ec2:DescribeInstances", "the stack's instances", &e))?;
        Ok(reservations.into_iter().flat_map(|reservation| reservation.instances.unwrap_or_default()).collect())
    }

    /// Launches one instance with what `request` says, these tags and this token, and waits until it shows.
    pub(crate) async fn launch(
        &self,
        request: RunInstancesFluentBuilder,
        subject: &str,
        tags: &Tags,
        token: &ClientToken,
    ) -> PortResult<InstanceId> {
        let launched = request
            .min_count(1)
            .max_count(1)
            .client_token(token.as_str())
            .tag_specifications(tags::specification(ResourceType::Instance, tags))
            .tag_specifications(tags::specification(ResourceType::Volume, tags))
            .send()
            .await
            .map_err(|e| failed("ec2:RunInstances", subject, &e))?;
        let id = launched.instances().first().and_then(Ec2Instance::instance_id);
        let id = instance_id(id)?;
        self.await_visible(&id).await?;
        Ok(id)
    }

    /// Without this, the next look could take a new instance for one that is gone.
    async fn await_visible(&self, id: &InstanceId) -> PortResult<()> {
        for look in 1..=LOOKS {
            if self.described(id).await?.is_some() {
                return Ok(());
            }
            sleep(PAUSE * look).await;
        }
        Err(PortError::conflict(format!(
            "the instance {id} was launched and does not show yet; it is looked for again"
        )))
    }

    /// The instance as EC2 describes it; `None` when it does not exist (any more).
    pub(crate) async fn described(&self, id: &InstanceId) -> PortResult<Option<Ec2Instance>> {
        match self.ec2.describe_instances().instance_ids(id.as_str()).send().await {
            Ok(described) => {
                let reservations = described.reservations.unwrap_or_default().into_iter();
                Ok(reservations.flat_map(|reservation| reservation.instances.unwrap_or_default()).next())
            }
            Err(e) if code(&e) == Some("InvalidInstanceID.NotFound") => Ok(None),
            Err(e) => Err(failed("ec2:DescribeInstances", id, &e)),
        }
    }

    /// See [`rehost_control::ports::Compute::instance`].
    pub(crate) async fn look_at(&self, id: &InstanceId) -> PortResult<Option<Instance>> {
        Ok(self.described(id).await?.map(|described| view(id, &described)))
    }

    /// See [`rehost_control::ports::Compute::console_output`].
    pub(crate) async fn console(&self, id: &InstanceId) -> PortResult<String> {
        let latest = self.ec2.get_console_output().instance_id(id.as_str()).latest(true).send().await;
        let output = match latest {
            // Instances that are not built on Nitro keep only what was there a while after the start.
            Err(e) if matches!(code(&e), Some("UnsupportedOperation" | "InvalidParameterCombination")) => {
                self.ec2.get_console_output().instance_id(id.as_str()).send().await
            }
            other => other,
        };
        let output = output.map_err(|e| failed("ec2:GetConsoleOutput", id, &e))?;
        Ok(decoded(output.output().unwrap_or_default()))
    }

    /// See [`rehost_control::ports::Compute::terminate_instance`].
    pub(crate) async fn terminate(&self, id: &InstanceId) -> PortResult<()> {
        match self.ec2.terminate_instances().instance_ids(id.as_str()).send().await {
            Ok(_) => Ok(()),
            Err(e) if code(&e) == Some("InvalidInstanceID.NotFound") => Ok(()),
            Err(e) => match self.described(id).await {
                // Whatever was wrong with the call: it has ended already.
                Ok(Some(described)) if is_ending(&described) => Ok(()),
                _ => Err(failed("ec2:TerminateInstances", id, &e)),
            },
        }
    }
}

fn is_ending(instance: &Ec2Instance) -> bool {
    matches!(state_of(instance), InstanceState::ShuttingDown | InstanceState::Terminated)
}

pub(crate) fn instance_id(text: Option<&str>) -> PortResult<InstanceId> {
    let unknown = |e| PortError::unavailable(format!("EC2 answered without an instance's id: {e}"));
    text.unwrap_or_default().parse().map_err(unknown)
}

/// The state of an instance; one that EC2 does not tell has only just begun.
pub(crate) fn state_of(instance: &Ec2Instance) -> InstanceState {
    match instance.state().and_then(|state| state.name()) {
        Some(InstanceStateName::Running) => InstanceState::Running,
        Some(InstanceStateName::ShuttingDown) => InstanceState::ShuttingDown,
        Some(InstanceStateName::Stopping | InstanceStateName::Stopped) => InstanceState::Stopped,
        Some(InstanceStateName::Terminated) => InstanceState::Terminated,
        _ => InstanceState::Pending,
    }
}

fn view(id: &InstanceId, described: &Ec2Instance) -> Instance {
    let address = |text: Option<&str>| text.and_then(|text| text.parse::<IpAddr>().ok());
    let (private_ip, public_ip) = (address(described.private_ip_address()), address(described.public_ip_address()));
    let reachable = public_ip.or(private_ip);
    let endpoints =
        reachable.map(|ip| ports_of(described).into_iter().map(|port| (port, SocketAddr::new(ip, port))).collect());
    let endpoints: BTreeMap<u16, SocketAddr> = endpoints.unwrap_or_default();
    Instance {
        id: id.clone(),
        state: state_of(described),
        endpoints,
        private_ip,
        public_ip,
        state_reason: reason(described),
    }
}

fn ports_of(described: &Ec2Instance) -> Vec<u16> {
    let tags = tags::read(described.tags());
    let ports = tags.get(PORTS_TAG).map(String::as_str).unwrap_or_default();
    ports.split_whitespace().filter_map(|port| port.parse().ok()).collect()
}

/// Why an instance is not running, in EC2's words, with a hint where those say nothing.
pub(crate) fn reason(described: &Ec2Instance) -> Option<String> {
    let reason = described.state_reason();
    let code = reason.and_then(|reason| reason.code()).filter(|code| !code.is_empty());
    let message = reason.and_then(|reason| reason.message()).filter(|message| !message.is_empty());
    let transition = described.state_transition_reason().filter(|text| !text.is_empty());
    let text = message.or(transition)?;
    if code == Some(CLIENT_ERROR) {
        return Some(format!(
            "{text}; most often EC2 may not use the KMS key of a volume: let the key's policy allow the account's roles to use it"
        ));
    }
    Some(text.to_owned())
}

/// The end of a console that came in base64.
fn decoded(output: &str) -> String {
    let compact: String = output.split_whitespace().collect();
    let bytes = BASE64.decode(compact).unwrap_or_else(|_| output.as_bytes().to_vec());
    let end = bytes.get(bytes.len().saturating_sub(CONSOLE_BYTES)..).unwrap_or_default();
    let text = String::from_utf8_lossy(end).into_owned();
    // What was cut within a character became a longer replacement.
    let over = text.len().saturating_sub(CONSOLE_BYTES);
    let start = (over..=text.len()).find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    text.get(start..).unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use aws_sdk_ec2::types::{InstanceState as State, StateReason, Tag};

    use super::*;

    fn instance(state: InstanceStateName) -> aws_sdk_ec2::types::builders::InstanceBuilder {
        Ec2Instance::builder().state(State::builder().name(state).build())
    }

    #[test]
    fn states_are_ec2s() {
        for (theirs, ours) in [
            (InstanceStateName::Pending, InstanceState::Pending),
            (InstanceStateName::Running, InstanceState::Running),
            (InstanceStateName::ShuttingDown, InstanceState::ShuttingDown),
            (InstanceStateName::Stopping, InstanceState::Stopped),
            (InstanceStateName::Stopped, InstanceState::Stopped),
            (InstanceStateName::Terminated, InstanceState::Terminated),
            (InstanceStateName::from("novel"), InstanceState::Pending),
        ] {
            assert_eq!(state_of(&instance(theirs).build()), ours);
        }
    }

    #[test]
    fn ports_are_reached_at_the_public_address_where_there_is_one() {
        let described = instance(InstanceStateName::Running).private_ip_address("10.0.0.1");
        let described = described.tags(Tag::builder().key(PORTS_TAG).value("22 80 x").build());
        let id = InstanceId::generate();
        let private = view(&id, &described.clone().build());
        assert_eq!(
            private.endpoints,
            [(22, "10.0.0.1:22".parse().unwrap()), (80, "10.0.0.1:80".parse().unwrap())].into()
        );
        let public = view(&id, &described.public_ip_address("198.51.100.1").build());
        assert_eq!(public.endpoints[&22], "198.51.100.1:22".parse().unwrap());
        assert_eq!(public.private_ip, Some("10.0.0.1".parse().unwrap()));
    }

    #[test]
    fn a_start_that_fails_without_a_reason_is_explained() {
        let told =
            StateReason::builder().code(CLIENT_ERROR).message("Client.InternalError: Client error on launch").build();
        let said = reason(&instance(InstanceStateName::Terminated).state_reason(told).build()).unwrap();
        assert!(said.contains("KMS key"), "{said}");
        let user = instance(InstanceStateName::Stopped).state_transition_reason("User initiated").build();
        assert_eq!(reason(&user).as_deref(), Some("User initiated"));
        assert_eq!(reason(&instance(InstanceStateName::Running).build()), None);
    }

    #[test]
    fn a_console_is_decoded_and_bounded() {
        assert_eq!(decoded(&BASE64.encode("login: ")), "login: ");
        let long = "ä".repeat(CONSOLE_BYTES) + "end";
        let end = decoded(&BASE64.encode(&long));
        assert!(end.ends_with("end") && end.len() <= CONSOLE_BYTES, "{}", end.len());
        assert_eq!(decoded(""), "");
    }
}
