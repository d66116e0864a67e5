//! The state machines, built in.

/// Name and definition of each.
pub(super) fn definitions() -> Vec<(String, String)> {
    let built_in = [
        ("migrate", include_str!("../../../../statemachine/migrate.asl.json")),
        ("provision", include_str!("../../../../statemachine/provision.asl.json")),
        ("snapshot", include_str!("../../../../statemachine/snapshot.asl.json")),
        ("launch", include_str!("../../../../statemachine/launch.asl.json")),
        ("terminate", include_str!("../../../../statemachine/terminate.asl.json")),
        ("finalize", include_str!("../../../../statemachine/finalize.asl.json")),
    ];
    built_in.map(|(name, definition)| (name.to_owned(), definition.to_owned())).into()
}

#[cfg(test)]
mod tests {
    use rehost_control::steps;

    use super::*;
    use crate::interpreter::asl::Machine;

    #[test]
    fn every_machine_is_accepted_and_every_step_exists() {
        for (name, definition) in definitions() {
            let machine = Machine::parse(&definition).unwrap_or_else(|e| panic!("{name}: {e}"));
            for step in machine.steps() {
                assert!(steps::NAMES.contains(&step), "{name} runs the unknown step {step}");
            }
        }
    }

    #[test]
    fn every_step_is_run_by_some_machine() {
        let definitions = definitions();
        let machines: Vec<Machine> = definitions.iter().map(|(_, text)| Machine::parse(text).unwrap()).collect();
        for step in steps::NAMES {
            assert!(machines.iter().any(|machine| machine.steps().contains(step)), "nobody runs {step}");
        }
    }
}
