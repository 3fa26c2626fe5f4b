"Every verb on every task. A new task joins with one line in TASKS"
import inspect, pickle, warnings
from dataclasses import dataclass, field, replace
import numpy as np, pandas as pd, pytest, torch
from fastcore.basics import tuplify
from fastai.vision.all import (CSVLogger, EarlyStoppingCallback, GradientAccumulation, GradientClip, Interpretation,
                               TensorImage,
                               Normalize, SaveModelCallback, load_learner, set_seed)
from PIL import Image
from torch import Tensor
from vision_tasks.classification import classification_dls, classification_learner
from vision_tasks.data.annotation import Annotation
from vision_tasks.data.synthetic import SHAPE_CODES, SHAPE_FLIP_PAIRS, SHAPE_POINTS
from vision_tasks.detection import detection_dls, detection_learner
from vision_tasks.instance import instance_dls, instance_learner
from vision_tasks.data.crops import crop_instances
from vision_tasks.keypoint import keypoint_dls, keypoint_learner
from vision_tasks.training.learner import TaskLearner
from vision_tasks.localization import largest_object, localization_dls, localization_learner
from vision_tasks.multilabel import multilabel_dls, multilabel_learner
from vision_tasks.segmentation import segmentation_dls, segmentation_learner

pytestmark = pytest.mark.train      # nearly all look at a learner that was trained a little

@dataclass
class Task:
    name:str
    dls:callable                # annotations -> DataLoaders
    learner:callable            # dls -> TaskLearner
    score:str                   # the name of the score, in [0, 1], that `evaluate` is about
    anns:callable = list        # drawn shapes -> at least 32 annotations as the task takes them, some without objects
    count:callable = len        # annotation -> what it adds to the column n of `evaluate_per_class`
    data:dict = field(default_factory=dict)      # options of the dls
    options:dict = field(default_factory=dict)   # of the learner
    without:tuple = ()         # of 'thresh', 'tta': what `annotate` does not take
    raises:dict = field(default_factory=dict)    # 'tta', 'tune' where they make no sense; what they then say
    still:float = 0.            # share of the head's parameters that a step may leave as they are: where nothing was
    epochs:int = 2              # after which the answers differ from picture to picture
    lr:float = 5e-3             # of these epochs
    def __repr__(self): return self.name
    def make_dls(self, anns, **kw): return self.dls(anns, **{**dict(num_workers=0, device='cpu'), **self.data, **kw})
    def make(self, anns, path, size=64, bs=8, **kw):
        set_seed(0)
        return self.make_learner(self.make_dls(anns, size=size, bs=bs, path=path), **kw)
    def make_learner(self, dls, **kw):
        return self.learner(dls, **{**dict(arch='shufflenet_v2_x0_5', pretrained=False), **self.options, **kw})
    def thresh(self, v): return {} if 'thresh' in self.without else dict(thresh=v)

def masked(shapes):
    "The shapes' class masks alone"
    return [Annotation(a.path, a.size, mask=a.mask) for a in shapes]

def boxed(shapes):
    "The shapes' boxes alone"
    return [Annotation(a.path, a.size, a.labels, a.bboxes) for a in shapes]

def outlined(shapes):
    "The shapes' boxes and masks alone"
    return [Annotation(a.path, a.size, a.labels, a.bboxes, masks=a.masks) for a in shapes]

# fewer regions than torchvision looks at, which its nets for 800 pixels have to spare
SMALL_RCNN = dict(width=.125, rpn_pre_nms_top_n_train=60, rpn_post_nms_top_n_train=12, rpn_pre_nms_top_n_test=60,
                  rpn_post_nms_top_n_test=12, box_batch_size_per_image=8, max_dets=10)

def pointed(shapes):
    "The shapes one by one, with their points; and pictures of none, whose points are not marked"
    one = [replace(a, bboxes=None, labels=[], masks=None, mask=None, points=a.points[0], visible=None)
           for a in crop_instances(shapes, shapes[0].path.parent.parent/'crops', pad=.3)]
    none = [Annotation(a.path, a.size, points=np.full((5, 2), np.nan)) for a in shapes if not a.labels]
    return [*none, *one][:40]

def one_class(shapes):
    "The class of the largest shape alone; images of none are a class of their own"
    return [Annotation(a.path, a.size, a.labels or ['nothing']) for a in largest_object(shapes)]

TASKS = [
    Task('multilabel', multilabel_dls, multilabel_learner, 'map_macro', count=lambda a: len(set(a.labels)), epochs=8),
    Task('classification', classification_dls, classification_learner, 'accuracy', one_class, lambda a: 1,
         options=dict(arch='test_resnet'), epochs=4),
    Task('keypoint', keypoint_dls, keypoint_learner, 'pck@.05', pointed, lambda a: (~np.isnan(a.points[:,0])).sum(),
         dict(vocab=SHAPE_POINTS, flip_pairs=SHAPE_FLIP_PAIRS),
         without=('thresh',), raises=dict(tune="no threshold to tune")),
    Task('localization', localization_dls, localization_learner, 'mean_iou', largest_object, lambda a: 1,
         options=dict(arch='test_resnet'), raises=dict(tune="no threshold to tune"), epochs=15),
    Task('segmentation', segmentation_dls, segmentation_learner, 'miou', masked, lambda a: a.size[0]*a.size[1],
         dict(vocab=SHAPE_CODES), dict(arch='lraspp', encoder='test_resnet', arch_kwargs=dict(stride=32)),
         ('thresh',), dict(tune="no threshold to tune"), epochs=25, lr=1e-2),
    Task('detection', detection_dls, detection_learner, 'map', boxed, lambda a: len(a.labels),
         options=dict(arch='ssdlite', encoder='test_resnet'), without=('tta',), raises=dict(tta="have no average"),
         still=.2, epochs=15),
    Task('instance', instance_dls, instance_learner, 'map_segm', outlined, lambda a: len(a.labels),
         options=dict(arch='mask_rcnn', encoder='test_resnet', arch_kwargs=SMALL_RCNN),
         without=('tta',), raises=dict(tta="have no average"), still=.6, epochs=6),
]

@pytest.fixture(scope='module', params=TASKS, ids=repr)
def task(request): return request.param

@pytest.fixture(scope='module')
def anns(task, shapes): return task.anns(shapes)

@pytest.fixture(scope='module')
def trained(task, anns, tmp_path_factory):
    "A learner after a little training"
    learn = task.make(anns, tmp_path_factory.mktemp(task.name))
    # whatever the recipe says
    with learn.no_bar(), learn.no_logging(): learn.fine_tune(task.epochs, task.lr, freeze_epochs=1, lr_mult=2.)
    return learn

@pytest.fixture(scope='module')
def stored(trained): return pickle.dumps(trained)

@pytest.fixture
def learn(stored):
    "A silent copy of it with its data, for the test to change"
    learn = pickle.loads(stored)
    with learn.no_bar(), learn.no_logging(): yield learn

def test_a_learner_without_outputs_is_refused(task, anns):
    "0 is a number of classes, not the word for as many as the vocab has"
    dls = task.make_dls(anns, size=64, bs=8)
    for n in (0, -1, 2.5):
        with pytest.raises(ValueError, match=f"n_out: expected the number of classes .*, got {n}"):
            task.make_learner(dls, n_out=n)

def state(learn): return {k: v.clone() for k,v in learn.model.state_dict().items()}
def same(a, b): return all(torch.equal(a[k], b[k]) for k in a)
def probs(learn, **kw): return learn.get_preds(reorder=True, **kw)[0]
def equal(a, b):
    "Whether two annotations say the same of the same file"
    close = lambda k, atol: (x := getattr(a, k)) is (y := getattr(b, k)) or np.allclose(x, y, atol=atol)
    return (a.path == b.path and a.labels == b.labels and close('scores', 1e-5) and close('bboxes', 1e-2)
            and close('points', 1e-2) and (a.mask is b.mask or (a.mask != b.mask).mean() < 1e-3))

def test_fine_tune_trains_the_head_first_and_then_all(task, anns, tmp_path):
    learn = task.make(anns, tmp_path)
    assert isinstance(learn, TaskLearner) and len(learn.splitter(learn.model)) in (2, 3)   # ResNets are two
    n = sum(p.numel() for g in learn.splitter(learn.model) for p in g)
    assert n == sum(p.numel() for p in learn.model.parameters())
    with learn.no_bar(), learn.no_logging():
        before = state(learn)
        learn.freeze(); learn.fit(1, 1e-2)
        after = state(learn)
        frozen = [k for k,p in learn.model.named_parameters() if not p.requires_grad]
        head = [k for k,_ in learn.model.named_parameters() if not k.startswith('encoder')]
        assert frozen and all(torch.equal(before[k], after[k]) for k in frozen)
        assert sum(torch.equal(before[k], after[k]) for k in head) <= task.still*len(head)
        learn.fine_tune(1, 1e-3)
    assert all(p.requires_grad for p in learn.model.parameters())
    assert not any(torch.equal(after[k], v) for k,v in state(learn).items() if k in frozen)
    assert np.isfinite([v[0] for v in learn.recorder.values]).all()

def test_fine_tune_trains_the_encoder_at_the_rate_that_suits_the_task(task, anns, tmp_path):
    learn = task.make(anns, tmp_path)
    with learn.no_bar(), learn.no_logging():
        for kw,mult in ((dict(), learn.recipe.lr_mult), (dict(lr_mult=7.), 7.)):
            learn.fine_tune(1, 1e-3, **kw)
            first,*_,last = (h['lr'] for h in learn.opt.hypers)
            assert last/first == pytest.approx(mult)

def test_fit_one_cycle_with_callbacks(task, learn, tmp_path):
    learn.path = tmp_path
    cbs = [GradientAccumulation(8), GradientClip(1.), SaveModelCallback(monitor='valid_loss'),
           EarlyStoppingCallback(monitor=task.score), CSVLogger()]
    learn.fit_one_cycle(2, 1e-3, cbs=cbs)
    assert (tmp_path/'models'/'model.pth').exists() and len(pd.read_csv(tmp_path/'history.csv')) >= 1

def test_lr_find_suggests_and_leaves_the_weights_alone(learn):
    before = state(learn)
    found = learn.lr_find(num_it=25, show_plot=False)
    assert 1e-7 < found.valley < 10 and 1e-7 < found.steepest < 10 and same(before, state(learn))
    assert found.recipe == learn.recipe.base_lr and found.steps == len(learn.recorder.lrs) <= 25

def test_validate_gives_a_loss_and_changes_nothing(learn):
    before = state(learn)
    a,b = learn.validate(),learn.validate()
    assert len(a) == 1 + len(learn.metrics) and np.isfinite(a[0]) and list(a) == list(b) and same(before, state(learn))

def test_evaluate_names_its_scores_and_agrees_with_validate(task, learn):
    scores = learn.evaluate()
    assert {'valid_loss', task.score, *(m.name for m in learn.metrics)} <= set(scores)
    assert all(isinstance(v, float) for v in scores.values())
    names = 'valid_loss',*(m.name for m in learn.metrics)
    assert [scores[k] for k in names] == pytest.approx(list(learn.validate()), rel=1e-4)
    assert learn.evaluate(ds_idx=0)['valid_loss'] > 0
    df = learn.evaluate_per_class()
    assert [o for o in df.label if o != '#na#'] == [o for o in learn.dls.vocab if o != '#na#'] and df.n.sum() > 0

def test_evaluate_takes_other_annotations(task, learn, anns):
    dl = learn.dls.test_dl(anns[:5], with_labels=True)
    assert 0 <= learn.evaluate(dl=dl)[task.score] <= 1
    assert learn.evaluate_per_class(dl=dl).n.sum() == sum(map(task.count, anns[:5]))

def test_get_preds_with_everything(task, learn):
    n = len(learn.dls.valid_ds)
    x,p,t,d,l = learn.get_preds(with_input=True, with_decoded=True, with_loss=True)
    assert {len(o) for k in (x, p, t, d, l) for o in tuplify(k)} == {n} and l.isfinite().all()
    one = learn.dls.valid.new(bs=1) if task.name in ('detection', 'instance') else None  # whose loss is over objects
    assert l.mean().item() == pytest.approx(learn.validate(dl=one)[0], rel=1e-3)

def test_predict_takes_every_kind_of_picture(task, learn, anns):
    a = anns[1]
    px = np.asarray(Image.open(a.path).convert('RGB'))
    preds = [learn.predict(o) for o in (a, a.path, str(a.path), Image.open(a.path), px)]
    for pred,_,raw in preds:
        assert equal(replace(pred, path=None), replace(preds[0][0], path=None))
        torch.testing.assert_close(raw, preds[0][2], atol=1e-5, rtol=0)
    assert equal(preds[0][0], learn.annotate(a)[0])
    x,*same = learn.predict(a, with_input=True)
    assert isinstance(x, TensorImage) and x.shape == (3, 64, 64) and 0 <= x.min() and 2 < x.max() <= 255
    torch.testing.assert_close(same[1:], list(preds[0][1:]))

def test_annotate_answers_in_order_whatever_the_batch_size_and_the_kind_of_item(task, learn, anns):
    some,low = [anns[i] for i in (5, 1, 9, 2, 30)],task.thresh(.1)
    first = learn.annotate(some, **low)
    assert all(isinstance(o, Annotation) for o in first) and [o.path for o in first] == [o.path for o in some]
    assert any(o.labels or o.points is not None or len(np.unique(o.mask)) > 1 for o in first)
    for bs in (1, 2, 64): assert all(map(equal, first, learn.annotate(some, bs=bs, **low)))
    assert all(map(equal, first, learn.annotate([str(o.path) for o in some], **low)))
    opened = [Image.open(o.path) for o in some]
    assert all(equal(a, replace(b, path=a.path)) for a,b in zip(first, learn.annotate(opened, **low)))
    assert equal(learn.annotate(some[0], **low)[0], first[0]) and learn.annotate([]) == []
    for o,a in zip(first, some):
        assert set(o.labels) <= set(learn.dls.vocab) and '#na#' not in o.labels and o.size == a.size
        for b in (o.bboxes, o.points):
            if b is not None: assert (b >= 0).all() and (b.reshape(-1, 2) <= a.size).all()
        if low: assert (o.scores > .1).all()
    if low: assert not any(o.labels for o in learn.annotate(some, thresh=1.))

def test_a_folder_is_not_a_picture(learn, anns):
    with pytest.raises(ValueError, match="is a folder; pass its images: get_image_files"):
        learn.annotate(anns[0].path.parent)

def mirrored(a, learn):
    "`a` as seen in a mirror"
    w,kw = a.size[0],{}
    if a.bboxes is not None: kw['bboxes'] = np.abs(a.bboxes[:,[2, 1, 0, 3]] - [w, 0, w, 0])
    if a.mask is not None: kw['mask'] = a.mask[:,::-1]
    if a.points is not None:
        swap = list(range(len(a.points)))
        for l,r in learn.dls.flip_pairs: swap[l],swap[r] = r,l
        kw['points'] = a.points[swap]*[-1, 1] + [w, 0]
    return replace(a, **kw)

def test_annotate_with_tta_does_not_depend_on_mirroring(task, learn, anns):
    if 'tta' in task.without: return
    px = np.asarray(Image.open(anns[1].path).convert('RGB'))
    low = task.thresh(0.)
    a,b = learn.annotate([px, px[:,::-1].copy()], tta=True, **low)
    assert equal(a, mirrored(b, learn))
    assert not equal(a, learn.annotate(px, **low)[0])

def test_annotate_has_the_parameters_of_its_task_only(task, learn):
    names = {*inspect.signature(learn.annotate).parameters}
    every = {'items', 'bs', 'thresh', 'tta', 'tile', 'scale', 'postprocess', 'masks'}
    assert {'items', 'bs'} <= names <= every - {*task.without}
    assert ('tile' in names) == (task.name == 'segmentation') and ('masks' in names) == (task.name == 'instance')

def test_a_tuned_threshold_reaches_annotate_metrics_and_the_exported_learner(task, learn, anns, tmp_path):
    if 'tune' in task.raises:
        with pytest.raises(ValueError, match=task.raises['tune']): learn.tune_threshold()
        return
    for per_class in (False, True):
        thresh,best = learn.tune_threshold(per_class=per_class)
        assert learn.annotate(anns, bs=7) is not None
        said = learn.annotate(anns[:8])
        assert all(map(equal, said, learn.annotate(anns[:8], thresh=thresh)))
        learn.export(tmp_path/'l.pkl')
        loaded = load_learner(tmp_path/'l.pkl')
        with loaded.no_bar(): assert all(map(equal, said, loaded.annotate(anns[:8])))

def test_an_exported_learner_predicts_the_same_and_says_that_it_has_no_data(learn, anns, tmp_path):
    learn.export(tmp_path/'l.pkl')
    loaded = load_learner(tmp_path/'l.pkl')
    with loaded.no_bar(), loaded.no_logging():
        torch.testing.assert_close(loaded.predict(anns[3])[2], learn.predict(anns[3])[2])
        with pytest.raises(ValueError, match="an exported learner leaves its data behind"): loaded.evaluate()
        scores = loaded.evaluate(dl=loaded.dls.test_dl(anns, with_labels=True))
    again = learn.evaluate(dl=learn.dls.test_dl(anns, with_labels=True))
    assert scores['valid_loss'] == pytest.approx(again['valid_loss'], rel=1e-4)

def test_save_and_load_bring_the_weights_back(task, learn, anns, tmp_path):
    learn.path = tmp_path
    file,before = learn.save('weights'),state(learn)
    learn.fit(1, 1e-2)
    assert not same(before, state(learn))
    assert same(before, state(learn.load('weights'))) and same(before, state(learn.load(file)))
    assert same(before, state(task.make(anns, tmp_path).load(file)))

def test_pictures_are_drawn(learn):
    import matplotlib.pyplot as plt
    for draw in (lambda: learn.dls.show_batch(max_n=4), lambda: learn.dls.train.show_batch(max_n=3, unique=True),
                 lambda: learn.show_results(max_n=4),
                 lambda: learn.plot_top_losses(4), lambda: learn.plot_top_losses(100)):
        plt.close('all'); draw()
        fig = plt.gcf(); fig.canvas.draw()
        assert len(fig.axes) >= 3 and np.asarray(fig.canvas.buffer_rgba()).std() > 5

def test_interpretation_finds_the_same_top_losses(learn):
    interp = Interpretation.from_learner(learn)
    losses,idxs = interp.top_losses(3)
    each = learn.get_preds(with_loss=True)[2]
    torch.testing.assert_close(losses, each.topk(3).values)
    interp.plot_top_losses(3); interp.show_results([0, 1])

def test_stock_tta_runs_or_says_what_to_use(task, learn):
    if task.name in ('multilabel', 'classification'): assert learn.tta(n=2)[0].shape == learn.get_preds()[0].shape
    else:
        with pytest.raises(ValueError, match=task.raises.get('tta', r"use annotate\(items, tta=True\)")): learn.tta()

def test_summary_counts_the_parameters(learn):
    assert f"{sum(p.numel() for p in learn.model.parameters()):,}" in str(learn.summary())

def test_mixed_precision_is_harmless_on_a_cpu(learn):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        for l in (learn.to_fp16(), learn.to_fp32(), learn.to_bf16()):
            l.fit(1, 1e-4); assert np.isfinite(l.recorder.values[-1][0])

def test_batches_of_one_of_pictures_without_objects_and_odd_sizes_are_ordinary(task, anns, tmp_path):
    nothing = lambda a: not a.labels and (a.points is None or np.isnan(a.points).all())
    empty,full = [a for a in anns if nothing(a)][:2],[a for a in anns if not nothing(a)][:3]
    some = [replace(a, split=s) for a,s in zip([*empty, *full], ('train', 'valid', 'train', 'train', 'valid'))]
    for size,bs in (((65, 47), 3), (64, 2)):
        learn = task.make(some, tmp_path, size=size, bs=bs)
        with learn.no_bar(), learn.no_logging():
            learn.fit(1, 1e-4)
            if empty: assert np.isfinite(learn.validate(dl=learn.dls.test_dl(empty, with_labels=True))[0])
            assert len(learn.annotate(empty)) == len(empty)
            assert np.isfinite(learn.validate(dl=learn.dls.valid.new(bs=1))[0])

def test_worker_processes_give_the_same_data(task, anns, tmp_path):
    a,b = (task.make_dls(anns, size=32, bs=8, num_workers=n, path=tmp_path).valid for n in (0, 2))
    same = lambda i, j: torch.equal(i.as_subclass(Tensor).nan_to_num(-9.), j.as_subclass(Tensor).nan_to_num(-9.))
    for x,y in zip(a, b): assert all(map(same, x, y))

def test_an_old_normalize_is_replaced_and_twice_is_once(task, anns, tmp_path):
    learn = task.make(anns, tmp_path)
    x = learn.dls.valid.one_batch()[0]
    again = task.make_learner(learn.dls)
    assert torch.equal(again.dls.valid.one_batch()[0], x)
    assert sum(isinstance(o, Normalize) for o in again.dls.train.after_batch.fs) <= 1

@pytest.mark.cuda
@pytest.mark.parametrize('precision', ['to_fp32', 'to_fp16', 'to_bf16'])
def test_on_a_gpu_it_trains_tunes_exports_and_loads_on_a_cpu(task, anns, tmp_path, precision):
    if not torch.cuda.is_available(): pytest.skip('needs a GPU')
    set_seed(0)
    dls = task.make_dls(anns, size=64, bs=8, num_workers=2, path=tmp_path, device='cuda')
    learn = getattr(task.make_learner(dls), precision)()
    with learn.no_bar(), learn.no_logging():
        assert 1e-7 < learn.lr_find(num_it=25, show_plot=False).valley < 10
        learn.fine_tune(2, 1e-3)
        assert next(learn.model.parameters()).is_cuda and np.isfinite(learn.evaluate()['valid_loss'])
        if 'tune' not in task.raises: learn.tune_threshold(per_class=True)
        said,p = learn.annotate(anns[:8]),learn.predict(anns[0])[2]
        assert len(learn.evaluate_per_class())
        assert len(learn.annotate(anns[:3], tta='tta' not in task.raises, **task.thresh(.2))) == 3
        learn.export(tmp_path/'l.pkl')
    loaded = load_learner(tmp_path/'l.pkl', cpu=True)
    with loaded.no_bar():
        assert not next(loaded.model.parameters()).is_cuda
        torch.testing.assert_close(loaded.predict(anns[0])[2], p, atol=.02, rtol=.05)
        again = loaded.annotate(anns[:8])
        assert sum(a.labels == b.labels for a,b in zip(said, again)) >= 7
        for a,b in zip(said, again):   # in pixels, of pictures of 64
            if a.points is not None: np.testing.assert_allclose(a.points, b.points, atol=1.)
