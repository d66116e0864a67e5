//! Says something at regular intervals, so that the peer can tell a quiet side from a dead one.

use std::{
    sync::mpsc::{self, RecvTimeoutError},
    thread::{self, JoinHandle},
    time::Duration,
};

use super::Sender;

/// A thread that sends one frame again and again until it is dropped.
///
/// Nothing is sent while another frame is on its way: that one says as much. Shut the connection down before dropping
/// this if the peer may have stopped reading, since the thread is waited for.
pub struct KeepAlive {
    stop: Option<mpsc::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl KeepAlive {
    /// Starts sending `frame` every `interval`.
    ///
    /// # Errors
    /// The system has no room for another thread.
    pub fn start(sender: Sender, frame: Vec<u8>, interval: Duration) -> std::io::Result<Self> {
        let (stop, stopped) = mpsc::channel::<()>();
        let beat = move || {
            while stopped.recv_timeout(interval) == Err(RecvTimeoutError::Timeout) {
                if sender.send_if_free(&[&frame]).is_err() {
                    return;
                }
            }
        };
        let thread = thread::Builder::new().name("keep-alive".into()).spawn(beat)?;
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for KeepAlive {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            // A panic of the thread was reported by the panic hook.
            let _ = thread.join();
        }
    }
}
