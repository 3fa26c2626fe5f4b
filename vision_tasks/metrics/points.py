"Metrics of keypoints, in pixels of the image files"
from __future__ import annotations
import math
import numpy as np
import torch
from torch import Tensor
from fastai.learner import Metric
from ..arguments import Kind, checked, choice, either, is_whole, number, numbers
from ..data.errors import AnnotationError
from ..data.targets import marked_points, point_pairs

__all__ = ['point_errors', 'normalizer_of', 'PointError', 'NME', 'PCK']

_POINTS = numbers((..., 2), what="points (n, k, 2) as an array, a tensor or a list")

@checked(pred=_POINTS, targ=_POINTS)
def point_errors(
    pred,    # (n, k, 2) points
    targ,    # (n, k, 2) points, nan where not marked
) -> Tensor: # (n, k) float64 distances, nan where not marked
    "Distance of each predicted point from its target, in their unit. Raises `ValueError` for shapes that differ"
    p,t = torch.as_tensor(pred).double(),torch.as_tensor(targ).double()
    if all(n == m or 1 in (n, m) for n,m in zip(p.shape[::-1], t.shape[::-1])): return (p - t).norm(dim=-1)
    raise ValueError(f"pred and targ: expected (n, k, 2), or one of either for all of the other, got {tuple(p.shape)} "
                     f"and {tuple(t.shape)}")

BY = either(choice('diagonal', 'box'), number(0, 1e9, open=True, what="a number of pixels"),
            Kind("two points, by index or name", lambda o: isinstance(o, (tuple, list)) and len(o) == 2 and
                 all(isinstance(v, str) or is_whole(v) for v in o)))

@checked(by=BY)
def normalizer_of(
    a,              # Annotation with points
    by='diagonal',  # 'diagonal' of the image; 'box': square root of the area of its box, or of the upright box around
                    # the marked points; two points, by index or name: their distance, as that of the eyes; or a number
                    # of pixels, above 0
    vocab=(),       # list of the points' names, where `by` names two
) -> float:         # pixels; nan where it is unknown, as when one of the two points is not marked
    "The number of pixels that errors are divided by. Raises `AnnotationError` where it is zero, or `a` has no points"
    if a.points is None: raise AnnotationError(f"{a.path}: the annotation has no points")
    p = marked_points(a).astype(float)
    if by == 'diagonal': d = math.hypot(*a.size)
    elif by == 'box':
        boxed = a.bboxes is not None and len(a.bboxes)
        lo,hi = (a.bboxes[0,:2], a.bboxes[0,2:]) if boxed else (_nan(np.nanmin, p), _nan(np.nanmax, p))
        d = math.sqrt(max(float(np.prod(np.asarray(hi, float)-lo)), 0.))
    elif isinstance(by, (tuple, list)) and len(by) == 2:
        (i,j), = point_pairs([by], vocab, 'by', len(p))
        d = float(np.linalg.norm(p[i]-p[j]))
    else: d = float(by)
    if d <= 0:
        raise AnnotationError(f"{a.path}: the normalizer {by!r} is {d:g} pixels; choose another, such as 'diagonal'")
    return d

def _nan(f, p): return f(p, axis=0) if not np.isnan(p).all() else np.full(2, np.nan)

class _InFilePoints(Metric):
    "Errors of points in pixels of the image file, however it was resized or padded to the network's input"
    @checked(by=BY)
    def __init__(self, by='diagonal', # normalizer, as `normalizer_of` takes it: 'diagonal', 'box', two points by name
                                      # or index, or pixels
    ):
        self.by = by
    def reset(self): self.errors,self.norms,self.n = [],[],0
    def accumulate(self, learn):
        items = learn.items_of_batch(self.n, len(learn.pred))
        if not items: return
        self.n += len(items)
        pred = learn.in_file(learn.probabilities(learn.pred), [a.size for a in items])
        self.errors.append(point_errors(pred, torch.from_numpy(np.stack([marked_points(a) for a in items]))))
        norms = [normalizer_of(a, self.by, learn.dls.vocab) for a in items]
        self.norms.append(torch.tensor(norms, dtype=torch.float64))
    @property
    def of(self):
        "The suffix of the metric's name for a normalizer other than the diagonal"
        if self.by == 'diagonal': return ''
        return f":{'-'.join(map(str, self.by)) if isinstance(self.by, (tuple, list)) else self.by}"
    def both(self): return (torch.cat(self.errors),torch.cat(self.norms)[:,None]) if self.errors else None

class PointError(_InFilePoints):
    "Mean distance over all marked points, in pixels of the image file"
    name = 'error_px'
    @property
    def value(self): return None if self.both() is None else self.both()[0].nanmean().item()

class NME(_InFilePoints):
    "Normalized mean error: mean over all marked points of the distance divided by the normalizer of the image"
    @property
    def name(self): return f'nme{self.of}'
    @property
    def value(self):
        if self.both() is None: return None
        e,n = self.both()
        return (e/n).nanmean().item()

class PCK(_InFilePoints):
    "Percentage of correct keypoints, in [0, 1]: those within `thresh` times the normalizer (Yang & Ramanan, 2013)"
    @checked(thresh=number(0, open=True))
    def __init__(self,
        thresh:float=.05, # share of the normalizer, above 0, up to which a point counts as correct
        by='diagonal',    # normalizer, as `normalizer_of` takes it: 'diagonal', 'box', two points by name or index, or
                          # pixels
    ):
        super().__init__(by); self.thresh = thresh
    @property
    def name(self): return f'pck@{self.thresh:g}'.replace('0.', '.') + self.of
    @property
    def value(self):
        if self.both() is None: return None
        e,n = self.both()
        r = (e/n)[(e/n).isfinite()]
        return (r <= self.thresh).double().mean().item() if len(r) else float('nan')
