//! Wrong machines, each with one mistake that somebody could make. The model finds each of them out.

use tablecloth::machine::{
    Action, Drain, Event, Machine, Outcome, Predecessor, State, Step, Timer, Wanted,
};

use super::real;

pub(crate) fn accept_before_the_commit(machine: Machine, event: Event) -> Step {
    let step = real(machine, event);
    if event == Event::SetUpDone && machine.predecessor() == Predecessor::Owner {
        use Action::{AnnounceReady, Arm, ResumeAccepting};
        return Step { actions: &[ResumeAccepting, AnnounceReady, Arm(Timer::Takeover)], ..step };
    }
    step
}

pub(crate) fn no_last_look_into_the_pipe(machine: Machine, event: Event) -> Step {
    if machine.state() == State::Upgrading && event == Event::UpgradeTimedOut {
        return real(machine, Event::SuccessorSilent);
    }
    real(machine, event)
}

pub(crate) fn roll_back_who_was_told_to_stop(machine: Machine, event: Event) -> Step {
    let serves = [State::Draining(Drain::Probation), State::Draining(Drain::Proven)];
    if serves.contains(&machine.state()) && event == Event::SuccessorStopped {
        return real(machine, Event::SuccessorLost);
    }
    real(machine, event)
}

pub(crate) fn forget_the_wanted_upgrade(machine: Machine, event: Event) -> Step {
    let step = real(machine, event);
    if event == Event::UpgradeRequested && step.machine.wanted() != Wanted::No {
        return Step { machine, ..step };
    }
    step
}

pub(crate) fn spawn_beside_the_predecessor(machine: Machine, event: Event) -> Step {
    if machine.state() == State::Running && event == Event::UpgradeRequested {
        return real(Machine::first(), event);
    }
    real(machine, event)
}

pub(crate) fn leave_with_the_probation(machine: Machine, event: Event) -> Step {
    if machine.state() == State::Draining(Drain::Probation) && event == Event::ProbationOver {
        let proven = real(machine, Event::SuccessorAnswered).machine;
        return real(proven, Event::SessionsGone);
    }
    real(machine, event)
}

pub(crate) fn keep_a_timer_at_the_rollback(machine: Machine, event: Event) -> Step {
    let step = real(machine, event);
    let drained = matches!(machine.state(), State::Draining(_));
    if drained && step.machine.state() == State::Running {
        use Action::{Arm, KillSuccessor, ReportUpgrade, RestorePidFile, ResumeAccepting};
        let actions =
            &[KillSuccessor, ResumeAccepting, RestorePidFile, ReportUpgrade, Arm(Timer::Pause)];
        return Step { actions, ..step };
    }
    step
}

pub(crate) fn come_back_from_the_end(machine: Machine, event: Event) -> Step {
    let step = real(machine, event);
    if step.machine.state() == State::Exited && event == Event::SessionsGone {
        let running = Machine::first();
        return Step { machine: running, outcome: Outcome::Moves, actions: &[] };
    }
    step
}

pub(crate) fn close_the_listeners_at_the_commit(machine: Machine, event: Event) -> Step {
    let step = real(machine, event);
    if machine.state() == State::Upgrading && event == Event::SuccessorReady {
        use Action::{Arm, CloseListeners, CommitUpgrade, DisarmAll};
        let timers =
            &[DisarmAll, CloseListeners, CommitUpgrade, Arm(Timer::Takeover), Arm(Timer::Drain)];
        return Step { actions: timers, ..step };
    }
    step
}

pub(crate) fn forget_the_wanted_upgrade_after_the_pause(machine: Machine, event: Event) -> Step {
    if event == Event::PauseOver && machine.wanted() == Wanted::Here {
        return Step { machine: Machine::first(), outcome: Outcome::Stays, actions: &[] };
    }
    real(machine, event)
}

pub(crate) fn judge_after_a_pause(machine: Machine, event: Event) -> Step {
    if event == Event::StoodStill {
        return Step { machine, outcome: Outcome::Ignored, actions: &[] };
    }
    real(machine, event)
}

pub(crate) fn keep_what_a_lost_successor_wanted(machine: Machine, event: Event) -> Step {
    let wanted = machine.wanted() == Wanted::BySuccessor;
    let step = real(machine, event);
    if wanted && step.machine.state() == State::Running && machine.state() != State::Running {
        // As if it had been asked for here.
        let here = real(step.machine, Event::UpgradeRequested).machine;
        return Step { machine: here, ..step };
    }
    step
}

pub(crate) fn ignore_a_shutdown(machine: Machine, event: Event) -> Step {
    if machine.state() == State::Running && event == Event::ShutdownRequested {
        return Step { machine, outcome: Outcome::Ignored, actions: &[] };
    }
    real(machine, event)
}

pub(crate) fn proven_by_time(machine: Machine, event: Event) -> Step {
    let probation = machine.state() == State::Draining(Drain::Probation);
    real(
        machine,
        if probation && event == Event::ProbationOver { Event::SuccessorAnswered } else { event },
    )
}
