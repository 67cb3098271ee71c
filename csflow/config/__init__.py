"""Configure product lines: one YAML file a line, strict and frozen, unknown keys refused."""

from csflow.config.cluster import ResourcesConfig, ScheduleConfig, Toleration
from csflow.config.data import DataConfig
from csflow.config.detector_kinds import KINDS, DetectorKind
from csflow.config.detectors import PadimConfig, PatchcoreConfig
from csflow.config.features import FeatureConfig
from csflow.config.flow import FlowConfig, ScoringConfig
from csflow.config.judging import CalibrationConfig, GateConfig, QualityConfig, RolesConfig
from csflow.config.line import LINE_NAME, LineConfig
from csflow.config.loading import line_names, lines_folder, load_line
from csflow.config.parsing import parse_line, parse_line_json
from csflow.config.presets import merged_over, presets
from csflow.config.section import Positive, Section
from csflow.config.serving import CanaryStep, ServingConfig
from csflow.config.training import TrainingConfig

__all__ = [
    "KINDS",
    "LINE_NAME",
    "CalibrationConfig",
    "CanaryStep",
    "DataConfig",
    "DetectorKind",
    "FeatureConfig",
    "FlowConfig",
    "GateConfig",
    "LineConfig",
    "PadimConfig",
    "PatchcoreConfig",
    "Positive",
    "QualityConfig",
    "ResourcesConfig",
    "RolesConfig",
    "ScheduleConfig",
    "ScoringConfig",
    "Section",
    "ServingConfig",
    "Toleration",
    "TrainingConfig",
    "line_names",
    "lines_folder",
    "load_line",
    "merged_over",
    "parse_line",
    "parse_line_json",
    "presets",
]
