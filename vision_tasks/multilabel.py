"Multi-label classification: none, one or several classes per image; thresholds are saved with the model"
from __future__ import annotations
from functools import partial
import pandas as pd
import torch
from torch import Tensor
from fastai.data.block import DataBlock
from fastai.data.core import DataLoaders
from fastai.learner import Learner
from .arguments import FLAG, check_thresh, checked, checked_methods
from .data.annotation import Annotation
from .data.blocks import FileImageBlock, LabelSetBlock
from .data.targets import check_labels, label_set, path_of
from .data.splits import AnnotationSplitter
from .data.transforms import JointTransform, LightJitter
from .data.views import CropView, FitView
from .losses.base import loss_by_name
from .losses.labels import MULTILABEL_LOSSES
from .metrics.labels import (MultilabelAccuracy, MultilabelAP, MultilabelF1, average_precision, binary_counts, f_beta,
                             label_confusion, multilabel_confusion)
from .show.labels import MultilabelDL
from .show.plots import plot_confusion_per_class, plot_label_confusion
from .training.checks import check_vocab
from .training.learner import TaskLearner
from .training.priors import build_with_prior, log_odds
from .training.recipes import Recipe
from .training.task import Task, task_dls, task_learner
from .training.kinds import BLOCK, DLS, LEARNER
from .metrics.calibration import fit_temperature
from .metrics.threshold_curves import bootstrap_threshold, sweep_thresholds
from .metrics.thresholds import best_threshold
from .show.threshold_plots import plot_reliability, plot_thresholds

__all__ = ['multilabel_block', 'multilabel_dls', 'multilabel_learner', 'MultilabelLearner']

@checked(**BLOCK)
def multilabel_block(
    vocab,
    size=224,
    splitter=None,
    item_tfms=None,      # in place of `JointTransform(size, CropView((.6, 1.)), FitView('squish', zoom=1.15))`: a
                         # random crop and flip when training, otherwise the image without 6.5 % at each border
    batch_tfms=None,
) -> DataBlock:
    "Image in, set of labels out; its source is a list of `Annotation`"
    # crops show objects larger than whole images do, and so does the zoom (Touvron et al., 2019, arXiv:1906.06423)
    if item_tfms is None:
        item_tfms = JointTransform(size, CropView((.6, 1.)), FitView('squish', zoom=1.15))
    return DataBlock((FileImageBlock, LabelSetBlock(vocab)), get_x=path_of, get_y=label_set, dl_type=MultilabelDL,
                     splitter=splitter or AnnotationSplitter(), item_tfms=item_tfms,
                     batch_tfms=[LightJitter()] if batch_tfms is None else batch_tfms)

@checked(**DLS, check=FLAG)
def multilabel_dls(
    annotations,         # list[Annotation]; one without labels is an image of none of the classes
    vocab=None,
    bs:int=64,
    path='.', valid_pct:float=.2, seed:int=42, num_workers:int=None, device=None, cache=None,
    balance=None, check:bool=False,
    **block_kwargs,      # of `multilabel_block`: `size`, `splitter`, `item_tfms`, `batch_tfms`
) -> DataLoaders:
    """DataLoaders of images and label sets. Raises `AnnotationError` before training for missing files, unknown labels,
    an empty training or validation set"""
    return task_dls(MULTILABEL, annotations, vocab, bs, path, valid_pct, seed, num_workers, device, check, block_kwargs,
                    cache, balance)

@checked(**LEARNER)
def multilabel_learner(
    dls:DataLoaders,     # of `multilabel_dls`, or other fastai DataLoaders of images and multi-hot targets
    arch=None,           # name of an encoder (torchvision or timm), torchvision builder, callable `n_out -> nn.Module`
                         # or `nn.Module`; None (default): 'resnet34'
    encoder=None,        # synonym of `arch`
    pretrained=True,
    n_out:int=None,
    arch_kwargs=None,    # of fastai's `create_head`: `lin_ftrs`, `ps`, `concat_pool`, ...; or of a callable `arch`
    loss_func=None,      # 'bce' (default), 'focal', 'asymmetric', or a loss on (n, c) logits, such as
                         # `MultilabelBCE(pos_weight=...)`
    metrics=None,        # None (default): mAP, macro F1 and accuracy at the learner's threshold
    splitter=None, normalize=True, cbs=None,
    **learner_kwargs,
) -> MultilabelLearner:
    "A `MultilabelLearner`; what is pretrained is frozen at first"
    return task_learner(MULTILABEL, dls, arch, encoder, pretrained, n_out, arch_kwargs, loss_func, metrics, splitter,
                        normalize, cbs, learner_kwargs)

def _prepare(annotations, vocab):
    vocab = check_vocab(annotations, vocab)
    check_labels(annotations, vocab)
    return annotations,vocab

def _loss(o, n_out): return loss_by_name(o or 'bce', MULTILABEL_LOSSES, '(n, c)')

def _metrics(): return [MultilabelAP(), MultilabelF1(), MultilabelAccuracy()]

@checked_methods
class MultilabelLearner(TaskLearner):
    """A `TaskLearner` whose thresholds and temperature can be fitted; `predict`, `annotate`, the metrics and the
    exported learner use them"""

    def eval_metrics(self):
        return [MultilabelAP(), MultilabelAP('micro'), MultilabelF1(), MultilabelF1('micro'), MultilabelAccuracy()]

    def mirror_back(self, probs): return probs

    tta = Learner.tta    # labels do not move with the image

    def to_annotations(self, probs, images, thresh):
        vocab = list(self.dls.vocab)
        t = torch.as_tensor(check_thresh(self.loss_func.thresh if thresh is None else thresh, len(vocab)))
        probs = probs.cpu()
        res = []
        for (path,size),p,on in zip(images, probs, probs > t):
            idxs = on.nonzero().flatten().tolist()
            res.append(Annotation(path, size, [vocab[j] for j in idxs], scores=p[idxs].numpy()))
        return res

    def evaluate_per_class(self, ds_idx:int=1, dl=None) -> pd.DataFrame:
        """For each class: images with it, average precision, threshold, and at that threshold precision, recall, F1;
        nan where it has no meaning"""
        probs,targs = self.get_preds(dl=self.whole_dl(ds_idx, dl))
        targs = targs.as_subclass(Tensor) > .5
        tp,fp,fn = (counts := binary_counts(self.loss_func.decodes(probs), targs)).double()
        thresh = self.loss_func.thresh
        if not isinstance(thresh, Tensor): thresh = torch.full((probs.shape[1],), thresh)
        return pd.DataFrame({'label': list(self.dls.vocab), 'n': targs.sum(0).numpy(),
                             'ap': average_precision(probs, targs).numpy(), 'thresh': thresh.numpy(),
                             'precision': (tp/(tp+fp)).numpy(), 'recall': (tp/(tp+fn)).numpy(),
                             'f1': f_beta(counts).numpy()})

    def confusion(self, ds_idx:int=1, dl=None) -> pd.DataFrame:
        """How often each label (columns) is predicted for the images that have another (rows) and lack it, in [0, 1],
        at the learner's threshold; on the diagonal recall: `metrics.label_confusion`"""
        return label_confusion(*self._decisions(ds_idx, dl), self.dls.vocab)

    def confusion_per_class(self, ds_idx:int=1, dl=None) -> pd.DataFrame:
        """For each class, the numbers of true negatives, false positives, false negatives and true positives at the
        learner's threshold: `metrics.multilabel_confusion`"""
        return multilabel_confusion(*self._decisions(ds_idx, dl), self.dls.vocab)

    def plot_confusion(self, ds_idx:int=1, dl=None, ax=None):
        "How often label A is predicted for images with label B and without A, at the learner's threshold"
        pred,targ = self._decisions(ds_idx, dl)
        return plot_label_confusion(label_confusion(pred, targ, self.dls.vocab), targ.sum(0).tolist(), ax)

    def plot_confusion_per_class(self, ds_idx:int=1, dl=None, ncols:int=None):
        "The 2 x 2 confusion matrix of each label, in numbers of images, at the learner's threshold; the figure"
        return plot_confusion_per_class(self.confusion_per_class(ds_idx, dl), ncols)

    def _decisions(self, ds_idx, dl):
        probs,targs = self._scores(ds_idx, dl)
        return self.loss_func.decodes(probs),targs > .5

    def tune_threshold(self,
        score=None,             # 'f1' (default), 'fbeta', 'accuracy', 'jaccard', 'recall_at_precision',
                                # 'precision_at_recall'
        per_class:bool=False,   # one threshold per class, or one for all
        ds_idx:int=1, dl=None,  # the data it is chosen on
        **kwargs,               # `beta`, `at`, `average`, as `best_threshold` takes them
    ):                          # (threshold(s), score(s))
        """Set the threshold to the best on these data; `predict`, `annotate`, metrics and export use it from now on.
        Warns of classes that it never predicts, such as those that cannot reach the precision asked for"""
        kwargs = dict(per_class=per_class, vocab=list(self.dls.vocab)) | kwargs
        thresh,best = best_threshold(*self._scores(ds_idx, dl), 'f1' if score is None else score, **kwargs)
        self.loss_func.thresh = thresh
        return thresh,best

    def bootstrap_threshold(self,
        score='f1',      # what is tuned, as `best_threshold` takes it
        per_class=False, # one threshold for each class, or one for all
        ds_idx=1, dl=None,
        **kwargs,        # of `bootstrap_threshold`: `n`, `ci`, `seed`, `beta`, ...
    ) -> pd.DataFrame:
        "How far the best threshold and its score depend on these data: `thresholds.bootstrap_threshold`"
        kwargs = dict(per_class=per_class, vocab=list(self.dls.vocab)) | kwargs
        df = bootstrap_threshold(*self._scores(ds_idx, dl), score, **kwargs)
        return _named(df, self.dls.vocab if per_class else None)

    def sweep_thresholds(self,
        thresholds=None,           # thresholds in [0, 1]; None (default): 29 from 0.05 to 0.95
        scores=('accuracy', 'f1'), # names of the scores: columns of the result
        ds_idx=1, dl=None,
        **kwargs,                  # of `sweep_thresholds`
    ) -> pd.DataFrame:
        "Scores over a grid of thresholds"
        return sweep_thresholds(*self._scores(ds_idx, dl), thresholds, scores, **kwargs)

    def plot_thresholds(self,
        score='f1', # the score to draw, as `best_threshold` takes it
        ds_idx=1, dl=None,
        **kwargs,   # of `plot_thresholds`
    ):
        "The sweep as curves, with the exact optimum"
        return plot_thresholds(*self._scores(ds_idx, dl), score, **kwargs)

    def calibrate(self,
        per_class:bool=False, # one temperature for each class, or one for all
        ds_idx:int=1, dl=None,
    ):
        "Set the temperature so that scores are probabilities on these data, and return it; tune thresholds after it"
        logits,targs = self.get_preds(dl=self.whole_dl(ds_idx, dl), act=_same)
        logits,targs = logits.as_subclass(Tensor),targs.as_subclass(Tensor)
        self.loss_func.temperature = fit_temperature(logits, targs, per_class=per_class)
        return self.loss_func.temperature

    def plot_reliability(self,
        ds_idx=1, dl=None,
        **kwargs, # of `plot_reliability`: `n_bins`, ...
    ):
        "How often a label is there, for each range of scores"
        return plot_reliability(*self._scores(ds_idx, dl), **kwargs)

    def _scores(self, ds_idx, dl):
        return tuple(o.as_subclass(Tensor) for o in self.get_preds(dl=self.whole_dl(ds_idx, dl)))

def _same(x): return x

def _named(df, vocab):
    if vocab is not None: df.insert(0, 'label', list(vocab))
    return df

MULTILABEL = Task('multilabel', MultilabelLearner, multilabel_block, _prepare,
                  partial(build_with_prior, 'multilabel', log_odds), _loss, _metrics, n_out=len,
                  recipe=Recipe(base_lr=4e-3, lr_mult=2.))
