"""Ways to a server, against servers made for the test: what is sent, and what becomes of answers that are wrong or cut short."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import flight

import skein
from skein import errors

TABLE = pa.table({"name": ["a", "b", "a"], "n": [1, 2, 3]})


def stream(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


@contextmanager
def http_server(answer: Callable[[BaseHTTPRequestHandler], None]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A server that answers each POST as told; gives its address, and what it was asked."""
    asked: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            asked.append({"path": self.path, "headers": dict(self.headers), "body": json.loads(body)})
            answer(self)
            self.close_connection = True

        def log_message(self, *_: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=[0.01])
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def whole(body: bytes, status: int = 200) -> Callable[[BaseHTTPRequestHandler], None]:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    return answer


def chunks(*parts: bytes) -> Callable[[BaseHTTPRequestHandler], None]:
    """Chunks of a body whose end does not come."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        for part in parts:
            handler.wfile.write(b"%x\r\n%s\r\n" % (len(part), part))

    return answer


def test_http_sends_statement_parameters_tenant_and_token() -> None:
    with http_server(whole(stream(TABLE))) as (url, asked):
        server = skein.connect(url + "/", tenant="shop", token="secret")
        assert server.sql("SELECT $1", [1, "x", None]) == TABLE
        assert server.sql("SELECT 1") == TABLE
    assert [call["body"] for call in asked] == [{"query": "SELECT $1", "parameters": [1, "x", None]}, {"query": "SELECT 1"}]
    headers = asked[0]["headers"]
    assert asked[0]["path"] == "/api/sql"
    assert (headers["Accept"], headers["X-Scope-Orgid"], headers["Authorization"]) == ("application/vnd.apache.arrow.stream", "shop", "Bearer secret")
    assert "X-Scope-Orgid" in headers and "Content-Type" in headers


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, skein.InvalidRequest),
        (401, skein.Denied),
        (403, skein.Denied),
        (404, skein.NotFound),
        (429, skein.Exhausted),
        (503, skein.Unavailable),
        (504, skein.Unavailable),
        (500, skein.SkeinError),
    ],
)
def test_a_status_is_an_error_with_the_servers_words(status: int, kind: type[skein.SkeinError]) -> None:
    with http_server(whole(b"the reason\n", status)) as (url, _), pytest.raises(kind, match="^the reason") as raised:
        skein.connect(url).sql("SELECT 1")
    assert type(raised.value) is kind
    assert ("connect(…, tenant=…)" in str(raised.value)) == (kind is skein.Denied)


def test_an_address_without_sql_is_told() -> None:
    with http_server(whole(b"", 404)) as (url, _), pytest.raises(skein.NotFound, match="no POST /api/sql: is this the address of a Skein"):
        skein.connect(url).sql("SELECT 1")


@pytest.mark.parametrize("part", [0.3, 0.6, 0.9, 1.0])
def test_an_answer_that_ends_early_is_no_answer(part: float) -> None:
    """Also where the Arrow stream itself is whole but the body's end has not come: the server broke it off."""
    table = pa.concat_tables([TABLE] * 50)
    body = stream(table)
    cut = body[: int(len(body) * part)]
    with http_server(chunks(cut[:200], cut[200:])) as (url, _), pytest.raises(skein.Unavailable, match="before it was whole"):
        skein.connect(url).sql("SELECT 1")


def test_an_answer_that_is_no_arrow_stream_is_no_answer() -> None:
    with http_server(whole(b"<html>hello</html>")) as (url, _), pytest.raises(skein.SkeinError):
        skein.connect(url).sql("SELECT 1")


def test_no_server_is_told_with_its_address() -> None:
    with pytest.raises(skein.Unavailable, match="no server at http://127.0.0.1:1/api/sql.*is it running"):
        skein.connect("http://127.0.0.1:1").sql("SELECT 1")


def test_an_address_without_a_known_scheme_is_refused_at_once() -> None:
    for url in ("localhost:3200", "ftp://localhost", "shop"):
        with pytest.raises(skein.InvalidRequest, match="write http://HOST:3200 .* or grpc://HOST:9095"):
            skein.connect(url)


def test_the_environment_names_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    with http_server(whole(stream(TABLE))) as (url, asked):
        monkeypatch.setenv("SKEIN_URL", url)
        skein.connect().sql("SELECT 1")
        assert len(asked) == 1


def test_parameters_that_are_no_values_are_refused() -> None:
    with pytest.raises(skein.InvalidRequest, match="write times as text"):
        skein.connect("http://127.0.0.1:1").sql("SELECT $1", [object()])


class FlightServer(flight.FlightServerBase):  # type: ignore[misc]
    """Answers each ticket as told."""

    def __init__(self, answer: Callable[[], Any]) -> None:
        super().__init__("grpc://127.0.0.1:0", middleware={"headers": Headers()})
        self.answer = answer
        self.tickets: list[Any] = []

    def do_get(self, context: flight.ServerCallContext, ticket: flight.Ticket) -> Any:
        self.tickets.append((json.loads(ticket.ticket), context.get_middleware("headers").headers))
        return self.answer()


class Seen(flight.ServerMiddleware):  # type: ignore[misc]
    def __init__(self, headers: dict[str, list[str]]) -> None:
        self.headers = headers


class Headers(flight.ServerMiddlewareFactory):  # type: ignore[misc]
    def start_call(self, info: Any, headers: dict[str, list[str]]) -> Seen:
        return Seen(headers)


def raising(problem: Exception) -> Callable[[], Any]:
    def answer() -> Any:
        raise problem

    return answer


def breaking_off(problem: Exception) -> Callable[[], Any]:
    def batches() -> Iterator[pa.RecordBatch]:
        yield TABLE.to_batches()[0]
        raise problem

    return lambda: flight.GeneratorStream(TABLE.schema, batches())


def test_flight_sends_statement_parameters_tenant_and_token() -> None:
    with FlightServer(lambda: flight.RecordBatchStream(TABLE)) as server:
        with skein.connect(f"grpc://127.0.0.1:{server.port}", tenant="shop", token="secret") as client:
            assert client.sql("SELECT $x", {"x": 1}) == TABLE
        ticket, headers = server.tickets[0]
    assert ticket == {"sql": "SELECT $x", "parameters": {"x": 1}}
    assert (headers["x-scope-orgid"], headers["authorization"]) == (["shop"], ["Bearer secret"])


@pytest.mark.parametrize("when", [raising, breaking_off])
@pytest.mark.parametrize(
    ("problem", "kind"),
    [
        (pa.ArrowInvalid("the reason"), skein.InvalidRequest),
        (KeyError("the reason"), skein.NotFound),
        (flight.FlightUnauthenticatedError("the reason"), skein.Denied),
        (flight.FlightUnauthorizedError("the reason"), skein.Denied),
        (flight.FlightUnavailableError("the reason"), skein.Unavailable),
        (flight.FlightTimedOutError("the reason"), skein.Unavailable),
        (flight.FlightInternalError("the reason"), skein.SkeinError),
        (NotImplementedError("the reason"), skein.SkeinError),
    ],
    ids=lambda value: getattr(value, "__name__", type(value).__name__),
)
def test_a_flight_error_is_one_of_ours(when: Callable[[Exception], Any], problem: Exception, kind: type[skein.SkeinError]) -> None:
    with FlightServer(when(problem)) as server, pytest.raises(skein.SkeinError) as raised:
        skein.connect(f"grpc://127.0.0.1:{server.port}").sql("SELECT 1")
    assert type(raised.value) is kind, raised.value
    assert "the reason" in str(raised.value) or "no answer within" in str(raised.value)


def test_no_flight_server_is_told_with_its_address() -> None:
    with pytest.raises(skein.Unavailable, match="no server at grpc://127.0.0.1:1: .*is it running"):
        skein.connect("grpc://127.0.0.1:1").sql("SELECT 1")


def test_batches_come_one_by_one() -> None:
    made = []

    def batches() -> Iterator[pa.RecordBatch]:
        for at in range(1000):
            made.append(at)
            # Large, so that few fit between the two.
            yield pa.record_batch({"n": pa.array([at] * 50_000)})

    with FlightServer(lambda: flight.GeneratorStream(pa.schema({"n": pa.int64()}), batches())) as server:
        client = skein.connect(f"grpc://127.0.0.1:{server.port}")
        found = client.sql_batches("SELECT n")
        assert next(found).column("n")[0].as_py() == 0
        found.close()  # type: ignore[attr-defined]
    assert len(made) < 500


class Tailing(flight.FlightServerBase):  # type: ignore[misc]
    """Sends a batch, and says when the client has left or sends nothing more."""

    def __init__(self) -> None:
        super().__init__("grpc://127.0.0.1:0")
        self.asked: list[Any] = []
        self.ended = threading.Event()

    def do_exchange(self, context: flight.ServerCallContext, descriptor: flight.FlightDescriptor, reader: Any, writer: Any) -> None:
        self.asked.append(json.loads(descriptor.command))
        writer.begin(TABLE.schema)
        writer.write_batch(TABLE.to_batches()[0])
        try:
            reader.read_chunk()
        except (StopIteration, pa.ArrowException):
            self.ended.set()


def test_a_tail_over_flight_is_an_exchange_that_ends_with_its_loop() -> None:
    with Tailing() as server, skein.connect(f"grpc://127.0.0.1:{server.port}") as client:
        for table in client.tail("{ }", columns=["name", "n"], lookback=5):
            assert table == TABLE
            break
        else:
            raise AssertionError("nothing was told")
        assert server.ended.wait(60)
        assert list(client.tail("{ status = error }", patience=0.05)) == [TABLE]
        assert server.asked == [{"tail": "{ }", "lookback": 5, "columns": ["name", "n"]}, {"tail": "{ status = error }", "lookback": 60.0}]


def test_all_errors_are_of_one_class() -> None:
    kinds = [errors.InvalidRequest, errors.NotFound, errors.Denied, errors.Exhausted, errors.Unavailable]
    assert all(issubclass(kind, skein.SkeinError) for kind in kinds)
