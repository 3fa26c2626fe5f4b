"Nets that find objects; importing this registers all of them for the tasks 'detection' and 'instance'"
from .base import Detector, anchor_iou, pad_dets
from .fast_rcnn import FastRCNN, fast_rcnn
from .faster_rcnn import faster_rcnn_vgg16     # before `faster_rcnn`, whose name this module has
from .rcnn import RCNN, rcnn
from .sliding_window import SlidingWindowDetector, default_windows, sliding_window
from .faster_rcnn import faster_rcnn
from .fcos import fcos
from .mask_rcnn import mask_rcnn
from .pyramid import default_anchors
from .retinanet import retinanet
from .ssdlite import ssdlite
from .torchvision import TorchvisionDetector, torchvision_detector
from .yolo import YOLO, YOLOBody, yolo_v1

# `base.fit_anchors` is not among them: the task's own, of annotations, has the name; in
# `vision_tasks.all` `sliding_window` is segmentation's: `get_arch` and the learners tell the two apart
__all__ = ['Detector', 'FastRCNN', 'RCNN', 'SlidingWindowDetector', 'TorchvisionDetector', 'YOLO', 'YOLOBody',
           'anchor_iou', 'default_anchors', 'default_windows', 'fast_rcnn', 'faster_rcnn', 'faster_rcnn_vgg16', 'fcos',
           'mask_rcnn', 'pad_dets', 'rcnn', 'retinanet', 'sliding_window', 'ssdlite', 'torchvision_detector', 'yolo_v1']
