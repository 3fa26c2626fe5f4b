"FC-DenseNet; what is true of every net is in test_archs.py"
import math
import pytest, torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close
from vision_tasks.models.registry import get_arch
from vision_tasks.models.segmentation.fcdensenet import FCDenseNet, fc_densenet103, fc_densenet56, fc_densenet67

NETS = fc_densenet56,fc_densenet67,fc_densenet103
CONVS = nn.Conv2d,nn.ConvTranspose2d

def of_kind(net, *kinds): return [m for m in net.modules() if isinstance(m, kinds)]

@pytest.mark.parametrize('n', [56, 67, 103])
def test_the_name_counts_the_convolutions(n):
    with torch.device('meta'): net = get_arch(f'fc_densenet{n}', 'segmentation')(11)
    assert len(of_kind(net, *CONVS)) == n and all(m.bias is not None for m in of_kind(net, *CONVS))

def test_the_blocks_of_103_give_the_maps_of_the_papers_table_2():
    with torch.device('meta'): net,x = fc_densenet103(11).eval(),torch.empty(1, 3, 224, 224)
    seen = []
    for m in (net.first, *net.down, net.middle, *net.up, net.score):
        m.register_forward_hook(lambda m, i, o: seen.append((o.shape[1], o.shape[2])))
    net(x)
    # the table says 578 for the third block up, but 160 maps come up, 304 are skipped to it, and it adds 7 x 16
    assert seen == [(48, 224), (112, 224), (192, 112), (304, 56), (464, 28), (656, 14), (896, 7), (1088, 14), (816, 28),
                    (576, 56), (384, 112), (256, 224), (11, 224)]

@pytest.mark.parametrize('build,paper', [(fc_densenet56, 1.5), (fc_densenet67, 3.5), (fc_densenet103, 9.4)])
def test_parameters_and_batchnorm_statistics_together_are_what_the_paper_counts_but_for_56(build, paper):
    with torch.device('meta'): net = build(11)            # CamVid's classes
    n = sum(p.numel() for p in net.parameters()) + sum(2*m.num_features for m in of_kind(net, nn.BatchNorm2d))
    assert round(n/1e6, 1) == (1.4 if build is fc_densenet56 else paper)

def by_the_paper(net, x):
    "Lists of maps in place of stacks, as figure 1 draws them"
    def block(layers, maps):
        new = []
        for bn,_,conv,_ in layers:
            new.append(F.conv2d(bn(torch.cat(maps + new, 1)).relu(), conv.weight, conv.bias, padding=1))
        return new
    maps,skips = [net.first(x)],[]
    for dense,((bn,_,conv,_),_) in zip(net.down, net.shrink):
        maps += block(dense, maps)
        skips.append(maps)
        maps = [F.max_pool2d(F.conv2d(bn(torch.cat(maps, 1)).relu(), conv.weight, conv.bias), 2)]
    new = block(net.middle, maps)
    for grow,dense,skip in zip(net.grow, net.up, skips[::-1]):
        h,w = skip[0].shape[-2:]
        up = F.conv_transpose2d(torch.cat(new, 1), grow.weight, grow.bias, stride=2)
        assert up.shape[-2]-h in (0, 1) and up.shape[-1]-w in (0, 1)
        maps = [up[..., :h, :w], *skip]
        new  = block(dense, maps)
    return F.conv2d(torch.cat(maps + new, 1), net.score.weight, net.score.bias)

@pytest.mark.parametrize('size', [(32, 32), (63, 34), (65, 101)])
def test_the_net_computes_what_the_paper_describes_on_even_and_odd_sizes(size):
    torch.manual_seed(0)
    net = FCDenseNet(3, layers=(2, 1, 1, 2, 1, 3, 1, 2, 1, 1, 2), k=3, first=5).double().eval()
    for m in of_kind(net, nn.BatchNorm2d):
        for p in (m.weight, m.bias, m.running_mean): nn.init.normal_(p)
        nn.init.uniform_(m.running_var, .5, 2)
    x = torch.randn(2, 3, *size, dtype=torch.double)
    with torch.no_grad(): assert_close(net(x), by_the_paper(net, x))

def test_it_takes_every_height_and_width_from_32_on():
    with torch.device('meta'): net = fc_densenet56(2, width=.1).eval()
    for h,w in zip(range(32, 65), range(96, 63, -1)):
        assert net(torch.empty(1, 3, h, w, device='meta')).shape == (1, 2, h, w)
    for size in ((31, 32), (32, 31), (1, 500)):
        with pytest.raises(ValueError, match=f'32 or more, got {size[0]} x {size[1]}; resize or pad to 32 x '):
            net(torch.empty(1, 3, *size, device='meta'))

def test_a_batch_of_one_trains_where_the_deepest_map_has_two_cells_and_is_answered_everywhere():
    net = fc_densenet56(2, width=.1)
    for size in ((64, 32), (33, 70)): assert net.train()(torch.randn(1, 3, *size)).isfinite().all()
    with pytest.raises(ValueError, match='1 x 1.*images of 63 x 63.*2 images or more, got 1'):
        net(torch.randn(1, 3, 63, 63))
    assert net.eval()(torch.randn(1, 3, 63, 63)).shape == (1, 2, 63, 63)

def test_weights_begin_uniform_as_he_says_and_biases_at_zero():
    torch.manual_seed(0)
    for m in of_kind(fc_densenet56(11), *CONVS):
        bound = math.sqrt(6/(m.in_channels*math.prod(m.kernel_size)))
        assert m.weight.abs().max() <= bound and (m.bias == 0).all()
        if m.weight.numel() > 2000: assert m.weight.abs().max() > .99*bound and abs(m.weight.std()/bound*3**.5-1) < .05

def test_dropout_follows_the_convolutions_of_blocks_and_those_in_front_of_poolings():
    def drops(**kw):
        net = fc_densenet56(2, width=.1, **kw)
        return {k: m.p for k,m in net.named_modules() if isinstance(m, nn.Dropout)}
    blocks = 'middle',*(f'{o}.{i}' for o in ('down', 'up') for i in range(5))
    want   = {f'{b}.{l}.3' for b in blocks for l in range(4)} | {f'shrink.{i}.0.3' for i in range(5)}
    assert drops() == dict.fromkeys(want, .2)
    assert {*drops(ps=0.).values()} == {0.}

def test_the_width_multiplies_the_growth_rate_and_the_first_maps_and_leaves_one_at_least():
    for build,k in zip(NETS, (12, 16, 16)):
        for width,growth,first in ((1., k, 48), (.5, k//2, 24), (2., 2*k, 96), (1e-3, 1, 1)):
            with torch.device('meta'): net = build(2, width=width)
            assert (net.first.out_channels, net.down[0][0][2].out_channels) == (first, growth)
    assert net.eval().to_empty(device='cpu')(torch.zeros(1, 3, 32, 32)).shape == (1, 2, 32, 32)

@pytest.mark.parametrize('build', NETS)
def test_a_single_class_is_one_logit_a_pixel_and_there_are_no_weights(build):
    with torch.device('meta'): net = build(1, n_in=1)
    assert net(torch.empty(2, 1, 40, 33, device='meta')).shape == (2, 1, 40, 33)
    with pytest.raises(ValueError, match='no pretrained weights of FC-DenseNet'): build(2, pretrained='some.pth')
