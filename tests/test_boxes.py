"Boxes as tensors"
import torch
from torchvision.ops import box_iou
from vision_tasks.ops.boxes import paired_iou

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
