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
from vision_tasks.data.annotation import Annotation
from vision_tasks.data.errors import AnnotationError
from vision_tasks.data.items import FileImage, array_size
from vision_tasks.data.synthetic import draw_figures
from vision_tasks.detection import DetectionLearner, detection_dls, detection_learner
from vision_tasks.metrics.detection import MeanAP
from vision_tasks.instance import InstanceLearner, instance_dls
from vision_tasks.keypoint import KeypointLearner, keypoint_dls, keypoint_learner
from vision_tasks.training.learner import TaskLearner
from vision_tasks.localization import LocalizationLearner, localization_dls
from vision_tasks.metrics.points import NME
from vision_tasks.models.registry import get_arch
from vision_tasks.multilabel import MultilabelLearner, multilabel_dls, multilabel_learner
from vision_tasks.segmentation import SegmentationLearner, segmentation_learner
from vision_tasks.show.class_masks import SegmentationDL
from vision_tasks.show.labels import MultilabelDL
from vision_tasks.show.objects import DetectionDL, InstanceDL
from vision_tasks.show.one_object import LocalizationDL
from vision_tasks.show.points import KeypointDL

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

@pytest.mark.train
def test_the_positional_callbacks_of_fit_are_called(task, learn):
    class Count(Callback):
        n = 0
        def after_batch(self): Count.n += 1
    learn.fit(1, 1e-4, None, [Count()])
    assert Count.n == 3      # 8 images to train on, 4 to validate

# --- what is refused before training

@pytest.mark.train
@pytest.mark.parametrize('mix', [MixUp, CutMix])
def test_mixed_images_are_for_labels_alone(task, learn, mix):
    if task.name in ('multilabel', 'classification'):
        learn.fit(1, 1e-4, cbs=mix())
        return
    before = state(learn)
    for cbs in (mix(), [mix], mix):
        with pytest.raises(ValueError, match=f"{mix.__name__} mixes images and one label each, which .* cannot follow"):
            learn.fine_tune(1, cbs=cbs)
    learn.add_cb(mix())
    with pytest.raises(ValueError, match="cannot follow"): learn.fit_one_cycle(1)
    assert same(before, state(learn)) and all(p.requires_grad for p in learn.model.parameters())

@pytest.mark.train
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

@pytest.mark.train
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
    with pytest.raises(ValueError, match="'#na#'.* rename its class|called '#na#'"): task.make_dls(anns, size=32, bs=4)

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

@pytest.mark.train
@pytest.mark.parametrize('by,bad', [('box', [[10, 10], [np.nan]*2, [np.nan]*2]),
                                    (('a', 'c'), [[10, 10], [9, 9], [10, 10]])])
def test_a_normalizer_of_zero_is_an_error_before_training(tmp_path, by, bad):
    dls = keypoint_dls(figures(tmp_path, bad), list('abc'), size=32, bs=4, num_workers=0, device='cpu')
    with pytest.raises(AnnotationError, match=r"0000.png: the normalizer .* \(1 of 2 images for validation"):
        keypoint_learner(dls, 'test_resnet', pretrained=False, by=by)
    learn = keypoint_learner(dls, 'test_resnet', pretrained=False)
    learn.metrics = [NME(by)]
    with learn.no_bar(), learn.no_logging():
        with pytest.raises(AnnotationError, match="1 of 2 images for validation"): learn.fit(1)
        learn.metrics = [NME()]
        learn.fit(1)
        with pytest.raises(AnnotationError, match="0 pixels"): learn.evaluate_per_point(by=by)

@pytest.mark.train
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

@pytest.mark.train
def test_trackers_wait_for_the_epochs_in_which_their_metric_is_due(detector, tmp_path):
    early = EarlyStoppingCallback(monitor='map', patience=2)
    detector.metrics = [Given([.1, .2, .15, .12, .3], every=3)]
    detector.fit(30, 1e-4, cbs=early)
    assert len(detector.recorder.values) == 12 and early.best == .2     # two values without progress after that of 6
    detector.metrics = [Given([.5, .4, .3], every=2)]
    detector.fit(6, 1e-4, cbs=ReduceLROnPlateau(monitor='map', patience=2))
    assert detector.opt.hypers[-1]['lr'] == pytest.approx(1e-5)         # once, after the third value

@pytest.mark.train
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

@pytest.mark.train
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

# --- what evaluation leaves alone

def snapshot(learn):
    r = learn.recorder
    return deepcopy((r.values, r.losses, r.iters, r.lrs, list(r.metric_names), r.smooth_loss.count, r.smooth_loss.val,
                     [m.name for m in learn.metrics]))

@pytest.mark.train
def test_evaluation_and_prediction_leave_the_recorder_as_it_was(task, learn, anns):
    learn.fit(2, 1e-4)
    before,values = snapshot(learn),[m.value for m in learn.metrics]
    for f in (learn.evaluate, learn.evaluate_per_class, lambda: learn.annotate(anns[:3]),
              lambda: learn.predict(anns[0]), learn.show_results, learn.get_preds, lambda: learn.evaluate(dl=anns[:3])):
        f()
        assert snapshot(learn) == before
    if 'tune' not in task.raises: learn.tune_threshold()
    assert snapshot(learn) == before and learn.recorder.plot_loss(skip_start=0)
    np.testing.assert_equal([m.value for m in learn.metrics], values)

def test_a_learner_that_was_never_trained_has_no_record_after_evaluation(learn, anns):
    before = {*vars(learn.recorder)}
    learn.evaluate(); learn.annotate(anns[:2])
    assert {*vars(learn.recorder)} == before

@pytest.mark.train
def test_evaluation_neither_logs_nor_saves_nor_loads(task, learn):
    learn.add_cbs([SaveModelCallback(monitor=task.score), CSVLogger()])
    learn.fit(1, 1e-3)
    log,file = (learn.path/'history.csv').read_text(),(learn.path/'models'/'model.pth').read_bytes()
    with torch.no_grad():
        for p in learn.model.parameters(): p.mul_(.9)
    before = state(learn)
    learn.evaluate(); learn.evaluate_per_class(); learn.annotate(learn.dls.valid.items)
    assert (learn.path/'history.csv').read_text() == log and (learn.path/'models'/'model.pth').read_bytes() == file
    assert same(before, state(learn))

# --- other sets

def test_a_list_of_annotations_is_evaluated_as_the_set_that_it_would_be(task, learn):
    items = list(learn.dls.valid.items)
    assert learn.evaluate(dl=items) == pytest.approx(learn.evaluate(), rel=1e-5, nan_ok=True)
    a,b = learn.evaluate_per_class(dl=items),learn.evaluate_per_class()
    assert a.equals(b)
    assert learn.evaluate(dl=tuple(items[:1]))['valid_loss'] == learn.evaluate(dl=items[0])['valid_loss']

def test_a_list_for_evaluation_is_checked_as_the_dls_check_theirs(task, learn, anns):
    with pytest.raises(AnnotationError, match="the data set is empty"): learn.evaluate(dl=[])
    with pytest.raises(ValueError, match="expected an Annotation, got .*Path"): learn.evaluate(dl=[anns[0].path])
    with pytest.raises((AnnotationError, ValueError), match="without ground truth"):
        learn.evaluate(dl=learn.dls.test_dl([anns[0].path]))
    if task.name in ('classification', 'multilabel', 'localization', 'detection', 'instance'):
        a = next(a for a in anns if a.labels)
        with pytest.raises(AnnotationError, match="'sphere', which is not in the vocab"):
            learn.evaluate(dl=[replace(a, labels=['sphere']*len(a.labels))])
    if task.name in ('localization', 'detection', 'instance'):
        w,h = a.size
        with pytest.warns(UserWarning, match="1 of 1 .* reach outside"):
            learn.evaluate(dl=[replace(a, bboxes=a.bboxes + np.float32([0, 0, w, h]))])

def test_an_exported_learner_says_in_one_way_that_it_has_no_data_and_takes_a_list(task, learn, anns):
    learn.export()
    loaded,want = load_learner(learn.path/'export.pkl'),learn.evaluate(dl=anns[:4])
    with loaded.no_bar(), loaded.no_logging():
        for f in (loaded.evaluate, loaded.show_results, loaded.evaluate_per_class, loaded.plot_top_losses,
                  loaded.get_preds, loaded.validate, *([] if 'tune' in task.raises else [loaded.tune_threshold])):
            with pytest.raises(ValueError, match="no images in this set: an exported learner leaves its data behind; "
                                                 "pass dl=annotations"): f()
        assert loaded.evaluate(dl=anns[:4]) == pytest.approx(want, rel=1e-4, nan_ok=True)
        loaded.show_results(dl=anns[:4])

# --- images without ground truth

def drawn():
    import matplotlib.pyplot as plt
    fig = plt.gcf()
    fig.canvas.draw()
    n = sum(bool(ax.images) for ax in fig.axes)
    plt.close('all')
    return n

def test_images_without_ground_truth_are_shown_with_their_predictions(task, learn, anns):
    files = [a.path for a in anns[:3]]
    dl = learn.dls.test_dl(files)
    for show,n in ((lambda: dl.show_batch(), 3), (lambda: dl.show_batch(max_n=2), 2),
                   (lambda: learn.show_results(dl=dl), 3), (lambda: learn.show_results(dl=dl, max_n=2), 2),
                   (lambda: learn.show_results(dl=files), 3),
                   (lambda: learn.show_results(dl=[np.zeros((40, 50, 3), np.uint8)]), 1)):
        show()
        assert drawn() == n
    assert learn.show_results(dl=anns[:2]) is None and drawn() >= 2     # with ground truth
    x,*_ = dl.show_batch(show=False)
    assert len(x) == 3

def test_images_with_proposals_and_without_ground_truth_are_shown(shapes):
    dls = detection_dls(shapes[:8], size=64, bs=4, num_workers=0, device='cpu', proposals=Whole())
    learn = detection_learner(dls, 'fast_rcnn', encoder='test_resnet', pretrained=False, arch_kwargs=dict(width=.06))
    with learn.no_bar(), learn.no_logging():
        dl = dls.test_dl([a.path for a in shapes[:3]])
        dl.show_batch(); assert drawn() == 3
        learn.show_results(dl=dl); assert drawn() == 3
        with pytest.raises(ValueError, match="without ground truth"): learn.evaluate(dl=dl)
        assert 'map' in learn.evaluate(dl=shapes[:3])

class Whole:
    "The whole image as its only proposal"
    def __call__(self, o): return np.array([[0., 0, *FileImage.create(o).size]], np.float32)

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
    (np.zeros((2, 8, 9, 3), np.uint8), r"an array as .*; got \(2, 8, 9, 3\): pass several images as a list"),
    (np.zeros((8, 9, 2), np.uint8), r"got \(8, 9, 2\)"), (np.zeros(8, np.uint8), r"got \(8,\)"),
    (np.zeros((0, 9), np.uint8), r"got \(0, 9\)"),
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

# --- files

@pytest.mark.filterwarnings("ignore:Saved file doesn't contain")
def test_save_and_load_keep_thresholds(task, learn, tmp_path):
    if 'tune' in task.raises: pytest.skip("this task has no thresholds")
    n,other = len([o for o in learn.dls.vocab if o != '#na#']),pickle.loads(pickle.dumps(learn))
    for thresh in (torch.linspace(.1, .9, n), .25):
        learn.loss_func.thresh = thresh
        for kw in (dict(), dict(with_opt=False)):
            other.loss_func.thresh = .5
            file = learn.save('x', **kw)
            other.load(file)
            assert np.array_equal(other.loss_func.thresh, thresh) and type(other.loss_func.thresh) is type(thresh)
            assert same(state(other), state(learn))
    if task.name in ('multilabel', 'classification'):
        for temperature in [2.5, torch.linspace(1, 2, n)] if task.name == 'multilabel' else [2.5]:
            learn.loss_func.temperature = temperature
            other.load(learn.save('x'))
            assert np.array_equal(other.loss_func.temperature, temperature)

@pytest.mark.train
def test_the_best_model_brings_its_thresholds_back(task, learn):
    if 'tune' in task.raises: pytest.skip("this task has no thresholds")
    learn.loss_func.thresh = .3
    class Other(Callback):
        order = 70
        def after_epoch(self): self.learn.loss_func.thresh = .7
    learn.fit(1, 1e-4, cbs=[SaveModelCallback(), Other()])
    assert learn.loss_func.thresh == pytest.approx(.3)

@pytest.mark.filterwarnings("ignore:Could not load the optimizer state", "ignore:Saved file doesn't contain")
def test_fastai_and_torch_read_our_files_and_we_read_theirs(task, learn, tmp_path):
    (tmp_path/'models').mkdir()
    stock = Learner(learn.dls, deepcopy(learn.model), loss_func=learn.loss_func, path=tmp_path)
    with torch.no_grad():
        for p in learn.model.parameters(): p.add_(.01)
    for kw in (dict(), dict(with_opt=False)):
        learn.create_opt()
        file = learn.save('ours', **kw)
        stock.load('ours')
        assert same(state(stock), state(learn))
    plain = torch.load(file, weights_only=True)
    assert plain.keys() == learn.model.state_dict().keys()
    deepcopy(learn.model).load_state_dict(plain)
    if hasattr(learn.loss_func, 'thresh'): learn.loss_func.thresh = .25
    with torch.no_grad():
        for p in stock.model.parameters(): p.add_(.01)
    learn.load(stock.save('theirs'))
    assert same(state(stock), state(learn)) and getattr(learn.loss_func, 'thresh', .25) == .25

@pytest.mark.filterwarnings("ignore:Saved file doesn't contain")
def test_a_loss_of_fastai_keeps_its_threshold_too(shapes, tmp_path):
    dls = multilabel_dls(shapes[:8], size=32, bs=4, num_workers=0, device='cpu', path=tmp_path)
    a,b = (multilabel_learner(dls, 'test_resnet', pretrained=False, loss_func=BCEWithLogitsLossFlat()) for _ in 'ab')
    a.loss_func.thresh = .2
    assert b.load(a.save('x')).loss_func.thresh == .2

@pytest.mark.train
def test_an_export_that_fails_leaves_the_learner_whole(learn, tmp_path):
    learn.fit(1, 1e-4)
    (tmp_path/'file').write_text('')
    dls,opt,n = learn.dls,learn.opt,len(learn.dls.train_ds)
    with pytest.raises(OSError, match="e.pkl cannot be written"): learn.export(tmp_path/'file'/'e.pkl')
    class Broken:
        def __getattr__(self, k): raise RuntimeError("the disk is full")
    with pytest.raises(OSError, match="m.pkl cannot be written: .*the disk is full"):
        learn.export('m.pkl', pickle_module=Broken())
    assert learn.dls is dls and learn.opt is opt and len(learn.dls.train_ds) == n
    assert not [p for p in tmp_path.iterdir() if 'pkl' in p.name]
    learn.fit(1, 1e-4)
    assert len(learn.recorder.losses) == 2

def test_an_export_makes_its_folder_and_keeps_what_is_frozen(learn, tmp_path):
    learn.freeze()
    opt = learn.opt
    learn.export('a/b/e.pkl')
    assert (tmp_path/'a'/'b'/'e.pkl').is_file() and learn.opt is opt and learn.opt.frozen_idx == len(opt.param_lists)-1
    old = (tmp_path/'a'/'b'/'e.pkl').read_bytes()
    class Broken:
        def __getattr__(self, k): raise RuntimeError("the disk is full")
    with pytest.raises(OSError): learn.export('a/b/e.pkl', pickle_module=Broken())
    assert (tmp_path/'a'/'b'/'e.pkl').read_bytes() == old and len(list((tmp_path/'a'/'b').iterdir())) == 1

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

# --- fastai's callbacks with their defaults

class FakeWriter:
    """In place of tensorboard's `SummaryWriter`, which need not be installed: it traces the graph and draws the figures
    as that does, and writes nothing"""
    figures,scalars = 0,0
    def __init__(self, log_dir=None): pass
    def add_graph(self, model, *inputs):
        mode = model.training
        try: torch.jit.trace(model.eval(), inputs, strict=False)
        finally: model.train(mode)
    def add_scalar(self, name, value, step): FakeWriter.scalars += np.isfinite(float(value))
    def add_figure(self, name, fig, step):
        fig.canvas.draw()
        FakeWriter.figures += any(ax.images for ax in fig.axes)
    def close(self): pass

@pytest.fixture
def tensorboard(monkeypatch):
    fake = types.ModuleType('torch.utils.tensorboard')
    fake.SummaryWriter = FakeWriter
    monkeypatch.setitem(sys.modules, 'tensorboard', types.ModuleType('tensorboard'))
    monkeypatch.setitem(sys.modules, 'torch.utils.tensorboard', fake)
    import fastai.callback.tensorboard as module
    monkeypatch.setattr(module, 'SummaryWriter', FakeWriter)
    FakeWriter.figures = FakeWriter.scalars = 0
    return module

@pytest.mark.train
@pytest.mark.filterwarnings('ignore::torch.jit.TracerWarning', 'ignore:.torch.jit.trace:FutureWarning',
                            'ignore:To copy construct from a tensor')     # a trace is only drawn
def test_tensorboard_logs_every_epoch(learn, tensorboard):
    learn.fit(2, 1e-4, cbs=tensorboard.TensorBoardCallback())
    assert len(learn.recorder.values) == 2 and FakeWriter.figures == 2 and FakeWriter.scalars > 4

ALL = {k: o for k,o in sorted(vars(callbacks).items()) if inspect.isclass(o) and issubclass(o, Callback)}
# these fail in fastai itself, on any learner, or are no callbacks to be added with their defaults
SKIPPED = dict(
    GatherPredsCallback="for `get_preds`: it expects to be set up by a validation before it sees a batch",
    ModelResetter="for recurrent nets: it calls `model.reset`",
    RNNCallback="for recurrent nets: it expects three outputs",
    ParamScheduler="has no defaults: it needs schedules",
    ModelToHalf="for `to_non_native_fp16`, which needs a GPU", NonNativeMixedPrecision="needs a GPU")
MIXING = 'MixHandler','MixUp','CutMix'

# One task for each kind of batch and loss: one tensor of targets; several; a net that computes its losses by itself
KINDS_OF_LOSS = 'multilabel','localization','detection'

@pytest.mark.train
@pytest.mark.parametrize('task', [pytest.param(t, marks=[] if t.name in KINDS_OF_LOSS else pytest.mark.slow)
                                  for t in TASKS], ids=repr, indirect=True)
@pytest.mark.parametrize('name', ALL)
def test_every_callback_of_fastai_runs_with_its_defaults(task, made, tmp_path, name, capsys):
    "The tasks that are slow have batches and losses of the kind of one that is not"
    if name in SKIPPED: pytest.skip(SKIPPED[name])
    learn = pickle.loads(made)
    learn.path = tmp_path
    if name == 'MixHandler' and task.name == 'classification': pytest.skip('the base class: it mixes nothing itself')
    if name in MIXING and task.name not in ('multilabel', 'classification'):
        with pytest.raises(ValueError, match="cannot follow"): learn.fit(1, 1e-4, cbs=ALL[name]())
        return
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')        # no GPU for mixed precision
        learn.fit(2, 1e-4, cbs=ALL[name]())
    assert len(learn.recorder.values) == 2 and np.isfinite([v[0] for v in learn.recorder.values if v]).all()
    assert learn.validate()[0] > 0

def test_results_that_are_not_drawn_are_what_fastai_returns(task, learn):
    b = learn.dls.valid.one_batch()
    _,_,out = learn.get_preds(dl=[b], with_decoded=True)
    x,y,samples,outs = learn.dls.valid.show_results(b, out, show=False, max_n=3)
    assert x.shape == b[0].shape and len(samples) == len(outs) == 3
    assert all(len(s) == len(b) for s in samples) and all(isinstance(o, tuple) for o in outs)
