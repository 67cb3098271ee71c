"""Which versions stay: the reasons one by one."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from csflow.adapters.mlflow.registry import Registry
from csflow.adapters.mlflow.versions import Version
from csflow.errors import RegistryError
from csflow.release import promotion
from csflow.release.retention import kept
from csflow.release.settled import former_champions
from csflow.runs.services import Services
from csflow.system.workspace import Workspace

NOW = datetime(2026, 6, 1, tzinfo=UTC)
BEFORE = NOW - timedelta(days=7)


def version(number: int, *aliases: str, days: int = 100, **tags: str) -> Version:
    tags = {"detector_digest": f"d{number}", "decision": "kept_worse"} | tags
    return Version("tiles", number, "run", NOW - timedelta(days=days), aliases, tags)


def reasons(versions: list[Version], **more: object) -> dict[int, list[str]]:
    settings = {"newest": 1, "served": (), "hold": None, "before": BEFORE} | more
    return kept(versions, **settings)  # type: ignore[arg-type]


def test_the_newest_stay_and_the_rest_goes() -> None:
    versions = [version(number) for number in (1, 2, 3, 4)]
    assert reasons(versions, newest=2) == {4: ["newest"], 3: ["newest"]}
    assert reasons(versions, newest=0) == {4: ["newest"]}
    assert reasons([]) == {}


def test_any_alias_keeps_its_version() -> None:
    versions = [version(1, "champion"), version(2, "audited", "b"), version(3), version(4)]
    assert reasons(versions) == {4: ["newest"], 2: ["audited", "b"], 1: ["champion"]}


def test_what_an_endpoint_names_stays() -> None:
    assert reasons([version(1), version(2), version(3)], served={"d1"}) == {1: ["endpoint"], 3: ["newest"]}


def test_recent_ones_stay() -> None:
    assert reasons([version(1, days=6), version(2), version(3)]) == {1: ["recent"], 3: ["newest"]}


def test_a_hold_keeps_what_it_names() -> None:
    versions = [version(1, "champion", decision="promoted"), version(2, decision="rolled_back"), version(3)]
    hold = {"reason": "false alarms", "rolled_back": "2"}
    assert reasons(versions, hold=hold) == {1: ["champion"], 2: ["hold"], 3: ["newest"]}


def test_the_best_champion_so_far_and_the_one_before_stay() -> None:
    versions = [
        version(1, decision="promoted", image_auroc="0.97"),
        version(2, decision="promoted", image_auroc="0.99"),
        version(3, decision="promoted", image_auroc="0.98"),
        version(4, "champion", decision="promoted", image_auroc="0.98"),
        version(5, image_auroc="0.999"),
        version(6),
    ]
    assert reasons(versions) == {6: ["newest"], 4: ["champion"], 3: ["rollback"], 2: ["best so far"]}


@pytest.mark.parametrize("champion", [1, 2, 3, 4])
def test_rollback_goes_to_what_is_kept_for_it(champion: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the rollback itself."""
    versions = [
        version(number, *(["champion"] if number == champion else []), decision=decision)
        for number, decision in enumerate(["promoted", "kept_worse", "promoted", "promoted"], 1)
    ]
    monkeypatch.setattr(Registry, "versions", lambda *_: versions)
    try:
        expected = promotion._former_champion(Services.of(Workspace(Path("x"))), versions[champion - 1], None)
    except RegistryError:
        assert former_champions(versions) == []
    else:
        assert former_champions(versions)[0] == expected
        assert "rollback" in reasons(versions)[expected.version]
