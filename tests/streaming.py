"""Streams searches, tags and metrics from a running process and compares them with HTTP's answers.

usage: streaming.py FOLDER_OF_TEMPO_PROTO HOST:PORT TENANT START_SECONDS END_SECONDS

The client is generated from the project's own tempo.proto. For each query it prints how many messages came, when the first and the last
came, and ends with "all equal".
"""

import importlib
import os
import sys
import tempfile
import time
import urllib.parse
import urllib.request

import grpc
from google.protobuf import json_format
from grpc_tools import protoc

folder, address, tenant, start, end = sys.argv[1:6]
start, end = int(start), int(end)
METADATA = [("x-scope-orgid", tenant)]
#: Times that something is asked until a part of its answer comes before the whole: an answer may be too quick for that.
ATTEMPTS = 20


def generated():
    """The messages and the client of tempo.proto."""
    out = tempfile.mkdtemp()
    files = [os.path.join(base, name) for base, _, names in os.walk(folder) for name in names if name.endswith(".proto")]
    well_known = os.path.join(os.path.dirname(protoc.__file__), "_proto")
    arguments = ["protoc", f"-I{folder}", f"-I{well_known}", f"--python_out={out}", f"--grpc_python_out={out}", *files]
    assert protoc.main(arguments) == 0
    sys.path.insert(0, out)
    return importlib.import_module("tempo_pb2"), importlib.import_module("tempo_pb2_grpc")


tempo, services = generated()
querier = services.StreamingQuerierStub(grpc.insecure_channel(address, options=[("grpc.max_receive_message_length", -1)]))


def http(path, message, **params):
    """HTTP's answer as a message."""
    query = urllib.parse.urlencode({"start": start, "end": end, **params})
    request = urllib.request.Request(f"http://{address}{path}?{query}", headers={"X-Scope-OrgID": tenant})
    with urllib.request.urlopen(request, timeout=60) as response:
        return json_format.Parse(response.read(), message)


def until_parts_come(check):
    """Checks again and again until `check`, which is given the number of the attempt, returns parts."""

    def checked(*arguments):
        came = any(check(*arguments, attempt) for attempt in range(1, ATTEMPTS + 1))
        assert came, f"{check.__name__} {arguments}: no part came before the end"

    return checked


def stream(what, call):
    """All messages of a call; the last one is the whole answer."""
    began = time.monotonic()
    messages, times = [], []
    for message in call:
        messages.append(message)
        times.append(time.monotonic() - began)
    print(f"{what}: {len(messages)} messages, the first after {times[0] * 1000:.1f} ms, the last after {times[-1] * 1000:.1f} ms")
    return messages[:-1], messages[-1]


def grows(metrics):
    """Progress never goes back and ends complete."""
    done = [figures.completedJobs for figures in metrics]
    assert done == sorted(done), done
    assert metrics[-1].completedJobs == metrics[-1].totalJobs > 0, metrics[-1]


@until_parts_come
def check_search(query, limit, _attempt):
    request = tempo.SearchRequest(Query=query, Limit=limit, start=start, end=end)
    parts, whole = stream(f"search {query}", querier.Search(request, metadata=METADATA))
    expected = http("/api/search", tempo.SearchResponse(), q=query, limit=limit)
    assert len(whole.traces) > 0 and list(whole.traces) == list(expected.traces), query
    said = [trace for part in parts for trace in part.traces]
    assert said == list(whole.traces)[: len(said)], f"{query}: parts are the beginning of the whole"
    grows([part.metrics for part in parts] + [whole.metrics])
    return parts


def samples(series):
    return {(str(one.labels), sample.timestamp_ms): sample.value for one in series for sample in one.samples}


@until_parts_come
def check_range(query, attempt):
    second = 1_000_000_000
    # Another step, since what is known already is told at once.
    request = tempo.QueryRangeRequest(query=query, start=start * second, end=end * second, step=attempt * second)
    parts, whole = stream(f"range {query}", querier.MetricsQueryRange(request, metadata=METADATA))
    expected = http("/api/metrics/query_range", tempo.QueryRangeResponse(), q=query, step=f"{attempt}s")
    found = samples(whole.series)
    assert found and found == samples(expected.series), query
    for part in parts:
        said = samples(part.series)
        assert all(found[key] == value for key, value in said.items()), query
    grows([part.metrics for part in parts] + [whole.metrics])
    return parts


@until_parts_come
def check_instant(query, attempt):
    second = 1_000_000_000
    # Another end, for the same reason.
    until = end + attempt
    request = tempo.QueryInstantRequest(query=query, start=start * second, end=until * second)
    parts, whole = stream(f"instant {query}", querier.MetricsQueryInstant(request, metadata=METADATA))
    expected = http("/api/metrics/query", tempo.QueryInstantResponse(), q=query, end=until)
    assert len(whole.series) > 0 and list(whole.series) == list(expected.series), query
    return parts


@until_parts_come
def check_values(tag, _attempt):
    request = tempo.SearchTagValuesRequest(tagName=tag, start=start, end=end)
    parts, whole = stream(f"values of {tag}", querier.SearchTagValuesV2(request, metadata=METADATA))
    expected = http(f"/api/v2/search/tag/{tag}/values", tempo.SearchTagValuesV2Response())
    assert len(whole.tagValues) > 0 and list(whole.tagValues) == list(expected.tagValues), tag
    said = [value for part in parts for value in part.tagValues]
    assert all(value in whole.tagValues for value in said), tag
    return said


@until_parts_come
def check_names(query, _attempt):
    request = tempo.SearchTagsRequest(query=query, start=start, end=end)
    parts, whole = stream(f"names {query}", querier.SearchTagsV2(request, metadata=METADATA))
    expected = http("/api/v2/search/tags", tempo.SearchTagsV2Response(), q=query)
    assert list(whole.scopes) == list(expected.scopes), query
    names = {(scope.name, tag) for scope in whole.scopes for tag in scope.tags}
    said = [(scope.name, tag) for part in parts for scope in part.scopes for tag in scope.tags]
    assert names.issuperset(said) and len(set(said)) == len(said), query
    return said


def check_flat():
    request = tempo.SearchTagsRequest(start=start, end=end)
    _, whole = stream("flat names", querier.SearchTags(request, metadata=METADATA))
    assert list(whole.tagNames) == list(http("/api/search/tags", tempo.SearchTagsResponse()).tagNames)
    request = tempo.SearchTagValuesRequest(tagName="service.name", start=start, end=end)
    _, whole = stream("flat values", querier.SearchTagValues(request, metadata=METADATA))
    assert list(whole.tagValues) == list(http("/api/search/tag/service.name/values", tempo.SearchTagValuesResponse()).tagValues)


def check_refused():
    request = tempo.SearchRequest(Query="{ a", start=start, end=end)
    try:
        list(querier.Search(request, metadata=METADATA))
    except grpc.RpcError as error:
        assert error.code() == grpc.StatusCode.INVALID_ARGUMENT and "invalid TraceQL query" in error.details(), error
    else:
        raise AssertionError("a query that does not parse was answered")


check_search("{ }", 1000)
check_search("{ resource.service.name = `frontend` && duration > 1ms }", 1000)
check_range("{ } | rate()")
check_range("{ } | count_over_time() by (resource.service.name)")
check_instant("{ } | count_over_time() by (resource.service.name)")
check_values("name")
check_names("{ resource.service.name = `frontend` }")
check_flat()
check_refused()
print("all equal")
