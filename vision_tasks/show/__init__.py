"Images of annotations and predictions, plots, and the DataLoader classes whose `show_batch` and `show_results` draw"
