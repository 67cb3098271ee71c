"""Define the groups of an ablation: each is a set of variants that answers one question about a line.

=================== ==================================================================================
``scales``          Single scales, separate flows per scale, concatenated scales, CS-Flow (paper, Table 3).
``blocks``          1 to 6 coupling blocks (paper, Table 4).
``shots``           A limited number of random good images (paper, Table 1).
``joint``           Several lines fitted together, each judged by itself (paper, section 4.5).
``width``           Hidden channels of the internal networks.
``standardization`` With and without standardised features.
``training``        Learning rate, its schedule, averaging the weights of the last quarter of the epochs.
``score``, ``map``  How the score and the map are computed from the latents; the model is the same.
``backbone``        Other backbones.
``image-size``      Other sizes of the largest input.
``detectors``       All kinds of detector; PaDiM and PatchCore also on their native stages.
=================== ==================================================================================
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from csflow.ablation.request import GroupName, Keys, Quoted, Request, Variant, changed
from csflow.config import KINDS, LineConfig
from csflow.errors import ConfigError


def variants(request: Request) -> list[Variant]:
    """Make all variants of a request, group by group; the seeds of a variant follow each other.

    Raises:
        ConfigError: If a group does not apply to the line or lacks an option that it needs.
    """
    base = changed(request.line, request.overrides)
    found: dict[tuple[str, str, str, int], Variant] = {}
    for group in dict.fromkeys(request.groups):
        for name, line, quoted, joined in _MAKERS[group](base, request):
            for seed in request.seeds[:1] if _is_unseeded(line) else request.seeds:
                seeded = tuple(other.with_seed(seed) for other in joined)
                variant = Variant(group=group, name=name, line=line.with_seed(seed), joined=seeded, quoted=quoted)
                found.setdefault((group, name, line.line, seed), variant)
    return list(found.values())


def _is_unseeded(line: LineConfig) -> bool:
    return not KINDS[line.detector].seeded and line.roles.shots is None


class _Trial(NamedTuple):
    """A variant without its seed."""

    name: str
    line: LineConfig
    quoted: Quoted | None
    joined: tuple[LineConfig, ...] = ()


def _scales(base: LineConfig, _: Request) -> Iterable[_Trial]:
    flow = _of_kind(base, "csflow")
    count = flow.features.scales
    if count < 2:
        raise ConfigError(f"The group scales compares scales, but features.scales is {count}. Set it to 2 or more.")
    quoted = (0.978, 0.968, 0.961) if count == 3 else (None,) * count
    for scale, auroc in enumerate(quoted):
        size = flow.features.image_size // 2**scale
        keys = {"flow.scales": [scale], "flow.fusion": "cross"}
        yield _trial(f"single scale ({size} px)", flow, keys, auroc, "Table 3")
    fusions = {"separate multi-scale": "separate", "concatenated multi-scale": "concatenated", "CS-Flow": "cross"}
    for (name, fusion), auroc in zip(fusions.items(), (0.982, 0.980, 0.987), strict=True):
        yield _trial(name, flow, {"flow.scales": None, "flow.fusion": fusion}, auroc, "Table 3")


def _blocks(base: LineConfig, _: Request) -> Iterable[_Trial]:
    flow = _of_kind(base, "csflow")
    for count, auroc in enumerate((0.946, 0.978, 0.985, 0.987, 0.987, 0.986), start=1):
        kernels = flow.flow.kernel_sizes if count == flow.flow.blocks else None
        keys = {"flow.blocks": count, "flow.kernel_sizes": kernels}
        yield _trial(f"{count} block{'s' if count > 1 else ''}", flow, keys, auroc, "Table 4")


def _shots(base: LineConfig, request: Request) -> Iterable[_Trial]:
    flow = _of_kind(base, "csflow")
    for count in request.shots:
        # The held-out images stay held out, so that few-shot and full models are judged by the same images.
        keys = {"roles.shots": count, "calibration": "none"}
        yield _trial(f"{count} images", flow, keys, 0.935 if count == 16 else None, "Table 1")
    yield _trial("all images", flow, {"roles.shots": None}, 0.987, "Table 1")


def _joint(base: LineConfig, request: Request) -> Iterable[_Trial]:
    if not request.joined:
        raise ConfigError("The group joint needs further lines to fit with this one. Name them: --joint LINE2,LINE3.")
    base = _of_kind(base, "csflow")
    lines = [base, *(_same_method(base, other, request.overrides) for other in request.joined)]
    if len({line.line for line in lines}) < len(lines):
        raise ConfigError(f"The group joint needs each line once, got {', '.join(line.line for line in lines)}.")
    for line in lines:
        yield _trial("alone", line, {}, 0.987, "Table 1")
        others = tuple(other for other in lines if other is not line)
        together = _trial(f"{len(lines)} lines together", line, {}, 0.982, "section 4.5, all 15 classes")
        yield together._replace(joined=others)


def _width(base: LineConfig, request: Request) -> Iterable[_Trial]:
    flow = _of_kind(base, "csflow")
    return [_trial(f"width {width}", flow, {"flow.hidden": width}) for width in request.widths]


def _standardization(base: LineConfig, _: Request) -> Iterable[_Trial]:
    flow = _of_kind(base, "csflow")
    names = {"standardised": True, "not standardised": False}
    return [_trial(name, flow, {"flow.standardize": value}) for name, value in names.items()]


def _training(base: LineConfig, _: Request) -> Iterable[_Trial]:
    flow = _of_kind(base, "csflow")
    for rate in (2e-4, 1e-3):
        for schedule, share in (("constant", None), ("constant", 0.25), ("cosine", None)):
            keys = {
                "training.learning_rate": rate,
                "training.schedule": schedule,
                "training.averaging": share,
            }
            yield _trial(f"{rate:g}, {schedule}{', averaged' if share else ''}", flow, keys)


def _score(base: LineConfig, _: Request) -> Iterable[_Trial]:
    flow = _of_kind(base, "csflow")
    names = {"mean z²": "mean", "exact likelihood": "nll", "maximum of the map": "max"}
    return [_trial(name, flow, {"scoring.score": value}) for name, value in names.items()]


def _map(base: LineConfig, _: Request) -> Iterable[_Trial]:
    flow = _of_kind(base, "csflow")
    names = {"finest scale": "finest", "all scales": "all"}
    return [_trial(name, flow, {"scoring.map": value}) for name, value in names.items()]


def _backbone(base: LineConfig, request: Request) -> Iterable[_Trial]:
    if not request.backbones:
        raise ConfigError("The group backbone needs other backbones. Name them: --backbone NAME or NAME:WEIGHTS.")
    yield _trial(base.features.backbone, base, {})
    for text in request.backbones:
        name, _, weights = text.partition(":")
        shown = f"{name} ({weights})" if weights else name
        yield _trial(shown, base, {"features.backbone": name, "features.weights": weights or "hub"})


def _image_size(base: LineConfig, request: Request) -> Iterable[_Trial]:
    if not request.image_sizes:
        raise ConfigError("The group image-size needs other sizes. Name them: --image-size 256,512.")
    sizes = sorted({base.features.image_size, *request.image_sizes})
    return [_trial(f"{size} px", base, {"features.image_size": size}) for size in sizes]


def _detectors(base: LineConfig, _: Request) -> Iterable[_Trial]:
    for kind in KINDS.values():
        line, quoted = _of_kind(base, kind.name), kind.quoted_auroc
        if kind.native_stages is None:
            yield _trial(kind.title, line, {}, quoted, "Table 2", data="MTD")
            continue
        yield _trial(f"{kind.title}, same features", line, {})
        native = {"features.stages": list(kind.native_stages), "features.scales": 1}
        yield _trial(f"{kind.title}, native features", line, native, quoted, "Table 2", data="MTD")


def _trial(
    name: str,
    line: LineConfig,
    keys: Mapping[str, Any],
    auroc: float | None = None,
    table: str = "",
    *,
    data: str = "MVTec AD",
) -> _Trial:
    quoted = None if auroc is None else Quoted(auroc=auroc, data=f"{data} ({table})")
    return _Trial(name, changed(line, keys), quoted)


def _of_kind(line: LineConfig, name: str) -> LineConfig:
    """Return the line with another kind of detector, without the features that this kind cannot read."""
    kind = KINDS[name]
    keys: Keys = {"detector": name}
    if not kind.reads_rotations:
        keys["features.rotations"] = 1
    if not kind.reads_stages:
        keys["features.stages"] = None
    if not kind.fuses_scales:
        keys["flow.scales"] = None
    return changed(line, keys)


def _same_method(base: LineConfig, other: LineConfig, overrides: Keys) -> LineConfig:
    """Combine the data and roles of another line with the method of the first.

    Raises:
        ConfigError: If the features of the lines differ: a model takes one kind of features.
    """
    other = changed(other, overrides)
    features = other.features
    if features != base.features:
        ours, theirs = base.features.model_dump(), features.model_dump()
        differing = ", ".join(f"{key} {ours[key]} / {theirs[key]}" for key in ours if ours[key] != theirs[key])
        raise ConfigError(
            f"Lines {base.line} and {other.line} cannot be fitted together: features differ in {differing}. "
            "Give both the same, for instance with --set."
        )
    own = {key: getattr(other, key) for key in ("line", "description", "data", "roles", "calibration", "quality")}
    return base.model_copy(update=own)


_MAKERS: Mapping[GroupName, Callable[[LineConfig, Request], Iterable[_Trial]]] = {
    "scales": _scales,
    "blocks": _blocks,
    "shots": _shots,
    "joint": _joint,
    "width": _width,
    "standardization": _standardization,
    "training": _training,
    "score": _score,
    "map": _map,
    "backbone": _backbone,
    "image-size": _image_size,
    "detectors": _detectors,
}
