"Integral regression: the expectation of a map lies where the map says, and every point of the image can be reached"
import numpy as np, pytest, torch
from torch.testing import assert_close
from vision_tasks.models.encoders import create_encoder
from vision_tasks.models.heatmap import MARGIN, HeatmapHead, soft_argmax
from vision_tasks.training.build import EncoderHead

@pytest.mark.parametrize('h, w, margin', [(6, 6, 0), (5, 9, 1), (1, 4, 0), (3, 3, 1)])
def test_a_single_cell_gives_its_centre(h, w, margin):
    for i in range(h):
        for j in range(w):
            m = torch.full((1, 1, h, w), -1e4)
            m[0, 0, i, j] = 0
            x,y = soft_argmax(m, margin)[0, 0].tolist()
            # pixels of an image of one pixel per cell: the centre of the first is at 1/2
            assert (x+1)/2*(w-2*margin) == pytest.approx(j - margin + .5, abs=1e-5)
            assert (y+1)/2*(h-2*margin) == pytest.approx(i - margin + .5, abs=1e-5)

def test_a_painted_peak_gives_its_place():
    gen = np.random.default_rng(0)
    xs,ys = np.meshgrid(np.arange(40) + .5, np.arange(30) + .5)
    for x,y in gen.uniform((8, 8), (32, 22), (20, 2)):
        m = torch.tensor(-((xs-x)**2 + (ys-y)**2)/(2*1.5**2))[None, None]
        p = (soft_argmax(m)[0, 0] + 1)/2*torch.tensor([40, 30])
        assert_close(p, torch.tensor([x, y], dtype=torch.float), atol=.05, rtol=0)

def test_it_is_the_expectation_by_numpy_and_float32_from_half():
    m = torch.randn(2, 3, 4, 5)
    p = np.exp(m.double().numpy()); p /= p.sum((2, 3), keepdims=True)
    x = (p*((2*np.arange(5) + 1)/5 - 1)).sum((2, 3)); y = (p*((2*np.arange(4) + 1)/4 - 1)[:,None]).sum((2, 3))
    assert_close(soft_argmax(m), torch.tensor(np.stack([x, y], -1), dtype=torch.float), atol=1e-6, rtol=1e-5)
    assert soft_argmax(m.half()).dtype == torch.float32

def net(encoder='test_resnet', n_out=6, **kw):
    return EncoderHead(create_encoder(encoder, False), HeatmapHead, n_out, kw)

def test_points_at_the_corners_and_the_middle_can_be_reached():
    head = HeatmapHead([4], [8], 2, width=8)
    maps = head.maps([torch.randn(2, 4, 5, 7)])
    assert maps.shape == (2, 1, 5 + 2*MARGIN, 7 + 2*MARGIN)
    m = torch.full((1, 1, 5, 7), -1e4); m[0, 0, 0, 0] = m[0, 0, 0, 1] = m[0, 0, 1, 0] = m[0, 0, 1, 1] = 0
    assert_close(soft_argmax(m, MARGIN)[0, 0], torch.tensor([-1., -1.]))

def test_all_points_begin_near_the_middle_and_any_size_is_taken():
    model = net().eval()
    for size in ((64, 64), (96, 40), (33, 70)):
        out = model(torch.randn(2, 3, *size))
        assert out.shape == (2, 6) and out.abs().max() < .2

@pytest.mark.parametrize('encoder, kw', [('resnet18', {}), ('test_efficientnet', {}), ('vit_tiny_patch16_224', {}),
                                         ('resnet18', dict(stride=64)), ('resnet18', dict(stride=4, width=16))])
def test_every_encoder_has_maps_for_it(encoder, kw):
    model = net(encoder, **kw).train()
    size = (224, 224) if 'vit' in encoder else (64, 96)
    model(torch.randn(2, 3, *size)).sum().backward()
    assert all(p.grad is not None for p in model.head.parameters())

def test_the_map_follows_the_image():
    "Moved by whole cells of the coarsest map, the features give the same point, moved"
    torch.manual_seed(0)
    head = HeatmapHead([4, 6], [8, 16], 2, width=8).eval()
    torch.nn.init.normal_(head.last.weight, std=50.)
    a = [torch.zeros(1, 4, 16, 16), torch.zeros(1, 6, 8, 8)]
    b = [o.clone() for o in a]
    fine,coarse = torch.randn(4, 4, 4), torch.randn(6, 2, 2)
    a[0][0, :, 4:8, 4:8],a[1][0, :, 2:4, 2:4] = fine,coarse
    b[0][0, :, 6:10, 8:12],b[1][0, :, 3:5, 4:6] = fine,coarse
    ma,mb = head.maps(a),head.maps(b)
    assert_close(ma[..., 2:12, 2:12], mb[..., 4:14, 6:16])

def test_an_odd_number_of_outputs_is_refused():
    with pytest.raises(ValueError, match="n_out: expected two numbers for each point, got 5"): HeatmapHead([4], [8], 5)
