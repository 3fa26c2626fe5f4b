"The multi-label task: what only it has, and what it says to bad input"
from dataclasses import replace
import numpy as np, pytest, torch
from fastai.vision.all import (BCEWithLogitsLossFlat, Brightness, Flip, Normalize, RandomResizedCrop, Resize,
                               aug_transforms, imagenet_stats, load_learner, resnet18, set_seed)
from PIL import Image
from sklearn.metrics import average_precision_score, f1_score, multilabel_confusion_matrix, recall_score
from torch import Tensor, nn
from vision_tasks.data.annotation import Annotation
from vision_tasks.data.errors import AnnotationError
from vision_tasks.data.splits import StratifiedSplitter
from vision_tasks.losses.labels import AsymmetricLoss, MultilabelBCE, MultilabelFocal, balanced_pos_weight
from vision_tasks.metrics.labels import MultilabelF1
from vision_tasks.multilabel import multilabel_block, multilabel_dls, multilabel_learner

NET = 'shufflenet_v2_x0_5'

def dls_of(anns, **kw): return multilabel_dls(anns, **{**dict(size=32, bs=8, num_workers=0, device='cpu'), **kw})
def learner_of(dls, arch=NET, **kw): return multilabel_learner(dls, arch, **{**dict(pretrained=False), **kw})

@pytest.fixture
def learn(shapes, tmp_path):
    set_seed(0)
    learn = learner_of(dls_of(shapes, path=tmp_path))
    with learn.no_bar(), learn.no_logging(): yield learn

# --- data

def test_a_batch_is_normalised_pictures_and_multi_hot_targets(learn, shapes):
    x,y = learn.dls.valid.one_batch()
    vocab,items = learn.dls.vocab,learn.dls.valid.items
    assert x.shape[1:] == (3, 32, 32) and abs(x.mean()) < 2.5 and x.min() < 0
    assert [[vocab[j] for j in row.nonzero().flatten()] for row in y] == [sorted(set(a.labels)) for a in items[:len(y)]]
    back = learn.dls.valid.decode_batch((x, y), max_n=2)[0][0]
    w,h = items[0].size                              # the middle, 1/1.15 of each side
    W,H = round(w/1.15),round(h/1.15)
    (x1,y1) = (w-W)//2,(h-H)//2
    px = Image.open(items[0].path).convert('RGB').crop((x1, y1, x1+W, y1+H)).resize((32, 32), Image.Resampling.BILINEAR)
    assert np.abs(back.numpy().astype(float) - np.asarray(px).transpose(2, 0, 1)).max() <= 3

@pytest.mark.train
def test_a_label_seen_only_in_valid_has_its_place(shapes, tmp_path):
    plain = [replace(a, bboxes=None, points=None, visible=None, masks=None) for a in shapes[:12]]
    anns = [replace(a, labels=['common'], split='train') for a in plain[:8]]
    anns += [replace(a, labels=['rare'], split='valid') for a in plain[8:]]
    learn = learner_of(dls_of(anns))
    with learn.no_bar(), learn.no_logging():
        learn.fit(1, 1e-3)
        assert list(learn.dls.vocab) == ['common', 'rare'] and learn.evaluate_per_class().n.tolist() == [0, 4]
        thresh,best = learn.tune_threshold(per_class=True)
        assert thresh[0] == .5 and best[0].isnan() and best[1] > 0

def test_a_users_own_transforms_replace_ours(shapes):
    normalize = Normalize.from_stats(*imagenet_stats)
    for item,batch in ((Resize(48), aug_transforms()), (RandomResizedCrop(48), [Flip(), Brightness(), normalize])):
        dls = dls_of(shapes, item_tfms=item, batch_tfms=batch)
        learn = learner_of(dls)
        assert dls.train.one_batch()[0].shape == (8, 3, 48, 48)
        assert sum(isinstance(o, Normalize) for o in dls.train.after_batch.fs) == 1
        with learn.no_bar(): assert len(learn.annotate(shapes[:3])) == 3

def test_a_small_data_set_still_makes_a_batch(shapes):
    dls = dls_of(shapes[:10], bs=64)
    assert len(dls.train) == 1 and dls.train.bs == 8

def test_the_splitter_can_be_stratified_and_the_vocab_can_be_given(shapes):
    vocab = ['triangle', 'star', 'square', 'circle', 'heart']
    dls = dls_of(shapes, vocab=vocab, splitter=StratifiedSplitter(.3))
    assert list(dls.vocab) == vocab
    assert {o for a in dls.valid.items for o in a.labels} == {o for a in shapes for o in a.labels}
    assert multilabel_block(vocab, size=16).dataloaders(shapes, bs=4, num_workers=0).one_batch()[1].shape == (4, 5)

# --- nets and losses

class Own(nn.Module):
    def __init__(self, n_out, width=8):
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(3, width, 3, 2, 1), nn.ReLU())
        self.head = nn.Linear(width, n_out)
    def forward(self, x): return self.head(self.encoder(x).mean((2, 3)))

@pytest.mark.train
@pytest.mark.parametrize('arch', ['mobilenet_v3_small', resnet18, 'timm/resnet10t', Own, Own(4),
                                  nn.Sequential(nn.Flatten(), nn.LazyLinear(4))],
                         ids=lambda o: o if isinstance(o, str) else getattr(o, '__name__', type(o).__name__))
@pytest.mark.filterwarnings('ignore:.*has no attribute `encoder`')
def test_every_kind_of_arch_trains(shapes, arch):
    if isinstance(arch, nn.Sequential): arch(torch.zeros(1, 3, 32, 32))
    learn = learner_of(dls_of(shapes), arch)
    with learn.no_bar(), learn.no_logging():
        learn.fine_tune(1, 1e-3)
        assert learn.get_preds()[0].shape == (len(learn.dls.valid_ds), 4)

def test_arch_kwargs_reach_the_builder_and_the_head(shapes):
    assert learner_of(dls_of(shapes), Own, arch_kwargs=dict(width=5)).model.head.in_features == 5
    head = learner_of(dls_of(shapes), arch_kwargs=dict(lin_ftrs=[17])).model.head
    assert any(isinstance(o, nn.Linear) and o.out_features == 17 for o in head)
    assert type(learner_of(dls_of(shapes), None, encoder=NET).model).__name__ == 'EncoderHead'

def test_a_net_without_an_encoder_is_one_group_and_says_so(shapes):
    net = nn.Sequential(nn.Flatten(), nn.Linear(3*32*32, 4))
    with pytest.warns(UserWarning, match="Sequential has no attribute `encoder`, so all its parameters are one group"):
        learn = learner_of(dls_of(shapes), net)
    assert len(learn.splitter(net)) == 1

def test_pretrained_takes_a_file_of_the_encoder_and_freezes_it(shapes, tmp_path):
    from torchvision.models import shufflenet_v2_x0_5
    src = shufflenet_v2_x0_5(weights=None)
    torch.save(src.state_dict(), tmp_path/'w.pth')
    learn = learner_of(dls_of(shapes), pretrained=tmp_path/'w.pth')
    assert torch.equal(learn.model.encoder.state_dict()['body.conv1.0.weight'], src.conv1[0].weight)
    assert not learn.model.encoder.body.conv1[0].weight.requires_grad

@pytest.mark.train
@pytest.mark.parametrize('loss,cls', [(None, MultilabelBCE), ('bce', MultilabelBCE), ('focal', MultilabelFocal),
                                      ('asymmetric', AsymmetricLoss)])
def test_losses_by_name(shapes, loss, cls):
    learn = learner_of(dls_of(shapes), loss_func=loss)
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-3)
    assert type(learn.loss_func) is cls and np.isfinite(learn.recorder.values[-1]).all()

@pytest.mark.train
def test_a_loss_of_ones_own_or_of_fastai_is_taken_and_its_threshold_tuned(shapes):
    dls = dls_of(shapes)
    for loss in (MultilabelBCE(pos_weight=balanced_pos_weight(dls.train.items, dls.vocab)), BCEWithLogitsLossFlat()):
        learn = learner_of(dls, loss_func=loss)
        with learn.no_bar(), learn.no_logging():
            learn.fit(1, 1e-3)
            thresh,_ = learn.tune_threshold(per_class=True)
            assert torch.equal(learn.loss_func.thresh, thresh)
            probs,_,dec = learn.get_preds(with_decoded=True)
            assert torch.equal(dec.bool(), probs > thresh) and [a.labels for a in learn.annotate(dls.valid.items)] == [
                [dls.vocab[j] for j in row.nonzero().flatten()] for row in dec]

# --- scores and thresholds

@pytest.mark.train
def test_evaluate_equals_sklearn(learn):
    learn.fit(1, 1e-3)
    learn.tune_threshold()
    probs,targs = (o.as_subclass(Tensor).numpy() for o in learn.get_preds())
    d,s = probs > learn.loss_func.thresh,learn.evaluate()
    assert s['map_macro'] == pytest.approx(average_precision_score(targs, probs, average='macro'), abs=1e-5)
    assert s['map_micro'] == pytest.approx(average_precision_score(targs, probs, average='micro'), abs=1e-5)
    assert s['f1_micro'] == pytest.approx(f1_score(targs, d, average='micro'))
    assert s['accuracy_multi'] == pytest.approx((d == targs).mean())
    df = learn.evaluate_per_class()
    np.testing.assert_allclose(df.f1.fillna(0), f1_score(targs, d, average=None, zero_division=0))
    np.testing.assert_allclose(df.ap, [average_precision_score(targs[:,j], probs[:,j]) for j in range(4)], atol=1e-6)
    assert (df.thresh == np.float32(learn.loss_func.thresh)).all()

@pytest.mark.train
def test_confusion_is_at_the_learners_threshold_and_of_all_images(learn):
    learn.fit(1, 1e-3)
    learn.tune_threshold(per_class=True)
    probs,targs = (o.as_subclass(Tensor).numpy() for o in learn.get_preds())
    d,t,vocab = probs > learn.loss_func.thresh.numpy(),targs > .5,list(learn.dls.vocab)
    df = learn.confusion_per_class()
    np.testing.assert_array_equal(df.iloc[:,1:], multilabel_confusion_matrix(t, d).reshape(-1, 4))
    cm = learn.confusion()
    assert list(cm.index) == list(cm.columns) == df.label.tolist() == vocab
    np.testing.assert_allclose(np.diag(cm), recall_score(t, d, average=None, zero_division=np.nan))
    these = t[:,0] & ~t[:,1]
    assert cm.iloc[0, 1] == pytest.approx(d[these,1].mean())
    assert len(learn.confusion(ds_idx=0)) == len(vocab)
    ax = learn.plot_confusion()
    np.testing.assert_allclose(ax.images[0].get_array().filled(np.nan), cm)
    assert [o.get_text() for o in ax.get_yticklabels()] == [f'{o} ({n})' for o,n in zip(vocab, t.sum(0).tolist())]
    used = [o for o in learn.plot_confusion_per_class(ncols=2).axes if o.images]
    assert [[o.get_text() for o in ax.texts] for ax in used] == df.iloc[:,1:].astype(str).to_numpy().tolist()

@pytest.mark.train
def test_tuning_raises_the_score_that_is_tuned_and_all_verbs_see_it(learn, shapes, tmp_path):
    learn.fit(1, 1e-3)
    before = learn.evaluate()
    thresh,best = learn.tune_threshold('f1')
    after = learn.evaluate()
    assert after['f1_micro'] == pytest.approx(best, abs=1e-6) and after['f1_micro'] >= before['f1_micro']
    assert after['map_macro'] == pytest.approx(before['map_macro'])
    assert learn.validate()[2] == pytest.approx(after['f1_macro'])
    per_class,_ = learn.tune_threshold(per_class=True)
    assert learn.evaluate()['f1_macro'] >= after['f1_macro'] - 1e-9
    _,dec,p = learn.predict(shapes[1])
    assert torch.equal(dec, p > per_class)
    learn.export(tmp_path/'l.pkl')
    assert torch.equal(load_learner(tmp_path/'l.pkl').loss_func.thresh, per_class)

def test_tuning_warns_of_the_classes_that_it_silences_by_their_names(learn):
    vocab = list(learn.dls.vocab)
    targs = learn.get_preds()[1].as_subclass(Tensor)
    learn._scores = lambda *_: (torch.where(targs > .5, .2, .6)*torch.tensor([1.]*(len(vocab)-1) + [0.]) +
                                torch.tensor([0.]*(len(vocab)-1) + [.1])*targs[:,-1:], targs)
    with pytest.warns(UserWarning, match="no threshold reaches a precision of 0.99 for .*" + ', '.join(
            f"'{o}' .at most" + '.*' for o in vocab[:-1])):
        thresh,value = learn.tune_threshold('recall_at_precision', per_class=True, at=.99)
    assert (value[:-1] == 0).all() and value[-1] == 1
    with pytest.warns(UserWarning, match=f"'{vocab[0]}' .at most"):
        learn.bootstrap_threshold('recall_at_precision', per_class=True, at=.99, n=3)

@pytest.mark.train
def test_sweep_bootstrap_and_plots_are_one_call(learn):
    learn.fit(1, 1e-3)
    assert len(learn.sweep_thresholds()) == 29
    assert learn.bootstrap_threshold(per_class=True, n=20).label.tolist() == list(learn.dls.vocab)
    assert learn.plot_thresholds().get_legend() is not None and learn.plot_reliability() is not None

@pytest.mark.train
def test_calibration_lowers_the_loss_and_is_exported(learn, shapes, tmp_path):
    learn.fit(2, 1e-2)
    ce = lambda: torch.nn.functional.binary_cross_entropy(*(o.as_subclass(Tensor) for o in learn.get_preds())).item()
    before = ce()
    t = learn.calibrate()
    assert ce() <= before + 1e-6 and t != 1.
    assert len(learn.calibrate(per_class=True)) == 4 and ce() <= before + 1e-6
    learn.export(tmp_path/'l.pkl')
    with (loaded := load_learner(tmp_path/'l.pkl')).no_bar():
        torch.testing.assert_close(loaded.predict(shapes[0])[2], learn.predict(shapes[0])[2])

def test_the_order_of_a_metric_and_a_threshold_does_not_matter(shapes):
    learn = learner_of(dls_of(shapes), metrics=[MultilabelF1('micro')])
    learn.loss_func.thresh = 0.
    with learn.no_bar(), learn.no_logging():
        t = learn.get_preds()[1]
        n = t.sum().item()
        assert learn.validate()[1] == pytest.approx(2*n/(n + t.numel()))     # everything is predicted

# --- bad input

def test_bad_data_are_told_before_training(shapes, tmp_path):
    with pytest.raises(AnnotationError, match="the data set is empty"): dls_of([])
    with pytest.raises(AnnotationError, match=r"1 image\(s\) in 1 group\(s\) cannot be split"): dls_of(shapes[1:2])
    with pytest.raises(AnnotationError, match="all 32 annotations are marked 'valid', none 'train'"):
        dls_of([replace(a, split='valid') for a in shapes])
    with pytest.raises(AnnotationError, match=r"gone.jpg: no such image file \(1 of 33 are missing\)"):
        dls_of([*shapes, Annotation(tmp_path/'gone.jpg', (4, 4), ['star'])])
    with pytest.raises(AnnotationError, match=r"label 'star', which is not in the vocab of 2 names"):
        dls_of(shapes, vocab=['circle', 'square'])
    with pytest.raises(AnnotationError, match="none of the 2 annotations has a label"):
        dls_of([Annotation(a.path, a.size) for a in shapes[:2]])
    with pytest.raises(ValueError, match=r"vocab has duplicate names: \['star'\]"):
        dls_of(shapes, vocab=['star', 'circle', 'star'])
    with pytest.raises(ValueError, match="annotations, number 0: expected an Annotation, got .*Path"):
        dls_of([a.path for a in shapes])
    with pytest.raises(AnnotationError, match="the splitter puts none of the 32 images into valid"):
        dls_of(shapes, splitter=lambda o: (range(32), []))

def test_a_truncated_picture_is_named_when_it_is_met(shapes, tmp_path):
    bad = tmp_path/'half.png'
    bad.write_bytes(shapes[0].path.read_bytes()[:200])
    bad = Annotation(bad, (64, 64), ['star'], split='valid')
    dls = dls_of([replace(shapes[1], split='train'), replace(shapes[2], split='valid'), bad])
    with pytest.raises(OSError, match="half.png cannot be read as an image"): list(dls.valid)

def test_bad_arguments_of_the_learner_are_told(shapes, tmp_path):
    dls = dls_of(shapes)
    with pytest.raises(ValueError, match="'resnet18'"): learner_of(dls, 'resnet81')
    with pytest.raises(ValueError, match="did you mean 'focal'"): learner_of(dls, loss_func='focl')
    with pytest.raises(ValueError, match="pass one of them"): learner_of(dls, NET, encoder=NET)
    with pytest.raises(ValueError, match="arch: expected .* a builder, or a name, got 3"): learner_of(dls, 3)
    with pytest.raises(FileNotFoundError, match="gone.pth"): learner_of(dls, pretrained=tmp_path/'gone.pth')
    torch.save({'conv1.0.weight': torch.zeros(2), 'surprise': torch.zeros(1)}, tmp_path/'w.pth')
    with pytest.raises(ValueError, match=r"(?s)w.pth.*missing.*unexpected.*surprise"):
        learner_of(dls, pretrained=tmp_path/'w.pth')
    with pytest.raises(ValueError, match="n_out=4"):
        learn = learner_of(dls, Own(7))
        with learn.no_bar(), learn.no_logging(): learn.fit(1)

def test_bad_thresholds_and_scores_are_told(learn, shapes):
    with pytest.raises(ValueError, match=r"thresh: .* for each of the 4 classes, got \[0.1, 0.2\]"):
        learn.annotate(shapes[:2], thresh=[.1, .2])
    learn.loss_func.thresh = [.1, .2, .3]
    with pytest.raises(ValueError, match="thresh has 3 values, but there are 4 classes"): learn.predict(shapes[0])
    learn.loss_func.thresh = .5
    with torch.no_grad(): learn.model.head[-1].weight.fill_(torch.nan)
    with pytest.raises(ValueError, match="nan"): learn.tune_threshold()
    with pytest.raises(ValueError, match="gives nan for these images: it diverged"): learn.evaluate()
    with pytest.raises(ValueError, match="gives nan for these images: it diverged"): learn.annotate(shapes[:2])
