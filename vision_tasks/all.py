"""What a notebook needs: `from vision_tasks.all import *` gives fastai's vision names and ours. Networks are reached by
name (`list_archs`); blocks, item types and pure functions are imported from their modules"""
from fastai.vision.all import *
# data
from .data.annotation import Annotation, select_objects, vocab_of
from .data.check import check_annotations
from .data.class_masks import decode_class_mask
from .data.class_weights import class_weights
from .data.crops import crop_instances
from .data.drop import drop_problems
from .data.errors import AnnotationError
from .data.formats.coco import coco_keypoints, read_coco, write_coco
from .data.formats.folders import read_folders, write_folders
from .data.formats.instance_masks import read_instance_masks, write_instance_masks
from .data.formats.mask_values import read_codes
from .data.formats.masks import read_masks, write_masks
from .data.formats.points import dlc_points, read_biwi, read_dlc, write_dlc
from .data.formats.table import read_df, write_df
from .data.formats.via import read_via, write_via
from .data.formats.voc import read_voc, write_voc
from .data.formats.yolo import read_yolo, write_yolo
from .data.image import set_grey_range
from .data.proposals import Proposals
from .data.splits import AnnotationSplitter, StratifiedSplitter, stratified_folds
from .data.synthetic import (FIGURE_FLIP_PAIRS, FIGURE_JOINTS, FIGURE_SKELETON, SHAPE_CODES, SHAPE_FLIP_PAIRS,
                             SHAPE_POINTS, SHAPES, draw_figures, draw_shapes)
from .data.transforms import JointTransform, LightJitter, TightBoxes
from .data.views import CropView, FitView, IoUView, JitterView, ZoomOutView
from .ops.crf import dense_crf
from .ops.masks import decode_mask, encode_rle, mask_polygons
from .ops.proposals import selective_search
# tasks
from .classification import classification_block, classification_dls, classification_learner
from .detection import detection_block, detection_dls, detection_learner, fit_anchors
from .instance import instance_block, instance_dls, instance_learner
from .keypoint import keypoint_block, keypoint_dls, keypoint_learner
from .localization import largest_object, localization_block, localization_dls, localization_learner
from .multilabel import multilabel_block, multilabel_dls, multilabel_learner
from .segmentation import segmentation_block, segmentation_dls, segmentation_learner
from .training.ema import EMA
from .training.files import load_learner
from .training.learner import TaskLearner
# networks by name
from .models.encoders import create_encoder, list_encoders
from .models.registry import get_arch, list_archs
# losses and metrics
from .losses.borders import BorderCE
from .losses.classes import ClassificationCE, ClassificationFocal
from .losses.detection import DetectionLoss
from .losses.labels import AsymmetricLoss, MultilabelBCE, MultilabelFocal, balanced_pos_weight
from .losses.localization import LocalizationLoss
from .losses.points import PointLoss
from .losses.segmentation import SegmentationCE, SegmentationCEDice, SegmentationDice, SegmentationFocal
from .metrics.classes import ClassificationAccuracy, ClassificationCoverage, ClassificationF1
from .metrics.detection import MeanAP, coco_ap, voc_ap
from .metrics.labels import MultilabelAccuracy, MultilabelAP, MultilabelF1
from .metrics.localization import LocalizationAccuracy, LocalizationIoU
from .metrics.points import NME, PCK, PointError
from .metrics.segmentation import ClassAccuracy, FrequencyIoU, MeanDice, MeanIoU, PixelAccuracy
# thresholds and calibration
from .metrics.calibration import calibration_error, fit_temperature, reliability
from .metrics.detection_curves import best_detection_threshold, detection_confusion
from .metrics.threshold_curves import bootstrap_threshold, out_of_fold_threshold, sweep_thresholds
from .metrics.thresholds import best_threshold
# images and plots
from .show.detection_plots import plot_f_threshold, plot_precision_recall
from .show.draw import show_annotation
from .show.plots import plot_confusion, plot_counts, plot_per_class
from .show.sheet import contact_sheet
from .show.threshold_plots import plot_reliability, plot_thresholds
