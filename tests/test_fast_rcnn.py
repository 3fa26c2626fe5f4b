"Fast R-CNN and Faster R-CNN on a single map: what only they have; what is true of all detectors is in test_detectors"
import math
from itertools import count
import numpy as np, pytest, torch
from PIL import Image
from torch import nn
from torch.testing import assert_close
from torchvision.models import vgg16
from torchvision.models.detection._utils import BoxCoder
from torchvision.ops import box_iou, nms
from torchvision.transforms.v2.functional import pil_to_tensor
from overfit import overfit
from vision_tasks.data.annotation import Annotation, vocab_of
from vision_tasks.data.synthetic import draw_shapes
from vision_tasks.metrics.detection import coco_ap
from vision_tasks.models.detection.fast_rcnn import fast_rcnn
from vision_tasks.models.detection.faster_rcnn import faster_rcnn_vgg16
from vision_tasks.models.detection.base import MAX_LOG, decode_bboxes, encode_bboxes, lies_on, nms_dets
from vision_tasks.models.detection.fast_rcnn import EncoderMap, RoICells
from vision_tasks.models.detection.faster_rcnn import vgg16_anchors
from vision_tasks.models.encoders import create_encoder

SMALL = dict(encoder='test_resnet', width=.06)
X     = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
GT    = (torch.tensor([[[4, 6, 44, 50.], [50, 20, 89, 60]], [[10, 5, 41, 33], [0, 0, 0, 0]]]),
         torch.tensor([[1, 3], [2, 0]]))

def boxes(n, w=96, h=64, seed=0):
    "`n` boxes with an area, anywhere in an image"
    g = torch.Generator().manual_seed(seed)
    two = (torch.rand(n, 2, 2, generator=g)*torch.tensor([w, h])).sort(1).values
    return two.flatten(1) + torch.tensor([0, 0, 1, 1])

def jittered(bboxes, n, by=.15, seed=0):
    "`n` boxes near each of `bboxes`"
    wh = (bboxes[:, 2:] - bboxes[:, :2]).repeat(n, 2)
    return bboxes.repeat(n, 1) + torch.randn(len(wh), 4, generator=torch.Generator().manual_seed(seed))*by*wh

def proposals(n=40): return torch.stack([torch.cat([jittered(b, 5), boxes(n)]) for b in GT[0]])

def inside(bboxes): return bboxes.clamp(min=0).minimum(torch.tensor([96., 64, 96, 64]))

def make(seed=0, n_out=3, build=fast_rcnn, **kw):
    torch.manual_seed(seed)
    return build(n_out, **{**SMALL, **kw})

def sure(net):
    "`net`, so that it finds something"
    for m in (net.box_predictor.cls_score, net.box_predictor.bbox_pred): nn.init.normal_(m.weight, std=.3)
    return net

def detect(net, *args, **kw):
    with torch.no_grad(): return net.eval()(*args, **kw)

# --- boxes

def test_boxes_are_told_and_found_again_as_torchvision_does():
    a,b,coder = boxes(50),boxes(50, seed=1),BoxCoder((1., 1., 1., 1.))
    assert_close(encode_bboxes(a, b), coder.encode_single(a, b))
    deltas = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))*3        # some above the clamp
    assert (deltas[:, 2:] > MAX_LOG).any()
    assert_close(decode_bboxes(deltas, b), coder.decode_single(deltas, b))
    assert_close(decode_bboxes(encode_bboxes(a, b), b), a, atol=1e-3, rtol=0)

def test_a_box_twice_as_wide_and_half_a_width_to_the_right_is_told_so():
    told = encode_bboxes(torch.tensor([10., 20, 50, 40]), torch.tensor([10., 20, 30, 40]))
    assert_close(told, torch.tensor([.5, 0, math.log(2), 0]))
    far = decode_bboxes(torch.tensor([0, 0, 99., 0]), torch.tensor([0, 0, 16., 10]))
    assert_close(far, torch.tensor([-492., 0, 508, 10]), rtol=1e-4, atol=1e-3)           # 1000 pixels wide at most

def test_detections_are_what_nms_leaves_of_each_class():
    n,c = 60,3
    b = torch.stack([boxes(n, seed=i) for i in range(c)], 1) + torch.tensor([-9, -9, 9, 9])     # some reach out
    scores = torch.rand(n, c, generator=torch.Generator().manual_seed(0))
    found  = nms_dets(b, scores, (64, 96), min_score=.2, nms=.3, max_dets=1000)
    b = inside(b)
    for k in range(c):
        on = scores[:, k] > .2
        one,s = b[on, k],scores[on, k]
        best  = nms(one, s, .3)
        mine  = found['labels'] == k+1
        assert 1 < mine.sum() < on.sum()
        assert torch.equal(found['boxes'][mine], one[best]) and torch.equal(found['scores'][mine], s[best])
    assert (found['scores'].diff() <= 0).all()
    few = nms_dets(b, scores, (64, 96), min_score=.2, nms=.3, max_dets=5)
    assert all(torch.equal(few[k], found[k][:5]) for k in few)

def test_boxes_that_are_clipped_to_nothing_are_no_detections():
    b = torch.tensor([[[-9., 3, 0, 20]], [[3, 3, 9, 9]], [[100, 3, 120, 9]]])
    assert torch.equal(nms_dets(b, torch.full((3, 1), .9), (64, 96))['boxes'], b[1])

# --- cells

COLUMN = torch.arange(32.).expand(32, 32)
RAMP   = torch.stack([COLUMN, COLUMN.T])[None]              # (1, 2, 32, 32), of an image of 512 pixels

def test_roi_align_reads_a_ramp_to_the_point_and_roi_pool_to_the_cell():
    region = torch.tensor([[83., 50, 307, 162]])
    x1,y1,x2,y2 = region[0].tolist()
    bins,got = torch.arange(7),RoICells('align', 16)(RAMP, [region])[0]
    assert_close(got[0, 3], (x1 + (bins+.5)*(x2-x1)/7)/16 - .5)                       # the centre of a cell is at .5
    assert_close(got[1, :, 3], (y1 + (bins+.5)*(y2-y1)/7)/16 - .5)
    got = RoICells('pool', 16)(RAMP, [region])[0]
    for g,a,b in ((got[0, 3], x1, x2), (got[1, :, 3], y1, y2)):
        a,b = round(a/16),round(b/16) + 1                                             # the last cell is in it
        last = [np.ceil((i+1)*(b-a)/7) + a - 1 for i in range(7)]                     # the maximum of a ramp
        assert g.tolist() == last
    moved = region + 3
    assert torch.equal(RoICells('pool', 16)(RAMP, [moved])[0], got)
    assert_close(RoICells('align', 16)(RAMP, [moved]), RoICells('align', 16)(RAMP, [region]) + 3/16)

def test_cells_come_image_by_image_and_from_the_image_of_the_region():
    maps = torch.stack([RAMP[0], RAMP[0] + 100])
    for pool in ('pool', 'align'):
        cells = RoICells(pool, 16)(maps, [boxes(3, 400, 400), boxes(0), boxes(2, 400, 400)][::2])
        assert cells.shape == (5, 2, 7, 7) and cells[:3].max() < 100 <= cells[3:].min()
        assert torch.equal(RoICells(pool, 16)({'0': maps}, [boxes(3, 400, 400), boxes(2, 400, 400)], [(1, 1)]), cells)

@pytest.mark.parametrize('encoder,stride', [('test_resnet', 8), ('test_resnet', 16), ('mobilenet_v3_small', 16),
                                            ('resnet18', 32), ('resnet18', 12)])
def test_the_map_of_an_encoder_is_the_one_at_the_stride_and_nothing_comes_behind_it(encoder, stride):
    torch.manual_seed(0)
    full = create_encoder(encoder, False).eval()
    i    = {8: -3, 12: -2, 16: -2, 32: -1}[stride]           # of 8 and 16, which are as near to 12, log2 takes 16
    want,c = full(X)[i],full.channels[i]
    torch.manual_seed(0)
    one = EncoderMap(create_encoder(encoder, False, stride=stride)).eval()
    got = one(X)
    assert torch.equal(got, want) and one.out_channels == c == got.shape[1]
    assert -(-96//one.stride) == got.shape[-1]
    got.sum().backward()
    assert all(p.grad is not None for p in one.parameters())

def test_with_vgg16s_weights_a_region_gets_the_numbers_that_the_classifier_gives_the_image(tmp_path):
    "RoIPool of 14 x 14 cells is the classifier's pool"
    with torch.device('meta'): theirs = vgg16().eval()
    g  = torch.Generator().manual_seed(0)
    sd = {k: torch.rand(v.shape, generator=g)*.1 if v.ndim == 1 else                   # no two rows are alike, and the
          torch.randn(v.shape, generator=g)*(2/v[0].numel())**.5 if v.ndim == 4 else  # file is small all the same
          (torch.randn(sum(v.shape), generator=g)*(2/v.shape[1])**.5).as_strided(v.shape, (1, 1))
          for k,v in theirs.state_dict().items()}
    theirs.load_state_dict(sd, assign=True)
    torch.save(sd, tmp_path/'vgg16.pth')
    net,x = fast_rcnn(3, pretrained=tmp_path/'vgg16.pth').eval(),torch.randn(1, 3, 224, 224, generator=g)
    with torch.no_grad():
        want = theirs.classifier[:-1](theirs.features(x).flatten(1))
        got  = net.head(net.cells(net.encoder(x), [torch.tensor([[0, 0, 208., 208]])]))
    assert want.std() > .1
    assert_close(got, want, rtol=1e-3, atol=1e-3)
    assert net.mean == pytest.approx([.485, .456, .406]) and not [*net.encoder.top.parameters()]

# --- what is learned from

TRUTH = dict(boxes=torch.tensor([[10., 10, 40, 40], [50, 20, 90, 60]]), labels=torch.tensor([3, 1]))

def test_of_many_proposals_64_are_taken_a_quarter_of_them_objects_the_others_background_that_overlaps():
    some = torch.cat([jittered(TRUTH['boxes'], 30, .05), jittered(TRUTH['boxes'], 100, .4), boxes(300)])
    net = make()
    torch.manual_seed(0)
    regions,labels,truth = net.sample_regions(some, TRUTH)
    assert len(regions) == 64 and (labels > 0).sum() == 16 and len(regions.unique(dim=0)) == 64
    iou,nearest = box_iou(regions, TRUTH['boxes']).max(1)
    fg = labels > 0
    assert (iou[fg] >= .5).all() and (iou[~fg] < .5).all() and (iou[~fg] >= .1).all()
    assert torch.equal(labels[fg], TRUTH['labels'][nearest[fg]]) and set(labels.tolist()) == {0, 1, 3}
    assert torch.equal(truth[fg], TRUTH['boxes'][nearest[fg]])
    assert not torch.equal(net.sample_regions(some, TRUTH)[0], regions)         # by chance
    torch.manual_seed(0)
    assert torch.equal(net.sample_regions(some, TRUTH)[0], regions)

def test_where_little_overlaps_regions_that_do_not_fill_the_share_of_the_background():
    near = jittered(TRUTH['boxes'][:1], 300, .4)
    iou  = box_iou(near, TRUTH['boxes']).amax(1)
    near = near[(iou >= .1) & (iou < .5)][:20]
    far  = torch.tensor([[0., 41, 9, 50]]) + torch.rand(100, 1)
    regions,labels,_ = make().sample_regions(torch.cat([far, near]), TRUTH)
    assert len(regions) == 64 and (labels > 0).sum() == 2                 # the true boxes, the only ones that match
    assert (box_iou(regions, near).amax(1) > .999).sum() == 20

def test_no_more_are_taken_than_there_are_and_without_objects_all_are_background():
    none = dict(boxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.long))
    regions,labels,_ = make().sample_regions(boxes(10), none)
    assert len(regions) == 10 and not labels.any()
    assert len(make().sample_regions(boxes(100), none)[0]) == 64
    assert [len(o) for o in make().sample_regions(boxes(0), none)] == [0, 0, 0]

def test_the_numbers_of_regions_are_parameters():
    some = torch.cat([jittered(TRUTH['boxes'], 50, .3), boxes(300)])
    net  = make(n_regions=20, foreground=.5, bg_iou=(.3, .4))
    regions,labels,_ = net.sample_regions(some, TRUTH)
    assert len(regions) == 20 and (labels > 0).sum() == 10
    iou = box_iou(regions, TRUTH['boxes']).amax(1)[labels == 0]
    assert (iou >= .3).all() and (iou < .4).all()

def test_what_lies_on_an_ignored_object_is_no_background_but_may_be_an_object():
    crowd = torch.tensor([[0., 0, 60, 64]])
    targ  = dict(boxes=torch.cat([crowd, TRUTH['boxes'][:1]]), labels=torch.tensor([-1, 3]))
    some  = torch.cat([jittered(TRUTH['boxes'][:1], 10, .05), boxes(200)])
    regions,labels,truth = make(n_regions=1000).sample_regions(some, targ)
    on = lies_on(regions, crowd)
    assert (labels[on] == 3).all() and on.sum() > 5 and (labels[~on] == 0).all() and (~on).sum() > 5
    assert (truth[on] == TRUTH['boxes'][0]).all()

def test_the_losses_are_the_sums_over_all_regions_by_hand():
    "Every region counts, so that nothing is left to chance"
    net,some = sure(make(n_regions=10000, foreground=1., bg_iou=(0., .5))),proposals()
    parts,_  = detect(net, X, *GT, proposals=some)
    with torch.no_grad(): maps = net.encoder(X)
    ce,l1,n  = 0.,0.,0
    for i,m in enumerate(maps):
        on = GT[1][i] > 0
        truth,labels = GT[0][i][on].numpy(),GT[1][i][on]
        mine = torch.cat([inside(some[i]), GT[0][i][on]])
        mine = mine[(mine[:, 2:] > mine[:, :2]).all(1)]                  # around padding there is nothing
        with torch.no_grad(): logits,deltas = net.classify(m[None], [mine])
        for r,z,d in zip(mine.numpy().astype(float), logits.double().numpy(), deltas.numpy()):
            ious = []
            for t in truth:
                inter = max(min(r[2], t[2])-max(r[0], t[0]), 0)*max(min(r[3], t[3])-max(r[1], t[1]), 0)
                ious.append(inter/((r[2]-r[0])*(r[3]-r[1]) + (t[2]-t[0])*(t[3]-t[1]) - inter))
            k = int(np.argmax(ious))
            label = int(labels[k]) if ious[k] >= .5 else 0
            ce += np.log(np.exp(z).sum()) - z[label]
            n  += 1
            if not label: continue
            t,(w,h) = truth[k],(r[2]-r[0], r[3]-r[1])
            want = [((t[0]+t[2])/2 - (r[0]+r[2])/2)/w/.1, ((t[1]+t[3])/2 - (r[1]+r[3])/2)/h/.1,
                    np.log((t[2]-t[0])/w)/.2, np.log((t[3]-t[1])/h)/.2]
            for e in np.abs(d[label] - want): l1 += .5*e**2 if e < 1 else e-.5
    assert l1 > 0 and n > 90
    assert_close(parts['loss_classifier'].item(), ce/n, rtol=1e-4, atol=0)
    assert_close(parts['loss_box_reg'].item(), l1/n, rtol=1e-4, atol=0)

# --- what is found

def test_a_detection_is_the_softmax_of_a_region_and_the_box_of_its_class():
    net,some = sure(make(pool='align')),proposals()           # no two regions have the same cells
    d = detect(net, X, proposals=some)[0]
    d = d[d[:, 5] > 0]
    with torch.no_grad():
        logits,deltas = net.classify(net.encoder(X), [inside(some[0]), some[1][:0]])
    probs = logits.softmax(1)
    assert len(d) > 5 and len(d[:, 5].unique()) > 1
    for row in d:
        k = int(row[5])
        i = (probs[:, k] - row[4]).abs().argmin()
        assert_close(probs[i, k], row[4], rtol=1e-4, atol=1e-5)
        box = BoxCoder((10., 10., 5., 5.)).decode_single(deltas[i, k][None], inside(some[0])[i:i+1])[0]
        assert_close(row[:4], inside(box), rtol=1e-3, atol=1e-2)

def test_detections_may_be_asked_for_where_gradients_are_kept():
    net = sure(make()).eval()
    assert torch.equal(net(X, proposals=proposals()), detect(net, X, proposals=proposals()))

def test_without_proposals_nothing_is_found_and_the_true_boxes_are_learned_from():
    net = make()
    for none in (torch.zeros(2, 0, 4), torch.zeros(2, 7, 4)):
        assert not detect(net, X, proposals=none).any()
        parts = net.train()(X, *GT, proposals=none)
        assert all(o.isfinite() and o > 0 for o in parts.values())
    one = torch.stack([torch.zeros(50, 4), proposals()[0]])      # one image has some
    dets = detect(sure(make()), X, proposals=one)
    assert not dets[0].any() and dets[1].any()

def test_a_batch_without_objects_and_proposals_has_a_loss_of_0_from_which_all_parameters_have_a_gradient():
    net   = make()
    parts = net.train()(X, torch.zeros(2, 0, 4), torch.zeros(2, 0, dtype=torch.long), proposals=torch.zeros(2, 0, 4))
    sum(parts.values()).backward()
    assert all(o == 0 for o in parts.values())
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())

def test_proposals_are_clipped_and_what_is_outside_or_without_area_does_not_count():
    net,some = sure(make()),boxes(8).expand(2, 8, 4)
    beyond = torch.tensor([[-30., 5, 40, 40], [60, 30, 200, 90]]).expand(2, 2, 4)
    gone   = torch.tensor([[-9., -9, -3, -3], [100, 3, 120, 30], [9, 9, 9, 20], [30, 20, 10, 10], [0, 0, 0, 0]])
    want   = detect(net, X, *GT, proposals=torch.cat([some, inside(beyond)], 1))
    got    = detect(net, X, *GT, proposals=torch.cat([beyond, gone.expand(2, 5, 4), some], 1))
    assert_close(got[1], want[1])
    assert want[1].any()

def test_proposals_are_asked_for():
    assert make().needs_proposals and not make(build=faster_rcnn_vgg16).needs_proposals
    for args in ((X,), (X, *GT)):
        with pytest.raises(ValueError, match=r"does not find its own proposals: .*proposals='selective_search'"):
            make().eval()(*args)
    for bad in (torch.zeros(1, 5, 4), torch.zeros(2, 5, 5), torch.zeros(5, 4)):
        with pytest.raises(ValueError, match=r"proposals: expected \(2, 'k', 4\) boxes for 2 images.*got"):
            make().eval()(X, proposals=bad)

def test_what_does_not_exist_is_refused():
    for build in (fast_rcnn, faster_rcnn_vgg16):
        with torch.device('meta'):
            with pytest.raises(ValueError, match="pool: expected .* 'pool', got 'max'"): build(3, pool='max')
            with pytest.raises(ValueError, match="expected 16, .* VGG16's map, got 32.*`encoder`"): build(3, stride=32)
    with pytest.raises(TypeError, match="unexpected keyword argument 'nms'"): make(build=faster_rcnn_vgg16, nms=.5)

@pytest.mark.parametrize('build', [fast_rcnn, faster_rcnn_vgg16])
@pytest.mark.parametrize('kw', [dict(encoder=None), dict(stride=32), dict(pool='align')], ids=str)
def test_each_stands_on_vgg16_on_an_encoders_last_map_and_on_aligned_cells(build, kw):
    net  = make(build=build, **kw)
    more = dict(proposals=proposals()) if net.needs_proposals else {}
    sum(net.train()(X, *GT, **more).values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
    assert detect(net, X[:1, :, :17, :19], **{k: v[:1] for k,v in more.items()}).shape == (1, 100, 6)   # 2 x 2 cells

# --- learning

@pytest.mark.train
def test_a_small_net_finds_what_is_drawn_among_proposals(tmp_path):
    "8 images; proposals near the objects and anywhere, new ones at each step and at the end"
    anns  = draw_shapes(tmp_path, 8, 64, seed=21, most=3)
    vocab = vocab_of(anns)
    x     = torch.stack([pil_to_tensor(Image.open(a.path)) for a in anns])/255
    truth = [(torch.tensor(a.bboxes), torch.tensor([vocab.index(o)+1 for o in a.labels])) for a in anns]
    pad   = lambda o: nn.utils.rnn.pad_sequence(o, batch_first=True)
    bboxes,labels = (pad(o) for o in zip(*truth))
    def some(seed): return pad([torch.cat([jittered(b, 10, seed=seed), boxes(60, 64, 64, seed)]) for b,_ in truth])
    def ap50():
        said = []
        for a,d in zip(anns, detect(net, x, proposals=some(999))):
            d = d[d[:, 5] > 0]
            said.append(Annotation(a.path, a.size, [vocab[int(k)-1] for k in d[:, 5]], d[:, :4].numpy(),
                                   scores=d[:, 4].numpy()))
        return coco_ap(anns, said, vocab)['map50']
    net = make(n_out=len(vocab), width=.25, stride=8, ps=.1)
    before,seeds = ap50(),count()
    overfit(net, lambda: sum(net.train()(x, bboxes, labels, proposals=some(next(seeds))).values()), 60, 2e-3)
    assert before < .5 and ap50() > .9      # of five seeds: .28 at most, and 1.

# --- Faster R-CNN

# of the released code (generate_anchors.py), whose last row and column are inside, around a cell of 16 pixels; rounded
# to it, so that they differ by a few pixels from the paper's 128, 256 and 512
PUBLISHED = torch.tensor([[-83, -39, 100, 56], [-175, -87, 192, 104], [-359, -183, 376, 200],
                          [-55, -55, 72, 72], [-119, -119, 136, 136], [-247, -247, 264, 264],
                          [-35, -79, 52, 96], [-79, -167, 96, 184], [-167, -343, 184, 360]])

def cell_anchors(**kw):
    with torch.device('meta'): net = faster_rcnn_vgg16(3, **kw).net
    net.rpn.anchor_generator.set_cell_anchors(torch.float32, torch.device('cpu'))
    return net.rpn.anchor_generator.cell_anchors[0]

def test_there_are_nine_anchors_of_128_256_and_512_pixels_in_three_shapes_as_published():
    a  = cell_anchors()
    wh = a[:, 2:] - a[:, :2]
    theirs = (PUBLISHED + torch.tensor([0, 0, 1, 1]) - 8).float()                     # their centre is at 8, 8
    assert len(a) == 9 and torch.equal(a[:, :2], -a[:, 2:])
    assert_close(wh.prod(1).view(3, 3), torch.tensor([128., 256, 512]).square().expand(3, 3), rtol=.02, atol=0)
    assert_close((wh[:, 1]/wh[:, 0]).view(3, 3), torch.tensor([.5, 1, 2])[:, None].expand(3, 3), rtol=.02, atol=0)
    assert (box_iou(a, theirs).diag() > .9).all() and torch.equal(box_iou(a, theirs).argmax(1), torch.arange(9))

def test_anchors_are_in_proportion_to_the_image_and_no_smaller_than_a_cell():
    assert vgg16_anchors() == (((128., 256., 512.),), (.5, 1., 2.))
    assert vgg16_anchors((1000, 300))[0] == ((64., 128., 256.),) and vgg16_anchors(64)[0] == ((16, 32, 64),)
    assert vgg16_anchors(64, 32)[0] == ((32, 64, 128),)
    assert cell_anchors(size=300)[3:6, 2].tolist() == [32, 64, 128]
    assert cell_anchors(anchors=(((10, 20, 40, 80),), (1.,)))[:, 2].tolist() == [5, 10, 20, 40]
    with pytest.raises(ValueError, match='for 1 levels with equally many anchors on each, got 2 levels of 1'):
        cell_anchors(anchors=(((10,), (20,)), (1.,)))

def test_its_numbers_are_the_papers():
    with torch.device('meta'): net = faster_rcnn_vgg16(20).net
    rpn,roi = net.rpn,net.roi_heads
    conv = rpn.head.conv[0][0]
    assert (conv.in_channels, conv.out_channels, conv.kernel_size) == (512, 512, (3, 3))
    assert (rpn.head.cls_logits.out_channels, rpn.head.bbox_pred.out_channels) == (9, 36)
    m = rpn.proposal_matcher
    assert (m.high_threshold, m.low_threshold, m.allow_low_quality_matches, rpn.nms_thresh) == (.7, .3, True, .7)
    assert (rpn.fg_bg_sampler.batch_size_per_image, rpn.fg_bg_sampler.positive_fraction) == (256, .5)
    assert (roi.fg_bg_sampler.batch_size_per_image, roi.fg_bg_sampler.positive_fraction) == (128, .25)
    assert (roi.box_head[1].in_features, roi.box_head[4].in_features, roi.nms_thresh) == (512*49, 4096, .3)
    total = sum(p.numel() for p in net.parameters())
    assert total + 9*513 == 137_078_239                 # of the released prototxt, with two logits an anchor

def test_a_kwarg_is_torchvisions_and_goes_before_the_papers():
    net = make(build=faster_rcnn_vgg16, box_nms_thresh=.5, rpn_post_nms_top_n_test=7, min_score=.2).net
    assert net.roi_heads.nms_thresh == .5 and net.roi_heads.score_thresh == .2 and net.rpn.post_nms_top_n() == 2000
    assert net.eval().rpn.post_nms_top_n() == 7
