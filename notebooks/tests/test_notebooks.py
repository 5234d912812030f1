"""The notebooks, run from top to bottom against the server; their figures against what plain Python finds in the recorded files."""

from __future__ import annotations

import base64
import json
import re
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

import naive
import recorded

FOLDER = Path(__file__).resolve().parents[1]
BARS = "[[bar.get_gid(), bar.get_x(), bar.get_width()] for bar in {}.patches]"


def run(name: str, monkeypatch: pytest.MonkeyPatch, server_url: str, **probes: str) -> dict[str, Any]:
    """Runs a notebook, compares its texts with the committed ones, and gives the values of expressions at its end."""
    monkeypatch.setenv("SKEIN_URL", server_url)
    # Jupyter chooses how figures are shown; a choice for this process is not one for the notebook.
    monkeypatch.delenv("MPLBACKEND", raising=False)
    committed = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    notebook = nbformat.from_dict(json.loads(json.dumps(committed)))
    asked = ", ".join(f"{key!r}: {expression}" for key, expression in probes.items())
    probe = f"import json as json_; print(json_.dumps({{{asked}}}, default=lambda number: number.item()))"
    notebook.cells.append(nbformat.v4.new_code_cell(probe))
    NotebookClient(notebook, timeout=150, kernel_name="python3", resources={"metadata": {"path": str(FOLDER)}}).execute()
    answer = notebook.cells.pop().outputs[0].text
    for old, new in zip(committed.cells, notebook.cells, strict=True):
        if old.cell_type == "code":
            assert old.execution_count is not None, f"not executed: {old.source}"
            assert texts(old) == texts(new), f"stale in {name}.ipynb: {old.source}"
    found: dict[str, Any] = json.loads(answer)
    return found


def texts(cell: Any) -> list[str]:
    """What a cell printed and gave; images are compared by their existence."""
    found = []
    for output in cell.outputs:
        if output.output_type == "stream":
            assert output.name == "stdout", output.text
            found.append(output.text)
        else:
            found.append(output.data.get("text/plain", ""))
            if "image/png" in output.data:
                image = base64.b64decode(output.data["image/png"])
                assert image.startswith(b"\x89PNG") and 2_000 < len(image) < 200_000
                found.append("an image")
    return found


def one_in_a_hundred(values: list[int]) -> int:
    """The 99th percentile by nearest rank."""
    return sorted(values)[-(-len(values) * 99 // 100) - 1]


def test_the_slowest_percentile(monkeypatch: pytest.MonkeyPatch, server_url: str) -> None:
    found = run(
        "01-slowest-percentile",
        monkeypatch,
        server_url,
        p99="p99",
        requests="len(requests)",
        path="path[['service', 'name', 'slow', 'other']].values.tolist()",
        bars="[bar.get_width() for bar in ax.patches]",
        histogram="counts.tolist()",
        waterfall=BARS.format("waterfall"),
    )
    traces = recorded.traces("trainticket")
    durations = {trace: max(span.end for span in spans) - min(span.start for span in spans) for trace, spans in traces.items()}
    p99 = one_in_a_hundred(list(durations.values()))
    slow = {trace for trace, duration in durations.items() if duration > p99}
    assert found["requests"] == len(traces) == sum(found["histogram"])
    assert found["p99"] == pytest.approx(p99 / 1e6)
    expected: dict[tuple[str, str], list[float]] = defaultdict(lambda: [0.0, 0.0])
    for trace, spans in traces.items():
        critical = naive.critical_path(spans)
        for span in spans:
            share = critical[span.id] / 1e6 / (len(slow) if trace in slow else len(traces) - len(slow))
            expected[span.service, span.name][trace not in slow] += share
    assert {(service, name): [pytest.approx(of_slow), pytest.approx(other)] for service, name, of_slow, other in found["path"]} == dict(expected)
    top = sorted((of_slow for of_slow, _ in expected.values()), reverse=True)[:10]
    assert sorted(found["bars"][:10], reverse=True) == pytest.approx(top)
    slowest = max(durations, key=lambda trace: durations[trace])
    begin = min(span.start for span in traces[slowest])
    places = {span.id: [(span.start - begin) / 1e9, span.duration / 1e9] for span in traces[slowest]}
    assert len(found["waterfall"]) == 40
    assert all([left, width] == pytest.approx(places[gid]) for gid, left, width in found["waterfall"])


def test_failed_requests(monkeypatch: pytest.MonkeyPatch, server_url: str) -> None:
    found = run(
        "02-failed-requests",
        monkeypatch,
        server_url,
        found="found",
        unexplained="unexplained",
        attributes="requests.column_names",
        bars="[bar.get_width() for bar in ax.patches]",
    )
    requests = [span for span in recorded.spans("shellci") if span.kind in ("client", "server")]
    left = [span for span in requests if span.status == "error"]
    assert [cause["failures"] for cause in found["found"]] == sorted((cause["failures"] for cause in found["found"]), reverse=True)
    for cause in found["found"]:
        field, key = cause["attribute"].split(".", 1)
        having = [span for span in requests if str((span.attributes if field == "span" else span.resource).get(key)) == cause["value"]]
        assert cause["good"] == sum(span.status != "error" for span in having)
        assert cause["confirmed"] == sum(span.status == "error" for span in having)
        assert cause["failing"] == pytest.approx(cause["confirmed"] / len(having)) and cause["failing"] >= 0.9
        explained = [span for span in having if span in left]
        assert cause["failures"] == len(explained)
        # No other value explains more.
        assert len(explained) == max(most_explained(requests, left, name) for name in found["attributes"] if "." in name)
        left = [span for span in left if span not in explained]
    assert found["unexplained"] == len(left) and max(most_explained(requests, left, name) for name in found["attributes"] if "." in name) < 5
    assert found["bars"] == [cause["failures"] for cause in found["found"]] + [len(left)]


def most_explained(requests: list[recorded.Span], left: list[recorded.Span], attribute: str) -> int:
    """The most of the failures `left` that a value of an attribute marks which nine in ten requests with it share."""
    if re.search("status|error|exit_code|pid|parent_pid|body.size|content_length|duration", attribute):
        return 0
    field, key = attribute.split(".", 1)

    def value(span: recorded.Span) -> str:
        return str((span.attributes if field == "span" else span.resource).get(key))

    all_, bad = Counter(map(value, requests)), Counter(value(span) for span in requests if span.status == "error")
    marked = Counter(value(span) for span in left if value(span) != "None")
    return max((count for name, count in marked.items() if bad[name] >= 0.9 * all_[name]), default=0)


def test_the_service_graph(monkeypatch: pytest.MonkeyPatch, server_url: str) -> None:
    arrows = "sorted(t.get_gid() for t in graph.texts if getattr(t, 'arrow_patch', None) is not None)"
    found = run(
        "03-service-graph",
        monkeypatch,
        server_url,
        edges="[[edge['client'], edge['server'], edge['calls']] for edge in edges.to_pylist()]",
        arrows=arrows,
        services="sorted(names)",
        leaned_on="leaned_on[['service', 'callers', 'requests']].values.tolist()",
    )
    truth = json.loads((recorded.DATA / "trainticket.truth.json").read_text())["service_edges"]
    expected = {(edge["parent"], edge["child"]): edge["calls"] for edge in truth}
    assert {(client, server): calls for client, server, calls in found["edges"]} == expected
    assert found["arrows"] == sorted(f"{client} > {server}" for client, server in expected)
    assert found["services"] == sorted({service for edge in expected for service in edge})
    callers = Counter(server for client, server in expected)
    requests: dict[str, set[str]] = defaultdict(set)
    for span in recorded.spans("trainticket"):
        requests[span.service].add(span.trace)
    assert [count for _, count, _ in found["leaned_on"]] == sorted(callers.values(), reverse=True)[:8]
    assert all(callers[service] == count and len(requests[service]) == passing for service, count, passing in found["leaned_on"])


def test_the_regression(monkeypatch: pytest.MonkeyPatch, server_url: str) -> None:
    found = run(
        "04-regression",
        monkeypatch,
        server_url,
        minutes="minutes[['requests', 'median_ms']].values.tolist()",
        line="[float(value) for value in line.get_ydata()]",
        before="before.num_rows",
        during="during.num_rows",
        changes="[[list(path), change] for path, change in changes.items()]",
        bars=BARS.format("ax"),
        colors="[list(bar.get_facecolor()) for bar in ax.patches]",
    )
    windows = [recorded_window("04:19", "04:21"), recorded_window("04:27", "04:30")]
    before, during = ([span for spans in window for span in spans] for window in windows)
    assert (found["before"], found["during"]) == (len(before), len(during))
    old, new = (naive.self_time_by_path(window) for window in windows)
    expected = {path: new.get(path, 0.0) - old.get(path, 0.0) for path in {*old, *new}}
    assert {tuple(path): pytest.approx(change, abs=1e-3) for path, change in found["changes"]} == expected
    culprit, change = max(expected.items(), key=lambda item: item[1])
    assert found["changes"][0][0] == list(culprit) and culprit[-1] == "frontend: hipstershop.CartService/GetCart"
    # The widest red rectangle is the culprit, as wide as what it and what it called took.
    width, color = next((bar[2], color) for bar, color in zip(found["bars"], found["colors"]) if bar[0] == " > ".join(culprit))
    assert color == [1, 0, 0, 1]
    assert width == pytest.approx(sum(nanos for path, nanos in new.items() if path[: len(culprit)] == culprit) / 1e6)
    assert found["line"] == [median for _, median in found["minutes"]]
    for (requests, median), window in zip(found["minutes"][:2], [recorded_window("04:19", "04:20"), recorded_window("04:20", "04:21")]):
        durations = sorted(max(span.end for span in spans) - min(span.start for span in spans) for spans in window)
        middle = len(durations) // 2
        assert requests == len(durations)
        assert median == pytest.approx((durations[middle] + durations[-middle - 1]) / 2e6, rel=1e-6)


def recorded_window(start: str, end: str) -> list[list[recorded.Span]]:
    """Traces of OnlineBoutique that begin in a window of its morning."""
    midnight = 1_661_126_400_000_000_000  # 2022-08-22T00:00:00Z
    bounds = [midnight + (int(time[:2]) * 60 + int(time[3:])) * 60_000_000_000 for time in (start, end)]
    return [spans for spans in recorded.traces("onlineboutique").values() if bounds[0] <= min(span.start for span in spans) < bounds[1]]


#: Dollars per million tokens in and out.
PRICES = {
    "gpt-4o": (2.50, 10.00),
    "gpt-4o-mini": (0.15, 0.60),
    "gpt-4.1": (2.00, 8.00),
    "gemini-2.0-flash": (0.10, 0.40),
    "gemini-2.5-flash": (0.30, 2.50),
    "claude-sonnet-4-5": (3.00, 15.00),
}


def test_the_calls_of_language_models(monkeypatch: pytest.MonkeyPatch, server_url: str) -> None:
    found = run(
        "05-llm-calls",
        monkeypatch,
        server_url,
        models="by_model[['model', 'calls', 'counted', 'hidden']].values.tolist()",
        costs="costs[['model', 'input', 'billed_output', 'dollars']].values.tolist()",
        tokens="[[bar.get_x(), bar.get_width()] for bar in tokens.patches]",
        cents="[bar.get_width() for bar in dollars.patches]",
        waterfall=BARS.format("waterfall"),
    )
    calls, counted, hidden = Counter[str](), Counter[str](), Counter[str]()
    costs: dict[str, list[float]] = defaultdict(lambda: [0, 0, 0.0])
    for span in recorded.spans("genai"):
        if not is_call(span) or any(is_call(child) for child in span.children):
            continue
        parents = [parent for parent in recorded.traces("genai")[span.trace] if parent.id == span.parent and is_call(parent)]
        # What the span does not say, the one around it may.
        said = {**(parents[0].attributes if parents else {}), **span.attributes}
        names = ["gen_ai.response.model", "gen_ai.request.model", "llm.model_name", "langfuse.observation.model.name"]
        model = next(str(span.attributes[name]) for name in names if name in span.attributes)
        model = re.sub("-20[0-9-]+$", "", model.rpartition("/")[2])
        calls[model] += 1
        tokens = said.get("gen_ai.usage.input_tokens", said.get("llm.token_count.prompt"))
        if tokens is None:
            continue
        counted[model] += 1
        output = int(said.get("gen_ai.usage.output_tokens", said.get("llm.token_count.completion")))
        total = int(said.get("llm.token_count.total", int(tokens) + output))
        hidden[model] += total - int(tokens) - output
        price = PRICES[model]
        of_model = costs[model]
        of_model[0] += int(tokens)
        of_model[1] += total - int(tokens)
        of_model[2] += (int(tokens) * price[0] + (total - int(tokens)) * price[1]) / 1e6
    assert found["models"] == [[model, calls[model], counted[model], hidden[model]] for model in sorted(calls)]
    assert {model: pytest.approx(row) for model, *row in found["costs"]} == dict(costs)
    order = [model for model, *_ in found["costs"]]
    assert found["cents"] == pytest.approx([100 * costs[model][2] for model in order]) and found["cents"] == sorted(found["cents"], reverse=True)
    bars = [[0, costs[model][0]] for model in order] + [[costs[model][0], costs[model][1]] for model in order]
    assert found["tokens"] == bars
    agent = next(span for span in recorded.spans("genai") if span.name == "claude.conversation")
    spans = recorded.traces("genai")[agent.trace]
    begin = min(span.start for span in spans)
    expected = {span.id: [(span.start - begin) / 1e9, span.duration / 1e9] for span in spans}
    assert {gid: pytest.approx([left, width]) for gid, left, width in found["waterfall"]} == expected


def is_call(span: recorded.Span) -> bool:
    return span.attributes.get("langfuse.observation.type") == "GENERATION"


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.ipynb")), ids=lambda path: path.stem)
def test_committed_notebooks_name_no_machine(path: Path) -> None:
    text = path.read_text()
    assert len(text) < 400_000
    for private in ("/home/", "/root/", "/tmp/", "/work/", "127.0.0.1", "localhost"):
        # Addresses that were recorded are data.
        mentions = text.replace("http://127.0.0.1:12345/", "").replace("HOST", "")
        assert private not in mentions, private


def test_there_are_five() -> None:
    assert len(list(FOLDER.glob("*.ipynb"))) == 5
