//! What PostgreSQL is asked once a second, in one statement, and how its row is read.
//!
//! It works from PostgreSQL 13 on, in and out of recovery, and reads no user table. A role that may do nothing but log
//! in gets an answer, too: it does not learn which timeline a standby receives (that takes `pg_read_all_stats`).

use super::postgres::SESSIONS;
use tokio_postgres::{SimpleQueryMessage, SimpleQueryRow};
use warden_core::event::{Archiver, PostgresAnswer, Server, SuperuserSlots};
use warden_core::types::{Lsn, Moment, SystemId, Timeline};

/// What every server is asked.
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
       CASE WHEN a.last_failed_time > COALESCE(a.last_archived_time, '-infinity') THEN a.last_failed_wal END AS failing";

/// What the server beside us is asked besides, in one scan of its sessions: those of its Patroni's HA loop, each as
/// `pid began age` ([`super::heartbeat`]), and how many agents elsewhere are superusers; and how many connections it keeps
/// for superusers.
///
/// A session that does not report its query (`track_activities = off`) is a `pid` alone. So is each session of another
/// role where ours is neither a superuser nor a member of `pg_read_all_stats`. One that has begun no query yet counts
/// from its own beginning. Only superusers' sessions count: any role can give its session Patroni's name.
const LOCAL_COLUMNS: &str = ",
       s.heartbeat, s.agents, pg_catalog.current_setting('superuser_reserved_connections') AS reserved";

const TABLES: &str = "
  FROM pg_catalog.pg_is_in_recovery() AS r, pg_catalog.pg_stat_archiver AS a";

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
                       CASE WHEN state IS DISTINCT FROM 'disabled' THEN COALESCE(query_start, backend_start) END AS began
                  FROM pg_catalog.pg_stat_get_activity(NULL)
                 WHERE application_name IN ('Patroni heartbeat', '{SESSIONS}')) AS all_sessions) AS s"
    )
}

/// The statement: `local` for the server beside us.
pub(super) fn question(local: bool) -> String {
    if local { format!("{COLUMNS}{LOCAL_COLUMNS}{TABLES}{}", sessions()) } else { format!("{COLUMNS}{TABLES}") }
}

/// Reads the row that the [`question`] is answered with. `beat` makes a moment of what it shows of Patroni's sessions.
pub(super) fn read_answer(messages: &[SimpleQueryMessage], beat: impl FnMut(&str) -> Option<Moment>) -> PostgresAnswer {
    let row = messages.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some(row),
        _ => None,
    });
    match row {
        Some(row) => read_row(|column| text(row, column), beat),
        None => PostgresAnswer::Unknown("the server answered without a row".to_owned()),
    }
}

/// A standby that does not stream tells the timeline of its last restartpoint, which can be an hour old and older than
/// what it has replayed. No server goes back to an older timeline while it runs, and so within one session: `known` is
/// the newest that it told. What a primary tells stays as it is: a rule stands on that.
pub(super) fn no_way_back(mut answer: PostgresAnswer, known: &mut Option<Timeline>) -> PostgresAnswer {
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
    fn a_primary_tells_its_timeline_in_hexadecimal() {
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
    fn a_standby_tells_its_timeline_in_decimal_and_may_not_know_the_rest() {
        let answer = read(&[("in_recovery", "t"), ("timeline", "26"), ("archive_mode", "off")]);
        let PostgresAnswer::InRecovery(server) = answer else { panic!("{answer:?}") };
        assert_eq!(server, Server { timeline: Some(Timeline(26)), ..Server::default() });
    }

    #[test]
    fn a_standby_that_streams_no_more_stays_on_the_timeline_that_it_received() {
        let told = |timeline: &str| read(&[("in_recovery", "t"), ("timeline", timeline)]);
        let mut known = None;
        // Its last restartpoint; what it receives; the restartpoint again, because there is no other word; a failover.
        for (says, is) in [("1", 1), ("2", 2), ("1", 2), ("", 2), ("3", 3)] {
            let answer = no_way_back(told(says), &mut known);
            assert_eq!(answer.server().unwrap().timeline, Some(Timeline(is)), "{says}");
        }
        let promoted = no_way_back(read(&[("in_recovery", "f")]), &mut known);
        assert_eq!(promoted.server().unwrap().timeline, None, "of a primary nothing is made up");
        // Asked anew, it may have been rewound, or be another server.
        assert_eq!(no_way_back(told("1"), &mut None).server().unwrap().timeline, Some(Timeline(1)));
    }

    #[test]
    fn an_answer_that_does_not_say_whether_it_is_in_recovery_says_nothing() {
        assert!(matches!(read(&[("timeline", "1")]), PostgresAnswer::Unknown(_)));
    }

    #[test]
    fn only_the_server_beside_us_is_asked_for_its_patronis_sessions() {
        assert!(question(true).contains("Patroni heartbeat") && !question(false).contains("Patroni heartbeat"));
        for (row, expected) in [
            ([("in_recovery", "f"), ("heartbeat", "")], Some(Moment::from_millis(7))),
            ([("in_recovery", "f"), ("lsn", "0/1")], None),
        ] {
            assert_eq!(read(&row).server().unwrap().heartbeat, expected, "{row:?}");
        }
    }
}
