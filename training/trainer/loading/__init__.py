"""From a manifest to batches of photos: order, data loader processes, augmentation."""
