"DataLoaders of a block over annotations, with the checks that all tasks share"
from __future__ import annotations
from ..arguments import FUNCTION, came
from ..data.balance import BalancedShuffle, inverse_frequencies, repeat_factors
from ..data.blocks import ClassMaskEncode, FileImageEncode
from ..data.cache import PixelCache
from ..data.check import check_images
from ..data.errors import AnnotationError
from ..data.splits import AnnotationSplitter
from ..data.targets import NO_OBJECT
from ..data.transforms import JointTransform

__all__ = []

def splitter_of(block_kwargs, valid_pct, seed):
    "The splitter, taken out of `block_kwargs`, whose results are checked; the default where there is none"
    given = block_kwargs.pop('splitter', None)
    if given is None: return AnnotationSplitter(valid_pct, seed)
    given = FUNCTION('splitter', given)
    def split(annotations):
        res = given(annotations)
        try: train,valid = ([int(i) for i in o] for o in res)
        except (TypeError, ValueError): raise ValueError(
            f"splitter: expected two lists of indices, of train and of valid, got {came(res)}") from None
        bad = next((i for i in (*train, *valid) if not 0 <= i < len(annotations)), None)
        if bad is None: return train,valid
        raise ValueError(f"splitter: expected indices of the {len(annotations)} annotations, got {bad}")
    return split

def loaders_of_block(block, annotations, bs, path, num_workers, device, decode=False):
    """The DataLoaders of `block` over `annotations`, checked first for all that would fail in the middle of an epoch;
    with `decode` the images of both sets are decoded"""
    missing = [a.path for a in annotations if a.path is None or not a.path.is_file()]
    if missing: raise AnnotationError(
        f"{missing[0]}: no such image file ({len(missing)} of {len(annotations)} are missing); fix the paths, or drop "
        "these annotations")
    train,valid = block.splitter(annotations)
    for name,idxs in (('train', train), ('valid', valid)):
        if not len(idxs): raise AnnotationError(
            f"the splitter puts none of the {len(annotations)} images into {name}; both sets need at least one")
    if decode: check_images([annotations[i] for i in sorted({*train, *valid})])
    return block.dataloaders(annotations, path=path, bs=min(bs, len(train)), num_workers=num_workers, device=device)

def cached(dls, cache):
    "`dls`, which take the pixels of their images and class masks from a cache: 'ram', a folder, or None for none"
    if cache is None: return dls
    joint = next((o for o in dls.train.after_item.fs if isinstance(o, JointTransform)), None)
    tfms  = [f for o in dls.train.dataset.tls for f in o.tfms.fs]
    image = next(f for f in tfms if isinstance(f, FileImageEncode))
    mask  = next((f for f in tfms if isinstance(f, ClassMaskEncode)), None)
    n = None if mask is None or joint is None else len(mask.vocab)
    image.cache = PixelCache(cache, [a for dl in dls for a in dl.items], joint, image.grey_range, n)
    if mask is not None: mask.cache = image.cache
    return dls

def balanced(dls, balance, single=False):
    """`dls`, whose training set is shown by its labels where `balance` is 'labels': by the repeat factors of the
    images, or, with a `single` label each, by inverse frequencies. Objects to ignore have no part in it"""
    if balance is None: return dls
    labels = [_labels_of(a) for a in dls.train.items]
    weights = inverse_frequencies([next(iter(o), NO_OBJECT) for o in labels]) if single else repeat_factors(labels)
    dls.train.shuffle_fn = BalancedShuffle(weights)
    return dls

def _labels_of(a): return set(a.labels) if a.ignore is None else {o for o,i in zip(a.labels, a.ignore) if not i}
