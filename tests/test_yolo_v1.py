"YOLO v1: the grid, the loss by hand and by loops, what is decoded, which images fit; test_detectors.py has the rest"
import math
import warnings
import numpy as np, pytest, torch
from PIL import Image
from torch import nn
from torch.testing import assert_close
from torchvision.transforms.v2.functional import pil_to_tensor
from overfit import overfit
from vision_tasks.data.annotation import Annotation, vocab_of
from vision_tasks.data.synthetic import draw_shapes
from vision_tasks.data.transforms import JointTransform
from vision_tasks.data.views import FitView
from vision_tasks.detection import detection_dls, detection_learner
from vision_tasks.metrics.detection import coco_ap
from vision_tasks.models.detection.yolo import YOLO, yolo_v1
from vision_tasks.models.detection.yolo import YOLOBody, in_cells, out_of_cells, yolo_loss
from vision_tasks.models.encoders import create_encoder

SIZE = 64,64

def target(boxes=(), labels=()):
    return dict(boxes=torch.tensor(boxes, dtype=torch.float).view(-1, 4), labels=torch.tensor(labels, dtype=torch.long))

def small(n_out=3, S=2, size=SIZE, width=.05, **kw):
    torch.manual_seed(0)
    return yolo_v1(n_out, S=S, size=size, width=width, **kw)

def meta(*args, **kw):
    with torch.device('meta'): return yolo_v1(*args, **kw)

def perfect(targs, S, size, n_out, B=2):
    "What a net that knows `targs` says, box 1 of each cell"
    out = torch.zeros(len(targs), S[1]*S[0], B*5 + n_out)
    for o,t in zip(out, targs):
        cell,rel = in_cells(t['boxes'], S, size)
        o[cell, 5:9] = torch.cat([rel[:, :2], rel[:, 2:].sqrt()], 1)
        o[cell, 9] = 1
        o[cell, B*5 + t['labels'] - 1] = 1
    return out.view(len(targs), S[1], S[0], -1)

# --- the grid

def test_a_box_is_seen_from_the_cell_that_holds_its_centre_and_a_centre_at_the_very_end_is_in_the_last_cell():
    boxes = torch.tensor([[8, 8, 24, 40.], [64, 0, 128, 64], [0, 0, 192, 128], [192, 128, 192, 128], [191, 0, 192, 1]])
    cell,rel = in_cells(boxes, (3, 2), (192, 128))
    assert cell.tolist() == [0, 1, 4, 5, 2]
    assert_close(rel, torch.tensor([[.25, .375, 16/192, .25], [.5, .5, 1/3, .5], [.5, 0, 1, 1], [1, 1, 0, 0],
                                    [191.5/64-2, .5/64, 1/192, 1/128]]))
    rel[:, 2:].sqrt_()
    assert_close(out_of_cells(rel, cell, (3, 2), (192, 128)), boxes, atol=1e-4, rtol=0)

# --- the loss

def test_the_five_parts_of_the_loss_are_those_worked_out_by_hand():
    out = torch.zeros(2, 2, 2, 13)
    # the object: x .5, y .75 of the first cell, w .25, h .5. Box 0 is elsewhere; box 1 has half of its height
    out[0, 0, 0] = torch.tensor([.5, .75, .1, .1, .6,  .5, .75, .5, .5, .8,  .1, .7, .2])
    out[0, 1, 1, 4],out[1, 0, 1, 9] = 1,.4
    parts,dropped = yolo_loss(out, [target([[8, 8, 24, 40]], [2]), target()], 2, SIZE)
    want = dict(xy=0, wh=5*(.5-.5**.5)**2, object=(.8-.5)**2, no_object=.5*(.6**2 + 1 + .4**2), classes=.01+.09+.04)
    assert parts.keys() == want.keys() and dropped == 0
    for k in want: assert parts[k].item() == pytest.approx(want[k]/2), k     # a mean over two images
    out[0, 0, 0, 5:7] += torch.tensor([.1, -.2])
    assert yolo_loss(out, [target([[8, 8, 24, 40]], [2])]*2, 2, SIZE)[0]['xy'].item() == pytest.approx(
        5*(.1**2 + .2**2 + .5**2 + .75**2)/2)

def test_at_zero_output_the_loss_is_known_and_all_gradients_are_finite():
    for sign in (0, -.5):                        # roots below 0 are drawn up, too
        out = torch.full((1, 2, 2, 13), float(sign), requires_grad=True)
        parts,_ = yolo_loss(out, [target([[8, 8, 24, 40]], [2])], 2, SIZE)
        sum(parts.values()).backward()
        assert out.grad.isfinite().all()
        assert (out.grad[0, 0, 0, 2:4] < 0).all()      # w and h of the responsible box grow
        if not sign:
            want = dict(xy=5*(.25+.5625), wh=5*(.25+.5), object=0, no_object=0, classes=1)
            assert {k: v.item() for k,v in parts.items()} == pytest.approx(want)

def iou(a, b):
    w,h = min(a[2], b[2]) - max(a[0], b[0]),min(a[3], b[3]) - max(a[1], b[1])
    inter = max(w, 0)*max(h, 0)
    return inter/((a[2]-a[0])*(a[3]-a[1]) + (b[2]-b[0])*(b[3]-b[1]) - inter)

def by_loops(out, targs, B, size):
    "The loss of the paper, one cell and one box after the other"
    (b,rows,cols,_),(W,H) = out.shape,size
    parts = dict.fromkeys(('xy', 'wh', 'object', 'no_object', 'classes'), 0.)
    dropped = 0
    for p in range(b):
        boxes,labels = targs[p]['boxes'].tolist(),targs[p]['labels'].tolist()
        owner,idle,ignored = {},set(),[o for o,l in zip(boxes, labels) if l < 0]
        for box,label in zip(boxes, labels):
            x,y = (box[0]+box[2])/2/W*cols,(box[1]+box[3])/2/H*rows
            cell = min(int(y), rows-1),min(int(x), cols-1)
            area = (box[2]-box[0])*(box[3]-box[1])
            if label < 0: idle.add(cell)
            elif cell not in owner: owner[cell] = area,box,label,x-cell[1],y-cell[0]
            else:
                dropped += 1
                if area > owner[cell][0]: owner[cell] = area,box,label,x-cell[1],y-cell[0]
        for r in range(rows):
            for c in range(cols):
                o,best,found = out[p, r, c].tolist(),None,[]
                for j in range(B):
                    x,y,sw,sh = o[j*5:j*5+4]
                    x,y,w,h = (x+c)/cols*W,(y+r)/rows*H,sw*sw*W,sh*sh*H
                    found.append((x-w/2, y-h/2, x+w/2, y+h/2))
                if (r, c) in owner:
                    _,box,label,x,y = owner[r, c]
                    ious = [iou(f, box) for f in found]
                    w,h = (box[2]-box[0])/W,(box[3]-box[1])/H
                    if max(ious) > 0: best = int(np.argmax(ious))
                    else: best = int(np.argmin([((o[j*5]-x)/cols)**2 + ((o[j*5+1]-y)/rows)**2 +
                                                (o[j*5+2]**2-w)**2 + (o[j*5+3]**2-h)**2 for j in range(B)]))
                    mine = o[best*5:best*5+5]
                    parts['xy'] += 5*((mine[0]-x)**2 + (mine[1]-y)**2)
                    parts['wh'] += 5*((mine[2]-math.sqrt(w))**2 + (mine[3]-math.sqrt(h))**2)
                    parts['object'] += (mine[4]-ious[best])**2
                    parts['classes'] += sum((q-(k+1 == label))**2 for k,q in enumerate(o[B*5:]))
                for j,f in enumerate(found):
                    f = [min(max(v, 0), m) for v,m in zip(f, (W, H, W, H))]
                    own  = (f[2]-f[0])*(f[3]-f[1])
                    over = [max(min(f[2], i[2])-max(f[0], i[0]), 0)*max(min(f[3], i[3])-max(f[1], i[1]), 0)
                            for i in ignored]
                    on = own > 0 and any(v >= own/2 for v in over)
                    if j != best and (r, c) not in idle and not on: parts['no_object'] += .5*o[j*5+4]**2
    return {k: v/b for k,v in parts.items()},dropped

@pytest.mark.parametrize('S,B,size', [((7, 7), 2, (448, 448)), ((3, 2), 3, (96, 64)), ((2, 5), 1, (64, 160))])
@pytest.mark.parametrize('lo', [0, -1])        # the smallest label: -1 = some are ignored
def test_the_loss_is_that_of_a_loop_over_cells_and_boxes(S, B, size, lo):
    g,total = torch.Generator().manual_seed(S[0]+lo),0
    for n in (0, 3, 30):
        targs = []
        for _ in range(3):
            a = torch.rand(n, 2, 2, generator=g, dtype=torch.double)*torch.tensor(size)
            boxes  = torch.cat([a.amin(1), a.amax(1)+1], 1).minimum(torch.tensor(size*2))
            labels = torch.randint(lo, 4, (n,), generator=g)
            targs.append(dict(boxes=boxes[labels != 0], labels=labels[labels != 0]))
        out = torch.randn(3, S[1], S[0], B*5+3, generator=g, dtype=torch.double)*.5 + .3
        out[0, ..., [i for i in range(B*5) if i % 5 in (2, 3)]] *= .05     # its boxes meet next to nothing
        (parts,dropped),(want,n_want) = yolo_loss(out, targs, B, size),by_loops(out, targs, B, size)
        assert {k: v.item() for k,v in parts.items()} == pytest.approx(want) and dropped == n_want
        total += dropped
    assert total > 0

def test_only_the_box_with_the_highest_iou_learns_where_the_object_is():
    box,boxes = [8, 8, 24, 40],torch.zeros(2, 4)
    boxes[0] = torch.tensor([.5, .75, .5, .4])         # IoU .32: in the right place, but low
    boxes[1] = torch.tensor([.6, .75, .5, .5**.5])     # IoU .67: of the right size, a little to the right
    for order in ([0, 1], [1, 0]):
        out = torch.zeros(1, 2, 2, 13)
        out[0, 0, 0, :10] = torch.cat([boxes[order], torch.ones(2, 1)], 1).flatten()
        out.requires_grad_()
        parts,_ = yolo_loss(out, [target([box], [1])], 2, SIZE)
        right = order.index(1)
        alone, = torch.autograd.grad(parts['object'], out, retain_graph=True)
        assert alone.nonzero().tolist() == [[0, 0, 0, right*5+4]]     # the IoU is a target and has no gradient
        sum(parts.values()).backward()
        grads = out.grad[0, 0, 0, :10].view(2, 5)
        assert grads[right, 0] > 0 and not grads[1-right, :4].any()
        assert grads[1-right, 4] == 1 and 0 < grads[right, 4] < 1     # its confidence is drawn to the IoU
        assert not out.grad[0, 1].any() and not out.grad[0, 0, 1].any()

def test_where_no_box_meets_the_object_the_nearest_is_responsible():
    out = torch.zeros(1, 2, 2, 13)
    out[0, 0, 0, 5:7] = .5                              # nearer than the corner, and without an area as that
    out.requires_grad_()
    yolo_loss(out, [target([[8, 8, 24, 40]], [1])], 2, SIZE)[0]['wh'].backward()
    assert not out.grad[0, 0, 0, :5].any() and out.grad[0, 0, 0, 7:9].all()

def test_of_several_centres_in_a_cell_the_largest_box_is_learned_and_one_warning_counts_the_others():
    objects = target([[10, 10, 20, 20], [8, 8, 24, 40], [12, 20, 22, 30], [40, 8, 50, 20]], [1, 2, 3, 1])
    parts,dropped = yolo_loss(perfect([target([[8, 8, 24, 40], [40, 8, 50, 20]], [2, 1])], (2, 2), SIZE, 3), [objects],
                              2, SIZE)
    assert dropped == 2 and sum(parts.values()) < 1e-9
    net,x = small(),torch.rand(2, 3, 64, 64)
    args = x,torch.stack([objects['boxes']]*2),torch.stack([objects['labels']]*2)
    with pytest.warns(UserWarning, match='4 of 8 objects of this batch .* one object per cell, of 32 pixels') as seen:
        net.train()(*args)
    assert len(seen) == 1
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        net(*args)
        net.eval()(*args)

def test_of_equal_boxes_in_a_cell_the_first_is_learnt():
    for labels in ([1, 2, 3], [3, 2, 1]):
        parts,_ = yolo_loss(perfect([target([[8, 8, 24, 40]], labels[:1])], (2, 2), SIZE, 3),
                            [target([[8, 8, 24, 40]]*3, labels)], 2, SIZE)
        assert sum(parts.values()) < 1e-9

def test_what_lies_on_an_ignored_object_and_the_cell_of_its_centre_are_no_background():
    out = torch.zeros(1, 2, 2, 13)
    out[..., 4],out[..., 9] = 1,1                       # all are sure
    out[..., 5:7],out[..., 7:9] = .5,.5                 # box 1: the middle of each cell; box 0: without an area
    def background(*args):
        o = out.clone().requires_grad_()
        yolo_loss(o, [target(*args)], 2, SIZE)[0]['no_object'].backward()
        return o.grad[0, ..., [4, 9]].bool().view(4, 2).tolist()
    assert background() == [[True, True]]*4
    # centre in cell 0; more than half of box 1 in cell 1 (x 40..56), less in cell 2 (y 40..56)
    assert background([[0, 0, 50, 44]], [-1]) == [[False, False], [True, False], [True, True], [True, True]]
    # beside it an object in cell 0, which is learned: box 1 answers for it
    with_object = background([[0, 0, 50, 44], [8, 8, 24, 30]], [-1, 2])
    assert with_object == [[False, False], [True, False], [True, True], [True, True]]
    assert background([[8, 8, 24, 30]], [2])[0] == [True, False]

@pytest.mark.parametrize('v', [-1e30, -1e10, -1e4, 1e4, 1e10, 1e30])
def test_predictions_of_any_size_have_finite_gradients(v):
    "Boxes whose area is more than float32 holds have an IoU of 0, not nan"
    out = torch.full((2, 2, 2, 13), v, requires_grad=True)
    parts,_ = yolo_loss(out, [target([[8, 8, 24, 40]], [2]), target([[0, 0, 64, 64]], [-1])], 2, SIZE)
    sum(parts.values()).backward()
    assert out.grad.isfinite().all()

def test_a_confidence_that_is_not_compared_with_anything_does_not_enter_the_loss():
    "Every box lies on a crowd: 0 * nan would be nan"
    out = torch.zeros(1, 2, 2, 13)
    out[..., [0, 1, 5, 6]],out[..., [2, 3, 7, 8]],out[..., [4, 9]] = .5,.5,torch.nan
    parts,_ = yolo_loss(out.requires_grad_(), [target([[0, 0, 64, 64]], [-1])], 2, SIZE)
    sum(parts.values()).backward()
    assert all(o == 0 for o in parts.values()) and (out.grad == 0).all()

def test_a_batch_without_objects_still_teaches_background():
    out = torch.full((2, 2, 2, 13), .5, requires_grad=True)
    parts,_ = yolo_loss(out, [target()]*2, 2, SIZE)
    assert {k: v.item() for k,v in parts.items()} == dict(xy=0, wh=0, object=0, no_object=.5*8*.25, classes=0)
    sum(parts.values()).backward()
    assert (out.grad[..., [4, 9]] > 0).all() and out.grad.sum() == out.grad[..., [4, 9]].sum()

# --- detections

@pytest.mark.parametrize('S,size', [(7, 448), ((3, 2), (96, 64))])
def test_perfect_answers_give_the_boxes_back_with_a_score_of_1_and_have_no_loss(S, size):
    net = meta(3, S=S, size=size)
    w,h = net.size
    truth = target([[3, 5, 30, 20], [w-32, h-30, w-1, h]], [3, 1])
    out = perfect([truth, target()], net.S, net.size, 3)
    dets = net.decode(out)
    assert dets.shape == (2, 100, 6) and not dets[0, 2:].any() and not dets[1].any()
    found = dets[0, :2][dets[0, :2, 0].argsort()]
    want = torch.cat([truth['boxes'], torch.ones(2, 1), truth['labels'][:, None]], 1)
    assert_close(found, want, atol=1e-3, rtol=0)
    assert sum(yolo_loss(out, [truth, target()], 2, net.size)[0].values()) < 1e-9

def test_each_box_has_a_score_for_each_class_and_overlaps_of_the_same_class_are_dropped():
    out = torch.zeros(1, 2, 2, 13)
    out[0, 0, 0] = torch.tensor([.5, .5, .5, .5, .8,  .5, .6, .5, .5, .5,  .9, .5, 0])       # IoU of the two: .67
    out[0, 1, 1] = torch.tensor([-.3, -.5, .5, .5, .9, 0, 0, 0, 0, 1, 0, 1, 0])              # far enough from both
    rows = meta(3, S=2, size=SIZE).decode(out)[0]
    want = [[16.4, 8, 32.4, 24, .9, 2], [8, 8, 24, 24, .72, 1], [8, 8, 24, 24, .4, 2]]
    want[0][:4] = [32-.3*32-8, 32-.5*32-8, 32-.3*32+8, 32-.5*32+8]
    assert_close(rows[:3], torch.tensor(want))
    assert not rows[3:].any()
    several = meta(3, S=2, size=SIZE, nms=.7).decode(out)[0]
    assert several[several[:, 5] > 0, 4].tolist() == pytest.approx([.9, .72, .45, .4, .25])
    assert meta(3, S=2, size=SIZE, min_score=.4, max_dets=2).decode(out)[0, :, 4].tolist() == pytest.approx([.9, .72])

def test_scores_are_in_0_to_1_and_two_negative_numbers_are_no_score():
    out = torch.zeros(1, 2, 2, 13)
    out[0, 0, 0] = torch.tensor([.5, .5, .5, .5, 1.5,  .5, .5, .4, .4, -1,  2, -1, .3])
    rows = meta(3, S=2, size=SIZE).decode(out)[0]
    assert rows[rows[:, 5] > 0][:, 4:].tolist() == [pytest.approx([1, 1]), pytest.approx([.3, 3])]

def test_boxes_are_clipped_and_those_outside_the_image_or_without_an_area_are_dropped():
    out = torch.zeros(1, 2, 2, 13)
    out[0, 0, 0] = torch.tensor([0, 0, 1, 1, 1,  -2, -2, .1, .1, 1,  1, 0, 0])
    out[0, 1, 1] = torch.tensor([.5, .5, 0, 0, 1,  .5, .5, .2, 0, 1,  1, 0, 0])
    rows = meta(3, S=2, size=SIZE).decode(out)[0]
    assert rows[rows[:, 5] > 0].tolist() == [[0, 0, 32, 32, 1, 1]]

# --- the net

# figure 3: size of the kernel and channels of the convolutions of each stage
FIGURE = ([(7, 64)], [(3, 192)], [(1, 128), (3, 256), (1, 256), (3, 512)],
          [(1, 256), (3, 512), (1, 256), (3, 512), (1, 256), (3, 512), (1, 256), (3, 512), (1, 512), (3, 1024)],
          [(1, 512), (3, 1024), (1, 512), (3, 1024), (3, 1024), (3, 1024)], [(3, 1024), (3, 1024)])

def test_the_net_is_the_papers_figure():
    net,convs,i,total = meta(20),[],3,0
    for ks,c in sum(FIGURE, []):
        convs.append((ks, i, c))
        total += ks*ks*i*c + c
        i = c
    ours = [m for m in net.modules() if isinstance(m, nn.Conv2d)]
    assert len(convs) == 24 and [(m.kernel_size[0], m.in_channels, m.out_channels) for m in ours] == convs
    assert [k for k,m in enumerate(ours) if m.stride == (2, 2)] == [0, 21]
    assert sum(isinstance(m, nn.MaxPool2d) for m in net.modules()) == 4
    total += 7*7*1024*4096 + 4096 + 4096*7*7*30 + 7*7*30
    assert total == 271_703_550 == sum(p.numel() for p in net.parameters())
    acts = [m for m in net.modules() if isinstance(m, nn.LeakyReLU)]
    assert len(acts) == 25 and {m.negative_slope for m in acts} == {.1}
    assert [m.p for m in net.modules() if isinstance(m, nn.Dropout)] == [.5]
    assert not any(isinstance(m, nn.BatchNorm2d) for m in net.modules()) and isinstance(net.head[-1], nn.Linear)
    assert net.encoder(torch.empty(1, 3, 448, 448, device='meta')).shape == (1, 1024, 14, 14)
    assert net.cells(torch.empty(2, 3, 448, 448, device='meta')).shape == (2, 7, 7, 30)

def test_a_new_net_predicts_boxes_of_the_cells_size_in_their_middle_unsure_and_all_classes_alike():
    net = small(n_out=4, S=(3, 2), size=(96, 64)).eval()
    with torch.no_grad(): out = net.cells(torch.rand(2, 3, 64, 96)).flatten(1, 2)
    rel   = out[..., :10].unflatten(-1, (2, 5))
    cell  = torch.arange(6)[:, None]
    boxes = out_of_cells(rel[..., :4], cell, net.S, net.size)
    corner = torch.stack([cell % 3, cell//3], -1)*32.
    assert_close(boxes, torch.cat([corner, corner+32], -1).expand_as(boxes), atol=6., rtol=0)
    assert_close(rel[..., 4], torch.full((2, 6, 2), .1), atol=.1, rtol=0)
    assert_close(out[..., 10:], torch.full((2, 6, 4), .25), atol=.1, rtol=0)

def test_batchnorm_as_in_the_cfg_that_was_released_is_an_option():
    net = meta(20, bn=True)
    kinds = [type(m) for m in net.modules() if isinstance(m, (nn.Conv2d, nn.BatchNorm2d))]
    assert kinds == [nn.Conv2d, nn.BatchNorm2d]*24
    one = small(S=1, bn=True)
    with pytest.raises(ValueError, match='2 images or more, got 1'):
        one.train()(torch.rand(1, 3, 64, 64), torch.tensor([[[3, 3, 20, 20.]]]), torch.tensor([[1]]))

@pytest.mark.parametrize('S,B,C,size', [(7, 2, 20, 448), (7, 2, 20, 224), (5, 3, 1, 320), ((4, 3), 1, 80, (256, 192))])
def test_grid_boxes_classes_and_width_are_parameters(S, B, C, size):
    net = meta(C, S=S, B=B, size=size, width=.1)
    w,h = net.size
    out = net.cells(torch.empty(2, 3, h, w, device='meta'))
    assert out.shape == (2, net.S[1], net.S[0], B*5+C)
    assert net.head[0].out_channels == 102 and net.head[-1].in_features == 410

def test_sizes_that_do_not_fit_the_grid_are_refused_and_those_that_do_are_named():
    def takes(S, n):
        try: return meta(3, S=S, size=n, width=.01) is not None
        except ValueError: return False
    assert [n for n in range(32, 640, 16) if takes(7, n)] == [224, 448]
    assert [S for S in range(1, 30) if takes(S, 448)] == [7, 14]
    words = r'7 x 7 cells .* size=\(448, 448\) or size=\(224, 224\).* got \(512, 512\); .* S=\(8, 8\) or S=\(16, 16\)'
    with pytest.raises(ValueError, match=words): meta(3, size=512)
    with pytest.raises(ValueError, match=r'got \(448, 450\), which are not both multiples of 32'):
        meta(3, size=(448, 450))
    with pytest.raises(ValueError, match='S: expected a number of cells, 1 or more.* got 0'): meta(3, S=0)

def test_images_of_another_size_and_proposals_are_refused():
    net = small(S=(3, 2), size=(96, 64)).eval()
    with pytest.raises(ValueError, match=r'takes images of 64 x 96 pixels, got 96 x 64; .* size=\(96, 64\)'):
        net(torch.rand(1, 3, 96, 64))
    with pytest.raises(ValueError, match='finds its own proposals'):
        net(torch.rand(1, 3, 64, 96), proposals=torch.zeros(1, 2, 4))

# --- encoders and weights

# torchvision's; timm's; of stride 16 and one size; one that does not pad, so that it gives fewer cells than size/stride
@pytest.mark.parametrize('encoder,S,size', [('mobilenet_v2', 7, 448), ('test_resnet', (3, 2), (96, 64)),
                                            ('vit_tiny_patch16_224', 7, 224), ('inception_v3', 5, 320)])
def test_any_encoder_carries_the_head_at_its_stride_or_twice_that(encoder, S, size):
    net = meta(3, encoder=encoder, S=S, size=size, width=.1)
    w,h = net.size
    assert net.cells(torch.empty(2, 3, h, w, device='meta')).shape == (2, net.S[1], net.S[0], 13)
    assert net.mean == net.encoder.mean and net.std == net.encoder.std and len(net.mean) == 3
    assert sum(isinstance(m, nn.Conv2d) for m in net.head) == 4

# names, cells, the map with two positions in each: that of torchvision's own feature extractor, and timm's
@pytest.mark.parametrize('encoder,size,stride', [('mobilenet_v2', 448, 32), ('mobilenet_v2', 224, 16),
                                                 ('mobilenet_v2', 112, 8), ('convnext_atto', 224, 16)])
def test_an_encoder_gives_the_map_with_two_positions_per_cell_and_has_no_later_layers(encoder, size, stride):
    net,whole = small(encoder=encoder, S=7, size=size, width=.05).eval(),create_encoder(encoder, False).eval()
    at = whole.strides.index(stride)
    assert net.encoder.strides == [stride] and net.encoder.channels == [whole.channels[at]]
    assert (net.head[2].stride, net.cells(torch.rand(1, 3, size, size)).shape[1:3]) == ((2, 2), (7, 7))
    more,fewer = (sum(p.numel() for p in o.parameters()) for o in (whole, net.encoder))
    assert fewer < more or stride == 32
    for k,p in net.encoder.named_parameters(): assert p.shape == dict(whole.named_parameters())[k].shape
    whole.load_state_dict(net.encoder.state_dict(), strict=False)
    x = torch.rand(1, 3, size, size)
    with torch.no_grad(): assert_close(net.encoder(x), whole(x)[at], rtol=0, atol=0)

def test_an_encoder_of_one_size_says_which():
    with pytest.raises(ValueError, match=r'takes images of 224 x 224 pixels only, got size=\(448, 448\)'):
        meta(3, encoder='vit_tiny_patch16_224', S=14)

def test_the_papers_body_has_no_weights_to_download_but_takes_a_file(tmp_path):
    for pretrained in (True, 'encoder'):
        with pytest.raises(ValueError, match="no ImageNet weights of YOLO's own .* encoder='mobilenet_v2', or pass"):
            meta(3, pretrained=pretrained)
    with pytest.raises(ValueError, match='pretrained: expected True, False'): meta(3, pretrained=3)
    body = YOLOBody(width=.05)
    torch.save(body.state_dict(), tmp_path/'body.pth')
    torch.save(small(n_out=5).state_dict(), tmp_path/'net.pth')
    for name,want in (('body.pth', body.state_dict()), ('net.pth', small(n_out=5).encoder.state_dict())):
        got = small(pretrained=tmp_path/name).encoder.state_dict()
        assert got.keys() == want.keys() and all(torch.equal(got[k], v) for k,v in want.items())
    grey = small(pretrained=tmp_path/'body.pth', n_in=1).encoder
    x = torch.rand(1, 1, 64, 64)
    assert_close(grey(x), body(x.expand(-1, 3, -1, -1)))
    with pytest.raises(ValueError, match='body.pth does not hold the weights of this body: size mismatch .*`width`'):
        small(width=.1, pretrained=tmp_path/'body.pth')

def test_an_encoders_weights_come_from_a_file_and_other_channels_have_the_mean_of_its_statistics(tmp_path):
    torch.manual_seed(3)
    enc = create_encoder('test_resnet', False, pyramid=False)
    torch.save(enc.body.state_dict(), tmp_path/'enc.pth')
    net = small(encoder='test_resnet', pretrained=tmp_path/'enc.pth')
    assert all(torch.equal(a, b) for a,b in zip(net.encoder.body.state_dict().values(), enc.body.state_dict().values()))
    grey = small(encoder='test_resnet', pretrained=tmp_path/'enc.pth', n_in=1)
    assert grey.mean == (pytest.approx(sum(enc.mean)/3),) and len(grey.std) == 1

# --- learning

@pytest.mark.train
def test_a_small_net_learns_eight_drawn_images_by_heart_but_not_from_the_boxes_of_others(tmp_path):
    anns  = draw_shapes(tmp_path, 8, 64, seed=21, most=3)
    vocab = vocab_of(anns)
    x = torch.stack([pil_to_tensor(Image.open(a.path)) for a in anns])/255
    def ap50(truth):
        bboxes,labels = (nn.utils.rnn.pad_sequence([torch.tensor(f(a)) for a in truth], batch_first=True) for f in (
            lambda a: a.bboxes, lambda a: np.array([vocab.index(o)+1 for o in a.labels], dtype=np.int64)))
        net = small(len(vocab), width=.1, ps=0.)
        overfit(net, lambda: sum(net.train()(x, bboxes, labels).values()), 150, 1e-3, clip=10.)
        with torch.no_grad(): dets = net.eval()(x)
        said = [Annotation(a.path, a.size, [vocab[int(i)-1] for i in d[:, 5]], d[:, :4].numpy(), scores=d[:, 4].numpy())
                for a,d in zip(anns, (d[d[:, 5] > 0] for d in dets))]
        return coco_ap(anns, said, vocab)['map50']
    assert ap50(anns) > .9 and ap50(anns[1:] + anns[:1]) < .4      # of four seeds 1. and at most .01

@pytest.mark.train
@pytest.mark.filterwarnings('ignore:.* have their centre in the cell of a larger one')
def test_a_learner_trains_it_on_any_encoder_and_annotates(shapes):
    anns = [Annotation(a.path, a.size, a.labels, a.bboxes) for a in shapes]
    dls  = detection_dls(anns, bs=4, num_workers=0, device='cpu', item_tfms=JointTransform(
        (96, 64), FitView('pad'), valid='pad', flip=0.))
    with pytest.raises(ValueError, match=r'7 x 7 cells .* got \(96, 64\); for this size pass S=\(3, 2\)'):
        detection_learner(dls, 'yolo_v1', encoder='test_resnet', pretrained=False)
    learn = detection_learner(dls, 'yolo_v1', encoder='test_resnet', pretrained=False,
                              arch_kwargs=dict(S=(3, 2), width=.1, min_score=0.))
    assert isinstance(learn.model, YOLO)
    with learn.no_bar(), learn.no_logging():
        learn.fine_tune(1, 1e-3)
        assert np.isfinite(learn.recorder.values[-1]).all()
        said = learn.annotate(anns[:3], thresh=0.)
        assert [a.size for a in said] == [a.size for a in anns[:3]] and sum(len(a.labels) for a in said) > 0
        for a in said: assert (a.bboxes >= 0).all() and (a.bboxes[:, 2:] <= a.size).all() and (a.scores <= 1).all()
