//! Scenarios on the real stack. Each gets a healthy stack for itself, does something to it, and asks what the
//! agents say, during and after; writers keep writing through it.
//!
//! Stacks are brought up as needed, used one after the other, and removed at the end, also after a failure; the
//! logs of a failed scenario are in `tests/out/<scenario>`. `WARDEN_TEST_STACKS` (2) is how many run side by side.
//! `WARDEN_TEST_ALL=1` adds the long ones.

// serde_json answers null where an index leads nowhere; nothing else is indexed in here.
#![allow(clippy::indexing_slicing)]

mod agents;
mod failover;
mod fencing;
mod gate;
mod long;
mod never;
mod pool;
mod reloads;
mod routing;
mod secured;
mod walkthrough;
mod zookeeper;

use libtest_mimic::{Arguments, Trial};
use pool::Pool;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use warden_e2e::stack::{Flavor, Stack};

type Outcome = anyhow::Result<()>;

/// A scenario at work.
type Running = Pin<Box<dyn Future<Output = Outcome> + Send>>;

/// What a scenario is.
struct Scenario {
    name: String,
    flavor: Flavor,
    /// One that takes longer hangs.
    limit: Duration,
    run: Box<dyn Fn(Arc<Stack>) -> Running + Send + Sync>,
}

/// Enough for each of the short ones on a machine that is busy with others.
const LIMIT: Duration = Duration::from_secs(1200);

macro_rules! scenario {
    ($flavor:ident, $module:ident::$name:ident) => {
        Scenario {
            name: concat!(stringify!($module), "::", stringify!($name)).to_owned(),
            flavor: Flavor::$flavor,
            limit: LIMIT,
            run: Box::new(|stack| Box::pin(async move { $module::$name(&stack).await })),
        }
    };
}

fn main() -> std::process::ExitCode {
    // The longest first, so that none of them is left alone at the end. Those that need another stack than most come
    // where a stack of theirs can be used again.
    let mut scenarios = vec![
        scenario!(Ensemble, zookeeper::a_stalled_follower_is_not_believed),
        scenario!(Ensemble, never::a_rolling_restart_of_the_ensemble),
        // By turns: each leaves the leadership where the next one wants it.
        scenario!(Supervised, fencing::frozen_where_the_postmaster_is_visible),
        scenario!(Supervised, fencing::patroni_is_killed_and_outlived),
        scenario!(Supervised, fencing::frozen_where_the_postmaster_is_visible_and_has_no_room),
        scenario!(Supervised, fencing::patroni_is_restarted_without_zookeeper),
        scenario!(Supervised, fencing::frozen_with_its_server_where_the_postmaster_is_visible),
        scenario!(Single, zookeeper::paused_for_longer_than_ttl),
        scenario!(Single, agents::a_member_is_removed_and_added),
        scenario!(Single, fencing::the_node_is_paused_past_the_failover),
        scenario!(Single, fencing::frozen_in_a_storm_of_connections),
        scenario!(Single, never::zookeeper_is_away_in_failsafe_mode),
        scenario!(Single, fencing::frozen_while_its_server_recovers_from_a_crash),
        scenario!(Single, fencing::patroni_is_frozen),
        scenario!(Single, never::rest_is_silent_and_zookeeper_away),
        scenario!(Single, gate::logins_between_nodes_are_refused),
        scenario!(Single, reloads::a_third_node_joins_and_leaves),
        scenario!(Single, reloads::the_nodes_swap_their_addresses),
        scenario!(Single, reloads::a_second_haproxy_with_a_template_of_its_own),
        scenario!(Single, reloads::ten_reloads_under_load),
        scenario!(Single, reloads::haproxy_hangs_and_is_started_again),
        scenario!(Single, routing::a_frozen_patroni_is_not_felt),
        scenario!(Single, routing::a_replica_that_falls_back_takes_no_new_reads),
        scenario!(Single, routing::haproxy_goes_on_without_its_agent),
        scenario!(Single, routing::a_dead_name_server_costs_no_write),
        scenario!(Single, routing::an_edited_configuration_is_left_alone),
        scenario!(Single, routing::a_switchover_is_followed),
        scenario!(Single, routing::a_crash_is_followed),
        scenario!(Single, fencing::frozen_and_cut_off),
        scenario!(Single, fencing::the_agent_is_dead_and_patroni_frozen),
        scenario!(Single, walkthrough::walkthrough),
        scenario!(Single, failover::patroni_is_restarted_on_either_node),
        scenario!(Single, never::zookeeper_restarts_ttl_and_pause),
        scenario!(Single, never::twenty_lost_sessions),
        scenario!(Single, fencing::the_primary_is_killed),
        scenario!(Single, fencing::patroni_and_postgres_are_killed),
        scenario!(Single, fencing::the_postmaster_is_killed),
        scenario!(Single, gate::a_gate_that_is_killed_costs_no_promotion),
        scenario!(Single, fencing::fenced_by_hand),
        scenario!(Single, failover::switchover_there_and_back),
        scenario!(Single, failover::switchover_there_and_back_asynchronously),
        scenario!(Single, zookeeper::paused_for_less_than_ttl),
        scenario!(Single, zookeeper::killed_and_started_with_no_connections),
        scenario!(Single, zookeeper::restarted),
        scenario!(Single, agents::an_agent_is_killed_and_comes_back),
        scenario!(Single, agents::status_without_the_local_agent),
        scenario!(Single, agents::agents_stop_promptly_and_cleanly),
        scenario!(Secured, secured::tls_and_passwords),
    ];
    if std::env::var("WARDEN_TEST_ALL").is_ok_and(|all| all == "1") {
        match long::scenarios() {
            Ok(long) => scenarios.splice(0..0, long),
            Err(error) => {
                eprintln!("{error:#}");
                return std::process::ExitCode::FAILURE;
            }
        };
    }
    let mut arguments = Arguments::from_args();
    let stacks = std::env::var("WARDEN_TEST_STACKS").ok().and_then(|text| text.parse().ok()).unwrap_or(2);
    arguments.test_threads = Some(stacks);
    let pool = match Pool::new(stacks) {
        Ok(pool) => pool,
        Err(error) => {
            eprintln!("scenarios cannot run: {error:#}");
            return std::process::ExitCode::FAILURE;
        }
    };
    let trials = scenarios
        .into_iter()
        .map(|scenario| {
            let pool = pool.clone();
            Trial::test(scenario.name.clone(), move || pool.run(&scenario).map_err(|error| format!("{error:#}").into()))
        })
        .collect();
    let conclusion = libtest_mimic::run(&arguments, trials);
    pool.clean_up();
    conclusion.exit_code()
}
