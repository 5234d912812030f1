//! A server of this binary as a child process, so that what it costs can be read from the system.

use std::{
    fs,
    io::{self, BufRead, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
};

use skein_engine::error::{Error, Result};

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
        let doing = |error: io::Error| Error::unavailable("starting the server to measure").with_source(error);
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

/// CPU time of a process, user and system, of all threads that it has or had, in microseconds. Errors: `Unavailable` when there is no such process,
/// and on systems without such a clock.
pub fn cpu_micros(pid: u32) -> Result<u64> {
    let micros = process_clock_nanos(pid).map(|nanos| nanos / 1000);
    micros.map_err(|error| Error::unavailable(format!("reading the CPU clock of process {pid} (Linux only)")).with_source(error))
}

/// The system's clock of a process. `/proc/PID/stat` has the same in steps of ten milliseconds, which is too coarse for what takes a hundred.
#[cfg(target_os = "linux")]
fn process_clock_nanos(pid: u32) -> io::Result<u64> {
    let (mut clock, mut time) = (0, libc::timespec { tv_sec: 0, tv_nsec: 0 });
    let done = |code: i32| if code == 0 { Ok(()) } else { Err(code) };
    // SAFETY: both write one value of the type that they are given, and keep no pointer.
    #[allow(unsafe_code)]
    unsafe {
        done(libc::clock_getcpuclockid(pid as libc::pid_t, &raw mut clock)).map_err(io::Error::from_raw_os_error)?;
        done(libc::clock_gettime(clock, &raw mut time)).map_err(|_| io::Error::last_os_error())?;
    }
    Ok(time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64)
}

#[cfg(not(target_os = "linux"))]
fn process_clock_nanos(_: u32) -> io::Result<u64> {
    Err(io::ErrorKind::Unsupported.into())
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
    fn the_cpu_clock_of_a_process_runs() {
        let here = || cpu_micros(std::process::id()).unwrap();
        let before = here();
        assert!((0..10_000_000).any(|_| here() >= before + 1000), "asking takes longer than a ten-thousandth of that");
    }

    #[test]
    fn a_process_that_is_gone_has_no_clock() {
        let mut child = Command::new("true").spawn().unwrap();
        child.wait().unwrap();
        assert!(cpu_micros(child.id()).unwrap_err().to_string().contains("CPU clock of process"));
    }

    #[test]
    fn this_process_has_used_memory() {
        assert!(peak_resident_bytes(std::process::id()).unwrap() > 1 << 20);
    }
}
