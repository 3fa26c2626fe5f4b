"Semantic segmentation: a class for every pixel; void is left out of losses, scores and pictures"
from __future__ import annotations
import inspect
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import product
import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from fastai.callback.all import Callback, GradientAccumulation
from fastai.data.block import DataBlock
from fastai.data.core import DataLoaders
from fastai.learner import Metric
from fastai.torch_core import to_float
from fastai.vision.core import TensorImage
from fastprogress.fastprogress import progress_bar
from torchvision.transforms.v2.functional import pil_to_tensor
from .arguments import COUNT, FLAG, FUNCTION, NAMES, SIZE, Kind, checked, checked_methods, either, number
from .data.annotation import Annotation
from .data.blocks import ClassMaskBlock, FileImageBlock, grey_range_of
from .data.geometry import batch_geometry, valid_step
from .data.items import FileImage
from .data.splits import AnnotationSplitter
from .data.targets import annotation_of, class_mask
from .data.transforms import JointTransform
from .data.views import CropView, View
from .losses.base import loss_by_name
from .losses.segmentation import SEGMENTATION_LOSSES
from .metrics.segmentation import (MeanIoU, PixelAccuracy, class_accuracy_from_confusion, confusion_counts,
                                   confusion_scores, dice_from_confusion, iou_from_confusion)
from .models.layers import check_n_out
from .models.registry import arch_facts, get_arch, list_archs
from .models.segmentation.dynamic_unet import dynamic_unet
from .ops.crf import dense_crf
from .ops.windows import check_scale, extend_image, resample_map, tile_starts, tile_weights
from .show.class_masks import SegmentationDL
from .show.plots import plot_confusion
from .training.build import make_learner
from .training.checks import check_data
from .training.images import picture_of
from .training.kinds import BLOCK, CHECK, CLASSES, DLS, LEARNER
from .training.learner import TaskLearner
from .training.loaders import splitter_of, task_dls
from .warning import warn

__all__ = ['segmentation_block', 'segmentation_dls', 'segmentation_learner', 'AuxLoss', 'SegmentationLearner']

AT_ONCE = 2**26   # numbers of one picture's probabilities in memory, when they are brought to the file's size

@checked(**{k: v for k,v in BLOCK.items() if k != 'vocab'}, codes=CLASSES)
def segmentation_block(
    codes,            # list of the classes' names, in the order of their indices; void is none of them
    size=224,         # of the network's input in pixels: (w, h), or one number for both
    splitter=None,    # annotations -> indices of train, of valid; None = the annotations' own, else 20 % at random
    item_tfms=None,   # in place of a `JointTransform` that crops and flips; squish otherwise
    batch_tfms=None,  # in place of `LightJitter()`: brightness and contrast when training
) -> DataBlock:
    "Picture in, (h, w) class indices out, 255 = void. Its source is a list of `Annotation`"
    if item_tfms is None: item_tfms = JointTransform(size, train=CropView((.5, 1.)))
    return DataBlock((FileImageBlock, ClassMaskBlock(codes)), get_x=annotation_of, get_y=annotation_of,
                     dl_type=SegmentationDL, splitter=splitter or AnnotationSplitter(), item_tfms=item_tfms,
                     batch_tfms=batch_geometry(batch_tfms))

@checked(**DLS, check=CHECK, codes=either(NAMES, Kind("a dict of names by value", lambda o: isinstance(o, dict))))
def segmentation_dls(
    annotations,          # list[Annotation] with `mask`, as `read_masks` gives them
    codes,                # list of the classes' names, in the order of their indices; or {value: name}, as `read_masks`
                          # takes it, of which the names count
    bs:int=16,            # pictures in a batch, at most as many as there are to train on
    path='.',             # where the learner saves
    valid_pct:float=.2,   # share of valid, where the annotations do not say
    seed:int=42,          # of that split
    num_workers:int=None, # processes that load; None = one per core
    device=None,          # None = the GPU where there is one
    check='masks',        # 'masks': read all masks once, in threads, so that a value beyond the codes raises now; True:
                          # decode all images too; False: neither, and what is broken raises when it is met
    **block_kwargs,       # `size`, `splitter`, `item_tfms`, `batch_tfms`, as `segmentation_block` takes them
) -> DataLoaders:
    """DataLoaders of pictures and class masks. Raises `AnnotationError` for missing files, pictures without a mask,
    masks of another size, values beyond the codes"""
    annotations,codes = check_data(annotations),list(codes.values() if isinstance(codes, dict) else codes)
    twice = sorted({o for o in codes if codes.count(o) > 1})
    if twice or not codes: raise ValueError(f"codes are the names of the classes, each once; got {codes}")
    if len(codes) == 1: raise ValueError(f"codes holds {codes[0]!r} alone, so that there is nothing to tell it from; "
                                         "name what the other pixels are too, such as 'background'")
    if check:
        with ThreadPoolExecutor() as ex:
            list(ex.map(lambda a: class_mask(a, len(codes)) is None, annotations))
    splitter = splitter_of(block_kwargs, valid_pct, seed)
    block = segmentation_block(codes, splitter=splitter, **block_kwargs)
    return task_dls(block, annotations, None, bs, path, num_workers, device, check is True)

@checked(**LEARNER, aux_weight=number(0))
def segmentation_learner(
    dls:DataLoaders,       # of `segmentation_dls`
    arch=None,             # a name of `list_archs('segmentation')`, a builder `n_out -> nn.Module`, or an `nn.Module`
                           # that gives (b, n_out, h, w) logits; None = 'dynamic_unet'
    encoder=None,          # torchvision's or timm's name, for archs that stand on any; None = the arch's own
    pretrained=None,       # True: weights from the hub; False: none; or the path of a local state dict of the encoder;
                           # None = True where there are any
    n_out:int=None,        # classes without void; None = `len(dls.vocab)`
    arch_kwargs=None,      # for the builder: `width`, `padding`, ...
    loss_func=None,        # 'ce' (default), 'focal', 'dice', 'ce_dice', or a loss on (b, c, h, w) and (b, h, w)
    metrics=None,          # None = mean IoU and pixel accuracy, in pixels of the network's input
    splitter=None,         # model -> parameter groups; None = encoder and the rest
    normalize=True,        # of the images: True = by the statistics that the weights were trained with, ImageNet's
                           # where the net has none; `(mean, std)`, each three numbers for pixels in [0, 1]; or None,
                           # as they are. What the DataLoaders did before is replaced
    cbs=None,              # fastai callbacks of every training and validation; None (default): fastai's default
                           # callbacks only
    aux_weight:float=.5,   # of the auxiliary loss, where the net has an auxiliary head when training
    **learner_kwargs,      # of fastai's `Learner`
) -> SegmentationLearner:
    "A `SegmentationLearner`; the encoder is frozen at first where it is pretrained"
    n_out = check_n_out(len(dls.vocab) if n_out is None else n_out)
    model,pretrained = _model(arch, encoder, n_out, pretrained, dict(arch_kwargs or {}))
    metrics = [MeanIoU(), PixelAccuracy()] if metrics is None else metrics
    cbs = [AuxLoss(aux_weight), *(cbs if isinstance(cbs, (list, tuple)) else [] if cbs is None else [cbs])]
    loss = loss_by_name(loss_func or 'ce', SEGMENTATION_LOSSES, '(b, c, h, w)')
    learn = make_learner(SegmentationLearner, dls, model, loss, metrics, splitter, cbs, pretrained, normalize,
                         **learner_kwargs)
    learn.try_one_batch()
    return learn

def _model(arch, encoder, n_out, pretrained, kw):
    "The net, and whether (and how) it is pretrained"
    if isinstance(arch, nn.Module): return arch,bool(pretrained)
    arch = dynamic_unet if arch is None else arch
    name = arch if isinstance(arch, str) else getattr(arch, '__name__', None)
    if encoder is not None: kw['encoder'] = encoder
    # a name; or a builder of torchvision's or ours that is known by its name
    if name in list_archs('segmentation') and (isinstance(arch, str) or arch is get_arch(name, 'segmentation')
                                               or arch.__module__.startswith('torchvision.')):
        if pretrained is None: pretrained = arch_facts(name, 'segmentation').get('weights', True)
        build = get_arch(name, 'segmentation')
        try: return build(n_out, pretrained=pretrained, **kw),pretrained
        except TypeError as e:
            if 'unexpected keyword' not in str(e): raise
            raise ValueError(f"{name}: {e}; of arch_kwargs and encoder this net takes other ones") from e
    if isinstance(arch, str): get_arch(arch, 'segmentation')   # which says what there is
    return arch(n_out, **kw),bool(pretrained)

class AuxLoss(Callback):
    "Nets with an auxiliary head give (logits, auxiliary logits) when training: add `weight` times the loss of these"
    order = GradientAccumulation.order-1   # before it scales the loss
    @checked(weight=number(0))
    def __init__(self, weight=.5, # of the auxiliary loss
    ):
        self.weight,self.aux = weight,None
    def after_pred(self):
        self.aux = None
        if isinstance(self.pred, tuple): self.learn.pred,self.aux = self.pred[0],to_float(self.pred[1])
    def after_loss(self):
        if self.aux is None: return
        self.learn.loss_grad = self.loss_grad + self.weight*self.loss_func(self.aux, *self.yb)
        self.learn.loss,self.aux = self.loss_grad.detach().clone(),None

GRID = Kind("a dict of lists of values, by the parameter of `dense_crf`", lambda o: isinstance(o, dict) and
            all(k in inspect.signature(dense_crf).parameters and len(list(v)) for k,v in o.items()))

class InFileConfusion(Metric):
    "(c, c) pixel counts in pixels of the files, row = truth, column = answer"
    name = 'confusion'
    def reset(self): self.counts,self.n = None,0
    def accumulate(self, learn):
        items,probs = learn.items_of_batch(self.n, len(learn.pred)),learn.probabilities(learn.pred)
        self.n += len(items)
        for a,p in zip(items, probs):
            said = learn.labels_in_file(p, a.size)
            cm = confusion_counts(said, torch.from_numpy(class_mask(a, len(learn.dls.vocab))), len(learn.dls.vocab))
            self.counts = cm if self.counts is None else self.counts + cm
    @property
    def value(self): return 0.

@checked_methods
class SegmentationLearner(TaskLearner):
    "A `TaskLearner` that answers with a class mask of each file's size"
    annotate_options = 'tile','postprocess'
    in_pixels = True
    lr_mult = 2.   # ImageNet's encoders forget where things are, and must learn it: at fastai's 100 they hardly do
    not_mixed = 'class masks'

    def try_one_batch(self):
        "Let an error of sizes come now, not in the middle of an epoch"
        x = self.dls.valid.one_batch()[0] if len(self.dls.valid.dataset) else None
        if x is None: return
        mode,x = self.model.training,x[:1].as_subclass(Tensor)
        try:
            with torch.no_grad():
                out = self.model.to(x.device).eval()(x)
                if isinstance(out, Tensor) and out.shape[-2:] != x.shape[-2:]: self._check_crop(x, out)
        finally: self.model.train(mode)
        if not isinstance(out, Tensor) or out.ndim != 4 or out.shape[1] != len(self.dls.vocab):
            came = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
            raise ValueError(f"the model gives {came} for a picture of {tuple(x.shape[-2:])}; expected logits (1, "
                             f"{len(self.dls.vocab)}, h, w): one for each class of dls.vocab and pixel")

    def _check_crop(self, x, out):
        "Raise unless `out` is smaller than `x` by what a net without padding loses: the same at each side and size"
        lost  = [n-m for n,m in zip(x.shape[-2:], out.shape[-2:])]
        larger = F.pad(x, (0, 16, 0, 16))
        if len({*lost}) == 1 and lost[0] > 0 and lost[0]%2 == 0:
            if larger.shape[-1] - self.model(larger).shape[-1] == lost[0]: return
        raise ValueError(f"the model gives logits of {tuple(out.shape[-2:])} for a picture of {tuple(x.shape[-2:])} "
                         "(height, width); expected the same, or fewer by a constant number at each side: resize the "
                         "logits to the picture in the model's forward, by F.interpolate(..., x.shape[-2:])")

    def mirror_back(self, probs): return probs.flip(-1)

    def probabilities(self, pred): return pred.as_subclass(Tensor).float().softmax(1)

    # --- from the network's pixels to the file's

    def probs_in_file(self,
        p,    # (c, h, w) probabilities at the network's input
        size, # (w, h) of the image file
    ) -> Tensor:
        """(c, h, w) probabilities of the network's input as (c, H, W) of a file of `size` (w, h); 0 for all classes
        where the network did not look"""
        res = p.new_zeros(len(p), size[1], size[0])
        (x1,y1,x2,y2),sample = self._place(p, size)
        res[:, y1:y2, x1:x2] = sample(p)
        return res

    def labels_in_file(self,
        p,    # (c, h, w) probabilities at the network's input
        size, # (w, h) of the image file
    ) -> Tensor:
        """(H, W) class indices of a file of `size` (w, h), on the CPU: the best of (c, h, w) probabilities, 255 where
        the network did not look"""
        (x1,y1,x2,y2),sample = self._place(p, size)
        best = None
        # class by class where all at once would fill the memory
        step = len(p) if len(p)*(y2-y1)*(x2-x1) <= AT_ONCE else 1
        for i in range(0, len(p), step):
            top,idx = sample(p[i:i+step]).max(0)
            if best is None: best,which = top,idx.to(torch.int32)
            else:
                on = top > best
                best,which = torch.where(on, top, best),torch.where(on, (idx+i).to(torch.int32), which)
        res = torch.full(size[::-1], 255, dtype=torch.uint8 if len(p) <= 255 else torch.int32)
        res[y1:y2, x1:x2] = which.to('cpu', res.dtype)
        return res

    def _place(self, p, size):
        """The rectangle of the file that the network saw, in whole pixels, and a function that brings maps like `p` to
        that rectangle"""
        view,(h,w) = self.valid_view(size),p.shape[-2:]
        # a net without padding predicts the center of its input
        cut = np.array([(view.out[0]-w)/2, (view.out[1]-h)/2])
        view = view.then(View((*cut, *(cut + [w, h])), (0, 0, w, h), (w, h)))
        x1,y1,x2,y2 = np.array(view.src).round().clip(0, np.tile(size, 2)).astype(int).tolist()
        return (x1, y1, x2, y2),partial(resample_map, rect=(x1, y1, x2, y2), view=view)

    def to_annotations(self, probs, pictures, thresh):
        if thresh is not None:
            raise ValueError("every pixel takes the class with the highest score, so that there is nothing to compare "
                             "thresh with: leave it out")
        return [Annotation(path, size, mask=self.labels_in_file(p, size).numpy())
                for p,(path,size) in zip(probs, pictures)]

    @checked(tta=FLAG, postprocess=FUNCTION, tile=SIZE)
    def annotate(self,
        items,
        thresh=None,      # None; a number is an error: every pixel takes the class with the highest score
        bs=None,
        tile=None,        # (w, h) or one number of pixels of the tiles, for images larger than those that the network
                          # was trained on: tiles overlap and are blended; None (default): the whole image at once
        tta=False,
        postprocess=None, # (probs (c, H, W), image (3, H, W) uint8) -> probs (c, H, W), before each pixel takes its
                          # class, such as `dense_crf`
        scale=None,       # resize images before they are cut into tiles: network pixels per image pixel, one number or
                          # (x, y); None (default): not at all, with a warning where the network was validated at
                          # another scale (by more than a half), as after images were squished to its input
    ):
        "A class mask of each image's size"
        if scale is not None and tile is None: raise ValueError(
            f"scale={scale} is for tiles: pass `tile` too; without tiles images are resized as in validation")
        if tile is None and postprocess is None: return super().annotate(items, thresh, bs, tta=tta)
        if thresh is not None: self.to_annotations([], [], thresh)
        if tile is not None and scale is None: self._warn_scale()
        return self._annotate_whole(items, bs, tile, tta, postprocess, scale)

    def valid_scale(self) -> tuple[float,float]|None:
        "Network pixels per image pixel (x, y), the median over the validation set; None without validation images"
        items = [a for a in (self.dls.valid.items if len(self.dls.valid.dataset) else []) if isinstance(a, Annotation)]
        if not items: return None
        ratios = []
        for size in {a.size: None for a in items}:
            view = self.valid_view(size)
            src,dst = np.array(view.src, float),np.array(view.dst, float)
            ratios.append(((dst[2:]-dst[:2])/(src[2:]-src[:2]), sum(a.size == size for a in items)))
        each = np.repeat([r for r,_ in ratios], [n for _,n in ratios], axis=0)
        return tuple(np.median(each, 0).tolist())

    def _warn_scale(self):
        "Warn where tiles that are not resized show objects at another scale than the validation images"
        s = self.valid_scale()
        if s is None or all(1/1.5 <= o <= 1.5 for o in s): return
        warn("tiles show 1 network pixel per image pixel, but the network was validated at "
             f"{s[0]:.3g} (x) and {s[1]:.3g} (y), so objects in tiles are {1/s[0]:.3g} times as wide and "
             f"{1/s[1]:.3g} times as high as it knows them: pass scale=({s[0]:.3g}, {s[1]:.3g}), scale=1 for "
             "tiles as they are, or train on crops at the scale of the images")

    def _annotate_whole(self, items, bs, tile, tta, postprocess, scale=None):
        "Annotations from probabilities of each file's size"
        out,asked = [],self.pictures_of(items)
        def finish(item, probs):
            im = self._pixels(item)
            if postprocess is not None: probs = _checked(postprocess(probs, im), probs)
            labels = probs.argmax(0).to('cpu', torch.uint8 if len(probs) <= 255 else torch.int32)
            labels[(probs == 0).all(0).cpu()] = 255
            out.append(Annotation(picture_of(item)[0], (im.shape[2], im.shape[1]), mask=labels.numpy()))
        if tile is not None:
            bar = progress_bar(asked, leave=False) if hasattr(self, 'progress') else asked    # absent under `no_bar`
            for item in bar: finish(item, self.tiled_probs(self._pixels(item), tile, tta, bs, scale))
            return out
        def gather(probs):
            for p in probs:
                item = asked[len(out)]
                finish(item, self.probs_in_file(p, picture_of(item)[1]))
        self.stream(asked, gather, bs, tta)
        return out

    def _pixels(self, item):   # (3, H, W) uint8
        im = FileImage.create(item, grey_range_of(self.dls))
        return im.pixels() if not im.loaded else pil_to_tensor(im)

    @checked(tta=FLAG, tile=SIZE)
    def tiled_probs(self,
        image:Tensor,      # (3, H, W) uint8
        tile,              # (w, h), or one number for both, in pixels of the network's input
        tta:bool=False,    # average with the mirrored tiles
        bs:int=None,       # tiles at a time; None = as in training
        scale=None,        # network pixels per image pixel, one number above 0 or (x, y); None = 1
    ) -> Tensor:           # (c, H, W) in [0, 1], on the CPU
        """Probabilities of an image of any size, tile by tile. Tiles overlap by half; an eighth at each inner border is
        excluded and what follows is blended, so that a net that sees no further than an eighth of a tile predicts what
        it does for the whole image. With `scale` the image is resized first, and the probabilities are resized back"""
        if scale is not None:
            sx,sy = check_scale(scale)
            H,W = image.shape[-2:]
            hw  = max(round(H*sy), 1),max(round(W*sx), 1)
            small = F.interpolate(image[None].float(), hw, mode='bilinear', antialias=True)[0]
            small = small.round().clamp(0, 255).to(image.dtype)
            probs = self.tiled_probs(small, tile, tta, bs)
            return F.interpolate(probs[None], (H, W), mode='bilinear', align_corners=False)[0]
        tw,th = (tile, tile) if isinstance(tile, int) else tile
        if min(tw, th) < 16: raise ValueError(f"tile is (w, h) in pixels, 16 or more; got {tile!r}")
        H,W = image.shape[-2:]
        ow,oh = self._output_size(tw, th)
        py,px = (th-oh)//2,(tw-ow)//2                    # what a net without padding leaves out at each side
        ys,xs = tile_starts(H, oh),tile_starts(W, ow)
        image = extend_image(image, (px, max(ow-W, 0) + px, py, max(oh-H, 0) + py))
        at = [(y, x) for y in ys for x in xs]
        weight = torch.zeros(max(H, oh), max(W, ow))
        total = torch.zeros(len(self.dls.vocab), *weight.shape)
        for i in range(0, len(at), bs or self.dls.bs):
            some = at[i:i+(bs or self.dls.bs)]
            probs = self._predict_tiles(torch.stack([image[:, y:y+th, x:x+tw] for y,x in some]), tta)
            for (y,x),p in zip(some, probs):
                w = tile_weights(y, oh, ys)[:,None]*tile_weights(x, ow, xs)
                total[:, y:y+oh, x:x+ow] += p.cpu()*w; weight[y:y+oh, x:x+ow] += w
        return (total/weight)[:, :H, :W]

    def _predict_tiles(self, x, tta):
        b = TensorImage(x.to(self.dls.device)),
        for o in self.dls.valid.after_batch.fs:      # tiles are not resized
            if valid_step(o, (x.shape[-1], x.shape[-2])) is None: b = o(b, split_idx=1)
        x, = b
        self.model.to(self.dls.device).eval()
        with torch.no_grad():
            p = self.probabilities(self.model(x))
            return p if not tta else (p + self.mirror_back(self.probabilities(self.model(x.flip(-1)))))/2

    def _output_size(self, w, h):
        "(w, h) of the answer for an input of (w, h)"
        p = self._predict_tiles(torch.zeros(1, 3, h, w, dtype=torch.uint8), False)
        return p.shape[-1],p.shape[-2]

    # --- scores

    def evaluate(self, ds_idx:int=1, dl=None) -> dict:
        """The loss; then, in pixels of the files and over the data set, mean IoU, pixel accuracy, mean class accuracy,
        frequency-weighted IoU and Dice; then further metrics of the learner's own. Counts stream, no logits are kept"""
        own = [m for m in self.own_metrics() if m.name not in confusion_scores(torch.ones(1, 1))]
        counts,loss,*rest = self._count(ds_idx, dl, own)
        return {'valid_loss': loss, **confusion_scores(counts), **{m.name: v for m,v in zip(own, rest)}}

    def _count(self, ds_idx, dl, metrics=()):
        "The (c, c) counts in pixels of the files, the loss, and the values of further `metrics`"
        cm = InFileConfusion()
        with self.scored_by([cm, *metrics]):
            loss,_,*rest = self.validate(dl=self.whole_dl(ds_idx, dl))
        return cm.counts,loss,*rest

    def confusion(self, ds_idx:int=1, dl=None) -> pd.DataFrame:
        "Pixels of the files by true class (rows) and answer (columns), void left out"
        counts,vocab = self._count(ds_idx, dl)[0],list(self.dls.vocab)
        return pd.DataFrame(counts.numpy(), index=vocab, columns=vocab)

    def evaluate_per_class(self, ds_idx:int=1, dl=None) -> pd.DataFrame:
        """For each class: pixels of it in the files, IoU, share of them that were found (accuracy, recall), share of
        the answers that are right (precision), Dice; nan where it has no meaning"""
        cm = self._count(ds_idx, dl)[0]
        return pd.DataFrame({'label': list(self.dls.vocab), 'n': cm.sum(1).numpy(),
                             'iou': iou_from_confusion(cm).numpy(),
                             'accuracy': class_accuracy_from_confusion(cm).numpy(),
                             'precision': class_accuracy_from_confusion(cm.T).numpy(),   # truth and answer exchanged
                             'dice': dice_from_confusion(cm).numpy()})

    @checked(normalize=FLAG)
    def plot_confusion(self, ds_idx:int=1, dl=None, normalize:bool=True, ax=None):
        "Draw the confusion matrix, in pixels of the files"
        return plot_confusion(self.confusion(ds_idx, dl), normalize, ax)

    @checked(grid=GRID, n=COUNT)
    def tune_crf(self,
        grid:dict,        # parameter of `dense_crf` -> values to try: {'w1': [2., 4., 8.], 'sb': [3., 5., 10.]}
        ds_idx:int=1,     # of the set
        n:int=None,       # of its pictures, evenly spaced; None = all
    ) -> pd.DataFrame:    # one row each, best first; the one with n_iter 0 is the net alone
        """Mean IoU in pixels of the files after `dense_crf` with every combination of `grid`; then
        `annotate(items, postprocess=partial(dense_crf, ...))`"""
        items,c = list(self.whole_dl(ds_idx).items),len(self.dls.vocab)
        items = [items[i] for i in np.linspace(0, len(items)-1, min(n or len(items), len(items))).astype(int)]
        tried = [dict(n_iter=0), *(dict(n_iter=10) | dict(zip(grid, o)) for o in product(*grid.values()))]
        counts,todo = [0]*len(tried),iter(items)
        def gather(probs):
            for p,a in zip(probs, todo):
                p,im,true = self.probs_in_file(p, a.size),self._pixels(a),torch.from_numpy(class_mask(a, c))
                for i,kw in enumerate(tried):
                    q = dense_crf(p, im, **kw)
                    said = q.argmax(0).where(q.any(0), 255).cpu()   # void where the net did not look
                    counts[i] = counts[i] + confusion_counts(said, true, c)
        self.stream(items, gather)
        df = pd.DataFrame([{**kw, 'miou': confusion_scores(o)['miou']} for kw,o in zip(tried, counts)])
        return df.sort_values('miou', ascending=False, ignore_index=True)

    def predict(self, item, rm_type_tfms=0, with_input=False):
        "The `Annotation`, its mask of the file's size; and, as fastai gives them, class indices and probabilities"
        *inp,_,dec,p = super().predict(item, rm_type_tfms, with_input)
        return *inp,self.to_annotations(p[None], [picture_of(item)], None)[0],dec,p

    def tune_threshold(self, *args, **kwargs, # ignored: always an error
    ):
        raise ValueError("every pixel takes the class with the highest score, so that there is no threshold to tune")

def _checked(res, probs):
    if isinstance(res, Tensor) and res.shape == probs.shape: return res
    came = tuple(res.shape) if hasattr(res, 'shape') else type(res).__name__
    raise ValueError(f"postprocess gives {came}; expected a tensor like its first argument, {tuple(probs.shape)}")
