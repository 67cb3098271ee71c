"""The compose file of the server profile: what it refers to exists, nothing is open or has a default password."""

from __future__ import annotations

import copy
import os
import re
import shutil
import subprocess
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
FILE = ROOT / "infra" / "compose.yaml"
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
CONDITIONS = {"service_started", "service_healthy", "service_completed_successfully"}
VARIABLE = re.compile(r"\$\{(?P<name>[A-Z0-9_]+)(?P<rest>:[?-][^}]*)?\}")

Compose = dict[str, Any]


@pytest.fixture
def compose() -> Compose:
    loaded: Compose = yaml.safe_load(FILE.read_text())
    return loaded


def problems(compose: Compose) -> Iterator[str]:
    """What an engine would only find when it starts the services, or never."""
    services, volumes = compose["services"], compose["volumes"]
    used = set()
    for name, service in services.items():
        for other, how in service.get("depends_on", {}).items():
            condition = how["condition"]
            if other not in services:
                yield f"{name} waits for {other}, which is no service"
            elif condition not in CONDITIONS:
                yield f"{name}: condition {condition}"
            elif condition == "service_healthy" and "healthcheck" not in services[other]:
                yield f"{name} waits for the health of {other}, which has no healthcheck"
            elif condition == "service_completed_successfully" and services[other].get("restart") != "no":
                yield f"{name} waits for the end of {other}, which is started again and again"
        for mount in service.get("volumes", []):
            source = VARIABLE.sub("folder/", mount).partition(":")[0]
            used.add(source)
            if "/" not in source and source not in volumes:
                yield f"{name} mounts {source}, which is no volume"
        for port in service.get("ports", []):
            if not port.startswith("127.0.0.1:"):
                yield f"{name} listens beyond this machine: {port}"
        if service.get("restart") != "no" and "healthcheck" not in service:
            yield f"{name} has no healthcheck"
        yield from (f"{name}: {problem}" for problem in weaknesses(service))
    yield from (f"volume {each} is mounted nowhere" for each in volumes if each not in used)


def weaknesses(service: Compose) -> Iterator[str]:
    """Passwords in the file, images without a version, containers of ours that may more than they need."""
    for variable, value in service.get("environment", {}).items():
        if re.search("PASSWORD|SECRET|ACCESS_KEY", variable):
            found = VARIABLE.fullmatch(str(value))
            if found is None or not (found["rest"] or "").startswith(":?"):
                yield f"{variable} is {value!r}, expected a variable without which nothing starts"
        elif re.search(r"://[^/\s:@]*:[^/\s@]+@", str(value)):
            yield f"{variable} holds a password"
    image = service["image"]
    default = VARIABLE.fullmatch(image)
    if default is None or not (default["rest"] or "").startswith(":-"):
        yield f"image {image} cannot be named otherwise"
    elif default["rest"].endswith(":latest") or ":" not in default["rest"].removeprefix(":-"):
        yield f"image {image} has no version"
    elif default["rest"].startswith(":-csflow-"):
        locked = {"read_only": True, "user": "10001:10001", "cap_drop": ["ALL"]}
        missing = [key for key, value in locked.items() if service.get(key) != value]
        yield from (f"{key} is {service.get(key)}" for key in missing)
        if not default["rest"].endswith(f":{VERSION}"):
            yield f"image {image} is not of version {VERSION}"


def test_the_services_fit_together(compose: Compose) -> None:
    assert list(problems(compose)) == []
    assert set(compose["services"]) == {"postgres", "s3", "bucket", "mlflow", "server"}


def _drop_health(compose: Compose) -> None:
    del compose["services"]["s3"]["healthcheck"]


def _wait_for_nobody(compose: Compose) -> None:
    compose["services"]["mlflow"]["depends_on"]["database"] = {"condition": "service_healthy"}


def _restart_bucket(compose: Compose) -> None:
    compose["services"]["bucket"]["restart"] = "always"


def _unknown_volume(compose: Compose) -> None:
    compose["services"]["s3"]["volumes"] = ["bucket:/data"]


def _open_port(compose: Compose) -> None:
    compose["services"]["mlflow"]["ports"] = ["5000:5000"]


def _default_password(compose: Compose) -> None:
    compose["services"]["postgres"]["environment"]["POSTGRES_PASSWORD"] = "${POSTGRES_PASSWORD:-mlflow}"


def _password_in_uri(compose: Compose) -> None:
    compose["services"]["mlflow"]["environment"]["MLFLOW_BACKEND_STORE_URI"] = "postgresql://mlflow:pw@postgres/mlflow"


def _latest(compose: Compose) -> None:
    compose["services"]["s3"]["image"] = "${CSFLOW_S3_IMAGE:-versity/versitygw:latest}"


def _fixed_image(compose: Compose) -> None:
    compose["services"]["s3"]["image"] = "versity/versitygw:v1.7.0"


def _old_image(compose: Compose) -> None:
    compose["services"]["mlflow"]["image"] = "${CSFLOW_IMAGE:-csflow-train:0.0.1}"


def _writable(compose: Compose) -> None:
    compose["services"]["server"]["read_only"] = False


@pytest.mark.parametrize(
    ("break_it", "said"),
    [
        (_drop_health, "no healthcheck"),
        (_wait_for_nobody, "database, which is no service"),
        (_restart_bucket, "started again and again"),
        (_unknown_volume, "bucket, which is no volume"),
        (_open_port, "beyond this machine"),
        (_default_password, "POSTGRES_PASSWORD is"),
        (_password_in_uri, "holds a password"),
        (_latest, "has no version"),
        (_fixed_image, "cannot be named otherwise"),
        (_old_image, f"not of version {VERSION}"),
        (_writable, "read_only is False"),
    ],
)
def test_what_is_broken_is_found(compose: Compose, break_it: Callable[[Compose], None], said: str) -> None:
    broken = copy.deepcopy(compose)
    break_it(broken)
    assert any(said in problem for problem in problems(broken))


def test_the_example_names_every_variable_that_is_needed_and_no_secret() -> None:
    needed = {found["name"] for found in VARIABLE.finditer(FILE.read_text()) if (found["rest"] or "").startswith(":?")}
    lines = (FILE.with_name("compose.env.example")).read_text().splitlines()
    example = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
    assert {name for name in needed if example.get(name) == ""} == needed
    assert needed == {"POSTGRES_PASSWORD", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}


def test_the_filled_in_example_stays_out_of_git() -> None:
    done = subprocess.run(["git", "check-ignore", "-q", "infra/compose.env"], cwd=ROOT, timeout=30)
    assert done.returncode == 0


def _compose_command() -> list[str]:
    docker = shutil.which("docker")
    if docker and subprocess.run([docker, "compose", "version"], capture_output=True, timeout=30).returncode == 0:
        return [docker, "compose"]
    if shutil.which("docker-compose"):
        return ["docker-compose"]
    pytest.skip("needs Docker Compose to read its own file (docker compose, or Debian's docker-compose)")


def _config(variables: dict[str, str]) -> subprocess.CompletedProcess[str]:
    environment = {key: os.environ[key] for key in ("PATH", "HOME") if key in os.environ} | variables
    return subprocess.run(
        [*_compose_command(), "-f", str(FILE), "config"], env=environment, capture_output=True, text=True, timeout=60
    )


def test_compose_itself_understands_the_file() -> None:
    done = _config({"POSTGRES_PASSWORD": "p", "AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing"})
    assert done.returncode == 0, done.stderr
    services = yaml.safe_load(done.stdout)["services"]
    assert services["mlflow"]["environment"]["AWS_ACCESS_KEY_ID"] == "testing"


def test_compose_starts_nothing_without_a_password() -> None:
    done = _config({"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing", "POSTGRES_PASSWORD": ""})
    assert done.returncode != 0
    assert "choose a password" in done.stderr
