//! An account in moto with what a deployment makes, behind a proxy that keeps what was asked for.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_credential_types::Credentials;
use aws_sdk_ec2::Client;
use aws_sdk_ec2::types::{
    LaunchTemplateInstanceNetworkInterfaceSpecificationRequest, RequestLaunchTemplateData, ShutdownBehavior, Tag,
};
use rehost_aws::RegionConfig;
use rehost_control::ledger::{PURPOSE_TAG, TOKEN_TAG};
use rehost_control::ports::{ClientToken, Compute, Objects, PortResult, TaggedResource, Tags};
use rehost_ec2::Ec2Compute;
use rehost_model::ServerId;
use rehost_model::ledger::SERVER_TAG;
use rehost_tests::aws::{Answer, Call, Hook, Moto, Proxy, Routes};
use tempfile::TempDir;

const REGION: &str = "eu-central-1";
pub(crate) const STACK: &str = "rehost-test";
pub(crate) const BUCKET: &str = "rehost-bucket";

/// The account, the compute under test, and a client that does not go through the proxy.
pub(crate) struct World {
    pub(crate) compute: Ec2Compute,
    pub(crate) proxy: Proxy,
    pub(crate) seen: Arc<Seen>,
    pub(crate) objects: Arc<Kept>,
    pub(crate) ec2: Client,
    pub(crate) sdk: SdkConfig,
    pub(crate) config: RegionConfig,
    pub(crate) server: ServerId,
    /// A launch template as a user would have it, without network interfaces, and one with one.
    pub(crate) user_template: String,
    pub(crate) template_with_interface: String,
    /// A subnet in a network of its own.
    pub(crate) far_subnet: String,
    _moto: Moto,
    _folder: TempDir,
}

impl World {
    pub(crate) async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().to_owned();
        let moto = tokio::task::spawn_blocking(move || Moto::start(&path)).await.unwrap().unwrap();
        let direct = sdk(&moto.endpoint()).await;
        let ec2 = Client::new(&direct);
        let proxy = Proxy::start(Routes::to(&moto.endpoint())).unwrap();
        let seen = Arc::new(Seen {
            ec2: ec2.clone(),
            forms: Mutex::default(),
            refusal: Mutex::default(),
            spoil: Mutex::default(),
        });
        proxy.add_hook(seen.clone());
        let made = make(&ec2).await;
        let sdk = sdk(&proxy.endpoint()).await;
        let objects = Arc::new(Kept::default());
        let config = made.config;
        let compute = Ec2Compute::new(&sdk, config.clone(), objects.clone());
        Self {
            compute,
            proxy,
            seen,
            objects,
            ec2,
            sdk: direct,
            config,
            server: ServerId::generate(),
            user_template: made.user_template,
            template_with_interface: made.template_with_interface,
            far_subnet: made.far_subnet,
            _moto: moto,
            _folder: folder,
        }
    }

    /// The tags that the ledger gives a resource.
    pub(crate) fn tags(&self, purpose: &str, token: &ClientToken) -> Tags {
        let pairs =
            [(SERVER_TAG, self.server.as_str()), (TOKEN_TAG, token.as_str()), (PURPOSE_TAG, purpose), ("team", "blue")];
        pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).into()
    }

    /// What there is of the server.
    pub(crate) async fn left(&self) -> Vec<TaggedResource> {
        self.compute.tagged_resources(Some(&self.server)).await.unwrap()
    }
}

/// A token that no other test uses.
pub(crate) fn token(name: &str) -> ClientToken {
    ClientToken::derive(&["test", name])
}

async fn sdk(endpoint: &str) -> SdkConfig {
    aws_config::defaults(BehaviorVersion::latest())
        .region(Region::new(REGION))
        .endpoint_url(endpoint)
        .credentials_provider(Credentials::new("test", "test", None, None, "test"))
        .load()
        .await
}

struct Made {
    config: RegionConfig,
    user_template: String,
    template_with_interface: String,
    far_subnet: String,
}

async fn make(ec2: &Client) -> Made {
    let (vpc, far_vpc) = (vpc(ec2, "10.0.0.0/16").await, vpc(ec2, "10.1.0.0/16").await);
    let staging_subnet = subnet(ec2, &vpc, "10.0.1.0/24", "a").await;
    let target_subnet = subnet(ec2, &vpc, "10.0.2.0/24", "b").await;
    let far_subnet = subnet(ec2, &far_vpc, "10.1.1.0/24", "c").await;
    let group =
        ec2.create_security_group().group_name("staging").description("staging").vpc_id(&vpc).send().await.unwrap();
    let image = ec2.register_image().name("al2023").send().await.unwrap().image_id.unwrap();
    let plain = |kind: &str| RequestLaunchTemplateData::builder().image_id(&image).instance_type(kind.into());
    let terminates = plain("t3.medium").instance_initiated_shutdown_behavior(ShutdownBehavior::Terminate);
    let interface = LaunchTemplateInstanceNetworkInterfaceSpecificationRequest::builder().device_index(0);
    let interface = interface.groups(group.group_id().unwrap()).build();
    let config = RegionConfig {
        region: REGION.to_owned(),
        account: "123456789012".to_owned(),
        stack: STACK.to_owned(),
        table: "table".to_owned(),
        bucket: BUCKET.to_owned(),
        key_arn: "arn:aws:kms:eu-central-1:123456789012:key/k".to_owned(),
        event_bus: "bus".to_owned(),
        endpoint: "https://api.rehost.invalid".to_owned(),
        ca_fingerprint: None,
        staging_subnet,
        staging_security_group: group.group_id().unwrap().to_owned(),
        agent_cidr: "10.0.0.0/8".to_owned(),
        target_subnet,
        staging_launch_template: template(ec2, "staging", plain("t3.small").build()).await,
        conversion_launch_template: template(ec2, "conversion", terminates.build()).await,
        poll_seconds: 1,
    };
    let user = plain("m5.xlarge").key_name("mine").build();
    let with_interface = plain("m5.large").network_interfaces(interface).build();
    Made {
        config,
        user_template: template(ec2, "user", user).await,
        template_with_interface: template(ec2, "interface", with_interface).await,
        far_subnet,
    }
}

async fn vpc(ec2: &Client, range: &str) -> String {
    ec2.create_vpc().cidr_block(range).send().await.unwrap().vpc.unwrap().vpc_id.unwrap()
}

async fn subnet(ec2: &Client, vpc: &str, range: &str, zone: &str) -> String {
    let call = ec2.create_subnet().vpc_id(vpc).cidr_block(range).availability_zone(format!("{REGION}{zone}"));
    call.send().await.unwrap().subnet.unwrap().subnet_id.unwrap()
}

async fn template(ec2: &Client, name: &str, data: RequestLaunchTemplateData) -> String {
    let call = ec2.create_launch_template().launch_template_name(name).launch_template_data(data);
    call.send().await.unwrap().launch_template.unwrap().launch_template_id.unwrap()
}

/// Objects in memory.
#[derive(Default)]
pub(crate) struct Kept(Mutex<BTreeMap<String, Vec<u8>>>);

impl Kept {
    pub(crate) fn keys(&self) -> Vec<String> {
        self.0.lock().unwrap().keys().cloned().collect()
    }
}

#[async_trait]
impl Objects for Kept {
    async fn put(&self, key: &str, bytes: Vec<u8>) -> PortResult<()> {
        self.0.lock().unwrap().insert(key.to_owned(), bytes);
        Ok(())
    }

    async fn get(&self, key: &str) -> PortResult<Option<Vec<u8>>> {
        Ok(self.0.lock().unwrap().get(key).cloned())
    }

    async fn delete(&self, key: &str) -> PortResult<()> {
        self.0.lock().unwrap().remove(key);
        Ok(())
    }
}

/// The fields of a call's form.
pub(crate) type Form = BTreeMap<String, String>;

/// Keeps what EC2 was asked for, refuses what it is told to, and tags images as EC2 would (moto does not).
pub(crate) struct Seen {
    ec2: Client,
    forms: Mutex<Vec<Form>>,
    refusal: Mutex<Option<(String, String)>>,
    spoil: Mutex<bool>,
}

impl Seen {
    /// The last call of this action.
    pub(crate) fn last(&self, action: &str) -> Form {
        let forms = self.forms.lock().unwrap();
        let last = forms.iter().rev().find(|form| form.get("Action").map(String::as_str) == Some(action));
        last.unwrap_or_else(|| panic!("{action} was not called")).clone()
    }

    /// The next call of this action is refused with this code.
    pub(crate) fn refuse(&self, action: &str, code: &str) {
        *self.refusal.lock().unwrap() = Some((action.to_owned(), code.to_owned()));
    }

    /// Blocks of snapshots come damaged, or whole again.
    pub(crate) fn spoil_blocks(&self, spoil: bool) {
        *self.spoil.lock().unwrap() = spoil;
    }

    async fn tag_image(&self, form: &Form, answer: &str) {
        let id = between(answer, "<imageId>", "</imageId>").unwrap();
        let text = |n: usize, part: &str| form.get(&format!("TagSpecification.1.Tag.{n}.{part}")).cloned();
        let tags = (1..).map_while(|n| Some(Tag::builder().key(text(n, "Key")?).value(text(n, "Value")?).build()));
        let tags: Vec<Tag> = tags.collect();
        if !tags.is_empty() {
            self.ec2.create_tags().resources(id).set_tags(Some(tags)).send().await.unwrap();
        }
    }
}

#[async_trait]
impl Hook for Seen {
    async fn before(&self, call: &Call) -> Option<Answer> {
        if call.service != "ec2" {
            return None;
        }
        self.forms.lock().unwrap().push(call.form());
        let mut refusal = self.refusal.lock().unwrap();
        let (_, code) = refusal.take_if(|(action, _)| *action == call.action)?;
        let xml = format!(
            "<Response><Errors><Error><Code>{code}</Code><Message>as planted</Message></Error></Errors>\
             <RequestID>0</RequestID></Response>"
        );
        Some(Answer::new(400, "text/xml", xml))
    }

    async fn after(&self, call: &Call, answer: &mut Answer) {
        if call.action == "RegisterImage" && answer.status.is_success() {
            self.tag_image(&call.form(), &answer.text()).await;
        }
        if call.action == "GetSnapshotBlock" && *self.spoil.lock().unwrap() {
            let mut body = answer.body.to_vec();
            if let Some(first) = body.first_mut() {
                *first ^= 1;
            }
            answer.body = body.into();
        }
    }
}

fn between<'a>(text: &'a str, before: &str, after: &str) -> Option<&'a str> {
    text.split_once(before)?.1.split_once(after).map(|(content, _)| content)
}
