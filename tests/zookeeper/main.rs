//! The ZooKeeper client against real servers: one test for each defect of the library beneath it.
//!
//! Each test has a scope (and so a tree) of its own, and most tests run at once on one server. Tests that stop a
//! server, or count its connections, have a server of their own. Tests that count this process's threads or CPU time
//! run in a process of their own. `cargo test -p warden-e2e --test zookeeper [-- NAME]`

mod agent;
mod connection;
mod ensemble;
mod epochs;
mod log;
mod own;
mod raw;
mod reach;
mod reading;
mod relay;
mod server;
mod stalled;
mod upgrade;

use anyhow::{Context, ensure};
use libtest_mimic::{Arguments, Failed, Trial};
use std::process::{Command, ExitCode};
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::timeout;

/// A test that hangs has failed.
const LIMIT: Duration = Duration::from_secs(300);

/// The variable that is set in a process that runs one test only.
const ALONE: &str = "WARDENTEST_ZK_ALONE";

fn main() -> ExitCode {
    let mut args = Arguments::from_args();
    // The tests wait more than they work.
    args.test_threads = args.test_threads.or(Some(5));
    log::keep();
    if args.list || std::env::var_os(ALONE).is_some() {
        return libtest_mimic::run(&args, trials()).exit_code();
    }
    server::sweep(false);
    sweep_when_interrupted();
    let conclusion = libtest_mimic::run(&args, trials());
    server::sweep(true);
    conclusion.exit_code()
}

/// The slow ones come first, so that the last one does not run alone.
fn trials() -> Vec<Trial> {
    vec![
        alone("after_ten_broken_connections_no_session_connection_or_thread_is_left", epochs::ten_breaks),
        trial("a_server_cut_off_from_its_ensemble_verifies_nothing", ensemble::cut_off),
        trial("a_stalled_server_verifies_nothing_and_the_last_record_wins", stalled::paused),
        trial("shutdown_takes_no_longer_when_the_server_stalls", stalled::shutdown_while_paused),
        trial("a_restarted_server_is_used_again", epochs::restarted),
        trial("a_killed_and_started_server_is_used_again", epochs::killed_and_started),
        trial(
            "fence_records_are_kept_the_same_in_both_trees_while_an_agent_of_0_1_is_registered",
            upgrade::kept_the_same,
        ),
        trial("records_of_0_1_are_copied_to_the_cluster_whose_identifier_its_agents_show", upgrade::copied_on_a_match),
        trial("from_a_tree_that_two_clusters_have_shared_nothing_is_copied", upgrade::shared),
        trial("a_torn_or_foreign_record_of_0_1_is_not_copied_and_it_is_said", upgrade::torn),
        trial("two_clusters_of_one_scope_in_two_namespaces_see_nothing_of_each_other", upgrade::namespaces),
        trial("clusters_with_other_credentials_may_lie_beside_and_below_each_other", upgrade::other_credentials),
        trial("watches_do_not_pile_up", reading::watches_do_not_pile_up),
        alone("a_peer_that_closes_at_once_is_not_stormed", reach::closed_at_once),
        alone("a_server_that_closes_when_asked_is_not_stormed", reach::closed_when_asked),
        alone("a_server_that_goes_away_after_the_probe_is_not_stormed", reach::gone_after_the_probe),
        alone("a_peer_that_is_not_zookeeper_is_not_stormed", reach::gibberish),
        alone("a_peer_that_says_nothing_is_not_stormed", reach::silent),
        alone("nothing_reachable_is_reported_and_costs_nothing", reach::nothing_reachable),
        trial("a_silent_and_an_unresolvable_host_do_not_keep_from_the_good_one", reach::bad_hosts_beside_a_good_one),
        trial("a_session_timeout_below_two_seconds_does_not_spin", reach::short_timeout),
        trial("the_granted_session_timeout_is_reported_and_can_be_changed", reach::session_timeout),
        trial("after_a_cut_connection_nothing_is_missed", connection::cut),
        trial("after_a_reset_connection_nothing_is_missed", connection::reset),
        trial("an_expired_session_is_reported_as_a_new_one", connection::expired),
        trial("a_connection_that_hangs_past_expiry_is_reported_as_a_new_one", connection::hung),
        trial("a_write_given_up_and_applied_late_does_not_win", own::late_write),
        trial("the_agents_znode_comes_back_when_another_client_removes_it", own::removed),
        trial("a_name_taken_by_another_address_is_reported", own::name_taken),
        trial("the_znode_of_an_earlier_session_is_taken_over_at_once", own::former_life),
        trial("a_record_found_in_place_is_reported_with_its_own_age", own::old_word),
        trial("shutdown_ends_the_session_at_once", own::shutdown),
        trial("shutdown_takes_no_longer_when_no_server_can_be_reached_or_none_listens", own::shutdown_in_bad_times),
        trial("digest_credentials_are_given_again_and_protect_the_agents_znodes", own::digest),
        trial("wrong_credentials_are_reported_with_the_remedy", own::wrong_credentials),
        trial("two_clusters_with_different_credentials_share_one_root", own::two_credentials),
        trial("below_a_chroot_watches_work_and_a_missing_one_is_reported", reading::chroot),
        trial("a_barrier_includes_what_was_committed_before", reading::barrier),
        trial("patronis_tree_is_never_written", reading::never_written),
        trial("hostile_content_is_survived", reading::hostile_content),
        trial("of_too_many_members_some_are_read_and_it_is_said", reading::too_many_members),
    ]
}

fn trial<F>(name: &'static str, test: fn() -> F) -> Trial
where
    F: Future<Output = anyhow::Result<()>> + 'static,
{
    Trial::test(name, move || run(test()).map_err(failed))
}

/// A test in a process of its own, so that it counts only its own threads and CPU time.
fn alone<F>(name: &'static str, test: fn() -> F) -> Trial
where
    F: Future<Output = anyhow::Result<()>> + 'static,
{
    Trial::test(name, move || {
        if std::env::var_os(ALONE).is_some() {
            return run(test()).map_err(failed);
        }
        run(in_own_process(name)).map_err(failed)
    })
}

async fn in_own_process(name: &str) -> anyhow::Result<()> {
    let shared = server::Server::shared().await?.container.0.clone();
    let program = std::env::current_exe()?;
    let mut command = Command::new(program);
    command.args(["--exact", name, "--test-threads", "1"]).env(ALONE, "1");
    command.env(server::SHARED, shared).env(server::RUN, server::run());
    let output = tokio::task::spawn_blocking(move || command.output()).await?.context("the test's own process")?;
    let said = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success() && said.contains("1 passed"), "{said}{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

fn run(test: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let done = runtime.block_on(async { timeout(LIMIT, test).await });
    runtime.shutdown_background();
    done.context("the test took too long")?
}

fn failed(error: anyhow::Error) -> Failed {
    // The backtrace is left out, because it is the harness's.
    format!("{error:#}").into()
}

/// Removes all containers when the run is interrupted.
fn sweep_when_interrupted() {
    std::thread::spawn(|| {
        if let Err(error) = interrupted() {
            eprintln!("an interrupted run will leave its containers to the next one: {error}");
            return;
        }
        server::sweep_for_good();
        std::process::exit(130)
    });
}

fn interrupted() -> anyhow::Result<()> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {} }
        Ok(())
    })
}
