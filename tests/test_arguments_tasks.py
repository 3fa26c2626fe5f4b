"The argument matrix of blocks, DataLoaders, learners and their methods"
import pickle
from functools import partial
from importlib import import_module
import matplotlib.pyplot as plt
import pytest, torch
from bad_arguments import (BAD, FEW, anything, assert_no_faults, either, flag, names, never, number, one_of, path,
                           table, whole)
from test_tasks import TASKS
from vision_tasks.detection import fit_anchors
from vision_tasks.training.build import parameter_groups
from vision_tasks.training.files import load_learner
from vision_tasks.training.learner import TaskLearner
from vision_tasks.training.recipes import Recipe
from vision_tasks.segmentation import AuxLoss

pytestmark = [pytest.mark.filterwarnings('ignore'), pytest.mark.usefixtures('closed_figures')]
EMPTY = lambda v: isinstance(v, (list, torch.Tensor)) and len(v) == 0

@pytest.fixture
def closed_figures():
    yield
    plt.close('all')

# what makes sense for the names of this file
ACCEPTS = dict(
    splitter=one_of(None), item_tfms=either(EMPTY, one_of(None)), batch_tfms=either(EMPTY, one_of(None)),
    device=never, check=flag, empty=one_of('class', 'raise'),
    flip_pairs=one_of(None, []), skeleton=one_of(None, []), proposals=never,
    encoder=never, pretrained=either(flag, path), arch_kwargs=one_of({}), loss_func=never,
    metrics=EMPTY, normalize=one_of(None, True, False), cbs=EMPTY, aux_weight=number(0),
    n_epoch=whole(1), epochs=whole(1), base_lr=number(1e-300, 1e6), freeze_epochs=whole(0), lr_mult=number(1e-300),
    pct_start=number(0, 1), div=number(1e-300), div_final=number(1e-300), wd=either(number(0), one_of(None)),
    reset_opt=flag,
    grid=one_of({}), backend=never, grad_clip=number(0), ema=one_of(0., .9),
    start_epoch=whole(0), lr=either(number(0), one_of((1, 2, 3))), lr_max=number(0), start_lr=number(1e-300, 1e6),
    end_lr=number(1e-300, 1e6),
    num_it=whole(1), stop_div=flag, show_plot=flag, ds_idx=one_of(0, 1), dl=either(one_of(None)), thresh=number(0, 1),
    tile=whole(16), tta=flag, postprocess=never, scale=number(1e-300, 100), items=one_of([], {}), with_input=flag,
    rm_type_tfms=anything, max_n=whole(1), shuffle=flag, k=whole(1), largest=flag, normalize_=flag, ax=never,
    method=one_of('pad', 'squish'), levels=whole(1), sizes=whole(1), ratios=whole(1), weight=number(0), model_dir=path,
    opt_func=never, wd_bn_bias=flag, train_bn=flag, default_cbs=flag, n=whole(1), by=number(1e-9, 1e9),
    n_bins=whole(1), masks=one_of('rle', 'polygons'), fname=path, score=one_of('f1', 'fbeta', None), file=path,
    path=either(path, one_of(None)), cpu=flag, mean=one_of((1, 2, 3)), std=one_of((1, 2, 3)),
    **{'segmentation_dls.vocab': either(names, table)})

@pytest.fixture(scope='module', params=TASKS, ids=repr)
def task(request): return request.param

@pytest.fixture(scope='module')
def anns(task, shapes): return task.anns(shapes)[:12]

@pytest.fixture(scope='module')
def made(task, anns, tmp_path_factory):
    learn = task.make(anns, tmp_path_factory.mktemp(task.name), size=32, bs=4)
    return pickle.dumps(learn)

def dls_calls(task, anns, folder):
    "{name: () -> (function, arguments)} of the blocks and the DataLoaders"
    shared = dict(size=32, splitter=None, item_tfms=None, batch_tfms=None)
    block = getattr(import_module(f'vision_tasks.{task.name}'), f'{task.name}_block')
    named = dict(vocab=task.data.get('vocab', ['a', 'b']))
    own = {'keypoint': dict(flip_pairs=None, skeleton=None), 'detection': dict(proposals=None)}.get(task.name, {})
    dls = dict(annotations=anns, bs=4, path=folder, valid_pct=.5, seed=1, num_workers=0, device='cpu', check=False,
               **shared, **{k: v for k,v in task.data.items() if k == 'vocab'}, **own)
    dls.setdefault('vocab', None)
    if task.name == 'localization': dls['empty'] = 'class'
    return {block.__name__: lambda: (block, {**named, **shared, **own}),
            task.dls.__name__: lambda: (task.dls, dict(dls))}

def learner_calls(task, anns, folder):
    dls = task.make_dls(anns, size=32, bs=4, path=folder)
    kw = dict(arch=None, encoder=None, n_out=None, arch_kwargs=None, loss_func=None, metrics=None,
              splitter=None, normalize=True, cbs=None, lr=1e-3, wd=.1, moms=(.9, .8, .9), path=folder, model_dir='m',
              wd_bn_bias=False, train_bn=True)
    if task.name == 'keypoint': kw['by'] = 'diagonal'
    if task.name == 'segmentation': kw['aux_weight'] = .5
    kw.update(dict(arch='shufflenet_v2_x0_5') | task.options)
    # not `pretrained=True`, for which there is no network
    make = partial(task.learner, pretrained=False)
    return {task.learner.__name__: lambda: (make, dict(dls=dls, **kw))}

def method_calls(task, anns, made):
    "Of a learner's methods; what trains does so for no longer than it must"
    def learn():
        l = pickle.loads(made)
        l.remove_cbs([cb for cb in l.cbs if type(cb).__name__ == 'ProgressCallback'])
        l.logger = lambda *_: None
        return l
    def of(name, **kw): return lambda: (getattr(learn(), name), kw)
    calls = dict(
        fit=of('fit', n_epoch=1, lr=1e-4, wd=.1, cbs=None, reset_opt=False, start_epoch=1),
        fit_one_cycle=of('fit_one_cycle', n_epoch=1, lr_max=1e-4, div=25., div_final=1e5, pct_start=.3, wd=None,
                         moms=None, cbs=None, reset_opt=False, start_epoch=1),
        fine_tune=of('fine_tune', epochs=1, base_lr=1e-4, freeze_epochs=0, lr_mult=2., pct_start=.3, div=5.,
                     div_final=1e5, wd=None, moms=None, cbs=None, reset_opt=False, start_epoch=1),
        lr_find=of('lr_find', start_lr=1e-5, end_lr=1e-4, num_it=10, stop_div=True, show_plot=False),
        evaluate=of('evaluate', ds_idx=1, dl=anns[:1]), validate=of('validate', ds_idx=1),
        evaluate_per_class=of('evaluate_per_class', ds_idx=1, dl=anns[:2]),
        annotate=of('annotate', items=anns[:1], bs=1, **task.thresh(.5)),
        predict=of('predict', item=anns[0].path, with_input=False),
        show_results=of('show_results', ds_idx=1, dl=anns[:1], max_n=1, shuffle=False),
        plot_top_losses=of('plot_top_losses', k=1, ds_idx=1, dl=anns[:2], largest=True),
        compile=of('compile', backend='eager'),
        get_preds=of('get_preds', ds_idx=1), export=of('export', fname='learner.pkl'), save=of('save', file='model'))
    if task.name == 'segmentation':
        calls['annotate'] = of('annotate', items=anns[:1], bs=1, tta=False, tile=16, scale=1., postprocess=None)
        calls['tune_crf'] = of('tune_crf', grid=dict(w1=[1.], n_iter=[1]), ds_idx=1, n=1)
    if task.name == 'instance':
        calls['annotate'] = of('annotate', items=anns[:1], thresh=.5, bs=1, masks='rle')
    if task.name == 'keypoint':
        calls['evaluate_per_point'] = of('evaluate_per_point', ds_idx=1, dl=anns[:2], by='diagonal', thresh=.1)
    if task.name in ('detection', 'instance'):
        calls['tune_threshold'] = of('tune_threshold', score='f1', per_class=False, ds_idx=1, dl=anns[:2], beta=1.,
                                     iou=.5)
        calls['confusion'] = of('confusion', ds_idx=1, dl=anns[:2], iou=.5, thresh=.5)
    if task.name == 'classification':
        one = dict(ds_idx=1, dl=anns[:4])
        calls.update({k: of(k, **one, **kw) for k,kw in dict(
            tune_threshold=dict(score='f1', per_class=False), calibrate={}, calibration_error=dict(n_bins=4),
            plot_reliability={}, confusion={}, coverage_curve={}, plot_coverage=dict(ax=None)).items()})
        calls['annotate'] = of('annotate', items=anns[:1], thresh=.5, bs=1, tta=False)
    if task.name == 'multilabel':
        one = dict(ds_idx=1, dl=anns[:4])
        calls.update({k: of(k, **one, **kw) for k,kw in dict(
            tune_threshold=dict(score='f1', per_class=False),
            bootstrap_threshold=dict(score='f1', per_class=False, n=5),
            calibrate=dict(per_class=False), sweep_thresholds={}, plot_thresholds=dict(score='f1'),
            plot_reliability={}, confusion={}, confusion_per_class={}, plot_confusion=dict(ax=None),
            plot_confusion_per_class=dict(ncols=2)).items()})
        calls['annotate'] = of('annotate', items=anns[:1], thresh=.5, bs=1, tta=False)
    if task.name in ('classification', 'localization', 'segmentation', 'detection', 'instance'):
        calls['plot_confusion'] = of('plot_confusion', ds_idx=1, dl=anns[:2], normalize=True, ax=None)
    return calls

NORMALIZE = {'plot_confusion.normalize': flag}

def test_every_public_name_of_the_tasks_is_in_the_matrix():
    modules = [import_module(f'vision_tasks.{m}') for m in (*map(repr, TASKS), 'training.learner', 'training.build',
                                                           'training.files', 'training.recipes')]
    public = {n for m in modules for n in m.__all__}
    made = {f'{t!r}_{o}' for t in TASKS for o in ('block', 'dls', 'learner')}
    learners = {n for n in public if n.endswith('Learner')}          # made by these; `TaskLearner` stands for all
    shared = {'fit_anchors', 'AuxLoss', 'parameter_groups', 'load_learner', 'Recipe', 'Saving'}
    data = {'largest_object'}                                        # in test_arguments_data
    assert public == made | learners | shared | data | {'EncoderHead'}   # which takes what `task_model` gives it

def values(slow): return BAD if slow else FEW
BOTH = pytest.mark.parametrize('slow', [False, pytest.param(True, marks=pytest.mark.slow)], ids=['few', 'all'])

@BOTH
def test_blocks_and_dls_refuse_what_makes_no_sense(task, anns, tmp_path, slow):
    assert_no_faults(dls_calls(task, anns, tmp_path), values(slow), ACCEPTS)

@BOTH
@pytest.mark.train
def test_learners_refuse_what_makes_no_sense(task, anns, tmp_path, slow):
    assert_no_faults(learner_calls(task, anns, tmp_path), BAD if slow else ['object()', 'nan'], ACCEPTS, works=slow)

@BOTH
@pytest.mark.train
def test_their_methods_refuse_what_makes_no_sense(task, anns, made, slow, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert_no_faults(method_calls(task, anns, made), BAD if slow else ['object()'], {**ACCEPTS, **NORMALIZE},
                     works=slow)

@pytest.mark.train
def test_what_the_tasks_share_refuses_what_makes_no_sense(shapes, tmp_path):
    task = TASKS[0]
    dls = task.make_dls(task.anns(shapes)[:8], size=32, bs=4, path=tmp_path)
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3))
    anns = [a for a in shapes if a.labels][:4]
    learn = task.make(anns, tmp_path, size=32, bs=2)
    learn.export('l.pkl')
    calls = dict(
        load_learner=lambda: (load_learner, dict(fname=tmp_path/'l.pkl', cpu=True)),
        fit_anchors=lambda: (fit_anchors, dict(annotations=anns, size=32, method='pad', levels=1, sizes=1, ratios=1)),
        AuxLoss=lambda: (AuxLoss, dict(weight=.5)),
        parameter_groups=lambda: (parameter_groups, dict(model=net)),
        **{'Recipe.replace': lambda: (Recipe().replace, dict(base_lr=1e-3, freeze_epochs=1, lr_mult=2., wd=.1,
                                                             grad_clip=1.))},
        TaskLearner=lambda: (TaskLearner, dict(
            dls=dls, model=net, loss_func=torch.nn.MSELoss(), lr=1e-3,
            cbs=None, metrics=None, path=tmp_path, model_dir='m', wd=.1, wd_bn_bias=False, train_bn=True,
            moms=(.9, .8, .9), default_cbs=True)))
    assert_no_faults(calls, BAD, ACCEPTS)
