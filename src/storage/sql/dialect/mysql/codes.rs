//! The numbers of MySQL's and MariaDB's errors: what each asks for, and in which words it is told.
//!
//! Numbers, since a SQLSTATE names no more than a family. Pure. Does not know which statement failed.

use super::Class;

/// What is known of a number.
pub(super) fn listed(number: u16) -> Option<Class> {
    Some(match number {
        // ER_DUP_KEY, _ENTRY, _UNIQUE, _ENTRY_WITH_KEY_NAME
        1022 | 1062 | 1169 | 1586 => Class::AlreadyThere,
        // ER_LOCK_WAIT_TIMEOUT, _ABORTED, _NOWAIT
        1205 | 1689 | 3572 => Class::Locked,
        // A deadlock, a row or a table that changed meanwhile, a certification that failed in a
        // group: each has rolled back, or asks for it.
        1020 | 1213 | 1412 | 1613 | 1614 | 1615 | 3101 => Class::RetryAtOnce,
        number if is_outage(number) => Class::Retry,
        number if is_of_the_data(number) => Class::Reject,
        _ => return None,
    })
}

/// The connection, the resources, the operator, the login: no event is at fault.
fn is_outage(number: u16) -> bool {
    match number {
        // closing, reading and writing files; disk full; memory
        1021 | 1023 | 1024 | 1026 | 1030 | 1037 | 1038 | 1041 | 1114 | 1135 => true,
        // connections: too many, hosts, handshakes; who may log in, and where
        1040 | 1042..=1047 | 1049 | 1129 | 1130 | 1203 | 1226 | 1251 | 1820 | 1862 => true,
        3118 | 3159 | 3955 => true,
        // shutting down, killed, interrupted, too slow, idle
        1053 | 1077..=1081 | 1152 | 1184 | 1317 | 1927 | 1969 => true,
        3024 | 3032 | 3168 | 3169 | 4031 => true,
        // the network
        1154..=1161 | 1189 | 1190 => true,
        // prepared statements that are gone, or too many
        1243 | 1461 => true,
        // COMMIT and ROLLBACK of which nobody knows; the table of locks is full
        1180 | 1181 | 1206 | 1637 => true,
        // read only: after a failover, or told to be so for a while
        1290 | 1792 | 1836 => true,
        // the binary log cannot be written, or not of what is read committed; a hook of a group
        1534 | 1598 | 1665 | 3100 => true,
        // what a client library, or a proxy in its name, says of a server that is not there
        2002 | 2003 | 2006 | 2013 | 2055 | 9001 => true,
        _ => false,
    }
}

fn is_of_the_data(number: u16) -> bool {
    match number {
        // null, no default, no such value, too long, out of range, no such time, not in the charset
        1048 | 1138 | 1162 | 1263..=1265 | 1292 | 1300 | 1301 | 1364..=1367 => true,
        1406 | 1411 | 1441 | 1525 | 1690 | 3854 => true,
        // JSON
        3140 | 3141 | 3144 | 3146 | 3147 | 3150 | 3151 | 3155..=3158 => true,
        // foreign keys, views, CHECKs (MySQL's, MariaDB's), a trigger's SIGNAL
        1216 | 1217 | 1369 | 1451 | 1452 | 1643 | 1644 | 3819 | 4025 => true,
        // too large for a packet, a page, an undo record, the cache of the binary log
        1118 | 1153 | 1197 | 1713 => true,
        _ => false,
    }
}

/// Whether the server's own words hold names and sizes, and no value.
fn is_shown(number: u16) -> bool {
    match listed(number) {
        Some(Class::Retry | Class::RetryAtOnce | Class::Locked) => true,
        // sizes: of a row, a transaction, an undo record
        Some(_) => matches!(number, 1118 | 1197 | 1713),
        None => matches!(
            number,
            // tables, columns and indexes that are there or are not; rights; what cannot be made
            1036 | 1050 | 1051 | 1054 | 1059..=1061 | 1064 | 1067..=1073 | 1091 | 1101 | 1102
                | 1113 | 1116 | 1117 | 1142 | 1143 | 1146 | 1167 | 1170 | 1171 | 1193 | 1194
                | 1227 | 1231 | 1235 | 1286 | 1295 | 1305 | 1356 | 1370 | 1449 | 1813 | 1846
                | 1932 | 3152
        ),
    }
}

/// An error in words that hold no value.
pub(super) fn text_of(number: u16, message: &str) -> String {
    if is_shown(number) {
        return message.to_owned();
    }
    match number {
        1022 | 1062 | 1169 | 1586 => duplicate(message),
        3819 => refused_by("constraint", between(message, "Check constraint '", "'")),
        4025 => refused_by("constraint", between(message, "CONSTRAINT `", "`")),
        1216 | 1217 | 1451 | 1452 => {
            refused_by("foreign key", between(message, "CONSTRAINT `", "`"))
        }
        1643 | 1644 => "refused by a trigger".to_owned(),
        1153 => "larger than the server's max_allowed_packet".to_owned(),
        number if is_of_the_data(number) => match column(message) {
            Some(column) => format!("a value is not one of its column's type, column {column}"),
            None => "a value or its row is not one that the table takes".to_owned(),
        },
        _ => "refused by the server".to_owned(),
    }
}

/// The name of the index stands last, behind the value. MySQL puts the table before it.
fn duplicate(message: &str) -> String {
    let last = message.strip_suffix('\'').and_then(|head| head.rsplit_once('\''));
    let name = last.and_then(|(_, name)| checked(name));
    match name.map(|name| name.rsplit_once('.').map_or(name, |(_, index)| index)) {
        Some("PRIMARY") => "its identity stands there already".to_owned(),
        index => refused_by("unique index", index),
    }
}

fn refused_by(what: &str, name: Option<&str>) -> String {
    match name {
        Some(name) => format!("refused by {what} {name}"),
        None => format!("refused by a {what}"),
    }
}

/// A name that could be one: what else stands there may be a piece of a value.
fn checked(name: &str) -> Option<&str> {
    let good = |c: char| c.is_alphanumeric() || matches!(c, '_' | '.' | '$' | '-');
    let fits = (1..=130).contains(&name.chars().count()) && name.chars().all(good);
    if fits { Some(name) } else { None }
}

fn between<'a>(message: &'a str, before: &str, behind: &str) -> Option<&'a str> {
    let (_, rest) = message.split_once(before)?;
    checked(rest.split_once(behind)?.0)
}

/// The column that a message is about. It stands at the end, in words that no value can imitate from
/// within its own quotes: behind a value comes a quote.
fn column(message: &str) -> Option<&str> {
    if let Some(rest) = message.strip_prefix("Column '") {
        return checked(rest.strip_suffix("' cannot be null")?);
    }
    if let Some(rest) = message.strip_prefix("Field '") {
        return checked(rest.strip_suffix("' doesn't have a default value")?);
    }
    let numbered = message.rsplit_once(" at row ");
    let head = match numbered {
        Some((head, row)) if row.bytes().all(|byte| byte.is_ascii_digit()) => head,
        _ => message.strip_suffix('.')?,
    };
    let quote = head.chars().next_back().filter(|c| matches!(c, '\'' | '`'))?;
    let (before, name) = head.strip_suffix(quote)?.rsplit_once(quote)?;
    // MariaDB writes `database`.`table`.`column`
    let mut before = before;
    while let Some(rest) = before.strip_suffix("`.") {
        before = rest.rsplit_once('`')?.0;
    }
    if !before.ends_with("column ") {
        return None;
    }
    checked(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Checks what an error's message becomes, and that nothing of a value is left of it.
    fn check(cases: &[(u16, &str, &str)]) {
        for (number, message, expect) in cases {
            let text = text_of(*number, message);
            assert_eq!(text, *expect, "{number} {message}");
            assert!(!text.contains("s3cret"), "{number}: {text}");
        }
    }

    #[test]
    fn a_duplicate_names_its_index_and_no_value() {
        let identity = "its identity stands there already";
        check(&[
            (1062, "Duplicate entry 'dc1-7' for key 'PRIMARY'", identity),
            (1062, "Duplicate entry 'dc1-7' for key 'events_raw.PRIMARY'", identity),
            (1062, "Duplicate entry 's3cret' for key 'by_mail'", "refused by unique index by_mail"),
            (
                1062,
                "Duplicate entry 's3cret' for key 'x' for key 't.by_mail'",
                "refused by unique index by_mail",
            ),
            (1062, "Duplicate entry 's3cret' for key", "refused by a unique index"),
            (1062, "Doppelt: 's3cret', 'by_mail'", "refused by unique index by_mail"),
            (1586, "Duplicate entry 's3 cret' for key 's3 cret'", "refused by a unique index"),
        ]);
    }

    #[test]
    fn a_refused_value_names_its_column_and_nothing_else() {
        let at = |column: &str| format!("a value is not one of its column's type, column {column}");
        let none = "a value or its row is not one that the table takes";
        check(&[
            (1406, "Data too long for column 'comment' at row 3", &at("comment")),
            (1264, "Out of range value for column 'n' at row 1", &at("n")),
            (1366, r"Incorrect string value: '\xF0s3cret' for column 'c' at row 1", &at("c")),
            (1366, "Incorrect integer value: 's3cret' for column `db`.`t`.`c` at row 12", &at("c")),
            (1292, "Incorrect datetime value: 's3cret' for column 'at' at row 1", &at("at")),
            (1292, "Truncated incorrect DOUBLE value: 's3cret'", none),
            (1292, "Truncated incorrect DOUBLE value: 'x for column 's3cret' at row 1'", none),
            (1292, "Truncated incorrect DOUBLE value: 's3cret at row 1", none),
            (1048, "Column 'c' cannot be null", &at("c")),
            (1364, "Field 'c' doesn't have a default value", &at("c")),
            (
                3140,
                "Invalid JSON text: \"Invalid value.\" at position 1 in value for column 't.doc'.",
                &at("t.doc"),
            ),
            (1690, "BIGINT value is out of range in '(`db`.`t`.`s3cret` + 1)'", none),
        ]);
    }

    #[test]
    fn a_constraint_is_named_and_what_a_trigger_says_is_not() {
        check(&[
            (3819, "Check constraint 'positive' is violated.", "refused by constraint positive"),
            (4025, "CONSTRAINT `positive` failed for `db`.`t`", "refused by constraint positive"),
            (
                1452,
                "Cannot add or update a child row: a foreign key constraint fails (`db`.`t`, \
                 CONSTRAINT `fk` FOREIGN KEY (`c`) REFERENCES `u` (`id`))",
                "refused by foreign key fk",
            ),
            (1452, "s3cret", "refused by a foreign key"),
            (1644, "no s3cret here", "refused by a trigger"),
            (1153, "Got a packet bigger", "larger than the server's max_allowed_packet"),
        ]);
    }

    #[test]
    fn the_servers_own_words_are_shown_where_they_hold_names_only() {
        check(&[
            (1146, "Table 'db.t' doesn't exist", "Table 'db.t' doesn't exist"),
            (1213, "Deadlock found", "Deadlock found"),
            (1118, "Row size too large (> 8126)", "Row size too large (> 8126)"),
            (1045, "Access denied for user 'u'@'h'", "Access denied for user 'u'@'h'"),
            (1999, "something about s3cret", "refused by the server"),
        ]);
    }
}
