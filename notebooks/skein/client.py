"""A server as tables."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Sequence
from datetime import datetime, timezone
from types import TracebackType
from typing import Union

import pyarrow as pa

from . import errors, outgoing
from .transport import Flight, Parameters, Transport, open_transport

#: A point in time: Unix seconds, text as in RFC 3339, or a `datetime` (pandas' Timestamp is one). Without a zone it is UTC.
Time = Union[int, float, str, datetime]

DEFAULT_URL = "http://localhost:3200"


def connect(
    url: str | None = None, *, tenant: str | None = None, token: str | None = None, timeout: float = 300.0, transport: Transport | None = None
) -> Client:
    """A server at `url`: `http://HOST:3200` (its HTTP port) or `grpc://HOST:9095` (Arrow Flight, faster for large answers).

    Without `url`, the variable `SKEIN_URL` of the environment counts, else `http://localhost:3200`. `tenant` is sent as `X-Scope-OrgID`, `token` as
    a bearer token; a statement takes `timeout` seconds at most. Nothing is sent before the first question. Raises `InvalidRequest` for what is no
    address. `transport` replaces the way there, for tests.
    """
    return Client(transport or open_transport(url or os.environ.get("SKEIN_URL") or DEFAULT_URL, tenant, token, timeout))


class Client:
    """Questions to one tenant of one server, and spans for it. Made by `connect`; not to be shared between threads.

    Every question raises `InvalidRequest` for a wrong query (the message says where and why), `Denied`, `Exhausted` at a limit, and `Unavailable`
    when the server is away or ends an answer early. A table that is returned is whole.
    """

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def sql(self, statement: str, parameters: Parameters | None = None) -> pa.Table:
        """The rows of an SQL statement; `$1`, `$2`, … or `$name` in it stand for `parameters`.

        Tables and functions are in docs/sql.md. All rows are held in memory; for more than fits there, see `sql_batches`.
        """
        schema, batches = self._transport.batches(statement, parameters)
        return _plain(pa.Table.from_batches(list(batches), schema))

    def sql_batches(self, statement: str, parameters: Parameters | None = None) -> Iterator[pa.RecordBatch]:
        """The same, batch by batch as the server makes them. Dropping the iterator stops the statement."""
        return self._transport.batches(statement, parameters)[1]

    def traceql(self, query: str, start: Time | None = None, end: Time | None = None, columns: Sequence[str] | None = None) -> pa.Table:
        """The spans that a TraceQL search finds, a row each: all matches, not the newest twenty.

        Has all columns of `spans` (or those named in `columns`) and `spanset`, the number of the spanset in its trace. With `start` and `end`, only
        traces that overlap this window.
        """
        return self.sql(f"SELECT {_columns(columns)} FROM traceql({_arguments(query, start, end)})")

    def metrics(self, query: str, start: Time | None = None, end: Time | None = None, step: float | str | None = None) -> pa.Table:
        """The series of a TraceQL metrics query: a row for each series and interval of `step` (seconds, or text such as `"1m"`).

        Has `time` (the end of the interval), a column for each label of `by`, and `value`; some queries have more, see docs/sql.md. Without a step,
        there is one interval, from `start` to `end`, without these over all there is.
        """
        arguments = _arguments(query, start, end)
        if step is not None:
            if start is None:
                raise errors.InvalidRequest("a step needs a window: pass start and end too")
            arguments += ", " + _text(step if isinstance(step, str) else f"{round(step * 1e9)}ns")
        return self.sql(f"SELECT * FROM traceql_metrics({arguments}) ORDER BY time")

    def trace(self, trace_id: str) -> pa.Table:
        """All spans of one trace, in the order of their start. Raises `InvalidRequest` for what is no trace id, `NotFound`."""
        if not re.fullmatch(r"[0-9a-fA-F]{1,32}", trace_id):
            raise errors.InvalidRequest(f"{trace_id!r} is no trace id: it has up to 32 hexadecimal digits")
        found = self.sql(f"SELECT * FROM trace({_text(trace_id)}) ORDER BY start_time, span_id")
        if found.num_rows == 0:
            raise errors.NotFound(f"there is no trace {trace_id} of this tenant; is connect(…, tenant=…) right?")
        return _without_empty_attributes(found)

    def tail(
        self,
        query: str = "{ }",
        *,
        columns: Sequence[str] | None = None,
        interval: float = 1.0,
        lookback: float = 60.0,
        patience: float | None = None,
    ) -> Iterator[pa.Table]:
        """Matches of a TraceQL search as they arrive: each table has spans that the tables before it did not have.

        Begins, with the first `next`, with the matches among the traces of the last `lookback` seconds. Ends after `patience` seconds without a new
        match; without it, never. Leaving the loop ends it on the server too.

        At `grpc://` the server sends the matches within a second of their arrival, whenever their traces were; `interval` means nothing, and without
        `columns` there are the fixed columns of `spans`, `resource.service.name` and `spanset`. Attributes named in `columns` that the
        server does not know yet are text. At `http://` this asks every `interval` seconds for the traces of the last `lookback` seconds, so a span
        that arrives later than that after its trace's end is missed; it holds the ids of the matches of two lookbacks, and without `columns`
        there are all.
        """
        if isinstance(self._transport, Flight):
            for batch in self._transport.tail(query, columns, lookback, patience):
                yield _plain(pa.Table.from_batches([batch]))
            return
        wanted = None if columns is None else list(dict.fromkeys([*columns, "trace_id", "span_id", "spanset"]))
        seen: dict[tuple[str, str, int], float] = {}
        last_match = time.monotonic()
        while patience is None or time.monotonic() - last_match <= patience:
            asked, now = time.monotonic(), time.time()
            found = self.traceql(query, now - lookback, now + 1, wanted)
            ids = list(zip(*(found.column(name).to_pylist() for name in ("trace_id", "span_id", "spanset"))))
            new = [at for at, id in enumerate(ids) if id not in seen]
            seen.update((id, asked) for id in ids)
            seen = {id: when for id, when in seen.items() if when > asked - 2 * lookback}
            if new:
                last_match = time.monotonic()
                fresh = found.take(pa.array(new))
                yield fresh if columns is None else fresh.select(list(columns))
            time.sleep(max(0.0, interval - (time.monotonic() - asked)))

    def write(self, table: pa.Table) -> int:
        """Writes the spans of `table`, a row each, and returns how many there are, after they are durable and can be asked for.

        Columns are those of `SELECT * FROM spans`, and `events` and `links`; docs/flight.md says which are needed and which types they may have.
        `pa.Table.from_pandas(frame)` makes a table of a data frame. Needs Arrow Flight, that is, a client that is connected to `grpc://…`. The table is
        sent in batches, each of which is taken or refused as a whole: `InvalidRequest` names batch, column and row of what is wrong, and says how many
        spans before it were written. `Exhausted` and `Unavailable` may succeed later; what is written twice is kept once.
        """
        if not isinstance(table, pa.Table):
            raise errors.InvalidRequest(f"spans are written as a pyarrow.Table, not as {type(table).__name__}: pa.Table.from_pandas(…) makes one of a data frame")
        table = outgoing.shortest(_plain(table))
        return self._transport.write(table.schema, outgoing.cut(table))

    def close(self) -> None:
        """Gives connections back."""
        self._transport.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _plain(table: pa.Table) -> pa.Table:
    """String views as plain strings, which all of pandas, Polars and DuckDB know in every version; each dictionary one of distinct values a column.

    Arrow allows a value to be in a dictionary twice, and where batches were put together, it may be. pandas refuses that.
    """
    fields = [field.with_type(pa.string()) if field.type == pa.string_view() else field for field in table.schema]
    table = table.cast(pa.schema(fields, table.schema.metadata)).unify_dictionaries()
    for at, field in enumerate(fields):
        if pa.types.is_dictionary(field.type) and not all(_is_distinct(chunk.dictionary) for chunk in table.column(at).chunks):
            table = table.set_column(at, field, table.column(at).cast(field.type.value_type).dictionary_encode())
    return table


def _is_distinct(values: pa.Array) -> bool:
    return len(values.unique()) == len(values)


def _without_empty_attributes(table: pa.Table) -> pa.Table:
    """Without the attributes that no row has: a trace has few of those that a tenant has."""
    return table.select([name for name in table.column_names if "." not in name or table.column(name).null_count < table.num_rows])


def _text(text: str) -> str:
    """A text literal of SQL."""
    return "'" + text.replace("'", "''") + "'"


def _columns(columns: Sequence[str] | None) -> str:
    if columns is None:
        return "*"
    return ", ".join('"' + name.replace('"', '""') + '"' for name in columns)


def _arguments(query: str, start: Time | None, end: Time | None) -> str:
    if (start is None) != (end is None):
        raise errors.InvalidRequest("a window needs both start and end, or neither")
    return _text(query) if start is None or end is None else f"{_text(query)}, {_time(start)}, {_time(end)}"


def _time(time: Time) -> str:
    """A timestamp of SQL, to the nanosecond where `time` is."""
    if isinstance(time, str):
        return _text(time)
    if isinstance(time, datetime):
        aware = time if time.tzinfo is not None else time.replace(tzinfo=timezone.utc)
        since = aware - datetime(1970, 1, 1, tzinfo=timezone.utc)
        # pandas' Timestamp has three more digits than datetime.
        nanos = (since.days * 86_400 + since.seconds) * 1_000_000_000 + since.microseconds * 1000 + getattr(time, "nanosecond", 0)
    else:
        nanos = int(time) * 1_000_000_000 + round((time - int(time)) * 1e9)
    if not 0 <= nanos < 1 << 63:
        raise errors.InvalidRequest(f"{time!r} is not between 1970 and 2262: times as numbers are Unix seconds")
    return f"arrow_cast({nanos}, 'Timestamp(Nanosecond, None)')"
