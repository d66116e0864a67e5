//! The peer: nbdcopy to nbdkit over mutual TLS, with its defaults.

use std::fs::{self, File};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rehost_tests::free_port;

use crate::image::IMAGE_BYTES;
use crate::measure::{Measured, Timed};
use crate::sides::compare;

/// Copies `image` once; `folder` is made and holds everything.
pub(crate) fn measure(image: &Path, folder: &Path) -> Result<Measured> {
    fs::create_dir_all(folder)?;
    let target = folder.join("target.img");
    File::create(&target)?.set_len(IMAGE_BYTES)?;
    write_certificates(folder)?;
    let port = free_port()?.to_string();
    let text = |path: &Path| path.to_str().map(str::to_owned).context("a folder with a plain name");
    let (certificates, file) = (format!("--tls-certificates={}", text(folder)?), format!("file={}", text(&target)?));
    let pid_file = folder.join("nbdkit.pid");
    let server = Timed::start(
        &folder.join("receive.time"),
        Path::new("nbdkit"),
        &[
            "-f",
            "-P",
            &text(&pid_file)?,
            "-i",
            "127.0.0.1",
            "-p",
            &port,
            "--tls=require",
            &certificates,
            "--tls-verify-peer",
            "file",
            &file,
        ],
    )?;
    wait_for(&pid_file)?;
    let uri = format!("nbds://localhost:{port}/?tls-certificates={}", text(folder)?);
    let started = Instant::now();
    let copy = Timed::start(
        &folder.join("send.time"),
        Path::new("nbdcopy"),
        // Durable at the end, as a barrier of ours is; the target is known to be all zeros, as a fresh volume is.
        &["--flush", "--destination-is-zero", &text(image)?, &uri],
    )?;
    let sent = copy.finish(false)?;
    let wall_seconds = started.elapsed().as_secs_f64();
    server.terminate()?;
    let received = server.finish(true)?;
    compare(image, &target)?;
    fs::remove_file(&target)?;
    Ok(Measured {
        cpu_seconds: sent.cpu_seconds + received.cpu_seconds,
        wall_seconds,
        sender_peak_mib: sent.peak_mib,
        receiver_peak_mib: received.peak_mib,
        wire_mb: None,
    })
}

fn wait_for(file: &Path) -> Result<()> {
    let started = Instant::now();
    while !file.exists() {
        ensure!(started.elapsed() < Duration::from_secs(20), "nbdkit did not start");
        thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// The files that gnutls wants, under the names that it wants.
fn write_certificates(folder: &Path) -> Result<()> {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
    fs::write(folder.join("ca-cert.pem"), ca.pem())?;
    for name in ["server", "client"] {
        let key = KeyPair::generate()?;
        let certificate = CertificateParams::new(vec!["localhost".to_owned()])?.signed_by(&key, &ca)?;
        fs::write(folder.join(format!("{name}-cert.pem")), certificate.pem())?;
        fs::write(folder.join(format!("{name}-key.pem")), key.serialize_pem())?;
    }
    Ok(())
}
