//! The stack's configuration with TLS, client certificates and a password on Patroni's REST API, and TLS to PostgreSQL.
//! It is made from the files in `compose/`, so that it follows their changes.

use crate::docker;
use anyhow::{Context, ensure};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};

/// The uid and gid of every container's process.
const UID: u32 = 999;

/// Writes certificates and configuration below `directory`. Returns the compose file that mounts them.
pub async fn prepare(root: &Path, directory: &Path) -> anyhow::Result<PathBuf> {
    let tls = directory.join("tls");
    tokio::fs::create_dir_all(&tls).await?;
    certificates(&tls).await?;
    for (file, node) in [("postgres0.yml", "pg-master"), ("postgres1.yml", "pg-slave")] {
        let text = tokio::fs::read_to_string(root.join("compose/patroni").join(file)).await?;
        tokio::fs::write(directory.join(file), patroni(&text, node)?).await?;
    }
    let path = directory.join("secured.yml");
    tokio::fs::write(&path, compose(directory)).await?;
    Ok(path)
}

fn replace(text: &str, from: &str, to: &str) -> anyhow::Result<String> {
    ensure!(text.contains(from), "the stack's configuration no longer has {from:?}");
    Ok(text.replace(from, to))
}

fn patroni(text: &str, node: &str) -> anyhow::Result<String> {
    let address = format!("  connect_address: {node}:8008\n");
    let restapi = format!(
        "{address}  certfile: /tls/server.crt\n  keyfile: /tls/server.key\n  cafile: /tls/ca.crt\n  \
         verify_client: optional\n  authentication:\n    username: rest\n    password: rest-secret\n"
    );
    let text = replace(text, &address, &restapi)?;
    let ctl = "ctl:\n  cacert: /tls/ca.crt\n  certfile: /tls/server.crt\n  keyfile: /tls/server.key\n\nzookeeper:\n";
    let text = replace(&text, "zookeeper:\n", ctl)?;
    let parameters = "  parameters:\n    ssl: \"on\"\n    ssl_cert_file: /tls/server.crt\n    \
                      ssl_key_file: /tls/server.key\n    # Not";
    replace(&text, "  parameters:\n    # Not", parameters)
}

fn compose(directory: &Path) -> String {
    let mut text = String::from("services:\n");
    let directory = directory.display();
    for (node, file) in [("pg-master", "postgres0.yml"), ("pg-slave", "postgres1.yml")] {
        for service in [node.to_owned(), format!("warden-{node}")] {
            text += &service_text(&service, &format!("{directory}/{file}:/{file}"), &directory.to_string());
            if service == node {
                text += "    healthcheck:\n      \
                         test: ['CMD', 'curl', '-fsSk', '-o', '/dev/null', 'https://127.0.0.1:8008/health']\n";
            }
        }
    }
    text +=
        &service_text("warden-haproxy", &format!("{directory}/postgres0.yml:/postgres0.yml"), &directory.to_string());
    text
}

fn service_text(service: &str, file: &str, directory: &str) -> String {
    format!(
        "  {service}:\n    environment:\n      PATRONI_SUPERUSER_SSLMODE: require\n      \
         PATRONI_REPLICATION_SSLMODE: require\n      PATRONI_REWIND_SSLMODE: require\n    \
         volumes: ['{file}:ro', '{directory}/tls:/tls:ro']\n"
    )
}

/// A CA and one certificate for both nodes. Each node is a server to the other and its client.
async fn certificates(tls: &Path) -> anyhow::Result<()> {
    let path = |name: &str| tls.join(name).to_string_lossy().into_owned();
    let (ca_key, ca, key, request, certificate) =
        (path("ca.key"), path("ca.crt"), path("server.key"), path("server.csr"), path("server.crt"));
    let names = path("names");
    tokio::fs::write(&names, "subjectAltName=DNS:pg-master,DNS:pg-slave,DNS:localhost,IP:127.0.0.1\n").await?;
    let curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];
    let authority = ["req", "-x509", "-days", "2", "-subj", "/CN=test CA", "-keyout", &ca_key, "-out", &ca];
    docker::run("openssl", &[authority.as_slice(), &curve].concat()).await?;
    let request_it = ["req", "-subj", "/CN=pg-master", "-keyout", &key, "-out", &request];
    docker::run("openssl", &[request_it.as_slice(), &curve].concat()).await?;
    let sign = ["x509", "-req", "-days", "2", "-in", &request, "-CA", &ca, "-CAkey", &ca_key, "-CAcreateserial"];
    docker::run("openssl", &[sign.as_slice(), &["-extfile", &names, "-out", &certificate]].concat()).await?;
    // PostgreSQL refuses a key file that other users can read.
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600))?;
    chown(&key, Some(UID), Some(UID)).with_context(|| format!("{key} cannot be given to uid {UID}"))?;
    Ok(())
}
