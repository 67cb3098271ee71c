"""Implement the kinds of detector that a line can name, one module a kind.

``csflow/config/detector_kinds.py`` has the table of kinds. A module that it names offers ``fit`` and ``restore`` as
:class:`csflow.detector.fitting.Implementation` describes them.
"""
