from types import SimpleNamespace
import numpy as np, pytest, torch
from fastai.metrics import accuracy_multi
from sklearn.metrics import average_precision_score, f1_score, fbeta_score
from vision_tasks.losses import MultilabelBCE
from vision_tasks.metrics import (MultilabelAccuracy, MultilabelAP, MultilabelF1, average_precision, binary_counts,
                                  f_beta)

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
    with pytest.raises(ValueError, match="'macro' or 'micro', not 'mean'"): MultilabelF1('mean')

def test_names_tell_the_averages_apart():
    names = [m.name for m in (MultilabelAP(), MultilabelF1('micro'), MultilabelAccuracy())]
    assert names == ['map_macro', 'f1_micro', 'accuracy_multi']
