"Predictions at the size of the image file: in tiles, and with a function between probabilities and classes"
from __future__ import annotations
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from fastai.vision.core import TensorImage
from fastprogress.fastprogress import progress_bar
from torchvision.transforms.v2.functional import pil_to_tensor
from ..arguments import FLAG, SIZE, checked, checked_methods
from ..data.annotation import Annotation
from ..data.blocks import grey_range_of
from ..data.geometry import valid_step
from ..data.items import FileImage
from ..ops.windows import check_scale, extend_image, tile_starts, tile_weights
from .images import path_and_size
from ..warning import warn

__all__ = ['WholeImages']

@checked_methods
class WholeImages:
    "What a learner that predicts pixel by pixel does at the size of the file"
    def valid_scale(self) -> tuple[float,float]|None:
        "Network pixels per image pixel (x, y), the median over the validation set; None without validation images"
        items = [a for a in (self.dls.valid.items if len(self.dls.valid.dataset) else []) if isinstance(a, Annotation)]
        if not items: return None
        ratios = []
        for size in {a.size: None for a in items}:
            view = self.valid_view(size)
            src,dst = np.array(view.src, float),np.array(view.dst, float)
            ratios.append(((dst[2:]-dst[:2])/(src[2:]-src[:2]), sum(a.size == size for a in items)))
        each = np.repeat([r for r,_ in ratios], [n for _,n in ratios], axis=0)
        return tuple(np.median(each, 0).tolist())

    def _warn_scale(self):
        "Warn where tiles that are not resized show objects at another scale than the validation images"
        s = self.valid_scale()
        if s is None or all(1/1.5 <= o <= 1.5 for o in s): return
        warn("tiles show 1 network pixel per image pixel, but the network was validated at "
             f"{s[0]:.3g} (x) and {s[1]:.3g} (y), so objects in tiles are {1/s[0]:.3g} times as wide and "
             f"{1/s[1]:.3g} times as high as it knows them: pass scale=({s[0]:.3g}, {s[1]:.3g}), scale=1 for "
             "tiles as they are, or train on crops at the scale of the images")

    def _annotate_whole(self, items, bs, tile, tta, postprocess, scale=None):
        "Annotations from probabilities of each file's size"
        out,asked = [],self.images_of(items)
        def finish(item, probs):
            im = self._pixels_of(item)
            if postprocess is not None: probs = _checked(postprocess(probs, im), probs)
            labels = probs.argmax(0).to('cpu', torch.uint8 if len(probs) <= 255 else torch.int32)
            labels[(probs == 0).all(0).cpu()] = 255
            out.append(Annotation(path_and_size(item)[0], (im.shape[2], im.shape[1]), mask=labels.numpy()))
        if tile is not None:
            bar = progress_bar(asked, leave=False) if hasattr(self, 'progress') else asked    # absent under `no_bar`
            for item in bar: finish(item, self.tiled_probs(self._pixels_of(item), tile, tta, bs, scale))
            return out
        def gather(probs):
            for p in probs:
                item = asked[len(out)]
                finish(item, self.probs_in_file(p, path_and_size(item)[1]))
        self.stream(asked, gather, bs, tta)
        return out

    def _pixels_of(self, item):   # (3, H, W) uint8
        im = FileImage.create(item, grey_range_of(self.dls))
        return im.pixels() if not im.loaded else pil_to_tensor(im)

    @checked(tta=FLAG, tile=SIZE)
    def tiled_probs(self,
        image:Tensor,      # (3, H, W) uint8
        tile,              # (w, h), or one number for both, in pixels of the network's input
        tta:bool=False,    # average with the mirrored tiles
        bs:int=None,       # tiles at a time; None = as in training
        scale=None,        # network pixels per image pixel, one number above 0 or (x, y); None = 1
    ) -> Tensor:           # (c, H, W) in [0, 1], on the CPU
        """Probabilities of an image of any size, tile by tile. Tiles overlap by half; an eighth at each inner border is
        excluded and what follows is blended, so that a network that sees no further than an eighth of a tile predicts
        what it does for the whole image. With `scale` the image is resized first, and the probabilities are resized
        back"""
        if scale is not None:
            sx,sy = check_scale(scale)
            H,W = image.shape[-2:]
            hw  = max(round(H*sy), 1),max(round(W*sx), 1)
            small = F.interpolate(image[None].float(), hw, mode='bilinear', antialias=True)[0]
            small = small.round().clamp(0, 255).to(image.dtype)
            probs = self.tiled_probs(small, tile, tta, bs)
            return F.interpolate(probs[None], (H, W), mode='bilinear', align_corners=False)[0]
        tw,th = (tile, tile) if isinstance(tile, int) else tile
        if min(tw, th) < 16: raise ValueError(f"tile is (w, h) in pixels, 16 or more; got {tile!r}")
        self.normalize_here(self.dls.valid)
        H,W = image.shape[-2:]
        ow,oh = self._output_size(tw, th)
        py,px = (th-oh)//2,(tw-ow)//2                    # what a network without padding loses at each side
        ys,xs = tile_starts(H, oh),tile_starts(W, ow)
        image = extend_image(image, (px, max(ow-W, 0) + px, py, max(oh-H, 0) + py))
        at = [(y, x) for y in ys for x in xs]
        weight = torch.zeros(max(H, oh), max(W, ow))
        total = torch.zeros(len(self.dls.vocab), *weight.shape)
        for i in range(0, len(at), bs or self.dls.bs):
            some = at[i:i+(bs or self.dls.bs)]
            probs = self._predict_tiles(torch.stack([image[:, y:y+th, x:x+tw] for y,x in some]), tta)
            for (y,x),p in zip(some, probs):
                w = tile_weights(y, oh, ys)[:,None]*tile_weights(x, ow, xs)
                total[:, y:y+oh, x:x+ow] += p.cpu()*w; weight[y:y+oh, x:x+ow] += w
        return (total/weight)[:, :H, :W]

    def _predict_tiles(self, x, tta):
        b = TensorImage(x.to(self.dls.device)),
        for o in self.dls.valid.after_batch.fs:      # tiles are not resized
            if valid_step(o, (x.shape[-1], x.shape[-2])) is None: b = o(b, split_idx=1)
        x, = b
        self.model.to(self.dls.device).eval()
        with torch.no_grad():
            p = self.probabilities(self.model(x))
            return p if not tta else (p + self.mirror_back(self.probabilities(self.model(x.flip(-1)))))/2

    def _output_size(self, w, h):
        "(w, h) of the output for an input of (w, h)"
        p = self._predict_tiles(torch.zeros(1, 3, h, w, dtype=torch.uint8), False)
        return p.shape[-1],p.shape[-2]

def _checked(res, probs):
    if isinstance(res, Tensor) and res.shape == probs.shape: return res
    came = tuple(res.shape) if hasattr(res, 'shape') else type(res).__name__
    raise ValueError(f"postprocess gives {came}; expected a tensor like its first argument, {tuple(probs.shape)}")
