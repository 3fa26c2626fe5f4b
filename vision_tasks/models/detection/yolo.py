"""YOLO v1: the cell of a grid that holds an object's centre tells its box and its class, all cells from one look at the
whole picture (Redmon et al., 2015, arXiv:1506.02640). What the paper leaves open, or this does another way:
- The net gives the square roots of w and h, as the released code (`sqrt=1` in its cfg): its last layer is linear, and
  the root of what may be negative or 0 has no gradient. Boxes have the squares.
- Responsible is the box with the highest IoU; where none meets the object, the nearest by the mean square of the
  differences in x, y, w and h, as the released code. Else the first box of a cell would always begin.
- Class probabilities and confidences are clipped to [0, 1] before they are multiplied: two negative ones are no score.
- The cell that holds the centre of an ignored object, and boxes that lie on one by half of their area, are no
  background.
- Cells are 64 pixels wide and high, or 32 (conv 22 then has stride 1); pictures need not be square.
- No BatchNorm, and a layer of 4096 numbers in front of the last, as in the paper; the cfg released later has BatchNorm
  in all convolutions (`bn=True`), a locally connected layer instead of the 4096, and three boxes a cell."""
from __future__ import annotations
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

# --- the grid: a net's output is (b, rows, columns, B*5 + n_out), of each cell B times [x, y, sqrt w, sqrt h,
#     confidence], then class probabilities; x and y as parts of the cell, w and h of the picture

def in_cells(
    bboxes:Tensor,         # (n, 4) x1 y1 x2 y2, pixels, inside the picture
    S:tuple[int,int],      # (columns, rows)
    size:tuple[int,int],   # (w, h) pixels of the picture
) -> tuple[Tensor,Tensor]: # (n,) index of the cell, row by row; (n, 4) x y in the cell, w h in the picture, in [0, 1]
    "The cell that holds each box's centre, and the box as seen from there; a centre at 1.0 belongs to the last cell"
    size,S = (bboxes.new_tensor(o) for o in (size, S))
    at     = (bboxes[:,:2] + bboxes[:,2:])/2/size*S
    cell   = at.floor().minimum(S-1)
    return (cell[:,1]*S[0] + cell[:,0]).long(),torch.cat([at-cell, (bboxes[:,2:] - bboxes[:,:2])/size], 1)

def out_of_cells(
    rel:Tensor,            # (..., 4) x y in the cell, sqrt w, sqrt h
    cell:Tensor,           # (...) its index
    S:tuple[int,int],
    size:tuple[int,int],
) -> Tensor:               # (..., 4) x1 y1 x2 y2, pixels, not clipped
    "The boxes that a net's output means"
    at = torch.stack([cell % S[0], cell//S[0]], -1)
    size,S = (rel.new_tensor(o) for o in (size, S))
    c,half = (at + rel[...,:2])/S*size,rel[...,2:].square()*size/2
    return torch.cat([c - half, c + half], -1)

def _largest(cell, bboxes, n) -> Tensor:
    "(m,) bool: which of `bboxes` are the largest in their `cell`, one of `n`; of equal ones the first"
    area = (bboxes[:,2:] - bboxes[:,:2]).prod(1)
    rank = area.argsort(descending=True, stable=True).argsort()
    return torch.full((n,), len(rank), device=rank.device).scatter_reduce(0, cell, rank, 'amin')[cell] == rank

def _responsible(rel, cell, bboxes, truth, S, size) -> tuple[Tensor,Tensor]:
    "Of each object's cell the number of the box that answers for it, and the IoU of that: (n, B, 4), ... -> (n,), (n,)"
    iou  = paired_iou.unchecked(out_of_cells(rel, cell[:,None], S, size), bboxes[:,None])
    near = torch.cat([(rel[...,:2] - truth[:,None,:2])/rel.new_tensor(S), rel[...,2:].square() - truth[:,None,2:]], -1)
    best = torch.where(iou.amax(1, keepdim=True) > 0, iou, -near.square().mean(-1)).argmax(1)
    return best,iou.gather(1, best[:,None])[:,0].nan_to_num()    # of boxes beyond what float32 can multiply

def _on_ignored(rel, matched, targs, S, size) -> Tensor:
    "(b*n, B) bool: which of the boxes `rel`, (b*n, B, 4), `on_ignored` excludes"
    rel,matched = (o.unflatten(0, (len(targs), -1)) for o in (rel, matched))                            # (b, n, B, ..)
    bboxes = out_of_cells(rel, torch.arange(rel.shape[1], device=rel.device)[:,None], S, size)
    bboxes = clip_boxes_to_image(bboxes, size[::-1]).flatten(1, 2)
    on = [on_ignored(b, m, t['boxes'][t['labels'] < 0]) for b,m,t in zip(bboxes, matched.flatten(1), targs)]
    return torch.stack(on).view(-1, rel.shape[2])

def yolo_loss(
    out:Tensor,            # (b, rows, columns, B*5 + n_out) float32, what the net gives
    targs:list[dict],      # of each picture `boxes` (n, 4) pixels, `labels` (n,): 1..n_out, -1 = to be ignored
    B:int,                 # boxes a cell
    size:tuple[int,int],   # (w, h) pixels of the picture
) -> tuple[dict[str,Tensor],int]: # losses by name, with the paper's factors, means over the pictures; number of objects
                                  # that a larger one in the same cell leaves no place
    "Sums of squares, §2.2 eq. 3"
    b,rows,cols,_ = out.shape
    S,n    = (cols, rows),rows*cols
    out    = out.flatten(0, 2)
    rel    = out[:,:B*5].unflatten(1, (B, 5))                         # (b*n, B, 5)
    pic    = torch.arange(b, device=out.device).repeat_interleave(
        torch.tensor([len(t['labels']) for t in targs], device=out.device))
    bboxes,labels = (torch.cat([t[k] for t in targs]) for k in ('boxes', 'labels'))
    cell,truth    = in_cells(bboxes, S, size)
    where  = pic*n + cell                                             # among the cells of all pictures
    ignored = where[labels < 0]                                       # cells that hold the centre of one
    obj    = (labels > 0).nonzero()[:,0]
    one    = obj[_largest(where[obj], bboxes[obj], b*n)]
    where,cell,truth,bboxes,labels = (o[one] for o in (where, cell, truth, bboxes, labels))
    with torch.no_grad(): best,iou = _responsible(rel[where,:,:4], cell, bboxes, truth, S, size)
    matched = torch.zeros(b*n, B, dtype=torch.bool, device=out.device)
    matched[where,best] = True
    empty = ~matched                                                  # boxes whose confidence is learnt to be 0
    if len(ignored):
        empty[ignored] = False
        empty &= ~_on_ignored(rel[...,:4].detach(), matched, targs, S, size)
    told,classes = rel[where,best],out[where,B*5:]
    se = lambda a,b: (a - b).square().sum()/len(targs)
    return dict(xy       = 5*se(told[:,:2], truth[:,:2]),
                wh       = 5*se(told[:,2:4], truth[:,2:].sqrt()),
                object   = se(told[:,4], iou),
                no_object= .5*se(torch.where(empty, rel[...,4], 0.), 0),
                classes  = se(classes, F.one_hot(labels-1, classes.shape[1]))),len(obj)-len(one)

# --- the net

def _conv(i, o, ks, stride=1, bn=False) -> list[nn.Module]:
    return [nn.Conv2d(i, o, ks, stride, ks//2), *([nn.BatchNorm2d(o)] if bn else []), nn.LeakyReLU(.1, inplace=True)]

class YOLOBody(nn.Sequential):
    "(b, n_in, h, w) -> (b, 1024*width, h/32, w/32): the first 20 convolutions (figure 3), which the paper pretrains"
    # (channels, size of the kernel); each stage but the first begins with a maximum over 2x2
    stages = ([(64, 7)], [(192, 3)], [(128, 1), (256, 3), (256, 1), (512, 3)],
              [(256, 1), (512, 3)]*4 + [(512, 1), (1024, 3)], [(512, 1), (1024, 3)]*2)
    strides = [32]
    @checked_net()
    def __init__(self, n_in=3, width=1., bn=False):
        layers,i = [],n_in
        for s,stage in enumerate(self.stages):
            if s: layers.append(nn.MaxPool2d(2))
            for c,ks in stage:
                c = scaled(c, width)
                layers += _conv(i, c, ks, 1 if s else 2, bn)
                i = c
        super().__init__(*layers)
        self.channels = [i]

    def load(self, fname:str|Path):
        "Take over the weights in `fname`: a state dict of a `YOLOBody`, or of a `YOLO` that has one as its encoder"
        sd = read_weights(Path(fname))
        sd = {k.removeprefix('encoder.'): v for k,v in sd.items() if k.startswith('encoder.')} or sd
        stem,n_in = sd.get('0.weight'),self[0].in_channels
        if stem is not None and stem.ndim == 4 and stem.shape[1] == 3 != n_in:
            sd['0.weight'] = adapt_input_conv(n_in, stem)
        try: self.load_state_dict(sd)
        except RuntimeError as e: raise ValueError(
            f"{fname} does not hold the weights of this body: {str(e).splitlines()[1].strip():.160}; give the "
            "`state_dict()` of one of the same `width` and `bn`") from e

def _step(S, size, stride) -> int:
    "The stride of the head's second convolution, 2 as in the paper, or 1; `ValueError` where the grid does not fit"
    sides = 2*stride,stride                     # of a cell, pixels
    fit   = [tuple(s*o for s in S) for o in sides]
    if size in fit: return sides[fit.index(size)]//stride
    grids = [f'S={tuple(n//o for n in size)}' for o in sides if not any(n % o for n in size)]
    raise ValueError(
        f"{S[0]} x {S[1]} cells take pictures of size={fit[0]} or size={fit[1]}, (w, h) pixels, for a cell is "
        f"{2*stride} or {stride} pixels wide and high; {size} came" +
        (f": for this size pass {' or '.join(grids)}" if grids else f", which are not both multiples of {stride}"))

class YOLO(Detector):
    "An encoder's last map, four convolutions and two layers that see all of it; for pictures of one size"
    @checked_net(encoder=MODULE)
    def __init__(self,
        encoder:nn.Module,     # (b, n_in, h, w) -> (b, channels[-1], h/strides[-1], w/strides[-1])
        n_out:int,             # classes without background
        S:int|tuple=7,         # cells in each direction, or (columns, rows)
        B:int=2,               # boxes a cell
        size:int|tuple=448,    # of the pictures in pixels, (w, h) or both: S times the encoder's stride, or twice that
        width:float=1.,        # 1 = 1024 channels, 4096 numbers before the last layer
        bn:bool=False,         # BatchNorm after each of the four convolutions
        ps:float=.5,           # dropout in front of the last layer
        min_score:float=MIN_SCORE, # detections that score less are dropped
        nms:float=.5,          # a detection goes whose IoU with a better one of its class is above
        max_dets:int=100,      # a picture
    ):
        super().__init__()
        self.S,self.size = ((o, o) if isinstance(o, int) else tuple(o) for o in (S, size))
        self.step = _step(self.S, self.size, encoder.strides[-1])
        self.encoder,self.n_out,self.B,self.max_dets,self.min_score,self.nms = encoder,n_out,B,max_dets,min_score,nms
        self.told  = False                      # of objects that are dropped
        self.norms = bn or self.step == 1 and any(isinstance(m, nn.BatchNorm2d) for m in encoder.modules())
        c,hidden,cells = scaled(1024, width),scaled(4096, width),self.S[0]*self.S[1]
        self.head = nn.Sequential(
            *_conv(encoder.channels[-1], c, 3, bn=bn), *_conv(c, c, 3, self.step, bn), *_conv(c, c, 3, bn=bn),
            *_conv(c, c, 3, bn=bn), nn.Flatten(), nn.Linear(c*cells, hidden), nn.LeakyReLU(.1, inplace=True),
            nn.Dropout(ps), nn.Linear(hidden, cells*(B*5 + n_out)))
        init_he(self.head)
        nn.init.kaiming_normal_(self.head[-4].weight, .1)
        nn.init.zeros_(self.head[-4].bias)

    def cells(self, x:Tensor) -> Tensor: # (b, n_in, h, w) -> (b, rows, columns, B*5 + n_out) float32, see `in_cells`
        "What the net says of each cell"
        w,h = self.size
        if tuple(x.shape[-2:]) != (h, w):
            raise ValueError(f"this YOLO takes pictures of {h} x {w} pixels, {x.shape[-2]} x {x.shape[-1]} came: make "
                             f"the DataLoaders with size={self.size}, or the net with the size of the pictures")
        if self.norms: check_norm(self, x, self.S)
        m,want = self.encoder(x),tuple(s*self.step for s in self.S[::-1])
        if m.shape[-2:] != want: m = F.interpolate(m, want)     # encoders that do not pad give less than size/stride
        return self.head(m).float().view(len(x), *self.S[::-1], -1)

    def losses_and_dets(self, x, targs, proposals):
        if proposals is not None: raise ValueError("YOLO finds its own proposals; do not pass any")
        out = self.cells(x)
        if not self.training: refuse_nan(out)
        return (None if targs is None else self._losses(out, targs)),(None if self.training else self.decode(out))

    def _losses(self, out, targs):
        parts,dropped = yolo_loss(out, targs, self.B, self.size)
        if dropped and not self.told:
            self.told = True
            warn(f"{dropped} of {sum(int((t['labels'] > 0).sum()) for t in targs)} objects of this batch have "
                 "their centre in the cell of a larger one and are not learnt, for YOLO v1 tells one object a "
                 f"cell, of {self.size[0]//self.S[0]} pixels here; a larger S drops fewer. This is said once")
        return parts

    def decode(self, out:Tensor) -> Tensor:   # (b, rows, columns, B*5 + n_out) -> (b, max_dets, 6)
        "The detections that `out` means: of each box its confidence times the probability of each class"
        out    = out.flatten(1, 2)
        rel    = out[...,:self.B*5].unflatten(-1, (self.B, 5))                                         # (b, n, B, 5)
        cell   = torch.arange(out.shape[1], device=out.device)[:,None]
        bboxes = out_of_cells(rel[...,:4], cell, self.S, self.size)
        scores = (rel[...,4:].clamp(0, 1)*out[:,:,None,self.B*5:].clamp(0, 1)).flatten(1, 2)           # (b, n*B, c)
        bboxes = bboxes.flatten(1, 2)[:,:,None].expand(*scores.shape, 4)
        return pad_dets([nms_dets(b, s, self.size[::-1], self.min_score, self.nms, self.max_dets)
                         for b,s in zip(bboxes, scores)], self.size[::-1], self.max_dets)

# 24 convolutions and two layers as the paper lists them; it tells no total
@register('detection', weights=False, kw=dict(width=.1, S=(3, 2), size=(96, 64)), size=(64, 96), n_params=271_703_550)
@checked_net(pretrained=WITH_ENCODER)
def yolo_v1(
    n_out:int,
    S:int|tuple=7,         # cells in each direction, or (columns, rows)
    B:int=2,               # boxes a cell
    size:int|tuple=448,    # of the pictures in pixels, (w, h) or both: 64*S as in the paper, or 32*S
    width:float=1.,        # 1 = 64 to 1024 channels, 4096 numbers before the last layer
    n_in:int=3,
    pretrained=False,      # of the encoder: True (ImageNet's; with `encoder` only), or the path of a local state dict
    encoder=None,          # None: the paper's 20 convolutions; else what `create_encoder` takes
    bn:bool=False,         # BatchNorm after each of YOLO's own convolutions
    ps:float=.5,           # dropout in front of the last layer
    min_score:float=MIN_SCORE, # detections that score less are dropped
    nms:float=.5,          # a detection goes whose IoU with a better one of its class is above
    max_dets:int=100,      # a picture
) -> YOLO:
    "YOLO v1 of the paper, or on another encoder"
    if encoder is None:
        if pretrained in (True, 'encoder'):
            raise ValueError("there are no ImageNet weights of YOLO's own 20 convolutions for torch; take an encoder "
                             "that has some, as encoder='mobilenet_v2', or pass pretrained=False, or the path of a "
                             "state dict of your own")
        body = YOLOBody(n_in, width, bn)
        init_he(body)
        if pretrained: body.load(pretrained)
    else: body = create_encoder(encoder, pretrained == 'encoder' or pretrained, n_in, pyramid=False)
    net = YOLO(body, n_out, S, B, size, width, bn, ps, min_score, nms, max_dets)
    if encoder is not None:
        if body.input_size not in (None, net.size[::-1]):
            raise ValueError(f"{body.name} takes pictures of {body.input_size[0]} x {body.input_size[1]} pixels only; "
                             f"size={net.size} came")
        net.mean,net.std = (o if n_in == 3 else (sum(o)/3,)*n_in for o in (body.mean, body.std))
    return net
