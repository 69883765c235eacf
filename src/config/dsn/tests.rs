//! Addresses of PostgreSQL: what is taken and as what, what is refused, and what is never shown.

use super::*;

fn read(text: &str) -> PostgresDsn {
    postgres(text).unwrap_or_else(|wrong| panic!("{text}: {wrong}"))
}

fn tcp(host: &str, port: u16) -> PgHost {
    PgHost::Tcp { host: host.to_owned(), port }
}

fn socket(dir: &str, port: u16) -> PgHost {
    PgHost::Socket { dir: dir.into(), port }
}

fn owned(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

/// What `postgres://u@h` says.
fn plain() -> PostgresDsn {
    PostgresDsn {
        host: tcp("h", 5432),
        user: "u".to_owned(),
        password: None,
        database: "u".to_owned(),
        ssl: SslMode::Prefer,
        ssl_root_cert: None,
        ssl_cert: None,
        ssl_key: None,
        application_name: None,
        options: Vec::new(),
        unknown: Vec::new(),
    }
}

#[test]
fn both_forms_say_the_same() {
    let full = PostgresDsn {
        host: tcp("db.example.com", 6432),
        user: "u".to_owned(),
        password: Some("p w'\\@/".to_owned()),
        database: "events".to_owned(),
        ssl: SslMode::VerifyFull,
        ssl_root_cert: Some("/etc/ca.pem".into()),
        ssl_cert: Some("/etc/c.pem".into()),
        ssl_key: Some("/etc/k.pem".into()),
        application_name: Some("replicon dc1".to_owned()),
        options: owned(&[("statement_timeout", "5s"), ("a.b", "c d")]),
        unknown: vec!["connect_timeout".to_owned()],
    };
    for text in [
        "postgres://u:p%20w'%5C%40%2F@db.example.com:6432/events?sslmode=verify-full\
         &sslrootcert=/etc/ca.pem&sslcert=%2Fetc%2Fc.pem&sslkey=/etc/k.pem\
         &application_name=replicon%20dc1&connect_timeout=3\
         &options=-c%20statement_timeout%3D5s%20--a.b%3Dc%5C%20d",
        "host=db.example.com port=6432 dbname=events user=u password='p w\\'\\\\@/' \
         sslmode=verify-full sslrootcert=/etc/ca.pem sslcert=/etc/c.pem sslkey = /etc/k.pem \
         application_name='replicon dc1' connect_timeout=3 \
         options='-c statement_timeout=5s --a.b=c\\\\ d'",
    ] {
        assert_eq!(read(text), full, "{text}");
    }
    for text in ["postgres://u@h", "postgresql://u@h/", "host=h user=u", "postgres://u:@h:/?"] {
        assert_eq!(read(text), plain(), "{text}");
    }
}

#[test]
fn a_server_is_a_name_an_address_or_a_socket() {
    let default = if cfg!(target_os = "macos") { "/tmp" } else { "/var/run/postgresql" };
    for (text, expect) in [
        ("postgres://u@127.0.0.1:5433/d", tcp("127.0.0.1", 5433)),
        ("postgres://u@[::1]:5433/d", tcp("::1", 5433)),
        ("postgres://u@[::1]/d", tcp("::1", 5432)),
        ("postgres://u@[fe80::1%25eth0]/d", tcp("fe80::1%eth0", 5432)),
        ("postgres://u@db%2Dhost/d", tcp("db-host", 5432)),
        ("postgres://u@/d?host=/run/postgresql", socket("/run/postgresql", 5432)),
        ("postgres:///d?host=/run/postgresql&user=u", socket("/run/postgresql", 5432)),
        ("postgres://u@%2Frun%2Fpostgresql/d", socket("/run/postgresql", 5432)),
        ("postgres://u@%2Frun%2Fpostgresql:5433/d", socket("/run/postgresql", 5433)),
        ("postgres://u@h:1/d?host=i&port=2", tcp("i", 2)),
        ("postgres:///d?user=u", socket(default, 5432)),
        ("postgres://u@:5433/d", socket(default, 5433)),
        ("host=/run/postgresql user=u port=5433", socket("/run/postgresql", 5433)),
        ("host='/a b' user=u", socket("/a b", 5432)),
        ("host=::1 user=u", tcp("::1", 5432)),
        ("hostaddr=10.0.0.1 user=u", tcp("10.0.0.1", 5432)),
        ("user=u dbname=d", socket(default, 5432)),
        ("host='' port='' user=u", socket(default, 5432)),
    ] {
        assert_eq!(read(text).host, expect, "{text}");
    }
    assert_eq!(tcp("h", 1).to_string(), "h:1");
    assert_eq!(tcp("::1", 5432).to_string(), "[::1]:5432");
    assert_eq!(socket("/run", 5432).to_string(), "/run/.s.PGSQL.5432");
}

#[test]
fn the_database_is_named_after_the_user_unless_it_is_named() {
    for (text, expect) in [
        ("postgres://u@h", "u"),
        ("postgres://u@h/", "u"),
        ("postgres://u@h/d%2Fe", "d/e"),
        ("postgres://u@h/d?dbname=e", "e"),
        ("postgres://h?user=v", "v"),
        ("host=h user=u database=d", "d"),
        ("host=h user=u dbname=d dbname=e", "e"),
    ] {
        assert_eq!(read(text).database, expect, "{text}");
    }
}

#[test]
fn a_password_is_read_however_it_is_written() {
    for (text, expect) in [
        ("postgres://u:p@h", Some("p")),
        ("postgres://u:@h", None),
        ("postgres://u:p@ss:w@h", Some("p@ss:w")),
        ("postgres://u:p%40%2f%3a%25%C3%BC@h", Some("p@/:%ü")),
        ("postgres://u:p+q#r@h", Some("p+q#r")),
        ("postgres://u@h?password=a%26b=c", Some("a&b=c")),
        ("host=h user=u password=a\\ b", Some("a b")),
        ("host=h user=u password=a%20b", Some("a%20b")),
        ("host=h user=u password=''", None),
    ] {
        assert_eq!(read(text).password.as_deref(), expect, "{text}");
    }
}

#[test]
fn encryption_is_what_libpq_would_do() {
    for (query, ssl, root) in [
        ("", SslMode::Prefer, None),
        ("sslmode=disable", SslMode::Disable, None),
        ("sslmode=allow", SslMode::Allow, None),
        ("sslmode=prefer", SslMode::Prefer, None),
        ("sslmode=require", SslMode::Require, None),
        ("ssl=true", SslMode::Require, None),
        ("sslmode=verify-ca", SslMode::VerifyCa, None),
        ("sslmode=verify-full", SslMode::VerifyFull, None),
        // who names authorities wants them asked
        ("sslmode=require&sslrootcert=ca.pem", SslMode::VerifyCa, Some("ca.pem")),
        ("sslrootcert=ca.pem", SslMode::Prefer, Some("ca.pem")),
        ("sslrootcert=system", SslMode::VerifyFull, None),
        ("sslrootcert=system&sslmode=verify-full", SslMode::VerifyFull, None),
    ] {
        let dsn = read(&format!("postgres://u@h/d?{query}"));
        assert_eq!((dsn.ssl, dsn.ssl_root_cert), (ssl, root.map(PathBuf::from)), "{query}");
    }
}

#[test]
fn settings_of_the_server_are_split_as_the_server_splits_them() {
    for (options, expect) in [
        ("", &[][..]),
        ("-c a=b", &[("a", "b")][..]),
        ("  -ca=b   --c-d=e ", &[("a", "b"), ("c_d", "e")][..]),
        (r"-c a=b\ c\\", &[("a", r"b c\")][..]),
        ("-c a= -c b=c=d", &[("a", ""), ("b", "c=d")][..]),
    ] {
        let quoted = options.replace('\\', r"\\");
        let dsn = read(&format!("host=h user=u options='{quoted}'"));
        assert_eq!(dsn.options, owned(expect), "{options}");
    }
    // without it a node of v1.0.2 would write into other tables than before
    let dsn = read("postgres://u@h/d?search_path=events&options=-c%20a%3Db");
    assert_eq!(dsn.options, owned(&[("a", "b"), ("search_path", "events")]));
    assert!(dsn.unknown.is_empty());
}

#[test]
fn parameters_without_effect_are_named_once() {
    let text = "postgres://u@h/d?connect_timeout=3&TimeZone=UTC&keepalives_idle=5&pool_max_conns=9\
                &colour=red&sslpassword=s3cret&colour=blue&target_session_attrs=any&ssl=false";
    let expect = [
        "connect_timeout",
        "TimeZone",
        "keepalives_idle",
        "pool_max_conns",
        "colour",
        "sslpassword",
        "target_session_attrs",
        "ssl",
    ];
    assert_eq!(read(text).unknown, expect);
    assert_eq!(read("host=h hostaddr=10.0.0.1 user=u a.b=c").unknown, ["a.b", "hostaddr"]);
}

fn refused(table: &[(&str, &str)]) {
    for (text, part) in table {
        let wrong = postgres(text).unwrap_err();
        assert!(wrong.contains(part), "{text}: {wrong}");
        for piece in ["s3", "cret"] {
            assert!(!wrong.contains(piece), "{text}: {wrong}");
        }
    }
}

#[test]
fn what_is_wrong_with_a_login_or_a_server_is_named_and_never_repeated() {
    refused(&[
        ("", "it is empty; write postgres://USER:PASSWORD@"),
        (" ", "it is empty"),
        ("s3cret", "neither a URL"),
        ("s3cret host=h", "neither a URL"),
        ("mysql://u:s3cret@h/d", "neither a URL"),
        ("u:s3cret@tcp(h:3306)/d", "neither a URL"),
        ("postgres:u:s3cret@h", "neither a URL"),
        ("postgres://u:s3\0cret@h", "a byte 0"),
        ("postgres://:s3cret@h/d", "the user: none is named; write one, as USER in postgres://"),
        ("postgres://h/d?password=s3cret", "or as user=USER"),
        ("host=h password=s3cret", "the user:"),
        ("s3cret=", "the user:"),
        ("postgres://u:s3cret@h1,h2/d", "the host: several are named; write one"),
        ("postgres://u:s3cret@h1:1,h2:2/d", "the host: several"),
        ("postgres://u:s3cret@h1%2Ch2/d", "the host: several"),
        ("host=h1,h2 user=u password=s3cret", "the host: several"),
        ("host=h port=1,2 user=u password=s3cret", "the host: several"),
        ("postgres://u:s3cret@::1/d", "the host: it holds several ':'"),
        ("postgres://u:s3cret@[::1/d", "the host: a '['"),
        ("postgres://u:s3cret@[h]/d", "the host: what stands in brackets"),
        ("postgres://u:s3cret@[::1]5432/d", "the host: write ':'"),
        ("postgres://u:s3cret@h%20h/d", "the host: write a name"),
        ("postgres://u:s3cret@%40h/d", "the host: an abstract socket"),
        ("host=h:5432 user=u password=s3cret", "the host: it holds a ':'"),
        ("postgres://u:s3cret@h:0/d", "the port: write a number from 1 to 65535"),
        ("postgres://u:s3cret@h:65536/d", "the port:"),
        ("host=h port=+1 user=u password=s3cret", "the port:"),
        ("host=h port=s3cret user=u", "the port:"),
    ]);
}

#[test]
fn what_is_wrong_with_the_spelling_is_named_and_never_repeated() {
    refused(&[
        // a password that lacks its percent signs
        ("postgres://u:s3/cret@h/d", "an '@' stands behind the first '/'"),
        ("postgres://u:a@s3/cret@h/d", "an '@' stands behind the first '/'"),
        ("postgres://u:s3?cret@h/d", "a parameter behind the '?' has no '='"),
        ("postgres://u:s3cret", "the user:"),
        ("postgres://u:s3cret%@h/d", "the password: a '%' begins two hex digits"),
        ("postgres://u:s3cret%FF@h/d", "the password:"),
        ("postgres://u:s3cret%00@h/d", "the password:"),
        ("postgres://u%:s3cret@h/d", "the user: a '%'"),
        ("postgres://u:s3cret@h%/d", "the host: a '%'"),
        ("postgres://u:s3cret@h/d%", "the name of the database: a '%'"),
        ("postgres://u@h/d?password=s3cret%", "the value of a parameter: a '%'"),
        ("postgres://u@h/d?password=a&s3cret", "a parameter behind the '?' has no '='"),
        ("postgres://u@h/d?password=a&s3 cret=b", "the name of a parameter:"),
        // words
        ("host=h user=u password='s3cret", "a single quote is never closed"),
        ("host=h user=u password=a s3cret", "a word has no '='"),
        ("host=h user=u password='a's3cret", "a closing quote"),
        ("host=h =s3cret", "an '=' has no name"),
        ("host=h user=u s3cret%=x", "the name of a parameter:"),
    ]);
}

#[test]
fn what_is_wrong_with_a_parameter_is_named_and_never_repeated() {
    refused(&[
        ("postgres://u@h/d?sslmode=s3cret", "sslmode: write one of disable, allow"),
        ("postgres://u:s3cret@h/d?sslmode=require&sslrootcert=system", "needs sslmode=verify-full"),
        ("postgres://u:s3cret@h/d?sslcert=c.pem", "sslcert and sslkey"),
        ("host=h user=u password=s3cret sslkey=k.pem", "sslcert and sslkey"),
        ("host=h user=u options=s3cret", "options: write -c NAME=VALUE"),
        ("host=h user=u options='-c s3cret'", "options:"),
        ("host=h user=u options=-c", "options:"),
        ("host=h user=u options=--", "options:"),
        ("host=h user=u options='-c =s3cret'", "options:"),
    ]);
}

#[test]
fn no_password_is_shown_for_debugging() {
    for text in [
        "postgres://u:s3cret@h/d",
        "postgres://u:s3%63ret@h/d?sslpassword=s3cret&options=-c%20a.b%3Ds3cret",
        "host=h user=u password='s3 cret'",
    ] {
        let shown = format!("{:?} {:#?}", read(text), read(text));
        assert!(!shown.contains("s3"), "{shown}");
        assert!(shown.contains(r#"password: Some("********")"#), "{shown}");
    }
    assert!(format!("{:?}", plain()).contains("password: None"));
}
