"The dense CRF against the sum over all pairs of pixels, and against pydensecrf2"
from functools import partial
import numpy as np, pytest, torch
import torch.nn.functional as F
from fastai.vision.all import TensorImage
from torch import nn
from torchvision.transforms.v2.functional import pil_to_tensor
from vision_tasks.data.annotation import Annotation
from vision_tasks.data.image import open_image
from vision_tasks.data.class_masks import decode_class_mask
from vision_tasks.data.synthetic import SHAPE_CODES, draw_shapes
from vision_tasks.data.transforms import JointTransform
from vision_tasks.metrics.segmentation import confusion_counts, confusion_scores
from vision_tasks.ops.crf import dense_crf
from vision_tasks.segmentation import segmentation_dls, segmentation_learner

DEFAULTS = dict(w1=4., sa=49., sb=5., w2=3., sg=3.)
KERNELS  = [{}, dict(w1=0.), dict(w2=0.), dict(sa=10., sb=13.), dict(w1=8., sa=20., sb=20., w2=1., sg=1.5)]

def scene(h, w, c=4, seed=0):
    "(c, h, w) probabilities of which a fifth is wrong, (3, h, w) image: shaded regions with edges, and noise"
    rng = np.random.default_rng(seed)
    ys,xs = np.mgrid[:h, :w]
    centres = rng.uniform(0, [h, w], (2*c, 2))
    labels = ((ys[...,None]-centres[:,0])**2 + (xs[...,None]-centres[:,1])**2).argmin(-1) % c
    im = rng.uniform(30, 220, (c, 3))[labels] + (20*ys/h + 10*xs/w)[...,None] + rng.normal(0, 3, (h, w, 3))
    said = np.where(rng.random((h, w)) < .2, rng.integers(0, c, (h, w)), labels)
    p = np.eye(c)[said] + rng.random((h, w, c))
    p = torch.from_numpy(p/p.sum(-1, keepdims=True)).float()
    return p.permute(2, 0, 1).contiguous(),torch.from_numpy(im.clip(0, 255).astype(np.uint8)).permute(2, 0, 1)

def all_pairs(probs, image, w1=4., sa=49., sb=5., w2=3., sg=3., n_iter=10):
    "The definition, in float64"
    c,h,w = probs.shape
    at   = torch.cartesian_prod(torch.arange(h), torch.arange(w)).double()
    near = torch.cdist(at, at)**2
    grey = torch.cdist(*[image.flatten(1).T.double()]*2)**2
    total = 0
    for weight,k in ((w1, (-near/(2*sa**2) - grey/(2*sb**2)).exp()), (w2, (-near/(2*sg**2)).exp())):
        s = k.sum(1).rsqrt()
        total = total + weight*s[:,None]*k*s
    u = -probs.double().clamp(min=1e-8).log().flatten(1)
    q = (-u).softmax(0)
    for _ in range(n_iter): q = (-u + q@total).softmax(0)
    return q.view(c, h, w)

def gap(a, b): return (a-b).abs().mean().item()
def agree(a, b): return (a.argmax(-3) == b.argmax(-3)).float().mean().item()

# --- oracles

@pytest.mark.parametrize('kw', KERNELS, ids=str)
@pytest.mark.parametrize('size', [(31, 47), (48, 37), (40, 40)], ids=str)
def test_dense_crf_is_close_to_the_sum_over_all_pairs(size, kw):
    probs,im = scene(*size)
    want,got = all_pairs(probs, im, **kw),dense_crf(probs, im, **kw)
    assert gap(got, want) < .02 and agree(got, want) > .98
    assert gap(probs, want) > .1      # there was something to do

@pytest.mark.parametrize('c', [1, 2, 21])
def test_dense_crf_takes_any_number_of_classes(c):
    probs,im = scene(30, 33, c, seed=1)
    want,got = all_pairs(probs, im),dense_crf(probs, im)
    assert gap(got, want) < .02 and agree(got, want) > .98

@pytest.mark.parametrize('sg', [.5, 1., 3., 40.])
def test_the_spatial_kernel_is_nearly_exact(sg):
    probs,im = scene(25, 34)
    torch.testing.assert_close(dense_crf(probs, im, w1=0., sg=sg, n_iter=3).double(),
                               all_pairs(probs, im, w1=0., sg=sg, n_iter=3), atol=.01, rtol=0)

@pytest.mark.parametrize('size', [(1, 60), (60, 1), (2, 3), (1, 1)], ids=str)
def test_lines_and_single_pixels_are_images_too(size):
    probs,im = scene(*size)
    want,got = all_pairs(probs, im),dense_crf(probs, im)
    assert gap(got, want) < .02 and agree(got, want) > .98

@pytest.mark.parametrize('grey', [0, 255])
def test_an_image_of_one_colour_has_places_only(grey):
    probs = scene(40, 41)[0]
    im = torch.full((3, 40, 41), grey, dtype=torch.uint8)
    want,got = all_pairs(probs, im, w2=0.),dense_crf(probs, im, w2=0.)
    assert gap(got, want) < .02 and agree(got, want) > .98
    flat = torch.full((4, 40, 41), .25)
    torch.testing.assert_close(dense_crf(flat, im), flat)

def test_messages_beyond_what_exp_can_hold_are_no_problem():
    probs,im = scene(20, 23)
    got,want = dense_crf(probs, im, w1=0., w2=500.),all_pairs(probs, im, w1=0., w2=500.)
    torch.testing.assert_close(got.sum(0), torch.ones(20, 23))
    assert agree(got, want) > .98

@pytest.mark.parametrize('kw', KERNELS, ids=str)
def test_dense_crf_answers_as_pydensecrf2(kw):
    D = pytest.importorskip('pydensecrf.densecrf', reason="pydensecrf2 is not here: it is built by a C++ compiler")
    probs,im = scene(61, 83, 5)
    c,h,w = probs.shape
    o = {**DEFAULTS, **kw}
    d,how = D.DenseCRF2D(w, h, c),dict(kernel=D.DIAG_KERNEL, normalization=D.NORMALIZE_SYMMETRIC)
    d.setUnaryEnergy(-probs.log().flatten(1).numpy())
    if o['w2']: d.addPairwiseGaussian(sxy=o['sg'], compat=o['w2'], **how)
    if o['w1']: d.addPairwiseBilateral(sxy=o['sa'], srgb=o['sb'], rgbim=im.permute(1, 2, 0).contiguous().numpy(),
                                       compat=o['w1'], **how)
    want,got = torch.from_numpy(np.array(d.inference(10))).view(c, h, w),dense_crf(probs, im, **kw)
    assert gap(probs, want) > .1
    # its lattice is ours, but for the spatial kernel it takes one too, where ours is exact
    if not o['w2']: assert gap(got, want) < 1e-3 and agree(got, want) > .999
    assert gap(got, want) < .01 and agree(got, want) > .98

# --- invariants

def test_a_batch_is_answered_as_its_images_one_by_one():
    "Of which two are the same image, so that they would share vertices, and one has another range of colours"
    (p,im),(q,jm) = scene(30, 45, seed=0),scene(30, 45, seed=1)
    probs,images = torch.stack([p, q, q]),torch.stack([im, jm//2, im])
    want = torch.stack([dense_crf(*o) for o in zip(probs, images)])
    torch.testing.assert_close(dense_crf(probs, images), want, atol=1e-4, rtol=0)

def test_classes_in_another_order_give_the_answer_in_that_order():
    probs,im = scene(30, 45, 6)
    order = [3, 0, 5, 1, 4, 2]
    torch.testing.assert_close(dense_crf(probs[order], im), dense_crf(probs, im)[order], atol=1e-4, rtol=0)

def test_a_mirrored_image_has_the_mirrored_answer():
    probs,im = scene(40, 45)
    for dim in (1, 2):
        got,want = dense_crf(probs.flip(dim), im.flip(dim)).flip(dim),dense_crf(probs, im)
        assert gap(got, want) < .01 and agree(got, want) > .99

@pytest.mark.parametrize('kw', [dict(n_iter=0), dict(w1=0., w2=0.)], ids=str)
def test_without_iterations_or_kernels_nothing_changes(kw):
    probs,im = scene(20, 30)
    probs[:, 3, 4] = torch.tensor([1., 0, 0, 0])
    torch.testing.assert_close(dense_crf(probs, im, **kw), probs, atol=1e-6, rtol=0)

@pytest.mark.parametrize('dtype', [torch.float64, torch.float16, torch.bfloat16])
def test_the_answer_is_like_probs_sums_to_one_and_has_no_gradient(dtype):
    probs,im = scene(20, 30)
    given,seen = probs.to(dtype).requires_grad_(),TensorImage(im.clone())
    got = dense_crf(given, seen)
    assert type(got) is torch.Tensor and got.dtype == dtype and got.shape == probs.shape and not got.requires_grad
    torch.testing.assert_close(got.float().sum(0), torch.ones(20, 30), atol=.02, rtol=0)
    assert gap(got.float(), dense_crf(probs, im)) < .01
    assert torch.equal(given.detach(), probs.to(dtype)) and torch.equal(seen.as_subclass(torch.Tensor), im)

def test_unknown_pixels_stay_so_and_say_nothing_to_the_others():
    probs,im = scene(30, 40)
    probs[:, :, 25:] = 0
    got = dense_crf(probs, im)
    assert (got[:, :, 25:] == 0).all()
    torch.testing.assert_close(got[:, :, :25].sum(0), torch.ones(30, 25))
    assert not dense_crf(torch.zeros_like(probs), im).any()
    # without a neighbour that speaks, what a pixel thinks of itself decides
    alone = torch.zeros_like(probs)
    alone[:, 5, 5] = probs[:, 5, 5]
    assert agree(dense_crf(alone, im)[:, 5:6, 5:6], probs[:, 5:6, 5:6]) == 1

# --- what it is for

def test_a_noisy_mask_of_drawn_shapes_gets_better(tmp_path):
    torch.manual_seed(0)
    before = after = 0
    for a in draw_shapes(tmp_path, n=4, size=96, seed=1):
        mask,im = torch.from_numpy(decode_class_mask(a.mask)),pil_to_tensor(open_image(a.path))
        n = len(SHAPE_CODES)
        # errors in patches, as of a net whose answers are coarse
        wrong = F.interpolate((torch.rand(1, 1, 24, 24) < .2).float(), 96)[0, 0] > 0
        coarse = F.interpolate(torch.randint(n, (1, 1, 24, 24)).float(), 96)[0, 0].long()
        said = torch.where(wrong, coarse, mask.where(mask != 255, 0).long())
        probs = F.one_hot(said, n).permute(2, 0, 1)*.5 + .5/n
        before = before + confusion_counts(said, mask, n)
        after  = after + confusion_counts(dense_crf(probs, im).argmax(0), mask, n)
    before,after = (confusion_scores(o)['miou'] for o in (before, after))
    assert after > before + .15, (before, after)

class Pixelwise(nn.Module):
    "Knows nothing, and says of neighbours different things"
    def __init__(self, n_out):
        super().__init__()
        self.score = nn.Conv2d(3, n_out, 1)
    def forward(self, x): return self.score((20*x).sin())

def pixelwise(shapes, view):
    anns = [Annotation(a.path, a.size, mask=a.mask) for a in shapes]
    dls = segmentation_dls(anns, SHAPE_CODES, item_tfms=JointTransform((48, 32), valid=view), bs=4, num_workers=0,
                           device='cpu')
    torch.manual_seed(0)
    return segmentation_learner(dls, Pixelwise(len(SHAPE_CODES)), pretrained=False)

@pytest.mark.parametrize('view', ['squish', 'crop'])
@pytest.mark.filterwarnings('ignore:Pixelwise has no attribute')
def test_tune_crf_ranks_parameters_by_the_mean_iou_that_annotate_gets_with_them(shapes, view):
    learn = pixelwise(shapes, view)
    valid,c = list(learn.dls.valid.items),len(SHAPE_CODES)
    with learn.no_bar():
        df = learn.tune_crf(dict(w1=[1., 8.], n_iter=[1, 3]))
        assert len(df) == 5 and df.miou.is_monotonic_decreasing and df.miou.nunique() > 1
        for row in df.to_dict('records'):
            miou,kw = row.pop('miou'),{k: int(v) if k == 'n_iter' else v for k,v in row.items() if v == v}
            said = learn.annotate(valid, postprocess=partial(dense_crf, **kw))
            cm = sum(confusion_counts(p.mask, decode_class_mask(a.mask), c) for p,a in zip(said, valid))
            assert confusion_scores(cm)['miou'] == pytest.approx(miou)
        assert sorted(learn.tune_crf({}, n=1).n_iter) == [0, 10]

@pytest.mark.parametrize('view', ['squish', 'crop'])
@pytest.mark.filterwarnings('ignore:Pixelwise has no attribute')
def test_dense_crf_fits_annotate_as_it_is(shapes, view):
    learn = pixelwise(shapes, view)
    with learn.no_bar():
        items = learn.dls.train.items[:2]
        plain,smooth = (learn.annotate(items, postprocess=partial(dense_crf, n_iter=n)) for n in (0, 5))
    edges = lambda m: (m[1:] != m[:-1]).sum() + (m[:,1:] != m[:,:-1]).sum()
    for a,b in zip(plain, smooth):
        assert np.array_equal(a.mask == 255, b.mask == 255) and (a.mask == 255).any() == (view == 'crop')
        assert edges(b.mask) < edges(a.mask)

@pytest.mark.cuda
@pytest.mark.parametrize('kw', KERNELS, ids=str)
def test_a_gpu_gives_what_the_cpu_gives(kw):
    if not torch.cuda.is_available(): pytest.skip('needs a GPU')
    (p,im),(q,jm) = scene(61, 83, 5, seed=0),scene(61, 83, 5, seed=1)
    probs,images = torch.stack([p, q]),torch.stack([im, jm])
    got,want = dense_crf(probs.cuda(), images, **kw),dense_crf(probs, images, **kw)
    assert got.is_cuda and gap(got.cpu(), want) < 1e-3 and agree(got.cpu(), want) > .999

# --- what it says to bad input

@pytest.mark.parametrize('change,error', [
    (lambda p, im: (p.log(), im),             r"probs are in -.*; expected 0..1, with a sum of 1: pass logits.softmax"),
    (lambda p, im: (p[1:], im),               r"sums over the classes in .*; expected 0..1, with a sum of 1"),
    (lambda p, im: (p*float('nan'), im),      r"probs are in nan..nan"),
    (lambda p, im: (p + torch.tensor([2., -2, 0, 0])[:,None,None], im), r"probs are in -.*; expected 0..1"),
    (lambda p, im: (p, im[:, :-1]),           r"image torch.uint8 \(3, 8, 12\); .* an image .*\(3, 9, 12\): resize"),
    (lambda p, im: (p, im[:1]),               r"expected an image of the size of probs, \(3, 9, 12\)"),
    (lambda p, im: (p, im.permute(1, 2, 0)),  r"image torch.uint8 \(9, 12, 3\); expected .* \(3, 9, 12\)"),
    (lambda p, im: (p, im/255),               r"got .* image torch.float32 .*; expected uint8 in 0..255"),
    (lambda p, im: (p[0], im),                r"expected probs as a float tensor \(c, h, w\) or \(b, c, h, w\)"),
    (lambda p, im: (p[None], im),             r"expected an image of the size of probs, \(1, 3, 9, 12\)"),
    (lambda p, im: (p[None], im.expand(2, -1, -1, -1)), r"image torch.uint8 \(2, 3, 9, 12\); .* \(1, 3, 9, 12\)"),
    (lambda p, im: (p.argmax(0), im),         r"got probs torch.int64 \(9, 12\), .*; expected probs as a float tensor"),
    (lambda p, im: (p.numpy(), im),           r"got probs ndarray, .*; expected probs as a float tensor"),
    (lambda p, im: (p, im.numpy()),           r"image ndarray; expected"),
    (lambda p, im: (p[:, :0], im[:, :0]),     r"expected at least one class and one pixel")])
def test_bad_tensors_are_told(change, error):
    with pytest.raises(ValueError, match=error): dense_crf(*change(*scene(9, 12)))

@pytest.mark.parametrize('kw,error', [
    (dict(sa=0.), "sa: expected a standard deviation from 0.001 to 1000000, got 0.0"), (dict(sb=-5.), "sb: .* -5.0"),
    (dict(sg=float('nan')), "sg: .* got nan"), (dict(sg=float('inf')), "sg: .* got inf"),
    (dict(w1=-1.), "w1: expected a weight .* got -1.0"), (dict(w2=float('nan')), "w2: .* got nan"),
    (dict(n_iter=-1), "n_iter: expected a whole number .* got -1"), (dict(sa=1e-3, sb=1e-3), "sa and sb are so small")])
def test_bad_parameters_are_told(kw, error):
    with pytest.raises(ValueError, match=error): dense_crf(*scene(9, 12), **kw)
