"The exact thresholds against brute force over every distinct score, and against sklearn"
import tracemalloc, warnings
from functools import partial
import matplotlib
matplotlib.use('Agg')
import matplotlib.pyplot as plt, numpy as np, pytest, torch
from scipy.stats import binomtest, norm
from sklearn.calibration import calibration_curve
from sklearn.metrics import (accuracy_score, f1_score, fbeta_score, jaccard_score, precision_recall_curve,
                             precision_score, recall_score)
from vision_tasks.metrics.calibration import calibration_error, fit_temperature, reliability, wilson_interval
from vision_tasks.metrics.threshold_curves import bootstrap_threshold, out_of_fold_threshold, sweep_thresholds
from vision_tasks.metrics import thresholds
from vision_tasks.metrics.thresholds import best_threshold
from vision_tasks.show.threshold_plots import plot_reliability, plot_thresholds

def over(a, b): return a/b if b else 0.

# of the boolean targets `t` and decisions `d` (n,), by definition; sklearn takes a thousand times as long
ORACLES = dict(f1=lambda t,d: over(2*(t & d).sum(), t.sum()+d.sum()),
               fbeta=lambda t,d: over(5*(t & d).sum(), 4*t.sum()+d.sum()),
               accuracy=lambda t,d: (t == d).mean(), jaccard=lambda t,d: over((t & d).sum(), (t | d).sum()),
               precision=lambda t,d: over((t & d).sum(), d.sum()), recall=lambda t,d: over((t & d).sum(), t.sum()))
SKLEARN = dict(f1=f1_score, fbeta=partial(fbeta_score, beta=2.), accuracy=accuracy_score, jaccard=jaccard_score,
               precision=precision_score, recall=recall_score)
BETA = dict(fbeta=2.)

def ask(score): return dict(beta=BETA.get(score, 1.), at=.4 if '_at_' in score else None)

def oracle(score, t, d, at=.4):
    "The value of the decisions `d` on one column of targets; nan where they break the floor `at`"
    if score in ORACLES: return ORACLES[score](t, d)
    pr,rc = ORACLES['precision'](t, d),ORACLES['recall'](t, d)
    if score == 'recall_at_precision': return rc if pr >= at or not d.any() else np.nan
    return pr if rc >= at else np.nan

def every_cut(p):
    "A threshold for every way in which a threshold can divide `p`"
    return np.r_[-1, np.unique(p)]

def brute(score, p, t): return np.nanmax([oracle(score, t, p > c) for c in every_cut(p)])

def coarse(seed, shape=(24, 3), levels=9, rate=.35):
    "Scores with many ties, 0 and 1 among them, and targets of which every class has some"
    rng = np.random.default_rng(seed)
    p,t = (rng.integers(0, levels, shape)/(levels-1)).astype(np.float32),rng.random(shape) < rate
    t[0] = True
    return p,t

def fine(seed, shape=(60, 4), rate=.3, shift=1.5):
    "Scores without ties that know something of the targets"
    rng = np.random.default_rng(seed)
    t = rng.random(shape) < rate
    t[:2] = [[True],[False]] if len(shape) == 2 else [True, False]
    return (1/(1+np.exp(-rng.normal(size=shape)-shift*t+1))).astype(np.float32),t

@pytest.mark.parametrize('score', SKLEARN)
def test_the_oracles_of_these_tests_agree_with_sklearn(score):
    rng = np.random.default_rng(0)
    for i in range(20):
        t,d = rng.random((2, 12)) < [[.4],[i/20]] # nothing is decided at first
        kw = {} if score == 'accuracy' else dict(zero_division=0)
        assert ORACLES[score](t, d) == pytest.approx(SKLEARN[score](t, d, **kw), abs=1e-12)

@pytest.mark.parametrize('score', ['f1', 'fbeta', 'accuracy', 'jaccard', 'recall_at_precision', 'precision_at_recall'])
@pytest.mark.parametrize('make', [coarse, fine])
def test_no_threshold_is_better_and_the_value_is_what_it_reaches(score, make):
    for seed in range(6):
        p,t = make(seed)
        thresh,value = best_threshold(p, t, score, per_class=True, **ask(score))
        for i in range(p.shape[1]):
            assert value[i] == pytest.approx(brute(score, p[:,i], t[:,i]), abs=1e-6)
            assert value[i] == pytest.approx(oracle(score, t[:,i], p[:,i] > thresh[i]), abs=1e-6)
        thresh,value = best_threshold(p, t, score, **ask(score))
        assert value == pytest.approx(brute(score, p.ravel(), t.ravel()), abs=1e-12)
        assert value == pytest.approx(oracle(score, t.ravel(), p.ravel() > thresh), abs=1e-12)

@pytest.mark.parametrize('score', ['f1', 'fbeta', 'accuracy', 'jaccard'])
@pytest.mark.parametrize('make', [coarse, fine])
def test_the_macro_threshold_has_the_best_mean_over_the_classes(score, make):
    mean = lambda p,t,c: np.mean([oracle(score, t[:,i], p[:,i] > c) for i in range(p.shape[1])])
    for seed in range(4):
        p,t = make(seed)
        thresh,value = best_threshold(p, t, score, average='macro', **ask(score))
        assert value == pytest.approx(max(mean(p, t, c) for c in every_cut(p)), abs=1e-12)
        assert value == pytest.approx(mean(p, t, thresh), abs=1e-12)

@pytest.mark.parametrize('score', ['f1', 'accuracy', 'jaccard'])
@pytest.mark.parametrize('make', [coarse, fine])
@pytest.mark.parametrize('block', [1, 2, 7, 40])
def test_the_macro_threshold_does_not_depend_on_the_blocks_it_is_searched_in(score, make, block, monkeypatch):
    for seed in range(12):
        p,t = make(seed)
        t[:,0] &= seed%3 > 0       # a class without positives
        monkeypatch.undo()
        whole = best_threshold(p, t, score, average='macro')
        monkeypatch.setattr(thresholds, 'BLOCK', block)
        monkeypatch.setattr(thresholds, 'BLOCKS', 99)
        assert best_threshold(p, t, score, average='macro') == whole

def test_the_macro_search_takes_less_than_three_times_the_memory_of_the_scores():
    p,t = fine(0, (20_000, 150))
    tracemalloc.start()
    best_threshold(p, t, average='macro')
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3*p.nbytes

def test_macro_and_micro_thresholds_differ_where_a_rare_class_has_low_scores():
    p = np.array([[.9, .1], [.8, .3], [.7, .05], [.6, .02], [.2, .01], [.25, .01]], np.float32)
    t = np.array([[1, 0], [1, 1], [1, 0], [1, 0], [0, 0], [0, 0]])
    assert best_threshold(p, t) == best_threshold(p, t, average='macro') == (pytest.approx(.275), 1.)
    p[4:,0] = .5 # now class 1 has its positive below two negatives of class 0
    # misses it: 2*4/(5+4)
    assert best_threshold(p, t) == (pytest.approx(.55), pytest.approx(8/9))
    # takes all three: 2*4/(4+6) and 1
    assert best_threshold(p, t, average='macro') == (pytest.approx(.2), pytest.approx((.8+1)/2))

def test_f1_equals_the_optimum_of_the_precision_recall_curve():
    p,t = fine(0, (2000, 5))
    _,value = best_threshold(p, t, per_class=True)
    for i in range(5):
        pr,rc,_ = precision_recall_curve(t[:,i], p[:,i])
        assert value[i] == pytest.approx(np.nanmax(2*pr*rc/np.maximum(pr+rc, 1e-12)), abs=1e-6)

def test_the_exact_threshold_is_never_below_the_grid():
    above = 0
    for seed in range(30):
        p,t = fine(seed, (40, 3))
        for average in ('micro', 'macro'):
            grid = sweep_thresholds(p, t, average=average)
            for score in ('f1', 'accuracy'):
                value = best_threshold(p, t, score, average=average)[1]
                assert value >= grid[score].max() - 1e-12
                above += value > grid[score].max() + 1e-12
    assert above > 10 # and the grid does miss it

def test_the_order_of_the_rows_does_not_matter():
    p,t = coarse(1, (50, 4))
    rows = np.random.default_rng(0).permutation(50)
    for kw in (dict(), dict(average='macro'), dict(per_class=True)):
        for a,b in zip(best_threshold(p, t, **kw), best_threshold(p[rows], t[rows], **kw)):
            np.testing.assert_array_equal(a, b)

def test_per_class_is_the_same_as_column_by_column():
    p,t = fine(2, (50, 37)) # more columns than fit in one block
    thresh,value = best_threshold(p, t, per_class=True)
    assert [(a,b) for a,b in zip(thresh, value)] == [tuple(np.float32(best_threshold(p[:,i], t[:,i])))
                                                     for i in range(37)]
    one = best_threshold(p[:,0], t[:,0], per_class=True)
    assert one[0].shape == (1,) and one[0][0] == thresh[0]

def test_a_memory_layout_by_columns_gives_the_same_and_inputs_are_not_changed():
    p,t = fine(3)
    pf,tf = np.asfortranarray(p),np.asfortranarray(t)
    before = pf.copy()
    for kw in (dict(), dict(average='macro'), dict(per_class=True)):
        for a,b in zip(best_threshold(p, t, **kw), best_threshold(pf, tf, **kw)): np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(pf, before)

def test_the_threshold_lies_midway_between_two_scores():
    assert best_threshold(np.array([.1, .25, .75, .9]), np.array([0, 0, 1, 1])) == (.5, 1.)

@pytest.mark.parametrize('average', ['micro', 'macro'])
@pytest.mark.parametrize('p,t,score,expected', [
    ([.25, .5],   [1, 1], 'f1', .125),                # all: half the lowest score
    ([0., .5],    [1, 1], 'f1', None),                # all, with 0 among them: a negative number
    ([-0., .5],   [1, 1], 'f1', None),
    ([.5, .5, .5, .25], [0, 0, 1, 0], 'accuracy', .75), # none: between the highest and 1
    ([1., 1., 1., .5],  [0, 0, 1, 0], 'accuracy', 1.)]) # none, with 1 among them: 1, as the rule is strict
def test_all_and_none_can_be_expressed(average, p, t, score, expected):
    thresh,value = best_threshold(np.array(p, np.float32), np.array(t), score, average=average)
    assert thresh == expected if expected is not None else -.01 < thresh < 0
    assert value == ORACLES[score](np.array(t) > 0, np.array(p) > thresh) and value == (1. if score == 'f1' else .75)

@pytest.mark.parametrize('dtype', [np.float32, np.float16])
def test_scores_that_are_neighbours_in_their_type_are_told_apart(dtype):
    for low in np.random.default_rng(0).random(50).astype(dtype):
        p = np.array([low, np.nextafter(low, dtype(1))])
        thresh,value = best_threshold(p, np.array([0, 1]))
        assert value == 1 and (p > thresh).tolist() == [False, True]
        thresh,_ = best_threshold(p, np.array([0, 1]), per_class=True)
        assert (p > thresh).tolist() == [False, True]

def test_scores_that_are_neighbours_in_bfloat16_are_told_apart():
    a = torch.rand(50, generator=torch.Generator().manual_seed(0)).bfloat16()
    for low in a:
        p = torch.stack([low, (low.view(torch.int16)+1).view(torch.bfloat16)])
        thresh,value = best_threshold(p, torch.tensor([0, 1]))
        assert value == 1 and (p > thresh).tolist() == [False, True]

def test_the_value_holds_for_scores_in_float64_under_a_float32_threshold():
    rng = np.random.default_rng(0)
    p = .5 + rng.normal(size=(300, 1))*1e-8 # most are one and the same in float32
    t = rng.random((300, 1)) < 1/(1+np.exp(-(p-.5)*2e8))
    (thresh,),(value,) = best_threshold(p, t, per_class=True)
    assert thresh.dtype == np.float32
    assert value == pytest.approx(f1_score(t, p > thresh), abs=1e-6)
    cuts = np.nextafter(np.float32(.5), np.float32([0, 1])).tolist() + [.5]
    assert value >= max(f1_score(t, p > np.float32(c)) for c in cuts) - 1e-6

def test_results_are_of_the_kind_of_the_scores():
    p,t = fine(0)
    for x in (torch.tensor(p), torch.tensor(p, dtype=torch.float64), torch.tensor(p, requires_grad=True)):
        for targs in (torch.tensor(t), torch.tensor(t).float(), torch.tensor(t).bfloat16(), t.astype(int)):
            for o in best_threshold(x, targs, per_class=True):
                assert type(o) is torch.Tensor and o.dtype == torch.float32 and o.shape == (4,)
            assert [type(o) for o in best_threshold(x, targs)] == [float, float]
    for o in best_threshold(p, torch.tensor(t), per_class=True): assert type(o) is np.ndarray and o.dtype == np.float32
    np.testing.assert_array_equal(best_threshold(torch.tensor(p), torch.tensor(t), per_class=True)[0],
                                  best_threshold(p, t, per_class=True)[0])
    x = torch.tensor(p) # the subclasses of fastai come back as plain tensors
    from fastai.torch_core import TensorBase
    assert type(best_threshold(TensorBase(x), TensorBase(torch.tensor(t)), per_class=True)[0]) is torch.Tensor

def test_a_class_without_positives_gets_a_half_and_nan_and_no_part_in_the_mean():
    p,t = fine(0)
    t[:,1] = False
    thresh,value = best_threshold(p, t, 'accuracy', per_class=True)
    assert thresh[1] == .5 and np.isnan(value[1]) and np.isfinite(value[[0,2,3]]).all()
    assert best_threshold(p, t, average='macro') == best_threshold(p[:,[0,2,3]], t[:,[0,2,3]], average='macro')
    for average in ('micro', 'macro'):
        thresh,value = best_threshold(p, t*0, average=average)
        assert thresh == .5 and np.isnan(value)
        assert sweep_thresholds(p, t*0, average=average).accuracy.isna().all()

@pytest.mark.parametrize('average', ['micro', 'macro'])
def test_among_equals_the_cut_nearest_a_half_is_taken(average):
    # f1 is 2/3 for the upper cut (one of two found, no mistake) and for the lower (both found, two mistakes)
    t = np.array([1, 0, 0, 1, 0])
    for p,expected in (([.95, .9, .8, .5, .2], .35), ([.55, .51, .2, .12, .1], .53)):
        assert (best_threshold(np.array(p, np.float32), t, average=average)
                == (pytest.approx(expected), pytest.approx(2/3)))

def test_the_most_recall_among_the_most_precise_is_taken():
    p,t = np.array([.9, .5, .4, .3], np.float32),np.array([1, 1, 1, 0])
    assert best_threshold(p, t, 'precision_at_recall', at=.3) == (pytest.approx(.35), 1.)

def test_a_precision_that_cannot_be_reached_leads_to_no_prediction():
    p,t = np.array([.9, .5, .4], np.float32),np.array([0, 1, 0])
    assert best_threshold(p, t, 'recall_at_precision', at=.5) == (pytest.approx(.45), 1.)
    with pytest.warns(UserWarning, match="a precision of 0.6: at most 0.5. .* nothing is predicted"):
        thresh,value = best_threshold(p, t, 'recall_at_precision', at=.6)
    assert thresh == pytest.approx(.95) and value == 0

def test_a_warning_names_the_classes_that_are_never_predicted_and_what_they_can_reach():
    "'b' is at best right in 2 of 3, 'd' in none alone; 'c' has no positives"
    p = np.array([[.9, .9, .9, .9], [.5, .8, .5, .8], [.4, .7, .4, .7], [.3, .6, .3, .6]], np.float32)
    t = np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 1, 0, 1], [0, 0, 0, 0]])
    VOCAB = [*'abcd']
    words = (r"a precision of 0.7 for 2 of 4 classes: 'b' \(at most 0.667\), 'd' \(at most 0.333\). With the threshold "
             r"that is returned they are never predicted; lower `at`")
    for f in (best_threshold, bootstrap_threshold):
        with pytest.warns(UserWarning, match=words): f(p, t, 'recall_at_precision', per_class=True, at=.7, vocab=VOCAB)
    with pytest.warns(UserWarning, match=r"2 of 4 classes: class 1 \(at most 0.667\), class 3"):
        thresh,value = best_threshold(torch.tensor(p), torch.tensor(t), 'recall_at_precision', per_class=True, at=.7)
    assert value[[1, 3]].tolist() == [0, 0] and (p <= thresh.numpy())[:,[1, 3]].all()
    for i,most in ((1, 2/3), (3, 1/3)):     # scikit-learn's curve has no higher one
        pr,rc,_ = precision_recall_curve(t[:,i], p[:,i])
        assert pr[rc > 0].max() == pytest.approx(most)

def test_an_accuracy_that_is_highest_without_predictions_is_a_warning_too():
    p,t = np.array([[.9, .9], [.8, .2], [.7, .1]], np.float32),np.array([[0, 1], [0, 0], [1, 0]])
    words = "to predict nothing has the best accuracy for 1 of 2 classes: 'a'. .* it is never predicted; score='f1'"
    with pytest.warns(UserWarning, match=words): best_threshold(p, t, 'accuracy', per_class=True, vocab=['a', 'b'])

def test_classes_that_are_predicted_or_have_no_positives_are_no_warning():
    p,t = fine(0)
    t[:,0] = False
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        for score,at in (('f1', None), ('jaccard', None), ('precision_at_recall', 1.), ('recall_at_precision', .2)):
            best_threshold(p, t, score, per_class=True, at=at)
            best_threshold(p, t, score, at=at)

def test_the_plot_says_that_a_floor_is_not_reached():
    p,t = np.array([.9, .5, .4], np.float32),np.array([0, 1, 0])
    for at,words in ((.5, ['Precision at least 0.5', 'Best: 1.000 at 0.450']),
                     (.6, ['Precision at least 0.6: no threshold reaches it',
                           'Best: 0.000 at 0.950, nothing is predicted'])):
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            ax = plot_thresholds(p, t, 'recall_at_precision', at=at)
        assert {o.get_text() for o in ax.get_legend().get_texts()} >= set(words)

@pytest.mark.parametrize('average', ['micro', 'macro'])
def test_the_sweep_agrees_with_sklearn(average):
    p,t = coarse(3, (50, 20)) # scores that equal a threshold among them
    thresholds = [.5, -.1, .25, .2, 1., .5, .99]
    df = sweep_thresholds(p, t, thresholds, tuple(ORACLES), average, beta=2.)
    assert df.columns.tolist() == ['threshold', *ORACLES] and df.threshold.tolist() == thresholds
    for _,row in df.iterrows():
        d = p > np.float32(row.threshold)
        for score,f in ORACLES.items():
            expected = (f(t.ravel(), d.ravel()) if average == 'micro' else
                        np.mean([f(t[:,i], d[:,i]) for i in range(20)]))
            assert row[score] == pytest.approx(expected, abs=1e-12)

def test_the_sweep_compares_as_the_type_of_the_scores_does():
    for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
        p,t = torch.tensor([.1, .3, .7], dtype=dtype),torch.tensor([1, 1, 1])
        for c in (.1, .3, .7):
            assert sweep_thresholds(p, t, [c], 'recall').recall[0] == pytest.approx((p > c).float().mean().item())

def test_the_sweep_has_29_points_unless_told():
    p,t = fine(0)
    df = sweep_thresholds(torch.tensor(p), torch.tensor(t))
    assert df.columns.tolist() == ['threshold', 'accuracy', 'f1']
    np.testing.assert_allclose(df.threshold, np.linspace(.05, .95, 29))

@pytest.mark.parametrize('kw', [dict(), dict(per_class=True), dict(average='macro'),
                                dict(score='recall_at_precision', at=.5)])
@pytest.mark.parametrize('make', [coarse, fine])
def test_the_bootstrap_is_the_search_on_rows_drawn_again(kw, make):
    p,t = make(4)
    score,n = kw.get('score', 'f1'),len(p)
    of = ORACLES[score.split('_at_')[0]]
    def reached(thresh, p, t):   # without the floor
        d = p > np.float32(thresh)
        if not {'per_class', 'average'} & {*kw}: return [of(t.ravel(), d.ravel())]
        each = [of(t[:,i], d[:,i]) if t[:,i].any() else np.nan for i in range(t.shape[1])]
        return each if kw.get('per_class') else [np.nanmean(each)]
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        df = bootstrap_threshold(p, t, n=20, seed=3, ci=.8, **kw)
        thresh,value = (np.atleast_1d(o) for o in best_threshold(p, t, **kw))
        rng,found = np.random.default_rng(3),[]
        for _ in range(20):
            rows = rng.integers(n, size=n)
            again,best = (np.atleast_1d(o) for o in best_threshold(p[rows], t[rows], **kw))
            found.append([again, best, best - reached(again, p, t), reached(thresh, p[rows], t[rows])])
    again,best,optimism,same = np.moveaxis(found, 1, 0) # (20, m)
    optimism = optimism.mean(0)
    low,high = np.percentile([again, best, same], [10, 90], axis=1)
    expected = dict(threshold=thresh, low=low[0], high=high[0], value=value, corrected=value-optimism,
                    value_low=np.maximum(low[1:].min(0) - optimism, 0), value_high=high[1:].max(0) - optimism)
    assert list(df.columns) == list(expected) and len(df) == again.shape[1]
    for k,v in expected.items(): np.testing.assert_allclose(df[k], v, rtol=0, atol=1e-6)

@pytest.mark.parametrize('n,shift,rate,score', [(60, 1.5, .3, 'f1'), (200, 1.5, .3, 'f1'), (200, 1.5, .3, 'accuracy')])
def test_the_interval_of_the_value_holds_it_on_new_data_as_often_as_it_says(n, shift, rate, score):
    """Scores of two normal distributions, for which the values of all thresholds on new data are known. Over 500
    samples of 200 resamples 95 % intervals hold that of the threshold that was chosen in 92 to 94 %; here 80 of 60"""
    z  = np.linspace(-8, 10, 20001)
    tp,pred = rate*norm.sf(z-shift),rate*norm.sf(z-shift) + (1-rate)*norm.sf(z)
    of_new  = dict(f1=2*tp/(rate+pred), accuracy=1-rate-pred+2*tp)[score]
    rng,rows = np.random.default_rng(0),[]
    for _ in range(80):
        t = rng.random(n) < rate
        p = norm.cdf((rng.normal(size=n) + shift*t)/3).astype(np.float32)
        o = bootstrap_threshold(p, t, score, n=60).iloc[0]
        new = np.interp(3*norm.ppf(o.threshold), z, of_new)
        rows.append((o.value_low <= new <= o.value_high, o.value_low <= of_new.max() <= o.value_high, o.value - new,
                     o.corrected - new))
    held,held_best,bias,corrected = np.mean(rows, 0)
    assert held > .84 and held_best > .86            # two standard errors below .9 and .92
    assert bias > .02 and abs(corrected) < .6*bias   # what is tuned and measured on the same data flatters

def test_the_bootstrap_interval_holds_the_truth_and_repeats_with_its_seed():
    rng = np.random.default_rng(0)
    p = rng.random((2000, 1))
    t = rng.random((2000, 1)) < p # calibrated, so that .5 is best for the accuracy, which is then 3/4
    a,b,c = (bootstrap_threshold(p, t, 'accuracy', n=100, seed=s) for s in (0, 0, 1))
    assert a.equals(b) and not a.equals(c)
    assert a.low[0] < .5 < a.high[0] and a.low[0] <= a.threshold[0] <= a.high[0] and a.high[0]-a.low[0] < .3
    assert a.value_low[0] < .75 < a.value_high[0]

def test_the_bootstrap_leaves_out_resamples_without_positives():
    p,t = fine(5, (12, 3))
    t[:,0] = False
    t[1:,1],t[0,1] = False,True # one picture, which a third of the resamples lack
    df = bootstrap_threshold(p, t, per_class=True, n=30)
    assert df.threshold[0] == .5 and df.iloc[0, 1:].isna().all()
    assert df.loc[1:].notna().all(axis=None) and df.value_low[1] > 0

@pytest.mark.parametrize('kw', [dict(), dict(per_class=True), dict(average='macro'), dict(score='fbeta', beta=2.)])
def test_each_fold_is_decided_by_the_others(kw):
    p,t = fine(6, (90, 3))
    folds = np.random.default_rng(0).choice(['b', 'a', 'c'], 90)
    thresh,value = out_of_fold_threshold(p, t, folds, **kw)
    d,expected = np.zeros_like(t),[]
    for f in dict.fromkeys(folds):
        expected.append(best_threshold(p[folds != f], t[folds != f], **kw)[0])
        d[folds == f] = p[folds == f] > expected[-1]
    np.testing.assert_array_equal(thresh, np.float32(expected))
    f = ORACLES[kw.get('score', 'f1')]
    each = [f(t[:,i], d[:,i]) for i in range(3)]
    if 'per_class' in kw: np.testing.assert_allclose(value, each, atol=1e-6)
    else: assert value == pytest.approx(np.mean(each) if 'average' in kw else f(t.ravel(), d.ravel()))
    assert np.mean(value) <= np.mean(best_threshold(p, t, **kw)[1]) + 1e-6

def test_fold_ids_may_be_of_any_hashable_type():
    p,t = (torch.tensor(o) for o in fine(7, (6, 2)))
    ids = [('a', 1), ('a', 1), None, 'video', None, 'video']
    thresh,value = out_of_fold_threshold(p, t, ids, per_class=True)
    assert type(thresh) is type(value) is torch.Tensor and thresh.shape == (3, 2) and value.shape == (2,)
    assert torch.equal(thresh, out_of_fold_threshold(p, t, torch.tensor([0, 0, 1, 2, 1, 2]), per_class=True)[0])

def test_out_of_fold_the_floor_may_be_missed_and_the_recall_is_told():
    p = np.array([.9, .8, .7, .95, .85, .1], np.float32)
    t = np.array([1, 1, 0, 0, 1, 1])
    with pytest.warns(UserWarning, match="no threshold reaches a precision of 1 on all other folds for 1 of 2 folds"):
        thresh,value = out_of_fold_threshold(p, t, [0, 0, 0, 1, 1, 1], 'recall_at_precision', at=1.)
    # the first fold alone cuts at .75, where the second takes in a mistake; the second alone finds none worth it
    assert thresh[1] == pytest.approx(.75) and thresh[0] == pytest.approx(.975) and value == 1/4

def test_the_temperature_is_recovered_from_logits_that_are_too_sure():
    rng = np.random.default_rng(0)
    true,z = np.array([.5, 1., 2.5]),rng.normal(size=(20000, 3))*2
    t = rng.random(z.shape) < 1/(1+np.exp(-z))
    np.testing.assert_allclose(fit_temperature(z*true, t, per_class=True), true, rtol=.05)
    assert fit_temperature(z*3, t) == pytest.approx(3, rel=.05)

def test_no_temperature_near_by_has_less_cross_entropy():
    for seed in range(5):
        p,t = fine(seed, (50, 2))
        z,t = torch.logit(torch.tensor(p, dtype=torch.float64))*4,torch.tensor(t)
        loss = lambda T: torch.nn.functional.binary_cross_entropy_with_logits(z/T, t.double())
        T = fit_temperature(z, t)
        assert 1/20 < T < 20 and all(loss(T) <= loss(T*f) for f in (.99, .999, 1.001, 1.01))
        each = fit_temperature(z, t, per_class=True)
        assert type(each) is torch.Tensor and each.dtype == torch.float32
        np.testing.assert_allclose(each, [fit_temperature(z[:,i], t[:,i]) for i in range(2)], rtol=1e-6)

def test_the_temperature_stays_in_its_bounds_and_is_one_without_both_kinds_of_target():
    z,t = np.array([-300., -1, 2, 500]),np.array([0, 0, 1, 1])
    assert fit_temperature(z, t) == 1/20 and fit_temperature(z, 1-t) == 20
    np.testing.assert_array_equal(fit_temperature(np.c_[z, z], np.c_[t*0, t*0+1], per_class=True), [1, 1])

def test_a_temperature_does_not_change_the_best_decisions_but_mends_the_calibration():
    rng = np.random.default_rng(0)
    z = rng.normal(size=(5000, 2))
    t,z = rng.random(z.shape) < 1/(1+np.exp(-z)),z*4
    sigmoid = lambda z: 1/(1+np.exp(-z))
    T = fit_temperature(z, t)
    assert best_threshold(sigmoid(z), t)[1] == pytest.approx(best_threshold(sigmoid(z/T), t)[1], abs=1e-6)
    assert calibration_error(sigmoid(z/T), t) < .02 < .15 < calibration_error(sigmoid(z), t)

def test_the_bins_of_the_reliability_agree_with_sklearn_and_hold_every_entry():
    p,t = (o.astype(np.float64) for o in fine(0, (300, 3)))
    p[0] = 0,1,.5
    for n in (1, 7, 10):
        df = reliability(p, t, n)
        assert len(df) == n and df.n.sum() == p.size and df.low[0] == 0 and df.high[n-1] == 1
        some = df[df.n > 0]
        positive,score = calibration_curve(t.ravel(), p.ravel(), n_bins=n)
        np.testing.assert_allclose(some.positive, positive)
        np.testing.assert_allclose(some.score, score)
    assert reliability(p*.1, t).loc[1:, ['score', 'positive']].isna().all(axis=None)

def test_the_calibration_error_agrees_with_torchmetrics():
    binary = pytest.importorskip('torchmetrics.functional.classification',
                                 reason="the oracle; pip install torchmetrics").binary_calibration_error
    for seed in range(4):
        p,t = (torch.tensor(o) for o in fine(seed))
        for n in (5, 10, 15):
            assert calibration_error(p, t, n) == pytest.approx(
                binary(p.flatten(), t.flatten().int(), n).item(), abs=1e-6)

def test_a_score_on_the_edge_of_a_bin_belongs_to_the_lower_in_its_own_type():
    for dtype in (np.float16, np.float32, np.float64):
        p = np.linspace(0, 1, 11).astype(dtype)
        assert reliability(p, p > 2).n.tolist() == [2] + [1]*9

@pytest.mark.parametrize('score,name', [('f1', 'F1'), ('fbeta', 'F2'), ('recall_at_precision', 'Recall'),
                                        ('precision_at_recall', 'Precision')])
def test_the_plot_marks_the_optimum(score, name):
    p,t = fine(8)
    thresh,value = best_threshold(p, t, score, **ask(score))
    ax = plot_thresholds(p, t, score, **ask(score))
    texts = [o.get_text() for o in ax.get_legend().get_texts()]
    assert name in texts and f'Best: {value:.3f} at {thresh:.3f}' in texts
    marks = [o.get_xydata()[0] for o in ax.lines if len(o.get_xydata()) == 1]
    np.testing.assert_allclose(marks, [(thresh, value)])
    plt.close(ax.figure)

def test_the_plots_draw_on_the_axes_they_are_given():
    p,t = fine(9)
    fig,axs = plt.subplots(1, 2, figsize=(13, 5), layout='constrained')
    assert (plot_thresholds(p, t, 'jaccard', 'macro', axs[0]) is axs[0]
            and plot_reliability(torch.tensor(p), t, 5, axs[1]) is axs[1])
    assert (f'Calibration error {calibration_error(p, t, 5):.3f}'
            in [o.get_text() for o in axs[1].get_legend().get_texts()])
    fig.canvas.draw()
    free = plt.figure().add_axes([.2, .4, .5, .5])       # axes that belong to no grid
    assert plot_reliability(p, t, 5, free) is free and len(free.child_axes) == 1
    plt.close('all')

def test_legend_and_histogram_are_beside_the_curves():
    p,t = fine(9)
    for ax in (plot_thresholds(p, t), plot_reliability(p, t)):
        ax.figure.canvas.draw()
        legend,inside = ax.get_legend().get_window_extent(),ax.get_window_extent()
        assert legend.x0 >= inside.x1 and legend.x1 <= ax.figure.bbox.x1 and not ax.patches
        assert ax.get_title('left')[0].isupper() and ax.get_ylabel()[0].isupper()
    below = ax.figure.axes[-1]
    assert below is not ax and below.get_window_extent().y1 < inside.y0 and below.get_tightbbox().y0 >= 0
    assert [o.get_height() for o in below.patches] == reliability(p, t).n.tolist()

@pytest.mark.parametrize('ci', [.5, .95, .99])
def test_the_interval_is_wilsons(ci):
    for n in (1, 2, 10, 997):
        hits = np.unique(np.linspace(0, n, 7).round()).astype(int)
        low,high = wilson_interval(hits, n, ci)
        for k,a,b in zip(hits.tolist(), low, high):
            want = binomtest(k, n).proportion_ci(ci, 'wilson')
            assert (a, b) == pytest.approx((want.low, want.high), abs=1e-12)
    assert np.isnan(wilson_interval(0, 0)).all()
    with pytest.raises(ValueError, match="ci: expected .* got 95"): wilson_interval(1, 2, 95)

def test_the_bars_of_the_reliability_plot_are_the_intervals_of_its_bins():
    p,t = fine(9)
    ax,bins = plot_reliability(p, t, 5),reliability(p, t, 5)
    ends = np.array([o[:,1] for o in ax.collections[0].get_segments()])
    some = bins[bins.n > 0]
    np.testing.assert_allclose(ends.T, wilson_interval((some.positive*some.n).round(), some.n))

P,T = fine(0, (5, 2))
def put(x, i, v): x = x.astype(float); x[i] = v; return x

@pytest.mark.parametrize('f,args,message', [
    (best_threshold, (P, T[:4]), r"probs has shape \(5, 2\) but targs \(4, 2\)"),
    (best_threshold, (P[None], T[None]), r"probs has shape \(1, 5, 2\), expected \(n, c\) or \(n,\)"),
    (best_threshold, (P[:0], T[:0]), r"probs is empty, shape \(0, 2\)"),
    (best_threshold, (T, T), "probs has type bool, expected floating point"),
    (best_threshold, (put(P, ([2,3], 1), np.nan), T), "nan in probs: 2 of 10, the first in row 2, class 1"),
    (best_threshold, (put(P, (3,0), -2.5), T),
     r"probs reach from -2\.5 to .*: 1 of 10, the first in row 3, class 0; "
     r"pass probabilities in \[0, 1\], not logits"),
    (best_threshold, (P, put(T, (1,1), 2)), r"targs other than 0 and 1: 1 of 10, the first in row 1, class 1, is 2\.0"),
    (best_threshold, (P, put(T, (1,1), np.nan)), r"targs other than 0 and 1: 1 of 10.* is nan"),
    (best_threshold, (P, T, 'acuracy'), "score: expected one of .*, got 'acuracy'; did you mean 'accuracy'"),
    (best_threshold, (P, T, 'precision@recall'), "'precision@recall'; did you mean 'precision_at_recall'"),
    (best_threshold, (P, T, 'recall_at_precision'), "needs `at`, the lowest precision to accept"),
    (best_threshold, (P, T, 'precision_at_recall', False, 1., 0.),
     "at: expected a number above 0, at most 1, .* got 0.0"),
    (best_threshold, (P, T, 'recall_at_precision', False, 1., .5, 'macro'),
     "no macro average; use average='micro' or per_class=True"),
    (best_threshold, (P, T, 'f1', False, 1., .5), r"at=0\.5 has no meaning for score 'f1'"),
    (best_threshold, (P, T, 'f1', False, 2.), "beta=2.0 has no meaning for score 'f1'; use 'fbeta'"),
    (best_threshold, (P, T, 'fbeta', False, 0.), "beta: expected a number above 0, .* got 0.0"),
    (best_threshold, (P, T, 'f1', False, 1., None, 'mean'), "average: expected one of 'micro', 'macro', got 'mean'"),
    (best_threshold, (P, T, 'f1', True, 1., None, 'mean'), "average: expected one of 'micro', 'macro', got 'mean'"),
    (sweep_thresholds, (P, T, [.5], ('f1', 'presicion')), "scores: expected one of .* did you mean 'precision'"),
    (sweep_thresholds, (P, T, [.5, np.nan]), "thresholds: expected a list of numbers, got"),
    (sweep_thresholds, (P, T, None, ('f1',), 'micro', 2.), "beta=2.0 has no meaning for scores"),
    (bootstrap_threshold, (P, T, 'f1', False, 0), "n: expected a whole number from 1 to 1000000, got 0"),
    (bootstrap_threshold, (P, T, 'f1', False, 5, 95), "ci: expected a confidence between 0 and 1, .* got 95"),
    (out_of_fold_threshold, (P, T, [0, 1]), "2 fold ids for 5 rows of probs"),
    (out_of_fold_threshold, (P, T, [3]*5), "all rows are of fold 3; expected at least two folds"),
    (out_of_fold_threshold, (P, T, [0., 1., np.nan, 1., 0.]), "the fold id of row 2 is nan"),
    (fit_temperature, (put(P, (4,1), np.inf), T), "infinite logits: 1 of 10, the first in row 4, class 1"),
    (fit_temperature, (put(P, (4,1), np.nan), T), "nan in logits: 1 of 10, the first in row 4, class 1"),
    (reliability, (P, T, 0), "n_bins: expected a whole number from 1 to 1000000, got 0"),
    (calibration_error, (P*4, T), "pass probabilities"),
])
def test_what_cannot_be_answered_is_explained(f, args, message):
    with pytest.raises(ValueError, match=message): f(*args)
