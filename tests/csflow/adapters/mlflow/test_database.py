"""The local database: created at once, migrated after a backup, and never taken for a new one when it was lost."""

from __future__ import annotations

import io
import re
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from PIL import Image

from csflow.adapters.mlflow import database
from csflow.adapters.mlflow.backups import KEPT, back_up, backups_folder, list_backups, restore
from csflow.adapters.mlflow.registry import Registry
from csflow.adapters.mlflow.tracking import Tracker
from csflow.errors import ConfigError, CsflowError, NotRegisteredError, RegistryError, UsageError
from csflow.system.files import sha256_tree
from csflow.system.workspace import Workspace

pytestmark = pytest.mark.slow

DIGEST = "5" * 64
ASKED: dict[str, Callable[[Workspace], object]] = {
    "list lines": lambda workspace: Registry(workspace).lines(),
    "versions": lambda workspace: Registry(workspace).versions("tiles"),
    "champion": lambda workspace: Registry(workspace).find_champion("tiles"),
    "hold": lambda workspace: Registry(workspace).get_hold("tiles"),
    "alias": lambda workspace: Registry(workspace).set_alias("tiles", 1),
    "download": lambda workspace: Registry(workspace).download_detector("tiles", 1, workspace.detectors / "tiles"),
    "runs": lambda workspace: Tracker(workspace).list_runs("tiles", limit=1),
    "run": lambda workspace: Tracker(workspace).read_run("0" * 32),
    "artifact": lambda workspace: Tracker(workspace).fetch_artifact("0" * 32, "x", workspace.root / "out"),
    "begin a run": lambda workspace: Tracker(workspace).start_run("tiles", params={}, tags={}),
    "prepare": lambda workspace: Tracker(workspace).initialise(),
}


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """A workspace with a database, without versions."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    made = Workspace(tmp_path / "home")
    database.initialise(made)
    return made


def file_of(workspace: Workspace) -> Path:
    assert workspace.database is not None
    return workspace.database


def write(path: Path, *statements: str) -> None:
    with closing(sqlite3.connect(path)) as connection, connection:
        for statement in statements:
            connection.execute(statement)


def add_version(path: Path, number: int, *, champion: bool = False) -> None:
    """Write a version as MLflow would, in milliseconds instead of seconds."""
    write(
        path,
        "INSERT OR IGNORE INTO registered_models (name, creation_time, workspace) "
        "VALUES ('csflow-tiles', 1, 'default')",
        "INSERT INTO model_versions (name, version, creation_time, current_stage, run_id, workspace) "
        f"VALUES ('csflow-tiles', {number}, 1, 'None', 'run', 'default')",
    )
    if champion:
        write(
            path,
            "INSERT OR REPLACE INTO registered_model_aliases (alias, version, name, workspace) "
            f"VALUES ('champion', {number}, 'csflow-tiles', 'default')",
        )


def publish(workspace: Workspace) -> None:
    (workspace.detectors / "tiles" / DIGEST).mkdir(parents=True)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def scribble(path: Path) -> None:
    path.write_text("not a database at all, but longer than a hundred bytes" * 10)


def scramble(path: Path) -> None:
    """Keep header and length, but no page of the schema."""
    content = bytearray(path.read_bytes())
    content[100:40_000] = b"\xff" * 39_900
    path.write_bytes(bytes(content))


def without_tables(path: Path) -> None:
    path.unlink()
    write(path, "CREATE TABLE x (y)", "DROP TABLE x")


def test_reading_makes_no_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(NotRegisteredError, match="Run a pipeline first"):
        Tracker(Workspace(tmp_path / "home")).list_runs("tiles", limit=5)
    assert list(tmp_path.iterdir()) == []


def test_database_appears_complete_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)

    def half(path: Path) -> None:
        path.write_bytes(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(database, "_upgrade", half)
    with pytest.raises(CsflowError, match="No space left on device"):
        database.initialise(Workspace(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == [".mlflow.db.lock"]


def test_older_database_is_backed_up_once_before_it_is_migrated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    older = "451aebb31d03"  # the first schema that MLflow migrates
    write(
        tmp_path / "mlflow.db",
        "CREATE TABLE alembic_version (version_num TEXT)",
        f"INSERT INTO alembic_version VALUES ('{older}')",
    )
    migrated: list[Path] = []
    monkeypatch.setattr(database, "_upgrade", migrated.append)
    for _ in range(2):  # the second time as if the migration had been interrupted
        database.initialise(Workspace(tmp_path))
    assert migrated == [tmp_path / "mlflow.db"] * 2
    (copy,) = backups_folder(tmp_path / "mlflow.db").iterdir()
    with closing(sqlite3.connect(copy)) as connection:
        assert connection.execute("SELECT version_num FROM alembic_version").fetchall() == [(older,)]


def test_current_database_is_left_alone(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "_upgrade", lambda _: pytest.fail("migrated"))
    database.initialise(workspace)


@pytest.mark.parametrize("damage", [empty, without_tables, Path.unlink])
def test_a_lost_database_is_refused_while_something_of_it_is_left(
    workspace: Workspace, damage: Callable[[Path], None]
) -> None:
    damage(file_of(workspace))
    before = file_of(workspace).exists()
    publish(workspace)
    for name, ask in ASKED.items():
        with pytest.raises(RegistryError, match=r"registry is lost: .*1 published detector.*csflow restore"):
            pytest.fail(f"{name}: {ask(workspace)}")
    assert file_of(workspace).exists() == before


@pytest.mark.parametrize(
    "left", ["detectors/tiles/" + DIGEST, "endpoints/tiles.json", "runs/" + "a" * 32, "models/" + DIGEST + ".work"]
)
def test_each_thing_that_runs_leave_is_a_reason(workspace: Workspace, left: str) -> None:
    file_of(workspace).unlink()
    (workspace.root / left).parent.mkdir(parents=True, exist_ok=True)
    (workspace.root / left).touch()
    with pytest.raises(RegistryError, match="registry is lost"):
        database.initialise(workspace)
    database.initialise(workspace, anew=True)
    database.initialise(workspace)


def test_a_new_workspace_needs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even after a first run that was killed before there was a database, or a look at the data."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for folder in ("runs/tiles-20260101-000000-1", "data/tiles", "features/x", "endpoints"):
        (tmp_path / folder).mkdir(parents=True)
    empty(tmp_path / "mlflow.db")
    database.initialise(Workspace(tmp_path))
    assert Registry(Workspace(tmp_path)).lines() == []


@pytest.mark.parametrize("damage", [truncate, scribble, scramble])
def test_a_damaged_database_is_named_by_every_question(workspace: Workspace, damage: Callable[[Path], None]) -> None:
    add_version(file_of(workspace), 1, champion=True)
    back_up(file_of(workspace))
    damage(file_of(workspace))
    content = file_of(workspace).read_bytes()
    for name, ask in ASKED.items():
        with pytest.raises(RegistryError, match=r"mlflow\.db is (damaged|not an).*csflow restore newest .*champion 1"):
            pytest.fail(f"{name}: {ask(workspace)}")
    assert file_of(workspace).read_bytes() == content


def test_a_newer_schema_is_named_and_left_alone(workspace: Workspace) -> None:
    write(file_of(workspace), "UPDATE alembic_version SET version_num = 'ffffffffffff'")
    for _ in range(2):
        for name, ask in ASKED.items():
            with pytest.raises(RegistryError, match=r"made by a newer MLflow \(its schema is ffffffffffff"):
                pytest.fail(f"{name}: {ask(workspace)}")
    assert not backups_folder(file_of(workspace)).exists()


def test_an_older_schema_is_migrated_by_whoever_asks_first(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = file_of(workspace)
    with closing(sqlite3.connect(path)) as connection:
        ((head,),) = connection.execute("SELECT version_num FROM alembic_version")
    add_version(path, 1)
    write(path, "UPDATE alembic_version SET version_num = '451aebb31d03'")
    with pytest.raises(RegistryError, match=r"cannot be brought up to the schema.*csflow restore newest"):
        Registry(workspace).versions("tiles")  # the tables are those of the present schema, so the migration fails
    migrate = f"UPDATE alembic_version SET version_num = '{head}'"
    monkeypatch.setattr(database, "_upgrade", lambda path: write(path, migrate))
    assert [version.version for version in Registry(workspace).versions("tiles")] == [1]
    assert "backed up and brought up to date" in capsys.readouterr().err
    assert len(list(backups_folder(path).iterdir())) == 1


@pytest.mark.parametrize(
    "address", ["mlruns", "./mlruns", "file:///srv/mlruns", "/srv/mlruns", "file:mlruns", "ftp://x"]
)
def test_an_address_that_is_no_registry_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    for name, ask in ASKED.items():
        with pytest.raises(ConfigError, match="MLFLOW_TRACKING_URI is .*expected the address of a server"):
            pytest.fail(f"{name}: {ask(Workspace(tmp_path))}")
    assert list(tmp_path.iterdir()) == []


def test_the_last_distinct_states_are_kept(workspace: Workspace) -> None:
    path = file_of(workspace)
    assert back_up(path) is None  # nothing is registered
    for number in range(1, KEPT + 3):
        add_version(path, number, champion=True)
        for _ in range(3):
            assert back_up(path) is not None
    found = list_backups(path)
    assert [backup.versions["tiles"] for backup in found] == list(range(KEPT + 2, 2, -1))
    assert found[0].summary == f"tiles: {KEPT + 2} versions, champion {KEPT + 2}"
    assert len(list(backups_folder(path).iterdir())) == KEPT


def test_a_backup_contains_what_is_still_in_the_write_ahead_log(workspace: Workspace) -> None:
    path = file_of(workspace)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA wal_autocheckpoint = 0")
        add_version(path, 1)
        connection.execute("SELECT count(*) FROM model_versions").fetchone()
        made = back_up(path)
    assert made is not None
    assert list_backups(path)[0].versions == {"tiles": 1}


@pytest.mark.parametrize("damage", [empty, truncate, scribble, scramble, Path.unlink])
def test_a_backup_is_put_back_and_the_former_file_kept(workspace: Workspace, damage: Callable[[Path], None]) -> None:
    path = file_of(workspace)
    add_version(path, 1, champion=True)
    back_up(path)
    damage(path)
    Path(f"{path}-wal").write_bytes(b"of the former database")
    former = path.read_bytes() if path.exists() else None
    backup, before = restore(path, "newest")
    assert backup.champions == {"tiles": 1}
    assert (before.read_bytes() if before else None) == former
    assert not Path(f"{path}-wal").exists()
    assert Registry(workspace).find_version("tiles").version == 1


def test_only_an_intact_backup_is_put_back(workspace: Workspace, tmp_path: Path) -> None:
    path = file_of(workspace)
    add_version(path, 1)
    made = back_up(path)
    assert made is not None
    before = path.read_bytes()
    copy = Path(shutil.copy(made, tmp_path / "copy.db"))
    truncate(made)
    for which in (made.name, str(made)):
        with pytest.raises(RegistryError, match="no intact tracking database"):
            restore(path, which)
    with pytest.raises(UsageError, match=re.escape("There is no backup 'yesterday'")):
        restore(path, "yesterday")
    assert path.read_bytes() == before
    restore(path, str(copy))
    assert Registry(workspace).find_version("tiles", 1).version == 1


def test_a_moved_or_copied_workspace_finds_its_artifacts(workspace: Workspace, tmp_path: Path) -> None:
    tracker = Tracker(workspace)
    run_id = tracker.start_run("tiles", params={}, tags={})
    (tmp_path / "note.txt").write_text("hello")
    tracker.log_artifact(run_id, tmp_path / "note.txt")
    for action, name in ((shutil.copytree, "a copy % ä"), (shutil.move, "moved")):
        new = Workspace(tmp_path / name)
        action(workspace.root, new.root)
        found = Tracker(new).fetch_artifact(run_id, "note.txt", tmp_path / f"out {name}")
        assert found.read_text() == "hello"
        (tmp_path / "more.txt").write_text("more")
        # Another run, because MLflow remembers the address of the former one in this process.
        another = Tracker(new).start_run("tiles", params={}, tags={})
        Tracker(new).log_artifact(another, tmp_path / "more.txt")
        assert len(list(new.root.rglob("more.txt"))) == 1
    assert not workspace.root.exists()


@pytest.mark.parametrize(
    "name", ["a b", "a%20b", "100%", "a#b", "a?b", "it's", 'a"b', "Größe 日本", "a;b&c=d", "$HOME", "~x"]
)
def test_any_path_of_a_workspace_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("CSFLOW_HOME", str(tmp_path / "top" / name))
    workspace = Workspace.from_environment()
    tracker = Tracker(workspace)
    run_id = tracker.start_run("tiles", params={}, tags={})
    (tmp_path / "note.txt").write_text("hello")
    tracker.log_artifact(run_id, tmp_path / "note.txt")
    assert tracker.fetch_artifact(run_id, "note.txt", tmp_path / "out").read_text() == "hello"
    detector = tmp_path / name / "detector"
    detector.mkdir(parents=True)
    (detector / "config.json").write_text("{}")
    example, tags = io.BytesIO(), {"content_key": "k", "detector_digest": sha256_tree(detector)}
    Image.new("RGB", (40, 40)).save(example, "PNG")
    registry = Registry(workspace)
    registry.register(detector, line="tiles", run_id=run_id, tags=tags, example=example.getvalue())
    copy = registry.download_detector("tiles", 1, workspace.detectors / "tiles")
    assert copy.name == tags["detector_digest"]
    assert [path.name for path in (tmp_path / "top").iterdir()] == [name]
    assert {path.name for path in workspace.root.iterdir()} == {
        *(".mlflow.db.lock", ".registry.lock", "mlflow.db"),
        *("mlartifacts", "detectors"),
    }
