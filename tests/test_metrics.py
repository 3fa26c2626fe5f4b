from types import SimpleNamespace
import numpy as np, pytest, torch
from fastai.metrics import accuracy_multi
from sklearn.metrics import (average_precision_score, confusion_matrix, f1_score, fbeta_score,
                             multilabel_confusion_matrix)
from vision_tasks.data.annotation import Annotation
from vision_tasks.data.errors import AnnotationError
from vision_tasks.data.targets import NO_OBJECT
from vision_tasks.losses.labels import MultilabelBCE
from vision_tasks.metrics.labels import (MultilabelAccuracy, MultilabelAP, MultilabelF1, average_precision,
                                         binary_counts, f_beta, label_confusion, multilabel_confusion)
from vision_tasks.metrics.localization import localization_confusion

def data(n=60, c=4, levels=None, seed=0):
    rng = np.random.default_rng(seed)
    p = rng.random((n, c)).astype(np.float32)
    return (p if levels is None else (p*levels).round()/levels).astype(np.float32),rng.random((n, c)) < .3

def run(metric, probs, targs, sizes=(7, 20, 33), thresh=.5):
    "`metric` over batches of logits, as a Learner feeds it"
    f = MultilabelBCE(); f.thresh = thresh
    metric.reset()
    i = 0
    for k in sizes:
        pred,y = torch.logit(torch.tensor(probs[i:i+k]), eps=1e-7),torch.tensor(targs[i:i+k]).float()
        metric.accumulate(SimpleNamespace(pred=pred, y=y, loss_func=f))
        i += k
    assert i == len(probs)
    return metric.value

@pytest.mark.parametrize('levels', [None, 3, 10, 1])
@pytest.mark.parametrize('seed', range(4))
def test_average_precision_equals_sklearn_with_and_without_ties(levels, seed):
    p,t = data(levels=levels, seed=seed)
    want = [average_precision_score(t[:,j], p[:,j]) for j in range(4)]
    np.testing.assert_allclose(average_precision(p, t), want, atol=1e-12)

def test_average_precision_is_nan_without_positives_one_for_all_positives_and_refuses_nan():
    p,t = data()
    t[:,0],t[:,1] = False,True
    ap = average_precision(p, t)
    assert ap[0].isnan() and ap[1] == 1 and average_precision(p[:0], t[:0]).isnan().all()
    p[3, 2] = np.nan
    with pytest.raises(ValueError, match="1 of 240 scores are nan: the model diverged"): average_precision(p, t)
    with pytest.raises(ValueError, match=r"both \(n, c\)"): average_precision(p[:,0], t[:,0])

@pytest.mark.parametrize('beta', [.5, 1., 2.])
def test_f_beta_equals_sklearn(beta):
    p,t = data()
    counts = binary_counts(torch.tensor(p > .4), torch.tensor(t))
    np.testing.assert_allclose(f_beta(counts, beta), fbeta_score(t, p > .4, beta=beta, average=None))
    np.testing.assert_allclose(f_beta(counts.sum(1), beta), fbeta_score(t, p > .4, beta=beta, average='micro'))
    assert f_beta(torch.tensor([0, 0, 0])).isnan()

@pytest.mark.parametrize('thresh', [.5, .3, [.2, .4, .6, .8]])
def test_metrics_over_batches_equal_sklearn_over_the_data_set_at_the_learners_threshold(thresh):
    p,t = data()
    d = p > np.array(thresh, dtype=np.float32)
    assert run(MultilabelAP(), p, t) == pytest.approx(average_precision_score(t, p, average='macro'), abs=1e-6)
    assert run(MultilabelAP('micro'), p, t) == pytest.approx(average_precision_score(t, p, average='micro'), abs=1e-6)
    assert run(MultilabelF1(), p, t, thresh=thresh) == pytest.approx(f1_score(t, d, average='macro'))
    assert run(MultilabelF1('micro'), p, t, thresh=thresh) == pytest.approx(f1_score(t, d, average='micro'))
    assert run(MultilabelAccuracy(), p, t, thresh=thresh) == pytest.approx((d == t).mean())

def test_accuracy_equals_fastais_at_the_same_threshold():
    p,t = data()
    theirs = accuracy_multi(torch.tensor(p), torch.tensor(t), thresh=.3, sigmoid=False).item()
    assert run(MultilabelAccuracy(), p, t, thresh=.3) == pytest.approx(theirs)

def test_a_metric_without_data_is_none_and_an_unknown_average_is_refused():
    for m in (MultilabelAP(), MultilabelF1(), MultilabelAccuracy()): m.reset(); assert m.value is None
    with pytest.raises(ValueError, match="average: expected one of 'macro', 'micro', got 'mean'"): MultilabelF1('mean')

def test_names_tell_the_averages_apart():
    names = [m.name for m in (MultilabelAP(), MultilabelF1('micro'), MultilabelAccuracy())]
    assert names == ['map_macro', 'f1_micro', 'accuracy_multi']

# --- confusion matrices

@pytest.mark.parametrize('seed', range(3))
def test_the_confusion_matrix_of_each_label_is_scikit_learns(seed):
    p,t = data(seed=seed)
    t[:,0] = seed > 0                       # in no image, or in every one
    df = multilabel_confusion(torch.tensor(p > .4), torch.tensor(t), [*'abcd'])
    assert list(df.columns) == ['label', 'tn', 'fp', 'fn', 'tp'] and ''.join(df.label) == 'abcd'
    np.testing.assert_array_equal(df.iloc[:,1:], multilabel_confusion_matrix(t, p > .4).reshape(-1, 4))

@pytest.mark.parametrize('seed', range(3))
def test_a_label_is_confused_with_another_only_where_that_is_true_and_it_is_not(seed):
    p,t = data(seed=seed)
    t[:,0] = seed > 0
    df = label_confusion(p > .4, t.astype(int), [*'abcd'])
    for i,b in enumerate('abcd'):
        for j,a in enumerate('abcd'):
            these = t[:,i] & (~t[:,j] | (i == j))
            want = (p[these,j] > .4).mean() if these.any() else np.nan
            np.testing.assert_allclose(df.loc[b, a], want, atol=1e-12)

def test_label_confusion_worked_by_hand():
    targ = [[1, 0], [1, 0], [1, 1], [0, 1], [0, 0]]
    pred = [[1, 1], [0, 0], [0, 1], [0, 1], [1, 1]]
    # cat: 1 of 3 found; of the 2 images with a cat and no dog, 1 is called a dog
    want = [[1/3, 1/2], [0, 1]]
    np.testing.assert_allclose(label_confusion(np.array(pred), np.array(targ), ['cat', 'dog']), want)

def test_decisions_that_are_none_are_refused():
    p,t = data()
    for f in (multilabel_confusion, label_confusion):
        with pytest.raises(ValueError, match="pred holds values other than 0 and 1; .* such as probs > thresh"): f(p, t)
        with pytest.raises(ValueError, match=r"both \(n, c\)"): f(p[0] > .4, t[0])
        with pytest.raises(ValueError, match="vocab has 2 names for 4 classes"): f(p > .4, t, ['a', 'b'])

def one(label): return Annotation(f'{label}.jpg', (10, 10), [label]*bool(label), [[1, 1, 5, 5]]*bool(label))

@pytest.mark.parametrize('vocab', [None, ['a', 'b', 'c', NO_OBJECT], [NO_OBJECT, 'c', 'b', 'a']])
def test_the_confusion_matrix_of_one_object_is_scikit_learns(vocab):
    rng = np.random.default_rng(0)
    true,pred = (rng.choice(['a', 'b', 'c', ''], 50).tolist() for _ in range(2))
    df = localization_confusion(list(map(one, true)), list(map(one, pred)), vocab)
    names = vocab or ['a', 'b', 'c', NO_OBJECT]
    assert list(df.index) == list(df.columns) == names
    np.testing.assert_array_equal(df, confusion_matrix(*([x or NO_OBJECT for x in o] for o in (true, pred)),
                                                       labels=names))

def test_a_class_without_an_object_is_added_only_where_it_occurs_and_strange_classes_are_refused():
    a,b,none = map(one, ('a', 'b', ''))
    assert list(localization_confusion([a], [b], ['a', 'b']).index) == ['a', 'b']
    assert list(localization_confusion([a], [none], ['a', 'b']).index) == ['a', 'b', NO_OBJECT]
    with pytest.raises(ValueError, match="class 'b' is not in the vocab"): localization_confusion([a], [b], ['a'])
    with pytest.raises(ValueError, match="1 annotations but 2 predictions"): localization_confusion([a], [a, b])
    two = Annotation('a.jpg', (10, 10), ['a', 'a'], [[1, 1, 5, 5]]*2)
    with pytest.raises(AnnotationError, match="2 objects in one image"): localization_confusion([two], [a])
