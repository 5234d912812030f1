"""Traces of a Skein server as Arrow tables.

>>> import skein
>>> server = skein.connect("http://localhost:3200")
>>> server.sql("SELECT name, count(*) AS spans FROM spans GROUP BY name").to_pandas()
>>> skein.waterfall(server.trace("2f3e0cee77ae5dc9c17ade3689eb2e54"))

Answers are `pyarrow.Table`: `.to_pandas()` gives pandas, `polars.from_arrow(table)` gives Polars, and DuckDB reads them by their variable's name.
"""

from .client import Client, Time, connect
from .errors import Denied, Exhausted, InvalidRequest, NotFound, SkeinError, Unavailable
from .flame import Frame, flame_diff, flame_graph, frames
from .graph import draw_service_graph
from .transport import Parameters
from .tree import Span, spans_of
from .waterfall import waterfall

__all__ = [
    "Client",
    "Denied",
    "Exhausted",
    "Frame",
    "InvalidRequest",
    "NotFound",
    "Parameters",
    "SkeinError",
    "Span",
    "Time",
    "Unavailable",
    "connect",
    "draw_service_graph",
    "flame_diff",
    "flame_graph",
    "frames",
    "spans_of",
    "waterfall",
]
