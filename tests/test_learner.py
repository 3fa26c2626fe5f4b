"What all learners keep to: fastai's signatures, callbacks and files; and what they refuse before anything is trained"
import inspect, io, pickle, sys, types, warnings
from copy import deepcopy
from dataclasses import replace
import numpy as np, pytest, torch
import fastai.callback.all as callbacks
import fastai.learner
from fastai.vision.all import (BCEWithLogitsLossFlat, Callback, CSVLogger, CutMix, EarlyStoppingCallback, Learner,
                               MixUp, Normalize, ReduceLROnPlateau, SaveModelCallback, TfmdDL, imagenet_stats,
                               load_learner, set_seed)
from PIL import Image
from torch import Tensor, nn
from test_tasks import TASKS, equal, same, state
from vision_tasks.data.annotation import Annotation, AnnotationError
from vision_tasks.data.blocks import FileImage, array_size
from vision_tasks.data.synthetic import draw_figures
from vision_tasks.detection import DetectionLearner, detection_dls, detection_learner
from vision_tasks.detection_metrics import MeanAP
from vision_tasks.instance import InstanceLearner, instance_dls
from vision_tasks.keypoint import KeypointLearner, keypoint_dls, keypoint_learner
from vision_tasks.learner import TaskLearner
from vision_tasks.localization import LocalizationLearner, localization_dls
from vision_tasks.metrics import NME
from vision_tasks.models.registry import get_arch
from vision_tasks.multilabel import MultilabelLearner, multilabel_dls, multilabel_learner
from vision_tasks.segmentation import SegmentationLearner, segmentation_learner
from vision_tasks.show import DetectionDL, InstanceDL, KeypointDL, LocalizationDL, MultilabelDL, SegmentationDL

LEARNERS = TaskLearner,MultilabelLearner,KeypointLearner,LocalizationLearner,SegmentationLearner,DetectionLearner,\
           InstanceLearner
LOADERS  = MultilabelDL,KeypointDL,LocalizationDL,SegmentationDL,DetectionDL,InstanceDL

@pytest.fixture(scope='module', params=TASKS, ids=repr)
def task(request): return request.param

@pytest.fixture(scope='module')
def anns(task, shapes):
    "12 annotations, 4 of them for validation"
    return [replace(a, split='valid' if i%3 == 2 else 'train') for i,a in enumerate(task.anns(shapes)[:12])]

@pytest.fixture(scope='module')
def made(task, anns, tmp_path_factory):
    "An untrained learner, pickled"
    return pickle.dumps(task.make(anns, tmp_path_factory.mktemp(task.name), size=32, bs=4))

@pytest.fixture
def learn(made, tmp_path):
    "A silent copy of it"
    learn = pickle.loads(made)
    learn.path = tmp_path
    with learn.no_bar(), learn.no_logging(): yield learn

# --- what may be annotated

def test_bytes_and_arrays_are_images(task, learn, anns):
    a = anns[1]
    grey = np.asarray(Image.open(a.path).convert('L'))
    want,= learn.annotate(Image.fromarray(grey))
    like = lambda o: all(equal(replace(x, path=None), want) for x in learn.annotate(o))
    buf = io.BytesIO(); Image.fromarray(grey).save(buf, 'png')
    t = torch.from_numpy(grey.copy())
    for o in (buf.getvalue(), bytearray(buf.getvalue()), [buf.getvalue()]*2, grey, grey[...,None], grey[None], t,
              t[None], t[...,None], np.stack([grey]*3, 2), torch.stack([t]*3), [grey, grey[...,None], t[None]]):
        assert like(o)
    assert equal(replace(learn.annotate(a.path.read_bytes())[0], path=a.path), learn.annotate(a)[0])

@pytest.mark.parametrize('o,match', [
    (np.zeros((8, 9), np.float32), "holds uint8 in 0..255, not float32; scale and cast"),
    (torch.zeros(3, 8, 9), "holds uint8 in 0..255, not float32"),
    (np.zeros((8, 9, 3), np.uint16), "not uint16"), (np.zeros((8, 9), bool), "not bool"),
    (np.zeros((2, 8, 9, 3), np.uint8), r"an array as .*; \(2, 8, 9, 3\) came: pass several images as a list"),
    (np.zeros((8, 9, 2), np.uint8), r"\(8, 9, 2\) came"), (np.zeros(8, np.uint8), r"\(8,\) came"),
    (np.zeros((0, 9), np.uint8), r"\(0, 9\) came"),
    (torch.zeros(5, 8, 9, dtype=torch.uint8), r"a tensor .*\(5, 8, 9\)")])
def test_other_arrays_are_refused_with_what_came(o, match):
    with pytest.raises(ValueError, match=match): FileImage.create(o)

@pytest.mark.parametrize('shape,size', [((8, 9), (9, 8)), ((8, 9, 1), (9, 8)), ((8, 9, 3), (9, 8)), ((8, 9, 4), (9, 8)),
                                        ((1, 8, 9), (9, 8)), ((3, 8, 9), (9, 8)), ((3, 9, 3), (9, 3))])
def test_an_array_has_the_size_of_the_image_that_it_becomes(shape, size):
    o = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    assert array_size(o) == FileImage.create(o).size == size
    if shape != (3, 9, 3): assert array_size(torch.from_numpy(o)) == FileImage.create(torch.from_numpy(o)).size == size
    else: assert array_size(torch.from_numpy(o)) == (3, 9)      # a tensor has channels first
