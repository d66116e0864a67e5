//! The template: what new servers start from.

use anyhow::Result;

use super::{out, out_json};
use crate::args::TemplateCommand;
use crate::client::Mgn;
use crate::report;

pub(super) async fn run(mgn: &Mgn, command: &TemplateCommand, json: bool) -> Result<()> {
    let template = match command {
        TemplateCommand::Show => mgn.template().await?,
        TemplateCommand::Set(args) => Some(mgn.set_template(args).await?),
        TemplateCommand::Delete => {
            mgn.delete_template().await?;
            None
        }
    };
    match (template, json) {
        (template, true) => out_json(&template),
        (Some(template), false) => out(report::replication_settings(&template)),
        (None, false) => out("there is no template: new servers start from the defaults\n"),
    }
}
