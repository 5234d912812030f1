"""How a statement reaches a server and its rows come back, and how spans get there. Knows nothing of what either means."""

from __future__ import annotations

import http.client
import json
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Protocol, Union

import pyarrow as pa

from . import errors

#: Values of `$1`, `$2`, … in order, or of `$name` by name.
Parameters = Union[Sequence[Any], Mapping[str, Any]]

ARROW_STREAM = "application/vnd.apache.arrow.stream"


class Transport(Protocol):
    """A way to a server. Raises the errors of `skein.errors` and no others."""

    def batches(self, sql: str, parameters: Parameters | None) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
        """Runs a statement. The batches come as the server makes them; dropping the iterator stops the statement."""
        ...

    def write(self, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> int:
        """Writes spans, and returns how many, after the last is acknowledged."""
        ...

    def close(self) -> None:
        """Gives connections back."""
        ...


def open_transport(url: str, tenant: str | None, token: str | None, timeout: float) -> Transport:
    """The transport that the scheme of `url` asks for. Raises `InvalidRequest`."""
    scheme = urllib.parse.urlsplit(url).scheme
    if scheme in ("http", "https"):
        return Http(url, tenant, token, timeout)
    if scheme in ("grpc", "grpc+tls", "grpc+tcp"):
        return Flight(url, tenant, token, timeout)
    raise errors.InvalidRequest(
        f"{url!r} is no address of a server: write http://HOST:3200 for its HTTP port or grpc://HOST:9095 for Arrow Flight"
    )


def _headers(tenant: str | None, token: str | None) -> dict[str, str]:
    headers = {}
    if tenant is not None:
        headers["X-Scope-OrgID"] = tenant
    if token is not None:
        headers["Authorization"] = f"Bearer {token}"
    return headers


def _ticket(key: str, sql: str, parameters: Parameters | None) -> bytes:
    message: dict[str, Any] = {key: sql}
    if parameters is not None:
        message["parameters"] = dict(parameters) if isinstance(parameters, Mapping) else list(parameters)
    try:
        return json.dumps(message).encode()
    except TypeError as problem:
        raise errors.InvalidRequest(f"parameters are numbers, text, true, false or None; write times as text: {problem}") from None


class Http:
    """`POST /api/sql`, answered as an Arrow stream. One connection a statement."""

    def __init__(self, url: str, tenant: str | None, token: str | None, timeout: float) -> None:
        self._url = url.rstrip("/") + "/api/sql"
        self._headers = {**_headers(tenant, token), "Content-Type": "application/json", "Accept": ARROW_STREAM}
        self._timeout = timeout

    def batches(self, sql: str, parameters: Parameters | None) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
        request = urllib.request.Request(self._url, _ticket("query", sql, parameters), self._headers)
        with self._explained():
            response = urllib.request.urlopen(request, timeout=self._timeout)
            reader = pa.ipc.open_stream(response)
        return reader.schema, self._read(response, reader)

    def _read(self, response: http.client.HTTPResponse, reader: Any) -> Iterator[pa.RecordBatch]:
        with response, self._explained():
            yield from reader
            # A stream may end in good order only at the end of the body.
            if response.read(1):
                raise errors.SkeinError("there is more after the end of the Arrow stream")

    def write(self, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> int:
        raise errors.InvalidRequest(f"spans are written over Arrow Flight: connect to grpc://HOST:9095, the server's gRPC port, instead of {self._url}")

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except urllib.error.HTTPError as problem:
            text = problem.read().decode(errors="replace")
            if problem.code in (404, 405):
                text = text.strip() or errors.NO_SQL.format(what="POST /api/sql")
            raise errors.of_status(problem.code, text) from None
        except urllib.error.URLError as problem:
            raise errors.Unavailable(f"no server at {self._url}: {problem.reason}; is it running, and is this its HTTP port?") from None
        except TimeoutError:
            raise errors.Unavailable(f"no answer within {self._timeout} s: ask for less, or connect(…, timeout=…)") from None
        except (http.client.HTTPException, ConnectionError, OSError, pa.ArrowException) as problem:
            raise errors.Unavailable(f"the server ended the answer before it was whole: {problem}; its log says why") from None

    def close(self) -> None:
        """Nothing is held between statements."""


class Flight:
    """Arrow Flight: `DoGet` with the statement as the ticket, `DoPut` of spans, `DoExchange` for tails. One connection for all of them."""

    def __init__(self, url: str, tenant: str | None, token: str | None, timeout: float) -> None:
        try:
            from pyarrow import flight
        except ImportError:
            raise errors.InvalidRequest("this pyarrow was built without Flight: connect to http://HOST:3200 instead") from None
        self._flight = flight
        self._url = url
        self._timeout = timeout
        headers = [(name.lower().encode(), value.encode()) for name, value in _headers(tenant, token).items()]
        self._options = flight.FlightCallOptions(timeout=timeout, headers=headers)
        self._endless = flight.FlightCallOptions(headers=headers)
        self._client = flight.FlightClient(url)

    def batches(self, sql: str, parameters: Parameters | None) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
        ticket = self._flight.Ticket(_ticket("sql", sql, parameters))
        with self._explained():
            reader = self._client.do_get(ticket, self._options)
            schema = reader.schema
        return schema, self._read(reader)

    def write(self, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> int:
        written = 0
        with self._explained():
            writer, answers = self._client.do_put(self._flight.FlightDescriptor.for_path("spans"), schema, self._options)
            # Closing tells what went wrong.
            with writer:
                for batch in batches:
                    writer.write_batch(batch)
                    answer = answers.read()
                    if answer is None:
                        break
                    written = int(json.loads(answer.to_pybytes())["spans"])
                else:
                    writer.done_writing()
                    return written
        raise errors.SkeinError(f"the server ended the call after {written} spans and did not say why")

    def _read(self, reader: Any) -> Generator[pa.RecordBatch, None, None]:
        whole = False
        try:
            with self._explained():
                while True:
                    try:
                        chunk = reader.read_chunk()
                    except StopIteration:
                        whole = True
                        return
                    yield chunk.data
        finally:
            if not whole:
                reader.cancel()

    def tail(self, query: str, columns: Sequence[str] | None, lookback: float, patience: float | None) -> Iterator[pa.RecordBatch]:
        """Matches of a TraceQL search as they arrive. Dropping the iterator ends the tail."""
        ask: dict[str, Any] = {"tail": query, "lookback": lookback}
        if columns is not None:
            ask["columns"] = list(columns)
        with self._explained():
            writer, reader = self._client.do_exchange(self._flight.FlightDescriptor.for_command(json.dumps(ask)), self._endless)
        # Who sends nothing more is told what is there already, and then the end.
        ending = _Patience(patience, writer.done_writing)
        batches = self._read(reader)
        try:
            for batch in batches:
                ending.stop()
                yield batch
                ending.start()
        finally:
            ending.stop()
            batches.close()
            # pyarrow complains on the console of a writer that is left open.
            with suppress(pa.ArrowException):
                writer.close()

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except pa.ArrowException as problem:
            raise self._explain(problem) from None

    def _explain(self, problem: Exception) -> errors.SkeinError:
        # pyarrow puts the place in its own source after the server's words.
        text = str(problem).split(". gRPC client debug context")[0].split(" Detail: ")[0]
        flight = self._flight
        if isinstance(problem, flight.FlightTimedOutError):
            return errors.Unavailable(f"no answer within {self._timeout} s: ask for less, or connect(…, timeout=…)")
        if isinstance(problem, flight.FlightUnavailableError):
            return errors.Unavailable(f"no server at {self._url}: {text}; is it running, and is this its gRPC port?")
        if isinstance(problem, (flight.FlightUnauthenticatedError, flight.FlightUnauthorizedError)):
            return errors.of_status(401, text)
        if isinstance(problem, pa.ArrowKeyError):
            return errors.NotFound(text.strip("'"))
        if isinstance(problem, (pa.ArrowCancelled, flight.FlightCancelledError)):
            return errors.Unavailable(text)
        if isinstance(problem, pa.ArrowNotImplementedError):
            return errors.SkeinError(f"{errors.NO_SQL.format(what='Arrow Flight')} ({text})")
        if "ResourceExhausted" in text or "RESOURCE_EXHAUSTED" in text or isinstance(problem, pa.ArrowMemoryError):
            return errors.Exhausted(text)
        if isinstance(problem, pa.ArrowInvalid):
            return errors.InvalidRequest(text)
        return errors.SkeinError(text)

    def close(self) -> None:
        self._client.close()


class _Patience:
    """Calls `at_end` when `seconds` have passed since the last start; None never does."""

    def __init__(self, seconds: float | None, at_end: Callable[[], None]) -> None:
        self._seconds = seconds
        self._at_end = at_end
        self._timer: threading.Timer | None = None
        self.start()

    def start(self) -> None:
        if self._seconds is not None:
            self._timer = threading.Timer(self._seconds, self._at_end)
            self._timer.daemon = True
            self._timer.start()

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
