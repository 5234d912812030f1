//! Programs of other projects that tests run: servers of the object stores' protocols, and readers of Parquet. They are installed once into the
//! target folder; a test that cannot have them says why and is skipped, or fails under `SKEIN_REQUIRE_STORES=1`.

use std::io::Write;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;

use crate::harness::{PATIENCE, until};

/// What the Python tests need, with the versions they were written for.
const PYTHON_PACKAGES: [&str; 16] = [
    "moto[server]==5.2.5",
    "pyarrow==26.0.1",
    "duckdb==2.0.0",
    "mcp==2.3.0",
    "grpcio-tools==1.85.1",
    "pandas==3.1.1",
    "polars==2.1.0",
    // Of Flight SQL.
    "adbc-driver-manager==1.13.0",
    "adbc-driver-flightsql==1.13.0",
    // Of the notebooks and their package.
    "matplotlib==3.11.2",
    "nbclient==0.11.0",
    "ipykernel==7.4.0",
    "opentelemetry-proto==1.45.2",
    "pytest==9.2.0",
    "mypy==2.4.1",
    "flit_core==4.2.0",
];
const AZURITE: &str = "azurite@3.35.0";

/// Azurite's account and its published key.
pub const AZURE_ACCOUNT: &str = "devstoreaccount1";
pub const AZURE_KEY: &str = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==";

/// Unwraps what a test needs; otherwise prints the reason and gives `None`, so that the test ends there.
pub fn or_skip<T>(test: &str, needed: Result<T, String>) -> Option<T> {
    match needed {
        Ok(needed) => Some(needed),
        Err(reason) if std::env::var("SKEIN_REQUIRE_STORES").is_ok_and(|value| value == "1") => panic!("{test} must run, but {reason}"),
        Err(reason) => {
            // Past the capture of the test runner: a skip must be seen.
            let _ = writeln!(std::io::stderr().lock(), "skipped: {test}: {reason}");
            None
        }
    }
}

fn target_dir() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).parent().expect("a folder in the target folder").to_owned()
}

fn run(command: &mut Command) -> Result<Output, String> {
    let output = command.stdin(Stdio::null()).output().map_err(|error| format!("{command:?} did not start: {error}"))?;
    if output.status.success() {
        return Ok(output);
    }
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    let tail: Vec<_> = stderr.lines().rev().take(5).collect();
    Err(format!("{command:?} failed: {}", tail.into_iter().rev().collect::<Vec<_>>().join(" / ")))
}

/// Installs into `folder` unless a former run did so with the same `wanted` text.
fn installed(folder: &Path, wanted: &str, install: impl FnOnce() -> Result<(), String>) -> Result<(), String> {
    let mark = folder.join(".installed");
    if std::fs::read_to_string(&mark).is_ok_and(|found| found == wanted) {
        return Ok(());
    }
    install()?;
    std::fs::write(&mark, wanted).map_err(|error| format!("{}: {error}", mark.display()))
}

/// The interpreter of a Python environment with what the tests need. Modules are run with `-m`: installed scripts name the folder they were
/// installed in, and a target folder may move.
pub fn python() -> Result<PathBuf, String> {
    static FOUND: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let found = FOUND.get_or_init(|| {
        let folder = target_dir().join("test-venv");
        let python = folder.join("bin/python");
        installed(&folder, &PYTHON_PACKAGES.join(" "), || {
            run(Command::new("python3").args(["-m", "venv"]).arg(&folder))?;
            let pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check"];
            run(Command::new(&python).args(pip).args(PYTHON_PACKAGES)).map(drop)
        })?;
        Ok(python)
    });
    found.clone()
}

/// The script of Azurite's blob server.
fn azurite() -> Result<PathBuf, String> {
    static FOUND: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let found = FOUND.get_or_init(|| {
        let folder = target_dir().join("test-azurite");
        std::fs::create_dir_all(&folder).map_err(|error| error.to_string())?;
        installed(&folder, AZURITE, || {
            run(Command::new("npm").args(["install", "--no-audit", "--no-fund", "--prefix"]).arg(&folder).arg(AZURITE)).map(drop)
        })?;
        Ok(folder.join("node_modules/azurite/dist/src/blob/main.js"))
    });
    found.clone()
}

/// A server of another project; ends when dropped.
pub struct Helper {
    child: Child,
    pub address: SocketAddr,
    /// Where it keeps its files.
    _dir: tempfile::TempDir,
}

impl Drop for Helper {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Helper {
    fn start(command: impl FnOnce(u16, &Path) -> Command) -> Result<Self, String> {
        // The port is free now; these servers cannot choose one themselves and say which.
        let address = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).map_err(|error| error.to_string())?;
        let dir = tempfile::tempdir().map_err(|error| error.to_string())?;
        let mut command = command(address.port(), dir.path());
        let log = std::fs::File::create(dir.path().join("log")).map_err(|error| error.to_string())?;
        command.stdin(Stdio::null()).stdout(log.try_clone().map_err(|error| error.to_string())?).stderr(log);
        let child = command.spawn().map_err(|error| format!("{command:?} did not start: {error}"))?;
        let mut helper = Self { child, address, _dir: dir };
        until(&format!("{command:?} to listen on {address}"), PATIENCE, || {
            if let Some(status) = helper.child.try_wait().unwrap() {
                let log = std::fs::read_to_string(helper._dir.path().join("log")).unwrap_or_default();
                panic!("{command:?} ended in {status}: {log}");
            }
            TcpStream::connect(address).is_ok()
        });
        Ok(helper)
    }
}

/// An S3 server with an empty bucket.
pub fn start_s3(bucket: &str) -> Result<Helper, String> {
    let python = python()?;
    let helper = Helper::start(|port, dir| {
        let mut command = Command::new(&python);
        command.args(["-m", "moto.server", "-H", "127.0.0.1", "-p", &port.to_string()]).current_dir(dir);
        command
    })?;
    let script = "import sys, urllib.request as u; u.urlopen(u.Request(sys.argv[1], method='PUT'), timeout=60)";
    run(Command::new(&python).args(["-c", script, &format!("http://{}/{bucket}", helper.address)]))?;
    Ok(helper)
}

/// An Azure blob server with an empty container.
pub fn start_azure(container: &str) -> Result<Helper, String> {
    let script = azurite()?;
    let helper = Helper::start(|port, dir| {
        let mut command = Command::new("node");
        command.arg(script).args(["--blobHost", "127.0.0.1", "--blobPort", &port.to_string()]);
        command.args(["--inMemoryPersistence", "--skipApiVersionCheck", "--silent", "--disableTelemetry"]).current_dir(dir);
        command
    })?;
    run(Command::new("node").args(["-e", CREATE_CONTAINER, &format!("http://{}", helper.address), AZURE_ACCOUNT, AZURE_KEY, container]))?;
    Ok(helper)
}

/// Creates a container, signed with the account's key (Azure Storage, "Authorize with Shared Key").
const CREATE_CONTAINER: &str = r"
const [base, account, key, container] = process.argv.slice(1);
const date = new Date().toUTCString(), version = '2021-08-06';
const headers = `x-ms-date:${date}\nx-ms-version:${version}`;
const text = 'PUT\n'.padEnd(15, '\n') + `${headers}\n/${account}/${account}/${container}\nrestype:container`;
const signature = require('crypto').createHmac('sha256', Buffer.from(key, 'base64')).update(text).digest('base64');
const http = require('http');
const Authorization = `SharedKey ${account}:${signature}`;
const options = { method: 'PUT', headers: { 'x-ms-date': date, 'x-ms-version': version, 'Content-Length': 0, Authorization } };
http.request(`${base}/${account}/${container}?restype=container`, options, response => {
  response.on('data', data => process.stderr.write(data));
  response.on('end', () => process.exit(response.statusCode === 201 ? 0 : 1));
}).end();
";

/// Runs a Python script; gives what it printed.
pub fn run_python(python: &Path, script: &str, arguments: &[&str]) -> String {
    let output = run(Command::new(python).args(["-c", script]).args(arguments)).unwrap_or_else(|problem| panic!("{problem}"));
    String::from_utf8(output.stdout).unwrap()
}
