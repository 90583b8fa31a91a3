use super::*;
use std::collections::BTreeMap;

const PATRONI: &str = r#"
scope: my_cluster
name: postgresql0
restapi:
  listen: 0.0.0.0:8008
  connect_address: pg-master:8008
  authentication: {username: admin, password: rest-secret}
zookeeper:
  hosts: ['zoo:2181']
bootstrap:
  dcs:
    ttl: 30
    loop_wait: 10
    retry_timeout: 10
postgresql:
  listen: 0.0.0.0:5432
  connect_address: pg-master:5432
  authentication:
    superuser: {username: postgres, password: pg-secret}
  parameters:
    unix_socket_directories: '/var/run/postgresql, .'
"#;

struct Files(tempfile::TempDir);

impl Files {
    fn new(patroni: &str, warden: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("patroni.yml"), patroni).unwrap();
        let warden = warden.replace("PATRONI", &dir.path().join("patroni.yml").display().to_string());
        std::fs::write(dir.path().join("warden.yml"), warden).unwrap();
        Self(dir)
    }

    fn load(&self, env: &[(&str, &str)]) -> Result<Config, ConfigError> {
        let env: BTreeMap<String, String> = env.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        resolve::load(&self.0.path().join("warden.yml"), &env)
    }
}

#[test]
fn patronis_own_file_is_enough() {
    let config = Files::new(PATRONI, "patroni_config: PATRONI\nnode: {}\n").load(&[]).unwrap();
    assert_eq!(config.patroni_tree(), "/service/my_cluster");
    assert_eq!(config.own_tree(), "/warden/service/my_cluster");
    assert_eq!(config.old_tree(), "/warden/my_cluster");
    assert_eq!(config.name, "postgresql0");
    assert_eq!(config.zookeeper.hosts, ["zoo:2181"]);
    assert_eq!(config.zookeeper.session_timeout, Duration::from_secs(30));
    assert_eq!(config.patroni.username.as_deref(), Some("admin"));
    let node = config.node.unwrap();
    assert_eq!((node.api.as_str(), node.host.as_str(), node.port), ("http://pg-master:8008", "pg-master", 5432));
    assert_eq!(node.socket_dir.as_deref(), Some(Path::new("/var/run/postgresql")));
    assert_eq!(config.superuser.unwrap().password.unwrap().reveal(), "pg-secret");
}

#[test]
fn sessions_are_in_patronis_database() {
    for (key, database) in [("", "postgres"), ("  database: ops\n", "ops"), ("  database: ''\n", "postgres")] {
        let patroni = format!("{PATRONI}{key}");
        let config = Files::new(&patroni, "patroni_config: PATRONI\nnode: {}\n").load(&[]).unwrap();
        assert_eq!(config.superuser.unwrap().database, database, "{key:?}");
    }
}

#[test]
fn other_members_are_asked_with_the_role_that_is_named_for_it() {
    let node = "patroni_config: PATRONI\nnode: {}\n";
    assert_eq!(Files::new(PATRONI, node).load(&[]).unwrap().watch, None);
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("secret"), "from-file\n").unwrap();
    let patroni = format!("{PATRONI}  database: ops\n");
    let file = format!(", password_file: {}", dir.path().join("secret").display());
    for (more, env, password) in
        [("", "", None), ("", "from-env", Some("from-env")), (file.as_str(), "from-env", Some("from-file"))]
    {
        let files = Files::new(&patroni, &format!("{node}watch: {{username: warden_watch{more}}}\n"));
        let config = files.load(&[("WARDEN_WATCH_PASSWORD", env), ("PATRONI_SUPERUSER_SSLMODE", "require")]).unwrap();
        let watch = config.watch.unwrap();
        assert_eq!((watch.username.as_str(), watch.database.as_str()), ("warden_watch", "ops"));
        assert_eq!(watch.sslmode, SslMode::Require);
        assert_eq!(watch.password.as_ref().map(Secret::reveal), password);
        assert_eq!(config.superuser.unwrap().username, "postgres", "a fence is the superuser's");
    }
}

#[test]
fn the_environment_wins_over_patronis_file_and_our_file_over_both() {
    let files = Files::new(PATRONI, "patroni_config: PATRONI\nnode: {}\nscope: third\n");
    let env = [
        ("PATRONI_SCOPE", "second"),
        ("PATRONI_NAME", "renamed"),
        ("PATRONI_ZOOKEEPER_HOSTS", "'a:2181','b:2182'"),
        ("PATRONI_SUPERUSER_PASSWORD", "from-env"),
        ("PATRONI_NAMESPACE", ""),
        ("WARDEN_API_TOKEN", "token"),
    ];
    let config = files.load(&env).unwrap();
    assert_eq!(config.scope, "third");
    assert_eq!(config.name, "renamed");
    assert_eq!(config.zookeeper.hosts, ["a:2181", "b:2182"]);
    assert_eq!(config.superuser.as_ref().unwrap().password.as_ref().unwrap().reveal(), "from-env");
    assert_eq!(config.namespace, "/service/");
    assert!(config.http.token.unwrap().matches("token"));
}

#[test]
fn hosts_may_be_text_with_a_chroot_and_without_ports() {
    let warden = "scope: s\nname: proxy\nzookeeper: {hosts: 'a:2181, b/deep/er/'}\nhaproxy: {socket: /s}\n";
    let config = Files::new("", warden).load(&[]).unwrap();
    assert_eq!(config.zookeeper.hosts, ["a:2181", "b:2181"]);
    assert_eq!(config.zookeeper.chroot, "/deep/er");
    assert_eq!(config.roles(), ["router"]);
}

#[test]
fn the_citus_group_is_part_of_the_tree() {
    let files =
        Files::new(&format!("{PATRONI}\ncitus: {{group: 2, database: x}}\n"), "patroni_config: PATRONI\nnode: {}\n");
    let config = files.load(&[]).unwrap();
    let trees = (config.patroni_tree(), config.own_tree(), config.old_tree());
    let expected = ("/service/my_cluster/2", "/warden/service/my_cluster/2", "/warden/my_cluster-2");
    assert_eq!((trees.0.as_str(), trees.1.as_str(), trees.2.as_str()), expected);
}

#[test]
fn a_namespace_is_read_as_patroni_reads_it() {
    for (namespace, patroni, ours) in [
        ("stage", "/stage/my_cluster", "/warden/stage/my_cluster"),
        ("/stage/", "/stage/my_cluster", "/warden/stage/my_cluster"),
        ("/service-pr1/", "/service-pr1/my_cluster", "/warden/service-pr1/my_cluster"),
        ("//db//stage//", "/db/stage/my_cluster", "/warden/db/stage/my_cluster"),
        ("/", "/my_cluster", "/warden/root/my_cluster"),
        ("''", "/my_cluster", "/warden/root/my_cluster"),
    ] {
        let text = format!("{PATRONI}\nnamespace: {namespace}\n");
        let config = Files::new(&text, "patroni_config: PATRONI\nnode: {}\n").load(&[]).unwrap();
        assert_eq!((config.patroni_tree().as_str(), config.own_tree().as_str()), (patroni, ours), "{namespace}");
        assert_eq!(config.old_tree(), "/warden/my_cluster", "{namespace}");
    }
    let text = format!("{PATRONI}\nnamespace: /a/../b\n");
    let error = Files::new(&text, "patroni_config: PATRONI\nnode: {}\n").load(&[]).unwrap_err().to_string();
    assert!(error.contains("namespace") && error.contains("\"..\""), "{error}");
}

#[test]
fn the_printed_configuration_keeps_its_secrets() {
    let files = Files::new(PATRONI, "patroni_config: PATRONI\nnode: {}\n");
    let config = files.load(&[("WARDEN_API_TOKEN", "api-secret")]).unwrap();
    let shown = format!("{}{config:?}", serde_saphyr::to_string(&config).unwrap());
    for secret in ["pg-secret", "rest-secret", "api-secret"] {
        assert!(!shown.contains(secret), "{secret} shows in {shown}");
    }
    assert!(shown.contains("my_cluster"));
}

#[test]
fn by_default_warden_fences_and_neither_releases_nor_nudges() {
    let config = Files::new(PATRONI, "patroni_config: PATRONI\nnode: {}\n").load(&[]).unwrap();
    assert_eq!(config.fencing.mode, FencingMode::Enforce);
    let nothing =
        ReleaseConfig { enabled: false, handover: false, asynchronous: None, after_ms: 50, patroni_is_pid_1: false };
    assert_eq!(config.release, nothing);
    assert!(!config.nudge.enabled);
}

#[test]
fn the_mode_of_fencing_in_the_environment_wins_over_the_file() {
    let files = Files::new(PATRONI, "patroni_config: PATRONI\nnode: {}\nfencing: {mode: enforce}\n");
    for (text, mode) in [
        ("observe", FencingMode::Observe),
        ("off", FencingMode::Off),
        ("enforce", FencingMode::Enforce),
        ("", FencingMode::Enforce),
    ] {
        assert_eq!(files.load(&[("WARDEN_FENCING_MODE", text)]).unwrap().fencing.mode, mode, "{text:?}");
    }
    let error = files.load(&[("WARDEN_FENCING_MODE", "sometimes")]).unwrap_err().to_string();
    assert!(
        error.contains("WARDEN_FENCING_MODE: \"sometimes\"") && error.contains("enforce, observe or off"),
        "{error}"
    );
}

#[test]
fn the_gate_takes_a_wrong_mode_of_fencing_for_enforce_and_refuses_any_other_mistake() {
    let load = |yaml: &str, mode: &str| {
        let env = [("WARDEN_FENCING_MODE".to_owned(), mode.to_owned())].into();
        let files = Files::new(PATRONI, &format!("patroni_config: PATRONI\nnode: {{}}\n{yaml}"));
        resolve::load_but_mode(&files.0.path().join("warden.yml"), &env)
    };
    for (yaml, mode, key) in [
        ("fencing: {mode: of}\n", "", "fencing.mode"),
        ("fencing: {mode: Off}\n", "", "fencing.mode"),
        ("fencing: {mode: off}\n", "Observe", "WARDEN_FENCING_MODE"),
    ] {
        let (config, wrong) = load(yaml, mode).unwrap();
        assert_eq!(config.fencing.mode, FencingMode::Enforce, "{yaml} {mode}");
        assert_eq!(wrong.unwrap().key.as_deref(), Some(key));
    }
    let (config, wrong) = load("fencing: {mode: off}\n", "").unwrap();
    assert_eq!((config.fencing.mode, wrong), (FencingMode::Off, None));
    assert!(load("fencing: {mode: of}\nlog: {level: loud}\n", "").is_err());
}

#[test]
fn the_rules_of_leadership_are_switched_as_the_file_says() {
    let node = "patroni_config: PATRONI\nnode: {alive_lock: /x}\n";
    let all =
        "release: {enabled: true, handover: true, after_ms: 10, patroni_is_pid_1: true}\nnudge: {enabled: true}\n";
    let config = Files::new(PATRONI, &format!("{node}{all}")).load(&[]).unwrap();
    let release =
        ReleaseConfig { enabled: true, handover: true, asynchronous: None, after_ms: 10, patroni_is_pid_1: true };
    assert_eq!(config.release, release);
    assert!(config.nudge.enabled);
    // A handover needs the socket alone.
    let handover = Files::new(PATRONI, "patroni_config: PATRONI\nnode: {}\nrelease: {handover: true}\n").load(&[]);
    assert!(handover.unwrap().release.handover);
    for (text, mode) in
        [("enforce", FencingMode::Enforce), ("observe", FencingMode::Observe), ("off", FencingMode::Off)]
    {
        let config = Files::new(PATRONI, &format!("{node}fencing: {{mode: {text}}}\n")).load(&[]).unwrap();
        assert_eq!(config.fencing.mode, mode);
        // YAML 1.1 reads `off` as a boolean, so the writer may quote it.
        let shown = serde_saphyr::to_string(&config).unwrap().replace('"', "");
        assert!(shown.contains(&format!("mode: {text}")), "{shown}");
    }
}

/// A wrong configuration: Patroni's file, `warden.yml`, and the parts of the error.
type Wrong = (&'static str, &'static str, &'static [&'static str]);

/// Mistakes in `warden.yml` beside a correct file of Patroni's.
const WRONG: &[Wrong] = &[
    (PATRONI, "patroni_config: PATRONI\nnode: {}\nfoo: 1\n", &["warden.yml:3:", "foo", "unknown", "remove"]),
    (PATRONI, "patroni_config: PATRONI\nnode:\n  alive_lok: /x\n", &["warden.yml:3:", "alive_lok", "unknown"]),
    (PATRONI, "patroni_config: PATRONI\nnode: {port: many}\n", &["warden.yml:2: port:", "correct"]),
    (
        PATRONI,
        "patroni_config: /nowhere/p.yml\nnode: {}\n",
        &["warden.yml:1: patroni_config", "/nowhere/p.yml", "mount"],
    ),
    (PATRONI, "patroni_config: PATRONI\n", &["node, haproxy", "add `node"]),
    (
        PATRONI,
        "patroni_config: PATRONI\nnode: {}\nhttp: {listen: here}\n",
        &["warden.yml:3: http.listen", "0.0.0.0:8010"],
    ),
    (
        PATRONI,
        "patroni_config: PATRONI\nnode: {}\nhttp:\n  token_file: /nowhere/t\n",
        &["warden.yml:4: http.token_file"],
    ),
    (PATRONI, "patroni_config: PATRONI\nnode: {}\nlog: {level: 'a=b=c'}\n", &["warden.yml:3: log.level", "debug"]),
    (PATRONI, "patroni_config: PATRONI\nnode: {}\nwatch: {}\n", &["watch.username: is missing", "may log in"]),
    (
        PATRONI,
        "patroni_config: PATRONI\nnode: {}\nwatch:\n  username: x\n  password_file: /nowhere/t\n",
        &["warden.yml:5: watch.password_file"],
    ),
    (PATRONI, "patroni_config: PATRONI\nnode: {}\nscope: a/b\n", &["warden.yml:3: scope", "slashes"]),
    (PATRONI, "patroni_config: PATRONI\nnode: {}\nzookeeper:\n  hosts: 'a:x'\n", &["warden.yml:4: zookeeper.hosts"]),
    (
        PATRONI,
        "patroni_config: PATRONI\nnode: {}\nfencing:\n  mode: sometimes\n",
        &["warden.yml:4: fencing.mode", "sometimes", "enforce, observe or off"],
    ),
    (
        PATRONI,
        "patroni_config: PATRONI\nnode: {}\nfencing: {mode: false}\n",
        &["warden.yml:3: fencing.mode", "enforce, observe or off"],
    ),
    (
        PATRONI,
        "patroni_config: PATRONI\nnode: {alive_lock: /x}\nrelease:\n  handover: true\n  enabled: true\n",
        &["warden.yml:5: release.enabled", "backends", "patroni_is_pid_1: true", "leave release.enabled off"],
    ),
    (
        PATRONI,
        "patroni_config: PATRONI\nnode: {}\nrelease:\n  patroni_is_pid_1: true\n  enabled: true\n",
        &["warden.yml:5: release.enabled", "nothing proves", "node.alive_lock"],
    ),
    (
        PATRONI,
        "patroni_config: PATRONI\nhaproxy:\n  socket: /s\n  max_wait_ms: 100\n",
        &["warden.yml:4: haproxy.max_wait_ms", "100 ms", "use 500 to 60000"],
    ),
    (
        PATRONI,
        "patroni_config: PATRONI\nhaproxy:\n  socket: /s\n  backends: {writes: [a, b], reads: [a]}\n",
        &["warden.yml:4: haproxy.backends", "\"a\" is named twice", "for writes or for reads"],
    ),
    (
        PATRONI,
        "patroni_config: PATRONI\nhaproxy:\n  socket: /s\n  backends: {writes: []}\n",
        &["warden.yml:4: haproxy.backends.writes", "empty"],
    ),
    (
        PATRONI,
        "patroni_config: PATRONI\nhaproxy:\n  socket: /s\n  backend: c\n  backends: {writes: [a, b]}\n",
        &["warden.yml:5: haproxy.backends", "\"c\" is named beside", "leave haproxy.backend"],
    ),
    (
        PATRONI,
        "patroni_config: PATRONI\nhaproxy: {socket: /s, backends: {writes: [a, b]}, config_file: /f, \
         master_socket: /m}\n",
        &["haproxy.backends", "built-in template", "haproxy.template"],
    ),
    (
        PATRONI,
        "patroni_config: PATRONI\nhaproxy:\n  socket: /s\n  server_maxconn: 0\n",
        &["warden.yml:4: haproxy.server_maxconn", "use 1 to 100000"],
    ),
    (
        PATRONI,
        "patroni_config: PATRONI\nhaproxy:\n  socket: /s\n  hard_stop_after: 5\n",
        &["warden.yml:4: haproxy.hard_stop_after", "5 s", "use 10 to 604800"],
    ),
    (
        PATRONI,
        "patroni_config: PATRONI\nhaproxy:\n  socket: /s\n  resolvers: dns.example\n",
        &["warden.yml:4: haproxy.resolvers", "dns.example", "127.0.0.11:53"],
    ),
    (
        PATRONI,
        "patroni_config: PATRONI\nhaproxy:\n  socket: /s\n  backend: \"a\\nb\"\n",
        &["haproxy.backend", "no name of a section"],
    ),
    (
        PATRONI,
        "patroni_config: PATRONI\nhaproxy:\n  socket: /s\n  spare_servers: 65\n",
        &["warden.yml:4: haproxy.spare_servers", "use 0 to 64"],
    ),
    (
        PATRONI,
        "patroni_config: PATRONI\nnode: {}\nrelease:\n  after_ms: 10001\n",
        &["warden.yml:4: release.after_ms", "10001 ms", "use 0 to 10000"],
    ),
    (PATRONI, "patroni_config: PATRONI\nnode: {}\nnudge: {enable: true}\n", &["warden.yml:3:", "enable", "remove"]),
    ("scope: [", "patroni_config: PATRONI\nnode: {}\n", &["patroni.yml:1"]),
    ("", "haproxy: {socket: /s}\nscope: s\n", &["zookeeper.hosts: is missing"]),
    ("", "haproxy: {socket: /s}\nzookeeper: {hosts: a}\n", &["scope: is missing"]),
];

#[track_caller]
fn assert_error_names(patroni: &str, warden: &str, expected: &[&str]) {
    let error = Files::new(patroni, warden).load(&[]).unwrap_err().to_string();
    for part in expected {
        assert!(error.contains(part), "{warden:?}: {error:?} does not contain {part:?}");
    }
}

/// Each wrong configuration names the file, the line, the key and the remedy.
#[test]
fn an_error_names_the_file_the_line_the_key_and_the_remedy() {
    for (patroni, warden, expected) in WRONG {
        assert_error_names(patroni, warden, expected);
    }
    let slow = PATRONI.replace("retry_timeout: 10", "retry_timeout: 11");
    let tls = PATRONI.replace("hosts: ['zoo:2181']", "hosts: ['zoo:2181']\n  use_ssl: true");
    let no_socket = PATRONI.replace("unix_socket_directories: '/var/run/postgresql, .'", "work_mem: 4MB");
    let cases: [(&str, &str, &[&str]); 3] = [
        (
            &no_socket,
            "patroni_config: PATRONI\nnode: {alive_lock: /x}\nrelease: {enabled: true, patroni_is_pid_1: true}\n",
            &["warden.yml:3: release.enabled", "nothing proves", "node.socket_dir"],
        ),
        (
            &slow,
            "patroni_config: PATRONI\nnode: {}\n",
            &["patroni.yml:12: bootstrap.dcs.ttl", "10 + 2 * 11", "at least 32"],
        ),
        (&tls, "patroni_config: PATRONI\nnode: {}\n", &["patroni.yml:10: zookeeper.use_ssl", "tunnel"]),
    ];
    for (patroni, warden, expected) in cases {
        assert_error_names(patroni, warden, expected);
    }
}

#[test]
fn a_broken_secret_in_the_environment_is_not_quoted_in_the_error() {
    let files = Files::new(PATRONI, "patroni_config: PATRONI\nnode: {}\n");
    let error = files.load(&[("PATRONI_ZOOKEEPER_AUTH_DATA", "{digest: [hunter2")]).unwrap_err().to_string();
    assert!(error.contains("PATRONI_ZOOKEEPER_AUTH_DATA") && !error.contains("hunter2"), "{error}");
}
