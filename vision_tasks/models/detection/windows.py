"Regions of an image as inputs of a classifier, for R-CNN and sliding windows"
from __future__ import annotations
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import roi_align
from ..encoders import create_encoder
from ..layers import zero_loss
from ...ops.boxes import iou_matrix
from .base import on_ignored

__all__ = ['warp_regions']

def warp_regions(
    x:Tensor,        # (b, c, h, w)
    rois:Tensor,     # (n, 5): index of the image in the batch, x1 y1 x2 y2 in its pixels
    crop:int,        # height and width of the crops in pixels
    context:int=0,   # pixels of the crop, on each side, that show the surroundings of the region
) -> Tensor:         # (n, c, crop, crop)
    """Crop regions and warp them to one size, whatever their aspect (R-CNN, appendix A). Upsampling is bilinear;
    downsampling averages, so that there is no aliasing. Half a pixel or more outside the image the crops are 0, the
    mean colour of normalized images"""
    grow = context/(crop - 2*context)
    wh   = rois[:,3:] - rois[:,1:3]
    return roi_align(x, torch.cat([rois[:,:1], rois[:,1:3] - wh*grow, rois[:,3:] + wh*grow], 1), crop, aligned=True)

def as_rois(regions:list[Tensor]) -> Tensor: # b times (n, 4) -> (all n, 5)
    "The regions as one tensor, the index of the image first"
    return torch.cat([F.pad(r, (1, 0), value=float(i)) for i,r in enumerate(regions)])

def label_windows(
    windows:Tensor,         # (n, 4) pixels
    targ:dict[str,Tensor],  # of the image: `boxes` (m, 4) and `labels` (m,), as `Detector.make_targets` returns them
) -> Tensor:                # (n,) class of the object with the highest IoU, if that is 0.5 or more; otherwise 0 for
                            # background, or -1 for what `on_ignored` excludes
    "Classes of windows"
    true = targ['labels'] > 0
    iou,nearest = F.pad(iou_matrix.unchecked(windows, targ['boxes'][true]), (0, 1)).max(1)   # last column: no object
    labels = F.pad(targ['labels'][true], (0, 1))[nearest]*(iou >= .5)
    return labels.masked_fill(on_ignored(windows, labels > 0, targ['boxes'][~true]), -1)

def pick_windows(
    labels:Tensor,   # (n,) of each window: 1.. object, 0 background, -1 excluded
    n_fg:int,        # windows of objects, at most
    n_bg:int,        # windows of background, at most
) -> Tensor:         # (n,) bool
    "Windows to learn from, chosen at random"
    rank,keep = torch.rand(len(labels), device=labels.device),torch.zeros_like(labels, dtype=torch.bool)
    for of,n in ((labels > 0, n_fg), (labels == 0, n_bg)):
        keep[rank.masked_fill(~of, 2).argsort()[:min(n, int(of.sum()))]] = True
    return keep

def window_loss(net, x, regions:list[Tensor], labels:Tensor) -> Tensor:
    "Cross entropy of `net.classifier` on the regions; 0 for fewer than two, which BatchNorm cannot take"
    if len(labels) < 2: return zero_loss(net.parameters())
    return F.cross_entropy(net.classifier(net.features(x, regions)).float(), labels)

class PooledEncoder(nn.Module):
    "(n, n_in, crop, crop) -> (n, d): an encoder's last map, averaged"
    def __init__(self, body):
        super().__init__()
        self.body,self.d,self.mean,self.std = body,body.channels[-1],body.mean,body.std
    def forward(self, x:Tensor) -> Tensor: return self.body(x).mean((2, 3))

def window_encoder(encoder, pretrained, n_in, crop, default=224) -> tuple[PooledEncoder,int]:
    "The encoder with its last map averaged, and the size of its windows: `crop`, or its only size, or `default`"
    enc  = create_encoder(encoder, pretrained == 'encoder' or pretrained, n_in, pyramid=False)
    only = enc.input_size and enc.input_size[0]
    if only and crop not in (None, only):
        raise ValueError(f"{enc.name} takes images of {only} x {only} pixels only, got {crop}; leave it out")
    return PooledEncoder(enc),crop or only or default

def mean_std(encoder, n_in) -> tuple[list,list]:
    "Mean and standard deviation of the `Normalize` that `encoder` needs, for `n_in` channels"
    return tuple(list(o) if n_in == 3 else [sum(o)/3]*n_in for o in (encoder.mean, encoder.std))
