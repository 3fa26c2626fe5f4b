"The notebook face: `from vision_tasks.all import *` gives fastai's vision names and ours"
from fastai.vision.all import *
from .data.annotation import *
from .data.blocks import *
from .data.image import *
from .data.synthetic import *
from .data.table import *
from .data.transforms import *
from .data.voc import *
from .learner import *
from .losses import *
from .metrics import *
from .models.encoders import *
from .models.registry import *
from .multilabel import *
from .ops.masks import *
from .show import *
from .thresholds import *
