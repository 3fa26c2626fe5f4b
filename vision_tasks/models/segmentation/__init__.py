"Nets that give logits for every pixel; importing this registers all of them for the task 'segmentation'"
from .deconvnet import DeconvNet, deconvnet
from .deeplab import DeepLab, deeplab_v1
from .dilatednet import DilatedNet, dilatednet
from .dynamic_unet import EncoderUnet, dynamic_unet
from .fcdensenet import FCDenseNet, fc_densenet56, fc_densenet67, fc_densenet103
from .fcn import FCN, fcn8s, fcn16s, fcn32s
from .lraspp import LRASPP, dilate, lraspp
from .segnet import SegNet, segnet
from .sliding_window import SlidingWindow, patch_classifier, sliding_window
from .torchvision import TorchvisionSegmenter, torchvision_segmenter
from .unet import UNet, unet

__all__ = ['DeconvNet', 'DeepLab', 'DilatedNet', 'EncoderUnet', 'FCDenseNet', 'FCN', 'LRASPP', 'SegNet',
           'SlidingWindow', 'TorchvisionSegmenter', 'UNet', 'deconvnet', 'deeplab_v1', 'dilate', 'dilatednet',
           'dynamic_unet', 'fc_densenet103', 'fc_densenet56', 'fc_densenet67', 'fcn16s', 'fcn32s', 'fcn8s', 'lraspp',
           'patch_classifier', 'segnet', 'sliding_window', 'torchvision_segmenter', 'unet']
