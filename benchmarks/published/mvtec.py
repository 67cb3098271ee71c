"""Measure Table 1: every class of MVTec AD on all its images and on 16 of them, and all classes as one."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from csflow.config import DataConfig, LineConfig, RolesConfig
from csflow.data.manifest import Manifest, build_manifest
from csflow.errors import ConfigError, DataError
from csflow.features.cache_manifest import CacheManifest
from csflow.system.progress import say
from csflow.system.workspace import Workspace
from published.log import TableRun
from published.mvtec_paper import Average, Group, PaperClass, PaperTable, averages
from published.mvtec_table import markdown, show
from published.protocol import FOLDER, Protocol, RowSpec
from published.runs import Material, gather, measure
from published.table import row_of, what_failed, write_result


@dataclass(frozen=True)
class Class:
    """A class that is present: its manifest, and the paper's figures for it."""

    name: str
    manifest: Manifest
    paper: PaperClass | None


def run_table_1(given: argparse.Namespace, protocol: Protocol, command: str) -> int:
    """Measure all classes below ``--data``; return 0 unless one failed.

    Raises:
        ConfigError: If ``--data`` is missing.
        DataError: If it is no folder of classes.
    """
    if given.data is None:
        raise ConfigError("Table 1 needs --data, a folder with one subfolder a class in MVTec AD layout.")
    quoted = PaperTable.model_validate(yaml.safe_load((FOLDER / "table1-paper.yml").read_text()))
    classes = find_classes(given.data, quoted)
    workspace = Workspace.from_environment()
    run = TableRun(workspace, "mvtec", "table 1")
    study = Study(protocol, classes, given.quick, workspace, given.seeds, run)
    rows: list[dict[str, Any]] = []
    with run.open():
        for row in protocol.rows:
            measured = study.joint(row) if row.joint else study.each(row)
            for found in measured:
                rows.append(found)
                if given.json:
                    _write(given.json, protocol, rows, quoted, command)
        show(rows, quoted, protocol.rows, quick=given.quick)
        if given.markdown:
            print(markdown(rows, quoted, protocol.rows))
        run.finish([given.json] if given.json else [], f"{len(rows)} rows")
    return int(any("error" in row for row in rows))


def find_classes(root: Path, quoted: PaperTable) -> list[Class]:
    """Find the folders below ``root`` that contain ``train/good``, in the paper's order, others after them.

    Raises:
        DataError: If there are none, or one is not in MVTec AD layout.
    """
    folders = sorted(folder.parent.parent for folder in root.glob("*/train/good"))
    if not folders:
        raise DataError(_no_class(root))
    missing = sorted(set(quoted.classes) - {folder.name for folder in folders})
    say(f"{root}: {len(folders)} classes{', not ' + ', '.join(missing) if missing else ''}")
    order = {name: index for index, name in enumerate(quoted.classes)}
    folders.sort(key=lambda folder: (order.get(folder.name, len(order)), folder.name))
    everything = RolesConfig(calibrate=0.0, gate=0.0)
    return [
        Class(folder.name, build_manifest(folder, line=_line_name(folder.name), roles=everything),
              quoted.classes.get(folder.name))
        for folder in folders
    ]  # fmt: skip


def _no_class(root: Path) -> str:
    """Say what is wrong with a folder, and which folder was probably meant."""
    if not root.is_dir():
        return f"--data {root} is not a folder."
    if (root / "train" / "good").is_dir():
        return f"{root} is a single class. Give the folder of all classes: --data {root.resolve().parent}"
    deeper = next(iter(sorted(root.glob("*/*/train/good"))), None)
    if deeper is not None:
        return f"{root} holds no class, but {deeper.parents[2]} does. Give that: --data {deeper.parents[2]}"
    return f"{root} holds no class. Expected folders such as {root / 'bottle' / 'train' / 'good'}."


@dataclass(frozen=True)
class Study:
    """All rows of the table.

    Attributes:
        protocol: The models to train.
        classes: The classes to train on.
        quick: True to show only that everything works.
        workspace: Folder of the store, the models and earlier measurements.
        seeds: Seeds to use instead of the protocol's.
        run: Logs the measurements to MLflow.
    """

    protocol: Protocol
    classes: Sequence[Class]
    quick: bool
    workspace: Workspace
    seeds: Sequence[int] | None
    run: TableRun

    def each(self, row: RowSpec) -> Iterator[dict[str, Any]]:
        """Measure one row a class; a failing class does not affect the others."""
        return (self._safely(row, one) for one in self.classes)

    def joint(self, row: RowSpec) -> Iterator[dict[str, Any]]:
        """Measure one model fitted to the good images of all classes on each class."""
        try:
            materials = [self._material(row, one) for one in self.classes]
            together, cached = _together(materials), _shared(materials)
        except Exception as error:
            yield {"class": "all", "method": row.method, "paper": None, "error": what_failed(error)}
            return
        for one, material in zip(self.classes, materials, strict=True):
            yield self._safely(row, one, Material(together, material.test, cached))

    def _safely(self, row: RowSpec, one: Class, material: Material | None = None) -> dict[str, Any]:
        paper = None
        if one.paper is not None and not row.joint:
            paper = one.paper.shots if row.fits_few else one.paper.full
        say(f"{one.name}, {self.classes.index(one) + 1} of {len(self.classes)}: {row.method}")
        try:
            given = material or self._material(row, one)
            runs = {seed: self._measured(row, one, given, seed) for seed in self._seeds(row)}
        except Exception as error:  # the other classes are still useful
            say(f"{one.name}: {what_failed(error)}")
            return {"class": one.name, "method": row.method, "paper": paper, "error": what_failed(error)}
        kind = one.paper.kind if one.paper else None
        return {"class": one.name, "kind": kind, **row_of(row.method, paper, runs)}

    def _measured(self, row: RowSpec, one: Class, material: Material, seed: int) -> dict[str, Any]:
        line = self._line(row, one, seed)
        measured = measure(line, material, self.workspace, self._results)
        self.run.add(row.method, line, measured)
        return measured

    def _material(self, row: RowSpec, one: Class) -> Material:
        return gather(self._line(row, one, 0), one.manifest, self.workspace)

    def _line(self, row: RowSpec, one: Class, seed: int) -> LineConfig:
        data = DataConfig(repo="given", path=one.name)
        return self.protocol.line(row, seed, name=_line_name(one.name), data=data, quick=self.quick)

    def _seeds(self, row: RowSpec) -> Sequence[int]:
        return self.seeds or row.seeds or self.protocol.seeds[: 1 if self.quick else None]

    @property
    def _results(self) -> Path:
        return self.workspace.root / "paper" / "table1"


def _together(materials: Sequence[Material]) -> Manifest:
    first = materials[0].cached
    for material in materials:
        if (material.cached.space, material.cached.shapes) != (first.space, first.shapes):
            raise DataError("Classes fitted together need the same features: one backbone, image size and scales.")
    frame = pd.concat([material.fit.frame for material in materials], ignore_index=True)
    return Manifest(frame, materials[0].fit.root)


def _shared(materials: Sequence[Material]) -> CacheManifest:
    """Combine the features of all classes."""
    entries = sorted({sha for material in materials for sha in material.cached.entries})
    return replace(materials[0].cached, entries=tuple(entries))


def _write(file: Path, protocol: Protocol, rows: Sequence[Mapping[str, Any]], quoted: PaperTable, command: str) -> None:
    methods = [row.method for row in protocol.rows]
    write_result(
        file,
        protocol,
        rows,
        command=command,
        averages={method: _as_json(averages(rows, method, quoted)) for method in methods},
        paper_averages={group: one.model_dump() for group, one in quoted.averages.items()} | {"joint": quoted.joint},
    )


def _as_json(found: Mapping[Group, Average]) -> dict[str, dict[str, float]]:
    return {group: {"value": round(one.value, 5), "classes": one.classes, "of": one.of} for group, one in found.items()}


def _line_name(folder: str) -> str:
    return folder.lower().replace("_", "-")
