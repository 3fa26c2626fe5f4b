"Boxes as tensors"
import pytest, torch
from torchvision.ops import box_iou
from vision_tasks.models.detection.faster_rcnn import faster_rcnn
from vision_tasks.ops.boxes import iou_matrix, paired_iou

def test_paired_iou_is_the_diagonal_of_torchvisions_matrix():
    torch.manual_seed(0)
    a,b = (torch.rand(500, 2, 2).sort(1).values.flatten(1) for _ in range(2))
    torch.testing.assert_close(paired_iou(a, b), box_iou(a, b).diag())
    assert paired_iou(a.view(5, 100, 4), b.view(5, 100, 4)).shape == (5, 100)

def test_boxes_without_area_have_iou_0_and_those_of_nan_have_nan():
    a = torch.tensor([[1., 1, 1, 1], [0, 0, 2, 2], [0, 0, 2, 2], [float('nan')]*4])
    b = torch.tensor([[1., 1, 1, 1], [2, 2, 3, 3], [1, 1, 0, 0], [0, 0, 1, 1]])
    iou = paired_iou(a, b)
    assert iou[:3].tolist() == [0, 0, 0] and iou[3].isnan()

@pytest.mark.parametrize('dtype', [torch.float, torch.double, torch.half, torch.bfloat16], ids=str)
@pytest.mark.parametrize('n,m', [(0, 0), (0, 5), (5, 0), (1, 1), (7, 300), (300, 7)])
def test_the_iou_matrix_is_torchvisions_to_the_bit(n, m, dtype):
    g = torch.Generator().manual_seed(n + m)
    corners = [400*torch.rand(k, 2, 2, generator=g) for k in (n, m)]
    a,b = (torch.cat([o.amin(1), o.amax(1)], 1).to(dtype) for o in corners)
    a[::3] = a[::3].round()
    b[:3]  = a[:3] if len(a) > 2 and len(b) > 2 else b[:3]         # equal ones
    kept = a.clone(),b.clone()
    torch.testing.assert_close(iou_matrix(a, b), box_iou(a, b), rtol=0, atol=0)
    assert torch.equal(a, kept[0]) and torch.equal(b, kept[1])

def test_the_iou_matrix_is_torchvisions_for_boxes_without_area_of_nan_and_upside_down():
    nan,inf = float('nan'),float('inf')
    a = torch.tensor([[1., 1, 1, 1], [0, 0, 2, 2], [2, 2, 0, 0], [nan]*4, [0, 0, inf, 1], [0, 0, 2, 0]])
    torch.testing.assert_close(iou_matrix(a, a), box_iou(a, a), rtol=0, atol=0, equal_nan=True)

def test_whole_numbers_and_other_shapes_have_no_iou_matrix():
    for o in (torch.zeros(2, 4, dtype=torch.long), torch.zeros(2, 5), torch.zeros(4)):
        with pytest.raises(ValueError, match=r'b: expected a float tensor \(n, 4\) of x1 y1 x2 y2, got'):
            iou_matrix(torch.zeros(2, 4), o)

def test_faster_rcnn_matches_anchors_by_the_iou_matrix_and_its_losses_are_those_by_torchvisions(monkeypatch):
    "torchvision takes the function from the attribute `box_similarity`"
    torch.manual_seed(0)
    net = faster_rcnn(3, encoder='test_resnet', pretrained=False, size=64).train()
    x,bboxes = torch.rand(2, 3, 64, 64),torch.tensor([[[4., 4, 40, 30], [20, 30, 60, 62]]]*2)
    def losses():
        torch.manual_seed(1)
        return net(x, bboxes, torch.tensor([[1, 2]]*2))
    calls = []
    monkeypatch.setattr(iou_matrix, 'unchecked', lambda a, b: calls.append(len(b)) or box_iou(a, b))
    theirs = losses()
    assert sum(n > 100 for n in calls) == 2        # the anchors of two images
    monkeypatch.undo()
    ours = losses()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)
