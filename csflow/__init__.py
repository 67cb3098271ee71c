"""csflow: good images of a product line in, a served defect detector out.

Importing this package loads nothing heavy; take what you need from its modules, for instance
``from csflow.detector.detector import Detector``.
"""

__version__ = "0.5.0"
