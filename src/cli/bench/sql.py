"""Asks DuckDB what `skein bench sql` asks a server, over the same blocks.

Standard input: {"files": [...], "threads": 2, "statements": [{"sql": "SELECT ...", "runs": 5}, ...]}, the statements over a view `spans`.
Standard output: {"version": "...", "answers": [{"rows": [{...}], "wall_ms": [...], "cpu_ms": [...]}]}; the first run of a statement comes first,
`runs` others follow.
"""

import datetime
import json
import sys
import time

import duckdb


def told(value):
    """A value as the server's JSON tells it."""
    return value.strftime("%Y-%m-%dT%H:%M:%SZ") if isinstance(value, datetime.datetime) else value


def answer(ask, statement):
    """A statement on a connection of its own, in a process that has run for a while."""
    with duckdb.connect() as connection:
        connection.execute(f"SET threads = {int(ask['threads'])}")
        files = ", ".join("'" + file.replace("'", "''") + "'" for file in ask["files"])
        # Blocks have columns for the attributes that are frequent in them, which differ.
        connection.execute(
            "CREATE VIEW spans AS SELECT *, make_timestamp_ns(trace_start_unix_nano + start_offset_nanos) AS start_time "
            f"FROM read_parquet([{files}], union_by_name = true)"
        )
        wall_ms, cpu_ms = [], []
        for _ in range(1 + statement["runs"]):
            wall, cpu = time.perf_counter(), time.process_time()
            cursor = connection.execute(statement["sql"])
            rows = cursor.fetchall()
            wall_ms.append((time.perf_counter() - wall) * 1e3)
            cpu_ms.append((time.process_time() - cpu) * 1e3)
        names = [column[0] for column in cursor.description]
    return {"rows": [dict(zip(names, map(told, row))) for row in rows], "wall_ms": wall_ms, "cpu_ms": cpu_ms}


ASK = json.load(sys.stdin)
json.dump({"version": duckdb.__version__, "answers": [answer(ASK, statement) for statement in ASK["statements"]]}, sys.stdout)
