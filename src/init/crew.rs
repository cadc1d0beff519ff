//! Several workers: they are upgraded one after another, and come and go as a file says.

use std::time::{Duration, Instant};

use nix::libc;

#[cfg(feature = "admin")]
use super::desk::Desk;
use super::family::{Family, Part};
use super::watch::Watch;
use crate::error::Error;
use crate::limits;

/// How long a worker may say nothing that was asked for an upgrade: it may have to wait for the pause behind a
/// failed one.
const SILENCE: Duration = Duration::from_secs(10 + limits::PAUSE_MOST.as_secs());

/// How long the next one waits that is to leave: until the kernel has turned everybody away from the one before it.
const TURNED: Duration = Duration::from_secs(1 + limits::LEAVING.as_secs());

/// One upgrade of all workers, one after another.
#[derive(Clone, Copy)]
pub(super) struct Rollout {
    /// The worker whose turn it is.
    number: u32,
    /// Who served there before.
    from: Option<u32>,
    since: Instant,
    /// It was asked for once more.
    again: bool,
}

impl Rollout {
    /// The manager hears when it begins.
    pub(super) fn is_first(self) -> bool {
        self.number == 1
    }
}

/// What became of the last upgrade of all, and of who was to come.
#[derive(Default)]
pub(super) struct Outcome {
    /// For the manager's status: what went wrong.
    pub(super) trouble: Option<String>,
    /// Somebody waits until all have come, or gone.
    pub(super) is_awaited: bool,
    /// What was said of how they stand.
    said: String,
}

impl Watch {
    /// The servers have numbers, and there may be several.
    pub(super) fn is_crew(&self) -> bool {
        self.wanted.is_some()
    }

    /// Those that serve together, and are neither on their way here nor away.
    pub(super) fn members(&self) -> impl Iterator<Item = &Family> {
        self.families.iter().filter(|family| family.belongs())
    }

    fn member(&mut self, number: u32) -> Option<&mut Family> {
        self.families.iter_mut().find(|it| it.belongs() && it.number() == Some(number))
    }

    fn member_count(&self) -> u32 {
        self.members().count() as u32
    }

    /// Upgrades all of them, and once more if that is under way.
    pub(super) fn upgrade_all(&mut self) {
        if self.stop.is_some() {
            return log::info!(
                "an upgrade was requested, and refused: the service is shutting down"
            );
        }
        // Whoever is on the way here begins with the program that is there now: the upgrade comes behind that.
        if self.plan.may_change && (!self.is_complete || self.is_somebody_coming()) {
            // If there are to be fewer now, it may be told to stop.
            self.hup_waits = self.count_anew();
            return;
        }
        // Somebody else does it, and who is to come or to go is looked at behind it: if it fails nothing changes.
        #[cfg(feature = "admin")]
        if self.desk.as_ref().is_some_and(Desk::upgrade) {
            return;
        }
        if !self.count_anew() {
            return;
        }
        let Some(rollout) = &mut self.rollout else { return self.upgrade_worker(1, false) };
        rollout.again = true;
        let number = rollout.number;
        // A worker that has ended in the moment of the last one has not heard it.
        if let Some(family) = self.member(number).filter(|family| !family.is_upgrading()) {
            family.signal(libc::SIGHUP);
        }
    }

    fn upgrade_worker(&mut self, number: u32, again: bool) {
        let Some(family) = self.member(number) else { return };
        let from = family.serving();
        family.await_upgrade();
        family.signal(libc::SIGHUP);
        self.rollout = Some(Rollout { number, from, since: Instant::now(), again });
    }

    /// The next worker's turn comes when the one before it serves in a new process, and the old one has left: until
    /// then that could be rolled back.
    pub(super) fn go_on_with_the_rollout(&mut self) {
        let Some(Rollout { number, from, since, again }) = self.rollout else { return };
        let Some(family) = self.member(number) else {
            self.rollout = None;
            return;
        };
        let is_silent = !family.is_upgrading() && since.elapsed() > SILENCE;
        let (is_over, serving) = (family.upgrade_is_over(), family.serving());
        let has_left = from.is_none_or(|pid| !family.is_alive(pid));
        let stays = serving.is_none() || serving == from;
        let failed = family.fell_back() || is_over && stays || !is_over && is_silent;
        if !failed && (!is_over || !has_left) {
            return;
        }
        self.rollout = None;
        // Those that are too many are not upgraded any more, and those that come are new.
        let count = self.member_count().min(self.wanted.unwrap_or(1));
        if !failed && number < count {
            return self.upgrade_worker(number + 1, again);
        }
        if failed {
            self.wanted = Some(self.member_count());
            let why = if is_silent { "says nothing" } else { "was not upgraded" };
            let who = self.members().map(Family::to_string).collect::<Vec<_>>().join(", ");
            log::error!("worker {number} {why}, and those after it are not asked: {who}");
            self.outcome.trouble = Some(format!("the upgrade of worker {number} has failed"));
        } else {
            log::info!("all workers are upgraded");
            self.outcome.trouble = None;
        }
        if let Some(outer) = &mut self.outer {
            outer.pass_on("READY=1");
        }
        if again && self.count_anew() {
            self.upgrade_worker(1, false);
        }
    }

    fn is_somebody_coming(&self) -> bool {
        self.families.iter().any(|family| family.part() == Part::Newcomer)
    }

    /// Nobody comes or goes in an upgrade of all.
    fn is_upgrading(&self) -> bool {
        #[cfg(feature = "admin")]
        if self.desk.as_ref().is_some_and(Desk::is_upgrading) {
            return true;
        }
        self.rollout.is_some()
    }

    /// How many there are to be, as it is now. Answers whether that is known.
    pub(super) fn count_anew(&mut self) -> bool {
        let count = self.workers.count();
        match &count {
            Ok(count) => self.wanted = *count,
            Err(error) => {
                log::error!("nothing is changed: {error}");
                self.outcome.trouble = Some(error.to_string());
            }
        }
        count.is_ok()
    }

    /// Workers come until there are as many as are wanted, one after another, and those that are too many leave.
    pub(super) fn come_and_go(&mut self) {
        self.next_leave = self.next_leave.filter(|at| Instant::now() < *at);
        if self.stop.is_some() || !self.is_crew() {
            return;
        }
        if self.plan.may_change {
            self.forget_those_gone();
            let waits = self.come();
            #[cfg(feature = "admin")]
            if let Some(desk) = &self.desk {
                desk.set_coming(waits);
            }
            if waits {
                return;
            }
        }
        let (there, wanted) = (self.member_count(), self.wanted.unwrap_or(1));
        let is_quiet = !self.is_upgrading() && self.members().all(Family::is_ready);
        if self.is_complete && is_quiet && std::mem::take(&mut self.hup_waits) {
            return self.upgrade_all();
        }
        if self.plan.may_change && is_quiet && there > wanted {
            return self.have_the_last_one_leave(there - wanted > 1);
        }
        if self.plan.may_change && is_quiet && there < wanted {
            return self.have_one_come(there + 1);
        }
        if is_quiet && there == wanted {
            self.is_complete = true;
            match std::mem::take(&mut self.hup_waits) {
                true => self.upgrade_all(),
                false => self.settle(),
            }
        }
    }

    /// All have come, or gone: whoever has asked for an upgrade is told.
    fn settle(&mut self) {
        #[cfg(feature = "admin")]
        if let (true, Some(desk)) = (std::mem::take(&mut self.outcome.is_awaited), &self.desk) {
            desk.settled(self.outcome.trouble.clone());
        }
    }

    /// Whoever has left is forgotten, and whoever could not come, too.
    fn forget_those_gone(&mut self) {
        let is_gone = |it: &Family| it.ending().is_some() && !it.belongs();
        let gone: Vec<_> = self.families.iter().filter(|it| is_gone(it)).collect();
        let could_not_come = gone.iter().find(|it| it.part() == Part::Newcomer);
        let could_not_come = could_not_come.and_then(|it| it.number());
        #[cfg(feature = "admin")]
        if let Some(desk) = &self.desk {
            gone.iter().filter_map(|it| it.number()).for_each(|number| desk.is_gone(number));
        }
        self.families.retain(|it| !is_gone(it));
        if let Some(number) = could_not_come {
            let trouble = format!("worker {number}, which is new, could not start");
            log::error!("{trouble}: the others go on, and the next HUP tries it again");
            self.outcome.trouble = Some(trouble);
            // Somebody may have asked for even fewer meanwhile.
            let there = self.member_count();
            self.wanted = self.wanted.map(|wanted| wanted.min(there));
        }
    }

    /// Whoever is on the way here belongs to them when it is ready. Answers whether somebody still is.
    fn come(&mut self) -> bool {
        for family in self.families.iter_mut().filter(|it| it.part() == Part::Newcomer) {
            if family.number() > self.wanted {
                log::info!("{family} is told to stop: fewer workers are wanted");
                family.leave();
                continue;
            }
            if !family.is_ready() {
                return true;
            }
            family.join();
            log::info!("{family} is new, and serves");
            #[cfg(feature = "admin")]
            if let (Some(desk), Some(number)) = (&self.desk, family.number()) {
                desk.comes(number);
            }
        }
        false
    }

    fn have_one_come(&mut self, number: u32) {
        // One of that number that is still on its way out has the files of that number.
        if self.families.iter().any(|family| family.number() == Some(number)) {
            return;
        }
        // At the start a worker that fails is a mistake of everybody's.
        let part = if self.is_complete { Part::Newcomer } else { Part::Founder };
        if let Err(error) = self.start_family(Some(number), part) {
            log::error!("{error}");
            self.outcome.trouble = Some(error.to_string());
            self.wanted = Some(self.member_count());
        }
    }

    /// The last one first, and the next one when the kernel gives nobody to that one any more: it does so for one after
    /// another.
    fn have_the_last_one_leave(&mut self, more: bool) {
        let somebody_leaves = self.families.iter().any(|it| it.part() == Part::Leaver);
        if self.next_leave.is_some() && somebody_leaves {
            return;
        }
        self.next_leave = more.then(|| Instant::now() + TURNED);
        let last = self.families.iter_mut().filter(|it| it.belongs()).max_by_key(|it| it.number());
        let Some(family) = last else { return };
        log::info!("{family} is told to stop: fewer workers are wanted");
        #[cfg(feature = "admin")]
        if let (Some(desk), Some(number)) = (&self.desk, family.number()) {
            desk.leaves(number);
        }
        family.leave();
    }

    /// When something of this has to go on, at the latest.
    pub(super) fn crew_deadline(&self) -> Option<Instant> {
        let silence =
            self.rollout.map(|rollout| rollout.since + SILENCE + Duration::from_millis(1));
        let silence = silence.filter(|at| Instant::now() < *at);
        self.next_leave.into_iter().chain(silence).min()
    }

    /// Tells the manager how they stand, if that has changed.
    pub(super) fn say_status(&mut self) {
        if !self.is_crew() || self.outer.is_none() || self.stop.is_some() {
            return;
        }
        let one = |family: &Family| match family.is_upgrading() {
            true => format!("{family}, upgrading"),
            false => family.to_string(),
        };
        let mut text: Vec<_> = self.families.iter().map(one).collect();
        text.extend(self.outcome.trouble.clone());
        let text = format!("STATUS={}", text.join("; "));
        if let (true, Some(outer)) = (text != self.outcome.said, &mut self.outer) {
            outer.pass_on(&text);
            self.outcome.said = text;
        }
    }

    pub(super) fn start_family(&mut self, number: Option<u32>, part: Part) -> Result<(), Error> {
        self.families.push(Family::start(number, &self.plan, part)?);
        Ok(())
    }
}
