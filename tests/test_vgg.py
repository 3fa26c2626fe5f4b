"VGG16 under the classic nets, with torchvision's own as oracle"
from urllib.error import URLError
import pytest, torch, torchvision
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close
from torchvision.models import get_model, get_model_weights, resnet18, vgg11, vgg16
from vision_tasks.models.layers import conv_relu
from vision_tasks.models.registry import get_arch
from vision_tasks.models.segmentation.deeplab import deeplab_v1
from vision_tasks.models.segmentation.segnet import segnet
from vision_tasks.models.vgg import VGG16

HUGE = {'classifier.0.weight': (4096, 512*49), 'classifier.3.weight': (4096, 4096)}

def weights(bn=False):
    "torchvision's state dict with random features; the huge layers are one number each, and so are small in a file"
    torch.manual_seed(0)
    with torch.device('meta'): names = get_model('vgg16_bn' if bn else 'vgg16').state_dict()
    sd = {k: torch.rand(v.shape) if v.ndim == 1 else torch.randn(v.shape)*(2/v[0].numel())**.5
          for k,v in names.items() if k.startswith('features.') and v.ndim}
    sd |= {k: torch.tensor(7) for k,v in names.items() if not v.ndim}                 # num_batches_tracked
    sd |= {k: torch.tensor(.25*i).expand(v.shape) for i,(k,v) in enumerate(names.items()) if k.startswith('class')}
    return {k: sd[k] for k in names}

def with_top(**kw):
    return VGG16(top=nn.Sequential(*conv_relu(512, 4096, 7), nn.Dropout(), *conv_relu(4096, 4096, 1)), **kw)

@pytest.fixture(scope='module', params=[False, True], ids=['vgg16', 'vgg16_bn'])
def file(request, tmp_path_factory):
    path = tmp_path_factory.mktemp('vgg')/'w.pth'
    torch.save(weights(request.param), path)
    assert path.stat().st_size < 2e8
    return path,request.param

def test_the_stages_compute_what_torchvisions_features_compute_with_the_same_weights(file):
    path,bn = file
    net,theirs = VGG16(bn=bn).load(path).eval(),get_model('vgg16_bn' if bn else 'vgg16').features.eval()
    theirs.load_state_dict({k.removeprefix('features.'): v for k,v in weights(bn).items() if k.startswith('features.')})
    x = y = torch.randn(1, 3, 64, 96)
    maps = []
    with torch.no_grad():
        for l in theirs:
            y = l(y)
            if isinstance(l, nn.MaxPool2d): maps.append(y)
        y = x
        for stage,want in zip(net.stages, maps, strict=True):
            y = F.max_pool2d(stage(y), 2)
            assert_close(y, want)
            assert want.std() > 0
    assert [m.num_batches_tracked for m in net.modules() if isinstance(m, nn.BatchNorm2d)] == [7]*13*bn

def test_fc6_and_fc7_as_convolutions_compute_what_the_classifiers_layers_compute(monkeypatch):
    sd = weights()
    for k,(o,i) in HUGE.items(): sd[k] = torch.randn(o, 1)*torch.randn(i)/i**.5     # no two numbers are alike
    monkeypatch.setattr(torchvision.models._api, 'load_state_dict_from_url', lambda url, **kw: sd)
    with torch.device('meta'): theirs = vgg16().eval()
    theirs.load_state_dict(sd, assign=True)
    theirs.classifier[-1] = nn.Identity()                       # dropout before it sleeps in evaluation
    with torch.device('meta'): net = with_top()
    net = net.to_empty(device='cpu').load(True, fc=True).eval()
    x = y = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        for stage in net.stages: y = F.max_pool2d(stage(y), 2)
        out,want = net.top(y),theirs(x)
    assert out.shape == (1, 4096, 1, 1) and want.std() > 0
    assert_close(out.flatten(1), want, rtol=1e-4, atol=1e-4)

@pytest.mark.parametrize('n_in', [1, 4])
def test_the_first_convolution_is_fitted_to_other_channels(file, n_in):
    path,bn = file
    net,sd = VGG16(n_in, bn=bn).load(path),weights(bn)
    w = sd.pop('features.0.weight')
    first,*rest = net.stages.state_dict().values()
    # of one channel: grey images give what they gave in three; of four: the sum over channels that are alike stays
    if n_in == 1: assert_close(first, w.sum(1, keepdim=True))
    else:         assert first.shape == (64, 4, 3, 3); assert_close(first[:,:3]*4/3, w)
    for a,b in zip(rest, [v for k,v in sd.items() if k.startswith('features.')], strict=True): assert torch.equal(a, b)

def test_a_net_without_a_use_for_the_classifier_takes_a_file_of_features_alone_and_others_refuse_it(file, tmp_path):
    path,bn = file
    some = {k: v for k,v in weights(bn).items() if k.startswith('features.')}
    torch.save(some, tmp_path/'w.pth')
    net = VGG16(bn=bn).load(tmp_path/'w.pth')
    for a,b in zip(net.stages.state_dict().values(), some.values(), strict=True): assert torch.equal(a, b)
    with pytest.raises(ValueError, match=r"w.pth does not hold .*expected 4 tensors with 119,545,856 values under "
                                         r"'classifier.', got 0 with 0; pass a state dict of"):
        with torch.device('meta'): with_top(bn=bn).load(tmp_path/'w.pth', fc=True)

@pytest.mark.parametrize('other', ['vgg11', 'resnet18', 'vgg16', 'vgg16_bn'])
def test_the_file_of_another_net_is_refused_and_the_right_one_is_named(other, tmp_path):
    bn = other == 'vgg16'                                       # each of the two where the other is wanted
    sd = {'vgg11': lambda: vgg11().features.state_dict(prefix='features.'),
          'resnet18': lambda: resnet18().state_dict()}.get(other, lambda: weights(not bn))()
    torch.save(sd, tmp_path/'w.pth')
    with torch.device('meta'): net = VGG16(bn=bn)
    n = sum(k.startswith('features.') for k in sd)
    with pytest.raises(ValueError, match=f"does not hold the weights of torchvision's vgg16{'_bn'*bn}: "
                                         f"expected {91 if bn else 26} tensors with .* got {n} with "):
        net.load(tmp_path/'w.pth')

def test_weights_are_of_width_1_and_of_a_file_that_is_there():
    net = VGG16(width=.1)
    assert net.load(False) is net
    with pytest.raises(ValueError, match='with width=1, got width=0.1; pass pretrained=False'): net.load(True)
    with pytest.raises(FileNotFoundError, match='no file .*gone.pth'): VGG16().load('gone.pth')

@pytest.mark.parametrize('build,name', [(deeplab_v1, 'vgg16'), (segnet, 'vgg16_bn')])
def test_pretrained_asks_for_torchvisions_default_weights_and_they_arrive(build, name, monkeypatch):
    sd,asked = weights(name == 'vgg16_bn'),[]
    def load(url, **kw): asked.append((url, kw['check_hash'])); return sd
    monkeypatch.setattr(torchvision.models._api, 'load_state_dict_from_url', load)
    net = build(2, pretrained=True)
    assert asked == [(get_model_weights(name).DEFAULT.url, True)]
    came = [v for k,v in sd.items() if k.startswith('features.')]
    for a,b in zip(net.encoder.stages.state_dict().values(), came, strict=True): assert torch.equal(a, b)

@pytest.mark.parametrize('name', ['fcn32s', 'fcn16s', 'fcn8s', 'deconvnet', 'dilatednet', 'deeplab_v1', 'segnet'])
def test_nets_with_vggs_fc6_and_fc7_take_these_too_and_others_the_convolutions_alone(name, monkeypatch):
    asked,fill = [],VGG16._fill
    def spy(self, own, sd, prefix, *args): asked.append((prefix, len(own))); fill(self, own, sd, prefix, *args)
    monkeypatch.setattr(VGG16, '_fill', spy)
    bn = name in ('deconvnet', 'segnet')
    monkeypatch.setattr(torchvision.models._api, 'load_state_dict_from_url', lambda url, **kw: weights(bn))
    with torch.device('meta'): get_arch(name, 'segmentation')(3, pretrained=True)
    assert asked == [('features.', 91 if bn else 26)] + [('classifier.', 4)]*(name not in ('deeplab_v1', 'segnet'))

@pytest.mark.parametrize('bn', [False, True])
def test_a_download_that_fails_says_what_to_do(monkeypatch, bn):
    def fail(*args, **kwargs): raise URLError('no route')
    monkeypatch.setattr(torchvision.models._api, 'load_state_dict_from_url', fail)
    name = 'vgg16_bn' if bn else 'vgg16'
    with torch.device('meta'), pytest.raises(OSError, match=f"{name} could not be downloaded .*no route.*; without a "
                                                            f"network, .* state dict of torchvision's {name}$"):
        VGG16(bn=bn).load(True)

@pytest.mark.parametrize('kw,padding,dilation', [(dict(pad=100), [100]+[1]*12, [1]*13),
                                                 (dict(dilation=2), [1]*10+[2]*3, [1]*10+[2]*3)])
def test_padding_is_of_the_first_convolution_and_dilation_of_the_last_three(kw, padding, dilation):
    with torch.device('meta'): convs = [m for m in VGG16(**kw).modules() if isinstance(m, nn.Conv2d)]
    assert [m.padding[0] for m in convs] == padding and [m.dilation[0] for m in convs] == dilation
    assert [(m.in_channels, m.out_channels) for m in convs] == [*zip(
        [3, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512],
        [64, 64, 128, 128, 256, 256, 256] + [512]*6)]
