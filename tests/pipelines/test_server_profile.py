"""The retraining pipeline against PostgreSQL, an S3 store over HTTP and an MLflow server: real parts, own processes.

Nothing but environment variables tells the two profiles apart.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from csflow.adapters.deployment.local import LocalEndpoints
from csflow.adapters.mlflow.page import read_tags
from tests.pipelines.test_local_run import Factory
from tests.servers import ObjectStore, mlflow_server, object_store, postgres

pytestmark = [pytest.mark.postgres, pytest.mark.slow, pytest.mark.timeout(1800)]
STORE = "csflow"
"""Prefix of csflow's own store in the bucket; MLflow's artifacts lie beside it below ``mlflow/``."""


class Profile(Factory):
    """A machine that runs a factory's line: its own workspace, and variables of its environment."""

    def __init__(self, factory: Factory, home: Path, **variables: str) -> None:
        self.root, self.repo, self.yaml = factory.root, factory.repo, factory.yaml
        self.home, self.variables = home, variables

    @property
    def environment(self) -> dict[str, str]:
        elsewhere = ("MLFLOW_", "AWS_", "CSFLOW_STORE")
        own = {name: value for name, value in super().environment.items() if not name.startswith(elsewhere)}
        return own | self.variables

    def stop(self) -> None:
        from csflow.system.workspace import Workspace

        LocalEndpoints(Workspace(self.home)).stop("plates")


@dataclass(frozen=True)
class Site:
    """The servers of a factory, its line, and what the line's first run came to."""

    tracking_uri: str
    store: ObjectStore
    factory: Factory
    profile: Profile
    first: dict[str, Any]

    @property
    def variables(self) -> dict[str, str]:
        return _variables(self.tracking_uri, self.store)


def _variables(tracking_uri: str, store: ObjectStore) -> dict[str, str]:
    return {"MLFLOW_TRACKING_URI": tracking_uri, "CSFLOW_STORE": f"{store.uri}/{STORE}", **store.environment}


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    logs = tmp_path_factory.mktemp("servers")
    factory = Factory(tmp_path_factory.mktemp("factory"))
    with (
        postgres(logs) as database,
        object_store(logs) as store,
        mlflow_server(database, store, logs) as uri,
    ):
        profile = Profile(factory, factory.root / "server-home", **_variables(uri, store))
        try:
            yield Site(uri, store, factory, profile, profile.pipeline())
        finally:
            profile.stop()


def test_the_first_run_is_promoted_and_served(site: Site) -> None:
    from mlflow import MlflowClient

    from csflow.adapters.deployment.local import LocalEndpoints
    from csflow.system.workspace import Workspace

    assert (site.first["outcome"], site.first["model_version"]) == ("promoted", 1)
    assert site.first["alias"] == "champion"
    champion = MlflowClient(site.tracking_uri).get_model_version_by_alias("csflow-plates", "champion")
    assert int(champion.version) == 1
    assert not list(site.profile.home.glob("mlflow.db*")), "the server keeps runs and models, not a database here"

    status = LocalEndpoints(Workspace(site.profile.home)).status("plates")
    assert status is not None
    assert (status.url, status.version) == (site.first["endpoint"], "1")
    blotch, good = (site.factory.repo / "data" / "test" / kind / "000.png" for kind in ("blotch", "good"))
    found = LocalEndpoints(Workspace(site.profile.home)).score(status, [blotch.read_bytes(), good.read_bytes()])
    assert found[0]["score"] > found[1]["score"]
    assert found[0]["decision"] == "defective"


def test_the_server_keeps_the_whole_run(site: Site) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(site.tracking_uri)
    run = client.get_run(site.first["run_id"])
    assert (run.info.status, run.data.tags["outcome"]) == ("FINISHED", "promoted")
    assert run.inputs.dataset_inputs[0].dataset.name == "plates"
    assert run.data.metrics["accuracy/image_auroc"] == site.first["image_auroc"]
    curve = client.get_metric_history(site.first["run_id"], "curves/nll")
    assert sorted(point.step for point in curve) == [1, 2, 3]
    assert {item.path for item in client.list_artifacts(site.first["run_id"])} >= {"data", "report"}


def test_the_detector_went_through_the_server_into_the_bucket(site: Site, tmp_path: Path) -> None:
    from mlflow import MlflowClient

    from csflow.system.files import sha256_tree

    client = MlflowClient(site.tracking_uri)
    assert client.get_run(site.first["run_id"]).info.artifact_uri.startswith("mlflow-artifacts:/")
    keys = site.store.keys("mlflow/")
    (weights,) = [key for key in keys if key.endswith("/model.safetensors")]
    folder = weights.removesuffix("model.safetensors")
    for key in keys:
        if key.startswith(folder):
            place = tmp_path / "detector" / key.removeprefix(folder)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(site.store.read(key))
    champion = client.get_model_version_by_alias("csflow-plates", "champion")
    assert sha256_tree(tmp_path / "detector") == read_tags(champion.tags)["detector_digest"]


def test_the_champion_is_published_in_the_store_under_its_digest(site: Site) -> None:
    from mlflow import MlflowClient

    champion = MlflowClient(site.tracking_uri).get_model_version_by_alias("csflow-plates", "champion")
    published = f"{STORE}/detectors/plates/{read_tags(champion.tags)['detector_digest']}/"
    names = {key.removeprefix(published) for key in site.store.keys(published)}
    assert names >= {"config.json", "model.safetensors", "backbone.safetensors", "calibration.json", "lineage.json"}
    assert site.store.keys(f"{STORE}/features/"), "features are shared by all runs"


def test_commands_read_from_the_server(site: Site, tmp_path: Path) -> None:
    why = site.profile.csflow("why", "plates")
    assert "promoted" in why.stdout, why.stderr
    compared = site.profile.csflow("compare", "plates")
    assert "image AUROC" in compared.stdout, compared.stderr
    missing = site.profile.csflow("why", "plates@7")
    assert missing.returncode == 1
    assert "has no version or alias '7'. Versions: 1." in missing.stderr
    assert "Traceback" not in missing.stderr
    image = site.factory.repo / "data" / "test" / "blotch" / "000.png"
    scored = site.profile.csflow("score", str(image), "--model", "plates@champion", "--out", str(tmp_path), "--json")
    assert '"defective"' in scored.stdout, scored.stderr


def test_nothing_changed_means_unchanged_here_and_on_a_fresh_machine(site: Site, tmp_path: Path) -> None:
    done = site.profile.run("pipelines", "run", str(site.factory.yaml))
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{site.tracking_uri}/#/experiments/" in done.stdout, "where to see the runs"
    again = json.loads((site.profile.home / "summary.json").read_text())
    assert (again["outcome"], again["model_version"]) == ("unchanged", 1)
    assert again["endpoint"] == site.first["endpoint"]

    fresh = Profile(site.factory, tmp_path / "home", **site.variables)
    try:
        elsewhere = fresh.pipeline()
    finally:
        fresh.stop()
    assert (elsewhere["outcome"], elsewhere["model_version"]) == ("unchanged", 1)
    assert elsewhere["endpoint"], "the champion came from the server and is served"
    assert not (fresh.home / "models").exists(), "nothing was trained"


def test_the_embedded_profile_gives_the_same_result(site: Site) -> None:
    embedded = Profile(site.factory, site.factory.root / "embedded-home")
    assert not {"MLFLOW_TRACKING_URI", "CSFLOW_STORE"} & embedded.environment.keys()
    try:
        result = embedded.pipeline()
    finally:
        embedded.stop()
    assert (embedded.home / "mlflow.db").exists()
    assert result["outcome"] == "promoted"
    same = ("data_md5", "data_digest", "git_rev", "alpha", "promise")
    assert {name: result[name] for name in same} == {name: site.first[name] for name in same}
    for metric in ("image_auroc", "pixel_auroc", "threshold"):
        assert result[metric] == pytest.approx(site.first[metric], rel=1e-3), metric


def test_a_server_that_is_gone_is_named(site: Site, tmp_path: Path) -> None:
    variables = site.variables | {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9"}
    done = Profile(site.factory, tmp_path / "home", **variables).run("pipelines", "run", str(site.factory.yaml))
    assert done.returncode == 1
    assert "No MLflow server answers at http://127.0.0.1:9" in done.stderr
    assert "Traceback" not in done.stderr
    assert list((tmp_path / "home").glob("runs/*/run.log")), "the log of the run stays"
