//! Every row of the fault harness, and every bug that it must catch.
//!
//! `RUNS` (25) and `SEED` as for `make faults`. It needs root, loop devices and mounts.

use std::process::Command;

fn row(name: &str) {
    faults(&["--row", name]);
}

fn caught(name: &str) {
    // Some bugs only show in runs whose faults are of one kind and fall into one moment: each run has a chance of some tenths.
    faults(&["--row", name, "--planted", "--runs", "150"]);
}

fn faults(arguments: &[&str]) {
    let status = Command::new(env!("CARGO_BIN_EXE_faults"))
        .args(arguments)
        .env_remove("ROW")
        .status()
        .expect("the harness starts");
    assert!(status.success(), "faults {} ended with {status}", arguments.join(" "));
}

macro_rules! rows {
    ($($test:ident, $planted:ident: $name:literal;)*) => {
        $(
            #[test]
            fn $test() {
                row($name);
            }

            #[test]
            fn $planted() {
                caught($name);
            }
        )*
    };
}

rows! {
    live_kill_agent, live_kill_agent_planted: "kill-agent";
    live_kill_replicator, live_kill_replicator_planted: "kill-replicator";
    live_kill_both, live_kill_both_planted: "kill-both";
    live_network, live_network_planted: "network";
    live_stream, live_stream_planted: "stream";
    live_storage, live_storage_planted: "storage";
    live_kill_freezer, live_kill_freezer_planted: "kill-freezer";
}
