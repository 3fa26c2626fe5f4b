"Two processes do what one does. As a script this file is what each of the processes runs"
import os, pickle, subprocess, sys
from itertools import chain, product
from pathlib import Path
from types import SimpleNamespace
import numpy as np, pytest, torch
from fastcore.foundation import L
from fastai.callback.core import Callback
from fastai.callback.progress import CSVLogger
from fastai.callback.tracker import SaveModelCallback
from fastai.learner import AvgMetric, Metric, load_learner
from fastai.metrics import Dice, DiceMulti, F1ScoreMulti
from fastai.torch_core import rank_distrib
from torch import Tensor, nn
from test_tasks import TASKS, equal
from vision_tasks.distributed import Distributed, counted, joined, training_share, validation_share
from vision_tasks.metrics.labels import MultilabelAccuracy, MultilabelAP, MultilabelF1
from vision_tasks.metrics.segmentation import MeanIoU, PixelAccuracy

ROOT = Path(__file__).parent.parent
ENV  = {**os.environ, 'OMP_NUM_THREADS': '1', 'MPLBACKEND': 'Agg', 'CUDA_VISIBLE_DEVICES': '',
        'PYTHONPATH': os.pathsep.join([str(ROOT), str(ROOT/'tests')])}
TORCHRUN   = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node']
ACCELERATE = [sys.executable, '-m', 'accelerate.commands.launch', '--cpu', '--main_process_port', '0',
              '--num_processes']

def launch(cmd, folder, timeout=400):
    "What `cmd` prints; a hang is an error, and leaves no process behind"
    with subprocess.Popen([*map(str, cmd)], cwd=folder, env=ENV, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          text=True, start_new_session=True) as p:
        try: out,err = p.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            os.killpg(p.pid, 9)
            raise
    assert p.returncode == 0, err[-9000:]
    return out

class Watch(Callback):
    "Which pictures are trained on in each epoch, and how far the plan of the fit is gone through"
    def before_fit(self): self.idxs = []
    def before_batch(self):
        if self.training and not self.iter: self.idxs.append(list(self.learn.dl._DataLoader__idxs))
    def after_train(self): self.pct = self.pct_train

def weights(learn): return {k: v.clone() for k,v in learn.model.state_dict().items()}

def answers(task, learn, anns):
    "All that a learner says of its validation set"
    res = dict(scores=learn.evaluate(), per_class=learn.evaluate_per_class(), preds=learn.get_preds(),
               shuffled=learn.get_preds(dl=learn.dls.valid.new(shuffle=True))[0],
               loss=learn.get_preds(with_loss=True, with_preds=False, with_targs=False)[-1],
               annotated=learn.annotate(anns[:5]))
    if 'tune' not in task.raises: res['tuned'] = learn.tune_threshold(per_class=True)
    return res

def work(name, bs):
    "What each process does"
    task = next(t for t in TASKS if t.name == name)
    anns,rank = pickle.loads(Path('anns.pkl').read_bytes()),rank_distrib()
    learn,watch = task.make(anns, '.', bs=int(bs)),Watch()
    mine  = learn.evaluate()               # without the others
    if rank: learn.model.apply(lambda m: getattr(m, 'reset_parameters', lambda: None)())    # weights of its own
    with learn.distrib_ctx():
        print(f'process {rank}')
        before = weights(learn)
        found  = learn.lr_find(num_it=20, show_plot=False).valley
        steps,back = len(learn.recorder.lrs),weights(learn)
        learn.fine_tune(2, 5e-3, cbs=[watch, CSVLogger(), SaveModelCallback(at_end=True)])
        learn.load('model')
        logged = learn.recorder.values
        res = answers(task, learn, anns)
        if not rank: assert learn.predict(anns[0]) and learn.annotate(anns[:7])     # alone, and nobody waits
        learn.export('learner.pkl')
        bare = type(learn.model).__name__
    assert not hasattr(learn, 'distributed') and hasattr(learn, 'progress')
    torch.save(dict(mine=mine, before=before, found=found, steps=steps, back=back, idxs=watch.idxs, pct=watch.pct,
                    logged=logged, bare=bare, weights=weights(learn), noise=torch.rand(3), **res), f'{rank}.pt')

def alike(a, b):
    "Whether answers are the same, up to what the order of adding up does"
    if isinstance(a, Tensor): return torch.allclose(a.double(), b.double(), atol=1e-5, equal_nan=True)
    if isinstance(a, (list, tuple, L)): return len(a) == len(b) and all(map(alike, a, b))
    return a == pytest.approx(b, rel=1e-5, nan_ok=True)

# --- one process or several: every task in two; one in three, the last of which has no batch to validate

RUNS = [*((t, 2, 3) for t in TASKS), *((t, 3, 4) for t in TASKS if t.name == 'detection')]

@pytest.fixture(scope='module', params=RUNS, ids=lambda o: f'{o[0]}-{o[1]}')
def ran(request, shapes, tmp_path_factory):
    "The task, its annotations, where it ran, and for each process what it found"
    task,world,bs = request.param
    folder,anns = tmp_path_factory.mktemp(f'{task}{world}'),task.anns(shapes)
    (folder/'anns.pkl').write_bytes(pickle.dumps(anns))
    out = launch([*TORCHRUN, world, __file__, task.name, bs], folder)
    of = [torch.load(folder/f'{r}.pt', weights_only=False) for r in range(world)]
    return SimpleNamespace(task=task, anns=anns, bs=bs, folder=folder, out=out, of=of)

@pytest.mark.slow
@pytest.mark.train
def test_all_processes_end_with_the_same_weights_statistics_and_answers(ran):
    one,*others = ran.of
    for o in others:
        assert all(torch.equal(v, o['weights'][k]) for k,v in one['weights'].items())
        assert not all(torch.equal(v, o['before'][k]) for k,v in one['weights'].items())
        assert not torch.equal(one['noise'], o['noise'])      # so that pictures are augmented differently
        assert repr(one['scores']) == repr(o['scores']) and str(one.get('tuned')) == str(o.get('tuned'))
        assert np.array_equal([v[1:] for v in one['logged']], [v[1:] for v in o['logged']], equal_nan=True)
        assert alike(one['preds'], o['preds']) and one['per_class'].equals(o['per_class'])
        assert all(map(equal, one['annotated'], o['annotated']))

@pytest.mark.slow
@pytest.mark.train
def test_each_process_takes_the_planned_steps_on_pictures_of_its_own(ran):
    n,world = len(ran.task.make_dls(ran.anns, size=64, bs=ran.bs).train_ds),len(ran.of)
    for o in ran.of: assert o['pct'] == pytest.approx(1.) and len(o['idxs']) == 3
    for epoch in zip(*(o['idxs'] for o in ran.of)):
        assert {len(o) for o in epoch} == {n//world}
        assert len(set(chain(*epoch))) == n//world*world

@pytest.mark.slow
@pytest.mark.train
def test_evaluate_and_get_preds_are_those_of_one_process_on_the_same_weights(ran):
    learn = ran.task.make(ran.anns, ran.folder, bs=ran.bs)
    with learn.no_bar(), learn.no_logging():
        alone = learn.evaluate()
        for o in ran.of: assert o['mine'] == pytest.approx(alone, rel=1e-5, nan_ok=True)
        learn.model.load_state_dict(ran.of[0]['weights'])
        one,several = answers(ran.task, learn, ran.anns),ran.of[0]
    preds = several['preds'][0]
    for o in preds if isinstance(preds, tuple) else [preds]: assert len(o) == len(learn.dls.valid_ds)   # with masks
    if (ran.task.name, ran.bs) == ('detection', 3): assert isinstance(one['preds'][1][0], L)   # widths differ
    for k in ('scores', 'preds', 'shuffled', 'loss'): assert alike(several[k], one[k]), k
    assert several['scores'].keys() == one['scores'].keys() and all(map(equal, several['annotated'], one['annotated']))
    np.testing.assert_allclose(several['per_class'].iloc[:,1:].astype(float), one['per_class'].iloc[:,1:].astype(float),
                               rtol=1e-5)
    assert list(several['logged'][-1][1:]) == pytest.approx([several['scores'][n] for n in
                                                       ('valid_loss', *(m.name for m in learn.metrics))], nan_ok=True)
    if 'tuned' in one: assert all(map(alike, several['tuned'], one['tuned']))

@pytest.mark.slow
@pytest.mark.train
def test_lr_find_goes_through_its_range_and_brings_the_weights_back(ran):
    for o in ran.of:
        assert o['found'] == ran.of[0]['found'] and 1e-7 < o['found'] < 10
        assert o['steps'] == 20 or ran.task.name != 'multilabel'      # unless the loss explodes
        assert all(torch.equal(v, o['back'][k]) for k,v in o['before'].items())

@pytest.mark.slow
@pytest.mark.train
def test_rank_0_alone_prints_and_logs_and_what_it_exports_predicts_anywhere(ran):
    assert 'process 0' in ran.out and 'process 1' not in ran.out
    assert {o['bare'] for o in ran.of}.isdisjoint({'DistributedDataParallel'})
    assert len((ran.folder/'history.csv').read_text().splitlines()) == 4
    learn = load_learner(ran.folder/'learner.pkl')
    assert not hasattr(learn, 'distributed')
    with learn.no_bar():
        for a,b in zip(ran.of[0]['annotated'], learn.annotate(ran.anns[:5])):
            assert a.path == b.path and (a.mask is None or (a.mask == b.mask).mean() > .99)

@pytest.mark.slow
@pytest.mark.train
@pytest.mark.parametrize('launcher', [TORCHRUN, ACCELERATE], ids=['torchrun', 'accelerate'])
def test_the_example_runs_in_two_processes(launcher, tmp_path):
    small = ['--encoder', 'test_resnet', '--weights', 'none', '--epochs', '1', '--size', '32', '--out', 'out']
    out = launch([*launcher, 2, ROOT/'examples'/'train_distributed.py', *small], tmp_path)
    assert out.count('valid_loss') == 1
    assert len(list((tmp_path/'out').glob('*.pkl'))) == len(list((tmp_path/'out').glob('*.png'))) == 1

# --- sharing out and joining, in one process

@pytest.mark.parametrize('world', [1, 2, 3, 8])
def test_processes_train_on_equally_many_pictures_and_leave_none_out(world):
    for n in (1, 2, 7, 8, 9, 64, 65): assert_shared_out(n, world)

def assert_shared_out(n, world):
    idxs = torch.randperm(n).tolist()
    shares = [training_share(idxs, r, world, False) for r in range(world)]
    assert {len(s) for s in shares} == {-(-n//world)}
    assert set(chain(*shares)) == set(idxs)
    shares = [training_share(idxs, r, world, True) for r in range(world)]
    assert {len(s) for s in shares} == {max(n//world, 1)}
    if n >= world: assert len(set(chain(*shares))) == n//world*world

@pytest.mark.parametrize('drop_last', [False, True])
def test_processes_validate_the_batches_of_one_process_each_once(drop_last):
    for n,bs,world in product((0, 1, 2, 7, 8, 9, 64, 65), (1, 2, 3, 16), (1, 2, 3, 8)):
        def batches(o): return [o[i:i+bs] for i in range(0, len(o), bs) if not drop_last or i+bs <= len(o)]
        idxs = torch.randperm(n).tolist()
        one  = batches(idxs)
        shares = [batches(validation_share(idxs, r, world, bs, len(one))) for r in range(world)]
        assert list(chain(*shares)) == one, (n, bs, world)
        lengths = [len(s) for s in shares]
        assert lengths[0] == max(lengths) <= min(lengths) + 1, (n, bs, world)

def batch_of(pred, y):
    learn = SimpleNamespace(pred=pred, y=y, yb=(y,), loss_func=SimpleNamespace())
    learn.to_detach = lambda o, *_: o.detach()
    return learn

def masks(n): return torch.randn(n, 3, 6, 5),torch.randint(0, 3, (n, 6, 5))
def labels(n): return torch.randn(n, 3),torch.randint(0, 2, (n, 3)).float()
def distance(p, t): return (p-t).abs().mean()

@pytest.mark.parametrize('make,batch', [
    (MultilabelAP, labels), (MultilabelF1, labels), (MultilabelAccuracy, labels), (MeanIoU, masks),
    (PixelAccuracy, masks), (DiceMulti, masks), (Dice, masks), (F1ScoreMulti, labels),
    (lambda: AvgMetric(distance), labels)], ids=lambda o: getattr(o, '__name__', ''))
def test_a_metric_joined_over_processes_is_the_metric_of_one(make, batch):
    torch.manual_seed(0)
    batches = [batch(n) for n in (4, 4, 4, 1)]
    def after(some):
        m = make()
        names = counted(m)
        for b in some: m.accumulate(batch_of(*b))
        return m,{k: vars(m)[k] for k in names}
    whole,_ = after(batches)
    parts = [after(o)[1] for o in (batches[:2], batches[2:], [])]       # the third process has nothing to do
    m = make()
    for k in parts[0]: setattr(m, k, joined([p[k] for p in parts]))
    assert m.value == pytest.approx(float(whole.value), rel=1e-6) and 0 < m.value

def test_what_cannot_be_joined_is_refused():
    class InPlace(Metric):
        def __init__(self): self.seen = []
        def reset(self): self.seen.clear()
    with pytest.raises(ValueError, match="InPlace.reset sets no attribute"): counted(InPlace())
    with pytest.raises(ValueError, match="cannot join .* 'a' and 'b'"): joined(['a', 'b'])
    assert joined(['a', 'a', None]) == 'a' and joined([None, None]) is None

class Extremes(Metric):
    "What each image's highest probability is, in ways that neither a sum nor a list of all can join"
    joins = dict(high='max', low='min', seen='cat', n='sum', names='same', span=lambda v: max(v) - min(v), any_high=any)
    def reset(self):
        self.high,self.low,self.seen,self.n = -1.,torch.full((3,), 2.),torch.zeros(0),0
        self.names,self.span,self.any_high = ['a', 'b'],0,False
    def accumulate(self, learn):
        p = learn.pred.detach().as_subclass(Tensor).float().sigmoid().cpu()
        self.high,self.low = max(self.high, p.max().item()),torch.minimum(self.low, p.amin(0)[:3])
        self.seen,self.n,self.any_high = torch.cat([self.seen, p[:,0]]),self.n + len(p),self.any_high or p.max() > .5
        self.span += len(p)
    @property
    def value(self): return self.high

def test_a_metric_says_how_its_states_join():
    torch.manual_seed(0)
    batches = [labels(n) for n in (4, 4, 4, 1)]
    def after(some):
        m = Extremes()
        names = counted(m)
        for b in some: m.accumulate(batch_of(*b))
        return m,{k: vars(m)[k] for k in names}
    whole,_ = after(batches)
    parts = [after(o)[1] for o in (batches[:2], batches[2:], [])]
    res = {k: joined([p[k] for p in parts], Extremes.joins[k]) for k in parts[0]}
    assert (res['high'], res['n'], res['names'], res['any_high'], res['span']) == (whole.high, 13, ['a', 'b'], True, 8)
    assert torch.equal(res['low'], whole.low) and torch.equal(res['seen'], whole.seen)
    assert (joined([np.array([1, 5]), np.array([3, 2])], 'max') == [3, 5]).all() and joined([None, 2, 3], 'min') == 2

def test_ways_to_join_that_make_no_sense_are_refused():
    class Cleared(Metric):
        joins = dict(seen='cat')
        def __init__(self): self.seen = [1]
        def reset(self): self.seen.clear()
    m = Cleared()
    assert counted(m) == ['seen'] and m.seen == []           # `joins` names it, so that reset need not set it
    m.joins = dict(seen='mean')
    with pytest.raises(ValueError, match=r"joins\['seen'\] is 'mean'; expected one of sum, max, min, cat, same"):
        counted(m)
    m.joins = dict(sene='cat')
    with pytest.raises(ValueError, match="joins names 'sene', but the metric has no such attribute"): counted(m)
    with pytest.raises(ValueError, match="'max'} or a function"): joined([True, False])
    assert joined([True, True]) is True
    with pytest.raises(ValueError, match="the same in every process, got 1 and 2"): joined([1, 2], 'same')

def work_of_a_users_metric():
    "What each of two processes does: one pass over the validation set"
    anns,rank = pickle.loads(Path('anns.pkl').read_bytes()),rank_distrib()
    learn = TASKS[0].make(anns, '.', bs=3, metrics=[Extremes()])
    with learn.no_bar(), learn.no_logging():
        alone = {**vars(learn.metrics[0])} if learn.validate() else None
        with learn.distrib_ctx(): learn.validate()
    torch.save((alone, vars(learn.metrics[0])), f'{rank}.pt')

@pytest.mark.slow
def test_a_users_metric_is_joined_in_two_processes_as_it_says(shapes, tmp_path):
    (tmp_path/'anns.pkl').write_bytes(pickle.dumps(shapes))
    launch([*TORCHRUN, 2, __file__, 'users_metric'], tmp_path)
    for r in range(2):
        alone,both = torch.load(tmp_path/f'{r}.pt', weights_only=False)
        assert both['n'] == alone['n'] > 3 and both['names'] == ['a', 'b'] and both['any_high'] == alone['any_high']
        assert both['high'] == pytest.approx(alone['high'], abs=1e-6) and both['span'] < alone['span']
        torch.testing.assert_close([both['low'], both['seen']], [alone['low'], alone['seen']])

def test_synchronised_batchnorm_is_there_while_training_and_gone_afterwards():
    from timm.layers import BatchNormAct2d
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Sequential(BatchNormAct2d(4)))
    x,norms = torch.randn(2, 3, 4, 4),[model[1], model[2][0]]
    want = model.eval()(x)
    o = SimpleNamespace(learn=SimpleNamespace(model=model), sync_bn=True, norms={},
                        accelerator=SimpleNamespace(prepare=lambda m: m))
    Distributed.wrap(o)
    assert sum(isinstance(m, nn.SyncBatchNorm) for m in model.modules()) == 2
    torch.testing.assert_close(o.wrapped(x), want)     # with its activation
    with torch.no_grad(): model[1].weight.fill_(3.); model[1].running_mean.add_(1.)
    Distributed.unwrap(o)
    assert [model[1], model[2][0]] == norms and o.learn.model is model
    assert (norms[0].weight == 3).all() and (norms[0].running_mean == 1).all()

# --- what a user sees

@pytest.fixture
def learn(shapes, tmp_path):
    learn = TASKS[0].make(shapes, tmp_path, size=32)
    with learn.no_bar(), learn.no_logging(): yield learn

@pytest.mark.train
def test_in_one_process_the_context_changes_nothing(learn):
    with learn.distrib_ctx() as inside:
        assert inside is learn and not hasattr(learn, 'distributed')
        learn.fit(1, 1e-3)
    assert np.isfinite(learn.recorder.values[-1]).all()

def test_training_in_several_processes_outside_the_context_is_refused(learn, monkeypatch):
    alone = learn.evaluate()
    monkeypatch.setenv('WORLD_SIZE', '2')
    with pytest.raises(RuntimeError, match=r"one of 2 processes.*with learn.distrib_ctx\(\)"): learn.fit(1)
    assert learn.evaluate() == alone        # each process may ask for itself

def test_without_accelerate_one_sentence_says_how_to_install_it(learn, monkeypatch):
    monkeypatch.setenv('WORLD_SIZE', '2')
    monkeypatch.setitem(sys.modules, 'accelerate', None)
    with pytest.raises(ImportError, match="pip install accelerate"):
        with learn.distrib_ctx(): pass

if __name__ == '__main__':
    if sys.argv[1] == 'users_metric': work_of_a_users_metric()
    else: work(*sys.argv[1:])
