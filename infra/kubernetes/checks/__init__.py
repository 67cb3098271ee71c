"""Checks of rendered manifests that no schema can make: what must fit together across documents.

==================== =====================================================================
``documents.py``     rendered documents, and the pods that will run from them
``wiring.py``        names, selectors, references and ports
``hardening.py``     what each container may do and gets, images, secrets, rights
``__main__.py``      ``python -m checks FILE…``
==================== =====================================================================

A check yields one sentence for each problem: where, what was found, what was expected.
"""

from __future__ import annotations

from checks.documents import Manifests, load
from checks.hardening import HARDENING
from checks.wiring import WIRING

__all__ = ["HARDENING", "WIRING", "Manifests", "load", "problems"]


def problems(manifests: Manifests, version: str) -> list[str]:
    """Everything that is wrong with a set of manifests.

    Args:
        manifests: What one overlay renders to.
        version: Version of the project, which the tags of its images must be.
    """
    return [
        *(problem for check in WIRING for problem in check(manifests)),
        *(problem for check in HARDENING for problem in check(manifests, version)),
    ]
