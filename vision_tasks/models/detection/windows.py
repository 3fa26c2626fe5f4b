"Regions of an image as inputs of a classifier, as R-CNN and sliding windows use them"
from __future__ import annotations
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import box_iou, roi_align
from ..encoders import create_encoder
from ..layers import zero_loss
from .base import on_ignored

__all__ = ['warp_regions']

# --- regions as pictures

def warp_regions(
    x:Tensor,        # (b, c, h, w)
    rois:Tensor,     # (n, 5): index of the picture, x1 y1 x2 y2 in its pixels
    crop:int,        # side in pixels of what comes out
    context:int=0,   # pixels of that, on each side, that show what is around the region
) -> Tensor:         # (n, c, crop, crop)
    """The regions as pictures of one size, whatever their shape (appendix A). Enlarging interpolates; shrinking takes
    means, so that nothing is aliased. What is half a pixel or more outside of the picture is 0: the mean colour, where
    pictures are normalised"""
    grow = context/(crop - 2*context)
    wh   = rois[:,3:] - rois[:,1:3]
    return roi_align(x, torch.cat([rois[:,:1], rois[:,1:3] - wh*grow, rois[:,3:] + wh*grow], 1), crop, aligned=True)

def as_rois(regions:list[Tensor]) -> Tensor: # b times (n, 4) -> (all n, 5), the index of the picture in front
    return torch.cat([F.pad(r, (1, 0), value=float(i)) for i,r in enumerate(regions)])

def label_windows(
    windows:Tensor,         # (n, 4) pixels
    targ:dict[str,Tensor],  # of the image: `boxes` (m, 4) and `labels` (m,), as `Detector.make_targets` returns them
) -> Tensor:                # (n,) class of the object with the highest IoU, if that is 0.5 or more; otherwise 0 for
                            # background, or -1 for what `on_ignored` excludes
    "Classes of windows"
    true = targ['labels'] > 0
    iou,nearest = F.pad(box_iou(windows, targ['boxes'][true]), (0, 1)).max(1)    # the last column: no object
    labels = F.pad(targ['labels'][true], (0, 1))[nearest]*(iou >= .5)
    return labels.masked_fill(on_ignored(windows, labels > 0, targ['boxes'][~true]), -1)

def pick_windows(
    labels:Tensor,   # (n,) of each window: 1.. object, 0 background, -1 neither
    n_fg:int,        # objects, and
    n_bg:int,        # background, at most
) -> Tensor:         # (n,) bool
    "Windows to learn from, drawn at random"
    lot,keep = torch.rand(len(labels), device=labels.device),torch.zeros_like(labels, dtype=torch.bool)
    for of,n in ((labels > 0, n_fg), (labels == 0, n_bg)):
        keep[lot.masked_fill(~of, 2).argsort()[:min(n, int(of.sum()))]] = True
    return keep

def window_loss(net, x, regions:list[Tensor], labels:Tensor) -> Tensor:
    "Cross entropy of `net.classifier` on the regions; 0 of fewer than two, which BatchNorm does not take"
    if len(labels) < 2: return zero_loss(net.parameters())
    return F.cross_entropy(net.classifier(net.features(x, regions)).float(), labels)

class PooledEncoder(nn.Module):
    "(n, n_in, crop, crop) -> (n, d): an encoder's last map, averaged"
    def __init__(self, body):
        super().__init__()
        self.body,self.d,self.mean,self.std = body,body.channels[-1],body.mean,body.std
    def forward(self, x:Tensor) -> Tensor: return self.body(x).mean((2, 3))

def window_encoder(encoder, pretrained, n_in, crop, default=224) -> tuple[PooledEncoder,int]:
    "The encoder under a mean, and the side of its windows: `crop`, or what it is made for"
    enc  = create_encoder(encoder, pretrained == 'encoder' or pretrained, n_in, pyramid=False)
    only = enc.input_size and enc.input_size[0]
    if only and crop not in (None, only):
        raise ValueError(f"{enc.name} takes pictures of {only} x {only} pixels only; {crop} came: leave it out")
    return PooledEncoder(enc),crop or only or default

def mean_std(encoder, n_in) -> tuple[list,list]:
    "Of the `Normalize` that `encoder` wants, for `n_in` channels"
    return tuple(list(o) if n_in == 3 else [sum(o)/3]*n_in for o in (encoder.mean, encoder.std))
