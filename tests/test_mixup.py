"""fastai's MixUp and CutMix in multi-label and single-label classification: what is drawn is replayed, and images and
losses are recomputed with numpy"""
import numpy as np, pytest, torch
from torch import nn
from torch.distributions.beta import Beta
from fastai.vision.all import Callback, CutMix, EarlyStoppingCallback, MixUp, load_learner, set_seed
from vision_tasks.classification import classification_dls, classification_learner
from vision_tasks.data.annotation import Annotation
from vision_tasks.losses.classes import ClassificationCE, ClassificationFocal
from vision_tasks.losses.labels import AsymmetricLoss, MultilabelBCE, MultilabelFocal
from vision_tasks.multilabel import multilabel_dls, multilabel_learner

W,H,C = 32,24,4
VOCAB = ['circle', 'square', 'star', 'triangle']

class Net(nn.Module):
    "Each image by itself, so that mixing two of them is seen in the loss alone"
    def __init__(self, n_out):
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(3, 8, 5, 4), nn.ReLU())
        self.head = nn.Linear(8, n_out)
    def forward(self, x): return self.head(self.encoder(x).mean((2, 3)))

@pytest.fixture(scope='module')
def one_each(shapes): return [Annotation(a.path, a.size, a.labels[:1]) for a in shapes if a.labels]

@pytest.fixture(params=['multilabel', 'classification'])
def make(request, shapes, one_each, tmp_path):
    "A learner of either task, the same at every call"
    def make(task=request.param, bs=6, **kw):
        set_seed(0)
        dls_of,learner,anns = ((multilabel_dls, multilabel_learner, shapes) if task == 'multilabel' else
                               (classification_dls, classification_learner, one_each))
        dls = dls_of(anns, VOCAB, size=(W, H), bs=bs, num_workers=0, device='cpu', path=tmp_path)
        return quiet(learner(dls, Net, pretrained=False, **kw))
    return make

def quiet(learn):
    learn.remove_cb(learn.progress)
    learn.logger = lambda *_: None
    return learn

# --- the oracle

class Before(Callback):
    "The batch and the state of the generator, before MixUp or CutMix draws"
    order,run_valid = -60,False
    def before_batch(self): self.images,self.targs,self.rng = self.x.clone(),self.y.clone(),torch.get_rng_state()

class After(Callback):
    "What the network was given, what it gave and its loss; `check(before, after)` after each batch"
    order,run_valid = 60,False
    def __init__(self, before, check): self.before,self.check,self.n = before,check,0
    def before_batch(self): self.images = self.x.clone()
    def after_loss(self):
        self.logits,self.loss_value = self.pred.detach().double().numpy(),self.loss_grad.item()
        state = torch.get_rng_state()
        self.check(self.before, self)
        torch.set_rng_state(state)
        self.n += 1

def mixed_up(before, alpha):
    "Images by MixUp, the share of the first of each pair, the second's index"
    torch.set_rng_state(before.rng)
    n = len(before.images)
    lam = Beta(torch.tensor(alpha), torch.tensor(alpha)).sample((n,)).double().numpy()
    lam = np.maximum(lam, 1-lam)
    other = torch.randperm(n).numpy()
    x = before.images.double().numpy()
    return np.stack([lam[i]*x[i] + (1-lam[i])*x[other[i]] for i in range(n)]),lam,other

def cut_and_mixed(before, alpha):
    "Images by CutMix: one box for all, of the sides that the paper's eq. 2 has, clipped to the image"
    torch.set_rng_state(before.rng)
    lam = Beta(torch.tensor(alpha), torch.tensor(alpha)).sample((1,)).item()
    other = torch.randperm(len(before.images)).numpy()
    cx,cy = torch.randint(0, W, (1,)).item(),torch.randint(0, H, (1,)).item()
    w,h = (int(np.round(np.float32(o)*np.sqrt(np.float32(1)-np.float32(lam)))) for o in (W, H))
    x,area = before.images.double().numpy().copy(),0
    old = x.copy()
    for row in range(max(cy - h//2, 0), min(cy + h//2, H)):
        for col in range(max(cx - w//2, 0), min(cx + w//2, W)):
            area += 1
            for i,j in enumerate(other): x[i,:,row,col] = old[j,:,row,col]
    return x,np.full(len(x), 1 - area/(W*H)),other

MIX = [(MixUp, mixed_up), (CutMix, cut_and_mixed)]

def sigmoid(z): return 1/(1+np.exp(-z))
def log_softmax(z):
    z = z - z.max(-1, keepdims=True)
    return z - np.log(np.exp(z).sum(-1, keepdims=True))

POS = np.array([1., 3., .5, 2.])
def bce(z, y): return -(POS*y*np.log(sigmoid(z)) + (1-y)*np.log(sigmoid(-z)))
def focal(z, y):
    p = sigmoid(z)
    return -(.3*y*(1-p)**1.5*np.log(p) + .7*(1-y)*p**1.5*np.log(1-p))
def asymmetric(z, y):
    p,pm = sigmoid(z),np.maximum(sigmoid(z)-.05, 0)
    return -(y*(1-p)*np.log(p) + (1-y)*pm**3*np.log(1-pm))

OF_LABELS = [(lambda **kw: MultilabelBCE(pos_weight=POS, **kw), bce),
             (lambda **kw: MultilabelFocal(gamma=1.5, alpha=.3, **kw), focal),
             (lambda **kw: AsymmetricLoss(gamma_pos=1., gamma_neg=3., **kw), asymmetric)]

WEIGHT = np.array([1., 2., .5, 4.])
def cross_entropy(z, y):
    "PyTorch's, where a target is a distribution: with smoothing, weights per class, and no division by their sum"
    t = .9*np.eye(C)[y] + .1/C
    return -(WEIGHT*t*log_softmax(z)).sum(-1)
def focal_of_classes(z, y):
    t = log_softmax(z)[np.arange(len(z)),y]
    return -WEIGHT[y]*(1-np.exp(t))**2*t

OF_CLASSES = [(lambda **kw: ClassificationCE(weight=WEIGHT, label_smoothing=.1, **kw), cross_entropy),
              (lambda **kw: ClassificationFocal(weight=WEIGHT, **kw), focal_of_classes)]

# --- a batch

@pytest.mark.train
@pytest.mark.parametrize('mix,oracle', MIX)
@pytest.mark.parametrize('reduction', ['mean', 'sum'])
@pytest.mark.parametrize('task,loss,by_hand', [('multilabel', *o) for o in OF_LABELS] +
                         [('classification', *o) for o in OF_CLASSES],
                         ids=['bce', 'focal', 'asymmetric', 'cross_entropy', 'focal_of_classes'])
@pytest.mark.parametrize('make', ['multilabel'], indirect=True)
def test_images_and_loss_are_mixed_from_the_two_of_each_pair(make, task, loss, by_hand, mix, oracle, reduction):
    learn = make(task, loss_func=loss(reduction=reduction))
    def check(b, a):
        x,lam,other = oracle(b, .7)
        assert_close(a.images, x, 1e-5)
        y = b.targs.numpy()
        lam = lam.reshape(-1, *[1]*(by_hand(a.logits, y).ndim-1))
        each = lam*by_hand(a.logits, y) + (1-lam)*by_hand(a.logits, y[other])
        assert a.loss_value == pytest.approx(getattr(each, reduction)(), rel=1e-4)
    before = Before()
    after = After(before, check)
    learn.fit(2, 1e-3, cbs=[before, mix(.7), after])
    assert after.n == 2*len(learn.dls.train)

def assert_close(a, b, atol): np.testing.assert_allclose(a.double().numpy(), b, atol=atol)

def test_the_focal_loss_of_a_mixed_target_is_smallest_between_its_two():
    z = torch.linspace(-8, 8, 1601)[:,None]
    for share in (.3, .7):
        best = z[MultilabelFocal(reduction='none')(z, torch.full_like(z, share)).argmin()].sigmoid().item()
        assert .25 < best < .75 and (best > .5) == (share > .5)

# --- after it

def same_answers(learn, twin, anns):
    a,b = learn.evaluate(),twin.evaluate()
    assert list(a) == list(b) and np.allclose(list(a.values()), list(b.values()), equal_nan=True)
    assert np.allclose(learn.tune_threshold()[0], twin.tune_threshold()[0])
    assert learn.loss_func.thresh == twin.loss_func.thresh
    for p,q in zip(learn.annotate(anns), twin.annotate(anns)):
        assert p.labels == q.labels and np.allclose(p.scores, q.scores)

def twin_of(learn, make):
    "A learner that never saw MixUp, with the same weights"
    twin = make()
    twin.model.load_state_dict(learn.model.state_dict())
    return twin

@pytest.mark.train
@pytest.mark.parametrize('mix', [MixUp, CutMix])
def test_validation_and_all_that_follows_are_as_without(make, shapes, mix, tmp_path):
    learn = make()
    loss = learn.loss_func
    learn.fine_tune(2, 1e-2, cbs=mix(.4))
    assert learn.loss_func is loss and loss.reduction == 'mean'
    last = learn.recorder.values[-1][1:]
    assert np.allclose(learn.validate(), last, equal_nan=True)
    twin = twin_of(learn, make)
    assert np.allclose(twin.validate(), last, equal_nan=True)
    same_answers(learn, twin, shapes[:6])
    learn.add_cb(mix())
    learn.fit(1, 1e-3)
    learn.export('l.pkl')
    same = lambda a,b: all(p.labels == q.labels and np.allclose(p.scores, q.scores) for p,q in zip(a, b))
    assert same(load_learner(tmp_path/'l.pkl').annotate(shapes[:6]), learn.annotate(shapes[:6]))

class Stop(Callback):
    def __init__(self, error): self.error = error
    def after_batch(self):
        if self.training and self.train_iter == 2: raise self.error

@pytest.mark.train
@pytest.mark.parametrize('mix', [MixUp, CutMix])
@pytest.mark.parametrize('error', [KeyboardInterrupt(), RuntimeError('out of memory')], ids=['stopped', 'failed'])
def test_a_training_that_is_interrupted_leaves_the_loss_as_it_was(make, shapes, mix, error):
    learn = make()
    loss = learn.loss_func
    with pytest.raises(type(error)): learn.fit(1, 1e-3, cbs=[mix(), Stop(error)])
    assert learn.loss_func is loss
    same_answers(learn, twin_of(learn, make), shapes[:6])
    learn.fit(1, 1e-3, cbs=mix())
    assert learn.loss_func is loss

@pytest.mark.train
@pytest.mark.parametrize('mix', [MixUp, CutMix])
def test_early_stopping_leaves_the_loss_as_it_was(make, mix):
    learn = make()
    loss = learn.loss_func
    learn.fit(3, 0., cbs=[mix(), EarlyStoppingCallback(min_delta=1., patience=0)])
    assert learn.loss_func is loss and len(learn.recorder.values) < 3

# --- what is refused

@pytest.mark.train
@pytest.mark.parametrize('mix', [MixUp, CutMix])
def test_a_batch_of_one_has_nothing_to_mix(make, mix):
    learn = make(bs=1)
    learn.fit(1, 1e-4)
    with pytest.raises(ValueError, match=f"{mix.__name__} mixes the images of a batch, and bs=1 has one: raise bs"):
        learn.fit(1, 1e-4, cbs=mix())
