"Recipes: the defaults of `fine_tune`"
import pickle
import pytest, torch
from fastai.callback.core import Callback
from vision_tasks.data.synthetic import draw_shapes
from vision_tasks.keypoint import KeypointLearner
from vision_tasks.models import registry
from vision_tasks.models.encoders import create_encoder
from vision_tasks.models.registry import register
from vision_tasks.multilabel import MULTILABEL, multilabel_dls, multilabel_learner
from vision_tasks.training.build import EncoderHead, pooled_head
from vision_tasks.training.recipes import Recipe

@pytest.fixture(scope='module')
def dls(tmp_path_factory):
    return multilabel_dls(draw_shapes(tmp_path_factory.mktemp('shapes'), 8, 64), size=32, bs=2, num_workers=0,
                          device='cpu')

@pytest.fixture
def tiny(monkeypatch):
    "An architecture whose recipe differs from the task's in two values"
    monkeypatch.setattr(registry, '_archs', dict(registry._archs))
    @register('multilabel', 'tiny', recipe=dict(base_lr=.01, freeze_epochs=2), recipe_all=dict(base_lr=5e-4))
    def build(n_out, pretrained=False):     # weights that are called pretrained: True, of the encoder; 'all'
        res = EncoderHead(create_encoder('test_resnet', False, pyramid=False), pooled_head, n_out, {})
        if pretrained == 'all': res.new_layers = ['head.8.weight']
        return res
    return 'tiny'

class Seen(Callback):
    "The learning rates of the last and the first group, whether the first is frozen, and the norm of the gradients"
    order = 60   # after GradientClip
    def before_fit(self): self.rates,self.frozen,self.norms = [],[],[]
    def before_step(self):
        self.rates.append((self.opt.hypers[-1]['lr'], self.opt.hypers[0]['lr']))
        self.frozen.append(self.opt.frozen_idx > 0)
        grads = [p.grad.norm() for p in self.model.parameters() if p.grad is not None]
        self.norms.append(torch.stack(grads).norm().item())

def trained(learn, *args, **kwargs):
    seen = Seen()
    with learn.no_bar(), learn.no_logging(): learn.fine_tune(*args, **kwargs, cbs=seen)
    return seen

def test_a_recipe_is_the_tasks_with_what_the_architecture_changes(dls, tiny):
    learn = multilabel_learner(dls, tiny)
    assert learn.recipe == MULTILABEL.recipe.replace(base_lr=.01, freeze_epochs=2)
    assert MULTILABEL.recipe == Recipe(base_lr=4e-3, lr_mult=2.) and learn.recipe.lr_mult == 2.
    assert KeypointLearner.recipe.lr_mult == 2. and 'base_lr=0.01' in repr(learn.recipe)
    assert pickle.loads(pickle.dumps(learn.recipe)) == learn.recipe

def test_pretrained_weights_of_the_whole_network_have_a_recipe_of_their_own(dls, tiny):
    learn = multilabel_learner(dls, tiny, pretrained='all')
    assert learn.recipe == MULTILABEL.recipe.replace(base_lr=5e-4, freeze_epochs=2)

def test_a_network_of_which_nothing_is_pretrained_has_no_frozen_epochs_and_one_rate(dls, tiny):
    for arch in (tiny, 'test_resnet'):
        learn = multilabel_learner(dls, arch, pretrained=False)
        assert learn.recipe.freeze_epochs == 0 and learn.recipe.lr_mult == 1.
    own = EncoderHead(create_encoder('test_resnet', False, pyramid=False), pooled_head, 3, {})
    assert multilabel_learner(dls, own).recipe == MULTILABEL.recipe   # who knows what its encoder has seen

@pytest.mark.train
def test_the_average_of_the_weights_is_part_of_the_recipe(dls):
    learn = multilabel_learner(dls, 'test_resnet', pretrained=False)
    class Names(Callback):
        def before_fit(self): self.seen = {cb.name: cb for cb in self.learn.cbs}
    names = Names()
    with learn.no_bar(), learn.no_logging():
        learn.fine_tune(1, cbs=names); assert 'ema' not in names.seen
        learn.fine_tune(1, cbs=names, ema=.9); assert names.seen['ema'].decay == .9
        learn.recipe = learn.recipe.replace(ema=.99)
        learn.fine_tune(1, cbs=names); assert names.seen['ema'].decay == .99
        learn.fine_tune(1, cbs=names, ema=0); assert 'ema' not in names.seen

@pytest.mark.train
def test_fine_tune_uses_the_recipe_and_its_arguments_win(dls, tiny):
    learn = multilabel_learner(dls, tiny)
    n = len(dls.train)
    seen = trained(learn, 1)
    assert sum(seen.frozen) == 2*n and len(seen.frozen) == 3*n
    assert max(r for r,_ in seen.rates[:2*n]) == pytest.approx(.01, rel=.1)
    last = seen.rates[2*n:]
    assert last[0][0]/last[0][1] == pytest.approx(MULTILABEL.recipe.lr_mult) and max(r for r,_ in last) <= .005
    seen = trained(learn, 1, 1e-3, freeze_epochs=0, lr_mult=5.)
    assert not any(seen.frozen) and max(r for r,_ in seen.rates) <= 5e-4
    assert seen.rates[0][0]/seen.rates[0][1] == pytest.approx(5.)

@pytest.mark.train
def test_gradients_are_clipped_where_the_recipe_says_so(dls):
    learn = multilabel_learner(dls, 'test_resnet', pretrained=False)
    free = trained(learn, 1, freeze_epochs=0)
    learn.recipe = learn.recipe.replace(grad_clip=.01)
    assert max(trained(learn, 1, freeze_epochs=0).norms) <= .0101 < max(free.norms)
    assert max(trained(learn, 1, freeze_epochs=0, grad_clip=0).norms) > .0101

def test_bad_values_of_a_recipe_are_refused():
    for kw in (dict(base_lr=0.), dict(freeze_epochs=-1), dict(lr_mult=-1.), dict(grad_clip=-1.), dict(ema=1.)):
        with pytest.raises(ValueError, match=f"{next(iter(kw))}: expected"): Recipe().replace(**kw)
