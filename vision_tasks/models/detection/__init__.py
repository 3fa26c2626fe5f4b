"Detectors; importing this registers all of them for the tasks 'detection' and 'instance'"
from . import fast_rcnn, faster_rcnn, fcos, mask_rcnn, rcnn, retinanet, sliding_window, ssdlite, torchvision, yolo

__all__ = ['fast_rcnn', 'faster_rcnn', 'fcos', 'mask_rcnn', 'rcnn', 'retinanet', 'sliding_window', 'ssdlite',
           'torchvision', 'yolo']
