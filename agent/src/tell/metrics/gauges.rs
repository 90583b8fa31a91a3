//! Gauges: the agent sets them from the view for each scrape, so that none shows a fact that the view has forgotten.

use super::registry::Handles;
use prometheus::IntGaugeVec;
use std::time::Duration;
use warden_core::assess;
use warden_core::event::{FenceSession, HaproxyAnswer, PatroniAnswer, PostgresAnswer, Role};
use warden_core::types::{MemberName, Moment};
use warden_core::view::View;
use warden_core::warn;

const POSTGRES_ANSWERS: [&str; 6] = ["writable", "in_recovery", "starting", "refused", "silent", "unknown"];
const PATRONI_ANSWERS: [&str; 5] = ["answering", "refused", "silent", "unusable", "unknown"];
const LOCK_STATES: [&str; 3] = ["alive", "gone", "unknown"];

impl Handles {
    /// Sets every gauge as `view` has it at `now`.
    pub(super) fn set_gauges(&self, view: &View, now: Moment) {
        for gauge in [
            &self.leader,
            &self.writable,
            &self.postgres,
            &self.patroni,
            &self.role,
            &self.timeline,
            &self.lag,
            &self.alive_lock,
            &self.haproxy_up,
            &self.haproxy_sessions,
        ] {
            // A member that has left must not keep its series.
            gauge.reset();
        }
        self.agent_age.reset();
        self.zookeeper.reset();
        let identity = &view.identity;
        let labels = [identity.version.as_str(), identity.agent.as_str(), identity.scope.as_str()];
        self.build_info.with_label_values(&labels).set(1);
        self.set_zookeeper(view, now);
        if let Some(session) = &view.leadership.fence_session {
            let ready = session.value == FenceSession::Ready;
            self.fence_session.with_label_values::<&str>(&[]).set(i64::from(ready));
        }
        let leader = assess::leader(view, now, None);
        self.leader_verified.with_label_values::<&str>(&[]).set(i64::from(leader.verified));
        self.set_members(view, leader.holder(), now);
        for (name, fact) in &view.agents {
            self.agent_age.with_label_values(&[name.as_str()]).set(fact.age(now).as_secs_f64());
        }
        self.set_haproxy(view, now);
        let warnings = warn::warnings(view, now, None);
        for (code, _) in warn::CODES {
            let count = warnings.iter().filter(|warning| warning.code == *code).count();
            self.warnings.with_label_values(&[*code]).set(i64::try_from(count).unwrap_or(i64::MAX));
        }
    }

    fn set_members(&self, view: &View, leader: Option<&MemberName>, now: Moment) {
        for member in assess::members(view, now) {
            let name = member.name.as_str();
            self.leader.with_label_values(&[name]).set(i64::from(leader == Some(member.name)));
            let postgres = member.postgres.as_ref().map_or("unknown", |fact| PostgresAnswer::as_str(&fact.value));
            one_of(&self.postgres, name, &POSTGRES_ANSWERS, postgres);
            one_of(
                &self.patroni,
                name,
                &PATRONI_ANSWERS,
                member.patroni.as_ref().map_or("unknown", |fact| patroni(fact.value)),
            );
            one_of(&self.role, name, &Role::ALL.map(Role::as_str), member.role.as_str());
            if let Some(lock) = &member.alive_lock {
                one_of(&self.alive_lock, name, &LOCK_STATES, lock.as_str());
            }
            if let Some(writable) = member.writable {
                self.writable.with_label_values(&[name]).set(i64::from(writable));
            }
            if let Some(timeline) = member.timeline {
                self.timeline.with_label_values(&[name]).set(i64::from(timeline.0));
            }
            if let Some(lag) = member.lag {
                self.lag.with_label_values(&[name]).set(i64::try_from(lag).unwrap_or(i64::MAX));
            }
        }
    }

    fn set_zookeeper(&self, view: &View, now: Moment) {
        let session = view.session();
        self.zookeeper_connected.with_label_values::<&str>(&[]).set(i64::from(session.is_some()));
        let set = |what: &str, duration: Option<Duration>| {
            if let Some(duration) = duration {
                self.zookeeper.with_label_values(&[what]).set(duration.as_secs_f64());
            }
        };
        set("session_timeout", session.map(|session| session.negotiated));
        set("latency", view.latency);
        set("last_contact", view.tree_read.map(|at| now.since(at)));
    }

    /// Sets the gauges of the local HAProxy only: Prometheus scrapes the other agents for theirs.
    fn set_haproxy(&self, view: &View, now: Moment) {
        for router in assess::routers(view, now).iter().filter(|router| *router.agent == view.identity.agent) {
            let HaproxyAnswer::Servers(servers) = router.answer else { continue };
            for server in servers {
                let member = server.member.as_ref().map_or("", |member| member.as_str());
                let labels = [router.agent.as_str(), server.id.proxy.as_str(), server.id.name.as_str(), member];
                self.haproxy_up.with_label_values(&labels).set(i64::from(server.up));
                self.haproxy_sessions
                    .with_label_values(&labels)
                    .set(i64::try_from(server.sessions).unwrap_or(i64::MAX));
            }
        }
    }
}

/// Sets one series for each value: 1 for the present one, 0 for the others. Graphs and alerts need both.
fn one_of(gauge: &IntGaugeVec, member: &str, values: &[&str], present: &str) {
    for value in values {
        gauge.with_label_values(&[member, *value]).set(i64::from(*value == present));
    }
}

const fn patroni(answer: &PatroniAnswer) -> &'static str {
    match answer {
        PatroniAnswer::Answering(_) => "answering",
        PatroniAnswer::Refused(_) => "refused",
        PatroniAnswer::Silent(_) => "silent",
        PatroniAnswer::Unusable(_) | PatroniAnswer::Anothers(_) => "unusable",
    }
}
