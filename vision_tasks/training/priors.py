"Where a new classifier starts: at the frequencies of the classes in the training set"
from __future__ import annotations
from collections import Counter
import numpy as np
import torch
from torch import Tensor, nn
from ..data.annotation import Annotation
from .build import EncoderHead, build_on_encoder, pooled_head

__all__ = []

STD = .01   # of the weights of the last layer: as in RetinaNet (Lin et al., 2017, arXiv:1708.02002, section 4.1), whose
            # classifier starts at a prior too

def label_counts(dls) -> tuple[Tensor,float]|None:
    """How often an epoch shows each class, (c,), of how many images, as `balance` of the `*_dls` repeats them; None
    where the images are no annotations, as in an exported learner or in DataLoaders of fastai"""
    items = list(getattr(dls.train, 'items', None) or [])
    if not items or not all(isinstance(a, Annotation) for a in items): return None
    weights = np.asarray(getattr(dls.train.shuffle_fn, 'weights', np.ones(len(items))))
    n = Counter()
    for a,w in zip(items, weights/weights.mean()):
        for o in set(a.labels): n[o] += w
    return torch.tensor([n[o] for o in dls.vocab], dtype=torch.float32),float(len(items))

def log_odds(
    counts:Tensor, # (c,) images with each class
    n:float,       # images
) -> Tensor:       # (c,) logits
    "Log-odds of each label, with one image more that has it and one that lacks it, so that all are finite"
    p = (counts + 1)/(n + 2)
    return torch.log(p) - torch.log1p(-p)

def log_frequencies(
    counts:Tensor, # (c,) images of each class
    n:float,       # images
) -> Tensor:       # (c,) logits
    "Logarithm of each class's frequency, with one image more of each, so that all are finite"
    return torch.log((counts + 1)/(n + len(counts)))

def with_bias(head, bias):
    """Give the last layer of fastai's head small weights and `bias` (c,); left alone where that is no linear layer, as
    with `bn_final` or `y_range`"""
    last = head[-1][-1] if isinstance(head[-1], nn.Sequential) else head[-1]
    if not isinstance(last, nn.Linear): return
    nn.init.normal_(last.weight, std=STD)
    last.bias = nn.Parameter(bias.to(last.weight))

def build_with_prior(task, prior, dls, arch, encoder, n_out, pretrained, arch_kwargs):
    """`build_on_encoder` with fastai's head, which starts at the frequencies of the classes: its bias is `prior` of
    their counts. A network that a user passes stays as it is"""
    model,weights = build_on_encoder(task, pooled_head, dls, arch, encoder, n_out, pretrained, arch_kwargs)
    known = label_counts(dls) if isinstance(model, EncoderHead) and model is not arch else None
    if known is not None and len(known[0]) == n_out: with_bias(model.head, prior(*known))
    return model,weights
