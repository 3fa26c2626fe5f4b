"The classification task: what only it has, and what it says to bad input"
from dataclasses import replace
import numpy as np, pytest, torch
import torch.nn.functional as F
from fastai.vision.all import CrossEntropyLossFlat, Interpretation, load_learner, set_seed
from matplotlib.colors import to_hex
from sklearn.metrics import confusion_matrix, f1_score, precision_recall_fscore_support
from torch import Tensor
from torchvision.ops import sigmoid_focal_loss
from vision_tasks.classification import classification_block, classification_dls, classification_learner
from vision_tasks.data.annotation import Annotation
from vision_tasks.data.errors import AnnotationError
from vision_tasks.data.formats.folders import read_folders, write_folders
from vision_tasks.data.synthetic import draw_shapes
from vision_tasks.data.targets import REJECTED
from vision_tasks.losses.classes import ClassificationCE, ClassificationFocal
from vision_tasks.metrics.calibration import calibration_error, fit_softmax_temperature
from vision_tasks.metrics.classes import (ClassificationAccuracy, ClassificationCoverage, ClassificationF1,
                                          class_counts, classification_confusion, top_confidence)
from vision_tasks.metrics.rejection import best_rejection, coverage_curve
from vision_tasks.show.classes import class_lines
from vision_tasks.show.layout import FALSE, MISSED, RIGHT
from vision_tasks.show.plots import plot_confusion
from vision_tasks.show.threshold_plots import plot_coverage

NET = 'test_resnet'

def dls_of(anns, **kw): return classification_dls(anns, **{**dict(size=32, bs=8, num_workers=0, device='cpu'), **kw})
def learner_of(dls, arch=NET, **kw): return classification_learner(dls, arch, **{**dict(pretrained=False), **kw})

@pytest.fixture(scope='module')
def anns(tmp_path_factory):
    "48 drawn shapes, one per image, with their class"
    drawn = [a for a in draw_shapes(tmp_path_factory.mktemp('one'), n=60, size=48, most=1) if a.labels][:48]
    return [Annotation(a.path, a.size, a.labels) for a in drawn]

@pytest.fixture
def learn(anns, tmp_path):
    set_seed(0)
    learn = learner_of(dls_of(anns, path=tmp_path))
    with learn.no_bar(), learn.no_logging(): yield learn

def scores(n=60, c=4, seed=0, ties=False):
    "(n, c) probabilities, better than chance, and (n,) ids"
    rng = np.random.default_rng(seed)
    t = rng.integers(0, c, n)
    z = rng.normal(size=(n, c)) + 1.2*np.eye(c)[t]
    if ties: z = z.round()
    return torch.tensor(z).softmax(1).float(),torch.tensor(t)

# --- losses

@pytest.mark.parametrize('weight', [None, [1., 2., .5, 0.]])
@pytest.mark.parametrize('smoothing', [0., .1])
@pytest.mark.parametrize('reduction', ['mean', 'sum', 'none'])
def test_cross_entropy_is_that_of_pytorch(weight, smoothing, reduction):
    x,y = torch.randn(7, 4),torch.tensor([0, 1, 2, 3, 0, 1, 2])
    ours = ClassificationCE(weight=weight, label_smoothing=smoothing, reduction=reduction)(x, y)
    w = None if weight is None else torch.tensor(weight)
    torch.testing.assert_close(ours, F.cross_entropy(x, y, w, label_smoothing=smoothing, reduction=reduction))

def test_focal_without_focus_is_cross_entropy_and_of_two_classes_is_the_binary_one():
    x,y = torch.randn(9, 2),torch.arange(9)%2
    torch.testing.assert_close(ClassificationFocal(gamma=0)(x, y), F.cross_entropy(x, y))
    binary = sigmoid_focal_loss(x[:,1]-x[:,0], y.float(), alpha=-1, gamma=2.)   # softmax of two is a sigmoid
    torch.testing.assert_close(ClassificationFocal(reduction='none')(x, y), binary)

@pytest.mark.parametrize('gamma', [.3, 1., 2.])
def test_the_gradient_of_focal_is_finite_where_the_model_is_sure(gamma):
    x = torch.tensor([[200., 0., 0.], [-200., 0., 3.], [0., 0., 0.], [1e4, -1e4, 0.]], requires_grad=True)
    ClassificationFocal(gamma=gamma)(x, torch.zeros(4, dtype=torch.long)).backward()
    assert x.grad.isfinite().all() and x.grad[1].abs().sum() > .1

def test_a_loss_decodes_the_class_or_minus_one_where_it_is_not_above_the_threshold():
    p = torch.tensor([[.5, .3, .2], [.2, .6, .2], [.34, .33, .33]])
    loss = ClassificationCE()
    assert loss.thresh == 0 and loss.decodes(p).tolist() == [0, 1, 0]
    loss.thresh = .5
    assert loss.decodes(p).tolist() == [-1, 1, -1]
    loss.thresh = [.2, .7, .9]
    assert loss.decodes(p).tolist() == [0, -1, 0]
    loss.temperature = 2.
    torch.testing.assert_close(loss.activation(p.log()), (p.log()/2).softmax(1))

def test_bad_losses_and_targets_are_told():
    x = torch.randn(3, 2)
    with pytest.raises(ValueError, match="hold class id 2, but the model gives 2 classes.*n_out=3 or more"):
        ClassificationCE()(x, torch.tensor([0, 2, 1]))
    with pytest.raises(ValueError, match=r"expected \(n, c\) logits and \(n,\) class ids, whole numbers; got"):
        ClassificationCE()(x, torch.rand(3, 2))
    with pytest.raises(ValueError, match="weight has 3 values, but there are 2 classes"):
        ClassificationCE(weight=[1, 2, 3])(x, torch.tensor([0, 1, 1]))
    with pytest.raises(ValueError, match="thresh has 3 values"): ClassificationCE(thresh=[.1]*3).decodes(x)
    with pytest.raises(ValueError, match="^label_smoothing: expected"): ClassificationCE(label_smoothing=2)

def test_a_batch_whose_classes_have_no_weight_has_loss_zero():
    assert ClassificationCE(weight=[0., 1.])(torch.randn(2, 2), torch.zeros(2, dtype=torch.long)) == 0

# --- metrics

@pytest.mark.parametrize('t', [0., .5])
def test_metrics_equal_sklearn_where_a_rejected_image_is_no_prediction(t):
    probs,targs = scores()
    probs,targs = probs[targs != 3],targs[targs != 3]      # a class without ground truth, which is predicted
    pred = ClassificationCE(thresh=t).decodes(probs)
    counts = class_counts(pred, targs, 4)
    p,r,f,n = precision_recall_fscore_support(targs, pred, labels=range(4), zero_division=0)
    tp,fp,fn = counts.double()
    np.testing.assert_allclose((tp/(tp+fp)).nan_to_num(), p)
    np.testing.assert_allclose((tp/(tp+fn)).nan_to_num(), r)
    assert (tp+fn).tolist() == n.tolist()
    class learn:
        loss_func,pred,y = ClassificationCE(thresh=t),probs.log(),targs
    def value(m):
        m.reset()
        for i in range(0, len(probs), 7):
            learn.pred,learn.y = probs[i:i+7].log(),targs[i:i+7]
            m.accumulate(learn)
        return m.value
    on = pred >= 0
    assert value(ClassificationF1()) == pytest.approx(f[n > 0].mean())
    assert value(ClassificationF1('micro')) == pytest.approx(
        f1_score(targs, pred, labels=range(4), average='micro', zero_division=0))
    assert value(ClassificationAccuracy()) == pytest.approx((pred == targs).double().mean())
    assert value(ClassificationAccuracy(True)) == pytest.approx((pred == targs)[on].double().mean())
    assert value(ClassificationCoverage()) == pytest.approx(on.double().mean())

def test_metrics_without_a_batch_are_none_and_of_rejected_images_alone_are_nan():
    m = ClassificationAccuracy(accepted=True)
    m.reset()
    assert m.value is None
    class learn: loss_func,pred,y = ClassificationCE(thresh=1.),torch.randn(2, 3),torch.zeros(2, dtype=torch.long)
    m.accumulate(learn)
    assert np.isnan(m.value)

def test_confusion_equals_sklearn_and_counts_what_is_rejected():
    probs,targs = scores()
    pred = probs.argmax(1)
    cm = classification_confusion(pred, targs, list('abcd'))
    np.testing.assert_array_equal(cm, confusion_matrix(targs, pred))
    assert list(cm.index) == list(cm.columns) == list('abcd')
    pred[:5] = -1
    cm = classification_confusion(pred, targs, list('abcd'))
    assert list(cm.columns) == [*'abcd', REJECTED] and cm[REJECTED].sum() == 5 and cm.to_numpy().sum() == len(targs)
    ax = plot_confusion(cm)
    assert [o.get_text() for o in ax.get_xticklabels()] == [*'abcd', REJECTED]
    with pytest.raises(ValueError, match="pred holds 4; expected ids of 4 classes, 0 to 3, or -1 for rejected"):
        classification_confusion([4], [0], list('abcd'))
    with pytest.raises(ValueError, match="targ holds -1; expected ids of 4 classes"): class_counts([0], [-1], 4)
    with pytest.raises(ValueError, match=r"both \(n,\), got \(2,\) and \(1,\)"): class_counts([0, 1], [0], 4)

# --- the threshold of rejection

def values(pred, targs, c, score, at, beta, average):
    "The score of decisions, by scikit-learn and by hand; -1 where a floor is not reached"
    on = pred >= 0
    coverage,accuracy = on.mean(),(pred == targs)[on].mean() if on.any() else 1.
    if score == 'coverage_at_accuracy': return coverage if accuracy >= at else -1
    if score == 'accuracy_at_coverage': return accuracy if coverage >= at else -1
    there = sorted({*targs}) if average == 'macro' else range(c)
    _,_,f,_ = precision_recall_fscore_support(targs, pred, labels=there, beta=beta, average=average, zero_division=0)
    return f

CASES = [('f1', dict(average='macro')), ('f1', dict(average='micro')), ('fbeta', dict(beta=.3)),
         ('fbeta', dict(beta=.5, average='micro')), ('coverage_at_accuracy', dict(at=.8)),
         ('coverage_at_accuracy', dict(at=1.)), ('accuracy_at_coverage', dict(at=.5)),
         ('accuracy_at_coverage', dict(at=1.))]

@pytest.mark.parametrize('score, kw', CASES, ids=str)
@pytest.mark.parametrize('seed', range(4))
@pytest.mark.parametrize('ties', [False, True])
@pytest.mark.filterwarnings('ignore:no threshold reaches')
def test_the_threshold_is_the_best_of_all_candidates(score, kw, seed, ties):
    probs,targs = scores(40, 3, seed, ties)
    if seed == 3: probs,targs = probs[targs != 2],targs[targs != 2]
    p,t = probs.numpy(),targs.numpy()
    kw = dict(dict(beta=1., at=None, average='macro'), **kw)
    def value(thresh): return values(np.where(p.max(1) > thresh, p.argmax(1), -1), t, 3, score, kw['at'], kw['beta'],
                                     kw['average'])
    candidates = [0., *np.unique(p.max(1))]                # each rejects what is not above it
    each = [value(o) for o in candidates]
    thresh,best = best_rejection(probs, targs, score, **kw)
    assert [best, value(np.float32(thresh))] == pytest.approx([max(each)]*2, abs=1e-9)
    lowest = next(o for o,v in zip(candidates, each) if v >= max(each) - 1e-12)
    np.testing.assert_array_equal(p.max(1) > np.float32(thresh), p.max(1) > lowest)   # as few are rejected as can be

@pytest.mark.parametrize('score, kw', [('f1', {}), ('fbeta', dict(beta=.5)), ('coverage_at_accuracy', dict(at=.7)),
                                       ('accuracy_at_coverage', dict(at=.6))], ids=str)
@pytest.mark.parametrize('seed', range(3))
@pytest.mark.filterwarnings('ignore:no threshold reaches')
def test_thresholds_per_class_are_each_the_best(score, kw, seed):
    probs,targs = scores(40, 3, seed)
    thresh,best = best_rejection(probs, targs, score, per_class=True, **kw)
    conf,pred = probs.max(1)
    for k in range(3):
        mine = pred == k
        def value(t):
            acc = mine & (conf > t)
            tp,n = (acc & (targs == k)).sum().item(),acc.sum().item()
            if score in ('f1', 'fbeta'):
                b2 = kw.get('beta', 1.)**2
                return (1+b2)*tp/(b2*(targs == k).sum().item() + n)
            share,accuracy = n/mine.sum().item(),tp/n if n else 1.
            if score == 'coverage_at_accuracy': return share if accuracy >= kw['at'] else -1
            return accuracy if share >= kw['at'] else -1
        most = max(map(value, [0., *conf[mine].tolist()]))
        assert best[k].item() == pytest.approx(most, abs=1e-6) and value(thresh[k]) == pytest.approx(most, abs=1e-6)
    assert thresh.dtype == torch.float32

def test_where_rejecting_gains_nothing_nothing_is_rejected():
    probs,targs = scores()
    targs = probs.argmax(1)
    for kw in (dict(score='f1'), dict(score='coverage_at_accuracy', at=.9), dict(score='accuracy_at_coverage', at=.1)):
        assert best_rejection(probs, targs, **kw) == (0., 1.)

def test_an_accuracy_out_of_reach_rejects_all_and_warns():
    probs,targs = scores(30)
    wrong = (probs.argmax(1) + 1)%4
    with pytest.warns(UserWarning, match=r"reaches an accuracy of 0.9 \(at most 0\).*all images are rejected"):
        thresh,value = best_rejection(probs, wrong, 'coverage_at_accuracy', at=.9)
    assert value == 0 and not (probs.max(1).values > thresh).any() and thresh <= 1
    with pytest.warns(UserWarning, match="for the classes 'a', 'b', 'c', 'd'. .* never predicted; lower"):
        best_rejection(probs, wrong, 'coverage_at_accuracy', at=.9, per_class=True, vocab=list('abcd'))

def test_a_class_that_is_not_there_has_threshold_zero_and_no_value():
    probs,targs = scores(30, 3)
    probs = torch.cat([probs, torch.zeros(30, 1)], 1)
    for score,kw in (('f1', {}), ('accuracy_at_coverage', dict(at=.5))):
        thresh,value = best_rejection(probs, targs, score, per_class=True, **kw)
        assert thresh[3] == 0 and value[3].isnan() and not value[:3].isnan().any()

@pytest.mark.parametrize('kind', ['float64', 'float16', 'bfloat16', 'numpy'])
def test_other_types_of_scores_are_cut_where_their_rule_cuts_them(kind):
    probs,targs = scores(50, seed=5)
    p = probs.numpy().astype(np.float64) if kind == 'numpy' else probs.to(getattr(torch, kind))
    thresh,value = best_rejection(p, targs, 'coverage_at_accuracy', at=.85)
    conf,pred = (p.max(1),p.argmax(1)) if kind == 'numpy' else p.max(1)
    on = np.asarray(conf > thresh)
    assert on.mean() == pytest.approx(value) and (np.asarray(pred) == targs.numpy())[on].mean() >= .85 and 0 < value < 1

def test_bad_arguments_of_the_threshold_are_told():
    probs,targs = scores()
    for kw,message in ((dict(score='f2'), "^score: expected one of"),
                       (dict(score='coverage_at_accuracy'), "needs `at`"),
                       (dict(at=.9), "at=0.9 has no meaning for score 'f1'"),
                       (dict(beta=2.), "beta=2.0 has no meaning"),
                       (dict(score='accuracy_at_coverage', at=1.5), "^at: expected"),
                       (dict(vocab=['a']), "vocab has 1 names for 4 classes")):
        with pytest.raises(ValueError, match=message): best_rejection(probs, targs, **kw)
    with pytest.raises(ValueError, match=r"\(n, c\) and targs \(n,\)"): best_rejection(probs, targs[:3])
    with pytest.raises(ValueError, match="expected probabilities in"): best_rejection(probs*9, targs)
    with pytest.raises(ValueError, match="expected probabilities in"): best_rejection(probs*np.nan, targs)
    with pytest.raises(ValueError, match="targs holds ids from 1 to 4; expected 0 to 3"):
        best_rejection(probs, torch.where(torch.arange(60) == 0, 4, targs.clamp(min=1)))
    with pytest.raises(ValueError, match="row 0 of probs is 0 everywhere"): best_rejection(probs*0, targs)

def test_the_coverage_curve_is_that_of_every_threshold():
    probs,targs = scores(ties=True)
    df,(conf,pred) = coverage_curve(probs, targs),probs.max(1)
    assert len(df) == len(conf.unique()) and df.thresh.iloc[-1] == 0 and df.coverage.iloc[-1] == 1
    for o in df.itertuples():
        on = conf > o.thresh
        assert on.double().mean().item() == pytest.approx(o.coverage)
        assert (pred == targs)[on].double().mean().item() == pytest.approx(o.accuracy)
    ax = plot_coverage(probs, targs, .5)
    assert any('Threshold 0.500' in o.get_text() for o in ax.get_legend().get_texts())
    low,high = ax.get_ylim()
    assert low <= df.accuracy.min() and df.accuracy.max() <= high

# --- calibration

def test_the_temperature_has_the_least_cross_entropy():
    probs,targs = scores(300)
    for scale in (.3, 1., 4.):
        z = probs.log()*scale
        t = fit_softmax_temperature(z, targs)
        assert t == pytest.approx(fit_softmax_temperature(z.numpy() + 100, targs.numpy()), rel=1e-5)
        grid = [F.cross_entropy(z.double()/o, targs).item() for o in np.geomspace(.05, 20, 400)]
        assert F.cross_entropy(z.double()/t, targs).item() <= min(grid) + 1e-12
    assert fit_softmax_temperature(torch.eye(3), torch.arange(3)) == pytest.approx(1/20)
    assert fit_softmax_temperature(-torch.eye(3), torch.arange(3)) == pytest.approx(20)
    assert fit_softmax_temperature(torch.zeros(3, 3), torch.arange(3)) == 1
    for bad,message in ((probs.log()*np.inf, "not finite"), (probs.log()[:0], "one image or more")):
        with pytest.raises(ValueError, match=message): fit_softmax_temperature(bad, targs)
    with pytest.raises(ValueError, match="targs holds ids from .* to 9"): fit_softmax_temperature(probs, targs*0 + 9)

def test_top_confidence_is_of_the_predicted_class():
    probs,targs = scores()
    conf,right = top_confidence(probs, targs)
    assert torch.equal(conf, probs.max(1).values) and torch.equal(right, probs.argmax(1) == targs)
    assert 0 <= calibration_error(conf, right) <= 1

# --- data

def test_a_batch_is_images_and_class_ids_of_the_sorted_names(learn, anns):
    x,y = learn.dls.valid.one_batch()
    assert list(learn.dls.vocab) == sorted({a.labels[0] for a in anns}) and y.dtype == torch.int64
    assert [learn.dls.vocab[i] for i in y] == [a.labels[0] for a in learn.dls.valid.items[:len(y)]]
    assert classification_block(['star', 'circle', 'square', 'triangle'], size=16).dataloaders(
        anns, bs=4, num_workers=0).vocab == ['star', 'circle', 'square', 'triangle']

def test_several_boxes_of_one_class_are_one_class(anns):
    box = [[0, 0, 4, 4]]*2
    dls = dls_of([replace(a, labels=a.labels*2, bboxes=box) for a in anns])
    assert dls.train.one_batch()[1].ndim == 1

def test_bad_data_are_told_before_training(anns, tmp_path):
    a,b,*rest = anns
    with pytest.raises(AnnotationError, match=rf"{a.path.name}: labels \['cat', 'dog'\].*train with `multilabel_dls` "
                                              r"\(of 48 images 1 have no label, 1 several\)"):
        dls_of([replace(a, labels=['dog', 'cat']), replace(b, labels=[]), *rest])
    with pytest.raises(AnnotationError, match=rf"{b.path.name}: no label, .*; drop the image, or give"):
        dls_of([a, replace(b, labels=[]), *rest])
    with pytest.raises(AnnotationError, match="label .*, which is not in the vocab of 1 names"):
        dls_of(anns, vocab=['circle'])
    with pytest.raises(AnnotationError, match="none of the 48 annotations has a label"):
        dls_of([replace(o, labels=[]) for o in anns])

# --- the learner

@pytest.mark.train
@pytest.mark.parametrize('loss, cls', [(None, ClassificationCE), ('ce', ClassificationCE),
                                       ('focal', ClassificationFocal),
                                       (ClassificationCE(label_smoothing=.1), ClassificationCE)])
def test_losses_by_name(anns, loss, cls):
    learn = learner_of(dls_of(anns), loss_func=loss)
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-3)
    assert type(learn.loss_func) is cls and np.isfinite(learn.recorder.values[-1]).all()

@pytest.mark.train
def test_a_loss_of_fastai_trains_and_predicts_but_has_no_threshold(anns):
    learn = learner_of(dls_of(anns), loss_func=CrossEntropyLossFlat())
    with learn.no_bar(), learn.no_logging():
        learn.fit(1, 1e-3)
        assert all(len(a.labels) == 1 for a in learn.annotate(anns[:3])) and learn.evaluate()['coverage'] == 1
        assert (learn.evaluate_per_class().rejected.dropna() == 0).all() and learn.plot_coverage() is not None
        for f,what in ((learn.tune_threshold, 'threshold'), (learn.calibrate, 'temperature')):
            with pytest.raises(ValueError, match=f"CrossEntropyLossFlat has no {what}; make the learner with"): f()

def test_bad_losses_of_the_learner_are_told(anns):
    dls = dls_of(anns)
    with pytest.raises(ValueError, match="did you mean 'focal'"): learner_of(dls, loss_func='focl')
    with pytest.raises(ValueError, match="loss_func: cross_entropy does not tell how logits become probabilities"):
        learner_of(dls, loss_func=F.cross_entropy)

@pytest.fixture(scope='module')
def trained(anns, tmp_path_factory):
    set_seed(0)
    learn = learner_of(dls_of(anns, path=tmp_path_factory.mktemp('trained'), valid_pct=.4))
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(6, 1e-2)
    return learn

@pytest.fixture
def tuned(trained):
    "The same, without threshold and temperature again after each test"
    with trained.no_bar(), trained.no_logging(): yield trained
    trained.loss_func.thresh,trained.loss_func.temperature = 0.,1.

@pytest.mark.train
def test_tuning_reaches_the_value_and_all_verbs_see_it(tuned, anns, tmp_path):
    learn,valid = tuned,list(tuned.dls.valid.items)
    for kw in (dict(score='fbeta', beta=.2), dict(score='accuracy_at_coverage', at=.5)):
        thresh,best = learn.tune_threshold(**kw)
        assert thresh > 0 and learn.loss_func.thresh == np.float32(thresh)
    scores = learn.evaluate()
    assert scores['accuracy_accepted'] == pytest.approx(best) and .5 <= scores['coverage'] < 1
    said = learn.annotate(valid)
    right = [a.labels == b.labels for a,b in zip(said, valid) if a.labels]
    assert len(right)/len(valid) == pytest.approx(scores['coverage']) and np.mean(right) == pytest.approx(best)
    assert all(len(a.labels) == len(a.scores) <= 1 for a in said) and all((a.scores > thresh).all() for a in said)
    rejected = next(i for i,a in enumerate(said) if not a.labels)
    answer,dec,p = learn.predict(valid[rejected])
    assert answer.labels == [] and dec == -1 and p.max() <= thresh
    df,cm = learn.evaluate_per_class(),learn.confusion()
    assert (df.rejected*df.n).sum() == pytest.approx(len(valid)*(1-scores['coverage'])) == cm[REJECTED].sum()
    np.testing.assert_allclose(df.recall, np.diag(cm)/cm.sum(axis=1))
    learn.export(tmp_path/'l.pkl')
    assert [a.labels for a in load_learner(tmp_path/'l.pkl').annotate(valid)] == [a.labels for a in said]
    assert all(a.labels for a in learn.annotate(valid, thresh=0.))

@pytest.mark.train
def test_tuning_per_class_raises_every_f1(tuned):
    before = tuned.evaluate_per_class()
    thresh,best = tuned.tune_threshold(per_class=True)
    after = tuned.evaluate_per_class()
    np.testing.assert_allclose(after.f1, best, atol=1e-6)
    assert (after.f1 >= before.f1 - 1e-6).all() and (after.thresh == thresh.numpy()).all()

@pytest.mark.train
def test_calibration_lowers_the_cross_entropy_and_leaves_the_classes(tuned):
    ce = lambda: F.nll_loss(*(o.as_subclass(Tensor) for o in (tuned.get_preds()[0].log(), tuned.get_preds()[1]))).item()
    before,acc = ce(),tuned.evaluate()['accuracy']
    t = tuned.calibrate()
    assert t != 1 and ce() < before and tuned.evaluate()['accuracy'] == acc
    assert 0 <= tuned.calibration_error(n_bins=5) <= 1
    ax = tuned.plot_reliability(n_bins=5)
    assert ax.get_ylabel() == 'Accuracy' and ax.figure.axes[-1].get_ylabel() == 'Images'

@pytest.mark.train
def test_mirrored_predictions_are_averaged(tuned, anns):
    a = tuned.annotate(anns[:6], tta=True, thresh=0.)
    x = tuned.dls.test_dl(anns[:6]).one_batch()[0].as_subclass(Tensor)
    with torch.no_grad(): p = sum(tuned.model.eval()(o).softmax(1) for o in (x, x.flip(-1)))/2
    np.testing.assert_allclose([o.scores[0] for o in a], p.max(1).values, atol=1e-5)

# --- images

def test_lines_are_green_where_correct_and_name_the_true_class_where_not():
    assert class_lines('cat', 'cat', .9) == [('cat 0.90', RIGHT)]
    assert class_lines('cat', 'dog') == [('dog', FALSE), ('(cat)', MISSED)]

def lines_of(fig):
    "The lines of text below each image of a figure"
    from matplotlib.offsetbox import TextArea
    return [[(t.get_text(), to_hex(t._text.get_color())) for t in ax.findobj(TextArea)] for ax in fig.axes if ax.images]

@pytest.mark.train
def test_results_and_top_losses_show_rejected_images_too(tuned):
    import matplotlib.pyplot as plt
    tuned.loss_func.thresh = 1.
    truth = [a.labels[0] for a in tuned.dls.valid.items]
    tuned.show_results(max_n=4, shuffle=False)
    drawn = lines_of(plt.gcf())
    assert [o[1] for o in drawn] == [(f'({t})', MISSED) for t in truth[:4]]
    assert all(o[0][0].startswith(REJECTED) and o[0][1] == FALSE for o in drawn)
    tuned.loss_func.thresh = 0.
    for draw in (lambda: tuned.plot_top_losses(3), lambda: Interpretation.from_learner(tuned).plot_top_losses(3)):
        plt.close('all'); draw()
        fig = plt.gcf()
        losses = [float(ax.get_title().split()[1]) for ax in fig.axes if ax.images]
        assert len(losses) == 3 and losses == sorted(losses, reverse=True)
        assert {o[0][1] for o in lines_of(fig)} <= {RIGHT, FALSE}

# --- as a user

@pytest.mark.train
def test_from_folders_to_folders(anns, tmp_path):
    write_folders([replace(a, split='train' if i%3 else 'valid') for i,a in enumerate(anns)], tmp_path/'data')
    read = read_folders(tmp_path/'data')
    dls = dls_of(read, path=tmp_path)
    assert len(dls.valid.items) == 16
    learn = learner_of(dls)
    with learn.no_bar(), learn.no_logging():
        learn.fine_tune(1, 1e-2)
        learn.calibrate()
        learn.tune_threshold('accuracy_at_coverage', at=.5)
        said = [a for a in learn.annotate([a.path for a in dls.valid.items]) if a.labels]
        assert 8 <= len(said)
        write_folders(said, tmp_path/'sorted')
    assert sorted(a.labels[0] for a in read_folders(tmp_path/'sorted')) == sorted(a.labels[0] for a in said)
