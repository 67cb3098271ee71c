"""Store directories and single objects on S3 or a compatible store: checked at both ends, resumed, retried."""

from csflow.adapters.storage.features import SharedFeatures
from csflow.adapters.storage.store import Store, Stored

__all__ = ["SharedFeatures", "Store", "Stored"]
