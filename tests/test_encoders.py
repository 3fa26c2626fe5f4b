import copy, os, pickle
from functools import lru_cache
from pathlib import Path
from urllib.error import URLError
import pytest, timm, torch, torchvision
from safetensors.torch import save_file
from torch import nn
from torch.testing import assert_close
from torchvision.models import get_model, list_models
from vision_tasks.models import encoders
from vision_tasks.models.encoders import create_encoder, list_encoders

# name -> channels at strides 2, 4, 8, 16, 32 or their last ones, by the papers' tables or the constructors
FAMILIES = dict(alexnet=[64, 192, 256, 256], vgg11=[64, 128, 256, 512, 512, 512], resnet18=[64, 64, 128, 256, 512],
    squeezenet1_1=[64, 128, 256, 512], densenet121=[64, 256, 512, 1024, 1024], mobilenet_v2=[16, 24, 32, 96, 1280],
    mobilenet_v3_small=[16, 16, 24, 48, 576], efficientnet_b0=[16, 24, 40, 112, 1280], mnasnet0_5=[8, 16, 24, 48, 1280],
    convnext_tiny=[96, 192, 384, 768], shufflenet_v2_x0_5=[24, 24, 48, 96, 192], regnet_x_400mf=[32, 32, 64, 160, 400],
    regnet_y_400mf=[32, 48, 104, 208, 440], swin_t=[96, 192, 384, 768], swin_v2_t=[96, 192, 384, 768],
    googlenet=[64, 192, 480, 832, 1024], inception_v3=[64, 192, 288, 768, 2048])
LOST = dict(alexnet=2, squeezenet1_1=2, inception_v3=4) # cells at the border of maps that are not padded
# name -> strides, and the channels of the whole body's last map
TIMM = {'timm/resnet18': ([2, 4, 8, 16, 32], 512), 'mobilenetv3_small_050': ([2, 4, 8, 16, 32], 288),
        'test_nfnet': ([2, 4, 8, 16, 32], 192), 'test_efficientnet': ([2, 4, 8, 16, 32], 256),
        'convnext_atto': ([4, 8, 16, 32], 320), 'mambaout_femto': ([4, 8, 16, 32], 288),
        'efficientvit_b0': ([4, 8, 16, 32], 128), 'test_vit': ([16], 64), 'test_vit_relpos': ([16], 96),
        'test_maxvit': ([2, 4, 8, 16, 32], 128)}
TIMM = {k: v for k,v in TIMM.items() if timm.is_model(k.removeprefix('timm/'))}   # not all are in the oldest timm

def stir(model):
    "`model` in eval mode, with BatchNorm statistics unlike those at the start"
    for b in model.modules():
        if isinstance(b, nn.BatchNorm2d): b.running_mean.normal_(0, .1); b.running_var.uniform_(.5, 1.5)
    return model.eval()

@lru_cache(None)
def state(name):
    "The torchvision classifier `name`"
    torch.manual_seed(0)
    return stir(get_model(name, **(dict(init_weights=True) if name == 'googlenet' else {})))

def images(enc, size=(77, 99)):
    return torch.randn(1 if enc.input_size else 2, enc.n_in, *(enc.input_size or size),
                       generator=torch.Generator().manual_seed(0))

def encoder_of(model, name, **kwargs):
    "The encoder `name` with the weights of the torchvision classifier `model`, in eval mode"
    enc = create_encoder(name, False, **kwargs)
    enc.load_state_dict({'body.'+k: v for k,v in model.state_dict().items() if 'body.'+k in enc.state_dict()})
    return enc.eval()

def from_inside(model, x):
    """What comes into the pooling of a torchvision classifier, or out of its convolutions where the pooling is a
    function"""
    seen = []
    if hasattr(model, 'layers'):    m,hook = model.layers,'register_forward_hook'
    elif hasattr(model, 'avgpool'): m,hook = model.avgpool,'register_forward_pre_hook'
    elif hasattr(model, 'conv5'):   m,hook = model.conv5,'register_forward_pre_hook'
    else:                           m,hook = model.features,'register_forward_hook'
    with torch.no_grad(), getattr(m, hook)(
        lambda m, x, o=None: seen.append(x[0].clone() if o is None else o.clone())): model(x)
    return seen[0]

def check_maps(enc, lost=0):
    "The maps that `enc` gives for odd, non-square images, which are what it says of itself"
    x = images(enc)
    with torch.no_grad(): maps = enc.eval()(x) if enc.pyramid else [enc.eval()(x)]
    assert ([o.shape[1] for o in maps] == enc.channels and len(maps) == len(enc.strides)
            and enc.strides == sorted(set(enc.strides)))
    for o,s in zip(maps, enc.strides):
        assert (o.shape[0] == len(x)
                and all(abs(n - m/s) < 1+lost for n,m in zip(o.shape[2:], x.shape[2:]))), (o.shape, s)
    return maps

def check_gradients(enc):
    out = enc.train()(images(enc))
    sum(o.sum() for o in (out if enc.pyramid else [out])).backward()
    assert [k for k,p in enc.named_parameters() if p.grad is None] == []

@pytest.mark.parametrize('name,pyramid', [(n, True) for n in FAMILIES] +
    [(n, False) for n in ('resnet18', 'mobilenet_v2', 'densenet121', 'mnasnet0_5', 'shufflenet_v2_x0_5', 'swin_t')])
def test_a_torchvision_encoder_gives_what_the_classifier_computes_says_what_it_is_and_learns_as_a_whole(
        name, pyramid, monkeypatch):
    built = [] # the classifier itself: its modules are the encoder's, so that the weights are the same
    monkeypatch.setattr(encoders, 'get_model', lambda *args, **kw: built.append(get_model(*args, **kw)) or built[0])
    torch.manual_seed(0)
    enc = create_encoder(name, False, pyramid=pyramid)
    stir(built[0])
    strides = [1, 2, 4, 8, 16] if name == 'squeezenet1_1' else [1, 2, 4, 8, 16, 32]
    assert (enc.channels, enc.strides) == ((FAMILIES[name], strides[-len(FAMILIES[name]):]) if pyramid else
                                           (FAMILIES[name][-1:], strides[-1:]))
    assert enc.name == name and enc.input_size is None
    want = from_inside(built[0], images(enc))
    assert_close(check_maps(enc, LOST.get(name, 0))[-1], want.relu() if name == 'densenet121' else want)
    check_gradients(enc)

def test_the_maps_are_those_of_torchvisions_own_feature_extractor():
    from torchvision.models.feature_extraction import create_feature_extractor
    for name,nodes in dict(resnet18=['relu', 'layer1', 'layer2', 'layer3', 'layer4'],
                           mobilenet_v2=[f'features.{i}' for i in (1, 3, 6, 13, 18)],
                           squeezenet1_1=[f'features.{i}' for i in (1, 4, 7, 12)]).items():
        enc = encoder_of(state(name), name)
        with torch.no_grad(): want,came = create_feature_extractor(state(name), nodes)(images(enc)),enc(images(enc))
        assert_close(came, list(want.values()))

def test_swins_inner_maps_have_their_channels_second():
    from torchvision.models.feature_extraction import create_feature_extractor
    enc = encoder_of(state('swin_t'), 'swin_t')
    with torch.no_grad():
        want,came = (create_feature_extractor(state('swin_t'), ['features.1', 'features.3'])(images(enc)),
                     enc(images(enc)))
    for o,w in zip(came, want.values()): assert_close(o, w.permute(0, 3, 1, 2))

@pytest.mark.parametrize('name', TIMM)
def test_a_timm_encoder_says_what_its_maps_are_and_all_its_parameters_learn(name):
    if name == 'efficientvit_b0' and torch.__version__ < '2.9': pytest.skip("it asks torch for the autocast of `meta`")
    strides,c = TIMM[name]
    for pyramid in (True, False):
        enc = create_encoder(name, False, pyramid=pyramid)
        assert enc.strides == (strides if pyramid else strides[-1:]) and (pyramid or enc.channels == [c])
        check_maps(enc)
        check_gradients(enc)
        assert enc.name == name

def test_timms_tokens_become_the_grid_that_timm_itself_makes_of_them():
    for name in ('test_vit', 'deit_tiny_distilled_patch16_224'):
        enc = create_encoder(name, False, pyramid=False).eval()
        with torch.no_grad():
            want = enc.body.forward_intermediates(images(enc), indices=1, norm=True, intermediates_only=True)[0]
        assert_close(enc(images(enc)), want)

def test_timms_channels_last_maps_have_their_channels_second():
    enc = create_encoder('mambaout_femto', False).eval()
    with torch.no_grad(): assert_close(enc(images(enc)), [o.permute(0, 3, 1, 2) for o in enc.body(images(enc))])

def test_a_timm_model_that_gives_no_grid_is_refused():
    with pytest.raises(ValueError, match=r"timm's pit_ti_224 returns \(2, 1, 256\) for an image of \(224, 224\) "
                                         r"pixels.*pyramid=True, or another"):
        create_encoder('pit_ti_224', False, pyramid=False)

def test_timms_last_map_has_the_head_convolution_and_no_classifier():
    enc = create_encoder('tf_efficientnet_lite0', False, pyramid=False)
    assert (enc.channels == [1280] and 'body.conv_head.weight' in enc.state_dict()
            and 'body.classifier.weight' not in enc.state_dict())
    enc = create_encoder('tf_efficientnet_lite0', False)
    assert enc.channels == [16, 24, 40, 112, 320] and 'body.conv_head.weight' not in enc.state_dict()

def test_creation_touches_neither_the_weights_nor_the_batchnorm_statistics_nor_the_random_numbers():
    torch.manual_seed(0); model = get_model('resnet18'); after = torch.rand(1)
    torch.manual_seed(0); enc = create_encoder('resnet18', False)
    assert torch.equal(torch.rand(1), after) and enc.training
    for k,v in enc.body.state_dict().items(): assert torch.equal(v, model.state_dict()[k]), k
    for b in create_encoder('test_efficientnet', False).modules():
        if isinstance(b, nn.BatchNorm2d):
            assert b.num_batches_tracked == 0 and (b.running_mean == 0).all() and (b.running_var == 1).all()

def test_an_encoder_can_be_built_on_meta():
    with torch.device('meta'): encs = [create_encoder(n, False) for n in ('resnet18', 'convnext_atto')]
    assert [e.channels[-1] for e in encs] == [512, 320] and all(p.is_meta for e in encs for p in e.parameters())

def test_an_encoder_is_created_under_no_grad_too():
    with torch.no_grad(): assert create_encoder('squeezenet1_1', False).channels[-1] == 512

@pytest.mark.parametrize('name,pyramid', [('resnet18', True), ('shufflenet_v2_x0_5', False), ('convnext_atto', True),
                                          ('test_vit', False), ('pit_ti_224', True)])
def test_an_encoder_can_be_copied_pickled_and_filled_from_its_state_dict(name, pyramid):
    enc = create_encoder(name, False, pyramid=pyramid).eval()
    other = create_encoder(name, False, pyramid=pyramid).eval()
    other.load_state_dict(enc.state_dict())
    with torch.no_grad():
        want = enc(images(enc))
        for e in (copy.deepcopy(enc), pickle.loads(pickle.dumps(enc)), other): assert_close(e(images(enc)), want)

def test_a_builder_is_as_good_as_its_name_and_timms_is_meant_by_its_prefix():
    assert create_encoder(torchvision.models.resnet18, False).name == 'resnet18'
    assert isinstance(create_encoder('resnet18', False), encoders.TorchvisionEncoder)
    assert isinstance(create_encoder('timm/resnet18', False), encoders.TimmEncoder)
    assert create_encoder('timm/convnext_atto', False).name == 'convnext_atto'

def test_list_encoders_has_torchvisions_classifiers_and_nothing_else():
    names = list_encoders()
    assert set(FAMILIES) <= set(names) <= set(list_models()) and len(names) > 60
    assert not {'vit_b_16', 'maxvit_t', 'fcn_resnet50', 'quantized_resnet18', 'mvit_v1_b'} & set(names)

def test_mean_and_std_are_what_the_weights_want():
    assert (create_encoder('resnet18', False).mean == (.485, .456, .406)
            and create_encoder('resnet18', False).std == (.229, .224, .225))
    for name in ('test_vit', 'tf_efficientnet_lite0'):
        enc,cfg = create_encoder(name, False),timm.get_pretrained_cfg(name)
        assert enc.mean == cfg.mean and enc.std == cfg.std

def test_googlenet_normalized_by_its_mean_and_std_sees_what_its_pretrained_classifier_sees():
    enc,x = create_encoder('googlenet', False),torch.rand(1, 3, 4, 4)
    norm = lambda m, s: (x-torch.tensor(m)[:,None,None])/torch.tensor(s)[:,None,None]
    model = state('googlenet')
    model.transform_input = True
    want = model._transform_input(norm((.485, .456, .406), (.229, .224, .225)))
    model.transform_input = False
    assert_close(norm(enc.mean, enc.std), want)

@pytest.mark.parametrize('name', ['resnet18', 'densenet121', 'googlenet', 'test_efficientnet', 'test_vit'])
def test_images_may_have_other_channels(name):
    enc = create_encoder(name, False, n_in=4)
    assert enc(images(enc))[-1].shape[1] == enc.channels[-1]

# --- weights from files

def save(tmp_path, sd, name='w.pth'):
    (save_file if name.endswith('safetensors') else torch.save)(sd, tmp_path/name)
    return tmp_path/name

def holds(enc, sd):
    return all(torch.equal(v, sd[k.removeprefix('body.')])
               for k,v in enc.state_dict().items() if 'num_batches' not in k)

@pytest.mark.parametrize('kind', ['whole', 'str', 'state_dict', 'model', 'both', 'module.', 'module.model.', 'body.',
                                  'safetensors', 'no counts', 'features', 'half'])
def test_weights_come_from_every_kind_of_file(tmp_path, kind):
    sd = {k: v.clone() for k,v in state('mobilenet_v2').state_dict().items()}
    half = {k: v.half() if v.is_floating_point() else v for k,v in sd.items()}
    saved = {'state_dict': {'state_dict': sd, 'epoch': 3}, 'model': {'model': sd, 'opt': {}},
             'both': {'state_dict': {'model': sd}},
             'no counts': {k: v for k,v in sd.items() if 'num_batches' not in k}, 'half': half,
             'features': {k: v for k,v in sd.items() if k.startswith('features.')}}.get(kind, sd)
    if kind.endswith('.'): saved = {kind+k: v for k,v in sd.items() if kind != 'body.' or k.startswith('features')}
    fname = save(tmp_path, saved, 'w.safetensors' if kind == 'safetensors' else 'w.pth')
    enc = create_encoder('mobilenet_v2', str(fname) if kind == 'str' else fname)
    assert holds(enc, {k: v.float() if v.is_floating_point() else v for k,v in half.items()} if kind == 'half' else sd)

def test_the_files_of_a_classifier_fit_that_ends_in_other_classes_or_has_auxiliary_heads(tmp_path):
    sd = {**state('resnet18').state_dict(), 'fc.weight': torch.zeros(7, 512), 'fc.bias': torch.zeros(7)}
    assert holds(create_encoder('resnet18', save(tmp_path, sd), pyramid=False), sd)
    sd = state('googlenet').state_dict()
    assert any(k.startswith('aux') for k in sd) and holds(create_encoder('googlenet', save(tmp_path, sd)), sd)

def test_shufflenets_files_may_end_before_conv5(tmp_path):
    sd = {k: v for k,v in state('shufflenet_v2_x0_5').state_dict().items() if not k.startswith(('conv5', 'fc'))}
    assert holds(create_encoder('shufflenet_v2_x0_5', save(tmp_path, sd)), sd)

def test_an_encoders_own_state_dict_comes_back_from_its_file_in_either_mode(tmp_path):
    for name in ('resnet18', 'convnext_atto', 'test_vit'): # timm's `features_only` renamed the modules of the last two
        enc = create_encoder(name, False).eval()
        again = create_encoder(name, save(tmp_path, enc.state_dict())).eval()
        with torch.no_grad(): assert_close(again(images(enc)), enc(images(enc)), rtol=0, atol=0)
    enc = create_encoder('convnext_atto', False)
    last = create_encoder('convnext_atto', save(tmp_path, enc.state_dict()), pyramid=False).eval()
    with torch.no_grad(): assert_close(last(images(enc)), enc.eval()(images(enc))[-1])

@pytest.mark.parametrize('name', ['resnet18', 'convnext_atto'])
def test_an_encoder_with_one_map_takes_the_files_of_the_whole_and_its_own(tmp_path, name):
    enc = create_encoder(name, False).eval()
    part = create_encoder(name, save(tmp_path, enc.state_dict()), stride=16).eval()
    again = create_encoder(name, save(tmp_path, part.state_dict()), stride=16).eval()
    assert part.strides == [16] and len(part.state_dict()) < len(enc.state_dict())
    with torch.no_grad():
        for o in (part, again): assert_close(o(images(enc)), enc(images(enc))[enc.strides.index(16)], rtol=0, atol=0)
    with pytest.raises(ValueError, match='missing'): create_encoder(name, save(tmp_path, part.state_dict()))

def test_torchvisions_resnet_file_gives_the_same_maps_in_timms_resnet(tmp_path):
    fname = save(tmp_path, state('resnet18').state_dict())
    a,b = (create_encoder(n, fname).eval() for n in ('resnet18', 'timm/resnet18'))
    with torch.no_grad(): assert_close(a(images(a)), b(images(b)))

@pytest.mark.parametrize('name', [n for n in TIMM if n in ('convnext_atto', 'test_vit', 'mobilenetv3_small_050',
                                                           'test_nfnet', 'test_vit_relpos')])
def test_a_timm_classifiers_file_fits_in_both_modes_and_gives_what_the_classifier_computes(tmp_path, name):
    torch.manual_seed(1)
    model = timm.create_model(name).eval()
    fname = save(tmp_path, model.state_dict())
    enc,last = (create_encoder(name, fname, pyramid=p).eval() for p in (True, False))
    with torch.no_grad():
        x = images(enc)
        came,want = last(x),model.forward_features(x)
        if want.ndim == 3: want = want[:, want.shape[1]-came[0,0].numel():].transpose(1, 2).reshape(came.shape)
        assert_close(came, want)
        if name in ('convnext_atto', 'mobilenetv3_small_050'): assert_close(enc(x)[-1], want)

@pytest.mark.parametrize('name', ['resnet18', 'timm/resnet18'])
def test_colour_weights_are_adapted_to_other_channels_so_that_grey_images_look_the_same(tmp_path, name):
    fname = save(tmp_path, state('resnet18').state_dict())
    grey  = torch.rand(1, 1, 64, 64)
    want  = create_encoder(name, fname).eval()(grey.expand(-1, 3, -1, -1))
    for n_in in (1, 2, 6): # summed for one channel; repeated and scaled by 3/n_in for more
        enc = create_encoder(name, fname, n_in=n_in).eval()
        if n_in != 2: assert_close(enc(grey.expand(-1, n_in, -1, -1)), want, rtol=1e-3, atol=1e-4)
        else: assert_close(enc.body.conv1.weight, state('resnet18').conv1.weight[:,:2]*1.5)

def test_pretrained_is_torchvisions_default_and_timms_own(monkeypatch):
    sd,asked = state('resnet18').state_dict(),[]
    monkeypatch.setattr(torchvision.models._api, 'load_state_dict_from_url', lambda url, **kw: asked.append(url) or sd)
    enc = create_encoder('resnet18')
    assert asked == [torchvision.models.ResNet18_Weights.DEFAULT.url] and holds(enc, sd)
    assert_close(create_encoder('resnet18', n_in=1).body.conv1.weight, sd['conv1.weight'].sum(1, keepdim=True))
    torch.manual_seed(2)
    model,real = timm.create_model('test_efficientnet'),timm.create_model
    monkeypatch.setattr(timm, 'create_model', lambda n, p=False, **kw: real(
        n, p, **kw, pretrained_cfg_overlay=dict(state_dict=dict(model.state_dict()))))
    assert holds(create_encoder('test_efficientnet', True), model.state_dict())

@pytest.mark.parametrize('name', ['resnet18', 'timm/resnet18'])
def test_a_download_that_fails_says_why_and_what_to_do(monkeypatch, name):
    def fail(*args, **kwargs): raise URLError('no route')
    monkeypatch.setattr(torchvision.models._api, 'load_state_dict_from_url', fail)
    monkeypatch.setattr(timm.models._builder, 'load_state_dict_from_hf', fail)
    with pytest.raises(OSError, match="resnet18 could not be downloaded .*no route.*without a network, set "
                                      "`pretrained` to the path") as e: create_encoder(name)
    assert isinstance(e.value.__cause__, URLError)

# --- what is refused

def test_a_missing_file_raises_and_is_named(tmp_path):
    for p in (tmp_path/'none.pth', tmp_path, 'DEFAULT'):
        with pytest.raises(FileNotFoundError, match=f"no file {p}; expected `pretrained` as True, False or the path "
                                                    "of a state dict"): create_encoder('resnet18', p)
    for p in (None, 1, torchvision.models.ResNet18_Weights.DEFAULT):
        with pytest.raises(ValueError, match='pretrained: expected True, False, or the path of a state dict, got'):
            create_encoder('resnet18', p)

def test_a_file_that_is_no_state_dict_raises_and_is_named(tmp_path):
    (tmp_path/'text.pth').write_text('hello'); (tmp_path/'text.safetensors').write_text('hello')
    (tmp_path/'empty.pth').touch()
    torch.save(nn.Linear(1, 1), tmp_path/'module.pth')
    for n in ('text.pth', 'text.safetensors', 'empty.pth', 'module.pth'):
        with pytest.raises(ValueError, match=f"{n} cannot be read as a state dict .*torch.save"):
            create_encoder('squeezenet1_1', tmp_path/n)
    with pytest.raises(ValueError, match=r"w.pth holds a list, not a state dict"):
        create_encoder('squeezenet1_1', save(tmp_path, [torch.ones(1)]))
    with pytest.raises(ValueError, match=r"w.pth holds a int under 'epoch', not a state dict"):
        create_encoder('squeezenet1_1', save(tmp_path, {'epoch': 3}))

def test_weights_that_do_not_fit_raise_with_file_arch_counts_and_names(tmp_path):
    sd = dict(state('resnet18').state_dict())
    for k in ('conv1.weight', 'bn1.weight', 'bn1.bias', 'bn1.running_mean'): del sd[k]
    sd.update({'layer9.weight': torch.ones(1), 'layer1.0.conv1.weight': torch.ones(64, 32, 3, 3)})
    with pytest.raises(ValueError) as e: create_encoder('resnet18', save(tmp_path, sd))
    for s in ('w.pth does not hold the weights of resnet18', '4 missing (conv1.weight; bn1.weight; bn1.bias; ...)',
              '1 unexpected (layer9.weight)',
              '1 of another shape (layer1.0.conv1.weight: expected (64, 64, 3, 3), got (64, 32, 3, 3))',
              'the architecture of the file'): assert s in str(e.value)

def test_another_architectures_file_is_refused(tmp_path):
    fname = save(tmp_path, state('resnet18').state_dict())
    for name in ('mobilenet_v2', 'convnext_atto', 'test_efficientnet'):
        with pytest.raises(ValueError, match=f"w.pth does not hold the weights of {name}: "
                                             r"\d+ missing .* \d+ unexpected"): create_encoder(name, fname)

def test_an_unknown_name_raises_with_the_nearest_of_both_libraries():
    with pytest.raises(ValueError, match="no encoder 'resnet81'; did you mean .*'resnet18'"):
        create_encoder('resnet81', False)
    with pytest.raises(ValueError, match="did you mean .*'convnext_atto'"): create_encoder('convnext_ato', False)
    with pytest.raises(ValueError, match="no encoder 'timm/mobilenet_v3_small'; did you mean .*'mobilenetv3_small"):
        create_encoder('timm/mobilenet_v3_small', False)
    with pytest.raises(ValueError, match=r"no encoder '§§§'; `list_encoders\(\)` lists torchvision's"):
        create_encoder('§§§', False)
    with pytest.raises(ValueError, match="timm has no weights 'resnet18.mine'; this architecture has "
                                         r"\[.*'resnet18.a1_in1k'"):
        create_encoder('resnet18.mine', False)

@pytest.mark.parametrize('name', sorted(encoders._AT_TIMM))
def test_torchvisions_transformers_are_refused_with_a_timm_name_that_exists(name):
    with pytest.raises(ValueError, match=f"torchvision's {name} cannot be split into feature maps; "
                                         "use timm's '(.*)'") as e: create_encoder(name, False)
    assert str(e.value).split("'")[-2] in timm.list_models()

def test_what_is_no_classifier_of_torchvision_is_refused():
    for name in ('fcn_resnet50', 'fasterrcnn_resnet50_fpn', 'quantized_resnet18', 'mvit_v1_b'):
        with pytest.raises(ValueError, match=f"torchvision's {name} is not a classifier of images; "
                                             "expected one of"): create_encoder(name, False)
    def mine(): pass
    for arch in (mine, torchvision.models.quantization.resnet18, nn.Linear(1, 1), None, 18):
        with pytest.raises(ValueError, match="is not a builder of torchvision.models; .*as builder or by name, or a "
                                             "timm name"): create_encoder(arch, False)

# --- real weights

@pytest.mark.slow
@pytest.mark.skipif('VISION_TASKS_WEIGHTS' not in os.environ,
                    reason='VISION_TASKS_WEIGHTS names no folder of encoder weights')
@pytest.mark.parametrize('name,fname', [('mobilenet_v2', 'mobilenet_v2_imagenet_features_tv.pth'),
                                        ('tf_efficientnet_lite0', 'tf_efficientnet_lite0_timm.pth'),
                                        ('shufflenet_v2_x0_5', 'shufflenet_v2_x0_5_stages_tv_imagenetnorm.pth')])
def test_real_weights_fill_an_encoder_in_both_modes(name, fname):
    fname = Path(os.environ['VISION_TASKS_WEIGHTS'])/fname
    sd = torch.load(fname, weights_only=True)
    for pyramid in (True, False):
        enc = create_encoder(name, fname, pyramid=pyramid)
        assert holds(enc, sd)
        check_maps(enc)
