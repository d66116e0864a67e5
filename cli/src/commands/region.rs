//! The local region itself: made, served, and told to source servers.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result, anyhow, bail};
use rehost_api::{AccessKey, ApiState, Authentication, Permission, StaticKeys};
use rehost_local::region::{AccessKeyPair, InitOptions, LocalRegion, OpenOptions, init as make_region};
use serde_json::json;
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::{out, out_json};
use crate::args::{Global, InitArgs, InstallArgs, ServeArgs};
use crate::home::{Home, Serving};

/// Makes a region.
pub(super) async fn init(global: &Global, args: &InitArgs) -> Result<()> {
    let home = Home::of(global)?;
    let options = InitOptions {
        advertised_hosts: args.host.clone(),
        replication_port: args.replication_port,
        ..InitOptions::new(args.listen)
    };
    let made = make_region(home.path(), &options).await?;
    let (shown, credentials) = (made.home.display(), made.credentials.display());
    if global.json {
        return out_json(&json!({
            "home": made.home,
            "listen": made.config.listen,
            "credentials": made.credentials,
            "caFingerprint": made.ca_fingerprint,
            "alreadyInitialised": made.already_initialised,
        }));
    }
    let what = if made.already_initialised { "is there already, unchanged" } else { "is ready" };
    let fingerprint = &made.ca_fingerprint;
    out(format_args!(
        "The region {shown} {what}.\n  access keys  {credentials}\n  authority    {fingerprint}\n\
         Start it with `rehost serve --home {shown}`; then `rehost install-command --home {shown}` prints how to add a source server.\n"
    ))
}

/// Serves a region until SIGTERM or SIGINT.
pub(super) async fn serve(global: &Global, args: &ServeArgs) -> Result<()> {
    let home = Home::of(global)?;
    let mut stop = Stop::new()?;
    let (region, listener) = open(&home, args).await?;
    let address = listener.local_addr()?;
    region.start_background().await?;
    let serving = Serving { pid: std::process::id(), address: address.ip(), port: address.port() };
    home.note_serving(&serving)?;
    out(format_args!("rehost: serving on {address} home={}\n", home.path().display()))?;
    let served = rehost_api::serve::serve(listener, state(&region), stop.asked()).await;
    home.forget_serving(&serving);
    // Whoever asks a second time does not want to wait.
    tokio::select! {
        () = region.shutdown() => {}
        () = stop.asked() => bail!("stopped before everything was put down; the next start takes it up"),
    }
    Ok(served?)
}

async fn open(home: &Home, args: &ServeArgs) -> Result<(LocalRegion, TcpListener)> {
    // A port that the kernel chooses must be known before replication servers are told of it.
    let chosen = match args.listen {
        Some(address) if address.port() == 0 => Some(bind(address).await?),
        _ => None,
    };
    let options = OpenOptions {
        replicator_binary: program("rehost-replicator", args)?,
        converter_binary: program("rehost-converter", args)?,
        listen: chosen.as_ref().map_or(Ok(args.listen), |l| l.local_addr().map(Some))?,
    };
    let region = LocalRegion::open(home.path(), options).await?;
    let listener = match chosen {
        Some(listener) => listener,
        None => bind(region.listen).await?,
    };
    Ok((region, listener))
}

async fn bind(address: SocketAddr) -> Result<TcpListener> {
    let bound = TcpListener::bind(address).await;
    bound.with_context(|| format!("cannot listen on {address}; stop what uses it, or choose another with --listen"))
}

/// A program of the project: in the folder that was named, else beside this one.
fn program(name: &str, args: &ServeArgs) -> Result<PathBuf> {
    let folder = match &args.programs {
        Some(folder) => folder.clone(),
        None => {
            let own = std::env::current_exe().context("cannot find out where this program is; use --programs")?;
            own.parent().map(PathBuf::from).unwrap_or_default()
        }
    };
    let path = folder.join(name);
    if path.is_file() {
        Ok(path)
    } else {
        Err(anyhow!("{} is missing; install it there, or name its folder with --programs", path.display()))
    }
}

fn state(region: &LocalRegion) -> ApiState {
    let key = |pair: &AccessKeyPair, permission| AccessKey::new(pair.secret.as_str(), permission);
    let (admin, installation) = (&region.access_keys.admin, &region.access_keys.installation);
    let keys = StaticKeys::default()
        .with(admin.id.as_str(), key(admin, Permission::Admin))
        .with(installation.id.as_str(), key(installation, Permission::Enrol));
    let authentication = Authentication::Keys(Arc::new(keys));
    ApiState { ports: region.ports.clone(), authentication, authority: Arc::clone(&region.authority) }
}

/// The signals that ask the service to stop.
struct Stop {
    terminate: Signal,
    interrupt: Signal,
}

impl Stop {
    fn new() -> Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    async fn asked(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// Prints the command that installs the agent.
pub(super) async fn install_command(global: &Global, args: &InstallArgs) -> Result<()> {
    let home = Home::of(global)?;
    let key = home.installation_key()?;
    let endpoint = match &args.endpoint {
        Some(url) => url.clone(),
        None => home.endpoint_for_sources()?,
    };
    let fingerprint = home.authority_fingerprint().await?;
    let command = format!(
        "rehost-agent install --endpoint {endpoint} --ca-fingerprint {fingerprint} --aws-access-key-id {}",
        key.id
    );
    let secret = args.show_secret.then_some(key.secret.as_str());
    if global.json {
        return out_json(&json!({
            "command": command,
            "endpoint": endpoint,
            "caFingerprint": fingerprint,
            "accessKeyId": key.id,
            "secretAccessKey": secret,
            "credentials": home.credentials_file(),
        }));
    }
    match secret {
        Some(secret) => out(format_args!("AWS_SECRET_ACCESS_KEY={secret} {command}\n")),
        None => {
            let file = home.credentials_file();
            eprintln!(
                "Run this as root on the source server. The agent asks for the secret access key: it stands in {}, profile \
                 agent-installation (--show-secret prints it).",
                file.display()
            );
            out(format_args!("{command}\n"))
        }
    }
}
