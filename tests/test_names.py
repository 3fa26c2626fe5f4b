"""The names that `from vision_tasks.all import *` adds to fastai's. A name that appears or disappears is a decision:
change it here, in the changelog, and in what users read"""
from collections import Counter
import fastai.vision.all as theirs, vision_tasks.all as ours
from public import modules

NAMES = '''
Annotation AnnotationError vocab_of select_objects
read_biwi read_coco read_codes read_df read_dlc read_folders read_instance_masks read_masks read_via read_voc read_yolo
write_coco write_df write_dlc write_folders write_instance_masks write_masks write_via write_voc write_yolo
coco_keypoints dlc_points set_grey_range
check_annotations drop_problems class_weights balanced_pos_weight
AnnotationSplitter StratifiedSplitter stratified_folds
JointTransform LightJitter TightBoxes CropView FitView IoUView JitterView ZoomOutView
decode_mask encode_rle mask_polygons decode_class_mask dense_crf selective_search Proposals
draw_shapes SHAPES SHAPE_CODES SHAPE_POINTS SHAPE_FLIP_PAIRS
draw_figures FIGURE_JOINTS FIGURE_FLIP_PAIRS FIGURE_SKELETON

classification_block classification_dls classification_learner
multilabel_block multilabel_dls multilabel_learner
keypoint_block keypoint_dls keypoint_learner crop_instances
localization_block localization_dls localization_learner largest_object
segmentation_block segmentation_dls segmentation_learner
detection_block detection_dls detection_learner fit_anchors
instance_block instance_dls instance_learner
TaskLearner EMA load_learner list_archs get_arch list_encoders create_encoder

ClassificationCE ClassificationFocal
MultilabelBCE MultilabelFocal AsymmetricLoss PointLoss LocalizationLoss DetectionLoss
SegmentationCE SegmentationFocal SegmentationDice SegmentationCEDice BorderCE
ClassificationAccuracy ClassificationF1 ClassificationCoverage
MultilabelAP MultilabelF1 MultilabelAccuracy PointError NME PCK LocalizationAccuracy LocalizationIoU
MeanIoU PixelAccuracy ClassAccuracy FrequencyIoU MeanDice MeanAP coco_ap voc_ap
best_threshold sweep_thresholds bootstrap_threshold out_of_fold_threshold best_detection_threshold
fit_temperature reliability calibration_error detection_confusion

show_annotation contact_sheet plot_confusion plot_counts plot_per_class
plot_thresholds plot_reliability plot_precision_recall plot_f_threshold
'''.split()

def test_all_adds_these_names_to_those_of_fastai():
    added = {k for k,v in vars(ours).items() if not k.startswith('_') and getattr(theirs, k, None) is not v}
    # the folders of the package are attributes of none of these
    assert added == {*NAMES} and len(NAMES) == len({*NAMES})

def test_no_public_name_hides_one_of_fastai():
    hidden = [k for k in NAMES if hasattr(theirs, k)]
    assert hidden == ['load_learner']   # fastai's, with an error that names a damaged file

def test_no_name_is_public_in_two_modules():
    times = Counter(n for m in modules() for n in m.__all__)
    assert [n for n,k in times.items() if k > 1] == []
