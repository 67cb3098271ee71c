"""Directories and single objects on S3 and what is compatible with it: checked at both ends, resumed, retried."""

from csflow.adapters.storage.features import SharedFeatures
from csflow.adapters.storage.store import Store, Stored

__all__ = ["SharedFeatures", "Store", "Stored"]
