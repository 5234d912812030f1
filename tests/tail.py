"""Tails over Arrow Flight, asked with pyarrow.

Arguments: the addresses of gRPC, HTTP and OTLP over HTTP, and which part to run.
"""

import json
import re
import sys
import time
import urllib.request

import pyarrow
import pyarrow.flight as flight

GRPC, HTTP, OTLP, PART = sys.argv[1:]
ERRORS = (flight.FlightError, pyarrow.ArrowException)
PATIENCE = 60
ERROR = 2

client = flight.connect(f"grpc://{GRPC}")
given = 0


def post(address, path, body=b"", tenant="shop", kind="application/json"):
    request = urllib.request.Request(f"http://{address}{path}", body, {"X-Scope-OrgID": tenant, "Content-Type": kind}, method="POST")
    with urllib.request.urlopen(request, timeout=PATIENCE) as response:
        assert response.status < 300, response.status
        return response.read().decode()


def span(trace, name, parent=None, status=0, **attributes):
    """A span that ends now, with an id of its own."""
    global given
    given += 1
    now = time.time_ns()
    return {
        "traceId": f"{trace:032x}", "spanId": f"{given:016x}", "parentSpanId": parent["spanId"] if parent else "", "name": name, "kind": 2,
        "startTimeUnixNano": str(now - 1000), "endTimeUnixNano": str(now), "status": {"code": status},
        "attributes": [{"key": key, "value": {"stringValue": value}} for key, value in attributes.items()],
    }


def send(*spans, tenant="shop"):
    resource = {"attributes": [{"key": "service.name", "value": {"stringValue": "cart"}}]}
    message = {"resourceSpans": [{"resource": resource, "scopeSpans": [{"spans": spans}]}]}
    post(OTLP, "/v1/traces", json.dumps(message).encode(), tenant)


def metric(name):
    with urllib.request.urlopen(f"http://{HTTP}/metrics", timeout=PATIENCE) as response:
        found = re.findall(rf"^{name} (\S+)$", response.read().decode(), re.MULTILINE)
    return float(found[0])


def until(what, condition):
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def refused(what, *texts, kind=ERRORS):
    try:
        what()
    except kind as error:
        assert all(text in str(error) for text in texts), f"{error!r} lacks {texts}"
        return
    raise AssertionError(f"not refused: {texts}")


class Tail:
    """An open tail: whoever has its schema misses nothing."""

    def __init__(self, query, tenant="shop", command=None, client=client, **ask):
        options = flight.FlightCallOptions(headers=[(b"x-scope-orgid", tenant.encode())])
        command = json.dumps({"tail": query, **ask}) if command is None else command
        self.writer, self.reader = client.do_exchange(flight.FlightDescriptor.for_command(command), options)
        self.schema = self.reader.schema

    def next(self):
        return self.reader.read_chunk().data.to_pylist()

    def until_names(self, count):
        """Rows until there are `count`, however many passes that takes."""
        rows = []
        while len(rows) < count:
            rows += self.next()
        return sorted(row["name"] for row in rows)

    def rest(self):
        """What is left to be told when nothing more is sent, then the end."""
        self.writer.done_writing()
        return self.reader.read_all().to_pylist()

    def cancel(self):
        self.reader.cancel()
        try:
            self.writer.close()
        except pyarrow.ArrowCancelled:
            pass


def as_they_arrive():
    errors = Tail("{ status = error }", columns=["trace_id", "name", "span.route", "resource.service.name"])
    everything = Tail("{ }")
    assert everything.schema.names[:3] == ["trace_id", "span_id", "parent_span_id"] and everything.schema.names[-1] == "spanset", everything.schema
    assert "resource.service.name" in everything.schema.names
    until("both are open", lambda: metric("skein_frontend_tails_open") == 2)
    began = time.monotonic()
    send(span(1, "good"), span(1, "bad", status=ERROR, route="/cart"))
    assert errors.next() == [{"trace_id": f"{1:032x}", "name": "bad", "span.route": "/cart", "resource.service.name": "cart"}]
    took = time.monotonic() - began
    assert took < 2, f"it took {took} s"
    assert everything.until_names(2) == ["bad", "good"]
    # Of a trace that was told of only what is new; nothing of what does not match.
    send(span(1, "worse", status=ERROR), span(2, "fine"))
    assert [row["name"] for row in errors.next()] == ["worse"]
    send(span(3, "last", status=ERROR))
    assert [row["name"] for row in errors.rest()] == ["last"]
    assert everything.until_names(3) == ["fine", "last", "worse"]
    assert everything.rest() == []
    until("both have ended", lambda: metric("skein_frontend_tails_open") == 0)
    assert metric("skein_frontend_tail_rows_total") == 8 and metric("skein_frontend_tail_passes_total") >= 3


def across_blocks():
    below = Tail("{ name = `root` } >> { name = `leaf` }", columns=["name", "span_id"])
    many = Tail("{ trace:id != `` } | count() > 2", columns=["name"])
    root = span(10, "root")
    send(root)
    post(HTTP, "/flush")
    middle = span(10, "middle", parent=root)
    send(middle)
    post(HTTP, "/flush")
    leaf = span(10, "leaf", parent=middle)
    send(leaf)
    assert below.next() == [{"name": "leaf", "span_id": leaf["spanId"]}]
    assert many.until_names(3) == ["leaf", "middle", "root"]
    # Live and flushed before any pass has seen it.
    second = span(10, "leaf", parent=root)
    send(second)
    post(HTTP, "/flush")
    assert below.rest() == [{"name": "leaf", "span_id": second["spanId"]}]
    assert [row["name"] for row in many.rest()] == ["leaf"]
    back = Tail("{ name = `leaf` }", columns=["span_id"], lookback="5m")
    assert sorted(row["span_id"] for row in back.rest()) == sorted([leaf["spanId"], second["spanId"]])


def tenants():
    mine, other = Tail("{ }", columns=["name"]), Tail("{ }", "stranger", columns=["name"])
    send(span(20, "mine"))
    assert mine.next() == [{"name": "mine"}]
    send(span(20, "theirs"), tenant="stranger")
    assert other.next() == [{"name": "theirs"}]
    assert (mine.rest(), other.rest()) == ([], [])


def refusals():
    for command, text in [
        ("", "a tail is asked for with"),
        ("{", "a tail is asked for with"),
        ('{"tail": "{ }", "rows": 1}', "rows"),
        ('{"sql": "SELECT 1"}', "a tail is asked for with"),
        ('{"tail": "{ }", "columns": ["nam"]}', "there is no column"),
        ('{"tail": "{ }", "lookback": "soon"}', "lookback is"),
        ('{"tail": "{ } | rate()"}', "a tail takes a search"),
        ('{"tail": "{ nam = }"}', "parse error"),
    ]:
        refused(lambda: Tail(None, command=command), text, kind=pyarrow.ArrowInvalid)
    refused(lambda: Tail("{ }", ""), "no org id", kind=flight.FlightUnauthenticatedError)
    data = Tail("{ }")
    table = pyarrow.table({"a": [1]})
    data.writer.begin(table.schema)
    data.writer.write_table(table)
    refused(data.next, "a tail takes no data", kind=pyarrow.ArrowInvalid)
    until("none is left", lambda: metric("skein_frontend_tails_open") == 0)


def bounds():
    tails = [Tail("{ }", columns=["name"]) for _ in range(16)]
    refused(lambda: Tail("{ }"), "16 tails of the tenant are open")
    other = Tail("{ }", "stranger")
    tails.pop().cancel()
    until("one is free", lambda: metric("skein_frontend_tails_open") == 16)
    tails.append(Tail("{ }", columns=["name"]))
    send(span(30, "for all"))
    assert all(tail.next() == [{"name": "for all"}] for tail in tails)
    began = time.monotonic()
    for tail in [*tails, other]:
        tail.cancel()
    until("all have ended", lambda: metric("skein_frontend_tails_open") == 0)
    assert time.monotonic() - began < 2
    # Passes are those of the tail that is there: none of those that were cancelled, none of one whose tenant sends nothing.
    idle, only = Tail("{ }", "stranger"), Tail("{ }", columns=["name"])
    passes = metric("skein_frontend_tail_passes_total")
    for name in ("first", "second"):
        send(span(31, name))
        assert only.next() == [{"name": name}]
    assert metric("skein_frontend_tail_passes_total") == passes + 2
    assert (idle.rest(), only.rest()) == ([], [])
    assert metric("skein_frontend_queries_running") == 0


def shutdown():
    tail = Tail("{ }")
    post(HTTP, "/shutdown")
    refused(tail.next, "shutting down", kind=flight.FlightUnavailableError)


def slow():
    """Sixteen clients do not read what would be some 50 MB for each; then one of them reads all of it."""
    # Otherwise the library takes everything before anybody reads it.
    reluctant = flight.FlightClient(f"grpc://{GRPC}", generic_options=[("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 65536)])
    tails = [Tail("{ }", client=reluctant, columns=["span_id", "span.text"]) for _ in range(16)]
    sent = set()

    def send_large(trace):
        spans = [span(trace, "large", text="x" * 2000 + str(number)) for number in range(1000)]
        send(*spans)
        sent.update(each["spanId"] for each in spans)

    # The library takes one message before it is asked for it, so the second pass is the one that is not taken.
    for number in (1, 2):
        send_large(number)
        until(f"all have had {number} passes", lambda: metric("skein_frontend_tail_passes_total") == number * len(tails))
    for trace in range(3, 26):
        send_large(trace)
    assert metric("skein_frontend_tail_rows_total") == len(tails) * 2000
    found = [row["span_id"] for row in tails[0].rest()]
    assert len(found) == len(sent) and set(found) == sent, (len(found), len(sent))
    for tail in tails[1:]:
        tail.cancel()
    until("all have ended", lambda: metric("skein_frontend_tails_open") == 0)


if PART == "slow":
    slow()
else:
    as_they_arrive()
    across_blocks()
    tenants()
    refusals()
    bounds()
    shutdown()
print("all right")
