"Parts that several nets share"
import numpy as np, pytest, torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close
from vision_tasks.models.layers import (BilinearUp, ContextModule, GridHead, bed_of_nails, bilinear_kernel, conv_relu,
                                        init_bilinear, scaled, unpool_nearest)

@pytest.mark.parametrize('hw', [(2, 2), (7, 7), (1, 5), (13, 9)])
def test_a_grid_head_takes_every_size_and_every_parameter_has_a_gradient(hw):
    torch.manual_seed(0)
    head = GridHead(8, 6, grid=3, width=4, hidden=16)
    out = head(torch.randn(4, 8, *hw))
    assert out.shape == (4, 6)
    out.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in head.parameters())

@pytest.mark.train
def test_it_tells_places_apart_which_a_pooled_map_cannot():
    "One bright cell, anywhere: its place can be learned, while the mean and the maximum of the map are always the same"
    torch.manual_seed(0)
    head,at = GridHead(1, 2, grid=4, width=8, hidden=32, ps=0.),torch.cartesian_prod(torch.arange(8), torch.arange(8))
    x = torch.zeros(64, 1, 8, 8)
    x[torch.arange(64), 0, at[:,0], at[:,1]] = 1.
    y,opt = at/3.5 - 1,torch.optim.Adam(head.parameters(), 1e-2)
    for _ in range(150):
        loss = (head(x) - y).abs().mean()
        opt.zero_grad(); loss.backward(); opt.step()
    assert loss < .5*(y - y.mean(0)).abs().mean()

# --- upsampling

@pytest.mark.parametrize('s', [2, 3, 4, 5, 8, 32])
def test_a_transposed_convolution_with_the_bilinear_kernel_is_bilinear_interpolation_inside(s):
    x,k = torch.randn(2, 1, 7, 9, dtype=torch.double),2*s - s%2      # an odd kernel for an odd factor: same centres
    up = F.conv_transpose2d(x, bilinear_kernel(k).double()[None,None], stride=s, padding=(k-s)//2)
    want = F.interpolate(x, scale_factor=s, mode='bilinear', align_corners=False)
    assert up.shape == want.shape
    inside = (..., slice(s, -s), slice(s, -s))
    assert_close(up[inside], want[inside], atol=1e-6, rtol=0)       # the kernel is single precision
    assert not torch.allclose(up, want, atol=1e-2)                   # at the border zeros flow in

def test_at_the_border_of_a_bilinear_enlargement_zeros_flow_in():
    x = torch.randn(1, 3, 5, 6)
    want = F.interpolate(F.pad(x, [1]*4), scale_factor=4, mode='bilinear', align_corners=False)
    assert_close(BilinearUp(4)(x), want[..., 2:-2, 2:-2], atol=1e-5, rtol=0)

@pytest.mark.parametrize('k', range(1, 10))
def test_the_bilinear_kernel_is_symmetric_and_of_a_tents_weights(k):
    w = bilinear_kernel(k)
    f = -(-k//2)
    tent = [min(i+1, k-i)/f - (k%2 == 0)/(2*f) for i in range(k)]
    assert_close(w, torch.tensor(tent)[:,None]*torch.tensor(tent))
    assert torch.equal(w, w.flip(0)) and torch.equal(w, w.T) and 0 < w.min() and w.max() <= 1

def test_a_kernel_has_a_size():
    with pytest.raises(ValueError, match='k: expected a whole number from 1 to 2000, got 0'): bilinear_kernel(0)

@pytest.mark.parametrize('n_in,n_out', [(3, 3), (2, 4), (4, 2)])
def test_init_bilinear_joins_each_channel_to_its_own_and_to_no_other(n_in, n_out):
    deconv = nn.ConvTranspose2d(n_in, n_out, 4, 2, 1)
    assert init_bilinear(deconv) is deconv and (deconv.bias == 0).all()
    x = torch.randn(2, n_in, 5, 6)
    out,n = deconv(x),min(n_in, n_out)
    assert_close(out[:,:n], BilinearUp(2, 1)(x[:,:n])) and (out[:,n:] == 0).all()

@pytest.mark.parametrize('deconv', [nn.ConvTranspose2d(4, 4, 4, groups=2), nn.ConvTranspose2d(4, 4, (4, 2))], ids=str)
def test_init_bilinear_takes_one_square_kernel_for_all_channels(deconv):
    with pytest.raises(ValueError, match='square kernel and one group, got ConvTranspose2d'): init_bilinear(deconv)

@pytest.mark.parametrize('s,padding', [(2, 0), (2, 1), (8, 4), (32, 0)])
def test_bilinear_up_has_the_size_that_it_says_and_neither_learns_nor_is_saved(s, padding):
    up = BilinearUp(s, padding)
    for h,w in ((1, 3), (4, 2)):
        assert up(torch.randn(2, 3, h, w)).shape == (2, 3, (h+1)*s - 2*padding, (w+1)*s - 2*padding)
    assert not [*up.parameters()] and not up.state_dict()

@pytest.mark.parametrize('s', [1, 2, 3])
def test_unpooling_fills_cells_or_their_top_left_corners(s):
    x = torch.randn(2, 3, 4, 5)
    assert torch.equal(unpool_nearest(x, s), F.interpolate(x, scale_factor=s, mode='nearest'))
    nail = np.zeros((s, s))
    nail[0, 0] = 1
    assert np.array_equal(bed_of_nails(x, s), np.kron(x, nail[None,None]))
    assert torch.equal(bed_of_nails(x, s)[..., ::s, ::s], x)

def test_unpooling_takes_maps_without_a_batch_and_gradients_flow_back():
    x = torch.randn(2, 3, requires_grad=True)
    for f,n in ((unpool_nearest, 4), (bed_of_nails, 1)):
        g, = torch.autograd.grad(f(x, 2).sum(), x)
        assert torch.equal(g, torch.full((2, 3), float(n)))

@pytest.mark.parametrize('stride,padding,dilation,output_padding', [
    (1, 0, 1, 0), (2, 0, 1, 0), (2, 1, 1, 1), (3, 1, 2, 2), (2, 2, 2, 0), (1, 1, 3, 0)])
def test_a_transposed_convolution_is_the_transpose_of_the_convolutions_matrix(
        stride, padding, dilation, output_padding):
    n,k = (4, 3),3                                                    # cells in, size of the kernel
    out = [(m-1)*stride - 2*padding + dilation*(k-1) + output_padding + 1 for m in n]
    w,kw = torch.randn(1, 1, k, k, dtype=torch.double),dict(stride=stride, padding=padding, dilation=dilation)
    matrix = np.zeros((n[0]*n[1], out[0]*out[1]))                     # of the convolution from `out` to `n`, by its sum
    for i,j,u,v in np.ndindex(*n, k, k):
        y,x = (a*stride - padding + b*dilation for a,b in ((i, u), (j, v)))
        if 0 <= y < out[0] and 0 <= x < out[1]: matrix[i*n[1]+j, y*out[1]+x] += w[0, 0, u, v]
    big,small = (torch.randn(1, 1, *o, dtype=torch.double) for o in (out, n))
    assert_close(F.conv2d(big, w, **kw).flatten(), torch.tensor(matrix@big.flatten().numpy()))
    got = F.conv_transpose2d(small, w, output_padding=output_padding, **kw)
    assert [*got.shape[-2:]] == out
    assert_close(got.flatten(), torch.tensor(matrix.T@small.flatten().numpy()))

# --- convolutions

def test_width_multiplies_channels_and_leaves_one_at_least():
    assert [scaled(64, w) for w in (1., .5, .1, .001, 2.)] == [64, 32, 6, 1, 128]

def test_a_convolution_keeps_its_bias_in_front_of_batchnorm():
    conv,norm,act = conv_relu(3, 5, 7, bn=True, conv=nn.ConvTranspose2d, stride=2)
    assert (type(conv), conv.kernel_size, conv.stride) == (nn.ConvTranspose2d, (7, 7), (2, 2))
    assert conv.bias.shape == (5,) and norm.num_features == 5 and isinstance(act, nn.ReLU)
    assert [type(o) for o in conv_relu(3, 5)] == [nn.Conv2d, nn.ReLU]

# --- context

def test_the_context_module_begins_as_identity_for_what_is_not_negative():
    x = torch.rand(2, 5, 40, 37)
    with torch.no_grad():
        assert torch.equal(ContextModule(5)(x), x)
        assert_close(ContextModule(5, 'large')(x), x)                 # sums of many channels: but for rounding
        for kind in ('basic', 'large'): assert_close(ContextModule(5, kind)(-x), 0*x)

@pytest.mark.parametrize('kind,times', [('basic', [1]*9), ('large', [1, 2, 2, 4, 8, 16, 32, 32, 1])])
def test_the_context_module_has_the_channels_and_kernels_of_the_papers_table(kind, times):
    convs = [m for m in ContextModule(3, kind) if isinstance(m, nn.Conv2d)]
    assert [m.in_channels for m in convs] + [3] == [3*t for t in times]
    assert [m.dilation[0] for m in convs] == [1, 1, 2, 4, 8, 16, 1, 1]
    assert [m.kernel_size[0] for m in convs] == [3]*7 + [1]
    assert isinstance(ContextModule(3, kind)[-1], nn.Conv2d)          # no ReLU at the end

def test_the_context_module_sees_67_cells_and_each_of_its_layers_what_the_papers_table_says():
    net = ContextModule(1).double()
    for p in net.parameters(): p.data.fill_(1.)                       # nothing is lost in a ReLU
    x = torch.rand(1, 1, 75, 75, dtype=torch.double, requires_grad=True)
    seen,y = [],x
    for layer in net:
        y = layer(y)
        if isinstance(layer, nn.Conv2d):
            g, = torch.autograd.grad(y[0, 0, 37, 37], x, retain_graph=True)
            ys,xs = g[0, 0].nonzero().T
            assert (ys.min()+ys.max(), xs.min()+xs.max()) == (74, 74) and len(ys) == len(ys.unique())**2
            seen.append(len(ys.unique()))
    assert seen == [3, 5, 9, 17, 33, 65, 67, 67]

@pytest.mark.train
@pytest.mark.parametrize('alike', [False, True])
def test_the_channels_of_one_class_become_different_features_unless_they_begin_alike(alike):
    torch.manual_seed(0)
    net = ContextModule(2, 'large')
    def rank():
        w = net[6].weight.detach()[:8].flatten(1).double()            # the kernels of the first class's 8 channels
        return (torch.linalg.svdvals(w) > 1e-5*torch.linalg.matrix_norm(w, 2)).sum()
    if alike:
        for m in [*net][::2]: m.weight.data = m.weight.data.sign()/(m.out_channels/2)
    assert rank() == 1                                                # multiples of each other
    x = torch.rand(2, 2, 20, 20)
    y,opt = F.avg_pool2d(x, 5, 1, 2).flip(1),torch.optim.Adam(net.parameters(), 1e-3)
    losses = []
    for _ in range(10):
        loss = F.mse_loss(net(x), y)
        opt.zero_grad(); loss.backward(); opt.step()
        losses.append(loss.item())
    assert (rank() > 1) != alike and losses[-1] < .7*losses[0]

def test_the_context_module_is_of_two_kinds():
    with pytest.raises(ValueError, match="kind: expected one of 'basic', 'large', got 'huge'"): ContextModule(3, 'huge')
