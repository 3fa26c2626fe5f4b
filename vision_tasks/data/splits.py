"Split annotations into train and valid, or into folds"
from __future__ import annotations
from collections import defaultdict
import numpy as np
from ..arguments import checked, whole
from .errors import AnnotationError
from ..warning import warn

__all__ = ['AnnotationSplitter', 'StratifiedSplitter', 'stratified_folds']

def _units(annotations):
    "Indices of annotations that must stay together: of one group, or of one file"
    units,group_of = defaultdict(list),{a.path: a.group for a in annotations if a.group is not None}
    for i,a in enumerate(annotations):
        if a.split == 'test': continue
        group = a.group if a.group is not None else group_of.get(a.path)   # of another annotation of the file
        units[('group', group) if group is not None else ('file', i if a.path is None else str(a.path))].append(i)
    return list(units.values())

def _check_enough(annotations, units):
    if not len(annotations):
        raise AnnotationError("the data set is empty: got no annotations; check the arguments of the reader")
    if len(units) < 2:
        n = sum(a.split == 'test' for a in annotations)
        marked = f", {n} of them marked 'test'," if n else ''
        raise AnnotationError(f"{len(annotations)} image(s) in {len(units)} group(s){marked} cannot be split into "
                              "train and valid: expected at least two files or groups; add images, or pass a "
                              "`splitter`")

def _warn_far(what, sides, wanted, annotations, units):
    """Warn once if the number of images of a side differs from the wanted one by more than half of it, and by more than
    one image; `sides` are the indices of each"""
    total,off = sum(map(len, units)),[]
    for name,idxs,share in zip(what, sides, wanted):
        want = share*total
        if abs(len(idxs) - want) > max(want/2, 1): off.append((abs(len(idxs) - want), name, len(idxs), want))
    if not off: return
    _,name,n,want = max(off)
    more = f", and {len(off)-1} more are off by more than half" if len(off) > 1 else ''
    u = max(units, key=len)
    why = "groups are kept whole, and the largest, {!r}, has {} images; split it, or choose another share".format(
          annotations[u[0]].group or str(annotations[u[0]].path), len(u)) if len(u) > 1 else (
          "each label with two images or more needs one there")
    warn(f"{name} has {n} of {total} images instead of {want:.0f}{more}: {why}")

class AnnotationSplitter:
    """Use the annotations' own splits if both 'train' and 'valid' occur; otherwise split whole groups at random, with a
    share of valid as close to `valid_pct` as the groups allow (a warning if it is off by more than half). 'test' is on
    neither side. Raises `AnnotationError` for fewer than two groups, and if only some annotations have a split"""
    @checked()
    def __init__(self,
        valid_pct:float=.2,   # share of the images in valid, in (0, 1)
        seed:int=42,          # the same seed gives the same split
    ):
        self.valid_pct,self.seed = valid_pct,seed
    def __repr__(self): return f"{type(self).__name__}(valid_pct={self.valid_pct}, seed={self.seed})"
    @checked()
    def __call__(self, annotations):
        own = [a.split for a in annotations]
        if 'train' in own and 'valid' in own:
            if None in own:
                raise AnnotationError(f"{own.count(None)} of {len(own)} annotations have no split, the first is "
                                      f"{annotations[own.index(None)].path}, while others are marked 'train' and "
                                      "'valid'; mark them too, or set all to None to split at random")
            return tuple([i for i,s in enumerate(own) if s == name] for name in ('train', 'valid'))
        units = _units(annotations)
        _check_enough(annotations, units)
        if 'train' in own or 'valid' in own:
            one,other = ('train', 'valid') if 'train' in own else ('valid', 'train')
            if own.count(one) == sum(s != 'test' for s in own):
                raise AnnotationError(f"all {own.count(one)} annotations are marked {one!r}, none {other!r}; mark "
                                      "some, or set their `split` to None (`dataclasses.replace(a, split=None)`) to "
                                      "split at random")
        sides = _two_sides(units, self.choose(annotations, units))
        _warn_far(['valid'], sides[1:], [self.valid_pct], annotations, units)
        return sides

    def choose(self,
        annotations, # list[Annotation]
        units,       # list of the indices of annotations that stay together
    ) -> set:        # numbers of the units
        "The units for valid: random ones that fit into its share of the images, and one more if that is closer to it"
        sizes = np.array([len(u) for u in units])
        want,order = self.valid_pct*sizes.sum(),np.random.default_rng(self.seed).permutation(len(units))
        taken,n = set(),0
        for k in order:
            # less than one image too many is rounding; one unit remains in train
            if n + sizes[k] < want + 1 and len(taken) < len(units) - 1: taken.add(k); n += sizes[k]
        rest = [k for k in order if k not in taken]
        if n < want and len(rest) > 1:
            k = min(rest, key=lambda k: sizes[k])
            if not taken or n + sizes[k] - want < want - n: taken.add(k)
        return taken

def _two_sides(units, valid):
    return tuple(sorted(i for k,u in enumerate(units) if (k in valid) is side for i in u) for side in (False, True))

class StratifiedSplitter(AnnotationSplitter):
    """Like `AnnotationSplitter`, but valid gets its share of the images of every label, and at least one image of each
    label with images in two groups or more (Sechidis et al., 2011)"""
    def choose(self,
        annotations, # list[Annotation]
        units,       # list of the indices of annotations that stay together
    ) -> set:        # numbers of the units
        "The units for valid, by iterative stratification"
        shares = [1-self.valid_pct, self.valid_pct]
        side = _stratify(_unit_labels(annotations, units), shares, np.random.default_rng(self.seed), covered=1)
        return set(np.flatnonzero(side == 1).tolist())

@checked(k=whole(2, what="a number of folds"))
def stratified_folds(
    annotations, # list[Annotation]
    k:int=5,     # number of folds, 2 or more
    seed:int=42, # the same seed gives the same folds
) -> np.ndarray: # (n,) fold of each annotation, 0 to k-1; -1 for 'test'
    """Folds with nearly equal numbers of images, in total and of every label (iterative stratification, Sechidis et
    al., 2011); a group is never split, and no fold is empty. Warns if the size of a fold is off by more than half.
    Raises `AnnotationError` for fewer files or groups than folds"""
    units = _units(annotations)
    if len(units) < k:
        raise AnnotationError(f"{len(units)} files or groups are too few for {k} folds; pass k={len(units)} or less")
    fold = _stratify(_unit_labels(annotations, units), [1/k]*k, np.random.default_rng(seed))
    res = np.full(len(annotations), -1)
    for f,u in zip(fold, units): res[u] = f
    sides = [np.flatnonzero(res == f) for f in range(k)]
    _warn_far([f'fold {f}' for f in range(k)], sides, [1/k]*k, annotations, units)
    return res

def _unit_labels(annotations, units):
    """(units, labels + 1) int: number of images of a unit with each label; the last column counts all images, to
    balance the sizes too"""
    vocab = {o: j for j,o in enumerate(sorted({o for a in annotations for o in a.labels}))}
    m = np.zeros((len(units), len(vocab)+1), dtype=int)
    for k,u in enumerate(units):
        for i in u: m[k, [vocab[o] for o in {*annotations[i].labels}]] += 1
        m[k,-1] = len(u)
    return m

def _stratify(m, shares, rng, covered=None):
    """(units,) side of each unit, by iterative stratification. If units have several images, the best of several runs,
    each followed by moves and swaps that bring the sides closer to their shares"""
    if m[:,-1].max() == 1: return _deal(m, shares, rng, covered)
    tries = [_improve(_deal(m, shares, rng, covered), m, shares) for _ in range(max(1, min(10, 2000//len(m))))]
    return min(tries, key=lambda side: _off(side, m, shares))

def _off(side, m, shares):
    "Pearson's chi-squared of images over sides and labels: the sum of (images - wanted)^2/wanted"
    want = np.outer(shares, m.sum(0))
    return sum((((m[side == s].sum(0) - w)**2)/w).sum() for s,w in enumerate(want))

def _deal(m, shares, rng, covered):
    """(units,) side of each unit: the rarest label is assigned first, its largest units first, each to the side that
    needs it most; side `covered` first gets one unit of each label"""
    side,free = np.full(len(m), -1),np.ones(len(m), dtype=bool)
    want,has = np.outer(shares, m.sum(0)),m > 0          # (sides, labels) images still to come; (units, labels)
    def deal(u, s): side[u],free[u] = s,False; want[s] -= m[u]
    if covered is not None:
        for j in np.argsort(m.sum(0), kind='stable'):
            if has[:,j].sum() < 2 or (has[:,j] & (side == covered)).any(): continue
            # not the last unit with some label that the other side could get
            last = has[free].sum(0) == 1
            spare = [u for u in rng.permutation(np.flatnonzero(has[:,j] & free)) if not (has[u] & last).any()]
            if spare: deal(min(spare, key=lambda u: m[u].sum()), covered)
    while free.any():
        left = m[free].sum(0)
        j = min(np.flatnonzero(left), key=lambda j: left[j])
        some = rng.permutation(np.flatnonzero(has[:,j] & free))
        for u in some[np.argsort(-m[some,j], kind='stable')]:
            best = np.flatnonzero(want[:,j] == want[:,j].max())
            if len(best) > 1: best = best[want[best,-1] == want[best,-1].max()]
            deal(u, rng.choice(best))
    _fill_empty(side, m, len(shares))
    return side

def _fill_empty(side, m, n):
    "Move to each empty side the smallest unit of the side with the most units"
    for s in range(n):
        if (side == s).any(): continue
        rich = np.flatnonzero(side == np.bincount(side, minlength=n).argmax())
        side[rich[m[rich,-1].argmin()]] = s

def _improve(side, m, shares, most=1000):
    """`side` after up to `most` moves of a unit to another side, or swaps of two units if no move helps. Each lowers
    `_off` as much as possible, and does not take the last unit with a label from a side"""
    want,sides = np.outer(shares, m.sum(0)),np.arange(len(shares))
    weight = 1/want.clip(1e-9)
    got  = np.stack([m[side == s].sum(0) for s in sides])
    many = np.stack([(m[side == s] > 0).sum(0) for s in sides])   # (sides, labels) units
    def move(u, t):
        for s,sign in ((side[u], -1), (t, 1)): got[s] += sign*m[u]; many[s] += sign*(m[u] > 0)
        side[u] = t
    for _ in range(most):
        slope,last = 2*(got - want)*weight,((many[side] == 1) & (m > 0)).any(1)
        # (units, sides): change of `_off` when a unit moves to each side
        change = (m**2*weight[side] - m*slope[side]).sum(1)[:,None] + m**2@weight.T + m@slope.T
        change[last[:,None] | (side[:,None] == sides)] = np.inf
        u,t = np.unravel_index(change.argmin(), change.shape)
        if change[u, t] < -1e-9: move(u, t); continue
        best,u,v = _best_exchange(side, m, weight, slope, ~last)
        if not best < -1e-9: break
        s,t = side[u],side[v]
        move(u, t); move(v, s)
    return side

def _best_exchange(side, m, weight, slope, free, most=500):
    "(change of `_off`, two units to swap), among the first `most` free units of each side"
    best,idxs = (np.inf, -1, -1),[np.flatnonzero((side == s) & free)[:most] for s in range(len(weight))]
    for s,a in enumerate(idxs):
        for t,b in enumerate(idxs[:s]):
            if not len(a) or not len(b): continue
            # d = m[u] - m[v] changes `_off` by d^2*w - d*g
            w,g,x,y = weight[s] + weight[t],slope[s] - slope[t],m[a],m[b]
            change = (x**2@w - x@g)[:,None] + y**2@w + y@g - 2*(x*w)@y.T
            i,j = np.unravel_index(change.argmin(), change.shape)
            best = min(best, (change[i, j], a[i], b[j]))
    return best
