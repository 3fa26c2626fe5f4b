"The average of the weights: equal to a loop, and what is validated, saved and exported"
from random import Random
import pytest, torch
from fastai.callback.all import SaveModelCallback
from fastai.callback.core import Callback, CancelFitException
from fastai.torch_core import set_seed
from vision_tasks.data.synthetic import draw_shapes
from vision_tasks.multilabel import multilabel_dls, multilabel_learner
from vision_tasks.training.ema import EMA
from vision_tasks.training.files import load_learner

pytestmark = pytest.mark.train

@pytest.fixture
def learn(tmp_path):
    torch.manual_seed(0)
    dls = multilabel_dls(draw_shapes(tmp_path, 10, 64), size=32, bs=2, num_workers=0, device='cpu', path=tmp_path)
    learn = multilabel_learner(dls, 'test_resnet', pretrained=False, metrics=[])
    with learn.no_bar(), learn.no_logging(): yield learn

def weights(learn): return {k: v.clone() for k,v in learn.model.state_dict().items()}

def same(a, b, **kw): return all(torch.allclose(a[k].float(), b[k].float(), **kw) for k in a)

class Weights(Callback):
    "The weights after every step, and those of every validation"
    order = 100
    def before_fit(self): self.steps,self.valid = [],[]
    def after_step(self): self.steps.append(weights(self.learn))
    def before_validate(self): self.valid.append(weights(self.learn))

def fit(learn, *cbs, epochs=2):
    "`fit` from the weights and the random numbers that every call begins with"
    set_seed(3)
    learn.dls.train.rng = Random(3)
    seen = Weights()
    learn.fit(epochs, 1e-2, cbs=[*cbs, seen], reset_opt=True)
    return seen

@pytest.mark.parametrize('warmup', [False, True])
def test_the_average_is_that_of_a_loop(learn, warmup):
    seen = fit(learn, EMA(.9, warmup=warmup))
    avg = None
    for i,w in enumerate(seen.steps):
        d = min(.9, 1 - (1 + i)**-(2/3)) if warmup else .9
        avg = w if avg is None else {k: d*avg[k] + (1-d)*v if v.is_floating_point() else v for k,v in w.items()}
    assert same(weights(learn), avg, atol=1e-6, rtol=1e-5) and not same(avg, seen.steps[-1], atol=1e-4)
    assert same(seen.valid[-1], weights(learn))     # what was validated last is what remains

def test_training_goes_on_with_the_weights_themselves(learn):
    before = weights(learn)
    plain = fit(learn)
    learn.model.load_state_dict(before)
    averaged = fit(learn, EMA(.9))
    assert all(map(same, plain.steps, averaged.steps)) and not same(plain.valid[0], averaged.valid[0], atol=1e-4)

def test_the_average_is_saved_and_exported(learn, tmp_path):
    seen = fit(learn, EMA(.9), SaveModelCallback(every_epoch=True))
    for i,w in enumerate(seen.valid):
        assert same(torch.load(learn.path/'models'/f'model_{i}.pth', weights_only=True), w)
    learn.add_cb(EMA(.9))
    learn.fit(1, 1e-2)
    learn.export('a.pkl')
    assert same(weights(load_learner(learn.path/'a.pkl')), weights(learn))

def test_a_training_that_is_stopped_ends_with_the_average(learn):
    class Stop(Callback):
        def after_batch(self):
            if self.training and self.iter == 2: raise CancelFitException()
    seen = fit(learn, EMA(.5, warmup=False), Stop())
    assert len(seen.steps) == 3 and not same(weights(learn), seen.steps[-1], atol=1e-4)
    avg = {k: (v/2 + seen.steps[1][k]/4 + seen.steps[0][k]/4) for k,v in seen.steps[2].items()}
    floats = {k for k,v in avg.items() if seen.steps[0][k].is_floating_point()}
    assert same({k: weights(learn)[k] for k in floats}, avg, atol=1e-6)

def test_a_range_test_and_validation_leave_the_weights_alone(learn):
    learn.add_cb(EMA(.9))
    before = weights(learn)
    learn.lr_find(num_it=8, show_plot=False)
    learn.validate(); learn.get_preds()
    assert same(before, weights(learn))

def test_no_decay_is_no_average(learn):
    seen = fit(learn, EMA(0.))
    assert same(weights(learn), seen.steps[-1])

def test_bad_decays_are_refused():
    for o in (1., -.1, 'slow', True):
        with pytest.raises(ValueError, match="decay: expected a number from 0 to below 1"): EMA(o)
