//! The stack with TLS, client certificates and passwords. The pool checks before each scenario that the stack is well,
//! and so that every agent can ask every member.

use anyhow::{Context, ensure};
use std::time::Duration;
use warden_e2e::stack::{NODES, Stack, wait_for_session};
use warden_e2e::{truth, wait};

pub(crate) async fn every_agent_knows_the_cluster_through_tls_and_passwords(stack: &Stack) -> anyhow::Result<()> {
    let plain = stack.container("pg-master").exec(&["curl", "-sS", "-m", "20", "http://127.0.0.1:8008/patroni"]).await;
    ensure!(plain.is_err(), "Patroni's REST API answers without TLS: {plain:?}");
    for (node, member) in NODES {
        for agent in warden_e2e::stack::AGENTS {
            let state = stack.status(agent, &[]).await?;
            let shown = state["members"].as_array().into_iter().flatten().find(|shown| shown["name"] == member);
            let answer = &shown.context("a member is missing")?["patroni"]["answer"];
            ensure!(answer == "answering", "{agent} says of {member}'s Patroni: {answer}");
        }
        // The agents that are not beside the node come over TCP, and encrypted.
        let client = wait_for_session(stack.node_port(node), Duration::from_secs(120)).await?;
        let question = "SELECT count(*) FILTER (WHERE ssl), \
            count(*) FILTER (WHERE NOT ssl AND client_addr IS NOT NULL), \
            count(*) FILTER (WHERE client_addr IS NULL) \
            FROM pg_stat_activity JOIN pg_stat_ssl USING (pid) WHERE application_name = 'warden'";
        wait::until("the agents' sessions", Duration::from_secs(120), || async {
            let row = client.query_one(question, &[]).await?;
            let (encrypted, open, local): (i64, i64, i64) = (row.get(0), row.get(1), row.get(2));
            ensure!(
                (encrypted, open, local) == (2, 0, 1),
                "{encrypted} with TLS, {open} without, {local} by the socket"
            );
            Ok(())
        })
        .await?;
    }
    let shown = stack.container("warden-pg-master").exec(&["warden", "check-config"]).await?;
    for secret in ["rest-secret", "trial-only-token"] {
        ensure!(!shown.contains(secret), "check-config shows {secret}");
    }
    let old = truth::all_well(stack).await?.leader.context("no leader")?.0;
    stack.switchover(&old).await?;
    truth::all_well(stack).await?;
    Ok(())
}
