from types import SimpleNamespace
import numpy as np, pytest, torch
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.learner import Learner
from fastai.vision.core import TensorMask
from sklearn.metrics import confusion_matrix, f1_score, jaccard_score, recall_score
from torch import nn
from torchmetrics.classification import MulticlassConfusionMatrix, MulticlassJaccardIndex
from vision_tasks.metrics import segmentation as ours
from vision_tasks.ops.masks import VOID
from vision_tasks.losses.segmentation import SegmentationCE
from vision_tasks.metrics.segmentation import (ClassAccuracy, FrequencyIoU, MeanDice, MeanIoU, PixelAccuracy,
                                               class_accuracy_from_confusion, confusion_counts, confusion_scores,
                                               dice_from_confusion, iou_from_confusion)

METRICS = MeanIoU, PixelAccuracy, ClassAccuracy, FrequencyIoU, MeanDice
NAMES = 'miou', 'pixel_accuracy', 'class_accuracy', 'fw_iou', 'dice'

def maps(n=6, shape=(4, 11, 13), void=.1, seed=0):
    "Predictions, and targets with void"
    rng = np.random.default_rng(seed)
    t = rng.integers(0, n, shape)
    p = np.where(rng.random(shape) < .5, t, rng.integers(0, n, shape))
    return torch.from_numpy(p),torch.from_numpy(np.where(rng.random(shape) < void, VOID, t))

def sklearn_counts(p, t, n, void=VOID):
    on = (t != void).numpy()
    return confusion_matrix(t.numpy()[on], p.numpy()[on], labels=range(n))

# 127 is the last whose table int16 can number
@pytest.mark.filterwarnings('ignore:A single label was found')
@pytest.mark.parametrize('n', [1, 2, 6, 127, 128, 200, 255])
@pytest.mark.parametrize('dtypes', [('int64', 'int64'), ('uint8', 'uint8'), ('int64', 'uint8'), ('uint8', 'int32'),
                                    ('int16', 'uint16')])
def test_confusion_counts_equal_sklearn_for_every_number_of_classes_and_dtype(n, dtypes):
    p,t = maps(n)
    p[0, 0, 0] = t[0, 0, 0] = n-1
    got = confusion_counts(*(o.to(getattr(torch, d)) for o,d in zip((p, t), dtypes)), n)
    assert got.dtype == torch.int64
    np.testing.assert_array_equal(got, sklearn_counts(p, t, n))
    assert torch.equal(confusion_counts(p.numpy(), t.numpy(), n), got)
    if n > 1: assert torch.equal(got, MulticlassConfusionMatrix(n, ignore_index=VOID)(p, t))

def test_more_classes_than_255_leave_out_index_255():
    p,t = maps(300, void=0.)
    t[0, 0],p[1, 0] = VOID,VOID
    np.testing.assert_array_equal(confusion_counts(p, t, 300), sklearn_counts(p, t, 300))

@pytest.mark.parametrize('void', [0, 2, 9, 255])
def test_void_may_be_any_value_a_class_even(void):
    p,t = maps(5)
    t[t == VOID] = void
    np.testing.assert_array_equal(confusion_counts(p, t, 5, void), sklearn_counts(p, t, 5, void))

def test_pixels_that_the_prediction_leaves_void_are_left_out():
    p,t = maps()
    some = torch.rand(p.shape, generator=torch.Generator().manual_seed(0)) < .3
    want = sklearn_counts(p, t.where(~some, VOID), 6)
    for d in (torch.uint8, torch.int64):
        np.testing.assert_array_equal(confusion_counts(p.where(~some, VOID).to(d), t.to(d), 6), want)
    t[t == VOID] = 0
    np.testing.assert_array_equal(confusion_counts(p.where(~some, VOID), t.to(torch.int8), 6),
                                  sklearn_counts(p, t.where(~some, VOID), 6))

def test_nothing_to_count_gives_zeros_and_inputs_are_not_changed():
    p,t = maps()
    p0,t0 = p.clone(),t.clone()
    confusion_counts(p.where(p != 1, VOID), t, 6); confusion_counts(p, t, 6)
    assert torch.equal(p, p0) and torch.equal(t, t0)
    assert torch.equal(confusion_counts(p[:0], t[:0], 6), torch.zeros(6, 6, dtype=torch.long))
    cm = confusion_counts(p, torch.full_like(t, VOID), 6)
    assert (cm == 0).all() and all(np.isnan(v) for v in confusion_scores(cm).values())

@pytest.mark.parametrize('dtype', [torch.uint8, torch.int16, torch.int64])
def test_values_that_are_no_class_are_told_not_counted(dtype):
    p,t = (o.to(dtype) for o in maps())
    def put(o, v): o = o.clone(); o[1, 2, 3] = v; return o
    for v in (6, 200):
        with pytest.raises(ValueError, match=rf"the prediction holds \[{v}\]; expected class indices 0 to 5, or 255"):
            confusion_counts(put(p, v), t, 6)
        with pytest.raises(ValueError, match=rf"the target holds \[{v}\]; expected class"):
            confusion_counts(p, put(t, v), 6)
        with pytest.raises(ValueError, match=rf"the prediction holds \[{v}\]"):
            confusion_counts(put(p, v).index_fill(0, torch.tensor([0]), VOID), t, 6)
    if dtype == torch.uint8: return
    for v in (-1, 300):
        with pytest.raises(ValueError, match=rf"the prediction holds \[{v}\]"): confusion_counts(put(p, v), t, 6)
        with pytest.raises(ValueError, match=rf"the target holds \[{v}\]"): confusion_counts(p, put(t, v), 6)

def test_different_shapes_and_probabilities_are_told():
    p,t = maps()
    with pytest.raises(ValueError, match=r"one shape, got \(4, 11, 12\) torch.int64 \(predictions\) and \(4, 11, 13\)"):
        confusion_counts(p[...,:12], t, 6)
    with pytest.raises(ValueError, match="torch.float32"): confusion_counts(p.float(), t, 6)

def sklearn_scores(p, t, n):
    on = (t != VOID).numpy()
    p,t = p.numpy()[on],t.numpy()[on]
    seen,there = np.union1d(p, t),np.unique(t)
    iou = jaccard_score(t, p, labels=there, average=None)
    return dict(miou=jaccard_score(t, p, labels=seen, average='macro'), pixel_accuracy=(p == t).mean(),
                class_accuracy=recall_score(t, p, labels=there, average='macro'),
                fw_iou=(iou*np.bincount(t)[there]).sum()/len(t),
                dice=f1_score(t, p, labels=seen, average='macro'))

def absent(): # class 3 nowhere, 4 predicted only, 5 missed only
    p,t = maps()
    t = t.where((t != 3) & (t != 4), 0)
    return p.where((p != 3) & (p != 5), 1),t

@pytest.mark.parametrize('data', [maps, absent])
def test_scores_equal_sklearn_with_absent_classes_left_out(data):
    p,t = data()
    got = confusion_scores(confusion_counts(p, t, 6))
    assert tuple(got) == NAMES and got == pytest.approx(sklearn_scores(p, t, 6))

def test_scores_of_a_class_are_nan_where_they_have_no_meaning():
    cm = confusion_counts(*absent(), 6)
    iou,dice,acc = (f(cm) for f in (iou_from_confusion, dice_from_confusion, class_accuracy_from_confusion))
    for o,nan in ((iou, [3]), (dice, [3]), (acc, [3, 4])): assert o.isnan().nonzero().flatten().tolist() == nan
    assert iou[4] == dice[4] == iou[5] == dice[5] == acc[5] == 0
    torch.testing.assert_close(dice, 2*iou/(1+iou), equal_nan=True)

def test_mean_iou_equals_torchmetrics():
    p,t = maps()
    want = MulticlassJaccardIndex(6, ignore_index=VOID)(p, t).item()
    assert confusion_scores(confusion_counts(p, t, 6))['miou'] == pytest.approx(want)

# --- as a learner feeds them

def logits(p, n): return torch.nn.functional.one_hot(p, n).movedim(-1, 1).float()*3 - 1

def feed(mets, p, t, sizes=(1, 2, 1), n=6, pad=0):
    for m in mets: m.reset()
    for x,y in zip(p.split(sizes), t.split(sizes)):
        if pad: y = torch.nn.functional.pad(y, [pad]*4)
        learn = SimpleNamespace(pred=logits(x, n), y=TensorMask(y))
        for m in mets: m.accumulate(learn)
    return {m.name: m.value for m in mets}

@pytest.mark.parametrize('pad', [0, 3])
@pytest.mark.parametrize('data', [maps, absent])
def test_metrics_over_batches_are_the_scores_of_the_data_set(data, pad):
    "Also where the logits are of the centre, as a valid U-Net's"
    p,t = data()
    mets = [m() for m in METRICS]
    assert tuple(m.name for m in mets) == NAMES
    assert feed(mets, p, t, pad=pad) == pytest.approx(sklearn_scores(p, t, 6))
    assert feed(mets, p[:2], t[:2], (2,)) == pytest.approx(sklearn_scores(p[:2], t[:2], 6))   # `reset` forgets

def test_a_metric_has_no_value_before_the_first_batch_and_keeps_counts_only():
    m = MeanIoU(); m.reset()
    assert m.value is None
    feed([m], *maps())
    assert vars(m).keys() == {'counts'} and m.counts.shape == (6, 6)

def test_five_metrics_count_each_batch_once(monkeypatch):
    p,t = maps()
    calls = []
    monkeypatch.setattr(ours, 'confusion_counts', lambda *a: calls.append(1) or confusion_counts(*a))
    feed([m() for m in METRICS], p, t)
    assert len(calls) == 3

def test_what_is_kept_of_a_batch_is_not_taken_for_another_target():
    p,t = maps()
    x,m = logits(p, 6),PixelAccuracy()
    for y in (t, p):
        m.reset(); m.accumulate(SimpleNamespace(pred=x, y=y))
    assert m.value == 1

def test_logits_of_another_size_are_told():
    p,t = maps()
    for y in (t[...,:12], t.repeat(1, 2, 2), t[:,1:]):
        m = MeanIoU(); m.reset()
        with pytest.raises(ValueError, match="class indices of one shape, got"):
            m.accumulate(SimpleNamespace(pred=logits(p, 6), y=y))

@pytest.mark.train
def test_a_learner_reports_the_scores_of_its_model_at_each_epoch():
    g = torch.Generator().manual_seed(0)
    x = torch.rand(12, 3, 8, 8, generator=g)
    y = x.argmax(1).to(torch.uint8)
    y[:, 0] = VOID
    items = list(zip(x, y))
    dls = DataLoaders(DataLoader(items, bs=4), DataLoader(items, bs=5))
    torch.manual_seed(0)
    learn = Learner(dls, nn.Conv2d(3, 3, 1), loss_func=SegmentationCE(), metrics=[m() for m in METRICS], lr=.1)
    with learn.no_logging(): learn.fit(2)
    with torch.no_grad(): said = learn.model(x).argmax(1)
    assert tuple(learn.recorder.metric_names)[3:8] == NAMES
    assert list(learn.recorder.values[-1][2:]) == pytest.approx(list(sklearn_scores(said, y, 3).values()))
