"Segmentation networks; importing this registers all of them for the task 'segmentation'"
from . import (deconvnet, deeplab, dilatednet, dynamic_unet, fcdensenet, fcn, light_unet, lraspp, segnet,
               sliding_window, torchvision, unet)

__all__ = ['deconvnet', 'deeplab', 'dilatednet', 'dynamic_unet', 'fcdensenet', 'fcn', 'light_unet', 'lraspp',
           'segnet', 'sliding_window', 'torchvision', 'unet']
