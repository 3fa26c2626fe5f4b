"""Every registered segmentation net, by its facts; then what is true of single ones. A new net is tested as soon as it
is imported by `models/segmentation/__init__.py`; what differs from these defaults it says at `@register`:
size=(33, 45)  an odd, small (h, w) that it takes       crop=0         pixels that its logits are smaller by, each way
refuses={}     (h, w) that it does not take: a piece    min_bs=1       smallest batch in training; below it the net says
               of the message that names the next ones                 '2 images or more, got 1'
kw={}          arguments of a build that is fast        weights=True   whether there are any for `pretrained`
n_params       of the full build of 21 classes          like=None      a net of the same code that is small enough to be
                                                                       run; this one runs on meta only"""
import copy, pickle
from functools import lru_cache
from inspect import signature
from urllib.error import URLError
import numpy as np, pytest, torch, torchvision
import torch.nn.functional as F
from fastai.callback.fp16 import AMPMode, MixedPrecision
from fastai.vision.all import DataLoader, DataLoaders, DynamicUnet, Learner, NormType, create_body
from PIL import Image
from torch import nn
from torch.testing import assert_close
from torchvision.models import get_model, get_model_weights
from torchvision.models.resnet import Bottleneck, ResNet
from torchvision.transforms.v2.functional import pil_to_tensor
from overfit import overfit
from vision_tasks.data.class_masks import decode_class_mask
from vision_tasks.data.synthetic import draw_shapes
from vision_tasks.training.build import parameter_groups
from vision_tasks.metrics.segmentation import confusion_counts, iou_from_confusion
from vision_tasks.models.encoders import create_encoder
from vision_tasks.models.layers import init_he
from vision_tasks.models.registry import arch_facts, get_arch, list_archs
from vision_tasks.models.segmentation.dynamic_unet import dynamic_unet
from vision_tasks.models.segmentation.light_unet import light_unet
from vision_tasks.models.segmentation.lraspp import dilate, lraspp
from vision_tasks.models.segmentation.unet import unet

class Facts:
    size,crop,refuses,min_bs,weights,kw,like = (33, 45),0,{},1,True,{},None
    def __init__(self, name): self.__dict__ = arch_facts(name, 'segmentation')
    def out(self, size): return tuple(n-self.crop for n in size)

NETS = list_archs('segmentation')

@pytest.fixture(scope='module', params=[n for n in NETS if not Facts(n).like])    # all tests of a net after each other
def name(request): return request.param

def make(name, seed=0, n_out=3, **kw):
    "A small net; scores that begin at zero are made random, so that there is something to see"
    torch.manual_seed(seed)
    net = get_arch(name, 'segmentation')(n_out, **{**Facts(name).kw, **kw})
    for p in net.parameters():
        if p.ndim == 4 and not p.any(): nn.init.normal_(p, std=.1)
    return net

@lru_cache(1)
def built(name): return make(name)

def pictures(name, bs=2, n_in=3):
    return torch.randn(bs, n_in, *Facts(name).size, generator=torch.Generator().manual_seed(0))

def answer(net, x):
    with torch.no_grad(): return net.eval()(x)

def tensors(out): return out if isinstance(out, tuple) else (out,)

def loss_of(out, y, weight=None):
    "Cross entropy of logits, or of (logits, auxiliary logits)"
    main,*aux = [F.cross_entropy(o, y, weight) for o in tensors(out)]
    return main + .5*sum(aux)

# --- of every net

def test_logits_have_the_size_of_the_image_or_of_its_centre_for_odd_sizes_and_one_image_too(name):
    f,net = Facts(name),built(name)
    h,w = f.size
    assert h != w
    for n,size in ((1, (h, w)), (2, (w, h))):
        out = answer(net, torch.randn(n, 3, *size))
        assert type(out) is torch.Tensor and out.shape == (n, 3, *f.out(size)) and out.isfinite().all()

def test_the_answer_depends_on_the_image_alone_and_not_on_its_neighbours(name):
    net,x = built(name),pictures(name)
    out = answer(net, x)
    assert torch.equal(answer(net, x), out) and out.std() > 0
    assert_close(answer(net, x[1:]), out[1:], rtol=1e-3, atol=1e-4)

def test_all_parameters_learn_from_the_smallest_batch_and_the_auxiliary_logits_take_part(name):
    f,net = Facts(name),make(name).train()
    out = net(pictures(name, f.min_bs))
    assert all(o.shape == (f.min_bs, 3, *f.out(f.size)) for o in tensors(out))
    loss_of(out, torch.randint(3, (f.min_bs, *f.out(f.size)))).backward()
    assert [k for k,p in net.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []
    if f.min_bs > 1:
        with pytest.raises(ValueError, match=f'{f.min_bs} images or more, got {f.min_bs-1}'):
            net(pictures(name, f.min_bs-1))

def test_a_size_that_a_net_does_not_take_is_refused_and_the_next_ones_are_named(name):
    for size,words in Facts(name).refuses.items():
        with pytest.raises(ValueError, match=words): built(name)(torch.randn(1, 3, *size))

@pytest.mark.parametrize('name', NETS)
def test_the_full_net_can_be_built_on_meta_and_has_the_parameters_that_it_is_known_to_have(name):
    with torch.device('meta'): net = get_arch(name, 'segmentation')(21)
    assert all(p.is_meta for p in net.parameters())
    assert sum(p.numel() for p in net.parameters()) == Facts(name).n_params
    f,x = Facts(name),torch.empty(2, 3, *Facts(name).size, device='meta')
    for o in (net.eval()(x), *tensors(net.train()(x))): assert o.shape == (2, 21, *f.out(f.size))

def test_no_parameter_is_registered_twice_and_a_state_dict_carries_the_whole_net(name):
    net,other = built(name),make(name, seed=1)
    ids = [id(p) for _,p in net.named_parameters(remove_duplicate=False)]
    assert len(ids) == len(set(ids))
    x = pictures(name, 1)
    assert not torch.allclose(answer(other, x), answer(net, x))
    other.load_state_dict(net.state_dict())
    assert_close(answer(other, x), answer(net, x))

def test_a_net_can_be_pickled_and_copied(name):
    net,x = built(name),pictures(name, 1)
    for o in (pickle.loads(pickle.dumps(net)), copy.deepcopy(net)): assert_close(answer(o, x), answer(net, x))

def test_the_encoder_has_groups_of_parameters_of_its_own_and_the_statistics_of_its_weights(name):
    "One, or two where fastai splits such an encoder"
    net = built(name)
    *early,last = groups = parameter_groups(net)
    assert sorted(id(p) for g in groups for p in g) == sorted(map(id, net.parameters()))
    if Facts(name).weights:
        inside = {id(p) for p in net.encoder.parameters()}
        assert {id(p) for g in early for p in g} == inside and inside.isdisjoint(map(id, last))
        assert len(early) in (1, 2) and all(len(g) for g in groups)
        assert len(net.encoder.mean) == len(net.encoder.std) == 3 and isinstance(net.encoder.mean, tuple)
    else: assert len(groups) == 1     # an untrained encoder must not be frozen

def test_images_may_have_other_channels(name):
    for n_in in (1, 4): assert answer(make(name, n_in=n_in), pictures(name, 1, n_in)).shape[1] == 3

def test_pretrained_is_refused_where_there_are_no_weights_and_a_file_that_is_not_there_everywhere_else(name, tmp_path):
    if Facts(name).weights:
        with torch.device('meta'), pytest.raises(FileNotFoundError, match='no file .*gone.pth'):
            get_arch(name, 'segmentation')(3, pretrained=tmp_path/'gone.pth')
    else:
        with pytest.raises(ValueError, match='no pretrained weights.*pretrained=False'): make(name, pretrained=True)

# How a small net of each learns two images by heart (bs=2 of 48 x 48, 40 steps of Adam at lr=3e-3), where it differs.
# balanced: all classes count the same in the loss; otherwise the net predicts background alone for a while.
# The worst mIoU of 3 to 5 seeds, with AVX-512, AVX2, SSE4.1 and torch 2.8: fcn8s .62, unet .67, sliding_window .71,
# segnet .83, the others .85 and more; with shuffled labels it is lower by .3 at least
FIT = dict(fcn8s=dict(lr=2e-3, steps=100, balanced=True), fcn16s=dict(lr=2e-3, steps=150),
           fcn32s=dict(size=96, steps=50), deconvnet=dict(size=193, lr=2e-3, width=.15, steps=80),
           unet=dict(size=236, steps=60), segnet=dict(lr=5e-3, steps=80, balanced=True),
           deeplab_v1=dict(size=96, width=.2, steps=80), dilatednet=dict(size=96, width=.2, lr=1e-3, steps=150),
           dynamic_unet=dict(steps=25), fc_densenet56=dict(lr=1e-2, steps=25),
           sliding_window=dict(steps=100, balanced=True), lraspp_mobilenet_v3_large=dict(steps=20),
           fcn_resnet50=dict(steps=60))
LONG = ['deconvnet', 'dilatednet', 'fcn16s', 'fcn32s', *[n for n in NETS if n.startswith(('fcn_resnet', 'deeplabv3_'))]]

@pytest.mark.train
@pytest.mark.parametrize('name', [
    pytest.param(n, marks=pytest.mark.slow) if n in LONG else n for n in NETS if not Facts(n).like])
def test_a_net_learns_drawn_images_by_heart_but_not_pixels_whose_labels_are_shuffled(name, tmp_path):
    "LONG: of full width, of much padding, or of large images, which take half a minute each"
    fit = {**dict(size=48, bs=2, lr=3e-3, steps=40, balanced=False), **FIT.get(name, {})}
    size,bs,lr,steps,balanced = (fit.pop(k) for k in ('size', 'bs', 'lr', 'steps', 'balanced'))
    build,crop = get_arch(name, 'segmentation'),Facts(name).crop//2
    if 'ps' in signature(build).parameters: fit['ps'] = 0.       # dropout is there to keep it from just this
    anns = draw_shapes(tmp_path, bs, size, seed=21, most=3)
    x = torch.stack([pil_to_tensor(Image.open(a.path)) for a in anns])/64 - 2
    y = torch.stack([torch.from_numpy(decode_class_mask(a.mask)) for a in anns]).long()
    y = y[:, crop:size-crop, crop:size-crop]
    weight = y.numel()/5/torch.bincount(y.flatten(), minlength=5).clamp(min=1) if balanced else None
    def miou(y):
        torch.manual_seed(0)
        net = build(5, **{**Facts(name).kw, **fit}).train()
        overfit(net, lambda: loss_of(net(x), y, weight), steps, lr)
        # in training mode: running statistics need more steps than the weights
        with torch.no_grad(): return iou_from_confusion(confusion_counts(tensors(net(x))[0].argmax(1), y, 5)).nanmean()
    shuffled = y.flatten(1)[:, torch.randperm(y[0].numel(), generator=torch.Generator().manual_seed(0))].view_as(y)
    right,wrong = miou(y),miou(shuffled)
    assert right > .5 and wrong < right - .2      # of nothing but background: less than .25

# --- U-Net

# (n_in, n_out) of the 23 convolutions of figure 1: 3x3, and the 2x2 that go up, and the 1x1 at the end
FIGURE = dict(three=[(3, 64), (64, 64), (64, 128), (128, 128), (128, 256), (256, 256), (256, 512), (512, 512),
                     (512, 1024), (1024, 1024), (1024, 512), (512, 512), (512, 256), (256, 256), (256, 128), (128, 128),
                     (128, 64), (64, 64)],
              two=[(1024, 512), (512, 256), (256, 128), (128, 64)], one=[(64, 21)])

@pytest.mark.parametrize('arch,n_out', [*((n, 0) for n in NETS), *(('unet', o) for o in (-1, 2.5, None, True))])
def test_a_net_without_classes_is_refused(arch, n_out):
    with torch.device('meta'), pytest.raises(ValueError, match=f"n_out: expected the number of .*, got {n_out}"):
        get_arch(arch, 'segmentation')(n_out)

def test_the_unet_has_the_convolutions_of_the_papers_figure():
    with torch.device('meta'): net = unet(21)
    assert sum(map(len, FIGURE.values())) == 23
    for (k,chs),n in zip(FIGURE.items(), (3, 2, 1)):
        convs = [m for m in net.modules() if isinstance(m, (nn.Conv2d, nn.ConvTranspose2d)) and m.kernel_size[0] == n]
        assert sorted((m.in_channels, m.out_channels) for m in convs) == sorted(chs), k
    total = sum(n*n*i*o + o for chs,n in zip(FIGURE.values(), (3, 2, 1)) for i,o in chs)
    assert total == sum(p.numel() for p in net.parameters()) == arch_facts('unet', 'segmentation')['n_params']

@pytest.mark.parametrize('padding,size,out', [('valid', (572, 572), (388, 388)), ('valid', (188, 1004), (4, 820)),
                                              ('same', (16, 48), (16, 48))])
def test_the_unets_logits_have_the_size_that_the_paper_says(padding, size, out):
    with torch.device('meta'): assert unet(2, padding=padding)(torch.empty(1, 3, *size)).shape == (1, 2, *out)

def test_the_unet_takes_16k_plus_60_or_multiples_of_16_and_nothing_else():
    with torch.device('meta'): nets = {p: unet(2, width=.02, padding=p) for p in ('valid', 'same')}
    def takes(p, n):
        try: return nets[p](torch.empty(1, 3, n, 188 if p == 'valid' else 16, device='meta')) is not None
        except ValueError: return False
    assert [n for n in range(150, 260) if takes('valid', n)] == [188, 204, 220, 236, 252]
    assert [n for n in range(1, 70) if takes('same', n)] == [16, 32, 48, 64]
    with pytest.raises(ValueError, match="of 16k, got 33 x 8; make the height 32 or 48 and the width 16$"):
        nets['same'](torch.empty(1, 3, 33, 8, device='meta'))
    with pytest.raises(ValueError, match=r"16k \+ 60, at least 188, got 500 x 572; make the height 492 or 508 and the "
                                         "width 572, or use padding='same'"):
        nets['valid'](torch.empty(1, 3, 500, 572, device='meta'))

def test_each_logit_of_the_valid_unet_sees_only_its_surroundings_so_that_tiles_fit_together():
    # the overlap-tile strategy: the answer of a large image is that of its parts, which are cut at multiples of 16
    net,x = make('unet').double(),torch.randn(1, 3, 236, 220, dtype=torch.double)
    whole = answer(net, x)
    assert_close(answer(net, x[..., 32:220, 16:204]), whole[..., 32:36, 16:20])

def test_the_skip_is_cut_at_the_middle():
    net,x = make('unet').double(),pictures('unet', 1).double()
    for m in net.modules():        # symmetric kernels: a mirrored image then gives the mirrored answer
        if isinstance(m, (nn.Conv2d, nn.ConvTranspose2d)): m.weight.data += m.weight.data.flip(-1)
    out = answer(net, x)
    assert_close(answer(net, x.flip(-1)), out.flip(-1))
    assert out.std(-1).min() > 0

def test_what_comes_up_in_the_unet_passes_a_relu():
    net,x = make('unet'),pictures('unet', 1)
    net.up[-1].weight.data.abs_().neg_()               # of what is not negative, nothing is left
    before = answer(net, x)
    for p in net.down[1:].parameters(): p.data.normal_()
    assert torch.equal(answer(net, x), before) and before.std() > 0

def test_dropout_stands_at_the_end_of_the_unets_path_down_alone():
    drops = lambda net: {k: m.p for k,m in net.named_modules() if isinstance(m, nn.Dropout)}
    assert drops(make('unet')) == {'down.3.4': .5, 'down.4.4': .5} and drops(make('unet', ps=0.)) == {}

def test_he_initialization_keeps_the_scale_of_what_flows_through_and_biases_begin_at_zero():
    torch.manual_seed(0)
    net = nn.Sequential(*[nn.Sequential(nn.Conv2d(64, 64, 3), nn.ReLU()) for _ in range(6)],
                        *[nn.Sequential(nn.ConvTranspose2d(64, 64, 2, 2), nn.ReLU()) for _ in range(4)])
    for m in net.modules():
        if hasattr(m, 'bias'): nn.init.ones_(m.bias)
    init_he(net)
    scale = answer(net, torch.randn(1, 64, 24, 24).relu()*2**.5).pow(2).mean()
    assert .5 < scale < 2 and all((m.bias == 0).all() for m in net.modules() if hasattr(m, 'bias'))

def test_the_unets_padding_is_one_of_two():
    with pytest.raises(ValueError, match="padding: expected .* 'same', got 'reflect'"): unet(2, padding='reflect')

# --- U-Net on an encoder

@pytest.mark.parametrize('kw', [{}, dict(last_cross=False, blur=True, blur_final=False),
    dict(blur=True, self_attention=True, norm_type=NormType.Batch, act_cls=nn.SiLU)], ids=str)
def test_a_dynamic_unet_computes_what_fastais_computes_with_the_same_weights(kw):
    size = 50,70
    theirs = DynamicUnet(create_body(get_model('resnet18'), pretrained=False, cut=-2), 3, size, **kw).eval()
    net = dynamic_unet(3, encoder='resnet18', **kw)
    for p in theirs.parameters(): p.data += .01*torch.randn_like(p)   # self-attention begins at zero
    sd = theirs.state_dict()
    assert len(sd) == len(net.state_dict())
    net.load_state_dict(dict(zip(net.state_dict(), sd.values())))
    for s in (size, (97, 64)):                                         # theirs was made for the first
        x = torch.randn(2, 3, *s)
        assert_close(answer(net, x), torch.Tensor(answer(theirs, x)))

@pytest.mark.parametrize('name,shuffles', [('vgg11', 0), ('test_efficientnet', 1), ('shufflenet_v2_x0_5', 1),
                                           ('convnext_atto', 2)])
def test_a_dynamic_unet_stands_on_encoders_of_all_kinds_and_doubles_up_to_the_image(name, shuffles):
    with torch.device('meta'): net = dynamic_unet(3, encoder=name)
    assert len(net.shuf) == shuffles == np.log2(net.encoder.strides[0])
    for size in ((50, 70), (33, 200)):
        assert net(torch.empty(2, 3, *size, device='meta')).shape == (2, 3, *size)

def test_the_bottleneck_of_a_dynamic_unet_halves_its_last_block():
    n = lambda **kw: sum(p.numel() for p in make('dynamic_unet', **kw).parameters())
    assert n(bottle=True) < n() and answer(make('dynamic_unet', bottle=True), pictures('dynamic_unet')).shape[1] == 3
    with pytest.raises(TypeError, match='battle'): make('dynamic_unet', battle=True)

# --- light U-Net

@pytest.mark.parametrize('name,finest', [('vgg11', 2), ('mobilenet_v2', 2), ('convnext_atto', 4), ('test_vit', 16)])
def test_a_light_unet_stands_on_encoders_of_all_kinds_and_goes_up_to_stride_2_at_most(name, finest):
    with torch.device('meta'): net = light_unet(3, encoder=name)
    sizes = []
    net.score.register_forward_pre_hook(lambda m, x: sizes.append(x[0].shape[-2:]))
    for h,w in ((64, 128), (96, 64)):
        assert net(torch.empty(2, 3, h, w, device='meta')).shape == (2, 3, h, w)
        assert sizes.pop() == (h/finest, w/finest)

def test_the_decoder_of_a_light_unet_is_small_and_has_a_width():
    def n(**kw):
        with torch.device('meta'): net = light_unet(21, **kw)
        return sum(p.numel() for k,p in net.named_parameters() if not k.startswith('encoder'))
    for name in ('resnet34', 'mobilenet_v2', 'efficientnet_b0'): assert n(encoder=name) < 1e6
    assert n(width=.5) < n()/2 and n(width=2.) > 2*n()

# --- Lite R-ASPP

def test_a_dilated_encoder_computes_what_torchvisions_dilated_net_computes_with_the_same_weights():
    enc = create_encoder('resnet50', False).double()
    assert dilate(enc, 8) is enc and (enc.strides, enc.channels) == ([2, 4, 8], [64, 256, 2048])
    want = ResNet(Bottleneck, [3, 4, 6, 3], replace_stride_with_dilation=[False, True, True]).double()
    want.avgpool = want.fc = nn.Identity()
    want.load_state_dict(enc.body.state_dict())
    x = torch.randn(1, 3, 49, 66, dtype=torch.double)
    assert_close(answer(enc, x)[-1].flatten(1), answer(want, x))

@pytest.mark.parametrize('name', ['mobilenet_v2', 'shufflenet_v2_x0_5', 'tf_efficientnet_lite0'])
def test_one_cell_in_four_of_a_dilated_encoder_is_what_it_gave_before(name):
    enc,x = create_encoder(name, False).double(),torch.randn(1, 3, 96, 64, dtype=torch.double)
    old = answer(enc, x)[-1]
    new = answer(dilate(enc, 16), x)[-1]
    assert (enc.strides[-1], enc.channels[-1]) == (16, new.shape[1])
    # TensorFlow's padding puts the cells of strided convolutions one step further
    i = 1 if name.startswith('tf_') else 0
    assert_close(new[..., i::2, i::2], old)

@pytest.mark.parametrize('name', ['vgg11', 'inception_v3', 'convnext_atto'])
def test_an_encoder_that_cannot_be_dilated_says_so(name):
    with torch.device('meta'): enc = create_encoder(name, False)
    with pytest.raises(ValueError, match=f'{name} cannot be dilated to stride 16.*use stride=32, or another'):
        dilate(enc, 16)

def test_an_encoder_that_shrinks_no_further_stays_as_it_is():
    enc = create_encoder('resnet18', False)
    assert dilate(enc, 32).strides == [2, 4, 8, 16, 32] and enc.body.layer4[0].conv1.stride == (2, 2)

def test_lraspp_wants_a_map_at_stride_8_and_a_later_one():
    with pytest.raises(ValueError, match=r'map at stride 8.*test_vit has strides \[16\]'):
        lraspp(3, encoder='test_vit')
    with torch.device('meta'): assert lraspp(3, encoder='vgg11', stride=32).encoder.strides[-1] == 32
    assert make('lraspp').encoder.strides[-1] == 16

def test_lraspp_has_as_many_parameters_as_torchvisions_and_a_width():
    assert Facts('lraspp').n_params == Facts('lraspp_mobilenet_v3_large').n_params
    assert make('lraspp', width=.5).head.cbr[0].out_channels == 64

@pytest.mark.parametrize('name', ['dynamic_unet', 'light_unet', 'lraspp', 'lraspp_mobilenet_v3_large'])
def test_the_encoders_weights_come_from_a_local_file_and_fit_other_channels_too(name, tmp_path):
    sd = make(name).encoder.state_dict()
    pre = 'features.' if name.endswith('_mobilenet_v3_large') else ''    # as in the classifier's file
    torch.save({pre + k.removeprefix('body.'): v for k,v in sd.items()}, tmp_path/'w.pth')
    for n_in in (3, 1):
        net = make(name, seed=1, pretrained=tmp_path/'w.pth', n_in=n_in)
        for v,w in zip(net.encoder.state_dict().values(), sd.values()):
            assert_close(v, w if v.shape == w.shape else w.sum(1, keepdim=True))

# --- torchvision's

THEIRS = [n for n in NETS if n.startswith(('fcn_resnet', 'deeplabv3_', 'lraspp_'))]

@pytest.mark.parametrize('name', THEIRS)
def test_a_wrapped_net_has_the_parameters_that_torchvision_says_and_the_statistics_of_its_weights(name):
    w = get_model_weights(name).DEFAULT
    with torch.device('meta'): enc = get_arch(name, 'segmentation')(2).encoder
    assert Facts(name).n_params == w.meta['num_params']
    assert (enc.mean, enc.std) == (tuple(w.transforms().mean), tuple(w.transforms().std))

@pytest.mark.parametrize('name', ['deeplabv3_mobilenet_v3_large', 'lraspp_mobilenet_v3_large'])
def test_a_wrapped_net_gives_what_torchvision_gives_and_in_training_the_auxiliary_logits_beside_them(name):
    net,x = make(name),pictures(name)
    aux = {} if 'lraspp' in name else dict(aux_loss=True)
    theirs = get_model(name, weights=None, weights_backbone=None, num_classes=3, **aux)
    theirs.load_state_dict(net.net.state_dict())
    assert torch.equal(answer(net, x), answer(theirs, x)['out'])
    torch.manual_seed(1); ours = net.train()(x)
    torch.manual_seed(1); want = theirs.train()(x)
    assert isinstance(ours, tuple) == bool(aux) and len(tensors(ours)) == len(want)
    for a,b in zip(tensors(ours), want.values()): assert_close(a, b)
    tensors(ours)[-1].sum().backward()              # the auxiliary logits teach the encoder as well
    assert next(net.encoder.parameters()).grad.abs().sum() > 0

def test_the_auxiliary_head_can_be_left_out():
    net = make('deeplabv3_mobilenet_v3_large', aux_loss=False)
    assert type(net.train()(torch.randn(2, 3, 33, 45))) is torch.Tensor
    assert not any('aux' in k for k in net.state_dict())

@pytest.mark.parametrize('name', ['deeplabv3_mobilenet_v3_large', 'lraspp_mobilenet_v3_large'])
def test_pretrained_nets_have_torchvisions_weights_but_for_their_last_layers(name, monkeypatch):
    torch.manual_seed(2)
    aux = {} if 'lraspp' in name else dict(aux_loss=True)
    sd,asked = get_model(name, weights=None, weights_backbone=None, num_classes=21, **aux).state_dict(),[]
    monkeypatch.setattr(torchvision.models._api, 'load_state_dict_from_url', lambda url, **kw: asked.append(url) or sd)
    for kw in ({}, dict(n_in=1)):
        net = make(name, pretrained=True, **kw)
        assert asked.pop() == get_model_weights(name).DEFAULT.url and not asked
        new = {k for k,v in net.net.state_dict().items() if v.shape != sd[k].shape or not torch.equal(v, sd[k])}
        assert {sd[k].shape[0] for k in new if 'backbone' not in k} == {21} and answer(net, torch.randn(
            1, kw.get('n_in', 3), 33, 45)).shape[1] == 3
        first = next(k for k in sd if k.endswith('weight'))
        assert {k for k in new if 'backbone' in k} == (set() if not kw else {first})
        if kw: assert_close(net.net.state_dict()[first], sd[first].sum(1, keepdim=True))

def test_pretrained_may_be_the_encoder_alone(monkeypatch):
    sd,asked = get_model('mobilenet_v3_large').state_dict(),[]
    monkeypatch.setattr(torchvision.models._api, 'load_state_dict_from_url', lambda url, **kw: asked.append(url) or sd)
    net = make('lraspp_mobilenet_v3_large', pretrained='encoder')
    assert asked == [get_model_weights('mobilenet_v3_large').DEFAULT.url]
    for k,v in net.encoder.state_dict().items(): assert torch.equal(v, sd['features.'+k])

def test_a_download_that_fails_says_what_to_do(monkeypatch):
    def fail(*args, **kwargs): raise URLError('no route')
    monkeypatch.setattr(torchvision.models._api, 'load_state_dict_from_url', fail)
    with pytest.raises(OSError, match='fcn_resnet50 could not be downloaded.*no route.*state dict of resnet50'):
        make('fcn_resnet50', pretrained=True)

class HalfOnCPU(MixedPrecision):
    "fastai's callback, with the autocast of the CPU"
    def before_fit(self):
        super().before_fit()
        self.autocast = torch.autocast('cpu', torch.bfloat16)

@pytest.mark.train
@pytest.mark.filterwarnings('ignore:CUDA is not available')
def test_a_net_with_auxiliary_logits_trains_in_a_fastai_learner_in_half_precision_too():
    x = torch.randn(8, 3, 32, 32)
    data = list(zip(x, (x[:,0] > 0).long()))
    dls = DataLoaders(DataLoader(data, bs=4, shuffle=True), DataLoader(data, bs=4))
    seen = []
    def loss(out, y):
        seen.append((isinstance(out, tuple), *{o.dtype for o in tensors(out)}))
        return loss_of(out, y)
    def accuracy(pred, y): return (pred.argmax(1) == y).float().mean()
    learn = Learner(dls, make('deeplabv3_mobilenet_v3_large', n_out=2), loss, metrics=accuracy)
    with learn.no_bar(), learn.no_logging():
        for cbs in ([], [HalfOnCPU(AMPMode.BF16)]): learn.fit(1, 1e-3, cbs=cbs)
        assert seen == [(True, torch.float32), (True, torch.float32), (False, torch.float32), (False, torch.float32)]*2
        assert np.isfinite(learn.recorder.values).all() and learn.get_preds()[0].shape == (8, 2, 32, 32)
