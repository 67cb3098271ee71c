"""Check out the data of a line, open the run, and tell if anything changed since the last decision."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from csflow.adapters.mlflow.runs import flat_params
from csflow.config import LineConfig, parse_line_json
from csflow.data.image_files import say_left_out
from csflow.errors import NotRegisteredError
from csflow.features.weights import weights_digest
from csflow.release.lost import require_history
from csflow.release.publication import require_champion_files
from csflow.release.settled import is_settled
from csflow.release.unfinished import FORCED, KeyOf, abandon, unfinished
from csflow.runs.checkout import materialise
from csflow.runs.context import RunContext, step
from csflow.runs.identity import detector_code
from csflow.runs.ownership import close_killed_runs, owner_tags
from csflow.runs.services import Services
from csflow.system.files import sha256_file, sha256_json
from csflow.system.progress import say

if TYPE_CHECKING:
    from csflow.adapters.mlflow.versions import Version
    from csflow.adapters.versioning import CheckedOut
    from csflow.data.manifest import Manifest


def ingest(
    services: Services, line_json: str, *, force: bool, context_out: str | Path, manifest_out: str | Path
) -> RunContext:
    """Check out the data and open the run: the first step of every run.

    Args:
        services: The outside systems.
        line_json: The line's configuration as JSON, including its presets.
        force: If True, train again with a seed that no version has used, even if nothing changed. A forced run that
            was killed is finished first, with its own seed.
        context_out: Where to write the run's context.
        manifest_out: Where to write the manifest.

    Raises:
        ConfigError: If the configuration is wrong, or the image size does not fit the backbone's scales.
        DataError: If the revision, the folder or an image is not available, or an image's hash differs.
    """
    start = time.monotonic()
    with step(services, "ingest"):
        line = parse_line_json(line_json)
        manifest, checked_out = materialise(line, services.workspace)
        manifest.save(Path(manifest_out))
        context = _open_run(services, line, manifest, checked_out, sha256_file(Path(manifest_out)), force=force)
        context.save(Path(context_out))
    with step(services, "ingest", context):
        services.tracker.log_dataset(
            context.run_id,
            name=context.line.line,
            digest=checked_out.data_md5,
            manifest=Path(manifest_out),
            source=str(manifest.root),
        )
        state = "unchanged since the last decision" if context.unchanged else "new"
        say_left_out(manifest.left_out, "ingest", manifest.root)
        say(f"ingest: {len(manifest)} images at {checked_out.git_rev[:12]}, data {checked_out.data_md5}: {state}")
    # The run did not exist yet during the checkout, so the step could not be timed from its start.
    services.tracker.log_metrics(context.run_id, {"seconds_ingest": time.monotonic() - start})
    return context


def _open_run(
    services: Services,
    line: LineConfig,
    manifest: Manifest,
    checked_out: CheckedOut,
    manifest_sha256: str,
    *,
    force: bool,
) -> RunContext:
    """Tell if anything is new, and open the MLflow run that every later step writes into."""
    versions = _known_versions(services, line)
    base, key_of = line, partial(content_key, data_digest=manifest.digest)
    line = _line_to_train(services, line, versions, key_of, force=force)
    key = key_of(line)
    hold = services.registry.get_hold(line.line) if versions else None
    unchanged = any(v.tags.get("content_key") == key and is_settled(v, line, hold) for v in versions)
    if not unchanged:
        # Checked before any work is done for a configuration or images that cannot work.
        from csflow.runs.image_counts import check_enough, check_size

        check_size(line)
        check_enough(line, manifest)
        require_champion_files(services, versions)
    identity = {
        "content_key": key,
        "data_md5": checked_out.data_md5,
        "data_digest": manifest.digest,
        "git_rev": checked_out.git_rev,
    }
    abandon(services, line.line, versions, key)
    forced = {FORCED: "true"} if line != base else {}
    run_id = services.tracker.start_run(
        line.line, params=flat_params(line), tags={**identity, **forced, **owner_tags()}
    )
    return RunContext(
        line=line,
        run_id=run_id,
        data_root=str(manifest.root),
        unchanged=unchanged,
        manifest_sha256=manifest_sha256,
        **identity,
    )


def _line_to_train(
    services: Services, line: LineConfig, versions: list[Version], key_of: KeyOf, *, force: bool
) -> LineConfig:
    """Return the line with the seed to train: that of a run that was killed, or with ``force`` a new one."""
    close_killed_runs(services, line.line)
    if (waiting := unfinished(services, line, versions, key_of, force=force)) is not None:
        return waiting
    # Not the number of versions: pruned ones had seeds as well.
    further = max((version.version for version in versions), default=0) if force else 0
    return line.with_seed(line.training.seed + further)


def _known_versions(services: Services, line: LineConfig) -> list[Version]:
    services.tracker.initialise()
    try:
        versions = services.registry.versions(line.line)
    except NotRegisteredError:
        versions = []
    require_history(services, line.line, versions)
    services.registry.back_up()
    return versions


def content_key(line: LineConfig, data_digest: str) -> str:
    """Compute a digest of everything a detector depends on: data, configuration with seed, weights and code."""
    return sha256_json([data_digest, line.method_digest(), weights_digest(line.features), detector_code(line)])
