"""Check rendered manifests for what no schema can check: how documents fit together.

==================== =====================================================================
``documents.py``     rendered documents, and the pods that will run from them
``wiring.py``        names, selectors, references and ports
``hardening.py``     privileges and resources of containers, images, secrets, rights
``__main__.py``      ``python -m checks FILE…``
==================== =====================================================================

A check yields one sentence for each problem: where it is, what was found, and what was expected.
"""

from __future__ import annotations

from checks.documents import Manifests, load
from checks.hardening import HARDENING
from checks.wiring import WIRING

__all__ = ["HARDENING", "WIRING", "Manifests", "load", "problems"]


def problems(manifests: Manifests, version: str) -> list[str]:
    """List everything that is wrong with a set of manifests.

    Args:
        manifests: The rendered documents of one overlay.
        version: Version of the project, which must be the tag of its images.
    """
    return [
        *(problem for check in WIRING for problem in check(manifests)),
        *(problem for check in HARDENING for problem in check(manifests, version)),
    ]
