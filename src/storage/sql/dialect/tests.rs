//! What codes ask for, and the pieces of statements that golden files do not show well.

use super::mysql::Mysql;
use super::postgres::Postgres;
use super::sqlite::Sqlite;
use super::*;

/// Checks what codes ask for: what they have in one, and the codes.
fn check(dialect: &dyn Dialect, class: Class, groups: &[(&str, &str)]) {
    for (what, codes) in groups {
        for code in codes.split(' ') {
            assert_eq!(dialect.classify(code), class, "{} {code}: {what}", dialect.name());
        }
    }
}

#[test]
fn an_outage_of_postgres_is_tried_again_for_ever() {
    check(
        &Postgres,
        Class::Retry,
        &[
            ("the connection", "08000 08001 08003 08004 08006 08007 08P01"),
            ("shut down, crashed, starting, dropped", "57000 57P01 57P02 57P03 57P04"),
            ("cancelled, idle", "57014 57P05"),
            ("resources, disk, memory, connections", "53000 53100 53200 53300 53400"),
            ("the system", "58000 58030 58P01 58P02"),
            ("nobody is let in", "28000 28P01 3D000 F0000"),
            ("read-only after a failover", "25006"),
            ("the transaction timed out, failed, is unknown", "25P02 25P03 25P04 40003"),
            ("in use, not ready", "55000 55006 72000"),
            ("a pooler without sessions", "26000 42P05"),
        ],
    );
    check(&Postgres, Class::RetryAtOnce, &[("met another transaction", "40000 40001 40P01")]);
}

#[test]
fn only_what_the_data_is_to_blame_for_is_rejected_by_postgres() {
    check(
        &Postgres,
        Class::Reject,
        &[
            ("too long, out of range, no such time", "22000 22001 22003 22007 22008 22023"),
            ("not in the encoding", "22021 22P05"),
            ("bad text, bad JSON", "22P02 22P04 22030 22032"),
            ("constraints but for unique ones", "23000 23001 23502 23503 23514 23P01 44000"),
            ("too large for an index or a page, too deep", "54000 54001"),
            ("raised by a trigger", "P0001"),
        ],
    );
    check(&Postgres, Class::AlreadyThere, &[("a unique index", "23505")]);
}

#[test]
fn what_is_misconfigured_or_not_listed_is_fatal_never_rejected() {
    check(
        &Postgres,
        Class::Fatal,
        &[
            ("no such table, column, function", "42P01 42703 42883"),
            ("no right", "42501"),
            ("another type, no such key, bad SQL", "42804 42P10 42601"),
            ("not supported, wrong place, no schema", "0A000 25001 3F000"),
            ("limits of the table, settings", "54011 55P02"),
            ("internal, corrupt", "XX000 XX001 XX002"),
            ("not listed", "HV000 P0000 23999 99999"),
            ("no SQLSTATE", " 2 22 08 080060 é001 unknown"),
        ],
    );
    check(
        &Sqlite,
        Class::Fatal,
        &[
            ("ERROR, _MISSING_COLLSEQ, INTERNAL", "1 257 2"),
            ("CORRUPT, _VTAB, _INDEX, NOTADB", "11 267 779 26"),
            ("CONSTRAINT, _COMMITHOOK, _FUNCTION, _VTAB, _ROWID", "19 531 1043 2323 2579"),
            ("MISMATCH, MISUSE, AUTH, RANGE", "20 21 23 25"),
            ("not listed", " 0 100 -1 BUSY"),
        ],
    );
}

#[test]
fn codes_of_sqlite_are_told_apart_by_their_extension() {
    check(
        &Sqlite,
        Class::RetryAtOnce,
        &[
            ("BUSY, _RECOVERY, _SNAPSHOT, _TIMEOUT", "5 261 517 773"),
            ("LOCKED, _SHAREDCACHE, SCHEMA, ERROR_RETRY", "6 262 17 513"),
        ],
    );
    check(
        &Sqlite,
        Class::Retry,
        &[
            ("IOERR, _READ, _WRITE, _FSYNC, _NOMEM", "10 266 778 1034 3082"),
            ("FULL, READONLY, _DBMOVED, CANTOPEN, _ISDIR, NOMEM", "13 8 1032 14 526 7"),
            ("PERM, ABORT_ROLLBACK, INTERRUPT, PROTOCOL, ERROR_SNAPSHOT", "3 516 9 15 769"),
        ],
    );
    check(
        &Sqlite,
        Class::Reject,
        &[
            ("_CHECK, _FOREIGNKEY, _NOTNULL, _TRIGGER, _DATATYPE", "275 787 1299 1811 3091"),
            ("TOOBIG", "18"),
        ],
    );
    check(&Sqlite, Class::AlreadyThere, &[("_PRIMARYKEY, _UNIQUE", "1555 2067")]);
}

#[test]
fn numbers_of_mysql_and_mariadb_ask_for_what_their_cause_asks_for() {
    check(&Mysql, Class::AlreadyThere, &[("a unique index", "1022 1062 1169 1586")]);
    check(&Mysql, Class::Locked, &[("somebody holds it", "1205 1689 3572")]);
    check(
        &Mysql,
        Class::RetryAtOnce,
        &[("deadlock, changed since, certification", "1213 1020 1412 1613 1614 1615 3101")],
    );
    check(
        &Mysql,
        Class::Retry,
        &[
            ("shut down, killed, idle", "1053 1077 1079 1080 1317 1927 1969 3024 3032 3169 4031"),
            ("connections, login", "1040 1042 1043 1044 1045 1049 1129 1130 1203 1226 3118 3159"),
            ("the network, a proxy", "1047 1152 1154 1158 1159 1160 1161 1184 2006 2013 9001"),
            ("disk, memory, files", "1021 1026 1030 1037 1041 1114 1206"),
            ("read-only after a failover", "1290 1792 1836"),
            ("statements, COMMIT, binary log", "1243 1461 1180 1598 1665 3100"),
        ],
    );
    check(
        &Mysql,
        Class::Reject,
        &[
            ("values", "1048 1264 1265 1292 1364 1366 1367 1406 1411 1690"),
            ("JSON", "3140 3144 3150 3155 3158"),
            ("foreign keys, CHECKs, triggers", "1216 1369 1452 1644 3819 4025"),
            ("too large", "1118 1153 1197 1713"),
        ],
    );
    check(
        &Mysql,
        Class::Fatal,
        &[
            ("tables, columns, rights, SQL", "1054 1064 1142 1143 1146 1932"),
            ("no partition, keys, read-only table", "1036 1071 1526"),
            ("not listed, no number", "1999 65535 65536 -1  23000 HY000"),
        ],
    );
}

#[test]
fn a_name_cannot_end_its_quotes() {
    assert_eq!(Mysql.quote("a`b"), "`a``b`");
    assert_eq!(Postgres.quote("a\"b"), "\"a\"\"b\"");
    assert_eq!(Sqlite.quote("order"), "\"order\"");
}

#[test]
fn parameters_go_on_from_row_to_row() {
    let table = table::replicon_released();
    assert_eq!(
        Postgres.insert(&table, 2),
        "INSERT INTO \"replicon_released\" (\"origin_dc\", \"channel\", \"released_seq\") VALUES \
         ($1::text, $2::text, $3::bigint), ($4::text, $5::text, $6::bigint)"
    );
    assert!(Mysql.insert(&table::events_raw(), 1).ends_with("(?, ?, ?, ?, LEFT(?, 26), ?)"));
    assert!(Sqlite.insert(&table, 2).ends_with("VALUES (?, ?, ?), (?, ?, ?)"));
    assert!(Postgres.existing(&table::events_raw(), 2).contains("IN ($2::bigint, $3::bigint)"));
}

#[test]
fn what_is_kept_is_counted_by_origin_and_channel_and_given_another_reason() {
    assert_eq!(
        Sqlite.quarantine_groups(),
        "SELECT CAST(\"replicon_quarantine\".\"origin_dc\" AS text), \
         CAST(\"replicon_quarantine\".\"channel\" AS text), CAST(count(*) AS text) \
         FROM \"replicon_quarantine\" \
         GROUP BY \"replicon_quarantine\".\"origin_dc\", \"replicon_quarantine\".\"channel\" \
         ORDER BY \"replicon_quarantine\".\"origin_dc\", \"replicon_quarantine\".\"channel\""
    );
    assert_eq!(
        Postgres.quarantine_reason(),
        "UPDATE \"replicon_quarantine\" SET \"reason\" = $1::text \
         WHERE \"origin_dc\" = $2::text AND \"origin_seq\" = $3::bigint"
    );
    assert!(Mysql.quarantine_groups().contains("CAST(count(*) AS CHAR)"));
}

#[test]
fn a_session_of_postgres_never_weakens_a_commit() {
    let raise = Postgres.session_setup()[0];
    assert!(raise.ends_with("WHERE current_setting('synchronous_commit') = 'off'"), "{raise}");
}

#[test]
fn only_postgres_builds_an_index_beside_writers_and_copies_in() {
    let table = table::events_raw();
    let index = table::reading_index(&table).unwrap();
    assert!(Postgres.create_index_online(&table, &index).contains("INDEX CONCURRENTLY IF NOT"));
    assert_eq!(Sqlite.create_index_online(&table, &index), Sqlite.create_index(&table, &index));
    assert!(Postgres.copy_in(&table).is_some());
    assert!(Sqlite.copy_in(&table).is_none());
}
