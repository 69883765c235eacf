//! A configuration as a whole: defaults, old files, and what contradicts itself.

use super::*;

const CHANNELS: &str = "channels:\n  a: {api_keys: [k]}\n";

fn built(conf: &str, channels: ChannelsSource) -> Result<Config, Vec<String>> {
    let texts =
        |problems: Vec<Problem>| problems.iter().map(ToString::to_string).collect::<Vec<_>>();
    let conf = Some(("t.conf".to_owned(), conf.to_owned()));
    let settings = Settings::load(conf, std::iter::empty(), &[], false).map_err(texts)?;
    build(settings, channels).map_err(texts)
}

fn file(text: &str) -> ChannelsSource {
    ChannelsSource::File { label: "channels.yml".to_owned(), text: text.to_owned() }
}

fn good(conf: &str) -> Config {
    match built(conf, file(CHANNELS)) {
        Ok(config) => config,
        Err(problems) => panic!("refused: {problems:?}"),
    }
}

fn wrong(conf: &str) -> Vec<String> {
    match built(conf, file(CHANNELS)) {
        Ok(_) => panic!("accepted: {conf}"),
        Err(problems) => problems,
    }
}

#[test]
fn the_defaults_are_those_of_the_documentation() {
    let config = good("");
    assert!(config.warnings.is_empty(), "{:?}", config.warnings);
    assert_eq!(config.node_name.as_str(), "dc1");
    assert_eq!(config.cpu, None);
    assert_eq!(config.http.listen.as_deref(), Some("127.0.0.1:8080"));
    assert_eq!(config.http.max_body_bytes, 4 << 20);
    assert_eq!(config.http.idle_timeout, Duration::from_secs(75));
    assert_eq!(config.queue.sync, SyncMode::Ack);
    assert_eq!((config.queue.max_events, config.queue.max_bytes), (10_000_000, 8 << 30));
    assert_eq!(config.writer.batch_size, None);
    assert_eq!(config.json.max_items, 1000);
    assert_eq!(config.storage, StorageConfig::Sqlite { path: "data/db/replicon.db".into() });
    assert!(!config.channels_fallback);
}

#[test]
fn a_file_of_events_has_its_own_defaults() {
    let path = PathBuf::from("data/db/events_raw.jsonl");
    assert_eq!(
        good("storage_backend = file\n").storage,
        StorageConfig::File { path, sync_every: Duration::from_millis(200) }
    );
}

#[test]
fn values_reach_their_owners() {
    let config = good(
        "\
node_name = dc7
cpu = 2
http_listen = :9090
queue_file_sync = interval
queue_file_sync_ms = 50
writer_batch_size = 200
storage_backend = noop
json_duplicate_keys = reject
",
    );
    assert_eq!((config.node_name.as_str(), config.cpu), ("dc7", Some(2)));
    assert_eq!(config.http.listen.as_deref(), Some("0.0.0.0:9090"));
    assert_eq!(config.queue.sync, SyncMode::Interval(Duration::from_millis(50)));
    assert_eq!(config.writer.batch_size, Some(200));
    assert_eq!(config.storage, StorageConfig::Noop);
    assert_eq!(config.json.duplicate_keys, DuplicateKeys::Reject);
    assert_eq!(
        config.warnings,
        [
            "t.conf:4: queue_file_sync = interval: a power cut loses up to 50 ms of events that were answered 202"
        ]
    );
}

/// The snippets of v1.0.2's README put together, with the embedded backends chosen.
const OLD_CONF: &str = "\
node_name = dc1
channels_file = conf/channels.yml
# Use runtime default (recommended)
cpu = -1
max_body_bytes = 1048576
max_batch_items = 1000
client_api_key = my-own-key
replication_token = my-own-token
http_listen = 127.0.0.1:8080
https_enabled = false
https_listen = 0.0.0.0:8443
tls_cert_file = /etc/replicon/tls/server.crt
tls_key_file = /etc/replicon/tls/server.key
queue_backend = file
queue_file_path = data/queue/ingest.log
queue_file_ack_path = data/queue/ingest.ack
queue_file_sync_ms = 200
queue_buffer = 10000
writer_enabled = true
writer_workers = 1
writer_batch_size = 200
writer_batch_flush_ms = 20
storage_backend = file
storage_file_path = data/db/events_raw.jsonl
storage_file_sync_ms = 200
queue_redis_network = tcp
queue_redis_addr = 127.0.0.1:6379
queue_redis_stream = replicon:ingest
queue_redis_group = writer
queue_redis_consumer = replicon
queue_redis_dlq_stream = replicon:ingest:dlq
queue_redis_maxlen = 5000000
queue_redis_max_retries = 5
queue_redis_timeout_ms = 1500
storage_postgres_dsn = postgres://replicon:replicon-secret@127.0.0.1:5432/replicon?sslmode=disable
storage_postgres_connect_timeout_ms = 3000
storage_postgres_max_open_conns = 16
storage_postgres_max_idle_conns = 16
storage_postgres_conn_max_lifetime_min = 30
storage_mysql_dsn = replicon:replicon-secret@tcp(127.0.0.1:3306)/replicon?parseTime=true
storage_mysql_connect_timeout_ms = 3000
storage_mysql_max_open_conns = 16
storage_mysql_max_idle_conns = 16
storage_mysql_conn_max_lifetime_min = 30
replication_enabled = false
replication_peer = dc2=http://10.0.1.2:8080
replication_peer = dc3=https://dc3.example.com
replication_poll_interval_ms = 1000
replication_batch_limit = 1000
replication_http_timeout_ms = 10000
some_key_of_an_old_release = 1
";

#[test]
fn a_file_of_the_old_release_is_taken_with_warnings_only() {
    let config = good(OLD_CONF);
    assert_eq!(
        config.warnings,
        [
            "t.conf:51: there is no key \"some_key_of_an_old_release\"; the line is ignored",
            "t.conf:18: queue_buffer = 10000 holds 1000 ms of outage at 10,000 events/s; the default is 10000000",
            "t.conf:17: queue_file_sync_ms has no effect: every 202 waits for its own sync; \
             only queue_file_sync = interval would change that",
            "t.conf:32: queue_redis_maxlen never trims: an event leaves the stream only once it is stored",
        ]
    );
    assert_eq!(config.queue.max_events, 10_000);
    assert_eq!(config.queue.sync, SyncMode::Ack);
    assert!(!format!("{:?}", config.settings).contains("replicon-secret"));
}

#[test]
fn the_shipped_files_make_a_configuration_without_a_warning() {
    let Ok(config) = built(&shipped_conf(), file(shipped_channels())) else {
        panic!("refused");
    };
    assert!(config.warnings.is_empty(), "{:?}", config.warnings);
}

#[test]
fn what_is_not_here_yet_is_refused_with_its_line() {
    let expect = "t.conf:1: https_enabled = true is not part of this release (2.0.0 serves HTTP; put a TLS proxy before it)";
    assert_eq!(wrong("https_enabled = true\n"), [expect]);
}

#[test]
fn keys_that_contradict_each_other_are_refused() {
    for (conf, parts) in [
        ("http_listen =\n", &["t.conf:1: http_listen is empty"][..]),
        (
            "queue_segment_bytes = 1MiB\n",
            &[
                "t.conf:1: queue_segment_bytes = 1MiB cannot hold one request of max_body_bytes = 4MiB",
            ][..],
        ),
        (
            "\nmax_body_bytes = 64MiB\n",
            &[
                "t.conf:2: queue_segment_bytes = 64MiB cannot hold one request of max_body_bytes = 64MiB",
            ][..],
        ),
        (
            "http_max_inflight_bytes = 1MiB\n",
            &["t.conf:1: http_max_inflight_bytes = 1MiB cannot hold one request"][..],
        ),
        (
            "queue_file_path = a/./b\nqueue_file_ack_path = ./a/b\nstorage_file_path = a/c/../b\nstorage_backend = file\n",
            &[
                "t.conf:2: queue_file_ack_path and queue_file_path are one file",
                "t.conf:3: storage_file_path and queue_file_path are one file",
                "t.conf:3: storage_file_path and queue_file_ack_path are one file",
            ][..],
        ),
        (
            "queue_file_path = a/b\nstorage_file_path = a/b\nstorage_sqlite_path = a//b\n",
            &["t.conf:3: storage_sqlite_path and queue_file_path are one file"][..],
        ),
        (
            "storage_sqlite_path = :memory:\n",
            &["t.conf:1: storage_sqlite_path = :memory: would not be a file of this name"][..],
        ),
        ("storage_sqlite_path = file:x?mode=memory\n", &["t.conf:1: storage_sqlite_path = "][..]),
    ] {
        let wrong = wrong(conf);
        assert_eq!(wrong.len(), parts.len(), "{wrong:?}");
        for (problem, part) in wrong.iter().zip(parts) {
            assert!(problem.starts_with(part), "{problem}");
        }
    }
}

const POSTGRES: &str =
    "storage_backend = postgres\nstorage_postgres_dsn = postgres://u:s3cret@h/d\n";

fn postgres_of(config: &Config) -> &ServerConfig<PostgresDsn> {
    match &config.storage {
        StorageConfig::Postgres(postgres) => postgres,
        other => panic!("{other:?}"),
    }
}

#[test]
fn postgres_is_used_as_its_keys_say() {
    let config = good(POSTGRES);
    assert!(config.warnings.is_empty(), "{:?}", config.warnings);
    let postgres = postgres_of(&config);
    assert_eq!(postgres.dsn.host, PgHost::Tcp { host: "h".to_owned(), port: 5432 });
    assert_eq!(postgres.dsn.password.as_deref(), Some("s3cret"));
    assert_eq!(postgres.connect_timeout, Duration::from_secs(3));
    assert_eq!((postgres.max_open, postgres.max_idle), (16, 16));
    assert_eq!(postgres.lifetime, Some(Duration::from_secs(1800)));
    assert!(postgres.origin_lock);
    assert!(!format!("{:?} {:?}", config.storage, config.settings).contains("s3cret"));

    let config = good(&format!(
        "{POSTGRES}\
storage_postgres_connect_timeout_ms = 500
storage_postgres_max_open_conns = 4
storage_postgres_conn_max_lifetime_min = 0
storage_origin_lock = off
writer_workers = 3
"
    ));
    let postgres = postgres_of(&config);
    assert_eq!(postgres.connect_timeout, Duration::from_millis(500));
    assert_eq!((postgres.max_open, postgres.max_idle), (4, 4));
    assert_eq!(postgres.lifetime, None);
    assert!(!postgres.origin_lock);
    let config = good(&format!("{POSTGRES}storage_postgres_max_idle_conns = 0\n"));
    assert_eq!(postgres_of(&config).max_idle, 0);
}

#[test]
fn an_address_that_is_not_used_is_not_judged() {
    for backend in ["sqlite", "file", "noop"] {
        let config = good(&format!(
            "storage_backend = {backend}\nwriter_workers = 64\nstorage_postgres_dsn = postgres://h/d?x=1\n"
        ));
        assert!(config.warnings.is_empty(), "{backend}: {:?}", config.warnings);
    }
}

#[test]
fn postgres_without_an_address_is_told_how_to_write_one() {
    let form = "postgres://USER:PASSWORD@127.0.0.1:5432/replicon?sslmode=disable";
    let needs = format!(
        "storage_backend = postgres needs storage_postgres_dsn; write storage_postgres_dsn = {form}"
    );
    for (conf, line) in [
        ("\nstorage_backend = postgres\n", 2),
        ("storage_backend = postgres\nstorage_postgres_dsn =\n", 2),
    ] {
        assert_eq!(wrong(conf), [format!("t.conf:{line}: {needs}")]);
    }
}

#[test]
fn an_address_that_is_wrong_is_refused_with_its_line_and_not_shown() {
    for dsn in ["postgres://u:s3cret@h:x/d", "postgres://u:s3cret@h,i/d", "s3cret", "user=u s3cret"]
    {
        let wrong = wrong(&format!("storage_backend = postgres\nstorage_postgres_dsn = {dsn}\n"));
        assert_eq!(wrong.len(), 1, "{wrong:?}");
        assert!(wrong[0].starts_with("t.conf:2: storage_postgres_dsn: "), "{wrong:?}");
        assert!(!wrong[0].contains("cret"), "{wrong:?}");
    }
}

#[test]
fn parameters_of_an_address_that_have_no_effect_are_warned_about() {
    let config = good(
        "storage_backend = postgres\nstorage_postgres_dsn = host=h user=u password=s3cret sslpassword=s3cret colour='s3cret'\n",
    );
    let warned = |name| {
        format!(
            "t.conf:2: storage_postgres_dsn: the parameter {name} is not known and has no effect"
        )
    };
    assert_eq!(config.warnings, [warned("sslpassword"), warned("colour")]);
    assert!(!format!("{:?}", config.settings.effective()).contains("s3cret"));
}

#[test]
fn writers_leave_a_connection_to_others() {
    for (conf, line, part) in [
        (
            "writer_workers = 16\n",
            3,
            "make storage_postgres_max_open_conns at least 17, or writer_workers smaller",
        ),
        (
            "storage_postgres_max_open_conns = 1\n",
            3,
            "make storage_postgres_max_open_conns at least 2",
        ),
        (
            "writer_workers = 4\nstorage_postgres_max_open_conns = 4\n",
            4,
            "writer_workers = 4 takes every connection of storage_postgres_max_open_conns = 4",
        ),
    ] {
        let wrong = wrong(&format!("{POSTGRES}{conf}"));
        assert_eq!(wrong.len(), 1, "{wrong:?}");
        assert!(wrong[0].starts_with(&format!("t.conf:{line}: ")), "{wrong:?}");
        assert!(wrong[0].contains(part), "{wrong:?}");
    }
    assert!(
        !wrong(&format!("{POSTGRES}storage_postgres_max_open_conns = 1\n"))[0].contains("smaller")
    );
    good(&format!("{POSTGRES}writer_workers = 15\n"));
}

#[test]
fn mistakes_of_keys_and_channels_are_reported_together() {
    let channels = file("channels:\n  a:\n    mod: raw_only\n");
    let Err(problems) = built("https_enabled = true\n", channels) else {
        panic!("accepted");
    };
    assert_eq!(problems.len(), 3, "{problems:?}");
    assert!(problems[1].starts_with("channels.yml:3: channels.a.mod: "), "{problems:?}");
}

#[test]
fn a_depth_beyond_what_all_backends_take_names_the_one_that_refuses() {
    assert!(good("json_max_depth = 31\n").warnings.is_empty());
    let warnings = good("json_max_depth = 32\n").warnings;
    assert!(warnings.len() == 1 && warnings[0].contains("MariaDB"), "{warnings:?}");
}

#[test]
fn the_shipped_key_is_a_warning_where_other_machines_reach_it() {
    for (listen, warned) in [
        ("127.0.0.1:8080", false),
        ("[::1]:8080", false),
        ("localhost:8080", false),
        (":8080", true),
        ("0.0.0.0:8080", true),
        ("10.0.0.1:8080", true),
    ] {
        let conf = format!("http_listen = {listen}\n");
        let Ok(config) = built(&conf, file(shipped_channels())) else {
            panic!("refused");
        };
        assert_eq!(
            config.warnings.iter().any(|text| text.contains("events_raw")),
            warned,
            "{listen}"
        );
        assert!(good(&conf).warnings.is_empty(), "{listen}");
    }
}

#[test]
fn without_channels_the_client_key_serves_and_the_configuration_says_so() {
    let missing = || ChannelsSource::Missing { path: "conf/channels.yml".to_owned() };
    let Ok(config) = built("client_api_key = my-own-key\n", missing()) else {
        panic!("refused");
    };
    assert!(config.channels_fallback);
    assert_eq!(config.warnings.len(), 1);
    assert!(built("", missing()).is_err());
}

#[test]
fn keys_of_redis_that_contradict_each_other_are_named_and_no_password_is_shown() {
    for (conf, part) in [
        ("queue_redis_addr = redis://u:s3cret@h:6379\n", "queue_redis_username"),
        ("queue_redis_addr = h\n", "host:port"),
        ("queue_redis_password = a\nqueue_redis_password_file = b\n", "both set"),
        ("queue_redis_dlq_stream = replicon:ingest:counts\n", "share a key"),
        ("queue_redis_group =\n", "queue_redis_group is empty"),
    ] {
        let wrong = wrong(conf);
        assert!(wrong.len() == 1 && wrong[0].contains(part), "{wrong:?}");
        assert!(!wrong[0].contains("s3cret"), "{wrong:?}");
    }
    let config = good("queue_backend = redis\nqueue_redis_addr = rediss://h:6380\n");
    assert_eq!(config.queue.redis.address, RedisAddress::Tls("h".to_owned(), 6380));
    assert_eq!(config.queue.backend, QueueBackend::Redis);
}
