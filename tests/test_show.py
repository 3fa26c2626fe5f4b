import numpy as np, pandas as pd, pytest
import matplotlib.pyplot as plt
from vision_tasks.data.annotation import Annotation
from vision_tasks.ops.masks import decode_mask
from vision_tasks.show import (FALSE, MISSED, RIGHT, _label_lines, contact_sheet, paint_classes, palette,
                               plot_confusion, show_annotation)

def drawn(fig):
    fig.canvas.draw()
    return np.asarray(fig.canvas.buffer_rgba())[...,:3]

def texts(ax):
    below = [c for a in ax.artists for c in getattr(a.get_child(), 'get_children', list)() if hasattr(c, 'get_text')]
    return [o.get_text() for o in (*ax.texts, *below)]

def test_palette_gives_colours_that_differ_and_do_not_depend_on_their_number():
    p = palette(20)
    d = np.linalg.norm(p[:,None]-p[None], axis=-1)[np.triu_indices(20, 1)]
    assert p.shape == (20, 3) and (0 <= p).all() and (p <= 1).all() and d.min() > .08
    assert np.array_equal(p[:7], palette(7)) and palette(0).shape == (0, 3)

def test_an_annotation_is_drawn_with_its_boxes_labels_masks_and_points(shapes):
    a = next(o for o in shapes if len(o.labels) > 1)
    ax = show_annotation(a)
    assert texts(ax) == a.labels and len(ax.patches) == len(a.bboxes) and len(ax.collections) == len(a.points)
    for b,r in zip(a.bboxes, ax.patches):
        x1,y1,x2,y2 = b
        drawn = r.get_x()+.5,r.get_y()+.5,r.get_width(),r.get_height()
        assert drawn == pytest.approx((x1, y1, x2-x1, y2-y1))
    image = ax.images[0].get_array()
    plain = show_annotation(Annotation(a.path, a.size)).images[0].get_array()
    changed = (image != plain).any(-1)
    assert (changed <= np.any([decode_mask(m, a.size) for m in a.masks], 0)).all() and changed.sum() > 50

def test_labels_without_boxes_and_scores_stand_below(shapes):
    a = Annotation(shapes[0].path, (64, 64), ['x', 'y'], scores=[.25, .75])
    assert texts(show_annotation(a)) == ['x 0.25', 'y 0.75'] and texts(show_annotation(a, scores=False)) == ['x', 'y']
    assert texts(show_annotation(Annotation(shapes[0].path, (64, 64)))) == ['no label']
    many = Annotation(shapes[0].path, (64, 64), [f'l{i}' for i in range(30)])
    assert texts(show_annotation(many))[-1] == '... and 22 more'

def test_found_missed_and_made_up_labels_look_different():
    lines = _label_lines({'a', 'b'}, {'b', 'c'}, dict(b=.9, c=.6))
    assert lines == [('b 0.90', RIGHT), ('(a)', MISSED), ('+ c 0.60', FALSE)]
    assert _label_lines(set(), set(), {}) == [('no label', RIGHT)]

def test_a_contact_sheet_pairs_truth_and_prediction_and_is_written(shapes, tmp_path):
    truth = [Annotation(a.path, a.size, sorted(set(a.labels))) for a in shapes[:5]]
    preds = [Annotation(a.path, a.size, ['star'], scores=[.7]) for a in truth]
    fig = contact_sheet(truth, preds, tmp_path/'new'/'sheet.png', n=4, title='sheet')
    used = [ax for ax in fig.axes if ax.images]
    assert [ax.get_title() for ax in used] == ['truth', 'prediction']*4
    assert (tmp_path/'new'/'sheet.png').stat().st_size > 1e4
    assert drawn(fig).std() > 5
    assert len([ax for ax in contact_sheet(shapes[:3]).axes if ax.images]) == 3

def test_a_sheet_of_nothing_or_of_unequal_lists_is_refused(shapes):
    with pytest.raises(ValueError, match="at least one annotation, got none"): contact_sheet([])
    with pytest.raises(ValueError, match="3 truths but 2 predictions"): contact_sheet(shapes[:3], shapes[:2])

def test_text_below_a_picture_stays_on_the_sheet_and_off_the_next_row(shapes):
    many = [Annotation(a.path, a.size, [f'label {i}' for i in range(9)]) for a in shapes[:8]]
    fig = contact_sheet(many, ncols=4)
    fig.canvas.draw()
    used = [ax for ax in fig.axes if ax.images]
    boxes = [a.get_window_extent(fig.canvas.get_renderer()) for ax in used for a in ax.artists]
    assert all(b.y0 >= -1 and b.y1 <= fig.bbox.y1+1 for b in boxes)
    top_of_second = used[4].get_window_extent().y1
    assert all(b.y0 >= top_of_second-1 for b in boxes[:4])

def test_pictures_are_closed_by_the_test_session(): assert not plt.get_fignums()

def test_class_masks_are_painted_by_their_index_void_black_and_a_background_not_at_all():
    image = np.full((2, 2, 3), 100, np.uint8)
    mask  = np.array([[0, 1], [2, 255]], np.uint8)
    painted = paint_classes(image, mask, ['background', 'a', 'b'], alpha=1.)
    want = np.array([[[100]*3, palette(3)[1]*255], [palette(3)[2]*255, [0]*3]])
    np.testing.assert_allclose(painted, want, atol=1)
    assert (paint_classes(image, mask, ['sky', 'a', 'b'], alpha=1.)[0, 0] != 100).any()

def test_a_confusion_matrix_shows_the_shares_of_the_true_class():
    counts = pd.DataFrame([[9, 1], [0, 0]], index=list('ab'), columns=list('ab'))
    ax = plot_confusion(counts)
    assert sorted(t.get_text() for t in ax.texts) == ['.10', '.90'] and ax.get_ylabel() == 'truth'
    assert sorted(t.get_text() for t in plot_confusion(counts, normalize=False).texts) == ['1', '9']
