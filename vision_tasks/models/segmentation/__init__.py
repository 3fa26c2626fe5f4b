"Nets that give logits for every pixel; importing this registers all of them for the task 'segmentation'"
from .dynamic_unet import EncoderUnet, dynamic_unet
from .lraspp import LRASPP, dilate, lraspp
from .torchvision import TorchvisionSegmenter, torchvision_segmenter
from .unet import UNet, unet

__all__ = ['EncoderUnet', 'LRASPP', 'TorchvisionSegmenter', 'UNet', 'dilate', 'dynamic_unet', 'lraspp',
           'torchvision_segmenter', 'unet']
