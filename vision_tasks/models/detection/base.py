"""What every detector is: targets in, losses and detections out, of fixed shapes; what those on proposals share; and
anchors that fit the objects"""
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

# The lowest score of a detection, the same for all nets, so that their APs compare: torchvision's own are .2 (FCOS),
# .05 (Faster and Mask R-CNN, RetinaNet), .01 (SSD) and .001 (SSDlite)
MIN_SCORE = .01

class Detector(nn.Module):
    """Losses by name when training; detections (b, max_dets, 6) in eval, of a net that `has_masks` (detections, masks
    (b, max_dets, m, m)); both, (losses, detections), in eval with targets. A subclass writes `losses_and_dets`, and has
    an `encoder`: the pretrained body, if there is one"""
    mean,std = None,None   # of the `Normalize` that the dls must have; None: x is in [0, 1]
    normalizes = False     # whether the net normalizes x itself
    max_dets = 100         # detections a picture
    n_out    = None        # classes without background
    has_masks = False      # whether it finds an object's pixels too: probabilities in [0, 1], spread over its box
    needs_proposals = False   # whether `proposals` must be given

    def forward(self,
        x:Tensor,               # (b, n_in, h, w) float
        bboxes:Tensor=None,     # (b, n, 4) x1 y1 x2 y2, pixels of x; what is less than 1 pixel wide or high inside the
                                # picture does not count
        labels:Tensor=None,     # (b, n) integers: 1..n_out; 0: padding; -1: an object to be ignored (crowd, difficult)
        masks:Tensor=None,      # (b, n, h, w) bool or uint8, for nets that learn masks
        proposals:Tensor=None,  # (b, k, 4) boxes without labels, for nets that do not find their own; what has no area
                                # inside the picture, as padding has, does not count
    ) -> dict[str,Tensor]|Tensor|tuple: # a detection is x1 y1 x2 y2 score label; label 0: none
        x,bboxes,labels,masks,proposals = (None if o is None else o.as_subclass(Tensor)
                                           for o in (x, bboxes, labels, masks, proposals))
        if x.ndim != 4 or not x.is_floating_point():
            raise ValueError(f"x is a batch of pictures, (b, c, h, w) floats; {tuple(x.shape)} of {x.dtype} came"
                             + ("" if x.is_floating_point() else ": divide by 255, as `IntToFloatTensor` does"))
        if self.training and bboxes is None:
            raise ValueError("bboxes and labels are needed for a loss in training mode; call `eval()` for detections")
        targs = None if bboxes is None else self.make_targets(x, bboxes, labels, masks)
        parts,dets = self.losses_and_dets(x, targs, proposals)
        if not self.training: refuse_nan(dets)
        return parts if self.training else dets if targs is None else (parts, dets)

    def losses_and_dets(self, x, targs, proposals):
        """(losses by name, detections) from one pass; either may be None where `forward` does not give
        it. In eval no statistic and no state of a random generator changes, the losses can be repeated, and nan raises
        (`refuse_nan`) before a threshold drops it: a model that diverged would seem to find nothing"""
        raise NotImplementedError

    def make_targets(self, x, bboxes, labels, masks=None) -> list[dict[str,Tensor]]:
        "`boxes`, `labels`, `masks` of each picture without the padding, clipped; ignored objects are still among them"
        b,n = bboxes.shape[:2]
        shapes = dict(bboxes=((b, n, 4), bboxes), labels=((b, n), labels))
        if masks is not None: shapes['masks'] = (b, n, *x.shape[-2:]),masks
        for k,(want,o) in shapes.items():
            if o is None or tuple(o.shape) != want or b != len(x):
                raise ValueError(f"{k} of {len(x)} pictures with up to {n} objects of "
                                 f"{x.shape[-2]} x {x.shape[-1]} pixels is {(len(x), *want[1:])}; "
                                 f"{'None' if o is None else tuple(o.shape)} came")
        bad = labels[(labels < -1) | (labels > self.n_out)].tolist()
        if bad:
            raise ValueError(f"labels are 1..{self.n_out}, 0 for padding and -1 for objects to be ignored; {bad[0]} "
                             "came: was the net made for another vocab?")
        bboxes = clip_boxes_to_image(bboxes.to(x), x.shape[-2:])
        labels = labels.to(x.device, torch.long)
        keep   = (labels != 0) & ((bboxes[...,2:] - bboxes[...,:2]).amin(-1) >= 1)
        parts  = dict(boxes=bboxes, labels=labels)
        if masks is not None: parts['masks'] = masks.to(x.device, torch.uint8)
        return [{name: o[i][k] for name,o in parts.items()} for i,k in enumerate(keep)]

def pad_dets(
    found:list[dict],      # a picture: `boxes` (n, 4), `scores` (n,), `labels` (n,), 0 = none; the best first
    size:tuple[int,int],   # (h, w) pixels, to which boxes are clipped
    max_dets:int,
) -> Tensor:               # (b, max_dets, 6) float32: x1 y1 x2 y2 score label, zeros behind the last
    "Detections as one tensor, whose shape does not depend on how many there are"
    out = torch.zeros(len(found), max_dets, 6, device=found[0]['boxes'].device)
    for i,d in enumerate(found):
        rows = torch.cat([clip_boxes_to_image(d['boxes'], size), d['scores'][:,None], d['labels'][:,None]], 1)
        rows = rows[d['labels'] > 0][:max_dets]
        out[i, :len(rows)] = rows
    return out

def lies_on(
    bboxes:Tensor,   # (n, 4)
    on:Tensor,       # (m, 4)
    share:float=.5,  # in (0, 1]
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

def nms_dets(
    bboxes:Tensor,         # (n, c, 4) pixels: the box of each region, were it an object of that class
    scores:Tensor,         # (n, c)
    size:tuple[int,int],   # (h, w) pixels, to which boxes are clipped; those without an area are left out
    min_score:float=MIN_SCORE,   # detections that score this or less are dropped
    nms:float=.3,          # a box goes whose IoU with a better one of its class is above
    max_dets:int=100,
) -> dict[str,Tensor]:     # `boxes`, `scores`, `labels` from 1 on, the best first: what `pad_dets` takes
    "Non-maximum suppression, class by class"
    bboxes = clip_boxes_to_image(bboxes, size)
    keep   = (scores > min_score) & (bboxes[...,2:] > bboxes[...,:2]).all(-1)
    bboxes,scores,labels = bboxes[keep],scores[keep],keep.nonzero()[:,1]
    best = batched_nms(bboxes, scores, labels, nms)[:max_dets]
    return dict(boxes=bboxes[best], scores=scores[best], labels=labels[best]+1)

# --- proposals

def check_proposals(
    x:Tensor,          # (b, c, h, w)
    proposals:Tensor,  # (b, k, 4) pixels of x
) -> list[Tensor]:     # (n, 4) float32 of each picture
    "Proposals clipped to the picture, without those that have no area in it; `ValueError` where there are none at all"
    if proposals is None:
        raise ValueError("this net does not find its own proposals: make the DataLoaders with "
                         "`detection_dls(..., proposals='selective_search')`, or pass (b, k, 4) boxes as `proposals`")
    if proposals.ndim != 3 or len(proposals) != len(x) or proposals.shape[-1] != 4:
        raise ValueError(f"proposals of {len(x)} pictures is {(len(x), 'k', 4)} boxes, padded with zeros; "
                         f"{tuple(proposals.shape)} came")
    proposals = clip_boxes_to_image(proposals.to(x.device, torch.float32), x.shape[-2:])
    return [p[(p[:,2:] > p[:,:2]).all(1)] for p in proposals]

MAX_LOG = math.log(1000/16)   # as Detectron and torchvision: a box is at most 62.5 times as wide and high as its region

def _centre_size(bboxes) -> tuple[Tensor,Tensor]:
    return (bboxes[...,:2] + bboxes[...,2:])/2,bboxes[...,2:] - bboxes[...,:2]

def encode_bboxes(
    bboxes:Tensor,    # (..., 4) the true boxes
    regions:Tensor,   # (..., 4) where each is looked for; both have an area
) -> Tensor:          # (..., 4): centre's dx/w, dy/h; log of the width's and the height's ratio
    "What must be done to `regions` to get `bboxes` (R-CNN, arXiv:1311.2524, appendix C)"
    (c,wh),(rc,rwh) = _centre_size(bboxes),_centre_size(regions)
    return torch.cat([(c - rc)/rwh, (wh/rwh).log()], -1)

def decode_bboxes(
    deltas:Tensor,    # (..., 4) as `encode_bboxes` gives them; logarithms count as `MAX_LOG` at most: exp stays finite
    regions:Tensor,   # (..., 4)
) -> Tensor:          # (..., 4) boxes
    "The boxes that `deltas` make of `regions`"
    rc,rwh = _centre_size(regions)
    c,wh = rc + deltas[...,:2]*rwh,rwh*deltas[...,2:].clamp(max=MAX_LOG).exp()
    return torch.cat([c - wh/2, c + wh/2], -1)

# --- anchors

def _means(x, k) -> Tensor:
    "The k means of numbers, sorted; they begin at quantiles, so that nothing is left to chance"
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
    levels:int=5,   # maps of the net; each gets `sizes` sizes, small ones the first
    sizes:int=1,    # 1 as in Faster R-CNN, 3 as in RetinaNet
    ratios:int=3,   # aspect ratios, of all levels
) -> tuple[tuple,tuple]:   # sizes by level (square root of the area, pixels), height/width: what `anchors=` takes
    "Anchors by k-means of the objects' sizes and aspect ratios, of their logarithms: errors count as factors"
    w,h = torch.as_tensor(whs).double().log().T
    all_sizes = _means((w + h)/2, levels*sizes).exp().tolist()
    return (tuple(tuple(all_sizes[i*sizes:(i+1)*sizes]) for i in range(levels)),
            tuple(_means(h - w, ratios).exp().tolist()))

@checked(whs=WHS, anchors=NETS['anchors'])
def anchor_iou(
    whs:Tensor,            # (n, 2) widths and heights of objects, pixels
    anchors:tuple,         # sizes by level, aspect ratios, as `fit_anchors` gives them
) -> Tensor:               # (n,) in [0, 1]
    "How well the best anchor covers each object, the two centred on each other: the higher, the better the anchors fit"
    s = torch.tensor([o for level in anchors[0] for o in level])[:,None]
    r = torch.tensor(anchors[1]).sqrt()
    corner = lambda w,h: torch.stack([-w, -h, w, h], -1)/2
    whs = torch.as_tensor(whs, dtype=s.dtype)
    return box_iou(corner(*whs.T), corner((s/r).flatten(), (s*r).flatten())).amax(1)
