import copy
import numpy as np, pytest, torch
import torch.nn.functional as F
from fastai.losses import BCEWithLogitsLossFlat
from torchvision.ops import sigmoid_focal_loss
from vision_tasks.data.annotation import Annotation
from vision_tasks.losses import AsymmetricLoss, MULTILABEL_LOSSES, MultilabelBCE, MultilabelFocal, balanced_pos_weight

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
    with pytest.raises(ValueError, match="none of them nan"): f.thresh = [.1, float('nan')]
    with pytest.raises(ValueError, match="one number per class"): f.thresh = [[.1], [.2]]
    with pytest.raises(ValueError, match="pos_weight has 2 values, but there are 5 classes"):
        MultilabelBCE([1., 2.])(x, y)
    with pytest.raises(ValueError, match=r"\(16, 4\) logits for \(16, 5\) targets: its last layer needs n_out=5"):
        MultilabelBCE()(x[:,:4], y)

def test_balanced_pos_weight_counts_absent_for_present():
    anns = [Annotation(f'{i}.jpg', (1, 1), o) for i,o in enumerate([['a'], ['a', 'a', 'b'], ['a'], []])]
    assert balanced_pos_weight(anns, ['a', 'b', 'c']).tolist() == pytest.approx([1/3, 3., 1.])
    assert balanced_pos_weight(anns, ['a', 'b', 'c'], most=2.).tolist() == pytest.approx([1/3, 2., 1.])
