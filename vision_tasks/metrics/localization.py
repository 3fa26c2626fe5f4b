"Metrics of one object per image: class and box"
from __future__ import annotations
import numpy as np
import pandas as pd
import torch
from fastai.learner import Metric
from ..arguments import checked, nearest
from ..data.targets import NO_OBJECT, object_bbox, object_label
from ..ops.boxes import paired_iou

__all__ = ['localization_confusion', 'LocalizationAccuracy', 'LocalizationIoU']

def localized(
    annotations, # list[Annotation], the ground truth, with one object each or none
    answers,     # list[Annotation] of the same images, as `annotate` returns them
):               # (n,) bool: the class is correct; (n,) IoU, 0 without a predicted box, nan without a true one
    "Whether the class of each prediction is correct, and the IoU of its box in pixels of the image file"
    box   = lambda o: torch.tensor(o[0] if len(o) else np.full(4, np.nan), dtype=torch.double)
    truth = torch.stack([box(object_bbox(a)) for a in annotations])
    iou   = paired_iou.unchecked(torch.stack([box(a.bboxes) for a in answers]), truth)
    right = torch.tensor([object_label(a) == (b.labels or [NO_OBJECT])[0] for a,b in zip(annotations, answers)])
    return right,torch.where(truth.isnan().any(1), torch.nan, iou.nan_to_num())

@checked()
def localization_confusion(
    annotations,     # list[Annotation], the ground truth, with one object each or none
    predictions,     # list[Annotation] of the same images in the same order, as `annotate` returns them
    vocab=None,      # list of class names; None (default): all that occur, sorted
) -> pd.DataFrame:   # numbers of images, row = ground truth, column = prediction
    """Confusion matrix of the classes; boxes are not compared. `NO_OBJECT` is the class of images without an object,
    and of predictions without one; it is added as the last class where it occurs and is not in `vocab`. Raises
    `ValueError` for a class that is not in `vocab`, `AnnotationError` for an image with several objects"""
    if len(annotations) != len(predictions): raise ValueError(
        f"{len(annotations)} annotations but {len(predictions)} predictions; expected one for each image")
    true,pred = [object_label(a) for a in annotations],[(a.labels or [NO_OBJECT])[0] for a in predictions]
    names = sorted({*true, *pred} - {NO_OBJECT}) if vocab is None else list(vocab)
    if NO_OBJECT not in names and NO_OBJECT in {*true, *pred}: names.append(NO_OBJECT)
    unknown = sorted({*true, *pred} - {*names})
    if unknown: raise ValueError(f"class {unknown[0]!r} is not in the vocab {names}{nearest(unknown[0], names)}")
    ids = {o: i for i,o in enumerate(names)}
    counts = np.zeros((len(names),)*2, int)
    np.add.at(counts, ([ids[o] for o in true], [ids[o] for o in pred]), 1)
    return pd.DataFrame(counts, index=names, columns=names)

class _Localized(Metric):
    "Compares predictions in pixels of the image file with the annotations of the DataLoader"
    def reset(self): self.right,self.ious,self.n = [],[],0
    def accumulate(self, learn):
        items = learn.items_of_batch(self.n, len(learn.pred))
        if not items: return
        self.n += len(items)
        probs = learn.probabilities(learn.pred.detach())
        right,iou = localized(items, learn.to_annotations(probs, [(a.path, a.size) for a in items], None))
        self.right.append(right); self.ious.append(iou)

class LocalizationAccuracy(_Localized):
    """Share of the images whose class is correct and, with `iou`, whose box has at least that IoU (top-1 localization
    accuracy). Images without an object need only the class. ImageNet's localization metric has an IoU of 0.5"""
    @checked()
    def __init__(self, iou:float=None, # least IoU of a correct box, in [0, 1]; None (default): compare classes only
    ):
        self.iou = iou
    @property
    def name(self): return 'accuracy' if self.iou is None else f'accuracy@{self.iou:g}'.replace('0.', '.')
    @property
    def value(self):
        if not self.n: return None
        right,iou = torch.cat(self.right),torch.cat(self.ious)
        if self.iou is not None: right = right & (iou.isnan() | (iou >= self.iou))
        return right.double().mean().item()

class LocalizationIoU(_Localized):
    "Mean IoU over the images that have a box, in pixels of the image file; 0 where no box is predicted"
    name = 'mean_iou'
    @property
    def value(self): return torch.cat(self.ious).nanmean().item() if self.n else None
