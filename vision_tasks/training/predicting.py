"Predictions of images as `Annotation`s, and their drawing"
from __future__ import annotations
import os
from fastcore.basics import detuplify, tuplify
from fastcore.foundation import L
from torch import Tensor
# `all`, for it patches fit_one_cycle, lr_find, to_fp16, summary, no_bar into Learner
from ..arguments import COUNT, FLAG, brief, checked, checked_methods
from ..data.annotation import Annotation
from ..data.blocks import grey_range_of
from ..data.items import FileImage
from ..models.layers import refuse_nan
from ..show.batches import FixedOrder
from ..show.sheet import show_predictions
from .images import IMAGES, path_and_size
from .kinds import check_ds_idx
from .scoring import Stream

__all__ = ['Predicting']

@checked_methods
class Predicting:
    "What a `TaskLearner` predicts with"
    @checked(tta=FLAG)
    def annotate(self,
        items,          # list of Annotation, path, bytes of an image file, PIL image, array (h, w), (h, w, 1) or
                        # (h, w, 3) uint8, or tensor (3, h, w) uint8; or one of these
        thresh=None,    # in place of the learner's own: a number in [0, 1], or one per class
        bs:int=None,    # images in a batch; None (default): as in training
        tta:bool=False, # average with the predictions of the mirrored images
    ) -> list[Annotation]:
        """Predictions for `items`: class names and scores, in pixels of the files, in the order of `items`; batch by
        batch, with a progress bar.

        Files of large JPEGs are decoded at a reduced size, as in training; so is a JPEG that `Image.open` opened and
        whose pixels are not loaded yet. Pixels that are decoded already (arrays, tensors, loaded images) differ from
        those at the network's input by about 1 % on average, and scores differ a little: pass paths for the scores of
        `evaluate`.

        Raises `ValueError` for a model that diverged. `learn.recorder` keeps the last training"""
        items,out = self.images_of(items),[]
        def gather(probs):
            images = [path_and_size(o) for o in items[len(out):len(out)+len(probs)]]
            out.extend(self.to_annotations(probs, images, thresh))
        self.stream(items, gather, bs, tta)
        return out

    def images_of(self, items, # what `annotate` takes
    ) -> list:
        "The items of `annotate` as a list. Raises `ValueError` for a folder, and for what is no image"
        if isinstance(items, IMAGES): items = [items]
        try: items = list(items)
        except TypeError: items = [items]
        for i,o in enumerate(items):
            if not isinstance(o, IMAGES) or isinstance(o, str) and not o: raise ValueError(
                f"items, number {i}: expected a path, an Annotation, bytes of an image file, a PIL image, an array or "
                f"a tensor, got {brief(o)}")
        folder = next((o for o in items if isinstance(o, (str, os.PathLike)) and os.path.isdir(o)), None)
        if folder is not None:
            raise ValueError(f"{folder} is a folder; pass its images: get_image_files({str(folder)!r})")
        return items

    def stream(self,
        items,     # list as `images_of` returns it
        f,         # function of the probabilities of a batch
        bs=None,   # images at a time; None: as in training
        tta=False, # average with the mirrored images
    ):
        "Give `f` the probabilities of `items`, batch by batch in their order, and keep none"
        if not items: return
        dl = self.dls.test_dl(items, bs=min(bs or self.dls.bs, len(items)), rm_type_tfms=0)
        self.get_preds(dl=dl, with_preds=False, with_targs=False, reorder=False, cbs=Stream(f, tta))

    def predict(self,
        item,                  # an Annotation, path, bytes, PIL image, array or tensor, as `annotate` takes them
        rm_type_tfms=0,        # number of type transforms to skip; as of fastai's `test_dl`
        with_input:bool=False, # return the decoded input image first
    ) -> tuple:                # (`Annotation`, decoded, raw), with the input before them if `with_input`
        """The prediction for one image: the `Annotation` in pixels of its file; what the loss decodes from the output
        of the model, in terms of the network (indices, pixels of its input); and that output with its activation"""
        items = self.images_of([item])
        dl = self.dls.test_dl(items, rm_type_tfms=rm_type_tfms, num_workers=0)
        inp,raw,_,decoded = self.get_preds(dl=dl, with_input=True, with_decoded=True)
        refuse_nan(raw)
        annotation = self.to_annotations(self.probabilities_of(raw), [path_and_size(items[0])], None)[0]
        def first(o): return detuplify(tuple(x[0] for x in tuplify(o)))
        res = annotation,self.decoded_of(first(decoded)),first(raw)
        return (dl.decode_batch(tuplify(inp), 1)[0][0],*res) if with_input else res

    def probabilities_of(self, preds, # what `get_preds` returns: the output of the model with its activation
    ) -> Tensor:
        "Predictions of `get_preds` as `to_annotations` takes them"
        return preds.as_subclass(Tensor)

    def decoded_of(self, decoded, # what the loss decodes from the output for one image
    ):
        "What `predict` returns of it"
        return decoded

    def tta(self,
        ds_idx=1, dl=None,
        n=4, item_tfms=None, batch_tfms=None, beta=.25, use_max=False, # ignored: always an error
    ):
        """fastai's `tta` averages predictions over augmented images as if nothing in them had moved; where predictions
        have places it raises `ValueError`"""
        raise ValueError("tta averages over images whose points, boxes and pixels have moved; "
                         "use annotate(items, tta=True), which turns the predictions for mirrored images back")

    @checked(max_n=COUNT, shuffle=FLAG)
    def show_results(self,
        ds_idx:int=1,      # of the set
        dl=None,           # in place of it: a DataLoader, or a list of `Annotation` or of paths
        max_n:int=9,       # images to draw at most
        shuffle:bool=True, # draw images at random
        **kwargs,          # of the DataLoader's `show_results`: `ncols`, ...
    ):
        "Draw images with ground truth and prediction; with the prediction alone where there is no ground truth"
        check_ds_idx(ds_idx, self.dls)
        if isinstance(dl, Annotation): dl = [dl]
        if dl is None: dl = self.set_with_images(ds_idx)
        elif isinstance(dl, (list, tuple, L)):
            truth = all(isinstance(o, Annotation) for o in dl)
            dl = self.annotated_dl(dl) if truth else self.dls.test_dl(list(dl), rm_type_tfms=0)
        dl = dl.new(shuffle=shuffle)
        if not self.has_truth(dl):
            self.show_annotations([dl.items[i] for i in dl.get_idxs()[:max_n]], **kwargs)
            return
        b = dl.one_batch()
        probs,dec = self._predictions(b)
        dl.show_results(b, dec, max_n=max_n, probs=probs, **kwargs)

    def show_annotations(self,
        items,    # what `annotate` takes
        ncols:int=None,
        **kwargs, # ignored
    ):
        "Draw `items`, as `annotate` takes them, with their predictions in pixels of the files"
        images = [FileImage.create(o, grey_range_of(self.dls)) for o in items]
        names = dict(point_names=self.dls.vocab, skeleton=self.dls.skeleton) if hasattr(self.dls, 'skeleton') else {}
        show_predictions(self.annotate(items), images, ncols, vocab=self.classes, **names)

    def _predictions(self, b):
        "Probabilities and decisions of batch `b`; without metrics, for some want the annotations behind a batch"
        with self.scored_by([]): probs,_,dec = self.get_preds(dl=[b], with_decoded=True)
        return probs,dec

    @checked(k=COUNT, largest=FLAG)
    def plot_top_losses(self,
        k:int=9,           # images to draw at most
        ds_idx:int=1, dl=None,
        largest:bool=True, # True: the largest losses; False: the smallest
        **kwargs,          # of the DataLoader's `show_results`: `ncols`, ...
    ):
        "Draw the `k` images with the largest (or smallest) loss, that first"
        dl = self.whole_dl(ds_idx, dl)
        *_,losses = self.get_preds(dl=dl, with_loss=True, with_preds=False, with_targs=False)
        losses,idxs = losses.topk(min(k, len(losses)), largest=largest)
        b = dl.new(get_idxs=FixedOrder(idxs.tolist()), bs=len(idxs)).one_batch()
        probs,dec = self._predictions(b)
        dl.show_results(b, dec, max_n=len(idxs), probs=probs, losses=losses.tolist(), **kwargs)
