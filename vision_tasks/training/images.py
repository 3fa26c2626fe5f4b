"What `annotate` and `predict` take as an image"
from __future__ import annotations
import os
from pathlib import Path
import numpy as np
from torch import Tensor
from PIL import Image
from ..data.annotation import Annotation
from ..data.image import image_size, shown_size
from ..data.items import FileImage, array_size

__all__ = []

IMAGES = str,os.PathLike,Annotation,bytes,bytearray,Image.Image,np.ndarray,Tensor   # what `annotate` takes

def path_and_size(o):
    "(path, (w, h)) of what `annotate` takes; the path is None for an image that came as pixels"
    if isinstance(o, Annotation): return o.path,o.size
    if isinstance(o, (str, os.PathLike)): return Path(o),image_size(o)
    if isinstance(o, (Tensor, np.ndarray)): return None,array_size(o)
    if isinstance(o, Image.Image): return None,shown_size(o)
    return None,FileImage.create(o).size
