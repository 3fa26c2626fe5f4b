"""How many regions a two-stage detector considers, by the size of its images. torchvision's numbers are for COCO at 800
pixels; at 128 pixels, where a region has a fortieth of the area, most of their time goes to regions that overlap"""
from __future__ import annotations

__all__ = []

COCO   = dict(box_batch_size_per_image=512, rpn_post_nms_top_n_train=2000, rpn_post_nms_top_n_test=1000)
FEWEST = dict(box_batch_size_per_image=64,  rpn_post_nms_top_n_train=200,  rpn_post_nms_top_n_test=100)

def region_counts(
    size:int|tuple,      # of the images in pixels: one number, or (w, h)
    most:dict=COCO,      # numbers for images of `full` pixels and larger ones
    full:int=800,        # pixels of the shorter side
) -> dict[str,int]:      # arguments of torchvision's `FasterRCNN` and `MaskRCNN`
    """Regions to learn from in each image, and proposals in training and in prediction: in proportion to the area of
    the image, at least `FEWEST` (64, 200, 100: up to about 280 pixels) and at most `most`"""
    w,h = (size, size) if isinstance(size, int) else size
    share = w*h/full**2
    return {k: min(n, max(round(n*share), FEWEST.get(k, 0))) for k,n in most.items()}
