"""How often each image is seen in an epoch, so that rare classes are seen more often: repeat factors (LVIS, Gupta et
al., 2019, arXiv:1908.03195) where an image has several labels, inverse frequencies where it has one"""
from __future__ import annotations
import random
from collections import Counter
from itertools import chain
import numpy as np
from ..arguments import checked, number

__all__ = ['repeat_factors', 'inverse_frequencies', 'BalancedShuffle']

@checked(thresh=number(0, 1, open=True))
def repeat_factors(
    labels,            # a list of labels for each of the n images; one that appears twice counts once
    thresh:float=None, # share of the images, t in the paper: classes in fewer images are repeated; None (default): the
                       # median of the shares of the classes. The paper's 0.001 repeats nothing in sets of less than
                       # 1000 images, and is near the median of its own 1203 classes
) -> np.ndarray:       # (n,) float64, 1 or above
    """The repeat factor of each image, the largest of its classes: of a class in a share f of the images,
    max(1, sqrt(thresh/f)). 1 for an image without labels"""
    sets = [set(o) for o in labels]
    n    = Counter(chain.from_iterable(sets))
    if not n: return np.ones(len(sets))
    t = np.median(list(n.values()))/len(sets) if thresh is None else thresh
    r = {o: max(1., (t*len(sets)/k)**.5) for o,k in n.items()}
    return np.array([max((r[o] for o in s), default=1.) for s in sets])

@checked()
def inverse_frequencies(
    labels,      # the class of each of the n images
) -> np.ndarray: # (n,) float64, above 0, with mean 1
    "Images of all classes over classes times images of its own: with it all classes are seen equally often"
    labels = list(labels)
    n = Counter(labels)
    return np.array([len(labels)/(len(n)*n[o]) for o in labels])

class BalancedShuffle:
    """The `shuffle_fn` of a fastai DataLoader that shows its images in proportion to `weights`, in random order. An
    epoch is as long as without it: n images, of which an image comes floor or ceil of n*weight/sum(weights) times
    (systematic sampling), so that no image is missed, or comes often, by chance"""
    @checked()
    def __init__(self,
        weights, # (n,) above 0, one for each image of the set
    ): self.weights = np.asarray(weights, np.float64)
    def __repr__(self): return f"BalancedShuffle({len(self.weights)} images)"
    def __call__(self,
        idxs, # list of the n indices
    ) -> list:
        n = len(idxs)
        if not n: return []     # of an exported learner
        if n != len(self.weights): raise ValueError(
            f"balance: the weights are those of {len(self.weights)} images, but the set has {n}; make the DataLoaders "
            "of these annotations with balance='labels', or this one with shuffle_fn=BalancedShuffle(weights)")
        order  = random.sample(range(n), n)
        passed = np.cumsum(self.weights[order])
        # the last of these is n + start exactly, whatever rounding did
        passed = np.minimum(passed/passed[-1], 1.)*n + random.random()
        counts = np.diff(np.floor(passed).astype(np.int64), prepend=0)
        res = [idxs[i] for i,k in zip(order, counts) for _ in range(k)]
        random.shuffle(res)
        return res
