import copy, math
from itertools import product
import numpy as np, pytest, torch
import torch.nn.functional as F
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.learner import Learner
from fastai.vision.core import TensorMask
from sklearn.metrics import f1_score
from torch import nn
from torchvision.ops import sigmoid_focal_loss
from vision_tasks.data.annotation import Annotation
from vision_tasks.data.errors import AnnotationError
from vision_tasks.ops.masks import VOID
from vision_tasks.data.class_weights import class_weights
from vision_tasks.losses.borders import BorderCE, border_weights
from vision_tasks.losses.segmentation import (SEGMENTATION_LOSSES, SegmentationCE, SegmentationCEDice, SegmentationDice,
                                              SegmentationFocal, crop_target)

close = torch.testing.assert_close
LOSSES = [*SEGMENTATION_LOSSES.values(), BorderCE]

def batch(b=3, c=5, h=9, w=12, void=.2, scale=3., seed=0):
    g = torch.Generator().manual_seed(seed)
    y = torch.randint(0, c, (b, h, w), generator=g)
    y[torch.rand(b, h, w, generator=g) < void] = VOID
    return torch.randn(b, c, h, w, generator=g)*scale,y

def onehot(y, c): return torch.stack([y == i for i in range(c)], 1).double()

@pytest.mark.parametrize('weight', [None, torch.tensor([1., 2, 3, .5, 0])])
@pytest.mark.parametrize('reduction', ['mean', 'sum'])
def test_ce_equals_pytorch_with_void_ignored(weight, reduction):
    x,y = batch()
    close(SegmentationCE(weight, reduction=reduction)(x, y),
          F.cross_entropy(x, y, weight, ignore_index=VOID, reduction=reduction))

@pytest.mark.parametrize('gamma', [0., .5, 2.])
@pytest.mark.parametrize('alpha', [-1, .25])
def test_focal_of_two_classes_equals_torchvisions_sigmoid_focal_loss(gamma, alpha):
    x,y = batch(c=2)
    on = y != VOID
    want = sigmoid_focal_loss((x[:,1] - x[:,0])[on], y[on].float(), alpha=alpha, gamma=gamma, reduction='sum')
    f = SegmentationFocal(gamma, None if alpha < 0 else [1-alpha, alpha], reduction='sum')
    close(f(x, y), want)

def test_focal_is_its_formula_for_many_classes_and_cross_entropy_without_focus():
    x,y = batch()
    p = x.double().softmax(1).gather(1, y.where(y != VOID, 0)[:,None])[:,0][y != VOID]
    close(SegmentationFocal(2.)(x, y).double(), (-(1-p)**2*p.log()).mean(), atol=1e-6, rtol=1e-6)
    w = torch.tensor([1., 2, 3, .5, 4])
    close(SegmentationFocal(0., w)(x, y), SegmentationCE(w)(x, y))

def test_focal_has_a_finite_gradient_where_the_answer_is_right_beyond_float32():
    x = torch.tensor([80., 0, -80]).view(1, 3, 1, 1).repeat(1, 1, 1, 3).requires_grad_()
    SegmentationFocal(.5)(x, torch.tensor([[[0, 1, 2]]])).backward()
    assert x.grad.isfinite().all() and x.grad[...,1:].abs().min() >= 0 and x.grad[...,2].abs().sum() > 0

@pytest.mark.parametrize('smooth', [0., 1.])
def test_dice_is_its_formula_over_the_classes_that_are_there(smooth):
    x,y = batch()
    y[y == 3] = 1
    on = (y != VOID)[:,None]
    p,t = x.double().softmax(1)*on,onehot(y, 5)
    def want(dims): # the classes but 3
        d = 1 - (2*(p*t).sum(dims)+smooth)/(p.sum(dims)+t.sum(dims)+smooth)
        return d[...,[0, 1, 2, 4]]
    tol = dict(atol=1e-6, rtol=1e-6)
    close(SegmentationDice(smooth)(x, y).double(), want((0, 2, 3)).mean(), **tol)
    close(SegmentationDice(smooth, reduction='sum')(x, y).double(), want((0, 2, 3)).sum(), **tol)
    close(SegmentationDice(smooth, reduction='none')(x, y).double(), want((2, 3)).mean(1), **tol)

def test_dice_of_sure_answers_is_one_minus_sklearns_macro_f1():
    x,y = batch()
    on = y != VOID
    want = f1_score(y[on], x.argmax(1)[on], labels=y[on].unique(), average='macro')
    assert SegmentationDice(0.)(F.one_hot(x.argmax(1), 5).permute(0, 3, 1, 2)*200., y).item() == pytest.approx(1-want)

def test_dice_of_a_large_picture_is_as_exact_as_in_float64():
    "Adding a million equal numbers one by one in float32 would be percents away"
    x = torch.zeros(1, 3, 1000, 1000)
    y = torch.zeros(1, 1000, 1000, dtype=torch.uint8)
    assert SegmentationDice(0.)(x, y).item() == pytest.approx(1 - 2/3/(1/3+1), abs=1e-5)

def test_ce_dice_is_the_sum_of_both():
    x,y = batch()
    w = [1., 2, 3, .5, 4]
    for r in ('mean', 'sum', 'none'):
        close(SegmentationCEDice(w, dice=.3, smooth=2., reduction=r)(x, y),
              SegmentationCE(w, reduction=r)(x, y) + .3*SegmentationDice(2., reduction=r)(x, y))

@pytest.mark.parametrize('cls', LOSSES)
def test_void_gives_neither_loss_nor_gradient(cls):
    x,y = batch()
    on,f = (y != VOID)[:,None].expand_as(x),cls()
    x.requires_grad_()
    f(x, y).backward()
    assert (x.grad[~on] == 0).all() and (x.grad[on] != 0).any()
    close(f(torch.where(on, x, torch.randn_like(x)*9), y), f(x, y))

@pytest.mark.parametrize('cls', LOSSES)
@pytest.mark.parametrize('reduction', ['mean', 'sum', 'none'])
def test_a_batch_of_only_void_has_loss_0_and_no_gradient(cls, reduction):
    x,y = batch(void=1.)
    x.requires_grad_()
    loss = cls(reduction=reduction)(x, y)
    assert (loss == 0).all()
    loss.sum().backward()
    assert (x.grad == 0).all()

@pytest.mark.parametrize('cls', LOSSES)
@pytest.mark.parametrize('reduction', ['mean', 'sum', 'none'])
@pytest.mark.parametrize('bad', [float('nan'), float('inf')])
def test_a_batch_of_only_void_has_loss_0_whatever_the_logits_are(cls, reduction, bad):
    x,y = batch(void=1.)
    x = (x + bad).requires_grad_()
    loss = cls(reduction=reduction)(x, y)
    loss.sum().backward()
    assert loss.shape == (() if reduction != 'none' else (len(x),)) and (loss == 0).all() and (x.grad == 0).all()

GAMMAS = 0.,.1,.5,1.,2.5
@pytest.mark.parametrize('reduction', ['mean', 'sum', 'none'])
@pytest.mark.parametrize('losses', [
    [SegmentationCE()], [SegmentationFocal(g, w) for g in GAMMAS for w in (None, [1., 0, .1])],
    [SegmentationDice(o) for o in (0., 1e-6, 1.)],
    [SegmentationCEDice(dice=d, smooth=s) for d in (0., 1.) for s in (0., 1.)],
    [BorderCE(sigma=.1), BorderCE(w0=0.)]], ids=lambda o: type(o[0]).__name__)
def test_every_logit_has_a_finite_gradient_for_every_parameter_of_the_loss(losses, reduction):
    values = [s*v for s in (-1, 1) for v in (0., 1e-4, 17., 90., 104., 1e4, 1e36)]
    x0 = torch.tensor([[a, b, 0.] for a in values for b in values]).T.reshape(1, 3, len(values), len(values))
    for f,c in product(losses, range(3)):
        x = x0.clone().requires_grad_()
        y = torch.full((1, *x.shape[2:]), c); y[0, :, ::5] = VOID
        f.reduction = reduction
        f(x, y).sum().backward()
        assert x.grad.isfinite().all() and (x.grad[:, :, :, ::5] == 0).all(), (vars(f), c)

def test_parameters_that_make_no_sense_are_refused():
    for f,words in ((lambda: SegmentationFocal(-1.), "gamma: expected a number of 0 or more, got -1.0"),
                    (lambda: SegmentationDice(-1.), "smooth: expected a number of 0 or more, got -1.0"),
                    (lambda: SegmentationCEDice(dice=-1.), "dice: expected a number of 0 or more, got -1.0"),
                    (lambda: BorderCE(sigma=0), "sigma: expected pixels between 0 and 100000, both excluded, got 0"),
                    (lambda: SegmentationCE([1., float('nan')]), "weight: expected a list of weights, finite numbers")):
        with pytest.raises(ValueError, match=words): f()

@pytest.mark.parametrize('cls', LOSSES)
def test_reduction_none_is_the_mean_of_each_picture_alone(cls):
    x,y = batch()
    y[1] = VOID
    each = cls(reduction='none')(x, y)
    assert each.shape == (3,) and each[1] == 0
    close(each, torch.stack([cls()(x[i:i+1], y[i:i+1]) for i in range(3)]))

@pytest.mark.parametrize('cls', LOSSES)
def test_targets_of_any_integer_dtype_and_half_precision_logits_serve(cls):
    x,y = batch()
    want = cls()(x, y)
    for d in (torch.uint8, torch.int16, torch.int32, torch.uint16): close(cls()(x, TensorMask(y.to(d))), want)
    h = x.bfloat16().requires_grad_()
    loss = cls()(h, y)
    loss.backward()
    assert loss.dtype == torch.float32 and h.grad.isfinite().all() and h.grad.abs().sum() > 0

@pytest.mark.parametrize('cls', LOSSES)
def test_activation_gives_probabilities_and_decodes_the_class(cls):
    x,_ = batch()
    f = copy.deepcopy(cls())
    close(f.activation(x), x.softmax(1))
    assert torch.equal(f.decodes(f.activation(x)), x.argmax(1))

@pytest.mark.parametrize('cls', LOSSES)
def test_logits_of_the_centre_are_compared_with_the_centre(cls):
    x,y = batch(h=9, w=12)
    around = torch.full((3, 9+8, 12+8), 1)
    around[:, 4:13, 4:16] = y
    assert torch.equal(crop_target(around, (9, 12)), y)
    close(cls()(x, around), cls()(x, y))

@pytest.mark.parametrize('hw', [(9, 13), (10, 12), (10, 13), (11, 16), (8, 10), (7, 12), (36, 48)])
def test_other_sizes_are_told_with_both_shapes(hw):
    "One row more, unequal margins, a smaller target, a net that answers for every fourth pixel"
    x,_ = batch(h=9, w=12)
    with pytest.raises(ValueError, match=f"logits of 9 x 12 for targets of {hw[0]} x {hw[1]}, height x width"):
        SegmentationCE()(x, torch.zeros(3, *hw, dtype=torch.long))

def test_values_beyond_the_classes_and_wrong_shapes_are_told():
    x,y = batch()
    y[0, 0, :3] = torch.tensor([5, 7, -100])
    with pytest.raises(ValueError, match=r"holds \[-100, 5, 7\], but the model gives 5 classes, 0 to 4, beside 255"):
        SegmentationCE()(x, y)
    with pytest.raises(ValueError, match=r"whole numbers; got \(3, 5, 9, 12\) and \(3, 9, 12\) of torch.float32"):
        SegmentationCE()(x, y.float())
    with pytest.raises(ValueError, match=r"got \(3, 5, 9, 12\) and \(2, 9, 12\)"): SegmentationCE()(x, y[:2])
    with pytest.raises(ValueError, match=r"got \(3, 5, 9, 12\) and \(3, 1, 9, 12\)"): SegmentationCE()(x, y[:,None])
    with pytest.raises(ValueError, match="weight has 2 values, but there are 5 classes"):
        SegmentationCE([1., 2.])(*batch())
    with pytest.raises(ValueError, match="reduction: expected one of 'mean', 'sum', 'none', got 'avg'"):
        SegmentationDice(reduction='avg')

@pytest.mark.train
@pytest.mark.parametrize('name', SEGMENTATION_LOSSES)
def test_a_learner_learns_and_gives_a_loss_for_each_picture(name):
    g = torch.Generator().manual_seed(0)
    x = torch.rand(12, 3, 8, 8, generator=g)
    y = x.argmax(1).to(torch.uint8)
    y[:, 0] = VOID
    y[5] = VOID
    items = list(zip(x, y))
    dls = DataLoaders(DataLoader(items, bs=4), DataLoader(items, bs=5))
    torch.manual_seed(0)
    learn = Learner(dls, nn.Conv2d(3, 3, 1), loss_func=SEGMENTATION_LOSSES[name](), lr=.3)
    before = learn.validate()[0]
    with learn.no_logging(): learn.fit(8)
    assert learn.validate()[0] < .7*before
    probs,targs,losses = learn.get_preds(with_loss=True)
    assert losses.shape == (12,) and losses[5] == 0 and learn.loss_func.reduction == 'mean'
    close(probs.sum(1), torch.ones(12, 8, 8))
    with torch.no_grad(): out = learn.model(x)
    close(losses, torch.stack([learn.loss_func(out[i:i+1], y[i:i+1]) for i in range(12)]))

# --- weights of classes

def masks(*arrays): return [Annotation(f'{i}.png', np.shape(o)[::-1], mask=np.array(o)) for i,o in enumerate(arrays)]

def test_median_frequency_is_that_of_the_paper_and_1_for_an_absent_class():
    anns = masks([[0, 0, 0, 1]], [[0, 0], [2, VOID]], [[0, 0]])
    # share of the pictures that hold the class: 7 of 10, 1 of 4, 1 of 4; the median is that of 1 and 2
    assert class_weights(anns, 4).tolist() == pytest.approx([.25/.7, 1., 1., 1.])

def test_inverse_weights_make_classes_count_the_same_and_a_pixel_1_in_the_mean():
    anns = masks([[0, 0, 0, 1]], [[0, 0], [2, VOID]])
    w = class_weights(anns, 4, 'inverse')
    n = torch.tensor([5., 1, 1, 0])
    assert (w*n)[:3].tolist() == pytest.approx([7/3]*3) and w[3] == 1
    assert class_weights(anns, 2+1, None).tolist() == [1, 1, 1]

@pytest.mark.parametrize('kind', ['median_frequency', 'inverse', None])
def test_no_class_is_silenced_by_its_count(kind):
    "A class that fills every image, one of a single pixel, one of no pixel"
    one = np.zeros((64, 64), int); one[5, 7] = 1
    for anns,n in ((masks(*[np.zeros((64, 64), int)]*5), 2), (masks(one, *[np.zeros((64, 64), int)]*50), 3)):
        w = class_weights(anns, n, kind)
        assert w.isfinite().all() and (w > 0).all() and w[-1] == 1
    # the 51 images hold class 0, one of them class 1
    freq = np.array([1 - 1/(51*64**2), 1/64**2]) if kind == 'median_frequency' else np.array([51*64**2-1, 1])/(51*64**2)
    want = dict(median_frequency=np.median(freq)/freq, inverse=.5/freq).get(kind, [1, 1])
    np.testing.assert_allclose(w[:2], want, rtol=1e-6)

def test_class_weights_reach_the_loss_and_refuse_what_they_cannot_weigh():
    x,y = batch(c=3)
    w = class_weights(masks(*y.numpy()), 3)
    close(SegmentationCE(w)(x, y), F.cross_entropy(x, y, w, ignore_index=VOID))
    with pytest.raises(AnnotationError, match=r"has 2 \(1 pixels\), but there are 2 classes"):
        class_weights(masks([[0, 2]]), 2)
    with pytest.raises(AnnotationError, match="the 1 masks have no pixel with a class"):
        class_weights(masks([[VOID, VOID]]), 2)
    with pytest.raises(ValueError, match="kind: expected one of 'median_frequency', 'inverse', None, got 'median'"):
        class_weights([], 2, 'median')

# --- borders

def brute_border_weights(mask, w0, sigma, background):
    "Flood fill for the objects, and every distance from each pixel to each pixel"
    h,w = mask.shape
    left,objects = {(i, j) for i in range(h) for j in range(w) if mask[i, j] not in (background, VOID)},[]
    while left:
        todo,found = [left.pop()],[]
        while todo:
            i,j = todo.pop()
            found.append((i, j))
            near = {(i+a, j+b) for a in (-1, 0, 1) for b in (-1, 0, 1)} & left
            near = {o for o in near if mask[o] == mask[i, j]}
            left -= near; todo += near
        objects.append(np.array(found))
    res = np.zeros(mask.shape)
    for i in range(h):
        for j in range(w):
            d = sorted(np.hypot(*(o-[i, j]).T).min() for o in objects)
            if len(d) > 1: res[i, j] = w0*math.exp(-(d[0]+d[1])**2/(2*sigma**2))
    return res

@pytest.mark.parametrize('background', [0, None, 2])
@pytest.mark.parametrize('seed', range(3))
def test_border_weights_equal_brute_force(background, seed):
    rng = np.random.default_rng(seed)
    mask = np.zeros((23, 31), np.uint8)
    for _ in range(7):
        i,j,k = *rng.integers(0, [20, 28]),rng.choice([1, 2, VOID])
        mask[i:i+rng.integers(1, 6), j:j+rng.integers(1, 6)] = k
    mask[:2, :2] = [[1, 0], [0, 1]]   # one object, over a corner
    for w0,sigma in ((10., 5.), (3., 1.)):
        got = border_weights(mask, w0, sigma, background)
        assert got.shape == mask.shape and got.dtype == np.float32
        np.testing.assert_allclose(got, brute_border_weights(mask, w0, sigma, background), atol=2e-6*w0)

def test_border_weights_are_0_without_two_objects_and_highest_in_the_gap():
    mask = np.zeros((20, 20), np.uint8)
    assert (border_weights(mask) == 0).all()
    mask[5:10, 2:8] = 1
    assert (border_weights(mask) == 0).all()
    mask[5:10, 9:15] = 1
    w = border_weights(mask)
    assert w.max() == w[7, 8] == pytest.approx(10*math.exp(-2**2/50))

def test_border_ce_is_cross_entropy_by_class_and_border():
    x,_ = batch(b=2, c=3, h=12, w=12)
    y = torch.zeros(2, 12, 12, dtype=torch.long)
    y[0, 3:6, 2:5],y[0, 3:6, 6:9],y[:, 10] = 1,2,VOID
    cw = torch.tensor([1., 2., 3.])
    w = torch.stack([torch.from_numpy(border_weights(m)) for m in y.numpy()]) + cw[y.where(y != VOID, 0)]
    w,on = w[y != VOID],y != VOID
    ce = F.cross_entropy(x, y, ignore_index=VOID, reduction='none')[on]
    close(BorderCE(cw)(x, y), (ce*w).sum()/w.sum())
    close(BorderCE(cw, reduction='sum')(x, y), (ce*w).sum())
    assert BorderCE(w0=0.)(x, y) == SegmentationCE()(x, y)
