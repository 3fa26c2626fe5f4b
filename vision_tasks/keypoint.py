"Keypoint regression: the position in the image of each named point, the expectation of a map by default"
from __future__ import annotations
from dataclasses import replace
import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from fastai.data.block import DataBlock
from fastai.data.core import DataLoaders
from fastai.layers import SigmoidRange
from .arguments import FLAG, FRACTION, checked, checked_methods
from .data.annotation import Annotation
from .data.blocks import FileImageBlock, KeypointBlock
from .data.check import check_relative
from .data.errors import AnnotationError
from .data.geometry import batch_geometry
from .data.splits import AnnotationSplitter
from .data.targets import annotation_of, marked_points, mirror_points, point_pairs
from .data.transforms import JointTransform
from .data.views import CropView
from .losses.points import PointLoss
from .metrics.points import BY, NME, PCK, PointError, normalizer_of, point_errors
from .models.heatmap import HeatmapHead
from .models.layers import GridHead
from .show.points import KeypointDL
from .training.build import build_on_encoder, input_size, is_named, pooled_head
from .training.kinds import BLOCK, DLS, LEARNER, PAIRS
from .training.learner import TaskLearner
from .training.recipes import Recipe
from .training.task import Task, task_dls, task_learner
from .warning import warn

__all__ = ['keypoint_block', 'keypoint_dls', 'keypoint_learner', 'KeypointLearner']

@checked(**BLOCK, flip_pairs=PAIRS, skeleton=PAIRS)
def keypoint_block(
    vocab,            # list of the k points' names, in the order of `Annotation.points`
    size=224,
    splitter=None,
    item_tfms=None,   # in place of a `JointTransform` that crops and rotates but keeps all points inside; squish
                      # otherwise
    batch_tfms=None,
    flip_pairs=None,  # pairs (left, right) of names or indices that change places in a mirrored image; []: none do;
                      # None (default): images are not mirrored
    skeleton=None,    # pairs of names or indices that are joined by a line when drawn
) -> DataBlock:
    "Image in, k points out, x y in [-1, 1]; nan = not marked. Its source is a list of `Annotation`"
    if item_tfms is None:
        item_tfms = JointTransform(size, train=CropView((.75, 1.), (.8, 1.25)), flip=0. if flip_pairs is None else .5,
                                   rotate=10., keep=True)
    lines = point_pairs([] if skeleton is None else skeleton, vocab, 'skeleton')
    pairs = point_pairs(flip_pairs, vocab, 'flip_pairs')
    return DataBlock((FileImageBlock, KeypointBlock(vocab, lines, pairs)), get_x=annotation_of,
                     get_y=marked_points, dl_type=KeypointDL, splitter=splitter or AnnotationSplitter(),
                     item_tfms=item_tfms, batch_tfms=batch_geometry(batch_tfms, 'points'))

@checked(**DLS, check=FLAG)
def keypoint_dls(
    annotations,          # list[Annotation] with one instance per image: points (k, 2), or (1, k, 2) with a box
    vocab=None,           # list of the k points' names; None (default): '0', '1', ...
    bs:int=64,
    path='.', valid_pct:float=.2, seed:int=42, num_workers:int=None, device=None, cache=None,
    check:bool=False,
    **block_kwargs,       # of `keypoint_block`: `size`, `splitter`, `item_tfms`, `batch_tfms`, `flip_pairs`, `skeleton`
) -> DataLoaders:
    """DataLoaders of images and points. Raises `AnnotationError` for missing files, several instances, numbers of
    points that differ. Points outside their image count as not marked, and one warning counts them"""
    return task_dls(KEYPOINT, annotations, vocab, bs, path, valid_pct, seed, num_workers, device, check, block_kwargs,
                    cache)

def _prepare(annotations, vocab):
    check_relative(annotations, 'points')
    annotations = [one_instance(a) for a in annotations]
    vocab = names_of_points(annotations, vocab)
    annotations = with_points(annotations, len(vocab))
    warn_outside(annotations)
    return annotations,vocab

def one_instance(a):
    "`a` with its points, raising where there are several instances; none at all are points that are not marked"
    if a.points is None:
        return replace(a, points=np.zeros((0, 2)) if a.bboxes is None else np.zeros((len(a.bboxes), 0, 2)))
    if a.points.ndim == 3 and len(a.points) > 1:
        raise AnnotationError(f"{a.path}: {len(a.points)} instances in one image, but this task predicts the points "
                              "of one; `crop_instances(annotations)` makes an image of each")
    return a

def with_points(annotations, k):
    "`annotations` with `k` points each: those without an instance get points that are not marked"
    return [a if len(a.points.reshape(-1, 2)) else
            replace(a, bboxes=None, labels=[], masks=None, ignore=None, visible=None, points=np.full((k, 2), np.nan))
            for a in annotations]

def warn_outside(annotations):
    "One warning that counts the marked points that lie outside their image"
    out = []
    for a in annotations:
        on = ~np.isnan(a.points[...,0]) & (True if a.visible is None else a.visible > 0)
        out.append(int(on.sum() - (~np.isnan(marked_points(a)[:,0])).sum()))
    if any(out):
        at = int(np.argmax(np.array(out) > 0))
        warn(f"{sum(out)} points in {sum(o > 0 for o in out)} of {len(out)} images lie outside the image, "
             f"as in {annotations[at].path}; they count as not marked. `check_annotations` lists them")

def names_of_points(annotations, vocab):
    "`vocab`, or numbers as names; raises where annotations differ in the number of points, or none is marked at all"
    counts = {}
    for a in annotations: counts.setdefault(len(a.points.reshape(-1, 2)), a)
    counts.pop(0, None)
    if not counts: raise AnnotationError(
        f"none of the {len(annotations)} annotations has points; was the reader told the point columns?")
    k = len(vocab) if vocab is not None else next(iter(counts))
    for n,a in counts.items():
        if n != k: raise AnnotationError(
            f"{a.path}: {n} points, but " + (f"vocab names {k}" if vocab is not None else f"{counts[k].path} has {k}")
            + "; every image has the same points, nan for those not marked")
    if all(np.isnan(marked_points(a)).all() for a in annotations if len(a.points)): raise AnnotationError(
        f"no point of the {len(annotations)} annotations is marked inside its image: there is nothing to learn; "
        "are the columns x, y in pixels of the file?")
    vocab = [str(i) for i in range(k)] if vocab is None else list(vocab)
    if len(set(vocab)) < k: raise ValueError(
        f"vocab has duplicate names: {sorted({o for o in vocab if vocab.count(o) > 1})}")
    return vocab

@checked(**LEARNER, by=BY)
def keypoint_learner(
    dls:DataLoaders,       # of `keypoint_dls`
    arch=None,             # name of an encoder (torchvision or timm), torchvision builder, callable
                           # `n_out -> nn.Module` or `nn.Module`; None (default): 'resnet34'
    encoder=None,          # synonym of `arch`
    pretrained=True,
    n_out:int=None,        # numbers that the network returns; None (default): two per point
    arch_kwargs=None,      # `head`: 'heatmap' (default), a map for each point (`HeatmapHead`), at a `stride` of 4
                           # pixels for images below 160 pixels, otherwise 8; 'grid' or 'pool',
                           # numbers under `sigmoid_range` with `y_range` (-1, 1), as of `point_head`; and what the
                           # head takes. Or of a callable `arch`
    loss_func=None,        # 'l1' (default), 'mse', 'smooth_l1', 'wing', or a loss on (b, 2k) and (b, k, 2) with nan
    metrics=None,          # None (default): `PointError()`, `NME(by)`, `PCK(.05, by)`
    splitter=None, normalize=True, cbs=None,
    by='diagonal',         # normalizer of the metrics: 'diagonal', 'box', or two points by name or index
    **learner_kwargs,
) -> KeypointLearner:
    """A `KeypointLearner`; what is pretrained is frozen at first. Raises `AnnotationError` where the normalizer of a
    metric is zero for an image of the validation set"""
    metrics = [PointError(), NME(by), PCK(.05, by)] if metrics is None else metrics
    learn = task_learner(KEYPOINT, dls, arch, encoder, pretrained, n_out, arch_kwargs, loss_func, metrics, splitter,
                         normalize, cbs, learner_kwargs)
    learn.check_normalizers()
    return learn

def _loss(o, n_out): return PointLoss(o or 'l1') if o is None or isinstance(o, str) else o

def _metrics(): return [PointError(), NME(), PCK()]

def _two_per_point(vocab): return 2*len(vocab)

SMALL = 160   # pixels of the network's input, below which maps at stride 4 are worth their time

def _build(dls, arch, encoder, n_out, pretrained, arch_kwargs):
    kw = dict(arch_kwargs or {})
    maps = kw.get('head', 'heatmap') == 'heatmap'
    if maps and is_named(arch if arch is not None else encoder):
        kw.pop('head', None)
        if 'y_range' in kw: raise ValueError(
            "arch_kwargs: y_range bounds the heads 'grid' and 'pool', and a heat map ends with the image; drop it, or "
            "pass arch_kwargs=dict(head='grid', y_range=...)")
        if max(input_size(dls) or [SMALL]) < SMALL: kw.setdefault('stride', 4)    # 8 would leave too few cells
    head = HeatmapHead if maps else point_head
    return build_on_encoder('keypoint', head, dls, arch, encoder, n_out, pretrained, kw, pyramid=maps)

def point_head(c, n_out, head='grid', y_range=(-1, 1), **kwargs):
    """(b, c, h, w) -> (b, n_out) in `y_range`. 'grid': a `GridHead`, which keeps places apart, under `sigmoid_range`;
    'pool': fastai's `create_head`, which pools over the whole map. Either starts with all points near the middle, where
    `sigmoid_range` has a gradient; those that start at a border may never leave it"""
    if head == 'grid': return nn.Sequential(GridHead(c, n_out, **kwargs), SigmoidRange(*y_range))
    if head != 'pool': raise ValueError(f"head is 'heatmap', 'grid' or 'pool', not {head!r}")
    res = pooled_head(c, n_out, y_range=y_range, **kwargs)
    last = [o for o in res if isinstance(o, nn.Linear)][-1]
    with torch.no_grad(): last.weight.mul_(.1)
    return res

@checked_methods
class KeypointLearner(TaskLearner):
    "A `TaskLearner` whose predictions are points in pixels of the file"
    in_pixels = True
    not_mixed = 'points'

    def eval_metrics(self): return [PointError(), NME(), PCK()]

    def probabilities(self, pred):
        "(b, k, 2) coordinates in [-1, 1] of the network's input; the word is the other tasks'"
        p = pred.as_subclass(Tensor).float()
        return p.view(len(p), -1, 2)

    def check_training(self, cbs=None):
        "As of every learner; `AnnotationError` where `check_normalizers` raises it"
        super().check_training(cbs)
        self.check_normalizers()

    def check_normalizers(self):
        """Raise `AnnotationError` where the normalizer of a metric is zero for an image of the validation set, as 'box'
        is around a single point: known now, and not after an epoch of training"""
        items = [a for a in getattr(self.dls.valid, 'items', ()) if isinstance(a, Annotation)]
        for by in {repr(m.by): m.by for m in self.metrics if getattr(m, 'by', 'diagonal') != 'diagonal'}.values():
            bad = [e for a in items if (e := _normalizer_error(a, by, self.dls.vocab)) is not None]
            if bad: raise AnnotationError(f"{bad[0]}, or drop the image ({len(bad)} of {len(items)} images for "
                                          "validation are such)")

    def prepared(self, annotations):
        annotations,k = [one_instance(a) for a in annotations],len(self.dls.vocab)
        for a in annotations:
            n = len(a.points.reshape(-1, 2))
            if n not in (0, k): raise AnnotationError(f"{a.path}: {n} points, but the model predicts {k}: "
                                                      f"{', '.join(self.dls.vocab)}")
        annotations = with_points(annotations, k)
        warn_outside(annotations)
        return annotations

    def mirror_back(self, p, # (b, k, 2) points of mirrored images in [-1, 1]
    ):
        return mirror_points(p*p.new_tensor([-1, 1]), getattr(self.dls, 'flip_pairs', None))

    def in_file(self,
        p,     # (b, k, 2) in [-1, 1] of the network's input
        sizes, # list of (w, h) of the b files
    ) -> Tensor:
        """(b, k, 2) in [-1, 1] of the network's input, as pixels of files of `sizes`, a list of (w, h); clipped to the
        image"""
        res = []
        for o,size in zip(p.cpu().double(), sizes):
            view = self.valid_view(size)
            res.append(view.undo_points((o+1)/2*torch.tensor(view.out)).clamp(min=0).minimum(torch.tensor(size)))
        return torch.stack(res)

    def annotate(self, items, bs:int=None, tta:bool=False) -> list[Annotation]:
        "Points of `items` in pixels of the files: one instance per image"
        return super().annotate(items, None, bs, tta)

    def probabilities_of(self, preds): return self.probabilities(preds)

    def to_annotations(self, probs, images, thresh=None):
        points = self.in_file(probs, [size for _,size in images]).numpy()
        return [Annotation(path, size, points=p, visible=np.full(len(p), 2)) for (path,size),p in zip(images, points)]

    @checked(thresh=FRACTION, by=BY)
    def evaluate_per_point(self,
        ds_idx:int=1, dl=None,
        by='diagonal',    # normalizer of NME and PCK, as `normalizer_of` takes it
        thresh:float=.05, # PCK counts errors up to this share of the normalizer
    ) -> pd.DataFrame:
        """For each point: images in which it is marked, mean and median error in pixels of the file, NME, PCK at
        `thresh`"""
        dl = self.whole_dl(ds_idx, dl)
        items = list(dl.items)
        norms = np.array([normalizer_of(a, by, self.dls.vocab) for a in items])[:,None]
        pred = np.stack([a.points for a in self.annotate(items, bs=dl.bs)])
        e = point_errors(pred, np.stack([marked_points(a) for a in items])).numpy()
        rel = e/norms
        rows = []
        for j,name in enumerate(self.dls.vocab):
            d,r = (o[~np.isnan(o)] for o in (e[:,j], rel[:,j]))     # a normalizer may be unknown where the point is not
            of = lambda f, v: f(v) if len(v) else np.nan
            rows.append((name, len(d), of(np.mean, d), of(np.median, d), of(np.mean, r), of(np.mean, r <= thresh)))
        return pd.DataFrame(rows, columns=['label', 'n', 'error_px', 'median_px', 'nme', PCK(thresh).name])

    evaluate_per_class = evaluate_per_point   # the classes of this task are its points

    def tune_threshold(self, *args, **kwargs, # ignored: always an error
    ):
        raise ValueError("points have no score, so that there is no threshold to tune")

def _normalizer_error(a, by, vocab):
    "The `AnnotationError` that `normalizer_of` raises; None where it raises none"
    try: normalizer_of(a, by, vocab)
    except AnnotationError as e: return e

# ImageNet's encoders forget where things are, and must learn it: at fastai's ratio of 100 they hardly do
KEYPOINT = Task('keypoint', KeypointLearner, keypoint_block, _prepare,
                _build, _loss, _metrics, n_out=_two_per_point,
                recipe=Recipe(base_lr=1e-2, lr_mult=2.))
