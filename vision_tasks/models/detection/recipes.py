"""What `fine_tune` does with the detectors that are built of torchvision's parts, from an ImageNet encoder: the same
for a net on any encoder and for torchvision's own builder"""
__all__ = []

# by the beginning of torchvision's name
RECIPES = dict(fasterrcnn=dict(base_lr=1e-3, grad_clip=1.), maskrcnn=dict(base_lr=2e-3, grad_clip=1.),
               retinanet=dict(base_lr=1e-3), fcos=dict(base_lr=1e-3), ssdlite320=dict(base_lr=1e-2))
