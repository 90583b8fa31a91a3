//! Scenarios on the real stack. Each scenario has a healthy stack for itself and causes a fault. It judges the agents'
//! answers during the fault and afterwards, while writers write.
//!
//! Stacks come up as needed, are used one after the other, and are removed at the end, also after a failure. The logs
//! of a failed scenario are in `tests/out/<scenario>`. `WARDEN_TEST_STACKS` (2) is the number of stacks side by side.
//! `WARDEN_TEST_ALL=1` adds the long scenarios.

// serde_json returns null for a missing index. The code indexes nothing else.
#![allow(clippy::indexing_slicing)]

mod agents;
mod failover;
mod far;
mod fencing;
mod gate;
mod long;
mod never;
mod pool;
mod reloads;
mod routing;
mod secured;
mod shapes;
mod shared;
mod walkthrough;
mod zookeeper;

use libtest_mimic::{Arguments, Trial};
use pool::Pool;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use warden_e2e::stack::{Flavor, Stack};

type Outcome = anyhow::Result<()>;

/// A running scenario.
type Running = Pin<Box<dyn Future<Output = Outcome> + Send>>;

/// A scenario.
struct Scenario {
    name: String,
    flavor: Flavor,
    /// A scenario that takes longer hangs.
    limit: Duration,
    run: Box<dyn Fn(Arc<Stack>) -> Running + Send + Sync>,
}

/// The limit for the short scenarios, also on a busy machine.
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

/// The scenarios of `tests/run`.
fn scenarios() -> Vec<Scenario> {
    // The longest come first, so that none of them runs alone at the end. Scenarios that need a rare kind of stack
    // stand where such a stack can be used again.
    vec![
        scenario!(Ensemble, zookeeper::a_stalled_follower_is_not_believed),
        scenario!(Ensemble, never::a_rolling_restart_of_the_ensemble_fences_no_member),
        // These alternate: each leaves the leadership where the next one needs it.
        scenario!(Supervised, fencing::a_visible_postmaster_is_fenced_by_a_signal),
        scenario!(Supervised, fencing::a_server_that_outlives_its_patroni_is_fenced),
        scenario!(Supervised, fencing::a_visible_postmaster_without_a_free_slot_is_fenced_by_a_signal),
        scenario!(Supervised, fencing::without_zookeeper_the_lease_fences_a_server_whose_patroni_restarts),
        scenario!(Supervised, fencing::a_visible_postmaster_that_is_stopped_is_fenced_by_a_signal),
        scenario!(Single, reloads::a_member_that_joins_moves_or_leaves_cuts_no_session),
        scenario!(Single, zookeeper::zookeeper_paused_past_ttl_leaves_no_member_called_writable),
        scenario!(Single, agents::a_removed_member_is_forgotten_and_known_again_when_it_returns),
        scenario!(Single, fencing::a_node_paused_past_the_failover_acknowledges_few_rows_when_it_wakes),
        scenario!(Single, fencing::a_storm_of_connections_does_not_keep_the_fence_out),
        scenario!(Single, never::zookeeper_away_in_failsafe_mode_fences_no_member),
        scenario!(Single, fencing::no_candidate_is_promoted_while_the_old_primary_recovers_from_a_crash),
        scenario!(Single, fencing::a_frozen_patroni_never_leaves_two_primaries),
        scenario!(Single, never::a_silent_rest_api_and_then_zookeeper_away_fence_no_member),
        scenario!(Single, gate::refused_logins_neither_block_a_promotion_nor_leave_two_primaries),
        scenario!(Single, reloads::writes_go_to_the_primary_after_the_nodes_swap_addresses),
        scenario!(Single, reloads::a_broken_template_is_reported_and_routing_goes_on),
        scenario!(Single, reloads::ten_reloads_under_load_fail_no_row),
        scenario!(Single, reloads::a_hung_haproxy_is_reported_and_writes_go_on_after_its_restart),
        scenario!(Single, routing::a_frozen_patroni_is_not_felt),
        scenario!(Single, routing::a_replica_that_falls_back_takes_no_new_reads),
        scenario!(Single, routing::haproxy_goes_on_without_its_agent),
        scenario!(Single, routing::a_dead_name_server_costs_no_write),
        scenario!(Single, routing::a_hundred_and_fifty_clients_find_room),
        scenario!(Single, routing::an_edited_configuration_is_left_alone),
        scenario!(Single, routing::a_switchover_is_followed),
        scenario!(Single, routing::a_crash_is_followed),
        scenario!(Single, fencing::without_zookeeper_the_lease_fences_a_frozen_leader),
        scenario!(Single, fencing::without_its_agent_a_frozen_leader_is_fenced_from_the_other_node),
        scenario!(Single, walkthrough::the_stack_passes_the_walkthrough),
        scenario!(Single, failover::a_restart_of_patroni_on_either_node_loses_no_row),
        scenario!(Single, never::restarts_of_zookeeper_a_new_ttl_and_pause_fence_no_member),
        scenario!(Single, never::twenty_lost_sessions_fence_no_member),
        scenario!(Single, fencing::a_killed_primary_costs_no_row_and_its_leader_key_is_released),
        scenario!(Single, fencing::a_killed_node_that_restarts_at_once_loses_no_row),
        scenario!(Single, fencing::a_killed_postmaster_comes_back_in_place_without_a_failover),
        scenario!(Single, gate::a_gate_that_is_killed_costs_no_promotion),
        scenario!(Single, fencing::the_operator_fences_a_leader_and_takes_it_back),
        scenario!(Single, failover::a_switchover_hands_the_key_over_and_loses_no_row),
        scenario!(Single, zookeeper::zookeeper_paused_for_less_than_ttl_costs_no_row),
        scenario!(Single, zookeeper::zookeeper_killed_and_started_costs_no_row),
        scenario!(Single, agents::a_killed_agent_gets_its_znode_back_and_a_missing_one_is_reported),
        scenario!(Single, agents::warden_status_answers_without_the_local_agent),
        scenario!(Single, agents::agents_stop_promptly_and_cleanly),
        scenario!(Secured, secured::every_agent_knows_the_cluster_through_tls_and_passwords),
    ]
}

/// The scenarios of `tests/run --all` of whose fault `tests/run` has another one.
fn further() -> Vec<Scenario> {
    vec![
        scenario!(Single, failover::an_asynchronous_switchover_hands_the_key_over_and_loses_no_row),
        scenario!(Single, zookeeper::zookeeper_restarted_costs_no_row),
    ]
}

fn main() -> std::process::ExitCode {
    let mut scenarios = scenarios();
    if std::env::var("WARDEN_TEST_ALL").is_ok_and(|all| all == "1") {
        match long::scenarios() {
            Ok(long) => scenarios.splice(0..0, long.into_iter().chain(further())),
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
