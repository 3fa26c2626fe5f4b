"Semantic segmentation: what only it has, and what it says to bad input"
import warnings
from contextlib import nullcontext
from dataclasses import replace
import numpy as np, pytest, torch
import torch.nn.functional as F
from fastai.vision.all import RandomResizedCrop, Resize, TensorImage, Transform, load_learner, set_seed
from PIL import Image
from sklearn.metrics import confusion_matrix
from torch import nn
from vision_tasks.data.annotation import Annotation
from vision_tasks.data.errors import AnnotationError
from vision_tasks.data.class_masks import decode_class_mask
from vision_tasks.data.synthetic import SHAPE_CODES, draw_shapes
from vision_tasks.data.transforms import JointTransform
from vision_tasks.models.registry import arch_facts
from vision_tasks.models.segmentation.light_unet import LightUnet
from vision_tasks.segmentation import AuxLoss, SEGMENTATION, segmentation_dls, segmentation_learner

KW = dict(arch='dynamic_unet', encoder='test_resnet', pretrained=False)

def masked(anns): return [Annotation(a.path, a.size, mask=a.mask) for a in anns]

@pytest.fixture(scope='module')
def anns(shapes): return masked(shapes)

def dls_of(anns, **kw):
    return segmentation_dls(anns, **{**dict(vocab=SHAPE_CODES, size=64, bs=8, num_workers=0, device='cpu'), **kw})
def learner_of(dls, **kw): return segmentation_learner(dls, **{**KW, **kw})

@pytest.fixture
def learn(anns, tmp_path):
    set_seed(0)
    learn = learner_of(dls_of(anns, path=tmp_path))
    with learn.no_bar(), learn.no_logging(): yield learn

class Shift(Transform):
    "0 to 1 becomes -.5 to .5"
    order = 100
    def encodes(self, x:TensorImage): return x - .5

class Local(nn.Module):
    "A fully convolutional net that sees one pixel around each"
    def __init__(self, n_out, padding='same'):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, n_out, 3, padding=1 if padding == 'same' else 0)
    def forward(self, x): return self.conv(x)*3

@pytest.fixture
def local(anns):
    with pytest.warns(UserWarning, match="Local has no attribute `encoder`"):
        learn = segmentation_learner(dls_of(anns), Local(5), pretrained=False)
    with learn.no_bar(), learn.no_logging(): yield learn

# --- recipes

@pytest.mark.filterwarnings('ignore:.*pretrained')
@pytest.mark.parametrize('arch', ['fcn8s', 'deeplab_v1', 'dilatednet'])
def test_the_recipes_of_nets_on_a_vgg16_without_batchnorm_spare_its_pretrained_convolutions(anns, arch):
    kw = arch_facts(arch, 'segmentation')['kw']
    net = segmentation_learner(dls_of(anns), arch, arch_kwargs=kw, pretrained=False)
    assert net.recipe.lr_mult == 1.
    r = SEGMENTATION.recipe.replace(**net.model.recipe)
    assert 1e-5 <= r.base_lr/2/r.lr_mult <= 1e-4

def test_the_default_is_a_light_unet_with_a_recipe_of_its_own(anns):
    learn = segmentation_learner(dls_of(anns), encoder='test_resnet', pretrained=False)
    assert isinstance(learn.model, LightUnet) and learn.recipe.base_lr == arch_facts(
        'light_unet', 'segmentation')['recipe']['base_lr'] > SEGMENTATION.recipe.base_lr

# --- data

@pytest.mark.parametrize('item_tfms', [None, Resize(64, 'squish'), Resize((48, 64), 'pad', pad_mode='zeros')], ids=str)
def test_targets_are_class_indices_as_long_and_void_where_nothing_is(anns, item_tfms):
    x,y = dls_of(anns, item_tfms=item_tfms).train.one_batch()
    assert y.dtype == torch.int64 and y.shape[-2:] == x.shape[-2:] and set(y.unique().tolist()) <= {*range(5), 255}

def test_valid_targets_of_squished_pictures_are_the_masks(anns):
    dls = dls_of(anns)
    y = dls.valid.one_batch()[1]
    for m,a in zip(y, dls.valid.items): assert np.array_equal(m, decode_class_mask(a.mask))

@pytest.mark.train
def test_void_teaches_nothing(anns):
    "The half that is void has no gradient: another picture there gives the same weights"
    half = [replace(a, mask=np.where(np.arange(64)[:,None] < 32, 255, decode_class_mask(a.mask)).astype(np.uint8))
            for a in anns]
    learn = learner_of(dls_of(half))
    x,y = learn.dls.valid.one_batch()
    p = learn.model.eval()(x)
    p.retain_grad(); learn.loss_func(p, y).backward()
    assert (p.grad[:,:,:32] == 0).all() and (p.grad[:,:,32:] != 0).any()
    void = [replace(a, mask=np.full((64, 64), 255, np.uint8)) for a in anns]
    learn = learner_of(dls_of(void))
    with learn.no_bar(), learn.no_logging():
        learn.fit(1, 1e-3)
        assert learn.evaluate()['valid_loss'] == 0

# --- scores and answers, in pixels of the files

@pytest.mark.parametrize('item_tfms', [JointTransform((64, 48)), JointTransform(64, valid='pad'),
                                       JointTransform(64, valid='crop'), Resize((48, 64), 'squish'),
                                       Resize(64, 'pad', pad_mode='zeros')], ids=str)
def test_answers_lie_where_the_pixels_are(tmp_path, item_tfms):
    "A net that tells black from white: the answer is the picture, whatever made the input; unseen pixels are void"
    class Bright(nn.Module):
        def __init__(self): super().__init__(); self.scale = nn.Parameter(torch.tensor(99.))
        def forward(self, x): return torch.stack([-x[:,0], x[:,0]], 1)*self.scale
    anns = []
    for i,(w,h) in enumerate([(90, 60), (50, 120), (64, 64), (200, 100)]):
        im = np.zeros((h, w, 3), np.uint8); im[h//4:h//2, w//3:] = 255
        Image.fromarray(im).save(tmp_path/f'{i}.png')
        anns.append(Annotation(tmp_path/f'{i}.png', (w, h), mask=(im[...,0] > 0).astype(np.uint8)))
    dls = segmentation_dls(anns, ['dark', 'bright'], bs=2, num_workers=0, device='cpu', item_tfms=item_tfms,
                           batch_tfms=[])
    with pytest.warns(UserWarning, match="no attribute `encoder`"):
        learn = segmentation_learner(dls, Bright(), pretrained=False)
    learn.dls.valid.after_batch.add(Shift())
    with learn.no_bar():
        for a,b in zip(anns, learn.annotate(anns)):
            assert b.mask.shape == a.mask.shape and b.mask.dtype == np.uint8
            seen = b.mask != 255
            assert seen.all() == ('crop' not in str(getattr(item_tfms, 'valid', ''))) or a.size == (64, 64)
            assert seen.mean() >= .4 and (b.mask == a.mask)[seen].mean() > .95

@pytest.mark.train
def test_evaluate_counts_in_pixels_of_the_files(tmp_path):
    anns = masked(draw_shapes(tmp_path/'large', n=12, size=(120, 90)))
    learn = learner_of(dls_of(anns, size=(64, 48)))
    with learn.no_bar(), learn.no_logging():
        learn.fit_one_cycle(3, 5e-3)
        items,s = learn.dls.valid.items,learn.evaluate()
        t,p = (np.concatenate([decode_class_mask(a.mask).ravel() for a in o]) for o in (items, learn.annotate(items)))
        cm = confusion_matrix(t, p, labels=range(5))
        assert np.array_equal(learn.confusion().to_numpy(), cm) and cm.sum() == len(items)*120*90
        assert s['pixel_accuracy'] == pytest.approx((t == p).mean())
        df = learn.evaluate_per_class()
        np.testing.assert_allclose(df.iou, np.diag(cm)/(cm.sum(0)+cm.sum(1)-np.diag(cm)), equal_nan=True)
        assert s['miou'] == pytest.approx(np.nanmean(df.iou)) and df.n.tolist() == cm.sum(1).tolist()

@pytest.mark.parametrize('at_once', [1, 2**26])
def test_labels_class_by_class_are_those_of_all_classes_at_once(learn, monkeypatch, at_once):
    monkeypatch.setattr('vision_tasks.segmentation.AT_ONCE', at_once)
    p = torch.rand(5, 64, 64)
    want = F.interpolate(p[None], (200, 300), mode='bilinear')[0].argmax(0)
    assert torch.equal(learn.labels_in_file(p, (300, 200)).long(), want)

# --- tiles, mirrors, postprocess

@pytest.mark.parametrize('tile', [32, (48, 32), 64])
def test_tiles_answer_as_the_whole_picture_for_a_net_that_sees_less_than_an_eighth_of_a_tile(local, tmp_path, tile):
    a, = masked(draw_shapes(tmp_path, n=1, size=(150, 110), seed=3))
    im = local._pixels_of(a)
    whole, = local._predict_tiles(im[None], False)
    got = local.tiled_probs(im, tile)
    torch.testing.assert_close(got, whole, atol=1e-5, rtol=0)
    torch.testing.assert_close(got.sum(0), torch.ones(110, 150), atol=1e-5, rtol=0)
    assert np.array_equal(local.annotate(a, tile=tile)[0].mask, whole.argmax(0))

def test_tiles_of_a_net_without_padding_cover_the_borders_too(anns, tmp_path):
    with pytest.warns(UserWarning): learn = segmentation_learner(dls_of(anns), Local(5, 'valid'), pretrained=False)
    a, = masked(draw_shapes(tmp_path, n=1, size=(90, 70), seed=3))
    im = learn._pixels_of(a)
    whole, = learn._predict_tiles(im[None], False)
    got = learn.tiled_probs(im, 34)
    assert whole.shape == (5, 68, 88) and got.shape == (5, 70, 90)
    torch.testing.assert_close(got[:, 1:-1, 1:-1], whole, atol=1e-5, rtol=0)
    with learn.no_bar():
        said = learn.annotate(anns[0])[0].mask       # without tiles the border was not looked at
        assert (said[0] == 255).all() and (said[1:-1, 1:-1] != 255).all()

def test_a_picture_smaller_than_a_tile_is_answered_too(local, tmp_path):
    a, = masked(draw_shapes(tmp_path, n=1, size=(20, 30), seed=3))
    assert local.annotate(a, tile=64)[0].mask.shape == (30, 20)
    with pytest.raises(ValueError, match="tile is .* 16 or more; got 8"): local.annotate(a, tile=8)

class Wide(nn.Module):
    "Class 1 for what is bright and 7 to 9 pixels of the network's input wide: a net that knows a size"
    def __init__(self): super().__init__(); self.high = nn.Parameter(torch.tensor(5.))
    def forward(self, x):
        on = (x.mean(1, keepdim=True) > 0).float()
        def opened(k):      # pixels in a run of k or more
            run = F.conv2d(F.pad(on, (k-1, k-1)), torch.ones(1, 1, 1, k)) == k
            return F.max_pool2d(run.float(), (1, k), 1)
        hit = opened(7)*(1 - opened(10))
        return torch.cat([1-hit, hit], 1)*self.high

def test_tiles_can_be_at_the_scale_of_validation_and_a_warning_names_both_scales(tmp_path):
    "Bars of 32 x 40 pixels in images of 256 x 128 that are squished to 64 x 64, where a bar is 8 x 20"
    anns = []
    for i in range(4):
        mask = np.zeros((128, 256), np.uint8); mask[30:70, 40+32*i:72+32*i] = 1
        Image.fromarray(mask*255).convert('RGB').save(tmp_path/f'{i}.png')
        anns.append(Annotation(tmp_path/f'{i}.png', (256, 128), mask=mask, split='valid' if i > 1 else 'train'))
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        learn = segmentation_learner(dls_of(anns, vocab=['off', 'on'], size=64, bs=2), Wide(), pretrained=False)
    def iou(mask): return ((mask == 1) & (anns[3].mask == 1)).sum()/((mask == 1) | (anns[3].mask == 1)).sum()
    with learn.no_bar():
        assert learn.valid_scale() == (.25, .5)
        with pytest.warns(UserWarning, match=r"validated at 0.25 \(x\) and 0.5 \(y\), .* 4 times as wide and 2 times "
                                             r"as high .* scale=\(0.25, 0.5\)"):
            assert iou(learn.annotate(anns[3], tile=64)[0].mask) == 0          # 32 pixels wide, which it does not know
        with warnings.catch_warnings():
            warnings.simplefilter('error')
            assert iou(learn.annotate(anns[3])[0].mask) > .95
            tiled = learn.annotate(anns[3], tile=32, scale=(.25, .5))[0].mask
            assert tiled.shape == (128, 256) and iou(tiled) > .95
            assert iou(learn.annotate(anns[3], tile=64, scale=1)[0].mask) == 0
        for scale in (0, -1, (1, 2, 3), float('nan'), 'half'):
            with pytest.raises(ValueError, match="scale: expected one number above 0 and up to 100, or two"):
                learn.annotate(anns[3], tile=64, scale=scale)
        with pytest.raises(ValueError, match="scale=0.5 is for tiles: pass `tile`"): learn.annotate(anns[3], scale=.5)

def test_tiles_at_about_the_scale_of_validation_are_no_warning(local, anns):
    assert local.valid_scale() == pytest.approx((1, 1), abs=.5)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        local.annotate(anns[0], tile=32)

def test_mirrored_answers_are_turned_back_before_they_are_averaged(local, anns):
    im = local._pixels_of(anns[0])
    p,q = local._predict_tiles(im[None], False)[0],local._predict_tiles(im[None].flip(-1), False)[0]
    torch.testing.assert_close(local._predict_tiles(im[None], True)[0], (p + q.flip(-1))/2)
    torch.testing.assert_close(local.tiled_probs(im, 32, tta=True), (p + q.flip(-1))/2, atol=1e-5, rtol=0)

def test_postprocess_sees_probabilities_and_picture_of_the_files_size(learn, tmp_path):
    a, = masked(draw_shapes(tmp_path, n=1, size=(100, 80)))
    seen = []
    def third(probs, im):
        seen.append((probs.shape, probs.sum(0), im.shape, im.dtype))
        return F.one_hot(torch.full(probs.shape[-2:], 3), 5).permute(2, 0, 1).float()
    assert (learn.annotate(a, postprocess=third)[0].mask == 3).all()
    assert (learn.annotate(a, postprocess=third, tile=64)[0].mask == 3).all()
    for shape,total,im,dtype in seen:
        assert shape == (5, 80, 100) and im == (3, 80, 100) and dtype == torch.uint8
        torch.testing.assert_close(total, torch.ones(80, 100))
    with pytest.raises(ValueError, match=r"postprocess gives \(80, 100\); expected a tensor like its first argument"):
        learn.annotate(a, postprocess=lambda p, im: p[0])

# --- learner

@pytest.mark.train
@pytest.mark.parametrize('loss', ['ce', 'focal', 'dice', 'ce_dice'])
def test_losses_by_name_train(anns, loss):
    learn = learner_of(dls_of(anns), loss_func=loss)
    before = learn.model.score[0].weight.clone()
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-3)
    assert np.isfinite(learn.recorder.values[-1]).all() and not torch.equal(before, learn.model.score[0].weight)

@pytest.mark.train
def test_an_auxiliary_loss_is_added_when_training_and_only_then(anns):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder,self.aux = nn.Conv2d(3, 5, 1),nn.Conv2d(3, 5, 1)
        def forward(self, x): return (self.encoder(x), self.aux(x)) if self.training else self.encoder(x)
    for weight,moved in ((.5, True), (0., False)):
        learn = segmentation_learner(dls_of(anns), Two(), pretrained=False, aux_weight=weight, wd=0.)
        before = learn.model.aux.weight.clone()
        with learn.no_bar(), learn.no_logging():
            learn.fit(1, 1e-2)
            assert torch.equal(before, learn.model.aux.weight) != moved and np.isfinite(learn.evaluate()['valid_loss'])
    assert any(isinstance(cb, AuxLoss) for cb in learn.cbs)

@pytest.mark.train
@pytest.mark.parametrize('arch', ['deeplabv3_mobilenet_v3_large', 'lraspp_mobilenet_v3_large', 'lraspp', 'unet'])
def test_nets_by_name_train_and_answer(anns, arch):
    kw = dict(unet=dict(arch_kwargs=dict(width=.0625, padding='same')),
              lraspp=dict(encoder='test_efficientnet')).get(arch, {})
    ctx = pytest.warns(UserWarning, match="no attribute `encoder`") if arch == 'unet' else nullcontext()
    with ctx: learn = segmentation_learner(dls_of(anns[:12], size=(48, 32), bs=4), arch, **{'pretrained': False, **kw})
    with learn.no_bar(), learn.no_logging():
        learn.fit(1, 1e-3)
        assert np.isfinite(learn.evaluate()['miou']) and learn.annotate(anns[0])[0].mask.shape == (64, 64)

@pytest.mark.train
def test_a_net_of_segmentation_models_pytorch_is_taken(anns):
    smp = pytest.importorskip('segmentation_models_pytorch')
    learn = segmentation_learner(dls_of(anns[:12], bs=4), smp.Unet('resnet18', encoder_weights=None, classes=5),
                                 pretrained=False)
    with learn.no_bar(), learn.no_logging():
        learn.fit(1, 1e-3)
        assert len(learn.splitter(learn.model)) == 3 and np.isfinite(learn.evaluate()['miou'])

@pytest.mark.train
def test_it_learns_shapes(anns, tmp_path):
    set_seed(0)
    anns = masked(draw_shapes(tmp_path, n=60, size=64))
    learn = learner_of(dls_of(anns))
    with learn.no_bar(), learn.no_logging():
        learn.fit_one_cycle(6, 1e-2)
        assert learn.evaluate()['miou'] > .35       # background alone is .18; the worst of three seeds .67

def test_an_exported_learner_answers_the_same(learn, anns, tmp_path):
    learn.export(tmp_path/'l.pkl')
    with (l := load_learner(tmp_path/'l.pkl')).no_bar():
        assert (l.annotate(anns[1])[0].mask == learn.annotate(anns[1])[0].mask).mean() > .999

# --- bad input

def test_bad_data_are_told_before_training(anns, tmp_path):
    m = decode_class_mask(anns[0].mask).copy(); m[:2, :5] = 9; m[5, 5] = 77
    def with_mask(m): return dls_of([replace(anns[0], mask=m), *anns[1:]])
    with pytest.raises(AnnotationError, match=r"0000.png: its mask has 9 \(10 pixels\), 77 \(1 pixels\), but there "
                                              "are 5 classes, 0 to 4, and 255 for void"): with_mask(m)
    with pytest.raises(AnnotationError, match="0000.png: no class mask"): with_mask(None)
    Image.new('L', (9, 9)).save(tmp_path/'small.png')
    with pytest.raises(AnnotationError, match="small.png"): with_mask(tmp_path/'small.png')
    with pytest.raises(ValueError, match="vocab: expected the names of the classes, each once"):
        dls_of(anns, vocab=['a']*2)
    with pytest.raises(AnnotationError, match="the data set is empty"): dls_of([])
    later = dls_of([*anns[:3], replace(anns[0], mask=m)], check=False, splitter=lambda a: ([0, 3], [1]))
    with pytest.raises(AnnotationError, match=r"9 \(10 pixels\)"): later.train.one_batch()

def test_bad_arguments_of_the_learner_are_told(anns):
    dls = dls_of(anns)
    with pytest.raises(ValueError, match="no loss is called 'dise'; did you mean 'dice'"):
        learner_of(dls, loss_func='dise')
    with pytest.raises(ValueError, match="segmentation has no architecture 'unett'.*did you mean 'unet'"):
        segmentation_learner(dls, 'unett')
    with pytest.raises(ValueError, match="unet: .*unexpected keyword.*encoder"):
        segmentation_learner(dls, 'unet', encoder='resnet18', pretrained=False)
    with pytest.raises(ValueError, match=r"the model gives \(1, 3, 64, 64\) for an image of \(64, 64\); expected"):
        segmentation_learner(dls, nn.Conv2d(3, 3, 1), pretrained=False)
    for stride in (2, 8):
        with pytest.raises(ValueError, match=r"the model gives logits of .* image of \(64, 64\) .*F.interpolate"):
            segmentation_learner(dls, nn.Conv2d(3, 5, stride, stride), pretrained=False)
    with pytest.raises(ValueError, match="a U-Net with padding='valid' takes heights and widths of 16k"):
        segmentation_learner(dls, 'unet')

def test_a_transform_that_cannot_be_undone_is_refused_when_the_learner_is_made(anns):
    with pytest.raises(ValueError, match="RandomResizedCrop.* cannot be undone"):
        learner_of(dls_of(anns, item_tfms=RandomResizedCrop(64)))

def test_masks_that_are_missing_or_broken_are_told(anns, tmp_path):
    (tmp_path/'broken.png').write_bytes(b'no png')
    for name in ('gone.png', 'broken.png'):
        with pytest.raises(AnnotationError, match=f"0000.png: .*{name}.*fix its mask, or drop the image"):
            dls_of([replace(anns[0], mask=tmp_path/name), *anns[1:]])
    with pytest.raises(ValueError, match="vocab has 'shape' alone, so that there is nothing to distinguish it from"):
        dls_of(anns, vocab=['shape'])

@pytest.mark.train
def test_more_than_255_classes_train_with_void_in_its_place(anns, tmp_path):
    codes = [*(f'c{i}' for i in range(255)), 'void', *(f'c{i}' for i in range(255, 300))]
    wide = [replace(a, mask=np.where(decode_class_mask(a.mask) == 1, 255,
                                     decode_class_mask(a.mask).astype(np.int32)*70)) for a in anns]
    learn = segmentation_learner(dls_of(wide, vocab=codes), **KW)
    y = learn.dls.train.one_batch()[1]
    assert set(y.unique().tolist()) <= {0, 140, 210, 255, 280} and y.max() > 255
    with learn.no_bar(), learn.no_logging():
        learn.fit(1, 1e-3)
        cm = learn.confusion()
        assert np.isfinite(learn.evaluate()['valid_loss']) and cm.loc['void'].sum() == 0
        assert learn.annotate(anns[0])[0].mask.dtype == np.int32
