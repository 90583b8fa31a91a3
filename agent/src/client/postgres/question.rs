//! The statement that the agent sends to PostgreSQL once a second, and the parser of its row.
//!
//! The statement works from PostgreSQL 13 on, in and out of recovery, and reads no user table. A role without any
//! privilege gets an answer too, but not the timeline that a standby receives: that needs `pg_read_all_stats`.

use super::SESSIONS;
use tokio_postgres::{SimpleQueryMessage, SimpleQueryRow};
use warden_core::event::{Archiver, PostgresAnswer, Server, SuperuserSlots};
use warden_core::types::{Lsn, Moment, SystemId, Timeline};

/// The columns for every server.
const COLUMNS: &str = "\
SELECT r AS in_recovery,
       CASE WHEN r THEN COALESCE((SELECT COALESCE(received_tli, 0) FROM pg_catalog.pg_stat_wal_receiver),
                                 (SELECT timeline_id FROM pg_catalog.pg_control_checkpoint()))::text
            ELSE substr(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_lsn()), 1, 8) END AS timeline,
       CASE WHEN r THEN pg_catalog.pg_last_wal_replay_lsn() ELSE pg_catalog.pg_current_wal_lsn() END AS lsn,
       (SELECT system_identifier FROM pg_catalog.pg_control_system()) AS system_id,
       pg_catalog.current_setting('archive_mode') AS archive_mode,
       CASE WHEN r THEN EXISTS (SELECT FROM pg_catalog.pg_stat_wal_receiver) END AS receives,
       a.archived_count, a.failed_count,
       CASE WHEN a.last_failed_time > COALESCE(a.last_archived_time, '-infinity')
            THEN a.last_failed_wal END AS failing";

/// Further columns for the local server.
///
/// - `heartbeat`: the sessions of Patroni's HA loop, each as `pid began age` ([`super::heartbeat`]).
/// - `agents`: the number of superuser sessions of other agents.
/// - `reserved`: the number of connections that the server reserves for superusers.
///
/// A session that does not report its query (`track_activities = off`) is a `pid` alone. So is each session of another
/// role, unless the agent's role is a superuser or a member of `pg_read_all_stats`. A session without a query yet
/// counts from its own start. Only superusers' sessions count: any role can give its session Patroni's name.
const LOCAL_COLUMNS: &str = ",
       s.heartbeat, s.agents, pg_catalog.current_setting('superuser_reserved_connections') AS reserved";

const TABLES: &str = "
  FROM pg_catalog.pg_is_in_recovery() AS r, pg_catalog.pg_stat_archiver AS a";

/// The subquery for the sessions of the local server, in one scan.
fn sessions() -> String {
    format!(
        ",
       (SELECT COALESCE(pg_catalog.string_agg(pg_catalog.concat_ws(' ', pid, EXTRACT(epoch FROM began),
                                  EXTRACT(epoch FROM pg_catalog.clock_timestamp() - began)), ',')
                          FILTER (WHERE super AND application_name = 'Patroni heartbeat'), '') AS heartbeat,
               count(*) FILTER (WHERE application_name = '{SESSIONS}' AND pid <> pg_catalog.pg_backend_pid()
                                  AND super) AS agents
          FROM (SELECT pid, application_name,
                       EXISTS (SELECT FROM pg_catalog.pg_roles WHERE oid = usesysid AND rolsuper) AS super,
                       CASE WHEN state IS DISTINCT FROM 'disabled'
                            THEN COALESCE(query_start, backend_start) END AS began
                  FROM pg_catalog.pg_stat_get_activity(NULL)
                 WHERE application_name IN ('Patroni heartbeat', '{SESSIONS}')) AS all_sessions) AS s"
    )
}

/// The statement for the local server, or for another one.
pub(crate) fn question(local: bool) -> String {
    if local { format!("{COLUMNS}{LOCAL_COLUMNS}{TABLES}{}", sessions()) } else { format!("{COLUMNS}{TABLES}") }
}

/// Reads the answer to the [`question`]. `beat` converts the column `heartbeat` to a moment.
pub(crate) fn read_answer(messages: &[SimpleQueryMessage], beat: impl FnMut(&str) -> Option<Moment>) -> PostgresAnswer {
    let row = messages.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some(row),
        _ => None,
    });
    match row {
        Some(row) => read_row(|column| text(row, column), beat),
        None => PostgresAnswer::Unknown("the server answered without a row".to_owned()),
    }
}

/// Keeps a standby from going back to an older timeline within one session. `known` is the newest one so far.
///
/// A standby that does not stream reports the timeline of its last restartpoint. It can be an hour old, and older than
/// the replayed timeline. A running server never goes back. The answer of a primary stays unchanged, because a rule
/// relies on it.
pub(crate) fn keep_newest_timeline(mut answer: PostgresAnswer, known: &mut Option<Timeline>) -> PostgresAnswer {
    if let PostgresAnswer::InRecovery(server) = &mut answer {
        *known = server.timeline.max(*known);
        server.timeline = *known;
    }
    answer
}

fn text<'a>(row: &'a SimpleQueryRow, column: &str) -> Option<&'a str> {
    row.try_get(column).ok().flatten()
}

fn read_row<'a>(get: impl Fn(&str) -> Option<&'a str>, beat: impl FnMut(&str) -> Option<Moment>) -> PostgresAnswer {
    let in_recovery = match get("in_recovery") {
        Some("t") => true,
        Some("f") => false,
        other => return PostgresAnswer::Unknown(format!("pg_is_in_recovery() is {other:?}")),
    };
    // In recovery a decimal number, otherwise the first eight digits of a segment's name.
    let radix = if in_recovery { 10 } else { 16 };
    let timeline = get("timeline").and_then(|text| u32::from_str_radix(text, radix).ok());
    let count = |column| get(column).and_then(|text| text.parse().ok()).unwrap_or(0);
    let archiver = get("archive_mode").filter(|mode| *mode != "off").map(|_| Archiver {
        archived: count("archived_count"),
        failed: count("failed_count"),
        failing: get("failing").map(str::to_owned),
    });
    let slots = |column| get(column).and_then(|text| text.parse().ok());
    let slots = slots("reserved").zip(slots("agents"));
    let slots = slots.map(|(reserved, agents)| SuperuserSlots { reserved, agents });
    let server = Server {
        timeline: timeline.filter(|timeline| *timeline > 0).map(Timeline),
        lsn: get("lsn").and_then(|text| text.parse::<Lsn>().ok()),
        // PostgreSQL shows this unsigned number as a signed one.
        system_id: get("system_id").and_then(|text| text.parse::<i64>().ok()).map(|id| SystemId(id.cast_unsigned())),
        archiver,
        receives: get("receives").map(|text| text == "t"),
        heartbeat: get("heartbeat").and_then(beat),
        superuser_slots: slots,
    };
    if in_recovery { PostgresAnswer::InRecovery(server) } else { PostgresAnswer::Writable(server) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn read(columns: &[(&str, &str)]) -> PostgresAnswer {
        let columns: BTreeMap<String, String> =
            columns.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        read_row(|column| columns.get(column).map(String::as_str), |_| Some(Moment::from_millis(7)))
    }

    #[test]
    fn a_primary_reports_its_timeline_in_hexadecimal() {
        let answer = read(&[
            ("in_recovery", "f"),
            ("timeline", "0000001A"),
            ("lsn", "0/30000C0"),
            ("system_id", "-1"),
            ("archive_mode", "always"),
            ("archived_count", "7"),
            ("failing", "000000010000000000000003"),
            ("reserved", "3"),
            ("agents", "2"),
        ]);
        let PostgresAnswer::Writable(server) = answer else { panic!("{answer:?}") };
        assert_eq!(server.timeline, Some(Timeline(26)));
        assert_eq!(server.superuser_slots, Some(SuperuserSlots { reserved: 3, agents: 2 }));
        assert_eq!(server.lsn, Some(Lsn(0x30000C0)));
        assert_eq!(server.system_id, Some(SystemId(u64::MAX)));
        assert_eq!(server.archiver.unwrap().failing.as_deref(), Some("000000010000000000000003"));
    }

    #[test]
    fn a_standby_reports_its_timeline_in_decimal_and_other_columns_may_be_missing() {
        let answer = read(&[("in_recovery", "t"), ("timeline", "26"), ("archive_mode", "off")]);
        let PostgresAnswer::InRecovery(server) = answer else { panic!("{answer:?}") };
        assert_eq!(server, Server { timeline: Some(Timeline(26)), ..Server::default() });
    }

    #[test]
    fn a_standby_that_streams_no_more_stays_on_the_timeline_that_it_received() {
        let told = |timeline: &str| read(&[("in_recovery", "t"), ("timeline", timeline)]);
        let mut known = None;
        // Its last restartpoint; the received timeline; the restartpoint again; no timeline; a failover.
        for (says, is) in [("1", 1), ("2", 2), ("1", 2), ("", 2), ("3", 3)] {
            let answer = keep_newest_timeline(told(says), &mut known);
            assert_eq!(answer.server().unwrap().timeline, Some(Timeline(is)), "{says}");
        }
        let promoted = keep_newest_timeline(read(&[("in_recovery", "f")]), &mut known);
        assert_eq!(promoted.server().unwrap().timeline, None, "the answer of a primary stays unchanged");
        // In a new session, the server may have been rewound, or may be another one.
        assert_eq!(keep_newest_timeline(told("1"), &mut None).server().unwrap().timeline, Some(Timeline(1)));
    }

    #[test]
    fn an_answer_without_in_recovery_is_unknown() {
        assert!(matches!(read(&[("timeline", "1")]), PostgresAnswer::Unknown(_)));
    }

    #[test]
    fn only_the_local_server_is_asked_for_the_sessions_of_patroni() {
        assert!(question(true).contains("Patroni heartbeat") && !question(false).contains("Patroni heartbeat"));
        for (row, expected) in [
            ([("in_recovery", "f"), ("heartbeat", "")], Some(Moment::from_millis(7))),
            ([("in_recovery", "f"), ("lsn", "0/1")], None),
        ] {
            assert_eq!(read(&row).server().unwrap().heartbeat, expected, "{row:?}");
        }
    }
}
