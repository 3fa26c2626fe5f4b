import copy
from functools import partial
import matplotlib.pyplot as plt
import numpy as np, pandas as pd, pytest, torch
from fastai.vision.all import (Callback, CSVLogger, EarlyStoppingCallback, Learner, Metric, SaveModelCallback,
                               TrackerCallback, minimum, set_seed, slide)
from vision_tasks.multilabel import multilabel_dls, multilabel_learner

pytestmark = pytest.mark.train

@pytest.fixture
def learn(shapes, tmp_path):
    set_seed(0)
    dls = multilabel_dls(shapes[:20], size=32, bs=4, num_workers=0, device='cpu', path=tmp_path)
    learn = multilabel_learner(dls, 'test_resnet', pretrained=False, metrics=[])
    with learn.no_bar(), learn.no_logging(): yield learn

class Given(Metric):
    "The values of a list, one for each epoch"
    name = 'given'
    def __init__(self, values): self.values,self.n = values,-1
    def reset(self): self.n += 1
    def accumulate(self, learn): pass
    @property
    def value(self): return self.values[self.n]

def twice(learn, epochs, base_lr, freeze_epochs, **kwargs):
    "fastai's own `fine_tune`, which trains twice; the recorder's rates and losses of both"
    seen = []
    class Keep(Callback):
        order = 99
        def after_fit(self): seen.append((self.recorder.hps, list(self.recorder.losses)))
    with learn.added_cbs(Keep()):
        if freeze_epochs: Learner.fine_tune(learn, epochs, base_lr, freeze_epochs, learn.recipe.lr_mult, **kwargs)
        else:
            rates = slice(base_lr/2/learn.recipe.lr_mult, base_lr/2)
            learn.fit_one_cycle(epochs, rates, pct_start=.3, div=5., **kwargs)
    return {k: [v for hps,_ in seen for v in hps[k]] for k in ('lr', 'mom')},[v for _,losses in seen for v in losses]

@pytest.mark.parametrize('epochs, freeze_epochs, kwargs', [
    (2, 1, {}), (3, 2, dict(pct_start=.5, div=3., wd=.1)), (2, 0, {}), (1, 3, dict(moms=(.9, .8, .9), div_final=10.))])
def test_it_ends_with_the_weights_that_fastais_two_trainings_end_with(learn, epochs, freeze_epochs, kwargs):
    other = copy.deepcopy(learn)
    set_seed(1)
    learn.fine_tune(epochs, 1e-2, freeze_epochs, **kwargs)
    set_seed(1)
    hps,losses = twice(other, epochs, 1e-2, freeze_epochs, **kwargs)
    assert [v for v in learn.recorder.hps['lr']] == hps['lr'] and learn.recorder.hps['mom'] == hps['mom']
    for k,v in other.model.state_dict().items(): assert torch.equal(v, learn.model.state_dict()[k]), k
    assert len(losses) == len(hps['lr']) == 4*(epochs + freeze_epochs) == len(learn.recorder.losses)
    assert all(p.requires_grad for p in learn.model.parameters())

def test_one_run_is_one_log(learn):
    learn.fine_tune(2, 1e-3, freeze_epochs=3, cbs=[CSVLogger(), SaveModelCallback(every_epoch=True)])
    log = pd.read_csv(learn.path/'history.csv')
    assert log.epoch.tolist() == [0, 1, 2, 3, 4] and len(learn.recorder.values) == 5
    assert sorted(p.name for p in (learn.path/'models').iterdir()) == [f'model_{i}.pth' for i in range(5)]

def test_one_run_has_one_best(learn):
    best = {}
    class Look(Callback):
        order = TrackerCallback.order+5
        def after_epoch(self):
            if self.epoch == 1: best.update({k: v.clone() for k,v in self.model.state_dict().items()})
    learn.metrics = [Given([.1, .9, .3, .5, .2])]
    learn.fine_tune(3, 1e-2, freeze_epochs=2, cbs=[Look(), SaveModelCallback(monitor='given')])
    assert all(torch.equal(v, best[k]) for k,v in learn.model.state_dict().items()), "of the frozen epochs"

def test_a_callback_that_ends_training_ends_the_whole_run(learn):
    learn.metrics = [Given([.5, .4, .3, .2, .1])]
    learn.fine_tune(3, 1e-3, freeze_epochs=2, cbs=EarlyStoppingCallback(monitor='given', patience=2))
    assert len(learn.recorder.values) == 3

def test_the_encoder_stays_as_it_is_in_the_frozen_epochs_and_moves_after_them(learn):
    seen = []
    class Look(Callback):
        def after_train(self):
            seen.append(torch.cat([p.detach().flatten() for p in self.model.encoder.parameters() if p.ndim > 1]))
    seen.append(torch.cat([p.detach().flatten() for p in learn.model.encoder.parameters() if p.ndim > 1]))
    learn.fine_tune(2, 1e-2, freeze_epochs=2, cbs=Look())
    assert [torch.equal(a, b) for a,b in zip(seen, seen[1:])] == [True, True, False, False]

def test_it_can_be_called_again(learn):
    for _ in range(2): learn.fine_tune(1, 1e-3, freeze_epochs=1)
    assert len(learn.recorder.values) == 2 and np.isfinite(learn.recorder.losses).all()

@pytest.mark.parametrize('kwargs, message', [
    (dict(epochs=0), "epochs: expected a whole number of 1 or more, got 0"), (dict(epochs=1.5), "epochs: .* got 1.5"),
    (dict(epochs=1, base_lr=-1), "base_lr: expected a number between 0 and 1000000, both excluded, got -1"),
    (dict(epochs=1, base_lr=float('nan')), "base_lr: .* got nan"), (dict(epochs=1, lr_mult=0), "lr_mult: "),
    (dict(epochs=1, freeze_epochs=-1), "freeze_epochs: expected a whole number of 0 or more, got -1"),
    (dict(epochs=1, moms=(.9, .8)), "moms: expected three momentums"), (dict(epochs=1, pct_start=3), "pct_start: ")])
def test_arguments_that_make_no_sense_are_refused_before_anything_is_frozen(learn, kwargs, message):
    with pytest.raises(ValueError, match=message): learn.fine_tune(**kwargs)
    assert all(p.requires_grad for p in learn.model.parameters())

def test_lr_find_takes_a_tenth_of_the_training_that_follows(learn, recwarn):
    n = len(learn.dls.train)
    learn.recipe = learn.recipe.replace(freeze_epochs=0)
    epochs = -(-250//n)
    steps = n*epochs//10
    assert 20 <= steps < 100 and learn.lr_find(epochs=epochs, show_plot=False, stop_div=False).steps == steps
    assert learn.lr_find(epochs=2000, show_plot=False, stop_div=False).steps == 100
    before = {k: v.clone() for k,v in learn.model.state_dict().items()}
    with pytest.warns(UserWarning, match=r"is \d+ batches, and a curve needs 20, so that nothing was run; begin "
                                         r"with the rate of learn.recipe, 0.004, or pass num_it=20"):
        found = learn.lr_find(epochs=100//n)
    assert found.valley is None and found.steps == 0 and found.recipe == learn.recipe.base_lr
    assert all(torch.equal(v, before[k]) for k,v in learn.model.state_dict().items())

def test_lr_find_draws_and_names_what_was_found(learn, monkeypatch):
    found = learn.lr_find(num_it=30, suggest_funcs=(minimum, partial(slide, adjust_value=2)))
    ax = plt.gca()
    assert found._fields == ('minimum', 'slide', 'recipe', 'steps')
    assert [t.get_text() for t in ax.get_legend().get_texts()] == [
        f'{k}: {v:.1e}' for k,v in found._asdict().items() if k != 'steps' and v is not None]
    assert f'{found.steps} steps' in ax.get_title()
    line = ax.lines[0].get_xydata()
    for o in ax.lines[1:]:      # the marks lie on the curve
        assert (np.abs(line - o.get_xydata()).sum(1) < 1e-9).any()
    plt.close('all')
    assert learn.lr_find(num_it=30, suggest_funcs=None, show_plot=False)._fields == ('recipe', 'steps')

def test_lr_find_names_a_curve_without_points_and_leaves_other_errors_alone(learn):
    with torch.no_grad(): learn.model.head[-1].weight.fill_(torch.nan)
    with pytest.raises(ValueError, match="the loss diverged within 10 steps from start_lr=1"):
        learn.lr_find(start_lr=1., num_it=10, show_plot=False)
    class Broken(Callback):
        def after_batch(self): [][0]
    learn.add_cb(Broken())
    with pytest.raises(IndexError, match="list index out of range"): learn.lr_find(num_it=20, show_plot=False)
