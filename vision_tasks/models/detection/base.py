"""The base class of all detectors, with losses and detections of fixed shapes; box encoding and proposals, which the
R-CNN family shares; anchors from the sizes of objects"""
from __future__ import annotations
import math
import torch
from torch import Tensor, nn
from torchvision.ops import batched_nms, box_iou, clip_boxes_to_image
from ...arguments import checked, whole
from ..kinds import NETS, WHS
from ..layers import refuse_nan

__all__ = ['Detector', 'pad_dets', 'nms_dets', 'lies_on', 'on_ignored', 'check_proposals', 'encode_bboxes',
           'decode_bboxes', 'cluster_anchors', 'anchor_iou', 'MIN_SCORE']

# The lowest score of a detection, the same for all nets, so that their APs can be compared. torchvision's defaults are
# 0.2 (FCOS), 0.05 (Faster and Mask R-CNN, RetinaNet), 0.01 (SSD) and 0.001 (SSDlite)
MIN_SCORE = .01

class Detector(nn.Module):
    """Base class of all detectors. `forward` returns a dict of losses in training mode, detections (b, max_dets, 6) in
    eval mode, and (losses, detections) in eval mode with targets. A net that `has_masks` returns (detections, masks
    (b, max_dets, m, m)) instead of detections. A subclass implements `losses_and_dets` and sets `encoder` to the
    pretrained body, or None"""
    mean,std = None,None   # statistics of the `Normalize` that the DataLoaders need; None: x is in [0, 1]
    normalizes = False     # whether the net normalizes x itself
    max_dets = 100         # detections per image
    n_out    = None        # classes without background
    has_masks = False      # whether it predicts masks too: probabilities in [0, 1], spread over the box
    needs_proposals = False   # whether `proposals` must be passed

    def forward(self,
        x:Tensor,               # (b, n_in, h, w) float
        bboxes:Tensor=None,     # (b, n, 4) x1 y1 x2 y2, pixels of x; boxes that are less than 1 pixel wide or high
                                # inside the image are excluded
        labels:Tensor=None,     # (b, n) integers: 1..n_out; 0: padding; -1: an ignored object (crowd, difficult)
        masks:Tensor=None,      # (b, n, h, w) bool or uint8, for nets that learn masks
        proposals:Tensor=None,  # (b, k, 4) pixels of x: boxes without labels, for nets that do not find their own;
                                # boxes without area inside the image, such as padding, are excluded
    ) -> dict[str,Tensor]|Tensor|tuple: # losses, detections, or both; a detection is x1 y1 x2 y2 score label, and
                                # label 0 is padding
        """Losses, detections or both. Raises `ValueError` for inputs of other shapes or types, for labels beyond
        `n_out`, for training without targets, and in eval mode for a net that predicts nan"""
        x,bboxes,labels,masks,proposals = (None if o is None else o.as_subclass(Tensor)
                                           for o in (x, bboxes, labels, masks, proposals))
        if x.ndim != 4 or not x.is_floating_point():
            todo = '' if x.is_floating_point() else '; divide by 255, as `IntToFloatTensor` does'
            raise ValueError("x: expected a batch of images, (b, c, h, w) floats, got "
                             f"{tuple(x.shape)} of {x.dtype}{todo}")
        if self.training and bboxes is None:
            raise ValueError("bboxes and labels are needed for a loss in training mode; call `eval()` for detections")
        targs = None if bboxes is None else self.make_targets(x, bboxes, labels, masks)
        parts,dets = self.losses_and_dets(x, targs, proposals)
        if not self.training: refuse_nan(dets)
        return parts if self.training else dets if targs is None else (parts, dets)

    def losses_and_dets(self,
        x:Tensor,               # (b, n_in, h, w) float
        targs:list[dict]|None,  # per image, as `make_targets` returns them
        proposals:Tensor|None,  # (b, k, 4) pixels of x
    ) -> tuple:                 # losses by name, detections; None for what `forward` does not return
        """Losses and detections from one forward pass. In eval mode it changes no statistic and no random state, so
        that the losses can be repeated, and nan raises (`refuse_nan`) before a threshold drops it: a diverged model
        would seem to detect nothing"""
        raise NotImplementedError

    def make_targets(self,
        x:Tensor,           # (b, n_in, h, w)
        bboxes:Tensor,      # (b, n, 4), as for `forward`
        labels:Tensor,      # (b, n), as for `forward`
        masks:Tensor=None,  # (b, n, h, w), as for `forward`; None (default): no masks
    ) -> list[dict[str,Tensor]]: # per image `boxes` (n, 4), `labels` (n,) and, if passed, `masks` (n, h, w)
        """Targets of each image: boxes clipped to it, without the padding, but with the ignored objects. Raises
        `ValueError` for shapes that do not fit each other and for labels outside of -1..n_out"""
        b,n = bboxes.shape[:2]
        shapes = dict(bboxes=((b, n, 4), bboxes), labels=((b, n), labels))
        if masks is not None: shapes['masks'] = (b, n, *x.shape[-2:]),masks
        for k,(want,o) in shapes.items():
            if o is None or tuple(o.shape) != want or b != len(x):
                raise ValueError(f"{k}: expected the shape {(len(x), *want[1:])} for {len(x)} images of "
                                 f"{x.shape[-2]} x {x.shape[-1]} pixels with up to {n} objects, got "
                                 f"{'None' if o is None else tuple(o.shape)}")
        bad = labels[(labels < -1) | (labels > self.n_out)].tolist()
        if bad:
            raise ValueError(f"labels: expected 1..{self.n_out}, 0 for padding and -1 for ignored objects, got {bad[0]}"
                             "; was the net made for another vocab?")
        bboxes = clip_boxes_to_image(bboxes.to(x), x.shape[-2:])
        labels = labels.to(x.device, torch.long)
        keep   = (labels != 0) & ((bboxes[...,2:] - bboxes[...,:2]).amin(-1) >= 1)
        parts  = dict(boxes=bboxes, labels=labels)
        if masks is not None: parts['masks'] = masks.to(x.device, torch.uint8)
        return [{name: o[i][k] for name,o in parts.items()} for i,k in enumerate(keep)]

# --- detections as tensors

def pad_dets(
    found:list[dict],      # per image: `boxes` (n, 4), `scores` (n,), `labels` (n,), 0 = none; the best first
    size:tuple[int,int],   # (h, w) pixels of the images, to which boxes are clipped
    max_dets:int,          # detections per image; further ones are dropped
) -> Tensor:               # (b, max_dets, 6) float32: x1 y1 x2 y2 score label, padded with zeros
    "Detections as one tensor, whose shape does not depend on their number"
    out = torch.zeros(len(found), max_dets, 6, device=found[0]['boxes'].device)
    for i,d in enumerate(found):
        rows = torch.cat([clip_boxes_to_image(d['boxes'], size), d['scores'][:,None], d['labels'][:,None]], 1)
        rows = rows[d['labels'] > 0][:max_dets]
        out[i, :len(rows)] = rows
    return out

def nms_dets(
    bboxes:Tensor,         # (n, c, 4) pixels: the box of each region for each class
    scores:Tensor,         # (n, c) in [0, 1]
    size:tuple[int,int],   # (h, w) pixels of the image, to which boxes are clipped; boxes without area are dropped
    min_score:float=MIN_SCORE,   # detections with this score or less are dropped
    nms:float=.3,          # a box is dropped if its IoU with a better one of its class is above this
    max_dets:int=100,      # detections to keep at most
) -> dict[str,Tensor]:     # `boxes` (k, 4), `scores` (k,), `labels` (k,) from 1 on, the best first, for `pad_dets`
    "Non-maximum suppression, class by class"
    bboxes = clip_boxes_to_image(bboxes, size)
    keep   = (scores > min_score) & (bboxes[...,2:] > bboxes[...,:2]).all(-1)
    bboxes,scores,labels = bboxes[keep],scores[keep],keep.nonzero()[:,1]
    best = batched_nms(bboxes, scores, labels, nms)[:max_dets]
    return dict(boxes=bboxes[best], scores=scores[best], labels=labels[best]+1)

# --- ignored objects

def lies_on(
    bboxes:Tensor,   # (n, 4) pixels
    on:Tensor,       # (m, 4) pixels
    share:float=.5,  # of the area of each of `bboxes`, in (0, 1]
) -> Tensor:         # (n,) bool
    "Whether at least `share` of a box's own area is inside one of the boxes `on`; False for a box without area"
    inter = (torch.minimum(bboxes[:,None,2:], on[:,2:]) - torch.maximum(bboxes[:,None,:2], on[:,:2])).clamp(min=0)
    inside = (inter.prod(-1) >= share*(bboxes[:,2:] - bboxes[:,:2]).prod(-1)[:,None]).any(1)
    return inside & (bboxes[:,2:] > bboxes[:,:2]).all(1)

def on_ignored(
    bboxes:Tensor,   # (n, 4) pixels: anchors, proposals, windows or predictions of one image
    matched:Tensor,  # (n,) bool, whether each matches an object that is not ignored; (n, c): an object of each class
    ignored:Tensor,  # (m, 4) pixels: the ignored objects of the image
) -> Tensor:         # bool, as `matched`
    """Which boxes are neither object nor background, so that the loss excludes them: at least half of the box's area is
    inside one ignored object, and it matches no other object. The same rule in every detector"""
    return ~matched & lies_on(bboxes, ignored).view(-1, *[1]*(matched.ndim-1))

# --- proposals and box regression

def check_proposals(
    x:Tensor,          # (b, c, h, w)
    proposals:Tensor,  # (b, k, 4) pixels of x, or None, which raises
) -> list[Tensor]:     # per image (n, 4) float32
    """Proposals clipped to the image, without those that have no area in it. Raises `ValueError` where none are passed
    or their shape does not fit"""
    if proposals is None:
        raise ValueError("this net does not find its own proposals: make the DataLoaders with "
                         "`detection_dls(..., proposals='selective_search')`, or pass (b, k, 4) boxes as `proposals`")
    if proposals.ndim != 3 or len(proposals) != len(x) or proposals.shape[-1] != 4:
        raise ValueError(f"proposals: expected {(len(x), 'k', 4)} boxes for {len(x)} images, padded with zeros, got "
                         f"{tuple(proposals.shape)}")
    proposals = clip_boxes_to_image(proposals.to(x.device, torch.float32), x.shape[-2:])
    return [p[(p[:,2:] > p[:,:2]).all(1)] for p in proposals]

MAX_LOG = math.log(1000/16)   # as in Detectron and torchvision: a box is at most 62.5 times the size of its region

def _centre_size(bboxes) -> tuple[Tensor,Tensor]:
    return (bboxes[...,:2] + bboxes[...,2:])/2,bboxes[...,2:] - bboxes[...,:2]

def encode_bboxes(
    bboxes:Tensor,    # (..., 4) pixels, ground truth
    regions:Tensor,   # (..., 4) pixels, the region for each box; both have an area
) -> Tensor:          # (..., 4): dx/w and dy/h of the centre; log of the ratios of width and height
    "Regression targets: the deltas from `regions` to `bboxes` (R-CNN, arXiv:1311.2524, appendix C)"
    (c,wh),(rc,rwh) = _centre_size(bboxes),_centre_size(regions)
    return torch.cat([(c - rc)/rwh, (wh/rwh).log()], -1)

def decode_bboxes(
    deltas:Tensor,    # (..., 4) as `encode_bboxes` returns them; logarithms are clipped to `MAX_LOG`, so exp is finite
    regions:Tensor,   # (..., 4) pixels
) -> Tensor:          # (..., 4) pixels, not clipped to the image
    "Apply `deltas` to `regions`; the inverse of `encode_bboxes`"
    rc,rwh = _centre_size(regions)
    c,wh = rc + deltas[...,:2]*rwh,rwh*deltas[...,2:].clamp(max=MAX_LOG).exp()
    return torch.cat([c - wh/2, c + wh/2], -1)

# --- anchors

def _means(x, k) -> Tensor:
    "k-means of numbers, sorted; it starts from quantiles, so that the result does not depend on chance"
    x = x.double()
    means = x.quantile((torch.arange(k).double() + .5)/k)
    for _ in range(100):
        near = (x[:,None] - means).abs().argmin(1)
        n    = torch.bincount(near, minlength=k)
        new  = torch.where(n > 0, torch.bincount(near, x, k)/n.clamp(min=1), means).sort().values
        if torch.equal(new, means): break
        means = new
    return means

@checked(whs=WHS, levels=whole(1, 1000), sizes=whole(1, 1000), ratios=whole(1, 1000))
def cluster_anchors(
    whs:Tensor,     # (n, 2) widths and heights of objects, pixels of the net's input
    levels:int=5,   # feature maps of the net, from fine to coarse; each gets `sizes` sizes, the small ones first
    sizes:int=1,    # sizes per level: 1 as in Faster R-CNN, 3 as in RetinaNet
    ratios:int=3,   # aspect ratios, the same on all levels
) -> tuple[tuple,tuple]:   # sizes by level (square root of the area, pixels) and ratios height/width, for `anchors=`
    "Anchors by k-means of the logarithms of the objects' sizes and aspect ratios, so that errors count as factors"
    w,h = torch.as_tensor(whs).double().log().T
    all_sizes = _means((w + h)/2, levels*sizes).exp().tolist()
    return (tuple(tuple(all_sizes[i*sizes:(i+1)*sizes]) for i in range(levels)),
            tuple(_means(h - w, ratios).exp().tolist()))

@checked(whs=WHS, anchors=NETS['anchors'])
def anchor_iou(
    whs:Tensor,            # (n, 2) widths and heights of objects, pixels
    anchors:tuple,         # sizes by level, aspect ratios, as `fit_anchors` returns them
) -> Tensor:               # (n,) in [0, 1]
    "IoU of each object with its best anchor, both at the same centre: the higher, the better the anchors fit"
    s = torch.tensor([o for level in anchors[0] for o in level])[:,None]
    r = torch.tensor(anchors[1]).sqrt()
    corner = lambda w,h: torch.stack([-w, -h, w, h], -1)/2
    whs = torch.as_tensor(whs, dtype=s.dtype)
    return box_iou(corner(*whs.T), corner((s/r).flatten(), (s*r).flatten())).amax(1)
