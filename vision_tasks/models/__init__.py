"""Plain `nn.Module`s: encoders, the registry of architectures, and the architectures. Importing any module of this
package registers all of them, so that `get_arch` finds each by its name"""
from . import detection, segmentation

__all__ = ['detection', 'segmentation']
