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

# --- signatures

KINDS = inspect.Parameter.POSITIONAL_ONLY,inspect.Parameter.POSITIONAL_OR_KEYWORD
def positional(f): return [p for p in inspect.signature(f).parameters.values() if p.kind in KINDS]

def overrides():
    "(name, ours, fastai's) of every public method of fastai's that one of our classes has in its own way"
    for classes,theirs in ((LEARNERS, Learner), (LOADERS, TfmdDL)):
        for cls in classes:
            for name,f in vars(cls).items():
                stock = getattr(theirs, name, None)
                if not name.startswith('_') and inspect.isfunction(f) and inspect.isfunction(stock):
                    yield pytest.param(f, stock, id=f'{cls.__name__}.{name}')

@pytest.mark.parametrize('ours,theirs', list(overrides()))
def test_an_override_takes_fastais_positional_arguments_in_their_order(ours, theirs):
    want,got = positional(theirs),positional(ours)
    assert [p.name for p in got[:len(want)]] == [p.name for p in want]
    assert all(p.default is not inspect.Parameter.empty for p in got[len(want):])

def test_the_positional_callbacks_of_fit_are_called(task, learn):
    class Count(Callback):
        n = 0
        def after_batch(self): Count.n += 1
    learn.fit(1, 1e-4, None, [Count()])
    assert Count.n == 3      # 8 images to train on, 4 to validate

# --- what is refused before training

@pytest.mark.parametrize('mix', [MixUp, CutMix])
def test_mixed_images_are_for_labels_alone(task, learn, mix):
    if task.name == 'multilabel':
        learn.fit(1, 1e-4, cbs=mix())
        return
    before = state(learn)
    for cbs in (mix(), [mix], mix):
        with pytest.raises(ValueError, match=f"{mix.__name__} mixes images and one label each, which .* cannot follow"):
            learn.fine_tune(1, cbs=cbs)
    learn.add_cb(mix())
    with pytest.raises(ValueError, match="cannot follow"): learn.fit_one_cycle(1)
    assert same(before, state(learn)) and all(p.requires_grad for p in learn.model.parameters())

def test_training_on_nothing_is_an_error(learn):
    learn.export('l.pkl')
    loaded = load_learner(learn.path/'l.pkl')
    with loaded.no_bar(), loaded.no_logging():
        for f in (loaded.fine_tune, loaded.fit, loaded.fit_one_cycle, loaded.fit_flat_cos):
            with pytest.raises(ValueError, match="no images to train on: an exported learner leaves its data"): f(1)
        with pytest.raises(ValueError, match="no images to train on"): loaded.lr_find(num_it=3, show_plot=False)
        assert all(p.requires_grad for p in loaded.model.parameters())    # fine_tune did not freeze first
    learn.dls.train = learn.dls.train.new(bs=16)
    for f in (lambda: learn.fit(1), lambda: learn.lr_find(show_plot=False)):
        with pytest.raises(ValueError, match="gives no batch: bs=16 is more than its 8 images"): f()

def test_a_batch_of_one_trains_or_says_what_to_do(task, learn):
    learn.dls.train = learn.dls.train.new(bs=1)
    try: learn.fit(1, 1e-4)
    except ValueError as e: assert 'raise bs' in str(e) and '1' in str(e)
    else: assert len(learn.recorder.losses) == 8

def test_batchnorm_over_a_single_image_is_explained(shapes, tmp_path):
    dls = multilabel_dls(shapes[:6], size=32, bs=1, num_workers=0, device='cpu', path=tmp_path)
    learn = multilabel_learner(dls, 'test_resnet', pretrained=False)
    with learn.no_bar(), learn.no_logging(), pytest.raises(ValueError, match="cannot train on a batch of 1: raise bs"):
        learn.fit(1, 1e-4)

def test_a_single_image_to_train_on_is_named_as_the_reason(shapes, tmp_path):
    anns = [replace(a, split='valid' if i else 'train') for i,a in enumerate(shapes[:3])]
    dls = multilabel_dls(anns, size=32, num_workers=0, device='cpu', path=tmp_path)
    learn = multilabel_learner(dls, 'test_resnet', pretrained=False)
    with learn.no_bar(), learn.no_logging(), pytest.raises(ValueError, match="has no more images; add some"):
        learn.fit(1, 1e-4)

@pytest.mark.parametrize('dls', [detection_dls, instance_dls, localization_dls], ids=lambda f: f.__name__)
def test_a_class_called_like_no_object_is_refused(dls, shapes):
    task = next(t for t in TASKS if t.dls is dls)
    anns = [replace(a, labels=['#na#']*len(a.labels)) for a in task.anns(shapes)]
    with pytest.raises(ValueError, match="called '#na#'"): task.make_dls(anns, size=32, bs=4)

def test_labels_of_an_image_may_be_called_like_no_object(shapes, tmp_path):
    anns = [Annotation(a.path, a.size, ['#na#', *a.labels][:2]) for a in shapes[:8]]
    learn = multilabel_learner(multilabel_dls(anns, size=32, bs=4, num_workers=0, device='cpu', path=tmp_path),
                               'test_resnet', pretrained=False)
    with learn.no_bar(): assert {o for a in learn.annotate(anns, thresh=0.) for o in a.labels} == {*learn.dls.vocab}

# --- normalizers of points

def figures(tmp_path, bad):
    "Figures, two of them for validation, the first with the points `bad`"
    points = np.array([[10., 10], [20, 20], [30, 30]])
    res = [replace(a, points=points, visible=None, split='valid' if i < 2 else 'train')
           for i,a in enumerate(draw_figures(tmp_path, 6, size=48))]
    return [replace(res[0], points=np.array(bad)), *res[1:]]

@pytest.mark.parametrize('by,bad', [('box', [[10, 10], [np.nan]*2, [np.nan]*2]),
                                    (('a', 'c'), [[10, 10], [9, 9], [10, 10]])])
def test_a_normalizer_of_zero_is_an_error_before_training(tmp_path, by, bad):
    dls = keypoint_dls(figures(tmp_path, bad), list('abc'), size=32, bs=4, num_workers=0, device='cpu')
    with pytest.raises(AnnotationError, match=r"0000.png: the normaliser .* \(1 of 2 images for validation"):
        keypoint_learner(dls, 'test_resnet', pretrained=False, by=by)
    learn = keypoint_learner(dls, 'test_resnet', pretrained=False)
    learn.metrics = [NME(by)]
    with learn.no_bar(), learn.no_logging():
        with pytest.raises(AnnotationError, match="1 of 2 images for validation"): learn.fit(1)
        learn.metrics = [NME()]
        learn.fit(1)
        with pytest.raises(AnnotationError, match="0 pixels"): learn.evaluate_per_point(by=by)

def test_a_normalizer_that_is_not_known_is_none_of_zero(tmp_path):
    dls = keypoint_dls(figures(tmp_path, [[10, 10], [20, 20], [np.nan]*2]), list('abc'), size=32, bs=4, num_workers=0,
                       device='cpu')
    learn = keypoint_learner(dls, 'test_resnet', pretrained=False, by=('a', 'c'))
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    assert np.isfinite(learn.recorder.values[-1]).all()

# --- metrics of every few epochs

@pytest.fixture
def detector(shapes, tmp_path):
    set_seed(0)
    learn = detection_learner(detection_dls(shapes[:12], size=32, bs=4, num_workers=0, device='cpu', path=tmp_path),
                              'ssdlite', encoder='test_resnet', pretrained=False, arch_kwargs=dict(width=.25))
    with learn.no_bar(), learn.no_logging(): yield learn

class Given(MeanAP):
    "A `MeanAP` of chosen values, one for each time that it is due"
    def __init__(self, values, **kwargs): super().__init__(**kwargs); self.values = list(values)
    def reset(self): super().reset(); self.n = 0
    def accumulate(self, learn): self.n += self.due(learn)
    @property
    def value(self): return self.values.pop(0) if self.n else float('nan')

def test_trackers_wait_for_the_epochs_in_which_their_metric_is_due(detector, tmp_path):
    early = EarlyStoppingCallback(monitor='map', patience=2)
    detector.metrics = [Given([.1, .2, .15, .12, .3], every=3)]
    detector.fit(30, 1e-4, cbs=early)
    assert len(detector.recorder.values) == 12 and early.best == .2     # two values without progress after that of 6
    detector.metrics = [Given([.5, .4, .3], every=2)]
    detector.fit(6, 1e-4, cbs=ReduceLROnPlateau(monitor='map', patience=2))
    assert detector.opt.hypers[-1]['lr'] == pytest.approx(1e-5)         # once, after the third value

def test_the_best_model_is_saved_at_an_epoch_with_a_value_and_loaded_however_the_fit_ends(detector, tmp_path):
    saved = []
    class Watch(Callback):
        order = 70
        def after_epoch(self): saved.append((tmp_path/'models'/'model.pth').exists() and self.save_model.best)
    detector.metrics = [Given([.1, .3, .2], every=2)]
    detector.fit(6, 1e-4, cbs=[SaveModelCallback(monitor='map'), Watch()])
    assert saved == [False, .1, .1, .3, .3, .3]
    best = torch.load(tmp_path/'models'/'model.pth', weights_only=True)
    assert all(torch.equal(best[k], v) for k,v in detector.model.state_dict().items())
    # another tracker ends the fit where the metric has no value
    class Stop(Callback):
        order = 63
        def after_epoch(self):
            if self.epoch == 2: raise fastai.learner.CancelFitException
    detector.metrics = [Given([.4], every=2)]
    detector.fit(6, 1e-4, cbs=[SaveModelCallback(monitor='map'), Stop()])
    best = torch.load(tmp_path/'models'/'model.pth', weights_only=True)
    assert all(torch.equal(best[k], v) for k,v in detector.model.state_dict().items())

def test_a_file_for_every_epoch_is_written_whether_or_not_the_metric_is_due(detector, tmp_path):
    detector.metrics = [Given([.1], every=3)]
    detector.fit(3, 1e-4, cbs=SaveModelCallback(monitor='map', every_epoch=True))
    assert len(list((tmp_path/'models').glob('model_*.pth'))) == 3

# --- models that diverged

def test_a_model_that_diverged_is_refused(learn, anns):
    with torch.no_grad():
        for p in learn.model.parameters(): p.fill_(torch.nan)
    for f in (lambda: learn.annotate(anns[:2]), learn.evaluate, lambda: learn.predict(anns[0]), learn.show_results):
        with pytest.raises(ValueError, match="nan"): f()
    with pytest.raises(ValueError, match="the model gives nan for these images: it diverged"): learn.annotate(anns[0])

PROPOSALS = torch.tensor([[[2., 2, 30, 30], [10, 10, 50, 60]]])
DETECTORS = dict(
    faster_rcnn=dict(encoder='test_resnet', width=.25, size=64),
    retinanet=dict(encoder='test_resnet', width=.25, size=64),
    fcos=dict(encoder='test_resnet', width=.25), ssdlite=dict(encoder='test_resnet', width=.25, size=64),
    faster_rcnn_vgg16=dict(encoder='test_resnet', width=.25, size=64, stride=8),
    sliding_window=dict(width=.5, size=64), yolo_v1=dict(width=.1, S=2, size=64),
    rcnn=dict(encoder='test_resnet', crop=64, context=4), fast_rcnn=dict(encoder='test_resnet', width=.06),
    mask_rcnn=dict(encoder='test_resnet', width=.25, size=64))

@pytest.mark.parametrize('name', DETECTORS)
@pytest.mark.parametrize('what', ['weights', 'head', 'statistics'])
def test_every_detector_refuses_nan_before_its_threshold_drops_it(name, what):
    build = get_arch(name, 'instance' if name == 'mask_rcnn' else 'detection')
    net = build(3, pretrained=False, **DETECTORS[name]).eval()
    kw = dict(proposals=PROPOSALS) if net.needs_proposals else {}
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        net(x, **kw)
        ps = dict(net.named_parameters())
        if what == 'statistics': ps = {k: b for k,b in net.named_buffers() if k.endswith('running_var')}
        if what == 'head': ps = {k: ps[k] for k in [*ps][-1:]}
        if not ps: pytest.skip("this net has no BatchNorm")
        for p in ps.values(): p.fill_(torch.nan)
        with pytest.raises(ValueError, match="gives nan for these images"): net(x, **kw)

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
