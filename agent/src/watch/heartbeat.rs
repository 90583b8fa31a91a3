//! When the HA loop of the local Patroni last turned, as PostgreSQL shows it.
//!
//! Patroni's session `Patroni heartbeat` begins a query in each HA cycle, also while ZooKeeper is away: a witness that
//! needs no REST API. PostgreSQL dates the query by its wall clock; what is told here is on the agent's monotonic clock.
//! A wall clock that is set, PostgreSQL's or ours, makes no query newer or older: a query is dated once, when it is
//! first seen, and it lies between the look before and that look.

use std::collections::BTreeMap;
use std::time::Duration;
use warden_core::types::Moment;

/// The sessions of the last look, and what they say together.
#[derive(Debug, Default)]
pub(super) struct Heartbeat {
    /// When the last look began.
    looked: Option<Moment>,
    /// By process number: when the session's query, or the session, began by PostgreSQL's wall clock; as it was written,
    /// because it is only compared.
    sessions: BTreeMap<String, String>,
    /// When the newest query began.
    began: Option<Moment>,
}

impl Heartbeat {
    /// When Patroni last began a query, by what a look that began at `at` has shown.
    ///
    /// `shown` lists the sessions with commas in between, each as `pid began age`: when the query began, and its age in
    /// seconds, both by PostgreSQL's wall clock. A session whose query cannot be seen is a `pid` alone.
    ///
    /// `None` where no session was ever seen, or none shows its query. A session that is gone has begun no query since.
    pub(super) fn look(&mut self, shown: &str, at: Moment) -> Option<Moment> {
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
                // It was not there at the look before, so it is not older.
                let dated = at.minus(age).max(self.looked.unwrap_or_default()).min(at);
                self.began = self.began.max(Some(dated));
            }
            sessions.insert(pid.to_owned(), began.to_owned());
        }
        if hidden && sessions.is_empty() {
            // It may begin a query at any time, unseen: what was seen before says nothing of that, nor will it later.
            self.began = None;
        }
        self.looked = Some(at);
        self.sessions = sessions;
        self.began
    }
}

/// Seconds as PostgreSQL writes them. A query that begins in the future, by a clock that was set back, begins now.
fn seconds(text: &str) -> Option<Duration> {
    let seconds: f64 = text.parse().ok()?;
    Some(Duration::try_from_secs_f64(seconds.max(0.0)).unwrap_or(Duration::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Looks in turn: when it began (in ms), what it showed, what is told.
    fn check(looks: &[(u64, &str, Option<u64>)]) {
        let mut heartbeat = Heartbeat::default();
        for (at, shown, expected) in looks {
            let told = heartbeat.look(shown, Moment::from_millis(*at));
            assert_eq!(told, expected.map(Moment::from_millis), "the look at {at}, {shown:?}, of {looks:?}");
        }
    }

    #[test]
    fn a_query_is_dated_by_its_age_and_stays_as_old_as_it_is() {
        check(&[
            (60_000, "7 100.5 4.25", Some(55_750)),
            (61_000, "7 100.5 5.25", Some(55_750)),
            (62_000, "7 106.5 0.25", Some(61_750)),
            (90_000, "7 106.5 28.25", Some(61_750)),
        ]);
    }

    #[test]
    fn a_session_that_is_gone_has_begun_no_query_since() {
        check(&[
            (60_000, "7 100.5 4", Some(56_000)),
            (61_000, "", Some(56_000)),
            (62_000, "", Some(56_000)),
            // Another one, which has begun no query yet: it was opened in between.
            (63_000, "9 107.5 0.5", Some(62_500)),
        ]);
    }

    #[test]
    fn a_session_that_was_never_seen_says_nothing() {
        check(&[(60_000, "", None), (61_000, "", None), (62_000, "7 100.5 0.5", Some(61_500))]);
    }

    #[test]
    fn a_query_that_cannot_be_seen_says_nothing_nor_does_its_end() {
        // track_activities was switched off while it was watched.
        check(&[
            (60_000, "7 100.5 4", Some(56_000)),
            (61_000, "7", None),
            (75_000, "", None),
            (76_000, "8 116.5 0", Some(76_000)),
            // Beside one that can be seen it is of no interest.
            (77_000, "8 116.5 1,9", Some(76_000)),
        ]);
    }

    #[test]
    fn of_several_sessions_the_newest_query_counts_and_an_old_one_that_is_left_is_not_new() {
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
            // A new query lies between two looks, whatever its age by the wall clock; the same one is not dated again.
            let begins = if wall.contains(" -") { 67_000 } else { 66_000 };
            check(&[(66_000, "7 100.5 4", Some(62_000)), (67_000, &next, Some(begins)), (68_000, &same, Some(begins))]);
        }
        // Already at the first look nothing lies in the future, and nothing before the clock's origin.
        check(&[(60_000, "7 100.5 -4", Some(60_000))]);
        check(&[(60_000, "7 100.5 1e300", Some(0))]);
    }

    #[test]
    fn what_cannot_be_read_is_not_seen() {
        check(&[(60_000, "7 100.5", None), (61_000, "7 100.5 soon", None), (62_000, "7", None)]);
    }
}
