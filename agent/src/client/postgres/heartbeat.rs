//! When the HA loop of the local Patroni last turned, as PostgreSQL shows it.
//!
//! Patroni's session `Patroni heartbeat` begins a query in each HA cycle, also while ZooKeeper is away. This evidence
//! needs no REST API. PostgreSQL dates the query by its wall clock, and this module by the agent's monotonic clock. It
//! dates a query once, at its first look at it, between the previous look and this one. A wall clock that is set makes
//! no query newer or older.

use std::collections::BTreeMap;
use std::time::Duration;
use warden_core::types::Moment;

/// The sessions at the last look, and the newest query of all looks.
#[derive(Debug, Default)]
pub(crate) struct Heartbeat {
    /// When the last look began.
    looked: Option<Moment>,
    /// By process number: when the query or the session began, as PostgreSQL wrote it. The text is only compared.
    sessions: BTreeMap<String, String>,
    /// When the newest query began.
    began: Option<Moment>,
}

impl Heartbeat {
    /// When Patroni last began a query, after a look that began at `at`.
    ///
    /// `shown` lists the sessions, separated by commas, each as `pid began age`. `began` is the start of the query, and
    /// `age` its age in seconds, both by PostgreSQL's wall clock. A session with a hidden query is a `pid` alone.
    ///
    /// `None` if no look ever showed a session, or no session shows its query. An ended session changes nothing.
    pub(crate) fn look(&mut self, shown: &str, at: Moment) -> Option<Moment> {
        let mut sessions = BTreeMap::new();
        let mut hidden = false;
        for session in shown.split(',').filter(|session| !session.is_empty()) {
            let mut fields = session.split(' ');
            let (pid, began) = (fields.next().unwrap_or_default(), fields.next());
            let (Some(began), Some(age)) = (began, fields.next().and_then(seconds)) else {
                hidden = true;
                continue;
            };
            if self.sessions.get(pid).map(String::as_str) != Some(began) {
                // The previous look did not show it, so it is not older.
                let dated = at.minus(age).max(self.looked.unwrap_or_default()).min(at);
                self.began = self.began.max(Some(dated));
            }
            sessions.insert(pid.to_owned(), began.to_owned());
        }
        if hidden && sessions.is_empty() {
            // Patroni may begin a query at any time without showing it, so the earlier date is worthless.
            self.began = None;
        }
        self.looked = Some(at);
        self.sessions = sessions;
        self.began
    }
}

/// Seconds as PostgreSQL writes them. A negative age, from a clock that was set back, counts as 0.
fn seconds(text: &str) -> Option<Duration> {
    let seconds: f64 = text.parse().ok()?;
    Some(Duration::try_from_secs_f64(seconds.max(0.0)).unwrap_or(Duration::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each look: its start in ms, the sessions shown, and the expected date in ms.
    fn check(looks: &[(u64, &str, Option<u64>)]) {
        let mut heartbeat = Heartbeat::default();
        for (at, shown, expected) in looks {
            let told = heartbeat.look(shown, Moment::from_millis(*at));
            assert_eq!(told, expected.map(Moment::from_millis), "the look at {at}, {shown:?}, of {looks:?}");
        }
    }

    #[test]
    fn a_query_is_dated_once_by_its_age() {
        check(&[
            (60_000, "7 100.5 4.25", Some(55_750)),
            (61_000, "7 100.5 5.25", Some(55_750)),
            (62_000, "7 106.5 0.25", Some(61_750)),
            (90_000, "7 106.5 28.25", Some(61_750)),
        ]);
    }

    #[test]
    fn the_end_of_a_session_changes_no_date() {
        check(&[
            (60_000, "7 100.5 4", Some(56_000)),
            (61_000, "", Some(56_000)),
            (62_000, "", Some(56_000)),
            // A new session without a query: Patroni opened it in between.
            (63_000, "9 107.5 0.5", Some(62_500)),
        ]);
    }

    #[test]
    fn without_any_session_there_is_no_date() {
        check(&[(60_000, "", None), (61_000, "", None), (62_000, "7 100.5 0.5", Some(61_500))]);
    }

    #[test]
    fn neither_a_hidden_query_nor_its_end_has_a_date() {
        // An operator has switched track_activities off.
        check(&[
            (60_000, "7 100.5 4", Some(56_000)),
            (61_000, "7", None),
            (75_000, "", None),
            (76_000, "8 116.5 0", Some(76_000)),
            // A hidden query does not count if another one is shown.
            (77_000, "8 116.5 1,9", Some(76_000)),
        ]);
    }

    #[test]
    fn the_newest_query_of_several_sessions_counts() {
        check(&[
            (60_000, "7 100.5 4,9 102.5 2", Some(58_000)),
            (61_000, "7 100.5 5,9 102.5 3", Some(58_000)),
            (62_000, "7 100.5 6", Some(58_000)),
            (63_000, "7 107 0.5", Some(62_500)),
        ]);
    }

    #[test]
    fn a_wall_clock_that_is_set_makes_no_query_older_or_newer() {
        for (says, wall) in [("set forward by an hour", "3707.5 3600"), ("set back by an hour", "-3493 -3600")] {
            println!("{says}");
            let (next, same) = (format!("7 {wall}"), format!("7 {} 9999", wall.split(' ').next().unwrap()));
            // A new query is dated between two looks, for any age by the wall clock. The same one is not dated again.
            let begins = if wall.contains(" -") { 67_000 } else { 66_000 };
            check(&[(66_000, "7 100.5 4", Some(62_000)), (67_000, &next, Some(begins)), (68_000, &same, Some(begins))]);
        }
        // The first look dates nothing in the future, and nothing before the origin of the clock.
        check(&[(60_000, "7 100.5 -4", Some(60_000))]);
        check(&[(60_000, "7 100.5 1e300", Some(0))]);
    }

    #[test]
    fn text_that_cannot_be_parsed_counts_as_hidden() {
        check(&[(60_000, "7 100.5", None), (61_000, "7 100.5 soon", None), (62_000, "7", None)]);
    }
}
