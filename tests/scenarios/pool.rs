//! The stacks of the scenarios. Each stack serves one scenario at a time.

use crate::{Outcome, Scenario};
use anyhow::Context;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Instant;
use tokio::runtime::Runtime;
use warden_e2e::stack::{self, Flavor, Stack};
use warden_e2e::{promise, truth};

/// The prefix of the tests' compose projects, unless `WARDEN_TEST_PREFIX` sets another. A run removes all projects with
/// its prefix that an earlier run left, so two runs on one machine need two prefixes.
const PREFIX: &str = "wardentest";

/// The number of scenarios of a run that may fail once.
const SECOND_TRIES: usize = 2;

/// The stacks, and the runtime for everything.
#[derive(Clone)]
pub(crate) struct Pool(Arc<Inner>);

struct Inner {
    runtime: Runtime,
    state: Mutex<State>,
    given_back: Condvar,
    most: usize,
    prefix: String,
    /// The number of scenarios that failed once.
    tried_again: AtomicUsize,
    out: PathBuf,
}

#[derive(Default)]
struct State {
    idle: Vec<Arc<Stack>>,
    /// The number of stacks that are up or coming up, including idle ones.
    count: usize,
    /// The number of stacks made so far, for their names.
    made: usize,
}

impl Pool {
    /// A pool of at most `most` stacks. It removes the stacks of an earlier run.
    pub(crate) fn new(most: usize) -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        let out = Path::new(env!("CARGO_MANIFEST_DIR")).join("out");
        let pool = Self(Arc::new(Inner {
            runtime,
            state: Mutex::default(),
            given_back: Condvar::new(),
            most: most.max(1),
            prefix: format!("{}-s", std::env::var("WARDEN_TEST_PREFIX").unwrap_or_else(|_| PREFIX.to_owned())),
            tried_again: AtomicUsize::new(0),
            out,
        }));
        let listing = std::env::args().any(|argument| argument == "--list");
        if !listing {
            pool.0
                .runtime
                .block_on(stack::remove_stale(&pool.0.prefix))
                .context("cannot remove stacks of an earlier run")?;
            pool.clean_up_when_interrupted();
        }
        Ok(pool)
    }

    /// Runs a scenario. A scenario that fails is tried again on a new stack, and the output says so. One that broke a
    /// promise has failed at once. A busy machine may cause a failure now and then. More than [`SECOND_TRIES`] failures
    /// in a run are no accident.
    pub(crate) fn run(&self, scenario: &Scenario) -> Outcome {
        let first = match self.attempt(scenario) {
            Err(error) if !promise::is_broken(&error) => error,
            other => return other,
        };
        let before = self.0.tried_again.fetch_add(1, Ordering::SeqCst);
        if before >= SECOND_TRIES {
            return Err(first.context(format!("and {before} scenarios have failed once already")));
        }
        eprintln!("      {}: FAILED ONCE, and is tried again on a new stack; why: {first:#}", scenario.name);
        self.attempt(scenario).with_context(|| format!("at the second attempt; at the first: {first:#}"))
    }

    /// Runs a scenario on a healthy stack of its flavor. The stack of a failed scenario is removed.
    fn attempt(&self, scenario: &Scenario) -> Outcome {
        let name = scenario.name.as_str();
        let stack = self.take(scenario.flavor)?;
        let started = Instant::now();
        let (runtime, used) = (&self.0.runtime, Arc::clone(&stack));
        let outcome = runtime.block_on(async {
            let all = async {
                truth::all_well(&used).await.context("the stack was not well before the scenario")?;
                (scenario.run)(Arc::clone(&used)).await
            };
            tokio::time::timeout(scenario.limit, all).await.context("the scenario hangs")?
        });
        eprintln!("      {name}: {:.0} s", started.elapsed().as_secs_f64());
        match &outcome {
            Ok(()) => self.give_back(stack),
            Err(error) => {
                eprintln!("      {name}: {error:#}");
                self.throw_away(&stack, Some(name));
            }
        }
        outcome
    }

    fn take(&self, flavor: Flavor) -> anyhow::Result<Arc<Stack>> {
        let mut state = self.0.state.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(at) = state.idle.iter().position(|stack| stack.flavor == flavor) {
                return Ok(state.idle.swap_remove(at));
            }
            if state.count >= self.0.most
                && let Some(other) = state.idle.pop()
            {
                drop(state);
                self.throw_away(&other, None);
                state = self.0.state.lock().unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            if state.count < self.0.most {
                state.count += 1;
                state.made += 1;
                let project = format!("{}{}", self.0.prefix, state.made);
                drop(state);
                return self.bring_up(&project, flavor);
            }
            state = self.0.given_back.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Brings a stack up. If it does not come up, prints the reason and tries once more from nothing. The walkthrough
    /// judges whether stacks come up; the other scenarios only need one.
    fn bring_up(&self, project: &str, flavor: Flavor) -> anyhow::Result<Arc<Stack>> {
        let mut tried = 0;
        loop {
            tried += 1;
            let started = Instant::now();
            let error = match self.0.runtime.block_on(Stack::up(project, flavor)) {
                Ok(stack) => {
                    eprintln!("      stack {project} ({flavor:?}) is up: {:.0} s", started.elapsed().as_secs_f64());
                    return Ok(Arc::new(stack));
                }
                Err(error) => error,
            };
            let took = started.elapsed().as_secs();
            eprintln!("      stack {project} ({flavor:?}) did not come up in {took} s: {error:#}");
            if let Err(error) = self.0.runtime.block_on(stack::remove_stale(project)) {
                eprintln!("      {project} could not be removed: {error:#}");
            }
            if tried == 2 {
                self.forget_one();
                return Err(error.context(format!("stack {project} does not come up")));
            }
        }
    }

    fn give_back(&self, stack: Arc<Stack>) {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner).idle.push(stack);
        self.0.given_back.notify_all();
    }

    fn forget_one(&self) {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner).count -= 1;
        self.0.given_back.notify_all();
    }

    /// Removes a stack. Keeps its logs if a scenario failed on it.
    fn throw_away(&self, stack: &Stack, failed: Option<&str>) {
        self.0.runtime.block_on(async {
            if let Some(name) = failed {
                let directory = self.0.out.join(name.replace("::", "-"));
                match stack.keep_logs(&directory).await {
                    Ok(()) => eprintln!("      the logs are in {}", directory.display()),
                    Err(error) => eprintln!("      the logs could not be kept: {error:#}"),
                }
            }
            if let Err(error) = stack.down().await {
                eprintln!("      {} could not be removed: {error:#}", stack.project);
            }
        });
        self.forget_one();
    }

    /// Removes all stacks.
    pub(crate) fn clean_up(&self) {
        let idle = std::mem::take(&mut self.0.state.lock().unwrap_or_else(PoisonError::into_inner).idle);
        for stack in idle {
            self.throw_away(&stack, None);
        }
    }

    /// Ctrl-C and SIGTERM remove all stacks as well.
    fn clean_up_when_interrupted(&self) {
        use tokio::signal::unix::{SignalKind, signal};
        let prefix = self.0.prefix.clone();
        self.0.runtime.spawn(async move {
            let (Ok(mut interrupt), Ok(mut terminate)) =
                (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
            else {
                return;
            };
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            eprintln!("      interrupted: removing the stacks");
            if let Err(error) = stack::remove_stale(&prefix).await {
                eprintln!("      {error:#}");
            }
            std::process::exit(130);
        });
    }
}
