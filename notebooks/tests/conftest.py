"""The server under test: its addresses come from the one who starts it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import matplotlib
import pytest

import skein

matplotlib.use("agg")


def _address(variable: str) -> str:
    url = os.environ.get(variable)
    if not url:
        pytest.skip(f"{variable} names no server; `python3 notebooks/open.py -- python -m pytest notebooks/tests` starts one")
    return url


@pytest.fixture(params=["SKEIN_URL", "SKEIN_FLIGHT_URL"])
def connect(request: pytest.FixtureRequest) -> Iterator[Callable[[str], skein.Client]]:
    """Connects to a tenant, once over HTTP and once over Flight."""
    url = _address(request.param)
    clients = []

    def of_tenant(tenant: str) -> skein.Client:
        clients.append(skein.connect(url, tenant=tenant, timeout=120))
        return clients[-1]

    yield of_tenant
    for client in clients:
        client.close()


@pytest.fixture
def server_url() -> str:
    return _address("SKEIN_URL")


@pytest.fixture
def otlp_url() -> str:
    return _address("SKEIN_OTLP_URL")


@pytest.fixture(autouse=True)
def no_open_figures() -> Iterator[None]:
    yield
    matplotlib.pyplot.close("all")
