//! Addresses of MySQL: what is taken and as what, what is refused, and what is never shown.

use super::*;

fn read(text: &str) -> MysqlDsn {
    mysql(text).unwrap_or_else(|wrong| panic!("{text}: {wrong}"))
}

fn tcp_at(host: &str, port: u16) -> MysqlHost {
    MysqlHost::Tcp { host: host.to_owned(), port }
}

fn socket(path: &str) -> MysqlHost {
    MysqlHost::Socket(path.into())
}

/// What `u:p@tcp(h:3307)/d` says.
fn plain() -> MysqlDsn {
    MysqlDsn {
        host: tcp_at("h", 3307),
        user: "u".to_owned(),
        password: Some("p".to_owned()),
        database: "d".to_owned(),
        tls: MysqlTls::Preferred,
        ssl_root_cert: None,
        ssl_cert: None,
        ssl_key: None,
        unknown: Vec::new(),
    }
}

#[test]
fn both_forms_say_the_same() {
    for text in [
        "u:p@tcp(h:3307)/d",
        " u:p@tcp(h:3307)/d?parseTime=true ",
        "mysql://u:p@h:3307/d",
        "mariadb://u:p@h:3307/d?",
        "mysql://u:%70@h:3307/d?parseTime=true&loc=UTC",
    ] {
        assert_eq!(read(text), plain(), "{text}");
    }
}

#[test]
fn a_server_is_found_where_gos_driver_would_look() {
    for (text, expect) in [
        ("u@/d", tcp_at("127.0.0.1", 3306)),
        ("u@tcp/d", tcp_at("127.0.0.1", 3306)),
        ("u@tcp()/d", tcp_at("127.0.0.1", 3306)),
        ("u@tcp(:3307)/d", tcp_at("127.0.0.1", 3307)),
        ("u@tcp(db.example.com)/d", tcp_at("db.example.com", 3306)),
        ("u@(h:1)/d", tcp_at("h", 1)),
        ("u@tcp([::1]:3307)/d", tcp_at("::1", 3307)),
        ("u@tcp([::1])/d", tcp_at("::1", 3306)),
        ("u@unix/d", socket("/tmp/mysql.sock")),
        ("u@unix(/run/mysqld/mysqld.sock)/d", socket("/run/mysqld/mysqld.sock")),
        ("u@unix(/a b)/d", socket("/a b")),
        ("mysql://u@/d", tcp_at("127.0.0.1", 3306)),
        ("mysql://u@h/d", tcp_at("h", 3306)),
        ("mysql://u@[::1]:1/d", tcp_at("::1", 1)),
        ("mysql://u@%2Frun%2Fmy.sock/d", socket("/run/my.sock")),
        ("mysql://u@h/d?socket=/run/my.sock", socket("/run/my.sock")),
    ] {
        assert_eq!(read(text).host, expect, "{text}");
    }
    assert_eq!(tcp_at("h", 1).to_string(), "h:1");
    assert_eq!(tcp_at("::1", 3306).to_string(), "[::1]:3306");
    assert_eq!(socket("/run/my.sock").to_string(), "/run/my.sock");
}

#[test]
fn a_password_is_read_as_gos_driver_reads_it() {
    for (text, user, password) in [
        ("u@tcp(h)/d", "u", None),
        ("u:@tcp(h)/d", "u", None),
        ("u:p@ss:w/rd@tcp(h)/d", "u", Some("p@ss:w/rd")),
        ("u:p(q)?r=s@tcp(h)/d", "u", Some("p(q)?r=s")),
        // no percent sign means anything here
        ("u:p%40@tcp(h)/d", "u", Some("p%40")),
        ("u:p://w@tcp(h)/d", "u", Some("p://w")),
        ("mysql://u:p%40%2F%25@h/d", "u", Some("p@/%")),
        ("mysql://u:p@ss@h/d", "u", Some("p@ss")),
    ] {
        let dsn = read(text);
        assert_eq!((dsn.user.as_str(), dsn.password.as_deref()), (user, password), "{text}");
    }
}

#[test]
fn the_database_may_hold_percent_signs() {
    for (text, expect) in
        [("u@/a%2Fb", "a/b"), ("u@/d?", "d"), ("mysql://u@h/a%2Fb", "a/b"), ("u@/ü", "ü")]
    {
        assert_eq!(read(text).database, expect, "{text}");
    }
}

#[test]
fn encryption_is_what_is_asked_for_and_preferred_where_nothing_is() {
    for (query, tls, root) in [
        ("", MysqlTls::Preferred, None),
        ("tls=", MysqlTls::Preferred, None),
        ("tls=preferred", MysqlTls::Preferred, None),
        ("tls=false", MysqlTls::Disabled, None),
        ("tls=skip-verify", MysqlTls::Required, None),
        ("tls=true", MysqlTls::VerifyIdentity, None),
        ("tls=TRUE", MysqlTls::VerifyIdentity, None),
        ("tls=true&ssl-ca=ca.pem", MysqlTls::VerifyIdentity, Some("ca.pem")),
        ("ssl-ca=ca.pem", MysqlTls::VerifyCa, Some("ca.pem")),
        ("tls=preferred&ssl-ca=ca.pem", MysqlTls::Preferred, Some("ca.pem")),
        ("ssl-mode=DISABLED", MysqlTls::Disabled, None),
        ("ssl-mode=REQUIRED", MysqlTls::Required, None),
        ("ssl-mode=VERIFY_CA", MysqlTls::VerifyCa, None),
        ("sslmode=verify-identity", MysqlTls::VerifyIdentity, None),
    ] {
        for form in ["u@tcp(h)/d?", "mysql://u@h/d?"] {
            let dsn = read(&format!("{form}{query}"));
            assert_eq!((dsn.tls, dsn.ssl_root_cert), (tls, root.map(PathBuf::from)), "{query}");
        }
    }
    // whom a socket leads to, the file system says
    assert_eq!(read("u@unix(/s)/d?tls=true").tls, MysqlTls::Required);
    assert_eq!(read("u@unix(/s)/d").tls, MysqlTls::Preferred);
    let dsn = read("u@/d?ssl-cert=c.pem&ssl-key=k.pem");
    assert_eq!((dsn.ssl_cert, dsn.ssl_key), (Some("c.pem".into()), Some("k.pem".into())));
}

#[test]
fn parameters_without_effect_are_named_once_unless_they_ask_for_nothing_else() {
    let silent = "u@/d?parseTime=true&charset=utf8mb4,utf8&collation=utf8mb4_general_ci&loc=UTC\
                  &timeout=5s&readTimeout=5s&writeTimeout=5s&maxAllowedPacket=0\
                  &interpolateParams=true&multiStatements=true&allowNativePasswords=false";
    assert_eq!(read(silent).unknown, Vec::<String>::new());
    let noted = "u@/d?loc=Europe%2FHelsinki&charset=latin1&colour=red&colour=blue&serverPubKey=k\
                 &time_zone=%27%2B02:00%27&allowCleartextPasswords=true";
    let expect =
        ["loc", "charset", "colour", "serverPubKey", "time_zone", "allowCleartextPasswords"];
    assert_eq!(read(noted).unknown, expect);
}

fn refused(table: &[(&str, &str)]) {
    for (text, part) in table {
        let wrong = mysql(text).unwrap_err();
        assert!(wrong.contains(part), "{text}: {wrong}");
        for piece in ["s3", "cret"] {
            assert!(!wrong.contains(piece), "{text}: {wrong}");
        }
    }
}

#[test]
fn what_is_wrong_with_an_address_is_named_and_never_repeated() {
    refused(&[
        ("", "it is empty; write USER:PASSWORD@tcp("),
        (" ", "it is empty"),
        ("s3cret", "no '/' stands before it"),
        ("u:s3\0cret@/d", "a byte 0"),
        ("postgres://u:s3cret@h/d", "something else than MySQL"),
        (":s3cret@tcp(h)/d", "the user: none is named; write one, as USER"),
        ("/d", "the user: none is named"),
        ("u:s3cret@tcp(h)/", "the name of the database: none is given"),
        ("u:s3cret@tcp(h)", "no '/' stands before it"),
        ("mysql://u:s3cret@h", "the name of the database: none is given"),
        ("u:s3cret@h:3306/d", "the address: write tcp(HOST:PORT) or unix(PATH)"),
        ("u:s3cret@tcp(h:3306/d", "the address:"),
        ("u:s3cret@tcp(h))/d", "the address:"),
        ("u:s3cret@udp(h)/d", "the address:"),
        ("u:s3cret@unix(/run/my.sock)", "the address:"),
        ("u:s3cret@unix(my.sock)/d", "the path of a unix socket begins with '/'"),
        ("u:s3cret@tcp(h)/d?loc=Europe/Helsinki", "write '/' as %2F"),
        ("u:s3cret@tcp(::1:3306)/d", "the host: it holds several ':'"),
        ("u:s3cret@tcp(h h)/d", "the host: write a name or an address"),
        ("u:s3cret@tcp(h1,h2)/d", "the host: several"),
        ("u:s3cret@tcp(h:0)/d", "the port: write a number from 1 to 65535"),
        ("u:s3cret@tcp(h:s3cret)/d", "the port:"),
        ("mysql://u:s3cret@h:65536/d", "the port:"),
        ("mysql://u:s3/cret@h/d", "an '@' stands behind the first '/'"),
        ("mysql://u:s3cret%@h/d", "the password: a '%'"),
    ]);
}

#[test]
fn what_is_wrong_with_a_parameter_is_named_and_never_repeated() {
    refused(&[
        ("u:s3cret@/d?tls=s3cret", "tls: write one of true, skip-verify, preferred, false;"),
        ("u:s3cret@/d?tls=custom", "ssl-ca=PATH names an authority"),
        ("u:s3cret@/d?ssl-mode=s3cret", "ssl-mode: write one of disabled"),
        ("u:s3cret@/d?ssl-cert=c.pem", "ssl-cert and ssl-key"),
        ("mysql://u:s3cret@h/d?ssl-key=k.pem", "ssl-cert and ssl-key"),
        ("u@/d?socket=s3cret", "socket: the path"),
        ("u:s3cret@/d?s3cret", "a parameter behind the '?' has no '='"),
        ("u@/d?s3 cret=x", "the name of a parameter:"),
        ("u@/d?a=s3cret%", "the value of a parameter: a '%'"),
        ("u@/s3cret%", "the name of the database: a '%'"),
    ]);
}

#[test]
fn no_password_is_shown_for_debugging() {
    for text in ["u:s3cret@tcp(h)/d", "mysql://u:s3%63ret@h/d"] {
        let shown = format!("{:?} {:#?}", read(text), read(text));
        assert!(!shown.contains("s3"), "{shown}");
        assert!(shown.contains(r#"password: Some("********")"#), "{shown}");
    }
    assert!(format!("{:?}", read("u@/d")).contains("password: None"));
}
