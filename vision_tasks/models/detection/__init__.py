"Nets that find objects; importing this registers all of them for the task 'detection'"
from .base import Detector, anchor_iou, pad_dets
from .torchvision import (TorchvisionDetector, default_anchors, faster_rcnn, fcos, retinanet, ssdlite,
                          torchvision_detector)

# `base.fit_anchors` is not among them: the task's own, of annotations, has the name
__all__ = ['Detector', 'TorchvisionDetector', 'anchor_iou', 'default_anchors', 'faster_rcnn', 'fcos', 'pad_dets',
           'retinanet', 'ssdlite', 'torchvision_detector']
