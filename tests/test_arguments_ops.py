"The argument matrix of operations, losses, metrics, thresholds and plots"
import matplotlib.pyplot as plt, numpy as np, pandas as pd, pytest, torch
from PIL import Image
from bad_arguments import BAD, FEW, assert_no_faults, either, flag, names, number, one_of, table, text, whole
import vision_tasks.all as vt
from public import for_users, public
from vision_tasks.arguments import check_thresh
from vision_tasks.data.annotation import Annotation

pytestmark = pytest.mark.filterwarnings('ignore')

AREA = 'ops','losses','metrics','show','distributed','data.class_weights'
NAMES = public(*AREA)
EXEMPT = {'LocalizationIoU', 'MeanIoU', 'PixelAccuracy', 'ClassAccuracy', 'FrequencyIoU', 'MeanDice'}   # no arguments

VOCAB = ['a', 'b']

def anns(scores=False):
    return [Annotation('a.png', (8, 8), ['a', 'b'], [[0, 0, 4, 4], [4, 4, 8, 8]], scores=[.9, .4] if scores else None)]

def masked(): return [Annotation('a.png', (4, 4), mask=np.eye(4, dtype=np.uint8))]
def table_of(*columns): return pd.DataFrame(np.ones((2, len(columns))), columns=columns)
def confusion(): return pd.DataFrame(np.eye(2, dtype=int), index=VOCAB, columns=VOCAB)

def calls(folder):
    "{name: () -> (function, keyword arguments)}"
    rng,file = np.random.default_rng(0),str(folder/'a.png')
    Image.fromarray(rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(file)
    probs,targs = rng.random((8, 2), dtype=np.float32),np.arange(16).reshape(8, 2)%3 == 0
    grey,mask = np.full((8, 8, 3), 99, np.uint8),np.eye(4, dtype=bool)
    rle = dict(size=[4, 4], counts=[1, 15])
    net = dict(reduction='mean', thresh=.5, temperature=1.)
    both = dict(annotations=anns(), predictions=anns(True), vocab=VOCAB, iou=.5)
    scores,ids = dict(probs=probs, targs=targs),dict(probs=probs, targs=[0, 1]*4)
    onfile = [Annotation(file, (8, 8), ['a'], [[0, 0, 4, 4]])]
    multi = dict(label=VOCAB, tn=[1, 2], fp=[0, 0], fn=[1, 0], tp=[1, 1])
    def ax(): plt.close('all'); return plt.subplots()[1]
    kw = dict(
        # operations
        iou_matrix=lambda: dict(a=torch.rand(2, 4), b=torch.rand(2, 4)),
        paired_iou=lambda: dict(a=torch.rand(2, 4), b=torch.rand(2, 4)),
        palette=lambda: dict(n=3), class_colours=lambda: dict(vocab=VOCAB), is_background=lambda: dict(vocab=VOCAB),
        text_colour=lambda: dict(colour=(.1, .2, .3)),
        dense_crf=lambda: dict(probs=torch.full((2, 6, 6), .5), image=torch.zeros(3, 6, 6, dtype=torch.uint8), w1=4.,
                               sa=49., sb=5., w2=3., sg=3., n_iter=1),
        decode_mask=lambda: dict(mask=rle, size=(4, 4)), encode_rle=lambda: dict(mask=mask),
        encode_instances=lambda: dict(ids=np.eye(4, dtype=int)),
        paste_rle=lambda: dict(probs=np.ones((1, 3, 3)), bboxes=np.array([[0, 0, 4, 4]]), size=(4, 4), thresh=.5),
        mask_polygons=lambda: dict(mask=mask, holes='raise'), rle_counts=lambda: dict(rle=rle),
        mask_bbox=lambda: dict(mask=mask), mask_extent=lambda: dict(mask=[[0, 0, 3, 0, 3, 3]], size=(4, 4)),
        selective_search=lambda: dict(image=grey, n=4, width=8, scales=(50,), sigma=.8, seed=0, nms=.7,
                                      first='small'),
        random_proposals=lambda: dict(size=(8, 8), n=4, seed=0),
        grid_proposals=lambda: dict(size=(8, 8), n=4, aspects=(.5, 1), levels=2),
        proposal_recall=lambda: dict(proposals=[[[0, 0, 4, 4]]], bboxes=[[[0, 0, 4, 4]]], iou=(.5, .7), n=3),
        # losses
        MultilabelLoss=lambda: dict(net), MultilabelBCE=lambda: dict(pos_weight=[1., 2.], **net),
        MultilabelFocal=lambda: dict(gamma=2., alpha=.5, **net),
        **{k: lambda: dict(net, weight=[1., 2.], label_smoothing=.1) 
           for k in ('ClassificationLoss', 'ClassificationCE')},
        ClassificationFocal=lambda: dict(net, gamma=2., weight=[1., 2.], label_smoothing=.1),
        AsymmetricLoss=lambda: dict(gamma_pos=0., gamma_neg=4., clip=.05, **net),
        balanced_pos_weight=lambda: dict(annotations=anns(), vocab=VOCAB, most=100.),
        PointLoss=lambda: dict(kind='wing', reduction='mean', beta=.05, w=.1, eps=.02),
        LocalizationLoss=lambda: dict(bbox='l1', weight=2., reduction='mean', beta=.1, n_out=3),
        SegmentationLoss=lambda: dict(reduction='mean'), SegmentationCE=lambda: dict(weight=[1., 2.], reduction='mean'),
        SegmentationFocal=lambda: dict(gamma=2., weight=[1., 2.], reduction='mean'),
        SegmentationDice=lambda: dict(smooth=1., reduction='mean'),
        SegmentationCEDice=lambda: dict(weight=[1., 2.], dice=1., smooth=1., reduction='mean'),
        BorderCE=lambda: dict(weight=[1., 2.], w0=10., sigma=5., background=0, reduction='mean'),
        class_weights=lambda: dict(annotations=masked(), n=2, kind='inverse'),
        border_weights=lambda: dict(mask=np.eye(4, dtype=int), w0=10., sigma=5., background=0),
        crop_target=lambda: dict(targ=torch.zeros(1, 6, 6, dtype=torch.long), hw=(4, 4)),
        DetectionLoss=lambda: dict(weights=dict(a=1.), thresh=.5, reduction='mean'),
        # metrics
        average_precision=lambda: dict(scores), f_beta=lambda: dict(counts=torch.ones(3, 2), beta=1.),
        binary_counts=lambda: dict(pred=torch.ones(2, 2, dtype=torch.bool), targ=torch.ones(2, 2)),
        multilabel_confusion=lambda: dict(pred=probs > .5, targ=targs, vocab=VOCAB),
        label_confusion=lambda: dict(pred=probs > .5, targ=targs, vocab=VOCAB),
        MultilabelAP=lambda: dict(average='macro', name='x'), MultilabelF1=lambda: dict(average='macro', name='x'),
        MultilabelAccuracy=lambda: dict(name='x'),
        class_counts=lambda: dict(pred=[0, -1], targ=[0, 1], c=2),
        classification_confusion=lambda: dict(pred=[0, -1], targ=[0, 1], vocab=VOCAB),
        top_confidence=lambda: dict(ids), coverage_curve=lambda: dict(ids),
        ClassificationAccuracy=lambda: dict(accepted=True, name='x'),
        ClassificationF1=lambda: dict(average='macro', name='x'), ClassificationCoverage=lambda: dict(name='x'),
        best_rejection=lambda: dict(ids, score='fbeta', per_class=False, beta=2., average='macro', vocab=VOCAB),
        plot_coverage=lambda: dict(ids, thresh=.5, ax=ax()),
        fit_softmax_temperature=lambda: dict(logits=4*probs - 2, targs=[0, 1]*4),
        point_errors=lambda: dict(pred=np.ones((1, 2, 2)), targ=np.ones((1, 2, 2))),
        normalizer_of=lambda: dict(a=Annotation('a.png', (8, 8), points=[[1, 2], [3, 4]]), by=('l', 'r'),
                                   vocab=['l', 'r']),
        PointError=lambda: dict(by='box'), NME=lambda: dict(by='box'), PCK=lambda: dict(thresh=.05, by='box'),
        localization_confusion=lambda: dict(annotations=anns()[:0], predictions=[], vocab=VOCAB),
        LocalizationAccuracy=lambda: dict(iou=.5),
        confusion_counts=lambda: dict(pred=np.array([0, 1]), targ=np.array([1, 1]), n=2, void=255),
        **{k: lambda: dict(cm=torch.eye(2)) for k in ('confusion_scores', 'iou_from_confusion', 'dice_from_confusion',
                                                      'class_accuracy_from_confusion')},
        # detection
        coco_ap=lambda: dict(annotations=anns(), predictions=anns(True), vocab=VOCAB, iou_type='bbox', max_dets=10,
                             per_class=False),
        voc_ap=lambda: dict(both, points=11, per_class=False), match_detections=lambda: dict(both),
        detection_curve=lambda: dict(both, label='a', beta=1.),
        best_detection_threshold=lambda: dict(both, beta=1., per_class=False),
        detection_confusion=lambda: dict(both, thresh=.5),
        plot_precision_recall=lambda: dict(both, ax=ax()), plot_f_threshold=lambda: dict(both, beta=1., ax=ax()),
        MeanAP=lambda: dict(every=1, iou_type='bbox', max_dets=10),
        # thresholds
        best_threshold=lambda: dict(scores, score='recall_at_precision', per_class=True, beta=1., at=.5,
                                    average='micro', vocab=VOCAB),
        sweep_thresholds=lambda: dict(scores, thresholds=[.3, .5], scores=('f1', 'fbeta'), average='micro', beta=2.),
        plot_thresholds=lambda: dict(scores, score='fbeta', average='micro', ax=ax(), beta=2., at=None),
        bootstrap_threshold=lambda: dict(scores, score='fbeta', per_class=True, n=3, ci=.9, seed=0, vocab=VOCAB,
                                         beta=2., average='micro'),
        out_of_fold_threshold=lambda: dict(scores, folds=[0, 1]*4, score='fbeta', per_class=True, beta=2.,
                                           average='micro'),
        fit_temperature=lambda: dict(logits=4*probs - 2, targs=targs, per_class=True),
        reliability=lambda: dict(scores, n_bins=4), calibration_error=lambda: dict(scores, n_bins=4),
        wilson_interval=lambda: dict(hits=[1, 2], n=[3, 4], ci=.9),
        plot_reliability=lambda: dict(scores, n_bins=4, ax=ax()),
        # plots
        show_annotation=lambda: dict(a=onfile[0], ax=ax(), image=grey, vocab=VOCAB, title='x', scores=True, alpha=.5,
                                     point_names=VOCAB, skeleton=[(0, 1)]),
        contact_sheet=lambda: (plt.close('all'), dict(
            truths=onfile, preds=onfile, fname=folder/'sheet.png', n=2, ncols=1, vocab=VOCAB, title='x', alpha=.5,
            point_names=VOCAB, skeleton=[(0, 1)]))[1],
        plot_confusion=lambda: dict(counts=confusion(), normalize=True, ax=ax()),
        plot_label_confusion=lambda: dict(shares=confusion(), totals=[1, 2], ax=ax()),
        plot_confusion_per_class=lambda: (plt.close('all'), dict(counts=pd.DataFrame(multi), ncols=1))[1],
        plot_counts=lambda: (plt.close('all'), dict(annotations=anns(), vocab=VOCAB))[1],
        plot_per_class=lambda: (plt.close('all'), dict(df=table_of('label', 'n', 'ap'), columns=['ap'], sort='ap'))[1],
        paint_classes=lambda: dict(image=grey[:4,:4], mask=np.eye(4, dtype=np.uint8), vocab=VOCAB, alpha=.5),
        draw_points=lambda: dict(ax=ax(), points=[[1, 2], [3, 4]], vocab=VOCAB, skeleton=[(0, 1)], names=True,
                                 ring=False),
        Distributed=lambda: dict(device='cpu', sync_bn=True))
    return {name: lambda name=name, make=make: (NAMES[name], make()) for name,make in kw.items()}

EMPTY   = lambda v: isinstance(v, (list, torch.Tensor)) and len(v) == 0
SCORES  = one_of('f1', 'fbeta', 'accuracy', 'jaccard', 'recall_at_precision', 'precision_at_recall')
WEIGHTS = one_of(None, (1, 2, 3))
NUMBERS = one_of((1, 2, 3))
# what makes sense for the names of this file
ACCEPTS = {
    'palette.n': whole(0), 'class_colours.vocab': either(names, NUMBERS, EMPTY), 'SegmentationLoss.weight': WEIGHTS,
    'is_background.vocab': either(names, NUMBERS, EMPTY), 'decode_mask.mask': EMPTY, 'mask_extent.mask': one_of([]),
    'selective_search.width': either(whole(1), one_of(None)),
    'selective_search.nms': either(number(1e-9, 1), one_of(None)),
    'PCK.thresh': number(1e-300), 'show_annotation.a': lambda v: isinstance(v, Annotation),
    **{f'{k}.weight': WEIGHTS for k in ('SegmentationCE', 'SegmentationFocal', 'SegmentationCEDice', 'BorderCE')},
    'wilson_interval.hits': number(0, 2), 'class_counts.c': whole(2, 2**15),
    **{f'Classification{k}.{p}': v for k in ('Loss', 'CE', 'Focal') for p,v in dict(
        weight=WEIGHTS, temperature=number(1e-300)).items()},
    **dict(
        vocab=either(names, EMPTY), annotations=EMPTY, predictions=EMPTY, n=whole(1), w1=number(0, 1e6),
        w2=number(0, 1e6), sa=number(1e-3, 1e6), sb=number(1e-3, 1e6), sg=number(1e-3, 1e6), n_iter=whole(0),
        scales=NUMBERS, aspects=NUMBERS, thresh=number(0, 1), holes=one_of('raise', 'fill'), levels=whole(1),
        reduction=one_of('mean', 'sum', 'none'), temperature=either(number(1e-300), NUMBERS),
        pos_weight=either(number(0, 3e38), WEIGHTS), gamma=number(0), gamma_pos=number(0), gamma_neg=number(0),
        clip=number(0, .999), most=number(1), beta=number(0, 1e6), w=number(0), eps=number(1e-300),
        weight=either(number(0), one_of(None)), smooth=number(0), dice=number(0), w0=number(0),
        background=either(whole(0, 255), one_of(None)), kind=one_of('inverse', None),
        weights=either(table, one_of(None)), average=one_of('micro', 'macro'), name=text, void=whole(0),
        by=either(one_of('diagonal', 'box', ['x', 'y']), number(1e-300, 1e9)), every=whole(1), score=SCORES,
        thresholds=NUMBERS, n_bins=whole(1), ci=number(1e-9, 1 - 1e-9), at=number(1e-9, 1), scores=flag,
        normalize=flag, ring=flag, names=flag, sort=one_of(None), columns=one_of(None), points=one_of(None, 11),
        label=one_of(None), label_smoothing=number(0, 1), accepted=flag,
        sigma=number(0), skeleton=EMPTY, point_names=either(names, EMPTY, one_of(None)),
        alpha=either(number(0, 1), one_of(None)), ax=one_of(None), preds=one_of(None), fname=one_of(None))}

def test_every_public_name_is_in_the_matrix(tmp_path):
    assert {*for_users(*AREA)} | {'mask_bbox'} == {*calls(tmp_path)} | EXEMPT

def test_the_calls_without_a_bad_value_work(tmp_path):
    for name,make in calls(tmp_path).items():
        if name == 'Distributed': continue   # which needs several processes
        f,kw = make()
        f(**kw)

@pytest.mark.parametrize('values', [FEW, pytest.param(list(BAD), marks=pytest.mark.slow)], ids=['few', 'all'])
def test_what_makes_no_sense_is_refused(tmp_path, values):
    assert_no_faults(calls(tmp_path), values, ACCEPTS, works=False)

def test_a_loss_and_a_sheet_of_images_say_what_they_expect():
    for v in (-1, 2, float('nan'), '0.5', [.5, 2.]):
        for f in (lambda: vt.MultilabelBCE(thresh=v), lambda: setattr(vt.MultilabelBCE(), 'thresh', v),
                  lambda: vt.DetectionLoss(thresh=v)):
            with pytest.raises(ValueError, match=r"^thresh: expected a number in \[0, 1\], or one for each class"): f()
    with pytest.raises(ValueError, match=r"^truths: expected a list of Annotation, .*; write \[annotation\] for one"):
        vt.contact_sheet(anns()[0])
    with pytest.raises(ValueError, match="^kind: expected one of 'mse', .*; did you mean 'wing'"): vt.PointLoss('wings')
    with pytest.raises(ValueError, match=r"^fname: expected a name that ends in .png, .* got 'a.xyz'"):
        vt.contact_sheet(anns(), fname='a.xyz')

def test_a_threshold_that_predicts_all_is_taken_back():
    "Tuned where the lowest score is 0, it is just below 0"
    probs,targs = torch.tensor([[0., 0.], [.5, 0.]]),torch.ones(2, 2, dtype=torch.bool)
    for per_class in (False, True):
        thresh,_ = vt.best_threshold(probs, targs, per_class=per_class)
        loss = vt.MultilabelBCE(thresh=thresh)
        assert loss.decodes(probs).all() and (check_thresh(thresh, 2) < 0).any()
