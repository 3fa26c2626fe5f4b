"""Dense CRF (Kraehenbuehl & Koltun, 2011, arXiv:1210.5644), filtered on the permutohedral lattice (Adams, Baek & Davis,
2010, doi:10.1111/j.1467-8659.2009.01645.x): moves the borders of a segmentation to the edges of the image"""
from __future__ import annotations
import math
from itertools import accumulate
from operator import mul
import torch
import torch.nn.functional as F
from torch import Tensor
from ..arguments import checked, number, whole

__all__ = ['dense_crf']

EPS = 1e-8   # smallest probability, so that its -log is finite; exp(w1 + w2) times it is still negligible
TOP = 60.    # exp of a message up to this is far below float32's limit

_SD,_WEIGHT = number(.001, 10**6, what="a standard deviation"),number(0, 10**6, what="a weight")

@checked(w1=_WEIGHT, w2=_WEIGHT, sa=_SD, sb=_SD, sg=_SD, n_iter=whole(0, 10000))
@torch.no_grad()
def dense_crf(
    probs:Tensor,    # (c, h, w) or (b, c, h, w) in [0, 1], with a sum of 1 over c, or of 0 for unknown pixels
    image:Tensor,    # (3, h, w) or (b, 3, h, w) uint8, on any device
    w1:float=4.,     # weight of the bilateral kernel; 0: none
    sa:float=49.,    # its standard deviation of positions, pixels
    sb:float=5.,     # its standard deviation of colours, grey values (0..255)
    w2:float=3.,     # weight of the spatial kernel; 0: none
    sg:float=3.,     # its standard deviation, pixels
    n_iter:int=10,   # mean field iterations; 0 returns `probs`
) -> Tensor:         # with the shape, dtype and device of `probs`; unknown pixels stay 0
    """Probabilities after mean field inference, in which near pixels, and even more those of similar colour, tend to
    the same class. A single class stays 1. Raises `ValueError` where `probs` and `image` do not fit each other, for
    another image type than uint8, and for `probs` that are no probabilities"""
    _check(probs, image)
    p,image = (o.as_subclass(Tensor).reshape(-1, *o.shape[-3:]) for o in (probs, image.to(probs.device)))
    p = p.movedim(1, -1).float()
    (b,h,w,c),p = p.shape,p.reshape(-1, p.shape[-1])     # (pixels, c): the filters work on rows
    p = p.clamp(min=EPS)*(p.sum(1, keepdim=True) > 0)    # exp(-U)
    kernels = [BilateralKernel(image, sa, sb, w1)] if w1 else []
    if w2: kernels.append(SpatialKernel((b, h, w), sg, w2, p.device))
    q = _normalize(p.clone())
    for _ in range(n_iter if kernels else 0):
        msg = kernels[0](q)
        for k in kernels[1:]: msg += k(q)
        # softmax(-U + msg), step by step, because torch's is slow on short rows; messages are not negative
        if msg.amax() > TOP: msg -= msg.amax(1, keepdim=True)
        q = _normalize(msg.exp_().mul_(p))
    return q.view(b, h, w, c).movedim(-1, 1).reshape(probs.shape).to(probs.dtype)

def _normalize(q): return q.div_(q.sum(1, keepdim=True).clamp_(min=EPS**2))

def _check(probs, image):
    "Raise `ValueError` for inputs that `dense_crf` cannot take"
    got = [f'{o.dtype} {tuple(o.shape)}' if isinstance(o, Tensor) else type(o).__name__ for o in (probs, image)]
    got = f"got probs {got[0]}, image {got[1]}"
    if not isinstance(probs, Tensor) or not probs.is_floating_point() or probs.ndim not in (3, 4):
        raise ValueError(f"{got}; expected probs as a float tensor (c, h, w) or (b, c, h, w)")
    expected = (*probs.shape[:-3], 3, *probs.shape[-2:])
    if not isinstance(image, Tensor) or image.shape != expected:
        raise ValueError(f"{got}; expected an image of the size of probs, {expected}: resize one to the other")
    if image.dtype != torch.uint8:
        raise ValueError(f"{got}; expected uint8 in 0..255, before normalization: sb is in these units")
    if not probs.numel(): raise ValueError(f"{got}; expected at least one class and one pixel")
    total = probs.sum(-3, dtype=torch.float32)
    # .01: sums of bfloat16 are not closer to 1
    if not (((total-1).abs() < .01) | (total == 0)).all() or probs.amin() < 0:
        raise ValueError(f"probs are in {probs.amin():.3g}..{probs.amax():.3g} and their sums over the classes in "
                         f"{total.amin():.3g}..{total.amax():.3g}; expected 0..1, with a sum of 1: pass "
                         "logits.softmax(-3), or torch.cat([1-p, p], -3) for a foreground p")

class SpatialKernel:
    "w S^-1/2 K S^-1/2 q for the Gaussian K of positions, cut off at three standard deviations; S = K's row sums"
    def __init__(self, bhw, sg, w, device):
        self.bhw,self.r,self.w = bhw,min(math.ceil(3*sg), max(bhw[1:])-1),w
        self.taps = torch.exp(-.5*(torch.arange(-self.r, self.r+1, device=device)/sg)**2)
        self.scale = self._filter(torch.ones(math.prod(bhw), 1, device=device)).rsqrt()

    def _filter(self, q): # (pixels, c) -> (pixels, c)
        c,r = q.shape[1],self.r
        taps,x = self.taps.expand(c, 1, 1, -1),q.view(*self.bhw, c).movedim(-1, 1)   # which is channels_last
        x = F.conv2d(F.conv2d(x, taps, padding=(0, r), groups=c), taps.mT, padding=(r, 0), groups=c)
        return x.movedim(1, -1).reshape(-1, c)

    def __call__(self, q): return self._filter(q*self.scale).mul_(self.scale*self.w)

class BilateralKernel:
    """w S^-1/2 K S^-1/2 q for the Gaussian K of positions and colours; S = K's row sums. The values of pixels are added
    to the corners of their simplex (splat), blurred along each axis of the lattice, and interpolated from the corners
    (slice): all three are weighted sums of rows known in advance, which is what an embedding bag computes"""
    def __init__(self, image, sa, sb, w):
        b,_,h,wd = image.shape
        x,y = torch.arange(wd, device=image.device)/sa,torch.arange(h, device=image.device)[:,None]/sa
        f = torch.stack([x.expand(b, h, wd), y.expand(b, h, wd), *(image/sb).unbind(1)]).flatten(1)
        codes,self.weight,steps = _corners(f, b)
        codes,perm = codes.flatten().sort()
        verts,ids,count = torch.unique_consecutive(codes, return_inverse=True, return_counts=True)
        self.corners = torch.empty_like(ids).scatter_(0, perm, ids).view_as(self.weight)
        # pixels sorted by vertex, the start of each vertex among them, and their weights
        self.pixels,self.starts = perm.div(self.weight.shape[1], rounding_mode='floor'),count.cumsum(0)-count
        self.weight_in = self.weight.flatten()[perm]
        self.axes = [_neighbours(verts, o) for o in steps]
        scale = self(torch.ones(f.shape[1], 1, device=f.device)).rsqrt_()
        self.weight_in *= scale[:,0][self.pixels]
        self.weight *= scale*w

    def __call__(self, q): # (pixels, c) -> (pixels, c)
        x = F.embedding_bag(self.pixels, q, self.starts, mode='sum', per_sample_weights=self.weight_in)
        for idx,weight in self.axes: x = F.embedding_bag(idx, x, mode='sum', per_sample_weights=weight)
        return F.embedding_bag(self.corners, x, mode='sum', per_sample_weights=self.weight)

def _corners(
    f:Tensor,     # (d, n) features, in standard deviations
    b:int=1,      # images among the n pixels, one after the other, of equal size; they share no vertex
):                # (n, d+1) codes of the corners, (n, d+1) their weights, d+1 steps from code to code along the axes
    "The simplex of the permutohedral lattice that contains each pixel"
    d,n = f.shape
    k = torch.arange(1, d+1, device=f.device)[:,None]
    # project onto the plane of sum 0 in d+1 dimensions, scaled so that splat, blur by [.5, 1, .5] and slice together
    # have a standard deviation of 1; in units of d+1, in which the paper's remainder-0 corner has whole coordinates
    f = f*((2/3)**.5*(d+1)/(k*(k+1))**.5)
    e = (F.pad(f.flip(0).cumsum(0).flip(0), (0, 0, 0, 1)) - F.pad(f*k, (0, 0, 1, 0)))/(d+1)
    v = e.round()
    r,rank = e-v,v.sum(0).long().repeat(d+1, 1)   # rounding changes the sum, which moves ranks out of 0..d; fixed below
    for i in range(d):
        less = r[i] < r[i+1:]
        rank[i] += less.sum(0)
        rank[i+1:] += ~less
    turn = (rank < 0).long() - (rank > d).long()
    v,rank = v.long()+turn,rank+turn*(d+1)
    # remainders in rising order: the difference to the one before is the weight of a corner
    r = torch.empty_like(e).scatter_(0, d-rank, e-v)
    weight = r - r.roll(1, 0)
    weight[0] += 1
    # A vertex is identified by the d differences of its whole parts to the last: the digits of its code. A step along
    # axis j subtracts 1 from the j-th whole part, and corner k is k such steps away, the largest remainder last
    t = v[:-1]-v[-1]
    span = (t.amax(1)-t.amin(1)+5).tolist()       # corners are up to 1 outside, missing neighbours up to 2
    *digit,total = accumulate(span, mul, initial=1)
    if total*b >= 2**63: raise ValueError("sa and sb are so small for the image's size and range of colours that "
                                          f"the lattice would need {total*b:.1g} codes; use larger ones")
    steps = [*digit, -sum(digit)]
    step = torch.tensor(steps, device=f.device)[:,None]
    first = (step[:-1]*(t - t.amin(1, keepdim=True))).sum(0)
    first.view(b, -1).add_(total*torch.arange(b, device=f.device)[:,None])
    taken = torch.empty_like(v).scatter_(0, d-rank, step.expand(-1, n))[:-1].cumsum(0)
    codes = torch.cat([first[None], first-taken])
    if total*b < 2**31: codes = codes.int()       # sorts faster
    return codes.T.contiguous(),weight.T.contiguous(),steps

def _neighbours(verts, step):
    "Indices of each of the sorted `verts` and of its two neighbours, (n, 3), and their weights: 0 for missing ones"
    n,own = len(verts),torch.arange(len(verts), device=verts.device)
    after = torch.searchsorted(verts, verts+step).clamp_(max=n-1)
    there = verts[after] == verts+step
    before = torch.full_like(verts, -1, dtype=torch.long)
    before[after[there]] = own[there]
    counts = torch.stack([torch.ones_like(there), there, before >= 0], 1)
    return torch.stack([own, after, before.clamp(min=0)], 1),counts*torch.tensor([1., .5, .5], device=verts.device)
