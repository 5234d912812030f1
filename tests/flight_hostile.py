"""Sends a server what no client should: broken tickets, descriptors, actions and messages, other tenants' and expired handles.

Arguments: the gRPC address, the tenant, a seed. Prints how many were refused. Every call must end with an answer or a status that says whose
fault it is; INTERNAL and UNKNOWN are nobody's."""

import json
import random
import sys

import grpc
import pyarrow as pa
import pyarrow.flight as flight

ADDRESS, TENANT, SEED = sys.argv[1:]
RANDOM = random.Random(int(SEED))
SERVICE = "/arrow.flight.protocol.FlightService/"
CHANNEL = grpc.insecure_channel(ADDRESS, options=[("grpc.max_receive_message_length", -1)])
METADATA = [("x-scope-orgid", TENANT)]
STREAMS = {"DoGet", "DoAction", "ListFlights", "ListActions"}
BOTH = {"DoPut", "DoExchange", "Handshake"}
CLEAR = {
    grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND, grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.OUT_OF_RANGE,
}
PREFIX = "type.googleapis.com/arrow.flight.protocol.sql."
told = {"refused": 0, "answered": 0}
wrong = []


def varint(number):
    out = b""
    while number > 127:
        out += bytes([number & 127 | 128])
        number >>= 7
    return out + bytes([number])


def field(number, value):
    """A protobuf field with bytes."""
    return varint(number << 3 | 2) + varint(len(value)) + value


def any_of(name, value):
    return field(1, (PREFIX + name).encode()) + field(2, value)


def call(method, *messages, metadata=METADATA):
    same = lambda data: data
    if method in BOTH:
        stub = CHANNEL.stream_stream(SERVICE + method, request_serializer=same, response_deserializer=same)
        return list(stub(iter(messages), metadata=metadata, timeout=60))
    kind = CHANNEL.unary_stream if method in STREAMS else CHANNEL.unary_unary
    answer = kind(SERVICE + method, request_serializer=same, response_deserializer=same)(messages[0], metadata=metadata, timeout=60)
    return list(answer) if method in STREAMS else [answer]


def hostile(what, method, *messages, may_answer=False, metadata=METADATA):
    try:
        answers = call(method, *messages, metadata=metadata)
    except grpc.RpcError as error:
        # A frame that is no protobuf at all is refused below the service, as INTERNAL by the gRPC library.
        broken_frame = error.code() == grpc.StatusCode.INTERNAL and "decode" in error.details()
        if not (error.code() in CLEAR or broken_frame) or not error.details():
            wrong.append(f"{what}: {error.code()} {error.details()!r:.300}")
        told["refused"] += 1
        return
    if not may_answer:
        wrong.append(f"{what}: answered {answers!r:.200}")
    told["answered"] += 1


ticket = lambda data: field(1, data)
command = lambda data: b"\x08\x02" + field(2, data)
path = lambda *names: b"\x08\x01" + b"".join(field(3, name) for name in names)
action = lambda name, body: field(1, name.encode()) + field(2, body)
noise = lambda size: RANDOM.randbytes(size)

# Tickets and commands.
texts = [
    b"", b"{", b"{}", b"[]", b"null", b'{"sql": 5}', b'{"sql": ""}', b'{"sql": "SELECT 1; SELECT 2"}', b'{"sql": "DROP TABLE spans"}', b'{"sql": "\xff"}',
    b'{"sql": "SELECT * FROM stranger.spans"}', b'{"sql": "SELECT * FROM skein.stranger.spans"}', b'{"sql": "SELECT * FROM \'/etc/passwd\'"}',
    b'{"sql": "SELECT $1", "parameters": "x"}', b'{"sql": "SELECT $2", "parameters": [1]}', b'{"sql": "SELECT 1", "parameters": [[1]]}',
    b'{"traceql": "{ status = }"}', b'{"traceql": "{ }", "start": 5}', b'{"traceql": "{ }", "start": -1, "end": -2}', b'{"traceql": "{ }", "limit": -1}',
    b'{"traceql": "{ }", "start": 1e400, "end": 5}', b'{"traceql": "{ }", "start": {}, "end": []}', b'{"trace": "nonsense"}',
    b'{"trace": "1\') UNION SELECT * FROM spans --"}', b'{"metrics": "{ } |"}', b'{"metrics": "{ } | rate()", "step": "1m"}', b'{"sql": "a", "trace": "b"}',
    b'{"sql": "SELECT ' + b"(" * 5000 + b'"}', b'{"sql": ' + b"[" * 100_000, b'{"traceql": "' + b"{" * 10_000 + b'"}', b'{"sql": "' + b"x" * (2 << 20) + b'"}',
    b"\x0a\xff\xff\xff\xff\x0f", b"\x0a\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80\x01", b"\x00" * 64, b"\xff" * 64, any_of("", b""), any_of("NoSuchThing", b""),
    any_of("CommandStatementQuery", b"\x0a\xff"), any_of("CommandStatementQuery", field(1, b"\xff\xfe")), any_of("CommandStatementQuery", field(1, b"SELECT")),
    any_of("TicketStatementQuery", b""), any_of("TicketStatementQuery", field(1, b"x")), any_of("TicketStatementQuery", field(1, b"\xff" * 20)),
    any_of("TicketStatementQuery", field(1, b"\0" * 20)), any_of("TicketStatementQuery", field(1, noise(1 << 20))), any_of("CommandPreparedStatementQuery", field(1, b"")),
    any_of("CommandPreparedStatementQuery", field(1, noise(16))), any_of("CommandStatementUpdate", field(1, b"DELETE FROM spans")),
    any_of("CommandStatementSubstraitPlan", noise(30)), any_of("CommandStatementIngest", noise(30)), any_of("CommandPreparedStatementUpdate", field(1, noise(16))),
    any_of("ActionCreatePreparedStatementRequest", field(1, b"SELECT 1")), field(1, b"type.googleapis.com/google.protobuf.Any") + field(2, any_of("x", b"")),
]
for text in texts:
    hostile(f"ticket {text[:80]}", "DoGet", ticket(text))
    hostile(f"command {text[:80]}", "GetFlightInfo", command(text))
for names in ([], [b""], [b"no such table"], [b"stranger", b"spans"], [b"a", b"b", b"c", b"d"], [b'spans" UNION SELECT * FROM "spans'], [b"x" * 100_000]):
    hostile(f"path {names!r:.80}", "GetFlightInfo", path(*names))
    hostile(f"schema of {names!r:.80}", "GetSchema", path(*names))
for number in range(40):
    data = noise(RANDOM.randint(1, 400))
    hostile(f"noise {number}", RANDOM.choice(["DoGet", "GetFlightInfo", "GetSchema", "PollFlightInfo"]), data)
    hostile(f"noise in a ticket {number}", "DoGet", ticket(data))

# Metadata commands that were cut or changed.
for name in ("CommandGetTables", "CommandGetDbSchemas", "CommandGetSqlInfo", "CommandGetXdbcTypeInfo", "CommandGetPrimaryKeys", "CommandGetCrossReference"):
    hostile(f"{name} of noise", "DoGet", ticket(any_of(name, b"\x0a\xff\xff")))
hostile("a pattern that is longer than any name", "DoGet", ticket(any_of("CommandGetTables", field(3, b"%" * 100_000))))
hostile("a million kinds of info", "DoGet", ticket(any_of("CommandGetSqlInfo", field(1, b"\x01" * 1_000_000))))

# Actions.
bodies = [b"", noise(50), any_of("CommandStatementQuery", b""), any_of("ActionCreatePreparedStatementRequest", b"\x0a\xff")]
for name in ("CreatePreparedStatement", "ClosePreparedStatement", "CancelQuery", "CancelFlightInfo", "BeginTransaction", "RenewFlightEndpoint", "", "x" * 100_000):
    for body in bodies:
        hostile(f"action {name[:40]} {body[:20]}", "DoAction", action(name, body))
hostile("a statement that writes", "DoAction", action("CreatePreparedStatement", any_of("ActionCreatePreparedStatementRequest", field(1, b"CREATE TABLE t AS SELECT 1"))))
hostile("a transaction", "DoAction", action("CreatePreparedStatement", any_of("ActionCreatePreparedStatementRequest", field(1, b"SELECT 1") + field(2, b"t"))))
hostile("explaining a file", "DoAction", action("explain", b"SELECT * FROM '/etc/passwd'"))
hostile("explaining two statements", "DoAction", action("explain", b"SELECT 1; DROP TABLE spans"))
hostile("explaining what runs another", "DoAction", action("explain", b"ANALYZE COPY spans TO '/tmp/x'"))

# Streams from the client.
bind = lambda handle: field(1, command(any_of("CommandPreparedStatementQuery", field(1, handle))))
for number, messages in enumerate(
    [
        [], [b""], [noise(100)], [field(1, command(b""))], [field(1, command(noise(40)))], [bind(noise(16))], [bind(b"")],
        [field(1, command(any_of("CommandStatementUpdate", field(1, b"DELETE FROM spans"))))], [field(1, path(b"spans"))],
        [field(1, command(any_of("CommandStatementIngest", b"")))],
    ]
):
    hostile(f"put {number}", "DoPut", *messages)
    hostile(f"exchange {number}", "DoExchange", *messages)

# Parameters that are no parameters.
client = flight.connect(f"grpc://{ADDRESS}")
options = flight.FlightCallOptions(headers=[(b"x-scope-orgid", TENANT.encode())])


def prepared(sql):
    body = any_of("ActionCreatePreparedStatementRequest", field(1, sql))
    [answer] = client.do_action(flight.Action("CreatePreparedStatement", body), options)
    data = bytes(answer.body)
    # Any { type_url, value { handle } }: the handle is the first field of the value, and has 16 bytes.
    value = data[data.index(b"Result") + len(b"Result"):]
    return value[value.index(b"\x0a\x10") + 2:][:16]


handle = prepared(b"SELECT name FROM spans WHERE name = $1")
schema = pa.schema([("a", pa.string())])
for number, (header, body) in enumerate([(b"", b""), (noise(64), b""), (b"", noise(64)), (noise(200), noise(4000)), (b"\xff\xff\xff\xff\xff\xff\xff\x7f", b"")]):
    first = bind(handle) + field(2, schema.serialize().to_pybytes()[8:])
    hostile(f"a broken batch {number}", "DoPut", first, field(2, header) + field(1000, body), may_answer=header == b"")
    hostile(f"a broken schema {number}", "DoPut", bind(handle) + field(2, header) + field(1000, body), may_answer=header == b"")
batch = pa.record_batch([["x"], ["y"]], names=["a", "b"])


def bound(handle, batch):
    descriptor = flight.FlightDescriptor.for_command(any_of("CommandPreparedStatementQuery", field(1, handle)))
    writer, reader = client.do_put(descriptor, batch.schema, options)
    writer.write_batch(batch)
    writer.done_writing()
    reader.read()
    writer.close()


for batch in (batch, pa.record_batch([["x", "y"]], names=["a"]), pa.record_batch([[{"a": 1}]], names=["a"])):
    try:
        bound(handle, batch)
        client.do_get(flight.Ticket(any_of("CommandPreparedStatementQuery", field(1, handle))), options).read_all()
    except pa.ArrowInvalid:
        told["refused"] += 1
    else:
        raise AssertionError(f"bound {batch}")

# What is another tenant's, and what is gone.
stranger = [("x-scope-orgid", "stranger")]
hostile("another's prepared statement", "DoGet", ticket(any_of("CommandPreparedStatementQuery", field(1, handle))), metadata=stranger)
hostile("closing another's", "DoAction", action("ClosePreparedStatement", any_of("ActionClosePreparedStatementRequest", field(1, handle))), metadata=stranger)
info = client.get_flight_info(flight.FlightDescriptor.for_path("spans"), options)
theirs = ticket(info.endpoints[0].ticket.ticket)
hostile("another's ticket", "DoGet", theirs, metadata=stranger)
hostile("cancelling another's", "DoAction", action("CancelFlightInfo", field(1, info.serialize())), metadata=stranger)
hostile("nobody's", "DoGet", theirs, metadata=[])
hostile("a tenant that is none", "DoGet", theirs, metadata=[("x-scope-orgid", "../other")])
hostile("two tenants", "DoGet", theirs, metadata=[("x-scope-orgid", f"{TENANT}|stranger")])
for header in ("Basic", "Basic !", "Basic " + "A" * 100_000, "Bearer skein-zz", "Bearer skein-ff", "Bearer x"):
    hostile(f"authorization {header[:20]}", "DoGet", theirs, metadata=[("authorization", header[:7000])])
client.do_action(flight.Action("ClosePreparedStatement", any_of("ActionClosePreparedStatementRequest", field(1, handle))), options)
for _ in client.do_action(flight.Action("CancelFlightInfo", field(1, info.serialize())), options):
    pass
hostile("a ticket that was cancelled", "DoGet", theirs)
# The oldest gives way, so that nobody fills the memory with tickets and statements.
old = client.get_flight_info(flight.FlightDescriptor.for_path("events"), options).endpoints[0].ticket.ticket
for _ in range(70):
    client.get_flight_info(flight.FlightDescriptor.for_path("events"), options)
hostile("a ticket that gave way", "DoGet", ticket(old))

assert client.do_get(flight.Ticket(json.dumps({"sql": "SELECT 1 AS one"})), options).read_all()["one"].to_pylist() == [1]
assert not wrong, "\n".join(wrong)
print(told["refused"])
