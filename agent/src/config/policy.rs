//! The configuration in core's types: the identity of this agent, and its policy.

use super::{Config, FencingMode};
use std::time::Duration;
use warden_core::plan::Policy;
use warden_core::rules::release::ReleasePolicy;
use warden_core::rules::route::RoutePolicy;
use warden_core::types::{AgentName, MemberName, Mode};
use warden_core::view::Identity;

/// The identity of this agent.
pub fn identity(config: &Config) -> Identity {
    Identity {
        scope: config.scope.clone(),
        agent: AgentName::from(config.name.as_str()),
        member: config.node.as_ref().map(|node| MemberName::from(node.member.as_str())),
        roles: config.roles(),
        address: config.http.connect_address.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        has_alive_lock: config.node.as_ref().is_some_and(|node| node.alive_lock.is_some()),
        tick_time: Duration::from_millis(config.zookeeper.tick_time),
        session_timeout: config.zookeeper.session_timeout,
    }
}

/// The mode as core's type.
pub const fn mode(mode: FencingMode) -> Mode {
    match mode {
        FencingMode::Enforce => Mode::Enforce,
        FencingMode::Observe => Mode::Observe,
        FencingMode::Off => Mode::Off,
    }
}

/// The actions that the operator allows the agent.
pub fn policy(config: &Config) -> Policy {
    Policy {
        fencing: mode(config.fencing.mode),
        release: ReleasePolicy {
            enabled: config.release.enabled,
            asynchronous: config.release.asynchronous.map(Duration::from_secs),
            handover: config.release.handover,
            after: Duration::from_millis(config.release.after_ms),
            patroni_is_pid_1: config.release.patroni_is_pid_1,
        },
        nudge: config.nudge.enabled,
        routing: match config.haproxy.as_ref().map(|haproxy| haproxy.mode) {
            // An operator who sets `fencing.mode: observe` wants to see the whole cluster without Warden.
            Some(FencingMode::Enforce) if config.fencing.mode == FencingMode::Observe => Mode::Observe,
            Some(own) => mode(own),
            None => Mode::Off,
        },
        route: RoutePolicy {
            max_lag: config.haproxy.as_ref().map_or(0, |haproxy| haproxy.max_lag),
            // The built-in template's read port goes on to the primary.
            reads_fall_back: config
                .haproxy
                .as_ref()
                .and_then(|haproxy| haproxy.file.as_ref())
                .is_some_and(|file| file.template.is_none()),
        },
        ..Policy::default()
    }
}
