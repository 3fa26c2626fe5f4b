"R-CNN: its windows, its three stages; what is true of every detector is in test_detectors.py"
import copy
import numpy as np, pytest, torch
import torch.nn.functional as F
from PIL import Image
from sklearn.linear_model import Ridge
from sklearn.svm import LinearSVC
from torch import nn
from torch.testing import assert_close
from torchvision.models import alexnet, get_model_weights
from torchvision.models._api import WeightsEnum
from torchvision.ops import box_iou
from torchvision.transforms.v2.functional import pil_to_tensor
from overfit import overfit
from undrawn import Undrawn
from vision_tasks.data.annotation import Annotation, vocab_of
from vision_tasks.data.synthetic import draw_shapes
from vision_tasks.metrics.detection import coco_ap
from vision_tasks.models.detection.rcnn import RCNN, rcnn
from vision_tasks.models.detection.base import encode_bboxes
from vision_tasks.models.alexnet import AlexNet
from vision_tasks.models.detection.rcnn_stages import HardestRows, linear_svm, ridge_regression
from vision_tasks.models.detection.windows import pick_windows, warp_regions

class Means(nn.Module):
    "(n, 3, 16, 16) -> (n, 48): means of 4 x 4 cells, so that features can be known beforehand; the outer are context"
    def forward(self, x): return F.adaptive_avg_pool2d(x, 4).flatten(1)

def means(n_out=3, **kw):
    torch.manual_seed(0)
    return RCNN(Means(), 48, n_out, **{**dict(crop=16, context=4), **kw})

def small(n_out=3, **kw):
    torch.manual_seed(0)
    return rcnn(n_out, **{**dict(encoder='test_resnet', crop=32, context=2), **kw})

def boxes(*rows): return torch.tensor(rows, dtype=torch.float)

def detect(net, *args, **kw):
    with torch.no_grad(): return net.eval()(*args, **kw)

# --- windows

def ramp(h=40, w=50):
    "The colour of a pixel says where its middle is: x, y, 1"
    y,x = torch.meshgrid(torch.arange(h)+.5, torch.arange(w)+.5, indexing='ij')
    return torch.stack([x, y, torch.ones(h, w)])[None]

@pytest.mark.parametrize('box', [(22, 22, 42, 30), (24, 16, 28, 40), (20.3, 11.7, 27.9, 25.1), (14, 14, 15, 15)])
@pytest.mark.parametrize('crop,context', [(16, 0), (16, 4), (9, 2), (227, 16)])
def test_a_crop_shows_the_region_stretched_and_around_it_the_context_at_the_same_scale(box, crop, context):
    x1,y1,x2,y2 = box
    got = warp_regions(ramp(64, 64), boxes([0, *box]), crop, context)[0]
    at  = (torch.arange(crop)+.5 - context)/(crop - 2*context)       # 0 and 1 are the region's edges
    assert_close(got[0], (x1 + at*(x2-x1)).expand(crop, crop), atol=1e-3, rtol=0)
    assert_close(got[1], (y1 + at*(y2-y1))[:, None].expand(crop, crop), atol=1e-3, rtol=0)

def test_what_is_outside_of_the_image_is_zero():
    got = warp_regions(ramp(8, 8), boxes([0, -8, 0, 8, 8]), 16)[0]
    assert not got[:, :, :7].any() and (got[2, :, 8:] == 1).all()
    own = warp_regions(ramp(8, 8), boxes([0, 0, 0, 8, 8]), 16, 4)[0, 2]     # 4 of 16 on each side are context
    assert not own[:3].any() and not own[:, -3:].any() and (own[4:-4, 4:-4] == 1).all()

def test_shrinking_takes_means_so_that_nothing_is_aliased():
    board = (torch.arange(32)[:, None] + torch.arange(32)) % 2
    got = warp_regions(board[None, None].float(), boxes([0, 0, 0, 32, 32]), 8)
    assert_close(got, torch.full_like(got, .5))
    x = torch.rand(1, 2, 32, 32)
    assert_close(warp_regions(x, boxes([0, 8, 0, 24, 32]), 4), F.avg_pool2d(x[..., 8:24], (8, 4)))

def test_windows_come_from_the_image_that_their_index_names():
    x = torch.stack([torch.zeros(3, 9, 9), torch.ones(3, 9, 9)])
    net = means(context=0).eval()
    got = net.features(x, [boxes([1, 1, 5, 5], [2, 2, 8, 8]), boxes([1, 1, 5, 5])])
    assert_close(got, torch.tensor([0., 0, 1])[:, None].expand(3, 48))

def test_no_more_than_chunk_windows_are_in_the_net_at_a_time_and_the_answer_is_the_same():
    net,seen = small(min_score=.01),[]
    net.encoder.register_forward_hook(lambda m, i, o: seen.append(len(i[0])))
    x,p = torch.rand(2, 3, 40, 40),torch.rand(2, 7, 4).sort(-1).values[..., [0, 1, 2, 3]]*40
    a = detect(net, x, proposals=p)
    assert seen == [7, 7]
    net.chunk = 3
    assert_close(detect(net, x, proposals=p), a, atol=1e-4, rtol=1e-4)
    assert seen[2:] == [3, 3, 1]*2

# --- stage 1

def test_regions_are_labelled_by_the_nearest_object_and_not_at_all_on_ignored_ones():
    net = means()
    targ = dict(boxes=boxes([0, 0, 10, 10], [20, 20, 30, 30], [40, 0, 60, 20]), labels=torch.tensor([2, 3, -1]))
    p = boxes([0, 0, 10, 5], [0, 0, 10, 4.9], [21, 20, 31, 30], [42, 2, 50, 10], [52, 2, 70, 10], [10, 10, 20, 20])
    (r,),(labels,) = net.label_regions([p], [targ])
    assert torch.equal(r, torch.cat([p, targ['boxes'][:2]]))
    assert labels.tolist() == [2, 0, 3, -1, 0, 0, 2, 3]

def test_a_batch_learns_from_at_most_32_objects_and_96_background_windows_of_all_images():
    torch.manual_seed(0)
    labels = torch.tensor([1]*40 + [0]*200 + [-1]*50)
    keep = pick_windows(labels, 32, 96)
    assert [int((labels[keep] == k).sum()) for k in (1, 0, -1)] == [32, 96, 0]
    assert not torch.equal(pick_windows(labels, 32, 96), keep)
    assert pick_windows(labels[:35], 32, 96).sum() == 32 and pick_windows(labels[-9:], 32, 96).sum() == 0
    net,seen = small(),[]
    net.encoder.register_forward_hook(lambda m, i, o: seen.append(len(i[0])))
    one = boxes([4, 4, 24, 24])
    p = torch.cat([one.repeat(30, 1), boxes([30, 30, 39, 39]).repeat(60, 1)]).repeat(2, 1, 1)
    net.train()(torch.rand(2, 3, 40, 40), one.repeat(2, 1, 1), torch.ones(2, 1, dtype=torch.long), proposals=p)
    assert seen == [128]

def test_the_loss_is_the_cross_entropy_of_the_windows():
    net,x = means(2),torch.rand(1, 3, 40, 40)
    truth,p = boxes([4, 4, 24, 24]),boxes([5, 5, 25, 25], [30, 30, 39, 39])
    labels = torch.tensor([[2]])
    loss = net.train()(x, truth[None], labels, proposals=p[None])['classifier']
    feats = net.features(x, [torch.cat([p, truth])])
    assert_close(loss, F.cross_entropy(net.classifier(feats), torch.tensor([2, 0, 2])))
    assert_close(detect(net, x, truth[None], labels, proposals=p[None])[0]['classifier'], loss)

def test_before_the_later_stages_regions_score_by_the_softmax_and_keep_their_boxes():
    net,x = small(min_score=.01, nms=1.),torch.rand(1, 3, 40, 40)
    p = boxes([2, 3, 20, 30], [0, 0, 0, 0], [-9, 10, 30, 60])
    real = boxes([2, 3, 20, 30], [0, 10, 30, 40])                       # clipped; padding does not count
    with torch.no_grad(): probs = net.eval().classifier(net.features(x, [real])).softmax(1)[:, 1:]
    d = detect(net, x, proposals=p[None])[0]
    d = d[d[:, 5] > 0]
    assert len(d) == 6
    order = probs.flatten().argsort(descending=True)
    assert_close(d[:, 4], probs.flatten()[order])
    assert_close(d[:, :4], real[order//3]) and d[:, 5].tolist() == (order%3 + 1).tolist()

@pytest.mark.parametrize('k', [0, 3])
def test_without_proposals_there_are_no_detections_and_the_true_boxes_teach_alone(k):
    net,x,none = small(),torch.rand(2, 3, 40, 40),torch.zeros(2, k, 4)
    assert not detect(net, x, proposals=none).any()
    truth,labels = boxes([4, 4, 24, 24]).repeat(2, 1, 1),torch.tensor([[1], [2]])
    parts,dets = detect(net, x, truth, labels, proposals=none)
    assert not dets.any() and parts['classifier'] > 0
    assert net.train()(x, truth, labels, proposals=none)['classifier'] > 0
    for n in (0, 1):                      # fewer windows than BatchNorm takes: nothing is learned, nothing breaks
        loss = net.train()(x, truth, labels*torch.tensor([[n], [0]]), proposals=none)['classifier']
        loss.backward()
        assert loss == 0
    assert all(p.grad is not None and not p.grad.any() for p in net.parameters())

def test_proposals_are_needed_and_have_their_shape():
    net,x = small(),torch.rand(2, 3, 40, 40)
    assert net.needs_proposals
    with pytest.raises(ValueError, match='does not find its own proposals'): detect(net, x)
    with pytest.raises(ValueError, match='proposals: expected .* for 2 images'):
        detect(net, x, proposals=torch.zeros(1, 3, 4))

# --- stages 2 and 3

def colours(n=6, seed=0, crowd=False):
    """Batches of two images: a red square of class 1, a green one of class 2 on grey, which the means of windows tell
    apart; proposals near them and elsewhere"""
    g = torch.Generator().manual_seed(seed)
    for _ in range(n):
        x,bb,ll,pp = torch.full((2, 3, 48, 48), .1),[],[],[]
        for img in x:
            img += .05*torch.randn(img.shape, generator=g)
            sq = boxes([2, 2, 20, 20], [26, 24, 46, 44]) + torch.randint(0, 3, (2, 1), generator=g)
            for c,(x1,y1,x2,y2) in enumerate(sq.int().tolist()): img[c, y1:y2, x1:x2] += .8
            near = sq.repeat(12, 1) + torch.randn(24, 4, generator=g)*2.5
            any_ = (torch.rand(30, 2, 2, generator=g)*48).sort(1).values.flatten(1)
            bb.append(sq); ll.append(torch.tensor([1, 2])); pp.append(torch.cat([near, any_]))
        yield x,torch.stack(bb),torch.stack(ll),torch.stack(pp)

def windows_by_hand(net, batches):
    "Features of true boxes and proposals, their classes (0: a proposal), and the highest IoU with each class"
    for x,bboxes,labels,proposals in batches:
        for img,b,l,p in zip(x, bboxes, labels, proposals):
            p = p.clamp(0, 48)
            r = torch.cat([b, p[(p[:, 2:] > p[:, :2]).all(1)]])
            iou = box_iou(r, b)
            yield (net.features(img[None], [r]), F.pad(l, (0, len(r)-len(b))), r,
                   torch.stack([iou[:, l == c].amax(1) if (l == c).any() else torch.zeros(len(r)) for c in (1, 2)], 1))

def fitted(C=1e-3, **kw):
    net,batches = means(2, **kw),list(colours())
    return net,batches,net.fit_stages(batches, C=C)

def test_an_svm_a_class_is_liblinears_on_true_boxes_and_on_windows_with_less_than_3_tenths_of_iou():
    net,batches,counts = fitted()
    feats,own,_,iou = map(torch.cat, zip(*windows_by_hand(net.eval(), batches)))
    raw,feats = feats,feats*20/feats.norm(dim=1).mean()
    for c in (1, 2):
        pos,neg = feats[own == c],feats[iou[:, c-1] < .3]
        # all windows are few enough to be among the first, so that a second round has the same ones
        assert counts['positives'][c-1] == len(pos) == 12 and counts['negatives'][c-1] == len(neg)
        svm = LinearSVC(C=1e-3, loss='hinge', intercept_scaling=10, class_weight={1: 2}, max_iter=10**5, tol=1e-6)
        svm.fit(torch.cat([pos, neg]), [1]*len(pos) + [0]*len(neg))
        want = torch.tensor(svm.decision_function(feats), dtype=torch.float)
        assert_close(raw@net.svm_weight[c-1] + net.svm_bias[c-1], want, atol=.01, rtol=0)

def test_after_them_scores_are_sigmoids_of_margins_and_each_class_has_its_own_box():
    net,batches,_ = fitted(min_score=0., nms=1., max_dets=500)
    assert net.fitted
    x,bboxes,labels,p = batches[0]
    d = detect(net, x[:1], proposals=p[:1, :20])[0]
    d = d[d[:, 5] > 0]
    with torch.no_grad(): feats = net.features(x[:1], [p[0, :20].clamp(0, 48)])
    scores = (feats@net.svm_weight.T + net.svm_bias).sigmoid()
    assert_close(d[:, 4], scores.flatten().sort(descending=True).values)
    best = d[0]
    assert best[5] in (1, 2)
    truth = bboxes[0][int(best[5])-1]
    start = p[0, :20][(scores[:, int(best[5])-1]).argmax()]
    assert box_iou(best[None, :4], truth[None]) > box_iou(start[None], truth[None])

def test_two_detections_of_a_class_overlap_by_3_tenths_at_most():
    net,batches,_ = fitted(C=1., min_score=.3)
    x,bboxes,_,p = batches[0]
    for d,b in zip(detect(net, x, proposals=p), bboxes):
        d = d[d[:, 5] > 0]
        same = (d[:, None, 5] == d[:, 5]) & ~torch.eye(len(d), dtype=torch.bool)
        assert (box_iou(d[:, :4], d[:, :4])[same] <= .3).all()
        for c in (1, 2):
            first = d[d[:, 5] == c][0]
            assert box_iou(first[None, :4], b[c-1:c]) > .6

def test_hard_negatives_of_all_images_join_a_small_random_start():
    net,batches = means(2),list(colours())
    counts = net.fit_stages(batches, n_start=5)
    assert all(h > 0 for h in counts['hard']) and all(n > 5 for n in counts['negatives'])
    feats,own,_,iou = map(torch.cat, zip(*windows_by_hand(net.eval(), batches)))
    feats = feats*20/(norm := feats.norm(dim=1).mean())
    for c in (1, 2):
        pos,neg = feats[own == c],feats[iou[:, c-1] < .3]
        w,b = linear_svm(pos, neg[::len(neg)//5], 1e-3)                  # what five windows teach
        over = lambda margins: (margins + 1).clamp(min=0).sum()
        assert over(neg@net.svm_weight[c-1]/20*norm + net.svm_bias[c-1]) < .5*over(neg@w + b)

def test_only_so_many_windows_are_kept_the_hardest_of_the_negatives():
    rows,gen = HardestRows(3),torch.Generator().manual_seed(0)
    keys = torch.rand(20, generator=gen)
    for k in keys.split([1, 0, 6, 2, 11]): rows.add(k, k[:, None]*10, k < .5)
    assert sum(len(p[0]) for p in rows.parts) <= 6
    feats,flags = rows.get()
    assert_close(feats[:, 0], keys.sort(descending=True).values[:3]*10)
    assert torch.equal(flags, feats[:, 0] < 5) and HardestRows(3).get() == []
    counts = means(2).fit_stages(list(colours()), n_start=20, max_windows=7)
    assert counts['positives'] == [7, 7] and counts['pairs'] == [7, 7] and max(counts['hard']) <= 7

def test_boxes_are_regressed_by_sklearns_ridge_on_pairs_with_more_than_6_tenths_of_iou():
    net,batches,counts = fitted()
    feats,own,r,_ = zip(*windows_by_hand(net.eval(), batches))
    truth = [b for batch in batches for b in batch[1]]
    scale = 20/torch.cat(feats).norm(dim=1).mean()
    for c in (1, 2):
        xs,ys = [],[]
        for f,o,q,b in zip(feats, own, r, truth):
            iou,near = box_iou(q, b).max(1)
            k = (iou > .6) & (near == c-1) & (o == 0)
            xs.append(f[k]); ys.append(encode_bboxes(b[near[k]], q[k]))
        xs,ys = torch.cat(xs)*scale,torch.cat(ys)
        assert counts['pairs'][c-1] == len(xs)
        theirs = Ridge(1000.).fit(xs.double(), ys.double())
        want = torch.tensor(theirs.predict(xs.double()), dtype=torch.float)
        own_w,own_b = net.box_weight.view(2, 4, -1)[c-1],net.box_bias.view(2, 4)[c-1]
        assert_close(xs/scale@own_w.T + own_b, want, atol=1e-4, rtol=1e-4)

@pytest.mark.parametrize('n', [5, 40])         # fewer and more rows than features
def test_ridge_regression_with_a_small_penalty_finds_the_numbers_that_made_the_targets(n):
    g = torch.Generator().manual_seed(0)
    x,w,b = torch.randn(n, 12, generator=g),torch.randn(4, 12, generator=g),torch.randn(4, generator=g)
    got,at = ridge_regression(x, x@w.T + b, 1e-9)
    assert_close(x@got.T + at, x@w.T + b, atol=1e-4, rtol=1e-4)
    if n == 40:
        assert_close(got, w, atol=1e-4, rtol=1e-4)
        assert_close(at, b, atol=1e-4, rtol=1e-4)
    none = ridge_regression(x, x@w.T + b, 1e12)
    assert_close(none[0], torch.zeros(4, 12), atol=1e-6, rtol=0)
    assert_close(none[1], (x@w.T + b).mean(0))

def test_an_offset_that_all_proposals_have_is_fixed_exactly():
    net = means(1, min_score=0.)
    batches = [(x, b[:, :1], torch.ones(2, 1, dtype=torch.long),
                torch.cat([b[:, :1] + torch.tensor([2., 1, 0, 1]), torch.tensor([[[30, 30, 47, 47.]]]*2)], 1))
               for x,b,_,_ in colours()]
    net.fit_stages(batches, ridge=1e-3)
    for x,b,_,p in batches:
        dets = detect(net, x, proposals=p[:, :1])
        assert_close(dets[:, 0, :4], b[:, 0], atol=.3, rtol=0)
        assert (dets[:, 0, :4] - p[:, 0]).abs().max() > .8

def test_a_linear_svm_tells_two_heaps_apart_with_a_margin():
    g = torch.Generator().manual_seed(0)
    pos,neg = torch.randn(50, 3, generator=g) + 8,torch.randn(90, 3, generator=g) - 8
    w,b = linear_svm(pos, neg, 1.)
    assert (pos@w + b).min() > .99 and (neg@w + b).max() < -.99

def test_a_class_without_objects_is_never_detected_and_one_warning_names_it():
    net = means(4, min_score=0.)
    batches = list(colours())
    with pytest.warns(UserWarning, match='no object of class 3, 4 in the batches: ') as seen:
        counts = net.fit_stages(batches)
    assert len(seen) == 1 and seen[0].filename == __file__
    assert counts['positives'][2:] == counts['negatives'][2:] == counts['pairs'][2:] == [0, 0]
    d = detect(net, batches[0][0], proposals=batches[0][3])
    assert set(d[..., 5].unique().tolist()) == {0, 1, 2} and d.isfinite().all()

def test_what_lies_on_ignored_objects_is_no_negative():
    batches = list(colours())
    crowd = [(x, torch.cat([b, torch.tensor([[[0, 24, 24, 48.]]]*2)], 1), F.pad(l, (0, 1), value=-1), p)
             for x,b,l,p in batches]
    counts = [means(2).fit_stages(o)['negatives'] for o in (batches, crowd)]
    assert all(b < a for a,b in zip(*counts))
    some = boxes([2, 26, 20, 44]).repeat(2, 1, 1)
    for extra in (0, 9):                                  # proposals on the crowd change nothing
        more = [(x, b, l, torch.cat([p, some.repeat(1, extra, 1)], 1)) for x,b,l,p in crowd]
        assert means(2).fit_stages(more)['negatives'] == counts[1]

@pytest.mark.parametrize('C', [1e-3, 1e-2, .1])
@pytest.mark.parametrize('seed', range(6))
@pytest.mark.filterwarnings('ignore:Liblinear failed to converge')
def test_a_window_on_the_margin_of_an_svm_is_fitted_once_whatever_rounding_says(C, seed):
    "Support vectors lie on the margin, which decides whether a window is a hard negative; all windows are in the start"
    net,batches = means(2),list(colours(seed=seed))
    counts = net.fit_stages(batches, C=C)
    iou = torch.cat([o for *_,o in windows_by_hand(net.eval(), batches)])
    assert counts['negatives'] == (iou < .3).sum(0).tolist()

def test_the_later_stages_leave_modes_generators_and_the_net_alone_and_can_be_repeated():
    net,batches = small(2),list(colours(2))
    net.train().encoder.eval()
    modes,state = [m.training for m in net.modules()],torch.get_rng_state()
    before = {k: v.clone() for k,v in net.state_dict().items()}
    net.fit_stages(batches, n_start=9)
    assert [m.training for m in net.modules()] == modes and torch.equal(torch.get_rng_state(), state)
    after = copy.deepcopy(net.state_dict())
    changed = {k for k,v in after.items() if not torch.equal(v, before[k])}
    assert changed == {'svm_weight', 'svm_bias', 'box_weight', 'box_bias', 'fitted'}
    net.fit_stages(batches, n_start=9)
    assert all(torch.equal(v, after[k]) for k,v in net.state_dict().items())

def test_a_state_dict_carries_svms_and_boxes_and_they_do_not_outlive_further_learning():
    net,batches = small(2, min_score=.01),list(colours(2))
    x,b,l,p = batches[0]
    first = detect(net, x, proposals=p)
    net.fit_stages(batches)
    dets,other = detect(net, x, proposals=p),small(2, min_score=.01)
    assert not torch.equal(dets, first) and not other.fitted
    other.load_state_dict(net.state_dict())
    assert other.fitted and torch.equal(detect(other, x, proposals=p), dets)
    parts,both = detect(net, x, b, l, proposals=p)
    assert torch.equal(both, dets) and net.fitted
    assert_close(detect(net, x, b, l, proposals=p)[0], parts)
    net.train()(x, b, l, proposals=p)
    assert not net.fitted

def test_what_cannot_be_fitted_says_so():
    x,b,l,p = next(colours(1))
    with pytest.raises(ValueError, match='no window is a negative for class 1: .* pass more proposals'):
        means(1).fit_stages([(x, b[:, :1], l[:, :1], p[:, :0])])
    with pytest.raises(ValueError, match='a list or a DataLoader, since it is iterated twice'):
        means(2).fit_stages(colours())
    with pytest.raises(ValueError, match='there is nothing to fit'): means(1).fit_stages([])
    counts = means(2).fit_stages([(x, b, l, p[:, :0])])       # the other class's objects are negatives
    assert counts['negatives'] == [2, 2] and counts['pairs'] == [0, 0]

# --- nets

def test_the_features_are_those_of_torchvisions_alexnet_with_its_weights(tmp_path, monkeypatch):
    torch.manual_seed(0)
    theirs = alexnet().eval()
    sd = theirs.state_dict()
    monkeypatch.setattr(WeightsEnum, 'get_state_dict', lambda self, *args, **kwargs: dict(sd))
    torch.save(sd, tmp_path/'alexnet.pth')
    x = torch.rand(2, 3, 227, 227)
    with torch.no_grad(): want = theirs_fc7(theirs, x)
    with Undrawn(): net = rcnn(20, pretrained=True).eval()
    assert net.crop == 227 and list(net.mean) == [.485, .456, .406] and list(net.std) == [.229, .224, .225]
    with torch.no_grad(): assert_close(net.encoder(x), want)
    with Undrawn(): grey = rcnn(2, n_in=1, pretrained=tmp_path/'alexnet.pth').eval()
    with torch.no_grad():
        assert_close(grey.encoder(x[:, :1]), theirs_fc7(theirs, x[:, :1].expand(-1, 3, -1, -1)), atol=1e-3, rtol=1e-3)
    with pytest.raises(ValueError, match='width=1, got width=0.5'): rcnn(2, width=.5, pretrained=True)
    torch.save({'features.0.weight': torch.zeros(3)}, tmp_path/'other.pth')
    words = "other.pth does not hold the weights of torchvision's alexnet: features.0.weight"
    with torch.device('meta'), pytest.raises(ValueError, match=words): rcnn(2, pretrained=tmp_path/'other.pth')

def theirs_fc7(net, x): return net.classifier[:6](net.avgpool(net.features(x)).flatten(1))

def test_the_parameters_are_alexnets_with_21_classes_in_place_of_1000():
    "The paper's, with its groups, has 56,954,261: 60,965,224 of CaffeNet, less 979 rows of 4097"
    with torch.device('meta'): net = rcnn(20)
    known = get_model_weights('alexnet').DEFAULT.meta['num_params']
    assert sum(p.numel() for p in net.parameters()) == known - 979*4097 == 57_089_877

def test_the_smallest_crop_of_alexnet_is_63_pixels():
    net = AlexNet(3, .05).eval()
    with torch.no_grad(): assert net(torch.rand(1, 3, 63, 63)).shape == (1, net.d)
    with pytest.raises(RuntimeError): net(torch.rand(1, 3, 62, 62))
    with pytest.raises(ValueError, match='crops of 63 pixels or more, got 62'): rcnn(2, width=.05, crop=62)

def test_encoders_of_one_size_get_crops_of_that_size():
    with torch.device('meta'):
        assert rcnn(2, encoder='vit_tiny_patch16_224').crop == rcnn(2, encoder='resnet18').crop == 224
        with pytest.raises(ValueError, match='takes images of 224 x 224 pixels only, got 64'):
            rcnn(2, encoder='vit_tiny_patch16_224', crop=64)

@pytest.mark.parametrize('kw,words', [
    (dict(crop=32, context=16), 'crop=32 with context=16 leaves no pixel'), (dict(context=-1), 'context: .* got -1'),
    (dict(chunk=0), 'chunk: expected .* got 0')])
def test_what_it_cannot_do_it_refuses(kw, words):
    with pytest.raises(ValueError, match=words): small(**kw)

# --- all of it

def proposals_of(anns, g, size=64):
    "Near the objects and anywhere, as a search for regions gives them"
    out = []
    for a in anns:
        b = torch.tensor(a.bboxes)
        near = b.repeat(8, 1) + torch.randn(8*len(b), 4, generator=g)*.1*(b[:, 2:] - b[:, :2]).repeat(8, 2)
        out.append(torch.cat([near, (torch.rand(60, 2, 2, generator=g)*size).sort(1).values.flatten(1)]))
    return nn.utils.rnn.pad_sequence(out, batch_first=True)

def ap50(anns, vocab, dets):
    said = []
    for a,d in zip(anns, dets):
        d = d[d[:, 5] > 0].numpy()
        said.append(Annotation(a.path, a.size, [vocab[int(o)-1] for o in d[:, 5]], d[:, :4].astype(np.float32),
                               scores=d[:, 4]))
    return coco_ap(anns, said, vocab)['map50']

@pytest.mark.train
def test_three_stages_learn_eight_drawn_images(tmp_path):
    anns = draw_shapes(tmp_path, 8, 64, seed=3)
    vocab,g = vocab_of(anns),torch.Generator().manual_seed(0)
    x = torch.stack([pil_to_tensor(Image.open(a.path)) for a in anns])/255 - .5
    bboxes = nn.utils.rnn.pad_sequence([torch.tensor(a.bboxes) for a in anns], batch_first=True)
    labels = nn.utils.rnn.pad_sequence([torch.tensor([vocab.index(o)+1 for o in a.labels], dtype=torch.long)
                                        for a in anns], batch_first=True)
    p,net = proposals_of(anns, g),small(len(vocab))
    before = ap50(anns, vocab, detect(net, x, proposals=p))
    overfit(net, lambda: net.train()(x, bboxes, labels, proposals=p)['classifier'], 60, 1e-2)
    softmax = ap50(anns, vocab, detect(net, x, proposals=p))
    net.fit_stages([(x, bboxes, labels, p)])
    svm = ap50(anns, vocab, detect(net, x, proposals=p))
    assert before < .5 < .8 < min(softmax, svm)      # SSE4.1, AVX2 and torch 2.8: .14 at most, and 1.
