//! A server of this binary as a child process, so that what it costs can be read from the system.

use std::{
    fs,
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
};

use skein_engine::error::{Error, Result};

/// Clock ticks of `/proc/PID/stat` per second: fixed at 100 in Linux's interface to programs.
const TICKS_PER_SECOND: u64 = 100;

/// A running server. Killed when dropped before [`Server::wait`].
pub struct Server {
    child: Child,
    /// `host:port` of the query API.
    pub http: String,
    /// `host:port` of gRPC.
    pub grpc: String,
    /// `host:port` of OTLP over HTTP.
    pub otlp_http: String,
    /// `host:port` of OTLP over gRPC.
    pub otlp_grpc: String,
}

impl Server {
    /// Starts a server on `dir` (its folders `blocks` and `wal`) and free ports of localhost, and waits until it is ready.
    /// `extra` is added to the configuration, in YAML.
    pub fn start(dir: &Path, extra: &str) -> Result<Self> {
        let doing = |error: std::io::Error| Error::unavailable("starting the server to measure").with_source(error);
        let binary = std::env::current_exe().map_err(doing)?;
        let config = dir.join("bench.yaml");
        let (blocks, wal) = (dir.join("blocks"), dir.join("wal"));
        let text = format!(
            "server: {{http_listen_address: 127.0.0.1, http_listen_port: 0, grpc_listen_address: 127.0.0.1, grpc_listen_port: 0, log_level: warn}}\n\
             distributor: {{receivers: {{otlp: {{protocols: {{grpc: {{endpoint: '127.0.0.1:0'}}, http: {{endpoint: '127.0.0.1:0', \
             max_request_body_size: 536870912}}}}}}}}}}\n\
             storage: {{trace: {{backend: local, local: {{path: {}}}, wal: {{path: {}}}}}}}\n{extra}",
            quoted(&blocks),
            quoted(&wal),
        );
        fs::write(&config, text).map_err(doing)?;
        let mut command = Command::new(binary);
        command.arg(format!("-config.file={}", config.display())).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command.spawn().map_err(doing)?;
        let stdout = child.stdout.take().expect("stdout was asked for");
        let mut server = Self { child, http: String::new(), grpc: String::new(), otlp_http: String::new(), otlp_grpc: String::new() };
        let mut lines = BufReader::new(stdout).lines();
        loop {
            let Some(line) = lines.next().transpose().map_err(doing)? else {
                return Err(Error::unavailable("the server to measure ended before it was ready"));
            };
            match line.strip_prefix("skein: ").and_then(|line| line.split_once(" listening on ")) {
                Some(("http", address)) => server.http = address.to_owned(),
                Some(("grpc", address)) => server.grpc = address.to_owned(),
                Some(("otlp http", address)) => server.otlp_http = address.to_owned(),
                Some(("otlp grpc", address)) => server.otlp_grpc = address.to_owned(),
                _ if line == "skein: ready" => break,
                _ => {}
            }
        }
        // Goes on reading, so that the pipe never fills.
        std::thread::spawn(move || lines.for_each(drop));
        Ok(server)
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits for a process that was asked to stop. Errors: `Unavailable` when it ended badly.
    pub fn wait(mut self) -> Result<()> {
        let status = self.child.wait().map_err(|error| Error::unavailable("waiting for the server to stop").with_source(error))?;
        match status.success() {
            true => Ok(()),
            false => Err(Error::unavailable(format!("the server ended with {status}"))),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // After `wait` both fail, as they should.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// A path as a YAML scalar.
fn quoted(path: &Path) -> String {
    format!("'{}'", path.display().to_string().replace('\'', "''"))
}

/// CPU time of a process, user and system, all threads, in microseconds; steps of ten milliseconds.
pub fn cpu_micros(pid: u32) -> Result<u64> {
    let stat = read_proc(pid, "stat")?;
    parse_cpu_ticks(&stat).map(|ticks| ticks * 1_000_000 / TICKS_PER_SECOND).ok_or_else(|| Error::internal(format!("reading /proc/{pid}/stat")))
}

/// The name of the program stands in parentheses and may hold anything: fields are counted after the last one.
fn parse_cpu_ticks(stat: &str) -> Option<u64> {
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    Some(fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?)
}

/// The largest resident size that the process has had, in bytes.
pub fn peak_resident_bytes(pid: u32) -> Result<u64> {
    let status = read_proc(pid, "status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kilobytes = line.and_then(|line| line.trim().strip_suffix("kB")).and_then(|number| number.trim().parse::<u64>().ok());
    kilobytes.map(|kilobytes| kilobytes * 1024).ok_or_else(|| Error::internal(format!("reading /proc/{pid}/status")))
}

fn read_proc(pid: u32, name: &str) -> Result<String> {
    let path = format!("/proc/{pid}/{name}");
    fs::read_to_string(&path).map_err(|error| Error::unavailable(format!("reading {path} (Linux only)")).with_source(error))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn cpu_is_found_behind_any_program_name() {
        let stat = "42 (a (b) c) S 1 42 42 0 -1 4194304 100 0 0 0 700 35 9 9 20 0 1 0 100 1 1";
        assert_eq!(parse_cpu_ticks(stat), Some(735));
        assert_eq!(parse_cpu_ticks("42 (x"), None);
    }

    #[test]
    fn this_process_has_used_memory() {
        assert!(peak_resident_bytes(std::process::id()).unwrap() > 1 << 20);
        cpu_micros(std::process::id()).unwrap();
    }
}
