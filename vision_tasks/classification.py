"Classification: one class per image; where the model is not sure enough it may predict none"
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
from .data.blocks import ClassBlock, FileImageBlock
from .data.splits import AnnotationSplitter
from .data.targets import check_classes, check_labels, image_class, path_of
from .data.transforms import JointTransform, LightJitter
from .losses.base import loss_by_name
from .losses.classes import CLASSIFICATION_LOSSES, ClassificationLoss
from .metrics.calibration import calibration_error, fit_softmax_temperature
from .metrics.classes import (ClassificationAccuracy, ClassificationCoverage, ClassificationF1, class_counts,
                              classification_confusion, top_confidence)
from .metrics.labels import f_beta
from .metrics.rejection import best_rejection, coverage_curve
from .show.classes import ClassificationDL
from .show.plots import plot_confusion
from .show.threshold_plots import plot_coverage, plot_reliability
from .training.checks import check_vocab
from .training.kinds import BLOCK, DLS, LEARNER
from .training.learner import TaskLearner
from .training.priors import build_with_prior, log_frequencies
from .training.recipes import Recipe
from .training.task import Task, task_dls, task_learner

__all__ = ['classification_block', 'classification_dls', 'classification_learner', 'ClassificationLearner']

@checked(**BLOCK)
def classification_block(
    vocab,
    size=224,
    splitter=None,
    item_tfms=None,      # in place of `JointTransform(size)`: random crop and flip when training, squish otherwise
    batch_tfms=None,
) -> DataBlock:
    "Image in, one class out; its source is a list of `Annotation`"
    return DataBlock((FileImageBlock, ClassBlock(vocab)), get_x=path_of, get_y=image_class, dl_type=ClassificationDL,
                     splitter=splitter or AnnotationSplitter(),
                     item_tfms=JointTransform(size) if item_tfms is None else item_tfms,
                     batch_tfms=[LightJitter()] if batch_tfms is None else batch_tfms)

@checked(**DLS, check=FLAG)
def classification_dls(
    annotations,         # list[Annotation] with one label each, as `read_folders` returns them; repeated labels, as of
                         # several boxes of one class, count once
    vocab=None,
    bs:int=64,
    path='.', valid_pct:float=.2, seed:int=42, num_workers:int=None, device=None, cache=None,
    balance=None, check:bool=False,
    **block_kwargs,      # of `classification_block`: `size`, `splitter`, `item_tfms`, `batch_tfms`
) -> DataLoaders:
    """DataLoaders of images and class ids. Raises `AnnotationError` before training for images without a label or with
    several, missing files, unknown labels, an empty training or validation set"""
    return task_dls(CLASSIFICATION, annotations, vocab, bs, path, valid_pct, seed, num_workers, device, check,
                    block_kwargs, cache, balance)

@checked(**LEARNER)
def classification_learner(
    dls:DataLoaders,     # of `classification_dls`, or other fastai DataLoaders of images and one class each
    arch=None,           # name of an encoder (torchvision or timm), torchvision builder, callable `n_out -> nn.Module`
                         # or `nn.Module`; None (default): 'resnet34'
    encoder=None,        # synonym of `arch`
    pretrained=True,
    n_out:int=None,
    arch_kwargs=None,    # of fastai's `create_head`: `lin_ftrs`, `ps`, `concat_pool`, ...; or of a callable `arch`
    loss_func=None,      # 'ce' (default), 'focal', or a loss on (n, c) logits, such as
                         # `ClassificationCE(label_smoothing=.1)`; fastai's have no threshold and no temperature
    metrics=None,        # None (default): accuracy and macro F1 at the learner's threshold
    splitter=None, normalize=True, cbs=None,
    **learner_kwargs,
) -> ClassificationLearner:
    "A `ClassificationLearner`; what is pretrained is frozen at first"
    return task_learner(CLASSIFICATION, dls, arch, encoder, pretrained, n_out, arch_kwargs, loss_func, metrics,
                        splitter, normalize, cbs, learner_kwargs)

def _prepare(annotations, vocab):
    vocab = check_vocab(annotations, vocab)
    check_classes(annotations)
    check_labels(annotations, vocab)
    return annotations,vocab

def _loss(o, n_out):
    loss = loss_by_name(o or 'ce', CLASSIFICATION_LOSSES, '(n, c)')
    if not (hasattr(loss, 'activation') and hasattr(loss, 'decodes')):
        name = getattr(loss, '__name__', type(loss).__name__)
        raise ValueError(f"loss_func: {name} does not tell how logits become probabilities and classes (methods "
                         "`activation` and `decodes`); take 'ce', 'focal', fastai's CrossEntropyLossFlat(), or derive "
                         "a class from `ClassificationLoss`")
    return loss

def _metrics(): return [ClassificationAccuracy(), ClassificationF1()]

@checked_methods
class ClassificationLearner(TaskLearner):
    """A `TaskLearner` that predicts one class or, where its probability does not exceed the threshold, none; threshold
    and temperature can be fitted, and `predict`, `annotate`, the metrics and the exported learner use them"""

    def eval_metrics(self):
        return [*_metrics(), ClassificationAccuracy(accepted=True), ClassificationCoverage()]

    def mirror_back(self, probs): return probs

    tta = Learner.tta    # classes do not move with the image

    def to_annotations(self, probs, images, thresh):
        vocab = list(self.dls.vocab)
        t = check_thresh(getattr(self.loss_func, 'thresh', 0.) if thresh is None else thresh, len(vocab))
        conf,idxs = (o.numpy() for o in probs.cpu().max(1))
        on = conf > (t[idxs] if t.ndim else t)
        return [Annotation(path, size, [vocab[i]]*int(o), scores=[p]*int(o))
                for (path,size),p,i,o in zip(images, conf, idxs, on)]

    def evaluate_per_class(self, ds_idx:int=1, dl=None) -> pd.DataFrame:
        """For each class: images of it, threshold, and at that threshold precision, recall, F1, and the share of its
        images that is rejected; nan where it has no meaning"""
        pred,targ = self._decisions(ds_idx, dl)
        vocab = list(self.dls.vocab)
        tp,fp,fn = (counts := class_counts(pred, targ, len(vocab))).double()
        rejected = torch.bincount(targ[pred < 0], minlength=len(vocab))
        thresh = torch.as_tensor(getattr(self.loss_func, 'thresh', 0.)).expand(len(vocab))
        return pd.DataFrame({'label': vocab, 'n': (counts[0]+counts[2]).numpy(), 'thresh': thresh.numpy(),
                             'precision': (tp/(tp+fp)).numpy(), 'recall': (tp/(tp+fn)).numpy(),
                             'f1': f_beta(counts).numpy(), 'rejected': (rejected/(tp+fn)).numpy()})

    def confusion(self, ds_idx:int=1, dl=None) -> pd.DataFrame:
        """Numbers of images by true class (rows) and predicted class (columns), at the learner's threshold; where any
        are rejected, a last column counts them: `metrics.classification_confusion`"""
        return classification_confusion(*self._decisions(ds_idx, dl), list(self.dls.vocab))

    @checked(normalize=FLAG)
    def plot_confusion(self, ds_idx:int=1, dl=None, normalize:bool=True, ax=None):
        "Draw the confusion matrix at the learner's threshold"
        return plot_confusion(self.confusion(ds_idx, dl), normalize, ax)

    def _decisions(self, ds_idx, dl):   # (n,) predicted ids, -1 = rejected; (n,) true ids
        probs,targs = self._scores(ds_idx, dl)
        return self.loss_func.decodes(probs).as_subclass(Tensor),targs

    def tune_threshold(self,
        score=None,             # 'f1' (default), 'fbeta', 'coverage_at_accuracy', 'accuracy_at_coverage'
        per_class:bool=False,   # one threshold for each predicted class, or one for all
        ds_idx:int=1, dl=None,  # the data it is chosen on
        **kwargs,               # `at`, `beta`, `average`, as `best_rejection` takes them
    ):                          # (threshold(s), score(s))
        """Set the threshold below which nothing is predicted to the best on these data; `predict`, `annotate`, metrics
        and export use it from now on. `learn.loss_func.thresh = 0` predicts a class for every image again. Warns where
        everything is rejected, as where no threshold reaches the accuracy asked for"""
        self._check_loss('threshold')
        kwargs = dict(per_class=per_class, vocab=list(self.dls.vocab)) | kwargs
        thresh,best = best_rejection(*self._scores(ds_idx, dl), 'f1' if score is None else score, **kwargs)
        self.loss_func.thresh = thresh
        return thresh,best

    def coverage_curve(self, ds_idx:int=1, dl=None) -> pd.DataFrame:
        "For every threshold, the share of images that are accepted and the accuracy on them: `metrics.coverage_curve`"
        return coverage_curve(*self._scores(ds_idx, dl))

    def plot_coverage(self, ds_idx:int=1, dl=None, ax=None):
        "Draw the accuracy on the accepted images by their share, and the learner's threshold on it"
        thresh = getattr(self.loss_func, 'thresh', 0.)
        return plot_coverage(*self._scores(ds_idx, dl), None if isinstance(thresh, Tensor) else thresh, ax)

    def calibrate(self, ds_idx:int=1, dl=None) -> float:
        "Set the temperature so that scores are probabilities on these data, and return it; tune thresholds after it"
        self._check_loss('temperature')
        logits,targs = self.get_preds(dl=self.whole_dl(ds_idx, dl), act=_same)
        self.loss_func.temperature = fit_softmax_temperature(logits.as_subclass(Tensor), targs.as_subclass(Tensor))
        return self.loss_func.temperature

    def calibration_error(self,
        ds_idx:int=1, dl=None,
        n_bins:int=10,  # of equal width
    ) -> float:         # in [0, 1]
        "The expected calibration error of the score of the predicted class: `metrics.calibration_error`"
        return calibration_error(*top_confidence(*self._scores(ds_idx, dl)), n_bins)

    def plot_reliability(self,
        ds_idx=1, dl=None,
        **kwargs, # of `plot_reliability`: `n_bins`, ...
    ):
        "How often the predicted class is correct, for each range of its score; rejected images are part of it"
        ax = plot_reliability(*top_confidence(*self._scores(ds_idx, dl)), **kwargs)
        ax.set_ylabel('Accuracy')
        ax.figure.axes[-1].set(xlabel='Mean score of the predicted class', ylabel='Images')
        return ax

    def _check_loss(self, what):
        if isinstance(self.loss_func, ClassificationLoss): return
        raise ValueError(f"{type(self.loss_func).__name__} has no {what}; make the learner with loss_func='ce', "
                         "'focal' or a class derived from `ClassificationLoss`")

    def _scores(self, ds_idx, dl):
        return tuple(o.as_subclass(Tensor) for o in self.get_preds(dl=self.whole_dl(ds_idx, dl)))

def _same(x): return x

CLASSIFICATION = Task('classification', ClassificationLearner, classification_block, _prepare,
                      partial(build_with_prior, 'classification', log_frequencies), _loss, _metrics, n_out=len,
                      recipe=Recipe(), single=True)
