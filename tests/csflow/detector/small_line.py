"""A small line in every kind of detector."""

from __future__ import annotations

import json

from csflow.config import LineConfig
from csflow.data.manifest import Manifest
from csflow.features.backbone import Backbone
from csflow.features.cache_manifest import CachedFeatures
from csflow.features.store import FeatureStore

SMALL = {
    "data": {"path": "images"},
    "features": {"image_size": 128},
    "flow": {"blocks": 2, "hidden": 8},
    "training": {"epochs": 1, "batch_size": 4, "learning_rate": 1e-3, "device": "cpu", "precision": "float32"},
    "patchcore": {"coreset": 0.2, "neighbours": 3},
    "padim": {"dimensions": 12},
}
NATIVE = {"features": {"image_size": 64, "stages": [2, 3, 5], "scales": 1}}
VARIANTS = {
    "csflow": {},
    "csflow-max-all": {"detector": "csflow", "scoring": {"score": "max", "map": "all"}},
    "csflow-nll": {"detector": "csflow", "scoring": {"score": "nll"}},
    "csflow-separate": {"detector": "csflow", "flow": {"blocks": 2, "hidden": 8, "fusion": "separate"}},
    "csflow-concatenated": {"detector": "csflow", "flow": {"blocks": 2, "hidden": 8, "fusion": "concatenated"}},
    "csflow-single": {"detector": "csflow", "flow": {"blocks": 2, "hidden": 8, "scales": [1]}},
    "nearest-neighbour": {},
    "mahalanobis": {},
    "padim": {},
    "padim-native": {"detector": "padim", **NATIVE},
    "patchcore": {},
    "patchcore-native": {"detector": "patchcore", **NATIVE},
    "differnet": {},
    "differnet-turned": {"detector": "differnet", "features": {"image_size": 128, "rotations": 4}},
}


def line_of(name: str) -> LineConfig:
    changes = {"detector": name, **VARIANTS[name]}
    return LineConfig.model_validate_json(json.dumps({"line": "small", **SMALL, **changes}))


def cached(store: FeatureStore, manifest: Manifest, line: LineConfig, backbone: Backbone) -> CachedFeatures:
    return store.extract(manifest, line.features, backbone).open(list(manifest.frame["sha256"]))
