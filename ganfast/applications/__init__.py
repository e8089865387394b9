"""GANs put to use: classification with few labels, augmentation, anomaly detection, editing."""
