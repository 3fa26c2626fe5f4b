"How annotations are split into train and valid, or into folds"
from __future__ import annotations
from collections import defaultdict
import numpy as np
from .annotation import AnnotationError

__all__ = ['AnnotationSplitter', 'StratifiedSplitter', 'stratified_folds']

def _units(annotations):
    "Indices of what must stay together: one group, or one file"
    units,group_of = defaultdict(list),{a.path: a.group for a in annotations if a.group is not None}
    for i,a in enumerate(annotations):
        if a.split == 'test': continue
        group = a.group if a.group is not None else group_of.get(a.path)   # of the same file elsewhere
        units[('group', group) if group is not None else ('file', i if a.path is None else str(a.path))].append(i)
    return list(units.values())

def _check_enough(annotations, units):
    if not len(annotations):
        raise AnnotationError("the data set is empty: no annotation came; look at what the reader was given")
    if len(units) < 2:
        n = sum(a.split == 'test' for a in annotations)
        marked = f", {n} of them marked 'test'," if n else ''
        raise AnnotationError(f"{len(annotations)} picture(s) in {len(units)} group(s){marked} cannot be split into "
                              "train and valid: at least two files or groups are needed; add pictures, or pass a "
                              "`splitter`")

class AnnotationSplitter:
    """The annotations' own splits where both 'train' and 'valid' occur; else whole groups at random. 'test' is on
    neither side"""
    def __init__(self, valid_pct:float=.2, seed:int=42): self.valid_pct,self.seed = valid_pct,seed
    def __repr__(self): return f"{type(self).__name__}(valid_pct={self.valid_pct}, seed={self.seed})"
    def __call__(self, annotations):
        own = [a.split for a in annotations]
        if 'train' in own and 'valid' in own:
            if None in own:
                raise AnnotationError(f"{own.count(None)} of {len(own)} annotations have no split, the first is "
                                      f"{annotations[own.index(None)].path}, while others are marked 'train' and "
                                      "'valid'; mark them too, or unmark all to split at random")
            return tuple([i for i,s in enumerate(own) if s == name] for name in ('train', 'valid'))
        units = _units(annotations)
        _check_enough(annotations, units)
        if 'train' in own or 'valid' in own:
            one,other = ('train', 'valid') if 'train' in own else ('valid', 'train')
            if own.count(one) == sum(s != 'test' for s in own):
                raise AnnotationError(f"all {own.count(one)} annotations are marked {one!r}, none {other!r}; mark "
                                      "some, or set their `split` to None (`dataclasses.replace(a, split=None)`) to "
                                      "split at random")
        return self.divide(annotations, units)

    def divide(self, annotations, units):
        "Indices of train and valid: whole units at random, until valid has its share"
        want,order = self.valid_pct*sum(map(len, units)),np.random.default_rng(self.seed).permutation(len(units))
        valid,n = [],0
        for k in order[:-1]:       # the last stays in train
            if valid and n >= want: break
            valid.append(k); n += len(units[k])
        return _two_sides(units, set(valid))

def _two_sides(units, valid):
    return tuple(sorted(i for k,u in enumerate(units) if (k in valid) is side for i in u) for side in (False, True))

class StratifiedSplitter(AnnotationSplitter):
    """Like `AnnotationSplitter`, but valid gets its share of every label, at least one picture of each label that has
    two (Sechidis et al., 2011)"""
    def divide(self, annotations, units):
        shares = [1-self.valid_pct, self.valid_pct]
        fold = _stratify(_unit_labels(annotations, units), shares, np.random.default_rng(self.seed), covered=1)
        return _two_sides(units, set(np.flatnonzero(fold == 1).tolist()))

def stratified_folds(
    annotations, # list[Annotation]
    k:int=5,     # number of folds
    seed:int=42,
) -> np.ndarray: # (n,) fold of each annotation, 0..k-1; -1 for those marked 'test'
    """Folds with nearly equal shares of every label (iterative stratification, Sechidis et al., 2011); a group is
    never divided"""
    units = _units(annotations)
    if len(units) < k:
        raise AnnotationError(f"{len(units)} files or groups cannot make {k} folds; ask for at most {len(units)}")
    fold = _stratify(_unit_labels(annotations, units), [1/k]*k, np.random.default_rng(seed))
    res = np.full(len(annotations), -1)
    for f,u in zip(fold, units): res[u] = f
    return res

def _unit_labels(annotations, units):
    "(units, labels + 1) bool: which unit has which label; the last column is 1 for all, so that sizes are balanced too"
    vocab = {o: j for j,o in enumerate(sorted({o for a in annotations for o in a.labels}))}
    m = np.zeros((len(units), len(vocab)+1), dtype=bool)
    for k,u in enumerate(units): m[k, [vocab[o] for i in u for o in annotations[i].labels]] = True
    m[:,-1] = True
    return m

def _stratify(m, shares, rng, covered=None):
    """(units,) side of each unit: the rarest label is dealt first, to the side that lacks it most; side `covered` gets
    one of each label first"""
    side,free = np.full(len(m), -1),np.ones(len(m), dtype=bool)
    want = np.outer(shares, m.sum(0))          # (sides, labels) still to come
    def deal(u, s): side[u],free[u] = s,False; want[s] -= m[u]
    if covered is not None:
        for j in np.argsort(m.sum(0), kind='stable'):
            if m[:,j].sum() < 2 or (m[:,j] & (side == covered)).any(): continue
            # not the last one that the other side could have of some label
            last = m[free].sum(0) == 1
            spare = [u for u in rng.permutation(np.flatnonzero(m[:,j] & free)) if not (m[u] & last).any()]
            if spare: deal(min(spare, key=lambda u: m[u].sum()), covered)
    while free.any():
        left = m[free].sum(0)
        j = min(np.flatnonzero(left), key=lambda j: left[j])
        for u in rng.permutation(np.flatnonzero(m[:,j] & free)):
            best = np.flatnonzero(want[:,j] == want[:,j].max())
            if len(best) > 1: best = best[want[best,-1] == want[best,-1].max()]
            deal(u, rng.choice(best))
    return side
