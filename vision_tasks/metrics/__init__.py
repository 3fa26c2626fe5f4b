"Metrics, one file per kind of target; thresholds and calibration"
