"""The shared store: a prefix of an S3 bucket, named by ``CSFLOW_STORE=s3://BUCKET/PREFIX``.

Credentials, region and the address of an S3-compatible service come from boto3's own variables
(``AWS_ACCESS_KEY_ID``, ``AWS_SECRET_ACCESS_KEY``, ``AWS_DEFAULT_REGION``, ``AWS_ENDPOINT_URL``), never from a file of
csflow's.

=============== ==================================================================================
``errors.py``   what S3 refuses, in words with a remedy
``objects.py``  one object: parts, checksums at both ends, going on where a transfer broke
``store.py``    directories: an index is written last, so that half of one never counts
``features.py`` the features of images, shared below the local feature store
=============== ==================================================================================

======================================== =================================================
``PREFIX/features/SPACE/AB/ABCD…``       an entry of the feature store, as it lies locally
``PREFIX/detectors/LINE/DIGEST/…``       a published detector: what ``storageUri`` names
``PREFIX/detectors/LINE/DIGEST.json``    its index: written when all of it is there
======================================== =================================================
"""

from csflow.adapters.storage.features import SharedFeatures
from csflow.adapters.storage.store import Store

__all__ = ["SharedFeatures", "Store"]
