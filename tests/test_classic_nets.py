"The nets on VGG16: FCN, SegNet, DeconvNet, DeepLab, DilatedNet"
import numpy as np, pytest, torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close
from vision_tasks.data.synthetic import SHAPE_CODES
from vision_tasks.models.registry import arch_facts, get_arch
from vision_tasks.models.segmentation.deconvnet import deconvnet
from vision_tasks.models.segmentation.deeplab import deeplab_v1
from vision_tasks.models.segmentation.dilatednet import dilatednet
from vision_tasks.models.segmentation.fcn import fcn16s, fcn32s, fcn8s
from vision_tasks.models.segmentation.segnet import segnet
from vision_tasks.models.segmentation.segnet import decode, encode, mirrored
from vision_tasks.models.vgg import VGG16
from vision_tasks.segmentation import segmentation_dls, segmentation_learner

FCNS = [fcn32s, fcn16s, fcn8s]

def make(build, n_out=2, seed=0, **kw):
    "A small net whose scores, which may begin at zero, are random"
    torch.manual_seed(seed)
    net = build(n_out, **{'width': .05, **kw})
    for k,m in net.named_children():
        if k.startswith('score'): nn.init.normal_(m.weight, std=.1)
    return net.eval()

def answer(net, x):
    with torch.no_grad(): return net(x)

def convs(net): return [m for m in net.modules() if isinstance(m, (nn.Conv2d, nn.ConvTranspose2d))]

def positive(net):
    "`net` in double precision, of positive weights: what lights up in its answer is what sees a light in the image"
    for m in convs(net):
        nn.init.constant_(m.weight, 1/m.weight[0].numel())
        if m.bias is not None: nn.init.zeros_(m.bias)
    return net.double().eval()

def symmetric(net):
    for m in convs(net): m.weight.data += m.weight.data.flip(-1)
    return net.double().eval()

def sees(net, layer, n, cell, columns):
    "Whether a cell of `layer`'s map sees each of these columns of an `n` wide image"
    got = []
    handle = layer.register_forward_hook(lambda m, args, out: got.append(out))
    x = torch.zeros(len(columns), 1, 1, n, dtype=torch.double)
    x[range(len(columns)), ..., columns] = 1.
    answer(net, x)
    handle.remove()
    return (got[0][..., cell].flatten(1).sum(1) > 0).tolist()

EDGES = [False, True, True, True, False]    # of a column before the field, its first, one inside, its last, one behind

# --- what the papers count, by hand: (n_in, n_out, size of the kernel) of all convolutions, for 21 classes

VGG  = [(3, 64), (64, 64), (64, 128), (128, 128), (128, 256), *[(256, 256)]*2, (256, 512), *[(512, 512)]*5]
BODY = [(i, o, 3) for i,o in VGG]
FCN_TOP = [(512, 4096, 7), (4096, 4096, 1), (4096, 21, 1)]
UP   = [(512, 512, 3)]*5 + [(512, 256, 3), *[(256, 256, 3)]*2, (256, 128, 3), (128, 128, 3), (128, 64, 3), (64, 64, 3)]
LAYERS = dict(
    fcn32s=BODY+FCN_TOP, fcn16s=BODY+FCN_TOP+[(512, 21, 1)], fcn8s=BODY+FCN_TOP+[(512, 21, 1), (256, 21, 1)],
    dilatednet=BODY+FCN_TOP, deeplab_v1=BODY+[(512, 1024, 3), (1024, 1024, 1), (1024, 21, 1)],
    segnet=BODY+UP+[(64, 21, 3)],
    deconvnet=BODY+[(512, 4096, 7), (4096, 4096, 1), (4096, 512, 7)]+UP+[(64, 64, 3), (64, 21, 1)])
PAPER = dict(fcn32s=134.3, fcn16s=134.4, fcn8s=134.4, dilatednet=134.3, deeplab_v1=20.5, segnet=29.5, deconvnet=251.8)

@pytest.mark.parametrize('name', LAYERS)
def test_a_net_has_the_convolutions_of_its_paper_and_no_other_parameters_than_theirs_and_batchnorms(name):
    with torch.device('meta'): net = get_arch(name, 'segmentation')(21)
    bn = name in ('segnet', 'deconvnet')
    layers = LAYERS[name]
    assert sorted((m.in_channels, m.out_channels, m.kernel_size[0]) for m in convs(net)) == sorted(layers)
    # of BatchNorm weight and bias, behind all but the scores
    total = sum(i*o*k*k + o for i,o,k in layers) + bn*sum(2*o for *_,o,_ in layers[:-1])
    assert total == sum(p.numel() for p in net.parameters()) == arch_facts(name, 'segmentation')['n_params']
    assert round(total/1e6, 1) == PAPER[name]
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == bn*(len(layers)-1) and all(m.bias is not None for m in convs(net))

@pytest.mark.parametrize('name', LAYERS)
def test_dropout_of_one_half_stands_behind_fc6_and_fc7_where_the_paper_has_it(name):
    with torch.device('meta'): net = get_arch(name, 'segmentation')(2, width=.05)
    drops = [m.p for m in net.modules() if isinstance(m, nn.Dropout)]
    assert drops == ([] if name in ('segnet', 'deconvnet') else [.5, .5])

@pytest.mark.parametrize('name', [n for n in LAYERS if n != 'deconvnet'])
def test_every_height_and_width_is_taken(name):
    with torch.device('meta'): net = get_arch(name, 'segmentation')(2, width=.01).eval()
    for n in range(1, 71):
        assert net(torch.empty(1, 3, n, 71-n, device='meta')).shape == (1, 2, n, 71-n)

# --- FCN

@pytest.mark.parametrize('build', FCNS)
@pytest.mark.parametrize('w', [58, 122])
def test_offsets_centre_the_answer_so_that_a_mirrored_image_has_the_mirrored_answer(build, w):
    "With symmetric kernels, where no pool is cut off: 198 + w is a multiple of 32"
    net,x = symmetric(make(build)),torch.randn(1, 3, 7, w, dtype=torch.double)
    out = answer(net, x)
    assert_close(answer(net, x.flip(-1)), out.flip(-1))
    assert out.std(-1).min() > 1e-3 and not torch.allclose(out, out.flip(-1))

@pytest.mark.parametrize('build', FCNS)
def test_the_parts_of_an_fcn_lie_over_the_same_places(build):
    "Answers of each score alone, with bilinear kernels: the centre of its field is where it is answered most strongly"
    net = positive(make(build))
    for name,j,centre,stride in (('score', 3, 108.5, 32), ('score_pool4', 6, 84.5, 16), ('score_pool3', 12, 72.5, 8)):
        if not hasattr(net, name): continue
        def hook(m, args, out, cells=(name, j)):
            grid = torch.zeros_like(out)
            # of pools, the cells that the crops leave: 5 and then 9 from the border
            at = cells[1] + {'score': 0, 'score_pool4': 5, 'score_pool3': 9}[cells[0]]
            grid[..., at] = 1
            return grid
        handles = [getattr(net, k).register_forward_hook(hook if k == name else lambda m, a, o: torch.zeros_like(o))
                   for k,_ in net.named_children() if k.startswith('score')]
        out = answer(net, torch.zeros(1, 3, 1, 200, dtype=torch.double))[0, 0, 0]
        for o in handles: o.remove()
        assert (out*torch.arange(200)).sum()/out.sum() == pytest.approx(centre)

def test_the_score_of_fc7_sees_404_pixels_around_the_one_that_it_is_for():
    net,(first,last) = positive(make(fcn32s, width=.01, n_in=1)),(3, 406)
    assert sees(net, net.score, 410, 6, [first-1, first, 200, last, last+1]) == EDGES
    assert last-first+1 == 404 and (first+last)/2 == 32*6+12.5      # crops and enlarging put cell j at 32j + 12.5

@pytest.mark.parametrize('build', FCNS)
def test_scores_begin_at_zero_and_the_rest_does_not(build):
    net = build(3, width=.05)
    zero = {k.split('.')[0] for k,p in net.named_parameters() if k.endswith('weight') and not p.any()}
    assert zero == {k for k,_ in net.named_children() if k.startswith('score')}
    assert not answer(net, torch.randn(1, 3, 40, 40)).any()

@pytest.mark.parametrize('coarse,fine', [(fcn32s, fcn16s), (fcn16s, fcn8s), (fcn32s, fcn8s)])
def test_a_finer_fcn_begins_with_all_weights_of_the_coarser_and_new_scores_of_zero(coarse, fine):
    coarse = make(coarse)
    net = fine(2, width=.05, start=coarse)
    own,sd = net.state_dict(),coarse.state_dict()
    assert all(torch.equal(own[k], v) for k,v in sd.items()) and sd['score.weight'].any()
    new = own.keys()-sd.keys()
    assert new and all(k.startswith('score_pool') and not own[k].any() for k in new)

def test_the_finer_fcn_says_at_first_what_the_coarser_says_but_for_enlarging_in_two_steps():
    coarse,x = make(fcn32s).double(),torch.randn(1, 3, 150, 170, dtype=torch.double)
    fine = fcn16s(2, width=.05, start=coarse).double().eval()
    got = []
    coarse.score.register_forward_hook(lambda m, a, out: got.append(out))
    want,out = answer(coarse, x),answer(fine, x)
    assert_close(out, fine.up(fine.up2(got[0]))[..., 27:177, 27:197])
    # tents of tents differ from one tent by a quarter of the second differences of the scores, at most
    apart = max(got[0].diff(n=2, dim=d).abs().max() for d in (2, 3))
    inner = (..., slice(32, 118), slice(32, 138))               # no zeros flow in from the border
    assert 0 < (out-want)[inner].abs().max() <= apart/4
    # of a plane, each gives the plane itself
    coarse.score.register_forward_hook(lambda m, a, o: torch.arange(o.shape[-1]).to(o).expand_as(o))
    fine.score.register_forward_hook(lambda m, a, o: torch.arange(o.shape[-1]).to(o).expand_as(o))
    want,out = answer(coarse, x),answer(fine, x)
    assert_close(out[inner], want[inner])
    assert_close(want[0, 0, 50, 32:138], (torch.arange(32, 138).double()-12.5)/32)

@pytest.mark.parametrize('start,words', [
    (lambda: make(fcn32s, 3), "score.weight, score.bias of `start` do not fit"),
    (lambda: make(fcn32s, width=.04), r"encoder.stages.1.0.weight, .*, \.\.\. of `start` do not fit"),
    (lambda: make(fcn32s, n_in=1), "encoder.stages.0.0.weight of `start` do not fit: expected a coarser net"),
    (lambda: make(fcn8s), "score_pool3.weight, score_pool3.bias of `start` do not fit"),
    (lambda: make(segnet), "start: expected a FCN or its learner, got SegNet"), (lambda: 'fcn32s', "got str")],
    ids=['n_out', 'width', 'n_in', 'finer', 'other', 'name'])
def test_a_start_that_does_not_fit_is_refused(start, words):
    with pytest.raises(ValueError, match=words): fcn16s(2, width=.05, start=start())

# --- SegNet

@pytest.mark.parametrize('size', [(32, 64), (33, 45), (1, 7)])
def test_maxima_go_back_to_where_they_came_from_on_odd_sizes_too(size):
    torch.manual_seed(0)
    net,x = VGG16(width=.02),torch.randn(2, 3, *size)
    maps = []
    for stage in net.stages: stage.register_forward_hook(lambda m, a, out: maps.append(out))
    with torch.no_grad():
        out,switches = encode(net, x)
        assert [s for _,s in switches] == [m.shape[-2:] for m in reversed(maps)]
        for y,(idxs,s) in zip(reversed(maps), switches):
            pooled = F.max_pool2d(y, 2, ceil_mode=True)
            back = decode([nn.Identity()], pooled, [(idxs, s)]).numpy()
            want = np.zeros_like(back)
            for b,c,i,j in np.ndindex(*pooled.shape):          # the first maximum of each cell, cut at the border
                cell = y[b, c, 2*i:2*i+2, 2*j:2*j+2].numpy()
                u,v = np.unravel_index(cell.argmax(), cell.shape)
                want[b, c, 2*i+u, 2*j+v] = cell.max()
            assert np.array_equal(back, want)
        assert_close(out, F.max_pool2d(maps[-1], 2, ceil_mode=True))

@pytest.mark.parametrize('conv', [nn.Conv2d, nn.ConvTranspose2d])
def test_the_decoder_is_the_mirror_image_of_the_encoder(conv):
    with torch.device('meta'): stages = mirrored(VGG16(bn=True), conv)
    chs = [[(m.in_channels, m.out_channels) for m in s if isinstance(m, conv)] for s in stages]
    assert chs == [[(512, 512)]*3, [(512, 512)]*2 + [(512, 256)], [(256, 256)]*2 + [(256, 128)],
                   [(128, 128), (128, 64)], [(64, 64)]*2]
    for m in stages.modules():
        if isinstance(m, conv): assert m.kernel_size == (3, 3) and m.padding == (1, 1) and m.stride == (1, 1)

def test_segnet_takes_the_papers_images_and_ends_with_scores():
    with torch.device('meta'):
        net = segnet(11)
        assert net(torch.empty(2, 3, 360, 480)).shape == (2, 11, 360, 480)
    assert [type(m) for m in net.decoder[-1]] == [nn.Conv2d, nn.BatchNorm2d, nn.ReLU]
    assert net.score.kernel_size == (3, 3)

@pytest.mark.parametrize('build,no,yes', [(segnet, (16, 16), (17, 16)), (deconvnet, (224, 193), (193, 225))])
def test_a_single_image_can_be_answered_but_not_trained_on_where_batchnorm_would_see_single_numbers(build, no, yes):
    net = make(build, width=.02)
    assert answer(net, torch.randn(1, 3, *no)).shape == (1, 2, *no)
    net.train()
    with pytest.raises(ValueError, match=f"{type(net).__name__} .* 1 x 1 .* {no[0]} x {no[1]}, .*2 images or more, "
                                         "got 1; raise bs"):
        net(torch.randn(1, 3, *no))
    assert net(torch.randn(1, 3, *yes)).shape == (1, 2, *yes) and net(torch.randn(2, 3, *no)).shape == (2, 2, *no)

# --- DeconvNet

def test_deconvnet_shrinks_224_pixels_to_a_vector_and_takes_no_less_than_193():
    with torch.device('meta'): net = deconvnet(21, width=.02).eval()
    maps = {}
    for k in ('encoder.top', 'expand'):
        net.get_submodule(k).register_forward_hook(lambda m, a, out, k=k: maps.update({k: out.shape[-2:]}))
    for n,cells in ((193, 1), (224, 1), (225, 2), (320, 4)):
        assert net(torch.empty(1, 3, n, 224, device='meta')).shape == (1, 21, n, 224)
        assert maps == {'encoder.top': (cells, 1), 'expand': (cells+6, 7)}
    for size in ((192, 224), (224, 192), (1, 1)):
        with pytest.raises(ValueError, match=f'of 193 or more, .* got {size[0]} x {size[1]}; use 193'):
            net(torch.empty(1, 3, *size, device='meta'))

# --- DeepLab

def test_a_convolution_with_holes_is_a_convolution_of_each_of_the_maps_that_subsampling_gives():
    x,w,d = torch.randn(1, 2, 12, 9, dtype=torch.double),torch.randn(4, 2, 3, 3, dtype=torch.double),3
    out = F.conv2d(x, w, padding=d, dilation=d)
    for i,j in np.ndindex(d, d): assert_close(out[..., i::d, j::d], F.conv2d(x[..., i::d, j::d], w, padding=1))

def test_the_dense_maps_of_deeplab_hold_at_every_second_cell_what_a_pool_of_stride_2_and_no_holes_give():
    "Up to the fourth pool and through conv5: pools keep the size, holes make up for it"
    net = make(deeplab_v1).double()
    x = torch.randn(1, 3, 70, 61, dtype=torch.double)
    plain = VGG16(width=.05).double().eval()
    plain.load_state_dict(net.encoder.state_dict())
    with torch.no_grad():
        a = b = x
        for i,s in enumerate(net.strides[:4]):
            a,b = net.encoder.stages[i](a),plain.stages[i](b)
            a,b = F.max_pool2d(a, 3, s, 1),F.max_pool2d(b, 3, 2, 1)
        a,b = net.encoder.stages[4](a),plain.stages[4](b)
    assert a.shape[-2:] == (9, 8) and b.shape[-2:] == (5, 4) and b.std() > 0
    assert_close(a[..., ::2, ::2], b)

@pytest.mark.parametrize('n,cells', [(321, 41), (1, 1), (8, 1), (9, 2), (224, 28)])
def test_deeplabs_own_map_has_a_cell_for_every_8_pixels(n, cells):
    with torch.device('meta'): net = deeplab_v1(21, width=.02)
    net.score.register_forward_hook(lambda m, a, out: got.append(out.shape[-2:]))
    got = []
    net(torch.empty(1, 3, n, 33, device='meta'))
    assert got == [(cells, 5)]

def test_deeplabs_fc6_spans_25_cells_as_the_7x7_of_rate_4_does_and_its_scores_see_435_pixels():
    net = positive(make(deeplab_v1, width=.01, n_in=1))
    span = lambda m: m.dilation[0]*(m.kernel_size[0]-1) + 1
    assert span(net.fc[0]) == span(dilatednet(2, width=.01).encoder.top[0]) == 25
    first,last = 8*28-217,8*28+217                                  # cell j stands for pixel 8j
    assert sees(net, net.score, 457, 28, [first-1, first, 224, last, last+1]) == EDGES and last-first+1 == 435

def test_deeplab_stretches_its_cells_from_corner_to_corner():
    net = make(deeplab_v1)
    net.score.register_forward_hook(lambda m, a, out: torch.arange(out.shape[-1]).to(out).expand_as(out))
    out = answer(net, torch.randn(1, 3, 9, 33))
    assert_close(out[0, 0, 4], torch.arange(33)/8)

# --- DilatedNet

def test_a_mirrored_image_has_dilatednets_mirrored_answer_and_the_padding_does_not_count():
    net,x = symmetric(make(dilatednet)),torch.randn(1, 3, 9, 40, dtype=torch.double)
    out = answer(net, x)
    assert_close(answer(net, x.flip(-1)), out.flip(-1))
    assert out.std(-1).min() > 1e-4
    # an odd size is one that is filled with zeros on the right and below
    assert_close(answer(net, x[..., :33]), answer(net, F.pad(x[..., :33], (0, 7, 0, 7)))[..., :9, :33])

@pytest.mark.parametrize('kind', ['basic', 'large'])
def test_a_new_context_leaves_scores_that_are_not_negative_as_they_are_and_turns_others_to_zero(kind):
    front,x = make(dilatednet, 3).double(),torch.randn(1, 3, 41, 33, dtype=torch.double)
    net = dilatednet(3, width=.05, context=kind, start=front).double().eval()
    scores = []
    front.score.register_forward_hook(lambda m, a, out: scores.append(out))
    answer(front, x)
    assert scores[0].min() < 0 < scores[0].max()
    assert_close(answer(net, x), front.up(scores[0].relu())[..., :41, :33])
    front.score.bias.data += 10.; net.score.bias.data += 10.
    assert_close(answer(net, x), answer(front, x))

def test_the_context_may_begin_on_a_front_end_or_go_on_from_a_context_but_not_the_other_way_round():
    front,net = make(dilatednet),make(dilatednet, context='basic')
    again = dilatednet(2, width=.05, context='basic', start=net)
    assert all(torch.equal(a, b) for a,b in zip(again.state_dict().values(), net.state_dict().values(), strict=True))
    with pytest.raises(ValueError, match='context.0.weight, .* do not fit'): dilatednet(2, width=.05, start=net)
    with pytest.raises(ValueError, match='start: expected a DilatedNet or its learner, got FCN'):
        dilatednet(2, width=.05, start=make(fcn32s))
    with pytest.raises(ValueError, match="context: expected .* got 'wide'"): dilatednet(2, width=.05, context='wide')
    assert dilatednet(2, width=.05, start=front).context is None

def test_the_context_lets_dilatednet_see_33_cells_further_to_each_side():
    net = positive(make(dilatednet, 1, width=.01, n_in=1, context='basic'))
    # by hand: two convolutions and a pool at 1, at 2, three and one at 4 pixels a cell; then at 8: 3, 3 and fc6
    n = 1 + 4+1 + 8+2 + 24+4 + 48 + 96 + 192
    first = 8*59 + 4 - n//2                                         # cell j stands for the pixels around 8j + 3.5
    assert sees(net, net.score, 960, 59, [first-1, first, 475, first+n-1, first+n]) == EDGES
    first,n = first-33*8,n+66*8
    assert sees(net, net.context, 960, 59, [first-1, first, 475, first+n-1, first+n]) == EDGES

# --- with a learner

def dls_of(anns, **kw):
    return segmentation_dls(anns, **{**dict(vocab=SHAPE_CODES, size=32, bs=8, num_workers=0, device='cpu'), **kw})

@pytest.mark.train
def test_stages_follow_each_other_through_learners(shapes):
    dls,kw = dls_of(shapes),dict(width=.02)
    learn = segmentation_learner(dls, 'fcn32s', pretrained=False, arch_kwargs=kw)
    with learn.no_bar(), learn.no_logging():
        learn.fit(1, 1e-3)
        first = learn.model.state_dict()
        finer = segmentation_learner(dls, 'fcn16s', pretrained=False, arch_kwargs=dict(start=learn, **kw))
        assert all(torch.equal(finer.model.state_dict()[k], v) for k,v in first.items()) and first['score.weight'].any()
        with finer.no_bar(), finer.no_logging():
            finer.fit(1, 1e-3)
            assert finer.model.score_pool4.weight.any() and 0 < finer.evaluate()['pixel_accuracy'] < 1
    front = segmentation_learner(dls, 'dilatednet', pretrained=False, arch_kwargs=kw)
    whole = segmentation_learner(dls, 'dilatednet', pretrained=False,
                                 arch_kwargs=dict(context='large', start=front, **kw))
    assert torch.equal(whole.model.score.weight, front.model.score.weight)
