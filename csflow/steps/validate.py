"""Stop the run if the data violates the line's quality bounds; attach the result in any case."""

from __future__ import annotations

from pathlib import Path

from csflow.errors import DataError
from csflow.runs.context import RunContext, load_manifest, step
from csflow.runs.services import Services
from csflow.system.files import write_atomic, write_json
from csflow.system.progress import say


def validate(
    services: Services, context_path: str | Path, manifest_path: str | Path, *, report_out: str | Path
) -> None:
    """Check the manifest with the data gate.

    Args:
        services: The outside systems.
        context_path: The context that ``ingest`` wrote.
        manifest_path: The line's manifest.
        report_out: Where to write the page.

    Raises:
        DataError: If the data violates an expectation; names each one and the files concerned.
    """
    context = RunContext.load(Path(context_path))
    if context.unchanged:
        return
    with step(services, "validate", context):
        from csflow.adapters.data_quality import run_data_gate

        manifest = load_manifest(context, Path(manifest_path))
        report = run_data_gate(manifest, context.line.quality, context.line.features.bit_depth)
        folder = services.workspace.runs / context.run_id / "data_quality"
        write_atomic(folder / "data_quality.html", report.html())
        write_json(folder / "data_quality.json", report.to_json())
        write_atomic(Path(report_out), report.html())
        services.tracker.log_artifact(context.run_id, folder)
        if not report.success:
            raise DataError(report.explanation(context.line.line))
        say(f"validate: {len(manifest)} images pass the data gate")
