//! A conversion from its plan to its report.

use std::time::Instant;

use rehost_model::conversion::{Action, ConversionOutcome, ConversionReport, Finding, SCHEMA_VERSION, Severity};

use crate::edit::{self, Proposal};
use crate::guest::Guest;
use crate::rules;
use crate::space;
use crate::support;

/// What is to be done, and whether it may be.
#[derive(Debug)]
pub struct Plan {
    pub proposal: Proposal,
    /// How the conversion ends if nothing goes wrong.
    pub outcome: ConversionOutcome,
}

/// Asks every rule; edits nothing.
#[must_use]
pub fn plan(guest: &Guest) -> Plan {
    let obstacles = support::obstacles(guest);
    if !obstacles.is_empty() {
        let proposal = Proposal { edits: Vec::new(), findings: obstacles };
        return Plan { proposal, outcome: ConversionOutcome::Unsupported };
    }
    let mut proposal = rules::propose(guest);
    proposal.findings.extend(space::shortages(&guest.root, &proposal.edits));
    let outcome = if proposal.findings.iter().any(|finding| finding.severity == Severity::Error) {
        ConversionOutcome::Failed
    } else if proposal.edits.is_empty() {
        ConversionOutcome::Unchanged
    } else {
        ConversionOutcome::Converted
    };
    Plan { proposal, outcome }
}

/// Carries a plan out (unless `dry_run`) and reports. A plan with an error is not begun: what cannot boot anyway stays as it was.
#[must_use]
pub fn carry_out(guest: &Guest, plan: Plan, dry_run: bool, started: Instant) -> ConversionReport {
    let Plan { proposal, mut outcome } = plan;
    let mut findings = proposal.findings;
    let mut actions: Vec<Action> = Vec::new();
    if matches!(outcome, ConversionOutcome::Converted) {
        for planned in proposal.edits {
            let action = planned.action(&guest.root);
            if let Err(error) = if dry_run { Ok(()) } else { edit::apply(&guest.root, &planned.edit) } {
                outcome = ConversionOutcome::Failed;
                let remedy = "see whether the file system is full or damaged; this clone is half edited and must not be launched";
                findings.push(Finding::new(Severity::Error, planned.rule, error.to_string(), remedy));
                break;
            }
            actions.push(action);
        }
    }
    ConversionReport {
        schema_version: SCHEMA_VERSION,
        outcome,
        dry_run,
        guest: Some(guest.inventory.clone()),
        actions,
        findings,
        duration_ms: u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
    }
}
