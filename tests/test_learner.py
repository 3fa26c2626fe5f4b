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

# --- normalization

class Own(nn.Module):
    "A user's own net for any task whose targets are (b, n)"
    def __init__(self, n, **attrs):
        super().__init__()
        self.net = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, n))
        for k,v in attrs.items(): setattr(self, k, v)
    def forward(self, x): return self.net(x)

def fed(dls): return dls.valid.one_batch()[0].as_subclass(Tensor)

@pytest.fixture
def raw(shapes, tmp_path):
    "DataLoaders, and their first batch of validation in [0, 1]"
    dls = multilabel_dls(shapes[:8], size=32, bs=4, num_workers=0, device='cpu', path=tmp_path)
    return dls,fed(dls).clone()

def standard(x, mean, std): return (x - torch.tensor(mean).view(-1, 1, 1))/torch.tensor(std).view(-1, 1, 1)

@pytest.mark.parametrize('own', [lambda n: Own(n), Own], ids=['module', 'callable'])
@pytest.mark.filterwarnings("ignore:Own has no attribute `encoder`")
def test_images_of_ones_own_net_are_normalized_by_imagenets_statistics_with_a_notice(raw, own):
    dls,x = raw
    arch = own(4) if own is not Own else Own
    with pytest.warns(UserWarning, match="Own does not say how its images are normalized"):
        multilabel_learner(dls, arch)
    torch.testing.assert_close(fed(dls), standard(x, *imagenet_stats))

@pytest.mark.filterwarnings("ignore:Own has no attribute `encoder`")
def test_normalize_chooses_the_statistics_whatever_an_earlier_learner_left(raw):
    dls,x = raw
    multilabel_learner(dls, 'test_resnet', pretrained=False, normalize=([.1]*3, [.2]*3))
    torch.testing.assert_close(fed(dls), standard(x, [.1]*3, [.2]*3))
    with warnings.catch_warnings():
        warnings.simplefilter('error', UserWarning)
        warnings.filterwarnings('ignore', "Own has no attribute `encoder`")
        multilabel_learner(dls, Own(4), normalize=(np.array([.5, .4, .3]), torch.tensor([.2, .3, .4])))
        torch.testing.assert_close(fed(dls), standard(x, [.5, .4, .3], [.2, .3, .4]))
        for nothing in (None, False):
            multilabel_learner(dls, Own(4), normalize=nothing)
            assert torch.equal(fed(dls), x)
        multilabel_learner(dls, Own(4, mean=[.3]*3, std=[.6]*3))        # what a net says of itself
        torch.testing.assert_close(fed(dls), standard(x, [.3]*3, [.6]*3))
    dls.add_tfms([Normalize.from_stats([.7]*3, [.1]*3, cuda=False)], 'after_batch')
    multilabel_learner(dls, 'test_resnet', pretrained=False)
    enc = get_encoder_stats()
    torch.testing.assert_close(fed(dls), standard(x, *enc))

def get_encoder_stats():
    import timm
    cfg = timm.create_model('test_resnet').default_cfg
    return list(cfg['mean']),list(cfg['std'])

@pytest.mark.parametrize('bad', [3, ([.5]*3,), ([.5]*3, [.5]), ([.5]*3, [0., 1, 1]), 'imagenet', ([np.nan]*3, [1.]*3)])
def test_statistics_without_a_meaning_are_refused(raw, bad):
    with pytest.raises(ValueError, match=r"normalize is True, None or \(mean, std\)"):
        multilabel_learner(raw[0], 'test_resnet', pretrained=False, normalize=bad)

def test_every_learner_takes_normalize(task, anns, tmp_path):
    dls = task.make_dls(anns, size=32, bs=4, path=tmp_path)
    x = fed(dls).clone()
    task.make_learner(dls, normalize=None)
    assert torch.equal(fed(dls), x)
    if task.name in ('detection', 'instance'):
        task.make_learner(dls)
        assert torch.equal(fed(dls), x)          # torchvision's nets normalize
        with pytest.raises(ValueError, match="TorchvisionDetector normalizes its images itself"):
            task.make_learner(dls, normalize=imagenet_stats)
        return
    task.make_learner(dls, normalize=([.1]*3, [.2]*3))
    torch.testing.assert_close(fed(dls), standard(x, [.1]*3, [.2]*3))

def test_a_net_of_ours_without_weights_is_fed_by_imagenets_statistics_without_a_notice(shapes, tmp_path):
    task = next(t for t in TASKS if t.name == 'segmentation')
    dls = task.make_dls(task.anns(shapes)[:6], size=32, bs=2, path=tmp_path)
    x = fed(dls).clone()
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', "UNet has no attribute `encoder`")
        warnings.filterwarnings('error', "UNet does not say how")
        segmentation_learner(dls, 'unet', pretrained=False, arch_kwargs=dict(width=.1, padding='same'))
    torch.testing.assert_close(fed(dls), standard(x, *imagenet_stats))
