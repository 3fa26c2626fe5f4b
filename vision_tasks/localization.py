"Classification and localization: what is the one object of a picture, and where? One body, a class and a box head"
from __future__ import annotations
import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from fastai.data.block import DataBlock
from fastai.data.core import DataLoaders
from fastai.layers import sigmoid_range
from .arguments import FLAG, check_thresh, checked, checked_methods, choice
from .data.annotation import Annotation, select_objects
from .data.errors import AnnotationError
from .data.blocks import FileImageBlock, OneObjectBlock
from .data.targets import NO_OBJECT, annotation_of, check_labels, object_bbox, object_label
from .data.check import check_relative
from .data.splits import AnnotationSplitter
from .data.geometry import batch_geometry
from .data.transforms import JointTransform
from .data.views import JitterView
from .training.build import came_pretrained, make_learner, pooled_head, task_model
from .training.checks import check_data, check_vocab, clipped, warn_tiny
from .training.images import picture_of
from .training.learner import TaskLearner
from .training.loaders import splitter_of, task_dls
from .losses.localization import LocalizationLoss
from .metrics.localization import LocalizationAccuracy, LocalizationIoU, localization_confusion, localized
from .models.layers import GridHead, check_n_out
from .show.one_object import LocalizationDL
from .show.plots import plot_confusion
from .training.kinds import BLOCK, DLS, LEARNER

__all__ = ['localization_block', 'localization_dls', 'localization_learner', 'LocalizationLearner', 'largest_object']

@checked(**BLOCK)
def localization_block(
    vocab,            # list of names; `NO_OBJECT` among them is the class of pictures without an object
    size=224,         # of the network's input in pixels: (w, h), or one number for both
    splitter=None,    # annotations -> indices of train, of valid; None = the annotations' own, else 20 % at random
    item_tfms=None,   # in place of a `JointTransform` that zooms both ways and flips but keeps the object whole; squish
                      # otherwise
    batch_tfms=None,  # in place of `LightJitter()`: brightness and contrast when training
) -> DataBlock:
    """Picture in, one name and one box out, x1 y1 x2 y2 in [-1, 1]; nan = no box. Its source is a list of `Annotation`.
    Where a transform cuts the object away, the label stays and the box is nan"""
    if item_tfms is None: item_tfms = JointTransform(size, train=JitterView((.8, 1.25), 'squish'), keep=True)
    return DataBlock((FileImageBlock, *OneObjectBlock(vocab)), n_inp=1, get_x=annotation_of,
                     get_y=[object_label, object_bbox], dl_type=LocalizationDL,
                     splitter=splitter or AnnotationSplitter(), item_tfms=item_tfms,
                     batch_tfms=batch_geometry(batch_tfms, 'box'))

@checked(**DLS, check=FLAG, empty=choice('class', 'raise'))
def localization_dls(
    annotations,          # list[Annotation] with one object each, or none: boxes (1, 4) or (0, 4). A label without
                          # boxes teaches the class alone
    vocab=None,           # list of names; None = all that occur, sorted, after `NO_OBJECT` where that is needed
    bs:int=64,            # pictures in a batch, at most as many as there are to train on
    path='.',             # where the learner saves
    valid_pct:float=.2,   # share of valid, where the annotations do not say
    seed:int=42,          # of that split
    num_workers:int=None, # processes that load; None = one per core
    device=None,          # None = the GPU where there is one
    empty:str='class',    # pictures without an object are a 'class' of their own, `NO_OBJECT`, or 'raise'
    check:bool=False,     # decode all images once, in threads, so that a broken one raises now and not in the
                          # middle of the first epoch
    **block_kwargs,       # `size`, `splitter`, `item_tfms`, `batch_tfms`, as `localization_block` takes them
) -> DataLoaders:
    """DataLoaders of pictures, class ids and boxes. Boxes are clipped to the picture; what has no area in it goes, and
    one warning says how many. Raises `AnnotationError` for missing files, several objects, unknown labels"""
    annotations = check_data(annotations)
    check_relative(annotations, 'bboxes')
    annotations = clipped(annotations)
    none = [a for a in annotations if object_label(a) == NO_OBJECT]
    if none and empty == 'raise': raise AnnotationError(
        f"{none[0].path}: no object ({len(none)} of {len(annotations)} pictures have none); leave them out, or pass "
        "empty='class' to make them a class of their own")
    extra = [NO_OBJECT] if none and (vocab is None or NO_OBJECT not in vocab) else []
    vocab = [*extra, *check_vocab(annotations, vocab)]
    splitter = splitter_of(block_kwargs, valid_pct, seed)
    block = localization_block(vocab, splitter=splitter, **block_kwargs)
    return warn_tiny(task_dls(block, annotations, vocab, bs, path, num_workers, device, check))

@checked(**LEARNER)
def localization_learner(
    dls:DataLoaders,       # of `localization_dls`
    arch=None,             # torchvision's or timm's name, torchvision's builder, a callable `n_out -> nn.Module` or an
                           # `nn.Module` that gives (b, n_out + 4); None = 'resnet34'
    encoder=None,          # another word for `arch`
    pretrained=True,       # True: ImageNet weights from the hub; False: none; or the path of a local state dict of the
                           # encoder
    n_out:int=None,        # classes, `NO_OBJECT` counted where it is one; None = `len(dls.vocab)`
    arch_kwargs=None,      # for `LocalizationHead`: `grid`, `width`, `hidden` of the box, `ps`, `lin_ftrs`, ... of the
                           # class; or for a callable `arch`
    loss_func=None,        # 'smooth_l1' (default), 'l1', 'l2' or 'giou', each beside the cross entropy; or a
                           # `LocalizationLoss(bbox, weight)`
    metrics=None,          # None = accuracy, mean IoU, both right at IoU .5
    splitter=None,         # model -> parameter groups; None = encoder and heads
    normalize=True,        # of the images: True = by the statistics that the weights were trained with, ImageNet's
                           # where the net has none; `(mean, std)`, each three numbers for pixels in [0, 1]; or None,
                           # as they are. What the DataLoaders did before is replaced
    cbs=None,              # fastai callbacks of every training and validation; None (default): fastai's default
                           # callbacks only
    **learner_kwargs,      # of fastai's `Learner`
) -> LocalizationLearner:
    "A `LocalizationLearner`; the encoder is frozen at first where it is pretrained"
    n_out = check_n_out(len(dls.vocab) if n_out is None else n_out)
    model = task_model('localization', arch, encoder, n_out, LocalizationHead, pretrained, arch_kwargs)
    loss = loss_func or 'smooth_l1'
    if isinstance(loss, str): loss = LocalizationLoss(loss)
    if getattr(loss, 'n_out', 0) is None: loss.n_out = n_out
    metrics = localization_metrics() if metrics is None else metrics
    return make_learner(LocalizationLearner, dls, model, loss, metrics, splitter, cbs,
                        came_pretrained(arch, pretrained), normalize=normalize, **learner_kwargs)

def localization_metrics() -> list:
    "Accuracy of the class, mean IoU of the box, both right at IoU .5"
    return [LocalizationAccuracy(), LocalizationIoU(), LocalizationAccuracy(.5)]

class LocalizationHead(nn.Module):
    """(b, c, h, w) -> (b, n_out + 4): class logits of a pooled map, and a box of a map whose places stay apart, as
    x1 y1 x2 y2 in [-1, 1]; x1 < x2 and y1 < y2, corners may lie outside the picture"""
    def __init__(self, c, n_out, grid=7, width=64, hidden=256, **kwargs):
        super().__init__()
        self.label = pooled_head(c, n_out, **kwargs)
        self.bbox  = GridHead(c, 4, grid, width, hidden)

    def forward(self, x):
        box = self.bbox(x)
        mid,half = sigmoid_range(box[:,:2], -1, 1),sigmoid_range(box[:,2:], 0, 1)   # half of width and height
        return torch.cat([self.label(x), mid-half, mid+half], 1)

@checked_methods
class LocalizationLearner(TaskLearner):
    "A `TaskLearner` whose answer is one name with one box, in pixels of the file, or none"
    in_pixels = True
    lr_mult = 2.   # ImageNet's encoders forget where things are, and must learn it: at fastai's 100 they hardly do
    not_mixed = 'boxes'

    def eval_metrics(self): return localization_metrics()

    def prepared(self, annotations):
        annotations = clipped(annotations)
        check_labels(annotations, [*self.dls.vocab, NO_OBJECT])
        none = [a for a in annotations if object_label(a) == NO_OBJECT]
        if none and NO_OBJECT not in self.dls.vocab: raise AnnotationError(
            f"{none[0].path}: no object ({len(none)} of {len(annotations)} images have none), but the model has no "
            "class for such images; drop them")
        return annotations

    def mirror_back(self, p, # (b, c + 4) class probabilities and boxes in [-1, 1] of mirrored images
    ):
        x1,y1,x2,y2 = p[:,-4:].unbind(1)
        return torch.cat([p[:,:-4], torch.stack([-x2, y1, -x1, y2], 1)], 1)

    def in_file(self,
        b,     # (b, 4) x1 y1 x2 y2 in [-1, 1] of the network's input
        sizes, # list of (w, h) of the b files
    ) -> Tensor:
        """(b, 4) boxes in [-1, 1] of the network's input, as pixels of files of `sizes`, a list of (w, h); clipped to
        the picture"""
        res = []
        for o,size in zip(b.cpu().double(), sizes):
            view = self.valid_view(size)
            px = view.undo_bboxes(((o.clamp(-1, 1)+1)/2*torch.tensor(view.out*2))[None])[0]
            res.append(px.clamp(min=0).minimum(torch.tensor(size*2)))
        return torch.stack(res)

    def to_annotations(self, probs, pictures, thresh):
        if thresh is not None: thresh = check_thresh(thresh).item()
        probs,vocab = probs.cpu(),list(self.dls.vocab)
        bboxes = self.in_file(probs[:,-4:], [size for _,size in pictures]).float().numpy()
        res = []
        for (path,size),(p,i),b in zip(pictures, zip(*(o.tolist() for o in probs[:,:-4].max(1))), bboxes):
            on = vocab[i] != NO_OBJECT and (thresh is None or p > thresh)
            res.append(Annotation(path, size, [vocab[i]]*on, b[None][:on], scores=[p]*on))
        return res

    def predict(self, item, rm_type_tfms=0, with_input=False):
        """The `Annotation` in pixels of the file; and, as fastai gives them, the decoded output (id and box in [-1, 1])
        and the probabilities of the classes"""
        *inp,_,_,raw = super().predict(item, rm_type_tfms, with_input)
        answer = self.to_annotations(raw[None], [picture_of(item)], None)[0]
        return *inp,answer,tuple(o[0] for o in self.loss_func.decodes(raw[None])),raw[:-4]

    def evaluate_per_class(self, ds_idx:int=1, dl=None) -> pd.DataFrame:
        """For each class: pictures of it, share of them whose class is right (recall), share of the answers that are
        (precision), mean IoU, share with class and box right at IoU .5; nan where it has no meaning"""
        dl = self.whole_dl(ds_idx, dl)
        truth = list(dl.items)
        said = self.annotate(truth, bs=dl.bs)
        right,iou = (o.numpy() for o in localized(truth, said))
        t,p = (np.array(o) for o in ([object_label(a) for a in truth], [(a.labels or [NO_OBJECT])[0] for a in said]))
        both,rows = right & (np.isnan(iou) | (iou >= .5)),[]
        for name in self.dls.vocab:
            on,boxed = t == name,(t == name) & ~np.isnan(iou)
            mean = lambda v: v.mean() if len(v) else np.nan
            rows.append((name, int(on.sum()), mean(right[on]), mean(right[p == name]), mean(iou[boxed]),
                         mean(both[on])))
        return pd.DataFrame(rows, columns=['label', 'n', 'recall', 'precision', 'mean_iou', 'accuracy@.5'])

    def confusion(self, ds_idx:int=1, dl=None) -> pd.DataFrame:
        """Numbers of images by true class (rows) and predicted class (columns): `metrics.localization_confusion`"""
        dl = self.whole_dl(ds_idx, dl)
        truth = list(dl.items)
        return localization_confusion(truth, self.annotate(truth, bs=dl.bs), self.dls.vocab)

    @checked(normalize=FLAG)
    def plot_confusion(self, ds_idx:int=1, dl=None, normalize:bool=True, ax=None):
        "Draw the confusion matrix of the class"
        return plot_confusion(self.confusion(ds_idx, dl), normalize, ax)

    def tune_threshold(self, *args, **kwargs, # ignored: always an error
    ):
        raise ValueError("the class with the highest score is taken, so that there is no threshold to tune; "
                         "`annotate(items, thresh=...)` leaves out answers with a lower score")

@checked()
def largest_object(
    annotations,       # list[Annotation] with boxes
) -> list[Annotation]: # with one object each, or none where there is none; what is ignored is not taken
    "Each picture with its largest object alone, by the area of its box inside the picture"
    res = []
    for a in annotations:
        if a.bboxes is None: raise AnnotationError(f"{a.path}: no boxes, so that it is not known what is largest")
        if a.ignore is not None: a = select_objects(a, ~a.ignore)
        b = a.bboxes.clip(0, [*a.size]*2)
        area = (b[:,2:]-b[:,:2]).prod(1)
        res.append(select_objects(a, [int(area.argmax())] if len(area) else []))
    return res
