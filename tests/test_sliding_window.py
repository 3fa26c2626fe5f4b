"The sliding window for segmentation; what is true of every net is in test_archs.py"
import numpy as np, pytest, torch
from scipy.interpolate import RegularGridInterpolator
from torch import nn
from torch.testing import assert_close
from vision_tasks.models.segmentation.sliding_window import (SlidingWindowSegmenter, patch_classifier,
                                                             sliding_window_segmenter)

def make(patch=7, seed=0, **kw):
    torch.manual_seed(seed)
    return sliding_window_segmenter(3, **{'width': .2, 'patch': patch, **kw}).double().eval()

def pictures(*size, n=2): return torch.randn(n, 3, *size, generator=torch.Generator().manual_seed(0)).double()

def answer(net, x, **kw):
    for k,v in kw.items(): setattr(net, k, v)
    with torch.no_grad(): return net(x)

@pytest.mark.parametrize('patch', [1, 3, 9, 11])
@pytest.mark.parametrize('stride', [1, 2, 3, 5])
@pytest.mark.parametrize('size', [(1, 1), (7, 12), (11, 5)])
def test_window_by_window_gives_the_logits_of_the_convolutional_pass(patch, stride, size):
    net,x = make(patch, stride=stride, at_once=7),pictures(*size)
    out = answer(net, x, route='windows')
    assert out.shape == (2, 3, *size) and out.std() > 0
    assert_close(out, answer(net, x, route='conv'))

def test_both_routes_teach_the_same():
    x,y,grads = pictures(6, 5),torch.randint(3, (2, 6, 5)),[]
    for route in ('conv', 'windows'):
        net = make(5, route=route, at_once=8).train()
        nn.functional.cross_entropy(net(x), y).backward()
        grads.append([p.grad for p in net.parameters()])
    assert all(g.abs().sum() > 0 for g in grads[0])
    for a,b in zip(*grads): assert_close(a, b)

@pytest.mark.parametrize('route', ['conv', 'windows'])
def test_a_pixel_gets_the_class_of_the_patch_that_is_cut_out_around_it(route):
    net,x = make(7),pictures(9, 13, n=1)
    out,wide = answer(net, x, route=route),np.pad(x.numpy(), [(0, 0), (0, 0), (3, 3), (3, 3)])
    for i,j in ((0, 0), (4, 6), (8, 12), (0, 12), (2, 9)):
        patch = torch.from_numpy(wide[:, :, i:i+7, j:j+7])
        with torch.no_grad(): assert_close(net.classifier(patch)[:, :, 0, 0], out[:, :, i, j])

@pytest.mark.parametrize('patch', [1, 3, 5, 7, 9, 33])
def test_the_receptive_field_is_the_patch(patch):
    net,r = make(patch),patch//2
    for p in net.parameters(): p.data.abs_()         # nothing cancels out, no ReLU is closed
    x = torch.ones(1, 3, patch+4, patch+6, dtype=torch.double, requires_grad=True)
    net(x)[0, 0, r+2, r+3].backward()
    seen = torch.zeros(patch+4, patch+6, dtype=torch.bool)
    seen[2:-2, 3:-3] = True
    assert torch.equal(x.grad[0].abs().sum(0) > 0, seen)

@pytest.mark.parametrize('route', ['conv', 'windows'])
def test_the_class_of_a_pixel_does_not_depend_on_what_is_outside_of_its_patch(route):
    net,x = make(5),pictures(12, 12, n=1)
    other = pictures(12, 12, n=2)[1:].clone()
    other[..., 4:9, 3:8] = x[..., 4:9, 3:8]
    a,b = answer(net, x, route=route),answer(net, other)
    assert_close(a[..., 6, 5], b[..., 6, 5])
    assert not torch.isclose(a[..., 6, 6], b[..., 6, 6]).all()

@pytest.mark.parametrize('stride', [2, 3, 4, 20])
def test_strided_pixels_keep_their_logits_and_those_between_are_interpolated(stride):
    net,(h,w) = make(5),(11, 14)
    x = pictures(h, w, n=1)
    dense = answer(net, x)
    out   = answer(net, x, stride=stride)
    assert_close(out[..., ::stride, ::stride], dense[..., ::stride, ::stride])
    # behind the last classified pixel its logits stay
    grid = np.pad(dense[0, :, ::stride, ::stride].numpy(), [(0, 0), (0, 1), (0, 1)], mode='edge')
    at   = np.stack(np.meshgrid(np.arange(h), np.arange(w), indexing='ij'), -1)
    axes = [np.arange(n)*stride for n in grid.shape[1:]]
    want = np.stack([RegularGridInterpolator(axes, g)(at) for g in grid])
    np.testing.assert_allclose(out[0].numpy(), want, atol=1e-12)

def test_no_more_than_at_once_patches_are_classified_at_a_time_and_a_stride_leaves_fewer():
    net,seen = make(5, route='windows', at_once=10),[]
    net.classifier.register_forward_hook(lambda m, i, o: seen.append(tuple(i[0].shape)))
    answer(net, pictures(6, 7))
    assert seen == [(10, 3, 5, 5)]*8 + [(4, 3, 5, 5)]
    seen.clear()
    answer(net, pictures(6, 7), stride=3)
    assert seen == [(10, 3, 5, 5), (2, 3, 5, 5)]      # 2 x 3 pixels of two images

@pytest.mark.parametrize('patch,kernels', [(1, []), (3, [3]), (5, [5]), (7, [5, 3]), (9, [5, 5]), (33, [5]*8)])
def test_the_classifier_has_valid_convolutions_down_to_one_pixel_and_no_pooling(patch, kernels):
    net = patch_classifier(4, 2, patch)
    convs = [m for m in net if isinstance(m, nn.Conv2d)]
    assert [m.kernel_size[0] for m in convs] == [*kernels, 1]
    assert {type(m) for m in net} <= {nn.Conv2d, nn.ReLU} and all(m.padding == (0, 0) for m in convs)
    assert net(torch.randn(5, 2, patch, patch)).shape == (5, 4, 1, 1)

def test_the_weights_begin_as_he_says():
    torch.manual_seed(0)
    for m in patch_classifier(3)[2:-1:2]:
        assert abs(m.weight.std()/(2/(25*32))**.5 - 1) < .05 and (m.bias == 0).all()

def test_the_width_leaves_one_channel_at_least_and_a_single_class_is_one_logit_a_pixel():
    net = make(9, width=1e-3)
    assert [m.out_channels for m in net.classifier[::2]] == [1, 1, 3]
    assert answer(sliding_window_segmenter(1, n_in=2, patch=5), torch.randn(1, 2, 4, 3)).shape == (1, 1, 4, 3)

def test_a_classifier_of_ones_own_can_be_slid_too():
    torch.manual_seed(0)
    net = SlidingWindowSegmenter(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Conv2d(4, 2, 5)), patch=7).double()
    x = pictures(8, 9)
    assert_close(answer(net, x, route='windows'), answer(net, x, route='conv'))

@pytest.mark.parametrize('kw,words', [
    (dict(patch=32),       'patch: expected an odd number.* got 32'), (dict(patch=0),   'patch: expected .* got 0'),
    (dict(patch=-3),       'patch: expected .* got -3'),             (dict(stride=0),  'stride: expected .* got 0'),
    (dict(route='window'), "'conv', 'windows', got 'window'"),       (dict(at_once=0), 'at_once: .* 1 or more, got 0'),
    (dict(pretrained='x'), 'no pretrained weights of the sliding window')])
def test_what_it_cannot_do_it_refuses(kw, words):
    with pytest.raises(ValueError, match=words): sliding_window_segmenter(3, **kw)

def test_a_classifier_of_ones_own_comes_with_an_odd_patch():
    with pytest.raises(ValueError, match='patch: expected an odd.* got 4'):
        SlidingWindowSegmenter(nn.Conv2d(3, 2, 4), patch=4)
