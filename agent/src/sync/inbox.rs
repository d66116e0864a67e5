//! Takes what the replicator says. Never waits for another thread, so the replicator is always heard.

use rehost_link::transport::{Receiver, Sender};
use rehost_protocol::ReplicatorMessage;

use super::{control::SyncControl, error::SyncError, ledger::Ledger};

/// Receives until the connection ends, and enters the reason in the ledger.
pub(super) fn run(receiver: &mut Receiver, sender: &Sender, ledger: &Ledger<'_>, control: &SyncControl) {
    let error = loop {
        if control.stopped() {
            break None;
        }
        if let Err(error) = receive(receiver, ledger, control) {
            break Some(error);
        }
    };
    ledger.end(error);
    control.wake();
    // Frees the outbox if it is stuck in a write.
    sender.shutdown();
}

fn receive(receiver: &mut Receiver, ledger: &Ledger<'_>, control: &SyncControl) -> Result<(), SyncError> {
    let frame = receiver.receive()?;
    match ReplicatorMessage::decode(frame.kind, frame.body)? {
        ReplicatorMessage::Ack { seq } => {
            let marks = ledger.acknowledge(seq)?;
            for (place, mark) in marks.into_iter().enumerate() {
                control.board.set_replicated(place, mark);
            }
            control.set_error(None);
        }
        ReplicatorMessage::Digests(reply) => ledger.answer(&reply)?,
        ReplicatorMessage::KeepAlive => {}
        ReplicatorMessage::Error { code, message } => {
            return Err(SyncError::Refused { code, message: message.to_owned() });
        }
        ReplicatorMessage::Welcome(_) => return Err(SyncError::Protocol("a second welcome".into())),
    }
    Ok(())
}
