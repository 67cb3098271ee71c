"""Judge a line's images in the data gate, a Great Expectations suite over their measurements."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd

from csflow.config import QualityConfig
from csflow.data.inspection import inspect_images
from csflow.data.manifest import Manifest
from csflow.system.wording import shorten

if TYPE_CHECKING:
    from great_expectations.core import ExpectationSuiteValidationResult, ExpectationValidationResult
    from great_expectations.expectations.expectation import Expectation

Severity = Literal["critical", "warning"]


@dataclass(frozen=True)
class BrokenExpectation:
    """A broken expectation.

    Attributes:
        expectation: Its short name, for instance ``readable``.
        explanation: What was expected, what was found, and what to do.
        files: Offending images, relative to the line's folder; empty if the expectation is about counts.
        found: What was found in each of ``files``.
    """

    expectation: str
    explanation: str
    files: tuple[str, ...] = ()
    found: tuple[str, ...] = ()


@dataclass(frozen=True)
class QualityReport:
    """The result of the data gate.

    Attributes:
        line: Name of the line.
        checks: What every expectation asks for, by its name.
        failures: Broken expectations that stop the pipeline.
        warnings: Broken expectations that do not.
        statistics: Counts and ranges of the images.
        validation: The result as Great Expectations states it.
    """

    line: str
    checks: dict[str, str]
    failures: tuple[BrokenExpectation, ...]
    warnings: tuple[BrokenExpectation, ...]
    statistics: dict[str, str | int]
    validation: dict[str, Any]

    @property
    def success(self) -> bool:
        """Return True if the pipeline may go on."""
        return not self.failures

    def explanation(self, line: str) -> str:
        """Describe the failures as text for a terminal, each with its first offending files."""
        reasons = [f"- {f.explanation}" + (f" Files: {_with_found(f)}." if f.files else "") for f in self.failures]
        return f"The data gate refuses the images of {line}:\n" + "\n".join(reasons)

    def to_json(self) -> dict[str, Any]:
        """Return the whole report as JSON values."""
        return {
            "line": self.line,
            "success": self.success,
            "checks": self.checks,
            "failures": [_as_json(failure) for failure in self.failures],
            "warnings": [_as_json(warning) for warning in self.warnings],
            "statistics": self.statistics,
            "validation": self.validation,
        }

    def html(self) -> str:
        """Render the report as one self-contained page that names the present time."""
        from jinja2 import Environment, PackageLoader

        loader = PackageLoader("csflow.reporting")
        environment = Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
        created = f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC"
        return environment.get_template("quality.html.j2").render(report=self, created=created)


@dataclass(frozen=True)
class _Check:
    """An expectation: ``asks`` states what is true of good data, ``shows`` names the column that explains a failure."""

    name: str
    asks: str
    remedy: str
    kind: str
    arguments: dict[str, Any]
    shows: str = ""
    severity: Severity = "critical"

    def expectation(self) -> Expectation:
        import great_expectations.expectations as gxe

        made: Expectation = getattr(gxe, self.kind)(**self.arguments, severity=self.severity, meta={"check": self.name})
        return made


def run_data_gate(manifest: Manifest, quality: QualityConfig, bit_depth: int | None = None) -> QualityReport:
    """Measure the images of a line and compare them with the line's bounds.

    Args:
        manifest: The line's images.
        quality: The line's bounds.
        bit_depth: Bits that the line's camera fills in 16-bit samples (``features.bit_depth``).
    """
    table = _with_verdicts(inspect_images(manifest, bit_depth))
    checks = list(_checks(quality)) if len(table) else [_NOT_EMPTY]
    result = _run(table, checks)
    failures: dict[Severity, list[BrokenExpectation]] = {"critical": [], "warning": []}
    for check, outcome in zip(checks, result.results, strict=True):
        if not outcome.success:
            failures[check.severity].append(_failure(check, outcome.result, outcome.exception_info, table))
    return QualityReport(
        line=table["line"].iloc[0] if len(table) else "this line",
        checks={check.name: check.asks for check in checks},
        failures=tuple(failures["critical"]),
        warnings=tuple(failures["warning"]),
        statistics=_statistics(table),
        validation=dict(result.to_json_dict()),  # type: ignore[no-untyped-call]
    )


def _with_verdicts(table: pd.DataFrame) -> pd.DataFrame:
    """Add the columns that the expectations are about; None where one does not apply."""
    train, good = table["split"] == "train", table["label"] == "good"
    return table.assign(
        train_is_good=~train | good,
        train_good=(train & good).astype(int),
        test_good=(~train & good).astype(int),
        test_defective=(~train & ~good).astype(int),
        leaked=(table["leaked_from"] != "").astype(bool),
        contradicted=(table["contradicts"] != "").astype(bool),
        copied=(table["copy_of"] != "").astype(bool),
        mask_clear=table["mask_unclear"].map(lambda unclear: None if unclear is None else unclear == ""),
        photo_levels=table["levels"].where(~table["mode"].isin(["1", "P", "PA"]) & (table["constant"] != True)),  # noqa: E712
        mask_readable=table["mask_problem"].map(lambda problem: None if problem is None else problem == ""),
    )


_NOT_EMPTY = _Check(
    "not_empty",
    "There are images.",
    "Expected train/good, test/good and test/DEFECT below the line's folder; check data.path of the line.",
    "ExpectTableRowCountToBeBetween",
    {"min_value": 1},
)


def _checks(quality: QualityConfig) -> Iterator[_Check]:
    """Yield the expectations in the order in which a reader wants to see them."""
    yield _NOT_EMPTY
    yield _each("readable", True, "Every image can be read.", "Copy or export these files again, or remove them.",
                "readable", "problem")  # fmt: skip
    yield _each("only_good_in_train", True, "There are only good images in train.",
                "Move defective images to test/DEFECT.", "train_is_good", "defect")  # fmt: skip
    yield _each("no_leak", False, "No image is in both train and test.",
                "Remove it from one of them: a detector must not be tested on images that it learned from.",
                "leaked", "leaked_from")  # fmt: skip
    yield _each("one_label", False, "No image is both good and defective.", "Remove the wrong one.",
                "contradicted", "contradicts")  # fmt: skip
    yield _each("no_copies", False, "No image occurs twice in the same split.",
                "Copies count twice; remove them, or name them as one group in groups.csv.",
                "copied", "copy_of", severity="warning")  # fmt: skip
    yield _Check("large_enough", f"The shorter side has at least {quality.min_side} pixels.",
                 "Take larger images, or lower quality.min_side if the detail is sufficient.",
                 "ExpectColumnValuesToBeBetween", {"column": "short_side", "min_value": quality.min_side},
                 "size")  # fmt: skip
    yield _Check("small_enough", f"The longer side has at most {quality.max_side} pixels.",
                 "Crop or shrink them, or raise quality.max_side.",
                 "ExpectColumnValuesToBeBetween", {"column": "long_side", "max_value": quality.max_side},
                 "size")  # fmt: skip
    yield _Check("mode", f"The colour mode is one of {', '.join(quality.modes)}.",
                 "Convert the files, or add the mode to quality.modes.",
                 "ExpectColumnValuesToBeInSet", {"column": "mode", "value_set": list(quality.modes)},
                 "mode")  # fmt: skip
    yield _each("not_constant", False, "No image has a single colour only.",
                "The camera saw nothing: remove them.", "constant", "size")  # fmt: skip
    yield _each("mask_readable", True, "Every mask can be read.", "Copy or export the masks again, or remove them.",
                "mask_readable", "mask_problem")  # fmt: skip
    yield _each("mask_fits", True, "Every mask has the size of its (upright) image.",
                "Export the masks at the size of their images.", "mask_fits", "mask_size")  # fmt: skip
    yield _each("mask_marks", True, "Every mask marks something.",
                "Draw the defect (pixels that are not 0) or remove the mask.", "mask_marks", "mask_size")  # fmt: skip
    yield _each("mask_clear", True, "Every mask says clearly which pixels are defective.",
                "Save it as PNG with 0 where the part is good and another value where it is defective, without "
                "smoothing.", "mask_clear", "mask_unclear")  # fmt: skip
    yield _Check("mask_part", "No mask marks more than half of its image.",
                 "Make sure that defective pixels are marked, and not the good ones.",
                 "ExpectColumnValuesToBeBetween", {"column": "mask_share", "max_value": 0.5},
                 "mask_share", "warning")  # fmt: skip
    yield from _looks()
    yield _at_least("enough_train", "train_good", quality.min_train, "good images in train", "min_train")
    yield _at_least("enough_test_good", "test_good", quality.min_test_good, "good images in test", "min_test_good")
    yield _at_least("enough_test_defective", "test_defective", quality.min_test_defective,
                    "defective images in test", "min_test_defective")  # fmt: skip


def _looks() -> Iterator[_Check]:
    """Yield the expectations about what a person might see at a glance: they only warn."""
    yield _Check("bright_enough", "The brightest pixel of every image is above 63 of 255.",
                 "Check the lighting, and the bit depth that the camera or a converter wrote.",
                 "ExpectColumnValuesToBeBetween", {"column": "brightest", "min_value": 64},
                 "brightest", "warning")  # fmt: skip
    yield _Check("enough_levels", "Every photograph has more than 16 different values.",
                 "Check the bit depth that the camera or a converter wrote: most of the detail is gone.",
                 "ExpectColumnValuesToBeBetween", {"column": "photo_levels", "min_value": 17},
                 "levels", "warning")  # fmt: skip
    yield _Check("one_picture", "Every file holds one picture.", "Only the first is read: export the one that counts.",
                 "ExpectColumnValuesToBeBetween", {"column": "frames", "max_value": 1},
                 "frames", "warning")  # fmt: skip
    yield _Check("not_a_strip", "The longer side is at most three times the shorter.",
                 "Images are stretched to a square, which costs detail along the longer side: cut strips into parts.",
                 "ExpectColumnValuesToBeBetween", {"column": "elongation", "max_value": 3},
                 "size", "warning")  # fmt: skip


def _each(name: str, wanted: bool, asks: str, remedy: str, column: str, shows: str,
          severity: Severity = "critical") -> _Check:  # fmt: skip
    """Make the check that every value of a boolean column is the wanted one (None does not count)."""
    arguments = {"column": column, "value_set": [wanted]}
    return _Check(name, asks, remedy, "ExpectColumnValuesToBeInSet", arguments, shows, severity)


def _at_least(name: str, column: str, least: int, what: str, key: str) -> _Check:
    remedy = f"Add images, or lower quality.{key} if fewer are really enough."
    arguments = {"column": column, "min_value": least}
    return _Check(name, f"There are at least {least} {what}.", remedy, "ExpectColumnSumToBeBetween", arguments)


def _run(table: pd.DataFrame, checks: Sequence[_Check]) -> ExpectationSuiteValidationResult:
    """Validate in memory, without a project folder or progress bars; nothing is sent anywhere."""
    import great_expectations as gx
    from great_expectations.data_context.types.base import ProgressBarsConfig

    context = gx.get_context(mode="ephemeral")
    context.enable_analytics(False)
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    asset = context.data_sources.add_pandas("images").add_dataframe_asset("manifest")
    batch = asset.add_batch_definition_whole_dataframe("all")
    suite = context.suites.add(gx.ExpectationSuite("data gate", [check.expectation() for check in checks]))
    definition = gx.ValidationDefinition(name="data gate", data=batch, suite=suite)
    context.validation_definitions.add(definition)
    result = definition.run(
        batch_parameters={"dataframe": table},
        result_format={"result_format": "COMPLETE", "unexpected_index_column_names": ["path"]},
    )
    by_name = {_name_of(outcome): outcome for outcome in result.results}
    result.results = [by_name[check.name] for check in checks]
    return result


def _name_of(outcome: ExpectationValidationResult) -> str:
    config = outcome.expectation_config
    return str(config.meta["check"]) if config and config.meta else ""


def _failure(check: _Check, result: dict[str, Any], trouble: dict[str, Any], table: pd.DataFrame) -> BrokenExpectation:
    files = [str(entry["path"]) for entry in result.get("unexpected_index_list") or []]
    if not files and "observed_value" not in result:
        raise RuntimeError(f"Great Expectations could not evaluate {check.name!r}: {trouble}")
    found = table.set_index("path")[check.shows].astype(str).loc[files] if files else ()
    count = f"not true of {len(files)} of {len(table)} images" if files else f"found {result['observed_value'] or 0:g}"
    return BrokenExpectation(check.name, f"{check.asks[:-1]}: {count}. {check.remedy}", tuple(files), tuple(found))


def _statistics(table: pd.DataFrame) -> dict[str, str | int]:
    if table.empty:
        return {"images": 0}
    defects = table.loc[table["defect"] != "", "defect"].value_counts().sort_index()
    return {
        "images": len(table),
        "good images in train": int(table["train_good"].sum()),
        "good images in test": int(table["test_good"].sum()),
        "defective images in test": int(table["test_defective"].sum()),
        "masks": int((table["mask"] != "").sum()),
        "defects": ", ".join(f"{name} ({count})" for name, count in defects.items()),
        "sizes": _common(table["size"]),
        "modes": _common(table["mode"]),
    }


def _common(values: pd.Series) -> str:
    counts = values.value_counts()
    return shorten([f"{value} ({count})" for value, count in counts.items()])


def _with_found(failure: BrokenExpectation) -> str:
    pairs = zip(failure.files, failure.found, strict=True)
    return shorten([f"{file} ({found})" if found else file for file, found in pairs])


def _as_json(failure: BrokenExpectation) -> dict[str, Any]:
    files = [{"path": path, "found": found} for path, found in zip(failure.files, failure.found, strict=True)]
    return {"expectation": failure.expectation, "explanation": failure.explanation, "files": files}
