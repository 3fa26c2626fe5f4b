"""YOLO v1: the grid cell that holds an object's centre predicts its box and class; the net sees the whole image once
(Redmon et al., 2015, arXiv:1506.02640). What the paper leaves open, and what differs from it:
- The net predicts the square roots of w and h, as in the released code (`sqrt=1` in its cfg): its last layer is linear,
  and the root of a negative number or 0 has no gradient. Boxes have the squares.
- The responsible box of a cell is the one with the highest IoU; where none overlaps the object, the one with the lowest
  mean squared difference in x, y, w and h, as in the released code. Otherwise the first box would always be chosen at
  the start of training.
- Class probabilities and confidences are clipped to [0, 1] before they are multiplied: two negative numbers are no
  score.
- The cell with the centre of an ignored object, and boxes on one (`on_ignored`), are not background.
- Cells are 64 pixels wide and high, or 32 (conv 22 then has stride 1); images need not be square. Another encoder gives
  the map with two positions per cell in each direction, where it has one: a map as coarse as the cells may not tell
  where in its cell an object is (`benchmarks/yolo_steps.py --probe`).
- No BatchNorm, and a layer of 4096 units before the last, as in the paper; the cfg released later has BatchNorm in all
  convolutions (`bn=True`), a locally connected layer instead of the 4096 units, and three boxes per cell.
- The last map of another encoder is normalized to a standard deviation of 0.1 (BatchNorm without parameters), because
  a rate that suits one encoder's map is a tenth of what another's wants (`benchmarks/yolo_steps.py`).
- A new net predicts, in every cell, boxes of the cell's size in its middle, and each class as probable."""
from __future__ import annotations
import math
from pathlib import Path
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import clip_boxes_to_image
from timm.models import adapt_input_conv
from ...ops.boxes import paired_iou
from ..encoders import create_encoder, read_weights
from ..kinds import MODULE, WITH_ENCODER, checked_net
from ..layers import check_norm, init_he, refuse_nan, scaled
from ..registry import register
from .base import MIN_SCORE, Detector, nms_dets, on_ignored, pad_dets
from ...warning import warn

__all__ = ['YOLO', 'YOLOBody', 'in_cells', 'out_of_cells', 'yolo_loss', 'yolo_v1']

# --- the grid: a net's output is (b, rows, columns, B*5 + n_out), for each cell B times [x, y, sqrt w, sqrt h,
#     confidence], then class probabilities; x and y relative to the cell, w and h to the image

def in_cells(
    bboxes:Tensor,         # (n, 4) x1 y1 x2 y2, pixels, inside the image
    S:tuple[int,int],      # (columns, rows) of the grid
    size:tuple[int,int],   # (w, h) pixels of the image
) -> tuple[Tensor,Tensor]: # (n,) index of the cell, row by row; (n, 4) x y relative to it, w h to the image, in [0, 1]
    """The cell that holds each box's centre, and the box relative to it; a centre on the right or bottom edge of the
    image belongs to the last cell"""
    size,S = (bboxes.new_tensor(o) for o in (size, S))
    at     = (bboxes[:,:2] + bboxes[:,2:])/2/size*S
    cell   = at.floor().minimum(S-1)
    return (cell[:,1]*S[0] + cell[:,0]).long(),torch.cat([at-cell, (bboxes[:,2:] - bboxes[:,:2])/size], 1)

def out_of_cells(
    rel:Tensor,            # (..., 4) x y relative to the cell, sqrt w, sqrt h relative to the image
    cell:Tensor,           # (...) index of the cell
    S:tuple[int,int],      # (columns, rows) of the grid
    size:tuple[int,int],   # (w, h) pixels of the image
) -> Tensor:               # (..., 4) x1 y1 x2 y2, pixels, not clipped
    "Boxes in pixels from a net's output"
    at = torch.stack([cell % S[0], cell//S[0]], -1)
    size,S = (rel.new_tensor(o) for o in (size, S))
    c,half = (at + rel[...,:2])/S*size,rel[...,2:].square()*size/2
    return torch.cat([c - half, c + half], -1)

def _largest(cell, bboxes, n) -> Tensor:
    "(m,) bool: which of `bboxes` are the largest in their `cell`, one of `n` cells; of equal ones the first"
    area = (bboxes[:,2:] - bboxes[:,:2]).prod(1)
    rank = area.argsort(descending=True, stable=True).argsort()
    return torch.full((n,), len(rank), device=rank.device).scatter_reduce(0, cell, rank, 'amin')[cell] == rank

def _responsible(rel, cell, bboxes, target, S, size) -> tuple[Tensor,Tensor]:
    "Index of the responsible box in each object's cell, and its IoU: (n, B, 4), ... -> (n,), (n,)"
    iou  = paired_iou.unchecked(out_of_cells(rel, cell[:,None], S, size), bboxes[:,None])
    target = target[:,None]
    away = torch.cat([(rel[...,:2] - target[...,:2])/rel.new_tensor(S), rel[...,2:].square() - target[...,2:]], -1)
    best = torch.where(iou.amax(1, keepdim=True) > 0, iou, -away.square().mean(-1)).argmax(1)
    return best,iou.gather(1, best[:,None])[:,0].nan_to_num()    # of boxes whose area overflows float32

def _on_ignored(rel, matched, targs, S, size) -> Tensor:
    "(b*n, B) bool: which of the boxes `rel`, (b*n, B, 4), `on_ignored` excludes"
    rel,matched = (o.unflatten(0, (len(targs), -1)) for o in (rel, matched))                            # (b, n, B, ..)
    bboxes = out_of_cells(rel, torch.arange(rel.shape[1], device=rel.device)[:,None], S, size)
    bboxes = clip_boxes_to_image(bboxes, size[::-1]).flatten(1, 2)
    on = [on_ignored(b, m, t['boxes'][t['labels'] < 0]) for b,m,t in zip(bboxes, matched.flatten(1), targs)]
    return torch.stack(on).view(-1, rel.shape[2])

def yolo_loss(
    out:Tensor,            # (b, rows, columns, B*5 + n_out) float32, the net's output
    targs:list[dict],      # per image `boxes` (n, 4) pixels, `labels` (n,): 1..n_out, -1 = ignored
    B:int,                 # boxes per cell
    size:tuple[int,int],   # (w, h) pixels of the image
) -> tuple[dict[str,Tensor],int]: # losses by name, with the paper's factors, means over the images; number of objects
                                  # dropped because of a larger one in the same cell
    "Sums of squared errors, §2.2 eq. 3"
    b,rows,cols,_ = out.shape
    S,n    = (cols, rows),rows*cols
    out    = out.flatten(0, 2)
    rel    = out[:,:B*5].unflatten(1, (B, 5))                         # (b*n, B, 5)
    image  = torch.arange(b, device=out.device).repeat_interleave(
        torch.tensor([len(t['labels']) for t in targs], device=out.device))
    bboxes,labels = (torch.cat([t[k] for t in targs]) for k in ('boxes', 'labels'))
    cell,target = in_cells(bboxes, S, size)
    where  = image*n + cell                                           # index among the cells of all images
    ignored = where[labels < 0]                                       # cells with the centre of an ignored object
    obj    = (labels > 0).nonzero()[:,0]
    one    = obj[_largest(where[obj], bboxes[obj], b*n)]
    where,cell,target,bboxes,labels = (o[one] for o in (where, cell, target, bboxes, labels))
    with torch.no_grad(): best,iou = _responsible(rel[where,:,:4], cell, bboxes, target, S, size)
    matched = torch.zeros(b*n, B, dtype=torch.bool, device=out.device)
    matched[where,best] = True
    empty = ~matched                                                  # boxes whose confidence should be 0
    if len(ignored):
        empty[ignored] = False
        empty &= ~_on_ignored(rel[...,:4].detach(), matched, targs, S, size)
    pred,classes = rel[where,best],out[where,B*5:]
    se = lambda a,b: (a - b).square().sum()/len(targs)
    return dict(xy       = 5*se(pred[:,:2], target[:,:2]),
                wh       = 5*se(pred[:,2:4], target[:,2:].sqrt()),
                object   = se(pred[:,4], iou),
                no_object= .5*se(torch.where(empty, rel[...,4], 0.), 0),
                classes  = se(classes, F.one_hot(labels-1, classes.shape[1]))),len(obj)-len(one)

# --- the net

def _conv(i, o, ks, stride=1, bn=False) -> list[nn.Module]:
    return [nn.Conv2d(i, o, ks, stride, ks//2), *([nn.BatchNorm2d(o)] if bn else []), nn.LeakyReLU(.1, inplace=True)]

class YOLOBody(nn.Sequential):
    "(b, n_in, h, w) -> (b, 1024*width, h/32, w/32): the first 20 convolutions (figure 3), which the paper pretrains"
    # (channels, kernel size); each stage but the first begins with a 2x2 max pool
    stages = ([(64, 7)], [(192, 3)], [(128, 1), (256, 3), (256, 1), (512, 3)],
              [(256, 1), (512, 3)]*4 + [(512, 1), (1024, 3)], [(512, 1), (1024, 3)]*2)
    strides = [32]
    @checked_net()
    def __init__(self,
        n_in=3,     # channels of the images
        width=1.,   # factor of the channels; 1 = 64 to 1024
        bn=False,   # True: BatchNorm after each convolution
    ):
        layers,i = [],n_in
        for s,stage in enumerate(self.stages):
            if s: layers.append(nn.MaxPool2d(2))
            for c,ks in stage:
                c = scaled(c, width)
                layers += _conv(i, c, ks, 1 if s else 2, bn)
                i = c
        super().__init__(*layers)
        self.channels = [i]

    def load(self,
        fname:str|Path,   # state dict of a `YOLOBody`, or of a `YOLO` with one as its encoder
    ):
        "Load the weights in `fname`. Raises `ValueError` for those of another net"
        sd = read_weights(Path(fname))
        sd = {k.removeprefix('encoder.'): v for k,v in sd.items() if k.startswith('encoder.')} or sd
        stem,n_in = sd.get('0.weight'),self[0].in_channels
        if stem is not None and stem.ndim == 4 and stem.shape[1] == 3 != n_in:
            sd['0.weight'] = adapt_input_conv(n_in, stem)
        try: self.load_state_dict(sd)
        except RuntimeError as e: raise ValueError(
            f"{fname} does not hold the weights of this body: {str(e).splitlines()[1].strip():.160}; pass the "
            "`state_dict()` of one with the same `width` and `bn`") from e

def _step(S, size, stride) -> int:
    "Stride of the head's second convolution, 2 as in the paper, or 1. Raises `ValueError` where the grid does not fit"
    sides = 2*stride,stride                     # of a cell, pixels
    fit   = [tuple(s*o for s in S) for o in sides]
    if size in fit: return sides[fit.index(size)]//stride
    grids = [f'S={tuple(n//o for n in size)}' for o in sides if not any(n % o for n in size)]
    raise ValueError(
        f"{S[0]} x {S[1]} cells take images of size={fit[0]} or size={fit[1]}, (w, h) pixels, because a cell is "
        f"{2*stride} or {stride} pixels wide and high, got {size}" +
        (f"; for this size pass {' or '.join(grids)}" if grids else f", which are not both multiples of {stride}"))

class YOLO(Detector):
    "An encoder's last map, four convolutions and two linear layers; for images of one size"
    @checked_net(encoder=MODULE)
    def __init__(self,
        encoder:nn.Module,     # (b, n_in, h, w) -> (b, channels[-1], h/strides[-1], w/strides[-1])
        n_out:int,             # classes without background
        S:int|tuple=7,         # cells of the grid in each direction, or (columns, rows)
        B:int=2,               # boxes per cell
        size:int|tuple=448,    # size of the images in pixels, one number or (w, h): S times the stride of its map, or
                               # twice that
        width:float=1.,        # factor of the channels; 1 = 1024, and 4096 units before the last layer
        bn:bool=False,         # True: BatchNorm after each of the four convolutions
        ps:float=.5,           # dropout before the last layer
        min_score:float=MIN_SCORE, # detections with a lower score are dropped
        nms:float=.5,          # a detection is dropped if its IoU with a better one of its class is above this
        max_dets:int=100,      # detections per image
    ):
        super().__init__()
        self.S,self.size = ((o, o) if isinstance(o, int) else tuple(o) for o in (S, size))
        self.step = _step(self.S, self.size, encoder.strides[-1])
        self.encoder,self.n_out,self.B,self.max_dets,self.min_score,self.nms = encoder,n_out,B,max_dets,min_score,nms
        self.warned = False                     # about dropped objects
        self.norms = bn or not isinstance(encoder, YOLOBody) or self.step == 1 and any(
            isinstance(m, nn.BatchNorm2d) for m in encoder.modules())
        c,hidden,cells = scaled(1024, width),scaled(4096, width),self.S[0]*self.S[1]
        self.head = nn.Sequential(
            *_conv(encoder.channels[-1], c, 3, bn=bn), *_conv(c, c, 3, self.step, bn), *_conv(c, c, 3, bn=bn),
            *_conv(c, c, 3, bn=bn), nn.Flatten(), nn.Linear(c*cells, hidden), nn.LeakyReLU(.1, inplace=True),
            nn.Dropout(ps), nn.Linear(hidden, cells*(B*5 + n_out)))
        init_he(self.head)
        nn.init.kaiming_normal_(self.head[-4].weight, .1)
        nn.init.zeros_(self.head[-4].bias)
        self._init_last(self.head[-1])
        same = isinstance(encoder, YOLOBody)
        self.norm,self.scale = (nn.Identity(), 1.) if same else (nn.BatchNorm2d(encoder.channels[-1], affine=False), .1)

    def _init_last(self, last):
        "Every cell begins with boxes of its own size in its middle, unsure of an object, each class as probable"
        box = [.5, .5, *(s**-.5 for s in self.S), .1]
        nn.init.normal_(last.weight, std=.01)
        with torch.no_grad():
            last.bias.copy_(last.bias.new_tensor((box*self.B + [1/self.n_out]*self.n_out)*math.prod(self.S)))

    def cells(self,
        x:Tensor,  # (b, n_in, h, w)
    ) -> Tensor:   # (b, rows, columns, B*5 + n_out) float32, see `in_cells`
        "Output of the net for each cell. Raises `ValueError` for images of another size"
        w,h = self.size
        if tuple(x.shape[-2:]) != (h, w):
            raise ValueError(f"this YOLO takes images of {h} x {w} pixels, got {x.shape[-2]} x {x.shape[-1]}; make "
                             f"the DataLoaders with size={self.size}, or the net with the size of the images")
        if self.norms: check_norm(self, x, self.S)
        m,want = self.encoder(x),tuple(s*self.step for s in self.S[::-1])
        if m.shape[-2:] != want: m = F.interpolate(m, want)     # encoders without padding have smaller maps
        return self.head(self.norm(m)*self.scale).float().view(len(x), *self.S[::-1], -1)

    def losses_and_dets(self, x, targs, proposals):
        if proposals is not None: raise ValueError("YOLO finds its own proposals; do not pass any")
        out = self.cells(x)
        if not self.training: refuse_nan(out)
        return (None if targs is None else self._losses(out, targs)),(None if self.training else self.decode(out))

    def _losses(self, out, targs):
        parts,dropped = yolo_loss(out, targs, self.B, self.size)
        if dropped and not self.warned:
            self.warned = True
            warn(f"{dropped} of {sum(int((t['labels'] > 0).sum()) for t in targs)} objects of this batch have "
                 "their centre in the cell of a larger one and are not learned, because YOLO v1 predicts one object "
                 f"per cell, of {self.size[0]//self.S[0]} pixels here; a larger S drops fewer. Shown once per net")
        return parts

    def decode(self,
        out:Tensor,  # (b, rows, columns, B*5 + n_out), as `cells` returns it
    ) -> Tensor:     # (b, max_dets, 6) x1 y1 x2 y2 score label
        "Detections from the output of the net; a score is the confidence of a box times the class probability"
        out    = out.flatten(1, 2)
        rel    = out[...,:self.B*5].unflatten(-1, (self.B, 5))                                         # (b, n, B, 5)
        cell   = torch.arange(out.shape[1], device=out.device)[:,None]
        bboxes = out_of_cells(rel[...,:4], cell, self.S, self.size)
        scores = (rel[...,4:].clamp(0, 1)*out[:,:,None,self.B*5:].clamp(0, 1)).flatten(1, 2)           # (b, n*B, c)
        bboxes = bboxes.flatten(1, 2)[:,:,None].expand(*scores.shape, 4)
        return pad_dets([nms_dets(b, s, self.size[::-1], self.min_score, self.nms, self.max_dets)
                         for b,s in zip(bboxes, scores)], self.size[::-1], self.max_dets)

def _stride_of(S, size) -> float:
    "Of the map with two positions per cell in each direction; where the grid does not fit, 32 as in the paper"
    w,cols = (o if isinstance(o, int) else o[0] for o in (size, S))
    return 32. if w % cols else w//cols/2

# 24 convolutions and two linear layers, summed up from the paper, which states no total
@register('detection', recipe=dict(base_lr=1e-3, freeze_epochs=0, lr_mult=2.), weights=False,
          kw=dict(width=.1, S=(3, 2), size=(96, 64)), size=(64, 96), n_params=271_703_550)
@checked_net(pretrained=WITH_ENCODER)
def yolo_v1(
    n_out:int,             # classes without background
    S:int|tuple=7,         # cells of the grid in each direction, or (columns, rows)
    B:int=2,               # boxes per cell
    size:int|tuple=448,    # size of the images in pixels, one number or (w, h): 64*S as in the paper, or 32*S;
                           # with `encoder` also 16*S and 8*S
    width:float=1.,        # factor of the channels; 1 = 64 to 1024, and 4096 units before the last layer
    n_in:int=3,            # channels of the images
    pretrained=False,      # weights of the encoder: True (ImageNet; with `encoder` only), or the path of a state dict
    encoder=None,          # as for `create_encoder`; None (default): the paper's 20 convolutions
    bn:bool=False,         # True: BatchNorm after each of YOLO's own convolutions
    ps:float=.5,           # dropout before the last layer
    min_score:float=MIN_SCORE, # detections with a lower score are dropped
    nms:float=.5,          # a detection is dropped if its IoU with a better one of its class is above this
    max_dets:int=100,      # detections per image
) -> YOLO:
    """YOLO v1 of the paper, or on another encoder. Raises `ValueError` where S, `size` and the encoder do not fit, and
    for `pretrained=True` without `encoder`"""
    if encoder is None:
        if pretrained in (True, 'encoder'):
            raise ValueError("there are no ImageNet weights of YOLO's own 20 convolutions for torch; use an encoder "
                             "that has some, such as encoder='mobilenet_v2', or pass pretrained=False, or the path of "
                             "your own state dict")
        body = YOLOBody(n_in, width, bn)
        init_he(body)
        if pretrained: body.load(pretrained)
    else: body = create_encoder(encoder, pretrained == 'encoder' or pretrained, n_in, stride=_stride_of(S, size))
    net = YOLO(body, n_out, S, B, size, width, bn, ps, min_score, nms, max_dets)
    if encoder is not None:
        if body.input_size not in (None, net.size[::-1]):
            raise ValueError(f"{body.name} takes images of {body.input_size[0]} x {body.input_size[1]} pixels only, "
                             f"got size={net.size}")
        net.mean,net.std = (o if n_in == 3 else (sum(o)/3,)*n_in for o in (body.mean, body.std))
    return net
