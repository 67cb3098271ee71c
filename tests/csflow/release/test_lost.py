"""A registry that does not know what is published or served is refused before anything is trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from csflow.adapters.mlflow.registry import Registry
from csflow.adapters.mlflow.versions import CHAMPION_SINCE, Version
from csflow.adapters.storage import Store
from csflow.errors import RegistryError
from csflow.release.lost import require_history, start_over
from csflow.runs.services import Services
from csflow.system.workspace import Workspace

ONE, TWO, FIVE = "1" * 64, "2" * 64, "5" * 64


def version(number: int, digest: str, *aliases: str, **tags: str) -> Version:
    return Version("tiles", number, "run", datetime.now(UTC), aliases, {"detector_digest": digest, **tags})


@pytest.fixture
def services(home: Path) -> Services:
    made = Services.of(Workspace(home))
    made.tracker.initialise()
    return made


def publish(services: Services, *digests: str) -> None:
    for digest in digests:
        (services.workspace.detectors / "tiles" / digest).mkdir(parents=True)


def serve(services: Services, digest: str) -> None:
    services.workspace.endpoints.mkdir(parents=True)
    (services.workspace.endpoints / "tiles.json").write_text(f'{{"digest": "{digest}"}}')


def test_a_line_that_is_known_or_new_may_be_trained(services: Services) -> None:
    require_history(services, "tiles", [])
    publish(services, ONE)
    serve(services, TWO)
    require_history(services, "tiles", [version(2, TWO, "champion"), version(1, ONE)])
    require_history(services, "wood", [])


@pytest.mark.parametrize("leave", [lambda services: publish(services, FIVE), lambda services: serve(services, FIVE)])
@pytest.mark.parametrize("known", [[], [version(1, ONE, "champion")]])
def test_what_belongs_to_no_version_stops_a_run_until_a_person_accepts_it(
    services: Services, leave: Callable[[Services], None], known: list[Version]
) -> None:
    leave(services)
    with pytest.raises(RegistryError, match=r"has lost versions of tiles: 1 .*555555555555.*--start-over tiles"):
        require_history(services, "tiles", known)
    assert start_over(services, []) == {"tiles": 1}
    require_history(services, "tiles", known)
    publish(services, TWO)
    with pytest.raises(RegistryError, match="222222222222"):
        require_history(services, "tiles", known)


def test_a_line_that_the_registry_has_lost_is_no_new_line(services: Services) -> None:
    publish(services, FIVE)
    for ask in (services.registry.versions, services.registry.find_champion, services.registry.get_hold):
        with pytest.raises(RegistryError, match=r"has lost the line 'tiles'.*csflow restore"):
            ask("tiles")
    start_over(services, ["tiles"])
    assert services.registry.versions("tiles") == []
    assert services.registry.find_champion("wood") is None


def test_the_store_counts_as_well(services: Services, bucket: str) -> None:
    shared = replace(services, store=Store(bucket, "plant"))
    assert shared.store is not None
    shared.store.write(f"detectors/tiles/{FIVE}.index.json", b"{}")
    shared.store.write(f"detectors/tiles-2/{ONE}.index.json", b"{}")
    with pytest.raises(RegistryError, match="has lost versions of tiles: 1 "):
        require_history(shared, "tiles", [])
    start_over(shared, ["tiles"])
    require_history(shared, "tiles", [])


def test_a_champion_that_was_deleted_has_to_be_replaced_by_a_person(services: Services) -> None:
    known = [version(3, ONE, decision="kept_worse"), version(2, TWO, **{CHAMPION_SINCE: "2026-01-02"}),
             version(1, FIVE, decision="promoted", **{CHAMPION_SINCE: "2026-01-01"})]  # fmt: skip
    with pytest.raises(RegistryError, match=r"no champion although it had one.*csflow promote tiles@2"):
        require_history(services, "tiles", known)
    require_history(services, "tiles", [version(1, ONE, decision="kept_worse")])


def test_deleting_the_champion_is_not_called_never_promoted(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = [version(1, ONE, decision="promoted")]
    monkeypatch.setattr(Registry, "versions", lambda self, line: known)
    with pytest.raises(RegistryError, match=r"its version or alias was deleted.*csflow promote tiles@1"):
        services.registry.find_version("tiles")
    known[0] = version(1, ONE, decision="kept_worse")
    with pytest.raises(RegistryError, match="none of its versions"):
        services.registry.find_version("tiles")
