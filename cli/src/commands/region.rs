//! The local region itself: made and served.
use crate::args::{Global, InitArgs, InstallCommandArgs, ServeArgs};
use anyhow::Result;
pub(super) fn init(_: &Global, _: &InitArgs) -> Result<()> {
    Ok(())
}
pub(super) async fn serve(_: &Global, _: &ServeArgs) -> Result<()> {
    Ok(())
}
pub(super) fn install_command(_: &Global, _: &InstallCommandArgs) -> Result<()> {
    Ok(())
}
