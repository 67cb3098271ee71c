"""Carrying out a plan over HTTP, with a server that fails in the middle."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from csflow.config import LineConfig, load_line
from csflow.errors import ConfigError, UsageError
from pipelines import scheduling
from pipelines.api import ServerError
from pipelines.schedules import Change, plan_changes
from pipelines.server import Server
from tests.pipelines.kfp_server import Fault, KfpServer

pytestmark = pytest.mark.filterwarnings("ignore")
NOW = datetime(2026, 6, 1, tzinfo=UTC)
MakeLine = Callable[..., LineConfig]


@pytest.fixture
def line(tmp_path: Path) -> MakeLine:
    def make(name: str = "tiles", cron: str = "0 3 * * *", more: str = "") -> LineConfig:
        file = tmp_path / f"{name}.yaml"
        data = "{repo: 'https://git.example/data.git', path: data}"
        schedule = f"{{cron: '{cron}', timezone: Europe/Berlin{more}}}"
        file.write_text(f"line: {name}\ndata: {data}\nschedule: {schedule}\n")
        return load_line(file)

    return make


def bring(kfp: KfpServer, *lines: LineConfig, everything: bool = True) -> list[Change]:
    """What ``csflow schedule --all --yes`` does."""
    server = Server(kfp.url, pause=0.01)
    wanted, packages = scheduling.wanted_of(lines, NOW, None)
    names = frozenset(each.line for each in lines)
    changes = plan_changes(wanted, server.recurring_runs(), lines=names, everything=everything)
    scheduling.apply_changes(server, changes, packages, lambda text: None)
    return changes


def active(kfp: KfpServer) -> list[tuple[str, str]]:
    return [
        (each["display_name"].rsplit("-", 1)[0], each["trigger"]["cron_schedule"]["cron"])
        for each in kfp.recurring.values()
        if each["status"] == "ENABLED"
    ]


def test_lines_come_change_rest_and_go(kfp: KfpServer, line: MakeLine) -> None:
    assert [c.kind for c in bring(kfp, line("tiles"), line("bolts"))] == ["create", "create"]
    assert sorted(active(kfp)) == [("csflow-bolts", "0 0 1 * * *"), ("csflow-tiles", "0 0 1 * * *")]
    assert [c.kind for c in bring(kfp, line("tiles"), line("bolts"))] == ["keep", "keep"]
    assert len(kfp.versions) == 1, "lines with the same resources share one compiled pipeline"

    asked = len(kfp.requests)
    assert [c.kind for c in bring(kfp, line("tiles", "0 4 * * *"), line("bolts"))] == ["keep", "replace"]
    assert sorted(active(kfp)) == [("csflow-bolts", "0 0 1 * * *"), ("csflow-tiles", "0 0 2 * * *")]
    verbs = [r.split(" ")[0] for r in kfp.requests[asked:] if "recurringruns" in r and not r.startswith("GET")]
    assert verbs == ["POST", "POST", "POST", "DELETE"]

    assert [c.kind for c in bring(kfp, line("tiles", "0 4 * * *", ", enabled: false"))] == ["delete", "disable"]
    assert active(kfp) == []
    assert len(kfp.recurring) == 1
    assert [c.kind for c in bring(kfp, line("tiles", "0 4 * * *"))] == ["enable"]
    assert active(kfp) == [("csflow-tiles", "0 0 2 * * *")]
    assert all(len(names) == len({name.rsplit("-", 1)[0] for name in names}) for names in kfp.enabled), "never two"


def test_what_a_recurring_run_is_given(kfp: KfpServer, line: MakeLine) -> None:
    bring(kfp, line("tiles"))
    (made,) = kfp.recurring.values()
    parameters = made["runtime_config"]["parameters"]
    assert set(parameters) == {"line", "force", "shards"}
    assert '"schedule":null' in parameters["line"], "when it runs does not change what it does"
    assert (made["max_concurrency"], made["no_catchup"], made["mode"]) == ("1", True, "ENABLE")
    assert "csflow schedule tiles" in made["description"]


@pytest.mark.parametrize("path", [":disable", "recurringruns$", ":enable", "recurringruns/id"])
@pytest.mark.parametrize("after", [False, True])
def test_a_replacement_that_is_cut_off_leaves_one_schedule_and_is_finished_later(
    kfp: KfpServer, line: MakeLine, path: str, after: bool
) -> None:
    bring(kfp, line("tiles"))
    method = "DELETE" if path.endswith("/id") else "POST"
    kfp.faults.append(Fault(method, path, 503, times=4, after=after))
    new = line("tiles", "0 4 * * *")
    try:
        bring(kfp, new)
        cut_off = False
    except ServerError:
        cut_off = True
    kfp.faults.clear()
    assert len(active(kfp)) == 1, "the former one goes on, or the new one runs already"
    assert cut_off or path == "recurringruns$", "what is created is found again, whatever was answered"
    bring(kfp, new)
    assert active(kfp) == [("csflow-tiles", "0 0 2 * * *")]
    assert len(kfp.recurring) == 1
    assert all(len(names) <= 1 for names in kfp.enabled)


def test_two_files_of_one_line_and_data_of_this_machine_are_refused(line: MakeLine, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Several YAML files describe the same line: tiles"):
        scheduling.wanted_of([line("tiles"), line("tiles")], NOW, None)
    file = tmp_path / "local.yaml"
    file.write_text("line: local\ndata: {repo: .., path: data}\nschedule: {cron: '0 3 * * *'}\n")
    with pytest.raises(UsageError, match="data.repo of local is .* no pod can read"):
        scheduling.wanted_of([load_line(file)], NOW, None)


def test_a_change_is_told_with_its_next_runs_and_the_next_shift(kfp: KfpServer, line: MakeLine) -> None:
    bring(kfp, line("tiles"))
    wanted, _ = scheduling.wanted_of([line("tiles", "0 4 * * *")], NOW, None)
    (change,) = plan_changes(wanted, Server(kfp.url).recurring_runs(), lines=frozenset({"tiles"}), everything=True)
    text = "\n".join(scheduling.describe(change, NOW))
    assert "~ tiles: replace 0 4 * * * Europe/Berlin (was 0 3 * * * Europe/Berlin)" in text
    assert "in UTC 0 0 2 * * *, next 2026-06-01 02:00, 2026-06-02 02:00" in text
    assert "daylight saving changes on 2026-10-25: then it must become 0 0 3 * * *" in text
    (gone,) = plan_changes([], Server(kfp.url).recurring_runs(), lines=frozenset({"bolts"}), everything=True)
    assert scheduling.describe(gone, NOW) == [
        "- tiles: delete 0 3 * * * Europe/Berlin, 0 0 1 * * * in UTC (there is no such line any more)"
    ]
