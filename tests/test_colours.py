import numpy as np, pytest
from skimage.color import rgb2lab
from vision_tasks.data.targets import NO_OBJECT
from vision_tasks.data.synthetic import SHAPE_CODES, SHAPES
from vision_tasks.ops.colours import class_colours, is_background, palette, text_colour

def apart(colours):
    "The least distance of two of `colours` in CIELAB (2.3 is the least that is noticed)"
    lab = rgb2lab(colours[None])[0]
    return np.linalg.norm(lab[:,None]-lab[None], axis=-1)[np.triu_indices(len(lab), 1)].min()

@pytest.mark.parametrize('n, least', [(3, 60), (12, 25), (21, 15), (80, 8)])
def test_the_colours_of_few_and_of_many_classes_are_far_apart(n, least):
    p = palette(n)
    assert p.shape == (n, 3) and (0 <= p).all() and (p <= 1).all() and apart(p) > least

def test_the_first_colours_do_not_depend_on_their_number_and_more_than_256_repeat():
    assert np.array_equal(palette(80)[:7], palette(7)) and palette(0).shape == (0, 3)
    assert len(np.unique(palette(256), axis=0)) == 256 and np.array_equal(palette(300)[256:], palette(44))

@pytest.mark.parametrize('seen', [  # a red- and a green-blind eye by another model: Vienot, Brettel & Mollon, 1999
    [[.11238, .88762, 0], [.11238, .88762, 0], [.00401, -.00401, 1]],
    [[.29275, .70725, 0], [.29275, .70725, 0], [-.02234, .02234, 1]]])
def test_a_colour_blind_reader_tells_the_first_twelve_apart(seen):
    p = palette(12)
    linear = np.where(p <= .04045, p/12.92, ((p+.055)/1.055)**2.4)@np.array(seen).T
    assert apart(np.where(linear <= .0031308, 12.92*linear, 1.055*linear.clip(0)**(1/2.4)-.055).clip(0, 1)) > 4

def test_a_class_has_the_same_colour_in_every_task_whatever_the_order_and_the_background():
    want = class_colours(SHAPES)
    for vocab in (SHAPE_CODES, [NO_OBJECT, *SHAPES], SHAPES[::-1]):
        colours = class_colours(vocab)
        assert all(np.array_equal(colours[o], want[o]) for o in SHAPES) and len(colours) == len(vocab)
    assert np.ptp(class_colours(SHAPE_CODES)['background']) == 0   # grey
    assert is_background(SHAPE_CODES) and not is_background(SHAPES) and not is_background(())

def test_text_has_the_colour_of_the_higher_contrast():
    "WCAG 2.1: (lighter + .05)/(darker + .05) of the relative luminances, here those of scikit-image's CIE Y"
    from skimage.color import rgb2xyz
    for colour in (*palette(96), (0, 0, 0), (1, 1, 1), (1, 1, 0), (0, 0, 1), (.46, .46, .46)):
        y = rgb2xyz(np.reshape(colour, (1, 1, 3)).astype(float))[0,0,1]
        contrast = {'black': (y+.05)/.05, 'white': 1.05/(y+.05)}
        assert contrast[text_colour(colour)] >= max(contrast.values()) - .01, colour
        assert max(contrast.values()) > 4.5, colour   # what WCAG asks for
