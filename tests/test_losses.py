import copy
from itertools import product
import numpy as np, pytest, torch
import torch.nn.functional as F
from fastai.losses import BCEWithLogitsLossFlat
from torchvision.ops import sigmoid_focal_loss
from vision_tasks.data.annotation import Annotation
from vision_tasks.losses.labels import (AsymmetricLoss, MULTILABEL_LOSSES, MultilabelBCE, MultilabelFocal,
                                        balanced_pos_weight)
from vision_tasks.losses.localization import LocalizationLoss
from vision_tasks.losses.points import PointLoss

def batch(n=16, c=5, scale=3.):
    g = torch.Generator().manual_seed(0)
    return torch.randn(n, c, generator=g)*scale,(torch.rand(n, c, generator=g) < .3).float()

def test_bce_equals_fastai_with_and_without_pos_weight():
    x,y = batch()
    w = torch.tensor([1., 2, 3, .5, 10])
    torch.testing.assert_close(MultilabelBCE()(x, y), BCEWithLogitsLossFlat()(x, y))
    torch.testing.assert_close(MultilabelBCE(w)(x, y), F.binary_cross_entropy_with_logits(x, y, pos_weight=w))
    assert MultilabelBCE(3.)(x, y) > MultilabelBCE()(x, y)

@pytest.mark.parametrize('gamma,alpha', [(2., None), (0., None), (2., .25), (1.5, .6)])
def test_focal_equals_torchvision(gamma, alpha):
    x,y = batch()
    want = sigmoid_focal_loss(x, y, alpha=-1 if alpha is None else alpha, gamma=gamma, reduction='mean')
    torch.testing.assert_close(MultilabelFocal(gamma, alpha)(x, y), want)

def test_focal_loss_is_finite_with_a_gradient_for_huge_logits():
    x = torch.tensor([[-80., 80, 0]], requires_grad=True)
    MultilabelFocal()(x, torch.tensor([[1., 0, 1]])).backward()
    assert x.grad.isfinite().all() and (x.grad.abs() > 0).all()

# 90 and 104: where a sigmoid in float32 is a denormal number, and 0
EXTREME = sorted({s*v for s in (-1, 1) for v in (0., 1e-4, 17., 90., 104., 1e4, 1e36)})

FOCUS = 0.,.1,.5,1.,2.5,4.
@pytest.mark.parametrize('cls,grid', [
    (MultilabelBCE, product((None, .01, 100.))), (MultilabelFocal, product(FOCUS, (None, 0., .25, 1.))),
    (AsymmetricLoss, product(FOCUS, FOCUS, (0., 1e-6, .05, .5)))])
def test_every_logit_has_a_finite_gradient_for_every_parameter_of_the_loss(cls, grid):
    for args,y in product(grid, (0., 1.)):
        loss,x = cls(*args, reduction='sum'),torch.tensor([EXTREME], requires_grad=True)
        loss(x, torch.full_like(x, y)).backward()
        assert x.grad.isfinite().all(), (args, y)
        assert (x.grad*(1-2*y) >= 0).all(), (args, y)            # and never points away from the target
        wrong = x.grad[0, EXTREME.index(104. if y == 0 else -104.)]
        weight = 1. if getattr(loss, 'alpha', None) is None else loss.alpha if y else 1-loss.alpha
        margin = getattr(loss, 'clip', 0) > 0 and y == 0         # the paper's loss is constant where p is 1
        assert wrong.abs() > 0 or not weight or margin, (args, y)

@pytest.mark.parametrize('gamma_pos,gamma_neg,clip', list(product((0., .5, 2.), (0., .5, 4.), (0., .05))))
def test_value_and_gradient_of_the_asymmetric_loss_are_those_of_its_formula_in_float64(gamma_pos, gamma_neg, clip):
    x,y = batch(scale=4.)
    def value_and_grad(x, f):
        x = x.clone().requires_grad_()
        v = f(x); v.backward()
        return v.detach().float(),x.grad.float()
    def formula(x):
        p = x.sigmoid()
        pm = torch.where(p > clip, p - clip, 0.*p.detach())
        neg = torch.where(pm > 0, pm.clamp(min=1e-300)**gamma_neg*(1-pm).log(), 0.)
        return -torch.where(y > .5, (1-p)**gamma_pos*p.log(), neg).mean()
    ours = value_and_grad(x, lambda x: AsymmetricLoss(gamma_pos, gamma_neg, clip)(x, y))
    torch.testing.assert_close(ours, value_and_grad(x.double(), formula), rtol=1e-4, atol=1e-7)

def test_parameters_that_make_no_sense_are_refused():
    for f in (lambda: MultilabelFocal(-1.), lambda: MultilabelFocal(float('nan')), lambda: AsymmetricLoss(gamma_pos=-1),
              lambda: AsymmetricLoss(gamma_neg=-.5)):
        with pytest.raises(ValueError, match="gamma.*: expected a number of 0 or more, got"): f()
    with pytest.raises(ValueError, match="alpha: expected a number from 0 to 1, got 2.0"): MultilabelFocal(alpha=2.)
    for clip in (-.1, 1.):
        with pytest.raises(ValueError, match="clip: expected a number of 0 or more, below 1"): AsymmetricLoss(clip=clip)
    for w in ([1., float('nan')], [-1., 1.], float('inf')):
        with pytest.raises(ValueError, match="pos_weight: expected a weight, a finite number of 0"): MultilabelBCE(w)

def test_asymmetric_loss_is_its_formula_and_bce_without_focus_or_clip():
    x,y = batch()
    p = x.double().sigmoid().numpy(); pm = np.maximum(p-.05, 0)
    want = -np.where(y > .5, np.log(p), pm**4*np.log(1-pm)).mean()
    assert abs(AsymmetricLoss()(x, y).item() - want) < 1e-6
    torch.testing.assert_close(AsymmetricLoss(0, 0, 0)(x, y), MultilabelBCE()(x, y))

@pytest.mark.parametrize('name', MULTILABEL_LOSSES)
def test_reductions_agree_and_decisions_follow_thresh_and_temperature(name):
    x,y = batch()
    f = MULTILABEL_LOSSES[name]()
    mean = f(x, y)
    f.reduction = 'none'
    each = f(x, y)
    assert each.shape == x.shape
    torch.testing.assert_close(each.mean(), mean)
    torch.testing.assert_close(f.activation(x), x.sigmoid())
    f.temperature = 2.
    torch.testing.assert_close(f.activation(x), (x/2).sigmoid())
    f.temperature,f.thresh = 1.,[.1, .3, .5, .7, .9]
    assert torch.equal(f.decodes(f.activation(x)), x.sigmoid() > torch.tensor([.1, .3, .5, .7, .9]))
    assert torch.equal(copy.deepcopy(f).thresh, f.thresh)
    f.thresh = 0.
    assert f.decodes(torch.tensor([[.01, 0]])).tolist() == [[True, False]]

def test_the_loss_has_a_gradient_for_half_precision_logits():
    x,y = batch()
    h = x.bfloat16().requires_grad_()
    MultilabelBCE()(h, y).backward()
    assert h.grad.abs().sum() > 0

def test_wrong_lengths_and_nan_are_told():
    x,y = batch()
    f = MultilabelBCE(); f.thresh = [.1, .2]
    with pytest.raises(ValueError, match="thresh has 2 values, but there are 5 classes"): f.decodes(x.sigmoid())
    with pytest.raises(ValueError, match=r"thresh: expected a number in \[0, 1\], or"): f.thresh = [.1, float('nan')]
    with pytest.raises(ValueError, match="or one for each class, got"): f.thresh = [[.1], [.2]]
    with pytest.raises(ValueError, match="pos_weight has 2 values, but there are 5 classes"):
        MultilabelBCE([1., 2.])(x, y)
    with pytest.raises(ValueError, match=r"\(16, 4\) logits for \(16, 5\) targets: its last layer needs n_out=5"):
        MultilabelBCE()(x[:,:4], y)

def with_labels(*labels): return [Annotation(f'{i}.jpg', (1, 1), o) for i,o in enumerate(labels)]

def test_balanced_pos_weight_counts_absent_for_present():
    anns = with_labels(['a'], ['a', 'a', 'b'], ['a'], [])
    assert balanced_pos_weight(anns, ['a', 'b', 'c']).tolist() == pytest.approx([1/3, 3., 1.])
    assert balanced_pos_weight(anns, ['a', 'b', 'c'], most=2.).tolist() == pytest.approx([1/2, 2., 1.])

def test_no_label_is_silenced_by_its_count():
    "A label of every image, of none, of one, of all but one: weights are finite, not 0, and at most 100 times apart"
    anns = with_labels(*(['all', *['one']*(i == 0), *['most']*(i > 0)] for i in range(500)))
    w = balanced_pos_weight(anns, ['all', 'none', 'one', 'most'])
    assert w.tolist() == pytest.approx([1., 1., 100., .01])
    x = torch.zeros(4, 4, requires_grad=True)
    MultilabelBCE(w)(x, torch.tensor([[1., 0, 0, 1]]*4)).backward()
    assert x.grad.isfinite().all() and (x.grad != 0).all()
    assert balanced_pos_weight([], ['a']).tolist() == [1.]
    assert balanced_pos_weight(with_labels(['a']), ['a', 'b']).tolist() == [1., 1.]      # one image
    with pytest.raises(ValueError, match="most: expected a number from 1 to .* got 0.5"):
        balanced_pos_weight(anns, ['all'], .5)

# --- points and boxes

COORDINATES = sorted({s*v for s in (-1, 1) for v in (0., 1e-8, .02, .1, 1., 1e4, 1e30)})

@pytest.mark.parametrize('kind,grid', [
    ('mse', [{}]), ('l1', [{}]), ('smooth_l1', [dict(beta=b) for b in (0., .05, 1.)]),
    ('wing', [dict(w=w, eps=e) for w in (0., .1, 10.) for e in (1e-6, .02, 2.)])])
def test_every_coordinate_has_a_finite_gradient_towards_its_target(kind, grid):
    for kw,y in product(grid, (0., .1, -1.)):
        x = torch.tensor([COORDINATES + [y]*(len(COORDINATES)%2)], requires_grad=True)
        PointLoss(kind, **kw)(x, torch.full_like(x, y).detach().view(1, -1, 2)).backward()
        assert x.grad.isfinite().all() and (x.grad*(x.detach() - y) >= 0).all(), (kw, y)

@pytest.mark.parametrize('bbox', ['smooth_l1', 'l1', 'l2', 'giou'])
@pytest.mark.parametrize('beta', [0., .1])
def test_boxes_of_any_numbers_and_sure_classes_have_finite_gradients(bbox, beta):
    loss = LocalizationLoss(bbox, beta=beta)
    for l,v in product((0., 17., 1e4, 1e36), (0., 1e-8, 1., 1e4, 1e30)):
        x = torch.tensor([[l, -l, -v, -v, v, v], [-l, l, v, v, -v, -v], [l, l, v, v, v, v]], requires_grad=True)
        y = torch.tensor([[[-.5, -.5, .5, .5]], [[0., 0., 1., 1.]], [[float('nan')]*4]])
        loss(x, torch.tensor([0, 0, 1]), y).backward()
        assert x.grad.isfinite().all(), (l, v)

def test_what_has_no_target_has_neither_loss_nor_gradient_whatever_is_predicted():
    "0 * nan is nan: a number that is not compared with anything must not enter the loss"
    nan = float('nan')
    for kind in ('mse', 'l1', 'smooth_l1', 'wing'):
        x = torch.tensor([[nan, nan, .5, .5]], requires_grad=True)
        loss = PointLoss(kind)(x, torch.tensor([[[nan, nan], [nan, nan]]]))
        loss.backward()
        assert loss == 0 and (x.grad == 0).all()
    for kind in ('smooth_l1', 'l1', 'l2', 'giou'):
        x = torch.tensor([[1., 0., nan, nan, nan, nan]], requires_grad=True)
        loss = LocalizationLoss(kind)(x, torch.tensor([0]), torch.full((1, 1, 4), nan))
        loss.backward()
        torch.testing.assert_close(loss, F.cross_entropy(x[:,:2], torch.tensor([0])))
        assert (x.grad[:,2:] == 0).all() and (x.grad[:,:2] != 0).all()

def test_parameters_of_point_and_box_losses_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="eps: expected a number above 0, got 0"): PointLoss('wing', eps=0)
    with pytest.raises(ValueError, match="w: expected a number of 0 or more, got -1"): PointLoss('wing', w=-1)
    for f in (PointLoss, LocalizationLoss):
        with pytest.raises(ValueError, match="beta: expected a number from 0 .*, got -1"): f('smooth_l1', beta=-1)
    with pytest.raises(ValueError, match="weight: expected a number of 0 or more, got nan"):
        LocalizationLoss(weight=float('nan'))
