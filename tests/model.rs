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
use tablecloth::machine::{Event, Machine, Predecessor, Step};
use world::{Budget, CAPACITY, Deed, Rules, SESSIONS, StepFn, World};

/// A world, and the machine that lives in it.
#[derive(Clone)]
struct Upgrades {
    budget: Budget,
    rules: Rules,
    /// Of the first process, a bit for each.
    sessions: u8,
    /// Who waits to be let in.
    waiting: u8,
    step: StepFn,
}

fn real(machine: Machine, event: Event) -> Step {
    machine.step(event)
}

impl Model for Upgrades {
    type State = World;
    type Action = Deed;

    fn init_states(&self) -> Vec<World> {
        vec![World::new(self.rules, self.budget, self.sessions, self.waiting)]
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
        let mut properties = vec![
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
                let living = world.alive().filter(|process| !process.doomed);
                living.count() <= 2 && unready.filter(|process| !process.doomed).count() <= 1
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
            Property::always("I5: a session is served by one process", |_, world: &World| {
                SESSIONS.into_iter().all(|session| {
                    let serving = world.alive().filter(|process| process.serving & session != 0);
                    serving.count() <= 1
                }) && !world.broken.session_forged
            }),
            Property::always("I5: no session is lost", |model: &Upgrades, world: &World| {
                world.held() | world.gone | world.waiting == model.sessions | model.waiting
            }),
            Property::always(
                "I8: nobody is let in who takes another's place",
                |_, world: &World| {
                    world.alive().all(|process| process.serving.count_ones() <= CAPACITY)
                },
            ),
            Property::always("what a lost successor wanted is dropped", |_, world: &World| {
                !world.broken.haunted
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
            Property::always("nobody is proven without an answer", |_, world: &World| {
                !world.broken.unproven
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
                    !is_settled(model, world) || !world.stop_asked || world.alive().count() == 0
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
        ];
        let shutdown = [Property::sometimes("the service is shut down", |_, world: &World| {
            world.alive().count() == 0 && world.stop_asked
        })];
        if self.budget.stops > 0 {
            properties.extend(shutdown);
        }
        let handoff = [
            Property::sometimes("sessions move", |_, world: &World| world.seen.moved),
            Property::sometimes("a session is refused", |_, world: &World| world.seen.refused),
            Property::sometimes("a session comes back", |_, world: &World| world.seen.came_back),
            Property::sometimes("somebody is let in", |_, world: &World| world.seen.let_in),
            Property::sometimes("a session moves twice", |_, world: &World| {
                world.processes.get(2).is_some_and(|process| process.serving != 0)
            }),
        ];
        let generations =
            [Property::sometimes("the third generation serves", |_, world: &World| {
                world.processes.get(3).is_some_and(|process| process.polls)
            })];
        let pauses =
            [Property::sometimes("both stand still", |_, world: &World| world.seen.paused)];
        match (self.sessions, self.budget.pauses) {
            (0, 0) => properties.extend(generations),
            (0, _) => properties.extend(pauses),
            (_, _) => properties.extend(handoff),
        }
        properties
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

/// Without sessions there is time for three requests and two deaths; two sessions are enough to be in
/// each other's way.
const WITHOUT_SESSIONS: Upgrades = Upgrades {
    budget: Budget { hups: 3, stops: 1, kills: 2, failures: 1, pauses: 0 },
    rules: Rules::REAL,
    sessions: 0,
    waiting: 0,
    step: real,
};
const WITH_A_PAUSE: Upgrades = Upgrades {
    budget: Budget { hups: 2, stops: 1, kills: 1, failures: 1, pauses: 1 },
    rules: Rules { late_answers: true, ..Rules::REAL },
    sessions: 0,
    waiting: 0,
    step: real,
};
const WITH_SESSIONS: Upgrades = Upgrades {
    budget: Budget { hups: 2, stops: 0, kills: 1, failures: 1, pauses: 0 },
    rules: Rules::REAL,
    sessions: SESSIONS[0] | SESSIONS[1],
    waiting: SESSIONS[2],
    step: real,
};

/// The states that the checker reaches in those worlds. Another number means that the machine, or the
/// world, is another one: look at why, then write it down.
const STATES: [usize; 3] = [202_582, 128_726, 201_021];

#[test]
fn every_order_of_everything_keeps_the_promises() {
    check(WITHOUT_SESSIONS, STATES[0]);
}

#[test]
fn every_order_with_a_pause_of_both_leaves_one_of_them() {
    check(WITH_A_PAUSE, STATES[2]);
}

#[test]
fn every_order_of_a_handoff_leaves_every_session_in_one_hand() {
    check(WITH_SESSIONS, STATES[1]);
}

fn check(model: Upgrades, states: usize) {
    let checker = model.checker().threads(2).spawn_bfs().join();
    println!("{} states, {} deep", checker.unique_state_count(), checker.max_depth());
    checker.assert_properties();
    assert_eq!(checker.unique_state_count(), states);
    let document = concat!(env!("CARGO_MANIFEST_DIR"), "/state-machine.md");
    let document = std::fs::read_to_string(document).expect("state-machine.md");
    let (thousands, rest) = (states / 1000, states % 1000);
    assert!(document.contains(&format!("{thousands},{rest:03} states")));
}

#[test]
fn the_model_finds_every_mistake_out() {
    let mistakes: [(&str, StepFn, &str); 14] = [
        ("accept before the commit", mistakes::accept_before_the_commit, "I3"),
        ("no last look", mistakes::no_last_look_into_the_pipe, "a ready byte that is there wins"),
        ("roll back who stopped", mistakes::roll_back_who_was_told_to_stop, "who was told to stop"),
        ("forget the wanted upgrade", mistakes::forget_the_wanted_upgrade, "I4"),
        ("spawn beside the predecessor", mistakes::spawn_beside_the_predecessor, "I2"),
        ("leave with the probation", mistakes::leave_with_the_probation, "I5"),
        ("keep a timer at the rollback", mistakes::keep_a_timer_at_the_rollback, "I6"),
        ("come back from the end", mistakes::come_back_from_the_end, "I7"),
        ("forget after the pause", mistakes::forget_the_wanted_upgrade_after_the_pause, "I4"),
        ("judge after a pause", mistakes::judge_after_a_pause, "I1: nobody is left"),
        ("haunted", mistakes::keep_what_a_lost_successor_wanted, "what a lost successor"),
        ("do not stop", mistakes::ignore_a_shutdown, "a shutdown ends"),
        ("proven by time", mistakes::proven_by_time, "nobody is proven"),
        ("close at the commit", mistakes::close_the_listeners_at_the_commit, "I1: somebody"),
    ];
    let budget = Budget { hups: 2, stops: 1, kills: 1, failures: 1, pauses: 1 };
    for (mistake, step, property) in mistakes {
        let (rules, sessions) = (Rules::REAL, SESSIONS[0]);
        find_out(mistake, property, Upgrades { budget, rules, sessions, waiting: 0, step });
    }
    let no_places = Rules { keeps_places: false, ..Rules::REAL };
    find_out("keep no places", "I8", Upgrades { rules: no_places, ..WITH_SESSIONS });
    let (late, property) = (WITH_A_PAUSE, "a shutdown ends");
    let silent = Rules { says_why: false, ..late.rules };
    find_out("do not say why", property, Upgrades { rules: silent, ..late.clone() });
    let patient = Rules { kills_who_spoke: false, ..late.rules };
    find_out("wait for the spawn", "I3", Upgrades { rules: patient, ..late });
}

/// The checker finds a history in which that property does not hold.
fn find_out(mistake: &str, property: &str, model: Upgrades) {
    let name = model.properties().into_iter().map(|property| property.name);
    let name = name.into_iter().find(|name| name.starts_with(property)).expect("a property");
    let checker = model.checker().threads(2);
    let checker = checker.finish_when(HasDiscoveries::AnyOf([name].into())).spawn_bfs().join();
    assert!(checker.discovery(name).is_some(), "{mistake}: {name} holds");
}

/// Serves the model on 127.0.0.1:3000, to be walked through in a browser.
#[test]
#[ignore = "for a person with a browser"]
fn explore_by_hand() {
    WITH_SESSIONS.checker().threads(2).serve("127.0.0.1:3000");
}
