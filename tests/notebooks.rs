//! The Python package and the notebooks, against a server with the recorded traces. What is right is said by `notebooks/tests`, in Python, from the
//! recorded files.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::harness::{Server, Transport, binary, nothing_is_cut, tests_dir};
use crate::tools;

/// What the notebooks ask.
const DATASETS: [&str; 4] = ["genai", "shellci", "trainticket", "onlineboutique"];

fn notebooks() -> PathBuf {
    tests_dir().with_file_name("notebooks")
}

/// An environment with the package; in a folder of its own, so that the shared environment stays as it is.
struct Package {
    python: PathBuf,
    dir: tempfile::TempDir,
}

impl Package {
    fn install(test: &str) -> Option<Self> {
        let python = tools::or_skip(test, tools::python())?;
        let package = Self { python, dir: tempfile::tempdir().unwrap() };
        let pip = ["-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--target"];
        package.check("pip", package.python_command().args(pip).arg(package.dir.path()).arg(notebooks()));
        Some(package)
    }

    /// Python with the package, which leaves nothing beside the sources.
    fn python_command(&self) -> Command {
        let mut command = Command::new(&self.python);
        command.env("PYTHONPATH", self.dir.path()).env("PYTHONDONTWRITEBYTECODE", "1").env("MPLBACKEND", "agg");
        command
    }

    /// Runs it; what it printed is shown when it fails.
    fn check(&self, what: &str, command: &mut Command) {
        let output = command.output().unwrap_or_else(|error| panic!("{what} did not start: {error}"));
        let printed = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{what} ended in {}:\n{printed}", output.status);
        println!("{what}:\n{printed}");
    }

    fn pytest(&self, folder: &Path, server: &Server) {
        let addresses = server.client().addresses;
        let mut command = self.python_command();
        command.args(["-m", "pytest", "-q", "-p", "no:cacheprovider", "--durations=8"]).arg(folder);
        command.env("SKEIN_URL", format!("http://{}", addresses.http)).env("SKEIN_FLIGHT_URL", format!("grpc://{}", addresses.grpc));
        command.env("SKEIN_OTLP_URL", format!("http://{}", addresses.otlp_http));
        self.check("pytest", &mut command);
    }
}

#[test]
fn the_package_and_the_notebooks_agree_with_the_recorded_traces() {
    let Some(package) = Package::install("the_package_and_the_notebooks_agree_with_the_recorded_traces") else { return };
    let server = Server::start(nothing_is_cut());
    for dataset in DATASETS {
        server.client().load(Transport::HttpProtobuf, dataset);
    }
    server.client().flush();
    package.pytest(&notebooks().join("tests"), &server);
}

#[test]
fn the_package_is_typed() {
    let Some(package) = Package::install("the_package_is_typed") else { return };
    let mut command = package.python_command();
    command.args(["-m", "mypy", "skein", "open.py", "--cache-dir"]).arg(package.dir.path().join("cache")).current_dir(notebooks());
    package.check("mypy", &mut command);
}

#[test]
fn the_package_leaves_out_what_the_server_ignores() {
    let source = std::fs::read_to_string(notebooks().join("skein/outgoing.py")).unwrap();
    let (_, list) = source.split_once("DERIVED = (").unwrap();
    let (list, _) = list.split_once(')').unwrap();
    let listed: Vec<&str> = list.split('"').skip(1).step_by(2).collect();
    assert_eq!(listed, skein_engine::spans::written::DERIVED);
}

#[test]
fn one_command_opens_the_notebooks() {
    let Some(package) = Package::install("one_command_opens_the_notebooks") else { return };
    let script = "import os, skein; print(skein.connect(tenant='genai').sql('SELECT count(*) AS spans FROM spans').to_pylist())";
    let mut command = package.python_command();
    command.arg(notebooks().join("open.py")).arg("--binary").arg(binary()).arg("--python").arg(&package.python);
    command.args(["--datasets", "genai", "--", "python", "-c", &format!("{script}; assert os.environ['SKEIN_FLIGHT_URL'].startswith('grpc://')")]);
    let output = command.output().unwrap();
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{printed}{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(printed.trim(), "[{'spans': 47}]");
}
