"The sliding window for detection; what is true of every detector is in test_detectors.py"
import numpy as np, pytest, torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from torch.testing import assert_close
from torchvision.ops import box_iou
from torchvision.transforms.v2.functional import pil_to_tensor
from overfit import overfit
from vision_tasks.data.annotation import Annotation, vocab_of
from vision_tasks.data.synthetic import draw_shapes
from vision_tasks.metrics.detection import coco_ap
from vision_tasks.models.detection.sliding_window import SlidingWindowDetector, default_windows, sliding_window_detector
from vision_tasks.models.detection.sliding_window import window_classifier
from vision_tasks.models.registry import get_arch
from vision_tasks.models.segmentation.sliding_window import SlidingWindowSegmenter

def make(n_out=3, **kw):
    torch.manual_seed(0)
    net = sliding_window_detector(n_out, **{**dict(width=.25, size=64), **kw})
    net.classifier.weight.data *= 20
    return net.double()

def pictures(*size, n=2): return torch.randn(n, 3, *size, generator=torch.Generator().manual_seed(0)).double()

def boxes(*rows): return torch.tensor(rows, dtype=torch.float)

def detect(net, *args):
    with torch.no_grad(): return net.eval()(*args)

# --- where windows are

def test_windows_of_one_size_and_shape_stand_stride_pixels_apart_in_the_resized_image():
    net = make(sizes=(16,), ratios=(1.,))                   # 32 pixels of a image twice as large
    assert net.levels((24, 40)) == [(48, 80)]
    want = [[x, y, x+16, y+16] for y in range(0, 9, 2) for x in range(0, 25, 2)]
    assert_close(net.grid((48, 80), (24, 40)), boxes(*want))
    net.stride = 16
    assert_close(net.grid((48, 80), (24, 40)), boxes(*[[x, y, x+16, y+16] for y in (0, 8) for x in (0, 8, 16, 24)]))

@pytest.mark.parametrize('size', [(64, 64), (65, 97), (20, 130)])
def test_windows_have_the_sizes_and_shapes_that_were_asked_for_and_are_inside_the_image(size):
    net = make(sizes=(10, 14), ratios=(.5, 1., 2.))
    levels = net.levels(size)
    assert len(levels) == 6
    for l,(s,r) in zip(levels, [(s, r) for s in (10, 14) for r in (.5, 1., 2.)]):
        g = net.grid(l, size)
        w,h = (g[:, 2:] - g[:, :2]).unique(dim=0)[0].tolist()
        assert w*h == pytest.approx(s*s, rel=.05) and h/w == pytest.approx(r, rel=.05)
        assert g.min() >= 0 and g[:, 2].max() <= size[1] and g[:, 3].max() <= size[0]
        # the last is so near to the edge that none fits behind it
        assert g[:, 2].max() + w/8 > size[1] - 1e-3 and g[:, 3].max() + h/8 > size[0] - 1e-3

def test_a_window_is_never_larger_than_the_image():
    net = make(sizes=(100, 200, 8), ratios=(1.,))
    assert net.levels((12, 12)) == [(32, 32), (48, 48)]                # the two largest are the same
    assert_close(net.grid((32, 32), (12, 12)), boxes([0, 0, 12, 12]))
    assert detect(net, pictures(3, 5)).shape == (2, 100, 6)

def test_default_windows_leave_an_iou_of_a_half_for_every_box_of_their_sizes_and_shapes():
    net = make(size=128, sizes=None)
    grid = torch.cat([net.grid(l, (128, 128)) for l in net.levels((128, 128))])
    g = torch.Generator().manual_seed(0)
    s,r = 18*2**(torch.rand(500, generator=g)*2),2**(torch.rand(500, generator=g)*2 - 1)
    wh = torch.stack([s/r.sqrt(), s*r.sqrt()], 1)
    xy = torch.rand(500, 2, generator=g)*(128 - wh)
    assert box_iou(torch.cat([xy, xy + wh], 1), grid).amax(1).min() > .5
    assert default_windows(128)[0] == 16 and default_windows((128, 200))[-1] == pytest.approx(128)

# --- what they show

@pytest.mark.parametrize('window', [16, 24, 32, 64])
def test_the_classifier_sees_just_its_window(window):
    torch.manual_seed(0)
    net = window_classifier(3, window, .1).double()
    for p in net.parameters(): p.data.abs_()         # nothing cancels out, no ReLU is closed
    x = torch.ones(1, 3, window + 8, window + 12, dtype=torch.double, requires_grad=True)
    out = net(x)
    assert out.shape[-2:] == (3, 4)
    out[0, :, 1, 2].sum().backward()
    seen = torch.zeros(window + 8, window + 12, dtype=torch.bool)
    seen[4:-4, 8:-4] = True
    assert torch.equal(x.grad[0].abs().sum(0) > 0, seen)
    assert all(m.padding == (0, 0) for m in net if isinstance(m, nn.Conv2d)) and {type(m) for m in net} == {
        nn.Conv2d, nn.ReLU}

@pytest.mark.parametrize('stride', [4, 8, 12])
@pytest.mark.parametrize('size', [(65, 97), (32, 40), (9, 70)])
def test_window_by_window_gives_the_logits_of_the_convolutional_pass(stride, size):
    net,x = make(stride=stride, chunk=100, sizes=(12, 40), ratios=(.5, 1.)),pictures(*size)
    with torch.no_grad():
        for l in net.levels(size):
            net.dense = True
            a = net.logits(x, l)
            net.dense = False
            assert_close(net.logits(x, l), a) and a.shape == (2, len(net.grid(l, size)), 4)
    answers = []
    for net.dense in (True, False): answers.append(detect(net, x))
    assert_close(*answers) and answers[0][..., 5].any()

def test_the_logits_of_a_box_are_those_of_the_piece_of_the_image_that_it_encloses():
    net,x = make(sizes=(32,), ratios=(1.,)),pictures(48, 64)          # not resized: 32 pixels are 32 pixels
    with torch.no_grad():
        got = net.logits(x, (48, 64))
        for i,(x1,y1,x2,y2) in enumerate(net.grid((48, 64), (48, 64)).int().tolist()):
            assert_close(net.classifier(net.body(x[..., y1:y2, x1:x2]).flatten(1)).float(), got[:, i])
        assert_close(net.features(x.float().double(), [boxes([8, 4, 40, 36]).double(), boxes().view(0, 4).double()]),
                     net.body(x[:1, :, 4:36, 8:40]).flatten(1))

def test_an_encoder_looks_at_every_window_by_itself():
    torch.manual_seed(0)
    net = sliding_window_detector(2, encoder='test_resnet', window=32, sizes=(24,), ratios=(1.,)).eval()
    x,seen = torch.rand(2, 3, 40, 48),[]
    net.encoder.register_forward_hook(lambda m, i, o: seen.append(tuple(i[0].shape)))
    with torch.no_grad(): got = net.logits(x, *net.levels((40, 48)))
    g = net.grid(*net.levels((40, 48)), (40, 48))
    assert got.shape == (2, len(g), 3) and seen == [(2*len(g), 3, 32, 32)] and net.stride == 8
    with torch.no_grad(): assert_close(net.classifier(net.features(x[1:], [g[3:4]])), got[1, 3:4])
    assert len(detect(net, x)) == 2 and list(net.mean) == list(net.encoder.mean)

def test_detections_are_windows_by_their_softmax_the_best_of_each_class_among_its_neighbours():
    net,x = make(2, min_score=.4, sizes=(24,), ratios=(1.,)),pictures(48, 64, n=1)
    level, = net.levels((48, 64))
    with torch.no_grad(): probs,grid = net.eval().logits(x, level).softmax(-1)[0, :, 1:],net.grid(level, (48, 64))
    d = detect(net, x)[0]
    d = d[d[:, 5] > 0]
    assert len(d) > 2
    want = []                                                        # by hand, one after the other
    for p,i in sorted([(p.item(), i) for i,p in enumerate(probs.flatten()) if p > .4], reverse=True):
        c,box = i%2 + 1,grid[i//2]
        if all(k != c or box_iou(box[None], b[None]) <= .3 for _,k,b in want): want.append((p, c, box))
    assert_close(d[:, 4], torch.tensor([p for p,*_ in want])) and d[:, 5].tolist() == [c for _,c,_ in want]
    assert_close(d[:, :4], torch.stack([b for *_,b in want]))

def test_only_the_best_windows_of_a_class_are_compared():
    net,x = make(2, min_score=0., nms=1., n_best=5, max_dets=200),pictures(48, 64, n=1)
    d = detect(net, x)[0]
    assert [(d[:, 5] == c).sum().item() for c in (1, 2)] == [5, 5]
    net.n_best = 10**6
    assert (detect(net, x)[0, :, 5] > 0).all()

# --- learning

def sampled(net, truth, labels, size=(64, 64)):
    torch.manual_seed(0)
    grid = torch.cat([net.grid(l, size) for l in net.levels(size)])
    return net.sample_windows(grid, dict(boxes=truth, labels=torch.tensor(labels)))

def test_windows_with_an_iou_of_a_half_are_objects_and_all_others_background():
    truth = boxes([8, 8, 30, 30], [34, 30, 60, 60])
    r,labels = sampled(make(), truth, [2, 3])
    iou,near = box_iou(r, truth).max(1)
    assert [(labels > 0).sum(), (labels == 0).sum()] == [16, 48]
    assert (iou[labels > 0] >= .5).all() and (iou[labels == 0] < .5).all()
    assert torch.equal(labels[labels > 0], torch.tensor([2, 3])[near[labels > 0]])
    # all can be drawn, those beside an object too, or they would score as well as the one on it
    r,labels = sampled(make(sizes=(16,), ratios=(1.,), n_windows=(999, 999)), truth, [2, 3])
    iou = box_iou(r, truth).amax(1)
    assert len(r) >= 25*25 and ((iou > .3) & (labels == 0)).any() and torch.equal(labels > 0, iou >= .5)

def test_an_object_that_no_window_fits_is_shown_a_little_beside():
    net,truth = make(sizes=(32,), ratios=(1.,)),boxes([5, 5, 11, 35])
    r,labels = sampled(net, truth, [2])
    iou = box_iou(r[labels == 2], truth)
    assert len(iou) >= 5 and (iou >= .5).all() and (iou == 1).sum() == 1

def test_windows_on_ignored_objects_are_no_background():
    r,labels = sampled(make(), boxes([0, 0, 40, 64], [44, 20, 60, 40]), [-1, 1])
    on = (r[:, 2:].minimum(torch.tensor([40., 64])) - r[:, :2]).clamp(min=0).prod(1)/(r[:, 2:] - r[:, :2]).prod(1)
    assert (labels == 0).any() and (on[labels == 0] < .5).all()
    r,labels = sampled(make(), boxes([0, 0, 64, 64]), [-1])
    assert len(r) == 0
    net = make()
    loss = net.train()(pictures(64, 64), boxes([0, 0, 64, 64]).repeat(2, 1, 1).double(), torch.tensor([[-1]]*2))
    loss['classifier'].backward()
    assert loss['classifier'] == 0 and all(p.grad is not None for p in net.parameters())

def test_the_loss_is_the_cross_entropy_of_the_windows_and_can_be_repeated_in_eval():
    net,x = make(chunk=7),pictures(64, 64)
    bb,ll = boxes([8, 8, 30, 30]).repeat(2, 1, 1).double(),torch.tensor([[1], [3]])
    torch.manual_seed(3)
    state = torch.get_rng_state()
    a,b = (detect(net, x, bb, ll)[0]['classifier'] for _ in range(2))
    assert torch.equal(a, b) and torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(0)
    grid = torch.cat([net.grid(l, (64, 64)) for l in net.levels((64, 64))])
    r,labels = zip(*[net.sample_windows(grid, t) for t in net.make_targets(x, bb, ll)])
    with torch.no_grad(): logits = net.classifier(net.features(x, [o.double() for o in r]))
    assert_close(a, F.cross_entropy(logits.float(), torch.cat(labels)))

def ap50(anns, vocab, dets):
    said = []
    for a,d in zip(anns, dets):
        d = d[d[:, 5] > 0].numpy()
        said.append(Annotation(a.path, a.size, [vocab[int(o)-1] for o in d[:, 5]], d[:, :4].astype(np.float32),
                               scores=d[:, 4]))
    return coco_ap(anns, said, vocab)['map50']

@pytest.mark.train
@pytest.mark.slow
def test_it_learns_eight_drawn_images(tmp_path):
    anns = draw_shapes(tmp_path, 8, 64, seed=3)
    vocab = vocab_of(anns)
    x = torch.stack([pil_to_tensor(Image.open(a.path)) for a in anns])/255 - .5
    bboxes = nn.utils.rnn.pad_sequence([torch.tensor(a.bboxes) for a in anns], batch_first=True)
    labels = nn.utils.rnn.pad_sequence([torch.tensor([vocab.index(o)+1 for o in a.labels], dtype=torch.long)
                                        for a in anns], batch_first=True)
    torch.manual_seed(0)
    net = sliding_window_detector(len(vocab), width=.5, size=64)
    before = ap50(anns, vocab, detect(net, x))
    overfit(net, lambda: net.train()(x, bboxes, labels)['classifier'], 200, 6e-3)
    after = ap50(anns, vocab, detect(net, x))
    assert before < .05 and after > .7      # .89 when this was written, .78 from another seed

# --- how it is built

def test_the_parameters_are_those_counted_by_hand():
    with torch.device('meta'): net = sliding_window_detector(20)
    own = 3*32*4*4 + 32 + 32*64*9 + 64 + 3*(64*64*9 + 64) + 21*65
    assert sum(p.numel() for p in net.parameters()) == own == 132_213

def test_the_name_is_that_of_segmentations_too_and_each_task_has_its_own():
    with torch.device('meta'):
        assert isinstance(get_arch('sliding_window', 'detection')(3), SlidingWindowDetector)
        assert isinstance(get_arch('sliding_window', 'segmentation')(3), SlidingWindowSegmenter)

def test_encoders_of_one_size_get_windows_of_that_size():
    with torch.device('meta'):
        assert sliding_window_detector(2, encoder='vit_tiny_patch16_224').window == 224
        assert sliding_window_detector(2, encoder='resnet18').window == 64

@pytest.mark.parametrize('kw,words', [
    (dict(window=8),         'window: expected a multiple of 8 pixels from 16 on.* got 8'), (dict(window=33), 'got 33'),
    (dict(stride=6),         'stride: expected a multiple of 4 where there is no encoder, got 6'),
    (dict(sizes=()),         r'sizes: expected .* one or more numbers above 0, got \(\)'),
    (dict(ratios=(1, 0)),    r'ratios, number 1: expected .* got 0'), (dict(chunk=0), 'chunk: expected .* got 0'),
    (dict(pretrained=True),  "no pretrained weights of the sliding window's own net.*choose an `encoder`"),
    (dict(encoder='test_resnet', dense=True), 'an encoder pads.*leave `dense` out')])
def test_what_it_cannot_do_it_refuses(kw, words):
    with pytest.raises(ValueError, match=words): sliding_window_detector(3, **kw)

def test_it_takes_no_proposals():
    with pytest.raises(ValueError, match='covers the whole image; do not pass proposals'):
        make().eval()(pictures(40, 40), proposals=torch.zeros(2, 1, 4))
