//! Conversion servers: a machine that boots Debian's kernel with the converter as its first program, works on the volumes, prints
//! its report on its second serial line and powers itself off.

use std::io;
use std::path::Path;
use std::time::Duration;

use rehost_control::PortError;
use rehost_control::ports::{ClientToken, ConversionProgress, ConversionSpec, PortResult};
use rehost_converter::initramfs;
use rehost_model::InstanceId;
use rehost_model::conversion::{ConversionReport, ReportError, parse_framed_report};

use super::accel::Accelerator;
use super::machine::{Life, Machine, MachineKind, tail};
use super::tokens::Made;
use super::volumes::only;
use super::{Engine, assets, files, now, process, qemu};

/// A conversion takes seconds; under emulation on a busy host perhaps minutes. After this it hangs; ms.
const LIMIT_MS: u64 = 15 * 60 * 1000;

/// The converter shows every few seconds that it is alive. A machine that is silent for this long hangs: under emulation a kernel now
/// and then waits for ever for a timer that was lost.
const SILENT_LIMIT: Duration = Duration::from_secs(120);

/// How long a machine over its limit may take to end.
const GRACE: Duration = Duration::from_secs(2);

/// How much of the console goes into an error; bytes.
const CONSOLE_TAIL: usize = 2 << 10;

impl Engine {
    /// See [`rehost_control::ports::Compute::start_conversion`].
    pub(super) fn start_conversion(&self, spec: &ConversionSpec, token: &ClientToken) -> PortResult<InstanceId> {
        let _token = self.locks.lock(token.as_str());
        let reserved = self.tokens.reserve(token, Made::ConversionServer, 1, InstanceId::generate)?;
        let id = only(reserved.ids)?;
        if reserved.completed {
            return Ok(id);
        }
        let request = spec.request.to_kernel_argument().map_err(PortError::invalid)?;
        let machine = match self.machine(&id)? {
            Some(machine) => machine,
            None => self.register(id.clone(), MachineKind::Conversion { request }, &spec.volumes, &spec.tags)?,
        };
        if !machine.terminating {
            self.start_or_forget(&machine)?;
        }
        self.tokens.complete(token)?;
        Ok(id)
    }

    pub(super) fn start_conversion_machine(&self, machine: &Machine, request: &str) -> PortResult<()> {
        let folder = self.layout.instance(&machine.id);
        let converter = &self.config.converter_binary;
        // Before anything is fetched for it.
        std::fs::metadata(converter).map_err(|e| {
            let converter = converter.display();
            PortError::invalid(format!(
                "{converter} cannot be read: {e}; put rehost-converter beside the program rehost"
            ))
        })?;
        let assets = self.prepare_assets()?;
        let initramfs = initramfs::build(converter, &assets.package).map_err(PortError::invalid)?;
        files::write_durable(&folder.join(qemu::INITRAMFS), &initramfs)?;
        let accelerator = self.accelerator()?;
        let conversion = qemu::Conversion {
            name: machine.id.as_str(),
            accelerator,
            disks: self.disks(machine),
            kernel: &assets.kernel,
            request,
        };
        let start = || self.spawn_qemu(&machine.id, &conversion.arguments());
        let started = match accelerator {
            // QEMU's NVMe device (seen with 7.2) now and then overlooks what the guest asks for by a shadow doorbell, until the guest
            // resets it after a minute, again and again: a missing memory barrier, by all signs, since it never does on one processor.
            Accelerator::Tcg => process::on_one_cpu(start).unwrap_or_else(|e| Err(cannot_pin(&e))),
            Accelerator::Kvm => start(),
        };
        // It may be through with its work before anybody asked how it is.
        if report(&folder).is_ok() { Ok(()) } else { started }
    }

    /// The kernel and modules of conversion machines, fetched if need be.
    pub(super) fn prepare_assets(&self) -> PortResult<assets::ConversionAssets> {
        let _fetching = self.locks.lock("conversion assets");
        assets::prepare(&self.config.conversion_cache)
    }

    /// See [`rehost_control::ports::Compute::conversion_progress`].
    pub(super) fn conversion_progress(&self, id: &InstanceId) -> PortResult<ConversionProgress> {
        let Some(machine) = self.machine(id)? else {
            let report = self.terminated(id)?.and_then(|terminated| terminated.report);
            return Ok(match report {
                Some(report) => ConversionProgress::Reported(Box::new(report)),
                None => ConversionProgress::Died(format!("the conversion server {id} does not exist (any more)")),
            });
        };
        match self.life(&machine)? {
            Life::NotStarted => Ok(ConversionProgress::Died("it was never started".to_owned())),
            Life::Running(_) if self.is_silent(&machine) => self.boot_again(&machine),
            Life::Running(_) if !self.end_if_over_limit(&machine)? => Ok(ConversionProgress::Running),
            Life::Running(_) | Life::Ended => self.conversion_result(&machine),
        }
    }

    /// Whether nothing came from the machine for [`SILENT_LIMIT`], nor was it started since.
    fn is_silent(&self, machine: &Machine) -> bool {
        let folder = self.layout.instance(&machine.id);
        let signs = [self.process_file(&machine.id), folder.join(qemu::CONSOLE), folder.join(qemu::REPORT)];
        let last = signs.iter().filter_map(|file| std::fs::metadata(file).and_then(|file| file.modified()).ok()).max();
        last.and_then(|last| last.elapsed().ok()).is_some_and(|age| age > SILENT_LIMIT)
    }

    /// Starts a machine anew that hangs. Its work may be half done: each edit is whole or not there at all, and is not made twice.
    fn boot_again(&self, machine: &Machine) -> PortResult<ConversionProgress> {
        let MachineKind::Conversion { request } = &machine.kind else { return self.conversion_result(machine) };
        let _instance = self.locks.lock(machine.id.as_str());
        match self.life(machine)? {
            // Somebody else did it meanwhile.
            Life::Running(_) if !self.is_silent(machine) => return Ok(ConversionProgress::Running),
            Life::Running(process) if !process.terminate(GRACE) => {
                return Err(PortError::unavailable(format!("the conversion server {} cannot be ended", machine.id)));
            }
            Life::Running(_) | Life::NotStarted | Life::Ended => {}
        }
        if report(&self.layout.instance(&machine.id)).is_ok() {
            return self.conversion_result(machine);
        }
        tracing::warn!(conversion_server = %machine.id, "it has not been heard of for {SILENT_LIMIT:?}; it is started again");
        self.start_conversion_machine(machine, request).map(|()| ConversionProgress::Running)
    }

    fn conversion_result(&self, machine: &Machine) -> PortResult<ConversionProgress> {
        // The machine never flushed: without this, a report could outlive the work that it reports.
        self.sync_volumes(&machine.volumes)?;
        let folder = self.layout.instance(&machine.id);
        match report(&folder) {
            Ok(report) => Ok(ConversionProgress::Reported(Box::new(report))),
            Err(why) => {
                let late = now().ms_since(machine.created) > LIMIT_MS;
                let why = if late { format!("it was ended after {} s", LIMIT_MS / 1000) } else { why.to_string() };
                let log = tail(&self.qemu_log(&machine.id), CONSOLE_TAIL)?;
                let console = tail(&folder.join(qemu::CONSOLE), CONSOLE_TAIL)?;
                let said = format!("{} {}", log.trim(), console.trim());
                Ok(ConversionProgress::Died(format!("{why}; its console ends with: {}", said.trim())))
            }
        }
    }

    /// Ends a conversion machine that takes too long; `true` when it has ended.
    pub(super) fn end_if_over_limit(&self, machine: &Machine) -> PortResult<bool> {
        if now().ms_since(machine.created) <= LIMIT_MS {
            return Ok(false);
        }
        match self.life(machine)? {
            Life::Running(process) => Ok(process.terminate(GRACE)),
            Life::NotStarted | Life::Ended => Ok(true),
        }
    }
}

fn cannot_pin(error: &io::Error) -> PortError {
    PortError::unavailable(format!("the conversion server cannot be kept on one processor: {error}"))
}

/// The report in a conversion server's folder.
pub(super) fn report(folder: &Path) -> Result<ConversionReport, ReportError> {
    // What cannot be read holds no report.
    let printed = std::fs::read(folder.join(qemu::REPORT)).unwrap_or_default();
    parse_framed_report(&printed)
}
