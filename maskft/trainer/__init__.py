"""maskft in a Transformers Trainer: epochs, fixed evaluation, packing, masks on the device."""
