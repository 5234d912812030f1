#!/usr/bin/env python3
"""Opens the notebooks: starts a server on a temporary folder, loads the recorded traces into it, and runs Jupyter beside it.

    python3 notebooks/open.py                                    # JupyterLab
    python3 notebooks/open.py -- python -m pytest notebooks/tests  # any other command, in the same surroundings

Needs nothing but Python and what builds Skein. The command finds the package `skein`, and the server's addresses in SKEIN_URL, SKEIN_FLIGHT_URL and
SKEIN_OTLP_URL; each set of traces is the tenant of its name. All ends, and the folder goes, when the command ends.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
#: What the notebooks ask.
DATASETS = ["genai", "shellci", "trainticket", "onlineboutique"]


def main() -> int:
    parser = argparse.ArgumentParser(description="Opens the notebooks beside a server with the recorded traces.")
    parser.add_argument("--binary", type=Path, help="the server; built if not given")
    parser.add_argument("--python", type=Path, help="an interpreter that has the package and Jupyter; installed in notebooks/.venv if not given")
    parser.add_argument("--datasets", nargs="+", default=DATASETS, help="the sets of traces to load (default: those the notebooks ask)")
    parser.add_argument("command", nargs="*", help="what to run instead of JupyterLab; `python` in it is the interpreter")
    arguments = parser.parse_args()
    binary = (arguments.binary or built()).resolve()
    # Not resolved: an environment's interpreter is a link, and finds its packages by its own place.
    python = (arguments.python or installed()).absolute()
    command = arguments.command or ["python", "-m", "jupyter", "lab", str(HERE)]
    with running(binary) as addresses:
        for dataset in arguments.datasets:
            load(binary, addresses["otlp http"], dataset)
        urls = {
            "SKEIN_URL": f"http://{addresses['http']}",
            "SKEIN_FLIGHT_URL": f"grpc://{addresses['grpc']}",
            "SKEIN_OTLP_URL": f"http://{addresses['otlp http']}",
        }
        child = subprocess.Popen([str(python) if word == "python" else word for word in command], env={**os.environ, **urls})
        # The command decides what Ctrl-C means: JupyterLab asks back.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, lambda *_: child.terminate())
        return child.wait()


def built() -> Path:
    """The binary, built from this folder."""
    subprocess.check_call(["cargo", "build", "--release"], cwd=ROOT)
    return Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release" / "skein"


def installed() -> Path:
    """The interpreter of an environment with the package and Jupyter, made at the first time."""
    folder = HERE / ".venv"
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if not (folder / ".complete").exists():
        venv.create(folder, with_pip=True, clear=True)
        subprocess.check_call([str(python), "-m", "pip", "install", "--quiet", "--editable", f"{HERE}[jupyter,tests]"])
        (folder / ".complete").touch()
    return python


@contextlib.contextmanager
def running(binary: Path) -> Iterator[dict[str, str]]:
    """A server on a temporary folder and free ports; gives its addresses by listener."""
    with tempfile.TemporaryDirectory(prefix="skein-notebooks-") as folder:
        config = Path(folder) / "skein.yaml"
        # JSON is YAML.
        config.write_text(json.dumps(settings(Path(folder))))
        with (Path(folder) / "log").open("wb") as log:
            server = subprocess.Popen([binary, f"-config.file={config}"], stdout=subprocess.PIPE, stderr=log, text=True, cwd=folder, start_new_session=True)
        try:
            yield addresses_of(server, Path(folder) / "log")
        finally:
            server.terminate()
            server.wait()


def settings(folder: Path) -> dict[str, object]:
    """Free ports, one tenant a set of traces, and no bound on the rate or the age of spans: the recordings are years old."""
    here = {"http_listen_address": "127.0.0.1", "http_listen_port": 0, "grpc_listen_address": "127.0.0.1", "grpc_listen_port": 0}
    otlp = {"protocols": {"grpc": {"endpoint": "127.0.0.1:0"}, "http": {"endpoint": "127.0.0.1:0"}}}
    return {
        "multitenancy_enabled": True,
        "server": here,
        "distributor": {"receivers": {"otlp": otlp}},
        "storage": {"trace": {"backend": "local", "local": {"path": str(folder / "blocks")}, "wal": {"path": str(folder / "wal")}}},
        "overrides": {"defaults": {"ingestion": {"rate_limit_bytes": 0, "burst_size_bytes": 0}}},
    }


def addresses_of(server: subprocess.Popen[str], log: Path) -> dict[str, str]:
    """Waits until the server says that it is ready."""
    assert server.stdout is not None
    addresses: dict[str, str] = {}
    for line in server.stdout:
        line = line.strip()
        if line == "skein: ready":
            return addresses
        listener, found, address = line.removeprefix("skein: ").partition(" listening on ")
        if found:
            addresses[listener] = address
    sys.exit(f"the server did not start:\n{log.read_text(errors='replace')[-4000:]}")


def load(binary: Path, otlp: str, dataset: str) -> None:
    file = ROOT / "tests" / "data" / f"{dataset}.otlp.zst"
    subprocess.check_call([binary, "load", "--endpoint", f"http://{otlp}", "--tenant", dataset, file], stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    sys.exit(main())
