"""Measure how good a detector is, with the uncertainty that comes from the images it was measured on.

Labels are booleans, True = defective; higher scores mean more anomalous. Scores may be tied or infinite but never
NaN. One class alone has no metric: asking for one raises `DataError`.

========================  ==========================================================================================
``image_auroc``           Ties between good and defective count half.
``average_precision``     The step sum of scikit-learn: nothing interpolated, one step for each distinct score.
``f1_max``                Best F1 over all thresholds.
``fpr_at_95_tpr``         Smallest false positive rate of a threshold that finds 95 %; nothing interpolated.
``pixel_auroc``           The AUROC over all pixels of all images.
``pixel_ap``              The average precision over all pixels of all images.
``aupro``                 Per-region overlap up to a false positive rate of 30 %, as MVTec AD defines it.
========================  ==========================================================================================

Intervals come from resamples **of whole images**, good and defective ones separately, because neighbouring pixels say
the same thing twice and different images do not. They are widened by the values that so few images cannot exclude;
`csflow.metrics.image` and `pixel_metrics` state how often an interval holds the true value.
"""

from csflow.metrics.image import IMAGE_METRICS as IMAGE_METRICS
from csflow.metrics.image import ImageMetric as ImageMetric
from csflow.metrics.image import RocCurve as RocCurve
from csflow.metrics.image import average_precision as average_precision
from csflow.metrics.image import bootstrap_interval as bootstrap_interval
from csflow.metrics.image import by_defect as by_defect
from csflow.metrics.image import f1_max as f1_max
from csflow.metrics.image import fpr_at_tpr as fpr_at_tpr
from csflow.metrics.image import image_auroc as image_auroc
from csflow.metrics.image import image_metrics as image_metrics
from csflow.metrics.image import paired_bootstrap as paired_bootstrap
from csflow.metrics.image import roc_curve as roc_curve
from csflow.metrics.intervals import Interval as Interval
from csflow.metrics.intervals import Measured as Measured
from csflow.metrics.intervals import PairedDifference as PairedDifference
from csflow.metrics.intervals import clopper_pearson as clopper_pearson
from csflow.metrics.intervals import newcombe_limit as newcombe_limit
from csflow.metrics.pixel import PIXEL_METRICS as PIXEL_METRICS
from csflow.metrics.pixel import PixelMetric as PixelMetric
from csflow.metrics.pixel import aupro as aupro
from csflow.metrics.pixel import binning_error as binning_error
from csflow.metrics.pixel import paired_pixel_bootstrap as paired_pixel_bootstrap
from csflow.metrics.pixel import pixel_ap as pixel_ap
from csflow.metrics.pixel import pixel_auroc as pixel_auroc
from csflow.metrics.pixel import pixel_by_defect as pixel_by_defect
from csflow.metrics.pixel import pixel_metrics as pixel_metrics
from csflow.metrics.pixel_counts import Maps as Maps
from csflow.metrics.pixel_counts import PixelCounts as PixelCounts
from csflow.metrics.pixel_counts import count_pixels as count_pixels
