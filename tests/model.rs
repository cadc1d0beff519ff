//! Ring one: two roles, a kernel and bad luck in a model checker, every order of everything.
//!
//! The machine in it is the real one, not a copy. state-machine.md says what is modelled, what is
//! assumed, and how to walk through it in a browser.

#![allow(clippy::expect_used, reason = "a test says what it expects")]

#[path = "model/mistakes.rs"]
mod mistakes;
#[path = "model/world.rs"]
mod world;

use stateright::{Checker, HasDiscoveries, Model, Property};
use tablecloth::machine::{Event, Machine, Predecessor, State, Step};
use world::{Budget, Deed, Process, StepFn, World};

/// A world, and the machine that lives in it.
#[derive(Clone)]
struct Upgrades {
    budget: Budget,
    step: StepFn,
}

fn real(machine: Machine, event: Event) -> Step {
    machine.step(event)
}

impl Model for Upgrades {
    type State = World;
    type Action = Deed;

    fn init_states(&self) -> Vec<World> {
        vec![World::new(self.budget)]
    }

    fn actions(&self, world: &World, deeds: &mut Vec<Deed>) {
        world.deeds(deeds);
    }

    fn next_state(&self, world: &World, deed: Deed) -> Option<World> {
        let next = world.clone().after(deed, self.step);
        // What changes nothing is no step: then a world in which nothing more can happen is one
        // without a next one.
        (next != *world).then_some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("I1: somebody accepts, or will", |model, world: &World| {
                !is_settled(model, world) || world.stop_asked || world.alive().count() == 0 || {
                    world.alive().all(|process| process.polls)
                }
            }),
            Property::always(
                "I1: nobody is left only if somebody was killed",
                |model: &Upgrades, world: &World| {
                    let spared = world.budget.kills == model.budget.kills;
                    let unasked = world.budget.stops == model.budget.stops;
                    world.alive().count() > 0 || !(spared && unasked)
                },
            ),
            Property::always("I2: at most two processes, one not ready", |_, world: &World| {
                let unready =
                    world.alive().filter(|p| p.machine.predecessor() == Predecessor::Owner);
                world.alive().count() <= 2 && unready.count() <= 1
            }),
            Property::always("I3: a listener is polled by one process", |_, world: &World| {
                world.alive().filter(|process| process.polls).count() <= 1
            }),
            Property::always(
                "I4: a request is carried out or reported",
                |model: &Upgrades, world: &World| {
                    !is_settled(model, world) || world.alive().count() == 0 || !world.owed
                },
            ),
            Property::always("I5: a session ends by itself or in its time", |_, world: &World| {
                !world.broken.session_cut
            }),
            Property::always("I6: a failed upgrade leaves nothing", |_, world: &World| {
                !world.broken.left_over
            }),
            Property::always("I7: nobody comes back from the end", |_, world: &World| {
                !world.broken.undead
            }),
            Property::always("a ready byte that is there wins", |_, world: &World| {
                !world.broken.ready_wasted
            }),
            Property::always("who was told to stop does not come back", |_, world: &World| {
                !world.broken.resurrected
            }),
            Property::always(
                "nothing of the machine's is left over",
                |model: &Upgrades, world: &World| {
                    !is_settled(model, world) || world.alive().all(|process| !process.has_timers())
                },
            ),
            Property::always("the pid file names who serves", |model: &Upgrades, world: &World| {
                !is_settled(model, world) || {
                    let mut serving = world.processes.iter().enumerate();
                    let serving = serving.find(|(_, process)| process.polls).map(|(id, _)| id);
                    serving.is_none() || world.pid_file == serving
                }
            }),
            Property::eventually("one process or none is left", |_, world: &World| {
                world.alive().count() <= 1
            }),
            Property::always(
                "a shutdown ends with no process",
                |model: &Upgrades, world: &World| {
                    !is_settled(model, world) || !world.stop_asked || {
                        // Unless it was asked of one that another one had taken over from, or takes
                        // over from again.
                        let state = |process: &Process| process.machine.state();
                        world.alive().all(|p| state(p) == State::Running && p.polls)
                    }
                },
            ),
            Property::sometimes("an upgrade commits", |_, world: &World| world.seen.commit),
            Property::sometimes("an upgrade fails", |_, world: &World| world.seen.failed),
            Property::sometimes("an upgrade is rolled back", |_, world: &World| {
                world.seen.rollback
            }),
            Property::sometimes("a request is remembered", |_, world: &World| {
                world.seen.remembered
            }),
            Property::sometimes("a successor becomes the sole owner", |_, world: &World| {
                world.seen.sole_owner
            }),
            Property::sometimes("the last look finds the ready byte", |_, world: &World| {
                world.seen.last_look
            }),
            Property::sometimes(
                "a predecessor that does not leave is killed",
                |_, world: &World| world.seen.overdue,
            ),
            Property::sometimes("the service is shut down", |_, world: &World| {
                world.alive().count() == 0 && world.stop_asked
            }),
            Property::sometimes("the third generation serves", |_, world: &World| {
                world.processes.get(3).is_some_and(|process| process.polls)
            }),
        ]
    }
}

/// Whether nothing more happens without somebody from outside.
fn is_settled(model: &Upgrades, world: &World) -> bool {
    let mut deeds = Vec::new();
    world.deeds(&mut deeds);
    let outside =
        |deed: &Deed| matches!(deed, Deed::SendHup(_) | Deed::SendQuit(_) | Deed::Kill(_));
    deeds.retain(|deed| !outside(deed));
    deeds.into_iter().all(|deed| model.next_state(world, deed).is_none())
}

#[test]
fn every_order_of_everything_keeps_the_promises() {
    let budget = Budget { hups: 3, stops: 1, kills: 2, failures: 1 };
    let checker = Upgrades { budget, step: real }.checker().threads(2).spawn_bfs().join();
    println!("{} states, {} deep", checker.unique_state_count(), checker.max_depth());
    checker.assert_properties();
    assert_eq!(checker.unique_state_count(), STATES);
    let document = concat!(env!("CARGO_MANIFEST_DIR"), "/state-machine.md");
    let document = std::fs::read_to_string(document).expect("state-machine.md");
    let (thousands, rest) = (STATES / 1000, STATES % 1000);
    assert!(document.contains(&format!("it reaches {thousands},{rest:03} states")));
}

/// The states that the checker reaches in this world. Another number means that the machine, or the
/// world, is another one: look at why, then write it down.
const STATES: usize = 772_308;

#[test]
fn the_model_finds_every_mistake_out() {
    let mistakes: [(&str, StepFn, &str); 9] = [
        ("accept before the commit", mistakes::accept_before_the_commit, "I3"),
        ("no last look", mistakes::no_last_look_into_the_pipe, "a ready byte that is there wins"),
        ("roll back after status 0", mistakes::roll_back_after_status_0, "who was told to stop"),
        ("forget the wanted upgrade", mistakes::forget_the_wanted_upgrade, "I4"),
        ("spawn beside the predecessor", mistakes::spawn_beside_the_predecessor, "I2"),
        ("leave with the probation", mistakes::leave_with_the_probation, "I5"),
        ("keep a timer at the rollback", mistakes::keep_a_timer_at_the_rollback, "I6"),
        ("come back from the end", mistakes::come_back_from_the_end, "I7"),
        ("close at the commit", mistakes::close_the_listeners_at_the_commit, "I1: somebody"),
    ];
    let budget = Budget { hups: 2, stops: 1, kills: 1, failures: 1 };
    for (mistake, step, property) in mistakes {
        let model = Upgrades { budget, step };
        let name = model.properties().into_iter().map(|property| property.name);
        let name = name.into_iter().find(|name| name.starts_with(property)).expect("a property");
        let checker = model.checker().threads(2);
        let checker = checker.finish_when(HasDiscoveries::AnyOf([name].into())).spawn_bfs().join();
        assert!(checker.discovery(name).is_some(), "{mistake}: {name} holds");
    }
}

/// Serves the model on 127.0.0.1:3000, to be walked through in a browser.
#[test]
#[ignore = "for a person with a browser"]
fn explore_by_hand() {
    let budget = Budget { hups: 3, stops: 1, kills: 2, failures: 1 };
    Upgrades { budget, step: real }.checker().threads(2).serve("127.0.0.1:3000");
}
